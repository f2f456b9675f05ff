"""Units of length and time as TIFF and OME write them: short, or spelt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["fine_or_coarse", "millimetres", "seconds"]

_MILLIMETRES = {
    "nm": 1e-6,
    "um": 1e-3,
    "µm": 1e-3,
    "μm": 1e-3,  # Greek mu; above it is the micro sign
    "\\u00b5m": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "mm": 1.0,
    "cm": 10.0,
    "m": 1e3,
    "in": 25.4,
    "inch": 25.4,
    "foot": 304.8,
    "Å": 1e-7,
    "angstrom": 1e-7,
    "pm": 1e-9,
}
_SECONDS = {
    "s": 1.0,
    "ms": 1e-3,
    "µs": 1e-6,
    "μs": 1e-6,
    "ns": 1e-9,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "day": 86400.0,
}
_PREFIXES = {
    "": 1.0,
    "deci": 1e-1,
    "centi": 1e-2,
    "milli": 1e-3,
    "micro": 1e-6,
    "nano": 1e-9,
    "pico": 1e-12,
    "femto": 1e-15,
}


_FINE = 0.1  # millimetres; of a smaller side a file tells micrometres


def fine_or_coarse(spacing: Sequence[float]) -> tuple[str, float]:
    """The unit in which a stack's file tells its voxels' sides, and how many are a millimetre."""
    return ("um", 1e3) if min(spacing) < _FINE else ("mm", 1.0)


def millimetres(unit: str) -> float | None:
    """Millimetres in a unit of length of that name; None where none is called so."""
    return _named(unit, _MILLIMETRES, ("meter", "metre"), 1e3)


def seconds(unit: str) -> float | None:
    """Seconds in a unit of time of that name; None where none is called so."""
    return _named(unit, _SECONDS, ("second",), 1.0)


def _named(
    unit: str, short: Mapping[str, float], words: tuple[str, ...], whole: float
) -> float | None:
    """By a short name as it is written, else in lower case, else spelt out with a prefix."""
    name = unit.strip()
    for one in (name, name.lower()):
        if one in short:
            return short[one]
    name = name.lower()
    for word in (*words, *(f"{word}s" for word in words)):
        prefix = name.removesuffix(word)
        if prefix != name and prefix in _PREFIXES:
            return whole * _PREFIXES[prefix]
    return None
