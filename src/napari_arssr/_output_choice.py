"""How fine the result is to be: a scale, a voxel size, or cubes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pint
from magicgui.widgets import CheckBox, FloatSlider, FloatSpinBox
from psygnal import Signal
from qtpy.QtWidgets import QButtonGroup, QLabel, QRadioButton, QVBoxLayout, QWidget

from napari_arssr._rows import in_a_row
from napari_arssr.errors import Coarser, UsageError
from napari_arssr.upsampling import Target
from napari_arssr.volume import Volume

__all__ = ["AxesChoice", "OutputChoice", "Unit", "offer_sizes", "times"]

_MOST = 8.0


@dataclass(frozen=True)
class Unit:
    """What lengths are shown in.

    Parameters
    ----------
    symbol : str
    millimetres : float
        What 1 of it is.
    """

    symbol: str = "mm"
    millimetres: float = 1.0

    @classmethod
    def of(cls, volume: Volume) -> Unit:
        """The unit of the world that a volume's layer lies in."""
        return cls.named(str(volume.metadata.get("world", {}).get("unit", "mm")))

    @classmethod
    def named(cls, name: str) -> Unit:
        """The unit that a layer calls so."""
        if name in ("mm", "millimeter"):  # by far the most, and pint takes a while to start
            return cls()
        unit = pint.Quantity(1, name).units
        if unit.dimensionless or str(unit) == "pixel":
            return cls("px")
        return cls(f"{unit:~P}", float((1 * unit).to("millimeter").magnitude))

    def show(self, lengths: Sequence[float]) -> str:
        """Lengths in millimetres in this unit: ``1 × 1 × 5 mm``, or one number if all agree."""
        words = [f"{length / self.millimetres:.3g}" for length in lengths]
        return f"{words[0] if len(set(words)) == 1 else times(words)} {self.symbol}"


def times(sizes: Sequence[object]) -> str:
    """Sizes along several axes, on one line: ``96 × 128``."""
    return " × ".join(map(str, sizes))


def offer_sizes(box: FloatSpinBox, smallest: float, largest: float, value: float) -> None:
    """Let a box offer voxel sizes with as many decimals as their size asks for; nobody is told.

    Parameters
    ----------
    box : FloatSpinBox
    smallest : float
        The smallest side of the voxels there are: so fine the steps have to be.
    largest : float
        The largest size to offer.
    value : float
        The one to choose.
    """
    decimals = max(0, 2 - math.floor(math.log10(smallest)))
    with box.changed.blocked():
        box.native.setDecimals(decimals)
        box.min = 10.0**-decimals
        box.max = largest
        box.step = 10.0 ** (1 - decimals)
        box.value = round(value, decimals)


class AxesChoice(QWidget):
    """Along which axes there are to be more voxels."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.boxes = [
            CheckBox(value=True, text=label, tooltip="Unticked: keeps its voxels")
            for label in "zyx"
        ]
        for box in self.boxes:
            box.changed.connect(self._on_change)
        self.setLayout(in_a_row(*(box.native for box in self.boxes), stretch=True))

    @property
    def values(self) -> tuple[bool, bool, bool]:
        """For (z, y, x) of the layer, whether there are to be more voxels along it."""
        z, y, x = (bool(box.value) and box.enabled for box in self.boxes)
        return z, y, x

    def set_labels(self, labels: tuple[str, ...], *, plane: bool) -> None:
        """What the axes are called; of a plane there is nothing along the first."""
        for box, label in zip(self.boxes, labels, strict=True):
            box.text = label
        self.boxes[0].enabled = not plane
        self.boxes[0].visible = not plane

    def _on_change(self) -> None:
        self.changed.emit()


class OutputChoice(QWidget):
    """A scale, a voxel size, or cubes of the smallest side."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.unit = Unit()
        self._offered: tuple[Unit, float, float] | None = None
        self.by_scale = QRadioButton("scale")
        self.by_size = QRadioButton("voxel size")
        self.isotropic = QRadioButton("isotropic")
        self.isotropic.setToolTip("Cubes, as near as can be to the smallest voxel side")
        self.scale = FloatSlider(
            value=2.0, min=1.0, max=_MOST, step=0.05, tooltip="Voxels of the result per voxel"
        )
        self.voxel_size = FloatSpinBox(value=0.5, min=0.001, max=1000.0, step=0.05)
        self.symbol = QLabel(self.unit.symbol)
        self.scale.native.setMinimumWidth(120)
        self._buttons = QButtonGroup(self)
        for button in (self.by_scale, self.by_size, self.isotropic):
            self._buttons.addButton(button)
        self.by_scale.setChecked(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addLayout(in_a_row(self.by_scale, self.scale.native))
        layout.addLayout(in_a_row(self.by_size, self.voxel_size.native, self.symbol, stretch=True))
        layout.addWidget(self.isotropic)
        self._buttons.buttonToggled.connect(self._on_button)
        self.scale.changed.connect(self._on_scale)
        self.voxel_size.changed.connect(self._on_size)

    def suit(self, volume: Volume) -> None:
        """Offer voxel sizes that make sense for a volume, in its unit.

        Where they are those that are offered already, the one that is chosen stays.
        """
        unit = Unit.of(volume)
        smallest = min(volume.spacing) / unit.millimetres
        largest = max(volume.spacing) / unit.millimetres
        if (unit, smallest, largest) == self._offered:
            return
        self.unit, self._offered = unit, (unit, smallest, largest)
        self.symbol.setText(unit.symbol)
        offer_sizes(self.voxel_size, smallest, largest, smallest / 2)

    def target(self, volume: Volume, along: tuple[bool, bool, bool]) -> Target:
        """What is chosen, for a volume.

        Parameters
        ----------
        volume : Volume
        along : three bools
            For (z, y, x) whether there are to be more voxels along it.

        Raises
        ------
        UsageError
            If voxels of the size that is chosen would be larger than there are.
        """
        spacing = volume.spacing
        if self.by_scale.isChecked():
            scale = float(self.scale.value)
            if all(along):
                return Target(scale=scale)
            z, y, x = (scale if wanted else 1.0 for wanted in along)
            return Target(scale=(z, y, x))
        if self.isotropic.isChecked() and all(along):
            return Target(isotropic=True)
        if self.isotropic.isChecked():
            # Along an axis that is to stay as it is there is nothing to be made equal.
            size = min((s for s, wanted in zip(spacing, along, strict=True) if wanted), default=1.0)
        else:
            size = float(self.voxel_size.value) * self.unit.millimetres
        if all(along):
            target = Target(spacing=size)
        else:
            z, y, x = (size if wanted else s for s, wanted in zip(spacing, along, strict=True))
            target = Target(spacing=(z, y, x))
        try:
            target.grid(volume.grid)
        except Coarser:  # in the unit that the window shows
            raise UsageError(
                f"{volume.name}: voxels of {self.unit.show([size])} would be coarser than its own, "
                f"{self.unit.show(spacing)}; choose a smaller size, or untick an axis under "
                "Advanced."
            ) from None
        return target

    def _on_button(self, _button: QRadioButton, checked: bool) -> None:
        if checked:  # once, not also for the one that goes out
            self.changed.emit()

    def _on_scale(self) -> None:
        """Whoever sets the scale means the scale."""
        if self.by_scale.isChecked():
            self.changed.emit()
        else:
            self.by_scale.setChecked(True)

    def _on_size(self) -> None:
        if self.by_size.isChecked():
            self.changed.emit()
        else:
            self.by_size.setChecked(True)
