"""OME-Zarr images: read wherever in a store they lie, with sizes, place and channels."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr
from napari.components import ViewerModel
from numcodecs import Pickle
from ome_stores import axes_of, cells, write_store
from tiny import Run

from napari_arssr import _app, io, lazy
from napari_arssr._fit_plan import FitPlan
from napari_arssr._layers import volume_of
from napari_arssr._plan import Plan
from napari_arssr.errors import FileError, NoVolume, UsageError
from napari_arssr.evaluation.protocol import parse_dataset, prepare
from napari_arssr.fitting.settings import Settings as FitSettings
from napari_arssr.io import StoredArray, ome_zarr, origin_of, read
from napari_arssr.training.volumes import find_files
from napari_arssr.upsampling import Target

Array = npt.NDArray[Any]

VERSIONS = ["0.4", "0.5"]
SIDES = (2.0, 0.5, 0.25)  # µm along z, y, x


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cells.ome.zarr"


# Reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 0])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_stack_has_the_voxels_sizes_and_place_of_its_store(
    path: Path, version: str, most: int | None
) -> None:
    data = cells(7, 9, 10)
    write_store(path, data, version=version, scale=SIDES, translation=(10, 20, 30))
    volume = read(path, most=most)
    assert isinstance(volume.data, np.ndarray if most is None else StoredArray)
    np.testing.assert_array_equal(np.asarray(volume.data), data)
    assert volume.data.dtype == np.uint16
    np.testing.assert_allclose(volume.spacing, np.divide(SIDES, 1000))
    expected = np.diag([2e-3, 5e-4, 2.5e-4, 1])
    expected[:3, 3] = 0.01, 0.02, 0.03
    np.testing.assert_allclose(volume.napari_affine, expected, atol=1e-12)
    assert volume.name == "cells.ome.zarr"
    origin = origin_of(volume)
    assert (origin.format, origin.dtype, origin.states_spacing) == ("OME-Zarr", np.uint16, True)
    assert not io.is_label_map(volume)


@pytest.mark.parametrize("most", [None, 0])
@pytest.mark.parametrize("version", VERSIONS)
def test_of_a_series_with_channels_each_is_read_alone(
    path: Path, version: str, most: int | None
) -> None:
    data = cells(2, 3, 7, 9, 10)
    scale, names = (30, 1, *SIDES), ["DAPI", "GFP", "Cy5"]
    write_store(path, data, "tczyx", version=version, scale=scale, names=names)
    assert io.channels_of(path) == tuple(io.Channel(n, name) for n, name in enumerate(names))
    for number in range(3):
        volume = read(path, channel=number, most=most)
        np.testing.assert_array_equal(np.asarray(volume.data), data[:, number])
        part = np.s_[1, 5:2:-1, ::3, 4]
        np.testing.assert_array_equal(np.asarray(volume.data[part]), data[:, number][part])
        assert (volume.time_step, io.channel_of(volume)) == (30, number)
        one = read(path, channel=number, frame=1, most=most)
        assert isinstance(one.data, np.ndarray if most is None else StoredArray)
        np.testing.assert_array_equal(np.asarray(one.data), data[1, number])
    with pytest.raises(UsageError, match="has 3 channels \\(0 DAPI, 1 GFP, 2 Cy5\\); choose one"):
        read(path)
    with pytest.raises(UsageError, match="there is no channel 3"):
        read(path, channel=3)
    with pytest.raises(UsageError, match="no frame 2"):
        read(path, channel=1, frame=2)


@pytest.mark.parametrize(
    ("letters", "counts"),
    [("tczyx", (1, 1, 7, 9, 10)), ("czyx", (1, 7, 9, 10)), ("tzyx", (1, 7, 9, 10))],
)
def test_axes_of_one_are_none(path: Path, letters: str, counts: tuple[int, ...]) -> None:
    data = cells(*counts)
    write_store(path, data, letters)
    volume = read(path)
    np.testing.assert_array_equal(volume.data, data.reshape(7, 9, 10))
    assert io.channel_of(volume) is None
    assert read(path, channel=0).data.shape == (7, 9, 10)


def test_axes_of_space_are_told_by_their_names(path: Path) -> None:
    data = cells(10, 9, 2, 7)
    write_store(path, data, "xytz", scale=(0.25, 0.5, 30, 2.0))
    volume = read(path)
    np.testing.assert_array_equal(volume.data, data.transpose(2, 3, 1, 0))
    np.testing.assert_allclose(volume.spacing, np.divide(SIDES, 1000))
    assert volume.time_step == 30


def test_axes_of_other_names_are_z_y_x_as_they_come(path: Path) -> None:
    data = cells(7, 9, 10)
    other = [{"name": name, "type": "space", "unit": "nanometer"} for name in "abc"]
    write_store(path, data, scale=(3, 2, 1), image={"axes": other})
    np.testing.assert_array_equal(read(path).data, data)
    np.testing.assert_allclose(read(path).spacing, (3e-6, 2e-6, 1e-6))


@pytest.mark.parametrize(
    "image", [{"axes": None}, {"axes": ["t", "c", "z", "y", "x"]}], ids=["none", "names"]
)
def test_early_versions_have_axes_without_sizes(path: Path, image: dict[str, Any]) -> None:
    data = cells(2, 2, 7, 9, 10)
    write_store(path, data, "tczyx", version="0.1", image=image | {"datasets": [{"path": "0"}]})
    volume = read(path, channel=1)
    np.testing.assert_array_equal(volume.data, data[:, 1])
    assert (volume.spacing, volume.time_step) == ((1, 1, 1), 0)
    assert not origin_of(volume).states_spacing
    assert io.stated_sizes(path) is None


@pytest.mark.parametrize(
    ("unit", "millimetres"),
    [
        ("micrometer", 1e-3), ("nanometer", 1e-6), ("millimeter", 1.0), ("angstrom", 1e-7),
        ("centimeter", 10.0), ("meter", 1e3), ("um", 1e-3), ("Micrometre", 1e-3),
    ],
)  # fmt: skip
def test_sizes_are_in_the_units_that_are_stated(path: Path, unit: str, millimetres: float) -> None:
    axes = axes_of("zyx", dict.fromkeys("zyx", unit))
    write_store(path, cells(7, 9, 10), scale=SIDES, translation=(1, 2, 3), image={"axes": axes})
    np.testing.assert_allclose(read(path).spacing, np.multiply(SIDES, millimetres))
    np.testing.assert_allclose(read(path).napari_affine[:3, 3], np.multiply((1, 2, 3), millimetres))
    assert origin_of(read(path)).states_spacing


@pytest.mark.parametrize("units", [{}, {"z": "micrometer"}, dict.fromkeys("zyx", "barleycorn")])
def test_sizes_without_a_known_unit_keep_their_ratio_and_are_not_stated(
    path: Path, units: dict[str, str]
) -> None:
    write_store(path, cells(7, 9, 10), scale=SIDES, image={"axes": axes_of("zyx", units)})
    assert read(path).spacing == SIDES
    assert not origin_of(read(path)).states_spacing
    assert io.stated_sizes(path) is None


def test_transformations_of_the_image_follow_those_of_the_level(path: Path) -> None:
    more = [
        {"type": "scale", "scale": [1, 2, 2, 4]},
        {"type": "translation", "translation": [0, 1, 1, 1]},
    ]
    write_store(
        path, cells(2, 7, 9, 10), "tzyx", scale=(30, 1, 1, 1), translation=(5, 10, 10, 10),
        image={"coordinateTransformations": more},
    )  # fmt: skip
    volume = read(path)
    np.testing.assert_allclose(volume.spacing, (2e-3, 2e-3, 4e-3))
    np.testing.assert_allclose(volume.napari_affine[1:4, 4], (21e-3, 21e-3, 41e-3))
    assert (volume.time_step, volume.time_start) == (30, 5)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("levels", [("0", "1", "2"), ("scale0/image", "scale1/image")])
def test_the_finest_level_is_read_or_the_one_that_is_named(
    path: Path, version: str, levels: tuple[str, ...]
) -> None:
    data = cells(8, 12, 16)
    write_store(path, data, version=version, levels=levels, scale=SIDES)
    np.testing.assert_array_equal(read(path).data, data)
    coarse = read(path / levels[1])
    np.testing.assert_array_equal(coarse.data, data[::2, ::2, ::2])
    np.testing.assert_allclose(coarse.spacing, np.multiply(SIDES, 2e-3))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_label_image_is_a_label_map(path: Path, version: str) -> None:
    write_store(path, cells(7, 9, 10), scale=SIDES, version=version)
    labels = np.zeros((7, 9, 10), np.uint32)
    labels[2:5] = 70_000
    where = path / "labels" / "nuclei"
    write_store(where, labels, scale=SIDES, version=version, said={"image-label": {}})
    assert io.is_label_map(read(where))
    np.testing.assert_array_equal(read(where).data, labels)
    assert not io.is_label_map(read(path))


def test_the_only_image_of_a_converted_file_is_meant(path: Path) -> None:
    zarr.open_group(path, mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    write_store(path / "0", cells(7, 9, 10), scale=SIDES)
    zarr.open_group(path / "OME", mode="w", zarr_format=2)
    np.testing.assert_array_equal(read(path).data, cells(7, 9, 10))
    write_store(path / "1", cells(3, 9, 10), scale=SIDES)
    with pytest.raises(NoVolume, match=r"holds 2 images; give one of them: .*zarr/0, .*zarr/1\."):
        read(path)
    assert read(path / "1").data.shape == (3, 9, 10)
    zarr.open_group(path / "OME", mode="a").attrs["series"] = ["1"]
    assert read(path).data.shape == (3, 9, 10)


@pytest.mark.parametrize("version", VERSIONS)
def test_of_a_plate_an_image_is_to_be_named(path: Path, version: str) -> None:
    zarr_format: Any = 3 if version == "0.5" else 2

    def group(where: Path, said: dict[str, Any]) -> None:
        made = zarr.open_group(where, mode="w", zarr_format=zarr_format)
        made.attrs.update({"ome": {"version": version, **said}} if version == "0.5" else said)

    group(path, {"plate": {"wells": [{"path": "B/3"}]}, "bioformats2raw.layout": 3})
    group(path / "B" / "3", {"well": {"images": [{"path": "1"}]}})
    write_store(path / "B" / "3" / "1", cells(7, 9, 10), version=version)
    with pytest.raises(NoVolume, match=r"is a plate of many images; give one of them, as .*B/3/0"):
        read(path)
    with pytest.raises(NoVolume, match=r"B/3 is a plate.*, as .*zarr/B/3/1\."):
        read(path / "B" / "3")
    volume = read(path / "B" / "3" / "1")
    np.testing.assert_array_equal(volume.data, cells(7, 9, 10))
    assert volume.name == "cells_B_3_1"
    assert io.beside(path / "B" / "3" / "1" / "0") == path.parent


@pytest.mark.parametrize("kind", ["<f4", ">u2", "<i4", "<f2", "|u1"])
def test_number_types_are_kept(path: Path, kind: str) -> None:
    data = cells(7, 9, 10).astype(kind)
    write_store(path, data, compressors=None)
    for most in (None, 0):
        found = np.asarray(read(path, most=most).data)
        np.testing.assert_array_equal(found, data)
        assert found.dtype == np.dtype(kind).newbyteorder("=")


def test_shards_are_read(path: Path) -> None:
    data = cells(8, 12, 16)
    write_store(path, data, version="0.5", chunk=4, shards=(8, 8, 8))
    np.testing.assert_array_equal(read(path).data, data)


def test_a_relative_path_is_read_wherever_the_process_works_by_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cells(7, 9, 10)
    write_store(path, data)
    monkeypatch.chdir(path.parent)
    left = read("cells.ome.zarr", most=0).data
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(np.asarray(left), data)


def test_a_store_that_has_gone_is_told_and_not_taken_for_an_empty_one(path: Path) -> None:
    write_store(path, cells(7, 9, 10))
    left = read(path, most=0).data
    path.rename(path.with_name("moved.zarr"))
    with pytest.raises(FileError, match=r"cells\.ome\.zarr is no longer there"):
        np.asarray(left[2])


def test_a_store_may_be_the_working_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, tiny: Path
) -> None:
    write_store(path, cells(7, 9, 10))
    monkeypatch.chdir(path)
    assert read(".").name == "cells.ome.zarr"
    assert read("0").name == "cells_0"
    assert io.result_name(".") == "cells.ome.zarr"
    assert io.beside("0") == path.parent
    ran = run("upsample", ".", path.parent / "out.tif", "--scale", "1", "--weights", tiny)
    assert ran.status == 0, ran.err


def test_a_level_that_is_a_link_is_read(path: Path, tmp_path: Path) -> None:
    data = cells(7, 9, 10)
    write_store(path, data)
    (path / "0").rename(tmp_path / "elsewhere")
    (path / "0").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(read(path).data, data)
    before = io.content_sha256(path)
    (tmp_path / "elsewhere" / "0.0.0").unlink()
    assert io.content_sha256(path) != before


def test_a_time_without_a_unit_is_not_known(path: Path) -> None:
    axes = axes_of("tzyx", dict.fromkeys("zyx", "micrometer"))
    write_store(path, cells(2, 7, 9, 10), "tzyx", scale=(30, *SIDES), image={"axes": axes})
    assert read(path).time_step == 0
    assert origin_of(read(path)).states_spacing


def test_what_is_empty_in_the_metadata_says_nothing(path: Path) -> None:
    nothing = {"coordinateTransformations": None}
    write_store(path, cells(7, 9, 10), image=nothing, said={"omero": None}, scale=SIDES)
    assert read(path).spacing == pytest.approx(np.divide(SIDES, 1000))
    about = {"omero": {"channels": [{"label": None}, {"label": "GFP"}]}}
    write_store(path, cells(2, 7, 9, 10), "czyx", said=about)
    assert [channel.name for channel in io.channels_of(path)] == ["", "GFP"]


# Large ones ----------------------------------------------------------------------------------


def test_what_stays_in_its_store_is_read_by_its_chunks(path: Path) -> None:
    data = cells(2, 7, 9, 10)
    write_store(path, data, "czyx", scale=(1, *SIDES))
    left = read(path, channel=1, most=0).data
    assert isinstance(left, StoredArray)
    assert left.chunks == ((4, 3), (4, 4, 1), (4, 4, 2))
    assert left[2:6, ::-1, 5].chunks == ((2, 2), (1, 4, 4))
    assert left.transpose(2, 0, 1).chunks == ((4, 4, 2), (4, 3), (4, 4, 1))
    assert left[3:3].chunks == ((0,), (4, 4, 1), (4, 4, 2))
    assert lazy.is_in_pieces(left)
    assert lazy.depth(left) == 4
    assert lazy.is_read_in_chunks(left)
    np.testing.assert_array_equal(lazy.read(left, "cells"), data[1])
    together = np.concatenate([block.ravel() for block in lazy.blocks(left)])
    np.testing.assert_array_equal(np.sort(together), np.sort(data[1], axis=None))


def test_a_part_needs_only_the_chunks_it_lies_in(path: Path) -> None:
    data = cells(8, 8, 8)
    write_store(path, data, chunk=4)
    for chunk in (path / "0").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith(".") and chunk.name != "0.0.1":
            chunk.write_bytes(b"broken")
    left = read(path, most=0).data
    np.testing.assert_array_equal(np.asarray(left[:4, 1:3, 5:]), data[:4, 1:3, 5:])
    with pytest.raises(FileError, match=r"cells\.ome\.zarr is not a whole zarr store \(.+\); copy"):
        np.asarray(left[4:])
    with pytest.raises(FileError, match="not a whole zarr store"):
        read(path)


# What cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda path: zarr.open_group(path, mode="w"),
            NoVolume,
            "without the metadata of an OME-Zarr image",
        ),
        (
            lambda path: zarr.create_array(path, shape=(7, 9, 10), dtype="u2"),
            NoVolume,
            "is a zarr array that no OME metadata above it tell of",
        ),
        (
            lambda path: zarr.open_group(path, mode="w").attrs.update(plate={"wells": []}),
            NoVolume,
            r"is a plate of many images; give one of them\.",
        ),
        (lambda path: write_store(path, cells(9, 10), "yx"), NoVolume, "is 2D, not 3D"),
        (
            lambda path: write_store(path, cells(3, 9, 10), "tyx"),
            NoVolume,
            r"has axes t, y, x \(3×9×10\): its image is 2D",
        ),
        (lambda path: write_store(path, cells(1, 9, 10)), NoVolume, "one plane, not a volume"),
        (
            lambda path: write_store(
                path, cells(2, 7, 9, 10), "tzyx",
                image={"axes": [{"name": "angle", "type": "other"}, *axes_of("zyx")]},
            ),
            NoVolume,
            "axes angle, z, y, x .* more than z, y, x, time and channel",
        ),
        (
            lambda path: write_store(
                path, cells(2, 7, 9, 10), "tzyx", image={"axes": [*axes_of("zyxz")]}
            ),
            NoVolume,
            "more than three of space",
        ),
        (
            lambda path: write_store(
                path, cells(2, 2, 7, 9, 10), "tczyx", image={"axes": [*axes_of("cczyx")]}
            ),
            NoVolume,
            "more than one of time or of channels",
        ),
        (lambda path: write_store(path, cells(7, 9, 10) > 5), NoVolume, "is boolean, not one real"),
        (
            lambda path: write_store(path, cells(7, 9, 10).astype(complex)),
            NoVolume,
            "is complex, not one real",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), image={"axes": axes_of("yx")}),
            FileError,
            "has 3 axes and its metadata tell of 2",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), image={"datasets": [{"path": "gone"}]}),
            FileError,
            "names 'gone' as a level, which is none",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), image={"datasets": []}),
            NoVolume,
            "lists no level",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), image={"datasets": 3}),
            FileError,
            "is not a whole zarr store",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), image={"datasets": [{"path": "../0"}]}),
            FileError,
            "is not a whole zarr store",
        ),
        (
            lambda path: write_store(
                path, cells(7, 9, 10), version="0.6", image={"axes": None, "coordinateSystems": []}
            ),
            FileError,
            "is of OME-Zarr version 0.6 and names no axes",
        ),
        (
            lambda path: write_store(
                path, cells(7, 9, 10),
                image={"coordinateTransformations": [{"type": "affine", "affine": []}]},
            ),
            FileError,
            "is placed by the transformation 'affine', and not by plain scales",
        ),
        (
            lambda path: write_store(
                path, cells(7, 9, 10),
                image={"coordinateTransformations": [{"type": "scale", "path": "scales"}]},
            ),
            FileError,
            "is placed by the transformation 'scale', and not by plain",
        ),
        (
            lambda path: (path.mkdir(), (path / ".zattrs").write_text("{}")),
            FileError,
            r"is a zarr store without \.zgroup or zarr\.json; copy it again",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), scale=(0, 1, 1)),
            FileError,
            r"voxel sizes of 0\.001 × 0\.001 × 0 mm; correct its scale",
        ),
        (
            lambda path: write_store(path, cells(7, 9, 10), scale=(-2, 1, 1)),
            FileError,
            "voxel sizes of 0.001 × 0.001 × -0.002 mm",
        ),
    ],
)  # fmt: skip
def test_what_is_no_volume_is_told_in_a_sentence(
    path: Path, make: Callable[[Path], object], error: type[Exception], said: str
) -> None:
    make(path)
    with pytest.raises(error, match=said) as raised:
        read(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_codec_that_is_not_installed_is_told(path: Path) -> None:
    write_store(path, cells(7, 9, 10), compressors=None)
    said = json.loads((path / "0" / ".zarray").read_text())
    said["compressor"] = {"id": "imagecodecs_jpeg2k"}
    (path / "0" / ".zarray").write_text(json.dumps(said))
    with pytest.raises(FileError, match=r"cannot be read here \(codec not available: .*jpeg2k"):
        read(path)


def test_metadata_that_are_no_json_are_told(path: Path) -> None:
    write_store(path, cells(7, 9, 10))
    (path / ".zattrs").write_text("{")
    with pytest.raises(FileError, match="is not a whole zarr store"):
        read(path)


class Trap:
    """Says that it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["TRAP"],)


PICKLE = {"id": "pickle", "protocol": 5}


@pytest.mark.parametrize(
    "packed",
    [
        {"filters": [PICKLE]},
        {"filters": [{"id": "shuffle", "elementsize": 2}, PICKLE]},
        {"filters": None, "compressor": PICKLE},
        {"filters": [PICKLE], "dtype": "|O", "fill_value": None},
    ],
)
def test_voxels_are_not_unpickled(
    path: Path, tmp_path: Path, packed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    write_store(path, cells(4, 4, 4), chunk=4, compressors=None)
    said = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps(said | packed))
    (path / "0" / "0.0.0").write_bytes(Pickle().encode(np.array([Trap()], dtype=object)))
    for most in (None, 0):
        with pytest.raises(FileError):
            np.asarray(read(path, most=most).data)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_that_a_library_would_read_is_refused_even_so(path: Path) -> None:
    class Packed:
        dtype = np.dtype(np.uint16)
        filters = (Pickle(),)

    with pytest.raises(FileError, match="pickled Python objects, which may run anything; not read"):
        ome_zarr._check_numbers(path, Packed())  # type: ignore[arg-type]


# Names, folders and hashes -------------------------------------------------------------------


def test_a_store_is_a_volume_among_the_files_of_its_folder(tmp_path: Path) -> None:
    stores = [tmp_path / "b.ome.zarr", tmp_path / "d.zarr", tmp_path / ".hidden.zarr"]
    for store in stores:
        write_store(store, cells(7, 9, 10))
    (tmp_path / "c.nii").touch()
    (tmp_path / "empty.zarr").mkdir()
    assert [path.name for path in io.volumes_in(tmp_path)] == ["b.ome.zarr", "c.nii", "d.zarr"]
    assert find_files(tmp_path) == io.volumes_in(tmp_path)
    assert find_files(stores[0]) == [stores[0]]
    assert parse_dataset(str(stores[0])).files == (stores[0],)
    assert io.is_folder(tmp_path)
    assert not io.is_folder(stores[0])
    with pytest.raises(FileError, match="is a zarr store, not a folder; give the folder it is in"):
        io.volumes_in(stores[0])


@pytest.mark.parametrize(
    ("name", "stem", "result"),
    [
        ("a.b.ome.zarr", "a.b", "a.b.ome.zarr"),
        ("a.ZARR", "a", "a.ome.zarr"),
        ("a.b", "a.b", "a.b.ome.zarr"),
    ],
)
def test_a_result_of_a_store_is_a_store(tmp_path: Path, name: str, stem: str, result: str) -> None:
    write_store(tmp_path / name, cells(7, 9, 10))
    called = io.name_of(tmp_path / name)
    assert (io.without_suffix(called), io.result_name(tmp_path / name)) == (stem, result)
    assert io.result_name("x/a.nii.gz") == "a.nii.gz"


def test_beside_a_store_is_beside_all_of_it(path: Path) -> None:
    write_store(path, cells(7, 9, 10))
    write_store(path / "labels" / "nuclei", cells(7, 9, 10))
    assert not io.is_store(path / "labels")  # as many write it
    assert io.beside(path) == io.beside(path / "labels" / "nuclei" / "0") == path.parent
    assert io.name_of(path / "labels" / "nuclei") == "cells_labels_nuclei"
    assert io.beside("scans/a.tif") == Path("scans")


def test_a_stores_hash_is_that_of_what_is_read(path: Path) -> None:
    write_store(path, cells(8, 12, 16), levels=("0", "1"), compressors=None)
    first = io.content_sha256(path)
    copy = shutil.copytree(path, path.with_name("copy.zarr"))
    assert io.content_sha256(copy) == io.content_sha256(path / "0") == first
    (path / "1" / "0.0.0").write_bytes(b"another level")
    write_store(path / "labels" / "nuclei", cells(7, 9, 10))
    assert io.content_sha256(path) == first
    chunk = path / "0" / "1.2.3"  # the last, and so it stays
    moved = chunk.rename(path / "0" / "9.9.9")
    assert io.content_sha256(path) != first
    moved.rename(chunk)
    assert io.content_sha256(path) == first
    (path / ".zattrs").write_text((path / ".zattrs").read_text().replace("1.0", "5.0"))
    assert io.content_sha256(path) != first
    assert io.content_sha256(path / "0") == io.content_sha256(path)


# The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--box", "4:16,2:12,3:8"]], ids=["whole", "box"])
@pytest.mark.parametrize("share", [4, 10**9], ids=["loaded", "left in its store"])
def test_a_store_is_upsampled_as_the_same_stack_in_a_tiff_is(
    *,
    run: Run,
    tiny: Path,
    path: Path,
    tmp_path: Path,
    options: list[str],
    share: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_arssr.upsampling._SHARE_OF_INPUT", share)
    data = cells(9, 20, 24)
    write_store(path, np.stack([data[::-1], data]), "czyx", scale=(1, 2.0, 0.5, 0.5))
    alone = tmp_path / "alone.tif"
    about = {"axes": "ZYX", "spacing": 2.0, "unit": "um"}
    tifffile.imwrite(alone, data, imagej=True, resolution=(2, 2), metadata=about)
    words = ["--weights", tiny, "--scale", "2", *options]
    ran = run("upsample", path, tmp_path / "one.tif", *words, "--channel", "1")
    assert ran.status == 0, ran.err
    assert run("upsample", alone, tmp_path / "two.tif", *words).status == 0
    one, two = read(tmp_path / "one.tif"), read(tmp_path / "two.tif")
    np.testing.assert_array_equal(one.data, two.data)
    np.testing.assert_allclose(one.spacing, two.spacing)


def test_a_result_in_nifti_keeps_the_stores_place(
    run: Run, tiny: Path, path: Path, tmp_path: Path
) -> None:
    write_store(path, cells(7, 9, 10), scale=SIDES, translation=(10, 20, 30))
    out = tmp_path / "out.nii.gz"
    assert run("upsample", path, out, "--weights", tiny, "--scale", "1").status == 0
    np.testing.assert_allclose(read(out).affine, read(path).affine, rtol=1e-6, atol=1e-9)


def test_of_a_folder_stores_become_stores(run: Run, tiny: Path, tmp_path: Path) -> None:
    scans, results = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    write_store(scans / "a.ome.zarr", cells(7, 9, 10), scale=SIDES)
    io.write(scans / "b.nii.gz", read(scans / "a.ome.zarr"))
    words = ["upsample", scans, results, "--weights", tiny, "--scale", "1"]
    assert run(*words).status == 0
    assert sorted(path.name for path in results.iterdir()) == ["a.ome.zarr", "b.nii.gz"]
    ran = run(*words, "--skip-existing")
    assert ran.out.count("there already") == 2
    chunk = scans / "a.ome.zarr" / "0" / "0.0.0"
    os.utime(chunk, ns=(2**62, 2**62))
    assert run(*words, "--skip-existing").out.count("there already") == 1
    write_store(scans / "a.zarr", cells(7, 9, 10))
    ran = run(*words)
    assert ran.status == 2
    assert "would both become" in ran.err


def test_of_one_store_and_a_folder_the_result_goes_into_it(
    run: Run, tiny: Path, path: Path, tmp_path: Path
) -> None:
    write_store(path, cells(7, 9, 10), scale=SIDES)
    (tmp_path / "out").mkdir()
    ran = run("upsample", path, tmp_path / "out", "--weights", tiny, "--scale", "1")
    assert ran.status == 0, ran.err
    assert io.is_store(tmp_path / "out" / "cells.ome.zarr")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cells.ome.zarr/out.tif", "lies in the zarr store .*cells.ome.zarr; give the result"),
        ("cells.ome.zarr/labels/out.tif", "lies in the zarr store .*cells.ome.zarr; give"),
        ("cells.ome.zarr/0", "lies in the zarr store"),
        ("cells.ome.zarr/0/out.ome.zarr", "lies in the zarr store"),
        ("cells.ome.zarr", "is the input itself"),
        ("other.ome.zarr", "is there already and is no result of this program"),
    ],
)
def test_no_store_of_another_program_is_written_to(
    *, run: Run, tiny: Path, path: Path, tmp_path: Path, name: str, said: str
) -> None:
    for store in (path, tmp_path / "other.ome.zarr"):
        write_store(store, cells(7, 9, 10))
    (path / "labels").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for given in (path, path / "0"):
        ran = run("upsample", given, tmp_path / name, "--weights", tiny, "--scale", "1")
        assert ran.status == 2
        (line,) = ran.err.splitlines()
        assert re.search(said, line)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_store_is_told_without_a_traceback(
    run: Run, tiny: Path, path: Path, tmp_path: Path
) -> None:
    write_store(path, cells(7, 9, 10))
    (path / "0" / "1.0.0").write_bytes(b"broken")
    for options in ([], ["--memory", "200MB"]):
        ran = run("upsample", path, tmp_path / "a.tif", "--weights", tiny, "--scale", "2", *options)
        assert ran.status == 1
        assert ran.err.count("\n") == 1
        assert "not a whole zarr store" in ran.err
        assert not (tmp_path / "a.tif").exists()


def test_a_store_is_scored_and_simulated(run: Run, path: Path, tmp_path: Path) -> None:
    data = cells(12, 16, 16)
    data[:2] = 0
    write_store(path, data, scale=SIDES)
    case = prepare("cells", path)
    np.testing.assert_array_equal(case.volume.data, data)
    assert run("simulate", path, tmp_path / "low.tif", "--scale", "2").status == 0
    assert read(tmp_path / "low.tif").data.shape == (6, 8, 8)


# The window ----------------------------------------------------------------------------------


def test_the_app_opens_every_channel_with_sizes_and_place(path: Path) -> None:
    data = cells(2, 7, 9, 10)
    write_store(path, data, "czyx", scale=(1, *SIDES), translation=(0, 1, 2, 3), names=["A", "B"])
    viewer = ViewerModel()
    _app.open_file(viewer, path)
    assert [layer.name for layer in viewer.layers] == ["cells: A", "cells: B"]
    for layer, voxels in zip(viewer.layers, data, strict=True):
        np.testing.assert_array_equal(layer.data, voxels)
        np.testing.assert_allclose(volume_of(layer).spacing, np.divide(SIDES, 1000))
        assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
        np.testing.assert_allclose(layer.data_to_world((0, 0, 0)), (1, 2, 3))
        assert layer.source.path == str(path)


def test_the_app_opens_what_is_large_with_all_its_levels(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cells(2, 8, 12, 16)
    write_store(path, data, "czyx", scale=(1, *SIDES), levels=("0", "1", "2"))
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 2 * data[0].nbytes - 1)
    viewer = ViewerModel()
    _app.open_file(viewer, path)
    for layer, voxels in zip(viewer.layers, data, strict=True):
        assert layer.multiscale
        assert all(isinstance(level, StoredArray) for level in layer.data)
        for number, level in enumerate(layer.data):
            thinned = voxels[(slice(None, None, 2**number),) * 3]
            np.testing.assert_array_equal(np.asarray(level), thinned)
        np.testing.assert_array_equal(np.asarray(volume_of(layer).data), voxels)
        np.testing.assert_allclose(volume_of(layer).spacing, np.divide(SIDES, 1000))
        low, high = layer.contrast_limits
        assert voxels.min() <= low < high <= voxels.max()
    viewer = ViewerModel()
    _app.open_file(viewer, path / "2")
    assert not viewer.layers[0].multiscale


def test_coarser_levels_are_those_of_the_image_that_is_meant(path: Path) -> None:
    data = cells(2, 4, 12, 16)
    zarr.open_group(path, mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    write_store(path / "0", data, "czyx", levels=("0", "1", "2"))  # at last one plane
    for image in (path, path / "0"):
        levels = io.coarser(image, 1)
        assert [level.shape for level in levels] == [(2, 6, 8), (1, 3, 4)]
        np.testing.assert_array_equal(np.asarray(levels[1]), data[1, ::4, ::4, ::4])
    assert [level.shape for level in io.coarser(path / "0" / "1", 0)] == [(1, 3, 4)]
    assert io.coarser(path / "0" / "1", 0)
    with pytest.raises(UsageError, match="has 2 channels"):
        io.coarser(path)
    io.write(path.parent / "a.nii", read(path, channel=0))
    assert io.coarser(path.parent / "a.nii") == ()


def test_what_is_no_level_of_the_same_axes_is_not_looked_at(path: Path) -> None:
    levels = ["0", "plane", "labels", "gone", "1"]
    write_store(path, cells(8, 12, 16), image={"datasets": [{"path": name} for name in levels]})
    group = zarr.open_group(path, mode="a")
    group.create_array("plane", shape=(12, 16), dtype="u2")
    group.create_group("labels")
    group.create_array("1", shape=(4, 6, 8), dtype="u2")
    assert [level.shape for level in io.coarser(path)] == [(4, 6, 8)]


@pytest.mark.parametrize("name", ["../secret.nii", "../../secret.nii", "/etc/secret.nii"])
def test_levels_outside_a_store_are_not_looked_for(path: Path, name: str) -> None:
    write_store(path, cells(8, 12, 16), levels=("0",))
    io.write(path.parent / "secret.nii", read(path))
    levels = [{"path": "0"}, {"path": name}]
    group = zarr.open_group(path, mode="a")
    group.attrs["multiscales"] = [{"axes": axes_of("zyx"), "datasets": levels}]
    try:
        found = io.coarser(path)
    except FileError:
        return
    assert found == ()


def test_the_app_opens_labels_as_labels(path: Path) -> None:
    labels = cells(7, 9, 10) % 3
    write_store(path, cells(7, 9, 10), scale=SIDES)
    write_store(path / "labels" / "nuclei", labels, scale=SIDES, said={"image-label": {}})
    viewer = ViewerModel()
    _app.open_file(viewer, path / "labels" / "nuclei")
    (layer,) = viewer.layers
    assert (layer.name, layer._type_string) == ("cells_labels_nuclei", "labels")


def test_the_command_of_a_stores_layer_writes_a_store_beside_it(path: Path) -> None:
    write_store(path / "0", cells(7, 9, 10), scale=SIDES)
    group = zarr.open_group(path, mode="a", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    volume = read(path / "0")
    plan = Plan(volume, Target(scale=(2.0, 1.0, 1.0)))
    words = plan.command(path / "0")
    assert f"{path / '0'} {path.parent / 'cells_0_x2x1x1.ome.zarr'}" in words


def test_the_fit_command_of_stores_layers_writes_beside_them(tmp_path: Path) -> None:
    stores = [tmp_path / f"{name}.zarr" for name in "ab"]
    for store in stores:
        write_store(store, cells(7, 9, 10), scale=(2, 1, 1))
    volumes = tuple(read(store) for store in stores)
    words = FitPlan(volumes, FitSettings("linear")).command([s / "0" for s in stores], None)
    assert f" -o {tmp_path / 'a_0_fit.nii.gz'}" in words


def test_contrast_of_chunks_that_are_broken_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(path, cells(8, 12, 16))
    for chunk in (path / "0").glob("*.*.*"):
        chunk.write_bytes(b"broken")
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 100)
    with pytest.raises(FileError, match="not a whole zarr store"):
        _app.open_file(ViewerModel(), path)


def test_stores_are_fitted_into_one_volume(run: Run, tmp_path: Path) -> None:
    stacks = []
    for axis in range(3):
        scale = [3.0 if other == axis else 1.0 for other in range(3)]
        counts = [6 if other == axis else 18 for other in range(3)]
        stacks.append(write_store(tmp_path / f"{axis}.zarr", cells(*counts), scale=scale))
    words = ["--method", "linear", "--no-register", "--spacing", "0.001", "--quiet"]
    ran = run("fit", *stacks, "-o", tmp_path / "one.nii.gz", *words)
    assert ran.status == 0, ran.err
    np.testing.assert_allclose(read(tmp_path / "one.nii.gz").spacing, 1e-3, rtol=1e-5)
