"""Slices of references, inputs and results, kept beside the rows for the report to draw.

Of a pictured volume three planes through the middle of its mask are kept for each method, each
lying as napari shows it: superior or anterior on top, the patient's right on the left, anterior
on the left of a sagittal plane.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr import io
from napari_arssr.errors import FileError
from napari_arssr.evaluation.methods import Case
from napari_arssr.evaluation.protocol import Prepared
from napari_arssr.evaluation.rows import write_whole
from napari_arssr.volume import Box, Volume

__all__ = [
    "INPUT",
    "PLANES",
    "View",
    "folder_of",
    "has",
    "load_planes",
    "load_view",
    "save_input",
    "save_reference",
    "save_result",
    "views_in",
]

Plane = npt.NDArray[np.float32]

PLANES = ("axial", "coronal", "sagittal")
INPUT = "input"
_REFERENCE = "reference"
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


def folder_of(pictures: Path, dataset: str, path: Path) -> Path:
    """Where a volume's slices are kept."""
    return pictures / _safe(dataset) / _safe(io.stem(path))


def save_reference(folder: Path, prepared: Prepared) -> None:
    """Keep the reference's slices and say what is shown."""
    laid = _laid_out(prepared.volume)
    mask = _laid_out(replace(prepared.volume, data=prepared.mask.astype(np.uint8))).data > 0
    seen = Box.around(mask)
    z, y, x = ((a + b - 1) // 2 for a, b in zip(seen.start, seen.stop, strict=True))
    data = prepared.volume.data
    view = View(
        prepared.dataset,
        prepared.path.name,
        (z, y, x),
        laid.spacing,
        float(data.min()),
        float(data.max()),
    )
    write_whole(folder / _VIEW, json.dumps(asdict(view), indent=2).encode())
    _save(folder / f"{_REFERENCE}.npz", laid, view)


def save_input(folder: Path, scale: str, noise: float, case: Case) -> None:
    """Keep the LR volume's slices, its voxels drawn as blocks."""
    index = [
        (2 * np.arange(n) + 1) * m // (2 * n)
        for n, m in zip(case.grid.shape, case.low.grid.shape, strict=True)
    ]
    blocks = case.low.data[np.ix_(*index)]
    shown = Volume(blocks, case.grid.affine, name=INPUT)
    _save(_path(folder, scale, noise, INPUT), _laid_out(shown), load_view(folder))


def save_result(folder: Path, scale: str, noise: float, method: str, result: Volume) -> None:
    """Keep a result's slices."""
    _save(_path(folder, scale, noise, method), _laid_out(result), load_view(folder))


def has(folder: Path, scale: str, noise: float, method: str) -> bool:
    """Whether a result's slices are kept."""
    return _path(folder, scale, noise, method).is_file()


def views_in(pictures: Path) -> list[Path]:
    """Folders of all pictured volumes."""
    return sorted(path.parent for path in pictures.glob(f"*/*/{_VIEW}"))


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


def load_planes(folder: Path, scale: str, noise: float, method: str) -> Mapping[str, Plane] | None:
    """The three planes of a method, or of ``input``; of ``reference`` with an empty scale."""
    path = _path(folder, scale, noise, method) if scale else folder / f"{method}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in PLANES}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(f"{path}: the kept slices cannot be read ({error}).") from None


def _laid_out(volume: Volume) -> Volume:
    """The volume with its axes nearest to inferior, posterior, left, and running that way."""
    ordered = volume.along_world_axes()
    backwards = np.diag(ordered.napari_affine)[:3] < 0
    flips = tuple(slice(None, None, -1) if back else slice(None) for back in backwards)
    return replace(ordered, data=ordered.data[flips])


def _save(path: Path, laid: Volume, view: View) -> None:
    import io as bytes_io

    z, y, x = view.index
    planes = {"axial": laid.data[z], "coronal": laid.data[:, y], "sagittal": laid.data[:, :, x]}
    buffer = bytes_io.BytesIO()
    np.savez_compressed(buffer, **{k: v.astype(np.float32) for k, v in planes.items()})
    write_whole(path, buffer.getvalue())


def _path(folder: Path, scale: str, noise: float, method: str) -> Path:
    measured = f"x{scale}" + (f"-noise{noise:g}" if noise else "")
    return folder / measured / f"{_safe(method)}.npz"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip(".") or "_"
