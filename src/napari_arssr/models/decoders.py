"""Decoders: the interpolated feature at a point, and where the point is, to an intensity.

A decoder reads positions as one code per axis (``encode_position``). Its first layer is linear
in them, so their share is a sum of three terms (``position_term``) that broadcasts over a
lattice instead of channels that are written out for every point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_arssr.devices import onednn_takes
from napari_arssr.interpolation import Outside
from napari_arssr.models.lattice import Matrices, interpolate_lattice, lattice_positions

__all__ = ["PublishedDecoder", "ResidualDecoder", "absolute_position", "index_at"]


def absolute_position(index: Any, size: Any) -> Any:
    """Where voxel indices lie along an axis of ``size`` voxels: faces at -1 and 1.

    Published networks know places in this form (Wu et al. 2023, section III-C). For tensors and
    arrays alike.
    """
    return (2 * index + 1) / size - 1


def index_at(position: Any, size: Any) -> Any:
    """The inverse of :func:`absolute_position`."""
    return ((position + 1) * size - 1) / 2


class PublishedDecoder(nn.Module):
    """The decoder of ArSSR (Wu et al., IEEE JBHI 2023, section III-C).

    Two stages of ``depth / 2`` linear layers with ReLU after every layer, the last included;
    the second reads the first's input plus its output. Positions are absolute: the volume
    spans [-1, 1] along each axis.

    Parameters
    ----------
    feature_dim, depth, width : int
        Channels of the feature map, linear layers in all, units of a hidden layer.
    """

    residual = False
    outside: Outside = "zeros"

    def __init__(self, feature_dim: int = 128, depth: int = 8, width: int = 256) -> None:
        super().__init__()
        if depth < 4 or depth % 2:
            raise ValueError(f"The decoder's depth must be even and at least 4, not {depth}.")
        inputs = feature_dim + 3
        self.stage_one = self._stage(inputs, width, inputs, depth // 2)
        self.stage_two = self._stage(inputs, width, 1, depth // 2)

    @staticmethod
    def _stage(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
        sizes = [inputs, *[width] * (depth - 1), outputs]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def encode_position(self, coordinates: Tensor, size: int, _cell: float) -> Tensor:
        """Absolute position of indices (m,) along an axis of ``size`` voxels, (m, 1)."""
        code: Tensor = absolute_position(coordinates, size).unsqueeze(-1)
        return code

    @staticmethod
    def mirrored(code: Tensor) -> Tensor:
        """The same places' code where the axis runs the other way."""
        return -code

    def position_term(self, _axis: int, code: Tensor) -> Tensor:
        """What :meth:`forward` takes of an axis: the code itself."""
        return code

    def prepare(self, nodes: Tensor) -> Tensor:
        """What is interpolated: the features as they are."""
        return nodes

    def on_lattice(self, nodes: Tensor, weights: Matrices, positions: Matrices) -> Tensor:
        """:meth:`forward` for features at nodes, interpolated at every point of a lattice."""
        features = interpolate_lattice(nodes, weights).to(nodes.dtype)
        decoded: Tensor = self(features, lattice_positions(positions))
        return decoded

    def forward(self, features: Tensor, positions: Matrices) -> Tensor:
        """Intensities (…) from features (…, channels) and three codes (…, 1)."""
        channels = features.shape[-1]
        first = self.stage_one[0]
        assert isinstance(first, nn.Linear)
        hidden = functional.linear(features, first.weight[:, :channels])
        # Two of the three axes' shares are added where they are small.
        z, y, x = (code * first.weight[:, channels + axis] for axis, code in enumerate(positions))
        hidden = hidden.add_(z).add_(y + x + first.bias).relu_()
        stage = _linear_relu(list(self.stage_one)[2:], hidden)
        if torch.is_grad_enabled():  # the last ReLU's output is needed for its gradient
            stage = stage.clone()
        stage[..., :channels] += features
        for axis, code in enumerate(positions):
            stage[..., channels + axis] += code[..., 0]
        return _linear_relu(self.stage_two, stage)[..., 0]

    def at_points(self, features: Tensor, points: Tensor) -> Tensor:
        """:meth:`forward` for points that share no axes: features (…, channels), points (…, 3).

        Positions (z, y, x) are absolute, in [-1, 1].
        """
        inputs = torch.cat([features, points.to(features.dtype)], dim=-1)
        decoded: Tensor = self.stage_two(inputs + self.stage_one(inputs))
        return decoded[..., 0]


class ResidualDecoder(nn.Module):
    """The decoder of this project: a residual over cubic interpolation of the LR volume.

    It sees the offset to the LR centres as a phase (sine and cosine, so that the result stays
    continuous where the nearest centre changes) and the cell size: how much of an LR voxel
    one sampled voxel covers (Chen et al., LIIF, CVPR 2021, "cell decoding"). Linear head.

    Parameters
    ----------
    feature_dim, depth, width : int
        Channels of the feature map, hidden layers, their units.
    harmonics : int
        Sine and cosine pairs in a position code.
    finest_cell : float
        The smallest cell seen in training; finer ones are decoded as this one.
    """

    residual = True
    outside: Outside = "border"

    def __init__(
        self,
        feature_dim: int = 64,
        depth: int = 3,
        width: int = 128,
        harmonics: int = 2,
        finest_cell: float = 0.25,
    ) -> None:
        super().__init__()
        self.harmonics = harmonics
        self.finest_cell = finest_cell
        self.feature = nn.Linear(feature_dim, width, bias=False)
        self.position = nn.ModuleList(
            nn.Linear(2 * harmonics + 1, width, bias=axis == 0) for axis in range(3)
        )
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.head = nn.Linear(width, 1)
        # Training starts from cubic interpolation.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def encode_position(self, coordinates: Tensor, _size: int, cell: float) -> Tensor:
        """Phase and cell of indices (m,) along an axis, (m, 2 · harmonics + 1)."""
        code = [
            wave(2 * math.pi * (harmonic + 1) * coordinates)
            for harmonic in range(self.harmonics)
            for wave in (torch.cos, torch.sin)
        ]
        clipped = min(max(cell, self.finest_cell), 1.0)
        return torch.stack([*code, torch.full_like(coordinates, clipped)], dim=-1)

    @staticmethod
    def mirrored(code: Tensor) -> Tensor:
        """The same places' code where the axis runs the other way: sines change their sign."""
        signs = torch.ones(code.shape[-1], dtype=code.dtype, device=code.device)
        signs[1:-1:2] = -1
        return code * signs

    def position_term(self, axis: int, code: Tensor) -> Tensor:
        """What :meth:`forward` takes of an axis: the first layer's share of the code."""
        term: Tensor = self.position[axis](code)
        return term

    def prepare(self, nodes: Tensor) -> Tensor:
        """What is interpolated: the first layer's share of the features.

        A linear layer and a linear interpolation commute, and there are fewer nodes than
        points.
        """
        projected: Tensor = self.feature(nodes)
        return projected

    def on_lattice(self, nodes: Tensor, weights: Matrices, positions: Matrices) -> Tensor:
        """:meth:`forward` for features at nodes, interpolated at every point of a lattice."""
        prepared = self.prepare(nodes)
        first = interpolate_lattice(prepared, weights, positions)
        return self._read(first.relu_().to(prepared.dtype))

    def forward(self, features: Tensor, positions: Matrices) -> Tensor:
        """Residuals (…) from prepared features (…, width), which are overwritten, and three terms.

        The terms (…, width) are those of :meth:`position_term`.
        """
        z, y, x = positions
        return self._read(features.add_(z).add_(y).add_(x).relu_())

    def _read(self, hidden: Tensor) -> Tensor:
        """Residuals from the first layer's output."""
        result: Tensor = self.head(_linear_relu(self.hidden, hidden))
        return result[..., 0]

    @staticmethod
    def gate(cell: Sequence[float]) -> float:
        """Share of the residual that counts: 0 for the LR voxel itself, towards 1 for a point.

        So a volume sampled at its own voxels is itself, whatever the network says.
        """
        return 1 - math.prod(min(extent, 1.0) for extent in cell)


def _linear_relu(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Linear layers with a ReLU after each, last axis to last axis; other modules are skipped.

    Without gradients bias and ReLU are applied by the matrix product itself, which saves one
    pass over memory a layer, two with oneDNN.
    """
    shape = x.shape[:-1]
    x = x.reshape(-1, x.shape[-1])
    for layer in layers:
        if not isinstance(layer, nn.Linear):
            continue
        weight, bias = layer.weight, layer.bias
        if torch.is_grad_enabled():
            x = layer(x).relu_()
        elif _is_onednns(x, weight):
            x = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
        else:
            x = torch._addmm_activation(bias, x, weight.T)
    return x.reshape(*shape, -1)


def _is_onednns(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these: some processors have none, and autocast mixes types."""
    return x.device.type == "cpu" and x.dtype == weight.dtype and onednn_takes(x.dtype)
