"""Iterative back-projection: the honest classical rival, which knows the point-spread function."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.interpolation import apply_separable, spline_matrix
from napari_arssr.volume import Grid, Volume

__all__ = ["back_project"]


def back_project(
    low: Volume,
    grid: Grid,
    scanner: ScannerModel,
    *,
    steps: int = 10,
    start: npt.NDArray[np.float32] | None = None,
) -> Volume:
    """Correct an estimate until, measured again, it gives the input (Irani & Peleg 1991).

    Each step adds the cubically interpolated difference between the input and the measured
    estimate: x ← x + C(y - A x).

    Parameters
    ----------
    low : Volume
        The LR volume y, 3D.
    grid : Grid
        Of the result; the same span.
    scanner : ScannerModel
        A, known.
    steps : int
    start : (z, y, x) array, optional
        The first estimate; cubic interpolation by default.

    Returns
    -------
    Volume
        float32, on ``grid``.
    """
    measure = scanner.matrices(grid.shape, low.grid.shape)
    index_map = grid.map_into(low.grid)
    cubic = [
        spline_matrix(index_map.coordinates(axis, 0, grid.shape[axis]), low.grid.shape[axis])
        for axis in range(3)
    ]
    estimate = apply_separable(cubic, low.data) if start is None else start
    for _ in range(steps):
        missing = low.data - apply_separable(measure, estimate)
        estimate = estimate + apply_separable(cubic, missing)
    return Volume(estimate, grid.affine, name=low.name)
