"""Networks, and their files. Nothing here knows of volumes, affines or windows."""

from napari_arssr.models.arssr import ArSSR, ModelConfig
from napari_arssr.models.checkpoint import Card, load, read_card, save

__all__ = ["ArSSR", "Card", "ModelConfig", "build", "load", "read_card", "save"]


def build(config: ModelConfig) -> ArSSR:
    """A network with fresh weights."""
    return ArSSR(config)
