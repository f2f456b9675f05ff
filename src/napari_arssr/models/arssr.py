"""ArSSR: an encoder, linear interpolation of its features, and an implicit decoder.

Wu et al., "An Arbitrary Scale Super-Resolution Approach for 3D MR Images via Implicit Neural
Representation", IEEE JBHI 27(2), 2023.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from torch import Tensor, nn

from napari_arssr.choices import DecoderName, EncoderName
from napari_arssr.models.decoders import PublishedDecoder, ResidualDecoder
from napari_arssr.models.encoders import RDN, ResCNN, SRResNet
from napari_arssr.models.lattice import Matrices, interpolate_points

__all__ = ["ArSSR", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a network's tensors; the defaults are the published ArSSR's.

    Parameters
    ----------
    encoder : {"RDN", "ResCNN", "SRResNet"}
    decoder : {"published", "residual"}
        The paper's, or this project's (see :mod:`napari_arssr.models.decoders`).
    feature_dim, decoder_depth, decoder_width : int
        Channels of the feature map; layers and units of the decoder.
    features, growth, blocks, layers : int
        Size of the RDN encoder; the others read only ``features``.
    """

    encoder: EncoderName = "RDN"
    decoder: DecoderName = "published"
    feature_dim: int = 128
    decoder_depth: int = 8
    decoder_width: int = 256
    features: int = 64
    growth: int = 64
    blocks: int = 8
    layers: int = 3

    def __post_init__(self) -> None:
        if self.encoder not in get_args(EncoderName) or self.decoder not in get_args(DecoderName):
            raise ValueError(
                f"There is no {self.encoder!r} encoder with a {self.decoder!r} decoder."
            )
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "int" and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{item.name} must be a whole number above 0, not {value!r}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The config in a weights file's header; an unknown key is a ValueError."""
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"Unknown settings of a network: {', '.join(sorted(unknown))}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a weights file's header."""
        return asdict(self)


class ArSSR(nn.Module):
    """One network for every scale: :meth:`encode` once, decode anywhere.

    Parameters
    ----------
    config : ModelConfig
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: RDN | ResCNN | SRResNet
        if config.encoder == "RDN":
            self.encoder = RDN(
                config.feature_dim, config.features, config.growth, config.blocks, config.layers
            )
        else:
            encoder = {"ResCNN": ResCNN, "SRResNet": SRResNet}[config.encoder]
            self.encoder = encoder(config.feature_dim, config.features)
        self.decoder: PublishedDecoder | ResidualDecoder
        decoder = {"published": PublishedDecoder, "residual": ResidualDecoder}[config.decoder]
        self.decoder = decoder(config.feature_dim, config.decoder_depth, config.decoder_width)

    @property
    def halo(self) -> int:
        """Radius of the encoder's receptive field, in voxels."""
        return self.encoder.halo

    def encode(self, volumes: Tensor) -> Tensor:
        """Feature map (batch, z, y, x, channels) of volumes (batch, z, y, x).

        Volumes are best float32, whatever the network's own number format.
        """
        features: Tensor = self.encoder(volumes.unsqueeze(1))
        return features.permute(0, 2, 3, 4, 1)

    def position_terms(self, codes: Matrices) -> Matrices:
        """What decoding takes of the position codes along z, y, x."""
        z, y, x = (self.decoder.position_term(axis, code) for axis, code in enumerate(codes))
        return z, y, x

    def decode_lattice(self, nodes: Tensor, weights: Matrices, positions: Matrices) -> Tensor:
        """Decoder output at every point of a lattice.

        Parameters
        ----------
        nodes : (…, z, y, x, channels) tensor
            Features at the LR voxels around the lattice.
        weights : three (…, m, n) tensors
            Linear interpolation along z, y, x.
        positions : three (…, m, q) tensors
            Position terms along z, y, x, from :meth:`position_terms`.

        Returns
        -------
        (…, mz, my, mx) tensor
            Intensities of the published decoder, ungated residuals of ours.
        """
        return self.decoder.on_lattice(nodes, weights, positions)

    def decode_points(self, nodes: Tensor, points: Tensor, positions: Matrices) -> Tensor:
        """Decoder output at single points, for grids that are not aligned with the volume.

        Parameters
        ----------
        nodes : (z, y, x, channels) tensor
            Features at the LR voxels around the points, with one layer of zeros around the
            volume where the decoder takes ``outside`` as zeros.
        points : (p, 3) tensor
            In indices of ``nodes``, (z, y, x).
        positions : three (p, q) tensors
            Position terms along z, y, x.

        Returns
        -------
        (p,) tensor
        """
        interpolated = interpolate_points(self.decoder.prepare(nodes), points)
        decoded: Tensor = self.decoder(interpolated, positions)
        return decoded
