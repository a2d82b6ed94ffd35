"""`Accumulator`: sums over images that grow batch by batch and merge over shards, processes and
machines."""

from __future__ import annotations

import hashlib
import io
import json
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import field, fields, is_dataclass
from typing import Any, Self, get_args, get_origin

import numpy as np
import torch
from numcodecs import zstd

from mixer_probe.core.dimensions import sizes
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import same
from mixer_probe.core.typed import field_types, fits, spelled
from mixer_probe.core.validate import shown

_KIND, _ARRAY = "accumulator", "$array"


class Accumulator(ABC):
    """Base of everything that adds up over images; more may follow a result.

    Subclasses are dataclasses. Arguments of the constructor are settings; what is added up is
    declared by `state_field`. Tensors and arrays name their `dimensions`."""

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the images of `other`, which come after those here; it stays as it is."""

    @abstractmethod
    def compute(self, *args: Any, **kwargs: Any) -> Any:
        """The result for all images so far."""

    def state(self) -> dict[str, Any]:
        """A copy of settings and sums as plain data: tensors, arrays, numbers, texts and None in
        dictionaries and lists."""
        return {_KIND: type(self).__name__, **_plain(self)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Hold what `state` gave, instead of what is here; tensors may have become arrays, or
        arrays tensors.

        Raises StoreError for the state of another class, with other settings, or of other types or
        shapes than are declared."""
        name, values = type(self).__name__, dict(state)
        kind = values.pop(_KIND, None)
        if kind != name:
            raise StoreError(f"this is a state of {shown(kind)}, and a {name} holds its own only")
        found = _built(values, type(self), name)
        for setting in (f.name for f in fields(found) if f.init):
            theirs, own = getattr(found, setting), getattr(self, setting)
            if not same(theirs, own):
                raise StoreError(
                    f"the state is of a {name} with {setting}={shown(theirs)}, and this one has "
                    f"{shown(own)}"
                )
        vars(self).update(vars(found))


def state_field(start: Any) -> Any:
    """A field that is added up, with its value before the first batch, or a function that makes
    it."""
    if callable(start):
        return field(init=False, repr=False, default_factory=start)
    return field(init=False, repr=False, default=start)


def pack(state: Any) -> bytes:
    """A state as bytes, with their hash: JSON, and arrays and tensors as NumPy's, compressed."""
    arrays: list[np.ndarray] = []

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, torch.Tensor)):
            arrays.append(value.cpu().numpy() if isinstance(value, torch.Tensor) else value)
            return {_ARRAY: len(arrays) - 1}
        return value.item() if isinstance(value, np.generic) else value

    content, buffer = json.dumps(plain(state)), io.BytesIO()
    np.savez(buffer, np.frombuffer(content.encode(), dtype=np.uint8), *arrays, allow_pickle=False)
    packed: bytes = zstd.compress(buffer.getvalue(), 1)
    return hashlib.sha256(packed).digest() + packed


def unpack(content: bytes) -> Any:
    """The inverse of `pack`, with arrays for tensors. Raises StoreError for damaged bytes."""
    packed = content[32:]
    if hashlib.sha256(packed).digest() != content[:32]:
        raise StoreError("the stored state is not as it was written")
    with np.load(io.BytesIO(zstd.decompress(packed)), allow_pickle=False) as file:
        arrays = [file[f"arr_{k}"] for k in range(len(file.files))]

    def built(value: dict[str, Any]) -> Any:
        return arrays[value[_ARRAY] + 1] if _ARRAY in value else value

    return json.loads(arrays[0].tobytes().decode(), object_hook=built)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.clone() if isinstance(value, torch.Tensor) else copy(value)


def _built(value: Any, declared: Any, where: str) -> Any:
    """The inverse of `_plain`, with the types that `declared` says."""
    origin, inner = get_origin(declared), get_args(declared)
    if origin is types.UnionType:
        return None if value is None else _built(value, inner[0], where)
    kind = origin or declared
    if is_dataclass(declared) or kind is dict:
        kind = Mapping
    elif kind in (list, tuple):
        kind = list | tuple
    elif declared is torch.Tensor and isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    elif declared is np.ndarray and isinstance(value, torch.Tensor):
        value = value.numpy()
    if not fits(value, kind):
        raise StoreError(
            f"'{where}' of the state is a {type(value).__name__}, not {spelled(declared)}"
        )
    if is_dataclass(declared):
        return _object(value, declared, where)
    if origin is dict:
        return {key: _built(v, inner[1], f"{where}.{key}") for key, v in value.items()}
    if origin is list or origin is tuple:
        inner = inner * len(value) if origin is list else inner
        if len(inner) != len(value):
            raise StoreError(f"'{where}' of the state has {len(value)} parts, not {len(inner)}")
        return origin(_built(v, one, where) for v, one in zip(value, inner))
    return _plain(value)


def _object(values: Mapping[str, Any], cls: Any, where: str) -> Any:
    """A dataclass with these values. Raises StoreError for missing ones and for shapes that do not
    go together."""
    declared = {f.name: f for f in fields(cls)}
    if values.keys() != declared.keys():
        odd = min(values.keys() ^ declared.keys())
        raise StoreError(
            f"'{where}' of the state has {'no' if odd in declared else 'an unknown'} '{odd}'"
        )
    hints = field_types(cls)
    built = {name: _built(v, hints[name], f"{where}.{name}") for name, v in values.items()}
    made = cls(**{name: v for name, v in built.items() if declared[name].init})
    vars(made).update(built)
    try:
        sizes(made)
    except ValueError as error:
        raise StoreError(f"'{where}' of the state does not go together: {error}") from error
    return made
