"""Tables, figures and one HTML page, from the rows and kept slices of a comparison."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from napari_arssr import io
from napari_arssr.errors import FileError, UsageError
from napari_arssr.evaluation import pictures
from napari_arssr.evaluation.charts import Series, line_chart
from napari_arssr.evaluation.montage import SMALLEST_SIDE, Panel, Window, choose_window, montage
from napari_arssr.evaluation.rows import REFERENCE, Row, counted, read_rows
from napari_arssr.evaluation.running import SKIPPED
from napari_arssr.evaluation.tables import COLUMNS, Block, Group, Table, compare, groups, tables
from napari_arssr.files import write_whole

__all__ = ["FIGURES", "SETTINGS", "has_results", "write_report"]

FIGURES = "figures"
"""Folder of the report's pictures, as PNG and SVG."""

SETTINGS = "settings.json"

_CURVES = (
    "psnr",
    "ssim",
    "lpips",
    "psnr_mask",
    "ssim_mask",
    "psi",
    "lpc_si",
    "dice",
    "consistency",
)

# What lies at the top, bottom, left and right of each plane.
_LETTERS = {
    "axial": ("A", "P", "R", "L"),
    "coronal": ("S", "I", "R", "L"),
    "sagittal": ("S", "I", "A", "P"),
}
_AXES = {"axial": (1, 2), "coronal": (0, 2), "sagittal": (0, 1)}


def has_results(rows: Path) -> bool:
    """Whether a file of rows has any to make tables of."""
    return bool(_results(read_rows(rows)))


def _results(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.method != REFERENCE]


def write_report(folder: Path, rows: Path, *, planes: Sequence[str] = ("axial",)) -> list[Path]:
    """Write ``tables.md``, ``tables.tex``, ``report.html`` and the figures.

    Parameters
    ----------
    folder : path
        Of the comparison: where ``pictures`` and ``settings.json`` lie, and the report goes.
    rows : path
    planes : sequence of {"axial", "coronal", "sagittal"}
        Which slices are drawn.

    Returns
    -------
    list of path
        What was written.

    Raises
    ------
    UsageError
        If there are no rows.
    FileError
        If something cannot be read or written.
    """
    found = read_rows(rows)
    if not _results(found):
        raise UsageError(f"{rows}: there are no rows to make tables of.")
    compared = groups(found)
    made = [table for group in compared for table in tables(group)]
    figures = folder / FIGURES
    written = [
        _write(folder / "tables.md", "\n".join(table.markdown() for table in made)),
        _write(
            folder / "tables.tex",
            "% needs \\usepackage{booktabs}\n" + "\n".join(table.latex() for table in made),
        ),
    ]
    body: list[str] = []
    for group in compared:
        body.append(f"<h2>{html.escape(group.title)}</h2>")
        body += [table.html() for table in made if table.group is group]
        charts = list(_curves(group))
        if charts:
            body.append("<h3>Curves over scale</h3>")
        for name, svg in charts:
            written.append(_write(figures / f"{group.name}-{name}.svg", svg))
            body.append(_image(svg, f"{name} against scale, {group.title}"))
        for figure in _slices(folder / "pictures", group, planes):
            written += figure.write(figures)
            body += figure.html()
    page = _page(body, _facts(folder, found, made), _skipped(folder / SKIPPED))
    written.append(_write(folder / "report.html", page))
    return written


# --------------------------------------------------------------------------------- curves


def _curves(group: Group) -> Iterator[tuple[str, str]]:
    scales = [scale for scale in group.scales if "x" not in scale]
    if len(scales) < 2:
        return
    for name in _CURVES:
        block = compare(group, name, group.methods)
        if block is None:
            continue
        column = COLUMNS[name]
        chart = line_chart(
            [_curve(block, method, scales) for method in block.methods],
            f"{column.title}: {group.dataset}",
            "scale",
            f"{column.heading}, mean ± sd",
            subtitle=group.conditions,
            x_ticks=[float(scale) for scale in scales],
        )
        if chart:
            yield name, chart


def _curve(block: Block, method: str, scales: Sequence[str]) -> Series:
    """The means of a table's row, so over the volumes that all methods have at each scale."""
    cells = [(float(s), block.cells[method, s]) for s in scales if (method, s) in block.cells]
    return Series(
        method,
        [scale for scale, _ in cells],
        [cell.mean for _, cell in cells],
        [0.0 if math.isnan(cell.deviation) else cell.deviation for _, cell in cells],
        marked=method != REFERENCE,
        strong=method == REFERENCE,
    )


# --------------------------------------------------------------------------------- slices


class _Figure:
    """A montage and its profile."""

    def __init__(self, name: str, title: str, picture: bytes, profile: str) -> None:
        self.name = name
        self.title = title
        self.picture = picture
        self.profile = profile

    def write(self, folder: Path) -> list[Path]:
        return [
            _write(folder / f"{self.name}.png", self.picture),
            _write(folder / f"{self.name}-profile.svg", self.profile),
        ]

    def html(self) -> list[str]:
        return [
            f"<h3>{html.escape(self.title)}</h3>",
            _image(self.picture, f"{self.title}: slices, insets and differences"),
            _image(self.profile, f"{self.title}: profile along the line"),
        ]


def _slices(folder: Path, group: Group, planes: Sequence[str]) -> Iterator[_Figure]:
    stems = [io.stem(volume) for volume in group.volumes]
    for volume in group.volumes:
        stem = io.stem(volume)
        name = stem if stems.count(stem) == 1 else volume
        for scale in group.scales:
            found = {
                row.method: row for row in group.rows if row.volume == volume and row.scale == scale
            }
            rows = [found[method] for method in group.methods if method in found]
            if not rows or not pictures.has_view(pictures.folder_of(folder, rows[0])):
                continue
            for plane in planes:
                figure = _figure(folder, group, rows, name, plane)
                if figure is not None:
                    yield figure


def _figure(
    folder: Path, group: Group, rows: Sequence[Row], name: str, plane: str
) -> _Figure | None:
    """The pictures of some rows of one volume and scale."""
    place = pictures.folder_of(folder, rows[0])
    view, scale = pictures.load_view(place), rows[0].scale
    reference = pictures.load_reference(place)
    if reference is None:
        return None
    truth = reference[plane]
    if min(truth.shape) < SMALLEST_SIDE:  # across a volume that is a slice or a few
        return None
    kept = [(row.method, _note(row), pictures.load_result(folder, row)) for row in rows]
    kept.insert(0, (pictures.INPUT, "voxels as measured", pictures.load_input(folder, rows[0])))
    panels = [
        Panel(method, note, planes[plane], method != pictures.INPUT)
        for method, note, planes in kept
        if planes is not None and planes[plane].shape == truth.shape
    ]
    if len(panels) < 2:
        return None
    panels.append(Panel(REFERENCE, "", truth, compared=False))
    down, right = (view.spacing[axis] for axis in _AXES[plane])
    window = choose_window(truth, (down, right))
    title = f"{view.volume}, scale × {scale.replace('x', ' × ')}, {plane}"
    slices = montage(
        panels,
        truth,
        spacing=(down, right),
        limits=_limits(truth, view),
        window=window,
        letters=_LETTERS[plane],
        title=f"{title}\n{group.title}",
    )
    profile = _profile(panels, window, right, title, group.title)
    safe = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
    return _Figure(
        f"{group.name}-{safe}-x{scale}-{plane}",
        f"{title}; {group.title}",
        slices,
        profile,
    )


def _limits(truth: np.ndarray, view: pictures.View) -> tuple[float, float]:
    """Black and white; a few bright voxels elsewhere do not darken the slice."""
    low, high = view.low, float(np.percentile(truth, 99.8))
    return (low, high) if high > low else (view.low, view.high)


def _profile(
    panels: Sequence[Panel], window: Window, step: float, title: str, conditions: str
) -> str:
    """Intensities along the line in the inset, the input left out."""
    _, columns = window.part
    x = (np.arange(window.columns) * step).tolist()
    series = [
        Series(
            panel.name,
            x,
            panel.plane[window.middle, columns].tolist(),
            strong=panel.name == REFERENCE,
        )
        for panel in panels
        if panel.name != pictures.INPUT
    ]
    return line_chart(
        series,
        f"Profile along the line: {title}",
        "along the line, mm",
        "intensity of the file",
        subtitle=conditions,
    )


def _note(row: Row) -> str:
    for value, text in ((row.psnr_mask, "{:.2f} dB in the mask"), (row.psnr, "{:.2f} dB")):
        if not math.isnan(value):
            return text.format(value)
    return ""


# ----------------------------------------------------------------------------------- page


def _facts(folder: Path, rows: Sequence[Row], made: Sequence[Table]) -> str:
    scored = _results(rows)
    lines = [
        f"{counted(len(scored), 'result')} of "
        f"{counted(len({(r.dataset, r.volume) for r in scored}), 'volume')}, "
        f"{counted(len({r.method for r in scored}), 'method')}, {counted(len(made), 'table')}."
    ]
    sizes = "; ".join(
        f"{method}: {network}, {count / 1e6:.2f} million parameters"
        if count
        else f"{method}: {network}"
        for method, network, count in dict.fromkeys(
            (r.method, r.network, r.parameters) for r in scored
        )
    )
    lines.append(f"Methods: {sizes}.")
    for version in sorted({row.versions for row in scored}):
        lines.append(f"Made with {version}.")
    text = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    settings = folder / SETTINGS
    if settings.is_file():
        try:
            shown = json.dumps(
                json.loads(settings.read_text(encoding="utf-8")), indent=1, ensure_ascii=False
            )
        except (OSError, ValueError) as error:
            raise FileError(f"{settings}: it cannot be read ({error}); remove it.") from None
        text += (
            f"<details><summary>Settings of the last run</summary><pre>{html.escape(shown)}</pre>"
            "</details>"
        )
    return text


def _skipped(path: Path) -> str:
    import csv

    if not path.is_file():
        return ""
    with path.open(newline="", encoding="utf-8") as opened:
        lines = list(csv.DictReader(opened))
    if not lines:
        return ""
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(value or '')}</td>" for value in line.values())
        + "</tr>"
        for line in lines
    )
    heading = "".join(f"<th>{html.escape(name)}</th>" for name in lines[0])
    return (
        f"<h2>Skipped in the last run: {len(lines)}</h2><table class='left'><thead><tr>{heading}"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _page(body: Sequence[str], facts: str, skipped: str) -> str:
    return (
        _PAGE.replace("@FACTS@", facts)
        .replace("@SKIPPED@", skipped)
        .replace("@BODY@", "\n".join(body))
    )


def _image(content: str | bytes, text: str) -> str:
    """A picture within the page: SVG, as text, or PNG."""
    kind, data = ("svg+xml", content.encode()) if isinstance(content, str) else ("png", content)
    encoded = base64.b64encode(data).decode()
    return f"<img src='data:image/{kind};base64,{encoded}' alt='{html.escape(text)}'>"


def _write(path: Path, content: str | bytes) -> Path:
    write_whole(path, content.encode() if isinstance(content, str) else content)
    return path


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>napari-arssr: comparison</title>
<style>
body { font: 16px/1.5 Helvetica, Arial, sans-serif; color: #111; background: #fff;
       margin: 2rem auto; max-width: 1700px; padding: 0 1.5rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem; text-align: right; }
tbody th, thead th:first-child, table.left td, table.left th { text-align: left; }
tbody th { font-weight: normal; }
thead { border-bottom: 2px solid #444; }
tr.p { border-top: 1px solid #999; color: #444; }
p.note { color: #444; margin: 0.2rem 0; font-size: 0.9rem; max-width: 70rem; }
img { max-width: 100%; height: auto; display: block; margin: 0.5rem 0 1rem; }
h2 { border-top: 1px solid #ccc; padding-top: 1rem; margin-top: 2rem; }
pre { background: #f4f4f4; padding: 1rem; overflow: auto; }
</style>
</head>
<body>
<h1>Comparison of super-resolution methods</h1>
@FACTS@
@BODY@
@SKIPPED@
</body>
</html>
"""
