"""Files to volumes and back, read by other programs, and whatever a bad file can be."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import logging
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DrawFn
from nibabel.affines import apply_affine
from PIL import Image
from scipy.spatial.transform import Rotation

import napari_arssr
from napari_arssr import io
from napari_arssr.errors import ArssrError, FileError, OutOfMemory, UsageError
from napari_arssr.io import (
    Origin,
    SlabWriter,
    cast,
    check_output,
    create,
    origin_of,
    read,
    write,
)
from napari_arssr.io import nifti as nifti_module
from napari_arssr.io import tiff as tiff_module
from napari_arssr.io import writing as writing_module
from napari_arssr.volume import Box, Grid, Volume

EXAMPLES = settings(max_examples=25, deadline=None)
NIFTI = [".nii", ".nii.gz", ".img", ".hdr"]
NIBABEL_DATA = Path(nib.__file__).parent / "tests" / "data"
RANDOM = np.random.default_rng(7)
LPS = np.diag([-1.0, -1.0, 1.0])


def rotated(
    angles: tuple[float, ...] = (10, -20, 35),
    sizes: tuple[float, ...] = (0.7, 1.1, 3.3),
    origin: tuple[float, ...] = (-31.5, 12.25, 70.0),
) -> np.ndarray:
    """An oblique affine."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * sizes
    affine[:3, 3] = origin
    return affine


def oblique(shape: tuple[int, ...] = (5, 6, 7), dtype: Any = np.float32, **keywords: Any) -> Volume:
    """Random values, so that no axis can be mistaken for another."""
    data = (RANDOM.normal(size=shape) * 50).astype(dtype)
    return Volume(data, rotated(), **keywords)


def sheared() -> np.ndarray:
    affine = rotated()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    return affine


@st.composite
def volumes(draw: DrawFn) -> Volume:
    """Any orientation, size, number type; one frame or several."""
    shape = tuple(draw(st.integers(2, 6)) for _ in range(3))
    if draw(st.booleans()):
        shape = (draw(st.integers(2, 3)), *shape)
    dtype = draw(st.sampled_from(["u1", "i2", "u2", "f4"]))
    affine = rotated(
        tuple(draw(st.floats(-180, 180)) for _ in range(3)),
        tuple(draw(st.floats(0.1, 6)) * draw(st.sampled_from([1, -1])) for _ in range(3)),
        tuple(draw(st.floats(-80, 80)) for _ in range(3)),
    )
    step = draw(st.floats(0.01, 100)) if len(shape) == 4 else 0.0
    begins = draw(st.floats(-1e3, 1e3, width=32)) if len(shape) == 4 else 0.0
    # SimpleITK reads NaN and infinities as 0.
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False) if dtype == "f4" else None
    data = draw(arrays(dtype, shape, elements=finite))
    return Volume(data, affine, time_step=step, time_start=begins)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may enter, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """File permissions mean nothing to root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# Write → read --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", NIFTI)
@EXAMPLES
@given(volume=volumes())
def test_nifti_gives_back_what_was_written(suffix: str, volume: Volume) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"a{suffix}", volume)
        result = read(path)
    np.testing.assert_array_equal(result.data, volume.data)
    assert result.data.dtype == volume.data.dtype
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-5)
    assert result.time_step == pytest.approx(volume.time_step, rel=1e-6)
    assert result.time_start == pytest.approx(volume.time_start, rel=1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
@EXAMPLES
@given(volume=volumes())
def test_tiff_gives_back_voxels_and_sizes_and_is_placed_by_rule(
    suffix: str, volume: Volume
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = read(write(Path(folder) / f"a{suffix}", volume))
    np.testing.assert_array_equal(result.data, volume.data)
    assert result.data.dtype == volume.data.dtype
    np.testing.assert_allclose(result.spacing, volume.spacing, rtol=1e-6)
    placed = Grid.unoriented(volume.grid.shape, volume.spacing)
    np.testing.assert_allclose(result.affine, placed.affine, atol=1e-5)
    assert result.time_step == pytest.approx(volume.time_step)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_number_type_survives(tmp_path: Path, dtype: str) -> None:
    volume = oblique(dtype=dtype)
    extremes = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    volume.data.flat[:2] = extremes.min, extremes.max
    result = read(write(tmp_path / "a.nii", volume))
    assert result.data.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result.data, volume.data)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii").dataobj, volume.data.T)


def test_nan_and_infinities_survive(tmp_path: Path) -> None:
    volume = oblique()
    volume.data.flat[:3] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(read(write(tmp_path / "a.nii.gz", volume)).data, volume.data)


def test_a_flipped_view_is_written_as_it_is_seen(tmp_path: Path) -> None:
    volume = oblique()
    turned = Volume(volume.data[::-1].swapaxes(1, 2), volume.affine)
    np.testing.assert_array_equal(read(write(tmp_path / "a.nii", turned)).data, turned.data)


def test_equal_volumes_give_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = oblique()
    one = write(tmp_path / "one.nii.gz", volume).read_bytes()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert write(tmp_path / "other.nii.gz", volume).read_bytes() == one


# Other programs read it ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".img"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_left_and_right_never_swap(
    tmp_path: Path, suffix: str, order: tuple[int, int, int]
) -> None:
    """A marked corner is in one place of the world for three readers, in all 48 orientations."""
    for signs in product([1, -1], repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) * signs * [1.0, 1.5, 2.0])[list(order)]
        affine[:3, 3] = [10, -20, 30]
        data = np.zeros((3, 4, 5), np.float32)
        data[0, 3, 4] = 7  # (i, j, k) = (4, 3, 0)
        truth = apply_affine(affine, [4, 3, 0])
        path = write(tmp_path / f"a{suffix}", Volume(data, affine))

        ours = read(path)
        np.testing.assert_allclose(ours.grid.world(np.argwhere(ours.data == 7)[0]), truth)

        image = nib.load(path)
        index = np.argwhere(np.asarray(image.dataobj) == 7)[0]
        np.testing.assert_allclose(apply_affine(image.affine, index), truth, atol=1e-5)
        canonical = nib.as_closest_canonical(image)
        index = np.argwhere(np.asarray(canonical.dataobj) == 7)[0]
        np.testing.assert_allclose(apply_affine(canonical.affine, index), truth, atol=1e-5)

        other = sitk.ReadImage(path)
        index = np.argwhere(sitk.GetArrayFromImage(other) == 7)[0][::-1]
        point = other.TransformIndexToPhysicalPoint(index.tolist())
        np.testing.assert_allclose(LPS @ point, truth, atol=1e-5)


@pytest.mark.parametrize("suffix", NIFTI)
@EXAMPLES
@given(volume=volumes())
def test_nibabel_and_simpleitk_agree_with_us(suffix: str, volume: Volume) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"a{suffix}", volume)
        image = nib.load(path, mmap=False)
        stored = np.asarray(image.dataobj)
        other = sitk.ReadImage(path)
    np.testing.assert_array_equal(stored.T, volume.data)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    # Where the qform has a code, it puts no corner a hundredth of a voxel beside the sform.
    corners = np.array(list(product(*((0, n - 1) for n in stored.shape[:3]))))
    by_qform = apply_affine(np.linalg.inv(image.affine) @ image.get_qform(), corners)
    agree = np.abs(by_qform - corners).max() < 0.01
    assert image.header["sform_code"] == 2
    assert image.header["qform_code"] == (2 if agree else 0)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(image.header.get_zooms()[:3], volume.spacing[::-1], rtol=1e-6)

    np.testing.assert_array_equal(sitk.GetArrayFromImage(other), volume.data)
    np.testing.assert_allclose(other.GetSpacing()[:3], volume.spacing[::-1], rtol=1e-5)
    np.testing.assert_allclose(LPS @ other.GetOrigin()[:3], volume.affine[:3, 3], atol=1e-5)
    time = [0] * (other.GetDimension() - 3)
    for corner in corners:
        point = other.TransformIndexToPhysicalPoint([*corner.tolist(), *time])[:3]
        np.testing.assert_allclose(volume.grid.index(LPS @ point), corner[::-1], atol=0.011)
    if volume.frames > 1:
        assert other.GetSpacing()[3] == pytest.approx(volume.time_step, rel=1e-5)


def test_a_shear_is_in_the_sform_and_no_qform_denies_it(tmp_path: Path) -> None:
    volume = Volume(oblique().data, sheared())
    image = nib.load(write(tmp_path / "a.nii", volume))
    assert image.header["qform_code"] == 0
    assert image.header["sform_code"] == 2
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), volume.spacing[::-1], rtol=1e-6)
    np.testing.assert_allclose(read(tmp_path / "a.nii").affine, volume.affine, atol=1e-5)


def test_a_rotation_that_no_qform_holds_is_left_to_the_sform(tmp_path: Path) -> None:
    """Half a turn and a little: the fourth number of the quaternion drowns in the other three."""
    near = Grid((192, 256, 256), rotated((0, 0, 180.01), (1, 1, 1)))
    for grid, code in [(near, 0), (Grid(near.shape, rotated((0, 0, 179))), 2)]:
        path = write(tmp_path / "a.nii", Volume(np.zeros(grid.shape, np.uint8), grid.affine))
        image = nib.load(path)
        assert image.header["qform_code"] == code
        np.testing.assert_allclose(image.affine, grid.affine, atol=1e-5)
        other = sitk.ReadImage(path)
        direction = LPS @ np.reshape(other.GetDirection(), (3, 3)) * grid.spacing[::-1]
        np.testing.assert_allclose(direction, grid.affine[:3, :3], atol=1e-6)


@pytest.mark.parametrize(("size", "kind"), [(32767, nib.Nifti1Image), (32768, nib.Nifti2Image)])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_nifti_2_is_written_where_a_size_demands_it(
    tmp_path: Path, size: int, kind: type, axis: int
) -> None:
    shape = [2, 1, 1, 2]
    shape[axis] = size
    volume = Volume(
        np.arange(2 * 2 * size).astype(np.uint8)[: np.prod(shape)].reshape(shape), rotated()
    )
    image = nib.load(write(tmp_path / "a.nii", volume))
    assert type(image) is kind
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.data)
    np.testing.assert_array_equal(read(tmp_path / "a.nii").data, volume.data)
    assert origin_of(read(tmp_path / "a.nii")).format == f"NIfTI-{2 if size > 32767 else 1}"


def test_freesurfers_sizes_are_sizes_like_others(tmp_path: Path) -> None:
    # nibabel reads and writes these shapes as something else.
    volume = Volume(np.zeros((6, 1, 27307), np.uint8), rotated())
    assert read(write(tmp_path / "a.nii", volume)).data.shape == (6, 1, 27307)


@pytest.mark.parametrize("suffix", NIFTI)
def test_the_header_says_what_made_it(tmp_path: Path, suffix: str) -> None:
    text = '{"weights": "default", "scale": [1, 1, 4], "subject": "Müller"}'
    path = write(tmp_path / f"a{suffix}", oblique(), description="×" * 60, provenance=text)
    header = nib.load(path).header
    assert bytes(header["descrip"].tobytes()).rstrip(b"\0").decode() == "×" * 39
    (comment,) = header.extensions
    assert comment.get_code() == 6
    assert comment.text.rstrip("\0") == text
    assert origin_of(read(path)).description == "×" * 39
    assert origin_of(read(path)).provenance == text
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), read(path).data)


def test_this_program_names_itself_by_default(tmp_path: Path) -> None:
    header = nib.load(write(tmp_path / "a.nii", oblique())).header
    expected = f"napari-arssr {napari_arssr.__version__}"
    assert header["descrip"].item().decode() == expected
    assert len(header.extensions) == 0


@pytest.mark.parametrize("suffix", [".nii.gz", ".tif"])
def test_the_header_says_what_made_a_result(tmp_path: Path, suffix: str) -> None:
    fitted = {"fit": {"settings": {"method": "irem"}, "file": Path("a.nii")}}
    done = {"upsampling": {"version": "1", "scale": (1, 1, 4)}}
    for metadata, expected in [
        (fitted, {"napari-arssr fit": {"settings": {"method": "irem"}, "file": "a.nii"}}),
        (done, {"napari-arssr": {"version": "1", "scale": [1, 1, 4]}}),
        # What was upsampled had been fitted.
        (fitted | done, {"napari-arssr": {"version": "1", "scale": [1, 1, 4]}}),
    ]:
        volume = oblique(metadata={"origin": Origin(provenance="of the input"), **metadata})
        text = origin_of(read(write(tmp_path / f"a{suffix}", volume))).provenance
        assert json.loads(text) == expected
        assert text == io.provenance_of(volume)
        path = write(tmp_path / f"a{suffix}", volume, provenance="by hand")
        assert origin_of(read(path)).provenance == "by hand"
    assert origin_of(read(write(path, volume, provenance=""))).provenance == ""
    assert io.provenance_of(oblique()) == ""


def test_imagej_finds_sizes_units_and_provenance(tmp_path: Path) -> None:
    volume = oblique((3, 5, 6, 7), time_step=2.5)
    path = write(tmp_path / "a.tif", volume, description="made here", provenance="in two\nlines")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_imagej
        assert tiff.series[0].axes == "TZYX"
        meta = tiff.imagej_metadata
        tags = tiff.pages.first.tags
        assert len(tiff.pages) == 15  # readers that know nothing of ImageJ see every plane
        np.testing.assert_array_equal(tiff.asarray(), volume.data)
    assert meta is not None
    assert (meta["frames"], meta["slices"], meta["unit"]) == (3, 5, "mm")
    assert meta["spacing"] == pytest.approx(3.3)
    assert meta["finterval"] == 2.5
    assert meta["Info"] == "made here\nin two\nlines"
    for name, size in (("XResolution", 0.7), ("YResolution", 1.1)):
        count, per = tags[name].value
        assert per / count == pytest.approx(size)
    assert origin_of(read(path)).description == "made here"
    assert origin_of(read(path)).provenance == "in two\nlines"


def test_microscopes_are_written_in_micrometres(tmp_path: Path) -> None:
    grid = Grid.unoriented((4, 5, 6), (0.002, 0.000325, 0.000325))
    path = write(tmp_path / "a.tif", Volume(np.zeros(grid.shape, np.uint16), grid.affine))
    with tifffile.TiffFile(path) as tiff:
        meta = tiff.imagej_metadata
    assert meta is not None
    assert meta["unit"] == "um"
    assert meta["spacing"] == pytest.approx(2)
    np.testing.assert_allclose(read(path).spacing, grid.spacing, rtol=1e-9)
    np.testing.assert_allclose(read(path).affine, grid.affine, rtol=1e-9)


def test_simpleitk_reads_our_tiff(tmp_path: Path) -> None:
    volume = oblique()
    path = write(tmp_path / "a.tif", volume)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), volume.data)


# Reading NIfTI of others ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "example4d.nii.gz",
        "example_nifti2.nii.gz",
        "anatomical.nii",
        "functional.nii",
        "standard.nii.gz",
        "reoriented_anat_moved.nii",
        "resampled_anat_moved.nii",
    ],
)
def test_real_files_read_as_nibabel_reads_them(name: str) -> None:
    volume = read(NIBABEL_DATA / name)
    image = nib.load(NIBABEL_DATA / name)
    np.testing.assert_array_equal(volume.affine, image.affine)
    np.testing.assert_array_equal(
        volume.data, np.asarray(image.dataobj).T.astype(volume.data.dtype)
    )
    assert volume.data.dtype.isnative
    assert volume.name == name
    if volume.data.ndim == 4:
        assert volume.time_step == float(image.header.get_zooms()[3])


@pytest.mark.parametrize("name", ["example4d.nii.gz", "functional.nii", "anatomical.nii"])
@pytest.mark.parametrize("suffix", NIFTI)
def test_real_files_survive_a_rewrite_with_their_own_numbers(
    tmp_path: Path, name: str, suffix: str
) -> None:
    volume = read(NIBABEL_DATA / name)
    again = read(write(tmp_path / f"a{suffix}", volume, dtype="same"))
    before, after = nib.load(NIBABEL_DATA / name), nib.load(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(before.dataobj.get_unscaled(), after.dataobj.get_unscaled())
    assert after.dataobj.slope == before.dataobj.slope
    assert after.header["sform_code"] == before.header["sform_code"]
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)
    assert again.time_step == volume.time_step


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", NIFTI)
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_either_byte_order_and_version(
    tmp_path: Path, order: str, version: int, suffix: str, dtype: str
) -> None:
    data = (RANDOM.normal(size=(4, 5, 6)) * 100).astype(dtype)
    pair = suffix in (".img", ".hdr")
    kind = getattr(nib, f"Nifti{version}{'Pair' if pair else 'Image'}")
    image = kind(data, rotated(), kind.header_class(endianness=order))
    image.set_data_dtype(np.dtype(dtype))
    nib.save(image, tmp_path / f"a{suffix}")
    volume = read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.data, data.T)
    assert volume.data.dtype == np.dtype(dtype)
    np.testing.assert_allclose(volume.affine, rotated(), atol=1e-5)
    assert origin_of(volume).format == f"NIfTI-{version}"


def save(
    path: Path,
    data: np.ndarray,
    *,
    after: bytes | None = None,
    kind: Any = nib.Nifti1Header,
    affine: np.ndarray | None = None,
    **fields: Any,
) -> Path:
    """A single-file NIfTI of ``data`` (x, y, z, …), byte by byte: with any nonsense in its header.

    ``after`` replaces the voxels; the fields are NIfTI's own.
    """
    header = kind()
    if data.dtype in nifti_module.DTYPES.values():
        header.set_data_dtype(data.dtype)
    header["dim"][: data.ndim + 1] = (data.ndim, *data.shape)
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"] = header["scl_inter"] = np.nan
    header["pixdim"][1:4] = 1
    header["xyzt_units"] = 2
    if affine is not None:
        header.set_sform(affine, 1)
    for field, value in fields.items():
        header[field] = value
    content = header.binaryblock + bytes(4) + (data.tobytes("F") if after is None else after)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


BLOCK = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize(("slope", "intercept"), [(0.0123, -7.5), (-2.0, 0.0), (1.0, -1024.0)])
def test_scale_factors_give_real_values(
    tmp_path: Path, dtype: str, slope: float, intercept: float
) -> None:
    stored = np.arange(60).astype(dtype).reshape(3, 4, 5)
    path = save(tmp_path / "a.nii", stored, scl_slope=slope, scl_inter=intercept)
    volume = read(path)
    expected = np.float32 if np.dtype(dtype).kind in "iu" else np.dtype(dtype)
    assert volume.data.dtype == expected
    real = stored.T * np.float64(np.float32(slope)) + intercept
    np.testing.assert_array_equal(volume.data, real.astype(expected))
    origin = origin_of(volume)
    assert (origin.dtype, origin.slope, origin.intercept) == (
        stored.dtype,
        np.float32(slope),
        intercept,
    )
    write(tmp_path / "b.nii", volume, dtype="same")
    again = nib.load(tmp_path / "b.nii")
    assert again.get_data_dtype() == stored.dtype
    np.testing.assert_allclose(again.dataobj.get_unscaled(), stored, atol=1e-4)


@pytest.mark.parametrize(("slope", "intercept"), [(0, 5), (np.nan, np.nan), (np.inf, 1), (1, 0)])
def test_scale_factors_that_say_nothing_leave_integers(
    tmp_path: Path, slope: float, intercept: float
) -> None:
    volume = read(save(tmp_path / "a.nii", BLOCK, scl_slope=slope, scl_inter=intercept))
    assert volume.data.dtype == np.int16
    np.testing.assert_array_equal(volume.data, BLOCK.T)


def test_sform_comes_before_qform(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_qform(rotated((0, 0, 0)), 1)
    fields = {name: header[name] for name in ("qform_code", "quatern_b", "qoffset_x", "pixdim")}
    volume = read(save(tmp_path / "a.nii", BLOCK, affine=sheared(), **fields))
    np.testing.assert_allclose(volume.affine, sheared(), atol=1e-5)


def two_forms(
    path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int], unit: int = 2
) -> Path:
    """A file with an sform and a qform, each with its code."""
    header = nib.Nifti1Header()
    header.set_sform(sform, codes[0])
    header.set_qform(qform, codes[1])
    names = [
        "pixdim",
        "sform_code",
        "qform_code",
        *(f"srow_{a}" for a in "xyz"),
        *(f"quatern_{a}" for a in "bcd"),
        *(f"qoffset_{a}" for a in "xyz"),
    ]
    if header["pixdim"][0] == 1:
        header["pixdim"][0] = 0  # the standard: 0 means 1
    block = np.zeros((7, 6, 5), np.float32)
    return save(path, block, xyzt_units=unit, **{name: header[name] for name in names})


MNI = rotated((4, 5, -6), (0.9, 1.2, 3.0), (-80.0, -110.0, -60.0))


@pytest.mark.parametrize("left", [1, -1])
@pytest.mark.parametrize(("unit", "millimetres"), [(2, 1), (3, 1e-3)])
def test_a_qform_of_its_own_stays_with_the_voxels(
    tmp_path: Path, left: int, unit: int, millimetres: float
) -> None:
    """What a registration to MNI left in the header: the sform's MNI, the qform's scanner."""
    scanner = rotated(sizes=(0.7, 1.1, left * 3.3))
    path = two_forms(tmp_path / "a.nii", MNI / millimetres, scanner / millimetres, (4, 1), unit)
    volume = read(path)
    np.testing.assert_allclose(volume.affine, MNI, atol=1e-4)
    assert origin_of(volume).form_code == 4

    scaled = volume.grid.scaled((2, 1, 1.5))
    upsampled = Volume(np.zeros(scaled.shape, np.float32), scaled.affine, metadata=volume.metadata)
    for changed in (
        volume,
        volume.crop(Box((1, 2, 0), (4, 6, 5))),
        volume.transposed((2, 0, 1)),
        upsampled,
    ):
        header = nib.load(write(tmp_path / "b.nii", changed)).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 1)
        np.testing.assert_allclose(header.get_sform(), changed.affine, atol=1e-4)
        step = np.linalg.inv(MNI) @ changed.affine
        np.testing.assert_allclose(header.get_qform(), scanner @ step, atol=1e-4)
        again = read(tmp_path / "b.nii")
        np.testing.assert_allclose(again.affine, changed.affine, atol=1e-4)
        assert origin_of(again).qform is not None


def test_forms_of_one_place_and_two_codes(tmp_path: Path) -> None:
    volume = read(two_forms(tmp_path / "a.nii", rotated(), rotated(), (2, 1)))
    header = nib.load(write(tmp_path / "b.nii", volume)).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 1)
    np.testing.assert_allclose(header.get_qform(), rotated(), atol=1e-4)


def test_a_qform_that_would_be_sheared_is_left_out(tmp_path: Path) -> None:
    volume = read(two_forms(tmp_path / "a.nii", MNI, rotated(), (4, 1)))
    turned = rotated((0, 0, 45), (1, 1, 1)) @ np.diag([1.0, 1.0, 2.0, 1.0])
    header = nib.load(
        write(tmp_path / "b.nii", Volume(volume.data, turned, metadata=volume.metadata))
    ).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 0)
    np.testing.assert_allclose(header.get_zooms(), (1, 1, 2), rtol=1e-6)


@pytest.mark.parametrize("broken", [{"quatern_b": 5}, {"pixdim": [1, -1, 1, 1, 0, 0, 0, 0]}])
def test_a_broken_qform_beside_an_sform_says_nothing(tmp_path: Path, broken: Any) -> None:
    path = save(tmp_path / "a.nii", BLOCK, affine=rotated(), qform_code=1, **broken)
    assert origin_of(read(path)).qform is None
    header = nib.load(write(tmp_path / "b.nii", read(path))).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), rotated(), atol=1e-4)


@pytest.mark.parametrize("qfac", [1, -1, 0])
def test_qform_alone(tmp_path: Path, qfac: int) -> None:
    affine = rotated(sizes=(1.0, 2.0, 3.0 if qfac >= 0 else -3.0))
    header = nib.Nifti1Header()
    header.set_qform(affine, 3)
    header["pixdim"][0] = qfac
    names = [
        "pixdim",
        "qform_code",
        *(f"quatern_{a}" for a in "bcd"),
        *(f"qoffset_{a}" for a in "xyz"),
    ]
    volume = read(save(tmp_path / "a.nii", BLOCK, **{name: header[name] for name in names}))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert origin_of(volume).form_code == 3
    image = nib.load(write(tmp_path / "b.nii", volume))
    assert image.header["sform_code"] == image.header["qform_code"] == 3


def test_without_either_form_the_voxel_sizes_place_it_as_nibabel_does(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", BLOCK, pixdim=[1, 2, 3, 4, 0, 0, 0, 0])
    volume = read(path)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    np.testing.assert_allclose(np.diag(volume.affine), [-2, 3, 4, 1])
    assert origin_of(volume).form_code == 0

    scaled = volume.grid.scaled(2)
    result = Volume(np.zeros(scaled.shape, np.float32), scaled.affine, metadata=volume.metadata)
    written = nib.load(write(tmp_path / "b.nii", result))
    assert written.header["sform_code"] == written.header["qform_code"] == 0
    np.testing.assert_allclose(written.affine, scaled.affine, atol=1e-5)

    # A part has a place that sizes alone cannot tell.
    part = volume.crop(Box((0, 0, 0), (2, 2, 2)))
    written = nib.load(write(tmp_path / "c.nii", part))
    assert written.header["sform_code"] == written.header["qform_code"] == 2
    np.testing.assert_allclose(written.affine, part.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("units", "millimetres", "seconds"),
    [
        (2 + 8, 1, 1),
        (0, 1, 1),
        (1 + 8, 1000, 1),
        (3 + 16, 1e-3, 1e-3),
        (2 + 24, 1, 1e-6),
        (2 + 32, 1, 0),
    ],
)
@pytest.mark.parametrize("form", ["sform", "qform", "neither"])
def test_units_become_millimetres_and_seconds(
    tmp_path: Path, units: int, millimetres: float, seconds: float, form: str
) -> None:
    data = np.zeros((2, 3, 4, 5), np.int16)
    fields: dict[str, Any] = {"pixdim": [1, 1, 2, 3, 4, 0, 0, 0], "xyzt_units": units}
    if form == "sform":
        fields["affine"] = np.diag([1.0, 2, 3, 1])
    elif form == "qform":
        fields["qform_code"] = 1
    volume = read(save(tmp_path / "a.nii", data, **fields))
    np.testing.assert_allclose(volume.spacing, np.array([3, 2, 1]) * millimetres, rtol=1e-6)
    assert volume.time_step == pytest.approx(4 * seconds)
    again = read(write(tmp_path / "b.nii", volume))
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6)
    assert again.time_step == pytest.approx(4 * seconds)


@pytest.mark.parametrize(
    ("dim", "shape"),
    [
        ([3, 2, 3, 4, 1, 1, 1, 1], (4, 3, 2)),
        ([5, 2, 3, 4, 1, 1, 1, 1], (4, 3, 2)),
        ([7, 2, 3, 4, 1, 1, 1, 1], (4, 3, 2)),
        ([4, 2, 3, 4, 0, 0, 0, 0], (4, 3, 2)),
        ([5, 2, 3, 2, 2, 1, 1, 1], (2, 2, 3, 2)),
        ([3, 2, 12, 1, 1, 1, 1, 1], (1, 12, 2)),
        ([4, 2, 3, 1, 4, 1, 1, 1], (4, 1, 3, 2)),
    ],
)
def test_trailing_axes_of_length_one_are_dropped(
    tmp_path: Path, dim: list[int], shape: tuple[int, ...]
) -> None:
    volume = read(save(tmp_path / "a.nii", BLOCK, dim=dim))
    assert volume.data.shape == shape
    np.testing.assert_array_equal(volume.data.ravel(), BLOCK.T.ravel())


def test_what_the_header_says_is_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(BLOCK.astype(np.float32), rotated())
    image.header.set_intent("t test", (12,), name="rest > task")
    image.header.set_sform(rotated(), 4)
    image.header["cal_min"], image.header["cal_max"] = -3, 5
    image.header["descrip"] = b"made by hand"
    nib.save(image, tmp_path / "a.nii")
    volume = read(tmp_path / "a.nii")
    assert origin_of(volume) == Origin(
        format="NIfTI-1",
        dtype=np.dtype(np.float32),
        form_code=4,
        intent=(3, (12.0, 0.0, 0.0), "rest > task"),
        display_range=(-3, 5),
        description="made by hand",
    )
    header = nib.load(write(tmp_path / "b.nii", volume)).header
    assert header.get_intent() == ("t test", (12.0,), "rest > task")
    assert (header["cal_min"], header["cal_max"]) == (-3, 5)
    assert header["sform_code"] == header["qform_code"] == 4


def test_header_extensions_of_any_kind_do_not_stop_reading(tmp_path: Path) -> None:
    image = nib.Nifti1Image(BLOCK, rotated())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", b"<AFNI/>"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"by hand"))
    nib.save(image, tmp_path / "a.nii.gz")
    assert origin_of(read(tmp_path / "a.nii.gz")).provenance == "by hand"

    content = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    content[368:372] = struct.pack("<i", 999)  # the comment ends behind the voxels, it says
    (tmp_path / "b.nii").write_bytes(content)
    volume = read(tmp_path / "b.nii")
    np.testing.assert_array_equal(volume.data, BLOCK.T)
    assert origin_of(volume).provenance == ""


def test_gzip_in_several_members_as_parallel_programs_write_it(tmp_path: Path) -> None:
    content = save(tmp_path / "a.nii", BLOCK).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(content[:360]) + gzip.compress(content[360:]))
    np.testing.assert_array_equal(read(path).data, BLOCK.T)


def test_upper_case_suffixes_are_known(tmp_path: Path) -> None:
    for suffix in (".NII", ".NII.GZ", ".IMG", ".TIF"):
        volume = oblique()
        np.testing.assert_array_equal(
            read(write(tmp_path / f"A{suffix}", volume)).data, volume.data
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "A.HDR", "A.IMG", "A.NII", "A.NII.GZ", "A.TIF",
    ]  # fmt: skip


# Reading TIFF of others ----------------------------------------------------------------------

STACK = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


@pytest.mark.parametrize(
    ("unit", "millimetres"),
    [
        ("um", 1e-3),
        ("\\u00B5m", 1e-3),
        ("micron", 1e-3),
        ("nm", 1e-6),
        ("mm", 1),
        ("cm", 10),
        ("inch", 25.4),
    ],
)
def test_imagej_sizes(tmp_path: Path, unit: str, millimetres: float) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        imagej=True,
        resolution=(1 / 0.25, 1 / 0.5),
        metadata={"axes": "ZYX", "spacing": 2.0, "unit": unit},
    )
    volume = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.data, STACK)
    np.testing.assert_allclose(volume.spacing, np.array([2, 0.5, 0.25]) * millimetres)
    np.testing.assert_allclose(volume.grid.world([1.5, 2, 2.5]), 0, atol=1e-12)
    assert origin_of(volume).format == "TIFF"


@pytest.mark.parametrize("spacing", [-2.0, 2.0])
def test_imagej_planes_in_reverse_keep_their_distance(tmp_path: Path, spacing: float) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", STACK, imagej=True, metadata={"axes": "ZYX", "spacing": spacing}
    )
    assert read(tmp_path / "a.tif").spacing == (2, 1, 1)


def test_imagej_series_of_stacks(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6)
    for metadata in ({"finterval": 0.5}, {"fps": 2.0}):
        tifffile.imwrite(
            tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZYX", **metadata}
        )
        volume = read(tmp_path / "a.tif")
        np.testing.assert_array_equal(volume.data, data)
        assert volume.time_step == 0.5


def calibrated(path: Path, stored: np.ndarray, *, order: str = "<", **metadata: Any) -> Path:
    """A stack with ImageJ's calibration of voxels: its function's code and coefficients."""
    axes = "TZYX"[-stored.ndim :]
    tifffile.imwrite(
        path, stored, imagej=True, byteorder=order, metadata={"axes": axes, **metadata}
    )
    return path


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 4, 5, 3)])
@pytest.mark.parametrize("order", "<>")
def test_imagejs_signed_numbers_are_int16(
    tmp_path: Path, shape: tuple[int, ...], order: str
) -> None:
    stored = np.linspace(0, 65535, np.prod(shape)).astype(np.uint16).reshape(shape)
    real = (stored.astype(np.int32) - 32768).astype(np.int16)
    path = calibrated(tmp_path / "ct.tif", stored, order=order, cf=0, c0=-32768.0, c1=1.0)
    for volume in (read(path), read(path, most=0)):
        assert volume.data.dtype == np.int16
        np.testing.assert_array_equal(volume.data, real)
        said = Origin(format="TIFF", dtype=np.dtype(np.int16), states_spacing=False)
        assert origin_of(volume) == said
    for suffix in (".tif", ".nii"):
        again = read(write(tmp_path / f"b{suffix}", read(path), dtype="same"))
        assert again.data.dtype == np.int16
        np.testing.assert_array_equal(again.data, real)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(("c0", "c1"), [(-1024.0, 1.0), (-1000.5, 0.25), (0.0, -2.0)])
def test_imagejs_straight_line_gives_real_values(
    tmp_path: Path, dtype: str, c0: float, c1: float
) -> None:
    stored = STACK.astype(dtype)
    path = calibrated(tmp_path / "a.tif", stored, cf=0, c0=c0, c1=c1)
    volume = read(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, (stored * c1 + c0).astype(np.float32))
    np.testing.assert_array_equal(read(path, most=0).data, volume.data)
    again = nib.load(write(tmp_path / "b.nii", volume, dtype="same"))
    assert again.get_data_dtype() == stored.dtype
    np.testing.assert_array_equal(again.dataobj.get_unscaled().T, stored)
    np.testing.assert_array_equal(read(tmp_path / "b.nii").data, volume.data)


@pytest.mark.parametrize(
    ("dtype", "calibration"),
    [
        ("u2", {"c0": -32768.0, "c1": 1.0}),
        ("u2", {"cf": 0}),
        ("u2", {"cf": 0, "c0": 0.0, "c1": 1.0}),
        ("u2", {"cf": 0, "c0": 3.0, "c1": 0.0}),
        ("u2", {"cf": 1, "c0": -3.0, "c1": 2.0, "c2": 0.5}),
        ("u2", {"cf": 20, "c0": -32768.0, "c1": 1.0}),
        # ImageJ counts these from 0, as uint16, before it calibrates them.
        ("i2", {"cf": 0, "c0": -32768.0, "c1": 1.0}),
        ("f4", {"cf": 0, "c0": -3.0, "c1": 2.0}),
    ],
)
def test_calibrations_that_are_no_straight_line_leave_voxels(
    tmp_path: Path, dtype: str, calibration: dict[str, float]
) -> None:
    stored = STACK.astype(dtype)
    volume = read(calibrated(tmp_path / "a.tif", stored, **calibration))
    assert volume.data.dtype == stored.dtype
    np.testing.assert_array_equal(volume.data, stored)
    assert origin_of(volume) == Origin(format="TIFF", dtype=stored.dtype, states_spacing=False)


def test_a_calibration_that_cannot_be(tmp_path: Path) -> None:
    path = calibrated(tmp_path / "a.tif", STACK, cf=0, c0="nan", c1=1.0)
    refuse(path, "calibration", "nan")


@pytest.mark.parametrize("order", "<>")
def test_ome_sizes(tmp_path: Path, order: str) -> None:
    data = np.arange(2 * 3 * 5 * 6, dtype=np.uint16).reshape(2, 3, 5, 6)
    metadata = {
        "axes": "TZYX",
        "PhysicalSizeX": 250.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeZ": 2.0,
        "TimeIncrement": 500.0,
        "TimeIncrementUnit": "ms",
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata=metadata, byteorder=order)
    volume = read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype.isnative
    np.testing.assert_allclose(volume.spacing, (2e-3, 0.5e-3, 0.25e-3))
    assert volume.time_step == 0.5
    tifffile.imwrite(
        tmp_path / "b.ome.tif", STACK, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5}
    )
    np.testing.assert_allclose(read(tmp_path / "b.ome.tif").spacing, (0.5e-3,) * 3)


def test_ome_time_before_depth_or_after(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 5 * 6, dtype=np.uint16).reshape(3, 2, 5, 6)
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": "ZTYX"})
    np.testing.assert_array_equal(read(tmp_path / "a.ome.tif").data, data.swapaxes(0, 1))


@pytest.mark.parametrize(("unit", "millimetres"), [("CENTIMETER", 10), ("INCH", 25.4), ("NONE", 1)])
def test_plain_resolution_tags(tmp_path: Path, unit: str, millimetres: float) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", STACK, resolution=(4, 2), resolutionunit=unit, photometric="minisblack"
    )
    spacing = np.array([0.25, 0.5, 0.25]) * millimetres  # a z step not stated: the pixel's size
    np.testing.assert_allclose(read(tmp_path / "a.tif").spacing, spacing)


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 4, 5, 6)])
def test_plain_stacks_count_as_z_or_t_and_z(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", compression="zlib")
    volume = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype == np.float64
    assert volume.spacing == (1, 1, 1)
    assert volume.time_step == 0


def test_what_tifffile_tells_other_threads_is_heard(tmp_path: Path) -> None:
    """While a stack is read here, a program's own use of tifffile keeps its log."""
    heard: list[str] = []
    log = logging.getLogger("tifffile")
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with tiff_module._quiet():
            log.warning("here")
            other = threading.Thread(target=log.warning, args=["there"])
            other.start()
            other.join()
        log.warning("afterwards")
    finally:
        log.removeHandler(handler)
    assert heard == ["there", "afterwards"]


def test_stacks_of_simpleitk_and_pillow(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(STACK), tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").data, STACK)
    pages = [Image.fromarray(plane) for plane in STACK]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read(tmp_path / "b.tif").data, STACK)


def test_a_compression_out_of_reach_names_the_package(tmp_path: Path) -> None:
    pages = [Image.fromarray(plane) for plane in STACK]
    pages[0].save(
        tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw"
    )
    if importlib.util.find_spec("imagecodecs"):
        np.testing.assert_array_equal(read(tmp_path / "a.tif").data, STACK)
    else:
        refuse(tmp_path / "a.tif", "pip install imagecodecs")


# Bad input -----------------------------------------------------------------------------------


def refuse(path: Path, *parts: str, error: type[ArssrError] = FileError) -> str:
    """Read a file that must be refused in one sentence with its name and each part."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error) as caught:
            read(path)
    message = str(caught.value)
    assert str(path) in message or path.stem in message
    assert message.endswith(".")
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def test_no_file_an_empty_one_a_folder_a_dead_link(tmp_path: Path) -> None:
    for suffix in io.SUFFIXES:
        refuse(tmp_path / f"a{suffix}", "does not exist")
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        refuse(folder, "is a zarr store without" if "zarr" in suffix else "is a folder")
    for suffix in (".nii", ".nii.gz", ".tif"):
        (tmp_path / f"empty{suffix}").touch()
        refuse(tmp_path / f"empty{suffix}", "is empty (0 bytes)")
    (tmp_path / "link.nii.gz").symlink_to("annex/object")
    refuse(tmp_path / "link.nii.gz", "link to annex/object")


def test_half_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "a.img", oblique())
    (tmp_path / "a.hdr").rename(tmp_path / "b.hdr")
    refuse(tmp_path / "a.img", "a.hdr beside it")
    refuse(tmp_path / "b.hdr", "b.img beside it")


@pytest.mark.parametrize("name", ["a.mgz", "a.nrrd", "a.dcm", "a.png", "a", "a.gz", "a.nii.bz2"])
def test_other_suffixes_are_refused_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    refuse(tmp_path / name, "suffix", ".nii.gz", ".tif")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".tif"])
def test_wherever_a_file_is_cut_off_it_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", oblique((6, 20, 30), np.int16), provenance="x" * 300)
    whole = path.read_bytes()
    assert read(path).data.shape == (6, 20, 30)
    # A TIFF has its voxels first, then a page of notes for each plane that all say the same.
    end = 6 * 20 * 30 * 2 if suffix == ".tif" else len(whole)
    for cut in [1, 2, 100, 347, 348, 360, 700, end // 2, end - 9, end - 1]:
        path.write_bytes(whole[:cut])
        refuse(path)


def test_a_pair_whose_header_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path / "a.img", oblique())
    header = (tmp_path / "a.hdr").read_bytes()
    (tmp_path / "a.hdr").write_bytes(header[:200])
    refuse(tmp_path / "a.img", "200")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_that_promises_far_more_than_there_is(tmp_path: Path, compressed: bool) -> None:
    """No memory is asked for: 70 TB would not be given."""
    path = tmp_path / ("a.nii.gz" if compressed else "a.nii")
    save(path, BLOCK, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    refuse(path, "cut off", f"{32767**3 * 2:,} bytes")


def test_a_volume_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    path = write(tmp_path / "a.nii", oblique())
    monkeypatch.setattr(np, "empty", full)
    refuse(path, "memory", error=OutOfMemory)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif"])
@pytest.mark.parametrize(
    "content", [b"subject,age\n01,34\n" * 60, bytes(2000), b"\xff" * 2000, b"short"]
)
def test_what_is_no_image(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    refuse(path)


def test_gzip_by_name_only_or_not_by_name(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", BLOCK).rename(tmp_path / "a.nii.gz")
    refuse(tmp_path / "a.nii.gz", "not gzip-compressed", "rename")
    save(tmp_path / "b.nii.gz", BLOCK).rename(tmp_path / "b.nii")
    refuse(tmp_path / "b.nii", "rename it to b.nii.gz")
    (tmp_path / "c.nii.gz").write_bytes(b"\x1f\x8b and then nothing of the kind")
    refuse(tmp_path / "c.nii.gz")


def test_a_flipped_bit_in_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", oblique())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuse(path, "copy it again")


def test_analyze_and_the_wrong_kind_of_nifti(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(BLOCK, np.diag([-1, 1, 1, 1])), tmp_path / "a.img")
    refuse(tmp_path / "a.img", "Analyze", "left from right")
    nib.save(nib.Nifti1Pair(BLOCK, np.eye(4)), tmp_path / "b.img")
    (tmp_path / "b.hdr").rename(tmp_path / "b.nii")
    refuse(tmp_path / "b.nii", ".hdr")
    save(tmp_path / "c.nii", BLOCK).rename(tmp_path / "c.hdr")
    (tmp_path / "c.img").write_bytes(BLOCK.tobytes())
    refuse(tmp_path / "c.hdr", ".nii")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, "boolean"),
        (32, "complex"),
        (1792, "complex"),
        (2048, "complex"),
        (128, "RGB"),
        (2304, "RGBA"),
        (1536, "float128"),
        (0, "unknown"),
        (77, "unknown data type 77"),
    ],
)
def test_voxels_that_are_no_real_numbers(tmp_path: Path, code: int, kind: str) -> None:
    refuse(save(tmp_path / "a.nii", BLOCK, datatype=code, after=bytes(2000)), kind, "convert")


@pytest.mark.parametrize(
    "data",
    [np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.zeros((3, 4, 5), "c8")],
)
def test_rgb_and_complex_as_nibabel_writes_them(tmp_path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    refuse(tmp_path / "a.nii.gz", "real number")


@pytest.mark.parametrize(
    ("dim", "parts"),
    [
        ([1, 24, 1, 1, 1, 1, 1, 1], ["1D", "24"]),
        ([2, 4, 6, 1, 1, 1, 1, 1], ["2D", "4×6"]),
        ([5, 2, 2, 2, 1, 3, 1, 1], ["5 axes", "2×2×2×1×3"]),
        ([6, 2, 2, 2, 1, 1, 3, 1], ["6 axes"]),
        ([0, 2, 3, 4, 1, 1, 1, 1], ["0 axes"]),
        ([8, 2, 3, 4, 1, 1, 1, 1], ["8 axes"]),
        ([3, 2, 0, 4, 1, 1, 1, 1], ["2×0×4"]),
        ([3, -2, 3, 4, 1, 1, 1, 1], ["-2×3×4"]),
        ([4, 2, 3, 4, -1, 1, 1, 1], ["2×3×4×-1"]),
    ],
)
def test_sizes_that_make_no_volume(tmp_path: Path, dim: list[int], parts: list[str]) -> None:
    refuse(save(tmp_path / "a.nii", BLOCK, dim=dim), *parts)


@pytest.mark.parametrize("qform_code", [0, 1])
@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0, 2, 3), "0 × 2 × 3"),
        ((1, -2, 3), "1 × -2 × 3"),
        ((1, 2, np.nan), "nan"),
        ((np.inf, 2, 3), "inf"),
    ],
)
def test_voxel_sizes_that_cannot_be(
    tmp_path: Path, qform_code: int, sizes: tuple[float, ...], text: str
) -> None:
    pixdim = [1, *sizes, 0, 0, 0, 0]
    refuse(save(tmp_path / "a.nii", BLOCK, pixdim=pixdim, qform_code=qform_code), text, "pixdim")
    # With an sform nobody needs them.
    path = save(tmp_path / "b.nii", BLOCK, pixdim=pixdim, affine=rotated())
    np.testing.assert_allclose(read(path).affine, rotated(), atol=1e-5)


@pytest.mark.parametrize("row", [[0, 0, 0, 5], [np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [0, 1, 0, 0]])
def test_an_sform_that_cannot_be(tmp_path: Path, row: list[float]) -> None:
    affine = np.eye(4)
    affine[0] = row
    refuse(save(tmp_path / "a.nii", BLOCK, affine=affine), "sform")


@pytest.mark.parametrize("value", [2.0, np.nan])
def test_a_qform_that_is_no_rotation(tmp_path: Path, value: float) -> None:
    refuse(save(tmp_path / "a.nii", BLOCK, qform_code=1, quatern_b=value), "qform")


def test_an_intercept_that_cannot_be(tmp_path: Path) -> None:
    refuse(save(tmp_path / "a.nii", BLOCK, scl_slope=2, scl_inter=np.nan), "scl_inter")


@pytest.mark.parametrize("offset", [-5, 10, 1e30, np.nan])
def test_voxels_that_begin_nowhere(tmp_path: Path, offset: float) -> None:
    refuse(save(tmp_path / "a.nii", BLOCK, vox_offset=offset))


@EXAMPLES
@given(st.data())
def test_a_header_of_noise_is_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "a.nii", BLOCK)
        content = bytearray(path.read_bytes())
        start = data.draw(st.integers(0, 340))
        noise = data.draw(st.binary(min_size=1, max_size=60))
        content[start : start + len(noise)] = noise
        path.write_bytes(content)
        try:
            assert read(path).data.ndim in (3, 4)
        except (FileError, OutOfMemory) as error:
            assert str(path) in str(error)  # noqa: PT017


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_tiff_of_noise_is_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.tif", Volume(STACK, np.eye(4)), provenance="x")
        content = bytearray(path.read_bytes())
        start = data.draw(st.integers(4, len(content) - 1))
        noise = data.draw(st.binary(min_size=1, max_size=40))
        content[start : start + len(noise)] = noise
        path.write_bytes(content[: data.draw(st.integers(50, len(content)))])
        try:
            assert read(path).data.ndim in (3, 4)
        except (FileError, OutOfMemory) as error:
            assert str(path) in str(error)  # noqa: PT017


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    for suffix in (".nii", ".nii.gz", ".tif"):
        path = write(folder / f"a{suffix}", oblique())
        path.chmod(0)
        with as_ordinary_user():
            refuse(path, "may not be read")


@pytest.mark.parametrize(
    ("data", "keywords", "part"),
    [
        (np.zeros((5, 6), "u1"), {}, "2D"),
        (np.zeros((4, 5, 6, 3), "u1"), {"photometric": "rgb"}, "colour"),
        (np.zeros((5, 6, 3), "u1"), {"photometric": "rgb"}, "colour"),
        (np.zeros((4, 5, 6), "u2"), {"imagej": True, "metadata": {"axes": "TYX"}}, "time series"),
        (np.zeros((4, 5, 6), "c8"), {"photometric": "minisblack"}, "complex"),
        (np.zeros((4, 5, 6), bool), {"photometric": "minisblack"}, "boolean"),
        (np.zeros((2, 3, 4, 5, 6), "u2"), {"photometric": "minisblack"}, "axes"),
        (
            np.zeros((4, 5, 6), "u2"),
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeZ": 0.0}},
            "voxel sizes",
        ),
        (
            np.zeros((4, 5, 6), "u2"),
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": float("nan")}},
            "voxel sizes",
        ),
    ],
)  # fmt: skip
def test_tiffs_that_are_no_grey_stack(
    tmp_path: Path, data: np.ndarray, keywords: dict[str, Any], part: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", data, **keywords)
    refuse(tmp_path / "a.tif", part)


def test_a_tiff_of_several_images(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(STACK, photometric="minisblack")
        tiff.write(STACK[:, :3, :3], photometric="minisblack")
    refuse(tmp_path / "a.tif", "2 images")


@pytest.mark.parametrize(
    "keywords",
    [
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "metadata": None},
        {"photometric": "minisblack", "metadata": None, "bigtiff": True, "byteorder": ">"},
        {"photometric": "minisblack", "metadata": None, "rowsperstrip": 8},
        {"photometric": "minisblack", "compression": "zlib"},
        {"photometric": "minisblack", "compression": "zlib", "metadata": None},
        {"photometric": "minisblack", "tile": (16, 16)},
        {"ome": True, "metadata": {"axes": "ZYX"}},
    ],
)
def test_a_cut_off_tiff_is_refused_or_has_all_its_voxels(
    tmp_path: Path, keywords: dict[str, Any]
) -> None:
    data = RANDOM.integers(1, 60000, (5, 32, 32), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, **keywords)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read(path).data, data)
    for cut in [*range(1, len(whole), len(whole) // 12), *range(len(whole) - 900, len(whole), 60)]:
        path.write_bytes(whole[:cut])
        try:
            volume = read(path)
        except FileError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(volume.data, data)


def test_an_ome_file_whose_planes_are_elsewhere(tmp_path: Path) -> None:
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate("ab")
    )
    description = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        'SizeX="6" SizeY="5" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0"/>'
        f"{planes}</Pixels></Image></OME>"
    )
    for name, plane in zip("ab", STACK, strict=False):
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", plane, description=description, metadata=None
        )
    refuse(tmp_path / "a.ome.tif", "series of OME files")
    (tmp_path / "b.ome.tif").unlink()
    refuse(tmp_path / "a.ome.tif", "series of OME files")


# Number types --------------------------------------------------------------------------------

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


@settings(max_examples=200, deadline=None)
@given(st.floats(width=64), st.sampled_from(INTEGERS), st.sampled_from(["f2", "f4", "f8"]))
@example(2.0**63, "i8", "f8")
@example(2.0**64, "u8", "f4")
@example(-(2.0**63), "i8", "f8")
@example(float("nan"), "u1", "f4")
@example(65504.0, "i2", "f2")
def test_floats_are_rounded_and_clipped_never_wrapped(
    number: float, dtype: str, source: str
) -> None:
    with np.errstate(over="ignore"):
        value = np.array([number]).astype(source)
    info = np.iinfo(dtype)
    exact = float(value[0])
    if np.isnan(exact):
        expected = 0
    elif np.isinf(exact):
        expected = info.max if exact > 0 else info.min
    else:
        expected = min(max(round(exact), info.min), info.max)  # Python's integers do not wrap
    result = cast(value, dtype)
    assert result.dtype == np.dtype(dtype)
    assert int(result[0]) == expected


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(INTEGERS))
def test_integers_are_clipped_never_wrapped(data: st.DataObject, source: str, dtype: str) -> None:
    have, want = np.iinfo(source), np.iinfo(dtype)
    number = data.draw(st.integers(have.min, have.max) | st.sampled_from([have.min, have.max]))
    result = cast(np.array([number], source), dtype)
    assert result.dtype == np.dtype(dtype)
    assert int(result[0]) == min(max(number, want.min), want.max)


@EXAMPLES
@given(
    arrays("i2", 20),
    st.floats(0.001, 1000).flatmap(lambda s: st.sampled_from([s, -s])),
    st.floats(-1000, 1000),
)
def test_scale_factors_are_undone(stored: np.ndarray, slope: float, intercept: float) -> None:
    real = stored * slope + intercept
    np.testing.assert_array_equal(cast(real, "i2", slope, intercept), stored)


def test_scaled_extremes_and_nan() -> None:
    values = np.array([1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(cast(values, "i2", 0.5, 10), [32767, -32768, 32767, -32768, -20])
    np.testing.assert_array_equal(cast(values, "u1", 0.5, 10)[-1], 0)


def test_narrower_floats_are_clipped_and_infinities_stay() -> None:
    values = np.array([1e300, -1e300, np.inf, np.nan, 1.5])
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(
        cast(values, np.float32), np.array([largest, -largest, np.inf, np.nan, 1.5], np.float32)
    )


def test_the_given_array_is_left_alone() -> None:
    values = np.array([0.4, 300.0, np.nan])
    before = values.copy()
    cast(values, np.uint8)
    cast(values, np.float32, 2, 1)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("dtype", [np.bool_, np.complex64, np.float16, [("R", "u1")], "U3"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".tif"])
def test_number_types_that_no_file_takes(tmp_path: Path, dtype: Any, suffix: str) -> None:
    with pytest.raises(UsageError, match=rf"a\{suffix}.*choose"):
        write(tmp_path / f"a{suffix}", Volume(np.zeros((2, 3, 4), dtype), np.eye(4)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["i1", "u4", "i4", "i8", "f8"])
def test_number_types_that_imagej_does_not_know(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UsageError, match=r"a\.tif.*float32"):
        write(tmp_path / "a.tif", oblique(), dtype=dtype)


def test_scale_factors_do_not_fit_in_tiff(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="scale factors"),
        create(tmp_path / "a.tif", oblique().grid, "i2", slope=0.5),
    ):
        pass


def test_a_number_type_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nonsense'"):
        write(tmp_path / "a.nii", oblique(), dtype="nonsense")


def test_same_without_an_origin_is_the_arrays_own(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.nii", oblique(dtype="u2"), dtype="same")).data.dtype == "u2"


# Slab by slab --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*NIFTI, ".tif"])
@EXAMPLES
@given(st.data())
def test_slabs_of_any_thickness_make_the_same_file(suffix: str, data: st.DataObject) -> None:
    volume = oblique((2, 5, 4, 3), time_step=2.0)
    planes = volume.data.reshape(-1, 4, 3)
    cuts = sorted(data.draw(st.sets(st.integers(1, 9))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        with create(path, volume.grid, np.float32, frames=2, time_step=2.0) as out:
            for slab in np.split(planes, cuts):
                out.write(slab)
            assert not path.exists()
            assert all(entry.name.startswith(".") for entry in Path(folder).iterdir())
        whole = write(Path(folder) / f"b{suffix}", volume)
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".tif"])
def test_memory_is_bounded_by_the_slab(tmp_path: Path, suffix: str) -> None:
    grid = Grid.from_spacing((512, 256, 256), 1)
    slab = np.zeros((8, 256, 256), np.float32)
    tracemalloc.start()
    with create(tmp_path / f"a{suffix}", grid, np.uint8, slope=1) as out:
        for _ in range(64):
            out.write(slab)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6  # the file: 33.5 MB


def test_real_values_are_stored_by_the_scale_factors(tmp_path: Path) -> None:
    grid = Grid.from_spacing((2, 2, 2), 1)
    values = np.array([0.24, 0.26, -5, 1e6, 0, 1, 2, 3], np.float32).reshape(2, 2, 2)
    with create(tmp_path / "a.nii", grid, "u1", slope=0.5, intercept=-1) as out:
        out.write(values)
    image = nib.load(tmp_path / "a.nii")
    np.testing.assert_array_equal(
        np.asarray(image.dataobj.get_unscaled()).T.ravel(), [2, 3, 0, 255, 2, 4, 6, 8]
    )
    np.testing.assert_allclose(read(tmp_path / "a.nii").data.ravel()[4:], [0, 1, 2, 3])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".tif"])
def test_too_few_or_too_many_planes_leave_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    grid = Grid.from_spacing((4, 3, 2), 1)
    with pytest.raises(ValueError, match="3 of its 4 planes"), create(path, grid, "u1") as out:
        out.write(np.zeros((3, 3, 2)))
    with pytest.raises(ValueError, match="4 planes, not 5"), create(path, grid, "u1") as out:
        out.write(np.zeros((5, 3, 2)))
    for shape in [(1, 2, 3), (3, 2), (1, 1, 3, 2)]:
        with pytest.raises(ValueError, match="slabs of"), create(path, grid, "u1") as out:
            out.write(np.zeros(shape))
    with pytest.raises(UsageError, match="at least one frame"), create(path, grid, "u1", frames=0):
        pass
    assert list(tmp_path.iterdir()) == []


# Whole or not at all -------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file, in the stores there are as well."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".hdr", ".tif", ".ome.zarr"])
def test_an_interrupted_file_leaves_no_trace_and_an_older_one_stays(
    tmp_path: Path, suffix: str, old: bool
) -> None:
    path = tmp_path / f"a{suffix}"
    volume = oblique()
    if old:
        write(path, oblique())
    before = snapshot(tmp_path)

    def begin_and(end: Callable[[], None]) -> None:
        with create(path, volume.grid, "f4") as out:
            out.write(volume.data[:2])
            end()

    def fail() -> None:
        raise OSError("input went away")  # not ours to explain

    with pytest.raises(KeyboardInterrupt):
        begin_and(lambda: signal.raise_signal(signal.SIGINT))
    assert snapshot(tmp_path) == before
    with pytest.raises(OSError, match=r"^input went away$"):
        begin_and(fail)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".tif"])
@pytest.mark.parametrize(
    "place",
    [
        (writing_module, "_made_by"),
        (nifti_module, "_new_header"),
        (tifffile, "imwrite"),
        (writing_module, "SlabWriter"),
        (writing_module, "cast"),
        (writing_module._Stream, "finish"),
        (os, "fsync"),
        (writing_module, "_rename"),
        (Path, "replace"),
    ],
)
def test_ctrl_c_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, place: tuple[Any, str]
) -> None:
    called = []

    def interrupt(*_: Any, **__: Any) -> None:
        called.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, interrupt)
    try:
        write(tmp_path / f"a{suffix}", oblique())
    except KeyboardInterrupt:
        assert called
        assert list(tmp_path.iterdir()) == []
    else:
        assert not called  # the other format's own function


def test_ctrl_c_between_the_halves_of_a_pair_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.img", oblique())
    replace = Path.replace

    def interrupt(self: Path, target: Path) -> Path:
        if target.suffix == ".hdr":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.img", oblique((2, 3, 4)))
    assert list(tmp_path.iterdir()) == []


def test_the_header_of_a_pair_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.img", oblique())
    seen = []
    replace = Path.replace

    def watch(self: Path, target: Path) -> Path:
        seen.append((target.suffix, (tmp_path / "a.hdr").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    write(tmp_path / "a.hdr", oblique())
    assert seen == [(".img", False), (".hdr", False)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the system refuse to write further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [100, 20_000])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".tif"])
def test_a_full_disk_names_the_bytes_and_leaves_nothing(
    tmp_path: Path, suffix: str, limit: int
) -> None:
    path = write(tmp_path / f"a{suffix}", oblique())
    before = snapshot(tmp_path)
    volume = oblique((10, 40, 50))
    with largest_file(limit), pytest.raises(FileError) as caught:
        write(path, volume)
    assert str(path) in str(caught.value)
    assert "no room on the disk" in str(caught.value)
    assert "80,000 bytes" in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_disk_that_fills_while_slabs_are_written(tmp_path: Path) -> None:
    class Full:
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    class Failing:
        def write(self, _: Any) -> int:
            raise OSError(errno.EIO, "Input/output error")

    volume = oblique((4, 5, 6))
    layout = writing_module.Layout(volume.grid, np.dtype("f4"))
    path = tmp_path / "a.nii"
    with pytest.raises(FileError, match=r"no room on the disk: .*a\.nii needs 480 bytes"):
        SlabWriter(path, Full(), layout).write(volume.data)  # type: ignore[arg-type]
    with pytest.raises(FileError, match=r"a\.nii cannot be written \(input/output error\)"):
        SlabWriter(path, Failing(), layout).write(volume.data)  # type: ignore[arg-type]


def test_too_little_room_is_noticed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing_module.shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    for suffix in (".nii", ".img", ".tif"):
        with (
            pytest.raises(FileError, match=rf"no room on the disk: .*a\{suffix} needs 840 bytes"),
            create(tmp_path / f"a{suffix}", oblique().grid, "f4"),
        ):
            pytest.fail("the work has begun")
    write(tmp_path / "a.nii.gz", oblique())  # its size is known only afterwards
    monkeypatch.setattr(writing_module.shutil, "disk_usage", lambda _: usage(1000, 1000, 0))
    with pytest.raises(FileError, match=r"no room on the disk: .*840 bytes before compression"):
        write(tmp_path / "b.nii.gz", oblique())


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    for suffix in (".nii", ".nii.gz", ".img", ".tif"):
        path = write(tmp_path / f"a{suffix}", oblique())
        assert path.stat().st_mode == usual
    assert (tmp_path / "a.hdr").stat().st_mode == usual


# Names ---------------------------------------------------------------------------------------


def test_volumes_in_a_folder(tmp_path: Path) -> None:
    names = ["b.nii", "a.nii.gz", "C.TIF", "d.tiff", "e.img", "e.hdr", "f.ome.tif"]
    strays = ["notes.txt", ".hidden.nii", "lone.img", "alone.hdr", "x.mgz", ".nii", "b.json"]
    for name in names + strays:
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    found = [path.name for path in io.volumes_in(tmp_path)]
    assert found == ["C.TIF", "a.nii.gz", "b.nii", "d.tiff", "e.img", "f.ome.tif"]
    assert io.volumes_in(tmp_path / "folder.nii") == []


def test_a_folder_that_is_locked_hides_no_volumes_beside_it(folder: Path) -> None:
    (folder / "a.nii").touch()
    (folder / "lost+found").mkdir(mode=0o000)
    with as_ordinary_user():
        assert io.volumes_in(folder) == [folder / "a.nii"]


def test_volumes_in_no_folder(folder: Path) -> None:
    with pytest.raises(FileError, match="gone does not exist"):
        io.volumes_in(folder / "gone")
    (folder / "a.nii").touch()
    with pytest.raises(FileError, match=r"a\.nii is a file"):
        io.volumes_in(folder / "a.nii")
    (folder / "locked").mkdir(mode=0o000)
    with as_ordinary_user(), pytest.raises(FileError, match=r"locked.*permission"):
        io.volumes_in(folder / "locked")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/sub-01.nii.gz", "sub-01"),
        ("sub-01_T1w.nii", "sub-01_T1w"),
        ("a.b.IMG", "a.b"),
        ("A.NII.GZ", "A"),
        ("stack.ome.tif", "stack.ome"),
        ("other.mgz", "other"),
        ("plain", "plain"),
    ],
)
def test_stems(path: str, expected: str) -> None:
    assert io.stem(path) == expected
    assert io.stem(Path(path)) == expected


@pytest.mark.parametrize("suffix", io.SUFFIXES)
def test_a_good_output_is_accepted_and_nothing_is_made(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert check_output(str(path), [tmp_path / "in.nii", "elsewhere/out.nii"]) == path
    assert list(tmp_path.iterdir()) == []
    write(path, oblique(), provenance='{"napari-arssr fit": {}}')
    assert check_output(path) == path  # an older result may be replaced


@pytest.mark.parametrize("suffix", io.SUFFIXES)
def test_an_output_that_others_made_is_refused_and_left(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    for text in ("", "{", "[]", '{"other": {}}', '["napari-arssr"]'):
        write(path, oblique(), provenance=text)
        assert not io.is_result(path)
        with pytest.raises(UsageError, match=r"scan.*is there already and is no result.*remove"):
            check_output(path)
    if io.is_store(path):
        shutil.rmtree(path)
    for file in io.files_of(path):
        file.write_bytes(b"no volume of any kind")
    with pytest.raises(UsageError, match="is there already"):
        check_output(path)
    for file in io.files_of(path):
        file.write_bytes(b"")
    assert check_output(path) == path  # as mktemp makes it


def test_half_a_pair_and_a_link_to_what_is_not_fetched_are_not_replaced(tmp_path: Path) -> None:
    pair = write(tmp_path / "pair.img", oblique(), provenance='{"napari-arssr": {}}')
    pair.with_suffix(".hdr").unlink()
    link = tmp_path / "link.nii.gz"
    link.symlink_to("annex/objects/a")
    for path in (pair, link):
        with pytest.raises(UsageError, match="is there already"):
            check_output(path)
    assert link.is_symlink()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif"])
def test_whether_a_file_is_a_result_is_seen_without_its_voxels(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / f"a{suffix}", oblique(), provenance='{"napari-arssr": {}}')
    monkeypatch.setattr(nifti_module, "_voxels", None)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)
    assert io.is_result(path)


@pytest.mark.parametrize("suffix", [*NIFTI, ".tif"])
@pytest.mark.parametrize("most", [None, 0])
def test_a_frame_is_read_alone(tmp_path: Path, suffix: str, most: int | None) -> None:
    volume = oblique((4, 30, 40, 50), np.int16, time_step=2.0)
    path = write(tmp_path / f"series{suffix}", volume)
    for number in range(4):
        one = read(path, frame=number, most=most)
        np.testing.assert_array_equal(one.data, volume.data[number])
        assert (one.frames, one.time_step, one.grid.shape) == (1, 0, (30, 40, 50))
    for number in (4, -1):
        with pytest.raises(UsageError, match=rf"series.*no frame {number}; it has frames 0 to 3"):
            read(path, frame=number)
    alone = write(tmp_path / f"alone{suffix}", volume.frame(1))
    np.testing.assert_array_equal(read(alone, frame=0).data, volume.data[1])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_for_a_frame_no_memory_is_taken_for_the_others(tmp_path: Path, suffix: str) -> None:
    volume = Volume(np.zeros((50, 20, 100, 100), np.int16), rotated())
    path = write(tmp_path / f"series{suffix}", volume)
    read(path, frame=3)  # and all that is imported
    tracemalloc.start()
    one = read(path, frame=30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * one.data.nbytes < volume.data.nbytes / 5


def test_a_damaged_end_shows_where_it_is_read(tmp_path: Path) -> None:
    """Of the last frame, and of an only one, the checksum behind it is looked at."""
    for shape, last in [((3, 20, 30, 40), 2), ((20, 30, 40), 0)]:
        path = write(tmp_path / "a.nii.gz", oblique(shape))
        content = bytearray(path.read_bytes())
        content[-6] ^= 1  # of the checksum
        path.write_bytes(content)
        with pytest.raises(FileError, match="damaged"):
            read(path, frame=last)


@pytest.mark.parametrize("most", [None, 0])
def test_scale_factors_beyond_a_number_type_are_refused(tmp_path: Path, most: int | None) -> None:
    """Infinities that the file holds itself are its own."""
    stored = np.array([1, 1000], np.int16).reshape(1, 1, 2)
    with create(tmp_path / "a.nii", Grid((1, 1, 2), np.eye(4)), "i2", slope=1e37) as out:
        out.write(stored * 1e37)
    with pytest.raises(FileError, match=r"a\.nii: .*scale factors 1e\+37 and 0 .*float32"):
        np.asarray(read(tmp_path / "a.nii", most=most).data)
    with create(tmp_path / "b.nii", Grid((1, 1, 2), np.eye(4)), "f4", slope=2.0) as out:
        out.write(np.array([np.inf, 3], np.float32).reshape(1, 1, 2))
    assert np.asarray(read(tmp_path / "b.nii", most=most).data).tolist() == [[[np.inf, 3]]]


@pytest.mark.parametrize("name", ["out", "out.mgz", "out.gz", ".nii"])
def test_an_output_without_a_known_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"suffix.*\.nii\.gz"):
        check_output(tmp_path / name)


def test_an_output_that_is_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.nii", oblique())
    pair = write(tmp_path / "pair.img", oblique())
    (tmp_path / "soft.nii").symlink_to(path)
    (tmp_path / "hard.nii").hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    for output, given_input in [
        (path, path),
        (path, "in.nii"),
        ("in.nii", path),
        (tmp_path / "soft.nii", path),
        (tmp_path / "hard.nii", path),
        (tmp_path / "sub" / ".." / "in.nii", path),
        (tmp_path / "pair.hdr", pair),
        (pair, tmp_path / "pair.hdr"),
        ("new.nii", tmp_path / "new.nii"),
    ]:
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="is the input itself"):
            check_output(output, ["other.nii", given_input])
    check_output(tmp_path / "pair.nii", [pair])


def test_an_output_folder_that_is_missing_a_file_or_not_writable(folder: Path) -> None:
    with pytest.raises(FileError, match=r"gone does not exist"):
        check_output(folder / "gone" / "a.nii")
    (folder / "file").touch()
    with pytest.raises(FileError, match=r"file does not exist"):
        check_output(folder / "file" / "a.nii")
    (folder / "a.nii").mkdir()
    with pytest.raises(UsageError, match=r"a\.nii is a folder"):
        check_output(folder / "a.nii")
    (folder / "fixed").mkdir(mode=0o555)
    with as_ordinary_user(), pytest.raises(FileError, match="cannot be written to"):
        check_output(folder / "fixed" / "b.nii")
    (folder / "locked").mkdir(mode=0o000)
    with as_ordinary_user(), pytest.raises(FileError, match="cannot be written"):
        check_output(folder / "locked" / "b.nii")


def test_a_write_protected_output(folder: Path) -> None:
    folder.chmod(0o777)
    path = write(folder / "a.nii", oblique())
    path.chmod(0o444)
    before = path.read_bytes()
    with as_ordinary_user(), pytest.raises(FileError, match="write-protected"):
        write(path, oblique())
    assert path.read_bytes() == before


def test_write_and_create_check_their_output(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        write(tmp_path / "gone" / "a.nii", oblique())
    with (
        pytest.raises(UsageError, match="suffix"),
        create(tmp_path / "a.png", oblique().grid, "f4"),
    ):
        pytest.fail("the work has begun")


def test_importing_io_loads_no_heavy_package() -> None:
    heavy = "{'torch', 'nibabel', 'tifffile', 'napari', 'qtpy', 'scipy', 'SimpleITK'}"
    command = f"import sys, napari_arssr.io; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
