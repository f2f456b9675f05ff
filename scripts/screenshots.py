"""Make the pictures of the documentation from the real window.

    python scripts/screenshots.py docs/images

A display is needed; without one: xvfb-run -a -s "-screen 0 1600x1200x24 +extension GLX" and the
same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import napari
import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.testing import data_path
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_arssr import _app
from napari_arssr._compare import SPLIT_KEY
from napari_arssr._fit_widget import FitWidget
from napari_arssr._layers import image_layer
from napari_arssr._widget import UpsampleWidget
from napari_arssr.fitting.poses import rigid
from napari_arssr.phantom import Phantom
from napari_arssr.volume import Grid, Volume

WINDOW = 1440, 880
GIF_WIDTH = 480
PATIENCE = 600  # seconds for a run on a busy machine

Picture = npt.NDArray[np.uint8]


def main(folder: Path) -> None:
    """All pictures, in the order in which a user meets what they show."""
    viewer = _app.build()
    viewer.window.resize(*WINDOW)
    viewer.open_sample("napari-arssr", "scan")
    widget = next(
        inner
        for dock in viewer.window.dock_widgets.values()
        if isinstance(inner := dock, UpsampleWidget)
    )
    scan = widget.image.layer
    assert scan is not None
    viewer.reset_view()
    wait(lambda: "looking" not in widget.device.device.native.currentText())
    settle(viewer)
    save(folder / "napari-app.png", viewer)

    widget.output.scale.value = 2.5
    run(widget)
    result = viewer.layers[-1]
    settle(viewer)
    save(folder / "napari-upsample.png", viewer)

    press(viewer, SPLIT_KEY)
    settle(viewer)
    save(folder / "napari-split.png", viewer)
    press(viewer, SPLIT_KEY)

    viewer.layers.remove(result)
    settle(viewer)
    viewer.layers.selection.active = scan
    widget.region.by_box.setChecked(True)
    widget.region.draw.click()
    drawn = widget.region._drawn
    assert drawn is not None
    middle = [n // 2 for n in scan.data.shape[-3:]]
    slice_ = scan.world_to_data(viewer.dims.point)[-3]
    corners = ((-20, 2), (-20, 30), (8, 30), (8, 2))
    rectangle = [[slice_, middle[1] + dy, middle[2] + dx] for dy, dx in corners]
    add_rectangle(viewer, np.array(rectangle), scan.ndim)
    settle(viewer)
    run(widget)
    settle(viewer)
    save(folder / "napari-box.png", viewer)
    for layer in viewer.layers[1:]:
        viewer.layers.remove(layer)
    viewer.layers.selection.active = scan
    widget.region.whole.setChecked(True)

    live(folder / "napari-live-view.gif", viewer, widget)

    menu = viewer.window.file_menu
    menu.aboutToShow.emit()
    menu.popup(viewer.window._qt_window.mapToGlobal(QPoint(0, 20)))
    menu.setActiveAction(next(one for one in menu.actions() if "Save Selected" in one.text()))
    settle(viewer)
    menu.grab().save(str(folder / "napari-save.png"))
    menu.close()

    viewer.close()
    overlay(folder / "napari-open.png")
    fit(folder / "napari-fit-slices.png", folder / "napari-fit.png")


def fit(slices: Path, result: Path) -> None:
    """Three stacks of the phantom: their slices in 3D, and the volume that is fitted to them."""
    viewer = napari.Viewer(title="napari-arssr")
    viewer.window.resize(*WINDOW)
    viewer.canvas.overlays.scale_bar.visible = True
    _, widget = viewer.window.add_plugin_dock_widget("napari-arssr", "Fit stacks")
    assert isinstance(widget, FitWidget)
    for stack in phantom_stacks():
        data, settings, _ = image_layer(stack)
        viewer.add_image(data, **settings)
    wait(lambda: "looking" not in widget.device.device.native.currentText())
    viewer.layers.selection.active = viewer.layers[0]
    for layer in viewer.layers[1:]:
        layer.visible = False
    widget.method.motion.value = "stacks"  # all that this phantom does
    widget.slices.setChecked(True)
    viewer.scene.camera.zoom *= 0.7
    settle(viewer)
    save(slices, viewer)
    widget.slices.setChecked(False)
    run(widget)
    viewer.dims.set_point(1, 10.0)
    viewer.dims.order = 1, 0, 2  # coronal: across the first stack's slices
    viewer.reset_view()
    settle(viewer, 2)
    save(result, viewer)
    viewer.close()


def phantom_stacks() -> list[Volume]:
    """Axial, coronal and sagittal slices of 6 mm, 2 × 2 mm in plane; one moved."""
    grid = Grid.from_spacing((72, 90, 72), 2.0)
    motion = rigid([0.03, -0.05, 0.04, 1.5, -2.0, 1.0], (0.0, 0.0, 0.0))
    stacks = []
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        place = grid.moved(motion if name == "coronal" else np.eye(4))
        data = Phantom(0).sample(place, oversampling=1).data
        sides = list(grid.shape)
        sides[axis : axis + 1] = [sides[axis] // 3, 3]
        thick = grid.scaled([1 / 3 if other == axis else 1 for other in range(3)])
        mean = data.reshape(sides).mean(axis=axis + 1)
        stacks.append(Volume(mean.astype(np.float32), thick.affine, name=name))
    return stacks


def overlay(path: Path) -> None:
    """A scan, and the left half of it in another storage order, opened from files."""
    scan = nib.load(Path(data_path) / "example4d.nii.gz").slicer[..., 0]
    # Straightened: napari draws a slice of an oblique scan as if it were not oblique.
    straight = np.diag([*np.array(scan.header.get_zooms()), 1.0])
    scan = nib.Nifti1Image(np.asanyarray(scan.dataobj), straight)
    half = scan.slicer[: scan.shape[0] // 2]
    turned = half.as_reoriented(nib.orientations.axcodes2ornt("SLP"))
    with TemporaryDirectory() as folder:
        files = Path(folder) / "scan.nii.gz", Path(folder) / "left_half_stored_SLP.nii.gz"
        for image, file in zip((scan, turned), files, strict=True):
            nib.save(image, file)
        viewer = _app.build(files)
        viewer.window.resize(*WINDOW)
        viewer.layers[1].colormap = "magma"
        viewer.layers[1].opacity = 0.8
        viewer.layers.selection.active = viewer.layers[1]
        settle(viewer, 3)
        viewer.reset_view()
        settle(viewer)
        save(path, viewer)
        viewer.close()


def live(path: Path, viewer: Any, widget: UpsampleWidget) -> None:
    """Zoom in with the live view on; at both ends, what is seen without it."""
    camera = viewer.scene.camera
    start = camera.zoom
    frames: list[Image.Image] = []
    for zoom, on in ((0, 0), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, 0), (4, 1)):
        camera.zoom = start * 1.4**zoom
        widget.live.box.setChecked(bool(on))
        settle(viewer, 2)
        picture = Image.fromarray(canvas(viewer)).convert("L")
        picture = picture.point([level // 4 * 4 for level in range(256)])  # a smaller file
        height = round(picture.height * GIF_WIDTH / picture.width)
        frames.append(picture.resize((GIF_WIDTH, height), Image.Resampling.LANCZOS))
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=[1200, 1200, 700, 700, 700, 1500, 1500, 2500],
        loop=0,
        optimize=True,
    )
    widget.live.box.setChecked(False)


def add_rectangle(viewer: Any, corners: npt.NDArray[np.float64], axes: int) -> None:
    """Draw what a user would draw with the mouse, in the layer that is active."""
    shapes = viewer.layers.selection.active
    before = np.zeros((len(corners), axes - corners.shape[1]))
    shapes.add_rectangles(np.hstack([before, corners])[:, -shapes.ndim :])


def run(widget: UpsampleWidget | FitWidget) -> None:
    """Press Run and wait for the end."""
    wait(widget.run.button.isEnabled)
    widget.run.button.click()
    wait(lambda: widget.runner.state.value == "idle")


def press(viewer: Any, key: str) -> None:
    """A key, in the canvas."""
    native = viewer.window._qt_viewer.canvas.native
    native.setFocus()
    QTest.keyClick(native, getattr(Qt.Key, f"Key_{key}"))


def canvas(viewer: Any) -> Picture:
    """The canvas as it is on the screen, without alpha."""
    return np.ascontiguousarray(viewer.screenshot(canvas_only=True, flash=False)[..., :3])


def save(path: Path, viewer: Any) -> None:
    """The whole window as a picture."""
    picture = viewer.screenshot(canvas_only=False, flash=False)[..., :3]
    Image.fromarray(np.ascontiguousarray(picture)).quantize(192).save(path, optimize=True)
    print(path)


def settle(_viewer: Any, seconds: float = 1.0) -> None:
    """Let the window draw what has changed."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


def wait(until: Callable[[], bool]) -> None:
    """Let the window work until something is so."""
    end = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > end:
            raise TimeoutError("The window did not come to rest.")
        QApplication.processEvents()
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
