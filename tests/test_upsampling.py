"""Upsampling from Python: what comes out, on which grid, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from in_a_file import InAFile
from scipy.spatial.transform import Rotation
from tiny import TINY, tiny_network

import napari_arssr
from napari_arssr import io, upsampling, weights
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, FileError, OutOfMemory, UsageError
from napari_arssr.field import NetworkField
from napari_arssr.files import sha256_of
from napari_arssr.interpolation import apply_separable, spline_matrix
from napari_arssr.models import Card, build, save
from napari_arssr.normalization import Normalizer
from napari_arssr.upsampling import Settings, Target, encode, upsample, upsample_file
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.weights import Loaded

SHAPE = (6, 9, 10)


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    return weights.load(tiny)


@pytest.fixture(scope="module", params=["residual", "published"])
def short_sighted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Loaded:
    """A network of each kind that looks less far than a spline.

    What the published kind answers depends on where in the volume it is asked.
    """
    torch.manual_seed(0)
    config = replace(TINY, decoder=request.param, decoder_depth=4, blocks=1, layers=1)
    model = build(config)
    torch.nn.init.normal_(list(model.decoder.parameters())[-2], std=0.1)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    save(path, model, Card(config, name=request.param), torch.float32)
    return weights.load(path)


def volume_of(shape: Sequence[int] = SHAPE, dtype: npt.DTypeLike = np.float32) -> Volume:
    """Smooth structure and noise around 300, oblique, its voxels 1.1 × 0.9 × 3 mm (x, y, z)."""
    generator = np.random.default_rng(3)
    z, y, x = np.meshgrid(*(np.linspace(0, 5, n) for n in shape[-3:]), indexing="ij")
    data = 300 + 100 * np.sin(x + 1) * np.cos(y) * np.sin(z) + 10 * generator.normal(size=shape)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [10, -20, 35], degrees=True).as_matrix()
    affine[:3, :3] = turn * [1.1, 0.9, 3.0]
    affine[:3, 3] = [-31.5, 12.25, 70.0]
    return Volume(data.astype(dtype), affine, name="scan.nii")


def faces(grid: Grid) -> npt.NDArray[np.float64]:
    """The eight outer corners, in millimetres."""
    return grid.world(list(product(*((-0.5, n - 0.5) for n in grid.shape))))


def cubic(volume: Volume, grid: Grid) -> npt.NDArray[np.float32]:
    """Cubic interpolation along each axis of two grids of one span."""
    matrices = [
        spline_matrix((np.arange(m) + 0.5) * n / m - 0.5, n)
        for n, m in zip(volume.grid.shape, grid.shape, strict=True)
    ]
    return apply_separable(matrices, volume.data)


# The grid of the result ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ({"scale": 2.5}, (15, 23, 25)),  # 22.5 is rounded up
        ({"scale": (4, 1, 1)}, (24, 9, 10)),
        ({"scale": np.array([1, 2, 1.5])}, (6, 18, 15)),
        ({"spacing": 0.55}, (33, 15, 20)),
        ({"spacing": (1.5, 0.9, 0.55)}, (12, 9, 20)),
        ({"shape": (7, 11, 13)}, (7, 11, 13)),
        ({"isotropic": True}, (20, 9, 12)),
    ],
)
def test_every_target_spans_what_the_input_spans(
    loaded: Loaded, target: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    volume = volume_of()
    result = upsample(volume, **target, weights=loaded)
    assert result.data.shape == shape
    assert result.data.dtype == np.float32
    assert np.isfinite(result.data).all()
    np.testing.assert_allclose(faces(result.grid), faces(volume.grid), atol=1e-9)


def test_exactly_one_target_is_given(loaded: Loaded) -> None:
    for targets in ({}, {"scale": 2, "spacing": 1}, {"shape": SHAPE, "isotropic": True}):
        with pytest.raises(UsageError, match="one of scale, spacing, shape and isotropic"):
            upsample(volume_of(), weights=loaded, **targets)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ({"scale": 0.5}, ["scan.nii", "scale", "at least 1", "0.5"]),
        ({"scale": (1, 1, 0.999)}, ["scan.nii", "scale", "at least 1", "0.999"]),
        ({"scale": 0}, ["scan.nii", "at least 1"]),
        ({"scale": -2}, ["scan.nii", "at least 1", "-2"]),
        ({"scale": math.nan}, ["scale", "finite", "nan"]),
        ({"scale": math.inf}, ["scale", "finite", "inf"]),
        ({"scale": (1, 2)}, ["scale", "one number or three"]),
        ({"scale": "big"}, ["scale", "'big'"]),
        ({"scale": 1e300}, ["1e+300", "too large"]),
        ({"spacing": 5}, ["scan.nii", "k (6 to 4 voxels)", "i (10 to 2", "1.1 × 0.9 × 3 mm"]),
        ({"spacing": (3, 2, 1.1)}, ["scan.nii", "j (9 to 4 voxels)"]),
        ({"spacing": 0}, ["spacing", "above 0"]),
        ({"spacing": 1e-310}, ["spacing", "1e-310", "too small"]),
        ({"shape": (6, 9, 9)}, ["scan.nii", "i (10 to 9 voxels)"]),
        ({"shape": (0, 9, 10)}, ["shape", "at least 1", "(0, 9, 10)"]),
        ({"shape": (10**400, 9, 10)}, ["too large"]),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(
    loaded: Loaded, target: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        upsample(volume_of(), weights=loaded, **target)
    for part in parts:
        assert part in str(caught.value)


def test_a_spacing_that_is_equal_but_for_rounding_is_not_coarser(loaded: Loaded) -> None:
    result = upsample(volume_of(), spacing=(1.5, 0.9000001, 1.1000001), weights=loaded)
    assert result.data.shape == (12, 9, 10)


# Values --------------------------------------------------------------------------------------


def test_the_result_is_the_field_on_the_targets_grid(loaded: Loaded) -> None:
    volume = volume_of()
    grid = volume.grid.scaled((1.7, 2, 2.5))
    field = napari_arssr.encode(volume, loaded)
    assert isinstance(field, napari_arssr.Field)
    result = napari_arssr.upsample(volume, (1.7, 2, 2.5), weights=loaded)
    assert result.grid == grid
    np.testing.assert_allclose(result.data, field.sample(grid).data, rtol=1e-5)
    # The network has its say.
    assert np.abs(result.data - cubic(volume, grid)).max() > 1


def test_intensities_come_back_in_the_inputs_units(loaded: Loaded) -> None:
    volume = volume_of()
    plain = upsample(volume, 2, weights=loaded).data
    other = replace(volume, data=volume.data * 7 - 1000)
    result = upsample(other, 2, weights=loaded).data
    np.testing.assert_allclose(result, plain * 7 - 1000, atol=0.01)


@pytest.mark.parametrize("scale", [2, 2.5, (1.3, 1, 3.7)])
def test_a_box_of_the_result_is_the_result_of_the_box(loaded: Loaded, scale: Any) -> None:
    volume = volume_of()
    whole = upsample(volume, scale, weights=loaded)
    box = Box((2, 0, 3), (5, 4, 10))
    part = upsample(volume, scale, box=box, weights=loaded)
    start = np.rint(whole.grid.index(part.grid.world([0, 0, 0]))).astype(int)
    stop = start + part.data.shape
    # Every voxel whose centre lies in the box, and no other.
    centres = [volume.grid.index(whole.grid.world(c)) for c in (start, stop - 1)]
    beyond = [volume.grid.index(whole.grid.world(c)) for c in (start - 1, stop)]
    assert (centres[0] >= np.array(box.start) - 0.5 - 1e-6).all()
    assert (centres[1] <= np.array(box.stop) - 0.5 + 1e-6).all()
    assert (beyond[0] < np.array(box.start) - 0.5).all()
    assert (beyond[1] > np.array(box.stop) - 0.5 - 1e-6).all()
    same = whole.crop(Box(tuple(start.tolist()), tuple(stop.tolist())))
    np.testing.assert_allclose(part.affine, same.affine, atol=1e-9)
    np.testing.assert_allclose(part.data, same.data, rtol=1e-5)


@contextmanager
def seen_whole(_frame: Volume, make: Callable[[], NetworkField]) -> Iterator[NetworkField]:
    """Lends a field that might serve other boxes: of the whole volume."""
    yield make()


@pytest.mark.parametrize(
    "box",
    [Box((30, 34, 30), (33, 37, 36)), Box((0, 0, 69), (4, 3, 72)), Box((62, 28, 0), (64, 32, 4))],
)
@pytest.mark.parametrize(
    "options",
    [
        {"scale": (2.5, 1, 2)},
        {"scale": 1.6, "orientations": 3},
        {"scale": (2, 3, 1.5), "consistency": ScannerModel("gaussian")},
    ],
    ids=["scale", "orientations", "consistency"],
)
def test_a_box_is_made_of_what_lies_around_it_and_yet_the_same(
    short_sighted: Loaded, options: dict[str, Any], box: Box
) -> None:
    volume = volume_of((64, 72, 72))
    volume.data[31, 35, 32] = volume.data[2, 1, 70] = np.nan
    options = options | {"box": box, "weights": short_sighted, "precision": "float32"}
    whole = upsample(volume, **options, lend=seen_whole)
    stored: Any = InAFile(volume.data)
    for one in (volume, replace(volume, data=stored)):
        part = upsample(one, **options)
        assert part.grid == whole.grid
        within = 3e-6 * np.ptp(volume.data[5])
        np.testing.assert_allclose(part.data, whole.data, rtol=0, atol=within)


@pytest.mark.parametrize("last", [0, 199])
def test_a_plane_at_the_border_is_read_once(loaded: Loaded, last: int) -> None:
    stored: Any = InAFile(volume_of((200, 30, 30)).data, chunk=200)
    volume = replace(volume_of((200, 30, 30)), data=stored)
    box = Box((last, 0, 0), (last + 1, 30, 30))
    field = encode(volume, loaded, normalize=Normalizer(200.0, 400.0))
    field.sample(volume.grid.scaled((1, 4, 4)).crop(Box(box.start, (last + 1, 120, 120))))
    assert len(stored.asked) == 2  # with splines, and for the encoder
    assert len(stored.read) < 40


def test_of_voxels_in_a_file_a_box_reads_those_around_it(loaded: Loaded) -> None:
    stored: Any = InAFile(volume_of((200, 9, 10)).data)
    volume = replace(volume_of((200, 9, 10)), data=stored)
    box = Box((150, 2, 3), (153, 6, 7))
    upsample(volume, 2, box=box, weights=loaded, normalize=Normalizer(200.0, 400.0))
    assert stored.read <= set(range(150 - 3 - 20, 153 + 3 + 20))
    assert stored.read >= set(range(150 - 8, 153 + 8))


@pytest.mark.parametrize("elsewhere", [0, 50], ids=["constant", "constant in the box alone"])
def test_a_box_in_which_all_is_the_same_is_what_the_whole_is_there(
    loaded: Loaded, elsewhere: float
) -> None:
    volume = volume_of((60, 40, 40))
    volume.data[:] = 7
    volume.data[:10] += elsewhere * np.random.default_rng(0).random((10, 40, 40))
    box = Box((50, 0, 0), (52, 2, 2))
    part = upsample(volume, 2, box=box, weights=loaded)
    whole = upsample(volume, 2, box=box, weights=loaded, lend=seen_whole)
    np.testing.assert_allclose(part.data, whole.data, atol=1e-4)
    assert (part.data == 7).all() == (elsewhere == 0)


def test_a_box_is_as_bright_as_it_is_in_the_whole(loaded: Loaded) -> None:
    volume = volume_of((60, 30, 30))
    volume.data[:5] *= 20
    box = Box((50, 10, 10), (55, 15, 15))
    stored: Any = InAFile(volume.data)
    part = upsample(replace(volume, data=stored), 2, box=box, weights=loaded)
    whole = upsample(volume, 2, box=box, weights=loaded, lend=seen_whole)
    np.testing.assert_allclose(part.data, whole.data, rtol=1e-4)
    assert part.metadata["upsampling"] == whole.metadata["upsampling"]


@pytest.mark.parametrize("box", [None, Box((1, 2, 3), (4, 5, 6))])
@pytest.mark.parametrize("scale", [1, 2])
def test_voxels_in_a_file_give_what_those_in_memory_give(
    loaded: Loaded, scale: int, box: Box | None
) -> None:
    volume = volume_of()
    stored: Any = InAFile(volume.data)
    result = upsample(replace(volume, data=stored), scale, box=box, weights=loaded)
    np.testing.assert_array_equal(
        result.data, upsample(volume, scale, box=box, weights=loaded).data
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif"])
@pytest.mark.parametrize("name", ["scan", "aseg"])
def test_a_box_of_a_large_file_is_what_it_is_of_the_whole(
    tmp_path: Path, tiny: Path, suffix: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = volume_of((60, 30, 28), np.int16 if suffix != ".tif" else np.uint16)
    if name == "aseg":
        volume.data[..., 1::2] = volume.data[..., ::2]  # structures
    source = io.write(tmp_path / f"{name}{suffix}", volume)
    box = Box((50, 10, 10), (55, 15, 15))
    expected = upsample(io.read(source), 2, box=box, weights=tiny)
    monkeypatch.setattr(upsampling, "available", lambda: 1000)
    left: list[bool] = []
    original = upsampling._encode

    def noted(one: Volume, *args: Any, **options: Any) -> NetworkField:
        left.append(isinstance(one.data, io.StoredArray))
        return original(one, *args, **options)

    monkeypatch.setattr(upsampling, "_encode", noted)
    out = tmp_path / f"out{suffix}"
    upsample_file(source, out, Target(2), box=box, settings=Settings(tiny), dtype="float32")
    np.testing.assert_allclose(io.read(out).data, expected.data, rtol=1e-5)
    assert left == ([] if name == "aseg" else [True])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif"])
@pytest.mark.parametrize("memory", [None, 150_000])
def test_a_file_that_memory_has_no_room_for_is_left_where_it_is(
    tmp_path: Path,
    tiny: Path,
    suffix: str,
    memory: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = volume_of((60, 30, 28), np.int16 if suffix != ".tif" else np.uint16)
    source = io.write(tmp_path / f"scan{suffix}", volume)
    expected = upsample(io.read(source), 2, weights=tiny)
    left: list[bool] = []
    original = upsampling._encode

    def noted(one: Volume, *args: Any, **options: Any) -> NetworkField:
        left.append(isinstance(one.data, io.StoredArray))
        return original(one, *args, **options | {"memory": None})

    monkeypatch.setattr(upsampling, "_encode", noted)
    out = tmp_path / f"out{suffix}"
    settings = Settings(tiny, memory=memory)
    if memory is None:
        monkeypatch.setattr(upsampling, "available", lambda: 150_000)
    upsample_file(source, out, Target(2), settings=settings, dtype="float32")
    np.testing.assert_allclose(io.read(out).data, expected.data, rtol=1e-5)
    assert left == [True]


def test_what_leaves_too_little_memory_as_a_whole_is_seen_in_parts(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=100_000_000))
    volume = volume_of((100, 100, 100))
    seen: list[bool] = []

    def noted(*args: Any, **options: Any) -> NetworkField:
        seen.append(options["whole"])
        return NetworkField(*args, **options)

    noted.least_memory = NetworkField.least_memory  # type: ignore[attr-defined]
    monkeypatch.setattr("napari_arssr.field.NetworkField", noted)
    with pytest.raises(UsageError, match="are too little") as caught:
        encode(volume, loaded, memory=1_000_000, device="cpu")
    need = re.search(r"need ([\d.]+) MB", str(caught.value))
    assert need
    for more in (2, 12):  # MB; the volume takes 8 as a whole
        encode(volume, loaded, memory=int((float(need[1]) + more) * 1e6), device="cpu")
    assert seen == [False, True]


def test_labels_in_a_file_keep_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 100)
    labels = np.random.default_rng(0).integers(0, 5, (6, 7, 4)).astype(np.int16).repeat(2, -1)
    volume = replace(volume_of((6, 7, 8)), data=labels, name="aseg.nii")
    for box in (None, Box((2, 1, 3), (4, 5, 6))):
        stored: Any = InAFile(labels)
        found = upsample(replace(volume, data=stored), 1.7, box=box)
        np.testing.assert_array_equal(found.data, upsample(volume, 1.7, box=box).data)
    assert stored.read <= {1, 2, 3, 4, 5}  # around the box, and three that tell what it is


def test_voxels_that_cannot_be_read_are_named_with_their_volume(loaded: Loaded) -> None:
    volume = volume_of()
    gone: Any = InAFile(volume.data, fails_at=0)
    volume = replace(volume, data=gone)
    for method in (None, Normalizer(200.0, 400.0)):
        with pytest.raises(FileError, match=r"^scan\.nii: its voxels cannot.*the disk has gone"):
            upsample(volume, 2, box=Box((1, 2, 3), (4, 5, 6)), weights=loaded, normalize=method)


@pytest.mark.parametrize(
    "box", [Box((0, 0, 0), (7, 3, 3)), Box((-1, 0, 0), (3, 3, 3)), Box((2, 2, 2), (2, 3, 3))]
)
def test_a_box_outside_or_empty_is_refused_by_name(loaded: Loaded, box: Box) -> None:
    with pytest.raises(UsageError, match=r"scan\.nii: The box .* (empty|outside)"):
        upsample(volume_of(), 2, box=box, weights=loaded)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.uint8])
def test_scale_1_gives_the_input_itself(loaded: Loaded, dtype: npt.DTypeLike) -> None:
    volume = volume_of(dtype=dtype)
    if volume.data.dtype.kind == "f":
        volume.data[0, 1, 2:4] = np.nan, np.inf
    shares: list[float] = []
    result = upsample(volume, 1, weights=loaded, progress=lambda share, _: shares.append(share))
    np.testing.assert_array_equal(result.data, volume.data.astype(np.float32))
    assert result.data.dtype == np.float32
    assert result.grid == volume.grid
    assert shares == [1]
    box = Box((1, 2, 3), (4, 5, 6))
    part = upsample(volume, shape=SHAPE, box=box, weights=loaded)
    np.testing.assert_array_equal(part.data, volume.data[box.slices].astype(np.float32))
    assert part.grid == volume.grid.crop(box)


def test_frames_are_upsampled_each_by_itself(loaded: Loaded) -> None:
    series = replace(volume_of((3, *SHAPE)), time_step=2.5)
    series.data[1] *= 10
    shares: list[float] = []
    result = upsample(series, 1.5, weights=loaded, progress=lambda share, _: shares.append(share))
    assert result.data.shape == (3, 9, 14, 15)
    assert result.time_step == 2.5
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for number in range(3):
        alone = upsample(series.frame(number), 1.5, weights=loaded)
        np.testing.assert_array_equal(result.data[number], alone.data)
        assert result.grid == alone.grid
    assert len(result.metadata["upsampling"]["normalization"]) == 3


def test_one_field_at_a_time_is_alive(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long series, features of two frames need never fit together."""
    alive: WeakSet[NetworkField] = WeakSet()
    most = []
    make = upsampling._encode

    def counted(*arguments: Any, **options: Any) -> NetworkField:
        most.append(len(alive))
        field = make(*arguments, **options)
        alive.add(field)
        return field

    monkeypatch.setattr(upsampling, "_encode", counted)
    upsample(volume_of((3, 4, 4, 4)), 2, weights=loaded)
    assert most == [0, 0, 0]


def test_the_input_is_left_alone(loaded: Loaded) -> None:
    volume = volume_of()
    volume.data[1, 2, 3] = np.nan
    before, affine = volume.data.copy(), volume.affine.copy()
    upsample(volume, 2, weights=loaded)
    np.testing.assert_array_equal(volume.data, before)
    np.testing.assert_array_equal(volume.affine, affine)
    assert "upsampling" not in volume.metadata


# Bad voxels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_spoil_only_their_own_cells(
    loaded: Loaded, value: float
) -> None:
    volume = volume_of()
    clean = encode(volume, loaded).normalizer
    volume.data[2, 3, 4] = value
    result = upsample(volume, 2, weights=loaded)
    spoilt = np.zeros(result.data.shape, dtype=bool)
    spoilt[4:6, 6:8, 8:10] = True
    np.testing.assert_array_equal(~np.isfinite(result.data), spoilt)
    assert np.abs(result.data[~spoilt]).max() < 1000
    seen = encode(volume, loaded).normalizer
    assert [seen.low, seen.high] == pytest.approx([clean.low, clean.high], abs=20)


def test_without_a_finite_voxel_there_is_nothing_to_do(loaded: Loaded) -> None:
    volume = replace(volume_of(), data=np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(FileError, match=r"scan\.nii: it holds no finite value"):
        upsample(volume, 2, weights=loaded)


@pytest.mark.parametrize("value", [0, -40, 1e-6, 1e6])
def test_a_constant_volume_stays_constant(loaded: Loaded, value: float) -> None:
    volume = replace(volume_of(), data=np.full(SHAPE, value, np.float32))
    result = upsample(volume, 2, weights=loaded).data
    np.testing.assert_allclose(result, np.float32(value), rtol=1e-5)


@pytest.mark.parametrize("dtype", [complex, bool, [("R", "u1"), ("G", "u1")], object])
def test_what_is_no_real_number_is_refused(loaded: Loaded, dtype: Any) -> None:
    volume = replace(volume_of(), data=np.zeros(SHAPE, dtype))
    for scale in (1, 2):
        with pytest.raises(UsageError, match=r"scan\.nii: .* not real numbers; convert them"):
            upsample(volume, scale, weights=loaded)
    with pytest.raises(UsageError, match="not real numbers"):
        encode(volume, loaded)


@pytest.mark.parametrize("value", [1e39, -1e300, 3e38])
def test_a_value_beyond_what_is_computed_in_is_refused(loaded: Loaded, value: float) -> None:
    volume = volume_of(dtype=np.float64)
    volume.data[2, 3, 4] = value
    for make in (lambda: upsample(volume, 2, weights=loaded), lambda: encode(volume, loaded)):
        with pytest.raises(
            FileError, match=rf"scan\.nii holds the value {re.escape(f'{value:g}')}"
        ):
            make()
    with pytest.raises(FileError, match=r"scan\.nii holds the value"):
        upsample(volume, 1, weights=loaded)


def test_a_copy_needs_no_computing(loaded: Loaded, tiny: Path, tmp_path: Path) -> None:
    volume = volume_of(dtype=np.float64)
    volume.data[2, 3, 4] = 1e300
    source = io.write(tmp_path / "scan.nii", volume)
    told = upsample_file(
        source, tmp_path / "out.nii", Target(1), dtype="same", settings=Settings(tiny)
    )
    assert told["output_shape"] == (10, 9, 6)
    np.testing.assert_array_equal(io.read(tmp_path / "out.nii").data, volume.data)
    single = volume_of()
    single.data[2, 3, 4] = np.finfo(np.float32).min  # what says "no value" elsewhere
    np.testing.assert_array_equal(upsample(single, 1, weights=loaded).data, single.data)


def test_a_frame_without_values_is_named(loaded: Loaded) -> None:
    series = volume_of((3, *SHAPE))
    series.data[1] = np.nan
    with pytest.raises(FileError, match=r"scan\.nii, frame 1: it holds no finite value"):
        upsample(series, 2, weights=loaded)


# Label maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("frames", [(), (2,)])
def test_a_label_map_gets_no_label_that_it_did_not_have(
    tiny: Path, tmp_path: Path, frames: tuple[int, ...], dtype: npt.DTypeLike
) -> None:
    """In Python as in files, and whether its header says what it is or its name."""
    data = np.random.default_rng(1).integers(0, 50, (*frames, *SHAPE)).astype(dtype)
    data[..., 1::2] = data[..., : 2 * (SHAPE[-1] // 2) : 2]  # structures, not single voxels
    origin = io.Origin(intent=(io.LABEL, (0.0, 0.0, 0.0), ""))
    labels = replace(volume_of(), data=data, metadata={"origin": origin})
    box = Box((0, 1, 2), (4, 5, 6))
    shares: list[float] = []
    for given in (labels, replace(labels, name="sub-01_dseg.nii.gz", metadata={})):
        result = upsample(
            given, 2, weights="nothing is fetched", progress=lambda share, _: shares.append(share)
        )
        assert result.data.dtype == dtype
        expected = data.repeat(2, -1).repeat(2, -2).repeat(2, -3)
        np.testing.assert_array_equal(result.data, expected)
    assert shares == sorted(shares[: len(shares) // 2]) * 2
    assert shares[-1] == 1
    part = upsample(labels, 1.7, box=box)
    source = io.write(tmp_path / "scan.nii", labels)
    told = upsample_file(source, tmp_path / "out.nii", Target(1.7), box=box)
    written = io.read(tmp_path / "out.nii")
    np.testing.assert_array_equal(written.data, part.data)
    assert written.data.dtype == dtype
    assert (
        part.metadata["upsampling"]
        | {
            "source": "scan.nii",
            "source_shape_zyx": list(SHAPE),
            "frame": None,
            "channel": None,
            "dtype": np.dtype(dtype).name,
        }
        == told["settings"]
    )
    assert part.metadata["upsampling"]["weights"] == upsampling.NEAREST_LABEL


def test_labels_can_be_stopped() -> None:
    with pytest.raises(Cancelled):
        upsample(Volume(np.ones(SHAPE, np.uint8), np.eye(4), name="seg"), 2, stop=lambda: True)


# Settings ------------------------------------------------------------------------------------


def test_weights_are_a_name_a_path_or_loaded(
    tiny: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_verified_bundled", lambda _: tiny)
    volume = volume_of()
    expected = upsample(volume, 2, weights=loaded)
    for given, name in [
        (tiny, "tiny.safetensors"),
        (str(tiny), "tiny.safetensors"),
        ("default", "default"),
    ]:
        result = upsample(volume, 2, weights=given)
        np.testing.assert_array_equal(result.data, expected.data)
        assert result.metadata["upsampling"]["weights"] == name
    with pytest.raises(UsageError, match="did you mean arssr-rdn"):
        upsample(volume, 2, weights="arsr-rdn")


def test_precision_is_chosen_or_given(loaded: Loaded) -> None:
    volume = volume_of()
    exact = upsample(volume, 2, weights=loaded, precision="float32")
    half = upsample(volume, 2, weights=loaded, precision="bfloat16")
    assert exact.metadata["upsampling"]["precision"] == "float32"
    assert half.metadata["upsampling"]["precision"] == "bfloat16"
    error = np.abs(exact.data - half.data).max()
    assert 0 < error < 0.1 * np.ptp(exact.data)
    with pytest.raises(UsageError, match="float16 is for GPUs"):
        upsample(volume, 2, weights=loaded, device="cpu", precision="float16")
    with pytest.raises(UsageError, match="no precision 'float8'"):
        upsample(volume, 2, weights=loaded, precision="float8")


def test_a_device_that_is_not_here_is_refused_with_those_that_are(loaded: Loaded) -> None:
    assert str(encode(volume_of(), loaded, device="cpu").device) == "cpu"
    with pytest.raises(UsageError, match=r"no device 'cuda:99' here.*cpu"):
        encode(volume_of(), loaded, device="cuda:99")


def test_normalization_is_the_weights_own_or_given(loaded: Loaded) -> None:
    volume = volume_of()
    volume.data[0, 0, 0] = 5000
    own = encode(volume, loaded).normalizer
    assert own == encode(volume, loaded, normalize="percentile").normalizer
    extremes = encode(volume, loaded, normalize="minmax").normalizer
    assert (extremes.low, extremes.high) == (volume.data.min(), 5000)
    plain = encode(volume, loaded, normalize="none").normalizer
    assert (plain.low, plain.high) == (0, 1)
    published = encode(volume, replace(loaded, normalization="minmax")).normalizer
    assert published == extremes
    with pytest.raises(UsageError, match=r"scan\.nii: .*normalisation 'mean'"):
        encode(volume, loaded, normalize="mean")  # type: ignore[arg-type]


def test_too_little_memory_says_how_much_is_enough(loaded: Loaded) -> None:
    volume = volume_of()
    with pytest.raises(UsageError) as caught:
        upsample(volume, 2, weights=loaded, memory=1_000_000, device="cpu")
    said = re.fullmatch(
        r"scan\.nii: 1 MB of memory are too little: this volume and these weights need "
        r"([\d.]+) (MB|GB); allow more, or choose smaller weights\.",
        str(caught.value),
    )
    assert said
    enough = float(said[1]) * {"MB": 1e6, "GB": 1e9}[said[2]]
    # What this process has taken besides may move a little meanwhile.
    result = upsample(volume, 2, weights=loaded, memory=int(1.1 * enough), device="cpu")
    plain = upsample(volume, 2, weights=loaded, device="cpu")
    np.testing.assert_allclose(result.data, plain.data, rtol=1e-5)


def test_memory_that_is_enough_is_so_with_consistency(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever the tests before have taken: from 1 GB on, a sentence rounds to tenths of it.
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=100_000_000))
    volume = volume_of((12, 16, 16))  # its result takes megabytes, in which needs are told
    step = {"weights": loaded, "device": "cpu", "consistency": ScannerModel("gaussian")}
    with pytest.raises(UsageError, match="1 MB of memory are too little") as caught:
        upsample(volume, 6, memory=1_000_000, **step)
    with pytest.raises(UsageError) as plain:
        upsample(volume, 6, memory=1_000_000, weights=loaded, device="cpu")
    needs = [
        float(amount) * {"MB": 1e6, "GB": 1e9}[unit]
        for error in (caught, plain)
        for amount, unit in re.findall(r"need ([\d.]+) (MB|GB)", str(error.value))
    ]
    assert needs[0] > needs[1]
    upsample(volume, 6, memory=int(1.1 * needs[0]), **step)


def test_memory_on_a_graphics_card_counts_what_is_put_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was asked for bounds the work, or is refused; with little free it is tried."""
    card, extra, least = torch.device("cuda:0"), 1_000_000, 2_000_000
    free = 1_000_000_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    budget = partial(upsampling._budget, extra=extra, least=least, way_out="smaller weights")
    assert budget(card, None) == 799_000_000
    assert budget(card, 10_000_000) == 9_000_000
    with pytest.raises(UsageError, match=r"2 MB of memory are too little.*need 3 MB"):
        budget(card, 2_000_000)
    # What PyTorch has taken of the card and does not use is free to us.
    free = 600_000_000
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "memory_reserved", lambda _: 700_000_000)
        patched.setattr(torch.cuda, "memory_allocated", lambda _: 300_000_000)
        assert budget(card, None) == 799_000_000
    free = 2_500_000
    assert budget(card, None) == budget(card, 10_000_000) == least


def test_a_result_beyond_memory_is_refused_before_the_work(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutOfMemory, match=r"scan\.nii: .*GB are free; ask for a box"):
        upsample(volume_of(), 3000, weights=loaded)
    free = SimpleNamespace(available=4_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(OutOfMemory, match="4 kB are free"):
        upsample(volume_of((1, 4, 8, 8)), (2, 2, 1), weights=loaded)  # 4 KiB, and 96 bytes short


def test_progress_goes_from_encoding_to_decoding_and_never_back(loaded: Loaded) -> None:
    told: list[tuple[float, str]] = []
    upsample(
        volume_of((20, 20, 20)),
        2,
        weights=loaded,
        progress=lambda share, stage: told.append((share, stage)),
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1
    stages = [stage for _, stage in told]
    first = stages.index("decode")
    assert set(stages[:first]) == {"encode"}
    assert set(stages[first:]) == {"decode"}


def test_stop_ends_the_work_and_leaves_no_file(loaded: Loaded, tiny: Path, tmp_path: Path) -> None:
    asked: list[None] = []

    def third_time() -> bool:
        asked.append(None)
        return len(asked) >= 3

    volume = volume_of((20, 20, 20))
    with pytest.raises(Cancelled):
        upsample(volume, 2, weights=loaded, stop=third_time)
    assert len(asked) == 3
    source = io.write(tmp_path / "scan.nii", volume)
    asked.clear()
    with pytest.raises(Cancelled):
        upsample_file(
            source, tmp_path / "out.nii", Target(2), settings=Settings(tiny), stop=third_time
        )
    assert list(tmp_path.iterdir()) == [source]


def test_the_result_says_how_it_was_made(loaded: Loaded) -> None:
    box = Box((0, 1, 2), (4, 5, 6))
    volume = replace(volume_of(), metadata={"subject": 7})
    result = upsample(volume, (1, 2, 1.5), box=box, weights=loaded, device="cpu")
    assert result.name == "scan.nii"
    assert result.metadata["subject"] == 7
    record = result.metadata["upsampling"]
    assert json.loads(json.dumps(record)) == record
    normal = encode(volume, loaded).normalizer
    assert record == {
        "version": napari_arssr.__version__,
        "weights": "tiny.safetensors",
        "consistency": None,
        "orientations": 1,
        "target_zyx": {"scale": [1, 2, 1.5]},
        "box_zyx": [[0, 1, 2], [4, 5, 6]],
        "normalization": [{"low": normal.low, "high": normal.high}],
        "device": "cpu",
        "precision": "float32",
    }


# Files ---------------------------------------------------------------------------------------


def test_a_file_gets_the_same_numbers_and_the_same_record(tiny: Path, tmp_path: Path) -> None:
    volume = volume_of((2, *SHAPE), np.int16)
    source = io.write(tmp_path / "scan.nii", replace(volume, time_step=1.5))
    box = Box((0, 1, 2), (4, 5, 6))
    target = Target(np.array([1, 2, 1.5]))  # type: ignore[arg-type]
    told = upsample_file(
        source, tmp_path / "out.nii.gz", target, box=box, settings=Settings(str(tiny))
    )
    result = io.read(tmp_path / "out.nii.gz")
    expected = upsample(io.read(source), (1, 2, 1.5), box=box, weights=tiny)
    np.testing.assert_array_equal(result.data, expected.data)
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-5)
    assert result.time_step == 1.5
    assert json.loads(json.dumps(told)) == {
        "input": str(source),
        "output": str(tmp_path / "out.nii.gz"),
        "frames": 2,
        "input_shape": [10, 9, 6],
        "output_shape": [6, 8, 4],
        "input_spacing_mm": pytest.approx([1.1, 0.9, 3]),
        "output_spacing_mm": pytest.approx([1.1 / 1.5, 0.45, 3], abs=1e-6),
        "keeps_orientation": True,
        "settings": expected.metadata["upsampling"]
        | {
            "weights_sha256": sha256_of(tiny),
            "source": "scan.nii",
            "source_shape_zyx": list(SHAPE),
            "frame": None,
            "channel": None,
            "dtype": "float32",
        },
        "made": True,
    }
    in_header = json.loads(io.origin_of(result).provenance)["napari-arssr"]
    assert in_header == told["settings"]


def test_what_would_be_made_again_in_the_same_way_can_be_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = io.write(tmp_path / "scan.nii.gz", volume_of())
    out = tmp_path / "out.nii.gz"

    def made(scale: float = 2, dtype: str | None = None, **settings: Any) -> bool:
        chosen = Settings(**{"weights": tiny} | settings)
        told = upsample_file(source, out, Target(scale), dtype=dtype, settings=chosen, keep=True)
        return bool(told["made"])

    assert made()
    before = out.stat()
    assert not made()
    assert out.stat() == before
    for otherwise in ({"scale": 1.5}, {"orientations": 3}, {"dtype": "int16"}):
        assert made(**otherwise)
        assert not made(**otherwise)
    assert made()
    # Weights of the same name, as training writes them.
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / tiny.name
    model = tiny_network()
    torch.nn.init.zeros_(model.decoder.head.weight)
    save(other, model, Card(TINY, name="tiny"), torch.float32)
    assert made(weights=other)
    assert not made(weights=other)
    assert made()
    before = out.stat()
    # Of another input, though it has the same intensities.
    os.utime(source, (before.st_atime, out.stat().st_mtime + 10))
    assert made()
    os.utime(out, (before.st_atime, source.stat().st_mtime + 10))
    assert not made()
    assert upsample_file(source, out, Target(2), settings=Settings(tiny))["made"]  # not asked to


def test_a_file_is_written_in_bounded_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slab by slab: nobody asks for the whole result, however large."""
    source = io.write(tmp_path / "scan.nii", volume_of())
    monkeypatch.setattr("napari_arssr.field._SLAB_BYTES", 4 * 20 * 18 * 2)
    slabs = []
    write = io.SlabWriter.write

    def counted(self: io.SlabWriter, slab: npt.NDArray[Any]) -> None:
        slabs.append(slab.shape)
        write(self, slab)

    monkeypatch.setattr(io.SlabWriter, "write", counted)
    upsample_file(source, tmp_path / "out.nii", Target(2), settings=Settings(tiny))
    assert slabs == [(2, 18, 20)] * 6
    result = upsample(volume_of(), 2, weights=tiny)
    np.testing.assert_array_equal(io.read(tmp_path / "out.nii").data, result.data)


def test_a_frame_that_is_not_there_and_a_file_that_is_not(tiny: Path, tmp_path: Path) -> None:
    source = io.write(tmp_path / "scan.nii", volume_of((2, *SHAPE)))
    for frame in (2, -1):
        with pytest.raises(UsageError, match=rf"scan\.nii: .*no frame {frame}.*0 to 1"):
            upsample_file(source, tmp_path / "out.nii", Target(2), frame=frame)
    with pytest.raises(FileError, match=r"other\.nii does not exist"):
        upsample_file(tmp_path / "other.nii", tmp_path / "out.nii", Target(2))
    assert list(tmp_path.iterdir()) == [source]
