"""What Run does with a layer, away from any window: the same as the command line does."""

from __future__ import annotations

import gc
import shlex
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import dask.array as da
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from in_a_file import InAFile, in_planes

from napari_arssr import _plan, cli, io
from napari_arssr._layers import image_layer, volume_of_data
from napari_arssr._plan import Plan, Workshop, same_as_file
from napari_arssr._reader import napari_get_reader
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, FileError, OutOfMemory, UsageError
from napari_arssr.models import ArSSR
from napari_arssr.timing import Speeds, Work
from napari_arssr.upsampling import Settings, Target, upsample
from napari_arssr.volume import Box, Grid, Volume

Array = npt.NDArray[Any]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(Speeds(tmp_path / "timing.json"))


def quiet(_share: float | None, _stage: str) -> None:
    pass


def go_on() -> bool:
    return False


def a_scan(path: Path, order: tuple[int, int, int] = (0, 1, 2), frames: int = 0) -> Path:
    """A file of 7 × 6 × 5 voxels along R, A, S, stored in another order of axes."""
    generator = np.random.default_rng(2)
    data = generator.normal(100, 20, (7, 6, 5, frames) if frames else (7, 6, 5))
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = -5, 6, 7
    turned = np.eye(4)
    turned[:, :3] = affine[:, list(order)]
    turned[:3, 3] = affine[:3, 3]
    axes = (*order, 3) if frames else order
    nib.save(nib.Nifti1Image(data.transpose(axes).astype(np.float32), turned), path)
    return path


def layer_volume(path: Path) -> Volume:
    """The volume of the layer that napari gets for a file."""
    reader = napari_get_reader(str(path))
    assert reader is not None
    (data, meta, kind), *_ = reader(str(path))
    return volume_of_data(data, meta, kind)


# The command line gives the same -------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize(
    "part",
    [
        (Target(scale=2.0), None),
        (Target(scale=(1.0, 2.0, 1.5)), Box((1, 0, 2), (4, 5, 6))),
        (Target(spacing=(1.0, 0.8, 0.5)), Box((0, 1, 1), (2, 4, 7))),
        (Target(isotropic=True), None),
    ],
    ids=["scale", "scales of a box", "spacings of a box", "isotropic"],
)
def test_the_copied_command_gives_the_same_whatever_the_order_of_axes(
    tiny: Path,
    workshop: Workshop,
    tmp_path: Path,
    order: tuple[int, int, int],
    part: tuple[Target, Box | None],
) -> None:
    target, box = part
    source = a_scan(tmp_path / "my scan.nii.gz", order)
    volume = layer_volume(source)
    assert volume.data.shape == (5, 6, 7)  # z, y, x whatever the file's order
    plan = Plan(volume, target, box, settings=Settings(weights=tiny))
    result = workshop.carry_out(plan, quiet, go_on)
    assert result.grid == plan.grid

    words = shlex.split(plan.command(source))
    assert words[0] == "napari-arssr"
    assert cli.main([*words[1:], "--quiet"]) == 0
    written = layer_volume(Path(words[3]))
    assert written.grid == result.grid
    np.testing.assert_allclose(np.asarray(written.data), result.data, rtol=0, atol=2e-3)


def test_every_setting_is_in_the_command(tiny: Path, workshop: Workshop, tmp_path: Path) -> None:
    source = a_scan(tmp_path / "series.nii", frames=3)
    scanner = ScannerModel("kspace", 1.5)
    settings = Settings(tiny, "cpu", "float32", 2**40, "minmax", scanner, orientations=3)
    plan = Plan(layer_volume(source), Target(scale=1.5), None, 2, settings)
    result = workshop.carry_out(plan, quiet, go_on)
    assert result.data.ndim == 3
    words = shlex.split(plan.command(source))
    assert cli.main([*words[1:], "--quiet"]) == 0
    written = layer_volume(Path(words[3]))
    np.testing.assert_allclose(np.asarray(written.data), result.data, rtol=0, atol=2e-3)
    said = {word.lstrip("-") for word in words if word.startswith("--")}
    names = {"device", "precision", "memory", "normalize", "consistency", "orientations"}
    assert said >= names | {"weights", "frame"}


def test_every_orientation_is_work_and_none_is_memory(tmp_path: Path) -> None:
    plan = Plan(layer_volume(a_scan(tmp_path / "a.nii.gz")), Target(scale=2.5))
    three = replace(plan, settings=Settings(orientations=3))
    one, all_of_them = plan.work(8, encoded=False), three.work(8, encoded=False)
    assert (3 * one.encode, 3 * one.decode) == (all_of_them.encode, all_of_them.decode)
    assert three.bytes == plan.bytes
    assert three.bytes_needed == plan.bytes_needed
    assert not three.reuses(plan)


def test_usual_settings_make_a_short_command(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "a.nii.gz")
    plan = Plan(layer_volume(source), Target(scale=2.5))
    out = tmp_path / "a_x2.5.nii.gz"
    assert plan.command(source) == f"napari-arssr upsample {source} {out} --scale 2.5"


def test_all_frames_are_upsampled_each_by_itself(
    tiny: Path, workshop: Workshop, tmp_path: Path
) -> None:
    volume = layer_volume(a_scan(tmp_path / "series.nii", frames=3))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    result = workshop.carry_out(plan, quiet, go_on)
    assert result.data.shape == (3, 10, 12, 14)
    assert plan.frames == 3
    assert plan.bytes == result.data.nbytes
    one = workshop.carry_out(replace(plan, frame=1), quiet, go_on)
    np.testing.assert_array_equal(one.data, result.data[1])


# A file that is not what the layer shows -----------------------------------------------------


def test_a_layer_that_is_as_its_file_passes(tmp_path: Path) -> None:
    for number, order in enumerate(permutations(range(3))):
        source = a_scan(tmp_path / f"{number}.nii.gz", order)
        same_as_file(layer_volume(source), source, go_on)


def edited(volume: Volume) -> Volume:
    data = np.array(volume.data)
    data[1, 3, 2] += 1
    return replace(volume, data=data)


def moved(volume: Volume) -> Volume:
    affine = volume.affine.copy()
    affine[0, 3] += 1
    return replace(volume, affine=affine)


def cropped(volume: Volume) -> Volume:
    return volume.crop(Box((1, 0, 0), volume.grid.shape))


@pytest.mark.parametrize(
    ("change", "words"),
    [(edited, "was changed"), (moved, "another place"), (cropped, "another shape")],
)
def test_a_layer_that_is_not_as_its_file_has_no_command(
    tmp_path: Path, change: Callable[[Volume], Volume], words: str
) -> None:
    source = a_scan(tmp_path / "a.nii", (2, 0, 1))
    volume = change(layer_volume(source))
    with pytest.raises(UsageError, match=rf"{words}.*save the layer first"):
        same_as_file(volume, source, go_on)


# Reading -----------------------------------------------------------------------------------


def lazy_plan(data: Any, tiny: Path) -> Plan:
    volume = Volume(data, Grid.from_spacing(data.shape[-3:], 1.0).affine, name="stack.zarr")
    return Plan(volume, Target(scale=1.5), settings=Settings(weights=tiny))


@pytest.mark.parametrize("kind", ["zarr", "dask", "dask in pieces"])
def test_what_is_still_in_a_file_is_read_chunk_by_chunk(
    tiny: Path, workshop: Workshop, kind: str
) -> None:
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    slow = InAFile(data, chunk=2)
    lazy = {
        "zarr": lambda: slow,
        "dask": lambda: da.from_array(data),
        "dask in pieces": lambda: da.from_array(data, chunks=(2, 3, 4)),
    }[kind]()
    heard: list[str] = []
    result = workshop.carry_out(
        lazy_plan(lazy, tiny), lambda _share, stage: heard.append(stage), go_on
    )
    eager = workshop.carry_out(lazy_plan(data, tiny), quiet, go_on)
    np.testing.assert_array_equal(result.data, eager.data)
    assert "reading" in heard
    if kind == "zarr":
        assert slow.asked == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_reading_can_be_cancelled(tiny: Path, workshop: Workshop) -> None:
    slow = InAFile(np.zeros((6, 4, 4), np.float32), chunk=2)
    with pytest.raises(Cancelled):
        workshop.carry_out(lazy_plan(slow, tiny), quiet, lambda: bool(slow.asked))
    assert len(slow.asked) == 1


def test_voxels_that_cannot_be_read_are_an_error_with_a_way_out(
    tiny: Path, workshop: Workshop
) -> None:
    slow = InAFile(np.zeros((6, 4, 4), np.float32), chunk=2, fails_at=4)
    with pytest.raises(FileError, match=r"stack\.zarr.*OSError: the disk has gone.*still there"):
        workshop.carry_out(lazy_plan(slow, tiny), quiet, go_on)
    broken = da.from_delayed(__import__("dask").delayed(_fail)(), shape=(6, 4, 4), dtype=np.float32)
    with pytest.raises(FileError, match=r"ValueError: no such chunk"):
        workshop.carry_out(lazy_plan(broken, tiny), quiet, go_on)


@pytest.fixture
def all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 1_000)


LONG = (90, 12, 10)
PART = Box((60, 4, 2), (62, 9, 8))


def long_scan() -> Array:
    return np.random.default_rng(0).normal(200, 20, LONG).astype(np.float32)


@pytest.mark.usefixtures("all_is_large")
def test_of_a_large_file_a_box_and_the_live_view_read_what_they_need(
    tiny: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", 1_000)
    read: list[int] = []
    plan = replace(lazy_plan(in_planes(long_scan(), read), tiny), box=PART)
    assert plan.bytes_needed == plan.bytes
    result = workshop.carry_out(plan, quiet, go_on)
    # Every third plane for the range of intensities, and those around the box.
    assert set(read) == {*range(0, 90, 3), *range(37, 85)}
    eager = replace(lazy_plan(long_scan(), tiny), box=PART)
    whole = workshop.carry_out(eager, quiet, go_on)
    np.testing.assert_allclose(result.data, whole.data, atol=1e-3)
    # Again, at another scale, and in the live view: features and range are here.
    read.clear()
    passed = len(encoded)
    again = replace(plan, target=Target(scale=2.0))
    assert again.reuses(plan)
    workshop.carry_out(again, quiet, go_on)
    with workshop.field(replace(plan, box=None, frame=0))(go_on) as field:
        assert field is not None
        sampled = field.sample(plan.grid)
    np.testing.assert_allclose(sampled.data, result.data, atol=1e-3)
    assert len(encoded) == passed
    assert set(read) <= set(range(36, 86))


@pytest.mark.parametrize("room", ["too large a file", "little memory"])
def test_what_is_large_is_run_on_whole_without_loading_it(
    tiny: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    if room == "too large a file":
        monkeypatch.setattr("napari_arssr.lazy.LARGE", 1_000)
    else:
        monkeypatch.setattr("napari_arssr.lazy.available", lambda: 1_000)
    plan = lazy_plan(in_planes(long_scan(), []), tiny)
    assert plan.in_parts
    monkeypatch.setattr(_plan, "read_voxels", None)
    result = workshop.carry_out(plan, quiet, go_on)
    fresh = upsample(replace(plan.volume, data=long_scan()), 1.5, weights=tiny)
    np.testing.assert_allclose(result.data, fresh.data, atol=1e-3)


def test_a_large_file_is_read_along_its_own_planes(
    tiny: Path, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", 100)
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 100)
    monkeypatch.setattr("napari_arssr.io.stored._PART", 1)  # bytes read at once: planes
    monkeypatch.setattr("napari_arssr.lazy._FEWEST", 2)
    volume = layer_volume(a_scan(tmp_path / "a.nii", (2, 0, 1)))
    data: Any = volume.data
    assert isinstance(data, io.StoredArray)
    plan = Plan(volume, Target(scale=2.0), Box((1, 1, 1), (3, 3, 3)), settings=Settings(tiny))
    heard: list[float | None] = []
    result = workshop.carry_out(
        plan, lambda share, stage: heard.append(share) if stage == "reading" else None, go_on
    )
    assert len(heard) > 3
    loaded = replace(plan, volume=replace(volume, data=np.asarray(data)))
    np.testing.assert_allclose(
        result.data, workshop.carry_out(loaded, quiet, go_on).data, atol=1e-3
    )


@pytest.mark.usefixtures("all_is_large")
def test_frames_that_come_in_one_piece_are_loaded_if_there_is_room(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunks, in_parts in [((1, 12, 10), True), ((90, 3, 3), True), (LONG, False)]:
        plan = lazy_plan(da.from_array(long_scan(), chunks=chunks), tiny)
        assert plan.in_parts == in_parts
    series = da.from_array(np.stack([long_scan()] * 20), chunks=(1, *LONG))
    assert not lazy_plan(series, tiny).in_parts
    monkeypatch.setattr(_plan, "available", lambda: long_scan().nbytes)
    assert plan.in_parts


@pytest.mark.usefixtures("all_is_large")
def test_a_memory_map_is_a_file_too(tiny: Path, workshop: Workshop, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "a.raw", np.float32, "w+", shape=LONG)
    mapped[:] = long_scan()
    plan = replace(lazy_plan(mapped, tiny), box=PART)
    assert plan.in_parts
    result = workshop.carry_out(plan, quiet, go_on)
    fresh = upsample(replace(plan.volume, data=long_scan()), 1.5, box=PART, weights=tiny)
    np.testing.assert_allclose(result.data, fresh.data, atol=1e-3)


@pytest.mark.usefixtures("all_is_large")
def test_voxels_of_a_large_file_that_their_layer_says_have_changed_are_read_again(
    tiny: Path, workshop: Workshop
) -> None:
    data = long_scan()
    plan = replace(lazy_plan(in_planes(data, []), tiny), box=PART)
    workshop.carry_out(plan, quiet, go_on)
    data *= 2
    changed = replace(plan, volume=replace(plan.volume))
    found = workshop.carry_out(changed, quiet, go_on)
    fresh = upsample(replace(plan.volume, data=data), 1.5, box=PART, weights=tiny)
    np.testing.assert_allclose(found.data, fresh.data, atol=1e-3)


@pytest.mark.usefixtures("all_is_large")
def test_the_same_part_of_two_images_is_not_the_same_field(tiny: Path, workshop: Workshop) -> None:
    brighter = long_scan()
    brighter[:10] *= 5
    for one in (long_scan(), brighter):
        plan = replace(lazy_plan(in_planes(one, []), tiny), box=PART)
        found = workshop.carry_out(plan, quiet, go_on)
        fresh = upsample(replace(plan.volume, data=one), 1.5, box=PART, weights=tiny)
        np.testing.assert_allclose(found.data, fresh.data, atol=1e-3)


@pytest.mark.usefixtures("all_is_large")
def test_every_frame_of_a_box_has_the_range_of_its_own_frame(
    tiny: Path, workshop: Workshop
) -> None:
    series = np.stack([long_scan(), long_scan()])
    series[1, :10] *= 5  # the same in the box
    plan = replace(lazy_plan(da.from_array(series, chunks=(1, 1, 12, 10)), tiny), box=PART)
    result = workshop.carry_out(plan, quiet, go_on)
    fresh = upsample(replace(plan.volume, data=series), 1.5, box=PART, weights=tiny)
    np.testing.assert_allclose(result.data, fresh.data, atol=1e-3)
    assert np.abs(result.data[0] - result.data[1]).max() > 1
    one = workshop.carry_out(replace(plan, frame=1), quiet, go_on)
    np.testing.assert_allclose(one.data, result.data[1], atol=1e-3)


@pytest.mark.usefixtures("all_is_large")
def test_a_workshop_that_forgets_lets_go_of_the_file(tiny: Path, workshop: Workshop) -> None:
    stored: Any = InAFile(long_scan())
    let_go = weakref.ref(stored)
    lazy = da.from_array(stored, chunks=(1, *LONG[1:]), name=False)
    plan = replace(lazy_plan(lazy, tiny), box=PART)
    workshop.carry_out(plan, quiet, go_on)
    del plan, stored, lazy
    assert let_go() is not None
    workshop.forget()
    gc.collect()
    assert let_go() is None


def test_what_there_is_no_room_to_see_whole_is_seen_in_parts(
    tiny: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = long_scan()
    plan = lazy_plan(data, tiny)
    whole = workshop.carry_out(plan, quiet, go_on)
    assert plan.bytes_needed == plan.bytes + 8 * data.size
    monkeypatch.setattr("napari_arssr.upsampling.available", lambda: 8 * data.size)
    assert plan.bytes_needed == plan.bytes
    part = Workshop(workshop.speeds).carry_out(plan, quiet, go_on)
    np.testing.assert_allclose(part.data, whole.data, atol=1e-3)


@pytest.mark.usefixtures("all_is_large")
def test_booleans_in_a_file_are_read_whole(tiny: Path, workshop: Workshop) -> None:
    data = np.random.default_rng(0).integers(0, 2, (9, 12, 10)).astype(bool)
    lazy = da.from_array(data, chunks=(1, 12, 10))
    plan = replace(lazy_plan(lazy, tiny), box=Box((1, 1, 1), (5, 5, 5)))
    assert not plan.in_parts
    assert plan.bytes_needed > plan.bytes
    result = workshop.carry_out(plan, quiet, go_on)
    assert result.metadata["upsampling"]["weights"] == "tiny.safetensors"


@pytest.mark.usefixtures("all_is_large")
def test_of_labels_in_a_file_only_the_box_is_read(tiny: Path, workshop: Workshop) -> None:
    data, read = np.arange(30, dtype=np.int16).reshape(30, 1, 1) + np.zeros((12, 10), int), []
    lazy = in_planes(data, read)
    plan = replace(lazy_plan(lazy, tiny), box=Box((10, 1, 1), (12, 5, 5)))
    plan = replace(plan, volume=replace(plan.volume, name="a_dseg.zarr"))
    assert plan.in_parts
    result = workshop.carry_out(plan, quiet, go_on)
    assert result.metadata["upsampling"]["weights"] == "nearest label"
    assert set(np.unique(result.data)) == {10, 11}
    assert set(read) <= {4, 12, 20, 28, *range(9, 13)}  # four tell what it is


def _fail() -> Array:
    raise ValueError("no such chunk.\nlong story")


# Running again -----------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the patches that encoders passed."""
    sizes: list[int] = []
    original = ArSSR.encode

    def counted(self: ArSSR, patch: torch.Tensor) -> torch.Tensor:
        sizes.append(patch.numel())
        return original(self, patch)

    monkeypatch.setattr(ArSSR, "encode", counted)
    return sizes


def test_features_serve_again_until_something_they_depend_on_changes(
    tiny: Path, workshop: Workshop, tmp_path: Path, encoded: list[int]
) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii", (1, 2, 0)))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    workshop.carry_out(plan, quiet, go_on)
    assert sum(encoded) == volume.grid.size
    first = len(encoded)
    boxed = replace(plan, target=Target(scale=3.0), box=Box((1, 1, 1), (4, 4, 4)))
    workshop.carry_out(boxed, quiet, go_on)
    assert len(encoded) == first
    for other in (
        replace(plan, volume=edited(volume)),
        replace(plan, volume=moved(volume)),
        replace(plan, settings=Settings(weights=tiny, normalize="minmax")),
        replace(plan, settings=Settings(weights=tiny, precision="bfloat16")),
    ):
        before = len(encoded)
        workshop.carry_out(other, quiet, go_on)
        assert len(encoded) > before


def test_a_voxel_edited_in_place_is_noticed(tiny: Path, workshop: Workshop, tmp_path: Path) -> None:
    volume = replace(edited(layer_volume(a_scan(tmp_path / "a.nii"))))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    workshop.carry_out(plan, quiet, go_on)
    volume.data[3, 3, 3] += 50
    result = workshop.carry_out(plan, quiet, go_on)
    fresh = upsample(volume, 2.0, weights=tiny)
    np.testing.assert_allclose(result.data, fresh.data, atol=1e-3)


def test_which_features_a_plan_can_use_again(tmp_path: Path) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    whole = Plan(volume, Target(scale=2.0))
    large = replace(whole, box=Box((0, 0, 0), (4, 4, 4)))
    small = replace(whole, box=Box((1, 1, 1), (4, 3, 2)))
    assert whole.reuses(whole)
    assert small.reuses(whole)
    assert small.reuses(large)
    assert not large.reuses(small)
    assert not whole.reuses(large)
    assert not whole.reuses(None)
    assert not replace(small, frame=1).reuses(whole)
    assert not replace(small, settings=Settings(device="cpu")).reuses(whole)
    assert not replace(whole, volume=replace(volume)).reuses(whole)  # another image


def test_finished_work_teaches_how_long_such_work_takes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: dict[str, tuple[Work, dict[str, float], int]] = {}

    class Notebook(Speeds):
        def learn(self, key: str, work: Work, seconds: Any, halo: int) -> None:
            learnt[key] = work, dict(seconds), halo

    workshop = Workshop(Notebook(tmp_path / "timing.json"))
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    workshop.carry_out(plan, quiet, go_on)
    work, seconds, halo = learnt[plan.key]
    assert work == Work(volume.grid.size, 8 * volume.grid.size) == plan.work(halo, encoded=False)
    assert seconds["encode"] > 0
    assert seconds["decode"] > 0
    assert set(learnt) == {plan.key, "tiny.safetensors | cpu | float32"}
    workshop.carry_out(plan, quiet, go_on)
    assert learnt[plan.key][0] == Work(0, 8 * volume.grid.size) == plan.work(halo, encoded=True)
    boxed = replace(plan, box=Box((2, 2, 2), (3, 3, 3)))
    assert boxed.work(1, encoded=False) == Work(27, 8)


# What goes wrong ---------------------------------------------------------------------------


def test_out_of_memory_anywhere_is_one_sentence(
    tiny: Path, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 TB.")

    with monkeypatch.context() as patched:
        patched.setattr(ArSSR, "encode", fails)
        with pytest.raises(OutOfMemory, match="not enough memory"):
            workshop.carry_out(plan, quiet, go_on)
    with monkeypatch.context() as patched:
        patched.setattr(_plan, "upsample", fails)
        with pytest.raises(OutOfMemory, match=r"^a: .*close other programs"):
            workshop.carry_out(plan, quiet, go_on)
    assert workshop.carry_out(plan, quiet, go_on).grid == plan.grid


def test_broken_weights_and_missing_ones_are_named(workshop: Workshop, tmp_path: Path) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"x" * 100)
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=broken))
    with pytest.raises(FileError, match=r"broken\.safetensors"):
        workshop.carry_out(plan, quiet, go_on)
    plan = replace(plan, settings=Settings(weights="gone.safetensors"))
    with pytest.raises(UsageError, match=r"gone\.safetensors"):
        workshop.carry_out(plan, quiet, go_on)


def test_cancelled_in_the_middle_it_leaves_a_workshop_that_works(
    tiny: Path, workshop: Workshop, tmp_path: Path
) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    asked = 0

    def third_time() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(Cancelled):
        workshop.carry_out(plan, quiet, third_time)
    result = workshop.carry_out(plan, quiet, go_on)
    fresh = upsample(plan.as_stored().volume, 2.0, weights=tiny)
    np.testing.assert_allclose(result.data, fresh.data, atol=1e-3)


# What it is called, what it says of itself ------------------------------------------------------


def test_titles_tell_weights_fineness_and_part(tiny: Path, tmp_path: Path) -> None:
    volume = replace(layer_volume(a_scan(tmp_path / "s.nii", frames=3)), name="T1w")
    plan = Plan(volume, Target(scale=2.5))
    assert plan.title == "T1w default ×2.5"
    assert replace(plan, target=Target(scale=(1.0, 2.0, 2.0))).title == "T1w default ×1×2×2"
    assert replace(plan, target=Target(spacing=0.5)).title == "T1w default 0.5 mm"
    assert replace(plan, target=Target(isotropic=True)).title == "T1w default 1 mm"
    boxed = replace(plan, box=Box((0, 0, 0), (2, 2, 2)), frame=1, settings=Settings(weights=tiny))
    assert boxed.title == "T1w tiny ×2.5 box frame 1"


@pytest.mark.parametrize(
    ("unit", "size", "said"), [("um", 5e-4, "0.5 µm"), ("pixel", 0.5, "0.5 px")]
)
def test_titles_and_names_of_files_are_in_the_layers_unit(
    unit: str, size: float, said: str
) -> None:
    meta = {"name": "cells", "units": unit}
    volume = volume_of_data(np.zeros((2, 3, 4), np.float32), meta, "image")
    plan = Plan(volume, Target(spacing=size))
    assert plan.title == f"cells default {said}"
    name = said.replace(" ", "").replace("µ", "u")
    words = shlex.split(plan.command(Path("cells.tif")))
    assert words[3] == f"cells_{name}.tif"
    assert words[4:6] == ["--spacing", repr(size)]  # millimetres, as the command line takes them


def test_what_takes_too_much_has_a_way_out_that_is_one() -> None:
    huge = Volume(np.broadcast_to(np.float32(0), (2000, 2000, 2000)), np.eye(4), name="huge")
    box = Box((0, 0, 0), (100, 100, 100))
    assert "drawn box" in Plan(huge, Target(scale=4.0)).way_out
    assert "smaller box" in Plan(huge, Target(scale=40.0), box).way_out
    flags = replace(huge, data=da.zeros((2000, 2000, 2000), dtype=bool))
    assert Plan(flags, Target(scale=2.0), box).way_out == "open a part of the image"


def test_the_result_holds_every_setting(tiny: Path, workshop: Workshop, tmp_path: Path) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    settings = Settings(weights=tiny, normalize="minmax", memory=2**40)
    plan = Plan(volume, Target(scale=1.5), Box((0, 0, 0), (3, 3, 3)), settings=settings)
    result = workshop.carry_out(plan, quiet, go_on)
    record = result.metadata["upsampling"]
    assert record["weights"] == "tiny.safetensors"
    assert record["target_zyx"] == {"scale": 1.5}
    assert record["box_zyx"] == [[0, 0, 0], [3, 3, 3]]
    assert record["source"] == "a"
    assert record["device"] == "cpu"
    assert record["precision"] in ("float32", "bfloat16")
    assert record["memory"] == 2**40
    assert set(record) >= {"version", "normalization", "frame", "consistency"}


# Live view ---------------------------------------------------------------------------------


def test_the_live_view_gets_the_field_of_the_run(
    tiny: Path, workshop: Workshop, tmp_path: Path, encoded: list[int]
) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii", (2, 1, 0)))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    result = workshop.carry_out(plan, quiet, go_on)
    before = len(encoded)
    lend = workshop.field(plan)
    with lend(go_on) as field:
        assert field is not None
        part = plan.grid.crop(Box((3, 3, 3), (6, 6, 6)))
        sampled = field.sample(part)
        np.testing.assert_allclose(sampled.data, result.data[3:6, 3:6, 3:6], atol=1e-3)
        with lend(go_on) as busy:
            assert busy is None
    assert len(encoded) == before


def test_the_live_views_reading_can_be_stopped(tiny: Path, workshop: Workshop) -> None:
    read: list[int] = []
    data = in_planes(np.zeros((50, 6, 7), np.float32), read)
    volume = volume_of_data(data, {"name": "huge"}, "image")
    lend = workshop.field(Plan(volume, Target(scale=1.0), settings=Settings(weights=tiny)))
    with pytest.raises(Cancelled), lend(lambda: len(read) >= 5):
        pass
    assert len(read) == 5
    with lend(go_on) as field:
        assert field is not None


def test_the_live_view_is_of_one_orientation(
    tiny: Path, workshop: Workshop, tmp_path: Path, encoded: list[int]
) -> None:
    volume = layer_volume(a_scan(tmp_path / "a.nii"))
    plan = Plan(volume, Target(scale=2.0), settings=Settings(weights=tiny))
    single = workshop.carry_out(plan, quiet, go_on)
    mean = replace(plan, settings=Settings(weights=tiny, orientations=3))
    result = workshop.carry_out(mean, quiet, go_on)
    before = len(encoded)
    with workshop.field(mean)(go_on) as field:
        assert field is not None
        np.testing.assert_allclose(field.sample(plan.grid).data, single.data, atol=1e-3)
    assert len(encoded) == before
    # And the run after it is of all of them again.
    again = workshop.carry_out(mean, quiet, go_on)
    np.testing.assert_allclose(again.data, result.data, atol=1e-3)
    assert np.abs(again.data - single.data).max() > 1e-2


def test_results_read_back_as_layers_in_the_same_place(
    tiny: Path, workshop: Workshop, tmp_path: Path
) -> None:
    source = a_scan(tmp_path / "a.nii", (2, 0, 1))
    plan = Plan(layer_volume(source), Target(scale=2.0), settings=Settings(weights=tiny))
    data, settings, kind = image_layer(workshop.carry_out(plan, quiet, go_on))
    again = volume_of_data(data, settings, kind)
    assert again.grid == plan.grid
    io.write(tmp_path / "out.nii", again.in_storage_order())
    assert io.read(tmp_path / "out.nii").grid == plan.as_stored().grid
