"""Named dimensions: which axes the fields of a result have, and whether these agree in size.

A field names its axes in order, and so does a property in what it returns:

    layers: Annotated[tuple[Layer, ...], "layer"]
    accuracy: Annotated[np.ndarray, "layer", "target"]
    maps: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]

A tuple of arrays has the axes of these after its own, and their sizes may differ between its
elements. An axis of "distortion + 1" is one longer than "distortion", one of "layer?" may be empty
where the field is not known, and a number is the size itself. A record that names dimensions shares
them with the result it is part of; where it names "..." its arrays have those of the field that it
is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from functools import cache, cached_property
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import numpy as np

# An integer, or a tuple of one for each element of a tuple whose elements differ.
Size = Any
T = TypeVar("T", bound=Any)
# What the arrays of a record name that has the dimensions of the field it is in.
OF_FIELD = ("...",)


@cache
def field_axes(cls: Any) -> dict[str, tuple[str, ...]]:
    """The axes of the fields that name them; none where types cannot be found, as in a function."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:
        return {}
    return {name: axes for name, hint in hints.items() if (axes := _axes(hint))}


@cache
def dimensions(cls: Any, name: str) -> tuple[str, ...]:
    """The dimensions of a field or property; none where it names none."""
    axes = field_axes(cls).get(name, ())
    match getattr(cls, name, None):
        case property(fget=function) | cached_property(func=function):
            axes = _axes(get_type_hints(function, include_extras=True).get("return"))
    return tuple(axis.rstrip("?") for axis in axes)


def _axes(hint: Any) -> tuple[str, ...]:
    return tuple(map(str, hint.__metadata__)) if get_origin(hint) is Annotated else ()


def sizes(record: Any) -> dict[str, Size]:
    """The size of every dimension of a record.

    Raises ValueError where two fields disagree, or one has another number of axes."""
    cls: Any = type(record)
    kind, found = cls.__name__, dict[str, tuple[Size, str]]()
    for field, axes in field_axes(cls).items():
        value = getattr(record, field)
        shape = () if value is None else _shape(value, axes)
        if len(shape) != len(axes) and (hasattr(value, "shape") or value):
            names = ", ".join(axes)
            raise ValueError(f"'{field}' of a {kind} has {len(shape)} axes instead of [{names}]")
        for axis, size in zip(axes, shape, strict=False):
            name, _, longer = axis.rstrip("?").partition(" ")
            own = _shorter(size, int(longer.replace(" ", "") or 0))
            absent = axis.endswith("?") and not np.all(size)
            if name.isdigit() and own != int(name):
                raise ValueError(f"'{field}' of a {kind} has an axis of {own}, not of {name}")
            if name.isdigit() or (absent and name not in found):
                continue
            known, other = found.setdefault(name, (own, field))
            if own != known and not (
                absent and np.all((np.asarray(own) == known) | (np.asarray(size) == 0))
            ):
                raise ValueError(
                    f"'{field}' of a {kind} has {own} of '{name}', and '{other}' has {known}"
                )
    return {name: size for name, (size, _) in found.items()}


def _shape(value: Any, axes: tuple[str, ...]) -> tuple[Size, ...]:
    """The sizes of the axes of a field."""
    if axes == OF_FIELD:
        return (tuple(value.shape),)
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if is_dataclass(value):
        own = sizes(value)
        return own["..."] if "..." in own else tuple(own[axis] for axis in axes)
    if len(axes) == 1:
        return (len(value),)
    inner = zip(*(_shape(element, axes[1:]) for element in value), strict=False)
    return (len(value), *(one[0] if len(set(one)) == 1 else one for one in inner))


def _shorter(size: Size, by: int) -> Size:
    return size - by if isinstance(size, int) else tuple(_shorter(one, by) for one in size)


def select(record: T, dimension: str, indices: Sequence[int]) -> T:
    """The record at some indices of a dimension, in that order. Raises ValueError where one of its
    axes is longer than this dimension."""
    selected: T = _select(record, (), dimension, indices)
    return selected


def _select(value: Any, axes: Sequence[str], dimension: str, indices: Sequence[int]) -> Any:
    if isinstance(value, np.ndarray):
        for k in (k for k, axis in enumerate(axes) if axis.rstrip("?") == dimension):
            value = value.take(indices, k)
    if is_dataclass(value):
        cls: Any = type(value)
        fields = {
            field: _select(
                getattr(value, field), axes if own == OF_FIELD else own, dimension, indices
            )
            for field, own in field_axes(cls).items()
        }
        return replace(value, **fields)  # type: ignore[type-var]
    if isinstance(value, tuple) and value:
        if axes[0].rstrip("?") == dimension:
            value = tuple(value[i] for i in indices)
        if len(axes) > 1:
            value = tuple(_select(one, axes[1:], dimension, indices) for one in value)
    return value
