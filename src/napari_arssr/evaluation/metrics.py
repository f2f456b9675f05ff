"""Peak signal-to-noise ratio and structural similarity of volumes, and data consistency.

The first two take the data range of the reference unless told another, and both can be limited to a
mask: background is easy to get right and inflates either. Volumes are worked through a few
slices at a time in float64, so that neither a large offset (CT numbers, raw scanner units) nor
a large volume is a difficulty. SSIM takes all cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError
from napari_arssr.evaluation.slices import cores
from napari_arssr.memory import available

if TYPE_CHECKING:
    from napari_arssr.degradation import ScannerModel
    from napari_arssr.volume import Volume

__all__ = ["data_consistency", "psnr", "ssim", "ssim_in"]

Array = npt.NDArray[Any]

# Wang et al. 2004: a Gaussian window, σ = 1.5 voxels, here cut off at 3.5 σ: 11 voxels wide.
_SIGMA = 1.5
_RADIUS = 5
_WINDOW = 2 * _RADIUS + 1
_SLICES = 16  # worked on at once
_BYTES = 140  # that scikit-image needs for each voxel of them
_VOXELS = 1 << 18  # worked on at once where voxels are independent


def psnr(
    reference: npt.ArrayLike,
    result: npt.ArrayLike,
    *,
    mask: npt.ArrayLike | None = None,
    data_range: float | None = None,
) -> float:
    """Peak signal-to-noise ratio, in decibels.

    PSNR = 10 log₁₀(L² / MSE), with L the data range and MSE the mean squared error
    (Huynh-Thu & Ghanbari, Electronics Letters 44(13), 2008).

    Parameters
    ----------
    reference, result : array
        Real numbers, of one shape.
    mask : array, optional
        Of the same shape; only voxels where it is not zero count.
    data_range : float, optional
        L. By default largest minus smallest finite value of the whole reference, with or
        without a mask.

    Returns
    -------
    float
        Infinite if the two are equal.

    Raises
    ------
    UsageError
        If the shapes differ, the arrays are not of real numbers, the mask is empty, the
        reference is constant, ``data_range`` is not above 0, or values that count are not
        finite.
    """
    truth, other, where = _checked(reference, result, mask)
    peak = _data_range(truth, data_range)
    _require_finite(truth, "reference", where)
    _require_finite(other, "result", where)
    total, count = 0.0, 0
    for part in _slabs(truth):
        difference = truth[part].astype(np.float64) - other[part]
        if where is not None:
            difference = difference[where[part]]
        total += float(np.square(difference).sum())
        count += difference.size
    error = total / count
    return 10 * math.log10(peak**2 / error) if error else math.inf


def ssim(
    reference: npt.ArrayLike,
    result: npt.ArrayLike,
    *,
    mask: npt.ArrayLike | None = None,
    data_range: float | None = None,
) -> float:
    """Mean structural similarity of two 3D volumes.

    In a Gaussian window (σ = 1.5 voxels along all three axes, 11 voxels wide) around each
    voxel, with means µ, variances σ² and covariance σ₁₂ (divided by n, not n - 1),

        SSIM = (2µ₁µ₂ + C₁)(2σ₁₂ + C₂) / ((µ₁² + µ₂² + C₁)(σ₁² + σ₂² + C₂)),

    C₁ = (0.01 L)², C₂ = (0.03 L)², L the data range (Wang et al., IEEE TIP 13, 2004; eq. 13).
    The map is scikit-image's ``structural_similarity`` with the settings it gives for this
    paper.

    Parameters
    ----------
    reference, result : (z, y, x) array
        Real numbers, of one shape, at least 11 voxels along every axis.
    mask : (z, y, x) array, optional
        The mean of the map is taken where it is not zero. Windows reach past its border, and
        are reflected at that of the volume. Without a mask the mean is over all voxels whose
        window lies inside the volume, as in scikit-image.
    data_range : float, optional
        L. By default largest minus smallest finite value of the whole reference, with or
        without a mask.

    Returns
    -------
    float
        At most 1; 1 if the two are equal.

    Raises
    ------
    UsageError
        If the shapes differ, an axis is too short, the arrays are not of real numbers, the
        mask is empty, the reference is constant, ``data_range`` is not above 0, or values are
        not finite (anywhere: windows reach past the mask).
    """
    return ssim_in(reference, result, [mask], data_range=data_range)[0]


def ssim_in(
    reference: npt.ArrayLike,
    result: npt.ArrayLike,
    masks: Sequence[npt.ArrayLike | None],
    *,
    data_range: float | None = None,
) -> list[float]:
    """:func:`ssim` in several masks, its map made once; None is the whole volume."""
    truth, other, _ = _checked(reference, result, None)
    if truth.ndim != 3:
        raise UsageError(f"SSIM takes volumes with 3 axes, not {truth.ndim}; score each frame.")
    if min(truth.shape) < _WINDOW:
        raise UsageError(
            f"SSIM looks through windows {_WINDOW} voxels wide, and the volume has only "
            f"{truth.shape} voxels; score it by PSNR, or score a larger part."
        )
    given = [_checked(truth, other, mask)[2] for mask in masks]
    peak = _data_range(truth, data_range)
    _require_finite(truth, "reference", None)
    _require_finite(other, "result", None)
    inside = np.zeros(truth.shape, dtype=bool)
    inside[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS] = True
    regions = [inside if region is None else region for region in given]

    def sums(part: slice) -> list[float]:
        inner = _similarity(truth, other, part, peak)
        return [float(inner[region[part]].sum()) for region in regions]

    with ThreadPoolExecutor(_threads(truth)) as pool:
        totals = np.sum(list(pool.map(sums, _slabs(truth, _SLICES))), axis=0)
    counts = [int(np.count_nonzero(region)) for region in regions]
    return [float(total) / count for total, count in zip(totals, counts, strict=True)]


def _threads(volume: Array) -> int:
    """All cores, or as many as have the memory to work at once."""
    each = _BYTES * (_SLICES + 2 * _RADIUS) * (volume.size // len(volume))
    return max(1, min(cores(), available() // 2 // each))


def _similarity(truth: Array, other: Array, part: slice, peak: float) -> Array:
    """SSIM's map of some slices."""
    from skimage.metrics import structural_similarity

    # As many slices around as the window needs, and never fewer than it is wide.
    depth = len(truth)
    start = max(min(part.start - _RADIUS, depth - _WINDOW), 0)
    stop = min(max(part.stop + _RADIUS, _WINDOW), depth)
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        truth[start:stop].astype(np.float64),
        other[start:stop].astype(np.float64),
        data_range=peak,
        gaussian_weights=True,
        sigma=_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return np.asarray(similarity[part.start - start : part.stop - start])


def data_consistency(result: Volume, low: Volume, scanner: ScannerModel) -> float:
    """How near a result, measured again by the scanner, comes to what it was made from.

    Parameters
    ----------
    result : Volume
        On a grid of the span of ``low``.
    low : Volume
        The input y.
    scanner : ScannerModel
        The one that made it, A.

    Returns
    -------
    float
        PSNR of A x against y in decibels, over the range of y: infinite where nothing is
        amiss. Noise in the input bounds what a good result can reach.
    """
    return psnr(low.data, scanner.measure(result, low.grid).data)


def _checked(
    reference: npt.ArrayLike, result: npt.ArrayLike, mask: npt.ArrayLike | None
) -> tuple[Array, Array, npt.NDArray[np.bool_] | None]:
    truth, other = np.asarray(reference), np.asarray(result)
    for name, array in (("reference", truth), ("result", other)):
        if array.dtype.kind not in "biuf":
            raise UsageError(
                f"The {name} holds {array.dtype} and not real numbers; it cannot be scored."
            )
    if truth.shape != other.shape:
        raise UsageError(
            f"The reference has {truth.shape} voxels and the result {other.shape}: bring both "
            "to one grid before scoring."
        )
    if not truth.size or not truth.ndim:
        raise UsageError(f"There is nothing to score in a volume of shape {truth.shape}.")
    if mask is None:
        return truth, other, None
    where = np.asarray(mask) != 0
    if where.shape != truth.shape:
        raise UsageError(
            f"The mask has {where.shape} voxels and the volumes have {truth.shape}: bring both "
            "to one grid before scoring."
        )
    if not where.any():
        raise UsageError("The mask is empty: there is no voxel to score.")
    return truth, other, where


def _data_range(reference: Array, given: float | None) -> float:
    if given is not None:
        if not 0 < given < math.inf:
            raise UsageError(f"data_range must be above 0, not {given!r}.")
        return float(given)
    low, high = math.inf, -math.inf
    for part in _slabs(reference):
        values = reference[part]
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise UsageError("The reference holds no finite value; it cannot be scored.")
    if low == high:
        raise UsageError(
            f"The reference is {low:g} everywhere and has no data range: give data_range, or "
            "score another reference."
        )
    return high - low


def _require_finite(array: Array, name: str, where: npt.NDArray[np.bool_] | None) -> None:
    count = 0
    for part in _slabs(array):
        bad = ~np.isfinite(array[part])
        count += int(np.count_nonzero(bad if where is None else bad & where[part]))
    if count:
        inside = "" if where is None else " inside the mask"
        values = "a value that is" if count == 1 else f"{count} values that are"
        raise UsageError(
            f"The {name} has {values} not finite (NaN or infinite){inside}: replace them, or "
            "score a part without them."
        )


def _slabs(array: Array, thickness: int | None = None) -> Iterator[slice]:
    """Cut the first axis; by default into slabs of about ``_VOXELS``."""
    step = thickness or max(1, _VOXELS * len(array) // array.size)
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))
