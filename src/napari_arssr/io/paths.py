"""Which files are volumes, and where a result may go."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from napari_arssr.errors import FileError, UsageError
from napari_arssr.io.troubles import reason, saving

__all__ = [
    "KNOWN",
    "MARKERS",
    "SUFFIXES",
    "base_name",
    "beside",
    "check_input",
    "check_place",
    "files_of",
    "is_folder",
    "is_stack",
    "is_store",
    "is_tiff",
    "known_suffix",
    "name_of",
    "names_store",
    "result_name",
    "stem",
    "volumes_in",
    "without_suffix",
]

_STORES = (".ome.zarr", ".zarr")

SUFFIXES = (".nii", ".nii.gz", ".img", ".hdr", ".tif", ".tiff", *_STORES)
"""What can be read and written, in lower or upper case."""

KNOWN = "NIfTI (.nii, .nii.gz, .img with .hdr), a TIFF stack (.tif) or OME-Zarr (.ome.zarr)"
"""The same in words, for messages."""

MARKERS = (".zarray", ".zgroup", "zarr.json")
"""One of these files is in every group and every array of a zarr store."""
_DEEPEST = 7  # plate/A/1/0/labels/cells/0

AnyPath = str | os.PathLike[str]


def is_store(path: AnyPath) -> bool:
    """Whether a path is a zarr store, or a group or an array in one; these can be read."""
    # pathlib would raise where a folder is locked.
    return any(os.path.isfile(os.path.join(path, name)) for name in MARKERS)  # noqa: PTH113, PTH118


def names_store(path: AnyPath) -> bool:
    """Whether a path is called as zarr stores are, whatever is there."""
    return known_suffix(path) in _STORES


def is_tiff(path: AnyPath) -> bool:
    """Whether a path is called as TIFF files are."""
    return known_suffix(path) in (".tif", ".tiff")


def is_stack(path: AnyPath) -> bool:
    """Whether a path is in a format of microscopes: TIFF, or OME-Zarr."""
    return is_tiff(path) or is_store(path)


def is_folder(path: AnyPath) -> bool:
    """Whether a path is a folder that files may be in; a store is none."""
    return Path(path).is_dir() and not is_store(path)


def known_suffix(path: AnyPath) -> str:
    """The suffix in lower case if it is one of :data:`SUFFIXES`, else an empty string."""
    name = Path(path).name.lower()
    return max((s for s in SUFFIXES if name.endswith(s) and name != s), key=len, default="")


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a path stands for: of ``.img`` or ``.hdr`` both, the header last."""
    if known_suffix(path) not in (".img", ".hdr"):
        return (path,)
    image, header = (".IMG", ".HDR") if path.suffix.isupper() else (".img", ".hdr")
    return path.with_suffix(image), path.with_suffix(header)


def stem(path: AnyPath) -> str:
    """The file's name without folder and suffix: ``sub-01`` for ``data/sub-01.nii.gz``."""
    name = Path(path).name
    found = without_suffix(name)
    return Path(path).stem if found == name else found


def without_suffix(name: str) -> str:
    """A name without a suffix known here, if it ends in one: ``T1w ×2.5`` stays whole."""
    return name[: len(name) - len(known_suffix(name))]


def name_of(path: AnyPath) -> str:
    """How a volume is called: as its file, or its zarr store, ``cells.ome.zarr``.

    An image in a store has the store's name before its own: ``cells_0`` for ``cells.ome.zarr/0``.
    """
    if not is_store(path):
        return Path(path).name
    place, store = Path(os.path.abspath(path)), _outermost(path)  # noqa: PTH100
    within = place.relative_to(store).parts
    return "_".join([without_suffix(store.name), *within]) if within else store.name


def base_name(path: AnyPath) -> str:
    """How what is made of a volume is called, before what says how it was made."""
    return without_suffix(name_of(path))


def result_name(path: AnyPath) -> str:
    """How a result is called by default: as its input; of what is in a store, a store's name."""
    return f"{base_name(path)}{_STORES[0]}" if is_store(path) else name_of(path)


def beside(path: AnyPath) -> Path:
    """The folder that a volume lies in; of what is in a zarr store, that of the store."""
    store = _outermost(path)
    return store.parent if is_store(store) else Path(path).parent


def _outermost(path: AnyPath) -> Path:
    """The zarr store that a path is or lies in, as an absolute path; else the path.

    Between a group and one in it there may be a folder that is neither.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100 - ".." goes, and links stay
    above = [place, *place.parents[:_DEEPEST]]
    return next((folder for folder in reversed(above) if is_store(folder)), place)


def volumes_in(folder: AnyPath) -> list[Path]:
    """Every volume in a folder, sorted by name; not in the folders inside it.

    Other files and hidden ones are left out. An ``.img`` counts with its ``.hdr``, as the
    ``.img``; either without the other is left out. A zarr store in it is a volume.

    Raises
    ------
    FileError
        If the folder is missing, is a file or a zarr store, or cannot be listed.
    """
    folder = Path(folder)
    if is_store(folder):
        raise FileError(f"{folder} is a zarr store, not a folder; give the folder it is in.")
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".")
            and (is_store(path) or (_is_called_a_file(path) and _names_a_file(path)))
        )
    except FileNotFoundError:
        raise FileError(f"The folder {folder} does not exist; check its name.") from None
    except NotADirectoryError:
        raise FileError(f"{folder} is a file, not a folder; give the folder it is in.") from None
    except OSError as error:
        raise FileError(
            f"The folder {folder} cannot be listed ({reason(error)}); check its permissions."
        ) from error
    return [
        path
        for path in found
        if is_store(path)
        or (known_suffix(path) != ".hdr" and all(part in found for part in files_of(path)))
    ]


def _is_called_a_file(path: Path) -> bool:
    return bool(known_suffix(path)) and not names_store(path)


def _names_a_file(path: Path) -> bool:
    """A file, or a link to one that is not here: whoever reads it shall say so."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def check_input(path: AnyPath) -> Path:
    """See that a file is there, before anything is said of the result.

    Raises
    ------
    FileError
        If nothing has that name.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileError(f"{path} does not exist; check its name.")
    return path


def check_place(path: AnyPath, inputs: Iterable[AnyPath] = ()) -> Path:
    """See that a file or a store can be written to ``path``, whatever file or store is there.

    Parameters
    ----------
    path : path
        Where the result shall go.
    inputs : iterable of paths
        Files that must not be overwritten.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UsageError
        If the suffix is unknown, or ``path`` is a folder, in a store, or one of the inputs (under
        whatever name, through whatever link) or the store of one.
    FileError
        If its folder is missing or cannot be written to, or the file is write-protected.
    """
    path = Path(path)
    with saving(path, 0):
        _check_place(path, inputs)
    return path


def _check_place(path: Path, inputs: Iterable[AnyPath]) -> None:
    # Where it would lie in fact: a link may lead into a store.
    place = Path(os.path.realpath(path.parent), path.name)
    store = _outermost(place)
    if store != place and is_store(store):
        raise UsageError(f"{path} lies in the zarr store {store}; give the result another place.")
    if path.is_dir() and not (is_store(path) and names_store(path)):
        what = "zarr store of another name" if is_store(path) else "folder"
        raise UsageError(f"{path} is a {what}; give the result a file name, such as result.nii.gz.")
    if not known_suffix(path):
        raise UsageError(f"{path} does not end in a known suffix; write {KNOWN}.")
    if names_store(path) and path.is_symlink() and not path.exists():
        raise UsageError(
            f"{path} is a link to what is not there; remove it, or choose another name."
        )
    files = files_of(path)
    for given in inputs:
        theirs = files_of(Path(os.path.realpath(given)))
        if any(
            _same(mine, their) or their.is_relative_to(os.path.realpath(place))
            for their in theirs
            for mine in files
        ):
            raise UsageError(f"{path} is the input itself; give the result another name.")
    folder = path.parent
    if not folder.is_dir():
        raise FileError(f"The folder {folder} does not exist; make it first, or choose another.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(
            f"The folder {folder} cannot be written to ({reason(error)}); choose another."
        ) from error
    for file in files:
        # Where the system allows, asked of the user that writing will be done as.
        effective = os.access in os.supports_effective_ids
        if file.exists() and not os.access(file, os.W_OK, effective_ids=effective):
            raise FileError(f"{file} is write-protected; delete it or choose another name.")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist yet
        return one.resolve() == other.resolve()
