"""How near a result comes to its reference."""

from __future__ import annotations

from napari_arssr.evaluation.metrics import psnr, ssim

__all__ = ["psnr", "ssim"]
