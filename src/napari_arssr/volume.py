"""Geometry: the one place where affines, spacings, shapes and boxes are computed.

Arrays are (z, y, x). Affines are NIfTI's: 4×4, (i, j, k, 1) → RAS+ millimetres, with
(i, j, k) = (x, y, z). :class:`Grid` and :class:`Volume` hold both, so that nobody else has
to remember. Grids are cell-centred: a grid spans the outer faces of its outer voxels, and
voxel *n* covers the indices from *n* - ½ to *n* + ½.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError

__all__ = ["Box", "Grid", "IndexMap", "Triple", "Volume", "as_triple"]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]

# Relative departure from a diagonal below which two grids count as aligned. Affines read from
# float32 headers are good to about 1e-7; a shear of 1e-5 moves the far corner of a 500-voxel
# volume by 1/200 voxel.
_ALIGNED = 1e-5

# Along an axis; beyond it, and long before floats end, a request is a slip of the keyboard.
_MOST_VOXELS = 2**40


def as_triple(value: float | Sequence[float], name: str = "value") -> Triple:
    """One number for all axes, or three, as a tuple of three finite floats.

    Parameters
    ----------
    value : float or sequence of three floats
    name : str
        What the value is called in the error message.

    Raises
    ------
    UsageError
        If there are not one or three numbers, or one is not finite.
    """
    try:
        numbers = [float(number) for number in np.atleast_1d(np.asarray(value))]
    except (TypeError, ValueError):
        raise UsageError(f"{name} {value!r} is not a number or three numbers.") from None
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(f"{name} takes one number or three, not {len(numbers)}: {value!r}.")
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{name} must be finite, not {value!r}.")
    return numbers[0], numbers[1], numbers[2]


@dataclass(frozen=True)
class Box:
    """A block of voxels: ``start`` included, ``stop`` excluded, both (z, y, x)."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Size in voxels, (z, y, x)."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of a (z, y, x) array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grown(self, margin: int, within: Shape) -> Box:
        """The box with ``margin`` voxels more on every side, clipped to a shape (z, y, x)."""
        return Box(
            _shape(max(a - margin, 0) for a in self.start),
            _shape(min(b + margin, n) for b, n in zip(self.stop, within, strict=True)),
        )

    def relative_to(self, start: Shape) -> Box:
        """The same box counted from another voxel."""
        return Box(
            _shape(a - s for a, s in zip(self.start, start, strict=True)),
            _shape(b - s for b, s in zip(self.stop, start, strict=True)),
        )

    def blocks(self, shape: Shape) -> Iterator[Box]:
        """Cut the box into blocks of at most ``shape`` voxels, in C order."""
        starts = [
            range(a, b, step) for a, b, step in zip(self.start, self.stop, shape, strict=True)
        ]
        for corner in product(*starts):
            stop = (min(a + step, b) for a, step, b in zip(corner, shape, self.stop, strict=True))
            yield Box(_shape(corner), _shape(stop))


@dataclass(frozen=True)
class IndexMap:
    """Where the voxel centres of one grid lie in the voxel indices of another.

    ``matrix`` is 4×4 and takes (z, y, x, 1) of the sampled grid to (z, y, x, 1) of the
    source.
    """

    matrix: Affine

    @property
    def axes(self) -> tuple[int, int, int] | None:
        """For each source axis the sampled axis that runs along it; None for oblique grids."""
        linear = np.abs(self.matrix[:3, :3])
        order = linear.argmax(axis=1)
        if len(set(order.tolist())) < 3:
            return None
        rest = linear.copy()
        rest[np.arange(3), order] = 0
        if (rest > _ALIGNED * linear.max(axis=1, keepdims=True)).any():
            return None
        z, y, x = order.tolist()
        return z, y, x

    @property
    def cell(self) -> Triple:
        """Extent of one sampled voxel along each source axis, in source voxels (z, y, x)."""
        z, y, x = np.sqrt((self.matrix[:3, :3] ** 2).sum(axis=1)).tolist()
        return z, y, x

    def coordinates(self, axis: int, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Source indices, along source axis ``axis``, of sampled voxels ``start`` … ``stop``-1.

        Only for aligned grids (``axes`` is not None). The voxels are counted along the sampled
        axis ``axes[axis]``.
        """
        axes = self.axes
        if axes is None:
            raise ValueError("The grids are not aligned: use points().")
        step = self.matrix[axis, axes[axis]]
        return np.asarray(self.matrix[axis, 3] + step * np.arange(start, stop, dtype=np.float64))

    def corners(self, box: Box) -> npt.NDArray[np.float64]:
        """Source indices of the corner voxels of ``box``, (8, 3); all others lie between."""
        ends = [(a, b - 1) for a, b in zip(box.start, box.stop, strict=True)]
        return np.asarray(list(product(*ends)) @ self.matrix[:3, :3].T + self.matrix[:3, 3])

    def points(self, box: Box) -> npt.NDArray[np.float64]:
        """Source indices of every voxel of ``box``, shape (z, y, x, 3), last axis (z, y, x)."""
        axes = [np.arange(a, b, dtype=np.float64) for a, b in zip(box.start, box.stop, strict=True)]
        index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return np.asarray(index @ self.matrix[:3, :3].T + self.matrix[:3, 3])


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel centres in the world: a shape and an affine.

    Parameters
    ----------
    shape : tuple of three ints
        Voxels along (z, y, x).
    affine : (4, 4) array
        (i, j, k, 1) → RAS+ millimetres, with (i, j, k) = (x, y, z).

    Raises
    ------
    UsageError
        If the shape is empty or the affine is not an invertible, finite 4×4 matrix.
    """

    shape: Shape
    affine: Affine

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise UsageError(f"A grid needs three sizes of at least 1, not {self.shape}.")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise UsageError("The affine is not a 4×4 matrix of finite numbers.")
        if not np.allclose(affine[3], [0, 0, 0, 1]):
            raise UsageError("The last row of the affine is not 0 0 0 1.")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if (lengths == 0).any():
            raise UsageError("The affine is singular: a voxel size is zero.")
        if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise UsageError("The affine is singular: two voxel axes point the same way.")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and bool(np.allclose(self.affine, other.affine, rtol=1e-6, atol=1e-6))
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_spacing(cls, shape: Shape, spacing: float | Sequence[float]) -> Grid:
        """A grid along the world axes, its centre at the origin; ``spacing`` (z, y, x) in mm."""
        steps = as_triple(spacing, "spacing")
        return cls(shape, np.diag([*steps[::-1], 1.0])).centred()

    @classmethod
    def unoriented(cls, shape: Shape, spacing: float | Sequence[float]) -> Grid:
        """A grid for a stack whose file knows no orientation; ``spacing`` (z, y, x) in mm.

        Columns run to the left, rows to posterior, planes to inferior, and the centre is the
        origin: shown in the radiological layout, the stack looks as any viewer of plain
        stacks draws it, first row on top and first column on the left.
        """
        steps = as_triple(spacing, "spacing")
        return cls(shape, np.diag([*(-step for step in steps[::-1]), 1.0])).centred()

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along (z, y, x), in millimetres."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)[::-1].tolist()
        return z, y, x

    @property
    def extent(self) -> Triple:
        """Length of the span along (z, y, x), outer face to outer face, in millimetres."""
        z, y, x = (n * step for n, step in zip(self.shape, self.spacing, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def box(self) -> Box:
        """All voxels."""
        return Box((0, 0, 0), self.shape)

    @property
    def index_affine(self) -> Affine:
        """4×4, (z, y, x, 1) → RAS+ millimetres: the affine with its columns in array order."""
        affine = self.affine.copy()
        affine[:, :3] = self.affine[:, 2::-1]
        return affine

    @property
    def napari_affine(self) -> Affine:
        """4×4, (z, y, x, 1) → -(S, A, R) millimetres: a napari layer's ``affine``.

        napari draws the world's axes towards the viewer, down and to the right. I, P, L along
        them is the radiological layout, and a right-handed frame: nothing is mirrored in 3D.
        """
        affine = self.index_affine
        affine[:3] = -affine[2::-1]
        return affine

    def world(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """RAS+ millimetres of voxel indices (…, 3) in (z, y, x) order; fractions allowed."""
        affine = self.index_affine
        return np.asarray(np.asarray(index, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3])

    def index(self, world: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Voxel indices (…, 3) in (z, y, x) order of points in RAS+ millimetres."""
        inverse = np.linalg.inv(self.index_affine)
        points = np.asarray(world, dtype=np.float64)
        return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])

    @property
    def corners(self) -> npt.NDArray[np.float64]:
        """Centres of the eight corner voxels, (8, 3), RAS+ millimetres."""
        return self.world(list(product(*((0, n - 1) for n in self.shape))))

    def map_into(self, source: Grid) -> IndexMap:
        """Where this grid's voxels lie in the voxel indices of ``source``."""
        matrix = np.linalg.solve(source.index_affine, self.index_affine)
        return IndexMap(np.asarray(matrix, dtype=np.float64))

    def centred(self) -> Grid:
        """The same voxels, moved so that the middle of the grid is the world's origin."""
        affine = self.affine.copy()
        affine[:3, 3] -= self.world([(n - 1) / 2 for n in self.shape])
        return Grid(self.shape, affine)

    def in_millimetres(self, unit: float) -> Grid:
        """The same voxels, for an affine that counts in units of ``unit`` millimetres."""
        return Grid(self.shape, np.diag([unit, unit, unit, 1.0]) @ self.affine)

    def departure(self, affine: npt.ArrayLike) -> float:
        """How far another affine of the same shape moves a corner, in voxels along an axis."""
        moved = Grid(self.shape, np.asarray(affine)).corners
        return float(np.abs(self.index(moved) - self.index(self.corners)).max())

    def with_shape(self, shape: Sequence[int]) -> Grid:
        """The same span cut into another number of voxels, ``shape`` in (z, y, x) order.

        The outer faces stay where they are: n voxels of size s become n′ of size n·s/n′, and
        the first centre moves by (s′ - s)/2 along each axis.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise UsageError(f"A shape needs three sizes of at least 1, not {tuple(shape)}.")
        if max(shape) > _MOST_VOXELS:
            raise UsageError(
                f"A shape of more than {_MOST_VOXELS} voxels along an axis is too large."
            )
        new = _shape(shape)
        ratio = np.array(self.shape, dtype=np.float64) / np.array(new, dtype=np.float64)
        to_old = np.diag([*ratio[::-1], 1.0])
        to_old[:3, 3] = (ratio[::-1] - 1) / 2
        return Grid(new, self.affine @ to_old)

    def scaled(self, scale: float | Sequence[float]) -> Grid:
        """The same span with round(n·k) voxels along each axis; ``scale`` k > 0, (z, y, x)."""
        factors = as_triple(scale, "scale")
        if min(factors) <= 0:
            raise UsageError(f"scale must be above 0, not {scale!r}.")
        sizes = [n * k for n, k in zip(self.shape, factors, strict=True)]
        if max(sizes) > _MOST_VOXELS:
            raise UsageError(f"scale {max(factors):g} is too large for any volume.")
        return self.with_shape([max(1, _round(size)) for size in sizes])

    def with_spacing(self, spacing: float | Sequence[float]) -> Grid:
        """The same span in voxels as near as can be to ``spacing`` (z, y, x) millimetres."""
        steps = as_triple(spacing, "spacing")
        if min(steps) <= 0:
            raise UsageError(f"spacing must be above 0 mm, not {spacing!r}.")
        sizes = [n * old / new for n, old, new in zip(self.shape, self.spacing, steps, strict=True)]
        if max(sizes) > _MOST_VOXELS:
            raise UsageError(f"spacing of {min(steps):g} mm is too small for any volume.")
        return self.scaled([old / new for old, new in zip(self.spacing, steps, strict=True)])

    def isotropic(self) -> Grid:
        """The same span in cubes as near as can be to the smallest voxel side."""
        return self.with_spacing(min(self.spacing))

    def crop(self, box: Box) -> Grid:
        """The part of the grid inside a box of its voxels."""
        if min(box.start) < 0 or any(b > n for b, n in zip(box.stop, self.shape, strict=True)):
            raise UsageError(f"The box {box.start}–{box.stop} lies outside {self.shape} voxels.")
        if min(box.shape) < 1:
            raise UsageError(f"The box {box.start}–{box.stop} is empty.")
        affine = self.affine.copy()
        affine[:3, 3] = self.world(box.start)
        return Grid(box.shape, affine)

    def box_in(self, other: Grid, box: Box) -> Box:
        """The voxels of ``other``, a grid of the same span, whose centres lie in ``box``.

        Boxes that tile this grid give boxes that tile the other.
        """
        ratio = [m / n for n, m in zip(self.shape, other.shape, strict=True)]
        # Centre (j + ½)/r - ½ ≥ a - ½, so j ≥ a·r - ½; the 1e-9 keeps exact halves exact.
        start = [math.ceil(a * r - 0.5 - 1e-9) for a, r in zip(box.start, ratio, strict=True)]
        stop = [math.ceil(b * r - 0.5 - 1e-9) for b, r in zip(box.stop, ratio, strict=True)]
        return Box(_shape(start), _shape(stop))

    def box_around(self, corner: Sequence[float], opposite: Sequence[float]) -> Box:
        """The voxels touched by a world-aligned block between two corners, RAS+ millimetres.

        Clipped to the grid; a block outside it raises :class:`UsageError`.
        """
        ends = list(zip(as_triple(corner, "box"), as_triple(opposite, "box"), strict=True))
        if any(a == b for a, b in ends):
            raise UsageError(f"The box from {tuple(corner)} to {tuple(opposite)} mm is empty.")
        index = self.index(np.array(list(product(*ends))))
        low = np.floor(index.min(axis=0) + 0.5 + 1e-6)
        high = np.ceil(index.max(axis=0) + 0.5 - 1e-6)
        # Clipped as floats: corners far outside fit in no integer.
        box = Box(_shape(np.clip(low, 0, self.shape)), _shape(np.clip(high, 0, self.shape)))
        if min(box.shape) < 1:
            raise UsageError(
                f"The box from {tuple(corner)} to {tuple(opposite)} mm lies outside the volume."
            )
        return box


@dataclass(frozen=True, eq=False)
class Volume:
    """An array with its place in the world.

    Parameters
    ----------
    data : array
        (z, y, x), or (t, z, y, x) for a series of frames.
    affine : (4, 4) array
        (i, j, k, 1) → RAS+ millimetres, with (i, j, k) = (x, y, z).
    time_step : float
        Seconds between frames; 0 when unknown or for a single volume.
    name : str
        How messages call it: usually the file's name.
    metadata : dict
        What a reader wants to find again when writing (see :mod:`napari_arssr.io`).

    Raises
    ------
    UsageError
        If the array is not 3D or 4D, or the affine cannot be one.
    """

    data: npt.NDArray[Any]
    affine: Affine
    time_step: float = 0.0
    name: str = "volume"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.ndim not in (3, 4):
            raise UsageError(
                f"{self.name}: a volume has 3 axes (or 4 with time), not {self.data.ndim}."
            )
        if 0 in self.data.shape:
            raise UsageError(f"{self.name}: the volume is empty, its shape {self.data.shape}.")
        try:
            grid = Grid(self.data.shape[-3:], self.affine)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from None
        object.__setattr__(self, "affine", grid.affine)

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        return Grid(self.data.shape[-3:], self.affine)

    @property
    def spacing(self) -> Triple:
        """Voxel size along (z, y, x), millimetres."""
        return self.grid.spacing

    @property
    def frames(self) -> int:
        """Number of frames; 1 for a 3D volume."""
        return self.data.shape[0] if self.data.ndim == 4 else 1

    @property
    def napari_affine(self) -> Affine:
        """The ``affine`` of a napari layer: 4×4 as :attr:`Grid.napari_affine`, 5×5 with time.

        Time comes first, in seconds, or in frames where the time step is unknown.
        """
        affine = self.grid.napari_affine
        if self.data.ndim == 3:
            return affine
        with_time = np.eye(5)
        with_time[0, 0] = self.time_step or 1.0
        with_time[1:, 1:] = affine
        return with_time

    def along_world_axes(self) -> Volume:
        """The same volume with z, y, x the voxel axes nearest to the world's S, A, R.

        Axes are reordered, never reversed, and the array is a view: every voxel keeps its
        place in the world. napari slices a layer by its array axes, so a sagittal scan has to
        be reordered before it lies on an axial one.
        """
        # Direction cosines of the array axes (columns) along S, A, R (rows).
        cosines = np.abs(self.grid.index_affine[2::-1, :3] / self.spacing)
        order = max(permutations(range(3)), key=lambda axes: cosines[range(3), axes].prod())
        affine = self.affine.copy()
        affine[:, 2::-1] = self.grid.index_affine[:, list(order)]
        time = self.data.ndim - 3
        axes = (*range(time), *(axis + time for axis in order))
        return replace(self, data=self.data.transpose(axes), affine=affine)

    def frame(self, number: int) -> Volume:
        """One frame as a 3D volume.

        Raises
        ------
        UsageError
            If there is no such frame.
        """
        if not 0 <= number < self.frames:
            raise UsageError(
                f"{self.name}: there is no frame {number}; it has frames 0 to {self.frames - 1}."
            )
        if self.data.ndim == 3:
            return self
        return replace(self, data=self.data[number], time_step=0.0)

    def crop(self, box: Box) -> Volume:
        """The part inside a box of voxels."""
        grid = self.grid.crop(box)
        return replace(self, data=self.data[(..., *box.slices)], affine=grid.affine)


def _shape(numbers: Any) -> Shape:
    z, y, x = numbers
    return int(z), int(y), int(x)


def _round(value: float) -> int:
    """Round half up, as the published networks' users expect of 2.5·n; never to even."""
    return math.floor(value + 0.5)
