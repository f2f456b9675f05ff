"""Geometry, against its definition: every property is recomputed here the long way round."""

from __future__ import annotations

import math
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from affines import EXAMPLES, affines
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from in_a_file import InAFile
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from napari_arssr.errors import UsageError
from napari_arssr.volume import (
    Box,
    Grid,
    Volume,
    as_triple,
)

shapes = st.tuples(*[st.integers(1, 9)] * 3)
scales = st.tuples(*[st.floats(0.3, 4.5)] * 3)
grids = st.builds(Grid, shapes, affines())


@st.composite
def boxes(draw: DrawFn, shape: tuple[int, int, int]) -> Box:
    start = [draw(st.integers(0, n - 1)) for n in shape]
    stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    return Box(tuple(start), tuple(stop))


def indices(shape: tuple[int, int, int]) -> np.ndarray:
    """Every (z, y, x) of a shape."""
    return np.array(list(np.ndindex(*shape)), dtype=float)


def centres(grid: Grid) -> np.ndarray:
    """World positions of all voxels as nibabel computes them, in C order of (z, y, x)."""
    return apply_affine(grid.affine, indices(grid.shape)[:, ::-1])


def faces(grid: Grid) -> np.ndarray:
    """World positions of the eight outermost corners."""
    ends = [(-0.5, n - 0.5) for n in grid.shape[::-1]]
    return apply_affine(grid.affine, np.array(list(product(*ends))))


# Grid ----------------------------------------------------------------------------------------


@EXAMPLES
@given(grids)
def test_world_is_nibabels_with_the_index_reversed(grid: Grid) -> None:
    index = indices(grid.shape)
    np.testing.assert_allclose(grid.world(index), centres(grid), atol=1e-9)
    np.testing.assert_allclose(grid.index(grid.world(index)), index, atol=1e-7)


@EXAMPLES
@given(grids, scales)
def test_scaling_keeps_the_span_and_rounds_the_size(
    grid: Grid, scale: tuple[float, float, float]
) -> None:
    scaled = grid.scaled(scale)
    expected = [max(1, math.floor(n * k + 0.5)) for n, k in zip(grid.shape, scale, strict=True)]
    assert list(scaled.shape) == expected
    np.testing.assert_allclose(faces(scaled), faces(grid), atol=1e-9)
    extent = np.multiply(grid.spacing, grid.shape)
    np.testing.assert_allclose(np.multiply(scaled.spacing, scaled.shape), extent, rtol=1e-12)


@EXAMPLES
@given(grids, scales)
def test_every_output_centre_is_where_the_input_affine_says(
    grid: Grid, scale: tuple[float, float, float]
) -> None:
    scaled = grid.scaled(scale)
    # Output voxel j is the j-th of n′ equal parts of what n input voxels cover.
    inside = (indices(scaled.shape) + 0.5) * np.divide(grid.shape, scaled.shape) - 0.5
    expected = apply_affine(grid.affine, inside[:, ::-1])
    np.testing.assert_allclose(centres(scaled), expected, atol=1e-9)
    mapped = scaled.map_into(grid).points(scaled.box).reshape(-1, 3)
    np.testing.assert_allclose(mapped, inside, atol=1e-7)


@EXAMPLES
@given(grids)
def test_scale_one_is_the_identity(grid: Grid) -> None:
    same = grid.scaled(1)
    assert same.shape == grid.shape
    np.testing.assert_allclose(same.affine, grid.affine, atol=1e-12)


@EXAMPLES
@given(grids, scales)
def test_scaling_there_and_back_is_the_identity(
    grid: Grid, scale: tuple[float, float, float]
) -> None:
    back = grid.scaled(scale).with_shape(grid.shape)
    np.testing.assert_allclose(back.affine, grid.affine, atol=1e-9)


@EXAMPLES
@given(grids, st.data())
def test_a_crop_keeps_its_voxels_where_they_are(grid: Grid, data: st.DataObject) -> None:
    box = data.draw(boxes(grid.shape))
    whole = centres(grid).reshape(*grid.shape, 3)
    np.testing.assert_allclose(centres(grid.crop(box)), whole[box.slices].reshape(-1, 3), atol=1e-9)


@EXAMPLES
@given(grids, scales, st.data())
def test_box_in_holds_exactly_the_centres_inside_the_box(
    grid: Grid, scale: tuple[float, float, float], data: st.DataObject
) -> None:
    box = data.draw(boxes(grid.shape))
    scaled = grid.scaled(scale)
    found = grid.box_in(scaled, box)
    for axis in range(3):
        n, m = grid.shape[axis], scaled.shape[axis]
        # In integers: (2j + 1)·n / 2m lies in [start, stop).
        inside = [
            j
            for j in range(m)
            if 2 * m * box.start[axis] <= (2 * j + 1) * n < 2 * m * box.stop[axis]
        ]
        assert list(range(found.start[axis], found.stop[axis])) == inside
    if found.size:
        index = grid.index(centres(scaled.crop(found)))
        assert (index >= np.array(box.start) - 0.5 - 1e-6).all()
        assert (index <= np.array(box.stop) - 0.5 + 1e-6).all()


@EXAMPLES
@given(grids, scales, st.tuples(*[st.integers(1, 5)] * 3))
def test_boxes_that_tile_give_boxes_that_tile(
    grid: Grid, scale: tuple[float, float, float], tile: tuple[int, int, int]
) -> None:
    scaled = grid.scaled(scale)
    count = np.zeros(scaled.shape, int)
    for box in grid.box.blocks(tile):
        count[grid.box_in(scaled, box).slices] += 1
    assert (count == 1).all()


@EXAMPLES
@given(grids, st.floats(0.3, 4))
def test_with_spacing_comes_as_near_as_whole_voxels_can(grid: Grid, spacing: float) -> None:
    result = grid.with_spacing(spacing)
    for n, m, old in zip(grid.shape, result.shape, grid.spacing, strict=True):
        nearest = n * old / spacing
        assert m == max(1, math.floor(nearest + 0.5)) or math.isclose(nearest % 1, 0.5)
    np.testing.assert_allclose(faces(result), faces(grid), atol=1e-9)


def test_isotropic_takes_the_smallest_side() -> None:
    grid = Grid.from_spacing((24, 96, 128), (2.2, 2.0, 2.0))
    assert grid.isotropic().shape == (26, 96, 128)
    assert grid.with_spacing(0.8).shape == (66, 240, 320)


@EXAMPLES
@given(grids, st.data())
def test_box_around_holds_every_voxel_the_block_touches(grid: Grid, data: st.DataObject) -> None:
    inside = st.tuples(*[st.floats(-0.4, n - 0.6) for n in grid.shape])
    one, other = (grid.world(data.draw(inside)) for _ in range(2))
    assume((np.abs(one - other) > 1e-3).all())
    box = grid.box_around(one, other)
    assert box == grid.box_around(other, one)
    weights = np.array(list(product(np.linspace(0, 1, 5), repeat=3)))
    samples = grid.index(one + weights * (other - one))
    voxels = np.floor(samples + 0.5)
    near_face = np.abs(samples + 0.5 - np.rint(samples + 0.5)) < 1e-5
    outside = (voxels < 0) | (voxels >= grid.shape)
    missed = (voxels < box.start) | (voxels >= box.stop)
    assert not (missed & ~outside & ~near_face).any()


def test_box_around_of_whole_voxels_is_those_voxels() -> None:
    grid = Grid.from_spacing((10, 10, 10), (2, 1, 1))
    corner, opposite = grid.world([1.5, 2.5, 3.5]), grid.world([4.5, 5.5, 8.5])
    assert grid.box_around(corner, opposite) == Box((2, 3, 4), (5, 6, 9))
    assert grid.box_around((-1e300,) * 3, (1e300,) * 3) == grid.box


@pytest.mark.parametrize(
    ("corner", "opposite"),
    [
        ((50, 50, 50), (60, 60, 60)),
        ((-60, -60, -60), (-50, -50, -50)),
        ((0, 0, 0), (0, 1, 1)),
        ((0, 0, math.nan), (1, 1, 1)),
        ((0, 0, 0), (1, 1, math.inf)),
    ],
)
def test_a_block_outside_empty_or_not_finite_is_refused(
    corner: tuple[float, ...], opposite: tuple[float, ...]
) -> None:
    with pytest.raises(UsageError, match="box"):
        Grid.from_spacing((10, 10, 10), 1).box_around(corner, opposite)


def test_from_spacing_is_centred_and_keeps_the_order_of_axes() -> None:
    grid = Grid.from_spacing((3, 5, 7), (3, 2, 1))
    assert grid.spacing == (3, 2, 1)
    np.testing.assert_allclose(grid.world([1, 2, 3]), 0)
    np.testing.assert_allclose(grid.world([2, 2, 3]), [0, 0, 3])


def test_an_unoriented_stack_starts_at_right_anterior_superior() -> None:
    grid = Grid.unoriented((3, 5, 7), (3, 2, 1))
    assert grid.spacing == (3, 2, 1)
    np.testing.assert_allclose(grid.world([0, 0, 0]), [3, 4, 3])
    np.testing.assert_allclose(grid.world([2, 4, 6]), [-3, -4, -3])


@EXAMPLES
@given(grids)
def test_centred_moves_and_turns_nothing(grid: Grid) -> None:
    centred = grid.centred()
    np.testing.assert_allclose(centres(centred).mean(axis=0), 0, atol=1e-9)
    np.testing.assert_array_equal(centred.affine[:3, :3], grid.affine[:3, :3])


@EXAMPLES
@given(grids)
def test_units_scale_the_world(grid: Grid) -> None:
    np.testing.assert_allclose(
        centres(grid.in_millimetres(1e-3)), centres(grid) / 1000, rtol=1e-9, atol=1e-9
    )


@EXAMPLES
@given(grids, grids, st.data())
def test_corners_are_those_of_all_voxels(grid: Grid, other: Grid, data: st.DataObject) -> None:
    places = centres(grid).reshape(*grid.shape, 3)
    np.testing.assert_allclose(
        grid.corners, places[np.ix_(*((0, -1),) * 3)].reshape(-1, 3), atol=1e-9
    )
    box = data.draw(boxes(grid.shape))
    index_map = grid.map_into(other)
    points = index_map.points(box)[np.ix_(*((0, -1),) * 3)].reshape(-1, 3)
    np.testing.assert_allclose(index_map.corners(box), points, atol=1e-9)


@EXAMPLES
@given(grids, st.integers(0, 2))
def test_slices_together_span_what_the_grid_spans(grid: Grid, axis: int) -> None:
    outlines = grid.slice_outlines(axis)
    assert outlines.shape == (grid.shape[axis], 4, 3)
    index = grid.index(outlines)
    for number, outline in enumerate(index):
        np.testing.assert_allclose(outline[:, axis], number, atol=1e-6)
        for other in {0, 1, 2} - {axis}:
            ends = np.array([0, 0, 1, 1]) * grid.shape[other] - 0.5
            np.testing.assert_allclose(sorted(outline[:, other]), ends, atol=1e-6)
    # Going around: sides, never diagonals.
    steps = np.abs(np.diff(index, axis=1, append=index[:, :1]))
    assert ((steps > 1e-3).sum(axis=-1) == 1).all()


@EXAMPLES
@given(grids, st.tuples(*[st.floats(-3, 3)] * 3))
def test_departure_is_the_way_of_a_corner_in_voxels(
    grid: Grid, way: tuple[float, float, float]
) -> None:
    assert grid.departure(grid.affine) < 1e-9
    moved = grid.affine.copy()
    moved[:3, 3] = grid.world(way)
    assert grid.departure(moved) == pytest.approx(max(map(abs, way)), abs=1e-7)
    stretched = grid.affine.copy()
    stretched[:3, 0] *= 1.1
    # The faces lie half a voxel before the first centre and behind the last one.
    assert grid.departure(stretched) == pytest.approx(0.1 * (grid.shape[2] - 0.5), abs=1e-7)


def test_single_slices_of_another_thickness_are_not_the_same_grid() -> None:
    thin = Grid((1, 5, 6), np.diag([2.0, 2.0, 1.0, 1.0]))
    thick = Grid((1, 5, 6), np.diag([2.0, 2.0, 5.0, 1.0]))
    assert thin != thick
    assert thin.departure(thick.affine) == pytest.approx(2)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((0, 3, 3), np.eye(4), "at least 1"),
        ((3, 3), np.eye(4), "three sizes"),
        ((3, 3, 3), np.eye(3), "4×4"),
        ((3, 3, 3), np.diag([1, 1, np.nan, 1]), "finite"),
        ((3, 3, 3), np.diag([1, 0, 1, 1]), "voxel size is zero"),
        ((3, 3, 3), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "same"),
        ((3, 3, 3), np.diag([1, 1, 1, 2]), "last row"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(shape: tuple, affine: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Grid(shape, affine)


def test_a_tiny_grid_is_not_singular() -> None:
    assert Grid((3, 3, 3), np.diag([1e-6, 1e-6, 1e-6, 1])).spacing == (1e-6, 1e-6, 1e-6)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf, (1, 2), "two", None, (1, 1, None)])
def test_a_scale_that_cannot_be_is_refused(scale: object) -> None:
    with pytest.raises(UsageError, match="scale"):
        Grid.from_spacing((4, 4, 4), 1).scaled(scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1e308, 2.0**40])
def test_a_result_beyond_all_computers_is_refused(size: float) -> None:
    grid = Grid.from_spacing((4, 4, 4), 1)
    with pytest.raises(UsageError, match=r"scale .* too large"):
        grid.scaled(size)
    with pytest.raises(UsageError, match=r"spacing .* too small"):
        grid.with_spacing(1 / size)
    with pytest.raises(UsageError, match="too large"):
        grid.with_shape((4, 4, int(size) + 1))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 4), (0, 4, 4), (-1, 4, 4)])
def test_a_shape_that_cannot_be_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="three sizes"):
        Grid.from_spacing((4, 4, 4), 1).with_shape(shape)


@pytest.mark.parametrize("spacing", [0, -0.5, math.nan, (1, 0, 1)])
def test_a_spacing_that_cannot_be_is_refused(spacing: object) -> None:
    with pytest.raises(UsageError, match="spacing"):
        Grid.from_spacing((4, 4, 4), 1).with_spacing(spacing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "box", [Box((0, 0, 0), (5, 4, 4)), Box((-1, 0, 0), (4, 4, 4)), Box((2, 2, 2), (2, 4, 4))]
)
def test_a_crop_outside_or_empty_is_refused(box: Box) -> None:
    with pytest.raises(UsageError, match="box"):
        Grid.from_spacing((4, 4, 4), 1).crop(box)


def test_one_number_stands_for_three() -> None:
    assert as_triple(2) == (2, 2, 2)
    assert as_triple(np.float32(2)) == (2, 2, 2)
    assert as_triple([1, 2, 3]) == (1, 2, 3)
    assert as_triple(np.array([1, 2, 3])) == (1, 2, 3)


def test_grids_are_equal_within_what_a_header_can_hold() -> None:
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3))
    stored = Grid(grid.shape, grid.affine.astype(np.float32))
    moved = Grid(grid.shape, grid.affine + np.diag([1e-3, 0, 0, 0]))
    assert grid == stored
    assert grid != moved
    assert grid != Grid((4, 5, 7), grid.affine)


@pytest.mark.parametrize("side", [4e-6, 1e-4, 1.0, 1e3])  # from nanometres on
def test_grids_differ_by_a_hundredth_of_a_voxel_at_any_size(side: float) -> None:
    grid = Grid.from_spacing((30, 40, 50), side)
    moved, larger = grid.affine.copy(), grid.affine.copy()
    moved[0, 3] += 0.01 * side
    larger[:3, :3] *= 1.001
    assert grid != Grid(grid.shape, moved)
    assert grid != Grid(grid.shape, larger)
    assert grid == Grid(grid.shape, grid.affine.astype(np.float32))


def test_the_box_around_a_mask_holds_it_and_no_plane_more() -> None:
    mask = np.zeros((7, 8, 9), bool)
    mask[2, 3, 4] = mask[5, 6, 1] = True
    assert Box.around(mask) == Box((2, 3, 1), (6, 7, 5))


@EXAMPLES
@given(grids, st.data())
def test_a_grid_holds_what_lies_between_its_outer_faces(grid: Grid, data: st.DataObject) -> None:
    inside = [data.draw(st.floats(-0.5, n - 0.5)) for n in grid.shape]
    assert grid.holds(np.array([inside])).all()
    axis = data.draw(st.integers(0, 2))
    beyond = list(inside)
    beyond[axis] = grid.shape[axis] - 0.49
    assert not grid.holds(np.array([beyond])).any()


@EXAMPLES
@given(grids)
def test_a_napari_affine_finds_back_to_its_grid(grid: Grid) -> None:
    # -(S, A, R) of every voxel, by nibabel.
    places = -centres(grid)[:, ::-1]
    np.testing.assert_allclose(
        apply_affine(grid.napari_affine, indices(grid.shape)), places, atol=1e-9
    )
    found = Grid.from_napari(grid.shape, grid.napari_affine)
    assert found.shape == grid.shape
    np.testing.assert_array_equal(found.affine, grid.affine)


def test_a_plane_becomes_a_slice_as_thick_as_its_pixels_are_wide() -> None:
    turn = np.deg2rad(30)
    plane = np.eye(3)
    plane[:2, :2] = [[np.cos(turn) * 2, -np.sin(turn) * 3], [np.sin(turn) * 2, np.cos(turn) * 3]]
    plane[:2, 2] = [5, 7]  # (P, L) of the first pixel
    grid = Grid.from_napari((4, 6), plane)
    assert grid.shape == (1, 4, 6)
    np.testing.assert_allclose(grid.spacing, (3, 2, 3))
    posterior, left = apply_affine(plane, [1, 2])
    np.testing.assert_allclose(grid.world([0, 1, 2]), [-left, -posterior, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4,), np.eye(2), "1 axes"),
        ((2, 3, 4, 5), np.eye(5), "4 axes"),
        ((2, 3, 4), np.eye(3), "does not place 3"),
        ((3, 4), np.zeros((3, 3)) + np.diag([0, 0, 1]), "voxel size is zero"),
    ],
)
def test_a_napari_affine_of_no_grid_is_refused(
    shape: tuple[int, ...], affine: np.ndarray, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Grid.from_napari(shape, affine)


@EXAMPLES
@given(grids, st.tuples(*[st.integers(1, 5)] * 3))
def test_thinning_keeps_every_nth_voxel_where_it_is(
    grid: Grid, steps: tuple[int, int, int]
) -> None:
    z, y, x = steps
    kept = centres(grid).reshape(*grid.shape, 3)[::z, ::y, ::x]
    thin = grid.thinned(steps)
    assert thin.shape == kept.shape[:3]
    np.testing.assert_allclose(centres(thin), kept.reshape(-1, 3), atol=1e-9)


def test_thinning_by_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Grid.from_spacing((4, 4, 4), 1).thinned((1, 0, 1))


# IndexMap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
def test_every_orientation_of_one_volume_is_aligned(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    source = Grid.from_spacing((5, 6, 7), (2, 1, 0.5))
    turned = np.eye(4)
    turned[:3, :3] = np.diag(signs)[:, order] * 0.75
    sampled = Grid((3, 4, 5), turned)
    index_map = sampled.map_into(source)
    axes = index_map.axes
    assert axes is not None
    points = index_map.points(sampled.box)
    np.testing.assert_allclose(
        points, source.index(centres(sampled)).reshape(*sampled.shape, 3), atol=1e-9
    )
    for axis in range(3):
        along = index_map.coordinates(axis, 0, sampled.shape[axes[axis]])
        shape = [1, 1, 1]
        shape[axes[axis]] = -1
        expected = np.broadcast_to(along.reshape(shape), sampled.shape)
        np.testing.assert_allclose(points[..., axis], expected, atol=1e-9)
    np.testing.assert_allclose(index_map.cell, [0.75 / 2, 0.75, 1.5])


def test_an_oblique_grid_is_not_aligned() -> None:
    source = Grid.from_spacing((5, 6, 7), 1)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix()
    index_map = Grid((5, 6, 7), turned).map_into(source)
    assert index_map.axes is None
    with pytest.raises(ValueError, match="points"):
        index_map.coordinates(0, 0, 3)


# Box -----------------------------------------------------------------------------------------


@EXAMPLES
@given(shapes, st.tuples(*[st.integers(1, 5)] * 3), st.data())
def test_blocks_tile_a_box_in_order(
    shape: tuple[int, int, int], block: tuple[int, int, int], data: st.DataObject
) -> None:
    box = data.draw(boxes(shape))
    count = np.zeros(shape, int)
    starts = []
    for part in box.blocks(block):
        assert all(0 < n <= most for n, most in zip(part.shape, block, strict=True))
        assert part.size == math.prod(part.shape)
        count[part.slices] += 1
        starts.append(part.start)
    assert (count[box.slices] == 1).all()
    assert count.sum() == box.size
    assert starts == sorted(starts)


@EXAMPLES
@given(shapes, st.integers(0, 4), st.data())
def test_a_grown_box_holds_what_is_near_and_stays_inside(
    shape: tuple[int, int, int], margin: int, data: st.DataObject
) -> None:
    box = data.draw(boxes(shape))
    index = indices(shape)
    distance = np.maximum(np.array(box.start) - index, index - (np.array(box.stop) - 1)).max(axis=1)
    near = (distance <= margin).reshape(shape)
    expected = np.zeros(shape, bool)
    expected[box.grown(margin, shape).slices] = True
    np.testing.assert_array_equal(near, expected)


def test_a_box_grows_by_a_margin_of_its_own_along_each_axis() -> None:
    box = Box((3, 4, 5), (6, 7, 8))
    assert box.grown((1, 0, 9), (9, 9, 9)) == Box((2, 4, 0), (7, 7, 9))


def test_relative_boxes_count_from_another_voxel() -> None:
    assert Box((3, 4, 5), (6, 7, 8)).relative_to((1, 2, 3)) == Box((2, 2, 2), (5, 5, 5))


# Volume --------------------------------------------------------------------------------------


@EXAMPLES
@given(affines(), st.data())
def test_a_cropped_volume_keeps_values_and_places(affine: np.ndarray, data: st.DataObject) -> None:
    values = np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    volume = Volume(values, affine, time_step=2.0)
    box = data.draw(boxes((4, 5, 6)))
    part = volume.crop(box)
    np.testing.assert_array_equal(part.data, values[:, *box.slices])
    np.testing.assert_allclose(part.affine, volume.grid.crop(box).affine)
    assert part.time_step == 2.0


def test_frames_are_volumes_of_their_own() -> None:
    series = Volume(np.arange(120).reshape(2, 3, 4, 5), np.eye(4), time_step=1.5, name="series")
    assert series.frames == 2
    assert series.frame(1).data.shape == (3, 4, 5)
    assert series.frame(1).data[0, 0, 0] == 60
    assert series.frame(1).time_step == 0
    with pytest.raises(UsageError, match=r"series.*no frame 2.*0 to 1"):
        series.frame(2)
    single = series.frame(0)
    assert single.frame(0) is single


def test_slabs_of_what_lies_in_chunks_end_where_those_do(monkeypatch) -> None:
    data = np.arange(50 * 3 * 4, dtype=np.int16).reshape(50, 3, 4)
    for voxels, thickness in ((12, 7), (12 * 10, 7), (12 * 15, 14)):
        stored: Any = InAFile(data, 7)
        slabs = list(Volume(stored, np.eye(4)).slabs(voxels))
        assert [slab.grid.shape[0] for slab in slabs[:-1]] == [thickness] * (len(slabs) - 1)
        np.testing.assert_array_equal(np.concatenate([slab.data for slab in slabs]), data)
    monkeypatch.setattr("napari_arssr.lazy.LARGE", 100)  # bytes: no chunk may be held
    assert len(list(Volume(InAFile(data, 7), np.eye(4)).slabs(12))) == 50


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), voxels=st.integers(1, 100))
def test_slabs_are_all_planes_in_order_each_in_its_place(
    shape: tuple[int, ...], voxels: int
) -> None:
    series = Volume(np.arange(np.prod(shape)).reshape(shape), np.diag([2.0, 3.0, 4.0, 1.0]))
    slabs = list(series.slabs(voxels))
    planes = np.concatenate([slab.data for slab in slabs])
    np.testing.assert_array_equal(planes, series.data.reshape(-1, *shape[2:]))
    assert all(slab.data.base is not None for slab in slabs)  # no copies
    assert all(slab.data.size <= voxels or len(slab.data) == 1 for slab in slabs)
    second = slabs[len(slabs) // shape[0] - 1]  # the last of the first frame
    first_plane = shape[1] - len(second.data)
    np.testing.assert_allclose(second.grid.world([0, 0, 0]), series.grid.world([first_plane, 0, 0]))


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 2, 3, 4, 5), (0, 3, 3)])
def test_an_array_that_is_no_volume_is_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="scan"):
        Volume(np.zeros(shape), np.eye(4), name="scan")


def test_a_volume_with_a_singular_affine_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"scan.*singular"):
        Volume(np.zeros((3, 3, 3)), np.zeros((4, 4)) + np.diag([0, 0, 0, 1]), name="scan")


def test_the_affine_cannot_be_changed_from_outside() -> None:
    affine = np.eye(4)
    volume = Volume(np.zeros((3, 3, 3)), affine)
    affine[0, 0] = 5
    assert volume.spacing == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 0] = 5


def test_a_thinned_volume_keeps_values_and_places() -> None:
    values = np.arange(2 * 5 * 6 * 7).reshape(2, 5, 6, 7)
    volume = Volume(values, Grid.from_spacing((5, 6, 7), (1, 2, 3)).affine, time_step=2)
    thin = volume.thinned((2, 1, 3))
    np.testing.assert_array_equal(thin.data, values[:, ::2, :, ::3])
    assert thin.grid == volume.grid.thinned((2, 1, 3))
    assert thin.time_step == 2


# Volume, as a napari layer --------------------------------------------------------------------


@EXAMPLES
@given(affines(), st.floats(0.01, 100), st.booleans())
def test_a_layers_volume_is_the_one_it_was_made_of(
    affine: np.ndarray, time_step: float, series: bool
) -> None:
    data = np.zeros((5, 2, 3, 4) if series else (2, 3, 4))
    volume = Volume(data, affine, time_step=time_step if series else 0.0)
    found = Volume.from_napari(
        data, volume.napari_affine, [1] * data.ndim, series=series, name="a", metadata={"b": 1}
    )
    assert found.data is data
    np.testing.assert_array_equal(found.affine, volume.affine)
    assert found.time_step == pytest.approx(volume.time_step)
    assert (found.name, found.metadata) == ("a", {"b": 1})


def test_every_axis_of_a_layers_world_has_its_unit() -> None:
    data = np.zeros((2, 3, 4, 5))
    affine = np.diag([30.0, 4, 5, 6, 1])
    volume = Volume.from_napari(data, affine, [0.001, 0.001, 1, 25.4], series=True)
    assert volume.time_step == pytest.approx(0.03)
    np.testing.assert_allclose(volume.spacing, (0.004, 5, 6 * 25.4))


@pytest.mark.parametrize(("step", "seconds"), [(1.0, 0.0), (2.5, 2.5)])
def test_a_time_without_a_unit_counts_frames_unless_it_has_a_step(
    step: float, seconds: float
) -> None:
    affine = np.diag([step, 1, 1, 1, 1])
    volume = Volume.from_napari(np.zeros((2, 2, 2, 2)), affine, [None, 1, 1, 1], series=True)
    assert volume.time_step == seconds
    assert volume.napari_affine[0, 0] == step


def test_planes_in_time_are_frames_of_one_slice() -> None:
    data = np.arange(24).reshape(2, 3, 4)
    volume = Volume.from_napari(data, np.diag([2.0, 3, 3, 1]), [1, 1, 1], series=True)
    np.testing.assert_array_equal(volume.data, data[:, None])
    assert volume.time_step == 2


MIRRORED = np.diag([-1.0, 1, 1, 1, 1])
DRIFTING = np.eye(5)
DRIFTING[2, 0] = 0.5
SHEARED = np.eye(5)
SHEARED[0, 3] = 0.5


@pytest.mark.parametrize(
    ("shape", "affine", "series", "message"),
    [
        ((2, 2, 2, 2), MIRRORED, True, "turn or mirror the axis of time"),
        ((2, 2, 2, 2), DRIFTING, True, "turn or mirror the axis of time"),
        ((2, 2, 2, 2), SHEARED, True, "turn or mirror the axis of time"),
        ((2, 2, 2, 2), np.full((5, 5), np.nan), True, "finite"),
        ((2, 2, 2, 2), np.eye(5), False, "4 axes"),
        ((2, 2, 2, 2, 2), np.eye(6), True, "5 axes"),
        ((4,), np.eye(2), False, "1 axes"),
        ((2, 0, 2), np.eye(4), False, "empty"),
        ((2, 2, 2), np.diag([1, 0, 1, 1]), False, "singular"),
        ((2, 2, 2), np.full((4, 4), np.inf), False, "finite"),
        ((2, 2, 2), np.eye(3), False, "not those of 3 axes"),
    ],
)
def test_a_layer_that_shows_no_volume_is_refused_by_name(
    shape: tuple[int, ...], affine: np.ndarray, series: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=f"photo.*{message}"):
        Volume.from_napari(np.zeros(shape), affine, [1] * len(shape), series=series, name="photo")


def test_a_napari_affine_may_count_in_micrometres() -> None:
    volume = Volume(np.zeros((5, 2, 3, 4)), np.diag([1, 2, 3, 1]), time_step=2)
    expected = np.diag([1.0, 1000, 1000, 1000, 1]) @ volume.napari_affine
    np.testing.assert_allclose(volume.napari_affine_in(0.001), expected)


@EXAMPLES
@given(affines(), st.permutations(range(3)), st.permutations(range(3)), st.booleans())
def test_transposed_voxels_keep_their_places_and_find_back(
    affine: np.ndarray, first: list[int], second: list[int], series: bool
) -> None:
    shape = (2, 3, 4, 5) if series else (3, 4, 5)
    volume = Volume(np.arange(math.prod(shape)).reshape(shape), affine, metadata={"a": 1})
    turned = volume.transposed(first).transposed(second)
    assert turned.grid.shape == tuple(volume.grid.shape[first[axis]] for axis in second)
    before = dict(
        zip(frame(volume).ravel(), map(tuple, centres(volume.grid).round(6)), strict=True)
    )
    after = dict(zip(frame(turned).ravel(), map(tuple, centres(turned.grid).round(6)), strict=True))
    for value, place in before.items():
        np.testing.assert_allclose(after[value], place, atol=1e-5)
    for found in (turned.in_storage_order(), volume.along_world_axes().in_storage_order()):
        np.testing.assert_array_equal(found.data, volume.data)
        np.testing.assert_array_equal(found.affine, volume.affine)
        assert np.shares_memory(found.data, volume.data)
        assert found.metadata["a"] == 1


def frame(volume: Volume) -> np.ndarray:
    return volume.data[0] if volume.data.ndim == 4 else volume.data


@pytest.mark.parametrize("order", [None, "abc", (0, 0, 1), (0, 1), [2, 1, 0, 3], 7, [[0], 1, 2]])
def test_a_storage_order_that_is_none_says_nothing(order: object) -> None:
    volume = Volume(np.zeros((2, 3, 4)), np.eye(4), metadata={"storage_order": order})
    assert volume.in_storage_order().data.shape == (2, 3, 4)


def test_an_order_of_axes_must_be_one() -> None:
    with pytest.raises(UsageError, match="permutation"):
        Volume(np.zeros((2, 3, 4)), np.eye(4)).transposed((0, 0, 1))


# Boxes by hand -------------------------------------------------------------------------------


def test_a_box_can_have_another_range_along_an_axis() -> None:
    box = Box((1, 2, 3), (4, 5, 6))
    assert box.with_range(1, 0, 9) == Box((1, 0, 3), (4, 9, 6))
    assert box == Box((1, 2, 3), (4, 5, 6))


def test_what_two_boxes_have_in_common_is_in_both() -> None:
    one, other = Box((0, 0, 0), (4, 5, 6)), Box((2, 3, 1), (9, 9, 2))
    assert one.common(other) == other.common(one) == Box((2, 3, 1), (4, 5, 2))
    assert one.common(Box((4, 0, 0), (5, 5, 6))) is None


@EXAMPLES
@given(grids, st.data())
def test_a_snapped_box_keeps_its_size_when_it_is_moved(grid: Grid, data: st.DataObject) -> None:
    box = data.draw(boxes(grid.shape))
    corners = np.array([box.start, box.stop]) - 0.5
    assert grid.box_snapped(corners) == box
    moved = [data.draw(st.floats(-0.49, 0.49)) for _ in range(3)]
    assert grid.box_snapped(corners + moved) == box


def test_a_snapped_box_has_a_voxel_at_least_and_lies_in_the_grid() -> None:
    grid = Grid.from_spacing((10, 10, 10), 1)
    flat = [[4.0, 2.2, 3.4], [4.0, 2.3, 3.45]]
    assert grid.box_snapped(flat) == Box((4, 2, 3), (5, 3, 4))
    assert grid.box_snapped([[-1e300, 2.9, 8.6], [4.4, 4.9, 1e300]]) == Box((0, 3, 9), (5, 5, 10))
    assert grid.box_snapped([[12.0, 0, 0], [14.0, 5, 5]]) is None
    assert grid.box_snapped([[-3.0, 0, 0], [-1.0, 5, 5]]) is None


@EXAMPLES
@given(grids, st.integers(0, 2), st.data())
def test_a_cubed_box_is_as_deep_as_its_shorter_side(
    grid: Grid, axis: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, grid.shape[axis] - 1))
    flat = data.draw(boxes(grid.shape)).with_range(axis, number, number + 1)
    cubed = grid.cubed(flat, axis, number)
    assert cubed.with_range(axis, number, number + 1) == flat
    assert 0 <= cubed.start[axis] <= number < cubed.stop[axis] <= grid.shape[axis]
    lengths = np.array(cubed.shape) * grid.spacing
    shorter = min(length for other, length in enumerate(lengths) if other != axis)
    deepest = grid.shape[axis] * grid.spacing[axis]
    wanted = np.clip(shorter, grid.spacing[axis], deepest)
    assert abs(lengths[axis] - wanted) <= grid.spacing[axis] / 2 + 1e-9
