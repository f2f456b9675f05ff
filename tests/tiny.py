"""A network small enough for tests, and what a command gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from napari_arssr.models import ArSSR, Card, ModelConfig, build, save

TINY = ModelConfig(
    decoder="residual",
    feature_dim=6,
    decoder_depth=3,
    decoder_width=8,
    features=4,
    growth=3,
    blocks=2,
    layers=2,
)


def tiny_network() -> ArSSR:
    """Of random weights, its head included: it adds something of size 0.1."""
    torch.manual_seed(0)
    model = build(TINY)
    nn.init.normal_(model.decoder.head.weight, std=0.1)
    return model


def save_tiny(path: Path) -> Path:
    """The same as a file."""
    save(path, tiny_network(), Card(TINY, name="tiny"), torch.float32)
    return path


@dataclass(frozen=True)
class Ran:
    """What a command gave back and printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]
