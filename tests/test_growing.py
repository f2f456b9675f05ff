"""A larger network that answers as the smaller one does."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from tiny import TINY, tiny_network
from torch import Tensor

from napari_arssr.interpolation import linear_weights
from napari_arssr.models import (
    ArSSR,
    ModelConfig,
    Orientation,
    OrientedArSSR,
    can_grow,
    grow,
    seen_by_copies,
)
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


def wider(count: int, config: ModelConfig = TINY) -> ModelConfig:
    names = ("features", "growth", "feature_dim", "decoder_width")
    return replace(config, **{name: count * getattr(config, name) for name in names})


@pytest.mark.parametrize("count", range(2, 7))
def test_copies_side_by_side_answer_the_mean_over_their_orientations(count: int) -> None:
    small = tiny_network().double()
    large = grow(small, wider(count)).double()
    shape = (6, 5, 7)
    volume = torch.rand(1, *shape, dtype=torch.float64)
    places = [torch.rand(4, dtype=torch.float64) * (size - 1) for size in shape]
    along = list(zip(places, shape, strict=True))
    rows = [torch.from_numpy(linear_weights(p.numpy(), n, 0, n, "border")) for p, n in along]
    codes = [small.decoder.encode_position(p, n, 0.4) for p, n in along]

    def answer(model: ArSSR | OrientedArSSR) -> Tensor:
        z, y, x = (row.double() for row in rows)
        if isinstance(model, ArSSR):
            model = OrientedArSSR(model, Orientation())
        terms = [model.position_term(axis, code) for axis, code in enumerate(codes)]
        positions = (terms[0], terms[1], terms[2])
        return model.decode_lattice(model.encode(volume)[0], (z, y, x), positions)

    seen = seen_by_copies(count)
    answers = [answer(OrientedArSSR(small, one)) for one in seen]
    # Rows of weights are float32, and sum to one as exactly as that.
    torch.testing.assert_close(answer(large), sum(answers) / count, rtol=0, atol=1e-8)
    torch.testing.assert_close(answers[0], answer(small), rtol=0, atol=1e-12)
    assert len(set(seen)) == count
    for one, other in combinations(answers, 2):
        assert (one - other).abs().max() > 1e-3


def test_what_lies_between_copies_learns_at_the_first_step() -> None:
    large = grow(tiny_network(), wider(2))
    silent = {name: tensor == 0 for name, tensor in large.named_parameters()}
    batch = torch.rand(1, 6, 6, 6)
    eye = (torch.eye(6),) * 3
    place = torch.arange(6, dtype=torch.float32)
    terms = large.position_terms((large.decoder.encode_position(place, 6, 0.4),) * 3)
    large.decode_lattice(large.encode(batch)[0], eye, terms).square().sum().backward()
    for name in (
        "encoder.sfe2.weight",
        "encoder.rdbs.1.layers.1.conv.weight",
        "encoder.gff.0.weight",
    ):
        gradient = large.get_parameter(name).grad
        assert gradient is not None
        assert silent[name].float().mean() == pytest.approx(0.5)
        assert (gradient[silent[name]] != 0).float().mean() > 0.3, name


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        wider(7),
        replace(wider(2), decoder_width=TINY.decoder_width),
        replace(wider(2), blocks=3),
        replace(wider(2), decoder="published", decoder_depth=4),
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


def test_the_published_decoder_is_not_widened() -> None:
    config = replace(TINY, decoder="published", decoder_depth=4)
    assert not can_grow(config, wider(2, config))
    assert can_grow(TINY, wider(2))


def test_other_encoders_do_not_grow() -> None:
    config = replace(TINY, encoder="ResCNN")
    assert not can_grow(config, replace(config, blocks=5))


def parameters(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())
