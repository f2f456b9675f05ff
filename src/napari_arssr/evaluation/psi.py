"""PSI: the perceptual sharpness index of a picture.

Feichtenhofer, Fassold & Schallauer, "A perceptual image sharpness metric based on local edge
gradient analysis", IEEE Signal Processing Letters 20(4), 379-382, 2013.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["psi"]

FloatArray = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

_BLOCK = 32
_SHARPEST = 0.22  # share of the blocks that decide
_LEAST_WIDTH = 2.0  # sum of widths below which a block says nothing
_TOLERANCE = np.deg2rad(8)  # of the gradient's direction about the axes
_JUST_NOTICEABLE = 3.0
_STRENGTH = 4.0  # an edge's squared gradient, in means of the picture


def psi(picture: FloatArray) -> float:
    """Sharpness: one over the mean width of edges in the sharpest blocks.

    An edge is a Sobel gradient above the picture's own threshold (squared: four times its
    mean), thinned to its crest. Where the gradient is within 8° of an axis, the edge's width is
    the distance between the two extremes that bound the slope along that axis, divided by the
    cosine of the angle. Widths of at least three pixels, the width of just noticeable blur, are
    lessened by the slope's steepness. Widths are averaged in blocks of 32 × 32 pixels, those at
    the border left out, and the score is the inverse mean of the sharpest 22 % of the blocks.
    As in the paper, edges along both axes count; the authors' program measures one axis only, so
    that its values are others.

    Parameters
    ----------
    picture : (rows, columns) array
        Intensities in [0, 1].

    Returns
    -------
    float
        1 per pixel; larger is sharper. 0 if no block holds an edge; NaN if the picture has no
        block that does not touch the border (fewer than 96 pixels along an axis).
    """
    rows, columns = (n // _BLOCK for n in picture.shape)
    if min(rows, columns) < 3:
        return float("nan")
    picture = np.ascontiguousarray(picture, dtype=np.float64)
    edges = _edges(picture)
    gradient_y, gradient_x = (np.gradient(picture, axis=axis) for axis in (0, 1))
    widths = np.zeros_like(picture)
    for axis, along, across in ((0, gradient_y, gradient_x), (1, gradient_x, gradient_y)):
        angle = np.arctan2(np.abs(across), np.abs(along))
        chosen = edges & (angle < _TOLERANCE) & (along != 0)
        if chosen.any():
            widths += _widths(picture, axis, along, angle, chosen)
    inner = widths[: rows * _BLOCK, : columns * _BLOCK]
    blocks = inner.reshape(rows, _BLOCK, columns, _BLOCK)[1:-1, :, 1:-1]
    total = blocks.sum(axis=(1, 3))
    count = np.count_nonzero(blocks, axis=(1, 3))
    means = np.sort((total / np.maximum(count, 1))[total >= _LEAST_WIDTH])
    used = int(np.ceil(_SHARPEST * means.size))
    return used / float(means[:used].sum()) if used else 0.0


def _edges(picture: FloatArray) -> Mask:
    """Crests of the Sobel gradient above the threshold."""
    across = ndimage.sobel(picture, axis=1, mode="nearest") / 8
    down = ndimage.sobel(picture, axis=0, mode="nearest") / 8
    strength = across**2 + down**2
    # Differences of rounding do not decide which of two equal gradients is the larger.
    across, down = np.abs(across) + 1e-14, np.abs(down) + 1e-14
    padded = np.pad(strength, 1, constant_values=-1.0)
    middle = padded[1:-1, 1:-1]
    crest_x = (padded[1:-1, :-2] <= middle) & (middle > padded[1:-1, 2:]) & (across >= down)
    crest_y = (padded[:-2, 1:-1] <= middle) & (middle > padded[2:, 1:-1]) & (down >= across)
    found: Mask = (strength > _STRENGTH * strength.mean()) & (crest_x | crest_y)
    return found


def _widths(
    picture: FloatArray, axis: int, along: FloatArray, angle: FloatArray, chosen: Mask
) -> FloatArray:
    """Widths of the chosen edges, whose gradient runs along an axis; 0 elsewhere."""
    if axis == 1:
        turned = _widths(picture.T, 0, along.T, angle.T, chosen.T)
        return turned.T
    # Rising pixels up to the extreme on either side, in the gradient's own direction: where
    # the picture falls along the axis, the negative rises.
    result = np.zeros_like(picture)
    for sign in (1.0, -1.0):
        signed = picture * sign
        rises = np.diff(signed, axis=0) > 0  # rises[i]: from i to i + 1
        forward, reaches_end = _run(rises[::-1])
        backward, reaches_start = _run(rises)
        # What follows pixel i are rises i, i + 1, …; what leads to it are i - 1, i - 2, …
        ahead = np.vstack([forward[::-1], np.zeros((1, picture.shape[1]), dtype=int)])
        open_ahead = np.vstack([reaches_end[::-1], np.ones((1, picture.shape[1]), dtype=bool)])
        behind = np.vstack([np.zeros((1, picture.shape[1]), dtype=int), backward])
        open_behind = np.vstack([np.ones((1, picture.shape[1]), dtype=bool), reaches_start])
        here = chosen & (along * sign > 0) & ~open_ahead & ~open_behind
        row, column = np.nonzero(here)
        after, before = ahead[row, column], behind[row, column]
        width = (after + before) / np.cos(angle[row, column])
        height = signed[row + after, column] - signed[row - before, column]
        steepness = np.divide(height, width, out=np.zeros_like(width), where=width > 0)
        result[row, column] = width - np.where(width >= _JUST_NOTICEABLE, steepness, 0)
    return result


def _run(flags: Mask) -> tuple[npt.NDArray[np.int64], Mask]:
    """How many true flags in a row end at each place, and whether they begin at the first."""
    number = np.arange(1, len(flags) + 1)[:, None]
    last_false = np.maximum.accumulate(np.where(flags, 0, number), axis=0)
    length = np.asarray(number - last_false, dtype=np.int64)
    return length, last_false == 0
