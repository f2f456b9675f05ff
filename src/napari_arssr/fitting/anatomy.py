"""What a trained network makes of a reconstruction: a prior that has seen anatomy.

The reconstruction is measured with voxels some times as long, which takes noise and what is left of
the slices' thickness out of it, and an ArSSR network brings it back to the grid. The mean over
several lengths, which is better than any of them, is what is expected of the volume: the
reconstruction's prior is about the difference from it (see
:class:`~napari_arssr.fitting.srr.Prior`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.volume import Grid, Volume
from napari_arssr.watching import Advance, Stop, never, unheard

if TYPE_CHECKING:
    from napari_arssr.weights import Loaded

__all__ = ["PASSES", "as_network_sees"]

PASSES = ((1.5, 2.0, 2.5), (1.15, 1.3, 1.6))
"""Lengths of voxels for a reconstruction from stacks alone, and for what came of the first pass."""


def as_network_sees(
    data: npt.NDArray[np.float32],
    grid: Grid,
    weights: str | Loaded = "default",
    *,
    scales: Sequence[float],
    device: str = "auto",
    stop: Stop = never,
    advance: Advance = unheard,
) -> npt.NDArray[np.float32]:
    """A volume (z, y, x) in [0, 1] without what its network does not believe.

    Raises
    ------
    UsageError, FileError, OutOfMemory, Cancelled
        As :func:`napari_arssr.upsample`.
    """
    from napari_arssr.upsampling import upsample

    volume = Volume(data, grid.affine, name="the estimate")
    scanner = ScannerModel("gaussian")
    result = np.zeros_like(data)
    for number, scale in enumerate(scales):
        low = scanner.measure(volume, grid.scaled(1 / scale))

        def told(share: float, _stage: str, number: int = number) -> None:
            advance((number + share) / len(scales))

        seen = upsample(
            low,
            shape=grid.shape,
            weights=weights,
            device=device,
            normalize="none",
            progress=told,
            stop=stop,
        )
        result += seen.data / np.float32(len(scales))
    return result
