"""`Rows`: an array with one row per image that lies on disk, of which parts are read when they are
asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_probe.core.memory import ROWS


class Rows:
    """Some rows of a stored `array` as an array: `rows[k]` reads those at `k`, a slice, integers or
    `...`, and nothing else does.

    `indices` are the rows of `array` that these are, None for all."""

    def __init__(self, array: Any, indices: np.ndarray | None = None) -> None:
        self._array, self._indices = array, indices
        self.dtype = array.dtype
        n = array.shape[0] if indices is None else len(indices)
        self.shape: tuple[int, ...] = (n, *array.shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = rows if self._indices is None else self._indices[rows]
        if not isinstance(chosen, np.ndarray) or chosen.dtype == bool:
            return np.asarray(self._array[chosen])
        # Block by block: rows from all of the array at once would decode much of it at once.
        found = np.empty((len(chosen), *self.shape[1:]), dtype=self.dtype)
        block = chosen // ROWS
        for k in np.unique(block):
            mine = np.flatnonzero(block == k)
            found[mine] = self._array[chosen[mine]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype=dtype)


def take_rows(X: Any, indices: np.ndarray) -> Any:
    """Some rows of an array or of `Rows`, which stay on disk."""
    return Rows(X, indices) if isinstance(X, Rows) else X[indices]
