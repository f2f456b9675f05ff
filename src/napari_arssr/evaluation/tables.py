"""Tables of a comparison, as the papers have them: means over volumes, the best marked, tested.

1. encoders: ArSSR networks among themselves, with their size and time
2. fidelity: PSNR, SSIM and LPIPS of every method at every scale
3. the same inside the mask
4. sharpness without a reference: PSI and LPC-SI
5. Dice of automatic segmentations
6. data consistency, time and memory

A mean is over the volumes for which *every* method of that column has a value, so that methods
are compared on the same volumes; others are named under the table, never averaged in. Of rows
that differ in nothing but recipe, weights, precision, mask or content of a volume, the last stand;
of LPIPS and Dice, those measured with the last weights and priors.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from napari_arssr.evaluation.rows import REFERENCE, RESULTS, Row, counted, measured_by

__all__ = ["COLUMNS", "Block", "Cell", "Column", "Group", "Table", "compare", "groups", "tables"]


@dataclass(frozen=True)
class Column:
    """How a column of rows is shown.

    Parameters
    ----------
    title, unit : str
    digits : int
        After the point.
    best : {"high", "low", ""}
    """

    title: str
    digits: int
    best: Literal["high", "low", ""] = "high"
    unit: str = ""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


COLUMNS: dict[str, Column] = {
    "psnr": Column("PSNR", 2, unit="dB"),
    "ssim": Column("SSIM", 4),
    "lpips": Column("LPIPS", 4, "low"),
    "psnr_mask": Column("PSNR in the mask", 2, unit="dB"),
    "ssim_mask": Column("SSIM in the mask", 4),
    "psi": Column("PSI", 4),
    "lpc_si": Column("LPC-SI", 4),
    "dice": Column("Dice, mean", 4),
    "dice_csf": Column("Dice, CSF", 4),
    "dice_gm": Column("Dice, grey matter", 4),
    "dice_wm": Column("Dice, white matter", 4),
    "dice_deep_gm": Column("Dice, deep grey matter", 4),
    "dice_brain_stem": Column("Dice, brain stem", 4),
    "dice_cerebellum": Column("Dice, cerebellum", 4),
    "consistency": Column("data consistency", 2, unit="dB"),
    "seconds": Column("time", 1, "low", unit="s"),
    # With what the process held before, which is no method's own: none is best.
    "memory_mb": Column("memory of the process", 0, "", unit="MB"),
}
"""Columns of rows that tables and curves show."""

_ENCODERS = "1"
_MIXED = {
    "versions": "set of versions",
    "device": "device",
    "precision": "number format",
    "cores": "number of processor cores",
}

_TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (_ENCODERS, "encoders", ("psnr", "ssim", "lpips", "seconds")),
    ("2", "fidelity", ("psnr", "ssim", "lpips")),
    ("3", "fidelity inside the mask", ("psnr_mask", "ssim_mask")),
    ("4", "sharpness without a reference", ("psi", "lpc_si")),
    (
        "5",
        "Dice of automatic segmentations",
        tuple(name for name in COLUMNS if name.startswith("dice")),
    ),
    ("6", "data consistency and cost", ("consistency", "seconds", "memory_mb")),
)

_SIGNIFICANT = 0.05
_FEWEST = 6  # volumes; below, no signed-rank test can come out under 0.05


@dataclass(frozen=True)
class Group:
    """Rows that may stand in one table: of one data set, measured and cut alike.

    Parameters
    ----------
    dataset, scanner, crop, mask : str
    noise_percent : float
    seed : int
        Of the noise.
    rows : tuple of Row
        No two of one volume, scale and method; all of a method and scale by the same recipe and
        weights; all of a volume of the same content and mask.
    superseded : int
        Older rows, of recipes, weights, masks or volumes that have changed since.
    """

    dataset: str
    scanner: str
    noise_percent: float
    seed: int
    crop: str
    mask: str
    rows: tuple[Row, ...]
    superseded: int = 0

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.dataset}, {self.conditions}"

    @property
    def conditions(self) -> str:
        """How its volumes were measured and cut, in words."""
        parts = [f"scanner model {self.scanner}"]
        if self.noise_percent:
            parts.append(f"{self.noise_percent:g} % noise")
        if self.seed:
            parts.append(f"seed {self.seed}")
        if self.crop:
            parts.append(f"cut to the mask and {self.crop} voxels around it")
        if self.mask == "given":
            parts.append("masks given")
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """For files."""
        text = f"{self.dataset} {self.scanner}"
        if self.noise_percent:
            text += f" noise{self.noise_percent:g}"
        if self.seed:
            text += f" seed{self.seed}"
        if self.crop:
            text += f" crop{self.crop}"
        if self.mask == "given":
            text += " masks"
        return "".join(c if c.isalnum() or c in "-." else "-" for c in text)

    @property
    def methods(self) -> list[str]:
        """In the order they came, interpolation first, ArSSR last."""
        seen = {row.method: row.network for row in self.rows if row.scale}
        return sorted(seen, key=lambda method: _rank(seen[method]))

    @property
    def scales(self) -> list[str]:
        """Isotropic ones by size, then the others."""
        found = {row.scale for row in self.rows if row.scale}
        return sorted(found, key=lambda scale: (not _is_number(scale), _number(scale), scale))

    @property
    def volumes(self) -> list[str]:
        """Names of all that were measured, sorted."""
        return sorted({row.volume for row in self.rows if row.scale})

    def values(self, column: str, method: str, scale: str) -> dict[str, float]:
        """Value of each volume; those without one, or measured otherwise, are left out."""
        wanted = self._measured_by(column)
        return {
            row.volume: getattr(row, column)
            for row in self.rows
            if row.method == method
            and row.scale == scale
            and not math.isnan(getattr(row, column))
            and measured_by(row, column) == wanted
        }

    def otherwise(self, column: str) -> int:
        """How many values were measured with other weights or priors than the last."""
        wanted = self._measured_by(column)
        return sum(
            not math.isnan(getattr(row, column)) and measured_by(row, column) != wanted
            for row in self.rows
        )

    def _measured_by(self, column: str) -> str:
        found = [measured_by(r, column) for r in self.rows if not math.isnan(getattr(r, column))]
        return found[-1] if found else ""


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows sorted into what may be compared."""
    found: dict[tuple[str, str, float, int, str, str], list[Row]] = {}
    references = []
    for row in rows:
        if row.method == REFERENCE:
            references.append(row)
            continue
        mask = "auto" if row.mask == "auto" else "given"
        key = (row.dataset, row.scanner, row.noise_percent, row.seed, row.crop, mask)
        found.setdefault(key, []).append(row)
    result = []
    for key, members in sorted(found.items(), key=lambda item: item[0]):
        own = [
            row
            for row in references
            if (row.dataset, row.crop) == (key[0], key[4])
            and (row.mask == "auto") == (key[5] == "auto")
        ]
        contents = {row.volume: _content(row) for row in members}
        newest = _newest(members, contents)
        older = len(members) - len(newest)
        result.append(Group(*key, tuple(newest + _newest(own, contents)), older))
    return result


def _content(row: Row) -> tuple[str, str]:
    return row.volume_sha256, row.mask


def _maker(row: Row) -> tuple[str, str, str]:
    # Of results made elsewhere the digest is that of the result itself.
    weights = "" if row.network == RESULTS else row.weights_sha256
    return row.recipe, weights, row.precision_asked


def _newest(rows: Sequence[Row], contents: dict[str, tuple[str, str]]) -> list[Row]:
    """Of each volume, scale and method the last row, if all that made it is the last of its kind.

    So a mean is never one over the results of several networks, and no two methods are compared
    on a volume that changed between them.
    """
    last = {(row.method, row.scale): _maker(row) for row in rows}
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        place = row.method, row.scale, row.volume
        if _maker(row) == last[row.method, row.scale] and _content(row) == contents.get(row.volume):
            kept.pop(place, None)  # the last one's place in the order counts
            kept[place] = row
    return list(kept.values())


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation (n - 1) over volumes."""

    mean: float
    deviation: float
    count: int
    best: bool = False


@dataclass(frozen=True)
class Block:
    """One metric: methods down, scales across.

    Parameters
    ----------
    name : str
        Of the column of rows.
    column : Column
    scales, methods : tuple of str
    cells : dict
        (method, scale) → Cell, where there is one.
    tests : dict
        Scale → the runner-up, and p of the paired test of the best against it.
    compared : dict
        Scale → volumes that every method has a value for: those of the means.
    left_out : dict
        Scale → the other volumes that were measured at that scale.
    """

    name: str
    column: Column
    scales: tuple[str, ...]
    methods: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    tests: dict[str, tuple[str, float]]
    compared: dict[str, list[str]]
    left_out: dict[str, list[str]]

    @property
    def counts(self) -> dict[str, int]:
        """Scale → volumes that its means are over."""
        return {scale: len(volumes) for scale, volumes in self.compared.items()}


@dataclass(frozen=True)
class Table:
    """A numbered table of a group."""

    number: str
    title: str
    group: Group
    blocks: tuple[Block, ...]

    def label(self, method: str) -> str:
        """How a method is called in it: among encoders, with its network and size."""
        row = next((row for row in self.group.rows if row.method == method), None)
        if self.number != _ENCODERS or row is None or not row.parameters:
            return method
        return f"{method} ({row.network}, {row.parameters / 1e6:.2f} million parameters)"

    @property
    def notes(self) -> list[str]:
        """What stands under it."""
        lines = [self._means_note(), *self._mixtures()]
        tested = {block.counts[scale] for block in self.blocks for scale in block.tests}
        if tested:
            lines[0] += (
                " p: Wilcoxon signed-rank test, two-sided, of the best against the runner-up"
            )
            few = [
                f"with {count} volumes it cannot fall below {2 / 2**count:.2g}"
                for count in sorted(tested)
                if count < _FEWEST
            ]
            lines[0] += f" ({', '.join(few)})." if few else "."
        if self.group.superseded:
            lines.append(
                f"{counted(self.group.superseded, 'older row')} of recipes, weights, masks or "
                "volumes that have changed since left out."
            )
        for block in self.blocks:
            # The regions' Dice go with their mean: said once.
            if not block.name.startswith("dice_") and (other := self.group.otherwise(block.name)):
                lines.append(
                    f"{block.column.title}: {counted(other, 'older value')} left out, because "
                    "measured with other weights or priors."
                )
            lines += _left_out_notes(block)
            lines += self._unscored_slices(block)
        return lines

    def _unscored_slices(self, block: Block) -> Iterator[str]:
        """How many slices no method is scored in, where that is counted."""
        column = f"{block.name}_left_out"
        found = {
            row.volume: getattr(row, column, 0)
            for row in self.group.rows
            if not math.isnan(getattr(row, block.name))
        }
        if any(found.values()):
            least, most = min(found.values()), max(found.values())
            yield (
                f"{block.column.title}: {_range(least, most)} slices of a volume left out for "
                "every method, in which its reference cannot be scored (the same everywhere, or "
                "without an edge)."
            )

    def _mixtures(self) -> Iterator[str]:
        """What the rows of a method have not all been made by."""
        for what, words in _MIXED.items():
            found = {(row.method, getattr(row, what)) for row in self.group.rows if row.scale}
            mixed = sorted({one for one, _ in found if sum(m == one for m, _ in found) > 1})
            if mixed:
                yield f"Of more than one {words}: {', '.join(mixed)}."

    def _means_note(self) -> str:
        """Over how many volumes: one number where it is the same everywhere, else each."""
        best = any(cell.best for block in self.blocks for cell in block.cells.values())
        marked = "; the best in bold" if best else ""
        counts = {count for block in self.blocks for count in block.counts.values() if count}
        if not counts:
            return "There is no mean."
        if counts == {1}:
            return f"One volume: there is no deviation{marked}."
        if len(counts) == 1:
            return f"Mean ± standard deviation over {counts.pop()} volumes{marked}."
        each = "; ".join(
            f"{block.column.title} "
            + ", ".join(f"{count} at scale {scale}" for scale, count in block.counts.items())
            for block in self.blocks
        )
        return (
            f"Mean ± standard deviation over {min(counts)} to {max(counts)} volumes ({each})"
            f"{marked}."
        )

    def markdown(self) -> str:
        """For docs."""
        lines = [f"**Table {self.number}: {self.title}.** {_markdown(self.group.title)}.", ""]
        for block in self.blocks:
            lines += [
                f"| {block.column.heading} | " + " | ".join(_scales(block)) + " |",
                "|---" * (len(block.scales) + 1) + "|",
            ]
            for method in block.methods:
                cells = [_text(block, method, scale, "**{}**") for scale in block.scales]
                lines.append(f"| {_markdown(self.label(method))} | " + " | ".join(cells) + " |")
            if any(block.tests.values()):
                cells = [_test(block, scale, _markdown) for scale in block.scales]
                lines.append("| *p* | " + " | ".join(cells) + " |")
            lines.append("")
        return "\n".join([*lines, *map(_markdown, self.notes), ""])

    def latex(self) -> str:
        """One ``table`` with booktabs rules."""
        widest = max(len(block.scales) for block in self.blocks)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{Table {self.number} of the evaluation: {_tex(self.title)}. "
            rf"{_tex(self.group.title)}. " + " ".join(map(_tex, self.notes)) + "}",
            rf"\begin{{tabular}}{{l{'r' * widest}}}",
            r"\toprule",
        ]
        for number, block in enumerate(self.blocks):
            if number:
                lines.append(r"\midrule")
            lines.append(
                f"{_tex(block.column.heading)} & " + " & ".join(map(_tex, _scales(block))) + r" \\"
            )
            lines.append(r"\midrule")
            for method in block.methods:
                cells = [
                    _tex(_text(block, method, scale, "\0{}\1"))
                    .replace("\0", r"\textbf{")
                    .replace("\1", "}")
                    for scale in block.scales
                ]
                # A "*" or "[" after the end of a row would belong to that.
                lines.append(f"{{}}{_tex(self.label(method))} & " + " & ".join(cells) + r" \\")
            if any(block.tests.values()):
                cells = [_tex(_test(block, scale)) for scale in block.scales]
                lines.append(r"$p$ & " + " & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def html(self) -> str:
        """A ``section`` for the report."""
        parts = [f"<section><h3>Table {self.number}: {html.escape(self.title)}</h3>"]
        for block in self.blocks:
            heading = "".join(f"<th>{html.escape(scale)}</th>" for scale in _scales(block))
            parts.append(
                f"<table><thead><tr><th>{html.escape(block.column.heading)}</th>{heading}</tr>"
                "</thead><tbody>"
            )
            for method in block.methods:
                cells = "".join(
                    f"<td>{_text(block, method, scale, '<b>{}</b>')}</td>" for scale in block.scales
                )
                parts.append(f"<tr><th>{html.escape(self.label(method))}</th>{cells}</tr>")
            if any(block.tests.values()):
                cells = "".join(
                    f"<td>{html.escape(_test(block, scale))}</td>" for scale in block.scales
                )
                parts.append(f"<tr class='p'><th><i>p</i></th>{cells}</tr>")
            parts.append("</tbody></table>")
        parts += [f"<p class='note'>{html.escape(note)}</p>" for note in self.notes]
        return "\n".join([*parts, "</section>"])


def tables(group: Group) -> list[Table]:
    """All tables that a group has values for."""
    networks = {row.method: row.network for row in group.rows}
    result = []
    for number, title, columns in _TABLES:
        methods = group.methods
        if number == _ENCODERS:
            methods = [method for method in methods if networks[method].startswith("ArSSR")]
        blocks = [block for name in columns if (block := compare(group, name, methods)) is not None]
        if blocks:
            result.append(Table(number, title, group, tuple(blocks)))
    return result


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _left_out_notes(block: Block) -> Iterator[str]:
    for scale, volumes in block.left_out.items():
        where = f"{block.column.title} at scale {scale}"
        names = ", ".join(volumes)
        if block.compared[scale]:
            yield (
                f"{where}: {len(volumes)} left out, because not every method has a value: {names}."
            )
        else:
            yield f"{where}: no mean, because no volume has a value of every method: {names}."


def compare(group: Group, name: str, methods: Sequence[str]) -> Block | None:
    """Means of a column at every scale, over the volumes that all methods have a value for.

    Parameters
    ----------
    group : Group
    name : str
        Of :data:`COLUMNS`. Of those that need no reference its own mean is added.
    methods : sequence of str

    Returns
    -------
    Block or None
        None if no method has any value.
    """
    column = COLUMNS[name]
    cells: dict[tuple[str, str], Cell] = {}
    tests: dict[str, tuple[str, float]] = {}
    left_out: dict[str, list[str]] = {}
    compared: dict[str, list[str]] = {}
    valued: set[str] = set()
    for scale in group.scales:
        values = {method: group.values(name, method, scale) for method in methods}
        values = {method: found for method, found in values.items() if found}
        if not values:
            continue
        common = sorted(set.intersection(*map(set, values.values())))
        measured = {r.volume for r in group.rows if r.scale == scale and r.method in methods}
        if measured - set(common):
            left_out[scale] = sorted(measured - set(common))
        compared[scale] = common
        valued |= values.keys()
        if not common:
            continue
        arrays = {m: np.array([found[v] for v in common]) for m, found in values.items()}
        order = sorted(arrays, key=lambda m: _sort_key(column, float(arrays[m].mean())))
        for method, array in arrays.items():
            deviation = _deviation(array)
            best = bool(column.best) and len(order) > 1 and method == order[0]
            cells[method, scale] = Cell(float(array.mean()), deviation, len(array), best)
        if column.best and len(order) > 1 and len(common) > 1:
            tests[scale] = (order[1], _paired_p(arrays[order[0]], arrays[order[1]]))
    if not compared:
        return None
    shown = [method for method in methods if method in valued]
    references = group.values(name, REFERENCE, "")
    for scale, volumes in compared.items():
        own = np.array([references[volume] for volume in volumes if volume in references])
        if len(own):
            cells[REFERENCE, scale] = Cell(float(own.mean()), _deviation(own), len(own))
    if any(method == REFERENCE for method, _ in cells):
        shown.append(REFERENCE)
    return Block(name, column, tuple(compared), tuple(shown), cells, tests, compared, left_out)


def _deviation(values: np.ndarray) -> float:
    """Of n - 1; NaN where there is none."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1))


def _sort_key(column: Column, value: float) -> float:
    return -value if column.best == "high" else value


def _paired_p(best: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where no volume differs."""
    from scipy.stats import wilcoxon

    with np.errstate(invalid="ignore"):
        difference = best - second
    difference = difference[~np.isnan(difference)]  # ∞ - ∞
    if not difference.any():
        return 1.0
    return float(wilcoxon(difference).pvalue)


def _text(block: Block, method: str, scale: str, bold: str) -> str:
    cell = block.cells.get((method, scale))
    if cell is None:
        return "–"
    text = _number_text(cell.mean, block.column.digits)
    if not math.isnan(cell.deviation) and math.isfinite(cell.mean):
        text += f" ± {_number_text(cell.deviation, block.column.digits)}"
    return bold.format(text) if cell.best else text


def _number_text(value: float, digits: int) -> str:
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _test(block: Block, scale: str, spelled: Callable[[str], str] = str) -> str:
    if scale not in block.tests:
        return "–"
    runner_up, p = block.tests[scale]
    stars = " *" if p < _SIGNIFICANT else ""
    return f"{p:.2g}{stars} ({spelled(runner_up)})"


def _scales(block: Block) -> list[str]:
    return [f"× {scale.replace('x', ' × ')}" for scale in block.scales]


def _markdown(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\|*<>[]`" else sign for sign in text)


def _tex(text: str) -> str:
    special: dict[str, str] = {
        "±": r"$\pm$",
        "×": r"$\times$",
        "∞": r"$\infty$",
        "–": "--",
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
    return "".join(special.get(character, character) for character in text)


def _rank(network: str) -> int:
    kinds: list[Callable[[str], bool]] = [
        lambda text: text == "interpolation",
        lambda text: text == RESULTS,
        lambda text: text.startswith("baseline"),
    ]
    return next((rank for rank, fits in enumerate(kinds) if fits(network)), len(kinds))


def _is_number(scale: str) -> bool:
    return "x" not in scale


def _number(scale: str) -> float:
    return float(scale) if _is_number(scale) else math.inf
