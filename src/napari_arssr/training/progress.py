"""How far a run is, and what follows from it: learning rate, validations, the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from napari_arssr.training.config import TrainingConfig

__all__ = ["Plan", "Progress"]

# Share of a run.
LONGEST_WARM_UP = 0.1


@dataclass(frozen=True)
class Progress:
    """Where a run stands at a validation.

    Parameters
    ----------
    step, epoch : int
        Done.
    share : float
        Part of the run that is done, 0 to 1.
    seconds : float
        Trained for, over all sessions of the run.
    loss : float
        Mean of the training loss since the last validation.
    gain, psnr : float
        Of the averaged network on the validation pairs: dB above cubic interpolation, and dB.
    rate : float
        Learning rate.
    waiting : float
        Share of the time since the last validation that went by waiting for pairs.
    best : bool
        Whether no validation before was better.
    """

    step: int
    epoch: int
    share: float
    seconds: float
    loss: float
    gain: float
    psnr: float
    rate: float
    waiting: float
    best: bool

    @property
    def seconds_left(self) -> float:
        """Until the end, at the pace so far."""
        return self.seconds * (1 - self.share) / max(self.share, 1e-9)


@dataclass(frozen=True)
class Plan:
    """What a run's settings mean for a set of volumes.

    Parameters
    ----------
    config : TrainingConfig
    steps_an_epoch : int
    """

    config: TrainingConfig
    steps_an_epoch: int

    @property
    def steps(self) -> int:
        """Last step of the run; a very large number where only the clock ends it."""
        bounds = [self.config.steps, self.config.epochs * self.steps_an_epoch]
        return min((bound for bound in bounds if bound), default=10**12)

    @property
    def watch_every(self) -> int:
        """Steps between validations."""
        return self.config.watch_every or self.steps_an_epoch

    def share(self, step: int, seconds: float) -> float:
        """Part of the run that is done, 0 to 1: the further of steps and clock."""
        minutes = self.config.minutes
        by_clock = seconds / (60 * minutes) if minutes else 0.0
        return min(max(step / self.steps, by_clock), 1.0)

    def validates_at(self, step: int) -> bool:
        """Whether the run is looked at after so many steps, whatever the clock says."""
        return step > 0 and (step % self.watch_every == 0 or step >= self.steps)

    def next_validation(self, step: int) -> int:
        """The first such step after ``step``."""
        return min((step // self.watch_every + 1) * self.watch_every, max(self.steps, step + 1))

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate of the step that follows ``step`` others."""
        config = self.config
        share = self.share(step, seconds)
        # A run of minutes may have fewer steps than its warm-up.
        risen = max((step + 1) / max(config.warm_up, 1), share / LONGEST_WARM_UP)
        rate = config.learning_rate * min(1.0, risen)
        if config.schedule == "cosine":
            return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        if config.schedule == "step":
            return rate * 0.5 ** (step // self.steps_an_epoch // config.decay_every)
        return rate
