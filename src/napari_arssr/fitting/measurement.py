"""What stacks of thick slices see of a volume, as a linear operator and its adjoint.

A voxel of a slice is the mean of the volume over the slice profile: a few points across the
slice (a quadrature of the :class:`~napari_arssr.degradation.ScannerModel`), each interpolated.
A stack that lies along the volume's axes is three small matrices, one per axis, as the scanner
model is. A stack that is turned, or whose slices moved, is one sparse matrix.

Both interpolate alike: cubic convolution (Keys, IEEE TASSP 1981) halfway between the volume's
voxels, and linear interpolation on that finer lattice. At the voxels' own places it is exact;
between them it is nearly as good as cubic convolution with its 64 terms, for 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import UsageError
from napari_arssr.fitting.poses import FloatArray
from napari_arssr.fitting.stacks import Stack
from napari_arssr.memory import require
from napari_arssr.volume import Grid, in_span

__all__ = [
    "Measurement",
    "Values",
    "interpolation_matrix",
    "nothing_counts",
    "profile_points",
    "quadrature",
    "refine",
    "refine_adjoint",
    "refine_axis",
    "rows_inside",
]

Array = npt.NDArray[np.float32]
Values = list[Array]
"""For each stack, one number for each of its voxels that count, in C order."""

_NOTHING = 1e-2  # of the largest weight of a profile: what is below changes nothing visible
_SAME = 1e-6  # motions whose matrices differ less are one
# Share of a profile that lies in the volume where a voxel counts: of a box all of it, for its
# points weigh more than the rest; the faint ends of the others may read what is at the border.
_WHOLE = 0.98
# Voxels whose sides differ less are taken for cubes of the finest: more points than are needed, and
# with sides of 0.87 and 1 mm a reconstruction 0.1 dB better.
_CUBES = 1.25


def quadrature(
    scanner: ScannerModel, ratio: float, grid: Grid, step: float
) -> tuple[FloatArray, FloatArray]:
    """Points and weights that stand for a slice profile.

    Parameters
    ----------
    scanner : ScannerModel
    ratio : float
        Voxels of the volume per voxel of the stack, along this axis. Where it rounds to 1
        the voxel is its centre: an axis that keeps its voxels is not measured again.
    grid : Grid
        Of the volume: a profile of twice its length lies beyond it wherever its middle is, and so
        does any longer one, which is cut to that, for nobody could count its points.
    step : float
        Voxel size of the stack along this axis, millimetres.

    Returns
    -------
    offsets, weights : (k,) arrays
        Distances from the centre in voxels of the stack; the weights sum to 1.
    """
    steps = max(1, round(ratio))
    if steps == 1 or scanner.kind == "cubic":
        return np.zeros(1), np.ones(1)
    longest = 2 * float(np.linalg.norm(grid.extent)) / step
    scanner = replace(scanner, width=min(scanner.width, longest))
    reach = 4 if scanner.kind == "kspace" else 2
    high = steps * (2 * int(np.ceil(reach * scanner.width)) + 1)
    middle = (high - 1) / 2
    row = scanner.rows(np.array([middle]), steps, high)[0].astype(np.float64)
    kept = np.abs(row) > _NOTHING * np.abs(row).max()
    return (np.arange(high)[kept] - middle) / steps, row[kept] / row[kept].sum()


def interpolation_matrix(coordinates: FloatArray, size: int) -> Array:
    """The interpolation along one axis, (m, size): border values beyond the outer centres."""
    fine = refine_axis(np.eye(size, dtype=np.float32), 0)
    place = 2 * np.clip(coordinates, 0, size - 1)
    low = np.clip(np.floor(place).astype(np.int64), 0, max(len(fine) - 2, 0))
    share = (place - low).astype(np.float32)[:, None]
    high = np.minimum(low + 1, len(fine) - 1)
    return np.asarray((1 - share) * fine[low] + share * fine[high], dtype=np.float32)


def refine_axis(array: Array, axis: int) -> Array:
    """Values at n voxels and halfway between them: 2n - 1 along ``axis``."""
    moved = np.moveaxis(array, axis, 0)
    padded = np.concatenate([moved[:1], moved, moved[-1:]])
    result = np.empty((2 * len(moved) - 1, *moved.shape[1:]), dtype=np.float32)
    result[::2] = moved
    inner = padded[1:-2] + padded[2:-1]
    outer = padded[:-3] + padded[3:]
    result[1::2] = (9 * inner - outer) / 16
    return np.moveaxis(result, 0, axis)


def _refine_axis_adjoint(array: Array, axis: int) -> Array:
    moved = np.moveaxis(array, axis, 0)
    between = moved[1::2] / 16
    result = np.zeros(((len(moved) + 1) // 2 + 2, *moved.shape[1:]), dtype=np.float32)
    result[1:-1] = moved[::2]
    result[1:-2] += 9 * between
    result[2:-1] += 9 * between
    result[:-3] -= between
    result[3:] -= between
    result[1] += result[0]
    result[-2] += result[-1]
    return np.moveaxis(result[1:-1], 0, axis)


def refine(volume: Array) -> Array:
    """A volume at its voxels and halfway between them, along all three axes."""
    for axis in range(3):
        volume = refine_axis(volume, axis)
    return np.ascontiguousarray(volume)


def refine_adjoint(fine: Array) -> Array:
    """The transpose of :func:`refine`."""
    for axis in range(3):
        fine = _refine_axis_adjoint(fine, axis)
    return np.ascontiguousarray(fine)


_Profile = list[tuple[FloatArray, FloatArray]]  # a quadrature along each axis of a stack


def profile_points(
    grid: Grid, stack: Stack, motions: FloatArray, scanner: ScannerModel | None
) -> tuple[FloatArray, FloatArray]:
    """What a voxel of a stack is the weighted mean of.

    Parameters
    ----------
    grid : Grid
        Of the volume.
    stack : Stack
    motions : (slices, 4, 4) array
    scanner : ScannerModel, optional
        The slice profile; without one a voxel is its centre.

    Returns
    -------
    offsets : (k, 3) array
        Distances from the voxel's centre in voxels of the stack.
    weights : (k,) array
        Their sum is 1.
    """
    if scanner is None:
        return np.zeros((1, 3)), np.ones(1)
    return _points_of(_profile(grid, stack, motions, scanner))


def rows_inside(
    grid: Grid,
    stack: Stack,
    motions: FloatArray,
    points: tuple[FloatArray, FloatArray],
) -> npt.NDArray[np.bool_]:
    """Which voxels of a stack, of those that count, see nothing but the volume.

    Parameters
    ----------
    grid : Grid
        Of the volume.
    stack : Stack
    motions : (slices, 4, 4) array
    points : pair of (k, 3) and (k,) arrays
        See :func:`profile_points`.
    """
    offsets, weights = points
    result = np.empty(len(stack.rows), dtype=bool)
    for number, part in stack.slice_rows:
        places = _places(grid, stack, motions[number], part=part, offsets=offsets)
        result[part] = _is_whole(grid.holds(places), weights)
    return result


def nothing_counts(grid: Grid, scanner: ScannerModel | None) -> UsageError:
    """What is to be said where no voxel of any stack lies in the volume with its profile."""
    shape = " × ".join(str(n) for n in reversed(grid.shape))
    sides = " × ".join(f"{side:.4g}" for side in reversed(grid.spacing))
    volume = f"{shape} voxels of {sides} mm"
    if scanner is None:
        return UsageError(f"No voxel of any stack lies in the {volume}; give a larger mask.")
    return UsageError(
        f"The slice profile {scanner.text} reaches from every voxel of the stacks beyond the "
        f"{volume} that are to be fitted; choose a narrower one, slice-profile:1 for instance, or "
        "a larger mask."
    )


def _profile(grid: Grid, stack: Stack, motions: FloatArray, scanner: ScannerModel) -> _Profile:
    pairs = zip(_ratios(grid, stack, motions), stack.volume.spacing, strict=True)
    return [quadrature(scanner, ratio, grid, step) for ratio, step in pairs]


def _ratios(grid: Grid, stack: Stack, motions: FloatArray) -> list[float]:
    """Voxels of the volume per voxel of a stack, along each axis of the stack."""
    finest = min(grid.spacing)
    if max(grid.spacing) < _CUBES * finest:
        return [step / finest for step in stack.volume.spacing]
    matrix = stack.volume.grid.moved(motions[0]).map_into(grid).matrix
    return [float(np.linalg.norm(matrix[:3, axis])) for axis in range(3)]


def _points_of(profile: _Profile) -> tuple[FloatArray, FloatArray]:
    offsets = np.stack(np.meshgrid(*(p[0] for p in profile), indexing="ij"), -1).reshape(-1, 3)
    return offsets, np.einsum("i,j,k->ijk", *(p[1] for p in profile)).ravel()


def _places(
    grid: Grid, stack: Stack, motion: FloatArray, *, part: slice, offsets: FloatArray
) -> FloatArray:
    """Voxel indices of the grid, (rows, k, 3), that a slice's profiles read."""
    matrix = stack.volume.grid.moved(motion).map_into(grid).matrix
    index = np.stack(np.unravel_index(stack.rows[part], stack.volume.grid.shape), axis=-1)
    centres = index @ matrix[:3, :3].T + matrix[:3, 3]
    return np.asarray(centres[:, None] + offsets @ matrix[:3, :3].T)


def _share_inside(held: npt.NDArray[np.bool_], weights: FloatArray) -> FloatArray:
    """Share of a profile whose points are held, (…, k) of (k,)."""
    sizes = np.abs(weights)
    return np.asarray(held @ sizes / sizes.sum())


def _is_whole(held: npt.NDArray[np.bool_], weights: FloatArray) -> npt.NDArray[np.bool_]:
    return np.asarray(_share_inside(held, weights) > _WHOLE)


# Memory while a sparse measurement is made, in sizes of what it is then.
_WHILE_MADE = 1.25


class _Part(Protocol):
    """One stack's share of the measurement."""

    @property
    def inside(self) -> Array: ...

    @property
    def needs_fine(self) -> bool: ...

    def forward(self, volume: Array) -> Array: ...

    def adjoint(self, values: Array) -> Array: ...


@dataclass(frozen=True, eq=False)
class _Separable:
    """A stack along the volume's axes: LR = A_z ⊗ A_y ⊗ A_x · HR."""

    matrices: tuple[Array | None, Array | None, Array | None]  # None is the identity
    order: tuple[int, int, int]  # of the stack's axes in terms of the volume's
    shape: tuple[int, int, int]  # of the stack
    rows: npt.NDArray[np.int64]
    inside: Array
    needs_fine: bool = False

    def forward(self, volume: Array) -> Array:
        seen = _along_axes(self.matrices, volume)
        return seen.transpose(self.order).ravel()[self.rows]

    def adjoint(self, values: Array) -> Array:
        full = np.zeros(int(np.prod(self.shape)), dtype=np.float32)
        full[self.rows] = values
        back = np.argsort(self.order)
        seen = full.reshape(self.shape).transpose(back)
        transposed = tuple(None if m is None else m.T for m in self.matrices)
        return np.ascontiguousarray(_along_axes(transposed, seen))


@dataclass(frozen=True, eq=False)
class _Sparse:
    """A stack anywhere: every voxel a row, over the lattice twice as fine."""

    matrix: Any  # scipy.sparse.csr_array
    inside: Array
    needs_fine: bool = True

    def forward(self, volume: Array) -> Array:
        return np.asarray(self.matrix @ volume.ravel())

    def adjoint(self, values: Array) -> Array:
        return np.asarray(self.matrix.T @ values)


def _along_axes(matrices: Sequence[Array | None], array: Array) -> Array:
    """Matrices along the axes of an array, the one that shrinks most first."""
    given = [axis for axis, m in enumerate(matrices) if m is not None]

    def growth(axis: int) -> float:
        matrix = matrices[axis]
        assert matrix is not None
        return matrix.shape[0] / matrix.shape[1]

    result = array
    for axis in sorted(given, key=growth):
        matrix = matrices[axis]
        assert matrix is not None
        result = _along(matrix, result, axis)
    return result


def _along(matrix: Array, array: Array, axis: int) -> Array:
    """A matrix along one axis of a (z, y, x) array, without moving that axis."""
    if axis == 0:
        flat = matrix @ np.ascontiguousarray(array).reshape(len(array), -1)
        return np.asarray(flat.reshape(-1, *array.shape[1:]))
    return np.asarray(array @ matrix.T if axis == 2 else np.matmul(matrix, array))


class Measurement:
    """What all stacks see of a volume.

    Parameters
    ----------
    grid : Grid
        Of the volume; at least two voxels along every axis.
    stacks : sequence of Stack
    motions : sequence of (n, 4, 4) arrays
        For each stack, a motion for each of its slices.
    scanner : ScannerModel
        The slice profile.

    Attributes
    ----------
    inside : list of arrays
        For each voxel that counts 1, or 0 where its profile reaches beyond the volume.

    Raises
    ------
    UsageError
        If the volume is too thin, or no voxel's profile lies in it.
    """

    def __init__(
        self,
        grid: Grid,
        stacks: Sequence[Stack],
        motions: Sequence[FloatArray],
        scanner: ScannerModel,
    ) -> None:
        if min(grid.shape) < 2:
            raise UsageError(
                f"A volume to be fitted needs two voxels along every axis, not {grid.shape}; "
                "ask for a smaller voxel size."
            )
        self.grid = grid
        self.stacks = list(stacks)
        self.motions = [np.array(motion) for motion in motions]
        self.scanner = scanner
        pairs = list(zip(self.stacks, self.motions, strict=True))
        self._profiles = [_profile(grid, stack, motion, scanner) for stack, motion in pairs]
        places = zip(pairs, self._profiles, strict=True)
        diagonal = float(np.linalg.norm(grid.extent))
        if all(_length(stack, one) > diagonal for (stack, _), one in places):
            raise nothing_counts(grid, scanner)  # before all its points are looked for
        self._parts = [
            _part_of(grid, stack, motion, profile)
            for (stack, motion), profile in zip(pairs, self._profiles, strict=True)
        ]
        if not any(part.inside.any() for part in self._parts):
            raise nothing_counts(grid, scanner)

    @property
    def inside(self) -> Values:
        """See the class."""
        return [part.inside for part in self._parts]

    def moved(self, number: int, motions: FloatArray) -> Measurement:
        """The same with other motions of one stack; the others' work is kept."""
        result = object.__new__(Measurement)
        result.grid, result.stacks, result.scanner = self.grid, self.stacks, self.scanner
        result.motions = list(self.motions)
        result.motions[number] = np.array(motions)
        result._profiles = self._profiles
        result._parts = list(self._parts)
        result._parts[number] = _part_of(
            self.grid, self.stacks[number], motions, self._profiles[number]
        )
        return result

    def forward(self, volume: Array) -> Values:
        """What the stacks' voxels see of a volume (z, y, x)."""
        fine = refine(volume) if any(part.needs_fine for part in self._parts) else volume
        return [part.forward(fine if part.needs_fine else volume) for part in self._parts]

    def one(self, number: int, volume: Array) -> Array:
        """What one stack's voxels see of a volume."""
        part = self._parts[number]
        return part.forward(refine(volume) if part.needs_fine else volume)

    def adjoint(self, values: Values) -> Array:
        """The transpose of :meth:`forward`, a volume (z, y, x)."""
        result = np.zeros(self.grid.shape, dtype=np.float32)
        fine: Array | None = None
        for part, value in zip(self._parts, values, strict=True):
            if part.needs_fine:
                back = part.adjoint(value)
                fine = back if fine is None else fine + back
            else:
                result += part.adjoint(value)
        if fine is not None:
            z, y, x = (2 * n - 1 for n in self.grid.shape)
            result += refine_adjoint(fine.reshape(z, y, x))
        return result


def _length(stack: Stack, profile: _Profile) -> float:
    """Millimetres that what counts of a profile spans at least, along its longest axis."""
    spans = []
    for (offsets, weights), step in zip(profile, stack.volume.spacing, strict=True):
        share = np.cumsum(np.abs(weights)) / np.abs(weights).sum()
        first, last = np.searchsorted(share, [1 - _WHOLE, _WHOLE])
        spans.append(step * (offsets[min(last, len(offsets) - 1)] - offsets[first]))
    return float(max(spans))


def _part_of(grid: Grid, stack: Stack, motions: FloatArray, profile: _Profile) -> _Part:
    same = np.abs(motions - motions[:1]).max() < _SAME
    if same:
        index_map = stack.volume.grid.moved(motions[0]).map_into(grid)
        if index_map.axes is not None:
            return _separable(grid, stack, motions[0], profile)
    return _sparse(grid, stack, motions, profile)


def _separable(grid: Grid, stack: Stack, motion: FloatArray, profile: _Profile) -> _Separable:
    source = stack.volume.grid
    index_map = source.moved(motion).map_into(grid)
    axes = index_map.axes
    assert axes is not None
    matrices: list[Array | None] = []
    share = np.ones(source.shape)
    for axis, size in enumerate(grid.shape):
        along = axes[axis]
        centres = index_map.coordinates(axis, 0, source.shape[along])
        step = index_map.matrix[axis, along]
        offsets, weights = profile[along]
        matrix = np.zeros((len(centres), size), dtype=np.float32)
        for offset, weight in zip(offsets, weights, strict=True):
            matrix += np.float32(weight) * interpolation_matrix(centres + offset * step, size)
        identity = matrix.shape[0] == size and np.allclose(matrix, np.eye(size), atol=1e-6)
        matrices.append(None if identity else matrix)
        held = in_span(centres[:, None] + offsets * step, size)
        shape = [1, 1, 1]
        shape[along] = -1
        share *= _share_inside(held, weights).reshape(shape)
    rows = stack.rows
    order = axes.index(0), axes.index(1), axes.index(2)
    z, y, x = matrices
    inside = (share.ravel()[rows] > _WHOLE).astype(np.float32)
    return _Separable((z, y, x), order, source.shape, rows, inside)


def _sparse(grid: Grid, stack: Stack, motions: FloatArray, profile: _Profile) -> _Sparse:
    from scipy.sparse import csr_array

    offsets, exact = _points_of(profile)
    weights = exact.astype(np.float32)
    fine = np.array([2 * n - 1 for n in grid.shape])
    strides = np.array([fine[1] * fine[2], fine[2], 1])
    kind = np.int32 if fine.prod() < 2**31 else np.int64
    corners = (np.indices((2, 2, 2)).reshape(3, 8).T @ strides).astype(kind)
    count, taps = len(stack.rows), 8 * len(weights)
    needed = count * taps * (4 + np.dtype(kind).itemsize)
    what = f"{stack.name}: to fit it where it lies"
    require(int(_WHILE_MADE * needed), what, "give a mask, or a larger voxel size")
    indices = np.empty((count, len(weights), 8), dtype=kind)
    values = np.empty((count, len(weights), 8), dtype=np.float32)
    inside = np.empty(count, dtype=np.float32)
    sizes = np.array(grid.shape)
    for number, part in stack.slice_rows:
        points = _places(grid, stack, motions[number], part=part, offsets=offsets)
        inside[part] = _is_whole(grid.holds(points), exact)
        place = 2 * np.clip(points, 0, sizes - 1)
        low = np.minimum(np.floor(place).astype(np.int64), fine - 2)
        share = (place - low).astype(np.float32)
        indices[part] = (low @ strides).astype(kind)[..., None] + corners
        both = np.stack([1 - share, share], axis=-1)  # (rows, points, axis, low or high)
        product = both[..., 0, :, None, None] * both[..., 1, None, :, None]
        product = product * both[..., 2, None, None, :]
        values[part] = product.reshape(*share.shape[:2], 8) * weights[:, None]
    starts = np.arange(0, count * taps + 1, taps, dtype=np.int64)
    if count * taps < 2**31:
        starts = starts.astype(kind)
    matrix = csr_array((values.ravel(), indices.ravel(), starts), shape=(count, int(fine.prod())))
    return _Sparse(matrix, inside)
