"""SRR: the volume whose measurement is nearest to the stacks, kept plausible by a prior.

    x = argmin Σ ω (y - W x)² + λ R(x - z)

W is the :class:`~napari_arssr.fitting.measurement.Measurement`, ω a weight for each voxel of the
stacks, R the squared gradient (Tikhonov) or its length (total variation, TV; Rudin et al. 1992),
and z what is expected: nothing, or a volume that knows more than the stacks say. Nothing is ever
written as a matrix: conjugate gradients (CG) ask for W and its transpose only. TV is a series of
weighted Tikhonov problems (lagged diffusivity, Vogel & Oman 1996).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import Penalty
from napari_arssr.errors import Cancelled, UsageError
from napari_arssr.fitting.measurement import Measurement, Values
from napari_arssr.volume import Triple
from napari_arssr.watching import Advance, Stop, never

__all__ = ["Prior", "Problem", "Roughness", "gradient", "gradient_adjoint"]

Array = npt.NDArray[np.float32]

# Of the range of intensities: gradients below it count as flat.
_FLAT = 0.01


@dataclass(frozen=True)
class Prior:
    """What is known of a volume before it is measured.

    Parameters
    ----------
    penalty : {"tv", "tikhonov"}
    weight : float
        λ, for intensities in [0, 1] and gradients per voxel of the finest side.
    expected : (z, y, x) array, optional
        z. The prior is about the difference from it; about the volume itself if not given.
    """

    penalty: Penalty = "tv"
    weight: float = 1e-3
    expected: Array | None = None

    def __post_init__(self) -> None:
        if self.penalty not in get_args(Penalty):
            raise UsageError(
                f"There is no prior {self.penalty!r}: choose {', '.join(get_args(Penalty))}."
            )
        if not 0 <= self.weight < np.inf:
            raise UsageError(f"The weight of a prior is 0 or more, not {self.weight!r}.")


def gradient(volume: Array, steps: Triple) -> list[Array]:
    """Forward differences along (z, y, x), divided by ``steps``; 0 at the far faces."""
    result = []
    for axis, step in enumerate(steps):
        part = np.zeros_like(volume)
        inner = _ahead(axis)
        np.subtract(volume[_behind(axis)], volume[inner], out=part[inner])
        result.append(part * np.float32(1 / step))
    return result


def gradient_adjoint(parts: list[Array], steps: Triple) -> Array:
    """The transpose of :func:`gradient`."""
    result = np.zeros_like(parts[0])
    for axis, (part, step) in enumerate(zip(parts, steps, strict=True)):
        inner = _ahead(axis)
        scaled = part[inner] * np.float32(1 / step)
        result[inner] -= scaled
        result[_behind(axis)] += scaled
    return result


def _ahead(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(None, -1),)


def _behind(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(1, None),)


@dataclass(frozen=True, eq=False)
class Roughness:
    """λ Dᵀ v D: the prior as a quadratic form around an estimate.

    ``weights`` (v, times λ) is an array over voxels, or one number.
    """

    weights: Array | float
    steps: Triple

    def __call__(self, volume: Array) -> Array:
        """The form's matrix times a volume."""
        if isinstance(self.weights, float) and self.weights == 0:
            return np.zeros_like(volume)
        parts = gradient(volume, self.steps)
        return gradient_adjoint([part * self.weights for part in parts], self.steps)


class Problem:
    """A reconstruction: what was measured, how much each voxel counts, on which grid.

    Parameters
    ----------
    measurement : Measurement
    values : list of arrays
        y, for each stack.
    weights : list of arrays
        ω; voxels whose profile leaves the volume do not count whatever they say.
    """

    def __init__(self, measurement: Measurement, values: Values, weights: Values) -> None:
        self.measurement = measurement
        self.values = values
        self.weights = [w * i for w, i in zip(weights, measurement.inside, strict=True)]
        finest = min(measurement.grid.spacing)
        z, y, x = (step / finest for step in measurement.grid.spacing)
        self.steps: Triple = (z, y, x)
        self._right = measurement.adjoint(
            [w * v for w, v in zip(self.weights, values, strict=True)]
        )

    def start(self) -> Array:
        """A first guess: what the stacks say of each voxel, averaged."""
        cover = self.measurement.adjoint(self.weights)
        known = cover > 1e-3 * max(float(cover.max()), 1e-12)
        mean = float(self._right.sum()) / max(float(cover.sum()), 1e-12)
        guess = np.full_like(cover, mean)
        np.divide(self._right, cover, out=guess, where=known)
        return guess

    def roughness(self, estimate: Array, prior: Prior) -> Roughness:
        """The prior's quadratic form around an estimate."""
        if prior.penalty == "tikhonov" or prior.weight == 0:
            return Roughness(float(prior.weight), self.steps)
        length = np.full_like(estimate, _FLAT**2)
        unexpected = estimate if prior.expected is None else estimate - prior.expected
        for part in gradient(unexpected, self.steps):
            length += part * part
        strength = np.float32(prior.weight) / np.sqrt(length)
        return Roughness(strength.astype(np.float32, copy=False), self.steps)

    def normal(self, volume: Array) -> Array:
        """Wᵀ ω W x."""
        seen = self.measurement.forward(volume)
        return self.measurement.adjoint([w * s for w, s in zip(self.weights, seen, strict=True)])

    def solve(
        self,
        prior: Prior,
        start: Array,
        *,
        rounds: int = 6,
        iterations: int = 12,
        stop: Stop = never,
        advance: Advance = lambda _share: None,
        seen: Callable[[Array], None] = lambda _volume: None,
    ) -> Array:
        """The reconstruction.

        Parameters
        ----------
        prior : Prior
        start : (z, y, x) array
            Where to begin; the nearer, the fewer rounds it takes.
        rounds : int
            Of TV; Tikhonov takes as many conjugate gradients in one.
        iterations : int
            Conjugate gradients a round.
        stop : callable
            Asked at every one of them.
        advance : callable
            Told the share that is done.
        seen : callable
            Shown the volume after each round.

        Raises
        ------
        Cancelled
        """
        if prior.penalty == "tikhonov":
            rounds, iterations = 1, rounds * iterations
        estimate = start
        for number in range(rounds):
            form = self.roughness(estimate, prior)

            def told(share: float, number: int = number) -> None:
                advance((number + share) / rounds)

            right = self._right
            if prior.expected is not None:
                right = right + form(prior.expected)
            estimate = self.quadratic(
                form, right, estimate, iterations=iterations, stop=stop, advance=told
            )
            seen(estimate)
        return estimate

    def quadratic(
        self,
        form: Roughness,
        right: Array,
        start: Array,
        *,
        iterations: int,
        tolerance: float = 1e-5,
        stop: Stop = never,
        advance: Advance = lambda _share: None,
    ) -> Array:
        """Conjugate gradients (Hestenes & Stiefel 1952) for a prior that is a quadratic form."""

        def matrix(volume: Array) -> Array:
            return self.normal(volume) + form(volume)

        estimate = start.astype(np.float32, copy=True)
        residual = right - matrix(estimate)
        direction = residual.copy()
        power = _dot(residual, residual)
        enough = tolerance**2 * max(_dot(right, right), 1e-30)
        for number in range(iterations):
            if stop():
                raise Cancelled
            if power <= enough:
                break
            product = matrix(direction)
            step = np.float32(power / max(_dot(direction, product), 1e-30))
            estimate += step * direction
            residual -= step * product
            before, power = power, _dot(residual, residual)
            direction *= np.float32(power / before)
            direction += residual
            advance((number + 1) / iterations)
        return estimate

    def residuals(self, volume: Array) -> Values:
        """Left of the data, y - W x."""
        seen = self.measurement.forward(volume)
        return [v - s for v, s in zip(self.values, seen, strict=True)]

    def error(self, volume: Array) -> float:
        """Root mean square of what a volume leaves of the data, each voxel by its weight."""
        pairs = zip(self.weights, self.residuals(volume), strict=True)
        total = sum(float(weight.sum()) for weight in self.weights)
        return float(np.sqrt(sum(_dot(w * left, left) for w, left in pairs) / max(total, 1e-12)))


def _dot(a: Array, b: Array) -> float:
    return float(np.vdot(a, b))
