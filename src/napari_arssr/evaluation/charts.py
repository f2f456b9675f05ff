"""Line charts as SVG: with axes, ticks, units and a legend, readable on paper and screen."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Series", "line_chart"]

# Okabe & Ito's colours, which people with any colour vision can tell apart, darkened where
# they would be faint on white; then again with dashes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0007f", "#8c6d00", "#3a9bdc", "#5a5a5a")
_DASHES = ("-", "--", ":")

_INCHES = (8.0, 4.8)
_BESIDE, _BESIDE_ALL = 3.0, 24.0  # points from bar to bar that would else lie on each other
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "grid.color": "#dddddd",
    "legend.frameon": False,
    # Words stay words, also with dollars in them, and the same chart is the same file.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "napari-arssr",
}


@dataclass(frozen=True)
class Series:
    """A line.

    Parameters
    ----------
    name : str
    x, y : sequences of float
    error : sequence of float, optional
        Half the length of each point's bar.
    marked : bool
        Whether points are drawn.
    strong : bool
        Black and thick: the reference.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    marked: bool = False
    strong: bool = False


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    subtitle: str = "",
    x_ticks: Sequence[float] = (),
) -> str:
    """An SVG picture of some lines; points that are not finite are left out.

    Parameters
    ----------
    series : sequence of Series
    title, x_label, y_label : str
    subtitle : str, optional
        A second, smaller line under the title.
    x_ticks : sequence of float, optional
        Where x is marked; round numbers by default.

    Returns
    -------
    str
        Empty if there is nothing to draw.
    """
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.transforms import offset_copy

    drawn = [one for one in map(_finite, series) if len(one.x)]
    if not drawn:
        return ""
    cycle = cycler(linestyle=_DASHES) * cycler(color=_COLOURS)
    with rc_context({**_STYLE, "axes.prop_cycle": cycle}):
        figure = Figure(_INCHES)
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        axes.set_title(title, weight="bold", size=14, pad=26 if subtitle else 6)
        if subtitle:
            axes.annotate(
                subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points"
            )
        if x_ticks:
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
        asides = _asides([one for one in drawn if any(one.error)])
        for one in drawn:
            look: Any = {"color": "black", "linestyle": "-"} if one.strong else {}
            line = axes.errorbar(
                one.x,
                one.y,
                yerr=one.error if any(one.error) else None,
                label=_shown(one.name),
                linewidth=2.6 if one.strong else 2.0,
                elinewidth=1.0,
                marker="o" if one.marked else "",
                **look,
            )
            aside = offset_copy(axes.transData, figure, asides.get(one.name, 0.0), units="points")
            for part in line.get_children():
                part.set_transform(aside)
        if len(drawn) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.01))
        written = io.StringIO()
        figure.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None})
    return written.getvalue()


def _shown(name: str) -> str:
    """A name as the legend shows it: one that begins with an underscore would be left out."""
    return f"\u200b{name}" if name.startswith("_") else name


def _asides(barred: Sequence[Series]) -> dict[str, float]:
    """Points to the right for each line with bars, so that every bar can be seen."""
    step = min(_BESIDE, _BESIDE_ALL / max(1, len(barred) - 1))
    return {one.name: step * (n - (len(barred) - 1) / 2) for n, one in enumerate(barred)}


def _finite(one: Series) -> Series:
    errors = one.error or [0.0] * len(one.x)
    kept = [
        (x, y, e if math.isfinite(e) else 0.0)
        for x, y, e in zip(one.x, one.y, errors, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    x, y, error = zip(*kept, strict=True) if kept else ((), (), ())
    return Series(one.name, x, y, error, one.marked, one.strong)
