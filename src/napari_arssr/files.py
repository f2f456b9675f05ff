"""Files that are whole under their names, or not there; and what is said of one that cannot be."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from napari_arssr.errors import FileError

__all__ = [
    "PARTIAL",
    "make_folder",
    "remove_partial",
    "sha256_of",
    "sync_folder",
    "whole_file",
    "write_whole",
    "writing",
]

PARTIAL = ".partial-"
"""How the name of a file begins that is not whole yet."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that gets its name when the block ends, and is gone if the block fails.

    Whoever looks finds the old file or the new one at any moment, even after a crash.

    Parameters
    ----------
    path : Path
        Its folder exists.

    Yields
    ------
    Path
        An empty file beside it.

    Raises
    ------
    OSError
        If there is no room for it; what was there stays.
    """
    # Not by tempfile, whose files are for their owner only: this one is for whom others are.
    partial = path.parent / f"{PARTIAL}{secrets.token_hex(8)}{path.suffix}"
    partial.touch(exist_ok=False)
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


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
            f"{path} cannot be written ({reason}); make room, or choose another folder."
        ) from error


def write_whole(path: Path, content: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file as :func:`whole_file`, with the folders above it.

    Parameters
    ----------
    path : Path
    content : bytes, or a callable that writes them to an open file

    Raises
    ------
    FileError
        If it cannot be written; what was there stays.
    """
    make_folder(path.parent)
    with writing(path), whole_file(path) as partial, partial.open("wb") as opened:
        if callable(content):
            content(opened)
        else:
            opened.write(content)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half written, in the folders below as well."""
    for path in folder.rglob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises
    ------
    FileError
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{folder}: the folder cannot be made ({error.strerror}); choose another place."
        ) from None


def sync_folder(folder: Path) -> None:
    """See that a new name survives a crash of the machine, where the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network file systems refuse; the name stands
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
