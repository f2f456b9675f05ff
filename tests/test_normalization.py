"""Intensities to network units and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_a_file import InAFile

from napari_arssr import io
from napari_arssr.choices import Normalization
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.lazy import blocks
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Volume

METHODS: tuple[Normalization, ...] = ("percentile", "minmax", "none")


def brain(dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Values from 100 to 1100 in 50³ voxels."""
    values = np.random.default_rng(0).permutation(np.linspace(100, 1100, 50**3))
    return values.reshape(50, 50, 50).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(METHODS), st.floats(-1e4, 1e4), st.floats(0.01, 1e4), st.integers(0, 99))
def test_values_come_back(method: Normalization, low: float, range_: float, seed: int) -> None:
    array = low + range_ * np.random.default_rng(seed).random((4, 5, 6))
    normalizer = Normalizer.fit(array, method)
    back = normalizer.restore(normalizer.normalize(array))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, array, rtol=1e-6, atol=1e-6 * range_ + 1e-6 * abs(low))


def test_minmax_maps_the_extremes_to_0_and_1() -> None:
    normal = Normalizer.fit(brain(), "minmax").normalize(brain())
    assert normal.dtype == np.float32
    assert normal.min() == 0
    assert normal.max() == 1


def test_percentiles_are_the_default_and_ignore_a_few_hot_voxels() -> None:
    array = brain()
    plain = Normalizer.fit(array)
    array[3, 4, 5:25] = 1e6
    hot = Normalizer.fit(array)
    assert plain.low == pytest.approx(101, abs=0.1)
    assert plain.high == pytest.approx(1099, abs=0.1)
    assert hot.low == pytest.approx(plain.low, abs=1)
    assert hot.high == pytest.approx(plain.high, abs=1)
    # Beyond the two the same line goes on: nothing is clipped.
    assert hot.normalize(array).max() > 900
    np.testing.assert_allclose(hot.restore(hot.normalize(array)), array, rtol=1e-5)


def test_percentiles_of_a_large_volume_are_of_all_its_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Dark but for the middle: every n-th voxel in a row would all be of the first column.
    array = np.zeros((40, 40, 40), np.float32)
    array[..., 10:30] = brain()[:40, :40, :20]
    whole = Normalizer.fit(array)
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", array.size // 40)
    thinned = Normalizer.fit(array)
    assert thinned.low == whole.low == 0
    assert thinned.high == pytest.approx(whole.high, rel=0.02)


@pytest.mark.parametrize("chunk", [1, 7, 50])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("enough", [4_000_000, 5_000], ids=["all of it", "thinned"])
def test_what_is_in_a_file_has_the_range_that_it_has_in_memory(
    monkeypatch: pytest.MonkeyPatch, method: Normalization, chunk: int, enough: int
) -> None:
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", enough)
    array = brain()
    array[3, 4, 5], array[7, 2, 9] = np.nan, np.inf
    stored: Any = InAFile(array, chunk)
    assert Normalizer.fit(stored, method) == Normalizer.fit(array, method)
    constant: Any = InAFile(np.full((30, 30, 30), 7, np.int16), chunk)
    assert Normalizer.fit(constant, method) == Normalizer.fit(constant[:], method)


def test_of_what_is_in_a_file_percentiles_read_some_planes_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", 5_000)
    stored: Any = InAFile(brain())
    Normalizer.fit(stored)
    assert stored.read == set(range(0, 50, 3))


def test_of_a_large_array_in_chunks_percentiles_read_some_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every n-th plane would be in every chunk."""
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 1_000)
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", 500)
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH_OF_CHUNK", 500)
    array, read = brain(), []

    def chunk(block_id: tuple[int, ...]) -> npt.NDArray[Any]:
        read.append(block_id)
        return array[tuple(slice(5 * n, 5 * n + 5) for n in block_id)]

    lazy: Any = da.map_blocks(chunk, chunks=((5,) * 10,) * 3, dtype=array.dtype)
    read.clear()  # dask has tried it
    found = Normalizer.fit(lazy)
    assert 27 <= len(read) == len(set(read)) <= 125  # of 1000
    assert (found.low, found.high) == pytest.approx((100, 1100), abs=30)
    for axis in zip(*read, strict=True):  # from all over
        assert min(axis) <= 2
        assert max(axis) >= 7
    # Extremes are those of all.
    read.clear()
    exact = Normalizer.fit(lazy, "minmax")
    assert (exact.low, exact.high) == (array.min(), array.max())
    assert sorted(read) == list(np.ndindex(10, 10, 10))


@pytest.mark.parametrize("chunks", range(1, 14))
def test_enough_chunks_are_looked_at_whatever_their_number(chunks: int) -> None:
    array = np.zeros((2 * chunks,) * 3, np.uint8)
    lazy: Any = da.from_array(array, chunks=2)
    parts = list(blocks(lazy, enough=1))
    assert len(parts) >= min(27, chunks**3)
    assert len(parts) <= 64 or chunks**3 < 27
    whole = list(blocks(lazy))
    assert sum(part.size for part in whole) == array.size
    assert len(whole) == 1  # so small a one is read at once


def test_parts_are_as_large_as_memory_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_arssr.lazy._AT_ONCE", 600)
    array = np.arange(8000, dtype=np.uint8).reshape(20, 20, 20)
    parts = list(blocks(da.from_array(array, chunks=5)))
    assert max(part.size for part in parts) <= 600
    assert len(parts) == 4 * 4 * 1
    assert sum(int(part.sum()) for part in parts) == int(array.sum())


def test_planes_of_a_file_of_ours_are_thinned_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box, which leaves the file where it is, is as bright as in the whole, which does not."""
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 1_000)
    monkeypatch.setattr("napari_arssr.normalization._ENOUGH", 5_000)
    source = io.write(tmp_path / "scan.nii", Volume(brain(np.int16), np.eye(4)))
    stored = io.read(source, most=0).data
    assert isinstance(stored, io.StoredArray)
    assert Normalizer.fit(stored) == Normalizer.fit(io.read(source).data)


def test_reading_for_a_range_tells_where_it_is_and_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_arssr.lazy._AT_ONCE", 100_000)
    stored: Any = InAFile(brain(), 10)
    heard: list[float | None] = []
    Normalizer.fit(stored, "minmax", lambda share, _stage: heard.append(share))
    assert heard == [0, 0.2, 0.4, 0.6, 0.8, None]
    stored = InAFile(brain(), 10)
    with pytest.raises(Cancelled):
        Normalizer.fit(stored, "minmax", stop=lambda: len(stored.read) >= 20)
    assert len(stored.read) == 20


def test_values_that_are_in_0_to_1_already_are_left_as_they_are() -> None:
    assert Normalizer.fit(brain(), "none") == Normalizer(0.0, 1.0)
    np.testing.assert_array_equal(Normalizer().normalize(brain()), brain())


@pytest.mark.parametrize("method", ["percentile", "minmax"])
def test_values_that_are_not_finite_are_left_out(method: Normalization) -> None:
    array = brain()
    clean = Normalizer.fit(array, method)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    fitted = Normalizer.fit(array, method)
    assert fitted.low == pytest.approx(clean.low, abs=0.5)
    assert fitted.high == pytest.approx(clean.high, abs=0.5)
    normal = fitted.normalize(array)
    np.testing.assert_allclose(normal[0, 0, :3], 0, atol=1e-6)
    assert np.isfinite(normal).all()


@pytest.mark.parametrize("method", ["percentile", "minmax"])
@pytest.mark.parametrize("value", [0, -3, 255, 1e-20, 1e30, -1e30])
def test_a_constant_comes_back(method: Normalization, value: float) -> None:
    array = np.full((3, 4, 5), value)
    normalizer = Normalizer.fit(array, method)
    normal = normalizer.normalize(array)
    np.testing.assert_array_equal(normal, 0)
    np.testing.assert_array_equal(normalizer.restore(normal), array.astype(np.float32))


def test_a_few_voxels_that_differ_are_not_taken_for_a_constant() -> None:
    array = np.zeros((50, 50, 50), dtype=np.uint8)
    array[20, 20, 20] = 7
    assert Normalizer.fit(array) == Normalizer(0.0, 7.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.uint32, np.float16, ">f8"])
def test_every_number_type(dtype: npt.DTypeLike) -> None:
    array = (brain() / 5).astype(dtype)
    normalizer = Normalizer.fit(array, "minmax")
    normal = normalizer.normalize(array)
    assert normal.dtype == np.float32
    assert normal.min() == 0
    assert normal.max() == 1
    np.testing.assert_allclose(normalizer.restore(normal), array.astype(float), rtol=1e-5)


def test_a_small_range_far_from_0_keeps_its_steps() -> None:
    array = 16_000_000 + np.arange(64, dtype=np.int32).reshape(4, 4, 4)
    normal = Normalizer.fit(array, "minmax").normalize(array).ravel()
    np.testing.assert_allclose(np.diff(normal), 1 / 63, rtol=1e-4)


def test_nothing_finite_and_unknown_methods_are_refused() -> None:
    with pytest.raises(FileError, match="no finite value"):
        Normalizer.fit(np.full((2, 2, 2), np.nan))
    with pytest.raises(UsageError, match=r"'zscore'.*percentile, minmax, none"):
        Normalizer.fit(brain(), "zscore")  # type: ignore[arg-type]
