"""Slices of references, inputs and results, kept beside the rows for the report to draw.

Of a pictured volume three planes through the middle of its mask are kept for each method, each
lying as napari shows it: superior or anterior on top, the patient's right on the left, anterior
on the left of a sagittal plane. A picture belongs to one row: its name follows from all that
makes a row one of its kind, so that none can be shown for another.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.errors import FileError
from napari_arssr.evaluation.methods import Case
from napari_arssr.evaluation.protocol import Prepared
from napari_arssr.evaluation.rows import Row
from napari_arssr.files import write_whole
from napari_arssr.request import nearest_values
from napari_arssr.volume import Box, Triple, Volume

__all__ = [
    "INPUT",
    "PLANES",
    "View",
    "folder_of",
    "has_result",
    "has_view",
    "load_input",
    "load_reference",
    "load_result",
    "load_view",
    "save_input",
    "save_reference",
    "save_result",
]

Plane = npt.NDArray[np.float32]

PLANES = ("axial", "coronal", "sagittal")
INPUT = "input"
_REFERENCE = "reference.npz"
_VIEW = "view.json"


@dataclass(frozen=True)
class View:
    """What is shown of a volume.

    Parameters
    ----------
    dataset, volume : str
    index : three ints
        The slice of each plane, along axes that run inferior, posterior, left.
    spacing : three floats
        Millimetres along the same axes.
    low, high : float
        The reference's range.
    """

    dataset: str
    volume: str
    index: tuple[int, int, int]
    spacing: tuple[float, float, float]
    low: float
    high: float


def folder_of(pictures: Path, row: Row) -> Path:
    """Where the slices of a row's volume are kept: of this content, cut by this mask."""
    what = (row.dataset, row.volume, row.volume_sha256, row.crop, row.mask)
    return pictures / _safe(row.dataset) / f"{_safe(io.stem(row.volume))}-{_short_hash(what)}"


def save_reference(folder: Path, prepared: Prepared) -> None:
    """Keep the reference's slices and say what is shown."""
    laid, spacing = _laid_out(prepared.volume)
    mask, _ = _laid_out(replace(prepared.volume, data=prepared.mask.astype(np.uint8)))
    seen = Box.around(mask > 0)
    z, y, x = ((a + b - 1) // 2 for a, b in zip(seen.start, seen.stop, strict=True))
    data = prepared.volume.data
    view = View(
        prepared.dataset,
        prepared.name,
        (z, y, x),
        spacing,
        float(data.min()),
        float(data.max()),
    )
    write_whole(folder / _VIEW, json.dumps(asdict(view), indent=2).encode())
    _save(folder / _REFERENCE, laid, view)


def save_input(pictures: Path, row: Row, case: Case) -> None:
    """Keep the slices of the LR volume that a row's result was made from, voxels as blocks."""
    blocks = nearest_values(case.low, case.grid)
    laid, _ = _laid_out(Volume(blocks, case.grid.affine, name=INPUT))
    _save(_input(pictures, row), laid, load_view(folder_of(pictures, row)))


def save_result(pictures: Path, row: Row, result: Volume) -> None:
    """Keep the slices of a row's result."""
    laid, _ = _laid_out(result)
    _save(_result(pictures, row), laid, load_view(folder_of(pictures, row)))


def has_result(pictures: Path, row: Row) -> bool:
    """Whether the slices of a row's result are kept."""
    return _result(pictures, row).is_file()


def has_view(folder: Path) -> bool:
    """Whether a volume is pictured."""
    return (folder / _VIEW).is_file()


def load_view(folder: Path) -> View:
    """What is shown of a volume.

    Raises
    ------
    FileError
        If nothing is kept there.
    """
    try:
        values: dict[str, Any] = json.loads((folder / _VIEW).read_text(encoding="utf-8"))
        values |= {name: tuple(values[name]) for name in ("index", "spacing")}
        return View(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileError(f"{folder}: the kept slices cannot be read ({error}).") from None


def load_reference(folder: Path) -> Mapping[str, Plane] | None:
    """The three planes of a reference."""
    return _load(folder / _REFERENCE)


def load_input(pictures: Path, row: Row) -> Mapping[str, Plane] | None:
    """The three planes of what a row's result was made from."""
    return _load(_input(pictures, row))


def load_result(pictures: Path, row: Row) -> Mapping[str, Plane] | None:
    """The three planes of a row's result."""
    return _load(_result(pictures, row))


def _load(path: Path) -> Mapping[str, Plane] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in PLANES}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(f"{path}: the kept slices cannot be read ({error}).") from None


def _laid_out(volume: Volume) -> tuple[npt.NDArray[Any], Triple]:
    """Voxels along the axes nearest to inferior, posterior, left; millimetres along these."""
    ordered = volume.along_world_axes()
    backwards = np.diag(ordered.napari_affine)[:3] < 0
    flips = tuple(slice(None, None, -1) if back else slice(None) for back in backwards)
    return ordered.data[flips], ordered.spacing


def _save(path: Path, laid: npt.NDArray[Any], view: View) -> None:
    import io as bytes_io

    z, y, x = view.index
    planes = {"axial": laid[z], "coronal": laid[:, y], "sagittal": laid[:, :, x]}
    buffer = bytes_io.BytesIO()
    np.savez_compressed(buffer, **{k: v.astype(np.float32) for k, v in planes.items()})
    write_whole(path, buffer.getvalue())


def _measured(pictures: Path, row: Row) -> Path:
    words = [f"x{row.scale}", row.scanner]
    if row.noise_percent:
        words.append(f"noise{row.noise_percent:g}-seed{row.seed}")
    return folder_of(pictures, row) / _safe("-".join(words))


def _input(pictures: Path, row: Row) -> Path:
    return _measured(pictures, row) / f"{INPUT}.npz"


def _result(pictures: Path, row: Row) -> Path:
    # The key tells apart what is called alike: other weights, another recipe or precision.
    return _measured(pictures, row) / f"{_safe(row.method)}-{_short_hash(row.key)}.npz"


def _short_hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip(".") or "_"
