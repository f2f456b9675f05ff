"""The rows of a comparison: one for each volume, scale and method, kept in a CSV or Parquet file.

A file is read, changed and written whole under a lock, and renamed into its place: it is never
half a file, a row never stands in it twice, and two runs may add to one file.
"""

from __future__ import annotations

import csv
import io as text_io
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from napari_arssr.choices import METRICS
from napari_arssr.errors import FileError, UsageError
from napari_arssr.files import make_folder, write_whole, writing

__all__ = [
    "KEY",
    "MEASURED_WITH",
    "REFERENCE",
    "RESULTS",
    "Row",
    "Skipped",
    "add_row",
    "columns_of",
    "counted",
    "measured_by",
    "merged",
    "read_rows",
    "to_the_end",
    "write_skipped",
]

NAN = float("nan")

REFERENCE = "reference"
"""The method under which what is known of the references themselves stands."""

RESULTS = "results"
"""What rows say a method is whose results were made elsewhere."""


@dataclass(frozen=True)
class Row:
    """One result.

    What makes a row one of its kind comes first (:data:`KEY`); intensities are in the units of
    the volume, PSNR and consistency in dB, ``seconds`` those of making the result, ``memory_mb``
    the largest resident size of the process meanwhile. ``recipe`` is what the method does, apart
    from its weights and the scanner model, which have columns of their own. ``lpips_sha256`` and
    ``priors_sha256`` are of what LPIPS and Dice were measured with, ``impossible`` has a line for
    each metric that does not exist for this result, with the reason.
    """

    dataset: str = ""
    volume: str = ""
    volume_sha256: str = ""
    scale: str = ""
    scanner: str = ""
    noise_percent: float = 0.0
    seed: int = 0
    crop: str = ""
    mask: str = ""
    method: str = ""
    recipe: str = ""
    weights_sha256: str = ""
    precision_asked: str = ""
    true_scale: str = ""
    network: str = ""
    parameters: int = 0
    psnr: float = NAN
    ssim: float = NAN
    psnr_mask: float = NAN
    ssim_mask: float = NAN
    lpips: float = NAN
    psi: float = NAN
    lpc_si: float = NAN
    consistency: float = NAN
    dice: float = NAN
    dice_csf: float = NAN
    dice_gm: float = NAN
    dice_wm: float = NAN
    dice_deep_gm: float = NAN
    dice_brain_stem: float = NAN
    dice_cerebellum: float = NAN
    lpips_left_out: int = 0
    psi_left_out: int = 0
    lpc_si_left_out: int = 0
    lpips_sha256: str = ""
    priors_sha256: str = ""
    metrics: str = ""
    impossible: str = ""
    seconds: float = NAN
    memory_mb: float = NAN
    device: str = ""
    precision: str = ""
    cores: int = 0
    versions: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a row one of its kind."""
        return tuple(_to_text(getattr(self, name)) for name in KEY)

    @property
    def made_by(self) -> tuple[str, str, str]:
        """Of what nothing in a row is mixed: versions, device and number format."""
        return self.versions, self.device, self.precision

    @property
    def attempted(self) -> set[str]:
        """Metrics that were worked out, or found not to exist for this result."""
        return {
            name
            for name in self.metrics.split()
            if name in self.reasons or not math.isnan(getattr(self, name.replace("-", "_")))
        }

    @property
    def reasons(self) -> dict[str, str]:
        """Metrics that do not exist for this result, and why."""
        return dict(line.split(": ", 1) for line in self.impossible.splitlines())


KEY = tuple(item.name for item in fields(Row))[:13]
"""The columns of which no two rows have all the same."""

# Files of the first version have none of these. Such a row says nothing of them, so that it is
# measured again where they count, and is read for what it says.
_ADDED = ("recipe", "lpips_sha256", "priors_sha256", "impossible")


@dataclass(frozen=True)
class Skipped:
    """What could not be scored, and why."""

    dataset: str
    volume: str
    scale: str
    method: str
    reason: str


MEASURED_WITH = {"lpips": "lpips_sha256", "dice": "priors_sha256"}
"""Metrics that are measured with something, and the column of its digest."""


def columns_of(metric: str) -> tuple[str, ...]:
    """The columns of a metric, and of what it was measured with."""
    start, tool = metric.replace("-", "_"), MEASURED_WITH.get(metric, "")
    names = (item.name for item in fields(Row))
    return tuple(n for n in names if n in (start, tool) or n.startswith(f"{start}_"))


def measured_by(row: Row, column: str) -> str:
    """Digest of what a column was measured with; empty where nothing but the volumes counts."""
    tool = MEASURED_WITH.get(column.partition("_")[0])
    return getattr(row, tool) if tool else ""


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file.

    Raises
    ------
    FileError
        If it is not a file of rows.
    UsageError
        If it is Parquet and pyarrow is not installed.
    """
    if _is_parquet(path):
        _pyarrow(path)  # before any work, and not when the first row is to be written
    if not path.exists():
        return []
    try:
        lines = _read_parquet(path) if _is_parquet(path) else _read_csv(path)
        known = {item.name: item.type for item in fields(Row)}
        _check_columns(path, lines[0] if lines else {}, known)
        return [
            Row(
                **{
                    name: _from_text(line[name], str(kind))
                    for name, kind in known.items()
                    if name in line or name not in _ADDED
                }
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, UsageError | FileError):
            raise
        raise FileError(
            f"{path}: this is not a file of rows that 'napari-arssr evaluate' wrote ({error}); "
            "name another, or move it away."
        ) from None


def _check_columns(path: Path, line: Collection[str], known: Collection[str]) -> None:
    """Refuse rows of other versions of this program, of which something would be lost."""
    if not {"dataset", "volume", "method"} <= set(line):
        return  # no rows of ours, or none at all
    missing = [name for name in known if name not in line and name not in _ADDED]
    unknown = [str(name) for name in line if name not in known]
    if missing or unknown:
        age, name = ("an older", missing[0]) if missing else ("a newer", unknown[0])
        raise FileError(
            f"{path}: these rows were written by {age} version of napari-arssr (the column "
            f"{name!r}); name another file, or use that version."
        )


def add_row(path: Path, row: Row) -> Row:
    """Put a row at the end of a file; one with the same key is replaced.

    Metrics that only the other has stay, where both were made alike: another run may have added
    them meanwhile.

    Returns
    -------
    Row
        As it stands in the file.

    Raises
    ------
    FileError
        If the file cannot be written.
    """
    with _locked(path):
        rows = read_rows(path)
        for other in rows:
            if other.key == row.key and other.made_by == row.made_by:
                row = _joined(row, other)
        _write(path, [*(other for other in rows if other.key != row.key), row])
    return row


def _joined(row: Row, other: Row) -> Row:
    """A row with the metrics that only another has."""
    names = other.attempted - row.attempted
    values = {column: getattr(other, column) for name in names for column in columns_of(name)}
    why = {name: reason for name, reason in other.reasons.items() if name in names}
    return merged(row, values | {"metrics": names, "impossible": why})


def to_the_end(path: Path, keys: Sequence[tuple[str, ...]]) -> None:
    """Let the rows of some keys stand last, in the order of the keys.

    Tables take the last of rows that differ in weights or volume only, so the rows of a run
    belong at the end even if it found them there.

    Raises
    ------
    FileError
        If the file cannot be written.
    """
    with _locked(path):
        rows = read_rows(path)
        known = {row.key: row for row in rows}
        last = [known[key] for key in dict.fromkeys(keys) if key in known]
        moved = {row.key for row in last}
        ordered = [*(row for row in rows if row.key not in moved), *last]
        if [row.key for row in ordered] != [row.key for row in rows]:
            _write(path, ordered)


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write what was skipped in a run, as CSV; an empty list leaves only the heading."""
    text = text_io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([item.name for item in fields(Skipped)])
    writer.writerows(astuple(one) for one in skipped)
    write_whole(path, text.getvalue().encode())


def merged(row: Row, values: dict[str, Any]) -> Row:
    """A row with further columns.

    ``metrics`` are names that are added to those attempted; ``impossible``, names and reasons,
    tells of those metrics which do not exist.
    """
    values = dict(values)
    asked = set(values.pop("metrics", ()))
    reasons = {name: why for name, why in row.reasons.items() if name not in asked}
    reasons |= values.pop("impossible", {})
    return replace(
        row,
        **values,
        metrics=" ".join(name for name in METRICS if name in row.attempted | asked),
        impossible="\n".join(f"{name}: {' '.join(why.split())}" for name, why in reasons.items()),
    )


def _write(path: Path, rows: Sequence[Row]) -> None:
    names = [item.name for item in fields(Row)]
    if _is_parquet(path):
        write_whole(path, _parquet_bytes(path, names, rows))
        return
    text = text_io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_to_text(value) for value in astuple(row)])
    write_whole(path, text.getvalue().encode())


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _to_text(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return f"{value:.10g}"
    return str(value)


def _from_text(value: Any, kind: str) -> Any:
    if kind == "str":
        return "" if value is None else str(value)
    if value in ("", None):
        return NAN if kind == "float" else 0
    return float(value) if kind == "float" else int(value)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened, strict=True))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _pyarrow(path).parquet.read_table(path).to_pylist()
    return found


def _parquet_bytes(path: Path, names: Sequence[str], rows: Sequence[Row]) -> bytes:
    arrow = _pyarrow(path)
    columns = {
        name: [None if _is_nan(value) else value for value in values]
        for name, values in zip(names, zip(*map(astuple, rows), strict=True), strict=True)
    }
    kinds = {"str": arrow.string(), "float": arrow.float64(), "int": arrow.int64()}
    schema = arrow.schema([(item.name, kinds[str(item.type)]) for item in fields(Row)])
    buffer = text_io.BytesIO()
    arrow.parquet.write_table(arrow.table(columns, schema=schema), buffer)
    return buffer.getvalue()


def _pyarrow(path: Path) -> Any:
    from importlib import import_module

    try:
        arrow = import_module("pyarrow")
        import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            f"{path}: Parquet files need pyarrow, which is not installed: pip install "
            "'napari-arssr[parquet]', or name a file that ends in .csv."
        ) from None
    return arrow


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process changes the file."""
    make_folder(path.parent)
    with writing(path):
        lock = path.with_name(f".{path.name}.lock").open("a+b")
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            _lock_on_windows(msvcrt, lock.fileno())
            try:
                yield
            finally:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
            return
        with suppress(OSError):  # a file system without locks: one run at a time, then
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_on_windows(msvcrt: Any, descriptor: int) -> None:
    while True:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        except OSError:  # it gives up after ten seconds
            continue
        return
