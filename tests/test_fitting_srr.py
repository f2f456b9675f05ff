import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from fitting_case import CENTRE, GRID, brain, stack, three, truth
from scipy.ndimage import gaussian_filter

from napari_arssr import fitting
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, OutOfMemory, UsageError
from napari_arssr.evaluation import psnr
from napari_arssr.fitting.anatomy import PASSES
from napari_arssr.fitting.measurement import Measurement
from napari_arssr.fitting.pipeline import askew_stacks, memory_needed
from napari_arssr.fitting.poses import rigid
from napari_arssr.fitting.selection import Choice, Trial, choose_weight, trial_box
from napari_arssr.fitting.srr import Prior, Problem, gradient, gradient_adjoint
from napari_arssr.fitting.stacks import prepare
from napari_arssr.normalization import Normalizer
from napari_arssr.request import nearest_values
from napari_arssr.volume import Grid, Volume

SLAB = ScannerModel("slice-profile")


def problem_of(volumes, grid=GRID):
    stacks = prepare(volumes, Normalizer())[0]
    measurement = Measurement(grid, stacks, [s.still for s in stacks], SLAB)
    ones = [np.ones(len(s.rows), dtype=np.float32) for s in stacks]
    return Problem(measurement, [s.values for s in stacks], ones)


def fitted(volumes, method, **options):
    settings = fitting.Settings(method, spacing=1.6, register=False, motion="none", **options)
    return fitting.fit(volumes, settings)


def score(state):
    result = state.field().sample(GRID).data
    return psnr(truth().data, result, mask=brain(), data_range=1.0)


def test_conjugate_gradients_find_what_a_dense_solver_finds():
    grid = Grid.from_spacing((6, 4, 8), 1.0)
    random = np.random.default_rng(0)
    volumes = []
    for axis in range(3):
        place = grid.scaled([0.5 if a == axis else 1 for a in range(3)])
        data = random.random(place.shape).astype(np.float32)
        volumes.append(Volume(data, place.affine, name=str(axis)))
    problem = problem_of(volumes, grid)
    problem.weights[1] *= np.float32(0.3)
    weights = [w.copy() for w in problem.weights]
    problem = Problem(problem.measurement, problem.values, weights)
    identity = np.eye(grid.size, dtype=np.float32).reshape(-1, *grid.shape)
    columns = [np.concatenate(problem.measurement.forward(one)) for one in identity]
    matrix = np.stack(columns, axis=1).astype(np.float64)
    slopes = [np.concatenate([g.ravel() for g in gradient(one, (1, 1, 1))]) for one in identity]
    rough = np.stack(slopes, axis=1).astype(np.float64)
    omega, values = np.concatenate(weights), np.concatenate(problem.values)
    expected = random.random(grid.shape).astype(np.float32)
    for prior in (Prior("tikhonov", 0.05), Prior("tikhonov", 0.05, expected)):
        curvature = prior.weight * rough.T @ rough
        left = matrix.T @ (omega[:, None] * matrix) + curvature
        right = matrix.T @ (omega * values)
        if prior.expected is not None:
            right += curvature @ prior.expected.ravel()
        exact = np.linalg.solve(left, right).reshape(grid.shape)
        found = problem.solve(prior, problem.start(), rounds=4, iterations=15)
        np.testing.assert_allclose(found, exact, atol=2e-3)
        assert np.abs(problem.start() - exact).max() > 0.05


def test_the_gradient_s_adjoint_is_its_transpose():
    random = np.random.default_rng(0)
    volume = random.normal(size=(5, 6, 7)).astype(np.float32)
    parts = [random.normal(size=volume.shape).astype(np.float32) for _ in range(3)]
    steps = (1.0, 2.0, 0.5)
    one = sum(float(np.vdot(a, b)) for a, b in zip(gradient(volume, steps), parts, strict=True))
    assert one == pytest.approx(float(np.vdot(volume, gradient_adjoint(parts, steps))), rel=1e-4)


def test_total_variation_keeps_an_edge_that_tikhonov_blurs():
    step = np.zeros((24, 24, 24), dtype=np.float32)
    step[12:] = 1
    grid = Grid.from_spacing(step.shape, 1.0)
    random = np.random.default_rng(0)
    volumes = []
    for axis in range(3):
        place = grid.scaled([0.5 if a == axis else 1 for a in range(3)])
        data = SLAB.measure(Volume(step, grid.affine), place).data
        noisy = data + 0.1 * random.standard_normal(data.shape, dtype=np.float32)
        volumes.append(Volume(noisy, place.affine, name=str(axis)))
    problem = problem_of(volumes, grid)
    tv, tikhonov = (
        problem.solve(Prior(name, weight), problem.start())
        for name, weight in (("tv", 0.05), ("tikhonov", 1.0))
    )
    assert np.abs(tv - step).mean() < 0.4 * np.abs(tikhonov - step).mean()
    assert tv[12].mean() - tv[11].mean() > 0.85


def test_total_variation_is_about_the_difference_from_what_is_expected():
    """A texture that stacks of thick slices hardly show survives where it is expected."""
    sharp = truth().data
    texture = 0.1 * (np.indices(sharp.shape).sum(axis=0) % 2).astype(np.float32)
    grid = truth().grid
    problem = problem_of(three(noise=0.02), grid)
    alone = problem.solve(Prior("tv", 0.02), problem.start())
    told = problem.solve(Prior("tv", 0.02, sharp + texture), problem.start())
    inner = brain()
    assert np.corrcoef((told - sharp)[inner], texture[inner])[0, 1] > 0.8
    assert abs(np.corrcoef((alone - sharp)[inner], texture[inner])[0, 1]) < 0.1
    form = problem.roughness(told, Prior("tv", 0.02, sharp))
    difference = problem.roughness(told - sharp, Prior("tv", 0.02))
    np.testing.assert_allclose(form.weights, difference.weights, rtol=1e-5)


def test_srr_is_far_above_interpolation_and_bsplines_above_linear():
    scores = [score(fitted(three(), method)) for method in ("linear", "bspline", "srr")]
    assert scores == sorted(scores)
    assert scores[2] > scores[1] + 4


def test_a_mean_is_that_of_the_stacks_that_reach_a_voxel():
    sharp = truth()
    half = Volume(sharp.data[:16] + 1, sharp.affine, name="half")
    settings = fitting.Settings("linear", spacing=1.6, register=False)
    state = fitting.fit([stack(0), half], settings)
    alone = fitting.fit([stack(0), stack(0)], settings)
    gain = state.stacks[1].gain
    (one, other) = state.base, alone.base
    scale = state.normalizer.high
    np.testing.assert_allclose(one[20:], other[20:], atol=1e-6)
    expected = (other[:15] + half.data[:15] * gain / scale) / 2
    np.testing.assert_allclose(one[:15], expected, atol=1e-4)


def test_the_weight_that_is_chosen_is_nearly_the_best():
    volumes = three(noise=0.04)
    problem = problem_of(volumes)
    stacks = problem.measurement.stacks
    guess = problem.start()
    grid = GRID.crop(trial_box(guess))
    motions = [s.still for s in stacks]
    trial = Trial.of(grid, stacks, motions, SLAB, weights=problem.weights)
    chosen = choose_weight(trial, Prior("tv")).weight

    def quality(weight):
        volume = problem.solve(Prior("tv", weight), guess)
        return psnr(truth().data, volume, mask=brain(), data_range=1.0)

    qualities = {weight: quality(weight) for weight in np.geomspace(1e-4, 0.3, 8)}
    assert quality(chosen) > max(qualities.values()) - 0.1
    assert quality(chosen) > min(qualities.values()) + 2


class Predicted:
    """A trial whose voxels held back are predicted as well as a function of the weight says."""

    def __init__(self, worse):
        random = np.random.default_rng(0)
        self.noise = random.chisquare(1, 2000)
        self.chance = {}
        self.worse, self.random, self.problem = worse, random, self

    def start(self, prior):
        return None

    def solve(self, prior, start, **_options):
        return prior.weight

    def errors(self, weight):
        chance = self.chance.setdefault(weight, 0.1 * self.random.standard_normal(2000))
        return self.noise + chance - chance.mean() + self.worse(weight)

    def choice(self, prior, start, **_options):
        return Choice(prior.weight, start, self.errors(prior.weight))


def test_of_weights_that_predict_alike_the_largest_is_chosen():
    standard_error = 0.1 * np.sqrt(2 / 2000)
    alike = Predicted(
        lambda weight: 1.0 if weight > 0.05 else 0.9 * standard_error * (weight > 2e-3)
    )
    assert 0.025 < choose_weight(alike, Prior("tv")).weight < 0.05
    different = Predicted(lambda weight: 20 * standard_error * (np.log10(weight) + 3) ** 2)
    assert choose_weight(different, Prior("tv")).weight == pytest.approx(1e-3, rel=0.35)


def test_a_choice_surpasses_another_by_more_than_chance():
    random = np.random.default_rng(0)
    volume = np.zeros((2, 2, 2), dtype=np.float32)
    worse = random.chisquare(1, 5000)
    better = Choice(1.0, volume, worse * 0.9)
    assert better.surpasses(Choice(1.0, volume, worse))
    assert not Choice(1.0, volume, worse).surpasses(better)
    chance = Choice(1.0, volume, random.permutation(worse) - 1e-4)
    assert chance.error < worse.mean()
    assert not chance.surpasses(Choice(1.0, volume, worse))


def test_a_profile_that_reaches_far_is_fitted_with_or_refused_and_never_nothing():
    state = fitted(three(), "srr", scanner=ScannerModel("kspace"))
    assert score(state) > 20
    assert state.numbers["noise"] > 0
    for method in ("srr", "default"):
        with pytest.raises(UsageError, match=r"kspace:4 reaches .* choose a narrower one"):
            fitted(three(), method, scanner=ScannerModel("kspace", 4), network_prior=False)


def test_a_stack_that_nothing_is_learnt_from_is_named():
    thickest = stack(2, factor=16)
    wide = replace(SLAB, width=2)
    state = fitted([stack(0, factor=2), thickest], "srr", weight=0.01, scanner=wide)
    (warning,) = state.warnings
    assert warning.startswith(f"{thickest.name}: ")
    assert "narrower profile" in warning


def test_noise_calls_for_more_smoothing():
    weights = [
        fitted(three(noise=noise), "srr").numbers["prior_weight"] for noise in (0.0, 0.02, 0.08)
    ]
    assert weights == sorted(weights)
    assert weights[2] > 10 * weights[0]
    assert fitted(three(), "srr", weight=0.01).numbers["prior_weight"] == 0.01


def test_the_trial_takes_the_part_with_most_in_it():
    volume = np.zeros((100, 60, 30), dtype=np.float32)
    volume[60:90, 30:50, 5:25] = np.random.default_rng(0).random((30, 20, 20))
    box = trial_box(volume)
    assert box.shape == (48, 48, 30)
    assert volume[box.slices].sum() == pytest.approx(volume.sum())


def test_the_map_is_as_large_as_errors_are_and_larger_where_fewer_stacks_see():
    volumes = three(noise=0.03)
    settings = fitting.Settings("srr", spacing=1.6, register=False, weight=0.003)
    whole = fitting.fit(volumes, settings, uncertainty=True)
    inner = brain()
    error = (whole.field().sample(GRID).data - truth().data)[inner]
    typical = np.sqrt((error**2).mean())
    map_ = whole.uncertainty_volume
    assert map_.grid == GRID
    assert 0.5 * typical < np.sqrt((map_.data[inner] ** 2).mean()) < 2.5 * typical
    # The third stack covers one half only.
    volumes[2] = volumes[2].crop(volumes[2].grid.box.with_range(1, 0, 18))
    half = fitting.fit(volumes, settings, uncertainty=True)
    noise = half.numbers["noise"] / whole.numbers["noise"]
    ratio = half.uncertainty_volume.data / map_.data / np.sqrt(noise)
    assert np.median(ratio[:, 22:][inner[:, 22:]]) > 1.05
    assert np.median(ratio[:, :14][inner[:, :14]]) == pytest.approx(1, abs=0.01)


def test_a_map_is_refused_where_there_is_none():
    for options in ({"method": "linear"}, {"method": "irem", "preset": "paper"}):
        with pytest.raises(UsageError, match="no uncertainty map"):
            fitting.fit(three(), fitting.Settings(**options), uncertainty=True)


def network_that_sees(monkeypatch, *volumes):
    """Let the trained network's answers be volumes, one in each pass, as bright as what it sees."""
    asked = []

    def seen(data, grid, network, *, scales, **_options):
        asked.append((grid.shape, network.name))
        answer = nearest_values(volumes[PASSES.index(scales) % len(volumes)], grid)
        return answer * np.float32(np.vdot(answer, data) / np.vdot(answer, answer))

    monkeypatch.setattr("napari_arssr.fitting.anatomy.as_network_sees", seen)
    return asked


def test_the_trained_network_is_asked_and_followed_where_it_predicts_better(monkeypatch):
    volumes = three(noise=0.03)
    alone = fitted(volumes, "default", network_prior=False)
    asked = network_that_sees(monkeypatch, truth())
    helped = fitted(volumes, "default")
    # About the trial, which is all of it here, and the whole; then once more, which is no better.
    assert asked == [(GRID.shape, "default")] * 3
    assert alone.expected is None
    assert helped.expected is not None
    assert score(helped) > score(alone) + 1


def test_a_network_that_knows_more_of_a_better_volume_is_asked_again(monkeypatch):
    assert max(PASSES[1]) < max(PASSES[0])
    volumes = three(noise=0.03)
    blurred = replace(truth(), data=gaussian_filter(truth().data, 1.0))
    network_that_sees(monkeypatch, blurred)
    once = fitted(volumes, "default")
    asked = network_that_sees(monkeypatch, blurred, truth())
    twice = fitted(volumes, "default")
    assert len(asked) == 4
    assert score(twice) > score(once) + 0.5


def test_a_network_that_knows_nothing_is_not_followed(monkeypatch):
    random = np.random.default_rng(0)
    noise = random.random(GRID.shape, dtype=np.float32)
    network_that_sees(monkeypatch, Volume(noise, GRID.affine))
    state = fitted(three(noise=0.03), "default")
    assert state.expected is None


def test_the_trained_network_does_no_harm():
    volumes = three(noise=0.03)
    alone = fitted(volumes, "default", network_prior=False)
    assert score(fitted(volumes, "default")) > score(alone) - 0.05


def test_a_fit_can_be_stopped_at_once_and_later():
    with pytest.raises(Cancelled):
        fitting.fit(three(), watch=fitting.Watch(stop=lambda: True))
    asked = []

    def later():
        asked.append(0)
        return len(asked) > 40

    settings = fitting.Settings("srr", spacing=1.6, register=False)
    with pytest.raises(Cancelled):
        fitting.fit(three(), settings, watch=fitting.Watch(stop=later))
    assert len(asked) == 41


def test_progress_runs_from_0_to_1_and_never_back():
    told = []
    watch = fitting.Watch(progress=lambda share, stage: told.append((share, stage)))
    settings = fitting.Settings(spacing=1.6, motion="stacks")
    fitting.fit(three(), settings, watch=watch, uncertainty=True)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == 1
    assert {"register", "find poses", "reconstruct", "map the uncertainty"} <= {s for _, s in told}


def test_a_volume_beyond_memory_is_refused_before_the_work():
    with pytest.raises(OutOfMemory, match="larger voxel size"):
        fitting.fit(three(), fitting.Settings("srr", spacing=0.01, register=False))


@pytest.mark.parametrize("askew", [0, 2])
def test_a_fit_takes_no_more_memory_than_was_said(askew):
    settings = fitting.Settings("srr", spacing=1.6, register=False)
    motion = rigid((0.05, -0.06, 0.04, 1.0, -1.0, 0.5), CENTRE)
    starts = [np.eye(4)] * (3 - askew) + [motion] * askew
    volumes = three(noise=0.02)
    fitting.fit(volumes, settings, starts=starts)  # what is imported for it is none of it
    tracemalloc.start()
    try:
        fitting.fit(volumes, settings, starts=starts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    needed = memory_needed(GRID, settings, askew)
    assert 0.5 * needed < peak < needed
    assert askew_stacks(GRID, volumes, settings, np.stack(starts)) == askew
    assert askew_stacks(GRID, volumes, replace(settings, register=True), None) == 2
    assert askew_stacks(GRID, volumes, fitting.Settings(), None) == 3
    assert askew_stacks(GRID, volumes, fitting.Settings(motion="none"), np.stack(starts)) == askew


def test_a_mean_takes_less_memory_than_a_reconstruction():
    assert memory_needed(GRID, fitting.Settings("linear")) < 0.5 * memory_needed(
        GRID, fitting.Settings("srr"), askew=0
    )
    assert memory_needed(GRID) == memory_needed(GRID, fitting.Settings())


def test_the_mask_is_brought_to_each_grid_once_however_often_the_volume_is_shown(monkeypatch):
    brought, seen = [], []

    def watched(mask, grid):
        brought.append(grid.shape)
        return nearest_values(mask, grid)

    monkeypatch.setattr("napari_arssr.fitting.pipeline.nearest_values", watched)
    monkeypatch.setattr("napari_arssr.fitting.alternation._FINE", 5000)
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 10:26, 8:24] = 1
    mask = Volume(inside, GRID.affine, name="mask.nii.gz")
    settings = fitting.Settings(
        spacing=1.6, register=False, motion="stacks", network_prior=False, weight=0.003
    )
    fitting.fit(three(), settings, mask=mask, watch=fitting.Watch(seen=seen.append))
    shapes = {volume.grid.shape for volume in seen}
    assert shapes == {(22, 22, 22), (11, 11, 11)}
    assert len(seen) > len(shapes)
    assert sorted(brought) == sorted(shapes)
    for volume in seen:
        kept = nearest_values(mask, volume.grid) != 0
        assert not volume.data[~kept].any()
        assert volume.data[kept].any()


def test_results_come_back_in_the_reference_s_units():
    volumes = three(gain=1000.0)
    state = fitted(volumes, "srr")
    result = state.field().sample(GRID).data / 1000
    assert psnr(truth().data, result, mask=brain(), data_range=1.0) > 27


def test_the_result_is_nothing_outside_a_mask():
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 10:26, 8:24] = 1
    mask = Volume(inside, GRID.affine, name="mask.nii.gz")
    settings = fitting.Settings("srr", spacing=1.6, register=False)
    state = fitting.fit(three(), settings, mask=mask)
    assert state.grid.shape == (22, 22, 22)
    result = state.field().sample(GRID).data
    assert not result[inside == 0].any()
    within = psnr(truth().data, result, mask=inside, data_range=1.0)
    assert within > 27
    empty = replace(mask, data=np.zeros_like(inside))
    with pytest.raises(UsageError, match="this mask is empty"):
        fitting.fit(three(), settings, mask=empty)
