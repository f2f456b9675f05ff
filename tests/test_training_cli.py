"""``train``, ``patches`` and ``export`` on the command line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from tiny import TINY, Ran, Run

from napari_arssr import io, models, weights
from napari_arssr.evaluation.metrics import psnr
from napari_arssr.models import ModelConfig
from napari_arssr.training import RunConfig, TrainingConfig, preset, read_config, write_config
from napari_arssr.training.checkpoints import LAST, RUN_KEY, read_checkpoint
from napari_arssr.volume import Grid, Volume

TINY_RUN = RunConfig(
    training=TrainingConfig(
        model=TINY,
        largest_scale=2,
        patch=6,
        lattice=4,
        batch=2,
        steps=3,
        watch_every=1,
        watch_batches=1,
        precision="float32",
    )
)


def refused(ran: Ran, status: int, *parts: str) -> None:
    assert ran.status == status, ran
    assert ran.out == ""
    assert ran.err.startswith("napari-arssr")
    assert len(ran.err.splitlines()) == 1, ran.err
    assert all(part in ran.err for part in parts), ran.err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 900, (16, 16, 16), dtype=np.int16)
        nib.save(nib.Nifti1Image(noise, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{number}.nii")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Options of a run that takes no time."""
    write_config(tmp_path / "tiny.yaml", TINY_RUN)
    return ["--config", str(tmp_path / "tiny.yaml"), "--device", "cpu", "--workers", "0"]


def test_what_was_trained_can_be_used(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    (data / "broken.nii").write_bytes(b"")
    folder = tmp_path / "run"
    words = ["train", data, "--out", folder, *tiny, "--name", "mine", "--seed", "5"]
    options = ["--learning-rate", "0.002", "--sharp-axes", "i,j", "--licence", "CC0-1.0"]
    ran = run(*words, *options, "--training-data", "three noises")
    assert ran.status == 0, ran.err
    *lines, last = ran.out.splitlines()
    path = folder / "mine.safetensors"
    assert last == str(path)
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]
    assert "100%" in lines[-1]
    assert "dB over cubic" in lines[-1]
    assert len(ran.err.splitlines()) == 1
    assert "left out" in ran.err
    assert "broken.nii is empty" in ran.err
    card = weights.load(path).card
    assert (card.licence, card.training_data) == ("CC0-1.0", "three noises")
    assert card.training["config"]["sharp_axes"] == [1, 2]  # of (z, y, x)
    assert card.training["config"]["learning_rate"] == 0.002
    used = run(
        "upsample", data / "0.nii", tmp_path / "up.nii", "--scale", 2, "--weights", path, "--quiet"
    )
    assert used == Ran(0, "", "")
    # A second run in the folder is refused; it is resumed with the settings that lie there.
    refused(run(*words, *options), 2, str(folder), "holds a run already", "resume")
    (data / "broken.nii").unlink()
    assert run("train", "--out", folder, "--resume", "--steps", 4, "--quiet") == Ran(0, "", "")
    assert read_checkpoint(folder / LAST)[RUN_KEY]["step"] == 4
    ran = run("train", "--out", folder, "--resume", "--steps", 5, "--learning-rate", 0.1)
    refused(ran, 2, "another learning_rate")


def test_settings_come_from_preset_file_and_options_in_that_order(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("preset: paper\ntraining: {batch: 7, epochs: 9}\ndata: {train: [a]}\n")
    words = ["train", "b", "c", "--config", path, "--epochs", 11, "--print-config"]
    ran = run(*words, "--val", "d", "e", "--encoder", "ResCNN", "--strict")
    assert ran.status == 0, ran.err
    (tmp_path / "whole.yaml").write_text(ran.out)
    config = read_config(tmp_path / "whole.yaml")
    paper = preset("paper").training
    model = replace(paper.model, encoder="ResCNN")
    assert config.training == replace(paper, batch=7, epochs=11, model=model)
    assert config.data.train == ("b", "c")
    assert config.data.validation == ("d", "e")
    assert config.data.strict
    assert read_config(path).training.epochs == 9


def test_every_option_of_the_published_script_is_there(run: Run, tmp_path: Path) -> None:
    """By the names it has them, with two dashes."""
    words = "--encoder-name SRResNet --decoder-depth 6 --decoder-width 128 --feature-dim 64 "
    words += "--hr-data-train tr --hr-data-val va --lr 2e-4 --lr-decay-epoch 100 --epoch 50 "
    words += "--summary-epoch 10 --bs 4 --ss 1000 --gpu 0"
    ran = run("train", "--preset", "paper", *words.split(), "--print-config")
    assert ran.status == 0, ran.err
    (tmp_path / "whole.yaml").write_text(ran.out)
    config = read_config(tmp_path / "whole.yaml")
    training = config.training
    assert training.model == ModelConfig("SRResNet", "published", 64, 6, 128)
    assert (config.data.train, config.data.validation) == (("tr",), ("va",))
    assert (training.learning_rate, training.decay_every, training.epochs) == (2e-4, 100, 50)
    assert (training.snapshot_every, training.batch, training.samples) == (10, 4, 1000)
    assert config.machine.device == "cuda:0"


def test_a_baseline_s_scale_is_in_the_file_s_order(run: Run, tmp_path: Path) -> None:
    words = ["train", "a", "--preset", "paper", "--baseline", "SRCNN3D", "--scale", "1,1,4"]
    ran = run(*words, "--batch", 3, "--print-config")
    assert ran.status == 0, ran.err
    training = yaml.safe_load(ran.out)["training"]
    assert (training["baseline"], training["scale"]) == ("SRCNN3D", [4.0, 1.0, 1.0])  # (z, y, x)
    assert (training["batch"], training["epochs"]) == (3, 2000)
    # A file's own words stand.
    (tmp_path / "whole.yaml").write_text(ran.out)
    again = run("train", "a", "--config", tmp_path / "whole.yaml", *words[4:], "--print-config")
    assert yaml.safe_load(again.out)["training"] == training


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (20_000, 0, 0.0)),
        (["--minutes", "5"], (0, 0, 5.0)),
        (["--steps", "7"], (7, 0, 0.0)),
        (["--steps", "7", "--minutes", "2"], (7, 0, 2.0)),
        (["--preset", "paper"], (0, 2500, 0.0)),
        (["--preset", "paper", "--steps", "7"], (7, 0, 0.0)),
    ],
)
def test_a_length_that_is_given_takes_the_preset_s_place(
    run: Run, options: list[str], expected: tuple[int, int, float]
) -> None:
    training = yaml.safe_load(run("train", "a", *options, "--print-config").out)["training"]
    assert (training["steps"], training["epochs"], training["minutes"]) == expected


def test_a_length_in_a_file_takes_the_preset_s_place(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("training: {minutes: 600}\n")
    training = read_config(path).training
    assert (training.steps, training.epochs, training.minutes) == (0, 0, 600)
    # And that of --self.
    coarse = grid_of_slices(4.0)
    io.write(tmp_path / "thick.nii", Volume(scene(coarse), coarse.affine))
    ran = run("train", tmp_path / "thick.nii", "--self", "--config", path, "--print-config")
    assert yaml.safe_load(ran.out)["training"]["minutes"] == 600


def test_one_volume_is_learnt_from_with_the_weights_that_a_file_names(
    run: Run, tmp_path: Path
) -> None:
    coarse = grid_of_slices(4.0)
    io.write(tmp_path / "thick.nii", Volume(scene(coarse), coarse.affine))
    own = shutil.copy(weights.resolve("default"), tmp_path / "mine.safetensors")
    path = tmp_path / "own.yaml"
    path.write_text(f"start: {own}\n")
    words = ["train", tmp_path / "thick.nii", "--self", "--print-config", "--config", path]
    assert yaml.safe_load(run(*words).out)["start"] == str(own)
    assert yaml.safe_load(run(*words, "--from", "default").out)["start"] == "default"


def test_a_baseline_starts_from_weights_of_its_own_with_the_settings_of_a_file(
    run: Run, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training: {learning_rate: 2.0e-4}\n")
    words = ["train", data, "--config", path, "--baseline", "ResCNN", "--scale", "2"]
    settings = yaml.safe_load(run(*words, "--from", "x2.safetensors", "--print-config").out)
    assert settings["start"] == "x2.safetensors"
    assert settings["training"]["learning_rate"] == 2e-4


def test_a_run_goes_on_as_it_began_and_as_long_as_is_asked(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["train", "--out", folder, "--resume", "--quiet"]
    assert run("train", data, "--out", folder, *tiny, "--quiet").status == 0
    with (folder / "log.csv").open("ab") as log:
        log.write(b"\n\0\0\0\0\n7,0.5")  # the machine went down
    # By another measure of length than before.
    assert run(*words, "--epochs", 3) == Ran(0, "", "")
    assert read_checkpoint(folder / LAST)["global_step"] > 3
    steps = [int(row.split(",")[0]) for row in (folder / "log.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))
    refused(run(*words, "--from", "arssr-rdnn"), 2, "random weights", "arssr-rdnn")
    refused(run(*words, "--self"), 2, "none of --self")


def test_cubes_of_another_volume_in_the_folder_are_not_taken(run: Run, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    models.save(start, models.build(TINY), models.Card(TINY), torch.float32)
    coarse = grid_of_slices(4.0)
    cubes = []
    for power in (0.6, 0.1):
        folder = tmp_path / str(power)
        folder.mkdir()
        io.write(folder / "thick.nii", Volume(scene(coarse, power), coarse.affine))
        words = ["train", folder / "thick.nii", "--self", "--from", start, "--steps", 1]
        options = ["--device", "cpu", "--workers", 0, "--quiet", "--batch", 2]
        out = tmp_path / "run"
        assert run(*words, "--out", out, *options) == Ran(0, "", "")
        cubes.append({path.name for path in (out / "isotropic").iterdir()})
        (out / LAST).unlink()  # as if it had ended before its first checkpoint
    assert len(cubes[1] - cubes[0]) == 1
    many = run(*words, "--out", tmp_path / "other", "--holdout", 1)
    refused(many, 2, "1 subject cannot be trained on", "--holdout")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--steps", "0"], ["no end"]),
        (["--minutes", "-1"], ["minutes", "at least 0"]),
        (["--minutes", "nan"], ["minutes", "finite", "nan"]),
        (["--minutes", "inf"], ["minutes", "finite", "inf"]),
        (["--learning-rate", "0"], ["learning rate"]),
        (["--learning-rate", "nan"], ["learning_rate", "finite"]),
        (["--patch", "0"], ["patch", "at least 1"]),
        (["--batch", "x"], ["--batch", "'x'"]),
        (["--sharp-axes", "x,y"], ["--sharp-axes", "'x,y'", "i, j, k"]),
        (["--device", "cuda:99"], ["'cuda:99'", "cpu"]),
        (["--gpu", "x"], ["--gpu", "'x'"]),
        (["--name", "a/b"], ["'a/b'", "name"]),
        (["--holdout", "5"], ["5 held out"]),
        (["--encoder", "VGG"], ["--encoder", "VGG"]),
        (["--from", "nowhere"], ["nowhere"]),
        (["--hr-data-train", "again"], ["--hr-data-train"]),
        (["--preset", "paper"], ["preset", "'default'"]),
        (["--self"], ["--self", "one volume"]),
        (["--strategy", "fsdp"], ["--strategy"]),
        (["--scale", "2"], ["--scale", "--baseline"]),
        (["--baseline", "DCSRN"], ["DCSRN knows one scale"]),
        (["--baseline", "DCSRN", "--scale", "0.5"], ["--scale", "at least 1"]),
        (["--baseline", "VGG", "--scale", "2"], ["--baseline", "VGG"]),
        (
            ["--baseline", "DCSRN", "--scale", "2", "--decoder-width", "3"],
            ["DCSRN", "--decoder-width"],
        ),
        (["--samples", "3"], ["--samples", "'default'"]),
    ],
)
def test_training_that_cannot_be_meant_is_wrong_use(
    *,
    run: Run,
    data: Path,
    tiny: list[str],
    tmp_path: Path,
    options: list[str],
    parts: list[str],
) -> None:
    folder = tmp_path / "run"
    refused(run("train", data, "--out", folder, *tiny, *options), 2, *parts)
    assert not folder.exists()


def test_training_without_volumes_or_a_place(run: Run, data: Path, tmp_path: Path) -> None:
    refused(run("train", data), 2, "--out", "napari-arssr train --help")
    refused(run("train", "--out", tmp_path / "run"), 2, "nothing to train on")
    # A folder that is not there is a slip of the keyboard, and not a volume to be left out.
    missing = run("train", data, tmp_path / "none", "--out", tmp_path / "run")
    refused(missing, 1, f"{tmp_path / 'none'} does not exist")
    refused(run("train", data, "--out", tmp_path / "run", "--config", "no.yaml"), 1, "no.yaml")
    assert not (tmp_path / "run").exists()


def test_help_is_there_and_loads_nothing_heavy(run: Run) -> None:
    for command in ("train", "patches", "export"):
        ran = run(command, "--help")
        assert ran.status == 0
        assert f"napari-arssr {command}" in ran.out
    script = (
        "import sys\n"
        "from napari_arssr import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pytorch_lightning', 'numpy', 'yaml', 'nibabel'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# One volume ---------------------------------------------------------------------------------------


def grid_of_slices(thickness: float) -> Grid:
    """Voxels 1 mm in plane (z, y, x), slices along z."""
    return Grid.from_spacing((round(48 / thickness), 48, 48), (thickness, 1.0, 1.0))


def scene(grid: Grid, power: float = 0.6) -> np.ndarray[Any, Any]:
    """Waves of many lengths in all directions, meant over the thickness of a slice."""
    generator = np.random.default_rng(5)
    z, y, x = np.moveaxis(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)[::-1]
    thickness = grid.spacing[0]
    total = np.zeros(grid.shape)
    for _ in range(60):
        direction = generator.standard_normal(3)
        direction /= np.linalg.norm(direction)
        length = generator.uniform(4.0, 16.0)
        kz, ky, kx = direction / length
        # What a slice of that profile sees of a wave: less the faster it runs across.
        seen = np.exp(-3.56 * (kz * thickness) ** 2)
        phase = generator.uniform(0, 2 * np.pi)
        total += seen * length**power * np.cos(2 * np.pi * (kx * x + ky * y + kz * z) + phase)
    return (1000 + 100 * total).astype(np.float32)


def test_one_volume_teaches_its_own_coarse_axis(run: Run, tmp_path: Path) -> None:
    """End to end: thick slices in, weights out that sharpen them beyond cubic interpolation."""
    coarse, fine = grid_of_slices(3.0), grid_of_slices(1.0)
    scan = tmp_path / "thick.nii.gz"
    io.write(scan, Volume(scene(coarse), coarse.affine))
    start = tmp_path / "start.safetensors"
    torch.manual_seed(2)  # the smallest of networks: some starting weights learn nothing
    model = models.build(replace(TINY, features=12, growth=8, decoder_width=24))
    models.save(start, model, models.Card(model.config), torch.float32)
    words = ["train", scan, "--self", "--from", start, "--out", tmp_path / "run", "--quiet"]
    options = ["--steps", 150, "--learning-rate", 2e-3, "--batch", 2, "--watch-every", 150]
    ran = run(*words, *options, "--device", "cpu", "--workers", 0, "--warm-up", 10)
    assert ran == Ran(0, "", "")
    config = read_config(tmp_path / "run" / "run.yaml")
    assert config.training.sharp_axes == (1, 2)
    assert config.training.augmentation.thick_slices == 1
    # It learns among cubes that the starting weights made; the record names the scan itself.
    (cubes,) = (tmp_path / "run" / "isotropic").iterdir()
    assert cubes.name.startswith("thick-")
    assert io.read(cubes).grid == fine
    card = models.read_card(tmp_path / "run" / "trained.safetensors")
    digest = hashlib.sha256(scan.read_bytes()).hexdigest()
    assert card.training["files_sha256"] == {"thick.nii.gz": digest}
    # To go on, the cubes are there and the weights no longer needed.
    start.rename(tmp_path / "moved.safetensors")
    assert run("train", "--out", tmp_path / "run", "--resume", "--steps", 151, "--quiet").err == ""
    (tmp_path / "moved.safetensors").rename(start)
    scores = {}
    for name in (start, tmp_path / "run" / "trained.safetensors"):
        result = tmp_path / f"{name.stem}.nii"
        assert (
            run("upsample", scan, result, "--isotropic", "--weights", name, "--quiet").status == 0
        )
        volume = io.read(result)
        assert volume.grid == fine
        inner = (slice(6, -6),) * 3
        truth = scene(fine)[inner]
        scores[name.stem] = psnr(truth, volume.data[inner])
    assert scores["trained"] > scores["start"] + 0.5


def test_learning_from_one_volume_has_a_time_budget_and_bundled_weights(
    run: Run, tmp_path: Path
) -> None:
    coarse = grid_of_slices(4.0)
    scan = tmp_path / "thick.nii"
    io.write(scan, Volume(scene(coarse), coarse.affine))
    settings = yaml.safe_load(run("train", scan, "--self", "--print-config").out)
    training = settings["training"]
    assert (training["minutes"], training["steps"]) == (10.0, 0)
    assert training["learning_rate"] == pytest.approx(7e-5)
    assert settings["start"] == "default"
    assert training["model"] == weights.load("default").card.config.to_dict()
    augmentation = training["augmentation"]
    assert augmentation["smallest_thick_scale"] < 4 < augmentation["largest_thick_scale"]
    ran = run("train", scan, "--self", "--minutes", 0.5, "--print-config")
    assert yaml.safe_load(ran.out)["training"]["minutes"] == 0.5


def test_a_volume_without_a_coarse_axis_has_nothing_to_learn_from(run: Run, tmp_path: Path) -> None:
    grid = Grid.from_spacing((20, 20, 20), 1.0)
    path = tmp_path / "cubes.nii"
    io.write(path, Volume(scene(grid), grid.affine))
    ran = run("train", path, "--self", "--out", tmp_path / "run")
    refused(ran, 2, "cubes.nii", "1 × 1 × 1 mm", "no coarse axis")
    folder = run("train", tmp_path, "--self", "--out", tmp_path / "run")
    refused(folder, 2, "one volume")


# Patches and export -------------------------------------------------------------------------------


def test_a_data_set_is_cut_and_trained_on(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    ran = run("patches", data, "--out", cut, "--size", 8, "--count", 2, "--validation-share", 0.34)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == [
        f"{cut / 'train'}: 4 patches of 2 volumes",
        f"{cut / 'val'}: 2 patches of 1 volumes",
    ]
    manifest = json.loads((cut / "patches.json").read_text())
    again = run("patches", data, "--out", tmp_path / "again", "--manifest", cut / "patches.json")
    assert again.status == 0, again.err
    other = json.loads((tmp_path / "again" / "patches.json").read_text())
    assert other["volumes"] == manifest["volumes"]
    words = ["train", cut / "train", "--val", cut / "val", "--out", tmp_path / "run", *tiny]
    trained = run(*words, "--patch", 4, "--quiet")
    assert trained.status == 0, trained.err
    card = models.read_card(tmp_path / "run" / "trained.safetensors")
    assert len(card.training["files_sha256"]) == 4
    assert len(card.training["validation_sha256"]) == 2
    refused(run("patches", data, "--out", cut), 2, "holds patches already")
    refused(run("patches", data, "--out", tmp_path / "n", "--size", 1), 2, "at least 2")


def test_a_run_is_exported_with_its_card(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    assert run("train", data, "--out", tmp_path / "run", *tiny, "--quiet").status == 0
    path = tmp_path / "own.safetensors"
    ran = run("export", tmp_path / "run", path, "--half", "--name", "own", "--licence", "MIT")
    assert ran.status == 0, ran.err
    assert ran.out.startswith(str(path))
    assert weights.load(path).card.licence == "MIT"
    assert "# own" in (tmp_path / "own.md").read_text()
    assert run("export", tmp_path / "run", path, "--which", "last", "--quiet") == Ran(0, "", "")
    refused(run("export", data, path), 1, "holds no run")
    refused(run("export", tmp_path / "run", tmp_path / "a.pkl"), 2, "a.pkl", ".safetensors")


# Processes ----------------------------------------------------------------------------------------


def start(words: Sequence[object], **environment: str) -> subprocess.Popen[str]:
    """The command in a process and a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "napari_arssr", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], since: int = 0) -> None:
    """Until a file is there that was changed after ``since``."""
    limit = time.monotonic() + 300
    while not path.exists() or path.stat().st_mtime_ns <= since:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_killed_run_leaves_a_whole_state_and_a_signalled_one_saves(
    data: Path, tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["train", data, "--out", folder, *tiny, "--steps", 10**6, "--watch-every", 10**6]
    words = [*words, "--save-every", 1, "--workers", 1]
    process = start(words)
    wait_for(folder / LAST, process)
    time.sleep(0.2)  # in the middle of saving as like as not: it saves after every step
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = read_checkpoint(folder / LAST)[RUN_KEY]["step"]
    assert first >= 1
    changed = (folder / LAST).stat().st_mtime_ns
    process = start(["train", "--out", folder, "--resume"])
    wait_for(folder / LAST, process, changed)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C: to the workers too
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert err.startswith("napari-arssr: Stopped by SIGINT after step")
    assert len(err.splitlines()) == 1
    assert read_checkpoint(folder / LAST)[RUN_KEY]["step"] > first


def test_what_holds_no_run_cannot_be_resumed(run: Run, tmp_path: Path) -> None:
    refused(run("train", "--out", tmp_path / "none", "--resume"), 2, "holds no run")


def test_a_run_is_resumed_without_its_settings_file(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run("train", data, "--out", folder, *tiny).status == 0
    (folder / "run.yaml").unlink()
    (folder / "trained.safetensors").unlink()
    ran = run("train", "--out", folder, "--resume", "--steps", "4")
    assert ran.status == 0, ran.err
    assert read_checkpoint(folder / LAST)[RUN_KEY]["step"] == 4
    assert (folder / "run.yaml").is_file()


def test_a_name_that_is_a_run_s_own_is_refused(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    words = ["train", data, "--out", tmp_path / "run", *tiny, "--name"]
    refused(run(*words, "best"), 2, "'best'", "take another")
    refused(run(*words, "n" * 300), 2, "is not a name")


def test_a_folder_with_an_impossible_name_is_one_sentence(
    run: Run, data: Path, tiny: list[str], tmp_path: Path
) -> None:
    refused(run("train", data, "--out", tmp_path / ("n" * 300), *tiny), 1, "ile name too long")


def test_a_run_whose_reader_has_gone_ends_well(data: Path, tiny: list[str], tmp_path: Path) -> None:
    process = start(["train", data, "--out", tmp_path / "run", *tiny])
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=200) == 0
    assert (tmp_path / "run" / "trained.safetensors").is_file()


def test_two_processes_train_as_one(run: Run, data: Path, tiny: list[str], tmp_path: Path) -> None:
    """On this machine, by gloo: each draws its own pairs, and the weights are the same."""
    folder = tmp_path / "run"
    words = ["train", data, "--out", folder, *tiny, "--devices", 2, "--strategy", "ddp"]
    process = start(words)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, (out, err)
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["1", "2", "3"]  # said once
    assert lines[-1] == str(folder / "trained.safetensors")
    assert read_checkpoint(folder / LAST)[RUN_KEY]["step"] == 3
    assert models.read_card(folder / "trained.safetensors").scores
    # The second process had its part in it.
    alone = run("train", data, "--out", tmp_path / "alone", *tiny, "--quiet")
    assert alone.status == 0
    ours, theirs = (read_checkpoint(f / LAST)["state_dict"] for f in (folder, tmp_path / "alone"))
    name = "model.encoder.sfe1.weight"
    assert not torch.equal(ours[name], theirs[name])
