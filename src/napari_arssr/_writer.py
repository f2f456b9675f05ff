"""napari writers: image and labels layers as NIfTI files, ImageJ TIFF stacks or OME-Zarr stores.

What is written is what the layer is now: its own data, and its whole data-to-world transform.
Only what neither shows comes from its metadata: the order in which the file had the axes, and
what else its header said.

Number types stay what they are, except that booleans become uint8, float16 becomes float32,
and 64-bit integers become int32 where every value fits, because few programs read them. Of
TIFF's few types, integers take the first of uint16 and int16 that holds every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from napari_arssr._layers import LayerData, helps_to_look, loaded, volume_of_data
from napari_arssr.errors import FileError, UsageError
from napari_arssr.files import make_folder
from napari_arssr.io import (
    LABEL,
    LABEL_INTENTS,
    Origin,
    create,
    files_of,
    is_tiff,
    known_suffix,
    names_store,
    origin_of,
    provenance_of,
)
from napari_arssr.volume import Volume

__all__ = [
    "write_folder",
    "write_image",
    "write_image_tiff",
    "write_image_zarr",
    "write_labels",
    "write_labels_tiff",
    "write_labels_zarr",
]

# What TIFF holds; and in order of preference what other integers are stored as, where they fit.
_TIFF_OWN = ("uint8", "uint16", "int16")
_TIFF_OTHER = ("uint16", "int16")
_NIFTI_OTHER = ("int32",)
_NIFTI = ".nii.gz"
_VOLUMES = ("image", "labels")
_NOT_IN_NAMES = frozenset('<>:"/\\|?*')

_PART = 1 << 24  # voxels loaded at a time
_LONGEST_SUFFIX = 5


def write_image(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an image layer; the suffix says which format, NIfTI where there is none.

    Parameters
    ----------
    path : str
        ``.nii.gz``, ``.nii``, ``.img`` or ``.hdr`` (both are written), ``.tif``, ``.tiff``,
        ``.ome.zarr``, ``.zarr``.
    data : array, or the levels of a pyramid, of which the finest is written
    meta : dict
        The layer's settings.

    Returns
    -------
    list of str
        The files that were written.

    Raises
    ------
    FileError
        If the layer shows no volume, the format cannot hold its numbers, or the file cannot be
        written. Nothing is left behind then.
    """
    return _write(path, _NIFTI, data, meta, "image")


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a labels layer, said to be one in a NIfTI file's header; see :func:`write_image`."""
    return _write(path, _NIFTI, data, meta, "labels")


def write_image_tiff(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """:func:`write_image`, as TIFF where the name has no suffix."""
    return _write(path, ".tif", data, meta, "image")


def write_labels_tiff(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """:func:`write_labels`, as TIFF where the name has no suffix."""
    return _write(path, ".tif", data, meta, "labels")


def write_image_zarr(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """:func:`write_image`, as OME-Zarr where the name has no suffix."""
    return _write(path, ".ome.zarr", data, meta, "image")


def write_labels_zarr(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """:func:`write_labels`, as OME-Zarr where the name has no suffix."""
    return _write(path, ".ome.zarr", data, meta, "labels")


def write_folder(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write several layers, each as a NIfTI file of its name in one folder.

    Layers that are no volumes (points, shapes), or only help to look at others (the split view,
    the live view, a drawn box), are left out, and a notification says so.

    Parameters
    ----------
    path : str
        The folder, which may be there already. A suffix of NIfTI's that it is given is that of
        the files, ``.nii.gz`` without one.
    layers : sequence of (data, settings, type)

    Returns
    -------
    list of str
        The files that were written.

    Raises
    ------
    FileError
        As :func:`write_image`, or if a file is there already or no layer is a volume. Nothing is
        left behind then.
    """
    given = known_suffix(path)
    if is_tiff(path) or names_store(path):
        raise FileError(f"{path}: several layers are saved as NIfTI; give a folder.")
    folder, suffix = Path(path[: len(path) - len(given)]), given or _NIFTI
    left_out = _left_out(layers)
    layers = [layer for layer in layers if _is_volume(layer)]
    if not layers:
        raise FileError(f"{left_out} Select images or labels.")
    targets = [folder / f"{name}{suffix}" for name in _file_names(layers)]
    for target in targets:
        there = [file for file in files_of(target) if file.exists()]
        if there:  # nobody was asked about this name
            raise FileError(f"{there[0]} exists; choose another folder, or rename the layer.")
    with ExitStack() as undo:
        if not folder.exists():
            make_folder(folder)
            undo.callback(folder.rmdir)
        written: list[str] = []
        for target, (data, meta, kind) in zip(targets, layers, strict=True):
            files = _write(str(target), suffix, data, meta, kind)
            for file in files:
                undo.callback(Path(file).unlink)
            written += files
        undo.pop_all()  # all are there
    if left_out:
        from napari.utils.notifications import show_warning

        show_warning(left_out)
    return written


def _is_volume(layer: LayerData) -> bool:
    _, meta, kind = layer
    return kind in _VOLUMES and not helps_to_look(meta.get("metadata"))


def _left_out(layers: Sequence[LayerData]) -> str:
    """What is not written of several layers, in a sentence or two; empty where all are."""
    helpers = [str(meta["name"]) for _, meta, _ in layers if helps_to_look(meta.get("metadata"))]
    others = [
        f"{meta['name']} ({kind})"
        for _, meta, kind in layers
        if kind not in _VOLUMES and not helps_to_look(meta.get("metadata"))
    ]
    words = []
    if others:
        words.append(
            f"Not saved, being no volumes: {', '.join(others)}; save each by itself, which napari "
            "does in a format of its own."
        )
    if helpers:
        words.append(f"Not saved, since they only help to look: {', '.join(helpers)}.")
    return " ".join(words)


def _file_names(layers: Sequence[LayerData]) -> list[str]:
    """Layers' names as names of files, no two alike on any system."""
    names: list[str] = []
    for _, meta, _ in layers:
        letters = [
            "_" if letter in _NOT_IN_NAMES or not letter.isprintable() else letter
            for letter in str(meta["name"])
        ]
        name = "".join(letters).strip(". ") or "layer"
        taken = {other.lower() for other in names}
        numbered = (f"{name} ({number})" for number in count(2))
        names.append(next(one for one in chain([name], numbered) if one.lower() not in taken))
    return names


def _write(path: str, suffix: str, data: Any, meta: dict[str, Any], kind: str) -> list[str]:
    target = _named(path, suffix)
    try:
        _write_to(target, data, meta, kind)
    except UsageError as error:
        # napari takes a ValueError, which this is too, to mean that there is no writer.
        raise FileError(str(error)) from None
    return [str(file) for file in files_of(target)]


def _write_to(target: Path, data: Any, meta: dict[str, Any], kind: str) -> None:
    volume = volume_of_data(data, meta, kind).in_storage_order()
    origin = _origin(volume, kind)
    with create(
        target,
        volume.grid,
        _number_type(volume, target),
        frames=volume.frames,
        time_step=volume.time_step,
        time_start=volume.time_start,
        description=origin.description or None,
        provenance=origin.provenance,
        origin=origin,
    ) as out:
        for slab in volume.slabs(_PART):
            out.write(loaded(slab).data)


def _named(path: str, suffix: str) -> Path:
    """The path with a suffix: napari's dialog adds none."""
    given = Path(path).suffix
    # "T1w ×2.5" and "T1w.denoised" have none; "T1w.png" has one, which is refused later.
    if known_suffix(path) or (given[1:2].isalpha() and len(given) <= _LONGEST_SUFFIX):
        return Path(path)
    full = Path(path).with_name(Path(path).name + suffix)
    if full.exists():  # nobody was asked about this name
        raise FileError(f"{full} exists; type its whole name to replace it, or choose another.")
    return full


def _number_type(volume: Volume, path: Path) -> np.dtype[Any]:
    dtype = np.dtype(volume.data.dtype).newbyteorder("=")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        if dtype.itemsize > 8:
            raise UsageError(
                f"{volume.name}: voxels of {dtype} are not written; convert them to float64."
            )
        return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    tiff = is_tiff(path)
    if dtype.name in _TIFF_OWN if tiff else dtype.itemsize < 8:
        return dtype
    slabs = (loaded(slab).data for slab in volume.slabs(_PART))
    ends = [(int(slab.min()), int(slab.max())) for slab in slabs]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    for name in _TIFF_OTHER if tiff else _NIFTI_OTHER:
        info = np.iinfo(name)
        if info.min <= low and high <= info.max:
            return np.dtype(name)
    return dtype


def _origin(volume: Volume, kind: str) -> Origin:
    """What the header is to say besides; labels are said to be labels, and images not to be."""
    origin = origin_of(volume)
    if (origin.intent[0] in LABEL_INTENTS) != (kind == "labels"):
        intent = LABEL if kind == "labels" else 0
        origin = replace(origin, intent=(intent, (0.0, 0.0, 0.0), ""), display_range=(0.0, 0.0))
    record = provenance_of(volume)
    if record:  # a result: what made it, not what made its input
        origin = replace(origin, description="", provenance=record)
    return origin
