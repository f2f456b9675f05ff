"""Intensities: networks see [0, 1], results come back in the input's units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError

__all__ = ["Method", "Normalizer"]

Method = Literal["percentile", "minmax", "none"]

# Percentiles, so that a few hot voxels do not squeeze all tissue into a corner of [0, 1].
_LOW, _HIGH = 0.1, 99.9


@dataclass(frozen=True)
class Normalizer:
    """The line that maps ``low`` to 0 and ``high`` to 1, and back.

    Values beyond the two are mapped by the same line, never clipped.
    """

    low: float = 0.0
    high: float = 1.0

    @classmethod
    def fit(cls, array: npt.NDArray[Any], method: Method = "percentile") -> Normalizer:
        """Fit to an array, non-finite values left out.

        Parameters
        ----------
        array : array of any shape
        method : {"percentile", "minmax", "none"}
            ``percentile``: the 0.1th and 99.9th percentile (default). ``minmax``: the extremes,
            as the published networks were trained. ``none``: values are in [0, 1] already.

        Raises
        ------
        UsageError
            If no value is finite, or the method is unknown.
        """
        if method not in get_args(Method):
            raise UsageError(
                f"There is no normalisation {method!r}: choose {', '.join(get_args(Method))}."
            )
        if method == "none":
            return cls()
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array.ravel()
        if finite.size == 0:
            raise UsageError("The volume holds no finite value: there is nothing to upsample.")
        if method == "minmax":
            low, high = float(finite.min()), float(finite.max())
        else:
            # Every n-th voxel settles a percentile to far below what a network can notice.
            thinned = finite[:: max(1, finite.size // 4_000_000)].astype(np.float64)
            low, high = (float(v) for v in np.percentile(thinned, [_LOW, _HIGH]))
            if low == high:
                low, high = float(finite.min()), float(finite.max())
        # A constant volume maps to 0 and back to itself.
        return cls(low, high if high > low else low + max(1.0, abs(low)))

    def normalize(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """To network units, float32; non-finite values become 0, the darkest."""
        if array.dtype.kind == "f":
            array = np.where(np.isfinite(array), array, array.dtype.type(self.low))
        # Subtract in float64: float32 has 24 bits, and offsets can be large beside the range.
        centred = (array.astype(np.float64) - self.low) / (self.high - self.low)
        return centred.astype(np.float32)

    def restore(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """From network units to the input's, float32."""
        scaled = array.astype(np.float32, copy=False) * np.float32(self.high - self.low)
        return np.asarray(scaled + np.float32(self.low), dtype=np.float32)
