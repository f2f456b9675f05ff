"""``napari-arssr evaluate``: only words here; what they mean is imported when it is needed."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_arssr import arguments
from napari_arssr.choices import METRICS, PRECISIONS, SCALES
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.terminal import ProgressLine, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_arssr.evaluation.rows import Row, Skipped
    from napari_arssr.evaluation.running import Settings
    from napari_arssr.evaluation.scoring import Tools

__all__ = ["add_evaluate"]

_OF_A_RUN = (
    "methods",
    "scales",
    "scanner",
    "noise",
    "seed",
    "keep_thick",
    "crop",
    "masks",
    "metrics",
    "lpips_weights",
    "priors",
)

_EPILOG = """\
methods ([NAME=]SOURCE[+orientations:N][+consistency]):
  cubic                     cubic B-spline interpolation
  back-projection[:STEPS]   the classical rival, told the scanner model
  default, arssr-rdn, FILE  weights of an ArSSR network, any scale
  FOLDER or FILE,FILE       weights of a baseline, one file a scale
  FOLDER                    results made elsewhere, as FOLDER/x2/sub-01.nii.gz

examples:
  napari-arssr evaluate brains/val --out scores --methods cubic back-projection default
  napari-arssr evaluate val=brains/val lesion --out scores --scales 2 4 1,1,4 --crop 8 \\
      --methods cubic SRCNN3D=runs/srcnn mine=run/best.safetensors
  napari-arssr evaluate --out scores        makes tables and report of what is there again

A run that was broken off goes on where it was. Exit status 1: something was skipped, and is
named in skipped.csv.
"""


def add_evaluate(commands: Any) -> None:
    """Register the command."""
    command = commands.add_parser(
        "evaluate",
        help="score methods as the papers do: tables, curves, a report",
        description="Measure high-resolution volumes by a scanner model, bring them back by every "
        "method, and\ncompare. Three numbers are in the file's own order (i, j, k).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_places(command)
    _add_protocol(command)
    _add_metrics(command)
    _add_report(command)
    _add_machine(command)
    command.set_defaults(run=partial(_evaluate, command))


def _add_places(command: argparse.ArgumentParser) -> None:
    """What is compared, and where rows and tables go."""
    command.add_argument(
        "data", nargs="*", metavar="[NAME=]DATA", help="folders of HR volumes, or files"
    )
    command.add_argument(
        "--out", type=Path, required=True, help="folder for rows, tables, figures and report"
    )
    command.add_argument(
        "--rows", type=Path, help="file of rows, .csv or .parquet (default: OUT/rows.csv)"
    )
    command.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=["cubic", "back-projection", "default"],
        help="what is compared, see below (default: cubic back-projection default)",
    )


def _add_protocol(command: argparse.ArgumentParser) -> None:
    """How volumes are measured and cut."""
    command.add_argument(
        "--scales",
        nargs="+",
        type=arguments.scale,
        metavar="SCALE",
        default=list(SCALES),
        help="2.5, or 1,1,4: voxels of HR per voxel of LR (default: "
        f"{' '.join(f'{scale:g}' for scale in SCALES)})",
    )
    command.add_argument(
        "--scanner",
        default="gaussian",
        metavar="KIND[:WIDTH]",
        help="gaussian, slice-profile, kspace or cubic, and its width in LR voxels (default: "
        "gaussian:1); cubic-corner: the published, misaligned protocol",
    )
    command.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=[0.0],
        help="Gaussian noise, per cent of the range (default: 0)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    command.add_argument(
        "--keep-thick",
        action="store_true",
        help="leave axes alone whose voxels are more than twice as long as the finest",
    )
    command.add_argument(
        "--crop", type=int, metavar="N", help="cut to the mask and N voxels around it"
    )
    command.add_argument(
        "--masks",
        type=Path,
        help="folder with a mask for each volume, under its name (default: what is not background)",
    )
    command.add_argument("--channel", type=int, help=arguments.CHANNEL)


def _add_metrics(command: argparse.ArgumentParser) -> None:
    """What is scored, and what that needs."""
    command.add_argument(
        "--metrics",
        metavar="NAME,…",
        help=f"some of {','.join(METRICS)} (default: all that can be had)",
    )
    command.add_argument(
        "--lpips-weights",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="AlexNet's weights and LPIPS' heads, or a folder with both (default: fetched)",
    )
    command.add_argument(
        "--priors",
        type=Path,
        metavar="FOLDER",
        help="six prior maps for Dice, and perhaps template.nii.gz to register",
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    """What the report shows."""
    command.add_argument(
        "--pictured", type=int, default=1, help="volumes of each set in the report (default: 1)"
    )
    command.add_argument(
        "--planes",
        nargs="+",
        choices=["axial", "coronal", "sagittal"],
        default=["axial"],
        help="slices in the report (default: axial)",
    )


def _add_machine(command: argparse.ArgumentParser) -> None:
    """Where networks run."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    command.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="of networks; auto: bfloat16 where it is faster and as good",
    )
    command.add_argument(
        "--memory",
        type=arguments.memory,
        metavar="SIZE",
        help="most memory for networks: 2GB, 800MB",
    )
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")


def _evaluate(command: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if not options.data:
        _check_is_no_run(options, command)
    rows = options.rows or options.out / "rows.csv"
    if rows.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"{rows}: rows are kept in a file that ends in .csv or .parquet.")
    skipped = _run(options, rows) if options.data else 0

    from napari_arssr.evaluation.report import has_results, write_report
    from napari_arssr.evaluation.running import SKIPPED

    if skipped and not has_results(rows):
        warn(
            "nothing could be scored, so that there are no tables; "
            f"{options.out / SKIPPED} says why."
        )
        return 1
    written = write_report(options.out, rows, planes=options.planes)
    if not options.quiet:
        pages = [path for path in written if path.suffix in (".html", ".md", ".tex")]
        made = [rows] if options.data else []
        print(f"Wrote {', '.join(map(str, [*made, *pages]))}.")
    return 1 if skipped else 0


def _check_is_no_run(options: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """Without data tables are made again: what only a run heeds was meant for one."""
    for name in _OF_A_RUN:
        if getattr(options, name) != command.get_default(name):
            word = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{word} is of no use without data to score; name folders or files before it, for "
                f"all words after {word} are its own."
            )


def _run(options: argparse.Namespace, rows: Path) -> int:
    """Score, and say how many cases were skipped."""
    from napari_arssr.evaluation import running, segmentation
    from napari_arssr.evaluation.report import SETTINGS
    from napari_arssr.evaluation.rows import counted
    from napari_arssr.files import write_whole

    # What is refused is refused before anything is fetched or written.
    settings = _settings(options, rows)
    tools = _tools(options, settings.metrics)
    if "dice" in settings.metrics and (reason := segmentation.why_not()):
        warn(reason)
    if options.metrics is None:  # all that can be had
        settings = replace(settings, metrics=running.available_metrics(settings.metrics, tools))
    text = running.settings_text(settings)
    write_whole(options.out / SETTINGS, f"{text}\n".encode())

    def report(row: Row) -> None:
        if not options.quiet:
            print(_line(row), flush=True)

    def left_out(one: Skipped) -> None:
        where = " ".join(
            filter(None, [one.volume or one.dataset, one.scale and f"x{one.scale}", one.method])
        )
        warn(f"skipped {where}: {one.reason}")

    try:
        outcome = running.evaluate(
            settings, tools, report=report, warn=left_out, stop=options.ended
        )
    except Cancelled:
        raise KeyboardInterrupt from None
    if not options.quiet:
        print(
            f"{counted(outcome.made, 'row')} made, {outcome.kept} there before, "
            f"{counted(len(outcome.skipped), 'case')} skipped."
        )
    return len(outcome.skipped)


def _settings(options: argparse.Namespace, rows: Path) -> Settings:
    """What is asked for, as far as it can be meant."""
    from napari_arssr.devices import choose_device
    from napari_arssr.evaluation.methods import Machine, named_apart, parse
    from napari_arssr.evaluation.protocol import parse_datasets, parse_scanner
    from napari_arssr.evaluation.rows import read_rows
    from napari_arssr.evaluation.running import SKIPPED, Settings, known_metrics

    if options.crop is not None and options.crop < 0:
        raise UsageError(f"--crop takes a number of voxels, not {options.crop}.")
    if options.masks is not None and not options.masks.is_dir():
        raise FileError(f"{options.masks}: there is no such folder of masks.")
    if not all(0 <= noise <= 100 for noise in options.noise):
        raise UsageError("--noise is between 0 and 100 per cent.")
    if options.seed < 0:
        raise UsageError(f"A seed is a whole number of at least 0, not {options.seed}.")
    words = METRICS if options.metrics is None else options.metrics.split(",")
    metrics = known_metrics([name for name in words if name])
    scanner = parse_scanner(options.scanner)
    choose_device(options.device)
    data = parse_datasets(options.data)
    read_rows(rows)
    methods = [parse(text) for text in options.methods]
    named_apart(methods)
    return Settings(
        data=data,
        methods=methods,
        rows=rows,
        scales=options.scales,
        scanner=scanner,
        noise=options.noise,
        seed=options.seed,
        keep_thick=options.keep_thick,
        crop=options.crop,
        masks=options.masks,
        channel=options.channel,
        metrics=metrics,
        machine=Machine(options.device, options.precision, options.memory),
        pictures=options.out / "pictures" if options.pictured else None,
        pictured=options.pictured,
        skipped=options.out / SKIPPED,
    )


def _tools(options: argparse.Namespace, names: Sequence[str]) -> Tools:
    """LPIPS and priors; LPIPS that cannot be had is said once, and the rest goes on."""
    from napari_arssr.evaluation.scoring import Tools

    priors = None
    if options.priors is not None:
        from napari_arssr.evaluation.segmentation import Priors

        priors = Priors.read(options.priors)
    lpips = None
    if "lpips" in names:
        from napari_arssr.devices import choose_device
        from napari_arssr.evaluation.lpips import fetch, load

        device = choose_device(options.device)
        if options.lpips_weights:
            lpips = load(options.lpips_weights, device)
        else:
            try:
                with ProgressLine("LPIPS weights", quiet=options.quiet) as line:
                    lpips = load(fetch(progress=line.bytes_came), device)
            except FileError as error:
                warn(str(error))
    return Tools(lpips, priors)


def _line(row: Row) -> str:
    words = [row.dataset, row.volume, f"x{row.scale}" if row.scale else "", row.method]
    if row.noise_percent:
        words.append(f"{row.noise_percent:g} % noise")
    shown = (
        ("psnr", "{:.2f} dB"),
        ("ssim", "SSIM {:.4f}"),
        ("lpips", "LPIPS {:.4f}"),
        ("psi", "PSI {:.3f}"),
        ("lpc_si", "LPC-SI {:.3f}"),
        ("dice", "Dice {:.3f}"),
        ("seconds", "{:.1f} s"),
    )
    for name, text in shown:
        value = getattr(row, name)
        if not math.isnan(value):
            words.append(text.format(value))
    return "  ".join(filter(None, words))
