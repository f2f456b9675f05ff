"""The desktop app: napari with this package's widget docked, and files or the demo opened."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from napari_arssr.errors import ArssrError, FileError, NoVolume

if TYPE_CHECKING:
    import napari

    from napari_arssr._layers import LayerData
    from napari_arssr.volume import Volume

__all__ = ["build", "check_display", "check_qt", "main", "open_file", "run"]

_PLUGIN, _WIDGET = "napari-arssr", "Upsample"
# How the world of a stack is called whose file knows no orientation.
_STACK_AXES = ("z", "y", "x")
# As napari colours channels that it takes apart.
_TWO_COLOURS = ("magenta", "green")
_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "red")
_KEPT = 2000  # characters of what was written, for a message box
_ERROR_BOX = 0x10  # Windows' MB_ICONERROR
_USE_COMMANDS = "use the command line ('napari-arssr upsample --help')"
_INSTALL = 'pip install "napari-arssr[app]"'


def main() -> int:
    """The gui script: opens the files it is given."""
    from napari_arssr import cli

    words = ["app", *sys.argv[1:]]
    # Without a console, as on Windows, there are none; what writes to them must not fail.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is not None:
        return cli.main(words)
    sys.stderr = said = _Last()
    try:
        status = cli.main(words)
    except Exception:
        traceback.print_exc()
        status = 1
    if status and said.text:
        tell_in_a_box(said.text)
    return status


def tell_in_a_box(text: str) -> None:
    """Show what would stand in a console, in a box of the system's own: Qt may be what is missing.

    Windows alone starts programs without one.
    """
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.user32.MessageBoxW(None, text, "napari-arssr", _ERROR_BOX)


class _Last(io.StringIO):
    """Takes what is written, and keeps the end of it."""

    def write(self, text: str) -> int:
        kept = self.text + text
        self.seek(0)
        self.truncate()
        super().write(kept[-_KEPT:])
        return len(text)

    @property
    def text(self) -> str:
        """What was written last."""
        return self.getvalue()


def run(files: Sequence[Path] = (), *, demo: bool = False) -> int:
    """Open the app and stay until it is closed.

    Parameters
    ----------
    files : sequence of paths
        Opened as layers, one each.
    demo : bool
        Open the real sample scan and upsample it.

    Raises
    ------
    ArssrError
        Where there is no display or no Qt, or a file is missing.
    """
    for file in files:
        if not file.exists():
            raise FileError(f"{file}: there is no such file; check the name.")
    check_display(os.environ, sys.platform)
    check_qt()
    import napari

    build(files, demo=demo)
    napari.run()
    return 0


def check_display(environment: Mapping[str, str], platform: str) -> None:
    """Qt ends the process where there is no display: say so before.

    Raises
    ------
    ArssrError
        On a system that opens windows by X11 or Wayland, where neither is there, or does not
        answer.
    """
    if platform in ("win32", "darwin"):
        return
    if environment.get("QT_QPA_PLATFORM", "").partition(":")[0] not in ("", "xcb", "wayland"):
        return  # offscreen, for instance, which needs neither
    display, wayland = environment.get("DISPLAY"), environment.get("WAYLAND_DISPLAY")
    if not display and not wayland:
        raise ArssrError(
            "There is no display to open a window on: connect with 'ssh -X' or work at the "
            f"machine itself, or {_USE_COMMANDS}."
        )
    socket = Path(environment.get("XDG_RUNTIME_DIR", "")) / (wayland or "")
    if not (wayland and socket.exists()) and not (display and _x_answers(display)):
        raise ArssrError(
            f"The display {display or wayland} does not answer: connect anew with 'ssh -X', or "
            f"correct the variable {'DISPLAY' if display else 'WAYLAND_DISPLAY'}, or "
            f"{_USE_COMMANDS}."
        )


def _x_answers(display: str) -> bool:
    """Whether an X server lets us in, asked by the library that Qt asks by.

    Also where that library is missing, which is not the display's fault.
    """
    import ctypes

    try:
        xcb = ctypes.CDLL("libxcb.so.1")
    except OSError:
        return True
    xcb.xcb_connect.restype = ctypes.c_void_p
    xcb.xcb_connect.argtypes = ctypes.c_char_p, ctypes.c_void_p
    xcb.xcb_connection_has_error.argtypes = (ctypes.c_void_p,)
    xcb.xcb_disconnect.argtypes = (ctypes.c_void_p,)
    connection = xcb.xcb_connect(os.fsencode(display), None)
    try:
        return not xcb.xcb_connection_has_error(connection)
    finally:
        xcb.xcb_disconnect(connection)


def check_qt() -> None:
    """Raise an ArssrError that says what to install where Qt is missing or broken."""
    from importlib import import_module

    try:
        import_module("qtpy.QtWidgets")
    except ImportError as error:  # missing, or a system library it needs
        if "could be found" in str(error) or "No module named" in str(error):
            raise ArssrError(
                f"The app needs Qt, which is not installed: run '{_INSTALL}'."
            ) from None
        raise ArssrError(
            f"Qt cannot be loaded ({error}): install the system library it names, or run "
            f"'{_INSTALL}'."
        ) from None


def build(files: Sequence[Path] = (), *, demo: bool = False) -> napari.Viewer:
    """A viewer with the widget docked and the layers opened, without starting Qt's loop.

    A file that cannot be opened is told as a notification; the others are opened all the same.
    """
    import napari
    from napari.utils.notifications import show_error

    from napari_arssr._dock import open_dock
    from napari_arssr._widget import UpsampleWidget

    viewer = napari.Viewer(title="napari-arssr")
    viewer.canvas.overlays.scale_bar.visible = True
    widget = open_dock(viewer, UpsampleWidget, _WIDGET)
    for file in files:
        try:
            open_file(viewer, file)
        except Exception as error:  # the reader's, or napari's own of many kinds
            show_error(str(error))
    if demo:
        (scan,) = viewer.open_sample(_PLUGIN, "scan")
        widget.image.choose(scan)
        widget.run_when_ready()
    return viewer


def open_file(viewer: napari.Viewer, file: Path) -> None:
    """Open a file as layers: a scan or a stack as this package reads it, others as napari does.

    Of a stack with several channels each is a layer. A TIFF that is no stack is a picture, and
    napari's, as is a zarr store that holds no volume. The manifest claims neither, since that would
    take them from other readers wherever the plugin is installed; in the app they have their voxel
    sizes even so.

    Raises
    ------
    FileError
        If a stack cannot be read. Other readers raise what they please.
    """
    from napari.layers import Layer
    from napari.layers._source import layer_source

    from napari_arssr._reader import napari_get_reader
    from napari_arssr.io import is_stack

    if is_stack(file):
        try:
            channels = _channels(file)
        except NoVolume:
            viewer.open(str(file))
            return
        with layer_source(path=str(file)):  # for "Copy as command" to find it again
            for channel in channels:
                viewer.add_layer(Layer.create(*channel))
    elif napari_get_reader(str(file)) is not None:
        viewer.open(str(file), plugin=_PLUGIN)
    else:
        viewer.open(str(file))


def _channels(file: Path) -> list[LayerData]:
    """The layers of a stack: one, or one for each of its channels, coloured and all seen at once.

    Raises
    ------
    FileError
        If it cannot be read; NoVolume where it is no stack.
    """
    from napari_arssr.io import channels_of, read, without_suffix
    from napari_arssr.lazy import most_to_load

    channels = channels_of(file)
    most = most_to_load() // len(channels)
    if len(channels) == 1:
        return [_with_levels(_stack_layer(read(file, most=most)), file, None)]
    colours = _TWO_COLOURS if len(channels) == 2 else _COLOURS
    layers: list[LayerData] = []
    for channel, colour in zip(channels, cycle(colours), strict=False):
        volume = read(file, most=most, channel=channel.number)
        name = f"{without_suffix(volume.name)}: {channel}"
        layer = _stack_layer(replace(volume, name=name))
        data, settings, kind = _with_levels(layer, file, channel.number)
        if kind == "image":
            blending = "additive" if layers else "translucent_no_depth"
            settings |= {"colormap": colour, "blending": blending}
        layers.append((data, settings, kind))
    return layers


def _with_levels(layer: LayerData, file: Path, channel: int | None) -> LayerData:
    """A layer whose voxels stay in their file, with the coarser levels that this has.

    napari draws those that suit the zoom. What is in memory needs none.
    """
    from napari_arssr.io import StoredArray, coarser

    data, settings, kind = layer
    if not isinstance(data, StoredArray) or not (levels := coarser(file, channel)):
        return layer
    return [data, *levels], settings | {"multiscale": True}, kind


def _stack_layer(volume: Volume) -> LayerData:
    """A stack, or a channel of one, as a layer in a world of its own."""
    from napari_arssr._layers import layer_of, stack_unit
    from napari_arssr.io import origin_of

    unit = stack_unit(volume.spacing) if origin_of(volume).states_spacing else "pixel"
    world = {"world": {"unit": unit, "labels": _STACK_AXES}}
    return layer_of(replace(volume, metadata=volume.metadata | world))
