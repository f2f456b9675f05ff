"""A fit on its way or done: all that is known, and what is left to do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from napari_arssr.fitting.poses import FloatArray, length_unit, typical_motion
from napari_arssr.fitting.registration import Agreement
from napari_arssr.fitting.settings import Settings
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Grid, Volume
from napari_arssr.watching import Stop, never

if TYPE_CHECKING:
    from napari_arssr.fitting.fitted import FittedField
    from napari_arssr.fitting.implicit import Trained

__all__ = ["STAGES", "StackRecord", "Stage", "State", "hash_of", "names_of"]

Stage = Literal["aligned", "posed", "reconstructed", "done"]
STAGES: tuple[Stage, ...] = ("aligned", "posed", "reconstructed", "done")

SUSPECT = 0.5
"""Slices that are believed less are named."""


@dataclass(frozen=True, eq=False)
class StackRecord:
    """What a fit keeps of a stack.

    Parameters
    ----------
    name : str
    digest : str
        SHA-256 of its voxels and affine, see :func:`hash_of`.
    grid : Grid
        Slices along the first axis.
    gain : float
        What its intensities were multiplied by.
    agreement : Agreement
        With the reference after registration.
    registered : (4, 4) array
        Where registration put it as a whole, before slices moved: as ``motion``.
    motion : (slices, 4, 4) array
        Where its file says a point is → where it is in the reference's world.
    weight : (slices,) array
        How far each slice is believed, 0 to 1.
    """

    name: str
    digest: str
    grid: Grid
    gain: float
    agreement: Agreement
    registered: FloatArray
    motion: FloatArray
    weight: FloatArray

    @property
    def whole_motion(self) -> FloatArray:
        """The motion (4, 4) that most of its slices agree on."""
        middle = self.grid.world([(n - 1) / 2 for n in self.grid.shape])
        unit = length_unit(self.grid)
        return typical_motion(self.motion, np.maximum(self.weight, 1e-6), middle, unit)

    @property
    def outlines(self) -> FloatArray:
        """Corners of each slice where it was found: (slices, 4, 3), RAS+ millimetres."""
        stated = self.grid.slice_outlines(0)
        turned = np.einsum("nij,nkj->nki", self.motion[:, :3, :3], stated)
        return np.asarray(turned + self.motion[:, None, :3, 3])

    @property
    def suspects(self) -> list[int]:
        """Slices, from 0, that are hardly believed."""
        return [int(number) for number in np.flatnonzero(self.weight < SUSPECT)]


@dataclass
class State:
    """A fit.

    Parameters
    ----------
    settings : Settings
    grid : Grid
        Of the volume.
    normalizer : Normalizer
        Between the reference's units and the fit's.
    stacks : list of StackRecord
    starts : (stacks, 4, 4) array
        Where registration began, or where stacks were taken to lie, in the reference's world.
    stage : {"aligned", "posed", "reconstructed", "done"}
        What is behind it.
    base : (z, y, x) float32 array, optional
        The reconstruction, in the fit's units.
    expected : (z, y, x) float32 array, optional
        What a trained network made of it, which the reconstruction's prior was about.
    uncertainty : (z, y, x) float32 array, optional
        Standard deviation of its voxels, in the fit's units.
    mask : (z, y, x) bool array, optional
        Where there is anything.
    trained : Trained, optional
        The network.
    numbers : dict
        What was chosen or measured: weights of the prior, errors.
    warnings : list of str
    """

    settings: Settings
    grid: Grid
    normalizer: Normalizer
    stacks: list[StackRecord]
    starts: FloatArray
    stage: Stage = "aligned"
    base: npt.NDArray[np.float32] | None = None
    expected: npt.NDArray[np.float32] | None = None
    uncertainty: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    trained: Trained | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def behind(self, stage: Stage) -> bool:
        """Whether a stage is done."""
        return STAGES.index(self.stage) >= STAGES.index(stage)

    def field(self, device: str = "cpu") -> FittedField:
        """The volume as it is now, to be sampled on any grid, in the reference's units."""
        from napari_arssr.devices import choose_device
        from napari_arssr.fitting.fitted import FittedField

        data = self.base
        if data is None:
            data = np.zeros(self.grid.shape, dtype=np.float32)
        base = Volume(self.normalizer.restore(data), self.grid.affine, name="the fitted volume")
        return FittedField(
            base,
            self.normalizer,
            network=None if self.trained is None else self.trained.network,
            mask=self.mask,
            device=choose_device(device),
        )

    @property
    def uncertainty_volume(self) -> Volume | None:
        """The map in the reference's units; 0 outside the mask."""
        data = self._uncertainty_data
        if data is None:
            return None
        if self.mask is not None:
            data = np.where(self.mask, data, np.float32(0))
        return Volume(data, self.grid.affine, name="uncertainty")

    def uncertainty_on(self, grid: Grid, stop: Stop = never) -> Volume | None:
        """The map on any grid, as :meth:`field` gives the volume; see :attr:`uncertainty_volume`.

        Raises
        ------
        Cancelled
        """
        from napari_arssr.fitting.fitted import FittedField

        data = self._uncertainty_data
        if data is None:
            return None
        field = FittedField(Volume(data, self.grid.affine), self.normalizer, mask=self.mask)
        sampled = field.sample(grid, stop=stop)
        # Splines can swing below 0 beside high values.
        return replace(sampled, data=np.maximum(sampled.data, 0), name="uncertainty")

    @property
    def _uncertainty_data(self) -> npt.NDArray[np.float32] | None:
        if self.uncertainty is None:
            return None
        return self.uncertainty * np.float32(self.normalizer.high - self.normalizer.low)


def hash_of(volume: Volume) -> str:
    """SHA-256 of a stack's voxels and place."""
    digest = hashlib.sha256(np.ascontiguousarray(volume.data).data.cast("B"))
    digest.update(np.ascontiguousarray(volume.affine, dtype="<f8").data.cast("B"))
    digest.update(str((volume.data.shape, volume.data.dtype.str)).encode())
    return digest.hexdigest()


def names_of(records: Sequence[StackRecord]) -> list[str]:
    """Of all stacks."""
    return [record.name for record in records]
