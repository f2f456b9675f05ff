"""The protocol of a comparison: which volumes, how they are measured, which part is scored.

An HR volume is cut (``crop``), measured by the scanner model with voxels k times as large, and
brought back to its own grid by every method. Grids are aligned: both span the same outer faces.
Where a size does not divide, n voxels become round(n / k), half up, and the span is kept, so
that the true scale along that axis is the ratio of the two sizes; rows hold it.

``cubic-corner`` is the protocol of the published ArSSR script instead (Wu et al. 2023): the LR
volume is cubic interpolation at points that run from the first to the last voxel's *centre*
(``scipy.ndimage.zoom``), and yet is taken for one that spans the outer faces. Every method then
works on a picture that is stretched by up to (k - 1)/2 voxels towards its borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.choices import ScannerKind
from napari_arssr.degradation import ScannerModel, with_noise
from napari_arssr.errors import FileError, UsageError
from napari_arssr.evaluation.methods import Case, Measurement, name_and_source, scale_text
from napari_arssr.evaluation.rows import counted
from napari_arssr.interpolation import spline_matrix
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Box, Grid, Triple, Volume, as_triple

__all__ = [
    "CORNER",
    "CornerAligned",
    "Dataset",
    "Prepared",
    "factors_of",
    "foreground",
    "make_case",
    "parse_dataset",
    "parse_datasets",
    "parse_scanner",
    "prepare",
    "row_name",
]

Mask = npt.NDArray[np.bool_]

CORNER = "cubic-corner"
"""The published protocol's scanner model."""

_HEAD = 0.1  # of the range: what is brighter is no background, where that is not 0
_BACKGROUND = 0.5  # share of other voxels beyond which the volume is not skull-stripped
_RINGING = 0.2  # of the largest value: a cubic spline undershoots a step by 0.13 of its height
_MOSTLY = 0.08  # of the lowest value; of z-scores in a million voxels their median is 0.14
_NEXT_WAVE = 0.3  # of that: the spline's waves decay by 2 - sqrt(3), 0.27, a voxel
_THICK = 2.0  # times the finest voxel side
_SAME_PLACE = 0.01  # voxels


@dataclass(frozen=True)
class CornerAligned(ScannerModel):
    """Cubic interpolation from first to last voxel centre: the published, misaligned protocol."""

    kind: ScannerKind = "cubic"

    @property
    def text(self) -> str:
        """What :func:`parse_scanner` makes it of again."""
        return CORNER

    def matrix(self, high: int, low: int) -> npt.NDArray[np.float32]:
        """The measurement along one axis, (low, high)."""
        if high == low:
            return np.eye(high, dtype=np.float32)
        return spline_matrix(np.linspace(0, high - 1, low), high)


def parse_scanner(text: str) -> ScannerModel:
    """``gaussian``, ``slice-profile:1.2``, ``kspace``, ``cubic`` or ``cubic-corner``.

    Raises
    ------
    UsageError
        If there is no such model.
    """
    if text == CORNER:
        return CornerAligned()
    return ScannerModel.parse(text)


@dataclass(frozen=True)
class Dataset:
    """HR volumes under one name, and the folders among what was named that hold none."""

    name: str
    files: tuple[Path, ...]
    empty: tuple[Path, ...] = ()


def parse_dataset(text: str) -> Dataset:
    """``[NAME=]FOLDER`` or ``[NAME=]FILE``; the folder's own name by default.

    Raises
    ------
    FileError
        If there is no such folder or file.
    """
    name, source = name_and_source(text)
    path = Path(source)
    if io.is_folder(path):
        files = tuple(io.volumes_in(path))
        return Dataset(name or path.resolve().name, files, () if files else (path,))
    if not path.exists():
        raise FileError(f"{path} does not exist; check its name.")
    return Dataset(name or io.beside(path.resolve()).name, (path,))


def parse_datasets(texts: Sequence[str]) -> list[Dataset]:
    """Several, those of one name brought together.

    Raises
    ------
    FileError
        As :func:`parse_dataset`.
    UsageError
        If two folders would go by one name that nobody gave, two files of one data set have the
        same name, or there is no volume at all.
    """
    found: dict[str, list[Path]] = {}
    empty: dict[str, list[Path]] = {}
    unnamed: dict[str, Path] = {}
    for text in texts:
        dataset = parse_dataset(text)
        if not name_and_source(text)[0]:
            folder = (*dataset.empty, *map(io.beside, dataset.files))[0]
            other = unnamed.setdefault(dataset.name, folder)
            if other.resolve() != folder.resolve():
                raise UsageError(
                    f"{other} and {folder} would both be the data set {dataset.name!r}; give one "
                    f"another name: NAME={folder}."
                )
        found.setdefault(dataset.name, []).extend(dataset.files)
        empty.setdefault(dataset.name, []).extend(dataset.empty)
    if not any(found.values()):
        folders = [str(path) for paths in empty.values() for path in paths]
        where = "this folder" if len(folders) == 1 else "these folders"
        raise UsageError(f"{', '.join(folders)}: there is no volume in {where}.")
    for name, files in found.items():
        known: dict[str, Path] = {}
        for path in files:
            called = io.name_of(path)
            if called in known:
                raise UsageError(
                    f"{known[called]} and {path} are both {called} of the data set {name!r}; "
                    "rows could not tell them apart, so give one another data set: NAME=FILE."
                )
            known[called] = path
    return [Dataset(name, tuple(files), tuple(empty[name])) for name, files in found.items()]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An HR volume ready to be measured.

    Parameters
    ----------
    dataset : str
    path : path
    sha256 : str
        Of the file.
    volume : Volume
        float32, cut.
    mask : (z, y, x) array
        Of the cut volume: where metrics "inside the mask" look.
    mask_source : str
        ``auto``, or ``sha256:…`` of a mask's file.
    whole : Grid
        Before it was cut, and the part that is left.
    box : Box
    channel : int, optional
        Of its file, which has several.
    """

    dataset: str
    path: Path
    sha256: str
    volume: Volume
    mask: Mask
    mask_source: str
    whole: Grid
    box: Box
    channel: int | None = None

    @property
    def name(self) -> str:
        """How rows call it: as its file, and a channel of one after it as well."""
        return row_name(self.path, self.channel)


def row_name(path: Path, channel: int | None) -> str:
    """How rows call a volume, or a channel of it: ``cells_channel1.tif``."""
    name = io.name_of(path)
    if channel is None:
        return name
    stem = io.without_suffix(name)
    return f"{stem}_channel{channel}{name[len(stem) :]}"


def prepare(
    dataset: str,
    path: Path,
    *,
    masks: Path | None = None,
    crop: int | None = None,
    channel: int | None = None,
) -> Prepared:
    """Read a reference and its mask.

    Parameters
    ----------
    dataset : str
    path : path
        Of an HR volume.
    masks : path, optional
        A folder with a mask for each volume, under the volume's own name; else the mask is
        the volume's :func:`foreground`.
    crop : int, optional
        Cut to the mask's bounding box and this many voxels around it.
    channel : int, optional
        Which channel of a stack that has several.

    Raises
    ------
    UsageError, FileError
        If the volume is not one that can be scored, or its mask is missing, empty or elsewhere.
    """
    volume = io.read(path, channel=channel)
    if volume.data.ndim != 3:
        raise UsageError(f"{path} has {volume.frames} frames; score each in a file of its own.")
    if io.is_label_map(volume):
        raise UsageError(f"{path}: its voxels are labels, not intensities; there is no scan.")
    if volume.data.dtype.kind not in "iuf":
        raise UsageError(f"{path} holds {volume.data.dtype} and not real numbers.")
    data = volume.data.astype(np.float32)
    wrong = int(np.count_nonzero(~np.isfinite(data)))
    if wrong:
        raise UsageError(f"{path}: not finite in {counted(wrong, 'voxel')}; fill them first.")
    if data.min() == data.max():
        raise UsageError(f"{path}: every voxel is {data.flat[0]:g}; there is nothing to score.")
    source = "auto"
    if masks is None:
        mask = foreground(data)
    else:
        mask, source = _read_mask(masks, path, volume.grid)
    if not mask.any():
        raise UsageError(f"{path}: its mask is empty; give masks of your own.")
    box = volume.grid.box
    if crop is not None:
        box = Box.around(mask).grown(crop, volume.grid.shape)
    cut = replace(volume, data=data).crop(box)
    cut = replace(cut, data=np.ascontiguousarray(cut.data))
    if cut.data.min() == cut.data.max():
        raise UsageError(f"{path}: it is the same everywhere around its mask.")
    return Prepared(
        dataset,
        path,
        io.content_sha256(path),
        cut,
        np.ascontiguousarray(mask[box.slices]),
        source,
        volume.grid,
        box,
        channel,
    )


def foreground(data: npt.NDArray[np.float32]) -> Mask:
    """Where a volume is not background.

    Above 0 where that is at most half of it, as in skull-stripped brains. Values that are below 0
    by less than a fifth of the largest, and most of them by far less than the lowest, are ringing,
    as resampling by splines leaves it, and above 0 its next wave is no brain either. With other
    values below 0, as of z-scores, what differs from the commonest value, where at least half of
    it has that. Else above a tenth of the range.
    """
    lowest = float(data.min())
    ringing = lowest >= -_RINGING * float(data.max())
    if lowest < 0 and ringing:
        ringing = float(np.median(data[data < 0])) > _MOSTLY * lowest
    if ringing:
        mask: Mask = data > _NEXT_WAVE * max(-lowest, 0.0)
    else:
        values, counts = np.unique(data, return_counts=True)
        mask = data != values[counts.argmax()]
    if mask.mean() > _BACKGROUND:
        mask = Normalizer.fit(data).normalize(data) > _HEAD
    return mask


def _read_mask(folder: Path, path: Path, grid: Grid) -> tuple[Mask, str]:
    name = io.name_of(path)
    candidates = [folder / name, *(folder / f"{io.stem(name)}{s}" for s in io.SUFFIXES)]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise FileError(f"{path}: its mask is missing, there is no {candidates[0]}.")
    mask = io.read(found)
    if mask.data.shape != grid.shape:
        raise UsageError(
            f"{found} has {_sizes(mask.data.shape)} voxels and {path.name} {_sizes(grid.shape)}: "
            "bring the mask to its volume's grid."
        )
    moved = grid.departure(mask.grid.affine)
    if moved > _SAME_PLACE:
        raise UsageError(
            f"{found} does not lie on {path.name}, its corners are up to {moved:.3g} voxels away: "
            "bring the mask to its volume's grid."
        )
    wrong = int(np.count_nonzero(~np.isfinite(mask.data)))
    if wrong:  # neither inside nor outside
        raise UsageError(f"{found}: not finite in {counted(wrong, 'voxel')}; fill them first.")
    return np.asarray(mask.data != 0), f"sha256:{io.content_sha256(found)[:16]}"


def factors_of(
    prepared: Prepared, scale: float | Sequence[float], *, keep_thick: bool = False
) -> Triple:
    """HR voxels per LR voxel along each axis, as they are measured.

    Parameters
    ----------
    prepared : Prepared
    scale : float or three floats
        As it is asked for, (z, y, x), at least 1.
    keep_thick : bool
        Whether axes whose voxels are more than twice as long as the finest are not measured
        again: thick slices are no reference for thin ones.

    Raises
    ------
    UsageError
        If a scale is below 1, or leaves every axis as it is.
    """
    asked = as_triple(scale, "scale")
    if min(asked) < 1:
        raise UsageError(f"A scale is at least 1, not {scale_text(asked)} (i x j x k).")
    z, y, x = asked
    if keep_thick:
        spacing = np.array(prepared.volume.spacing)
        z, y, x = np.where(spacing > _THICK * spacing.min(), 1.0, asked).tolist()
    grid = prepared.volume.grid
    if grid.scaled([1 / k for k in (z, y, x)]).shape == grid.shape:
        raise UsageError(
            f"{prepared.path}: scale {scale_text((z, y, x))} (i x j x k) leaves its voxels as they "
            "are."
        )
    return z, y, x


def make_case(prepared: Prepared, measurement: Measurement) -> Case:
    """Measure a reference.

    Parameters
    ----------
    prepared : Prepared
    measurement : Measurement
        With the factors that :func:`factors_of` gives.
    """
    volume = prepared.volume
    grid = volume.grid.scaled([1 / k for k in measurement.factors])
    low = measurement.scanner.measure(volume, grid)
    draws = np.random.default_rng(measurement.seed)
    data = with_noise(low.data, volume.data, measurement.noise, draws)
    low = replace(low, data=data, name=prepared.name)
    return Case(low, volume.grid, measurement, prepared.name, prepared.whole, prepared.box)


def _sizes(shape: Sequence[int]) -> str:
    return " × ".join(map(str, reversed(shape)))
