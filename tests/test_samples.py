"""Samples come with the package, or say clearly that they must be downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests
from skimage import data

from napari_arssr import samples
from napari_arssr.errors import FileError


def test_the_scan_that_nibabel_installs_is_an_oblique_brain() -> None:
    scan = samples.scan()
    assert scan.grid.shape == (24, 96, 128)
    np.testing.assert_allclose(scan.spacing, (2.2, 2.0, 2.0), atol=1e-3)
    assert np.count_nonzero(np.abs(scan.affine[:3, :3]) > 1e-3) > 3


def test_the_phantom_has_the_voxels_asked_for() -> None:
    phantom = samples.phantom(spacing=(6.0, 4.0, 4.0))
    np.testing.assert_allclose(phantom.spacing, (6.0, 4.0, 4.0))
    assert phantom.data.max() > 500


def test_downloaded_samples_have_their_voxel_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.arange(8 * 2 * 3 * 3, dtype=np.uint16).reshape(8, 2, 3, 3)
    monkeypatch.setattr(data, "cells3d", lambda: cells)
    nuclei = samples.nuclei()
    np.testing.assert_array_equal(nuclei.data, cells[::4, 1])
    np.testing.assert_allclose(nuclei.spacing, (1.16e-3, 0.26e-3, 0.26e-3))


@pytest.mark.parametrize("sample", [samples.brain, samples.nuclei])
def test_without_a_network_the_way_out_is_named(
    sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(data, "brain", fail)
    monkeypatch.setattr(data, "cells3d", fail)
    with pytest.raises(FileError, match=r"could not be downloaded.*scan and phantom"):
        sample()
