"""The Run button, and how far the work is: here and in napari's activity dock."""

from __future__ import annotations

import time

from napari.utils import progress as activity
from psygnal import Signal
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_arssr._worker import Progress, Runner, State
from napari_arssr.timing import clock_words, in_words

__all__ = ["RunRow"]

_STEPS = 1000
# Seconds between two looks at the time that is left; more often it would flicker.
_TELL_EVERY = 0.5
# Before that much is done, what is left is a guess.
_FIRST_GUESS = 0.02
_STAGES = {
    "encode": "encoding",
    "decode": "decoding",
    "copy": "copying",
    "register": "registering",
    "compare": "comparing",
    "find poses": "finding poses",
    "choose the prior": "choosing the prior",
    "reconstruct": "reconstructing",
    "ask the network": "asking the network",
    "fit the network": "fitting the network",
    "interpolate": "interpolating",
    "map the uncertainty": "mapping the uncertainty",
}


class RunRow(QWidget):
    """A button that is Run, then Cancel, then Cancelling…, and a bar.

    Parameters
    ----------
    runner : Runner
        Whose work is shown.
    """

    run_clicked = Signal()

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner
        self._ready = False
        self._activity: activity | None = None
        self._title = ""
        self._estimate: float | None = None
        self._measured: tuple[float, float] | None = None
        self._told = -_TELL_EVERY
        self._left = ""
        self.button = QPushButton("Run")
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.bar.setTextVisible(False)
        self.text = QLabel()
        self.text.setVisible(False)
        self.button.clicked.connect(self._on_click)
        runner.state_changed.connect(self._on_state)
        runner.progressed.connect(self._on_progress)
        # The second click of a double click is not meant for Cancel.
        self._calm = QTimer(self)
        self._calm.setSingleShot(True)
        self._calm.timeout.connect(self._show_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.button)
        layout.addWidget(self.bar)
        layout.addWidget(self.text)

    def set_ready(self, ready: bool, why_not: str) -> None:
        """Whether there is something to run, and if not, why."""
        self._ready = ready
        self.button.setToolTip(why_not)
        self._show_button()

    def announce(self, title: str, estimate: float | None) -> None:
        """What is about to start, and how many seconds it should take, if that is known."""
        self._title, self._estimate = title, estimate

    def close_down(self) -> None:
        """Take the bar out of napari's activity dock."""
        if self._activity is not None:
            self._activity.close()
            self._activity = None

    def _on_click(self) -> None:
        if self._runner.state is State.IDLE:
            self.run_clicked.emit()
        else:
            self._runner.cancel()

    def _on_state(self, state: State) -> None:
        if state is State.RUNNING:
            self._calm.start(QApplication.doubleClickInterval())
            self._measured, self._told, self._left = None, -_TELL_EVERY, ""
            self._activity = activity(total=_STEPS, desc=self._title)
            self.bar.setVisible(True)
            self.text.setVisible(True)
            self._on_progress(Progress())
        elif state is State.IDLE:
            self.close_down()
            self.bar.setVisible(False)
            self.text.setVisible(False)
        self._show_button()

    def _show_button(self) -> None:
        state = self._runner.state
        if state is State.IDLE:
            self.button.setText("Run")
            self.button.setEnabled(self._ready)
        elif state is State.RUNNING:
            self.button.setText("Cancel")
            self.button.setEnabled(not self._calm.isActive())
        else:
            self.button.setText("Cancelling…")
            self.button.setEnabled(False)

    def _on_progress(self, progress: Progress) -> None:
        share, stage = progress.share, _STAGES.get(progress.stage, progress.stage)
        if share is None:
            # A stage whose end is not in sight; how long all will take may be known even so.
            self._measured = None
            about = "" if self._estimate is None else f" · about {in_words(self._estimate)}"
            self.bar.setRange(0, 0)
            self._say(f"{stage or 'starting'}…{about}")
            return
        self.bar.setRange(0, _STEPS)
        self.bar.setValue(round(share * _STEPS))
        self._tell_time(share)
        self._say(f"{share:.0%} · {stage}{self._left}")
        if self._activity is not None:
            self._activity.update(round(share * _STEPS) - self._activity.n)

    def _tell_time(self, share: float) -> None:
        now = time.monotonic()
        if self._measured is None:
            self._measured = now, share
        started, before = self._measured
        if share - before > _FIRST_GUESS and now - self._told >= _TELL_EVERY:
            self._told = now
            left = (now - started) * (1 - share) / (share - before)
            self._left = f" · {clock_words(left)} left"

    def _say(self, text: str) -> None:
        self.text.setText(text)
        if self._activity is not None and self.bar.maximum() == 0:
            self._activity.set_description(f"{self._title}: {text}")
