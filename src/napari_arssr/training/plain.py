"""Frozen dataclasses ⇄ plain values, strict about names and kinds: files, headers, checkpoints."""

from __future__ import annotations

import difflib
import math
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from napari_arssr.errors import UsageError

__all__ = ["from_plain", "require_finite", "to_plain"]

Record = TypeVar("Record")


def to_plain(value: Any) -> Any:
    """Dictionaries, lists, strings, numbers and booleans, for a dataclass of such values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    return value


def from_plain(base: Record, values: Any, where: str = "") -> Record:
    """``base``, a frozen dataclass, with the values of a dictionary in place of its own.

    Parameters
    ----------
    base : dataclass
        What is not among ``values`` stays as it is here.
    values : dict
        By field name; a field that is a dataclass itself takes a dictionary.
    where : str
        What messages call the place: ``"run.yaml: training"``.

    Raises
    ------
    UsageError
        For a name that is no field, or a value of another kind.
    """
    place = f"{where}: " if where else ""
    if not isinstance(values, dict):
        raise UsageError(f"{place}{values!r} is not a list of settings and their values.")
    kinds = get_type_hints(type(base))
    changed = {}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kinds)}."
            raise UsageError(f"{place}there is no setting {name!r}; {hint}")
        own = getattr(base, name)
        inner = f"{where}.{name}" if where else str(name)
        if is_dataclass(own) and not isinstance(own, type):
            changed[name] = from_plain(own, value, inner)
        else:
            changed[name] = _as_kind(kinds[name], value, inner)
    own_values = {item.name: getattr(base, item.name) for item in fields(cast(Any, base))}
    try:
        return type(base)(**{**own_values, **changed})
    except UsageError as error:
        raise UsageError(f"{place}{error}") from None
    except ValueError as error:  # the networks' settings know no errors of ours
        raise UsageError(f"{place}{error}") from None


def require_finite(record: Any) -> None:
    """Refuse a dataclass with a number that is infinite or none.

    Raises
    ------
    UsageError
    """
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{item.name} must be a finite number, not {value!r}.")


def _as_kind(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
        raise UsageError(f"{where}: {value!r} is none of {', '.join(map(repr, get_args(kind)))}.")
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            part = get_args(kind)[0]
            return tuple(_as_kind(part, one, where) for one in value)
        raise UsageError(f"{where}: {value!r} is not a list.")
    if kind is float:
        return _as_float(value, where)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        raise UsageError(f"{where}: {value!r} is not {_IN_WORDS[kind]}.")
    return value


def _as_float(value: Any, where: str) -> float:
    # YAML reads 1e-4, which has no dot, as text.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise UsageError(f"{where}: {value!r} is not a number.")


_IN_WORDS = {int: "a whole number", bool: "true or false", str: "text"}
