"""Long work beside the window: nothing of it can get lost, twice or stuck."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QObject, QThread

from napari_arssr._worker import Event, Job, Outcome, Progress, Runner, State, after
from napari_arssr.errors import Cancelled, FileError
from napari_arssr.watching import Stop, VagueReport

PATIENCE = 20_000


@pytest.fixture
def parent(qapp: object) -> Iterator[QObject]:
    owner = QObject()
    yield owner
    owner.deleteLater()


class Log:
    """What a runner said, and on which thread."""

    def __init__(self, runner: Runner) -> None:
        self.states: list[State] = []
        self.progress: list[Progress] = []
        self.outcomes: list[Outcome] = []
        self.threads: set[int] = set()
        runner.state_changed.connect(self._state)
        runner.progressed.connect(self._progress)

    def _state(self, state: State) -> None:
        self.states.append(state)

    def _progress(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.threads.add(threading.get_ident())

    def end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.threads.add(threading.get_ident())


def until_stopped(report: VagueReport, stop: Stop) -> None:
    report(None, "waiting")
    while not stop():
        time.sleep(0.002)
    raise Cancelled


def test_only_four_things_can_happen() -> None:
    allowed = {
        (State.IDLE, Event.START): State.RUNNING,
        (State.RUNNING, Event.CANCEL): State.CANCELLING,
        (State.RUNNING, Event.END): State.IDLE,
        (State.CANCELLING, Event.END): State.IDLE,
    }
    for state, event in product(State, Event):
        assert after(state, event) == allowed.get((state, event))


def test_work_runs_on_another_thread_and_is_heard_of_on_this_one(
    qtbot: QtBot, parent: QObject
) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    where: list[int] = []

    def work(report: VagueReport, _stop: Stop) -> str:
        where.append(threading.get_ident())
        report(0.5, "half")
        return "done"

    assert runner.start(work, log.end)
    assert runner.state is State.RUNNING
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    assert log.outcomes == [Outcome("done")]
    assert log.progress[-1] == Progress(0.5, "half")
    assert log.states == [State.RUNNING, State.IDLE]
    assert log.threads == {threading.get_ident()}
    assert where != [threading.get_ident()]


def test_a_second_start_is_refused_until_the_first_is_over(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    go, ran = threading.Event(), []

    def work(name: str) -> None:
        go.wait(20)
        ran.append(name)

    assert runner.start(lambda _report, _stop: work("first"), log.end)
    assert not runner.start(lambda _report, _stop: work("second"), log.end)
    runner.cancel()
    assert runner.state is State.CANCELLING
    assert not runner.start(lambda _report, _stop: work("third"), log.end)
    go.set()
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    assert runner.start(lambda _report, _stop: work("fourth"), log.end)
    qtbot.waitUntil(lambda: len(log.outcomes) == 2, timeout=PATIENCE)
    assert ran == ["first", "fourth"]
    # Asked to stop too late, it is cancelled all the same: nobody waits for its result.
    assert log.outcomes[0].cancelled
    assert not log.outcomes[1].cancelled


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        MemoryError(),
        FileError("a.nii is broken."),
        SystemExit(1),
        KeyboardInterrupt(),
        StopIteration(),
        GeneratorExit(),
        Warning("w"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_every_kind_arrive(qtbot: QtBot, parent: QObject, error: BaseException) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)

    def work(_report: VagueReport, _stop: Stop) -> None:
        raise error

    runner.start(work, log.end)
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    assert log.outcomes[0].error is error
    assert not log.outcomes[0].cancelled
    assert runner.state is State.IDLE


def test_cancelled_work_ends_and_can_be_followed_by_other(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    runner.start(until_stopped, log.end)
    qtbot.waitUntil(lambda: bool(log.progress), timeout=PATIENCE)
    runner.cancel()
    runner.cancel()  # impatience changes nothing
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    assert log.outcomes[0].cancelled
    assert log.states == [State.RUNNING, State.CANCELLING, State.IDLE]
    runner.start(lambda _report, _stop: 7, log.end)
    qtbot.waitUntil(lambda: len(log.outcomes) == 2, timeout=PATIENCE)
    assert log.outcomes[1].value == 7


def test_cancel_without_work_means_nothing(parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    runner.cancel()
    assert runner.state is State.IDLE
    assert log.states == []


def test_abandoned_work_ends_unheard(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    runner.start(until_stopped, log.end)
    job = runner.abandon()
    assert job is not None
    assert job.wait(20)
    qtbot.wait(100)
    assert log.outcomes == []
    assert runner.state is State.IDLE
    assert runner.abandon() is None


def test_many_reports_cost_the_window_little(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)

    def work(report: VagueReport, _stop: Stop) -> None:
        for number in range(20_000):
            report(number / 20_000, "counting")
        report(1.0, "counted")

    runner.start(work, log.end)
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    assert len(log.progress) < 2000
    assert log.progress[-1] == Progress(1.0, "counted")


def test_events_handled_in_between_do_not_end_it_twice(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)

    def let_events_in(_progress: Progress) -> None:
        qtbot.wait(120)  # as napari's activity dock does at every update

    runner.progressed.connect(let_events_in)
    runner.start(lambda report, _stop: report(0.5, "half"), log.end)
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    qtbot.wait(200)
    assert len(log.outcomes) == 1


@pytest.mark.parametrize("moment", ["progressed", "state_changed"])
def test_a_listener_that_fails_costs_nobody_the_outcome(
    qtbot: QtBot, parent: QObject, moment: str
) -> None:
    runner = Runner(parent, "test")
    outcomes: list[Outcome] = []

    def fail(value: object) -> None:
        if value is not State.RUNNING:
            raise OSError("there is nothing to write to")

    def work(report: VagueReport, _stop: Stop) -> int:
        report(0.5, "half")
        time.sleep(0.3)  # seen on its way
        return 7

    getattr(runner, moment).connect(fail)
    with qtbot.captureExceptions() as raised:
        runner.start(work, outcomes.append)
        qtbot.waitUntil(lambda: bool(outcomes), timeout=PATIENCE)
    assert outcomes[0].value == 7
    assert raised
    assert runner.state is State.IDLE


def test_what_is_told_of_the_end_may_begin_anew(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    values: list[int] = []

    def done(outcome: Outcome) -> None:
        assert runner.state is State.IDLE
        values.append(outcome.value)
        if len(values) < 3:
            assert runner.start(lambda _report, _stop: len(values), done)

    runner.start(lambda _report, _stop: 0, done)
    qtbot.waitUntil(lambda: len(values) == 3, timeout=PATIENCE)
    assert values == [0, 1, 2]
    assert runner.state is State.IDLE


def test_events_handled_at_the_start_do_not_end_it_before_it_is_told(
    qtbot: QtBot, parent: QObject
) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    runner.state_changed.connect(lambda _state: qtbot.wait(120))
    assert runner.start(lambda _report, _stop: 1, log.end)
    assert log.states == [State.RUNNING]
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    assert log.states == [State.RUNNING, State.IDLE]


def test_abandoning_from_within_a_report_is_heeded(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    runner.progressed.connect(lambda _progress: runner.abandon())
    runner.start(lambda report, _stop: report(0.5, "half"), log.end)
    qtbot.waitUntil(lambda: bool(log.progress), timeout=PATIENCE)
    qtbot.wait(200)
    assert log.outcomes == []


def test_an_error_does_not_hold_the_arrays_it_passed(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    held: list[weakref.ref[object]] = []

    def inner(array: object) -> None:
        raise FileError("first") from ValueError(str(type(array)))

    def work(_report: VagueReport, _stop: Stop) -> None:
        array = np.zeros(1000)
        held.append(weakref.ref(array))
        try:
            inner(array)
        except FileError:
            raise RuntimeError("second") from None

    runner.start(work, log.end)
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    gc.collect()
    assert isinstance(log.outcomes[0].error, RuntimeError)
    assert held[0]() is None


def test_the_work_itself_is_let_go_of(qtbot: QtBot, parent: QObject) -> None:
    runner = Runner(parent, "test")
    log = Log(runner)
    array = np.zeros(1000)
    held = weakref.ref(array)
    runner.start(lambda _report, _stop, array=array: float(array.sum()), log.end)
    del array
    qtbot.waitUntil(lambda: bool(log.outcomes), timeout=PATIENCE)
    gc.collect()
    assert held() is None


def test_the_parent_going_takes_the_timer_along(qtbot: QtBot, qapp: object) -> None:
    owner = QObject()
    runner = Runner(owner, "test")
    log = Log(runner)
    runner.start(until_stopped, log.end)
    assert owner.thread() is QThread.currentThread() or owner.thread() == QThread.currentThread()
    owner.deleteLater()
    del owner
    qtbot.wait(100)
    job = runner.abandon()
    assert job is not None
    assert job.wait(20)
    assert log.outcomes == []


def test_a_job_needs_no_window() -> None:
    job = Job(lambda report, _stop: report(1.0, "all"), "test")
    job.start()
    assert job.wait(20)
    assert job.outcome == Outcome(None)
    assert job.progress == Progress(1.0, "all")


def test_work_ends_with_the_process() -> None:
    code = """
        import time
        from napari_arssr._worker import Job
        from napari_arssr.errors import Cancelled

        def work(report, stop):
            while not stop():
                time.sleep(0.01)
            time.sleep(0.2)
            print("cleaned up", flush=True)
            raise Cancelled

        Job(work, "test").start()
        print("leaving", flush=True)
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["leaving", "cleaned up"]
    assert done.stderr == ""
    assert time.monotonic() - started < 60
