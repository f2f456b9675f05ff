from dataclasses import replace

import numpy as np
import pytest
from fitting_case import CENTRE, GRID, STILL, stack, thick, three, truth

from napari_arssr import fitting, io
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import FileError, UsageError
from napari_arssr.fitting.alternation import coarser
from napari_arssr.fitting.measurement import Measurement
from napari_arssr.fitting.pipeline import output_grid
from napari_arssr.fitting.poses import rigid
from napari_arssr.fitting.registration import Agreement, register
from napari_arssr.fitting.stacks import (
    check,
    empty_slices,
    filled,
    inside_of,
    prepare,
    read_stacks,
    within,
)
from napari_arssr.fitting.state import StackRecord
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Box, Volume


def changed(volume, **changes):
    return replace(volume, **changes)


def with_voxel(volume, value):
    data = volume.data.copy()
    data[1, 2, 3] = value
    return replace(volume, data=data)


def refusal(volumes):
    with pytest.raises(UsageError) as raised:
        check(volumes)
    assert str(raised.value).count("\n") == 0
    return str(raised.value)


def test_good_stacks_pass_the_check():
    check(three())
    check(three()[:2])
    check([*three(), truth()])  # a sharp volume among them may help


def test_what_no_volume_can_be_made_of_is_refused_by_name():
    good = stack(1)
    assert "too few" in refusal([good])
    assert "two or more" in refusal([])
    assert "upsample" in refusal([truth(), truth()])
    assert "axial.nii.gz has a voxel that is not finite" in refusal(
        [with_voxel(stack(0), np.nan), good]
    )
    with pytest.raises(FileError, match=r"^axial\.nii\.gz holds the value 1e\+39, .*float32"):
        check([with_voxel(changed(stack(0), data=stack(0).data.astype(float)), 1e39), good])
    assert "2 frames" in refusal([changed(good, data=np.stack([good.data] * 2)), good])
    assert "0.5 everywhere" in refusal([good, changed(good, data=np.full_like(good.data, 0.5))])
    assert "one plane" in refusal([good, changed(good, data=good.data[:, :1])])
    assert "complex64" in refusal([good, changed(good, data=good.data.astype(np.complex64))])
    sheared = good.affine.copy()
    sheared[0, 1] = 0.4
    assert "right angles" in refusal([good, changed(good, affine=sheared)])


def test_a_singular_affine_is_refused_when_it_is_read(tmp_path):
    affine = GRID.affine.copy()
    affine[:, 2] = affine[:, 1]
    with pytest.raises(UsageError, match="singular"):
        Volume(truth().data, affine, name="flat.nii.gz")


def test_files_are_read_once_each(tmp_path):
    io.write(tmp_path / "a.nii.gz", stack(0))
    io.write(tmp_path / "b.nii.gz", stack(1))
    volumes = read_stacks([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])
    assert [volume.name for volume in volumes] == ["a.nii.gz", "b.nii.gz"]
    np.testing.assert_allclose(volumes[1].data, stack(1).data)
    with pytest.raises(UsageError, match="named twice"):
        read_stacks([tmp_path / "a.nii.gz", tmp_path / "." / "a.nii.gz"])
    with pytest.raises(FileError, match="does not exist"):
        read_stacks([tmp_path / "a.nii.gz", tmp_path / "c.nii.gz"])


def test_slices_come_first_and_keep_their_places():
    volume = stack(2)
    (prepared,), warnings = prepare([volume], Normalizer(0, 2))
    assert warnings == []
    assert prepared.slices == 8
    assert prepared.volume.data.shape == (8, 32, 36)
    index = np.array([3, 20, 30])
    np.testing.assert_allclose(
        prepared.volume.grid.world(index), volume.grid.world(index[[1, 2, 0]])
    )
    assert prepared.volume.data[3, 20, 30] == volume.data[20, 30, 3] / 2
    assert (prepared.slice_of_row == np.repeat(np.arange(8), 32 * 36)).all()


def test_an_empty_slice_between_others_is_left_out_and_said():
    volume = stack(0)
    data = volume.data.copy()
    data[4] = 0.3
    (prepared,), (warning,) = prepare([replace(volume, data=data)], Normalizer())
    assert "slice 4 of 8" in warning
    assert set(prepared.slice_of_row.tolist()) == {0, 1, 2, 3, 5, 6, 7}


def test_empty_slices_at_the_ends_are_background_only_beside_background():
    small = np.zeros((6, 10, 10), dtype=np.float32)
    small[2:4, 3:7, 3:7] = 1 + np.arange(16).reshape(4, 4)
    assert empty_slices(small) == []  # a head ends, and there is nothing beyond it
    small[2:4, 1:9, 1:9] += 1
    assert empty_slices(small) == [0, 1, 4, 5]  # no head ends at once
    small[[0, 5]] = 0.5
    assert empty_slices(small[:, :5, :5]) == [0, 1, 4, 5]
    noise = np.random.default_rng(0).random((6, 10, 10))
    noise[[0, 1, 4]] = 0
    assert empty_slices(noise) == [0, 1, 4]  # background has noise
    assert empty_slices(np.zeros((3, 4, 4))) == []


def test_empty_slices_are_filled_from_those_beside_them():
    data = np.repeat(np.array([0, 2, 0, 0, 8, 0], dtype=np.int16), 4).reshape(6, 2, 2)
    np.testing.assert_allclose(filled(data, [0, 2, 3, 5])[:, 0, 0], [2, 2, 4, 6, 8, 8])
    assert data[2].max() == 0
    whole = np.ones((2, 2, 2), dtype=np.float32)
    assert filled(whole, []) is whole


@pytest.mark.parametrize("scanner", ["slice-profile:1", "slice-profile:1.5", "gaussian:1"])
def test_slices_that_see_something_of_a_mask_have_a_part_in_the_volume(scanner):
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[14:18, 18:22, 14:18] = 1  # its faces lie in the middle of slices
    mask = Volume(inside, GRID.affine, name="mask")
    volumes = three()
    settings = fitting.Settings("srr", scanner=ScannerModel.parse(scanner), register=False)
    grid = output_grid(volumes, settings, mask)
    half = {"slice-profile:1": 0.5, "slice-profile:1.5": 0.75, "gaussian:1": 0.9}[scanner]
    for stack_ in prepare(volumes, Normalizer())[0]:
        part = within(stack_, mask, np.eye(4))
        inside_volume = Measurement(grid, [part], [part.still], settings.scanner).inside[0]
        # Slices whose middle is so near that their profile holds some of the mask.
        places = GRID.index(part.volume.grid.world(np.argwhere(part.volume.data < np.inf)))
        axis = int(np.argmax(np.ptp(GRID.index(part.centres), axis=0)))
        low, high = (18, 22) if axis == 1 else (14, 18)
        far = np.maximum(low - 0.5 - places[:, axis], places[:, axis] - (high - 0.5))[part.rows]
        touched = far < half * 4 - 0.5
        assert len(set(part.slice_of_row[touched].tolist())) >= 2
        assert inside_volume[touched].all()
    mean = replace(settings, method="linear")
    assert output_grid(volumes, mean, mask).shape == (10, 10, 10)


def test_a_gain_does_not_change_with_a_voxel_below_zero():
    settings = fitting.Settings("linear", register=False)
    axial, coronal, sagittal = stack(0), stack(1, gain=2.0), stack(2, gain=0.5)
    gains = [record.gain for record in fitting.fit([axial, coronal, sagittal], settings).stacks]
    low = with_voxel(axial, -3)
    state = fitting.fit([low, coronal, sagittal], settings)
    assert state.normalizer.low == 0
    assert [record.gain for record in state.stacks] == pytest.approx(gains, rel=2e-3)
    # Of intensities that have no zero, as computed tomography's, the lowest is it.
    signed = [changed(volume, data=volume.data * 2000 - 1000) for volume in three()]
    assert fitting.fit(signed, settings).normalizer.low == signed[0].data.min()


@pytest.mark.parametrize("method", ["linear", "bspline"])
def test_an_empty_slice_has_no_part_in_a_mean(method):
    settings = fitting.Settings(method, register=False)
    axial, coronal, sagittal = three()
    data = axial.data.copy()
    data[4] = 0
    others = fitting.fit([coronal, sagittal], settings).field().sample(GRID).data
    found = fitting.fit([coronal, sagittal, replace(axial, data=data)], settings)
    found = found.field().sample(GRID).data
    whole = fitting.fit([coronal, sagittal, axial], settings).field().sample(GRID).data
    np.testing.assert_allclose(found[16:20], others[16:20], atol=1e-4)
    # A few voxels away nothing is seen of it but the gain, which is matched with fewer voxels.
    np.testing.assert_allclose(found[26:], whole[26:], atol=0.02)
    assert np.abs(found[:14] - whole[:14]).max() < 0.5


def test_a_mask_keeps_what_is_in_it_or_next_to_it():
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[12:20, 12:20, 12:20] = 1
    (prepared,), _ = prepare([stack(0)], Normalizer())
    kept = within(prepared, Volume(inside, GRID.affine, name="mask"), np.eye(4))
    index = np.stack(np.unravel_index(kept.rows, prepared.volume.data.shape), axis=-1)
    places = GRID.index(kept.volume.grid.world(index))
    far = np.maximum(np.maximum(12 - places, places - 19), 0)
    assert np.linalg.norm(far * 1.6, axis=1).max() <= 6.4 + 1e-6
    assert len(kept.rows) >= 2 * 8 * 8
    elsewhere = Volume(inside, GRID.moved(np.diag([1, 1, 1, 1.0]) + 500 * np.eye(4, k=3)).affine)
    with pytest.raises(UsageError, match="no voxel of it lies in the mask"):
        within(prepared, elsewhere, np.eye(4))


def test_a_mask_that_fills_its_file_reaches_as_far_as_its_voxels():
    axial = stack(0)
    (prepared,), _ = prepare([axial], Normalizer())
    whole = Volume(np.ones(axial.data.shape, dtype=np.uint8), axial.affine, name="mask")
    assert within(prepared, whole, np.eye(4)).rows.size == prepared.rows.size
    # On finer voxels, the slices beside it are next to it, and those farther are not.
    part = GRID.crop(Box((12, 0, 0), (20, 36, 32)))
    middle = Volume(np.ones(part.shape, dtype=np.uint8), part.affine, name="mask")
    rows = within(prepared, middle, np.eye(4)).rows
    slices = np.unique(np.unravel_index(rows, prepared.volume.data.shape)[0])
    assert slices.tolist() == [2, 3, 4, 5]


def test_a_mask_says_of_every_voxel_whether_it_is_inside():
    inside = np.zeros(GRID.shape, dtype=np.float32)
    inside[12:20, 12:20, 12:20] = 0.5
    mask = Volume(inside, GRID.affine, name="mask.nii.gz")
    np.testing.assert_array_equal(inside_of(mask), inside > 0)
    (prepared,), _ = prepare([stack(0)], Normalizer())
    for data, words in (
        (np.where(inside > 0, inside, np.nan), "mask.nii.gz has 36352 voxels that are not finite"),
        (np.zeros_like(inside), "mask is empty"),
        (np.stack([inside] * 2), "series of 2"),
    ):
        bad = replace(mask, data=data.astype(np.float32))
        for use in (
            inside_of,
            lambda bad: within(prepared, bad, np.eye(4)),
            lambda bad: output_grid(three(), fitting.Settings(), bad),
            lambda bad: register(stack(0), stack(1), mask=bad),
        ):
            with pytest.raises(UsageError, match=words):
                use(bad)


def test_a_coarser_stack_has_means_of_whole_blocks_at_their_places():
    (prepared,), _ = prepare([stack(0)], Normalizer())
    prepared = replace(prepared, rows=prepared.rows[prepared.rows != 5 * 36 + 7])
    coarse = coarser(prepared, 2)
    assert coarse.volume.data.shape == (8, 18, 16)
    block = prepared.volume.data[3, 4:6, 10:12].mean()
    np.testing.assert_allclose(coarse.volume.data[3, 2, 5], block, rtol=1e-6)
    np.testing.assert_allclose(
        coarse.volume.grid.world([3, 2, 5]), prepared.volume.grid.world([3, 4.5, 10.5])
    )
    lost = 8 * 18 * 16 - len(coarse.rows)
    assert lost == 1
    assert coarser(prepared, 1) is prepared


def test_the_volume_is_as_asked_and_where_the_reference_is():
    settings = fitting.Settings("linear", spacing=(3.2, 1.6, 1.6), register=False, reference=1)
    state = fitting.fit(three(), settings)
    assert state.grid.shape == (16, 36, 32)
    np.testing.assert_allclose(state.grid.extent, GRID.extent)
    assert fitting.fit(three(), fitting.Settings("linear", register=False)).grid == GRID
    assert STILL == (0.0,) * 6
    assert thick(1).shape == (32, 9, 32)


def test_settings_that_cannot_be_meant_are_refused():
    for changes, words in (
        ({"method": "magic"}, "no method 'magic'"),
        ({"method": "srr", "preset": "paper"}, "of the method irem"),
        ({"spacing": 0}, "above 0 mm"),
        ({"weight": -1.0}, "0 or more"),
        ({"epochs": 0}, "at least one epoch"),
        ({"minutes": -1}, "above 0 minutes"),
        ({"seed": -1}, "seed"),
        ({"motion": "sideways"}, "no motion"),
    ):
        with pytest.raises(UsageError, match=words):
            fitting.Settings(**changes)
    with pytest.raises(UsageError, match="no stack 4"):
        fitting.fit(three(), fitting.Settings(reference=3))


def test_slices_are_outlined_where_they_were_found():
    (prepared,), _ = prepare([stack(1)], Normalizer())
    grid = prepared.volume.grid
    motion = prepared.still
    motion[2] = rigid([0.1, 0, 0, 3, 0, 0], CENTRE)
    agreement = Agreement(1.0, 1.0, 1.0)
    record = StackRecord(
        name="a",
        digest="",
        grid=grid,
        gain=1.0,
        agreement=agreement,
        registered=np.eye(4),
        motion=motion,
        weight=np.ones(len(motion)),
    )
    stated = grid.slice_outlines(0)
    np.testing.assert_allclose(np.delete(record.outlines, 2, 0), np.delete(stated, 2, 0))
    moved = grid.moved(motion[2]).slice_outlines(0)[2]
    np.testing.assert_allclose(record.outlines[2], moved)
    assert np.abs(record.outlines[2] - stated[2]).max() > 2
