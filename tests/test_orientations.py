"""The mean over orientations, against volumes that were turned and turned back by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny import TINY, tiny_network

from napari_arssr import choices, encode, io, upsample
from napari_arssr.errors import Cancelled, UsageError
from napari_arssr.models import ORIENTATIONS, Card, Orientation, build, save
from napari_arssr.upsampling import Settings, Target, upsample_file
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.weights import Loaded, load

Array = npt.NDArray[np.float32]

SHAPE = (7, 9, 8)
SCALE = (2, 1.5, 3)
OBLIQUE = Rotation.from_euler("zyx", [20, -35, 50], degrees=True).as_matrix()
CLOSE = {"rtol": 0, "atol": 2e-3}  # of intensities to 1000

several = pytest.mark.parametrize("count", choices.ORIENTATIONS[1:])


@pytest.fixture(scope="module", params=["residual", "published"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    model, config = tiny_network(), TINY
    if request.param == "published":
        config = replace(TINY, decoder="published", decoder_depth=4)
        torch.manual_seed(3)
        model = build(config)
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter.uniform_(-0.2, 0.5)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, model, Card(config, name="tiny"), torch.float32)
    return load(path)


def volume_of(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([1.0, 1.5, 2.2])
    affine[:3, 3] = (-20, 35, 8)
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return Volume(1000 * values, affine, name="scan.nii")


def ways(count: int) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Orders of axes, and whether they run backwards."""
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    return product(
        permutations(range(3)) if count == 12 else orders, (False, True) if count > 3 else (False,)
    )


def turned(volume: Volume, order: tuple[int, ...], backwards: bool) -> Volume:
    """The same voxels in the same places of the world, in another order."""
    result = volume.transposed(order)
    if not backwards:
        return result
    affine = result.affine.copy()
    last = np.array([*result.grid.shape[::-1], 0]) - (1, 1, 1, 0)
    affine[:, 3] += result.affine @ last
    affine[:, :3] *= -1
    return Volume(result.data[::-1, ::-1, ::-1], affine)


def by_hand(volume: Volume, count: int, loaded: Loaded) -> Array:
    """The mean of arrays turned, upsampled as they are, and turned back."""
    results = []
    for order, backwards in ways(count):
        scale = [SCALE[axis] for axis in order]
        data = turned(volume, order, backwards).data
        result = upsample(Volume(data, np.eye(4)), scale, weights=loaded, device="cpu").data
        result = result[::-1, ::-1, ::-1] if backwards else result
        results.append(result.transpose(np.argsort(order)))
    assert len(results) == count
    return np.mean(results, axis=0)


def test_of_as_many_as_are_offered_each_has_each_axis_in_each_place_equally_often() -> None:
    assert len(set(ORIENTATIONS)) == len(ORIENTATIONS) == max(choices.ORIENTATIONS)
    assert ORIENTATIONS[0] == Orientation((0, 1, 2), reverse=False)
    for count in choices.ORIENTATIONS[1:]:
        found = {(one.order, one.reverse) for one in ORIENTATIONS[:count]}
        assert found == set(ways(count))
        for axis, place in product(range(3), repeat=2):
            assert sum(order[place] == axis for order, _ in found) == count / 3


@several
def test_a_result_is_the_mean_of_its_orientations(count: int, loaded: Loaded) -> None:
    volume = volume_of()
    found = upsample(volume, SCALE, weights=loaded, orientations=count, device="cpu")
    np.testing.assert_allclose(found.data, by_hand(volume, count, loaded), **CLOSE)
    one = upsample(volume, SCALE, weights=loaded, device="cpu")
    assert found.grid == one.grid
    assert np.abs(found.data - one.data).max() > 1
    assert found.metadata["upsampling"]["orientations"] == count


@several
def test_an_oblique_plane_is_the_mean_of_its_orientations(count: int, loaded: Loaded) -> None:
    volume = volume_of()
    affine = np.diag([0.7, 0.7, 0.7, 1.0])
    affine[:3, 3] = volume.grid.corners.mean(axis=0) - 2
    plane = Grid((1, 6, 6), affine)
    mean = encode(volume, loaded, orientations=count, device="cpu").sample(plane).data
    volumes = [turned(volume, *way) for way in ways(count)]
    for one in volumes:
        brightest = [np.unravel_index(v.data.argmax(), v.data.shape) for v in (one, volume)]
        place, same = one.grid.world(brightest[0]), volume.grid.world(brightest[1])
        np.testing.assert_allclose(place, same, atol=1e-9)
    ones = [encode(one, loaded, device="cpu").sample(plane).data for one in volumes]
    np.testing.assert_allclose(mean, np.mean(ones, axis=0), **CLOSE)
    assert np.abs(mean - ones[0]).max() > 1


def test_all_orders_in_both_directions_make_the_order_of_a_file_s_axes_no_matter(
    loaded: Loaded,
) -> None:
    volume = volume_of()
    other = turned(volume, (2, 0, 1), backwards=True)
    for count, alike in ((12, True), (1, False)):
        grid = volume.grid.scaled(2)
        found, same = (
            encode(one, loaded, orientations=count, device="cpu").sample(grid).data
            for one in (volume, other)
        )
        assert bool(np.abs(found - same).max() < 2e-3) is alike


def test_a_box_is_a_part_of_the_whole(loaded: Loaded) -> None:
    volume = volume_of()
    box = Box((1, 2, 0), (4, 7, 5))
    options = {"weights": loaded, "orientations": 3, "device": "cpu"}
    whole = upsample(volume, (1, 2.5, 2), **options)
    part = upsample(volume, (1, 2.5, 2), box=box, **options)
    inside = volume.grid.box_in(whole.grid, box)
    np.testing.assert_allclose(part.data, whole.crop(inside).data, **CLOSE)
    assert part.grid == whole.crop(inside).grid


def test_each_frame_is_the_mean_of_its_own(loaded: Loaded) -> None:
    series = volume_of((2, *SHAPE))
    found = upsample(series, 2, weights=loaded, orientations=3, device="cpu")
    for number in range(2):
        one = upsample(series.frame(number), 2, weights=loaded, orientations=3, device="cpu")
        np.testing.assert_allclose(found.data[number], one.data, **CLOSE)


@pytest.mark.parametrize("scale", [2, 2.5])
def test_holes_are_those_of_one_orientation(loaded: Loaded, scale: float) -> None:
    volume = volume_of()
    volume.data[2, 3, 4] = np.nan
    one, mean = (
        upsample(volume, scale, weights=loaded, orientations=count, device="cpu").data
        for count in (1, 12)
    )
    assert np.isnan(one).any()
    np.testing.assert_array_equal(np.isnan(mean), np.isnan(one))


def test_a_constant_stays_what_it_is(loaded: Loaded) -> None:
    value = np.float32(0.3)
    flat = Volume(np.full(SHAPE, value), np.eye(4))
    assert (upsample(flat, 2, weights=loaded, orientations=12, device="cpu").data == value).all()


def test_memory_is_shared_by_all_orientations(loaded: Loaded) -> None:
    volume = volume_of((20, 20, 20))
    ample = {"device": "cpu", "memory": 2 << 40}
    mean = encode(volume, loaded, orientations=12, **ample)
    single = encode(volume, loaded, **ample)
    assert mean.features.cache_bytes * 12 == pytest.approx(single.features.cache_bytes, rel=1e-3)
    # With as little as there must be it is the same, only slower.
    grid = volume.grid.scaled(2)
    whole = mean.sample(grid).data
    with pytest.raises(UsageError, match=r"are too little.*fewer orientations") as caught:
        encode(volume, loaded, orientations=12, device="cpu", memory=1_000_000)
    amount, unit = str(caught.value).split(" need ")[1].split(";")[0].split()
    enough = int(1.1 * float(amount) * {"MB": 1e6, "GB": 1e9}[unit])
    tight = encode(volume, loaded, orientations=12, device="cpu", memory=enough)
    np.testing.assert_allclose(tight.sample(grid).data, whole, **CLOSE)


def test_one_network_and_one_volume_serve_all(loaded: Loaded) -> None:
    field = encode(volume_of(), loaded, orientations=12, device="cpu")
    maps = field._maps
    assert len(maps) == 12
    assert len({id(one.model.model) for one in maps}) == 1
    assert {one._read for one in maps} == {field._voxels.normal}


def test_progress_runs_through_all_and_a_stop_ends_it(loaded: Loaded) -> None:
    told: list[float] = []
    upsample(
        volume_of(),
        2,
        weights=loaded,
        orientations=6,
        progress=lambda share, _stage: told.append(share),
    )
    assert told == sorted(told)
    assert told[0] < 1 / 6
    assert told[-1] == pytest.approx(1)
    with pytest.raises(Cancelled):
        upsample(volume_of(), 2, weights=loaded, orientations=3, stop=lambda: len(told) > 0)


def test_what_is_left_to_encode_is_told_for_all(loaded: Loaded) -> None:
    volume = volume_of()
    box = Box((0, 0, 0), (4, 4, 4))
    mean = encode(volume, loaded, orientations=3, device="cpu")
    single = encode(volume, loaded, device="cpu")
    assert mean.encoding_cost(box) == 3 * single.encoding_cost(box) > 0
    mean.sample(volume.grid.crop(box).scaled(2))
    assert mean.encoding_cost(box) == 0


def test_a_field_is_seen_in_one_orientation_with_the_features_that_it_has(loaded: Loaded) -> None:
    volume = volume_of()
    grid = volume.grid.scaled(2)
    mean = encode(volume, loaded, orientations=3, device="cpu")
    whole = mean.sample(grid).data
    one = mean.in_one_orientation()
    assert one.encoding_cost(volume.grid.box) == 0
    single = encode(volume, loaded, device="cpu").sample(grid).data
    np.testing.assert_allclose(one.sample(grid).data, single, **CLOSE)
    np.testing.assert_allclose(mean.sample(grid).data, whole, **CLOSE)
    assert np.abs(whole - single).max() > 1


@pytest.mark.parametrize("count", [0, 2, 48, -1])
def test_a_number_that_there_is_none_of_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"mean of 1, 3, 6, 12 orientations, not of {count}"):
        upsample(volume_of(), 2, orientations=count)
    with pytest.raises(UsageError, match="orientations"):
        encode(volume_of(), orientations=count)
    source = io.write(tmp_path / "scan.nii", volume_of())
    with pytest.raises(UsageError, match="orientations"):
        upsample_file(source, tmp_path / "x.nii", Target(2), settings=Settings(orientations=count))
    assert list(tmp_path.iterdir()) == [source]
