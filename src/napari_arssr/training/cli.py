"""``napari-arssr train``, ``patches`` and ``export``: options to settings, and what is printed.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_arssr import arguments
from napari_arssr.choices import (
    BASELINES,
    CACHES,
    DECODERS,
    ENCODERS,
    NORMALIZATIONS,
    PRECISIONS,
    PRESETS,
    SCHEDULES,
    STRATEGIES,
)
from napari_arssr.errors import Cancelled, UsageError
from napari_arssr.terminal import INTERRUPTED, show, warn
from napari_arssr.timing import clock_words

if TYPE_CHECKING:
    from napari_arssr.training.config import RunConfig
    from napari_arssr.training.progress import Progress

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the three commands to a parser's subparsers."""
    _add_train(commands)
    _add_patches(commands)
    _add_export(commands)


# --------------------------------------------------------------------------------- train


_EPILOG = """examples:
  napari-arssr train brains/ --out run --minutes 600
  napari-arssr train brains/ --out run --resume
  napari-arssr train hr/ --val hr_val/ --out run --preset paper --encoder ResCNN
  napari-arssr train mine/ --out run --from default --minutes 60
  napari-arssr train flair.nii.gz --self --out run
  napari-arssr train hr/ --out run --preset paper --baseline SRCNN3D --scale 2
  torchrun --nproc-per-node 4 --no-python napari-arssr train brains/ --out run

Settings are taken from --preset, then from --config, then from the other options. The folder of
the run holds them as run.yaml. --lr, --bs, --ss, --epoch and the like are the published script's
names for the same."""


def _add_train(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="train a network on your own volumes",
        description="Train a network on high-resolution volumes. Low-resolution volumes are made "
        "from them.\nCtrl-C saves and ends; --resume goes on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_train)
    command.add_argument(
        "data", nargs="*", metavar="DATA", help="HR files or folders (BIDS data sets too)"
    )
    command.add_argument(
        "--out", type=Path, metavar="RUN", help="folder of the run: state, log, weights"
    )
    command.add_argument(
        "--preset",
        choices=PRESETS,
        help="default: what came of training the bundled weights; paper: as Wu et al. 2023",
    )
    command.add_argument("--config", type=Path, metavar="YAML", help="settings from a file")
    command.add_argument(
        "--print-config", action="store_true", help="print all settings as YAML and end"
    )
    command.add_argument("--resume", action="store_true", help="go on from the folder's state")
    command.add_argument(
        "--from", dest="start", metavar="WEIGHTS", help="start from weights: a name or a file"
    )
    command.add_argument(
        "--self",
        dest="self_training",
        action="store_true",
        help="learn from the sharp directions of one volume to sharpen its coarse one, from the "
        "bundled weights or those of --from (default: 10 minutes)",
    )
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")
    _add_data(command)
    _add_network(command)
    _add_steps(command)
    _add_keeping(command)
    _add_machine(command)


def _add_data(command: argparse.ArgumentParser) -> None:
    data = command.add_argument_group("volumes")
    _add(
        data,
        "--val",
        "--hr-data-val",
        dest="data.validation",
        nargs="+",
        help="validation volumes (default: the last subjects of DATA)",
    )
    _add(data, "--hr-data-train", dest="data.train", nargs="+", help="the same as DATA")
    _add(data, "--holdout", type=int, help="subjects of DATA kept back to watch the run")
    _add(data, "--normalize", dest="training.normalization", choices=NORMALIZATIONS)
    _add(data, "--cache", dest="data.cache", choices=CACHES, help=_CACHE_HELP)
    _add(data, "--workers", dest="data.workers", type=int, help="processes that make pairs")
    _add(
        data,
        "--strict",
        dest="data.strict",
        action="store_true",
        default=None,
        help="a volume that cannot be used is an error",
    )
    _add(data, "--channel", dest="data.channel", type=int, help=arguments.CHANNEL)
    _add(
        data,
        "--sharp-axes",
        type=arguments.axes,
        metavar="i,j",
        help="axes along which the files are sharp",
    )


def _add_network(command: argparse.ArgumentParser) -> None:
    network = command.add_argument_group("network")
    _add(
        network,
        "--encoder",
        "--encoder-name",
        dest="training.model.encoder",
        choices=ENCODERS,
    )
    _add(network, "--decoder", dest="training.model.decoder", choices=DECODERS)
    for name in ("decoder-depth", "decoder-width", "feature-dim"):
        _add(network, f"--{name}", dest=f"training.model.{name.replace('-', '_')}", type=int)
    network.add_argument(
        "--baseline",
        choices=BASELINES,
        help="train this rival of the paper instead, for one --scale",
    )
    network.add_argument(
        "--scale", type=arguments.scale, metavar="K", help="of the baseline: 2, or 1,1,4 (i, j, k)"
    )


def _add_steps(command: argparse.ArgumentParser) -> None:
    length = command.add_argument_group("length: the first that is reached")
    _add(length, "--steps", type=int)
    _add(length, "--epochs", "--epoch", type=int, help="passes over the set")
    _add(length, "--minutes", type=float)
    _add(length, "--patience", type=int, help="end after so many validations without a better one")

    steps = command.add_argument_group("steps")
    _add(steps, "--batch", "--bs", type=int, help="pairs a step, on each device")
    _add(steps, "--accumulate", type=int, help="batches a step")
    _add(steps, "--patch", type=int, help="LR voxels along each axis of a pair")
    _add(steps, "--largest-patch", type=int, help="each batch takes a size from --patch to this")
    _add(steps, "--samples", "--ss", type=int, help="HR voxels decoded per pair (paper)")
    _add(steps, "--learning-rate", "--lr", type=float)
    _add(steps, "--schedule", choices=SCHEDULES)
    _add(steps, "--warm-up", type=int, metavar="STEPS")
    _add(
        steps,
        "--decay-every",
        "--lr-decay-epoch",
        type=int,
        metavar="EPOCHS",
        help="after which --schedule step halves the rate",
    )
    _add(steps, "--average", type=float, help="decay of the moving average of weights; 0: none")
    _add(steps, "--clip", type=float, help="largest norm of a gradient; 0: any")
    _add(steps, "--squared", type=float, help="weight of the squared error beside the absolute")
    _add(steps, "--edges", type=float, help="weight of the error of differences of neighbours")
    _add(steps, "--seed", type=int)


def _add_keeping(command: argparse.ArgumentParser) -> None:
    keeping = command.add_argument_group("what is kept")
    _add(keeping, "--watch-every", type=int, metavar="STEPS", help="between validations; 0: epochs")
    _add(keeping, "--save-every", type=int, metavar="STEPS", help="between checkpoints")
    _add(
        keeping,
        "--snapshot-every",
        "--summary-epoch",
        type=int,
        metavar="EPOCHS",
        help="between weights that are kept besides the best and the last",
    )
    _add(keeping, "--name", dest="weights.name", help="of the weights (default: trained)")
    _add(keeping, "--licence", dest="weights.licence", help="of the weights, for their card")
    _add(keeping, "--training-data", dest="weights.training_data", help="a citation, for the card")


def _add_machine(command: argparse.ArgumentParser) -> None:
    machine = command.add_argument_group("machine")
    _add(machine, "--device", dest="machine.device", help="auto, cpu, cuda, cuda:1, mps")
    _add(machine, "--gpu", dest="machine.device", type=_gpu, metavar="N", help="the same as cuda:N")
    _add(machine, "--devices", dest="machine.devices", type=int, help="GPUs a node")
    _add(machine, "--nodes", dest="machine.nodes", type=int)
    _add(machine, "--strategy", dest="machine.strategy", choices=STRATEGIES)
    _add(
        machine,
        "--precision",
        choices=PRECISIONS,
        help="of the network; auto: bfloat16 where it is faster",
    )


_CACHE_HELP = "memory: hold the set; none: read patches from the files, for sets beyond memory"


def _add(group: Any, *names: str, dest: str = "", **options: Any) -> None:
    """An option that is a setting: its place in the settings is its ``dest``."""
    dest = dest or f"training.{names[0].strip('-').replace('-', '_')}"
    options.setdefault("default", None)
    if not {"action", "choices"} & options.keys():
        options.setdefault("metavar", names[0].strip("-").replace("-", "_").upper())
    group.add_argument(*names, dest=dest, **options)


def _train(options: argparse.Namespace) -> int:
    from napari_arssr.training.config import yaml_text
    from napari_arssr.training.run import is_first_process, train

    config = _settings(options)
    if options.print_config:
        print(yaml_text(config), end="")
        return 0
    if options.out is None:
        raise UsageError(
            "The run needs a folder for its state and its weights: give --out RUN; see "
            "'napari-arssr train --help'."
        )

    def report(progress: Progress) -> None:
        if not options.quiet:
            show(
                f"step {progress.step}  {progress.share:4.0%}  loss {progress.loss:.5f}  "
                f"{progress.gain:+.2f} dB over cubic  {progress.psnr:.2f} dB"
                f"{'  best' if progress.best else ''}  {clock_words(progress.seconds_left)} left\n",
                sys.stdout,
            )

    try:
        path = train(
            config,
            options.out,
            resume=options.resume,
            report=report,
            warn=warn,
            show_progress=not options.quiet,
        )
    except Cancelled as stopped:
        if not is_first_process():
            return 0  # another status would make the first process end before it has saved
        warn(str(stopped))
        return INTERRUPTED
    if not options.quiet and is_first_process():
        show(f"{path}\n", sys.stdout)
    return 0


def _settings(options: argparse.Namespace) -> RunConfig:
    """Preset, then file, then options."""
    from napari_arssr.training.config import preset, read_config
    from napari_arssr.training.plain import from_plain
    from napari_arssr.training.run import CONFIG, starting_from

    config = preset(options.preset or "default")
    file = options.config
    resumed = options.resume and file is None and options.out is not None
    if resumed:
        file = options.out / CONFIG
        config = _settings_of_run(options.out)
    elif file is not None:
        config = read_config(
            file,
            options.start or "",
            baseline=bool(options.baseline),
            gently=not options.self_training,  # which sees to that itself
        )
    if file is not None and options.preset not in (None, config.preset):
        raise UsageError(
            f"{file} is of the preset {config.preset!r} and not {options.preset!r}; leave "
            "--preset out, or write preset into the file."
        )
    given: dict[str, Any] = {}
    for name, value in vars(options).items():
        if value is None or "." not in name:
            continue
        *groups, last = name.split(".")
        place = given
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    if options.data:
        if "train" in given.get("data", {}):
            raise UsageError("DATA and --hr-data-train are the same; give one of them.")
        given.setdefault("data", {})["train"] = options.data
    _let_minutes_count(given, options)
    if options.baseline or options.scale:
        config = _of_baseline(config, options, settled=file is not None)
    _refuse_without_effect(config, given)
    if resumed:
        _check_beginning(config, options)
    elif options.self_training:
        return _self_training(config, given, options)
    if options.start and file is None:
        config = starting_from(config, options.start)
    settings: RunConfig = from_plain(config, given)
    return settings


def _settings_of_run(folder: Path) -> RunConfig:
    """The settings of a run that goes on, from its file of them or else from its state."""
    from napari_arssr.training.checkpoints import LAST, RUN_KEY, read_checkpoint
    from napari_arssr.training.config import RunConfig, read_config
    from napari_arssr.training.plain import from_plain
    from napari_arssr.training.run import CONFIG

    if (folder / CONFIG).is_file():
        return read_config(folder / CONFIG)
    if not (folder / LAST).is_file():
        raise UsageError(f"{folder} holds no run that could be resumed; see that it is its folder.")
    settings: RunConfig = from_plain(RunConfig(), read_checkpoint(folder / LAST)[RUN_KEY]["config"])
    return settings


def _check_beginning(config: RunConfig, options: argparse.Namespace) -> None:
    """A run that goes on began as it began; the same words may be said again."""
    if options.start and options.start != config.start:
        began = f"with --from {config.start}" if config.start else "from random weights"
        raise UsageError(
            f"{options.out}: this run began {began}, not with {options.start}; leave --from out, "
            "or start in another folder."
        )
    if options.self_training and not config.data.isotropic:
        raise UsageError(
            f"{options.out}: this run is none of --self; leave --self out, or start in another "
            "folder."
        )


def _refuse_without_effect(config: RunConfig, given: dict[str, Any]) -> None:
    """Refuse options that the network or the protocol has no use for."""
    training = given.get("training", {})
    if config.training.baseline and "model" in training:
        raise UsageError(
            f"{config.training.baseline} has neither encoder nor decoder; leave "
            f"{', '.join('--' + name.replace('_', '-') for name in training['model'])} out."
        )
    idle = {"paper": ("sharp_axes", "edges"), "scanner": ("samples",)}[config.training.protocol]
    useless = [f"--{name.replace('_', '-')}" for name in idle if name in training]
    if useless:
        raise UsageError(
            f"{', '.join(useless)} means nothing to the preset {config.preset!r}; leave it out."
        )


def _of_baseline(config: RunConfig, options: argparse.Namespace, *, settled: bool) -> RunConfig:
    """For a baseline; ``settled``: a file says how, and only what is trained is replaced."""
    from napari_arssr.training.config import of_baseline

    if options.self_training:
        raise UsageError("--self trains an ArSSR network; leave --baseline and --scale out.")
    baseline = options.baseline or config.training.baseline
    if not baseline:
        raise UsageError("--scale is for --baseline; an ArSSR network learns a range of scales.")
    made = of_baseline(config, baseline, options.scale or config.training.scale)
    if not settled:
        return made
    training = replace(config.training, baseline=baseline, scale=made.training.scale)
    return replace(config, training=training)


def _let_minutes_count(given: dict[str, Any], options: argparse.Namespace) -> None:
    """A length that is given takes the place of the preset's or the run's, not of a file's."""
    lengths = ("steps", "epochs", "minutes")
    asked = [name for name in lengths if getattr(options, f"training.{name}") is not None]
    if asked and not options.config:
        training = given["training"]
        training.update({name: 0 for name in lengths if name not in asked})


def _self_training(
    config: RunConfig, given: dict[str, Any], options: argparse.Namespace
) -> RunConfig:
    from napari_arssr.io import is_folder
    from napari_arssr.training.config import preset
    from napari_arssr.training.plain import from_plain
    from napari_arssr.training.selfsupervision import MINUTES, self_training

    data = given.get("data", {}).get("train", list(config.data.train))
    if len(data) != 1 or is_folder(data[0]):
        raise UsageError("--self learns from one volume; give one file and not several.")
    if "channel" in given.get("data", {}):
        config = from_plain(config, {"data": {"channel": given["data"]["channel"]}})
    if options.preset == "paper":
        raise UsageError("--self has a protocol of its own; leave --preset out.")
    lengths = ("steps", "epochs", "minutes")
    usual = preset(config.preset).training
    if all(getattr(config.training, name) == getattr(usual, name) for name in lengths):
        config = from_plain(config, {"training": {"steps": 0, "epochs": 0, "minutes": MINUTES}})
    start = options.start or config.start or "default"
    return from_plain(self_training(config, data[0], start=start), given)


def _gpu(text: str) -> str:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a GPU")
    return f"cuda:{text}"


# ------------------------------------------------------------------------------- patches


def _add_patches(commands: Any) -> None:
    command = commands.add_parser(
        "patches",
        help="cut a data set into patches to train on",
        description="Cut a data set and its split into OUT/train and OUT/val, with a manifest: "
        "the same volumes and seed give the same patches.",
    )
    command.set_defaults(run=_patches)
    command.add_argument("data", nargs="+", metavar="DATA", help="HR files or folders")
    command.add_argument("--out", type=Path, required=True, metavar="OUT")
    command.add_argument("--val", nargs="+", default=(), metavar="VAL", help="validation volumes")
    command.add_argument(
        "--validation-share",
        type=float,
        default=0.125,
        help="of the subjects, where --val is not given (default: 0.125)",
    )
    command.add_argument("--size", type=int, default=40, help="voxels a side (default: 40)")
    command.add_argument("--count", type=int, default=6, help="patches a volume (default: 6)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--normalize",
        choices=NORMALIZATIONS,
        default="minmax",
        help="how intensities are brought to [0, 1] (default: minmax)",
    )
    command.add_argument(
        "--manifest", type=Path, help="cut what somebody's patches.json says, from the same volumes"
    )
    command.add_argument("--channel", type=int, help=arguments.CHANNEL)
    command.add_argument("--strict", action="store_true", help="a volume left out is an error")
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")


def _patches(options: argparse.Namespace) -> int:
    from napari_arssr.training.patches import PatchSettings, cut_patches

    manifest = cut_patches(
        options.data,
        options.out,
        validation=options.val,
        settings=PatchSettings(
            options.size,
            options.count,
            options.seed,
            options.validation_share,
            options.normalize,
            options.channel,
        ),
        manifest=options.manifest,
        strict=options.strict,
        warn=warn,
    )
    if not options.quiet:
        for part, folder in (("train", "train"), ("validation", "val")):
            volumes = [volume for volume in manifest["volumes"] if volume["split"] == part]
            count = sum(len(volume["patches"]) for volume in volumes)
            print(f"{options.out / folder}: {count} patches of {len(volumes)} volumes")
    return 0


# -------------------------------------------------------------------------------- export


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write a run's weights with their model card",
        description="Write the weights of a run, finished or not, as one file that --weights takes "
        "anywhere, and its model card beside it as Markdown.",
    )
    command.set_defaults(run=_export)
    command.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    command.add_argument("output", type=Path, metavar="OUT", help="a file: name.safetensors")
    command.add_argument(
        "--which",
        choices=["best", "last"],
        help="of the best validation, or of the last checkpoint (default: best, where the run was "
        "watched on other volumes than it was trained on)",
    )
    command.add_argument("--half", action="store_true", help="as float16: half the size")
    command.add_argument("--name", default="", help="of the weights (default: as in the run)")
    command.add_argument("--licence", default="", help="of the weights")
    command.add_argument("--training-data", default="", help="a citation")
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")


def _export(options: argparse.Namespace) -> int:
    from napari_arssr.training.export import export_run

    path = export_run(
        options.folder,
        options.output,
        which=options.which,
        half=options.half,
        name=options.name,
        licence=options.licence,
        training_data=options.training_data,
    )
    if not options.quiet:
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
