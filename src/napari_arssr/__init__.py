"""Raise the resolution of 3D volumes by any factor: a volume is a continuous function.

Nothing heavy is imported until it is used: each name below loads its module on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_arssr.degradation import ScannerModel
    from napari_arssr.field import Field
    from napari_arssr.io import read, write
    from napari_arssr.upsampling import encode, upsample
    from napari_arssr.volume import Box, Grid, Volume

    __version__: str

__all__ = [
    "Box",
    "Field",
    "Grid",
    "ScannerModel",
    "Volume",
    "__version__",
    "encode",
    "read",
    "upsample",
    "write",
]

_MODULE_OF = {
    "Box": "volume",
    "Field": "field",
    "Grid": "volume",
    "ScannerModel": "degradation",
    "Volume": "volume",
    "encode": "upsampling",
    "read": "io",
    "upsample": "upsampling",
    "write": "io",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("napari-arssr")
        except PackageNotFoundError:  # a source tree on the path that nobody installed
            value = "0+unknown"
    elif name in _MODULE_OF:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
