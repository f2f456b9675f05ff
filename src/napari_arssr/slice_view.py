"""Geometry of the screen: where in a volume the pixels of a window lie that shows a slice of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError
from napari_arssr.volume import (
    MOST_VOXELS,
    Affine,
    Box,
    Grid,
    Triple,
    as_shape,
    as_triple,
    round_half_up,
)

__all__ = ["Patch", "SliceView", "affine_of_part", "spatial_indices"]

# Of a patch: the largest screens have half as many points.
_MOST_PATCH = 1 << 24


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of one slice of a grid, on a finer grid of its own.

    Parameters
    ----------
    grid : Grid
        One voxel thick across the slice.
    start : tuple of three floats
        Where its first voxel lies, in voxel indices of the coarser grid, (z, y, x).
    step : tuple of three floats
        How far its voxels are apart, in voxels of the coarser grid, (z, y, x).
    """

    grid: Grid
    start: Triple
    step: Triple


@dataclass(frozen=True, eq=False)
class SliceView:
    """What a window shows of one slice of a layer.

    A slice viewer such as napari slices by voxel axes. Of the transform from voxels to the
    world it uses the part between the two axes it draws, and drops what leans out of their
    plane: a slice of an oblique layer is drawn as if it were not oblique. Here it is the same,
    so that what is computed for a view lies on what is seen in it.

    Parameters
    ----------
    grid : Grid
        The layer's.
    axes : tuple of two ints
        The grid's axes, 0 to 2 for (z, y, x), that are drawn down and to the right.
    number : int
        Which slice across the third axis.
    frame, frames : int
        Which frame, and of how many, of a layer with time.
    layer_axes : tuple of ints
        For each axis of the layer the grid's; -1 for time.
    matrix : (2, 3) array
        (Index along ``axes[0]``, along ``axes[1]``, 1) → world (down, right).
    low, high : pairs of floats
        Which part of the world the canvas shows, (down, right).
    zoom : float
        Canvas pixels per unit of the world.
    """

    grid: Grid
    axes: tuple[int, int]
    number: int
    frame: int
    frames: int
    layer_axes: tuple[int, ...]
    matrix: Affine
    low: tuple[float, float]
    high: tuple[float, float]
    zoom: float

    @classmethod
    def of(
        cls,
        grid: Grid,
        affine: npt.ArrayLike,
        shown: Sequence[int],
        point: Sequence[float],
        *,
        series: bool = False,
        frames: int = 1,
        centre: Sequence[float] = (0.0, 0.0),
        zoom: float = 1.0,
        canvas: Sequence[float] = (1.0, 1.0),
    ) -> SliceView:
        """The view of a layer of n axes: (t) (z) y, x.

        Parameters
        ----------
        grid : Grid
        affine : (n + 1, n + 1) array
            Indices of the layer, and 1, → world.
        shown : two ints
            Axes of the layer that are drawn down and to the right.
        point : n floats
            Where in the world the slice is cut.
        series : bool
            Whether the first axis is time.
        frames : int
        centre : two floats
            The world's place in the middle of the canvas, (down, right).
        zoom : float
            Canvas pixels per unit of the world.
        canvas : two floats
            Pixels (rows, columns).

        Raises
        ------
        UsageError
            If the view shows no slice of the layer: it shows time, or the layer edge on, or a
            place beside the layer.
        """
        matrix = np.asarray(affine, dtype=np.float64)
        count = len(matrix) - 1
        layer_axes = (*((-1,) * series), *range(3 - count + series, 3))
        if any(not 0 <= axis < count or layer_axes[axis] < 0 for axis in shown):
            raise UsageError("this view does not show two axes of its space")
        across = [axis for axis in range(count) if axis not in shown]
        drawn = matrix[np.ix_(shown, shown)]
        lengths = np.linalg.norm(matrix[:-1, list(shown)], axis=0)
        if abs(np.linalg.det(drawn / lengths)) < 1e-3:
            raise UsageError("this view shows it edge on")
        # As napari slices: by the inverse's part between the axes that are not drawn.
        inverse = np.linalg.inv(matrix)
        cut = inverse[np.ix_(across, across)] @ np.asarray(point)[across] + inverse[across, -1]
        index = dict.fromkeys((-1, 0, 1, 2), 0)
        for axis, value in zip(across, np.round(cut), strict=True):
            size = frames if layer_axes[axis] < 0 else grid.shape[layer_axes[axis]]
            if not 0 <= value < size:
                raise UsageError("this slice lies beside it")
            index[layer_axes[axis]] = int(value)
        rows, columns = (layer_axes[axis] for axis in shown)
        half = np.asarray(canvas, dtype=np.float64) / (2 * zoom)
        low, high = centre - half, centre + half
        return cls(
            grid,
            (rows, columns),
            index[3 - rows - columns],
            index[-1],
            frames,
            layer_axes,
            np.column_stack([drawn, matrix[list(shown), -1]]),
            (float(low[0]), float(low[1])),
            (float(high[0]), float(high[1])),
            float(zoom),
        )

    @property
    def across(self) -> int:
        """The grid's axis that is not drawn."""
        return 3 - sum(self.axes)

    @property
    def voxel_pixels(self) -> tuple[float, float]:
        """Canvas pixels that a voxel is long along each of ``axes``."""
        first, second = (np.linalg.norm(self.matrix[:, :2], axis=0) * self.zoom).tolist()
        return first, second

    @property
    def box(self) -> Box | None:
        """The voxels of the slice that are seen, whole or in part; None if none is."""
        return self.grid.box_touched(self._seen())

    def index(self, world: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Voxel indices (…, 3), (z, y, x), in this slice, of places (…, 2) in the world."""
        places = np.asarray(world, dtype=np.float64) - self.matrix[:, 2]
        result = np.full((*places.shape[:-1], 3), float(self.number))
        result[..., list(self.axes)] = places @ np.linalg.inv(self.matrix[:, :2]).T
        return result

    def outline(self, box: Box) -> npt.NDArray[np.float64] | None:
        """Corners (4, n) of a box's section by this slice, in the layer's indices, in turn.

        None if the slice passes the box by.
        """
        if not box.start[self.across] <= self.number < box.stop[self.across]:
            return None
        rows, columns = self.axes
        corners = np.full((4, 3), float(self.number))
        corners[:, rows] = np.array([box.start[rows]] * 2 + [box.stop[rows]] * 2) - 0.5
        ends = [box.start[columns], box.stop[columns]]
        corners[:, columns] = np.array(ends + ends[::-1]) - 0.5
        frame = np.full(4, float(self.frame))
        return np.stack([frame if a < 0 else corners[:, a] for a in self.layer_axes], axis=1)

    def pixels_between(self, one: Sequence[float], other: Sequence[float]) -> float:
        """How far two places of the world, (down, right), are apart on the canvas."""
        return math.dist(one, other) * self.zoom

    def line_width(self, pixels: float) -> float:
        """What is ``pixels`` canvas pixels wide, in voxels: the mean of the two axes."""
        return pixels / math.sqrt(math.prod(self.voxel_pixels))

    def grip(self, box: Box, place: Sequence[float], reach: float) -> tuple[int, int] | None:
        """Which edges of a box's section lie at a place.

        Parameters
        ----------
        box : Box
        place : two floats
            In the world, (down, right).
        reach : float
            Canvas pixels up to which an edge counts as at the place.

        Returns
        -------
        two ints, or None
            Along each of ``axes`` -1 for the edge where the box starts, 1 where it stops, 0 for
            neither; None if no edge is there, or the slice passes the box by.
        """
        if not box.start[self.across] <= self.number < box.stop[self.across]:
            return None
        index = self.index(place)
        sides, near = [], []
        for axis, pixels in zip(self.axes, self.voxel_pixels, strict=True):
            to_start = (index[axis] - box.start[axis] + 0.5) * pixels
            to_stop = (index[axis] - box.stop[axis] + 0.5) * pixels
            near.append(to_start >= -reach and to_stop <= reach)
            at_start = abs(to_start) <= min(reach, abs(to_stop))
            sides.append(-1 if at_start else int(abs(to_stop) <= reach))
        if not all(near) or sides == [0, 0]:
            return None
        return sides[0], sides[1]

    def dragged(
        self, box: Box, grip: tuple[int, int], place: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """Opposite corners (2, 3) of a box's section, with the edges of a grip at a place."""
        index = self.index(place)
        corners = np.full((2, 3), float(self.number))
        for axis, side in zip(self.axes, grip, strict=True):
            ends = [box.start[axis] - 0.5, box.stop[axis] - 0.5]
            if side:
                ends[side > 0] = index[axis]
            corners[:, axis] = ends
        return corners

    @property
    def width(self) -> float:
        """Canvas pixels from its left to its right."""
        return (self.high[1] - self.low[1]) * self.zoom

    def share(self, column: float) -> float:
        """Where a place of the world lies between the canvas' left, 0, and its right, 1."""
        return (column - self.low[1]) / (self.high[1] - self.low[1])

    def left_of(self, share: float) -> tuple[tuple[int, int], ...] | None:
        """The part of the layer to the left of a vertical line across the canvas.

        Cut between voxels, along the axis that runs most to the right: where the layer is
        turned in its plane the cut is along its voxels, and meets the line half-way down.

        Parameters
        ----------
        share : float
            Where the line is, of the canvas' width, from the left.

        Returns
        -------
        tuple of (start, stop), or None
            One for each axis of the layer; None if there is nothing to the left.
        """
        axis, cut, rising = self._cut(share)
        start, stop = (0, cut) if rising else (cut, self.grid.shape[axis])
        if start == stop:
            return None
        ends = [(0, n) for n in self.grid.shape]
        ends[axis] = start, stop
        return tuple((0, self.frames) if a < 0 else ends[a] for a in self.layer_axes)

    def dividing_line(self, share: float, pixels: float) -> tuple[Triple, Triple]:
        """Where :meth:`left_of` cuts, as one voxel across the layer, ``pixels`` wide.

        Returns
        -------
        start, step : tuples of three floats
            As those of a :class:`Patch`.
        """
        axis, cut, _ = self._cut(share)
        start, step = [0.0] * 3, [1.0] * 3
        for drawn in self.axes:
            start[drawn], step[drawn] = (self.grid.shape[drawn] - 1) / 2, self.grid.shape[drawn]
        start[axis], step[axis] = cut - 0.5, pixels / self.voxel_pixels[self.axes.index(axis)]
        return as_triple(start), as_triple(step)

    def _cut(self, share: float) -> tuple[int, int, bool]:
        """The axis that is cut, before which voxel, and whether indices grow to the right."""
        run = self.matrix[1, :2]
        axis = self.axes[int(np.abs(run[1]) >= np.abs(run[0]))]
        place = self.low[1] + share * (self.high[1] - self.low[1])
        index = self.index([(self.low[0] + self.high[0]) / 2, place])[axis]
        cut = int(np.clip(np.round(index + 0.5), 0, self.grid.shape[axis]))
        return axis, cut, bool(run[self.axes.index(axis)] > 0)

    def patch(self, density: float = 1.0, most: int = _MOST_PATCH) -> Patch | None:
        """What is seen, with ``density`` voxels a canvas pixel along each axis drawn.

        A part of the whole grid cut into whole numbers of voxels, so that a part of a run on
        that grid has the same voxels, and that a patch moves with the canvas in whole voxels.
        Across the slice it is one voxel thick, as the slice is.

        Parameters
        ----------
        density : float
        most : int
            Voxels; where there would be more they are larger.

        Returns
        -------
        Patch or None
            None if nothing is seen, or if pixels are no smaller than voxels.
        """
        if self.box is None:
            return None
        seen = self._seen()[:, list(self.axes)]
        shape = [self.grid.shape[axis] for axis in self.axes]
        while True:
            fine = [
                max(n, min(round_half_up(n * pixels * density), MOST_VOXELS))
                for n, pixels in zip(shape, self.voxel_pixels, strict=True)
            ]
            if fine == shape:
                return None
            start, stop = list(self.grid.box.start), list(self.grid.box.stop)
            start[self.across], stop[self.across] = self.number, self.number + 1
            whole = list(self.grid.shape)
            for axis, n, m, ends in zip(self.axes, shape, fine, seen.T, strict=True):
                low, high = (np.clip([ends.min(), ends.max()], -0.5, n - 0.5) + 0.5) * m / n
                start[axis] = min(math.floor(low), m - 1)
                stop[axis] = max(math.ceil(high), start[axis] + 1)
                whole[axis] = m
            box = Box(as_shape(start), as_shape(stop))
            if box.size <= most:
                break
            density *= 0.99 * math.sqrt(most / box.size)
        grid = self.grid.with_shape(whole).crop(box)
        step = [n / m for n, m in zip(self.grid.shape, whole, strict=True)]
        first = [(a + 0.5) * s - 0.5 for a, s in zip(box.start, step, strict=True)]
        return Patch(grid, as_triple(first), as_triple(step))

    def placed(self, affine: npt.ArrayLike, start: Triple, step: Triple) -> Affine:
        """The affine (n + 1, n + 1) of a layer on top of this one, from this one's.

        Along the axes that are not drawn voxels are counted as in the layer, from the same
        first one: for the two to be sliced alike, and drawn on each other however oblique.

        Parameters
        ----------
        affine : (n + 1, n + 1) array
        start, step : tuples of three floats
            As those of a :class:`Patch`; only the axes that are drawn count.
        """
        finer = np.eye(len(self.layer_axes) + 1)
        for place, axis in enumerate(self.layer_axes):
            if axis in self.axes:
                finer[place, place] = step[axis]
                finer[place, -1] = start[axis]
        return np.asarray(affine, dtype=np.float64) @ finer

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Length of each axis of the layer."""
        return tuple(self.frames if a < 0 else self.grid.shape[a] for a in self.layer_axes)

    def _seen(self) -> npt.NDArray[np.float64]:
        """Voxel indices (4, 3) of the canvas' corners."""
        return self.index(list(product(*zip(self.low, self.high, strict=True))))


def spatial_indices(points: npt.ArrayLike, *, series: bool) -> npt.NDArray[np.float64]:
    """Voxel indices (p, 3), (z, y, x), of points (p, n) in the indices of a layer (t) (z) y, x.

    Time is left out, and a plane is slice 0.
    """
    index = np.asarray(points, dtype=np.float64)[:, int(series) :]
    return np.pad(index, [(0, 0), (3 - index.shape[1], 0)])


def affine_of_part(affine: npt.ArrayLike, start: Sequence[float]) -> Affine:
    """The affine (n + 1, n + 1) of a part of an array of n axes that begins at index ``start``."""
    part = np.array(affine, dtype=np.float64)
    part[:-1, -1] += part[:-1, :-1] @ np.asarray(start, dtype=np.float64)
    return part
