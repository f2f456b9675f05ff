"""A curve of how a fit goes: what the volume leaves of the data, over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from napari.utils.theme import get_theme
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_arssr._sight import Measured
from napari_arssr._stack_choice import colour_of

__all__ = ["LossCurve", "ticks_between"]

_HEIGHT = 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 20  # pixels around the axes
_FEWEST_TICKS = 2
_UPRIGHT = "residual, % of range:"
_HINT = (
    "What the volume leaves of the stacks. Each stage has a prior of its own, and a stronger one "
    "leaves more: how well a stage goes is seen within it, not against the one before."
)


class LossCurve(QWidget):
    """Draws what was measured of a fit, each of its stages in a colour; hidden while there is none.

    The upright axis is logarithmic. Stages are divided by upright lines, since their numbers are
    not to be compared.

    Parameters
    ----------
    theme : callable
        Gives the name of the window's theme.
    """

    def __init__(self, theme: Callable[[], str]) -> None:
        super().__init__()
        self._theme = theme
        self._numbers: list[Measured] = []
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setVisible(False)
        self.setToolTip(_HINT)

    @property
    def numbers(self) -> Sequence[Measured]:
        """What is drawn."""
        return tuple(self._numbers)

    @property
    def borders(self) -> list[float]:
        """Seconds at which one stage gives way to the next: half-way between their numbers."""
        return [
            (one.seconds + other.seconds) / 2
            for one, other in pairwise(self._numbers)
            if one.stage != other.stage
        ]

    def add(self, numbers: Sequence[Measured]) -> None:
        """Draw more."""
        good = [one for one in numbers if math.isfinite(one.error) and one.error > 0]
        if good:
            self._numbers += good
            self.setVisible(True)
            self.update()

    def clear(self) -> None:
        """Draw nothing."""
        self._numbers.clear()
        self.setVisible(False)

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as there is room, and low."""
        return QSize(200, _HEIGHT)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """The same."""
        return self.sizeHint()

    def paintEvent(self, _event: QPaintEvent | None) -> None:  # noqa: N802
        """Axes, a line for each stage, and what is what."""
        if not self._numbers:
            return
        theme = get_theme(self._theme())
        text, faint = QColor(theme.text.as_hex()), QColor(theme.secondary.as_hex())
        errors = [100 * one.error for one in self._numbers]
        low, high = min(errors), max(errors)
        if high < 1.2 * low:
            low, high = low / 1.2, high * 1.2
        end = max(self._numbers[-1].seconds, 1e-3)
        area = QRectF(_LEFT, _TOP, self.width() - _LEFT - _RIGHT, self.height() - _TOP - _BOTTOM)

        def across(seconds: float) -> float:
            return area.left() + area.width() * seconds / end

        def upright(error: float) -> float:
            return area.bottom() - area.height() * math.log(error / low) / math.log(high / low)

        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        font = painter.font()
        font.setPixelSize(11)
        painter.setFont(font)
        for error in ticks_between(low, high):
            height = upright(error)
            painter.setPen(faint)
            painter.drawLine(QPointF(area.left(), height), QPointF(area.right(), height))
            painter.setPen(text)
            place = QRectF(0, height - 8, _LEFT - 6, 16)
            painter.drawText(place, _RIGHT_MIDDLE, f"{error:.3g} %")
        painter.setPen(text)
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        painter.drawLine(area.bottomLeft(), area.topLeft())
        below = QRectF(area.left(), area.bottom() + 2, area.width(), 15)
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, "0")
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, f"{end:.3g} s")
        painter.drawText(below, Qt.AlignmentFlag.AlignHCenter, "time")
        painter.drawText(QPointF(4, 14), _UPRIGHT)
        painter.setPen(QPen(faint, 1, Qt.PenStyle.DashLine))
        for seconds in self.borders:
            painter.drawLine(
                QPointF(across(seconds), area.top()), QPointF(across(seconds), area.bottom())
            )
        place_of_names = 4 + painter.fontMetrics().horizontalAdvance(_UPRIGHT) + 14
        self._draw_lines(painter, place_of_names, across, upright)
        painter.end()

    def _draw_lines(
        self,
        painter: QPainter,
        place: float,
        across: Callable[[float], float],
        upright: Callable[[float], float],
    ) -> None:
        stages = list(dict.fromkeys(one.stage for one in self._numbers))
        for number, stage in enumerate(stages):
            colour = QColor(colour_of(number))
            points = [
                QPointF(across(one.seconds), upright(100 * one.error))
                for one in self._numbers
                if one.stage == stage
            ]
            painter.setPen(QPen(colour, 2))
            painter.drawPolyline(QPolygonF(points))
            painter.setBrush(colour)
            if len(points) < 40:
                for point in points:
                    painter.drawEllipse(point, 2, 2)
            words = painter.fontMetrics().horizontalAdvance(stage)
            painter.drawText(QPointF(place, 14), stage)
            place += words + 14


_RIGHT_MIDDLE = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


def ticks_between(low: float, high: float) -> list[float]:
    """Two or more round numbers from ``low`` to ``high``, above 0, for a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= _FEWEST_TICKS:
            return inside
    # Within less than a decade: evenly, as a linear axis has them.
    decade = math.ceil(math.log10(high - low))
    while True:
        for share in (5, 2, 1):
            step = share * 10.0 ** (decade - 1)
            inside = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
            if len(inside) >= _FEWEST_TICKS:
                return inside
        decade -= 1
