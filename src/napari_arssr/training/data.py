"""Batches for Lightning's Trainer: by number, so that any process can make any of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as lightning
from torch.utils.data import DataLoader, Dataset, Sampler

from napari_arssr.training.batches import Batch
from napari_arssr.training.config import TrainingConfig
from napari_arssr.training.module import TrainingModule
from napari_arssr.training.pairs import ScannerPairs, Stream
from napari_arssr.training.paper import PaperPairs
from napari_arssr.training.volumes import Split, TrainingVolume, start_method

__all__ = ["PairData", "steps_an_epoch", "training_pairs", "watch_pairs", "worker_count"]

Pairs = ScannerPairs | PaperPairs

_MOST_WORKERS = 8
# What a signal to the whole group leaves a worker, for the run to save after its last step.
_GRACE_SECONDS = 120


def training_pairs(
    volumes: Sequence[TrainingVolume], config: TrainingConfig, *, rank: int = 0, ranks: int = 1
) -> Pairs:
    """Pairs to train on, for one of ``ranks`` processes."""
    if config.protocol == "paper":
        return PaperPairs(volumes, config, rank=rank, ranks=ranks)
    return ScannerPairs(volumes, config, rank=rank)


def watch_pairs(volumes: Sequence[TrainingVolume], config: TrainingConfig) -> tuple[Pairs, int]:
    """Pairs for validation, always the same; and how many batches of them."""
    if config.protocol == "paper":
        pairs = PaperPairs(volumes, config, watch=True)
        return pairs, min(config.watch_batches or pairs.batches, pairs.batches)
    batches = config.watch_batches or -(-len(volumes) * config.patches // config.batch)
    return ScannerPairs(volumes, config, stream=Stream.WATCH), batches


def steps_an_epoch(volumes: Sequence[TrainingVolume], config: TrainingConfig, ranks: int) -> int:
    """Steps in which there are as many pairs as there are fixed patches."""
    if config.protocol == "paper":
        return PaperPairs(volumes, config, ranks=ranks).steps_an_epoch
    return -(-len(volumes) * config.patches // (config.batch * config.accumulate * ranks))


def worker_count(wanted: int, processes: int = 1) -> int:
    """How many processes make pairs: as many as asked for, or what suits this machine.

    Parameters
    ----------
    wanted : int
        -1: a share of the processors, at least one and at most eight.
    processes : int
        Training processes on this machine.
    """
    if wanted >= 0:
        return wanted
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MOST_WORKERS, (available or 1) // (2 * processes)))


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ctrl-C and many a cluster signal every process: a worker goes when the run does."""

    def leave_later(_number: int, _frame: object) -> None:
        signal.alarm(_GRACE_SECONDS)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, leave_later)


class _Batches(Dataset[Batch]):
    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def __getitem__(self, number: int) -> Batch:
        return self._pairs.batch(number)


class _UntilValidation(Sampler[int]):
    """Numbers of the batches from where the run stands to its next validation.

    Each time it is asked: so each of Lightning's epochs ends with a validation, and a session
    that begins between two of them goes on to the one that is due.
    """

    def __init__(self, module: TrainingModule) -> None:
        self._module = module

    def __iter__(self) -> Iterator[int]:
        module = self._module
        last = module.plan.next_validation(module.step) * module.config.accumulate
        yield from range(module.batches, last)


class PairData(lightning.LightningDataModule):
    """Batches to train on and to validate with.

    Parameters
    ----------
    module : TrainingModule
        Says where the run stands.
    split : Split
        Without validation volumes, the run is watched on its training volumes.
    workers : int
        Processes that make pairs; 0: the training process does.
    """

    def __init__(self, module: TrainingModule, split: Split, workers: int) -> None:
        super().__init__()
        self._module = module
        self._split = split
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches up to the next validation."""
        trainer, config = self._module.trainer, self._module.config
        pairs = training_pairs(
            self._split.train, config, rank=trainer.global_rank, ranks=trainer.world_size
        )
        return self._loader(pairs, _UntilValidation(self._module), self._workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation batches that fall to this process."""
        trainer, config = self._module.trainer, self._module.config
        pairs, count = watch_pairs(self._split.validation or self._split.train, config)
        # A process without a batch would not wait for the others' scores.
        mine = range(trainer.global_rank, count, trainer.world_size) or range(count - 1, count)
        return self._loader(pairs, mine, min(self._workers, 1))

    def _loader(
        self, pairs: Pairs, numbers: Sampler[int] | range, workers: int
    ) -> DataLoader[Batch]:
        options: dict[str, Any] = {}
        if workers:
            options = {
                "multiprocessing_context": start_method(),
                "persistent_workers": True,
                "prefetch_factor": 4,
                "worker_init_fn": _leave_signals_to_the_run,
            }
        return DataLoader(
            _Batches(pairs),
            batch_size=None,  # a batch is made whole
            sampler=numbers,
            num_workers=workers,
            pin_memory=self._module.device.type == "cuda",
            **options,
        )
