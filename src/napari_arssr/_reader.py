"""napari reader: NIfTI files as image and labels layers, each in its place in the world."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_arssr import lazy
from napari_arssr._layers import LayerData, layer_of
from napari_arssr.errors import FileError
from napari_arssr.io import StoredArray, files_of, known_suffix, read
from napari_arssr.volume import Volume

__all__ = ["napari_get_reader"]

PathOrPaths = str | Sequence[str]

_NAMES = (".nii", ".nii.gz", ".img", ".hdr")
# Where a NIfTI header says that it is one: NIfTI-1 near its end, NIfTI-2 after its size.
_MAGIC = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}
_SIZES = [size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")]


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


def _read(path: PathOrPaths) -> list[LayerData]:
    paths = [Path(name) for name in _paths(path)]
    most = lazy.most_to_load() // len(paths)
    volumes = [read(path, most=most) for path in paths]
    if len(volumes) == 1:
        return [layer_of(volumes[0])]
    if not all(isinstance(volume.data, np.ndarray) for volume in volumes):
        volumes = [read(path, most=0) for path in paths]
    return [layer_of(_stack(volumes))]


def _stack(volumes: Sequence[Volume]) -> Volume:
    """Volumes of one grid as the frames of a 4D volume."""
    first = volumes[0]
    for volume in volumes:
        if volume.data.ndim != 3 or volume.grid != first.grid:
            raise FileError(
                f"{volume.name} cannot be stacked on {first.name}: both must be single volumes of "
                "the same shape and place; open them as separate layers."
            )
    arrays: list[Any] = [volume.data for volume in volumes]
    stored = all(isinstance(array, StoredArray) for array in arrays)
    data: Any = StoredArray.stack(arrays) if stored else np.stack(arrays)
    return replace(first, data=data)


def _paths(path: PathOrPaths) -> list[str]:
    return [str(path)] if isinstance(path, str | Path) else [str(name) for name in path]


def _is_nifti(path: str) -> bool:
    """Whether the name is one of NIfTI's, and the content too where others use that name.

    Gzip files, .img and .hdr (disk images, radiance maps) may be anything. A missing file
    keeps its name's promise: reading it then says that it is missing.
    """
    suffix = known_suffix(path)
    if suffix not in _NAMES:
        return False
    header = files_of(Path(path))[-1]
    if suffix == ".nii" or not header.is_file():
        return True
    try:
        with gzip.open(header) if suffix == ".nii.gz" else header.open("rb") as file:
            start = file.read(352)
    except (OSError, EOFError, zlib.error):
        # An unreadable pair is said to be one; what is no gzip file is nobody's.
        return suffix != ".nii.gz"
    if suffix != ".nii.gz" and start[:4] in _SIZES:
        return True  # or an Analyze image, which is refused with a reason
    return any(start[at : at + 4] in magic for at, magic in _MAGIC.items())
