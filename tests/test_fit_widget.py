"""Fitting stacks in a real window: real clicks, and the volume that comes of them."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pytest
import torch
from napari.layers import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QApplication, QWidget
from scipy.ndimage import gaussian_filter

from napari_arssr import fitting, io, weights
from napari_arssr._fit_plan import bounds_of
from napari_arssr._fit_widget import FitWidget
from napari_arssr._layers import image_layer, volume_of
from napari_arssr._loss_curve import ticks_between
from napari_arssr._slices_layer import DOUBTED
from napari_arssr._view import is_helper
from napari_arssr._worker import State
from napari_arssr.errors import OutOfMemory
from napari_arssr.fitting import cli as fit_cli
from napari_arssr.fitting.pipeline import output_grid
from napari_arssr.fitting.poses import rigid
from napari_arssr.volume import Grid, Volume

PATIENCE = 60_000
NAMES = ("axial", "coronal", "sagittal")
FINE = Grid.from_spacing((20, 24, 16), 1.5)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own, and one thread, which is faster for so little."""
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., napari.Viewer]) -> napari.Viewer:
    return make_napari_viewer(show=True)


@dataclass
class Window:
    """All that a story in a window needs."""

    qtbot: QtBot
    viewer: napari.Viewer
    widget: FitWidget
    told: list[str]

    def click(self, button: QWidget) -> None:
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def until(self, so: Callable[[], object]) -> None:
        self.qtbot.waitUntil(lambda: bool(so()), timeout=PATIENCE)

    def end(self) -> None:
        self.until(lambda: self.widget.runner.state is State.IDLE)

    def run(self) -> None:
        assert self.widget.run.button.isEnabled(), self.widget.estimate.text()
        self.click(self.widget.run.button)
        self.end()

    def names(self) -> list[str]:
        return [layer.name for layer in self.viewer.layers]

    @property
    def said(self) -> str:
        return self.widget.message.text()


@pytest.fixture
def window(qtbot: QtBot, viewer: napari.Viewer, told: list[str]) -> Window:
    widget = FitWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Fit stacks")
    return Window(qtbot, viewer, widget, told)


@pytest.fixture
def three(window: Window) -> Window:
    """A window with three stacks, to be reconstructed where they lie."""
    for axis in range(3):
        show(window.viewer, a_stack(axis))
    simply(window.widget)
    return window


def simply(widget: FitWidget) -> None:
    widget.method.method.value = "srr"
    widget.method.register.value = False


def truth() -> Volume:
    data = gaussian_filter(np.random.default_rng(3).normal(size=FINE.shape), 1.5)
    return Volume((100 + 400 * data).astype(np.float32), FINE.affine, name="truth")


def a_stack(axis: int, factor: int = 4) -> Volume:
    """The truth in slices ``factor`` voxels thick."""
    grid = FINE.scaled([1 / factor if other == axis else 1 for other in range(3)])
    split = list(FINE.shape)
    split[axis : axis + 1] = [grid.shape[axis], factor]
    data = truth().data.reshape(split).mean(axis=axis + 1)
    return Volume(data, grid.affine, name=NAMES[axis])


def show(viewer: napari.Viewer, volume: Volume) -> Image:
    data, settings, _ = image_layer(volume)
    return viewer.add_image(data, **settings)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "napari-arssr fit"]


def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let a fit go on and on after its first picture, until the event is set or it is stopped."""
    go_on = threading.Event()
    real = fitting.fit

    def slow(*arguments: Any, watch: fitting.Watch, **options: Any) -> fitting.State:
        def seen(volume: Volume) -> None:
            assert watch.seen is not None
            watch.seen(volume)
            while not go_on.is_set() and not watch.stop():
                go_on.wait(0.01)

        return real(*arguments, watch=replace(watch, seen=seen), **options)

    monkeypatch.setattr("napari_arssr._fit_plan.fit", slow)
    return go_on


# Opening and choosing ------------------------------------------------------------------------


def test_opening_imports_neither_torch_nor_simpleitk() -> None:
    code = """
        import sys
        import napari
        import numpy as np
        from qtpy.QtWidgets import QApplication

        viewer = napari.Viewer()
        viewer.add_image(np.random.rand(8, 9, 10), scale=(4, 1, 1))
        viewer.add_image(np.random.rand(8, 9, 10), scale=(1, 1, 4))
        from napari_arssr._fit_widget import FitWidget

        widget = FitWidget(viewer)
        viewer.window.add_dock_widget(widget, name="Fit stacks")
        QApplication.processEvents()
        print("torch" in sys.modules, "SimpleITK" in sys.modules, widget.run.button.isEnabled())
        viewer.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "True"]


def test_napari_opens_it_from_the_manifest(viewer: napari.Viewer) -> None:
    _, widget = viewer.window.add_plugin_dock_widget("napari-arssr", "Fit stacks")
    assert isinstance(widget, FitWidget)


def test_stacks_follow_the_viewer(window: Window) -> None:
    widget, viewer = window.widget, window.viewer
    assert not widget.run.button.isEnabled()
    first, second = (show(viewer, a_stack(axis)) for axis in (0, 1))
    assert widget.stacks.layers == [first, second]
    assert widget.run.button.isEnabled()
    isotropic = show(viewer, truth())  # no thick slices: offered, but not taken by itself
    assert widget.stacks.layers == [first, second]
    assert widget.stacks.list.count() == 3
    first.name = "renamed"
    assert "renamed" in widget.stacks.list.item(0).text()
    assert widget.stacks.reference.value == first
    widget.stacks.reference.value = second
    assert widget.stacks.number == 1
    widget.stacks.list.item(1).setCheckState(Qt.CheckState.Unchecked)
    assert widget.stacks.layers == [first]
    assert widget.stacks.number == 0
    assert "two or more" in widget.estimate.text()
    widget.stacks.list.item(2).setCheckState(Qt.CheckState.Checked)
    assert widget.stacks.layers == [first, isotropic]
    viewer.layers.remove(first)
    assert widget.stacks.layers == [isotropic]
    assert not widget.run.button.isEnabled()


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (np.zeros((20, 30, 3), np.uint8), {"rgb": True}, "RGB"),
        (np.zeros((20, 30), np.float32), {}, "one plane"),
        (np.zeros((2, 6, 7, 8), np.float32), {}, "2 frames"),
    ],
    ids=["rgb", "2D", "4D"],
)
def test_what_can_be_no_stack_is_grey_and_says_why(
    three: Window, data: Any, options: dict[str, Any], reason: str
) -> None:
    three.viewer.add_layer(Image(data, name="odd", contrast_limits=(0, 1), **options))
    item = three.widget.stacks.list.item(3)
    assert not item.flags() & Qt.ItemFlag.ItemIsEnabled
    assert reason in item.toolTip()
    assert len(three.widget.stacks.layers) == 3
    assert three.widget.run.button.isEnabled()


def test_what_is_to_come_is_said_before(three: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    widget = three.widget

    def estimate() -> str:
        return widget.estimate.text().replace("\N{NO-BREAK SPACE}", " ")

    assert estimate().startswith("20 × 24 × 16 · 1.5 mm · 30.7 kB")
    widget.voxel_size.side.value = 3.0
    assert widget.voxel_size.by_size.isChecked()
    assert estimate().startswith("10 × 12 × 8 · 3 mm")
    labels = np.zeros(three.viewer.layers[0].data.shape, np.int32)
    labels[2:4, 8:12, 4:8] = 1
    mask = three.viewer.add_labels(labels, affine=three.viewer.layers[0].affine)
    mask.units = three.viewer.layers[0].units
    widget.within.box.value = mask
    three.until(lambda: not estimate().startswith("10 × 12 × 8"))
    widget.within.box.native.setCurrentIndex(0)
    assert widget.within.layer is None
    assert estimate().startswith("10 × 12 × 8")
    monkeypatch.setattr("napari_arssr._fit_plan.memory_needed", lambda *_: 10**18)
    widget.voxel_size.side.value = 2.0
    assert "takes 1e+06 TB" in estimate()
    assert "choose a larger voxel size" in estimate()
    assert not widget.run.button.isEnabled()


def test_a_mask_is_looked_at_once_a_stroke_is_over_and_on_another_thread(
    three: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget, reference = three.widget, three.viewer.layers[0]
    looked: list[int] = []
    plans: list[object] = []

    def bounds(mask: Volume) -> Volume:
        looked.append(threading.get_ident())
        return bounds_of(mask)

    monkeypatch.setattr("napari_arssr._stack_choice.bounds_of", bounds)
    mask = three.viewer.add_labels(
        np.zeros(reference.data.shape, np.int32), affine=reference.affine, units=reference.units
    )
    widget.within.box.value = mask
    three.until(lambda: "empty" in widget.estimate.text())
    looked.clear()
    widget.within.changed.connect(lambda: plans.append(widget._plan))
    mask.brush_size = 1
    for row in range(6, 12):
        mask.paint((2, row, 6), 1)
    assert (looked, plans) == ([], [])
    three.until(lambda: widget._plan is not None and widget._plan.grid.size < FINE.size)
    assert len(looked) == 1
    assert threading.get_ident() not in looked
    assert widget._plan is not None
    assert widget._plan.grid == output_grid(
        widget._plan.volumes, widget._plan.settings, volume_of(mask)
    )


# Running --------------------------------------------------------------------------------------


def test_a_fit_lies_where_the_stacks_lie(three: Window) -> None:
    three.widget.method.uncertainty.value = True
    three.run()
    assert three.names()[3:] == [
        "uncertainty of fit of axial, coronal, sagittal · 1.5 mm · srr",
        "fit of axial, coronal, sagittal · 1.5 mm · srr",
    ]
    spread, result = three.viewer.layers[3:]
    found = volume_of(result)
    expected = truth()
    assert found.grid == expected.grid
    inner = (slice(3, -3),) * 3
    error = np.std((found.data - expected.data)[inner])
    assert error < 0.15 * expected.data.std()
    axial = three.viewer.layers[0]
    for corner in ((0, 0, 0), (5, 24, 16)):  # faces on faces
        there = axial.data_to_world(np.array(corner) - 0.5)
        fine = np.array(corner) * (4, 1, 1) - 0.5
        np.testing.assert_allclose(result.data_to_world(fine), there, atol=1e-6)
    assert result.units == axial.units
    assert tuple(result.contrast_limits) == tuple(axial.contrast_limits)
    record = result.metadata["fit"]
    assert record["settings"]["method"] == "srr"
    assert [stack["name"] for stack in record["stacks"]] == list(NAMES)
    assert volume_of(spread).grid == expected.grid
    assert (spread.data > 0).all()
    assert "Done in" in three.said
    assert three.told == []
    # As good as fitted in Python from the same stacks: the very same.
    state = fitting.fit(
        [volume_of(layer) for layer in three.viewer.layers[:3]],
        fitting.Settings("srr", register=False),
    )
    np.testing.assert_allclose(found.data, state.field().sample(state.grid).data, atol=1e-3)


def test_a_picture_appears_before_the_end_and_gives_way_to_the_result(
    three: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = hold(monkeypatch)
    three.click(three.widget.run.button)
    three.until(lambda: three.widget._picture.layer)
    picture = three.widget._picture.layer
    assert picture is not None
    assert is_helper(picture)
    assert picture not in three.widget.stacks.layers
    assert three.widget.stacks.list.count() == 3
    assert volume_of(picture).grid == FINE
    three.until(lambda: "%" in three.widget.run.text.text())
    three.until(lambda: three.widget.curve.numbers)
    assert three.widget.curve.isVisible()
    go_on.set()
    three.end()
    assert len(three.viewer.layers) == 4
    errors = [number.error for number in three.widget.curve.numbers]
    assert errors[-1] < 0.5 * errors[0]
    assert not three.widget.curve.grab().isNull()


def test_only_one_picture_at_a_time(three: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_arssr._sight._BETWEEN", 0.0)
    pictures: list[int] = []
    three.viewer.layers.events.inserted.connect(lambda event: pictures.append(len(pictures)))
    three.run()
    assert len(pictures) == 2  # the picture and the result
    assert not any(is_helper(layer) for layer in three.viewer.layers)


def test_a_picture_that_was_removed_does_not_come_back(
    three: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_arssr._sight._BETWEEN", 0.0)
    go_on = hold(monkeypatch)
    three.click(three.widget.run.button)
    three.until(lambda: three.widget._picture.layer)
    three.viewer.layers.remove(three.widget._picture.layer)
    go_on.set()
    three.end()
    assert len(three.viewer.layers) == 4
    assert three.told == []


def test_cancel_in_the_middle_and_run_again(three: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    button = three.widget.run.button
    three.click(button)
    three.widget.start()  # a second start is none
    assert len(threads()) == 1
    three.until(lambda: three.widget._picture.layer)
    three.until(button.isEnabled)
    assert button.text() == "Cancel"
    three.click(button)
    assert button.text() == "Cancelling…"
    three.end()
    assert three.said == "Cancelled."
    assert three.names() == list(NAMES)
    assert threads() == []
    monkeypatch.undo()
    torch.set_num_threads(1)
    three.run()
    assert len(three.viewer.layers) == 4
    assert three.told == []


def test_removing_a_stack_ends_its_fit(three: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    three.click(three.widget.run.button)
    three.until(lambda: three.widget._picture.layer)
    three.viewer.layers.remove("coronal")
    three.end()
    assert three.names() == ["axial", "sagittal"]
    assert three.said == "Cancelled."
    assert three.told == []


def test_closing_the_panel_ends_the_fit(three: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    three.widget.slices.setChecked(True)
    three.click(three.widget.run.button)
    three.until(lambda: three.widget._picture.layer)
    three.viewer.window.remove_dock_widget(three.widget)
    three.until(lambda: not threads())
    three.qtbot.wait(200)
    assert three.names() == list(NAMES)
    assert three.told == []


def test_closing_the_window_ends_the_fit(
    qtbot: QtBot,
    make_napari_viewer: Callable[..., napari.Viewer],
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
) -> None:
    viewer = make_napari_viewer(show=False)
    widget = FitWidget(viewer)
    viewer.window.add_dock_widget(widget)
    for axis in range(3):
        show(viewer, a_stack(axis))
    simply(widget)
    hold(monkeypatch)
    widget.slices.setChecked(True)
    widget.start()
    qtbot.waitUntil(lambda: widget._picture.layer is not None, timeout=PATIENCE)
    viewer.close()
    QApplication.sendPostedEvents(QObject(), QEvent.Type.DeferredDelete)
    qtbot.waitUntil(lambda: not threads(), timeout=PATIENCE)
    assert told == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemory("no room for this"), "no room for this"),
        (RuntimeError("mat1 and mat2"), "Fitting the stacks failed with RuntimeError"),
        (MemoryError(), "not enough memory; close other programs"),
    ],
    ids=["ours", "torch", "memory"],
)
def test_an_error_is_one_notification_and_leaves_it_ready(
    three: Window, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("napari_arssr._fit_plan.fit", broken)
        three.run()
    assert len(three.told) == 1
    assert words in three.told[0]
    assert "That did not work" in three.said
    assert three.names() == list(NAMES)
    assert three.widget.run.button.isEnabled()


def test_a_stack_with_nothing_in_it_is_named(three: Window) -> None:
    three.viewer.layers["coronal"].data = np.zeros_like(three.viewer.layers["coronal"].data)
    three.run()
    (message,) = three.told
    assert "coronal is 0 everywhere" in message
    three.widget.stacks.list.item(1).setCheckState(Qt.CheckState.Unchecked)
    three.run()
    assert len(three.viewer.layers) == 4


def test_default_moves_slices_and_says_which_it_doubts(three: Window) -> None:
    layer = three.viewer.layers["axial"]
    data = layer.data.copy()
    data[2] = data[2][::-1] * 2
    layer.data = data
    widget = three.widget
    widget.method.method.value = "default"
    widget.advanced.network.value = False
    three.run()
    assert "axial: slice 2 of 5 hardly believed" in three.said
    widget.slices.setChecked(True)
    assert "red" in widget.slices_note.text()
    shown = widget._slices.layer
    assert shown is not None
    red = napari.utils.colormaps.standardize_color.transform_color(DOUBTED)[0]
    assert (np.abs(shown.edge_color - red).max(axis=1) < 1e-3).sum() == 4


# Slices ------------------------------------------------------------------------------------------


def ends(window: Window) -> np.ndarray:
    """World of both ends of every side that is shown, (n, 2, 3)."""
    layer = window.widget._slices.layer
    assert layer is not None
    data = np.asarray(layer.data)
    both = np.stack([data[:, 0], data[:, 0] + data[:, 1]], axis=1).reshape(-1, 3)
    return np.array([layer.data_to_world(point) for point in both]).reshape(-1, 2, 3)


def test_slices_are_shown_where_files_say_and_then_where_they_were_found(three: Window) -> None:
    widget, viewer = three.widget, three.viewer
    moved = rigid([0.0, 0.0, 0.1, 2.0, 0.0, 0.0], (0.0, 0.0, 0.0))
    layer = viewer.layers["coronal"]
    away = replace(a_stack(1), affine=np.linalg.inv(moved) @ a_stack(1).affine)
    layer.affine = image_layer(away)[1]["affine"]
    widget.slices.setChecked(True)
    assert viewer.dims.ndisplay == 3
    assert "files say" in widget.slices_note.text()
    before = ends(three)
    assert before.shape == (4 * (5 + 6 + 4), 2, 3)
    first = viewer.layers["axial"]
    for corner in ((0, -0.5, -0.5), (4, 23.5, 15.5)):
        assert np.abs(before - first.data_to_world(corner)).max(axis=-1).min() < 1e-6
    corner = layer.data_to_world((-0.5, 2, -0.5))
    assert np.abs(before - corner).max(axis=-1).min() < 1e-6
    # A stack that lies elsewhere has its slices elsewhere.
    layer.translate = (5.0, 0.0, 0.0)
    assert np.abs(ends(three) - corner).max(axis=-1).min() > 1
    layer.translate = (0.0, 0.0, 0.0)
    widget.method.register.value = True
    widget.method.method.value = "bspline"
    three.run()
    assert "where the fit found them" in widget.slices_note.text()
    after = ends(three)
    true = -a_stack(1).grid.slice_outlines(1).reshape(-1, 3)[:, ::-1]
    found = np.array([np.abs(after - corner).max(axis=-1).min() for corner in true])
    assert found.max() < 1.0  # registered to within a voxel, from 2 mm and 6° away
    widget.slices.setChecked(False)
    assert viewer.dims.ndisplay == 2
    assert not any(is_helper(one) for one in viewer.layers)


def test_slices_go_with_their_layer_and_with_their_stacks(three: Window) -> None:
    widget, layers = three.widget, three.viewer.layers
    widget.slices.setChecked(True)
    layers.remove(widget._slices.layer)
    assert not widget.slices.isChecked()
    widget.slices.setChecked(True)
    assert len(layers) == 4
    layers.select_all()
    layers.remove_selected()
    three.until(lambda: not widget.slices.isChecked())
    assert len(layers) == 0
    assert three.told == []


# What goes on after the fit ----------------------------------------------------------------------


def test_a_fit_is_sampled_again_saved_and_looked_at_live(three: Window, tmp_path: Path) -> None:
    widget = three.widget
    assert not widget.save.isEnabled()
    three.run()
    calls = threading.active_count()
    widget.voxel_size.side.value = 0.75
    three.click(widget.again)
    three.end()
    finer = three.viewer.layers[-1]
    assert finer.name == "fit of axial, coronal, sagittal · 0.75 mm · srr"
    assert volume_of(finer).grid == FINE.with_spacing(0.75)
    coarse = three.viewer.layers[-2]
    middle = coarse.data_to_world((10, 12, 8))
    assert finer.data[tuple(np.rint(finer.world_to_data(middle)).astype(int))] == pytest.approx(
        coarse.data[10, 12, 8], abs=10
    )
    widget.save_fit(tmp_path / "kept")
    three.until(lambda: three.said.startswith("Saved"))
    state = fitting.load(tmp_path / "kept.safetensors")
    assert [record.name for record in state.stacks] == list(NAMES)
    assert state.field().sample(state.grid).data == pytest.approx(coarse.data, abs=1e-3)
    three.viewer.scene.camera.zoom *= 4
    widget.live.box.setChecked(True)
    three.until(lambda: widget.live.view is not None and widget.live.view.image)
    three.until(lambda: " ms" in widget.live.note.text())
    three.viewer.layers.remove(coarse)
    three.until(lambda: not widget.live.box.isChecked())
    assert three.told == []
    assert threading.active_count() <= calls + 1


def test_of_several_fits_the_one_whose_result_is_selected_is_meant(
    three: Window, tmp_path: Path
) -> None:
    widget, viewer = three.widget, three.viewer
    three.run()
    first = viewer.layers[-1]
    assert not widget.which.text()
    widget.voxel_size.side.value = 3.0
    three.run()
    second = viewer.layers[-1]
    assert "3 mm" in widget.which.text()

    def kept(name: str) -> Grid:
        widget.save_fit(tmp_path / name)
        three.until(lambda: three.said.endswith(f"{name}.safetensors"))
        return fitting.load(tmp_path / f"{name}.safetensors").grid

    assert kept("newest") == volume_of(second).grid
    viewer.layers.selection.active = first
    assert "1.5 mm" in widget.which.text()
    assert kept("first") == volume_of(first).grid
    widget.voxel_size.side.value = 0.75
    three.click(widget.again)
    three.end()
    assert volume_of(viewer.layers[-1]).grid == FINE.with_spacing(0.75)
    assert "1.5 mm" in widget.which.text()  # of which this is a sample
    viewer.layers.selection.active = viewer.layers["axial"]
    assert kept("again") == volume_of(second).grid
    # A fit goes with the last of its results; the newest with its stacks, too.
    viewer.layers.remove(first)
    assert len(widget._fits) == 2
    viewer.layers.pop()
    assert len(widget._fits) == 1
    assert not widget.which.text()
    viewer.layers.remove(second)
    assert kept("last") == FINE.with_spacing(3)
    assert three.told == []


def test_a_fit_is_not_saved_over_another_whose_name_was_not_given_whole(
    three: Window, tmp_path: Path
) -> None:
    three.run()
    precious = tmp_path / "precious.safetensors"
    precious.write_text("hours of work")
    three.widget.save_fit(tmp_path / "precious")
    assert "precious.safetensors exists; choose another name" in three.said
    assert precious.read_text() == "hours of work"
    three.widget.save_fit(precious)  # the dialog has asked about this one
    three.until(lambda: three.said.startswith("Saved"))


def test_what_is_painted_on_a_mask_meanwhile_is_for_the_next_fit(
    three: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = three.viewer.layers[0]
    mask = three.viewer.add_labels(
        np.ones(reference.data.shape, np.int32), affine=reference.affine, units=reference.units
    )
    three.widget.within.box.value = mask
    three.until(lambda: three.widget._plan is not None and three.widget._plan.mask is not None)
    seen: list[float] = []
    real = fitting.fit

    def late(*arguments: Any, mask: Volume, **options: Any) -> fitting.State:
        three.viewer.layers["Labels"].data[:] = 0
        seen.append(float(np.asarray(mask.data).mean()))
        return real(*arguments, mask=mask, **options)

    monkeypatch.setattr("napari_arssr._fit_plan.fit", late)
    three.run()
    assert seen == [1.0]


def test_what_was_made_of_a_stack_is_no_other_stack_by_itself(window: Window) -> None:
    first, second = (show(window.viewer, a_stack(axis)) for axis in (0, 1))
    made = a_stack(2)
    show(window.viewer, replace(made, metadata={"upsampling": {}}))
    assert window.widget.stacks.layers == [first, second]


def test_a_result_that_is_moved_takes_the_fit_with_it(three: Window) -> None:
    widget, viewer = three.widget, three.viewer
    three.run()
    assert {"Q", "W"} <= {str(key) for key in viewer.keymap}
    result = viewer.layers[-1]
    viewer.scene.camera.zoom *= 4

    def picture() -> np.ndarray:
        three.qtbot.wait(100)
        live = widget.live.view
        assert live is not None
        three.until(lambda: live._desk.newest and live._shown[0] == live._desk.newest.number)
        three.until(lambda: live._shown[1] == len(live._desk.newest.stages) - 1)
        return live.image.data.plane

    def move() -> None:
        """The result by two voxels, and the sight with it."""
        here = result.data_to_world((0, 0, 0))[0]
        result.translate = np.add(result.translate, (2, 0, 0))
        viewer.dims.set_point(0, viewer.dims.point[0] + result.data_to_world((0, 0, 0))[0] - here)

    widget.live.box.setChecked(True)
    before = picture()
    move()
    np.testing.assert_allclose(picture(), before, atol=1e-2)
    widget.live.box.setChecked(False)
    three.qtbot.wait(50)  # until the sight is kept, after the live view's layer has gone
    move()
    widget.live.box.setChecked(True)
    np.testing.assert_allclose(picture(), before, atol=1e-2)
    widget.live.box.setChecked(False)
    for name in three.names():  # a fit of which nothing is left is not kept
        assert widget.save.isEnabled()
        viewer.layers.remove(name)
    assert not widget.save.isEnabled()
    assert widget._done is None
    assert three.told == []


def test_a_reference_that_is_moved_meanwhile_is_named(
    three: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = hold(monkeypatch)
    three.click(three.widget.run.button)
    three.until(lambda: three.widget._picture.layer)
    three.viewer.layers["axial"].translate = (0, 30, 0)
    go_on.set()
    three.end()
    assert "While this ran axial was moved" in three.said


def test_a_fit_that_cannot_be_saved_says_so(three: Window, tmp_path: Path) -> None:
    three.run()
    three.widget.save_fit(tmp_path / "nowhere" / "kept")
    three.until(lambda: three.told)
    assert "nowhere" in three.told[0]
    assert three.widget.save.isEnabled()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit in a file."""
    settings = fitting.Settings("srr", register=False, spacing=2.0)
    state = fitting.fit([a_stack(axis) for axis in range(3)], settings, uncertainty=True)
    return fitting.save(tmp_path_factory.mktemp("fits") / "kept.safetensors", state)


def test_a_kept_fit_is_opened_without_its_stacks(
    window: Window, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget, viewer = window.widget, window.viewer
    monkeypatch.setattr(
        "napari_arssr._fit_widget.QFileDialog.getOpenFileName", lambda *_: (str(kept), "")
    )
    window.click(widget.open)
    window.end()
    assert window.names() == [
        "uncertainty of fit of axial, coronal, sagittal · 2 mm · srr",
        "fit of axial, coronal, sagittal · 2 mm · srr",
    ]
    opened = viewer.layers[-1]
    state = fitting.load(kept)
    assert volume_of(opened).grid == state.grid
    np.testing.assert_allclose(
        volume_of(opened).data, state.field().sample(state.grid).data, atol=1e-3
    )
    assert [str(unit) for unit in opened.units] == ["millimeter"] * 3
    widget.slices.setChecked(True)
    assert "where the fit found them" in widget.slices_note.text()
    assert ends(window).shape == (4 * (5 + 6 + 4), 2, 3)
    widget.slices.setChecked(False)
    widget.voxel_size.side.value = 1.0
    window.click(widget.again)
    window.end()
    assert volume_of(viewer.layers[-1]).grid == state.grid.with_spacing(1.0)
    viewer.scene.camera.zoom *= 4
    widget.live.box.setChecked(True)
    window.until(lambda: " ms" in widget.live.note.text())
    widget.live.box.setChecked(False)
    assert widget.save.isEnabled()
    assert window.told == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("stopped", "stopped before its end"),
        ("weights", "this is no fit"),
        ("broken", "not a whole safetensors file"),
        ("missing", "there is no such fit"),
    ],
)
def test_a_file_that_is_no_whole_fit_is_refused(
    window: Window, kept: Path, tmp_path: Path, case: str, words: str
) -> None:
    path = tmp_path / "other.safetensors"
    if case == "stopped":
        state = fitting.load(kept)
        state.stage = "posed"
        fitting.save(path, state)
    elif case == "weights":
        path = Path(str(files("napari_arssr") / "bundled" / "default.safetensors"))
    elif case == "broken":
        path.write_bytes(kept.read_bytes()[:-100])
    window.widget.open_fit(path)
    window.end()
    (message,) = window.told
    assert words in message
    assert path.name in message
    assert window.names() == []
    assert window.widget.open.isEnabled()
    assert not window.widget.save.isEnabled()


@pytest.mark.parametrize("method", ["srr", "paper", "default", "irem"])
def test_the_copied_command_means_the_same(window: Window, tmp_path: Path, method: str) -> None:
    viewer, widget = window.viewer, window.widget
    paths = [tmp_path / f"{name}.nii.gz" for name in NAMES]
    for axis, path in enumerate(paths):
        io.write(path, a_stack(axis))
    inside = Volume(np.ones(FINE.shape, np.uint8), FINE.affine, name="mask")
    io.write(tmp_path / "mask.nii.gz", inside)
    viewer.open([str(path) for path in paths], plugin="napari-arssr", stack=False)
    viewer.open(str(tmp_path / "mask.nii.gz"), plugin="napari-arssr", layer_type="labels")
    widget.method.method.value = method
    widget.method.motion.value = "stacks"
    widget.method.minutes.value = 2.5
    widget.method.epochs.value = 7
    widget.method.uncertainty.value = True
    widget.method.register.value = False
    widget.voxel_size.side.value = 0.8
    widget.stacks.reference.value = viewer.layers[1]
    widget.advanced.similarity.value = "mutual-information"
    widget.advanced.profile.value = "gaussian"
    widget.advanced.network.value = method == "irem"
    widget.advanced.weights.choose("arssr-rdn")
    widget.advanced.penalty.value = "tikhonov"
    widget.advanced.strength.value = 0.02
    widget.advanced.seed.value = 3
    widget.within.box.value = viewer.layers[3]
    plan = widget._plan
    assert plan is not None
    window.click(widget.copy)
    window.until(lambda: window.said.startswith("Copied"))
    words = shlex.split(QApplication.clipboard().text())
    assert words[0] == "napari-arssr"
    parser = argparse.ArgumentParser()
    fit_cli.add_fit(parser.add_subparsers())
    options = parser.parse_args(words[1:])
    assert fit_cli._settings(options) == plan.settings
    assert plan.settings.seed == 3
    assert plan.settings.epochs == (7 if method in ("paper", "irem") else None)
    assert plan.settings.penalty == ("tv" if method == "paper" else "tikhonov")
    assert plan.settings.weight == (None if method == "paper" else 0.02)
    assert plan.settings.weights == ("arssr-rdn" if method == "irem" else "default")
    assert options.stacks == paths
    assert options.mask == tmp_path / "mask.nii.gz"
    assert (options.uncertainty is not None) == (method != "paper")
    assert window.told == []
    # What was changed in the window is in no file.
    viewer.layers[0].data = viewer.layers[0].data * 2
    window.click(widget.copy)
    window.until(lambda: window.told)
    assert "axial" in window.told[0]


def test_stacks_without_files_have_no_command_and_say_so(three: Window) -> None:
    three.click(three.widget.copy)
    assert "axial, coronal, sagittal come from no file" in three.said


# The curve ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 5), (0.9, 1.1), (1e-4, 1e3), (0.0521, 0.0529), (3, 30)]
)
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = ticks_between(low, high)
    assert len(ticks) >= 2
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(ticks)
