"""Geometry: the one place where affines, spacings, shapes and boxes are computed.

What a window shows of a slice is in :mod:`napari_arssr.slice_view`.

Arrays are (z, y, x). Affines are NIfTI's: 4×4, (i, j, k, 1) → RAS+ millimetres, with
(i, j, k) = (x, y, z). :class:`Grid` and :class:`Volume` hold both, so that nobody else has
to remember. Grids are cell-centred: a grid spans the outer faces of its outer voxels, and
voxel *n* covers the indices from *n* - ½ to *n* + ½.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import NoFrame, UsageError
from napari_arssr.lazy import depth, is_loaded, most_to_load

__all__ = [
    "MOST_VOXELS",
    "RAS_TO_LPS",
    "Affine",
    "Box",
    "Grid",
    "IndexMap",
    "Shape",
    "Triple",
    "Volume",
    "as_shape",
    "as_triple",
    "in_span",
    "nearest_voxel",
    "rescaled",
    "round_half_up",
]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]

# Relative departure from a diagonal below which two grids count as aligned. Affines read from
# float32 headers are good to about 1e-7; a shear of 1e-5 moves the far corner of a 500-voxel
# volume by 1/200 voxel.
_ALIGNED = 1e-5

# In voxels: what is nearer is at the same place. Float32 headers and poses are no better.
_SLACK = 1e-3

# Where a volume's metadata keep the order that its axes have in the file.
_STORAGE_ORDER = "storage_order"

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Millimetres of NIfTI, nibabel and napari to those of ITK and DICOM, and back."""

# Along an axis; beyond it, and long before floats end, a request is a slip of the keyboard.
MOST_VOXELS = 2**40


def in_span(coordinates: npt.NDArray[np.floating[Any]], size: int) -> npt.NDArray[np.bool_]:
    """Which voxel indices along an axis of ``size`` voxels lie between its outer faces."""
    return np.asarray((coordinates > -0.5 - _SLACK) & (coordinates < size - 0.5 + _SLACK))


def nearest_voxel(coordinates: npt.NDArray[np.floating[Any]], size: int) -> npt.NDArray[np.int64]:
    """The voxel, along an axis of ``size`` voxels, that is nearest to each index."""
    # A centre on a face counts with the next voxel, however its index was rounded.
    return np.clip(np.floor(coordinates + 0.5 + 1e-6), 0, size - 1).astype(np.int64)


def rescaled(index: npt.NDArray[Any], ratio: float) -> npt.NDArray[np.float64]:
    """Voxel indices along an axis in terms of voxels ``ratio`` times smaller, of the same span."""
    return np.asarray((index + 0.5) * ratio - 0.5)


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

    @classmethod
    def around(cls, mask: npt.NDArray[np.bool_]) -> Box:
        """The smallest box that holds every voxel of a mask (z, y, x), which is not empty."""
        seen = [np.flatnonzero(mask.any(axis=(axis - 2, axis - 1))) for axis in range(3)]
        return cls(as_shape(one[0] for one in seen), as_shape(one[-1] + 1 for one in seen))

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

    def grown(self, margin: int | Shape, within: Shape) -> Box:
        """The box with ``margin`` voxels more on every side, clipped to a shape (z, y, x).

        Three margins are one for both sides of each axis.
        """
        margins = (margin,) * 3 if isinstance(margin, int) else margin
        return Box(
            as_shape(max(a - m, 0) for a, m in zip(self.start, margins, strict=True)),
            as_shape(min(b + m, n) for b, m, n in zip(self.stop, margins, within, strict=True)),
        )

    def relative_to(self, start: Shape) -> Box:
        """The same box counted from another voxel."""
        return Box(
            as_shape(a - s for a, s in zip(self.start, start, strict=True)),
            as_shape(b - s for b, s in zip(self.stop, start, strict=True)),
        )

    def with_range(self, axis: int, start: int, stop: int) -> Box:
        """The box with another start and stop along an axis."""
        starts, stops = list(self.start), list(self.stop)
        starts[axis], stops[axis] = start, stop
        return Box(as_shape(starts), as_shape(stops))

    def common(self, other: Box) -> Box | None:
        """The voxels that lie in both; None if there is none."""
        start = as_shape(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = as_shape(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def blocks(self, shape: Shape) -> Iterator[Box]:
        """Cut the box into blocks of at most ``shape`` voxels, in C order."""
        starts = [
            range(a, b, step) for a, b, step in zip(self.start, self.stop, shape, strict=True)
        ]
        for corner in product(*starts):
            stop = (min(a + step, b) for a, step, b in zip(corner, shape, self.stop, strict=True))
            yield Box(as_shape(corner), as_shape(stop))


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
            and self.departure(other.affine) < _SLACK
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

    @classmethod
    def from_napari(cls, shape: Sequence[int], affine: npt.ArrayLike) -> Grid:
        """The grid of a napari layer: the inverse of :attr:`napari_affine`.

        Parameters
        ----------
        shape : two or three ints
            (y, x) or (z, y, x); a plane becomes a slice, as thick as its pixels are wide.
        affine : (3, 3) or (4, 4) array
            Voxel indices in the order of ``shape``, and 1, → millimetres along the world's
            last axes, of I, P, L.

        Raises
        ------
        UsageError
            If the two do not fit together, or the affine cannot be one.
        """
        matrix = np.array(affine, dtype=np.float64)
        axes = len(shape)
        if axes not in (2, 3) or matrix.shape != (axes + 1, axes + 1):
            raise UsageError(f"An affine of shape {matrix.shape} does not place {axes} axes.")
        if axes == 2:
            plane, matrix = matrix, np.eye(4)
            matrix[1:, 1:] = plane
            matrix[0, 0] = np.linalg.norm(plane[:2, 1])
        ras = matrix.copy()
        ras[:3] = 0.0 - matrix[2::-1]
        nifti = ras.copy()
        nifti[:, :3] = ras[:, 2::-1]
        return cls(as_shape((1, *shape)[-3:]), nifti)

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
        affine[:3] = 0.0 - affine[2::-1]  # 0 - 0 is 0, and -0 is not
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

    @property
    def faces(self) -> npt.NDArray[np.float64]:
        """Corners of the span, (8, 3), RAS+ millimetres: half a voxel beyond :attr:`corners`."""
        return self.world(list(product(*((-0.5, n - 0.5) for n in self.shape))))

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

    @property
    def slice_axis(self) -> int:
        """The axis with the largest voxel side, 0 to 2 for (z, y, x): across thick slices.

        The first of several equal ones, to within a hundredth.
        """
        sides = np.array(self.spacing)
        return int(np.argmax(sides >= 0.99 * sides.max()))

    @property
    def itk_geometry(self) -> tuple[list[float], list[float], list[float]]:
        """Origin, spacing and direction (row-major 3×3) as ITK has them: LPS, axes (i, j, k).

        Raises
        ------
        UsageError
            If the voxel axes are not at right angles: ITK knows no shear.
        """
        lps = RAS_TO_LPS @ self.affine
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        direction = lps[:3, :3] / steps
        if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
            raise UsageError(
                "its voxel axes are not at right angles, and ITK, asked here, knows no shear"
            )
        return lps[:3, 3].tolist(), steps.tolist(), direction.ravel().tolist()

    def slice_outlines(self, axis: int) -> npt.NDArray[np.float64]:
        """The corners of each slice along an axis, going around it: (n, 4, 3), RAS+ millimetres.

        In the middle of the slice's thickness, and out to its outer faces.
        """
        rows, columns = (other for other in range(3) if other != axis)
        index = np.empty((self.shape[axis], 4, 3))
        index[..., axis] = np.arange(self.shape[axis])[:, None]
        index[..., rows] = np.array([0, 1, 1, 0]) * self.shape[rows] - 0.5
        index[..., columns] = np.array([0, 0, 1, 1]) * self.shape[columns] - 0.5
        return self.world(index)

    def moved(self, motion: npt.ArrayLike) -> Grid:
        """The same voxels after a motion: 4×4, RAS+ millimetres to RAS+ millimetres."""
        return Grid(self.shape, np.asarray(motion, dtype=np.float64) @ self.affine)

    def motion_from(self, before: Grid) -> Affine:
        """The motion that brought ``before`` here, voxel to voxel; see :meth:`moved`."""
        return np.asarray(self.affine @ np.linalg.inv(before.affine))

    def holds(self, index: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Which voxel indices (…, 3), (z, y, x), lie in the grid's span."""
        z, y, x = (in_span(index[..., axis], size) for axis, size in enumerate(self.shape))
        return z & y & x

    def departure(self, affine: npt.ArrayLike) -> float:
        """How far another affine of the same shape moves a corner, in voxels along an axis.

        Corners of the span: centres of a single slice do not tell how thick it is.
        """
        moved = Grid(self.shape, np.asarray(affine)).faces
        return float(np.abs(self.index(moved) - self.index(self.faces)).max())

    def with_shape(self, shape: Sequence[int]) -> Grid:
        """The same span cut into another number of voxels, ``shape`` in (z, y, x) order.

        The outer faces stay where they are: n voxels of size s become n′ of size n·s/n′, and
        the first centre moves by (s′ - s)/2 along each axis.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise UsageError(f"A shape needs three sizes of at least 1, not {tuple(shape)}.")
        if max(shape) > MOST_VOXELS:
            raise UsageError(
                f"A shape of more than {MOST_VOXELS} voxels along an axis is too large."
            )
        new = as_shape(shape)
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
        if max(sizes) > MOST_VOXELS:
            raise UsageError(f"scale {max(factors):g} is too large for any volume.")
        return self.with_shape([max(1, round_half_up(size)) for size in sizes])

    def with_spacing(self, spacing: float | Sequence[float]) -> Grid:
        """The same span in voxels as near as can be to ``spacing`` (z, y, x) millimetres."""
        steps = as_triple(spacing, "spacing")
        if min(steps) <= 0:
            raise UsageError(f"spacing must be above 0 mm, not {spacing!r}.")
        sizes = [n * old / new for n, old, new in zip(self.shape, self.spacing, steps, strict=True)]
        if max(sizes) > MOST_VOXELS:
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

    def thinned(self, steps: Shape) -> Grid:
        """Every n-th voxel along each axis, the first included; ``steps`` n in (z, y, x) order."""
        if min(steps) < 1:
            raise UsageError(f"Every n-th voxel needs an n of at least 1, not {tuple(steps)}.")
        shape = (-(-n // step) for n, step in zip(self.shape, steps, strict=True))
        return Grid(as_shape(shape), self.affine @ np.diag([*steps[::-1], 1.0]))

    def halving(self) -> Shape:
        """Which axes to halve so that voxels come nearer to cubes: 2 for them, 1 for the others.

        Those whose voxels are at most √2 times as long as the shortest ones; axes of one voxel
        are not looked at.
        """
        axes = [axis for axis in range(3) if self.shape[axis] > 1]
        longest = math.sqrt(2) * min((self.spacing[axis] for axis in axes), default=0.0)
        z, y, x = (2 if axis in axes and self.spacing[axis] <= longest else 1 for axis in range(3))
        return z, y, x

    def pooled(self, factors: Shape) -> Grid:
        """The grid of blocks of so many voxels along (z, y, x), the first at the first voxel.

        Where they do not divide the shape, the last blocks reach beyond the span.
        """
        if min(factors) < 1:
            raise UsageError(f"A block has at least 1 voxel along each axis, not {factors}.")
        blocks = self.thinned(factors)
        affine = blocks.affine.copy()
        affine[:3, 3] = self.world([(n - 1) / 2 for n in factors])
        return Grid(blocks.shape, affine)

    @property
    def is_upright(self) -> bool:
        """Whether the axes run along I, P and L, as those of a stack do that knows no others."""
        directions = self.napari_affine[:3, :3] / np.array(self.spacing)
        return bool(np.abs(directions - np.eye(3)).max() < _ALIGNED)

    def box_in(self, other: Grid, box: Box) -> Box:
        """The voxels of ``other``, a grid of the same span, whose centres lie in ``box``.

        Boxes that tile this grid give boxes that tile the other.
        """
        ratio = [m / n for n, m in zip(self.shape, other.shape, strict=True)]
        # Centre (j + ½)/r - ½ ≥ a - ½, so j ≥ a·r - ½; the 1e-9 keeps exact halves exact.
        start = [math.ceil(a * r - 0.5 - 1e-9) for a, r in zip(box.start, ratio, strict=True)]
        stop = [math.ceil(b * r - 0.5 - 1e-9) for b, r in zip(box.stop, ratio, strict=True)]
        return Box(as_shape(start), as_shape(stop))

    def box_around(self, corner: Sequence[float], opposite: Sequence[float]) -> Box:
        """The voxels touched by a world-aligned block between two corners, RAS+ millimetres.

        Clipped to the grid; a block outside it raises :class:`UsageError`.
        """
        ends = list(zip(as_triple(corner, "box"), as_triple(opposite, "box"), strict=True))
        if any(a == b for a, b in ends):
            raise UsageError(f"The box from {tuple(corner)} to {tuple(opposite)} mm is empty.")
        box = self.box_touched(self.index(np.array(list(product(*ends)))))
        if box is None:
            raise UsageError(
                f"The box from {tuple(corner)} to {tuple(opposite)} mm lies outside the volume."
            )
        return box

    def box_touched(self, points: npt.ArrayLike) -> Box | None:
        """The voxels touched by the block that spans points, clipped to the grid.

        Parameters
        ----------
        points : (p, 3) array
            Voxel indices (z, y, x); fractions count.

        Returns
        -------
        Box or None
            None if the block lies outside, or is as thin as a face between voxels.
        """
        index = np.asarray(points, dtype=np.float64)
        low = np.floor(index.min(axis=0) + 0.5 + 1e-6)
        high = np.ceil(index.max(axis=0) + 0.5 - 1e-6)
        # Clipped as floats: corners far outside fit in no integer.
        box = Box(as_shape(np.clip(low, 0, self.shape)), as_shape(np.clip(high, 0, self.shape)))
        return box if min(box.shape) >= 1 else None

    def box_snapped(self, points: npt.ArrayLike) -> Box | None:
        """The block that spans points, its faces moved to the nearest between voxels.

        So that a box which is moved keeps its size. At least one voxel along each axis;
        clipped to the grid.

        Parameters
        ----------
        points : (p, 3) array
            Voxel indices (z, y, x); fractions count.

        Returns
        -------
        Box or None
            None if the block lies outside.
        """
        index = np.asarray(points, dtype=np.float64)
        low, high = index.min(axis=0), index.max(axis=0)
        start, stop = np.floor(low + 1), np.floor(high + 1)
        start = np.where(start < stop, start, np.floor((low + high + 1) / 2))
        stop = np.maximum(start + 1, stop)
        # Clipped as floats: corners far outside fit in no integer.
        box = Box(as_shape(np.clip(start, 0, self.shape)), as_shape(np.clip(stop, 0, self.shape)))
        return box if min(box.shape) >= 1 else None

    def cubed(self, box: Box, axis: int, number: int) -> Box:
        """The box as deep along ``axis`` as the shorter of its other sides is long.

        In millimetres, as near as whole voxels come to it; around voxel ``number`` of the axis,
        and moved inwards where it would leave the grid.
        """
        sides = [n * step for n, step in zip(box.shape, self.spacing, strict=True)]
        shorter = min(side for other, side in enumerate(sides) if other != axis)
        length = min(max(1, round_half_up(shorter / self.spacing[axis])), self.shape[axis])
        start = min(max(number - length // 2, 0), self.shape[axis] - length)
        return box.with_range(axis, start, start + length)


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
    time_start : float
        When the first frame is: seconds, or frames where the time step is unknown.

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
    time_start: float = 0.0

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

    @classmethod
    def from_napari(
        cls,
        data: npt.NDArray[Any],
        affine: npt.ArrayLike,
        units: Sequence[float | None],
        *,
        series: bool = False,
        name: str = "layer",
        metadata: dict[str, Any] | None = None,
    ) -> Volume:
        """The volume of a napari layer: the inverse of :attr:`napari_affine`.

        Parameters
        ----------
        data : array
            (y, x), which becomes one slice, or (z, y, x); with time before them if ``series``.
        affine : (n + 1, n + 1) array
            Indices of ``data``, and 1, → world: time if ``series``, then I, P, L.
        units : n floats
            What 1 is along each axis of the world: millimetres, or seconds for time. None for
            a time that is not stated: steps of 1 are then frames of unknown length (0), and
            any other step is in seconds.
        series : bool
        name : str
        metadata : dict, optional

        Raises
        ------
        UsageError
            If the layer is no volume, time is mixed with space or runs backwards, or the affine
            cannot be one.
        """
        matrix = np.array(affine, dtype=np.float64)
        if data.ndim - series not in (2, 3):
            raise UsageError(
                f"{name} has {data.ndim} axes; a volume has z, y, x, or t, z, y, x, or is one "
                "plane."
            )
        if matrix.shape != (data.ndim + 1,) * 2 or len(units) != data.ndim:
            raise UsageError(f"{name}: the affine or the units are not those of {data.ndim} axes.")
        if 0 in data.shape:
            raise UsageError(f"{name} is empty, its shape {tuple(data.shape)}.")
        if not np.isfinite(matrix).all():
            raise UsageError(f"{name}: its transforms are not all finite numbers; set them anew.")
        time_step = time_start = 0.0
        if series:
            step, unit = float(matrix[0, 0]), units[0]
            mixed = np.abs([*matrix[0, 1:-1], *matrix[1:-1, 0]]).max()
            if not step > 0 or mixed > 1e-9 * np.abs(matrix[:-1, :-1]).max():
                raise UsageError(
                    f"{name}: its transforms turn or mirror the axis of time; undo that, "
                    "for example with layer.affine = None."
                )
            time_step = step * unit if unit is not None else 0.0 if step == 1 else step
            time_start = float(matrix[0, -1]) * (1.0 if unit is None else unit)
            matrix, units = matrix[1:, 1:], units[1:]
        matrix = np.diag([*(1.0 if unit is None else unit for unit in units), 1.0]) @ matrix
        try:
            grid = Grid.from_napari(data.shape[series:], matrix)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        if data.ndim - series == 2:
            data = data[:, None] if series else data[None]
        return cls(data, grid.affine, time_step, name, dict(metadata or {}), time_start)

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
        return self.napari_affine_in(1.0)

    def napari_affine_in(self, unit: float) -> Affine:
        """:attr:`napari_affine` with lengths in units of ``unit`` millimetres."""
        affine = self.grid.in_millimetres(1 / unit).napari_affine
        if self.data.ndim == 3:
            return affine
        with_time = np.eye(5)
        with_time[0, 0] = self.time_step or 1.0
        with_time[0, -1] = self.time_start
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
        return self.transposed(order)

    def transposed(self, order: Sequence[int]) -> Volume:
        """The same volume with its voxel axes in another order; the array is a view.

        Parameters
        ----------
        order : three ints
            For each new axis the old one, 0 to 2 for (z, y, x); time stays first.
            :meth:`in_storage_order` finds back.
        """
        if sorted(order) != [0, 1, 2]:
            raise UsageError(f"An order of axes is a permutation of 0, 1, 2, not {tuple(order)}.")
        affine = self.affine.copy()
        affine[:, 2::-1] = self.grid.index_affine[:, list(order)]
        time = self.data.ndim - 3
        axes = (*range(time), *(axis + time for axis in order))
        stored = tuple(list(order).index(axis) for axis in self._storage_order)
        return replace(
            self,
            data=self.data.transpose(axes),
            affine=affine,
            metadata=self.metadata | {_STORAGE_ORDER: stored},
        )

    def in_storage_order(self) -> Volume:
        """The volume with its voxel axes as they were before any :meth:`transposed`."""
        return self.transposed(self._storage_order)

    @property
    def _storage_order(self) -> tuple[int, ...]:
        """For each axis of the file the axis of this array."""
        order = self.metadata.get(_STORAGE_ORDER)
        # Metadata pass through other hands: what is no order says nothing.
        if isinstance(order, Sequence) and sorted(map(str, order)) == ["0", "1", "2"]:
            return tuple(int(axis) for axis in order)
        return 0, 1, 2

    def frame(self, number: int) -> Volume:
        """One frame as a 3D volume.

        Raises
        ------
        NoFrame
            If there is no such frame; a UsageError.
        """
        check_frame(self.name, number, self.frames)
        if self.data.ndim == 3:
            return self
        return replace(self, data=self.data[number], time_step=0.0, time_start=0.0)

    def slab_planes(self, voxels: int) -> int:
        """Planes of a slab of about so many voxels.

        Of what is not in memory, those of whole chunks, unless these are too large to be held.
        """
        planes, rows, columns = self.grid.shape
        thickness = min(planes, max(1, voxels // (rows * columns)))
        if not is_loaded(self.data):
            chunk = depth(self.data)
            if chunk * rows * columns * self.data.dtype.itemsize <= most_to_load():
                thickness = max(chunk, thickness - thickness % chunk)
        return thickness

    def slabs(self, voxels: int) -> Iterator[Volume]:
        """The planes of a frame, then those of the next, in slabs of about ``voxels``.

        As 3D volumes whose arrays are views: what lies in a file is read slab by slab.
        """
        _, rows, columns = self.grid.shape
        thickness = self.slab_planes(voxels)
        for number in range(self.frames):
            frame = self.frame(number)
            for box in frame.grid.box.blocks((thickness, rows, columns)):
                yield frame.crop(box)

    def thinned(self, steps: Shape) -> Volume:
        """Every n-th voxel along each axis, as :meth:`Grid.thinned`; the array is a view."""
        grid = self.grid.thinned(steps)
        z, y, x = steps
        return replace(self, data=self.data[..., ::z, ::y, ::x], affine=grid.affine)

    def crop(self, box: Box) -> Volume:
        """The part inside a box of voxels."""
        grid = self.grid.crop(box)
        return replace(self, data=self.data[(..., *box.slices)], affine=grid.affine)


def check_frame(name: str, number: int, frames: int) -> None:
    """See that a volume called ``name`` has a frame of that number.

    Raises
    ------
    NoFrame
        A UsageError.
    """
    if not 0 <= number < frames:
        raise NoFrame(f"{name}: there is no frame {number}; it has frames 0 to {frames - 1}.")


def as_shape(numbers: Iterable[Any]) -> Shape:
    """Three numbers along (z, y, x) as a tuple of ints, fractions cut off."""
    z, y, x = numbers
    return int(z), int(y), int(x)


def round_half_up(value: float) -> int:
    """Round half up, as the published networks' users expect of 2.5·n; never to even."""
    return math.floor(value + 0.5)
