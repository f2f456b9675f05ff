"""Separable interpolation: one small matrix per axis.

Sampling a regular grid along aligned axes is the product of three one-dimensional
interpolations, so each is written as a matrix (samples × nodes) and applied along its axis.
Coordinates are voxel indices: 0 is the first voxel's centre, -½ its outer face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Outside",
    "apply_separable",
    "linear_support",
    "linear_weights",
    "spline_coefficients",
    "spline_matrix",
    "spline_support",
    "spline_weights",
]

Outside = Literal["border", "zeros"]
FloatArray = npt.NDArray[np.floating[Any]]


def linear_support(coordinates: FloatArray, size: int) -> tuple[int, int]:
    """First and one past the last node that linear interpolation at ``coordinates`` reads."""
    low = int(np.floor(coordinates.min()))
    high = int(np.floor(coordinates.max())) + 1
    return min(max(low, 0), size - 1), min(max(high, 0), size - 1) + 1


def linear_weights(
    coordinates: FloatArray, size: int, start: int, stop: int, outside: Outside = "border"
) -> npt.NDArray[np.float32]:
    """Linear interpolation of nodes ``start`` … ``stop``-1 of an axis of ``size`` nodes.

    Parameters
    ----------
    coordinates : (m,) array
        Where to sample, in node indices.
    size : int
        Nodes along the whole axis.
    start, stop : int
        The nodes present; they must hold :func:`linear_support`.
    outside : {"border", "zeros"}
        What lies beyond the outer nodes: their own value, or zeros (as
        ``torch.nn.functional.grid_sample`` with ``align_corners=False`` has them).

    Returns
    -------
    (m, stop - start) float32 array
    """
    if outside == "border":
        coordinates = np.clip(coordinates, 0, size - 1)
    low = np.floor(coordinates).astype(np.int64)
    fraction = coordinates - low
    weights = np.zeros((len(coordinates), stop - start), dtype=np.float64)
    rows = np.arange(len(coordinates))
    for node, weight in ((low, 1 - fraction), (low + 1, fraction)):
        present = (node >= 0) & (node < size) & (weight > 0)
        np.add.at(weights, (rows[present], node[present] - start), weight[present])
    return weights.astype(np.float32)


def spline_coefficients(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Cubic B-spline coefficients of a (z, y, x) array, mirrored at its outer centres.

    The prefilter of Unser, Aldroubi & Eden (IEEE TSP 1993), by SciPy.
    """
    from scipy.ndimage import spline_filter1d

    # In float64 one axis at a time would hold the volume twice over at eight bytes a voxel.
    coefficients = array.astype(np.float32)
    for axis, size in enumerate(array.shape):
        if size > 1:
            spline_filter1d(coefficients, 3, axis, output=coefficients, mode="mirror")
    return coefficients


def spline_support(coordinates: FloatArray, size: int) -> tuple[int, int]:
    """First and one past the last coefficient that a cubic B-spline at ``coordinates`` reads."""
    nodes = _mirror(_spline_nodes(coordinates), size)
    return int(nodes.min()), int(nodes.max()) + 1


def spline_weights(
    coordinates: FloatArray, size: int, start: int, stop: int
) -> npt.NDArray[np.float32]:
    """Cubic B-spline weights over coefficients ``start`` … ``stop``-1 of ``size``.

    Returns
    -------
    (m, stop - start) float32 array
        Apply to :func:`spline_coefficients`; the result goes through the samples at whole
        coordinates.
    """
    nodes = _spline_nodes(coordinates)
    distance = np.abs(coordinates[:, None] - nodes)
    values = np.where(
        distance < 1,
        2 / 3 - distance**2 + distance**3 / 2,
        np.clip(2 - distance, 0, None) ** 3 / 6,
    )
    folded = _mirror(nodes, size) - start
    weights = np.zeros((len(coordinates), stop - start), dtype=np.float64)
    rows = np.broadcast_to(np.arange(len(coordinates))[:, None], nodes.shape)
    np.add.at(weights, (rows, folded), values)
    return weights.astype(np.float32)


def spline_matrix(coordinates: FloatArray, size: int) -> npt.NDArray[np.float32]:
    """Cubic interpolation as one matrix (m, size), prefilter included; for short axes."""
    if size == 1:
        return np.ones((len(coordinates), 1), dtype=np.float32)
    at_nodes = spline_weights(np.arange(size, dtype=np.float64), size, 0, size)
    weights = spline_weights(coordinates, size, 0, size)
    solved = np.linalg.solve(at_nodes.T.astype(np.float64), weights.T.astype(np.float64))
    return np.asarray(solved.T, dtype=np.float32)


def apply_separable(
    matrices: Sequence[npt.NDArray[Any]], array: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Apply one (m, n) matrix along each of the three axes of a (z, y, x) array.

    The axis that shrinks most goes first, so that the work is least.
    """
    result = np.ascontiguousarray(array, dtype=np.float32)
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    for axis in order:
        matrix = matrices[axis].astype(np.float32, copy=False)
        if axis == 2:
            result = result @ matrix.T
        elif axis == 1:
            result = matrix @ result
        else:
            flat = matrix @ result.reshape(result.shape[0], -1)
            result = flat.reshape(matrix.shape[0], *result.shape[1:])
    return result


def _spline_nodes(coordinates: FloatArray) -> npt.NDArray[np.int64]:
    return np.floor(coordinates).astype(np.int64)[:, None] + np.arange(-1, 3)


def _mirror(nodes: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Fold indices back into 0 … size-1, mirrored at the outer centres."""
    if size == 1:
        return np.zeros_like(nodes)
    period = 2 * (size - 1)
    folded = np.mod(nodes, period)
    return np.minimum(folded, period - folded)
