"""Volumes as layers and layers as volumes: the same numbers at the same places."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image, Labels, Points, Shapes
from scipy.spatial.transform import Rotation

from napari_arssr._layers import (
    grid_of,
    image_layer,
    labels_layer,
    layer_of,
    loaded,
    volume_of,
    volume_of_data,
)
from napari_arssr.errors import OutOfMemory, UsageError
from napari_arssr.field import CubicField
from napari_arssr.io import Origin
from napari_arssr.volume import Volume

Array = npt.NDArray[Any]

EXAMPLES = settings(max_examples=40, deadline=None)
TO_RAS = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]])


def block(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def layers(draw: st.DrawFn) -> Image:
    """An image layer placed by everything that napari has for it."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    axes = draw(st.sampled_from([2, 3, 4]))
    space = min(axes, 3)

    def in_space(matrix: Array) -> Array:
        whole = np.eye(axes)
        whole[-space:, -space:] = matrix
        return whole

    turn = np.linalg.qr(random.normal(size=(space, space)))[0]
    shear = np.eye(space) + np.triu(random.normal(size=(space, space)) * 0.3, 1)
    affine = np.eye(axes + 1)
    affine[-1 - space : -1, -1 - space : -1] = random.normal(size=(space, space)) + np.eye(space)
    affine[-1 - space : -1, -1] = random.normal(size=space) * 30
    scale = random.uniform(0.2, 4, axes)
    if draw(st.booleans()):
        scale[-1] *= -1
    return Image(
        block(*random.integers(2, 5, axes)),
        scale=scale,
        translate=[0] * (axes - space) + list(random.normal(size=space) * 10),
        rotate=in_space(turn if draw(st.booleans()) else np.eye(space)),
        shear=in_space(shear if draw(st.booleans()) else shear.T),
        affine=affine if draw(st.booleans()) else None,
        units=("s",) * (axes - space) + ("mm",) * space,
    )


# Layer to volume -----------------------------------------------------------------------------


@EXAMPLES
@given(layers())
def test_every_voxel_of_a_volume_is_where_napari_shows_it(layer: Image) -> None:
    volume = volume_of(layer)
    assert volume.data.shape[-layer.ndim :] == layer.data.shape
    np.testing.assert_array_equal(volume.data.ravel(), layer.data.ravel())
    for index in np.ndindex(layer.data.shape):
        world = np.array([0.0, *layer.data_to_world(index)])[-3:]  # a plane lies at I = 0
        place = volume.grid.world(np.array([0, *index])[-3:])
        np.testing.assert_allclose(place, TO_RAS @ world, atol=1e-9)
    if layer.ndim == 4:
        assert volume.time_step == pytest.approx(layer.data_to_world((1, 0, 0, 0))[0])


@EXAMPLES
@given(layers())
def test_a_volumes_layer_lies_on_the_one_that_it_was_made_of(layer: Image) -> None:
    volume = volume_of(layer)
    data, meta, kind = image_layer(volume)
    assert kind == "image"
    again = Image(data, **meta)
    found = {
        again.data[index]: again.data_to_world(index)[-layer.ndim :]
        for index in np.ndindex(again.data.shape)
    }
    for index in np.ndindex(layer.data.shape):
        np.testing.assert_allclose(
            found[layer.data[index]], layer.data_to_world(index), atol=1e-8, rtol=1e-9
        )
    assert again.units[-layer.ndim :] == layer.units


@EXAMPLES
@given(layers())
def test_writers_get_the_same_volume(layer: Image) -> None:
    data, meta, kind = layer.as_layer_data_tuple()
    volume, expected = volume_of_data(data, meta, kind), volume_of(layer)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-10)
    np.testing.assert_array_equal(volume.data, expected.data)
    assert volume.time_step == expected.time_step


def test_a_volume_is_the_layers_own_data_not_a_copy_of_what_was_read() -> None:
    data, meta, _ = image_layer(Volume(block(2, 3, 4), np.eye(4), name="a.nii"))
    layer = Image(data, **meta)
    layer.data[0, 0, 0] = 99
    layer.scale = (2, 2, 2)
    assert volume_of(layer).data[0, 0, 0] == 99
    np.testing.assert_allclose(volume_of(layer).spacing, (2, 2, 2))
    layer.data = block(5, 6, 7)
    assert volume_of(layer).grid.shape == (5, 6, 7)


@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "f4", "f8", ">f4"])
def test_numbers_keep_their_type(dtype: str) -> None:
    volume = volume_of(Image(block(2, 3, 4).astype(dtype)))
    assert volume.data.dtype == np.dtype(dtype)


def test_booleans_become_numbers_that_a_field_can_work_on() -> None:
    volume = volume_of(Image(np.resize([True, False, True], (3, 4, 5))))
    assert volume.data.dtype == np.uint8
    sampled = CubicField(volume).sample(volume.grid.scaled(2))
    assert np.isfinite(sampled.data).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Image(np.zeros((4, 5, 6, 3), np.uint8), rgb=True, name="photo"), "photo is an RGB image"),
        (Image(np.zeros((1, 2, 3, 4, 5)), name="five"), "five has 5 axes.*open its file by name"),
        (Points(np.zeros((2, 3)), name="cells"), "cells is a points layer; choose an image"),
        (Shapes(name="box"), "box is a shapes layer; choose an image"),
        (Image(np.zeros((2, 3, 4)), units=("mm", "kg", "mm"), name="w"), "w counts in kilogram"),
        (Image(np.zeros((2, 2, 2, 2)), scale=(-1, 1, 1, 1), name="back"), "back.*time"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_layer_that_shows_no_volume_is_refused_with_the_reason(layer: Any, message: str) -> None:
    for made in (grid_of, volume_of):
        with pytest.raises(UsageError, match=message):
            made(layer)


def test_a_plane_lies_in_a_volume_of_one_slice() -> None:
    volume = volume_of(Image(block(3, 4), scale=(2, 5), translate=(1, 2), units="um"))
    assert volume.grid.shape == (1, 3, 4)
    np.testing.assert_allclose(volume.spacing, (5e-3, 2e-3, 5e-3))
    data, meta, _ = image_layer(volume)
    assert Image(data, **meta).data_to_world((0, 2, 3)) == pytest.approx((0, 5, 17))


@pytest.mark.parametrize(
    ("unit", "step", "start"), [("ms", 40.0, 1200.0), ("minute", 0.5, -2.0), ("pixel", 1.0, 7.0)]
)
def test_time_keeps_its_start_and_its_unit(unit: str, step: float, start: float) -> None:
    layer = Image(
        block(3, 2, 4, 5),
        scale=(step, 3, 2, 1),
        translate=(start, 5, 6, 7),
        units=(unit, "mm", "mm", "mm"),
        name="beats",
    )
    volume = volume_of(layer)
    finer = volume.grid.scaled(2)
    made = Volume(
        np.zeros((3, *finer.shape)),
        finer.affine,
        volume.time_step,
        metadata=volume.metadata,
        time_start=volume.time_start,
    )
    for one, indices in ((volume, [(0, 0, 0, 0), (2, 1, 3, 4)]), (made, [(0, 0, 0, 0)])):
        data, meta, _ = image_layer(one)
        again = Image(data, **meta)
        assert again.units == layer.units
        for index in indices:
            times = again.data_to_world(index)[0], layer.data_to_world(index)[0]
            assert times[0] == pytest.approx(times[1])
    assert volume.frame(1).time_start == 0


def test_seconds_from_a_start_in_another_unit() -> None:
    layer = Image(block(2, 2, 3, 4), scale=(250, 1, 1, 1), translate=(4000, 0, 0, 0))
    layer.units = ("ms", "mm", "mm", "mm")
    volume = volume_of(layer)
    assert (volume.time_step, volume.time_start) == pytest.approx((0.25, 4.0))


def test_of_a_pyramid_the_finest_level_is_taken() -> None:
    fine = block(8, 8, 8)
    layer = Image([fine, fine[::2, ::2, ::2]], multiscale=True, scale=(3, 1, 1))
    assert grid_of(layer).shape == (8, 8, 8)
    np.testing.assert_array_equal(volume_of(layer).data, fine)
    # By hand, without napari's word for it.
    assert volume_of_data([fine, fine[::2]], {}, "image").grid.shape == (8, 8, 8)
    assert volume_of_data([[[1, 2], [3, 4]]], {}, "image").grid.shape == (1, 2, 2)


def test_settings_that_are_missing_are_naparis_defaults() -> None:
    data = block(2, 3, 4)
    volume = volume_of_data(data, {}, "image")
    expected = volume_of(Image(data))
    assert volume.grid == expected.grid
    assert volume_of_data(data, {"scale": (2,), "affine": None}, "image").spacing == (1, 1, 2)


# What is not in memory ------------------------------------------------------------------------


class Counted:
    """An array that knows what was asked of it."""

    def __init__(self, data: Array) -> None:
        self.data, self.shape, self.dtype, self.ndim = data, data.shape, data.dtype, data.ndim
        self.loaded = 0
        self.threads: set[str] = set()

    def __getitem__(self, key: Any) -> Array:
        part = self.data[key]
        self.loaded += part.size
        self.threads.add(threading.current_thread().name)
        return part


def lazy(data: Array) -> tuple[Counted, Any]:
    source = Counted(data)
    chunks = tuple(1 if axis < data.ndim - 2 else n for axis, n in enumerate(data.shape))
    return source, da.from_array(source, chunks=chunks, name=False)


def test_where_a_layer_lies_is_known_without_loading_it() -> None:
    source, data = lazy(block(3, 4, 5, 6))
    layer = Image(data, scale=(1, 3, 2, 1), contrast_limits=(0, 1))
    source.loaded = 0
    assert grid_of(layer).shape == (4, 5, 6)
    volume = volume_of(layer, load=False)
    assert volume.frames == 3
    assert source.loaded == 0

    frame = loaded(volume.frame(1))
    assert isinstance(frame.data, np.ndarray)
    np.testing.assert_array_equal(frame.data, source.data[1])
    assert source.loaded == 4 * 5 * 6

    part = loaded(volume.frame(2).crop(replace(frame.grid.box, stop=(2, 5, 6))))
    np.testing.assert_array_equal(part.data, source.data[2, :2])
    assert source.loaded == 6 * 5 * 6


def test_a_worker_loads_what_a_layer_shows() -> None:
    source, data = lazy(block(4, 5, 6))
    layer = Image(data, contrast_limits=(0, 1))
    results: list[Volume] = []
    thread = threading.Thread(target=lambda: results.append(volume_of(layer)))
    thread.start()
    thread.join(60)
    np.testing.assert_array_equal(results[0].data, source.data)


def test_what_does_not_fit_in_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(block(2, 3, 4), np.eye(4), name="huge")

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("napari_arssr._layers.np.asarray", fail)
    with pytest.raises(OutOfMemory, match="huge does not fit in memory; close other"):
        loaded(volume)


def test_contrast_of_what_is_not_in_memory_is_that_of_some_planes() -> None:
    random = np.random.default_rng(0)
    data = random.uniform(100, 200, (400, 8, 8)).astype(np.float32)
    data[:90] = 0  # air
    source, lazily = lazy(data)
    _, meta, _ = image_layer(Volume(lazily, np.eye(4)))
    low, high = meta["contrast_limits"]
    assert 100 <= low < 102
    assert 198 < high <= 200
    assert 0 < source.loaded < data.size / 10


# Volume to layer -----------------------------------------------------------------------------


def test_nothing_but_missing_values_is_shown_nevertheless() -> None:
    _, meta, _ = image_layer(Volume(np.full((2, 3, 4), np.nan), np.eye(4)))
    assert meta["contrast_limits"] == (0, 1)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sub-01_T1w.nii.gz", "sub-01_T1w"),
        ("stack.TIF", "stack"),
        ("T1w default ×2.5", "T1w default ×2.5"),
        ("v1.2", "v1.2"),
    ],
)
def test_a_layer_is_called_like_its_file_without_suffix(name: str, shown: str) -> None:
    assert image_layer(Volume(block(2, 3, 4), np.eye(4), name=name))[1]["name"] == shown


@pytest.mark.parametrize("units", ["um", "pixel", "mm", "m"])
def test_a_results_layer_counts_and_is_labelled_as_its_input(units: str) -> None:
    layer = Image(block(2, 3, 4), scale=(3, 1, 1), units=units, axis_labels=("z", "y", "x"))
    volume = volume_of(layer)
    grid = volume.grid.isotropic()
    result = replace(volume, data=np.zeros(grid.shape), affine=grid.affine)
    data, meta, _ = image_layer(result)
    shown = Image(data, **meta)
    assert shown.units == layer.units
    assert shown.axis_labels == ("z", "y", "x")
    np.testing.assert_allclose(shown.extent.world[0] - 0.0, (-1, 0, 0), atol=1e-9)
    np.testing.assert_allclose(shown.extent.world[1], (4, 2, 3), atol=1e-9)


def test_a_first_axis_that_is_no_time_keeps_its_unit_and_its_place() -> None:
    layer = Image(block(3, 4, 5, 6), scale=(30, 1, 2, 2), translate=(7, 0, 0, 0), units="um")
    volume = volume_of(layer)
    assert volume.time_step == 0  # what is written says nothing of seconds
    data, meta, _ = image_layer(volume)
    shown = Image(data, **meta)
    assert shown.units == layer.units
    for frame in (0, 2):
        np.testing.assert_allclose(
            shown.data_to_world([frame, 1, 1, 1]), layer.data_to_world([frame, 1, 1, 1])
        )


def test_labels_that_nobody_gave_stay_naparis_own() -> None:
    data, meta, _ = image_layer(volume_of(Image(block(2, 3, 4))))
    assert Image(data, **meta).axis_labels == ("-3", "-2", "-1")


def test_units_that_differ_become_millimetres() -> None:
    layer = Image(block(2, 3, 4), units=("mm", "um", "um"))
    data, meta, _ = image_layer(volume_of(layer))
    shown = Image(data, **meta)
    assert [str(unit) for unit in shown.units] == ["millimeter"] * 3
    np.testing.assert_allclose(shown.data_to_world((1, 2, 3)), (1, 0.002, 0.003))


def test_label_maps_become_labels_of_whole_numbers() -> None:
    origin = {"origin": Origin(intent=(1002, (0.0, 0.0, 0.0), ""))}
    data = np.array([[[0, 1], [2, 300]]], np.float32)
    array, meta, kind = layer_of(Volume(data, np.eye(4), metadata=origin))
    assert kind == "labels"
    assert array.dtype == np.int32
    layer = Labels(array, **meta)
    np.testing.assert_array_equal(layer.data, data)
    layer.data[0, 0, 0] = 7  # may be painted on
    assert labels_layer(Volume(data.astype(np.uint8), np.eye(4)))[0].dtype == np.uint8


def test_a_labels_layer_lies_where_its_image_lies() -> None:
    affine = np.array([[0, 0, 2, 9], [-1.5, 0, 0, 8], [0, 1, 0, 7], [0, 0, 0, 1.0]])
    volume = Volume(np.arange(24).reshape(2, 3, 4), affine)
    image, labels = image_layer(volume), labels_layer(volume)
    np.testing.assert_array_equal(image[0], labels[0])
    np.testing.assert_array_equal(image[1]["affine"], labels[1]["affine"])
    assert image[1]["units"] == labels[1]["units"]


def test_layers_of_mixed_units_overlay_in_the_window(
    make_napari_viewer_proxy: Callable[..., Any],
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    data = np.zeros((9, 40, 40), np.float32)
    data[:, 8:12, 26:30] = 1
    volume = Volume(data, np.diag([-1.0, -1, -1, 1]))
    pictures = []
    for unit in ("mm", "um"):
        metadata = {"world": {"unit": unit, "labels": ("z", "y", "x")}}
        array, meta, _ = image_layer(replace(volume, metadata=metadata))
        viewer.add_image(array, **meta | {"name": unit})
    assert [str(unit) for unit in viewer.layers.extent.units] == ["micrometer"] * 3
    viewer.reset_view()
    for shown, hidden in [("mm", "um"), ("um", "mm")]:
        viewer.layers[shown].visible, viewer.layers[hidden].visible = True, False
        pictures.append(viewer.screenshot(canvas_only=True, flash=False)[..., 0].astype(int))
    assert (pictures[0] > 128).sum() > 100
    assert (np.abs(pictures[0] - pictures[1]) > 128).mean() < 0.002


def test_an_oblique_turn_is_kept() -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    data, meta, _ = image_layer(Volume(block(4, 5, 6), affine))
    found = volume_of(Image(data, **meta))
    np.testing.assert_allclose(found.in_storage_order().affine, affine, atol=1e-12)
