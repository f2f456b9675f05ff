"""Training volumes: found, checked, normalised, and held in memory or read from files."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.choices import Normalization
from napari_arssr.errors import ArssrError, FileError, UsageError
from napari_arssr.files import make_folder, write_whole
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Volume

__all__ = [
    "MANIFEST",
    "MappedVoxels",
    "NiftiVoxels",
    "SharedVoxels",
    "Split",
    "TrainingVolume",
    "Voxels",
    "find_files",
    "load_split",
    "load_volumes",
    "refuse_too_few",
    "start_method",
    "subject_of",
]

Warn = Callable[[str], None]

MANIFEST = "patches.json"
"""Beside patches that ``napari-arssr patches`` cut: they are in [0, 1] already."""

# Beyond, values are hot voxels that tissue should not be squeezed for, nor the loss led by.
_LARGEST = 2.0
_READERS = 4


class Voxels(Protocol):
    """A (z, y, x) array that gives parts of itself."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""

    def __getitem__(self, part: tuple[slice, ...], /) -> npt.NDArray[Any]:
        """A block, in network units."""


@dataclass(frozen=True)
class TrainingVolume:
    """An HR volume in network units, (z, y, x), and where it came from.

    Parameters
    ----------
    data : array
        In [0, 1] but for hot voxels; float16 to hold many.
    name : str
        How messages and records call it.
    subject : str
        The label of a BIDS name, ``sub-01``; of a patch, else, the digest of the volume that it was
        cut from; else the path.
    sha256 : str
        Of the file.
    content : str
        Digest of the normalised voxels: the same for copies in another format.
    path : str
    """

    data: Voxels
    name: str
    subject: str = ""
    sha256: str = ""
    content: str = ""
    path: str = field(default="", compare=False)

    @classmethod
    def from_array(
        cls,
        data: npt.NDArray[Any],
        name: str,
        smallest: int = 1,
        normalization: Normalization = "percentile",
    ) -> Self:
        """Normalise an array.

        Raises
        ------
        UsageError
            If it is constant, or has an axis shorter than ``smallest`` voxels.
        """
        normal, _ = _normalised(data, name, smallest, normalization)
        return cls(normal, name, name, content=_digest(normal))


def _normalised(
    data: npt.NDArray[Any], name: str, smallest: int, method: Normalization
) -> tuple[npt.NDArray[np.float16], Normalizer]:
    if min(data.shape) < smallest:
        sizes = "×".join(str(n) for n in data.shape[::-1])
        raise UsageError(
            f"{name}: {sizes} voxels are too few to train on; every axis needs {smallest}."
        )
    try:
        normalizer = Normalizer.fit(data, method)
        normal = normalizer.normalize(data)
    except FileError as error:
        raise FileError(f"{name}: {error}") from None
    if normal.max() == normal.min():
        raise UsageError(f"{name}: the volume is constant; there is nothing to learn from.")
    return _stored(normal), normalizer


def _stored(normal: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    return np.clip(normal, 0, _LARGEST).astype(np.float16)


def _digest(normal: npt.NDArray[np.float16]) -> str:
    digest = hashlib.sha256(repr(normal.shape).encode())
    digest.update(np.ascontiguousarray(normal).data)
    return digest.hexdigest()


# Arrays that are not in this process's own memory ------------------------------------------------


class SharedVoxels:
    """An array in memory that worker processes share however they are started."""

    def __init__(self, data: npt.NDArray[np.float16]) -> None:
        import torch

        self._tensor = torch.from_numpy(data).share_memory_()

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self._tensor.shape)

    def __getitem__(self, part: tuple[slice, ...]) -> npt.NDArray[Any]:
        voxels: npt.NDArray[Any] = self._tensor.numpy()[part]
        return voxels


class MappedVoxels:
    """An array in a ``.npy`` file, mapped into memory where it is used."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path = path
        self.shape = shape
        self._mapped: npt.NDArray[Any] | None = None

    def _map(self) -> npt.NDArray[Any]:
        mapped: npt.NDArray[Any] = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return mapped

    def __getitem__(self, part: tuple[slice, ...]) -> npt.NDArray[Any]:
        if self._mapped is None:
            self._mapped = self._map()
        return np.asarray(self._mapped[part])

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled by its content.
        return {**self.__dict__, "_mapped": None}


class NiftiVoxels:
    """The first frame of an uncompressed NIfTI file, read where it is used, in network units."""

    def __init__(self, path: Path, shape: tuple[int, ...], normalizer: Normalizer) -> None:
        self._path = path
        self.shape = shape
        self._normalizer = normalizer
        self._stored: Any = None
        self._process = 0

    def __getitem__(self, part: tuple[slice, ...]) -> npt.NDArray[Any]:
        # A worker that is a copy of this process would share the place in an open file with it.
        if self._stored is None or self._process != os.getpid():
            self._stored = io.read(self._path, most=0).frame(0).data
            self._process = os.getpid()
        return _stored(self._normalizer.normalize(np.asarray(self._stored[part])))

    def __getstate__(self) -> dict[str, Any]:
        # Every process opens the file for itself.
        return {**self.__dict__, "_stored": None}


def start_method() -> str:
    """How worker processes are started: copies of this one where the system has that.

    Such copies share the set's memory without further ado.
    """
    methods = multiprocessing.get_all_start_methods()
    return "fork" if "fork" in methods and os.uname().sysname == "Linux" else "spawn"


# From files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Volumes to train on and to watch the run with; never the same subject in both."""

    train: tuple[TrainingVolume, ...]
    validation: tuple[TrainingVolume, ...]


def load_split(
    train: Sequence[str | os.PathLike[str]],
    validation: Sequence[str | os.PathLike[str]],
    *,
    holdout: int,
    channels: tuple[int | None, int | None] = (None, None),
    **options: Any,
) -> Split:
    """The volumes of a run.

    Parameters
    ----------
    train, validation : paths
        Files or folders.
    holdout : int
        Subjects, the last by name, that are taken from ``train`` where ``validation`` is empty.
    channels : two ints, optional
        Which channel of stacks that have several: to train with, and to watch with.
    **options
        See :func:`load_volumes`.

    Raises
    ------
    UsageError
        If there is nothing to train on, or a validation subject is among the training subjects.
    """
    trained = load_volumes(train, channel=channels[0], **options)
    watched = load_volumes(validation, channel=channels[1], **options) if validation else []
    if not watched and holdout:
        subjects = list(dict.fromkeys(volume.subject for volume in trained))
        refuse_too_few(len(subjects), holdout)
        kept = set(subjects[-holdout:])
        watched = [volume for volume in trained if volume.subject in kept]
        trained = [volume for volume in trained if volume.subject not in kept]
    _refuse_leaks(trained, watched)
    return Split(tuple(trained), tuple(watched))


def refuse_too_few(subjects: int, holdout: int) -> None:
    """Raise UsageError where nothing is left to train on once some subjects are held out."""
    if subjects <= holdout:
        many = "1 subject" if subjects == 1 else f"{subjects} subjects"
        raise UsageError(
            f"{many} cannot be trained on with {holdout} held out; give more volumes, hold out "
            "fewer (--holdout), or name validation volumes (--val)."
        )


def _refuse_leaks(train: Sequence[TrainingVolume], validation: Sequence[TrainingVolume]) -> None:
    contents = {volume.content: volume for volume in train}
    subjects = {volume.subject: volume for volume in train}
    for volume in validation:
        copy = contents.get(volume.content)
        if copy is not None:
            raise UsageError(
                f"{volume.path} is a validation volume and {copy.path}, the same image, a "
                "training volume: its score would mean nothing; take it out of one of them."
            )
        same = subjects.get(volume.subject)
        if same is not None:
            raise UsageError(
                f"{volume.path} is a validation volume of {Path(volume.subject).name}, and "
                f"{same.path}, of the same subject, a training volume: its score would mean "
                "nothing; take that subject out of one of them."
            )


def load_volumes(
    paths: Iterable[str | os.PathLike[str]],
    *,
    smallest: int = 1,
    normalization: Normalization = "percentile",
    unpack_to: Path | None = None,
    share: bool = False,
    channel: int | None = None,
    strict: bool = False,
    warn: Warn = lambda _: None,
) -> list[TrainingVolume]:
    """Every usable volume of files and folders, sorted by name.

    Frames of a 4D file would be one subject many times over: the first one stands for all.
    A file that is unreadable, constant, too small or a copy of another is left out.

    Parameters
    ----------
    paths : paths
        Files or folders.
    smallest : int
        Voxels that every axis needs.
    normalization : {"percentile", "minmax", "none"}
    unpack_to : Path, optional
        Hold nothing in memory: read from the files, and from memory maps in this folder in
        place of files that cannot be read in part.
    share : bool
        Hold the volumes so that processes that are not forked share them.
    channel : int, optional
        Which channel of stacks that have several.
    strict : bool
        Whether a volume that cannot be used is an error.
    warn : callable
        Told of each volume that is left out, and why.

    Raises
    ------
    UsageError, FileError
        If there is no volume; with ``strict`` of the first that cannot be used.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not os.path.lexists(path):
            raise FileError(f"{path} does not exist; check its name.")
    files = sorted((f for path in given for f in find_files(path)), key=lambda path: path.name)
    named = _Names(files)

    def read(file: Path) -> TrainingVolume | ArssrError:
        try:
            volume = io.read(file, frame=0, channel=channel)
            return _usable(file, volume, smallest, normalization, unpack_to, share=share)
        except ArssrError as error:
            return error

    found: list[TrainingVolume] = []
    known: dict[str, TrainingVolume] = {}
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        for file, read_one in zip(files, pool.map(read, files), strict=True):
            result = read_one
            if isinstance(result, TrainingVolume) and result.content in known:
                other = known[result.content].path
                result = UsageError(f"{file}: a copy of another volume, {other}; it counts once.")
            if isinstance(result, ArssrError):
                if strict:
                    raise result
                warn(f"left out: {result}")
                continue
            known[result.content] = result
            found.append(
                replace(
                    result,
                    name=named(file),
                    subject=subject_of(file) or result.subject or str(file),
                )
            )
    if not found:
        raise UsageError(f"There is no volume that can be used in {', '.join(map(str, given))}.")
    return found


class _Names:
    """Names of files for records: each its own, and none tells where the data set lies.

    Folders of subjects often hold files of one name, which then carry the folders above them, as
    far as these are the data set's own.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._root = ""
        with suppress(ValueError):  # no files, or several drives
            self._root = os.path.commonpath([file.absolute().parent for file in files])
        self._given: set[str] = set()

    def __call__(self, file: Path) -> str:
        parts = file.absolute().relative_to(self._root).parts if self._root else (file.name,)
        ends = ["/".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        # Links and mounts may bring one file twice by different ways.
        numbered = (f"{ends[-1]} ({number})" for number in count(2))
        names = map(_printable, chain(ends, numbered))
        name = next(one for one in names if one not in self._given)
        self._given.add(name)
        return name


def _printable(name: str) -> str:
    """The name with what is no text in it spelt out: cards are UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def find_files(path: Path) -> list[Path]:
    """The volumes of a folder, or of the ``anat`` folders of a BIDS data set; or the file."""
    if not io.is_folder(path):
        return [path]
    found = io.volumes_in(path)
    if not found:
        for folder in sorted([*path.glob("sub-*/anat"), *path.glob("sub-*/ses-*/anat")]):
            found += io.volumes_in(folder)
    return found


_SUBJECT = re.compile(r"(?:^|[^A-Za-z0-9])(sub-[A-Za-z0-9]+)")


def subject_of(file: Path) -> str:
    """The BIDS subject in a file's name, else in its folders'; empty where there is none.

    Of folders the three next to the file are looked at: data type, session and subject. Labels
    count within one data set: below a ``dataset_description.json`` the label carries the folder
    that holds it.
    """
    file = file.absolute()
    for part in (file.name, *(folder.name for folder in file.parents[:3])):
        match = _SUBJECT.search(part)
        if match:
            root = next((f for f in file.parents if (f / _BIDS_ROOT).is_file()), None)
            return f"{root}/{match[1]}" if root else match[1]
    return ""


_BIDS_ROOT = "dataset_description.json"


def _usable(
    file: Path,
    volume: Volume,
    smallest: int,
    method: Normalization,
    unpack_to: Path | None,
    *,
    share: bool,
) -> TrainingVolume:
    if io.is_label_map(volume):
        raise UsageError(f"{file}: its voxels are labels, not intensities; it is no scan.")
    # Patches of one volume are one subject, whatever they are called.
    cut_from = _cut_from(file)
    if cut_from:
        method = "none"
    normal, normalizer = _normalised(volume.data, str(file), smallest, method)
    content = _digest(normal)
    data: Voxels = normal
    if unpack_to is not None:
        if file.suffix.lower() == ".nii":
            data = NiftiVoxels(file.absolute(), normal.shape, normalizer)
        else:
            data = _unpacked(normal, content, unpack_to)
    elif share:
        data = SharedVoxels(normal)
    return TrainingVolume(data, file.name, cut_from, io.content_sha256(file), content, str(file))


def _unpacked(normal: npt.NDArray[np.float16], content: str, folder: Path) -> MappedVoxels:
    path = folder / f"{content[:32]}.npy"
    if not path.exists():
        make_folder(folder)
        write_whole(path, lambda opened: np.save(opened, normal, allow_pickle=False))
    return MappedVoxels(path.absolute(), normal.shape)


def _cut_from(file: Path) -> str:
    """Digest of the volume that ``napari-arssr patches`` cut the file from; empty if it did not.

    A manifest in its folder or above says so.
    """
    file = file.absolute()  # "x.nii" has no folders above it
    for folder in (file.parent, file.parent.parent):
        manifest = folder / MANIFEST
        if manifest.is_file():
            changed = manifest.stat().st_mtime_ns
            return _patches_of(manifest, changed).get(file.relative_to(folder).as_posix(), "")
    return ""


@lru_cache(maxsize=8)
def _patches_of(manifest: Path, _changed: int) -> dict[str, str]:
    """File of each patch → digest of the volume it was cut from."""
    try:
        volumes = json.loads(manifest.read_text(encoding="utf-8"))["volumes"]
        return {
            patch["file"]: str(volume["content"])
            for volume in volumes
            for patch in volume["patches"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{manifest}: the manifest of the patches cannot be read ({error}); cut them again."
        ) from None
