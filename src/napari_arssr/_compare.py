"""Two keys to compare a result with its input: one for before and after, one for a split view.

The split view covers a part of the result with the input itself: an image layer that is a crop
of the input's array, a view without a copy, from one side up to a line that can be dragged. So
neither layer is touched, a live view goes on beneath, and both are seen at the same place and
zoom. The line is an image too, two pixels wide. napari's grid mode would show them side by side,
half as large, where no edge can be followed from one to the other; clipping planes work on
volumes in 3D, not on images in 2D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from napari.layers import Image
from napari.utils.colormaps import Colormap
from napari.utils.notifications import show_info
from qtpy.QtCore import QTimer

from napari_arssr._layers import PLACE
from napari_arssr._top_layer import TopImage
from napari_arssr._view import (
    add_beside,
    affine_of,
    is_helper,
    mark_helper,
    mark_result,
    remove,
    remove_later,
    results_of,
    view_of,
)
from napari_arssr.errors import UsageError
from napari_arssr.slice_view import affine_of_part

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

__all__ = ["BEFORE_AFTER_KEY", "HOW_TO_COMPARE", "SPLIT_KEY", "Comparison", "mark_result"]

Link = tuple[Any, Callable[..., None]]  # an event and what hears it

# Letters that neither the viewer nor any kind of layer uses.
BEFORE_AFTER_KEY = "Q"
SPLIT_KEY = "W"

HOW_TO_COMPARE = (
    f"{BEFORE_AFTER_KEY} over the image compares it with the input, {SPLIT_KEY} splits the view."
)
"""What to say of a result that has come."""

_NOTHING = "There is nothing to compare yet: press Run, or turn on the live view and zoom in."
_GRAB = 8  # canvas pixels on either side of the line
_LINE_WIDTH = 2.0  # canvas pixels
_LINE = "#ffd166"

_LOOKS = ("contrast_limits_range", "contrast_limits", "colormap", "gamma", "interpolation2d")


class Comparison:
    """Compares results in a viewer with their inputs.

    Binds the two keys, unless something else has them. For the window's thread only. A viewer
    has one that all who want it share, see :meth:`of`.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    @classmethod
    def of(cls, viewer: ViewerModel) -> Comparison:
        """That of a viewer, or a new one; whoever has asked for it calls :meth:`close` once."""
        # Plugins may be given a proxy of the viewer, each its own.
        number = id(getattr(viewer, "__wrapped__", viewer))
        found = _comparisons.get(number)
        if found is None:
            found = _comparisons[number] = cls(viewer)
        found._users += 1
        return found

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._users = 0
        # Weak: a result that is removed is not to be kept for the case that it is shown again.
        self._before: WeakKeyDictionary[Layer, bool] = WeakKeyDictionary()
        self._pair: tuple[Layer, Image] | None = None
        self._curtain: TopImage | None = None
        self._line: TopImage | None = None
        self._share = 0.5
        self._covers: tuple[Any, ...] | None = None
        self._links: list[Link] = []
        self._bound: list[str] = []
        self._soon = QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._draw)
        for key, act in (
            (BEFORE_AFTER_KEY, self._on_before_after),
            (SPLIT_KEY, self._on_split),
        ):
            try:
                viewer.bind_key(key, act)
            except ValueError:
                show_info(f"The key {key} is taken by something else; it will not compare.")
            else:
                self._bound.append(key)

    @property
    def is_split(self) -> bool:
        """Whether the split view is on."""
        return self._curtain is not None

    @property
    def share(self) -> float:
        """Where the line is: a share of the canvas' width, from the left."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        self._share = min(max(share, 0.0), 1.0)
        self._draw()

    def close(self) -> None:
        """Give the keys back, and leave the layers as they would be without comparing.

        While others use it, it goes on for them.
        """
        self._users -= 1
        if self._users > 0:
            return
        _comparisons.pop(id(getattr(self._viewer, "__wrapped__", self._viewer)), None)
        self._end_split(remove)
        self._show_after()
        for key in self._bound:
            self._viewer.bind_key(key, None)
        self._bound.clear()

    # ------------------------------------------------------------------ before and after

    def toggle(self) -> None:
        """Hide every result that is seen, so that its input is; or show them again."""
        if any(layer in self._viewer.layers for layer in self._before):
            self._show_after()
            return
        self._before.clear()
        pairs = [pair for pair in results_of(self._viewer) if pair[0].visible]
        if not pairs:
            hidden = results_of(self._viewer)
            if not hidden:
                show_info(_NOTHING)
            for result, _ in hidden[-1:]:
                result.visible = True
            return
        for result, source in pairs:
            self._before.setdefault(result, True)
            self._before.setdefault(source, source.visible)
        for result, source in pairs:
            result.visible = False
            source.visible = True

    def _show_after(self) -> None:
        before, self._before = self._before, WeakKeyDictionary()
        for layer, visible in list(before.items()):
            if layer in self._viewer.layers:
                layer.visible = visible

    # ------------------------------------------------------------------ split view

    def split(self) -> None:
        """Turn the split view on or off."""
        if self.is_split:
            self._end_split(remove)
            return
        self._show_after()
        pairs = [pair for pair in results_of(self._viewer) if isinstance(pair[1], Image)]
        pairs = [pair for pair in pairs if pair[0].visible] or pairs[-1:]
        if not pairs:
            show_info(_NOTHING)
            return
        result, source = pairs[-1]
        result.visible = True
        self._pair = result, source
        self._share = 0.5
        self._begin_split()

    def _begin_split(self) -> None:
        viewer = self._viewer
        assert self._pair is not None
        result, source = self._pair
        whole = _finest(source)
        self._curtain = TopImage(
            source,
            whole,
            affine_of(source),
            contrast_limits=source.contrast_limits,
            name="split view: input",
            visible=False,
        )
        self._line = TopImage(
            source,
            np.broadcast_to(np.float32(1), [1] * source.ndim),
            affine_of(source),
            colormap=Colormap([_LINE, _LINE]),
            contrast_limits=(0, 1),
            name="split view: line",
            visible=False,
        )
        for layer in (self._curtain, self._line):
            mark_helper(layer)
        self._dress()
        above = max((result, source), key=viewer.layers.index)
        add_beside(viewer, self._curtain, above)
        add_beside(viewer, self._line, self._curtain)
        links: list[Link] = [
            (viewer.scene.camera.events.zoom, self._later),
            (viewer.scene.camera.events.center, self._later),
            (viewer.canvas.events.size, self._later),
            (viewer.dims.events.order, self._later),
            (viewer.dims.events.point, self._later),
            (viewer.dims.events.ndisplay, self._later),
            (viewer.layers.events.removed, self._on_removed),
            (source.events.data, self._on_voxels),
        ]
        links += [(getattr(source.events, name), self._dress) for name in _LOOKS[1:]]
        links += [(getattr(source.events, name), self._later) for name in PLACE]
        for emitter, slot in links:
            emitter.connect(slot)
            self._links.append((emitter, slot))
        viewer.mouse_drag_callbacks.append(self._on_drag)
        self._draw()
        viewer.status = "Left: input, right: result. Drag the line between them."

    def _end_split(self, take_away: Callable[..., None]) -> None:
        curtain, line = self._curtain, self._line
        self._curtain = self._line = self._covers = None
        if curtain is None:
            return
        self._soon.stop()
        for emitter, slot in self._links:
            emitter.disconnect(slot)
        self._links.clear()
        self._viewer.mouse_drag_callbacks.remove(self._on_drag)
        self._pair = None
        take_away(self._viewer, curtain, line)

    def rise(self) -> None:
        """Have the split view, if it is on, cover what was added since: the newest result."""
        if self._curtain is None or self._line is None or self._pair is None:
            return
        source = self._pair[1]
        for result, its_source in results_of(self._viewer):
            if its_source == source and not is_helper(result):
                self._pair = result, source
        layers = self._viewer.layers
        for layer in (self._curtain, self._line):
            layers.move(layers.index(layer), len(layers))

    def _later(self, _event: object = None) -> None:
        self._soon.start()

    def _on_voxels(self, _event: object = None) -> None:
        self._covers = None
        self._later()

    def _dress(self, _event: object = None) -> None:
        if self._curtain is not None and self._pair is not None:
            for name in _LOOKS:
                setattr(self._curtain, name, getattr(self._pair[1], name))

    def _draw(self) -> None:
        """Cover the result with the input, up to the line."""
        if self._curtain is None or self._line is None or self._pair is None:
            return
        source = self._pair[1]
        try:
            view = view_of(self._viewer, source)
        except UsageError:
            self._curtain.visible = self._line.visible = False
            return
        affine, part, whole = affine_of(source), view.left_of(self._share), _finest(source)
        covers = (part, affine.tobytes(), id(whole))
        if part is not None and covers != self._covers:
            self._covers = covers
            self._curtain.place(
                whole[tuple(slice(*ends) for ends in part)],
                affine_of_part(affine, [start for start, _ in part]),
            )
        start, step = view.dividing_line(self._share, _LINE_WIDTH)
        drawn = [axis in view.axes for axis in view.layer_axes]
        shape = np.where(drawn, 1, view.layer_shape)
        line = np.broadcast_to(np.float32(1), shape)
        self._line.place(line, view.placed(affine, start, step))
        self._curtain.visible, self._line.visible = part is not None, True

    def _on_removed(self, event: Any) -> None:
        if event.value in (self._curtain, self._line, *(self._pair or ())):
            self._end_split(remove_later)

    def _on_drag(self, viewer: ViewerModel, event: Any) -> Iterator[None]:
        """Move the line with the mouse, if the mouse is on it."""
        place = self._place_of(event)
        if place is None or self._curtain is None:
            return
        share, width = place
        if abs(share - self._share) * width > _GRAB:
            return
        camera = viewer.scene.camera
        pans, camera.mouse_pan = camera.mouse_pan, False
        viewer.cursor.style, style = "pointing", viewer.cursor.style
        yield
        while event.type == "mouse_move":
            place = self._place_of(event)
            if place is not None and self._curtain is not None:
                self.share = place[0]
            yield
        camera.mouse_pan = pans
        viewer.cursor.style = style

    def _place_of(self, event: Any) -> tuple[float, float] | None:
        """Where the mouse is, as a share of the canvas' width, and that width in pixels."""
        if self._pair is None:
            return None
        try:
            view = view_of(self._viewer, self._pair[1])
        except UsageError:
            return None
        column = self._viewer.dims.displayed[-1]
        return view.share(event.position[column]), view.width

    # ------------------------------------------------------------------ keys

    def _on_before_after(self, _viewer: ViewerModel) -> None:
        self.toggle()

    def _on_split(self, _viewer: ViewerModel) -> None:
        self.split()


_comparisons: WeakValueDictionary[int, Comparison] = WeakValueDictionary()


def _finest(layer: Image) -> Any:
    """A layer's array; of a pyramid the first."""
    return layer.data[0] if layer.multiscale else layer.data
