"""Several thick stacks of one subject into one sharp volume.

::

    from napari_arssr import fitting

    stacks = fitting.read_stacks(["axial.nii.gz", "coronal.nii.gz", "sagittal.nii.gz"])
    state = fitting.fit(stacks, fitting.Settings(spacing=0.8))
    volume = state.field().sample(state.grid)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_arssr.fitting.files import load, save
    from napari_arssr.fitting.fitted import FittedField
    from napari_arssr.fitting.pipeline import Watch, fit
    from napari_arssr.fitting.settings import Settings
    from napari_arssr.fitting.stacks import read_stacks
    from napari_arssr.fitting.state import StackRecord, State

__all__ = [
    "FittedField",
    "Settings",
    "StackRecord",
    "State",
    "Watch",
    "fit",
    "load",
    "read_stacks",
    "save",
]

_MODULE_OF = {
    "FittedField": "fitted",
    "Settings": "settings",
    "StackRecord": "state",
    "State": "state",
    "Watch": "pipeline",
    "fit": "pipeline",
    "load": "files",
    "read_stacks": "stacks",
    "save": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
