"""Volume ⇄ napari layer: where a layer lies, and the volume that it shows.

The world's last three axes are I, P, L (see :attr:`Grid.napari_affine`), whatever a layer calls
them. Where a layer lies is its whole data-to-world transform: its affine after its translate,
rotate, shear and scale. A world that counts in pixels is taken to count in millimetres.

Data in a file or a dask array are not loaded before they are needed: :func:`grid_of` and
``volume_of(layer, load=False)`` are for the main thread, :func:`loaded` is for a worker's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import FileError, OutOfMemory, UsageError
from napari_arssr.io import StoredArray, cast, is_label_map, without_suffix
from napari_arssr.lazy import is_read_in_chunks
from napari_arssr.normalization import Normalizer, sampled
from napari_arssr.volume import Grid, Volume

if TYPE_CHECKING:
    import pint
    from napari.layers import Layer

__all__ = [
    "HELPER",
    "PLACE",
    "TRANSFORMS",
    "LayerData",
    "grid_of",
    "helps_to_look",
    "image_layer",
    "labels_layer",
    "layer_of",
    "loaded",
    "placed_points",
    "volume_of",
    "volume_of_data",
]

LayerData = tuple[Any, dict[str, Any], str]

TRANSFORMS = ("scale", "translate", "rotate", "shear", "affine")
"""What a layer's data-to-world transform is made of."""

PLACE = ("units", *TRANSFORMS)
"""What says where a layer lies. To be set in this order: of new units napari takes notice when
something else is set after them."""

HELPER = "napari-arssr helper"
"""Key of the metadata of a layer that only helps to look at others."""

_ATTRIBUTES = (*PLACE, "name", "axis_labels", "metadata", "rgb", "multiscale")

# Key of a volume's metadata: how the world of its layer is called, for the layer of a result.
_WORLD = "world"
_MILLIMETRES = {"unit": "mm", "labels": ("I", "P", "L")}
_DEFAULT_LABELS = ("-3", "-2", "-1")

_MICROSCOPIC = 0.1  # millimetres; voxels smaller than that are told in micrometres

# Enough to choose contrast limits by, of data that are not in memory.
_SAMPLE_PLANES = 16
_SAMPLE_BYTES = 1 << 26


def stack_unit(spacing: Sequence[float]) -> str:
    """The unit that a stack's layer counts in, whose voxels have such sides in millimetres."""
    return "um" if max(spacing) < _MICROSCOPIC else "mm"


def helps_to_look(metadata: Mapping[str, Any] | None) -> bool:
    """Whether a layer's metadata say that it only helps to look, and is no image to run on."""
    return bool(metadata and metadata.get(HELPER))


def layer_of(volume: Volume) -> LayerData:
    """A volume as the layer it should be: labels for a label map, else an image."""
    return labels_layer(volume) if is_label_map(volume) else image_layer(volume)


def image_layer(volume: Volume) -> LayerData:
    """A volume as a napari image layer: data, settings, type.

    World axes are I, P, L (and time first) in millimetres (and seconds), so that volumes of
    one subject overlay whatever their orientation; see :attr:`Volume.napari_affine`. A volume
    that :func:`volume_of` made of a layer keeps that layer's unit and axis labels. The array
    is reordered, never copied, to run along the world's axes, because napari slices by array
    axes. Contrast limits are percentiles; of voxels that are still in a file, of some planes.
    """
    shown = _contrast(volume.data)
    data, settings = _placed(volume)
    # napari takes three or four columns for colours, unless it is told.
    return data, settings | {"contrast_limits": shown, "rgb": False}, "image"


def placed_points(
    points: npt.NDArray[np.float64], place: Volume
) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Points as the data of a layer that lies in the world of a volume's.

    Parameters
    ----------
    points : (…, 3) array
        RAS+ millimetres.
    place : Volume
        Its voxels are not looked at.

    Returns
    -------
    data : (…, 3) array
        In cubes of the volume's smallest side, along its axes.
    settings : dict
        The layer's ``affine``, ``units`` and ``axis_labels``.
    """
    grid = place.grid.isotropic()
    nothing = np.broadcast_to(np.float32(0), grid.shape)
    volume = Volume(nothing, grid.affine, metadata=place.metadata)
    _, settings = _placed(volume)
    data = volume.along_world_axes().grid.index(points)
    return data, {name: settings[name] for name in ("affine", "units", "axis_labels")}


def labels_layer(volume: Volume) -> LayerData:
    """A label map as a napari labels layer; whole numbers stored as floats become int32."""
    if volume.data.dtype.kind == "f":
        volume = replace(volume, data=cast(volume.data, np.int32))
    data, settings = _placed(volume)
    return data, settings, "labels"


def grid_of(layer: Layer) -> Grid:
    """Where a layer's voxels lie, without loading them; see :func:`volume_of`.

    Raises
    ------
    UsageError
        As :func:`volume_of`.
    """
    return volume_of(layer, load=False).grid


def volume_of(layer: Layer, *, load: bool = True) -> Volume:
    """The volume that an image or labels layer shows, from its own data and transforms.

    Parameters
    ----------
    layer : napari.layers.Image or napari.layers.Labels
        Of a multiscale layer, the finest level.
    load : bool
        Whether data that are not in memory are loaded, which may take long; without, ``data``
        may be a dask array or a :class:`~napari_arssr.io.StoredArray`: take a frame or a box of
        the volume and give that to :func:`loaded`.

    Returns
    -------
    Volume
        Its voxel axes are the layer's data axes: (z, y, x), or (t, z, y, x). A plane becomes
        a volume of one slice, and a plane in time, told by the unit of its first axis, a
        series of such.

    Raises
    ------
    UsageError
        If the layer shows no volume: RGB, 1D, more than 4D, no real numbers, of another type;
        or is not placed by an invertible affine in space.
    OutOfMemory
        If the data do not fit.
    """
    from napari.layers import Image, Labels

    kinds = {"image": Image, "labels": Labels}
    kind = next((name for name, cls in kinds.items() if isinstance(layer, cls)), "")
    meta = {name: getattr(layer, name, None) for name in _ATTRIBUTES}
    volume = volume_of_data(layer.data, meta, kind or type(layer).__name__.lower())
    return loaded(volume) if load else volume


def volume_of_data(data: Any, meta: dict[str, Any], kind: str) -> Volume:
    """:func:`volume_of` for a layer's data, settings and type, as writers get them.

    Settings that are missing have napari's defaults. Nothing is loaded. Data and place never
    come from the metadata, which only say what else the file had said.
    """
    name = str(meta.get("name") or "layer")
    if kind not in ("image", "labels"):
        raise UsageError(f"{name} is a {kind} layer; choose an image or a labels layer.")
    array = _finest(data, meta.get("multiscale"))
    if meta.get("rgb"):
        raise UsageError(
            f"{name} is an RGB image, not one number a voxel; right-click it, Split RGB, and "
            "choose one of the channels."
        )
    if array.dtype.kind not in "biuf":
        raise UsageError(
            f"{name}: voxels of {array.dtype} are not real numbers; convert them, for example "
            "to float32."
        )
    if array.ndim > 4:
        raise UsageError(
            f"{name} has {array.ndim} axes; a volume has z, y, x, or t, z, y, x: open its file by "
            "name (napari-arssr FILE), or add a part of it as a layer."
        )
    matrix, units = _place(array.ndim, meta, name)
    series = array.ndim == 4 or (array.ndim == 3 and units[0].dimensionality == {"[time]": 1})
    lengths = [_length(unit, name) for unit in units[series:]]
    metadata = dict(meta.get("metadata") or {})
    labels = tuple(meta.get("axis_labels") or ())[-3:]
    metadata[_WORLD] = {"unit": _common(units[series:]), "labels": labels}
    if series:
        metadata[_WORLD]["time"] = str(units[0])
        if _seconds(units[0]) == 0:  # no time: where its frames lie is for layers alone
            metadata[_WORLD]["first"] = (float(matrix[0, 0]), float(matrix[0, -1]))
    if array.ndim - series == 2:
        if isinstance(array, StoredArray):  # which takes no new axis
            array = _as_dask(array)
        metadata.pop("storage_order", None)  # of a volume that this is a slice of
        metadata[_WORLD]["labels"] = ()
    return Volume.from_napari(
        array,
        matrix,
        [*([_seconds(units[0])] if series else []), *lengths],
        series=series,
        name=name,
        metadata=metadata,
    )


def loaded(volume: Volume) -> Volume:
    """The volume with its data in memory, as numbers; booleans become 0 and 1.

    Raises
    ------
    OutOfMemory
        If they do not fit.
    """
    try:
        data = np.asarray(volume.data)
        if data.dtype.kind == "b":
            data = data.astype(np.uint8)
    except MemoryError:
        raise OutOfMemory(
            f"{volume.name} does not fit in memory; close other programs, or open a part of it."
        ) from None
    return replace(volume, data=data)


def _placed(volume: Volume) -> tuple[Any, dict[str, Any]]:
    """Data along the world's axes, and the settings that every layer has."""
    volume = volume.along_world_axes()
    time = volume.data.ndim - 3
    world = _MILLIMETRES | volume.metadata.get(_WORLD, {})
    unit, labels = str(world["unit"]), tuple(world["labels"])
    named = len(labels) == 3 and labels != _DEFAULT_LABELS
    affine = volume.napari_affine_in(_length(_units([unit])[0], volume.name))
    time_unit, seconds = _time_of(volume, world.get("time"))
    affine[:time] /= seconds
    if time and "first" in world:
        time_unit = str(world["time"])
        affine[0, 0], affine[0, -1] = world["first"]
    return volume.data, {
        "name": without_suffix(volume.name),
        "affine": affine,
        "units": (time_unit,) * time + (unit,) * 3,
        "axis_labels": ("t",) * time + labels if named else None,
        "metadata": dict(volume.metadata),
    }


def _time_of(volume: Volume, given: object) -> tuple[str, float]:
    """The unit of time of a series' layer, and its seconds.

    Its own layer's, where there was one. A time step that the file does not tell is not a second:
    frames are counted then.
    """
    if not volume.time_step:
        return "pixel", 1.0
    if given is None:
        return "s", 1.0
    (unit,) = _units([str(given)])
    seconds = _seconds(unit)
    return str(given), 1.0 if seconds is None else seconds


def _contrast(data: Any) -> tuple[float, float]:
    """What to show as black and white."""
    if not isinstance(data, np.ndarray):
        frame = data[0] if data.ndim == 4 else data
        if is_read_in_chunks(frame):  # a plane costs as much as all chunks that it runs through
            return _range(sampled(frame))
        planes, rows, columns = frame.shape
        most = max(1, _SAMPLE_BYTES // (rows * columns * data.dtype.itemsize))
        # The ends of a scan are often empty.
        step = max(1, planes // (2 * min(_SAMPLE_PLANES, most)))
        data = np.asarray(frame[planes // 4 : planes - planes // 4 : step])
    return _range(data)


def _range(data: Any) -> tuple[float, float]:
    try:
        shown = Normalizer.fit(data)
    except FileError:  # not one finite value: nothing to see, but no reason not to open it
        return 0.0, 1.0
    return shown.low, shown.high


def _finest(data: Any, multiscale: bool | None) -> Any:
    """The array, or the first of a pyramid's, as napari tells them apart."""
    if multiscale is None and isinstance(data, list | tuple):
        sizes = [getattr(level, "size", 0) for level in data]
        multiscale = len(sizes) > 1 and all(a > b for a, b in pairwise(sizes))
    return _array(data[0] if multiscale else data)


def _array(data: Any) -> Any:
    """Data that are indexed and transposed as numpy's; what is not in memory is left there.

    napari shows whatever has a shape, a number type and slices: zarr's arrays and h5py's have no
    ``transpose``, xarray's takes names.
    """
    if isinstance(data, np.ndarray | StoredArray):
        return data
    if not isinstance(getattr(data, "dtype", None), np.dtype) or not hasattr(data, "shape"):
        return np.asarray(data)
    return _as_dask(data)


def _as_dask(data: Any) -> Any:
    import dask.array as da

    if isinstance(data, da.Array):
        return data
    # One thread at a time: of an array that is not known nothing else is safe.
    return da.from_array(data, name=False, lock=True)  # type: ignore[no-untyped-call]


def _place(
    axes: int, meta: dict[str, Any], name: str
) -> tuple[npt.NDArray[np.float64], tuple[pint.Unit, ...]]:
    """The whole data-to-world transform, and the units of the world."""
    from napari.utils.transforms import Affine

    given = {key: meta[key] for key in TRANSFORMS if meta.get(key) is not None}
    outer = given.pop("affine", np.eye(axes + 1))
    inner = {"scale": np.ones(axes), "translate": np.zeros(axes)} | given
    try:
        whole = Affine(affine_matrix=np.asarray(outer, dtype=np.float64), ndim=axes).compose(
            Affine(**inner, ndim=axes)
        )
        return whole.affine_matrix, _units(meta.get("units"), axes)
    except (ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"{name}: its transforms or units are not those of {axes} axes ({error})."
        ) from None


def _units(units: Any, axes: int = 1) -> tuple[pint.Unit, ...]:
    """Units by napari's rules: one for all axes, or one each; pixels by default."""
    from napari.utils.transforms import Affine

    identity = Affine(affine_matrix=np.eye(axes + 1), ndim=axes, units=units)
    return tuple(identity.units)


def _length(unit: pint.Unit, name: str) -> float:
    """Millimetres of a unit of space; pixels count as such."""
    if _is_plain(unit):
        return 1.0
    if unit.dimensionality != {"[length]": 1}:
        raise UsageError(f"{name} counts in {unit} where a length should be; set its units to mm.")
    return float((1 * unit).to("millimeter").magnitude)


def _seconds(unit: pint.Unit) -> float | None:
    """Seconds of a unit of time; None for pixels, 0 for what is no time."""
    if _is_plain(unit):
        return None
    if unit.dimensionality != {"[time]": 1}:
        return 0.0
    return float((1 * unit).to("second").magnitude)


def _is_plain(unit: pint.Unit) -> bool:
    """Whether a unit only counts."""
    return unit.dimensionless or str(unit) == "pixel"


def _common(units: Sequence[pint.Unit]) -> str:
    """The unit of all axes, for the layer of a result; millimetres where they differ."""
    return str(units[0]) if len(set(units)) == 1 else "mm"
