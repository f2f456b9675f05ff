"""OME-Zarr stores are read, versions 0.1 to 0.5: one image, at one level of its pyramid.

A store may hold several images, pictures of labels, plates of wells. What is read is the group or
the level that is named; of an image's group the finest level.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import ArssrError, FileError, NoVolume
from napari_arssr.io.channels import Channel, chosen
from napari_arssr.io.origin import LABEL, PROGRAM, Origin
from napari_arssr.io.paths import MARKERS, name_of
from napari_arssr.io.stored import StoredArray
from napari_arssr.io.troubles import check_sizes, not_real, reading
from napari_arssr.io.units import millimetres, seconds
from napari_arssr.volume import Grid, Volume, as_shape

if TYPE_CHECKING:
    import zarr

__all__ = [
    "channels",
    "coarser",
    "files_behind",
    "not_ours",
    "provenance",
    "read",
    "stated_sizes",
]

Array = npt.NDArray[Any]

# Axes of versions that do not name them.
_UNNAMED = ("0.1", "0.2")
_AXES = ("t", "c", "z", "y", "x")
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_SPACE = ["Z", "Y", "X"]
# What this program writes, beside levels and chunks, and what desktops leave wherever they look.
_OUR_NOTES = ("multiscales", "_creator", "image-label")
_OUR_FILES = (".zgroup", ".zarray", ".zattrs")
_DESKTOPS_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
# What tells of a level lies in a group so many folders above it, at most.
_ABOVE = 3
_PLATE = ("plate", "well")


@dataclass(frozen=True)
class _Level:
    """A level of an image's pyramid, with what its group says of it.

    Parameters
    ----------
    group : zarr.Group
    within : str
        What the group calls it.
    array : zarr.Array
    letters : tuple of str
        For each of its axes T, C, Z, Y or X; "-" for one voxel along an axis of another kind.
    scale, translation : tuple of float
        Size of a step along each axis, and where the first voxel is: millimetres, seconds.
    states_spacing : bool
        Whether the units of space are known.
    channels : tuple of Channel
    is_label_map : bool
    """

    group: zarr.Group
    within: str
    array: zarr.Array[Any]
    letters: tuple[str, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    states_spacing: bool
    channels: tuple[Channel, ...]
    is_label_map: bool

    def along(self, letter: str, values: Sequence[float], missing: float = 0.0) -> float:
        """What ``values`` has for an axis."""
        return values[self.letters.index(letter)] if letter in self.letters else missing

    def voxels(self, path: Path, array: zarr.Array[Any], channel: Channel | None) -> StoredArray:
        """An array of these axes as (z, y, x) or (t, z, y, x), which stays in its store."""
        is_series = self.along("T", array.shape, 1) > 1
        wanted = ["T", *_SPACE] if is_series else _SPACE
        number = 0 if channel is None else channel.number
        part = tuple(
            slice(None) if letter in wanted else number if letter == "C" else 0
            for letter in self.letters
        )
        kept = [letter for letter in self.letters if letter in wanted]
        order = [kept.index(letter) for letter in wanted]
        return StoredArray(_StoredChunks(path, array))[part].transpose(order)


def read(path: Path, most: int | None = None, channel: int | None = None) -> Volume:
    """Read one image, or a channel of it; see :func:`napari_arssr.io.read`."""
    level = _level(path)
    one = chosen(path, level.channels, channel)
    data: Any = level.voxels(path, level.array, one)
    if most is None or data.nbytes <= most:
        data = np.ascontiguousarray(data)
    spacing = [level.along(letter, level.scale) for letter in _SPACE]
    check_sizes(path, spacing, "correct its scale transformations")
    placed = np.diag([*spacing, 1.0])
    placed[:3, 3] = [level.along(letter, level.translation) for letter in _SPACE]
    step = level.along("T", level.scale)
    is_series = data.ndim == 4
    return Volume(
        data,
        Grid.from_napari(as_shape(data.shape[-3:]), placed).affine,
        time_step=step if is_series and math.isfinite(step) and step > 0 else 0.0,
        time_start=level.along("T", level.translation) if is_series else 0.0,
        name=name_of(path),
        metadata={
            "origin": Origin(
                format="OME-Zarr",
                dtype=data.dtype,
                states_spacing=level.states_spacing,
                channel=one,
                intent=(LABEL if level.is_label_map else 0, (0.0, 0.0, 0.0), ""),
                description=_written_by_us(level.group, "description"),
                provenance=_written_by_us(level.group, "provenance"),
            )
        },
    )


def channels(path: Path) -> tuple[Channel, ...]:
    """The channels of an image, one or more; its voxels are not read."""
    return _level(path).channels


def stated_sizes(path: Path) -> dict[str, tuple[int, float]] | None:
    """See :func:`napari_arssr.io.stated_sizes`."""
    level = _level(path)
    spacing = [level.along(letter, level.scale) for letter in _SPACE]
    if not level.states_spacing or not all(0 < side < math.inf for side in spacing):
        return None
    sides = dict(zip(_SPACE, spacing, strict=True))
    return {
        letter: (count, sides.get(letter, 0.0))
        for letter, count in zip(level.letters, level.array.shape, strict=True)
    }


def coarser(path: Path, channel: int | None = None) -> tuple[StoredArray, ...]:
    """See :func:`napari_arssr.io.coarser`."""
    import zarr

    level = _level(path)
    one = chosen(path, level.channels, channel)
    with _plainly(path):
        names = _paths(_image_of(level.group, level.within))
        there = [level.group.get(name) for name in names[names.index(level.within) + 1 :]]
        # What else a level may be is not for looking at.
        return tuple(
            level.voxels(path, array, one)
            for array in there
            if isinstance(array, zarr.Array) and array.ndim == level.array.ndim
        )


def files_behind(path: Path) -> dict[str, Path]:
    """The files that a volume is read from, by what the store calls them, in order of names.

    Those of its level and what its group says; not those of other levels or of labels.
    """
    level = _level(path)
    group, folder = _place_of(level.group), _place_of(level.array)
    found = {
        file.name: file
        for file in (group / name for name in (".zattrs", *MARKERS))
        if file.is_file()
    }
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            found[f"{level.within}/{file.relative_to(folder).as_posix()}"] = file
    return dict(sorted(found.items()))


def provenance(path: Path) -> str:
    """What this program noted of how it made an image; empty where it did not make it."""
    import zarr

    with _plainly(path):
        return _written_by_us(zarr.open_group(path.absolute(), mode="r"), "provenance")


def not_ours(path: Path) -> str:
    """Something in a store that this program did not write, by its name; empty where all is ours.

    A dot stands for the store itself.
    """
    import zarr

    with _plainly(path):
        group = zarr.open_group(path.absolute(), mode="r")
        said = _said_by(group)
    images = [*(said.get("multiscales") or ())]
    levels = _paths(images[0]) if len(images) == 1 else []
    numbers = [str(number) for number in range(len(levels))]
    if not (_is_ours(said) and levels and levels == numbers):
        return "."
    notes = [key for key in said if key not in _OUR_NOTES]
    with _plainly(path):
        notes += [key for level in levels for key in group[level].attrs]
    if notes:
        return f"{notes[0]!r} in its metadata"
    for parent, folders, files in os.walk(path):
        within = Path(parent).relative_to(path).parts
        for name in (*folders, *files):
            entry = [*within, name]
            # Levels, and in them chunks, are numbers.
            is_chunk = entry[0] in levels and all(part.isdecimal() for part in entry)
            is_ours = len(entry) <= 2 and name in _OUR_FILES
            if not (is_chunk or is_ours or name in _DESKTOPS_FILES):
                return "/".join(entry)
    return ""


def _written_by_us(group: zarr.Group, key: str) -> str:
    """Metadata that this program writes."""
    said = _said_by(group)
    if not _is_ours(said):
        return ""
    metadata = said["multiscales"][0].get("metadata")
    return str(metadata.get(key, "")) if isinstance(metadata, dict) else ""


def _is_ours(said: Mapping[str, Any]) -> bool:
    creator = said.get("_creator")
    return isinstance(creator, dict) and creator.get("name") == PROGRAM


class _StoredChunks:
    """The voxels of a zarr array, for a :class:`StoredArray`; chunks are read whole."""

    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        self.name = str(path)
        self.shape = tuple(array.shape)
        self.chunks = tuple(array.chunks)
        self.dtype = array.dtype.newbyteorder("=")
        self._path = path
        self._array = array
        self._identity = _identity(array)

    def read(self, picks: Sequence[range]) -> Array:
        """The voxels at every combination of the indices picked."""
        forward = [pick if pick.step > 0 else pick[::-1] for pick in picks]
        with reading(self._path), _plainly(self._path):
            stored = np.asarray(
                self._array[tuple(slice(pick.start, pick.stop, pick.step) for pick in forward)]
            )
        # Chunks that are not there are empty by zarr's rules: all of them, once a store has gone.
        # And others may be there by now.
        found = _identity(self._array)
        if found != self._identity:
            if not found:
                raise FileError(f"{self._path} is no longer there; find it, and open it again.")
            raise FileError(f"{self._path} was replaced since it was opened; open it again.")
        turned = tuple(slice(None, None, 1 if pick.step > 0 else -1) for pick in picks)
        return stored[turned].astype(self.dtype, copy=False)


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """One sentence of ours for whatever zarr makes of a store."""
    try:
        yield
    except (ArssrError, OSError, MemoryError):
        raise
    except Exception as error:
        said = str(error).partition("\n")[0].strip("'. ") or type(error).__name__
        if "codec" in said:
            raise FileError(
                f"{path} is packed in a way that cannot be read here ({said}); install the package "
                "that has this codec, or export it with another."
            ) from error
        raise FileError(
            f"{path} is not a whole zarr store ({said}); copy or export it again."
        ) from error


def _identity(array: zarr.Array[Any]) -> tuple[tuple[int, int], ...]:
    """What changes when another array takes a place; empty where none is there."""
    place = _place_of(array)
    with suppress(OSError):
        found = [(place / name).stat() for name in MARKERS if (place / name).exists()]
        return tuple((file.st_ino, file.st_mtime_ns) for file in found)
    return ()


def _place_of(node: zarr.Array[Any] | zarr.Group) -> Path:
    """Its folder."""
    root: Any = node.store
    return Path(root.root) / node.path


# What a store says -------------------------------------------------------------------------------


def _level(path: Path) -> _Level:
    """The level that a path names, or the finest of the image it names."""
    import zarr

    with _plainly(path):
        # As an absolute path: the working folder may be another when voxels are read.
        node = zarr.open(path.absolute(), mode="r")
        if isinstance(node, zarr.Array):
            group, within = _group_of(path)
        else:
            group = _image_in(path, node)
            within = _paths(_said_by(group)["multiscales"][0])[0]
        array = group.get(within)
        if not isinstance(array, zarr.Array):
            raise FileError(f"{path} names {within!r} as a level, which is none; export it again.")
        _check_numbers(path, array)
        return _described(path, group, within, array)


def _group_of(path: Path) -> tuple[zarr.Group, str]:
    """The group that tells of a level, and what it calls it."""
    import zarr

    place = path.absolute()
    for folder in place.parents[:_ABOVE]:
        try:
            group = zarr.open_group(folder, mode="r")
        except FileNotFoundError:
            continue
        within = place.relative_to(folder).as_posix()
        if any(within in _paths(image) for image in _said_by(group).get("multiscales") or ()):
            return group, within
    raise NoVolume(
        f"{path} is a zarr array that no OME metadata above it tell of; give the group of an "
        "OME-Zarr image, or open it in napari and set the layer's scale."
    )


def _image_in(path: Path, group: zarr.Group) -> zarr.Group:
    """The image that a group is, or the only one in it."""
    import zarr

    said = _said_by(group)
    if any(kind in said for kind in _PLATE):
        raise NoVolume(f"{path} is a plate of many images; give one of them{_one_of(path, said)}.")
    if not said.get("multiscales") and "bioformats2raw.layout" in said:
        names = _series(group)
        if len(names) != 1:
            there = ", ".join(str(path / name) for name in names) or "none"
            raise NoVolume(f"{path} holds {len(names)} images; give one of them: {there}.")
        found = group.get(names[0])
        if isinstance(found, zarr.Group):
            group, said = found, _said_by(found)
    if not said.get("multiscales"):
        raise NoVolume(
            f"{path} is a zarr store without the metadata of an OME-Zarr image ('multiscales'); "
            "give the image's own group, or open it in napari and set the layer's scale."
        )
    if not _paths(said["multiscales"][0]):
        raise NoVolume(f"{path} lists no level of its image; export it again.")
    return group


def _one_of(path: Path, said: Mapping[str, Any]) -> str:
    """An image of a plate or a well, as an example; empty where none is named."""
    for images in (said.get("well") or {}).get("images") or ():
        return f", as {path / str(images['path'])}"
    for well in (said.get("plate") or {}).get("wells") or ():
        return f", as {path / str(well['path']) / '0'}"
    return ""


def _series(group: zarr.Group) -> list[str]:
    """The images of a converted file, as its own list names them, or by number."""
    import zarr

    about = group.get("OME")
    listed = _said_by(about).get("series") if isinstance(about, zarr.Group) else None
    if listed:
        return [str(name) for name in listed]
    return sorted((name for name, _ in group.groups() if name.isdecimal()), key=int)


def _said_by(group: zarr.Group) -> dict[str, Any]:
    """OME's metadata; of version 0.5 they lie in a drawer of their own."""
    attributes = group.attrs.asdict()
    drawer = attributes.get("ome")
    return drawer if isinstance(drawer, dict) else attributes


def _image_of(group: zarr.Group, within: str) -> dict[str, Any]:
    """What a group says of the image that has this level."""
    return next(one for one in _said_by(group)["multiscales"] if within in _paths(one))


def _paths(image: Mapping[str, Any]) -> list[str]:
    """The levels of an image, the finest first."""
    return [str(level["path"]).strip("/") for level in image["datasets"]]


def _check_numbers(path: Path, array: zarr.Array[Any]) -> None:
    """See that voxels are real numbers, and that to read them runs nothing."""
    kind = array.dtype.kind
    if kind not in "iuf":
        name = "boolean" if kind == "b" else "complex" if kind == "c" else str(array.dtype)
        raise not_real(path, name)
    given = (*(getattr(array, "filters", None) or ()), *(getattr(array, "compressors", None) or ()))
    if any(getattr(codec, "codec_id", "") == "pickle" for codec in given):
        raise FileError(
            f"{path} holds its voxels as pickled Python objects, which may run anything; not read."
        )


def _described(path: Path, group: zarr.Group, within: str, array: zarr.Array[Any]) -> _Level:
    said = _said_by(group)
    image = _image_of(group, within)
    axes = _axes(path, image, said, array.ndim)
    names = [str(axis["name"]) for axis in axes]
    types = [str(axis.get("type") or _TYPES.get(str(axis["name"]).lower(), "")) for axis in axes]
    letters = _letters(path, names, types, array.shape, ours=_is_ours(said))
    scale, translation, states_sizes = _placed(path, image, within, array.ndim)
    units = [_unit(kind, axis.get("unit")) for kind, axis in zip(types, axes, strict=True)]
    space = [unit for unit, kind in zip(units, types, strict=True) if kind == "space"]
    factors = [
        (unit or 0.0) if kind == "time" else (unit or 1.0) if all(space) else 1.0
        for kind, unit in zip(types, units, strict=True)
    ]
    return _Level(
        group,
        within,
        array,
        letters,
        tuple(factor * step for factor, step in zip(factors, scale, strict=True)),
        tuple(factor * at for factor, at in zip(factors, translation, strict=True)),
        states_sizes and all(space),
        _channels(said, array.shape[letters.index("C")] if "C" in letters else 1),
        "image-label" in said,
    )


def _axes(
    path: Path, image: Mapping[str, Any], said: Mapping[str, Any], count: int
) -> list[Mapping[str, Any]]:
    """What an image says of each axis: its name at least."""
    version = image.get("version") or said.get("version")
    given = image.get("axes")
    if given is None and version is not None and version not in _UNNAMED:
        raise FileError(
            f"{path} is of OME-Zarr version {version} and names no axes where versions up to 0.5 "
            "do; export it as 0.5 or 0.4."
        )
    axes = [{"name": one} if isinstance(one, str) else one for one in given or _AXES[-count:]]
    if len(axes) != count:
        raise FileError(
            f"{path} has {count} axes and its metadata tell of {len(axes)}; export it again."
        )
    return axes


def _letters(
    path: Path, names: Sequence[str], types: Sequence[str], shape: Sequence[int], *, ours: bool
) -> tuple[str, ...]:
    """T, C, Z, Y or X for each axis; those of space by their names, else in the file's order."""
    text = f"axes {', '.join(names)} ({'×'.join(map(str, shape))})"
    space = [name.upper() for name, kind in zip(names, types, strict=True) if kind == "space"]
    if len(space) < 3:
        raise NoVolume(f"{path} has {text}: its image is 2D, not 3D; give a stack of planes.")
    if len(space) > 3:
        raise NoVolume(f"{path} has {text}, more than three of space; save a volume of z, y, x.")
    ordered = iter(space if sorted(space) == sorted(_SPACE) else _SPACE)
    letters = []
    for kind, count in zip(types, shape, strict=True):
        if kind == "space":
            letters.append(next(ordered))
        elif kind in ("time", "channel"):
            letters.append("T" if kind == "time" else "C")
        elif count == 1:
            letters.append("-")
        else:
            raise NoVolume(f"{path} has {text}, more than z, y, x, time and channel; save ZYX.")
    if letters.count("T") > 1 or letters.count("C") > 1:
        raise NoVolume(f"{path} has {text}, more than one of time or of channels; save ZYX.")
    if shape[letters.index("Z")] == 1 and not ours:  # as pictures are stored
        raise NoVolume(f"{path} has {text}: one plane, not a volume; give a stack of planes.")
    return tuple(letters)


def _unit(kind: str, name: Any) -> float | None:
    """Millimetres or seconds of an axis' unit; None where it is not stated, or none known here."""
    if not isinstance(name, str):
        return None
    return seconds(name) if kind == "time" else millimetres(name)


def _placed(
    path: Path, image: Mapping[str, Any], within: str, axes: int
) -> tuple[list[float], list[float], bool]:
    """Scale and translation of a level in the image's units, and whether a scale is stated.

    The level's own come first, then those of all levels.
    """
    level = image["datasets"][_paths(image).index(within)]
    scale, translation, stated = [1.0] * axes, [0.0] * axes, False
    for given in (level, image):
        for one in given.get("coordinateTransformations") or ():
            kind = str(one["type"])
            if kind == "identity":
                continue
            if kind not in ("scale", "translation") or kind not in one:
                raise FileError(
                    f"{path} is placed by the transformation {kind!r}, and not by plain scales and "
                    "translations; export it as version 0.4 or 0.5."
                )
            values = [float(value) for value in one[kind]]
            if kind == "scale":
                scale = [a * b for a, b in zip(scale, values, strict=True)]
                translation = [a * b for a, b in zip(translation, values, strict=True)]
                stated = True
            else:
                translation = [a + b for a, b in zip(translation, values, strict=True)]
    return scale, translation, stated


def _channels(said: Mapping[str, Any], count: int) -> tuple[Channel, ...]:
    """The channels, with names where there is one for each."""
    given = (said.get("omero") or {}).get("channels") or ()
    names = [str(one.get("label") or "") for one in given]
    if len(names) != count:
        names = [""] * count
    return tuple(Channel(number, " ".join(name.split())) for number, name in enumerate(names))
