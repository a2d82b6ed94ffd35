"""The on-disk store of a run: a zarr group with one labelled array a layer, written so that half a run is never taken for one.

While a run is being written it lives in `NAME.partial` beside its final place, with a note of how many images are done; it
moves to `NAME` in one step at the end. Starting the same run again goes on after the last image that was written.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mixer_probe.capture.representations import Representations, RunRecord
from mixer_probe.errors import StoreError
from mixer_probe.models.layer import Layer
from mixer_probe.results import from_dict, to_dict, write_text_atomically

FORMAT = "mixer-probe run 1"
_CHUNK_BYTES = 16 * 2**20
_PREFIX = "prefix"
_PROGRESS = "progress.json"


def partial_path(out: Path) -> Path:
    """Where an unfinished run lives."""
    return out.with_name(out.name + ".partial")


class RunWriter:
    """Writes a run chunk by chunk. `done` is the number of images that are safely on disk; start there."""

    def __init__(
        self, out: Path, record: RunRecord, ids: tuple[str, ...], labels: np.ndarray | None, class_names: tuple[str, ...] | None
    ) -> None:
        self._out = out
        self._path = partial_path(out)
        self._record = record
        self._n = len(ids)
        self._rows = chunk_rows(record.layers, record)
        self._buffer: list[Mapping[str, np.ndarray]] = []
        self._group, self.done, self.non_finite = self._open(ids, labels, class_names)

    def _open(
        self, ids: tuple[str, ...], labels: np.ndarray | None, class_names: tuple[str, ...] | None
    ) -> tuple[zarr.Group, int, dict[str, int]]:
        progress = _read_progress(self._path)
        if progress and progress["identity"] == self._record.identity():
            return zarr.open_group(self._path, mode="r+"), int(progress["done"]), dict(progress["non_finite"])
        if self._path.exists():
            shutil.rmtree(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(self._path, mode="w")
        self._create(group, ids, labels, class_names)
        return group, 0, {}

    def _create(
        self, group: zarr.Group, ids: tuple[str, ...], labels: np.ndarray | None, class_names: tuple[str, ...] | None
    ) -> None:
        group.attrs.update({"format": FORMAT, "complete": False, "run": to_dict(self._record), "coordinates": "image_id"})
        group.attrs["class_names"] = list(class_names) if class_names else None
        names = group.create_array("image_id", shape=(self._n,), dtype="str", dimension_names=("image",))
        names[:] = np.array(ids, dtype=object)
        if labels is not None:
            group.create_array("label", data=np.asarray(labels, dtype=np.int64), dimension_names=("image",))
        for layer in self._record.layers:
            shape, dims = stored_shape(layer, self._record.reduce)
            self._create_array(group, layer.name, shape, dims)
            if self._record.reduce == "none" and layer.prefix_tokens:
                tokens = f"{_PREFIX}_{layer.prefix_tokens}"
                self._create_array(
                    group, f"{_PREFIX}/{layer.name}", (layer.prefix_tokens, layer.channels), (tokens, _channels(layer))
                )

    def _create_array(self, group: zarr.Group, name: str, shape: tuple[int, ...], dims: tuple[str, ...]) -> None:
        group.create_array(
            name,
            shape=(self._n, *shape),
            chunks=(min(self._rows, self._n), *shape),
            dtype=self._record.dtype,
            dimension_names=("image", *dims),
        )

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the next images' arrays; they reach the disk a whole chunk at a time. Raises StoreError on a full disk."""
        self._buffer.append(arrays)
        while self._waiting() >= self._rows:
            self._flush(self._rows)

    def _waiting(self) -> int:
        return sum(len(next(iter(arrays.values()))) for arrays in self._buffer)

    def _flush(self, rows: int) -> None:
        joined = {name: np.concatenate([a[name] for a in self._buffer]) for name in self._buffer[0]}
        try:
            for name, array in joined.items():
                self._group[name][self.done : self.done + rows] = array[:rows]
        except OSError as error:
            raise StoreError(
                f"could not write to {self._path} ({error.strerror or error}); {self.done} of {self._n} images are safe: "
                "make room and run the same again to go on"
            ) from error
        count_non_finite({name: array[:rows] for name, array in joined.items()}, self.non_finite)
        self._buffer = [{name: array[rows:] for name, array in joined.items()}]
        self.done += rows
        self._note()

    def _note(self) -> None:
        content = {"identity": self._record.identity(), "done": self.done, "n": self._n, "non_finite": self.non_finite}
        write_text_atomically(self._path / _PROGRESS, json.dumps(content))

    def finish(self) -> Path:
        """Write what is left, mark the run complete, and move it to its place."""
        left = self._waiting()
        if left:
            self._flush(left)
        if self.done != self._n:
            raise StoreError(f"{self._path} holds {self.done} of {self._n} images; it was not finished")
        self._group.attrs.update({"complete": True, "non_finite": self.non_finite})
        (self._path / _PROGRESS).unlink(missing_ok=True)
        with warnings.catch_warnings():
            # zarr warns that format 3 has no final word on consolidated metadata; xarray warns where it is missing.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(self._path))
        self._path.replace(self._out)
        return self._out


def check_place(out: Path, record: RunRecord) -> Representations | None:
    """The finished run at `out` if it is this very run, None if the place is free. Raises StoreError if it is taken."""
    if not out.exists():
        return None
    try:
        found = open_run(out)
    except StoreError as error:
        raise StoreError(f"{out} exists and is no run of mixer_probe; choose another place") from error
    if found.record.identity() != record.identity():
        raise StoreError(f"{out} already holds another run ({found!r}); choose another place or delete it")
    return found


def open_run(path: str | Path) -> Representations:
    """A stored run as `extract` returned it; arrays are read when they are asked for.

    Raises StoreError for a path that holds no run, or an unfinished one."""
    place = Path(path)
    unfinished = place if place.name.endswith(".partial") else partial_path(place)
    progress = _read_progress(unfinished)
    if progress and (place == unfinished or not place.exists()):
        raise StoreError(
            f"the run at {place} is unfinished ({progress['done']} of {progress['n']} images); run the same extract again to finish it"
        )
    try:
        group = zarr.open_group(place, mode="r")
        attrs = dict(group.attrs)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"no run at {place}; give the folder that extract wrote with out=") from error
    if attrs.get("format") != FORMAT:
        raise StoreError(f"{place} is no run of this version of mixer_probe (expected format '{FORMAT}')")
    if not attrs.get("complete"):
        raise StoreError(f"the run at {place} is unfinished; run the same extract again to finish it")
    return _representations(group, attrs)


def _representations(group: zarr.Group, attrs: dict[str, Any]) -> Representations:
    record: RunRecord = from_dict(attrs["run"])
    arrays = {layer.name: group[layer.name] for layer in record.layers}
    prefixes = {}
    if record.reduce == "none":
        prefixes = {layer.name: group[f"{_PREFIX}/{layer.name}"] for layer in record.layers if layer.prefix_tokens}
    labels = np.asarray(group["label"][...]) if "label" in group else None
    names = attrs.get("class_names")
    ids = [str(i) for i in np.asarray(group["image_id"][...])]
    return Representations(record, arrays, prefixes, ids, labels, tuple(names) if names else None, attrs["non_finite"])


def stored_shape(layer: Layer, reduce: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape of one image's numbers and the names of their dimensions. Sizes are part of the names, since a dimension has one
    size in a store and layers differ."""
    if reduce != "none" or layer.positions == 0:
        return (layer.channels,), (_channels(layer),)
    label = "x".join(map(str, layer.grid)) if layer.grid else str(layer.positions)
    return (layer.positions, layer.channels), (f"position_{label}", _channels(layer))


def _channels(layer: Layer) -> str:
    return f"channel_{layer.channels}"


def chunk_rows(layers: tuple[Layer, ...], record: RunRecord) -> int:
    """Images a chunk: as many as keep the largest array's chunk near 16 MiB, at least one."""
    itemsize = np.dtype(record.dtype).itemsize
    largest = max(int(np.prod(stored_shape(layer, record.reduce)[0])) for layer in layers)
    return int(np.clip(_CHUNK_BYTES // (largest * itemsize), 1, 1024))


def count_non_finite(arrays: Mapping[str, np.ndarray], counts: dict[str, int]) -> None:
    """Add the number of NaN and infinite values of each array to `counts`; finite arrays get no entry."""
    for name, array in arrays.items():
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            counts[name] = counts.get(name, 0) + bad


def _read_progress(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((path / _PROGRESS).read_text())
    except (OSError, ValueError):
        return None
    return content
