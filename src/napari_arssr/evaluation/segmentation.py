"""Dice of automatic segmentations: whether a result leads to the same tissues as its reference.

Both are segmented by ANTs' Atropos (Avants et al., Neuroinformatics 9, 2011) and the labels are
compared by Dice's coefficient. Without priors there are three tissues, told apart by intensity
alone; with six prior probability maps there are six regions, the priors' own.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.errors import ArssrError, FileError, UsageError
from napari_arssr.volume import Box, Grid, Volume

__all__ = ["REGIONS", "TISSUES", "Priors", "SegmentationFailed", "dice", "segment", "why_not"]

TISSUES = ("csf", "gm", "wm")
"""Without priors: classes from the darkest to the brightest, as in a T1-weighted brain."""

REGIONS = (*TISSUES, "deep_gm", "brain_stem", "cerebellum")
"""With priors: the order of their files."""

_TEMPLATE = "template"
_PRIOR_WEIGHT = 0.25
_SAME_VOXEL = 0.5  # of a voxel: probabilities are smooth
_SEED = 1
_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
_CONSTANT_SEED = 0  # Atropos takes one by the clock otherwise


class SegmentationFailed(ArssrError):
    """ANTs gave up on a volume; with more memory or another version it may not."""


def why_not() -> str:
    """Why there is no Dice here, in one sentence; empty where ANTs is installed."""
    try:
        _ants()
    except UsageError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Priors:
    """Six prior probability maps, and the template they lie on if they need be registered.

    Parameters
    ----------
    maps : six Volumes
        In the order of :data:`REGIONS`.
    template : Volume or None
        An image in the maps' space, which is registered to each reference (affine, then SyN);
        results are segmented with the maps of their reference. Without one the maps must lie on
        the references as they are.
    """

    maps: tuple[Volume, ...]
    template: Volume | None = None
    _warped: dict[str, list[Any]] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, folder: str | Path) -> Priors:
        """From a folder: six files in the order of their names, and perhaps ``template.nii.gz``.

        Raises
        ------
        FileError
            If there are not six, or one is not 3D or not finite.
        """
        files = io.volumes_in(folder)
        template = [path for path in files if io.stem(path) == _TEMPLATE]
        maps = [path for path in files if path not in template]
        if len(maps) != len(REGIONS):
            raise FileError(
                f"{folder}: {len(maps)} prior maps are there where {len(REGIONS)} are needed, "
                f"for {', '.join(REGIONS)}, in the order of their names."
            )
        return cls(tuple(map(_read, maps)), _read(template[0]) if template else None)

    def cut(self, whole: Grid, box: Box) -> Priors:
        """The same for a part of a grid: maps that lie on it are cut, others left as they are."""
        if self.template is not None:
            return self
        maps = [one.crop(box) if _lies_on(one.grid, whole) else one for one in self.maps]
        return replace(self, maps=tuple(maps))

    @cached_property
    def sha256(self) -> str:
        """Of all values and places, in hexadecimal digits."""
        found = hashlib.sha256()
        for volume in (*self.maps, *([self.template] if self.template else [])):
            data = np.ascontiguousarray(volume.data)
            found.update(f"{data.dtype} {data.shape} {volume.affine.tolist()}".encode())
            found.update(data.data)
        return found.hexdigest()


def _read(path: Path) -> Volume:
    volume = io.read(path)
    if volume.data.ndim != 3 or not np.isfinite(volume.data).all():
        raise FileError(f"{path}: ANTs needs it in 3D, with numbers everywhere; mend it first.")
    return volume


def segment(
    volume: Volume, mask: npt.NDArray[np.bool_], priors: Priors | None = None
) -> npt.NDArray[np.uint8]:
    """Labels 1, 2, … of the tissues inside a mask, 0 outside.

    Parameters
    ----------
    volume : Volume
        3D.
    mask : (z, y, x) array
    priors : Priors, optional

    Returns
    -------
    (z, y, x) uint8 array
        1 to 3 as :data:`TISSUES`, or 1 to 6 as :data:`REGIONS`.

    Raises
    ------
    UsageError
        If ANTs is not installed, or priors do not lie on the volume.
    SegmentationFailed
        If ANTs fails.
    """
    ants = _ants()

    image = _to_ants(volume, np.nan_to_num(volume.data))
    inside = _to_ants(volume, mask.astype(np.float32))
    weight: dict[str, float] = {}
    start: Any = f"kmeans[{len(TISSUES)}]"
    try:
        with _scratch():
            if priors is not None:
                start, weight = _priors_on(volume, image, priors), {"priorweight": _PRIOR_WEIGHT}
            found = ants.atropos(
                a=image, x=inside, i=start, m="[0.2,1x1x1]", r=_CONSTANT_SEED, **weight
            )
    except UsageError:
        raise
    except Exception as error:  # ANTs raises nothing more special
        raise SegmentationFailed(
            f"{volume.name}: ANTs could not segment it ({error}); see that its mask holds tissue "
            "and that its axes are at right angles."
        ) from None
    labels = np.asarray(found["segmentation"].numpy()).T
    return np.asarray(np.rint(labels), dtype=np.uint8)


def dice(
    one: npt.NDArray[np.integer[Any]], other: npt.NDArray[np.integer[Any]], count: int
) -> list[float]:
    """Dice's coefficient 2 |A ∩ B| / (|A| + |B|) of the labels 1 to ``count``.

    Dice, "Measures of the amount of ecologic association between species", Ecology 26(3), 1945.

    Returns
    -------
    list of float
        NaN for a label that neither has.
    """
    if one.shape != other.shape:
        raise UsageError(f"Labels of {one.shape} and {other.shape} voxels cannot be compared.")
    result = []
    for label in range(1, count + 1):
        a, b = one == label, other == label
        total = int(a.sum()) + int(b.sum())
        result.append(2 * int((a & b).sum()) / total if total else float("nan"))
    return result


def _ants() -> Any:
    from importlib import import_module

    # With more threads, or other seeds, every run would register and segment in its own way.
    # ITK looks once, when it is loaded.
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        ants = import_module("ants")
    except ImportError as error:
        del os.environ[_THREADS]  # SimpleITK, which reads it too, may have all cores
        if before is not None:
            os.environ[_THREADS] = before
        raise UsageError(
            f"dice is not available: ANTs cannot be imported ({error}); pip install "
            "'napari-arssr[segmentation]', or leave dice out of --metrics."
        ) from None
    ants.config.set_ants_deterministic(on=True, seed_value=_SEED)
    return ants


@contextmanager
def _scratch() -> Iterator[None]:
    """A folder for the files that ANTs leaves behind: maps and fields of the volume's size."""
    before = tempfile.tempdir
    # Files that are still open elsewhere stay; they are no reason to fail.
    with tempfile.TemporaryDirectory(prefix="arssr-ants-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _to_ants(volume: Volume, data: npt.NDArray[Any]) -> Any:
    """An ANTs image: axes i, j, k, and LPS millimetres."""
    origin, spacing, direction = volume.grid.itk_geometry
    # ANTs hands prior maps to itself in NIfTI files, whose places are float32, and then finds
    # that they lie elsewhere than an image whose place has more digits.
    return _ants().from_numpy(
        np.ascontiguousarray(data.astype(np.float32).T),
        origin=np.asarray(origin, dtype=np.float32).tolist(),
        spacing=np.asarray(spacing, dtype=np.float32).tolist(),
        direction=np.reshape(direction, (3, 3)),
    )


def _lies_on(prior: Grid, grid: Grid) -> bool:
    return prior.shape == grid.shape and grid.departure(prior.affine) <= _SAME_VOXEL


def _priors_on(volume: Volume, image: Any, priors: Priors) -> list[Any]:
    """The six maps on a volume's grid; a registration is done once for each grid and name."""
    ants = _ants()

    if priors.template is None:
        for prior in priors.maps:
            if not _lies_on(prior.grid, volume.grid):
                raise UsageError(
                    f"{prior.name}: this prior does not lie on {volume.name}; resample it, or put "
                    f"the template it belongs to beside it as {_TEMPLATE}.nii.gz."
                )
        return [_to_ants(volume, prior.data) for prior in priors.maps]
    key = f"{volume.name} {volume.grid.shape} {volume.grid.affine.tolist()}"
    if key not in priors._warped:
        moving = _to_ants(priors.template, priors.template.data)
        found = ants.registration(fixed=image, moving=moving, type_of_transform="SyN")
        priors._warped.clear()  # one volume after the other
        priors._warped[key] = [
            ants.apply_transforms(
                fixed=image,
                moving=_to_ants(prior, prior.data),
                transformlist=found["fwdtransforms"],
            )
            for prior in priors.maps
        ]
    return priors._warped[key]
