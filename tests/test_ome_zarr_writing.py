"""OME-Zarr stores that are written: whole or not at all, as other programs read them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from affines import affines
from hypothesis import given
from hypothesis import strategies as st
from napari.components import ViewerModel
from ome_stores import cells, write_store
from skimage.measure import block_reduce
from tiny import Run

from napari_arssr import _app, io
from napari_arssr._writer import write_folder, write_image_zarr
from napari_arssr.errors import FileError, UsageError
from napari_arssr.io import ome_zarr_writing, origin_of, read, writing
from napari_arssr.volume import Grid, Volume

Array = npt.NDArray[Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.ome.zarr"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small volumes then have several levels, and chunks of two planes."""
    monkeypatch.setattr(ome_zarr_writing, "_SMALL", 4)
    monkeypatch.setattr(ome_zarr_writing, "_HELD", 1)
    monkeypatch.setattr(ome_zarr_writing, "_CHUNK", 2 * 4 * 4)


def upright(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """Where a microscope's stack may be."""
    placed = np.diag([*spacing, 1.0])
    placed[:3, 3] = 1.5, -2, 0.25
    return Grid.from_napari(shape, placed)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "kind",
    [f"{sign}int{8 * n}" for sign in ("", "u") for n in (1, 2, 4, 8)] + ["float32", "float64"],
)
@pytest.mark.usefixtures("small_chunks")
def test_it_is_read_as_it_was_written(path: Path, kind: str) -> None:
    data = np.random.default_rng(2).normal(60, 20, (7, 9, 11)).astype(kind)
    volume = Volume(data, upright((7, 9, 11), (0.004, 0.001, 0.001)).affine)
    assert io.write(path, volume) == path
    found = read(path)
    np.testing.assert_array_equal(found.data, data)
    assert found.data.dtype == kind
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-12)
    assert origin_of(found).description.startswith("napari-arssr ")
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("heights", [[35], [1] * 35, [3, 5, 1, 20, 6]])
@pytest.mark.usefixtures("small_chunks")
def test_a_series_is_written_slab_by_slab(path: Path, heights: list[int]) -> None:
    data = cells(5, 7, 9, 10)
    grid = upright((7, 9, 10), (2, 1, 1))
    planes = data.reshape(35, 9, 10)
    with io.create(path, grid, np.uint16, frames=5, time_step=0.5, time_start=3) as out:
        for stop in np.cumsum(heights):
            out.write(planes[out.written : stop])
    found = read(path)
    np.testing.assert_array_equal(found.data, data)
    assert (found.time_step, found.time_start) == (0.5, 3)
    levels = io.coarser(path)
    assert [level.shape for level in levels] == [(5, 7, 5, 5), (5, 4, 3, 3)]
    for level in levels:
        expected = [mean_of_blocks(frame, grid, level.shape[1:]) for frame in data]
        np.testing.assert_array_equal(np.asarray(level), np.rint(expected))


def levels_of(path: Path) -> list[tuple[Array, Grid]]:
    """The voxels of each level, the finest first, and where they lie; of a store in mm."""
    group = zarr.open_group(path, mode="r")
    image: Any = group.attrs["multiscales"]
    levels = []
    for said in image[0]["datasets"]:
        scale, translation = said["coordinateTransformations"]
        placed = np.diag([*scale["scale"], 1.0])
        placed[:3, 3] = translation["translation"]
        voxels = np.asarray(group[said["path"]])
        levels.append((voxels, Grid.from_napari(voxels.shape, placed)))
    return levels


def mean_of_blocks(data: Array, grid: Grid, shape: tuple[int, ...]) -> Array:
    """Means over blocks of a level, of those voxels that are there."""
    means, level = data.astype(np.float64), grid
    while level.shape != shape:
        factors = level.halving()
        level = level.pooled(factors)
        means = block_reduce(means, factors, np.nanmean, cval=np.nan)
        if data.dtype.kind in "iu":
            means = np.rint(means)  # as they are stored
    return means


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("spacing", [(1, 1, 1), (4, 1, 1), (1, 1.3, 3)])
@pytest.mark.parametrize("shape", [(7, 9, 11), (16, 8, 8), (5, 33, 1), (1, 40, 5)])
def test_levels_are_means_over_blocks_and_lie_there(
    path: Path, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    data = np.random.default_rng(2).normal(0, 9, shape)
    volume = Volume(data, upright(shape, spacing).affine)
    io.write(path, volume)
    levels = levels_of(path)
    assert levels[0][1] == volume.grid
    for level, grid in levels:
        expected = mean_of_blocks(data, volume.grid, grid.shape)
        np.testing.assert_allclose(level, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(grid.faces[0], volume.grid.faces[0], atol=1e-9)
    assert max(levels[-1][1].shape) <= 4 < max(levels[-2][1].shape)


@pytest.mark.usefixtures("small_chunks")
def test_voxels_that_are_no_numbers_stay_so(path: Path) -> None:
    data = np.ones((4, 8, 8), np.float32)
    data[0, 0, :4] = np.nan, 1, np.inf, -np.inf
    io.write(path, Volume(data, upright(data.shape, (1, 1, 1)).affine))
    np.testing.assert_array_equal(read(path).data, data)
    (level,) = io.coarser(path)
    np.testing.assert_array_equal(np.isnan(np.asarray(level)[0, 0]), [True, True, False, False])


@pytest.mark.usefixtures("small_chunks")
def test_means_of_the_largest_numbers_are_none_larger(path: Path) -> None:
    largest = np.finfo(np.float32).max
    volume = Volume(np.full((4, 8, 8), largest), upright((4, 8, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    (level,) = io.coarser(path)
    assert np.unique(np.asarray(level)) == [largest]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("edge", [77, 80, 83])
def test_levels_of_labels_hold_no_others_and_stay_where_they_are(path: Path, edge: int) -> None:
    labels = np.zeros((8, 9, 160), np.uint16)
    labels[..., edge:] = 300
    origin = io.Origin(intent=(io.LABEL, (0.0, 0.0, 0.0), ""))
    grid = upright((8, 9, 160), (1, 1, 1))
    io.write(path, Volume(labels, grid.affine, metadata={"origin": origin}))
    assert io.is_label_map(read(path))
    levels = levels_of(path)
    assert len(levels) == 7
    for level, placed in levels[:5]:
        assert set(np.unique(level)) == {0, 300}
        (at,) = {int(np.argmax(row)) for row in level.reshape(-1, level.shape[-1])}
        # Where the edge is seen to be, in voxels of the level; it may be in the middle of one.
        seen = grid.index(placed.world((0, 0, at - 0.5)))[2] + 0.5
        assert abs(seen - edge) <= 0.75 * level_side(placed)


def level_side(grid: Grid) -> float:
    return grid.spacing[2]


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("name", ["brain_dseg.nii.gz", "brain.nii.gz"])
@pytest.mark.usefixtures("small_chunks")
def test_a_label_map_is_one_by_its_name_too(
    tmp_path: Path, path: Path, name: str, kind: str
) -> None:
    labels = np.zeros((8, 12, 12), kind)
    labels[2:6, 3:9, 3:9] = 77
    labels[3:5, 4:7, 4:7] = 2
    io.write(tmp_path / name, Volume(labels, upright(labels.shape, (1, 1, 1)).affine))
    io.write(path, read(tmp_path / name))
    found = read(path)
    np.testing.assert_array_equal(found.data, labels)
    assert found.data.dtype == kind
    is_map = "dseg" in name
    assert io.is_label_map(found) == (is_map and kind == "uint8")  # OME-Zarr has no others
    (level, *_) = io.coarser(path)
    assert (set(np.unique(np.asarray(level))) <= {0, 2, 77}) == is_map


def test_what_a_header_calls_labels_is_none_in_other_numbers(path: Path) -> None:
    origin = io.Origin(intent=(io.LABEL, (0.0, 0.0, 0.0), ""))
    data = np.random.default_rng(3).normal(size=(4, 5, 6)).astype(np.float32)
    io.write(path, Volume(data, np.eye(4), metadata={"origin": origin}))
    np.testing.assert_array_equal(read(path).data, data)
    assert "image-label" not in zarr.open_group(path, mode="r").attrs


@given(affines())
def test_what_lies_otherwise_keeps_its_sizes_and_is_centred(
    tmp_path_factory: pytest.TempPathFactory, affine: Array
) -> None:
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    volume = Volume(cells(3, 4, 5), affine)
    io.write(path, volume)
    found = read(path)
    np.testing.assert_array_equal(found.data, volume.data)
    expected = volume.grid
    if not expected.is_upright:
        expected = Grid.unoriented(expected.shape, expected.spacing)
    np.testing.assert_allclose(found.affine, expected.affine, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", [(2.0, 0.5, 0.5), (0.004, 0.001, 0.001)])
def test_other_programs_find_what_version_0_4_promises(
    path: Path, spacing: tuple[float, float, float]
) -> None:
    volume = Volume(cells(2, 6, 8, 300), upright((6, 8, 300), spacing).affine, time_step=2.0)
    io.write(path, volume)
    group = zarr.open_group(path, mode="r", zarr_format=2)
    (image,) = group.attrs["multiscales"]
    assert image["version"] == "0.4"
    unit, scale = ("micrometer", 1000) if spacing[0] < 0.1 else ("millimeter", 1)
    assert image["axes"] == [
        {"name": "t", "type": "time", "unit": "second"},
        *({"name": name, "type": "space", "unit": unit} for name in "zyx"),
    ]
    assert [one["path"] for one in image["datasets"]] == ["0", "1"]
    for one in image["datasets"]:
        kinds = [given["type"] for given in one["coordinateTransformations"]]
        assert kinds == ["scale", "translation"]
    finest = image["datasets"][0]["coordinateTransformations"][0]["scale"]
    np.testing.assert_allclose(finest, [2.0, *np.multiply(spacing, scale)])
    assert image["name"] == "out"
    array = group["0"]
    assert isinstance(array, zarr.Array)
    assert array.chunks == (1, 6, 8, 256)
    assert array.metadata.to_dict()["dimension_separator"] == "/"
    assert array.compressors[0].codec_id == "blosc"
    np.testing.assert_array_equal(array[:], volume.data)


@pytest.mark.parametrize(
    ("shape", "spacing", "depths"),
    [
        ((100, 512, 512), (1, 1, 1), [64, 50]),
        ((9, 512, 512), (1, 1, 1), [9, 5]),
        ((9, 2048, 2048), (1, 1, 1), [4, 4, 3, 2]),
        ((900, 2048, 2048), (0.25, 1, 1), [4, 2, 2, 2, 2, 2]),
        ((9, 30_000, 30_000), (1, 1, 1), [2, 2, 2, 2, 1, 1, 1, 1]),
    ],
)
def test_planes_that_are_held_are_few_where_they_are_large(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], depths: list[int]
) -> None:
    grid, kind = upright(shape, spacing), np.dtype(np.float32)
    plan = ome_zarr_writing._plan(grid, kind)
    assert [depth for _, depth, _ in plan] == depths
    plane = 4 * shape[1] * shape[2]
    most = 3 * max(1 << 26, 2 * plane) + (1 << 26)
    assert plane < io.held_to_write("a.zarr", grid, kind) <= most
    assert io.held_to_write("a.nii", grid, kind) == 0


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.25, 1, 1)])
def test_no_more_memory_is_taken_than_is_told(
    path: Path, kind: str, spacing: tuple[float, float, float]
) -> None:
    grid = upright((48, 1024, 1024), spacing)
    slab = np.random.default_rng(3).integers(0, 200, (4, 1024, 1024)).astype(kind)
    io.write(path.with_name("warm.zarr"), Volume(slab[:2, :9, :9], np.eye(4)))  # imports
    tracemalloc.start()
    with io.create(path, grid, kind) as out:
        for _ in range(12):
            out.write(slab)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.2 * io.held_to_write(path, grid, kind) < peak < io.held_to_write(path, grid, kind)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("trouble", ["a plane is missing", "an interruption", "a full disk"])
def test_nothing_is_left_of_what_is_not_whole(
    path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    raised = {
        "a plane is missing": ValueError,
        "an interruption": KeyboardInterrupt,
        "a full disk": FileError,
    }[trouble]

    def write() -> None:
        with io.create(path, volume.grid, np.uint16) as out:
            out.write(volume.data[:5] * 0 + 1)
            if trouble == "an interruption":
                raise KeyboardInterrupt
            if trouble == "a full disk":
                full = OSError(errno.ENOSPC, "No space left on device")
                monkeypatch.setattr(zarr.Array, "__setitem__", _raising(full))
                out.write(volume.data[5:])

    with pytest.raises(raised, match="no room on the disk" if raised is FileError else None):
        write()
    np.testing.assert_array_equal(read(path).data, volume.data)
    assert leftovers(path.parent) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such timer")
def test_who_interrupts_a_store_leaves_nothing_that_goes_on_writing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = zarr.Array.__setitem__
    ended = threading.Event()

    def slowly(self: Any, index: Any, voxels: Any) -> None:
        time.sleep(1)
        store(self, index, voxels)
        ended.set()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    monkeypatch.setattr(zarr.Array, "__setitem__", slowly)
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            io.write(path, volume)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert ended.is_set()
    assert list(path.parent.iterdir()) == []


@pytest.mark.usefixtures("small_chunks")
def test_no_chunk_is_written_after_one_that_failed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = zarr.Array.__setitem__
    ended = []

    def once(self: Any, index: Any, voxels: Any) -> None:
        if not index[-1].start and not index[-2].start:
            raise OSError(errno.ENOSPC, "No space left on device")
        time.sleep(0.1)
        store(self, index, voxels)
        ended.append(index)

    monkeypatch.setattr(zarr.Array, "__setitem__", once)
    with pytest.raises(FileError, match="no room on the disk"):
        io.write(path, Volume(cells(6, 8, 8), np.eye(4)))
    before = len(ended)
    time.sleep(0.3)
    assert len(ended) == before
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "place",
    [
        (ome_zarr_writing, "_told"),
        (ome_zarr_writing._Level, "_store"),
        (ome_zarr_writing.StoreFile, "finish"),
        (os, "fsync"),
        (writing, "_rename"),
    ],
)
def test_ctrl_c_at_any_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    monkeypatch.setattr(*place, _raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        io.write(path, Volume(cells(6, 7, 8), np.eye(4)))
    assert list(path.parent.iterdir()) == []


def _raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_an_old_store_stays_where_the_new_one_cannot_take_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    rename = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == path and read(self).data.max() == 1:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    ones = Volume(np.ones_like(volume.data), volume.affine)
    with pytest.raises(FileError, match="cannot be written"):
        io.write(path, ones)
    np.testing.assert_array_equal(read(path).data, volume.data)
    assert leftovers(path.parent) == []


def add_labels(path: Path) -> None:
    write_store(path / "labels" / "nuclei", cells(3, 7, 8))


def add_level(path: Path) -> None:
    zarr.open_group(path, mode="a").create_array("1", shape=(2, 3, 4), dtype="u1")


def add_image(path: Path) -> None:
    group = zarr.open_group(path, mode="a")
    (image,) = group.attrs["multiscales"]  # type: ignore[misc]
    group.create_array("deconvolved", shape=(6, 7, 8), dtype="u1")
    other = image | {"datasets": [image["datasets"][0] | {"path": "deconvolved"}]}
    group.attrs["multiscales"] = [image, other]


def add_note(path: Path) -> None:
    (path / "0" / "notes").mkdir()
    (path / "0" / "notes" / "read me.txt").write_text("mine")


def add_metadata(path: Path) -> None:
    zarr.open_group(path, mode="a").attrs["omero"] = {"channels": []}


def add_metadata_to_a_level(path: Path) -> None:
    zarr.open_group(path, mode="a")["0"].attrs["note"] = "mine"


def break_metadata(path: Path) -> None:
    (path / ".zattrs").write_text("{")


def take_over(path: Path) -> None:
    shutil.rmtree(path)
    write_store(path, cells(3, 7, 8))


def become_a_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "precious.txt").write_text("mine")


CHANGES = {
    add_labels: "holds labels, which this program did not write",
    add_level: "holds 1, which this program did not write",
    add_image: "is no result of this program",
    add_note: "holds 0/notes, which this program did not write",
    add_metadata: "holds 'omero' in its metadata, which this program did not write",
    add_metadata_to_a_level: "holds 'note' in its metadata, which this program did not write",
    break_metadata: "is no result of this program",
    take_over: "is no result of this program",
}


def test_an_own_store_is_replaced(path: Path) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    (path / "0" / ".DS_Store").write_bytes(b"left by a desktop")
    io.write(path, Volume(volume.data[:3], volume.affine))
    assert read(path).data.shape == (3, 7, 8)
    assert leftovers(path.parent) == []


def test_what_was_opened_before_is_not_read_from_a_new_store(path: Path) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    before = read(path, most=0)
    np.testing.assert_array_equal(np.asarray(before.data), volume.data)
    io.write(path, Volume(volume.data[::-1], volume.affine))
    with pytest.raises(FileError, match="was replaced since it was opened; open it again"):
        np.asarray(before.data)
    np.testing.assert_array_equal(read(path, most=0).data[0], volume.data[5])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_others_wrote_into_a_store_is_not_lost(
    path: Path, change: Callable[[Path], None]
) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    change(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(UsageError, match=f"is there already and {CHANGES[change]}, so it is not"):
        io.write(path, volume)
    assert sorted(path.rglob("*")) == before
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("change", [*CHANGES, become_a_folder], ids=lambda change: change.__name__)
def test_nor_is_what_they_write_while_the_new_one_is_made(
    path: Path, change: Callable[[Path], None]
) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)

    def replace() -> None:
        with io.create(path, volume.grid, np.uint16) as out:
            out.write(volume.data)
            change(path)

    with pytest.raises(UsageError, match=r"already and .* not replaced.* is .*out_2.ome.zarr\."):
        replace()
    assert path.is_dir()
    spare = path.with_name("out_2.ome.zarr")
    np.testing.assert_array_equal(read(spare).data, volume.data)
    if change is add_labels:
        assert read(path / "labels" / "nuclei").data.shape == (3, 7, 8)
    if change is become_a_folder:
        assert (path / "precious.txt").read_text() == "mine"
    assert leftovers(path.parent) == []


def test_a_link_to_a_store_is_replaced_and_the_store_stays(path: Path, tmp_path: Path) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine)
    io.write(path, volume)
    link = tmp_path / "link.ome.zarr"
    link.symlink_to(path)
    io.write(link, Volume(volume.data[:3], volume.affine))
    assert (read(link).data.shape, read(path).data.shape) == ((3, 7, 8), (6, 7, 8))
    assert not link.is_symlink()
    assert leftovers(tmp_path) == []
    dead = tmp_path / "dead.ome.zarr"
    dead.symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="is a link to what is not there"):
        io.write(dead, volume)


def test_nothing_is_written_into_a_store_or_over_one_that_is_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.write(path, Volume(cells(6, 7, 8), upright((6, 7, 8), (1, 1, 1)).affine))
    level, within = tmp_path / "level", tmp_path / "within"
    level.symlink_to(path / "0")
    within.symlink_to(path / "0" / "0")
    for source in (level, path / "0", path):
        with pytest.raises(UsageError, match="is the input itself"):
            io.check_output(path, [source])
    with pytest.raises(UsageError, match="lies in the zarr store"):
        io.check_output(within / "out.tif")
    assert io.check_output(path / ".." / "out.tif")
    with pytest.raises(UsageError, match="is a folder"):
        io.check_output(path.parent / "..")
    monkeypatch.chdir(path)
    assert io.check_output("../out.tif")
    assert io.name_of("../out.tif") == "out.tif"
    with pytest.raises(UsageError, match="lies in the zarr store"):
        io.check_output("out.tif")


def test_one_plane_is_read_where_it_is_known_to_be_a_volume(path: Path) -> None:
    volume = Volume(cells(1, 7, 8), upright((1, 7, 8), (2, 1, 1)).affine)
    io.write(path, volume, provenance=io.record_of({"scale": 2}))
    assert read(path).data.shape == (1, 7, 8)
    assert io.is_result(path)


@pytest.mark.parametrize("creator", ["someone", 5, ["napari-arssr"], None, {}])
def test_any_creator_is_read(path: Path, creator: Any) -> None:
    write_store(path, cells(3, 7, 8), said={"_creator": creator})
    assert origin_of(read(path)).description == ""
    assert not io.is_result(path)


def test_a_folder_is_not_replaced(path: Path) -> None:
    path.mkdir()
    volume = Volume(cells(6, 7, 8), np.eye(4))
    with pytest.raises(UsageError, match="is a folder; give the result a file name"):
        io.write(path, volume)
    assert list(path.iterdir()) == []


def test_scale_factors_are_refused(tmp_path: Path, path: Path) -> None:
    volume = Volume(cells(6, 7, 8), np.eye(4))
    with (
        pytest.raises(UsageError, match="OME-Zarr has no scale factors; choose float32"),
        io.create(path, volume.grid, np.uint16, slope=0.5),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_packed_store_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").write_bytes(b"PK")
    with pytest.raises(FileError, match="is a file, and a zarr store is a folder; unpack it"):
        read(tmp_path / "a.zarr")
    assert io.volumes_in(tmp_path) == []


# The command line and the window -------------------------------------------------------------


@pytest.fixture
def plugins() -> None:
    """napari's own plugin and ours, as napari finds them when it starts."""
    npe2.PluginManager.instance().discover()


@pytest.mark.parametrize("slab", [1 << 26, 1], ids=["whole", "in slabs"])
def test_a_result_is_that_of_a_tiff(
    *,
    run: Run,
    tiny: Path,
    path: Path,
    tmp_path: Path,
    slab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_arssr.field._SLAB_BYTES", slab)
    store = write_store(tmp_path / "cells.zarr", cells(9, 20, 24), scale=(2.0, 0.5, 0.5))
    words = ["upsample", store, "--weights", tiny, "--scale", "1,1,2.5"]
    ran = run(words[0], words[1], path, *words[2:])
    assert ran.status == 0, ran.err
    stack = tmp_path / "out.tif"
    assert run(words[0], words[1], stack, *words[2:]).status == 0
    found = read(path)
    np.testing.assert_array_equal(found.data, read(stack).data)
    np.testing.assert_allclose(found.grid.faces, read(store).grid.faces, atol=1e-9)
    assert io.is_result(path)
    settings = json.loads(origin_of(found).provenance)["napari-arssr"]
    assert settings == json.loads(origin_of(read(stack)).provenance)["napari-arssr"]
    ran = run(words[0], words[1], path, *words[2:], "--skip-existing")
    assert "there already" in ran.out
    assert run(words[0], words[1], path, *words[2:]).status == 0  # replaced
    (path / "labels").mkdir()
    ran = run(words[0], words[1], path, *words[2:])
    assert ran.status == 2
    assert "holds labels, which this program did not write" in ran.err


def test_a_mistyped_number_type_is_told(run: Run, tiny: Path, path: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", cells(6, 7, 8))
    ran = run("upsample", store, path, "--weights", tiny, "--scale", "2", "--dtype", "foo")
    assert ran.status == 2
    assert "'foo' is no number type; choose int16 or float32" in ran.err


def test_a_series_is_simulated_into_a_store(run: Run, path: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", cells(2, 12, 16, 16), "tzyx", scale=(3, 1, 1, 1))
    ran = run("simulate", store, path, "--scale", "2")
    assert ran.status == 0, ran.err
    found = read(path)
    assert (found.data.shape, found.time_step) == ((2, 6, 8, 8), 3.0)


def test_results_in_stores_are_scored_and_their_masks_found(run: Run, tmp_path: Path) -> None:
    data = cells(24, 32, 32)
    write_store(tmp_path / "high" / "a.ome.zarr", data, scale=(1, 1, 1))
    mask = Volume((data > 300).astype(np.uint8), read(tmp_path / "high" / "a.ome.zarr").affine)
    (tmp_path / "masks").mkdir()
    io.write(tmp_path / "masks" / "a.zarr", mask)
    words = ["--out", tmp_path / "scores", "--scales", "2", "--masks", tmp_path / "masks"]
    words += ["--metrics", "psnr", "--methods", "cubic", "--pictured", "0"]
    ran = run("evaluate", tmp_path / "high", *words)
    assert ran.status == 0, ran.err
    rows = (tmp_path / "scores" / "rows.csv").read_text().splitlines()
    assert len(rows) == 2


@pytest.mark.usefixtures("small_chunks")
def test_the_app_opens_what_was_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(cells(6, 7, 8), upright((6, 7, 8), (0.002, 0.001, 0.001)).affine)
    io.write(path, volume)
    monkeypatch.setattr("napari_arssr.lazy.LARGE", volume.data.nbytes - 1)
    viewer = ViewerModel()
    _app.open_file(viewer, path)
    (layer,) = viewer.layers
    assert layer.multiscale
    np.testing.assert_array_equal(np.asarray(layer.data[0]), volume.data)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("name", ["out.ome.zarr", "out.zarr"])
def test_naparis_menu_saves_a_layer(tmp_path: Path, kind: str, name: str) -> None:
    viewer = ViewerModel()
    data = cells(6, 7, 8)
    add = viewer.add_image if kind == "image" else viewer.add_labels
    layer = add(data, scale=(2, 0.5, 0.5), translate=(1, 2, 3), units="um")
    (saved,) = layer.save(str(tmp_path / name), plugin="napari-arssr")
    assert saved == str(tmp_path / name)
    found = read(saved)
    np.testing.assert_array_equal(found.data, data)
    np.testing.assert_allclose(found.spacing, (0.002, 0.0005, 0.0005))
    np.testing.assert_allclose(found.napari_affine[:3, 3], (0.001, 0.002, 0.003))
    assert io.is_label_map(found) == (kind == "labels")
    assert write_image_zarr(str(tmp_path / "named"), data, {}) == [str(tmp_path / "named.ome.zarr")]
    with pytest.raises(FileError, match="several layers are saved as NIfTI; give a folder"):
        write_folder(str(tmp_path / "both.zarr"), [layer.as_layer_data_tuple()] * 2)


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    affines(),
    st.tuples(*[st.integers(1, 3)] * 3),
)
def test_a_block_lies_around_its_voxels(
    shape: tuple[int, int, int], affine: Array, factors: tuple[int, int, int]
) -> None:
    grid = Grid(shape, affine)
    pooled = grid.pooled(factors)
    assert pooled.shape == tuple(-(-n // factor) for n, factor in zip(shape, factors, strict=True))
    np.testing.assert_allclose(pooled.spacing, np.multiply(grid.spacing, factors), rtol=1e-9)
    voxels = [range(factor) for factor in factors]
    centre = grid.world(np.stack(np.meshgrid(*voxels), -1).reshape(-1, 3)).mean(0)
    np.testing.assert_allclose(pooled.world((0, 0, 0)), centre, atol=1e-9)
    np.testing.assert_allclose(pooled.faces[0], grid.faces[0], atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "spacing", "halved"),
    [
        ((9, 9, 9), (1, 1, 1), (2, 2, 2)),
        ((9, 9, 9), (4, 1, 1), (1, 2, 2)),
        ((9, 9, 9), (4, 4, 3), (2, 2, 2)),
        ((9, 9, 9), (1, 1.5, 3), (2, 1, 1)),
        ((1, 9, 9), (1, 3, 3), (1, 2, 2)),
        ((9, 1, 1), (4, 1, 1), (2, 1, 1)),
    ],
)
def test_axes_of_short_voxels_are_halved(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    halved: tuple[int, int, int],
) -> None:
    assert Grid.from_spacing(shape, spacing).halving() == halved
