"""The dock widget: choose an image, weights and how fine, and run.

It settles what is to be done, hands it to a thread, and shows what comes of it. What is to be
done is a :class:`~napari_arssr._plan.Plan`; how, is the matter of modules that know no window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import napari
import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QPushButton,
)

from napari_arssr import weights
from napari_arssr._advanced import Advanced
from napari_arssr._compare import HOW_TO_COMPARE, Comparison
from napari_arssr._device_choice import DeviceChoice
from napari_arssr._dock import Dock, open_dock
from napari_arssr._image_choice import ImageChoice
from napari_arssr._kept_place import KeptPlace
from napari_arssr._layers import LayerData
from napari_arssr._live_row import LiveRow
from napari_arssr._live_view import LiveView
from napari_arssr._live_worker import Lend
from napari_arssr._output_choice import OutputChoice, Unit, times
from napari_arssr._plan import Plan, Workshop, same_as_file
from napari_arssr._preferences import preferences, use_cache_folder
from napari_arssr._region_choice import RegionChoice
from napari_arssr._result import Looks, moved_with, result_layer
from napari_arssr._rows import Note, Rows, in_a_row
from napari_arssr._run_row import RunRow
from napari_arssr._telling import (
    came_to_its_end,
    files_of_layers,
    put_on_clipboard,
    tell,
)
from napari_arssr._view import affine_of, frame_of, mark_result
from napari_arssr._weights_choice import WeightsChoice
from napari_arssr._worker import Outcome, Runner, State
from napari_arssr.errors import OutOfMemory, UsageError
from napari_arssr.memory import in_bytes, require
from napari_arssr.timing import Speeds, in_words
from napari_arssr.upsampling import Settings, Target
from napari_arssr.watching import Stop, VagueReport

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Image

    from napari_arssr.volume import Volume

__all__ = ["UpsampleWidget", "upsample_selected"]

# Seconds after which it is looked again whether there is memory now.
_LOOK_AGAIN = 3
_HEIGHT = 640


class UpsampleWidget(Dock):
    """Raises the resolution of an image layer.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    height_of_rows = _HEIGHT

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        chosen = preferences()
        self._plan: Plan | None = None
        self._source: Image | None = None
        self._encoded: Plan | None = None
        self._wanted = False
        self._encoded_of: WeakSet[Image] = WeakSet()  # images of which features may be kept
        self._workshop = Workshop(Speeds(weights.cache_folder() / "timing.json"))
        self.runner = Runner(self, "napari-arssr run")
        self._checker = Runner(self, "napari-arssr file")

        self.image = ImageChoice(viewer, self._theme)
        self.weights = WeightsChoice(chosen.weights, self._theme, tell)
        self.output = OutputChoice()
        self.estimate = Note(self._theme)
        self.region = RegionChoice(viewer, self._theme)
        self.device = DeviceChoice(chosen.device, chosen.precision, self._theme, tell, self)
        self.advanced = Advanced(chosen.memory)
        self.run = RunRow(self.runner)
        self.message = Note(self._theme)
        self.copy = QPushButton("Copy as command")
        self.copy.setToolTip("Put the command line that does the same on the clipboard")
        self.live = LiveRow(self._live_view, self._theme)
        self._lay_out()
        self._connect()
        self._on_image()
        # Last, since what has the viewer's keys is to be closed again.
        self._place = KeptPlace(viewer, self)
        self._comparison = Comparison.of(viewer)

    def _lay_out(self) -> None:
        rows = Rows()
        rows.add("Image", self.image)
        rows.add("Model", self.weights)
        rows.add("Output", self.output, self.estimate)
        rows.add("Region", self.region)
        rows.add("Device", self.device.device.native, self.device.note)
        rows.add("Precision", self.device.precision.native)
        self._stack(
            rows,
            self.advanced,
            self.run,
            self.message,
            self.live,
            in_a_row(self.copy, stretch=True),
        )

    def _connect(self) -> None:
        self.image.changed.connect(self._on_image)
        self.image.altered.connect(self._on_altered)
        self.weights.changed.connect(self._on_setting)
        self.device.changed.connect(self._on_setting)
        self.advanced.changed.connect(self._on_setting)
        self.output.changed.connect(self._refresh)
        self.region.changed.connect(self._refresh)
        self.run.run_clicked.connect(self.start)
        self.runner.state_changed.connect(self._on_state)
        self.copy.clicked.connect(self.copy_command)
        self._viewer.layers.events.removed.connect(self._on_removed)
        self._again = QTimer(self)
        self._again.setSingleShot(True)
        self._again.setInterval(1000 * _LOOK_AGAIN)
        self._again.timeout.connect(self._refresh)
        self._end_with_the_window(partial(_abandon, self._runners(), self._workshop))

    # ------------------------------------------------------------------ what is to be done

    def _on_image(self) -> None:
        """Another image was chosen."""
        self._encoded = None
        self.live.off()
        self.message.say("")
        layer = self.image.layer
        self.region.set_layer(layer)
        self._suit()
        self._refresh()

    def _on_altered(self) -> None:
        """The image has other voxels, or lies elsewhere."""
        self._encoded = None
        self._suit()
        self._refresh()

    def _suit(self) -> None:
        """Offer what makes sense for the image as it is now."""
        layer = self.image.layer
        try:
            volume = self.image.volume()
        except UsageError:
            return  # it says so itself, and the button stays off
        assert layer is not None
        self.output.suit(volume)
        labels = tuple(layer.axis_labels)[-3:]
        named = len(labels) == 3 and not any(label.startswith("-") for label in labels)
        self.advanced.suit(
            labels if named else ("z", "y", "x"),
            plane=self.image.plane,
            series=volume.data.ndim == 4,
        )

    def _on_setting(self, _value: object = None) -> None:
        """What features depend on may have changed."""
        self._renew_live()
        self._refresh()

    def _settings(self) -> Settings:
        return Settings(
            weights=self.weights.value,
            device=self.device.device.value,
            precision=self.device.precision.value,
            memory=self.advanced.memory_bytes,
            normalize=self.advanced.method,
            consistency=self.advanced.scanner,
            orientations=self.advanced.count,
        )

    def _planned(self) -> Plan:
        """What Run is to do.

        Raises
        ------
        UsageError, OutOfMemory
            If it cannot be done; says why.
        """
        volume = self.image.volume()
        if self.weights.problem:
            raise UsageError(self.weights.problem)
        plan = Plan(
            volume,
            self.output.target(volume, self.advanced.axes.values),
            self.region.box(),
            None if self.advanced.every_frame or volume.data.ndim == 3 else self._frame(),
            self._settings(),
        )
        require(plan.bytes_needed, "This", plan.way_out)
        return plan

    def _frame(self) -> int:
        """The frame of the chosen layer that is shown; 0 of one without time."""
        layer = self.image.layer
        assert layer is not None
        return frame_of(self._viewer, layer) if self.image.volume().data.ndim == 4 else 0

    def _refresh(self) -> None:
        """Settle what Run would do, and say what would come of it."""
        self._plan = None
        problem = ""
        try:
            self._plan = self._planned()
        except (UsageError, OutOfMemory) as error:
            problem = str(error)
            if isinstance(error, OutOfMemory):
                self._again.start()  # memory may become free
        if self._plan is not None:
            self.estimate.say(self._prospect(self._plan))
        else:
            told_above = self.image.layer is None or problem in self.image.note.text()
            self.estimate.say("" if told_above else problem, alarming=True)
        self.run.set_ready(self._plan is not None, problem)
        self.copy.setEnabled(self._plan is not None and self._checker.state is State.IDLE)
        if self._wanted and self._plan is not None and self.runner.state is State.IDLE:
            self._wanted = False
            self.start()

    def _prospect(self, plan: Plan) -> tuple[str, ...]:
        """Shape, spacing, size and time of the result."""
        grid, plane = plan.grid, self.image.plane
        frames = f"{plan.frames} frames of " if plan.frames > 1 else ""
        seconds = self._seconds(plan)
        time_here = "time known after a first run"
        if seconds is not None:
            time_here = f"about {in_words(seconds)} here"
        return (
            frames + times(grid.shape[plane:]),
            Unit.of(plan.volume).show(grid.spacing[plane:]),
            in_bytes(plan.bytes),
            time_here,
        )

    def _seconds(self, plan: Plan) -> float | None:
        known = self._workshop.speeds[plan.key]
        return known.seconds(plan.work(known.halo, encoded=plan.reuses(self._encoded)))

    # ------------------------------------------------------------------------- run

    def start(self) -> None:
        """Run, unless something runs already."""
        self._refresh()
        layer = self.image.layer
        if self._plan is None or layer is None or self.runner.state is not State.IDLE:
            return
        use_cache_folder()
        plan = self._plan
        looks = Looks.of(layer)
        workshop = self._workshop

        def work(report: VagueReport, stop: Stop) -> LayerData:
            result = workshop.carry_out(plan, report, stop)
            return result_layer(result, plan.title_of(result), looks)

        self.run.announce(plan.title, self._seconds(plan))
        self.message.say("")
        self._source = layer
        self._encoded_of.add(layer)
        place = affine_of(layer)
        self.runner.start(work, partial(self._on_end, plan, layer, place, time.monotonic()))

    def run_when_ready(self) -> None:
        """Run as soon as there is something to run."""
        self._wanted = True
        self._refresh()

    def _on_state(self, _state: State) -> None:
        self._refresh()

    def _on_end(
        self,
        plan: Plan,
        source: Image,
        place: npt.NDArray[np.float64],
        started: float,
        outcome: Outcome,
    ) -> None:
        self.weights.refresh()
        if came_to_its_end(outcome, self.message, f"Upsampling {plan.volume.name}"):
            self._encoded = plan if plan.frames == 1 else None
            data, settings = moved_with(outcome.value, source, place)
            result = self._viewer.add_image(data, **settings)
            mark_result(result, source)
            self._comparison.rise()
            self.region.raise_box()
            took = in_words(time.monotonic() - started)
            self.message.say(f"Done in {took}: {settings['name']}. {HOW_TO_COMPARE}")
        self._refresh()

    def _on_removed(self, event: Any) -> None:
        """A layer is gone: what is being made of it, or was kept of it, is not wanted any more."""
        if event.value == self._source:
            self._source = None
            self.runner.cancel()
        if event.value in self._encoded_of:
            self._encoded_of.discard(event.value)
            self._encoded = None
            self._workshop.forget()

    # ------------------------------------------------------------------------- command

    def copy_command(self) -> None:
        """Put the equivalent command line on the clipboard, if there is one."""
        self._refresh()  # another frame, or another part, may be in view by now
        layer, plan = self.image.layer, self._plan
        if layer is None or plan is None or self._checker.state is not State.IDLE:
            return
        try:
            (source,) = files_of_layers([layer])
        except UsageError as error:
            self.message.say(str(error), alarming=True)
            return
        self.message.say(f"Comparing {layer.name} with its file…")
        self._checker.start(partial(_command, plan, source), self._on_checked)
        self._refresh()

    def _on_checked(self, outcome: Outcome) -> None:
        put_on_clipboard(outcome, self.message)
        self._refresh()

    # ------------------------------------------------------------------------- live view

    def _live_view(self) -> LiveView:
        """One of the image that is chosen; raises UsageError if there can be none."""
        volume = self._live_source()
        assert self.image.layer is not None
        self._encoded_of.add(self.image.layer)
        view = LiveView(self._viewer, self.image.layer, self._live_field(volume, 0))
        view.outdated.connect(self._renew_live)
        return view

    def _live_source(self) -> Volume:
        """What the live view is to be of; raises UsageError if there can be none."""
        volume = self.image.volume()
        if not self.weights.here:
            raise UsageError("Download the weights first, or choose others.")
        if self.weights.problem:
            raise UsageError(self.weights.problem)
        return volume

    def _live_field(self, volume: Volume, frame: int) -> Lend:
        plan = Plan(volume, Target(scale=1.0), frame=frame, settings=self._settings())
        return self._workshop.field(plan)

    def _renew_live(self, frame: int | None = None) -> None:
        """Give the live view the field of what is chosen and shown now."""
        if self.live.view is None:
            return
        try:
            volume = self._live_source()
        except UsageError as error:
            self.live.off(str(error))
            return
        shown = self._frame() if frame is None else frame
        self.live.view.field = self._live_field(volume, shown)

    # ------------------------------------------------------------------------- the end

    def _ends(self) -> Sequence[Callable[[], object]]:
        parts = (self.image, self.weights, self.region, self.device, self.run)
        return (
            partial(_abandon, self._runners(), self._workshop),
            self._again.stop,
            partial(self._viewer.layers.events.removed.disconnect, self._on_removed),
            self.live.close_down,
            self._comparison.close,
            self._place.close,
            *(part.close_down for part in parts),
        )

    def _runners(self) -> tuple[Runner, ...]:
        return self.runner, self._checker, self.weights.runner, self.device.runner


def upsample_selected() -> None:
    """Layers > Transform > Upsample: the widget, whether it is open or not, on the active layer."""
    viewer = napari.current_viewer()
    assert viewer is not None  # whose menu it is
    widget = open_dock(viewer, UpsampleWidget, "Upsample")
    layer = viewer.layers.selection.active
    if widget.image.offers(layer):
        widget.image.choose(layer)


def _abandon(runners: tuple[Runner, ...], workshop: Workshop, _gone: object = None) -> None:
    for runner in runners:
        runner.abandon()
    workshop.forget()


def _command(plan: Plan, source: Path, _report: VagueReport, stop: Stop) -> str:
    same_as_file(plan.volume, source, stop)
    return plan.command(source)
