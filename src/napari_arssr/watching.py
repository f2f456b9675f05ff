"""How work says where it stands, and hears that it is to stop."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Advance", "Count", "Report", "Stop", "VagueReport", "never", "unheard"]

Report = Callable[[float, str], None]
"""Told the share of the work that is done, 0 to 1, and what is being done."""
VagueReport = Callable[[float | None, str], None]
"""The same; None where the share is not known."""
Advance = Callable[[float], None]
"""Told the share of one part of the work, 0 to 1."""
Count = Callable[[float], None]
"""Told how much more is done, in units of its own."""
Stop = Callable[[], bool]
"""Asked again and again; True ends the work."""


def unheard(_share: float | None, _stage: str = "") -> None:
    """Nobody is told."""


def never() -> bool:
    """Nobody stops it."""
    return False
