"""A run: what it leaves, that it can be stopped anywhere, what it does when things go wrong."""

from __future__ import annotations

import csv
import errno
import hashlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from napari_arssr import cli, io, models, weights
from napari_arssr.errors import ArssrError, Cancelled, FileError, UsageError
from napari_arssr.field import CubicField, NetworkField
from napari_arssr.files import write_whole
from napari_arssr.models import BaselineConfig, ModelConfig, build
from napari_arssr.normalization import Normalizer
from napari_arssr.training import (
    Augmentation,
    DataConfig,
    MachineConfig,
    Progress,
    RunConfig,
    TrainingConfig,
    export_run,
    preset,
    read_config,
    train,
)
from napari_arssr.training import module as module_under_test
from napari_arssr.training import run as run_module
from napari_arssr.training.batches import Batch, GridBatch, build_network, is_dead, predict
from napari_arssr.training.checkpoints import LAST, RUN_KEY, read_checkpoint
from napari_arssr.training.config import of_baseline
from napari_arssr.training.data import _leave_signals_to_the_run, training_pairs, worker_count
from napari_arssr.training.export import BEST
from napari_arssr.training.module import TrainingModule
from napari_arssr.training.progress import Plan
from napari_arssr.training.run import starting_from
from napari_arssr.training.volumes import load_volumes
from napari_arssr.volume import Volume

TINY = ModelConfig(
    decoder="residual",
    feature_dim=6,
    decoder_depth=3,
    decoder_width=12,
    features=8,
    growth=4,
    blocks=1,
    layers=2,
)
TRAINING = TrainingConfig(
    model=TINY,
    patch=8,
    lattice=6,
    batch=2,
    largest_scale=2.5,
    learning_rate=5e-3,
    warm_up=2,
    steps=6,
    watch_every=3,
    watch_batches=2,
    save_every=100,
    precision="float32",
)
PAPER = replace(
    preset("paper").training,
    model=replace(TINY, decoder="published", decoder_depth=4),
    patch=4,
    cut=16,
    samples=100,
    batch=5,
    epochs=3,
    snapshot_every=2,
    precision="float32",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        io.write(folder / f"sub-{number}.nii.gz", head(number))
    return folder


def head(seed: int) -> Volume:
    """Something with soft and sharp edges in a background."""
    noise = np.random.default_rng(seed).standard_normal((24, 25, 26))
    blobs = gaussian_filter(noise, 2) > 0.02
    ball = np.linalg.norm(np.indices(noise.shape).T - 12, axis=-1).T < 11
    return Volume((ball * (400 + 600 * blobs)).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def run(data: Path) -> RunConfig:
    return RunConfig(
        training=TRAINING,
        data=DataConfig(train=(str(data),), workers=0),
        machine=MachineConfig(device="cpu"),
    )


def but(run: RunConfig, **changes: Any) -> RunConfig:
    return replace(run, training=replace(run.training, **changes))


def after(steps: int) -> Callable[[], bool]:
    """A stop that says so after so many steps."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor that a run's state consists of."""
    state = read_checkpoint(folder / LAST)
    found = dict(state["state_dict"])
    for number, moments in state["optimizer_states"][0]["state"].items():
        found |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    found["losses"] = state[RUN_KEY]["losses"]
    return found


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def assert_same_run(one: Path, other: Path) -> None:
    """All that a run leaves is the same, bit for bit, but for the time it took."""
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    for name in ("step", "best", "best_step", "stale", "counted"):
        values = [read_checkpoint(folder / LAST)[RUN_KEY][name] for folder in (one, other)]
        assert values[0] == values[1], name
    rows = [
        [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in table(folder)]
        for folder in (one, other)
    ]
    assert rows[0] == rows[1]
    for name in (BEST, "trained.safetensors"):
        if (one / name).exists():
            a, b = (models.load(folder / name)[0].state_dict() for folder in (one, other))
            assert all(torch.equal(a[key], b[key]) for key in a), name


# What a run is ------------------------------------------------------------------------------------


def test_a_folder_of_volumes_becomes_a_file_of_weights(
    tmp_path: Path, data: Path, run: RunConfig
) -> None:
    told: list[Progress] = []
    config = replace(run, weights=replace(run.weights, name="mine", licence="CC0"))
    path = train(config, tmp_path / "run", report=told.append)
    assert path == tmp_path / "run" / "mine.safetensors"
    model, card = models.load(path)
    assert (card.name, card.licence, card.config) == ("mine", "CC0", TINY)
    training = card.training
    assert TrainingConfig.from_dict(training["config"]) == TRAINING
    assert training["preset"] == "default"
    assert training["normalization"] == "percentile"
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(data.iterdir())
    }
    held_out = hashes.pop("sub-2.nii.gz")
    assert training["files_sha256"] == hashes
    assert training["validation_sha256"] == {"sub-2.nii.gz": held_out}
    assert {"napari-arssr", "torch", "pytorch-lightning", "python"} <= training["versions"].keys()
    assert str(data) not in str(card)  # where files were is nobody's business
    scores = card.scores["pairs of the run's held-out volumes"]
    best = max(told, key=lambda progress: progress.psnr)
    assert scores["psnr_db"] == pytest.approx(best.psnr, abs=1e-3)
    assert (scores["step"], training["steps"]) == (best.step, best.step)
    # The network can be sampled as it is, and its settings started again.
    source = head(0)
    field = NetworkField(source, model, Normalizer.fit(source.data))
    assert np.isfinite(field.sample(source.grid.scaled(1.2)).data).all()
    assert read_config(tmp_path / "run" / "run.yaml") == config
    text = path.with_suffix(".md").read_text()
    assert all(part in text for part in ("# mine", "CC0", "sub-2.nii.gz", held_out, "gain_db"))


def test_the_moving_average_is_what_is_kept(tmp_path: Path, run: RunConfig) -> None:
    kept = models.load(train(but(run, steps=3), tmp_path))[0].state_dict()
    state = read_checkpoint(tmp_path / LAST)["state_dict"]
    for name, tensor in kept.items():
        assert torch.equal(tensor, state[f"averaged.{name}"]), name
    name = "encoder.sfe1.weight"
    assert not torch.equal(kept[name], state[f"model.{name}"])


def test_the_moving_average_follows_the_weights_and_leaves_them_alone(
    tmp_path: Path, run: RunConfig
) -> None:
    one = but(run, steps=2, watch_every=1, learning_rate=0.1)
    after_each = []
    train(one, tmp_path / "mean", report=lambda _: after_each.append(states(tmp_path / "mean")))
    train(but(one, average=0.0), tmp_path / "none")
    torch.manual_seed(TRAINING.seed)
    first = models.build(TINY).state_dict()["encoder.sfe1.weight"]
    name = "encoder.sfe1.weight"
    (model_1, mean_1), (model_2, mean_2) = (
        (state[f"model.{name}"], state[f"averaged.{name}"]) for state in after_each
    )
    # Decays of 1/10 and 2/11: a young average forgets its random start.
    torch.testing.assert_close(mean_1, first + 0.9 * (model_1 - first))
    torch.testing.assert_close(mean_2, mean_1 + 9 / 11 * (model_2 - mean_1))
    assert torch.equal(model_2, states(tmp_path / "none")[f"model.{name}"])


def states(folder: Path) -> dict[str, Tensor]:
    """The networks' tensors in a run's state."""
    found: dict[str, Tensor] = read_checkpoint(folder / LAST)["state_dict"]
    return found


def test_progress_is_reported_and_logged(tmp_path: Path, run: RunConfig) -> None:
    told: list[Progress] = []
    train(run, tmp_path, report=told.append)
    assert [(one.step, one.share, one.epoch) for one in told] == [(3, 0.5, 0), (6, 1.0, 1)]
    assert all(0 < one.loss < 2 and np.isfinite(one.gain) for one in told)
    assert all(0 <= one.waiting <= 1 and one.seconds > 0 for one in told)
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == ["3", "6"]
    assert float(rows[1]["loss"]) == pytest.approx(told[1].loss, abs=1e-6)
    assert float(rows[1]["learning_rate"]) == pytest.approx(told[1].rate, rel=0.01)


def test_tensorboard_has_curves_and_example_slices(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from napari_arssr.training.logs import Curves

    monkeypatch.setattr(Curves, "every", 2)
    train(run, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
    gains = [event.value for event in events.Scalars("validation/gain_db")]
    assert gains == pytest.approx([float(row["gain_db"]) for row in table(tmp_path)], abs=1e-3)
    (first, last) = events.Images("cubic, network, truth")
    assert (first.step, last.step) == (3, 6)
    assert (last.width, last.height) == (3 * 24, 24)
    assert first.encoded_image_string != last.encoded_image_string


def test_training_starts_from_cubic_interpolation() -> None:
    module = TrainingModule(models.build(TINY), Plan(TRAINING, 1), {})
    source = head(0)
    field = NetworkField(source, module.averaged, Normalizer.fit(source.data))
    grid = source.grid.scaled(1.3)
    np.testing.assert_allclose(
        field.sample(grid).data, CubicField(source).sample(grid).data, atol=0.05
    )


@pytest.mark.parametrize(("decoder", "share"), [("residual", 0.97), ("published", 0.6)])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_steps_on_one_batch_lower_its_loss(
    data: Path, decoder: str, share: float, bfloat16: bool
) -> None:
    network = replace(TINY, decoder=decoder, decoder_depth=4)
    config = replace(TRAINING, model=network)
    torch.manual_seed(0)
    module = TrainingModule(models.build(network), Plan(config, 1), {})
    if decoder == "published":  # a last ReLU that starts at 0 never learns
        torch.nn.init.constant_(module.model.decoder.stage_two[-2].bias, 0.1)
    batch = training_pairs(load_volumes([data]), config).batch(0)
    optimizer = torch.optim.Adam(module.model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = module.loss(predict(module.model, batch), batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < share * losses[0]


def test_the_loss_is_the_absolute_error_and_what_was_asked_for(data: Path) -> None:
    batch = training_pairs(load_volumes([data]), TRAINING).batch(0)
    ramp = torch.linspace(0, 0.5, 6).view(1, 6, 1, 1).expand_as(batch.target)

    def loss(**terms: float) -> float:
        config = replace(TRAINING, **{"squared": 0.0, **terms})
        module = TrainingModule(models.build(TINY), Plan(config, 1), {})
        return float(module.loss(batch.target + ramp, batch))

    assert loss() == pytest.approx(0.25)
    assert loss(squared=2.0) == pytest.approx(0.25 + 2 * float(ramp.square().mean()))
    assert loss(edges=3.0) == pytest.approx(0.25 + 0.1)  # steps of 0.1 along one axis of three


def test_held_out_volumes_are_watched_and_never_trained_on(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {"training_step": set(), "validation_step": set()}
    for name, names in seen.items():
        step = getattr(TrainingModule, name)

        def noting(
            self: Any, batch: Batch, batch_idx: int, *, step: Any = step, names: Any = names
        ) -> Any:
            names.update(batch.names)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(TrainingModule, name, noting)
    train(run, tmp_path)
    assert seen["training_step"] == {"sub-0.nii.gz", "sub-1.nii.gz"}
    assert seen["validation_step"] == {"sub-2.nii.gz"}


def test_the_best_weights_are_kept_though_the_run_goes_on(tmp_path: Path, run: RunConfig) -> None:
    # A rate that grows until it ruins what was learnt.
    rough = but(run, steps=6, watch_every=1, learning_rate=0.5, warm_up=6, average=0.0, clip=0.0)
    rough = but(rough, schedule="constant")
    path = train(rough, tmp_path)
    rows = table(tmp_path)
    scores = [float(row["psnr_db"]) for row in rows]
    assert scores[-1] < max(scores)
    best = rows[int(np.argmax(scores))]
    assert best["best"] == "1"
    assert models.read_card(path).training["steps"] == int(best["step"])
    kept = models.load(tmp_path / BEST)[0].state_dict()
    for name, tensor in models.load(path)[0].state_dict().items():
        assert torch.equal(tensor, kept[name])
    last = models.load(export_run(tmp_path, tmp_path / "last.safetensors", which="last"))[0]
    assert not torch.equal(last.state_dict()["encoder.sfe1.weight"], kept["encoder.sfe1.weight"])


def test_a_run_ends_when_it_no_longer_gets_better(tmp_path: Path, run: RunConfig) -> None:
    told: list[Progress] = []
    still = but(run, steps=100, watch_every=2, patience=2, learning_rate=1e-30)
    train(still, tmp_path, report=told.append)
    assert [one.step for one in told] == [2, 4, 6]
    assert [one.best for one in told] == [True, False, False]
    assert told[-1].share == 1
    # It has ended, and is not gone on with.
    (tmp_path / "trained.safetensors").unlink()
    train(still, tmp_path, resume=True, report=told.append)
    assert len(told) == 3
    assert (tmp_path / "trained.safetensors").exists()
    train(replace(still, training=replace(still.training, patience=3)), tmp_path, resume=True)
    assert read_checkpoint(tmp_path / LAST)[RUN_KEY]["step"] == 8


def test_a_run_stopped_where_a_validation_is_due_is_saved_as_it_was_before(
    tmp_path: Path, run: RunConfig
) -> None:
    each = but(run, watch_every=1, steps=3)
    with pytest.raises(Cancelled, match="after step 1; the run is saved as it was after step 0 in"):
        train(each, tmp_path / "run", stop=after(1))
    with pytest.raises(Cancelled, match="after step 2; the run is saved as it was after step 1 in"):
        train(each, tmp_path / "run", resume=True, stop=after(2))
    train(each, tmp_path / "run", resume=True)
    train(each, tmp_path / "whole")
    ours, theirs = tensors(tmp_path / "run"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_snapshot_is_kept_where_a_run_is_stopped(tmp_path: Path, run: RunConfig) -> None:
    often = but(run, watch_every=100, snapshot_every=1, steps=0, epochs=3)
    train(often, tmp_path / "whole")
    an_epoch = read_checkpoint(tmp_path / "whole" / LAST)[RUN_KEY]["step"] // 3
    with pytest.raises(Cancelled):
        train(often, tmp_path / "run", stop=after(an_epoch))
    assert (tmp_path / "run" / "epoch-1.safetensors").is_file()
    train(often, tmp_path / "run", resume=True)
    names = sorted(path.name for path in (tmp_path / "run").glob("epoch-*.safetensors"))
    assert names == ["epoch-1.safetensors", "epoch-2.safetensors", "epoch-3.safetensors"]


def test_the_gradient_s_norm_is_clipped(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = TrainingModule.optimizer_step

    def noting(self: TrainingModule, *arguments: Any, **options: Any) -> None:
        clip = self.configure_gradient_clipping

        def clipped(*a: Any, **o: Any) -> None:
            clip(*a, **o)
            squares = [p.grad.square().sum() for p in self.model.parameters() if p.grad is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()))

        monkeypatch.setattr(self, "configure_gradient_clipping", clipped)
        step(self, *arguments, **options)
        monkeypatch.setattr(self, "configure_gradient_clipping", clip)

    monkeypatch.setattr(TrainingModule, "optimizer_step", noting)
    train(but(run, clip=1e-3, steps=2), tmp_path)
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)


def test_the_last_weights_say_how_they_were_scored(tmp_path: Path, run: RunConfig) -> None:
    path = train(but(run, holdout=0), tmp_path / "run")
    (scores,) = models.read_card(path).scores.values()
    assert scores["step"] == 6
    assert {"gain_db", "psnr_db", "mean_absolute_error"} < scores.keys()


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [
        ({}, 1, 1),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "1"}, 4, 2),
        ({"SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "3", "SLURM_JOB_ID": "1"}, 3, 1),
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "TORCHELASTIC_RUN_ID": "a"}, 2, 3),
    ],
)
def test_processes_are_counted_as_they_were_launched(
    environment: dict[str, str], devices: int, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("NTASKS", "NNODES", "NTASKS_PER_NODE", "JOB_ID", "JOB_NAME", "PROCID")
    for name in names:
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name in ("RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "TORCHELASTIC_RUN_ID" in environment:
        for name in ("RANK", "GROUP_RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
    assert (run_module._launched(), run_module._launched_nodes()) == (devices, nodes)


def test_resuming_with_other_processes_is_refused(stopped: Path, run: RunConfig) -> None:
    two = replace(run, machine=replace(run.machine, devices=2))
    with pytest.raises(UsageError, match="started in 1 processes and would go on in 2"):
        train(two, stopped, resume=True)


def test_renamed_volumes_change_nothing(tmp_path: Path, data: Path, run: RunConfig) -> None:
    train(run, tmp_path / "whole")
    with pytest.raises(Cancelled):
        train(run, tmp_path / "run", stop=after(2))
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(data.iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"sub-{number + 5}.nii.gz")
    other = replace(run, data=replace(run.data, train=(str(renamed),)))
    # The same three, but the one that was held out is no longer the last by name.
    other = replace(other, data=replace(other.data, validation=(str(renamed / "sub-5.nii.gz"),)))
    trained = tuple(str(renamed / f"sub-{number}.nii.gz") for number in (6, 7))
    other = replace(other, data=replace(other.data, train=trained))
    train(other, tmp_path / "run", resume=True)
    ours, theirs = tensors(tmp_path / "run"), tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_can_be_bounded_by_the_clock(tmp_path: Path, run: RunConfig) -> None:
    told: list[Progress] = []
    train(but(run, steps=0, minutes=0.002, watch_every=10**6), tmp_path, report=told.append)
    assert len(told) == 1
    assert told[0].share == 1
    assert 0.12 <= told[0].seconds < 60
    assert (tmp_path / "trained.safetensors").exists()


def test_gradients_of_several_batches_make_a_step(tmp_path: Path, run: RunConfig) -> None:
    counted = []
    step = TrainingModule.training_step

    def counting(self: TrainingModule, batch: Batch, batch_idx: int) -> Tensor:
        counted.append(batch.names)
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", counting)
        train(but(run, accumulate=3, steps=4), tmp_path)
    assert len(counted) == 12
    assert [row["step"] for row in table(tmp_path)] == ["3", "4"]


def test_the_paper_s_protocol_runs_in_epochs(tmp_path: Path, run: RunConfig) -> None:
    config = replace(run, preset="paper", training=PAPER)
    told: list[Progress] = []
    path = train(config, tmp_path, report=told.append)
    # 12 patches of two volumes in batches of 5, 5 and 2.
    assert [(one.step, one.epoch) for one in told] == [(3, 1), (6, 2), (9, 3)]
    assert (tmp_path / "epoch-2.safetensors").exists()
    assert not (tmp_path / "epoch-1.safetensors").exists()
    loaded = weights.load(path)
    assert loaded.card.config == PAPER.model
    assert loaded.card.training["normalization"] == "minmax"
    assert models.read_card(tmp_path / "epoch-2.safetensors").training["steps"] == 6


# Stopping and going on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"accumulate": 2, "average": 0.0},
        {"largest_patch": 10, "save_every": 2},
    ],
    ids=["float32", "bfloat16", "accumulated", "patches of several sizes"],
)
def test_a_run_that_is_stopped_and_resumed_is_the_same_run(
    tmp_path: Path, run: RunConfig, changes: dict[str, Any]
) -> None:
    config = but(run, steps=8, **changes)
    train(config, tmp_path / "whole")
    parts = tmp_path / "parts"
    for steps in (2, 1, 3):
        with pytest.raises(Cancelled, match="--resume"):
            train(config, parts, stop=after(steps), resume=parts.exists())
    before = tensors(parts)
    train(config, parts, resume=True)
    assert_same_run(tmp_path / "whole", parts)
    # And the steps did something.
    name = "state_dict encoder"
    changed = [k for k, v in tensors(parts).items() if not torch.equal(v, before[k])]
    assert len(changed) > 20, name


def test_workers_change_nothing(tmp_path: Path, run: RunConfig) -> None:
    train(run, tmp_path / "none")
    two = replace(run, data=replace(run.data, workers=2))
    with pytest.raises(Cancelled):
        train(two, tmp_path / "two", stop=after(2))
    train(two, tmp_path / "two", resume=True)
    assert_same_run(tmp_path / "none", tmp_path / "two")


def test_a_streamed_set_trains_as_one_in_memory(tmp_path: Path, run: RunConfig) -> None:
    train(run, tmp_path / "held")
    streamed = replace(run, data=replace(run.data, cache="none"))
    with pytest.raises(Cancelled):
        train(streamed, tmp_path / "streamed", stop=after(2))
    assert len(list((tmp_path / "streamed" / "unpacked").iterdir())) == 3
    train(streamed, tmp_path / "streamed", resume=True)
    assert_same_run(tmp_path / "held", tmp_path / "streamed")
    assert not list((tmp_path / "streamed").glob("unpacked/*"))


def test_the_paper_s_protocol_is_resumed_within_an_epoch(tmp_path: Path, run: RunConfig) -> None:
    config = replace(run, training=PAPER)
    train(config, tmp_path / "whole")
    for steps in (1, 4):
        with pytest.raises(Cancelled):
            train(config, tmp_path / "parts", stop=after(steps), resume=steps > 1)
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_stopped_during_a_validation_validates_again(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run, tmp_path / "whole")
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(TrainingModule, "on_validation_epoch_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "parts")
    assert read_checkpoint(tmp_path / "parts" / LAST)[RUN_KEY]["step"] == 2
    train(run, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_can_be_made_longer(tmp_path: Path, run: RunConfig) -> None:
    train(run, tmp_path)
    train(run, tmp_path, resume=True)  # nothing left to do
    assert len(table(tmp_path)) == 2
    train(but(run, steps=9), tmp_path, resume=True)
    assert [row["step"] for row in table(tmp_path)] == ["3", "6", "9"]
    assert read_checkpoint(tmp_path / LAST)[RUN_KEY]["step"] == 9


def test_rows_of_steps_that_are_done_again_are_written_once(tmp_path: Path, run: RunConfig) -> None:
    train(run, tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    train(but(run, steps=9), tmp_path, resume=True)
    (tmp_path / LAST).write_bytes(whole)  # as a crash would leave it
    train(but(run, steps=9), tmp_path, resume=True)
    assert [row["step"] for row in table(tmp_path)] == ["3", "6", "9"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("batch", {"batch": 3}),
        ("seed", {"seed": 1}),
        ("model", {"model": replace(TINY, growth=5)}),
        ("augmentation", {"augmentation": Augmentation(noise=0)}),
        ("sharp_axes", {"sharp_axes": (0, 1)}),
        ("precision", {"precision": "bfloat16"}),
        ("batch, schedule", {"batch": 3, "schedule": "constant"}),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(
    stopped: Path, run: RunConfig, name: str, change: dict[str, Any]
) -> None:
    before = (stopped / LAST).read_bytes()
    with pytest.raises(UsageError, match=rf"last\.ckpt.* another {name};"):
        train(but(run, **change), stopped, resume=True)
    assert (stopped / LAST).read_bytes() == before


def test_a_run_of_before_a_setting_was_there_goes_on(stopped: Path, run: RunConfig) -> None:
    state = torch.load(stopped / LAST, weights_only=True)
    del state[RUN_KEY]["config"]["training"]["edges"]
    torch.save(state, stopped / LAST)
    assert read_checkpoint(stopped / LAST)[RUN_KEY]["step"] < TRAINING.steps
    train(run, stopped, resume=True)
    assert read_checkpoint(stopped / LAST)[RUN_KEY]["step"] == TRAINING.steps


@pytest.fixture
def stopped(tmp_path: Path, run: RunConfig) -> Path:
    """The folder of a run that was stopped after two steps."""
    with pytest.raises(Cancelled):
        train(run, tmp_path / "run", stop=after(2))
    return tmp_path / "run"


def test_resuming_with_other_volumes_is_refused_by_name(
    stopped: Path, run: RunConfig, tmp_path: Path
) -> None:
    io.write(tmp_path / "sub-12.nii", head(12))
    more = (*run.data.train, str(tmp_path / "sub-12.nii"))
    changed = replace(run, data=replace(run.data, train=more))
    with pytest.raises(UsageError, match=r"other train volumes \(sub-12\.nii"):
        train(changed, stopped, resume=True)


def test_a_run_in_a_folder_is_not_overwritten(stopped: Path, run: RunConfig) -> None:
    before = (stopped / LAST).read_bytes()
    with pytest.raises(UsageError, match="holds a run already: resume it"):
        train(run, stopped)
    assert (stopped / LAST).read_bytes() == before


def test_a_requeued_job_resumes_by_itself(
    stopped: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(run, stopped)
    assert read_checkpoint(stopped / LAST)[RUN_KEY]["step"] == 6


def test_precision_is_settled_once(tmp_path: Path, run: RunConfig) -> None:
    with pytest.raises(Cancelled):
        train(but(run, precision="bfloat16"), tmp_path, stop=after(1))
    train(but(run, precision="auto"), tmp_path, resume=True)
    assert read_config(tmp_path / "run.yaml").training.precision == "bfloat16"


@pytest.mark.parametrize("content", [b"", b"half", b"not a checkpoint", "object", "another"])
def test_a_checkpoint_that_cannot_be_read_is_refused(
    stopped: Path, run: RunConfig, content: bytes | str
) -> None:
    path = stopped / LAST
    if content == b"half":
        content = path.read_bytes()[: path.stat().st_size // 2]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:  # an object, not plain values; plain values of another program
        torch.save({RUN_KEY: Path("/")} if content == "object" else {"step": 1}, path)
    with pytest.raises(FileError, match=r"last\.ckpt: the checkpoint cannot be read"):
        train(run, stopped, resume=True)
    path.unlink()
    with pytest.raises(FileError, match=r"last\.ckpt: there is no checkpoint"):
        train(run, stopped, resume=True)


# Signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_ends(tmp_path: Path, run: RunConfig, name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    asked = itertools.count(1)

    def send() -> bool:
        if next(asked) == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as ``timeout`` does; it is one wish
        return False

    with pytest.raises(Cancelled, match=rf"Stopped by {name} after step 2; .*--resume") as caught:
        train(run, tmp_path / "run", stop=send)
    assert "\n" not in str(caught.value)
    assert signal.getsignal(number) is before
    assert read_checkpoint(tmp_path / "run" / LAST)[RUN_KEY]["step"] == 2
    train(run, tmp_path / "run", resume=True)
    train(run, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, run: RunConfig) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(run, tmp_path, stop=lambda: bool(os.kill(os.getpid(), signal.SIGHUP)))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "trained.safetensors").exists()


@pytest.mark.parametrize("taken", [True, False])
def test_a_cluster_that_needs_the_machine_gets_the_job_back_later(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\nexit {int(not taken)}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "20")
    error = Cancelled if taken else ArssrError
    with pytest.raises(error, match="SIGUSR1" if taken else "would not take job 17_3"):
        train(run, tmp_path / "run", stop=lambda: bool(os.kill(os.getpid(), signal.SIGUSR1)))
    assert (tmp_path / "asked").read_text() == "requeue 17_3\n"
    assert read_checkpoint(tmp_path / "run" / LAST)[RUN_KEY]["step"] == 1


# When something goes wrong ------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(but(run, steps=3), tmp_path)
    before = (tmp_path / LAST).read_bytes()
    loss = TrainingModule.loss
    monkeypatch.setattr(
        TrainingModule,
        "loss",
        lambda self, *a: loss(self, *a) * (torch.nan if self.step == 4 else 1),
    )
    with pytest.raises(ArssrError) as caught:
        train(run, tmp_path, resume=True)
    message = str(caught.value)
    assert "The loss is nan at step 4" in message
    assert "sub-" in message
    assert "sub-2" not in message
    assert str(tmp_path / LAST) in message
    assert (tmp_path / LAST).read_bytes() == before
    monkeypatch.undo()
    train(run, tmp_path, resume=True)


def test_a_rate_that_is_far_too_large_is_noticed(tmp_path: Path, run: RunConfig) -> None:
    with pytest.raises(ArssrError, match=r"(loss|norm) is (nan|inf) at step .*nothing was saved"):
        train(but(run, learning_rate=1e30, clip=0.0, watch_every=100), tmp_path)


def test_a_network_that_would_never_learn_is_drawn_again() -> None:
    """The published decoder ends in a ReLU: where that is 0 everywhere there is no gradient."""
    dead = 0
    for seed in range(12):
        torch.manual_seed(seed)
        first = build(PAPER.network)
        dead += is_dead(first)
        torch.manual_seed(seed)
        drawn = build_network(PAPER)
        assert not is_dead(drawn)
        same = all(map(torch.equal, first.parameters(), drawn.parameters()))
        assert same != is_dead(first)  # what lives is what the seed gives
    assert 0 < dead < 12
    assert not is_dead(build(TINY))  # no ReLU at its end


def test_a_network_that_has_died_ends_the_run(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(model: models.ArSSR, batch: Batch) -> Tensor:
        return predict(model, batch) * (0 if asked.append(0) or len(asked) > 2 else 1)

    asked: list[int] = []
    monkeypatch.setattr(module_under_test, "predict", silent)
    monkeypatch.setattr(module_under_test, "_IDLE", 3)
    with pytest.raises(
        ArssrError, match=r"gradient was 0 in the last 3 steps, to step 4: .*--seed"
    ):
        train(but(run, steps=20, watch_every=100), tmp_path)


def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(model: models.ArSSR, batch: Batch) -> Tensor:
        zero = next(model.encoder.parameters()).square().sum() * 0
        return predict(model, batch) + zero.sqrt()

    networks = []
    build = models.build
    monkeypatch.setattr(module_under_test, "predict", steep)
    monkeypatch.setattr(
        "napari_arssr.training.batches.build", lambda c: networks.append(build(c)) or networks[-1]
    )
    with pytest.raises(ArssrError, match=r"gradient's norm is nan at step 0 .*nothing was saved"):
        train(run, tmp_path)
    torch.manual_seed(TRAINING.seed)
    fresh = build(TINY).state_dict()
    for name, tensor in networks[0].state_dict().items():
        assert torch.equal(tensor, fresh[name]), name
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed")],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_whole(
    stopped: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = (stopped / LAST).read_bytes()

    def fail(_state: Any, opened: Any) -> None:
        opened.write(b"the first half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(FileError, match=r"last\.ckpt cannot be written"):
            train(run, stopped, resume=True)
    assert (stopped / LAST).read_bytes() == before
    assert not list(stopped.glob(".partial*"))
    train(run, stopped, resume=True)


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number))[1])
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (done.append("rename"), rename(path, to))[1]
    )
    write_whole(tmp_path / "file", b"whole")
    assert done[:2] == ["sync", "rename"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_what_a_killed_run_left_half_written_is_removed(stopped: Path, run: RunConfig) -> None:
    (stopped / ".partial-x.ckpt").write_bytes(b"half")
    train(run, stopped, resume=True)
    assert not list(stopped.glob(".partial*"))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, run: RunConfig) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"file.*: the folder cannot be made"):
        train(run, tmp_path / "file" / "run")


def test_there_must_be_something_to_train_on(tmp_path: Path, run: RunConfig) -> None:
    with pytest.raises(UsageError, match=r"3 subjects .* 3 held out"):
        train(but(run, holdout=3), tmp_path / "run")
    with pytest.raises(UsageError, match="nothing to train on"):
        train(replace(run, data=DataConfig()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("machine", "changes", "said"),
    [
        (MachineConfig(device="cuda:99"), {}, "'cuda:99'"),
        (MachineConfig(device="cpu"), {"precision": "float16"}, "float16 is for NVIDIA GPUs"),
    ],
)
def test_a_machine_that_cannot_is_said_before_the_volumes_are_read(
    tmp_path: Path, run: RunConfig, machine: MachineConfig, changes: dict[str, Any], said: str
) -> None:
    missing = replace(run.data, train=("nowhere",))
    with pytest.raises(UsageError, match=said):
        train(but(replace(run, machine=machine, data=missing), **changes), tmp_path / "run")


def test_a_worker_leaves_the_cluster_s_signals_to_the_run() -> None:
    signals = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}
    try:
        _leave_signals_to_the_run(0)
        for number in signals[:3]:
            assert signal.getsignal(number) is signal.SIG_IGN
        assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_as_many_workers_as_suit_the_machine() -> None:
    assert worker_count(3) == 3
    assert worker_count(0) == 0
    assert 1 <= worker_count(-1, 2) <= worker_count(-1) <= 8


# Starting from weights ----------------------------------------------------------------------------


def test_fine_tuning_starts_from_the_weights_it_is_given(tmp_path: Path, run: RunConfig) -> None:
    path = train(run, tmp_path / "first")
    tuned = starting_from(run, str(path))
    assert tuned.training.learning_rate == pytest.approx(TRAINING.learning_rate / 10)
    assert tuned.training.model == TINY
    still = but(tuned, learning_rate=1e-30, seed=5)
    again = train(still, tmp_path / "second")
    first, second = (models.load(p)[0].state_dict() for p in (path, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    start = models.read_card(again).training["start"]
    assert start == {"name": "trained.safetensors", "sha256": digest}
    assert "| started from | trained.safetensors |" in again.with_suffix(".md").read_text()
    # To go on, the weights are no longer needed.
    path.unlink()
    train(but(still, steps=7), tmp_path / "second", resume=True)
    with pytest.raises(UsageError, match="another start"):
        train(but(run, learning_rate=1e-30, seed=5, steps=7), tmp_path / "second", resume=True)


def test_published_weights_can_be_fine_tuned(tmp_path: Path, run: RunConfig) -> None:
    model = models.build(PAPER.model)
    path = tmp_path / "ArSSR_RDN.pkl"
    torch.save(model.state_dict(), path)
    config = starting_from(replace(run, training=PAPER), str(path))
    tuned, card = models.load(train(config, tmp_path / "run"))
    assert card.config == PAPER.model
    changed = tuned.state_dict()["encoder.sfe1.weight"] - model.state_dict()["encoder.sfe1.weight"]
    assert 0 < changed.abs().max() < 1e-3


def test_weights_of_another_network_are_refused(tmp_path: Path, run: RunConfig) -> None:
    path = train(run, tmp_path / "first")
    other = replace(but(run, model=replace(TINY, growth=3)), start=str(path))
    with pytest.raises(UsageError, match=r"trained\.safetensors .*\(growth is 4 and not 3\)"):
        train(other, tmp_path / "second")
    # What could grow is not what is in the way.
    wider = replace(TINY, blocks=TINY.blocks + 1, features=TINY.features + 1)
    with pytest.raises(UsageError, match=r"\(features is \d+ and not \d+\)"):
        train(replace(but(run, model=wider), start=str(path)), tmp_path / "third")


def test_a_larger_network_goes_on_from_a_smaller_one(tmp_path: Path, run: RunConfig) -> None:
    path = train(run, tmp_path / "first")
    small = models.load(path)[0]
    larger = replace(TINY, growth=5, blocks=TINY.blocks + 1)
    still = but(replace(run, start=str(path)), model=larger, learning_rate=1e-30)
    large, card = models.load(train(still, tmp_path / "second"))
    assert card.config == larger
    assert card.training["start"]["name"] == "trained.safetensors"
    volumes = torch.rand(1, 6, 6, 6)
    torch.testing.assert_close(large.encode(volumes), small.encode(volumes))


def test_a_wider_network_begins_as_copies_of_a_smaller_one(tmp_path: Path, run: RunConfig) -> None:
    path = train(run, tmp_path / "first")
    small = models.load(path)[0]
    wider = replace(TINY, features=16, growth=8, feature_dim=12, decoder_width=24)
    still = but(replace(run, start=str(path)), model=wider, learning_rate=1e-30)
    large, card = models.load(train(still, tmp_path / "second"))
    assert card.config == wider
    volumes = torch.rand(1, 6, 6, 6)
    copies = large.encode(volumes).split(TINY.feature_dim, dim=-1)
    for copy, seen in zip(copies, models.seen_by_copies(2), strict=True):
        torch.testing.assert_close(copy, models.OrientedArSSR(small, seen).encode(volumes))


# Export -------------------------------------------------------------------------------------------


def test_a_run_is_exported_at_any_stage_and_at_half_the_size(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no validation yet"):
        export_run(stopped, tmp_path / "best.safetensors", which="best")
    export_run(stopped, tmp_path / "whichever.safetensors")  # there is only the last
    full = export_run(stopped, tmp_path / "full.safetensors", which="last", name="full")
    half = export_run(stopped, tmp_path / "half.safetensors", which="last", half=True)
    assert half.stat().st_size < full.stat().st_size
    exact, card = models.load(full)
    assert (card.name, card.training["steps"]) == ("full", 2)
    assert models.load(tmp_path / "whichever.safetensors")[1].training["steps"] == 2
    state = read_checkpoint(stopped / LAST)["state_dict"]
    halved = models.load(half)[0].state_dict()
    for name, tensor in exact.state_dict().items():
        assert torch.equal(tensor, state[f"averaged.{name}"])
        assert torch.equal(halved[name], tensor.half().float())
    assert "# full" in (tmp_path / "full.md").read_text()


@pytest.mark.parametrize(
    ("run_name", "output", "error", "said"),
    [
        ("none", "a.safetensors", FileError, "holds no run"),
        ("run", "a.pt", UsageError, r"\.safetensors; change"),
        ("run", "none/a.safetensors", FileError, "no such folder"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(
    stopped: Path, run_name: str, output: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        export_run(stopped.parent / run_name, stopped.parent / output, which="last")


# Baselines ----------------------------------------------------------------------------------------


def baseline_run(run: RunConfig, protocol: str, scale: tuple[float, ...]) -> RunConfig:
    training = TRAINING if protocol == "scanner" else PAPER
    name = "default" if protocol == "scanner" else "paper"
    short = {"epochs": 0, "steps": 4, "watch_every": 2, "batch": 2, "patch": 4, "cut": 16}
    config = of_baseline(replace(run, preset=name, training=training), "SRCNN3D", scale)
    return replace(config, training=replace(config.training, **short))


@pytest.mark.parametrize("protocol", ["scanner", "paper"])
@pytest.mark.parametrize("scale", [(2.0,), (2.5, 1.0, 1.0)])
def test_a_baseline_is_trained_for_its_scale_and_can_be_scored(
    tmp_path: Path, run: RunConfig, data: Path, protocol: str, scale: tuple[float, ...]
) -> None:
    config = baseline_run(run, protocol, scale)
    told: list[Progress] = []
    path = train(config, tmp_path / "run", report=told.append)
    model, card = models.load_baseline(path)
    whole = scale * 3 if len(scale) == 1 else scale
    assert card.config == BaselineConfig("SRCNN3D", whole, config.training.normalization)
    assert "Pham" in card.paper
    assert card.training["steps"] in (2, 4)
    assert len(told) == 2
    assert read_config(tmp_path / "run" / "run.yaml") == config
    first = build_network(config.training).state_dict()
    assert not torch.equal(model.state_dict()["network.0.weight"], first["network.0.weight"])
    text = path.with_suffix(".md").read_text()
    assert f"Baseline SRCNN3D, for scale {' × '.join(f'{k:g}' for k in whole[::-1])} alone" in text
    # It is what evaluate takes.
    options = ["--scales", ",".join(f"{k:g}" for k in whole[::-1]), "--metrics", "psnr", "--quiet"]
    words = ["evaluate", data / "sub-2.nii.gz", "--out", tmp_path / "scores", *options]
    assert cli.main([*map(str, words), "--methods", "cubic", str(path)]) == 0
    with (tmp_path / "scores" / "rows.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert {row["method"] for row in rows} >= {"cubic", "SRCNN3D"}


def test_baselines_see_the_cubic_of_the_low_patch_at_one_scale(run: RunConfig) -> None:
    """On the HR grid, whole, whichever the protocol; only the scaled axis is coarser."""
    volumes = load_volumes(run.data.train)
    for protocol in ("scanner", "paper"):
        config = baseline_run(run, protocol, (3.0, 1.0, 2.0)).training
        plain = Augmentation(noise=0, contrast=0, blur=0, other_width=0, other_kind=0)
        batch = training_pairs(volumes, replace(config, augmentation=plain)).batch(0)
        assert isinstance(batch, GridBatch)
        assert batch.base.shape == batch.target.shape == (2, 12, 4, 8)
        error = (batch.base - batch.target).abs()
        assert 0 < error.mean() < 0.5
        # Nothing of frequency beyond the LR grid's along the coarse axis.
        smooth = batch.base.diff(dim=1).square().mean() / batch.base.square().mean()
        sharp = batch.target.diff(dim=1).square().mean() / batch.target.square().mean()
        assert smooth < sharp


def test_batch_normalisation_of_a_baseline_is_kept_with_its_average(
    tmp_path: Path, run: RunConfig
) -> None:
    config = baseline_run(run, "scanner", (2.0,))
    config = but(config, baseline="DCSRN", steps=2, watch_every=1)
    train(config, tmp_path)
    state = states(tmp_path)
    name = "network.1.0.running_var"
    assert torch.equal(state[f"averaged.{name}"], state[f"model.{name}"])
    assert not torch.equal(state[f"averaged.{name}"], torch.ones_like(state[f"model.{name}"]))
    assert not torch.equal(state["averaged.network.0.weight"], state["model.network.0.weight"])
    kept = models.load_baseline(export_run(tmp_path, tmp_path / "l.safetensors", which="last"))[0]
    assert torch.equal(kept.state_dict()[name], state[f"averaged.{name}"])


def test_a_baseline_that_is_stopped_and_resumed_is_the_same_run(
    tmp_path: Path, run: RunConfig
) -> None:
    config = but(baseline_run(run, "scanner", (2.0,)), baseline="DCSRN")
    train(config, tmp_path / "whole")
    with pytest.raises(Cancelled):
        train(config, tmp_path / "stopped", stop=after(3))
    train(config, tmp_path / "stopped", resume=True)
    ours, theirs = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_baseline_starts_from_a_baseline(tmp_path: Path, run: RunConfig) -> None:
    config = baseline_run(run, "scanner", (2.0,))
    path = train(config, tmp_path / "first")
    still = but(starting_from(config, str(path)), learning_rate=1e-30)
    again = models.load_baseline(train(still, tmp_path / "second"))
    for name, tensor in models.load_baseline(path)[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[name], tensor)
    assert again[1].training["start"]["name"] == "trained.safetensors"
    other = but(still, scale=(3.0, 3.0, 3.0))
    with pytest.raises(UsageError, match="scale is"):
        train(other, tmp_path / "third")
