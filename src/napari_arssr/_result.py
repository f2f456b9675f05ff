"""A result as a layer that lies on the layer it was made of, and looks like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_arssr._layers import LayerData, image_layer
from napari_arssr._view import affine_of
from napari_arssr.volume import Volume

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["Looks", "moved_with", "result_layer"]

_LOOKS = ("colormap", "contrast_limits", "gamma", "interpolation2d", "interpolation3d", "rendering")


@dataclass(frozen=True)
class Looks:
    """How a layer is shown, taken from it on the window's thread.

    Parameters
    ----------
    settings : dict
        Settings of the layer that a result shares.
    axes : int
        Number of the layer's axes.
    """

    settings: dict[str, Any]
    axes: int

    @classmethod
    def of(cls, layer: Image) -> Looks:
        """The looks of a layer."""
        return cls({name: getattr(layer, name) for name in _LOOKS}, layer.ndim)


def result_layer(result: Volume, title: str, looks: Looks) -> LayerData:
    """A result as a layer; may be called on any thread.

    Parameters
    ----------
    result : Volume
        In the axis order of the layer it was made of.
    title : str
    looks : Looks
        Of the layer it was made of. If that was a plane, so is the result.
    """
    data, settings, kind = image_layer(result)
    if looks.axes == data.ndim - 1 and data.shape[-3] == 1:
        settings = settings | {
            "affine": _without(settings["affine"], data.ndim - 3),
            "units": (*settings["units"][:-3], *settings["units"][-2:]),
            "axis_labels": None,
        }
        data = data[..., 0, :, :]
    return data, settings | looks.settings | {"name": title}, kind


def moved_with(
    result: LayerData, source: Image, before: npt.NDArray[np.float64]
) -> tuple[Any, dict[str, Any]]:
    """A result's data and settings, on a layer that may have been moved since its work began.

    Parameters
    ----------
    result : tuple
    source : Image
        The layer it was made of.
    before : (n + 1, n + 1) array
        :func:`napari_arssr._view.affine_of` that layer, then.
    """
    data, settings, _ = result
    now = affine_of(source)
    if now.shape != before.shape or np.array_equal(now, before):
        return data, settings
    own = np.asarray(settings["affine"])
    axes = [*range(len(now) - len(own), len(now) - 1), len(now) - 1]  # its last ones
    motion = (now @ np.linalg.inv(before))[np.ix_(axes, axes)]
    return data, settings | {"affine": motion @ own, "units": source.units[1 - len(own) :]}


def _without(affine: Any, axis: int) -> Any:
    """An affine without one of its axes, from which the others do not depend."""
    return np.delete(np.delete(affine, axis, axis=0), axis, axis=1)
