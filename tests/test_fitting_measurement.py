from dataclasses import replace

import numpy as np
import pytest
from fitting_case import CENTRE, GRID, stack, three, truth
from scipy.spatial.transform import Rotation

from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import UsageError
from napari_arssr.fitting.measurement import (
    Measurement,
    interpolation_matrix,
    quadrature,
    refine,
    refine_adjoint,
)
from napari_arssr.fitting.poses import (
    angles,
    displacement,
    parameters_of,
    rigid,
    typical_motion,
)
from napari_arssr.fitting.stacks import prepare
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Grid

SLAB = ScannerModel("slice-profile")
TURN = (0.08, -0.05, 0.03, 1.5, -2.0, 1.0)


def prepared(**options):
    return prepare(three(**options), Normalizer())[0]


def measured(stacks, motions=None, scanner=SLAB):
    motions = motions or [one.still for one in stacks]
    return Measurement(GRID, stacks, motions, scanner)


def turned(stacks):
    """The second stack as a whole, and one slice of the third."""
    motions = [one.still for one in stacks]
    motions[1] = rigid(TURN, CENTRE) @ motions[1]
    motions[2][4] = rigid(TURN, CENTRE)
    return motions


def random_volume(seed=0):
    return np.random.default_rng(seed).normal(size=GRID.shape).astype(np.float32)


@pytest.mark.parametrize("moved", [False, True])
def test_the_adjoint_is_the_transpose(moved):
    stacks = prepared()
    # Some voxels do not count.
    stacks[0] = replace(stacks[0], rows=stacks[0].rows[::3])
    operator = measured(stacks, turned(stacks) if moved else None)
    volume = random_volume()
    random = np.random.default_rng(1)
    values = [random.normal(size=len(s.rows)).astype(np.float32) for s in stacks]
    seen = operator.forward(volume)
    one = sum(float(np.vdot(a, b)) for a, b in zip(seen, values, strict=True))
    other = float(np.vdot(volume, operator.adjoint(values)))
    assert one == pytest.approx(other, rel=1e-4)
    fine = random.normal(size=refine(volume).shape).astype(np.float32)
    assert float(np.vdot(refine(volume), fine)) == pytest.approx(
        float(np.vdot(volume, refine_adjoint(fine))), rel=1e-3
    )


def test_an_aligned_stack_sees_the_mean_over_its_slices():
    stacks = prepared()
    volume = random_volume()
    (seen, _, _) = measured(stacks).forward(volume)
    means = volume.reshape(8, 4, 36, 32).mean(axis=1)
    np.testing.assert_allclose(seen.reshape(8, 36, 32), means, atol=1e-5)


def test_turned_and_aligned_stacks_are_measured_alike():
    stacks = prepared()
    motions = [s.still for s in stacks]
    for motion in motions:
        motion[:, :3, 3] += np.random.default_rng(0).normal(scale=1e-4, size=(len(motion), 3))
    aligned = measured(stacks).forward(truth().data)
    sparse = measured(stacks, motions)
    assert all(type(p).__name__ == "_Sparse" for p in sparse._parts)
    for one, other in zip(aligned, sparse.forward(truth().data), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_a_moved_stack_sees_the_truth_where_it_was():
    """Against the phantom itself, which was measured without this operator."""
    volumes = [stack(0), stack(1, motion=TURN)]
    stacks = prepare(volumes, Normalizer())[0]
    right = [stacks[0].still, rigid(TURN, CENTRE) @ stacks[1].still]
    for motions, most in ((right, 0.03), ([s.still for s in stacks], 1.0)):
        operator = measured(stacks, motions)
        seen = operator.forward(truth().data)[1]
        inside = operator.inside[1] > 0
        error = np.sqrt(np.mean((stacks[1].values - seen)[inside] ** 2))
        assert error < most
    assert error > 0.1  # the wrong place is seen to be wrong
    assert 0.5 < inside.mean() <= 1


def test_voxels_that_reach_out_of_the_volume_do_not_count():
    stacks = prepared()
    motions = [s.still for s in stacks]
    motions[0] = rigid((0, 0, 0, 0, 0, 6.4), CENTRE) @ motions[0]  # one slice up
    inside = measured(stacks, motions).inside[0].reshape(8, 36, 32)
    assert inside[:7].all()
    assert not inside[7].any()


def test_a_constant_volume_is_seen_as_constant():
    stacks = prepared()
    ones = np.ones(GRID.shape, dtype=np.float32)
    for scanner in (SLAB, ScannerModel("gaussian"), ScannerModel("cubic"), ScannerModel("kspace")):
        for seen in measured(stacks, turned(stacks), scanner).forward(ones):
            np.testing.assert_allclose(seen, 1, atol=1e-4)


def test_faint_ends_of_a_profile_may_reach_out_of_the_volume():
    stacks = prepared()
    for scanner, counted in (
        (SLAB, range(8)),
        (ScannerModel("gaussian"), range(1, 7)),
        (ScannerModel("kspace"), range(2, 6)),  # by 4 slices to either side
        (ScannerModel("slice-profile", 3), range(1, 7)),
    ):
        still = measured(stacks, scanner=scanner).inside[0].reshape(8, 36, 32)
        assert [number for number in range(8) if still[number].any()] == list(counted)
        turned_alike = [s.still for s in stacks]
        turned_alike[0] = rigid((0, 0, 0.3, 0, 0, 0), CENTRE) @ turned_alike[0]
        askew = measured(stacks, turned_alike, scanner).inside[0].reshape(8, 36, 32)
        assert [number for number in range(8) if askew[number, 18, 16]] == list(counted)


@pytest.mark.parametrize(
    "scanner",
    [ScannerModel("kspace", 3), ScannerModel("gaussian", 20), replace(SLAB, width=1e12)],
)
@pytest.mark.parametrize("moved", [False, True])
def test_a_profile_that_no_voxel_has_room_for_is_refused(scanner, moved):
    stacks = prepared()
    with pytest.raises(UsageError) as refusal:
        measured(stacks, turned(stacks) if moved else None, scanner)
    text = str(refusal.value)
    assert f"The slice profile {scanner.text} reaches from every voxel" in text
    assert "32 × 36 × 32 voxels of 1.6 × 1.6 × 1.6 mm" in text
    assert "choose a narrower one" in text


def test_a_profile_longer_than_the_volume_is_refused_before_its_points_are_looked_for(monkeypatch):
    def work(*_arguments):
        raise AssertionError("the work began")

    monkeypatch.setattr("napari_arssr.fitting.measurement._part_of", work)
    with pytest.raises(UsageError, match="slice profile gaussian:50 reaches from every voxel"):
        measured(prepared(), scanner=ScannerModel("gaussian", 50))


def test_a_profile_is_seen_as_finely_as_the_volume_is_along_it():
    """Voxels that are long across the first stack's slices, and short along the others'."""
    stacks = prepared()
    grid = GRID.scaled([1 / 4, 1, 1])
    volume = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    still = [s.still for s in stacks]
    seen = Measurement(grid, stacks, still, SLAB).forward(volume)
    # Its slices are the volume's: they are seen as they are, not through a profile once more.
    np.testing.assert_allclose(seen[0].reshape(grid.shape), volume, atol=1e-6)
    means = volume.reshape(8, 9, 4, 32).mean(axis=2)
    coronal = seen[1].reshape(9, 32, 32)[:, 1::4]  # near the middles of the long voxels
    assert np.corrcoef(coronal.ravel(), means.transpose(1, 0, 2).ravel())[0, 1] > 0.95
    # Where it was put counts, not where its file says that it is.
    quarter = rigid((np.pi / 2, 0, 0, 0, 0, 0), CENTRE)
    turned_back = Measurement(grid, [stacks[1]], [quarter @ still[1]], SLAB)
    assert turned_back._profiles[0][0][0].tolist() == [0]
    # One for all of a fit, so that what is left of the data can be compared.
    (there,) = turned_back.moved(0, still[1]).forward(volume)
    (centres,) = Measurement(grid, [stacks[1]], [still[1]], ScannerModel("cubic")).forward(volume)
    np.testing.assert_array_equal(there, centres)


def test_a_quadrature_has_the_profile_s_width():
    offsets, weights = quadrature(SLAB, 4, GRID, 6.4)
    np.testing.assert_allclose(offsets, [-0.375, -0.125, 0.125, 0.375])
    np.testing.assert_allclose(weights, 0.25)
    offsets, weights = quadrature(ScannerModel("gaussian"), 6, GRID, 9.6)
    assert weights.sum() == pytest.approx(1)
    deviation = np.sqrt((weights * offsets**2).sum())
    assert 2.355 * deviation == pytest.approx(1, rel=0.05)
    assert quadrature(SLAB, 1.2, GRID, 1.92)[0].tolist() == [0]


def test_interpolation_is_exact_at_voxels_and_for_straight_lines():
    matrix = interpolation_matrix(np.array([0.0, 3.0, 2.25, 4.5, 9.0, -3.0]), 10)
    line = np.arange(10, dtype=np.float32)
    np.testing.assert_allclose(matrix @ line, [0, 3, 2.25, 4.5, 9, 0], atol=1e-6)
    # Beside a kink, better than linear interpolation.
    x = np.arange(40) / 6
    coordinates = np.arange(2, 37) + 0.5
    cubic = interpolation_matrix(coordinates, 40) @ np.sin(x).astype(np.float32)
    linear = np.interp(coordinates, np.arange(40), np.sin(x))
    exact = np.sin(coordinates / 6)
    assert np.abs(cubic - exact).max() < 0.2 * np.abs(linear - exact).max()


def test_a_volume_of_one_plane_is_refused():
    stacks = prepared()
    with pytest.raises(UsageError, match="two voxels along every axis"):
        Measurement(Grid((1, 36, 32), GRID.affine), stacks, [s.still for s in stacks], SLAB)


# --------------------------------------------------------------------------------- poses


def test_motions_and_their_parameters_find_back():
    random = np.random.default_rng(0)
    parameters = random.uniform(-0.5, 0.5, size=(5, 6)) * [1, 1, 1, 20, 20, 20]
    centres = random.normal(scale=30, size=(5, 3))
    motions = rigid(parameters, centres)
    np.testing.assert_allclose(parameters_of(motions, centres), parameters, atol=1e-9)
    moved = np.einsum("nij,nj->ni", motions[:, :3, :3], centres) + motions[:, :3, 3]
    np.testing.assert_allclose(moved, centres + parameters[:, 3:])
    turns = Rotation.from_rotvec(parameters[:, :3]).as_matrix()
    np.testing.assert_allclose(motions[:, :3, :3], turns)


def test_distance_and_angle_between_motions():
    still = np.eye(4)
    shifted = rigid((0, 0, 0, 3, 4, 0), (0, 0, 0))
    points = np.random.default_rng(0).normal(size=(9, 3))
    assert displacement(still, shifted, points) == pytest.approx(5)
    assert angles(still, rigid((0, np.radians(7), 0, 1, 2, 3), CENTRE)) == pytest.approx(7)


def test_slices_that_moved_alone_do_not_draw_the_typical_motion_to_them():
    motions = np.tile(rigid(TURN, CENTRE), (10, 1, 1))
    for number in (2, 5, 7):
        motions[number] = rigid((0.1, 0.1, 0, 5, 5, number), CENTRE) @ motions[number]
    found = typical_motion(motions, np.ones(10), CENTRE)
    points = np.array(CENTRE) + 40 * np.eye(3)
    assert displacement(found, motions[0], points) < 0.15
    mean = parameters_of(motions, CENTRE).mean(axis=0)
    assert displacement(rigid(mean, CENTRE), motions[0], points) > 1
