"""TIFF stacks: ImageJ, OME and plain ones are read, ImageJ's are written."""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import ArssrError, FileError, NoVolume
from napari_arssr.io.casting import real_dtype, real_values
from napari_arssr.io.channels import Channel, chosen
from napari_arssr.io.origin import Layout, Origin
from napari_arssr.io.stored import StoredArray, StoredImage
from napari_arssr.io.troubles import check_sizes, closing, cut_off, not_real, reading
from napari_arssr.io.units import fine_or_coarse, millimetres, seconds
from napari_arssr.volume import Grid, Triple, Volume

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = ["DTYPES", "channels", "provenance", "read", "start", "stated_sizes"]

Array = npt.NDArray[Any]

DTYPES = tuple(np.dtype(code) for code in ("u1", "u2", "i2", "f4"))
"""Number types that ImageJ knows."""

# ImageJ's calibration of voxels: its function's code ("cf") and the number types that have one.
_STRAIGHT_LINE = 0
_UNCALIBRATED = 20
_CALIBRATED = ("uint8", "uint16", "int16")
_SIGNED = -32768  # ImageJ's int16 is uint16 with this as intercept

_KEPT = 1 << 28  # bytes of planes that were unpacked


def read(path: Path, most: int | None = None, channel: int | None = None) -> Volume:
    """Read one stack, or a channel of it; see :func:`napari_arssr.io.read`."""
    with _opened(path) as tiff:
        series = _only_series(path, tiff)
        axes = _sizes(path, series)
        one = chosen(path, _channels(tiff, axes), channel)
        number = 0 if one is None else one.number
        part = tuple(number if axis == "C" else slice(None) for axis in axes)
        said = _metadata(tiff)
        slope, intercept = _calibration(path, tiff, series.dtype)
        native = series.dtype.newbyteorder("=")
        convert: Callable[[Array], Array]
        if native == np.uint16 and (slope, intercept) == (1.0, _SIGNED):
            convert, native, real = _signed, np.dtype(np.int16), np.dtype(np.int16)
            slope, intercept = 1.0, 0.0
        else:
            convert = partial(real_values, slope=slope, intercept=intercept)
            real = real_dtype(native, slope, intercept)
        size = math.prod(n for axis, n in axes.items() if axis != "C") * real.itemsize
        large = most is not None and size > most
        data: Any = None  # an array, or what reads one
        if large or one is not None:  # the planes of other channels are not read
            data = _left_in_file(path, series, axes, number, dtype=real, convert=convert)
        if data is None:
            stored = series.asarray().reshape(*axes.values())[part]
            data = np.ascontiguousarray(convert(stored))
        else:
            data = data[part] if large else np.asarray(data[part])
    if [axis for axis in axes if axis in "TZ"] == ["Z", "T"]:
        data = data.transpose(1, 0, 2, 3)
        data = np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data
    shape = data.shape[-3:]
    check_sizes(path, said.spacing, "correct them (in ImageJ: Image > Properties)")
    return Volume(
        data,
        Grid.unoriented((shape[0], shape[1], shape[2]), said.spacing).affine,
        time_step=said.time_step if data.ndim == 4 else 0.0,
        name=path.name,
        metadata={
            "origin": Origin(
                format="TIFF",
                dtype=native,
                slope=slope,
                intercept=intercept,
                states_spacing=said.states_spacing,
                channel=one,
                description=said.description,
                provenance=said.provenance,
            )
        },
    )


def _left_in_file(
    path: Path,
    series: TiffPageSeries,
    axes: Mapping[str, int],
    channel: int,
    *,
    dtype: np.dtype[Any],
    convert: Callable[[Array], Array],
) -> StoredArray | None:
    """The voxels as an array that reads what is indexed; None where no plane stands alone.

    Those of all channels, of which only that one is going to be read.
    """
    *leading, y, x = axes
    if (y, x) != ("Y", "X"):
        return None
    shape = tuple(axes.values())
    offset = series.dataoffset
    if offset is not None:
        stored = series.dtype.newbyteorder(series.keyframe.parent.byteorder)
        need = math.prod(shape) * stored.itemsize
        if (have := path.stat().st_size - offset) < need:
            raise cut_off(path, need, have)
        return StoredArray(
            StoredImage(path, shape, stored=stored, offset=offset, dtype=dtype, convert=convert)
        )
    if len(series) != math.prod(shape[:-2]):
        return None
    first = np.ravel_multi_index([channel if axis == "C" else 0 for axis in leading], shape[:-2])
    return StoredArray(_StoredPlanes(path, shape, dtype, convert, int(first)))


class _StoredPlanes:
    """The voxels of a file of compressed or scattered planes, for a :class:`StoredArray`."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        convert: Callable[[Array], Array],
        first: int,
    ) -> None:
        import tifffile

        self.name = str(path)
        self.shape = shape
        self.chunks: tuple[int, ...] = ()
        self.dtype = dtype
        self._path = path
        self._convert = convert
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Array] = OrderedDict()
        with _plainly(path):
            self._tiff = tifffile.TiffFile(path)
            # Closed with the last array that needs it, and not by chance later.
            weakref.finalize(self, self._tiff.close)
            self._plane(first)  # a way of packing that is not known here is said now

    def read(self, picks: Sequence[range]) -> Array:
        """The voxels at every combination of the indices picked; planes are read whole."""
        result = np.empty([len(pick) for pick in picks], self.dtype)
        places = np.ndindex(result.shape[:-2])
        for place, plane in zip(places, product(*picks[:-2]), strict=True):
            number = int(np.ravel_multi_index(plane, self.shape[:-2]))
            with reading(self._path), _plainly(self._path), self._lock:
                values = self._plane(number)[np.ix_(*picks[-2:])]
            result[place] = self._convert(values)
        return result

    def _plane(self, number: int) -> Array:
        """A plane of stored numbers; the last ones are kept, for one is unpacked as a whole."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        page = self._tiff.series[0][number]
        assert page is not None  # as _only_series has seen
        plane = np.asarray(page.asarray()).reshape(self.shape[-2:])
        self._kept[number] = plane
        while len(self._kept) > max(1, _KEPT // plane.nbytes):
            self._kept.popitem(last=False)
        return plane


def channels(path: Path) -> tuple[Channel, ...]:
    """The channels of a stack, one or more; its voxels are not read."""
    with _opened(path) as tiff:
        return _channels(tiff, _sizes(path, _only_series(path, tiff)))


def stated_sizes(path: Path) -> dict[str, tuple[int, float]] | None:
    """See :func:`napari_arssr.io.stated_sizes`."""
    with _opened(path) as tiff:
        axes, said = _sizes(path, _only_series(path, tiff)), _metadata(tiff)
    if not said.states_spacing or not all(0 < side < math.inf for side in said.spacing):
        return None
    sides = dict(zip("ZYX", said.spacing, strict=True))
    return {axis: (count, sides.get(axis, 0.0)) for axis, count in axes.items()}


def provenance(path: Path) -> str:
    """What ImageJ's "Info" says of how a stack was made; its voxels are not read."""
    with _opened(path) as tiff:
        return _metadata(tiff).provenance


@contextmanager
def _opened(path: Path) -> Iterator[TiffFile]:
    import tifffile

    with _plainly(path), tifffile.TiffFile(path) as tiff:
        yield tiff


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """One sentence of ours for whatever tifffile makes of a file."""
    # Whatever a broken file makes of tifffile's parser (it raises nearly everything) is one
    # thing to the user. Its log repeats in its own words what is said here.
    try:
        with _quiet():
            yield
    except (ArssrError, OSError, MemoryError):
        raise
    except Exception as error:
        if "imagecodecs" in str(error):
            raise FileError(
                f"{path} is compressed in a way that needs one more package; run "
                "`pip install imagecodecs`, or save it uncompressed."
            ) from None
        raise FileError(
            f"{path} is not a whole TIFF file ({str(error) or type(error).__name__}); copy or "
            "export it again."
        ) from None


class _Quiet(logging.Filter):
    """Lets a library say nothing in this thread for a while; others hear it as before."""

    def __init__(self, logger: str) -> None:
        super().__init__()
        self._here = threading.local()
        logging.getLogger(logger).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self._here, "quiet", False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._here.quiet = True
        try:
            yield
        finally:
            self._here.quiet = False


# What tifffile warns of is checked here and said in an error of ours.
_quiet = _Quiet("tifffile")


def _only_series(path: Path, tiff: TiffFile) -> TiffPageSeries:
    """The one image of the file, if its voxels are real numbers and all there."""
    # ImageJ and tifffile say at the front how many planes there are; elsewhere a list that is
    # cut off would only look shorter.
    if tiff.series[0].kind not in ("imagej", "shaped") and not _list_of_planes_ends(path, tiff):
        raise FileError(
            f"{path} is cut off: its list of planes leads beyond its end; copy it again."
        )
    if len(tiff.series) != 1:
        raise NoVolume(
            f"{path} holds {len(tiff.series)} images; save the one that is meant as a file of its "
            "own."
        )
    series = tiff.series[0]
    plane = series.keyframe.size
    if (told := _voxels_told(tiff)) > series.size:
        raise FileError(
            f"{path} is cut off: it tells of {told // plane} planes and {series.size // plane} can "
            "be found; copy it again."
        )
    photometric = getattr(series.keyframe.photometric, "name", "")
    kind = series.dtype.kind
    if photometric in ("RGB", "PALETTE", "CFA", "YCBCR", "CIELAB", "SEPARATED"):
        raise NoVolume(f"{path} is a colour image; save one channel as a grey stack.")
    if kind not in "iuf":
        name = "boolean" if kind == "b" else "complex" if kind == "c" else str(series.dtype)
        raise not_real(path, name)
    if series.is_multifile or any(page is None for page in series):
        raise FileError(
            f"{path} is one part of a series of OME files; save the series as one file."
        )
    return series


def _voxels_told(tiff: TiffFile) -> int:
    """How many voxels ImageJ's or tifffile's description says that there are; 0 without one.

    Where its planes are not all there, tifffile takes the file for one of those that are.
    """
    if tiff.is_imagej:
        planes = int((tiff.imagej_metadata or {}).get("images", 0))
        return planes * tiff.series[0].keyframe.size
    return math.prod((tiff.shaped_metadata or [{}])[0].get("shape", [0]))


def _list_of_planes_ends(path: Path, tiff: TiffFile) -> bool:
    """Whether the chain of image file directories ends within the file, with a 0."""
    big = tiff.is_bigtiff
    offset_field = struct.Struct(tiff.byteorder + ("Q" if big else "I"))
    count_field = struct.Struct(tiff.byteorder + ("Q" if big else "H"))
    at, tag_size = (8, 20) if big else (4, 12)
    seen = set()
    with path.open("rb") as file:
        try:
            while True:
                file.seek(at)
                (offset,) = offset_field.unpack(file.read(offset_field.size))
                if not offset:
                    return True
                if offset in seen:
                    return False
                seen.add(offset)
                file.seek(offset)
                (count,) = count_field.unpack(file.read(count_field.size))
                at = offset + count_field.size + count * tag_size
        except (struct.error, OverflowError, OSError):  # nothing there, or nowhere to be
            return False


def _sizes(path: Path, series: TiffPageSeries) -> dict[str, int]:
    """Sizes by axis, of ZYX, TZYX or ZTYX, and C wherever several channels are.

    Unnamed axes count as time and z.
    """
    sizes = [
        ("C" if axis == "S" else axis, n)  # samples of a pixel that are no colours
        for axis, n in zip(series.axes, series.shape, strict=True)
        if n > 1 or axis in "YX"
    ]
    text = "×".join(str(n) for _, n in sizes)
    names = [axis for axis, _ in sizes]
    of_one = [axis for axis in names if axis != "C"]
    if of_one[-2:] != ["Y", "X"]:
        raise NoVolume(f"{path} has axes {''.join(names)} ({text}), not planes of rows; save ZYX.")
    leading = ["?" if axis in "QI" else axis for axis in of_one[:-2]]
    if not leading and "C" in names:
        raise NoVolume(
            f"{path} is 2D with several channels ({text}), not 3D; if its channels are planes, "
            "swap the axes (in ImageJ: Image > Properties)."
        )
    if not leading:
        raise NoVolume(f"{path} is 2D ({text}), not 3D; give a stack of planes.")
    if leading == ["T"]:
        raise NoVolume(
            f"{path} is a time series of 2D images ({text}); if its frames are planes, swap the "
            "axes (in ImageJ: Image > Properties)."
        )
    if leading == ["?"]:
        leading = ["Z"]
    elif len(leading) == 2:
        given = set(leading)
        if leading[0] == "?":
            leading[0] = "Z" if leading[1] == "T" else "T"
        if leading[1] == "?":
            leading[1] = "T" if "Z" in given else "Z"
    if leading not in (["Z"], ["T", "Z"], ["Z", "T"]) or names.count("C") > 1:
        raise NoVolume(
            f"{path} has axes {''.join(names)} ({text}), more than z, y, x, time and channel; save "
            "ZYX."
        )
    known = iter([*leading, "Y", "X"])
    return {"C" if axis == "C" else next(known): n for axis, n in sizes}


def _channels(tiff: TiffFile, axes: Mapping[str, int]) -> tuple[Channel, ...]:
    """The channels of a stack of such axes, with names where the file has one for each."""
    count = axes.get("C", 1)
    if tiff.ome_metadata:
        pixels = _ome_pixels(tiff.ome_metadata)
        within = () if pixels is None else tuple(pixels)
        names = [one.get("Name", "") for one in within if _tag(one) == "Channel"]
    else:
        names = _common_labels((tiff.imagej_metadata or {}).get("Labels", ()), count)
    if len(names) != count:
        names = [""] * count
    return tuple(Channel(number, " ".join(name.split())) for number, name in enumerate(names))


def _common_labels(labels: Sequence[str], count: int) -> list[str]:
    """Of ImageJ's labels, one a plane, each channel's that its planes share and no others have."""
    by_channel = [set(labels[number::count]) for number in range(count)]  # channels come first
    common = [label for each in by_channel if len(each) == 1 for label in each]
    return common if len(set(common)) == count else []


@dataclass(frozen=True)
class _Metadata:
    """What a file says of its voxels: sizes (z, y, x) in mm, seconds between frames, origin."""

    spacing: Triple
    states_spacing: bool
    time_step: float
    description: str = ""
    provenance: str = ""


def _metadata(tiff: TiffFile) -> _Metadata:
    if tiff.ome_metadata:
        return _ome_metadata(tiff.ome_metadata)
    tags = tiff.pages.first.tags
    imagej: Mapping[str, Any] = tiff.imagej_metadata or {}
    meta = imagej or (tiff.shaped_metadata or ({},))[0]
    unit = str(meta.get("unit", "")).strip()
    scale = millimetres(unit)
    if scale is None:  # ImageJ's "pixel", or nothing: the tag may know
        scale = {2: 25.4, 3: 10.0}.get(int(tags.valueof("ResolutionUnit") or 1))
    states_spacing = scale is not None
    scale = scale or 1.0
    x, y = (_pixel_size(tags.valueof(name)) for name in ("XResolution", "YResolution"))
    # As ImageJ does: 0 says nothing, and a sign tells the order of planes, not their distance.
    z = abs(_number(meta.get("spacing"))) or x
    interval = _number(meta.get("finterval")) or (
        1 / _number(meta.get("fps")) if _number(meta.get("fps")) else 0.0
    )
    description, _, provenance = str(imagej.get("Info", "")).partition("\n")
    return _Metadata(
        (z * scale, y * scale, x * scale),
        states_spacing,
        interval if math.isfinite(interval) and interval > 0 else 0.0,
        description,
        provenance,
    )


def _calibration(path: Path, tiff: TiffFile, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Slope and intercept of ImageJ's straight line from stored numbers to real values.

    Its other functions (polynomials, logarithms, optical density) are no scale factors: voxels
    then stay as they are stored.
    """
    meta: Mapping[str, Any] = tiff.imagej_metadata or {}
    if _number(meta.get("cf", _UNCALIBRATED)) != _STRAIGHT_LINE or dtype.name not in _CALIBRATED:
        return 1.0, 0.0
    intercept, slope = _number(meta.get("c0")), _number(meta.get("c1"))
    if slope == 0 or (slope, intercept) == (1, 0):  # nothing to tell one value from another by
        return 1.0, 0.0
    if dtype.kind == "i":
        # ImageJ has no signed voxels: it adds 32768 on opening, and calibrates what that gives.
        intercept -= slope * _SIGNED
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise FileError(
            f"{path} has the calibration {intercept:g} + {slope:g} · value; correct it (in ImageJ: "
            "Analyze > Calibrate)."
        )
    return slope, intercept


def _signed(stored: npt.NDArray[np.uint16]) -> npt.NDArray[np.int16]:
    """Numbers counted from -32768, as int16: the same bits but for the highest."""
    native = stored.astype(np.uint16)
    native ^= np.uint16(-_SIGNED)
    return native.view(np.int16)


def _pixel_size(resolution: Any) -> float:
    """Units per pixel of a rational tag of pixels per unit; 1 where there is none."""
    if not resolution:
        return 1.0
    count, per = resolution
    return per / count if count and per else 1.0


def _number(value: Any) -> float:
    """A number of the metadata; 0 where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _ome_pixels(text: str) -> ElementTree.Element | None:
    """The element of OME-XML that tells of the first image's voxels."""
    root = ElementTree.fromstring(text)  # noqa: S314 (expat caps the expansion of entities)
    return next((element for element in root.iter() if _tag(element) == "Pixels"), None)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _ome_metadata(text: str) -> _Metadata:
    """What OME-XML says."""
    pixels = _ome_pixels(text)
    given: Mapping[str, str] = {} if pixels is None else pixels.attrib

    def size(axis: str) -> float | None:
        if f"PhysicalSize{axis}" not in given:
            return None
        unit = given.get(f"PhysicalSize{axis}Unit", "µm")
        return float(given[f"PhysicalSize{axis}"]) * (millimetres(unit) or 1.0)

    x, y = size("X"), size("Y")
    first = next((step for step in (x, y) if step is not None), 1.0)
    z = size("Z")
    unit = seconds(given.get("TimeIncrementUnit", "s"))
    step = _number(given.get("TimeIncrement")) * (unit or 0.0)
    return _Metadata(
        (
            first if z is None else z,
            first if y is None else y,
            first if x is None else x,
        ),
        any(size is not None for size in (z, y, x)),
        step if math.isfinite(step) and step > 0 else 0.0,
    )


def start(temporary: Sequence[Path], layout: Layout, stack: ExitStack) -> BinaryIO:
    """Begin an ImageJ hyperstack: a file, closed by ``stack``, that takes the voxels from here on.

    tifffile lays out the file with a hole for the voxels.
    """
    import tifffile

    spacing = layout.grid.spacing
    unit, scale = fine_or_coarse(spacing)
    metadata: dict[str, Any] = {
        "axes": "TZYX",
        "spacing": spacing[0] * scale,
        "unit": unit,
        "Info": "\n".join(text for text in (layout.description, layout.provenance) if text),
    }
    if layout.frames > 1 and layout.time_step > 0:
        metadata["finterval"] = layout.time_step
    with warnings.catch_warnings():
        # Beyond 4 GB ImageJ's own way is one page that stands for all of them.
        warnings.filterwarnings("ignore", message=".*truncating ImageJ file")
        placed = tifffile.imwrite(
            temporary[0],
            shape=(layout.frames, *layout.grid.shape),
            dtype=layout.dtype,
            imagej=True,
            resolution=(_per_unit(spacing[2] * scale), _per_unit(spacing[1] * scale)),
            metadata=metadata,
            returnoffset=True,
        )
    assert placed is not None  # what is not compressed lies in one piece
    file = stack.enter_context(closing(temporary[0].open("r+b")))
    file.seek(placed[0])
    return file


def _per_unit(size: float) -> tuple[int, int]:
    """Pixels per unit as the fraction of two 32-bit integers that a TIFF tag holds."""
    fraction = (1 / Fraction(size)).limit_denominator(1_000_000)
    return fraction.numerator, fraction.denominator
