"""What commands share about a terminal: exit statuses, and a line of progress."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

from napari_arssr.timing import clock_words

__all__ = ["FAILED", "INTERRUPTED", "WRONG_USE", "ProgressLine", "show", "warn"]

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
"""Exit statuses."""


class ProgressLine:
    """Progress with time left on one line of a terminal; every tenth on a line elsewhere."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name = name
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._shown = 0.0
        self._share = 0.0

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    def __enter__(self) -> Self:
        if self._terminal and not self._quiet:
            show(f"{self._name}  …")
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and not self._quiet:
            show("\r\x1b[K")

    def bytes_came(self, done: int, total: int | None) -> None:
        """Progress of a download."""
        self(done / total if total else 0.0, f"{done / 1e6:.1f} MB")

    def __call__(self, share: float, stage: str) -> None:
        """Show the share that is done, 0 to 1, and what is being done."""
        now = time.monotonic()
        if self._quiet or (self._terminal and now - self._shown < 0.1):
            return
        if not self._terminal and int(share * 10) <= int(self._share * 10):
            return
        self._shown, self._share = now, share
        text = f"{self._name}  {share:4.0%}  {stage}"
        if share > 0:
            text += f"  {clock_words((now - self._started) * (1 / share - 1))} left"
        if self._terminal:
            show(f"\r\x1b[K{text}")
        else:
            show(f"{text}\n")


def show(text: str, stream: TextIO | None = None) -> None:
    """Print on the terminal, standard error by default, for as long as it is there."""
    stream = stream or sys.stderr
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:  # a terminal that was closed ends no work that can still be saved
        # What is left of the text would be tried again, and fail again, at the end.
        with suppress(OSError, AttributeError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def warn(text: str) -> None:
    """Say on the terminal what does not end the work."""
    show(f"napari-arssr: {text}\n")
