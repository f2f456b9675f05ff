"""The slice that is seen stays the one that is seen when a layer goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["KeptPlace"]


class KeptPlace:
    """Keeps a viewer's place in the world when a layer is removed.

    The sliders' steps are as fine as the finest layer. When that one goes they keep the number
    of their step instead of its place, which may be the last slice of all.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    owner : QObject
        Ends it by its own end.
    """

    def __init__(self, viewer: napari.viewer.Viewer, owner: QObject) -> None:
        self._viewer = viewer
        self._point: tuple[float, ...] | None = None
        self._later = QTimer(owner)
        self._later.setSingleShot(True)
        self._later.setInterval(0)
        self._later.timeout.connect(self._restore)
        viewer.layers.events.removing.connect(self._remember)

    def close(self) -> None:
        """Let go of the viewer."""
        self._later.stop()
        self._viewer.layers.events.removing.disconnect(self._remember)

    def _remember(self, _event: Any) -> None:
        if self._point is None:  # the first of several that go at once
            self._point = self._viewer.dims.point
            self._later.start()

    def _restore(self) -> None:
        point, self._point = self._point, None
        if self._viewer.layers and point is not None and len(point) == self._viewer.dims.ndim:
            self._viewer.dims.point = point
