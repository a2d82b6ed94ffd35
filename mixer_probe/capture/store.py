"""The on-disk store of a run: a zarr group with one labelled array a layer. Half a run is never
taken for a whole one.

While a run is being written it lives in `NAME.partial` beside its final place, with a note of how
many images are done; it moves to `NAME` in one step at the end. Starting the same run again goes on
after the last image that was written. What the note counts is on the disk before the note says so.

Chunks carry a CRC-32C, and the group a digest over its attributes, the metadata of all arrays, and
the names and labels of the images: what was damaged since is refused when it is read.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixer_probe.capture.representations import PREFIX, Representations, RunRecord, count_non_finite
from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import (
    checksum,
    is_leftover,
    make_folder,
    only_writer,
    printable,
    reason,
    remedy,
    sync,
    write_text,
)
from mixer_probe.core.fingerprint import keys_by_name, keys_of
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.models.layer import Layer

if TYPE_CHECKING:
    import zarr

    from mixer_probe.capture.stream import ImageSource, Piece

FORMAT = "mixer-probe run 2"
_CHUNK_BYTES = 16 * 2**20
_PROGRESS = "progress.json"
_AGAIN = "delete it and run the same extract again"
# Attributes that a run has only when it is finished.
_LAST = ("complete", "non_finite", "digest")


def partial_path(out: Path) -> Path:
    """Where an unfinished run lives."""
    return out.with_name(out.name + ".partial")


def writing(out: Path) -> AbstractContextManager[None]:
    """Hold the place against other writers. Raises StoreError if another process or thread writes a
    run there."""
    return only_writer(out, out.parent / f".{out.name}.lock")


def stored(
    out: Path,
    record: RunRecord,
    source: ImageSource,
    pieces: Callable[[int], Generator[tuple[Piece, dict[str, np.ndarray]]]],
    batch_size: int,
) -> Representations:
    """The run at `out`: the finished one, or written there from the `pieces` from an image on,
    continued where an unfinished one is there.

    Raises StoreError if something else is there, it is damaged, or another process or thread writes
    a run there."""
    finished = check_place(out, record)
    if finished is not None:
        return finished
    with writing(out):
        finished = check_place(out, record)
        if finished is not None:
            # Another process has just written it.
            return finished
        with RunWriter(
            out, record, source.ids, source.labels, source.class_names, keys_of(source)
        ) as writer:
            # From the beginning of a batch, so that batches and with them the last bits are those
            # of an uninterrupted run.
            start = writer.done - writer.done % batch_size
            with closing(pieces(start)) as found:
                for piece, arrays in found:
                    writer.write(piece.start, arrays)
        return open_run(out)


class RunWriter:
    """Writes a run chunk by chunk; a context manager that finishes the run, or on an error keeps
    what there is of it.

    `done` is the number of images that are safely on disk. Used inside `writing`."""

    def __init__(
        self,
        out: Path,
        record: RunRecord,
        ids: tuple[str, ...],
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        keys: tuple[str, ...] | None = None,
    ) -> None:
        """Open the place, and go on with the same run if an unfinished one is there.

        Raises StoreError if something else is there, it is damaged, or the place cannot be written
        to."""
        self._out = out
        self._path = partial_path(out)
        self._record = record
        self._n = len(ids)
        self._rows = chunk_rows(record)
        self._buffer: list[Mapping[str, np.ndarray]] = []
        self._waiting = 0
        self._columns = _columns(ids, keys or keys_by_name(record.images.fingerprint, ids), labels)
        self._class_names = list(map(printable, class_names)) if class_names else None
        self._layout: str | None = None
        self.done = 0
        self.non_finite: dict[str, int] = {}
        import zarr

        with self._disk():
            if self._resume():
                return
            make_folder(self._path)
            # First of all: whatever happens from here on, the folder is known to be this run, of
            # which nothing is there yet.
            self._note()
            for entry in self._path.iterdir():
                if entry.name != _PROGRESS:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self._group = zarr.create_group(self._path)
            about = {"format": FORMAT, "run": to_dict(self._record), "coordinates": "image_id"}
            self._group.attrs.update({**about, "class_names": self._class_names, "complete": False})
            for name, values in self._columns.items():
                dtype = "int64" if name == "label" else "str"
                self._create(name, dtype, "auto", ())[:] = np.array(
                    values, dtype=np.int64 if name == "label" else object
                )
            for name, (shape, dimensions) in _arrays_of(self._record).items():
                chunks = (min(self._rows, self._n), *shape)
                self._create(name, self._record.dtype, chunks, dimensions, shape, fill_value=np.nan)
            self._layout = self._found_layout()
            sync([self._path, *self._path.rglob("*")])
            self._note()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            if not issubclass(kind, StoreError):
                # Whatever stopped the run is what the caller has to hear about.
                with suppress(StoreError):
                    self._flush(self._waiting)
            return
        import zarr

        self._flush(self._waiting)
        if self.done != self._n:
            raise StoreError(
                f"{self._path} holds {self.done} of {self._n} images; it was not finished"
            )
        with self._disk(), warnings.catch_warnings():
            # zarr warns that format 3 has no final word on consolidated metadata; xarray warns
            # where it is missing.
            warnings.simplefilter("ignore")
            self._group.attrs.update({"complete": True, "non_finite": self.non_finite})
            root, nodes = _read_metadata(self._path, [*self._columns, *_arrays_of(self._record)])
            self._group.attrs.update({"digest": _digest(root, nodes, self._columns)})
            zarr.consolidate_metadata(str(self._path))
            sync([self._path / "zarr.json", self._path])
            self._path.replace(self._out)
            sync([self._out.parent])
            (self._out / _PROGRESS).unlink()

    def _resume(self) -> bool:
        """Whether an unfinished run with at least one image is there and was opened."""
        import zarr

        note = _read_note(self._path)
        if note is None:
            if self._path.exists() and not (
                self._path.is_dir() and all(map(is_leftover, self._path.iterdir()))
            ):
                raise StoreError(
                    f"{self._path} already exists and is no resumable extraction; delete it or "
                    "choose another"
                )
            return False
        if note["identity"] != self._record.identity() or note["columns"] != checksum(
            self._columns
        ):
            raise StoreError(
                f"{self._path} holds another unfinished run; finish it, delete it or choose "
                "another place"
            )
        if not note["done"]:
            return False
        self.done, self.non_finite, self._layout = (
            int(note["done"]),
            dict(note["non_finite"]),
            note["layout"],
        )
        if self._found_layout() != self._layout:
            raise _damaged(self._path, "its zarr.json files are not as they were written")
        self._group = zarr.open_group(self._path, mode="r+", use_consolidated=False)
        for name, values in self._columns.items():
            if _plain(StoredArray(self._group, name, self._path)[...]) != values:
                raise _damaged(self._path, f"'{name}' is not as it was written")
        for name in _arrays_of(self._record):
            array = StoredArray(self._group, name, self._path)
            array.check_chunks(slice(0, self.done))
            # What is written next may have to be joined with it.
            array[self.done - 1 : self.done]
        return True

    def _create(
        self,
        name: str,
        dtype: str,
        chunks: tuple[int, ...] | Literal["auto"],
        dimensions: tuple[str, ...],
        shape: tuple[int, ...] = (),
        **settings: Any,
    ) -> zarr.Array[Any]:
        from zarr.codecs import Crc32cCodec, ZstdCodec

        return self._group.create_array(
            name,
            shape=(self._n, *shape),
            dtype=dtype,
            chunks=chunks,
            compressors=[ZstdCodec(), Crc32cCodec()],
            dimension_names=("image", *dimensions),
            **settings,
        )

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the arrays of the images from `start` on; those that are there already are left out.

        They reach the disk whole chunks at a time. Raises StoreError on a full disk."""
        known = self.done + self._waiting - start
        self._buffer.append({name: array[max(known, 0) :] for name, array in arrays.items()})
        self._waiting += len(next(iter(self._buffer[-1].values())))
        end = self.done + self._waiting
        self._flush(end - end % self._rows - self.done)

    def _flush(self, rows: int) -> None:
        if rows <= 0:
            return
        joined = {name: np.concatenate([a[name] for a in self._buffer]) for name in self._buffer[0]}
        now = {name: array[:rows] for name, array in joined.items()}
        written = slice(self.done, self.done + rows)
        with self._disk():
            for name, array in now.items():
                _array(self._group, name)[written] = array
            files = [
                f
                for name in now
                for f in StoredArray(self._group, name, self._path).chunk_files(written)
            ]
            sync(
                {
                    *files,
                    *(
                        folder
                        for file in files
                        for folder in file.parents
                        if folder.is_relative_to(self._path)
                    ),
                }
            )
        count_non_finite(now, self.non_finite)
        self._buffer = [{name: array[rows:] for name, array in joined.items()}]
        self._waiting -= rows
        self.done += rows
        self._note()

    def _note(self) -> None:
        content = {
            "identity": self._record.identity(),
            "columns": checksum(self._columns),
            "layout": self._layout,
            "done": self.done,
            "n": self._n,
            "non_finite": self.non_finite,
        }
        with self._disk():
            write_text(
                self._path / _PROGRESS, json.dumps({**content, "checksum": checksum(content)})
            )

    def _found_layout(self) -> str:
        """Checksum of what describes the arrays, as it is on the disk."""
        root, nodes = _read_metadata(self._path, [*self._columns, *_arrays_of(self._record)])
        attributes = {key: value for key, value in root["attributes"].items() if key not in _LAST}
        return checksum([attributes, nodes])

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What the operating system refuses, as a sentence with a way out."""
        import zarr

        try:
            # Every chunk is a file, whatever it holds, so that a lost one is noticed.
            with zarr.config.set({"array.write_empty_chunks": True}):
                yield
        except OSError as error:
            raise StoreError(
                f"could not write to {printable(self._path)} ({reason(error)}); {self.done} of "
                f"{self._n} images are safe: {remedy(error)} and run the same again to go on"
            ) from error


class StoredArray:
    """An array of a run on disk, one row per image, of which `array[rows]` is read: a slice,
    integers, a mask, or `...` for all.

    Raises StoreError where files are damaged or missing, whatever happened to them since the run
    was opened."""

    def __init__(self, group: zarr.Group, name: str, place: Path) -> None:
        """Raises StoreError if there is no such array."""
        self._name, self._place = name, place
        with self._reading():
            self._array = _array(group, name)
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        with self._reading():
            found = np.asarray(self._array[...] if rows is ... else self._array.oindex[rows])
        # Afterwards, because it may have gone just before: zarr fills in what is missing.
        self.check_chunks(rows)
        return found

    def check_chunks(self, rows: Any = ...) -> None:
        """Raise StoreError if a file that holds some of the `rows` is missing."""
        files = self.chunk_files(rows)
        missing = [file for file in files if not file.is_file()]
        if missing:
            first = missing[0].relative_to(self._place)
            raise _damaged(
                self._place,
                f"{len(missing)} of {len(files)} chunks of '{self._name}' are missing, first "
                f"{first}",
            )

    def chunk_files(self, rows: Any = ...) -> list[Path]:
        """The files that hold the `rows`."""
        metadata: Any = self._array.metadata
        chunks = np.unique(np.arange(self.shape[0])[rows] // self._array.chunks[0])
        rest = (0,) * (len(self.shape) - 1)
        return [
            self._place / self._name / metadata.encode_chunk_key((int(i), *rest)) for i in chunks
        ]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot read '{self._name}' of the run at {printable(self._place)}: "
                f"{reason(error)}"
            ) from error
        except (MemoryError, IndexError):
            raise
        except Exception as error:
            # zarr and its codecs raise errors of many kinds.
            raise _damaged(self._place, f"'{self._name}': {error}") from error


def _damaged(place: Path, what: str) -> StoreError:
    return StoreError(f"the run at {printable(place)} is damaged ({printable(what)}); {_AGAIN}")


def check_place(out: Path, record: RunRecord) -> Representations | None:
    """The finished run at `out` if it is this very run, None if the place is free. Raises
    StoreError if it is taken."""
    if not out.exists():
        return None
    try:
        found = open_run(out)
    except StoreError as error:
        raise StoreError(
            f"{printable(out)} already exists: {error}, or choose another place"
        ) from error
    if found.record.identity() != record.identity():
        raise StoreError(
            f"{printable(out)} already holds another run ({found!r}); choose another place or "
            "delete it"
        )
    return found


def open_run(path: str | Path) -> Representations:
    """A stored run as `extract` returned it; arrays are read when they are asked for.

    Raises StoreError for a path that holds no run, an unfinished or a damaged one, or one of
    another version; so does reading an array that was damaged or lost."""
    import zarr

    place = Path(path)
    unfinished = place if place.name.endswith(".partial") else partial_path(place)
    note = _read_note(unfinished) if place == unfinished or not place.exists() else None
    if note:
        raise StoreError(
            f"the run at {printable(place)} is unfinished ({note['done']} of {note['n']} images); "
            "run the same extract again to finish it"
        )
    root = _read_json(place / "zarr.json", place)
    attrs = root.get("attributes")
    if not isinstance(attrs, dict) or attrs.get("format") != FORMAT:
        found = attrs.get("format") if isinstance(attrs, dict) else None
        told = f", found '{found}'" if isinstance(found, str) else ""
        raise StoreError(
            f"{printable(place)} is no run of this version of mixer_probe (expected format "
            f"'{FORMAT}'{told}); extract it again"
        )
    if attrs.get("complete") is not True:
        raise StoreError(
            f"the run at {printable(place)} is unfinished; run the same extract again to finish it"
        )
    try:
        record: RunRecord = from_dict(attrs["run"])
    except (StoreError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(place, f"its record: {error}") from error
    try:
        names = _arrays_of(record)
        consolidated = root["consolidated_metadata"]["metadata"]
        columns = [name for name in _COLUMNS if name in consolidated]
        nodes = _read_metadata(place, [*columns, *names])[1]
        group = zarr.open_group(place, mode="r")
    except OSError as error:
        raise StoreError(f"cannot read the run at {printable(place)}: {reason(error)}") from error
    except StoreError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(place, f"zarr.json: {type(error).__name__} {error}") from error
    if {name: _own(node) for name, node in consolidated.items()} != nodes:
        raise _damaged(place, "zarr.json does not describe the arrays as their own zarr.json do")
    content = {name: _plain(StoredArray(group, name, place)[...]) for name in columns}
    if attrs.get("digest") != _digest(root, nodes, content):
        raise _damaged(
            place,
            "its zarr.json files, or the names and labels of its images, are not as they were "
            "written",
        )
    found = {name: StoredArray(group, name, place) for name in names}
    for array in found.values():
        array.check_chunks()
    arrays = {name: array for name, array in found.items() if not name.startswith(PREFIX)}
    prefixes = {
        name.removeprefix(PREFIX): array for name, array in found.items() if name.startswith(PREFIX)
    }
    labels = np.array(content["label"], dtype=np.int64) if "label" in content else None
    classes, non_finite = attrs["class_names"], attrs["non_finite"]
    named = tuple(classes) if classes else None
    ids, keys = content["image_id"], content["image_key"]
    return Representations(record, arrays, prefixes, ids, labels, named, non_finite, keys)


# -- what describes a run --------------------------------------------------------------------------

_COLUMNS = ("image_id", "image_key", "label")


def _columns(
    ids: Iterable[str], keys: Iterable[str], labels: np.ndarray | None
) -> dict[str, list[Any]]:
    """What is known of every image, by the name of its array: strings, and integers for the
    label."""
    found: dict[str, list[Any]] = {"image_id": [printable(i) for i in ids], "image_key": list(keys)}
    if labels is not None:
        found["label"] = np.asarray(labels, dtype=np.int64).tolist()
    return found


def _plain(values: np.ndarray) -> list[Any]:
    return [v if isinstance(v, int) else str(v) for v in values.tolist()]


def _read_metadata(place: Path, arrays: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The zarr.json of the group, and by name those of its arrays and of the groups above these.
    Raises StoreError."""
    groups = {str(parent) for name in arrays for parent in PurePosixPath(name).parents} - {"."}
    nodes = {
        name: _own(_read_json(place / name / "zarr.json", place)) for name in (*groups, *arrays)
    }
    return _read_json(place / "zarr.json", place), nodes


def _own(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "consolidated_metadata"}


def _digest(root: dict[str, Any], nodes: dict[str, Any], columns: Mapping[str, Any]) -> str:
    """Checksum of all that a run holds but the numbers of its layers, whose chunks have their
    own."""
    attributes = {key: value for key, value in root["attributes"].items() if key != "digest"}
    return checksum([{**_own(root), "attributes": attributes}, nodes, columns])


def _read_json(file: Path, place: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if file.parent == place:
            raise StoreError(
                f"no run at {printable(place)}; give the folder that extract wrote with out="
            ) from error
        raise _damaged(place, f"{file.relative_to(place)} is missing") from error
    except NotADirectoryError as error:
        raise StoreError(
            f"no run at {printable(place)}; give the folder that extract wrote with out="
        ) from error
    except OSError as error:
        raise StoreError(f"cannot read {printable(file)}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(place, f"{file.relative_to(place)} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(place, f"{file.relative_to(place)} holds a {type(content).__name__}")
    return content


def _read_note(path: Path) -> dict[str, Any] | None:
    """How far an unfinished run is; None where there is no note. Raises StoreError if it is damaged
    or of another version."""
    if not (path / _PROGRESS).is_file():
        return None
    note = _read_json(path / _PROGRESS, path)
    said = note.pop("checksum", None)
    if said is None:
        raise StoreError(
            f"the unfinished run at {printable(path)} is of another version of mixer_probe; "
            f"{_AGAIN}"
        )
    if said != checksum(note):
        raise _damaged(path, f"{_PROGRESS} is not as it was written")
    return note


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array: Any = group[name]
    return array  # type: ignore[no-any-return]


def stored_shape(layer: Layer, reduce: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape of one image's numbers and the names of their dimensions.

    Sizes are part of the names, since a dimension has one size in a store and layers differ."""
    if reduce != "none" or layer.positions == 0:
        return (layer.channels,), (_channels(layer),)
    label = "x".join(map(str, layer.grid)) if layer.grid else str(layer.positions)
    return (layer.positions, layer.channels), (f"position_{label}", _channels(layer))


def _arrays_of(record: RunRecord) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Every array of a run with its `stored_shape`: one a layer, and under "prefix/" one a layer
    with prefix tokens."""
    arrays = {layer.name: stored_shape(layer, record.reduce) for layer in record.layers}
    if record.reduce == "none":
        for layer in record.layers:
            if layer.prefix_tokens:
                tokens = f"token_{layer.prefix_tokens}"
                arrays[PREFIX + layer.name] = (
                    (layer.prefix_tokens, layer.channels),
                    (tokens, _channels(layer)),
                )
    return arrays


def _channels(layer: Layer) -> str:
    return f"channel_{layer.channels}"


def chunk_rows(record: RunRecord) -> int:
    """Images a chunk: as many as keep the largest array's chunk near 16 MiB, at least one."""
    itemsize = np.dtype(record.dtype).itemsize
    largest = max(int(np.prod(stored_shape(layer, record.reduce)[0])) for layer in record.layers)
    return int(np.clip(_CHUNK_BYTES // (largest * itemsize), 1, 1024))
