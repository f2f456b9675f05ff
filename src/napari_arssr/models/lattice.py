"""Trilinear interpolation of a feature map: one matrix product per axis on a lattice."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

__all__ = [
    "Matrices",
    "interpolate_lattice",
    "interpolate_points",
    "interpolate_scalars",
    "lattice_positions",
]

Matrices = tuple[Tensor, Tensor, Tensor]


def interpolate_lattice(nodes: Tensor, matrices: Matrices, terms: Matrices | None = None) -> Tensor:
    """Interpolate channels-last features at every point of a lattice.

    Parameters
    ----------
    nodes : (…, z, y, x, channels) tensor
    matrices : three (…, m, n) tensors
        Interpolation weights along z, y and x; leading axes as those of ``nodes``.
    terms : three (…, m, channels) tensors, optional
        Added to what is interpolated, each along its axis. Rows of ``matrices`` must then sum to
        one: a term is added as soon as its axis is interpolated, where the others are still few.

    Returns
    -------
    (…, mz, my, mx, channels) tensor
        On a processor in float32, unless gradients are wanted.
    """
    if nodes.device.type == "cpu" and not torch.is_grad_enabled():
        # Processors multiply such small matrices faster in float32 than in anything shorter.
        nodes = nodes.float()
    result = nodes
    # With channels last each axis is a plain product without a transpose, in any order: first
    # the axes that grow least (a slice shrinks), so that the largest product comes once.
    growth = [matrix.shape[-2] / matrix.shape[-1] for matrix in matrices]
    for axis in sorted((2, 1, 0), key=growth.__getitem__):
        matrix = matrices[axis].to(nodes.dtype)
        along = matrix.reshape(*matrix.shape[:-2], *[1] * axis, *matrix.shape[-2:])
        before, after = result.shape[: axis - 4], result.shape[axis - 3 :]
        result = torch.matmul(along, result.reshape(*before, matrix.shape[-1], -1))
        result = result.reshape(*before, matrix.shape[-2], *after)
        if terms is not None:
            result.add_(lattice_positions(terms)[axis])
    return result


def interpolate_scalars(nodes: Tensor, matrices: Matrices) -> Tensor:
    """The same for one value a node: (z, y, x) and three (m, n) to (mz, my, mx)."""
    along_z, along_y, along_x = matrices
    result = torch.matmul(along_y, nodes @ along_x.T)
    flat = along_z @ result.reshape(result.shape[0], -1)
    return flat.reshape(-1, *result.shape[1:])


def interpolate_points(nodes: Tensor, points: Tensor) -> Tensor:
    """Interpolate channels-last features at single points, for grids that are not aligned.

    Parameters
    ----------
    nodes : (z, y, x, channels) tensor
    points : (p, 3) float tensor
        Node indices in (z, y, x) order. Beyond the outer nodes their own value holds.

    Returns
    -------
    (p, channels) tensor
    """
    sizes = torch.tensor(nodes.shape[:3], device=points.device)
    clamped = torch.minimum(points.clamp(min=0), (sizes - 1).to(points.dtype))
    low = torch.minimum(clamped.floor().long(), (sizes - 2).clamp(min=0))
    fraction = clamped - low
    flat = nodes.reshape(-1, nodes.shape[-1])
    result = torch.zeros((len(points), nodes.shape[-1]), dtype=nodes.dtype, device=nodes.device)
    for corner in product((0, 1), repeat=3):
        offset = torch.tensor(corner, device=points.device)
        node = torch.minimum(low + offset, sizes - 1)
        weight = torch.where(offset.bool(), fraction, 1 - fraction).prod(dim=1)
        index = (node[:, 0] * sizes[1] + node[:, 1]) * sizes[2] + node[:, 2]
        result += flat[index] * weight.to(nodes.dtype).unsqueeze(1)
    return result


def lattice_positions(positions: Matrices) -> Matrices:
    """Shape per-axis position codes (…, m, q) so that they broadcast over a lattice."""
    along_z, along_y, along_x = positions
    return (
        along_z[..., :, None, None, :],
        along_y[..., None, :, None, :],
        along_x[..., None, None, :, :],
    )
