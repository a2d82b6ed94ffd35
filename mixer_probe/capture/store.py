"""The on-disk store of a run: a zarr group with one labelled array a layer. Half a run is never taken for a whole one.

While a run is being written it lives in `NAME.partial` beside its final place, with a note of how many images are done;
it moves to `NAME` in one step at the end. Starting the same run again goes on after the last image that was written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixer_probe.capture.representations import PREFIX, Representations, RunRecord, count_non_finite
from mixer_probe.core.files import write_text
from mixer_probe.errors import StoreError
from mixer_probe.models.layer import Layer
from mixer_probe.results import from_dict, to_dict

if TYPE_CHECKING:
    import zarr

FORMAT = "mixer-probe run 1"
_CHUNK_BYTES = 16 * 2**20
_PROGRESS = "progress.json"


def partial_path(out: Path) -> Path:
    """Where an unfinished run lives."""
    return out.with_name(out.name + ".partial")


class RunWriter:
    """Writes a run chunk by chunk; a context manager that finishes the run, or on an error keeps what there is of it.

    `done` is the number of images that are safely on disk."""

    def __init__(
        self,
        out: Path,
        record: RunRecord,
        ids: tuple[str, ...],
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
    ) -> None:
        """Open the place, and go on with the same run if an unfinished one is there.

        Raises StoreError if something else is there, or the place cannot be written to."""
        self._out = out
        self._path = partial_path(out)
        self._record = record
        self._n = len(ids)
        self._rows = chunk_rows(record)
        self._buffer: list[Mapping[str, np.ndarray]] = []
        self._waiting = 0
        self.done = 0
        self.non_finite: dict[str, int] = {}
        with self._disk():
            if not self._resume():
                self._begin(ids, labels, class_names)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        elif not issubclass(kind, StoreError):
            # Whatever stopped the run is what the caller has to hear about.
            with suppress(StoreError):
                self._flush(self._waiting)

    def _resume(self) -> bool:
        """Whether an unfinished run with at least one image is there and was opened."""
        import zarr

        progress = _read_progress(self._path)
        occupied = self._path.is_dir() and any(self._path.iterdir())
        if progress is None and occupied:
            raise StoreError(f"{self._path} is in the way and is no unfinished run; delete it or choose another place")
        if progress and progress["identity"] != self._record.identity():
            raise StoreError(f"{self._path} holds another unfinished run; finish it, delete it or choose another place")
        if not progress or not progress["done"]:
            return False
        self.done, self.non_finite = int(progress["done"]), dict(progress["non_finite"])
        self._group = zarr.open_group(self._path, mode="r+")
        return True

    def _begin(self, ids: tuple[str, ...], labels: np.ndarray | None, class_names: tuple[str, ...] | None) -> None:
        import zarr

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._group = zarr.open_group(self._path, mode="w")
        self._note()
        about = {"format": FORMAT, "complete": False, "run": to_dict(self._record), "coordinates": "image_id"}
        self._group.attrs.update({**about, "class_names": list(class_names) if class_names else None})
        self._create("image_id", "str", "auto", ())[:] = np.array(ids, dtype=object)
        if labels is not None:
            self._create("label", "int64", "auto", ())[:] = np.asarray(labels, dtype=np.int64)
        for name, (shape, dimensions) in _arrays_of(self._record).items():
            chunks = (min(self._rows, self._n), *shape)
            self._create(name, self._record.dtype, chunks, dimensions, shape, fill_value=np.nan)

    def _create(
        self,
        name: str,
        dtype: str,
        chunks: tuple[int, ...] | Literal["auto"],
        dimensions: tuple[str, ...],
        shape: tuple[int, ...] = (),
        **settings: Any,
    ) -> zarr.Array[Any]:
        return self._group.create_array(
            name,
            shape=(self._n, *shape),
            dtype=dtype,
            chunks=chunks,
            dimension_names=("image", *dimensions),
            **settings,
        )

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the arrays of the images from `start` on; those that are there already are left out.

        They reach the disk whole chunks at a time. Raises StoreError on a full disk."""
        known = self.done + self._waiting - start
        self._buffer.append({name: array[max(known, 0) :] for name, array in arrays.items()})
        self._waiting += _length(self._buffer[-1])
        end = self.done + self._waiting
        self._flush(end - end % self._rows - self.done)

    def _flush(self, rows: int) -> None:
        if rows <= 0:
            return
        joined = {name: np.concatenate([a[name] for a in self._buffer]) for name in self._buffer[0]}
        now = {name: array[:rows] for name, array in joined.items()}
        with self._disk():
            for name, array in now.items():
                _array(self._group, name)[self.done : self.done + rows] = array
        count_non_finite(now, self.non_finite)
        self._buffer = [{name: array[rows:] for name, array in joined.items()}]
        self._waiting -= rows
        self.done += rows
        self._note()

    def _note(self) -> None:
        content = {"identity": self._record.identity(), "done": self.done, "n": self._n, "non_finite": self.non_finite}
        write_text(self._path / _PROGRESS, json.dumps(content))

    def _finish(self) -> None:
        """Write what is left, mark the run complete, and move it to its place."""
        import zarr

        self._flush(self._waiting)
        if self.done != self._n:
            raise StoreError(f"{self._path} holds {self.done} of {self._n} images; it was not finished")
        with self._disk(), warnings.catch_warnings():
            # zarr warns that format 3 has no final word on consolidated metadata; xarray warns where it is missing.
            warnings.simplefilter("ignore")
            self._group.attrs.update({"complete": True, "non_finite": self.non_finite})
            zarr.consolidate_metadata(str(self._path))
            self._path.replace(self._out)
            (self._out / _PROGRESS).unlink()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What the operating system refuses, as a sentence with a way out."""
        import zarr

        try:
            # Every chunk is a file, whatever it holds, so that a lost one is noticed.
            with zarr.config.set({"array.write_empty_chunks": True}):
                yield
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"could not write to {self._path} ({reason}); {self.done} of {self._n} images are safe: "
                "make room and run the same again to go on"
            ) from error


def check_place(out: Path, record: RunRecord) -> Representations | None:
    """The finished run at `out` if it is this very run, None if the place is free. Raises StoreError if it is taken."""
    if not out.exists():
        return None
    try:
        found = open_run(out)
    except StoreError as error:
        raise StoreError(f"{out} is in the way: {error}; choose another place or delete it") from error
    if found.record.identity() != record.identity():
        raise StoreError(f"{out} already holds another run ({found!r}); choose another place or delete it")
    return found


def open_run(path: str | Path) -> Representations:
    """A stored run as `extract` returned it; arrays are read when they are asked for.

    Raises StoreError for a path that holds no run, an unfinished one, or one of which files are missing."""
    place = Path(path)
    unfinished = place if place.name.endswith(".partial") else partial_path(place)
    progress = _read_progress(unfinished)
    if progress and (place == unfinished or not place.exists()):
        raise StoreError(
            f"the run at {place} is unfinished ({progress['done']} of {progress['n']} images); "
            "run the same extract again to finish it"
        )
    group = _open_group(place)
    try:
        return _representations(group)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise StoreError(f"the run at {place} is damaged ({error}); delete it and run extract again") from error


def _open_group(place: Path) -> zarr.Group:
    import zarr

    try:
        group = zarr.open_group(place, mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"no run at {place}; give the folder that extract wrote with out=") from error
    if group.attrs.get("format") != FORMAT:
        raise StoreError(f"{place} is no run of this version of mixer_probe (expected format '{FORMAT}')")
    if not group.attrs.get("complete"):
        raise StoreError(f"the run at {place} is unfinished; run the same extract again to finish it")
    return group


def _representations(group: zarr.Group) -> Representations:
    attrs = dict(group.attrs)
    record: RunRecord = from_dict(attrs["run"])
    found = {name: _whole_array(group, name) for name in _arrays_of(record)}
    arrays = {name: array for name, array in found.items() if not name.startswith(PREFIX)}
    prefixes = {name.removeprefix(PREFIX): array for name, array in found.items() if name.startswith(PREFIX)}
    labels = np.asarray(_whole_array(group, "label")[...]) if "label" in group else None
    ids = [str(i) for i in np.asarray(_whole_array(group, "image_id")[...])]
    names: Any = attrs["class_names"]
    non_finite: Any = attrs["non_finite"]
    return Representations(record, arrays, prefixes, ids, labels, tuple(names) if names else None, non_finite)


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array: Any = group[name]
    return array  # type: ignore[no-any-return]


def _whole_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of the run. Raises ValueError if chunks of it are missing, which zarr would read as NaN."""
    array = _array(group, name)
    if array.nchunks_initialized != array.nchunks:
        raise ValueError(f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of '{name}' are missing")
    return array


def stored_shape(layer: Layer, reduce: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape of one image's numbers and the names of their dimensions.

    Sizes are part of the names, since a dimension has one size in a store and layers differ."""
    if reduce != "none" or layer.positions == 0:
        return (layer.channels,), (_channels(layer),)
    label = "x".join(map(str, layer.grid)) if layer.grid else str(layer.positions)
    return (layer.positions, layer.channels), (f"position_{label}", _channels(layer))


def _arrays_of(record: RunRecord) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Every array of a run with its `stored_shape`: one a layer, and under "prefix/" one a layer with prefix tokens."""
    arrays = {layer.name: stored_shape(layer, record.reduce) for layer in record.layers}
    if record.reduce == "none":
        for layer in record.layers:
            if layer.prefix_tokens:
                tokens = f"token_{layer.prefix_tokens}"
                arrays[PREFIX + layer.name] = (layer.prefix_tokens, layer.channels), (tokens, _channels(layer))
    return arrays


def _channels(layer: Layer) -> str:
    return f"channel_{layer.channels}"


def chunk_rows(record: RunRecord) -> int:
    """Images a chunk: as many as keep the largest array's chunk near 16 MiB, at least one."""
    itemsize = np.dtype(record.dtype).itemsize
    largest = max(int(np.prod(stored_shape(layer, record.reduce)[0])) for layer in record.layers)
    return int(np.clip(_CHUNK_BYTES // (largest * itemsize), 1, 1024))


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


def _read_progress(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((path / _PROGRESS).read_text())
    except (OSError, ValueError):
        return None
    return content
