import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from napari_arssr import phantom as module
from napari_arssr.errors import UsageError
from napari_arssr.phantom import EDGE_MM, MARKER_MM, MARKER_RADIUS_MM, Phantom
from napari_arssr.volume import Box, Grid

# One fold of cortex, white matter and some background, oblique.
TURN = Rotation.from_euler("zyx", [20, -35, 50], degrees=True).as_matrix()


def oblique(shape=(20, 24, 28), spacing=(2.0, 1.5, 1.2), centre=(-40.0, 20.0, 45.0)):
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag(spacing[::-1])
    grid = Grid(shape, affine)
    affine[:3, 3] = np.array(centre) - grid.world([(n - 1) / 2 for n in shape])
    return Grid(shape, affine)


def mirror(point):
    return np.array(point) * [-1, 1, 1]


def test_a_point_has_the_same_intensity_on_every_grid():
    grid = oblique()
    volume = Phantom().sample(grid)
    box = Box((3, 5, 7), (19, 22, 27))
    np.testing.assert_array_equal(
        Phantom().sample(grid.crop(box)).data, volume.data[box.slices], strict=True
    )
    # The same centres counted backwards along x, and with z and x exchanged.
    other = grid.affine[:, [2, 1, 0, 3]].copy()
    other[:3, 2] *= -1
    other[:3, 3] = grid.world([0, 0, grid.shape[2] - 1])
    exchanged = Phantom().sample(Grid(grid.shape[::-1], other))
    np.testing.assert_allclose(exchanged.data, volume.data.T[::-1], atol=1e-3)
    assert volume.data.std() > 100


def test_a_turned_grid_measures_the_turned_function():
    upright = Grid.from_spacing((12, 40, 40), 3.0)
    affine = np.eye(4)
    affine[:3, :3] = TURN
    turned = Grid(upright.shape, affine @ upright.affine)
    index = np.moveaxis(np.indices(upright.shape), 0, -1)
    expected = Phantom().intensity(upright.world(index) @ TURN.T)
    np.testing.assert_allclose(Phantom().sample(turned).data, expected, atol=1e-3)


def test_a_voxel_is_the_mean_of_its_parts():
    grid = oblique(shape=(5, 7, 9), spacing=(6.0, 3.0, 2.0))
    fine = Phantom().sample(grid.scaled(4)).data.astype(np.float64)
    expected = fine.reshape(5, 4, 7, 4, 9, 4).mean(axis=(1, 3, 5))
    measured = Phantom().sample(grid, oversampling=4)
    assert measured.grid == grid
    np.testing.assert_allclose(measured.data, expected, atol=1e-3)


def test_finer_parts_converge():
    grid = oblique(shape=(4, 8, 8), spacing=(3.0, 3.0, 3.0))
    limit = Phantom().sample(grid, oversampling=9).data
    errors = [
        np.abs(Phantom().sample(grid, oversampling=parts).data - limit).mean()
        for parts in (1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20
    assert errors[-1] < errors[0] / 5


def test_it_is_finite_and_zero_outside_the_brain():
    for seed in range(4):
        grid = Phantom.grid(4.0)
        data = Phantom(seed, "t2").sample(grid).data
        assert np.isfinite(data).all()
        assert data.min() == 0
        assert 800 < data.max() < 1050
        inner = data[1:-1, 1:-1, 1:-1]
        assert np.count_nonzero(data) == np.count_nonzero(inner)  # the grid holds the whole brain
        assert 900e3 < np.count_nonzero(data) * 4.0**3 < 1800e3  # mm³: a human brain
    assert not Phantom().intensity([[500, 0, 0], [0, -1e6, 0], [79, 97, 79]]).any()


def test_all_tissues_are_there():
    data = Phantom(1).sample(Phantom.grid(2.5)).data
    brain = data[data > 0]
    share = {
        name: np.mean(np.abs(brain / level - 1) < 0.08)
        for name, level in {"fluid": 170, "cortex": 560, "white": 860}.items()
    }
    assert 0.08 < share["fluid"] < 0.35
    assert 0.2 < share["cortex"] < 0.5
    assert 0.2 < share["white"] < 0.5
    # Deep grey matter is neither; the middle of each is where the text says it is, ± a bend.
    for centre, level in (((11, -17, 8), 690), ((27, 4, 3), 630), ((20, 0, 1), 760)):
        for side in (1, -1):
            around = np.array(centre) * [side, 1, 1] + np.mgrid[-3:4, -3:4, -3:4].reshape(3, -1).T
            assert (np.abs(Phantom(1).intensity(around) / level - 1) < 0.08).mean() > 0.3


@pytest.mark.parametrize("seed", [0, 1, 29])
def test_the_marker_is_on_the_left_only(seed):
    assert MARKER_MM[0] < 0  # R+ points to the right
    around = Rotation.random(50, rng=0).apply([1, 0, 0])
    within = (MARKER_RADIUS_MM - EDGE_MM) * np.vstack([around, 0 * around[:1]])
    left = Phantom(seed).intensity(MARKER_MM + within)
    right = Phantom(seed).intensity(mirror(MARKER_MM) + within)
    np.testing.assert_allclose(left, 420, rtol=0.08)
    np.testing.assert_allclose(right, 860, rtol=0.08)
    # Half of each on the surface: the radius is what it says.
    surface = Phantom(seed).intensity(MARKER_MM + MARKER_RADIUS_MM * around)
    np.testing.assert_allclose(surface, 640, rtol=0.08)


def test_a_grid_that_swaps_left_and_right_shows():
    grid = Grid.from_spacing((2, 40, 80), 1.0)
    affine = grid.affine.copy()
    affine[2, 3] = MARKER_MM[2]
    swapped = affine.copy()
    swapped[0] *= -1
    right, wrong = (Phantom().sample(Grid(grid.shape, a)).data for a in (affine, swapped))
    assert np.abs(right - wrong).max() > 300
    np.testing.assert_allclose(right, wrong[..., ::-1], atol=1e-3)


def test_lesions_are_small_many_and_surrounded_by_white_matter():
    phantom = Phantom(2, "flair")
    radii = [lesion.radius for lesion in phantom.lesions]
    assert len(radii) >= 20
    assert 0.5 <= min(radii) < 0.8
    assert 2 < max(radii) <= 3
    assert phantom.lesions[0].centre == MARKER_MM
    directions = Rotation.random(30, rng=1).apply([1, 0, 0])
    for lesion in phantom.lesions:
        inside = lesion.centre + (lesion.radius - EDGE_MM / 2) * directions
        outside = lesion.centre + (lesion.radius + EDGE_MM / 2) * directions
        np.testing.assert_allclose(phantom.intensity(inside), 880, rtol=0.1)
        np.testing.assert_allclose(phantom.intensity(outside), 450, rtol=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_there_is_no_jump_anywhere(seed):
    """Halve segments that cross an edge, always keeping the steeper half: a jump would stay."""
    phantom, random = Phantom(seed), np.random.default_rng(seed)
    a = random.uniform([-68, -86, -70], [68, 86, 70], size=(60_000, 3))
    b = a + random.normal(scale=0.2, size=a.shape)
    at_a, at_b = phantom.intensity(a), phantom.intensity(b)
    crossing = np.abs(at_a - at_b) > 15
    assert crossing.sum() > 3000
    a, b, at_a, at_b = a[crossing], b[crossing], at_a[crossing], at_b[crossing]
    for _ in range(20):
        middle = (a + b) / 2
        value = phantom.intensity(middle)
        first = np.abs(at_a - value) > np.abs(value - at_b)
        at_a, at_b = np.where(first, at_a, value), np.where(first, value, at_b)
        first = first[:, None]
        a, b = np.where(first, a, middle), np.where(first, middle, b)
    assert np.abs(at_a - at_b).max() < 0.1


def test_no_deep_structure_is_cut_off_by_its_block():
    random = np.random.default_rng(0)
    for axis in range(3):
        face = random.uniform(-0.5, 0.5, size=(3, 50_000))
        face[axis] = np.copysign(0.5, face[axis])
        points = module._BLOCK_CENTRE + module._BLOCK_SIZE * face
        for tissue, distance in module._deep_structures(points):
            assert distance.max() < -EDGE_MM, tissue


def test_edges_are_as_wide_as_stated():
    random = np.random.default_rng(3)
    a = random.uniform([-60, -80, -40], [60, 80, 60], size=(200_000, 3))
    step = 1e-3 * Rotation.random(len(a), rng=3).apply([1, 0, 0])
    slope = np.abs(Phantom().intensity(a + step) - Phantom().intensity(a)) / 1e-3
    # A smoothstep over EDGE_MM between brain (920 at most) and nothing is at its middle:
    steepest = 1.5 / EDGE_MM * 920
    # A quarter more where shapes bend; far more only where first-order distances fail.
    assert np.percentile(slope, 99.99) < 1.25 * steepest
    assert slope.max() < 5 * steepest
    assert np.percentile(slope, 99.9) > steepest / 4  # and edges are not blurred away


def test_sulci_are_as_thin_as_stated():
    step = 0.05
    along = np.arange(-3, 3, step)
    random = np.random.default_rng(5)
    points = random.uniform([-60, -75, 0], [60, 75, 60], size=(2000, 1, 3))
    directions = Rotation.random(2000, rng=5).apply([1, 0, 0])[:, None]
    dark = Phantom().intensity(points + along[:, None] * directions) < (170 + 560) / 2
    widths = []
    for line in dark:
        ends = np.flatnonzero(np.diff(line.astype(int)))
        if len(ends) == 2 and not line[0]:  # goes in and comes out again
            widths.append((ends[1] - ends[0]) * step)
    assert len(widths) > 100
    # The few shorter chords cut off a tip.
    assert 0.5 < np.percentile(widths, 5) < 0.75
    assert 0.9 < np.median(widths) < 2.5


def test_seeds_are_other_subjects_and_contrasts_the_same_one():
    grid = Phantom.grid(5.0)
    t1, other = Phantom(0).sample(grid).data, Phantom(1).sample(grid).data
    assert np.corrcoef(t1.ravel(), other.ravel())[0, 1] < 0.95
    np.testing.assert_array_equal(t1, Phantom(0).sample(grid).data)
    t2, flair = Phantom(0, "t2").sample(grid).data, Phantom(0, "flair").sample(grid).data
    np.testing.assert_array_equal(t1 > 0, t2 > 0)
    np.testing.assert_array_equal(t1 > 0, flair > 0)
    fluid, white = (t1 > 0) & (t1 < 200), t1 > 820
    assert t2[fluid].mean() > 2 * t2[white].mean()
    assert flair[fluid].mean() < flair[white].mean() / 2
    assert Phantom(0).lesions == Phantom(0, "t2").lesions


def test_left_and_right_are_alike_but_not_equal():
    grid = Grid.from_spacing((30, 50, 51), 2.5)
    data = Phantom().sample(grid).data
    same = np.corrcoef(data.ravel(), data[..., ::-1].ravel())[0, 1]
    assert 0.5 < same < 0.95


def test_noise_is_rician_inside_and_absent_outside():
    grid = Grid.from_spacing((24, 48, 48), 4.0)
    clean = Phantom().sample(grid).data
    noisy = Phantom().sample(grid, noise=30.0, seed=4).data
    brain = clean > 300
    difference = (noisy - clean)[brain]
    assert difference.std() == pytest.approx(30, rel=0.05)
    # To first order the mean of a Rician lies σ²/2A above A.
    assert difference.mean() == pytest.approx((30**2 / 2 / clean[brain]).mean(), abs=1.0)
    assert not noisy[clean == 0].any()
    np.testing.assert_array_equal(noisy, Phantom().sample(grid, noise=30.0, seed=4).data)
    assert (noisy != Phantom().sample(grid, noise=30.0, seed=5).data)[brain].all()


def test_memory_does_not_grow_with_the_parts():
    grid = Grid.from_spacing((32, 32, 32), 8.0)
    Phantom().lesions  # noqa: B018 -- made once, kept
    tracemalloc.start()
    Phantom().sample(grid, oversampling=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6  # all points at once are 50 MB before any arithmetic


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Phantom(contrast="pd"), "no contrast 'pd'"),
        (lambda: Phantom(seed=-1), "not -1"),
        (lambda: Phantom().intensity([0, 0]), "three coordinates"),
        (lambda: Phantom().intensity(0), "three coordinates"),
        (lambda: Phantom().intensity([[0, 0, np.nan]]), "not finite"),
        (lambda: Phantom().sample(oblique(), oversampling=0), "not 0"),
        (lambda: Phantom().sample(oblique(), oversampling=1.5), r"not 1\.5"),
        (lambda: Phantom().sample(oblique(), noise=-1), "not -1"),
        (lambda: Phantom().sample(oblique(), noise=np.nan), "not nan"),
        (lambda: replace(Phantom(), contrast="T1"), "choose t1, t2, flair"),
    ],
)
def test_wrong_use_is_said_plainly(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_any_shape_of_points_will_do():
    assert Phantom().intensity(np.zeros((0, 3))).shape == (0,)
    assert Phantom().intensity(MARKER_MM).shape == ()
    points = np.random.default_rng(0).uniform(-60, 60, size=(3, 4, 5, 3))
    values = Phantom().intensity(points)
    assert values.shape == (3, 4, 5)
    assert values[1, 2, 3] == pytest.approx(Phantom().intensity(points[1, 2, 3]), abs=1e-9)
