"""``napari-arssr fit``: only words here; what they mean is imported when it is needed."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_arssr import arguments
from napari_arssr.choices import FIT_METHODS, MOTIONS, PENALTIES, PRESETS, SIMILARITIES
from napari_arssr.errors import Cancelled, UsageError
from napari_arssr.terminal import INTERRUPTED, ProgressLine, warn

if TYPE_CHECKING:
    from napari_arssr.choices import FitMethod
    from napari_arssr.fitting.poses import FloatArray
    from napari_arssr.fitting.settings import Settings
    from napari_arssr.fitting.state import State
    from napari_arssr.volume import Grid, Volume

__all__ = ["add_fit", "as_options", "record_of"]

_EPILOG = """\
examples:
  napari-arssr fit axial.nii.gz coronal.nii.gz sagittal.nii.gz -o sharp.nii.gz --spacing 0.8
  napari-arssr fit run-*.nii.gz -o fetus.nii.gz --mask mask.nii.gz --uncertainty sd.nii.gz
  napari-arssr fit a.nii.gz b.nii.gz -o out.nii.gz --no-register --method srr
  napari-arssr fit a.nii.gz b.nii.gz c.nii.gz -o out.nii.gz --preset paper --minutes 60 \\
      --field fit.safetensors      and again with --resume after it was stopped

methods:
  default   SRR with poses and slice weights refined and a trained network as prior
  srr       regularised least squares of the registered stacks, with the slice profile
  irem      an implicit network: a hash grid on top of default, or with --preset paper IREM as
            published (Wu et al. 2021), which takes hours without a GPU
  bspline   mean of the stacks, interpolated by cubic B-splines
  linear    mean of the stacks, interpolated linearly
"""


def add_fit(commands: Any) -> None:
    """Register the command."""
    command = commands.add_parser(
        "fit",
        help="several thick stacks of one subject into one sharp volume",
        description="Register stacks of thick slices to the first and reconstruct one volume, "
        "which spans\nwhat the first stack spans. Three numbers are in the file's own order "
        "(i, j, k).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_fit)
    command.add_argument("stacks", nargs="+", type=Path, metavar="STACK", help="files")
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="the volume's file"
    )
    command.add_argument(
        "--spacing",
        type=arguments.spacing,
        metavar="MM",
        help="0.8, or 0.8,0.8,1: voxel size (default: cubes of the stacks' smallest side)",
    )
    command.add_argument(
        "--method",
        choices=FIT_METHODS,
        help="see below (default: default; with --preset paper irem)",
    )
    command.add_argument("--preset", choices=PRESETS, default="default")
    _add_places(command)
    _add_model(command)
    _add_kept(command)
    command.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    command.add_argument("--seed", type=int, help="(default: 0)")
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")
    command.add_argument("--json", action="store_true", help="print what was done as JSON")


def _add_places(command: argparse.ArgumentParser) -> None:
    places = command.add_argument_group("where stacks lie")
    places.add_argument(
        "--reference",
        type=int,
        default=1,
        metavar="N",
        help="the stack that the others are brought to, from 1 (default: 1)",
    )
    places.add_argument(
        "--no-register",
        dest="register",
        action="store_const",
        const=False,
        help="stacks lie where their files, or the transforms of --start, say",
    )
    places.add_argument(
        "--metric",
        choices=SIMILARITIES,
        help="what registration makes the most of (default: correlation)",
    )
    places.add_argument(
        "--motion",
        choices=MOTIONS,
        help="what moves during the fit of default and irem (default: slices)",
    )
    places.add_argument(
        "--start", type=Path, metavar="FOLDER", help="transforms that --transforms wrote"
    )
    places.add_argument(
        "--transforms", type=Path, metavar="FOLDER", help="write each stack's ITK transform"
    )
    places.add_argument("--mask", type=Path, help="a file: only what is in it counts")


def _add_model(command: argparse.ArgumentParser) -> None:
    model = command.add_argument_group("model")
    model.add_argument(
        "--slice-profile",
        dest="scanner",
        type=arguments.scanner,
        metavar="KIND[:WIDTH]",
        help="slice-profile (a box), gaussian, kspace or cubic, and its width in slice distances "
        "(default: slice-profile:1)",
    )
    model.add_argument("--prior", dest="penalty", choices=PENALTIES, help="of SRR (default: tv)")
    model.add_argument("--weight", type=float, help="of the prior (default: chosen from the data)")
    model.add_argument(
        "--no-network",
        dest="network_prior",
        action="store_const",
        const=False,
        help="default without the trained network",
    )
    model.add_argument(
        "--weights", help="of that network: a name or a file (default: the bundled ones)"
    )
    model.add_argument("--epochs", type=int, help="of irem: passes over all voxels")
    model.add_argument("--minutes", type=float, help="of irem: at most")


def _add_kept(command: argparse.ArgumentParser) -> None:
    kept = command.add_argument_group("what is kept")
    kept.add_argument(
        "--field",
        type=Path,
        metavar="FILE",
        help="keep the fit with poses and affines: name.safetensors",
    )
    kept.add_argument(
        "--resume",
        action="store_true",
        help="go on with the fit in --field; a finished one is sampled again, perhaps with another "
        "--spacing, and one of --preset paper trained on where --minutes or --epochs are given",
    )
    kept.add_argument(
        "--uncertainty", type=Path, metavar="FILE", help="write each voxel's standard deviation"
    )


# Options of how a volume is made, and what they are called in Settings. None has a default on the
# command line, so that one can tell which were given.
_OPTIONS = {
    "--spacing": "spacing",
    "--no-register": "register",
    "--metric": "metric",
    "--motion": "motion",
    "--slice-profile": "scanner",
    "--prior": "penalty",
    "--weight": "weight",
    "--no-network": "network_prior",
    "--weights": "weights",
    "--epochs": "epochs",
    "--minutes": "minutes",
    "--device": "device",
    "--seed": "seed",
}


@dataclass(frozen=True)
class _Inputs:
    """What a fit is made of, read and checked."""

    volumes: list[Volume]
    settings: Settings
    mask: Volume | None
    starts: list[FloatArray] | None
    resume: State | None

    @property
    def names(self) -> list[str]:
        return [volume.name for volume in self.volumes]


@dataclass(frozen=True)
class _Outputs:
    """What came of it."""

    state: State
    volume: Volume
    uncertainty: Volume | None
    seconds: float


def _fit(options: argparse.Namespace) -> int:
    settings = _settings(options)
    _check_targets(options)
    inputs = _inputs(options, settings)
    try:
        outputs = _fitted(options, inputs)
    except Cancelled:
        kept = options.field is not None and options.field.exists()
        more = f"; go on with --field {options.field} --resume" if kept else ""
        print(f"\nnapari-arssr: Stopped{more}.", file=sys.stderr)
        return INTERRUPTED
    _deliver(options, inputs, outputs)
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    from napari_arssr.fitting.settings import Settings

    method: FitMethod = options.method or ("irem" if options.preset == "paper" else "default")
    given = {
        name: getattr(options, name)
        for name in _OPTIONS.values()
        if getattr(options, name) is not None
    }
    settings = Settings(
        method=method, preset=options.preset, reference=options.reference - 1, **given
    )
    idle = [
        option
        for option, name in _OPTIONS.items()
        if name in given and name in settings.without_use
    ]
    if idle:
        # What is to blame for the first, and whatever else it is to blame for.
        beside = _beside(idle[0], settings)
        idle = [option for option in idle if _beside(option, settings) == beside]
        raise UsageError(
            f"{_listed(idle)} {'has' if len(idle) == 1 else 'have'} no use with {beside}; leave "
            f"{'it' if len(idle) == 1 else 'them'} out, or choose otherwise there."
        )
    return settings


def _beside(option: str, settings: Settings) -> str:
    """The words that leave an option without use."""
    if option == "--metric":
        return "--no-register"
    if option == "--weights" and settings.refines:
        return "--no-network"
    return "--preset paper" if settings.preset == "paper" else f"--method {settings.method}"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _check_targets(options: argparse.Namespace) -> None:
    """See that all that is to be written can be, before the work."""
    from napari_arssr import io
    from napari_arssr.fitting.alignment import check_motions_folder
    from napari_arssr.fitting.files import check_target

    inputs = [*options.stacks, *([options.mask] if options.mask else [])]
    for path in filter(None, [options.output, options.uncertainty]):
        io.check_output(path, inputs)
    if options.uncertainty and options.uncertainty.resolve() == options.output.resolve():
        raise UsageError(f"{options.output}: volume and uncertainty need a file each.")
    if options.transforms is not None:
        check_motions_folder(options.transforms)
    if options.field is None:
        if options.resume:
            raise UsageError("--resume goes on with the fit in --field; name its file.")
        return
    check_target(options.field)
    if options.field.exists() and not options.resume:
        raise UsageError(
            f"{options.field} is there already; add --resume to go on with it, name another file, "
            "or remove it."
        )


def _inputs(options: argparse.Namespace, settings: Settings) -> _Inputs:
    from napari_arssr import fitting, io
    from napari_arssr.fitting.alignment import read_motions

    resume = None
    if options.resume and options.field.exists():
        resume = fitting.load(options.field)
    elif options.resume and not options.quiet:
        warn(f"{options.field} is not there; a new fit begins.")
    volumes = fitting.read_stacks(options.stacks)
    names = [volume.name for volume in volumes]
    return _Inputs(
        volumes=volumes,
        settings=settings,
        mask=io.read(options.mask) if options.mask else None,
        starts=read_motions(options.start, names) if options.start else None,
        resume=resume,
    )


def _fitted(options: argparse.Namespace, inputs: _Inputs) -> _Outputs:
    """The work; raises Cancelled where it is asked to end."""
    from napari_arssr import fitting
    from napari_arssr.signals import StopRequest

    def keep(state: State) -> None:
        if options.field is not None:
            fitting.save(options.field, state)

    quiet = options.quiet or options.json
    with StopRequest(options.ended) as request, ProgressLine("fit", quiet=quiet) as line:
        request.listen()
        watch = fitting.Watch(progress=line, stop=lambda: request.asked, keep=keep)
        state = fitting.fit(
            inputs.volumes,
            inputs.settings,
            mask=inputs.mask,
            starts=inputs.starts,
            resume=inputs.resume,
            uncertainty=options.uncertainty is not None,
            watch=watch,
        )
        # A finished fit can be asked for another voxel size.
        spacing = inputs.settings.spacing
        grid = state.grid if spacing is None else state.grid.with_spacing(spacing)
        volume = state.field(inputs.settings.device).sample(grid, stop=watch.stop)
        uncertainty = None
        if options.uncertainty is not None:
            uncertainty = state.uncertainty_on(grid, stop=watch.stop)
        return _Outputs(state, volume, uncertainty, line.seconds)


def _deliver(options: argparse.Namespace, inputs: _Inputs, outputs: _Outputs) -> None:
    """Write what was asked for, and say what was done."""
    from napari_arssr.fitting.alignment import write_motions

    state, grid = outputs.state, outputs.volume.grid
    record = {"output": options.output.name, **record_of(state, grid, outputs.seconds)}
    _write(options.output, outputs.volume, record)
    if outputs.uncertainty is not None:
        _write(options.uncertainty, outputs.uncertainty, record)
    if options.transforms is not None:
        motions = [stack.whole_motion for stack in state.stacks]
        write_motions(options.transforms, inputs.names, motions)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        _say(state, grid, options, outputs.seconds)


def as_options(settings: Settings) -> list[str]:
    """The words of a command line that :func:`add_fit` makes these settings of.

    What the method has no use for is left out, for the command refuses it.
    """
    from napari_arssr.fitting.settings import Settings
    from napari_arssr.volume import as_triple

    usual = Settings()
    words = []
    if settings.preset != usual.preset:
        words += ["--preset", settings.preset]
    elif settings.method != usual.method:
        words += ["--method", settings.method]
    if settings.reference != usual.reference:
        words += ["--reference", str(settings.reference + 1)]
    for option, name in _OPTIONS.items():
        value = getattr(settings, name)
        if value == getattr(usual, name) or name in settings.without_use:
            continue
        words.append(option)
        if name == "spacing":
            sides = [repr(side).removesuffix(".0") for side in reversed(as_triple(value))]
            words.append(sides[0] if len(set(sides)) == 1 else ",".join(sides))
        elif name == "scanner":
            words.append(value.text)
        elif value is not False:
            words.append(str(value))
    return words


def record_of(state: State, grid: Grid, seconds: float) -> dict[str, Any]:
    """What was done, ready for JSON: names without folders, shapes in the file's order.

    Parameters
    ----------
    state : State
    grid : Grid
        Of the volume that was sampled.
    seconds : float
        That it took.
    """
    import napari_arssr

    settings = state.settings.to_dict() | {"weights": Path(state.settings.weights).name}
    return {
        "version": napari_arssr.__version__,
        "shape": list(grid.shape[::-1]),
        "spacing_mm": [round(side, 6) for side in grid.spacing[::-1]],
        "seconds": round(seconds, 1),
        "settings": settings,
        "numbers": state.numbers,
        "stacks": [
            {
                "name": stack.name,
                "correlation": round(stack.agreement.correlation, 4),
                "gain": round(stack.gain, 5),
                "motion": stack.whole_motion.round(6).tolist(),
                "suspect_slices": stack.suspects,
                "slice_weights": stack.weight.round(3).tolist(),
            }
            for stack in state.stacks
        ],
        "warnings": state.warnings,
    }


def _write(path: Path, volume: Volume, record: dict[str, Any]) -> None:
    from napari_arssr import io

    io.write(
        path,
        volume,
        description=f"napari-arssr {record['version']} fit {record['settings']['method']}",
        provenance=io.record_of(record, "fit"),
    )


def _say(state: State, grid: Grid, options: argparse.Namespace, seconds: float) -> None:
    if options.quiet:
        return
    for warning in state.warnings:
        warn(warning)
    for stack in state.stacks:
        if stack.suspects:
            numbers = ", ".join(map(str, stack.suspects))
            print(f"{stack.name}: hardly believed: slice {numbers} of {len(stack.weight)}")
    shape = " × ".join(map(str, grid.shape[::-1]))
    sides = " × ".join(f"{side:.4g}" for side in grid.spacing[::-1])
    print(f"{options.output}: {shape} voxels of {sides} mm, {seconds:.0f} s")
