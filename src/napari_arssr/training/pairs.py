"""The scanner protocol: pairs drawn fresh at every step.

An HR patch is cut, permuted, flipped and recoloured; the scanner model makes its LR patch;
the network's task is the HR intensity on a random lattice of HR voxels (some rows of each
axis), so that a pair costs the same at every scale and decodes as matrix products. A baseline's
task is every HR voxel at its one scale.

Every pair has a generator of its own, made from the run's seed and the pair's number. So a
batch is the same whichever worker draws it, and a run that goes on draws what it would have
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from napari_arssr.choices import ScannerKind
from napari_arssr.degradation import ScannerModel
from napari_arssr.interpolation import apply_separable, linear_weights, spline_matrix
from napari_arssr.models import ModelConfig, build
from napari_arssr.models.decoders import PublishedDecoder, ResidualDecoder
from napari_arssr.training.batches import GridBatch, LatticeBatch
from napari_arssr.training.config import TrainingConfig
from napari_arssr.training.volumes import TrainingVolume, Voxels
from napari_arssr.volume import rescaled

__all__ = ["FOREGROUND", "ScannerPairs", "Stream", "decoder_of", "generator_for"]

Array = npt.NDArray[np.float32]
Scanners = tuple[ScannerModel, ScannerModel, ScannerModel]

FOREGROUND = 0.3
"""Of a patch's voxels this share at least is not background, where that can be had."""

_TRIES = 20


class Stream:
    """What random numbers are for: no two uses share a generator."""

    TRAIN, WATCH, ORDER, PATCHES, SIZE = range(5)


def generator_for(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    """The generator of one item; its numbers depend on the arguments alone."""
    return np.random.default_rng((seed, stream, *numbers))


def decoder_of(model: ModelConfig) -> PublishedDecoder | ResidualDecoder:
    """A decoder that knows how positions are coded, without memory for weights."""
    with torch.device("meta"):
        return build(model).decoder


@dataclass(frozen=True)
class _Pair:
    low: Array
    coordinates: list[npt.NDArray[np.float64]]
    cell: list[float]
    target: Array
    name: str


class ScannerPairs:
    """Batches of pairs, by number.

    Parameters
    ----------
    volumes : sequence of TrainingVolume
    config : TrainingConfig
    rank : int
        Of this process among those that train together: each draws its own pairs.
    stream : int
        One of :class:`Stream`.
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        config: TrainingConfig,
        *,
        rank: int = 0,
        stream: int = Stream.TRAIN,
    ) -> None:
        self.volumes = volumes
        self.config = config
        self.rank = rank
        self.stream = stream
        self._decoder = decoder_of(config.model)

    def batch(self, number: int) -> LatticeBatch | GridBatch:
        """The batch of a number: always the same one."""
        config, decoder = self.config, self._decoder
        smallest, largest = config.patch_sizes
        # Not by rank: devices wait for the one with the most work.
        size = int(
            generator_for(config.seed, Stream.SIZE, self.stream, number).integers(
                smallest, largest + 1
            )
        )
        pairs = [self.pair(number, item, size) for item in range(config.batch)]
        cubic = [
            apply_separable([spline_matrix(c, size) for c in pair.coordinates], pair.low)
            for pair in pairs
        ]
        base = torch.from_numpy(np.stack(cubic))
        target = torch.from_numpy(np.stack([pair.target for pair in pairs]))
        names = tuple(pair.name for pair in pairs)
        if config.baseline:
            return GridBatch(base, target, names)
        weights, positions = [], []
        for axis in range(3):
            along = [(pair.coordinates[axis], pair.cell[axis]) for pair in pairs]
            rows = [linear_weights(c, size, 0, size, decoder.outside) for c, _ in along]
            codes = [decoder.encode_position(torch.from_numpy(c), size, cell) for c, cell in along]
            weights.append(torch.from_numpy(np.stack(rows)))
            positions.append(torch.stack(codes).float())
        gate = [1.0] * len(pairs)
        if isinstance(decoder, ResidualDecoder):
            gate = [decoder.gate(pair.cell) for pair in pairs]
        return LatticeBatch(
            low=torch.from_numpy(np.stack([pair.low for pair in pairs])),
            weights=(weights[0], weights[1], weights[2]),
            positions=(positions[0], positions[1], positions[2]),
            gate=torch.tensor(gate).view(-1, 1, 1, 1),
            base=base,
            target=target,
            names=names,
        )

    def pair(self, number: int, item: int, size: int) -> _Pair:
        """One pair of a batch, ``size`` LR voxels along each axis."""
        draw = _Draw(
            self.config, generator_for(self.config.seed, self.stream, number, self.rank, item)
        )
        volume = self.volumes[int(draw.generator.integers(len(self.volumes)))]
        return draw.pair(volume, size)


@dataclass(frozen=True)
class _Draw:
    """All that is drawn for one pair."""

    config: TrainingConfig
    generator: np.random.Generator

    def pair(self, volume: TrainingVolume, size: int) -> _Pair:
        config, generator, choose = self.config, self.generator, self._chance
        ideal = choose(config.augmentation.ideal)
        scales, thickness = self._scales()
        counts = [round(size * scale) for scale in scales]
        scanners: Scanners = (ScannerModel(),) * 3 if ideal else self._scanners()
        # The point-spread function of the outer LR voxels reaches beyond the patch.
        margins = [
            0 if n == size else int(np.ceil(1.5 * max(scanner.width, 1.0) * n / size))
            for n, scanner in zip(counts, scanners, strict=True)
        ]
        order = self._order(scales)
        sizes = [n + 2 * margin for n, margin in zip(counts, margins, strict=True)]
        high = self._high(volume.data, sizes, order, thickness, ideal)
        matrices, coordinates, picks, cell = [], [], [], []
        for n, margin, scanner in zip(counts, margins, scanners, strict=True):
            ratio = n / size
            centres = margin + rescaled(np.arange(size), ratio)
            identity = n == size
            matrices.append(
                np.eye(n, dtype=np.float32)
                if identity
                else scanner.rows(centres, ratio, n + 2 * margin)
            )
            pick = self._lattice(n)
            picks.append(pick + margin)
            coordinates.append(rescaled(pick, 1 / ratio))
            cell.append(1 / ratio)
        low = apply_separable(matrices, high)
        if not ideal and choose(config.augmentation.noise):
            sigma = generator.uniform(0, config.augmentation.largest_noise)
            noise = generator.standard_normal(low.shape, dtype=np.float32)
            low = low + np.float32(sigma) * noise
        return _Pair(low, coordinates, cell, high[np.ix_(*picks)], volume.name)

    def _lattice(self, n: int) -> npt.NDArray[np.int64]:
        """The rows of an axis that are decoded; all for a baseline, which makes all anyway."""
        if self.config.baseline:
            return np.arange(n)
        points = self.config.lattice
        return np.sort(self.generator.choice(n, points, replace=n < points))

    def _chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def _order(self, scales: list[float]) -> list[int]:
        """Array axis of the file that becomes each axis of the patch."""
        config, generator = self.config, self.generator
        order = [int(axis) for axis in generator.permutation(3)]
        if len(set(config.sharp_axes)) < 3 and self._chance(config.augmentation.sharp):
            sharp = int(generator.choice(config.sharp_axes))
            order.remove(sharp)
            order.insert(int(np.argmax(scales)), sharp)
        return order

    def _scales(self) -> tuple[list[float], list[float]]:
        """Scale of each axis of the patch, and thickness of the HR slices in training voxels."""
        config, augmentation, generator = self.config, self.config.augmentation, self.generator
        if config.baseline:
            return list(config.scale), [1.0, 1.0, 1.0]
        kind = generator.random()
        thick = (augmentation.smallest_thick_scale, augmentation.largest_thick_scale)
        thickness = [1.0, 1.0, 1.0]
        if kind < augmentation.thick_slices:
            scales = [1.0, 1.0, 1.0]
            scales[generator.integers(3)] = generator.uniform(*thick)
            return scales, thickness
        kind -= augmentation.thick_slices
        if kind < augmentation.anisotropic:
            drawn = generator.uniform(1.0, config.largest_scale, 3)
            return [float(k) if k >= config.smallest_scale else 1.0 for k in drawn], thickness
        kind -= augmentation.anisotropic
        scales = [generator.uniform(config.smallest_scale, config.largest_scale)] * 3
        if kind < augmentation.in_plane:
            axis = int(generator.integers(3))
            scales[axis] = 1.0
            thickness[axis] = generator.uniform(2.0, max(2.0, augmentation.largest_thick_scale))
        return scales, thickness

    def _high(
        self, data: Voxels, sizes: list[int], order: list[int], thickness: list[float], ideal: bool
    ) -> Array:
        """The HR patch: cut and recoloured; in thick slices or blurred where that was drawn."""
        augmentation, generator = self.config.augmentation, self.generator
        cut = [round(n * thick) for n, thick in zip(sizes, thickness, strict=True)]
        high = self._shaded(self._recoloured(self._cut(data, cut, order)))
        if cut == sizes and (ideal or not self._chance(augmentation.blur)):
            return high
        matrices = [np.eye(n, dtype=np.float32) for n in sizes]
        width = generator.uniform(1.0, augmentation.largest_blur) if not ideal else 0.0
        for axis, (n, wide) in enumerate(zip(sizes, cut, strict=True)):
            if wide != n:
                matrices[axis] = ScannerModel("slice-profile").matrix(wide, n)
            elif width:
                matrices[axis] = ScannerModel("gaussian", width).rows(np.arange(n) * 1.0, 1.0, n)
        return apply_separable(matrices, high)

    def _scanners(self) -> Scanners:
        """The scanner along each axis of the patch: one for all, or each its own."""
        if self._chance(self.config.augmentation.mixed):
            return self._scanner(), self._scanner(), self._scanner()
        return (self._scanner(),) * 3

    def _scanner(self) -> ScannerModel:
        augmentation, generator = self.config.augmentation, self.generator
        if self._chance(augmentation.cubic):
            return ScannerModel("cubic")
        width = 1.0
        if self._chance(augmentation.other_width):
            width = float(augmentation.width_factor ** generator.uniform(-1, 1))
        kind: ScannerKind = "gaussian"
        if self._chance(augmentation.other_kind):
            kind = "slice-profile" if self._chance(0.5) else "kspace"
        return ScannerModel(kind, width)

    def _cut(self, data: Voxels, counts: list[int], order: list[int]) -> Array:
        """A random patch of ``counts`` voxels along the permuted axes, randomly flipped."""
        generator = self.generator
        shape = [data.shape[axis] for axis in order]
        sizes = [min(n, size) for n, size in zip(counts, shape, strict=True)]
        for _ in range(_TRIES):
            part = [slice(0)] * 3
            for axis, n, size in zip(order, sizes, shape, strict=True):
                start = int(generator.integers(size - n + 1))
                part[axis] = slice(start, start + n)
            patch = data[tuple(part)]
            if (patch[::3, ::3, ::3] > 0).mean() >= FOREGROUND:
                break
        flips = tuple(slice(None, None, -1 if self._chance(0.5) else 1) for _ in range(3))
        cut = patch.transpose(order)[flips].astype(np.float32)
        missing = [n - size for n, size in zip(counts, cut.shape, strict=True)]
        if any(missing):  # a thin volume at a large scale: continued by its own border
            cut = np.pad(cut, [(m // 2, m - m // 2) for m in missing], mode="edge")
        return cut

    def _recoloured(self, high: Array) -> Array:
        """Another contrast for the foreground, so that a T1w set serves other sequences."""
        if not self._chance(self.config.augmentation.contrast):
            return high
        generator = self.generator
        foreground = high > 0
        values = np.clip(high, 0, None) ** np.float32(np.exp(generator.uniform(-0.7, 0.7)))
        if self._chance(0.4):
            values = np.float32(1.1) - np.clip(values, 0, 1)
        values *= np.float32(generator.uniform(0.6, 1.1))
        return np.where(foreground, values, 0).astype(np.float32)

    def _shaded(self, high: Array) -> Array:
        """A smooth field over the patch, as coils leave it: one slow wave along each axis."""
        augmentation, generator = self.config.augmentation, self.generator
        if not self._chance(augmentation.bias_field):
            return high
        for axis, n in enumerate(high.shape):
            depth = generator.uniform(0, augmentation.largest_bias)
            waves, phase = generator.uniform(0.1, 0.6), generator.uniform(0, 2 * np.pi)
            field = 1 + depth * np.sin(2 * np.pi * waves * np.arange(n) / n + phase)
            along = [1, 1, 1]
            along[axis] = n
            high = high * field.astype(np.float32).reshape(along)
        return high
