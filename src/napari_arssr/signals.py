"""Ending a run or a fit that somebody or a cluster wants to end, its work saved."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import Any, Self

from napari_arssr.watching import Stop, never

__all__ = ["StopRequest", "requeue", "slurm_job"]

# ``timeout`` and others send a signal twice, to the process and to its group.
_DEAF_SECONDS = 1.0


class StopRequest:
    """Whether the run shall end: a caller says so, or a signal came.

    The first signal is noted, so that the run can save and end after the step it is in. A
    second one, a moment later, ends the process and those it started at once.

    Parameters
    ----------
    stop : callable
        Asked after every step.
    """

    def __init__(self, stop: Stop = never) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}
        self._came = 0.0
        self.signal: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        """Whether the run shall end."""
        return self._stop() or self.signal is not None

    @property
    def reason(self) -> str:
        """What asked for it, in a word or two."""
        return self.signal.name if self.signal is not None else "a caller"

    def __enter__(self) -> Self:
        """Remember who has the signals now."""
        if threading.current_thread() is threading.main_thread():
            names = ["SIGINT", "SIGTERM", "SIGHUP", *(["SIGUSR1"] if slurm_job() else [])]
            for name in names:
                number = getattr(signal, name, None)  # Windows knows two of them
                # One that is ignored, as in a shell's background job or under nohup, stays so.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.getsignal(number)
        return self

    def listen(self) -> None:
        """Take SIGINT, SIGTERM and SIGHUP over, and in a SLURM job its SIGUSR1 too."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._came = signal.Signals(number), now
        elif now - self._came > _DEAF_SECONDS:
            self._end_at_once(number)

    @staticmethod
    def _end_at_once(number: int) -> None:
        import psutil

        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        os.write(2, b"\nnapari-arssr: Ended at once; what was saved last is whole.\n")
        os._exit(128 + number)


def slurm_job() -> str:
    """The SLURM job this process is in, as ``scontrol`` takes it; empty where there is none."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else ""


def requeue() -> bool:
    """Ask SLURM to start this job again later, as it does before a time limit on request."""
    program = shutil.which("scontrol")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "requeue", slurm_job()], check=False)
    except OSError:
        return False
    return done.returncode == 0
