"""OME-Zarr stores, versions 0.1 to 0.5: one image of a store is read, at one level of its pyramid.

A store may hold several images, pictures of labels, plates of wells. What is read is the group or
the level that is named; of an image's group the finest level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import ArssrError, FileError, NoVolume
from napari_arssr.io.casting import real_dtype, real_values
from napari_arssr.io.channels import Channel, chosen
from napari_arssr.io.origin import LABEL, Origin
from napari_arssr.io.paths import beside, stem
from napari_arssr.io.stored import StoredArray
from napari_arssr.io.troubles import not_real, reading
from napari_arssr.io.units import millimetres, seconds
from napari_arssr.volume import Grid, Volume, as_shape

if TYPE_CHECKING:
    import zarr

__all__ = ["channels", "levels", "read", "stated_sizes"]

Array = npt.NDArray[Any]

# Axes of versions that do not name them.
_AXES = ("t", "c", "z", "y", "x")
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_SPACE = ["Z", "Y", "X"]
# What tells of a level lies in a group so many folders above it, at most.
_ABOVE = 3


@dataclass(frozen=True)
class _Level:
    """A level of an image's pyramid, with what its group says of it.

    Parameters
    ----------
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


def read(path: Path, most: int | None = None, channel: int | None = None) -> Volume:
    """Read one image, or a channel of it; see :func:`napari_arssr.io.read`."""
    level = _level(path)
    one = chosen(path, level.channels, channel)
    native = level.array.dtype.newbyteorder("=")
    real = real_dtype(native, 1.0, 0.0)
    data: Any = StoredArray(_StoredChunks(path, level.array, real))
    number = 0 if one is None else one.number
    left_out = ["T"] if level.along("T", level.array.shape, 1) == 1 else []
    kept = [letter for letter in level.letters if letter in {"T", *_SPACE} - {*left_out}]
    data = data[
        tuple(
            slice(None) if letter in kept else number if letter == "C" else 0
            for letter in level.letters
        )
    ]
    data = data.transpose([kept.index(letter) for letter in ["T", *_SPACE] if letter in kept])
    if most is None or data.nbytes <= most:
        data = np.ascontiguousarray(data)
    spacing = [level.along(letter, level.scale) for letter in _SPACE]
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        sizes = " × ".join(f"{step:g}" for step in spacing[::-1])
        raise FileError(f"{path} has voxel sizes of {sizes} mm; correct its scale transformations.")
    placed = np.diag([*spacing, 1.0])
    placed[:3, 3] = [level.along(letter, level.translation) for letter in _SPACE]
    step = level.along("T", level.scale)
    is_series = data.ndim == 4
    return Volume(
        data,
        Grid.from_napari(as_shape(data.shape[-3:]), placed).affine,
        time_step=step if is_series and math.isfinite(step) and step > 0 else 0.0,
        time_start=level.along("T", level.translation) if is_series else 0.0,
        name=path.name if beside(path) == path.parent else stem(path),
        metadata={
            "origin": Origin(
                format="OME-Zarr",
                dtype=native,
                states_spacing=level.states_spacing,
                channel=one,
                intent=(LABEL if level.is_label_map else 0, (0.0, 0.0, 0.0), ""),
            )
        },
    )


def channels(path: Path) -> tuple[Channel, ...]:
    """The channels of an image, one or more; its voxels are not read."""
    return _level(path).channels


def levels(path: Path) -> tuple[Path, ...]:
    """The levels of an image's pyramid, the finest first; of a level itself only that."""
    import zarr

    with _plainly(path):
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return (path,)
        group, finest = _image_in(path, node)
        image = next(one for one in _said_by(group)["multiscales"] if finest in _paths(one))
        return tuple(path / group.path / name for name in _paths(image))


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


class _StoredChunks:
    """The voxels of a zarr array, for a :class:`StoredArray`; chunks are read whole."""

    def __init__(self, path: Path, array: zarr.Array[Any], dtype: np.dtype[Any]) -> None:
        self.name = str(path)
        self.shape = tuple(array.shape)
        self.chunks = tuple(array.chunks)
        self.dtype = dtype
        self._path = path
        self._array = array

    def read(self, picks: Sequence[range]) -> Array:
        """The voxels at every combination of the indices picked."""
        forward = [pick if pick.step > 0 else pick[::-1] for pick in picks]
        with reading(self._path), _plainly(self._path):
            stored = np.asarray(
                self._array[tuple(slice(pick.start, pick.stop, pick.step) for pick in forward)]
            )
        turned = tuple(slice(None, None, 1 if pick.step > 0 else -1) for pick in picks)
        return real_values(stored[turned], 1.0, 0.0).astype(self.dtype, copy=False)


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """One sentence of ours for whatever zarr makes of a store."""
    try:
        yield
    except (ArssrError, OSError, MemoryError):
        raise
    except Exception as error:
        said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise FileError(
            f"{path} is not a whole zarr store ({said}); copy or export it again."
        ) from error


def _level(path: Path) -> _Level:
    """The level that a path names, or the finest of the image it names."""
    import zarr

    with _plainly(path):
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            group, within = _group_of(path)
        else:
            group, within = _image_in(path, node)
        array = group[within]
        if not isinstance(array, zarr.Array):
            raise FileError(f"{path} names {within!r} as a level, which is none; export it again.")
        _check_numbers(path, array)
        return _described(path, array, within, _said_by(group))


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
        if any(within in _paths(image) for image in _said_by(group).get("multiscales", ())):
            return group, within
    raise NoVolume(
        f"{path} is a zarr array that no OME metadata above it tell of; give the group of an "
        "OME-Zarr image, or open it in napari and set the layer's scale."
    )


def _image_in(path: Path, group: zarr.Group) -> tuple[zarr.Group, str]:
    """The image that a group is, or the only one in it; with what it calls its finest level."""
    import zarr

    said = _said_by(group)
    if not said.get("multiscales") and "bioformats2raw.layout" in said:
        names = sorted((name for name, _ in group.groups() if name.isdecimal()), key=int)
        if len(names) != 1:
            there = ", ".join(str(path / name) for name in names) or "none"
            raise NoVolume(f"{path} holds {len(names)} images; give one of them: {there}.")
        found = group[names[0]]
        assert isinstance(found, zarr.Group)
        group, said = found, _said_by(found)
    if not said.get("multiscales"):
        if "plate" in said or "well" in said:
            raise NoVolume(f"{path} is a plate of many images; give one, as {path / 'A/1/0'}.")
        raise NoVolume(
            f"{path} is a zarr store without the metadata of an OME-Zarr image ('multiscales'); "
            "give the image's own group, or open it in napari and set the layer's scale."
        )
    within = _paths(said["multiscales"][0])
    if not within:
        raise NoVolume(f"{path} lists no level of its image; export it again.")
    return group, within[0]


def _said_by(group: zarr.Group) -> dict[str, Any]:
    """OME's metadata; of version 0.5 they lie in a drawer of their own."""
    attributes = group.attrs.asdict()
    drawer = attributes.get("ome")
    return drawer if isinstance(drawer, dict) else attributes


def _paths(image: Mapping[str, Any]) -> list[str]:
    """The levels of an image, the finest first."""
    return [str(level["path"]) for level in image["datasets"]]


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


def _described(path: Path, array: zarr.Array[Any], within: str, said: Mapping[str, Any]) -> _Level:
    image = next(one for one in said["multiscales"] if within in _paths(one))
    names = [
        {"name": axis} if isinstance(axis, str) else axis
        for axis in image.get("axes") or _AXES[-array.ndim :]
    ]
    if len(names) != array.ndim:
        raise FileError(
            f"{path} has {array.ndim} axes and its metadata tell of {len(names)}; export it again."
        )
    types = [axis.get("type") or _TYPES.get(str(axis["name"]).lower(), "") for axis in names]
    letters = _letters(path, [str(axis["name"]) for axis in names], types, array.shape)
    scale, translation, states_sizes = _placed(image, within, array.ndim)
    units = [_unit(kind, axis.get("unit")) for kind, axis in zip(types, names, strict=True)]
    space = [unit for unit, kind in zip(units, types, strict=True) if kind == "space"]
    factors = [
        (unit or 0.0) if kind == "time" else (unit or 1.0) if all(space) else 1.0
        for kind, unit in zip(types, units, strict=True)
    ]
    return _Level(
        array,
        letters,
        tuple(factor * step for factor, step in zip(factors, scale, strict=True)),
        tuple(factor * at for factor, at in zip(factors, translation, strict=True)),
        states_sizes and all(space),
        _channels(said, array.shape[letters.index("C")] if "C" in letters else 1),
        "image-label" in said,
    )


def _letters(
    path: Path, names: Sequence[str], types: Sequence[str], shape: Sequence[int]
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
    if shape[letters.index("Z")] == 1:
        raise NoVolume(f"{path} has {text}: one plane, not a volume; give a stack of planes.")
    return tuple(letters)


def _unit(kind: str, name: Any) -> float | None:
    """Millimetres or seconds of an axis' unit; None where it is not stated, or none known here."""
    if not isinstance(name, str):
        return None
    return seconds(name) if kind == "time" else millimetres(name)


def _placed(
    image: Mapping[str, Any], within: str, axes: int
) -> tuple[list[float], list[float], bool]:
    """Scale and translation of a level in the image's units, and whether a scale is stated.

    The level's own come first, then those of all levels.
    """
    level = image["datasets"][_paths(image).index(within)]
    scale, translation, stated = [1.0] * axes, [0.0] * axes, False
    for given in (level, image):
        for one in given.get("coordinateTransformations", ()):
            if one["type"] == "scale":
                factors = [float(value) for value in one["scale"]]
                scale = [a * b for a, b in zip(scale, factors, strict=True)]
                translation = [a * b for a, b in zip(translation, factors, strict=True)]
                stated = True
            elif one["type"] == "translation":
                moved = [float(value) for value in one["translation"]]
                translation = [a + b for a, b in zip(translation, moved, strict=True)]
    return scale, translation, stated


def _channels(said: Mapping[str, Any], count: int) -> tuple[Channel, ...]:
    """The channels, with names where there is one for each."""
    given = said.get("omero", {}).get("channels", ())
    names = [str(one.get("label", "")) for one in given]
    if len(names) != count:
        names = [""] * count
    return tuple(Channel(number, " ".join(name.split())) for number, name in enumerate(names))
