"""The errors a user can meet: one clear sentence with file, value and way out."""

from __future__ import annotations

__all__ = ["ArssrError", "Cancelled", "FileError", "OutOfMemory", "UsageError"]


class ArssrError(Exception):
    """Something failed for a reason a user can understand and act on.

    The message is one sentence that names the file or value and the way out.
    Faces (command line, widget) print it without a traceback.
    """


class UsageError(ArssrError, ValueError):
    """A value given by the user cannot be meant (exit status 2 on the command line)."""


class NoFrame(UsageError):
    """A frame was asked for that a series does not have: no fault of its file."""


class NoChannel(UsageError):
    """A channel has to be named, or one was that its stack does not have: no fault of its file."""


class Coarser(UsageError):
    """A result was asked for whose voxels would be larger than those of its input."""


class FileError(ArssrError):
    """A file cannot be read, understood or written."""


class NoVolume(FileError):
    """A file is whole, and what it holds is no volume of real numbers: a picture, for instance."""


class Unreadable(FileError):
    """Voxels cannot be read; whose they are is for the caller to say."""


class OutOfMemory(ArssrError):
    """The work does not fit in the memory there is, however it is cut."""


class Cancelled(ArssrError):
    """The caller's ``stop`` callable asked for the work to end."""

    def __init__(self, message: str = "Cancelled.") -> None:
        super().__init__(message)
