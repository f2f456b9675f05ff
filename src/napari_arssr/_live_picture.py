"""A picture of what is being made, as a layer: the next one takes the place of the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image

from napari_arssr._layers import LayerData
from napari_arssr._view import mark_helper, remove

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["LivePicture"]


class LivePicture:
    """The layer that shows a volume on its way.

    For the window's thread only. A user who removes the layer does not want to see it: there is
    no other before the next beginning.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layer: Image | None = None
        self._below: Image | None = None

    @property
    def layer(self) -> Image | None:
        """The layer, where there is one."""
        return self._layer if self._layer in self._viewer.layers else None

    def begin(self, below: Image) -> None:
        """Get ready for pictures of something that is made of a layer."""
        self.end()
        self._below = below

    def show(self, picture: LayerData) -> None:
        """Show a picture instead of the one before."""
        if self._below is None or self._below not in self._viewer.layers:
            return
        data, settings, _ = picture
        if self._layer is None:
            self._layer = Image(data, **settings)
            mark_helper(self._layer)
            active = self._viewer.layers.selection.active
            self._viewer.layers.append(self._layer)
            self._viewer.layers.selection.active = active
            return
        layer = self.layer
        if layer is None:
            return
        if not np.array_equal(layer.affine.affine_matrix, settings["affine"]):
            layer.affine = settings["affine"]
        layer.data = data

    def end(self) -> None:
        """Take the layer away."""
        remove(self._viewer, self._layer)
        self._layer = self._below = None
