"""The classical rival: every stack interpolated on the volume's grid, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import Cancelled
from napari_arssr.fitting.poses import FloatArray
from napari_arssr.fitting.stacks import Stack, filled
from napari_arssr.request import covered, nearest_values
from napari_arssr.volume import Grid, Volume
from napari_arssr.watching import Advance, Stop, never, unheard

__all__ = ["mean_of_stacks"]

_ORDER = {"linear": 1, "bspline": 3}


def mean_of_stacks(
    grid: Grid,
    stacks: Sequence[Stack],
    motions: Sequence[FloatArray],
    kind: Literal["linear", "bspline"],
    *,
    stop: Stop = never,
    advance: Advance = unheard,
) -> npt.NDArray[np.float32]:
    """The mean of interpolated stacks where they lie.

    Parameters
    ----------
    grid : Grid
        Of the result.
    stacks : sequence of Stack
    motions : sequence of (n, 4, 4) arrays
        For each stack the motion of its slices, all alike.
    kind : {"linear", "bspline"}
        Linear, or cubic B-splines mirrored at the borders.
    stop, advance : callables

    Returns
    -------
    (z, y, x) float32 array
        0 where no stack has a voxel that was measured.

    Raises
    ------
    Cancelled
    """
    from scipy.ndimage import affine_transform

    total = np.zeros(grid.shape, dtype=np.float32)
    count = np.zeros(grid.shape, dtype=np.float32)
    for number, (stack, motion) in enumerate(zip(stacks, motions, strict=True)):
        if stop():
            raise Cancelled
        source = stack.volume.grid.moved(motion[0])
        index_map = grid.map_into(source)
        seen = affine_transform(
            filled(stack.volume.data, stack.empty),
            index_map.matrix[:3, :3],
            index_map.matrix[:3, 3],
            output_shape=grid.shape,
            order=_ORDER[kind],
            mode="mirror" if kind == "bspline" else "nearest",
        )
        inside = covered(grid, source)
        if stack.empty:
            measured = np.ones(stack.volume.data.shape, dtype=bool)
            measured[stack.empty] = False
            inside &= nearest_values(Volume(measured, source.affine), grid)
        total[inside] += seen[inside]
        count += inside
        advance((number + 1) / len(stacks))
    np.divide(total, count, out=total, where=count > 0)
    return total
