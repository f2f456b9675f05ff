"""Speed and memory as ratios, all in one run on one machine: ``make bench``.

Nothing here depends on the values of weights, so networks are random where the published ones
are not at hand. Times are the best of several runs, because what disturbs a run only adds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import napari_arssr
from napari_arssr import weights
from napari_arssr.devices import bfloat16_is_faster
from napari_arssr.evaluation.lpc_si import lpc_si
from napari_arssr.evaluation.psi import psi
from napari_arssr.evaluation.slices import Intensities, slicewise
from napari_arssr.field import NetworkField
from napari_arssr.models import ArSSR, ModelConfig, build
from napari_arssr.normalization import Normalizer
from napari_arssr.phantom import Phantom
from napari_arssr.volume import Box, Grid, Volume

# Runs Python with the arguments it is given and prints the largest resident size, in kilobytes. A
# process begins with the peak of the one it was forked from, and that of the benchmarks is large.
MEASURE = """
import resource, subprocess, sys

subprocess.run([sys.executable, *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"{platform.machine()}, {cores} cores, torch {torch.__version__}, float32 where not said\n"
    )
    torch.manual_seed(0)
    rdn = build(ModelConfig()).eval().requires_grad_(False)
    published_way(rdn)
    floors("RDN, published", rdn)
    floors("bundled", weights.load("default").model)
    if bfloat16_is_faster(torch.device("cpu")):  # or it takes a quarter of an hour for nothing
        floors("bundled", weights.load("default").model, torch.bfloat16)
    cached_box()
    several_orientations()
    slice_metrics()
    peak_memory()
    start_up()


def published_way(model: ArSSR) -> None:
    """Encode once against the full network called once per output slice, as published."""
    volume = random_volume(32)
    grid = volume.grid.scaled(2)
    field = field_of(volume, model)
    whole = {}

    def ours() -> None:
        field.features.clear()
        whole["data"] = field.sample(grid).data

    our_time = best(ours, 5)
    slices = (3, 40)
    theirs = {}

    def one_slice(index: int) -> None:
        theirs[index] = published_slice(model, torch.from_numpy(volume.data), grid.shape, index)

    slice_time = min(best(lambda i=i: one_slice(i), 1) for i in slices)
    scale = np.abs(whole["data"]).max()
    error = max(np.abs(theirs[i].numpy() - whole["data"][i]).max() for i in slices) / scale
    ratio = slice_time * grid.shape[0] / our_time
    report("32³ → 64³, RDN: a call per slice / encode once", ratio, f"≥ 40, error {error:.0e}")


def published_slice(model: ArSSR, low: torch.Tensor, shape: tuple, index: int) -> torch.Tensor:
    """One output slice the published way: encoder, grid_sample, concatenation, decoder."""
    with torch.inference_mode():
        features = model.encoder(low[None, None])
        axes = [(2 * torch.arange(n) + 1) / n - 1 for n in shape]
        z, y, x = torch.meshgrid(axes[0][index : index + 1], axes[1], axes[2], indexing="ij")
        points = torch.stack([x, y, z], dim=-1)[None]
        sampled = functional.grid_sample(features, points, align_corners=False)
        sampled = sampled.flatten(2)[0].T
        inputs = torch.cat([sampled, torch.stack([z, y, x], dim=-1).reshape(-1, 3)], dim=1)
        stage = model.decoder.stage_one(inputs)
        return model.decoder.stage_two(inputs + stage).reshape(shape[1:])


def floors(name: str, model: ArSSR, dtype: torch.dtype = torch.float32) -> None:
    """Encoding and decoding against the same arithmetic as one large operation."""
    side = 32
    volume = random_volume(side)
    field = field_of(volume, model, dtype)
    grid = volume.grid.scaled(2)
    nothing: Callable[[], bool] = lambda: False  # noqa: E731

    def encode() -> None:
        field.features.clear()
        field.features.ensure([volume.grid.box], nothing, lambda _: None)

    encode_time = best(encode, 4)
    decode_time = best(lambda: field.sample(grid), 12)
    multiplications = side**3 * sum(p.numel() for n, p in weights_of(model.encoder))
    label = str(dtype).removeprefix("torch.")
    report(
        f"encode {side}³, {name}, {label} / one convolution",
        encode_time / convolution_time(multiplications, dtype),
        "≤ 1.5",
    )
    multiplications = grid.size * sum(p.numel() for n, p in weights_of(model.decoder))
    report(
        f"decode {grid.shape[0]}³, {name}, {label} / one matrix product",
        decode_time / product_time(multiplications, dtype),
        "≤ 1.5",
    )


def weights_of(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters that are multiplied once a voxel or point: all but biases."""
    return [(n, p) for n, p in module.named_parameters() if n.endswith("weight")]


def convolution_time(multiplications: int, dtype: torch.dtype) -> float:
    """Seconds for one 3³ convolution, 64 to 64 channels, of so many multiplications."""
    side = 32
    layer = torch.nn.Conv3d(64, 64, 3, padding=1).to(dtype)
    layer = layer.to(memory_format=torch.channels_last_3d)
    batch = max(1, round(multiplications / (side**3 * 27 * 64 * 64)))
    share = multiplications / (batch * side**3 * 27 * 64 * 64)
    volumes = torch.rand(min(batch, 8), 64, side, side, side).to(dtype)
    volumes = volumes.to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        return best(lambda: layer(volumes), 3) * batch / len(volumes) * share


def product_time(multiplications: int, dtype: torch.dtype) -> float:
    """Seconds for one square matrix product of so many multiplications."""
    side = round(multiplications ** (1 / 3))
    a, b = torch.rand(side, side).to(dtype), torch.rand(side, side).to(dtype)
    return best(lambda: a @ b, 8)


def cached_box() -> None:
    """A box of 1/64 of the result against the whole, features cached for both."""
    volume = random_volume(64)
    grid = volume.grid.scaled(2.5)
    field = field_of(volume, weights.load("default").model)
    field.sample(grid)
    box = Box((60, 60, 60), (100, 100, 100))
    part = grid.crop(box)
    ratio = best(lambda: field.sample(grid), 5) / best(lambda: field.sample(part), 30)
    report("64³ → 160³: whole / box of 1/64, features cached", ratio, "≥ 40")


def several_orientations() -> None:
    """The mean over three orientations against one, features made anew for both."""
    volume = random_volume(48)
    grid = volume.grid.scaled(2)
    model = weights.load("default").model
    one, three = (
        best(lambda count=count: field_of(volume, model, count=count).sample(grid), 3)
        for count in (1, 3)
    )
    report("48³ → 96³: three orientations / one", three / one, "≤ 3.3")


def slice_metrics() -> None:
    """The metrics of pictures on every slice of a volume as large as the papers'."""
    head = Phantom().sample(Grid.from_spacing((264, 264, 264), 0.7)).data
    unit = Intensities.of(head).unit(head)
    for name, metric in (("psi", psi), ("lpc-si", lpc_si)):
        report(f"264³: {name}, s", best(partial(slicewise, metric, unit), 1), "≤ 60")


def peak_memory() -> None:
    """Largest resident size of the command line under a budget.

    In float32 the smallest pass of the encoder takes twice the memory, and with 1 GB there is
    room for no larger one: it works, and takes half an hour.
    """
    gigabytes = 1 if bfloat16_is_faster(torch.device("cpu")) else 2
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.nii", Path(folder) / "out.nii"
        napari_arssr.write(source, random_volume(96))
        command = ["upsample", str(source), str(output), "--scale", "2.5"]
        command += ["--memory", f"{gigabytes}GB"]
        started = time.perf_counter()
        told = subprocess.run(
            [sys.executable, "-c", MEASURE, "-m", "napari_arssr", *command, "--quiet"],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
    peak = int(told.stdout) * 1024
    name = f"96³ → 240³ --memory {gigabytes}GB: peak, GB"
    report(name, peak / 1e9, f"≤ {gigabytes}, {seconds:.0f} s")


def start_up() -> None:
    """Whole processes: Python alone, with this package, and with its help."""

    def run(*arguments: str) -> float:
        return best(
            lambda: subprocess.run(
                [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL
            ),
            5,
        )

    report(
        "import napari_arssr, s (Python itself included)", run("-c", "import napari_arssr"), "≤ 0.5"
    )
    report("napari-arssr --help, s", run("-m", "napari_arssr", "--help"), "≤ 0.5")


def random_volume(side: int) -> Volume:
    data = np.random.default_rng(0).random((side, side, side), dtype=np.float32)
    return Volume(data, Grid.from_spacing(data.shape, 1.0).affine)


def field_of(
    volume: Volume, model: ArSSR, dtype: torch.dtype = torch.float32, count: int = 1
) -> NetworkField:
    return NetworkField(
        volume, model, Normalizer(), dtype=dtype, memory=8 << 30, orientations=count
    )


def best(run: Callable[[], object], times: int) -> float:
    """Shortest of several runs, seconds; one more comes first and does not count."""
    run()
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started)
    return min(durations)


def report(what: str, value: float, wanted: str) -> None:
    print(f"{what:66} {value:8.2f}   ({wanted})", flush=True)


if __name__ == "__main__":
    main()
