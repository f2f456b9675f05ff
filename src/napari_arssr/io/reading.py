"""Reading a volume, whatever its format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from napari_arssr.errors import FileError
from napari_arssr.io import nifti, tiff
from napari_arssr.io.channels import Channel, chosen
from napari_arssr.io.paths import KNOWN, AnyPath, files_of, known_suffix
from napari_arssr.io.troubles import reading
from napari_arssr.volume import Volume

__all__ = ["channels_of", "read", "stated_sizes"]


def read(
    path: AnyPath, *, most: int | None = None, frame: int | None = None, channel: int | None = None
) -> Volume:
    """Read a NIfTI image or a TIFF stack.

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.img`` or ``.hdr`` (each finds the other), ``.tif``, ``.tiff``.
    most : int, optional
        Bytes to load. The voxels of a larger image stay in the file: ``data`` is then a
        :class:`~napari_arssr.io.StoredArray`, which reads what is indexed. Not of a TIFF file
        whose planes cannot be read one by one.
    frame : int, optional
        Of a series only this frame, as a 3D volume; no other frame's voxels are held.
    channel : int, optional
        Which channel of a TIFF stack, from 0; needed where there are several
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
        if known_suffix(path) in tiff.SUFFIXES:
            if frame is None:
                return tiff.read(path, most, channel)
            return _frame_of_tiff(path, most, frame, channel)
        chosen(path, (Channel(),), channel)
        return nifti.read(path, most, frame)


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
        return tiff.channels(path) if known_suffix(path) in tiff.SUFFIXES else (Channel(),)


def stated_sizes(path: AnyPath) -> dict[str, tuple[int, float]] | None:
    """What a TIFF stack's file states of its voxels, which are not read.

    Returns
    -------
    dict or None
        By axis (T, Z, C, Y, X), in the file's order: how many, and how many millimetres apart; 0
        along time and channels. None where it states no sizes.

    Raises
    ------
    FileError
        If it cannot be read; NoVolume where it is no stack.
    """
    path = Path(path)
    with reading(path):
        _check(path)
        return tiff.stated_sizes(path)


def _frame_of_tiff(path: Path, most: int | None, frame: int, channel: int | None) -> Volume:
    """A frame; no other's voxels are held, and where its planes can be told apart none is read."""
    one = tiff.read(path, most=0, channel=channel).frame(frame)
    if most is None or one.data.size * one.data.dtype.itemsize <= most:
        one = replace(one, data=np.array(one.data))
    return one


def _check(path: Path) -> None:
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
