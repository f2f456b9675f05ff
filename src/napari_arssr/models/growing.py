"""A larger network that answers as a smaller one does, to be trained on from there.

After Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer"
(ICLR 2016), in two ways. Theirs are wider by copies of channels.

*More*: new channels and blocks begin as an untrained network's do, and whatever reads them begins
with weights of zero: the output is the same to the last bit of a sum, and the gradient of those
zeros is not zero.

*Wider*: several copies of the network side by side, each with its kernels turned so that it sees
the volume in another orientation, and the mean of what they answer. That is the self-ensemble of
:mod:`napari_arssr.models.orientation`, better than the smaller network from the first step on, and
as one network: the weights between the copies, zero at first, can be trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from napari_arssr.models.arssr import ArSSR, ModelConfig
from napari_arssr.models.decoders import ResidualDecoder
from napari_arssr.models.encoders import RDN
from napari_arssr.models.orientation import ORIENTATIONS, Orientation

__all__ = ["GROWING", "can_grow", "grow", "seen_by_copies"]

GROWING = ("blocks", "layers", "growth")
"""What of a network's settings may be larger than it was."""

WIDENING = ("features", "growth", "feature_dim", "decoder_width")
"""What may be larger by one whole factor: the number of copies side by side."""

_MOST_COPIES = 6


def seen_by_copies(count: int) -> tuple[Orientation, ...]:
    """How each of up to six copies side by side sees a volume; the first as it is.

    Neighbours differ in axes and direction: of two, that helps most.
    """
    # The first three put each axis in each place, the next three do so in the other direction.
    return tuple(ORIENTATIONS[n % 3 + 3 * (n % 2)] for n in range(count))


def can_grow(config: ModelConfig, larger: ModelConfig) -> bool:
    """Whether :func:`grow` makes the second network of the first.

    Both have an RDN encoder, and differ in nothing but more blocks, more dense layers in each
    or more channels that a dense layer adds; or all channels are two to six times as many, those
    of a residual decoder among them.
    """
    if _copies(config, larger):
        return True
    alike = replace(config, **{name: getattr(larger, name) for name in GROWING}) == larger
    return (
        config.encoder == "RDN"
        and alike
        and config != larger
        and all(getattr(larger, name) >= getattr(config, name) for name in GROWING)
    )


def grow(model: ArSSR, config: ModelConfig) -> ArSSR:
    """A network of ``config`` whose output is that of ``model``, or its mean over orientations.

    Parameters
    ----------
    model : ArSSR
        With an RDN encoder.
    config : ModelConfig
        A larger one (:func:`can_grow`).

    Returns
    -------
    ArSSR
        New, with random weights, of torch's generator, where nothing reads them yet.

    Raises
    ------
    ValueError
        If one cannot be grown into the other.
    """
    if not can_grow(model.config, config):
        raise ValueError(f"{model.config} does not grow into {config}.")
    grown = ArSSR(config).to(next(model.parameters()))
    if _copies(model.config, config):
        _fill_with_copies(model, grown)
        return grown
    grown.decoder.load_state_dict(model.decoder.state_dict())
    old, new = model.encoder, grown.encoder
    assert isinstance(old, RDN)
    assert isinstance(new, RDN)
    with torch.no_grad():
        for name in ("sfe1", "sfe2", "gff.1", "output"):
            new.get_submodule(name).load_state_dict(old.get_submodule(name).state_dict())
        _place(old.get_submodule("gff.0"), new.get_submodule("gff.0"))
        for old_block, new_block in zip(old.rdbs, new.rdbs, strict=False):
            for n in range(model.config.layers):
                name = f"layers.{n}.conv"
                inputs = _kept(model.config, config, n)
                _place(old_block.get_submodule(name), new_block.get_submodule(name), inputs)
            inputs = _kept(model.config, config, model.config.layers)
            _place(old_block.get_submodule("lff"), new_block.get_submodule("lff"), inputs)
    return grown


def _kept(old: ModelConfig, new: ModelConfig, layers: int) -> list[int]:
    """Where a block's input and its first dense layers' channels lie in the larger block."""
    kept = list(range(old.features))
    for n in range(layers):
        first = new.features + n * new.growth
        kept += range(first, first + old.growth)
    return kept


def _place(old: nn.Module, new: nn.Module, inputs: list[int] | None = None) -> None:
    """Old outputs as they were, blind to new inputs; new outputs stay as they are drawn."""
    assert isinstance(old, nn.Conv3d)
    assert isinstance(new, nn.Conv3d)
    outputs = old.out_channels
    new.weight[:outputs] = 0
    new.weight[:outputs, inputs or list(range(old.in_channels))] = old.weight
    assert old.bias is not None
    assert new.bias is not None
    new.bias[:outputs] = old.bias


# Wider --------------------------------------------------------------------------------------------


def _copies(config: ModelConfig, larger: ModelConfig) -> int:
    """How many copies of the first network the second is; 0 if it is none."""
    count = larger.features // config.features
    wider = replace(config, **{name: count * getattr(config, name) for name in WIDENING})
    kind = (config.encoder, config.decoder) == ("RDN", "residual")
    return count if kind and wider == larger and 2 <= count <= _MOST_COPIES else 0


@torch.no_grad()
def _fill_with_copies(model: ArSSR, wide: ArSSR) -> None:
    for parameter in wide.parameters():
        parameter.zero_()
    count = _copies(model.config, wide.config)
    for number, seen in enumerate(seen_by_copies(count)):
        copy = _Copy(number, count)
        for name, layer in model.encoder.named_modules():
            if isinstance(layer, nn.Conv3d):
                kernel = layer.weight.permute(0, 1, *(2 + axis for axis in seen.back))
                turned = kernel.flip(2, 3, 4) if seen.reverse else kernel
                to = wide.encoder.get_submodule(name)
                copy.put(turned, layer.bias, to, _parts(name, model.config))
        assert isinstance(model.decoder, ResidualDecoder)
        assert isinstance(wide.decoder, ResidualDecoder)
        _put_decoder(model.decoder, wide.decoder, copy, seen)


def _put_decoder(
    old: ResidualDecoder, wide: ResidualDecoder, copy: _Copy, seen: Orientation
) -> None:
    width = old.feature.out_features
    copy.put(old.feature.weight, None, wide.feature, [old.feature.in_features])
    bias = old.position.get_parameter("0.bias")  # one for all three axes
    for axis, to in enumerate(wide.position):
        weight = old.position.get_parameter(f"{seen.back[axis]}.weight")
        # The mirror of a code is a sign for each of its values, and so is that of what reads it.
        read = old.mirrored(weight) if seen.reverse else weight
        copy.put(read, bias if axis == 0 else None, to, [])
    for layer, to in zip(old.hidden, wide.hidden, strict=True):
        assert isinstance(layer, nn.Linear)
        copy.put(layer.weight, layer.bias, to, [width])
    wide.head.weight[:, copy.rows(width)] = old.head.weight / copy.count
    wide.head.bias.copy_(old.head.bias)


@dataclass(frozen=True)
class _Copy:
    """The ``number``-th of ``count`` networks side by side."""

    number: int
    count: int

    def rows(self, size: int) -> slice:
        """Where its channels lie in a tensor of ``size`` channels a copy."""
        return slice(self.number * size, (self.number + 1) * size)

    def columns(self, parts: list[int]) -> Iterator[int]:
        """Where they lie in several such tensors side by side."""
        start = 0
        for size in parts:
            own = self.rows(size)
            yield from range(start + own.start, start + own.stop)
            start += size * self.count

    def put(self, weight: Tensor, bias: Tensor | None, to: nn.Module, parts: list[int]) -> None:
        """Give a layer its weights, zero elsewhere; what has no parts is read by all copies."""
        assert isinstance(to, nn.Conv3d | nn.Linear)
        rows = self.rows(len(weight))
        to.weight[rows, list(self.columns(parts)) or list(range(weight.shape[1]))] = weight
        if bias is not None:
            assert to.bias is not None
            to.bias[rows] = bias


def _parts(name: str, config: ModelConfig) -> list[int]:
    """Channels of each tensor that a convolution reads side by side; none for the volume."""
    if name == "sfe1":
        return []
    if name == "gff.0":
        return [config.features] * config.blocks
    if name.endswith("lff"):
        return [config.features] + [config.growth] * config.layers
    if ".layers." in name:
        return [config.features] + [config.growth] * int(name.split(".")[-2])
    return [config.features]
