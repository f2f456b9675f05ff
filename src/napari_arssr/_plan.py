"""What one press of Run is to do: taken from the window whole, then done away from it."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr._fields import Fields
from napari_arssr._layers import loaded
from napari_arssr._output_choice import Unit
from napari_arssr._warm_up import import_torch
from napari_arssr.choices import Normalization
from napari_arssr.errors import ArssrError, Cancelled, FileError, OutOfMemory, UsageError
from napari_arssr.lazy import is_in_pieces, is_large, is_loaded, most_to_load, read
from napari_arssr.memory import available
from napari_arssr.normalization import Normalizer
from napari_arssr.timing import Speeds, Stopwatch, Work, key_of
from napari_arssr.upsampling import (
    NEAREST_LABEL,
    Settings,
    Target,
    bytes_ready,
    encode,
    fits_whole,
    output_grid,
    upsample,
)
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.watching import Stop, VagueReport, unheard

if TYPE_CHECKING:
    from napari_arssr.field import NetworkField
    from napari_arssr.weights import Loaded

__all__ = ["Plan", "Workshop", "in_command", "plain_errors", "read_voxels", "same_as_file"]

# What to do where a volume is too large to be seen by a network.
_SMALLER = "open a part of it"

Array = npt.NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Plan:
    """An upsampling that is fully settled.

    Parameters
    ----------
    volume : Volume
        The layer's, its axes in the layer's order. Its voxels may still be in a file.
    target : Target
        Three numbers are in the layer's axis order.
    box : Box, optional
        In voxels of the layer.
    frame : int, optional
        Of a 4D layer only this frame.
    settings : Settings
    """

    volume: Volume
    target: Target
    box: Box | None = None
    frame: int | None = None
    settings: Settings = field(default_factory=Settings)

    @property
    def grid(self) -> Grid:
        """The grid of the result, in the layer's axis order."""
        return output_grid(self.volume, self.target, self.box)

    @property
    def frames(self) -> int:
        """Number of frames that will be upsampled."""
        return 1 if self.frame is not None else self.volume.frames

    @property
    def bytes(self) -> int:
        """Memory that the result takes."""
        return 4 * self.frames * self.grid.size

    @property
    def in_parts(self) -> bool:
        """Whether voxels stay where they are, and are read where samples are asked for.

        Not booleans, which become numbers when they are read; nor, if there is room, those that
        come a frame at a time whatever is asked for.
        """
        data, size = self.volume.data, self._bytes_read
        if is_loaded(data) or data.dtype.kind == "b":
            return False
        return is_large(size) and (is_in_pieces(data) or size > available() // 2)

    @property
    def _bytes_read(self) -> int:
        """Memory that the voxels take once they are read."""
        return self.frames * self.volume.grid.size * self.volume.data.dtype.itemsize

    @property
    def voxels(self) -> Hashable:
        """What tells the voxels of a frame that is not loaded from others.

        The volume is another when its layer says that its voxels have changed.
        """
        return _Same(self.volume), self.frame or 0

    @property
    def bytes_needed(self) -> int:
        """Memory for the result and for a frame as the network sees it, features left out."""
        if self.in_parts:
            return self.bytes
        grid = self.volume.grid
        read = 0 if is_loaded(self.volume.data) else self._bytes_read
        return self.bytes + read + (bytes_ready(grid) if fits_whole(grid) else 0)

    @property
    def way_out(self) -> str:
        """What to do where it needs more memory than there is."""
        if not self.in_parts and 2 * self.bytes < self.bytes_needed:  # most is for the input
            way_out = "open a part of the image"
        elif self.box is None:
            way_out = "choose a lower scale or a drawn box"
        else:
            way_out = "choose a lower scale or a smaller box"
        return f"{way_out}, or one frame under Advanced" if self.frames > 1 else way_out

    @property
    def key(self) -> str:
        """Under which speeds are known."""
        name = Path(self.settings.weights).name
        return key_of(name, self.settings.device, self.settings.precision)

    def work(self, halo: int, *, encoded: bool) -> Work:
        """How much there is to do; ``encoded`` if the features are at hand."""
        if self.is_copy:
            return Work(0, 0)
        shape = self.volume.grid.shape
        box = Box((0, 0, 0), shape) if self.box is None else self.box.grown(halo, shape)
        passes = self.frames * self.settings.orientations
        return Work(0 if encoded else passes * box.size, passes * self.grid.size)

    def reuses(self, done: Plan | None) -> bool:
        """Whether the features that another plan has left are all that this one needs."""
        if done is None or done.volume is not self.volume:
            return False
        if (done.settings, done.frame) != (self.settings, self.frame):
            return False
        if done.box is None:
            return True
        return self.box is not None and done.box.common(self.box) == self.box

    @property
    def title(self) -> str:
        """What the result is called: the input, by which weights, how fine, which part."""
        weights = Path(self.settings.weights)
        return self._titled(weights.stem if weights.suffix else weights.name)

    def title_of(self, result: Volume) -> str:
        """The same of what came of it: labels are made by no weights."""
        labels = result.metadata["upsampling"]["weights"] == NEAREST_LABEL
        return self._titled(NEAREST_LABEL) if labels else self.title

    def _titled(self, how: str) -> str:
        parts = [self.volume.name, how, self._fineness]
        if self.box is not None:
            parts.append("box")
        if self.frame is not None and self.volume.frames > 1:
            parts.append(f"frame {self.frame}")
        return " ".join(parts)

    @property
    def _fineness(self) -> str:
        if self.target.scale is not None:
            return "×" + _joined(self.target.scale, "×")
        spacing = self.target.grid(self.volume.grid, self.volume.name).spacing
        unit = Unit.of(self.volume)
        return f"{_joined([step / unit.millimetres for step in spacing], '×')} {unit.symbol}"

    @property
    def is_copy(self) -> bool:
        """Whether the result is the input, or a part of it, as it is."""
        grid = self.target.grid(self.volume.grid, self.volume.name)
        return grid.shape == self.volume.grid.shape

    # -------------------------------------------------------------- the file's axis order

    def as_stored(self) -> Plan:
        """The same with axes in the order of the layer's file.

        A network does not treat its axes alike: only in the file's order does it give what
        the command line gives for the file.
        """
        stored = self.volume.in_storage_order()
        order = _order(stored.grid, self.volume.grid)
        box = self.box and Box(_moved(self.box.start, order), _moved(self.box.stop, order))
        target = replace(
            self.target,
            scale=_all_moved(self.target.scale, order),
            spacing=_all_moved(self.target.spacing, order),
        )
        return replace(self, volume=stored, target=target, box=box)

    def command(self, source: Path) -> str:
        """The command line that does the same with the layer's file.

        Its three numbers are in the file's order (i, j, k), as the command line takes them.
        """
        plan = self.as_stored()
        if plan.target.isotropic:
            size = ["--isotropic"]
        elif plan.target.scale is not None:
            size = ["--scale", _joined(plan.target.scale, ",", exact=True)]
        else:
            assert plan.target.spacing is not None
            size = ["--spacing", _joined(plan.target.spacing, ",", exact=True)]
        words = ["napari-arssr", "upsample", str(source), str(self._output(source)), *size]
        if plan.box is not None:
            ends = zip(plan.box.start[::-1], plan.box.stop[::-1], strict=True)
            words += ["--box", ",".join(f"{a}:{b}" for a, b in ends)]
        frame = self.frame if self.volume.frames > 1 else None
        parts = {"--frame": frame, "--channel": io.channel_of(self.volume)}
        words += [word for option, n in parts.items() if n is not None for word in (option, str(n))]
        settings, usual = self.settings, Settings()
        if settings.weights != usual.weights:
            words += ["--weights", os.fspath(settings.weights)]
        if settings.device != usual.device:
            words += ["--device", settings.device]
        if settings.precision != usual.precision:
            words += ["--precision", settings.precision]
        if settings.memory is not None:
            words += ["--memory", str(settings.memory)]
        if settings.normalize is not None:
            words += ["--normalize", settings.normalize]
        if settings.consistency is not None:
            scanner = settings.consistency
            words += ["--consistency", scanner.text]
        if settings.orientations != usual.orientations:
            words += ["--orientations", str(settings.orientations)]
        return in_command(words)

    def _output(self, source: Path) -> Path:
        suffix = io.known_suffix(io.result_name(source)) if io.is_stack(source) else ".nii.gz"
        # In letters that every system has in names.
        fineness = self._fineness.replace("×", "x").replace(" ", "").replace("µ", "u")
        box = "" if self.box is None else "_box"
        # Or the command of one channel would replace what that of another has made.
        number = io.channel_of(self.volume)
        channel = "" if number is None else f"_channel{number}"
        name = io.base_name(source)
        return io.beside(source) / f"{name}{channel}_{fineness}{box}{suffix}"


@dataclass(frozen=True, eq=False)
class _Same:
    """An object that is equal to itself alone, and is not let go of meanwhile."""

    one: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.one is self.one

    def __hash__(self) -> int:
        return id(self.one)


class Workshop:
    """Where plans are carried out: keeps what the next one can use again.

    Parameters
    ----------
    speeds : Speeds
        Learns from every plan that is carried out.
    """

    def __init__(self, speeds: Speeds) -> None:
        self.fields = Fields()
        self.speeds = speeds
        self._range: tuple[Hashable, Normalizer] | None = None

    def carry_out(self, plan: Plan, report: VagueReport, stop: Stop) -> Volume:
        """Upsample; for a thread.

        Parameters
        ----------
        plan : Plan
        report : callable
            Told the share of the work done, or None where that is not known, and the stage.
        stop : callable

        Returns
        -------
        Volume
            In the layer's axis order, float32, its settings under
            ``metadata["upsampling"]``.

        Raises
        ------
        UsageError, FileError, OutOfMemory, Cancelled
        """
        way_out = f"{plan.way_out}, or set less memory under Advanced"
        with plain_errors(plan.volume.name, way_out):
            report(None, "getting ready")
            import_torch()
            identity, network = self.fields.weights(
                plan.settings.weights, progress=partial(_downloaded, report), stop=stop
            )
            seen_by = None if plan.is_copy else network
            volume, normalize = self._source(plan, seen_by, report, stop)
            stored = replace(plan, volume=volume).as_stored()
            settings, target = stored.settings, stored.target
            passed = 0
            used: set[str] = {plan.key}

            @contextmanager
            def lend(one: Volume, make: Callable[[], NetworkField]) -> Iterator[NetworkField]:
                nonlocal passed
                key = _field_key(one, plan, identity, stop)
                with (
                    nullcontext(make())
                    if key is None
                    else self.fields.lend(key, make, stop) as field
                ):
                    passed += field.encoding_cost(stored.box or one.grid.box)
                    used.add(key_of(network.name, str(field.device), field.precision))
                    yield field

            watch = Stopwatch(report)
            result = upsample(
                stored.volume,
                target.scale,
                spacing=target.spacing,
                isotropic=target.isotropic,
                box=stored.box,
                weights=network,
                device=settings.device,
                precision=settings.precision,
                memory=settings.memory,
                normalize=normalize,
                consistency=settings.consistency,
                orientations=settings.orientations,
                lend=lend,
                progress=watch,
                stop=stop,
            )
            work = Work(passed, stored.work(0, encoded=True).decode)
            for key in used:
                self.speeds.learn(key, work, watch.seconds, network.model.halo)
            record = result.metadata["upsampling"] | {
                "source": plan.volume.name,
                "frame": plan.frame,
                "channel": io.channel_of(plan.volume),
                "memory": settings.memory,
            }
            result = replace(result, metadata=result.metadata | {"upsampling": record})
            return result.transposed(_order(stored.volume.grid, plan.volume.grid))

    def _source(
        self, plan: Plan, network: Loaded | None, report: VagueReport, stop: Stop
    ) -> tuple[Volume, Normalization | Normalizer | None]:
        """The voxels that a network is to see, loaded if they are to be, and their range."""
        volume = plan.volume if plan.frame is None else plan.volume.frame(plan.frame)
        if not plan.in_parts:
            return read_voxels(volume, report, stop), plan.settings.normalize
        # As it is stored: along other axes each piece would be nearly all of the file.
        stored = volume.in_storage_order()
        if network is None or plan.frames > 1 or io.is_label_map(stored):
            return volume, plan.settings.normalize
        return volume, self._range_of(stored, plan, network, report, stop)

    def _range_of(
        self, frame: Volume, plan: Plan, network: Loaded, report: VagueReport, stop: Stop
    ) -> Normalizer:
        """The range of a plan's frame that is not loaded; the last one is kept."""
        method = plan.settings.normalize or network.normalization
        key = plan.voxels, method
        # The live view's thread, or the run's, may replace it at any moment.
        kept = self._range
        if kept is None or kept[0] != key:
            try:
                kept = self._range = key, Normalizer.fit(frame.data, method, report, stop)
            except FileError as error:
                raise FileError(f"{frame.name}: {error}") from None
        return kept[1]

    def forget(self) -> None:
        """Keep nothing of any volume; what is lent is let go of when it comes back."""
        self._range = None
        self.fields.forget()

    def field(self, plan: Plan) -> Callable[[Stop], AbstractContextManager[NetworkField | None]]:
        """For the live view: lends the field of a plan's one frame, or None while it is busy.

        It is seen in one orientation, whatever the plan's mean is of: live pictures are quick.
        What is given is called in a thread, with what says that nobody waits any more. It reads
        layer and weights once, and is to be asked for again when the layer's voxels change.
        """
        read: list[tuple[Volume, Hashable, Loaded, Normalization | Normalizer | None]] = []
        settings = plan.settings

        @contextmanager
        def lent(stop: Stop) -> Iterator[NetworkField | None]:
            with plain_errors(plan.volume.name, _SMALLER):
                import_torch()
                if not read:
                    identity, loaded = self.fields.weights(settings.weights)
                    volume, method = self._source(plan, loaded, unheard, stop)
                    one = volume.in_storage_order()
                    read.append((one, _field_key(one, plan, identity, stop), loaded, method))
                ((one, key, network, normalize),) = read

                def make() -> NetworkField:
                    return encode(
                        one,
                        network,
                        device=settings.device,
                        precision=settings.precision,
                        memory=settings.memory,
                        normalize=normalize,
                        orientations=settings.orientations,
                    )

                with self.fields.lend_if_free(key, make) as found:
                    yield found and found.in_one_orientation()

        return lent


def in_command(words: Sequence[str]) -> str:
    """Words as a line for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def same_as_file(volume: Volume, source: Path, stop: Stop) -> None:
    """Make sure that a file holds what a volume's layer shows, to the last voxel; for a thread.

    Of a file with several channels, the one that it was read from.

    Raises
    ------
    FileError, OutOfMemory
        If the file cannot be read.
    Cancelled
        If ``stop`` says so.
    UsageError
        If it holds something else.
    """
    name = volume.name
    way_out = "save the layer first, and the command can name that file"
    there = io.read(source, channel=io.channel_of(volume), most=most_to_load())
    stored = volume.in_storage_order()
    if stored.data.shape != there.data.shape:
        raise UsageError(f"{name} has another shape than {source}; {way_out}.")
    if stored.grid != there.grid:
        raise UsageError(f"{name} has other voxel sizes or another place than {source}; {way_out}.")
    for plane in range(stored.data.shape[0]):
        if stop():
            raise Cancelled
        if not np.array_equal(
            np.asarray(stored.data[plane]), np.asarray(there.data[plane]), equal_nan=True
        ):
            raise UsageError(f"{name} was changed since it was read from {source}; {way_out}.")


def _field_key(one: Volume, plan: Plan, identity: Hashable, stop: Stop) -> Hashable | None:
    """All that a field depends on: voxels, their place, the network and how it runs.

    None of a frame of several that are not loaded, for nothing tells them apart.
    """
    settings = plan.settings
    if is_loaded(one.data):
        voxels: Hashable = _digest(one.data, stop)
    elif plan.frames == 1:
        voxels = plan.voxels
    else:
        return None
    return (
        voxels,
        one.grid.shape,
        one.affine.tobytes(),
        identity,
        settings.device,
        settings.precision,
        settings.memory,
        settings.consistency if settings.memory else None,
        settings.normalize,
        settings.orientations,
    )


def _digest(data: Array, stop: Stop) -> str:
    """A fingerprint of voxels, whatever their layout in memory."""
    digest = hashlib.blake2b(str((data.shape, data.dtype.str)).encode(), digest_size=16)
    for plane in data:
        if stop():
            raise Cancelled
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def read_voxels(volume: Volume, report: VagueReport, stop: Stop) -> Volume:
    """A volume with its voxels in memory, read piece by piece where they are not."""
    return loaded(replace(volume, data=read(volume.data, volume.name, None, report, stop)))


@contextmanager
def plain_errors(name: str, way_out: str) -> Iterator[None]:
    """One sentence for running out of memory, wherever it happened; a name for what is a bug."""
    try:
        yield
    except ArssrError:
        raise
    except Exception as error:
        # Before that module is there, and whole, nothing has asked a device for memory.
        of_device = getattr(sys.modules.get("napari_arssr.devices"), "is_out_of_memory", None)
        if isinstance(error, MemoryError) or (of_device is not None and of_device(error)):
            raise OutOfMemory(
                f"{name}: there was not enough memory; close other programs, {way_out}."
            ) from None
        raise


def _downloaded(report: VagueReport, done: int, total: int | None) -> None:
    share = done / total if total else None
    report(share, f"downloading weights, {done / 1e6:.1f} MB")


def _order(stored: Grid, layer: Grid) -> tuple[int, int, int]:
    """For each axis of the layer the axis of the file."""
    order = stored.map_into(layer).axes
    assert order is not None  # one is the other with its axes reordered
    return order


def _moved(values: Sequence[T], order: tuple[int, int, int]) -> tuple[T, T, T]:
    """Three values from the layer's axis order to the file's."""
    z, y, x = (values[order.index(axis)] for axis in range(3))
    return z, y, x


def _all_moved(
    values: float | Sequence[float] | None, order: tuple[int, int, int]
) -> float | Sequence[float] | None:
    """The same for what may also be one number for all axes, or nothing."""
    return _moved(values, order) if isinstance(values, Sequence) else values


def _joined(values: float | Sequence[float], mark: str, *, exact: bool = False) -> str:
    """One number, or three joined by ``mark`` where they differ; reversed where exact."""
    several = [values] if isinstance(values, int | float) else list(values)
    if exact:
        words = [repr(float(value)).removesuffix(".0") for value in reversed(several)]
    else:
        words = [f"{value:.3g}" for value in several]
    return words[0] if len(set(words)) == 1 else mark.join(words)
