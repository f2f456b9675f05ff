"""The command line: a thin face over the same functions a script would call.

Three numbers are in the file's own order (i, j, k) here, as other NIfTI tools print them, and
are reversed on the way in. Exit status: 0 done, 1 failed work, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from napari_arssr import arguments
from napari_arssr.choices import NORMALIZATIONS, ORIENTATIONS, PRECISIONS, SCANNER_KINDS
from napari_arssr.errors import ArssrError, Cancelled, OutOfMemory, UsageError
from napari_arssr.evaluation.cli import add_evaluate
from napari_arssr.files import make_folder
from napari_arssr.fitting.cli import add_fit
from napari_arssr.terminal import FAILED, INTERRUPTED, WRONG_USE, ProgressLine, warn
from napari_arssr.training.cli import add_commands

if TYPE_CHECKING:
    from napari_arssr.upsampling import Settings

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` are the process's own by default."""
    words = _with_app(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):  # "→" and "×" are not in every encoding
        sys.stdout.reconfigure(errors="replace")
    with _ended_by_signals() as ended:
        try:
            return _run(words, ended)
        except BrokenPipeError:
            # The reader of our output has gone; Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except (Exception, KeyboardInterrupt) as error:
            # Extension modules make errors of their own of an interruption while they load.
            if ended() or isinstance(error, KeyboardInterrupt):
                return _say("Interrupted; nothing unfinished was left behind.", INTERRUPTED)
            if isinstance(error, MemoryError):
                return _say(f"There is not enough memory; {_MORE_MEMORY}", FAILED)
            if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
                return _say(f"{error.filename or 'A file'}: {error.strerror}.", FAILED)
            if not isinstance(error, ArssrError):
                raise
            return _say(error, WRONG_USE if isinstance(error, UsageError) else FAILED)


def _run(arguments: Sequence[str], ended: Callable[[], bool]) -> int:
    try:
        parser = _parser()
        parser.set_defaults(ended=ended)
        options = parser.parse_args(_with_negative_values(arguments))
        return int(options.run(options))
    finally:
        sys.stdout.flush()  # while what goes wrong in it is still caught


# What a program cannot help; each where a file is touched, of which not all are foreseen.
_OF_THE_SYSTEM = {
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "ENAMETOOLONG", "ENOSPC", "EPERM", "EROFS")
    if hasattr(errno, name)
}
_MORE_MEMORY = "close other programs or take a smaller volume."


@contextmanager
def _ended_by_signals() -> Iterator[Callable[[], bool]]:
    """A job that a cluster ends cleans up like one that a person ends, and once is enough.

    ``timeout`` and others send a signal twice, and people press Ctrl-C twice: the second must
    not break off the cleaning up. After some seconds it counts again, for the first may have
    been lost where Python passes exceptions over. What it yields tells whether one came.
    """
    previous = -math.inf

    def came() -> bool:
        return previous > -math.inf

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal previous
        now = time.monotonic()
        if now - previous > _DEAF_SECONDS:
            previous = now
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        # One that is ignored, as in a background job of a shell, stays so.
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)
    try:
        yield came
    finally:
        # After a signal the process is about to end, and should not be disturbed in that.
        if not came():
            for number, handler in before.items():
                signal.signal(number, handler)


_DEAF_SECONDS = 3.0
# Ctrl-C, a cluster's end, and where there are such things a terminal that was closed.
_ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def _with_app(words: Sequence[str]) -> list[str]:
    """The app's name put before what only the app can mean: nothing, ``--demo``, a file.

    No command has a dot in its name, so that a file which is not there is told as such.
    """
    app = not words or words[0] == "--demo" or ("." in words[0] and words[0][0] != "-")
    return ["app", *words] if app else list(words)


def _with_negative_values(words: Sequence[str]) -> list[str]:
    """``--box -1:5,…`` as ``--box=-1:5,…``: argparse takes what begins with ``-`` for an option."""
    joined: list[str] = []
    for word in words:
        negative = re.match(r"-\.?\d|-inf|-nan", word)
        if negative and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _say(error: object, status: int) -> int:
    warn(str(error))
    return status


# ----------------------------------------------------------------------------------- app


def _app(options: argparse.Namespace) -> int:
    from napari_arssr import _app

    return _app.run(options.files, demo=options.demo)


# ------------------------------------------------------------------------------ upsample


def _upsample(options: argparse.Namespace) -> int:
    from napari_arssr.devices import is_out_of_memory
    from napari_arssr.io import is_folder
    from napari_arssr.upsampling import Settings, Target, upsample_file

    target = Target(
        options.scale,
        options.spacing,
        options.shape,
        options.isotropic,
    )
    settings = Settings(
        options.weights,
        options.device,
        options.precision,
        options.memory,
        options.normalize,
        options.consistency,
        options.orientations,
    )
    jobs = _jobs(options.inputs, options.output)
    if len(options.inputs) > 1 or is_folder(options.inputs[0]):
        _check_once_for_all(settings)
        make_folder(options.output)
    done, failed, wrong_use = [], [], True
    for source, output in jobs:
        try:
            with ProgressLine(source.name, quiet=options.quiet or options.json) as line:
                result = upsample_file(
                    source,
                    output,
                    target,
                    box=options.box,
                    frame=options.frame,
                    channel=options.channel,
                    dtype=options.dtype,
                    settings=settings,
                    keep=options.skip_existing,
                    progress=line,
                    stop=options.ended,
                )
        except Cancelled:
            raise KeyboardInterrupt from None
        except Exception as raised:
            if not (isinstance(raised, ArssrError) or is_out_of_memory(raised)):
                raise
            lack = OutOfMemory(f"{source}: there is not enough memory; {_MORE_MEMORY}")
            error = raised if isinstance(raised, ArssrError) else lack
            if len(jobs) == 1 and not options.json:
                raise error from None
            failed.append({"input": str(source), "error": str(error)})
            if not options.json:
                _say(error, FAILED)
            wrong_use = wrong_use and isinstance(error, UsageError)
            continue
        done.append(result)
        if not (options.quiet or options.json):
            print(_summary(result, line.seconds))
    if options.json:
        print(json.dumps({"done": done, "failed": failed}, indent=2))
    elif failed:
        names = ", ".join(job["input"] for job in failed)
        _say(f"{len(failed)} of {len(jobs)} files failed: {names}.", FAILED)
    if failed:
        return WRONG_USE if wrong_use and not done else FAILED
    return 0


def _check_once_for_all(settings: Settings) -> None:
    """Refuse before the first file what would be refused for every one."""
    from napari_arssr import weights
    from napari_arssr.devices import choose_device, choose_precision

    loaded = weights.load(settings.weights)
    device = choose_device(settings.device)
    choose_precision(settings.precision, device, bfloat16_is_safe=loaded.bfloat16)


def _jobs(inputs: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """What becomes what: one file a file, several or a folder a folder."""
    from napari_arssr.io import is_folder, result_name, volumes_in

    if len(inputs) == 1 and not is_folder(inputs[0]):
        return [(inputs[0], output / result_name(inputs[0]) if is_folder(output) else output)]
    files: list[Path] = []
    for path in inputs:
        found = volumes_in(path) if is_folder(path) else [path]
        if not found:
            raise UsageError(f"{path}: there is no volume in this folder.")
        files += found
    if output.exists() and not is_folder(output):
        raise UsageError(f"{output}: the results of several files need a folder, not a file.")
    names: dict[str, Path] = {}
    for file in files:
        name = result_name(file)
        if name in names:
            raise UsageError(
                f"{file} and {names[name]} would both become {output / name}; upsample them into "
                "two folders."
            )
        names[name] = file
    return [(file, output / name) for name, file in names.items()]


def _summary(result: dict[str, Any], seconds: float) -> str:
    from napari_arssr.upsampling import NEAREST_LABEL

    def sizes(values: Sequence[float]) -> str:
        return " × ".join(str(v) if isinstance(v, int) else f"{v:.4g}" for v in values)

    if not result["made"]:
        return f"{result['output']}: there already, made in the same way"
    box = result["settings"]["box_zyx"]
    part = "" if box is None else f"{sizes([b - a for a, b in zip(*box, strict=True)][::-1])} of "
    frames = "" if result["frames"] == 1 else f" in {result['frames']} frames"
    how = f", each the {NEAREST_LABEL}" if result["settings"]["weights"] == NEAREST_LABEL else ""
    return (
        f"{result['output']}: {part}{sizes(result['input_shape'])} → "
        f"{sizes(result['output_shape'])} voxels{frames}, {sizes(result['input_spacing_mm'])} → "
        f"{sizes(result['output_spacing_mm'])} mm{how}, {seconds:.0f} s{_loss(result)}"
    )


def _loss(result: dict[str, Any]) -> str:
    """What is not in a file that was written, after what is; empty where nothing is lost."""
    if result["keeps_orientation"]:
        return ""
    return "; this format does not tell left from right, .nii.gz does"


# ------------------------------------------------------------------------------- weights


def _weights_list(options: argparse.Namespace) -> int:
    from napari_arssr import weights

    states = {name: weights.status(name) for name in weights.REGISTRY}
    if options.json:
        rows = [{"name": n, "state": states[n], **r.to_dict()} for n, r in weights.REGISTRY.items()]
        print(json.dumps(rows, indent=2))
        return 0
    for name, record in weights.REGISTRY.items():
        size = f"{(record.approximate_size or 0) / 1e6:.1f} MB"
        print(f"{name:16} {states[name]:15} {size:>8}  {record.summary}")
    print(f"\nDownloads are kept in {weights.cache_folder()}.")
    return 0


def _weights_info(options: argparse.Namespace) -> int:
    from napari_arssr import weights

    record = weights.describe(options.name)
    facts = {"state": weights.status(options.name), **record.to_dict()}
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    if record.size is None:  # nobody states it, but it is known to within some kilobytes
        facts["size"] = f"about {record.approximate_size}"
    for name, value in facts.items():
        if value in (None, "", {}):
            continue
        if isinstance(value, dict):
            print(f"{name}:")
            print("  " + json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  "))
        else:
            print(f"{name}: {value}")
    return 0


def _weights_download(options: argparse.Namespace) -> int:
    from napari_arssr import weights

    for name in options.names:
        with ProgressLine(name, quiet=options.quiet) as line:
            path = weights.fetch(name, progress=line.bytes_came)
        if not options.quiet:
            print(path)
    return 0


def _weights_verify(options: argparse.Namespace) -> int:
    from napari_arssr import weights

    states = {name: weights.verify(name) for name in options.names or weights.REGISTRY}
    if options.json:
        print(json.dumps(states, indent=2))
    else:
        for name, state in states.items():
            print(f"{name:16} {state}")
    return FAILED if "broken" in states.values() else 0


# ------------------------------------------------------------------------------ simulate


def _simulate(options: argparse.Namespace) -> int:
    from napari_arssr.degradation import ScannerModel
    from napari_arssr.simulation import simulate_file
    from napari_arssr.upsampling import NEAREST_LABEL

    model = ScannerModel(options.kind, options.width)
    result = simulate_file(
        options.input,
        options.output,
        options.scale,
        model,
        noise=options.noise,
        seed=options.seed,
        channel=options.channel,
    )
    if options.json:
        print(json.dumps(result, indent=2))
    elif not options.quiet:
        how = f", each the {NEAREST_LABEL}" if result["settings"]["kind"] == NEAREST_LABEL else ""
        sizes = " × ".join(map(str, result["output_shape"]))
        print(f"{result['output']}: {sizes} voxels{how}{_loss(result)}")
    return 0


# -------------------------------------------------------------------------------- parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {message}; see '{self.prog} --help'.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="napari-arssr",
        description="Raise the resolution of 3D volumes by any factor.",
        epilog="Without a command the app opens, with the files that are named. Three numbers are "
        "in the file's own order (i, j, k).",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_app(commands)
    _add_upsample(commands)
    _add_weights(commands)
    _add_simulate(commands)
    add_commands(commands)
    add_evaluate(commands)
    add_fit(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked: it takes longer than the whole help."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, *_arguments: object, **_options: object) -> None:
        import napari_arssr

        print(f"napari-arssr {napari_arssr.__version__}")
        raise SystemExit(0)


def _add_app(commands: Any) -> None:
    command = commands.add_parser(
        "app",
        help="open the app: napari with the upsampling widget",
        description="Open napari with the upsampling widget docked. 'napari-arssr FILE …' does the "
        "same.",
    )
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help="scans to open")
    command.add_argument("--demo", action="store_true", help="open a real scan and upsample it")
    command.set_defaults(run=_app)


def _add_upsample(commands: Any) -> None:
    command = commands.add_parser(
        "upsample",
        help="raise the resolution of volumes",
        description="Raise the resolution of NIfTI volumes, TIFF stacks or OME-Zarr images. The\n"
        "result spans exactly what the input spans. Three numbers are in the file's own order\n"
        "(i, j, k). Of a label map each voxel takes the nearest label. A file that is there\n"
        "already is replaced only if this program made it.",
        epilog="examples:\n"
        "  napari-arssr upsample t1.nii.gz out.nii.gz --scale 2.5\n"
        "  napari-arssr upsample flair.nii.gz out.nii.gz --isotropic\n"
        "  napari-arssr upsample folder results --spacing 0.5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="files or folders")
    command.add_argument(
        "output", type=Path, metavar="OUT", help="a file; for several inputs a folder"
    )
    size = command.add_mutually_exclusive_group(required=True)
    size.add_argument("--scale", type=arguments.scale, help="2.5, or 1,1,4: voxels per input voxel")
    size.add_argument(
        "--spacing", type=arguments.spacing, help="0.5, or 0.5,0.5,1: voxel size in mm"
    )
    size.add_argument("--isotropic", action="store_true", help="cubes of the smallest side")
    size.add_argument("--shape", type=arguments.shape, help="256,256,180: voxels")
    command.add_argument(
        "--box",
        type=arguments.box,
        help="only a part: i0:i1,j0:j1,k0:k1 in voxels of the input (from 0, ends excluded), or "
        "mm:x0:x1,y0:y1,z0:z1 in RAS millimetres",
    )
    command.add_argument("--frame", type=int, help="of a 4D file only this frame, from 0")
    command.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave results that are there and would be made again in the same way: a run over "
        "many files that was broken off goes on",
    )
    _add_channel(command)
    command.add_argument(
        "--weights", default="default", help="a name (see 'weights list') or a file"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    command.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="of the network; auto: bfloat16 where it is faster and as good",
    )
    command.add_argument("--memory", type=arguments.memory, help="most memory to take: 2GB, 800MB")
    command.add_argument(
        "--normalize",
        choices=NORMALIZATIONS,
        help="how intensities are brought to [0, 1] (default: as the weights were trained)",
    )
    command.add_argument(
        "--consistency",
        type=arguments.scanner,
        metavar="KIND[:WIDTH]",
        help="correct the result by one step of back-projection, so that a scanner measuring it "
        "would see more nearly the input: gaussian, slice-profile, kspace or cubic, and its width "
        "in input voxels (default: 1); sharper on clean scans, noisier on noisy ones",
    )
    command.add_argument(
        "--orientations",
        type=int,
        default=1,
        choices=ORIENTATIONS,
        help="the mean of that many results, each with the axes in another order or direction: as "
        "many times the time, and nearer to the truth (default: 1)",
    )
    command.add_argument(
        "--dtype", help="number type of the result: float32 (default), int16, …, or same"
    )
    _add_quiet_and_json(command)
    command.set_defaults(run=_upsample)


def _add_weights(commands: Any) -> None:
    command = commands.add_parser("weights", help="which weights there are, and fetch them")
    actions = command.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all sets, and whether they are here")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_weights_list)
    info = actions.add_parser("info", help="all that is known of a set")
    info.add_argument("name")
    info.add_argument("--json", action="store_true")
    info.set_defaults(run=_weights_info)
    download = actions.add_parser("download", help="fetch sets and verify them")
    download.add_argument("names", nargs="+", metavar="NAME")
    download.add_argument("--quiet", action="store_true")
    download.set_defaults(run=_weights_download)
    verify = actions.add_parser("verify", help="compare the files that are here with their hashes")
    verify.add_argument("names", nargs="*", metavar="NAME")
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(run=_weights_verify)


def _add_simulate(commands: Any) -> None:
    command = commands.add_parser(
        "simulate",
        help="what a coarser scanner would see",
        description="Make a low-resolution volume from a high-resolution one. Of a label map each "
        "voxel takes the nearest label. A file that is there already is replaced only if this "
        "program made it.",
    )
    command.add_argument("input", type=Path, metavar="HR", help="a file")
    command.add_argument("output", type=Path, metavar="LR", help="a file")
    command.add_argument(
        "--scale",
        type=arguments.scale,
        required=True,
        help="2, or 1,1,4: voxels of HR per voxel of LR",
    )
    command.add_argument(
        "--kind",
        default="gaussian",
        choices=SCANNER_KINDS,
        help="point-spread function (default: gaussian)",
    )
    command.add_argument(
        "--width", type=float, default=1.0, help="its width in LR voxels (default: 1)"
    )
    command.add_argument(
        "--noise", type=float, default=0.0, help="Gaussian noise, per cent of the range"
    )
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    _add_channel(command)
    _add_quiet_and_json(command)
    command.set_defaults(run=_simulate)


def _add_channel(command: argparse.ArgumentParser) -> None:
    command.add_argument("--channel", type=int, help=arguments.CHANNEL)


def _add_quiet_and_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")
    command.add_argument("--json", action="store_true", help="print what was done as JSON")
