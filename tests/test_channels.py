"""Stacks with several channels: one is read, wherever in the file it lies."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from napari.components import ViewerModel
from tiny import Run

from napari_arssr import _app, cli, io
from napari_arssr._fit_plan import FitPlan
from napari_arssr._layers import volume_of
from napari_arssr._plan import Plan, Workshop, same_as_file
from napari_arssr.errors import FileError, UsageError
from napari_arssr.evaluation.rows import read_rows
from napari_arssr.fitting.settings import Settings as FitSettings
from napari_arssr.io import StoredArray, origin_of, read
from napari_arssr.timing import Speeds
from napari_arssr.upsampling import Settings, Target
from napari_arssr.volume import Box, Grid, Volume

Array = npt.NDArray[Any]

LENGTHS = {"T": 2, "C": 3, "S": 3, "Z": 9, "Y": 20, "X": 24}
NAMES = ("DAPI", "GFP", "Cy5")

IMAGEJ: dict[str, Any] = {"imagej": True}
OME: dict[str, Any] = {"ome": True}
GREY: dict[str, Any] = {"photometric": "minisblack"}
PACKED: dict[str, Any] = {"compression": "zlib"}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ImageJ": ("ZCYX", IMAGEJ),
    "ImageJ, series": ("TZCYX", IMAGEJ),
    "ImageJ, packed series": ("TZCYX", IMAGEJ | PACKED),
    "OME, channel first": ("CZYX", OME),
    "OME, channel after depth": ("ZCYX", OME),
    "OME, packed series": ("CTZYX", OME | PACKED),
    "OME, depth before time": ("ZTCYX", OME),
    "OME, packed, channel between depth and time": ("ZCTYX", OME | PACKED),
    "OME, packed in tiles": ("ZCYX", OME | PACKED | {"tile": (16, 16)}),
    "plain, packed, other byte order": ("ZCYX", GREY | PACKED | {"byteorder": ">"}),
    "samples in planes of their own": ("ZSYX", OME | GREY | {"planarconfig": "separate"}),
    "samples side by side": ("ZYXS", OME | GREY | {"planarconfig": "contig"}),
    "samples side by side, packed": ("ZYXS", OME | GREY | PACKED | {"planarconfig": "contig"}),
}


def stack(path: Path, axes: str = "ZCYX", metadata: Any = None, **options: Any) -> Array:
    """A file with three channels of their own brightness; its voxels as (c, [t,] z, y, x)."""
    generator = np.random.default_rng(4)
    data = generator.integers(0, 100, [LENGTHS[axis] for axis in axes])
    channel = axes.index("C" if "C" in axes else "S")
    data += (1000 * np.arange(3)).reshape([-1 if n == channel else 1 for n in range(len(axes))])
    data = data.astype(np.uint16)
    tifffile.imwrite(path, data, metadata={"axes": axes} | (metadata or {}), **options)
    order = [axes.index(axis) for axis in "TZYX" if axis in axes]
    return data.transpose(channel, *order)


def microscope(path: Path, **metadata: Any) -> Array:
    """The same in ImageJ's form, with voxels of 3 × 0.5 × 0.5 µm."""
    sizes = {"spacing": 3.0, "unit": "um"}
    return stack(path, imagej=True, resolution=(2, 2), metadata=sizes | metadata)


def _volume(data: Array) -> Volume:
    return Volume(data, Grid.unoriented((4, 5, 6), (1.0, 1.0, 1.0)).affine)


# Reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_channel_is_read_wherever_it_lies(tmp_path: Path, kind: str, most: int | None) -> None:
    axes, options = KINDS[kind]
    path = tmp_path / "cells.tif"
    expected = stack(path, axes, **options)
    assert [channel.number for channel in io.channels_of(path)] == [0, 1, 2]
    for number in range(3):
        volume = read(path, channel=number, most=most)
        stays = most == 0 and axes[-1] == "X"
        assert isinstance(volume.data, StoredArray if stays else np.ndarray)
        np.testing.assert_array_equal(np.asarray(volume.data), expected[number])
        part = np.s_[..., 3:5, 7:3:-2, 4]
        np.testing.assert_array_equal(np.asarray(volume.data[part]), expected[number][part])
        assert io.channel_of(volume) == number
        if "T" in axes:
            one = read(path, channel=number, frame=1, most=most)
            np.testing.assert_array_equal(np.asarray(one.data), expected[number][1])
            assert io.channel_of(one) == number


@pytest.mark.parametrize("most", [None, 0])
@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
def test_planes_of_other_channels_are_not_read(
    tmp_path: Path, axes: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cells.tif"
    expected = stack(path, axes, **OME, **PACKED)
    with tifffile.TiffFile(path) as file:
        numbers = np.arange(27).reshape([LENGTHS[axis] for axis in axes[:2]])
        mine = set(numbers.take(1, axis=axes.index("C")).tolist())
        starts = [page.dataoffsets[0] for page in file.pages]
    with path.open("r+b") as damaged:
        for number in set(range(27)) - mine:
            damaged.seek(starts[number])
            damaged.write(bytes(20))
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)
    np.testing.assert_array_equal(np.asarray(read(path, channel=1, most=most).data), expected[1])
    with pytest.raises(FileError, match="not a whole TIFF file"):
        read(path, channel=0, most=most)


def test_a_channel_has_sizes_calibration_and_sign_of_its_file(tmp_path: Path) -> None:
    expected = microscope(tmp_path / "a.tif", cf=0, c0=-100.0, c1=0.5)
    for most in (None, 0):
        volume = read(tmp_path / "a.tif", channel=2, most=most)
        np.testing.assert_allclose(volume.spacing, (3e-3, 5e-4, 5e-4))
        np.testing.assert_array_equal(np.asarray(volume.data), expected[2] * np.float32(0.5) - 100)
        assert (origin_of(volume).slope, origin_of(volume).intercept) == (0.5, -100)
    microscope(tmp_path / "b.tif", cf=0, c0=-32768.0, c1=1.0)
    signed = read(tmp_path / "b.tif", channel=2).data
    assert signed.dtype == np.int16
    np.testing.assert_array_equal(signed, expected[2].astype(np.int32) - 32768)


@pytest.mark.parametrize(
    ("options", "metadata", "said"),
    [
        (OME, {"Channel": {"Name": list(NAMES)}}, "0 DAPI, 1 GFP, 2 Cy5"),
        (OME, {"Channel": {"Name": ["DAPI", "", "far  red"]}}, "0 DAPI, 1, 2 far red"),
        (OME, {}, "0 to 2"),
        (IMAGEJ, {"Labels": NAMES * 9}, "0 DAPI, 1 GFP, 2 Cy5"),
        (IMAGEJ, {"Labels": [f"plane {n}" for n in range(27)]}, "0 to 2"),
        (IMAGEJ, {"Labels": ["cells.lif"] * 27}, "0 to 2"),
        (IMAGEJ, {}, "0 to 2"),
    ],
)
def test_several_channels_and_none_named_is_told_with_their_names(
    tmp_path: Path, options: dict[str, Any], metadata: dict[str, Any], said: str
) -> None:
    path = tmp_path / "cells.tif"
    stack(path, metadata=metadata, **options)
    with pytest.raises(UsageError) as error:
        read(path)
    assert str(error.value).startswith(f"{path} has 3 channels ({said}); choose one ('--channel' ")
    with pytest.raises(UsageError, match=r"cells\.tif: there is no channel 3; it has channels 0"):
        read(path, channel=3)
    with pytest.raises(UsageError, match="no channel -1"):
        read(path, channel=-1)


@pytest.mark.parametrize("name", ["a.tif", "a.nii.gz", "a.img"])
def test_of_a_file_with_one_channel_the_first_is_all_of_it(tmp_path: Path, name: str) -> None:
    data = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
    path = io.write(tmp_path / name, _volume(data))
    assert io.channels_of(path) == (io.Channel(0),)
    one = read(path, channel=0)
    np.testing.assert_array_equal(one.data, data)
    assert origin_of(one) == origin_of(read(path))
    with pytest.raises(UsageError, match=r"there is no channel 1; it has one, channel 0\."):
        read(path, channel=1)


def test_channels_of_a_plane_are_no_stack(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((9, 5, 6), np.uint16), imagej=True, metadata={"axes": "CYX"}
    )
    with pytest.raises(FileError, match=r"2D with several channels \(9×5×6\).*swap the axes"):
        read(tmp_path / "a.tif", channel=1)


@pytest.mark.parametrize("number", [None, 0])
def test_colours_are_no_channels(tmp_path: Path, number: int | None) -> None:
    data = np.zeros((4, 5, 6, 3), np.uint8)
    for name, options in {"a.tif": {}, "b.tif": IMAGEJ}.items():
        tifffile.imwrite(tmp_path / name, data, photometric="rgb", **options)
        with pytest.raises(FileError, match="is a colour image; save one channel"):
            read(tmp_path / name, channel=number)


# The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--box", "4:16,2:12,3:8"]], ids=["whole", "box"])
@pytest.mark.parametrize("kind", ["ImageJ, packed series", "OME, channel after depth"])
def test_a_channel_is_upsampled_as_if_it_were_a_file_of_its_own(
    *, run: Run, tiny: Path, tmp_path: Path, kind: str, options: list[str]
) -> None:
    axes, how = KINDS[kind]
    both, alone = tmp_path / "cells.tif", tmp_path / "alone.tif"
    gfp = stack(both, axes, **how)[1]
    frame = ["--frame", "1"] if "T" in axes else []
    own = "TZYX"[-gfp.ndim :]
    tifffile.imwrite(alone, gfp, **how, metadata={"axes": own})
    words = ["--weights", tiny, "--scale", "2", *frame, *options]
    ran = run("upsample", both, tmp_path / "one.nii", *words, "--channel", "1")
    assert ran.status == 0, ran.err
    assert run("upsample", alone, tmp_path / "two.nii", *words).status == 0
    one, two = (nib.load(tmp_path / name) for name in ("one.nii", "two.nii"))
    assert one.get_fdata().min() > 500  # of the second
    np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
    np.testing.assert_array_equal(one.affine, two.affine)
    records = [
        json.loads(image.header.extensions[0].get_content())["napari-arssr"] for image in (one, two)
    ]
    assert [record["channel"] for record in records] == [1, None]


def test_a_channel_is_simulated(run: Run, tmp_path: Path) -> None:
    expected = microscope(tmp_path / "cells.tif")
    words = ["simulate", tmp_path / "cells.tif", tmp_path / "low.nii", "--scale", "1"]
    assert run(*words, "--width", "0.001", "--channel", "2", "--json").status == 0
    low = nib.load(tmp_path / "low.nii")
    np.testing.assert_allclose(low.get_fdata().T, expected[2], atol=0.01)
    record = json.loads(low.header.extensions[0].get_content())["napari-arssr simulate"]
    assert record["channel"] == 2


@pytest.mark.parametrize(
    ("command", "words", "part"),
    [
        ("upsample", [], "has 3 channels (0 DAPI, 1 GFP, 2 Cy5); choose one ('--channel' of"),
        ("simulate", [], "has 3 channels"),
        ("upsample", ["--channel", "3"], "there is no channel 3; it has channels 0 DAPI, 1 GFP"),
        ("simulate", ["--channel", "-1"], "there is no channel -1"),
    ],
)
def test_a_channel_that_cannot_be_meant_is_wrong_use(
    *, run: Run, tmp_path: Path, command: str, words: list[str], part: str
) -> None:
    path = tmp_path / "cells.tif"
    stack(path, metadata={"Channel": {"Name": list(NAMES)}}, **OME)
    ran = run(command, path, tmp_path / "out.nii", "--scale", "2", *words)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert str(path) in ran.err
    assert part in ran.err
    assert not (tmp_path / "out.nii").exists()


def test_of_a_folder_every_file_gives_that_channel(run: Run, tiny: Path, tmp_path: Path) -> None:
    scans, results = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for name in ("a.tif", "b.tif"):
        microscope(scans / name)
    io.write(scans / "c.nii", _volume(np.zeros((4, 5, 6), np.float32)))
    words = ["upsample", scans, results, "--weights", tiny, "--scale", "1", "--channel", "1"]
    ran = run(*words, "--quiet")
    assert ran.status == 1  # some were done
    assert "c.nii: there is no channel 1; it has one" in ran.err
    assert sorted(path.name for path in results.iterdir()) == ["a.tif", "b.tif"]
    for path in results.iterdir():
        assert 1000 <= read(path).data.min() <= read(path).data.max() < 1100


def test_a_channel_is_scored_as_if_it_were_a_file_of_its_own(run: Run, tmp_path: Path) -> None:
    z, y, x = np.indices((12, 20, 24))
    waves = np.stack([np.sin(z / 2 + n) + np.cos(y / 3) + np.sin(x / (2 + n)) for n in range(2)])
    both, alone = tmp_path / "cells.tif", tmp_path / "alone.tif"
    data = (1000 + 300 * waves).astype(np.uint16)
    tifffile.imwrite(both, data, metadata={"axes": "CZYX"}, **OME)
    tifffile.imwrite(alone, data[1], metadata={"axes": "ZYX"}, **OME)
    words = ["--scales", "2", "--methods", "cubic", "--metrics", "psnr", "--pictured", "0"]
    ran = run("evaluate", f"a={both}", "--out", tmp_path / "one", *words, "--channel", "1")
    assert ran.status == 0, ran.err
    assert run("evaluate", f"a={alone}", "--out", tmp_path / "two", *words).status == 0
    (one,), (two,) = (read_rows(tmp_path / out / "rows.csv") for out in ("one", "two"))
    assert one.volume == "cells_channel1.tif"
    assert (one.psnr, one.mask) == (two.psnr, two.mask)
    ran = run("evaluate", f"a={both}", "--out", tmp_path / "one", *words, "--channel", "0")
    assert [row.volume for row in read_rows(tmp_path / "one" / "rows.csv")] == [
        "cells_channel1.tif", "cells_channel0.tif",
    ]  # fmt: skip
    ran = run("evaluate", f"a={both}", "--out", tmp_path / "three", *words)
    assert ran.status == 1
    assert "has 2 channels" in ran.err


# The window ----------------------------------------------------------------------------------


def opened(file: Path) -> ViewerModel:
    viewer = ViewerModel()
    _app.open_file(viewer, file)
    return viewer


def test_every_channel_opens_as_a_layer_with_name_sizes_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "cells.tif"
    expected = microscope(path, Labels=NAMES * 9)
    viewer = opened(path)
    assert [layer.name for layer in viewer.layers] == [f"cells: {name}" for name in NAMES]
    assert [layer.colormap.name for layer in viewer.layers] == ["cyan", "magenta", "yellow"]
    assert [str(layer.blending) for layer in viewer.layers] == [
        "translucent_no_depth", "additive", "additive",
    ]  # fmt: skip
    for layer, voxels in zip(viewer.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.data, voxels)
        np.testing.assert_allclose(volume_of(layer).spacing, (3e-3, 5e-4, 5e-4))
        assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
        assert layer.source.path == str(path)
        low, high = layer.contrast_limits
        assert voxels.min() <= low < high <= voxels.max()


def test_channels_without_names_are_numbered(tmp_path: Path) -> None:
    microscope(tmp_path / "cells.tif")
    names = [layer.name for layer in opened(tmp_path / "cells.tif").layers]
    assert names == ["cells: channel 0", "cells: channel 1", "cells: channel 2"]


def test_large_channels_are_left_in_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = microscope(tmp_path / "cells.tif")
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 3 * expected[0].nbytes - 1)
    for layer, voxels in zip(opened(tmp_path / "cells.tif").layers, expected, strict=True):
        assert isinstance(layer.data, StoredArray)
        np.testing.assert_array_equal(np.asarray(layer.data), voxels)


def test_a_stack_that_is_damaged_is_told_and_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "cells.tif"
    stack(path, **OME, **PACKED)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(FileError, match=r"cells\.tif is (cut off|not a whole TIFF file)"):
        opened(path)


@pytest.fixture
def window_result(tiny: Path, tmp_path: Path) -> Callable[[Plan], Array]:
    def carry_out(plan: Plan) -> Array:
        workshop = Workshop(Speeds(tmp_path / "timing.json"))
        result = workshop.carry_out(plan, lambda _share, _stage: None, lambda: False)
        assert result.metadata["upsampling"]["channel"] == io.channel_of(plan.volume)
        return np.asarray(result.data)

    return carry_out


def test_the_copied_command_gives_the_channel_of_the_layer(
    window_result: Callable[[Plan], Array], tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cells.tif"
    microscope(path)
    outputs = set()
    for number, layer in enumerate(opened(path).layers):
        box = Box((2, 3, 4), (7, 13, 16)) if number else None
        plan = Plan(volume_of(layer), Target(scale=2.0), box, settings=Settings(weights=tiny))
        same_as_file(plan.volume, path, lambda: False)
        words = shlex.split(plan.command(path))
        assert words[words.index("--channel") + 1] == str(number)
        assert cli.main([*words[1:], "--quiet"]) == 0
        outputs.add(words[3])
        np.testing.assert_allclose(read(words[3]).data, window_result(plan), rtol=0, atol=2e-2)
    assert len(outputs) == 3  # one does not replace the other


def test_no_command_is_claimed_for_a_layer_whose_channel_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "cells.tif"
    microscope(path)
    for data in (tifffile.imread(path), tifffile.imread(path)[:, 1]):  # as napari opens it
        with pytest.raises(UsageError, match=r"cells\.tif has 3 channels"):
            same_as_file(volume_of(ViewerModel().add_image(data)), path, lambda: False)
    edited = volume_of(opened(path).layers[1])
    edited.data[3, 2, 1] += 1
    with pytest.raises(UsageError, match="was changed since it was read"):
        same_as_file(edited, path, lambda: False)


def test_no_fit_of_whole_files_is_claimed_for_channels(tmp_path: Path) -> None:
    path = tmp_path / "cells.tif"
    microscope(path)
    plan = FitPlan(tuple(volume_of(layer) for layer in opened(path).layers), FitSettings())
    with pytest.raises(UsageError, match=r"cells: channel 0 is one of several channels of .*save"):
        plan.compared_command([path] * 3, None, lambda: False)


def test_a_channel_of_labels_is_a_label_map_in_the_window_and_on_the_command_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cells.tif"
    data = np.zeros((4, 2, 20, 24), np.uint8)
    data[:, 0] = np.random.default_rng(0).integers(0, 99, (4, 20, 24))
    data[1:3, 1, 5:15, 5:12] = 1
    data[1:3, 1, 5:15, 14:20] = 2
    names = {"Channel": {"Name": ["label-free", "mask"]}}
    tifffile.imwrite(path, data, ome=True, metadata={"axes": "ZCYX"} | names)
    viewer = opened(path)
    assert [type(layer).__name__ for layer in viewer.layers] == ["Image", "Labels"]
    for number, layer in enumerate(viewer.layers):
        for volume in (volume_of(layer), read(path, channel=number)):
            assert io.is_label_map(volume) == (number == 1)
