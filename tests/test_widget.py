"""The dock widget in a real window: real clicks, and the pixels that come of them."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import shlex
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import napari
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pint
import psutil
import pytest
import torch
from in_a_file import in_planes
from napari.layers import Image
from napari.utils import progress as activity
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QLabel, QWidget

from napari_arssr import _preferences, cli, weights
from napari_arssr._advanced import Advanced
from napari_arssr._box import DrawnBox
from napari_arssr._fit_widget import FitWidget
from napari_arssr._layers import image_layer, volume_of
from napari_arssr._view import affine_of, is_helper, mark_helper, view_of
from napari_arssr._widget import UpsampleWidget
from napari_arssr._worker import State
from napari_arssr.models import ArSSR
from napari_arssr.upsampling import upsample
from napari_arssr.volume import Grid, Volume

Array = npt.NDArray[Any]
PATIENCE = 60_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., napari.Viewer]) -> napari.Viewer:
    return make_napari_viewer(show=True)


@dataclass
class Window:
    """All that a story in a window needs."""

    qtbot: QtBot
    viewer: napari.Viewer
    widget: UpsampleWidget
    told: list[str]


@pytest.fixture
def window(qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, told: list[str]) -> Window:
    return Window(qtbot, viewer, widget, told)


@pytest.fixture
def widget(viewer: napari.Viewer, tiny: Path, told: list[str]) -> UpsampleWidget:
    made = UpsampleWidget(viewer)
    viewer.window.add_dock_widget(made, name="Upsample")
    made.weights.choose(str(tiny))
    return made


def a_volume(
    shape: tuple[int, ...] = (8, 9, 10), spacing: float | tuple[float, ...] = 1.0
) -> Volume:
    generator = np.random.default_rng(1)
    data = generator.normal(100, 20, shape).astype(np.float32)
    return Volume(data, Grid.from_spacing(data.shape[-3:], spacing).affine, name="scan")


def show(viewer: napari.Viewer, volume: Volume) -> Image:
    data, settings, _ = image_layer(volume)
    return viewer.add_image(data, **settings)


def click(qtbot: QtBot, button: QWidget) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def draw_box(qtbot: QtBot, widget: UpsampleWidget, plane: int) -> DrawnBox:
    """Press Draw, and draw a rectangle in a plane."""
    click(qtbot, widget.region.draw)
    drawn = widget.region._drawn
    assert drawn is not None
    corners = [[plane, 4, 6], [plane, 4, 20], [plane, 17, 20], [plane, 17, 6]]
    drawn.shapes.add_rectangles(np.array(corners))
    qtbot.waitUntil(lambda: drawn.box is not None, timeout=PATIENCE)
    return drawn


def run(qtbot: QtBot, widget: UpsampleWidget) -> None:
    """Press Run and wait for the end."""
    assert widget.run.button.isEnabled(), widget.estimate.text()
    click(qtbot, widget.run.button)
    assert widget.runner.state is State.RUNNING
    wait_for_end(qtbot, widget)


def wait_for_end(qtbot: QtBot, widget: UpsampleWidget) -> None:
    qtbot.waitUntil(lambda: widget.runner.state is State.IDLE, timeout=PATIENCE)


def threads(name: str = "napari-arssr run") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def long_work(qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget) -> Image:
    """Begin something that takes a while, and come back in the middle of it."""
    layer = show(viewer, a_volume((64, 64, 64)))
    widget.output.scale.value = 6.0
    click(qtbot, widget.run.button)
    qtbot.waitUntil(lambda: 0 < widget.run.bar.value() < 900, timeout=PATIENCE)
    assert widget.runner.state is State.RUNNING
    return layer


# Opening -----------------------------------------------------------------------------------


def test_opening_the_widget_imports_no_torch() -> None:
    code = """
        import sys, time
        import napari
        from qtpy.QtWidgets import QApplication

        viewer = napari.Viewer()
        started = time.perf_counter()
        from napari_arssr._widget import UpsampleWidget

        widget = UpsampleWidget(viewer)
        viewer.window.add_dock_widget(widget, name="Upsample")
        QApplication.processEvents()
        print("torch" in sys.modules, time.perf_counter() - started)
        deadline = time.monotonic() + 240
        while not widget.device.known and time.monotonic() < deadline:
            QApplication.processEvents()
            time.sleep(0.01)
        print("torch" in sys.modules, widget.device.known)
        viewer.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    opened, settled = done.stdout.splitlines()
    assert opened.startswith("False")
    assert settled.startswith("True")
    assert "'cpu'" in settled


def test_it_starts_with_the_preferences(
    viewer: napari.Viewer, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = _preferences.Preferences(str(tiny), "cpu", "float32", 3 * 10**9)
    monkeypatch.setattr("napari_arssr._widget.preferences", lambda: chosen)
    widget = UpsampleWidget(viewer)
    viewer.window.add_dock_widget(widget)
    show(viewer, a_volume())
    settings = widget._planned().settings
    assert settings.weights == str(tiny)
    assert (settings.device, settings.precision, settings.memory) == ("cpu", "float32", 3 * 10**9)


@pytest.mark.parametrize(
    ("preferred", "taken"),
    [
        (None, None),
        (1, 10**6),
        (40 * 10**6, 40 * 10**6),
        (250 * 10**6, 250 * 10**6),
        (16 * 10**12, 10**13),
    ],
)
def test_memory_that_is_preferred_is_kept_as_near_as_can_be(
    qtbot: QtBot, preferred: int | None, taken: int | None
) -> None:
    assert Advanced(preferred).memory_bytes == taken


def test_devices_are_those_that_are_there(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    from napari_arssr.devices import available_devices

    qtbot.waitUntil(lambda: bool(widget.device.known), timeout=PATIENCE)
    there = available_devices()
    assert list(widget.device.device.choices) == ["auto", *there]
    assert widget.device.device.native.itemText(0) == f"auto: {there[0]}"
    widget.device.device.value = "cpu"
    assert "float16" not in widget.device.precision.choices
    assert "bfloat16" in widget.device.precision.choices


def test_a_preferred_device_that_is_not_there_is_said(
    qtbot: QtBot, viewer: napari.Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = _preferences.Preferences(device="cuda:7", precision="float16")
    monkeypatch.setattr("napari_arssr._widget.preferences", lambda: chosen)
    widget = UpsampleWidget(viewer)
    viewer.window.add_dock_widget(widget)
    assert widget.device.device.value == "cuda:7"
    qtbot.waitUntil(lambda: bool(widget.device.known), timeout=PATIENCE)
    assert widget.device.device.value == "auto"
    assert "cuda:7 is not here" in widget.device.note.text()


def test_advanced_settings_are_closed_at_first(qtbot: QtBot, widget: UpsampleWidget) -> None:
    assert not widget.advanced.memory.native.isVisible()
    click(qtbot, widget.advanced.folding.button)
    assert widget.advanced.memory.native.isVisible()
    click(qtbot, widget.advanced.folding.button)
    assert not widget.advanced.memory.native.isVisible()


# Running -----------------------------------------------------------------------------------


def test_a_run_gives_what_python_gives_lying_on_the_input(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, tiny: Path, told: list[str]
) -> None:
    volume = a_volume(spacing=(3.0, 1.0, 1.2))
    layer = show(viewer, volume)
    layer.colormap = "magma"
    layer.contrast_limits = (30, 170)
    layer.gamma = 1.3
    widget.output.scale.value = 1.5
    run(qtbot, widget)
    result = viewer.layers[-1]
    assert result.name == "scan tiny ×1.5"
    assert result.data.shape == (12, 14, 15)
    expected = upsample(volume_of(layer), 1.5, weights=tiny)
    np.testing.assert_allclose(result.data, expected.data, atol=1e-3)
    # The faces, not the outer centres, lie on each other.
    for corner in ((0, 0, 0), (8, 9, 10), (0, 9, 0)):
        there = layer.data_to_world(np.array(corner) - 0.5)
        fine = np.array(corner) / layer.data.shape * result.data.shape - 0.5
        np.testing.assert_allclose(result.data_to_world(fine), there, atol=1e-6)
    assert result.colormap.name == "magma"
    assert tuple(result.contrast_limits) == (30, 170)
    assert result.gamma == 1.3
    assert result.units == layer.units
    record = result.metadata["upsampling"]
    assert record["weights"] == "tiny.safetensors"
    assert record["target_zyx"] == {"scale": 1.5}
    assert result.metadata["upsampling"]["source"] == "scan"
    assert "Done in" in widget.message.text()
    assert told == []
    assert widget.image.layer == layer  # still the input, ready to be run again


def test_the_result_is_seen_where_the_input_was(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 40, 60)), indexing="ij")
    data = ((z / 0.9) ** 2 + ((y - 0.2) / 0.4) ** 2 + ((x + 0.3) / 0.3) ** 2 < 1).astype(np.float32)
    turn = np.eye(4)
    turn[:3, :3] = np.array([[0.9, 0.1, 0], [-0.1, 0.9, 0], [0, 0, 2.0]])
    layer = show(viewer, Volume(data * 100, turn, name="blob"))
    widget.output.scale.value = 2.0
    run(qtbot, widget)
    result = viewer.layers[-1]
    viewer.reset_view()
    result.visible = False
    before = viewer.screenshot(canvas_only=True, flash=False)[..., 0].astype(float)
    result.visible, layer.visible = True, False
    after = viewer.screenshot(canvas_only=True, flash=False)[..., 0].astype(float)
    assert before.max() > 200
    differ = np.abs(before - after) > 128
    # Only along the outline, and by less than a voxel of the input.
    assert differ.sum() < 0.15 * (before > 128).sum()
    rows, columns = np.indices(before.shape) * 1.0
    for axis in (rows, columns):
        first = (axis * (before > 128)).sum() / (before > 128).sum()
        second = (axis * (after > 128)).sum() / (after > 128).sum()
        assert abs(first - second) < 2


def test_a_mask_that_keeps_its_labels_is_called_so(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    volume = a_volume()
    show(viewer, replace(volume, data=(volume.data > 100).astype(np.uint8), name="cells_mask"))
    widget.output.scale.value = 2.0
    run(qtbot, widget)
    assert viewer.layers[-1].name == "cells_mask nearest label ×2"
    assert "cells_mask nearest label ×2" in widget.message.text()
    assert set(np.unique(viewer.layers[-1].data)) == {0, 1}


@pytest.mark.parametrize("choice", ["voxel size", "isotropic", "one axis"])
def test_every_way_to_say_how_fine(
    qtbot: QtBot,
    viewer: napari.Viewer,
    widget: UpsampleWidget,
    choice: str,
) -> None:
    show(viewer, a_volume((4, 9, 10), (3.0, 1.0, 1.0)))
    if choice == "voxel size":
        widget.output.voxel_size.value = 0.75
        assert widget.output.by_size.isChecked()
        shape, name = (16, 12, 13), "scan tiny 0.75×0.75×0.769 mm"
    elif choice == "isotropic":
        click(qtbot, widget.output.isotropic)
        shape, name = (12, 9, 10), "scan tiny 1 mm"
    else:
        widget.output.scale.value = 2.5
        for box in widget.advanced.axes.boxes[1:]:
            box.value = False
        shape, name = (10, 9, 10), "scan tiny ×2.5×1×1"
    assert " × ".join(map(str, shape)) in plain(widget.estimate.text())
    run(qtbot, widget)
    assert viewer.layers[-1].data.shape == shape
    assert viewer.layers[-1].name == name


def test_the_slice_stays_when_the_result_is_removed(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((12, 9, 10)))
    viewer.dims.set_current_step(0, 4)
    place = viewer.dims.point
    widget.output.scale.value = 4.0
    run(qtbot, widget)
    assert viewer.dims.nsteps[0] == 48
    viewer.layers.remove(viewer.layers[-1])
    qtbot.wait(50)
    assert viewer.dims.nsteps[0] == 12
    assert viewer.dims.point[0] == pytest.approx(place[0])


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_what_is_to_come_is_said_before_and_the_time_after_a_first_run(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, cache: Path
) -> None:
    show(viewer, a_volume((40, 40, 40), 2.0))
    widget.output.scale.value = 3.0
    assert plain(widget.image.note.text()) == "40 × 40 × 40 · 2 mm · float32"
    said = plain(widget.estimate.text())
    assert said == "120 × 120 × 120 · 0.667 mm · 6.91 MB · time known after a first run"
    run(qtbot, widget)
    assert plain(widget.estimate.text()).startswith("120 × 120 × 120 · 0.667 mm · 6.91 MB · about")
    assert (cache / "timing.json").is_file()
    # Another widget, as after a restart, knows it too.
    other = UpsampleWidget(viewer)
    other.weights.choose(widget.weights.value)
    other.image.choose(viewer.layers[0])
    assert "about" in other.estimate.text()
    other.close_down()
    other.deleteLater()


def test_running_again_does_not_encode_again(
    qtbot: QtBot,
    viewer: napari.Viewer,
    widget: UpsampleWidget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    encode = ArSSR.encode

    def counted(self: ArSSR, patch: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        return encode(self, patch)

    monkeypatch.setattr(ArSSR, "encode", counted)
    layer = show(viewer, a_volume())
    run(qtbot, widget)
    assert passes
    passes.clear()
    widget.output.scale.value = 3.0
    run(qtbot, widget)
    assert passes == []
    layer.data = layer.data + 1
    run(qtbot, widget)
    assert passes


def test_a_double_click_runs_once_and_does_not_cancel(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((32, 32, 32)))
    widget.output.scale.value = 3.0
    qtbot.mouseDClick(widget.run.button, Qt.MouseButton.LeftButton)
    click(qtbot, widget.run.button)
    click(qtbot, widget.run.button)
    assert widget.runner.state is State.RUNNING
    assert len(threads()) == 1
    widget.start()  # from a program, too
    assert len(threads()) == 1
    wait_for_end(qtbot, widget)
    assert [layer.name for layer in viewer.layers] == ["scan", "scan tiny ×3"]


def test_cancel_in_the_middle_and_run_again(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, told: list[str]
) -> None:
    long_work(qtbot, viewer, widget)
    qtbot.waitUntil(widget.run.button.isEnabled, timeout=PATIENCE)
    assert widget.run.button.text() == "Cancel"
    click(qtbot, widget.run.button)
    assert widget.run.button.text() == "Cancelling…"
    assert not widget.run.button.isEnabled()
    wait_for_end(qtbot, widget)
    assert widget.run.button.text() == "Run"
    assert widget.message.text() == "Cancelled."
    assert len(viewer.layers) == 1
    assert threads() == []
    widget.output.scale.value = 1.5
    run(qtbot, widget)
    assert viewer.layers[-1].name == "scan tiny ×1.5"
    assert told == []


def test_progress_is_shown_here_and_in_the_activity_dock(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    long_work(qtbot, viewer, widget)
    assert widget.run.bar.isVisible()
    (bar,) = activity._all_instances
    assert bar.desc.startswith("scan tiny ×6")
    assert 0 < bar.n <= 1000
    qtbot.waitUntil(lambda: "left" in widget.run.text.text(), timeout=PATIENCE)
    qtbot.waitUntil(lambda: "decoding" in widget.run.text.text(), timeout=PATIENCE)
    widget.runner.cancel()
    wait_for_end(qtbot, widget)
    assert len(activity._all_instances) == 0
    assert not widget.run.bar.isVisible()


class _MallocInfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def megabytes_in_use() -> float:
    """Memory that was asked for and not given back.

    What is resident grows by more: glibc keeps what is free at the end of each thread's heap, and
    after all other tests there are many heaps.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "mallinfo2"):
        return float(psutil.Process().memory_info().rss / 1e6)
    libc.mallinfo2.restype = _MallocInfo
    info = libc.mallinfo2()
    return float((info.uordblks + info.hblkhd) / 1e6)


def test_twenty_runs_leave_nothing_behind(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((40, 40, 40)))
    widget.output.scale.value = 3.0  # results of 7 MB
    results: list[weakref.ref[Any]] = []
    sizes = []
    for _ in range(20):
        run(qtbot, widget)
        result = viewer.layers.pop()
        results.append(weakref.ref(result.data))
        del result
        viewer.layers[0].name = "scan"
        qtbot.wait(20)
        gc.collect()
        sizes.append(megabytes_in_use())
    assert sum(one() is not None for one in results) <= 1
    assert len(widget._workshop.fields) <= 2
    assert threads() == []
    assert sizes[-1] - sizes[4] < 20, sizes  # fifteen results would be 104 MB


# Regions -----------------------------------------------------------------------------------


def test_the_result_lies_on_an_image_that_was_moved_meanwhile(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    layer = show(viewer, a_volume((4, 9, 10), (3.0, 1.0, 1.0)))
    widget.output.scale.value = 1.5
    click(qtbot, widget.run.button)
    layer.translate, layer.scale, layer.rotate = (0, 30, 0), (2, 1, 1), 20.0
    wait_for_end(qtbot, widget)
    result = viewer.layers[-1]
    for corner in ((0, 0, 0), (4, 9, 10), (0, 9, 0)):
        fine = np.array(corner) / layer.data.shape * result.data.shape - 0.5
        there = layer.data_to_world(np.array(corner) - 0.5)
        np.testing.assert_allclose(result.data_to_world(fine), there, atol=1e-6)


def test_a_run_while_the_view_is_split_stays_below_it(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume())
    run(qtbot, widget)
    widget._comparison.split()
    run(qtbot, widget)
    assert [is_helper(layer) for layer in viewer.layers] == [False, False, False, True, True]


def test_features_go_with_their_image(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    first, second = show(viewer, a_volume()), show(viewer, replace(a_volume(), name="other"))
    second.data = second.data + 1
    widget.output.scale.value = 1.5
    for layer in (first, second):
        widget.image.choose(layer)
        run(qtbot, widget)
    assert len(widget._workshop.fields) == 2
    viewer.layers.remove(viewer.layers[-1])  # a result
    assert len(widget._workshop.fields) == 2
    viewer.layers.remove(first)
    assert len(widget._workshop.fields) == 0
    run(qtbot, widget)
    assert len(widget._workshop.fields) == 1


def test_the_time_of_another_image_is_not_that_of_one_encoded_already(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    first, second = show(viewer, a_volume()), show(viewer, replace(a_volume(), name="other"))
    widget.image.choose(first)
    click(qtbot, widget.run.button)
    widget.image.choose(second)
    wait_for_end(qtbot, widget)
    assert not widget._planned().reuses(widget._encoded)


def test_a_drawn_box_is_the_same_part_of_the_whole(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    layer = show(viewer, a_volume((12, 30, 32)))
    widget.output.scale.value = 2.0
    click(qtbot, widget.region.by_box)
    assert "Press Draw" in widget.estimate.text()
    assert not widget.run.button.isEnabled()
    drawn = draw_box(qtbot, widget, 5)
    assert "voxels" in widget.region.note.text()
    widget.region.first.value, widget.region.last.value = 3, 7
    box = drawn.box
    assert box is not None
    assert (box.start[0], box.stop[0]) == (3, 8)
    run(qtbot, widget)
    *_, part, above = viewer.layers
    assert part.name == "scan tiny ×2 box"
    assert above == drawn.shapes
    assert viewer.layers.selection.active == part
    click(qtbot, widget.region.whole)
    run(qtbot, widget)
    whole = viewer.layers[-1]
    start = [2 * n for n in box.start]
    stop = [2 * n for n in box.stop]
    cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    np.testing.assert_allclose(part.data, whole.data[cut], atol=1e-3)
    np.testing.assert_allclose(part.data_to_world((0, 0, 0)), whole.data_to_world(start), atol=1e-6)
    assert drawn.shapes in viewer.layers
    assert drawn.shapes.name != widget.image.layer.name
    assert widget.image.layer == layer


def test_a_number_of_several_digits_moves_one_end_of_the_box(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((40, 30, 32)))
    drawn = draw_box(qtbot, widget, 5)
    widget.region.first.value, widget.region.last.value = 10, 19
    assert drawn.depth == (10, 20)
    last = widget.region.last.native
    last.setFocus()
    last.selectAll()
    qtbot.keyClicks(last, "35")  # the 3 is on its way to 35
    qtbot.keyClick(last, Qt.Key.Key_Return)
    assert drawn.depth == (10, 36)


@pytest.mark.parametrize("columns", [3, 4])
def test_a_result_of_three_or_four_columns_has_no_colours(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, columns: int
) -> None:
    show(viewer, a_volume((32, 33, columns)))
    widget.output.scale.value = 1.2
    widget.advanced.axes.boxes[2].value = False
    run(qtbot, widget)
    assert viewer.layers[-1].data.shape == (38, 40, columns)
    assert not viewer.layers[-1].rgb


def test_the_wheel_scrolls_the_page_and_changes_only_what_was_clicked_at(
    qtbot: QtBot, widget: UpsampleWidget
) -> None:
    def turn(over: QWidget) -> None:
        point = QPointF(over.rect().center())
        event = QWheelEvent(
            point,
            QPointF(over.mapToGlobal(over.rect().center())),
            QPoint(),
            QPoint(0, -120),
            Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(over, event)

    precision = widget.device.precision
    before = precision.value
    turn(precision.native)
    assert precision.value == before
    memory = widget.advanced.memory
    amount = memory.value
    turn(memory.native)
    assert memory.value == amount
    widget.window().activateWindow()
    precision.native.setFocus()
    qtbot.waitUntil(precision.native.hasFocus, timeout=PATIENCE)
    turn(precision.native)
    assert precision.value != before


def test_every_row_tells_a_screen_reader_its_name(widget: UpsampleWidget) -> None:
    rows = [label for label in widget.findChildren(QLabel) if label.buddy() is not None]
    names = {label.text() for label in rows}
    assert {"Image", "Model", "Output", "Region", "Device", "Precision", "Memory"} <= names
    assert all(label.buddy().accessibleName() == label.text() for label in rows)


def test_the_current_view_is_what_is_seen_when_run_is_pressed(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    layer = show(viewer, a_volume((12, 40, 40)))
    click(qtbot, widget.region.in_view)
    viewer.dims.set_point(0, layer.data_to_world((4, 0, 0))[0])
    viewer.scene.camera.zoom *= 4
    qtbot.waitUntil(lambda: "2 × 80 × 80" not in plain(widget.estimate.text()), timeout=PATIENCE)
    run(qtbot, widget)
    part = viewer.layers[-1]
    (start, stop) = part.metadata["upsampling"]["box_zyx"]
    assert (start[0], stop[0]) == (4, 5)
    assert 0 < stop[1] - start[1] < 40
    viewer.dims.ndisplay = 3
    qtbot.waitUntil(lambda: not widget.run.button.isEnabled(), timeout=PATIENCE)
    assert "3D" in widget.estimate.text()


# Which images ------------------------------------------------------------------------------


def test_images_are_those_of_the_viewer(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    assert widget.image.layer is None
    assert "drag the file" in widget.image.note.text()
    assert not widget.run.button.isEnabled()
    first = show(viewer, a_volume())
    assert widget.image.layer == first
    second = show(viewer, replace(a_volume(), name="other"))
    viewer.add_labels(np.zeros((4, 5, 6), int))
    helper = Image(np.zeros((4, 5, 6)), name="helper")
    mark_helper(helper)
    viewer.add_layer(helper)
    assert list(widget.image.box.choices) == [first, second]
    assert widget.image.layer == first  # a layer that is added does not take its place
    first.name = "renamed"
    assert widget.image.box.native.itemText(0) == "renamed"
    assert widget._planned().title == "renamed tiny ×2"
    widget.image.box.value = second
    assert widget.image.layer == second
    viewer.layers.remove(second)
    assert widget.image.layer == first
    viewer.layers.clear()
    assert widget.image.layer is None
    assert not widget.run.button.isEnabled()


def test_moving_a_layer_moves_what_will_come(viewer: napari.Viewer, widget: UpsampleWidget) -> None:
    layer = show(viewer, a_volume((8, 9, 10), 1.0))
    layer.scale = (2, 2, 2)
    assert "2 mm" in plain(widget.image.note.text())
    assert "1 mm" in plain(widget.estimate.text())
    widget.output.voxel_size.value = 0.5
    assert "0.5 mm" in plain(widget.estimate.text())
    layer.scale = (4, 1, 1)
    layer.units = "um"
    layer.axis_labels = ("depth", "row", "column")
    assert widget.output.symbol.text() == "µm"
    assert (widget.output.voxel_size.value, widget.output.voxel_size.max) == (0.5, 4.0)
    assert "0.5 µm" in plain(widget.estimate.text())
    assert [box.text for box in widget.advanced.axes.boxes] == ["depth", "row", "column"]
    layer.data = np.zeros((5, 20, 20), np.float32)
    assert widget.advanced.axes.boxes[0].enabled
    layer.data = np.zeros((20, 20), np.float32)
    assert not widget.advanced.axes.boxes[0].enabled


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (np.zeros((20, 30, 3), np.uint8), {"rgb": True}, "RGB"),
        (np.zeros((2, 3, 4, 5, 6), np.float32), {}, "5 axes"),
    ],
    ids=["rgb", "5D"],
)
def test_what_is_no_volume_is_refused_with_the_reason(
    viewer: napari.Viewer,
    widget: UpsampleWidget,
    data: Array,
    options: dict[str, Any],
    reason: str,
) -> None:
    viewer.add_layer(Image(data, name="odd", contrast_limits=(0, 1), **options))
    assert reason in widget.image.note.text()
    assert widget.image.note.alarming
    assert not widget.run.button.isEnabled()
    assert reason in widget.run.button.toolTip()


def test_a_plane_stays_a_plane(qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget) -> None:
    data = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    layer = viewer.add_image(data, scale=(2, 1), translate=(5, 7), units="um")
    assert plain(widget.image.note.text()) == "20 × 30 · 2 × 1 µm · float32"
    widget.output.scale.value = 2.0
    assert plain(widget.estimate.text()).startswith("40 × 60 · 1 × 0.5 µm")
    assert not widget.advanced.axes.boxes[0].native.isVisible()
    run(qtbot, widget)
    result = viewer.layers[-1]
    assert result.data.shape == (40, 60)
    assert result.units == layer.units
    np.testing.assert_allclose(
        result.data_to_world((-0.5, -0.5)), layer.data_to_world((-0.5, -0.5)), atol=1e-9
    )
    click(qtbot, widget.output.isotropic)
    run(qtbot, widget)
    assert viewer.layers[-1].data.shape == (40, 30)


def test_stacks_in_micrometres_stay_in_micrometres(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    data = np.random.default_rng(0).normal(size=(5, 20, 30)).astype(np.float32)
    layer = viewer.add_image(data, scale=(1.0, 0.25, 0.25), units="um")
    assert "1 × 0.25 × 0.25 µm" in plain(widget.image.note.text())
    assert widget.output.symbol.text() == "µm"
    click(qtbot, widget.output.isotropic)
    run(qtbot, widget)
    result = viewer.layers[-1]
    assert result.data.shape == (20, 20, 30)
    assert result.units == layer.units
    np.testing.assert_allclose(result.affine.scale, 0.25)
    np.testing.assert_allclose(
        result.data_to_world((-0.5,) * 3), layer.data_to_world((-0.5,) * 3), atol=1e-9
    )


def test_a_result_of_several_orientations_is_their_mean(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume())
    run(qtbot, widget)
    one = viewer.layers[-1]
    widget.advanced.orientations.value = 3
    run(qtbot, widget)
    mean = viewer.layers[-1]
    assert (one.data != mean.data).any()
    assert one.metadata["upsampling"]["orientations"] == 1
    assert mean.metadata["upsampling"]["orientations"] == 3
    weights = widget.weights.value
    expected = upsample(a_volume(), 2, weights=weights, orientations=3).data
    np.testing.assert_allclose(mean.data, expected, rtol=0, atol=2e-3)


def test_all_frames_or_the_one_that_is_shown(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    volume = replace(a_volume((3, 5, 6, 7)), time_step=2.5)
    layer = show(viewer, volume)
    assert plain(widget.estimate.text()).startswith("3 frames of 10 × 12 × 14")
    run(qtbot, widget)
    every = viewer.layers[-1]
    assert every.data.shape == (3, 10, 12, 14)
    np.testing.assert_allclose(
        every.data_to_world((2, -0.5, -0.5, -0.5)), layer.data_to_world((2, -0.5, -0.5, -0.5))
    )
    widget.advanced.frames.value = "the frame that is shown"
    viewer.dims.set_point(0, 2.5)
    run(qtbot, widget)
    one = viewer.layers[-1]
    assert one.name == "scan tiny ×2 frame 1"
    # To the last bit or so: matrix products round as their arrays happen to lie in memory.
    np.testing.assert_allclose(one.data, every.data[1], rtol=1e-6)


def test_the_frame_is_the_one_that_is_shown_in_the_command_and_in_other_units_too(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, tmp_path: Path
) -> None:
    image = nib.Nifti1Image(a_volume((6, 7, 8, 4)).data, np.eye(4))
    image.header.set_zooms((1, 1, 1, 2))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "bold.nii.gz")
    (layer,) = viewer.open(tmp_path / "bold.nii.gz", plugin="napari-arssr")
    widget.advanced.frames.value = "the frame that is shown"
    viewer.dims.set_point(0, 6.0)
    QApplication.clipboard().clear()
    click(qtbot, widget.copy)
    qtbot.waitUntil(lambda: QApplication.clipboard().text() != "", timeout=PATIENCE)
    assert "--frame 3" in QApplication.clipboard().text()
    units = ("ms", "mm", "mm", "mm")
    place = affine_of(layer) * [[1000], [1], [1], [1], [1]]
    other = viewer.add_image(np.asarray(layer.data), affine=place, units=units)
    second = (1 * pint.Unit("second")).to(viewer.layers.extent.units[0]).magnitude
    for seconds, frame in ((0, 0), (2, 1), (4, 2)):
        viewer.dims.set_point(0, seconds * second)
        for one in (layer, other):
            widget.image.choose(one)
            assert view_of(viewer, one).frame == frame
            assert widget._planned().frame == frame


# What goes wrong ---------------------------------------------------------------------------


def test_broken_weights_are_named_and_others_work_after_them(
    window: Window, tiny: Path, tmp_path: Path
) -> None:
    qtbot, viewer, widget, told = window.qtbot, window.viewer, window.widget, window.told
    show(viewer, a_volume())
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"x" * 100)
    widget.weights.choose(str(broken))
    run(qtbot, widget)
    assert len(told) == 1
    assert "broken.safetensors" in told[0]
    assert widget.message.alarming
    widget.weights.choose(str(tiny))
    run(qtbot, widget)
    assert len(viewer.layers) == 2
    broken.unlink()
    widget.weights.choose(str(broken))
    assert "not there any more" in widget.weights.note.text()
    assert not widget.run.button.isEnabled()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "report it"),
        (ZeroDivisionError("division by zero"), "report it"),
    ],
    ids=["cuda", "memory", "torch", "fault"],
)
def test_no_error_of_the_network_gets_lost_or_leaves_it_stuck(
    window: Window, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    qtbot, viewer, widget, told = window.qtbot, window.viewer, window.widget, window.told
    show(viewer, a_volume())

    def fails(*_: object) -> torch.Tensor:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(ArSSR, "encode", fails)
        run(qtbot, widget)
    assert len(told) == 1
    assert words in told[0]
    assert len(viewer.layers) == 1
    assert threads() == []
    run(qtbot, widget)
    assert len(viewer.layers) == 2


def test_a_layer_whose_voxels_cannot_be_read_is_named(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, told: list[str]
) -> None:
    def read(block_info: Any = None) -> Array:
        plane = block_info[None]["array-location"][0][0] if block_info else 0
        if plane >= 5:
            raise OSError("the disk has gone")
        return np.full((1, 9, 10), float(plane), np.float32)

    lazy = da.map_blocks(
        read, chunks=((1,) * 8, (9,), (10,)), dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    viewer.dims.set_point(0, 0)
    viewer.add_image(lazy, name="remote", contrast_limits=(0, 10))
    viewer.dims.set_point(0, 0)
    told.clear()
    run(qtbot, widget)
    assert len(told) == 1
    assert "remote" in told[0]
    assert "the disk has gone" in told[0]


def test_reading_and_working_happen_on_other_threads(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    where: set[int] = set()
    data = np.random.default_rng(0).normal(size=(6, 9, 10)).astype(np.float32)

    def read(block: Array) -> Array:
        where.add(threading.get_ident())
        return block

    lazy = da.from_array(data, chunks=(6, 9, 10)).map_blocks(read, dtype=np.float32)
    viewer.add_image(lazy, name="lazy", contrast_limits=(-3, 3))
    qtbot.wait(50)
    where.clear()
    run(qtbot, widget)
    assert where
    assert threading.get_ident() not in where


def test_what_does_not_fit_is_said_before_it_starts(
    qtbot: QtBot,
    viewer: napari.Viewer,
    widget: UpsampleWidget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    show(viewer, a_volume((40, 40, 40)))
    free = 10**7
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    widget.output.scale.value = 4.0
    assert "10 MB are free" in plain(widget.estimate.text())
    assert "lower scale" in widget.estimate.text()
    assert widget.estimate.alarming
    assert not widget.run.button.isEnabled()
    free = 10**12
    qtbot.waitUntil(widget.run.button.isEnabled, timeout=PATIENCE)
    said = plain(widget.estimate.text())
    assert "about" in said or "first run" in said


def test_a_result_coarser_than_the_input_is_refused_in_words(
    viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((4, 9, 10), (3.0, 1.0, 1.0)))
    widget.output.voxel_size.value = 2.0
    said = plain(widget.estimate.text())
    assert "2 mm would be coarser than its own, 3 × 1 × 1 mm" in said
    assert not widget.run.button.isEnabled()
    widget.image.layer.units = "um"
    widget.image.layer.scale = (1, 1, 1)  # napari tells of new units with this
    widget.output.voxel_size.value = 2.0
    said = plain(widget.estimate.text())
    assert "2 µm would be coarser than its own, 3 × 1 × 1 µm" in said


# Closing -----------------------------------------------------------------------------------


def test_removing_the_layer_ends_its_run(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, told: list[str]
) -> None:
    layer = long_work(qtbot, viewer, widget)
    viewer.layers.remove(layer)
    wait_for_end(qtbot, widget)
    assert len(viewer.layers) == 0
    assert threads() == []
    assert told == []
    show(viewer, a_volume())
    widget.output.scale.value = 1.5
    run(qtbot, widget)
    assert len(viewer.layers) == 2


def test_closing_the_panel_ends_the_run(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, told: list[str]
) -> None:
    long_work(qtbot, viewer, widget)
    dock = widget.parent()
    click(qtbot, dock.title.close_button)
    qtbot.waitUntil(lambda: threads() == [], timeout=PATIENCE)
    qtbot.wait(100)
    assert [layer.name for layer in viewer.layers] == ["scan"]
    assert len(activity._all_instances) == 0
    assert told == []
    show(viewer, a_volume())  # and nothing listens any more
    viewer.layers.clear()
    assert told == []


def test_an_end_that_fails_keeps_no_other_from_coming(
    viewer: napari.Viewer, widget: UpsampleWidget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    assert {"Q", "W"} <= {str(key) for key in viewer.keymap}
    with monkeypatch.context() as broken:
        broken.setattr(widget._workshop.fields, "forget", fail)
        with pytest.raises(RuntimeError, match="no"):
            widget.close_down()
    assert not {"Q", "W"} & {str(key) for key in viewer.keymap}
    show(viewer, a_volume())
    assert widget.image.layer is None
    widget.close_down()  # once is enough


def test_hiding_the_panel_does_not_end_the_run(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((32, 32, 32)))
    click(qtbot, widget.run.button)
    click(qtbot, widget.parent().title.hide_button)
    wait_for_end(qtbot, widget)
    assert len(viewer.layers) == 2


def test_closing_the_window_ends_the_run(
    qtbot: QtBot,
    make_napari_viewer: Callable[..., napari.Viewer],
    tiny: Path,
    told: list[str],
) -> None:
    viewer = make_napari_viewer(show=True)
    widget = UpsampleWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Upsample")
    widget.weights.choose(str(tiny))
    long_work(qtbot, viewer, widget)
    viewer.close()
    del widget
    QApplication.processEvents()
    gc.collect()
    qtbot.waitUntil(lambda: threads() == [], timeout=PATIENCE)
    qtbot.wait(100)
    assert told == []
    assert len(activity._all_instances) == 0


def test_leaving_the_program_in_the_middle_of_a_run_is_clean(tiny: Path, cache: Path) -> None:
    code = f"""
        import threading
        import numpy as np
        import napari
        from qtpy.QtCore import QTimer
        from napari_arssr._widget import UpsampleWidget

        viewer = napari.Viewer()
        widget = UpsampleWidget(viewer)
        viewer.window.add_dock_widget(widget, name="Upsample")
        widget.weights.choose({str(tiny)!r})
        viewer.add_image(np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32))
        widget.output.scale.value = 7.0
        widget.start()

        def leave():
            if widget.run.bar.value() > 0:
                print("leaving", widget.runner.state.value, flush=True)
                timer.stop()
                viewer.window._qt_window.close(quit_app=True)

        timer = QTimer()
        timer.timeout.connect(leave)
        timer.start(50)
        napari.run()
        print("left", flush=True)
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["leaving running", "left"]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 300


# Weights -----------------------------------------------------------------------------------


CONTENT = bytes(range(256)) * 8000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A server on this machine that has the weights "local", and can misbehave."""
    state = SimpleNamespace(mood="whole", go_on=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay quiet."""

        def do_GET(self) -> None:
            content = CONTENT[::-1] if state.mood == "wrong" else CONTENT
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            if state.mood == "slow":
                for start in range(0, half, 1 << 16):
                    self.wfile.write(content[start : start + (1 << 16)])
                    state.go_on.wait(0.05)
                state.go_on.wait(60)
                self.close_connection = True
                return
            self.wfile.write(content[:half] if state.mood == "broken off" else content)
            self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        digest = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
        record = replace(
            weights.REGISTRY["arssr-rdn"],
            name="local",
            source=f"http://127.0.0.1:{listening.server_port}/local.pkl",
            filename="local.pkl",
            digest=f"gitblob:{digest}",
            size=len(CONTENT),
        )
        monkeypatch.setitem(weights.REGISTRY, "local", record)
        fetch = weights.fetch_record
        monkeypatch.setattr(
            weights, "fetch_record", lambda *a, **options: fetch(*a, **options, allow_http=True)
        )
        yield state
        state.go_on.set()
        listening.shutdown()
        thread.join()


def test_weights_are_downloaded_with_bytes_and_speed(
    window: Window, server: SimpleNamespace, cache: Path
) -> None:
    qtbot, widget, told = window.qtbot, window.widget, window.told
    assert not widget.weights.button.isVisible()
    widget.weights.choose("local")
    assert widget.weights.box.native.currentText() == "local (to download, 2 MB)"
    assert widget.weights.button.text() == "Download"
    assert "not downloaded yet" in widget.weights.note.text()
    server.mood = "slow"
    click(qtbot, widget.weights.button)
    assert widget.weights.button.text() == "Cancel"
    qtbot.waitUntil(lambda: "B/s" in widget.weights.note.text(), timeout=PATIENCE)
    assert "of 2.0 MB" in widget.weights.note.text()
    click(qtbot, widget.weights.button)
    assert widget.weights.button.text() == "Cancelling…"
    server.go_on.set()
    qtbot.waitUntil(lambda: widget.weights.runner.state is State.IDLE, timeout=PATIENCE)
    assert list(cache.iterdir()) == []
    assert told == []
    server.mood = "whole"
    click(qtbot, widget.weights.button)
    qtbot.waitUntil(lambda: widget.weights.runner.state is State.IDLE, timeout=PATIENCE)
    assert (cache / "local.pkl").read_bytes() == CONTENT
    assert widget.weights.box.native.currentText() == "local (downloaded)"
    assert not widget.weights.button.isVisible()
    assert widget.weights.note.text().startswith("ready")
    names = [
        widget.weights.box.native.itemText(n) for n in range(widget.weights.box.native.count())
    ]
    assert names[-1] == "file…"
    assert told == []


@pytest.mark.parametrize(
    ("mood", "words"), [("wrong", "not the published file"), ("broken off", "broke off")]
)
def test_downloads_that_fail_say_why(
    window: Window, server: SimpleNamespace, cache: Path, mood: str, words: str
) -> None:
    qtbot, widget, told = window.qtbot, window.widget, window.told
    widget.weights.choose("local")
    server.mood = mood
    click(qtbot, widget.weights.button)
    qtbot.waitUntil(lambda: widget.weights.runner.state is State.IDLE, timeout=PATIENCE)
    assert len(told) == 1
    assert words in told[0]
    assert list(cache.iterdir()) == []
    assert widget.weights.button.isEnabled()
    assert widget.weights.button.text() == "Download"
    assert widget.weights.note.alarming


def test_a_run_with_weights_that_are_not_here_fetches_them_first(
    qtbot: QtBot,
    viewer: napari.Viewer,
    widget: UpsampleWidget,
    server: SimpleNamespace,
    told: list[str],
) -> None:
    show(viewer, a_volume())
    widget.weights.choose("local")
    server.mood = "slow"
    click(qtbot, widget.run.button)
    qtbot.waitUntil(lambda: "downloading" in widget.run.text.text(), timeout=PATIENCE)
    widget.runner.cancel()
    server.go_on.set()
    wait_for_end(qtbot, widget)
    assert widget.message.text() == "Cancelled."
    assert told == []


# Command -----------------------------------------------------------------------------------


def test_the_copied_command_gives_the_pixels_that_run_gave(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, tmp_path: Path, told: list[str]
) -> None:
    data = np.random.default_rng(0).normal(100, 20, (7, 5, 6)).astype(np.float32)
    affine = np.array([[0, 0, 1, -3.0], [1.5, 0, 0, 4], [0, 2, 0, 5], [0, 0, 0, 1]])
    source = tmp_path / "my scan.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), source)
    (layer,) = viewer.open(source, plugin="napari-arssr")
    widget.output.scale.value = 2.5
    widget.advanced.axes.boxes[1].value = False
    run(qtbot, widget)
    result = viewer.layers[-1]
    QApplication.clipboard().clear()
    click(qtbot, widget.copy)
    qtbot.waitUntil(lambda: QApplication.clipboard().text() != "", timeout=PATIENCE)
    words = shlex.split(QApplication.clipboard().text())
    assert words[:3] == ["napari-arssr", "upsample", str(source)]
    assert cli.main([*words[1:], "--quiet"]) == 0
    (written,) = viewer.open(words[3], plugin="napari-arssr")
    np.testing.assert_allclose(np.asarray(written.data), result.data, atol=2e-3)
    np.testing.assert_allclose(
        written.data_to_world((1, 2, 3)), result.data_to_world((1, 2, 3)), atol=1e-4
    )
    layer.data = np.asarray(layer.data) + 1
    widget.image.choose(layer)
    click(qtbot, widget.copy)
    qtbot.waitUntil(lambda: bool(told), timeout=PATIENCE)
    assert "was changed since it was read" in told[0]


def test_a_layer_without_a_file_has_no_command_and_says_so(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume())
    QApplication.clipboard().setText("before")
    click(qtbot, widget.copy)
    assert "comes from no file" in widget.message.text()
    assert "save what is shown" in widget.message.text()
    assert QApplication.clipboard().text() == "before"


# Live view ---------------------------------------------------------------------------------


def test_the_live_view_shows_a_layer_and_takes_it_away(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget, told: list[str]
) -> None:
    show(viewer, a_volume((12, 40, 40)))
    viewer.scene.camera.zoom *= 4
    assert not widget.live.box.isChecked()
    widget.live.box.setChecked(True)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    qtbot.waitUntil(lambda: "ms" in widget.live.note.text(), timeout=PATIENCE)
    assert len(widget.image.box.choices) == 1
    widget.advanced.normalize.value = "minmax"  # another field, the same view
    qtbot.waitUntil(lambda: "ms" in widget.live.note.text(), timeout=PATIENCE)
    widget.output.scale.value = 1.5
    run(qtbot, widget)
    widget.live.box.setChecked(False)
    assert [layer.name for layer in viewer.layers] == ["scan", "scan tiny ×1.5"]
    qtbot.waitUntil(lambda: threads("napari-arssr live view") == [], timeout=PATIENCE)
    assert told == []


def test_what_is_too_large_to_load_is_run_on_in_a_box_and_seen_live(
    qtbot: QtBot,
    viewer: napari.Viewer,
    widget: UpsampleWidget,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 1_000)
    volume = a_volume((80, 40, 40))
    read: list[int] = []
    layer = viewer.add_image(in_planes(volume.data, read), name="scan", contrast_limits=(0, 200))
    widget.advanced.normalize.value = "none"  # else planes are read for the range of all
    viewer.dims.set_current_step(0, 70)
    viewer.scene.camera.zoom *= 4
    widget.live.box.setChecked(True)
    qtbot.waitUntil(lambda: "ms" in widget.live.note.text(), timeout=PATIENCE)
    click(qtbot, widget.region.by_box)
    drawn = draw_box(qtbot, widget, 70)
    widget.region.first.value, widget.region.last.value = 68, 72
    read.clear()
    run(qtbot, widget)
    assert min(read, default=70) > 40
    part = next(one for one in viewer.layers if one.name == "scan tiny ×2 box")
    whole = upsample(
        replace(volume_of(layer), data=volume.data),
        2.0,
        box=drawn.box,
        weights=str(widget.weights.value),
        normalize="none",
    )
    np.testing.assert_allclose(part.data, whole.data, rtol=1e-3)
    assert told == []


def test_the_live_view_ends_with_its_image(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    layer = show(viewer, a_volume((12, 40, 40)))
    viewer.scene.camera.zoom *= 4
    widget.live.box.setChecked(True)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: not widget.live.box.isChecked(), timeout=PATIENCE)
    qtbot.waitUntil(lambda: threads("napari-arssr live view") == [], timeout=PATIENCE)
    qtbot.waitUntil(lambda: len(viewer.layers) == 0, timeout=PATIENCE)


def test_the_live_view_does_not_download(
    viewer: napari.Viewer, widget: UpsampleWidget, server: SimpleNamespace
) -> None:
    show(viewer, a_volume())
    widget.weights.choose("local")
    widget.live.box.setChecked(True)
    assert not widget.live.box.isChecked()
    assert "Download the weights first" in widget.live.note.text()


def test_the_live_view_goes_with_the_panel(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    show(viewer, a_volume((12, 40, 40)))
    viewer.scene.camera.zoom *= 4
    widget.live.box.setChecked(True)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    click(qtbot, widget.parent().title.close_button)
    assert [layer.name for layer in viewer.layers] == ["scan"]
    qtbot.waitUntil(lambda: threads("napari-arssr live view") == [], timeout=PATIENCE)


# As a plugin -------------------------------------------------------------------------------


def test_napari_opens_it_from_the_manifest_and_it_runs_there(
    qtbot: QtBot, viewer: napari.Viewer, tiny: Path, told: list[str]
) -> None:
    _, widget = viewer.window.add_plugin_dock_widget("napari-arssr", "Upsample")
    assert isinstance(widget, UpsampleWidget)
    widget.weights.choose(str(tiny))
    layer = show(viewer, a_volume())
    run(qtbot, widget)
    np.testing.assert_allclose(
        viewer.layers[-1].data, upsample(volume_of(layer), 2.0, weights=tiny).data, atol=1e-3
    )
    assert told == []


def test_the_layers_menu_takes_the_selected_layer_and_hides_nothing(
    qtbot: QtBot, viewer: napari.Viewer, told: list[str]
) -> None:
    def choose(menu: str, *layers: Image) -> None:
        viewer.layers.selection = set(layers)
        (action,) = [
            one for path, one in actions(viewer.window._qt_window.menuBar()) if path == menu
        ]
        action.trigger()
        qtbot.wait(50)

    def docked(kind: type[QWidget]) -> list[QWidget]:
        return [one for one in viewer.window.dock_widgets.values() if isinstance(one, kind)]

    first, second, third = (
        show(viewer, replace(a_volume((4, 9, 10), (3.0, 1, 1)), name=name)) for name in "abc"
    )
    upsample_menu = "/Layers/Transform/Upsample (ArSSR super-resolution)"
    choose(upsample_menu, second)
    (widget,) = docked(UpsampleWidget)
    assert widget.image.layer == second
    choose(upsample_menu, first)
    assert docked(UpsampleWidget) == [widget]
    assert widget.image.layer == first
    assert widget.isVisible()
    plugins = "/Plugins/ArSSR super-resolution/Upsample (ArSSR super-resolution)"
    choose(plugins)  # napari hides what is open
    assert not widget.isVisible()
    choose(upsample_menu, third)
    assert widget.isVisible()
    assert widget.image.layer == third
    for layers in ([first, third], [second, third]):
        choose("/Layers/Transform/Fit stacks (ArSSR super-resolution)", *layers)
        (fit,) = docked(FitWidget)
        assert fit.stacks.layers == layers
        assert fit.isVisible()
    assert told == []


def actions(menu: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """What is in a menu and those below it, by its path."""
    for action in menu.actions():
        here = f"{above}/{action.text().replace('&', '')}"
        yield here, action
        if action.menu() is not None:
            yield from actions(action.menu(), here)


def test_it_works_behind_the_proxy_that_plugins_get(
    qtbot: QtBot,
    make_napari_viewer_proxy: Callable[..., napari.Viewer],
    tiny: Path,
    told: list[str],
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    widget = UpsampleWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Upsample")
    widget.weights.choose(str(tiny))
    show(viewer, a_volume((12, 40, 40)))
    widget.output.scale.value = 1.5
    run(qtbot, widget)
    assert viewer.layers[-1].name == "scan tiny ×1.5"
    viewer.layers.remove(viewer.layers[-1])
    click(qtbot, widget.region.draw)
    assert len(viewer.layers) == 2
    assert told == []


def test_it_can_be_told_to_run_as_soon_as_it_can(
    qtbot: QtBot, viewer: napari.Viewer, widget: UpsampleWidget
) -> None:
    widget.run_when_ready()
    assert widget.runner.state is State.IDLE
    show(viewer, a_volume())
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=PATIENCE)
    qtbot.wait(200)
    assert len(viewer.layers) == 2  # once
