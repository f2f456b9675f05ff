"""Importing PyTorch beside a window that goes on moving."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["import_torch"]


def import_torch() -> None:
    """Import PyTorch from a thread, holding the interpreter up as little as can be.

    PyTorch is hundreds of megabytes of machine code. While Python imports an extension it
    keeps its lock until all of that is loaded, and no other thread of Python's runs, the
    window's included. A foreign function is called without the lock; so the libraries that know
    nothing of Python are loaded by such a call first, and the import finds them there.
    """
    if "torch" not in sys.modules and os.name == "posix":  # Windows: PyTorch itself does so
        for library in _libraries():
            # One that does not load leaves it to the import to say why.
            _open(os.fsencode(library), os.RTLD_NOW)
    import torch

    assert torch.__version__


def _libraries() -> list[Path]:
    """PyTorch's own libraries, each before those that need it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "lib"
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    names = ("torch_global_deps", "c10", "torch_cpu", "c10_cuda", "torch_cuda", "torch")
    paths = [folder / f"lib{name}{suffix}" for name in names]
    return [path for path in paths if path.is_file()]


def _open(path: bytes, mode: int) -> None:
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    dlopen.restype = ctypes.c_void_p
    dlopen(path, mode)
