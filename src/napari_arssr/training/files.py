"""Files of a run, and what is said when one cannot be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from napari_arssr.errors import FileError
from napari_arssr.files import PARTIAL, whole_file

__all__ = ["make_folder", "remove_partial", "write_whole", "writing"]


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
    with writing(path), whole_file(path) as partial, partial.open("wb") as opened:
        if callable(content):
            content(opened)
        else:
            opened.write(content)


def remove_partial(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(f"{PARTIAL}*"):
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
