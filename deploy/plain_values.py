"""Plain values, as TOML and JSON hold them, as the types of fields; and those types in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def fitted(hint: Any, value: Any) -> Any:
    """Return a value of TOML or JSON as the type of a field. Raises ValueError where it is none."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        for kind in kinds:
            try:
                return fitted(kind, value)
            except ValueError:
                pass
    elif get_origin(hint) is Literal:
        if value in kinds and type(value) in {type(kind) for kind in kinds}:
            return value
    elif get_origin(hint) is tuple:
        return tuple(
            fitted(kinds[0], item) for item in (value if isinstance(value, list | tuple) else [value])
        )
    elif get_origin(hint) is Mapping:
        if isinstance(value, dict):
            return {name: fitted(kinds[1], item) for name, item in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, dict):
            hints = get_type_hints(hint)
            return hint(**{name: fitted(hints[name], item) for name, item in value.items()})
    elif hint is Any:
        return value
    elif hint is type(None) and value is None:
        return None
    elif hint is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is hint:
        return value
    raise ValueError


def in_words(hint: Any) -> str:
    """Return what a field wants, in words."""
    words = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(in_words(kind) for kind in kinds)
    if get_origin(hint) is Literal:
        return choices(kinds)
    if get_origin(hint) is tuple:
        return f"a list, each {in_words(kinds[0])}"
    return words.get(hint, "text in quotes")


def choices(values: Iterable[Any]) -> str:
    """Return these values in words, as one of which may be chosen."""
    return " or ".join(f'"{value}"' for value in values)
