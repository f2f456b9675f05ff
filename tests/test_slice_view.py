"""What a window shows of a slice, against its definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from affines import EXAMPLES, affines
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_arssr.errors import UsageError
from napari_arssr.slice_view import SliceView, affine_of_part, spatial_indices
from napari_arssr.volume import Box, Grid


def window(
    grid: Grid,
    affine: np.ndarray | None = None,
    shown: tuple[int, int] = (1, 2),
    index: tuple[float, ...] = (3, 0, 0),
    **settings: object,
) -> SliceView:
    """A view of a layer that is placed by ``affine``, or counts voxels, cut at an index."""
    affine = np.eye(4) if affine is None else affine
    point = (affine @ [*index, 1])[:-1]
    return SliceView.of(grid, affine, shown, point, **settings)


TURNED = np.eye(4)
TURNED[1:3, 1:3] = 0.5 * Rotation.from_euler("z", 25, degrees=True).as_matrix()[:2, :2]
TURNED[1:3, 3] = 4, -7


@pytest.mark.parametrize("shown", [(1, 2), (2, 1), (0, 2), (0, 1), (2, 0)])
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([3.0, -2.0, 0.5, 1]), TURNED])
def test_the_box_in_view_holds_what_the_canvas_shows(
    affine: np.ndarray, shown: tuple[int, int]
) -> None:
    if affine is TURNED and shown not in ((1, 2), (2, 1)):
        return  # napari draws such a slice as if it were not turned; see below
    grid = Grid.from_spacing((20, 30, 40), 1)
    index = np.array([7.0, 11, 17])
    centre = (affine @ [*index, 1])[list(shown)]
    view = window(grid, affine, shown, tuple(index), centre=centre, zoom=9.0, canvas=(70, 90))
    across = ({0, 1, 2} - set(shown)).pop()
    assert view.across == across
    assert view.number == index[across]
    inverse = np.linalg.inv(affine)
    low = np.full(3, np.inf)
    high = -low
    for row, column in product(np.linspace(-35, 35, 71), np.linspace(-45, 45, 91)):
        world = (affine @ [*index, 1])[:3]
        world[list(shown)] = centre + np.array([row, column]) / 9
        here = (inverse @ [*world, 1])[:3]
        low, high = np.minimum(low, here), np.maximum(high, here)
    assert view.box is not None
    start = np.clip(np.floor(low + 0.5 + 1e-6), 0, grid.shape)
    stop = np.clip(np.floor(high + 0.5 - 1e-6) + 1, 0, grid.shape)
    assert view.box.start == tuple(start)
    assert view.box.stop == tuple(stop)
    assert np.prod(view.voxel_pixels) == pytest.approx(
        81 * abs(np.linalg.det(affine[np.ix_(shown, shown)]))
    )


def test_an_oblique_slice_is_taken_to_be_drawn_as_if_it_were_not() -> None:
    """As napari does: the world's part that leans out of the drawn plane is dropped."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, 10, -15], degrees=True).as_matrix() * [3, 1, 1]
    affine[:3, 3] = 5, -8, 2
    grid = Grid.from_spacing((20, 30, 40), 1)
    inverse = np.linalg.inv(affine)
    point = np.array([(6.0 - inverse[0, 3]) / inverse[0, 0], 0, 0])
    view = SliceView.of(grid, affine, (1, 2), point, centre=(1.0, 2.0), zoom=4, canvas=(8, 8))
    assert view.number == 6
    drawn = affine[1:3, 1:3] @ [11.0, 13.5] + affine[1:3, 3]
    np.testing.assert_allclose(view.index(drawn), [6, 11, 13.5])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"shown": (0, 1), "series": True, "frames": 5}, "does not show two axes of its space"),
        ({"shown": (-1, 2)}, "does not show two axes of its space"),
        ({"shown": (1, 2), "index": (-0.6, 0, 0)}, "beside"),
        ({"shown": (1, 2), "index": (9.6, 0, 0)}, "beside"),
        ({"affine": np.eye(4)[[2, 1, 0, 3]]}, "edge on"),
    ],
)
def test_a_view_that_shows_no_slice_says_why(settings: dict[str, object], reason: str) -> None:
    grid = Grid.from_spacing((10, 10, 10), 1)
    if settings.get("series"):
        settings |= {"affine": np.eye(5), "index": (0, 0, 0, 0)}
    with pytest.raises(UsageError, match=reason):
        window(grid, **settings)


def test_time_says_which_frame_and_planes_are_slice_0() -> None:
    grid = Grid.from_spacing((10, 12, 14), 1)
    view = window(grid, np.eye(5), (1, 3), (4.2, 0, 6.9, 0), series=True, frames=5)
    assert (view.frame, view.number, view.axes, view.across) == (4, 7, (0, 2), 1)
    assert view.layer_shape == (5, 10, 12, 14)
    plane = Grid.from_spacing((1, 12, 14), 1)
    view = window(plane, np.eye(3), (0, 1), (0, 0))
    assert (view.frame, view.number, view.axes, view.layer_shape) == (0, 0, (1, 2), (12, 14))
    view = window(plane, np.eye(4), (1, 2), (2, 0, 0), series=True, frames=5)
    assert (view.frame, view.number, view.axes, view.layer_shape) == (2, 0, (1, 2), (5, 12, 14))
    assert spatial_indices([[2, 3, 4]], series=True).tolist() == [[0, 3, 4]]
    assert spatial_indices([[3, 4]], series=False).tolist() == [[0, 3, 4]]
    assert spatial_indices([[9, 2, 3, 4]], series=True).tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("zoom", [0.7, 1.3, 2.5, 7.31, 150.0])
@pytest.mark.parametrize("shown", [(1, 2), (2, 0)])
def test_a_patch_is_a_part_of_the_whole_grid_as_fine_as_the_screen(
    zoom: float, shown: tuple[int, int]
) -> None:
    affine = np.diag([2.0, 1.0, 1.5, 1])
    grid = Grid((20, 30, 40), np.diag([-1.5, -1.0, -2.0, 1]))
    view = window(grid, affine, shown, (7, 9, 11), centre=(20, 25), zoom=zoom, canvas=(63, 85))
    patch = view.patch()
    assert patch is not None
    whole = list(grid.shape)
    for axis in shown:
        whole[axis] = max(grid.shape[axis], round(grid.shape[axis] * affine[axis, axis] * zoom))
    full = grid.with_shape(whole)
    start = np.rint(full.index(patch.grid.world([0, 0, 0]))).astype(int)
    box = Box(tuple(start), tuple(start + patch.grid.shape))
    assert patch.grid == full.crop(box)
    assert patch.grid.shape[view.across] == 1
    assert start[view.across] == view.number
    first = np.array([0, 0, 0])
    last = np.array(patch.grid.shape) - 1
    for voxel in (first, last):
        here = grid.index(patch.grid.world(voxel))
        np.testing.assert_allclose(here, np.array(patch.start) + voxel * patch.step, atol=1e-9)
    # It covers what is seen of the slice, and hardly more.
    pixels = [affine[axis, axis] * zoom for axis in shown]
    for axis, low, high, pixel in zip(shown, view.low, view.high, pixels, strict=True):
        ends = np.clip(np.array([low, high]) / affine[axis, axis], -0.5, grid.shape[axis] - 0.5)
        covered = (
            patch.start[axis] - patch.step[axis] / 2,
            patch.step[axis] * patch.grid.shape[axis],
        )
        assert covered[0] <= ends[0] + 1e-9
        assert covered[0] + covered[1] >= ends[1] - 1e-9
        assert covered[1] <= ends[1] - ends[0] + 2.01 * patch.step[axis]
        if pixel > 1:
            assert patch.step[axis] * pixel == pytest.approx(1, abs=0.03)


def test_there_is_no_patch_where_pixels_are_no_smaller_than_voxels() -> None:
    grid = Grid.from_spacing((20, 30, 40), 1)
    assert window(grid, zoom=1.0, canvas=(50, 50)).patch() is None
    assert window(grid, zoom=3.0, canvas=(50, 50)).patch(0.25) is None
    assert window(grid, zoom=8.0, canvas=(50, 50), centre=(500, 0)).patch() is None
    # Coarse in one direction only: there is something to gain along that one.
    thick = window(grid, np.diag([5.0, 1, 1, 1]), (0, 2), (3, 4, 5), zoom=0.9, canvas=(99, 99))
    patch = thick.patch()
    assert patch is not None
    assert patch.step[0] == pytest.approx(1 / 4.5)
    assert patch.step[2] == 1


def test_a_patch_has_no_more_voxels_than_allowed() -> None:
    grid = Grid.from_spacing((20, 300, 400), 1)
    view = window(grid, zoom=40.0, canvas=(3000, 4000), centre=(150, 200))
    patch = view.patch(most=100_000)
    assert patch is not None
    assert 90_000 < patch.grid.size <= 100_000


@EXAMPLES
@given(affines(), st.sampled_from([(1, 2), (2, 1), (0, 2), (1, 0)]))
def test_what_is_placed_on_a_layer_is_cut_and_drawn_as_the_layer(
    affine: np.ndarray, shown: tuple[int, int]
) -> None:
    grid = Grid.from_spacing((9, 9, 9), 1)
    inverse = np.linalg.inv(affine)
    across = ({0, 1, 2} - set(shown)).pop()
    assume(abs(inverse[across, across]) > 0.1 * np.linalg.norm(inverse[across, :3]))
    point = np.zeros(3)
    point[across] = (4.2 - inverse[across, 3]) / inverse[across, across]
    try:
        view = SliceView.of(grid, affine, shown, point, zoom=200, canvas=(300, 400))
    except UsageError:
        assume(False)
        raise
    start, step = [0.3, 1.7, 2.2], [0.25, 0.5, 0.125]
    placed = view.placed(affine, start, step)
    # Cut: the same number across, at the same place of the world.
    cut = np.linalg.inv(placed)[across, across] * point[across] + np.linalg.inv(placed)[across, 3]
    assert cut == pytest.approx(4.2, abs=1e-6)
    # Drawn: napari uses the part between the drawn axes and drops the rest.
    index = np.array([3.0, 5.0, 7.0])
    there = np.array([4.2, 4.2, 4.2])
    there[list(shown)] = (np.array(start) + index * step)[list(shown)]
    ours = placed[np.ix_(shown, shown)] @ index[list(shown)] + placed[list(shown), 3]
    its = affine[np.ix_(shown, shown)] @ there[list(shown)] + affine[list(shown), 3]
    np.testing.assert_allclose(ours, its, atol=1e-9)


def test_the_outline_of_a_box_is_its_section() -> None:
    grid = Grid.from_spacing((20, 30, 40), 1)
    box = Box((2, 3, 4), (6, 8, 10))
    view = window(grid, np.eye(5), (1, 3), (2, 0, 5, 0), series=True, frames=4)
    assert view.outline(box).tolist() == [
        [2, 1.5, 5, 3.5],
        [2, 1.5, 5, 9.5],
        [2, 5.5, 5, 9.5],
        [2, 5.5, 5, 3.5],
    ]
    assert window(grid, np.eye(4), (0, 2), (0, 8, 0)).outline(box) is None


def test_edges_are_gripped_within_reach_and_dragged_to_the_mouse() -> None:
    grid = Grid.from_spacing((20, 30, 40), 1)
    box = Box((2, 3, 4), (6, 8, 10))
    view = window(grid, np.diag([1.0, 2, 2, 1]), index=(3, 0, 0), zoom=5.0, canvas=(400, 400))
    # A voxel is 10 pixels: 0.5 voxels are 5 pixels.
    assert view.grip(box, (2 * 2.5, 2 * 6.0), 6) == (-1, 0)
    assert view.grip(box, (2 * 7.9, 2 * 9.0), 6) == (1, 1)
    assert view.grip(box, (2 * 5.0, 2 * 3.0), 6) == (0, -1)
    assert view.grip(box, (2 * 5.0, 2 * 6.5), 6) is None
    assert view.grip(box, (2 * 2.5, 2 * 12.0), 6) is None
    assert window(grid, index=(9, 0, 0)).grip(box, (2.5, 6.0), 6) is None
    # A box of one voxel, seen small: the nearer edge.
    assert view.grip(Box((3, 5, 5), (4, 6, 6)), (2 * 5.0, 2 * 4.6), 6) in ((0, -1), (-1, -1))
    corners = view.dragged(box, (1, 0), (2 * 12.25, 2 * 99.0))
    assert corners.tolist() == [[3, 2.5, 3.5], [3, 12.25, 9.5]]
    assert view.line_width(2) == pytest.approx(0.2)
    assert view.pixels_between((1, 1), (4, 5)) == pytest.approx(25)


@pytest.mark.parametrize(
    ("affine", "shown", "part"),
    [
        (np.eye(4), (1, 2), ((0, 20), (0, 30), (0, 13))),
        (np.diag([1.0, 1, -1, 1]), (1, 2), ((0, 20), (0, 30), (28, 40))),
        (np.eye(4), (2, 1), ((0, 20), (0, 13), (0, 40))),
    ],
)
def test_a_line_down_the_canvas_cuts_between_voxels(
    affine: np.ndarray, shown: tuple[int, int], part: tuple[tuple[int, int], ...]
) -> None:
    grid = Grid.from_spacing((20, 30, 40), 1)
    sign = affine[shown[1], shown[1]]
    middle = 20.0 if sign > 0 else -20.0
    view = window(grid, affine, shown, (3, 0, 0), centre=(15, middle), zoom=10, canvas=(100, 300))
    assert view.width == pytest.approx(300)
    assert view.share(middle) == pytest.approx(0.5)
    # A quarter of 300 pixels is 7.5 voxels left of the middle.
    assert view.left_of(0.25) == part
    assert view.left_of(-9.0) is None
    start, step = view.dividing_line(0.25, 2)
    cut = shown[1]
    edge = part[cut][1] if sign > 0 else part[cut][0]
    assert start[cut] == edge - 0.5
    assert step[cut] == pytest.approx(0.2)
    assert step[shown[0]] == grid.shape[shown[0]]
    assert start[shown[0]] == (grid.shape[shown[0]] - 1) / 2


@EXAMPLES
@given(affines(), st.data())
def test_a_part_of_an_array_keeps_its_place(affine: np.ndarray, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, 9)) for _ in range(3)]
    moved = affine_of_part(affine, start)
    np.testing.assert_allclose(moved @ [1, 2, 3, 1], affine @ [*np.add(start, [1, 2, 3]), 1])
