"""The live view's other thread: takes the newest request, answers coarse first, then fine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import Cancelled
from napari_arssr.slice_view import Patch, SliceView
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.watching import Stop, VagueReport

__all__ = ["Answer", "Desk", "Lend", "Request", "Sampled", "serve"]

Plane = npt.NDArray[np.float32]


class Sampled(Protocol):
    """What a live view needs of a field."""

    def sample(self, grid: Grid, *, progress: Callable[[float, str], None], stop: Stop) -> Volume:
        """The field at every voxel centre of a grid."""
        ...


Lend = Callable[[Stop], AbstractContextManager[Sampled | None]]

_ASK_AGAIN = 0.1  # seconds, while a run has the field
_LISTEN = 0.2  # seconds until a worker with nothing to do looks whether it is to end

# Features are computed in tiles of 16 voxels: so far, on the average, they reach beyond what
# they were asked for.
_TILE_MARGIN = 8


@dataclass(frozen=True, eq=False)
class Request:
    """One look of the camera, to be answered in stages."""

    number: int
    view: SliceView
    affine: npt.NDArray[np.float64]
    seen: Box
    stages: tuple[Patch, ...]
    lend: Lend
    asked: float

    def shares_features(self, other: Request) -> bool:
        """Whether what is encoded for one of the two is most of what the other needs."""
        shape = self.view.grid.shape
        if self.lend is not other.lend or shape != other.view.grid.shape:
            return False
        mine, its = (one.seen.grown(_TILE_MARGIN, shape) for one in (self, other))
        common = mine.common(its)
        return common is not None and 2 * common.size >= max(mine.size, its.size)


@dataclass(frozen=True, eq=False)
class Answer:
    """One stage of a request, and the seconds since the camera moved."""

    request: Request
    stage: int
    plane: Plane
    seconds: float

    @property
    def rank(self) -> tuple[int, int]:
        """What newer and finer answers have more of."""
        return self.request.number, self.stage

    @property
    def last(self) -> bool:
        """Whether nothing finer will come."""
        return self.stage == len(self.request.stages) - 1


class Desk:
    """Where the window leaves its newest request, and the worker its answers."""

    def __init__(self) -> None:
        self.newest: Request | None = None
        self.answers: deque[Answer] = deque()
        self.doing = ""
        self.dropped = 0
        self._taken: Request | None = None
        self._changed = threading.Condition()

    def put(self, request: Request | None) -> None:
        """A request that replaces the one before; None where there is nothing to ask for."""
        with self._changed:
            if self.newest is not None and self.newest is not self._taken:
                self.dropped += 1
            self.newest = request
            self._changed.notify()

    def take(self) -> Request | None:
        """The newest request; None if none comes for a while."""
        with self._changed:
            self._changed.wait_for(lambda: self.newest is not self._taken, _LISTEN)
            if self.newest is self._taken:
                return None
            self._taken = self.newest
            return self.newest

    def put_back(self, request: Request) -> None:
        """Let a request be taken again, unless there is a newer one; after a pause."""
        with self._changed:
            self._changed.wait_for(lambda: self.newest is not request, _ASK_AGAIN)
            if self.newest is request:
                self._taken = None

    def wake(self) -> None:
        """Let a worker that waits look whether it is to end."""
        with self._changed:
            self._taken, self.newest = None, None
            self._changed.notify()

    def drop(self) -> None:
        """Count a request that was given up."""
        with self._changed:
            self.dropped += 1


def serve(desk: Desk, _report: VagueReport, stop: Stop) -> None:
    """The worker: answer the newest request, again and again."""
    while not stop():
        request = desk.take()
        if request is None:
            continue
        try:
            answered = _answer(request, desk, stop)
        except Cancelled:
            desk.drop()
            continue
        finally:
            desk.doing = ""
        if not answered:
            desk.doing = "waiting for the run"
            desk.put_back(request)


def _answer(request: Request, desk: Desk, stop: Stop) -> bool:
    """Sample stage after stage; False if the field is not to be had now.

    Raises
    ------
    Cancelled
        If there is a newer request, or the live view has ended.
    """

    def unwanted() -> bool:
        # What is read and encoded now serves every request for the same field, later ones too.
        newest = desk.newest
        return stop() or (newest is not None and newest.lend is not request.lend)

    desk.doing = "getting ready"
    with request.lend(unwanted) as field:
        if field is None:
            return False
        for stage in range(len(request.stages)):
            plane = _sample(request, stage, field, desk, stop)
            seconds = time.perf_counter() - request.asked
            desk.answers.append(Answer(request, stage, plane, seconds))
    return True


def _sample(request: Request, stage: int, field: Sampled, desk: Desk, stop: Stop) -> Plane:
    """One stage of a request, as a plane (rows, columns) in the grid's axis order."""
    coarse = stage < len(request.stages) - 1
    encoding = True  # for all that is known before the first report

    def report(_share: float, what: str) -> None:
        nonlocal encoding
        encoding = what == "encode"
        desk.doing = "encoding what is in view" if encoding else ""

    def stale() -> bool:
        newest = desk.newest
        if stop() or newest is None:
            return True
        if newest is request:
            return False
        # What is encoded serves the next request too, unless that is elsewhere. And while the
        # camera keeps moving, coarse pictures are all that there can be.
        return not ((encoding or coarse) and request.shares_features(newest))

    data = field.sample(request.stages[stage].grid, progress=report, stop=stale).data
    return data.squeeze(request.view.across)
