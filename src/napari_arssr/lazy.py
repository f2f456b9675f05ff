"""Arrays whose voxels may still be in a file: read piece by piece, or only in part.

Such an array is whatever has a shape, a number type and slices: numpy's memory maps, dask's,
zarr's and h5py's arrays, and :class:`napari_arssr.io.StoredArray`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, product
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import ArssrError, Cancelled, FileError, Unreadable
from napari_arssr.memory import available
from napari_arssr.watching import Stop, VagueReport, never, unheard

__all__ = [
    "LARGE",
    "blocks",
    "depth",
    "is_in_pieces",
    "is_large",
    "is_loaded",
    "is_read_in_chunks",
    "most_to_load",
    "pieces",
    "read",
]

Array = npt.NDArray[Any]

LARGE = 1 << 30
"""Bytes of voxels beyond which they are left where they are, and read as they are wanted."""

# So many chunks in a frame, or more, are read one by one.
_FEWEST = 8
# So many chunks at least stand for all.
_FEWEST_LOOKED_AT = 27
_AT_ONCE = 1 << 27  # bytes


def most_to_load() -> int:
    """Bytes of voxels that are loaded when a volume is opened."""
    return min(LARGE, available() // 4)


def is_large(size: int) -> bool:
    """Whether voxels of so many bytes are to be left where they are."""
    return size > most_to_load()


def is_loaded(array: Any) -> bool:
    """Whether all voxels are in memory."""
    return isinstance(array, np.ndarray) and not isinstance(array, np.memmap)


def is_in_pieces(array: Any) -> bool:
    """Whether a part can be read without most of its frame: chunks are small beside (z, y, x)."""
    if not isinstance(getattr(array, "chunks", None), tuple):
        return True
    largest = [max(sizes) for sizes in _chunks(array)[-3:]]
    return _FEWEST * math.prod(largest) <= math.prod(array.shape[-3:])


def depth(array: Any) -> int:
    """Planes along z that are best read at once."""
    return max(_chunks(array)[-3])


def is_read_in_chunks(array: Any) -> bool:
    """Whether one plane along the first axis costs as much as all that its chunks hold."""
    return not getattr(array, "has_single_planes", False) and max(_chunks(array)[0]) > 1


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
    for size in _chunks(array)[0]:
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


def blocks(
    array: Any, enough: int | None = None, report: VagueReport = unheard, stop: Stop = never
) -> Iterator[Array]:
    """All of an array, or evenly spread parts of it, as its chunks lie.

    Parameters
    ----------
    array : array
        In memory or not; what has no chunks is read in planes.
    enough : int, optional
        As many voxels will do: whole chunks are left out then.
    report, stop
        Told and asked before each chunk.

    Raises
    ------
    Unreadable, Cancelled
    """
    sizes = _chunks(array)
    step = 1
    if enough is None:
        sizes = _in_larger_parts(sizes, _AT_ONCE // array.dtype.itemsize)
    else:
        share = enough / max(1, math.prod(array.shape))
        fewest = max(_FEWEST_LOOKED_AT, share * math.prod(map(len, sizes)))
        while math.prod(-(-len(axis) // (step + 1)) for axis in sizes) >= fewest:
            step += 1
    starts = [list(accumulate(axis, initial=0)) for axis in sizes]
    # From the middle: at an array's border there is often nothing.
    chosen = [range((len(axis) - 1) % step // 2, len(axis), step) for axis in sizes]
    count = math.prod(map(len, chosen))
    for number, index in enumerate(product(*chosen)):
        if stop():
            raise Cancelled
        report(number / count, "reading")
        places = tuple(slice(s[n], s[n + 1]) for n, s in zip(index, starts, strict=True))
        with _reading():
            values = np.asarray(array[places])
        yield values
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


def _chunks(array: Any) -> list[tuple[int, ...]]:
    """Sizes of an array's chunks along each axis; without any, its planes along the first axis."""
    chunks = getattr(array, "chunks", None)
    if not isinstance(chunks, tuple) or not chunks:
        chunks = (*(1 for _ in array.shape[:-2]), *array.shape[-2:])
    return [_along(n, size) for n, size in zip(array.shape, chunks, strict=True)]


def _in_larger_parts(sizes: list[tuple[int, ...]], voxels: int) -> list[tuple[int, ...]]:
    """Neighbouring chunks as one, as far as so many voxels go: the last axes first."""
    parts = list(sizes)
    for axis in range(len(parts) - 1, -1, -1):
        others = math.prod(max(size) for n, size in enumerate(parts) if n != axis)
        number = max(1, voxels // max(1, others * max(parts[axis])))
        size = parts[axis]
        parts[axis] = tuple(sum(size[n : n + number]) for n in range(0, len(size), number))
    return parts


def _along(length: int, size: Any) -> tuple[int, ...]:
    if isinstance(size, tuple):  # dask tells every chunk, others one size for all but the last
        return tuple(map(int, size))
    step = max(1, int(size))
    return tuple(min(step, length - start) for start in range(0, length, step))


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
