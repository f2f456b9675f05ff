"""Where a network runs and in what precision."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from napari_arssr.choices import PRECISIONS, Precision
from napari_arssr.errors import UsageError

__all__ = [
    "Precision",
    "available_devices",
    "bfloat16_is_faster",
    "choose_device",
    "choose_precision",
    "float32_means_float32",
    "is_out_of_memory",
    "onednn_takes",
]


def available_devices() -> list[str]:
    """What this machine has, best first: ``cuda:0`` …, ``mps``, ``cpu``."""
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; ``auto`` is the best there is, ``cuda`` the first GPU.

    Raises
    ------
    UsageError
        If this machine has no such device.
    """
    devices = available_devices()
    if name == "auto":
        return torch.device(devices[0])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in devices:
        raise UsageError(
            f"There is no device {name!r} here: choose auto or one of {', '.join(devices)}."
        )
    return torch.device(wanted)


def choose_precision(name: str, device: torch.device, *, bfloat16_is_safe: bool) -> torch.dtype:
    """The number format networks run in; intensities are float32 outside of them.

    Parameters
    ----------
    name : {"auto", "float32", "bfloat16", "float16"}
        ``auto`` takes bfloat16 where ``bfloat16_is_safe`` and this device is faster with it.
    device : torch.device
    bfloat16_is_safe : bool
        Whether the weights were measured to lose less than 0.02 dB by it.

    Raises
    ------
    UsageError
        For an unknown name, or float16 on a CPU, which would be slower and less exact.
    """
    if name not in PRECISIONS:
        raise UsageError(f"There is no precision {name!r}: choose {', '.join(PRECISIONS)}.")
    if name == "auto":
        fast = bfloat16_is_safe and bfloat16_is_faster(device)
        return torch.bfloat16 if fast else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UsageError("float16 is for GPUs: on the CPU choose float32, bfloat16 or auto.")
    return {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }[name]


# As large as what networks compute: small float32 volumes (channels x depth x height up to 20480)
# PyTorch keeps from oneDNN, so that a smaller trial would find bfloat16 faster even on processors
# that only imitate it, three to four times slower than float32.
_TRIAL_CHANNELS, _TRIAL_SHAPE = 32, (40, 40, 24)


@cache
def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a convolution in bfloat16 beats float32 clearly here, by a trial of some ms."""
    if device.type == "mps":
        return False  # not every operation exists there in bfloat16
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not onednn_takes(torch.bfloat16):
        return False

    def seconds(dtype: torch.dtype) -> float:
        volume = torch.zeros(1, _TRIAL_CHANNELS, *_TRIAL_SHAPE, dtype=dtype)
        volume = volume.to(memory_format=torch.channels_last_3d)
        convolution = torch.nn.Conv3d(_TRIAL_CHANNELS, _TRIAL_CHANNELS, 3, padding=1, dtype=dtype)
        convolution.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        times = []
        for _ in range(4):
            started = time.perf_counter()
            convolution(volume)
            times.append(time.perf_counter() - started)
        return min(times)

    with torch.inference_mode():
        return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies such numbers by oneDNN; not all builds have that."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in message for sign in _OUT_OF_MEMORY)


# Metal, the allocators for processors (Linux and macOS, Windows), cuDNN and cuBLAS.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",
)


class _Float32:
    """TF32 as it was before the first of all that are inside, for when the last has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (False, False)

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = (
                    torch.backends.cudnn.allow_tf32,
                    torch.backends.cuda.matmul.allow_tf32,
                )
                self._set(False, False)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(*self._before)

    @staticmethod
    def _set(convolutions: bool, products: bool) -> None:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products


_FLOAT32 = _Float32()


@contextmanager
def float32_means_float32() -> Iterator[None]:
    """No TF32 inside: on GPUs float32 convolutions and products keep their 24 bits.

    PyTorch has one switch for the whole process; a run and a live view may be inside at once,
    on threads of their own.
    """
    _FLOAT32.enter()
    try:
        yield
    finally:
        _FLOAT32.leave()
