"""Training volumes: what is left out, what must not be watched, how the set is held."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch.multiprocessing as torch_processes

from napari_arssr import io
from napari_arssr.errors import FileError, UsageError
from napari_arssr.training.config import preset
from napari_arssr.training.paper import fixed_patches
from napari_arssr.training.patches import PatchSettings, cut_patches
from napari_arssr.training.volumes import (
    MANIFEST,
    MappedVoxels,
    NiftiVoxels,
    SharedVoxels,
    load_split,
    load_volumes,
    start_method,
    subject_of,
)
from napari_arssr.volume import Volume

WHOLE = (slice(None),) * 3


def put(path: Path, array: npt.NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write(path, Volume(array, np.diag([2.0, 2.0, 2.0, 1.0])))
    return path


def voxels(seed: int = 0, shape: tuple[int, ...] = (12, 13, 14)) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 1000, shape, dtype=np.int16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for number in range(3):
        put(folder / f"sub-{number}.nii.gz", voxels(number))
    return folder


# What is left out -------------------------------------------------------------------------------


def test_bad_files_are_left_out_and_named(data: Path) -> None:
    put(data / "constant.nii", np.full((20, 20, 20), 3, dtype=np.int16))
    put(data / "nothing.nii", np.full((20, 20, 20), np.nan, dtype=np.float32))
    put(data / "small.nii", voxels(5, (20, 20, 9)))
    put(data / "series.nii", voxels(6, (3, 20, 20, 20)))
    put(data / "uncompressed-copy.nii", voxels(0).astype(np.float32))
    put(data / "sub-0_mask.nii", (voxels(0) > voxels(0).mean()).astype(np.uint8))
    (data / "truncated.nii.gz").write_bytes((data / "sub-0.nii.gz").read_bytes()[:2000])
    (data / "notes.txt").write_text("no volume, and not asked for")
    (data / "z-copy.nii.gz").write_bytes((data / "sub-1.nii.gz").read_bytes())
    warnings: list[str] = []
    found = load_volumes([data], smallest=10, warn=warnings.append)
    names = ["series.nii", "sub-0.nii.gz", "sub-1.nii.gz", "sub-2.nii.gz"]
    assert [volume.name for volume in found] == names
    said = {
        "constant.nii": "constant",
        "nothing.nii": "no finite value",
        "sub-0_mask.nii": "labels, not intensities",
        "small.nii": "9×20×20 voxels are too few",
        "truncated.nii.gz": "cut off",
        "uncompressed-copy.nii": "a copy of another volume",
        "z-copy.nii.gz": "a copy of another volume",
    }
    assert len(warnings) == len(said)
    for name, reason in said.items():
        assert any(name in text and reason in text for text in warnings), name
    assert not any("\n" in text for text in warnings)
    with pytest.raises(FileError, match=r"misspelt does not exist"):
        load_volumes([data, data / "misspelt"])


@pytest.mark.parametrize("what", ["constant", "truncated", "copy"])
def test_with_strict_the_first_bad_file_is_an_error(data: Path, what: str) -> None:
    path = data / f"{what}.nii.gz"
    content = (data / "sub-0.nii.gz").read_bytes()
    if what == "constant":
        put(path, np.full((20, 20, 20), 3, dtype=np.int16))
    else:
        path.write_bytes(content if what == "copy" else content[:1000])
    load_volumes([data])
    with pytest.raises((UsageError, FileError), match=rf"{what}\.nii\.gz"):
        load_volumes([data], strict=True)


def test_files_of_one_name_in_several_folders_are_all_used(tmp_path: Path) -> None:
    folders = [put(tmp_path / f"{n}" / "T1w.nii", voxels(n)).parent for n in range(2)]
    warnings: list[str] = []
    found = load_volumes([*folders, folders[0]], warn=warnings.append)
    assert [volume.name for volume in found] == ["T1w.nii", "1/T1w.nii"]
    assert len(warnings) == 1
    assert "a copy of another" in warnings[0]


def test_a_bids_data_set_gives_its_anatomical_volumes(tmp_path: Path) -> None:
    put(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", voxels(1))
    put(tmp_path / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_T1w.nii.gz", voxels(2))
    put(tmp_path / "sub-02" / "func" / "sub-02_bold.nii.gz", voxels(3))
    found = load_volumes([tmp_path])
    assert [volume.name for volume in found] == ["sub-01_T1w.nii.gz", "sub-02_ses-1_T1w.nii.gz"]
    assert [volume.subject for volume in found] == ["sub-01", "sub-02"]


def test_a_folder_without_volumes_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no volume that can be used in .*empty\.$"):
        load_volumes([tmp_path / "empty"])


# Who is watched ---------------------------------------------------------------------------------


def test_the_last_subjects_are_held_out_whole(tmp_path: Path) -> None:
    for subject, session in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2)):
        name = f"sub-0{subject}_ses-{session}_T1w.nii"
        put(tmp_path / name, voxels(10 * subject + session))
    split = load_split([tmp_path], [], holdout=1)
    assert {volume.subject for volume in split.train} == {"sub-01", "sub-02"}
    assert [volume.name for volume in split.validation] == [
        "sub-03_ses-1_T1w.nii",
        "sub-03_ses-2_T1w.nii",
    ]
    assert load_split([tmp_path], [], holdout=0).validation == ()
    with pytest.raises(UsageError, match=r"3 subjects .* 3 held out"):
        load_split([tmp_path], [], holdout=3)


def test_a_validation_volume_among_the_training_volumes_is_an_error(data: Path) -> None:
    copy = data.parent / "val" / "another-name.nii"
    put(copy, voxels(1).astype(np.float64) * 2)  # converted, and in other units
    with pytest.raises(UsageError, match=r"another-name\.nii .*sub-1\.nii\.gz, the same image"):
        load_split([data], [copy], holdout=0)


def test_a_validation_subject_among_the_training_subjects_is_an_error(data: Path) -> None:
    other = put(data.parent / "val" / "sub-2_ses-2_T1w.nii", voxels(9))
    with pytest.raises(UsageError, match=r"sub-2_ses-2_T1w\.nii .*sub-2.* same subject"):
        load_split([data], [other], holdout=0)
    stranger = put(data.parent / "val" / "sub-22_T1w.nii", voxels(9))
    split = load_split([data], [stranger], holdout=1)
    assert len(split.train) == 3  # nothing is held out beside volumes that are given
    assert [volume.subject for volume in split.validation] == ["sub-22"]


def test_labels_count_within_one_data_set(tmp_path: Path) -> None:
    files = [
        put(tmp_path / s / "sub-01" / "anat" / "T1w.nii", voxels(i)) for i, s in enumerate("ab")
    ]
    assert subject_of(files[0]) == subject_of(files[1]) == "sub-01"
    with pytest.raises(UsageError, match="same subject"):
        load_split(files[:1], files[1:], holdout=0)
    for name in "ab":
        (tmp_path / name / "dataset_description.json").write_text("{}")
    assert len(load_split(files[:1], files[1:], holdout=0).validation) == 1


# How the set is held ----------------------------------------------------------------------------


def test_a_volume_is_in_network_units(data: Path) -> None:
    volume = load_volumes([data])[0].data[WHOLE]
    assert volume.dtype == np.float16
    assert volume.min() == 0
    assert 1 <= volume.max() < 1.1
    exact = load_volumes([data], normalization="minmax")[0].data[WHOLE]
    assert exact.max() == 1


@pytest.mark.parametrize("kind", ["int16", "big-endian", "scaled", "float32", "series"])
def test_a_streamed_volume_is_the_same_as_one_in_memory(tmp_path: Path, kind: str) -> None:
    array = voxels(3, (15, 14, 13))
    path = tmp_path / "volume.nii"
    if kind == "scaled":
        image = nib.Nifti1Image(array, np.eye(4))
        image.header.set_slope_inter(0.25, -3)
        nib.save(image, path)
    elif kind == "big-endian":
        header = nib.Nifti1Header(endianness=">")
        nib.save(nib.Nifti1Image(array, np.eye(4), header), path)
    elif kind == "series":
        put(path, np.stack([array, array[::-1]]))
    else:
        broken = array.astype(np.float32)
        broken[3, 4, 5] = np.nan
        put(path, array if kind == "int16" else broken)
    held = load_volumes([path])[0]
    streamed = load_volumes([path], unpack_to=tmp_path / "unpacked")[0]
    assert isinstance(streamed.data, NiftiVoxels)
    assert not (tmp_path / "unpacked").exists()
    assert streamed.data.shape == held.data.shape
    part = (slice(2, 9), slice(None), slice(1, 5))
    assert streamed.data[part].shape == held.data[part].shape
    for voxels_ in (streamed.data, pickle.loads(pickle.dumps(streamed.data))):
        np.testing.assert_array_equal(voxels_[part], held.data[part])
        np.testing.assert_array_equal(voxels_[WHOLE], held.data[WHOLE])


def _differs(streamed: NiftiVoxels, held: Any, seed: int, found: Any) -> None:
    random = np.random.default_rng(seed)
    for _ in range(400):
        start = int(random.integers(20))
        part = (slice(start, start + 4), slice(None), slice(None))
        if not np.array_equal(streamed[part], held[part]):
            found.value = 1
            return


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system starts no process as a copy")
def test_workers_that_are_copies_read_a_streamed_file_each_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii"
    put(path, voxels(3, (24, 40, 41)))
    held = load_volumes([path])[0].data
    streamed = load_volumes([path], unpack_to=tmp_path / "unpacked")[0].data
    streamed[WHOLE]  # open before the copies are made
    context = multiprocessing.get_context("fork")
    found = context.Value("i", 0)
    workers = [
        context.Process(target=_differs, args=(streamed, held, seed, found)) for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found.value == 0
    assert all(worker.exitcode == 0 for worker in workers)


def test_a_streamed_file_is_read_by_the_reader_that_checked_it(tmp_path: Path) -> None:
    """nibabel takes a voxel offset of 0 by its word and would train on the header."""
    path = tmp_path / "volume.nii"
    put(path, voxels(3, (15, 14, 13)))
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(0).tobytes()
    path.write_bytes(content)
    held = load_volumes([path])[0]
    streamed = load_volumes([path], unpack_to=tmp_path / "unpacked")[0]
    assert isinstance(streamed.data, NiftiVoxels)
    np.testing.assert_array_equal(streamed.data[WHOLE], held.data[WHOLE])


def test_what_cannot_be_read_in_part_is_unpacked_once(tmp_path: Path, data: Path) -> None:
    unpacked = tmp_path / "unpacked"
    held, streamed = load_volumes([data]), load_volumes([data], unpack_to=unpacked)
    files = {file: file.stat().st_mtime_ns for file in unpacked.iterdir()}
    assert len(files) == 3
    for one, other in zip(held, streamed, strict=True):
        assert isinstance(other.data, MappedVoxels)
        np.testing.assert_array_equal(one.data[WHOLE], other.data[WHOLE])
        other.data[WHOLE]
        assert len(pickle.dumps(other.data)) < 500  # a name, not the voxels
    load_volumes([data], unpack_to=unpacked)
    assert {file: file.stat().st_mtime_ns for file in unpacked.iterdir()} == files


def _darken(voxels_: SharedVoxels) -> None:
    voxels_[WHOLE][:] = 0


def test_workers_that_are_not_copies_share_the_memory_of_the_set(data: Path) -> None:
    volume = load_volumes([data], share=True)[0]
    assert isinstance(volume.data, SharedVoxels)
    assert volume.data[WHOLE].any()
    context = torch_processes.get_context("spawn")
    process = context.Process(target=_darken, args=(volume.data,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not volume.data[WHOLE].any()  # what it wrote is here: it had no copy


def test_workers_are_copies_of_the_process_where_they_can_be() -> None:
    assert start_method() in multiprocessing.get_all_start_methods()


# Patches that were cut before --------------------------------------------------------------------


CUT = PatchSettings(size=8, count=3, seed=1, validation_share=0.34)


def test_patches_are_the_ones_that_training_on_the_volumes_takes(
    tmp_path: Path, data: Path
) -> None:
    manifest = cut_patches([data], tmp_path / "cut", settings=CUT)
    assert json.loads((tmp_path / "cut" / MANIFEST).read_text()) == manifest
    assert [volume["split"] for volume in manifest["volumes"]] == ["train", "train", "validation"]
    paper = preset("paper").training
    config = replace(paper, cut=8, patches=3, patch=2, samples=50, seed=1)
    whole = {v.name: v for v in load_volumes([data], normalization="minmax")}
    cut = load_volumes([tmp_path / "cut" / "train"], smallest=8, normalization="minmax")
    assert len(cut) == 6
    trained = [whole[v["name"]] for v in manifest["volumes"] if v["split"] == "train"]
    from_volumes = [patch.read(8) for patch in fixed_patches(trained, config)]
    from_files = [patch.read(8) for patch in fixed_patches(cut, config)]
    assert len(from_files) == len(from_volumes) == 6
    for one in from_volumes:
        assert any(np.array_equal(one, other) for other in from_files)


def test_patches_are_known_from_wherever_they_are_named(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_patches([data], tmp_path / "cut", settings=CUT)
    expected = [v.content for v in load_volumes([tmp_path / "cut" / "train"], smallest=8)]
    monkeypatch.chdir(tmp_path / "cut" / "train")
    assert [v.content for v in load_volumes([Path()], smallest=8)] == expected


def test_a_study_s_folder_is_no_subject(tmp_path: Path) -> None:
    study = tmp_path / "sub-cohort" / "derived" / "registered" / "cropped"
    assert not subject_of(study / "one.nii")
    assert subject_of(study / "sub-02" / "ses-1" / "anat" / "T1w.nii") == "sub-02"


def test_patches_lie_where_they_were_cut(tmp_path: Path, data: Path) -> None:
    manifest = cut_patches([data], tmp_path / "cut", settings=CUT)
    entry = manifest["volumes"][0]
    source = io.read(data / entry["name"])
    for patch in entry["patches"]:
        volume = io.read(tmp_path / "cut" / patch["file"])
        start = patch["start_zyx"]
        np.testing.assert_allclose(volume.grid.world([0, 0, 0]), source.grid.world(start))
        z, y, x = start
        original = source.data[z : z + 8, y : y + 8, x : x + 8].astype(float)
        scale = (original - source.data.min()) / np.ptp(source.data.astype(float))
        np.testing.assert_allclose(volume.data, scale, atol=1e-3)


def test_two_people_get_the_same_patches(tmp_path: Path, data: Path) -> None:
    """Files that are called differently, in another order and format, with another beside them."""
    ours = cut_patches([data], tmp_path / "ours", settings=CUT)
    theirs = tmp_path / "theirs"
    for number, name in ((0, "c"), (1, "a"), (2, "b")):
        put(theirs / f"{name}.nii", voxels(number).astype(np.float32))
    again = cut_patches([theirs], tmp_path / "again", settings=CUT)

    def places(manifest: dict[str, Any]) -> dict[str, Any]:
        return {
            v["content"]: (v["split"], [p["start_zyx"] for p in v["patches"]])
            for v in manifest["volumes"]
        }

    assert places(again) == places(ours)
    put(theirs / "d.nii", voxels(7))
    more = cut_patches([theirs], tmp_path / "more", settings=CUT)
    kept = {c: where for c, (_, where) in places(more).items() if c in places(ours)}
    assert kept == {c: where for c, (_, where) in places(ours).items()}
    other = cut_patches([theirs], tmp_path / "other", settings=PatchSettings(8, 3, 2, 0.34))
    assert not set(map(str, places(other).values())) & set(map(str, places(more).values()))


def test_somebody_s_manifest_gives_their_split_and_patches(tmp_path: Path, data: Path) -> None:
    cut_patches([data], tmp_path / "ours", settings=CUT)
    path = tmp_path / "theirs.json"
    theirs = json.loads((tmp_path / "ours" / MANIFEST).read_text())
    theirs["volumes"][0]["split"] = "validation"
    theirs["volumes"][0]["patches"][0]["start_zyx"] = [1, 2, 3]
    theirs["volumes"][0]["patches"][0]["file"] = "../../escaped.nii"
    path.write_text(json.dumps(theirs))
    manifest = cut_patches([data], tmp_path / "again", manifest=path)
    entry = next(v for v in manifest["volumes"] if v["name"] == theirs["volumes"][0]["name"])
    assert entry["split"] == "validation"
    assert entry["patches"][0]["start_zyx"] == [1, 2, 3]
    assert manifest["seed"] == 1
    assert not (tmp_path.parent / "escaped.nii").exists()
    assert len(list((tmp_path / "again" / "val").iterdir())) == 6
    (data / "sub-0.nii.gz").unlink()
    put(data / "sub-0.nii.gz", voxels(99))
    with pytest.raises(UsageError, match=r"theirs\.json .* not among yours: sub-0\.nii\.gz"):
        cut_patches([data], tmp_path / "third", manifest=path)
    assert not (tmp_path / "third").exists()


def test_patches_of_one_volume_are_one_subject(tmp_path: Path, data: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, file in enumerate(sorted(data.iterdir())):
        shutil.copy(file, source / f"vol{number}.nii.gz")
    cut_patches([source], tmp_path / "cut", settings=replace(CUT, validation_share=0.0))
    split = load_split([tmp_path / "cut" / "train"], [], holdout=1)
    first = {volume.name.partition("_")[0] for volume in split.train}
    assert {volume.name.partition("_")[0] for volume in split.validation} == {"vol2"}
    assert first == {"vol0", "vol1"}
    patches = sorted((tmp_path / "cut" / "train").glob("vol0*"))
    with pytest.raises(UsageError, match="of the same subject"):
        load_split(patches[1:], patches[:1], holdout=0)


def test_patches_of_volumes_of_one_stem_are_kept_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    put(source / "brain.nii", voxels(1))
    put(source / "brain.nii.gz", voxels(2))
    put(source / "other.nii", voxels(3))
    settings = replace(CUT, validation_share=0.0)
    manifest = cut_patches([source], tmp_path / "cut", settings=settings)
    files = [patch["file"] for volume in manifest["volumes"] for patch in volume["patches"]]
    assert len({file.casefold() for file in files}) == 3 * CUT.count
    assert len(list((tmp_path / "cut" / "train").iterdir())) == 3 * CUT.count
    assert (tmp_path / "cut" / "train" / "other_patch-01.nii").is_file()


def test_names_tell_files_apart_and_not_where_they_are(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "study" / str(100 + number) / "T1w"
        folder.mkdir(parents=True)
        put(folder / "T1w.nii.gz", voxels(number))
    names = [volume.name for volume in load_volumes([*(tmp_path / "study").glob("*/T1w")])]
    assert len(set(names)) == 4
    assert names[0] == "T1w.nii.gz"
    assert names[2].endswith("/T1w/T1w.nii.gz")
    assert not any(str(tmp_path) in name or name.startswith("/") for name in names)


def test_a_name_that_is_no_text_is_spelt_out(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii"))
    put(path, voxels(1))
    (volume,) = load_volumes([path])
    assert volume.name == "caf\\xe9.nii"
    volume.name.encode()


@pytest.mark.parametrize("content", ["", "[]", '{"format": "else"}', '{"format": 3, "volumes": 1}'])
def test_a_broken_manifest_is_refused(tmp_path: Path, data: Path, content: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(FileError, match=r"broken\.json: this is no manifest"):
        cut_patches([data], tmp_path / "cut", manifest=tmp_path / "broken.json")


def test_a_manifest_with_a_part_that_there_is_not_is_refused(tmp_path: Path, data: Path) -> None:
    theirs = cut_patches([data], tmp_path / "theirs", settings=CUT)
    theirs["volumes"][0]["split"] = "test"
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(theirs))
    with pytest.raises(FileError, match=r"no manifest of patches \(there is no part 'test'\)"):
        cut_patches([data], tmp_path / "cut", manifest=path)


def test_patches_are_not_cut_into_patches(tmp_path: Path, data: Path) -> None:
    cut_patches([data], tmp_path / "cut", settings=CUT)
    with pytest.raises(UsageError, match="holds patches already"):
        cut_patches([data], tmp_path / "cut", settings=CUT)
    with pytest.raises(UsageError, match="at least"):
        PatchSettings(size=1)
    with pytest.raises(UsageError, match="share"):
        PatchSettings(validation_share=float("nan"))


def test_patches_of_one_subject_are_never_in_both(tmp_path: Path, data: Path) -> None:
    cut_patches([data], tmp_path / "cut", settings=CUT)
    train, val = tmp_path / "cut" / "train", tmp_path / "cut" / "val"
    split = load_split([train], [val], holdout=0, normalization="minmax")
    assert {v.subject for v in split.train}.isdisjoint(v.subject for v in split.validation)
    mine = next(train.iterdir())
    mine.rename(val / mine.name)
    with pytest.raises(UsageError, match="same subject"):
        load_split([train], [val], holdout=0, normalization="none")
