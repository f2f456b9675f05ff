"""NIfTI-1 and NIfTI-2.

nibabel's header classes give the fields and the affines. The checks are made here, because
nibabel mends silently what it should not (a voxel size of 0 becomes 1), and so is the reading
of voxels, because a file that is cut off must be noticed here.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import FileError, UsageError
from napari_arssr.io.casting import real_dtype, real_values
from napari_arssr.io.origin import ALIGNED, Layout, Origin
from napari_arssr.io.paths import KNOWN, files_of
from napari_arssr.io.stored import StoredArray, StoredImage
from napari_arssr.io.troubles import closing, cut_off, not_real
from napari_arssr.volume import Grid, Volume, check_frame

__all__ = ["DTYPES", "LARGEST_EXPANSION", "provenance", "read", "start"]

DTYPES: dict[int, np.dtype[Any]] = {
    2: np.dtype("u1"),
    4: np.dtype("i2"),
    8: np.dtype("i4"),
    16: np.dtype("f4"),
    64: np.dtype("f8"),
    256: np.dtype("i1"),
    512: np.dtype("u2"),
    768: np.dtype("u4"),
    1024: np.dtype("i8"),
    1280: np.dtype("u8"),
}
"""Number types by NIfTI's code."""

_REFUSED = {
    1: "boolean (1 bit a voxel)",
    32: "complex",
    128: "RGB",
    1536: "float128",
    1792: "complex",
    2048: "complex",
    2304: "RGBA",
}
_MILLIMETRES = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
_SECONDS = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}

_COMMENT = 6  # code of the header extension that is plain text
_MOST_COMMENTS = 1 << 20  # bytes
_LARGEST_IN_1 = 32767  # the largest size that NIfTI-1 can count

# Voxels. No qform holds a shear, and its three float32 numbers hold some rotations by half a
# turn and a little only to 3e-4 radians, which is a tenth of a voxel at the end of a brain.
# Then the sform alone says where the voxels are.
_QFORM_TOLERANCE = 0.01

# An upsampled brain (float32) shrinks to 78 % at level 1, 46 MB/s; to 76 % at level 6, 32 MB/s,
# and no further at level 9, 6 MB/s; as int16 to 51 % at 85 MB/s, and to 50.5 % at 40 MB/s.
_COMPRESSION = 1

LARGEST_EXPANSION = 1032
"""No deflate stream expands further: only a broken or cut-off file asks for more."""

_CHUNK = 1 << 24

_Array = npt.NDArray[Any]
_Header = Any  # nibabel's, whose methods carry no types


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where its name ends in ``.gz``."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if path.name.lower().endswith(".gz"):
            if not zipped:
                raise FileError(
                    f"{path} is not gzip-compressed though its name ends in .gz; rename it if it "
                    "is a plain .nii, or copy it again."
                )
            with gzip.GzipFile(fileobj=file) as stream:
                yield cast(BinaryIO, stream)
        elif zipped:
            raise FileError(f"{path} is gzip-compressed; rename it to {path.name}.gz.")
        else:
            yield file


def read(path: Path, most: int | None = None, frame: int | None = None) -> Volume:
    """Read one image; see :func:`napari_arssr.io.read`."""
    image = files_of(path)[0]
    header, offset, comments = _head(path)
    # All that the header can be refused for comes before the voxels, which may take long.
    shape = _shape(path, header)
    frames = shape[3] if len(shape) == 4 else 1
    if frame is not None:
        check_frame(path.name, frame, frames)
    dtype = _dtype(path, header)
    slope, intercept = _scale_factors(path, header)
    affine, form_code = _affine(path, header, (shape[0], shape[1], shape[2]))
    data: Any  # an array, or what reads one
    real = real_dtype(dtype, slope, intercept)
    with _opened(image) as file:
        _check_size(image, file, offset, math.prod(shape) * dtype.itemsize)
        last = frame in (None, frames - 1)
        if frame is not None:
            shape = shape[:3]
            offset += frame * math.prod(shape) * dtype.itemsize
        if most is None or math.prod(shape) * real.itemsize <= most:
            stored = _voxels(image, file, shape[::-1], dtype, offset, last=last)
            data = real_values(stored, slope, intercept)
        else:
            convert = partial(real_values, slope=slope, intercept=intercept)
            data = StoredArray(
                StoredImage(
                    image, shape[::-1], stored=dtype, offset=offset, dtype=real, convert=convert
                )
            )
    series = len(shape) == 4
    return Volume(
        data,
        affine,
        time_step=_time_step(header) if series else 0.0,
        time_start=_time_start(header) if series else 0.0,
        name=path.name,
        metadata={
            "origin": Origin(
                format="NIfTI-2" if int(header["sizeof_hdr"]) == 540 else "NIfTI-1",
                dtype=dtype.newbyteorder("="),
                slope=slope,
                intercept=intercept,
                form_code=form_code,
                qform=_other_form(header, Grid((shape[2], shape[1], shape[0]), affine), form_code),
                intent=(
                    int(header["intent_code"]),
                    (
                        float(header["intent_p1"]),
                        float(header["intent_p2"]),
                        float(header["intent_p3"]),
                    ),
                    _text(header["intent_name"]),
                ),
                display_range=(float(header["cal_min"]), float(header["cal_max"])),
                description=_text(header["descrip"]),
                provenance=comments,
            )
        },
    )


def provenance(path: Path) -> str:
    """What the comment extensions say of how an image was made; its voxels are not read."""
    return _head(path)[2]


def _head(path: Path) -> tuple[_Header, int, str]:
    """Header, byte at which the voxels begin, comments."""
    image, header_path = files_of(path)[0], files_of(path)[-1]
    single = image == header_path
    with _opened(header_path) as file:
        header = _header(path, file.read(540), single=single)
        offset = _data_offset(path, header, single=single)
        return header, offset, _comments(file, header, offset if single else None)


def _header(path: Path, head: bytes, *, single: bool) -> _Header:
    """The header as it stands, unmended."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if len(head) < 348:
        raise FileError(
            f"{path} is cut off or no image: a NIfTI header has at least 348 bytes, it has "
            f"{len(head)}; copy or export it again."
        )
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", head[:4])
        if size not in (348, 540):
            continue
        magic = head[344:348] if size == 348 else head[4:8]
        if magic not in (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"):
            if size == 540:
                continue
            raise FileError(
                f"{path} is an Analyze image, which does not say left from right; convert it to "
                "NIfTI with a program that knows where it is from."
            )
        if (magic[1:2] == b"+") != single:
            raise FileError(
                f"{path} says that its voxels are in "
                + ("another file (.img); rename it to .hdr." if single else
                   "the same file; rename it to .nii.")
            )  # fmt: skip
        if len(head) < size:
            break
        kind: Any = Nifti1Header if size == 348 else Nifti2Header
        return kind(head[:size], endianness=order, check=False)
    raise FileError(f"{path} is not a NIfTI image, whatever its name says; convert it to {KNOWN}.")


def _data_offset(path: Path, header: _Header, *, single: bool) -> int:
    """Where the voxels begin."""
    offset = float(header["vox_offset"])
    least = int(header["sizeof_hdr"]) + 4 if single else 0
    if offset == 0:
        return least
    if not least <= offset < 2**62:
        raise FileError(
            f"{path} has a broken header: its voxels would begin at byte {offset:g}; "
            "export it again."
        )
    return int(offset)


def _comments(file: BinaryIO, header: _Header, end: int | None) -> str:
    """Text of the comment extensions; other kinds and broken ones are passed over."""
    # Not nibabel's own parser: it stops at a broken extension, and a text that nobody needs
    # is no reason to refuse a volume.
    start = int(header["sizeof_hdr"])
    file.seek(start)
    data = file.read(_MOST_COMMENTS if end is None else min(end - start, _MOST_COMMENTS))
    if data[:1] in (b"", b"\0"):
        return ""
    texts, at = [], 4
    while at + 8 <= len(data):
        size, code = struct.unpack(f"{header.endianness}ii", data[at : at + 8])
        if size < 8 or at + size > len(data):
            break
        if code == _COMMENT:
            texts.append(data[at + 8 : at + size].rstrip(b"\0").decode("utf-8", "replace"))
        at += size
    return "\n".join(texts)


def _shape(path: Path, header: _Header) -> tuple[int, ...]:
    """Sizes (x, y, z) or (x, y, z, t)."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise FileError(f"{path} has a broken header: {dim[0]} axes; export it again.")
    shape = dim[1 : dim[0] + 1]
    while len(shape) > 3 and shape[-1] in (0, 1):  # 0: some programs leave unused sizes unset
        shape.pop()
    text = "×".join(str(n) for n in shape)
    if len(shape) < 3:
        raise FileError(f"{path} is {len(shape)}D ({text}), not 3D; give a volume with slices.")
    if min(shape) < 1:
        raise FileError(f"{path} has a broken header: a size of {text}; export it again.")
    if len(shape) > 4:
        raise FileError(
            f"{path} has {len(shape)} axes ({text}), more than x, y, z and time; split it into "
            "3D or 4D files."
        )
    return tuple(shape)


def _dtype(path: Path, header: _Header) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in DTYPES:
        raise not_real(path, _REFUSED.get(code, f"of the unknown data type {code}"))
    return DTYPES[code].newbyteorder(header.endianness)


def _voxels(
    path: Path,
    file: BinaryIO,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    offset: int,
    *,
    last: bool,
) -> _Array:
    """Read an array and, if it is the last in a compressed file, its checksum behind it."""
    need = math.prod(shape) * dtype.itemsize
    zipped = isinstance(file, gzip.GzipFile)
    array = np.empty(shape, dtype)
    raw = memoryview(cast(Any, array.reshape(-1).view(np.uint8)))
    file.seek(offset)
    have = 0
    while have < need:
        count = file.readinto(raw[have : have + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise cut_off(path, need, have)
        have += count
    while last and zipped and file.read(_CHUNK):
        pass
    return array


def _check_size(path: Path, file: BinaryIO, offset: int, need: int) -> None:
    """See that a file is large enough for its voxels, as far as that shows from outside."""
    size = path.stat().st_size
    zipped = isinstance(file, gzip.GzipFile)
    if offset + need > (size * LARGEST_EXPANSION if zipped else size):
        raise cut_off(path, need, None if zipped else max(size - offset, 0))


def _scale_factors(path: Path, header: _Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise FileError(
            f"{path} has the scale factors {slope:g} and {intercept:g}; correct its header "
            "(scl_inter), or export it again."
        )
    return slope, intercept


def _affine(
    path: Path, header: _Header, shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.float64], int]:
    """The affine in millimetres and its form code; sform, else qform, else voxel sizes."""
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if sform <= 0 and not all(math.isfinite(size) and size > 0 for size in sizes):
        raise FileError(
            f"{path} has voxel sizes of {' × '.join(f'{size:g}' for size in sizes)}; correct its "
            "header (pixdim), or export it again."
        )
    if sform > 0:
        affine, code = header.get_sform(), sform
    elif qform > 0:
        header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # the standard: 0 means 1
        try:
            affine, code = header.get_qform(), qform
        except ValueError as error:  # no unit quaternion
            raise FileError(
                f"{path} has a qform that is no rotation ({error}); correct its header, or "
                "export it again."
            ) from None
    else:
        affine, code = header.get_base_affine(), 0
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    try:
        grid = Grid(shape[::-1], affine).in_millimetres(unit)
    except UsageError as error:
        form = "sform" if sform > 0 else "qform"
        raise FileError(
            f"{path} cannot be placed by its {form}. {error} Correct its header, or export it "
            "again."
        ) from None
    return grid.affine, _known_code(code)


def _known_code(code: int) -> int:
    return code if code <= 5 else ALIGNED


def _other_form(
    header: _Header, grid: Grid, form_code: int
) -> tuple[int, tuple[tuple[float, ...], ...]] | None:
    """The qform beside an sform of another place or code, as :class:`Origin` holds it."""
    from nibabel.spatialimages import HeaderDataError

    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return None
    code = _known_code(int(header["qform_code"]))
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # the standard: 0 means 1
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    try:
        affine = Grid(grid.shape, header.get_qform()).in_millimetres(unit).affine
    except (ValueError, HeaderDataError, UsageError):  # broken, and the sform places the volume
        return None
    if code == form_code and grid.departure(affine) <= _QFORM_TOLERANCE:
        return None
    between = affine @ np.linalg.inv(grid.affine)
    return code, tuple(tuple(row) for row in between.tolist())


def _time_step(header: _Header) -> float:
    seconds = _seconds(header, header["pixdim"][4])
    return seconds if seconds > 0 else 0.0


def _time_start(header: _Header) -> float:
    return _seconds(header, header["toffset"])


def _seconds(header: _Header, value: Any) -> float:
    """A time in the header's unit; 0 where it is none."""
    # Other codes count hertz, ppm or radians: frames, but no time.
    seconds = float(value) * _SECONDS.get(int(header["xyzt_units"]) & 56, 0.0)
    return seconds if math.isfinite(seconds) else 0.0


def _text(value: Any) -> str:
    """A fixed-width field up to its first zero byte."""
    return bytes(value.tobytes()).split(b"\0")[0].decode("utf-8", "replace").strip()


def start(temporary: Sequence[Path], layout: Layout, stack: ExitStack) -> BinaryIO:
    """Begin an image: a file, closed by ``stack``, that takes the voxels from here on.

    ``temporary`` is one name, or two for voxels and header.
    """
    header = _new_header(layout, pair=len(temporary) == 2)
    for name in reversed(temporary):
        raw = stack.enter_context(closing(name.open("xb")))
        if name is not temporary[0]:
            header.write_to(raw)
            raw.flush()
            os.fsync(raw.fileno())
    if len(temporary) == 2:
        return raw
    file = raw
    if temporary[0].name.endswith(".gz"):
        # Without name and time inside, equal volumes give equal files.
        packed = gzip.GzipFile("", "wb", _COMPRESSION, raw, 0)
        file = stack.enter_context(closing(cast(BinaryIO, packed)))
    header.write_to(file)
    return file


def _new_header(layout: Layout, *, pair: bool) -> _Header:
    """A NIfTI-1 header, or NIfTI-2 where a size demands it."""
    from nibabel.nifti1 import Nifti1Extension, Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    grid, origin = layout.grid, layout.origin
    sizes = [*grid.shape[::-1], *([layout.frames] if layout.frames > 1 else [])]
    kinds: Any = (Nifti1Header, Nifti1PairHeader)
    if max(sizes) > _LARGEST_IN_1:
        kinds = (Nifti2Header, Nifti2PairHeader)
    header = kinds[pair](endianness=sys.byteorder)
    header.set_data_dtype(layout.dtype)
    # The field itself: nibabel's setter has special shapes for FreeSurfer's surfaces.
    header["dim"] = [len(sizes), *sizes, *[1] * (7 - len(sizes))]
    header["pixdim"][4] = layout.time_step if layout.frames > 1 else 0
    header["toffset"] = layout.time_start if layout.frames > 1 else 0
    header.set_xyzt_units("mm", "sec")
    code = origin.form_code if 1 <= origin.form_code <= 5 else ALIGNED
    header.set_sform(grid.affine, code)
    _set_qform(header, grid, code, origin)
    if origin.form_code == 0 and grid == Grid(grid.shape, header.get_base_affine()):
        # As little known as in the input, and the voxel sizes say all of it.
        header.set_qform(None, 0)
        header.set_sform(None, 0)
    header["scl_slope"], header["scl_inter"] = layout.slope, layout.intercept
    header["intent_code"], parameters, name = origin.intent
    header["intent_p1"], header["intent_p2"], header["intent_p3"] = parameters
    header["intent_name"] = _shortened(name, 15)
    header["cal_min"], header["cal_max"] = origin.display_range
    header["descrip"] = _shortened(layout.description, 79)
    if layout.provenance:
        comment: Any = Nifti1Extension
        header.extensions.append(comment("comment", layout.provenance.encode()))
    return header


def _set_qform(header: _Header, grid: Grid, code: int, origin: Origin) -> None:
    """The qform, if it can say its affine, and the voxel sizes, which all readers look at."""
    placed = grid
    if origin.qform is not None:
        # What was done to the voxels since is the same in either world.
        code, between = origin.qform
        placed = Grid(grid.shape, np.array(between) @ grid.affine)
    header.set_qform(placed.affine, code)
    if placed.departure(header.get_qform()) > _QFORM_TOLERANCE:
        header.set_qform(grid.affine, code)  # the sform's voxel sizes: it alone places the voxels
        header.set_qform(None, 0)


def _shortened(text: str, size: int) -> bytes:
    """At most ``size`` bytes of UTF-8, no character cut in two."""
    return text.encode()[:size].decode(errors="ignore").encode()
