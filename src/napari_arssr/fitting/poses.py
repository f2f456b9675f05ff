"""Rigid motions: where slices were when they were measured.

A motion is a 4×4 matrix from where a slice's file says a point is to where it is in the
reference's world, both RAS+ millimetres. Six parameters describe a small one: a rotation
vector (radians) about a centre, and a translation (millimetres), along R, A, S.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from napari_arssr.volume import Grid

__all__ = [
    "FloatArray",
    "angles",
    "displacement",
    "length_unit",
    "parameters_of",
    "rigid",
    "typical_motion",
]

FloatArray = npt.NDArray[np.float64]

# Turns count as the units of length they move what is as far from the centre as a brain's surface.
_ARM = 60.0
_NEAR = 0.02  # units of length that make no difference
_BRAIN = 150.0  # millimetres


def length_unit(grid: Grid) -> float:
    """Millimetres that stand to a subject as one does to a brain.

    What is a length in fitting (how far slices move, where steps end) is told for brains. Of
    what is imaged in less than 15 mm it is a tenth of that, in less than 1.5 mm a hundredth, and
    so on.
    """
    longest = max(n * side for n, side in zip(grid.shape, grid.spacing, strict=True))
    return float(10.0 ** min(0, math.ceil(math.log10(longest / _BRAIN))))


def rigid(parameters: npt.ArrayLike, centre: npt.ArrayLike) -> FloatArray:
    """Motions p → R (p - c) + c + t.

    Parameters
    ----------
    parameters : (…, 6) array
        Rotation vectors in radians, then translations in millimetres.
    centre : (…, 3) array
        c, RAS+ millimetres.

    Returns
    -------
    (…, 4, 4) array
    """
    from scipy.spatial.transform import Rotation

    values = np.asarray(parameters, dtype=np.float64)
    flat = values.reshape(-1, 6)
    centres = np.broadcast_to(np.asarray(centre, dtype=np.float64), (*values.shape[:-1], 3))
    centres = centres.reshape(-1, 3)
    result = np.tile(np.eye(4), (len(flat), 1, 1))
    turn = Rotation.from_rotvec(flat[:, :3]).as_matrix()
    result[:, :3, :3] = turn
    result[:, :3, 3] = centres + flat[:, 3:] - np.einsum("nij,nj->ni", turn, centres)
    return result.reshape(*values.shape[:-1], 4, 4)


def parameters_of(motions: npt.ArrayLike, centre: npt.ArrayLike) -> FloatArray:
    """The six parameters (…, 6) of motions (…, 4, 4) about a centre: inverse of :func:`rigid`."""
    from scipy.spatial.transform import Rotation

    matrices = np.asarray(motions, dtype=np.float64)
    flat = matrices.reshape(-1, 4, 4)
    centres = np.broadcast_to(np.asarray(centre, dtype=np.float64), (*matrices.shape[:-2], 3))
    centres = centres.reshape(-1, 3)
    turn = flat[:, :3, :3]
    moved = np.einsum("nij,nj->ni", turn, centres) + flat[:, :3, 3]
    vectors = Rotation.from_matrix(turn).as_rotvec()
    return np.concatenate([vectors, moved - centres], axis=1).reshape(*matrices.shape[:-2], 6)


def typical_motion(
    motions: FloatArray, weights: FloatArray, centre: npt.ArrayLike, unit: float = 1.0
) -> FloatArray:
    """The motion (4, 4) that most of several (n, 4, 4), near one another, agree on.

    The geometric median of their parameters (Weiszfeld 1937): slices that moved alone do not
    draw it to them, as they would a mean.

    Parameters
    ----------
    motions : (n, 4, 4) array
    weights : (n,) array
        How much each counts.
    centre : (3,) array
        Of rotation, RAS+ millimetres.
    unit : float
        See :func:`length_unit`.
    """
    scale = np.array([_ARM] * 3 + [1 / unit] * 3)
    first = motions[int(np.argmax(weights))]
    apart = parameters_of(motions @ np.linalg.inv(first), centre)
    scaled = apart * scale
    middle = np.median(scaled, axis=0)
    for _ in range(30):
        distance = np.linalg.norm(scaled - middle, axis=1)
        share = np.maximum(weights, 1e-12) / np.maximum(distance, _NEAR)
        middle = (share[:, None] * scaled).sum(axis=0) / share.sum()
    return np.asarray(rigid(middle / scale, centre) @ first)


def displacement(one: FloatArray, other: FloatArray, points: FloatArray) -> FloatArray:
    """How far two sets of motions (…, 4, 4) bring points (p, 3) apart: root mean square, mm."""
    apart = one - other
    moved = points @ np.swapaxes(apart[..., :3, :3], -1, -2) + apart[..., None, :3, 3]
    return np.asarray(np.sqrt(np.square(moved).sum(axis=-1).mean(axis=-1)))


def angles(one: FloatArray, other: FloatArray) -> FloatArray:
    """Angle of rotation between two sets of motions (…, 4, 4), degrees."""
    turn = np.swapaxes(one[..., :3, :3], -1, -2) @ other[..., :3, :3]
    cosine = (np.trace(turn, axis1=-2, axis2=-1) - 1) / 2
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
