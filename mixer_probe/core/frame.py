"""`Frame`: how a result is a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.core.dimensions import OF_FIELD, dimensions, sizes
from mixer_probe.core.typed import field_types, fits

_OVER_AXES: dict[str, Callable[..., Any]] = {
    "mean": np.mean,
    "min": np.min,
    "max": np.max,
    "sum": lambda a, axis: a.sum(axis, dtype=np.float64 if a.dtype.kind == "f" else None),
    "first": lambda a, axis: a[tuple(0 if k in axis else slice(None) for k in range(a.ndim))],
}


@dataclass(frozen=True)
class Frame:
    """A table with one row per element of the dimensions `rows`, the last of which is the fastest.

    `columns` are fields and properties of a result, repeated along the dimensions that they do not
    have:

    - "layers.name" is a field of a record, or of every record of a tuple. Where a record is None,
      its name is "" and its numbers are NaN.
    - "accuracy.mean" is the mean (also "min", "max", "sum", "first") over the dimensions that are
      no rows.
    - "channel", a dimension, counts along it from 0 ("rank" from 1), and is its size where it is no
      row.
    - "layer=layers.name" calls a column "layer", which else is called like the last word.
    - "low,high=interval" makes columns of the last axis.

    Below are the rows of the result in the field `below`, if any."""

    rows: str
    columns: str
    below: str = ""

    def of(self, result: Any, more: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The table of a result, with `more` columns: arrays over the rows, or of shapes that
        broadcast to them."""
        rows, size = tuple(self.rows.split()), sizes(result)
        shape, found = [size[row] for row in rows], dict[str, Any]()
        for column in self.columns.split():
            names, _, path = column.rpartition("=")
            dims, values = _find(result, path, rows, size)
            parts = (names or path.rpartition(".")[2]).split(",")
            if len(parts) > 1:
                values = np.moveaxis(np.asarray(values), -1, 0)
                dims = tuple(d for d in dims if d in rows)
            else:
                values = [values]
            for name, part in zip(parts, values, strict=True):
                if not set(dims) <= set(rows):
                    raise ValueError(f"'{column}' has the dimensions {dims}, and not {rows}")
                order = sorted(range(len(dims)), key=lambda k: rows.index(dims[k]))
                found[name] = (
                    np.asarray(part)
                    .transpose(order)
                    .reshape([size[row] if row in dims else 1 for row in rows])
                )
        found.update(more or {})
        frame = pd.DataFrame({k: np.broadcast_to(v, shape).ravel() for k, v in found.items()})
        rest = getattr(result, self.below) if self.below else None
        return frame if rest is None else pd.concat([frame, self.of(rest)], ignore_index=True)


def _find(
    result: Any, path: str, rows: tuple[str, ...], size: Mapping[str, Any]
) -> tuple[tuple[str, ...], Any]:
    """The dimensions and values of a column."""
    cls: Any = type(result)
    root, *steps = path.split(".")
    if root in size and not hasattr(result, root):
        counted = int(root == "rank") + np.arange(size[root])
        return ((root,), counted) if root in rows else ((), size[root])
    dims, values = dimensions(cls, root), getattr(result, root)
    if values is None or (isinstance(values, tuple) and not values and size[dims[0]]):
        # An optional field that is not known.
        text = fits(("",), field_types(cls).get(root))
        dims, values = (), "" if text else None
    for step in steps:
        absent = "" if step == "name" else math.nan
        if values is None:
            values = absent
        elif isinstance(values, tuple) and step not in _OVER_AXES:
            values = tuple(absent if one is None else getattr(one, step) for one in values)
        elif dims and step in _OVER_AXES and not is_dataclass(values):
            over = tuple(k for k, d in enumerate(dims) if d not in rows)
            dims = tuple(d for d in dims if d in rows)
            values = _OVER_AXES[step](np.asarray(values), axis=over)
        else:
            cls = type(values)
            own, values = dimensions(cls, step), getattr(values, step)
            dims = dims if own == OF_FIELD else own
    return ((), math.nan) if values is None else (dims, values)
