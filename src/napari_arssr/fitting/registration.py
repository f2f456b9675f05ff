"""Rigid registration of stacks to one of them, by SimpleITK.

Thick slices of two orientations are blurred along different axes, and a measure of likeness is
best where both look alike: so each is blurred along the other's slices too before they are
compared. What is left after that is for :mod:`napari_arssr.fitting.refinement`.

Slices in which nothing was measured (:func:`napari_arssr.fitting.stacks.empty_slices`) are filled
from their neighbours, so that they look like no edge when images are smoothed, and neither they nor
what is interpolated between them and others is compared.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import SIMILARITIES, Similarity
from napari_arssr.errors import FileError, UsageError
from napari_arssr.fitting.poses import FloatArray, length_unit
from napari_arssr.fitting.stacks import empty_slices, filled, inside_of
from napari_arssr.interpolation import apply_separable
from napari_arssr.request import covered
from napari_arssr.volume import RAS_TO_LPS, Grid, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

__all__ = [
    "Agreement",
    "compare",
    "overlap",
    "read_motion",
    "register",
    "write_motion",
]

_VOXELS = 6_000_000  # of the volumes that are compared; more are no better for six numbers
_SAMPLES = 60_000
_DARK = 0.2  # of what tissue shows; what is darker is background
# Subjects that are smaller, as a share of all voxels, are not told from single bright voxels.
_SMALLEST = 0.005


@dataclass(frozen=True)
class Agreement:
    """How alike two stacks are where both see something, at the thickness of their slices.

    Parameters
    ----------
    correlation : float
        Of their intensities, -1 to 1.
    gain : float
        What the second's are to be multiplied by, to be as bright as the first's.
    share : float
        Of the second's span that lies in the first's.
    """

    correlation: float
    gain: float
    share: float


def register(
    reference: Volume,
    moving: Volume,
    *,
    metric: Similarity = "correlation",
    start: FloatArray | None = None,
    mask: Volume | None = None,
    seed: int = 0,
) -> FloatArray:
    """The motion that brings a stack to the reference.

    Parameters
    ----------
    reference, moving : Volume
        3D, finite.
    metric : {"correlation", "mutual-information"}
    start : (4, 4) array, optional
        Where to begin; by default where the files say that the stacks lie.
    mask : Volume, optional
        Only where it is not zero is compared, in the reference's world.
    seed : int

    Returns
    -------
    (4, 4) array
        Where ``moving``'s file says a point is → where it is in the reference's world, RAS+
        millimetres.

    Raises
    ------
    UsageError
        If the two do not overlap, or ITK finds no likeness to follow.
    """
    import SimpleITK as sitk  # noqa: N813

    if metric not in SIMILARITIES:
        raise UsageError(f"There is no likeness {metric!r}: choose {', '.join(SIMILARITIES)}.")
    start = np.eye(4) if start is None else start
    if overlap(reference.grid, moving.grid.moved(start)) == 0:
        raise _apart(reference, moving)
    grid = _common_grid(reference)
    one, other = _Slices.of(reference), _Slices.of(moving)
    fixed_data = _blurred(_resampled(one.filled, grid, np.eye(4)), grid, moving.grid.moved(start))
    moved_data = _blurred(_resampled(other.filled, grid, start), grid, reference.grid)
    fixed, moved = _image(fixed_data, grid), _image(moved_data, grid)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_centre(fixed_data, grid))
    method = sitk.ImageRegistrationMethod()
    if metric == "correlation":
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(48)
        # Several add to its histograms in any order, and then no two runs end alike.
        method.SetNumberOfWorkUnits(1)
    # Every voxel the moved stack does not cover was filled with nothing, and is not looked at.
    known = _clear(covered(grid, moving.grid.moved(start)), other.measured_on(grid, start))
    method.SetMetricMovingMask(_image(known.astype(np.uint8), grid))
    seen = _clear(covered(grid, reference.grid), one.measured_on(grid, np.eye(4)))
    if mask is not None:
        seen &= _inside(mask, grid)
    method.SetMetricFixedMask(_image(seen.astype(np.uint8), grid))
    method.SetMetricSamplingStrategy(method.REGULAR)
    # To SimpleITK a seed of 0 means the clock's.
    method.SetMetricSamplingPercentage(min(1.0, _SAMPLES / grid.size), 1 + seed % (2**32 - 1))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0 * min(grid.spacing),
        minStep=1e-4 * length_unit(grid),
        numberOfIterations=150,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-9,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    levels = [n for n in (4, 2, 1) if min(grid.shape) / n >= 8] or [1]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([0.5 * (n - 1) * min(grid.spacing) for n in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moved)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2].strip()
        raise UsageError(
            f"{moving.name} cannot be registered to {reference.name} ({reason}); leave it out, or "
            "register it yourself and let the stacks lie as their files say."
        ) from None
    found = _motion_of(transform)
    return np.asarray(found @ start)


def overlap(reference: Grid, other: Grid) -> float:
    """Share of a grid's span that lies in another's, 0 to 1."""
    steps = tuple(max(1, n // 24) for n in other.shape)
    thin = other.thinned((steps[0], steps[1], steps[2]))
    points = reference.index(thin.world(np.moveaxis(np.indices(thin.shape), 0, -1)))
    return float(reference.holds(points).mean())


def compare(
    reference: Volume, moving: Volume, motion: FloatArray, *, mask: Volume | None = None
) -> Agreement:
    """How well a stack agrees with the reference after a motion.

    Parameters
    ----------
    reference, moving : Volume
    motion : (4, 4) array
    mask : Volume, optional
        Only what is in it is compared, in the reference's world.

    Raises
    ------
    UsageError
        If the two do not overlap.
    """
    share = overlap(reference.grid, moving.grid.moved(motion))
    if share == 0:
        raise _apart(reference, moving)
    thick = max(*reference.spacing, *moving.spacing)
    grid = reference.grid.with_spacing(thick)
    fine = grid.with_shape([n * max(1, round(thick / min(reference.spacing))) for n in grid.shape])
    means = [_block_mean(n, m) for n, m in zip(grid.shape, fine.shape, strict=True)]
    seen = covered(grid, moving.grid.moved(motion))
    values = []
    for volume, place in ((reference, np.eye(4)), (moving, motion)):
        slices = _Slices.of(volume)
        values.append(apply_separable(means, _resampled(slices.filled, fine, place)))
        measured = slices.measured_on(fine, place)
        seen = _clear(seen, None if measured is None else apply_separable(means, measured))
    if mask is not None:
        seen &= _inside(mask, grid)
    one, other = values[0][seen], values[1][seen]
    # Background is alike in all scans: only what both show says something.
    shown = (one > _darkest(one)) & (other > _darkest(other))
    one, other = one[shown], other[shown]
    if len(one) < 8 or one.std() == 0 or other.std() == 0:
        return Agreement(0.0, 1.0, share)
    correlation = float(np.corrcoef(one, other)[0, 1])
    # The median: a spoilt slice does not make the others brighter.
    gain = float(np.median(one.astype(np.float64) / other))
    return Agreement(correlation, gain, share)


def write_motion(path: str | os.PathLike[str], motion: FloatArray) -> None:
    """A motion as an ITK transform (``.tfm``, ``.txt``, ``.h5``), from reference to stack.

    That is the direction in which ITK, ANTs and Slicer apply one to an image: with it, their
    resamplers bring the stack to the reference.

    Raises
    ------
    FileError
    """
    import SimpleITK as sitk  # noqa: N813

    inverse = RAS_TO_LPS @ np.linalg.inv(motion) @ RAS_TO_LPS
    transform = sitk.Euler3DTransform()
    transform.SetMatrix(inverse[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation(inverse[:3, 3].tolist())
    try:
        sitk.WriteTransform(transform, str(path))
    except RuntimeError:
        raise FileError(f"{path}: the transform cannot be written; name another folder.") from None


def read_motion(path: str | os.PathLike[str]) -> FloatArray:
    """A motion that :func:`write_motion` wrote, or any rigid ITK transform.

    Raises
    ------
    FileError
        If it cannot be read or is not rigid.
    """
    import SimpleITK as sitk  # noqa: N813

    if not Path(path).is_file():
        raise FileError(f"{path} does not exist; check its name.")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise FileError(f"{path} is not a transform that ITK can read; write it again.") from None
    if not transform.IsLinear():
        raise FileError(f"{path} is not a rigid transform; only those can be used here.")
    motion = _motion_of(transform)
    turn = motion[:3, :3]
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-4) or np.linalg.det(turn) < 0:
        raise FileError(f"{path} is not a rigid transform; only those can be used here.")
    return motion


def _motion_of(transform: sitk.Transform) -> FloatArray:
    """The motion, stack to reference in RAS, of a transform from reference to stack in LPS."""
    zero = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        unit = [0.0, 0.0, 0.0]
        unit[axis] = 1.0
        matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - zero
    matrix[:3, 3] = zero
    return np.asarray(np.linalg.inv(RAS_TO_LPS @ matrix @ RAS_TO_LPS))


def _image(data: npt.NDArray[Any], grid: Grid) -> sitk.Image:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(data)
    origin, spacing, direction = grid.itk_geometry
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _centre(data: npt.NDArray[np.float32], grid: Grid) -> list[float]:
    """Where what is seen lies, in LPS: about it rotation and translation are least entangled."""
    mass = np.clip(data - data.min(), 0, None)
    index = [
        float((mass.sum(axis=tuple({0, 1, 2} - {axis})) * np.arange(n)).sum() / mass.sum())
        for axis, n in enumerate(data.shape)
    ]
    lps: list[float] = (RAS_TO_LPS[:3, :3] @ grid.world(index)).tolist()
    return lps


def _common_grid(reference: Volume) -> Grid:
    """Cubes over the reference's span, as fine as its finest side or as memory is worth."""
    grid = reference.grid.isotropic()
    if grid.size > _VOXELS:
        grid = grid.with_spacing(min(grid.spacing) * (grid.size / _VOXELS) ** (1 / 3))
    return grid


def _resampled(volume: Volume, grid: Grid, motion: FloatArray) -> npt.NDArray[np.float32]:
    """Linear interpolation on a grid; beyond the volume the value at its border."""
    from scipy.ndimage import affine_transform

    matrix = grid.map_into(volume.grid.moved(motion)).matrix
    return np.asarray(
        affine_transform(
            volume.data.astype(np.float32, copy=False),
            matrix[:3, :3],
            matrix[:3, 3],
            output_shape=grid.shape,
            order=1,
            mode="nearest",
        )
    )


def _blurred(data: npt.NDArray[np.float32], grid: Grid, other: Grid) -> npt.NDArray[np.float32]:
    """Data as if other's thick slices had been laid through them, along the nearest axis."""
    from scipy.ndimage import convolve1d

    linear = np.abs(other.map_into(grid).matrix[:3, other.slice_axis])
    axis = int(np.argmax(linear))
    # As many taps on either side, or the image would move by half a voxel.
    half = float(np.linalg.norm(linear)) / 2
    taps = np.arange(-math.ceil(half), math.ceil(half) + 1)
    share = np.clip(half - np.abs(taps) + 0.5, 0, 1)
    return np.asarray(convolve1d(data, share / share.sum(), axis=axis, mode="nearest"))


@dataclass(frozen=True, eq=False)
class _Slices:
    """A volume with its empty slices filled, and which slices those were."""

    filled: Volume
    empty: list[int]

    @classmethod
    def of(cls, volume: Volume) -> _Slices:
        slices = np.moveaxis(volume.data, volume.grid.slice_axis, 0)
        empty = empty_slices(slices)
        data = np.moveaxis(filled(slices, empty), 0, volume.grid.slice_axis)
        return cls(replace(volume, data=data) if empty else volume, empty)

    def measured_on(self, grid: Grid, motion: FloatArray) -> npt.NDArray[np.float32] | None:
        """How much of what is interpolated on a grid was measured, 0 to 1; None if all was."""
        if not self.empty:
            return None
        shape, axis = self.filled.grid.shape, self.filled.grid.slice_axis
        slices = np.moveaxis(np.ones(shape, dtype=np.float32), axis, 0)
        slices[self.empty] = 0
        measured = replace(self.filled, data=np.moveaxis(slices, 0, axis))
        return _resampled(measured, grid, motion)


def _clear(
    seen: npt.NDArray[np.bool_], measured: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.bool_]:
    """Voxels that are seen, away from empty slices.

    Where so many are empty that a quarter of the voxels left lie beside one, those beside one
    count: registration loses its way among a few thin slabs.
    """
    if measured is None:
        return seen
    mostly, wholly = seen & (measured > 0.5), seen & (measured > 0.999)
    return wholly if np.count_nonzero(wholly) > 0.75 * np.count_nonzero(mostly) else mostly


def _inside(mask: Volume, grid: Grid) -> npt.NDArray[np.bool_]:
    filled = Volume(inside_of(mask).astype(np.float32), mask.affine)
    return np.asarray((_resampled(filled, grid, np.eye(4)) > 0) & covered(grid, mask.grid))


def _block_mean(low: int, high: int) -> npt.NDArray[np.float32]:
    size = high // low
    return np.kron(np.eye(low), np.full((1, size), 1 / size)).astype(np.float32)


def _darkest(values: npt.NDArray[np.float32]) -> float:
    """Above which intensity voxels show something, by that of tissue.

    Tissue is the brighter half's middle, where half of a scan is background. Where that is
    background too, for the subject is small, tissue is what stands out of it.
    """
    if not values.size:
        return 0.0
    low, high = np.percentile(values, [25, 75])
    floor = float(high + 3 * (high - low))
    bright = values[values > floor]
    if bright.size > _SMALLEST * values.size:
        tissue = float(np.median(bright))
        if high < _DARK * tissue:
            return max(_DARK * tissue, floor)
    return _DARK * float(high)


def _apart(reference: Volume, moving: Volume) -> UsageError:
    return UsageError(
        f"{moving.name} does not overlap {reference.name}: their headers put them at different "
        "places; leave it out, or correct its header."
    )
