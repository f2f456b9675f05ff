"""Which weights, whether they are here, and fetching them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from psygnal import Signal
from qtpy.QtWidgets import QFileDialog, QPushButton, QVBoxLayout, QWidget

from napari_arssr import weights
from napari_arssr._rows import Note, choice, in_a_row, refill
from napari_arssr._worker import Outcome, Progress, Runner, State
from napari_arssr.watching import Stop, VagueReport

__all__ = ["WeightsChoice"]

_FILE = "file…"
_FILTER = "ArSSR weights (*.safetensors *.pkl *.pt *.pth);;All files (*)"
# Speed is taken over so many of the last seconds.
_SPEED_SECONDS = 3.0


class WeightsChoice(QWidget):
    """A list of all sets of weights, with a button that fetches the one that is not here.

    Parameters
    ----------
    chosen : str
        A registered name or a file.
    theme : callable
        Gives the name of the window's theme.
    failed : callable
        Told the error of a download that failed.
    """

    changed = Signal(str)

    def __init__(
        self, chosen: str, theme: Callable[[], str], failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__()
        self._failed = failed
        self._files: list[str] = []
        self._value = chosen
        self._fetching = ""
        self.box = choice("Which network sharpens the image", self._entries)
        self.button = QPushButton("Download")
        self.note = Note(theme)
        self.runner = Runner(self, "napari-arssr download")
        self.runner.state_changed.connect(self._show_state)
        self.runner.progressed.connect(self._show_progress)
        self.box.changed.connect(self._on_choice)
        self.button.clicked.connect(self._on_click)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.box.native)
        layout.addWidget(self.note)
        layout.addLayout(in_a_row(self.button, stretch=True))
        self.choose(chosen)

    @property
    def value(self) -> str:
        """The registered name, or the path of the file."""
        return self._value

    @property
    def problem(self) -> str:
        """Why these weights cannot be used; empty if they can, if only after a download."""
        if self._value in weights.REGISTRY:
            if weights.status(self._value) == "broken":
                return "The bundled weights are missing; reinstall napari-arssr."
            return ""
        if not Path(self._value).is_file():
            return f"{self._value} is not there any more; choose another."
        return ""

    @property
    def here(self) -> bool:
        """Whether nothing has to be downloaded first."""
        return self._value not in weights.REGISTRY or weights.status(self._value) in (
            "bundled",
            "downloaded",
        )

    def choose(self, name_or_path: str) -> None:
        """Choose a registered name or a file."""
        if name_or_path not in weights.REGISTRY and name_or_path not in self._files:
            self._files.append(name_or_path)
        self._value = name_or_path
        self.refresh()
        self.changed.emit(self._value)

    def refresh(self) -> None:
        """Look again which sets are here."""
        refill(self.box, self._value)
        self._show_state()

    def _entries(self) -> list[tuple[str, str]]:
        entries = [(_entry(name), name) for name in weights.REGISTRY]
        entries += [(Path(path).name, path) for path in self._files]
        return [*entries, (_FILE, _FILE)]

    def close_down(self) -> None:
        """Give up what is being downloaded."""
        self.runner.abandon()

    def _on_choice(self, value: Any) -> None:
        if value != _FILE:
            self._value = str(value)
            self._show_state()
            self.changed.emit(self._value)
            return
        path, _ = QFileDialog.getOpenFileName(self, "Choose a file of weights", "", _FILTER)
        if path:
            self.choose(path)
        else:
            self.refresh()

    def _on_click(self) -> None:
        if self.runner.state is State.IDLE:
            self._fetching = self._value
            self.runner.start(partial(_fetch, self._value), self._on_end)
        else:
            self.runner.cancel()

    def _on_end(self, outcome: Outcome) -> None:
        self.refresh()
        if outcome.error is not None and not outcome.cancelled:
            self.note.say("The download failed.", alarming=True)
            self._failed(outcome.error)
        self.changed.emit(self._value)

    def _show_progress(self, progress: Progress) -> None:
        if self.runner.state is State.RUNNING:
            self.note.say(f"{self._fetching}: {progress.stage}")

    def _show_state(self, _state: State | None = None) -> None:
        if self.runner.state is not State.IDLE:
            running = self.runner.state is State.RUNNING
            self.button.setText("Cancel" if running else "Cancelling…")
            self.button.setEnabled(running)
            self.button.setVisible(True)
            if running:
                self.note.say(f"{self._fetching}: connecting…")
            return
        self.button.setText("Download")
        self.button.setEnabled(True)
        self.button.setVisible(not self.here)
        if self.problem:
            self.note.say(self.problem, alarming=True)
            return
        record = weights.REGISTRY.get(self._value)
        state = "ready" if self.here else "not downloaded yet"
        self.note.say(f"{state}: {record.summary}" if record else state)


def _entry(name: str) -> str:
    """A registered set in the list: its name and its state."""
    state = weights.status(name)
    size = weights.REGISTRY[name].approximate_size
    if state == "not downloaded":
        state_words = "to download" + (f", {size / 1e6:.0f} MB" if size else "")
    else:
        state_words = state
    return f"{name} ({state_words})"


def _fetch(name: str, report: VagueReport, stop: Stop) -> Path:
    meter = _Meter()

    def progress(done: int, total: int | None) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        report(done / total if total else None, f"{done / 1e6:.1f}{of} MB{meter(done)}")

    return weights.fetch(name, progress=progress, stop=stop)


class _Meter:
    """The speed of a download, from how many bytes have come."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def __call__(self, done: int) -> str:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _SPEED_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        took = now - then
        if took < 0.1:
            return ""
        speed = (done - before) / took
        return f" · {speed / 1e6:.1f} MB/s" if speed >= 1e5 else f" · {speed / 1e3:.0f} kB/s"
