"""A box drawn with the mouse in a real window: from the pixels dragged over to the voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import napari
import numpy as np
import numpy.typing as npt
import pytest
from napari.components import ViewerModel
from napari.layers import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication
from scipy.spatial.transform import Rotation
from tiny import TINY, tiny_network

from napari_arssr._box import DrawnBox
from napari_arssr._layers import image_layer, volume_of
from napari_arssr._view import affine_of, is_helper, view_of
from napari_arssr.errors import UsageError
from napari_arssr.models import Card
from napari_arssr.upsampling import encode
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.weights import Loaded

PATIENCE = 60_000  # milliseconds
SHAPE = 20, 30, 36
YELLOW = 255, 209, 102

FLIPPED = np.diag([-0.9, 1.1, -2.5, 1.0])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [14, -9, 21], degrees=True).as_matrix()
OBLIQUE[:3, :3] *= 1.0, 1.2, 1.5
OBLIQUE[:3, 3] = OBLIQUE[:3, :3] @ (-18, -15, -10)  # the scanner's centre in the middle


def a_volume(shape: tuple[int, ...] = SHAPE, affine: Any = None) -> Volume:
    data = np.random.default_rng(4).normal(100, 20, shape).astype(np.float32)
    if affine is None:
        affine = Grid.from_spacing(data.shape[-3:], (2.0, 1.0, 1.0)).affine
    return Volume(data, affine, name="scan")


def show(viewer: ViewerModel, volume: Volume) -> Image:
    data, settings, _ = image_layer(volume)
    return viewer.add_image(data, **settings)


@dataclass
class Scene:
    """A window with an image, and a box that can be drawn in it."""

    qtbot: QtBot
    viewer: napari.Viewer
    layer: Image
    drawn: DrawnBox
    told: list[Box | None] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)

    def hear(self, box: Box | None) -> None:
        self.told.append(box)
        self.sizes.append(self.drawn.describe())

    def look_at(self, index: tuple[float, ...]) -> None:
        """Show the slices through a voxel, its place in the middle of the canvas."""
        dims = self.viewer.dims
        across, shown = list(dims.not_displayed), list(dims.displayed)
        inverse = np.linalg.inv(affine_of(self.layer))
        part = inverse[np.ix_(across, across)]
        point = np.linalg.solve(part, np.array(index)[across] - inverse[across, -1])
        for axis, place in zip(across, point, strict=True):
            dims.set_point(axis, place)
        self.viewer.scene.camera.zoom = 12
        affine = affine_of(self.layer)
        centre = affine[np.ix_(shown, shown)] @ np.array(index)[shown] + affine[shown, -1]
        self.viewer.scene.camera.center = (0, *centre)
        self.settle()

    def settle(self) -> None:
        """Wait until the window stays as it is: a busy machine lays it out late."""
        calm, before = 0, None
        while calm < 3:
            self.qtbot.wait(20)
            camera, canvas = self.viewer.scene.camera, self.canvas
            now = (canvas.width(), canvas.height(), camera.center, camera.zoom)
            calm = calm + 1 if now == before else 0
            before = now

    def pixel(self, index: tuple[float, ...]) -> tuple[float, float]:
        """Where on the canvas, (x, y), a place of the layer is drawn."""
        shown = list(self.viewer.dims.displayed)
        affine = affine_of(self.layer)
        world = affine[np.ix_(shown, shown)] @ np.array(index)[shown] + affine[shown, -1]
        camera, canvas = self.viewer.scene.camera, self.canvas
        down, right = (world - np.array(camera.center)[-2:]) * camera.zoom
        return canvas.width() / 2 + right, canvas.height() / 2 + down

    @property
    def canvas(self) -> Any:
        return self.viewer.window._qt_viewer.canvas.native

    def drag(self, start: tuple[float, ...], end: tuple[float, ...], steps: int = 5) -> None:
        """The mouse, pressed at a place of the layer and let go at another."""
        self.settle()
        one, other = (np.array(self.pixel(index)) for index in (start, end))
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        self._mouse(QEvent.Type.MouseMove, one, none, none)
        self._mouse(QEvent.Type.MouseButtonPress, one, left, left)
        for step in range(1, steps + 1):
            self._mouse(QEvent.Type.MouseMove, one + (other - one) * step / steps, none, left)
        self._mouse(QEvent.Type.MouseButtonRelease, other, left, none)
        self.qtbot.wait(60)

    def _mouse(self, kind: Any, place: npt.NDArray[Any], button: Any, held: Any) -> None:
        point = QPointF(*place)
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

    def box(self) -> Box:
        assert self.drawn.box is not None
        return self.drawn.box

    def yellow(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the rectangle in a screenshot of the canvas."""
        shot = self.viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
        found = (np.abs(shot - YELLOW) < 40).all(axis=-1)
        assert found.any()
        rows, columns = np.nonzero(found.any(axis=1))[0], np.nonzero(found.any(axis=0))[0]
        return float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0


Begin = Callable[..., Scene]


@pytest.fixture
def begin(qtbot: QtBot, make_napari_viewer: Callable[..., napari.Viewer]) -> Iterator[Begin]:
    """Open a window on a volume, with a box to be drawn in it."""
    scenes: list[Scene] = []

    def make(volume: Volume | None = None, *, seen: bool = True) -> Scene:
        viewer = make_napari_viewer(show=seen)
        viewer.window.resize(1000, 800)
        layer = show(viewer, volume or a_volume())
        qtbot.wait(100)
        drawn = DrawnBox(viewer, layer)
        scene = Scene(qtbot, viewer, layer, drawn)
        drawn.changed.connect(scene.hear)
        scenes.append(scene)
        return scene

    yield make
    for scene in scenes:
        scene.drawn.close()


# Drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [None, FLIPPED, OBLIQUE], ids=["plain", "flipped", "oblique"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_rectangle_in_any_view_is_the_box_of_voxels_beneath_it(
    begin: Begin, affine: Any, order: tuple[int, int, int]
) -> None:
    scene = begin(a_volume(affine=affine))
    scene.viewer.dims.order = order
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    start, stop = np.array([10.0, 15, 18]), np.array([10.0, 15, 18])
    rows, columns = order[1:]
    start[rows], stop[rows] = 7.6, 14.4  # the nearest faces are at 7.5 and 14.5
    start[columns], stop[columns] = 12.4, 17.6
    centre = scene.viewer.scene.camera.center
    scene.drag(tuple(start), tuple(stop))
    box = scene.box()
    assert (box.start[rows], box.stop[rows]) == (8, 15)
    assert (box.start[columns], box.stop[columns]) == (13, 18)
    assert scene.drawn.across == order[0]
    number = view_of(scene.viewer, scene.layer).number
    low, high = scene.drawn.depth or (0, 0)
    assert low <= number < high
    assert (low, high) == (box.start[order[0]], box.stop[order[0]])
    assert scene.viewer.scene.camera.center == centre  # drawn, not panned
    # What is seen is what was taken: the outline runs along the outer faces of the voxels.
    seen = scene.yellow()
    ends = np.array([scene.pixel(tuple(np.array(at) - 0.5)) for at in (box.start, box.stop)])
    if affine is not OBLIQUE:  # there the rectangle is drawn turned
        (left, top), (right, bottom) = ends.min(axis=0), ends.max(axis=0)
        np.testing.assert_allclose(seen, (left, top, right, bottom), atol=2.5)


def test_the_box_and_its_size_follow_the_mouse(begin: Begin) -> None:
    scene = begin()
    assert "Draw a rectangle" in scene.drawn.describe()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.6, 12.6), (10, 13.4, 21.4))
    assert len(scene.told) > 3  # while it was being dragged
    depth = scene.drawn.depth
    assert depth is not None
    # As deep as its shorter side is long, 5 mm: two or three slices of 2 mm.
    assert depth[1] - depth[0] in (2, 3)
    assert scene.sizes[-1] == f"{depth[1] - depth[0]} × 5 × 9 voxels · " + (
        f"{2 * (depth[1] - depth[0])} × 5 × 9 mm"
    )
    assert scene.sizes[0] != scene.sizes[-1]


def test_edges_can_be_dragged_on_and_another_rectangle_replaces_the_first(begin: Begin) -> None:
    scene = begin()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    first = scene.box()
    scene.drag((10, 11, 22.5), (10, 11, 25.5))  # its right edge
    assert scene.box() == Box(first.start, (*first.stop[:2], 26))
    scene.drag((10, 20.5, 5.5), (10, 24.5, 9.5))
    assert scene.box().start[1:] == (21, 6)
    assert scene.box().stop[1:] == (25, 10)


def test_a_click_is_no_rectangle(begin: Begin) -> None:
    scene = begin()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 8.5, 12.5))
    assert scene.drawn.box is None
    assert scene.told == []


def test_rectangles_in_two_views_say_all_three_sides(begin: Begin) -> None:
    scene = begin()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    assert scene.box().start[1:] == (9, 13)
    scene.viewer.dims.order = (1, 0, 2)  # from the front: z and x
    scene.look_at((10, 11, 18))
    assert scene.viewer.dims.displayed == (0, 2)
    scene.drag((4.5, 11, 14.5), (16.5, 11, 20.5))
    # Depth by the second rectangle, the side that only the first one saw by the first.
    assert scene.box() == Box((5, 9, 15), (17, 15, 21))
    assert scene.drawn.across == 1
    assert scene.drawn.depth == (9, 15)
    assert scene.drawn.describe() == "12 × 6 × 6 voxels · 24 × 6 × 6 mm"
    scene.viewer.dims.order = (0, 1, 2)
    scene.look_at((10, 15, 18))
    ends = np.array([scene.pixel((10, 8.5, 14.5)), scene.pixel((10, 14.5, 20.5))])
    expected = (*ends.min(axis=0), *ends.max(axis=0))
    np.testing.assert_allclose(scene.yellow(), expected, atol=2.5)


def test_the_depth_can_be_set_within_the_volume(begin: Begin) -> None:
    scene = begin()
    with pytest.raises(UsageError, match="no box yet"):
        scene.drawn.depth = 0, 1
    assert scene.drawn.depth is None
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    assert scene.drawn.depth_limits == (0, 20)
    scene.drawn.depth = 2, 20
    assert scene.box() == Box((2, 9, 13), (20, 15, 23))
    assert scene.told[-1] == scene.drawn.box
    for wrong in [(2, 21), (-1, 4), (5, 5)]:
        with pytest.raises(UsageError, match="whose slices are 0 to 19"):
            scene.drawn.depth = wrong
    scene.drag((10, 16.5, 12.5), (10, 18.5, 15.5))  # what was said of the depth still holds
    assert scene.box() == Box((2, 17, 13), (20, 19, 16))


def test_the_rectangle_is_seen_in_every_slice_of_the_box_and_in_no_other(begin: Begin) -> None:
    scene = begin()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    scene.drawn.depth = 8, 13
    shapes, box = scene.drawn.shapes, scene.box()
    assert shapes is not None
    for number in range(5, 16):
        scene.look_at((number, 15, 18))
        assert len(shapes.data) == (8 <= number < 13)
        assert scene.drawn.box == box
    scene.look_at((12, 15, 18))
    assert scene.yellow()


# The layer it is drawn in ---------------------------------------------------------------------


def test_its_layer_lies_as_the_image_does_and_disturbs_nothing(begin: Begin) -> None:
    scene = begin(a_volume(affine=OBLIQUE))
    ranges = scene.viewer.dims.range
    scene.look_at((10, 15, 18))
    point = scene.viewer.dims.point
    scene.drawn.draw()
    shapes = scene.drawn.shapes
    assert shapes is not None
    assert shapes.mode == "add_rectangle"
    assert scene.viewer.layers.selection.active == shapes
    np.testing.assert_array_equal(affine_of(shapes), affine_of(scene.layer))
    assert shapes.units == scene.layer.units
    assert shapes.axis_labels == scene.layer.axis_labels
    assert is_helper(shapes)
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    assert scene.viewer.dims.range == ranges
    assert scene.viewer.dims.point == point
    scene.layer.translate = (0, 3, 0)
    scene.layer.name = "renamed"
    np.testing.assert_array_equal(affine_of(shapes), affine_of(scene.layer))
    assert shapes.name == "box in renamed"
    assert scene.box().start[1:] == (9, 13)


def test_other_voxels_keep_what_still_fits_of_the_box(begin: Begin) -> None:
    scene = begin()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    box = scene.box()
    scene.layer.data = np.zeros((20, 12, 36), dtype=np.float32)
    assert scene.drawn.box == Box(box.start, (box.stop[0], 12, box.stop[2]))
    scene.layer.data = np.zeros((20, 9, 36), dtype=np.float32)
    assert scene.drawn.box is None
    assert scene.told[-1] is None


def test_closing_leaves_nothing_of_it_in_sight_or_listening(begin: Begin) -> None:
    scene = begin()
    viewer, layer = scene.viewer, scene.layer

    def listening() -> int:
        emitters = [
            viewer.dims.events.point,
            viewer.scene.camera.events.zoom,
            viewer.layers.events.removed,
            layer.events.data,
            layer.events.affine,
            layer.events.name,
        ]
        return sum(len(emitter.callbacks) for emitter in emitters)

    before_drawing = listening()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    box, shapes = scene.box(), scene.drawn.shapes
    assert shapes is not None
    scene.drawn.close()
    assert scene.drawn.box is None
    assert listening() < before_drawing
    assert not shapes.visible
    assert len(shapes.data) == 0
    assert shapes.mode == "pan_zoom"
    assert scene.drawn._on_drag not in shapes.mouse_drag_callbacks
    assert viewer.layers.selection.active == layer
    told = list(scene.told)
    scene.look_at((12, 15, 18))
    shapes.data = [np.array([[12, 3, 3], [12, 3, 6], [12, 6, 6], [12, 6, 3]])]
    assert scene.told == told
    shapes.data = []
    # The next box is drawn in the same layer, and the same image's is found again.
    again = DrawnBox(viewer, layer)
    heard: list[Box | None] = []
    again.changed.connect(heard.append)
    again.draw()
    assert again.shapes is shapes
    assert shapes.visible
    assert len(viewer.layers) == 2
    assert again.box == box
    assert heard == [box]
    again.close()


def test_the_layer_is_handed_on_to_another_image(begin: Begin) -> None:
    scene = begin()
    scene.look_at((10, 15, 18))
    scene.drawn.draw()
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    scene.drawn.close()
    other = show(scene.viewer, a_volume(affine=FLIPPED))
    drawn = DrawnBox(scene.viewer, other)
    drawn.draw()
    assert drawn.box is None
    assert [layer.name for layer in scene.viewer.layers] == ["scan", "scan [1]", "box in scan [1]"]
    assert drawn.shapes is not None
    np.testing.assert_array_equal(affine_of(drawn.shapes), affine_of(other))
    drawn.close()


def test_without_its_image_there_is_no_box(begin: Begin) -> None:
    # Not on the screen: Mesa's software renderer crashes when napari deletes what it has drawn.
    scene = begin(seen=False)
    other = show(scene.viewer, a_volume((4, 5, 6)))
    drawn = scene.drawn
    drawn.draw()
    shapes = drawn.shapes
    assert shapes is not None
    shapes.add_rectangles(np.array([[5, 4, 6], [5, 4, 20], [5, 17, 20], [5, 17, 6]]))
    assert drawn.box is not None
    scene.viewer.layers.remove(scene.layer)
    assert drawn.box is None
    assert scene.told[-1] is None
    assert not shapes.visible
    # Sliders go by what is left.
    alone = ViewerModel()
    alone.add_layer(Image(other.data, affine=other.affine, units=other.units))
    assert scene.viewer.dims.range == alone.dims.range
    told = len(scene.told)
    scene.viewer.scene.camera.zoom = 5  # nobody listens any more
    scene.qtbot.wait(60)
    assert len(scene.told) == told


def test_image_and_box_can_be_deleted_together_and_the_box_alone(qapp: object) -> None:
    # Without a window, for the same reason.
    viewer = ViewerModel()
    layer = show(viewer, a_volume())
    drawn = DrawnBox(viewer, layer)
    told: list[Box | None] = []
    drawn.changed.connect(told.append)
    drawn.draw()
    assert drawn.shapes is not None
    drawn.shapes.add_rectangles(np.array([[5, 4, 6], [5, 4, 20], [5, 17, 20], [5, 17, 6]]))
    assert drawn.box is not None
    viewer.layers.remove(drawn.shapes)
    assert drawn.box is None
    assert drawn.shapes is None
    assert told[-1] is None
    drawn.draw()
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    assert len(viewer.layers) == 0
    drawn.close()
    # The image first, so that the box's layer is left alone.
    layer = show(viewer, a_volume())
    drawn = DrawnBox(viewer, layer)
    drawn.draw()
    viewer.layers.remove(layer)
    assert [one.name for one in viewer.layers] == ["box"]
    other = show(viewer, a_volume())
    alone = ViewerModel()
    show(alone, a_volume())
    assert viewer.dims.range == alone.dims.range
    viewer.layers.remove(other)


def test_in_3d_drawing_goes_back_to_2d(begin: Begin) -> None:
    scene = begin()
    scene.viewer.dims.ndisplay = 3
    scene.drawn.draw()
    assert scene.viewer.dims.ndisplay == 2
    scene.look_at((10, 15, 18))
    scene.drag((10, 8.5, 12.5), (10, 14.5, 22.5))
    box = scene.box()
    scene.viewer.dims.ndisplay = 3
    scene.qtbot.wait(60)
    scene.viewer.dims.ndisplay = 2
    scene.qtbot.wait(60)
    assert scene.drawn.box == box


def test_planes_and_series_have_boxes_too(begin: Begin) -> None:
    scene = begin(a_volume((3, *SHAPE)))
    scene.look_at((1, 10, 15, 18))
    scene.drawn.draw()
    scene.drag((1, 10, 8.5, 12.5), (1, 10, 14.5, 22.5))
    assert scene.box().start[1:] == (9, 13)
    assert scene.box().stop[1:] == (15, 23)
    shapes = scene.drawn.shapes
    assert shapes is not None
    scene.look_at((2, 10, 15, 18))
    assert len(shapes.data) == 1  # in every frame
    plane = scene.viewer.add_image(np.zeros((30, 36), dtype=np.float32), name="plane")
    drawn = DrawnBox(scene.viewer, plane)
    drawn.draw()
    assert drawn.shapes is not None
    drawn.shapes.add_rectangles(np.array([[4.5, 6.5], [4.5, 20.5], [17.5, 20.5], [17.5, 6.5]]))
    assert drawn.box == Box((0, 5, 7), (1, 18, 21))
    assert drawn.describe().startswith("13 × 14 voxels")
    drawn.close()


# What is computed -------------------------------------------------------------------------------


def test_only_the_box_is_encoded_and_dragging_it_again_uses_that(begin: Begin) -> None:
    scene = begin(a_volume((24, 60, 64)))
    card = Card(TINY, name="tiny")
    weights = Loaded(tiny_network().eval(), card, "tiny", "percentile")
    scene.look_at((10, 30, 32))
    scene.drawn.draw()
    scene.drag((10, 24.5, 26.5), (10, 36.5, 38.5))
    first = scene.box()
    volume = volume_of(scene.layer)
    made = encode(volume, weights, device="cpu", precision="float32")
    far = Box((0, 0, 0), (4, 4, 4))
    stages: list[str] = []

    def sample(box: Box) -> Volume:
        stages.clear()
        grid = volume.grid.scaled(2)
        part = grid.crop(volume.grid.box_in(grid, box))
        return made.sample(part, progress=lambda _share, stage: stages.append(stage))

    sample(first)
    assert "encode" in stages
    assert made.features.cost([far]) > 0
    scene.drag((10, 30, 38.5), (10, 30, 35.5))  # its right edge, inwards
    assert scene.box() != first
    sample(scene.box())
    assert set(stages) == {"decode"}
    assert made.features.cost([far]) > 0
