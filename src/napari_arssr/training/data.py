"""Training pairs, drawn fresh at every step.

An HR patch is cut, permuted, flipped and recoloured; the scanner model makes its LR patch;
the network's task is the HR intensity on a random lattice of HR voxels (some rows of each
axis), so that a pair costs the same at every scale and decodes as matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import UsageError
from napari_arssr.interpolation import apply_separable, linear_weights, spline_matrix
from napari_arssr.models import ArSSR
from napari_arssr.models.decoders import ResidualDecoder
from napari_arssr.models.lattice import Matrices
from napari_arssr.normalization import Normalizer
from napari_arssr.training.config import TrainingConfig

__all__ = ["Batch", "PairSampler", "TrainingVolume"]

Array = npt.NDArray[np.float32]

# Of a patch's voxels this share at least is not background.
_FOREGROUND = 0.3


@dataclass(frozen=True)
class TrainingVolume:
    """An HR volume in [0, 1], (z, y, x), float16 to hold many; and where it came from."""

    data: npt.NDArray[np.float16]
    name: str

    @classmethod
    def from_array(cls, data: npt.NDArray[Any], name: str, smallest: int) -> TrainingVolume:
        """Normalise an array.

        Raises
        ------
        UsageError
            If it is constant, or has an axis shorter than ``smallest`` voxels.
        """
        if min(data.shape) < smallest:
            raise UsageError(
                f"{name}: {data.shape} voxels are too few to train on; every axis needs {smallest}."
            )
        try:
            normal = Normalizer.fit(data).normalize(data)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        if normal.max() == normal.min():
            raise UsageError(f"{name}: the volume is constant; there is nothing to learn from.")
        return cls(np.clip(normal, 0, 2).astype(np.float16), name)


@dataclass(frozen=True)
class Batch:
    """Pairs as tensors; B pairs, n LR voxels and m lattice points along each axis.

    ``low`` (B, n, n, n); ``weights`` three (B, m, n); ``positions`` three (B, m, q); ``gate``
    (B, 1, 1, 1); ``base`` and ``target`` (B, m, m, m); ``names``: the volumes drawn from.
    """

    low: Tensor
    weights: Matrices
    positions: Matrices
    gate: Tensor
    base: Tensor
    target: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Pair:
    low: Array
    coordinates: list[npt.NDArray[np.floating[Any]]]
    cell: list[float]
    target: Array


class PairSampler:
    """Draws pairs from volumes with one generator, whose state is all there is to save."""

    def __init__(
        self, volumes: list[TrainingVolume], config: TrainingConfig, generator: np.random.Generator
    ) -> None:
        self.volumes = volumes
        self.config = config
        self.generator = generator

    def batch(self, model: ArSSR) -> Batch:
        """A batch for ``model``: its decoder says how positions are coded."""
        size = self.config.patch
        chosen = self.generator.integers(len(self.volumes), size=self.config.batch)
        pairs = [self._pair(self.volumes[index]) for index in chosen]
        weights, positions = [], []
        for axis in range(3):
            weights.append(
                np.stack(
                    [
                        linear_weights(p.coordinates[axis], size, 0, size, model.decoder.outside)
                        for p in pairs
                    ]
                )
            )
            positions.append(
                torch.stack(
                    [
                        model.decoder.encode_position(
                            torch.from_numpy(p.coordinates[axis]), size, p.cell[axis]
                        )
                        for p in pairs
                    ]
                ).float()
            )
        gate, base = np.ones(len(pairs)), np.zeros((len(pairs), *[self.config.lattice] * 3))
        if isinstance(model.decoder, ResidualDecoder):
            gate = np.array([model.decoder.gate(p.cell) for p in pairs])
            base = np.stack(
                [
                    apply_separable([spline_matrix(c, size) for c in p.coordinates], p.low)
                    for p in pairs
                ]
            )
        z, y, x = (torch.from_numpy(w) for w in weights)
        return Batch(
            low=torch.from_numpy(np.stack([p.low for p in pairs])),
            weights=(z, y, x),
            positions=(positions[0], positions[1], positions[2]),
            gate=torch.from_numpy(gate).float().view(-1, 1, 1, 1),
            base=torch.from_numpy(base).float(),
            target=torch.from_numpy(np.stack([p.target for p in pairs])),
            names=tuple(self.volumes[index].name for index in chosen),
        )

    def _pair(self, volume: TrainingVolume) -> _Pair:
        config, generator, choose = self.config, self.generator, self._chance
        size = config.patch
        scales = self._scales()
        counts = [round(size * scale) for scale in scales]
        scanner = self._scanner()
        # The point-spread function of the outer LR voxels reaches beyond the patch.
        margins = [
            0 if n == size else int(np.ceil(1.5 * max(scanner.width, 1.0) * n / size))
            for n in counts
        ]
        # Array axis of the file that becomes each axis of the patch.
        order = generator.permutation(3)
        if choose(0.5) and len(config.sharp_axes) < 3:
            # The coarsest axis of the patch is taken along a sharp axis of the file.
            coarsest = int(np.argmax(scales))
            sharp = int(generator.choice(config.sharp_axes))
            others = [axis for axis in order if axis != sharp]
            others.insert(coarsest, sharp)
            order = np.array(others)
        sizes = [n + 2 * margin for n, margin in zip(counts, margins, strict=True)]
        high = self._cut(volume.data, sizes, order)
        high = self._recolour(high)
        matrices, coordinates, picks, cell = [], [], [], []
        for n, margin in zip(counts, margins, strict=True):
            ratio = n / size
            centres = margin + (np.arange(size) + 0.5) * ratio - 0.5
            identity = n == size
            matrices.append(
                np.eye(n, dtype=np.float32)
                if identity
                else scanner.rows(centres, ratio, n + 2 * margin)
            )
            pick = np.sort(generator.choice(n, config.lattice, replace=n < config.lattice))
            picks.append(pick + margin)
            coordinates.append((pick + 0.5) / ratio - 0.5)
            cell.append(1 / ratio)
        low = apply_separable(matrices, high)
        if choose(config.augmentation.noise):
            sigma = generator.uniform(0, config.augmentation.largest_noise)
            noise = generator.standard_normal(low.shape, dtype=np.float32)
            low = low + np.float32(sigma) * noise
        return _Pair(low, coordinates, cell, high[np.ix_(*picks)])

    def _chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def _scales(self) -> list[float]:
        config, augmentation, generator = self.config, self.config.augmentation, self.generator
        kind = generator.random()
        if kind < augmentation.thick_slices:
            scales = [1.0, 1.0, 1.0]
            scales[generator.integers(3)] = generator.uniform(1.5, augmentation.largest_thick_scale)
            return scales
        if kind < augmentation.thick_slices + augmentation.anisotropic:
            drawn = generator.uniform(1.0, config.largest_scale, 3)
            return [float(k) if k >= config.smallest_scale else 1.0 for k in drawn]
        return [generator.uniform(config.smallest_scale, config.largest_scale)] * 3

    def _scanner(self) -> ScannerModel:
        augmentation, generator = self.config.augmentation, self.generator
        width = 1.0
        if self._chance(augmentation.other_width):
            width = float(augmentation.width_factor ** generator.uniform(-1, 1))
        if self._chance(augmentation.other_kind):
            return ScannerModel("slice-profile" if self._chance(0.5) else "kspace", width)
        return ScannerModel("gaussian", width)

    def _cut(self, data: npt.NDArray[np.float16], counts: list[int], order: Any) -> Array:
        """A random patch of ``counts`` voxels along the permuted axes, randomly flipped."""
        generator = self.generator
        view = data.transpose(order)
        sizes = [min(n, size) for n, size in zip(counts, view.shape, strict=True)]
        for _ in range(20):
            starts = [
                int(generator.integers(size - n + 1))
                for n, size in zip(sizes, view.shape, strict=True)
            ]
            patch = view[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))]
            if (patch[::3, ::3, ::3] > 0).mean() >= _FOREGROUND:
                break
        flips = tuple(slice(None, None, -1 if self._chance(0.5) else 1) for _ in range(3))
        cut = patch[flips].astype(np.float32)
        missing = [n - size for n, size in zip(counts, cut.shape, strict=True)]
        if any(missing):  # a thin volume at a large scale: continued by its own border
            cut = np.pad(cut, [(m // 2, m - m // 2) for m in missing], mode="edge")
        return cut

    def _recolour(self, high: Array) -> Array:
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
