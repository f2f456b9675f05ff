"""napari sample data: File > Open Sample.

What takes long is done in a thread while napari's window goes on: its progress stands in the
activity dock, where it can be cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from napari_arssr import samples
from napari_arssr._layers import LayerData, image_layer
from napari_arssr._preferences import use_cache_folder
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled
from napari_arssr.volume import Volume
from napari_arssr.weights import Progress, Stop

__all__ = ["brain", "cells", "phantom", "scan", "thick_slices"]

Result = TypeVar("Result")

_SLICES = (4, 1, 1)  # of thick slices, in voxels; and every which plane of the cells is kept
_MICROSCOPE = {"world": {"unit": "um", "labels": ("z", "y", "x")}}
_POLL_MS = 50


def scan() -> list[LayerData]:
    """A real brain, oblique, 2 × 2 × 2.2 mm."""
    return [image_layer(replace(samples.scan(), name="scan"))]


def phantom() -> list[LayerData]:
    """The phantom at 2 mm, over its exact reference at 1 mm."""
    low, reference = _in_background(
        "Computing the phantom",
        lambda progress, stop: samples.phantom_pair(2.0, progress=progress, stop=stop),
    )
    return _alike(replace(reference, name="phantom 1 mm (reference)"), replace(low, name="phantom"))


def thick_slices() -> list[LayerData]:
    """The phantom in slices of 4 mm, 1 × 1 mm in plane."""
    low, _ = _in_background(
        "Computing the phantom",
        lambda progress, stop: samples.phantom_pair(
            _SLICES, ScannerModel("slice-profile"), progress=progress, stop=stop
        ),
    )
    return [image_layer(replace(low, name="phantom, 4 mm slices"))]


def brain() -> list[LayerData]:
    """Ten axial slices of a head, from scikit-image."""
    use_cache_folder()
    return [
        image_layer(
            _in_background(
                "Downloading brain",
                lambda progress, stop: samples.brain(progress=progress, stop=stop),
            )
        )
    ]


def cells() -> list[LayerData]:
    """Membranes and nuclei, every fourth plane, from scikit-image; hidden below them, all planes.

    The world is in micrometres.
    """
    use_cache_folder()
    whole = _in_background(
        "Downloading cells", lambda progress, stop: samples.cells(progress=progress, stop=stop)
    )
    hidden, shown = [], []
    for channel, colormap in zip(whole, ("magenta", "green"), strict=True):
        volume = replace(channel, metadata=channel.metadata | _MICROSCOPE)
        look = {"colormap": colormap, "blending": "additive"}
        reference, coarse = _alike(
            replace(volume, name=f"{volume.name} (reference)"), volume.thinned(_SLICES)
        )
        hidden.append(_with(reference, look | {"visible": False}))
        shown.append(_with(coarse, look))
    return [*hidden, *shown]


def _alike(reference: Volume, *volumes: Volume) -> list[LayerData]:
    """Layers that are shown with the contrast of the first."""
    first = image_layer(reference)
    limits = {"contrast_limits": first[1]["contrast_limits"]}
    return [first, *(_with(image_layer(volume), limits) for volume in volumes)]


def _with(layer: LayerData, settings: dict[str, Any]) -> LayerData:
    data, own, kind = layer
    return data, own | settings, kind


def _in_background(title: str, work: Callable[[Progress, Stop], Result]) -> Result:
    """Do work in a thread, and the window's events in this one, until it is done.

    Whoever opens a sample gets its layers as soon as the call returns, as napari has it, and
    yet nothing stands still. Closing the window cancels.

    Parameters
    ----------
    title : str
        What the activity dock says.
    work : callable
        Takes what reports progress (done, all or None) and what tells whether to stop.

    Raises
    ------
    Cancelled
        If the user cancelled or closed the window.
    """
    from napari.utils.progress import cancelable_progress

    stop = threading.Event()
    done: tuple[int, int | None] = 0, None
    results: list[Result] = []
    errors: list[BaseException] = []

    def report(now: int, total: int | None) -> None:
        nonlocal done
        done = now, total

    def run() -> None:
        try:
            results.append(work(report, stop.is_set))
        except BaseException as error:  # raised again in the main thread
            errors.append(error)

    thread = threading.Thread(target=run, name=title, daemon=True)
    bar = cancelable_progress(desc=title, total=0)

    def show() -> None:
        if bar.is_canceled:  # napari calls back only where it does the iterating itself
            stop.set()
        now, total = done
        if bar.total != (total or 0):
            bar.total = total or 0
        bar.update(now - bar.n)

    with ExitStack() as stack:
        stack.callback(bar.close)
        stack.callback(stop.set)
        thread.start()
        _wait(thread, show, stop, stack)
    if errors:
        # Popped: a frame that held its own error would live, and the viewer with it. What of the
        # traceback is the thread's tells a user nothing.
        raise errors.pop().with_traceback(None)
    if not results:
        raise Cancelled(f"{title} was cancelled.")
    return results[0]


def _wait(
    thread: threading.Thread, show: Callable[[], None], stop: threading.Event, stack: ExitStack
) -> None:
    """Wait for a thread; where there is a Qt application, its events are handled meanwhile."""
    try:
        from qtpy.QtCore import QEventLoop, QTimer
        from qtpy.QtWidgets import QApplication, QMainWindow
    except ImportError:
        application = None
    else:
        application = QApplication.instance()
    if application is None or not isinstance(application, QApplication):
        while thread.is_alive():
            thread.join(_POLL_MS / 1000)
            show()
        return

    loop, timer = QEventLoop(), QTimer()
    active = application.activeWindow()
    windows = [active] if isinstance(active, QMainWindow) else _main_windows(application)
    showing = False

    def look() -> None:
        nonlocal showing
        if windows and not any(map(_is_open, windows)):
            stop.set()
        if not thread.is_alive() or stop.is_set():
            loop.quit()
        elif not showing:  # napari handles events while it draws a progress bar
            showing = True
            show()
            showing = False

    timer.timeout.connect(look)
    stack.callback(timer.stop)
    timer.start(_POLL_MS)
    loop.exec()  # ends too when the application is told to quit


def _main_windows(application: Any) -> list[Any]:
    from qtpy.QtWidgets import QMainWindow

    return [
        window
        for window in application.topLevelWidgets()
        if isinstance(window, QMainWindow) and window.isVisible()
    ]


def _is_open(window: Any) -> bool:
    try:
        return bool(window.isVisible())
    except RuntimeError:  # Qt has deleted it
        return False
