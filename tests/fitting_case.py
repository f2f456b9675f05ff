"""Stacks of thick slices cut from the phantom, and what they were cut from."""

from functools import lru_cache

import numpy as np

from napari_arssr.fitting.poses import rigid
from napari_arssr.phantom import Phantom
from napari_arssr.volume import Box, Grid, Volume

CENTRE = (-20.0, 10.0, 30.0)
GRID = Grid(
    (32, 36, 32),
    Grid.from_spacing((32, 36, 32), 1.6).affine + np.pad(np.array([CENTRE]).T, ((0, 1), (3, 0))),
)


@lru_cache
def truth(seed=0):
    """What stacks are compared with: white matter is about 1."""
    volume = Phantom(seed).sample(GRID, oversampling=2)
    return Volume(volume.data / np.float32(900), GRID.affine, name="truth")


def thick(axis, factor=4):
    """The grid with voxels ``factor`` times as long along an axis."""
    return GRID.scaled([1 / factor if a == axis else 1 for a in range(3)])


@lru_cache
def _measured(axis, factor, motion, slices, seed):
    """A stack after a motion; ``slices`` says which moved otherwise."""
    grid = thick(axis, factor)
    other = dict(slices)
    parts = []
    for number in range(grid.shape[axis]):
        box = Box((0, 0, 0), grid.shape).with_range(axis, number, number + 1)
        place = grid.crop(box).moved(rigid(other.get(number, motion), CENTRE))
        fine = place.scaled([factor if a == axis else 1 for a in range(3)])
        data = Phantom(seed).sample(fine, oversampling=2).data
        parts.append(data.mean(axis=axis, keepdims=True) / np.float32(900))
    return np.concatenate(parts, axis=axis)


STILL = (0.0,) * 6


def stack(axis, *, factor=4, motion=STILL, slices=(), noise=0.0, gain=1.0, seed=0):
    """A volume with thick voxels along an axis; ``motion`` in radians and millimetres."""
    data = _measured(axis, factor, tuple(motion), tuple(slices), seed)
    random = np.random.default_rng(100 * seed + axis)
    noisy = data + np.float32(noise) * random.standard_normal(data.shape, dtype=np.float32)
    name = ("axial", "coronal", "sagittal")[axis]
    return Volume(noisy * np.float32(gain), thick(axis, factor).affine, name=f"{name}.nii.gz")


def three(**options):
    """Three orthogonal stacks."""
    return [stack(axis, **options) for axis in range(3)]


def brain():
    """Where there is something, away from the borders."""
    inner = np.zeros(GRID.shape, dtype=bool)
    inner[4:-4, 4:-4, 4:-4] = True
    return inner & (truth().data > 0.05)
