"""A larger network that answers as a smaller one does, to be trained on from there.

After Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer"
(ICLR 2016). Theirs are wider by copies of channels; here new channels and blocks begin as an
untrained network's do, and whatever reads them begins with weights of zero: the output is the
same to the last bit of a sum, and the gradient of those zeros is not zero.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from napari_arssr.models.arssr import ArSSR, ModelConfig
from napari_arssr.models.encoders import RDN

__all__ = ["GROWING", "can_grow", "grow"]

GROWING = ("blocks", "layers", "growth")
"""What of a network's settings may be larger than it was."""


def can_grow(config: ModelConfig, larger: ModelConfig) -> bool:
    """Whether :func:`grow` makes the second network of the first.

    Both have an RDN encoder, and differ in nothing but more blocks, more dense layers in each
    or more channels that a dense layer adds.
    """
    alike = replace(config, **{name: getattr(larger, name) for name in GROWING}) == larger
    return (
        config.encoder == "RDN"
        and alike
        and config != larger
        and all(getattr(larger, name) >= getattr(config, name) for name in GROWING)
    )


def grow(model: ArSSR, config: ModelConfig) -> ArSSR:
    """A network of ``config`` whose output is that of ``model``.

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
