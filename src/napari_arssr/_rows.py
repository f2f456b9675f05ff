"""Small parts of the dock widget: its rows of a name and what can be set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from magicgui.widgets import ComboBox
from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

__all__ = ["Folding", "Note", "Page", "Rows", "choice", "in_a_row", "refill"]

Entry = tuple[str, Any]

_HARD_SPACE = "\N{NO-BREAK SPACE}"
# Height of a line with a list or a button in it, in napari's style.
_LINE = 26
# Light on dark and dark on light; napari's own error colour is too dark to be read.
_ALARM = {True: "#ff8f80", False: "#b3261e"}


class Rows(QGridLayout):
    """Rows of a name on the left and widgets on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.setContentsMargins(0, 0, 0, 0)
        self.setHorizontalSpacing(8)
        self.setVerticalSpacing(3)
        self.setColumnStretch(1, 1)

    def add(self, name: str, *contents: QWidget | QLayout) -> None:
        """A row; contents beyond the first come below it."""
        for number, content in enumerate(contents):
            row = self.rowCount()
            if number == 0 and name:
                label = QLabel(name)
                label.setFixedHeight(_LINE)  # beside the first line of what may have several
                self.addWidget(label, row, 0, Qt.AlignmentFlag.AlignTop)
                if isinstance(content, QWidget):  # for screen readers
                    label.setBuddy(content)
                    content.setAccessibleName(name)
            if isinstance(content, QLayout):
                self.addLayout(content, row, 1)
            else:
                self.addWidget(content, row, 1)


class Note(QLabel):
    """A line of small print that wraps; in another colour where it says what is wrong.

    Parameters
    ----------
    theme : callable
        Gives the name of the window's theme.
    """

    def __init__(self, theme: Callable[[], str]) -> None:
        super().__init__()
        self._theme = theme
        self.alarming = False
        self.setWordWrap(True)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.say("")

    def say(self, text: str | Sequence[str], *, alarming: bool = False) -> None:
        """Show a text, or facts side by side, none of which is broken; nothing takes no room."""
        if not isinstance(text, str):
            text = f"{_HARD_SPACE}· ".join(fact.replace(" ", _HARD_SPACE) for fact in text)
        self.alarming = alarming
        if alarming:
            on_dark = sum(get_theme(self._theme()).text.as_rgb_tuple(alpha=False)) > 3 * 128
            self.setStyleSheet(f"color: {_ALARM[on_dark]}")
        else:
            self.setStyleSheet("")
        self.setText(text)
        self.setVisible(bool(text))


class _WheelLeft(QObject):
    """Leaves the mouse wheel to the page it scrolls, unless the widget was chosen before."""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        if (
            event is not None
            and event.type() == QEvent.Type.Wheel
            and isinstance(watched, QWidget)
            and not watched.hasFocus()
        ):
            event.ignore()
            return True
        return super().eventFilter(watched, event)


class Page(QScrollArea):
    """A page that scrolls up and down where it is too long, and is never too narrow.

    The wheel scrolls it, and changes nothing on its way that was not clicked at before.
    """

    def __init__(self, page: QWidget) -> None:
        super().__init__()
        self.setWidget(page)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        left = _WheelLeft(self)
        for child in page.findChildren(QWidget):
            if isinstance(child, QComboBox | QAbstractSpinBox | QSlider):
                child.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
                child.installEventFilter(left)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """As wide as the page has to be, with room for the scroll bar beside it."""
        hint, page, bar = super().minimumSizeHint(), self.widget(), self.verticalScrollBar()
        assert page is not None
        assert bar is not None
        return QSize(page.minimumSizeHint().width() + bar.sizeHint().width(), hint.height())

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        """Hear of changes of the page, which Qt does not pass on."""
        if event is not None and event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return super().eventFilter(watched, event)


class Folding(QWidget):
    """A heading that shows and hides what is below it; closed at first."""

    def __init__(self, title: str, contents: QLayout) -> None:
        super().__init__()
        self.button = QToolButton()
        self.button.setText(title)
        self.button.setCheckable(True)
        self.button.setAutoRaise(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.button.toggled.connect(self._toggle)
        self._contents = QWidget()
        contents.setContentsMargins(16, 0, 0, 0)
        self._contents.setLayout(contents)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.button)
        layout.addWidget(self._contents)
        self._toggle(False)

    def _toggle(self, shown: bool) -> None:
        arrow = Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow
        self.button.setArrowType(arrow)
        self._contents.setVisible(shown)


def choice(tooltip: str, entries: Callable[[], Sequence[Entry]]) -> ComboBox:
    """A list to choose from that a long entry does not make wider.

    Parameters
    ----------
    tooltip : str
    entries : callable
        Gives words and values. Asked again by ``reset_choices``, and by magicgui itself
        whenever the list finds a place in a window.
    """
    box = ComboBox(choices=lambda _box: entries(), tooltip=tooltip)
    native: QComboBox = box.native
    native.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    native.setMinimumContentsLength(3)
    native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box


def refill(box: ComboBox, value: Any) -> None:
    """Ask for a list's entries again, and choose one; nobody is told.

    By itself magicgui puts new entries behind the old ones.
    """
    with box.changed.blocked():
        box.native.clear()
        box.reset_choices()
        if value in box.choices:
            box.value = value


def in_a_row(*widgets: QWidget, stretch: bool = False) -> QHBoxLayout:
    """Widgets side by side; ``stretch`` leaves what is over to the right of them."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(6)
    for widget in widgets:
        layout.addWidget(widget)
    if stretch:
        layout.addStretch()
    return layout
