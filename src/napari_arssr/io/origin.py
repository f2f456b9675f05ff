"""What a file says besides voxels and affine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_arssr.io.paths import stem
from napari_arssr.volume import Grid, Volume

__all__ = [
    "ALIGNED",
    "LABEL",
    "LABEL_INTENTS",
    "Layout",
    "Origin",
    "is_label_map",
    "is_record",
    "origin_of",
    "provenance_of",
    "record_of",
]

# How the name of a record begins that this program leaves in what it makes; "fit" or "simulate"
# may follow.
_PROGRAM = "napari-arssr"

LABEL = 1002
"""NIfTI's intent of a label map: every voxel holds the number of a structure."""

LABEL_INTENTS = (LABEL, 1003)
"""The intents of label maps; 1003 is one of NeuroNames' numbers."""

# BIDS (dseg, mask), FreeSurfer (aseg, aparc, wmparc) and what people write.
_LABEL_NAMES = re.compile(r"(?<![a-z])(?:dseg|aseg|seg|label|a?parc|wmparc|mask(?![a-z]))")
_LARGEST_LABEL = 2**31 - 1

ALIGNED = 2
"""Form code of an affine that came from somewhere, though not from a scanner."""


@dataclass(frozen=True)
class Origin:
    """What a volume's file said besides voxels and affine; ``volume.metadata["origin"]``.

    Parameters
    ----------
    format : str
        ``"NIfTI-1"``, ``"NIfTI-2"``, ``"TIFF"``, or empty for a volume that no file holds.
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
    display_range : tuple of two floats
        Values to show as black and white (``cal_min``, ``cal_max``); (0, 0) when not stated.
    states_spacing : bool
        Whether the file said how large its voxels are; many a TIFF does not.
    description : str
        What made the volume, in short: NIfTI's ``descrip``, or the first line of ImageJ's
        "Info".
    provenance : str
        The same at length: the comment extensions of a NIfTI header, or the other lines.
    """

    format: str = ""
    dtype: np.dtype[Any] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    form_code: int = ALIGNED
    qform: tuple[int, tuple[tuple[float, ...], ...]] | None = None
    intent: tuple[int, tuple[float, float, float], str] = (0, (0.0, 0.0, 0.0), "")
    display_range: tuple[float, float] = (0.0, 0.0)
    states_spacing: bool = True
    description: str = ""
    provenance: str = ""


def origin_of(volume: Volume) -> Origin:
    """What the volume's file said, or the defaults where there is none."""
    origin = volume.metadata.get("origin")
    return origin if isinstance(origin, Origin) else Origin()


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
    title = f"{_PROGRAM} {command}".rstrip()
    return json.dumps({title: settings}, sort_keys=True, default=str)


def is_record(text: str) -> bool:
    """Whether a header's text is such a record."""
    try:
        record = json.loads(text)
    except ValueError:
        return False
    return isinstance(record, dict) and any(name.startswith(_PROGRAM) for name in record)


def is_called_label_map(volume: Volume) -> bool:
    """Whether the file's intent or its name says so; the voxels of :func:`is_label_map` too."""
    name = stem(volume.name).lower()
    return origin_of(volume).intent[0] in LABEL_INTENTS or bool(_LABEL_NAMES.search(name))


def is_label_map(volume: Volume) -> bool:
    """Whether voxels are numbers of structures rather than measurements.

    That is what the file's intent says, or its name (``dseg``, ``aseg``, ``seg``, ``label``,
    ``parc``, ``mask``), and its voxels do not say otherwise: all are whole numbers. Many
    programs store those as floating-point numbers; voxels still in a file are not looked at.
    """
    if not is_called_label_map(volume):
        return False
    if volume.data.dtype.kind in "iu":
        return True
    data: Any = volume.data
    return isinstance(data, np.ndarray) and all(
        bool(((np.rint(plane) == plane) & (np.abs(plane) <= _LARGEST_LABEL)).all())
        for plane in data.reshape(-1, *data.shape[-2:])
    )


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
