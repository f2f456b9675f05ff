"""A field against its definition, written out point by point, and what must not change it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from napari_arssr import field as module
from napari_arssr.errors import Cancelled, OutOfMemory
from napari_arssr.field import CubicField, NetworkField
from napari_arssr.models import ArSSR, ModelConfig, build
from napari_arssr.normalization import Normalizer
from napari_arssr.volume import Box, Grid, Volume

EXAMPLES = settings(max_examples=25, deadline=None)

Shape = tuple[int, int, int]
Float64Array = npt.NDArray[np.float64]

# Each longer than its encoder's halo (8, 20, 39 voxels) along one axis: features there are
# put together from several passes.
SHAPES: dict[str, Shape] = {"RDN": (11, 6, 40), "ResCNN": (5, 60, 4), "SRResNet": (100, 3, 4)}
NETWORKS = [(encoder, decoder) for encoder in SHAPES for decoder in ("published", "residual")]
OBLIQUE = Rotation.from_euler("zyx", [20, -35, 50], degrees=True).as_matrix()
NORMALIZER = Normalizer(100.0, 350.0)  # not 0 to 1, so that a wrong unit shows

networks = pytest.mark.parametrize(("encoder", "decoder"), NETWORKS)


def tiny(encoder: str, decoder: str, **sizes: int) -> ModelConfig:
    small = {"feature_dim": 5, "decoder_depth": 4, "decoder_width": 12, "features": 4}
    values = small | {"growth": 3, "blocks": 2, "layers": 2} | sizes
    return ModelConfig(encoder=encoder, decoder=decoder, **values)


@cache
def network(encoder: str, decoder: str, **sizes: int) -> ArSSR:
    """Random weights, heads included; intensities neither vanish nor explode."""
    torch.manual_seed(1)
    model = build(tiny(encoder, decoder, **sizes)).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            gain = 1.0 if name.startswith("encoder") else 2.0
            nn.init.normal_(parameter, std=math.sqrt(gain / parameter[0].numel()))
        else:
            nn.init.uniform_(parameter, 0, 0.1)
    return model


def volume_of(shape: Shape, seed: int = 0) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([1.0, 1.5, 2.2])
    affine[:3, 3] = (-20, 35, 8)
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return Volume(NORMALIZER.restore(values), affine)


@cache
def volume(encoder: str) -> Volume:
    return volume_of(SHAPES[encoder])


def make(encoder: str, decoder: str, **options: Any) -> NetworkField:
    return NetworkField(volume(encoder), network(encoder, decoder), NORMALIZER, **options)


# The definition -------------------------------------------------------------------------------


@cache
def all_features(encoder: str, decoder: str) -> Float64Array:
    model = copy.deepcopy(network(encoder, decoder)).double()
    values = NORMALIZER.normalize(volume(encoder).data).astype(np.float64)
    result: Float64Array = model.encode(torch.from_numpy(values)[None])[0].numpy()
    return result


def expected(encoder: str, decoder: str, grid: Grid) -> Float64Array:
    """The field in float64: the whole volume encoded, every point decoded by itself."""
    source = volume(encoder)
    size = np.array(source.data.shape)
    index_map = grid.map_into(source.grid)
    points = index_map.points(grid.box).reshape(-1, 3)
    cell = np.linalg.norm(index_map.matrix[:3, :3], axis=1)
    features = all_features(encoder, decoder)
    head = copy.deepcopy(network(encoder, decoder)).double().decoder
    beyond = "grid-constant" if decoder == "published" else "nearest"
    at_points = torch.from_numpy(
        np.stack(
            [
                map_coordinates(channel, points.T, order=1, mode=beyond)
                for channel in np.moveaxis(features, -1, 0)
            ],
            axis=-1,
        )
    )
    if decoder == "published":
        position = torch.from_numpy((2 * points + 1) / size - 1)
        inputs = torch.cat([at_points, position], dim=1)
        values = head.stage_two(head.stage_one(inputs) + inputs)[:, 0].numpy()
    else:
        hidden = head.feature(at_points)
        for axis in range(3):
            angles = [2 * np.pi * n * points[:, axis] for n in range(1, head.harmonics + 1)]
            code = [wave(angle) for angle in angles for wave in (np.cos, np.sin)]
            code.append(np.full(len(points), np.clip(cell[axis], 0.25, 1.0)))
            hidden = hidden + head.position[axis](torch.from_numpy(np.stack(code, axis=1)))
        for layer in head.hidden:
            hidden = layer(hidden.relu())
        residual = head.head(hidden.relu())[:, 0].numpy()
        normal = NORMALIZER.normalize(source.data).astype(np.float64)
        cubic = map_coordinates(normal, points.T, order=3, mode="mirror")
        values = cubic + (1 - np.minimum(cell, 1).prod()) * residual
    outside = ((points < -0.5 - 1e-3) | (points > size - 0.5 + 1e-3)).any(axis=1)
    result = np.where(outside, 0, NORMALIZER.low + (NORMALIZER.high - NORMALIZER.low) * values)
    return result.reshape(grid.shape)


def assert_same(result: npt.NDArray[Any], reference: npt.NDArray[Any]) -> None:
    assert result.shape == reference.shape
    range_ = NORMALIZER.high - NORMALIZER.low
    largest = max(np.abs(reference - NORMALIZER.low).max(), range_)
    assert np.abs(result - reference).max() <= 1e-5 * largest


def turned(grid: Grid, shape: Shape, spacing: float, seed: int) -> Grid:
    """A rotated grid, its centre near the middle of another's."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=random).as_matrix() * spacing
    middle = grid.world([(n - 1) / 2 for n in grid.shape]) + random.uniform(-3, 3, 3)
    affine[:3, 3] = middle - Grid(shape, affine).world([(n - 1) / 2 for n in shape])
    return Grid(shape, affine)


def reordered(grid: Grid, order: Shape, flips: tuple[bool, bool, bool]) -> Grid:
    """The same centres with the axes in another order, some of them counted backwards."""
    affine = grid.affine.copy()
    columns = grid.index_affine
    for axis in range(3):
        if flips[axis]:
            affine[:3, 3] += columns[:3, axis] * (grid.shape[axis] - 1)
            columns[:3, axis] *= -1
    affine[:, 2::-1] = columns[:, list(order)]
    return Grid(tuple(grid.shape[axis] for axis in order), affine)


def larger(grid: Grid, margin: int) -> Grid:
    """More voxels on every side, beyond the span."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world([-margin] * 3)
    return Grid(tuple(n + 2 * margin for n in grid.shape), affine)


@st.composite
def boxes(draw: DrawFn, shape: Shape, largest: int = 14) -> Box:
    start = [draw(st.integers(0, n - 1)) for n in shape]
    ends = zip(start, shape, strict=True)
    stop = [draw(st.integers(a + 1, min(n, a + largest))) for a, n in ends]
    return Box(tuple(start), tuple(stop))


@st.composite
def requests(draw: DrawFn, source: Grid) -> Grid:
    """Boxes of finer and coarser grids, in any axis order, also beyond the span; turned ones."""
    if draw(st.integers(0, 3)) == 0:
        shape = draw(st.tuples(*[st.sampled_from([1, 2, 9, 14])] * 3))
        spacing = draw(st.sampled_from([0.4, 1.1, 6.0]))
        return turned(source, shape, spacing, draw(st.integers(0, 99)))
    grid = source.scaled(draw(st.tuples(*[st.sampled_from([0.4, 1.0, 1.7, 3.3])] * 3)))
    grid = larger(grid, draw(st.sampled_from([0, 0, 2])))
    grid = grid.crop(draw(boxes(grid.shape)))
    return reordered(grid, draw(st.permutations([0, 1, 2])), draw(st.tuples(*[st.booleans()] * 3)))


@networks
def test_a_field_is_its_network_at_every_point(encoder: str, decoder: str) -> None:
    source = volume(encoder).grid
    field = make(encoder, decoder)
    for grid in (
        source.scaled((1.3, 1.7, 1.1)),
        larger(source.scaled(0.6), 1),
        turned(source, (1, 25, 30), 0.9, seed=0),
        turned(source, (4, 5, 6), 3.0, seed=1),
    ):
        reference = expected(encoder, decoder, grid)
        assert reference.std() > 1  # or there is nothing to compare
        assert_same(field.sample(grid).data, reference)


@EXAMPLES
@given(st.data())
def test_nothing_depends_on_tiles_chunks_memory_or_earlier_requests(data: st.DataObject) -> None:
    encoder, decoder = data.draw(st.sampled_from(NETWORKS))
    field = make(
        encoder,
        decoder,
        tile=data.draw(st.integers(3, 20)),
        points=data.draw(st.sampled_from([40, 700, 20_000])),
        memory=data.draw(st.sampled_from([30_000, 300_000, 1 << 30])),
    )
    for grid in data.draw(st.lists(requests(volume(encoder).grid), min_size=1, max_size=3)):
        assert_same(field.sample(grid).data, expected(encoder, decoder, grid))


@EXAMPLES
@given(st.data())
def test_a_box_of_the_result_is_the_result_of_the_box(data: st.DataObject) -> None:
    encoder, decoder = data.draw(st.sampled_from(NETWORKS))
    grid = volume(encoder).grid.scaled((1.3, 1.7, 1.1))
    whole = make(encoder, decoder).sample(grid)
    box = data.draw(boxes(grid.shape))
    part = make(encoder, decoder, tile=7, points=500).sample(grid.crop(box))
    assert part.grid == whole.crop(box).grid
    assert_same(part.data, whole.data[box.slices])


@networks
@pytest.mark.parametrize("oblique", [False, True], ids=["box", "oblique"])
def test_what_is_read_in_parts_is_what_it_is_as_a_whole(
    encoder: str, decoder: str, oblique: bool
) -> None:
    model = network(encoder, decoder, blocks=1, layers=1)
    shape = {"RDN": (60, 58, 62), "ResCNN": (60, 58, 62), "SRResNet": (90, 20, 22)}[encoder]
    source = volume_of(shape)
    fine = source.grid.scaled((1.3, 1.7, 1.1))
    wanted = [
        fine.crop(Box((40, 16, 13), (45, 20, 16))),
        fine.crop(Box((0, 0, 0), (3, 4, 2))),
        fine.crop(Box((fine.shape[0] - 3, 10, 11), (fine.shape[0], 12, 15))),
    ]
    if oblique:
        wanted = [turned(grid, (4, 3, 4), 0.8, seed=3) for grid in wanted]
    middle = np.rint(source.grid.index(wanted[0].world([1, 1, 1]))).astype(int)
    source.data[tuple(middle)] = np.nan
    whole = NetworkField(source, model, NORMALIZER)
    parts = NetworkField(source, model, NORMALIZER, whole=False)
    for number, grid in enumerate(wanted):
        result, reference = parts.sample(grid).data, whole.sample(grid).data
        assert np.isnan(result).any() == (number == 0)
        np.testing.assert_array_equal(np.isnan(result), np.isnan(reference))
        assert_same(np.nan_to_num(result), np.nan_to_num(reference))


def test_two_requests_in_turns_do_not_disturb_each_others_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = volume_of((60, 58, 62))
    model = network("RDN", "residual", blocks=1, layers=1)
    fine = source.grid.scaled(1.5)
    wanted = [fine.crop(Box((0, 0, 0), (12, 9, 9))), fine.crop(Box((70, 70, 70), (82, 79, 79)))]
    reference = NetworkField(source, model, NORMALIZER)
    expected = [reference.sample(grid).data for grid in wanted]
    monkeypatch.setattr(module, "_SLAB_BYTES", 4 * 9 * 9 * 3)
    field = NetworkField(source, model, NORMALIZER, whole=False, points=100)
    turns = list(zip(*(field.slabs(grid) for grid in wanted), strict=True))
    assert len(turns) == 4
    for parts, whole in zip(zip(*turns, strict=True), expected, strict=True):
        assert_same(np.concatenate(parts), whole)


@networks
def test_single_points_agree_with_the_lattice(
    encoder: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = larger(volume(encoder).grid.scaled((0.7, 1.3, 1.1)), 1)
    on_lattice = make(encoder, decoder).sample(grid).data

    of = module.Request.of

    def no_lattice(_cls: Any, grid: Grid, source: Grid) -> Any:
        return replace(of(grid, source), lattice=None)

    monkeypatch.setattr(module.Request, "of", classmethod(no_lattice))
    assert_same(make(encoder, decoder).sample(grid).data, on_lattice)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_a_reordered_and_flipped_grid_gives_the_reordered_and_flipped_result(order: Shape) -> None:
    grid = volume("RDN").grid.scaled((1.3, 1.7, 1.1))
    whole = make("RDN", "residual").sample(grid).data
    for flips in product((False, True), repeat=3):
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        result = make("RDN", "residual").sample(reordered(grid, order, flips)).data
        assert_same(result, whole[steps].transpose(order))


# What is true whatever the network says -------------------------------------------------------


@pytest.mark.parametrize("encoder", SHAPES)
def test_at_its_own_voxels_a_volume_is_itself(encoder: str) -> None:
    source = volume(encoder)
    field = make(encoder, "residual")
    result = field.sample(source.grid)
    assert result.grid == source.grid
    np.testing.assert_allclose(result.data, source.data, atol=1e-3)
    finer = field.sample(source.grid.scaled(1.3))  # the network does say something
    assert np.abs(finer.data - CubicField(source).sample(finer.grid).data).max() > 1


@pytest.mark.parametrize("kind", ["network", "cubic"])
def test_voxels_that_are_not_finite_are_lost_and_nothing_else(kind: str) -> None:
    source = volume("RDN")
    broken = [(0, 0, 0), (5, 3, 20), (5, 3, 21), (10, 5, 39)]
    data = source.data.copy()
    for place, value in zip(broken, (np.nan, np.inf, -np.inf, np.nan), strict=True):
        data[place] = value
    holes = Volume(data, source.affine)
    if kind == "cubic":
        field: module.Field = CubicField(holes)
    else:
        field = NetworkField(holes, network("RDN", "residual"), NORMALIZER)
    scaled = source.grid.scaled((2, 3, 1.5))
    for grid in (scaled, larger(scaled, 2), turned(source.grid, (1, 40, 40), 0.4, seed=1)):
        index = grid.map_into(source.grid).points(grid.box)
        nearest = np.floor(index + 0.5 + 1e-6)  # a centre on a face counts with the next voxel
        lost = np.zeros(grid.shape, dtype=bool)
        for place in broken:
            lost |= (nearest == place).all(axis=-1)
        assert lost.any()
        result = field.sample(grid).data
        np.testing.assert_array_equal(np.isnan(result), lost)
        assert np.isfinite(result[~lost]).all()


@pytest.mark.parametrize("decoder", ["published", "residual"])
@pytest.mark.parametrize("value", [0, -7, 1000, np.float32(1e30), np.float64(0.1)])
def test_a_constant_volume_stays_what_it_is(decoder: str, value: Any) -> None:
    data = np.full((6, 7, 8), value)
    source = Volume(data, np.diag([1.0, 2.0, 3.0, 1.0]))
    field = NetworkField(source, network("RDN", decoder), Normalizer.fit(data))
    shares: list[float] = []
    result = field.sample(source.grid.scaled(2.5), progress=lambda share, _: shares.append(share))
    np.testing.assert_allclose(result.data, np.float32(value), rtol=1e-6)
    assert shares[-1] == 1
    outside = turned(source.grid, (1, 30, 30), 3.0, seed=2)
    values = field.sample(outside).data
    assert set(np.unique(values)) <= {np.float32(0), np.float32(value)}
    cubic = CubicField(source).sample(source.grid.scaled(2.5)).data
    np.testing.assert_allclose(cubic, np.float32(value), rtol=1e-6)


@pytest.mark.parametrize("decoder", ["published", "residual"])
def test_there_is_nothing_outside_the_span(decoder: str) -> None:
    source = volume("RDN").grid
    field = make("RDN", decoder)
    grid = source.scaled(1.5)
    whole = field.sample(grid).data
    padded = field.sample(larger(grid, 3)).data
    inside = (slice(3, -3),) * 3
    assert_same(padded[inside], whole)
    assert np.count_nonzero(padded) == np.count_nonzero(padded[inside]) == whole.size
    affine = source.affine.copy()
    affine[:3, 3] += 1000
    assert not field.sample(Grid((3, 4, 5), affine)).data.any()
    assert not field.sample(turned(Grid((1, 1, 1), affine), (2, 3, 4), 1.0, seed=0)).data.any()


def test_one_frame_makes_a_field() -> None:
    series = Volume(np.zeros((2, 3, 4, 5), dtype=np.float32), np.eye(4))
    with pytest.raises(ValueError, match="frame"):
        CubicField(series)


# Interpolation --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(11, 6, 40), (7, 1, 9), (2, 3, 1)])
@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_cubic_is_scipys(shape: Shape, dtype: type) -> None:
    base = volume_of(shape)
    source = Volume(np.rint(base.data).astype(dtype), base.affine)
    field = CubicField(source)
    for grid in (
        source.grid.scaled((1.3, 2.5, 0.6)),
        turned(source.grid, (1, 20, 20), 0.7, seed=3),
    ):
        points = grid.map_into(source.grid).points(grid.box)
        values = map_coordinates(
            source.data.astype(np.float64), np.moveaxis(points, -1, 0), order=3, mode="mirror"
        )
        inside = ((points >= -0.5) & (points <= np.array(shape) - 0.5)).all(axis=-1)
        np.testing.assert_allclose(field.sample(grid).data, np.where(inside, values, 0), atol=2e-3)
    np.testing.assert_allclose(field.sample(source.grid).data, source.data, atol=1e-3)


# Long work ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [40_000, 1 << 30])
@pytest.mark.parametrize("kind", ["scaled", "turned"])
def test_progress_rises_to_one(memory: int, kind: str) -> None:
    field = make("RDN", "residual", memory=memory, tile=4, points=400)
    source = volume("RDN").grid
    grid = source.scaled(1.5) if kind == "scaled" else turned(source, (5, 20, 20), 0.8, seed=4)
    told: list[tuple[float, str]] = []
    field.sample(grid, progress=lambda *what: told.append(what))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1
    assert shares.index(1) == len(shares) - 1  # not before the work is done
    assert {stage for _, stage in told} == {"encode", "decode"}
    # After each layer of the encoder, not only after the whole of it.
    layers = sum(isinstance(layer, nn.Conv3d) for layer in field._model.encoder.modules())
    assert sum(stage == "encode" for _, stage in told) >= layers - 1


def convolutions(field: NetworkField) -> list[int]:
    """A list that grows by the voxels of each convolution the field's encoder does."""
    done: list[int] = []
    for layer in field._model.encoder.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(lambda _m, _i, output: done.append(output[0, 0].numel()))
    return done


def encoded(field: NetworkField) -> list[int]:
    """A list that grows by the voxels of each pass of the field's encoder."""
    done: list[int] = []
    field._model.encoder.register_forward_hook(lambda _m, i, _o: done.append(i[0].numel()))
    return done


def after(calls: int) -> Callable[[], bool]:
    """A stop that says so once it was asked ``calls`` times."""
    asked: Iterator[int] = iter(range(10_000))
    return lambda: next(asked) >= calls


def test_it_stops_between_layers_and_goes_on_when_asked_again() -> None:
    field = make("SRResNet", "residual")
    grid = volume("SRResNet").grid.scaled(1.5)
    done = convolutions(field)
    for layers in (0, 1, 25):
        done.clear()
        with pytest.raises(Cancelled):
            field.sample(grid, stop=after(layers))
        assert len(done) == layers
    done.clear()
    assert_same(field.sample(grid).data, expected("SRResNet", "residual", grid))
    assert len(done) == 39  # and no stop of an earlier request is still asked


def test_it_stops_between_chunks_and_goes_on_when_asked_again() -> None:
    field = make("RDN", "residual", points=500)
    grid = volume("RDN").grid.scaled(1.5)
    whole = field.sample(grid).data
    told: list[float] = []
    with pytest.raises(Cancelled):
        field.sample(grid, stop=after(3), progress=lambda share, _: told.append(share))
    assert len(told) == 3
    with pytest.raises(Cancelled):
        CubicField(volume("RDN")).sample(grid, stop=lambda: True)
    assert_same(field.sample(grid).data, whole)


def test_slabs_are_the_whole_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = volume("RDN").grid.scaled(1.5)
    for field in (
        make("RDN", "residual"),
        make("RDN", "published", memory=40_000, tile=4),
        CubicField(volume("RDN")),
    ):
        whole = field.sample(grid).data
        with monkeypatch.context() as patch:
            patch.setattr(module, "_SLAB_BYTES", 3 * 4 * grid.shape[1] * grid.shape[2])
            slabs = list(field.slabs(grid))
        assert len(slabs) >= 3
        assert all(slab.dtype == np.float32 for slab in slabs)
        assert_same(np.concatenate(slabs), whole)


def test_two_requests_in_turns_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = volume("RDN").grid.scaled(1.5)
    # The same shape, so that nothing of one may pass for the other's; and features of both
    # do not fit in the cache at once.
    z, y, x = grid.shape
    grids = [grid.crop(Box((0, 0, 0), (z, y, x // 2))), grid.crop(Box((0, 0, x // 2), (z, y, x)))]
    field = make("RDN", "residual", memory=96_000, tile=4)
    monkeypatch.setattr(module, "_SLAB_BYTES", 4 * 4 * y * (x // 2))
    pairs = list(zip(*(field.slabs(grid) for grid in grids), strict=True))
    assert len(pairs) > 3
    for grid, slabs in zip(grids, zip(*pairs, strict=True), strict=True):
        assert_same(np.concatenate(slabs), expected("RDN", "residual", grid))


# Memory ---------------------------------------------------------------------------------------


def test_only_what_a_box_needs_is_encoded_and_only_once() -> None:
    field = make("RDN", "residual", tile=4)
    passes = encoded(field)
    grid = volume("RDN").grid.scaled(2)
    # Voxels 5 to 8 along x are read; in tiles 4 to 11; with the halo -4 to 19.
    field.sample(grid.crop(Box((0, 0, 11), (22, 12, 17))))
    assert sum(passes) == 11 * 6 * 20
    passes.clear()
    field.sample(grid.crop(Box((3, 2, 10), (9, 7, 18))))
    field.sample(turned(field.grid.crop(Box((4, 2, 5), (7, 4, 8))), (1, 3, 3), 0.3, seed=0))
    assert passes == []
    assert field.features.cost([Box((0, 0, 4), (11, 6, 12))]) == 0
    assert field.features.cost([Box((0, 0, 4), (11, 6, 13))]) == 11 * 6 * (16 - 12 + 2 * 8)
    field.features.clear()
    assert field.features.cost([Box((0, 0, 4), (11, 6, 12))]) == 11 * 6 * 20


def test_the_cache_stays_within_its_budget() -> None:
    model = network("RDN", "residual", feature_dim=40, blocks=1, layers=1)
    source = volume_of((16, 20, 24))
    least = NetworkField.least_memory(model, source.grid.shape, torch.float32, tile=4)
    grids = [
        source.grid.scaled(1.2),
        source.grid.scaled(0.3),
        turned(source.grid, (3, 20, 20), 1.0, seed=5),
        source.grid.scaled(1.2).crop(Box((3, 3, 3), (13, 13, 13))),
    ]
    whole = NetworkField(source, model, NORMALIZER)
    assert least < whole.features.bytes_of(source.grid.box)  # or the budget would be none
    tight = NetworkField(source, model, NORMALIZER, memory=least, tile=4)
    assert tight.features.cache_bytes < whole.features.bytes_of(source.grid.box) / 10
    assert_same(tight.sample(grids[0]).data, whole.sample(grids[0]).data)
    field = NetworkField(source, model, NORMALIZER, memory=2 * least, tile=4)
    held: list[int] = []
    for grid in grids:
        result = field.sample(grid, progress=lambda *_: held.append(field.features._held))
        assert_same(result.data, whole.sample(grid).data)
    assert max(held) <= field.features.cache_bytes
    tiles = field.features._tiles.values()
    assert field.features._held == sum(tile.untyped_storage().nbytes() for tile in tiles) > 0
    passes = encoded(field)
    field.sample(grids[-1])
    recent = sum(passes)
    field.features.clear()
    field.sample(grids[-1])
    assert recent < sum(passes) - recent  # it does keep something


class Live(TorchDispatchMode):
    """Counts what the tensors made under it hold at once, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            storage = result.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                size = storage.nbytes() // result.itemsize
                self._known.add(key)
                self.now += size
                self.largest = max(self.largest, result.numel())
                finalize(result, self._forget, key, size)
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("encoder", SHAPES)
def test_a_pass_of_a_published_encoder_holds_no_more_than_it_says(encoder: str) -> None:
    voxels = 4**3
    with torch.device("meta"):  # random numbers for millions of weights take a second
        model = build(ModelConfig(encoder=encoder)).requires_grad_(False)
    for parameter in model.to_empty(device="cpu").parameters():
        parameter.zero_()
    block = torch.zeros(1, 4, 4, 4)
    with torch.no_grad(), Live() as live:
        model.encode(block)
    assert live.largest <= 256 * voxels  # never RDN's concatenation of 512 channels
    beside_the_volume = live.peak / voxels - 1
    # The rest is scratch of the convolution library, which no tensor holds.
    assert 0.4 * model.encoder.peak_channels < beside_the_volume <= model.encoder.peak_channels


@pytest.mark.parametrize("encoder", SHAPES)
def test_the_halo_is_as_far_as_an_encoder_sees(encoder: str) -> None:
    model = build(tiny(encoder, "residual")).double().requires_grad_(False)
    for parameter in model.encoder.parameters():  # positive: nothing is cut by a ReLU
        nn.init.constant_(parameter, 1 / parameter[0].numel() if parameter.ndim > 1 else 0)
    row = torch.zeros(1, 1, 1, 2 * model.halo + 3, dtype=torch.float64)
    assert not model.encode(row).any()
    row[..., model.halo + 1] = 1
    changed = model.encode(row).all(dim=-1).flatten()
    assert changed.tolist() == [False, *[True] * (2 * model.halo + 1), False]


def errors() -> list[Exception]:
    allocator = "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: "
    return [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(allocator + "can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError(allocator + "not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ]


def limit(
    patch: pytest.MonkeyPatch, field: NetworkField, name: str, points: float, error: Exception
) -> list[int]:
    """Let a method of the field's network fail for more points; a list of what succeeded."""
    method = getattr(field._model, name)
    done: list[int] = []

    def limited(first: Tensor, *rest: Any) -> Tensor:
        if name == "encode":
            size = first.numel()
        elif name == "decode_lattice":
            size = math.prod(matrix.shape[0] for matrix in rest[0])
        else:
            size = len(rest[0])
        if size > points:
            raise error
        done.append(size)
        result: Tensor = method(first, *rest)
        return result

    patch.setattr(field._model, name, limited)
    return done


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_the_encoder_takes_smaller_blocks_when_memory_runs_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As thin as the halo is wide: the smallest block is no cube.
    source = volume_of((40, 3, 40))
    grid = source.grid.scaled(1.2)
    model = network("RDN", "residual")
    whole = NetworkField(source, model, NORMALIZER).sample(grid).data
    field = NetworkField(source, model, NORMALIZER, tile=4)
    smallest = 20 * 3 * 20
    done = limit(monkeypatch, field, "encode", smallest, error)
    assert_same(field.sample(grid).data, whole)
    assert len(done) > 4
    field.features.clear()
    done.clear()
    assert_same(field.sample(grid).data, whole)


@pytest.mark.parametrize(
    ("before", "now", "block"), [((0, 36), (48, 64), 64), ((0, 8), (16, 64), 24)]
)
def test_features_are_given_up_for_what_is_asked_now(
    before: tuple[int, int], now: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another program has taken the rest of a graphics card."""
    source = volume_of((12, 12, 64))
    model = network("RDN", "residual")
    whole = NetworkField(source, model, NORMALIZER)
    field = NetworkField(source, model, NORMALIZER, tile=4)
    first, second = (
        source.grid.crop(Box((0, 0, a), (12, 12, b))).scaled(1.2) for a, b in (before, now)
    )
    field.sample(first)
    field.features._block_voxels = 12 * 12 * block
    kept, old = field.features._held, set(field.features._tiles)
    encode = field._model.encode
    failed: list[int] = []
    done: list[int] = []

    def full(patch: Tensor) -> Tensor:
        if old & field.features._tiles.keys():
            failed.append(patch.numel())
            assert len(failed) < 9, "it tries for ever"
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        done.append(patch.numel())
        result: Tensor = encode(patch)
        return result

    monkeypatch.setattr(field._model, "encode", full)
    assert_same(field.sample(second).data, whole.sample(second).data)
    assert failed == done[:1]  # a block as large as before
    asked = field.features.bytes_of(Box((0, 0, now[0] - 1), (12, 12, now[1])))
    assert field.features._held <= asked
    assert field.features.cache_bytes == max(kept // 2, asked)
    old.clear()
    assert_same(field.sample(first).data, whole.sample(first).data)


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["scaled", "turned"])
def test_the_decoder_takes_smaller_chunks_when_memory_runs_out(
    kind: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = volume("RDN").grid
    grid = source.scaled(2) if kind == "scaled" else turned(source, (20, 30, 30), 0.6, seed=6)
    field = make("RDN", "residual", points=4000)
    name = "decode_lattice" if kind == "scaled" else "decode_points"
    done = limit(monkeypatch, field, name, 1100, error)
    assert_same(field.sample(grid).data, expected("RDN", "residual", grid))
    # Halved twice, however many chunks had been cut before.
    assert 500 < max(done) <= 1000
    assert len(done) < 4 * grid.size / 1000


@pytest.mark.parametrize("name", ["encode", "decode_lattice"])
def test_no_memory_at_all_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field = make("RDN", "residual", tile=4)
    grid = volume("RDN").grid.scaled(1.5)
    with monkeypatch.context() as patch:
        limit(patch, field, name, 0, torch.cuda.OutOfMemoryError("CUDA out of memory."))
        with pytest.raises(OutOfMemory) as caught:
            field.sample(grid)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert "not enough memory on cpu" in message
    field = make("RDN", "residual", tile=4)
    assert_same(field.sample(grid).data, expected("RDN", "residual", grid))


def test_other_errors_of_a_network_are_not_taken_for_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("encode", "decode_lattice"):
        field = make("RDN", "residual")
        limit(monkeypatch, field, name, 0, RuntimeError("shapes do not match"))
        with pytest.raises(RuntimeError, match="shapes"):
            field.sample(volume("RDN").grid.scaled(2))


def test_a_result_beyond_all_memory_is_refused_with_a_way_out() -> None:
    source = volume("RDN")
    grid = Grid((400_000,) * 3, source.affine)
    with pytest.raises(OutOfMemory, match="slab by slab"):
        CubicField(source).sample(grid)


def test_a_turned_grid_is_looked_up_by_its_corners() -> None:
    """What a request needs is found without writing down every point of it."""
    grid = turned(volume("RDN").grid, (40_000,) * 3, 0.001, seed=7)
    request = module.Request.of(grid, volume("RDN").grid)
    assert request.lattice is None
    middle = Box((20_000,) * 3, (20_003, 20_004, 20_005))
    points = request.index_map.points(middle).reshape(-1, 3)
    support = request.support(middle)
    assert (np.floor(points.min(axis=0)) == support.start).all()
    assert (np.floor(points.max(axis=0)) + 2 == support.stop).all()
    assert request.support(grid.box).size > 100


# Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", SHAPES)
def test_bfloat16_is_close_to_float32(encoder: str) -> None:
    grid = volume(encoder).grid.scaled((1.3, 1.7, 1.1))
    exact = make(encoder, "residual").sample(grid).data
    field = make(encoder, "residual", dtype=torch.bfloat16)
    close = field.sample(grid).data
    assert field.precision == "bfloat16"
    assert all(tile.dtype == torch.bfloat16 for tile in field.features._tiles.values())
    change = np.abs(exact - CubicField(volume(encoder)).sample(grid).data)
    # Eight bits of the residual; the interpolation under it stays exact.
    assert 0 < np.abs(close - exact).mean() < 0.02 * change.mean()
    same = field.sample(volume(encoder).grid).data
    np.testing.assert_allclose(same, volume(encoder).data, atol=1e-3)


def test_the_network_given_is_left_as_it_was() -> None:
    model = network("RDN", "residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make("RDN", "residual", dtype=torch.bfloat16).sample(volume("RDN").grid.scaled(1.2))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
