"""napari reader: NIfTI files as image layers, each in its place in the world."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_arssr.errors import FileError
from napari_arssr.io import read
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Volume

__all__ = ["image_layer", "napari_get_reader"]

LayerData = tuple[Any, dict[str, Any], str]
PathOrPaths = str | Sequence[str]

_NAMES = (".nii", ".nii.gz", ".img", ".hdr")
# Where a NIfTI header says that it is one: NIfTI-1 near its end, NIfTI-2 after its size.
_MAGIC = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}


def napari_get_reader(path: PathOrPaths) -> Callable[[PathOrPaths], list[LayerData]] | None:
    """The function that reads ``path``, or None where it is no NIfTI file.

    Parameters
    ----------
    path : str or sequence of str
        A file; or several, which are then frames of one 4D layer (napari's "open as stack").

    Returns
    -------
    callable or None
        Takes the same ``path`` and gives a list of one layer tuple.
    """
    paths = _paths(path)
    return _read if paths and all(map(_is_nifti, paths)) else None


def image_layer(volume: Volume) -> LayerData:
    """A volume as a napari image layer: data, settings, type.

    World axes are I, P, L (and time first) in millimetres (and seconds), so that volumes of
    one subject overlay whatever their orientation; see :attr:`Volume.napari_affine`. The
    array is reordered, never copied, to run along them, because napari slices by array axes.

    Raises
    ------
    UsageError
        If the volume holds no finite value.
    """
    volume = volume.along_world_axes()
    shown = Normalizer.fit(volume.data)
    time = volume.data.ndim - 3
    settings = {
        "name": volume.name,
        "affine": volume.napari_affine,
        # A time step that the file does not tell is not a second: count frames.
        "units": ("s" if volume.time_step else "pixel",) * time + ("mm",) * 3,
        "axis_labels": ("t",) * time + ("I", "P", "L"),
        "contrast_limits": (shown.low, shown.high),
    }
    return volume.data, settings, "image"


def _read(path: PathOrPaths) -> list[LayerData]:
    volumes = [read(Path(name)) for name in _paths(path)]
    return [image_layer(volumes[0] if len(volumes) == 1 else _stack(volumes))]


def _stack(volumes: Sequence[Volume]) -> Volume:
    """Volumes of one grid as the frames of a 4D volume."""
    first = volumes[0]
    for volume in volumes:
        if volume.data.ndim != 3 or volume.grid != first.grid:
            raise FileError(
                f"{volume.name} cannot be stacked on {first.name}: both must be single volumes of "
                "the same shape and place; open them as separate layers."
            )
    return replace(first, data=np.stack([volume.data for volume in volumes]))


def _paths(path: PathOrPaths) -> list[str]:
    return [str(path)] if isinstance(path, str | Path) else [str(name) for name in path]


def _is_nifti(path: str) -> bool:
    """Whether the name is one of NIfTI's and, for gzip files, the content is NIfTI too.

    A missing file keeps its name's promise: reading it then says that it is missing.
    """
    name = path.lower()
    if not name.endswith(_NAMES):
        return False
    if not name.endswith(".gz") or not Path(path).is_file():
        return True
    try:
        with gzip.open(path) as file:
            header = file.read(352)
    except (OSError, EOFError, zlib.error):
        return False
    return any(header[at : at + 4] in magic for at, magic in _MAGIC.items())
