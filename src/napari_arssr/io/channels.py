"""Which of its channels a file's volume is: a microscope's stack may hold several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from napari_arssr.errors import NoChannel

__all__ = ["Channel", "chosen"]


@dataclass(frozen=True)
class Channel:
    """A channel of a stack.

    Parameters
    ----------
    number : int
        From 0, in the file's order.
    name : str
        As the file calls it; empty where it does not.
    """

    number: int = 0
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"channel {self.number}"


def chosen(
    path: str | os.PathLike[str], channels: Sequence[Channel], number: int | None
) -> Channel | None:
    """The channel of that number; None where there is one only, which need not be named.

    Raises
    ------
    NoChannel
        If there is none of that number, or several and none is named; a UsageError.
    """
    several = len(channels) > 1
    if number is None and several:
        raise NoChannel(
            f"{path} has {len(channels)} channels ({_listed(channels)}); choose one ('--channel' "
            "of upsample, train, evaluate; 'channel' in Python), or save it as a file of its own."
        )
    if number is not None and not 0 <= number < len(channels):
        there = f"channels {_listed(channels)}" if several else "one, channel 0"
        raise NoChannel(f"{path}: there is no channel {number}; it has {there}.")
    return channels[number or 0] if several else None


def _listed(channels: Sequence[Channel]) -> str:
    """Numbers, with names if there are any: ``0 to 4``, or ``0 DAPI, 1 GFP``."""
    if any(channel.name for channel in channels):
        return ", ".join(f"{channel.number} {channel.name}".rstrip() for channel in channels)
    return f"0 to {len(channels) - 1}"
