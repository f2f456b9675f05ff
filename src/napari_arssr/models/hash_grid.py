"""A multi-resolution hash grid with a small network (Müller et al., SIGGRAPH 2022)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HashGrid", "HashGridConfig"]

_PRIMES = (1, 2_654_435_761, 805_459_861)


@dataclass(frozen=True)
class HashGridConfig:
    """Sizes of a hash grid and its network.

    Parameters
    ----------
    levels : int
    coarsest, finest : int
        Cells along the longest side of the first and of the last level; between them sizes grow
        by one factor.
    features : int
        Numbers at each node.
    log_table : int
        Logarithm to base 2 of the most nodes of a level; finer ones share them by a hash.
    width : int
        Of the network's two hidden layers.
    """

    levels: int = 8
    coarsest: int = 8
    finest: int = 128
    features: int = 2
    log_table: int = 18
    width: int = 64

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HashGridConfig:
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    @property
    def cells(self) -> list[int]:
        """Cells along the longest side, level by level."""
        growth = (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1))
        return [round(self.coarsest * growth**level) for level in range(self.levels)]


class HashGrid(nn.Module):
    """Features interpolated at every level, concatenated, and two hidden layers.

    Fresh weights give 0 everywhere: it begins as no correction at all.

    Parameters
    ----------
    config : HashGridConfig
    generator : torch.Generator, optional
    """

    def __init__(self, config: HashGridConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        tables = []
        for cells in config.cells:
            nodes = min((cells + 1) ** 3, 1 << config.log_table)
            table = torch.rand(nodes, config.features, generator=generator)
            tables.append(nn.Parameter((2 * table - 1) * 1e-2))
        self.tables = nn.ParameterList(tables)
        wide = config.levels * config.features
        self.first = nn.Linear(wide, config.width)
        self.second = nn.Linear(config.width, config.width)
        self.last = nn.Linear(config.width, 1)
        for layer in (self.first, self.second):
            bound = layer.in_features**-0.5
            drawn = torch.rand(layer.weight.shape, generator=generator)
            layer.weight.data = (2 * drawn - 1) * bound * 1.7
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Values (p,) at positions (p, 3), -1 to 1 along the longest side."""
        place = ((points + 1) / 2).clamp(0, 1)
        features = [
            self._level(place, table, cells)
            for table, cells in zip(self.tables, self.config.cells, strict=True)
        ]
        hidden = torch.relu(self.first(torch.cat(features, dim=1)))
        return self.last(torch.relu(self.second(hidden)))[:, 0]

    def _level(self, place: Tensor, table: Tensor, cells: int) -> Tensor:
        """Trilinear interpolation of a level's nodes."""
        scaled = place * cells
        low = scaled.detach().floor().clamp(max=cells - 1)
        share = scaled - low
        corner = low.long()
        weights, nodes = [], []
        for offset in range(8):
            bits = [(offset >> axis) & 1 for axis in range(3)]
            weight = torch.ones_like(share[:, 0])
            index = []
            for axis, bit in enumerate(bits):
                weight = weight * (share[:, axis] if bit else 1 - share[:, axis])
                index.append(corner[:, axis] + bit)
            weights.append(weight)
            nodes.append(self._node(index, cells, len(table)))
        return torch.nn.functional.embedding_bag(
            torch.stack(nodes, dim=1),
            table,
            per_sample_weights=torch.stack(weights, dim=1),
            mode="sum",
        )

    @staticmethod
    def _node(index: list[Tensor], cells: int, size: int) -> Tensor:
        if (cells + 1) ** 3 <= size:
            return (index[0] * (cells + 1) + index[1]) * (cells + 1) + index[2]
        mixed = index[0] * _PRIMES[0] ^ index[1] * _PRIMES[1] ^ index[2] * _PRIMES[2]
        return mixed & (size - 1)
