"""Layers that lie on top of others."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image

if TYPE_CHECKING:
    from napari.components import Dims
    from napari.layers import Layer
    from napari.layers.utils.layer_utils import Extent

    from napari_arssr.slice_view import SliceView

__all__ = ["OneSlice", "TopImage"]


class OneSlice:
    """An array in which one slice holds a picture and all the others nothing (NaN).

    It looks as deep as the layer it lies on, so that napari slices both alike, and takes no
    more memory than the picture.

    Parameters
    ----------
    plane : (rows, columns) array
        Its axes in the grid's order.
    view : SliceView
    """

    dtype = np.dtype(np.float32)

    def __init__(self, plane: npt.NDArray[np.float32], view: SliceView) -> None:
        self.plane = plane
        self._at = {
            place: view.frame if axis < 0 else view.number
            for place, axis in enumerate(view.layer_axes)
            if axis not in view.axes
        }
        lengths = view.layer_shape
        self._drawn = [place for place in range(len(lengths)) if place not in self._at]
        sizes = dict(zip(self._drawn, plane.shape, strict=True))
        self.shape = tuple(sizes.get(place, length) for place, length in enumerate(lengths))
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) != self.ndim or not all(isinstance(part, slice | Integral) for part in parts):
            return np.asarray(self)[index]
        picks = [range(length)[part] for length, part in zip(self.shape, parts, strict=True)]
        drawn = self.plane[tuple(parts[place] for place in self._drawn)]
        where = [_place_in(picks[place], number) for place, number in self._at.items()]
        if not any(isinstance(picks[place], range) for place in self._at) and None not in where:
            return drawn
        # No more than was asked for, however deep the layer is.
        kept = {place: len(pick) for place, pick in enumerate(picks) if isinstance(pick, range)}
        answer = np.full(tuple(kept.values()), np.nan, self.dtype)
        if None not in where:
            at = dict(zip(self._at, where, strict=True))
            answer[tuple(at.get(place, slice(None)) for place in kept)] = drawn
        return answer

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = np.full(self.shape, np.nan, dtype=dtype or self.dtype)
        whole[tuple(self._at.get(place, slice(None)) for place in range(self.ndim))] = self.plane
        return whole


def _place_in(pick: range | int, number: int) -> int | None:
    """Where a number is among those that are picked; None where it is not."""
    numbers = pick if isinstance(pick, range) else (pick,)
    return numbers.index(number) if number in numbers else None


class TopImage(Image):  # type: ignore[misc]
    """A layer on top of another, that counts as no larger and no finer than that one.

    napari takes the ranges and steps of its sliders from the extents of all layers, and those
    must not change with every turn of the wheel.

    Parameters
    ----------
    beneath : Layer
        Gives units, axis labels and extent.
    data : array
        As many axes as ``beneath`` has.
    affine : (n + 1, n + 1) array
    **settings
        As for :class:`napari.layers.Image`.
    """

    def __init__(
        self, beneath: Layer, data: Any, affine: npt.NDArray[np.float64], **settings: Any
    ) -> None:
        self._beneath = beneath
        self._placing = False
        super().__init__(
            data,
            affine=affine,
            axis_labels=beneath.axis_labels,
            blending="translucent",
            multiscale=False,
            projection_mode="none",
            rgb=False,
            units=beneath.units,
            **settings,
        )

    @property
    def extent(self) -> Extent:
        """That of the layer beneath."""
        return self._beneath.extent

    @property
    def _type_string(self) -> str:
        return "image"

    def place(self, data: Any, affine: npt.NDArray[np.float64]) -> None:
        """Show something else, elsewhere."""
        self._put(data, affine)
        self.refresh()

    def _put(self, data: Any, affine: npt.NDArray[np.float64]) -> None:
        # Each setter refreshes the layer and tells the window, ten milliseconds or more: once
        # is enough, when both fit together. Sliders do not change, see ``extent``.
        self._placing = True
        try:
            with self.events.blocker_all():
                self.affine = affine
                self.data = data
        finally:
            self._placing = False

    def _slice_dims(self, dims: Dims, force: bool = False) -> None:
        """As an image's, but of one slice nothing is drawn in 3D: that would be all its depth.

        Whoever placed it hides it then, but hears of the display after napari has drawn it.
        """
        if dims.ndisplay == 3 and isinstance(self.data, OneSlice):
            self._put(np.full([1] * self.ndim, np.nan, np.float32), self.affine)
        super()._slice_dims(dims, force)

    def refresh(self, event: Any = None, **parts: bool) -> None:
        """As an image's, without a thumbnail, which nobody looks at while the camera moves."""
        if not self._placing:
            super().refresh(event, **{**parts, "thumbnail": False, "highlight": False})
