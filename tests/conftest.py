"""What every test runs in: a real X server of its own, nothing of the user's settings."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Of several workers each has a core to itself: before PyTorch counts them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

from tiny import Ran, Run, save_tiny

# Threads off the main one must not touch a viewer: napari raises instead of risking a crash.
os.environ["NAPARI_ENSURE_PLUGIN_MAIN_THREAD"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Point Qt at the X server that pytest-xvfb has started, and napari at settings of its own."""
    # A job in the background of a shell ignores Ctrl-C, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # And under nohup the end of the terminal.
    if os.name == "posix" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network, see :func:`tiny.tiny_network`."""
    return save_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What napari's notifications said.

    One that was kept would keep the frames of its error, and a viewer in them.
    """
    from napari.utils.notifications import Notification, notification_manager

    heard: list[str] = []

    def hear(notification: Notification) -> None:
        heard.append(str(notification.message))

    notification_manager.notification_ready.connect(hear)
    yield heard
    notification_manager.notification_ready.disconnect(hear)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    from napari_arssr import cli

    def go(*words: object) -> Ran:
        capsys.readouterr()
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else -1
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return go
