"""What the dock widgets have in common: how they begin, and above all how they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from qtpy.QtCore import QEvent, QSize
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QApplication, QLayout, QVBoxLayout, QWidget

from napari_arssr._device_choice import DeviceChoice
from napari_arssr._preferences import use_cache_folder
from napari_arssr._rows import Page

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Dock", "open_dock"]

_WIDTH = 400
_PLUGIN = "ArSSR super-resolution"


class Dock(QWidget):
    """A dock widget that ends what it began when it is closed, in whatever way.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    device: DeviceChoice
    height_of_rows: int  # of all of them, in pixels

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        use_cache_folder()
        self._viewer = viewer
        self._docked = False
        self._closed = False

    def _stack(self, *parts: QWidget | QLayout) -> None:
        """Lay parts out, one under the other."""
        page = QWidget()
        inner = QVBoxLayout(page)
        inner.setContentsMargins(8, 8, 8, 8)
        inner.setSpacing(8)
        for part in parts:
            if isinstance(part, QWidget):
                inner.addWidget(part)
            else:
                inner.addLayout(part)
        inner.addStretch()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(Page(page))

    def _end_with_the_window(self, abandon: Callable[..., None]) -> None:
        """Abandon what runs when the window goes.

        It may be deleted without this widget's hearing of it in any other way, and the
        application may end without deleting anything. ``abandon`` must not need the widget.
        """
        self.destroyed.connect(abandon)
        application = QApplication.instance()
        assert application is not None
        application.aboutToQuit.connect(self.close_down)

    def _ends(self) -> Sequence[Callable[[], object]]:
        """What ends what runs, unheard, and lets go of the viewer, in this order; asked once."""
        raise NotImplementedError

    def _theme(self) -> str:
        return str(self._viewer.theme)

    def close_down(self) -> None:
        """End what runs, unheard, and let go of the viewer.

        One end that fails keeps none of the others from coming; its error is raised after them.
        """
        if not self._closed:
            self._closed = True
            with ExitStack() as stack:
                for end in reversed(self._ends()):
                    stack.callback(end)

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        """Once the widget is seen it asks for devices."""
        super().showEvent(event)
        self.device.look_later()

    def event(self, event: QEvent | None) -> bool:
        """Notice being taken out of the window: napari does so when the panel is closed."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._docked = True
            elif self._docked:
                self.close_down()
        return super().event(event)

    def sizeHint(self) -> QSize:  # noqa: N802
        """As much as all rows need."""
        return QSize(_WIDTH, self.height_of_rows)


Kind = TypeVar("Kind", bound=Dock)


def open_dock(viewer: napari.viewer.Viewer, kind: type[Kind], name: str) -> Kind:
    """A dock widget of a viewer: the one that is open, hidden or not, or a new one; it is shown.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    kind : type of Dock
    name : str
        As in the manifest: napari's Plugins menu then finds what was opened here.
    """
    docked = viewer.window.dock_widgets.values()
    widget = next((one for one in docked if isinstance(one, kind)), None)
    if widget is None:
        widget = kind(viewer)
        viewer.window.add_dock_widget(widget, name=f"{name} ({_PLUGIN})")
    dock = widget.parentWidget()
    assert dock is not None
    dock.show()
    dock.raise_()  # where there is little room it is one of several tabs
    return widget
