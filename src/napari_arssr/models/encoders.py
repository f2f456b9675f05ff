"""Encoders: an LR volume to a feature map of the same size.

All take (batch, 1, z, y, x) in [0, 1] and return (batch, feature_dim, z, y, x). Tensor names
are those of the published checkpoints. ``halo`` is the receptive field's radius in voxels;
``peak_channels`` the number of channels alive at once in a pass without gradients, which is
what an encoder's memory is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RDN", "ResCNN", "SRResNet", "first_layer"]


_PLANES = 8


def _conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, size, padding=size // 2)


def first_layer(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """The layer that sees intensities, in their precision; its result in that of the others.

    In half precision intensities would be rounded to a share of 1/256 of themselves, which is
    more than all layers' own rounding does to the result.
    """
    dtype = conv.weight.dtype
    if x.dtype == dtype:
        return conv(x)
    assert conv.bias is not None
    weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    margin, depth = conv.kernel_size[0] // 2, x.shape[2]
    result = torch.empty(
        (len(x), len(weight), *x.shape[2:]),
        dtype=dtype,
        device=x.device,
        memory_format=torch.channels_last_3d,
    )
    padded = nn.functional.pad(x, (0, 0, 0, 0, margin, margin))
    # Some planes at a time: all channels of all planes would be held in the larger format.
    for start in range(0, depth, _PLANES):
        stop = min(start + _PLANES, depth)
        part = padded[:, :, start : stop + 2 * margin]
        result[:, :, start:stop] = nn.functional.conv3d(
            part, weight, bias, padding=(0, margin, margin)
        )
    return result


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv = _conv(inputs, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x).relu_()], dim=1)


class _ResidualDenseBlock(nn.Module):
    def __init__(self, features: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(_DenseLayer(features + n * growth, growth) for n in range(layers))
        )
        self.lff = _conv(features + layers * growth, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = self.lff(self.layers(x))
        return fused + x


class RDN(nn.Module):
    """Residual dense network (Zhang et al., CVPR 2018) in 3D, as in ArSSR (Wu et al. 2023).

    Parameters
    ----------
    feature_dim : int
        Channels of the feature map.
    features, growth, blocks, layers : int
        Channels between blocks, channels each dense layer adds, number of blocks, dense
        layers in a block. The published network has 64, 64, 8, 3.
    """

    def __init__(
        self,
        feature_dim: int = 128,
        features: int = 64,
        growth: int = 64,
        blocks: int = 8,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.halo = 2 + blocks * layers + 2
        # The last dense layer's input and output, what waits outside the block, and scratch;
        # measured.
        dense = features + layers * growth
        self.peak_channels = 2 * dense + 4 * features + 3 * growth
        self.sfe1 = _conv(1, features)
        self.sfe2 = _conv(features, features)
        self.rdbs = nn.ModuleList(
            _ResidualDenseBlock(features, growth, layers) for _ in range(blocks)
        )
        self.gff = nn.Sequential(_conv(blocks * features, features, 1), _conv(features, features))
        self.output = _conv(features, feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, feature_dim, z, y, x) of (batch, 1, z, y, x)."""
        shallow = first_layer(self.sfe1, x)
        block_output = self.sfe2(shallow)
        # The 1³ fusion of all block outputs, summed block by block: their concatenation
        # (512 channels in the published network) is never held.
        fusion = self.gff[0]
        assert isinstance(fusion, nn.Conv3d)
        fused, bias = torch.zeros((), dtype=shallow.dtype, device=x.device), fusion.bias
        for block, weight in zip(self.rdbs, fusion.weight.chunk(len(self.rdbs), 1), strict=True):
            block_output = block(block_output)
            fused = nn.functional.conv3d(block_output, weight, bias) + fused
            bias = None
        features: Tensor = self.output(self.gff[1](fused) + shallow)
        return features


class ResCNN(nn.Module):
    """Residual network of Du et al. (Neurocomputing 2020), as ArSSR's encoder."""

    halo = 20

    def __init__(self, feature_dim: int = 128, features: int = 64) -> None:
        super().__init__()
        self.peak_channels = 4 * features + feature_dim
        self.conv_start = nn.Sequential(_conv(1, features), nn.ReLU(inplace=True))
        self.block1, self.block2, self.block3 = (
            nn.Sequential(
                *(
                    layer
                    for _ in range(6)
                    for layer in (_conv(features, features), nn.ReLU(inplace=True))
                )
            )
            for _ in range(3)
        )
        self.conv_end = nn.Sequential(_conv(features, feature_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, feature_dim, z, y, x) of (batch, 1, z, y, x)."""
        start = self.conv_start[0]
        assert isinstance(start, nn.Conv3d)
        hidden = first_layer(start, x).relu_()
        for block in (self.block1, self.block2, self.block3):
            hidden = block(hidden) + hidden
        features: Tensor = self.conv_end(hidden) + x.to(hidden.dtype)
        return features


class _ResidualBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.m = nn.Sequential(
            nn.Sequential(_conv(features, features), nn.ReLU(inplace=True)),
            nn.Sequential(_conv(features, features)),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.m(x)
        return x + change


class SRResNet(nn.Module):
    """SRResNet (Ledig et al., CVPR 2017) in 3D without batch normalisation, as in ArSSR."""

    def __init__(self, feature_dim: int = 128, features: int = 64, blocks: int = 18) -> None:
        super().__init__()
        self.halo = 3 + 2 * blocks
        self.peak_channels = 4 * features + feature_dim
        self.features = nn.Sequential(
            nn.Sequential(_conv(1, features)),
            *(_ResidualBlock(features) for _ in range(blocks)),
            nn.Sequential(_conv(features, features)),
            nn.Sequential(_conv(features, feature_dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, feature_dim, z, y, x) of (batch, 1, z, y, x)."""
        start = self.features.get_submodule("0.0")
        assert isinstance(start, nn.Conv3d)
        features: Tensor = self.features[1:](first_layer(start, x))
        return features
