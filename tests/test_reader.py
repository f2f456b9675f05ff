"""NIfTI files as napari layers: who is claimed, where it lies, what the window shows."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import npe2
import numpy as np
import numpy.typing as npt
import pytest

from napari_arssr._reader import image_layer, napari_get_reader
from napari_arssr.errors import FileError
from napari_arssr.volume import Volume

Array = npt.NDArray[Any]
SMALL = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def save(path: Path, data: Array, affine: Array, image_class: Any = nib.Nifti1Image) -> str:
    """A NIfTI file of ``data`` in file order (i, j, k[, t])."""
    image = image_class(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return str(path)


def layer_of(path: str) -> tuple[Array, dict[str, Any]]:
    reader = napari_get_reader(path)
    assert reader is not None
    ((data, settings, kind),) = reader(path)
    assert kind == "image"
    return data, settings


# Which files it claims


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ", "a.img", "a.hdr"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_files_are_read(tmp_path: Path, name: str, image_class: Any) -> None:
    if name.endswith(("img", "hdr")):
        image_class = {nib.Nifti1Image: nib.Nifti1Pair, nib.Nifti2Image: nib.Nifti2Pair}[
            image_class
        ]
    path = save(tmp_path / name, SMALL, np.eye(4), image_class)
    data, _ = layer_of(path)
    np.testing.assert_array_equal(data, SMALL.transpose())


def test_big_endian_gzip_files_are_claimed(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(SMALL, np.eye(4), header), tmp_path / "a.nii.gz")
    assert napari_get_reader(str(tmp_path / "a.nii.gz")) is not None


@pytest.mark.parametrize("name", ["a.tif", "a.gz", "a.nii.zip", "nii", "a.mgz", "a.nii.png"])
def test_unknown_names_are_left_to_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(nib.Nifti1Image(SMALL, np.eye(4)).to_bytes()))
    assert napari_get_reader(str(tmp_path / name)) is None


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"a table, a log, anything else" * 100),
        gzip.compress(b""),
        gzip.compress(nib.Nifti1Image(SMALL, np.eye(4)).to_bytes())[:20],
        b"\x1f\x8b but no gzip",
        b"",
    ],
    ids=["text", "empty inside", "cut off", "corrupt", "empty"],
)
def test_gzip_files_that_hold_no_nifti_are_left_to_others(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert napari_get_reader(str(path)) is None


def test_a_missing_file_is_named_in_one_sentence(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.nii.gz")
    reader = napari_get_reader(path)
    assert reader is not None
    with pytest.raises(FileError, match=r"gone\.nii\.gz"):
        reader(path)


# Where a layer lies


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
def test_a_marked_corner_keeps_its_place_in_all_48_orientations(
    tmp_path: Path, order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs * [1.0, 1.5, 2.0])[list(order)]
    affine[:3, 3] = [10, -20, 30]
    data = np.zeros((3, 4, 5), dtype=np.float32)
    data[2, 0, 1] = 7
    array, settings = layer_of(save(tmp_path / "a.nii", data, affine))

    right, anterior, superior, _ = affine @ [2, 0, 1, 1]
    index = [*np.argwhere(array == 7)[0], 1]
    np.testing.assert_allclose(
        settings["affine"] @ index, [-superior, -anterior, -right, 1], atol=1e-5
    )
    # napari slices along array axes: they must be the world's.
    np.testing.assert_array_equal(np.abs(settings["affine"][:3, :3]).argmax(axis=0), [0, 1, 2])


def test_an_oblique_affine_is_kept_exactly(tmp_path: Path) -> None:
    turn = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, :3] = [
        [np.cos(turn), -np.sin(turn), 0],
        [np.sin(turn), np.cos(turn), 0],
        [0, 0, 3],
    ]
    affine[:3, 3] = [-7, 5, 2.5]
    _, settings = layer_of(save(tmp_path / "a.nii", SMALL, affine))
    # Rows -(S, A, R), columns (k, j, i).
    expected = -affine[[2, 1, 0]][:, [2, 1, 0, 3]]
    np.testing.assert_allclose(settings["affine"][:3], expected, atol=1e-6)


def test_a_layer_is_named_and_measured_in_millimetres_along_i_p_l(tmp_path: Path) -> None:
    _, settings = layer_of(save(tmp_path / "sub-01_T1w.nii.gz", SMALL, np.eye(4)))
    assert settings["units"] == ("mm", "mm", "mm")
    assert settings["axis_labels"] == ("I", "P", "L")
    assert "sub-01_T1w" in settings["name"]


def test_time_comes_first_in_seconds(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    image = nib.Nifti1Image(data, np.diag([1, 1, 2, 1]))
    image.header.set_zooms((1, 1, 2, 2.5))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "bold.nii.gz")
    array, settings = layer_of(str(tmp_path / "bold.nii.gz"))
    np.testing.assert_array_equal(array, data.transpose())
    assert settings["units"] == ("s", "mm", "mm", "mm")
    assert settings["axis_labels"] == ("t", "I", "P", "L")
    np.testing.assert_allclose(settings["affine"], np.diag([2.5, -2, -1, -1, 1]) + 0.0, atol=1e-6)


def test_frames_of_unknown_time_step_are_counted() -> None:
    _, settings, _ = image_layer(Volume(np.zeros((3, 2, 2, 2)), np.eye(4), time_step=0))
    assert settings["units"][0] == "pixel"
    assert settings["affine"][0, 0] == 1


def test_contrast_leaves_out_hot_voxels_and_non_finite_ones() -> None:
    rng = np.random.default_rng(0)
    data = rng.uniform(100, 200, (20, 20, 20)).astype(np.float32)
    data[0, 0, 0] = 1e6
    data[0, 0, 1:3] = np.nan, np.inf
    _, settings, _ = image_layer(Volume(data, np.eye(4)))
    low, high = settings["contrast_limits"]
    assert 100 <= low < 101
    assert 199 < high <= 200


def test_a_layer_shares_memory_with_its_volume() -> None:
    data = np.zeros((2, 3, 4))
    sagittal = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    array, _, _ = image_layer(Volume(data, sagittal))
    assert array.shape != data.shape
    assert np.shares_memory(array, data)


def test_files_opened_as_a_stack_become_frames(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.nii", SMALL + n, np.eye(4)) for n in range(3)]
    reader = napari_get_reader(paths)
    assert reader is not None
    ((data, settings, _),) = reader(paths)
    np.testing.assert_array_equal(data, np.stack([SMALL.transpose() + n for n in range(3)]))
    assert settings["affine"].shape == (5, 5)


def test_files_of_different_places_are_not_stacked(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.nii", SMALL, np.eye(4))]
    paths.append(save(tmp_path / "b.nii", SMALL, np.diag([2, 2, 2, 1])))
    reader = napari_get_reader(paths)
    assert reader is not None
    with pytest.raises(FileError, match=r"b\.nii.* cannot be stacked on .*a\.nii"):
        reader(paths)


def test_napari_reads_through_the_manifest(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", SMALL, np.eye(4))
    npe2.PluginManager.instance().discover()
    layers, reader = npe2.io_utils.read_get_reader([path], stack=False, plugin_name="napari-arssr")
    assert reader.command == "napari-arssr.get_reader"
    np.testing.assert_array_equal(layers[0][0], SMALL.transpose())


# What the window shows


def head(shape: tuple[int, int, int], affine: Array) -> Array:
    """A head with a bright spot at its left, front and top, known in world millimetres (RAS)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    skull = np.sqrt(((world / [55, 70, 60]) ** 2).sum(axis=-1))
    spot = ((world - SPOT) ** 2).sum(axis=-1)
    return np.asarray(
        40 / (1 + np.exp((skull - 1) * 25)) + 200 * np.exp(-spot / 200), dtype=np.float32
    )


SPOT = np.array([-25.0, 35.0, 20.0])  # RAS: the subject's left, front, top


def axial_and_sagittal(folder: Path) -> list[str]:
    """Two scans of one head that share no axis, direction, voxel size or field of view."""
    axial = np.array([[2, 0, 0, -70], [0, 2, 0, -84], [0, 0, 3, -75], [0, 0, 0, 1.0]])
    # i runs to inferior, j to posterior, k (slices) to left.
    sagittal = np.array([[0, 0, -2.5, 72], [0, -1.5, 0, 80], [-1.5, 0, 0, 78], [0, 0, 0, 1.0]])
    return [
        save(folder / "axial.nii.gz", head((71, 85, 51), axial), axial),
        save(folder / "sagittal.nii.gz", head((105, 107, 58), sagittal), sagittal),
    ]


def bright_centre(picture: Array) -> Array:
    """Row and column of the brightest tenth's centre, in pixels from the picture's centre."""
    grey = picture[..., :3].astype(float).mean(axis=-1)
    weight = np.where(grey > 0.9 * grey.max(), grey, 0)
    rows, columns = np.indices(grey.shape)
    centre = np.array([(rows * weight).sum(), (columns * weight).sum()]) / weight.sum()
    return centre - (np.array(grey.shape) - 1) / 2


def likeness(one: Array, other: Array) -> float:
    """Correlation of two pictures' grey values."""
    greys = [picture[..., :3].mean(axis=-1).ravel() for picture in (one, other)]
    return float(np.corrcoef(greys)[0, 1])


@pytest.mark.parametrize(
    ("order", "down", "right"),
    [
        ((0, 1, 2), "P", "L"),  # axial
        ((1, 0, 2), "I", "L"),  # coronal
        ((2, 0, 1), "I", "P"),  # sagittal
    ],
    ids=["axial", "coronal", "sagittal"],
)
def test_scans_of_opposite_orientation_overlay_in_the_window(
    make_napari_viewer_proxy: Callable[..., Any],
    tmp_path: Path,
    order: tuple[int, int, int],
    down: str,
    right: str,
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    viewer.open(axial_and_sagittal(tmp_path), plugin="napari-arssr", stack=False)
    axial, sagittal = viewer.layers
    for layer in viewer.layers:
        layer.contrast_limits = (0, 240)
        layer.interpolation2d = "linear"
    assert viewer.dims.axis_labels == ("I", "P", "L")

    world = dict(zip("IPL", -SPOT[::-1], strict=True))
    viewer.dims.order = order
    for axis, label in enumerate("IPL"):
        viewer.dims.set_point(axis, world[label])
    viewer.scene.camera.center = (0, 0, 0)
    viewer.scene.camera.zoom = 3.0

    pictures = []
    for shown, hidden in [(axial, sagittal), (sagittal, axial)]:
        shown.visible, hidden.visible = True, False
        pictures.append(viewer.screenshot(canvas_only=True, flash=False))
        assert pictures[-1][..., :3].max() > 200
    ratio = pictures[0].shape[0] / viewer.canvas.size[0]  # screens of double resolution

    expected = np.array([world[down], world[right]]) * 3.0 * ratio
    for picture in pictures:
        np.testing.assert_allclose(bright_centre(picture), expected, atol=2.5 * ratio)
    assert likeness(*pictures) > 0.995
    assert likeness(pictures[0], pictures[1][:, ::-1]) < 0.95
    assert likeness(pictures[0], pictures[1][::-1]) < 0.95
