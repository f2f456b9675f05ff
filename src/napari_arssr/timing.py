"""How long work takes on this machine, learnt from work that was done here.

Encoding takes time by the voxels the encoder passes, decoding by the points it is asked for,
and the rest is small beside them. What was measured is kept in a small file in the cache
folder. It is a convenience: a file that is missing, broken or cannot be written means no more
than that nothing is known yet.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_arssr.files import whole_file
from napari_arssr.watching import Report

__all__ = ["Measured", "Speeds", "Stopwatch", "Work", "clock_words", "in_words", "key_of"]


_VERSION = 1
# What earlier runs count beside a new one. Sums are kept rather than rates, so that a large
# run, which tells more, also weighs more.
_DECAY = 0.5
# Shorter than this a measurement is mostly overhead.
_SHORTEST = 0.02
_MOST_KEYS = 200
_LARGEST = 1e18
_ENDLESS = 3.2e9  # seconds, a century


@dataclass(frozen=True)
class Work:
    """How much there is to do.

    Parameters
    ----------
    encode : int
        Voxels the encoder has to pass, halos included; 0 where features are at hand.
    decode : int
        Points to be decoded.
    """

    encode: int
    decode: int

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Stages and how much of each."""
        return ("encode", self.encode), ("decode", self.decode)


@dataclass(frozen=True)
class Measured:
    """What is known of one network on one device.

    Parameters
    ----------
    halo : int
        Voxels around a box that the encoder has to pass with it.
    stages : dict
        Stage → (voxels or points that were done, seconds they took).
    """

    halo: int = 0
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, work: Work) -> float | None:
        """How long ``work`` will take about; None where a stage of it was never measured."""
        total = 0.0
        for stage, amount in work.parts():
            if amount > 0:
                if stage not in self.stages:
                    return None
                done, seconds = self.stages[stage]
                total += amount * seconds / done
        return total

    def after(self, work: Work, seconds: Mapping[str, float], halo: int) -> Measured:
        """The same, having learnt from finished work, whose stages took ``seconds``."""
        stages = dict(self.stages)
        for stage, amount in work.parts():
            took = seconds.get(stage, 0.0)
            if amount > 0 and took >= _SHORTEST:
                done, before = stages.get(stage, (0.0, 0.0))
                stages[stage] = (_DECAY * done + amount, _DECAY * before + took)
        return Measured(halo, stages)


class Stopwatch:
    """Seconds spent in each stage of a piece of work, from its reports.

    Parameters
    ----------
    report : callable
        Every report is passed on to it.
    clock : callable
        Gives seconds that only grow.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._clock = clock
        self._last = clock()

    def __call__(self, share: float, stage: str) -> None:
        """Pass a report on; the time since the last one was spent in ``stage``."""
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        self._report(share, stage)


class Speeds:
    """What is known of speeds here, kept in a file.

    Parameters
    ----------
    file : path
        JSON; need not exist.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._file = Path(file)
        self._known: dict[str, Measured] | None = None

    def __getitem__(self, key: str) -> Measured:
        """What is known under a key of :func:`key_of`; nothing, at first."""
        if self._known is None:
            self._known = self._read()
        return self._known.get(key, Measured())

    def learn(self, key: str, work: Work, seconds: Mapping[str, float], halo: int) -> None:
        """Remember how long finished work took, stage by stage."""
        known = self._read() or self._known or {}  # another process may have learnt meanwhile
        measured = known.pop(key, Measured()).after(work, seconds, halo)
        known[key] = measured  # the latest comes last, and the oldest are forgotten
        self._known = dict(list(known.items())[-_MOST_KEYS:])
        self._write(self._known)

    def _read(self) -> dict[str, Measured]:
        try:
            return _checked(json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            return {}

    def _write(self, known: Mapping[str, Measured]) -> None:
        speeds = {key: {"halo": one.halo, **one.stages} for key, one in known.items()}
        text = json.dumps({"version": _VERSION, "speeds": speeds}, indent=1)
        folder = self._file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError:
            pass  # then it is known until this process ends


def key_of(weights: str, device: str, precision: str) -> str:
    """The name under which speeds of a combination are kept."""
    return " | ".join((weights, device, precision))


def in_words(seconds: float) -> str:
    """A length of time as one says it: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 9.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 87.5:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 89.5 * 60:
        return f"{max(2, round(seconds / 60))} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 9.5 else f"{round(hours)} h"


def clock_words(seconds: float) -> str:
    """A length of time as a clock shows it: ``0:21``, ``1:02:33``; from two days on ``2 d 4 h``."""
    if not seconds < _ENDLESS:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _checked(content: Any) -> dict[str, Measured]:
    """What a file holds, as far as it can be believed."""
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    speeds = content.get("speeds")
    known = {}
    for key, entry in speeds.items() if isinstance(speeds, dict) else ():
        if not isinstance(entry, dict):
            continue
        halo: Any = entry.get("halo")
        stages = {
            stage: (float(entry[stage][0]), float(entry[stage][1]))
            for stage, _ in Work(0, 0).parts()
            if _is_measurement(entry.get(stage))
        }
        if stages and _is_number(halo) and halo == int(halo):
            known[key] = Measured(int(halo), stages)
    return known


def _is_measurement(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(_is_number(value) and value > 0 for value in pair)
    )


def _is_number(value: Any) -> bool:
    """A number that can be an amount: neither NaN nor beyond all measure."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and 0 <= value < _LARGEST
