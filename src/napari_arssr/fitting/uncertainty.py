"""How far each voxel of a reconstruction is known.

Near its optimum a reconstruction is the mean of a Gaussian, whose precision is the matrix that
conjugate gradients solve with, divided by the noise's variance. Draws from it are reconstructions
of noise ("perturb and optimise", Orieux et al. 2012): their standard deviation is the map.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_arssr.fitting.srr import Prior, Problem, Roughness, gradient_adjoint
from napari_arssr.watching import Advance, Stop, never

__all__ = ["uncertainty_of"]

Array = npt.NDArray[np.float32]

_DRAWS = 6
_ITERATIONS = 15
_SMOOTHING = 1.5  # voxels that variances are averaged over, for there are few draws


def uncertainty_of(
    problem: Problem,
    volume: Array,
    prior: Prior,
    noise: float,
    *,
    seed: int = 0,
    stop: Stop = never,
    advance: Advance = lambda _share: None,
) -> Array:
    """Standard deviation of each voxel, (z, y, x), in the problem's units.

    Parameters
    ----------
    problem : Problem
    volume : (z, y, x) array
        Its solution.
    prior : Prior
        That it was solved with.
    noise : float
        Variance of the data around what a reconstruction predicts.
    seed : int
    stop, advance : callables

    Raises
    ------
    Cancelled
    """
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    # Draws are around 0: beyond this form, what is expected has no part in how wide they are.
    form = problem.roughness(volume, prior)
    total = np.zeros_like(volume)
    for number in range(_DRAWS):
        right = problem.measurement.adjoint(
            [np.sqrt(w) * _normal(random, w.shape) for w in problem.weights]
        )
        right += _draw_of(form, random, volume.shape)

        def told(share: float, number: int = number) -> None:
            advance((number + share) / _DRAWS)

        draw = problem.quadratic(
            form,
            right,
            np.zeros_like(volume),
            iterations=_ITERATIONS,
            stop=stop,
            advance=told,
        )
        total += draw * draw
    variance = gaussian_filter(total, _SMOOTHING) * np.float32(noise / _DRAWS)
    return np.asarray(np.sqrt(np.maximum(variance, 0)), dtype=np.float32)


def _draw_of(form: Roughness, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise whose covariance is the form's matrix."""
    root = np.sqrt(np.asarray(form.weights, dtype=np.float32))
    return gradient_adjoint([root * _normal(random, shape) for _ in range(3)], form.steps)


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_normal(shape, dtype=np.float32)
