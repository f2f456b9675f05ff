"""What few people set: axes, frames, intensities, orientations, memory."""

from __future__ import annotations

from typing import cast

from magicgui.widgets import ComboBox, FloatSpinBox
from psygnal import Signal
from qtpy.QtWidgets import QWidget

from napari_arssr._output_choice import AxesChoice
from napari_arssr._rows import Folding, Rows, choice
from napari_arssr.choices import (
    NORMALIZATIONS,
    ORIENTATIONS,
    SCANNER_KINDS,
    Normalization,
    ScannerKind,
)
from napari_arssr.degradation import ScannerModel

__all__ = ["Advanced"]

ALL_FRAMES, ONE_FRAME = "all frames", "the frame that is shown"
_NO_STEP = "off"
_AS_TRAINED = "as the weights were trained"
_GIGABYTE = 10**9
_LEAST_GIGABYTES, _MOST_GIGABYTES, _DECIMALS = 0.001, 10_000.0, 3


class Advanced(QWidget):
    """Settings behind a heading that is closed at first.

    Parameters
    ----------
    memory : int or None
        Bytes; None for as much as there is sense in.
    """

    changed = Signal()

    def __init__(self, memory: int | None) -> None:
        super().__init__()
        self.axes = AxesChoice()
        self.frames: ComboBox = choice(
            "Of a series, upsample every frame or one", lambda: _plain(ALL_FRAMES, ONE_FRAME)
        )
        self.normalize: ComboBox = choice(
            "How intensities are brought to what networks know",
            lambda: _plain(_AS_TRAINED, *NORMALIZATIONS),
        )
        self.consistency: ComboBox = choice(
            "Correct the result so that this scanner, measuring it, would see more nearly the "
            "input: sharper on clean scans, noisier on noisy ones",
            lambda: _plain(_NO_STEP, *SCANNER_KINDS),
        )
        self.orientations: ComboBox = choice(
            "The mean of that many results, each with the axes in another order or direction: as "
            "many times the time, and nearer to the truth",
            lambda: [(str(count), count) for count in ORIENTATIONS],
        )
        self.memory = FloatSpinBox(
            min=0.0,
            max=_MOST_GIGABYTES,
            step=0.5,
            tooltip="The most memory napari may take in all while it works; less is slower",
        )
        self.memory.native.setSpecialValueText("automatic")
        self.memory.native.setSuffix(" GB")
        self.memory.native.setDecimals(_DECIMALS)
        if memory is not None:  # however little it is, it is not 0, which says "automatic"
            gigabytes = memory / _GIGABYTE
            self.memory.value = min(max(gigabytes, _LEAST_GIGABYTES), _MOST_GIGABYTES)
        rows = Rows()
        rows.add("Along", self.axes)
        rows.add("Frames", self.frames.native)
        rows.add("Intensities", self.normalize.native)
        rows.add("Consistency", self.consistency.native)
        rows.add("Orientations", self.orientations.native)
        rows.add("Memory", self.memory.native)
        self.folding = Folding("Advanced", rows)
        outer = Rows()
        outer.addWidget(self.folding, 0, 0, 1, 2)
        self.setLayout(outer)
        self.axes.changed.connect(self._on_change)
        chosen = (self.frames, self.normalize, self.consistency, self.orientations, self.memory)
        for widget in chosen:
            widget.changed.connect(self._on_change)

    @property
    def every_frame(self) -> bool:
        """Whether all frames of a series are meant."""
        return self.frames.value == ALL_FRAMES

    @property
    def method(self) -> Normalization | None:
        """The normalisation; None for that of the weights' training."""
        value = self.normalize.value
        return None if value == _AS_TRAINED else cast("Normalization", value)

    @property
    def scanner(self) -> ScannerModel | None:
        """The scanner that a result is made consistent with, its width the input's voxel."""
        value = self.consistency.value
        return None if value == _NO_STEP else ScannerModel(cast("ScannerKind", value))

    @property
    def count(self) -> int:
        """How many orientations a result is the mean of."""
        return int(self.orientations.value)

    @property
    def memory_bytes(self) -> int | None:
        """The most memory to take; None for as much as there is sense in."""
        return round(self.memory.value * _GIGABYTE) or None

    def suit(self, labels: tuple[str, ...], *, plane: bool, series: bool) -> None:
        """Name the axes of the image, and offer frames where there are some."""
        self.axes.set_labels(labels, plane=plane)
        self.frames.enabled = series

    def _on_change(self) -> None:
        self.changed.emit()


def _plain(*words: str) -> list[tuple[str, str]]:
    """Entries of a list that are shown as they are."""
    return [(word, word) for word in words]
