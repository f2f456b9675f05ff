"""Slices of all methods side by side: whole, a zoomed inset, the difference to the reference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["SMALLEST_SIDE", "Panel", "Window", "choose_window", "montage"]

Plane = npt.NDArray[np.float32]
Extent = tuple[float, float, float, float]  # left, right, bottom, top, in mm

SMALLEST_SIDE = 8
"""Rows or columns of a slice in which there is something to see."""

_TILE = 2.6  # inches: a slice's longer side
_BESIDE, _ABOVE_AND_BELOW = 0.5, 1.8  # inches, for words and the colours
_DPI = 100
_COLUMNS = 7
_ROWS = ("slice", "inset", "difference")
_MARK, _GREY = "#ffd200", "#6e6e6e"
_BLOCKS: Any = {"interpolation": "nearest"}  # the voxels there are
_FULL_COLOUR = 10  # per cent of black to white: a difference drawn in full colour
_BARS_MM = (100, 50, 20, 10, 5, 2, 1, 0.5)


@dataclass(frozen=True)
class Panel:
    """One method's slice.

    Parameters
    ----------
    name, note : str
        Two lines above it.
    plane : (rows, columns) array
    compared : bool
        Whether its difference from the reference is drawn.
    """

    name: str
    note: str
    plane: Plane
    compared: bool = True


@dataclass(frozen=True)
class Window:
    """A part of a slice: first row and column, and sizes."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def part(self) -> tuple[slice, slice]:
        """As an index."""
        return (
            slice(self.row, self.row + self.rows),
            slice(self.column, self.column + self.columns),
        )

    def extent(self, spacing: tuple[float, float]) -> Extent:
        """Its left, right, bottom and top, millimetres from the slice's upper left corner."""
        down, right = spacing
        return (
            self.column * right,
            (self.column + self.columns) * right,
            (self.row + self.rows) * down,
            self.row * down,
        )

    @property
    def middle(self) -> int:
        """The row that the intensity profile runs along."""
        return self.row + self.rows // 2


def choose_window(plane: Plane, spacing: tuple[float, float]) -> Window:
    """Where there is most to see: the part, a quarter of the longer side, of most gradient."""
    from scipy.ndimage import uniform_filter

    side = 0.25 * max(n * step for n, step in zip(plane.shape, spacing, strict=True))
    rows, columns = (
        max(SMALLEST_SIDE, min(n, round(side / step)))
        for n, step in zip(plane.shape, spacing, strict=True)
    )
    down, right = np.gradient(plane.astype(np.float64), *spacing)
    busy = uniform_filter(np.hypot(down, right), (rows, columns), mode="constant")
    # Only windows that lie inside.
    half_r, half_c = rows // 2, columns // 2
    inner = busy[half_r : busy.shape[0] - half_r, half_c : busy.shape[1] - half_c]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape) if inner.size else (0, 0)
    return Window(int(row), int(column), min(rows, plane.shape[0]), min(columns, plane.shape[1]))


def montage(
    panels: Sequence[Panel],
    reference: Plane,
    *,
    spacing: tuple[float, float],
    limits: tuple[float, float],
    window: Window,
    letters: tuple[str, str, str, str],
    title: str = "",
) -> bytes:
    """A picture of all panels, at most seven in a row, and as many in each as can be.

    Parameters
    ----------
    panels : sequence of Panel
        Planes of the reference's shape.
    reference : (rows, columns) array
    spacing : two floats
        Millimetres along rows and columns.
    limits : two floats
        Intensities drawn black and white.
    window : Window
        The inset; the line of the profile is drawn in it.
    letters : four str
        What lies at the top, bottom, left and right.
    title : str, optional
        Above all, in one line or several.

    Returns
    -------
    bytes
        A PNG file.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    low, high = limits
    extent = Window(0, 0, *reference.shape).extent(spacing)
    part = window.extent(spacing)
    (width, height), (part_width, part_height) = _size(extent), _size(part)
    bands = -(-len(panels) // _COLUMNS)
    columns = -(-len(panels) // bands)
    heights = [height, width * part_height / part_width, height] * bands
    inches = _TILE / max(height, width)
    size = columns * width * inches + _BESIDE, sum(heights) * inches + _ABOVE_AND_BELOW
    figure = Figure(size, dpi=_DPI, layout="compressed")
    places = figure.subplots(
        len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    colours = ScalarMappable(Normalize(-_FULL_COLOUR, _FULL_COLOUR), "RdBu_r")
    for number, panel in enumerate(panels):
        band, column = divmod(number, columns)
        whole, inset, difference = places[3 * band : 3 * band + 3, column]
        for axes in (whole, inset):
            axes.imshow(panel.plane, "gray", vmin=low, vmax=high, extent=extent, **_BLOCKS)
        inset.set(xlim=part[:2], ylim=part[2:])
        _name(whole, panel, 0.95 * width * inches)  # the layout takes some of it
        _mark(whole, part)
        if panel.compared:
            shares = 100 * (panel.plane - reference) / (high - low)
            difference.imshow(shares, colours.cmap, colours.norm, extent=extent, **_BLOCKS)
        if column == 0:
            for axes, row in zip((whole, inset, difference), _ROWS, strict=True):
                axes.set_ylabel(row)
    for axes in places.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    _name_sides(places[0, 0], letters)
    _add_scale_bar(places[0, 0], width)
    figure.colorbar(
        colours,
        ax=places,
        location="bottom",
        aspect=30,
        shrink=min(1.0, 2 / columns),
        ticks=(-_FULL_COLOUR, 0, _FULL_COLOUR),
        label="difference from the reference, % of black to white",
    )
    figure.suptitle(title, x=0, ha="left", size=13, parse_math=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", bbox_inches="tight")
    return written.getvalue()


def _size(extent: Extent) -> tuple[float, float]:
    left, right, bottom, top = extent
    return right - left, bottom - top


def _name(axes: Axes, panel: Panel, inches: float) -> None:
    above: Any = {"xycoords": "axes fraction", "textcoords": "offset points"}
    name = axes.annotate(panel.name, (0, 1), (0, 19), weight="bold", size=11, **above)
    note = axes.annotate(panel.note, (0, 1), (0, 5), color=_GREY, size=10, **above)
    for words in (name, note):
        words.set_parse_math(False)  # a dollar in a file's name is a dollar
        _shorten(words, inches)


def _shorten(words: Text, inches: float) -> None:
    """Take from the end what would lie on the next column's words."""
    whole = words.get_text()
    for length in range(len(whole), 0, -1):
        words.set_text(whole if length == len(whole) else f"{whole[:length].rstrip()}…")
        if words.get_window_extent().width <= inches * _DPI:
            return


def _mark(axes: Axes, part: Extent) -> None:
    """The inset's frame, and the line of the profile in it."""
    from matplotlib.patches import Rectangle

    left, right, bottom, top = part
    frame = Rectangle((left, top), *_size(part), fill=False, color=_MARK, linewidth=1.5)
    axes.add_patch(frame)
    axes.plot((left, right), 2 * ((top + bottom) / 2,), color=_MARK, linewidth=1)


def _name_sides(axes: Axes, letters: tuple[str, str, str, str]) -> None:
    from matplotlib.patheffects import withStroke

    places = ((0.5, 0.95), (0.5, 0.05), (0.04, 0.5), (0.96, 0.5))
    for letter, place in zip(letters, places, strict=True):
        axes.annotate(
            letter,
            place,
            xycoords="axes fraction",
            ha="center",
            va="center",
            weight="bold",
            color="white",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def _add_scale_bar(axes: Axes, width: float) -> None:
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length = next((mm for mm in _BARS_MM if mm <= width / 3), _BARS_MM[-1])
    axes.add_artist(
        AnchoredSizeBar(
            axes.transData, length, f"{length:g} mm", "lower left", color="white", frameon=False
        )
    )
