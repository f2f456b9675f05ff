"""A fitted volume as a field: sampled on any grid, as any other."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from napari_arssr.field import CubicField
from napari_arssr.normalization import Normalizer
from napari_arssr.request import Request
from napari_arssr.volume import Box, Grid, Volume

__all__ = ["FittedField", "positions"]


def positions(grid: Grid, index: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """What a network is asked for at voxel indices (…, 3): (…, 3), z, y, x.

    Millimetres from the middle of the grid, divided by half its longest side: -1 to 1 along
    that, less along the others.
    """
    spacing = np.array(grid.spacing)
    middle = (np.array(grid.shape) - 1) / 2
    return np.asarray((index - middle) * (2 * spacing / max(grid.extent)))


class FittedField(CubicField):
    """A reconstruction interpolated by cubic B-splines, and a network's values on top.

    Parameters
    ----------
    base : Volume
        3D, in the reference stack's units. A constant one where the network is all.
    normalizer : Normalizer
        Units of the network: what it adds times the range.
    network : torch.nn.Module, optional
        Positions (p, 3), see :func:`positions`, to values (p,); copied to ``device``.
    mask : (z, y, x) bool array, optional
        On the base's grid; elsewhere the field is 0.
    device : torch.device or str
        Where the network runs.
    """

    def __init__(
        self,
        base: Volume,
        normalizer: Normalizer,
        *,
        network: nn.Module | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(base)
        self.device = torch.device(device)
        # The caller's own may be in training, on another device.
        self._network = None if network is None else copy.deepcopy(network).to(self.device).eval()
        self._mask = mask
        own = self.normalizer
        self._share = np.float32((normalizer.high - normalizer.low) / (own.high - own.low))

    @torch.inference_mode()
    def _chunk(self, request: Request, chunk: Box) -> npt.NDArray[np.float32]:
        if self._voxels.constant is not None:
            values = np.zeros(chunk.shape, dtype=np.float32)
        else:
            values = super()._chunk(request, chunk)
        if self._network is None:
            return values
        points = positions(self.grid, request.points(chunk).reshape(-1, 3))
        asked = torch.from_numpy(points.astype(np.float32)).to(self.device)
        added = self._network(asked).cpu().numpy().reshape(chunk.shape)
        return np.asarray(values + self._share * added, dtype=np.float32)

    def _finish(
        self, request: Request, chunk: Box, values: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        values = super()._finish(request, chunk, values)
        if self._mask is not None:
            values = np.where(self._mask[request.nearest(chunk)], values, np.float32(0))
        return values
