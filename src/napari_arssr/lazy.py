"""Arrays whose voxels may still be in a file: read piece by piece, or only in part.

Such an array is whatever has a shape, a number type and slices: numpy's memory maps, dask's,
zarr's and h5py's arrays, and :class:`napari_arssr.io.StoredArray`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import ArssrError, Cancelled, FileError, Unreadable
from napari_arssr.memory import available
from napari_arssr.watching import Stop, VagueReport, never, unheard

__all__ = ["LARGE", "is_in_pieces", "is_large", "is_loaded", "pieces", "read"]

Array = npt.NDArray[Any]

LARGE = 1 << 30
"""Bytes of voxels beyond which they are left where they are, and read as they are wanted."""


# So many chunks in a frame, or more, are read one by one.
_FEWEST = 8


def is_large(size: int) -> bool:
    """Whether voxels of so many bytes are to be left where they are."""
    return size > min(LARGE, available() // 4)


def is_loaded(array: Any) -> bool:
    """Whether all voxels are in memory."""
    return isinstance(array, np.ndarray) and not isinstance(array, np.memmap)


def is_in_pieces(array: Any) -> bool:
    """Whether a part can be read without most of its frame: chunks are small beside (z, y, x)."""
    chunks = getattr(array, "chunks", None)
    if not isinstance(chunks, tuple):
        return True
    largest = [max(size) if isinstance(size, tuple) else size for size in chunks[-3:]]
    return _FEWEST * math.prod(largest) <= math.prod(array.shape[-3:])


def read(
    array: Any,
    name: str,
    part: tuple[slice, ...] | None = None,
    report: VagueReport = unheard,
    stop: Stop = never,
) -> Array:
    """All voxels or those of a part, in memory; read piece by piece where they are not.

    Raises
    ------
    FileError
        If they cannot be read; says so of ``name``.
    Cancelled
        If ``stop`` says so.
    MemoryError
    """
    try:
        if part is not None:
            with _reading():
                array = array[part]
        if is_loaded(array):
            return np.asarray(array)
        data = np.empty(array.shape, dtype=array.dtype)
        for place, values in pieces(array, 1, report, stop):
            data[place] = values
    except Unreadable as error:
        raise FileError(f"{name}: {error}") from error.__cause__
    return data


def pieces(
    array: Any, step: int = 1, report: VagueReport = unheard, stop: Stop = never
) -> Iterator[tuple[slice, Array]]:
    """Every ``step``-th plane along the first axis, in pieces that are best read at once.

    Parameters
    ----------
    array : array
        In memory or not.
    step : int
    report, stop
        Told and asked before each piece.

    Yields
    ------
    place : slice
        Where the piece lies among all that are given.
    values : array
        Of ``len(place)`` planes.

    Raises
    ------
    Unreadable, Cancelled
    """
    length = int(array.shape[0])
    start = taken = 0
    for size in _sizes(array):
        if stop():
            raise Cancelled
        report(start / length, "reading")
        first = start + -start % step
        start += size
        if first >= start:
            continue
        with _reading():
            values = np.asarray(array[first : start : step if step > 1 else None])
        yield slice(taken, taken + len(values)), values
        taken += len(values)
    report(None, "reading")


@contextmanager
def _reading() -> Iterator[None]:
    """One sentence for whatever goes wrong while voxels are read."""
    try:
        yield
    except (ArssrError, MemoryError):
        raise
    except Exception as error:
        raise Unreadable(
            f"its voxels cannot be read ({_reason(error)}); see that the file it comes from is "
            "still there and whole."
        ) from error


def _sizes(array: Any) -> list[int]:
    """Planes of each piece: the array's own chunks."""
    length = int(array.shape[0])
    chunks = getattr(array, "chunks", None)
    first = chunks[0] if isinstance(chunks, tuple) and chunks else 1
    if isinstance(first, tuple):  # dask tells every chunk
        return [int(size) for size in first]
    step = max(1, int(first))
    return [min(step, length - start) for start in range(0, length, step)]


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
