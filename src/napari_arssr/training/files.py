"""From folders of volumes to a file of weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import napari_arssr
from napari_arssr import io
from napari_arssr.devices import choose_device
from napari_arssr.errors import ArssrError, FileError, UsageError
from napari_arssr.models import Card
from napari_arssr.training.config import TrainingConfig, file_hash
from napari_arssr.training.data import TrainingVolume
from napari_arssr.training.loop import Progress, TrainingRun

__all__ = ["train_files"]


def train_files(
    data: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    name: str = "trained",
    licence: str = "",
    training_data: str = "",
    device: str = "auto",
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train on files and write ``folder/name.safetensors``.

    Parameters
    ----------
    data : paths
        HR volumes, or folders of them.
    folder : path
        Of the run: checkpoint, log, weights.
    config : TrainingConfig
    name, licence, training_data : str
        For the card in the header of the weights.
    device : str
        ``auto``, ``cpu``, ``cuda``, …
    resume : bool
        Go on from the folder's checkpoint.
    report, stop
        See :meth:`TrainingRun.train`.
    warn : callable
        Told of each volume that is left out, and why.

    Returns
    -------
    pathlib.Path
        The weights; of a run that was stopped, as far as it got.

    Raises
    ------
    UsageError
        If the folder holds another run and ``resume`` is False, or no volume can be used.
    """
    folder = Path(folder)
    if not name or Path(name).name != name:
        raise UsageError(f"{name!r} is not a name for a file of weights in {folder}.")
    if not resume and (folder / "last.ckpt").exists():
        raise UsageError(f"{folder} holds a run already: resume it, or choose another folder.")
    volumes, hashes = load_volumes(data, config, warn)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: the folder cannot be made ({error.strerror}).") from None
    run = TrainingRun(config, volumes, folder, choose_device(device))
    if resume:
        run.resume()
    run.train(report, stop)
    path = folder / f"{name}.safetensors"
    run.export(path, _card(run, hashes, name, licence, training_data))
    return path


def load_volumes(
    data: Iterable[str | os.PathLike[str]],
    config: TrainingConfig,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[list[TrainingVolume], dict[str, str]]:
    """Every usable volume of files and folders, sorted by name, and the hashes of the files.

    Frames of a 4D file would be one subject many times over: the first one stands for all.
    A file that is unreadable, constant, too small or a copy of another is left out.
    """
    files: list[Path] = []
    sources = [Path(path) for path in data]
    for path in sources:
        files += io.volumes_in(path) if path.is_dir() else [path]
    volumes: list[TrainingVolume] = []
    hashes: dict[str, str] = {}
    # A patch at the largest scale is continued by its border, but half of it should be there.
    smallest = int(config.patch * config.largest_scale / 2)
    for file in sorted(files, key=lambda path: path.name):
        # Folders of subjects often hold files of one name.
        names = (file.name, f"{file.parent.name}/{file.name}", str(file))
        name = next((name for name in names if name not in hashes), str(file))
        try:
            volume = io.read(file).frame(0)
            digest = file_hash(file)
            if digest in hashes.values():
                raise UsageError(f"{file}: a copy of another training volume.")
            volumes.append(TrainingVolume.from_array(volume.data, name, smallest))
        except ArssrError as error:
            warn(f"left out: {error}")
        else:
            hashes[name] = digest
    if not volumes:
        raise UsageError(f"There is no volume to train on in {', '.join(map(str, sources))}.")
    return volumes, hashes


def _card(
    run: TrainingRun, hashes: dict[str, str], name: str, licence: str, training_data: str
) -> Card:
    training: dict[str, Any] = {
        "config": run.config.to_dict(),
        "steps": run.step,
        "minutes": round(run.seconds / 60, 1),
        "files_sha256": hashes,
        "versions": {
            "napari-arssr": napari_arssr.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return Card(
        config=run.config.model,
        name=name,
        licence=licence,
        paper="Wu et al., IEEE JBHI 27(2), 2023 (ArSSR), with this project's decoder",
        training_data=training_data,
        training=training,
    )
