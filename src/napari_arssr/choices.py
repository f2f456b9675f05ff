"""Words to choose from, of settings that several rooms know; nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = [
    "BASELINES",
    "CACHES",
    "DECODERS",
    "ENCODERS",
    "FIT_METHODS",
    "METRICS",
    "MOTIONS",
    "NORMALIZATIONS",
    "ORIENTATIONS",
    "PENALTIES",
    "PRECISIONS",
    "PRESETS",
    "SCALES",
    "SCANNER_KINDS",
    "SCHEDULES",
    "SIMILARITIES",
    "STRATEGIES",
    "BaselineName",
    "Cache",
    "DecoderName",
    "EncoderName",
    "FitMethod",
    "Motion",
    "Normalization",
    "Penalty",
    "Precision",
    "PresetName",
    "ScannerKind",
    "Schedule",
    "Similarity",
    "Strategy",
]

Normalization = Literal["percentile", "minmax", "none"]
"""How intensities are brought to [0, 1]: :meth:`napari_arssr.normalization.Normalizer.fit`."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Number formats of networks: :func:`napari_arssr.devices.choose_precision`."""
ScannerKind = Literal["gaussian", "slice-profile", "kspace", "cubic"]
"""Scanner models: :class:`napari_arssr.degradation.ScannerModel`."""
PresetName = Literal["default", "paper"]
"""Ours, or as published: of training and of fits."""

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCANNER_KINDS: tuple[ScannerKind, ...] = get_args(ScannerKind)
PRESETS: tuple[PresetName, ...] = get_args(PresetName)

ORIENTATIONS = (1, 3, 6, 12)
"""How many orientations a result may be the mean of: :mod:`napari_arssr.models.orientation`."""

# Networks and their training ----------------------------------------------------------------------

EncoderName = Literal["RDN", "ResCNN", "SRResNet"]
"""Encoders of ArSSR: :mod:`napari_arssr.models.encoders`."""
DecoderName = Literal["published", "residual"]
"""Decoders of ArSSR: :mod:`napari_arssr.models.decoders`."""
BaselineName = Literal["SRCNN3D", "DCSRN", "ResCNN"]
"""The papers' rivals, one network for each scale: :mod:`napari_arssr.models.baselines`."""
Cache = Literal["memory", "none"]
"""Where training volumes are held: :class:`napari_arssr.training.config.DataConfig`."""
Schedule = Literal["cosine", "step", "constant"]
"""Learning rates: :meth:`napari_arssr.training.progress.Plan.rate`."""
Strategy = Literal["auto", "ddp"]
"""How training is spread over devices: :class:`napari_arssr.training.config.MachineConfig`."""

ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
CACHES: tuple[Cache, ...] = get_args(Cache)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# Fits of several stacks ---------------------------------------------------------------------------

FitMethod = Literal["default", "srr", "irem", "bspline", "linear"]
"""How stacks become one volume: :class:`napari_arssr.fitting.Settings`."""
Similarity = Literal["correlation", "mutual-information"]
"""What registration makes the most of: :func:`napari_arssr.fitting.registration.register`."""
Motion = Literal["none", "stacks", "slices"]
"""What moves during a fit: :mod:`napari_arssr.fitting.refinement`."""
Penalty = Literal["tv", "tikhonov"]
"""Priors of super-resolution reconstruction: :mod:`napari_arssr.fitting.srr`."""

FIT_METHODS: tuple[FitMethod, ...] = get_args(FitMethod)
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
PENALTIES: tuple[Penalty, ...] = get_args(Penalty)

# Evaluation ---------------------------------------------------------------------------------------

METRICS = ("psnr", "ssim", "lpips", "psi", "lpc-si", "consistency", "dice")
"""What results are scored by: :mod:`napari_arssr.evaluation.scoring`."""
SCALES = (2.0, 2.5, 3.0, 3.5, 4.0)
"""At which results are scored if nothing else is asked for, as in the ArSSR paper."""
