"""The plugin's page in napari's Preferences."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_arssr.weights import CACHE_VARIABLE, REGISTRY

__all__ = ["Preferences", "preferences", "use_cache_folder"]

_PLUGIN = "napari-arssr"
_GIGABYTE = 10**9


@dataclass(frozen=True)
class Preferences:
    """What the widget starts with.

    Parameters
    ----------
    weights : str
        A registered name, or a file.
    device, precision : str
        As :func:`napari_arssr.encode` takes them.
    memory : int, optional
        Bytes; None is for the plugin to choose.
    cache_folder : pathlib.Path, optional
        Where downloads are kept; None is the system's cache folder.
    """

    weights: str = "default"
    device: str = "auto"
    precision: str = "auto"
    memory: int | None = None
    cache_folder: Path | None = None


def preferences() -> Preferences:
    """What the user has set, in Preferences or in the file behind it; else the defaults.

    napari before 0.9 has no such page, and one whose plugin is disabled no settings.
    """
    try:
        from napari.settings import get_plugin_settings

        page: Any = get_plugin_settings(_PLUGIN).upsampling
    except (ImportError, KeyError, AttributeError):
        return Preferences()
    folder = page.cache_folder.strip()
    return Preferences(
        weights=_weights(page.weights.strip()),
        device=page.device.strip() or Preferences.device,
        precision=page.precision,
        memory=max(1, round(page.memory * _GIGABYTE)) if page.memory else None,
        cache_folder=Path(folder).expanduser() if folder else None,
    )


def _weights(given: str) -> str:
    """A registered name, or a file; its home folder may be written as a tilde."""
    if not given:
        return Preferences.weights
    return given if given in REGISTRY else str(Path(given).expanduser())


class _Set:
    """What this module put into the environment; anything else there is somebody's own word."""

    folder: str | None = None


def use_cache_folder() -> None:
    """Have :func:`napari_arssr.weights.cache_folder` follow the preference from now on.

    To be called in the main thread, before downloads are looked for. Where the environment
    variable was set by somebody else, that stands.
    """
    if os.environ.get(CACHE_VARIABLE, _Set.folder) != _Set.folder:
        return
    chosen = preferences().cache_folder
    _Set.folder = None if chosen is None else str(chosen)
    if _Set.folder is None:
        os.environ.pop(CACHE_VARIABLE, None)
    else:
        os.environ[CACHE_VARIABLE] = _Set.folder
