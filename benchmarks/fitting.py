"""Fit volumes to simulated stacks and score every method; makes the tables of docs/fit.md.

    python benchmarks/fitting.py run DATA --rows rows.csv [--side 80] [--volumes 1] [--cases …]
    python benchmarks/fitting.py table --rows rows.csv
    python benchmarks/fitting.py fetal DATA --out FOLDER

DATA is a folder with brains_t1w/val and fetal_stacks in it (sources in docs/weights.md and
docs/fit.md). A cube of --side voxels from the middle of each brain (0: the whole brain) is cut
into three orthogonal stacks with a box profile. "aligned": they lie where they are. "between":
the second and third moved as a whole by up to 5 mm and 5°. "within": every fifth slice of all
three moved by as much besides. "spoilt": two slices of each stack lost four fifths of their signal
or hold noise. PSNR and SSIM are inside the brain, of the range of the HR volume; seconds are of
the whole fit, registration included; the pose error is the root mean square displacement left in
the brain. "srr-best" is SRR with the weight of its prior that is best by the truth, which nobody
knows outside a simulation. A run that stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from napari_arssr import fitting, io
from napari_arssr.demo import picture
from napari_arssr.evaluation import psnr, ssim
from napari_arssr.field import CubicField
from napari_arssr.fitting.poses import angles, displacement, rigid
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Box, Volume

CASES = (
    ("aligned", 4, 0.0),
    ("aligned", 8, 0.0),
    ("aligned", 4, 2.0),
    ("aligned", 8, 2.0),
    ("between", 4, 0.0),
    ("between", 4, 2.0),
    ("within", 4, 2.0),
    ("spoilt", 4, 2.0),
)
METHODS = {
    "bspline": "B-spline mean",
    "srr": "SRR",
    "srr-best": "SRR at its best weight",
    "default": "default",
    "irem": "`irem`",
    "paper": "`--preset paper`",
}
TITLES = {
    "aligned": "aligned",
    "between": "moved between stacks",
    "within": "every fifth slice moved as well",
    "spoilt": "two slices spoilt in each stack",
}
OVER_SRR = "PSNR over SRR (least, most)"
FETAL = ("bspline", "srr", "default")
# Of the prior of "srr-best": every one of them is tried, and the best by the truth is kept.
WEIGHTS = [0.1 * 10 ** (-step / 4) for step in range(14)]
DEEP_MM = 5
MARGIN = 16  # voxels around the cube that moved slices may see
FAR_MM, FAR_DEGREES = 5.0, 5.0


@dataclass(frozen=True)
class Row:
    """One result."""

    volume: str
    side: int
    case: str
    factor: int
    noise_percent: float
    method: str
    psnr: float
    ssim: float
    seconds: float
    pose_mm: float
    pose_degrees: float
    found: str  # spoilt slices that are hardly believed, of all; others that are

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a row one of its kind."""
        return tuple(str(getattr(self, f.name)) for f in fields(self)[:6])


@dataclass(frozen=True)
class Simulated:
    """Stacks, and what is known of them."""

    truth: Volume
    mask: np.ndarray
    stacks: list[Volume]
    motions: list[np.ndarray]
    spoilt: list[set[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("--rows", type=Path, required=True)
    run.add_argument("--side", type=int, default=80)
    run.add_argument("--volumes", type=int, default=1)
    run.add_argument("--cases", nargs="+", default=list(TITLES), choices=TITLES)
    run.add_argument("--factors", nargs="+", type=int, default=[4, 8])
    run.add_argument("--noise", nargs="+", type=float, default=[0.0, 2.0], help="percent")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    run.add_argument("--minutes", type=float, default=10.0, help="of IREM as published")
    table = commands.add_parser("table")
    table.add_argument("--rows", type=Path, required=True)
    fetal = commands.add_parser("fetal")
    fetal.add_argument("data", type=Path)
    fetal.add_argument("--out", type=Path, required=True)
    fetal.add_argument("--methods", nargs="+", choices=FETAL, default=FETAL)
    options = parser.parse_args()
    if options.command == "run":
        return run_all(options)
    if options.command == "fetal":
        return run_fetal(options)
    return print_tables(options.rows)


def run_all(options: argparse.Namespace) -> int:
    done = {row.key for row in read(options.rows)}
    files = sorted((options.data / "brains_t1w" / "val").glob("*.nii.gz"))[: options.volumes]
    for file in files:
        for case, factor, noise in CASES:
            if (
                case not in options.cases
                or factor not in options.factors
                or noise not in options.noise
            ):
                continue
            simulated = None
            for method in options.methods:
                row = Row(file.name, options.side, case, factor, noise, method, *[0.0] * 5, "")
                if row.key in done:
                    continue
                simulated = simulated or simulate(file, options.side, case, factor, noise / 100)
                append(options.rows, scored(row, simulated, options.minutes))
    return 0


def simulate(file: Path, side: int, case: str, factor: int, noise: float) -> Simulated:
    """Stacks of a brain, and where their slices were."""
    whole = io.read(file)
    box = cut(whole, side, factor)
    normal = Normalizer.fit(whole.data[box.slices], "minmax")
    around = whole.crop(box.grown(MARGIN, whole.grid.shape))
    field = CubicField(Volume(normal.normalize(around.data), around.affine))
    truth = Volume(normal.normalize(whole.data[box.slices]), whole.grid.crop(box).affine)
    centre = truth.grid.world([(n - 1) / 2 for n in truth.grid.shape])
    random = np.random.default_rng(1)
    stacks, motions, spoilt = [], [], []
    for axis in range(3):
        grid = truth.grid.scaled([1 / factor if a == axis else 1 for a in range(3)])
        moves = case in ("between", "within") and axis > 0
        motion = np.tile(
            rigid(drawn(random) if moves else np.zeros(6), centre), (grid.shape[axis], 1, 1)
        )
        if case == "within":
            for number in range(random.integers(5), len(motion), 5):
                motion[number] = rigid(drawn(random), centre) @ motion[number]
        data = np.empty(grid.shape, dtype=np.float32)
        for number, one in enumerate(motion):
            part = grid.box.with_range(axis, number, number + 1)
            fine = grid.crop(part).scaled([factor if a == axis else 1 for a in range(3)])
            data[part.slices] = field.sample(fine.moved(one)).data.mean(axis=axis, keepdims=True)
        bad: set[int] = set()
        if case == "spoilt":
            bad = set(random.choice(np.arange(3, len(motion) - 3), 2, replace=False).tolist())
            for kind, number in enumerate(sorted(bad)):
                place = grid.box.with_range(axis, number, number + 1).slices
                data[place] = 0.2 * data[place] if kind else 0.6 * random.random(data[place].shape)
        data += np.float32(noise) * random.standard_normal(data.shape, dtype=np.float32)
        stacks.append(Volume(data, grid.affine, name=f"stack {axis + 1}"))
        motions.append(motion)
        spoilt.append(bad)
    return Simulated(truth, truth.data > 0.05, stacks, motions, spoilt)


def cut(whole: Volume, side: int, factor: int) -> Box:
    """A cube in the middle, or the brain; a whole number of thick slices along every axis."""
    inside = np.argwhere(whole.data > 0.05 * whole.data.max())
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    if side:
        low = (low + high - side) // 2
        high = low + side
    sizes = (high - low) // factor * factor
    z, y, x = low.tolist()
    d, h, w = sizes.tolist()
    return Box((z, y, x), (z + d, y + h, x + w))


def drawn(random: np.random.Generator) -> np.ndarray:
    turn = np.radians(random.uniform(-FAR_DEGREES, FAR_DEGREES, 3))
    return np.concatenate([turn, random.uniform(-FAR_MM, FAR_MM, 3)])


def scored(row: Row, simulated: Simulated, minutes: float) -> Row:
    if row.method != "srr-best":
        return fitted(row, simulated, minutes)[0]
    alone = replace(row, method="srr")
    first, state = fitted(alone, simulated, minutes, WEIGHTS[0])
    places = [record.registered for record in state.stacks]  # once found, for all weights
    found = [first]
    found += [fitted(alone, simulated, minutes, w, places)[0] for w in WEIGHTS[1:]]
    best = max(found, key=lambda one: one.psnr)
    return replace(best, method=row.method, seconds=first.seconds)


def fitted(
    row: Row,
    simulated: Simulated,
    minutes: float,
    weight: float | None = None,
    places: list[np.ndarray] | None = None,
) -> tuple[Row, fitting.State]:
    """A row filled, and the fit; ``places`` are those of the stacks, where they are known."""
    truth, mask = simulated.truth, simulated.mask
    paper = row.method == "paper"
    settings = fitting.Settings(
        "irem" if paper else row.method,
        "paper" if paper else "default",
        spacing=truth.spacing,
        register=row.case in ("between", "within") and places is None,
        minutes=minutes if paper else 0.0,
        weight=weight,
    )
    started = time.perf_counter()
    state = fitting.fit(simulated.stacks, settings, starts=places)
    result = state.field().sample(truth.grid).data
    seconds = time.perf_counter() - started
    points = truth.grid.world(np.argwhere(mask)[::499])
    apart = [
        (displacement(r.motion, m, points), angles(r.motion, m))
        for r, m in zip(state.stacks, simulated.motions, strict=True)
    ]
    found = lost = 0
    for record, bad in zip(state.stacks, simulated.spoilt, strict=True):
        found += len(bad & set(record.suspects))
        lost += len(set(record.suspects) - bad)
    total = sum(map(len, simulated.spoilt))
    filled = replace(
        row,
        psnr=psnr(truth.data, result, mask=mask, data_range=1.0),
        ssim=ssim(truth.data, result, mask=mask, data_range=1.0),
        seconds=seconds,
        pose_mm=float(np.sqrt(np.mean(np.concatenate([a for a, _ in apart]) ** 2))),
        pose_degrees=float(np.sqrt(np.mean(np.concatenate([a for _, a in apart]) ** 2))),
        found=f"{found} of {total}, {lost} others",
    )
    return filled, state


def run_fetal(options: argparse.Namespace) -> int:
    """The six real stacks; results that are there are not made again."""
    folder = options.data / "fetal_stacks"
    published = io.read(folder / "fetal_sub-01_SR_T2w.nii.gz")
    inside = subject(published.data > 0)
    mask = Volume(inside.astype(np.uint8), published.affine, name="mask")
    stacks = fitting.read_stacks(sorted(folder.glob("*_run-*_T2w.nii.gz")))
    options.out.mkdir(parents=True, exist_ok=True)
    reference = 5  # the published reconstruction has this stack's origin and axes
    results = {}
    for method in options.methods:
        path = options.out / f"fetal_{method}.nii.gz"
        if not path.exists():
            started = time.perf_counter()
            settings = fitting.Settings(method, spacing=1.125, reference=reference)
            state = fitting.fit(stacks, settings, mask=mask)
            io.write(path, state.field().sample(published.grid))
            agreements = " ".join(f"{s.agreement.correlation:.2f}" for s in state.stacks)
            print(
                f"{method}: {time.perf_counter() - started:.0f} s; stacks with the reference "
                f"{agreements}; hardly believed {[s.suspects for s in state.stacks]}",
                flush=True,
            )
        results[method] = io.read(path)
    compare_fetal(published, inside, stacks[reference], results, options.out / "fetal.png")
    return 0


def subject(seen: np.ndarray) -> np.ndarray:
    """The largest piece of what is seen, without the thousands of specks around it, and filled."""
    from scipy.ndimage import binary_fill_holes, binary_opening, label

    pieces, _ = label(binary_opening(seen, iterations=2))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return binary_fill_holes(pieces == np.argmax(sizes))


def compare_fetal(
    published: Volume,
    inside: np.ndarray,
    stack: Volume,
    results: dict[str, Volume],
    path: Path,
) -> None:
    """Say how results agree with the published reconstruction, and draw them beside it."""
    from scipy.ndimage import distance_transform_edt

    # The published one fades within a few millimetres of its mask's edge, results do not.
    depth = distance_transform_edt(inside, sampling=published.spacing)
    for method, result in results.items():
        alike = [
            np.corrcoef(result.data[part], published.data[part])[0, 1]
            for part in ((depth > limit) & (result.data != 0) for limit in (0, DEEP_MM))
        ]
        print(
            f"{method}: correlation with the published {alike[0]:.4f} in its mask, "
            f"{alike[1]:.4f} more than {DEEP_MM} mm inside"
        )
    ends = np.argwhere(depth > 2)
    low, high = ends.min(axis=0).tolist(), (ends.max(axis=0) + 1).tolist()
    box = Box(tuple(low), tuple(high)).grown(2, published.grid.shape)
    thick = published.grid.box_in(stack.grid, box).common(stack.grid.box)
    ours = list(results.values())[-1]
    deep = (depth > DEEP_MM) & (ours.data != 0)
    # It has units of its own.
    factor = np.median(ours.data[deep]) / np.median(published.data[deep])
    names = {"bspline": "B-spline mean", "srr": "SRR", "default": "napari-arssr"}
    shown = {"one stack": stack.crop(thick)}
    shown |= {names[method]: result.crop(box) for method, result in results.items()}
    shown["published"] = Volume(published.data * np.float32(factor), published.affine).crop(box)
    path.write_bytes(picture(shown, 0.036))


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="", encoding="utf-8") as opened:
        return [
            Row(**{f.name: kinds[str(f.type)](line[f.name]) for f in fields(Row)})
            for line in csv.DictReader(opened)
        ]


def append(path: Path, row: Row) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, [f.name for f in fields(Row)], lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}
        )
    print(row, flush=True)


def print_tables(path: Path) -> int:
    print("\n".join(lines(read(path))))
    return 0


def lines(rows: list[Row]) -> Iterator[str]:
    """The tables of docs/fit.md, one for each size of cubes."""
    sides: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        sides[row.side].append(row)
    for side, some in sides.items():
        brains = len({row.volume for row in some})
        what = f"cubes of {side}³ voxels" if side else "whole brains"
        yield f"{brains} brain{'s' * (brains > 1)}, {what}:"
        yield ""
        yield from table_lines(some)
        yield ""


def table_lines(rows: list[Row]) -> Iterator[str]:
    """A table: cases below each other, methods beside each other, means over volumes."""
    cases: dict[tuple[str, int, float], list[Row]] = defaultdict(list)
    for row in rows:
        cases[row.case, row.factor, row.noise_percent].append(row)
    methods = [name for name in METHODS if any(row.method == name for row in rows)]
    yield "| stacks | | " + " | ".join(METHODS[name] for name in methods) + " |"
    yield "|---" * (2 + len(methods)) + "|"
    for (case, factor, noise), some in cases.items():
        columns = [[row for row in some if row.method == name] for name in methods]
        rival = {row.volume: row.psnr for row in some if row.method == "srr"}
        title = f"{TITLES[case]}, factor {factor}" + (f", {noise:g} % noise" if noise else "")
        best = max(mean(column, "psnr") for column in columns if column)
        for line in measures(case):
            cells = [cell(line, column, best, rival) if column else "–" for column in columns]
            yield f"| {title} | {line} | " + " | ".join(cells) + " |"
            title = ""


def measures(case: str) -> list[str]:
    """Lines of the table for a case."""
    own = {
        "between": ["pose error left"],
        "within": ["pose error left"],
        "spoilt": ["spoilt slices found"],
    }
    return ["PSNR, SSIM", OVER_SRR, *own.get(case, []), "time"]


def cell(line: str, rows: list[Row], best: float, rival: dict[str, float]) -> str:
    """What one method reached in one case; ``rival`` has SRR's PSNR of each volume."""
    if line == "PSNR, SSIM":
        reached = mean(rows, "psnr")
        bold = "**" if round(reached, 2) == round(best, 2) else ""
        return f"{bold}{reached:.2f}{bold}, {mean(rows, 'ssim'):.3f}"
    if line == OVER_SRR:
        gains = [row.psnr - rival[row.volume] for row in rows if row.volume in rival]
        if not gains or rows[0].method == "srr":
            return "–"
        ends = f" ({min(gains):+.2f} to {max(gains):+.2f})" if len(gains) > 1 else ""
        return f"{np.mean(gains):+.2f}{ends} dB".replace("-", "−")
    if line == "pose error left":
        return f"{mean(rows, 'pose_mm'):.2f} mm, {mean(rows, 'pose_degrees'):.2f}°"
    if line == "spoilt slices found":
        counts = [[int(word) for word in re.findall(r"\d+", row.found)] for row in rows]
        there, spoilt, others = np.sum(counts, axis=0)
        return f"{there} of {spoilt}, {others} others"
    return (
        f"{mean(rows, 'seconds'):.2g} s"
        if mean(rows, "seconds") < 10
        else (f"{mean(rows, 'seconds'):.0f} s")
    )


def mean(rows: list[Row], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows]))


if __name__ == "__main__":
    raise SystemExit(main())
