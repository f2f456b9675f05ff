"""How much memory there is for work, and what is said where it is too little."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from napari_arssr.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

__all__ = ["available", "for_work", "in_bytes", "require"]

# Of what is free: on the CPU other programs and the result want some too, on a GPU its allocator.
_SHARE, _SHARE_OF_GPU, _MOST_OF_GPU = 0.5, 0.8, 0.9

# Files of a control group of Linux, version 2 and 1: its limit, what it and its children use, and
# what memory.stat calls the file cache that goes as soon as the memory is wanted.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


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
    free = available()
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
        return int(_SHARE * available()) if asked is None else asked
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch keeps of memory that is no longer used is as good as free.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_SHARE_OF_GPU * free) if asked is None else min(asked, int(_MOST_OF_GPU * free))


def in_bytes(size: float) -> str:
    """A size in memory: ``451 MB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{max(size / 1e3, 0.1):.3g} kB"


def available(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes free on this machine, and to every limit that Slurm, Docker or the like set us."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_below_limits(groups, mount)])


def _below_limits(groups: Path, mount: Path) -> Iterator[int]:
    """Bytes to each limit on this process's memory, of its control groups and their parents.

    Parameters
    ----------
    groups : Path
        The file that names them; other systems than Linux have none.
    mount : Path
        The directory that holds them.
    """
    try:
        lines = os.fsdecode(groups.read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        match line.split(":", 2):
            case ["0", "", path]:
                root, names = mount, _V2
            case [_, controllers, path] if "memory" in controllers.split(","):
                root, names = mount / "memory", _V1
            case _:
                continue
        group = root / path.lstrip("/")
        if ".." in group.parts or not os.access(group, os.X_OK):
            group = root  # a container that has the host's path, but sees its own group as root
        for one in (group, *group.parents):
            free = _below_limit(one, *names)
            if free is not None:
                yield free
            if one == root:
                break


def _below_limit(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Bytes to a group's limit; None where there is none (``max``) or none that can be read."""
    try:
        most, used = (int((group / name).read_text()) for name in (limit, usage))
    except (OSError, ValueError):
        return None
    return max(most - max(used - _entry(group / "memory.stat", cache), 0), 0)


def _entry(stat: Path, name: str) -> int:
    try:
        entries = dict(line.split() for line in stat.read_text().splitlines())
        return int(entries.get(name, 0))
    except (OSError, ValueError):
        return 0
