"""All stacks brought to one, as bright as it; and where they were, in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_arssr.choices import Similarity
from napari_arssr.errors import Cancelled, FileError, UsageError
from napari_arssr.files import make_folder
from napari_arssr.fitting.poses import FloatArray
from napari_arssr.fitting.registration import (
    Agreement,
    compare,
    read_motion,
    register,
    write_motion,
)
from napari_arssr.fitting.stacks import Stack
from napari_arssr.volume import Volume
from napari_arssr.watching import Advance, Stop, never, unheard

__all__ = [
    "POOR",
    "Alignment",
    "align",
    "check_motions_folder",
    "read_motions",
    "seen_from",
    "write_motions",
]

POOR = 0.8
"""Correlation with the reference below which a stack is said to agree poorly.

Brains of two subjects reach 0.77 to 0.79 after registration, stacks of one 0.9 and more.
"""


@dataclass(frozen=True)
class Alignment:
    """Stacks in one place.

    Parameters
    ----------
    stacks : list of Stack
        As bright as the reference.
    motions : list of (4, 4) arrays
        Where each stack's file says a point is → where it is in the reference's world.
    agreements : list of Agreement
        With the reference, before intensities were matched.
    warnings : list of str
    """

    stacks: list[Stack]
    motions: list[FloatArray]
    agreements: list[Agreement]
    warnings: list[str]


def align(
    stacks: Sequence[Stack],
    *,
    reference: int = 0,
    starts: Sequence[FloatArray] | None = None,
    registered: bool = False,
    metric: Similarity = "correlation",
    mask: Volume | None = None,
    seed: int = 0,
    stop: Stop = never,
    advance: Advance = unheard,
) -> Alignment:
    """Register stacks to one of them and match their intensities.

    Parameters
    ----------
    stacks : sequence of Stack
    reference : int
        Which one stays where its file says.
    starts : sequence of (4, 4) arrays, optional
        Motions to begin with, in whatever world they have in common; by default none moves.
    registered : bool
        Whether ``starts`` are where the stacks are: nothing is searched for.
    metric : {"correlation", "mutual-information"}
    mask : Volume, optional
        Only what is in it is compared, in the reference's world.
    seed : int
    stop, advance : callables

    Raises
    ------
    UsageError
        If there is no such reference, or a stack does not overlap it.
    Cancelled
    """
    if not 0 <= reference < len(stacks):
        raise UsageError(
            f"There is no stack {reference + 1} to be the reference: there are {len(stacks)}."
        )
    fixed = stacks[reference]
    begun = seen_from(reference, starts, len(stacks))
    result, motions, agreements, warnings = [], [], [], []
    for number, stack in enumerate(stacks):
        if stop():
            raise Cancelled
        motion = begun[number]
        if number == reference:
            agreement = Agreement(1.0, 1.0, 1.0)
        else:
            if not registered:
                motion = register(
                    fixed.volume, stack.volume, metric=metric, start=motion, mask=mask, seed=seed
                )
            agreement = compare(fixed.volume, stack.volume, motion, mask=mask)
            if agreement.correlation < POOR:
                warnings.append(
                    f"{stack.name} agrees poorly with {fixed.name} "
                    f"({'as given' if registered else 'after registration'}: correlation "
                    f"{agreement.correlation:.2f}): it may show another subject, another contrast, "
                    "or lie elsewhere; look at the result, and leave the stack out if in doubt."
                )
        result.append(stack.scaled(agreement.gain) if number != reference else stack)
        motions.append(motion)
        agreements.append(agreement)
        advance((number + 1) / len(stacks))
    return Alignment(result, motions, agreements, warnings)


def seen_from(reference: int, motions: Sequence[FloatArray] | None, count: int) -> FloatArray:
    """Motions (count, 4, 4) in the world of a stack that stays where it is.

    Motions that were written with another stack as reference move this one too: all are taken
    back with it.

    Parameters
    ----------
    reference : int
    motions : sequence of (4, 4) arrays, optional
        Of all stacks; by default none moves.
    count : int
        How many stacks there are.

    Raises
    ------
    UsageError
        If there are not as many motions as stacks.
    """
    if motions is None:
        return np.tile(np.eye(4), (count, 1, 1))
    if len(motions) != count:
        raise UsageError(f"There are {len(motions)} transforms for {count} stacks.")
    seen = np.linalg.inv(motions[reference]) @ np.stack(motions)
    seen[reference] = np.eye(4)  # without what rounding leaves
    return np.asarray(seen)


def check_motions_folder(folder: str | os.PathLike[str]) -> Path:
    """See that transforms can be written to a folder, which may be made for them, before the work.

    Raises
    ------
    UsageError, FileError
    """
    place = Path(folder)
    nearest = next(one for one in (place, *place.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is a file, and transforms need a folder; name another.")
    if not os.access(nearest, os.W_OK):
        raise FileError(f"{nearest}: nothing can be written there; name another folder.")
    return place


def write_motions(
    folder: str | os.PathLike[str], names: Sequence[str], motions: Sequence[FloatArray]
) -> list[Path]:
    """ITK transforms of stacks into a folder, ``1_NAME.tfm`` and so on.

    Raises
    ------
    FileError
        If the folder cannot be made or written to.
    """
    place = Path(folder)
    make_folder(place)
    paths = [place / _file_name(number, name) for number, name in enumerate(names)]
    for path, motion in zip(paths, motions, strict=True):
        write_motion(path, motion)
    return paths


def read_motions(folder: str | os.PathLike[str], names: Sequence[str]) -> list[FloatArray]:
    """What :func:`write_motions` wrote, for the same stacks in the same order.

    Raises
    ------
    FileError
        If one is missing or is not a rigid transform.
    """
    return [read_motion(Path(folder) / _file_name(n, name)) for n, name in enumerate(names)]


def _file_name(number: int, name: str) -> str:
    from napari_arssr.io import without_suffix

    return f"{number + 1}_{without_suffix(Path(name).name)}.tfm"
