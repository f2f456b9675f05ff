"""Intensities: networks see [0, 1], results come back in the input's units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import NORMALIZATIONS, Normalization
from napari_arssr.errors import FileError, UsageError
from napari_arssr.lazy import blocks, is_large, is_loaded, is_read_in_chunks, pieces
from napari_arssr.watching import Stop, VagueReport, never, unheard

__all__ = ["Normalizer", "check_range", "sampled"]

# Percentiles, so that a few hot voxels do not squeeze all tissue into a corner of [0, 1].
_LOW, _HIGH = 0.1, 99.9
# So many voxels settle them to far below what a network can notice.
_ENOUGH = 4_000_000
# Chunks are looked at that hold so many times as many, for neighbours are alike.
_SPREAD = 8
_ENOUGH_OF_CHUNK = _ENOUGH // 32
# A network may overshoot, and a range reaches from far below zero to far above.
_LARGEST_VALUE = float(np.finfo(np.float32).max) / 8


@dataclass(frozen=True)
class Normalizer:
    """The line that maps ``low`` to 0 and ``high`` to 1, and back.

    Values beyond the two are mapped by the same line, never clipped. ``constant`` where all
    values that it was fitted to are ``low``.
    """

    low: float = 0.0
    high: float = 1.0
    constant: bool = False

    @classmethod
    def fit(
        cls,
        array: npt.NDArray[Any],
        method: Normalization = "percentile",
        report: VagueReport = unheard,
        stop: Stop = never,
    ) -> Normalizer:
        """Fit to an array, non-finite values left out.

        Parameters
        ----------
        array : array of any shape
            One that is still in a file is read piece by piece and never held whole; of a large
            one ``percentile`` reads some planes only, or some chunks.
        method : {"percentile", "minmax", "none"}
            ``percentile``: the 0.1th and 99.9th percentile (default). ``minmax``: the extremes,
            as the published networks were trained. ``none``: values are in [0, 1] already.
        report, stop
            Told and asked while voxels are read from a file.

        Raises
        ------
        UsageError
            If the method is unknown.
        FileError
            If no value is finite, or voxels cannot be read.
        Cancelled
        """
        if method not in NORMALIZATIONS:
            raise UsageError(
                f"There is no normalisation {method!r}: choose {', '.join(NORMALIZATIONS)}."
            )
        if method == "none":
            return cls()
        low = high = 0.0
        if method == "percentile":
            some = _finite(_thinned(array, report, stop)).astype(np.float64)
            if some.size:
                low, high = (float(v) for v in np.percentile(some, [_LOW, _HIGH]))
        if low == high:
            low, high = _extremes(array, report, stop)
        # A constant volume maps to 0 and back to itself.
        constant = low == high
        return cls(low, low + max(1.0, abs(low)) if constant else high, constant)

    def normalize(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """To network units, float32; non-finite values become 0, the darkest."""
        result = np.empty(array.shape, dtype=np.float32)
        # Plane by plane, because float64 takes twice the room of the result.
        for part in np.ndindex(array.shape[:-2]):
            # Subtract in float64: float32 has 24 bits, and offsets can be large beside the range.
            plane = (array[part].astype(np.float64) - self.low) / (self.high - self.low)
            result[part] = np.where(np.isfinite(plane), plane, 0.0)
        return result

    def restore(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """From network units to the input's, float32."""
        scaled = array.astype(np.float32, copy=False) * np.float32(self.high - self.low)
        return np.asarray(scaled + np.float32(self.low), dtype=np.float32)


def check_range(array: npt.NDArray[Any], name: str) -> None:
    """See that float32, which all is computed in, holds voxels and what is made of them.

    Parameters
    ----------
    array : array of at least two axes
        Voxels that are not finite pass: they are taken for missing.
    name : str
        How a message calls it.

    Raises
    ------
    FileError
        If a voxel is too large, though finite.
    """
    if array.dtype.kind != "f":
        return
    for index in np.ndindex(array.shape[:-2]):  # the whole might take as much memory again
        plane = np.asarray(array[index])
        beyond = plane[np.isfinite(plane) & (np.abs(plane) > _LARGEST_VALUE)]
        if beyond.size:
            raise FileError(
                f"{name} holds the value {beyond[0]:g}, and computing is in float32, up to "
                f"{_LARGEST_VALUE:.2g}; scale its values down, or set such voxels to 0."
            )


def _finite(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array[np.isfinite(array)] if array.dtype.kind == "f" else array.ravel()


def _thinned(array: npt.NDArray[Any], report: VagueReport, stop: Stop) -> npt.NDArray[Any]:
    """Every n-th voxel along each axis, where all would be more than a percentile needs.

    Along each axis: every n-th of all in a row may be one column of the volume.
    """
    step = math.ceil((array.size / _ENOUGH) ** (1 / max(array.ndim, 1))) if array.size else 1
    if is_loaded(array):
        return array[(slice(None, None, step),) * array.ndim]
    if is_large(array.size * array.dtype.itemsize) and is_read_in_chunks(array):
        return sampled(array, report, stop)
    plane = (slice(None), *(slice(None, None, step),) * (array.ndim - 1))
    return np.concatenate([part[plane].copy() for _, part in pieces(array, step, report, stop)])


def sampled(
    array: npt.NDArray[Any], report: VagueReport = unheard, stop: Stop = never
) -> npt.NDArray[Any]:
    """Some voxels of an array in chunks, in no order: enough to tell its range by.

    Of some chunks, thinned: every n-th plane would be in each of them.

    Raises
    ------
    Unreadable, Cancelled
    """
    found = []
    for part in blocks(array, _SPREAD * _ENOUGH, report, stop):
        step = math.ceil((part.size / _ENOUGH_OF_CHUNK) ** (1 / part.ndim))
        found.append(part[(slice(None, None, step),) * part.ndim].ravel())
    values = np.concatenate(found)
    return values[:: -(-values.size // _ENOUGH)]


def _extremes(array: npt.NDArray[Any], report: VagueReport, stop: Stop) -> tuple[float, float]:
    """The smallest and the largest finite value."""
    found = []
    there = [array] if is_loaded(array) else blocks(array, report=report, stop=stop)
    for part in there:
        if (finite := _finite(part)).size:
            found += [float(finite.min()), float(finite.max())]
    if not found:
        raise FileError("it holds no finite value; export it again, or leave it out.")
    return min(found), max(found)
