from dataclasses import replace

import numpy as np
import pytest
from fitting_case import CENTRE, GRID, STILL, brain, stack, three, truth

from napari_arssr import fitting
from napari_arssr.degradation import ScannerModel
from napari_arssr.evaluation import psnr
from napari_arssr.fitting.alternation import _only_where_it_helps
from napari_arssr.fitting.measurement import Measurement
from napari_arssr.fitting.poses import displacement, rigid
from napari_arssr.fitting.refinement import row_weights, slice_weights
from napari_arssr.fitting.srr import Prior, Problem
from napari_arssr.fitting.stacks import prepare
from napari_arssr.normalization import Normalizer

MOVED = (0.05, -0.06, 0.04, 2.0, -3.0, 2.5)
ALONE = (0.06, 0.03, -0.05, 2.0, 1.0, -2.0)
POINTS = GRID.world(np.argwhere(brain())[::97])


def settings(method="default", **options):
    return fitting.Settings(method, spacing=1.6, network_prior=False, **options)


def score(state):
    result = state.field().sample(GRID).data
    return psnr(truth().data, result, mask=brain(), data_range=1.0)


def left(record, motion):
    """How far each slice of a stack is from where it was."""
    expected = np.tile(rigid(motion, CENTRE), (len(record.weight), 1, 1))
    return displacement(record.motion, expected, POINTS)


@pytest.fixture(scope="module")
def moving():
    """A stack that moved between scans, and one slice that moved within one."""
    return [
        stack(0, noise=0.01),
        stack(1, noise=0.01, motion=MOVED, gain=1.5),
        stack(2, noise=0.01, slices=((3, ALONE),)),
    ]


@pytest.fixture(scope="module")
def refined(moving):
    return fitting.fit(moving, settings())


def test_a_slice_that_moved_alone_is_found(refined):
    expected = rigid(ALONE, CENTRE)
    before = displacement(np.eye(4), expected, POINTS)
    after = displacement(refined.stacks[2].motion[3], expected, POINTS)
    assert before > 3
    assert after < 0.5
    assert np.delete(left(refined.stacks[2], STILL), 3).max() < 0.5
    assert refined.stacks[2].suspects == []  # found, it is as good as the others


def test_a_stack_that_moved_as_a_whole_is_found_and_the_reference_stays(refined):
    assert left(refined.stacks[0], STILL).max() < 0.35
    apart = left(refined.stacks[1], MOVED)
    assert np.median(apart) < 0.3
    assert np.sort(apart)[-2] < 0.6  # the outermost slice hardly overlaps the others
    whole = refined.stacks[1].whole_motion
    assert displacement(whole, rigid(MOVED, CENTRE), POINTS) < 0.4
    assert displacement(refined.stacks[0].whole_motion, np.eye(4), POINTS) < 0.05


def test_refinement_is_worth_more_than_a_decibel_beside_registration_alone(moving, refined):
    registered = fitting.fit(moving, settings("srr"))
    assert score(refined) > score(registered) + 1


def test_a_subject_of_micrometres_is_fitted_as_one_of_millimetres(moving, refined):
    """What a slice may move, and where steps end, is told in a brain's millimetres."""
    shrunk = np.diag([1e-3, 1e-3, 1e-3, 1.0])
    small = [replace(one, affine=shrunk @ one.affine) for one in moving]
    found = fitting.fit(small, replace(settings(), spacing=1.6e-3))
    for one, other in zip(found.stacks, refined.stacks, strict=True):
        grown = np.linalg.inv(shrunk) @ one.motion @ shrunk
        np.testing.assert_allclose(grown, other.motion, atol=1e-3)


def test_a_slice_that_nobody_else_sees_stays_with_its_stack():
    """A volume fits such a slice wherever it is put: that is no sign that it moved."""
    volumes = three(noise=0.01)
    volumes[0] = stack(0, noise=0.01, slices=((3, ALONE),))
    for number in (1, 2):  # these end where the first slice of the other begins
        volumes[number] = volumes[number].crop(volumes[number].grid.box.with_range(0, 4, 32))
    stacks, _ = prepare(volumes, Normalizer())
    motions = [one.still for one in stacks]
    motions[0][0] = rigid((0, 0, 0, 0, 3.0, 3.0), CENTRE)
    motions[0][3] = rigid(ALONE, CENTRE)
    measurement = Measurement(GRID, stacks, motions, ScannerModel("slice-profile"))
    weights = [np.ones(one.slices) for one in stacks]
    problem = Problem(measurement, [one.values for one in stacks], row_weights(stacks, weights))
    volume = problem.solve(Prior("tv", 3e-3), problem.start())
    kept = _only_where_it_helps(measurement, volume, weights, lambda: False)
    still = np.abs(kept.motions[0] - np.eye(4)).max(axis=(1, 2)) < 0.01
    assert still.tolist() == [True, True, True, False, True, True, True, True]
    np.testing.assert_allclose(kept.motions[0][3], motions[0][3])


def test_stacks_as_a_whole_can_be_all_that_moves(moving):
    state = fitting.fit(moving, settings(motion="stacks"))
    for record in state.stacks:
        np.testing.assert_allclose(record.motion, record.motion[:1].repeat(len(record.weight), 0))
    # The slice that moved cannot be followed, so it is believed less.
    weight = state.stacks[2].weight
    assert weight[3] < 0.6 * np.median(weight)
    still = fitting.fit(three(), settings(motion="none", register=False))
    assert all((record.motion == np.eye(4)).all() for record in still.stacks)


def test_spoilt_slices_are_found_and_do_not_spoil_the_volume():
    random = np.random.default_rng(0)
    clean, spoilt = three(noise=0.01), three(noise=0.01)
    spoilt[0].data[5] *= 0.2
    spoilt[1].data[:, 4] = 0.5 * random.random(spoilt[1].data[:, 4].shape)
    state = fitting.fit(spoilt, settings(register=False))
    assert state.stacks[0].suspects == [5]
    assert state.stacks[1].suspects == [4]
    assert state.stacks[2].suspects == []
    assert state.stacks[0].weight[5] < 0.1
    trusting = fitting.fit(spoilt, settings("srr", register=False))
    whole = fitting.fit(clean, settings("srr", register=False))
    assert score(state) > score(trusting) + 3
    assert score(state) > score(whole) - 2


def test_a_slice_is_believed_by_its_error_beside_the_others():
    errors = [np.array([0.02, 0.02, 0.03, 0.05, 0.5, np.nan])]
    (weights,) = slice_weights(errors)
    assert weights[0] > 0.95
    assert weights[4] < 1e-3
    assert weights[5] == 1
    assert (np.diff(weights[:5]) <= 0).all()
    # Where all fits well nothing is an outlier.
    (weights,) = slice_weights([np.array([1e-5, 1e-5, 1e-4])])
    assert weights.min() > 0.999


def test_who_watches_sees_the_volume_sharpen(moving):
    seen, told = [], []
    watch = fitting.Watch(seen=seen.append, measured=lambda *number: told.append(number))
    fitting.fit(moving, settings(), watch=watch)
    assert len(seen) > 3
    assert len(told) == len(seen)
    assert 0 < told[-1][1] < 0.7 * told[0][1] < 0.1  # shares of the range of intensities
    assert all(volume.grid == GRID for volume in seen)
    errors = [np.abs(volume.data - truth().data)[brain()].mean() for volume in seen]
    assert errors[-1] < 0.9 * errors[0]
