"""Comparing a result with its input: two keys in a real window, and what is on the screen then."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import napari
import numpy as np
import numpy.typing as npt
import pytest
from napari.layers import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication

from napari_arssr._compare import BEFORE_AFTER_KEY, SPLIT_KEY, Comparison
from napari_arssr._layers import image_layer
from napari_arssr._view import is_helper, mark_result
from napari_arssr.volume import Grid, Volume

FLIPPED = np.diag([-1.0, 1.0, -1.0, 1.0])
DARK, BRIGHT = 64, 191


@dataclass
class Scene:
    """A window with a dark input, its bright result, and the keys."""

    qtbot: QtBot
    viewer: napari.Viewer
    source: Image
    result: Image
    comparison: Comparison
    told: list[str]

    @property
    def canvas(self) -> Any:
        return self.viewer.window._qt_viewer.canvas.native

    def press(self, key: str) -> None:
        self.qtbot.keyClick(self.canvas, getattr(Qt.Key, f"Key_{key}"))
        self.qtbot.wait(60)

    def screenshot(self) -> npt.NDArray[np.int64]:
        shot = self.viewer.screenshot(canvas_only=True, flash=False)
        return np.asarray(shot[..., :3], dtype=np.int64)

    def row(self) -> npt.NDArray[np.int64]:
        """The grey values along the middle of the canvas."""
        shot = self.screenshot()
        grey: npt.NDArray[np.int64] = shot[len(shot) // 2, :, 0]
        return grey

    def sees(self, grey: int) -> bool:
        """Whether the whole row is of one grey."""
        return bool((np.abs(self.row() - grey) <= 2).all())

    def line(self) -> int:
        """Where the split view's line is, in pixels from the left."""
        shot = self.screenshot()
        middle = shot[len(shot) // 2]
        yellow = np.nonzero((np.abs(middle - (255, 209, 102)) < 60).all(axis=-1))[0]
        assert 1 <= len(yellow) <= 4
        return int(yellow[0])

    def drag(self, start: float, end: float) -> None:
        """Along the middle of the canvas, from one column to another."""
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        self._mouse(QEvent.Type.MouseMove, start, none, none)
        self._mouse(QEvent.Type.MouseButtonPress, start, left, left)
        for step in range(1, 6):
            self._mouse(QEvent.Type.MouseMove, start + (end - start) * step / 5, none, left)
        self._mouse(QEvent.Type.MouseButtonRelease, end, left, none)
        self.qtbot.wait(60)

    def _mouse(self, kind: Any, column: float, button: Any, held: Any) -> None:
        point = QPointF(column, self.canvas.height() / 2)
        event = QMouseEvent(
            kind,
            point,
            QPointF(self.canvas.mapToGlobal(point)),
            button,
            held,
            Qt.KeyboardModifier.NoModifier,
        )
        QApplication.sendEvent(self.canvas, event)
        self.qtbot.wait(10)


Begin = Callable[..., Scene]


@pytest.fixture
def begin(
    qtbot: QtBot, make_napari_viewer: Callable[..., napari.Viewer], told: list[str]
) -> Iterator[Begin]:
    scenes: list[Scene] = []

    def make(*, with_result: bool = True, affine: Any = None, seen: bool = True) -> Scene:
        viewer = make_napari_viewer(show=seen)
        viewer.window.resize(900, 700)
        shape = (6, 30, 40)
        affine = Grid.from_spacing(shape, 1.0).affine if affine is None else affine
        volume = Volume(np.full(shape, DARK, dtype=np.float32), affine, name="scan")
        source = show(viewer, volume)
        result = show(
            viewer,
            Volume(
                np.full((12, 60, 80), BRIGHT, dtype=np.float32),
                volume.grid.scaled(2).affine,
                name="sharp",
            ),
        )
        if with_result:
            mark_result(result, source)
        else:
            viewer.layers.remove(result)
        scene = Scene(qtbot, viewer, source, result, Comparison(viewer), told)
        scenes.append(scene)
        qtbot.wait(100)
        viewer.scene.camera.zoom = 40  # nothing but the two on the canvas
        qtbot.wait(100)
        return scene

    yield make
    for scene in scenes:
        scene.comparison.close()


def show(viewer: napari.Viewer, volume: Volume) -> Image:
    data, settings, _ = image_layer(volume)
    return viewer.add_image(data, **settings | {"contrast_limits": (0, 255)})


def test_a_key_shows_before_and_again_after(begin: Begin) -> None:
    scene = begin()
    assert scene.sees(BRIGHT)
    scene.press(BEFORE_AFTER_KEY)
    assert scene.sees(DARK)
    scene.press(BEFORE_AFTER_KEY)
    assert scene.sees(BRIGHT)
    assert scene.told == []


def test_an_input_that_was_hidden_is_hidden_again(begin: Begin) -> None:
    scene = begin()
    scene.source.visible = False
    scene.press(BEFORE_AFTER_KEY)
    assert scene.sees(DARK)
    scene.press(BEFORE_AFTER_KEY)
    assert not scene.source.visible
    assert scene.sees(BRIGHT)


def test_a_result_that_was_hidden_is_shown(begin: Begin) -> None:
    scene = begin()
    scene.result.visible = False
    scene.press(BEFORE_AFTER_KEY)
    assert scene.sees(BRIGHT)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("affine", [None, FLIPPED], ids=["plain", "flipped"])
def test_the_split_view_has_the_input_left_and_the_result_right(
    begin: Begin, affine: Any, order: tuple[int, int, int]
) -> None:
    scene = begin(affine=affine)
    viewer = scene.viewer
    viewer.dims.order = order
    viewer.reset_view()
    viewer.scene.camera.zoom = 200
    before, ranges = list(viewer.layers), viewer.dims.range
    scene.qtbot.wait(60)
    scene.press(SPLIT_KEY)
    assert scene.comparison.is_split
    row, line = scene.row(), scene.line()
    # Cut between two voxels, the nearest to the middle.
    assert abs(line - len(row) / 2) <= 102
    assert (np.abs(row[: line - 2] - DARK) <= 2).all()
    assert (np.abs(row[line + 6 :] - BRIGHT) <= 2).all()
    assert all(is_helper(layer) for layer in viewer.layers if layer not in before)
    assert viewer.dims.range == ranges
    scene.press(SPLIT_KEY)
    assert not scene.comparison.is_split
    assert list(viewer.layers) == before
    assert scene.sees(BRIGHT)


def test_the_line_is_dragged_with_the_mouse_and_the_camera_stays(begin: Begin) -> None:
    scene = begin()
    scene.press(SPLIT_KEY)
    centre = scene.viewer.scene.camera.center
    start = scene.line()
    scene.drag(start, start - 160)
    assert scene.viewer.scene.camera.center == centre
    line = scene.line()
    assert line == pytest.approx(start - 160, abs=21)  # half a voxel of 40 pixels
    row = scene.row()
    assert (np.abs(row[: line - 2] - DARK) <= 2).all()
    assert (np.abs(row[line + 6 :] - BRIGHT) <= 2).all()
    # Elsewhere the mouse pans, as ever.
    scene.drag(line + 100, line + 130)
    assert scene.viewer.scene.camera.center != centre


def test_the_line_stays_on_the_screen_while_the_camera_moves(begin: Begin) -> None:
    scene = begin()
    scene.press(SPLIT_KEY)
    for zoom in (30, 60, 90):
        scene.viewer.scene.camera.zoom = zoom
        scene.qtbot.wait(60)
        row = scene.row()
        assert scene.line() == pytest.approx(len(row) / 2, abs=zoom / 2 + 2)
    scene.viewer.dims.ndisplay = 3
    scene.qtbot.wait(60)
    assert not any(is_helper(layer) and layer.visible for layer in scene.viewer.layers)
    scene.viewer.dims.ndisplay = 2
    scene.qtbot.wait(60)
    assert scene.line()


def test_the_input_in_the_split_view_looks_as_it_does(begin: Begin) -> None:
    scene = begin()
    scene.press(SPLIT_KEY)
    scene.source.contrast_limits = (0, 128)
    scene.qtbot.wait(60)
    row = scene.row()
    assert abs(int(row[10]) - 127) <= 2
    scene.source.data = np.full((6, 30, 40), 32, dtype=np.float32)
    scene.qtbot.wait(60)
    assert abs(int(scene.row()[10]) - 64) <= 2


@pytest.mark.parametrize("key", [BEFORE_AFTER_KEY, SPLIT_KEY])
def test_with_nothing_to_compare_it_says_what_to_do(begin: Begin, key: str) -> None:
    scene = begin(with_result=False)
    scene.press(key)
    assert len(scene.told) == 1
    assert "nothing to compare yet: press Run" in scene.told[0]
    assert [layer.name for layer in scene.viewer.layers] == ["scan"]
    scene.viewer.layers.clear()
    scene.press(key)
    assert len(scene.told) == 2


# Not on the screen: Mesa's software renderer crashes when napari deletes what it has drawn.
@pytest.mark.parametrize("which", ["source", "result"])
def test_the_split_view_ends_with_either_layer(begin: Begin, which: str) -> None:
    scene = begin(seen=False)
    scene.comparison.split()
    assert scene.comparison.is_split
    gone, left = (scene.source, scene.result) if which == "source" else (scene.result, scene.source)
    scene.viewer.layers.remove(gone)
    assert not scene.comparison.is_split
    scene.qtbot.waitUntil(lambda: list(scene.viewer.layers) == [left], timeout=10_000)
    scene.viewer.scene.camera.zoom = 20
    scene.qtbot.wait(60)


def test_all_layers_can_be_deleted_at_once(begin: Begin) -> None:
    scene = begin(seen=False)
    scene.comparison.split()
    scene.viewer.layers.select_all()
    scene.viewer.layers.remove_selected()
    scene.qtbot.waitUntil(lambda: len(scene.viewer.layers) == 0, timeout=10_000)
    scene.comparison.toggle()
    assert "nothing to compare" in scene.told[-1]


def test_closing_gives_the_keys_back_and_the_layers_as_they_were(begin: Begin) -> None:
    scene = begin()
    scene.press(BEFORE_AFTER_KEY)
    scene.comparison.close()
    assert scene.result.visible
    scene.press(BEFORE_AFTER_KEY)
    scene.press(SPLIT_KEY)
    assert scene.sees(BRIGHT)
    assert list(scene.viewer.layers) == [scene.source, scene.result]
    again = Comparison(scene.viewer)  # the keys are free
    scene.press(SPLIT_KEY)
    assert again.is_split
    again.close()
    assert scene.told == []


def test_keys_that_are_taken_are_left_alone(begin: Begin) -> None:
    scene = begin()
    other = Comparison(scene.viewer)
    assert len(scene.told) == 2
    assert f"key {SPLIT_KEY} is taken" in scene.told[1]
    other.close()
    scene.press(SPLIT_KEY)
    assert scene.comparison.is_split


def test_a_viewer_has_one_comparison_that_is_there_until_the_last_lets_go(begin: Begin) -> None:
    scene = begin()
    scene.comparison.close()
    first, second = (Comparison.of(scene.viewer) for _ in range(2))
    assert first is second
    first.close()
    scene.press(SPLIT_KEY)
    assert second.is_split
    second.close()
    assert not second.is_split
    scene.press(SPLIT_KEY)
    assert not second.is_split
    third = Comparison.of(scene.viewer)
    assert third is not first
    third.close()
    assert scene.told == []


def test_a_result_that_comes_while_split_is_covered_too(begin: Begin) -> None:
    scene = begin()
    scene.press(SPLIT_KEY)
    newer = scene.viewer.add_layer(copy(scene.result))
    mark_result(newer, scene.source)
    scene.comparison.rise()
    scene.qtbot.wait(60)
    row, line = scene.row(), scene.line()
    assert (np.abs(row[: line - 2] - DARK) <= 2).all()
    assert (np.abs(row[line + 6 :] - BRIGHT) <= 2).all()


def test_a_result_that_is_removed_while_the_input_is_shown_is_not_kept(begin: Begin) -> None:
    scene = begin(seen=False)
    data = weakref.ref(scene.result.data)
    scene.comparison.toggle()
    scene.viewer.layers.remove(scene.result)
    scene.result = scene.source
    scene.qtbot.wait(60)
    gc.collect()
    assert data() is None


def test_a_viewer_may_close_while_split(begin: Begin) -> None:
    scene = begin()
    scene.press(SPLIT_KEY)
    scene.viewer.close()
    scene.qtbot.wait(60)
    assert not scene.comparison.is_split
    scene.comparison.toggle()
    scene.comparison.split()
    assert len(scene.told) == 2  # nothing to compare
