"""Live view: what the camera sees of a slice, decoded at the screen's own resolution.

The window's thread looks where the camera is and leaves a request; one worker thread takes the
newest, and never another. It answers coarse first, then fine, and the window puts each answer
where it belongs, as one image layer on top of the layer that is looked at.

**What the network is told.** A sampled voxel's cell, its size in voxels of the input, is what
decoders of this project go by. In the slice it is what a screen pixel covers; across it is 1, one
whole voxel, because that is what the slice on the screen is. So a picture is a part of one slice
of a run of the whole volume at scale (1, k, k), k screen pixels a voxel: the very numbers. A run
that is finer across too, at scale (k, k, k), has thinner slices, of which one may lie in the middle
of the input's. It cannot be the same, being the picture of a thinner slice; with the bundled
weights, on a brain at 2 mm and k = 3, it differs by 4 % of the image's standard deviation, where
the input itself differs by 32 %. The published decoder takes no cell: there the two are one.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error
from psygnal import Signal
from qtpy.QtCore import QCoreApplication, QEvent, QObject, QTimer
from qtpy.QtGui import QGuiApplication

from napari_arssr._layers import PLACE, volume_of
from napari_arssr._live_worker import Answer, Desk, Lend, Request, serve
from napari_arssr._top_layer import OneSlice, TopImage
from napari_arssr._view import (
    add_beside,
    affine_of,
    mark_helper,
    mark_result,
    remove,
    remove_later,
    results_of,
    view_of,
    visible_box,
)
from napari_arssr._worker import Job
from napari_arssr.errors import ArssrError, UsageError
from napari_arssr.slice_view import Patch, SliceView
from napari_arssr.timing import in_words
from napari_arssr.volume import Volume

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["Lend", "LiveView", "visible_box"]

Link = tuple[Any, Callable[..., None]]  # an event and what hears it

# Voxels a screen pixel along each axis, of the first picture. What would hardly be finer than
# the image itself is not worth showing.
_COARSE = (1 / 4, 1 / 2)
_WORTH_SHOWING = 1.2

_LOOK_EVERY = 4  # milliseconds, while an answer is awaited
_LONG = 10  # seconds, which are told as such
# Seconds after which it is said what is awaited. Every word has the whole window painted again,
# which takes time from the picture.
_PATIENT = 0.3

_LOOKS = ("contrast_limits_range", "contrast_limits", "colormap", "gamma", "opacity")


class LiveView:
    """Sharpens what a viewer shows of an image layer, as the camera moves.

    For the window's thread only, signals included: ``state`` says in a sentence what is going
    on, ``ended`` that the live view has stopped by itself (its layer or image was removed, or
    there was an error), and ``outdated`` that ``field`` is no longer that of what is seen: give
    it a new one then, at once.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : napari.layers.Image
    field : callable
        Called in a thread, with a callable that says whether nobody waits for it any more; gives
        a context that lends the field of one frame of the layer, or None while a run has it.
    frame : int
        Which frame ``field`` is of; if another is seen, ``outdated`` asks for that one's.
    """

    state = Signal(str)
    ended = Signal()
    outdated = Signal(int)  # the frame

    def __init__(self, viewer: ViewerModel, layer: Image, field: Lend, *, frame: int = 0) -> None:
        self._viewer = viewer
        self._source = layer
        self._lend = field
        self._image: TopImage | None = None
        self._desk = Desk()
        self._job: Job | None = None
        self._links: list[Link] = []
        self._numbers = 0
        self._asked: tuple[Any, ...] | None = None
        self._shown = (0, 0)
        self._content = 0
        self._frame = frame
        self._stale = False
        self._volume: Volume | None = None
        self._wanted = True
        self._updating = False
        self._said = ""
        self._stopped_dropped = 0
        self._gather = _Soon(self._ask)
        self._watch = QTimer()
        self._watch.setInterval(_LOOK_EVERY)
        self._watch.timeout.connect(self._collect)

    # ------------------------------------------------------------------------- on and off

    @property
    def active(self) -> bool:
        """Whether it is on."""
        return self._job is not None

    @property
    def image(self) -> Image | None:
        """The layer that shows the picture, once there is one."""
        return self._image

    @property
    def dropped(self) -> int:
        """Requests that were given up, or never begun, because a newer one came."""
        return self._stopped_dropped + self._desk.dropped

    @property
    def field(self) -> Lend:
        """Lends the field; set it anew when the layer's voxels or the frame change."""
        return self._lend

    @field.setter
    def field(self, lend: Lend) -> None:
        self._lend = lend
        self._content += 1
        self._stale = False
        if self.active:
            self._changed()

    def start(self) -> None:
        """Turn it on.

        Raises
        ------
        UsageError
            If the layer is no image that can be sharpened.
        """
        if self.active:
            return
        self._volume = volume_of(self._source, load=False)
        self._asked, self._wanted = None, True
        self._shown = (self._numbers, -1)
        self._desk = Desk()
        self._job = Job(partial(serve, self._desk), "napari-arssr live view")
        # A view that is merely forgotten must not leave its thread behind.
        weakref.finalize(self, self._job.cancel).atexit = False
        self._connect()
        self._job.start()
        self._changed()

    def stop(self) -> None:
        """Turn it off; its layer goes, its thread ends as soon as it notices."""
        if self._end(remove):
            self._say("")

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until a live view that was stopped has ended, at most ``seconds``."""
        return self._last_job is None or self._last_job.wait(seconds)

    _last_job: Job | None = None

    def _end(self, take_away: Callable[..., None]) -> bool:
        job, self._job = self._job, None
        if job is None:
            return False
        self._last_job = job
        job.cancel()
        self._stopped_dropped += self._desk.dropped
        self._desk.wake()
        self._desk = Desk()
        self._gather.stop()
        self._watch.stop()
        for emitter, slot in self._links:
            emitter.disconnect(slot)
        self._links.clear()
        image, self._image = self._image, None
        take_away(self._viewer, image)
        return True

    def _give_up(self, reason: str) -> None:
        """End by itself, and say why."""
        if self._end(remove_later):
            self._say(reason)
            self.ended.emit()

    def _connect(self) -> None:
        viewer, source = self._viewer, self._source
        moves = [
            viewer.scene.camera.events.zoom,
            viewer.scene.camera.events.center,
            viewer.canvas.events.size,
            viewer.canvas.grid.events,
            viewer.dims.events.point,
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
            viewer.layers.events.units,
            source.events.visible,
        ]
        pairs: list[Link] = [(emitter, self._changed) for emitter in moves]
        pairs += [(getattr(source.events, name), self._altered) for name in PLACE]
        pairs += [(getattr(source.events, name), self._dress) for name in _LOOKS[1:]]
        pairs += [
            (source.events.data, self._altered),
            (source.events.name, self._dress),
            (viewer.layers.events.removed, self._layer_gone),
        ]
        for emitter, slot in pairs:
            emitter.connect(slot)
            self._links.append((emitter, slot))

    # -------------------------------------------------------------------- what is seen

    def _changed(self, _event: object = None) -> None:
        """Ask soon; what changes in the meantime is one request."""
        self._gather.start()

    def _altered(self, _event: object = None) -> None:
        """The layer has other voxels, or lies elsewhere, where the field knows nothing."""
        self._volume = None
        self._stale = True
        self._changed()

    def _layer_gone(self, event: Any) -> None:
        if event.value == self._source:
            self._give_up(f"Live view is off: {self._source.name} was removed.")
        elif self._image is not None and event.value == self._image:
            self._image = None
            self._give_up("Live view is off: its layer was removed.")

    def _image_toggled(self, _event: object = None) -> None:
        """The user's eye, not ours, opens and shuts the layer."""
        if not self._updating and self._image is not None:
            self._wanted = bool(self._image.visible)
            self._changed()

    def _ask(self) -> None:
        """Look where the camera is, and leave a request if it sees something new."""
        if not self.active:
            return
        try:
            request = self._request()
        except UsageError as error:
            self._rest(f"Live view rests: {error}.")
            return
        if request is None:
            return
        self._set_visible(True)
        self._desk.put(request)
        self._watch.start()

    def _request(self) -> Request | None:
        """What to ask for; None if it was asked for already.

        Raises
        ------
        UsageError
            If there is nothing to ask for; says why, in half a sentence.
        """
        source = self._source
        if self._viewer.dims.ndisplay != 2:
            raise UsageError("it works in 2D, and the display is in 3D")
        if not source.visible:
            raise UsageError(f"{source.name} is hidden")
        if not self._wanted:
            raise UsageError("its layer is hidden")
        if self._volume is None:
            self._volume = volume_of(source, load=False)
        try:
            view = view_of(self._viewer, source, self._volume)
            seen = view.box
        except UsageError as error:
            raise UsageError(f"nothing of {source.name} is seen ({error})") from None
        if seen is None:
            raise UsageError(f"nothing of {source.name} is seen")
        stages = _stages(view)
        if not stages:
            raise UsageError("zoom in; its voxels are no larger than the screen's pixels")
        self._stale |= self._frame != view.frame
        self._frame = view.frame
        if self._stale:
            self.outdated.emit(view.frame)
        if self._stale:  # nobody had a newer field
            raise UsageError(f"what is seen of {source.name} has changed; turn it on again")
        grid = stages[-1].grid
        asked = (*view.axes, view.frame, self._content, grid.shape, grid.affine.tobytes())
        if asked == self._asked:
            return None
        self._asked = asked
        self._numbers += 1
        return Request(
            self._numbers,
            view,
            affine_of(source),
            seen,
            stages,
            self._lend,
            time.perf_counter(),
        )

    def _rest(self, reason: str) -> None:
        """Show nothing, ask for nothing, until something changes."""
        self._asked = None
        self._desk.put(None)
        # What was on its way when the view went elsewhere is not to come back.
        self._shown = (self._numbers + 1, -1)
        self._numbers += 1
        self._set_visible(False)
        self._say(reason)

    # ------------------------------------------------------------------ what is answered

    def _collect(self) -> None:
        """Show what the worker has left."""
        if self._job is None:
            self._watch.stop()
            return
        outcome = self._job.outcome
        while self._desk.answers:
            answer = self._desk.answers.popleft()
            if answer.rank > self._shown:
                self._shown = answer.rank
                self._show(answer)
                if answer.last:
                    rows, columns = answer.plane.shape
                    told = f"{columns} × {rows} in {_took(answer.seconds)}"
                    self._say(f"Live view: {told}{self._covered_by()}.")
            elif answer.last:
                self._desk.drop()
        if outcome is not None and outcome.error is not None:
            reason = f"Live view is off: {_told(outcome.error)}"
            self._give_up(reason)
            show_error(reason)
            return
        newest = self._desk.newest
        if newest is None or self._shown == (newest.number, len(newest.stages) - 1):
            self._watch.stop()
        elif self._desk.doing and time.perf_counter() - newest.asked > _PATIENT:
            self._say(f"Live view: {self._desk.doing} …")

    def _show(self, answer: Answer) -> None:
        request = answer.request
        view, patch = request.view, request.stages[answer.stage]
        data = OneSlice(answer.plane, view)
        affine = view.placed(request.affine, patch.start, patch.step)
        self._updating = True
        try:
            if self._image is None:
                self._add(data, affine)
            else:
                self._image.place(data, affine)
        finally:
            self._updating = False

    def _covered_by(self) -> str:
        """The result that hides the picture, if one does."""
        layers = self._viewer.layers
        height = layers.index(self._image)
        for result, source in results_of(self._viewer):
            if source == self._source and result.visible and layers.index(result) > height:
                return f"; hide {result.name}, which covers it, to see it"
        return ""

    def _add(self, data: OneSlice, affine: npt.NDArray[np.float64]) -> None:
        """A layer right above the image."""
        self._image = TopImage(
            self._source,
            data,
            affine,
            contrast_limits=self._source.contrast_limits,
            interpolation2d="linear",
        )
        mark_result(self._image, self._source)
        mark_helper(self._image)
        self._dress()
        self._image.events.visible.connect(self._image_toggled)
        self._links.append((self._image.events.visible, self._image_toggled))
        over = [result for result, source in results_of(self._viewer) if source == self._source]
        below = max((self._source, *over), key=self._viewer.layers.index)
        add_beside(self._viewer, self._image, below)

    def _dress(self, _event: object = None) -> None:
        """Let the picture look as the image does."""
        if self._image is None:
            return
        for name in _LOOKS:
            setattr(self._image, name, getattr(self._source, name))
        self._image.name = f"{self._source.name} live view"

    def _set_visible(self, visible: bool) -> None:
        if self._image is not None and self._image.visible != visible:
            self._updating = True
            try:
                self._image.visible = visible
            finally:
                self._updating = False

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.state.emit(text)


class _Soon(QObject):
    """Calls once the event that is being handled is over, and before the window is painted.

    One turn of the wheel moves zoom and centre, and is one call.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call
        self.waiting = False

    def start(self) -> None:
        """Call soon."""
        if not self.waiting:
            self.waiting = True
            QCoreApplication.postEvent(self, QEvent(QEvent.Type.User))

    def stop(self) -> None:
        """Do not."""
        self.waiting = False

    def event(self, event: QEvent | None) -> bool:
        """It is soon."""
        if event is None or event.type() != QEvent.Type.User:
            return super().event(event)
        if self.waiting:
            self.waiting = False
            self._call()
        return True


def _stages(view: SliceView) -> tuple[Patch, ...]:
    """From coarse to the finest that the screen can show; none where there is nothing to gain."""
    fine = view.patch()
    if fine is None:
        return ()
    stages = [fine]
    for density in _COARSE:
        coarse = view.patch(density)
        if coarse is not None and max(view.voxel_pixels) * density >= _WORTH_SHOWING:
            stages.insert(0, coarse)
            break
    screen = QGuiApplication.primaryScreen()
    ratio = screen.devicePixelRatio() if screen is not None else 1.0
    finest = view.patch(ratio) if ratio > 1 else None
    if finest is not None:  # a canvas pixel is several of the screen's
        stages.append(finest)
    return tuple(stages)


def _told(error: BaseException) -> str:
    """An error in a sentence."""
    if isinstance(error, ArssrError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _took(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < _LONG else in_words(seconds)
