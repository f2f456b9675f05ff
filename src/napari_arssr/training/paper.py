"""The paper's protocol (Wu et al., IEEE JBHI 27(2), 2023, section IV).

A few fixed patches are cut from each volume. Each epoch takes every patch once: its centre,
(10k)³ voxels at a scale k between 2 and 4 with one decimal, is brought to 10³ by cubic
interpolation, and the network's task is the intensity of 8000 of its voxels. For a baseline k is
its one scale and all voxels are its task.

What differs from the published script: the crop is in the centre, as the paper has it; LR and
HR lie on aligned grids; the last batch of an epoch may be smaller than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from napari_arssr.degradation import ScannerModel
from napari_arssr.interpolation import apply_separable, spline_matrix
from napari_arssr.models.decoders import absolute_position
from napari_arssr.training.batches import GridBatch, PointBatch
from napari_arssr.training.config import TrainingConfig
from napari_arssr.training.pairs import FOREGROUND, Stream, generator_for
from napari_arssr.training.volumes import TrainingVolume, Voxels
from napari_arssr.volume import rescaled

__all__ = ["PaperPairs", "Patch", "fixed_patches", "patch_starts"]

_TRIES = 20


@dataclass(frozen=True)
class Patch:
    """A cube of a volume: its first voxel, (z, y, x)."""

    volume: TrainingVolume
    start: tuple[int, int, int]

    def read(self, size: int) -> npt.NDArray[np.float32]:
        """The voxels, (size, size, size), in network units."""
        part = tuple(slice(a, a + size) for a in self.start)
        return np.asarray(self.volume.data[part], dtype=np.float32)


def patch_starts(
    data: Voxels, content: str, *, size: int, count: int, seed: int
) -> list[tuple[int, int, int]]:
    """First voxels, (z, y, x), of random cubes of a volume.

    They depend on the volume's content and the seed alone, not on its name or on the volumes
    beside it. A cube of mostly background is drawn again, some times over. A volume of the
    cubes' own size is a patch already.

    Parameters
    ----------
    data : (z, y, x) array in network units
    content : str
        Digest of its voxels, hexadecimal.
    size, count, seed : int
    """
    if tuple(data.shape) == (size,) * 3:
        return [(0, 0, 0)]
    generator = generator_for(seed, Stream.PATCHES, int(content[:16], 16))
    starts = []
    for _ in range(count):
        for _ in range(_TRIES):
            z, y, x = (int(generator.integers(n - size + 1)) for n in data.shape)
            patch = data[z : z + size, y : y + size, x : x + size]
            if (patch[::3, ::3, ::3] > 0).mean() >= FOREGROUND:
                break
        starts.append((z, y, x))
    return starts


def fixed_patches(volumes: Sequence[TrainingVolume], config: TrainingConfig) -> list[Patch]:
    """The patches of a set, volume by volume."""
    return [
        Patch(volume, start)
        for volume in volumes
        for start in patch_starts(
            volume.data, volume.content, size=config.cut, count=config.patches, seed=config.seed
        )
    ]


class PaperPairs:
    """Batches of pairs, by number.

    Parameters
    ----------
    volumes : sequence of TrainingVolume
    config : TrainingConfig
    rank, ranks : int
        Of this process, and how many train together: they share an epoch's patches.
    watch : bool
        Whether the pairs are for validation: in order, always at the same scales, with cubic
        interpolation beside them.
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        config: TrainingConfig,
        *,
        rank: int = 0,
        ranks: int = 1,
        watch: bool = False,
    ) -> None:
        self.config = config
        self.patches = fixed_patches(volumes, config)
        self.rank, self.ranks = rank, ranks
        self.watch = watch
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def steps_an_epoch(self) -> int:
        """Steps in which every patch is taken once."""
        pairs = self.config.batch * self.ranks * self.config.accumulate
        return -(-len(self.patches) // pairs)

    @property
    def batches(self) -> int:
        """Batches in which every patch is taken once, by one process."""
        return -(-len(self.patches) // self.config.batch)

    def batch(self, number: int) -> PointBatch | GridBatch:
        """The batch of a number: always the same one."""
        config, count = self.config, len(self.patches)
        if self.watch:
            first = number * config.batch
            chosen = list(range(first, min(first + config.batch, count)))
            pass_number = 0
        else:
            an_epoch = self.steps_an_epoch * config.accumulate
            pass_number, within = divmod(number, an_epoch)
            first = (within * self.ranks + self.rank) * config.batch
            # Behind the last patch, where several processes share an epoch, it begins anew.
            places = range(first, min(first + config.batch, max(count, first + 1)))
            order = self._order(pass_number)
            chosen = [int(order[place % count]) for place in places]
        stream = Stream.WATCH if self.watch else Stream.TRAIN
        return _stacked(
            [
                self._pair(self.patches[i], generator_for(config.seed, stream, pass_number, i))
                for i in chosen
            ]
        )

    def _shuffled(self, pass_number: int) -> npt.NDArray[np.int64]:
        generator = generator_for(self.config.seed, Stream.ORDER, pass_number)
        return generator.permutation(len(self.patches))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _pair(self, patch: Patch, generator: np.random.Generator) -> PointBatch | GridBatch:
        config = self.config
        size = config.patch
        scale = round(generator.uniform(config.smallest_scale, config.largest_scale), 1)
        sides = tuple(round(size * k) for k in config.scale or (scale,) * 3)
        margins = [(config.cut - side) // 2 for side in sides]
        centre = tuple(slice(a, a + side) for a, side in zip(margins, sides, strict=True))
        high = patch.read(config.cut)[centre]
        low = apply_separable([ScannerModel("cubic").matrix(side, size) for side in sides], high)
        cubic = np.zeros(0, dtype=np.float32)
        if self.watch or config.baseline:
            along = [rescaled(np.arange(side), size / side) for side in sides]
            cubic = apply_separable([spline_matrix(c, size) for c in along], low)
        names = (patch.volume.name,)
        if config.baseline:
            return GridBatch(torch.from_numpy(cubic), torch.from_numpy(high.copy()), names)
        count = int(np.prod(sides))
        picks = generator.choice(count, config.samples, replace=False, shuffle=False)
        index = np.stack(np.unravel_index(picks, sides), axis=-1)
        points = absolute_position(index, np.array(sides))
        base = cubic.reshape(-1)[picks] if self.watch else cubic
        return PointBatch(
            torch.from_numpy(low),
            torch.from_numpy(points.astype(np.float32)),
            torch.from_numpy(base),
            torch.from_numpy(high.reshape(-1)[picks]),
            names,
        )


def _stacked(pairs: list[PointBatch | GridBatch]) -> PointBatch | GridBatch:
    *columns, names = zip(*pairs, strict=True)
    values: list[Any] = [torch.stack(column) for column in columns]
    values.append(tuple(name for one in names for name in one))
    return type(pairs[0])(*values)
