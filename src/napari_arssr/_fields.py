"""Encoded volumes that are kept, so that running again and the live view need not encode again."""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from napari_arssr import weights as registry
from napari_arssr.errors import Cancelled
from napari_arssr.watching import Stop, never

if TYPE_CHECKING:
    from napari_arssr.field import NetworkField

__all__ = ["Fields"]

Make = Callable[[], "NetworkField"]

_ASKS_EVERY = 0.1  # seconds


@dataclass(eq=False)
class _Kept:
    """A field, or the place for one, that serves one request at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    field: NetworkField | None = None


class Fields:
    """The fields that were used last.

    A field is known by its key: everything that its features depend on. Features take a good
    part of the memory there is, so that few fields are kept.

    Parameters
    ----------
    most : int
        How many to keep.
    """

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._loaded: tuple[Hashable, registry.Loaded] | None = None
        self._loading = threading.Lock()

    @contextmanager
    def lend(self, key: Hashable, make: Make, stop: Stop = never) -> Iterator[NetworkField]:
        """The field of a key, for as long as the context lasts; waits while another has it.

        Parameters
        ----------
        key : hashable
        make : callable
            Makes the field if it is not here; errors come out, and nothing is kept then.
        stop : callable
            Asked while it waits.

        Raises
        ------
        Cancelled
            If ``stop`` says so.
        """
        kept = self._place(key)
        while not kept.lock.acquire(timeout=_ASKS_EVERY):
            if stop():
                raise Cancelled
        try:
            yield self._made(key, kept, make)
        finally:
            kept.lock.release()

    @contextmanager
    def lend_if_free(self, key: Hashable, make: Make) -> Iterator[NetworkField | None]:
        """The same, but None instead of waiting."""
        kept = self._place(key)
        if not kept.lock.acquire(blocking=False):
            yield None
            return
        try:
            yield self._made(key, kept, make)
        finally:
            kept.lock.release()

    def weights(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        progress: registry.Progress | None = None,
        stop: registry.Stop | None = None,
    ) -> tuple[Hashable, registry.Loaded]:
        """The network of a name or file, and what tells it from others, for keys.

        The last one is kept; a file that was replaced is loaded anew. Arguments and errors are
        those of :func:`napari_arssr.weights.load`.
        """
        with self._loading:
            found = registry.resolve(name_or_path, progress=progress, stop=stop)
            file = found.stat()
            identity = (str(found), file.st_mtime_ns, file.st_size)
            # The window's thread may forget it at any moment.
            kept = self._loaded
            if kept is None or kept[0] != identity:
                kept = self._loaded = identity, registry.load(name_or_path)
            return kept

    def forget(self) -> None:
        """Keep none; what is lent is let go of when it comes back."""
        with self._lock:
            self._kept.clear()
        self._loaded = None
        _free_device_memory()

    def __len__(self) -> int:
        return len(self._kept)

    def _place(self, key: Hashable) -> _Kept:
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            dropped = [self._kept.popitem(last=False) for _ in range(len(self._kept) - self._most)]
        if dropped:
            # Before the new field looks how much memory there is.
            dropped.clear()
            _free_device_memory()
        return kept

    def _made(self, key: Hashable, kept: _Kept, make: Make) -> NetworkField:
        if kept.field is None:
            try:
                kept.field = make()
            except BaseException:
                with self._lock:
                    if self._kept.get(key) is kept:
                        del self._kept[key]
                raise
        return kept.field


def _free_device_memory() -> None:
    """Give a GPU's memory back to it: PyTorch keeps what was freed for itself."""
    # Where it was never imported nothing is held, nor while it is being imported by another thread:
    # a module has its submodules once these are whole.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
