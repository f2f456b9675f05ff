"""A whole run: volumes in, weights out."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException

from napari_arssr import io, weights
from napari_arssr.choices import Precision
from napari_arssr.devices import bfloat16_is_faster, choose_device, float32_means_float32
from napari_arssr.errors import ArssrError, Cancelled, FileError, UsageError
from napari_arssr.files import make_folder, remove_partial, sha256_of
from napari_arssr.models import GROWING, ArSSR, can_grow, grow, load_baseline, save
from napari_arssr.signals import StopRequest, requeue, slurm_job
from napari_arssr.training.batches import Network, build_network
from napari_arssr.training.checkpoints import LAST, RUN_KEY, PlainCheckpointIO, read_checkpoint
from napari_arssr.training.config import GENTLE, RunConfig, TrainingConfig, write_config
from napari_arssr.training.data import PairData, steps_an_epoch, worker_count
from napari_arssr.training.export import card_of, export_run, run_record
from napari_arssr.training.keeper import Keeper
from napari_arssr.training.logs import Curves, Example, StepLine, TableLog, tensorboard
from napari_arssr.training.module import TrainingModule
from napari_arssr.training.plain import to_plain
from napari_arssr.training.progress import Plan, Progress
from napari_arssr.training.volumes import Split, load_split, refuse_too_few, start_method
from napari_arssr.upsampling import Settings, Target, upsample_file
from napari_arssr.watching import Stop, never

__all__ = ["CONFIG", "is_first_process", "starting_from", "train"]

CONFIG = "run.yaml"
"""A run's settings, in its folder."""

_UNPACKED = "unpacked"
_CUBES = "isotropic"

# What may differ when a run goes on: its length, and how often it is looked after.
_MAY_CHANGE = {"steps", "epochs", "minutes", "save_every", "snapshot_every", "patience"}

_LIGHTNING = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def train(
    config: RunConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    stop: Stop = never,
    show_progress: bool = False,
) -> Path:
    """Train on files and write ``folder/NAME.safetensors``.

    The folder gets the settings (``run.yaml``), the state (``last.ckpt``), the best weights
    (``best.safetensors``), ``log.csv`` and TensorBoard's files.

    Parameters
    ----------
    config : RunConfig
    folder : path
    resume : bool
        Go on from the folder's state; in a SLURM job that was requeued it does so by itself.
    report : callable
        Called after each validation.
    warn : callable
        Told of each volume that is left out, and why.
    stop : callable
        Asked after each step; True saves and ends the run. So do SIGINT, SIGTERM and SIGHUP.
    show_progress : bool
        Whether a line on the terminal shows where the run stands.

    Returns
    -------
    pathlib.Path
        The weights: those of the best validation, or the last ones where the run was watched
        on its own training volumes.

    Raises
    ------
    UsageError
        If the folder holds another run and ``resume`` is False, the settings do not fit those
        of a run that is resumed, or there is nothing to train on.
    FileError
        If a file cannot be read or written.
    ArssrError
        If the loss is no longer a number.
    Cancelled
        If somebody wanted the run to end; its state is saved.
    """
    folder = Path(folder)
    if not config.data.train:
        raise UsageError("There is nothing to train on; name volumes, or folders of them.")
    resume = resume or (_is_requeued() and (folder / LAST).exists())
    if not resume and (folder / LAST).exists():
        raise UsageError(f"{folder} holds a run already: resume it, or choose another folder.")
    device = choose_device(config.machine.device)
    before = read_checkpoint(folder / LAST) if resume else None
    config = _with_precision(config, before, device)
    where = _Where.of(config, device)
    start = _start(config) if before is None else before[RUN_KEY]["start"]
    split = _volumes(config, folder, start, warn if is_first_process() else lambda _: None)
    model = _network(config, resuming=before is not None)
    if before is not None:
        split = _ordered_as(split, before[RUN_KEY]["volumes"])
    record = run_record(config, split, start, where.devices * where.nodes)
    if before is not None:
        _check_same_run(record, before[RUN_KEY], folder)
    make_folder(folder)
    plan = Plan(
        config.training,
        steps_an_epoch(split.train, config.training, where.devices * where.nodes),
    )
    session = _Session(config, folder, plan, record, split)
    with _quiet_lightning(), float32_means_float32():
        module = TrainingModule(model, plan, record, session.last_good)
        if before is not None:
            module.on_load_checkpoint(before)
        if before is None or not (module.share >= 1 or module.exhausted):
            session.fit(module, where, StopRequest(stop), report, show_progress=show_progress)
    return session.finish()


@dataclass(frozen=True)
class _Where:
    """Devices and processes, as Lightning takes them."""

    accelerator: str
    devices: int
    chosen: list[int] | int
    nodes: int
    strategy: str

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> _Where:
        machine = config.machine
        devices, nodes = machine.devices or _launched(), machine.nodes or _launched_nodes()
        chosen: list[int] | int = devices
        if device.type == "cuda":
            if devices > torch.cuda.device_count():
                raise UsageError(
                    f"There are {torch.cuda.device_count()} GPUs here and not {devices}."
                )
            if ":" in machine.device:
                chosen = [device.index]
        elif device.type == "mps" and devices > 1:
            raise UsageError("There is one GPU here and not several; ask for one device.")
        strategy = machine.strategy
        if strategy == "auto" and devices * nodes > 1:
            strategy = "ddp"
        kind = {"cuda": "gpu"}.get(device.type, device.type)
        return cls(kind, devices, chosen, nodes, strategy)


def _launched() -> int:
    """Processes on this node that torchrun or SLURM started; else one."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if SLURMEnvironment.detect():
        nodes = _launched_nodes()
        tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "")
        if tasks.isdecimal():
            return int(tasks)
        return max(1, int(os.environ["SLURM_NTASKS"]) // nodes)
    return 1


def _launched_nodes() -> int:
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    if SLURMEnvironment.detect():
        return int(os.environ.get("SLURM_NNODES", "1"))
    return 1


def _is_requeued() -> bool:
    return bool(slurm_job()) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _with_precision(
    config: RunConfig, before: dict[str, Any] | None, device: torch.device
) -> RunConfig:
    """The settings with a precision written down: that of the run, or what suits the device."""
    precision: Precision = config.training.precision
    if precision == "auto" and before is not None:
        precision = before[RUN_KEY]["config"]["training"]["precision"]
    if precision == "auto":
        precision = "bfloat16" if bfloat16_is_faster(device) else "float32"
    if precision == "float16" and device.type != "cuda":
        raise UsageError(
            f"float16 is for NVIDIA GPUs and not for {device.type}: choose bfloat16, float32 or "
            "auto."
        )
    return replace(config, training=replace(config.training, precision=precision))


def _volumes(
    config: RunConfig, folder: Path, start: dict[str, str], warn: Callable[[str], None]
) -> Split:
    data, training = config.data, config.training
    workers = worker_count(data.workers)
    if data.isotropic and not data.validation:
        refuse_too_few(len(data.train), training.holdout)  # before the work on cubes
    cubes = {}
    if data.isotropic:
        cubes = {
            str(_as_cubes(Path(path), config, folder, start)): Path(path) for path in data.train
        }
    split = load_split(
        list(cubes) or data.train,
        data.validation,
        holdout=training.holdout,
        smallest=training.smallest_volume,
        normalization=training.normalization,
        unpack_to=folder / _UNPACKED if data.cache == "none" else None,
        share=bool(workers) and start_method() != "fork",
        channels=(None if cubes else data.channel, data.channel),
        strict=data.strict,
        warn=warn,
    )
    # Records name what the user gave.
    train = [
        replace(volume, name=cubes[volume.path].name, sha256=io.content_sha256(cubes[volume.path]))
        if volume.path in cubes
        else volume
        for volume in split.train
    ]
    return replace(split, train=tuple(train))


def _as_cubes(path: Path, config: RunConfig, folder: Path, start: dict[str, str]) -> Path:
    """A file upsampled to cubes by the weights that the run starts from; made once.

    Their name says what they are made of: a folder may hold those of an earlier attempt.
    """
    if io.is_folder(path):
        raise FileError(f"{path} is no file; isotropic takes files and not folders.")
    channel = config.data.channel
    of = f"{io.content_sha256(path)[:16]}-{start['sha256'][:16]}"
    named = "" if channel is None else f"-channel{channel}"
    cubes = folder / _CUBES / f"{io.base_name(path)}{named}-{of}.nii"
    if not cubes.exists():
        make_folder(cubes.parent)
        settings = Settings(weights=config.start, device=config.machine.device)
        target = Target(isotropic=True)
        upsample_file(path, cubes, target, frame=0, channel=channel, settings=settings)
    return cubes


def _start(config: RunConfig) -> dict[str, str]:
    """Which weights a run starts from: name and SHA-256; empty for random ones."""
    if not config.start:
        return {}
    path = Path(config.start) if config.training.baseline else weights.resolve(config.start)
    name = config.start if config.start in weights.REGISTRY else path.name
    if not path.is_file():
        raise FileError(f"{path} does not exist; check its name.")
    return {"name": name, "sha256": sha256_of(path)}


def _network(config: RunConfig, *, resuming: bool) -> Network:
    """A network to start from."""
    if not config.start or resuming:
        torch.manual_seed(config.training.seed)
        return build_network(config.training)
    ours = config.training.network
    model: Network
    if config.training.baseline:
        model, card = load_baseline(Path(config.start))
        theirs: Any = card.config
    else:
        loaded = weights.load(config.start)
        model, theirs = copy.deepcopy(loaded.model), loaded.card.config
    if theirs != ours and isinstance(model, ArSSR) and can_grow(theirs, config.training.model):
        torch.manual_seed(config.training.seed)
        return grow(model, config.training.model)
    if theirs != ours:
        raise UsageError(
            f"{config.start} holds another network than the settings ask for "
            f"({_differences(to_plain(ours), to_plain(theirs))}); set them as they are there."
        )
    return model


def is_first_process() -> bool:
    """Whether this process, of those that train together, writes and speaks for all."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def starting_from(config: RunConfig, name: str) -> RunConfig:
    """The settings with weights to start from: their network, and a tenth of the learning rate.

    Parameters
    ----------
    config : RunConfig
    name : str
        A registered name or a file, published or ours.

    Raises
    ------
    UsageError, FileError
        If there are no such weights.
    """
    training = config.training
    model = training.model if training.baseline else weights.load(name).card.config
    rate = GENTLE * training.learning_rate
    training = replace(training, model=model, learning_rate=rate)
    return replace(config, start=name, training=training)


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    names = [name for name in theirs if ours.get(name) != theirs[name]]
    # What may be larger is not in the way, unless nothing else is.
    names = [n for n in names if n not in GROWING or ours[n] < theirs[n]] or names
    return ", ".join(f"{name} is {theirs[name]!r} and not {ours.get(name)!r}" for name in names)


def _ordered_as(split: Split, volumes: dict[str, list[dict[str, str]]]) -> Split:
    """The split in the order of a record: renamed files sort otherwise, and pairs go by it."""
    orders = {
        part: {volume["content"]: number for number, volume in enumerate(volumes[part])}
        for part in ("train", "validation")
    }
    return Split(
        *(
            tuple(sorted(getattr(split, part), key=lambda v: order.get(v.content, len(order))))
            for part, order in orders.items()
        )
    )


def _check_same_run(record: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    ours = record["config"]["training"]
    # The state of an older version knows fewer settings.
    before = TrainingConfig.from_dict(theirs["config"]["training"]).to_dict()
    changed = [name for name in ours if before[name] != ours[name] and name not in _MAY_CHANGE]
    if record["config"]["start"] != theirs["config"]["start"]:
        changed.append("start")
    if changed:
        raise UsageError(
            f"{folder / LAST}: the run was started with another {', '.join(changed)}; "
            "resume it with the same settings or start in another folder."
        )
    processes, before_it = record["processes"], theirs.get("processes", record["processes"])
    if processes != before_it:
        raise UsageError(
            f"{folder / LAST}: the run was started in {before_it} processes and would go on in "
            f"{processes}, which draw other pairs; give it as many devices and nodes as before, or "
            "start in another folder."
        )
    for part, volumes in record["volumes"].items():
        now, then = (
            {volume["content"]: volume["name"] for volume in where}
            for where in (volumes, theirs["volumes"][part])
        )
        if now.keys() != then.keys():
            digest = next(iter(now.keys() ^ then.keys()))
            name = now.get(digest) or then[digest]
            raise UsageError(
                f"{folder / LAST}: the run was started with other {part} volumes ({name}, for "
                "one, is not in both); resume it with the same or start in another folder."
            )


class _Session:
    """What one session of a run does with its folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        plan: Plan,
        record: dict[str, Any],
        split: Split,
    ) -> None:
        self._config = config
        self._folder = folder
        self._plan = plan
        self._record = record
        self._split = split

    def last_good(self) -> str:
        path = self._folder / LAST
        return f"the last good state is {path}" if path.exists() else "nothing was saved yet"

    def fit(
        self,
        module: TrainingModule,
        where: _Where,
        request: StopRequest,
        report: Callable[[Progress], None],
        *,
        show_progress: bool,
    ) -> None:
        """Train to the end."""
        config, folder = self._config, self._folder
        resumed = (folder / LAST).exists()
        line = StepLine()
        logger = tensorboard(folder, module.step)
        callbacks: list[Any] = []
        told: Callable[[Progress], None] = lambda _: None  # noqa: E731
        if is_first_process():
            remove_partial(folder)
            write_config(folder / CONFIG, config)
            table = TableLog(folder, module.step)
            watched = self._split.validation or self._split.train
            curves = Curves(logger, Example.of(watched[0], config.training))
            callbacks = [curves, *([line] if show_progress else [])]

            def told(progress: Progress) -> None:
                table.add(progress)
                curves.add(progress, module.averaged)
                if show_progress:
                    line.clear()
                report(progress)

        keeper = Keeper(folder, request, lambda model, name: self._keep(module, model, name), told)
        data = PairData(module, self._split, worker_count(config.data.workers, where.devices))
        # A cluster's own handler would save in the middle of a step.
        plugins: list[Any] = [PlainCheckpointIO()]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))
        try:
            trainer = lightning.Trainer(
                accelerator=where.accelerator,
                devices=where.chosen,
                num_nodes=where.nodes,
                strategy=where.strategy,
                precision=_LIGHTNING[config.training.precision],  # type: ignore[arg-type]
                accumulate_grad_batches=config.training.accumulate,
                # Steps are counted by the module, over all sessions.
                max_epochs=-1,
                logger=logger,
                callbacks=[keeper, *callbacks],
                plugins=plugins,
                default_root_dir=folder,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
        except (MisconfigurationException, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UsageError(f"The run cannot be spread like this: {reason}.") from None
        try:
            with request:
                trainer.fit(module, data, ckpt_path=str(folder / LAST) if resumed else None)
        except SystemExit:  # Lightning's answer to Ctrl-C before the first step
            raise KeyboardInterrupt from None
        except Cancelled:
            if request.signal is not None and request.signal.name == "SIGUSR1":
                self._requeue(trainer)
            raise
        finally:
            if show_progress:
                line.clear()

    @staticmethod
    def _requeue(trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero and not requeue():
            raise ArssrError(
                f"The run is saved, but SLURM would not take job {slurm_job()} again; submit it "
                "once more and resume the run."
            )

    def _keep(self, module: TrainingModule, model: Network, name: str) -> None:
        """Write weights into the folder."""
        said = module.last_scores if name == "best" else {}
        card = card_of(self._record, {"step": module.step, "seconds": module.seconds}, said)
        save(self._folder / f"{name}.safetensors", model, card, torch.float32)

    def finish(self) -> Path:
        """Write the run's weights."""
        path = self._folder / f"{self._config.weights.name}.safetensors"
        if is_first_process():
            export_run(self._folder, path)
            for unpacked in (self._folder / _UNPACKED).glob("*.npy"):
                unpacked.unlink()
        return path


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes and advice; what matters is said here."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)(\.|$)")
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
            # Of 1³ convolutions in channels_last_3d, where both strides mean the same.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
