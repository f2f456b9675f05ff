"""Real values as stored numbers, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError

__all__ = ["cast", "real_dtype", "real_values"]


def cast(
    array: npt.ArrayLike, dtype: npt.DTypeLike, slope: float = 1.0, intercept: float = 0.0
) -> npt.NDArray[Any]:
    """Real values as stored numbers: (value - intercept) / slope, rounded and clipped.

    Nothing wraps around: what is too large for an integer type becomes its largest number, and
    so for too small and for narrower floats (where infinities stay infinite). NaN becomes the
    integer nearest to the real value 0. Halves are rounded to even.

    Parameters
    ----------
    array : array of real numbers
    dtype : dtype
        Integer or floating-point.
    slope, intercept : float
        Scale factors of the file.

    Returns
    -------
    array
        A new array, or the given one where there is nothing to change.
    """
    array = np.asarray(array)
    dtype = np.dtype(dtype)
    if slope == 1 and intercept == 0:
        if array.dtype == dtype:
            return array
        if array.dtype.kind in "iub" and dtype.kind in "iu":
            return _clip_integers(array, dtype)
        values = array.astype(np.result_type(array.dtype, np.float32), copy=False)
        zero = 0.0
    else:
        values = (array.astype(np.float64) - intercept) / slope
        zero = -intercept / slope
    with np.errstate(invalid="ignore", over="ignore"):
        if dtype.kind == "f":
            stored = values.astype(dtype, copy=False)
            over = np.isinf(stored) & np.isfinite(values)
            if over.any():
                stored[over] = np.copysign(np.finfo(dtype).max, values[over])
            return stored
        info = np.iinfo(dtype)
        missing = np.isnan(values)
        values = np.rint(np.where(missing, zero, values) if missing.any() else values)
        stored = values.astype(dtype)
        # Compared, not clipped: float(2⁶³ - 1) is 2⁶³, and a clip would let it wrap.
        stored[values >= float(info.max)] = info.max
        stored[values <= float(info.min)] = info.min
    return stored


def _clip_integers(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if np.can_cast(array.dtype, dtype):
        return array.astype(dtype)
    have, want = np.iinfo(array.dtype), np.iinfo(dtype)
    low, high = max(have.min, want.min), min(have.max, want.max)
    return np.asarray(np.clip(array, low, high).astype(dtype))


def real_values(stored: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """Stored numbers · slope + intercept, in native byte order.

    Raises
    ------
    UsageError
        If one of them is larger than their type can hold.
    """
    dtype = real_dtype(stored.dtype, slope, intercept)
    if slope == 1 and intercept == 0:
        return stored.astype(dtype, copy=False)
    real = np.empty(stored.shape, dtype)
    # Plane by plane in float64: rounded once, without a float64 copy of the whole volume.
    try:
        with np.errstate(over="raise"):
            for index in np.ndindex(stored.shape[:-2]):
                real[index] = stored[index] * np.float64(slope) + np.float64(intercept)
    except FloatingPointError:
        raise UsageError(
            f"The scale factors {slope:g} and {intercept:g} make values that {dtype} cannot hold."
        ) from None
    return real


def real_dtype(dtype: np.dtype[Any], slope: float, intercept: float) -> np.dtype[Any]:
    """Number type of real values: the stored one's, or float32 of scaled integers."""
    native = dtype.newbyteorder("=")
    scaled = slope != 1 or intercept != 0
    return np.dtype(np.float32) if scaled and native.kind != "f" else native
