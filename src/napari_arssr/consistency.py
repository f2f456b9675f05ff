"""Data consistency: a result that, measured again by the scanner, comes nearer to its input.

One step of back-projection (Irani & Peleg 1991) after the network,

    x ← x + C (y - A x),

with y the LR volume, A the scanner model and C cubic interpolation. All three are separable
and local, so that the step runs along with a result that is made slab by slab, and for a box
asks for a margin around it only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.interpolation import apply_separable, spline_matrix
from napari_arssr.lazy import read
from napari_arssr.volume import Box, Grid, Volume

__all__ = ["Consistency"]

FloatArray = npt.NDArray[np.float32]
Range = tuple[int, int]

# Weights below this share of the largest are nothing: a Gaussian and a spline end there.
_NOTHING = 1e-6


@dataclass(frozen=True)
class _Axis:
    """One axis of the step: A as (low, high) and C as (high, low), with nothing far away."""

    measure: FloatArray
    spread: FloatArray

    @classmethod
    def of(
        cls, scanner: ScannerModel, low: int, coordinates: npt.NDArray[np.floating[Any]]
    ) -> _Axis:
        high = len(coordinates)
        if high == low:  # not measured again: the identity is exact
            identity = np.eye(low, dtype=np.float32)
            return cls(identity, identity)
        measure = _truncated(scanner.matrix(high, low))
        return cls(measure, _truncated(spline_matrix(coordinates, low)))

    def read_by(self, high: Range) -> Range:
        """LR voxels whose difference corrects HR voxels ``high``."""
        return _reach(self.spread, high)

    def measured_by(self, low: Range) -> Range:
        """HR voxels that LR voxels ``low`` measure."""
        return _reach(self.measure, low)


class Consistency:
    """One step of back-projection for a box of an HR grid.

    Parameters
    ----------
    low : Volume
        The input, 3D; where it is not finite nothing is corrected.
    grid : Grid
        Of the whole result, with the span of ``low``.
    box : Box
        The part of ``grid`` that is wanted.
    scanner : ScannerModel
        How ``low`` is taken to have been measured.

    Attributes
    ----------
    source : Box
        The part of ``grid`` that must be sampled to correct ``box``.
    source_grid : Grid
        The same as a grid.
    """

    def __init__(self, low: Volume, grid: Grid, box: Box, scanner: ScannerModel) -> None:
        index_map = grid.map_into(low.grid)
        self._axes = [
            _Axis.of(scanner, n, index_map.coordinates(axis, 0, grid.shape[axis]))
            for axis, n in enumerate(low.grid.shape)
        ]
        wanted = list(zip(box.start, box.stop, strict=True))
        self._low = [axis.read_by(part) for axis, part in zip(self._axes, wanted, strict=True)]
        outer = [axis.measured_by(part) for axis, part in zip(self._axes, self._low, strict=True)]
        z, y, x = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(outer, wanted, strict=True)]
        self.box = box
        self.source = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        self.source_grid = grid.crop(self.source)
        part = tuple(slice(*ends) for ends in self._low)
        self._input = read(low.data, low.name, part).astype(np.float32)
        self._matrices = [
            axis.measure[slice(*low), a:b]
            for axis, low, a, b in zip(
                self._axes, self._low, self.source.start, self.source.stop, strict=True
            )
        ]
        # Lobes below and above zero cancel out in a sum, but not what they let in.
        self._sizes = [np.abs(matrix) for matrix in self._matrices]
        # One past the last HR plane that each LR plane measures: sampled so far, it is measured.
        rows = range(*self._low[0])
        self._ends = np.array([self._axes[0].measured_by((row, row + 1))[1] for row in rows])

    @property
    def held_bytes(self) -> int:
        """Memory that is held from slab to slab.

        For planes that wait until all their correction needs has been sampled, and a voxel of
        the input, what is measured there, and whether that is known.
        """
        planes = range(self.box.start[0], self.box.stop[0])
        waits = max(self._ready(plane) - plane for plane in planes)
        return 4 * waits * self.box.shape[1] * self.box.shape[2] + (4 + 4 + 1) * self._input.size

    def correct(self, slabs: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Slabs along z that together are ``box``, from slabs that are ``source``.

        Parameters
        ----------
        slabs : iterable of (n, y, x) arrays
            NaN where the input is not finite.

        Yields
        ------
        (m, y, x) float32 arrays
        """
        _, inner_y, inner_x = self.box.relative_to(self.source.start).slices
        waiting: deque[FloatArray] = deque()
        # What is measured of an LR plane, and its difference as soon as that is all.
        difference = np.zeros(self._input.shape, dtype=np.float32)
        known = np.isfinite(self._input)
        first, stop = self.box.start[0], self.source.start[0]
        for slab in slabs:
            start, stop = stop, stop + len(slab)
            self._measure(slab, start, difference, known)
            for row in np.flatnonzero((self._ends > start) & (self._ends <= stop)):
                np.subtract(self._input[row], difference[row], out=difference[row])
                difference[row][~known[row]] = 0
            wanted = slice(max(self.box.start[0] - start, 0), max(self.box.stop[0] - start, 0))
            # Copies, as a view of one plane would keep the whole slab.
            waiting.extend(plane.copy() for plane in slab[wanted, inner_y, inner_x])
            del slab  # gone before the next one is made
            while waiting and self._ready(first) <= stop:
                planes = [waiting.popleft()]
                # No more than a slab at once: after the last one all that waits is ready.
                while len(planes) < stop - start and waiting:
                    if self._ready(first + len(planes)) > stop:
                        break
                    planes.append(waiting.popleft())
                last = first + len(planes)
                corrected = np.stack(planes)
                del planes
                corrected += self._correction((first, last), difference)
                yield corrected
                del corrected
                first = last

    def _ready(self, plane: int) -> int:
        """One past the last plane that must be sampled before ``plane`` can be corrected."""
        z = self._axes[0]
        return max(z.measured_by(z.read_by((plane, plane + 1)))[1], plane + 1)

    def _measure(
        self, slab: FloatArray, start: int, into: FloatArray, known: npt.NDArray[np.bool_]
    ) -> None:
        """Add what the LR voxels see of a slab; those that see unknown ones are not known."""
        at = start - self.source.start[0]
        part = slice(at, at + len(slab))
        rows = np.flatnonzero(self._matrices[0][:, part].any(axis=1))
        if not rows.size:
            return
        seen = slice(rows[0], rows[-1] + 1)

        def measured(matrices: list[FloatArray], values: npt.NDArray[Any]) -> FloatArray:
            z, y, x = matrices
            return apply_separable([z[seen, part], y, x], values)

        missing = np.isnan(slab)
        into[seen] += measured(self._matrices, np.where(missing, np.float32(0), slab))
        if missing.any():
            known[seen] &= measured(self._sizes, missing) <= 0

    def _correction(self, planes: Range, difference: FloatArray) -> FloatArray:
        """C applied to the difference, for some planes of the box."""
        z, y, x = self._axes
        start, stop = z.read_by(planes)
        first = self._low[0][0]
        matrices = [
            z.spread[slice(*planes), start:stop],
            y.spread[self.box.slices[1], slice(*self._low[1])],
            x.spread[self.box.slices[2], slice(*self._low[2])],
        ]
        return apply_separable(matrices, difference[start - first : stop - first])


def _truncated(matrix: FloatArray) -> FloatArray:
    return np.where(np.abs(matrix) > _NOTHING * np.abs(matrix).max(), matrix, np.float32(0))


def _reach(matrix: FloatArray, rows: Range) -> Range:
    """First and one past the last column that ``rows`` have weights in."""
    used = np.flatnonzero(matrix[slice(*rows)].any(axis=0))
    return int(used[0]), int(used[-1]) + 1
