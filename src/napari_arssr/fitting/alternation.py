"""Volume and poses in turn: reconstruct, move slices to where they fit, weigh them, and again.

Large volumes have voxels of about twice the side here: poses need no finer ones. What comes out
is where slices were and how far each is to be believed; the volume itself is reconstructed
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.fitting.measurement import Measurement
from napari_arssr.fitting.poses import FloatArray, typical_motion
from napari_arssr.fitting.refinement import (
    Motion,
    anchored,
    refine_poses,
    row_weights,
    slice_errors,
    slice_weights,
)
from napari_arssr.fitting.srr import Prior, Problem
from napari_arssr.fitting.stacks import Stack
from napari_arssr.volume import Grid, Volume
from napari_arssr.watching import Advance, Stop, never, unheard

__all__ = ["Poses", "coarser", "find_poses"]

Array = npt.NDArray[np.float32]

_FINE = 700_000  # voxels; poses of larger volumes are found on coarser ones
_COARSE = 2.0  # times the voxel's side
# Residuals are first seen through a Gaussian so many voxels wide: it reaches large motion.
_ROUNDS: tuple[tuple[Motion, tuple[float, ...]], ...] = (
    ("stacks", (2.0, 0.0)),
    ("stacks", (1.0, 0.0)),
    ("slices", (3.0, 1.5, 0.0)),
    ("slices", (3.0, 1.5, 0.0)),
    ("slices", (2.0, 1.0, 0.0)),
    ("slices", (2.0, 1.0, 0.0)),
)
_PRIOR = Prior("tv", 3e-3)
_SEEN = 0.5  # of the median of voxels in the volume: slices with fewer follow their stack
_GAIN = 0.3  # share of its squared error that a motion of its own takes off a slice at least


@dataclass(frozen=True)
class Poses:
    """Where slices were, and how far each is to be believed.

    Parameters
    ----------
    motions : list of (slices, 4, 4) arrays
        For each stack.
    weights : list of (slices,) arrays
        0 to 1.
    """

    motions: list[FloatArray]
    weights: list[FloatArray]


def coarser(stack: Stack, factor: int) -> Stack:
    """A stack whose voxels are ``factor`` times as long within the slices: means of blocks.

    Voxels of which one does not count do not count; those beyond the last whole block are left
    away.
    """
    if factor == 1:
        return stack
    slices, rows, columns = stack.volume.data.shape
    high, wide = rows // factor, columns // factor
    part = stack.volume.crop(
        replace(stack.volume.grid.box, stop=(slices, high * factor, wide * factor))
    )
    blocks = part.data.reshape(slices, high, factor, wide, factor)
    use = np.zeros(stack.volume.data.shape, dtype=bool)
    use.reshape(-1)[stack.rows] = True
    use = use[:, : high * factor, : wide * factor]
    kept = use.reshape(slices, high, factor, wide, factor).all(axis=(2, 4))
    data = blocks.mean(axis=(2, 4), dtype=np.float32)
    grid = part.grid.with_shape((slices, high, wide))
    volume = Volume(data, grid.affine, name=stack.name)
    return Stack(volume, np.flatnonzero(kept.ravel()), stack.gain)


def find_poses(
    grid: Grid,
    stacks: Sequence[Stack],
    start: Poses,
    scanner: ScannerModel,
    *,
    kind: Motion,
    reference: int = 0,
    stop: Stop = never,
    advance: Advance = unheard,
    seen: Callable[[Problem, Array], None] = lambda _problem, _volume: None,
) -> Poses:
    """Poses and slice weights that fit the stacks best.

    Parameters
    ----------
    grid : Grid
        Of the volume.
    stacks : sequence of Stack
    start : Poses
    scanner : ScannerModel
    kind : {"none", "stacks", "slices"}
        What moves; with ``none`` slices are weighed only.
    reference : int
        The stack that stays, taken as a whole, where it is.
    stop, advance : callables
    seen : callable
        Shown what each round solved, and its solution in the fit's units.

    Returns
    -------
    Poses

    Raises
    ------
    Cancelled
    """
    spacing = min(grid.spacing) * (1 if grid.size <= _FINE else _COARSE)
    coarse = grid if grid.size <= _FINE else grid.with_spacing(spacing)
    parts = [coarser(stack, _factor(stack, spacing)) for stack in stacks]
    rounds = [r for r in _ROUNDS if kind == "slices" or r[0] == kind] or [("none", ())]
    measurement = Measurement(coarse, parts, start.motions, scanner)
    weights = start.weights
    values = [part.values for part in parts]
    volume: Array | None = None
    for number, (moving, widths) in enumerate(rounds):
        problem = Problem(measurement, values, row_weights(parts, weights))
        begin = problem.start() if volume is None else volume
        effort = 5 if volume is None else 2
        volume = problem.solve(_PRIOR, begin, rounds=effort, iterations=8, stop=stop)
        seen(problem, volume)
        for width in widths:
            measurement = refine_poses(
                measurement, volume, weights, kind=moving, smoothing=width * spacing, stop=stop
            )
        if moving != "none":
            measurement = anchored(measurement, reference, weights)
        weights = _beliefs(measurement, volume)
        advance((number + 1) / len(rounds))
    if kind == "slices" and volume is not None:
        measurement = _only_where_it_helps(measurement, volume, weights, stop)
        weights = _beliefs(measurement, volume)
    return Poses(measurement.motions, weights)


def _beliefs(measurement: Measurement, volume: Array) -> list[FloatArray]:
    """Slice weights from what a volume leaves of the data."""
    pairs = zip(measurement.stacks, measurement.forward(volume), strict=True)
    residuals = [stack.values - seen for stack, seen in pairs]
    return slice_weights(slice_errors(measurement.stacks, residuals, measurement.inside))


def _only_where_it_helps(
    measurement: Measurement,
    volume: Array,
    weights: list[FloatArray],
    stop: Stop,
) -> Measurement:
    """Slices back at their stack's typical motion, but those that clearly fit better elsewhere.

    What a slice that did not move is given is noise, and slices that lie mostly beyond the volume
    are given most of it. A volume that a slice has a part in fits it wherever it was put, most of
    all where few others see it, at the ends of stacks. So those that seem to have moved are left
    out of one more volume, and have to fit better elsewhere there too.
    """
    own = measurement.motions
    still = _with_motions(measurement, [_typical_of(measurement, n) for n in range(len(own))])
    seem = _fit_better(measurement, still, volume)
    if not any(one.any() for one in seem):
        return still
    chosen = _chosen(measurement, still, seem)
    others = [np.where(one, 0.0, weight) for one, weight in zip(seem, weights, strict=True)]
    values = [stack.values for stack in measurement.stacks]
    problem = Problem(chosen, values, row_weights(measurement.stacks, others))
    # From the start, for where nobody else sees anything what they had left would remain.
    without = problem.solve(_PRIOR, problem.start(), rounds=5, iterations=8, stop=stop)
    better = _fit_better(chosen, still, without)
    return _chosen(
        measurement, still, [one & other for one, other in zip(seem, better, strict=True)]
    )


def _typical_of(measurement: Measurement, number: int) -> FloatArray:
    """A stack's typical motion, for each of its slices."""
    stack, own = measurement.stacks[number], measurement.motions[number]
    count = np.bincount(stack.slice_of_row, minlength=stack.slices)
    typical = typical_motion(own, np.maximum(count, 1e-6), stack.centres.mean(axis=0), stack.unit)
    return np.tile(typical, (len(own), 1, 1))


def _with_motions(measurement: Measurement, motions: Sequence[FloatArray]) -> Measurement:
    for number, one in enumerate(motions):
        if not np.array_equal(one, measurement.motions[number]):
            measurement = measurement.moved(number, one)
    return measurement


def _chosen(
    moved: Measurement, still: Measurement, which: Sequence[npt.NDArray[np.bool_]]
) -> Measurement:
    """Slices as in ``moved`` where ``which`` says so, else as in ``still``."""
    triples = zip(which, moved.motions, still.motions, strict=True)
    return _with_motions(
        still, [np.where(one[:, None, None], own, other) for one, own, other in triples]
    )


def _fit_better(
    moved: Measurement, still: Measurement, volume: Array
) -> list[npt.NDArray[np.bool_]]:
    """For each stack, which slices a volume predicts clearly better in ``moved``."""
    result = []
    pairs = zip(moved.forward(volume), still.forward(volume), strict=True)
    for number, (seen, other) in enumerate(pairs):
        stack, inside = moved.stacks[number], moved.inside[number]
        both = inside * still.inside[number]
        own, typical = (
            np.bincount(stack.slice_of_row, both * (stack.values - one) ** 2, stack.slices)
            for one in (seen, other)
        )
        shown = np.bincount(stack.slice_of_row, inside, stack.slices)
        result.append((own < (1 - _GAIN) * typical) & (shown > _SEEN * np.median(shown)))
    return result


def _factor(stack: Stack, spacing: float) -> int:
    """How many voxels within the slices make one as long as ``spacing``, rounded down."""
    _, rows, columns = stack.volume.spacing
    return max(1, int(spacing / max(rows, columns) + 1e-6))
