"""Values of the command line from text; three numbers come in the file's order (i, j, k).

They go on as (z, y, x). What is wrong is an :class:`argparse.ArgumentTypeError`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_arssr.errors import UsageError

if TYPE_CHECKING:
    from napari_arssr.degradation import ScannerModel
    from napari_arssr.volume import Box, Grid, Triple

__all__ = ["CHANNEL", "axes", "box", "memory", "scale", "scanner", "shape", "spacing"]

CHANNEL = "which channel of stacks that have several, from 0"
"""Help of ``--channel``."""


def spacing(text: str) -> float | Triple:
    """One number or three, above 0; three come back as (z, y, x)."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or i,j,k") from None
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one number nor three")
    if not all(0 < value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: every number must be above 0 and finite")
    return values[0] if len(values) == 1 else (values[2], values[1], values[0])


def scale(text: str) -> float | Triple:
    """One scale or three, at least 1; three come back as (z, y, x)."""
    values = spacing(text)
    if (values if isinstance(values, float) else min(values)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: every scale must be at least 1")
    return values


def shape(text: str) -> tuple[int, int, int]:
    """Three sizes of at least 1, which come back as (z, y, x)."""
    try:
        i, j, k = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole numbers i,j,k") from None
    if min(i, j, k) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: every number must be at least 1")
    return k, j, i


def memory(text: str) -> int:
    """Bytes, from ``2GB``, ``800MB``, ``1.5GiB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 2GB")
    number, prefix, binary = match.groups()
    unit = (1024 if binary else 1000) ** " kmgt".index(prefix or " ")
    return int(float(number) * unit)


def scanner(text: str) -> ScannerModel:
    """``gaussian``, ``slice-profile:1.2`` and others, see :meth:`ScannerModel.parse`."""
    from napari_arssr.degradation import ScannerModel

    try:
        return ScannerModel.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {str(error).rstrip('.')}") from None


def axes(text: str) -> tuple[int, ...]:
    """The file's i, j, k as the array's axes 2, 1, 0."""
    letters = text.replace(",", "")
    if not letters or set(letters) - set("ijk"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of the axes i, j, k")
    return tuple(sorted({2 - "ijk".index(axis) for axis in letters}))


def box(text: str) -> Callable[[Grid], Box]:
    """A function from the input's grid to the box meant; the grid is not known yet."""
    in_millimetres = text.startswith("mm:")
    try:
        pairs = [pair.split(":") for pair in text.removeprefix("mm:").split(",")]
        (a, b), (c, d), (e, f) = ((float(start), float(stop)) for start, stop in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not i0:i1,j0:j1,k0:k1 or mm:x0:x1,y0:y1,z0:z1"
        ) from None
    if not all(math.isfinite(value) for value in (a, b, c, d, e, f)):
        raise argparse.ArgumentTypeError(f"{text!r}: every number must be finite")
    if not (a < b and c < d and e < f):
        raise argparse.ArgumentTypeError(f"{text!r}: every start must lie before its stop")
    if in_millimetres:
        return lambda grid: grid.box_around((a, c, e), (b, d, f))
    if any(value != int(value) for value in (a, b, c, d, e, f)):
        raise argparse.ArgumentTypeError(f"{text!r}: voxels are whole numbers; use mm: for mm")

    def voxels(grid: Grid) -> Box:
        from napari_arssr.volume import Box

        sizes = grid.shape[::-1]
        if min(a, c, e) < 0 or b > sizes[0] or d > sizes[1] or f > sizes[2]:
            raise UsageError(
                f"--box {text} lies outside the volume, which has "
                f"{' × '.join(map(str, sizes))} voxels (i, j, k)."
            )
        return Box((int(e), int(c), int(a)), (int(f), int(d), int(b)))

    return voxels
