"""A grid to sample, seen from the grid that is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from napari_arssr.interpolation import linear_support
from napari_arssr.lazy import is_loaded, read
from napari_arssr.volume import Box, Grid, IndexMap, Volume, in_span, nearest_voxel

__all__ = ["Request", "covered", "nearest_values"]

Made = TypeVar("Made")
Coordinates = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """What a field is asked for, in the voxel indices of its source.

    Parameters
    ----------
    index_map : IndexMap
        From the asked grid into the source.
    size : tuple of three ints
        Shape of the source.
    lattice : tuple of three ints, or None
        For each source axis the asked axis that runs along it; None for oblique grids.
    all_inside : bool
        Whether no voxel lies outside the source's span.
    made : dict
        What chunks share along an axis, see :meth:`along`.
    """

    index_map: IndexMap
    size: tuple[int, int, int]
    lattice: tuple[int, int, int] | None
    all_inside: bool
    made: dict[tuple[str, int, int, int], Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, grid: Grid, source: Grid) -> Request:
        """The request for ``grid`` from a field of ``source``."""
        index_map = grid.map_into(source)
        corners = source.index(grid.corners)
        return cls(index_map, source.shape, index_map.axes, bool(source.holds(corners).all()))

    @property
    def to_asked_order(self) -> list[int]:
        """Transposition from source axis order to the asked grid's."""
        assert self.lattice is not None
        return [self.lattice.index(axis) for axis in range(3)]

    def along(
        self, what: str, box: Box, axis: int, make: Callable[[Coordinates, int], Made]
    ) -> Made:
        """What ``make`` makes of the coordinates of a box along a source axis, made once.

        All chunks of a row have the same coordinates along the other axes, so that what
        depends on one axis alone need not be made again for each. ``make`` also gets the
        size of the source along the axis; ``what`` tells makers apart. Not for oblique grids.
        """
        assert self.lattice is not None
        start, stop = box.start[self.lattice[axis]], box.stop[self.lattice[axis]]
        key = what, axis, start, stop
        if key not in self.made:
            coordinates = self.index_map.coordinates(axis, start, stop)
            self.made[key] = make(coordinates, self.size[axis])
        made: Made = self.made[key]
        return made

    def points(self, box: Box) -> Coordinates:
        """Source indices of the voxels of a box, (z, y, x, 3)."""
        return self.index_map.points(box)

    def support(self, box: Box) -> Box:
        """The source voxels that linear interpolation of a box reads."""
        if self.lattice is not None:
            ends = [self.along("support", box, axis, linear_support) for axis in range(3)]
        else:
            points = self.index_map.corners(box)
            ends = [linear_support(points[:, axis], n) for axis, n in enumerate(self.size)]
        z, y, x = ends
        return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    def inside(self, box: Box) -> npt.NDArray[np.bool_]:
        """Which voxels of a box lie in the source's span; broadcasts over the box."""
        z, y, x = self._per_axis("inside", box, in_span)
        return np.asarray(z & y & x)

    def nearest(self, box: Box) -> tuple[npt.NDArray[np.int64], ...]:
        """Index of the nearest source voxel of each voxel of a box; broadcasts over the box."""
        return tuple(self._per_axis("nearest", box, nearest_voxel))

    def _per_axis(
        self, what: str, box: Box, make: Callable[[Coordinates, int], npt.NDArray[Any]]
    ) -> list[npt.NDArray[Any]]:
        if self.lattice is None:
            points = self.points(box)
            return [make(points[..., axis], size) for axis, size in enumerate(self.size)]
        rows = [self.along(what, box, axis, make) for axis in range(3)]
        shapes = [[-1 if axis == along else 1 for axis in range(3)] for along in self.lattice]
        return [row.reshape(shape) for row, shape in zip(rows, shapes, strict=True)]


def covered(grid: Grid, source: Grid) -> npt.NDArray[np.bool_]:
    """Which voxels of a grid have their centre in the span of another."""
    request = Request.of(grid, source)
    found = np.ones(grid.shape, dtype=bool)
    if not request.all_inside:
        for plane in _planes(grid):
            found[plane.slices] = request.inside(plane)
    return found


def nearest_values(volume: Volume, grid: Grid) -> npt.NDArray[Any]:
    """A volume's voxels nearest to those of a grid; 0 beyond its span.

    Of what is not in memory only the part around the grid is read.
    """
    request = Request.of(grid, volume.grid)
    part = volume.grid.box if is_loaded(volume.data) else request.support(grid.box)
    data = read(volume.data, volume.name, part.slices)
    found = np.empty(grid.shape, dtype=data.dtype)
    for plane in _planes(grid):
        index = zip(request.nearest(plane), part.start, strict=True)
        values = data[tuple(axis - start for axis, start in index)]
        found[plane.slices] = np.where(request.inside(plane), values, values.dtype.type(0))
    return found


def _planes(grid: Grid) -> Iterator[Box]:
    """Plane by plane, because coordinates of oblique grids take 24 bytes a voxel."""
    return grid.box.blocks((1, *grid.shape[1:]))
