"""The training loop: steps, moving average, scores on held-out volumes, checkpoints."""

from __future__ import annotations

import copy
import csv
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_arssr.errors import ArssrError, FileError, UsageError
from napari_arssr.models import ArSSR, Card, build, save
from napari_arssr.training.config import TrainingConfig
from napari_arssr.training.data import Batch, PairSampler, TrainingVolume

__all__ = ["Progress", "TrainingRun"]

_CHECKPOINT = "last.ckpt"
_LOG = "log.csv"
_WATCHED_BATCHES = 8


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``loss`` is L1 in [0, 1] units, ``gain`` dB over cubic, held out."""

    step: int
    share: float
    seconds: float
    loss: float
    gain: float


class TrainingRun:
    """A run that can end and go on: ``folder`` holds its checkpoint and its log.

    Parameters
    ----------
    config : TrainingConfig
    volumes : list of TrainingVolume
        Sorted by name; the last ``config.holdout`` are watched, not trained on.
    folder : path
        Made if missing.
    device : str or torch.device
    """

    def __init__(
        self,
        config: TrainingConfig,
        volumes: list[TrainingVolume],
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
    ) -> None:
        if len(volumes) <= config.holdout:
            raise UsageError(
                f"{len(volumes)} volumes cannot be trained on with {config.holdout} held out; "
                "give more volumes or hold out fewer."
            )
        self.config = config
        self.folder = Path(folder)
        with _written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(device)
        torch.manual_seed(config.seed)
        self.model = build(config.model).to(self.device)
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        split = len(volumes) - config.holdout
        self.sampler = PairSampler(volumes[:split], config, np.random.default_rng(config.seed))
        watched = volumes[split:] or volumes
        self._watched = PairSampler(watched, config, np.random.default_rng(config.seed + 1))
        self._watch_batches: list[Batch] = []
        self.step = 0
        self.seconds = 0.0

    @property
    def share(self) -> float:
        """Part of the run that is done, 0 to 1: the further of steps and clock."""
        config = self.config
        by_clock = self.seconds / (60 * config.minutes) if config.minutes else 0.0
        return min(max(self.step / config.steps, by_clock), 1.0)

    def train(
        self,
        report: Callable[[Progress], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end, or until ``stop()``; True when the end was reached.

        The state is saved on the way and at the end, whatever the end was.

        Raises
        ------
        ArssrError
            If the loss is no longer a number; the last checkpoint is left as it was.
        """
        started = time.monotonic() - self.seconds
        losses: list[Tensor] = []
        while self.share < 1 and not stop():
            losses.append(self._step())
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % self.config.watch_every == 0 or self.share >= 1:
                loss = float(torch.stack(losses).mean())
                losses.clear()
                progress = Progress(self.step, self.share, self.seconds, loss, self.gain())
                self._log(progress)
                report(progress)
            if self.step % self.config.save_every == 0:
                self.save()
        self.save()
        return self.share >= 1

    def _step(self) -> Tensor:
        config = self.config
        rate = config.learning_rate * min(1.0, (self.step + 1) / max(config.warm_up, 1))
        rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * self.share)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.sampler.batch(self.model)
        loss = (self._predict(self.model, batch) - batch.target.to(self.device)).abs().mean()
        self._check(loss, "loss", batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        # Before it reaches the weights: they could be saved before the next loss shows it.
        self._check(norm, "gradient's norm", batch)
        self.optimizer.step()
        # A young average would remember its random start.
        decay = min(config.average, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - decay)
        return loss.detach()

    def _check(self, value: Tensor, name: str, batch: Batch) -> None:
        if not torch.isfinite(value):
            path = self.folder / _CHECKPOINT
            state = f"the last good state is {path}" if path.exists() else "nothing was saved yet"
            raise ArssrError(
                f"The {name} is {value.item()} at step {self.step} (volumes "
                f"{', '.join(batch.names)}); {state}."
            )

    def _predict(self, model: ArSSR, batch: Batch) -> Tensor:
        def there(tensors: Any) -> Any:
            return tuple(tensor.to(self.device) for tensor in tensors)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            nodes = model.encode(batch.low.to(self.device))
            weights, positions = there(batch.weights), there(batch.positions)
            if self.config.bfloat16:  # autocast does not reach the interpolation's operands
                nodes = nodes.to(torch.bfloat16)
            terms = model.position_terms(positions)
            decoded = model.decode_lattice(nodes, weights, terms)
        base, gate = there((batch.base, batch.gate))
        return base + gate * decoded.float()

    @torch.no_grad()
    def gain(self) -> float:
        """PSNR of the averaged network above its base on held-out pairs, dB."""
        if not self._watch_batches:
            self._watch_batches = [self._watched.batch(self.model) for _ in range(_WATCHED_BATCHES)]
        gains = []
        for batch in self._watch_batches:
            target = batch.target
            error = (self._predict(self.averaged, batch).cpu() - target).square()
            before = (batch.base - target).square()
            axes = (1, 2, 3)
            gains.append(10 * torch.log10(before.mean(axes) / error.mean(axes)))
        return float(torch.cat(gains).mean())

    def save(self) -> None:
        """Write the whole state; a file under its name is always whole."""
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.sampler.generator.bit_generator.state,
        }
        path = self.folder / _CHECKPOINT
        with _written(path):
            descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".ckpt")
            try:
                with os.fdopen(descriptor, "wb") as opened:
                    torch.save(state, opened)
                    opened.flush()
                    os.fsync(opened.fileno())
                Path(partial).replace(path)
            finally:
                Path(partial).unlink(missing_ok=True)

    def resume(self) -> None:
        """Go on from the folder's checkpoint.

        Raises
        ------
        FileError
            If there is none, or it is broken.
        UsageError
            If it was made with other settings.
        """
        path = self.folder / _CHECKPOINT
        if not path.is_file():
            raise FileError(f"{path}: there is no checkpoint to resume from.")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            theirs = TrainingConfig.from_dict(state["config"])
        except Exception as error:  # torch raises many kinds for a broken archive
            raise FileError(f"{path}: the checkpoint cannot be read ({error}).") from None
        changed = [
            name
            for name, value in theirs.to_dict().items()
            if value != self.config.to_dict()[name] and name not in ("steps", "minutes")
        ]
        if changed:
            raise UsageError(
                f"{path}: the run was started with another {', '.join(changed)}; "
                "resume it with the same settings or start in another folder."
            )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.generator.bit_generator.state = state["generator"]
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, path: str | os.PathLike[str], card: Card, half: bool = False) -> None:
        """Write the averaged weights as safetensors with their card."""
        save(path, self.averaged, card, torch.float16 if half else torch.float32)

    def _log(self, progress: Progress) -> None:
        path = self.folder / _LOG
        fresh = not path.exists()
        with _written(path), path.open("a", newline="") as opened:
            writer = csv.writer(opened)
            if fresh:
                writer.writerow(["step", "share", "seconds", "loss", "gain_db"])
            writer.writerow(
                [
                    progress.step,
                    f"{progress.share:.4f}",
                    f"{progress.seconds:.1f}",
                    f"{progress.loss:.6f}",
                    f"{progress.gain:.3f}",
                ]
            )


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    # torch turns a full disk into a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise FileError(
            f"{path} cannot be written ({reason}); make room, or train in another folder."
        ) from error
