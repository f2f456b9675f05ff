"""What a result may replace: nothing that somebody else has made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from napari_arssr.errors import FileError, UsageError
from napari_arssr.io import nifti, ome_zarr, tiff
from napari_arssr.io.content import changed
from napari_arssr.io.origin import is_record
from napari_arssr.io.paths import AnyPath, check_place, files_of, is_store, is_tiff
from napari_arssr.io.troubles import reading

__all__ = ["check_output", "check_store", "is_result", "is_up_to_date"]


def check_output(path: AnyPath, inputs: Iterable[AnyPath] = ()) -> Path:
    """See that a result can be written to ``path``, before the work that makes it.

    A file that is there already is replaced if this program made it (:func:`is_result`) or it is
    empty. Any other may be a scan: who forgets the last of two names has named an input there.
    A zarr store in which something else lies as well is not replaced.

    Parameters
    ----------
    path : path
        Where the result shall go.
    inputs : iterable of paths
        Files that must not be overwritten, whoever made them.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UsageError
        If the suffix is unknown, or ``path`` is a folder, in a zarr store, one of the inputs
        (under whatever name, through whatever link) or holds one, a file that this program did
        not make, or a store that holds what it did not write.
    FileError
        If its folder is missing or cannot be written to, or the file is write-protected.
    """
    path = check_place(path, inputs)
    there = [file for file in files_of(path) if _holds_something(file)]
    if there and not is_result(path):
        raise UsageError(
            f"{there[0]} is there already and is no result of this program, so it is not "
            "replaced; give the result another name, or remove that file first."
        )
    check_store(path)
    return path


def check_store(path: Path, called: Path | None = None) -> None:
    """See that what is there may be replaced by a zarr store: one that this program wrote alone.

    Parameters
    ----------
    path : Path
        Nothing may be there; a file is not looked at.
    called : Path, optional
        What messages call it.

    Raises
    ------
    UsageError
    """
    if not path.is_dir():
        return
    foreign = _not_ours(path) if is_store(path) else "."
    if foreign:
        what = "is no result of this program"
        if foreign != ".":
            what = f"holds {foreign}, which this program did not write"
        raise UsageError(
            f"{called or path} is there already and {what}, so it is not replaced; give the result "
            "another name, or remove that first."
        )


def is_result(path: AnyPath) -> bool:
    """Whether this program made a file, as the record in its header says.

    That is a result of ``upsample``, ``simulate`` or ``fit``, of either command line or window.
    No voxel is looked at; a file that cannot be read is none.
    """
    return is_record(_record_in(Path(path)))


def is_up_to_date(path: AnyPath, source: AnyPath, record: str) -> bool:
    """Whether a file is what would be made of a source again: later, and in the same way.

    Parameters
    ----------
    path : path
        Of the result, if there is one.
    source : path
        What it would be made of.
    record : str
        What :func:`record_of` says of how.
    """
    path, source = Path(path), Path(source)
    found = _record_in(path)
    if not is_record(found) or json.loads(found) != json.loads(record):
        return False
    return changed(path) >= changed(source)


def _record_in(path: Path) -> str:
    stacks = ome_zarr if is_store(path) else tiff if is_tiff(path) else nifti
    try:
        with reading(path):
            return stacks.provenance(path)
    except FileError:
        return ""


def _not_ours(path: Path) -> str:
    try:
        with reading(path):
            return ome_zarr.not_ours(path)
    except FileError:
        return "."


def _holds_something(file: Path) -> bool:
    """Whether something would be lost with a file: voxels, or a link to what is not fetched."""
    return os.path.lexists(file) and (not file.exists() or file.is_dir() or file.stat().st_size > 0)
