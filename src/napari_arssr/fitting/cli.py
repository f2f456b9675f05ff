"""``napari-arssr fit``: only words here; what they mean is imported when it is needed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_arssr import arguments
from napari_arssr.errors import Cancelled, UsageError
from napari_arssr.terminal import INTERRUPTED, ProgressLine

if TYPE_CHECKING:
    from napari_arssr.fitting.settings import Method, Settings
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
        choices=["default", "srr", "irem", "bspline", "linear"],
        help="see below (default: default; with --preset paper irem)",
    )
    command.add_argument("--preset", choices=["default", "paper"], default="default")
    _add_places(command)
    _add_model(command)
    _add_kept(command)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    command.add_argument("--seed", type=int, default=0)
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
        action="store_true",
        help="stacks lie where their files, or the transforms of --start, say",
    )
    places.add_argument(
        "--metric", choices=["correlation", "mutual-information"], default="correlation"
    )
    places.add_argument(
        "--motion",
        choices=["none", "stacks", "slices"],
        default="slices",
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
        type=arguments.scanner,
        default="slice-profile",
        metavar="KIND[:WIDTH]",
        help="slice-profile (a box), gaussian, kspace or cubic, and its width in slice distances "
        "(default: slice-profile:1)",
    )
    model.add_argument("--prior", choices=["tv", "tikhonov"], default="tv", help="of SRR")
    model.add_argument("--weight", type=float, help="of the prior (default: chosen from the data)")
    model.add_argument(
        "--no-network", action="store_true", help="default without the trained network"
    )
    model.add_argument("--weights", default="default", help="of that network: a name or a file")
    model.add_argument("--epochs", type=int, help="of irem: passes over all voxels")
    model.add_argument("--minutes", type=float, default=0.0, help="of irem: at most")


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


def _fit(options: argparse.Namespace) -> int:
    from napari_arssr import fitting, io
    from napari_arssr.fitting.alignment import read_motions, write_motions
    from napari_arssr.fitting.files import check_target
    from napari_arssr.training.signals import StopRequest

    settings = _settings(options)
    inputs = [*options.stacks, *([options.mask] if options.mask else [])]
    for path in filter(None, [options.output, options.uncertainty]):
        io.check_output(path, inputs)
    if options.uncertainty and options.uncertainty.resolve() == options.output.resolve():
        raise UsageError(f"{options.output}: volume and uncertainty need a file each.")
    if options.field is not None:
        check_target(options.field)
    elif options.resume:
        raise UsageError("--resume goes on with the fit in --field; name its file.")
    resume = fitting.load(options.field) if options.resume and options.field.exists() else None
    volumes = fitting.read_stacks(options.stacks)
    names = [volume.name for volume in volumes]
    starts = read_motions(options.start, names) if options.start else None
    mask = io.read(options.mask) if options.mask else None

    def keep(state: State) -> None:
        if options.field is not None:
            fitting.save(options.field, state)

    quiet = options.quiet or options.json
    with StopRequest(options.ended) as request, ProgressLine("fit", quiet=quiet) as line:
        request.listen()
        watch = fitting.Watch(line, lambda: request.asked, keep)
        try:
            state = fitting.fit(
                volumes,
                settings,
                mask=mask,
                starts=starts,
                resume=resume,
                uncertainty=options.uncertainty is not None,
                watch=watch,
            )
            # A finished fit can be asked for another voxel size.
            spacing = settings.spacing
            grid = state.grid if spacing is None else state.grid.with_spacing(spacing)
            volume = state.field(options.device).sample(grid, stop=watch.stop)
        except Cancelled:
            kept = options.field is not None and options.field.exists()
            more = f"; go on with --field {options.field} --resume" if kept else ""
            print(f"\nnapari-arssr: Stopped{more}.", file=sys.stderr)
            return INTERRUPTED
        seconds = line.seconds
    record = {"output": options.output.name, **record_of(state, grid, seconds)}
    _write(options.output, volume, record)
    if state.uncertainty_volume is not None and options.uncertainty is not None:
        _write(options.uncertainty, state.uncertainty_volume, record)
    if options.transforms is not None:
        write_motions(options.transforms, names, [one.whole_motion for one in state.stacks])
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        _say(state, grid, options, seconds)
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    from napari_arssr.fitting.settings import Settings

    method: Method = options.method or ("irem" if options.preset == "paper" else "default")
    return Settings(
        method=method,
        preset=options.preset,
        spacing=options.spacing,
        reference=options.reference - 1,
        register=not options.no_register,
        metric=options.metric,
        motion=options.motion,
        scanner=options.slice_profile,
        penalty=options.prior,
        weight=options.weight,
        network_prior=not options.no_network,
        weights=options.weights,
        epochs=options.epochs,
        minutes=options.minutes,
        device=options.device,
        seed=options.seed,
    )


def as_options(settings: Settings) -> list[str]:
    """The words of a command line that :func:`add_fit` makes these settings of."""
    from napari_arssr.fitting.settings import Settings
    from napari_arssr.volume import as_triple

    usual = Settings()
    words = [] if settings.register else ["--no-register"]
    if settings.spacing is not None:
        sides = [repr(side).removesuffix(".0") for side in reversed(as_triple(settings.spacing))]
        words += ["--spacing", sides[0] if len(set(sides)) == 1 else ",".join(sides)]
    if settings.preset != usual.preset:
        words += ["--preset", settings.preset]
    elif settings.method != usual.method:
        words += ["--method", settings.method]
    if settings.reference != usual.reference:
        words += ["--reference", str(settings.reference + 1)]
    if settings.scanner != usual.scanner:
        words += ["--slice-profile", settings.scanner.text]
    if settings.network_prior != usual.network_prior:
        words.append("--no-network")
    for option, name in (
        ("--metric", "metric"),
        ("--motion", "motion"),
        ("--prior", "penalty"),
        ("--weight", "weight"),
        ("--weights", "weights"),
        ("--epochs", "epochs"),
        ("--minutes", "minutes"),
        ("--device", "device"),
        ("--seed", "seed"),
    ):
        value = getattr(settings, name)
        if value != getattr(usual, name):
            words += [option, str(value)]
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
        provenance=json.dumps({"napari-arssr fit": record}, sort_keys=True),
    )


def _say(state: State, grid: Grid, options: argparse.Namespace, seconds: float) -> None:
    for warning in state.warnings:
        print(f"napari-arssr: {warning}", file=sys.stderr)
    if options.quiet:
        return
    for stack in state.stacks:
        if stack.suspects:
            numbers = ", ".join(map(str, stack.suspects))
            print(f"{stack.name}: hardly believed: slice {numbers} of {len(stack.weight)}")
    shape = " × ".join(map(str, grid.shape[::-1]))
    sides = " × ".join(f"{side:.4g}" for side in grid.spacing[::-1])
    print(f"{options.output}: {shape} voxels of {sides} mm, {seconds:.0f} s")
