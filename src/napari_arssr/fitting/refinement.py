"""Poses of slices, and how far each slice is to be believed, from the current volume.

A slice that moved by a little (δ) sees W x + J δ, J from the volume's gradient through the same
slice profile: so the six numbers of each slice follow from six equations (Gauss & Newton), with
the volume as it is. Slices far from where they were taken for are found first on smoothed
residuals. A slice that fits much worse than the others of its stack counts less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import Motion
from napari_arssr.errors import Cancelled
from napari_arssr.fitting.measurement import Measurement, Values
from napari_arssr.fitting.poses import FloatArray, parameters_of, rigid, typical_motion
from napari_arssr.fitting.stacks import Stack
from napari_arssr.watching import Stop, never

__all__ = [
    "Motion",
    "anchored",
    "refine_one",
    "refine_poses",
    "row_weights",
    "slice_errors",
    "slice_weights",
]

Array = npt.NDArray[np.float32]

# How far a slice is expected to be from the rest of its stack: radians, and units of length.
_TURN, _SHIFT = np.radians(4.0), 4.0
_SCALE = np.array([_TURN] * 3 + [_SHIFT] * 3)
# A slice whose error is so many times its stack's median counts half.
_HALF = 2.5


def slice_errors(stacks: list[Stack], residuals: Values, weights: Values) -> list[FloatArray]:
    """Root mean square residual of each slice; NaN for slices of which no voxel counts.

    ``weights`` say which voxels count; only whether they are above 0 matters.
    """
    result = []
    for stack, residual, weight in zip(stacks, residuals, weights, strict=True):
        counts = (weight > 0).astype(np.float64)
        number = np.bincount(stack.slice_of_row, counts, stack.slices)
        total = np.bincount(
            stack.slice_of_row, counts * residual.astype(np.float64) ** 2, stack.slices
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            result.append(np.sqrt(np.where(number > 0, total / number, np.nan)))
    return result


def slice_weights(errors: list[FloatArray], floor: float = 0.01) -> list[FloatArray]:
    """How far each slice is to be believed, 0 to 1, from its error beside its stack's.

    1 / (1 + (e / 2.5 m)⁴), with m the median of the stack's slices.

    Parameters
    ----------
    errors : list of (slices,) arrays
        See :func:`slice_errors`.
    floor : float
        Of m, in units of intensity: where all fits well there are no outliers.
    """
    result = []
    for error in errors:
        known = error[np.isfinite(error) & (error > 0)]
        typical = max(float(np.median(known)), floor) if known.size else floor
        weight = 1 / (1 + (np.nan_to_num(error) / (_HALF * typical)) ** 4)
        result.append(np.where(np.isfinite(error), weight, 1.0))
    return result


def row_weights(stacks: list[Stack], weights: list[FloatArray]) -> Values:
    """Weights of slices as weights of their voxels."""
    return [
        weight.astype(np.float32)[stack.slice_of_row]
        for stack, weight in zip(stacks, weights, strict=True)
    ]


def refine_poses(
    measurement: Measurement,
    volume: Array,
    weights: list[FloatArray],
    *,
    kind: Motion,
    smoothing: float = 0.0,
    stop: Stop = never,
) -> Measurement:
    """One step of Gauss & Newton for every slice, or for every stack as a whole.

    Parameters
    ----------
    measurement : Measurement
    volume : (z, y, x) array
    weights : list of (slices,) arrays
        How far each slice is believed.
    kind : {"stacks", "slices"}
    smoothing : float
        Standard deviation, in millimetres within the slice, of the Gaussian that residuals are
        seen through: the wider, the larger the motion that is found.
    stop : callable

    Returns
    -------
    Measurement
        With the motions that fit better; where a step did not, the old ones.

    Raises
    ------
    Cancelled
    """
    for number in range(len(measurement.stacks)):
        if stop():
            raise Cancelled
        measurement = refine_one(
            measurement, number, volume, weights[number], kind=kind, smoothing=smoothing
        )
    return measurement


def refine_one(
    measurement: Measurement,
    number: int,
    volume: Array,
    weights: FloatArray,
    *,
    kind: Motion,
    smoothing: float,
) -> Measurement:
    """One step for one stack, see :func:`refine_poses`."""
    stack, old = measurement.stacks[number], measurement.motions[number]
    residual = stack.values - measurement.one(number, volume)
    inside = measurement.inside[number]
    jacobian, centres = _jacobian(measurement, number, volume, kind)
    jacobian[:, 3:] *= stack.unit
    seen = _through(stack, residual * inside, smoothing)
    columns = np.stack(
        [_through(stack, jacobian[:, k] * inside, smoothing) for k in range(6)], axis=1
    )
    steps = _steps(stack, seen, columns, weights=weights, motions=old, centres=centres, kind=kind)
    steps[:, 3:] *= stack.unit
    moved = rigid(steps, centres) @ old
    trial = measurement.moved(number, moved)
    left = stack.values - trial.one(number, volume)
    both = inside * trial.inside[number]
    before = _powers(stack, _through(stack, residual * both, smoothing), kind)
    after = _powers(stack, _through(stack, left * both, smoothing), kind)
    better = after <= before
    if better.all():
        return trial
    if not better.any():
        return measurement
    return measurement.moved(number, np.where(better[:, None, None], moved, old))


def anchored(measurement: Measurement, reference: int, weights: list[FloatArray]) -> Measurement:
    """The same with the reference, taken as a whole, where its file says it is.

    The volume and all slices could wander together without any change in what is measured.
    """
    stack = measurement.stacks[reference]
    centre = stack.centres.mean(axis=0)
    mean = typical_motion(measurement.motions[reference], weights[reference], centre, stack.unit)
    if np.abs(mean - np.eye(4)).max() < 1e-9 * stack.unit:
        return measurement
    back = np.linalg.inv(mean)
    for number, motions in enumerate(measurement.motions):
        measurement = measurement.moved(number, back @ motions)
    return measurement


def _jacobian(
    measurement: Measurement, number: int, volume: Array, kind: Motion
) -> tuple[FloatArray, FloatArray]:
    """How voxels change with the six numbers, in radians and millimetres (rows, 6).

    Also the centres of rotation (slices, 3).
    """
    stack, motions = measurement.stacks[number], measurement.motions[number]
    slopes = [
        measurement.one(number, np.gradient(volume, axis=axis).astype(np.float32))
        for axis in range(3)
    ]
    to_index = np.linalg.inv(measurement.grid.index_affine)[:3, :3]
    # ∂/∂world of the volume, at each voxel: R, A, S.
    world = np.stack(slopes, axis=1).astype(np.float64) @ to_index
    index = np.stack(np.unravel_index(stack.rows, stack.volume.grid.shape), axis=-1)
    stated = stack.volume.grid.world(index)
    place = motions[stack.slice_of_row]
    points = np.einsum("nij,nj->ni", place[:, :3, :3], stated) + place[:, :3, 3]
    centres = np.einsum("nij,nj->ni", motions[:, :3, :3], stack.centres) + motions[:, :3, 3]
    if kind == "stacks":
        centres = np.broadcast_to(centres.mean(axis=0), centres.shape)
    arm = points - centres[stack.slice_of_row]
    # d(ω × arm)·g = ω·(arm × g)
    return np.concatenate([np.cross(arm, world), world], axis=1), np.array(centres)


def _through(stack: Stack, values: npt.NDArray[np.floating], smoothing: float) -> FloatArray:
    """Values of a stack's voxels, smoothed within their slices."""
    if smoothing <= 0:
        return np.asarray(values, dtype=np.float64)
    from scipy.ndimage import gaussian_filter

    shape = stack.volume.data.shape
    image = np.zeros(int(np.prod(shape)), dtype=np.float32)
    image[stack.rows] = values
    _, rows, columns = stack.volume.spacing
    smooth = gaussian_filter(
        image.reshape(shape), (0, smoothing / rows, smoothing / columns), mode="constant"
    )
    return np.asarray(smooth.ravel()[stack.rows], dtype=np.float64)


def _steps(
    stack: Stack,
    residual: FloatArray,
    columns: FloatArray,
    *,
    weights: FloatArray,
    motions: FloatArray,
    centres: FloatArray,
    kind: Motion,
) -> FloatArray:
    """The six numbers of every slice, (slices, 6): radians, and units of length."""
    sums = _normal_equations(stack, residual, columns)
    if kind == "stacks":
        return np.tile(_step_of_all(sums, weights), (stack.slices, 1))
    count = np.bincount(stack.slice_of_row, minlength=stack.slices)
    power = np.bincount(stack.slice_of_row, residual**2, stack.slices)
    known = count > 0
    noise = float(np.median(power[known] / count[known])) if known.any() else 1.0
    # Each slice is drawn to the rest of its stack, the more the less it shows.
    counts = np.maximum(weights * count, 1e-9)
    mean = typical_motion(motions, counts, stack.centres.mean(axis=0), stack.unit)
    apart = parameters_of(mean @ np.linalg.inv(motions), centres)
    apart[:, 3:] /= stack.unit
    prior = np.diag(max(noise, 1e-10) / _SCALE**2)
    result = np.zeros((stack.slices, 6))
    for number in np.flatnonzero(known):
        matrix = sums[number, :, :6] + prior * max(1.0, 0.02 * count[number])
        right = sums[number, :, 6] + prior @ apart[number] * max(1.0, 0.02 * count[number])
        result[number] = _limited(np.linalg.solve(matrix, right))
    # Slices that show nothing follow the others.
    result[~known] = apart[~known]
    return result


def _normal_equations(stack: Stack, residual: FloatArray, columns: FloatArray) -> FloatArray:
    """JᵀJ and Jᵀr of every slice, side by side: (slices, 6, 7)."""
    products = columns[:, :, None] * np.concatenate([columns, residual[:, None]], axis=1)[:, None]
    flat = products.reshape(len(products), -1)
    sums = [np.bincount(stack.slice_of_row, flat[:, k], stack.slices) for k in range(flat.shape[1])]
    return np.stack(sums, axis=1).astype(np.float64).reshape(-1, 6, 7)


def _step_of_all(sums: FloatArray, weights: FloatArray) -> FloatArray:
    """The six numbers of a stack that moves as one, damped where its slices show little."""
    total = (weights[:, None, None] * sums).sum(axis=0)
    damped = total[:, :6] + np.diag(np.full(6, 1e-3) * np.diag(total[:, :6]).max() * _SCALE**-2)
    return _limited(np.linalg.lstsq(damped, total[:, 6], rcond=None)[0])


def _limited(step: FloatArray) -> FloatArray:
    """No more at once than the linear picture can be trusted for."""
    turn = np.linalg.norm(step[:3]) / _TURN
    shift = np.linalg.norm(step[3:]) / _SHIFT
    return step / max(turn, shift, 1.0)


def _powers(stack: Stack, values: FloatArray, kind: Motion) -> FloatArray:
    """Sum of squares of each slice; of the whole stack, for every slice, if it moves as one."""
    powers = np.bincount(stack.slice_of_row, values**2, stack.slices).astype(np.float64)
    return np.full(stack.slices, powers.sum()) if kind == "stacks" else powers
