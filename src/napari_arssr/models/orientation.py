"""A network that sees every volume with its axes in another order or direction.

A network that was not built to treat axes and directions alike errs differently in each
orientation, and the mean over several errs less than one (the self-ensemble of Lim et al.,
"Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR Workshops 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from napari_arssr.models.arssr import ArSSR, ModelConfig
from napari_arssr.models.decoders import PublishedDecoder, ResidualDecoder
from napari_arssr.models.encoders import RDN, ResCNN, SRResNet
from napari_arssr.models.lattice import Matrices

__all__ = ["ORIENTATIONS", "Orientation", "OrientedArSSR"]


@dataclass(frozen=True)
class Orientation:
    """How a network sees a volume.

    Parameters
    ----------
    order : three ints
        For each axis that the network sees, (z, y, x), the volume's own.
    reverse : bool
        Whether it sees all three axes in the other direction.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    reverse: bool = False

    @property
    def back(self) -> tuple[int, int, int]:
        """For each of the volume's axes the one under which the network sees it."""
        z, y, x = (self.order.index(axis) for axis in range(3))
        return z, y, x


_CYCLES = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
_OTHERS = ((2, 1, 0), (1, 0, 2), (0, 2, 1))
ORIENTATIONS = tuple(
    Orientation(order, reverse)
    for orders in (_CYCLES, _OTHERS)
    for reverse in (False, True)
    for order in orders
)
"""In the order in which they are best added. The first is the volume as it is; of three, each
axis is in each place once, which helps most; of six, that in both directions; of twelve, every
order of axes in both."""


class OrientedArSSR(nn.Module):
    """An ArSSR network in another orientation; all it takes and gives is in the volume's own.

    Parameters
    ----------
    model : ArSSR
        Shared, not copied.
    orientation : Orientation
    """

    def __init__(self, model: ArSSR, orientation: Orientation) -> None:
        super().__init__()
        self.model = model
        self.orientation = orientation

    @property
    def config(self) -> ModelConfig:
        """The network's settings."""
        return self.model.config

    @property
    def encoder(self) -> RDN | ResCNN | SRResNet:
        """The network's encoder, as it is."""
        return self.model.encoder

    @property
    def decoder(self) -> PublishedDecoder | ResidualDecoder:
        """The network's decoder, as it is."""
        return self.model.decoder

    @property
    def halo(self) -> int:
        """Radius of the encoder's receptive field, in voxels."""
        return self.model.halo

    def encode(self, volumes: Tensor) -> Tensor:
        """As :meth:`ArSSR.encode`: (batch, z, y, x) to (batch, z, y, x, channels)."""
        z, y, x = (1 + axis for axis in self.orientation.order)
        turned = volumes.permute(0, z, y, x)
        if self.orientation.reverse:
            turned = turned.flip(1, 2, 3)
        features = self.model.encode(turned)
        if self.orientation.reverse:
            features = features.flip(1, 2, 3)
        z, y, x = (1 + axis for axis in self.orientation.back)
        return features.permute(0, z, y, x, 4)

    def position_term(self, axis: int, code: Tensor) -> Tensor:
        """What decoding takes of the decoder's code along one of the volume's axes."""
        seen = self.decoder.mirrored(code) if self.orientation.reverse else code
        term: Tensor = self.decoder.position_term(self.orientation.back[axis], seen)
        return term

    def decode_lattice(self, nodes: Tensor, weights: Matrices, positions: Matrices) -> Tensor:
        """As :meth:`ArSSR.decode_lattice`, for one volume: nodes are (z, y, x, channels)."""
        z, y, x = self.orientation.order
        decoded = self.model.decode_lattice(
            nodes.permute(z, y, x, 3),
            (weights[z], weights[y], weights[x]),
            (positions[z], positions[y], positions[x]),
        )
        return decoded.permute(self.orientation.back)

    def decode_points(self, nodes: Tensor, points: Tensor, positions: Matrices) -> Tensor:
        """As :meth:`ArSSR.decode_points`."""
        z, y, x = self.orientation.order
        return self.model.decode_points(
            nodes.permute(z, y, x, 3),
            points[:, [z, y, x]],
            (positions[z], positions[y], positions[x]),
        )
