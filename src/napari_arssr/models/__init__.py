"""Networks, and their files. Nothing here knows of volumes, affines or windows."""

from typing import overload

from napari_arssr.models.arssr import ArSSR, ModelConfig
from napari_arssr.models.baselines import BaselineConfig, Regressor
from napari_arssr.models.checkpoint import (
    BaselineCard,
    Card,
    load,
    load_baseline,
    read_baseline_card,
    read_card,
    save,
)
from napari_arssr.models.growing import GROWING, can_grow, grow, seen_by_copies
from napari_arssr.models.orientation import ORIENTATIONS, Orientation, OrientedArSSR

__all__ = [
    "GROWING",
    "ORIENTATIONS",
    "ArSSR",
    "BaselineCard",
    "BaselineConfig",
    "Card",
    "ModelConfig",
    "Orientation",
    "OrientedArSSR",
    "Regressor",
    "build",
    "can_grow",
    "grow",
    "load",
    "load_baseline",
    "read_baseline_card",
    "read_card",
    "save",
    "seen_by_copies",
]


@overload
def build(config: ModelConfig) -> ArSSR: ...
@overload
def build(config: BaselineConfig) -> Regressor: ...
@overload
def build(config: ModelConfig | BaselineConfig) -> ArSSR | Regressor: ...
def build(config: ModelConfig | BaselineConfig) -> ArSSR | Regressor:
    """A network with fresh weights."""
    return ArSSR(config) if isinstance(config, ModelConfig) else Regressor(config)
