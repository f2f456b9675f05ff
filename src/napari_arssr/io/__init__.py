"""Files ⇄ :class:`~napari_arssr.volume.Volume`: NIfTI-1 and -2, TIFF stacks, OME-Zarr stores.

**NIfTI** (``.nii``, ``.nii.gz``, ``.img`` with ``.hdr``; either byte order). The affine is the
sform where the header gives one a code, else the qform, else what nibabel makes of the voxel
sizes alone: columns to the left, rows to anterior, slices to superior, centred on the origin.
Oblique and sheared affines are kept exactly. Micrometres and metres become millimetres,
milli- and microseconds become seconds; a unit that is not stated counts as mm or s. Integers
with scale factors become real values in float32, all else keeps its number type.

**TIFF** (``.tif``, ``.tiff``; ImageJ, OME and plain). ZYX or TZYX; of several channels one. Voxel
sizes come from ImageJ's or OME's metadata, else from the resolution tags, else they are 1 mm; a z
step that is not stated is the size of a pixel. ImageJ's straight-line calibration gives real
values: int16 where it only stands for a sign, else float32. TIFF knows no orientation: a stack is
placed by :meth:`~napari_arssr.volume.Grid.unoriented`, and a volume written to TIFF keeps its voxel
sizes but loses orientation and origin. A stack of one plane cannot be told from a picture, and is
refused as one.

**OME-Zarr** (``.ome.zarr``, ``.zarr``; a folder). A path names a store with one image, an image in
a store, or a level of its pyramid; of an image the finest level is read, of versions 0.1 to 0.5
and either version of zarr. Axes are told by their types; voxel sizes, place and time come from the
scale and translation of the level. Where the units of space are not stated, sizes count as
millimetres. Chunks may be packed in every way that zarr knows, but not as pickled objects. What is
written is a store of its own, of version 0.4, with a pyramid whose coarsest level has at most 256
voxels along each axis. It knows no orientation: volumes that lie otherwise than
:meth:`~napari_arssr.volume.Grid.unoriented` lose theirs, and their origin, as in TIFF.

A file or a store under its final name is always whole: it is written under a hidden name beside
it, flushed to the disk, and renamed. Commands replace no file that another program made
(:func:`~napari_arssr.io.check_output`); :func:`~napari_arssr.io.write` replaces any file, and a
store where this program wrote all of it.
"""

from __future__ import annotations

from napari_arssr.io.casting import cast
from napari_arssr.io.channels import Channel
from napari_arssr.io.content import content_sha256
from napari_arssr.io.origin import (
    LABEL,
    LABEL_INTENTS,
    Origin,
    channel_of,
    is_label_map,
    origin_of,
    provenance_of,
    record_of,
)
from napari_arssr.io.paths import (
    SUFFIXES,
    base_name,
    beside,
    check_input,
    files_of,
    is_folder,
    is_stack,
    is_store,
    is_tiff,
    known_suffix,
    name_of,
    names_store,
    result_name,
    stem,
    volumes_in,
    without_suffix,
)
from napari_arssr.io.reading import channels_of, coarser, read, stated_sizes
from napari_arssr.io.results import check_output, is_result, is_up_to_date
from napari_arssr.io.stored import StoredArray
from napari_arssr.io.writing import (
    SlabWriter,
    create,
    held_to_write,
    keeps_orientation,
    told_as_labels,
    write,
)

__all__ = [
    "LABEL",
    "LABEL_INTENTS",
    "SUFFIXES",
    "Channel",
    "Origin",
    "SlabWriter",
    "StoredArray",
    "base_name",
    "beside",
    "cast",
    "channel_of",
    "channels_of",
    "check_input",
    "check_output",
    "coarser",
    "content_sha256",
    "create",
    "files_of",
    "held_to_write",
    "is_folder",
    "is_label_map",
    "is_result",
    "is_stack",
    "is_store",
    "is_tiff",
    "is_up_to_date",
    "keeps_orientation",
    "known_suffix",
    "name_of",
    "names_store",
    "origin_of",
    "provenance_of",
    "read",
    "record_of",
    "result_name",
    "stated_sizes",
    "stem",
    "told_as_labels",
    "volumes_in",
    "without_suffix",
    "write",
]
