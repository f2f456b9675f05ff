"""Voxels in a file, indexed as if they were in memory."""

from __future__ import annotations

import copy
import gc
import gzip
import threading
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_arssr import io
from napari_arssr.errors import FileError, UsageError
from napari_arssr.io import StoredArray, read

Array = npt.NDArray[Any]

SHAPE = (3, 4, 5, 6)  # (t, z, y, x)


def real(data: Array) -> Array:
    return (data.astype(np.float64) * 0.25 - 3).astype(np.float32)


@pytest.fixture(scope="module", params=[".nii", ".nii.gz", ".tif", ".packed.tif"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An array in a file, and the same in memory."""
    path = tmp_path_factory.mktemp("stored") / f"a{request.param}"
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    if path.suffix == ".tif":
        tifffile.imwrite(
            path,
            data.astype(np.uint16),
            imagej=True,
            byteorder=">",
            compression="zlib" if "packed" in path.name else None,
            metadata={"axes": "TZYX", "cf": 0, "c0": -3, "c1": 0.25},
        )
        return read(path, most=0).data, real(data)
    image = nib.Nifti1Image(data.T, np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, path)
    return read(path, most=0).data, real(data)


def slices(size: int) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(-size, size - 1),
        st.slices(size),
        st.just(slice(None)),
        st.integers(-size, size - 1).map(np.int64),
    )


@st.composite
def keys(draw: st.DrawFn) -> Any:
    key: list[Any] = [draw(slices(n)) for n in SHAPE[: draw(st.integers(1, 4))]]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(key)))
        # What follows an ellipsis counts from the last axis.
        tail = (
            [draw(slices(n)) for n in SHAPE[len(SHAPE) - (len(key) - at) :]]
            if at < len(key)
            else []
        )
        key = [*key[:at], ..., *tail]
    return tuple(key) if len(key) > 1 or draw(st.booleans()) else key[0]


@settings(max_examples=150, deadline=None)
@given(key=keys())
def test_indexing_is_numpys(stored: tuple[StoredArray, Array], key: Any) -> None:
    array, expected = stored
    found, expected = array[key], expected[key]
    assert isinstance(found, StoredArray)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert (found.size, found.nbytes) == (expected.size, expected.nbytes)
    np.testing.assert_array_equal(np.asarray(found), expected)


@settings(max_examples=100, deadline=None)
@given(first=keys(), order=st.permutations(range(4)), second=keys())
def test_views_of_views_are_numpys(
    stored: tuple[StoredArray, Array], first: Any, order: list[int], second: Any
) -> None:
    array, expected = (one[first] for one in stored)
    order = [axis for axis in order if axis < expected.ndim]
    array, expected = array.transpose(*order), expected.transpose(*order)
    np.testing.assert_array_equal(np.asarray(array), expected)
    np.testing.assert_array_equal(np.asarray(array.transpose()), expected.T)
    second = second if isinstance(second, tuple) else (second,)
    try:
        expected = expected[second]
    except IndexError:
        with pytest.raises(IndexError):
            array[second]
    else:
        np.testing.assert_array_equal(np.asarray(array[second]), expected)


@settings(max_examples=50, deadline=None)
@given(key=keys(), frames=st.permutations(range(3)))
def test_a_stack_of_arrays_is_numpys(
    stored: tuple[StoredArray, Array], key: Any, frames: list[int]
) -> None:
    array, expected = stored
    stack = StoredArray.stack([array[frame, :, ::-1] for frame in frames])
    np.testing.assert_array_equal(np.asarray(stack[key]), expected[frames][:, :, ::-1][key])


def test_a_view_reads_nothing_and_cannot_be_written_to(
    stored: tuple[StoredArray, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    array, _ = stored
    monkeypatch.setattr(type(array._source), "read", fail)
    assert array[1].transpose(2, 0, 1)[0:2].shape == (2, 4, 5)
    assert copy.deepcopy(array) is copy.copy(array) is array
    with pytest.raises(UsageError, match=r"/a\.\S* is left in its file and cannot be changed"):
        array[0] = 5
    with pytest.raises(ValueError, match="no order"):
        array.transpose(0, 0, 1, 2)
    with pytest.raises(TypeError, match="no length"):
        len(array[0, 0, 0, 0])
    assert array[0:0].shape == (0, 4, 5, 6)
    assert np.asarray(array[0:0]).shape == (0, 4, 5, 6)


def test_an_array_knows_its_form(stored: tuple[StoredArray, Array]) -> None:
    array, expected = stored
    assert (array.shape, array.ndim, array.dtype, len(array)) == (SHAPE, 4, np.float32, 3)
    np.testing.assert_array_equal(np.asarray(array), expected)
    np.testing.assert_array_equal(np.asarray(array, dtype=np.float64), expected)
    with pytest.raises(ValueError, match="not in memory"):
        np.array(array, copy=False)


@pytest.mark.parametrize("key", [[0, 1], np.array([True] * 3), None, (..., ...), (0,) * 5, 3, -4])
def test_an_index_that_cannot_be_is_refused(stored: tuple[StoredArray, Array], key: Any) -> None:
    with pytest.raises(IndexError):
        stored[0][key]


class Huge:
    name, shape, dtype = "huge", (7, 300, 2048, 1024), np.dtype(np.float32)
    chunks = ()

    def read(self, picks: Any) -> Array:
        raise AssertionError


def test_parts_are_planes_of_one_frame() -> None:
    array = StoredArray(Huge())
    assert array.chunks == (1, 4, 2048, 1024)
    assert array[2].transpose(2, 0, 1).chunks == (1024, 4, 2048)  # not a column a part
    assert array[2, :3, 5:10].chunks == (3, 5, 1024)
    assert array[0:0].chunks == (1, 4, 2048, 1024)


def test_threads_read_side_by_side(stored: tuple[StoredArray, Array]) -> None:
    array, expected = stored
    wrong = []

    def check(n: int) -> None:
        for _ in range(30):
            if not np.array_equal(np.asarray(array[n % 3, n % 4]), expected[n % 3, n % 4]):
                wrong.append(n)

    threads = [threading.Thread(target=check, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def write(path: Path, data: Array) -> Path:
    nib.save(nib.Nifti1Image(data.T, np.eye(4)), path)
    return path


def test_only_what_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    data = np.zeros((4, 5, 6), np.float32)
    path = write(tmp_path / "a.nii", data)
    assert isinstance(read(path, most=data.nbytes).data, np.ndarray)
    assert isinstance(read(path, most=data.nbytes - 1).data, StoredArray)
    assert isinstance(read(path).data, np.ndarray)


def test_a_file_written_over_it_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.ones((4, 5, 6), np.float32))
    array = read(path, most=0).data
    path.unlink()
    write(path, np.zeros((9, 9, 9), np.float32))
    np.testing.assert_array_equal(np.asarray(array[...]), np.ones((4, 5, 6)))


@pytest.mark.parametrize("part", [None, 1, 45])
@pytest.mark.parametrize("suffix", [".nii", ".tif"])
def test_what_was_left_in_its_file_is_written_as_if_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, part: int | None
) -> None:
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = write(tmp_path / "a.nii.gz", data)
    if part:
        monkeypatch.setattr("napari_arssr.io.writing._PART", part)
    for dtype in (None, "same", np.float32):
        for frame in (None, 2):
            left, loaded = read(path, most=0), read(path)
            if frame is not None:
                left, loaded = left.frame(frame), loaded.frame(frame)
            assert isinstance(left.data, StoredArray)
            files = [
                io.write(tmp_path / f"{name}{suffix}", volume.transposed((1, 2, 0)), dtype=dtype)
                for name, volume in (("left", left), ("loaded", loaded))
            ]
            assert files[0].read_bytes() == files[1].read_bytes()


def test_a_compressed_file_is_unpacked_only_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = random.integers(0, 255, (64, 1000, 1000), dtype=np.uint8)
    path = write(tmp_path / "a.nii.gz", data)
    array = read(path, most=0).data
    assert isinstance(array, StoredArray)
    np.testing.assert_array_equal(np.asarray(array[3]), data[3])
    unpacked: Any = array._source._bytes
    assert unpacked._have < data.nbytes / 2
    np.testing.assert_array_equal(np.asarray(array[63]), data[63])
    np.testing.assert_array_equal(np.asarray(array[0]), data[0])
    assert unpacked._have >= data.nbytes


def test_a_file_cut_off_is_noticed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = random.integers(0, 255, (10, 100, 100), dtype=np.uint8)
    path = write(tmp_path / "a.nii", data)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(FileError, match=r"a\.nii is cut off: 100,000 bytes"):
        read(path, most=0)

    path.write_bytes(whole)
    array = read(path, most=0).data
    with path.open("r+b") as file:
        file.truncate(50_000)
    np.testing.assert_array_equal(np.asarray(array[2]), data[2])
    with pytest.raises(FileError, match=r"a\.nii is cut off"):
        np.asarray(array[9])

    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(whole)[:-5000])
    array = read(packed, most=0).data
    with pytest.raises(FileError, match=r"b\.nii\.gz is damaged or cut off"):
        np.asarray(array[9])
    packed.write_bytes(gzip.compress(whole[:-1000]))
    array = read(packed, most=0).data
    with pytest.raises(FileError, match=r"b\.nii\.gz is cut off"):
        np.asarray(array[9])


def test_want_of_room_to_unpack_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.float32))
    array = read(path, most=0).data

    class Full:
        def seek(self, at: int) -> None:
            pass

        def write(self, chunk: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    unpacked: Any = array._source._bytes
    unpacked._file.close()
    unpacked._file = Full()
    with pytest.raises(FileError, match=r"a\.nii\.gz cannot be unpacked.*no space left.*TMPDIR"):
        np.asarray(array[0])

    class Usage:
        free = 100

    monkeypatch.setattr("napari_arssr.io.stored.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(FileError, match=r"takes 832 bytes and 100 are free.*gunzip"):
        read(path, most=0)


def test_files_are_closed_with_the_last_array(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"a{s}", np.ones((4, 5, 6), np.float32)) for s in (".nii", ".nii.gz")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for path in paths:
            array = read(path, most=0).data
            np.asarray(array[0])
            files: Any = array._source._bytes
            del array
            gc.collect()
            assert files._file.closed


# TIFF --------------------------------------------------------------------------------------------

PLAIN = {"photometric": "minisblack"}
STACKS: dict[str, dict[str, Any]] = {
    "ImageJ": {"imagej": True, "metadata": {"axes": "TZYX"}},
    "OME, depth before time": {"ome": True, "metadata": {"axes": "ZTYX"}},
    "plain": PLAIN,
    "packed": PLAIN | {"compression": "zlib"},
    "packed, other byte order": PLAIN | {"compression": "zlib", "byteorder": ">"},
    "OME, packed in tiles": {
        "ome": True,
        "compression": "zlib",
        "tile": (16, 16),
        "metadata": {"axes": "TZYX"},
    },
}


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_stack_left_in_its_file_is_what_it_is_in_memory(
    tmp_path: Path, kind: str, dtype: npt.DTypeLike
) -> None:
    data = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, **STACKS[kind])
    left, there = read(tmp_path / "a.tif", most=0), read(tmp_path / "a.tif")
    assert isinstance(left.data, StoredArray)
    assert isinstance(there.data, np.ndarray)
    assert left.grid == there.grid
    assert left.data.dtype == there.data.dtype == dtype
    np.testing.assert_array_equal(np.asarray(left.data), there.data)
    np.testing.assert_array_equal(
        np.asarray(left.data[-1, 1:, ::-2, 3]), there.data[-1, 1:, ::-2, 3]
    )
    assert io.origin_of(left) == io.origin_of(there)


def test_imagejs_signed_numbers_are_so_in_the_file_too(tmp_path: Path) -> None:
    data = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    shifted = (data.astype(np.int32) + 32768).astype(np.uint16)
    metadata = {"axes": "ZYX", "cf": 0, "c0": -32768, "c1": 1}
    tifffile.imwrite(tmp_path / "a.tif", shifted, imagej=True, metadata=metadata)
    left = read(tmp_path / "a.tif", most=0).data
    assert left.dtype == np.int16
    np.testing.assert_array_equal(np.asarray(left), data)


@pytest.mark.parametrize(
    "options", [PLAIN, PLAIN | {"compression": "zlib"}], ids=["plain", "packed"]
)
def test_of_a_tiff_stack_only_the_planes_that_are_asked_for_are_read(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).integers(0, 99, (50, 40, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)
    left = read(tmp_path / "a.tif", most=0).data
    planes: list[int] = []
    if "compression" in options:
        asked = tifffile.TiffPage.asarray

        def counted(page: Any, *args: Any, **keywords: Any) -> Array:
            planes.append(page.index)
            return asked(page, *args, **keywords)

        monkeypatch.setattr(tifffile.TiffPage, "asarray", counted)
        monkeypatch.setattr(tifffile.TiffFrame, "asarray", counted)
    np.testing.assert_array_equal(np.asarray(left[7:9, 3:5]), data[7:9, 3:5])
    assert planes in ([], [7, 8])


def test_a_tiff_stack_whose_planes_cannot_be_told_apart_is_read_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 99, (32, 32, 32)).astype(np.uint16)
    options = {"volumetric": True, "tile": (16, 16, 16), "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", data, **PLAIN, **options)
    volume = read(tmp_path / "a.tif", most=0)
    assert isinstance(volume.data, np.ndarray)
    np.testing.assert_array_equal(volume.data, data)


@pytest.mark.parametrize("most", [None, 0])
@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({"imagej": True, "truncate": True}, 50_000),  # one list of planes, as ImageJ writes it
        (PLAIN | {"compression": "zlib"}, 5_000),
        (PLAIN, 50_000),
    ],
    ids=["ImageJ", "packed", "plain"],
)
def test_a_tiff_stack_that_is_cut_off_is_said_to_be(
    tmp_path: Path, options: dict[str, Any], lost: int, most: int | None
) -> None:
    path = tmp_path / "a.tif"
    data = np.random.default_rng(0).integers(0, 2**16, (50, 40, 30)).astype(np.uint16)
    tifffile.imwrite(path, data, **options)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(FileError, match=r"a\.tif is (cut off|not a whole TIFF file)[ :].* copy"):
        read(path, most=most)


def test_a_plane_that_cannot_be_unpacked_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = np.random.default_rng(0).integers(0, 2**16, (50, 40, 30)).astype(np.uint16)
    tifffile.imwrite(path, data, **PLAIN, compression="zlib")
    with tifffile.TiffFile(path) as stack:
        start = stack.pages[20].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(50))
    left = read(path, most=0).data
    np.testing.assert_array_equal(np.asarray(left[:20]), data[:20])
    with pytest.raises(FileError, match=r"a\.tif is not a whole TIFF file"):
        np.asarray(left[19:22])
