"""Compare one network for all scales with the paper's rivals, at equal training budget.

    python benchmarks/comparison.py DATA --out OUT --minutes 60
    python benchmarks/comparison.py DATA --out OUT --minutes 60 --commands
    python benchmarks/comparison.py DATA --out OUT --minutes 4 -- --batch 2 --patch 10

DATA is a folder with brains_t1w/train, brains_t1w/val and lesion in it (their sources are in
docs/weights.md). The second line prints the commands and runs nothing. Every network gets the
same budget: each of SRCNN3D, DCSRN and ResCNN for each scale, ArSSR by the paper's preset with
each of its encoders, and the bundled weights' own protocol from random weights ("ours"), these
once for all scales, and once more with as much as a rival's networks have together ("ours-5x" at
five scales). With ``--per method`` the networks of a method share one budget instead.
Words after ``--`` go to the training of the baselines, which work on HR voxels and would take few
steps of their usual batch in minutes. Beside them stand cubic interpolation, back-projection, the
bundled weights as they are and those of ``--weights``, which had budgets of their own. No
validation volume is seen in training.

What was broken off goes on where it was, and what is done is not done again. Beside its weights
each network's options and budget are kept; with others the same OUT is refused, because its
networks would not have had the same. The tables, curves and pictures are in OUT/scores then.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from napari_arssr.choices import BASELINES, ENCODERS, SCALES
from napari_arssr.files import write_whole

OURS = "ours"
SETS = {"brains_t1w": "brains_t1w/val", "lesion": "lesion"}


@dataclass(frozen=True)
class Run:
    """A network to be trained.

    Parameters
    ----------
    method : str
        Its name in the tables.
    weights : path
        Where its weights go; a method of several networks has a folder of them.
    words : tuple of str
        Options of ``napari-arssr train`` that make it what it is.
    share : float
        Of the budget; above 1, so many budgets.
    """

    method: str
    weights: Path
    words: tuple[str, ...]
    share: float = 1.0

    @property
    def kept(self) -> Path:
        """File beside the weights that says by what options and budget they are trained."""
        return self.weights.with_suffix(".txt")

    def folder(self, out: Path) -> Path:
        """Where it is trained."""
        place = self.weights.relative_to(out / "weights").with_suffix("")
        return out / "runs" / "-".join(place.parts)


def main() -> int:
    options = _options()
    train = options.data / "brains_t1w/train"
    folders = [train, *(options.data / place for place in SETS.values())]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing and not options.commands:
        print(f"There is no {', '.join(missing)}: nothing compared.", file=sys.stderr)
        return 1
    if others := list(trained_otherwise(options)):
        others.append(f"Nothing compared: remove these, or name another folder than {options.out}.")
        print("\n".join(others), file=sys.stderr)
        return 1
    for run in runs(options):
        if run.weights.is_file():
            continue
        if not options.commands:
            write_whole(run.kept, f"{asked(run, options)}\n".encode())
        for words in training(run, train, options):
            if status := call(words, options):
                return status
    return call(scoring(options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget, by the clock of one machine")
    budget.add_argument("--steps", type=int, help="budget, in steps of each network's own batch")
    parser.add_argument("--per", choices=["network", "method"], default="network")
    parser.add_argument("--scales", nargs="+", default=[f"{k:g}" for k in SCALES])
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=BASELINES)
    parser.add_argument("--encoders", nargs="*", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--volumes", type=int, metavar="N", help="score the first N of each set")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--metrics", help="as of napari-arssr evaluate")
    parser.add_argument("--lpips-weights", nargs="+", metavar="FILE", help="the same")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="as of napari-arssr train")
    parser.add_argument("--commands", action="store_true", help="print them and run nothing")
    parts = [*sys.argv[1:], "--"]
    end = parts.index("--")
    options = parser.parse_args(parts[:end])
    options.words = tuple(parts[end + 1 : -1])
    return options


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Every network, the quickest to learn first."""
    weights = options.out / "weights"
    share = 1 / len(options.scales) if options.per == "method" else 1.0
    for baseline in options.baselines:
        for scale in options.scales:
            # Commas part files on the command line of evaluate, so that no name has one.
            path = weights / baseline / f"x{scale.replace(',', 'x')}.safetensors"
            words = ("--baseline", baseline, "--scale", scale, *options.words)
            yield Run(baseline, path, words, share)
    # These brains are sharp along i and j only, and our protocol cuts its HR along those.
    count = len(options.scales)
    several = options.per == "network" and count > 1
    for name, budgets in {OURS: 1, **({f"{OURS}-{count}x": count} if several else {})}.items():
        yield Run(name, weights / f"{name}.safetensors", ("--sharp-axes", "i,j"), budgets)
    for encoder in options.encoders:
        name = f"ArSSR-{encoder}"
        words = ("--preset", "paper", "--encoder", encoder)
        yield Run(name, weights / f"{name}.safetensors", words)


def asked(run: Run, options: argparse.Namespace) -> str:
    """Options and budget of a network's training, as words of the command line."""
    if options.minutes is None:
        budget = ["--steps", str(max(1, round(options.steps * run.share)))]
    else:
        budget = ["--minutes", f"{options.minutes * run.share:g}"]
    return shlex.join([*run.words, *budget])


def trained_otherwise(options: argparse.Namespace) -> Iterator[str]:
    """A sentence for each network that is there, or begun, by other options than are asked for."""
    for run in runs(options):
        found = [path for path in (run.weights, run.folder(options.out)) if path.exists()]
        if not found:
            continue
        kept = run.kept.read_text(encoding="utf-8").strip() if run.kept.is_file() else "unknown"
        if kept != asked(run, options):
            yield f"{found[0]}: trained with {kept}, and not with {asked(run, options)}."


def training(run: Run, data: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """The commands that make its weights, as far as they are not made."""
    folder = run.folder(options.out)
    if (folder / "last.ckpt").is_file():
        words = ["train", "--out", str(folder), "--resume"]
    else:
        words = ["train", str(data), "--out", str(folder), "--name", run.method]
        words += shlex.split(asked(run, options))
    words += ["--device", options.device]
    if options.workers is not None:
        words += ["--workers", str(options.workers)]
    yield words
    yield ["export", str(folder), str(run.weights)]


def scoring(options: argparse.Namespace) -> list[str]:
    """The command that compares."""
    folder = options.out / "weights"
    one = {run.method: run.weights for run in runs(options) if run.weights.parent == folder}
    methods = ["cubic", "back-projection"]
    methods += [f"{baseline}={folder / baseline}" for baseline in options.baselines]
    methods += [f"{name}={path}" for name, path in one.items()]
    words = ["evaluate", *sets(options)]
    words += ["--out", str(options.out / "scores"), "--crop", "8", "--device", options.device]
    words += ["--scales", *options.scales, "--methods", *methods, "bundled=default"]
    words += [*options.weights]
    if options.lpips_weights:
        words += ["--lpips-weights", *options.lpips_weights]
    return [*words, "--metrics", options.metrics] if options.metrics else words


def sets(options: argparse.Namespace) -> Iterator[str]:
    """The data sets as evaluate is told them."""
    for name, place in SETS.items():
        folder = options.data / place
        if options.volumes is None:
            yield f"{name}={folder}"
        else:
            files = sorted(folder.glob("*.nii*"))[: options.volumes]
            yield from (f"{name}={file}" for file in files)


def call(words: list[str], options: argparse.Namespace) -> int:
    """Say a command and run it, and give its exit status."""
    print(shlex.join(["napari-arssr", *words]), flush=True)
    if options.commands:
        return 0
    return subprocess.run([sys.executable, "-m", "napari_arssr", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
