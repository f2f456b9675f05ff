"""The app: what opens, and what is said where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import napari
import nibabel as nib
import numpy as np
import pytest
import tifffile
from napari.components import ViewerModel
from PIL import Image
from pytestqt.qtbot import QtBot

from napari_arssr import _app, cli
from napari_arssr._layers import volume_of
from napari_arssr._widget import UpsampleWidget
from napari_arssr.errors import ArssrError

_OME_SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")


@pytest.fixture
def build(qtbot: object) -> Iterator[Callable[..., napari.Viewer]]:
    """Builds the app's window as a user meets it; closed at the end."""
    viewers: list[napari.Viewer] = []

    def make(*files: Path, demo: bool = False) -> napari.Viewer:
        viewers.append(_app.build(files, demo=demo))
        return viewers[-1]

    yield make
    for viewer in viewers:
        viewer.close()


def scan(path: Path, value: float) -> Path:
    data = np.random.default_rng(0).normal(value, 10, (6, 7, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 3, 1])), path)
    return path


def test_files_are_opened_beside_the_widget(
    build: Callable[..., napari.Viewer], tmp_path: Path
) -> None:
    one, two = scan(tmp_path / "one.nii", 50), scan(tmp_path / "two.nii.gz", 90)
    viewer = build(one, two)
    assert [layer.name for layer in viewer.layers] == ["one", "two"]
    assert viewer.canvas.overlays.scale_bar.visible
    docked = [dock.inner_widget() for dock in viewer.window._wrapped_dock_widgets.values()]
    assert any(isinstance(widget, UpsampleWidget) for widget in docked)


def test_a_file_that_cannot_be_opened_is_told_and_the_others_open(
    build: Callable[..., napari.Viewer], told: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"not a scan")
    viewer = build(broken, scan(tmp_path / "good.nii", 50))
    assert [layer.name for layer in viewer.layers] == ["good"]
    assert any("broken.nii" in message for message in told)


def test_a_stack_opens_with_its_voxel_sizes_and_a_picture_as_napari_opens_it(
    build: Callable[..., napari.Viewer], told: list[str], tmp_path: Path
) -> None:
    stack, picture = tmp_path / "cells.tif", tmp_path / "photo.png"
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    metadata = {"spacing": 0.8, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(stack, data, imagej=True, resolution=(5, 5), metadata=metadata)
    Image.fromarray(data[0]).save(picture)
    viewer = build(stack, picture)
    layer, other = viewer.layers
    assert (layer.name, other.name) == ("cells", "photo")
    np.testing.assert_array_equal(layer.data, data)
    np.testing.assert_allclose(volume_of(layer).spacing, (8e-4, 2e-4, 2e-4))
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
    assert layer.axis_labels == ("z", "y", "x")
    assert layer.source.path == str(stack)
    assert [message for message in told if "Inconsistent units" not in message] == []


def test_a_tiff_that_is_no_stack_opens_as_napari_opens_it(
    build: Callable[..., napari.Viewer], told: list[str], tmp_path: Path
) -> None:
    grey, colours, mask = (tmp_path / f"{name}.tif" for name in ("grey", "colours", "mask"))
    tifffile.imwrite(grey, np.zeros((30, 40), np.uint8))
    tifffile.imwrite(colours, np.zeros((30, 40, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(mask, np.zeros((4, 30, 40), bool), photometric="minisblack")
    viewer = build(grey, colours, mask)
    assert [layer.name for layer in viewer.layers] == ["grey", "colours", "mask"]
    assert [layer.data.shape for layer in viewer.layers] == [(30, 40), (30, 40, 3), (4, 30, 40)]
    assert told == []


@pytest.mark.parametrize(
    ("options", "unit", "spacing"),
    [
        ({}, "pixel", (1, 1, 1)),
        ({"imagej": True, "metadata": {"axes": "ZYX", "spacing": 3.0}}, "pixel", (3, 1, 1)),
        ({"imagej": True, "metadata": {"axes": "ZYX", "unit": "mm"}}, "millimeter", (1, 1, 1)),
        ({"resolution": (10, 10), "resolutionunit": "CENTIMETER"}, "millimeter", (1, 1, 1)),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, "pixel", (1, 1, 1)),
        (
            {"ome": True, "metadata": {"axes": "ZYX"} | dict.fromkeys(_OME_SIZES, 2.0)},
            "micrometer",
            (2e-3,) * 3,
        ),
    ],
)
def test_a_stack_that_says_nothing_of_sizes_counts_pixels(
    options: dict[str, Any], unit: str, spacing: tuple[float, ...], tmp_path: Path
) -> None:
    stack = tmp_path / "cells.tif"
    tifffile.imwrite(stack, np.zeros((4, 5, 6), np.uint8), photometric="minisblack", **options)
    viewer = ViewerModel()
    _app.open_file(viewer, stack)
    (layer,) = viewer.layers
    assert [str(one) for one in layer.units] == [unit] * 3
    np.testing.assert_allclose(volume_of(layer).spacing, spacing)


def test_without_a_display_it_says_so_in_one_line() -> None:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    ran = subprocess.run(
        [sys.executable, "-m", "napari_arssr"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert "no display" in ran.stderr
    assert "napari-arssr upsample --help" in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a system with a display of its own")
@pytest.mark.parametrize("variable", ["DISPLAY", "WAYLAND_DISPLAY"])
def test_a_display_that_is_gone_is_told_in_one_line(variable: str, tmp_path: Path) -> None:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    gone = ":4711" if variable == "DISPLAY" else "wayland-4711"
    ran = subprocess.run(
        [sys.executable, "-m", "napari_arssr"],
        capture_output=True,
        text=True,
        env=environment | {variable: gone, "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert f"display {gone} does not answer" in ran.stderr
    assert f"correct the variable {variable}, or use the command line" in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a system with a display of its own")
def test_a_display_that_answers_is_one(tmp_path: Path) -> None:
    _app.check_display({"DISPLAY": os.environ["DISPLAY"], "WAYLAND_DISPLAY": "gone"}, "linux")
    (tmp_path / "wayland-0").touch()
    there = {"WAYLAND_DISPLAY": "wayland-0", "XDG_RUNTIME_DIR": str(tmp_path)}
    _app.check_display(there | {"DISPLAY": ":4711"}, "linux")
    _app.check_display({"QT_QPA_PLATFORM": "offscreen"}, "linux")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_have_a_display_of_their_own(platform: str) -> None:
    _app.check_display({}, platform)
    with pytest.raises(ArssrError, match="no display"):
        _app.check_display({"DISPLAY": ""}, "linux")


def test_a_program_without_a_console_has_somewhere_to_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stdout", "stderr"):  # as Windows starts it from a menu
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["napari-arssr-app", "there is no such file.nii"])
    boxes: list[str] = []
    monkeypatch.setattr(_app, "tell_in_a_box", boxes.append)
    status = _app.main()
    assert (status, sys.stdout is None, sys.stderr is None) == (1, False, False)
    # Nobody sees what is written there: what went wrong is in a box.
    (said,) = boxes
    assert "there is no such file.nii: there is no such file" in said


def test_a_bug_without_a_console_is_told_in_a_box_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_words: list[str]) -> int:
        print("x" * 100_000, file=sys.stderr)
        raise RuntimeError("quite unexpected")

    boxes: list[str] = []
    monkeypatch.setattr(cli, "main", fail)
    monkeypatch.setattr(_app, "tell_in_a_box", boxes.append)
    monkeypatch.setattr(sys, "stderr", None)
    assert _app.main() == 1
    assert boxes[0].rstrip().endswith("RuntimeError: quite unexpected")
    assert len(boxes[0]) <= 2000


def test_where_nothing_goes_wrong_no_box_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[str] = []
    monkeypatch.setattr(cli, "main", lambda _words: print("a warning", file=sys.stderr) or 0)
    monkeypatch.setattr(_app, "tell_in_a_box", boxes.append)
    monkeypatch.setattr(sys, "stderr", None)
    assert _app.main() == 0
    assert boxes == []


def test_without_qt_it_says_what_to_install() -> None:
    code = """
import sys
for name in ("PyQt5", "PyQt6", "PySide2", "PySide6"):
    sys.modules[name] = None
from napari_arssr import cli
sys.exit(cli.main(["app"]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "QT_API"}
        | {"QT_QPA_PLATFORM": "offscreen"},
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert 'pip install "napari-arssr[app]"' in ran.stderr


@pytest.mark.parametrize(
    ("words", "files", "demo"),
    [([], 0, False), (["--demo"], 0, True), (["a.nii", "b.nii"], 2, False), (["app"], 0, False)],
)
def test_the_app_is_what_opens_without_a_command(
    words: list[str],
    files: int,
    demo: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii", "b.nii"):
        scan(tmp_path / name, 50)
    asked: list[tuple[int, bool]] = []

    def run(named: list[Path], *, demo: bool) -> int:
        asked.append((len(named), demo))
        return 0

    monkeypatch.setattr(_app, "run", run)
    assert cli.main(words) == 0
    assert asked == [(files, demo)]


def test_a_file_that_is_not_there_is_told_before_a_window_opens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["missing.nii.gz"]) == 1
    assert "missing.nii.gz: there is no such file" in capsys.readouterr().err


def test_the_demo_upsamples_the_scan_whatever_else_is_open(
    build: Callable[..., napari.Viewer], qtbot: QtBot, told: list[str], tmp_path: Path
) -> None:
    viewer = build(scan(tmp_path / "mine.nii", 50), demo=True)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=300_000)
    _, sample, result = viewer.layers
    assert sample.data.shape[-3:] == (24, 96, 128)
    assert result.data.shape == tuple(2 * length for length in sample.data.shape)
    assert result.name.startswith(f"{sample.name} default ×2")
    assert np.isfinite(result.data).all()
    assert np.corrcoef(result.data[::2, ::2, ::2].ravel(), np.ravel(sample.data))[0, 1] > 0.8
    assert told == []
