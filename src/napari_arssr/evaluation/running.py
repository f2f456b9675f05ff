"""Run a comparison: every volume, scale and method that has no row yet."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from napari_arssr.choices import METRICS, SCALES
from napari_arssr.degradation import ScannerModel
from napari_arssr.errors import ArssrError, Cancelled, OutOfMemory, UsageError
from napari_arssr.evaluation import pictures, segmentation
from napari_arssr.evaluation.methods import (
    Case,
    Machine,
    Measurement,
    Method,
    named_apart,
    scale_text,
)
from napari_arssr.evaluation.protocol import (
    Dataset,
    Prepared,
    factors_of,
    make_case,
    prepare,
    row_name,
)
from napari_arssr.evaluation.rows import (
    REFERENCE,
    RESULTS,
    Row,
    Skipped,
    add_row,
    merged,
    read_rows,
    to_the_end,
    write_skipped,
)
from napari_arssr.evaluation.scoring import SHARPNESS, Problem, Reference, Tools, score, sharpness
from napari_arssr.evaluation.slices import cores
from napari_arssr.volume import Triple, as_triple
from napari_arssr.watching import Stop, never

__all__ = [
    "Outcome",
    "Settings",
    "available_metrics",
    "evaluate",
    "known_metrics",
    "settings_text",
    "versions",
]

SKIPPED = "skipped.csv"
"""What could not be scored in the last run, and why."""


@dataclass(frozen=True)
class Settings:
    """A comparison.

    Parameters
    ----------
    data : sequence of Dataset
    methods : sequence of Method
    rows : path
        ``.csv`` or ``.parquet``.
    scales : sequence of float or three floats
        (z, y, x).
    scanner : ScannerModel
    noise : sequence of float
        Per cent of the reference's range.
    seed : int
        Of the noise.
    keep_thick : bool
        See :func:`~napari_arssr.evaluation.protocol.factors_of`.
    crop : int or None
    masks : path or None
    channel : int or None
        See :func:`~napari_arssr.evaluation.protocol.prepare`.
    metrics : sequence of str
    machine : Machine
    pictures : path or None
        Folder for the slices that the report shows.
    pictured : int
        Volumes of each data set that are shown.
    skipped : path, optional
        Where what could not be scored is named; by default :data:`SKIPPED` beside the rows.
    """

    data: Sequence[Dataset]
    methods: Sequence[Method]
    rows: Path
    scales: Sequence[float | Sequence[float]] = SCALES
    scanner: ScannerModel = field(default_factory=ScannerModel)
    noise: Sequence[float] = (0.0,)
    seed: int = 0
    keep_thick: bool = False
    crop: int | None = None
    masks: Path | None = None
    channel: int | None = None
    metrics: Sequence[str] = METRICS
    machine: Machine = field(default_factory=Machine)
    pictures: Path | None = None
    pictured: int = 1
    skipped: Path | None = None


@dataclass
class Outcome:
    """What a run did: rows made, rows that were there, and what was skipped."""

    made: int = 0
    kept: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def versions() -> str:
    """Of what decides the numbers, as text for rows."""
    found = {"python": platform.python_version()}
    for name in ("napari-arssr", "torch", "numpy", "scipy", "scikit-image", "antspyx"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return " ".join(f"{name}={number}" for name, number in found.items())


def known_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics of some names, in the order of :data:`~napari_arssr.choices.METRICS`.

    Raises
    ------
    UsageError
        For an unknown name, or if there is none.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UsageError(f"There is no metric {unknown[0]!r}: choose from {', '.join(METRICS)}.")
    if not names:
        raise UsageError(f"No metric is named: choose from {', '.join(METRICS)}.")
    return tuple(name for name in METRICS if name in names)


def available_metrics(names: Sequence[str], tools: Tools) -> tuple[str, ...]:
    """Those of the metrics that can be worked out here.

    Raises
    ------
    UsageError
        As :func:`known_metrics`.
    """
    known = known_metrics(names)
    missing = set()
    if tools.lpips is None:
        missing.add("lpips")
    if "dice" in names and segmentation.why_not():
        missing.add("dice")
    return tuple(name for name in known if name not in missing)


def evaluate(
    settings: Settings,
    tools: Tools,
    *,
    report: Callable[[Row], None] = lambda _row: None,
    warn: Callable[[Skipped], None] = lambda _skipped: None,
    stop: Stop = never,
) -> Outcome:
    """Score every volume at every scale by every method.

    A row that is there with all metrics is kept; one without some gets them. Each new row is
    written at once, so that a run that is broken off goes on where it was.

    Parameters
    ----------
    settings : Settings
    tools : Tools
    report, warn : callable
        Told each new row, and each case that is skipped.
    stop : callable
        Asked again and again; True ends the run.

    Returns
    -------
    Outcome

    Raises
    ------
    UsageError
        If two methods have one name, or something asked for cannot be meant or had.
    FileError
        If the rows cannot be read or written.
    Cancelled
    """
    named_apart(settings.methods)
    metrics = available_metrics(settings.metrics, tools)
    if not metrics:
        raise UsageError(
            f"Nothing to score: {' and '.join(known_metrics(settings.metrics))} cannot be had "
            "here; choose other metrics."
        )
    run = _Run(settings, tools, metrics, report, warn, stop)
    read_rows(settings.rows)  # before any work
    try:
        for name in settings.metrics:
            if name not in metrics:
                run.skip(Skipped("", "", "", "", f"{name}: it is not available here"))
        for dataset in settings.data:
            for path in dataset.empty:
                run.skip(Skipped(dataset.name, "", "", "", f"{path}: it holds no volume"))
            shown = 0
            for path in dataset.files:
                shown += run.volume(dataset.name, path, pictured=shown < settings.pictured)
    finally:
        to_the_end(settings.rows, run.met)
        write_skipped(settings.skipped or settings.rows.with_name(SKIPPED), run.outcome.skipped)
    return run.outcome


@dataclass
class _Run:
    settings: Settings
    tools: Tools
    metrics: tuple[str, ...]
    report: Callable[[Row], None]
    warn: Callable[[Skipped], None]
    stop: Stop
    outcome: Outcome = field(default_factory=Outcome)
    met: list[tuple[str, ...]] = field(default_factory=list)
    """Keys of all rows of this run, made or found."""

    def volume(self, dataset: str, path: Path, *, pictured: bool) -> bool:
        """All cases of one volume; False if it cannot be scored."""
        self._check()
        settings = self.settings
        try:
            prepared = prepare(
                dataset,
                path,
                masks=settings.masks,
                crop=settings.crop,
                channel=settings.channel,
            )
        except (ArssrError, MemoryError) as error:
            name = row_name(path, settings.channel)
            self.skip(Skipped(dataset, name, "", "", _reason(error)))
            return False
        reference = Reference(prepared)
        album = settings.pictures if pictured else None
        if album is not None:
            folder = pictures.folder_of(album, self._blank(prepared))
            pictures.save_reference(folder, prepared)
        self._reference_row(reference)
        for scale in settings.scales:
            for noise in settings.noise:
                self._measurement(reference, as_triple(scale, "scale"), noise, album)
        return True

    def _reference_row(self, reference: Reference) -> None:
        """The sharpness of the reference itself."""
        names = [name for name in SHARPNESS if name in self.metrics]
        if not names:
            return
        row = replace(self._blank(reference.prepared), method=REFERENCE, network=REFERENCE)
        found = self._known().get(row.key, row)
        self.met.append(row.key)
        self._repeat_reasons(found, names)
        missing = {*names} - found.attempted
        if missing and found.versions != row.versions:
            missing, found = missing | found.attempted, row
        if missing:
            values, problems = sharpness(reference, [n for n in SHARPNESS if n in missing])
            self._skip_problems(found, problems)
            self._add(merged(found, values))

    def _measurement(
        self, reference: Reference, scale: Triple, noise: float, album: Path | None
    ) -> None:
        """All methods on one LR volume, which is made if any of them has work to do."""
        settings, prepared = self.settings, reference.prepared
        jobs: list[tuple[Method, Row, Row | None]] = []
        try:
            factors = factors_of(prepared, scale, keep_thick=settings.keep_thick)
        except ArssrError as error:
            self.skip(
                Skipped(prepared.dataset, prepared.name, scale_text(scale), "", _reason(error))
            )
            return
        text = scale_text(factors)
        seed = settings.seed if noise else 0
        measurement = Measurement(factors, settings.scanner, noise, seed)
        known = self._known()
        for method in settings.methods:
            row = replace(
                self._blank(prepared),
                scale=text,
                scanner=settings.scanner.text,
                noise_percent=noise,
                seed=seed,
                method=method.name,
                recipe=method.recipe,
            )
            try:
                row = replace(row, weights_sha256=method.digest(prepared.name, measurement))
            except (ArssrError, MemoryError) as error:
                self.skip(
                    Skipped(prepared.dataset, prepared.name, text, method.name, _reason(error))
                )
                continue
            if row.weights_sha256:
                row = replace(row, precision_asked=settings.machine.precision)
            found = known.get(row.key)
            self.met.append(row.key)
            shown = album is None or pictures.has_result(album, row)
            if found is not None and set(self.metrics) <= self.tools.measured(found) and shown:
                self.outcome.kept += 1
                self._repeat_reasons(found, self.metrics)
                continue
            jobs.append((method, row, found))
        if not jobs:
            return
        self._check()
        try:
            case = make_case(prepared, measurement)
        except (ArssrError, MemoryError) as error:
            for method, *_ in jobs:
                self.skip(
                    Skipped(prepared.dataset, prepared.name, text, method.name, _reason(error))
                )
            return
        if album is not None:
            pictures.save_input(album, jobs[0][1], case)
        for method, row, found in jobs:
            self._one(reference, case, method, row, found=found, album=album)

    def _one(
        self,
        reference: Reference,
        case: Case,
        method: Method,
        row: Row,
        *,
        found: Row | None,
        album: Path | None,
    ) -> None:
        """Score a method; ``found`` is its row so far, to which further metrics are added."""
        self._check()
        prepared = reference.prepared
        try:
            if found is not None and found.versions != row.versions:
                self._check_is_measurable_anew(found)  # before hours of computing, where known
            method.ready(case.measurement.factors)
            with _peak_memory() as memory:
                started = time.perf_counter()
                result, device, precision = method.run(case, self.settings.machine, self.stop)
                seconds = time.perf_counter() - started
                used = memory(device)
            # What is measured now must not stand under what measured it before, nor be lost.
            row = replace(row, device=device, precision=precision)
            lost: set[str] = set()
            if found is not None:
                if found.made_by == row.made_by:
                    row = found
                else:
                    self._check_is_measurable_anew(found)
                    lost = found.attempted
            had = self.tools.measured(row)
            names = [name for name in METRICS if name in lost.union(self.metrics) - had]
            elsewhere = method.network == RESULTS and self.settings.crop is not None
            values, problems = score(
                names, reference, result, case, self.tools, made_of_whole=elsewhere
            )
            if gone := lost - set(values["metrics"]) - had:
                self._skip_problems(row, [one for one in problems if one.metric in gone])
                raise UsageError(
                    "its row was made by other versions or on another device, and could not be "
                    f"measured anew without losing {' and '.join(sorted(gone))}; it is left as it "
                    "is."
                )
        except Cancelled:
            raise
        except (ArssrError, MemoryError, RuntimeError) as error:
            reason = _reason(error)
            self.skip(Skipped(prepared.dataset, prepared.name, row.scale, method.name, reason))
            return
        self._repeat_reasons(row, had.intersection(self.metrics))
        self._skip_problems(row, problems)
        if album is not None:
            pictures.save_result(album, row, result)
        if not np.isfinite(row.seconds):  # further metrics of an old row leave its time alone
            true = [
                high / low for high, low in zip(case.grid.shape, case.low.grid.shape, strict=True)
            ]
            row = replace(
                row,
                true_scale="x".join(f"{k:.5g}" for k in reversed(true)),
                network=method.network,
                parameters=method.parameters,
                seconds=round(seconds, 3),
                memory_mb=round(used / 1e6, 1),
            )
        self._add(merged(row, values))

    def _check_is_measurable_anew(self, found: Row) -> None:
        """Refuse to lose what a row has and this run cannot measure in the same way."""
        others = found.attempted.difference(self.metrics)
        at_hand = self.tools.measured(found).intersection(available_metrics(METRICS, self.tools))
        if missing := others - at_hand:
            raise UsageError(
                "its row was made by other versions or on another device and must be measured "
                f"anew, {' and '.join(sorted(missing))} too, which is not available here as it was "
                "measured then; ask for it in --metrics, or keep the new rows in another file."
            )

    def _blank(self, prepared: Prepared) -> Row:
        return Row(
            dataset=prepared.dataset,
            volume=prepared.name,
            volume_sha256=prepared.sha256,
            crop="" if self.settings.crop is None else str(self.settings.crop),
            mask=prepared.mask_source,
            cores=cores(),
            versions=versions(),
        )

    def _known(self) -> dict[tuple[str, ...], Row]:
        """The rows there are by now: another run may have added some."""
        return {row.key: row for row in read_rows(self.settings.rows)}

    def _add(self, row: Row) -> None:
        self.report(add_row(self.settings.rows, row))
        self.outcome.made += 1

    def _skip_problems(self, row: Row, problems: Sequence[Problem]) -> None:
        for problem in problems:
            reason = f"{problem.metric}: {problem.reason}"
            self.skip(Skipped(row.dataset, row.volume, row.scale, row.method, reason))

    def _repeat_reasons(self, row: Row, metrics: Collection[str]) -> None:
        """Name again what an earlier run found not to exist: it is missing in this one too."""
        for name, reason in row.reasons.items():
            if name in metrics:
                self._skip_problems(row, [Problem(name, reason, final=True)])

    def skip(self, skipped: Skipped) -> None:
        """Name and count a case that cannot be scored."""
        self.outcome.skipped.append(skipped)
        self.warn(skipped)

    def _check(self) -> None:
        if self.stop():
            raise Cancelled


def _reason(error: BaseException) -> str:
    """One sentence; errors that are not ours are out of memory or a fault of a network."""
    if isinstance(error, ArssrError):
        return str(error)
    from napari_arssr.devices import is_out_of_memory

    if is_out_of_memory(error):
        return str(OutOfMemory("There is not enough memory; close other programs or use --crop."))
    raise error


@contextmanager
def _peak_memory() -> Iterator[Callable[[str], int]]:
    """The largest resident size of this process inside, in bytes; on a GPU that of its tensors."""
    import psutil
    from torch import cuda

    process, ended = psutil.Process(), threading.Event()
    peak = process.memory_info().rss
    for number in range(cuda.device_count() if cuda.is_initialized() else 0):
        cuda.reset_peak_memory_stats(number)

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    def used(device: str) -> int:
        if device.startswith("cuda"):
            return int(cuda.max_memory_allocated(device))
        return max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield used
    finally:
        ended.set()
        watcher.join()


def settings_text(settings: Settings) -> str:
    """What a run was asked for, as JSON, for people; nothing in it says where files were."""
    return json.dumps(
        {
            "data": {dataset.name: [f.name for f in dataset.files] for dataset in settings.data},
            "methods": [method.name for method in settings.methods],
            "scales (i x j x k)": [scale_text(as_triple(scale)) for scale in settings.scales],
            "scanner": settings.scanner.text,
            "noise, per cent": list(settings.noise),
            "seed": settings.seed,
            "crop, voxels around the mask": settings.crop,
            "channel": settings.channel,
            "masks": "auto" if settings.masks is None else "given",
            "metrics": list(settings.metrics),
            "versions": versions(),
        },
        indent=2,
        ensure_ascii=False,
    )
