"""Interpolation matrices against PyTorch's and SciPy's interpolation of the same values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from scipy.ndimage import map_coordinates, spline_filter
from torch.nn.functional import grid_sample

from napari_arssr.interpolation import (
    Outside,
    apply_separable,
    linear_support,
    linear_weights,
    spline_coefficients,
    spline_matrix,
    spline_support,
    spline_weights,
)

EXAMPLES = settings(max_examples=60, deadline=None)

Float64Array = npt.NDArray[np.float64]


@st.composite
def axes(draw: DrawFn, beyond: float) -> tuple[Float64Array, Float64Array]:
    """Values along an axis, and coordinates to sample them at: whole, halves and any others."""
    size = draw(st.integers(1, 9))
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(size)
    ends = -0.5 - beyond, size - 0.5 + beyond
    halves = st.integers(int(2 * ends[0]), int(2 * ends[1])).map(lambda n: n / 2)
    coordinates = draw(st.lists(halves | st.floats(*ends), min_size=1, max_size=6))
    return values, np.array(coordinates)


def by_torch(
    array: Float64Array, coordinates: list[Float64Array], outside: Outside
) -> Float64Array:
    """The values of a (z, y, x) array on a lattice, cell-centred."""
    normal = [(2 * c + 1) / n - 1 for c, n in zip(coordinates, array.shape, strict=True)]
    z, y, x = np.meshgrid(*normal, indexing="ij")
    grid = torch.from_numpy(np.stack([x, y, z], axis=-1))[None]
    values = torch.from_numpy(array)[None, None]
    sampled = grid_sample(values, grid, mode="bilinear", padding_mode=outside, align_corners=False)
    result: Float64Array = sampled[0, 0].numpy()
    return result


@pytest.mark.parametrize("outside", ["border", "zeros"])
@EXAMPLES
@given(st.tuples(*[axes(beyond=2)] * 3))
def test_linear_is_torchs(outside: Outside, drawn: tuple[tuple[Float64Array, ...], ...]) -> None:
    (z, y, x), coordinates = zip(*drawn, strict=True)
    array = z[:, None, None] * y[:, None] + x
    matrices, part = [], array
    for axis, along in enumerate(coordinates):
        size = array.shape[axis]
        start, stop = linear_support(along, size)
        assert 0 <= start < stop <= size
        matrices.append(linear_weights(along, size, start, stop, outside))
        assert matrices[-1].dtype == np.float32
        part = part.take(range(start, stop), axis)  # only what the support says is read
    result = apply_separable(matrices, part)
    np.testing.assert_allclose(result, by_torch(array, list(coordinates), outside), atol=2e-5)


def test_linear_reads_two_nodes_or_one() -> None:
    assert linear_support(np.array([3.0]), 9) == (3, 5)
    assert linear_support(np.array([3.2, 5.9]), 9) == (3, 7)
    assert linear_support(np.array([-0.5]), 9) == (0, 1)
    assert linear_support(np.array([8.4]), 9) == (8, 9)
    np.testing.assert_array_equal(linear_weights(np.array([3.25]), 9, 3, 5), [[0.75, 0.25]])
    np.testing.assert_array_equal(linear_weights(np.array([-0.25]), 9, 0, 1), [[1.0]])
    np.testing.assert_array_equal(linear_weights(np.array([-0.25]), 9, 0, 1, "zeros"), [[0.75]])


@EXAMPLES
@given(axes(beyond=3))
def test_cubic_is_scipys(drawn: tuple[Float64Array, Float64Array]) -> None:
    values, coordinates = drawn
    size = len(values)
    expected = map_coordinates(values, coordinates[None], order=3, mode="mirror")
    np.testing.assert_allclose(spline_matrix(coordinates, size) @ values, expected, atol=1e-5)
    start, stop = spline_support(coordinates, size)
    assert 0 <= start < stop <= size
    coefficients = spline_coefficients(values[:, None, None])[start:stop, 0, 0]
    weights = spline_weights(coordinates, size, start, stop)
    np.testing.assert_allclose(weights @ coefficients, expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_cubic_goes_through_the_samples_and_keeps_constants(size: int) -> None:
    nodes = np.arange(size, dtype=float)
    np.testing.assert_allclose(spline_matrix(nodes, size), np.eye(size), atol=1e-6)
    between = np.linspace(-0.5, size - 0.5, 31)
    np.testing.assert_allclose(spline_matrix(between, size).sum(axis=1), 1, atol=1e-6)
    weights = spline_weights(between, size, 0, size)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_cubic_reads_four_coefficients() -> None:
    assert spline_support(np.array([4.0, 5.5]), 9) == (3, 8)
    assert np.count_nonzero(spline_weights(np.array([4.5]), 9, 3, 7)) == 4
    assert spline_support(np.array([-0.5]), 9) == (0, 3)  # mirrored: 2, 1, 0, 1


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 7, 2), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.int16, ">f4", np.float64])
def test_coefficients_are_scipys_and_the_input_is_left_alone(
    shape: tuple[int, int, int], dtype: npt.DTypeLike
) -> None:
    array = np.random.default_rng(0).uniform(-1000, 1000, shape).astype(dtype)
    before = array.copy()
    result = spline_coefficients(array)
    expected = spline_filter(array.astype(float), order=3, mode="mirror", output=np.float64)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-2)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("rows", [(2, 9, 4), (8, 1, 3), (1, 1, 1)])
def test_one_matrix_per_axis(rows: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal((4, 5, 6))
    matrices = [random.standard_normal((m, n)) for m, n in zip(rows, array.shape, strict=True)]
    result = apply_separable(matrices, array)
    assert result.dtype == np.float32
    np.testing.assert_allclose(
        result, np.einsum("az,by,cx,zyx->abc", *matrices, array), rtol=1e-4, atol=1e-4
    )
