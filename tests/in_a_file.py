"""Arrays in a file, which keep what of them was read."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt


class InAFile:
    """An array as zarr's or h5py's: it is read where it is sliced.

    Parameters
    ----------
    data : array
        What is in the file.
    chunk : int
        Planes that are best read at once.
    fails_at : int, optional
        From this plane on it cannot be read.

    Attributes
    ----------
    asked : list
        What it was indexed with.
    read : set of int
        The planes along the first axis that were read.
    """

    def __init__(self, data: npt.NDArray[Any], chunk: int = 1, fails_at: int | None = None) -> None:
        self._data = data
        self._fails_at = len(data) if fails_at is None else fails_at
        self.shape, self.dtype, self.ndim, self.size = data.shape, data.dtype, data.ndim, data.size
        self.chunks = (chunk, *data.shape[1:])
        self.asked: list[Any] = []
        self.read: set[int] = set()

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        self.asked.append(index)
        first = index[0] if isinstance(index, tuple) else index
        planes = np.atleast_1d(np.arange(len(self._data))[first]).tolist()
        if max(planes, default=-1) >= self._fails_at:
            raise OSError("the disk has gone")
        self.read |= set(planes)
        return self._data[index]


def in_planes(data: npt.NDArray[Any], read: list[int]) -> Any:
    """A dask array, a plane a chunk; ``read`` is told of every plane that is read."""

    def plane(block_id: tuple[int, ...]) -> npt.NDArray[Any]:
        read.append(block_id[0])
        return data[block_id[0] : block_id[0] + 1]

    chunks = ((1,) * len(data), *((n,) for n in data.shape[1:]))
    lazy = da.map_blocks(plane, chunks=chunks, dtype=data.dtype)
    read.clear()  # dask has tried it
    return lazy
