"""Live view in a real window: from an event of the camera to the pixels on the screen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import napari
import numpy as np
import numpy.typing as npt
import pytest
import torch
from napari.layers import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, QPointF, Qt, QTimer
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication
from scipy.spatial.transform import Rotation
from torch import nn

from napari_arssr._layers import image_layer, volume_of
from napari_arssr._live_view import LiveView, visible_box
from napari_arssr._live_worker import Answer, Desk, Request
from napari_arssr._top_layer import OneSlice
from napari_arssr._view import affine_of, is_helper, view_of
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.field import Field, NetworkField
from napari_arssr.models import Card, ModelConfig, build
from napari_arssr.normalization import Normalizer
from napari_arssr.request import Request as Sampling
from napari_arssr.upsampling import encode
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.voxels import Voxels
from napari_arssr.watching import Stop
from napari_arssr.weights import Loaded

PATIENCE = 60_000  # milliseconds
SOON = 20.0  # seconds in which even a machine with much else to do shows a first picture
TINY = ModelConfig(
    decoder="residual",
    feature_dim=6,
    decoder_depth=2,
    decoder_width=8,
    features=4,
    growth=3,
    blocks=2,
    layers=2,
)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(0)
    model = build(TINY)
    nn.init.normal_(model.decoder.head.weight, std=0.1)
    return Loaded(model.eval(), Card(TINY, name="tiny"), "tiny", "percentile")


def a_volume(shape: tuple[int, ...] = (12, 30, 36), affine: Any = None) -> Volume:
    """Noise around 100, its affine placing (x, y, z)."""
    generator = np.random.default_rng(4)
    data = generator.normal(100, 20, shape).astype(np.float32)
    if affine is None:
        affine = Grid.from_spacing(data.shape[-3:], 1.0).affine
    return Volume(data, affine, name="scan")


def show(viewer: napari.Viewer, volume: Volume) -> Image:
    data, settings, _ = image_layer(volume)
    return viewer.add_image(data, **settings)


class NearestField(Field):
    """The volume itself: every point has the value of the voxel it lies in."""

    def __init__(self, volume: Volume) -> None:
        normalizer = Normalizer(0.0, 1.0)
        voxels = Voxels(volume, normalizer, torch.device("cpu"))
        super().__init__(voxels, volume.name, normalizer)
        self._data = volume.data

    def _chunk(self, request: Sampling, chunk: Box) -> npt.NDArray[np.float32]:
        values = self._data[request.nearest(chunk)]
        return np.ascontiguousarray(np.broadcast_to(values, chunk.shape), dtype=np.float32)


class SlowField(NearestField):
    """One that works until it is told to go on; it does not listen to ``stop``."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.go_on = threading.Event()
        self.asked = threading.Event()

    def sample(self, grid: Grid, **_: Any) -> Volume:
        self.asked.set()
        assert self.go_on.wait(60)
        return super().sample(grid)


@dataclass
class Scene:
    """A viewer with an image and its live view."""

    qtbot: QtBot
    viewer: napari.Viewer
    layer: Image
    live: LiveView
    said: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the finest picture of what is seen now is shown."""
        newest = self.live._desk.newest
        return (
            not self.live._gather.waiting
            and newest is not None
            and self.live._shown == (newest.number, len(newest.stages) - 1)
        )

    def settle(self) -> None:
        self.qtbot.wait(30)
        self.qtbot.waitUntil(lambda: self.done, timeout=PATIENCE)

    def rest(self) -> str:
        """Wait until there is nothing to show, and why."""
        self.qtbot.waitUntil(lambda: "rests" in (self.said or [""])[-1], timeout=PATIENCE)
        return self.said[-1]

    def picture(self) -> npt.NDArray[np.float32]:
        """What the live view's layer holds."""
        assert self.live.image is not None
        plane: npt.NDArray[np.float32] = self.live.image.data.plane
        return plane

    def screenshot(self) -> npt.NDArray[np.int64]:
        shot = self.viewer.screenshot(canvas_only=True, flash=False)
        return np.asarray(shot[..., 0], dtype=np.int64)

    def look_at(self, index: tuple[float, ...], zoom: float) -> None:
        """Put a voxel of the layer in the middle of the canvas, at least so many pixels large."""
        world = np.array(self.layer.data_to_world(index))
        displayed = list(self.viewer.dims.displayed)
        across = list(self.viewer.dims.not_displayed)
        # napari slices by the transform's part between the axes that are not drawn.
        inverse = np.linalg.inv(affine_of(self.layer))
        part = inverse[np.ix_(across, across)]
        point = np.linalg.solve(part, np.array(index)[across] - inverse[across, -1])
        for axis, place in zip(across, point, strict=True):
            self.viewer.dims.set_point(axis, place)
            assert self.viewer.dims.point[axis] == pytest.approx(place, abs=2)
        camera = self.viewer.scene.camera
        camera.zoom = zoom / min(self.layer.extent.step[displayed])
        camera.center = (0, *world[displayed])


Begin = Callable[..., Scene]


@pytest.fixture
def begin(
    qtbot: QtBot, make_napari_viewer: Callable[..., napari.Viewer], loaded: Loaded
) -> Iterator[Begin]:
    """Open a window on a volume, and turn the live view on."""
    scenes: list[Scene] = []

    def make(volume: Volume, **options: Any) -> Scene:
        viewer = make_napari_viewer(show=True)
        viewer.window.resize(900, 700)
        layer = show(viewer, volume)
        for name, value in options.get("transforms", {}).items():
            setattr(layer, name, value)
        lend = options.get("lend") or lending(lambda: made_of(layer, loaded))
        live = LiveView(viewer, layer, lend)
        scene = Scene(qtbot, viewer, layer, live)
        live.state.connect(scene.said.append)
        live.ended.connect(lambda: scene.ended.append(True))
        qtbot.wait(100)
        live.start()
        scenes.append(scene)
        return scene

    yield make
    for scene in scenes:
        scene.live.stop()
        assert scene.live.wait(60)


def made_of(layer: Image, loaded: Loaded) -> NetworkField:
    volume = volume_of(layer)
    return encode(volume.frame(0), loaded, device="cpu", precision="float32")


def lending(make: Callable[[], Field]) -> Callable[[Stop], Any]:
    """Lends one field, made when it is first asked for."""
    made: list[Field] = []

    @contextmanager
    def lend(_stop: Stop) -> Iterator[Field]:
        if not made:
            made.append(make())
        yield made[0]

    return lend


def turn_wheel(viewer: napari.Viewer, clicks: int) -> None:
    """As the mouse does it, over the middle of the canvas."""
    canvas = viewer.window._qt_viewer.canvas.native
    place = QPointF(canvas.width() / 2, canvas.height() / 2)
    event = QWheelEvent(
        place,
        canvas.mapToGlobal(place),
        QPoint(0, 0),
        QPoint(0, 120 * clicks),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(canvas, event)


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "napari-arssr live view"]


def expected(scene: Scene, made: Field) -> npt.NDArray[np.float32]:
    """What the field gives at the screen's resolution, by itself."""
    view = view_of(scene.viewer, scene.layer)
    patch = view.patch()
    assert patch is not None
    return made.sample(patch.grid).data.squeeze(view.across)


# What is shown -------------------------------------------------------------------------------


def test_zooming_through_ten_levels_ends_with_the_field_at_the_screens_resolution(
    begin: Begin, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = begin(a_volume())
    camera, canvas = scene.viewer.scene.camera, scene.viewer.canvas
    requests: list[Request] = []
    ranks: list[tuple[int, int]] = []
    put, show_answer = scene.live._desk.put, scene.live._show

    def asked(request: Request | None) -> None:
        requests.extend([] if request is None else [request])
        put(request)

    def answered(answer: Answer) -> None:
        ranks.append(answer.rank)
        show_answer(answer)

    monkeypatch.setattr(scene.live._desk, "put", asked)
    monkeypatch.setattr(scene.live, "_show", answered)
    began = time.perf_counter()
    zooms = [camera.zoom]
    for _ in range(10):
        turn_wheel(scene.viewer, 2)
        scene.qtbot.waitUntil(lambda: camera.zoom > zooms[-1], timeout=PATIENCE)
        zooms.append(camera.zoom)
    scene.qtbot.waitUntil(lambda: scene.live.image is not None, timeout=PATIENCE)
    first = time.perf_counter() - began
    scene.settle()
    numbers, dropped = [request.number for request in requests], scene.live.dropped
    print(f"first picture after {first:.3f} s; {dropped} of {len(numbers)} requests dropped")
    assert 1 <= len(numbers) <= 12  # a turn of the wheel, which moves zoom and centre, is one
    assert ranks == sorted(ranks)  # newer and finer ones only
    assert ranks[-1] == (numbers[-1], len(requests[-1].stages) - 1)
    unseen = set(numbers) - {number for number, _ in ranks}
    assert dropped >= len(unseen)  # none was merely lost
    assert first < SOON
    np.testing.assert_allclose(
        scene.picture(), expected(scene, made_of(scene.layer, loaded)), atol=1e-3
    )
    # Pixels of the picture are pixels of the screen.
    rows, columns = (s / camera.zoom for s in canvas.size)
    for length, seen in zip(scene.picture().shape, (rows, columns), strict=True):
        assert length == pytest.approx(seen * camera.zoom, abs=3)


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [14, -9, 21], degrees=True).as_matrix() * [1, 1.2, 3]
OBLIQUE[:3, 3] = OBLIQUE[:3, :3] @ (-18, -15, -6)  # the scanner's centre in the middle
FLIPPED = np.diag([-0.9, 1.1, -2.5, 1.0])
IN_PLANE = {"rotate": 30.0, "scale": (2.0, 0.7, 0.9), "translate": (3, -20, 8)}


@pytest.mark.parametrize(
    ("affine", "transforms"),
    [(None, {}), (FLIPPED, {}), (OBLIQUE, {}), (None, {"affine": np.eye(4)} | IN_PLANE)],
    ids=["plain", "flipped", "oblique", "turned in its plane"],
)
def test_every_view_shows_what_the_field_gives_there(
    begin: Begin, loaded: Loaded, affine: Any, transforms: dict[str, Any]
) -> None:
    if "rotate" in transforms:
        turn = np.eye(3)
        turn[1:, 1:] = Rotation.from_euler("z", 30, degrees=True).as_matrix()[:2, :2]
        transforms = transforms | {"rotate": turn}
    scene = begin(a_volume(affine=affine), transforms=transforms)
    made = made_of(scene.layer, loaded)
    orders = [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)]
    if transforms:
        orders = [(0, 1, 2), (0, 2, 1)]  # napari draws no other of a layer that is turned
    for order in orders:
        scene.viewer.dims.order = order
        scene.look_at((5, 14, 17), 12.0)
        scene.settle()
        assert scene.live.image is not None
        assert scene.live.image.visible
        np.testing.assert_allclose(scene.picture(), expected(scene, made), atol=1e-3)


@pytest.mark.parametrize(
    ("affine", "order"),
    [(None, (0, 1, 2)), (FLIPPED, (1, 0, 2)), (OBLIQUE, (0, 1, 2)), (OBLIQUE, (2, 1, 0))],
    ids=["plain", "flipped, from the front", "oblique", "oblique, from the side"],
)
def test_the_picture_lies_on_the_image_to_a_hundredth_of_a_voxel(
    begin: Begin, affine: Any, order: tuple[int, int, int]
) -> None:
    volume = a_volume(affine=affine)
    scene = begin(volume, lend=lending(lambda: NearestField(volume_of(scene.layer))))
    scene.viewer.dims.order = order
    scene.look_at((6, 14, 17), 130.0)
    scene.settle()
    assert scene.live.image is not None
    with_picture = scene.screenshot()
    scene.live.image.visible = False
    without = scene.screenshot()
    pixels = view_of(scene.viewer, scene.layer).voxel_pixels
    assert min(pixels) > 100
    # A voxel's colour fills it in both but for a pixel at its edge, which is less than a
    # hundredth of it. A shift would change a whole band.
    flat = np.ones_like(without, dtype=bool)
    for axis in (0, 1):
        for shift in (-1, 1):
            flat &= without == np.roll(without, shift, axis)
    wide = flat.copy()
    for shift in (-1, 1):
        wide &= np.roll(flat, shift, 0) & np.roll(flat, shift, 1)
    assert wide.mean() > 0.85
    assert len(np.unique(without[wide])) > 4
    assert (np.abs(with_picture - without)[wide] <= 1).all()
    assert (with_picture != without).any()  # it did lie there: edges are smoothed


def test_the_picture_is_on_the_screen_in_its_slice_and_in_no_other(begin: Begin) -> None:
    volume = a_volume()
    white = Volume(np.full_like(volume.data, 1e6), volume.affine, name="white")
    slow = SlowField(white)
    slow.go_on.set()
    scene = begin(volume, lend=lending(lambda: slow))
    scene.look_at((5, 14, 17), 30.0)
    scene.settle()
    assert (scene.screenshot() == 255).all()
    slow.go_on.clear()
    scene.viewer.dims.set_current_step(0, scene.viewer.dims.current_step[0] + 1)
    scene.qtbot.wait(50)
    shown = scene.screenshot()
    assert len(np.unique(shown)) > 100  # the image, not the white of the other slice
    assert scene.live.image is not None
    scene.live.image.visible = False
    np.testing.assert_array_equal(scene.screenshot(), shown)
    scene.live.image.visible = True
    slow.go_on.set()
    scene.settle()
    assert (scene.screenshot() == 255).all()


def test_it_follows_the_looks_of_the_image_and_disturbs_nothing(begin: Begin) -> None:
    scene = begin(a_volume())
    other = scene.viewer.add_points(np.array([[5.0, 1, 1]]), units=scene.layer.units)
    viewer, layer = scene.viewer, scene.layer
    layer.colormap, layer.gamma, layer.contrast_limits = "magma", 0.7, (40, 160)
    ranges, step = viewer.dims.range, viewer.dims.current_step
    scene.look_at((5, 14, 17), 12.0)
    step = viewer.dims.current_step
    scene.settle()
    image = scene.live.image
    assert image is not None
    assert image.colormap.name == "magma"
    assert image.contrast_limits == [40, 160]
    layer.contrast_limits, layer.opacity = (60, 140), 0.5
    assert (image.contrast_limits, image.opacity, image.gamma) == ([60, 140], 0.5, 0.7)
    assert viewer.dims.range == ranges
    assert viewer.dims.current_step == step
    assert viewer.layers.selection.active == other
    assert [one.name for one in viewer.layers] == ["scan", "scan live view", "Points"]
    assert is_helper(image)
    assert not is_helper(layer)
    layer.name = "renamed"
    assert image.name == "renamed live view"
    scene.live.stop()
    assert list(viewer.layers) == [layer, other]
    assert viewer.dims.range == ranges


def test_a_series_asks_for_the_field_of_the_frame_that_is_seen(
    begin: Begin, loaded: Loaded
) -> None:
    scene = begin(a_volume((3, 8, 20, 22)))
    volume = volume_of(scene.layer)
    asked: list[int] = []

    def renew(frame: int) -> None:
        asked.append(frame)
        scene.live.field = lending(
            lambda: encode(volume.frame(frame), loaded, device="cpu", precision="float32")
        )

    scene.look_at((0, 4, 10, 11), 12.0)
    scene.settle()
    scene.viewer.dims.set_current_step(0, 2)
    assert "changed" in scene.rest()  # nobody had another field
    scene.live.outdated.connect(renew)
    scene.viewer.dims.set_current_step(1, 5)
    scene.settle()
    assert asked == [2]
    made = encode(volume.frame(2), loaded, device="cpu", precision="float32")
    np.testing.assert_allclose(scene.picture(), expected(scene, made), atol=1e-3)
    scene.layer.data = np.asarray(scene.layer.data) + 1
    scene.qtbot.waitUntil(lambda: asked == [2, 2], timeout=PATIENCE)
    scene.settle()


def test_the_picture_is_of_where_the_layer_lies_now(begin: Begin, loaded: Loaded) -> None:
    scene = begin(a_volume())

    def renew(_frame: int) -> None:
        scene.live.field = lending(lambda: made_of(scene.layer, loaded))

    scene.live.outdated.connect(renew)
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    for name, value in (("translate", (0, 7, 3)), ("scale", (1, 2, 1.5))):
        setattr(scene.layer, name, value)
        scene.look_at((5, 14, 17), 12.0)
        scene.settle()
        np.testing.assert_allclose(
            scene.picture(), expected(scene, made_of(scene.layer, loaded)), atol=1e-3
        )


def test_a_plane_is_sharpened_too(begin: Begin, loaded: Loaded) -> None:
    scene = begin(a_volume((1, 40, 50)))
    scene.live.stop()
    viewer = scene.viewer
    layer = viewer.add_image(a_volume((1, 40, 50)).data[0], scale=(2, 2), name="plane")
    viewer.layers.remove(scene.layer)
    scene.layer = layer
    scene.live = LiveView(viewer, layer, lending(lambda: made_of(layer, loaded)))
    scene.live.start()
    viewer.scene.camera.zoom = 10
    scene.settle()
    assert scene.live.image is not None
    assert scene.live.image.ndim == 2
    np.testing.assert_allclose(scene.picture(), expected(scene, made_of(layer, loaded)), atol=1e-3)
    scene.live.stop()
    assert scene.live.wait(60)


# Newest first ---------------------------------------------------------------------------------


def test_memory_stays_within_what_was_given_however_far_one_wanders(
    begin: Begin, loaded: Loaded
) -> None:
    volume = a_volume((24, 200, 200))
    memory = NetworkField.least_memory(loaded.model, volume.grid.shape, torch.float32)
    held: list[int] = []

    def made() -> NetworkField:
        source = volume_of(scene.layer)
        field = NetworkField(source, loaded.model, Normalizer(0.0, 200.0), memory=memory)
        features = field.features
        # Or all of it would fit, and wandering would be no matter.
        assert features.bytes_of(volume.grid.box) > 2 * features.cache_bytes
        sample = field.sample

        def noted(*arguments: Any, **options: Any) -> Volume:
            result = sample(*arguments, **options)
            held.append(features._held)
            assert features._held <= features.cache_bytes
            return result

        field.sample = noted  # type: ignore[method-assign]
        return field

    lend = lending(made)
    scene = begin(volume, lend=lend)
    for z in (4, 20):
        for y, x in [(40, 40), (40, 160), (160, 100)]:
            scene.look_at((z, y, x), 14.0)
            scene.settle()
    assert max(held) > 0
    # Nor do pictures pile up.
    assert not scene.live._desk.answers
    assert [layer.name for layer in scene.viewer.layers] == ["scan", "scan live view"]


def test_an_older_answer_never_replaces_a_newer_one(begin: Begin) -> None:
    slow = SlowField(a_volume())
    scene = begin(a_volume(), lend=lending(lambda: slow))
    shown: list[tuple[int, int]] = []
    put = scene.live._show

    def watch(answer: Answer) -> None:
        shown.append(answer.rank)
        put(answer)

    scene.live._show = watch  # type: ignore[method-assign]
    for number in range(6):
        scene.look_at((5, 14, 17), 9.0 + 2 * number)
        scene.qtbot.wait(60)
        if number == 2:
            slow.go_on.set()
    scene.settle()
    newest = scene.live._desk.newest
    assert newest is not None
    assert newest.number > 2
    assert shown == sorted(set(shown))
    assert shown[-1] == (newest.number, len(newest.stages) - 1)
    final, dropped = scene.picture().copy(), scene.live.dropped
    # An answer to what was seen before, come late by whatever way.
    old = Request(
        1, newest.view, newest.affine, newest.seen, newest.stages, newest.lend, newest.asked
    )
    scene.live._desk.answers.append(Answer(old, 1, np.zeros_like(final), 1.0))
    scene.live._watch.start()
    scene.qtbot.waitUntil(lambda: not scene.live._desk.answers, timeout=PATIENCE)
    np.testing.assert_array_equal(scene.picture(), final)
    assert shown[-1] == (newest.number, len(newest.stages) - 1)
    assert scene.live.dropped == dropped + 1


def test_an_answer_does_not_come_back_after_zooming_out(begin: Begin) -> None:
    slow = SlowField(a_volume())
    scene = begin(a_volume(), lend=lending(lambda: slow))
    scene.look_at((5, 14, 17), 12.0)
    scene.qtbot.waitUntil(slow.asked.is_set, timeout=PATIENCE)
    scene.viewer.scene.camera.zoom = 0.5
    assert "zoom in" in scene.rest()
    slow.go_on.set()
    scene.qtbot.wait(300)
    assert scene.live.image is None
    assert "zoom in" in scene.said[-1]


def test_requests_that_nobody_began_are_counted_and_forgotten() -> None:
    desk = Desk()
    requests = [object() for _ in range(4)]
    for request in requests[:3]:
        desk.put(request)  # type: ignore[arg-type]
    assert desk.take() is requests[2]
    assert desk.dropped == 2
    assert desk.take() is None
    desk.put_back(requests[2])  # type: ignore[arg-type]
    assert desk.take() is requests[2]
    desk.put(requests[3])  # type: ignore[arg-type]
    assert desk.dropped == 2
    assert desk.take() is requests[3]


def test_panning_is_never_blocked_however_slow_the_field_is(begin: Begin) -> None:
    slow = SlowField(a_volume())
    scene = begin(a_volume(), lend=lending(lambda: slow))
    scene.look_at((5, 14, 17), 12.0)
    scene.qtbot.waitUntil(slow.asked.is_set, timeout=PATIENCE)
    ticks = [time.perf_counter()]
    clock = QTimer()
    clock.timeout.connect(lambda: ticks.append(time.perf_counter()))
    clock.start(5)
    camera = scene.viewer.scene.camera
    for number in range(40):
        camera.center = (0, 1.0 + 0.1 * number, 2.0)
        scene.qtbot.wait(10)
    clock.stop()
    gap = max(after - before for before, after in pairwise(ticks))
    print(f"longest gap between events {1000 * gap:.0f} ms")
    assert gap < 1.0
    assert len(ticks) > 20
    slow.go_on.set()
    scene.settle()


def test_while_a_run_has_the_field_it_waits_and_asks_again(begin: Begin, loaded: Loaded) -> None:
    free = threading.Event()
    asked: list[float] = []

    @contextmanager
    def lend(_stop: Stop) -> Iterator[NetworkField | None]:
        asked.append(time.perf_counter())
        yield made_of(scene.layer, loaded) if free.is_set() else None

    scene = begin(a_volume(), lend=lend)
    scene.look_at((5, 14, 17), 12.0)
    # The window says it when it next looks, which is after the worker has asked.
    scene.qtbot.waitUntil(
        lambda: len(asked) > 3 and any("waiting for the run" in said for said in scene.said),
        timeout=PATIENCE,
    )
    assert scene.live.image is None
    free.set()
    scene.settle()
    assert scene.live.image is not None


def test_encoding_goes_on_for_a_neighbouring_view_and_ends_for_another(begin: Begin) -> None:
    scene = begin(a_volume((40, 300, 300)), lend=lending(lambda: NearestField(a_volume())))
    requests = []
    for index, zoom in [((20, 99, 99), 8.0), ((22, 105, 99), 8.5), ((20, 220, 99), 8.0)]:
        scene.look_at(index, zoom)
        scene.live._gather.stop()
        request = scene.live._request()
        assert request is not None
        requests.append(request)
    first, near, far = requests
    assert first.shares_features(near)
    assert near.shares_features(first)
    assert not first.shares_features(far)
    scene.look_at((20, 99, 99), 60.0)  # a small part of it, for which the rest need not be done
    scene.live._gather.stop()
    inside = scene.live._request()
    assert inside is not None
    assert not first.shares_features(inside)


# On and off -----------------------------------------------------------------------------------


def test_it_rests_where_there_is_nothing_to_sharpen(begin: Begin) -> None:
    scene = begin(a_volume())
    viewer = scene.viewer
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    image = scene.live.image
    assert image is not None
    viewer.scene.camera.zoom = 0.7
    assert "zoom in" in scene.rest()
    assert not image.visible
    viewer.scene.camera.zoom = 9.0
    scene.settle()
    assert image.visible
    viewer.dims.ndisplay = 3
    assert "3D" in scene.rest()
    assert not image.visible
    viewer.dims.ndisplay = 2
    scene.settle()
    assert image.visible
    viewer.scene.camera.center = (0, 1e4, 0)
    assert "nothing of scan is seen" in scene.rest()
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    scene.layer.visible = False
    assert "scan is hidden" in scene.rest()
    assert not image.visible
    scene.layer.visible = True
    scene.settle()
    assert image.visible


def test_the_users_eye_is_respected(begin: Begin) -> None:
    scene = begin(a_volume())
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    image = scene.live.image
    assert image is not None
    image.visible = False
    assert "its layer is hidden" in scene.rest()
    scene.look_at((5, 12, 17), 14.0)
    scene.qtbot.wait(200)
    assert not image.visible
    image.visible = True
    scene.settle()
    assert image.visible


@pytest.mark.parametrize("which", ["the image", "its own"])
def test_without_its_layers_it_ends(begin: Begin, which: str) -> None:
    scene = begin(a_volume())
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    assert scene.live.image is not None
    gone = scene.layer if which == "the image" else scene.live.image
    scene.viewer.layers.remove(gone)
    assert scene.ended == [True]
    assert not scene.live.active
    assert "removed" in scene.said[-1]
    scene.qtbot.waitUntil(
        lambda: not any(is_helper(one) for one in scene.viewer.layers), timeout=PATIENCE
    )
    scene.qtbot.waitUntil(lambda: not threads(), timeout=PATIENCE)
    scene.viewer.scene.camera.zoom = 3.0  # nobody listens any more
    scene.qtbot.wait(100)
    assert scene.live.image is None


def test_the_image_and_its_picture_can_be_deleted_together(begin: Begin) -> None:
    scene = begin(a_volume())
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    scene.viewer.layers.select_all()
    scene.viewer.layers.remove_selected()
    scene.qtbot.waitUntil(lambda: not scene.viewer.layers, timeout=PATIENCE)
    assert scene.ended == [True]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileError("The weights are damaged; download them again."), "weights are damaged"),
        (RuntimeError("a tensor was odd"), "RuntimeError: a tensor was odd"),
    ],
)
def test_an_error_is_told_once_and_ends_it(
    begin: Begin, told: list[str], error: Exception, words: str
) -> None:
    @contextmanager
    def lend(_stop: Stop) -> Iterator[NetworkField]:
        raise error
        yield

    scene = begin(a_volume(), lend=lend)
    scene.look_at((5, 14, 17), 12.0)
    scene.qtbot.waitUntil(lambda: bool(scene.ended), timeout=PATIENCE)
    scene.qtbot.wait(200)
    assert scene.ended == [True]
    assert not scene.live.active
    assert words in scene.said[-1]
    assert [words in one for one in told] == [True]
    assert not threads()


def test_it_can_be_turned_on_again(begin: Begin, loaded: Loaded) -> None:
    scene = begin(a_volume())
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    scene.live.stop()
    assert scene.said[-1] == ""
    assert scene.ended == []
    assert scene.live.image is None
    assert len(scene.viewer.layers) == 1
    scene.live.start()
    scene.settle()
    np.testing.assert_allclose(
        scene.picture(), expected(scene, made_of(scene.layer, loaded)), atol=1e-3
    )


@pytest.mark.parametrize("end", ["off", "another field"])
def test_what_is_being_read_is_given_up_where_nobody_waits_for_it(begin: Begin, end: str) -> None:
    reading = threading.Event()
    given_up = threading.Event()

    @contextmanager
    def lend(stop: Stop) -> Iterator[Field]:
        reading.set()
        while not stop():
            time.sleep(0.01)
        given_up.set()
        raise Cancelled
        yield

    scene = begin(a_volume(), lend=lend)
    scene.look_at((5, 14, 17), 12.0)
    scene.qtbot.waitUntil(reading.is_set, timeout=PATIENCE)
    scene.look_at((5, 15, 17), 12.0)  # what is read serves this as well
    scene.qtbot.wait(300)
    assert not given_up.is_set()
    if end == "off":
        scene.live.stop()
        scene.qtbot.waitUntil(lambda: not threads(), timeout=PATIENCE)
    else:
        scene.live.field = lending(lambda: NearestField(volume_of(scene.layer)))
        scene.settle()
    assert given_up.is_set()


def test_turning_and_3d_never_take_all_the_depth(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = OneSlice.__getitem__

    def noted(self: OneSlice, index: Any) -> npt.NDArray[np.float32]:
        answer = real(self, index)
        sizes.append(np.asarray(answer).size)
        return answer

    def whole(*_: Any, **__: Any) -> None:
        raise AssertionError("all of it was asked for")

    monkeypatch.setattr(OneSlice, "__getitem__", noted)
    monkeypatch.setattr(OneSlice, "__array__", whole)
    scene = begin(a_volume((60, 30, 36)))
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    most = 60 * max(scene.picture().shape)
    viewer = scene.viewer
    viewer.dims.order = (1, 0, 2)
    scene.settle()
    viewer.dims.order = (0, 1, 2)
    scene.settle()
    viewer.dims.ndisplay = 3
    assert "3D" in scene.rest()
    viewer.dims.ndisplay = 2
    scene.settle()
    assert scene.picture().size > 1
    assert max(sizes) <= max(most, scene.picture().size)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_of_one_slice_is_that_of_the_whole(begin: Begin, axis: int) -> None:
    scene = begin(a_volume())
    scene.viewer.dims.order = {0: (0, 1, 2), 1: (1, 0, 2), 2: (2, 0, 1)}[axis]
    scene.look_at((5, 14, 17), 12.0)
    scene.settle()
    assert scene.live.image is not None
    data = scene.live.image.data
    whole = np.asarray(data)
    assert np.isfinite(whole).any()
    number = (5, 14, 17)[axis]
    picks = [slice(None), slice(None, None, 2), slice(3, 9), number, number - 1, -1, np.int64(2)]
    for index in product(picks, repeat=3):
        parts = [
            min(part, n - 1) if not isinstance(part, slice) else part
            for part, n in zip(index, data.shape, strict=True)
        ]
        np.testing.assert_array_equal(data[tuple(parts)], whole[tuple(parts)])
    np.testing.assert_array_equal(data[..., 1], whole[..., 1])


def test_closing_the_viewer_in_the_middle_leaves_no_thread(begin: Begin) -> None:
    slow = SlowField(a_volume())
    scene = begin(a_volume(), lend=lending(lambda: slow))
    scene.look_at((5, 14, 17), 12.0)
    scene.qtbot.waitUntil(slow.asked.is_set, timeout=PATIENCE)
    assert threads()
    scene.viewer.close()
    assert not scene.live.active
    slow.go_on.set()
    scene.qtbot.waitUntil(lambda: not threads(), timeout=PATIENCE)


# The current view as a box --------------------------------------------------------------------


def test_the_visible_box_is_what_the_canvas_shows_of_the_slice(begin: Begin) -> None:
    scene = begin(a_volume())
    scene.live.stop()
    scene.look_at((5, 14, 17), 60.0)
    rows, columns = (size / 60 / 2 for size in scene.viewer.canvas.size)
    box = visible_box(scene.viewer, scene.layer)
    assert box.start == (5, max(0, round(14 - rows)), max(0, round(17 - columns)))
    assert box.stop == (6, min(30, round(14 + rows) + 1), min(36, round(17 + columns) + 1))
    scene.viewer.dims.roll()
    scene.look_at((5, 14, 17), 60.0)
    box = visible_box(scene.viewer, scene.layer)
    assert box.start[2], box.stop[2] == (17, 18)
    scene.viewer.scene.camera.center = (0, 1e4, 0)
    with pytest.raises(UsageError, match=r"Nothing of scan is in view; press Ctrl\+R"):
        visible_box(scene.viewer, scene.layer)
    scene.viewer.dims.ndisplay = 3
    with pytest.raises(UsageError, match="3D; show a slice of it in 2D"):
        visible_box(scene.viewer, scene.layer)
