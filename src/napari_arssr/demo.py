"""``make demo``: a real scan made sharper, as a file, a picture and a number.

The scan is one that nibabel installs: an oblique brain volume of 2 × 2 × 2.2 mm. It is
upsampled to 0.8 mm and drawn beside its input and cubic interpolation. So that there is a
number too, it is measured again with voxels of twice the size by the scanner model and
brought back, by cubic interpolation and by the network, and both are compared with the scan.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import napari_arssr
from napari_arssr import samples
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import ArssrError
from napari_arssr.evaluation import psnr, ssim
from napari_arssr.field import CubicField
from napari_arssr.normalization import Normalizer
from napari_arssr.terminal import warn
from napari_arssr.volume import Box, Volume

__all__ = ["Score", "main", "picture", "round_trip"]

_FINE_MM = 0.8
_SCALE = 2.0
_CAPTION_INCHES = 0.6


@dataclass(frozen=True)
class Score:
    """How near a method comes to the scan: PSNR in dB, and SSIM, inside the head."""

    method: str
    psnr: float
    ssim: float


def round_trip(scan: Volume, scale: float = _SCALE) -> list[Score]:
    """Measure a scan with coarser voxels, bring it back, and compare.

    Parameters
    ----------
    scan : Volume
        3D; the reference.
    scale : float
        Voxels of the scan per coarse voxel; Gaussian point-spread function, its full width at
        half maximum one coarse voxel.

    Returns
    -------
    list of Score
        Cubic interpolation and the network, in the head (a tenth of the range and above).
    """
    coarse = ScannerModel("gaussian").measure(scan, scan.grid.scaled(1 / scale))
    results = {
        "cubic": CubicField(coarse).sample(scan.grid),
        "napari-arssr": napari_arssr.upsample(coarse, shape=scan.grid.shape),
    }
    head = Normalizer.fit(scan.data).normalize(scan.data) > 0.1
    return [
        Score(
            method,
            psnr(scan.data, result.data, mask=head),
            ssim(scan.data, result.data, mask=head),
        )
        for method, result in results.items()
    ]


def picture(volumes: dict[str, Volume], inches_per_mm: float = 0.025) -> bytes:
    """Volumes of one span side by side: a column each, three planes through the middle.

    Everything is drawn at one scale, cut to the head, as blocks of its own voxels, so that the
    picture shows the voxels there are; superior or anterior is on top.

    Returns
    -------
    bytes
        A PNG file, 100 pixels an inch.
    """
    from matplotlib.figure import Figure

    first = next(iter(volumes.values()))
    shown = Normalizer.fit(first.data)
    head = Box.around(shown.normalize(first.data) > 0.1)
    parts = {
        name: whole.crop(first.grid.box_in(whole.grid, head)) for name, whole in volumes.items()
    }
    depth, height, width = (max(p.grid.extent[axis] for p in parts.values()) for axis in range(3))
    rows, column = (height, depth, depth), max(width, height)
    inches = (column * len(parts) * inches_per_mm, sum(rows) * inches_per_mm + _CAPTION_INCHES)
    figure = Figure(inches, facecolor="black", layout="compressed")
    places = figure.subplots(3, len(parts), squeeze=False, gridspec_kw={"height_ratios": rows})
    for (name, volume), down in zip(parts.items(), places.T, strict=True):
        sides = [f"{size:.3g}" for size in volume.spacing[::-1]]
        spacing = " × ".join(sides if len(set(sides)) > 1 else sides[:1])
        down[0].set_title(f"{name}, {spacing} mm", color="white")
        for axis, (axes, row) in enumerate(zip(down, rows, strict=True)):
            plane = shown.normalize(np.take(volume.data, volume.data.shape[axis] // 2, axis=axis))
            high, wide = (mm / 2 for other, mm in enumerate(volume.grid.extent) if other != axis)
            axes.imshow(
                plane,
                "gray",
                vmin=0,
                vmax=1,
                origin="lower",
                interpolation="nearest",
                extent=(-wide, wide, -high, high),
            )
            # As wide as the column, whatever the plane: so all have one scale.
            axes.set(xlim=(-column / 2, column / 2), ylim=(-row / 2, row / 2))
            axes.set_axis_off()
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=100, bbox_inches="tight", pad_inches=0.05)
    return written.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m napari_arssr.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    options = parser.parse_args(arguments)
    try:
        _demo(options.out)
    except ArssrError as error:
        warn(str(error))
        return 1
    except KeyboardInterrupt:
        warn("interrupted.")
        return 130
    return 0


def _demo(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scan = samples.scan()
    print(f"Scan:   {_describe(scan)}", flush=True)
    result = napari_arssr.upsample(scan, spacing=_FINE_MM, progress=_Dots())
    print(f"\nResult: {_describe(result)}")
    volume_file = napari_arssr.write(folder / "upsampled.nii.gz", result)
    cubic = CubicField(scan).sample(result.grid)
    picture_file = folder / "comparison.png"
    drawn = picture({"input": scan, "cubic": cubic, "napari-arssr": result})
    picture_file.write_bytes(drawn)
    print(f"\nMeasured again with voxels {_SCALE:g} times as large, and brought back:\n")
    print(f"  {'':14} PSNR, dB    SSIM")
    for score in round_trip(scan):
        print(f"  {score.method:14} {score.psnr:8.2f} {score.ssim:7.4f}")
    print(f"\nWrote {volume_file} and {picture_file}.")


def _describe(volume: Volume) -> str:
    shape = " × ".join(map(str, volume.grid.shape[::-1]))
    spacing = " × ".join(f"{size:.3g}" for size in volume.spacing[::-1])
    return f"{shape} voxels of {spacing} mm"


class _Dots:
    """A dot for each twentieth of the work."""

    def __init__(self) -> None:
        self._printed = 0

    def __call__(self, share: float, _stage: Any) -> None:
        while self._printed < int(share * 20):
            self._printed += 1
            print(".", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
