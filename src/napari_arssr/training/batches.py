"""Training pairs as tensors, and what a network makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from napari_arssr.models import ArSSR, Regressor, build
from napari_arssr.models.decoders import PublishedDecoder, index_at
from napari_arssr.models.lattice import Matrices
from napari_arssr.training.config import TrainingConfig

__all__ = [
    "Batch",
    "GridBatch",
    "LatticeBatch",
    "Network",
    "PointBatch",
    "build_network",
    "is_dead",
    "moved",
    "predict",
]

Network = ArSSR | Regressor

_PROBE, _PROBE_POINTS = 6, 512  # voxels along each axis, and places


class LatticeBatch(NamedTuple):
    """Pairs whose targets lie on a lattice: B pairs, n LR voxels and m points along each axis.

    ``low`` (B, n, n, n); ``weights`` three (B, m, n); ``positions`` three (B, m, q); ``gate``
    (B, 1, 1, 1), the share of a residual that counts; ``base`` (B, m, m, m), cubic
    interpolation of ``low``; ``target`` (B, m, m, m); ``names``: the volumes drawn from.
    """

    low: Tensor
    weights: Matrices
    positions: Matrices
    gate: Tensor
    base: Tensor
    target: Tensor
    names: tuple[str, ...]


class PointBatch(NamedTuple):
    """Pairs whose targets are single HR voxels: B pairs, n LR voxels along an axis, p points.

    ``low`` (B, n, n, n); ``points`` (B, p, 3), (z, y, x) from -1 to 1 over the span of ``low``;
    ``base`` (B, p), cubic interpolation of ``low``, or (B, 0) where nobody asks for it;
    ``target`` (B, p); ``names``: the volumes drawn from.
    """

    low: Tensor
    points: Tensor
    base: Tensor
    target: Tensor
    names: tuple[str, ...]


class GridBatch(NamedTuple):
    """Pairs whose targets are all HR voxels, for baselines: B pairs of (z, y, x) voxels.

    ``base`` (B, z, y, x), cubic interpolation of the LR patch, which is what a baseline takes;
    ``target`` (B, z, y, x); ``names``: the volumes drawn from.
    """

    base: Tensor
    target: Tensor
    names: tuple[str, ...]


Batch = LatticeBatch | PointBatch | GridBatch


def build_network(config: TrainingConfig) -> Network:
    """The network that settings ask for, with random weights.

    The published decoder ends in a ReLU, and many a draw of its weights answers 0 everywhere:
    such a network has no gradient and would never learn, so that it is drawn again.
    """
    network = build(config.network)
    while isinstance(network, ArSSR) and is_dead(network):
        network = build(config.network)
    return network


def is_dead(model: ArSSR) -> bool:
    """Whether a network with the published decoder answers 0 wherever it is asked."""
    if not isinstance(model.decoder, PublishedDecoder):
        return False
    # Numbers of its own: a draw that lives is the one that the seed gives.
    generator = torch.Generator().manual_seed(0)
    low = torch.rand((1, *[_PROBE] * 3), generator=generator)
    points = 2 * torch.rand((1, _PROBE_POINTS, 3), generator=generator) - 1
    nothing = torch.empty((1, 0))
    with torch.no_grad():
        answers = _predict_points(model, PointBatch(low, points, nothing, nothing, ()))
    return not bool((answers > 0).any())


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""

    def there(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, tuple | list):  # pinned memory makes lists of tuples
            return tuple(there(part) for part in value)
        return value

    return type(batch)(*(there(value) for value in batch))  # type: ignore[arg-type]


def predict(model: Network, batch: Batch) -> Tensor:
    """Intensities at the batch's points, float32, shaped as its target.

    Inside :class:`torch.autocast` the network runs in its dtype.
    """
    if isinstance(model, Regressor) or isinstance(batch, GridBatch):
        assert isinstance(model, Regressor)
        refined: Tensor = model(batch.base)
        return refined.float()
    if isinstance(batch, PointBatch):
        return _predict_points(model, batch)
    nodes = model.encode(batch.low)
    device = batch.low.device.type
    if torch.is_autocast_enabled(device):  # it does not reach the interpolation's operands
        nodes = nodes.to(torch.get_autocast_dtype(device))
    terms = model.position_terms(batch.positions)
    decoded = model.decode_lattice(nodes, batch.weights, terms).float()
    if isinstance(model.decoder, PublishedDecoder):
        return decoded
    return batch.base + batch.gate * decoded


def _predict_points(model: ArSSR, batch: PointBatch) -> Tensor:
    decoder = model.decoder
    assert isinstance(decoder, PublishedDecoder)
    features = model.encode(batch.low)
    sampled = _interpolate(features, batch.points)
    return decoder.at_points(sampled, batch.points).float()


def _interpolate(features: Tensor, points: Tensor) -> Tensor:
    """Trilinear interpolation of (B, z, y, x, channels) at (B, p, 3), zeros outside.

    What ``grid_sample`` computes with ``align_corners=False``, as weighted sums of rows, which
    keep their channels together: several times faster forth and back, in any precision.
    """
    batch, *sizes, channels = features.shape
    size = torch.tensor(sizes, device=points.device)
    index = index_at(points, size)
    low = index.floor()
    fraction = index - low
    rows, shares = [], []
    first = torch.arange(batch, device=points.device)[:, None] * size.prod()
    for corner in range(8):
        offset = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=points.device)
        node = low.long() + offset
        inside = ((node >= 0) & (node < size)).all(dim=-1)
        share = torch.where(offset.bool(), fraction, 1 - fraction).prod(dim=-1) * inside
        node = torch.minimum(node.clamp(min=0), size - 1)
        rows.append(first + (node[..., 0] * size[1] + node[..., 1]) * size[2] + node[..., 2])
        shares.append(share)
    table = features.reshape(-1, channels)
    result = functional.embedding_bag(
        torch.stack(rows, dim=-1).reshape(-1, 8),
        table,
        per_sample_weights=torch.stack(shares, dim=-1).reshape(-1, 8).to(table.dtype),
        mode="sum",
    )
    return result.reshape(batch, -1, channels)
