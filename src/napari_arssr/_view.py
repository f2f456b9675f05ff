"""What a viewer shows of a layer, asked of napari."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from napari.utils.transforms import Affine
from qtpy.QtCore import QTimer

from napari_arssr._layers import HELPER, helps_to_look, volume_of
from napari_arssr.errors import UsageError
from napari_arssr.slice_view import SliceView
from napari_arssr.volume import Box, Volume

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

__all__ = [
    "add_beside",
    "affine_of",
    "frame_of",
    "is_helper",
    "is_made",
    "mark_helper",
    "mark_result",
    "remove",
    "remove_later",
    "results_of",
    "view_of",
    "visible_box",
]

# Key of a layer's metadata: of which layer it is the result, by that one's unique id.
_RESULT_OF = "napari-arssr result of"


def affine_of(layer: Layer) -> npt.NDArray[np.float64]:
    """The whole data-to-world transform of a layer of n axes, (n + 1, n + 1), in its own units."""
    inner = Affine(
        scale=layer.scale,
        translate=layer.translate,
        rotate=layer.rotate,
        shear=layer.shear,
        ndim=layer.ndim,
    )
    return np.asarray(layer.affine.compose(inner).affine_matrix, dtype=np.float64)


def view_of(viewer: ViewerModel, layer: Layer, volume: Volume | None = None) -> SliceView:
    """What a viewer in 2D shows of a layer.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Layer
    volume : Volume, optional
        The layer's, where it is at hand; its voxels are not looked at.

    Raises
    ------
    UsageError
        If it shows no slice of it; says why in a few words. Or as
        :func:`napari_arssr._layers.volume_of`.
    """
    dims, camera = viewer.dims, viewer.scene.camera
    if dims.ndisplay != 2:
        raise UsageError("the display is in 3D")
    if volume is None:
        volume = volume_of(layer, load=False)
    missing = dims.ndim - layer.ndim  # leading axes of the viewer that the layer has not
    return SliceView.of(
        volume.grid,
        _affine_in(viewer, layer),
        [axis - missing for axis in dims.displayed],
        dims.point[-layer.ndim :],
        series=volume.data.ndim == 4,
        frames=volume.frames,
        centre=camera.center[-2:],
        zoom=camera.zoom,
        canvas=viewer.canvas.viewbox_size(viewer.layers),
    )


def frame_of(viewer: ViewerModel, layer: Layer) -> int:
    """Which frame of a layer with time a viewer shows, in 2D or 3D; the nearest, beside them."""
    point = np.array([*viewer.dims.point[-layer.ndim :], 1.0])
    index = float((np.linalg.inv(_affine_in(viewer, layer)) @ point)[0])
    return int(np.clip(np.round(index), 0, layer.data.shape[0] - 1))


def visible_box(viewer: ViewerModel, layer: Layer) -> Box:
    """The voxels of a layer that are in view: of the slice that is shown, the part on screen.

    One voxel deep: nothing on the screen says how much deeper it should be. To have more, draw
    a box.

    Raises
    ------
    UsageError
        If none is, or the display is in 3D.
    """
    try:
        view = view_of(viewer, layer)
    except UsageError as error:
        raise UsageError(
            f"Nothing of {layer.name} is in view: {error}; show a slice of it in 2D, or choose "
            "the whole volume."
        ) from None
    if view.box is None:
        raise UsageError(
            f"Nothing of {layer.name} is in view; press Ctrl+R to see all, or choose the whole "
            "volume."
        )
    return view.box


def add_beside(viewer: ViewerModel, layer: Layer, below: Layer) -> None:
    """Add a layer right above another, without taking the selection from the user's."""
    chosen, active = set(viewer.layers.selection), viewer.layers.selection.active
    viewer.layers.insert(viewer.layers.index(below) + 1, layer)
    viewer.layers.selection.clear()
    viewer.layers.selection.update(chosen)
    viewer.layers.selection.active = active


def remove(viewer: ViewerModel, *layers: Layer | None) -> None:
    """Remove those layers that are still there."""
    for layer in layers:
        if layer is not None and layer in viewer.layers:
            viewer.layers.remove(layer)


def remove_later(viewer: ViewerModel, *layers: Layer | None) -> None:
    """The same, once what is going on is over: for those who hear that a layer was removed.

    napari deletes the layers of a selection one by one, and fails at one that is gone already.
    """
    QTimer.singleShot(0, partial(remove, viewer, *layers))


def mark_result(layer: Layer, source: Layer) -> None:
    """Remember of which layer another is the result, for as long as both are open."""
    layer.metadata = {**layer.metadata, _RESULT_OF: str(source.unique_id)}


def results_of(viewer: ViewerModel) -> list[tuple[Layer, Layer]]:
    """Every result in a viewer with the layer it is the result of, bottom to top."""
    sources = {str(layer.unique_id): layer for layer in viewer.layers}
    pairs = [(layer, layer.metadata.get(_RESULT_OF)) for layer in viewer.layers]
    return [(layer, sources[source]) for layer, source in pairs if source in sources]


def is_made(layer: Layer) -> bool:
    """Whether a layer was upsampled or fitted in this session, rather than measured."""
    return not {"upsampling", "fit", _RESULT_OF}.isdisjoint(layer.metadata)


def mark_helper(layer: Layer) -> None:
    """Mark a layer that only helps to look at others."""
    layer.metadata = {**layer.metadata, HELPER: True}


def is_helper(layer: Layer) -> bool:
    """Whether a layer only helps to look at others, and is no image to run on."""
    return helps_to_look(layer.metadata)


def _affine_in(viewer: ViewerModel, layer: Layer) -> npt.NDArray[np.float64]:
    """A layer's whole data-to-world transform in the viewer's units, as napari draws it."""
    world = viewer.layers.extent.units
    factors = [1.0] * layer.ndim
    if world is not None and len(world) >= layer.ndim:
        pairs = zip(layer.units, world[-layer.ndim :], strict=True)
        factors = [float((1 * unit).to(there).magnitude) for unit, there in pairs]
    return np.asarray(np.diag([*factors, 1.0]) @ affine_of(layer))
