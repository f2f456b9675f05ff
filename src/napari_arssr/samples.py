"""Volumes to try things on: a real scan, a phantom known exactly, two to download."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from napari_arssr.errors import FileError
from napari_arssr.io import read
from napari_arssr.phantom import Phantom
from napari_arssr.volume import Grid, Volume

__all__ = ["brain", "nuclei", "phantom", "scan"]


def scan() -> Volume:
    """A real scan that nibabel installs: a brain, 128 × 96 × 24 voxels of 2 × 2 × 2.2 mm, oblique.

    The first frame of ``example4d.nii.gz``.
    """
    path = Path(str(files("nibabel"))) / "tests" / "data" / "example4d.nii.gz"
    return read(path).frame(0)


def phantom(spacing: float | tuple[float, float, float] = 2.0) -> Volume:
    """The continuous phantom on voxels of ``spacing`` (z, y, x) millimetres, without noise."""
    return Phantom().sample(Phantom.grid(spacing), oversampling=2)


def brain() -> Volume:
    """scikit-image's ``brain``: ten axial slices of a head, 256 × 256; downloaded once.

    The file states no voxel size: 1 × 1 mm in plane and 5 mm between slices are assumed.

    Raises
    ------
    FileError
        If it is not here and cannot be downloaded.
    """
    data = _downloaded("brain", lambda source: source.brain())
    return Volume(data, Grid.unoriented(data.shape, (5.0, 1.0, 1.0)).affine, name="brain")


def nuclei() -> Volume:
    """scikit-image's ``cells3d``, nuclei channel, every fourth plane: a coarse z; downloaded once.

    15 × 256 × 256 voxels of 1.16 × 0.26 × 0.26 µm, (z, y, x).

    Raises
    ------
    FileError
        If it is not here and cannot be downloaded.
    """
    data = _downloaded("cells3d", lambda source: source.cells3d()[::4, 1])
    grid = Grid.unoriented(data.shape, (1.16, 0.26, 0.26)).in_millimetres(1e-3)
    return Volume(data, grid.affine, name="nuclei")


def _downloaded(name: str, get: Callable[[Any], np.ndarray[Any, Any]]) -> Any:
    from skimage import data as source

    try:
        return np.ascontiguousarray(get(source))
    except OSError as error:  # requests' errors are OSErrors, and so is a read-only cache
        raise FileError(
            f"The sample {name!r} could not be downloaded by scikit-image "
            f"({type(error).__name__}); connect to the network, or use the samples that come "
            "with the package: scan and phantom."
        ) from None
    except ValueError:
        raise FileError(
            f"The sample {name!r} came broken and was thrown away; try again later."
        ) from None
