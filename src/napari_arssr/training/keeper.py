"""What a run keeps, and when it ends: a Lightning callback."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from napari_arssr.errors import Cancelled
from napari_arssr.signals import StopRequest
from napari_arssr.training.batches import Network
from napari_arssr.training.checkpoints import LAST
from napari_arssr.training.module import TrainingModule
from napari_arssr.training.progress import Progress

__all__ = ["Keeper"]


class Keeper(Callback):
    """Counts batches, saves, judges validations, ends the run.

    The state is saved every ``save_every`` steps and after every validation, and before each
    that is foreseen: a session that is ended during one has not to be trained again.

    Parameters
    ----------
    folder : Path
        Of the run.
    request : StopRequest
    keep : callable
        Called in the first process with a network and the name of its file, without suffix:
        ``best`` when no validation before was better, ``epoch-200`` for a snapshot.
    report : callable
        Called in the first process after each validation.
    """

    def __init__(
        self,
        folder: Path,
        request: StopRequest,
        keep: Callable[[Network, str], None],
        report: Callable[[Progress], None],
    ) -> None:
        self._last = folder / LAST
        self._request = request
        self._keep = keep
        self._report = report
        self._saved: int | None = None
        self._waited = self._trained = 0.0
        self._since = self._idle_since = time.monotonic()

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Listen to signals; only now, because Lightning sets handlers of its own before."""
        self._request.listen()
        module = _ours(pl_module)
        # Each process saves or none: whether the file is there, the first may have changed already.
        if module.step == 0 and module.plan.validates_at(1):
            self._save(trainer, module)
        elif module.step:
            self._saved = module.step
        self._since = self._idle_since = time.monotonic()

    def on_train_batch_start(self, *_: Any) -> None:
        """Note how long the batch was waited for."""
        self._waited += time.monotonic() - self._idle_since

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save, or end the run.

        Raises
        ------
        Cancelled
            If somebody wants it to end; the state is saved.
        """
        module = _ours(pl_module)
        module.batches += 1
        if module.batches % module.config.accumulate == 0:
            module.tick()
            self._after_step(trainer, module)
        self._idle_since = time.monotonic()

    def _after_step(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        plan, step = module.plan, module.step
        due = plan.validates_at(step)
        epoch, within = divmod(step, plan.steps_an_epoch)
        every = module.config.snapshot_every
        if every and within == 0 and epoch % every == 0 and trainer.is_global_zero:
            self._keep(module.averaged, f"epoch-{epoch}")
        asked = trainer.strategy.reduce_boolean_decision(self._request.asked, all=False)
        if asked:
            # A step that is yet to be judged is taken again: its validation must not be left out.
            if not due:
                self._save(trainer, module)
            saved = "" if self._saved == step else f" as it was after step {self._saved}"
            raise Cancelled(
                f"Stopped by {self._request.reason} after step {step}; the run is saved{saved} in "
                f"{self._last.parent}, and --resume goes on with it."
            )
        if module.share >= 1:
            trainer.should_stop = True  # after a validation
        elif not due and (step % module.config.save_every == 0 or plan.validates_at(step + 1)):
            self._save(trainer, module)

    def _save(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        trainer.save_checkpoint(self._last)
        self._saved = module.step

    def on_validation_start(self, *_: Any) -> None:
        """Note how long there was training."""
        self._trained = time.monotonic() - self._since

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Keep the best, report, save, and end a run that has stopped getting better."""
        module = _ours(pl_module)
        best = module.judge()
        if best and trainer.is_global_zero:
            self._keep(module.averaged, "best")
        if module.exhausted:
            trainer.should_stop = True
        scores = module.scores
        assert scores is not None
        progress = Progress(
            step=module.step,
            epoch=module.epoch,
            share=1.0 if trainer.should_stop else module.share,
            seconds=module.seconds,
            loss=module.mean_loss(),
            gain=scores.gain,
            psnr=scores.psnr,
            rate=float(trainer.optimizers[0].param_groups[0]["lr"]),
            waiting=self._waited / max(self._trained, 1e-9),
            best=best,
        )
        self._save(trainer, module)
        if trainer.is_global_zero:
            self._report(progress)
        self._waited = 0.0
        self._since = self._idle_since = time.monotonic()


def _ours(module: lightning.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module
