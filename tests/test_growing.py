"""A larger network that answers as the smaller one does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TINY, tiny_network

from napari_arssr.models import ModelConfig, can_grow, grow
from napari_arssr.models.encoders import RDN

LARGER = [
    replace(TINY, blocks=5),
    replace(TINY, growth=7),
    replace(TINY, layers=3),
    replace(TINY, blocks=3, growth=4, layers=4),
]


@pytest.mark.parametrize("config", LARGER)
def test_a_grown_network_answers_as_the_one_it_grew_from(config: ModelConfig) -> None:
    small = tiny_network().double()
    large = grow(small, config).double()
    assert large.config == config
    assert parameters(large) > parameters(small)
    volumes = torch.rand(2, 6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(large.encode(volumes), small.encode(volumes), rtol=1e-12, atol=1e-12)
    for name, tensor in small.decoder.state_dict().items():
        assert torch.equal(tensor, large.decoder.state_dict()[name])


@pytest.mark.parametrize("config", LARGER)
def test_whatever_reads_what_is_new_learns_at_the_first_step(config: ModelConfig) -> None:
    large = grow(tiny_network(), config)
    encoder = large.encoder
    assert isinstance(encoder, RDN)
    readers = [block.lff.weight for block in encoder.rdbs[: TINY.blocks]]
    readers += [encoder.get_parameter("gff.0.weight")]
    silent = [reader == 0 for reader in readers]
    large.encode(torch.rand(1, 6, 6, 6)).square().sum().backward()
    gradients = [
        reader.grad[part]
        for reader, part in zip(readers, silent, strict=True)
        if reader.grad is not None
    ]
    # Some channels of a tiny network are dead.
    assert (torch.cat(gradients) != 0).float().mean() > 0.5


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, growth=2),
        replace(TINY, blocks=3, layers=1),
        replace(TINY, blocks=3, features=8),
        replace(TINY, blocks=3, decoder_width=16),
        replace(TINY, blocks=3, encoder="ResCNN"),
    ],
)
def test_no_other_network_is_grown(config: ModelConfig) -> None:
    assert not can_grow(TINY, config)
    with pytest.raises(ValueError, match="does not grow into"):
        grow(tiny_network(), config)


def test_other_encoders_do_not_grow() -> None:
    config = replace(TINY, encoder="ResCNN")
    assert not can_grow(config, replace(config, blocks=5))


def parameters(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())
