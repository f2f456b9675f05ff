"""A volume as a continuous function: encode once, query anywhere.

A :class:`Field` is sampled on a :class:`~napari_arssr.volume.Grid`: the whole volume at
another voxel size, a box of it, a rotated plane. What the values are made of is the
subclass's matter: a network (:class:`NetworkField`) or interpolation (:class:`CubicField`).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_arssr.devices import float32_means_float32, is_out_of_memory
from napari_arssr.errors import Cancelled, OutOfMemory
from napari_arssr.features import FeatureMap
from napari_arssr.interpolation import (
    linear_support,
    linear_weights,
    spline_support,
    spline_weights,
)
from napari_arssr.models import ORIENTATIONS, ArSSR, OrientedArSSR
from napari_arssr.models.decoders import ResidualDecoder
from napari_arssr.models.lattice import Matrices, interpolate_scalars
from napari_arssr.normalization import Normalizer
from napari_arssr.request import Request
from napari_arssr.volume import Box, Grid, Volume
from napari_arssr.voxels import Voxels
from napari_arssr.watching import Report, Stop, never

__all__ = ["CubicField", "Field", "NetworkField"]

FloatArray = npt.NDArray[np.float32]

# A slab handed out by Field.slabs takes at most about this much.
_SLAB_BYTES = 64 << 20
# A layer's activations should stay in the processor's cache, and yet be enough to multiply.
_CHUNK_BYTES = 4 << 20
_CHUNK_POINTS = 16_384  # of interpolation
_FEWEST_POINTS = 256
_TILE = 16


class Field(ABC):
    """A continuous function of position that came from a volume.

    Parameters
    ----------
    voxels : Voxels
        Of the volume. Where they are not finite the result is NaN, in the cells they cover.
    name : str
        The volume's.
    normalizer : Normalizer
    """

    def __init__(self, voxels: Voxels, name: str, normalizer: Normalizer) -> None:
        self.grid = voxels.grid
        self.name = name
        self.normalizer = normalizer
        self._voxels = voxels

    def sample(
        self,
        grid: Grid,
        *,
        progress: Report = lambda _share, _stage: None,
        stop: Stop = never,
    ) -> Volume:
        """The field at every voxel centre of ``grid``.

        Parameters
        ----------
        grid : Grid
            Anywhere in the world, of any orientation; outside the volume's span the result
            is 0.
        progress : callable
            Told the share of the work that is done, 0 to 1, and what is being done.
        stop : callable
            Asked again and again; True ends the work.

        Returns
        -------
        Volume
            float32, in the input's units.

        Raises
        ------
        Cancelled
            If ``stop()`` said so.
        OutOfMemory
            If the work does not fit however it is cut.
        """
        try:
            data = np.empty(grid.shape, dtype=np.float32)
        except MemoryError:
            raise OutOfMemory(
                f"{self.name}: a result of {grid.shape} voxels takes {grid.size * 4 / 1e9:.1f} GB; "
                "ask for a box, a coarser grid, or write it to a file slab by slab."
            ) from None
        for _ in self._run(grid, lambda box: data[box.slices], progress, stop):
            pass
        return Volume(data, grid.affine, name=self.name)

    def slabs(
        self,
        grid: Grid,
        *,
        progress: Report = lambda _share, _stage: None,
        stop: Stop = never,
    ) -> Iterator[FloatArray]:
        """The same as :meth:`sample`, slab by slab along z, for results beyond memory.

        Yields
        ------
        (n, y, x) float32 arrays
        """
        for _, slab in self._run(
            grid, lambda box: np.empty(box.shape, dtype=np.float32), progress, stop
        ):
            yield slab

    def _run(
        self, grid: Grid, allocate: Callable[[Box], FloatArray], progress: Report, stop: Stop
    ) -> Iterator[tuple[Box, FloatArray]]:
        request = Request.of(grid, self.grid)
        for box, parts in self._schedule(request, grid.box, progress, stop):
            slab = allocate(box)
            for part in parts:
                for chunk in part.blocks(_chunk_shape(part.shape, self._points)):
                    if stop():
                        raise Cancelled
                    values = self._chunk(request, chunk)
                    values = self._finish(request, chunk, self.normalizer.restore(values))
                    slab[chunk.relative_to(box.start).slices] = values
                    self._decoded(chunk, progress)
            yield box, slab

    _points = _CHUNK_POINTS

    def _schedule(
        self, request: Request, box: Box, progress: Report, stop: Stop
    ) -> Iterator[tuple[Box, Iterable[Box]]]:
        """Slabs to work through, each as parts that tile it; prepares what they need."""
        self._done, self._total = 0.0, box.size * self._point_cost
        for slab in box.blocks(_slab_shape(box.shape)):
            yield slab, [slab]

    def _decoded(self, chunk: Box, progress: Report) -> None:
        self._advance(chunk.size * self._point_cost, "decode", progress)

    _point_cost = 1.0
    _done = 0.0
    _total = 1.0

    def _advance(self, cost: float, stage: str, progress: Report) -> None:
        self._done += cost
        progress(min(self._done / self._total, 1.0), stage)

    @abstractmethod
    def _chunk(self, request: Request, chunk: Box) -> FloatArray:
        """Values of a chunk of the requested grid, in network units."""

    def _cubic(self, request: Request, chunk: Box) -> Tensor:
        """Cubic interpolation of a chunk of an aligned grid, in source axis order."""
        z, y, x = (request.along("spline", chunk, axis, self._spline_weights) for axis in range(3))
        part = Box((z[0][0], y[0][0], x[0][0]), (z[0][1], y[0][1], x[0][1]))
        return interpolate_scalars(self._voxels.coefficients(part), (z[1], y[1], x[1]))

    def _spline_weights(
        self, coordinates: npt.NDArray[np.float64], size: int
    ) -> tuple[tuple[int, int], Tensor]:
        start, stop = spline_support(coordinates, size)
        weights = spline_weights(coordinates, size, start, stop)
        return (start, stop), torch.from_numpy(weights).to(self._voxels.device)

    def _finish(self, request: Request, chunk: Box, values: FloatArray) -> FloatArray:
        """Zeros outside the span, NaN in cells of non-finite voxels."""
        known = self._voxels.known(request, chunk)
        if known is not None:
            values = np.where(known, values, np.float32(np.nan))
        if not request.all_inside:
            values = np.where(request.inside(chunk), values, np.float32(0))
        return values


class CubicField(Field):
    """Cubic B-spline interpolation on aligned grids: the baseline.

    Parameters
    ----------
    volume : Volume
        3D.
    """

    def __init__(self, volume: Volume) -> None:
        normalizer = Normalizer.fit(volume.data, "minmax")
        voxels = Voxels(volume, normalizer, torch.device("cpu"), normal=False)
        super().__init__(voxels, volume.name, normalizer)

    @torch.inference_mode()
    def _chunk(self, request: Request, chunk: Box) -> FloatArray:
        if request.lattice is None:
            points = request.points(chunk).reshape(-1, 3)
            values = self._voxels.interpolated(points, request.support(chunk))
            return values.numpy().reshape(chunk.shape)
        values = self._cubic(request, chunk)
        return values.numpy().transpose(request.to_asked_order)


class NetworkField(Field):
    """A volume under an ArSSR network.

    Parameters
    ----------
    volume : Volume
        3D.
    model : ArSSR
        In float32; copied to ``device`` and ``dtype``.
    normalizer : Normalizer
        Maps the volume to the [0, 1] the network was trained with.
    device : torch.device
    dtype : torch.dtype
        Precision of the network. Interpolation of intensities is float32 always.
    memory : int
        Bytes for features and work, volume and result not counted.
    orientations : int
        The field is the mean of what the network makes of the volume in the first so many of
        :data:`napari_arssr.models.ORIENTATIONS`.
    tile, points : int, optional
        Side of a feature tile in voxels; points decoded at once. They change speed, never
        values.
    whole : bool
        Whether the volume is made ready as a whole; else where samples are asked for, see
        :class:`~napari_arssr.voxels.Voxels`.
    """

    def __init__(
        self,
        volume: Volume,
        model: ArSSR,
        normalizer: Normalizer,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory: int = 4 << 30,
        orientations: int = 1,
        tile: int = _TILE,
        points: int | None = None,
        whole: bool = True,
    ) -> None:
        self.device = torch.device(device)
        residual = model.decoder.residual
        voxels = Voxels(volume, normalizer, self.device, spline=residual, whole=whole)
        super().__init__(voxels, volume.name, normalizer)
        self._model = copy.deepcopy(model).to(self.device, dtype)
        # Twice as fast or more on processors, and what tensor cores want.
        self._model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._points = points or _CHUNK_BYTES // (model.config.decoder_width * dtype.itemsize)
        self._dtype = dtype
        # Features are kept for the next request; a pass of the encoder needs the rest, which is
        # half of it, or more where that would not do.
        shape = volume.grid.shape
        enough = memory >= self.least_memory(model, shape, dtype, orientations, tile=tile)
        work = max(memory // 2, _pass_bytes(model, shape, dtype, tile) if enough else 0)
        self._maps = [
            FeatureMap(
                OrientedArSSR(self._model, orientation),
                voxels.normal,
                shape,
                self.device,
                cache_bytes=(memory - work) // orientations,
                work_bytes=work,
                tile=tile,
            )
            for orientation in ORIENTATIONS[:orientations]
        ]
        self._voxel_cost = float(sum(p.numel() for p in model.encoder.parameters()))
        of_decoder = sum(p.numel() for p in model.decoder.parameters())
        self._point_cost = float(of_decoder * orientations)

    @staticmethod
    def least_memory(
        model: ArSSR,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        orientations: int = 1,
        *,
        tile: int = _TILE,
    ) -> int:
        """The smallest ``memory``, in bytes, that sampling a volume of ``shape`` works with."""
        # Between two voxels a point reads up to eight tiles.
        features = 8 * tile**3 * model.config.feature_dim * dtype.itemsize
        return _pass_bytes(model, shape, dtype, tile) + orientations * features

    @property
    def features(self) -> FeatureMap:
        """The features of the volume as it is; those of other orientations are of its size."""
        return self._maps[0]

    def encoding_cost(self, box: Box) -> int:
        """LR voxels that are to be encoded before a box of the volume can be sampled."""
        return self._cost([box.grown(1, self.grid.shape)])

    def _cost(self, boxes: list[Box]) -> int:
        return sum(features.cost(boxes) for features in self._maps)

    def in_one_orientation(self) -> NetworkField:
        """The same field, of the volume as it is; features are shared."""
        one = copy.copy(self)
        one._point_cost = self._point_cost / len(self._maps)
        one._maps = self._maps[:1]
        return one

    @property
    def precision(self) -> str:
        """Number format of the network: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        return str(self._dtype).removeprefix("torch.")

    def _schedule(
        self, request: Request, box: Box, progress: Report, stop: Stop
    ) -> Iterator[tuple[Box, Iterable[Box]]]:
        # A network would make something of nothing: a constant volume stays what it is.
        if self._voxels.constant is not None:
            yield from super()._schedule(request, box, progress, stop)
            return
        slabs = self._slabs(request, box)
        costs = [
            [self._cost(self._supports(request, part)) for part in parts] for _, parts in slabs
        ]
        self._done = 0.0
        self._total = sum(map(sum, costs)) * self._voxel_cost + box.size * self._point_cost

        def advance(voxels: float) -> None:
            self._advance(voxels * self._voxel_cost, "encode", progress)

        def prepare(part: Box, planned: int = 0) -> Box:
            """Encode what a part needs; tiles that an earlier part shared count as done."""
            expected = self._done + planned * self._voxel_cost
            supports = self._supports(request, part)
            if request.lattice is not None:
                self._voxels.prepare(supports[0], stop)
            for features in self._maps:
                features.ensure(supports, stop, advance)
            self._done = max(self._done, expected)
            return part

        for (slab, parts), planned in zip(slabs, costs, strict=True):
            if len(parts) > 1:
                # Each part after its features: together they would not fit.
                yield slab, map(prepare, parts, planned)
                continue
            prepare(slab, planned[0])
            for piece in slab.blocks(_slab_shape(slab.shape)):
                # Again: another request may have come between two pieces.
                yield piece, [prepare(piece)]

    def _slabs(self, request: Request, box: Box) -> list[tuple[Box, list[Box]]]:
        """Cut a box along z, and further if need be, until features fit in the cache."""

        def fits(z: int, y: int, x: int) -> bool:
            return all(
                self.features.bytes_of(request.support(part)) <= self.features.cache_bytes
                for part in box.blocks((z, y, x))
            )

        shape = list(box.shape)
        for smallest in (8, 1):  # slivers only where points are so far apart that it takes them
            for axis in range(3):
                while shape[axis] > smallest and not fits(*shape):
                    shape[axis] = max(smallest, -(-shape[axis] // 2))
        z, y, x = shape
        return [(slab, list(slab.blocks((z, y, x)))) for slab in box.blocks((z, *box.shape[1:]))]

    def _supports(self, request: Request, part: Box) -> list[Box]:
        """LR boxes whose features a part needs: one, or many small ones for oblique grids."""
        if request.lattice is not None:
            return [request.support(part)]
        return [
            request.support(chunk) for chunk in part.blocks(_chunk_shape(part.shape, self._points))
        ]

    def _chunk(self, request: Request, chunk: Box) -> FloatArray:
        if self._voxels.constant is not None:
            return np.full(chunk.shape, self._voxels.constant, dtype=np.float32)
        if chunk.size > self._points:  # memory ran out since the chunks were cut
            return self._in_parts(request, chunk)
        try:
            with torch.inference_mode(), float32_means_float32():
                if request.lattice is None:
                    return self._decode_points(request, chunk)
                return self._decode_lattice(request, chunk)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause, which would keep the failed tensors alive.
        if self._points <= _FEWEST_POINTS:
            raise OutOfMemory(
                f"{self.name}: there is not enough memory on {self.device} to decode even "
                f"{self._points} points; close other programs, or allow it less memory for what "
                "it keeps."
            )
        self._points //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._in_parts(request, chunk)

    def _in_parts(self, request: Request, chunk: Box) -> FloatArray:
        result = np.empty(chunk.shape, dtype=np.float32)
        for part in chunk.blocks(_chunk_shape(chunk.shape, self._points)):
            result[part.relative_to(chunk.start).slices] = self._chunk(request, part)
        return result

    def _decode_lattice(self, request: Request, chunk: Box) -> FloatArray:
        support = request.support(chunk)

        def decode(features: FeatureMap, number: int) -> Tensor:
            parts = [
                request.along(
                    f"network {number}", chunk, axis, self._along(features.model, request, axis)
                )
                for axis in range(3)
            ]
            weights: Matrices = (parts[0][0], parts[1][0], parts[2][0])
            terms: Matrices = (parts[0][1], parts[1][1], parts[2][1])
            return features.model.decode_lattice(features.nodes(support), weights, terms)

        decoded = self._mean(decode)
        if self._model.decoder.residual:
            base = self._cubic(request, chunk)
            decoded = torch.add(base, decoded, alpha=self._gate(request))
        return decoded.cpu().numpy().transpose(request.to_asked_order)

    def _decode_points(self, request: Request, chunk: Box) -> FloatArray:
        points = request.points(chunk).reshape(-1, 3)
        support = request.support(chunk)
        beyond = int(self._model.decoder.outside == "zeros")
        corner = np.array(support.start) - beyond
        local = torch.from_numpy(points - corner).to(self.device, torch.float32)

        def decode(features: FeatureMap, _number: int) -> Tensor:
            nodes = torch.nn.functional.pad(features.nodes(support), (0, 0, *[beyond] * 6))
            z, y, x = (
                self._term(features.model, request, points[:, axis], axis) for axis in range(3)
            )
            return features.model.decode_points(nodes, local, (z, y, x))

        decoded = self._mean(decode)
        if self._model.decoder.residual:
            base = self._voxels.interpolated(points, support)
            decoded = torch.add(base, decoded, alpha=self._gate(request))
        return decoded.cpu().numpy().reshape(chunk.shape)

    def _mean(self, decode: Callable[[FeatureMap, int], Tensor]) -> Tensor:
        """The mean over orientations, one after the other, in float32."""
        total = decode(self._maps[0], 0).float()
        for number, features in enumerate(self._maps[1:], 1):
            total += decode(features, number)
        return total / len(self._maps)

    def _gate(self, request: Request) -> float:
        decoder = self._model.decoder
        if isinstance(decoder, ResidualDecoder):
            return decoder.gate(request.index_map.cell)
        return 1.0

    def _term(
        self,
        model: OrientedArSSR,
        request: Request,
        coordinates: npt.NDArray[np.float64],
        axis: int,
    ) -> Tensor:
        # In float64 up to here: a sine of a large index in float32 would lose its phase.
        code = model.decoder.encode_position(
            torch.from_numpy(coordinates), request.size[axis], request.index_map.cell[axis]
        )
        return model.position_term(axis, code.to(self.device, self._dtype))

    def _along(
        self, model: OrientedArSSR, request: Request, axis: int
    ) -> Callable[[npt.NDArray[np.float64], int], tuple[Tensor, Tensor]]:
        """Maker of interpolation weights and position term along an axis."""

        def make(coordinates: npt.NDArray[np.float64], size: int) -> tuple[Tensor, Tensor]:
            start, stop = linear_support(coordinates, size)
            outside = self._model.decoder.outside
            weights = linear_weights(coordinates, size, start, stop, outside)
            on_device = torch.from_numpy(weights).to(self.device)
            return on_device, self._term(model, request, coordinates, axis)

        return make


def _pass_bytes(model: ArSSR, shape: tuple[int, int, int], dtype: torch.dtype, tile: int) -> int:
    """Memory of the smallest pass of the encoder: a tile and its halo."""
    side = tile + 2 * model.halo
    voxels = math.prod(min(side, n) for n in shape)
    return voxels * model.encoder.peak_channels * dtype.itemsize


def _chunk_shape(shape: tuple[int, int, int], points: int) -> tuple[int, int, int]:
    """A block of at most ``points``, as near to a cube as ``shape`` lets it be."""
    sides = [1, 1, 1]
    left = float(points)
    for rank, axis in enumerate(np.argsort(shape, kind="stable")):
        side = min(shape[axis], max(1, math.floor(left ** (1 / (3 - rank)) + 1e-9)))
        # Equal blocks, rather than full ones and a sliver.
        side = -(-shape[axis] // -(-shape[axis] // side))
        sides[axis] = side
        left /= side
    return sides[0], sides[1], sides[2]


def _slab_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    plane = shape[1] * shape[2] * 4
    return min(shape[0], max(1, _SLAB_BYTES // plane)), shape[1], shape[2]
