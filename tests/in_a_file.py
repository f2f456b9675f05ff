"""An array in a file, as zarr's or h5py's, that keeps what of it was read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class InAFile:
    """It is read where it is sliced.

    Parameters
    ----------
    data : array
        What is in the file.
    chunk : int
        Planes that are best read at once.

    Attributes
    ----------
    read : set of int
        The planes along the first axis that were read.
    times : int
        How often anything was read.
    """

    def __init__(self, data: npt.NDArray[Any], chunk: int = 1) -> None:
        self._data = data
        self.shape, self.dtype, self.ndim, self.size = data.shape, data.dtype, data.ndim, data.size
        self.chunks = (chunk, *data.shape[1:])
        self.read: set[int] = set()
        self.times = 0

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        first = index[0] if isinstance(index, tuple) else index
        self.read |= set(np.atleast_1d(np.arange(len(self._data))[first]).tolist())
        self.times += 1
        return self._data[index]
