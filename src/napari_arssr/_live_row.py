"""The check box that turns the live view on, and what it says under it."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from napari_arssr._live_view import LiveView
from napari_arssr._rows import Note
from napari_arssr.errors import UsageError

__all__ = ["LiveRow"]


class LiveRow(QWidget):
    """On and off, and what is going on.

    Parameters
    ----------
    make : callable
        A new live view; raises UsageError, saying why, if there can be none.
    theme : callable
        The name of napari's theme.
    """

    def __init__(self, make: Callable[[], LiveView], theme: Callable[[], str]) -> None:
        super().__init__()
        self.view: LiveView | None = None
        self.box = QCheckBox("Live view: sharpen what I zoom to")
        self.note = Note(theme)
        self._make = make
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        layout.addWidget(self.box)
        layout.addWidget(self.note)
        self.box.toggled.connect(self._on_toggled)

    def off(self, reason: str = "") -> None:
        """Turn it off, and say why, if there is a reason."""
        self.close_down()
        with QSignalBlocker(self.box):
            self.box.setChecked(False)
        self.note.say(reason, alarming=bool(reason))

    def close_down(self) -> None:
        """End it, if it is on; nothing is said."""
        view, self.view = self.view, None
        if view is not None:
            view.stop()

    def _on_toggled(self, on: bool) -> None:
        self.close_down()
        self.note.say("")
        if not on:
            return
        try:
            view = self._make()
            view.state.connect(self._say)
            view.ended.connect(self._on_ended)
            view.start()
        except UsageError as error:
            self.off(str(error))
            return
        self.view = view

    def _say(self, text: str) -> None:
        self.note.say(text)

    def _on_ended(self) -> None:
        """It ended by itself, and has said why."""
        self.view = None
        self.off(self.note.text())
