"""Slices of stacks in place in 3D: a layer of their outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Vectors

from napari_arssr._layers import placed_points
from napari_arssr._stack_choice import colour_of
from napari_arssr._view import mark_helper, remove
from napari_arssr.volume import Volume

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

__all__ = ["DOUBTED", "SlicesLayer", "StackOutlines"]

DOUBTED = "#ff3b30"
"""Colour of slices that are hardly believed."""

_NAME = "slices of the stacks"
_WIDTH = 1 / 250  # of the lines, as a share of all that they span: seen with all of it in view

# In napari's first view, straight along an axis, slices hide one another; from in front and above
# they do not. Directions are those of the world's axes: I, P, L.
_STRAIGHT = (0.0, 0.0, 0.0)
_FROM_ABOVE, _UP = (0.6, 1.0, -0.7), (-1.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class StackOutlines:
    """The slices of one stack.

    Parameters
    ----------
    corners : (slices, 4, 3) array
        Going around each slice, RAS+ millimetres.
    doubted : sequence of int
        Slices that are hardly believed.
    """

    corners: npt.NDArray[np.float64]
    doubted: Sequence[int] = ()


class SlicesLayer:
    """A helper layer with the outlines of stacks' slices; it shows them in 3D.

    For the window's thread only.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layer: Vectors | None = None
        self._before = 2

    @property
    def layer(self) -> Vectors | None:
        """The layer, where there is one."""
        return self._layer if self._layer in self._viewer.layers else None

    def owns(self, layer: Layer) -> bool:
        """Whether a layer, which may have been removed, is this one."""
        return self._layer is not None and layer is self._layer

    def show(self, stacks: Sequence[StackOutlines], place: Volume) -> None:
        """Show slices, instead of those that were shown before.

        Parameters
        ----------
        stacks : sequence of StackOutlines
            Each in its colour.
        place : Volume
            In its world, and its unit, the layer lies.
        """
        sides, colours = _drawn(stacks)
        points, settings = placed_points(sides, place)
        vectors = np.stack([points[:, 0], points[:, 1] - points[:, 0]], axis=1)
        width = _WIDTH * float(np.ptp(points.reshape(-1, 3), axis=0).max())
        layer = self.layer
        if layer is not None:
            layer.edge_width = width
            layer.data = vectors
            layer.edge_color = colours
            layer.affine = settings["affine"]
            return
        self._before = self._viewer.dims.ndisplay
        self._layer = Vectors(
            vectors,
            name=_NAME,
            edge_width=width,
            edge_color=colours,
            vector_style="line",
            opacity=1.0,
            **settings,
        )
        mark_helper(self._layer)
        active = self._viewer.layers.selection.active
        self._viewer.layers.append(self._layer)
        self._viewer.layers.selection.active = active
        self._viewer.dims.ndisplay = 3
        camera = self._viewer.scene.camera
        if tuple(camera.angles) == _STRAIGHT:
            camera.set_view_direction(_FROM_ABOVE, _UP)

    def hide(self) -> None:
        """Take the layer away, and go back to 2D if the display was in 2D before."""
        layer, self._layer = self.layer, None
        if layer is not None:
            remove(self._viewer, layer)
            self._viewer.dims.ndisplay = self._before


def _drawn(
    stacks: Sequence[StackOutlines],
) -> tuple[npt.NDArray[np.float64], list[Any]]:
    """Ends of every slice's four sides, (n, 2, 3), and the colour of each."""
    sides, colours = [], []
    for number, stack in enumerate(stacks):
        ends = np.stack([stack.corners, np.roll(stack.corners, -1, axis=1)], axis=2)
        sides.append(ends.reshape(-1, 2, 3))
        doubted = set(stack.doubted)
        for place in range(len(stack.corners)):
            colours += [DOUBTED if place in doubted else colour_of(number)] * 4
    return np.concatenate(sides), colours
