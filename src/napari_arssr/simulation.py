"""Low-resolution files from high-resolution ones: the scanner model applied to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.degradation import ScannerModel, with_noise
from napari_arssr.errors import UsageError
from napari_arssr.normalization import check_range
from napari_arssr.request import nearest_values
from napari_arssr.upsampling import NEAREST_LABEL
from napari_arssr.volume import Volume, as_triple

__all__ = ["simulate_file"]


def simulate_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    scale: float | Sequence[float],
    model: ScannerModel,
    *,
    noise: float = 0.0,
    seed: int = 0,
    channel: int | None = None,
) -> dict[str, Any]:
    """Make an LR file of an HR file.

    Label maps take the label of the nearest voxel, as in :func:`napari_arssr.upsample`.

    Parameters
    ----------
    source, output : path
        A file that is there is replaced if this program made it, see
        :func:`napari_arssr.io.check_output`.
    scale : float or three floats
        HR voxels per LR voxel, (z, y, x); at least 1. Sizes that do not divide are rounded
        and the span is kept, so the true scale is the ratio of the two sizes.
    model : ScannerModel
    noise : float
        Standard deviation of Gaussian noise, per cent of the volume's range.
    seed : int
        Of the noise.
    channel : int, optional
        Which channel of a stack; needed where there are several.

    Returns
    -------
    dict
        Files, shapes (i, j, k) and settings, ready for JSON.
    """
    factors = as_triple(scale, "scale")
    if min(factors) < 1:
        raise UsageError(f"A simulated scale is at least 1, not {scale!r}.")
    if not 0 <= noise <= 100:
        raise UsageError(f"Noise is between 0 and 100 per cent, not {noise!r}.")
    if seed < 0:
        raise UsageError(f"A seed is a whole number of at least 0, not {seed!r}.")
    output = io.check_output(output, [io.check_input(source)])
    volume = io.read(source, channel=channel)
    if not np.isfinite(volume.data).all():
        raise UsageError(
            f"{volume.name}: a scanner cannot be simulated on voxels that are not finite; "
            "fill them first."
        )
    check_range(volume.data, volume.name)
    grid = volume.grid.scaled([1 / k for k in factors])
    labels = io.is_label_map(volume)
    if labels and noise:
        raise UsageError(f"{volume.name} is a label map, and labels take no noise; leave it out.")
    settings: dict[str, Any] = {"kind": NEAREST_LABEL}
    if not labels:
        settings = {"kind": model.kind, "width": model.width, "noise_percent": noise, "seed": seed}
    if channel is not None:
        settings["channel"] = channel
    generator = np.random.default_rng(seed)

    def measured(frame: Volume) -> npt.NDArray[Any]:
        if labels:
            return nearest_values(frame, grid)
        return with_noise(model.measure(frame, grid).data, frame.data, noise, generator)

    frames = [measured(volume.frame(number)) for number in range(volume.frames)]
    data = np.stack(frames) if volume.data.ndim == 4 else frames[0]
    io.write(
        output,
        replace(volume, data=data, affine=grid.affine),
        provenance=io.record_of(settings, "simulate"),
    )
    return {
        "input": str(source),
        "output": str(output),
        "input_shape": volume.grid.shape[::-1],
        "output_shape": grid.shape[::-1],
        "keeps_orientation": io.keeps_orientation(output, grid),
        "settings": settings,
    }
