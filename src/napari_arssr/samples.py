"""Volumes to try things on: a real scan, a phantom known exactly, two to download.

The two to download are scikit-image's. They are taken from its own cache if they are there,
else fetched from their pinned address, verified, and kept with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_arssr import download
from napari_arssr.degradation import ScannerModel
from napari_arssr.download import NotFetched, Progress, RemoteFile, Stop, is_whole
from napari_arssr.errors import Cancelled, FileError
from napari_arssr.io import read
from napari_arssr.phantom import Phantom
from napari_arssr.volume import Grid, Volume, as_triple
from napari_arssr.weights import CACHE_VARIABLE, cache_folder

__all__ = ["brain", "cells", "nuclei", "phantom", "phantom_pair", "scan"]

_SLAB = 12  # planes of the phantom between two reports of progress


_SKIMAGE = "https://gitlab.com/scikit-image/data/-/raw/2cdc5ce89b334d28f06a58c9f0ca21aa6992a5ba"
_BRAIN = RemoteFile(
    f"{_SKIMAGE}/brain.tiff",
    "brain.tiff",
    "sha256:bcdbaf424fbad7b1fb0f855f608c68e5a838f35affc323ff04ea17f678eef5c6",
)
_CELLS = RemoteFile(
    f"{_SKIMAGE}/cells3d.tif",
    "cells3d.tif",
    "sha256:afc7c7d80d38bfde09788b4064ac1e64ec14e88454ab785ebdc8dbba5ca3b222",
)


def scan() -> Volume:
    """A real scan that nibabel installs: a brain, 128 × 96 × 24 voxels of 2 × 2 × 2.2 mm, oblique.

    The first frame of ``example4d.nii.gz``.
    """
    path = Path(str(files("nibabel"))) / "tests" / "data" / "example4d.nii.gz"
    return read(path).frame(0)


def phantom(spacing: float | tuple[float, float, float] = 2.0) -> Volume:
    """The continuous phantom on voxels of ``spacing`` (z, y, x) millimetres, without noise."""
    return Phantom().sample(Phantom.grid(spacing), oversampling=2)


def phantom_pair(
    scale: float | Sequence[float] = 2.0,
    model: ScannerModel | None = None,
    *,
    spacing: float = 1.0,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> tuple[Volume, Volume]:
    """The phantom at low resolution, and the reference that a result should come near to.

    Parameters
    ----------
    scale : float or three floats
        Reference voxels per low-resolution voxel, (z, y, x).
    model : ScannerModel, optional
        The scanner; a Gaussian as wide as the low-resolution voxel by default.
    spacing : float
        Voxel size of the reference in millimetres. Its values are the phantom's own at the
        voxel centres.
    progress : callable, optional
        Called with the slabs of the reference that are done, and all of them.
    stop : callable, optional
        Asked between slabs.

    Raises
    ------
    Cancelled
        If ``stop()`` was True.
    """
    grid = Phantom.grid(spacing)
    slabs = list(grid.box.blocks((_SLAB, *grid.shape[1:])))
    data = []
    for number, box in enumerate(slabs):
        if stop is not None and stop():
            raise Cancelled
        data.append(Phantom().sample(grid.crop(box)).data)
        if progress is not None:
            progress(number + 1, len(slabs))
    reference = Volume(np.concatenate(data), grid.affine, name="phantom, reference")
    coarse = grid.scaled([1 / k for k in as_triple(scale, "scale")])
    low = (model or ScannerModel()).measure(reference, coarse)
    return replace(low, name="phantom"), reference


def brain(*, progress: Progress | None = None, stop: Stop | None = None) -> Volume:
    """scikit-image's ``brain``: ten axial slices of a head, 256 × 256; downloaded once.

    The file states no voxel size: 1 × 1 mm in plane and 5 mm between slices are assumed.

    Parameters
    ----------
    progress : callable, optional
        Called with the bytes received and the bytes in all (None if the server does not say).
    stop : callable, optional
        Asked between chunks; True ends the download.

    Raises
    ------
    FileError
        If it is not here and cannot be downloaded.
    Cancelled
        If ``stop()`` was True.
    """
    data = _array(_BRAIN, 3, progress, stop)
    grid = Grid.unoriented(_zyx(data), (5.0, 1.0, 1.0))
    return Volume(data, grid.affine, name="brain")


def cells(*, progress: Progress | None = None, stop: Stop | None = None) -> tuple[Volume, Volume]:
    """scikit-image's ``cells3d``, membranes and nuclei; downloaded once.

    60 × 256 × 256 voxels of 0.29 × 0.26 × 0.26 µm, (z, y, x). Parameters and errors are those
    of :func:`brain`.
    """
    data = _array(_CELLS, 4, progress, stop)
    grid = Grid.unoriented(_zyx(data[:, 0]), (0.29, 0.26, 0.26)).in_millimetres(1e-3)
    membranes, nuclei = (
        Volume(np.ascontiguousarray(data[:, channel]), grid.affine, name=name)
        for channel, name in enumerate(("membranes", "nuclei"))
    )
    return membranes, nuclei


def nuclei(*, progress: Progress | None = None, stop: Stop | None = None) -> Volume:
    """The nuclei of :func:`cells`, every fourth plane: a coarse z.

    15 × 256 × 256 voxels of 1.16 × 0.26 × 0.26 µm, (z, y, x).
    """
    return cells(progress=progress, stop=stop)[1].thinned((4, 1, 1))


def _array(
    sample: RemoteFile, axes: int, progress: Progress | None, stop: Stop | None
) -> npt.NDArray[Any]:
    import tifffile

    path = _fetch(sample, progress, stop)
    data = np.asarray(tifffile.imread(path))
    assert data.ndim == axes, data.shape  # its digest says that it is the file we know
    return data


def _zyx(data: npt.NDArray[Any]) -> tuple[int, int, int]:
    z, y, x = data.shape
    return z, y, x


def _fetch(sample: RemoteFile, progress: Progress | None, stop: Stop | None) -> Path:
    """The verified file, from scikit-image's cache, from ours, or from its address."""
    from skimage.data import data_dir

    installed = Path(data_dir) / sample.filename
    if installed.is_file() and is_whole(installed, sample):
        return installed
    folder = cache_folder() / "samples"
    try:
        return download.fetch(sample, folder, progress=progress, stop=stop)
    except NotFetched as failure:
        raise FileError(
            f"The sample {sample.filename} could not be downloaded: {failure}; connect to the "
            f"network and try again, put {sample.address} at {folder / sample.filename} by other "
            "means, or use the samples that come with the package: scan and phantom."
        ) from None
    except OSError as error:
        raise FileError(
            f"The sample {sample.filename} cannot be kept in {folder} ({error.strerror or error}); "
            f"make room or name another folder in the environment variable {CACHE_VARIABLE}."
        ) from None
