"""The second dock widget: several stacks of thick slices into one sharp volume.

It settles which stacks are to be fitted and how, hands that to a thread, and shows what comes of
it: the volume as it sharpens, how far it is from the data, where slices were found, the result.
What is to be done is a :class:`~napari_arssr._fit_plan.FitPlan`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari
import numpy as np
import numpy.typing as npt
from napari.layers import Image
from napari.utils.notifications import show_warning
from qtpy.QtCore import QSignalBlocker, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QPushButton,
)

from napari_arssr import io
from napari_arssr._compare import HOW_TO_COMPARE, Comparison
from napari_arssr._device_choice import DeviceChoice
from napari_arssr._dock import Dock, open_dock
from napari_arssr._fit_plan import FitPlan, Fitted
from napari_arssr._fit_settings import FitAdvanced, MethodChoice, VoxelSize
from napari_arssr._kept_place import KeptPlace
from napari_arssr._layers import LayerData, grid_of, image_layer, volume_of
from napari_arssr._live_picture import LivePicture
from napari_arssr._live_row import LiveRow
from napari_arssr._live_view import LiveView
from napari_arssr._loss_curve import LossCurve
from napari_arssr._output_choice import Unit, times
from napari_arssr._preferences import preferences, use_cache_folder
from napari_arssr._result import Looks, result_layer
from napari_arssr._rows import Note, Rows, in_a_row
from napari_arssr._run_row import RunRow
from napari_arssr._sight import Sight
from napari_arssr._slices_layer import SlicesLayer, StackOutlines
from napari_arssr._stack_choice import MaskChoice, StackChoice
from napari_arssr._telling import (
    came_to_its_end,
    files_of_layers,
    put_on_clipboard,
    tell,
)
from napari_arssr._view import affine_of, is_helper, mark_result
from napari_arssr._worker import Outcome, Runner, State
from napari_arssr.errors import OutOfMemory, UsageError
from napari_arssr.memory import in_bytes, require
from napari_arssr.timing import in_words
from napari_arssr.volume import Grid, Volume
from napari_arssr.watching import Stop, VagueReport, unheard

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Labels

__all__ = ["FitWidget", "fit_selected"]

_LOOK_EVERY = 100  # milliseconds, for pictures and numbers while a fit runs
_LOOK_AGAIN = 3  # seconds after which it is looked again whether there is memory now
_HEIGHT = 720
_FILTER = "Fits (*.safetensors)"
_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class _Done:
    """A fit that is done, and the layers that it came from and became.

    One that was opened from a file came from no layers: it has neither stacks nor a reference.
    Layers are named by their unique ids, for those that are removed not to be kept.
    """

    fitted: Fitted
    looks: Looks
    result: str
    place: Grid  # where the result was put
    stacks: tuple[str, ...] = ()
    places: tuple[bytes, ...] = ()
    reference: str = ""
    again: set[str] = field(default_factory=set)  # what it was sampled to since

    @property
    def results(self) -> set[str]:
        """Those that it became."""
        return {self.result, *self.again}


@dataclass(frozen=True, eq=False)
class _Begun:
    """A run: its plan, the layers of its stacks, where these lay, and how the reference looks."""

    plan: FitPlan
    layers: tuple[Image, ...]
    places: list[npt.NDArray[np.float64]]
    looks: Looks

    @property
    def moved(self) -> list[str]:
        """Names of layers that lie elsewhere by now."""
        pairs = zip(self.layers, self.places, strict=True)
        return [layer.name for layer, then in pairs if not np.array_equal(affine_of(layer), then)]


@dataclass(frozen=True, eq=False)
class _Made:
    """What a run hands over: the fit, and layers that are ready to be added."""

    fitted: Fitted
    result: LayerData
    uncertainty: LayerData | None


class FitWidget(Dock):
    """Fits one volume to several stacks of thick slices.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    height_of_rows = _HEIGHT

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer)
        self._plan: FitPlan | None = None
        self._running: tuple[Image | Labels, ...] = ()
        self._fits: list[_Done] = []  # oldest first
        self._live_fit: _Done | None = None  # that the live view is of
        self._sight: Sight | None = None
        self._picture = LivePicture(viewer)
        self._slices = SlicesLayer(viewer)
        self.runner = Runner(self, "napari-arssr fit")
        self._helper = Runner(self, "napari-arssr fit file")

        self.stacks = StackChoice(viewer, self._theme)
        self.within = MaskChoice(viewer, self._theme)
        self.slices = QCheckBox("Show slices in 3D")
        self.slices.setToolTip(
            "Outlines of all slices: where the files say they are, and after the fit where they "
            "were found"
        )
        self.slices_note = Note(self._theme)
        self.voxel_size = VoxelSize()
        self.method = MethodChoice()
        chosen = preferences()
        self.advanced = FitAdvanced(chosen.weights, self._theme, tell)
        self.device = DeviceChoice(chosen.device, "auto", self._theme, tell, self)
        self.estimate = Note(self._theme)
        self.run = RunRow(self.runner)
        self.curve = LossCurve(self._theme)
        self.message = Note(self._theme)
        self.copy = QPushButton("Copy as command")
        self.copy.setToolTip("Put the command line that does the same on the clipboard")
        self.save = QPushButton("Save fit…")
        self.save.setToolTip(
            "Keep volume, poses and network in a file, to go on with or to sample again: "
            "napari-arssr fit … --field FILE --resume"
        )
        self.open = QPushButton("Open fit…")
        self.open.setToolTip("A fit that was saved here or with napari-arssr fit … --field FILE")
        self.which = Note(self._theme)
        self.again = QPushButton("Sample again")
        self.again.setToolTip("The fit that is done, in voxels of the size above; no new fit")
        self.live = LiveRow(self._live_view, self._theme)
        self._lay_out()
        self._connect()
        self._refresh()
        # Last, since what has the viewer's keys is to be closed again.
        self._place = KeptPlace(viewer, self)
        self._comparison = Comparison.of(viewer)

    def _lay_out(self) -> None:
        rows = Rows()
        rows.add("Stacks", self.stacks)
        rows.add("Reference", self.stacks.reference.native)
        rows.add("Mask", self.within)
        rows.add("", in_a_row(self.slices, stretch=True))
        rows.add("", self.slices_note)
        rows.add("Output", self.voxel_size, self.estimate)
        rows.add("Method", self.method)
        rows.add("Moves", self.method.motion.native)
        rows.add("", self.method.register.native)
        rows.add("", self.method.uncertainty.native)
        rows.add("Device", self.device.device.native, self.device.note)
        self._stack(
            rows,
            self.advanced,
            self.run,
            self.curve,
            self.message,
            self.live,
            self.which,
            in_a_row(self.again, self.save, self.open, stretch=True),
            in_a_row(self.copy, stretch=True),
        )

    def _connect(self) -> None:
        self.stacks.changed.connect(self._on_stacks)
        for part in (self.within, self.voxel_size, self.method, self.advanced, self.device):
            part.changed.connect(self._refresh)
        self.run.run_clicked.connect(self.start)
        self.runner.state_changed.connect(self._on_state)
        self._helper.state_changed.connect(self._on_state)
        self.slices.toggled.connect(self._on_slices)
        self.copy.clicked.connect(self.copy_command)
        self.save.clicked.connect(self._on_save)
        self.open.clicked.connect(self._on_open)
        self.again.clicked.connect(self.sample_again)
        self._viewer.layers.events.removed.connect(self._on_removed)
        self._viewer.layers.selection.events.active.connect(self._on_active)
        self._look = QTimer(self)
        self._look.setInterval(_LOOK_EVERY)
        self._look.timeout.connect(self._take)
        self._memory = QTimer(self)
        self._memory.setSingleShot(True)
        self._memory.setInterval(1000 * _LOOK_AGAIN)
        self._memory.timeout.connect(self._refresh)
        # Not at once: while napari removes layers, nobody else may.
        self._no_slices = QTimer(self)
        self._no_slices.setSingleShot(True)
        self._no_slices.setInterval(0)
        self._no_slices.timeout.connect(partial(self.slices.setChecked, False))
        self._end_with_the_window(partial(_abandon, self._runners()))

    # ------------------------------------------------------------------ what is to be done

    def _on_stacks(self) -> None:
        """Others are chosen, or a chosen one lies elsewhere."""
        self._draw_slices()
        self._refresh()

    def _planned(self) -> FitPlan:
        """What Run is to do.

        Raises
        ------
        UsageError, OutOfMemory
            If it cannot be done; says why.
        """
        volumes = self.stacks.volumes
        if len(volumes) < 2:
            raise UsageError("Tick two or more stacks of one subject.")
        self.voxel_size.suit(volumes, volumes[self.stacks.number])
        settings = replace(
            self.method.settings(self.advanced),
            spacing=self.voxel_size.value,
            reference=self.stacks.number,
            device=self.device.device.value,
        )
        if settings.refines and settings.network_prior and self.advanced.weights.problem:
            raise UsageError(self.advanced.weights.problem)
        plan = FitPlan(
            volumes,
            settings,
            self.within.volume(),
            self.method.wants_uncertainty,
            self.within.bounds,
        )
        require(plan.bytes_needed, "This", "choose a larger voxel size or a mask")
        return plan

    def _refresh(self, _value: object = None) -> None:
        """Settle what Run would do, and say what would come of it."""
        self._plan = None
        problem = ""
        try:
            self._plan = self._planned()
        except (UsageError, OutOfMemory) as error:
            problem = str(error)
            if isinstance(error, OutOfMemory):
                self._memory.start()  # memory may become free
        if self._plan is not None:
            self.estimate.say(_prospect(self._plan))
        else:
            self.estimate.say(problem, alarming=bool(self.stacks.layers))
        self.run.set_ready(self._plan is not None, problem)
        idle = self.runner.state is State.IDLE and self._helper.state is State.IDLE
        self.copy.setEnabled(self._plan is not None and self._helper.state is State.IDLE)
        self.save.setEnabled(self._done is not None and idle)
        self.again.setEnabled(self._done is not None and idle)
        self.open.setEnabled(idle)
        self.live.box.setEnabled(self._done is not None or self.live.box.isChecked())
        self._name_fit()

    def _on_active(self, _event: object = None) -> None:
        """Another layer is selected, and may be the result of another fit."""
        self._name_fit()

    def _name_fit(self) -> None:
        """Which of several fits is meant."""
        done = self._done
        self.which.say(
            f"Of {done.fitted.title(None)}; select another fit's result to change that."
            if done is not None and len(self._fits) > 1
            else ""
        )

    @property
    def _done(self) -> _Done | None:
        """The fit that is meant: the one whose result is selected, else the newest."""
        active = self._viewer.layers.selection.active
        selected = "" if active is None else str(active.unique_id)
        found = [one for one in self._fits if selected in one.results] or self._fits
        return found[-1] if found else None

    # ------------------------------------------------------------------------- run

    def start(self) -> None:
        """Fit, unless something runs already."""
        self._refresh()
        plan = self._plan
        if plan is None or self.runner.state is not State.IDLE:
            return
        use_cache_folder()
        layers = tuple(self.stacks.layers)
        reference = layers[plan.settings.reference]
        looks = Looks.of(reference)
        plan = plan.with_own_mask()
        sight = Sight(f"{plan.title} (so far)", looks, _world(plan.reference))

        def work(report: VagueReport, stop: Stop) -> _Made:
            fitted = plan.carry_out(report, stop, sight)
            volume = fitted.sample(None, unheard, stop)
            spread = fitted.uncertainty
            return _Made(
                fitted,
                result_layer(volume, plan.title, looks),
                None if spread is None else _uncertainty_layer(spread, plan.title),
            )

        self.run.announce(plan.title, None)
        self.message.say("")
        self.curve.clear()
        mask = self.within.layer
        self._running = layers if mask is None else (*layers, mask)
        self._sight = sight
        self._picture.begin(reference)
        self._look.start()
        begun = _Begun(plan, layers, [affine_of(layer) for layer in layers], looks)
        self.runner.start(work, partial(self._on_end, begun, time.monotonic()))

    def _on_state(self, _state: State) -> None:
        self._refresh()

    def _take(self) -> None:
        """Show what the thread has left."""
        if self._sight is None:
            return
        self.curve.add(self._sight.numbers())
        picture = self._sight.picture()
        if picture is not None and self.runner.state is State.RUNNING:
            self._picture.show(picture)

    def _on_end(self, begun: _Begun, started: float, outcome: Outcome) -> None:
        self._look.stop()
        self._take()
        self._sight = None
        self._running = ()
        if not came_to_its_end(outcome, self.message, "Fitting the stacks"):
            self._picture.end()
        else:
            self._show_result(outcome.value, begun)
            self._say_done(outcome.value.fitted, time.monotonic() - started, begun.moved)
        self._refresh()

    def _show_result(self, made: _Made, begun: _Begun) -> None:
        self.live.off()
        reference = begun.layers[made.fitted.state.settings.reference]
        result = self._add(made)
        self._picture.end()  # after the result is there, so that nothing blinks
        mark_result(result, reference)
        self._comparison.rise()
        self._keep(
            _Done(
                made.fitted,
                begun.looks,
                str(result.unique_id),
                grid_of(result),
                tuple(str(layer.unique_id) for layer in begun.layers),
                tuple(volume.affine.tobytes() for volume in begun.plan.volumes),
                str(reference.unique_id),
            )
        )
        self._draw_slices()

    def _keep(self, done: _Done) -> None:
        """A fit that is new; of those before it only those whose results are still there."""
        self._fits.append(done)
        self._forget()

    def _forget(self) -> None:
        """Let go of fits of which nothing is seen any more, with their volumes and networks.

        The newest is kept for as long as its stacks are there, without a result too.
        """
        left = {str(layer.unique_id) for layer in self._viewer.layers}
        newest = self._fits[-1:]
        self._fits = [
            one
            for one in self._fits
            if left & one.results or (one in newest and left.intersection(one.stacks))
        ]
        if self._live_fit not in self._fits:
            self._live_fit = None

    def _layer(self, unique_id: str) -> Image | None:
        """A layer of the viewer; None where it was removed."""
        layers = self._viewer.layers
        return next((one for one in layers if str(one.unique_id) == unique_id), None)

    def _add(self, made: _Made) -> Image:
        """Add a fit's layers; gives that of the volume."""
        if made.uncertainty is not None:
            data, settings, _ = made.uncertainty
            self._viewer.add_image(data, **settings)
        data, settings, _ = made.result
        return self._viewer.add_image(data, **settings)

    def _say_done(self, fitted: Fitted, seconds: float, moved: Sequence[str]) -> None:
        state = fitted.state
        words = [f"Done in {in_words(seconds)}: {fitted.title(None)}. {HOW_TO_COMPARE}"]
        if moved:
            words.append(
                f"While this ran {', '.join(moved)} was moved; the result lies where that was."
            )
        words += [
            f"{record.name}: slice {', '.join(map(str, record.suspects))} of "
            f"{len(record.weight)} hardly believed."
            for record in state.stacks
            if record.suspects
        ]
        self.message.say(" ".join([*words, *state.warnings]), alarming=bool(state.warnings))
        for warning in state.warnings:
            show_warning(warning)

    def sample_again(self) -> None:
        """Make another layer of the fit that is done, in voxels of the size that is chosen."""
        done = self._done
        if done is None or self.runner.state is not State.IDLE:
            return
        spacing = self.voxel_size.value
        fitted = done.fitted
        title = fitted.title(spacing)

        def work(report: VagueReport, stop: Stop) -> LayerData:
            return result_layer(fitted.sample(spacing, report, stop), title, done.looks)

        self.run.announce(title, None)
        self.message.say("")
        self.runner.start(work, partial(self._on_sampled, done))

    def _on_sampled(self, done: _Done, outcome: Outcome) -> None:
        if came_to_its_end(outcome, self.message, "Sampling the fit"):
            data, settings, _ = outcome.value
            result = self._viewer.add_image(data, **settings)
            done.again.add(str(result.unique_id))
            reference = self._layer(done.reference)
            if reference is not None:
                mark_result(result, reference)
                self._comparison.rise()
            self.message.say(f"Sampled: {settings['name']}.")
        self._refresh()

    def _on_removed(self, event: Any) -> None:
        """A layer is gone: what is being made of it is not wanted any more."""
        if self._slices.owns(event.value):
            self.slices.setChecked(False)
        if event.value in self._running:
            self._running = ()
            self.runner.cancel()
        before = len(self._fits)
        self._forget()
        if len(self._fits) < before:
            self._refresh()

    # ------------------------------------------------------------------------- slices

    def _on_slices(self, on: bool) -> None:
        self.stacks.show_colours(on)
        if not on:
            self._slices.hide()
            self.slices_note.say("")
            return
        self._draw_slices()
        if self._slices.layer is None:
            with QSignalBlocker(self.slices):
                self.slices.setChecked(False)
            self.stacks.show_colours(False)
            self.slices_note.say("Tick stacks first: their slices are shown.")

    def _draw_slices(self) -> None:
        """Where slices are, as far as that is known now."""
        if not self.slices.isChecked():
            return
        volumes = self.stacks.volumes
        fitted = self._fit_of_stacks()
        if fitted is not None:
            stacks = [
                StackOutlines(record.outlines, record.suspects) for record in fitted.state.stacks
            ]
            doubted = sum(len(stack.doubted) for stack in stacks)
            more = f"; {doubted} of them, red, hardly believed" if doubted else ""
            self.slices_note.say(f"Slices where the fit found them{more}.")
            self._slices.show(stacks, fitted.reference)
        elif volumes:
            self.slices_note.say("Slices where the files say.")
            stacks = [
                StackOutlines(volume.grid.slice_outlines(volume.grid.slice_axis))
                for volume in volumes
            ]
            self._slices.show(stacks, volumes[self.stacks.number])
        else:
            self._no_slices.start()

    def _fit_of_stacks(self) -> Fitted | None:
        """The newest fit of the stacks that are chosen, as they lie now.

        One that was opened is shown where no stacks are.
        """
        now = tuple(volume.affine.tobytes() for volume in self.stacks.volumes)
        stacks = tuple(str(layer.unique_id) for layer in self.stacks.layers)
        found = [one.fitted for one in self._fits if (one.stacks, one.places) == (stacks, now)]
        return found[-1] if found else None

    # ------------------------------------------------------------------- command, file

    def copy_command(self) -> None:
        """Put the equivalent command line on the clipboard, if there is one."""
        self._refresh()
        plan = self._plan
        if plan is None or self._helper.state is not State.IDLE:
            return
        mask = self.within.layer
        try:
            paths = files_of_layers([*self.stacks.layers, *([] if mask is None else [mask])])
        except UsageError as error:
            self.message.say(str(error), alarming=True)
            return
        sources, own = paths[: len(plan.volumes)], None if mask is None else paths[-1]

        def work(_report: VagueReport, stop: Stop) -> str:
            return plan.compared_command(sources, own, stop)

        self.message.say("Comparing layers with their files…")
        self._helper.start(work, self._on_command)

    def _on_command(self, outcome: Outcome) -> None:
        put_on_clipboard(outcome, self.message)

    def _on_save(self) -> None:
        done = self._done
        if done is None:
            return
        name = f"{io.without_suffix(done.fitted.reference.name)}_fit{_SUFFIX}"
        path, _ = QFileDialog.getSaveFileName(self, "Save the fit", name, _FILTER)
        if path:
            self.save_fit(Path(path))

    def save_fit(self, path: Path) -> None:
        """Keep the fit that is done in a file; one without a suffix gets it."""
        done = self._done
        if done is None:
            return
        target = path if path.suffix.lower() == _SUFFIX else path.with_name(path.name + _SUFFIX)
        if target != path and target.exists():  # the dialog has asked about another name
            self.message.say(f"{target} exists; choose another name.", alarming=True)
            return

        def work(_report: VagueReport, _stop: Stop) -> Path:
            return done.fitted.save(target)

        self.message.say(f"Saving {target.name}…")
        self._helper.start(work, self._on_saved)

    def _on_saved(self, outcome: Outcome) -> None:
        if came_to_its_end(outcome, self.message, "Saving the fit", "The fit was not saved"):
            self.message.say(f"Saved: {outcome.value}")

    def _on_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a fit", "", _FILTER)
        if path:
            self.open_fit(Path(path))

    def open_fit(self, path: Path) -> None:
        """Show a fit that was kept in a file, in the voxels that it was made with."""
        if self.runner.state is not State.IDLE:
            return
        device = self.device.device.value

        def work(report: VagueReport, stop: Stop) -> _Made:
            report(None, "reading")
            fitted = Fitted.read(path, device)
            volume = fitted.sample(None, report, stop)
            spread = fitted.uncertainty
            title = fitted.title(None)
            return _Made(
                fitted,
                image_layer(replace(volume, name=title)),
                None if spread is None else _uncertainty_layer(spread, title),
            )

        self.run.announce(path.name, None)
        self.message.say("")
        self.runner.start(work, self._on_opened)

    def _on_opened(self, outcome: Outcome) -> None:
        if came_to_its_end(outcome, self.message, "Opening the fit", "The fit was not opened"):
            made = outcome.value
            self.live.off()
            result = self._add(made)
            looks = Looks.of(result)
            self._keep(_Done(made.fitted, looks, str(result.unique_id), grid_of(result)))
            if not self.stacks.layers:  # else the sizes offered are theirs
                opened = volume_of(result)
                self.voxel_size.suit([opened], opened)
            self._draw_slices()
            self.message.say(f"Opened: {result.name}.")
        self._refresh()

    # ------------------------------------------------------------------------- live view

    def _live_view(self) -> LiveView:
        """One of the fit that is meant; raises UsageError if there can be none."""
        done = self._done
        result = None if done is None else self._layer(done.result)
        if done is None or result is None:
            raise UsageError("The result is gone; fit or sample it again.")
        view = LiveView(self._viewer, result, done.fitted.lend(_motion(done, result)))
        view.outdated.connect(self._renew_live)
        self._live_fit = done
        return view

    def _renew_live(self, _frame: int) -> None:
        """The result was moved, and with it the fit."""
        done, view = self._live_fit, self.live.view
        result = None if done is None else self._layer(done.result)
        if done is not None and view is not None and result is not None:
            view.field = done.fitted.lend(_motion(done, result))

    # ------------------------------------------------------------------------- the end

    def _ends(self) -> Sequence[Callable[[], object]]:
        parts = (self.stacks, self.within, self.advanced, self.device, self.run)
        return (
            partial(_abandon, self._runners()),
            self._look.stop,
            self._memory.stop,
            self._no_slices.stop,
            partial(self._viewer.layers.events.removed.disconnect, self._on_removed),
            partial(self._viewer.layers.selection.events.active.disconnect, self._on_active),
            self.live.close_down,
            self._picture.end,
            self._slices.hide,
            self._comparison.close,
            self._place.close,
            *(part.close_down for part in parts),
        )

    def _runners(self) -> tuple[Runner, ...]:
        return self.runner, self._helper, self.advanced.weights.runner, self.device.runner


def fit_selected() -> None:
    """Layers > Transform > Fit stacks: the widget, whether it is open or not.

    Several images that are selected are the stacks.
    """
    viewer = napari.current_viewer()
    assert viewer is not None  # whose menu it is
    widget = open_dock(viewer, FitWidget, "Fit stacks")
    selected = viewer.layers.selection
    images = [one for one in selected if isinstance(one, Image) and not is_helper(one)]
    if len(images) > 1:
        widget.stacks.choose(images)


def _motion(done: _Done, result: Image) -> npt.NDArray[np.float64]:
    """How a fit's result was moved since it was made, RAS+ millimetres to RAS+ millimetres."""
    return grid_of(result).motion_from(done.place)


def _prospect(plan: FitPlan) -> Sequence[str]:
    """Shape, spacing and size of the result, and what fitting takes."""
    grid = plan.grid
    return (
        times(grid.shape),
        Unit.of(plan.reference).show(grid.spacing),
        in_bytes(4 * grid.size),
        f"{in_bytes(plan.bytes_needed)} while fitting",
    )


def _world(volume: Volume) -> dict[str, object]:
    """Of a volume's metadata, how its layer's world is called."""
    return {name: value for name, value in volume.metadata.items() if name == "world"}


def _uncertainty_layer(spread: Volume, title: str) -> LayerData:
    data, settings, kind = image_layer(spread)
    looks = {"name": f"uncertainty of {title}", "colormap": "magma", "visible": False}
    return data, settings | looks, kind


def _abandon(runners: tuple[Runner, ...], _gone: object = None) -> None:
    for runner in runners:
        runner.abandon()
