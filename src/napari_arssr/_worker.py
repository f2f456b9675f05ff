"""Long work on a thread of its own, seen from the window's.

Nothing crosses from thread to window but by being looked for: the work leaves its progress and,
in the end, its outcome in a :class:`Job`, and a timer of the window looks there. So no signal
can reach what is already gone, an error of any kind is an outcome like others and cannot get
lost, and reports, however many, cost the window nothing.
"""

from __future__ import annotations

import atexit
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from psygnal import Signal
from qtpy.QtCore import QObject, QTimer

from napari_arssr.errors import ArssrError, Cancelled
from napari_arssr.watching import Stop, VagueReport

__all__ = ["Event", "Job", "Outcome", "Progress", "Runner", "State", "after"]

Work = Callable[[VagueReport, Stop], Any]
Done = Callable[["Outcome"], None]

_LOOK_EVERY = 30  # milliseconds


@dataclass(frozen=True)
class Progress:
    """How far the work is: a share from 0 to 1, None where that cannot be said, and its stage."""

    share: float | None = None
    stage: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the work ended: with a value, or an error; cancelled work has :class:`Cancelled`."""

    value: Any = None
    error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the work ended because it was asked to."""
        return isinstance(self.error, Cancelled)


class Job:
    """A piece of work and the thread it runs on.

    Parameters
    ----------
    work : callable
        Takes ``report(share, stage)`` and ``stop()``; when ``stop()`` is True it should raise
        :class:`Cancelled` soon.
    name : str
        Of the thread.
    """

    def __init__(self, work: Work, name: str) -> None:
        self.progress = Progress()
        self.outcome: Outcome | None = None
        self._work: Work | None = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        _running.add(self)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the work to end; it takes as long as the work needs to notice."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, at most ``seconds``; whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        assert self._work is not None
        try:
            value = self._work(self._report, self._stop.is_set)
            # Finished in spite of being asked to stop: whoever asked wants no result.
            outcome = Outcome(error=Cancelled()) if self._stop.is_set() else Outcome(value)
        except BaseException as error:  # every kind: what is not caught here would be lost
            outcome = Outcome(error=_slim(error))
        self._work = None  # and all that it holds
        self.outcome = outcome
        _running.discard(self)

    def _report(self, share: float | None, stage: str) -> None:
        self.progress = Progress(share, stage)


class State(Enum):
    """What a :class:`Runner` is doing."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"


class Event(Enum):
    """What can happen to a :class:`Runner`."""

    START = "start"
    CANCEL = "cancel"
    END = "end"


_AFTER = {
    (State.IDLE, Event.START): State.RUNNING,
    (State.RUNNING, Event.CANCEL): State.CANCELLING,
    (State.RUNNING, Event.END): State.IDLE,
    (State.CANCELLING, Event.END): State.IDLE,
}


def after(state: State, event: Event) -> State | None:
    """The state that follows; None where the event means nothing in this state."""
    return _AFTER.get((state, event))


class Runner:
    """At most one job at a time.

    For the window's thread only, and so are its signals ``state_changed`` and ``progressed``.
    Whoever hears them may let the window handle its events, as napari's progress bars do: clicks
    and closing windows can come in between.

    Parameters
    ----------
    parent : QObject
        With it goes the timer that looks after the job.
    name : str
        Of the threads.
    """

    state_changed = Signal(State)
    progressed = Signal(Progress)

    def __init__(self, parent: QObject, name: str) -> None:
        self._name = name
        self._state = State.IDLE
        self._job: Job | None = None
        self._done: Done | None = None
        self._seen = Progress()
        self._timer = QTimer(parent)
        self._timer.setInterval(_LOOK_EVERY)
        self._timer.timeout.connect(self._look)

    @property
    def state(self) -> State:
        """What is going on."""
        return self._state

    def start(self, work: Work, done: Done) -> bool:
        """Begin, unless something runs already; whether it began.

        Parameters
        ----------
        work : callable
            See :class:`Job`.
        done : callable
            Told the outcome once all is idle again, and another job may be started.
        """
        if after(self._state, Event.START) is None:
            return False
        job = self._job = Job(work, self._name)
        self._done = done
        self._seen = Progress()
        job.start()
        self._happened(Event.START)
        if self._job is job:
            self._timer.start()
        return True

    def cancel(self) -> None:
        """Ask what runs to end."""
        if self._job is not None:
            self._job.cancel()
            self._happened(Event.CANCEL)

    def abandon(self) -> Job | None:
        """Ask what runs to end, and never look at it again; gives what was running."""
        job, self._job = self._job, None
        self._done = None
        self._state = State.IDLE
        if job is not None:
            job.cancel()
        return job

    def _look(self) -> None:
        job = self._job
        self._timer.stop()  # not again before this is over
        if job is None:
            return
        outcome = job.outcome  # before the progress, so that none is left unseen
        # Whatever a listener does, the job is looked at again, and its outcome gets home.
        try:
            if job.progress != self._seen:
                self._seen = job.progress
                self.progressed.emit(self._seen)
        finally:
            if self._job is job:  # else it was abandoned in between
                self._go_on(job, outcome)

    def _go_on(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is None:
            self._timer.start()
            return
        job.wait()
        done, self._done, self._job = self._done, None, None
        try:
            self._happened(Event.END)
        finally:
            if done is not None:
                done(outcome)

    def _happened(self, event: Event) -> None:
        state = after(self._state, event)
        if state is not None:
            self._state = state
            self.state_changed.emit(state)


def _slim(error: BaseException) -> BaseException:
    """An error without the frames it came through, whose variables hold arrays of any size."""
    chain, seen = [error], set()
    while chain:
        one = chain.pop()
        if id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += [more for more in (one.__cause__, one.__context__) if more is not None]
    if isinstance(error, ArssrError):  # says all there is to say
        error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


_running: set[Job] = set()


@atexit.register
def _end_all() -> None:
    """Let no thread compute on while the interpreter is taken down around it."""
    for job in list(_running):
        job.cancel()
    for job in list(_running):
        job.wait()
