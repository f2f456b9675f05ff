"""What a trained network makes of a reconstruction: a prior that has seen anatomy.

The reconstruction is measured with voxels 1.5 and 2 times as long, which takes noise and what is
left of the slices' thickness out of it, and an ArSSR network brings both back to the grid. Their
mean is what the reconstruction may be drawn to, as far as that predicts the data (see
:func:`~napari_arssr.fitting.selection.choose_pull`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_arssr.degradation import ScannerModel
from napari_arssr.volume import Grid, Volume
from napari_arssr.watching import Advance, Stop, never, unheard

if TYPE_CHECKING:
    from napari_arssr.weights import Loaded

__all__ = ["as_network_sees"]

_SCALES = (1.5, 2.0)


def as_network_sees(
    data: npt.NDArray[np.float32],
    grid: Grid,
    weights: str | Loaded = "default",
    *,
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
    for number, scale in enumerate(_SCALES):
        low = scanner.measure(volume, grid.scaled(1 / scale))

        def told(share: float, _stage: str, number: int = number) -> None:
            advance((number + share) / len(_SCALES))

        seen = upsample(
            low,
            shape=grid.shape,
            weights=weights,
            device=device,
            normalize="none",
            progress=told,
            stop=stop,
        )
        result += seen.data / np.float32(len(_SCALES))
    return result
