"""The voxel sizes that a stack's file states, for a layer that does not have them.

The manifest claims no TIFF files and no zarr stores, so that one that is dropped on the window is
read by napari, which looks at no sizes: its voxels count as cubes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtWidgets import QPushButton, QWidget

from napari_arssr import io
from napari_arssr._layers import stack_unit
from napari_arssr._output_choice import Unit
from napari_arssr._worker import Outcome, Runner

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Image

__all__ = ["StatedSizes"]

Sizes = Mapping[str, tuple[int, float]]


class StatedSizes(QPushButton):
    """A button that gives a layer, and all others of its file, the voxel sizes the file states.

    It is there only for a layer of a TIFF stack or an OME-Zarr image that counts pixels, and whose
    file knows better.

    Parameters
    ----------
    parent : QWidget
    viewer : napari.viewer.Viewer
    layers : callable
        Gives the viewer's image layers that can be chosen.
    """

    def __init__(
        self,
        parent: QWidget,
        viewer: napari.viewer.Viewer,
        layers: Callable[[], list[Image]],
    ) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layers = layers
        self._file: Path | None = None
        self._sizes: Sizes | None = None
        self._reader = Runner(self, "napari-arssr sizes")
        self.setToolTip("napari reads no voxel sizes from such files; this one has them")
        self.clicked.connect(self._use)
        self.setVisible(False)

    def look(self, layer: Image | None) -> None:
        """Offer what the file of a layer states, if it states more than the layer has."""
        file = None if layer is None or not _counts_pixels(layer) else Path(str(layer.source.path))
        if file != self._file:
            self._reader.abandon()
            self._file, self._sizes = file, None
            if file is not None:
                self._reader.start(lambda _report, _stop: io.stated_sizes(file), self._on_read)
        self._offer()

    def close_down(self) -> None:
        """Wait for nothing more."""
        self._reader.abandon()

    def _on_read(self, outcome: Outcome) -> None:
        self._sizes = outcome.value  # None for an error: the file is not ours to tell about
        self._offer()

    def _offer(self) -> None:
        sizes = self._sizes
        fits = sizes is not None and any(_scale(layer, sizes) for layer in self._of_file())
        if sizes is not None and fits:
            spacing = _spacing(sizes)
            shown = Unit.named(stack_unit(spacing)).show(spacing)
            self.setText(f"Use the file's voxel sizes: {shown}")
        self.setVisible(fits)

    def _of_file(self) -> list[Image]:
        return [
            layer
            for layer in self._layers()
            if _counts_pixels(layer) and Path(str(layer.source.path)) == self._file
        ]

    def _use(self) -> None:
        sizes = self._sizes
        if sizes is None:
            return
        name = stack_unit(_spacing(sizes))
        unit = Unit.named(name)
        found = [(layer, _scale(layer, sizes)) for layer in self._of_file()]
        fitting = [(layer, scale) for layer, scale in found if scale is not None]
        if not fitting:
            return
        first, viewer = fitting[0][0], self._viewer
        seen = first.world_to_data(viewer.dims.point[-first.ndim :])
        for layer, scale in fitting:
            # Units first: of them napari takes notice when the scale is set.
            layer.units = tuple(name if size else "pixel" for size in scale)
            layer.scale = [size / unit.millimetres if size else 1.0 for size in scale]
        # The same slice is seen, and all of it.
        viewer.reset_view()
        viewer.dims.point = (*viewer.dims.point[: -first.ndim], *first.data_to_world(seen))


def _spacing(sizes: Sizes) -> list[float]:
    """Millimetres along the axes of space."""
    return [size for _, size in sizes.values() if size]


def _counts_pixels(layer: Image) -> bool:
    """Whether a layer comes from a stack's file, and nobody has said where it lies."""
    path = layer.source.path
    return (
        path is not None
        and io.is_stack(str(path))
        and not layer.rgb
        and all(str(unit) == "pixel" for unit in layer.units)
        and bool(np.all(layer.scale == 1))
        and np.array_equal(layer.affine.affine_matrix, np.eye(layer.ndim + 1))
    )


def _scale(layer: Image, sizes: Sizes) -> tuple[float, ...] | None:
    """Millimetres along each axis of a layer, 0 for time and channels; None if it is another stack.

    Of several channels it may be one.
    """
    shape = tuple(layer.level_shapes[0]) if layer.multiscale else tuple(layer.data.shape)
    for axes in (sizes, {axis: size for axis, size in sizes.items() if axis != "C"}):
        if shape == tuple(count for count, _ in axes.values()):
            return tuple(size for _, size in axes.values())
    return None
