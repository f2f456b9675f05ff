"""Files that are whole under their names, or not there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PARTIAL", "sha256_of", "whole_file"]

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
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL, suffix=path.suffix)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
