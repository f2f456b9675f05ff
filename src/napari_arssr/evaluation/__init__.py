"""How near a result comes to its reference, how sharp it is, and how it fares beside others.

The metrics are loaded when they are first used, so that the command line's help stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_arssr.evaluation.metrics import data_consistency, psnr, ssim

__all__ = ["data_consistency", "psnr", "ssim"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from napari_arssr.evaluation import metrics

    return getattr(metrics, name)
