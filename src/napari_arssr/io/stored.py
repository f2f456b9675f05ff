"""Voxels that stay in their file until they are asked for."""

from __future__ import annotations

import gzip
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby, product
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import FileError, UsageError
from napari_arssr.io.troubles import cut_off, reading, reason

__all__ = ["StoredArray", "StoredImage"]

_CHUNK = 1 << 24
_PART = 1 << 25  # bytes worth reading at once

_Array = npt.NDArray[Any]


class _Source(Protocol):
    """Where an array's voxels come from; axes in the order of the file."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]  # what must be read as a whole; empty if any plane stands alone
    dtype: np.dtype[Any]

    def read(self, picks: Sequence[range]) -> _Array:
        """The voxels at every combination of the indices picked, not empty."""


class StoredArray:
    """A part of an image in a file, as an array: made an array of numpy, it is read.

    ``array[3, ::2]`` and ``array.transpose(2, 0, 1)`` are such arrays too, and read nothing.
    """

    def __init__(
        self,
        source: _Source,
        picks: Sequence[range] | None = None,
        axes: Sequence[int] | None = None,
    ) -> None:
        self._source = source
        # Which indices of each axis of the file, and which of its axes are this array's.
        self._picks = tuple(range(n) for n in source.shape) if picks is None else tuple(picks)
        self._axes = tuple(range(len(self._picks))) if axes is None else tuple(axes)

    @classmethod
    def stack(cls, arrays: Sequence[StoredArray]) -> StoredArray:
        """Arrays of one shape along a new first axis."""
        return cls(_Stack(arrays))

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(self._picks[axis]) for axis in self._axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels as they are read."""
        return self._source.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._axes)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels once they are read."""
        return self.size * self.dtype.itemsize

    @property
    def has_single_planes(self) -> bool:
        """Whether its chunks are what is best read at once, but any plane can be read alone."""
        return not self._source.chunks

    @property
    def chunks(self) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
        """The parts that are best read at once: planes of the file, of one frame.

        Of a file in chunks these, and the length of each along each axis, as dask's.
        """
        if self._source.chunks:
            parted = [_parted(*both) for both in zip(self._picks, self._source.chunks, strict=True)]
            return tuple(parted[axis] for axis in self._axes)
        sizes = [len(pick) for pick in self._picks]
        plane = math.prod(self._source.shape[-2:]) * self.dtype.itemsize
        parts = [*(1 for _ in sizes[:-3]), max(1, _PART // plane), *sizes[-2:]]
        return tuple(max(1, min(parts[axis], sizes[axis])) for axis in self._axes)

    def transpose(self, *axes: Any) -> StoredArray:
        """The array with its axes in another order, as numpy's."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        order = order or range(self.ndim)[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"{tuple(order)} is no order of {self.ndim} axes.")
        return StoredArray(self._source, self._picks, [self._axes[axis] for axis in order])

    def __len__(self) -> int:
        if not self._axes:
            raise TypeError("One voxel has no length.")
        return self.shape[0]

    def __getitem__(self, key: Any) -> StoredArray:
        """A part, by integers, slices and an ellipsis as in numpy."""
        keys = _one_each(key if isinstance(key, tuple) else (key,), self.ndim)
        picks, axes = list(self._picks), []
        for axis, one in zip(self._axes, keys, strict=True):
            pick = picks[axis]
            if isinstance(one, slice):
                picks[axis] = pick[one]
                axes.append(axis)
                continue
            if not -len(pick) <= one < len(pick):
                raise IndexError(f"Index {one} is out of bounds for an axis of {len(pick)}.")
            picks[axis] = range(pick[one], pick[one] + 1)
        return StoredArray(self._source, picks, axes)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise UsageError(
            f"{self._source.name} is left in its file and cannot be changed; crop it, or open a "
            "smaller one."
        )

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> _Array:
        """Read the voxels.

        Raises
        ------
        FileError
            If the file is damaged, cut off before them, or cannot be unpacked.
        """
        if copy is False:
            raise ValueError(f"{self._source.name} is not in memory: an array of it is a copy.")
        if self.size:
            data = self._source.read(self._picks)
        else:
            data = np.empty([len(pick) for pick in self._picks], self.dtype)
        dropped = tuple(axis for axis in range(data.ndim) if axis not in self._axes)
        kept = [axis for axis in range(data.ndim) if axis in self._axes]
        array = data.squeeze(dropped).transpose([kept.index(axis) for axis in self._axes])
        return array.astype(dtype or self.dtype, copy=False)

    def __copy__(self) -> StoredArray:
        return self

    def __deepcopy__(self, memo: Any) -> StoredArray:
        return self  # nothing can change it


class StoredImage:
    """The voxels of an image file, for a :class:`StoredArray`.

    The file is kept open, so that a file written over it later changes nothing here. A
    compressed one is unpacked into a temporary file as far as it is asked for, once.

    Parameters
    ----------
    path : path
    shape : tuple of ints
        (z, y, x) or (t, z, y, x), in the file's own order.
    stored : numpy.dtype
        Of the voxels in the file, in its byte order.
    offset : int
        Byte at which they begin.
    dtype : numpy.dtype
        Of what is read.
    convert : callable
        Stored numbers to real values.

    Raises
    ------
    FileError
        If a compressed file cannot be unpacked for want of room.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        *,
        stored: np.dtype[Any],
        offset: int,
        dtype: np.dtype[Any],
        convert: Callable[[_Array], _Array],
    ) -> None:
        self.name = str(path)
        self.shape = shape
        self.chunks: tuple[int, ...] = ()
        self.dtype = dtype
        self._path = path
        self._stored = stored
        self._offset = offset
        self._convert = convert
        zipped = path.name.lower().endswith(".gz")
        self._bytes = _unpacked(path, offset + self._need) if zipped else _File(path)
        # Closed with the last array that needs them, and not by chance later.
        weakref.finalize(self, self._bytes.close)

    def read(self, picks: Sequence[range]) -> _Array:
        """The voxels at every combination of the indices picked; rows are read whole."""
        result = np.empty([len(pick) for pick in picks], self.dtype)
        (rows, every_row), (columns, every_column) = (_cut(pick) for pick in picks[-2:])
        places = np.ndindex(result.shape[:-2])
        for place, plane in zip(places, product(*picks[:-2]), strict=True):
            values = self._rows(plane, rows)[every_row, columns][:, every_column]
            with reading(self._path):
                result[place] = self._convert(values)
        return result

    def _rows(self, plane: tuple[int, ...], rows: slice) -> _Array:
        """Rows of one plane, stored numbers."""
        number = 0
        for index, size in zip(plane, self.shape[:-2], strict=True):
            number = number * size + index
        width = self.shape[-1] * self._stored.itemsize
        start = self._offset + (number * self.shape[-2] + rows.start) * width
        size = (rows.stop - rows.start) * width
        with reading(self._path):
            data = self._bytes.read(start, size)
        if len(data) < size:
            raise cut_off(self._path, self._need)
        return np.frombuffer(data, self._stored).reshape(-1, self.shape[-1])

    @property
    def _need(self) -> int:
        return math.prod(self.shape) * self._stored.itemsize


class _Stack:
    """Several arrays of one shape, each from a file of its own."""

    def __init__(self, arrays: Sequence[StoredArray]) -> None:
        self._arrays = arrays
        self.name = arrays[0]._source.name
        self.shape = (len(arrays), *arrays[0].shape)
        self.chunks: tuple[int, ...] = ()
        self.dtype = np.result_type(*(array.dtype for array in arrays))

    def read(self, picks: Sequence[range]) -> _Array:
        result = np.empty([len(pick) for pick in picks], self.dtype)
        parts = tuple(_slice(pick) for pick in picks[1:])
        for place, number in enumerate(picks[0]):
            result[place] = self._arrays[number][parts]
        return result


class _File:
    """Bytes of a file, from any thread."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        self._lock = Lock()

    def read(self, start: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()


class _Unpacked(_File):
    """Bytes of a gzip file, unpacked into a temporary file as far as they were asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._packed = gzip.open(path, "rb")  # noqa: SIM115 (closed by close)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._have = 0
        self._lock = Lock()

    def read(self, start: int, size: int) -> bytes:
        with self._lock:
            while self._have < start + size:
                chunk = self._packed.read(_CHUNK)
                if not chunk:
                    return b""
                self._append(chunk)
            self._file.seek(start)
            return self._file.read(size)

    def _append(self, chunk: bytes) -> None:
        try:
            self._file.seek(self._have)
            self._file.write(chunk)
            self._file.flush()
        except OSError as error:
            raise _no_room(self._path, reason(error)) from error
        self._have += len(chunk)

    def close(self) -> None:
        self._packed.close()
        with suppress(OSError):  # what no longer fits need not be kept
            self._file.close()


def _unpacked(path: Path, need: int) -> _Unpacked:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < need:
        raise _no_room(path, f"it takes {need:,} bytes and {free:,} are free")
    return _Unpacked(path)


def _no_room(path: Path, why: str) -> FileError:
    return FileError(
        f"{path} cannot be unpacked in {tempfile.gettempdir()} ({why}); make room there, name "
        "another folder in the environment variable TMPDIR, or unpack the file itself (gunzip)."
    )


def _one_each(keys: tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    """One key an axis, in the place of fewer and of an ellipsis."""
    if not all(_is_integer(key) or key is ... or isinstance(key, slice) for key in keys):
        raise IndexError("Voxels in a file are indexed with integers and slices.")
    given = [key for key in keys if key is not ...]
    missing = axes - len(given)
    if missing < 0 or len(keys) > len(given) + 1:
        raise IndexError(f"{len(keys)} indices are too many for {axes} axes.")
    at = next((n for n, key in enumerate(keys) if key is ...), len(given))
    return (*given[:at], *[slice(None)] * missing, *given[at:])


def _is_integer(key: Any) -> bool:
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def _parted(pick: range, chunk: int) -> tuple[int, ...]:
    """How many neighbours of what is picked of an axis lie in each chunk."""
    return tuple(len([*within]) for _, within in groupby(pick, lambda index: index // chunk)) or (
        0,
    )


def _cut(pick: range) -> tuple[slice, slice]:
    """The block that holds all that is picked, and what of the block it is."""
    return slice(min(pick), max(pick) + 1), slice(None, None, pick.step)


def _slice(pick: range) -> slice:
    """What picks the same of an axis; a range that counts down to 0 has no plain end."""
    stop = pick.stop if pick.stop >= 0 else None
    return slice(pick.start, stop, pick.step)
