"""Words to choose from, of settings that several rooms know; nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = [
    "NORMALIZATIONS",
    "ORIENTATIONS",
    "PRECISIONS",
    "SCANNER_KINDS",
    "Normalization",
    "Precision",
    "ScannerKind",
]

Normalization = Literal["percentile", "minmax", "none"]
"""How intensities are brought to [0, 1]: :meth:`napari_arssr.normalization.Normalizer.fit`."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Number formats of networks: :func:`napari_arssr.devices.choose_precision`."""
ScannerKind = Literal["gaussian", "slice-profile", "kspace", "cubic"]
"""Scanner models: :class:`napari_arssr.degradation.ScannerModel`."""

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCANNER_KINDS: tuple[ScannerKind, ...] = get_args(ScannerKind)

ORIENTATIONS = (1, 3, 6, 12)
"""How many orientations a result may be the mean of: :mod:`napari_arssr.models.orientation`."""
