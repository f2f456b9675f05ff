"""The mean over orientations, against volumes that were turned and turned back by hand."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny import save_tiny

from napari_arssr import encode, io, upsample
from napari_arssr.choices import ORIENTATIONS
from napari_arssr.errors import Cancelled, UsageError
from napari_arssr.orientations import oriented
from napari_arssr.upsampling import Settings, Target, upsample_file
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.weights import Loaded, load

SHAPE = (7, 9, 8)
OBLIQUE = Rotation.from_euler("zyx", [20, -35, 50], degrees=True).as_matrix()
CLOSE = {"rtol": 0, "atol": 2e-3}  # of intensities to 1000

several = pytest.mark.parametrize("count", ORIENTATIONS[1:])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(save_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors"))


def volume_of(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([1.0, 1.5, 2.2])
    affine[:3, 3] = (-20, 35, 8)
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return Volume(1000 * values, affine, name="scan.nii")


def by_hand(data: npt.NDArray[np.float32], count: int, loaded: Loaded) -> npt.NDArray[np.float64]:
    """The mean at twice the size of arrays turned, upsampled as they are, and turned back."""
    cycles = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    orders = list(permutations(range(3))) if count == 12 else cycles
    results = []
    for order, backwards in product(orders, (False, True) if count > 3 else (False,)):
        turned = data.transpose(order)
        turned = turned[::-1, ::-1, ::-1] if backwards else turned
        result = upsample(Volume(turned, np.eye(4)), 2, weights=loaded, device="cpu").data
        result = result[::-1, ::-1, ::-1] if backwards else result
        results.append(result.transpose(np.argsort(order)))
    assert len(results) == count
    return np.mean(results, axis=0, dtype=np.float64)


# Orientations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ORIENTATIONS)
def test_orientations_differ_and_every_voxel_keeps_its_place(count: int) -> None:
    volume = volume_of()
    found = oriented(volume, count)
    assert len(found) == count
    assert found[0].grid == volume.grid
    assert len({one.affine.tobytes() for one in found}) == count
    places = dict(placed(volume))
    for one in found:
        assert np.shares_memory(one.data, volume.data)
        assert dict(placed(one)) == places


@several
def test_each_axis_is_in_each_place_equally_often(count: int) -> None:
    places = np.array([one.data.shape for one in oriented(volume_of(), count)])
    for axis, size in product(range(3), SHAPE):
        assert (places[:, axis] == size).sum() == count / 3


def placed(volume: Volume) -> list[tuple[tuple[float, ...], float]]:
    """Places in the world, to a thousandth of a millimetre, and what is there."""
    index = np.argwhere(np.ones(volume.data.shape, dtype=bool))
    world = volume.grid.world(index).round(3) + 0.0
    return [(tuple(p), float(v)) for p, v in zip(world.tolist(), volume.data.ravel(), strict=True)]


@given(axes=st.sets(st.integers(0, 2)), frames=st.sampled_from([None, 2]))
@settings(max_examples=20, deadline=None)
def test_voxels_that_are_counted_the_other_way_stay_where_they_are(
    axes: set[int], frames: int | None
) -> None:
    volume = volume_of(SHAPE if frames is None else (frames, *SHAPE))
    other = volume.reversed_along(sorted(axes))
    assert other.data.shape == volume.data.shape
    for frame in range(volume.frames):
        assert dict(placed(other.frame(frame))) == dict(placed(volume.frame(frame)))
    again = other.reversed_along(sorted(axes))
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-9)


# The mean -------------------------------------------------------------------------------------


@several
def test_a_result_is_the_mean_of_its_orientations(count: int, loaded: Loaded) -> None:
    volume = volume_of()
    found = upsample(volume, 2, weights=loaded, orientations=count, device="cpu")
    np.testing.assert_allclose(found.data, by_hand(volume.data, count, loaded), **CLOSE)
    one = upsample(volume, 2, weights=loaded, device="cpu")
    assert found.grid == one.grid
    assert np.abs(found.data - one.data).max() > 1
    assert found.metadata["upsampling"]["orientations"] == count


def test_all_orders_in_both_directions_make_the_order_of_a_file_s_axes_no_matter(
    loaded: Loaded,
) -> None:
    volume = volume_of()
    other = volume.transposed((2, 0, 1)).reversed_along((0, 1, 2))
    found, same = (
        upsample(one, (2, 2, 2), weights=loaded, orientations=12, device="cpu")
        for one in (volume, other)
    )
    np.testing.assert_allclose(
        same.reversed_along((0, 1, 2)).transposed((1, 2, 0)).data, found.data, **CLOSE
    )
    one = upsample(other, 2, weights=loaded, device="cpu")
    one = one.reversed_along((0, 1, 2)).transposed((1, 2, 0))
    assert np.abs(one.data - upsample(volume, 2, weights=loaded, device="cpu").data).max() > 1


def test_a_box_and_a_plane_are_parts_of_the_whole(loaded: Loaded) -> None:
    volume = volume_of()
    whole = upsample(volume, (1, 2.5, 2), weights=loaded, orientations=3, device="cpu")
    box = Box((1, 2, 0), (4, 7, 5))
    part = upsample(volume, (1, 2.5, 2), box=box, weights=loaded, orientations=3, device="cpu")
    inside = volume.grid.box_in(whole.grid, box)
    np.testing.assert_allclose(part.data, whole.crop(inside).data, **CLOSE)
    assert part.grid == whole.crop(inside).grid
    # An oblique plane through the middle.
    affine = np.diag([0.7, 0.7, 0.7, 1.0])
    affine[:3, 3] = volume.grid.corners.mean(axis=0) - 2
    plane = Grid((1, 6, 6), affine)
    mean = encode(volume, loaded, orientations=3, device="cpu").sample(plane).data
    ones = [encode(one, loaded, device="cpu").sample(plane).data for one in oriented(volume, 3)]
    np.testing.assert_allclose(mean, np.mean(ones, axis=0), **CLOSE)


def test_slab_by_slab_is_the_same(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = volume_of()
    field = encode(volume, loaded, orientations=3, device="cpu")
    grid = volume.grid.scaled(2)
    whole = field.sample(grid).data
    monkeypatch.setattr("napari_arssr.field._SLAB_BYTES", 5 * 4 * grid.shape[1] * grid.shape[2])
    slabs = list(field.slabs(grid))
    assert [len(slab) for slab in slabs] == [5, 5, 4]
    np.testing.assert_allclose(np.concatenate(slabs), whole, **CLOSE)


def test_a_voxel_that_is_no_number_leaves_a_hole_and_a_constant_stays(loaded: Loaded) -> None:
    volume = volume_of()
    volume.data[2, 3, 4] = np.nan
    found = upsample(volume, 2, weights=loaded, orientations=6, device="cpu").data
    assert np.isnan(found[4:6, 6:8, 8:10]).all()
    assert np.isnan(found).sum() == 8
    flat = Volume(np.full(SHAPE, 7, dtype=np.int16), volume.affine)
    assert (upsample(flat, 2, weights=loaded, orientations=6, device="cpu").data == 7).all()


def test_memory_is_shared_by_all_orientations(loaded: Loaded) -> None:
    volume = volume_of((20, 20, 20))
    field = encode(volume, loaded, orientations=12, device="cpu", memory=2 << 40)
    caches = {one.features.cache_bytes for one in field.fields}
    single = encode(volume, loaded, device="cpu", memory=2 << 40)
    assert max(caches) * 12 <= single.features.cache_bytes
    assert len(caches) == 1
    # With as little as there must be it is the same, only slower.
    whole = field.sample(volume.grid.scaled(2)).data
    with pytest.raises(UsageError, match="are too little") as caught:
        encode(volume, loaded, orientations=12, device="cpu", memory=1_000_000)
    with pytest.raises(UsageError) as plain:
        encode(volume, loaded, device="cpu", memory=1_000_000)
    assert needed(caught.value) > needed(plain.value)
    tight = encode(volume, loaded, orientations=12, device="cpu", memory=needed(caught.value))
    np.testing.assert_allclose(tight.sample(volume.grid.scaled(2)).data, whole, **CLOSE)


def needed(error: UsageError) -> int:
    amount, unit = str(error).split(" need ")[1].split(";")[0].split()
    return int(1.1 * float(amount) * {"MB": 1e6, "GB": 1e9}[unit])


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
    field = encode(volume, loaded, orientations=3, device="cpu")
    before = field.encoding_cost(box)
    one = encode(volume, loaded, device="cpu").encoding_cost(box)
    assert one < before <= 3 * one
    field.sample(volume.grid.crop(box).scaled(2))
    assert field.encoding_cost(box) == 0


@pytest.mark.parametrize("count", [0, 2, 48, -1])
def test_a_number_that_there_is_none_of_is_refused(
    count: int, loaded: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"mean of 1, 3, 6, 12 orientations, not of {count}"):
        upsample(volume_of(), 2, weights=loaded, orientations=count)
    with pytest.raises(UsageError, match="orientations"):
        encode(volume_of(), loaded, orientations=count)
    source = io.write(tmp_path / "scan.nii", volume_of())
    with pytest.raises(UsageError, match="orientations"):
        upsample_file(source, tmp_path / "x.nii", Target(2), settings=Settings(orientations=count))
    assert list(tmp_path.iterdir()) == [source]
