"""A TIFF stack that napari read without its voxel sizes gets them from its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pytest
import tifffile
from napari.layers import Image
from napari.layers._source import layer_source
from ome_stores import cells, write_store
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from napari_arssr import io
from napari_arssr._image_choice import ImageChoice

PATIENCE = 20_000  # milliseconds
UNTIL_READ = 600


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., napari.Viewer]) -> napari.Viewer:
    return make_napari_viewer(show=True)


@pytest.fixture
def image(viewer: napari.Viewer, qtbot: QtBot) -> ImageChoice:
    made = ImageChoice(viewer, lambda: "dark")
    viewer.window.add_dock_widget(made, name="Image")
    return made


def a_stack(path: Path, shape: tuple[int, ...], axes: str, **said: Any) -> Path:
    data = np.random.default_rng(0).integers(0, 900, shape).astype(np.uint16)
    given = {"spacing": 0.5, "unit": "um"} | said
    metadata = {"axes": axes} | {name: value for name, value in given.items() if value is not None}
    tifffile.imwrite(path, data, imagej=True, resolution=(1 / 0.13, 1 / 0.13), metadata=metadata)
    return path


def sides(layer: Image) -> list[str]:
    return [
        f"{size:g} {unit}" for size, unit in zip(layer.scale.round(9), layer.units, strict=True)
    ]


SIDES = {"Z": "0.5 micrometer", "Y": "0.13 micrometer", "X": "0.13 micrometer"}


@pytest.mark.parametrize("axes", ["ZYX", "TZYX", "ZCYX", "TZCYX"])
def test_a_stack_that_was_dropped_gets_the_sizes_of_its_file(
    viewer: napari.Viewer, image: ImageChoice, qtbot: QtBot, tmp_path: Path, axes: str
) -> None:
    shape = tuple({"T": 3, "Z": 7, "C": 2, "Y": 9, "X": 10}[axis] for axis in axes)
    path = a_stack(tmp_path / "cells.tif", shape, axes)
    (layer,) = viewer.open(str(path), plugin="napari")
    assert layer.data.shape == shape
    qtbot.waitUntil(image.sizes.isVisible, timeout=PATIENCE)
    assert image.sizes.text() == "Use the file's voxel sizes: 0.5 × 0.13 × 0.13 µm"
    plane = axes.index("Z")
    viewer.dims.set_point(plane, 5)
    qtbot.mouseClick(image.sizes, Qt.MouseButton.LeftButton)
    assert viewer.dims.point[plane] == pytest.approx(2.5)  # the same plane, at its place
    assert viewer.camera.zoom * 10 * 0.13 > 200  # it fills the canvas
    assert sides(layer) == [SIDES.get(axis, "1 pixel") for axis in axes]
    assert not image.sizes.isVisible()
    if "C" not in axes:
        assert image.volume().spacing == pytest.approx((5e-4, 1.3e-4, 1.3e-4))
        assert "0.5 × 0.13 × 0.13 µm" in image.note.text().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("levels", [("0",), ("0", "1")], ids=["one level", "pyramid"])
@pytest.mark.parametrize("letters", ["zyx", "tzyx", "tczyx"])
def test_a_zarr_store_that_was_dropped_gets_its_sizes(
    *,
    viewer: napari.Viewer,
    image: ImageChoice,
    qtbot: QtBot,
    tmp_path: Path,
    letters: str,
    levels: tuple[str, ...],
) -> None:
    counts = {"t": 1, "c": 1, "z": 8, "y": 10, "x": 12}
    size = {"t": 2.0, "c": 1.0, "z": 0.5, "y": 0.13, "x": 0.13}
    path = tmp_path / "cells.ome.zarr"
    data = cells(*(counts[axis] for axis in letters))
    write_store(path, data, letters, scale=[size[axis] for axis in letters], levels=levels)
    (layer,) = viewer.open(str(path), plugin="napari")
    assert layer.multiscale == (len(levels) > 1)
    qtbot.waitUntil(image.sizes.isVisible, timeout=PATIENCE)
    assert image.sizes.text() == "Use the file's voxel sizes: 0.5 × 0.13 × 0.13 µm"
    qtbot.mouseClick(image.sizes, Qt.MouseButton.LeftButton)
    assert sides(layer) == [SIDES.get(axis.upper(), "1 pixel") for axis in letters]
    if letters != "tczyx":
        assert image.volume().spacing == pytest.approx((5e-4, 1.3e-4, 1.3e-4))


def test_all_channels_of_a_file_get_its_sizes(
    viewer: napari.Viewer, image: ImageChoice, qtbot: QtBot, tmp_path: Path
) -> None:
    path = a_stack(tmp_path / "cells.tif", (7, 2, 9, 10), "ZCYX")
    data = tifffile.imread(path)
    with layer_source(path=str(path)):
        channels = [viewer.add_image(data[:, n], name=str(n)) for n in range(2)]
        other = viewer.add_image(data[:3, 0], name="part")
    moved = viewer.add_image(data[:, 0], name="no file")
    image.choose(channels[0])
    qtbot.waitUntil(image.sizes.isVisible, timeout=PATIENCE)
    qtbot.mouseClick(image.sizes, Qt.MouseButton.LeftButton)
    for layer in channels:
        assert sides(layer) == ["0.5 micrometer", "0.13 micrometer", "0.13 micrometer"]
    for layer in (other, moved):
        assert sides(layer) == ["1 pixel"] * 3


def test_nothing_is_offered_that_the_file_does_not_state_or_the_layer_has(
    viewer: napari.Viewer, image: ImageChoice, qtbot: QtBot, tmp_path: Path
) -> None:
    known = a_stack(tmp_path / "known.tif", (7, 9, 10), "ZYX")
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, np.ones((7, 9, 10), np.uint16))
    colours = tmp_path / "colours.tif"
    tifffile.imwrite(colours, np.ones((7, 9, 10, 3), np.uint8), photometric="rgb")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(known.read_bytes()[:300])
    io.write(tmp_path / "scan.nii", io.read(known))
    data = tifffile.imread(known)
    for path, options in (
        (known, {"scale": (2, 1, 1)}),
        (known, {"units": "mm"}),
        (known, {"affine": np.diag([3.0, 1, 1, 1])}),
        (plain, {}),
        (broken, {}),
        (colours, {}),
        (tmp_path / "scan.nii", {}),
    ):
        with layer_source(path=str(path)):
            image.choose(viewer.add_image(data, **options))
        qtbot.wait(UNTIL_READ)
        assert not image.sizes.isVisible(), (path, options)
    with layer_source(path=str(known)):
        image.choose(viewer.add_image(data))
    qtbot.waitUntil(image.sizes.isVisible, timeout=PATIENCE)
    image.layer.scale = (4, 1, 1)
    assert not image.sizes.isVisible()
