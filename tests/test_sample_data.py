"""File > Open Sample, in napari's window, which goes on while a sample comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
from napari._qt.dialogs.qt_notification import NapariQtNotification
from napari.components import ViewerModel
from napari.settings import get_plugin_settings, get_settings
from napari.utils.notifications import notification_manager
from napari.utils.progress import cancelable_progress, progress
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QApplication, QMainWindow, QPushButton
from sample_server import BRAIN, CELLS, Server, serving

from napari_arssr import samples
from napari_arssr._layers import grid_of, volume_of
from napari_arssr.errors import Cancelled

PLUGIN = "napari-arssr"
BACKGROUND_SECONDS = 120


@pytest.fixture(autouse=True)
def plugins() -> None:
    npe2.PluginManager.instance().discover()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path) as listening:
        yield listening


@pytest.fixture
def small_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phantom at a sixth of its resolution, which takes a moment instead of seconds."""
    pair = samples.phantom_pair

    def small(*args: Any, **options: Any) -> Any:
        return pair(*args, **options | {"spacing": 6.0})

    monkeypatch.setattr(samples, "phantom_pair", small)


@pytest.fixture
def viewer(make_napari_viewer_proxy: Callable[..., Any]) -> Any:
    return make_napari_viewer_proxy(show=True)


def test_the_manifest_offers_every_sample() -> None:
    offered = {
        sample.key
        for plugin, found in npe2.PluginManager.instance().iter_sample_data()
        if plugin == PLUGIN
        for sample in found
    }
    assert offered == {"scan", "phantom", "thick_slices", "brain", "cells"}


def test_the_scan_is_an_oblique_brain(viewer: Any) -> None:
    (layer,) = viewer.open_sample(PLUGIN, "scan")
    assert layer.name == "scan"
    assert viewer.dims.axis_labels == ("I", "P", "L")
    assert volume_of(layer).in_storage_order().grid == samples.scan().grid
    picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3]
    assert 0.1 < (picture > 60).mean() < 0.9


@pytest.mark.usefixtures("small_phantom")
def test_the_phantom_lies_on_its_reference(viewer: Any) -> None:
    reference, low = viewer.open_sample(PLUGIN, "phantom")
    assert "reference" in reference.name
    assert grid_of(low) == grid_of(reference).scaled(0.5)
    assert low.contrast_limits == reference.contrast_limits
    assert [str(unit) for unit in viewer.layers.extent.units] == ["millimeter"] * 3


@pytest.mark.usefixtures("small_phantom")
def test_thick_slices_are_coarse_along_z_only(viewer: Any) -> None:
    (layer,) = viewer.open_sample(PLUGIN, "thick_slices")
    z, y, x = grid_of(layer).spacing
    assert z / y == pytest.approx(4, rel=0.1)
    assert y == x


def test_the_head_is_downloaded(viewer: Any, server: Server) -> None:
    (layer,) = viewer.open_sample(PLUGIN, "brain")
    np.testing.assert_array_equal(layer.data, BRAIN)
    np.testing.assert_allclose(layer.extent.step, (5, 1, 1))


def test_cells_are_downloaded_into_a_world_of_micrometres(viewer: Any, server: Server) -> None:
    layers = viewer.open_sample(PLUGIN, "cells")
    assert [layer.name for layer in layers] == [
        "membranes (reference)",
        "nuclei (reference)",
        "membranes",
        "nuclei",
    ]
    assert [layer.visible for layer in layers] == [False, False, True, True]
    *_, reference, _, nuclei = layers[0], layers[1], layers[2], layers[3]
    np.testing.assert_array_equal(nuclei.data, CELLS[::4, 1])
    np.testing.assert_array_equal(reference.data, CELLS[:, 1])
    np.testing.assert_allclose(nuclei.extent.step, (1.16, 0.26, 0.26))
    np.testing.assert_allclose(reference.extent.step, (0.29, 0.26, 0.26))
    np.testing.assert_allclose(
        nuclei.data_to_world((1, 2, 3)), reference.data_to_world((4, 2, 3)), atol=1e-9
    )
    assert {str(unit) for layer in layers for unit in layer.units} == {"micrometer"}
    assert viewer.dims.axis_labels == ("z", "y", "x")
    # Millimetres are for the geometry behind it.
    np.testing.assert_allclose(grid_of(nuclei).spacing, (1.16e-3, 0.26e-3, 0.26e-3))


@contextmanager
def meanwhile(act: Callable[[], bool]) -> Iterator[None]:
    """Try to act from the window's event loop, again and again until it is done."""
    timer = QTimer()
    errors: list[BaseException] = []

    def look() -> None:
        try:
            done = act()
        except BaseException as error:
            errors.append(error)
            done = True
        if done:
            timer.stop()

    timer.timeout.connect(look)
    timer.start(20)
    try:
        yield
    finally:
        timer.stop()
    assert errors == []


def bars() -> list[progress]:
    return [bar for bar in progress._all_instances if isinstance(bar, cancelable_progress)]


def begun() -> bool:
    return any(bar.n > 0 for bar in bars())


def test_the_window_lives_and_shows_progress_while_a_sample_comes(
    viewer: Any, server: Server
) -> None:
    server.go_on.clear()
    size = len(server.files["/brain.tiff"])
    seen: list[tuple[str, float, float]] = []
    ticks: list[float] = []

    def look() -> bool:
        ticks.append(time.perf_counter())
        for bar in bars():
            seen.append((bar.desc, bar.n, bar.total))
            if bar.n > 0 and len(ticks) > 10:
                server.go_on.set()
        return False

    with meanwhile(look):
        viewer.open_sample(PLUGIN, "brain")
    assert len(ticks) > 10
    assert np.max(np.diff(ticks)) < 2  # nothing stood still; generous for a busy machine
    assert {"Downloading brain" in desc for desc, _, _ in seen} == {True}
    assert any(0 < done <= size // 2 and total == size for _, done, total in seen)
    assert bars() == []


def test_the_activity_dock_can_cancel_it(viewer: Any, server: Server, tmp_path: Path) -> None:
    server.go_on.clear()

    def click() -> bool:
        for button in QApplication.allWidgets():
            if isinstance(button, QPushButton) and button.text() == "Cancel" and begun():
                button.click()
                return True
        return False

    with (
        meanwhile(click),
        pytest.raises(Cancelled, match="Downloading brain was cancelled"),
    ):
        viewer.open_sample(PLUGIN, "brain")
    assert len(viewer.layers) == 0
    assert bars() == []
    # And it can be had afterwards.
    server.go_on.set()
    assert len(viewer.open_sample(PLUGIN, "brain")) == 1


def test_closing_the_window_ends_it(
    make_napari_viewer_proxy: Callable[..., Any], server: Server
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    server.go_on.clear()

    def close() -> bool:
        if not begun():
            return False
        viewer.close()
        return True

    started = time.perf_counter()
    with meanwhile(close), pytest.raises(Cancelled):
        viewer.open_sample(PLUGIN, "brain")
    assert time.perf_counter() - started < BACKGROUND_SECONDS / 2
    assert bars() == []


def test_being_offline_is_one_notification(
    viewer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NAPARI_ARSSR_CACHE", str(tmp_path))
    monkeypatch.setattr("skimage.data.data_dir", str(tmp_path))
    nowhere = replace(samples._BRAIN, address="https://127.0.0.1:9/brain.tiff")  # nobody listens
    monkeypatch.setattr(samples, "_BRAIN", nowhere)
    (action,) = (
        action
        for window in QApplication.topLevelWidgets()
        if isinstance(window, QMainWindow) and window.isVisible()
        for action in walk(window.menuBar())
        if action.text() == "Head, ten slices (download)"
    )
    before = len(notification_manager.records)
    # What prints tracebacks keeps the last one, and the viewer with it; so does Python below.
    monkeypatch.setattr(get_settings().application, "console_notification_level", "none")
    # pytest-qt would fail the test for an exception in a slot; napari shows it.
    monkeypatch.setattr(sys, "excepthook", notification_manager.receive_error)
    action.trigger()
    QApplication.processEvents()
    (message,) = (record.message for record in notification_manager.records[before:])
    del notification_manager.records[before:]
    for name in ("last_exc", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    assert message.startswith("The sample brain.tiff could not be downloaded: there is no")
    assert "scan and phantom" in message
    assert len(viewer.layers) == 0
    (toast,) = (
        widget for widget in QApplication.allWidgets() if isinstance(widget, NapariQtNotification)
    )
    toast.close()
    toast.deleteLater()
    QApplication.sendPostedEvents(toast, QEvent.Type.DeferredDelete)


def walk(menu: Any) -> Iterator[Any]:
    for action in menu.actions():
        yield action
        if action.menu() is not None:
            yield from walk(action.menu())


def test_samples_open_without_a_window(server: Server) -> None:
    model = ViewerModel()
    (layer,) = model.open_sample(PLUGIN, "brain")
    np.testing.assert_array_equal(layer.data, BRAIN)


def test_the_folder_of_the_preferences_is_used(
    viewer: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NAPARI_ARSSR_CACHE")
    page = get_plugin_settings(PLUGIN).upsampling
    monkeypatch.setattr(page, "cache_folder", str(tmp_path / "mine"))
    viewer.open_sample(PLUGIN, "brain")
    assert (tmp_path / "mine" / "samples" / "brain.tiff").is_file()
