"""OME-Zarr stores written plane by plane: version 0.4, which most programs read, with a pyramid."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.files import sync_folder
from napari_arssr.io.casting import cast
from napari_arssr.io.origin import LABEL_INTENTS, PROGRAM, Layout
from napari_arssr.io.units import fine_or_coarse
from napari_arssr.volume import Grid, Shape

if TYPE_CHECKING:
    import zarr

__all__ = ["StoreFile", "start"]

Array = npt.NDArray[Any]

_VERSION = "0.4"
_SPELT_OUT = {"um": "micrometer", "mm": "millimeter"}

# Chunks are near to cubes of this many voxels. Planes are held until they fill chunks: not more
# bytes of the finest level than these, but two planes at least, and a third more of all others.
_CHUNK = 1 << 20
_DEEPEST = 64
_HELD = 1 << 26
_SMALL = 256  # voxels along each axis of the coarsest level, at most


class StoreFile:
    """A store that takes the planes of a volume; made by :func:`start`."""

    def __init__(self, folder: Path, finest: _Level) -> None:
        self._folder = folder
        self._finest = finest

    def write(self, planes: Array) -> None:
        """Append planes (n, y, x), as they are stored."""
        self._finest.write(planes)

    def finish(self) -> None:
        """Have every byte on the disk."""
        for parent, _, names in os.walk(self._folder):
            for name in names:
                with Path(parent, name).open("rb+") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(parent))


class _Level:
    """A level of a pyramid, which takes planes along z, frame after frame.

    It holds them until they fill chunks, and hands them on to the next level, in coarser voxels.
    """

    def __init__(
        self, array: zarr.Array[Any], coarser: tuple[Shape, _Level] | None, *, labels: bool
    ) -> None:
        self._array = array
        self._coarser = coarser
        self._labels = labels
        self._depth, planes = array.chunks[-3], array.shape[-3]
        self._held = np.empty((min(self._depth, planes), *array.shape[-2:]), array.dtype)
        self._count = 0
        self._frame, self._first = 0, 0  # where what is held begins

    def write(self, planes: Array) -> None:
        while len(planes):
            whole = min(self._depth, self._array.shape[-3] - self._first)
            part = planes[: whole - self._count]
            self._held[self._count : self._count + len(part)] = part
            self._count += len(part)
            planes = planes[len(part) :]
            if self._count == whole:
                self._put(self._held[:whole])

    def _put(self, chunk: Array) -> None:
        frame = (self._frame,) if self._array.ndim == 4 else ()
        self._array[(*frame, slice(self._first, self._first + len(chunk)))] = chunk
        self._first, self._count = self._first + len(chunk), 0
        if self._first == self._array.shape[-3]:
            self._frame, self._first = self._frame + 1, 0
        if self._coarser is not None:
            factors, level = self._coarser
            level.write(_thinned(chunk, factors) if self._labels else _averaged(chunk, factors))


def start(temporary: Sequence[Path], layout: Layout) -> StoreFile:
    """Begin a store with one image, of a folder that is not there yet."""
    import zarr

    (folder,) = temporary
    group = zarr.open_group(folder, mode="w-", zarr_format=2)
    labels = layout.origin.intent[0] in LABEL_INTENTS
    # A store knows no orientation.
    grid = layout.grid
    grids = [grid if grid.is_upright else Grid.unoriented(grid.shape, grid.spacing)]
    factors: list[Shape] = []
    while max(grids[-1].shape) > _SMALL:
        factors.append(grids[-1].halving())
        grids.append(grids[-1].pooled(factors[-1]))
    depth = _depth(grid.shape, layout.dtype)
    level: _Level | None = None
    for number in reversed(range(len(grids))):
        array = _new_array(group, str(number), layout, grids[number].shape, depth)
        coarser = None if level is None else (factors[number], level)
        level = _Level(array, coarser, labels=labels)
    assert level is not None  # there is the finest
    group.attrs.update(_told(layout, grids, labels=labels))
    return StoreFile(folder, level)


def _depth(shape: Shape, dtype: np.dtype[Any]) -> int:
    """How many planes a chunk has: a power of two, so that pairs of planes are in one chunk."""
    most = max(2, _HELD // (shape[1] * shape[2] * dtype.itemsize))
    return int(min(_DEEPEST, 2 ** int(math.log2(most))))


def _new_array(
    group: zarr.Group, name: str, layout: Layout, shape: Shape, depth: int
) -> zarr.Array[Any]:
    from numcodecs import Blosc

    side = 2 ** int(math.log2(_CHUNK // depth) / 2)
    frames = [layout.frames] if layout.frames > 1 else []
    return group.create_array(
        name,
        shape=(*frames, *shape),
        chunks=(*[1 for _ in frames], depth, *(min(side, n) for n in shape[1:])),
        dtype=layout.dtype,
        compressors=Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE),
        fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )


def _told(layout: Layout, grids: Sequence[Grid], *, labels: bool) -> dict[str, Any]:
    """The attributes of the image's group."""
    import napari_arssr

    unit, scale = fine_or_coarse(layout.grid.spacing)
    axes: list[dict[str, str]] = [
        {"name": name, "type": "space", "unit": _SPELT_OUT[unit]} for name in "zyx"
    ]
    steps: list[float] = []
    starts: list[float] = []
    if layout.frames > 1:
        known = layout.time_step > 0
        axes.insert(0, {"name": "t", "type": "time"} | ({"unit": "second"} if known else {}))
        steps, starts = [layout.time_step if known else 1.0], [layout.time_start]
    datasets = []
    for number, grid in enumerate(grids):
        place = grid.napari_affine[:3, 3] * scale
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*steps, *(step * scale for step in grid.spacing)]},
                    {"type": "translation", "translation": [*starts, *place.tolist()]},
                ],
            }
        )
    image = {
        "version": _VERSION,
        "axes": axes,
        "datasets": datasets,
        "type": "nearest" if labels else "mean",
        "metadata": {"description": layout.description, "provenance": layout.provenance},
    }
    creator = {"name": PROGRAM, "version": napari_arssr.__version__}
    told: dict[str, Any] = {"multiscales": [image], "_creator": creator}
    if labels:
        told["image-label"] = {"version": _VERSION}
    return told


def _thinned(planes: Array, factors: Shape) -> Array:
    """One of the voxels of each block, for labels; all are as near to its centre."""
    return planes[tuple(slice(None, None, factor) for factor in factors)]


def _averaged(planes: Array, factors: Shape) -> Array:
    """Means over blocks; over what is there of blocks at the ends."""
    means: Array = planes
    with np.errstate(invalid="ignore"):  # infinities of both signs
        for axis, factor in enumerate(factors):
            if factor == 1:
                continue
            kind = np.result_type(means.dtype, np.float32)
            means = np.moveaxis(means, axis, 0)
            first, second = means[::2].astype(kind), means[1::2]
            pairs = first[: len(second)]
            pairs[...] = pairs / 2 + second.astype(kind) / 2  # a sum may be too large
            means = np.moveaxis(first, 0, axis)
    return cast(means, planes.dtype)
