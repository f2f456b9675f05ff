"""Which stacks: the viewer's image layers with a box to tick, and which is the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from magicgui.widgets import ComboBox
from napari.layers import Image, Labels
from psygnal import Signal
from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from napari_arssr._fit_plan import bounds_of
from napari_arssr._layers import PLACE, volume_of
from napari_arssr._output_choice import Unit, times
from napari_arssr._rows import Note, choice, refill
from napari_arssr._view import is_helper, is_made
from napari_arssr._worker import Outcome, Runner
from napari_arssr.errors import UsageError
from napari_arssr.fitting.stacks import check_form, is_thick
from napari_arssr.volume import Volume

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Layer

__all__ = ["MaskChoice", "StackChoice", "colour_of"]

_ALTERED = (*PLACE, "axis_labels", "data")
_WATCHED = (*_ALTERED, "name")
_NO_MASK = "none"  # not None, of which magicgui tells nobody that it was chosen
_AT_REST = 300  # milliseconds without a change of a mask, after which it is looked at again
_FEW, _MANY = 3, 8  # rows that the list is high
_LINE = 22
_NOTHING = "Open two or more stacks of one subject: drag their files into the window."
# Told apart by eyes of all kinds, on light and dark; none is the red of slices that are doubted.
_COLOURS = ("#4cb5f5", "#f4b942", "#63c088", "#b48ead", "#c9d1d9", "#e58fb1", "#8fa8ff", "#a3be5c")


def colour_of(number: int) -> str:
    """The colour that a stack's slices are drawn in."""
    return _COLOURS[number % len(_COLOURS)]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A layer, and the volume it shows or why it can be no stack."""

    layer: Image
    volume: Volume | None
    reason: str = ""

    @classmethod
    def of(cls, layer: Image) -> _Candidate:
        try:
            volume = volume_of(layer, load=False)
            check_form(volume)
        except UsageError as error:
            return cls(layer, None, str(error))
        return cls(layer, volume)

    @property
    def text(self) -> str:
        if self.volume is None:
            return f"{self.layer.name} · cannot be a stack"
        spacing = self.volume.spacing  # all three are too long for a row, and in the tip
        thick = is_thick(self.volume.grid)
        size = Unit.of(self.volume).show([max(spacing)] if thick else spacing)
        return f"{self.layer.name} · {size} slices" if thick else f"{self.layer.name} · {size}"

    @property
    def tip(self) -> str:
        if self.volume is None:
            return self.reason
        size = Unit.of(self.volume).show(self.volume.spacing)
        return f"{self.layer.name} · {times(self.volume.grid.shape)} voxels of {size}"


class StackChoice(QWidget):
    """The viewer's image layers, to be ticked, and which of them stays where it is.

    Stacks of thick slices are ticked when they come; layers that can be no stack are grey, and
    say why. ``changed`` says that others are chosen, or that a chosen one is another.

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
        self._candidates: list[_Candidate] = []
        self._ticked: WeakKeyDictionary[Image, bool] = WeakKeyDictionary()
        self._reference: Image | None = None
        self._followed: list[Image] = []
        self._coloured = False
        self.list = QListWidget()
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.setToolTip("Tick the stacks of one subject and contrast, at least two")
        self.reference: ComboBox = choice(
            "The stack that the others are brought to; the result has its axes and its span",
            self._entries,
        )
        self.note = Note(theme)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.list)
        layout.addWidget(self.note)
        self.list.itemChanged.connect(self._on_tick)
        self.reference.changed.connect(self._on_reference)
        for events in self._list_events():
            events.connect(self._on_list)
        self._on_list()

    @property
    def layers(self) -> list[Image]:
        """The layers that are ticked, bottom to top."""
        return [one.layer for one in self._chosen()]

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """What they hold, their voxels not loaded."""
        return tuple(one.volume for one in self._chosen() if one.volume is not None)

    @property
    def number(self) -> int:
        """Which of them is the reference."""
        layers = self.layers
        return layers.index(self._reference) if self._reference in layers else 0

    def choose(self, layers: Sequence[Image]) -> None:
        """Tick these layers of the viewer, and no others."""
        for candidate in self._candidates:
            self._ticked[candidate.layer] = candidate.layer in layers
        self._fill()
        self.changed.emit()

    def show_colours(self, shown: bool) -> None:
        """Whether the list shows in which colour a stack's slices are drawn."""
        self._coloured = shown
        self._fill()

    def close_down(self) -> None:
        """Let go of the viewer."""
        for events in self._list_events():
            events.disconnect(self._on_list)
        self._follow([])

    def _chosen(self) -> list[_Candidate]:
        return [
            one
            for one in self._candidates
            if one.volume is not None and self._ticked.get(one.layer)
        ]

    def _list_events(self) -> list[Any]:
        events = self._viewer.layers.events
        return [events.inserted, events.removed, events.reordered]

    def _entries(self) -> list[tuple[str, Image]]:
        return [(layer.name, layer) for layer in self.layers]

    def _follow(self, layers: list[Image]) -> None:
        """Hear of these layers' names, voxels and places, and no longer of the ones before."""
        for group, joined in ((self._followed, False), (layers, True)):
            for layer in group:
                for name in _WATCHED:
                    event = getattr(layer.events, name)
                    (event.connect if joined else event.disconnect)(self._on_layer)
        self._followed = layers

    def _on_list(self, _event: object = None) -> None:
        offered = [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, Image) and not is_helper(layer)
        ]
        if self._reference not in offered:
            self._reference = None
        before = [one.layer for one in self._candidates]
        if offered != before:
            self._follow(offered)
            self._look_again()

    def _on_layer(self, _event: object = None) -> None:
        self._look_again()

    def _look_again(self) -> None:
        self._candidates = [_Candidate.of(layer) for layer in self._followed]
        for one in self._candidates:
            thick = one.volume is not None and is_thick(one.volume.grid)
            # What was made of a stack says nothing that the stack does not.
            self._ticked.setdefault(one.layer, thick and not is_made(one.layer))
        self._fill()
        self.changed.emit()

    def _fill(self) -> None:
        """Show what there is; nobody is told."""
        chosen = self.layers
        with QSignalBlocker(self.list):
            self.list.clear()
            for one in self._candidates:
                item = QListWidgetItem(one.text)
                item.setToolTip(one.tip)
                if one.volume is None:
                    item.setFlags(Qt.ItemFlag.NoItemFlags)
                else:
                    ticked = bool(self._ticked.get(one.layer))
                    item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
                    item.setCheckState(_CHECK[ticked])
                    if self._coloured and ticked:
                        item.setIcon(_swatch(colour_of(chosen.index(one.layer))))
                self.list.addItem(item)
        rows = min(max(self.list.count(), _FEW), _MANY)
        self.list.setFixedHeight(rows * _LINE + 6)
        self._offer_reference()
        self.note.say("" if self._candidates else _NOTHING)

    def _offer_reference(self) -> None:
        chosen = self.layers
        wanted = self._reference if self._reference in chosen else next(iter(chosen), None)
        refill(self.reference, wanted)
        self.reference.enabled = bool(chosen)

    def _on_tick(self, item: QListWidgetItem) -> None:
        candidate = self._candidates[self.list.row(item)]
        self._ticked[candidate.layer] = item.checkState() == Qt.CheckState.Checked
        if self._coloured:
            self._fill()
        else:
            self._offer_reference()
        self.changed.emit()

    def _on_reference(self, layer: Any) -> None:
        self._reference = layer
        self.changed.emit()


_CHECK = {True: Qt.CheckState.Checked, False: Qt.CheckState.Unchecked}


def _swatch(colour: str) -> QIcon:
    pixmap = QPixmap(12, 12)
    pixmap.fill(QColor(colour))
    return QIcon(pixmap)


class MaskChoice(QWidget):
    """A list of the viewer's labels layers, of which one may bound the fit.

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
        self._layer: Labels | None = None
        self._volume: Volume | None = None
        self._bounds: Volume | None = None
        self._finder = Runner(self, "napari-arssr mask")
        # One stroke of the brush is many changes.
        self._at_rest = QTimer(self)
        self._at_rest.setSingleShot(True)
        self._at_rest.setInterval(_AT_REST)
        self._at_rest.timeout.connect(self._on_rest)
        self.box: ComboBox = choice(
            "Only what is labelled here counts: faster, and a must where most of a stack is not "
            "the subject",
            self._entries,
        )
        self.note = Note(theme)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.box.native)
        layout.addWidget(self.note)
        self.box.changed.connect(self._on_choice)
        for events in self._list_events():
            events.connect(self._on_list)
        self._on_list()

    @property
    def layer(self) -> Labels | None:
        """The layer that is chosen."""
        return self._layer

    @property
    def bounds(self) -> Volume | None:
        """Where its labels lie, see :func:`napari_arssr._fit_plan.bounds_of`, if that is known."""
        return self._bounds

    def volume(self) -> Volume | None:
        """The mask, its voxels not loaded; None where there is none.

        Raises
        ------
        UsageError
            If the layer is no volume.
        """
        if self._layer is None:
            return None
        if self._volume is None:
            self._volume = volume_of(self._layer, load=False)
        return self._volume

    def close_down(self) -> None:
        """Let go of the viewer."""
        for events in self._list_events():
            events.disconnect(self._on_list)
        self._watch(None)
        self._at_rest.stop()
        self._finder.abandon()

    def _list_events(self) -> list[Any]:
        events = self._viewer.layers.events
        return [events.inserted, events.removed, events.reordered]

    def _entries(self) -> list[tuple[str, Layer | str]]:
        labels = [layer for layer in self._viewer.layers if isinstance(layer, Labels)]
        return [("none: all voxels", _NO_MASK), *((layer.name, layer) for layer in labels)]

    def _refill(self) -> None:
        refill(self.box, _NO_MASK if self._layer is None else self._layer)

    def _watch(self, layer: Labels | None) -> None:
        for one, follow in ((self._layer, False), (layer, True)):
            if one is None:
                continue
            slots = [(name, self._on_layer) for name in (*_ALTERED, "labels_update", "paint")]
            for name, slot in [*slots, ("name", self._on_name)]:
                event = getattr(one.events, name)
                (event.connect if follow else event.disconnect)(slot)
        self._layer, self._volume, self._bounds = layer, None, None

    def _on_list(self, _event: object = None) -> None:
        self._refill()
        if self._layer is not None and self.box.value is not self._layer:
            self._on_choice(self.box.value)

    def _on_choice(self, layer: Any) -> None:
        self._watch(None if layer == _NO_MASK else layer)
        self._on_rest()

    def _on_name(self, _event: object = None) -> None:
        self._volume = None
        self._refill()
        self.changed.emit()

    def _on_layer(self, _event: object = None) -> None:
        """It has other voxels, or lies elsewhere."""
        self._volume = None
        self._at_rest.start()

    def _on_rest(self) -> None:
        self._at_rest.stop()
        self.changed.emit()
        self._find_bounds()

    def _find_bounds(self) -> None:
        """Look, on a thread, where labels are; those of before count until that is known."""
        self._finder.abandon()
        try:
            volume = self.volume()
        except UsageError:
            return  # the plan says so
        # What is still in a file is not read for this.
        if volume is not None and isinstance(volume.data, np.ndarray):
            self._finder.start(lambda _report, _stop: bounds_of(volume), self._on_bounds)

    def _on_bounds(self, outcome: Outcome) -> None:
        self._bounds = outcome.value  # None for an error, of memory: the fit will say it too
        self.changed.emit()
