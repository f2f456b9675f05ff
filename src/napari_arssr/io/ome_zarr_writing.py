"""OME-Zarr stores written plane by plane: version 0.4, which most programs read, with a pyramid."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
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

__all__ = ["StoreFile", "held", "start"]

Array = npt.NDArray[Any]

_VERSION = "0.4"
_SPELT_OUT = {"um": "micrometer", "mm": "millimeter"}

# Voxels of a chunk, which is near to a cube, and its planes, at most.
_CHUNK = 1 << 20
_DEEPEST = 64
# Bytes of planes that the finest level holds until they fill its chunks, at most; but two planes.
_HELD = 1 << 26
_SMALL = 256  # voxels along each axis of the coarsest level, at most
# Chunks that are packed at a time, the bytes that takes with what means are made in, and the
# voxels of those.
_THREADS = min(4, os.cpu_count() or 1)
_PACKING = 3 << 25
_BAND = 1 << 18


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

    Parameters
    ----------
    array : zarr.Array
        (z, y, x) or (t, z, y, x).
    put : callable
        Takes the array, an index and the voxels to store there.
    coarser : tuple or None
        The next level, how many planes of this one make one of its planes, and what does so.
    """

    def __init__(self, array: zarr.Array[Any], put: _Put, coarser: _Coarser | None) -> None:
        self._array = array
        self._put = put
        self._coarser = coarser
        self._held = np.empty(array.chunks[-3:-2] + array.shape[-2:], array.dtype)
        self._count = 0
        self._frame, self._first = 0, 0  # where what is held begins

    def write(self, planes: Array) -> None:
        depth, size = len(self._held), self._array.shape[-3]
        while len(planes):
            whole = min(depth, size - self._first)
            part = planes[: whole - self._count]
            self._held[self._count : self._count + len(part)] = part
            self._count += len(part)
            planes = planes[len(part) :]
            if self._count == whole:
                self._store(self._held[:whole])

    def _store(self, chunk: Array) -> None:
        frame = (self._frame,) if self._array.ndim == 4 else ()
        self._put(self._array, (*frame, slice(self._first, self._first + len(chunk))), chunk)
        self._first, self._count = self._first + len(chunk), 0
        if self._first == self._array.shape[-3]:
            self._frame, self._first = self._frame + 1, 0
        if self._coarser is not None:
            level, depth, make = self._coarser
            for start in range(0, len(chunk), depth):  # one by one, for want of memory
                level.write(make(chunk[start : start + depth]))


_Put = Callable[["zarr.Array[Any]", tuple[int | slice, ...], Array], None]
_Coarser = tuple[_Level, int, Callable[[Array], Array]]


def start(temporary: Sequence[Path], layout: Layout, stack: ExitStack, name: str) -> StoreFile:
    """Begin a store with one image, of a folder that is not there yet.

    ``stack`` waits for what is still being written, and ``name`` is the image's.
    """
    import zarr

    (folder,) = temporary
    pool = ThreadPoolExecutor(_THREADS, "napari-arssr store")
    stack.callback(_end, pool)

    def begin() -> _Level:
        group = zarr.open_group(folder, mode="w-", zarr_format=2)
        labels = layout.origin.intent[0] in LABEL_INTENTS
        plan = _plan(layout.grid, layout.dtype)
        group.attrs.update(_told(name, layout, [grid for grid, _, _ in plan], labels=labels))
        level: _Level | None = None
        for number, (grid, depth, factors) in reversed(list(enumerate(plan))):
            coarser = None
            if level is not None:
                make = partial(_thinned, number) if labels else _averaged
                coarser = (level, factors[0], partial(make, factors=factors))
            array = _new_array(group, str(number), layout, grid.shape, depth)
            level = _Level(array, partial(_put, pool), coarser)
        assert level is not None  # there is the finest
        return level

    return StoreFile(folder, pool.submit(begin).result())


def _put(
    pool: Executor, array: zarr.Array[Any], index: tuple[int | slice, ...], part: Array
) -> None:
    """Store voxels that fill chunks along z and all there are along y and x.

    Chunk by chunk: of several zarr itself leaves others under way where one fails. Those of the
    pool are waited for at its end.
    """
    down, right = array.chunks[-2:]
    blocks = [
        (slice(y, y + down), slice(x, x + right))
        for y in range(0, part.shape[1], down)
        for x in range(0, part.shape[2], right)
    ]
    puts = [
        pool.submit(array.__setitem__, (*index, *block), part[(slice(None), *block)])
        for block in blocks
    ]
    for put in puts:
        put.result()


def _end(pool: Executor) -> None:
    """Have nothing written any more, even where it is interrupted twice."""
    try:
        pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)
        raise


def held(grid: Grid, dtype: np.dtype[Any]) -> int:
    """Bytes that are held at most while a store is written."""
    voxels = sum(depth * level.shape[1] * level.shape[2] for level, depth, _ in _plan(grid, dtype))
    # Beside the planes of all levels a plane on its way to the next, and what is being packed.
    planes = (voxels + grid.shape[1] * grid.shape[2]) * dtype.itemsize
    return planes + min(planes, _PACKING)


def _plan(grid: Grid, dtype: np.dtype[Any]) -> list[tuple[Grid, int, Shape]]:
    """Of each level its grid, its planes in a chunk, and how many voxels the next one makes one.

    Planes in a chunk are a power of two, so that pairs of planes are in one chunk, or all there
    are. Where planes do not become smaller from level to level, fewer of them are held.
    """
    # A store knows no orientation.
    grid = grid if grid.is_upright else Grid.unoriented(grid.shape, grid.spacing)
    most = max(2, _HELD // (grid.shape[1] * grid.shape[2] * dtype.itemsize))
    depth = min(_DEEPEST, 2 ** int(math.log2(most)))
    levels = []
    while True:
        factors = grid.halving()
        levels.append((grid, min(depth, grid.shape[0]), factors))
        if max(grid.shape) <= _SMALL:
            return levels
        if factors[1] == factors[2] == 1:
            depth = max(2, depth // 2)
        grid = grid.pooled(factors)


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


def _told(name: str, layout: Layout, grids: Sequence[Grid], *, labels: bool) -> dict[str, Any]:
    """The attributes of the image's group."""
    import napari_arssr

    unit, scale = fine_or_coarse(layout.grid.spacing)
    axes: list[dict[str, str]] = [
        {"name": axis, "type": "space", "unit": _SPELT_OUT[unit]} for axis in "zyx"
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
    how = "nearest" if labels else "mean"
    image = {
        "version": _VERSION,
        "name": name,
        "axes": axes,
        "datasets": datasets,
        "type": how,
        "metadata": {
            "method": f"{PROGRAM}: {how} of blocks",
            "description": layout.description,
            "provenance": layout.provenance,
        },
    }
    creator = {"name": PROGRAM, "version": napari_arssr.__version__}
    told: dict[str, Any] = {"multiscales": [image], "_creator": creator}
    if labels and layout.dtype.kind in "iu":  # other numbers are not allowed
        told["image-label"] = {"version": _VERSION}
    return told


def _thinned(number: int, planes: Array, factors: Shape) -> Array:
    """One voxel of each block, for labels.

    It is the first one at one level and the second at the next: always the same would move
    what is seen by half a voxel more from level to level.
    """
    for axis, factor in enumerate(factors):
        size = planes.shape[axis]
        picked = np.minimum(np.arange(0, size, factor) + number % factor, size - 1)
        planes = planes.take(picked, axis)
    return planes


def _averaged(planes: Array, factors: Shape) -> Array:
    """Means over blocks; over what is there of blocks at the ends."""
    # In bands of rows: what is added up takes several times the memory of what is stored.
    rows = factors[1] * max(1, _BAND // planes[0, 0].size)
    bands = [
        cast(_means(planes[:, start : start + rows], factors), planes.dtype)
        for start in range(0, planes.shape[1], rows)
    ]
    return np.concatenate(bands, axis=1)


def _means(planes: Array, factors: Shape) -> Array:
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
    return means
