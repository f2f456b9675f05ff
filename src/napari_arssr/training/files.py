"""Files that are whole under their names, or not there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from napari_arssr.errors import FileError

__all__ = ["file_hash", "make_folder", "remove_partial", "write_whole", "writing"]

_PARTIAL = ".partial-"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is written into one sentence.

    Raises
    ------
    FileError
    """
    try:
        yield
    # torch turns a full disk into a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise FileError(
            f"{path} cannot be written ({reason}); make room, or train in another folder."
        ) from error


def write_whole(path: Path, content: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file so that it is the old one or the new one at any moment, even after a crash.

    Parameters
    ----------
    path : Path
    content : bytes, or a callable that writes them to an open file

    Raises
    ------
    FileError
        If it cannot be written; what was there stays.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL, suffix=path.suffix)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                if callable(content):
                    content(opened)
                else:
                    opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            partial.chmod(0o644)  # mkstemp's files are for their owner only
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """See that a new name survives a crash of the machine, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder.

    Raises
    ------
    FileError
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: the folder cannot be made ({error.strerror}).") from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, for the record of what a network was trained on."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
