"""The prior's weight, chosen from the data: what predicts voxels best that were not used.

A twentieth of the voxels, drawn at random, is held back; the rest is fitted with one weight after
another, and the weight counts whose volume, measured, comes nearest to those held back (cross
validation). That needs no estimate of the noise, and takes whatever else is wrong with the data
(motion, a wrong slice profile) into account. It is done on a part of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.fitting.measurement import Measurement, Values
from napari_arssr.fitting.poses import FloatArray
from napari_arssr.fitting.srr import Prior, Problem
from napari_arssr.fitting.stacks import Stack
from napari_arssr.volume import Box, Grid
from napari_arssr.watching import Advance, Stop, never

__all__ = ["TRIAL_SIDE", "Trial", "choose_pull", "choose_weight", "trial_box"]

Array = npt.NDArray[np.float32]

TRIAL_SIDE = 48
"""Voxels along each side of the part that weights are tried on, at most."""

_HELD_BACK = 0.05
_LARGEST, _SMALLEST, _STEP = 0.3, 1e-5, 10**0.5


@dataclass(frozen=True, eq=False)
class Trial:
    """A part of a reconstruction with some voxels held back.

    ``problem`` does not know them; ``held`` says for each voxel of the stacks whether it is one.
    """

    problem: Problem
    held: list[npt.NDArray[np.bool_]]
    weights: Values

    @classmethod
    def of(
        cls,
        grid: Grid,
        stacks: Sequence[Stack],
        motions: Sequence[FloatArray],
        scanner: ScannerModel,
        *,
        weights: Values,
        seed: int = 0,
    ) -> Trial:
        """The trial on a grid, a part of the whole; rows beyond it are left away."""
        parts, kept_weights = [], []
        for stack, motion, weight in zip(stacks, motions, weights, strict=True):
            reached = _reached(grid, stack, motion)
            parts.append(replace(stack, rows=stack.rows[reached]))
            kept_weights.append(weight[reached])
        measurement = Measurement(grid, parts, motions, scanner)
        random = np.random.default_rng(seed)
        held = [random.random(len(part.rows)) < _HELD_BACK for part in parts]
        used = [np.where(h, np.float32(0), w) for h, w in zip(held, kept_weights, strict=True)]
        problem = Problem(measurement, [part.values for part in parts], used)
        counted = [w * i for w, i in zip(kept_weights, measurement.inside, strict=True)]
        return cls(problem, held, counted)

    def error(self, volume: Array) -> float:
        """Mean square error of the voxels held back, as the volume predicts them."""
        total = count = 0.0
        parts = zip(self.problem.residuals(volume), self.held, self.weights, strict=True)
        for residual, held, weight in parts:
            total += float((weight[held] * residual[held] ** 2).sum())
            count += float(weight[held].sum())
        return total / max(count, 1e-12)


def _reached(grid: Grid, stack: Stack, motions: FloatArray) -> npt.NDArray[np.bool_]:
    """Voxels of a stack whose centre lies in a grid."""
    result = np.zeros(len(stack.rows), dtype=bool)
    for number, part in stack.slice_rows:
        matrix = stack.volume.grid.moved(motions[number]).map_into(grid).matrix
        index = np.stack(np.unravel_index(stack.rows[part], stack.volume.grid.shape), axis=-1)
        result[part] = grid.holds(index @ matrix[:3, :3].T + matrix[:3, 3])
    return result


def trial_box(volume: Array) -> Box:
    """The part of a volume with most in it, at most 48 voxels a side."""
    from scipy.ndimage import uniform_filter

    sides = [min(n, TRIAL_SIDE) for n in volume.shape]
    rough = np.zeros_like(volume)
    for axis in range(3):
        rough += np.abs(np.diff(volume, axis=axis, append=volume.take([-1], axis)))
    density = uniform_filter(rough, sides, mode="constant")
    inner = np.full_like(density, -np.inf)
    # Middles of blocks that lie in the volume.
    middle = tuple(
        slice(side // 2, n - (side - side // 2) + 1)
        for side, n in zip(sides, volume.shape, strict=True)
    )
    inner[middle] = density[middle]
    best = np.unravel_index(int(np.argmax(inner)), volume.shape)
    start = [int(b) - side // 2 for b, side in zip(best, sides, strict=True)]
    z, y, x = start
    return Box((z, y, x), (z + sides[0], y + sides[1], x + sides[2]))


def choose_weight(
    trial: Trial,
    prior: Prior,
    *,
    stop: Stop = never,
    advance: Advance = lambda _share: None,
) -> tuple[float, Array]:
    """The weight λ that predicts best, and the trial's volume with it.

    Weights fall from 0.3 by factors of √10 until the prediction has worsened twice; the best is
    found between them by a parabola.
    """
    estimate = trial.problem.start()
    tried: list[tuple[float, float]] = []
    volumes: list[Array] = []
    weight = _LARGEST
    span = np.log(_LARGEST / _SMALLEST) / np.log(_STEP) + 1
    while weight >= 0.99 * _SMALLEST:
        estimate = trial.problem.solve(
            replace(prior, weight=weight), estimate, rounds=3, iterations=8, stop=stop
        )
        tried.append((np.log(weight), trial.error(estimate)))
        volumes.append(estimate)
        advance(min(len(tried) / span, 1.0))
        errors = [error for _, error in tried]
        if len(errors) - 1 - int(np.argmin(errors)) >= 2:
            break
        weight /= _STEP
    best = int(np.argmin([error for _, error in tried]))
    return float(np.exp(_lowest(tried, best))), volumes[best]


def _lowest(tried: list[tuple[float, float]], best: int) -> float:
    """Where a parabola through the best and its neighbours is lowest."""
    if not 0 < best < len(tried) - 1:
        return tried[best][0]
    (a, fa), (b, fb), (c, fc) = tried[best - 1 : best + 2]
    below = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    if below == 0:
        return b
    place = b - 0.5 * ((b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)) / below
    return float(np.clip(place, min(a, c), max(a, c)))


def choose_pull(
    trial: Trial,
    prior: Prior,
    start: Array,
    *,
    stop: Stop = never,
    advance: Advance = lambda _share: None,
) -> Prior:
    """How strongly to be drawn to ``prior.pull``, if at all: what predicts best.

    Parameters
    ----------
    trial : Trial
    prior : Prior
        On the trial's grid; its ``pull`` must not have seen the voxels held back either.
    start : (z, y, x) array
        The trial's volume without a pull.
    stop, advance : callables

    Returns
    -------
    Prior
        With ``weight`` and ``pull_weight`` chosen; without a pull if none predicts better.
    """
    alone = replace(prior, pull=None, pull_weight=0.0)
    best = alone
    estimate = trial.problem.solve(alone, start, rounds=3, iterations=10, stop=stop)
    least = trial.error(estimate)
    candidates = list(product((1.0, 0.3), (30.0, 100.0, 300.0)))
    for number, (share, ratio) in enumerate(candidates):
        weight = prior.weight * share
        candidate = replace(prior, weight=weight, pull_weight=ratio * prior.weight)
        volume = trial.problem.solve(candidate, estimate, rounds=3, iterations=10, stop=stop)
        error = trial.error(volume)
        if error < least:
            best, least = candidate, error
        advance((number + 1) / len(candidates))
    return best
