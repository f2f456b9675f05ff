"""LPC-SI: the sharpness of a picture by its local phase coherence.

Hassen, Wang & Salama, "Image sharpness assessment based on local phase coherence", IEEE
Transactions on Image Processing 22(7), 2798-2810, 2013.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["filters", "lpc_si"]

Array = npt.NDArray[np.floating[Any]]

_SCALES = (1.0, 1.5, 2.0)
_ORIENTATIONS = 8
_C = 2.0
_BETA = 1e-4
_SHORTEST_WAVE = 4.0  # pixels, of the finest scale
_BANDWIDTH = 0.75  # of the log-Gabor filters: ratio of spread to centre frequency
_ANGULAR = 1.5  # orientation step over the angular spread
_CUTOFF, _STEEPNESS = 0.45, 15  # of the low-pass that rounds the corners of the spectrum


def lpc_si(picture: Array) -> float:
    """Sharpness from 0 to 1 by the coherence of local phase over scales.

    Log-Gabor filters of three scales (1, 3/2, 2 times four pixels) and eight orientations give
    complex responses c₁, c₂, c₃. Where structure is sharp their phases are coherent: the
    phase of c₁ · c₂⁻³ · c₃² is near 0, and its cosine (negative ones count as 0) near 1. At
    each pixel the mean over orientations is taken, weighted by the energy |c₁| beyond its mean
    plus two standard deviations, with C = 2 in the denominator; then the mean over pixels,
    sorted from the most coherent, weighted by exp(-rank / (β (N - 1))), β = 10⁻⁴. A border of
    a sixteenth of the picture is left out.

    The filter bank is that of the authors' release 1.0: of bandwidth 0.75 along the radius, with
    a spread over angles of two thirds of the step between them.

    C makes the index depend on the intensities' scale: they are 0 to 255.

    Parameters
    ----------
    picture : (rows, columns) array
        Intensities from 0 to 255.

    Returns
    -------
    float
        NaN if the picture is too small to have an inside (below 8 pixels).
    """
    from scipy import fft

    rows, columns = picture.shape
    if min(rows, columns) < 8:
        return float("nan")
    border = int(np.floor(min(rows, columns) / 16 + 0.5))
    inside = np.s_[border : rows - border, border : columns - border]
    spectrum = fft.fft2(np.asarray(picture, dtype=np.float32))
    bank = filters(rows, columns)
    coherence = np.zeros(picture.shape, dtype=np.float32)
    weight = np.full(picture.shape, np.float32(_C))
    for bank_of_orientation in bank:
        # One transform for the three scales; only the inside is looked at.
        fine, middle, coarse = fft.ifft2(bank_of_orientation * spectrum, overwrite_x=True)
        fine, middle, coarse = fine[inside], middle[inside], coarse[inside]
        energy = np.abs(fine)
        threshold = energy.mean(dtype=np.float64) + 2 * energy.std(ddof=1, dtype=np.float64)
        row, column = np.nonzero(energy > threshold)
        if not row.size:
            continue
        # Few pixels have energy to count: only theirs is worked out.
        strong = energy[row, column] - np.float32(threshold)
        a, b, c = (part[row, column].astype(np.complex128) for part in (fine, middle, coarse))
        phase = np.angle(a) - 3 * np.angle(b) + 2 * np.angle(c)
        at = (row + border, column + border)
        coherence[at] += np.maximum(np.cos(phase), 0).astype(np.float32) * strong
        weight[at] += strong
    values = (coherence / weight)[inside].ravel()
    count = values.size
    # Beyond 40 β (N - 1) the weights are below e⁻⁴⁰.
    kept = min(count, int(np.ceil(40 * _BETA * (count - 1))) + 1)
    top = -np.sort(-np.partition(values, count - kept)[count - kept :].astype(np.float64))
    rank = np.exp(-np.arange(kept) / (max(count - 1, 1) * _BETA))
    return float((top * rank).sum() / rank.sum())


@lru_cache(maxsize=8)
def filters(rows: int, columns: int) -> npt.NDArray[np.float32]:
    """The filter bank in the frequency domain, (orientation, scale, rows, columns)."""
    y, x = np.meshgrid(_frequencies(rows), _frequencies(columns), indexing="ij")
    radius = np.hypot(y, x)
    lowpass = 1 / (1 + (radius / _CUTOFF) ** (2 * _STEEPNESS))
    radius[0, 0] = 1
    theta = np.arctan2(-y, x)
    radial = []
    for scale in _SCALES:
        centre = 1 / (_SHORTEST_WAVE * scale)
        wave = np.exp(-(np.log(radius / centre) ** 2) / (2 * np.log(_BANDWIDTH) ** 2)) * lowpass
        wave[0, 0] = 0
        radial.append(wave)
    spread = np.pi / _ORIENTATIONS / _ANGULAR
    bank = np.empty((_ORIENTATIONS, len(_SCALES), rows, columns), dtype=np.float32)
    for number in range(_ORIENTATIONS):
        angle = number * np.pi / _ORIENTATIONS
        distance = np.angle(np.exp(1j * (theta - angle)))
        angular = np.exp(-(distance**2) / (2 * spread**2))
        for place, wave in enumerate(radial):
            bank[number, place] = wave * angular
    bank.setflags(write=False)
    return bank


def _frequencies(size: int) -> Array:
    """Cycles per pixel in the order of an FFT; an odd size reaches ±½ as in the published code."""
    if size % 2:
        return np.fft.ifftshift(np.arange(-(size - 1) / 2, (size - 1) / 2 + 1) / (size - 1))
    return np.fft.fftfreq(size)
