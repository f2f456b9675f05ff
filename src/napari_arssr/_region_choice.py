"""Which part of the image: all, a drawn box, or what the window shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magicgui.widgets import SpinBox
from psygnal import Signal
from qtpy.QtWidgets import QButtonGroup, QLabel, QPushButton, QRadioButton, QVBoxLayout, QWidget
from superqt.utils import qdebounced

from napari_arssr._box import DrawnBox
from napari_arssr._rows import Note, in_a_row
from napari_arssr._view import visible_box
from napari_arssr.errors import UsageError
from napari_arssr.volume import Box

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Layer

__all__ = ["RegionChoice"]

# Milliseconds without a movement of the camera, after which it counts as at rest.
_AT_REST = 150


class RegionChoice(QWidget):
    """The whole volume, a drawn box, or what is in view.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    theme : callable
        Gives the name of the window's theme.
    """

    changed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, theme: Callable[[], str]) -> None:
        super().__init__()
        self._viewer = viewer
        self._layer: Layer | None = None
        self._drawn: DrawnBox | None = None
        self.whole = QRadioButton("whole volume")
        self.by_box = QRadioButton("drawn box")
        self.in_view = QRadioButton("current view")
        self.draw = QPushButton("Draw")
        self.draw.setToolTip("Draw a rectangle in any of the three views")
        self.note = Note(theme)
        self.first: SpinBox = SpinBox(tooltip="First slice of the box, across the view drawn in")
        self.last: SpinBox = SpinBox(tooltip="Last slice of the box")
        for end in (self.first, self.last):  # a number of several digits is one change
            end.native.setKeyboardTracking(False)
        self._depth = QWidget()
        self._depth.setLayout(
            in_a_row(
                QLabel("slices"),
                self.first.native,
                QLabel("to"),
                self.last.native,
                stretch=True,
            )
        )
        self._buttons = QButtonGroup(self)
        for button in (self.whole, self.by_box, self.in_view):
            self._buttons.addButton(button)
        self.whole.setChecked(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.whole)
        layout.addLayout(in_a_row(self.by_box, self.draw, stretch=True))
        layout.addWidget(self._depth)
        layout.addWidget(self.note)
        layout.addWidget(self.in_view)
        self._depth.setVisible(False)
        self._buttons.buttonToggled.connect(self._on_button)
        self.draw.clicked.connect(self._on_draw)
        self.first.changed.connect(self._on_depth)
        self.last.changed.connect(self._on_depth)
        self._at_rest = qdebounced(self._on_rest, timeout=_AT_REST)
        for events in self._movements():
            events.connect(self._on_move)

    def set_layer(self, layer: Layer | None) -> None:
        """The image that is chosen; a box drawn for another goes."""
        if layer != self._layer:
            self._forget_box()
            self._layer = layer

    def box(self) -> Box | None:
        """The part that is chosen, in voxels of the layer; None for all.

        Raises
        ------
        UsageError
            If there is no such part yet.
        """
        if self.whole.isChecked() or self._layer is None:
            return None
        if self.in_view.isChecked():
            return visible_box(self._viewer, self._layer)
        if self._drawn is None or self._drawn.box is None:
            raise UsageError("Press Draw, and draw a rectangle over the image.")
        return self._drawn.box

    def raise_box(self) -> None:
        """Put the drawn box above all layers, a result in it for instance."""
        shapes = None if self._drawn is None else self._drawn.shapes
        if shapes is not None and self.by_box.isChecked():
            layers = self._viewer.layers
            layers.move(layers.index(shapes), len(layers))

    def close_down(self) -> None:
        """Let go of the viewer."""
        for events in self._movements():
            events.disconnect(self._on_move)
        self._at_rest.cancel()
        self._forget_box()

    def _movements(self) -> list[Any]:
        viewer = self._viewer
        return [
            viewer.scene.camera.events.zoom,
            viewer.scene.camera.events.center,
            viewer.canvas.events.size,
            viewer.dims.events.point,
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
        ]

    def _on_move(self, _event: object = None) -> None:
        if self.in_view.isChecked():
            self._at_rest()

    def _on_rest(self) -> None:
        self.changed.emit()

    def _on_button(self, _button: QRadioButton, checked: bool) -> None:
        if checked:
            self._show_box()
            self.changed.emit()

    def _on_draw(self) -> None:
        if self._layer is None:
            return
        if self._drawn is None:
            self._drawn = DrawnBox(self._viewer, self._layer)
            self._drawn.changed.connect(self._on_box)
        self._drawn.draw()
        self.by_box.setChecked(True)

    def _on_box(self, _box: Box | None) -> None:
        self._show_box()
        self.changed.emit()

    def _on_depth(self) -> None:
        """Both ends are slices of the box; one that passes the other takes it along."""
        drawn = self._drawn
        if drawn is None or drawn.depth is None:
            return
        first, last = int(self.first.value), int(self.last.value)
        if first > last:
            first, last = (last, last) if first == drawn.depth[0] else (first, first)
        drawn.depth = first, last + 1

    def _show_box(self) -> None:
        drawn = self._drawn if self.by_box.isChecked() else None
        self.note.say("" if drawn is None else drawn.describe())
        depth = None if drawn is None else drawn.depth
        limits = None if drawn is None else drawn.depth_limits
        self._depth.setVisible(depth is not None)
        if depth is None or limits is None:
            return
        for box, value in ((self.first, depth[0]), (self.last, depth[1] - 1)):
            with box.changed.blocked():
                box.min, box.max = limits[0], limits[1] - 1
                box.value = value

    def _forget_box(self) -> None:
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            drawn.changed.disconnect(self._on_box)
            drawn.close()
            self._show_box()
