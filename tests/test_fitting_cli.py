import argparse
import json
import os
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from fitting_case import CENTRE, GRID, brain, stack, three, truth

from napari_arssr import fitting, io
from napari_arssr.cli import main
from napari_arssr.degradation import ScannerModel
from napari_arssr.evaluation import psnr
from napari_arssr.fitting.alignment import write_motions
from napari_arssr.fitting.cli import _settings, add_fit, as_options
from napari_arssr.fitting.poses import displacement, rigid
from napari_arssr.fitting.registration import read_motion
from napari_arssr.volume import Volume

MOVED = (0.05, -0.06, 0.04, 2.0, -3.0, 2.5)
NAMES = ("axial.nii.gz", "coronal.nii.gz", "sagittal.nii.gz")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, volume in zip(NAMES, three(noise=0.01), strict=True):
        io.write(tmp_path / name, volume)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(*words, stacks=NAMES, output="out.nii.gz"):
    try:
        return main(["fit", *stacks, "-o", output, *map(str, words)])
    except SystemExit as ended:  # what argparse refuses
        return ended.code


def quick(*words, **options):
    return fit("--spacing", "1.6", "--method", "linear", "--no-register", *words, **options)


def score(path):
    result = io.read(path)
    assert result.grid == GRID
    return psnr(truth().data, result.data, mask=brain(), data_range=1.0)


def test_stacks_become_a_volume_with_all_that_goes_with_it(folder, capsys):
    io.write(folder / NAMES[1], stack(1, motion=MOVED, noise=0.01, gain=2.0))
    words = ["--spacing", "1.6", "--transforms", "moved", "--uncertainty", "sd.nii.gz"]
    assert fit(*words, "--field", "fit.safetensors", "--motion", "stacks") == 0
    told = capsys.readouterr()
    assert "out.nii.gz: 32 × 36 × 32 voxels of 1.6 × 1.6 × 1.6 mm" in told.out
    assert score("out.nii.gz") > 27
    assert io.read("sd.nii.gz").grid == GRID
    motion = read_motion(folder / "moved" / "2_coronal.tfm")
    points = GRID.world(np.argwhere(brain())[::97])
    assert displacement(motion, rigid(MOVED, CENTRE), points) < 0.4
    assert sorted(p.name for p in (folder / "moved").iterdir()) == [
        "1_axial.tfm",
        "2_coronal.tfm",
        "3_sagittal.tfm",
    ]
    state = fitting.load("fit.safetensors")
    np.testing.assert_allclose(
        state.field().sample(GRID).data, io.read("out.nii.gz").data, atol=1e-5
    )
    # What was done stands in the header, and not where.
    (note,) = (e for e in nib.load("out.nii.gz").header.extensions if e.get_code() == 6)
    content = note.get_content()
    text = content.decode() if isinstance(content, bytes) else content
    record = json.loads(text.rstrip("\0"))["napari-arssr fit"]
    assert [one["name"] for one in record["stacks"]] == list(NAMES)
    assert str(folder) not in text


def test_methods_compare_as_they_should(folder):
    scores = []
    for method in ("linear", "bspline", "srr"):
        assert fit("--spacing", "1.6", "--no-register", "--method", method, "--quiet") == 0
        scores.append(score("out.nii.gz"))
    assert scores == sorted(scores)


def test_transforms_read_back_place_the_stacks_without_registration(folder, capsys):
    io.write(folder / NAMES[1], stack(1, motion=MOVED))
    assert fit("--spacing", "1.6", "--method", "srr", "--transforms", "t", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    words = ["--method", "srr", "--no-register", "--start", "t", "--json"]
    assert fit("--spacing", "1.6", *words, output="again.nii.gz") == 0
    second = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(
        first["stacks"][1]["motion"], second["stacks"][1]["motion"], atol=1e-5
    )
    np.testing.assert_allclose(io.read("out.nii.gz").data, io.read("again.nii.gz").data, atol=1e-3)
    assert quick(output="unplaced.nii.gz") == 0
    assert score("again.nii.gz") > score("unplaced.nii.gz") + 4


def test_transforms_written_with_another_reference_place_the_stacks_as_well(folder, capsys):
    io.write(folder / NAMES[1], stack(1, motion=MOVED))
    back = np.linalg.inv(rigid(MOVED, CENTRE))
    write_motions("t", NAMES, [np.eye(4), rigid(MOVED, CENTRE), np.eye(4)])
    words = ["--method", "linear", "--no-register", "--start", "t", "--reference", "2", "--json"]
    assert fit("--spacing", "1.6", *words) == 0
    record = json.loads(capsys.readouterr().out)
    motions = [one["motion"] for one in record["stacks"]]
    np.testing.assert_allclose(motions, [back, np.eye(4), back], atol=1e-5)
    assert min(one["correlation"] for one in record["stacks"]) > 0.9


def test_the_voxel_size_is_in_the_file_s_order(folder, capsys):
    words = ["--method", "linear", "--no-register", "--json"]
    assert fit("--spacing", "1.6,3.2,0.8", *words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["spacing_mm"] == [1.6, 3.2, 0.8]
    assert record["shape"] == [32, 18, 64]
    assert nib.load("out.nii.gz").header.get_zooms() == pytest.approx((1.6, 3.2, 0.8))


def test_another_reference_gives_its_grid(folder):
    assert fit("--method", "linear", "--no-register", "--reference", "2") == 0
    assert io.read("out.nii.gz").grid == GRID


def test_a_finished_fit_is_sampled_again_without_the_work(folder, capsys):
    words = ["--method", "srr", "--no-register", "--field", "f.safetensors"]
    assert fit("--spacing", "1.6", *words) == 0
    assert fit("--spacing", "0.8", "--resume", *words, output="fine.nii.gz") == 0
    assert "64 × 72 × 64 voxels of 0.8" in capsys.readouterr().out
    fine = io.read("fine.nii.gz").data
    mean = fine.reshape(32, 2, 36, 2, 32, 2).mean(axis=(1, 3, 5))
    assert psnr(truth().data, mean, mask=brain(), data_range=1.0) > 25
    # What was not fitted so is not taken for it.
    other = [*words, "--prior", "tikhonov", "--resume"]
    assert fit("--spacing", "1.6", *other) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_mask_bounds_the_volume(folder):
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 10:26, 8:24] = 1
    io.write(folder / "mask.nii.gz", Volume(inside, GRID.affine))
    assert quick("--mask", "mask.nii.gz") == 0
    result = io.read("out.nii.gz")
    assert result.data.shape == (22, 22, 22)
    assert np.count_nonzero(result.data) <= inside.sum()


def test_a_fit_goes_on_only_with_the_mask_that_it_was_begun_with(folder, capsys):
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 10:26, 8:24] = 1
    io.write(folder / "mask.nii.gz", Volume(inside, GRID.affine))
    inside[10] = 0
    io.write(folder / "other.nii.gz", Volume(inside, GRID.affine))
    words = ("--field", "f.safetensors", "--resume")
    assert quick("--mask", "mask.nii.gz", "--quiet", *words) == 0
    assert quick("--mask", "mask.nii.gz", "--quiet", *words) == 0
    for mask in ([], ["--mask", "other.nii.gz"]):
        assert "begun with a mask" in refused(capsys, *mask, *words)
    (folder / "f.safetensors").unlink()
    assert quick("--quiet", *words) == 0
    assert "begun without a mask" in refused(capsys, "--mask", "mask.nii.gz", *words)


def test_a_fit_goes_on_only_with_the_transforms_that_it_was_begun_with(folder, capsys):
    write_motions("t", NAMES, [np.eye(4), rigid(MOVED, CENTRE), np.eye(4)])
    words = ("--field", "f.safetensors", "--resume")
    assert quick("--start", "t", "--quiet", *words) == 0
    assert quick("--start", "t", "--quiet", *words) == 0
    assert "other transforms to start from" in refused(capsys, *words)
    write_motions("t", NAMES, [np.eye(4)] * 3)
    assert "other transforms to start from" in refused(capsys, "--start", "t", *words)


def test_volume_and_uncertainty_are_on_one_grid_in_whatever_voxels(folder):
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[8:24, 10:26, 8:24] = 1
    io.write(folder / "mask.nii.gz", Volume(inside, GRID.affine))
    words = ["--method", "srr", "--weight", "0.003", "--no-register", "--mask", "mask.nii.gz"]
    words += ["--uncertainty", "sd.nii.gz", "--field", "f.safetensors"]
    assert fit("--spacing", "1.6", *words) == 0
    coarse = io.read("sd.nii.gz")
    assert fit("--spacing", "0.8", "--resume", *words) == 0
    volume, spread = io.read("out.nii.gz"), io.read("sd.nii.gz")
    assert spread.grid == volume.grid == coarse.grid.scaled(2)
    assert spread.data.min() == 0  # beyond the mask
    np.testing.assert_array_equal(spread.data > 0, volume.data != 0)
    n, m, k = coarse.data.shape
    means = spread.data.reshape(n, 2, m, 2, k, 2).mean(axis=(1, 3, 5))
    deep = np.zeros(coarse.data.shape, dtype=bool)
    deep[5:-5, 5:-5, 5:-5] = True
    np.testing.assert_allclose(means[deep], coarse.data[deep], rtol=0.05)


def test_a_fit_that_is_kept_is_not_overwritten(folder, capsys):
    words = ("--field", "f.safetensors")
    assert quick("--quiet", *words) == 0
    before = (folder / "f.safetensors").read_bytes()
    text = refused(capsys, *words)
    assert "f.safetensors is there already" in text
    assert "--resume" in text
    assert (folder / "f.safetensors").read_bytes() == before


def test_a_fit_to_go_on_with_that_is_not_there_is_said_to_begin_anew(folder, capsys):
    words = ("--field", "typed.safetensors", "--resume")
    assert quick(*words) == 0
    assert "typed.safetensors is not there; a new fit begins" in capsys.readouterr().err
    assert quick(*words) == 0
    assert "not there" not in capsys.readouterr().err
    (folder / "typed.safetensors").unlink()
    assert quick(*words, "--quiet") == 0
    assert capsys.readouterr().err == ""


def refused_before_work(capsys, monkeypatch, *words, status=2):
    def work(*_arguments, **_options):
        raise AssertionError("the work began")

    monkeypatch.setattr("napari_arssr.fitting.pipeline.prepare", work)
    assert fit("--spacing", "1.6", "--quiet", *words) == status
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_what_would_fail_after_the_work_is_refused_before_it(folder, capsys, monkeypatch):
    def text(*words, **options):
        return refused_before_work(capsys, monkeypatch, *words, **options)

    assert "no device 'cuda:77'" in text("--device", "cuda:77")
    assert "no device 'cuda:77'" in text("--device", "cuda:77", "--method", "linear")
    assert "no weights 'defualt'" in text("--weights", "defualt")
    (folder / "broken.safetensors").write_bytes(b"nothing")
    assert "broken.safetensors" in text("--weights", "broken.safetensors", status=1)
    (folder / "file").write_text("")
    for place in ("file", "file/below"):
        assert "file is a file" in text("--transforms", place)
    assert not (folder / "out.nii.gz").exists()


def test_options_without_use_are_refused_by_name(folder, capsys, monkeypatch):
    def text(*words):
        return refused_before_work(capsys, monkeypatch, *words)

    for option, value in (
        ("--motion", "slices"),
        ("--weight", "4"),
        ("--prior", "tv"),
        ("--slice-profile", "gaussian:3"),
        ("--no-network", None),
        ("--weights", "default"),
        ("--epochs", "3"),
        ("--minutes", "1"),
    ):
        words = [option] if value is None else [option, value]
        assert f"{option} has no use with --method bspline" in text("--method", "bspline", *words)
    several = text("--method", "srr", "--weights", "nonsense", "--epochs", "3")
    assert "--weights and --epochs have no use with --method srr" in several
    assert "--motion and --weight have no use with --preset paper" in text(
        "--preset", "paper", "--weight", "4", "--motion", "none"
    )
    assert "--weights has no use with --no-network" in text("--no-network", "--weights", "default")
    assert "--minutes has no use with --method default" in text("--minutes", "1")
    metric = ("--no-register", "--metric", "correlation")
    assert "--metric has no use with --no-register; leave it out" in text(*metric)
    assert "--metric has no use with --no-register; leave it out" in text(*metric, "--epochs", "3")


@pytest.mark.parametrize(
    "settings",
    [
        fitting.Settings(spacing=(0.8, 1.0, 1.2), reference=2, register=False, device="cpu"),
        fitting.Settings("srr", penalty="tikhonov", weight=0.25, metric="mutual-information"),
        fitting.Settings("irem", weights="arssr-rdn", motion="none", epochs=4, minutes=2.5),
        fitting.Settings("irem", "paper", epochs=9, seed=3, spacing=0.8),
        fitting.Settings(network_prior=False, scanner=ScannerModel("gaussian", 1.2)),
        fitting.Settings("linear"),
    ],
    ids=lambda settings: f"{settings.method}-{settings.preset}",
)
def test_settings_become_words_and_come_back(settings):
    assert _settings(_parsed(as_options(settings))) == settings


def test_settings_without_use_become_no_words():
    idle = fitting.Settings("bspline", motion="none", weight=4.0, network_prior=False, epochs=3)
    assert as_options(idle) == ["--method", "bspline"]


def _parsed(words):
    parser = argparse.ArgumentParser()
    add_fit(parser.add_subparsers())
    return parser.parse_args(["fit", "a.nii", "b.nii", "-o", "out.nii", *words])


def refused(capsys, *words, status=2, **options):
    assert quick(*words, "--quiet", **options) == status
    text = capsys.readouterr().err
    assert text.startswith(("napari-arssr: ", "napari-arssr fit: "))
    assert text.count("\n") == 1
    return text


def test_bad_input_is_one_clear_sentence(folder, capsys):
    assert "1 stack is too few" in refused(capsys, stacks=NAMES[:1])
    assert "named twice" in refused(capsys, stacks=[NAMES[0], f"./{NAMES[0]}"])
    assert "does not exist" in refused(capsys, stacks=[NAMES[0], "none.nii.gz"], status=1)
    data = stack(1).data.copy()
    data[0, 0, 0] = np.inf
    io.write(folder / "bad.nii.gz", Volume(data, stack(1).affine))
    assert "bad.nii.gz has a voxel that is not finite" in refused(
        capsys, stacks=[NAMES[0], "bad.nii.gz"]
    )
    io.write(folder / "sharp.nii.gz", truth())
    io.write(folder / "sharp2.nii.gz", truth())
    assert "No stack has thick slices" in refused(capsys, stacks=["sharp.nii.gz", "sharp2.nii.gz"])
    far = stack(1).affine.copy()
    far[1, 3] += 500
    io.write(folder / "far.nii.gz", Volume(stack(1).data, far))
    assert "does not overlap" in refused(capsys, stacks=[NAMES[0], "far.nii.gz"])
    assert "takes" in refused(capsys, "--spacing", "0.005", status=1)
    assert "--spacing" in refused(capsys, "--spacing", "0")
    assert "no stack 7" in refused(capsys, "--reference", "7")
    assert "known suffix" in refused(capsys, output="out.mp3")
    assert "is the input itself" in refused(capsys, output=NAMES[0])
    assert "ends in .safetensors" in refused(capsys, "--field", "fit.npz")
    assert "name its file" in refused(capsys, "--resume")
    assert "no uncertainty map" in refused(capsys, "--uncertainty", "u.nii.gz")
    assert "method irem" in refused(capsys, "--preset", "paper")
    assert "--slice-profile" in refused(capsys, "--slice-profile", "round")
    assert "does not exist" in refused(capsys, "--start", "nowhere", status=1)
    inside = np.ones(GRID.shape, dtype=np.float32)
    inside[:4] = np.nan
    io.write(folder / "mask.nii.gz", Volume(inside, GRID.affine))
    text = refused(capsys, "--mask", "mask.nii.gz")
    assert "mask.nii.gz has 4608 voxels that are not finite" in text
    assert not (folder / "out.nii.gz").exists()


def test_a_singular_affine_is_refused_by_name(folder, capsys):
    image = nib.load(NAMES[1])
    affine = image.affine.copy()
    affine[:, 1] = affine[:, 0]
    header = image.header
    header.set_sform(affine, code=1)
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, header), "flat.nii.gz")
    text = refused(capsys, stacks=[NAMES[0], "flat.nii.gz"], status=1)
    assert "flat.nii.gz" in text


def test_another_subject_is_told_of(folder, capsys):
    io.write(folder / NAMES[1], stack(1, seed=3))
    assert fit("--spacing", "1.6", "--method", "linear") == 0
    told = capsys.readouterr().err
    assert "coronal.nii.gz agrees poorly with axial.nii.gz" in told
    assert "correlation 0." in told


def test_quiet_says_nothing_but_errors(folder, capsys):
    io.write(folder / NAMES[1], stack(1, seed=3))
    assert quick() == 0
    assert "agrees poorly" in capsys.readouterr().err
    assert quick("--quiet") == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


def test_a_fit_goes_on_only_as_it_was_registered(folder, capsys):
    words = ("--spacing", "1.6", "--method", "linear", "--field", "f.safetensors", "--quiet")
    assert fit(*words) == 0
    assert fit(*words, "--resume") == 0
    assert fit(*words, "--resume", "--no-register") == 2
    assert "begun with registration; give the same options" in capsys.readouterr().err


def test_a_profile_that_reaches_beyond_the_volume_is_refused(folder, capsys):
    words = ("--method", "srr", "--no-register", "--quiet", "--spacing", "1.6")
    assert fit(*words, "--slice-profile", "gaussian:20") == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "gaussian:20 reaches" in text
    assert not (folder / "out.nii.gz").exists()


def test_a_spoilt_slice_is_named(folder, capsys):
    volume = stack(2, noise=0.01)
    volume.data[..., 3] *= 0.1
    io.write(folder / NAMES[2], volume)
    words = ["--no-register", "--motion", "none", "--no-network"]
    assert fit("--spacing", "1.6", *words) == 0
    assert "sagittal.nii.gz: hardly believed: slice 3 of 8" in capsys.readouterr().out


def test_a_fit_that_is_interrupted_goes_on(folder):
    words = ["--preset", "paper", "--no-register", "--spacing", "1.6", "--field", "f.safetensors"]
    command = [sys.executable, "-m", "napari_arssr", "fit", *NAMES, "-o", "out.nii.gz", *words]
    process = subprocess.Popen(
        [*command, "--epochs", "60"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    # The network begins at a tenth: at two of them it has done some steps.
    assert any(line.startswith("fit   20%  fit the network") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "go on with --field f.safetensors --resume" in errors
    assert not (folder / "out.nii.gz").exists()
    state = fitting.load("f.safetensors")
    assert state.stage == "reconstructed"
    step = state.trained.step
    assert step > 0
    assert fit(*words, "--resume", "--minutes", "0.03") == 0
    assert fitting.load("f.safetensors").trained.step > step
    assert io.read("out.nii.gz").grid == GRID


def test_help_is_quick_and_tells_the_methods(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--no-register", "--preset", "bspline", "--uncertainty"))
    code = (
        "import sys; from napari_arssr.cli import _parser; _parser(); "
        "heavy = {'torch', 'scipy', 'SimpleITK', 'nibabel'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
