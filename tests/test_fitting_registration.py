from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from fitting_case import CENTRE, GRID, STILL, brain, stack, three

from napari_arssr import fitting, io
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.fitting.alignment import POOR, align, read_motions, write_motions
from napari_arssr.fitting.poses import angles, displacement, rigid
from napari_arssr.fitting.registration import compare, overlap, read_motion, register, write_motion
from napari_arssr.fitting.stacks import prepare
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Grid, Volume

MOVED = (0.05, -0.06, 0.04, 2.0, -3.0, 2.5)  # 2.9°, 3.4°, 2.3°
POINTS = GRID.world(np.argwhere(brain())[::97])


def left(found, motion):
    return float(displacement(found, rigid(motion, CENTRE), POINTS))


@pytest.mark.parametrize("metric", ["correlation", "mutual-information"])
def test_a_moved_stack_is_found(metric):
    reference, moving = stack(0), stack(1, motion=MOVED, gain=1.7, noise=0.01)
    assert left(np.eye(4), MOVED) > 4
    found = register(reference, moving, metric=metric)
    assert left(found, MOVED) < 0.6
    assert angles(found, rigid(MOVED, CENTRE)) < 1
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("metric", ["correlation", "mutual-information"])
def test_registration_ends_alike_each_time(metric, monkeypatch):
    monkeypatch.setattr("napari_arssr.fitting.registration._SAMPLES", 5000)  # of 36,000
    stacks = stack(0), stack(1, motion=MOVED, noise=0.01)
    one, same, other = (register(*stacks, metric=metric, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def without(volume, axis, numbers):
    """A stack some of whose slices hold nothing."""
    data = np.moveaxis(volume.data.copy(), axis, 0)
    data[list(numbers)] = 0
    return replace(volume, data=np.moveaxis(data, 0, axis))


@pytest.mark.parametrize("metric", ["correlation", "mutual-information"])
@pytest.mark.parametrize(
    ("of_reference", "of_moving"),
    [((2, 5), ()), ((4,), (4,)), ((), (5, 6)), ((0, 7), (0, 8))],
)
def test_empty_slices_do_not_move_a_stack(metric, of_reference, of_moving):
    reference = without(stack(0), 0, of_reference)
    moving = without(stack(1, motion=MOVED, gain=1.7, noise=0.01), 1, of_moving)
    assert left(register(reference, moving, metric=metric), MOVED) < 1.2


@pytest.mark.parametrize(("of_reference", "of_moving"), [((3, 4), ()), ((), (4,))])
def test_empty_slices_are_not_looked_at_whatever_they_are_filled_with(
    of_reference, of_moving, monkeypatch
):
    monkeypatch.setattr("napari_arssr.fitting.registration.filled", lambda data, _empty: data)
    reference = without(stack(0), 0, of_reference)
    moving = without(stack(1, motion=MOVED, gain=1.7, noise=0.01), 1, of_moving)
    assert left(register(reference, moving), MOVED) < 0.6


@pytest.mark.parametrize("numbers", [(4,), (3, 4), (0, 1, 7), (1, 3, 5, 7)])
def test_empty_slices_have_no_say_in_likeness_and_brightness(numbers):
    other = stack(1, gain=2.5)
    whole = compare(stack(0), other, np.eye(4))
    for found in (
        compare(without(stack(0), 0, numbers), other, np.eye(4)),
        compare(stack(0), without(other, 1, numbers), np.eye(4)),
    ):
        assert found.gain == pytest.approx(whole.gain, rel=0.01)
        assert found.correlation > whole.correlation - 0.03


def in_a_wide_field(volume, floor):
    """A stack in the middle of noise twice as wide, deep and high."""
    margins = [(n // 2, n // 2) for n in volume.data.shape]
    data = np.pad(volume.data, margins)
    random = np.random.default_rng(0)
    one, other = floor * random.standard_normal((2, *data.shape))
    affine = volume.affine.copy()
    affine[:3, 3] = volume.grid.world([-before for before, _ in margins])
    return Volume(np.hypot(data + one, other).astype(np.float32), affine, name=volume.name)


def test_the_background_of_a_small_subject_has_no_say_in_brightness():
    reference, other = (
        in_a_wide_field(stack(axis), floor) for axis, floor in ((0, 0.05), (1, 0.02))
    )
    found = compare(reference, replace(other, data=2 * other.data), np.eye(4))
    assert found.gain == pytest.approx(0.5, rel=0.03)
    assert found.correlation > 0.95


def test_a_stack_that_is_in_place_stays_there():
    assert left(register(stack(0), stack(2)), STILL) < 0.4


def test_registration_can_start_from_a_motion():
    near = rigid(np.add(MOVED, (0.01, 0, 0, 0.3, 0, 0)), CENTRE)
    found = register(stack(0), stack(1, motion=MOVED), start=near)
    assert left(found, MOVED) < 0.6


def test_agreement_tells_brightness_and_likeness():
    agreement = compare(stack(0), stack(1, gain=2.5), np.eye(4))
    assert agreement.gain == pytest.approx(0.4, rel=0.02)
    assert agreement.correlation > 0.95
    assert agreement.share == pytest.approx(1)
    # What lies outside a mask, a mother around her child, has no say.
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 8:28, 8:24] = 1
    mask = Volume(inside, GRID.affine, name="mask")
    other = stack(1)
    far = fitting.stacks.inside_of(mask).reshape(32, 9, 4, 32).max(axis=2) == 0
    louder = Volume(np.where(far, 3 * other.data, other.data), other.affine, name="louder")
    assert compare(stack(0), louder, np.eye(4)).gain < 0.8
    assert compare(stack(0), louder, np.eye(4), mask=mask).gain == pytest.approx(1, abs=0.05)
    found = align(prepare([stack(0), louder], Normalizer())[0], registered=True, mask=mask)
    assert found.agreements[1].gain == pytest.approx(1, abs=0.05)
    worse = compare(stack(0), stack(1, motion=MOVED), np.eye(4))
    assert worse.correlation < agreement.correlation - 0.2


def test_another_subject_is_reported_and_not_hidden():
    stacks = prepare([stack(0), stack(1, seed=3), stack(2)], Normalizer())[0]
    aligned = align(stacks)
    assert aligned.agreements[1].correlation < POOR < aligned.agreements[2].correlation
    (warning,) = aligned.warnings
    assert "coronal.nii.gz agrees poorly with axial.nii.gz" in warning
    assert f"{aligned.agreements[1].correlation:.2f}" in warning


def test_stacks_come_out_as_bright_as_the_reference():
    volumes = [stack(0), stack(1, gain=3.0), stack(2, gain=0.2)]
    stacks = prepare(volumes, Normalizer())[0]
    aligned = align(stacks, registered=True)
    assert [s.gain for s in aligned.stacks] == pytest.approx([1, 1 / 3, 5], rel=0.03)
    np.testing.assert_allclose(
        aligned.stacks[1].values, stacks[1].values * aligned.stacks[1].gain, rtol=1e-6
    )
    assert all((motion == np.eye(4)).all() for motion in aligned.motions)


def test_stacks_that_do_not_overlap_are_refused():
    far = stack(1)
    affine = far.affine.copy()
    affine[0, 3] += 400
    apart = Volume(far.data, affine, name="far.nii.gz")
    assert overlap(stack(0).grid, apart.grid) == 0
    with pytest.raises(UsageError, match=r"far.nii.gz does not overlap axial.nii.gz"):
        register(stack(0), apart)
    for register_them in (True, False):
        with pytest.raises(UsageError, match="does not overlap"):
            fitting.fit([stack(0), apart], fitting.Settings("srr", register=register_them))


def test_overlap_is_a_share_of_the_other_span():
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    half = grid.moved(rigid((0, 0, 0, 10, 0, 0), (0, 0, 0)))
    assert overlap(grid, half) == pytest.approx(0.5, abs=0.03)
    assert overlap(grid, grid) == 1


def test_a_transform_is_written_read_and_means_to_itk_what_it_means_here(tmp_path):
    motion = rigid(MOVED, CENTRE)
    write_motion(tmp_path / "t.tfm", motion)
    np.testing.assert_allclose(read_motion(tmp_path / "t.tfm"), motion, atol=1e-6)
    # ITK resamples the moved stack to the reference with it.
    moved = stack(1, motion=MOVED)
    io.write(tmp_path / "moved.nii.gz", moved)
    io.write(tmp_path / "still.nii.gz", stack(1))
    fixed = sitk.ReadImage(str(tmp_path / "still.nii.gz"))
    moving = sitk.ReadImage(str(tmp_path / "moved.nii.gz"))
    transform = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    there = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear))
    still = sitk.GetArrayFromImage(fixed)
    raw = sitk.GetArrayFromImage(moving)
    inner = (slice(5, -5), slice(2, -2), slice(5, -5))

    def likeness(other):
        return np.corrcoef(still[inner].ravel(), other[inner].ravel())[0, 1]

    assert likeness(there) > 0.8
    assert likeness(there) > likeness(raw) + 0.15


def test_a_folder_of_transforms_finds_back_to_its_stacks(tmp_path):
    names = ["a.nii.gz", "folder/a.nii.gz"]
    motions = [np.eye(4), rigid(MOVED, CENTRE)]
    paths = write_motions(tmp_path / "new", names, motions)
    assert [path.name for path in paths] == ["1_a.tfm", "2_a.tfm"]
    found = read_motions(tmp_path / "new", names)
    np.testing.assert_allclose(found, motions, atol=1e-6)
    with pytest.raises(FileError, match="does not exist"):
        read_motions(tmp_path / "new", ["b.nii.gz"])


def test_files_that_are_no_rigid_transform_are_refused(tmp_path):
    (tmp_path / "text.tfm").write_text("nothing of the kind")
    with pytest.raises(FileError, match="not a transform"):
        read_motion(tmp_path / "text.tfm")
    affine = sitk.AffineTransform(3)
    affine.Scale(1.1)
    sitk.WriteTransform(affine, str(tmp_path / "affine.tfm"))
    with pytest.raises(FileError, match="not a rigid transform"):
        read_motion(tmp_path / "affine.tfm")
    with pytest.raises(FileError, match="cannot be written"):
        write_motion(tmp_path / "no" / "such" / "folder.tfm", np.eye(4))


def test_registration_can_be_stopped():
    with pytest.raises(Cancelled):
        align(prepare(three(), Normalizer())[0], stop=lambda: True)
