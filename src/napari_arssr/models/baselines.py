"""The rivals of the ArSSR paper: networks that refine a cubically interpolated volume.

Each is trained for one scale. All take and return (batch, z, y, x) on the grid of the result:
the low-resolution volume is brought there by cubic interpolation first, in network units.
``halo`` is the receptive field's radius in voxels of that grid, ``peak_channels`` the number
of channels alive at once in a pass without gradients.

- Pham et al., Brain MRI super-resolution using deep 3D convolutional networks, ISBI 2017.
- Chen et al., Brain MRI super resolution using 3D deep densely connected neural networks,
  ISBI 2018.
- Du et al., Super-resolution reconstruction of single anisotropic 3D MR images using residual
  convolutional neural network, Neurocomputing 392, 2020.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor, nn

from napari_arssr.choices import NORMALIZATIONS, BaselineName, Normalization
from napari_arssr.models.encoders import ResCNN

__all__ = ["BaselineConfig", "BaselineName", "Regressor"]


@dataclass(frozen=True)
class BaselineConfig:
    """Everything that decides a baseline's tensors and what they are for.

    Parameters
    ----------
    network : {"SRCNN3D", "DCSRN", "ResCNN"}
    scale : three floats
        The one scale it is trained for, (z, y, x).
    normalization : {"percentile", "minmax", "none"}
        How intensities are brought to [0, 1].
    """

    network: BaselineName
    scale: tuple[float, float, float]
    normalization: Normalization = "percentile"

    def __post_init__(self) -> None:
        if self.network not in get_args(BaselineName):
            raise ValueError(f"There is no baseline {self.network!r}.")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"There is no normalisation {self.normalization!r}.")
        try:
            z, y, x = (float(k) for k in self.scale)
        except (TypeError, ValueError):
            raise ValueError(
                f"The scale of a baseline is three numbers (z, y, x), not {self.scale!r}."
            ) from None
        if not all(1 <= k < math.inf for k in (z, y, x)):
            raise ValueError(f"The scale of a baseline is at least 1, not {self.scale!r}.")
        object.__setattr__(self, "scale", (z, y, x))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BaselineConfig:
        """The config in a weights file's header; an unknown key is a ValueError."""
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"Unknown settings of a baseline: {', '.join(sorted(unknown))}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a weights file's header."""
        return asdict(self) | {"scale": list(self.scale)}


class Regressor(nn.Module):
    """A baseline: what it returns is the refined volume itself, not a residual.

    Parameters
    ----------
    config : BaselineConfig
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _NETWORKS[config.network]()

    @property
    def halo(self) -> int:
        """Radius of the receptive field, in voxels of the result."""
        return int(self.network.halo)  # type: ignore[arg-type]

    @property
    def peak_channels(self) -> int:
        """Channels alive at once in a pass without gradients."""
        return int(self.network.peak_channels)  # type: ignore[arg-type]

    def forward(self, interpolated: Tensor) -> Tensor:
        """Refined intensities (batch, z, y, x) of cubically interpolated ones, in [0, 1]."""
        refined: Tensor = self.network(interpolated.unsqueeze(1))
        return refined.squeeze(1)


class _SRCNN3D(nn.Sequential):
    """Pham et al. 2017: 9³ × 64, ReLU, 1³ × 32, ReLU, 5³ × 1."""

    halo = 4 + 2
    peak_channels = 64 + 64

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(1, 64, 9, padding=4),
            nn.ReLU(inplace=True),
            nn.Conv3d(64, 32, 1),
            nn.ReLU(inplace=True),
            nn.Conv3d(32, 1, 5, padding=2),
        )


class _DenseUnit(nn.Sequential):
    """Batch normalisation, ELU and a 3³ convolution whose output is added to the channels."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__(nn.BatchNorm3d(inputs), nn.ELU(), nn.Conv3d(inputs, growth, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return torch.cat([x, added], dim=1)


class _DCSRN(nn.Sequential):
    """Chen et al. 2018: 3³ × 48, one block of four dense units of growth 24, 3³ × 1."""

    halo = 1 + 4 + 1
    peak_channels = 3 * (48 + 4 * 24)

    def __init__(self, growth: int = 24, units: int = 4) -> None:
        first = 2 * growth
        super().__init__(
            nn.Conv3d(1, first, 3, padding=1),
            *(_DenseUnit(first + number * growth, growth) for number in range(units)),
            nn.Conv3d(first + units * growth, 1, 3, padding=1),
        )


class _ResCNN(ResCNN):
    """Du et al. 2020: the 20-layer residual network with one output channel."""

    def __init__(self) -> None:
        super().__init__(feature_dim=1)


_NETWORKS: dict[BaselineName, type[nn.Module]] = {
    "SRCNN3D": _SRCNN3D,
    "DCSRN": _DCSRN,
    "ResCNN": _ResCNN,
}
