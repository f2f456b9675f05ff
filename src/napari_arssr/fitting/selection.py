"""The prior's weight, chosen from the data: what predicts voxels best that were not used.

A twentieth of the voxels, drawn at random, is held back; the rest is fitted with one weight after
another, and those weights count whose volume, measured, comes nearest to those held back (cross
validation). That needs no estimate of the noise, and takes whatever else is wrong with the data
(motion, a wrong slice profile) into account. It is done on a part of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.fitting.measurement import Measurement, Values
from napari_arssr.fitting.poses import FloatArray
from napari_arssr.fitting.srr import Prior, Problem
from napari_arssr.fitting.stacks import Stack
from napari_arssr.volume import Box, Grid
from napari_arssr.watching import Advance, Stop, never

__all__ = ["TRIAL_SIDE", "Choice", "Trial", "choose_weight", "trial_box"]

Array = npt.NDArray[np.float32]

TRIAL_SIDE = 48
"""Voxels along each side of the part that weights are tried on, at most."""

_HELD_BACK = 0.05
_LARGEST, _SMALLEST, _STEP = 0.3, 1e-5, 10**0.5


@dataclass(frozen=True, eq=False)
class Choice:
    """A weight, and what came of it on a trial.

    Parameters
    ----------
    weight : float
        λ.
    volume : (z, y, x) array
        Of the trial.
    errors : (n,) array
        See :meth:`Trial.errors`.
    """

    weight: float
    volume: Array
    errors: FloatArray

    @property
    def error(self) -> float:
        """Mean square error of the voxels held back."""
        return float(self.errors.mean())

    def surpasses(self, other: Choice) -> bool:
        """Whether it predicts better, by more than a standard error."""
        mean, error = _difference(other.errors, self.errors)
        return mean > error


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

    @property
    def grid(self) -> Grid:
        """The part."""
        return self.problem.measurement.grid

    def start(self, prior: Prior) -> Array:
        """Where to begin."""
        return self.problem.start() if prior.expected is None else prior.expected

    def choice(
        self,
        prior: Prior,
        start: Array,
        *,
        stop: Stop = never,
        advance: Advance = lambda _share: None,
    ) -> Choice:
        """What comes of a prior's own weight."""
        volume = self.problem.solve(prior, start, stop=stop, advance=advance)
        return Choice(prior.weight, volume, self.errors(volume))

    def errors(self, volume: Array) -> FloatArray:
        """Square error of each voxel held back, as the volume predicts it, times its weight.

        Weights are divided by their mean.
        """
        parts = zip(self.problem.residuals(volume), self.held, self.weights, strict=True)
        squares = [weight[held] * residual[held] ** 2 for residual, held, weight in parts]
        total = sum(float(w[h].sum()) for h, w in zip(self.held, self.weights, strict=True))
        found = np.concatenate(squares).astype(np.float64)
        return found * (len(found) / total) if total > 0 else np.zeros(1)


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
) -> Choice:
    """The largest weight λ that predicts as well as any.

    Weights fall from 0.3 by factors of √10 until the prediction has worsened twice; the best is
    found between them by a parabola. Of larger ones, those count as well as the best whose
    prediction is worse by less than one standard error (Breiman et al., "Classification and
    Regression Trees", 1984, §3.4.3), that of the difference: voxels held back are means over
    thick slices, and hardly show the noise that too small a weight lets into the volume.

    Parameters
    ----------
    trial : Trial
    prior : Prior
        On the trial's grid; what it expects must not have seen the voxels held back either.
    stop, advance : callables
    """
    estimate = trial.start(prior)
    weights: list[float] = []
    errors: list[FloatArray] = []
    volumes: list[Array] = []
    weight, best = _LARGEST, 0
    span = np.log(_LARGEST / _SMALLEST) / np.log(_STEP) + 1
    while weight >= 0.99 * _SMALLEST:
        estimate = trial.problem.solve(
            replace(prior, weight=weight), estimate, rounds=3, iterations=8, stop=stop
        )
        weights.append(float(np.log(weight)))
        errors.append(trial.errors(estimate))
        volumes.append(estimate)
        advance(min(len(weights) / span, 1.0))
        best = int(np.argmin([error.mean() for error in errors]))
        if len(errors) - 1 - best >= 2:
            break
        weight /= _STEP
    chosen = max(_lowest(weights, errors, best), _as_good(weights, errors, best))
    prior = replace(prior, weight=float(np.exp(chosen)))
    return trial.choice(prior, volumes[best], stop=stop)


def _lowest(weights: list[float], errors: list[FloatArray], best: int) -> float:
    """Where a parabola through the best and its neighbours is lowest."""
    if not 0 < best < len(weights) - 1:
        return weights[best]
    a, b, c = weights[best - 1 : best + 2]
    fa, fb, fc = (float(error.mean()) for error in errors[best - 1 : best + 2])
    below = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    if below == 0:
        return b
    place = b - 0.5 * ((b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)) / below
    return float(np.clip(place, min(a, c), max(a, c)))


def _as_good(weights: list[float], errors: list[FloatArray], best: int) -> float:
    """The largest weight whose error is within a standard error of the best; they are descending.

    Between weights that were tried the difference is taken to grow evenly.
    """
    result = weights[best]
    before = 0.0
    for number in range(best - 1, -1, -1):
        difference, limit = _difference(errors[number], errors[best])
        if difference > limit:
            share = max(0.0, limit - before) / (difference - before)
            return result + share * (weights[number] - result)
        result, before = weights[number], difference
    return result


def _difference(one: FloatArray, other: FloatArray) -> tuple[float, float]:
    """Mean of a difference, and its standard error."""
    difference = one - other
    return float(difference.mean()), float(difference.std() / np.sqrt(len(difference)))
