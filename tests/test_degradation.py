"""The scanner model: what it does to constants, ramps, points and waves, and where they end up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_arssr import io
from napari_arssr.choices import SCANNER_KINDS, ScannerKind
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import FileError, UsageError
from napari_arssr.simulation import simulate_file
from napari_arssr.volume import Grid, Volume

KINDS: tuple[ScannerKind, ...] = SCANNER_KINDS
EXAMPLES = settings(max_examples=60, deadline=None)

kinds = pytest.mark.parametrize("kind", KINDS)


def oblique(shape: tuple[int, int, int]) -> Grid:
    affine = np.array(
        [[0.9, -0.3, 0.1, -20], [0.4, 1.1, -0.2, 35], [0.0, 0.3, 1.8, 8], [0, 0, 0, 1]]
    )
    return Grid(shape, affine)


def centres(low: int, ratio: float) -> npt.NDArray[np.float64]:
    """Of LR voxels, in HR indices: both grids start at the same face."""
    return (np.arange(low) + 0.5) * ratio - 0.5


@EXAMPLES
@given(
    st.sampled_from(KINDS),
    st.floats(0.01, 4),
    st.integers(1, 40),
    st.floats(1, 12),
    st.floats(-0.5, 39.5),
)
def test_a_constant_stays_what_it_is(
    kind: ScannerKind, width: float, high: int, ratio: float, centre: float
) -> None:
    rows = ScannerModel(kind, width).rows(np.array([min(centre, high - 0.5)]), ratio, high)
    assert rows.shape == (1, high)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    assert np.abs(rows).max() < 2


@kinds
def test_an_axis_that_is_not_coarser_is_not_measured_again(kind: ScannerKind) -> None:
    model = ScannerModel(kind, 1.7)
    np.testing.assert_array_equal(model.matrix(9, 9), np.eye(9))
    volume = Volume(np.random.default_rng(0).random((8, 9, 10), dtype=np.float32), np.eye(4))
    same = model.measure(volume, volume.grid)
    np.testing.assert_array_equal(same.data, volume.data)
    thick = model.measure(volume, volume.grid.with_shape((4, 9, 10)))
    assert thick.data.shape == (4, 9, 10)
    for y, x in ((0, 0), (3, 7)):  # every column by itself
        column = model.matrix(8, 4) @ volume.data[:, y, x]
        np.testing.assert_allclose(thick.data[:, y, x], column, atol=1e-6)


@kinds
@pytest.mark.parametrize("low", [(12, 16, 20), (17, 23, 10), (24, 11, 9)])
def test_a_ramp_stays_where_it_is_in_the_world(
    kind: ScannerKind, low: tuple[int, int, int]
) -> None:
    grid = oblique((24, 32, 40))
    slope, offset = np.array([3.0, -2.0, 5.0]), 40.0

    def ramp(grid: Grid) -> npt.NDArray[np.float64]:
        index = np.moveaxis(np.indices(grid.shape), 0, -1)
        values: npt.NDArray[np.float64] = grid.world(index) @ slope + offset
        return values

    coarse = grid.with_shape(low)
    measured = ScannerModel(kind).measure(
        Volume(ramp(grid).astype(np.float32), grid.affine), coarse
    )
    assert measured.grid == coarse
    inside = (slice(4, -4),) * 3
    step = np.abs(np.diff(ramp(coarse), axis=2)).max()
    difference = measured.data[inside] - ramp(coarse)[inside]
    assert difference.size > 0
    # Sampled off its voxels' centres by a tenth of a voxel a ramp would differ by 0.1. Voxels
    # that a slab cuts count with their centres: here a little too far in, there too far out.
    assert np.abs(difference).max() / step < (0.15 if kind == "slice-profile" else 0.03)
    assert abs(difference.mean()) / step < 0.01


@pytest.mark.parametrize("width", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("ratio", [3.0, 5.5])
def test_a_point_becomes_a_gaussian_as_wide_as_it_says(width: float, ratio: float) -> None:
    high = 121
    profile = ScannerModel("gaussian", width).rows(np.array([60.0]), ratio, high)[0]
    assert profile.argmax() == 60
    position = np.interp(0.5, profile[:61] / profile.max(), np.arange(61))
    assert 2 * (60 - position) == pytest.approx(width * ratio, rel=0.03)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_slice_profile_one_voxel_wide_is_the_mean_of_the_block(factor: int) -> None:
    data = np.random.default_rng(0).random((4 * factor, 5 * factor, 3 * factor))
    volume = Volume(data, np.eye(4))
    measured = ScannerModel("slice-profile").measure(volume, volume.grid.scaled(1 / factor))
    blocks = data.reshape(4, factor, 5, factor, 3, factor).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(measured.data, blocks, atol=1e-6)


def test_a_slab_counts_the_voxels_it_cuts_by_their_share() -> None:
    # 2.5 HR voxels around the middle of voxel 3: all of 2 to 4 but a quarter of the outer two.
    row = ScannerModel("slice-profile").rows(np.array([3.0]), 2.5, 7)[0]
    np.testing.assert_allclose(row, np.array([0, 0, 0.75, 1, 0.75, 0, 0]) / 2.5, atol=1e-6)


def test_kspace_passes_low_frequencies_and_stops_high_ones() -> None:
    high, low = 240, 60
    matrix = ScannerModel("kspace").matrix(high, low)
    ratio = high / low

    def gain(cycles_per_voxel: float) -> float:
        """Amplitude of a wave after it was measured; Nyquist is 0.5 cycles per LR voxel."""
        middle = slice(8, -8)
        wave = [
            matrix @ shape(2 * np.pi * cycles_per_voxel * (np.arange(high) + 0.5) / ratio)
            for shape in (np.cos, np.sin)
        ]
        return float(np.sqrt(wave[0] ** 2 + wave[1] ** 2)[middle].mean())

    assert gain(0.05) == pytest.approx(1, abs=0.02)
    assert gain(0.25) == pytest.approx(1, abs=0.05)
    assert gain(0.5) == pytest.approx(0.5, abs=0.05)
    assert gain(0.8) < 0.03
    assert gain(1.3) < 0.03


@EXAMPLES
@given(
    st.sampled_from(KINDS),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.floats(1, 5)] * 3),
)
def test_measuring_keeps_the_span(
    kind: ScannerKind, shape: tuple[int, int, int], scale: tuple[float, float, float]
) -> None:
    grid = oblique(shape)
    coarse = grid.scaled([1 / k for k in scale])
    measured = ScannerModel(kind).measure(
        Volume(np.full(shape, 7, dtype=np.int16), grid.affine), coarse
    )
    assert measured.data.dtype == np.float32
    np.testing.assert_allclose(measured.data, 7, atol=1e-4)
    for corner in (np.zeros(3), np.ones(3), np.array([0, 1, 0])):
        there, here = (g.world(corner * g.shape - 0.5) for g in (measured.grid, grid))
        np.testing.assert_allclose(there, here, atol=1e-9)


@kinds
def test_the_adjoint_is_the_transposed_matrices(kind: ScannerKind) -> None:
    random = np.random.default_rng(0)
    high, low = (9, 12, 7), (4, 5, 7)
    x, y = random.standard_normal(high), random.standard_normal(low)
    a, b, c = ScannerModel(kind).matrices(high, low)
    forward = np.einsum("az,by,cx,zyx->abc", a, b, c, x)
    back = np.einsum("az,by,cx,abc->zyx", a, b, c, y)
    assert (forward * y).sum() == pytest.approx((x * back).sum(), rel=1e-5)
    measured = ScannerModel(kind).measure(
        Volume(x, np.eye(4)), Grid(high, np.eye(4)).with_shape(low)
    )
    np.testing.assert_allclose(measured.data, forward, atol=1e-5)


def test_a_finer_grid_cannot_be_measured() -> None:
    volume = Volume(np.zeros((8, 9, 10)), np.eye(4), name="a.nii")
    with pytest.raises(UsageError, match=r"^a\.nii: .*\(8, 18, 10\).*\(8, 9, 10\)"):
        ScannerModel().measure(volume, volume.grid.with_shape((8, 18, 10)))


def test_unknown_kinds_and_widths_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'box'.*gaussian, slice-profile, kspace, cubic"):
        ScannerModel("box")  # type: ignore[arg-type]
    for width in (0, -1, np.nan, np.inf):
        with pytest.raises(UsageError, match="above 0"):
            ScannerModel(width=width)


# Files ----------------------------------------------------------------------------------------


def write(path: Path, data: npt.NDArray[np.generic]) -> Path:
    io.write(path, Volume(data, oblique(data.shape[-3:]).affine, time_step=2.0))
    return path


def test_a_file_is_measured_with_its_span_and_its_frames(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((2, 8, 9, 10), dtype=np.float32)
    source = write(tmp_path / "high.nii.gz", data)
    record = simulate_file(source, tmp_path / "low.nii", (2, 1, 2.5), ScannerModel("kspace"))
    low = io.read(tmp_path / "low.nii")
    coarse = oblique((8, 9, 10)).with_shape((4, 9, 4))
    assert low.grid == coarse
    assert low.time_step == pytest.approx(2.0)
    for number in range(2):
        frame = ScannerModel("kspace").measure(Volume(data[number], np.eye(4)), coarse)
        np.testing.assert_allclose(low.data[number], frame.data, atol=1e-6)
    assert record["input_shape"] == (10, 9, 8)
    assert record["output_shape"] == (4, 9, 4)
    assert record["settings"]["kind"] == "kspace"


def test_noise_is_a_share_of_the_range_and_repeats_with_its_seed(tmp_path: Path) -> None:
    data = np.zeros((40, 40, 40), dtype=np.int16)
    data[0, 0, 0], data[-1, -1, -1] = -30_000, 30_000  # a range that 16 bits cannot hold
    source = write(tmp_path / "high.nii", data)

    def simulated(name: str, seed: int, noise: float = 2.0) -> npt.NDArray[np.float32]:
        simulate_file(source, tmp_path / name, 2, ScannerModel(), noise=noise, seed=seed)
        values: npt.NDArray[np.float32] = io.read(tmp_path / name).data
        return values

    clean = simulated("clean.nii", 0, noise=0)
    noisy = simulated("first.nii", 0)
    assert (noisy - clean).std() == pytest.approx(0.02 * 60_000, rel=0.03)
    assert abs((noisy - clean).mean()) < 50
    np.testing.assert_array_equal(simulated("again.nii", 0), noisy)
    assert not np.array_equal(simulated("other.nii", 1), noisy)


def test_what_cannot_be_simulated_leaves_no_file(tmp_path: Path) -> None:
    source = write(tmp_path / "high.nii", np.ones((4, 5, 6), dtype=np.float32))
    broken = write(tmp_path / "nan.nii", np.full((4, 5, 6), np.nan, dtype=np.float32))
    out = tmp_path / "low.nii"
    with pytest.raises(UsageError, match="at least 1"):
        simulate_file(source, out, 0.5, ScannerModel())
    with pytest.raises(UsageError, match="100 per cent"):
        simulate_file(source, out, 2, ScannerModel(), noise=-1)
    with pytest.raises(UsageError, match=r"nan\.nii.*not finite"):
        simulate_file(broken, out, 2, ScannerModel())
    with pytest.raises(FileError, match=r"none\.nii"):
        simulate_file(tmp_path / "none.nii", out, 2, ScannerModel())
    with pytest.raises((UsageError, FileError), match=r"high\.nii"):
        simulate_file(source, source, 2, ScannerModel())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["high.nii", "nan.nii"]
