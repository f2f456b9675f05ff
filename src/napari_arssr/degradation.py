"""How a scanner makes a low-resolution (LR) volume from a high-resolution (HR) one.

The model is linear and separable: LR = A_z ⊗ A_y ⊗ A_x · HR, with one small matrix per axis
(LR voxels × HR voxels) that holds point-spread function and sampling. Its adjoint is the
three transposes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from napari_arssr.choices import SCANNER_KINDS, ScannerKind
from napari_arssr.errors import UsageError
from napari_arssr.interpolation import apply_separable, spline_matrix
from napari_arssr.volume import Grid, Volume, rescaled

__all__ = ["ScannerModel", "with_noise"]

Matrix = npt.NDArray[np.float32]

_SIGMA_PER_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))


@dataclass(frozen=True)
class ScannerModel:
    """A point-spread function in units of the LR voxel, the same along every axis.

    An axis whose LR and HR voxels are equal is not measured again: its matrix is the
    identity.

    Parameters
    ----------
    kind : {"gaussian", "slice-profile", "kspace", "cubic"}
        ``gaussian``: full width at half maximum (FWHM) of ``width`` LR voxels.
        ``slice-profile``: the mean over a slab ``width`` LR voxels thick.
        ``kspace``: low-pass at the Nyquist frequency of a voxel ``width`` LR voxels long,
        Hamming-apodised, as an MRI scanner does in plane.
        ``cubic``: cubic interpolation at the LR centres, no point-spread function: the
        protocol of the ArSSR paper (Wu et al. 2023), here on aligned grids.
    width : float
        Width in LR voxels; has no meaning for ``cubic``.

    Raises
    ------
    UsageError
        For an unknown kind or a width that is not above 0.
    """

    kind: ScannerKind = "gaussian"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SCANNER_KINDS:
            raise UsageError(
                f"There is no scanner model {self.kind!r}: choose {', '.join(SCANNER_KINDS)}."
            )
        if not 0 < self.width < np.inf:
            raise UsageError(f"The width of a scanner model must be above 0, not {self.width!r}.")

    @classmethod
    def parse(cls, text: str) -> ScannerModel:
        """``KIND`` or ``KIND:WIDTH``, such as ``slice-profile:1.2``; one voxel wide by default.

        Raises
        ------
        UsageError
            If there is no such model.
        """
        kind, _, width = text.partition(":")
        try:
            number = float(width) if width else 1.0
        except ValueError:
            raise UsageError(f"{width!r} is not the width of a scanner model.") from None
        return cls(cast("ScannerKind", kind), number)

    @property
    def text(self) -> str:
        """What :meth:`parse` makes it of again."""
        width = repr(self.width).removesuffix(".0")
        return self.kind if self.kind == "cubic" else f"{self.kind}:{width}"

    def rows(self, centres: npt.NDArray[np.floating[Any]], ratio: float, high: int) -> Matrix:
        """Rows of the measurement matrix for LR voxels anywhere along an HR axis.

        Parameters
        ----------
        centres : (m,) array
            LR voxel centres, in HR voxel indices.
        ratio : float
            HR voxels per LR voxel.
        high : int
            HR voxels along the axis.

        Returns
        -------
        (m, high) float32 array
            Each row sums to 1.
        """
        if self.kind == "cubic":
            return spline_matrix(centres, high)
        length = self.width * ratio
        if self.kind == "kspace":
            length = max(length, 1.0)  # HR voxels hold no frequency beyond their own Nyquist's
        distance = (np.arange(high) - centres[:, None]) / length
        weights = _PROFILES[self.kind](distance, 1 / length)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)

    def matrix(self, high: int, low: int) -> Matrix:
        """The measurement along one axis, (low, high): both span the same length."""
        if high == low:
            return np.eye(high, dtype=np.float32)
        ratio = high / low
        return self.rows(rescaled(np.arange(low), ratio), ratio, high)

    def matrices(
        self, high: tuple[int, int, int], low: tuple[int, int, int]
    ) -> tuple[Matrix, Matrix, Matrix]:
        """The three matrices, (z, y, x), between two shapes of one span."""
        z, y, x = (self.matrix(n, m) for n, m in zip(high, low, strict=True))
        return z, y, x

    def measure(self, volume: Volume, grid: Grid) -> Volume:
        """What a scanner with voxels of ``grid`` would see of a 3D ``volume``.

        Parameters
        ----------
        volume : Volume
            HR, finite.
        grid : Grid
            The same span with fewer or as many voxels along each axis, made for instance by
            ``volume.grid.scaled(1 / k)``.

        Returns
        -------
        Volume
            float32, on ``grid``.

        Raises
        ------
        UsageError
            If the grid is finer than the volume along an axis.
        """
        if any(m > n for n, m in zip(volume.grid.shape, grid.shape, strict=True)):
            raise UsageError(
                f"{volume.name}: a scanner model cannot make {grid.shape} voxels of "
                f"{volume.grid.shape}; ask for no more voxels than there are."
            )
        data = apply_separable(self.matrices(volume.grid.shape, grid.shape), volume.data)
        return Volume(data, grid.affine, name=volume.name)


def with_noise(
    measured: npt.NDArray[np.float32],
    source: npt.NDArray[Any],
    percent: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """A measurement with Gaussian noise; as it is where there is to be none.

    Parameters
    ----------
    measured : (z, y, x) array
    source : array
        What was measured.
    percent : float
        The noise's standard deviation, per cent of the source's range.
    generator : numpy.random.Generator
    """
    if not percent:
        return measured
    # As floats: the range of 16-bit integers can exceed 16 bits.
    sigma = percent / 100 * (float(source.max()) - float(source.min()))
    drawn = generator.standard_normal(measured.shape, dtype=np.float32)
    return np.asarray(measured + np.float32(sigma) * drawn)


def _gaussian(distance: npt.NDArray[Any], _voxel: float) -> npt.NDArray[Any]:
    exponent = -0.5 * (distance / _SIGMA_PER_FWHM) ** 2
    # Relative to the nearest voxel, so that a very narrow profile keeps one and is not 0/0.
    return np.asarray(np.exp(exponent - exponent.max(axis=1, keepdims=True)))


def _slab(distance: npt.NDArray[Any], voxel: float) -> npt.NDArray[Any]:
    """Share of each HR voxel (``voxel`` slab thicknesses long) inside the slab."""
    overlap = np.minimum(distance + voxel / 2, 0.5) - np.maximum(distance - voxel / 2, -0.5)
    return np.asarray(np.clip(overlap, 0, None))


def _low_pass(distance: npt.NDArray[Any], _voxel: float) -> npt.NDArray[Any]:
    reach = 4.0  # voxels to either side; the apodisation has fallen to 8 % there
    window = 0.54 + 0.46 * np.cos(np.pi * distance / reach)
    return np.asarray(np.where(np.abs(distance) < reach, np.sinc(distance) * window, 0))


_PROFILES: dict[str, Callable[[npt.NDArray[Any], float], npt.NDArray[Any]]] = {
    "gaussian": _gaussian,
    "slice-profile": _slab,
    "kspace": _low_pass,
}
