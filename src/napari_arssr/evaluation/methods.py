"""What brings an LR volume back: interpolation, networks for any scale, networks for one each.

A method is named on the command line as ``[NAME=]SOURCE[+orientations:N][+consistency]``, with
SOURCE one of

- ``cubic``, ``back-projection`` (ten steps; ``back-projection:20`` for another number),
- weights of an ArSSR network: a registered name or a file,
- weights of a baseline, which knows one scale: files joined by commas, or a folder of them,
- a folder of results that another program made: ``FOLDER/x2/sub-01.nii.gz`` for scale 2,
  ``x1x1x4`` for 1,1,4 along i, j, k; another scanner model than the default, noise and its seed
  stand in the folder's name too (:attr:`Measurement.name`).

``+orientations:N`` makes it the mean of an ArSSR network's results in 3, 6 or 12 orientations,
``+consistency`` adds one step of back-projection to a network's result.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import Cancelled, FileError, OutOfMemory, UsageError
from napari_arssr.evaluation.rows import RESULTS
from napari_arssr.memory import for_work
from napari_arssr.volume import Box, Grid, Triple, Volume
from napari_arssr.watching import Stop, never

if TYPE_CHECKING:
    from napari_arssr.models import BaselineCard, Regressor
    from napari_arssr.weights import Loaded

__all__ = [
    "Case",
    "Machine",
    "Measurement",
    "Method",
    "name_and_source",
    "named_apart",
    "parse",
    "refine",
    "scale_text",
]

FloatArray = npt.NDArray[np.float32]

_STEPS = 10
# At the end of a source; a file's name may have a plus in it as well.
_OPTION = re.compile(r"\+(?P<word>consistency|orientations)(?::(?P<value>[^+:/\\]*))?$")
_SAME_SCALE = 0.01  # relative; a scale in a file's header against one that is asked for
_SAME_PLACE = 0.01  # voxels


@dataclass(frozen=True)
class Machine:
    """Where networks run."""

    device: str = "auto"
    precision: str = "auto"
    memory: int | None = None


@dataclass(frozen=True)
class Measurement:
    """How an LR volume is made of a reference.

    Parameters
    ----------
    factors : three floats
        The scale that is asked for, (z, y, x).
    scanner : ScannerModel
    noise : float
        Standard deviation, per cent of the reference's range.
    seed : int
        Of the noise; 0 where there is none.
    """

    factors: Triple
    scanner: ScannerModel = field(default_factory=ScannerModel)
    noise: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """For folders: ``x2``, and what is not the protocol's default: ``x2-kspace-1-noise5``."""
        words = [f"x{scale_text(self.factors)}"]
        if self.scanner != ScannerModel():
            words.append(self.scanner.text.replace(":", "-"))
        if self.noise:
            words.append(f"noise{self.noise:g}")
        if self.seed:
            words.append(f"seed{self.seed}")
        return "-".join(words)


@dataclass(frozen=True)
class Case:
    """One LR volume to be brought back.

    Parameters
    ----------
    low : Volume
    grid : Grid
        Of the reference, which the result is to have.
    measurement : Measurement
        What made ``low``.
    name : str
        File of the reference.
    whole : Grid
        Of the reference before it was cut, and the part that is left.
    box : Box
    """

    low: Volume
    grid: Grid
    measurement: Measurement
    name: str
    whole: Grid
    box: Box


class Method(Protocol):
    """Something that can be compared."""

    @property
    def name(self) -> str:
        """How rows and tables call it."""

    @property
    def network(self) -> str:
        """What it is: ``interpolation``, ``ArSSR RDN``, ``baseline SRCNN3D``, ``results``."""

    @property
    def recipe(self) -> str:
        """What it does, whatever it is called: all but weights and scanner, which rows hold."""

    @property
    def parameters(self) -> int:
        """Numbers in the network; 0 where there is none."""

    def ready(self, factors: Triple) -> None:
        """Do what is done once for all volumes of a scale: imports, reading of weights.

        So the time of :meth:`run` is that of the work alone.
        """

    def digest(self, name: str, measurement: Measurement) -> str:
        """SHA-256 of the weights (or the result) for one case, empty where there is none.

        Raises
        ------
        ArssrError
            If the method has nothing for this scale or volume.
        """

    def run(self, case: Case, machine: Machine, stop: Stop) -> tuple[Volume, str, str]:
        """The result, and the device and number format it was made in."""


def scale_text(factors: Sequence[float]) -> str:
    """``2.5``, or ``1x1x4`` along i, j, k, of a scale (z, y, x)."""
    values = [f"{k:g}" for k in reversed(factors)]
    return values[0] if len(set(values)) == 1 else "x".join(values)


def name_and_source(text: str) -> tuple[str, str]:
    """``NAME=SOURCE`` apart, the name empty where there is none.

    A path that is there is a path, whatever signs are in it.
    """
    name, equals, source = text.partition("=")
    return (name, source) if equals and not Path(text).exists() else ("", text)


def parse(text: str) -> Method:
    """A method from its words; see the module's text.

    Raises
    ------
    UsageError, FileError
        If there is no such method, or its files are not what they should be.
    """
    options: dict[str, str | None] = {}
    words = text
    while found := _OPTION.search(words):
        words = words[: found.start()]
        options.setdefault(found["word"], found["value"])
    name, source = name_and_source(words)
    if source != words and not name:
        raise UsageError(f"{text!r}: a method needs a name before '='.")
    method = _parse_source(source, name)
    if "orientations" in options:
        method = _turned(method, options["orientations"], name, text)
    if "consistency" not in options:
        return method
    if not isinstance(method, _Network | _Baseline):
        raise UsageError(f"{text!r}: only networks take +consistency.")
    if options["consistency"] is not None:
        raise UsageError(
            f"{text!r}: +consistency goes by --scanner and takes no other; leave it out."
        )
    return _Consistent(method, name or f"{method.name}+consistency")


def _turned(method: Method, count: str | None, name: str, text: str) -> Method:
    """The mean over a network's orientations."""
    from napari_arssr.upsampling import Settings

    if not isinstance(method, _Network):
        raise UsageError(f"{text!r}: only ArSSR networks take +orientations.")
    if count is None or not count.isdecimal():
        raise UsageError(f"{text!r}: say of how many, such as +orientations:3.")
    try:
        number = Settings(orientations=int(count)).orientations
    except UsageError as error:
        raise UsageError(f"{text!r}: {error}") from None
    return replace(method, name=name or f"{method.name}+orientations:{number}", orientations=number)


def _parse_source(source: str, name: str) -> Method:
    kind, _, number = source.partition(":")
    if kind == "cubic" and not number:
        return _Cubic(name or "cubic")
    if kind == "back-projection" and (not number or number.isdecimal()):
        return _BackProjection(name or source, int(number or _STEPS))
    if Path(source).is_dir():
        files = sorted(Path(source).glob("*.safetensors"))
        if files and not _is_baseline(files[0]):
            raise UsageError(
                f"{source}: a folder of weights is for a baseline, one file a scale, and "
                f"{files[0].name} is not of one; name the file itself: {files[0]}."
            )
        return _baseline(files, name) if files else _Results(name or Path(source).name, source)
    files = [Path(part) for part in source.split(",")]
    if len(files) > 1 or _is_baseline(files[0]):
        return _baseline(files, name)
    from napari_arssr import weights

    path = weights.resolve(source)
    return _Network(name or Path(source).name.removesuffix(".safetensors"), source, path)


# --------------------------------------------------------------------------- interpolation


@dataclass(frozen=True)
class _Cubic:
    name: str
    network = "interpolation"
    recipe = "cubic"
    parameters = 0

    def ready(self, _factors: Triple) -> None:
        import_module("napari_arssr.field")

    def digest(self, _name: str, _measurement: Measurement) -> str:
        return ""

    def run(self, case: Case, _machine: Machine, stop: Stop) -> tuple[Volume, str, str]:
        from napari_arssr.field import CubicField

        return CubicField(case.low).sample(case.grid, stop=stop), "cpu", "float32"


@dataclass(frozen=True)
class _BackProjection:
    name: str
    steps: int
    network = "interpolation"
    parameters = 0

    @property
    def recipe(self) -> str:
        return f"back-projection:{self.steps}"

    def ready(self, _factors: Triple) -> None:
        import_module("napari_arssr.evaluation.back_projection")

    def digest(self, _name: str, _measurement: Measurement) -> str:
        return ""

    def run(self, case: Case, _machine: Machine, _stop: Stop) -> tuple[Volume, str, str]:
        from napari_arssr.evaluation.back_projection import back_project

        result = back_project(case.low, case.grid, case.measurement.scanner, steps=self.steps)
        return result, "cpu", "float32"


# -------------------------------------------------------------------------------- networks


@dataclass(frozen=True)
class _Network:
    """An ArSSR network, for any scale."""

    name: str
    source: str
    path: Path
    orientations: int = 1

    @property
    def recipe(self) -> str:
        # As in rows that were written before there were orientations.
        return "network" + (f"+orientations:{self.orientations}" if self.orientations > 1 else "")

    @cached_property
    def loaded(self) -> Loaded:
        from napari_arssr import weights

        return weights.load(self.source)

    @property
    def network(self) -> str:
        config = self.loaded.card.config
        return f"ArSSR {config.encoder} with {config.decoder} decoder"

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.loaded.model.parameters())

    def ready(self, _factors: Triple) -> None:
        import_module("napari_arssr.upsampling")
        self.loaded  # noqa: B018 - reads the weights

    def digest(self, _name: str, _measurement: Measurement) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return io.content_sha256(self.path)

    def run(self, case: Case, machine: Machine, stop: Stop) -> tuple[Volume, str, str]:
        from napari_arssr.upsampling import upsample

        result = upsample(
            case.low,
            shape=case.grid.shape,
            weights=self.loaded,
            device=machine.device,
            precision=machine.precision,
            memory=machine.memory,
            orientations=self.orientations,
            stop=stop,
        )
        record = result.metadata.get("upsampling", {})
        return result, str(record.get("device", "cpu")), str(record.get("precision", "float32"))


@dataclass(frozen=True)
class _Scale:
    """A baseline's file, for its one scale."""

    path: Path
    card: BaselineCard

    @cached_property
    def digest(self) -> str:
        return io.content_sha256(self.path)

    @cached_property
    def model(self) -> Regressor:
        from napari_arssr.models import load_baseline

        return load_baseline(self.path)[0]


@dataclass(frozen=True)
class _Baseline:
    """A baseline: a network for each scale."""

    name: str
    scales: tuple[_Scale, ...]
    recipe = "baseline"

    @property
    def network(self) -> str:
        return f"baseline {self.scales[0].card.config.network}"

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.scales[0].model.parameters())

    def ready(self, factors: Triple) -> None:
        import_module("napari_arssr.field")
        self._at(factors).model  # noqa: B018 - reads the weights

    def digest(self, _name: str, measurement: Measurement) -> str:
        return self._at(measurement.factors).digest

    def _at(self, factors: Triple) -> _Scale:
        for scale in self.scales:
            if np.allclose(scale.card.config.scale, factors, rtol=_SAME_SCALE):
                return scale
        known = ", ".join(scale_text(scale.card.config.scale) for scale in self.scales)
        raise UsageError(
            f"{self.name}: there are no weights for scale {scale_text(factors)}, only for {known}."
        )

    def run(self, case: Case, machine: Machine, stop: Stop) -> tuple[Volume, str, str]:
        from napari_arssr.devices import choose_device, choose_precision
        from napari_arssr.field import CubicField
        from napari_arssr.normalization import Normalizer

        scale = self._at(case.measurement.factors)
        normalizer = Normalizer.fit(case.low.data, scale.card.config.normalization)
        interpolated = CubicField(case.low).sample(case.grid, stop=stop)
        device = choose_device(machine.device)
        dtype = choose_precision(machine.precision, device, bfloat16_is_safe=scale.card.bfloat16)
        refined = refine(
            scale.model,
            normalizer.normalize(interpolated.data),
            device=device,
            dtype=dtype,
            memory=machine.memory,
            stop=stop,
        )
        data = normalizer.restore(refined)
        precision = str(dtype).removeprefix("torch.")
        return replace(interpolated, data=data), str(device), precision


def refine(
    model: Regressor,
    interpolated: FloatArray,
    *,
    device: Any = "cpu",
    dtype: Any = None,
    memory: int | None = None,
    stop: Stop = never,
) -> FloatArray:
    """A baseline over a volume, in blocks with the whole receptive field around them.

    The result does not depend on the blocks.

    Parameters
    ----------
    model : Regressor
    interpolated : (z, y, x) array
        In network units, on the grid of the result.
    device : torch.device or str
    dtype : torch.dtype, optional
        float32 by default.
    memory : int, optional
        Bytes for the network's work; by default half of what is free.
    stop : callable
        Asked between blocks.

    Raises
    ------
    OutOfMemory
        If even a small block does not fit in ``memory``.
    Cancelled
    """
    import copy

    import torch

    from napari_arssr.devices import float32_means_float32

    dtype = dtype or torch.float32
    network = copy.deepcopy(model).to(device, dtype)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    shape = cast("tuple[int, int, int]", interpolated.shape)
    whole = Box((0, 0, 0), shape)
    result = np.empty(shape, dtype=np.float32)
    per_voxel = model.peak_channels * dtype.itemsize
    for block in whole.blocks(
        _block_shape(shape, model.halo, per_voxel, for_work(torch.device(device), memory))
    ):
        if stop():
            raise Cancelled
        read = block.grown(model.halo, shape)
        with torch.inference_mode(), float32_means_float32():
            part = torch.from_numpy(np.ascontiguousarray(interpolated[read.slices]))
            values = network(part[None].to(device, dtype))[0].float().cpu().numpy()
        result[block.slices] = values[block.relative_to(read.start).slices]
    return result


def _block_shape(
    shape: tuple[int, int, int], halo: int, per_voxel: int, memory: int
) -> tuple[int, int, int]:
    """The largest equal blocks whose work fits, halved along the longest axis until it does."""
    block = list(shape)

    def work() -> int:
        sides = (min(n + 2 * halo, whole) for n, whole in zip(block, shape, strict=True))
        return int(np.prod([float(side) for side in sides])) * per_voxel

    while work() > memory:
        axis = int(np.argmax(block))
        if block[axis] <= 4:
            raise OutOfMemory(
                f"A baseline with a halo of {halo} voxels does not fit in {memory / 1e6:.0f} MB; "
                "allow more with --memory."
            )
        block[axis] = -(-block[axis] // 2)
    return block[0], block[1], block[2]


@dataclass(frozen=True)
class _Consistent:
    """A network's result after one step of back-projection."""

    inner: _Network | _Baseline
    name: str

    @property
    def network(self) -> str:
        return f"{self.inner.network} and consistency"

    @property
    def recipe(self) -> str:
        return f"{self.inner.recipe}+consistency"

    @property
    def parameters(self) -> int:
        return self.inner.parameters

    def ready(self, factors: Triple) -> None:
        import_module("napari_arssr.consistency")
        self.inner.ready(factors)

    def digest(self, name: str, measurement: Measurement) -> str:
        return self.inner.digest(name, measurement)

    def run(self, case: Case, machine: Machine, stop: Stop) -> tuple[Volume, str, str]:
        from napari_arssr.consistency import Consistency

        result, device, precision = self.inner.run(case, machine, stop)
        step = Consistency(case.low, case.grid, case.grid.box, case.measurement.scanner)
        data = np.concatenate(list(step.correct([result.data])))
        return replace(result, data=data), device, precision


def _is_baseline(path: Path) -> bool:
    from napari_arssr.models import read_baseline_card

    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        read_baseline_card(path)
    except FileError:
        return False
    return True


def _baseline(files: Sequence[Path], name: str) -> _Baseline:
    from napari_arssr.models import read_baseline_card

    scales = tuple(_Scale(path, read_baseline_card(path)) for path in files)
    networks = {scale.card.config.network for scale in scales}
    if len(networks) > 1:
        raise UsageError(
            f"{', '.join(map(str, files))}: these are weights of {' and '.join(sorted(networks))}; "
            "a method is one network, so name them one by one."
        )
    for one, other in itertools.combinations(scales, 2):
        if np.allclose(one.card.config.scale, other.card.config.scale, rtol=_SAME_SCALE):
            raise UsageError(
                f"{one.path} and {other.path} are both for scale "
                f"{scale_text(one.card.config.scale)}; leave one out."
            )
    return _Baseline(name or networks.pop(), scales)


# ------------------------------------------------------------------- results made elsewhere


@dataclass(frozen=True)
class _Results:
    name: str
    folder: str
    network = RESULTS
    recipe = RESULTS
    parameters = 0

    def ready(self, _factors: Triple) -> None:
        return

    def digest(self, name: str, measurement: Measurement) -> str:
        return io.content_sha256(self._path(name, measurement))

    def run(self, case: Case, _machine: Machine, _stop: Stop) -> tuple[Volume, str, str]:
        path = self._path(case.name, case.measurement)
        volume = io.read(path)
        if volume.data.ndim != 3 or volume.grid.shape != case.whole.shape:
            raise UsageError(
                f"{path} has {_sizes(volume.data.shape)} voxels and its reference "
                f"{_sizes(case.whole.shape)}: bring it to the reference's grid."
            )
        moved = case.whole.departure(volume.grid.affine)
        if moved > _SAME_PLACE:
            raise UsageError(
                f"{path} does not lie on its reference, its corners are up to {moved:.3g} voxels "
                "away: bring it to the reference's grid."
            )
        cut = volume.crop(case.box)
        return replace(cut, data=cut.data.astype(np.float32), affine=case.grid.affine), "", ""

    def _path(self, name: str, measurement: Measurement) -> Path:
        folder = Path(self.folder) / measurement.name  # a result of one says nothing of another
        tried = list(self._candidates(folder, name))
        for path in tried:
            if path.is_file() or io.is_store(path):
                return path
        raise FileError(f"{self.name}: there is no {tried[0]}.")

    @staticmethod
    def _candidates(folder: Path, name: str) -> Iterator[Path]:
        yield folder / name
        for suffix in io.SUFFIXES:
            yield folder / f"{io.stem(name)}{suffix}"


def _sizes(shape: Sequence[int]) -> str:
    return " × ".join(map(str, reversed(shape)))


def named_apart(methods: Sequence[Method]) -> None:
    """See that no two methods have one name, and none that of something else.

    Raises
    ------
    UsageError
    """
    names = [method.name for method in methods]
    for name in names:
        if name in ("input", "reference"):
            raise UsageError(f"A method cannot be called {name!r}: the report calls its own so.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"Two methods are called {twice[0]}; give one another name: OTHER={twice[0]}."
        )
