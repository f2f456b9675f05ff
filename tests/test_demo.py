from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from napari_arssr import demo
from napari_arssr.volume import Volume


def block(spacing: float) -> Volume:
    """A bright block of 20 × 32 × 40 mm in the middle of 40 × 48 × 56 mm."""
    data = np.zeros([round(mm / spacing) for mm in (40, 48, 56)], dtype=np.float32)
    inner = tuple(slice(round(a / spacing), -round(a / spacing)) for a in (10, 8, 8))
    data[inner] = 100
    # Not constant, as no scan is.
    data[inner] += np.linspace(0, 50, data[inner].shape[0])[:, None, None]
    return Volume(data, np.diag([spacing, spacing, spacing, 1.0]), name=f"{spacing:g}")


def test_the_picture_shows_every_volume_and_plane_at_one_scale():
    made = demo.picture({"coarse": block(4.0), "fine": block(1.0)}, inches_per_mm=0.1)
    with Image.open(BytesIO(made)) as opened:
        bright = np.asarray(opened.convert("L"), dtype=int) > 0
    height, width = bright.shape
    assert width == pytest.approx(2 * 40 * 10, rel=0.08)  # two columns of the widest plane
    below = bright[int(0.08 * height) :]  # not the names
    halves = below[:, : width // 2], below[:, width // 2 :]
    # Across each axis: 32 × 40, 20 × 40 and 20 × 32 mm; a coarse voxel more or less.
    for half in halves:
        assert half.sum() / 100 == pytest.approx(32 * 40 + 20 * 40 + 20 * 32, rel=0.15)


def test_what_the_demo_prints_is_measured_against_the_scan():
    scores = demo.round_trip(block(2.0))
    assert [score.method for score in scores] == ["cubic", "napari-arssr"]
    for score in scores:
        assert 10 < score.psnr < 60
        assert 0 < score.ssim < 1
