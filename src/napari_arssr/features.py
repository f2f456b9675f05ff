"""The encoder's feature map of one volume, computed where it is asked for and kept.

Features are kept in small tiles, so that what one request computed serves the next, and
computed in blocks of many tiles, as large as memory allows, because every block needs the
encoder's halo around it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from napari_arssr.devices import float32_means_float32, is_out_of_memory
from napari_arssr.errors import Cancelled, OutOfMemory
from napari_arssr.models import OrientedArSSR
from napari_arssr.volume import Box, Shape, as_shape
from napari_arssr.watching import Count, Stop

__all__ = ["FeatureMap"]

Tile = tuple[int, int, int]


class FeatureMap:
    """Features of a volume under a network, lazily.

    Parameters
    ----------
    model : OrientedArSSR
        On ``device``, in the precision it is to run in, evaluation mode.
    read : callable
        Gives the voxels of a box, float32, in network units, finite; asks whether to stop.
    shape : tuple of ints
        Of the volume, (z, y, x).
    device : torch.device
    cache_bytes : int
        Features kept; the least recently used tiles go first.
    work_bytes : int
        Memory an encoder pass may take.
    tile : int
        Side of a tile in voxels. Changes speed, never values.
    """

    def __init__(
        self,
        model: OrientedArSSR,
        read: Callable[[Box, Stop], npt.NDArray[np.float32]],
        shape: Shape,
        device: torch.device,
        *,
        cache_bytes: int,
        work_bytes: int,
        tile: int = 16,
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = next(model.parameters()).dtype
        self.shape = shape
        self.cache_bytes = cache_bytes
        self.tile = tile
        self._read = read
        self._tiles: OrderedDict[Tile, Tensor] = OrderedDict()
        self._held = 0
        self._block_voxels = max(1, work_bytes // self._bytes_per_voxel)

    @property
    def _bytes_per_voxel(self) -> int:
        return self.model.encoder.peak_channels * self.dtype.itemsize

    @property
    def _bytes_per_tile(self) -> int:
        return self.tile**3 * self.model.config.feature_dim * self.dtype.itemsize

    def bytes_of(self, box: Box) -> int:
        """Memory that the features of a box take, whole tiles counted."""
        tiles = math.prod(len(r) for r in self._tile_ranges(box))
        return tiles * self._bytes_per_tile

    def cost(self, boxes: list[Box]) -> int:
        """Voxels the encoder still has to pass, halos included, for features of ``boxes``."""
        return sum(
            self._grown(block).size
            for block in self._plan(self._needed(boxes) - self._tiles.keys())
        )

    def ensure(self, boxes: list[Box], stop: Stop, count: Count) -> None:
        """Compute what is missing of the features of ``boxes``.

        Parameters
        ----------
        boxes : list of Box
            Their features together fit in ``cache_bytes``.
        stop : callable
            Asked before every layer; True ends the work with :class:`Cancelled`.
        count : callable
            Told, after each layer, its share of the voxels that a block passes.

        Raises
        ------
        Cancelled, OutOfMemory
        """
        needed = self._needed(boxes)
        for tile in needed & self._tiles.keys():
            self._tiles.move_to_end(tile)
        while missing := needed - self._tiles.keys():
            for block in self._plan(missing):
                grown = self._grown(block)
                self._make_room(block, needed)
                try:
                    self._encode(block, grown, stop, count)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    self._shrink(grown, needed)
                    break  # plan again with smaller blocks

    def nodes(self, box: Box) -> Tensor:
        """Features of a box, (z, y, x, channels); :meth:`ensure` it first."""
        ranges = self._tile_ranges(box)
        if all(len(r) == 1 for r in ranges):
            tile = (ranges[0][0], ranges[1][0], ranges[2][0])
            return self._tiles[tile][box.relative_to(self._corner(tile)).slices]
        channels = self.model.config.feature_dim
        result = torch.empty((*box.shape, channels), dtype=self.dtype, device=self.device)
        for tile in map(as_shape, product(*ranges)):
            corner = self._corner(tile)
            part = box.common(Box(corner, as_shape(c + self.tile for c in corner)))
            assert part is not None  # only tiles that the box reaches
            inside = self._tiles[tile][part.relative_to(corner).slices]
            result[part.relative_to(box.start).slices] = inside
        return result

    def clear(self) -> None:
        """Forget all features."""
        self._tiles.clear()
        self._held = 0

    @torch.inference_mode()
    def _encode(self, block: Box, grown: Box, stop: Stop, count: Count) -> None:
        """Encode a block with its halo and keep the tiles it is made of."""
        patch = torch.from_numpy(np.ascontiguousarray(self._read(grown, stop)))
        with (
            float32_means_float32(),
            _between_layers(self.model.encoder, stop, lambda share: count(share * grown.size)),
        ):
            features = self.model.encode(patch[None].to(self.device, torch.float32))[0]
        for part in block.blocks((self.tile,) * 3):
            tile = as_shape(a // self.tile for a in part.start)
            # A copy: a view would keep the whole block alive after its neighbours are evicted.
            values = features[part.relative_to(grown.start).slices].clone(
                memory_format=torch.contiguous_format
            )
            if tile not in self._tiles:
                self._held += values.nbytes
                self._tiles[tile] = values

    def _make_room(self, block: Box, needed: set[Tile]) -> None:
        """Forget the least recently used tiles, but none that is needed now."""
        room = block.size * self.model.config.feature_dim * self.dtype.itemsize
        for tile in [tile for tile in self._tiles if tile not in needed]:
            if self._held + room <= self.cache_bytes:
                break
            self._forget([tile])

    def _forget(self, tiles: Iterable[Tile]) -> None:
        for tile in list(tiles):
            self._held -= self._tiles.pop(tile).nbytes

    def _shrink(self, failed: Box, needed: set[Tile]) -> None:
        """After running out of memory: keep less, then smaller blocks, or give up."""
        idle = self._tiles.keys() - needed
        if idle:
            # For good, or what is kept would grow to where it was: half, or all of a request.
            self.cache_bytes = min(
                self.cache_bytes, max(self._held // 2, len(needed) * self._bytes_per_tile)
            )
            self._forget(idle)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if idle:
            return
        smallest = math.prod(min(2 * self.model.halo + self.tile, n) for n in self.shape)
        if failed.size <= smallest:
            need = failed.size * self._bytes_per_voxel / 1e6
            raise OutOfMemory(
                f"There is not enough memory on {self.device} for even the smallest block "
                f"({failed.size} voxels, about {need:.0f} MB); close other programs or choose "
                "smaller weights."
            ) from None
        self._block_voxels = failed.size // 2

    def _needed(self, boxes: list[Box]) -> set[Tile]:
        return {as_shape(tile) for box in boxes for tile in product(*self._tile_ranges(box))}

    def _plan(self, missing: set[Tile]) -> list[Box]:
        """Blocks of tiles that cover ``missing`` at the least cost within memory."""
        if not missing:
            return []
        tiles = np.array(sorted(missing))
        low, high = tiles.min(axis=0), tiles.max(axis=0) + 1
        occupied = np.zeros(high - low, dtype=bool)
        occupied[tuple((tiles - low).T)] = True
        best: tuple[int, list[Box]] | None = None
        sides = [sorted({-(-int(n) // parts) for parts in _PARTS}) for n in occupied.shape]
        for side in map(as_shape, product(*sides)):
            lengths = [self._grown_lengths(axis, low, high, side) for axis in range(3)]
            too_large = math.prod(int(n.max()) for n in lengths) > self._block_voxels
            if too_large and side != (1, 1, 1):
                continue
            used = np.add.reduceat(occupied, np.arange(0, occupied.shape[0], side[0]), axis=0)
            used = np.add.reduceat(used, np.arange(0, occupied.shape[1], side[1]), axis=1)
            used = np.add.reduceat(used, np.arange(0, occupied.shape[2], side[2]), axis=2)
            z, y, x = lengths
            cost = int(((used > 0) * z[:, None, None] * y[:, None] * x).sum())
            if best is None or cost < best[0]:
                corners = np.argwhere(used > 0) * side + low
                best = cost, [self._block(corner, side, high) for corner in corners]
        assert best is not None  # the sides hold (1, 1, 1) for every number of tiles
        return best[1]

    def _grown_lengths(
        self, axis: int, low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], side: Tile
    ) -> npt.NDArray[np.int64]:
        """Voxels along an axis of each block of ``side`` tiles, halo included."""
        first = np.arange(low[axis], high[axis], side[axis])
        last = np.minimum(first + side[axis], high[axis]) * self.tile + self.model.halo
        start = np.maximum(first * self.tile - self.model.halo, 0)
        return np.asarray(np.minimum(last, self.shape[axis]) - start)

    def _block(self, corner: npt.NDArray[np.int64], side: Tile, high: npt.NDArray[np.int64]) -> Box:
        stop = np.minimum(np.minimum(corner + side, high) * self.tile, self.shape)
        return Box(as_shape(corner * self.tile), as_shape(stop))

    def _grown(self, block: Box) -> Box:
        return block.grown(self.model.halo, self.shape)

    def _tile_ranges(self, box: Box) -> list[range]:
        return [
            range(a // self.tile, -(-b // self.tile))
            for a, b in zip(box.start, box.stop, strict=True)
        ]

    def _corner(self, tile: Tile) -> Tile:
        return as_shape(n * self.tile for n in tile)


# Into how many parts a region may be cut along an axis; the last cuts any region into tiles.
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 1 << 30)


@contextmanager
def _between_layers(encoder: nn.Module, stop: Stop, done: Count) -> Iterator[None]:
    """Ask before and tell after each convolution: a pass can take a minute, a layer seconds.

    ``done`` is told the layer's share of the encoder's multiplications.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv3d)]
    total = sum(layer.weight.numel() for layer in layers)
    left = 1.0

    def ask(_module: nn.Module, _inputs: object) -> None:
        if stop():
            raise Cancelled

    def tell(module: nn.Module, _inputs: object, _output: object) -> None:
        nonlocal left
        assert isinstance(module, nn.Conv3d)
        share = module.weight.numel() / total
        left -= share
        done(share)

    hooks = [layer.register_forward_pre_hook(ask) for layer in layers]
    hooks += [layer.register_forward_hook(tell) for layer in layers]
    try:
        yield
        done(left)  # what was done by other means than a layer's call
    finally:
        for hook in hooks:
            hook.remove()
