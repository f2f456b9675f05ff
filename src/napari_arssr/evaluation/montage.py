"""Slices of all methods side by side: whole, a zoomed inset, the difference to the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Panel", "Window", "choose_window", "diverging", "montage"]

Plane = npt.NDArray[np.float32]
Colours = npt.NDArray[np.uint8]

_TILE = 260  # pixels: a slice's longer side, about
_COLUMNS = 6
_GAP = 10
_CAPTION = 44
_LINE = 22  # of the title
_SIDE = 46
_FONT = 15
_MARK = (255, 210, 0)
_WHITE, _GREY, _BLACK = (255, 255, 255), (110, 110, 110), (0, 0, 0)
_FULL_COLOUR = 0.1  # of the range from black to white: a difference drawn in full colour


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

    @property
    def middle(self) -> int:
        """The row that the intensity profile runs along."""
        return self.row + self.rows // 2


def choose_window(plane: Plane, spacing: tuple[float, float]) -> Window:
    """Where there is most to see: the part, a quarter of the longer side, of most gradient."""
    from scipy.ndimage import uniform_filter

    side = 0.25 * max(n * step for n, step in zip(plane.shape, spacing, strict=True))
    rows, columns = (
        max(8, min(n, round(side / step))) for n, step in zip(plane.shape, spacing, strict=True)
    )
    down, right = np.gradient(plane.astype(np.float64), *spacing)
    busy = uniform_filter(np.hypot(down, right), (rows, columns), mode="constant")
    # Only windows that lie inside.
    half_r, half_c = rows // 2, columns // 2
    inner = busy[half_r : busy.shape[0] - half_r, half_c : busy.shape[1] - half_c]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape) if inner.size else (0, 0)
    return Window(int(row), int(column), min(rows, plane.shape[0]), min(columns, plane.shape[1]))


def diverging(share: npt.NDArray[np.floating[Any]]) -> Colours:
    """Blue for -1, white for 0, red for 1."""
    value = np.clip(share, -1, 1)[..., None].astype(np.float64)
    red, blue = np.array([178, 24, 43.0]), np.array([33, 102, 172.0])
    ends = np.where(value > 0, red, blue)
    return np.asarray(np.rint(255 + (ends - 255) * np.abs(value)), dtype=np.uint8)


def montage(
    panels: Sequence[Panel],
    reference: Plane,
    *,
    spacing: tuple[float, float],
    limits: tuple[float, float],
    window: Window,
    letters: tuple[str, str, str, str],
    title: Sequence[str] = (),
) -> Any:
    """A picture of all panels, six in a row.

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
        The inset; the profile's line is drawn in it.
    letters : four str
        What lies at the top, bottom, left and right.
    title : sequence of str, optional
        Lines above all.

    Returns
    -------
    PIL.Image.Image
    """
    from PIL import Image, ImageDraw

    extent = [n * step for n, step in zip(reference.shape, spacing, strict=True)]
    zoom = _TILE / max(extent)
    height, width = (max(1, round(length * zoom)) for length in extent)
    inset = width, max(1, round(width * window.rows * spacing[0] / (window.columns * spacing[1])))
    bands = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    columns = min(len(panels), _COLUMNS)
    band_height = _CAPTION + height + inset[1] + height + 3 * _GAP
    above = _LINE * len(title) + (_GAP if title else 0)
    words = [_font(bold=not number).getlength(line) for number, line in enumerate(title)]
    sheet = Image.new(
        "RGB",
        (
            max([_SIDE + columns * (width + _GAP), *(math.ceil(_SIDE + w + _GAP) for w in words)]),
            above + len(bands) * (band_height + _GAP) + 58,
        ),
        _WHITE,
    )
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        draw.text((_SIDE, 6 + _LINE * number), line, fill=_BLACK, font=_font(bold=not number))
    low, high = limits
    for number, band in enumerate(bands):
        top = above + number * (band_height + _GAP)
        places = {
            "slice": top + _CAPTION,
            "inset": top + _CAPTION + height + _GAP,
            "difference": top + _CAPTION + height + inset[1] + 2 * _GAP,
        }
        for text, place in places.items():
            size = inset[1] if text == "inset" else height
            _sideways(sheet, text, place, size)
        for column, panel in enumerate(band):
            left = _SIDE + column * (width + _GAP)
            draw.text(
                (left, top + 4), _short(panel.name, width), fill=_BLACK, font=_font(bold=True)
            )
            draw.text((left, top + 23), _short(panel.note, width), fill=_GREY, font=_font())
            grey = np.clip((panel.plane - low) / (high - low) * 255, 0, 255).astype(np.uint8)
            whole = Image.fromarray(grey).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(whole.convert("RGB"), (left, places["slice"]))
            _draw_window(draw, window, (left, places["slice"]), (height, width), reference.shape)
            part = Image.fromarray(grey[window.part]).resize(inset, Image.Resampling.NEAREST)
            sheet.paste(part.convert("RGB"), (left, places["inset"]))
            if panel.compared:
                share = (panel.plane - reference) / (_FULL_COLOUR * (high - low))
                colours = Image.fromarray(diverging(share))
                sheet.paste(
                    colours.resize((width, height), Image.Resampling.NEAREST),
                    (left, places["difference"]),
                )
                draw.rectangle(
                    (
                        left,
                        places["difference"],
                        left + width - 1,
                        places["difference"] + height - 1,
                    ),
                    outline=(200, 200, 200),
                )
        if number == 0:
            _letters(draw, letters, _SIDE, places["slice"], (height, width))
    _legend(sheet, draw, extent[1], width)
    return sheet


def _draw_window(
    draw: Any,
    window: Window,
    corner: tuple[int, int],
    size: tuple[int, int],
    shape: tuple[int, ...],
) -> None:
    left, top = corner
    down, right = (pixels / n for pixels, n in zip(size, shape, strict=True))
    box = (
        left + window.column * right,
        top + window.row * down,
        left + (window.column + window.columns) * right - 1,
        top + (window.row + window.rows) * down - 1,
    )
    draw.rectangle(box, outline=_MARK, width=2)
    middle = top + (window.middle + 0.5) * down
    draw.line((box[0], middle, box[2], middle), fill=_MARK, width=1)


def _letters(
    draw: Any, letters: tuple[str, str, str, str], left: int, top: int, size: tuple[int, int]
) -> None:
    height, width = size
    places = [
        (left + width // 2 - 5, top + 1),
        (left + width // 2 - 5, top + height - 20),
        (left + 4, top + height // 2 - 9),
        (left + width - 14, top + height // 2 - 9),
    ]
    for letter, place in zip(letters, places, strict=True):
        draw.text(
            place, letter, fill=_WHITE, font=_font(bold=True), stroke_width=1, stroke_fill=_BLACK
        )


def _legend(sheet: Any, draw: Any, extent: float, width: int) -> None:
    """A scale bar, and the colours of differences."""
    from PIL import Image

    top = sheet.height - 42
    length = next(mm for mm in (100, 50, 20, 10, 5, 2, 1, 0.5) if mm <= extent / 3 or mm == 0.5)
    pixels = round(length / extent * width)
    draw.rectangle((_SIDE, top + 8, _SIDE + pixels, top + 12), fill=_BLACK)
    draw.text((_SIDE + pixels + 8, top), f"{length:g} mm", fill=_BLACK, font=_font())
    left = _SIDE + pixels + 110
    ramp = diverging(np.broadcast_to(np.linspace(-1, 1, 180), (14, 180)))
    percent = f"{100 * _FULL_COLOUR:g} %"
    draw.text((left, top), f"-{percent}", fill=_BLACK, font=_font())
    sheet.paste(Image.fromarray(ramp), (left + 52, top + 2))
    draw.rectangle((left + 52, top + 2, left + 52 + 179, top + 15), outline=(150, 150, 150))
    draw.text((left + 240, top), f"+{percent} of black to white", fill=_BLACK, font=_font())


def _sideways(sheet: Any, text: str, top: int, height: int) -> None:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (height, 24), _WHITE)
    draw = ImageDraw.Draw(strip)
    length = draw.textlength(text, font=_font())
    draw.text(((height - length) / 2, 2), text, fill=_BLACK, font=_font())
    sheet.paste(strip.rotate(90, expand=True), (10, top))


def _short(text: str, width: int) -> str:
    """What fits in a tile's width, cut with dots."""
    font = _font(bold=True)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _font(*, bold: bool = False) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=_FONT + bold)
