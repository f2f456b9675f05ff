"""Training: what pairs are, what a run leaves behind, and what it does when something is wrong."""

from __future__ import annotations

import csv
import errno
import hashlib
import itertools
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import napari_arssr
from napari_arssr import io, models
from napari_arssr.errors import ArssrError, FileError, UsageError
from napari_arssr.field import CubicField, NetworkField
from napari_arssr.models import Card, ModelConfig
from napari_arssr.normalization import Normalizer
from napari_arssr.phantom import Phantom
from napari_arssr.training import Augmentation, Progress, TrainingConfig, TrainingRun, train_files
from napari_arssr.training.data import Batch, PairSampler, TrainingVolume
from napari_arssr.training.files import load_volumes
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
CONFIG = TrainingConfig(
    model=TINY,
    patch=8,
    lattice=6,
    batch=2,
    largest_scale=2.5,
    learning_rate=5e-3,
    warm_up=2,
    steps=6,
    watch_every=3,
    save_every=100,
    bfloat16=False,
)
PLAIN = Augmentation(noise=0, contrast=0)


@cache
def phantom(seed: int) -> Volume:
    return Phantom(seed).sample(Phantom.grid(5.0))


@cache
def volumes() -> list[TrainingVolume]:
    return [TrainingVolume.from_array(phantom(seed).data, f"{seed}.nii", 10) for seed in range(2)]


def run_in(folder: Path, config: TrainingConfig = CONFIG) -> TrainingRun:
    return TrainingRun(config, volumes(), folder)


def after(steps: int) -> Callable[[], bool]:
    """A stop that says so before step ``steps``."""
    asked = itertools.count()
    return lambda: next(asked) >= steps


def draw(data: npt.NDArray[Any], config: TrainingConfig, seed: int = 0) -> Batch:
    sampler = PairSampler([TrainingVolume(data, "drawn")], config, np.random.default_rng(seed))
    return sampler.batch(models.build(config.model))


def coordinates(batch: Batch) -> list[npt.NDArray[np.float64]]:
    """Where the lattices lie in LR voxels, as the interpolation weights have it: three (B, m)."""
    size = batch.low.shape[1]
    return [(weights.double() @ torch.arange(size).double()).numpy() for weights in batch.weights]


def cells(batch: Batch) -> npt.NDArray[np.float64]:
    """LR voxels per HR voxel as the decoder is told, (B, 3)."""
    return np.stack([codes[:, 0, -1].double().numpy() for codes in batch.positions], axis=1)


# Pairs ----------------------------------------------------------------------------------------


def test_low_and_high_lie_on_top_of_each_other_at_every_scale() -> None:
    """On a ramp a shift by a fraction of a voxel is that fraction of a step."""
    z, y, x = np.meshgrid(*[np.linspace(0.1, 1, 90)] * 3, indexing="ij")
    ramp = ((z + 2 * y + 4 * x) / 7).astype(np.float32)
    # Profiles narrower than an HR voxel would take the nearest one for the slice.
    scanners = Augmentation(0.3, 0.3, 4.0, other_width=0, other_kind=0, noise=0, contrast=0)
    config = replace(
        CONFIG,
        patch=14,
        lattice=20,
        batch=30,
        smallest_scale=1.5,
        largest_scale=4.0,
        augmentation=scanners,
    )
    batch = draw(ramp, config)
    scales = 1 / cells(batch)
    assert scales.min() == 1
    assert scales.max() > 3
    slope = 0.9 / 89 / 7  # of the flattest axis, per HR voxel
    along = coordinates(batch)
    base, target = batch.base.numpy(), batch.target.numpy()
    for pair in range(config.batch):
        # The patch's border is mirrored, which a ramp is not: the middle counts.
        middle = [np.flatnonzero((c[pair] > 4) & (c[pair] < 9)) for c in along]
        inside = np.ix_(*middle)
        assert base[pair][inside].size > 50
        assert np.abs(base[pair][inside] - target[pair][inside]).max() < 0.05 * slope


def test_interpolation_of_a_smooth_volume_is_close_to_it_at_every_scale() -> None:
    z, y, x = np.meshgrid(*[np.arange(90) / 90] * 3, indexing="ij")
    waves = np.cos(4 * z + 1) * np.cos(3 * y) + np.sin(4 * x + 2)
    smooth = (waves / 5 + 0.5).astype(np.float32)
    config = replace(CONFIG, patch=12, lattice=10, batch=30, largest_scale=4.0, augmentation=PLAIN)
    batch = draw(smooth, config)
    error = (batch.base - batch.target).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(1 / error)).min() > 40


def test_scale_gate_and_lattice_belong_together() -> None:
    augmentation = replace(PLAIN, largest_thick_scale=4.0)
    config = replace(CONFIG, batch=100, largest_scale=4.0, augmentation=augmentation)
    batch = draw(np.random.default_rng(0).random((50, 50, 50), dtype=np.float32), config)
    cell = cells(batch)
    np.testing.assert_allclose(batch.gate[:, 0, 0, 0], 1 - cell.prod(axis=1), atol=1e-6)
    # Whole numbers of HR voxels in 8 LR voxels, between scale 1 and 4.
    counts = 8 / cell
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    assert counts.min() == 8
    assert counts.max() <= 32
    for axis, along in enumerate(coordinates(batch)):
        inner = (along > 0) & (along < 7)  # beyond, the weights hold the border
        picks = (along + 0.5) / cell[:, axis, None] - 0.5
        np.testing.assert_allclose(picks[inner], np.rint(picks)[inner], atol=1e-3)
        assert (np.diff(along) >= 0).all()
    thick = (counts == 8).sum(axis=1) == 2
    same = counts.max(axis=1) == counts.min(axis=1)
    assert 5 < thick.sum() < 30
    assert 50 < same.sum() < 90
    assert (~thick & ~same).sum() > 5


def test_patches_are_turned_and_mirrored_in_all_ways() -> None:
    z, y, x = np.meshgrid(*[np.linspace(0.1, 1, 40)] * 3, indexing="ij")
    config = replace(CONFIG, batch=300, augmentation=PLAIN)
    batch = draw(((z + 2 * y + 4 * x) / 7).astype(np.float32), config)
    low = batch.low.numpy()
    slopes = np.stack([np.diff(low, axis=axis).mean(axis=(1, 2, 3)) for axis in (1, 2, 3)], axis=1)
    order = np.abs(slopes).argmax(axis=1)
    seen = {
        (int(first), *signs) for first, signs in zip(order, np.sign(slopes).tolist(), strict=True)
    }
    assert len(seen) == 24  # the steepest axis anywhere, each axis either way


def test_noise_and_contrast_change_what_they_should_and_keep_the_background() -> None:
    data = np.zeros((40, 40, 40), dtype=np.float32)
    data[:, :, 8:] = np.linspace(0.2, 1, 32)
    config = replace(CONFIG, batch=30)
    plain = draw(data, replace(config, augmentation=PLAIN))
    assert set(np.unique(plain.target)) <= set(np.unique(data))
    recoloured = draw(data, replace(config, augmentation=replace(PLAIN, contrast=1.0)))
    assert recoloured.target.min() == 0
    assert recoloured.target.max() <= 1.25
    values = recoloured.target.numpy()
    unchanged = [set(np.unique(pair)) <= set(np.unique(data)) for pair in values]
    assert sum(unchanged) < 3
    flat = np.full((40, 40, 40), 0.5, dtype=np.float32)
    noisy = draw(flat, replace(config, augmentation=replace(PLAIN, noise=1.0)))
    spread = noisy.low.numpy().std(axis=(1, 2, 3))
    assert 0.02 < spread.max() < 0.055
    assert spread.min() < 0.01
    np.testing.assert_array_equal(noisy.target, 0.5)


def test_patches_are_not_cut_from_background() -> None:
    data = np.zeros((80, 80, 80), dtype=np.float32)
    data[20:60, 20:60, 20:60] = 0.5
    batch = draw(data, replace(CONFIG, batch=20, largest_scale=1.2, augmentation=PLAIN))
    assert ((batch.target > 0).float().mean(dim=(1, 2, 3)) > 0.1).float().mean() > 0.8


def test_a_volume_smaller_than_a_patch_is_continued_by_its_border() -> None:
    data = np.random.default_rng(0).random((10, 11, 12), dtype=np.float32)
    config = replace(CONFIG, batch=20, largest_scale=4.0, augmentation=PLAIN)
    batch = draw(data, config)
    assert torch.isfinite(batch.low).all()
    assert set(np.unique(batch.target)) <= set(np.unique(data))


def test_pairs_for_the_published_decoder_have_no_base() -> None:
    config = replace(CONFIG, model=replace(TINY, decoder="published", decoder_depth=4))
    batch = draw(np.random.default_rng(0).random((30, 30, 30), dtype=np.float32), config)
    assert not batch.base.any()
    assert (batch.gate == 1).all()
    assert all(positions.shape == (2, 6, 1) for positions in batch.positions)


def test_a_training_volume_is_in_network_units() -> None:
    volume = volumes()[0]
    assert volume.data.dtype == np.float16
    assert volume.data.min() == 0
    assert 1 <= volume.data.max() < 1.3


# A run ----------------------------------------------------------------------------------------


def test_training_starts_from_cubic_interpolation(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    assert run.gain() == 0
    source = phantom(0)
    field = NetworkField(source, run.averaged, Normalizer.fit(source.data))
    grid = source.grid.scaled(1.3)
    np.testing.assert_allclose(
        field.sample(grid).data, CubicField(source).sample(grid).data, atol=0.01
    )


@pytest.mark.parametrize(("decoder", "share"), [("residual", 0.97), ("published", 0.6)])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_steps_on_one_batch_lower_its_loss(
    tmp_path: Path, decoder: str, share: float, bfloat16: bool
) -> None:
    network = replace(TINY, decoder=decoder, decoder_depth=4)
    run = run_in(tmp_path, replace(CONFIG, model=network, bfloat16=bfloat16, steps=1000))
    if decoder == "published":  # a last ReLU that starts at 0 never learns
        torch.nn.init.constant_(run.model.decoder.stage_two[-2].bias, 0.1)
    batch = run.sampler.batch(run.model)
    run.sampler.batch = lambda _model: batch  # type: ignore[method-assign]
    losses = []
    for _ in range(25):
        losses.append(float(run._step()))
        run.step += 1
    assert losses[-1] < share * losses[0]


def test_the_last_volumes_are_watched_and_never_trained_on(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    names = {name for _ in range(5) for name in run.sampler.batch(run.model).names}
    assert names == {"0.nii"}
    run.gain()
    assert {name for batch in run._watch_batches for name in batch.names} == {"1.nii"}


def test_progress_is_reported_and_logged(tmp_path: Path) -> None:
    told: list[Progress] = []
    run = run_in(tmp_path)
    assert run.train(told.append)
    assert [(one.step, one.share) for one in told] == [(3, 0.5), (6, 1.0)]
    assert all(0 < one.loss < 1 and np.isfinite(one.gain) for one in told)
    with (tmp_path / "log.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["step"] for row in rows] == ["3", "6"]
    assert float(rows[1]["loss"]) == pytest.approx(told[1].loss, abs=1e-6)


def test_a_run_can_be_bounded_by_the_clock(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(CONFIG, steps=10**6, minutes=1e-4))
    assert run.train()
    assert 1 <= run.step < 1000
    assert run.share == 1


def state(run: TrainingRun) -> dict[str, Tensor]:
    """Every tensor that a run consists of."""
    tensors = {f"model {k}": v for k, v in run.model.state_dict().items()}
    tensors |= {f"averaged {k}": v for k, v in run.averaged.state_dict().items()}
    for number, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {number} {k}": v for k, v in moments.items()}
    return tensors


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_run_that_is_interrupted_and_resumed_is_the_same_run(
    tmp_path: Path, bfloat16: bool
) -> None:
    config = replace(CONFIG, bfloat16=bfloat16)
    whole = run_in(tmp_path / "whole", config)
    assert whole.train()
    first = run_in(tmp_path / "parts", config)
    assert not first.train(stop=after(2))
    assert first.step == 2
    second = run_in(tmp_path / "parts", config)
    second.resume()
    assert not second.train(stop=after(3))
    third = run_in(tmp_path / "parts", config)
    third.resume()
    assert third.step == 5
    assert third.train()
    expected = state(whole)
    assert state(third).keys() == expected.keys()
    for name, tensor in state(third).items():
        assert torch.equal(tensor, expected[name]), name
    ours, theirs = (run.sampler.generator.bit_generator.state for run in (third, whole))
    assert ours == theirs
    # And the steps did something.
    assert not torch.equal(*(state(run)["averaged encoder.sfe1.weight"] for run in (first, third)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("batch", {"batch": 3}),
        ("seed", {"seed": 1}),
        ("model", {"model": replace(TINY, growth=5)}),
        ("augmentation", {"augmentation": Augmentation(noise=0)}),
        ("sharp_axes", {"sharp_axes": (0, 1)}),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    run_in(tmp_path).save()
    with pytest.raises(UsageError, match=rf"last\.ckpt.* another {name};"):
        run_in(tmp_path, replace(CONFIG, **change)).resume()


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    run_in(tmp_path).train()
    longer = run_in(tmp_path, replace(CONFIG, steps=8))
    longer.resume()
    assert longer.share == 0.75
    assert longer.train()
    assert longer.step == 8


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"last\.ckpt: there is no checkpoint"):
        run_in(tmp_path).resume()
    run = run_in(tmp_path)
    run.save()
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"not a checkpoint"):
        path.write_bytes(broken)
        with pytest.raises(FileError, match=r"last\.ckpt: the checkpoint cannot be read"):
            run_in(tmp_path).resume()
    torch.save({"config": Path("/")}, path)  # an object, not plain values
    with pytest.raises(FileError, match=r"last\.ckpt: the checkpoint cannot be read"):
        run_in(tmp_path).resume()


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(CONFIG, save_every=2, augmentation=PLAIN))
    run.train(stop=after(2))
    before = (tmp_path / "last.ckpt").read_bytes()
    run.sampler.volumes = [
        TrainingVolume(np.full((30, 30, 30), np.nan, dtype=np.float16), "broken.nii")
    ]
    with pytest.raises(ArssrError) as caught:
        run.train()
    message = str(caught.value)
    assert "nan at step 2" in message
    assert "broken.nii" in message
    assert str(tmp_path / "last.ckpt") in message
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(CONFIG, save_every=1))
    before = {name: tensor.clone() for name, tensor in state(run).items()}
    run.model.encoder.sfe1.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ArssrError, match=r"gradient.* at step 0 .*nothing was saved yet"):
        run.train()
    for name, tensor in state(run).items():
        assert torch.equal(tensor, before[name]), name
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed")],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = run_in(tmp_path)
    run.train(stop=after(1))
    before = (tmp_path / "last.ckpt").read_bytes()

    def fail(_state: Any, opened: Any) -> None:
        opened.write(b"the first half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(FileError, match=r"last\.ckpt cannot be written"):
            run.train(stop=after(1))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    again = run_in(tmp_path)
    again.resume()
    assert again.step == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"file.* cannot be written"):
        run_in(tmp_path / "file" / "run")


def test_there_must_be_something_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 volumes .* 2 held out"):
        run_in(tmp_path, replace(CONFIG, holdout=2))


# Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 0}, "batch"),
        ({"patch": -1}, "patch"),
        ({"smallest_scale": 0.5}, "0.5 to 4"),
        ({"smallest_scale": 5.0}, "5 to 4"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"holdout": -1}, "hold-out"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainingConfig(**change)


def test_settings_come_back_from_plain_values() -> None:
    config = replace(CONFIG, augmentation=PLAIN, sharp_axes=(0, 1))
    assert TrainingConfig.from_dict(config.to_dict()) == config


# Files ----------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(2):
        io.write(folder / f"sub-{seed}.nii.gz", phantom(seed))
    return folder


def test_a_folder_of_volumes_becomes_a_file_of_weights(tmp_path: Path, data: Path) -> None:
    told: list[Progress] = []
    path = train_files(
        [data],
        tmp_path / "run",
        CONFIG,
        name="mine",
        licence="CC0",
        training_data="two phantoms",
        device="cpu",
        report=told.append,
    )
    assert path == tmp_path / "run" / "mine.safetensors"
    assert told[-1].share == 1
    model, card = models.load(path)
    assert (card.name, card.licence, card.training_data) == ("mine", "CC0", "two phantoms")
    assert card.config == TINY
    assert TrainingConfig.from_dict(card.training["config"]) == CONFIG
    assert card.training["steps"] == 6
    assert card.training["files_sha256"] == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in data.iterdir()
    }
    assert card.training["versions"] == {
        "napari-arssr": napari_arssr.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    # The averaged weights, which can be sampled as they are.
    run = run_in(tmp_path / "run", CONFIG)
    run.resume()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, run.averaged.state_dict()[name]), name
    source = phantom(0)
    field = NetworkField(source, model, Normalizer.fit(source.data))
    assert np.isfinite(field.sample(source.grid.scaled(1.2)).data).all()


def test_weights_can_be_exported_at_half_the_size(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for name, half in (("full", False), ("half", True)):
        run.export(tmp_path / f"{name}.safetensors", Card(config=TINY), half)
    full, half_size = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half"))
    assert half_size < 0.7 * full
    exact = run.averaged.state_dict()
    for name, tensor in models.load(tmp_path / "half.safetensors")[0].state_dict().items():
        assert torch.equal(tensor, exact[name].half().float()), name


def test_a_run_in_a_folder_is_not_overwritten_but_resumed(tmp_path: Path, data: Path) -> None:
    def train(config: TrainingConfig, **options: Any) -> Path:
        return train_files([data], tmp_path / "run", config, device="cpu", **options)

    path = train(CONFIG, stop=after(2))  # stopped: exported as far as it got
    assert models.read_card(path).training["steps"] == 2
    before = path.read_bytes()
    with pytest.raises(UsageError, match="holds a run already: resume it"):
        train(CONFIG)
    assert path.read_bytes() == before
    train(CONFIG, resume=True)
    assert models.read_card(path).training["steps"] == 6


def test_bad_files_are_left_out_and_named(tmp_path: Path, data: Path) -> None:
    good = phantom(0)

    def put(name: str, array: npt.NDArray[Any]) -> None:
        io.write(data / name, Volume(array, good.affine))

    put("constant.nii", np.full((20, 20, 20), 3, dtype=np.int16))
    put("nothing.nii", np.full((20, 20, 20), np.nan, dtype=np.float32))
    put("small.nii", np.random.default_rng(0).random((20, 20, 9), dtype=np.float32))
    put("series.nii", np.random.default_rng(1).random((3, 20, 20, 20), dtype=np.float32))
    (data / "truncated.nii.gz").write_bytes((data / "sub-0.nii.gz").read_bytes()[:5000])
    (data / "notes.txt").write_text("no volume, and not asked for")
    (data / "z-copy.nii.gz").write_bytes((data / "sub-1.nii.gz").read_bytes())
    warnings: list[str] = []
    found, hashes = load_volumes([data, tmp_path / "missing.nii"], CONFIG, warnings.append)
    assert [volume.name for volume in found] == ["series.nii", "sub-0.nii.gz", "sub-1.nii.gz"]
    assert list(hashes) == [volume.name for volume in found]
    said = {
        "constant.nii": "constant",
        "nothing.nii": "no finite value",
        "small.nii": "too few",
        "truncated.nii.gz": "cut off",
        "z-copy.nii.gz": "copy of another",
        "missing.nii": "does not exist",
    }
    assert len(warnings) == len(said)
    for name, reason in said.items():
        assert any(name in text and reason in text for text in warnings), name
    assert not any("\n" in text for text in warnings)


def test_files_of_one_name_in_several_folders_are_all_used(tmp_path: Path) -> None:
    for seed in range(2):
        (tmp_path / f"sub-{seed}").mkdir()
        io.write(tmp_path / f"sub-{seed}" / "T1w.nii", phantom(seed))
    warnings: list[str] = []
    folders = sorted(tmp_path.iterdir())
    found, hashes = load_volumes([*folders, folders[0]], CONFIG, warnings.append)
    assert [volume.name for volume in found] == ["T1w.nii", "sub-1/T1w.nii"]
    assert len(set(hashes.values())) == 2
    assert len(warnings) == 1
    assert "copy of another" in warnings[0]


def test_a_folder_without_volumes_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no volume to train on in .*empty\.$"):
        train_files([tmp_path / "empty"], tmp_path / "run", CONFIG, device="cpu")
    assert not (tmp_path / "run").exists()
