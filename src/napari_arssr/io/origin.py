"""What a file says besides voxels and affine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.io.channels import Channel
from napari_arssr.io.paths import stem
from napari_arssr.lazy import is_loaded, read
from napari_arssr.volume import Grid, Volume

__all__ = [
    "ALIGNED",
    "LABEL",
    "LABEL_INTENTS",
    "PROGRAM",
    "Layout",
    "Origin",
    "as_labels",
    "channel_of",
    "is_label_map",
    "is_record",
    "origin_of",
    "provenance_of",
    "record_of",
]

PROGRAM = "napari-arssr"
"""How the name of a record begins that this program leaves in what it makes; "fit" or "simulate"
may follow."""

LABEL = 1002
"""NIfTI's intent of a label map: every voxel holds the number of a structure."""

LABEL_INTENTS = (LABEL, 1003)
"""The intents of label maps; 1003 is one of NeuroNames' numbers."""

# BIDS (dseg, mask), FreeSurfer (aseg, aparc, wmparc) and what people write; labelled and segment
# are words of other things.
_LABEL_NAMES = re.compile(
    r"(?<![a-z])(?:[da]?seg|segmentations?|labels?|label[-_]?maps?|(?:a|wm)?parc(?:ellations?)?"
    r"|masks?)(?![a-z])"
)
_ALIKE = 0.3  # of neighbours at least have the same label; in scans a few per cent
_LARGEST_LABEL = 2**31 - 1
_BINARY = 2  # values of a mask, however small its parts
_FEW = 0.05  # of all voxels: points, or thin lines
_PLANES, _PLANES_IN_A_FILE = 16, 4  # that are looked at

ALIGNED = 2
"""Form code of an affine that came from somewhere, though not from a scanner."""


@dataclass(frozen=True)
class Origin:
    """What a volume's file said besides voxels and affine; ``volume.metadata["origin"]``.

    Parameters
    ----------
    format : str
        ``"NIfTI-1"``, ``"NIfTI-2"``, ``"TIFF"``, ``"OME-Zarr"``, or empty for a volume that no
        file holds.
    dtype : numpy.dtype, optional
        Number type of the stored voxels, in native byte order.
    slope, intercept : float
        Real value = stored value · slope + intercept.
    form_code : int
        What the affine's space is, NIfTI's code: 1 scanner, 2 aligned, 3 Talairach, 4 MNI152,
        5 another template, 0 not stated.
    qform : tuple, optional
        Where the file's qform says something else than its sform, which is the affine: the
        qform's code, and the 4×4 matrix from the affine's world to the qform's, row by row.
    intent : tuple
        NIfTI's intent: code, three parameters, name.
    channel : Channel, optional
        Which of the file's channels the volume is; None where it has one only.
    display_range : tuple of two floats
        Values to show as black and white (``cal_min``, ``cal_max``); (0, 0) when not stated.
    states_spacing : bool
        Whether the file said how large its voxels are; many a TIFF does not.
    description : str
        What made the volume, in short: NIfTI's ``descrip``, the first line of ImageJ's "Info", or
        OME-Zarr's metadata of that name, if this program wrote them.
    provenance : str
        The same at length: the comment extensions of a NIfTI header, the other lines, or the
        metadata.
    """

    format: str = ""
    dtype: np.dtype[Any] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    form_code: int = ALIGNED
    qform: tuple[int, tuple[tuple[float, ...], ...]] | None = None
    intent: tuple[int, tuple[float, float, float], str] = (0, (0.0, 0.0, 0.0), "")
    channel: Channel | None = None
    display_range: tuple[float, float] = (0.0, 0.0)
    states_spacing: bool = True
    description: str = ""
    provenance: str = ""


def origin_of(volume: Volume) -> Origin:
    """What the volume's file said, or the defaults where there is none."""
    origin = volume.metadata.get("origin")
    return origin if isinstance(origin, Origin) else Origin()


def as_labels(origin: Origin) -> Origin:
    """The same, told to be a label map's, whose name may have said so."""
    if origin.intent[0] in LABEL_INTENTS:
        return origin
    return replace(origin, intent=(LABEL, (0.0, 0.0, 0.0), ""))


def channel_of(volume: Volume) -> int | None:
    """Which of its file's channels the volume is, from 0; None where the file has one only."""
    channel = origin_of(volume).channel
    return None if channel is None else channel.number


def provenance_of(volume: Volume) -> str:
    """With which settings this program made the volume, as JSON; empty for any other volume.

    As the command line writes it into the header of what it makes.
    """
    # The last step only, not what made its input: a fit starts a record of its own, so where
    # both are there, the fitted volume was upsampled.
    for key, command in (("upsampling", ""), ("fit", "fit")):
        if key in volume.metadata:
            return record_of(volume.metadata[key], command)
    return ""


def record_of(settings: Mapping[str, Any], command: str = "") -> str:
    """The record that a result's header carries: JSON of what made it with which settings.

    ``command`` is empty for ``upsample``, else ``"fit"`` or ``"simulate"``.
    """
    title = f"{PROGRAM} {command}".rstrip()
    return json.dumps({title: settings}, sort_keys=True, default=str)


def is_record(text: str) -> bool:
    """Whether a header's text is such a record."""
    try:
        record = json.loads(text)
    except ValueError:
        return False
    return isinstance(record, dict) and any(name.startswith(PROGRAM) for name in record)


def is_label_map(volume: Volume) -> bool:
    """Whether voxels are numbers of structures rather than measurements.

    That is what the file's intent says, or its name (``dseg``, ``aseg``, ``seg``, ``label``,
    ``parc``, ``mask``) or its channel's, and its voxels do not say otherwise: all are whole
    numbers. Many programs store those as floating-point numbers. A name alone may be that of a
    scan (one with labelled blood, say): there, neighbours seldom have the same value, and more
    than a few voxels have one. Some planes of the first frame are looked at.
    """
    origin = origin_of(volume)
    stated = origin.intent[0] in LABEL_INTENTS
    names = [stem(volume.name), origin.channel.name if origin.channel else ""]
    if not stated and not any(_LABEL_NAMES.search(name.lower()) for name in names):
        return False
    kind = volume.data.dtype.kind
    if stated and kind in "iu":
        return True
    data: Any = volume.frame(0).data
    step = -(-data.shape[0] // (_PLANES if is_loaded(data) else _PLANES_IN_A_FILE))
    looked = range(step // 2, data.shape[0], step)
    planes = [read(data, volume.name, (slice(z, z + 1),))[0] for z in looked]
    if kind not in "iub" and not all(map(_are_labels, planes)):
        return False
    return stated or _are_pieces(planes)


def _are_labels(plane: npt.NDArray[Any]) -> bool:
    return bool(((np.rint(plane) == plane) & (np.abs(plane) <= _LARGEST_LABEL)).all())


def _are_pieces(planes: Sequence[npt.NDArray[Any]]) -> bool:
    """Whether whole numbers lie as those of structures do: in pieces, few, or a mask's."""
    values: list[Any] = []
    pairs, alike = np.zeros(2), np.zeros(2)  # along y and x
    for plane in planes:
        _add_values(values, plane)
        along = ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1]))
        for axis, (one, other) in enumerate(along):
            inside = (one != 0) | (other != 0)
            pairs[axis] += np.count_nonzero(inside)
            alike[axis] += np.count_nonzero(inside & (one == other))
    there = sum(map(np.count_nonzero, planes))
    few = len(values) <= _BINARY or there < _FEW * sum(plane.size for plane in planes)
    return few or bool((alike >= _ALIKE * pairs).any())


def _add_values(values: list[Any], plane: npt.NDArray[Any]) -> None:
    """Note values that a plane has, as long as it matters which."""
    rest = plane
    for value in values:
        rest = rest[rest != value]
    while rest.size and len(values) <= _BINARY:
        values.append(rest.flat[0])
        rest = rest[rest != values[-1]]


@dataclass(frozen=True)
class Layout:
    """What is to be known of a file before its first voxel is written.

    The fields are those of :func:`napari_arssr.io.create`.
    """

    grid: Grid
    dtype: np.dtype[Any]
    frames: int = 1
    time_step: float = 0.0
    time_start: float = 0.0
    slope: float = 1.0
    intercept: float = 0.0
    description: str = ""
    provenance: str = ""
    origin: Origin = Origin()

    @property
    def size(self) -> int:
        """Bytes of all voxels."""
        return self.frames * self.grid.size * self.dtype.itemsize
