"""What can go wrong with files, in one sentence each."""

from __future__ import annotations

import errno
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from napari_arssr.errors import FileError, NoChannel, NoFrame, NoVolume, OutOfMemory, UsageError

__all__ = [
    "check_sizes",
    "closing",
    "cut_off",
    "disk_full",
    "not_real",
    "reading",
    "reason",
    "saving",
]

# No room left, a quota used up, a file as large as one may be here.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def reason(error: OSError) -> str:
    """What the system says, without number and file name."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def cut_off(path: Path, need: int, have: int | None = None) -> FileError:
    """The file ends before its voxels do."""
    found = "the file is too small for them" if have is None else f"{have:,} are there"
    return FileError(f"{path} is cut off: {need:,} bytes of voxels, {found}; copy it again.")


def not_real(path: Path, kind: str) -> NoVolume:
    """The voxels are of a kind that cannot be worked with."""
    return NoVolume(
        f"{path} is {kind}, not one real number a voxel; convert it, for example to float32."
    )


def check_sizes(path: Path, spacing: Sequence[float], way_out: str) -> None:
    """See that a voxel's sides, along (z, y, x) in millimetres, can be such."""
    if not all(math.isfinite(side) and side > 0 for side in spacing):
        sizes = " × ".join(f"{side:g}" for side in reversed(spacing))
        raise FileError(f"{path} has voxel sizes of {sizes} mm; {way_out}.")


def disk_full(path: Path, need: int) -> FileError:
    """The result does not fit; ``need`` is its size in bytes."""
    packed = " before compression" if path.name.lower().endswith((".gz", ".zarr")) else ""
    return FileError(
        f"There is no room on the disk: {path} needs {need:,} bytes{packed}; make room, choose "
        "another place, or ask for fewer voxels."
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system, zlib and :mod:`napari_arssr.volume` raise into one sentence."""
    try:
        yield
    except (NoChannel, NoFrame):
        raise
    except UsageError as error:  # what Volume and Grid refuse comes from the file here
        sentence = str(error).removeprefix(f"{path.name}: ")
        raise FileError(f"{path}: {sentence} Correct its header, or export it again.") from None
    except PermissionError:
        raise FileError(f"{path} may not be read; ask for permission (chmod +r).") from None
    except MemoryError:
        raise OutOfMemory(
            f"{path} does not fit in memory; cut it into parts or use a larger machine."
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(
            f"{path} is damaged or cut off within its compressed data ({error}); copy it again."
        ) from None
    except OSError as error:
        raise FileError(f"{path} cannot be read ({reason(error)}); copy it again.") from error


@contextmanager
def saving(path: Path, need: int) -> Iterator[None]:
    """The same for writing ``need`` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(path, need) from error
        raise FileError(f"{path} cannot be written ({reason(error)}); try elsewhere.") from error


@contextmanager
def closing(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close a file that was written, without complaint: the disk may still be full."""
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()
