"""Metrics of pictures, on volumes: every slice of the three directions, on all cores.

LPIPS, PSI and LPC-SI are defined for pictures. A volume's score is the mean over its slices
along an axis, and the mean of that over the three axes. Slices of which nothing can be said
(the reference is the same everywhere, or has no edge to measure) are left out for every method
alike and counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError

__all__ = ["Intensities", "SliceScores", "cores", "slicewise"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Intensities:
    """The range of the reference, by which all results are brought to [0, 1] alike."""

    low: float
    high: float

    @classmethod
    def of(cls, reference: Array) -> Intensities:
        """Smallest and largest finite value.

        Raises
        ------
        UsageError
            If there are not two different finite values.
        """
        finite = reference[np.isfinite(reference)]
        if not finite.size or finite.min() == finite.max():
            raise UsageError("The reference is the same everywhere; it cannot be scored.")
        return cls(float(finite.min()), float(finite.max()))

    def unit(self, array: Array) -> FloatArray:
        """To [0, 1], clipped, as a picture would be stored."""
        scaled = (array.astype(np.float64) - self.low) / (self.high - self.low)
        return np.clip(scaled, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class SliceScores:
    """A score for each slice along z, y and x; NaN where there is none."""

    z: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]

    @property
    def directions(self) -> tuple[npt.NDArray[np.float64], ...]:
        """The three, in the order of the array's axes."""
        return self.z, self.y, self.x

    def where(self, kept: SliceScores) -> SliceScores:
        """Only the slices that have a score above 0 in another set; NaN in their place."""
        z, y, x = (
            np.where(other > 0, mine, np.nan)
            for mine, other in zip(self.directions, kept.directions, strict=True)
        )
        return SliceScores(z, y, x)

    @property
    def left_out(self) -> int:
        """How many slices have no score."""
        return sum(int(np.isnan(scores).sum()) for scores in self.directions)

    @property
    def mean(self) -> float:
        """Mean over the directions of the mean over slices; NaN if no slice has a score."""
        means = [
            float(np.nanmean(scores)) for scores in self.directions if not np.isnan(scores).all()
        ]
        return float(np.mean(means)) if means else float("nan")


def slicewise(score: Callable[[FloatArray], float], volume: FloatArray) -> SliceScores:
    """Score every slice of a volume, on all cores.

    Parameters
    ----------
    score : callable
        Takes a (rows, columns) picture and must not need Python's lock for long.
    volume : (z, y, x) array

    Returns
    -------
    SliceScores
        NaN for slices that are the same everywhere, which are not scored.
    """
    if volume.ndim != 3:
        raise UsageError(f"Slices are scored of volumes with 3 axes, not {volume.ndim}.")

    def one(task: tuple[int, int]) -> float:
        axis, number = task
        picture = np.ascontiguousarray(np.take(volume, number, axis=axis))
        if picture.min() == picture.max():
            return float("nan")
        return score(picture)

    tasks = [(axis, number) for axis in range(3) for number in range(volume.shape[axis])]
    with ThreadPoolExecutor(cores()) as pool:
        values = np.array(list(pool.map(one, tasks)))
    z, y, x = np.split(values, np.cumsum(volume.shape)[:2])
    return SliceScores(z, y, x)
