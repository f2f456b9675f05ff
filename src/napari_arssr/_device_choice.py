"""Where networks run, and in which number format: what this machine really has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from magicgui.widgets import ComboBox
from psygnal import Signal
from qtpy.QtCore import QObject, QTimer

from napari_arssr._rows import Note, choice, refill
from napari_arssr._warm_up import import_torch
from napari_arssr._worker import Outcome, Runner
from napari_arssr.choices import PRECISIONS
from napari_arssr.watching import Stop, VagueReport

__all__ = ["DeviceChoice"]

_AUTO = "auto"
# Milliseconds after the widget is shown, so that showing it is not slowed down.
_LOOK_AFTER = 300


class DeviceChoice(QObject):
    """A list of devices, filled in once PyTorch has been asked, and one of precisions.

    Parameters
    ----------
    device, precision : str
        What is chosen at first.
    theme : callable
        Gives the name of the window's theme.
    failed : callable
        Told the error if PyTorch cannot be asked.
    parent : QObject
        What it goes with.
    """

    changed = Signal()

    def __init__(
        self,
        device: str,
        precision: str,
        theme: Callable[[], str],
        failed: Callable[[BaseException], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._failed = failed
        self.known: list[str] = []
        self._wanted = device
        self._fruitless = False
        self.device: ComboBox = choice("Where the network runs", self._devices)
        self.precision: ComboBox = choice(
            "Of the network; auto is bfloat16 where that is as good and faster, else float32",
            self._precisions,
        )
        self.note = Note(theme)
        self.runner = Runner(self, "napari-arssr devices")
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(_LOOK_AFTER)
        self._later.timeout.connect(self.look)
        self.device.value = device
        self.precision.value = precision if precision in self.precision.choices else _AUTO
        self.device.changed.connect(self._on_device)
        self.precision.changed.connect(self._on_precision)

    def look_later(self) -> None:
        """Ask what there is, once the window has come to rest."""
        if not self.known:
            self._later.start()

    def look(self) -> None:
        """Ask what there is, on a thread: it takes importing PyTorch."""
        if not self.known:
            self.runner.start(_ask, self._on_known)

    def close_down(self) -> None:
        """Do not wait for an answer any more."""
        self._later.stop()
        self.runner.abandon()

    def _devices(self) -> list[tuple[str, str]]:
        if self.known:
            return [(f"{_AUTO}: {self.known[0]}", _AUTO), *((name, name) for name in self.known)]
        auto = (_AUTO if self._fruitless else f"{_AUTO}: looking…", _AUTO)
        return [auto] if self._wanted == _AUTO else [auto, (self._wanted, self._wanted)]

    def _precisions(self) -> list[tuple[str, str]]:
        """float16 is for GPUs: it is not offered where the processor will be used."""
        device = self.device.value
        if device == _AUTO and self.known:
            device = self.known[0]
        return [(name, name) for name in PRECISIONS if device != "cpu" or name != "float16"]

    def _on_known(self, outcome: Outcome) -> None:
        chosen = "cuda:0" if self.device.value == "cuda" else self.device.value
        if outcome.error is not None:
            self._fruitless = True
            self.note.say("PyTorch does not start: see the message.", alarming=True)
            self._failed(outcome.error)
        else:
            self.known = outcome.value
            gone = chosen not in (_AUTO, *self.known)
            self.note.say(f"{chosen} is not here; {_AUTO} is used." if gone else "", alarming=gone)
        refill(self.device, chosen)
        refill(self.precision, self.precision.value)
        self.changed.emit()

    def _on_device(self, _value: Any) -> None:
        self.note.say("")
        refill(self.precision, self.precision.value)
        self.changed.emit()

    def _on_precision(self, _value: Any) -> None:
        self.changed.emit()


def _ask(_report: VagueReport, _stop: Stop) -> list[str]:
    import_torch()
    import_module("napari_arssr.field")  # so that the first run need not wait for it
    from napari_arssr.devices import available_devices

    return available_devices()
