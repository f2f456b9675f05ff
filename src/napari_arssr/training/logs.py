"""Logs of a run: a CSV file, TensorBoard with example slices, a line on the terminal."""

from __future__ import annotations

import csv
import io as text_io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from napari_arssr.degradation import ScannerModel
from napari_arssr.field import CubicField, NetworkField
from napari_arssr.files import write_whole, writing
from napari_arssr.models import Regressor
from napari_arssr.normalization import Normalizer
from napari_arssr.terminal import show
from napari_arssr.timing import clock_words
from napari_arssr.training.batches import Network
from napari_arssr.training.config import TrainingConfig
from napari_arssr.training.module import TrainingModule
from napari_arssr.training.pairs import Stream, generator_for
from napari_arssr.training.progress import Progress
from napari_arssr.training.volumes import TrainingVolume
from napari_arssr.volume import Box, Grid, Volume

__all__ = ["LOG", "Curves", "Example", "StepLine", "TableLog", "tensorboard"]

LOG = "log.csv"

_COLUMNS = (
    "step",
    "share",
    "seconds",
    "loss",
    "gain_db",
    "psnr_db",
    "epoch",
    "learning_rate",
    "waiting",
    "best",
)
_EXAMPLE_SIDE = 72
_BASELINE_EXAMPLE_SIDE = 48
_EXAMPLE_SCALE = 3


class TableLog:
    """``log.csv``: one row a validation.

    Parameters
    ----------
    folder : Path
    step : int
        Where the session begins: rows beyond are of steps that will be done again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / LOG
        rows: list[list[str]] = []
        if self._path.exists():
            with writing(self._path), self._path.open(newline="") as opened:
                rows = [row for row in csv.reader(opened) if _is_row(row) and int(row[0]) <= step]
        text = text_io.StringIO(newline="")
        csv.writer(text).writerows([_COLUMNS, *rows])
        write_whole(self._path, text.getvalue().encode())

    def add(self, progress: Progress) -> None:
        """Add a row."""
        row = [
            progress.step,
            f"{progress.share:.4f}",
            f"{progress.seconds:.1f}",
            f"{progress.loss:.6f}",
            f"{progress.gain:.3f}",
            f"{progress.psnr:.3f}",
            progress.epoch,
            f"{progress.rate:.3g}",
            f"{progress.waiting:.4f}",
            int(progress.best),
        ]
        with writing(self._path), self._path.open("a", newline="") as opened:
            csv.writer(opened).writerow(row)


def _is_row(row: list[str]) -> bool:
    """Whether a line is a row: one that the machine went down over can hold anything."""
    return len(row) == len(_COLUMNS) and row[0].isdecimal()


def tensorboard(folder: Path, step: int) -> TensorBoardLogger:
    """Lightning's logger; what an earlier session wrote beyond ``step`` is passed over."""
    return TensorBoardLogger(
        folder,
        name="",
        version="tensorboard",
        default_hp_metric=False,
        purge_step=step + 1 if step else None,
    )


class Curves(Callback):
    """Loss and learning rate in TensorBoard every few steps; scores and slices with each report.

    Parameters
    ----------
    logger : TensorBoardLogger
    example : Example or None
    """

    every = 50

    def __init__(self, logger: TensorBoardLogger, example: Example | None) -> None:
        self._logger = logger
        self._example = example

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the loss."""
        assert isinstance(pl_module, TrainingModule)
        if pl_module.step % self.every == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            curves = {"train/loss": float(pl_module.last_loss), "train/rate": rate}
            self._logger.log_metrics(curves, pl_module.step)

    def add(self, progress: Progress, model: Network) -> None:
        """Log a validation."""
        scores = {"validation/gain_db": progress.gain, "validation/psnr_db": progress.psnr}
        self._logger.log_metrics({**scores, "train/waiting": progress.waiting}, progress.step)
        if self._example is not None:
            self._logger.experiment.add_image(
                "cubic, network, truth", self._example.picture(model)[None], progress.step
            )
        self._logger.experiment.flush()


@dataclass(frozen=True)
class Example:
    """A slice of a validation volume: cubic interpolation, network, truth.

    At scale 3, or a baseline's own.

    Parameters
    ----------
    low : Volume
        In network units.
    cubic : Volume
    truth : (z, y, x) array
    """

    low: Volume
    cubic: Volume
    truth: npt.NDArray[np.float32]

    @classmethod
    def of(cls, volume: TrainingVolume, config: TrainingConfig) -> Example:
        """From a part of a volume that is not background."""
        scales = config.scale or (_EXAMPLE_SCALE,) * 3
        # A baseline sees all of it, and not only the slice that is shown.
        side = _BASELINE_EXAMPLE_SIDE if config.baseline else _EXAMPLE_SIDE
        sizes = [
            min(n, max(round(min(n, side) // k * k), 1))
            for n, k in zip(volume.data.shape, scales, strict=True)
        ]
        generator = generator_for(config.seed, Stream.WATCH)
        best, high = -1.0, np.zeros((0, 0, 0), dtype=np.float32)
        for _ in range(8):
            starts = [
                int(generator.integers(n - size + 1))
                for n, size in zip(volume.data.shape, sizes, strict=True)
            ]
            part = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
            block = np.asarray(volume.data[part], dtype=np.float32)
            if (share := float((block > 0).mean())) > best:
                best, high = share, block
        z, y, x = high.shape
        lz, ly, lx = (max(1, round(n / k)) for n, k in zip(high.shape, scales, strict=True))
        whole = Volume(high, Grid.from_spacing((z, y, x), 1.0).affine, name=volume.name)
        low = ScannerModel().measure(whole, whole.grid.with_shape((lz, ly, lx)))
        return cls(low, CubicField(low).sample(whole.grid), high)

    def picture(self, model: Network) -> npt.NDArray[np.float32]:
        """The middle slice of the three side by side, (y, 3·x), in [0, 1]."""
        z = len(self.truth) // 2
        slices = [self.cubic.data[z], self._refined(model, z), self.truth[z]]
        return np.clip(np.concatenate(slices, axis=1), 0, 1)

    def _refined(self, model: Network, z: int) -> npt.NDArray[np.float32]:
        device = next(model.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if isinstance(model, Regressor):
                base = torch.from_numpy(np.asarray(self.cubic.data, dtype=np.float32))
                refined: npt.NDArray[np.float32] = model(base[None].to(device))[0, z].cpu().numpy()
                return refined
            grid = self.cubic.grid
            _, y, x = grid.shape
            field = NetworkField(self.low, model, Normalizer(), device=device)
            part = field.sample(grid.crop(Box((z, 0, 0), (z + 1, y, x))))
        return np.asarray(part.data[0], dtype=np.float32)


class StepLine(Callback):
    """Where the run stands, on one line of a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show it, at most a few times a second."""
        assert isinstance(pl_module, TrainingModule)
        now = time.monotonic()
        if not (self._terminal and trainer.is_global_zero) or now - self._shown < 0.2:
            return
        self._shown = now
        share, seconds = pl_module.share, pl_module.seconds
        left = seconds * (1 - share) / share if share else float("nan")
        pace = pl_module.step / max(seconds, 1e-9)
        show(
            f"\r\x1b[Kstep {pl_module.step}  {share:4.0%}  {pace:.2f} steps/s  "
            f"{clock_words(left)} left"
        )

    def clear(self) -> None:
        """Take the line away, for what is printed next."""
        if self._terminal:
            show("\r\x1b[K")
