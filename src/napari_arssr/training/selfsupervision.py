"""Learning from one volume: its sharp directions teach how to sharpen the coarse one.

As SMORE does (Zhao et al., IEEE TMI 40(3), 2021): a scan with thick slices is fine in plane.
The weights that the run starts from bring it to cubes; what is sharp in plane is then made as
coarse as the slices are, along one in-plane axis at a time, and the network learns to undo that.
It starts from weights that know brains already, so that minutes are enough.

In the thick slices as they are it would learn from surroundings that are coarse too: measured on
a simulated pair, that made the starting weights worse.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from napari_arssr import io
from napari_arssr.errors import UsageError
from napari_arssr.training.config import RunConfig
from napari_arssr.training.run import starting_from

__all__ = ["MINUTES", "self_training"]

MINUTES = 10.0
"""Time budget where none is given."""

# Slices this much thicker than a pixel's side are worth it.
_LEAST_RATIO = 1.2
# About the ratio of the two: the slices' profile is not known exactly.
_SPREAD = 1.15
_LARGEST_PATCH = 20
# Weights that know brains need no long warm-up, and minutes have few steps.
_WARM_UP = 20


def self_training(
    config: RunConfig, path: str | os.PathLike[str], *, start: str = "default"
) -> RunConfig:
    """Settings for learning from one volume with thick slices.

    The result sharpens this volume along its coarse axis, by the ratio of its voxel sides.

    Parameters
    ----------
    config : RunConfig
        What is to be as given: length, seed, machine, name.
    path : path
        The volume.
    start : str
        Weights to start from, a registered name or a file.

    Returns
    -------
    RunConfig

    Raises
    ------
    UsageError
        If no axis of the volume is clearly coarser than another.
    FileError
        If the volume or the weights cannot be read.
    """
    path = Path(path)
    volume = io.read(path, most=0, frame=0, channel=config.data.channel)
    spacing = np.array(volume.spacing)
    coarse = float(spacing.max())
    sharp = tuple(int(axis) for axis in np.flatnonzero(spacing * _LEAST_RATIO < coarse))
    if not sharp:
        sides = " × ".join(f"{side:.3g}" for side in volume.spacing[::-1])
        raise UsageError(
            f"{path}: voxels of {sides} mm have no coarse axis to sharpen, nor a sharp one to "
            "learn that from; train on a set of volumes instead, or upsample it as it is."
        )
    ratio = coarse / float(spacing[list(sharp)].min())
    config = starting_from(config, start)
    # A patch takes no more than half of the volume along its shortest axis.
    patch = max(4, min(_LARGEST_PATCH, min(volume.grid.isotropic().shape) // 2))
    augmentation = replace(
        config.training.augmentation,
        anisotropic=0.0,
        in_plane=0.0,
        thick_slices=1.0,
        smallest_thick_scale=max(1.0, ratio / _SPREAD),
        largest_thick_scale=ratio * _SPREAD,
        sharp=1.0,
        # It serves this one volume: no other contrast, no softer one.
        contrast=0.0,
        blur=0.0,
    )
    training = replace(
        config.training,
        augmentation=augmentation,
        sharp_axes=sharp,
        smallest_scale=1.0,
        largest_scale=1.0,
        patch=patch,
        largest_patch=0,
        holdout=0,
        warm_up=min(config.training.warm_up, _WARM_UP),
    )
    data = replace(config.data, train=(str(path),), validation=(), isotropic=True)
    return replace(config, training=training, data=data)
