"""Patches cut once from a data set, so that two people train on the same: a seeded manifest.

``OUT/train`` and ``OUT/val`` get NIfTI files in [0, 1], each where it lies in its volume, and
``OUT/patches.json`` says what was cut from what. The same files and seed give the same patches,
whatever the files are called and whichever others lie beside them; with a manifest of somebody
else, their patches are cut, or it is said which volume differs.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import napari_arssr
from napari_arssr import io
from napari_arssr.choices import Normalization
from napari_arssr.errors import FileError, UsageError
from napari_arssr.files import make_folder, write_whole
from napari_arssr.training.paper import patch_starts
from napari_arssr.training.volumes import (
    MANIFEST,
    Split,
    TrainingVolume,
    load_split,
    load_volumes,
)
from napari_arssr.volume import Box, Volume

__all__ = ["FORMAT", "PatchSettings", "cut_patches"]

FORMAT = "napari-arssr patches 1"
_FOLDERS = {"train": "train", "validation": "val"}


@dataclass(frozen=True)
class PatchSettings:
    """How a set is cut.

    Parameters
    ----------
    size, count : int
        Voxels along each axis of a patch, and patches a volume.
    seed : int
    validation_share : float
        Of the subjects, drawn by the seed, where no validation volumes are given.
    normalization : {"minmax", "percentile", "none"}
        How intensities are brought to [0, 1].
    channel : int, optional
        Which channel of stacks that have several, from 0.
    """

    size: int = 40
    count: int = 6
    seed: int = 0
    validation_share: float = 0.125
    normalization: Normalization = "minmax"
    channel: int | None = None

    def __post_init__(self) -> None:
        if self.size < 2 or self.count < 1 or self.seed < 0:
            raise UsageError(
                f"Patches of {self.size} voxels, {self.count} a volume, seed {self.seed}: the "
                "size is at least 2, the number at least 1, the seed at least 0."
            )
        if not 0 <= self.validation_share < 1:
            raise UsageError(
                "The share of validation subjects is from 0 to below 1, not "
                f"{self.validation_share!r}."
            )


def cut_patches(
    data: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    validation: Sequence[str | os.PathLike[str]] = (),
    settings: PatchSettings | None = None,
    manifest: str | os.PathLike[str] | None = None,
    strict: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Cut a data set.

    Parameters
    ----------
    data, validation : paths
        HR volumes, or folders of them.
    folder : path
        Gets ``train``, ``val`` and the manifest; must not hold patches yet.
    settings : PatchSettings, optional
    manifest : path, optional
        Of patches to cut again: its settings, its split.
    strict, warn
        See :func:`napari_arssr.training.volumes.load_volumes`.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    UsageError
        If there is nothing to cut, ``folder`` holds patches, or the volumes are not those of
        ``manifest``.
    FileError
        If a file cannot be read or written.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder} holds patches already; choose another folder.")
    theirs = None if manifest is None else _read(Path(manifest))
    settings = settings or PatchSettings()
    if theirs is not None:
        settings = _settings_of(theirs, Path(manifest or ""))
    options: dict[str, Any] = {
        "smallest": settings.size,
        "normalization": settings.normalization,
        "strict": strict,
        "warn": warn,
    }
    if theirs is not None:
        volumes = load_volumes([*data, *validation], channel=settings.channel, **options)
        split = _split_as(theirs, volumes, str(manifest))
        places = {volume["content"]: volume["patches"] for volume in theirs["volumes"]}
    else:
        channels = (settings.channel, settings.channel)
        split = load_split(data, validation, holdout=0, channels=channels, **options)
        if not validation:
            split = _drawn(split.train, settings)
        places = {}
    stems = _stems([*split.train, *split.validation])
    entries = [
        _entry(volume, part, settings, stems[volume.content], places.get(volume.content))
        for part in ("train", "validation")
        for volume in getattr(split, part)
    ]
    for part in _FOLDERS.values():
        make_folder(folder / part)
    for entry, volume in zip(entries, [*split.train, *split.validation], strict=True):
        _write(entry, volume, folder, settings)
    result = {
        "format": FORMAT,
        "version": napari_arssr.__version__,
        "size": settings.size,
        "count": settings.count,
        "seed": settings.seed,
        "validation_share": settings.validation_share,
        "normalization": settings.normalization,
        "channel": settings.channel,
        "volumes": entries,
    }
    # Last: with it the folder is whole.
    write_whole(folder / MANIFEST, json.dumps(result, indent=1).encode())
    return result


def _drawn(volumes: Sequence[TrainingVolume], settings: PatchSettings) -> Split:
    """Whole subjects for validation: those whose digest, mixed with the seed, comes first."""
    subjects: dict[str, str] = {}
    for volume in volumes:
        # A subject of several volumes counts by the first digest among them.
        subjects[volume.subject] = min(subjects.get(volume.subject, "~"), volume.content)
    ranked = sorted(
        subjects,
        key=lambda subject: np.random.SeedSequence(
            [settings.seed, int(subjects[subject][:16], 16)]
        ).generate_state(1, np.uint64)[0],
    )
    share = len(ranked) * settings.validation_share
    # One at least, so that there is something to watch a run on.
    kept = set(ranked[: max(round(share), 1 if share > 0 and len(ranked) > 1 else 0)])
    if len(kept) == len(ranked):
        raise UsageError("Nothing would be left to train on; give more subjects.")
    return Split(
        tuple(volume for volume in volumes if volume.subject not in kept),
        tuple(volume for volume in volumes if volume.subject in kept),
    )


def _stems(volumes: Sequence[TrainingVolume]) -> dict[str, str]:
    """Digest of each volume → how its patches' names begin; no two alike on any system."""
    stems = {v.content: io.stem(v.name.replace("/", "_").replace(os.sep, "_")) for v in volumes}
    counts = Counter(stem.casefold() for stem in stems.values())
    return {
        content: f"{stem}-{content[:8]}" if counts[stem.casefold()] > 1 else stem
        for content, stem in stems.items()
    }


def _entry(
    volume: TrainingVolume,
    part: str,
    settings: PatchSettings,
    stem: str,
    places: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """What the manifest says of a volume; ``places`` are another manifest's patches of it."""
    if places is None:
        starts = patch_starts(
            volume.data,
            volume.content,
            size=settings.size,
            count=settings.count,
            seed=settings.seed,
        )
    else:
        starts = [_place(place, volume, settings.size) for place in places]
    return {
        "name": volume.name,
        "content": volume.content,
        "sha256": volume.sha256,
        "split": part,
        "patches": [
            {"file": f"{_FOLDERS[part]}/{stem}_patch-{n:02}.nii", "start_zyx": list(start)}
            for n, start in enumerate(starts, 1)
        ],
    }


def _write(
    entry: dict[str, Any], volume: TrainingVolume, folder: Path, settings: PatchSettings
) -> None:
    source = io.read(volume.path, most=0, frame=0, channel=settings.channel)
    for patch in entry["patches"]:
        z, y, x = patch["start_zyx"]
        box = Box((z, y, x), (z + settings.size, y + settings.size, x + settings.size))
        voxels = np.asarray(volume.data[box.slices], dtype=np.float32)
        io.write(folder / patch["file"], Volume(voxels, source.grid.crop(box).affine))


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")  # noqa: TRY301
        parts = {v["split"] for v in manifest["volumes"] if v["content"] and v["name"]}
        if unknown := sorted(parts - set(_FOLDERS)):
            raise ValueError(f"there is no part {unknown[0]!r}")  # noqa: TRY301
        [dict(patch) for volume in manifest["volumes"] for patch in volume["patches"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}: this is no manifest of patches ({error}).") from None
    found: dict[str, Any] = manifest
    return found


def _settings_of(manifest: dict[str, Any], path: Path) -> PatchSettings:
    try:
        names = PatchSettings.__dataclass_fields__
        # Manifests of before know no channels.
        given = {"channel": None} | manifest
        return PatchSettings(**{name: given[name] for name in names})
    except (KeyError, TypeError) as error:
        raise FileError(f"{path}: this is no manifest of patches ({error}).") from None


def _split_as(manifest: dict[str, Any], volumes: Sequence[TrainingVolume], path: str) -> Split:
    found = {volume.content: volume for volume in volumes}
    parts: dict[str, list[TrainingVolume]] = {"train": [], "validation": []}
    for entry in manifest["volumes"]:
        volume = found.get(entry["content"])
        if volume is None:
            raise UsageError(
                f"{path} was made with a volume that is not among yours: {entry['name']}, with "
                f"other voxels under its name or missing."
            )
        parts[entry["split"]].append(volume)
    return Split(tuple(parts["train"]), tuple(parts["validation"]))


def _place(patch: dict[str, Any], volume: TrainingVolume, size: int) -> tuple[int, int, int]:
    try:
        z, y, x = (int(start) for start in patch["start_zyx"])
        inside = all(0 <= a <= n - size for a, n in zip((z, y, x), volume.data.shape, strict=True))
    except (KeyError, TypeError, ValueError):
        inside = False
    if not inside:
        raise UsageError(f"The manifest names a patch that is not inside {volume.path}: {patch}.")
    return z, y, x
