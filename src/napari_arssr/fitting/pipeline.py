"""From stacks to one volume: aligned, posed, reconstructed, and perhaps a network on top."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError
from napari_arssr.fitting.alignment import align, seen_from
from napari_arssr.fitting.alternation import Poses, find_poses
from napari_arssr.fitting.averaging import mean_of_stacks
from napari_arssr.fitting.measurement import Measurement, Values, quadrature
from napari_arssr.fitting.poses import FloatArray
from napari_arssr.fitting.refinement import row_weights
from napari_arssr.fitting.selection import TRIAL_SIDE, Choice, Trial, choose_weight, trial_box
from napari_arssr.fitting.settings import Settings
from napari_arssr.fitting.srr import Prior, Problem
from napari_arssr.fitting.stacks import Stack, check, inside_of, prepare, within
from napari_arssr.fitting.state import StackRecord, State, hash_of, names_of
from napari_arssr.fitting.uncertainty import uncertainty_of
from napari_arssr.memory import require
from napari_arssr.normalization import Normalizer
from napari_arssr.request import nearest_values
from napari_arssr.volume import Box, Grid, Volume, as_shape
from napari_arssr.watching import Advance, Stop, never

if TYPE_CHECKING:
    import torch

    from napari_arssr.fitting.implicit import Trained
    from napari_arssr.weights import Loaded

__all__ = ["Watch", "askew_stacks", "fit", "memory_needed", "output_grid"]

Array = npt.NDArray[np.float32]

# How many arrays of the volume's size are held at once: for a mean of stacks, or IREM as published;
# for conjugate gradients, the prior and its trial; for the lattice twice as fine that stacks which
# lie askew are seen through; and for the matrix of each of them. All but the first once more for
# the part that weights are tried on. Measured on the phantom, 64 × 72 × 64 voxels: 15 for a mean,
# 27 for stacks along the axes, 94 with two of three askew.
_MEAN, _SOLVER, _LATTICE, _MATRIX = 16, 20, 20, 16
# Intensities that begin no farther below zero, as a share of the brightest, begin about zero. A
# voxel is an outlier that is so far below it, and so many times as far as those they begin with.
_ABOUT_ZERO, _OUTLYING, _TIMES = 0.25, 0.1, 3
# Voxels around a mask, at least; and how much of a slice profile may lie in its tails.
_MARGIN, _TAILS = 3, 0.01
_KEEP_EVERY = 60.0
_ENDLESS = 10**6  # epochs
# A network's picture has at most so many voxels along each axis, and pictures take at most such
# a share of the time.
_PICTURE_SIDE = 64
_PICTURE_SHARE = 0.1


@dataclass(frozen=True)
class Watch:
    """Who is told of a fit, and may end it.

    Parameters
    ----------
    progress : callable
        Told the share that is done, 0 to 1, and what is being done.
    stop : callable
        Asked again and again; True ends the work.
    keep : callable
        Given the state after each stage, and when a network's fit is stopped.
    seen : callable, optional
        Shown the volume as it is, in the reference's units, perhaps with larger voxels.
    measured : callable, optional
        Told what is being done, and how far the volume is from the data: root mean square of
        what it leaves of them, as a share of the range of intensities.
    """

    progress: Callable[[float, str], None] = lambda _share, _stage: None
    stop: Stop = never
    keep: Callable[[State], None] = lambda _state: None
    seen: Callable[[Volume], None] | None = None
    measured: Callable[[str, float], None] | None = None

    def part(self, start: float, end: float, stage: str) -> Callable[[float], None]:
        """What a part of the work, which begins now, is to call with its own share."""
        self.progress(start, stage)

        def advance(share: float) -> None:
            self.progress(start + (end - start) * min(share, 1.0), stage)

        return advance

    def narrowed(self, start: float, end: float) -> Watch:
        """The same for a part of the work that tells its own share, 0 to 1."""

        def progress(share: float, stage: str) -> None:
            self.progress(start + (end - start) * share, stage)

        return replace(self, progress=progress)


def fit(
    volumes: Sequence[Volume],
    settings: Settings | None = None,
    *,
    mask: Volume | None = None,
    starts: Sequence[FloatArray] | None = None,
    resume: State | None = None,
    uncertainty: bool = False,
    watch: Watch | None = None,
) -> State:
    """Fit one volume to several stacks of thick slices.

    Parameters
    ----------
    volumes : sequence of Volume
        The stacks: 3D, of one subject and contrast.
    settings : Settings, optional
    mask : Volume, optional
        Not zero where there is something to see, in the reference's world. Only what lies in it
        or next to it counts, and the result is 0 elsewhere.
    starts : sequence of (4, 4) arrays, optional
        Where registration begins; with ``settings.register`` false, where the stacks are.
    resume : State, optional
        A fit of the same stacks and settings to go on with.
    uncertainty : bool
        Whether a map is made, for ``srr``, ``default`` and ``irem`` on top of it.
    watch : Watch, optional

    Returns
    -------
    State
        Its :meth:`~State.field` is the volume.

    Raises
    ------
    UsageError
        If no volume can be made of these stacks: one sentence with the reason.
    OutOfMemory, Cancelled
    """
    settings = settings or Settings()
    watch = watch or Watch()
    _check_request(volumes, settings, uncertainty=uncertainty)
    begun = seen_from(settings.reference, starts, len(volumes))
    network = _network(settings, resume, watch)
    if resume is None:
        stacks, state = _begun(volumes, settings, watch, mask=mask, starts=begun)
    else:
        if settings.epochs is None and not resume.behind("done"):
            settings = replace(settings, epochs=resume.settings.epochs)
        _check_same(resume, settings, volumes, mask=mask, starts=begun)
        stacks, state = _gone_on(volumes, settings, resume), resume
    if mask is not None:
        stacks = [
            within(stack, mask, record.registered)
            for stack, record in zip(stacks, state.stacks, strict=True)
        ]
    watch.keep(state)
    if settings.refines and not state.behind("posed"):
        _find_poses(state, stacks, watch)
        state.stage = "posed"
        watch.keep(state)
    if not state.behind("reconstructed"):
        if settings.method in ("linear", "bspline"):
            _average(state, stacks, watch)
        elif settings.preset != "paper":
            _reconstruct(state, stacks, watch, network)
        state.stage = "reconstructed"
        watch.keep(state)
    if uncertainty and state.uncertainty is None:
        _map_uncertainty(state, stacks, watch)
    # A network that is done can be trained on.
    more = settings.preset == "paper" and (settings.epochs or settings.minutes)
    if settings.method == "irem" and (more or not state.behind("done")):
        _train(state, stacks, settings, watch)
    state.stage = "done"
    watch.keep(state)
    return state


# --------------------------------------------------------------------------------- begin


def _check_request(volumes: Sequence[Volume], settings: Settings, *, uncertainty: bool) -> None:
    """Refuse what cannot be done, before any work."""
    from napari_arssr.devices import choose_device

    check(volumes)
    if not 0 <= settings.reference < len(volumes):
        raise UsageError(
            f"There is no stack {settings.reference + 1} to be the reference; there are "
            f"{len(volumes)}."
        )
    choose_device(settings.device)
    if uncertainty and (settings.preset == "paper" or settings.method in ("linear", "bspline")):
        what = "the published IREM" if settings.method == "irem" else f"a {settings.method} mean"
        raise UsageError(
            f"There is no uncertainty map of {what}; choose the method default or srr."
        )


def _network(settings: Settings, resume: State | None, watch: Watch) -> Loaded | None:
    """The trained network, if it may be asked: fetched and opened before the work, not after."""
    if not settings.asks_network or (resume is not None and resume.behind("reconstructed")):
        return None
    from napari_arssr import weights as registry

    return registry.load(settings.weights, stop=watch.stop)


def _begun(
    volumes: Sequence[Volume],
    settings: Settings,
    watch: Watch,
    *,
    mask: Volume | None,
    starts: FloatArray,
) -> tuple[list[Stack], State]:
    """Stacks in the fit's units, brought together, and where they are."""
    normalizer = _normalizer(volumes[settings.reference])
    grid = output_grid(volumes, settings, mask)
    _check_memory(
        grid, settings, askew_stacks(grid, volumes, settings, None if settings.register else starts)
    )
    stacks, warnings = prepare(volumes, normalizer)
    aligned = align(
        stacks,
        reference=settings.reference,
        starts=list(starts),
        registered=not settings.register,
        metric=settings.metric,
        mask=mask,
        seed=settings.seed,
        stop=watch.stop,
        advance=watch.part(0.0, 0.1, "register" if settings.register else "compare"),
    )
    facts = zip(aligned.stacks, volumes, aligned.agreements, aligned.motions, strict=True)
    records = [
        StackRecord(
            name=stack.name,
            digest=hash_of(volume),
            grid=stack.volume.grid,
            gain=stack.gain,
            agreement=agreement,
            registered=motion,
            motion=motion @ stack.still,
            weight=np.ones(stack.slices),
        )
        for stack, volume, agreement, motion in facts
    ]
    state = State(
        settings=settings,
        grid=grid,
        normalizer=normalizer,
        stacks=records,
        starts=starts,
        mask=None if mask is None else _mask_on(grid, mask),
        warnings=[*warnings, *aligned.warnings],
    )
    return aligned.stacks, state


def _gone_on(volumes: Sequence[Volume], settings: Settings, resume: State) -> list[Stack]:
    """Stacks in the units of a fit that goes on; its settings are the new ones from now on."""
    if not resume.behind("done"):
        places = np.stack([record.registered for record in resume.stacks])
        _check_memory(resume.grid, settings, askew_stacks(resume.grid, volumes, settings, places))
    stacks, _ = prepare(volumes, resume.normalizer)
    if not resume.behind("done"):
        resume.settings = settings
    return [stack.scaled(record.gain) for stack, record in zip(stacks, resume.stacks, strict=True)]


def _normalizer(fixed: Volume) -> Normalizer:
    """Zero stays zero where intensities begin there, so that stacks differ by a factor.

    They begin there too where but a few are below it, as ringing leaves them.
    """
    fitted = Normalizer.fit(fixed.data)
    low = min(0.0, float(fixed.data.min()))
    outlier = low < min(_TIMES * fitted.low, -_OUTLYING * fitted.high)
    if outlier and fitted.low > -_ABOUT_ZERO * fitted.high:
        low = 0.0
    return Normalizer(low, fitted.high if fitted.high > low else float(fixed.data.max()))


def output_grid(volumes: Sequence[Volume], settings: Settings, mask: Volume | None = None) -> Grid:
    """The grid of the volume: the reference's span in voxels of the size asked for, cut to a mask.

    Voxels of the stacks are not looked at.

    Raises
    ------
    UsageError
        If the mask is empty, or beside the reference.
    """
    spacing = settings.spacing
    if spacing is None:
        spacing = min(min(volume.spacing) for volume in volumes)
    grid = volumes[settings.reference].grid.with_spacing(spacing)
    if mask is None:
        return grid
    box = grid.box_touched(grid.index(mask.grid.crop(Box.around(inside_of(mask))).faces))
    if box is None:
        raise UsageError(
            f"{mask.name}: this mask lies beside {volumes[settings.reference].name}, which is the "
            "reference."
        )
    reach = max((_reach(volume, grid, settings) for volume in volumes), default=0.0)
    margins = as_shape(max(_MARGIN, math.ceil(reach / step - 1e-6)) for step in grid.spacing)
    return grid.crop(box.grown(margins, grid.shape))


def _reach(volume: Volume, grid: Grid, settings: Settings) -> float:
    """How far beyond a mask, in millimetres, slices of a stack see that see something of it.

    One that sees beyond the volume has no part in it, and those at the mask's edge are to have
    theirs. In every direction, for a stack may be turned. Slices that are farther from a mask
    than they are thick do not count, see :func:`~napari_arssr.fitting.stacks.within`.
    """
    if "scanner" in settings.without_use:
        return 0.0
    thick = max(volume.spacing)
    ratio = thick / min(grid.spacing)
    offsets, weights = quadrature(settings.scanner, ratio, grid, thick)
    sizes = np.abs(weights)
    # Half of its length, but for tails that hold hardly anything.
    tails = np.array([sizes[np.abs(offsets) >= far].sum() for far in np.abs(offsets)])
    half = float(np.abs(offsets)[tails > _TAILS * sizes.sum()].max())
    return thick * (half + min(half, 1.0))


def _mask_on(grid: Grid, mask: Volume) -> npt.NDArray[np.bool_]:
    """Voxels of a grid whose centre lies in a mask."""
    return np.asarray(nearest_values(replace(mask, data=inside_of(mask)), grid))


def _check_same(
    state: State,
    settings: Settings,
    volumes: Sequence[Volume],
    *,
    mask: Volume | None,
    starts: FloatArray,
) -> None:
    """Refuse to go on with a fit that was begun with anything else."""
    if [record.digest for record in state.stacks] != [hash_of(volume) for volume in volumes]:
        raise UsageError(
            f"The fit to go on with is one of other stacks ({', '.join(names_of(state.stacks))}); "
            "give the same files in the same order, or begin a new one."
        )
    free = {"epochs", "minutes", "device"}
    if state.behind("done"):
        free.add("spacing")
    old, new = state.settings.to_dict(), settings.to_dict()
    if old["register"] != new["register"]:
        raise _other_fit("with registration" if old["register"] else "without registration")
    if any(old[name] != new[name] for name in old if name not in free):
        raise _other_fit("with other settings")
    _check_more(state, settings)
    if not np.allclose(state.starts, starts, atol=1e-6):
        raise _other_fit("with other transforms to start from")
    if state.mask is None:
        if mask is not None:
            raise _other_fit("without a mask")
    elif mask is None or not np.array_equal(_mask_on(state.grid, mask), state.mask):
        raise _other_fit("with a mask" + ("" if mask is None else ", and this is not the same"))


def _check_more(state: State, settings: Settings) -> None:
    """Refuse to train a hash grid on: it can only begin anew, and its pose steps with it."""
    if settings.method != "irem" or settings.preset == "paper" or not state.behind("done"):
        return
    for name, given, old in (
        ("epochs", settings.epochs, state.settings.epochs),
        ("minutes", settings.minutes or None, state.settings.minutes or None),
    ):
        if given not in (None, old):
            raise UsageError(
                f"The fit to go on with is done, and {given:g} {name} more would change nothing: "
                f"only one of --preset paper is trained on; leave --{name} out, or begin a new fit "
                "with it."
            )


def _other_fit(begun: str) -> UsageError:
    return UsageError(
        f"The fit to go on with was begun {begun}; give the same options, or begin a new one."
    )


def memory_needed(grid: Grid, settings: Settings | None = None, askew: int = 3) -> int:
    """Bytes that a volume takes while it is fitted.

    Parameters
    ----------
    grid : Grid
        Of the volume.
    settings : Settings, optional
    askew : int
        How many stacks do not lie along the volume's axes, or have slices that moved.
    """
    settings = settings or Settings()
    if settings.method in ("linear", "bspline") or settings.preset == "paper":
        return 4 * _MEAN * grid.size
    arrays = _SOLVER + (_LATTICE + _MATRIX * askew if askew else 0)
    return 4 * arrays * (grid.size + min(grid.size, TRIAL_SIDE**3))


def askew_stacks(
    grid: Grid, volumes: Sequence[Volume], settings: Settings, starts: FloatArray | None = None
) -> int:
    """How many stacks may not lie along the volume's axes.

    Parameters
    ----------
    grid : Grid
        Of the volume.
    volumes : sequence of Volume
    settings : Settings
    starts : (stacks, 4, 4) array, optional
        Where stacks are known to be; else their files say, or registration is to find it.
    """
    if settings.refines and settings.motion == "slices":
        return len(volumes)
    to_be_found = starts is None and settings.register
    if to_be_found or (settings.refines and settings.motion == "stacks"):
        return len(volumes) - 1
    if starts is None:
        starts = np.stack([np.eye(4)] * len(volumes))
    moved = [volume.grid.moved(start) for volume, start in zip(volumes, starts, strict=True)]
    return sum(one.map_into(grid).axes is None for one in moved)


def _check_memory(grid: Grid, settings: Settings, askew: int) -> None:
    sizes = " × ".join(str(n) for n in reversed(grid.shape))
    require(
        memory_needed(grid, settings, askew),
        f"To fit a volume of {sizes} voxels",
        "give a mask or a larger voxel size",
    )


# -------------------------------------------------------------------------------- stages


def _teller(state: State, watch: Watch, stage: str) -> Callable[[Problem, Array], None]:
    """What shows a volume on its way, and how far it is from the data, to whom it matters."""
    # By shape, for all grids of a fit have one span.
    inside: dict[tuple[int, int, int], npt.NDArray[np.bool_]] = {}

    def inside_on(grid: Grid, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        if grid.shape == mask.shape:
            return mask
        if grid.shape not in inside:
            inside[grid.shape] = _mask_on(grid, Volume(mask, state.grid.affine))
        return inside[grid.shape]

    def tell(problem: Problem, volume: Array) -> None:
        if watch.measured is not None:
            watch.measured(stage, problem.error(volume))
        if watch.seen is None:
            return
        grid = problem.measurement.grid
        shown = state.normalizer.restore(volume)
        if state.mask is not None:
            shown = np.where(inside_on(grid, state.mask), shown, np.float32(0))
        watch.seen(Volume(shown, grid.affine, name="the volume so far"))

    return tell


def _find_poses(state: State, stacks: Sequence[Stack], watch: Watch) -> None:
    settings = state.settings
    found = find_poses(
        state.grid,
        stacks,
        Poses([r.motion for r in state.stacks], [r.weight for r in state.stacks]),
        settings.scanner,
        kind=settings.motion,
        reference=settings.reference,
        stop=watch.stop,
        advance=watch.part(0.1, 0.5, "find poses"),
        seen=_teller(state, watch, "find poses"),
    )
    _set_poses(state, found.motions, found.weights)


def _set_poses(state: State, motions: Sequence[FloatArray], weights: Sequence[FloatArray]) -> None:
    state.stacks = [
        replace(record, motion=motion, weight=weight)
        for record, motion, weight in zip(state.stacks, motions, weights, strict=True)
    ]


def _average(state: State, stacks: Sequence[Stack], watch: Watch) -> None:
    kind = state.settings.method
    assert kind in ("linear", "bspline")
    state.base = mean_of_stacks(
        state.grid,
        stacks,
        [record.motion for record in state.stacks],
        kind,
        stop=watch.stop,
        advance=watch.part(0.1, 1.0, "interpolate"),
    )


def _problem(state: State, stacks: Sequence[Stack]) -> tuple[Problem, Values]:
    weights = row_weights(list(stacks), [record.weight for record in state.stacks])
    measurement = Measurement(
        state.grid, stacks, [record.motion for record in state.stacks], state.settings.scanner
    )
    return Problem(measurement, [stack.values for stack in stacks], weights), weights


def _reconstruct(
    state: State, stacks: Sequence[Stack], watch: Watch, network: Loaded | None
) -> None:
    settings = state.settings
    problem, weights = _problem(state, stacks)
    state.warnings += [
        f"{stack.name}: the slice profile of every voxel reaches beyond the volume, so nothing is "
        "learnt from this stack; choose a narrower profile or a larger mask."
        for stack, inside in zip(stacks, problem.measurement.inside, strict=True)
        if not inside.any()
    ]
    guess = problem.start()
    told = partial(_teller(state, watch, "reconstruct"), problem)
    if not settings.refines:  # else there was a better one before
        told(guess)
    prior = Prior(settings.penalty)
    trial = Trial.of(
        state.grid.crop(trial_box(guess)),
        stacks,
        [record.motion for record in state.stacks],
        settings.scanner,
        weights=weights,
        seed=settings.seed,
    )
    advance = watch.part(0.5, 0.6, "choose the prior")
    choice = _choice(trial, prior, settings.weight, watch.stop, advance)
    prior = replace(prior, weight=choice.weight)
    volume = problem.solve(
        prior, guess, stop=watch.stop, advance=watch.part(0.6, 0.8, "reconstruct"), seen=told
    )
    if network is not None and _is_isotropic(state.grid):
        volume, prior, choice = _with_network(
            network,
            problem,
            trial,
            prior,
            choice,
            volume=volume,
            given=settings.weight,
            device=settings.device,
            watch=watch.narrowed(0.8, 0.95),
            told=told,
        )
    # Of voxels that were held back: what is left of the others is less than their noise.
    state.numbers["noise"] = choice.error
    state.numbers["prior_weight"] = prior.weight
    state.expected = prior.expected
    state.base = volume


def _choice(
    trial: Trial, prior: Prior, given: float | None, stop: Stop, advance: Advance
) -> Choice:
    """The prior's weight, chosen from the data where it is not given."""
    if given is None:
        return choose_weight(trial, prior, stop=stop, advance=advance)
    prior = replace(prior, weight=given)
    return trial.choice(prior, trial.start(prior), stop=stop, advance=advance)


def _with_network(
    network: Loaded,
    problem: Problem,
    trial: Trial,
    prior: Prior,
    alone: Choice,
    *,
    volume: Array,
    given: float | None,
    device: str,
    watch: Watch,
    told: Callable[[Array], None],
) -> tuple[Array, Prior, Choice]:
    """The reconstruction around what a trained network makes of it, if that predicts better.

    Then the network is asked about the result, with less taken away.
    """
    from napari_arssr.fitting.anatomy import PASSES, as_network_sees

    best = alone
    for number, scales in enumerate(PASSES):
        inner = watch.narrowed(number / len(PASSES), (number + 1) / len(PASSES))
        ask = partial(as_network_sees, scales=scales, device=device, stop=watch.stop)
        advance = inner.part(0.0, 0.15, "ask the network")
        expected = ask(best.volume, trial.grid, network, advance=advance)
        on_trial = replace(prior, expected=expected)
        advance = inner.part(0.15, 0.35, "ask the network")
        choice = _choice(trial, on_trial, given, watch.stop, advance)
        if not choice.surpasses(best):
            break
        advance = inner.part(0.35, 0.7, "ask the network")
        expected = ask(volume, problem.measurement.grid, network, advance=advance)
        best, prior = choice, replace(prior, weight=choice.weight, expected=expected)
        advance = inner.part(0.7, 1.0, "reconstruct")
        volume = problem.solve(prior, expected, stop=watch.stop, advance=advance, seen=told)
    return volume, prior, best


def _is_isotropic(grid: Grid) -> bool:
    return max(grid.spacing) < 1.3 * min(grid.spacing)


def _map_uncertainty(state: State, stacks: Sequence[Stack], watch: Watch) -> None:
    assert state.base is not None
    problem, _ = _problem(state, stacks)
    prior = Prior(state.settings.penalty, state.numbers["prior_weight"], state.expected)
    state.uncertainty = uncertainty_of(
        problem,
        state.base,
        prior,
        state.numbers["noise"],
        seed=state.settings.seed,
        stop=watch.stop,
        advance=watch.part(0.95, 1.0, "map the uncertainty"),
    )


def _train(state: State, stacks: Sequence[Stack], settings: Settings, watch: Watch) -> None:
    from napari_arssr.devices import choose_device
    from napari_arssr.fitting.implicit import (
        Course,
        Samples,
        fit_hash_grid,
        fit_irem,
    )

    motions = [record.motion for record in state.stacks]

    def keep(trained: Trained) -> None:
        state.trained = trained
        watch.keep(state)

    paper = settings.preset == "paper"
    # A fit that is done and gets more minutes alone has them, however many epochs that are.
    endless = state.behind("done") and settings.minutes and not settings.epochs
    course = Course(
        epochs=_ENDLESS if endless else settings.epochs,
        minutes=settings.minutes,
        seed=settings.seed,
        device=choose_device(settings.device),
        stop=watch.stop,
        advance=watch.part(0.1 if paper else 0.5, 1.0, "fit the network"),
        keep=keep if paper else lambda _state: None,
        keep_every=_KEEP_EVERY,
        measured=_measured_in(watch, "fit the network"),
        seen=_shown_in(watch, state),
    )
    if paper:
        samples = Samples(state.grid, stacks, motions)
        state.trained = fit_irem(samples, course, state.trained)
        return
    assert state.base is not None
    samples = Samples(state.grid, stacks, motions, settings.scanner)
    weights = np.concatenate([record.weight for record in state.stacks])
    found = fit_hash_grid(samples, state.base, weights, course, move=settings.motion == "slices")
    ends = np.cumsum([stack.slices for stack in stacks])[:-1]
    _set_poses(state, np.split(found.motions, ends), np.split(found.weights, ends))
    state.numbers["held_back_before"] = found.before
    state.numbers["held_back_after"] = found.after
    state.trained = found.trained


def _measured_in(watch: Watch, stage: str) -> Callable[[float], None]:
    def measured(error: float) -> None:
        if watch.measured is not None:
            watch.measured(stage, error)

    return measured


def _shown_in(watch: Watch, state: State) -> Callable[[Trained], None]:
    """Shows what a network makes of the volume so far: coarse, and not too often."""
    ready = time.monotonic()

    def show(trained: Trained) -> None:
        nonlocal ready
        started = time.monotonic()
        if watch.seen is None or started < ready:
            return
        steps = [max(1, -(-n // _PICTURE_SIDE)) for n in state.grid.shape]
        grid = state.grid.thinned((steps[0], steps[1], steps[2]))
        so_far = replace(state, trained=trained).field(str(_device_of(trained)))
        watch.seen(replace(so_far.sample(grid, stop=watch.stop), name="the volume so far"))
        now = time.monotonic()
        ready = now + (now - started) / _PICTURE_SHARE

    return show


def _device_of(trained: Trained) -> torch.device:
    return next(trained.network.parameters()).device
