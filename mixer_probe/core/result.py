"""What every result shares: frozen numbers that carry what they were measured on, as data that
saves and loads back.

A result is a frozen dataclass derived from `Result`. Its fields are numbers, strings, tuples, numpy
arrays, the records below or `Layer`s; `to_dict` and `from_dict` write and read all of them without
a line of code in the result itself. Arrays and tuples name their `dimensions`, which must agree,
and `Frame` makes a table of them.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import json
import math
import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd

from mixer_probe.core.dimensions import sizes
from mixer_probe.core.errors import StoreError, closest
from mixer_probe.core.files import checksum, format_mismatch, printable, reason, write_text
from mixer_probe.core.frame import Frame
from mixer_probe.core.typed import field_types, fits, spelled

FORMAT = "mixer-probe results 2"
# What a report calls its results in its folder.
FILE_NAME = "results.json"
# Small arrays stay readable in the file; large ones are stored exactly and compactly.
_INLINE_VALUES = 2048
# What JSON has of the arrays that are written as lists, by kind of dtype.
_JSON_KINDS: dict[str, tuple[type[Any], ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "U": (str,),
}
_AGAIN = "copy it again, or recreate it"
# Declared without a reason, so many bytes do no harm.
_FREE_BYTES = 2**26

# A key that no field can have.
_TYPE = "$type"

_PACKAGES = (
    "models",
    "capture",
    "weights",
    "similarity",
    "probing",
    "channels",
    "attribution",
    "invariance",
    "visualization",
    "cost",
    "mixing",
    "concepts",
    "training",
    "study",
    "report",
)

_KINDS: dict[str, type[Any]] = {}
T = TypeVar("T", bound=type[Any])


def storable(cls: T) -> T:
    """Class decorator: let `to_dict` and `from_dict` carry this frozen dataclass, and compare and
    hash it field by field, arrays by their values and NaN equal to NaN."""
    _KINDS[_kind(cls)] = cls
    for name in ("__eq__", "__hash__"):
        # The dataclass decorator keeps methods that a class has.
        setattr(cls, name, getattr(_ByValue, name))
    return cls


def _kind(cls: type[Any]) -> str:
    """What a class is called in files: its name if it is one of ours, which files can do without
    their module; else both, so that none of another package is taken for one of ours."""
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"


def _compared(value: Any) -> list[Any]:
    return [getattr(value, f.name) for f in dataclasses.fields(value) if f.compare]


class _ByValue:
    """Comparison and hash of dataclasses field by field, arrays by their values."""

    def __eq__(self, other: object) -> bool:
        return (
            all(map(same, _compared(self), _compared(other)))
            if type(other) is type(self)
            else NotImplemented
        )

    def __hash__(self) -> int:
        return hash((type(self), *map(_hashable, _compared(self))))


def same(a: Any, b: Any) -> bool:
    """Whether two values of a result are equal: arrays and sequences element by element, NaN equal
    to NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        numbers = a.dtype.kind in "fc" and b.dtype.kind in "fc"
        return bool(np.array_equal(a, b, equal_nan=numbers))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b) or bool(a != a and b != b)


def _hashable(value: Any) -> Any:
    """Something with the same hash for values that are the `same`."""
    if isinstance(value, np.ndarray):
        return value.shape
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(v)) for key, v in value.items())
    return None if value != value else value


@storable
@dataclass(frozen=True)
class ModelRecord:
    """Which network a number was measured on; `fingerprint` is that of `Model`: over weights,
    modules, settings and input."""

    name: str
    family: str
    trained: bool
    weights: str
    fingerprint: str
    parameters: int
    note: str = ""

    def __post_init__(self) -> None:
        _make_printable(self)


@storable
@dataclass(frozen=True)
class ImagesRecord:
    """Which images a number was measured on.

    `fingerprint` is over their content in order, labels, class names and split; `pictures` over the
    content alone, before any distortion."""

    name: str
    split: str
    n: int
    classes: int
    fingerprint: str
    limit: int | None = None
    seed: int = 0
    skipped: int = 0
    credit: str = ""
    pictures: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _make_printable(self)


def _make_printable(record: Any) -> None:
    """Names of files can be bytes that are no UTF-8, which no figure draws and no table holds."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, str):
            object.__setattr__(record, field.name, printable(value))


@dataclass(frozen=True)
class Result:
    """Base of all results. Raises ValueError for fields that disagree in their dimensions."""

    title: ClassVar[str] = "Result"
    frame: ClassVar[Frame]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        storable(cls)

    def __post_init__(self) -> None:
        sizes(self)

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a table, one observation per row: by `frame` where it is declared."""
        return self.frame.of(self)


def to_dict(value: Any) -> Any:
    """`value` as JSON data: results, records, arrays, tuples, numbers, strings, None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_TYPE: _kind(type(value)), **fields}
    if isinstance(value, np.ndarray):
        kind, head = (
            value.dtype.kind,
            {_TYPE: "array", "dtype": str(value.dtype), "shape": list(value.shape)},
        )
        if kind == "O":
            raise TypeError("cannot store an array of Python objects in a result")
        # JSON has texts, booleans, integers and finite numbers, but not NaN, complex numbers or
        # dates.
        in_json = kind in "biu" or (kind == "f" and bool(np.isfinite(value).all()))
        if kind == "U" or (value.size <= _INLINE_VALUES and in_json):
            return {**head, "values": value.ravel().tolist()}
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {**head, "npy_base64": base64.b64encode(buffer.getvalue()).decode()}
    if isinstance(value, np.generic):
        return to_dict(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        # JSON has no NaN or infinity; a string keeps the file valid for every reader.
        return {_TYPE: "float", "value": repr(value)}
    if isinstance(value, Mapping):
        return {_TYPE: "dict", "items": {str(k): to_dict(v) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot store a {type(value).__name__} in a result")


def from_dict(data: Any) -> Any:
    """The inverse of `to_dict`; lists come back as tuples.

    Raises StoreError for a kind that this version does not know, for fields of other types or
    dimensions than it declares, and for arrays that declare more than they hold."""
    if isinstance(data, list):
        return tuple(from_dict(v) for v in data)
    if not isinstance(data, dict):
        return data
    kind = data.get(_TYPE)
    if kind == "array":
        return _array_from_dict(data)
    if kind == "float":
        return float(data["value"])
    if kind == "dict":
        return {k: from_dict(v) for k, v in data["items"].items()}
    if kind not in _KINDS:
        # Types are known once their modules are imported.
        for package in _PACKAGES:
            importlib.import_module(f"mixer_probe.{package}")
    if kind not in _KINDS:
        raise StoreError(
            f"'{kind}' is not a result type of this version of mixer_probe; "
            f"{closest(str(kind), sorted(_KINDS))}"
        )
    cls: Any = _KINDS[kind]
    known = {f.name for f in dataclasses.fields(cls)}
    fields = {k: from_dict(v) for k, v in data.items() if k in known}
    for name, value in fields.items():
        declared = field_types(cls).get(name, Any)
        if not fits(value, declared):
            raise StoreError(
                f"'{name}' of a {cls.__name__} is a {type(value).__name__}, not {spelled(declared)}"
            )
    try:
        found = cls(**fields)
        sizes(found)
    except ValueError as error:
        raise StoreError(str(error)) from error
    except TypeError as error:
        raise StoreError(
            f"a {cls.__name__} of another version of mixer_probe: "
            f"{textwrap.shorten(str(error), 200)}"
        ) from error
    return found


def _array_from_dict(data: dict[str, Any]) -> np.ndarray:
    """The array that JSON data describes, once its shape and type are known to match what the data
    holds."""
    if "npy_base64" in data:
        content = base64.b64decode(data["npy_base64"], validate=True)
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read_header: Any = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        n_bytes = len(content) - stream.tell()
        if dtype.hasobject:
            raise StoreError("an array of Python objects is never read")
        if math.prod(shape) * dtype.itemsize != n_bytes:
            raise StoreError(
                f"an array declares the shape {shape} of '{dtype}' and has {n_bytes} bytes"
            )
        stream.seek(0)
        return np.asarray(np.load(stream, allow_pickle=False))
    dtype, shape, values = np.dtype(data["dtype"]), data["shape"], data["values"]
    kinds = _JSON_KINDS.get(dtype.kind)
    if kinds is None or not isinstance(values, list) or not all(type(v) in kinds for v in values):
        raise StoreError(f"an array of '{dtype}' has values that do not match this type")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(values):
        raise StoreError(f"an array declares the shape {shape} and has {len(values)} values")
    if dtype.kind == "U" and dtype.itemsize * len(values) > max(
        _FREE_BYTES, 64 * sum(map(len, values))
    ):
        raise StoreError(
            f"an array of {len(values)} texts declares {dtype.itemsize} bytes for each, and they "
            "are much shorter"
        )
    return np.array(values, dtype=dtype).reshape(shape)


@dataclass(frozen=True)
class SavedResults:
    """A results file: its results, what it takes to make them again, and the title of their report
    ("" for none)."""

    results: tuple[Any, ...]
    settings: dict[str, Any]
    title: str = ""


def save_results(
    results: Iterable[Result],
    path: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    title: str = "",
) -> Path:
    """Write results as one JSON file, whole or not at all. Raises StoreError if it cannot be
    written."""
    return write_text(Path(path), results_text(results, settings, title))


def results_text(
    results: Iterable[Result], settings: Mapping[str, Any] | None = None, title: str = ""
) -> str:
    """What `save_results` writes. Raises StoreError for settings that are no JSON data."""
    try:
        # As they are read again: keys that are numbers become texts.
        plain = json.loads(json.dumps(dict(settings or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"settings must be JSON data to be written with results ({error}); give plain values"
        ) from error
    content = {
        "format": FORMAT,
        "title": title,
        "settings": plain,
        "results": [to_dict(r) for r in results],
    }
    return json.dumps({**content, "checksum": checksum(content)})


def load_results(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """The results of a file written by `save_results` or a report, or of the folder of a report.

    Raises StoreError if the file is missing, of another version, damaged or edited, or holds what
    no result can be."""
    return open_results(path).results


def open_results(path: str | os.PathLike[str]) -> SavedResults:
    """A results file, or that in the folder of a report, with its settings. Raises as
    `load_results`."""
    place = Path(path)
    name = printable(place)
    try:
        if place.is_dir() and not (place / FILE_NAME).exists():
            raise StoreError(
                f"cannot read results from {name}: there is no {FILE_NAME} in this folder; give "
                "that of a report"
            )
        content = json.loads(
            (place / FILE_NAME if place.is_dir() else place).read_text(encoding="utf-8")
        )
        if what := format_mismatch(content, FORMAT):
            raise StoreError(f"{name} is not a results file of this version ({what}); recreate it")
        said = content.pop("checksum", None)
        if said != checksum(content):
            what = (
                "has no checksum"
                if said is None
                else "has been damaged or edited: its checksum does not match"
            )
            raise StoreError(f"{name} {what}; {_AGAIN}")
    except OSError as error:
        raise StoreError(f"cannot read results from {name}: {reason(error)}") from error
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(
            f"{name} is not a results file: it is not valid JSON ({printable(error)}); {_AGAIN}"
        ) from error
    except RecursionError as error:
        raise StoreError(
            f"{name} is not a results file: it is nested deeper than any result; {_AGAIN}"
        ) from error
    try:
        results = tuple(from_dict(r) for r in content["results"])
        odd = next((r for r in results if not isinstance(r, Result)), None)
        if odd is not None:
            raise StoreError(f"a {type(odd).__name__} is not a result")
        settings: Mapping[str, Any] = content["settings"]
        return SavedResults(results, {**settings}, str(content["title"]))
    except Exception as error:
        # Fields of the right types can still contradict each other in as many ways as there are
        # results.
        why = error if isinstance(error, StoreError) else f"{type(error).__name__} {error}"
        raise StoreError(
            f"{name} contains data that is not a result of this version of mixer_probe: {why}"
        ) from error
