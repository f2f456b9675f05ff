"""Settings of a training run, in one frozen record."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from napari_arssr.errors import UsageError
from napari_arssr.models import ModelConfig

__all__ = ["Augmentation", "TrainingConfig"]

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
    largest_thick_scale : float
        Upper end of the scale of thick slices.
    other_width : float
        Chance of a point-spread function wider or narrower than one LR voxel, by a factor
        between 1 / ``width_factor`` and ``width_factor``.
    width_factor : float
    other_kind : float
        Chance of a slice profile or k-space low-pass in place of the Gaussian.
    noise : float
        Chance of Gaussian noise in the LR volume.
    largest_noise : float
        Upper end of its standard deviation, as a share of the intensity range.
    contrast : float
        Chance of another intensity curve (gamma, inversion) inside the foreground.
    """

    anisotropic: float = 0.15
    thick_slices: float = 0.15
    largest_thick_scale: float = 6.0
    other_width: float = 0.25
    width_factor: float = 1.6
    other_kind: float = 0.1
    noise: float = 0.25
    largest_noise: float = 0.05
    contrast: float = 0.25


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Parameters
    ----------
    model : ModelConfig
    augmentation : Augmentation
    smallest_scale, largest_scale : float
        Range of the scale, uniform.
    patch : int
        LR voxels along each axis of a training pair.
    lattice : int
        Points along each axis of the random lattice decoded per pair.
    batch : int
        Pairs a step.
    learning_rate : float
        Peak of Adam's; linear warm-up, then a cosine to 1 % of it.
    warm_up : int
        Steps of warm-up.
    steps : int
        Length of the run, or its bound when ``minutes`` is given.
    minutes : float
        Length of the run in time; 0 leaves it to ``steps``. The cosine then follows the clock.
    average : float
        Decay of the moving average of weights, which is what is saved.
    clip : float
        Largest norm of a gradient.
    holdout : int
        Training volumes, the last by name, kept back to watch the run.
    watch_every, save_every : int
        Steps between scores on the held-out volumes, and between checkpoints.
    sharp_axes : tuple of ints
        Array axes (z, y, x) of the training files along which they are sharp: every other pair
        takes its coarsest axis along one of these, the rest along any.
    seed : int
    bfloat16 : bool
        Mixed precision.
    """

    model: ModelConfig = BUNDLED_NETWORK
    augmentation: Augmentation = field(default_factory=Augmentation)
    smallest_scale: float = 1.1
    largest_scale: float = 4.0
    patch: int = 20
    lattice: int = 18
    batch: int = 8
    learning_rate: float = 1e-3
    warm_up: int = 200
    steps: int = 20_000
    minutes: float = 0.0
    average: float = 0.999
    clip: float = 1.0
    holdout: int = 1
    watch_every: int = 500
    save_every: int = 250
    sharp_axes: tuple[int, ...] = (0, 1, 2)
    seed: int = 0
    bfloat16: bool = True

    def __post_init__(self) -> None:
        for name in ("patch", "lattice", "batch", "steps", "watch_every", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)!r}.")
        if not 1 <= self.smallest_scale <= self.largest_scale:
            raise UsageError(
                "The scales of training must be at least 1 and in order, not "
                f"{self.smallest_scale:g} to {self.largest_scale:g}."
            )
        if self.minutes < 0 or self.learning_rate <= 0 or self.holdout < 0 or self.warm_up < 0:
            raise UsageError("Minutes, learning rate, hold-out and warm-up cannot be negative.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """From :meth:`to_dict`, for a run that is resumed."""
        known = {item.name for item in fields(cls)}
        settings = {name: value for name, value in values.items() if name in known}
        settings["model"] = ModelConfig.from_dict(settings["model"])
        settings["augmentation"] = Augmentation(**settings["augmentation"])
        settings["sharp_axes"] = tuple(settings["sharp_axes"])
        return cls(**settings)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, for the record of what a network was trained on."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
