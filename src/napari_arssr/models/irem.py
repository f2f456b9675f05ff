"""IREM's network: one subject's volume as a function of position (Wu et al., MICCAI 2021)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["IREM", "IREMConfig"]


@dataclass(frozen=True)
class IREMConfig:
    """Sizes of the network; the published ones by default.

    Parameters
    ----------
    frequencies : int
        L; the encoding has 2L numbers.
    width, layers : int
        Of the fully connected layers with batch normalisation and ReLU.
    skips : tuple of ints
        After how many layers the encoding is concatenated to the activations once more.
    deviation : float
        Of the frequencies' normal distribution, cycles per unit of position.
    """

    frequencies: int = 128
    width: int = 256
    layers: int = 18
    skips: tuple[int, ...] = (6, 12)
    deviation: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"skips": list(self.skips)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IREMConfig:
        """The inverse of :meth:`to_dict`."""
        return cls(**values | {"skips": tuple(values["skips"])})


class IREM(nn.Module):
    """γ(p) = [cos 2πBp, sin 2πBp], then fully connected layers to one intensity.

    Parameters
    ----------
    config : IREMConfig
    generator : torch.Generator, optional
        That B is drawn from.
    """

    frequencies: Tensor

    def __init__(self, config: IREMConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        drawn = torch.randn(config.frequencies, 3, generator=generator) * config.deviation
        self.register_buffer("frequencies", drawn)
        code = 2 * config.frequencies
        layers = []
        for number in range(config.layers):
            wide = code if number == 0 else config.width + code * (number in config.skips)
            layers.append(
                nn.Sequential(
                    nn.Linear(wide, config.width), nn.BatchNorm1d(config.width), nn.ReLU()
                )
            )
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(config.width, 1)

    def forward(self, points: Tensor) -> Tensor:
        """Intensities (p,) at positions (p, 3), -1 to 1 along the longest side."""
        phase = 2 * math.pi * points @ self.frequencies.T
        code = torch.cat([phase.cos(), phase.sin()], dim=1)
        hidden = code
        for number, layer in enumerate(self.layers):
            if number in self.config.skips:
                hidden = torch.cat([hidden, code], dim=1)
            hidden = layer(hidden)
        return self.last(hidden)[:, 0]
