"""A box of voxels, drawn with the mouse in any of the three views.

A rectangle says what the box is along the two axes that are seen. Across them a first rectangle
makes it as deep as its shorter side is long, around the slice it was drawn in: nearly a cube,
because what one frames in a slice is about as deep, and the whole depth of a scan would be most
of it. A rectangle in a second view then says how deep it is; so does :attr:`DrawnBox.depth`.

The shapes layer always holds one rectangle: the box's section by the slice that is seen, so that
the box is seen, and can be changed, in every slice of every view. napari itself shows a shape
only in the slice it was drawn in, and none at all where a slider stands between two slices
(its rectangles are rounded down, its sliders not); so drawing is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from napari.layers import Layer, Shapes
from napari.layers.utils.layer_utils import Extent
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_arssr._layers import PLACE, volume_of
from napari_arssr._output_choice import Unit
from napari_arssr._view import mark_helper, view_of
from napari_arssr.errors import UsageError
from napari_arssr.slice_view import SliceView, spatial_indices
from napari_arssr.volume import Box, Volume

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["DrawnBox"]

Link = tuple[Any, Callable[..., None]]  # an event and what hears it

_DRAWING = "add_rectangle"
_COLOUR = "#ffd166"
_LINE = 2.0  # canvas pixels
_GRAB = 6.0  # canvas pixels on either side of an edge
_CLICK = 3.0  # canvas pixels up to which the mouse has not been dragged

# Of a layer without an image: larger than any image's, of which napari takes the smallest.
_NO_STEP = 1e6

# What napari's events say when something is over.
_DONE = ("added", "changed", "removed")


class DrawnBox:
    """A box of an image layer's voxels, and the shapes layer it is drawn in.

    For the window's thread only; its signal ``changed`` carries the new :class:`Box`, or None.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Layer
        An image or labels layer.

    Raises
    ------
    UsageError
        If the layer is no volume.
    """

    changed = Signal(object)

    def __init__(self, viewer: ViewerModel, layer: Layer) -> None:
        self._viewer = viewer
        self._source = layer
        self._volume: Volume = volume_of(layer, load=False)
        self._shapes: _BoxShapes | None = None
        self._view: SliceView | None = None
        self._box: Box | None = None
        self._across: int | None = None
        self._settled: set[int] = set()  # axes along which the user said how long it is
        self._outlined = False
        self._busy = False
        self._links: list[Link] = []
        self._soon = QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._outline)
        self._connect()
        self._recall()

    @property
    def box(self) -> Box | None:
        """The box, in voxels of :func:`napari_arssr._layers.volume_of` the layer."""
        return self._box

    @property
    def shapes(self) -> Shapes | None:
        """The layer it is drawn in, once there is one."""
        return self._shapes

    @property
    def across(self) -> int | None:
        """The axis, 0 to 2 for (z, y, x), across the view that was drawn in last."""
        return None if self._box is None else self._across

    @property
    def depth_limits(self) -> tuple[int, int] | None:
        """The first and one past the last slice that there are along :attr:`across`."""
        return None if self.across is None else (0, self._volume.grid.shape[self.across])

    @property
    def depth(self) -> tuple[int, int] | None:
        """The first and one past the last slice of the box along :attr:`across`.

        Raises
        ------
        UsageError
            When set to what is no range of slices, or before there is a box.
        """
        if self._box is None or self._across is None:
            return None
        return self._box.start[self._across], self._box.stop[self._across]

    @depth.setter
    def depth(self, depth: tuple[int, int]) -> None:
        if self._box is None or self._across is None:
            raise UsageError("There is no box yet: press Draw, and draw a rectangle.")
        start, stop = int(depth[0]), int(depth[1])
        size = self._volume.grid.shape[self._across]
        if not 0 <= start < stop <= size:
            raise UsageError(
                f"A box from slice {start} up to {stop} is none of {self._source.name}, whose "
                f"slices are 0 to {size - 1}."
            )
        self._settled.add(self._across)
        self._set(self._box.with_range(self._across, start, stop))
        self._later()

    def describe(self) -> str:
        """The box's size in voxels, in the layer's axis order, and in the layer's unit."""
        if self._box is None:
            return "Draw a rectangle over the image, in any of the three views."
        extent = self._volume.grid.crop(self._box).extent
        plane = 3 - (self._source.ndim - (self._volume.data.ndim == 4))
        voxels = " × ".join(map(str, self._box.shape[plane:]))
        return f"{voxels} voxels · {Unit.of(self._volume).show(extent[plane:])}"

    def draw(self) -> None:
        """Let the user draw: make or select the layer, and take the rectangle tool.

        A box that was drawn in the image before is there again, and ``changed`` says so.
        """
        if self._viewer.dims.ndisplay != 2:
            self._viewer.dims.ndisplay = 2
        if self._shapes is None:
            self._shapes = self._a_layer()
            self._follow_shapes()
            if self._box is not None:
                self.changed.emit(self._box)
        self._outline()
        self._viewer.layers.selection.active = self._shapes
        self._shapes.visible = True
        self._shapes.mode = _DRAWING

    def clear(self) -> None:
        """Have no box."""
        self._settled.clear()
        self._set(None)
        self._later()

    def close(self) -> None:
        """Let go of viewer and layer.

        The rectangle's layer stays, empty and hidden, for the next box. Who comes back to the
        image, and draws in it again, finds the box again.
        """
        self._soon.stop()
        for emitter, slot in self._links:
            emitter.disconnect(slot)
        self._links.clear()
        self._box = None
        self._give_back()

    def _a_layer(self) -> _BoxShapes:
        """The layer that another box has left, or a new one, above all others."""
        layers = self._viewer.layers
        for layer in layers:
            if isinstance(layer, _BoxShapes) and layer.is_free_for(self._source):
                layer.follow(self._source)
                layers.move(layers.index(layer), len(layers))
                return layer
        made = _BoxShapes(self._source)
        mark_helper(made)
        self._viewer.add_layer(made)
        return made

    def _give_back(self) -> None:
        shapes, selection = self._forget_shapes(), self._viewer.layers.selection
        if shapes is not None and shapes in self._viewer.layers:
            if selection.active == shapes and self._source in self._viewer.layers:
                selection.active = self._source
            shapes.leave()

    # --------------------------------------------------------------------------- events

    def _connect(self) -> None:
        viewer, source = self._viewer, self._source
        pairs: list[Link] = [
            (viewer.dims.events.point, self._later),
            (viewer.dims.events.order, self._later),
            (viewer.dims.events.ndisplay, self._later),
            (viewer.scene.camera.events.zoom, self._later),
            (viewer.layers.events.removed, self._on_removed),
            (source.events.data, self._on_source),
            (source.events.name, self._on_name),
        ]
        pairs += [(getattr(source.events, name), self._on_source) for name in PLACE]
        for emitter, slot in pairs:
            emitter.connect(slot)
            self._links.append((emitter, slot))

    def _shape_events(self) -> list[Link]:
        assert self._shapes is not None
        events = self._shapes.events
        return [
            (events.mode, self._on_mode),
            (events.data, self._on_shapes),
            (events.set_data, self._on_sight),
        ]

    def _recall(self) -> None:
        """Find the box again that was drawn in this image before."""
        drawn = _drawn.get(self._source)
        box = None if drawn is None else drawn.box.common(self._volume.grid.box)
        if drawn is not None and box is not None:
            self._box, self._across, self._settled = box, drawn.across, set(drawn.settled)

    def _follow_shapes(self) -> None:
        for emitter, slot in self._shape_events():
            emitter.connect(slot)

    def _forget_shapes(self) -> _BoxShapes | None:
        shapes = self._shapes
        if shapes is not None:
            for emitter, slot in self._shape_events():
                emitter.disconnect(slot)
            if self._on_drag in shapes.mouse_drag_callbacks:
                shapes.mouse_drag_callbacks.remove(self._on_drag)
        self._shapes, self._outlined = None, False
        return shapes

    def _later(self, _event: object = None) -> None:
        self._soon.start()

    def _on_name(self, _event: object = None) -> None:
        if self._shapes is not None:
            self._shapes.follow(self._source)

    def _on_source(self, _event: object = None) -> None:
        """The image lies elsewhere, or has other voxels: so has the box."""
        try:
            self._volume = volume_of(self._source, load=False)
        except UsageError:  # no volume any more
            self.clear()
            return
        shapes = self._shapes
        if shapes is not None and shapes.ndim != self._source.ndim:
            self._give_back()
            self.clear()
            return
        if shapes is not None:
            shapes.follow(self._source)
        if self._box is not None:
            self._set(self._box.common(self._volume.grid.box))
        self._later()

    def _on_removed(self, event: Any) -> None:
        if event.value == self._source:
            had_box = self._box is not None
            self.close()
            if had_box:
                self.changed.emit(None)
        elif event.value == self._shapes:
            self._forget_shapes()
            self.clear()

    def _on_mode(self, _event: object = None) -> None:
        """With the rectangle tool, draw as it is done here."""
        if self._shapes is None:
            return
        callbacks = self._shapes.mouse_drag_callbacks
        if self._on_drag in callbacks:
            callbacks.remove(self._on_drag)
        if self._shapes.mode == _DRAWING and callbacks:
            # The tool's own callback is the one that was added last.
            callbacks[-1] = self._on_drag

    def _on_sight(self, _event: object = None) -> None:
        """The rectangle is perhaps being changed with napari's own tools."""
        if self._shapes is not None and not self._busy and self._outlined:
            corners = self._shapes.data
            if len(corners) == 1:
                self._take_shape(corners[0], anew=False)

    def _on_shapes(self, event: Any) -> None:
        """A rectangle was changed with napari's own tools, deleted, or added by a program."""
        if self._busy or self._shapes is None or str(event.action) not in _DONE:
            return
        corners = self._shapes.data
        if not corners and self._outlined:
            self._outlined = False
            self.clear()
        elif len(corners) > self._outlined:
            for one in corners[int(self._outlined) :]:
                self._take_shape(one, anew=True)
        elif corners:
            self._take_shape(corners[0], anew=False)
        self._later()

    def _on_drag(self, _layer: Shapes, event: Any) -> Iterator[None]:
        """Draw a rectangle, or move the edges that the mouse is on."""
        view = self._look()
        if view is None:
            return
        pressed, before, settled = self._place_of(event), self._box, set(self._settled)
        grip = None if before is None else view.grip(before, pressed, _GRAB)
        yield
        while event.type == "mouse_move":
            place = self._place_of(event)
            if before is not None and grip is not None:
                points = view.dragged(before, grip, place)
                self._take(points, view.across, before, settled, anew=False)
            elif view.pixels_between(pressed, place) > _CLICK:
                points = view.index([pressed, place])
                self._take(points, view.across, before, settled, anew=True)
            self._outline()
            yield

    def _place_of(self, event: Any) -> list[float]:
        """Where the mouse is in the world, (down, right)."""
        return [float(event.position[axis]) for axis in self._viewer.dims.displayed]

    # --------------------------------------------------------------------------- the box

    def _take_shape(self, corners: npt.NDArray[np.float64], *, anew: bool) -> None:
        points = spatial_indices(corners, series=self._volume.data.ndim == 4)
        # A shape is flat across the view it was drawn in.
        across = int(np.ptp(points, axis=0).argmin())
        self._take(points, across, self._box, set(self._settled), anew=anew)

    def _take(
        self,
        points: npt.NDArray[np.float64],
        across: int,
        before: Box | None,
        settled: set[int],
        *,
        anew: bool,
    ) -> None:
        """Make a rectangle the box's section.

        Parameters
        ----------
        points : (p, 3) array
            Voxel indices, of one slice.
        across : int
            The axis across that slice.
        before : Box or None
            What there was, which may say how deep the box is.
        settled : set of int
            Along which axes the user had said how long that is.
        anew : bool
            Whether the rectangle was drawn, not changed.
        """
        grid = self._volume.grid
        drawn = grid.box_snapped(points)
        if drawn is None:
            return
        number = drawn.start[across]
        kept = (
            before is not None
            and before.start[across] <= number < before.stop[across]
            and (across in settled or not anew)
        )
        if kept and before is not None:
            box = drawn.with_range(across, before.start[across], before.stop[across])
        else:
            box = grid.cubed(drawn, across, number)
        if box == self._box and not anew:
            return  # it was only shown again, perhaps in another view
        self._across = across
        self._settled = {0, 1, 2} - {across} | (settled & {across} if kept else set())
        self._set(box)

    def _set(self, box: Box | None) -> None:
        if box == self._box:
            return
        self._box = box
        if box is None or self._across is None:
            _drawn.pop(self._source, None)
        else:
            _drawn[self._source] = _Drawn(box, self._across, frozenset(self._settled))
        self.changed.emit(box)

    def _look(self) -> SliceView | None:
        try:
            return view_of(self._viewer, self._source, self._volume)
        except UsageError:  # no slice of it is seen
            return None

    def _outline(self) -> None:
        """Show the box's section by the slice that is seen, and nothing else."""
        shapes, view = self._shapes, self._look()
        if shapes is None or view is None:
            return
        corners = None if self._box is None else view.outline(self._box)
        width = view.line_width(_LINE)
        there = shapes.data
        if corners is None:
            same = not there
        else:
            same = len(there) == 1 and np.array_equal(there[0], corners)
            same = same and np.allclose(shapes.edge_width, width, rtol=0.01)
        self._outlined = corners is not None
        if same:
            return
        selected = bool(shapes.selected_data)
        self._busy = True
        try:
            shapes.data = []
            if corners is not None:
                shapes.add_rectangles(
                    corners, edge_width=width, edge_color=_COLOUR, face_color="transparent"
                )
                if selected:
                    shapes.selected_data = {0}
        finally:
            self._busy = False


@dataclass(frozen=True)
class _Drawn:
    """A box that was drawn in an image, as long as that is open."""

    box: Box
    across: int
    settled: frozenset[int]


_drawn: WeakKeyDictionary[Layer, _Drawn] = WeakKeyDictionary()


class _BoxShapes(Shapes):  # type: ignore[misc]
    """The layer that a box is drawn in; it counts as no larger and no finer than the image.

    napari takes the ranges and steps of its sliders from the extents of all layers, and a
    rectangle around voxels reaches half a voxel beyond their centres.

    It is made once, and handed on from box to box. To remove it would be neater, but drivers of
    OpenGL crash when napari deletes a layer that has drawn lines while others are drawn: Mesa's
    software renderer always does, some on Windows do.
    """

    def __init__(self, source: Layer) -> None:
        self._beneath: Layer | None = source
        super().__init__(
            ndim=source.ndim, edge_color=_COLOUR, face_color="transparent", opacity=1.0
        )
        self.follow(source)

    def is_free_for(self, source: Layer) -> bool:
        """Whether no box uses it, and it has as many axes as an image."""
        return self._beneath is None and self.ndim == source.ndim

    def follow(self, source: Layer) -> None:
        """Lie where an image lies."""
        self._beneath = source
        self.name = f"box in {source.name}"
        for name in ("axis_labels", *PLACE):
            setattr(self, name, copy(getattr(source, name)))

    def leave(self) -> None:
        """Be empty, hidden, and free."""
        self.mode = "pan_zoom"
        self.visible = False
        self._beneath = None
        self.data = list[Any]()
        self._clear_extent()
        self.events.affine()  # the viewer looks again how large everything is
        self.name = "box"

    @property
    def extent(self) -> Extent:
        """That of the image; without one, that of nothing."""
        if self._beneath is not None:
            return self._beneath.extent
        nothing = np.full((2, self.ndim), np.nan)
        return Extent(nothing, nothing, step=np.full(self.ndim, _NO_STEP), units=self.units)

    @property
    def _type_string(self) -> str:
        return "shapes"
