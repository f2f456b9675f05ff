"""Which image: a list of the viewer's image layers, and what the chosen one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox
from napari.layers import Image
from psygnal import Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_arssr._layers import PLACE, volume_of
from napari_arssr._output_choice import Unit, times
from napari_arssr._rows import Note, choice, refill
from napari_arssr._stated_sizes import StatedSizes
from napari_arssr._view import is_helper
from napari_arssr.errors import UsageError
from napari_arssr.volume import Volume

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Layer

__all__ = ["ImageChoice"]

_NO_IMAGE = "Open a scan or an image stack: drag the file into the window."


class ImageChoice(QWidget):
    """A list of image layers that follows the viewer's.

    ``changed`` says that another layer was chosen, ``altered`` that the chosen one has other
    voxels or lies elsewhere.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    theme : callable
        Gives the name of the window's theme.
    """

    changed = Signal()
    altered = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, theme: Callable[[], str]) -> None:
        super().__init__()
        self._viewer = viewer
        self._layer: Image | None = None
        self._volume: Volume | None = None
        self.box: ComboBox = choice("The image to be sharpened", self._entries)
        self.note = Note(theme)
        self.sizes = StatedSizes(self, viewer, lambda: [layer for _, layer in self._entries()])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.box.native)
        layout.addWidget(self.note)
        layout.addWidget(self.sizes)
        self.box.changed.connect(self._on_choice)
        for events in self._list_events():
            events.connect(self._on_list)
        active = viewer.layers.selection.active
        self._offer(active if self.offers(active) else None)

    @property
    def layer(self) -> Image | None:
        """The layer that is chosen."""
        return self._layer

    def volume(self) -> Volume:
        """What the chosen layer holds, its voxels not loaded.

        Raises
        ------
        UsageError
            If there is none, or it holds no volume; says why.
        """
        if self._layer is None:
            raise UsageError(_NO_IMAGE)
        if self._volume is None:
            self._volume = volume_of(self._layer, load=False)
        return self._volume

    def offers(self, layer: Layer | None) -> bool:
        """Whether a layer of the viewer can be chosen."""
        return isinstance(layer, Image) and not is_helper(layer)

    def choose(self, layer: Image) -> None:
        """Choose a layer of the viewer."""
        self._offer(layer)

    def close_down(self) -> None:
        """Let go of the viewer."""
        for events in self._list_events():
            events.disconnect(self._on_list)
        self._watch(None)
        self.sizes.close_down()

    def _list_events(self) -> list[Any]:
        events = self._viewer.layers.events
        return [events.inserted, events.removed, events.reordered]

    def _entries(self) -> list[tuple[str, Image]]:
        return [(layer.name, layer) for layer in self._viewer.layers if self.offers(layer)]

    def _offer(self, wanted: Image | None) -> None:
        """Bring the list up to date, and choose the wanted layer or what comes nearest."""
        layers = [layer for _, layer in self._entries()]
        if wanted is None or wanted not in layers:
            wanted = layers[-1] if layers else None
        else:
            wanted = layers[layers.index(wanted)]  # itself, not a proxy that plugins are given
        refill(self.box, wanted)
        self.box.enabled = bool(layers)
        self._choose(wanted)

    def _choose(self, layer: Image | None) -> None:
        if layer != self._layer:
            self._watch(layer)
            self._volume = None
            self._describe()
            self.changed.emit()
        elif layer is None:
            self._describe()

    def _watch(self, layer: Image | None) -> None:
        """Follow a layer's name, voxels and place, and no longer those of the one before."""
        for one, follow in ((self._layer, False), (layer, True)):
            if one is None:
                continue
            slots = [(name, self._on_place) for name in (*PLACE, "axis_labels")]
            slots += [("data", self._on_voxels), ("name", self._on_name)]
            for name, slot in slots:
                event = getattr(one.events, name)
                (event.connect if follow else event.disconnect)(slot)
        self._layer = layer

    def _on_list(self, _event: object = None) -> None:
        self._offer(self._layer)

    def _on_choice(self, layer: Any) -> None:
        self._choose(layer)

    def _on_name(self, _event: object = None) -> None:
        self._volume = None
        self._offer(self._layer)
        self.altered.emit()

    def _on_voxels(self, _event: object = None) -> None:
        self._on_place()

    def _on_place(self, _event: object = None) -> None:
        self._volume = None
        self._describe()
        self.altered.emit()

    def _describe(self) -> None:
        self.sizes.look(self._layer)
        try:
            volume = self.volume()
        except UsageError as error:
            self.note.say(str(error), alarming=self._layer is not None)
            return
        assert self._layer is not None
        plane = self._is_plane(volume)  # is shown as one, not as a slice
        shape = (*volume.data.shape[:-3], *volume.grid.shape[plane:])
        spacing = volume.spacing[plane:]
        self.note.say((times(shape), Unit.of(volume).show(spacing), str(volume.data.dtype)))

    def _is_plane(self, volume: Volume) -> bool:
        return self._layer is not None and self._layer.ndim < volume.data.ndim

    @property
    def plane(self) -> bool:
        """Whether the chosen layer is a plane, or a series of planes."""
        try:
            return self._is_plane(self.volume())
        except UsageError:
            return False
