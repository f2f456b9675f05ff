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
from dataclasses import dataclass
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
    "quadrature",
    "refine",
    "refine_adjoint",
    "refine_axis",
]

Array = npt.NDArray[np.float32]
Values = list[Array]
"""For each stack, one number for each of its voxels that count, in C order."""

_NOTHING = 1e-2  # of the largest weight of a profile: what is below changes nothing visible
_SAME = 1e-6  # motions whose matrices differ less are one


def quadrature(scanner: ScannerModel, ratio: float) -> tuple[FloatArray, FloatArray]:
    """Points and weights that stand for a slice profile.

    Parameters
    ----------
    scanner : ScannerModel
    ratio : float
        Voxels of the volume per voxel of the stack, along this axis. Where it rounds to 1
        the voxel is its centre: an axis that keeps its voxels is not measured again.

    Returns
    -------
    offsets, weights : (k,) arrays
        Distances from the centre in voxels of the stack; the weights sum to 1.
    """
    steps = max(1, round(ratio))
    if steps == 1 or scanner.kind == "cubic":
        return np.zeros(1), np.ones(1)
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
        self._parts = [
            _part_of(grid, stack, motion, scanner)
            for stack, motion in zip(self.stacks, self.motions, strict=True)
        ]

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
        result._parts = list(self._parts)
        result._parts[number] = _part_of(self.grid, self.stacks[number], motions, self.scanner)
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


def _part_of(grid: Grid, stack: Stack, motions: FloatArray, scanner: ScannerModel) -> _Part:
    same = np.abs(motions - motions[:1]).max() < _SAME
    if same:
        index_map = stack.volume.grid.moved(motions[0]).map_into(grid)
        if index_map.axes is not None:
            return _separable(grid, stack, motions[0], scanner)
    return _sparse(grid, stack, motions, scanner)


def _profiles(
    grid: Grid, stack: Stack, scanner: ScannerModel
) -> list[tuple[FloatArray, FloatArray]]:
    """Quadrature along each axis of a stack."""
    finest = min(grid.spacing)
    return [quadrature(scanner, step / finest) for step in stack.volume.grid.spacing]


def _separable(grid: Grid, stack: Stack, motion: FloatArray, scanner: ScannerModel) -> _Separable:
    source = stack.volume.grid
    index_map = source.moved(motion).map_into(grid)
    axes = index_map.axes
    assert axes is not None
    profiles = _profiles(grid, stack, scanner)
    matrices: list[Array | None] = []
    within = np.ones(source.shape, dtype=bool)
    for axis, size in enumerate(grid.shape):
        along = axes[axis]
        centres = index_map.coordinates(axis, 0, source.shape[along])
        step = index_map.matrix[axis, along]
        offsets, weights = profiles[along]
        matrix = np.zeros((len(centres), size), dtype=np.float32)
        for offset, weight in zip(offsets, weights, strict=True):
            matrix += np.float32(weight) * interpolation_matrix(centres + offset * step, size)
        identity = matrix.shape[0] == size and np.allclose(matrix, np.eye(size), atol=1e-6)
        matrices.append(None if identity else matrix)
        reach = np.abs(offsets * step).max()
        fits = in_span(centres - reach, size) & in_span(centres + reach, size)
        shape = [1, 1, 1]
        shape[along] = -1
        within &= fits.reshape(shape)
    rows = stack.rows
    order = axes.index(0), axes.index(1), axes.index(2)
    z, y, x = matrices
    inside = within.ravel()[rows].astype(np.float32)
    return _Separable((z, y, x), order, source.shape, rows, inside)


def _sparse(grid: Grid, stack: Stack, motions: FloatArray, scanner: ScannerModel) -> _Sparse:
    from scipy.sparse import csr_array

    profiles = _profiles(grid, stack, scanner)
    offsets = np.stack(np.meshgrid(*(p[0] for p in profiles), indexing="ij"), -1).reshape(-1, 3)
    weights = np.einsum("i,j,k->ijk", *(p[1] for p in profiles)).ravel().astype(np.float32)
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
        matrix = stack.volume.grid.moved(motions[number]).map_into(grid).matrix
        index = np.stack(np.unravel_index(stack.rows[part], stack.volume.grid.shape), axis=-1)
        points = (index @ matrix[:3, :3].T + matrix[:3, 3])[:, None] + offsets @ matrix[:3, :3].T
        inside[part] = grid.holds(points).all(axis=1)
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
