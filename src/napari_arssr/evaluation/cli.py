"""``napari-arssr evaluate``: only words here; what they mean is imported when it is needed."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_arssr import arguments
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.terminal import ProgressLine

if TYPE_CHECKING:
    from napari_arssr.evaluation.rows import Row, Skipped
    from napari_arssr.evaluation.scoring import Tools

__all__ = ["add_evaluate"]

_METRICS = "psnr,ssim,lpips,psi,lpc-si,consistency,dice"

_EPILOG = """\
methods ([NAME=]SOURCE[+consistency]):
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
    command.add_argument(
        "--scales",
        nargs="+",
        type=arguments.scale,
        metavar="SCALE",
        default=[2.0, 2.5, 3.0, 3.5, 4.0],
        help="2.5, or 1,1,4: voxels of HR per voxel of LR (default: 2 2.5 3 3.5 4)",
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
    command.add_argument(
        "--metrics",
        default=_METRICS,
        metavar="NAME,…",
        help=f"some of {_METRICS} (default: all that can be had)",
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
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    command.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of networks; auto: bfloat16 where it is faster and as good",
    )
    command.add_argument(
        "--memory",
        type=arguments.memory,
        metavar="SIZE",
        help="most memory for networks: 2GB, 800MB",
    )
    command.add_argument("--quiet", action="store_true", help="say nothing but errors")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    rows = options.rows or options.out / "rows.csv"
    if rows.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"{rows}: rows are kept in a file that ends in .csv or .parquet.")
    skipped = _run(options, rows) if options.data else 0

    from napari_arssr.evaluation.report import write_report

    written = write_report(options.out, rows, planes=options.planes)
    if not options.quiet:
        pages = [path for path in written if path.suffix in (".html", ".md", ".tex")]
        print(f"Wrote {', '.join(map(str, [rows, *pages]))}.")
    return 1 if skipped else 0


def _run(options: argparse.Namespace, rows: Path) -> int:
    """Score, and say how many cases were skipped."""
    from napari_arssr.evaluation import running, segmentation
    from napari_arssr.evaluation.methods import Machine, parse
    from napari_arssr.evaluation.protocol import parse_datasets, parse_scanner
    from napari_arssr.evaluation.report import SETTINGS
    from napari_arssr.evaluation.rows import counted

    if options.crop is not None and options.crop < 0:
        raise UsageError(f"--crop takes a number of voxels, not {options.crop}.")
    if options.masks is not None and not options.masks.is_dir():
        raise FileError(f"{options.masks}: there is no such folder of masks.")
    if not all(0 <= noise <= 100 for noise in options.noise):
        raise UsageError("--noise is between 0 and 100 per cent.")
    names = [name for name in options.metrics.split(",") if name]
    tools = _tools(options, names)
    settings = running.Settings(
        data=parse_datasets(options.data),
        methods=[parse(text) for text in options.methods],
        rows=rows,
        scales=options.scales,
        scanner=parse_scanner(options.scanner),
        noise=options.noise,
        seed=options.seed,
        keep_thick=options.keep_thick,
        crop=options.crop,
        masks=options.masks,
        metrics=names,
        machine=Machine(options.device, options.precision, options.memory),
        pictures=options.out / "pictures" if options.pictured else None,
        pictured=options.pictured,
    )
    _make_folder(options.out, settings_text=running.settings_text(settings), name=SETTINGS)
    running.available_metrics(names, tools)  # an unknown one is said before anything else
    if "dice" in names and (reason := segmentation.why_not()) and not options.quiet:
        print(f"napari-arssr: {reason}", file=sys.stderr)

    def report(row: Row) -> None:
        if not options.quiet:
            print(_line(row), flush=True)

    def warn(one: Skipped) -> None:
        where = " ".join(
            filter(None, [one.volume or one.dataset, one.scale and f"x{one.scale}", one.method])
        )
        print(f"napari-arssr: skipped {where}: {one.reason}", file=sys.stderr, flush=True)

    try:
        outcome = running.evaluate(settings, tools, report=report, warn=warn, stop=options.ended)
    except Cancelled:
        raise KeyboardInterrupt from None
    if not options.quiet:
        print(
            f"{counted(outcome.made, 'row')} made, {outcome.kept} there before, "
            f"{counted(len(outcome.skipped), 'case')} skipped."
        )
    return len(outcome.skipped)


def _tools(options: argparse.Namespace, names: list[str]) -> Tools:
    """LPIPS and priors; LPIPS that cannot be had is said once, and the rest goes on."""
    from napari_arssr.evaluation.scoring import Tools

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
                print(f"napari-arssr: {error}", file=sys.stderr)
    priors = None
    if options.priors is not None:
        from napari_arssr.evaluation.segmentation import Priors

        priors = Priors.read(options.priors)
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


def _make_folder(folder: Path, settings_text: str, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(settings_text + "\n", encoding="utf-8")
    except OSError as error:
        raise FileError(f"{folder} cannot be written ({error.strerror}); try elsewhere.") from None
