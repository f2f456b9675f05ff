"""What one press of Run is to fit: taken from the window whole, then done away from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr._live_worker import Lend
from napari_arssr._output_choice import Unit
from napari_arssr._plan import in_command, plain_errors, read_voxels, same_as_file
from napari_arssr._sight import Sight
from napari_arssr._warm_up import import_torch
from napari_arssr.errors import FileError, UsageError
from napari_arssr.fitting.cli import as_options, record_of
from napari_arssr.fitting.pipeline import Watch, askew_stacks, fit, memory_needed, output_grid
from napari_arssr.fitting.settings import Settings
from napari_arssr.fitting.stacks import check_forms
from napari_arssr.memory import require
from napari_arssr.volume import Box, Grid, Volume, as_triple
from napari_arssr.watching import Stop, VagueReport

if TYPE_CHECKING:
    from napari_arssr.fitting.fitted import FittedField
    from napari_arssr.fitting.state import State

__all__ = [
    "FitPlan",
    "Fitted",
    "bounds_of",
    "title_of",
]

_WAY_OUT = "give a mask, a larger voxel size or fewer stacks"


def bounds_of(mask: Volume) -> Volume:
    """One voxel that spans what is labelled in a mask; one of nothing if nothing is; for a thread.

    A plan needs no more of a mask to say how large its volume will be, and every look at all of
    a mask takes longer than a window may stand still.
    """
    nothing = Volume(np.zeros((1, 1, 1), np.uint8), mask.affine, name=mask.name)
    if mask.data.ndim != 3:
        return nothing
    labelled = np.asarray(mask.data) != 0
    if not labelled.any():
        return nothing
    grid = mask.grid.crop(Box.around(labelled)).with_shape((1, 1, 1))
    return Volume(np.ones((1, 1, 1), np.uint8), grid.affine, name=mask.name)


@dataclass(frozen=True, eq=False)
class FitPlan:
    """A fit that is fully settled.

    Parameters
    ----------
    volumes : tuple of Volume
        The layers', their axes in the layers' order. Voxels may still be in files.
    settings : Settings
        The voxel size is one number, or none.
    mask : Volume, optional
    uncertainty : bool
        Whether a map is made too.
    bounds : Volume, optional
        What :func:`bounds_of` found of the mask: where its labels lie, for :attr:`grid`.

    Raises
    ------
    UsageError
        If no volume can be made of them, as far as that can be told without voxels.
    """

    volumes: tuple[Volume, ...]
    settings: Settings
    mask: Volume | None = None
    uncertainty: bool = False
    bounds: Volume | None = None

    def __post_init__(self) -> None:
        check_forms(self.volumes)

    @property
    def reference(self) -> Volume:
        """The stack that the others are brought to."""
        return self.volumes[self.settings.reference]

    @property
    def grid(self) -> Grid:
        """The grid of the volume, in the reference layer's axis order.

        Whole where it is not known how far the mask reaches.

        Raises
        ------
        UsageError
            If the mask is empty, or beside the reference.
        """
        return output_grid(self.volumes, self.settings, self.bounds)

    @property
    def bytes_needed(self) -> int:
        """Memory that fitting takes."""
        grid = self.grid
        return memory_needed(grid, self.settings, askew_stacks(grid, self.volumes, self.settings))

    @property
    def title(self) -> str:
        """What the result is called: of which stacks, how fine, by which method."""
        names = [volume.name for volume in self.volumes]
        finest = min(min(volume.spacing) for volume in self.volumes)
        return title_of(names, self.reference, self.settings, finest)

    def command(self, sources: Sequence[Path], mask: Path | None) -> str:
        """The command line that does the same with the layers' files."""
        first = sources[self.settings.reference]
        folder, name = io.beside(first), io.base_name(first)
        words = ["napari-arssr", "fit", *map(str, sources)]
        words += ["-o", str(folder / f"{name}_fit.nii.gz"), *as_options(self.settings)]
        if mask is not None:
            words += ["--mask", str(mask)]
        if self.uncertainty:
            words += ["--uncertainty", str(folder / f"{name}_fit_sd.nii.gz")]
        return in_command(words)

    def compared_command(self, sources: Sequence[Path], mask: Path | None, stop: Stop) -> str:
        """:meth:`command`, once the files are seen to hold what the layers show; for a thread.

        Raises
        ------
        FileError, OutOfMemory, UsageError, Cancelled
        """
        for volume, source in zip(self.volumes, sources, strict=True):
            _same_as_whole_file(volume, source, stop)
        if self.mask is not None and mask is not None:
            _same_as_whole_file(self.mask, mask, stop)
        return self.command(sources, mask)

    def with_own_mask(self) -> FitPlan:
        """The same with a mask that stays as it is while its layer is painted on."""
        if self.mask is None or not isinstance(self.mask.data, np.ndarray):
            return self
        return replace(self, mask=replace(self.mask, data=self.mask.data.copy()))

    def carry_out(self, report: VagueReport, stop: Stop, sight: Sight) -> Fitted:
        """Fit; for a thread.

        Parameters
        ----------
        report : callable
            Told the share of the work done, or None where that is not known, and the stage.
        stop : callable
        sight : Sight
            Shown the volume on its way.

        Raises
        ------
        UsageError, FileError, OutOfMemory, Cancelled
        """

        def reading(_share: float | None, stage: str) -> None:
            report(None, stage)

        def stored(volume: Volume) -> Volume:
            # In the file's order: what the command line gives for the file, to the last digit.
            return read_voxels(volume, reading, stop).in_storage_order()

        with plain_errors(self.title, _WAY_OUT):
            report(None, "getting ready")
            import_torch()
            started = time.monotonic()
            volumes = [stored(volume) for volume in self.volumes]
            state = fit(
                volumes,
                self.settings,
                mask=None if self.mask is None else stored(self.mask),
                uncertainty=self.uncertainty,
                watch=Watch(report, stop, seen=sight.see, measured=sight.measure),
            )
            reference = volumes[self.settings.reference]
            return Fitted(state, reference, time.monotonic() - started, self.settings.device)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit that is done, to be sampled as often as one likes.

    Parameters
    ----------
    state : State
    reference : Volume
        The reference stack; its metadata say what else results take from it.
    seconds : float
        That the fit took.
    device : str
        Where it is sampled.
    """

    state: State
    reference: Volume
    seconds: float = 0.0
    device: str = "auto"

    @classmethod
    def read(cls, path: Path, device: str) -> Fitted:
        """A fit from a file that :meth:`save` or the command line wrote; for a thread.

        Raises
        ------
        FileError
            If the file is missing, broken, no fit, or one that was stopped on its way.
        """
        import_torch()
        from napari_arssr.fitting.files import load

        state = load(path)
        if not state.behind("done"):
            raise FileError(
                f"{path}: this fit was stopped before its end; finish it with napari-arssr fit … "
                f"--field {path.name} --resume, or fit the stacks here."
            )
        first = state.stacks[state.settings.reference]
        # Of the stack itself a fit keeps name and place, no voxels.
        nothing = np.broadcast_to(np.float32(0), first.grid.shape)
        return cls(state, Volume(nothing, first.grid.affine, name=first.name), device=device)

    def title(self, spacing: float | None) -> str:
        """What a result with voxels of a size, in millimetres, is called."""
        records = self.state.stacks
        settings = self.state.settings
        if spacing is not None:
            settings = replace(settings, spacing=spacing)
        finest = min(min(record.grid.spacing) for record in records)
        return title_of([record.name for record in records], self.reference, settings, finest)

    def grid(self, spacing: float | None) -> Grid:
        """The fit's span in voxels of a size, or in those that it was fitted with."""
        return self.state.grid if spacing is None else self.state.grid.with_spacing(spacing)

    def sample(self, spacing: float | None, report: VagueReport, stop: Stop) -> Volume:
        """The volume with voxels of a size; for a thread.

        Raises
        ------
        OutOfMemory, Cancelled
        """
        grid = self.grid(spacing)
        require(4 * grid.size, f"A volume of {grid.size:,} voxels", "choose a larger voxel size")
        with plain_errors(self.title(spacing), "choose a larger voxel size"):

            def told(share: float, _stage: str) -> None:
                report(share, "sampling")

            volume = self._field().sample(grid, progress=told, stop=stop)
            return self._as_result(volume, grid)

    @property
    def uncertainty(self) -> Volume | None:
        """The standard deviation of each voxel, where it was asked for."""
        found = self.state.uncertainty_volume
        return None if found is None else self._as_result(found, self.state.grid)

    def lend(self, motion: npt.NDArray[np.float64]) -> Lend:
        """For the live view: lends the fitted field.

        Parameters
        ----------
        motion : (4, 4) array
            How the volume was moved since it was fitted, RAS+ millimetres to RAS+ millimetres.
        """
        made: list[_MovedField] = []

        @contextmanager
        def lent(_stop: Stop) -> Iterator[_MovedField]:
            if not made:
                made.append(_MovedField(self._field(), motion))
            yield made[0]

        return lent

    def save(self, path: Path) -> Path:
        """Keep the fit in a safetensors file; for a thread.

        Raises
        ------
        UsageError, FileError
        """
        from napari_arssr.fitting.files import save

        return save(path, self.state)

    def _field(self) -> FittedField:
        return self.state.field(self.device)

    def _as_result(self, volume: Volume, grid: Grid) -> Volume:
        metadata: dict[str, Any] = {
            name: value
            for name, value in self.reference.metadata.items()
            if name not in ("upsampling", "fit")
        }
        metadata["fit"] = record_of(self.state, grid, self.seconds)
        return replace(volume, metadata=metadata)


class _MovedField:
    """A field after its volume was moved, see :meth:`Fitted.lend`."""

    def __init__(self, field: FittedField, motion: npt.NDArray[np.float64]) -> None:
        self._field = field
        self._back = np.linalg.inv(motion)

    def sample(self, grid: Grid, *, progress: Callable[[float, str], None], stop: Stop) -> Volume:
        """The field at every voxel centre of a grid."""
        found = self._field.sample(grid.moved(self._back), progress=progress, stop=stop)
        return replace(found, affine=grid.affine)


def _same_as_whole_file(volume: Volume, source: Path, stop: Stop) -> None:
    """:func:`same_as_file`, of files that ``fit`` reads: it takes no channel of one."""
    channel = io.channel_of(volume)
    if channel is not None:
        raise UsageError(
            f"{volume.name} is one of several channels of {source}, and 'fit' takes whole files; "
            "save the layer first, and the command can name that file."
        )
    same_as_file(volume, source, stop)


def title_of(names: Sequence[str], reference: Volume, settings: Settings, finest: float) -> str:
    """What a result is called: of which stacks, its voxel size, and the method.

    Parameters
    ----------
    names : sequence of str
    reference : Volume
        In the unit of its world lengths are shown.
    settings : Settings
    finest : float
        The voxel size, millimetres, where the settings name none.
    """
    sides = [finest] if settings.spacing is None else as_triple(settings.spacing)
    method = "IREM as published" if settings.preset == "paper" else settings.method
    stems = ", ".join(io.without_suffix(name) for name in names)
    return f"fit of {stems} · {Unit.of(reference).show(sides)} · {method}"
