"""Raise the resolution of a volume: what the command line, the widget and scripts call.

>>> import napari_arssr
>>> low = napari_arssr.read("T1w.nii.gz")
>>> high = napari_arssr.upsample(low, scale=2.5)
>>> napari_arssr.write("T1w_high.nii.gz", high)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import ORIENTATIONS, Normalization
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, Coarser, FileError, UsageError
from napari_arssr.files import sha256_of
from napari_arssr.lazy import is_large, is_loaded, read
from napari_arssr.memory import available, for_work, require
from napari_arssr.normalization import Normalizer, check_range
from napari_arssr.request import nearest_values
from napari_arssr.volume import Box, Grid, Volume, as_triple
from napari_arssr.watching import Report, Stop, never, unheard

if TYPE_CHECKING:
    import torch

    from napari_arssr.consistency import Consistency
    from napari_arssr.field import NetworkField
    from napari_arssr.weights import Loaded

__all__ = [
    "NEAREST_LABEL",
    "Settings",
    "Target",
    "bytes_ready",
    "encode",
    "fits_whole",
    "output_grid",
    "upsample",
    "upsample_file",
]

Lend = Callable[[Volume, Callable[[], "NetworkField"]], AbstractContextManager["NetworkField"]]
Scales = float | Sequence[float]


@contextmanager
def _afresh(_frame: Volume, make: Callable[[], NetworkField]) -> Iterator[NetworkField]:
    yield make()


NEAREST_LABEL = "nearest label"
"""Instead of the name of weights, in the record of a label map."""


@dataclass(frozen=True)
class Target:
    """How fine the result is to be; exactly one of the four is given.

    Parameters
    ----------
    scale : float or three floats
        Voxels of the result per voxel of the input, (z, y, x); at least 1.
    spacing : float or three floats
        Voxel size, (z, y, x), millimetres; the nearest that keeps the span.
    shape : three ints
        Voxels along (z, y, x).
    isotropic : bool
        Cubes as near as can be to the smallest voxel side.
    """

    scale: Scales | None = None
    spacing: Scales | None = None
    shape: Sequence[int] | None = None
    isotropic: bool = False

    def __post_init__(self) -> None:
        given = sum(value is not None for value in (self.scale, self.spacing, self.shape))
        if given + self.isotropic != 1:
            raise UsageError("Give one of scale, spacing, shape and isotropic.")

    def grid(self, source: Grid, name: str = "the volume") -> Grid:
        """The result's grid for an input's.

        Raises
        ------
        UsageError
            If the scale is below 1.
        Coarser
            If the result would be coarser than the input along an axis; a UsageError.
        """
        if self.scale is not None:
            if min(as_triple(self.scale, "scale")) < 1:
                raise UsageError(f"{name}: every scale must be at least 1, not {self.scale!r}.")
            result = source.scaled(self.scale)
        elif self.spacing is not None:
            result = source.with_spacing(self.spacing)
        elif self.shape is not None:
            result = source.with_shape(self.shape)
        else:
            result = source.isotropic()
        coarser = [
            f"{axis} ({n} to {m} voxels)"
            for axis, n, m in zip("ijk", source.shape[::-1], result.shape[::-1], strict=True)
            if m < n
        ]
        if coarser:
            raise Coarser(
                f"{name}: the result would be coarser than the input along {', '.join(coarser)}; "
                f"its voxels are {_sizes(source.spacing)} mm (i, j, k), so ask for none larger, "
                "one number per axis if need be."
            )
        return result


@dataclass(frozen=True)
class Settings:
    """How the work is done, apart from its result's grid; see :func:`upsample`."""

    weights: str | os.PathLike[str] = "default"
    device: str = "auto"
    precision: str = "auto"
    memory: int | None = None
    normalize: Normalization | None = None
    consistency: ScannerModel | None = None
    orientations: int = 1

    def __post_init__(self) -> None:
        _check_orientations(self.orientations)


def encode(
    volume: Volume,
    weights: str | os.PathLike[str] | Loaded = "default",
    *,
    device: str = "auto",
    precision: str = "auto",
    memory: int | None = None,
    normalize: Normalization | Normalizer | None = None,
    orientations: int = 1,
) -> NetworkField:
    """A volume as a continuous function, to be sampled anywhere: ``field.sample(grid)``.

    Nothing is computed yet: features are encoded where samples are asked for, and kept.

    Parameters
    ----------
    volume : Volume
        3D. Of one whose voxels are in a file or a dask array no more is held in memory than
        what was asked for last.
    weights : str, path or Loaded
        A registered name (``napari-arssr weights list``), a file, or what
        :func:`napari_arssr.weights.load` gave.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    precision : str
        ``auto``, ``float32``, ``bfloat16``, ``float16`` (GPUs).
    memory : int, optional
        Bytes this process may take in all, on the CPU; by default half of what is free, and
        on a GPU four fifths of what is free there.
    normalize : {"percentile", "minmax", "none"} or Normalizer, optional
        How intensities are brought to [0, 1]; by default as the weights were trained.
    orientations : {1, 3, 6, 12}
        The mean of that many results, each with the axes in another order or direction
        (:mod:`napari_arssr.models.orientation`): as many times the time.

    Returns
    -------
    NetworkField

    References
    ----------
    Wu et al., IEEE JBHI 27(2), 2023, section III: the encoder's feature map and the decoder at
    any point between its voxels.

    Raises
    ------
    UsageError
        For an unknown name, a device that is not here, or too small a ``memory``.
    FileError
        If the weights are broken or cannot be fetched.
    """
    from napari_arssr import weights as registry

    _check_real(volume)
    _check_range(volume)
    _check_orientations(orientations)
    loaded = weights if isinstance(weights, registry.Loaded) else registry.load(weights)
    return _encode(
        volume,
        loaded,
        device=device,
        precision=precision,
        memory=memory,
        normalize=normalize,
        orientations=orientations,
    )


def _encode(
    volume: Volume,
    loaded: Loaded,
    *,
    device: str,
    precision: str,
    memory: int | None,
    normalize: Normalization | Normalizer | None,
    orientations: int,
    held: int = 0,
    whole: bool = True,
    stop: Stop = never,
) -> NetworkField:
    """A volume's field from weights at hand, beside work that will come to hold ``held`` bytes.

    ``whole`` is whether what is in memory is made ready as a whole, if there is room.
    """
    from napari_arssr.devices import choose_device, choose_precision
    from napari_arssr.field import NetworkField

    there = choose_device(device)
    dtype = choose_precision(precision, there, bfloat16_is_safe=loaded.bfloat16)
    normalizer = _fit(volume, normalize, loaded, stop)
    least = NetworkField.least_memory(loaded.model, volume.grid.shape, dtype, orientations)
    # Still to come: the volume's spline coefficients and a chunk's activations; on the CPU also
    # the volume in network units, a slab of the result, and what is done beside it.
    extra = _WORKSPACE + (0 if there.type == "cuda" else held)
    ready = bytes_ready(volume.grid) // (2 if there.type == "cuda" else 1)
    whole = (
        whole
        and is_loaded(volume.data)
        and fits_whole(volume.grid, memory)
        and _left(there, memory, extra + ready) >= least
    )
    extra += ready if whole else 0
    smaller = "smaller weights" if orientations == 1 else "fewer orientations"
    try:
        budget = _budget(there, memory, extra, least, smaller)
    except UsageError as error:
        raise UsageError(f"{volume.name}: {error}") from None
    if not whole:  # the part that is read last, with its splines
        budget = max(least, 2 * budget // 3)
    return NetworkField(
        volume,
        loaded.model,
        normalizer,
        device=there,
        dtype=dtype,
        memory=budget,
        orientations=orientations,
        whole=whole,
    )


def upsample(
    volume: Volume,
    scale: Scales | None = None,
    *,
    spacing: Scales | None = None,
    shape: Sequence[int] | None = None,
    isotropic: bool = False,
    box: Box | None = None,
    weights: str | os.PathLike[str] | Loaded = "default",
    device: str = "auto",
    precision: str = "auto",
    memory: int | None = None,
    normalize: Normalization | Normalizer | None = None,
    consistency: ScannerModel | None = None,
    orientations: int = 1,
    lend: Lend | None = None,
    progress: Report = unheard,
    stop: Stop = never,
) -> Volume:
    """A volume on a finer grid of the same span.

    Parameters
    ----------
    volume : Volume
        3D, or 4D: each frame by itself. Its voxels may still be in a file or a dask array: no
        others are held in memory than are needed at a time.
    scale, spacing, shape, isotropic
        How fine, one of the four; three numbers are (z, y, x). See :class:`Target`.
    box : Box, optional
        Only this part, in voxels of the input; equal to the same part of the whole result.
    weights, device, precision, memory, normalize, orientations
        See :func:`encode`.
    consistency : ScannerModel, optional
        Correct the result by one step of back-projection, so that this scanner, measuring it,
        would see more nearly the input; see :mod:`napari_arssr.consistency`. It brings back
        noise that the network took out.
    lend : callable, optional
        For callers that keep fields: takes a frame and a function that encodes it, and gives a
        context manager that lends the frame's field. By default each is encoded afresh.
    progress : callable
        Told the share of the work that is done, 0 to 1, and what is being done.
    stop : callable
        Asked again and again; True ends the work.

    Returns
    -------
    Volume
        float32, in the input's units; ``metadata["upsampling"]`` holds every setting. Along
        an axis of scale 1 voxels stay where they are, and with all scales 1 the result is the
        input itself. A label map (:func:`napari_arssr.io.is_label_map`) keeps its number type,
        and each voxel takes the nearest label: between two structures there is no third.

    Raises
    ------
    UsageError, FileError
        If something asked for cannot be meant, or weights cannot be had.
    OutOfMemory, Cancelled
    """
    from napari_arssr import io
    from napari_arssr import weights as registry

    target = Target(scale, spacing, shape, isotropic)
    loaded = weights if isinstance(weights, registry.Loaded) else None
    name = weights.name if isinstance(weights, registry.Loaded) else weights
    method = None if isinstance(normalize, Normalizer) else normalize
    settings = Settings(name, device, precision, memory, method, consistency, orientations)
    _check_real(volume)
    grid = output_grid(volume, target, box)
    labels = io.is_label_map(volume)
    dtype = volume.data.dtype if labels else np.dtype(np.float32)
    require(
        grid.size * volume.frames * dtype.itemsize,
        f"{volume.name}: a result of {grid.shape} voxels",
        "ask for a box or a coarser grid, or write it to a file, which is done slab by slab",
    )
    data = np.empty((volume.frames, *grid.shape), dtype=dtype)

    def filled(number: int, slabs: Iterator[npt.NDArray[Any]]) -> None:
        done = 0
        for slab in slabs:
            if slab.dtype.itemsize > data.itemsize:  # a copy of it in fewer bits
                check_range(slab, volume.name)
            data[number, done : done + len(slab)] = slab
            done += len(slab)

    def result(record: dict[str, Any]) -> Volume:
        return replace(
            volume,
            data=data[0] if volume.data.ndim == 3 else data,
            affine=grid.affine,
            metadata=volume.metadata | {"upsampling": record},
        )

    if labels:
        for number in range(volume.frames):
            part = _part_of(progress, number, volume.frames)
            filled(number, _labels(volume.frame(number), grid, part, stop))
        return result(_labels_record(target, box))
    job = _Job.of(volume, target, box, settings, loaded)
    used: list[Normalizer] = []
    lender = lend or _afresh

    @contextmanager
    def noted(frame: Volume, make: Callable[[], NetworkField]) -> Iterator[NetworkField]:
        with lender(frame, make) as field:
            used.append(field.normalizer)
            yield field

    for number in range(volume.frames):
        part = _part_of(progress, number, volume.frames)
        # A field that is lent has its intensities' range already.
        filled(number, job.slabs(number, normalize, noted, part, stop, kept=lend is not None))
    return result(job.record_with(used))


def upsample_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: Target,
    *,
    box: Box | Callable[[Grid], Box] | None = None,
    frame: int | None = None,
    channel: int | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    keep: bool = False,
    progress: Report = unheard,
    stop: Stop = never,
) -> dict[str, Any]:
    """Upsample a file into a file, slab by slab: the result is never held whole.

    Label maps take the label of the nearest voxel, as in :func:`upsample`.

    Parameters
    ----------
    source, output : path
        A file that is there is replaced if this program made it, see
        :func:`napari_arssr.io.check_output`.
    target : Target
    box : Box, or a function that takes the input's grid to one
    frame : int, optional
        Of a 4D file only this frame.
    channel : int, optional
        Which channel of a stack; needed where there are several.
    dtype : str, optional
        Number type in the file, float32 by default; ``same`` is the input's type and scale
        factors, rounded and clipped.
    settings : Settings
    keep : bool
        Leave a result that is there, later than the source and with the same settings in its
        header.
    progress, stop
        See :func:`upsample`.

    Returns
    -------
    dict
        What was done, ready for JSON: files, shapes, spacings, settings, and whether the file
        was ``made`` or is left from before. The file's header holds the settings too.
    """
    from napari_arssr import io
    from napari_arssr import weights as registry

    settings = settings or Settings()
    output = io.check_output(output, [io.check_input(source)])
    volume = _input(source, frame, channel, part=box is not None, memory=settings.memory)
    try:
        chosen = box(volume.grid) if callable(box) else box
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    grid = output_grid(volume, target, chosen)
    origin = io.origin_of(volume)
    kept = dtype == "same" and origin.dtype is not None
    number_type: Any = dtype or "float32"
    if dtype == "same":
        number_type = origin.dtype if kept else volume.data.dtype
    # The header is written before the first voxel, so what it says is settled before.
    if io.is_label_map(volume):
        name = NEAREST_LABEL
        record = _labels_record(target, chosen)
        number_type = number_type if dtype else volume.data.dtype
        origin = io.told_as_labels(output, origin)

        def slabs(number: int, part: Report) -> Iterator[npt.NDArray[Any]]:
            return _labels(volume.frame(number), grid, part, stop)
    else:
        job = _Job.of(volume, target, chosen, settings)
        normalizers = job.fit_normalizers()
        name, record = job.name, job.record_with(normalizers)

        beside = io.held_to_write(output, grid, number_type)

        def slabs(number: int, part: Report) -> Iterator[npt.NDArray[Any]]:
            normalizer = normalizers[number] if normalizers else None
            return job.slabs(number, normalizer, _afresh, part, stop, beside=beside)

        if job.loaded is not None:
            record["weights_sha256"] = sha256_of(registry.resolve(settings.weights))
    record |= {
        "source": io.name_of(source),
        "source_shape_zyx": list(volume.grid.shape),
        "frame": frame,
        "channel": channel,
        "dtype": str(number_type),
    }
    told = {
        "input": str(source),
        "output": str(output),
        "frames": volume.frames,
        # As the command line prints them: in the file's own order.
        "input_shape": volume.grid.shape[::-1],
        "output_shape": grid.shape[::-1],
        "input_spacing_mm": [round(s, 6) for s in volume.spacing[::-1]],
        "output_spacing_mm": [round(s, 6) for s in grid.spacing[::-1]],
        "keeps_orientation": io.keeps_orientation(output, grid),
        "settings": record,
        "made": True,
    }
    if keep and io.is_up_to_date(output, source, io.record_of(record)):
        return told | {"made": False}
    with io.create(
        output,
        grid,
        number_type,
        frames=volume.frames,
        time_step=volume.time_step,
        time_start=volume.time_start,
        slope=origin.slope if kept else 1.0,
        intercept=origin.intercept if kept else 0.0,
        description=_description(name, volume.grid, grid, chosen),
        provenance=io.record_of(record),
        origin=origin,
    ) as out:
        for number in range(volume.frames):
            for slab in slabs(number, _part_of(progress, number, volume.frames)):
                out.write(slab)
    return told


def _labels_record(target: Target, box: Box | None) -> dict[str, Any]:
    """What is done to a label map, ready for JSON: of other settings nothing is looked at."""
    return _settings_record(Settings(weights=NEAREST_LABEL), target, box)


def _labels(volume: Volume, grid: Grid, progress: Report, stop: Stop) -> Iterator[npt.NDArray[Any]]:
    """A label map on another grid, slab by slab."""
    if not is_large(volume.data.size * volume.data.dtype.itemsize):
        volume = _read(volume, None, stop)
    # Of what is read in parts no chunk is read again for each of its planes.
    finer = volume.spacing[0] / grid.spacing[0]
    planes = max(_LABEL_PLANES, math.ceil(finer * volume.slab_planes(0)))
    for slab in grid.box.blocks((planes, *grid.shape[1:])):
        if stop():
            raise Cancelled
        yield nearest_values(volume, grid.crop(slab))
        progress(slab.stop[0] / grid.shape[0], "labels")


def _input(
    source: str | os.PathLike[str],
    frame: int | None,
    channel: int | None,
    *,
    part: bool,
    memory: int | None,
) -> Volume:
    """The volume of a file; its voxels stay there if a part is wanted, or there is little room."""
    from napari_arssr import io

    room = available() if memory is None else min(memory, available())
    most = 0 if part else room // _SHARE_OF_INPUT
    if io.known_suffix(source) == ".nii.gz":
        most = room // 2  # to be read in parts it is unpacked on the disk: only where it must be
    return io.read(source, frame=frame, channel=channel, most=most)


@dataclass(frozen=True, eq=False)
class _Job:
    """All that is settled before the first voxel of a result.

    Parameters
    ----------
    volume : Volume
    target : Target
    box : Box or None
    settings : Settings
    grid : Grid
        Of the result.
    loaded : Loaded or None
        The network; None where the result is the input itself.
    record : dict
        What is done, ready for JSON, but for the intensities' ranges.
    """

    volume: Volume
    target: Target
    box: Box | None
    settings: Settings
    grid: Grid
    loaded: Loaded | None
    record: dict[str, Any]

    @classmethod
    def of(
        cls,
        volume: Volume,
        target: Target,
        box: Box | None,
        settings: Settings,
        loaded: Loaded | None = None,
    ) -> _Job:
        """Settle it; ``loaded`` is the network where it is at hand already.

        Raises
        ------
        UsageError, FileError
            As :func:`upsample`.
        """
        from napari_arssr import weights as registry
        from napari_arssr.devices import choose_device, choose_precision

        grid = output_grid(volume, target, box)
        record = _settings_record(settings, target, box)
        if target.grid(volume.grid).shape == volume.grid.shape:
            return cls(volume, target, box, settings, grid, None, record)
        _check_range(volume)
        loaded = loaded or registry.load(settings.weights)
        device = choose_device(settings.device)
        precision = choose_precision(settings.precision, device, bfloat16_is_safe=loaded.bfloat16)
        record |= {
            "device": str(device),
            "precision": str(precision).removeprefix("torch."),
        }
        return cls(volume, target, box, settings, grid, loaded, record)

    @property
    def name(self) -> str:
        """Of the weights."""
        return Path(self.settings.weights).name if self.loaded is None else self.loaded.name

    def fit_normalizers(self) -> list[Normalizer]:
        """Of each frame; none where the result is the input itself."""
        if self.loaded is None:
            return []
        frames = map(self.frame, range(self.volume.frames))
        return [_fit(frame, self.settings.normalize, self.loaded) for frame in frames]

    def frame(self, number: int) -> Volume:
        """A frame; in a series messages call it by its number."""
        frame = self.volume.frame(number)
        if self.volume.frames == 1:
            return frame
        return replace(frame, name=f"{self.volume.name}, frame {number}")

    def record_with(self, normalizers: Sequence[Normalizer]) -> dict[str, Any]:
        """The record, whole."""
        if self.loaded is None:
            return self.record
        ranges = [{"low": one.low, "high": one.high} for one in normalizers]
        return self.record | {"normalization": ranges}

    def slabs(
        self,
        number: int,
        normalize: Normalization | Normalizer | None,
        lend: Lend,
        progress: Report,
        stop: Stop,
        *,
        kept: bool = False,
        beside: int = 0,
    ) -> Iterator[npt.NDArray[Any]]:
        """The result of a frame, slab by slab along z; its field is let go of at the end.

        ``kept`` is whether the field may serve others, who want more than the box, and ``beside``
        the bytes that whoever takes the slabs holds.
        """
        frame = self.frame(number)
        if self.loaded is None:
            yield _read(frame, self.box, stop).data
            progress(1.0, "copy")
            return
        settings = self.settings
        step = _consistency(frame, self.target, self.box, settings.consistency)
        make = partial(
            _encode,
            frame,
            self.loaded,
            device=settings.device,
            precision=settings.precision,
            memory=settings.memory,
            normalize=normalize,
            orientations=settings.orientations,
            held=beside + (0 if step is None else step.held_bytes),
            whole=kept or self.box is None,
            stop=stop,
        )
        with lend(frame, make) as field:
            yield from _slabs(field, self.grid, step, progress, stop)


def fits_whole(grid: Grid, memory: int | None = None) -> bool:
    """Whether there is room to make all of a volume ready, in network units and as splines.

    ``memory`` is what may be taken in all, in bytes; by default what is free.
    """
    return bytes_ready(grid) <= (available() if memory is None else memory) // 2


def bytes_ready(grid: Grid) -> int:
    """Memory that a volume takes that is made ready as a whole."""
    return 8 * grid.size


def output_grid(volume: Volume, target: Target, box: Box | None) -> Grid:
    """The grid of the result: the target's, or the part of it in a box of the input."""
    grid = target.grid(volume.grid, volume.name)
    if box is None:
        return grid
    try:
        volume.grid.crop(box)
    except UsageError as error:
        raise UsageError(f"{volume.name}: {error}") from None
    return grid.crop(volume.grid.box_in(grid, box))


def _consistency(
    volume: Volume, target: Target, box: Box | None, scanner: ScannerModel | None
) -> Consistency | None:
    """The correction of the result, if one is asked for."""
    if scanner is None:
        return None
    from napari_arssr.consistency import Consistency

    whole = target.grid(volume.grid, volume.name)
    part = whole.box if box is None else volume.grid.box_in(whole, box)
    return Consistency(volume, whole, part, scanner)


def _slabs(
    field: NetworkField, grid: Grid, step: Consistency | None, progress: Report, stop: Stop
) -> Iterator[npt.NDArray[np.float32]]:
    """The field on ``grid``, corrected where that is asked for."""
    if step is None:
        return field.slabs(grid, progress=progress, stop=stop)
    return step.correct(field.slabs(step.source_grid, progress=progress, stop=stop))


def _fit(
    volume: Volume,
    normalize: Normalization | Normalizer | None,
    loaded: Loaded,
    stop: Stop = never,
) -> Normalizer:
    if isinstance(normalize, Normalizer):
        return normalize
    try:
        return Normalizer.fit(volume.data, normalize or loaded.normalization, stop=stop)
    except (FileError, UsageError) as error:
        raise type(error)(f"{volume.name}: {error}") from None


def _read(volume: Volume, box: Box | None, stop: Stop) -> Volume:
    """A volume, or the part of it in a box, as an array of numpy's."""
    data: Any = volume.data
    if isinstance(data, np.ndarray):
        return volume if box is None else volume.crop(box)
    grid = volume.grid if box is None else volume.grid.crop(box)
    part = None if box is None else box.slices
    return replace(volume, data=read(data, volume.name, part, stop=stop), affine=grid.affine)


def _check_range(volume: Volume) -> None:
    """See that computing is in numbers large enough; what is in a file is seen as it is read."""
    if is_loaded(volume.data):
        check_range(volume.data, volume.name)


def _part_of(progress: Report, number: int, total: int) -> Report:
    def report(share: float, stage: str) -> None:
        progress((number + share) / total, stage)

    return report


def _settings_record(settings: Settings, target: Target, box: Box | None) -> dict[str, Any]:
    import napari_arssr

    wanted = {
        name: np.asarray(value).tolist()
        for name, value in asdict(target).items()
        if value is not None and value is not False
    }
    return {
        "version": napari_arssr.__version__,
        "weights": Path(settings.weights).name,
        "consistency": None if settings.consistency is None else asdict(settings.consistency),
        "orientations": settings.orientations,
        "target_zyx": wanted,
        "box_zyx": None if box is None else [list(box.start), list(box.stop)],
    }


def _description(weights: str, source: Grid, grid: Grid, box: Box | None) -> str:
    import napari_arssr

    scale = "x".join(
        f"{a / b:.3g}" for a, b in zip(source.spacing[::-1], grid.spacing[::-1], strict=True)
    )
    part = "" if box is None else " box"
    return f"napari-arssr {napari_arssr.__version__} {weights} x{scale}{part}"[:79]


def _sizes(spacing: Sequence[float]) -> str:
    return " × ".join(f"{size:.4g}" for size in reversed(spacing))


def _check_orientations(count: int) -> None:
    if count not in ORIENTATIONS:
        known = ", ".join(map(str, ORIENTATIONS))
        raise UsageError(f"A result is the mean of {known} orientations, not of {count!r}.")


def _check_real(volume: Volume) -> None:
    if volume.data.dtype.kind not in "iuf":
        raise UsageError(
            f"{volume.name}: voxels of {volume.data.dtype} are not real numbers; convert them, "
            "for example to float32."
        )


def _gigabytes(size: float) -> str:
    # Rounded up: what is said to be needed is enough.
    return f"{math.ceil(size / 1e8) / 10} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"


def _budget(device: torch.device, memory: int | None, extra: int, least: int, way_out: str) -> int:
    """Bytes for features and the encoder's work: what ``memory`` leaves after all else."""
    left = _left(device, memory, extra)
    if left >= least:
        return left
    if memory is None or for_work(device, memory) < memory:
        return least  # what is free may be too little or just do
    raise UsageError(
        f"{_gigabytes(memory)} of memory are too little: this volume and these weights "
        f"need {_gigabytes(memory - left + least)}; allow more, or choose {way_out}."
    )


def _left(device: torch.device, memory: int | None, extra: int) -> int:
    """Bytes that are left of ``memory``, or of what is free, beside ``extra``; perhaps below 0."""
    import psutil

    most = for_work(device, memory)
    # What this process has taken on a GPU is for work that is over, or not for this one, and what
    # is free on the CPU is so beside it.
    beside = device.type == "cuda" or memory is None or most < memory
    return most - extra - (0 if beside else psutil.Process().memory_info().rss)


_LABEL_PLANES = 16
_WORKSPACE = 256 << 20
_SHARE_OF_INPUT = 4  # of what may be taken
