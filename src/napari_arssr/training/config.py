"""Settings of a training run: one frozen record, readable and writable as a YAML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from napari_arssr.choices import (
    CACHES,
    PRESETS,
    STRATEGIES,
    BaselineName,
    Cache,
    Normalization,
    Precision,
    PresetName,
    Schedule,
    Strategy,
)
from napari_arssr.errors import FileError, UsageError
from napari_arssr.files import write_whole
from napari_arssr.models import BaselineConfig, ModelConfig
from napari_arssr.training.plain import from_plain, require_finite, to_plain
from napari_arssr.volume import as_triple

__all__ = [
    "Augmentation",
    "DataConfig",
    "MachineConfig",
    "RunConfig",
    "TrainingConfig",
    "WeightsConfig",
    "of_baseline",
    "preset",
    "read_config",
    "write_config",
    "yaml_text",
]

Protocol = Literal["scanner", "paper"]
Baseline = Literal["", BaselineName]

# The network of the bundled weights: small enough for two cores and a live view.
BUNDLED_NETWORK = ModelConfig(
    decoder="residual",
    feature_dim=64,
    decoder_depth=3,
    decoder_width=128,
    features=64,
    growth=32,
    blocks=4,
    layers=3,
)


@dataclass(frozen=True)
class Augmentation:
    """How training pairs vary; chances are per pair.

    Parameters
    ----------
    anisotropic : float
        Chance of independent scales along the axes.
    thick_slices : float
        Chance that only one axis is coarse, the others at scale 1.
    smallest_thick_scale, largest_thick_scale : float
        Range of the scale of thick slices.
    sharp : float
        Chance that the coarsest axis lies along one of the files' sharp axes, where not all
        are (:attr:`TrainingConfig.sharp_axes`).
    other_width : float
        Chance of a point-spread function wider or narrower than one LR voxel, by a factor
        between 1 / ``width_factor`` and ``width_factor``.
    width_factor : float
    other_kind : float
        Chance of a slice profile or k-space low-pass in place of the Gaussian.
    mixed : float
        Chance that each axis has a point-spread function of its own.
    cubic : float
        Chance of cubic interpolation without a point-spread function, the paper's protocol.
    noise : float
        Chance of Gaussian noise in the LR volume.
    largest_noise : float
        Upper end of its standard deviation, as a share of the intensity range.
    contrast : float
        Chance of another intensity curve (gamma, inversion) inside the foreground.
    bias_field : float
        Chance of a smooth multiplicative field over the HR patch.
    largest_bias : float
        Upper end of that field's departure from 1 along each axis.
    in_plane : float
        Chance that the HR volume itself has thick slices and is measured in plane only, as a
        clinical 2D scan would be.
    blur : float
        Chance that the HR volume is softer than its voxels, as one that the scanner or a
        template's maker interpolated.
    largest_blur : float
        Upper end of that blur's full width at half maximum, HR voxels.
    ideal : float
        Chance that a pair is spared all of noise, blur, other widths and other kinds: what the
        scores are measured on. Drawn before their own chances.
    """

    anisotropic: float = 0.1
    thick_slices: float = 0.12
    smallest_thick_scale: float = 1.5
    largest_thick_scale: float = 6.0
    sharp: float = 0.5
    other_width: float = 0.25
    width_factor: float = 1.8
    other_kind: float = 0.15
    mixed: float = 0.05
    cubic: float = 0.05
    noise: float = 0.3
    largest_noise: float = 0.04
    contrast: float = 0.25
    bias_field: float = 0.1
    largest_bias: float = 0.3
    in_plane: float = 0.1
    blur: float = 0.2
    largest_blur: float = 2.5
    ideal: float = 0.5

    def __post_init__(self) -> None:
        require_finite(self)
        for name in _CHANCES:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"{name} is a chance, from 0 to 1, and not {getattr(self, name)!r}."
                )
        if not 1 <= self.smallest_thick_scale <= self.largest_thick_scale:
            raise UsageError(
                "The scales of thick slices must be at least 1 and in order, not "
                f"{self.smallest_thick_scale:g} to {self.largest_thick_scale:g}."
            )
        for name, least in (("width_factor", 1.0), ("largest_blur", 1.0), ("largest_noise", 0.0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least:g}, not {getattr(self, name)!r}.")
        if not 0 <= self.largest_bias < 1:
            raise UsageError(f"largest_bias must be from 0 to below 1, not {self.largest_bias!r}.")


_CHANCES = (
    "anisotropic",
    "thick_slices",
    "sharp",
    "other_width",
    "other_kind",
    "mixed",
    "cubic",
    "noise",
    "contrast",
    "bias_field",
    "in_plane",
    "blur",
    "ideal",
)


@dataclass(frozen=True)
class TrainingConfig:
    """What decides the weights that come out.

    A run is as long as the first of ``steps``, ``epochs`` and ``minutes`` that is reached; 0
    leaves one out. An epoch is ``patches`` pairs a training volume.

    Parameters
    ----------
    protocol : {"scanner", "paper"}
        ``scanner``: pairs drawn afresh at every step (:mod:`napari_arssr.training.pairs`).
        ``paper``: as Wu et al. 2023 (:mod:`napari_arssr.training.paper`).
    model : ModelConfig
    baseline : {"", "SRCNN3D", "DCSRN", "ResCNN"}
        Train this rival of the paper in place of ``model``: a network for one scale, which
        refines the cubically interpolated volume.
    scale : tuple of three floats
        The baseline's one scale, (z, y, x); empty without a baseline.
    normalization : {"percentile", "minmax", "none"}
        How intensities are brought to [0, 1].
    smallest_scale, largest_scale : float
        Range of the scale, uniform; not for baselines.
    patch : int
        LR voxels along each axis of a training pair.
    largest_patch : int
        If above ``patch``, each batch takes a size between the two.
    batch : int
        Pairs a step, on each device.
    augmentation : Augmentation
        Of the ``scanner`` protocol.
    lattice : int
        Points along each axis of the random lattice decoded per pair; ``scanner`` protocol.
        Baselines are judged on every HR voxel of a pair.
    sharp_axes : tuple of ints
        Array axes (z, y, x) of the training files along which they are sharp; ``scanner``
        protocol.
    samples : int
        Random HR voxels decoded per pair; ``paper`` protocol.
    cut : int
        HR voxels along each axis of the fixed patches; ``paper`` protocol.
    patches : int
        Fixed patches a volume, and pairs a volume in an epoch.
    learning_rate : float
        Peak of Adam's, after a linear warm-up.
    schedule : {"cosine", "step", "constant"}
        ``cosine``: to 1 % at the end, following the clock where that ends the run. ``step``:
        halved every ``decay_every`` epochs.
    warm_up : int
        Steps of warm-up; it takes a tenth of the run at most.
    decay_every : int
        Epochs.
    steps, epochs : int
    minutes : float
        Length of the run.
    average : float
        Decay of the moving average of weights, which is what is kept; 0: no average.
    clip : float
        Largest norm of a gradient; 0: any.
    squared : float
        Weight of the squared error beside the absolute one: where a network cannot know, the
        mean of what could be there serves PSNR better than the median.
    edges : float
        Weight of the absolute error of the differences between neighbours on the lattice;
        ``scanner`` protocol.
    accumulate : int
        Batches whose gradients make one step.
    precision : {"auto", "float32", "bfloat16", "float16"}
        ``auto``: bfloat16 where this device is faster with it.
    holdout : int
        Subjects, the last by name, kept back to watch the run where no validation volumes are
        given.
    watch_every : int
        Steps between validations; 0: every epoch.
    watch_batches : int
        Batches of a validation; 0: every patch once.
    save_every : int
        Steps between checkpoints; there is one after every validation besides.
    snapshot_every : int
        Epochs between weights that are kept besides the best and the last; 0: none.
    patience : int
        Validations without a better one after which the run ends; 0: never.
    seed : int
    """

    protocol: Protocol = "scanner"
    model: ModelConfig = BUNDLED_NETWORK
    baseline: Baseline = ""
    scale: tuple[float, ...] = ()
    normalization: Normalization = "percentile"
    smallest_scale: float = 1.2
    largest_scale: float = 4.0
    patch: int = 20
    largest_patch: int = 0
    batch: int = 8
    augmentation: Augmentation = field(default_factory=Augmentation)
    lattice: int = 18
    sharp_axes: tuple[int, ...] = (0, 1, 2)
    samples: int = 8000
    cut: int = 40
    patches: int = 6
    learning_rate: float = 7e-4
    schedule: Schedule = "cosine"
    warm_up: int = 200
    decay_every: int = 200
    steps: int = 20_000
    epochs: int = 0
    minutes: float = 0.0
    average: float = 0.999
    clip: float = 1.0
    squared: float = 5.0
    edges: float = 0.0
    accumulate: int = 1
    precision: Precision = "auto"
    holdout: int = 1
    watch_every: int = 500
    watch_batches: int = 8
    save_every: int = 250
    snapshot_every: int = 0
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite(self)
        for names, least in _LEAST.items():
            for name in names:
                if getattr(self, name) < least:
                    raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise UsageError(
                    f"{name} is one of {', '.join(get_args(choices))}, not {getattr(self, name)!r}."
                )
        if not 1 <= self.smallest_scale <= self.largest_scale:
            raise UsageError(
                "The scales of training must be at least 1 and in order, not "
                f"{self.smallest_scale:g} to {self.largest_scale:g}."
            )
        if self.learning_rate <= 0:
            raise UsageError(f"The learning rate must be above 0, not {self.learning_rate!r}.")
        if not 0 <= self.average < 1:
            raise UsageError(f"average must be from 0 to below 1, not {self.average!r}.")
        self._check_run()
        self._check_baseline()
        if self.protocol == "paper":
            self._check_paper()

    def _check_run(self) -> None:
        if not (self.steps or self.epochs or self.minutes):
            raise UsageError("The run has no end; give it steps, epochs or minutes.")
        if not self.sharp_axes or set(self.sharp_axes) - {0, 1, 2}:
            raise UsageError(f"sharp_axes are some of 0, 1, 2 (z, y, x), not {self.sharp_axes}.")
        if self.seed >= _SEEDS:
            raise UsageError(f"The seed must be below 2⁶³, not {self.seed}.")
        if self.edges and self.lattice < 2:
            raise UsageError("edges needs a lattice of at least 2 points; change one of them.")

    def _check_baseline(self) -> None:
        if not self.baseline:
            if self.scale:
                raise UsageError(
                    "One scale is for baselines; an ArSSR network takes smallest_scale and "
                    "largest_scale."
                )
            return
        if not self.scale:
            raise UsageError(f"{self.baseline} knows one scale: give it, such as 2 or 1,1,4.")
        try:
            config = BaselineConfig(self.baseline, self.scale)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(str(error)) from None
        if max(config.scale) == 1:
            raise UsageError(f"{self.baseline} at scale 1 has nothing to learn.")

    def _check_paper(self) -> None:
        if not self.baseline and self.model.decoder != "published":
            raise UsageError(
                "The paper's protocol trains the published decoder; take decoder: published, or "
                "the scanner protocol."
            )
        largest = max(self.scale, default=self.largest_scale)
        if round(self.patch * largest) > self.cut:
            raise UsageError(
                f"Patches of {self.patch} voxels at scale {largest:g} do not fit in "
                f"{self.cut} HR voxels; take cut: {round(self.patch * largest)}."
            )
        if not self.baseline and round(self.patch * self.smallest_scale) ** 3 < self.samples:
            raise UsageError(
                f"Patches of {self.patch} voxels at scale {self.smallest_scale:g} have fewer than "
                f"{self.samples} HR voxels to sample; take fewer samples or larger patches."
            )
        if self.edges or self.largest_patch > self.patch:
            raise UsageError("The paper's protocol has neither edges nor patches of several sizes.")

    @property
    def patch_sizes(self) -> tuple[int, int]:
        """Smallest and largest LR patch."""
        return self.patch, max(self.patch, self.largest_patch)

    @property
    def smallest_volume(self) -> int:
        """Voxels that every axis of a training volume needs."""
        if self.protocol == "paper":
            return self.cut
        # A patch at the largest scale is continued by its border, but half of it should be there.
        return int(self.patch * max(self.scale, default=self.largest_scale) / 2)

    @property
    def network(self) -> ModelConfig | BaselineConfig:
        """What is trained."""
        if not self.baseline:
            return self.model
        return BaselineConfig(
            self.baseline,
            self.scale,  # type: ignore[arg-type]
            self.normalization,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """From :meth:`to_dict`; an unknown name is a UsageError."""
        return from_plain(cls(), values)


_LEAST: dict[tuple[str, ...], int] = {
    ("patch", "lattice", "batch", "samples", "cut", "patches", "accumulate", "save_every"): 1,
    ("decay_every",): 1,
    ("largest_patch", "warm_up", "steps", "epochs", "minutes", "clip", "squared", "edges"): 0,
    ("holdout", "watch_every", "watch_batches", "snapshot_every", "patience", "seed"): 0,
}
_CHOICES: dict[str, Any] = {
    "protocol": Protocol,
    "baseline": Baseline,
    "normalization": Normalization,
    "schedule": Schedule,
    "precision": Precision,
}


@dataclass(frozen=True)
class DataConfig:
    """Which volumes, and how they are held.

    Parameters
    ----------
    train, validation : tuple of str
        HR volumes, or folders of them.
    cache : {"memory", "none"}
        ``memory``: the set is held in memory, once for all workers of a process. ``none``:
        patches are read from the files; what cannot be read in part (compressed files, TIFF)
        is unpacked once into the run's folder.
    workers : int
        Processes that make pairs, for each device; 0: none but the training process itself;
        -1: as many as suit this machine.
    strict : bool
        Whether a volume that cannot be used is an error; else it is named and left out.
    channel : int, optional
        Which channel of stacks that have several, from 0.
    isotropic : bool
        Whether files to train on are first brought to cubes of their finest voxel side by the
        weights that the run starts from: then their sharp axes teach in the surroundings in
        which the coarse one will be sharpened.
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    cache: Cache = "memory"
    workers: int = -1
    strict: bool = False
    channel: int | None = None
    isotropic: bool = False

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise UsageError(f"cache is one of {', '.join(CACHES)}, not {self.cache!r}.")
        if self.workers < -1:
            raise UsageError(f"workers must be at least -1, not {self.workers}.")


@dataclass(frozen=True)
class MachineConfig:
    """Where a run runs.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    devices : int
        GPUs (or processes on the CPU) a node; 0: one, or what torchrun or SLURM started.
    nodes : int
        0: one, or what torchrun or SLURM started.
    strategy : {"auto", "ddp"}
    """

    device: str = "auto"
    devices: int = 0
    nodes: int = 0
    strategy: Strategy = "auto"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy is one of {', '.join(STRATEGIES)}, not {self.strategy!r}.")
        if self.devices < 0 or self.nodes < 0:
            raise UsageError("Devices and nodes cannot be negative.")
        if self.devices > 1 and ":" in self.device:
            raise UsageError(
                f"{self.device} is one device and not {self.devices}; name the kind alone: "
                f"{self.device.partition(':')[0]}."
            )


@dataclass(frozen=True)
class WeightsConfig:
    """What the weights say of themselves: their name, licence, and a citation of the data."""

    name: str = "trained"
    licence: str = ""
    training_data: str = ""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or len(self.name) > _LONGEST_NAME:
            raise UsageError(f"{self.name!r} is not a name for a file of weights.")
        if self.name.casefold() == "best" or self.name.casefold().startswith("epoch-"):
            raise UsageError(f"A run has a file of its own called {self.name!r}; take another.")


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Parameters
    ----------
    preset : {"default", "paper"}
        What the other settings started from.
    start : str
        Weights to start from, a registered name or a file; empty: random ones.
    training : TrainingConfig
    data : DataConfig
    machine : MachineConfig
    weights : WeightsConfig
    """

    preset: PresetName = "default"
    start: str = ""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)

    def __post_init__(self) -> None:
        if self.data.isotropic and not self.start:
            raise UsageError("isotropic needs weights to start from; name them.")


_SEEDS = 2**63
_LONGEST_NAME = 100

GENTLE = 0.1
"""Of the learning rate, where a run starts from trained weights."""


def preset(name: str) -> RunConfig:
    """The settings of a protocol.

    Parameters
    ----------
    name : {"default", "paper"}
        ``default``: that of the bundled weights. ``paper``: Wu et al., IEEE JBHI 2023, with the
        options and defaults of the published script.

    Raises
    ------
    UsageError
        For another name.
    """
    if name == "default":
        return RunConfig()
    if name == "paper":
        return RunConfig(preset="paper", training=_PAPER)
    raise UsageError(f"There is no preset {name!r}: choose {', '.join(PRESETS)}.")


_PAPER = TrainingConfig(
    protocol="paper",
    model=ModelConfig(),
    normalization="minmax",
    smallest_scale=2.0,
    largest_scale=4.0,
    patch=10,
    batch=15,
    samples=8000,
    cut=40,
    patches=6,
    learning_rate=1e-4,
    schedule="step",
    warm_up=0,
    decay_every=200,
    steps=0,
    epochs=2500,
    average=0.0,
    clip=0.0,
    squared=0.0,
    watch_every=0,
    watch_batches=0,
    snapshot_every=200,
)


# HR voxels along the longest axis of a baseline's pairs: all of them pass through all layers.
_BASELINE_SIDE = 32


def of_baseline(config: RunConfig, baseline: str, scale: float | Sequence[float]) -> RunConfig:
    """The settings for one of the paper's rivals.

    Parameters
    ----------
    config : RunConfig
        Of a preset. ``paper``: then batches of 10 and 2000 epochs, as Wu et al. 2023 trained
        them; else patches of about 32 HR voxels along the axis of the largest scale.
    baseline : {"SRCNN3D", "DCSRN", "ResCNN"}
    scale : float or three floats
        (z, y, x). Empty where none was said, which is an error to come.
    """
    scale = as_triple(scale, "scale") if scale else ()
    training = config.training
    changes: dict[str, Any] = {"baseline": baseline, "scale": scale}
    if training.protocol == "paper":
        changes |= {"batch": 10, "epochs": 2000}
    elif scale:
        changes["patch"] = max(4, round(_BASELINE_SIDE / max(scale)))
    return replace(config, training=replace(training, **changes))


def read_config(
    path: str | os.PathLike[str], start: str = "", *, baseline: bool = False, gently: bool = True
) -> RunConfig:
    """Settings from a YAML file; what it does not name is as in its ``preset``.

    A length of the run that it names, ``steps``, ``epochs`` or ``minutes``, takes the place of
    those that it does not.
    Where weights to ``start`` from are named, what the file does not say of the ``model`` is as it
    is there, and a learning rate that it does not say is :data:`GENTLE` times the preset's.

    Parameters
    ----------
    path : path
    start : str
        Weights to start from, whatever the file says.
    baseline : bool
        Whether those are a baseline's, whatever the file says.
    gently : bool
        Whether the learning rate is lowered at all.

    Raises
    ------
    FileError
        If the file cannot be read or is no YAML.
    UsageError
        For a name that is no setting, or a value that cannot be meant.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: the settings cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: this is no YAML file ({reason}).") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: this is not a list of settings and their values.")
    base = preset(values["preset"]) if "preset" in values else RunConfig()
    training = values.get("training") or {}
    lengths = {"steps": 0, "epochs": 0, "minutes": 0.0}
    if isinstance(training, dict) and lengths.keys() & training.keys():
        rest = {name: zero for name, zero in lengths.items() if name not in training}
        values = values | {"training": training | rest}
    if start:
        values = values | {"start": start}
    config = from_plain(base, values, str(path))
    if not config.start:
        return config
    from_start: dict[str, Any] = {}
    if gently and "learning_rate" not in training:
        from_start["learning_rate"] = GENTLE * base.training.learning_rate
    if not (baseline or config.training.baseline):
        named = training.get("model") or {}
        if set(named) != set(to_plain(config.training.model)):
            from napari_arssr import weights

            from_start["model"] = to_plain(weights.load(config.start).card.config) | named
    if from_start:
        given = values.get("training") or {}
        config = from_plain(base, values | {"training": given | from_start}, str(path))
    return config


def write_config(path: str | os.PathLike[str], config: RunConfig) -> None:
    """Write every setting as YAML, readable by :func:`read_config`.

    Raises
    ------
    FileError
        If the file cannot be written.
    """
    write_whole(Path(path), yaml_text(config).encode())


def yaml_text(config: RunConfig) -> str:
    """Every setting, as YAML."""
    import yaml

    text: str = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
    return text
