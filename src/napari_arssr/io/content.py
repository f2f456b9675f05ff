"""What a volume is read from: whether it is the same, and how old."""

from __future__ import annotations

import hashlib
from pathlib import Path

from napari_arssr.errors import FileError
from napari_arssr.files import sha256_of
from napari_arssr.io import ome_zarr
from napari_arssr.io.paths import files_of, is_store
from napari_arssr.io.troubles import reading

__all__ = ["changed", "content_sha256"]


def content_sha256(path: Path) -> str:
    """SHA-256 of what a volume is read from, in hexadecimal digits.

    Of a file its own; of ``.img`` and ``.hdr`` that of both digests. Of an OME-Zarr image that of
    the name and the digest of each file behind the level that is read.

    Raises
    ------
    FileError
        If it cannot be read.
    """
    try:
        if is_store(path):
            with reading(path):
                behind = ome_zarr.files_behind(path)
            lines = [f"{name} {sha256_of(file)}\n" for name, file in behind.items()]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        digests = [sha256_of(file) for file in files_of(path)]
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}).") from None
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def changed(path: Path) -> float:
    """When any file that a volume is read from was last changed, in seconds.

    Raises
    ------
    FileError
        If it cannot be read.
    """
    with reading(path):
        files = ome_zarr.files_behind(path).values() if is_store(path) else files_of(path)
        return max(file.stat().st_mtime for file in files)
