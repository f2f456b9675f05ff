"""Training steps of the paper's protocol here and the published way: ``make bench``.

The same step of the same network: RDN, 15 pairs of 10³ LR voxels, 8000 coordinates each, L1,
Adam. The published way is float32, with pairs made in the training process by SciPy's ``zoom``,
``grid_sample`` and coordinates written out for every point. Here it is what ``napari-arssr train
--preset paper`` does on this machine. Each runs in a process of its own, so that its peak memory
is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, zoom
from torch.nn import functional

import napari_arssr
from napari_arssr.models import ModelConfig, build
from napari_arssr.training import (
    DataConfig,
    MachineConfig,
    Progress,
    preset,
    read_config,
    train,
)
from napari_arssr.volume import Grid, Volume

VOLUMES, SIDE = 4, 64
Report = Callable[[str, float, str], None]


def main() -> None:
    """Measure, or one of the two in this process for :func:`measure`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, of each kind")
    parser.add_argument("--only", choices=["ours", "published"], help="print its numbers as JSON")
    options = parser.parse_args()
    if options.only:
        run = {"ours": ours, "published": published}[options.only]
        print(json.dumps({**run(options.steps), "peak_bytes": peak_bytes()}))
    else:
        measure(report, options.steps)


def measure(report: Report, steps: int = 4) -> None:
    """Report the three lines that belong to training.

    Parameters
    ----------
    report : callable
        Takes what was measured, the value, and what is wanted.
    steps : int
        Timed, of each kind; the best of them counts, because what disturbs a step only adds.
    """
    theirs, here = (in_a_process(kind, steps) for kind in ("published", "ours"))
    speed = f"≥ 2.5; {1 / here['seconds']:.2f} steps/s, {here['precision']}"
    report("--preset paper, RDN: a step the published way / here", ratio(theirs, here), speed)
    report("--preset paper, RDN: share of a step waiting for data", here["waiting"], "≤ 0.05")
    report("--preset paper, RDN: peak, GB", here["peak_bytes"] / 1e9, memory(theirs))


def ratio(theirs: dict[str, Any], here: dict[str, Any]) -> float:
    return float(theirs["seconds"] / here["seconds"])


def memory(theirs: dict[str, Any]) -> str:
    return f"the published way {theirs['peak_bytes'] / 1e9:.2f}"


def in_a_process(kind: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", kind, "--steps", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def volumes() -> list[np.ndarray]:
    """Soft structure in [0, 1] everywhere, so that no patch is background."""
    found = []
    for seed in range(VOLUMES):
        noise = np.random.default_rng(seed).standard_normal((SIDE,) * 3)
        smooth = gaussian_filter(noise, 1.5)
        found.append(np.clip(0.5 + smooth / (6 * smooth.std()), 0.01, 1).astype(np.float32))
    return found


def ours(steps: int) -> dict[str, Any]:
    """Through Lightning's Trainer, with its workers, as the command line does it."""
    times: list[float] = []
    told: list[Progress] = []

    def tick() -> bool:
        times.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, data in enumerate(volumes()):
            affine = Grid.from_spacing(data.shape, 1.0).affine
            napari_arssr.write(folder / f"{number}.nii", Volume(data, affine))
        config = preset("paper")
        length = {"steps": steps + 1, "epochs": 0}
        watch = {"holdout": 0, "watch_every": 10**6, "watch_batches": 1}
        training = replace(config.training, **length, **watch)
        files = tuple(str(path) for path in sorted(folder.glob("*.nii")))
        config = replace(
            config,
            training=training,
            data=DataConfig(train=files),
            machine=MachineConfig(device="cpu"),
        )
        train(config, folder / "run", report=told.append, stop=tick)
        settled = read_config(folder / "run" / "run.yaml").training.precision
    return {"seconds": min(np.diff(times)), "waiting": told[-1].waiting, "precision": settled}


def published(steps: int) -> dict[str, Any]:
    """As the published script does it, one step after the other."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = build(ModelConfig()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    patches = [
        data[tuple(slice(start, start + 40) for start in generator.integers(SIDE - 40, size=3))]
        for data in volumes()
        for _ in range(6)
    ]
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        low, points, target = batch(patches, generator)
        features = model.encoder(low)
        sampled = functional.grid_sample(
            features, points.flip(-1)[:, :, None, None], align_corners=False
        )
        inputs = torch.cat([sampled.flatten(2).transpose(1, 2), points], dim=-1)
        hidden = model.decoder.stage_two(inputs + model.decoder.stage_one(inputs))
        loss = functional.l1_loss(hidden[..., 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - started)
    return {"seconds": min(times[1:])}


def batch(
    patches: list[np.ndarray], generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fifteen pairs: a crop, its cubic ``zoom``, 8000 of its voxels with their coordinates."""
    lows, points, targets = [], [], []
    for index in generator.choice(len(patches), 15):
        scale = round(generator.uniform(2, 4), 1)
        side = round(10 * scale)
        high = patches[index][:side, :side, :side]
        lows.append(zoom(high, 10 / side, order=3))
        axis = (2 * np.arange(side) + 1) / side - 1
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        picks = generator.choice(len(grid), 8000, replace=False)
        points.append(grid[picks])
        targets.append(high.reshape(-1)[picks])
    return (
        torch.from_numpy(np.stack(lows))[:, None],
        torch.from_numpy(np.stack(points).astype(np.float32)),
        torch.from_numpy(np.stack(targets)),
    )


def peak_bytes() -> int:
    """Largest resident size of this process and of the largest it started."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * sum(resource.getrusage(kind).ru_maxrss for kind in kinds)


def report(what: str, value: float, wanted: str) -> None:
    print(f"{what:66} {value:8.2f}   ({wanted})", flush=True)


if __name__ == "__main__":
    main()
