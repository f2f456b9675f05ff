"""Reading a volume, whatever its format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from napari_arssr.errors import FileError
from napari_arssr.io import nifti, ome_zarr, tiff
from napari_arssr.io.channels import Channel, chosen
from napari_arssr.io.paths import (
    KNOWN,
    AnyPath,
    files_of,
    is_store,
    is_tiff,
    known_suffix,
    names_store,
)
from napari_arssr.io.stored import StoredArray
from napari_arssr.io.troubles import reading
from napari_arssr.volume import Volume

__all__ = ["channels_of", "coarser", "read", "stated_sizes"]


def read(
    path: AnyPath, *, most: int | None = None, frame: int | None = None, channel: int | None = None
) -> Volume:
    """Read a NIfTI image, a TIFF stack or an OME-Zarr image.

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.img`` or ``.hdr`` (each finds the other), ``.tif``, ``.tiff``,
        or a zarr store, or an image or a level in one.
    most : int, optional
        Bytes to load. The voxels of a larger image stay in the file: ``data`` is then a
        :class:`~napari_arssr.io.StoredArray`, which reads what is indexed. Not of a TIFF file
        whose planes cannot be read one by one.
    frame : int, optional
        Of a series only this frame, as a 3D volume; no other frame's voxels are held.
    channel : int, optional
        Which channel of a stack, from 0; needed where there are several
        (:func:`channels_of`). No other channel's voxels are held.

    Returns
    -------
    Volume
        Real values, (z, y, x) or (t, z, y, x); trailing axes of length 1 are dropped. Affine
        in RAS+ millimetres; time step in seconds, 0 where the file does not say.
        :func:`~napari_arssr.io.origin_of` tells the rest.

    Raises
    ------
    NoFrame, NoChannel
        If there is no such frame or channel, or several channels and none is named;
        UsageErrors.
    FileError
        If the file is missing, unreadable, damaged, of another kind, not 3D or 4D, not of real
        numbers, or its voxel sizes or affine cannot be.
    OutOfMemory
        If the volume does not fit in memory.
    """
    path = Path(path)
    with reading(path):
        _check(path)
        stacks = _stacks(path)
        if stacks is None:
            chosen(path, (Channel(),), channel)
            return nifti.read(path, most, frame)
        if frame is None:
            return stacks.read(path, most, channel)
        return _loaded(stacks.read(path, 0, channel).frame(frame), most)


def channels_of(path: AnyPath) -> tuple[Channel, ...]:
    """The channels that a file has, one or more; its voxels are not read.

    Raises
    ------
    FileError
        As :func:`read`.
    """
    path = Path(path)
    with reading(path):
        _check(path)
        stacks = _stacks(path)
        return (Channel(),) if stacks is None else stacks.channels(path)


def coarser(path: AnyPath, channel: int | None = None) -> tuple[StoredArray, ...]:
    """The levels of an OME-Zarr image's pyramid below the one that is read, finest first.

    Their voxels stay in the store, with the axes that :func:`read` gives. None for other files.

    Raises
    ------
    FileError, NoChannel
        As :func:`read`.
    """
    path = Path(path)
    with reading(path):
        _check(path)
        return ome_zarr.coarser(path, channel) if is_store(path) else ()


def stated_sizes(path: AnyPath) -> dict[str, tuple[int, float]] | None:
    """What a stack, TIFF or OME-Zarr, states of its voxels, which are not read.

    Returns
    -------
    dict or None
        By axis (T, Z, C, Y, X), in the file's order: how many, and how many millimetres apart; 0
        along time and channels. None where it states no sizes, or is no stack of these formats.

    Raises
    ------
    FileError
        If it cannot be read; NoVolume where it is no stack.
    """
    path = Path(path)
    with reading(path):
        _check(path)
        stacks = _stacks(path)
        return None if stacks is None else stacks.stated_sizes(path)


def _stacks(path: Path) -> ModuleType | None:
    """What reads the stacks of microscopes, where a path is one."""
    if is_store(path):
        return ome_zarr
    return tiff if is_tiff(path) else None


def _loaded(volume: Volume, most: int | None) -> Volume:
    """One frame's voxels, in memory if they are so few."""
    if most is None or volume.data.size * volume.data.dtype.itemsize <= most:
        return replace(volume, data=np.array(volume.data))
    return volume


def _check(path: Path) -> None:
    if is_store(path):
        return
    if path.is_dir() and names_store(path):
        raise FileError(f"{path} is a zarr store without .zgroup or zarr.json; copy it again.")
    if path.is_file() and names_store(path):
        raise FileError(f"{path} is a file, and a zarr store is a folder; unpack it.")
    if path.is_dir():
        raise FileError(f"{path} is a folder; give a file in it.")
    for file in (path, *files_of(path)):
        if not file.exists():
            if file.is_symlink():
                raise FileError(
                    f"{file} is a link to {file.readlink()}, which is not there; fetch that file "
                    "first (datalad get)."
                )
            if file == path:
                raise FileError(f"{path} does not exist; check its name.")
            raise FileError(f"{path} needs {file.name} beside it; put both in one folder.")
        if file.stat().st_size == 0:
            raise FileError(f"{file} is empty (0 bytes); copy or export it again.")
    if not known_suffix(path):
        raise FileError(f"{path} has no suffix known here; convert it to {KNOWN}.")
