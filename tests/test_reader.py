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

from napari_arssr._layers import image_layer
from napari_arssr._reader import napari_get_reader
from napari_arssr.errors import FileError
from napari_arssr.io import StoredArray
from napari_arssr.io.stored import _File
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


@pytest.mark.parametrize("name", ["a.img", "a.hdr"])
@pytest.mark.parametrize(
    "content", [b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe", b"ENVI\nsamples = 3", b""]
)
def test_headers_of_other_formats_are_left_to_others(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / "a.hdr").write_bytes(content)
    (tmp_path / "a.img").write_bytes(b"\0" * 100)
    assert napari_get_reader(str(tmp_path / name)) is None


def test_an_analyze_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(SMALL, np.eye(4)), tmp_path / "a.img")
    reader = napari_get_reader(str(tmp_path / "a.img"))
    assert reader is not None
    with pytest.raises(FileError, match=r"Analyze image, which does not say left from right"):
        reader(str(tmp_path / "a.img"))


def test_half_a_pair_is_said_to_lack_the_other_half(tmp_path: Path) -> None:
    save(tmp_path / "a.img", SMALL, np.eye(4), nib.Nifti1Pair)
    for gone, left in [("a.hdr", "a.img"), ("a.img", "a.hdr")]:
        kept = (tmp_path / gone).read_bytes()
        (tmp_path / gone).unlink()
        reader = napari_get_reader(str(tmp_path / left))
        assert reader is not None
        with pytest.raises(FileError, match=rf"{left} needs {gone} beside it"):
            reader(str(tmp_path / left))
        (tmp_path / gone).write_bytes(kept)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no image" * 100, "is not a NIfTI image"), (b"short", "cut off")],
)
def test_a_nii_file_that_is_none_is_named_in_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.nii").write_bytes(content)
    reader = napari_get_reader(str(tmp_path / "a.nii"))
    assert reader is not None
    with pytest.raises(FileError, match=rf"a\.nii.*{message}"):
        reader(str(tmp_path / "a.nii"))


def test_several_files_are_claimed_only_together(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", SMALL, np.eye(4))
    (tmp_path / "b.tif").write_bytes(b"")
    assert napari_get_reader([path, str(tmp_path / "b.tif")]) is None
    assert napari_get_reader([]) is None


# What they hold


def label_map(path: Path, data: Array, intent: str = "none") -> str:
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_intent(intent)
    nib.save(image, path)
    return str(path)


LABELS = np.arange(12, dtype=np.int16).reshape(1, 3, 4).repeat(2, axis=0)
SCAN = np.random.default_rng(0).integers(0, 1000, (20, 9, 8)).astype(np.int16)


def kind_of(path: str) -> str:
    reader = napari_get_reader(path)
    assert reader is not None
    ((data, settings, kind),) = reader(path)
    if kind == "labels":
        assert data.dtype.kind in "iu"
        assert "contrast_limits" not in settings
    np.testing.assert_array_equal(data, nib.load(path).get_fdata().T)
    return kind


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_dseg.nii.gz",
        "sub-01_desc-aseg_dseg.nii",
        "aseg.nii",
        "aparc+aseg.nii",
        "wmparc.nii",
        "T1_seg.nii",
        "T1-segmentation.nii",
        "Labels.nii",
        "labelmap2.nii",
        "parcellation.nii",
        "sub-01_desc-brain_mask.nii",
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_label_maps_are_known_by_name(tmp_path: Path, name: str, dtype: Any) -> None:
    assert kind_of(label_map(tmp_path / name, LABELS.astype(dtype))) == "labels"


@pytest.mark.parametrize("intent", ["label", "neuroname"])
def test_label_maps_are_known_by_intent(tmp_path: Path, intent: str) -> None:
    assert kind_of(label_map(tmp_path / "a.nii", LABELS, intent)) == "labels"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("sub-01_T1w.nii", LABELS),
        ("brain_masked.nii", LABELS),
        ("sub-01_label-GM_probseg.nii", LABELS / 100),
        ("sub-01_dseg.nii", np.where(LABELS == 3, np.nan, LABELS).astype(np.float32)),
        ("sub-01_dseg.nii", (LABELS + 1e12).astype(np.float64)),
        ("brainsegue.nii", LABELS),
        ("Alexa-labelled_neurons.nii", LABELS),
        ("segmented_T1.nii", LABELS),
        ("asl_label.nii", SCAN),
        ("seg1_T2w.nii", SCAN.astype(np.float32)),
    ],
)
def test_measurements_stay_images(tmp_path: Path, name: str, data: Array) -> None:
    assert kind_of(label_map(tmp_path / name, data)) == "image"


def test_labels_may_be_points_and_lines(tmp_path: Path) -> None:
    spots = (SCAN % 7 == 0) * np.int16(255)
    assert kind_of(label_map(tmp_path / "spots_mask.nii", spots)) == "labels"
    seeds = np.where(SCAN % 40 == 0, SCAN, 0).astype(np.int16)
    assert kind_of(label_map(tmp_path / "seeds_label.nii", seeds)) == "labels"
    lines = np.where(SCAN[:, :1] % 3 == 0, SCAN[:, :1], 0) + np.zeros_like(SCAN)
    for number, turned in enumerate((lines, lines.transpose(1, 0, 2))):
        assert kind_of(label_map(tmp_path / f"lines{number}_seg.nii", turned)) == "labels"


def test_a_series_of_label_maps_is_labels(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.uint8).reshape(1, 3, 4, 2).repeat(2, axis=0)
    assert kind_of(label_map(tmp_path / "a_dseg.nii", data)) == "labels"
    paths = [label_map(tmp_path / f"{n}_dseg.nii", LABELS + n) for n in range(3)]
    reader = napari_get_reader(paths)
    assert reader is not None
    ((stack, _, kind),) = reader(paths)
    assert kind == "labels"
    np.testing.assert_array_equal(stack, np.stack([LABELS.T + n for n in range(3)]))


# Huge files stay where they are


@pytest.fixture
def lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is a huge one."""
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 100)


def huge(path: Path, frames: int = 3) -> Array:
    """A file of int16 with scale factors, big-endian, sagittal; its real values, (t, z, y, x)."""
    random = np.random.default_rng(0)
    stored = random.integers(-1000, 1000, (7, 8, 9, frames), dtype=np.int16)
    affine = np.array([[0, 0, 2, 9], [-1.5, 0, 0, 8], [0, 1, 0, 7], [0, 0, 0, 1.0]])
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(stored, affine, header)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, path)
    return (stored * 0.5 + 10).astype(np.float32).T


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_huge_file_opens_as_a_small_one_does(
    tmp_path: Path, suffix: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / f"a{suffix}")
    huge(tmp_path / f"a{suffix}", frames)
    data, settings = layer_of(path)
    assert isinstance(data, StoredArray)
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 10**9)
    expected, small = layer_of(path)
    assert isinstance(expected, np.ndarray)
    assert data.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(data), expected)
    np.testing.assert_array_equal(
        np.asarray(data[..., 3, 1:7:2, ::-1]), expected[..., 3, 1:7:2, ::-1]
    )
    for name in ("affine", "units", "axis_labels", "name"):
        np.testing.assert_array_equal(settings[name], small[name])
    # Of the middle planes, so near those of all.
    assert settings["contrast_limits"] == pytest.approx(small["contrast_limits"], abs=20)


@pytest.mark.usefixtures("lazily")
def test_a_huge_label_map_is_labels(tmp_path: Path) -> None:
    labels = np.arange(200, dtype=np.int32).reshape(2, 10, 10).repeat(5, axis=0)
    path = label_map(tmp_path / "a_dseg.nii", labels)
    reader = napari_get_reader(path)
    assert reader is not None
    ((data, _, kind),) = reader(path)
    assert (kind, type(data)) == ("labels", StoredArray)


@pytest.mark.usefixtures("lazily")
def test_a_stack_of_huge_files_stays_in_them(tmp_path: Path) -> None:
    real = [huge(tmp_path / f"{n}.nii", 1)[0] + 0 for n in range(2)]
    paths = [str(tmp_path / f"{n}.nii") for n in range(2)]
    reader = napari_get_reader(paths)
    assert reader is not None
    ((data, settings, _),) = reader(paths)
    assert isinstance(data, StoredArray)
    assert settings["affine"].shape == (5, 5)
    np.testing.assert_array_equal(np.sort(np.asarray(data).ravel()), np.sort(np.ravel(real)))


def test_many_files_share_what_may_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(tmp_path / f"{n}.nii", SMALL, np.eye(4)) for n in range(3)]
    reader = napari_get_reader(paths)
    assert reader is not None
    for limit, kind in [(3 * SMALL.nbytes, np.ndarray), (3 * SMALL.nbytes - 1, StoredArray)]:
        monkeypatch.setattr("napari_arssr.lazy.LARGE", limit)
        ((data, _, _),) = reader(paths)
        assert isinstance(data, kind)
        np.testing.assert_array_equal(np.asarray(data), np.stack([SMALL.T] * 3))


@pytest.mark.usefixtures("lazily")
def test_the_window_reads_only_what_it_shows_of_a_huge_file(
    make_napari_viewer_proxy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (40, 30, 200, 5)  # planes of 40 × 30
    stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = save(tmp_path / "a.nii", stored, np.diag([-1, -1, -1, 1]))
    counted = 0
    read_bytes = _File.read

    def count(self: _File, start: int, size: int) -> bytes:
        nonlocal counted
        counted += size
        return read_bytes(self, start, size)

    monkeypatch.setattr(_File, "read", count)
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(path, plugin="napari-arssr")
    assert counted < stored.nbytes / 50
    viewer.dims.set_current_step(0, 4)
    counted = 0
    viewer.dims.set_current_step(1, 150)
    assert 0 < counted <= 2 * 40 * 30 * 4
    for order, most in [((0, 2, 1, 3), 40 * 200 * 4), ((0, 3, 1, 2), 40 * 30 * 200 * 4)]:
        counted = 0
        viewer.dims.order = order
        assert 0 < counted <= 2 * most
    viewer.dims.ndisplay = 3
    np.testing.assert_array_equal(np.asarray(layer.data[4, 150]), stored[..., 150, 4].T)


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
    assert settings["name"] == "sub-01_T1w"


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


def test_files_opened_together_are_a_layer_each(
    make_napari_viewer_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    paths = [save(tmp_path / "T1w.nii", SMALL, np.eye(4))]
    paths.append(label_map(tmp_path / "dseg.nii.gz", LABELS))
    viewer = make_napari_viewer_proxy()
    viewer.open(paths, plugin="napari-arssr", stack=False)
    assert [(layer.name, type(layer).__name__) for layer in viewer.layers] == [
        ("T1w", "Image"),
        ("dseg", "Labels"),
    ]
    assert [str(unit) for unit in viewer.layers.extent.units] == ["millimeter"] * 3


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
