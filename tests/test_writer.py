"""Layers as files: what is written is what the layer is now, read back by other programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import nibabel as nib
import npe2
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import LayerList
from napari.layers import Image, Labels
from scipy.spatial.transform import Rotation

from napari_arssr._compare import Comparison
from napari_arssr._layers import image_layer, loaded, volume_of
from napari_arssr._reader import napari_get_reader
from napari_arssr._view import mark_helper, mark_result
from napari_arssr._writer import (
    write_folder,
    write_image,
    write_image_tiff,
    write_labels,
    write_labels_tiff,
)
from napari_arssr.errors import FileError
from napari_arssr.io import Origin, StoredArray
from napari_arssr.volume import Volume

Array = npt.NDArray[Any]

# World I, P, L of napari to R, A, S of NIfTI.
TO_RAS = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
EXAMPLES = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    """napari's own plugin and ours, as napari finds them when it starts."""
    npe2.PluginManager.instance().discover()


def save(folder: Path, layer: Any, name: str = "saved.nii.gz") -> Path:
    """Save a layer as napari does, through the manifest."""
    (written,) = LayerList([layer]).save(str(folder / name), plugin="napari-arssr")
    assert written == str(folder / name)
    return Path(written)


def opened(path: Path) -> Image | Labels:
    reader = napari_get_reader(str(path))
    assert reader is not None
    ((data, meta, kind),) = reader(str(path))
    return {"image": Image, "labels": Labels}[kind](data, **meta)


def positions(path: Path) -> dict[float, tuple[float, ...]]:
    """Where nibabel finds every value, RAS+ millimetres."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj)
    return {
        float(data[index]): tuple(nib.affines.apply_affine(image.affine, index))
        for index in np.ndindex(data.shape[:3])
    }


def check_sitk_agrees(path: Path) -> None:
    """SimpleITK finds the same numbers at the same places as nibabel."""
    ours, theirs = nib.load(path), SimpleITK.ReadImage(str(path))
    data = SimpleITK.GetArrayFromImage(theirs)
    np.testing.assert_array_equal(data, np.asanyarray(ours.dataobj).transpose())
    for index in [(0, 0, 0), tuple(n - 1 for n in ours.shape[:3])]:
        place = theirs.TransformIndexToPhysicalPoint(
            [int(i) for i in index] + [0] * (data.ndim - 3)
        )
        expected = nib.affines.apply_affine(ours.affine, index) * [-1, -1, 1]  # ITK counts LPS
        np.testing.assert_allclose(place[:3], expected, atol=1e-3)


@st.composite
def rigid(draw: st.DrawFn) -> Array:
    """A NIfTI affine: turned by any angles, flipped, of any voxel size; no shear."""
    angles = [draw(st.floats(-180, 180)) for _ in range(3)]
    sizes = [draw(st.floats(0.3, 6)) for _ in range(2)]
    sizes.append(draw(st.floats(0.3, 6)) * draw(st.sampled_from([-1, 1])))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(sizes)
    affine[:3, 3] = [draw(st.floats(-120, 120)) for _ in range(3)]
    return affine


# Round trips ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What a NIfTI file is made of."""

    affine: Array
    shape: tuple[int, int, int]
    dtype: str
    time_step: float
    suffix: str
    seed: int

    def save(self, path: Path) -> Array:
        random = np.random.default_rng(self.seed)
        shape = (*self.shape, 3) if self.time_step else self.shape
        data = random.integers(0, 100, shape).astype(self.dtype)
        if data.dtype.kind == "f":
            data += random.random(shape).astype(self.dtype)
        image = nib.Nifti1Image(data, self.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(self.affine, code=1)
        image.set_sform(self.affine, code=1)
        if self.time_step:
            image.header["pixdim"][4] = self.time_step
        nib.save(image, path)
        return data


scans = st.builds(
    Scan,
    affine=rigid(),
    shape=st.tuples(*[st.integers(2, 5)] * 3),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", ">i2", ">f4"]),
    time_step=st.sampled_from([0.0, 0.5, 2.5]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    seed=st.integers(0, 99),
)


@EXAMPLES
@given(scans)
def test_a_file_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, scan: Scan) -> None:
    folder = tmp_path_factory.mktemp("round")
    before = folder / f"scan{scan.suffix}"
    data = scan.save(before)
    path = save(folder, opened(before), f"saved{scan.suffix}")
    saved = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), data)
    assert saved.get_data_dtype() == np.dtype(scan.dtype).newbyteorder("=")
    np.testing.assert_allclose(saved.affine, nib.load(before).affine, atol=1e-5)
    assert saved.header["pixdim"][4] == pytest.approx(scan.time_step)
    assert int(saved.header["sform_code"]) == 1
    check_sitk_agrees(path)


def test_a_sheared_affine_comes_back_too(tmp_path: Path) -> None:
    affine = np.array([[2, 0.3, 0.1, -50], [0, 1.5, -0.2, 30], [0.1, 0, 3, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(np.arange(24.0).reshape(2, 3, 4), affine), tmp_path / "a.nii")
    saved = nib.load(save(tmp_path, opened(tmp_path / "a.nii")))
    np.testing.assert_allclose(saved.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(saved.get_fdata(), np.arange(24.0).reshape(2, 3, 4))


def test_a_pair_is_written_as_a_pair(tmp_path: Path) -> None:
    layer = Image(np.arange(24.0).reshape(2, 3, 4), name="a")
    for name in ("one.hdr", "two.img"):
        written = LayerList([layer]).save(str(tmp_path / name), plugin="napari-arssr")
        stem = name[:3]
        assert sorted(written) == [str(tmp_path / f"{stem}.hdr"), str(tmp_path / f"{stem}.img")]
        np.testing.assert_array_equal(nib.load(written[0]).get_fdata().transpose(), layer.data)


def test_a_header_keeps_what_only_the_file_knew(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.diag([1, 2, 3, 1]))
    image.set_sform(image.affine, code=4)
    image.header.set_intent("z score", name="contrast 1")
    image.header["descrip"] = b"made by a scanner"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"at length"))
    nib.save(image, tmp_path / "a.nii")
    header = nib.load(save(tmp_path, opened(tmp_path / "a.nii"))).header
    assert int(header["sform_code"]) == 4
    assert header.get_intent() == ("z score", (), "contrast 1")
    assert bytes(header["descrip"]).rstrip(b"\0") == b"made by a scanner"
    assert header.extensions[0].get_content().rstrip(b"\0") == b"at length"


# Any layer -----------------------------------------------------------------------------------


def ras_of(layer: Any, index: tuple[int, ...]) -> Array:
    """Where napari shows a voxel, in RAS+."""
    world = np.array(layer.data_to_world(index))[-3:]
    return TO_RAS[:3, :3] @ world


@EXAMPLES
@given(st.integers(0, 10_000))
def test_a_layer_made_by_hand_lies_where_napari_shows_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("hand")
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = random.normal(size=(3, 3)) + 2 * np.eye(3)
    affine[:3, 3] = random.normal(size=3) * 50
    layer = Image(
        np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        scale=random.uniform(0.2, 4, 3),
        translate=random.normal(size=3) * 20,
        rotate=Rotation.random(rng=random).as_matrix(),
        shear=random.normal(size=3) * 0.2,
        affine=affine if seed % 2 else None,
    )
    found = positions(save(folder, layer))
    assert len(found) == 24
    for index in np.ndindex(layer.data.shape):
        np.testing.assert_allclose(
            found[layer.data[index]], ras_of(layer, index), atol=1e-4, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("units", "millimetres"),
    [
        (None, (1, 1, 1)),
        ("pixel", (1, 1, 1)),
        ("mm", (1, 1, 1)),
        ("um", (1e-3,) * 3),
        (("nm", "um", "m"), (1e-6, 1e-3, 1e3)),
        (("mm", "pixel", "inch"), (1, 1, 25.4)),
    ],
)
def test_units_become_millimetres(tmp_path: Path, units: Any, millimetres: Any) -> None:
    layer = Image(np.zeros((2, 3, 4)), scale=(2, 3, 4), translate=(5, 6, 7), units=units)
    saved = nib.load(save(tmp_path, layer))
    i, p, l = np.array([2, 3, 4]) * millimetres  # noqa: E741 (the axes' names)
    expected = np.diag([-l, -p, -i, 1])
    expected[:3, 3] = -(np.array([5, 6, 7]) * millimetres)[::-1]
    np.testing.assert_allclose(saved.affine, expected, rtol=1e-6, atol=1e-12)
    assert saved.header.get_xyzt_units()[0] == "mm"


def test_a_crop_and_a_derived_layer_are_saved_as_they_are_now(tmp_path: Path) -> None:
    data = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    affine = np.array([[0, 0, 2, 9], [-1.5, 0, 0, 8], [0, 1, 0, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
    source = opened(tmp_path / "a.nii")
    whole = positions(tmp_path / "a.nii")

    # As cropping tools do it: a part of the data, moved by translate, with a copy of the rest.
    start = (1, 2, 0)
    _, meta, _ = source.as_layer_data_tuple()
    crop = Image(source.data[1:3, 2:6, :3], **meta | {"contrast_limits": (0, 1)})
    crop.affine = source.affine.affine_matrix @ translation(start)
    found = positions(save(tmp_path, crop, "crop.nii"))
    assert found.keys() < whole.keys()
    assert len(found) == crop.data.size
    for value, place in found.items():
        np.testing.assert_allclose(place, whole[value], atol=1e-4)
    assert nib.load(tmp_path / "crop.nii").shape != crop.data.shape[::-1]  # the file's own order

    # Painted on, moved and renamed: never the copy that the file once gave.
    source.data[...] = source.data * -1
    source.translate = (0, 0, 10)
    moved = positions(save(tmp_path, source, "moved.nii"))
    assert moved.keys() == {-value for value in whole}
    for index in np.ndindex(source.data.shape):
        place = moved[source.data[index]]
        np.testing.assert_allclose(place, ras_of(source, index), atol=1e-4)
        assert not np.allclose(place, whole[-source.data[index]])


def translation(start: tuple[int, int, int]) -> Array:
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


def test_a_result_is_saved_in_the_order_of_its_inputs_file(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 2, 9], [-1.5, 0, 0, 8], [0, 1, 0, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), tmp_path / "a.nii")
    volume = volume_of(opened(tmp_path / "a.nii"))
    grid = volume.grid.scaled(2)
    result = Volume(
        np.zeros(grid.shape, np.float32),
        grid.affine,
        name="a ×2",
        metadata=volume.metadata | {"upsampling": {"weights": "default", "scale": 2.0}},
    )
    data, meta, _ = image_layer(result)
    saved = nib.load(save(tmp_path, Image(data, **meta)))
    assert saved.shape == (8, 10, 12)
    np.testing.assert_allclose(saved.affine[:3, :3], affine[:3, :3] / 2, atol=1e-6)
    comment = saved.header.extensions[0].get_content().decode()
    assert '"weights": "default"' in comment
    assert saved.header["descrip"].item().startswith(b"napari-arssr")


def test_a_plane_and_planes_in_time_are_saved(tmp_path: Path) -> None:
    plane = Image(np.arange(12, dtype=np.float32).reshape(3, 4), scale=(2, 3), translate=(5, 6))
    saved = nib.load(save(tmp_path, plane))
    assert saved.shape == (4, 3, 1)
    np.testing.assert_array_equal(saved.get_fdata()[..., 0].T, plane.data)
    np.testing.assert_allclose(np.diag(saved.affine)[:3], [-3, -2, -3])
    np.testing.assert_allclose(saved.affine[:3, 3], [-6, -5, 0])

    movie = Image(np.arange(24.0).reshape(2, 3, 4), scale=(40, 2, 3), units=("ms", "mm", "mm"))
    saved = nib.load(save(tmp_path, movie))
    assert saved.shape == (4, 3, 1, 2)
    assert saved.header["pixdim"][4] == pytest.approx(0.04)
    np.testing.assert_array_equal(saved.get_fdata()[:, :, 0].T, movie.data)


def test_a_series_made_by_hand_keeps_its_time_step(tmp_path: Path) -> None:
    data = np.arange(120, dtype=np.int32).reshape(2, 3, 4, 5)
    layer = Image(data, scale=(1.5, 3, 2, 1), units=("s", "mm", "mm", "mm"))
    saved = nib.load(save(tmp_path, layer))
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj).T, data)
    assert saved.header.get_zooms() == (1, 2, 3, 1.5)
    assert saved.header.get_xyzt_units() == ("mm", "sec")


def test_a_series_keeps_when_it_begins(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 3, 2, 3), np.float32), np.eye(4))
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 500
    image.header["toffset"] = 2500
    nib.save(image, tmp_path / "a.nii")
    layer = opened(tmp_path / "a.nii")
    assert [layer.data_to_world((t, 0, 0, 0))[0] for t in (0, 2)] == [2.5, 3.5]
    saved = nib.load(save(tmp_path, layer, "b.nii"))
    assert (saved.header["toffset"], saved.header.get_xyzt_units()) == (2.5, ("mm", "sec"))
    layer.translate = (10, 0, 0, 0)  # frames; what it is now, not what the file said
    saved = nib.load(save(tmp_path, layer, "c.nii"))
    assert saved.header["toffset"] == 7.5

    made = Image(np.zeros((2, 2, 3, 4)), scale=(40, 1, 1, 1), translate=(200, 0, 0, 0))
    made.units = ("ms", "mm", "mm", "mm")
    assert nib.load(save(tmp_path, made)).header["toffset"] == pytest.approx(0.2)


def test_of_a_pyramid_the_finest_level_is_saved(tmp_path: Path) -> None:
    data = np.arange(8 * 8 * 8.0).reshape(8, 8, 8)
    layer = Image([data, data[::2, ::2, ::2]], multiscale=True, scale=(3, 2, 1))
    saved = nib.load(save(tmp_path, layer))
    np.testing.assert_array_equal(saved.get_fdata().T, data)
    np.testing.assert_allclose(saved.header.get_zooms(), (1, 2, 3))


def test_data_that_are_not_in_memory_are_written_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_arssr._writer._PART", 3 * 20 * 30)

    def make(block_id: tuple[int, ...]) -> Array:
        return np.full((1, 1, 20, 30), block_id[0] * 10 + block_id[1], np.int16)

    data = da.map_blocks(make, chunks=((1,) * 2, (1,) * 7, (20,), (30,)), dtype=np.int16)
    asked: list[tuple[int, ...]] = []

    def noted(volume: Volume) -> Volume:
        asked.append(volume.data.shape)
        return loaded(volume)

    monkeypatch.setattr("napari_arssr._writer.loaded", noted)
    layer = Image(data, contrast_limits=(0, 1))
    saved = nib.load(save(tmp_path, layer))
    expected = np.arange(2)[:, None] * 10 + np.arange(7)
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj)[0, 0].T, expected)
    assert max(shape[0] for shape in asked) == 3


class OnlySlices:
    """What h5py, zarr and others have in common: shape, number type, slices; no ``transpose``."""

    def __init__(self, data: Array) -> None:
        self._data = data
        self.shape, self.ndim, self.dtype, self.size = data.shape, data.ndim, data.dtype, data.size

    def __getitem__(self, key: Any) -> Array:
        if any(one is None for one in (key if isinstance(key, tuple) else (key,))):
            raise IndexError("no new axes")
        return self._data[key]


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_an_array_of_any_kind_is_saved(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    layer = Image(OnlySlices(data), contrast_limits=(0, 1), scale=range(2, 2 + len(shape)))
    saved = nib.load(save(tmp_path, layer))
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj).T.squeeze(), data)
    assert saved.header.get_zooms()[:2] == (1 + len(shape), len(shape))
    flags = Labels(OnlySlices(data.astype(np.uint8)), scale=layer.scale)
    saved = nib.load(save(tmp_path, flags, "labels.nii"))
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj).T.squeeze(), data)


def left_in_its_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What is written, (x, y, z), and a layer that reads it from there."""
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 100)
    data = np.arange(2 * 30 * 40, dtype=np.int16).reshape(40, 30, 2)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return data, opened(path)


def test_a_plane_that_is_still_in_its_file_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, layer = left_in_its_file(tmp_path / "a.nii", monkeypatch)
    plane = layer.data[1]
    assert isinstance(plane, StoredArray)
    saved = nib.load(save(tmp_path, Image(plane, contrast_limits=(0, 1)), "plane.nii"))
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj)[..., 0].T, np.asarray(plane))


# Numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (np.array([False, True]), "uint8"),
        (np.array([0, 1], np.float16), "float32"),
        (np.array([1 / 3, -1e300]), "float64"),
        (np.array([-(2**31), 2**31 - 1], np.int64), "int32"),
        (np.array([0, 2**31], np.int64), "int64"),
        (np.array([-(2**31) - 1, 0], np.int64), "int64"),
        (np.array([0, 2**31 - 1], np.uint64), "int32"),
        (np.array([0, 2**64 - 1], np.uint64), "uint64"),
        (np.array([0, 2**32 - 1], np.uint32), "uint32"),
        (np.array([np.nan, np.inf], np.float32), "float32"),
    ],
    ids=lambda value: getattr(value, "dtype", value),
)
def test_numbers_are_stored_exactly(tmp_path: Path, data: Array, stored: str) -> None:
    volume = np.resize(data, (2, 2, 2))
    (path,) = write_image(str(tmp_path / "a.nii"), volume, {"name": "a"})
    saved = nib.load(path)
    assert saved.get_data_dtype() == stored
    assert not np.isfinite(saved.header["scl_slope"]) or saved.header["scl_slope"] == 1
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj).T, volume)


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (np.array([0, 40_000], np.int64), "uint16"),
        (np.array([-5, 40], np.int32), "int16"),
        (np.array([-5, 4], np.int8), "int16"),
        (np.array([0, 200], np.uint8), "uint8"),
        (np.array([False, True]), "uint8"),
        (np.array([0.25, 4], np.float32), "float32"),
    ],
    ids=lambda value: getattr(value, "dtype", value),
)
def test_a_tiff_stores_them_exactly_too(tmp_path: Path, data: Array, stored: str) -> None:
    volume = np.resize(data, (3, 4, 5))
    (path,) = write_image_tiff(str(tmp_path / "a.tif"), volume, {"scale": (3, 2, 1)})
    saved = tifffile.imread(path)
    assert saved.dtype == stored
    np.testing.assert_array_equal(saved, volume)


@pytest.mark.parametrize("data", [np.array([-1, 40_000]), np.array([0, 70_000]), np.array([0.5])])
def test_what_a_tiff_cannot_hold_is_refused(tmp_path: Path, data: Array) -> None:
    with pytest.raises(FileError, match=r"TIFF cannot hold (int|float)64.*\.nii\.gz"):
        write_image_tiff(str(tmp_path / "a.tif"), np.resize(data, (2, 2, 2)), {})
    assert list(tmp_path.iterdir()) == []


# Labels --------------------------------------------------------------------------------------


def test_labels_are_said_to_be_labels_and_open_as_such(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
    layer = Labels(data, scale=(3, 2, 1), name="tumour")
    path = save(tmp_path, layer, "regions.nii.gz")  # a name that does not tell
    saved = nib.load(path)
    assert saved.header.get_intent()[0] == "label"
    assert saved.get_data_dtype() == np.int32
    back = opened(path)
    assert isinstance(back, Labels)
    np.testing.assert_array_equal(back.data, data)
    for index in np.ndindex(data.shape):
        np.testing.assert_allclose(back.data_to_world(index), layer.data_to_world(index))
    check_sitk_agrees(path)


def test_an_image_made_of_labels_is_not_said_to_be_labels(tmp_path: Path) -> None:
    labels = Labels(np.ones((2, 3, 4), int))
    path = save(tmp_path, labels, "regions.nii.gz")
    data, meta, _ = opened(path).as_layer_data_tuple()
    kept = {"name": "regions", "metadata": meta["metadata"], "affine": meta["affine"]}
    saved = save(tmp_path, Image(data.astype(np.float32), **kept), "image.nii.gz")
    assert nib.load(saved).header.get_intent()[0] == "none"
    assert isinstance(opened(saved), Image)


def test_labels_may_be_numbered_by_another_table(tmp_path: Path) -> None:
    origin = Origin(intent=(1003, (0.0, 0.0, 0.0), "atlas"))
    meta = {"metadata": {"origin": origin}}
    (path,) = write_labels(str(tmp_path / "a.nii"), np.ones((2, 2, 2), np.uint8), meta)
    assert int(nib.load(path).header["intent_code"]) == 1003


def test_labels_fit_a_tiff_where_their_numbers_do(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    (path,) = write_labels_tiff(str(tmp_path / "a.tif"), data, {})
    np.testing.assert_array_equal(tifffile.imread(path), data)


# Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T1w", "T1w ×2.5", "T1w.denoised", "sub-01_T1w ×2.5 box"])
def test_a_name_without_a_suffix_gets_one(tmp_path: Path, name: str) -> None:
    data = np.zeros((2, 2, 2), np.uint8)
    for write, suffix in [(write_image, ".nii.gz"), (write_labels_tiff, ".tif")]:
        written = write(str(tmp_path / name), data, {})
        assert written == [str(tmp_path / f"{name}{suffix}")]
        assert Path(written[0]).is_file()
        # Nobody was asked whether that one may go.
        with pytest.raises(FileError, match="exists; type its whole name"):
            write(str(tmp_path / name), data, {})


def test_another_formats_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"a\.png does not end in a known suffix; write NIfTI"):
        write_image(str(tmp_path / "a.png"), np.zeros((2, 2, 2)), {})
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_of_the_name_is_replaced(tmp_path: Path) -> None:
    for value in (1, 2):
        write_image(str(tmp_path / "a.nii"), np.full((2, 2, 2), value, np.uint8), {})
    assert np.asanyarray(nib.load(tmp_path / "a.nii").dataobj).tolist() == [[[2, 2]] * 2] * 2


# What goes wrong -----------------------------------------------------------------------------


def test_several_layers_become_files_in_a_folder_each_in_its_place(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = Image(data, name="T1w: left/right", scale=(3, 2, 1), translate=(5, 6, 7))
    labels = Labels((data > 5).astype(np.uint8), name="t1w_ left_right", scale=(3, 2, 1))
    written = LayerList([image, labels]).save(str(tmp_path / "all"))
    names = ["T1w_ left_right.nii.gz", "t1w_ left_right (2).nii.gz"]
    assert written == [str(tmp_path / "all" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(names)
    for path, layer in zip(written, (image, labels), strict=True):
        found = opened(Path(path))
        assert type(found) is type(layer)
        assert volume_of(found).in_storage_order().grid == volume_of(layer).in_storage_order().grid
    with pytest.raises(FileError, match="exists; choose another folder"):
        LayerList([image, labels]).save(str(tmp_path / "all"))


def test_of_all_layers_the_volumes_are_saved_and_what_is_left_out_is_said_once(
    make_napari_viewer_proxy: Callable[..., Any], told: list[str], tmp_path: Path
) -> None:
    viewer = make_napari_viewer_proxy()
    scan = viewer.add_image(np.arange(24.0).reshape(2, 3, 4), name="scan")
    result = viewer.add_image(np.arange(24.0).reshape(2, 3, 4), name="result")
    mark_result(result, scan)
    comparison = Comparison(viewer)
    comparison.split()
    viewer.add_points([[0, 1, 1]], name="landmarks")
    box = viewer.add_shapes(name="drawn box")
    mark_helper(box)
    layers = [layer.as_layer_data_tuple() for layer in viewer.layers]
    assert len(layers) == 6
    written = write_folder(str(tmp_path / "all"), layers)
    assert [Path(path).name for path in written] == ["scan.nii.gz", "result.nii.gz"]
    assert told == [
        "Not saved, being no volumes: landmarks (points); save each by itself, which napari does "
        "in a format of its own. Not saved, since they only help to look: split view: input, "
        "split view: line, drawn box."
    ]
    comparison.close()


def test_where_no_layer_is_a_volume_nothing_is_made(tmp_path: Path) -> None:
    points = (np.zeros((1, 3)), {"name": "landmarks"}, "points")
    with pytest.raises(FileError, match=r"landmarks \(points\).*Select images or labels"):
        write_folder(str(tmp_path / "all"), [points])
    assert list(tmp_path.iterdir()) == []


def test_of_a_pair_of_files_neither_is_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "scan.hdr").write_text("a radiance map of the name")
    layer = (np.zeros((2, 3, 4), np.float32), {"name": "scan"}, "image")
    with pytest.raises(FileError, match=r"scan\.hdr exists; choose another folder"):
        write_folder(f"{folder}.img", [layer])
    assert (folder / "scan.hdr").read_text() == "a radiance map of the name"
    assert [path.name for path in folder.iterdir()] == ["scan.hdr"]


def test_of_several_layers_all_are_saved_or_none(tmp_path: Path) -> None:
    data = np.zeros((2, 3, 4), np.float32)
    good, bad = (data, {"name": "good"}, "image"), (data > 0, {"name": "bad", "rgb": True}, "image")
    with pytest.raises(FileError, match="bad is an RGB image"):
        write_folder(str(tmp_path / "all"), [good, bad])
    assert list(tmp_path.iterdir()) == []
    write_folder(str(tmp_path / "all.NII"), [good])
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["good.nii"]
    with pytest.raises(FileError, match="there: the folder cannot be made"):
        write_folder(str(tmp_path / "all" / "good.nii" / "there"), [good])


def test_rgb_is_refused_with_a_way_out(tmp_path: Path) -> None:
    layer = Image(np.zeros((4, 5, 6, 3), np.uint8), rgb=True, name="photo")
    with pytest.raises(FileError, match=r"photo is an RGB image.*Split RGB"):
        save(tmp_path, layer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "meta", "message"),
    [
        (np.zeros(5), {}, "scan has 1 axes"),
        (np.zeros((1, 2, 2, 2, 2)), {}, "scan has 5 axes"),
        (np.zeros((2, 2, 2), complex), {}, "scan: voxels of complex128 are not real"),
        (np.zeros((2, 2, 2), object), {}, "scan: voxels of object are not real"),
        (np.zeros((2, 0, 2)), {}, "scan is empty"),
        (np.zeros((2, 2, 2)), {"scale": (1, 0, 1)}, "scan.*voxel size is zero"),
        (np.zeros((2, 2, 2)), {"affine": np.zeros((4, 4))}, "scan.*singular"),
        (np.zeros((2, 2, 2)), {"translate": (0, np.nan, 0)}, "scan.*finite"),
        (np.zeros((2, 2, 2)), {"scale": (1, 1, 1, 1)}, "scan: its transforms or units"),
        (np.zeros((2, 2, 2)), {"units": ("mm", "mm")}, "scan: its transforms or units"),
        (np.zeros((2, 2, 2)), {"units": "parsnip"}, "scan: its transforms or units"),
        (np.zeros((2, 2, 2)), {"units": ("mm", "mm", "s")}, "scan counts in second"),
        (np.zeros((2, 2, 2, 2)), {"scale": (-1, 1, 1, 1)}, "scan.*axis of time"),
    ],
)
def test_a_layer_that_is_no_volume_is_refused_by_name(
    tmp_path: Path, data: Array, meta: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileError, match=message):
        write_image(str(tmp_path / "a.nii"), data, {"name": "scan"} | meta)
    assert list(tmp_path.iterdir()) == []


def test_floats_beyond_float64_are_refused(tmp_path: Path) -> None:
    if np.longdouble == np.float64:
        return
    with pytest.raises(FileError, match="convert them to float64"):
        write_image(str(tmp_path / "a.nii"), np.zeros((2, 2, 2), np.longdouble), {})


@pytest.mark.parametrize("place", ["missing", "read-only", "folder"])
def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.nii.gz"
    if place == "missing":
        path = tmp_path / "gone" / "a.nii.gz"
    elif place == "folder":
        path.mkdir()
    elif sys.platform == "linux" and os.geteuid() == 0:
        path = Path("/proc/a.nii.gz")  # root may write wherever permissions alone forbid it
    else:
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileError, match=r"a\.nii\.gz|gone|/proc|cannot be written"):
            write_image(str(path), np.zeros((2, 2, 2)), {})
    finally:
        tmp_path.chmod(0o700)


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_image(str(path), np.ones((2, 2, 2), np.uint8), {})
    before = path.read_bytes()

    def fail(block: Array) -> Array:
        raise FileError("the source went away")

    data = da.ones((2, 2, 2), chunks=1, dtype=np.uint8).map_blocks(
        fail, dtype=np.uint8, meta=np.zeros(0, np.uint8)
    )
    with pytest.raises(FileError, match="the source went away"):
        write_image(str(path), data, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_over_the_file_that_a_layer_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, layer = left_in_its_file(tmp_path / "a.nii", monkeypatch)
    assert isinstance(layer.data, StoredArray)
    save(tmp_path, layer, "a.nii")
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "a.nii").dataobj), data)
    np.testing.assert_array_equal(np.asarray(layer.data), data.T)


def test_the_window_saves_a_selected_layer(
    make_napari_viewer_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    viewer = make_napari_viewer_proxy()
    viewer.add_image(np.zeros((2, 3, 4)), name="other")
    viewer.add_labels(np.ones((2, 3, 4), np.uint8), name="mine", scale=(3, 2, 1))
    written = viewer.layers.save(str(tmp_path / "mine.nii.gz"), selected=True)
    assert written == [str(tmp_path / "mine.nii.gz")]
    assert nib.load(written[0]).header.get_intent()[0] == "label"


def test_tiff_files_stay_naparis_unless_asked_for(tmp_path: Path) -> None:
    layers = LayerList([Image(np.zeros((2, 3, 4)))])
    (path,) = layers.save(str(tmp_path / "a.tif"))
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata is None or "napari-arssr" not in str(file.imagej_metadata)
