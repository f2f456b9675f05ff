"""What widgets tell in words of their own: errors, and sizes in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari.utils.notifications import notification_manager, show_error
from qtpy.QtWidgets import QApplication

from napari_arssr._rows import Note
from napari_arssr._worker import Outcome
from napari_arssr.errors import ArssrError, UsageError

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = [
    "UnexpectedError",
    "came_to_its_end",
    "files_of_layers",
    "put_on_clipboard",
    "tell",
]


class UnexpectedError(Exception):
    """A fault of this package or of one it builds on."""


def tell(error: BaseException, what: str = "") -> None:
    """Show an error: in a sentence if it has one, else with all that helps to find the fault.

    Parameters
    ----------
    error : BaseException
    what : str
        What was being done, as the beginning of a sentence.
    """
    if isinstance(error, ArssrError):
        show_error(str(error))
        return
    told = UnexpectedError(
        f"{what or 'This'} failed with {type(error).__name__}: {error}. That is a fault of "
        "napari-arssr or of PyTorch; please report it with the traceback."
    )
    told.__cause__ = error
    notification_manager.receive_error(UnexpectedError, told, error.__traceback__)


def came_to_its_end(
    outcome: Outcome, message: Note, what: str, failed: str = "That did not work"
) -> bool:
    """Whether work has come to something; if not, why is said, and an error told.

    Parameters
    ----------
    outcome : Outcome
    message : Note
    what : str
        What was being done, as the beginning of a sentence.
    failed : str
        What to say where it failed.
    """
    if outcome.error is None:
        return True
    if outcome.cancelled:
        message.say("Cancelled.")
    else:
        message.say(f"{failed}: see the message.", alarming=True)
        tell(outcome.error, what)
    return False


def files_of_layers(layers: Sequence[Layer]) -> list[Path]:
    """The files that layers come from.

    Raises
    ------
    UsageError
        If one comes from none.
    """
    without = [layer.name for layer in layers if layer.source.path is None]
    if without:
        comes = "comes" if len(without) == 1 else "come"
        raise UsageError(
            f"{', '.join(without)} {comes} from no file, and a command needs one: save what is "
            "shown (File, Save Selected Layers), open that file, and copy again."
        )
    return [Path(layer.source.path) for layer in layers]


def put_on_clipboard(outcome: Outcome, message: Note) -> None:
    """Copy the command line that work came to, or tell why there is none."""
    if not came_to_its_end(outcome, message, "Copying the command", "There is no such command"):
        return
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    clipboard.setText(outcome.value)
    message.say(f"Copied: {outcome.value}")
