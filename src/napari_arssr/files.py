"""Files that are whole under their names, or not there."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["PARTIAL", "sha256_of", "sync_folder", "whole_file"]

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
