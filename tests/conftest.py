"""What every test runs in: a real X server of its own, nothing of the user's settings."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

# Threads off the main one must not touch a viewer: napari raises instead of risking a crash.
os.environ["NAPARI_ENSURE_PLUGIN_MAIN_THREAD"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Point Qt at the X server that pytest-xvfb has started, and napari at settings of its own."""
    if sys.platform == "linux" and not config.getoption("--no-xvfb"):
        os.environ["QT_QPA_PLATFORM"] = "xcb"
        os.environ.pop("WAYLAND_DISPLAY", None)
    settings = tempfile.TemporaryDirectory(prefix="napari-arssr-tests-")
    config.add_cleanup(settings.cleanup)
    os.environ["NAPARI_CONFIG"] = os.path.join(settings.name, "settings.yaml")  # noqa: PTH118


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what is missing before Qt ends the process for want of a display."""
    window = {"qapp", "qtbot", "make_napari_viewer", "make_napari_viewer_proxy"}
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    for item in items:
        if window & set(getattr(item, "fixturenames", ())):
            raise pytest.UsageError(
                f"{item.name} opens a window, and there is neither Xvfb nor a display: "
                "run scripts/system-libraries.sh first."
            )
