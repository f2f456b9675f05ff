"""What a field reads of its volume: voxels in network units, and their spline coefficients.

A volume in memory is seen whole, once. One in a file or a dask array, and one that would not
leave room for that, is seen in parts: where samples are asked for, with what lies around them.
Values are the same to a few units in the last place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from napari_arssr.interpolation import spline_coefficients
from napari_arssr.lazy import is_loaded, read
from napari_arssr.normalization import Normalizer, check_range
from napari_arssr.request import Request
from napari_arssr.volume import Box, Volume
from napari_arssr.watching import Stop, never

__all__ = ["Voxels"]

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# A spline's coefficient depends on a voxel n further with 0.27ⁿ: so far away, less than float32
# can tell.
_SPLINE_HALO = 20


class Voxels:
    """A volume as a field reads it.

    Parameters
    ----------
    volume : Volume
        3D; its voxels may be in a file. Those that are not finite count as the darkest.
    normalizer : Normalizer
        To network units.
    device : torch.device
        Where spline coefficients are wanted.
    spline, normal : bool
        Whether these are wanted at all, and :meth:`normal`.
    whole : bool
        Whether all is made ready now, which takes 4 bytes a voxel, and 4 for coefficients.

    Attributes
    ----------
    constant : float or None
        The value of all voxels, in network units, where it is one.
    """

    def __init__(
        self,
        volume: Volume,
        normalizer: Normalizer,
        device: torch.device,
        *,
        spline: bool = True,
        normal: bool = True,
        whole: bool = True,
    ) -> None:
        if volume.data.ndim != 3:
            raise ValueError("A field is made from one 3D volume: take a frame of it.")
        self.grid = volume.grid
        self.constant: float | None = None
        self._volume: Volume | None = volume
        self._normalizer = normalizer
        self.device = device
        self._spline = spline
        # Within it, what lies beyond the part that is held matters no more.
        self._sure: Box | None = None
        self._whole: FloatArray | None = None
        if whole:
            values = self._hold(self.grid.box)
            low, high = float(values.min()), float(values.max())
            self.constant = low if low == high else None
            self._whole = values if normal else None
            self._volume = None
        elif normalizer.constant:
            self.constant = 0.0

    def normal(self, box: Box, stop: Stop = never) -> FloatArray:
        """Voxels of a box in network units, finite.

        Raises
        ------
        FileError
            If they cannot be read, or hold values beyond float32.
        Cancelled
            If ``stop`` says so while they are read.
        """
        if self._whole is not None:
            return self._whole[box.slices]
        return self._normalizer.normalize(self._read(box, stop))

    def prepare(self, support: Box, stop: Stop = never) -> None:
        """Make ready what samples read that lie between the voxels of a box.

        Raises
        ------
        FileError, Cancelled
            As :meth:`normal`.
        """
        # A spline reads one voxel more on either side, and at the border one for its mirror.
        self._cover(support.grown(2, self.grid.shape), stop)

    def coefficients(self, box: Box) -> Tensor:
        """Cubic B-spline coefficients of a box, on the device."""
        self._cover(box)
        return self._on_device[box.relative_to(self._start).slices]

    def interpolated(self, points: npt.NDArray[np.float64], support: Box) -> Tensor:
        """Cubic interpolation at points (p, 3) between the voxels of a box: (p,)."""
        self.prepare(support)
        values = map_coordinates(
            self._coefficients,
            (points - self._start).T,
            output=np.float32,
            mode="mirror",
            prefilter=False,
        )
        return torch.from_numpy(values).to(self.device)

    def known(self, request: Request, chunk: Box) -> Mask | None:
        """Whether the voxels nearest to those of a chunk that is asked for are finite.

        None where all are.
        """
        if self._volume is not None:
            if self._volume.data.dtype.kind != "f":
                return None
            self.prepare(request.support(chunk))
        if self._finite is None:
            return None
        index = zip(request.nearest(chunk), self._start, strict=True)
        return self._finite[tuple(axis - start for axis, start in index)]

    def _cover(self, box: Box, stop: Stop = never) -> None:
        """Hold a part in which a box is sure."""
        if self._sure is None or self._sure.common(box) != box:
            self._hold(box, stop)

    def _hold(self, box: Box, stop: Stop = never) -> FloatArray:
        """Read a box with its surroundings; gives it in network units."""
        part = box.grown(_SPLINE_HALO, self.grid.shape)
        self._sure = None  # if this fails nothing is
        data = self._read(part, stop)
        normal = self._normalizer.normalize(data)
        finite = np.isfinite(data) if data.dtype.kind == "f" else None
        self._finite = None if finite is None or finite.all() else finite
        if self._spline:
            self._coefficients = spline_coefficients(normal)
            self._on_device = torch.from_numpy(self._coefficients).to(self.device)
        self._start = part.start
        self._sure = box
        return normal

    def _read(self, box: Box, stop: Stop) -> npt.NDArray[Any]:
        """Voxels as they are stored."""
        assert self._volume is not None  # what is whole is not read again
        values = read(self._volume.data, self._volume.name, box.slices, stop=stop)
        if not is_loaded(self._volume.data):  # which nobody has looked through
            check_range(values, self._volume.name)
        return values
