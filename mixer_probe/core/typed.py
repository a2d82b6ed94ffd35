"""`fits`: whether data has the type that a field declares."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@cache
def field_types(cls: Any) -> dict[str, Any]:
    """The declared types of the fields of a class, by name; none where they name what cannot be
    found, as in a function."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {}


def fits(value: Any, declared: Any) -> bool:
    """Whether `value` is what `declared` says, down to the elements of tuples and dictionaries; an
    integer is a float too.

    Of numbers, strings, arrays, classes, tuples, dictionaries, literals and unions of these; true
    for any other declaration."""
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if declared is None:
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    return not isinstance(declared, type) or declared is Any or isinstance(value, declared)


def spelled(declared: Any) -> str:
    """A declared type as it is written."""
    return (
        declared.__name__
        if isinstance(declared, type) and not get_args(declared)
        else str(declared).replace("typing.", "")
    )
