"""Line charts as SVG: with axes, ticks, units and a legend, readable on paper and screen."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["COLOURS", "Series", "line_chart"]

# Okabe & Ito's colours, which people with any colour vision can tell apart, darkened where
# they would be faint on white; then again with dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0007f", "#8c6d00", "#3a9bdc", "#5a5a5a")
_DASHES = ("", "7 4", "2 3")
_BLACK = "#000000"

_HEIGHT, _PLOT = 430, 452  # of the picture, and the width of what is inside the axes
_SUBTITLE = 22  # more height where there is one
_BESIDE, _BESIDE_ALL = 4.0, 32.0  # pixels from bar to bar that would else lie on each other
_LEFT, _TOP, _BOTTOM = 78, 44, 58
_KEY = 52  # from the axes to a name in the legend
_GLYPH = 0.62  # of the font's size: width of a letter of the widest of the fonts, about
_FONT = "font-family='Helvetica, Arial, sans-serif'"


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
    drawn = [_finite(one) for one in series]
    drawn = [one for one in drawn if len(one.x)]
    if not drawn:
        return ""
    x_low, x_high = _range([v for one in drawn for v in one.x], margin=0.04 if x_ticks else 0.0)
    ends = [
        value
        for one in drawn
        for y, e in zip(one.y, one.error or [0.0] * len(one.y), strict=True)
        for value in (y - e, y + e)
    ]
    y_low, y_high = _range(ends, margin=0.06)
    down = _SUBTITLE if subtitle else 0
    height, top = _HEIGHT + down, _TOP + down
    right, bottom = _LEFT + _PLOT, height - _BOTTOM
    longest = max(len(one.name) for one in drawn)
    words = (
        right + _KEY + _GLYPH * 14 * longest,
        _LEFT + 1.1 * _GLYPH * 17 * len(title),
        _LEFT + _GLYPH * 14 * len(subtitle),
    )
    whole = math.ceil(max(words) + 16)

    def to_x(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT)

    def to_y(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {whole} {height}' "
        f"width='{whole}' height='{height}' role='img' {_FONT}>",
        f"<title>{html.escape(title)}</title>",
        f"<rect width='{whole}' height='{height}' fill='white'/>",
        _label(_LEFT, 26, title, size=17, weight="bold"),
    ]
    if subtitle:
        parts.append(_label(_LEFT, 26 + _SUBTITLE, subtitle))
    for tick in x_ticks or _ticks(x_low, x_high):
        x = to_x(tick)
        parts.append(_line(x, top, x, bottom, "#dddddd"))
        parts.append(_label(x, bottom + 20, f"{tick:g}", anchor="middle"))
    for tick in _ticks(y_low, y_high):
        y = to_y(tick)
        parts.append(_line(_LEFT, y, right, y, "#dddddd"))
        parts.append(_label(_LEFT - 8, y + 5, f"{tick:g}", anchor="end"))
    parts.append(
        f"<rect x='{_LEFT}' y='{top}' width='{right - _LEFT}' height='{bottom - top}' "
        "fill='none' stroke='#444444'/>"
    )
    parts.append(_label((_LEFT + right) / 2, height - 14, x_label, anchor="middle", size=15))
    middle = (top + bottom) / 2
    parts.append(
        f"<g transform='rotate(-90 20 {middle:g})'>"
        + _label(20, middle, y_label, anchor="middle", size=15)
        + "</g>"
    )
    place, number = top + 12, 0
    asides = _asides([one for one in drawn if any(one.error)])
    for one in drawn:
        aside = asides.get(one.name, 0.0)
        colour, dash, width = _BLACK, "", 2.6
        if not one.strong:
            colour = COLOURS[number % len(COLOURS)]
            dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
            width, number = 2.0, number + 1
        points = " ".join(
            f"{to_x(x) + aside:.1f},{to_y(y):.1f}" for x, y in zip(one.x, one.y, strict=True)
        )
        style = f"stroke='{colour}' stroke-width='{width}' stroke-dasharray='{dash}'"
        parts.append(f"<polyline points='{points}' fill='none' {style}/>")
        for x, y, e in zip(one.x, one.y, one.error or [0.0] * len(one.x), strict=True):
            if e:
                across = to_x(x) + aside
                parts.append(_line(across, to_y(y - e), across, to_y(y + e), colour))
            if one.marked:
                parts.append(
                    f"<circle cx='{to_x(x) + aside:.1f}' cy='{to_y(y):.1f}' r='4' fill='{colour}'/>"
                )
        parts.append(
            f"<line x1='{right + 14}' y1='{place}' x2='{right + 44}' y2='{place}' {style}/>"
        )
        parts.append(_label(right + _KEY, place + 5, one.name))
        place += 22
    return "\n".join([*parts, "</svg>"])


def _asides(barred: Sequence[Series]) -> dict[str, float]:
    """Pixels to the right for each line with bars, so that every bar can be seen."""
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


def _range(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    if low == high:
        return low - spread / 2, high + spread / 2
    return low - margin * spread, high + margin * spread


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, five or so."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(np.round(number * step, 12)) for number in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'/>"


def _label(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 14, weight: str = "normal"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' "
        f"text-anchor='{anchor}' fill='#111111'>{html.escape(text)}</text>"
    )
