"""Samples come with the package, or say clearly that they must be downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.affines import apply_affine
from sample_server import BRAIN, CELLS, Server, serving, tiff
from skimage.data import _registry

from napari_arssr import samples
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, FileError
from napari_arssr.phantom import Phantom


def test_the_scan_that_nibabel_installs_is_an_oblique_brain() -> None:
    scan = samples.scan()
    assert scan.grid.shape == (24, 96, 128)
    np.testing.assert_allclose(scan.spacing, (2.2, 2.0, 2.0), atol=1e-3)
    assert np.count_nonzero(np.abs(scan.affine[:3, :3]) > 1e-3) > 3


def test_the_phantom_has_the_voxels_asked_for() -> None:
    phantom = samples.phantom(spacing=(6.0, 4.0, 4.0))
    np.testing.assert_allclose(phantom.spacing, (6.0, 4.0, 4.0))
    assert phantom.data.max() > 500


def test_the_phantoms_reference_is_exact_and_its_scan_is_measured_from_it() -> None:
    calls: list[tuple[int, int | None]] = []
    model = ScannerModel("slice-profile")
    low, reference = samples.phantom_pair(
        (3, 1, 1), model, spacing=6.0, progress=lambda done, total: calls.append((done, total))
    )
    np.testing.assert_allclose(reference.spacing, (6, 6, 6))
    exact = Phantom().intensity(
        apply_affine(reference.affine, np.argwhere(np.ones(reference.data.shape))[:, ::-1])
    )
    np.testing.assert_allclose(reference.data.ravel(), exact, rtol=1e-5, atol=1e-3)
    grid = reference.grid.scaled((1 / 3, 1, 1))
    assert low.grid == grid
    np.testing.assert_array_equal(low.data, model.measure(reference, grid).data)
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert len(calls) > 1
    assert {total for _, total in calls} == {len(calls)}


def test_the_phantom_can_be_cancelled() -> None:
    with pytest.raises(Cancelled):
        samples.phantom_pair(2, spacing=6.0, stop=lambda: True)


# Downloads -----------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path) as listening:
        yield listening


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "samples").iterdir())


def test_downloaded_samples_have_their_voxel_sizes(server: Server) -> None:
    brain = samples.brain()
    np.testing.assert_array_equal(brain.data, BRAIN)
    np.testing.assert_allclose(brain.spacing, (5, 1, 1))
    membranes, nuclei = samples.cells()
    np.testing.assert_array_equal(membranes.data, CELLS[:, 0])
    np.testing.assert_array_equal(nuclei.data, CELLS[:, 1])
    np.testing.assert_allclose(nuclei.spacing, (0.29e-3, 0.26e-3, 0.26e-3))
    coarse = samples.nuclei()
    np.testing.assert_array_equal(coarse.data, CELLS[::4, 1])
    np.testing.assert_allclose(coarse.spacing, (1.16e-3, 0.26e-3, 0.26e-3))
    # Every plane that is kept stays where it was.
    np.testing.assert_allclose(coarse.grid.world([1, 2, 3]), nuclei.grid.world([4, 2, 3]))


def test_a_sample_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    size = len(server.files["/brain.tiff"])
    for _ in range(2):
        samples.brain(progress=lambda done, total: calls.append((done, total)))
    assert server.asked == ["/brain.tiff"]
    assert calls[-1] == (size, size)
    assert cached(tmp_path) == ["brain.tiff"]


def test_scikit_images_own_copy_is_taken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skimage.data.data_dir", str(tmp_path))
    (tmp_path / "brain.tiff").write_bytes(server.files["/brain.tiff"])
    np.testing.assert_array_equal(samples.brain().data, BRAIN)
    assert server.asked == []


def test_a_broken_copy_is_replaced(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "samples"
    folder.mkdir(parents=True)
    (folder / "brain.tiff").write_bytes(b"broken")
    np.testing.assert_array_equal(samples.brain().data, BRAIN)
    assert (folder / "brain.tiff").read_bytes() == server.files["/brain.tiff"]


def test_another_file_than_the_known_one_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.files["/brain.tiff"] = tiff(BRAIN + 1)
    with pytest.raises(FileError, match=r"brain.tiff could not be downloaded: what came is not"):
        samples.brain()
    assert cached(tmp_path) == []


@pytest.mark.parametrize("sample", [samples.brain, samples.cells, samples.nuclei])
def test_without_a_network_the_way_out_is_named(
    sample: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NAPARI_ARSSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("skimage.data.data_dir", str(tmp_path))
    for name in ("_BRAIN", "_CELLS"):
        nowhere = "https://127.0.0.1:9/none"  # nobody listens
        source = replace(getattr(samples, name), address=nowhere)
        monkeypatch.setattr(samples, name, source)
    with pytest.raises(FileError, match=r"no connection to 127.*scan and phantom") as caught:
        sample()
    assert str(tmp_path / "cache" / "samples") in str(caught.value)
    assert cached(tmp_path) == []


def test_the_addresses_are_secure_and_the_digests_scikit_images() -> None:
    for source in (samples._BRAIN, samples._CELLS):
        assert source.address.startswith("https://")
        assert not source.allow_http
        assert (
            source.digest.removeprefix("sha256:") == _registry.registry[f"data/{source.filename}"]
        )
        assert source.address == _registry.registry_urls[f"data/{source.filename}"]


def test_a_cache_that_cannot_be_written_to_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NAPARI_ARSSR_CACHE", str(tmp_path / "file"))
    with pytest.raises(FileError, match=r"brain.tiff cannot be kept in .*file.*NAPARI_ARSSR_CACHE"):
        samples.brain()
    assert server.asked == []


def test_a_download_that_is_cancelled_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        samples.brain(stop=lambda: True)
    assert cached(tmp_path) == []
