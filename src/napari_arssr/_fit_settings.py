"""How stacks are to become one volume: what of it can be set in the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from magicgui.widgets import CheckBox, ComboBox, FloatSpinBox, SpinBox
from psygnal import Signal
from qtpy.QtWidgets import QButtonGroup, QLabel, QRadioButton, QVBoxLayout, QWidget

from napari_arssr._output_choice import Unit, offer_sizes
from napari_arssr._rows import Folding, Rows, choice, in_a_row
from napari_arssr._weights_choice import WeightsChoice
from napari_arssr.choices import SCANNER_KINDS
from napari_arssr.degradation import ScannerModel
from napari_arssr.fitting.settings import Settings
from napari_arssr.volume import Volume

__all__ = ["PAPER", "FitAdvanced", "MethodChoice", "VoxelSize"]

PAPER = "paper"
"""The method's entry for IREM as published."""

_METHODS = (
    ("default: poses, SRR, trained network", "default"),
    ("SRR: regularised least squares", "srr"),
    ("IREM: a network on top of default", "irem"),
    ("IREM as published (hours)", PAPER),
    ("mean, cubic B-splines", "bspline"),
    ("mean, linear", "linear"),
)
_MOTIONS = (
    ("each slice", "slices"),
    ("each stack as a whole", "stacks"),
    ("nothing", "none"),
)
_PENALTIES = (("total variation", "tv"), ("Tikhonov", "tikhonov"))
_METRICS = (("correlation", "correlation"), ("mutual information", "mutual-information"))
_PROFILE = "slice-profile"
_SEEN_BY = ("default", "srr", "irem")  # methods with a slice profile and an uncertainty
_POSED = ("default", "irem")  # methods that refine poses
_TRAINED = ("irem", PAPER)


class VoxelSize(QWidget):
    """Cubes of the stacks' finest side, or a voxel size."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.unit = Unit()
        self.finest = QRadioButton("cubes of the finest side")
        self.by_size = QRadioButton("cubes of")
        self.side = FloatSpinBox(value=1.0, min=0.001, max=1000.0, step=0.1)
        self.symbol = QLabel(self.unit.symbol)
        self._least = 0.0
        self._buttons = QButtonGroup(self)
        for button in (self.finest, self.by_size):
            self._buttons.addButton(button)
        self.finest.setChecked(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.finest)
        layout.addLayout(in_a_row(self.by_size, self.side.native, self.symbol, stretch=True))
        self._buttons.buttonToggled.connect(self._on_button)
        self.side.changed.connect(self._on_size)

    @property
    def value(self) -> float | None:
        """Millimetres; None for the finest side."""
        if self.finest.isChecked():
            return None
        return float(self.side.value) * self.unit.millimetres

    def suit(self, volumes: Sequence[Volume], reference: Volume) -> None:
        """Offer sizes that make sense for stacks; one that the user chose stays."""
        unit = Unit.of(reference)
        side = min(min(volume.spacing) for volume in volumes) / unit.millimetres
        if (unit, side) == (self.unit, self._least):
            return
        kept = self.by_size.isChecked() and unit == self.unit
        self.unit, self._least = unit, side
        self.symbol.setText(unit.symbol)
        value = float(self.side.value) if kept else side
        offer_sizes(self.side, side, max(1000.0, 100 * side), value)

    def _on_button(self, _button: QRadioButton, checked: bool) -> None:
        if checked:
            self.changed.emit()

    def _on_size(self) -> None:
        """Whoever sets the size means the size."""
        if self.by_size.isChecked():
            self.changed.emit()
        else:
            self.by_size.setChecked(True)


class MethodChoice(QWidget):
    """The method, what moves, and what only some methods have."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.method: ComboBox = choice("How stacks become one volume", lambda: _METHODS)
        self.motion: ComboBox = choice(
            "What is moved to where it fits best while the volume is reconstructed",
            lambda: _MOTIONS,
        )
        self.register = CheckBox(
            value=True,
            text="register stacks first",
            tooltip="Unticked: stacks lie where their files say",
        )
        self.uncertainty = CheckBox(
            value=False,
            text="uncertainty map",
            tooltip="A second layer with the standard deviation of each voxel",
        )
        self.minutes = FloatSpinBox(
            value=0.0,
            min=0.0,
            max=100_000.0,
            step=1.0,
            tooltip="The longest that the network is fitted",
        )
        self.minutes.native.setSpecialValueText("as long as it takes")
        self.minutes.native.setSuffix(" min")
        self.minutes.native.setDecimals(1)
        self.epochs = SpinBox(
            value=0,
            min=0,
            max=1_000_000,
            tooltip="Passes of the network over all voxels",
        )
        self.epochs.native.setSpecialValueText("usual")
        self.length = QWidget()
        self.length.setLayout(
            in_a_row(
                QLabel("at most"),
                self.minutes.native,
                QLabel("passes"),
                self.epochs.native,
                stretch=True,
            )
        )
        self.length.setVisible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.method.native)
        layout.addWidget(self.length)
        for widget in (
            self.method,
            self.motion,
            self.register,
            self.uncertainty,
            self.minutes,
            self.epochs,
        ):
            widget.changed.connect(self._on_change)

    @property
    def wants_uncertainty(self) -> bool:
        """Whether a map is to be made; not every method has one."""
        return bool(self.uncertainty.value) and self.uncertainty.enabled

    def settings(self, advanced: FitAdvanced) -> Settings:
        """What is chosen; what a method does not have is as usual."""
        entry = str(self.method.value)
        paper = entry == PAPER
        settings = Settings(
            method="irem" if paper else self.method.value,
            preset="paper" if paper else "default",
            register=bool(self.register.value),
            metric=advanced.similarity.value,
            seed=int(advanced.seed.value),
        )
        if entry in _POSED:
            settings = replace(
                settings,
                motion=self.motion.value,
                network_prior=advanced.asks_network,
                weights=advanced.weights.value if advanced.asks_network else settings.weights,
            )
        if entry in _SEEN_BY:
            settings = replace(
                settings,
                scanner=advanced.scanner,
                penalty=advanced.penalty.value,
                weight=advanced.prior_weight,
            )
        if entry in _TRAINED:
            settings = replace(
                settings,
                minutes=float(self.minutes.value),
                epochs=int(self.epochs.value) or None,
            )
        return settings

    def _on_change(self, _value: Any = None) -> None:
        entry = str(self.method.value)
        self.motion.enabled = entry in _POSED
        self.uncertainty.enabled = entry in _SEEN_BY
        self.length.setVisible(entry in _TRAINED)
        self.changed.emit()


class FitAdvanced(QWidget):
    """Settings behind a heading that is closed at first.

    Parameters
    ----------
    weights : str
        The network that is asked: a registered name or a file.
    theme : callable
        Gives the name of the window's theme.
    failed : callable
        Told the error of a download that failed.
    """

    changed = Signal()

    def __init__(
        self, weights: str, theme: Callable[[], str], failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__()
        self.similarity: ComboBox = choice(
            "What registration makes the most of; mutual information where contrasts differ",
            lambda: _METRICS,
        )
        self.profile: ComboBox = choice(
            "What a voxel sees across its slice: slice-profile is a box, as 2D scans have it",
            lambda: [
                (kind, kind) for kind in (_PROFILE, *(k for k in SCANNER_KINDS if k != _PROFILE))
            ],
        )
        self.thickness = FloatSpinBox(
            value=1.0, min=0.1, max=4.0, step=0.1, tooltip="In slice distances"
        )
        self.network = CheckBox(
            value=True,
            text="ask the trained network",
            tooltip="Draw the volume to what the network makes of it, as far as that predicts the "
            "stacks; the method default does",
        )
        self.weights = WeightsChoice(weights, theme, failed)
        self.penalty: ComboBox = choice(
            "What is taken for likely where the stacks leave it open: total variation keeps "
            "edges, Tikhonov is softer",
            lambda: _PENALTIES,
        )
        self.strength = FloatSpinBox(
            value=0.0,
            min=0.0,
            max=10.0,
            step=0.001,
            tooltip="The prior's weight; without one, that which best predicts voxels held back",
        )
        self.strength.native.setDecimals(5)
        self.strength.native.setSpecialValueText("weight from the data")
        self.seed = SpinBox(value=0, min=0, max=2**31 - 1, tooltip="The same seed, the same result")
        rows = Rows()
        rows.add("Register by", self.similarity.native)
        rows.add("Slice profile", in_a_row(self.profile.native, self.thickness.native))
        rows.add("Prior", in_a_row(self.penalty.native, self.strength.native))
        rows.add("Network", self.network.native, self.weights)
        rows.add("Seed", in_a_row(self.seed.native, stretch=True))
        self.folding = Folding("Advanced", rows)
        outer = Rows()
        outer.addWidget(self.folding, 0, 0, 1, 2)
        self.setLayout(outer)
        for widget in (
            self.similarity,
            self.profile,
            self.thickness,
            self.penalty,
            self.strength,
            self.network,
            self.weights,
            self.seed,
        ):
            widget.changed.connect(self._on_change)

    @property
    def scanner(self) -> ScannerModel:
        """The slice profile."""
        return ScannerModel(self.profile.value, round(float(self.thickness.value), 3))

    @property
    def prior_weight(self) -> float | None:
        """The prior's weight; None for one that is chosen from the data."""
        return round(float(self.strength.value), 5) or None

    @property
    def asks_network(self) -> bool:
        """Whether a trained network has its say."""
        return bool(self.network.value)

    def close_down(self) -> None:
        """Give up what is being downloaded."""
        self.weights.close_down()

    def _on_change(self, _value: Any = None) -> None:
        self.weights.setVisible(self.asks_network)
        self.changed.emit()
