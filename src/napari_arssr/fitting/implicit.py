"""Networks fitted to stacks: IREM as published, and a hash grid on top of a reconstruction.

Both are trained in steps that depend on nothing but the seed and their number, so that a fit that
was stopped and goes on ends where it would have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled
from napari_arssr.fitting.fitted import positions
from napari_arssr.fitting.measurement import (
    nothing_counts,
    profile_points,
    refine,
    rows_inside,
)
from napari_arssr.fitting.poses import FloatArray, length_unit
from napari_arssr.fitting.stacks import Stack
from napari_arssr.models.hash_grid import HashGrid, HashGridConfig
from napari_arssr.models.irem import IREM, IREMConfig
from napari_arssr.volume import Grid
from napari_arssr.watching import Advance, Stop, never, unheard

__all__ = [
    "Correction",
    "Course",
    "Samples",
    "Trained",
    "fit_hash_grid",
    "fit_irem",
    "hash_grid_config",
]

Array = npt.NDArray[np.float32]

# As published: Adam, its rate halved every 500 epochs, batches of 2500 voxels. How many epochs is
# not said; after 2000 the rate has fallen to a sixteenth.
_RATE, _HALVED, _BATCH, _EPOCHS = 1e-4, 500, 2500, 2000

_HELD_BACK = 0.03
_GRID_BATCH = 4096
_GRID_EPOCHS = 3
_GRID_RATE = 3e-3
_MEASURED = 20  # steps between two numbers that are told
_CHECKS = 8  # looks at the voxels held back, evenly over the fit
_HALF = 2.5  # times the usual error, where a slice counts half
_TURN, _SHIFT = 0.01, 0.5  # what one unit of a pose's parameters is: radians, units of length


@dataclass
class Trained:
    """A network on its way, and what is needed to go on.

    Parameters
    ----------
    network : torch.nn.Module
    step : int
        Steps done.
    memory : dict
        Tensors of the optimiser and of whatever else is fitted, by name.
    losses : list of float
        Mean of the loss over each epoch that is done.
    """

    network: nn.Module
    step: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Course:
    """How a fit is watched and ended.

    Parameters
    ----------
    epochs : int, optional
        By default as published, or as is enough.
    minutes : float
        The longest it takes; 0 is no limit.
    seed : int
    device : torch.device
    stop, advance : callables
    keep : callable
        Given the state now and then, and when the fit is stopped.
    keep_every : float
        Seconds between the two.
    measured : callable
        Told now and then how far the network is from the data: root mean square.
    seen : callable
        Shown the network after every step.
    """

    epochs: int | None = None
    minutes: float = 0.0
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop: Stop = never
    advance: Advance = unheard
    keep: Callable[[Trained], None] = lambda _state: None
    keep_every: float = 60.0
    measured: Callable[[float], None] = lambda _error: None
    seen: Callable[[Trained], None] = lambda _state: None


class Samples:
    """Voxels of all stacks that count: where their files say they are, and what they hold.

    Those that reach beyond the volume do not count, as in a
    :class:`~napari_arssr.fitting.measurement.Measurement`.

    Parameters
    ----------
    grid : Grid
        Of the volume; positions are given in its terms.
    stacks : sequence of Stack
    motions : sequence of (slices, 4, 4) arrays
    scanner : ScannerModel, optional
        Slice profile; without one a voxel is its centre.

    Raises
    ------
    UsageError
        If no voxel lies in the volume.
    """

    def __init__(
        self,
        grid: Grid,
        stacks: Sequence[Stack],
        motions: Sequence[FloatArray],
        scanner: ScannerModel | None = None,
    ) -> None:
        self.grid = grid
        self.unit = length_unit(grid)
        places, offsets, weights, slices, stack_of = [], [], [], [], []
        values: list[Array] = []
        first = 0
        for number, (whole, motion) in enumerate(zip(stacks, motions, strict=True)):
            points, weight = profile_points(grid, whole, motion, scanner)
            inside = rows_inside(grid, whole, motion, (points, weight))
            stack = replace(whole, rows=whole.rows[inside])
            source = stack.volume.grid
            values.append(stack.values)
            index = np.stack(np.unravel_index(stack.rows, source.shape), axis=-1)
            places.append(source.world(index).astype(np.float32))
            slices.append(stack.slice_of_row + first)
            stack_of.append(np.full(len(stack.rows), number))
            first += stack.slices
            offsets.append(points @ source.index_affine[:3, :3].T)
            weights.append(weight)
        self.values = torch.from_numpy(np.concatenate(values))
        if not len(self.values):
            raise nothing_counts(grid, scanner)
        most = max(map(len, weights))
        # All stacks with as many points: what is missing counts 0.
        self.offsets = torch.from_numpy(_padded(offsets, most))
        self.weights = torch.from_numpy(_padded(weights, most))
        self.places = torch.from_numpy(np.concatenate(places))
        self.slices = torch.from_numpy(np.concatenate(slices))
        self.stack_of = torch.from_numpy(np.concatenate(stack_of))
        self.motions = torch.from_numpy(np.concatenate(motions).astype(np.float32))
        self.centres = torch.from_numpy(
            np.concatenate(
                [
                    np.einsum("nij,nj->ni", m[:, :3, :3], s.centres) + m[:, :3, 3]
                    for s, m in zip(stacks, motions, strict=True)
                ]
            ).astype(np.float32)
        )
        inverse = np.linalg.inv(grid.index_affine)
        self._to_index = torch.from_numpy(inverse[:3, :3].astype(np.float32))
        self._first_index = torch.from_numpy(inverse[:3, 3].astype(np.float32))

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device) -> Samples:
        """The same on a device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def index(self, chosen: Tensor, motions: Tensor) -> Tensor:
        """Voxel indices of the grid, (p, k, 3), that the profiles of chosen voxels read."""
        place = motions[self.slices[chosen]]
        stated = self.places[chosen, None] + self.offsets[self.stack_of[chosen]]
        world = stated @ place[:, :3, :3].transpose(1, 2) + place[:, None, :3, 3]
        return world @ self._to_index.T + self._first_index

    def position(self, index: Tensor) -> Tensor:
        """The same as what a network is asked for, see :func:`positions`."""
        zero = positions(self.grid, np.zeros(3))
        step = positions(self.grid, np.ones(3)) - zero
        as_tensor = index.new_tensor
        return index * as_tensor(step.tolist()) + as_tensor(zero.tolist())


def _padded(arrays: Sequence[FloatArray], length: int) -> Array:
    return np.stack(
        [np.pad(a, [(0, length - len(a))] + [(0, 0)] * (a.ndim - 1)) for a in arrays]
    ).astype(np.float32)


# ---------------------------------------------------------------------------------- IREM


def fit_irem(
    samples: Samples, course: Course, state: Trained | None = None, config: IREMConfig | None = None
) -> Trained:
    """IREM as published: MSE at voxel centres, no slice profile.

    Parameters
    ----------
    samples : Samples
        Without a scanner.
    course : Course
    state : Trained, optional
        To go on from.
    config : IREMConfig, optional

    Raises
    ------
    Cancelled
        If asked to stop; ``course.keep`` has got the state.
    """
    if state is None:
        generator = torch.Generator().manual_seed(course.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(course.seed)
            state = Trained(IREM(config or IREMConfig(), generator))
    network = state.network.to(course.device).train()
    samples.to(course.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE, betas=(0.9, 0.999), eps=1e-8)
    _recall(optimizer, state.memory)
    length = _Length(len(samples), max(1, len(samples) // _BATCH), course.epochs or _EPOCHS)

    def step(number: int, chosen: Tensor) -> float:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * 0.5 ** (number // length.batches // _HALVED)
        optimizer.zero_grad()
        index = samples.index(chosen, samples.motions)[:, 0]
        loss = torch.mean((network(samples.position(index)) - samples.values[chosen]) ** 2)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def kept() -> None:
        state.memory = _remembered(optimizer)

    recent: list[float] = []

    def told(loss: float) -> None:
        recent.append(loss)
        if len(recent) >= min(_MEASURED, length.batches):
            course.measured(float(np.mean(recent)) ** 0.5)
            recent.clear()

    _run(state, course, length, step, kept=kept, told=told)
    network.eval()
    return state


@dataclass(frozen=True)
class _Length:
    """How many voxels there are, in how many batches, how often."""

    count: int
    batches: int
    epochs: int

    @property
    def steps(self) -> int:
        return self.batches * self.epochs


def _run(
    state: Trained,
    course: Course,
    length: _Length,
    step: Callable[[int, Tensor], float],
    *,
    kept: Callable[[], None] = lambda: None,
    told: Callable[[float], None] = lambda _loss: None,
) -> None:
    """Steps until the epochs or the minutes are over; ``kept`` brings the state up to date."""
    started = kept_at = time.monotonic()
    total: list[float] = []
    for number, chosen in _batches(state.step, course, length):
        now = time.monotonic()
        stopped = course.stop()
        if stopped or now - kept_at > course.keep_every:
            kept()
            course.keep(state)
            kept_at = now
        if stopped:
            raise Cancelled
        if course.minutes and now - started > 60 * course.minutes:
            break
        total.append(step(number, chosen))
        told(total[-1])
        state.step = number + 1
        if state.step % length.batches == 0:
            state.losses.append(float(np.mean(total)))
            total = []
        share = state.step / length.steps
        if course.minutes:
            share = max(share, (now - started) / (60 * course.minutes))
        course.advance(min(share, 1.0))
        try:
            course.seen(state)
        except Cancelled:  # the picture was broken off, and what was learnt is kept above
            continue
    kept()


def _batches(done: int, course: Course, length: _Length) -> Iterator[tuple[int, Tensor]]:
    """Steps that are not done yet, with the voxels of each."""
    for epoch in range(done // length.batches, length.epochs):
        generator = torch.Generator().manual_seed((course.seed << 20) + epoch)
        order = torch.randperm(length.count, generator=generator)
        for number, chosen in enumerate(order.tensor_split(length.batches), epoch * length.batches):
            if number >= done:
                yield number, chosen.to(course.device)


def _remembered(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors."""
    memory: dict[str, Tensor] = {}
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            memory[f"{number}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return memory


def _recall(optimizer: torch.optim.Optimizer, memory: dict[str, Tensor]) -> None:
    if not memory:
        return
    state: dict[int, dict[str, Any]] = {}
    for key, value in memory.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


# ----------------------------------------------------------------------------- hash grid


def hash_grid_config(grid: Grid) -> HashGridConfig:
    """A grid whose finest cells are as long as one and a half voxels, but at most 256."""
    finest = int(np.clip(max(grid.extent) / min(grid.spacing) / 1.5, 16, 256))
    return HashGridConfig(finest=finest)


@dataclass(frozen=True)
class Correction:
    """A hash grid that was fitted, and what was fitted with it.

    Parameters
    ----------
    trained : Trained
        The network that predicts the voxels held back best; where none predicts them better than
        the reconstruction alone, by more than a standard error, one that is 0 everywhere.
    motions : (slices of all stacks, 4, 4) array
    weights : (slices of all stacks,) array
        Beliefs from the slices' own noise, 0 to 1.
    before, after : float
        Root mean square error of the voxels held back, without and with the network.
    """

    trained: Trained
    motions: FloatArray
    weights: FloatArray
    before: float
    after: float


def fit_hash_grid(
    samples: Samples,
    base: Array,
    believed: FloatArray,
    course: Course,
    *,
    move: bool = True,
    config: HashGridConfig | None = None,
) -> Correction:
    """What a reconstruction lacks, as a hash grid; poses and slice noise are fitted with it.

    Samples across each slice's profile are compared with its voxels. A part of the voxels is held
    back, and tells when the network is at its best.

    Parameters
    ----------
    samples : Samples
        With a scanner.
    base : (z, y, x) array
        The reconstruction on the samples' grid.
    believed : (slices of all stacks,) array
        How far each slice is believed to begin with.
    course : Course
    move : bool
        Whether poses are refined.
    config : HashGridConfig, optional

    Raises
    ------
    Cancelled
    """
    return _HashGridFit(samples, base, believed, course, move=move, config=config).run()


class _HashGridFit:
    def __init__(
        self,
        samples: Samples,
        base: Array,
        believed: FloatArray,
        course: Course,
        *,
        move: bool,
        config: HashGridConfig | None,
    ) -> None:
        device = course.device
        self.course, self.move = course, move
        self.samples = samples.to(device)
        generator = torch.Generator().manual_seed(course.seed)
        self.network = HashGrid(config or hash_grid_config(samples.grid), generator).to(device)
        self.fine = torch.from_numpy(refine(base)).to(device)[None, None]
        self.believed = torch.from_numpy(believed.astype(np.float32)).to(device)
        self.moves = nn.Parameter(torch.zeros(len(believed), 6, device=device))
        self.noise = nn.Parameter(torch.zeros(len(believed), device=device))
        held_back = torch.rand(len(samples), generator=generator) < _HELD_BACK
        self.used = (~held_back).nonzero()[:, 0].to(device)
        self.held = held_back.nonzero()[:, 0].to(device)
        self.length = _Length(
            len(self.used), max(1, len(self.used) // _GRID_BATCH), course.epochs or _GRID_EPOCHS
        )
        alone = self.errors(samples.motions, with_network=False)
        self.before = _root_mean(alone)
        self.typical = max(self.before, 1e-3) ** 2
        self.alone = _Candidate(alone, _copied(self.network), torch.zeros_like(self.moves))
        self.best = self.alone
        groups: list[dict[str, Any]] = [
            {"params": self.network.parameters(), "base": _GRID_RATE},
            {"params": [self.noise], "base": 1e-2},
            {"params": [self.moves], "base": 1e-2},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=_GRID_RATE, betas=(0.9, 0.99), eps=1e-12)

    def run(self) -> Correction:
        trained = Trained(self.network)
        _run(trained, self.course, self.length, self.step)
        self.check()
        best = self.best if self.best.surpasses(self.alone) else self.alone
        self.network.load_state_dict(best.tensors)
        self.network.eval()
        motions = _moved(best.moves, self.samples).cpu().numpy().astype(np.float64)
        spread = torch.exp(self.noise.detach() / 2).cpu().numpy().astype(np.float64)
        old = self.believed.cpu().numpy().astype(np.float64)
        weights = old / (1 + (spread / _HALF) ** 4)
        return Correction(trained, motions, weights, self.before, _root_mean(best.errors))

    def step(self, number: int, picked: Tensor) -> float:
        share = min(number / self.length.steps, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + np.cos(np.pi * share))
        chosen = self.used[picked]
        slices = self.samples.slices[chosen]
        self.optimizer.zero_grad()
        moved = _moved(self.moves, self.samples) if self.move else self.samples.motions
        left = self.residual(chosen, moved)
        # The likelihood of a slice's own noise: what fits badly counts less.
        spread = self.noise[slices]
        error = left**2 / self.typical * torch.exp(-spread) + spread
        loss = (self.believed[slices] * error).mean()
        loss = loss + 1e-3 * ((self.noise**2).mean() + (self.moves**2).mean())
        loss.backward()
        self.optimizer.step()
        if (number + 1) % max(1, self.length.steps // _CHECKS) == 0:
            self.check()
        return float(loss.detach())

    def check(self) -> None:
        errors = self.errors(_moved(self.moves.detach(), self.samples))
        now = _root_mean(errors)
        self.course.measured(now)
        if now < _root_mean(self.best.errors):
            self.best = _Candidate(errors, _copied(self.network), self.moves.detach().clone())

    def residual(self, chosen: Tensor, moved: Tensor, *, with_network: bool = True) -> Tensor:
        samples = self.samples
        index = samples.index(chosen, moved)
        flat = index.reshape(-1, 3)
        value = _interpolated(self.fine, flat)
        if with_network:
            value = value + self.network(samples.position(flat))
        weight = samples.weights[samples.stack_of[chosen]]
        seen = (value.reshape(index.shape[:2]) * weight).sum(dim=1)
        return samples.values[chosen] - seen

    @torch.no_grad()
    def errors(self, moved: Tensor, *, with_network: bool = True) -> Tensor:
        """Square error of each voxel held back, by how far its slice is believed.

        Beliefs are divided by their mean.
        """
        if not len(self.held):
            return torch.zeros(1)
        belief = self.believed[self.samples.slices[self.held]].cpu().double()
        left = [
            self.residual(part, moved, with_network=with_network)
            for part in self.held.split(_GRID_BATCH)
        ]
        return torch.cat(left).cpu().double() ** 2 * belief / belief.mean().clamp(min=1e-12)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A network on its way, and how far it is from the voxels held back."""

    errors: Tensor  # squares
    tensors: dict[str, Tensor]
    moves: Tensor

    def surpasses(self, other: _Candidate) -> bool:
        """Whether it predicts better, by more than a standard error of the difference."""
        gain = other.errors - self.errors
        return float(gain.mean()) > float(gain.std(correction=0)) / len(gain) ** 0.5


def _root_mean(squares: Tensor) -> float:
    return float(squares.mean()) ** 0.5


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _moved(moves: Tensor, samples: Samples) -> Tensor:
    """Motions (slices, 4, 4) after small ones about the slices' middles."""
    turn = moves[:, :3] * _TURN
    zero = torch.zeros_like(turn[:, 0])
    x, y, z = turn.unbind(dim=1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    rotation = torch.linalg.matrix_exp(skew)
    centre = samples.centres
    shift = (
        centre + moves[:, 3:] * (_SHIFT * samples.unit) - (rotation @ centre[:, :, None])[:, :, 0]
    )
    top = torch.cat([rotation, shift[:, :, None]], dim=2) @ samples.motions
    return torch.cat([top, samples.motions[:, 3:]], dim=1)


def _interpolated(fine: Tensor, index: Tensor) -> Tensor:
    """A volume on the lattice twice as fine, at voxel indices (p, 3): as measurements have it."""
    last = index.new_tensor([(n - 1) / 2 for n in fine.shape[2:]])  # in voxels
    place = (2 * index / last - 1).flip(-1)[None, None, None]
    return torch.nn.functional.grid_sample(
        fine, place, mode="bilinear", padding_mode="border", align_corners=True
    ).reshape(-1)
