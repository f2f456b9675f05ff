"""Writing a volume, whatever its format: whole under its name, or not at all."""

from __future__ import annotations

import gzip
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError
from napari_arssr.files import PARTIAL, sync_folder
from napari_arssr.io import nifti, ome_zarr_writing, tiff
from napari_arssr.io.casting import cast
from napari_arssr.io.origin import (
    Layout,
    Origin,
    as_labels,
    is_label_map,
    origin_of,
    provenance_of,
)
from napari_arssr.io.paths import (
    AnyPath,
    check_place,
    files_of,
    is_tiff,
    known_suffix,
    names_store,
    without_suffix,
)
from napari_arssr.io.results import check_store
from napari_arssr.io.troubles import disk_full, saving
from napari_arssr.volume import Grid, Volume

__all__ = [
    "SlabWriter",
    "create",
    "held_to_write",
    "keeps_orientation",
    "told_as_labels",
    "write",
]

# Voxels cast and written at a time: small beside any volume, large beside the cost of a call.
_PART = 1 << 21


def write(
    path: AnyPath,
    volume: Volume,
    *,
    dtype: npt.DTypeLike | Literal["same"] | None = None,
    description: str | None = None,
    provenance: str | None = None,
) -> Path:
    """Write a volume; the suffix says which format.

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.img`` or ``.hdr`` (both are written), ``.tif``, ``.tiff``,
        ``.ome.zarr`` or ``.zarr`` (a folder).
    volume : Volume
    dtype : dtype or "same", optional
        Number type in the file; the array's own by default. ``"same"`` is the type and the
        scale factors of the file that the volume was read from. Values are rounded and
        clipped, see :func:`~napari_arssr.io.cast`.
    description : str, optional
        What made the volume, for NIfTI's ``descrip`` (79 bytes are kept); this program and
        its version by default.
    provenance : str, optional
        The same at length, for a comment in the header; by default the settings of this
        program where it made the volume, see :func:`~napari_arssr.io.provenance_of`.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UsageError
        If the suffix is unknown or the format cannot hold the number type; or a zarr store is
        there, and this program did not write all of it.
    FileError
        If the file cannot be written. Nothing is left behind then.
    """
    origin = origin_of(volume)
    slope, intercept = 1.0, 0.0
    if isinstance(dtype, str) and dtype == "same":
        if origin.dtype is not None:
            slope, intercept = origin.slope, origin.intercept
        dtype = origin.dtype
    if is_label_map(volume):
        origin = told_as_labels(path, origin)
    with create(
        path,
        volume.grid,
        volume.data.dtype if dtype is None else dtype,
        frames=volume.frames,
        time_step=volume.time_step,
        time_start=volume.time_start,
        slope=slope,
        intercept=intercept,
        description=description,
        provenance=provenance_of(volume) if provenance is None else provenance,
        origin=origin,
    ) as out:
        for slab in volume.slabs(_PART):  # voxels may still be in another file
            out.write(np.asarray(slab.data))
    return Path(path)


def told_as_labels(path: AnyPath, origin: Origin) -> Origin:
    """What a file is told of a label map: in OME-Zarr that it is one, for its levels are made so.

    Other formats keep what the input's header said.
    """
    return as_labels(origin) if names_store(path) else origin


def keeps_orientation(path: AnyPath, grid: Grid) -> bool:
    """Whether a file of that name can tell which sides of a volume are left, front and top."""
    return not (is_tiff(path) or names_store(path)) or grid.is_upright


def held_to_write(path: AnyPath, grid: Grid, dtype: npt.DTypeLike) -> int:
    """Bytes of memory that :func:`create` holds at most, beside the slabs that it is given."""
    if not names_store(path):
        return 0
    return ome_zarr_writing.held(grid, _storable(Path(path), dtype, scaled=False))


class _Sink(Protocol):
    """What a format makes of planes."""

    def write(self, planes: npt.NDArray[Any], /) -> object:
        """Append planes (n, y, x), as they are stored."""

    def finish(self) -> None:
        """Have every byte on the disk, before a name says so."""


class _Stream:
    """A file in which planes lie one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Any = file

    def write(self, planes: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(planes).data.cast("B"))

    def finish(self) -> None:
        raw = self._file
        if isinstance(self._file, gzip.GzipFile):
            raw = self._file.fileobj
            self._file.close()
        raw.flush()
        os.fsync(raw.fileno())


class SlabWriter:
    """Takes a volume plane by plane; made by :func:`~napari_arssr.io.create`.

    Attributes
    ----------
    planes : int
        Planes that the file has, over all frames.
    written : int
        Planes that it has got.
    """

    def __init__(self, path: Path, sink: _Sink, layout: Layout) -> None:
        self.planes = layout.frames * layout.grid.shape[0]
        self.written = 0
        self._path = path
        self._sink = sink
        self._layout = layout

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append planes.

        Parameters
        ----------
        slab : (n, y, x) array
            The next n planes along z, in real values; after the last plane of a frame comes
            the first of the next.

        Raises
        ------
        ValueError
            If the planes have another shape, or are more than the file has room for.
        FileError
            If the disk is full or fails.
        """
        layout = self._layout
        slab = np.asarray(slab)
        plane = layout.grid.shape[1:]
        if slab.ndim != 3 or slab.shape[1:] != plane:
            raise ValueError(f"{self._path} takes slabs of (n, *{plane}), not {slab.shape}.")
        if self.written + len(slab) > self.planes:
            raise ValueError(
                f"{self._path} has {self.planes} planes, not {self.written + len(slab)}."
            )
        step = max(1, _PART // math.prod(plane))
        for start in range(0, len(slab), step):
            part = cast(slab[start : start + step], layout.dtype, layout.slope, layout.intercept)
            with saving(self._path, layout.size):
                self._sink.write(part)
            self.written += len(part)


@contextmanager
def create(
    path: AnyPath,
    grid: Grid,
    dtype: npt.DTypeLike,
    *,
    frames: int = 1,
    time_step: float = 0.0,
    time_start: float = 0.0,
    slope: float = 1.0,
    intercept: float = 0.0,
    description: str | None = None,
    provenance: str | None = None,
    origin: Origin | None = None,
) -> Iterator[SlabWriter]:
    """Write a volume slab by slab, in bounded memory.

    ::

        with create("out.nii.gz", grid, np.float32) as out:
            for slab in slabs:  # (n, y, x) each, along z, frame after frame
                out.write(slab)

    The file gets its name when the block ends well and every plane was written. Otherwise,
    whatever ended the block, nothing is left behind, and an older file of that name is
    untouched. (A folder is not replaced at one stroke: who is killed at the moment when a new
    store takes the place of an older one finds that under a hidden name beside it.)

    Parameters
    ----------
    path : path
        The suffix says which format.
    grid : Grid
        Shape and affine of a frame.
    dtype : dtype
        Number type in the file.
    frames : int
        Number of frames; more than 1 makes the file 4D.
    time_step, time_start : float
        Of a series: seconds between frames, and when the first one is (NIfTI's ``toffset``;
        TIFF has no place for it, and OME-Zarr none without the seconds between frames).
    slope, intercept : float
        Scale factors of the file: real value = stored · slope + intercept. Slabs hold real
        values, stored as :func:`~napari_arssr.io.cast` says.
    description, provenance : str, optional
        What made the volume, in short and at length.
    origin : Origin, optional
        What the input's file said: form code, intent and display range are taken from it.

    Yields
    ------
    SlabWriter

    Raises
    ------
    UsageError, FileError
        As :func:`~napari_arssr.io.write`; an older file of that name is replaced, whoever made it,
        a zarr store only if this program wrote all of it.
    ValueError
        If planes are missing at the end.
    """
    path = check_place(path)
    check_store(path)
    layout = Layout(
        grid=grid,
        dtype=_storable(path, dtype, scaled=slope != 1 or intercept != 0),
        frames=frames,
        time_step=time_step,
        time_start=time_start,
        slope=slope,
        intercept=intercept,
        description=_made_by() if description is None else description,
        provenance=provenance or "",
        origin=origin or Origin(),
    )
    if frames < 1:
        raise UsageError(f"{path}: a volume has at least one frame, not {frames}.")
    _check_space(path, layout.size)
    finals = files_of(path)
    stem = f"{PARTIAL}{secrets.token_hex(8)}"
    temporary = [path.with_name(f"{stem}{known_suffix(final)}") for final in finals]
    try:
        with ExitStack() as stack:
            with saving(path, layout.size):
                sink = _start(path, temporary, layout, stack)
            out = SlabWriter(path, sink, layout)
            yield out
            if out.written != out.planes:
                raise ValueError(f"{path} got {out.written} of its {out.planes} planes.")
            with saving(path, layout.size):
                sink.finish()
        with saving(path, layout.size):
            _rename(temporary, finals)
    finally:
        for name in temporary:
            _remove(name)


def _start(path: Path, temporary: Sequence[Path], layout: Layout, stack: ExitStack) -> _Sink:
    if names_store(path):
        return ome_zarr_writing.start(temporary, layout, stack, without_suffix(path.name))
    return _Stream((tiff if is_tiff(path) else nifti).start(temporary, layout, stack))


def _storable(path: Path, dtype: npt.DTypeLike, *, scaled: bool) -> np.dtype[Any]:
    """The type in native byte order, if the format can hold it."""
    try:
        kind = np.dtype(dtype).newbyteorder("=")
    except (TypeError, ValueError, SyntaxError):  # numpy parses what has brackets as Python
        raise UsageError(f"{path}: {dtype!r} is no number type; choose int16 or float32.") from None
    if not is_tiff(path):
        if kind not in nifti.DTYPES.values():
            raise UsageError(
                f"{path}: voxels of {kind} are not written; choose an integer type, float32 or "
                "float64."
            )
    elif kind not in tiff.DTYPES:
        raise UsageError(
            f"{path}: an ImageJ TIFF cannot hold {kind}; choose uint8, uint16, int16 or float32, "
            "or write .nii.gz."
        )
    if scaled and (is_tiff(path) or names_store(path)):
        name = "TIFF" if is_tiff(path) else "OME-Zarr"
        raise UsageError(
            f"{path}: {name} has no scale factors; choose float32 as number type, or write .nii.gz."
        )
    return kind


def _made_by() -> str:
    import napari_arssr

    return f"napari-arssr {napari_arssr.__version__}"


# Times that a packed volume may shrink, at most: nine tenths of it background.
_SHRUNK = 20


def _check_space(path: Path, need: int) -> None:
    """Refuse before the work what would fail after it."""
    # How far voxels shrink is not known before; background shrinks to nothing, tissue hardly.
    shrunk = _SHRUNK if known_suffix(path) == ".nii.gz" or names_store(path) else 1
    with suppress(OSError):
        usage = shutil.disk_usage(path.parent)
        if usage.total > 0 and usage.free < need / shrunk:
            raise disk_full(path, need)


def _rename(temporary: list[Path], finals: Sequence[Path]) -> None:
    """Give what was written its name; what is to be removed then is added to ``temporary``."""
    if names_store(finals[0]) and os.path.lexists(finals[0]):
        _exchange(temporary, finals[0])
        return
    # Of a pair the header goes first and comes last: without it there is no image, and an old
    # one must not meet new voxels.
    for stale in finals[1:]:
        stale.unlink(missing_ok=True)
    try:
        for old, new in zip(temporary, finals, strict=True):
            old.replace(new)
    except BaseException:
        if len(finals) == 2:
            finals[0].unlink(missing_ok=True)
        raise
    sync_folder(finals[0].parent)


def _exchange(temporary: list[Path], old: Path) -> None:
    """A folder in the place of another, which Python cannot do at one stroke."""
    (new,) = temporary
    aside = new.with_name(f"{PARTIAL}{secrets.token_hex(8)}{known_suffix(old)}")
    try:
        old.replace(aside)
        check_store(aside, old)  # much may have happened since the work began
        new.replace(old)
    except BaseException as error:
        if os.path.lexists(aside) and not os.path.lexists(old):
            aside.replace(old)
        if isinstance(error, UsageError):
            spare = _free_name(old)
            new.replace(spare)
            raise UsageError(f"{error} The new one is {spare}.") from None
        raise
    temporary.append(aside)
    sync_folder(old.parent)


def _free_name(path: Path) -> Path:
    """A name like another that nothing has."""
    suffix = known_suffix(path)
    names = (f"{without_suffix(path.name)}_{number}{suffix}" for number in count(2))
    return next(place for place in map(path.with_name, names) if not os.path.lexists(place))


def _remove(path: Path) -> None:
    """Remove what is half written or replaced, file or folder, without complaint."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
