"""How much memory there is for work, and what is said where it is too little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_arssr.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

__all__ = ["for_work", "in_bytes", "require"]

# Of what is free: on the CPU other programs and the result want some too, on a GPU its allocator.
_SHARE, _SHARE_OF_GPU, _MOST_OF_GPU = 0.5, 0.8, 0.9


def require(need: int, what: str, way_out: str) -> None:
    """See that so much memory is free.

    Parameters
    ----------
    need : int
        Bytes.
    what : str
        That takes them: how a sentence begins.
    way_out : str
        How it ends.

    Raises
    ------
    OutOfMemory
        If they are not free.
    """
    free = _available()
    if need > free:
        raise OutOfMemory(
            f"{what} takes {in_bytes(need)} and {in_bytes(free)} are free; {way_out}."
        )


def for_work(device: torch.device, asked: int | None = None) -> int:
    """Bytes that work may take on a device: a share of what is free, or what was asked for.

    Parameters
    ----------
    device : torch.device
    asked : int, optional
        On a GPU no more than is there.
    """
    if device.type != "cuda":
        return int(_SHARE * _available()) if asked is None else asked
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(_SHARE_OF_GPU * free) if asked is None else min(asked, int(_MOST_OF_GPU * free))


def in_bytes(size: float) -> str:
    """A size in memory: ``451 MB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{max(size / 1e3, 0.1):.3g} kB"


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
