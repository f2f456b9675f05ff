"""The network under training, as Lightning's Trainer runs it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from napari_arssr.errors import ArssrError
from napari_arssr.training.batches import Batch, Network, PointBatch, moved, predict
from napari_arssr.training.checkpoints import RUN_KEY
from napari_arssr.training.config import TrainingConfig
from napari_arssr.training.progress import Plan

__all__ = ["Scores", "TrainingModule"]

_NO_ERROR = 1e-8  # mean square, a PSNR of 80 dB
_IDLE = 50  # steps without a gradient that end a run


@dataclass(frozen=True)
class Scores:
    """Of the averaged network on the validation pairs, dB; ``absolute`` is the mean error."""

    gain: float
    psnr: float
    absolute: float


class TrainingModule(lightning.LightningModule):
    """Loss, optimiser, moving average, validation scores and the counters of a run.

    Parameters
    ----------
    model : ArSSR or Regressor
        Trained in place.
    plan : Plan
    record : dict
        Plain values that checkpoints carry: settings, volumes, versions.
    last_good : callable
        Says where the last good state is, for the message of a run that went wrong.

    Attributes
    ----------
    averaged : ArSSR or Regressor
        What is validated and kept: the moving average, or ``model`` itself without one.
    step : int
        Steps of the optimiser, over all sessions.
    batches : int
        Batches, each process's own.
    seconds : float
        Trained for, over all sessions.
    last_loss : torch.Tensor
        Of the last batch.
    last_scores : dict
        Of the last validation, as cards have them; empty before the first.
    """

    def __init__(
        self,
        model: Network,
        plan: Plan,
        record: dict[str, Any],
        last_good: Callable[[], str] = lambda: "nothing was saved yet",
    ) -> None:
        super().__init__()
        self.plan = plan
        self.record = record
        self._last_good = last_good
        self.model = model.train().requires_grad_(True)
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.averaged = (
            copy.deepcopy(self.model).requires_grad_(False) if self.config.average else self.model
        )
        self.step = self.batches = self.stale = self.best_step = 0
        self.seconds = 0.0
        self.best = -math.inf
        self.scores: Scores | None = None
        self.last_scores: dict[str, float] = {}
        self._losses = torch.zeros(())
        self._counted = self._idle = 0
        self._names: tuple[str, ...] = ()
        self.last_loss = torch.zeros(())
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._clock = time.monotonic()

    @property
    def config(self) -> TrainingConfig:
        """The run's settings."""
        return self.plan.config

    @property
    def share(self) -> float:
        """Part of the run that is done, 0 to 1."""
        return self.plan.share(self.step, self.seconds)

    @property
    def exhausted(self) -> bool:
        """Whether there were as many validations without a better one as the settings allow."""
        return 0 < self.config.patience <= self.stale

    @property
    def epoch(self) -> int:
        """Epochs done; not Lightning's, which are the stretches between validations."""
        return self.step // self.plan.steps_an_epoch

    # Steps ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with its published constants."""
        return torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """The batch on a device."""
        return moved(batch, device)

    def on_train_start(self) -> None:
        """Start the clock where the last session stopped it."""
        self._clock = time.monotonic() - self.seconds

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate."""
        rate = self.plan.rate(self.step, self.seconds)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch.

        Raises
        ------
        ArssrError
            If it is no number.
        """
        # Gradients are those of all batches of a step.
        first = self.batches % self.config.accumulate == 0
        self._names = batch.names if first else self._names + batch.names
        loss = self.loss(predict(self.model, batch), batch)
        broken = not torch.isfinite(loss)
        if broken:
            self._names = batch.names
        # In every process: one that went on would wait for the others for ever.
        if self.trainer.strategy.reduce_boolean_decision(broken, all=False):
            if not broken:
                raise ArssrError(
                    f"Another process has a loss that is no number at step {self.step}; "
                    f"{self._last_good()}."
                )
            self._refuse("loss", loss)
        self.last_loss = loss.detach()
        self._losses = self._losses.to(loss.device) + self.last_loss
        self._counted += 1
        return loss

    def mean_loss(self) -> float:
        """Of the batches since it was last asked for."""
        mean = float(self._losses) / max(self._counted, 1)
        self._losses, self._counted = torch.zeros(()), 0
        return mean

    def loss(self, predicted: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error, with the further terms that the settings ask for."""
        config = self.config
        error = predicted - batch.target
        loss = error.abs().mean()
        if config.squared:
            loss = loss + config.squared * error.square().mean()
        if config.edges and not isinstance(batch, PointBatch):
            steps = [error.diff(dim=axis).abs().mean() for axis in (1, 2, 3)]
            loss = loss + config.edges * (steps[0] + steps[1] + steps[2]) / 3
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm, and see that it is a number before it reaches the weights.

        Raises
        ------
        ArssrError
            If it is none, or has been 0 for long.
        """
        largest = self.config.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        # In float16 the scaler meets infinite gradients now and then, and passes the step over.
        if self.config.precision != "float16" and not torch.isfinite(norm):
            self._refuse("gradient's norm", norm)
        self._idle = self._idle + 1 if norm == 0 else 0
        if self._idle == _IDLE:
            raise ArssrError(
                f"The gradient was 0 in the last {_IDLE} steps, to step {self.step}: the network "
                f"answers the same everywhere and learns no more; {self._last_good()}. Begin "
                "again with another --seed or a lower learning rate."
            )

    def _refuse(self, what: str, value: Tensor) -> None:
        raise ArssrError(
            f"The {what} is {value.item()} at step {self.step} (volumes "
            f"{', '.join(dict.fromkeys(self._names))}); {self._last_good()}."
        )

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """One step of the optimiser and of the moving average."""
        super().optimizer_step(*arguments, **options)
        if self.config.average:
            # A young average would remember its random start.
            decay = min(self.config.average, (1 + self.step) / (10 + self.step))
            means, values = (
                [parameter.detach() for parameter in network.parameters()]
                for network in (self.averaged, self.model)
            )
            torch._foreach_lerp_(means, values, 1 - decay)
            # What batch normalisation counts is a moving average already.
            for mean, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                mean.copy_(value)
        self.step += 1

    def tick(self) -> None:
        """Note how long the run has trained, the same in every process."""
        self.seconds = time.monotonic() - self._clock
        if self.config.minutes and self.trainer.world_size > 1:
            self.seconds = self.trainer.strategy.broadcast(self.seconds)

    # Validation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin to add up."""
        self._sums = torch.zeros(4, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch's scores up."""
        axes = tuple(range(1, batch.target.ndim))
        error = predict(self.averaged, batch) - batch.target
        ours = _psnr(error.square().mean(axes))
        cubic = _psnr((batch.base - batch.target).square().mean(axes))
        count = torch.tensor(len(ours), device=ours.device)
        sums = [ours.sum(), (ours - cubic).sum(), error.abs().mean(axes).sum(), count]
        self._sums += torch.stack(sums).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """Bring the scores of all processes together."""
        # MPS knows no float64.
        sums = self._sums.float().to(self.device)
        total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        psnr, gain, absolute, count = total.tolist()
        self.scores = Scores(gain / count, psnr / count, absolute / count)

    def judge(self) -> bool:
        """Whether the scores are the best so far."""
        assert self.scores is not None
        self.last_scores = {
            "gain_db": round(self.scores.gain, 3),
            "psnr_db": round(self.scores.psnr, 3),
            "mean_absolute_error": round(self.scores.absolute, 6),
            "step": self.step,
        }
        better = self.scores.psnr > self.best
        if better:
            self.best, self.best_step, self.stale = self.scores.psnr, self.step, 0
        else:
            self.stale += 1
        return better

    # Checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add settings and counters."""
        checkpoint[RUN_KEY] = {
            **self.record,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_step": self.best_step,
            "stale": self.stale,
            "scores": self.last_scores,
            "losses": self._losses.cpu(),
            "counted": self._counted,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters up."""
        state = checkpoint[RUN_KEY]
        self.step = state["step"]
        self.batches = self.step * self.config.accumulate
        self.seconds = state["seconds"]
        self.best, self.best_step, self.stale = state["best"], state["best_step"], state["stale"]
        self._losses, self._counted = state["losses"], state["counted"]
        self.last_scores = state.get("scores", {})


def _psnr(mean_square: Tensor) -> Tensor:
    # A patch of background alone has no error.
    return -10 * torch.log10(mean_square + _NO_ERROR)
