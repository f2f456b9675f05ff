"""Score weights against cubic interpolation and back-projection; makes the model card's tables.

    python benchmarks/scores.py run DATA --rows docs/scores.csv
    python benchmarks/scores.py table --rows docs/scores.csv
    python benchmarks/scores.py against docs/scores.csv --rows weights/large.csv
    python benchmarks/scores.py run DATA --rows half.csv --methods network --precision bfloat16
    python benchmarks/scores.py enter WEIGHTS --rows docs/scores.csv --bfloat16 half.csv

DATA is a folder with brains_t1w/val, lesion, template and thick_slices in it (their sources
are in docs/weights.md). Every HR volume is cut to its brain, measured by the scanner model
(Gaussian, full width at half maximum one LR voxel), brought back to its own grid and compared
with itself inside the brain mask. "consistent" is the network with --consistency gaussian. A
run that stopped goes on where it was. "against" sets weights beside others, where both have rows.
"enter" writes the means into the header of the weights that were scored, and the new digest of
that file into the rows; with rows measured in bfloat16 also whether that moves every result by
less than 0.02 dB, so that "auto" may take it.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from napari_arssr import io, models, upsampling, weights
from napari_arssr.consistency import Consistency
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import ArssrError
from napari_arssr.evaluation import psnr, ssim
from napari_arssr.evaluation.back_projection import back_project
from napari_arssr.evaluation.methods import Measurement
from napari_arssr.evaluation.protocol import Prepared, factors_of, make_case, prepare
from napari_arssr.field import CubicField
from napari_arssr.files import sha256_of
from napari_arssr.volume import Triple, Volume

SETS = ("brains_t1w/val", "lesion", "template", "thick_slices")
SCALES = ("1.5", "2", "2.5", "3", "3.5", "4", "1x1x4")
METHODS = ("cubic", "back-projection", "network", "consistent")
NETWORK = METHODS[2:]
NOISE_SCALES = ("1.5", "2", "3", "4")
SSIM_SCALES = ("2", "3", "4")  # noise-free, on the first set: SSIM takes longer than all else
SAFE_MOVE = 0.02  # dB: what a faster precision may cost
MARGIN = 8  # voxels of background kept around the brain


@dataclass(frozen=True)
class Row:
    """One result: PSNR in dB and SSIM (NaN where not computed) inside the brain mask."""

    dataset: str
    volume: str
    scale: str
    noise_percent: float
    method: str
    weights_sha256: str
    psnr: float
    ssim: float
    seconds: float

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a row one of its kind."""
        return tuple(str(v) for v in astuple(self)[:6])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("--rows", type=Path, required=True)
    run.add_argument("--weights", default="default")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    run.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    run.add_argument("--noise", nargs="+", type=float, default=[0.0, 2.0])
    run.add_argument("--precision", default="auto")
    table = commands.add_parser("table")
    table.add_argument("--rows", type=Path, required=True)
    comparing = commands.add_parser("against")
    comparing.add_argument("others", type=Path)
    comparing.add_argument("--rows", type=Path, required=True)
    entering = commands.add_parser("enter")
    entering.add_argument("weights", type=Path)
    entering.add_argument("--rows", type=Path, required=True)
    entering.add_argument("--bfloat16", type=Path, metavar="ROWS")
    options = parser.parse_args()
    if options.command == "enter":
        return enter(options.weights, options.rows, options.bfloat16)
    if options.command == "table":
        print(tables(read_rows(options.rows)))
        return 0
    if options.command == "against":
        print(differences(read_rows(options.rows), read_rows(options.others)))
        return 0
    missing = [name for name in options.sets if not (options.data / name).is_dir()]
    if missing:
        print(f"{options.data} has no {', '.join(missing)}: nothing measured.", file=sys.stderr)
        return 1
    run_all(options)
    return 0


def run_all(options: argparse.Namespace) -> None:
    """Every set, volume, noise level, scale and method that has no row yet."""
    rows = read_rows(options.rows) if options.rows.exists() else []
    done = {row.key for row in rows}
    loaded = weights.load(options.weights) if set(NETWORK) & set(options.methods) else None
    digest = _digest(options.weights) if loaded else ""
    for dataset in options.sets:
        for path in io.volumes_in(options.data / dataset):
            wanted = [
                Row(
                    dataset,
                    path.name,
                    scale,
                    noise,
                    method,
                    digest * (method in NETWORK),
                    0,
                    0,
                    0,
                )
                for noise in options.noise
                for scale in (SCALES if noise == 0 else NOISE_SCALES)
                for method in options.methods
            ]
            wanted = [row for row in wanted if row.key not in done]
            if not wanted:
                continue
            try:
                prepared = prepare(dataset, path, crop=MARGIN)
            except ArssrError as error:
                print(error, file=sys.stderr)
                continue
            for (noise, scale), cases in groupby(
                wanted, lambda row: (row.noise_percent, row.scale)
            ):
                try:
                    for row in score(list(cases), prepared, loaded, options.precision):
                        append_row(options.rows, row)
                        print(
                            *astuple(row)[1:5],
                            f"{row.psnr:.2f} dB  {row.seconds:.1f} s",
                            flush=True,
                        )
                except ArssrError as error:
                    print(f"{path.name} {scale} {noise:g} %: {error}", file=sys.stderr)


def _measurement(row: Row) -> tuple[float, str]:
    return row.noise_percent, row.scale


def factors(scale: str, prepared: Prepared) -> Triple:
    """Scale per axis (z, y, x); of thick slices only the sharp axes are measured again."""
    if scale != "1x1x4":
        return factors_of(prepared, float(scale), keep_thick=True)
    # File order: the third axis, or the second where that is thick.
    thick = factors_of(prepared, 2.0, keep_thick=True)[0] == 1
    return (1.0, 4.0, 1.0) if thick else (4.0, 1.0, 1.0)


def score(rows: list[Row], prepared: Prepared, loaded: object, precision: str) -> Iterator[Row]:
    """Measure once, bring back by each row's method, compare."""
    high, mask, scanner = prepared.volume, prepared.mask, ScannerModel("gaussian")
    scale = factors(rows[0].scale, prepared)
    low = make_case(prepared, Measurement(scale, scanner, rows[0].noise_percent)).low
    restored: Volume | None = None
    for row in rows:
        started = time.perf_counter()
        if row.method == "cubic":
            result = CubicField(low).sample(high.grid)
        elif row.method == "back-projection":
            result = back_project(low, high.grid, scanner)
        else:
            if restored is None:
                restored = upsampling.upsample(
                    low, shape=high.grid.shape, weights=loaded, precision=precision
                )
            result = restored
            if row.method == "consistent":
                step = Consistency(low, high.grid, high.grid.box, scanner)
                data = np.concatenate(list(step.correct([restored.data])))
                result = replace(restored, data=data)
        seconds = time.perf_counter() - started
        similar = row.dataset == SETS[0] and row.scale in SSIM_SCALES and not row.noise_percent
        similar &= row.method != "consistent"
        yield replace(
            row,
            psnr=round(psnr(high.data, result.data, mask=mask), 4),
            ssim=round(ssim(high.data, result.data, mask=mask), 5) if similar else float("nan"),
            seconds=round(seconds, 2),
        )


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file that :func:`append_row` wrote."""
    kinds = {item.name: item.type for item in fields(Row)}
    with path.open(newline="") as opened:
        return [
            Row(**{k: float(v) if kinds[k] == "float" else v for k, v in line.items()})
            for line in csv.DictReader(opened)
        ]


def append_row(path: Path, row: Row) -> None:
    """One more line, with a heading if it is the first."""
    fresh = not path.exists()
    with path.open("a", newline="") as opened:
        writer = csv.writer(opened)
        if fresh:
            writer.writerow([item.name for item in fields(Row)])
        writer.writerow(astuple(row))


def tables(rows: list[Row]) -> str:
    """Markdown: a table a set and noise level, means over volumes, and the worst gain."""
    groups: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.dataset, row.noise_percent].append(row)
    return "\n\n".join(
        "\n".join(_table(name, noise, group)) for (name, noise), group in sorted(groups.items())
    )


def differences(rows: list[Row], others: list[Row]) -> str:
    """Markdown: by how much the network of ``rows`` is better than that of ``others``, in dB."""
    known = {row.key[:4]: row.psnr for row in others if row.method == "network"}
    found: dict[tuple[float, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.method == "network" and row.key[:4] in known:
            key = row.noise_percent, row.dataset, row.scale
            found[key].append(row.psnr - known[row.key[:4]])
    lines = [f"| set | {' | '.join(scale.replace('x', ' × ') for scale in SCALES)} |"]
    lines.append("|---" * (1 + len(SCALES)) + "|")
    for noise in sorted({key[0] for key in found}):
        for name in SETS:
            cells = [found.get((noise, name, scale), []) for scale in SCALES]
            if any(cells):
                texts = [f"{np.mean(c):+.2f} ({min(c):+.2f})" if c else "–" for c in cells]
                lines.append(f"| {_title(name, noise)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def enter(path: Path, rows_path: Path, half_path: Path | None) -> int:
    """Write what was measured into a weights file's header, and its new digest into the rows."""
    rows = read_rows(rows_path)
    scored = {row.weights_sha256 for row in rows if row.method in NETWORK}
    if scored != {_digest(str(path))}:
        print(f"{rows_path} does not hold the scores of {path}: {scored}.", file=sys.stderr)
        return 1
    model, card = models.load(path)
    card = replace(card, scores=means(rows))
    if half_path is not None:
        moved = largest_move(rows, read_rows(half_path))
        print(f"bfloat16 moves a result by up to {moved:.4f} dB")
        card = replace(card, bfloat16=moved < SAFE_MOVE)
    models.save(path, model, card, torch.float16)
    digest = _digest(str(path))
    rows_path.unlink()
    for row in rows:
        entered = digest if row.method in NETWORK else ""
        append_row(rows_path, replace(row, weights_sha256=entered))
    return 0


def largest_move(rows: list[Row], half: list[Row]) -> float:
    """How far results of the same weights in another precision are from these, in dB."""
    known = {row.key: row.psnr for row in rows}
    return max(abs(row.psnr - known[row.key]) for row in half)


def means(rows: list[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Data set → scale → mean PSNR in the brain, and how much of that is over cubic; in dB."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SETS:
        for noise in sorted({row.noise_percent for row in rows if row.dataset == name}):
            title = _title(name, noise)
            for scale in SCALES:
                psnrs = {
                    method: np.mean(chosen)
                    for method in ("cubic", "network")
                    if (
                        chosen := [
                            row.psnr
                            for row in rows
                            if (row.dataset, row.noise_percent, row.scale, row.method)
                            == (name, noise, scale, method)
                        ]
                    )
                }
                if len(psnrs) == 2:
                    gain = psnrs["network"] - psnrs["cubic"]
                    values = {"PSNR": psnrs["network"], "gain over cubic": gain}
                    found.setdefault(title, {})[scale] = {
                        what: round(float(value), 2) for what, value in values.items()
                    }
    return found


def _title(name: str, noise: float) -> str:
    return f"{name}, {noise:g} % noise" if noise else name


def _table(name: str, noise: float, rows: list[Row]) -> Iterator[str]:
    by = {(row.volume, row.scale, row.method): row for row in rows}
    volumes = sorted({row.volume for row in rows})
    title = f"**{name}**, {len(volumes)} volume{'s' * (len(volumes) > 1)}"
    yield title + (f", {noise:g} % noise" if noise else ", noise-free")
    yield ""
    yield (
        "| scale | cubic, dB | back-projection, dB | napari-arssr, dB | gain over cubic "
        "| worst volume | over back-projection | worst volume | with consistency "
        "| worst over back-projection | SSIM cubic | SSIM napari-arssr |"
    )
    yield "|---" * 12 + "|"
    for scale in SCALES:
        rows_of = {m: [by[v, scale, m] for v in volumes if (v, scale, m) in by] for m in METHODS}
        if min(len(rows_of[m]) for m in ("cubic", "network")) < len(volumes):
            continue
        value = {
            m: np.array([row.psnr for row in found])
            for m, found in rows_of.items()
            if len(found) == len(volumes)
        }
        similar = [np.mean([row.ssim for row in rows_of[m]]) for m in ("cubic", "network")]
        cells = [
            scale.replace("x", " × "),
            _mean(value, "cubic"),
            _mean(value, "back-projection"),
            _mean(value, "network"),
            *_gain(value, "network", "cubic"),
            *_gain(value, "network", "back-projection"),
            _mean(value, "consistent"),
            _gain(value, "consistent", "back-projection")[1],
            *("–" if np.isnan(value) else f"{value:.4f}" for value in similar),
        ]
        yield f"| {' | '.join(cells)} |"


def _mean(value: dict[str, np.ndarray], method: str) -> str:
    return f"{value[method].mean():.2f}" if method in value else "–"


def _gain(value: dict[str, np.ndarray], method: str, over: str) -> tuple[str, str]:
    """Mean and smallest gain of a method over another."""
    if method not in value or over not in value:
        return "–", "–"
    gain = value[method] - value[over]
    return f"{gain.mean():+.2f}", f"{gain.min():+.2f}"


def _digest(name: str) -> str:
    return sha256_of(weights.resolve(name))[:16]


if __name__ == "__main__":
    sys.exit(main())
