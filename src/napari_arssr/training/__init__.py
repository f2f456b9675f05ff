"""Train a network, without a window: ``napari-arssr train``.

Nothing heavy is imported until it is used: each name below loads its module on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_arssr.training.config import (
        Augmentation,
        DataConfig,
        MachineConfig,
        RunConfig,
        TrainingConfig,
        WeightsConfig,
        preset,
        read_config,
        write_config,
    )
    from napari_arssr.training.export import export_run
    from napari_arssr.training.patches import cut_patches
    from napari_arssr.training.progress import Progress
    from napari_arssr.training.run import train
    from napari_arssr.training.selfsupervision import self_training

__all__ = [
    "Augmentation",
    "DataConfig",
    "MachineConfig",
    "Progress",
    "RunConfig",
    "TrainingConfig",
    "WeightsConfig",
    "cut_patches",
    "export_run",
    "preset",
    "read_config",
    "self_training",
    "train",
    "write_config",
]

_MODULE_OF = {
    "Progress": "progress",
    "cut_patches": "patches",
    "export_run": "export",
    "self_training": "selfsupervision",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'config')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
