"""What is seen of a fit on its way: left by the thread, looked for by the window's."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import NamedTuple

from napari_arssr._layers import LayerData
from napari_arssr._result import Looks, result_layer
from napari_arssr.volume import Volume

__all__ = ["Measured", "Sight"]

_BETWEEN = 0.5  # seconds between two pictures
_MOST_VOXELS = 128**3  # of a picture; of larger volumes every n-th voxel is shown


class Measured(NamedTuple):
    """How far the volume was from the data, seconds after the beginning, in which stage."""

    seconds: float
    stage: str
    error: float


class Sight:
    """The newest picture of a volume that is being fitted, and all that was measured of it.

    The thread calls :meth:`see` and :meth:`measure`, the window's :meth:`picture` and
    :meth:`numbers`. A picture that nobody took in time gives way to the next.

    Parameters
    ----------
    title : str
        Of the picture.
    looks : Looks
        Of the layer that the picture is to look like.
    world : dict
        Metadata that say how that layer's world is called, see :mod:`napari_arssr._layers`.
    """

    def __init__(self, title: str, looks: Looks, world: dict[str, object]) -> None:
        self._title, self._looks, self._world = title, looks, world
        self._started = time.monotonic()
        self._seen = -_BETWEEN
        self._pictures: deque[LayerData] = deque(maxlen=1)
        self._numbers: deque[Measured] = deque()

    def see(self, volume: Volume) -> None:
        """Leave a picture, unless there was one just now."""
        now = time.monotonic()
        if now - self._seen < _BETWEEN:
            return
        step = 1
        while volume.grid.thinned((step, step, step)).size > _MOST_VOXELS:
            step += 1
        coarse = replace(volume.thinned((step, step, step)), metadata=self._world)
        self._pictures.append(result_layer(coarse, self._title, self._looks))
        self._seen = now

    def measure(self, stage: str, error: float) -> None:
        """Leave a number."""
        self._numbers.append(Measured(time.monotonic() - self._started, stage, error))

    def picture(self) -> LayerData | None:
        """The newest picture, once."""
        return self._pictures.popleft() if self._pictures else None

    def numbers(self) -> list[Measured]:
        """What was measured since it was asked for last."""
        return [self._numbers.popleft() for _ in range(len(self._numbers))]
