"""Settings: strict, complete, the same after a trip through a file."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from napari_arssr import weights
from napari_arssr.errors import FileError, UsageError
from napari_arssr.models import BaselineConfig, ModelConfig
from napari_arssr.training import (
    Augmentation,
    DataConfig,
    MachineConfig,
    RunConfig,
    TrainingConfig,
    WeightsConfig,
    preset,
    read_config,
    write_config,
)
from napari_arssr.training.config import of_baseline
from napari_arssr.training.progress import Plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 0}, "batch"),
        ({"patch": -1}, "patch"),
        ({"smallest_scale": 0.5}, "0.5 to 4"),
        ({"smallest_scale": 5.0}, "5 to 4"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"seed": 2**63}, "seed must be below"),
        ({"edges": 1.0, "lattice": 1}, "edges needs a lattice of at least 2 points"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number, not nan"),
        ({"minutes": math.inf}, "minutes must be a finite number, not inf"),
        ({"minutes": math.nan}, "minutes"),
        ({"minutes": -1.0}, "minutes must be at least 0"),
        ({"holdout": -1}, "holdout"),
        ({"steps": 0}, "no end"),
        ({"average": 1.0}, "average"),
        ({"sharp_axes": ()}, "sharp_axes"),
        ({"sharp_axes": (3,)}, "sharp_axes"),
        ({"schedule": "linear"}, "cosine, step, constant"),
        ({"precision": "int8"}, "bfloat16"),
        ({"protocol": "paper"}, "published decoder"),
        ({"baseline": "SRCNN3D"}, "SRCNN3D knows one scale"),
        ({"baseline": "SRCNN3D", "scale": (2.0, 2.0)}, "three numbers"),
        ({"baseline": "SRCNN3D", "scale": (0.5, 2.0, 2.0)}, "at least 1"),
        ({"baseline": "SRCNN3D", "scale": (1.0, 1.0, 1.0)}, "nothing to learn"),
        ({"baseline": "VGG"}, "SRCNN3D, DCSRN, ResCNN"),
        ({"scale": (2.0, 2.0, 2.0)}, "One scale is for baselines"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainingConfig(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cut": 30}, "do not fit in 30 .* cut: 40"),
        ({"samples": 8001}, "fewer than 8001"),
        ({"edges": 1.0}, "edges"),
    ],
)
def test_a_paper_protocol_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(preset("paper").training, **change)


def test_the_default_preset_is_the_recipe_of_the_bundled_weights() -> None:
    training = preset("default").training
    assert (training.learning_rate, training.warm_up, training.schedule) == (7e-4, 200, "cosine")
    assert (training.smallest_scale, training.largest_scale) == (1.2, 4.0)
    assert (training.patch, training.batch, training.lattice) == (20, 8, 18)
    assert (training.squared, training.clip, training.average) == (5.0, 1.0, 0.999)
    drawn = training.augmentation
    assert (drawn.ideal, drawn.in_plane, drawn.blur, drawn.largest_blur) == (0.5, 0.1, 0.2, 2.5)
    assert (drawn.anisotropic, drawn.thick_slices, drawn.noise) == (0.1, 0.12, 0.3)
    assert (drawn.other_width, drawn.width_factor, drawn.other_kind) == (0.25, 1.8, 0.15)


def test_baselines_are_trained_as_the_paper_trained_them() -> None:
    training = of_baseline(preset("paper"), "DCSRN", (2.0,)).training
    assert training.network == BaselineConfig("DCSRN", (2.0, 2.0, 2.0), "minmax")
    assert (training.batch, training.epochs, training.decay_every) == (10, 2000, 200)
    assert training.smallest_volume == 40
    ours = of_baseline(preset("default"), "DCSRN", (4.0, 1.0, 1.0)).training
    assert ours.network == BaselineConfig("DCSRN", (4.0, 1.0, 1.0), "percentile")
    assert ours.patch * 4 == 32
    assert TrainingConfig.from_dict(ours.to_dict()) == ours
    with pytest.raises(UsageError, match="scale 5 do not fit in 40"):
        of_baseline(preset("paper"), "DCSRN", (5.0,))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_chance_is_from_0_to_1(value: float) -> None:
    with pytest.raises(UsageError, match="noise"):
        Augmentation(noise=value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Augmentation(smallest_thick_scale=7.0), "7 to 6"),
        (lambda: Augmentation(width_factor=0.5), "width_factor"),
        (lambda: Augmentation(largest_bias=1.0), "largest_bias"),
        (lambda: DataConfig(workers=-2), "workers"),
        (lambda: RunConfig(data=DataConfig(isotropic=True)), "isotropic needs weights"),
        (lambda: DataConfig(cache="disk"), "memory, none"),  # type: ignore[arg-type]
        (lambda: MachineConfig(devices=-1), "negative"),
        (lambda: MachineConfig(device="cuda:1", devices=2), "cuda:1 is one device"),
        (lambda: MachineConfig(strategy="fsdp"), "auto, ddp"),  # type: ignore[arg-type]
        (lambda: WeightsConfig(name="a/b"), "a/b"),
        (lambda: WeightsConfig(name=""), "not a name"),
        (lambda: WeightsConfig(name="Best"), "a file of its own"),
        (lambda: WeightsConfig(name="epoch-3"), "a file of its own"),
        (lambda: preset("best"), "default, paper"),
    ],
)
def test_other_settings_that_cannot_be_meant_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_settings_come_back_from_plain_values() -> None:
    config = TrainingConfig(
        augmentation=Augmentation(noise=0), sharp_axes=(0, 1), model=ModelConfig("ResCNN")
    )
    assert TrainingConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", ["default", "paper"])
def test_settings_come_back_from_a_file(tmp_path: Path, name: str) -> None:
    config = replace(
        preset(name),
        start="default",
        data=DataConfig(
            train=("a", "b c"), validation=("ü",), cache="none", workers=3, strict=True
        ),
        machine=MachineConfig("cuda", 4, 2, "ddp"),
        weights=WeightsConfig("größe", "CC-BY-4.0", "A: B"),
    )
    config = replace(config, training=replace(config.training, learning_rate=3e-5, minutes=0.1))
    path = tmp_path / "run.yaml"
    write_config(path, config)
    assert read_config(path) == config
    # Every setting is in the file, none by a name that only Python knows.
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(written) == [item.name for item in fields(RunConfig)]
    assert written["training"].keys() == {item.name for item in fields(TrainingConfig)}


def test_a_file_names_what_differs_from_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "preset: paper\ntraining: {learning_rate: 2e-4, model: {encoder: ResCNN}}\n"
        "data: {train: [hr]}\n"
    )
    config = read_config(path)
    expected = preset("paper").training
    assert config.training == replace(
        expected, learning_rate=2e-4, model=replace(expected.model, encoder="ResCNN")
    )
    assert config.data.train == ("hr",)


def test_a_file_that_names_weights_to_start_from_takes_their_network(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("preset: paper\nstart: default\ntraining: {protocol: scanner}\n")
    bundled = weights.load("default").card.config
    assert read_config(path).training.model == bundled != preset("paper").training.model
    # What a file says of the network holds, and the rest is as it is in the weights.
    path.write_text(
        "preset: paper\nstart: default\ntraining: {protocol: scanner, model: {growth: 70}}\n"
    )
    assert read_config(path).training.model == replace(bundled, growth=70)
    path.write_text("training: {model: {growth: 70}}\n")
    assert read_config(path, start="default").training.model == replace(bundled, growth=70)
    assert read_config(path, start="default").start == "default"


def test_who_starts_from_weights_learns_gently_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    usual = preset("default").training.learning_rate
    path.write_text("preset: default\n")
    assert read_config(path).training.learning_rate == usual
    assert read_config(path, "default").training.learning_rate == pytest.approx(usual / 10)
    assert read_config(path, "default", gently=False).training.learning_rate == usual
    path.write_text("preset: default\nstart: default\n")
    assert read_config(path).training.learning_rate == pytest.approx(usual / 10)
    path.write_text("preset: default\nstart: default\ntraining: {learning_rate: 3.0e-4}\n")
    assert read_config(path).training.learning_rate == 3e-4


def test_a_baseline_s_weights_are_not_read_as_a_network_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"start: {tmp_path / 'srcnn.safetensors'}\n")
    config = read_config(path, baseline=True)  # the command line's --baseline
    assert config.start.endswith("srcnn.safetensors")


def test_a_file_that_says_all_of_a_network_needs_no_weights_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    config = replace(RunConfig(), start=str(tmp_path / "gone.safetensors"))
    write_config(path, config)
    assert read_config(path) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "training: {learning_rat: 1}",
            r"run\.yaml\.training: .*'learning_rat'; .*'learning_rate'",
        ),
        ("trainin: {}", "'trainin'; did you mean 'training'"),
        ("data: {nothing_alike_zz: 1}", "there are train, validation"),
        ("training: {batch: 2.5}", "batch: 2.5 is not a whole number"),
        ("training: {batch: true}", "batch: True is not a whole number"),
        ("training: {minutes: soon}", "minutes: 'soon' is not a number"),
        ("training: {minutes: .nan}", "minutes must be a finite number"),
        ("training: {minutes: inf}", "minutes must be a finite number"),
        ("training: {schedule: linear}", "schedule: 'linear' is none of 'cosine'"),
        ("training: {sharp_axes: 1}", "sharp_axes: 1 is not a list"),
        ("training: {model: {encoder: VGG}}", "model.encoder: 'VGG' is none of"),
        ("training: {model: {growth: 0}}", "model: growth must be"),
        ("training: {augmentation: {noise: 2}}", "noise is a chance"),
        ("training: 3", "training: 3 is not a list of settings"),
        ("data: {strict: 1}", "strict: 1 is not true or false"),
        ("weights: {name: 3}", "name: 3 is not text"),
        ("preset: own", "no preset 'own'"),
        ("- a", "not a list of settings"),
        ("", "not a list of settings"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("text", ["a: [1", "!!python/object/apply:os.system ['true']", "a: \xff"])
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"run\.yaml: this is no YAML"):
        read_config(tmp_path / "run.yaml")
    with pytest.raises(FileError, match=r"none\.yaml: the settings cannot be read"):
        read_config(tmp_path / "none.yaml")


# What follows from them ---------------------------------------------------------------------------


def test_the_published_rate_halves_every_200_epochs() -> None:
    plan = Plan(preset("paper").training, 312)  # 780 volumes, 6 patches, 15 a step
    assert plan.steps == 2500 * 312
    assert plan.rate(0, 0) == 1e-4
    assert plan.rate(200 * 312 - 1, 0) == 1e-4
    assert plan.rate(200 * 312, 0) == 5e-5
    assert plan.rate(2499 * 312, 0) == 1e-4 / 2**12
    assert plan.watch_every == 312


def test_our_rate_warms_up_and_falls_to_one_per_cent() -> None:
    plan = Plan(TrainingConfig(learning_rate=1.0, warm_up=100, steps=1000), 10)
    assert plan.rate(0, 0) == pytest.approx(0.01, rel=0.01)
    assert plan.rate(500, 0) == pytest.approx(0.505)
    assert plan.rate(999, 0) == pytest.approx(0.01, rel=0.01)
    rates = [plan.rate(step, 0) for step in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)
    constant = Plan(TrainingConfig(schedule="constant", warm_up=0, learning_rate=0.5), 10)
    assert constant.rate(19_999, 0) == 0.5


def test_the_rate_follows_the_clock_where_that_ends_the_run() -> None:
    config = TrainingConfig(learning_rate=1.0, warm_up=0, steps=0, minutes=2.0)
    plan = Plan(config, 10)
    assert plan.share(5, 60.0) == 0.5
    assert plan.rate(5, 60.0) == pytest.approx(0.505)
    assert plan.share(5, 200.0) == 1


def test_warming_up_takes_a_tenth_of_the_run_at_most() -> None:
    few = Plan(TrainingConfig(learning_rate=1.0, warm_up=200, steps=100, schedule="constant"), 10)
    assert few.rate(0, 0) == pytest.approx(0.005)
    assert few.rate(5, 0) == pytest.approx(0.5)
    assert few.rate(10, 0) == 1
    config = TrainingConfig(warm_up=200, steps=0, minutes=2.0, schedule="constant")
    short = Plan(replace(config, learning_rate=1.0), 10)
    assert short.rate(3, 6.0) == pytest.approx(0.5)
    assert short.rate(6, 12.0) == 1


def test_a_run_is_as_long_as_the_first_bound() -> None:
    config = TrainingConfig(steps=1000, epochs=20, minutes=1.0)
    plan = Plan(config, 10)
    assert plan.steps == 200
    assert plan.share(100, 6.0) == 0.5
    assert plan.share(100, 54.0) == 0.9
    assert Plan(replace(config, epochs=0), 10).steps == 1000


def test_validations_come_at_whole_intervals_and_at_the_end() -> None:
    plan = Plan(TrainingConfig(steps=1100, watch_every=500), 10)
    assert [step for step in range(1101) if plan.validates_at(step)] == [500, 1000, 1100]
    assert [plan.next_validation(step) for step in (0, 499, 500, 730, 1000)] == [
        500,
        500,
        1000,
        1000,
        1100,
    ]
