"""Stacks of thick slices: what can be fitted, and what of it counts.

A stack is a volume whose voxels are longer across the slices than within them. Here its slices
always run along the first array axis; the affine says where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr.errors import UsageError
from napari_arssr.fitting.poses import length_unit
from napari_arssr.normalization import Normalizer, check_range
from napari_arssr.volume import Grid, Volume

__all__ = [
    "Stack",
    "check",
    "check_form",
    "check_forms",
    "empty_slices",
    "filled",
    "inside_of",
    "is_thick",
    "prepare",
    "read_stacks",
    "within",
]

_THICK = 1.2  # voxels that are longer than this times their width make a stack of slices
# Beyond the last slice that shows something there is background where most of that slice is it.
_BACKGROUND = 0.5


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one scan.

    Parameters
    ----------
    volume : Volume
        3D, float32, slices along the first axis; intensities in units of the fit.
    rows : (n,) int array
        The voxels that count, as flat indices in C order, ascending.
    gain : float
        What the volume's intensities were multiplied by, to match the reference's.
    """

    volume: Volume
    rows: npt.NDArray[np.int64]
    gain: float = 1.0

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.volume.name

    @property
    def unit(self) -> float:
        """What is a length in fitting is told in such units, see :func:`length_unit`."""
        return length_unit(self.volume.grid)

    @property
    def slices(self) -> int:
        """How many there are."""
        return self.volume.data.shape[0]

    @cached_property
    def empty(self) -> list[int]:
        """Slices in which nothing was measured, see :func:`empty_slices`."""
        return empty_slices(self.volume.data)

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """Intensities of the voxels that count."""
        return np.asarray(self.volume.data.reshape(-1)[self.rows])

    @cached_property
    def slice_of_row(self) -> npt.NDArray[np.int64]:
        """For each voxel that counts the number of its slice."""
        return self.rows // (self.volume.data.shape[1] * self.volume.data.shape[2])

    @cached_property
    def slice_rows(self) -> list[tuple[int, slice]]:
        """The slices with voxels that count: their number, and where these are in ``rows``."""
        numbers, starts = np.unique(self.slice_of_row, return_index=True)
        ends = [*starts[1:].tolist(), len(self.rows)]
        pairs = zip(numbers.tolist(), starts.tolist(), ends, strict=True)
        return [(number, slice(start, end)) for number, start, end in pairs]

    @cached_property
    def centres(self) -> npt.NDArray[np.float64]:
        """Middle of each slice, (slices, 3), RAS+ millimetres, where the file says it is."""
        _, rows, columns = self.volume.data.shape
        index = [[number, (rows - 1) / 2, (columns - 1) / 2] for number in range(self.slices)]
        return self.volume.grid.world(index)

    @property
    def still(self) -> npt.NDArray[np.float64]:
        """A motion for each slice that moves nothing, (slices, 4, 4)."""
        return np.tile(np.eye(4), (self.slices, 1, 1))

    def scaled(self, gain: float) -> Stack:
        """The same with intensities multiplied once more."""
        data = self.volume.data * np.float32(gain)
        return replace(self, volume=replace(self.volume, data=data), gain=self.gain * gain)


def read_stacks(paths: Sequence[str | os.PathLike[str]]) -> list[Volume]:
    """Stacks from files.

    Raises
    ------
    FileError, UsageError
        If one cannot be read, or is named twice.
    """
    from pathlib import Path

    from napari_arssr import io

    seen: set[Path] = set()
    for path in map(Path, paths):
        whole = path.resolve()
        if whole in seen:
            raise UsageError(f"{path} is named twice; give each stack once.")
        seen.add(whole)
    return [replace(io.read(path), name=io.name_of(path)) for path in paths]


def check(volumes: Sequence[Volume]) -> None:
    """Refuse what no volume can be made of, before any work.

    Raises
    ------
    UsageError, FileError
        One sentence with the stack's name, what is wrong, and the way out.
    """
    check_forms(volumes)
    for volume in volumes:
        _check_voxels(volume)


def check_forms(volumes: Sequence[Volume]) -> None:
    """:func:`check` without looking at voxels, which may still be in files.

    Raises
    ------
    UsageError
    """
    if len(volumes) < 2:
        raise UsageError(
            f"{len(volumes)} stack is too few: several thick stacks make one sharp volume; "
            "for a single one use 'upsample'."
            if volumes
            else "There is no stack to fit; name two or more."
        )
    for volume in volumes:
        check_form(volume)
    if not any(is_thick(volume.grid) for volume in volumes):
        sizes = " × ".join(f"{side:.3g}" for side in reversed(volumes[0].spacing))
        raise UsageError(
            f"No stack has thick slices ({volumes[0].name}: {sizes} mm), so there is nothing that "
            "one could lend another; for a finer volume use 'upsample'."
        )


def is_thick(grid: Grid) -> bool:
    """Whether voxels are clearly longer across the slices than within them."""
    sides = sorted(grid.spacing)
    return sides[2] > _THICK * sides[1]


def check_form(volume: Volume) -> None:
    """See that a volume can be a stack, as far as that can be told without its voxels.

    Raises
    ------
    UsageError
    """
    name = volume.name
    if volume.data.ndim != 3:
        raise UsageError(
            f"{name} is a series of {volume.frames} frames; take one of them as a stack."
        )
    if volume.data.dtype.kind not in "iuf":
        raise UsageError(
            f"{name}: voxels of {volume.data.dtype} are not real numbers; convert them."
        )
    flat = [n for n in volume.data.shape if n < 2]
    if flat:
        shape = " × ".join(str(n) for n in reversed(volume.data.shape))
        raise UsageError(f"{name} is one plane ({shape} voxels), not a stack of slices.")
    try:
        volume.grid.itk_geometry  # noqa: B018 - asked for its refusal
    except UsageError as error:
        raise UsageError(f"{name}: {error}; resample it first.") from None


def _check_voxels(volume: Volume) -> None:
    name = volume.name
    _check_finite(volume, "set them to 0 or leave the stack out")
    check_range(volume.data, name)
    if volume.data.min() == volume.data.max():
        raise UsageError(
            f"{name} is {float(volume.data.min()):g} everywhere: there is nothing in it to fit."
        )


def _check_finite(volume: Volume, way_out: str) -> None:
    if volume.data.dtype.kind != "f":
        return
    bad = int(np.count_nonzero(~np.isfinite(volume.data)))
    if bad:
        values = "a voxel that is" if bad == 1 else f"{bad} voxels that are"
        raise UsageError(f"{volume.name} has {values} not finite (NaN or infinite); {way_out}.")


def inside_of(mask: Volume) -> npt.NDArray[np.bool_]:
    """Voxels of a mask that are not zero.

    Raises
    ------
    UsageError
        If there is none, if it is no single volume, or if one is not finite: nobody can tell on
        which side such a voxel was meant to lie.
    """
    if mask.data.ndim != 3:
        raise UsageError(f"{mask.name}: a mask is one 3D volume, not a series of {mask.frames}.")
    _check_finite(mask, "set those outside the mask to 0")
    inside = np.asarray(mask.data != 0)
    if not inside.any():
        raise UsageError(f"{mask.name}: this mask is empty; it is 0 everywhere.")
    return inside


def prepare(volumes: Sequence[Volume], normalizer: Normalizer) -> tuple[list[Stack], list[str]]:
    """Stacks ready to be fitted.

    Parameters
    ----------
    volumes : sequence of Volume
        Checked.
    normalizer : Normalizer
        Brings the reference's intensities to [0, 1]; zero stays zero.

    Returns
    -------
    stacks : list of Stack
    warnings : list of str
        A sentence for each slice that holds nothing and was left out.
    """
    stacks, warnings = [], []
    for volume in volumes:
        axis = volume.grid.slice_axis
        turned = volume.transposed([axis, *(other for other in range(3) if other != axis)])
        data = np.ascontiguousarray(normalizer.normalize(turned.data))
        stack = Stack(replace(turned, data=data, name=volume.name), np.arange(data.size))
        if stack.empty:
            stack = replace(stack, rows=np.flatnonzero(~np.isin(stack.slice_of_row, stack.empty)))
            numbers = ", ".join(str(number) for number in stack.empty)
            warnings.append(
                f"{volume.name}: slice {numbers} of {stack.slices} holds one value only and was "
                "left out."
            )
        stacks.append(stack)
    return stacks, warnings


def within(stack: Stack, mask: Volume, motion: npt.NDArray[np.float64]) -> Stack:
    """The same stack with the voxels only that lie in a mask or next to it.

    Parameters
    ----------
    stack : Stack
    mask : Volume
        Not zero inside; anywhere in the reference's world.
    motion : (4, 4) array
        Of the stack.

    Raises
    ------
    UsageError
        If no voxel does.
    """
    near = _near(mask, stack.volume.grid.moved(motion))
    rows = stack.rows[near.ravel()[stack.rows]]
    if not rows.size:
        raise UsageError(f"{stack.name}: no voxel of it lies in the mask {mask.name}.")
    return replace(stack, rows=rows)


def empty_slices(data: npt.NDArray[Any]) -> list[int]:
    """Slices of one value, in which nothing was measured.

    Those between others are. At the ends of a stack such slices may be background like any other:
    they are if most of the nearest slice that shows something is of their value too. Else the
    anatomy would end at once, or the background there would be without its noise.

    Parameters
    ----------
    data : (slices, rows, columns) array

    Returns
    -------
    list of int
        Their numbers, ascending; none if no slice shows anything.
    """
    flat = data.reshape(len(data), -1)
    constant = flat.min(axis=1) == flat.max(axis=1)
    full = np.flatnonzero(~constant)
    if not full.size:
        return []
    first, last = full[0], full[-1]

    def is_background(number: int) -> bool:
        if first < number < last:
            return False
        beside = flat[first if number < first else last]
        return bool(np.mean(beside == flat[number, 0]) > _BACKGROUND)

    return [number for number in np.flatnonzero(constant).tolist() if not is_background(number)]


def filled(data: npt.NDArray[Any], empty: Sequence[int]) -> npt.NDArray[np.float32]:
    """Slices with what their neighbours show in place of empty ones, which would ring into them.

    Parameters
    ----------
    data : (slices, rows, columns) array
    empty : sequence of int
        Numbers of the empty slices, see :func:`empty_slices`.

    Returns
    -------
    (slices, rows, columns) float32 array
        Between the nearest slices on either side, for the nearest alone would move the anatomy
        by half a slice; at the ends, the nearest.
    """
    result = data.astype(np.float32, copy=bool(empty))
    if empty:
        full = np.setdiff1d(np.arange(len(data)), empty)
        place = np.interp(empty, full, np.arange(len(full)))
        low = place.astype(np.int64)
        high = np.minimum(low + 1, len(full) - 1)
        share = (place - low).astype(np.float32)[:, None, None]
        result[list(empty)] = (1 - share) * result[full[low]] + share * result[full[high]]
    return result


def _near(mask: Volume, grid: Grid) -> npt.NDArray[np.bool_]:
    """Voxels of a grid in a mask, or no farther from it than the largest voxel's side."""
    from scipy.ndimage import distance_transform_edt, map_coordinates

    inside = inside_of(mask)
    distance = distance_transform_edt(~inside, sampling=mask.spacing).astype(np.float32)
    points = grid.map_into(mask.grid).points(grid.box)
    far = map_coordinates(distance, np.moveaxis(points, -1, 0), order=1, mode="nearest")
    # The mask's own voxels reach half a voxel beyond their centres.
    last = np.array(mask.grid.shape) - 1
    beyond = np.maximum(np.abs(points - np.clip(points, 0, last)) - 0.5, 0) * mask.spacing
    return np.asarray(far + np.linalg.norm(beyond, axis=-1) <= max(grid.spacing))
