"""Tables, figures and one HTML page, from the rows and kept slices of a comparison."""

from __future__ import annotations

import base64
import html
import io as bytes_io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from napari_arssr.errors import FileError, UsageError
from napari_arssr.evaluation import pictures
from napari_arssr.evaluation.charts import Series, line_chart
from napari_arssr.evaluation.montage import Panel, Window, choose_window, montage
from napari_arssr.evaluation.rows import REFERENCE, Row, counted, read_rows
from napari_arssr.evaluation.running import SKIPPED
from napari_arssr.evaluation.tables import COLUMNS, Group, Table, groups, tables

__all__ = ["FIGURES", "SETTINGS", "write_report"]

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
    if not any(row.method != REFERENCE for row in found):
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
            body.append(svg)
        for figure in _slices(folder / "pictures", group, planes):
            written += figure.write(figures)
            body += figure.html()
    page = _page(body, _facts(folder, found, made), _skipped(rows.with_name(SKIPPED)))
    written.append(_write(folder / "report.html", page))
    return written


# --------------------------------------------------------------------------------- curves


def _curves(group: Group) -> Iterator[tuple[str, str]]:
    scales = [scale for scale in group.scales if "x" not in scale]
    if len(scales) < 2:
        return
    for name in _CURVES:
        column = COLUMNS[name]
        series = []
        for method in group.methods:
            values = [list(group.values(name, method, scale).values()) for scale in scales]
            points = [
                (float(scale), float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0)
                for scale, v in zip(scales, values, strict=True)
                if v
            ]
            if points:
                x, y, error = zip(*points, strict=True)
                series.append(Series(method, x, y, error, marked=True))
        own = list(group.values(name, REFERENCE, "").values())
        if own and series:
            ends = (float(scales[0]), float(scales[-1]))
            series.append(Series(REFERENCE, ends, (float(np.mean(own)),) * 2, strong=True))
        chart = line_chart(
            series,
            f"{column.title}: {group.dataset}",
            "scale",
            f"{column.heading}, mean ± sd",
            x_ticks=[float(scale) for scale in scales],
        )
        if chart:
            yield name, chart


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
        encoded = base64.b64encode(self.picture).decode()
        return [
            f"<h3>{html.escape(self.title)}</h3>",
            f"<img src='data:image/png;base64,{encoded}' alt='{html.escape(self.title)}: slices, "
            "insets and differences'>",
            self.profile,
        ]


def _slices(folder: Path, group: Group, planes: Sequence[str]) -> Iterator[_Figure]:
    for place in pictures.views_in(folder):
        view = pictures.load_view(place)
        if view.dataset != group.dataset:
            continue
        for scale in group.scales:
            for plane in planes:
                figure = _figure(place, view, group, scale, plane)
                if figure is not None:
                    yield figure


def _figure(
    place: Path, view: pictures.View, group: Group, scale: str, plane: str
) -> _Figure | None:
    reference = pictures.load_planes(place, "", 0.0, REFERENCE)
    if reference is None:
        return None
    truth = reference[plane]
    panels = []
    for method in [pictures.INPUT, *group.methods]:
        kept = pictures.load_planes(place, scale, group.noise_percent, method)
        if kept is not None and kept[plane].shape == truth.shape:
            note = _note(group, view.volume, method, scale)
            panels.append(Panel(method, note, kept[plane], method != pictures.INPUT))
    if len(panels) < 2:
        return None
    panels.append(Panel(REFERENCE, "", truth, compared=False))
    down, right = (view.spacing[axis] for axis in _AXES[plane])
    window = choose_window(truth, (down, right))
    sheet = montage(
        panels,
        truth,
        spacing=(down, right),
        limits=_limits(truth, view),
        window=window,
        letters=_LETTERS[plane],
    )
    buffer = bytes_io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    title = f"{view.volume}, scale × {scale.replace('x', ' × ')}, {plane}"
    stem = Path(place).name
    name = f"{group.name}-{stem}-x{scale}-{plane}"
    return _Figure(name, title, buffer.getvalue(), _profile(panels, window, right, title))


def _limits(truth: np.ndarray, view: pictures.View) -> tuple[float, float]:
    """Black and white; a few bright voxels elsewhere do not darken the slice."""
    low, high = view.low, float(np.percentile(truth, 99.8))
    return (low, high) if high > low else (view.low, view.high)


def _profile(panels: Sequence[Panel], window: Window, step: float, title: str) -> str:
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
        series, f"Profile along the line: {title}", "along the line, mm", "intensity of the file"
    )


def _note(group: Group, volume: str, method: str, scale: str) -> str:
    for column, text in (("psnr_mask", "{:.2f} dB in the mask"), ("psnr", "{:.2f} dB")):
        value = group.values(column, method, scale).get(volume)
        if value is not None:
            return text.format(value)
    return "voxels as measured" if method == pictures.INPUT else ""


# ----------------------------------------------------------------------------------- page


def _facts(folder: Path, rows: Sequence[Row], made: Sequence[Table]) -> str:
    scored = [row for row in rows if row.method != REFERENCE]
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


def _write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror}); try elsewhere.") from None
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
img, svg { max-width: 100%; height: auto; display: block; margin: 0.5rem 0 1rem; }
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
