"""The files of a stored run: what they are called, and how they are read.

A run is a zarr group with one labelled array a layer, in a folder or anywhere that fsspec reaches.
Beside it `units/` says which units of it are written. Chunks carry a CRC-32C, the root a digest
over the metadata of all arrays and over the names and labels of the images: what was damaged since
is refused when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixer_probe.capture.representations import PREFIX, Representations, RunRecord
from mixer_probe.capture.units import Units
from mixer_probe.core.accumulator import unpack
from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import checksum, format_mismatch, is_leftover, printable, reason
from mixer_probe.core.places import Place
from mixer_probe.core.result import from_dict
from mixer_probe.models.layer import Layer

if TYPE_CHECKING:
    import zarr

FORMAT = "mixer-probe run 3"
_CHUNK_BYTES = 16 * 2**20
_CHUNK_ROWS = 1024
NOTE = "units/run.json"
_REPAIR = "run the same extract again with verify=True (--verify), which rewrites the damaged parts"


# -- units on the disk -----------------------------------------------------------------------------


def is_left(name: str) -> bool:
    """Whether a file is of no use in a finished run: a state, a lease, a part of a unit, or a
    temporary file of a process that was killed."""
    left = name.endswith((".state", ".lease", ".partial")) or ".part-" in name
    return left or is_leftover(Path(name))


def is_metadata(name: str) -> bool:
    """Whether a file says what an array or the run is."""
    return name == NOTE or name.rpartition("/")[2] == "zarr.json"


def marker_name(unit: int) -> str:
    """The file that says that a unit is written."""
    return f"units/{unit:06d}.json"


def state_name(unit: int) -> str:
    """The file of what is added up over a unit."""
    return f"units/{unit:06d}.state"


def sum_name(name: str) -> str:
    """The file of what is added up over all units under this name."""
    return f"units/{hashlib.sha256(name.encode()).hexdigest()[:16]}.sum"


def markers(place: Place) -> set[int]:
    """The units with a marker."""
    names = (name.removeprefix("units/").removesuffix(".json") for name in place.sizes("units"))
    return {int(name) for name in names if name.isdecimal()}


def read_marker(place: Place, unit: int) -> dict[str, Any]:
    """Raises StoreError for one that is missing or damaged."""
    try:
        marker: dict[str, Any] = json.loads(place.read(marker_name(unit)))
        if marker.pop("checksum") == checksum(marker):
            return marker
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        pass
    raise _damaged(place, f"{marker_name(unit)} is not as it was written")


def parts_of(place: Place, unit: int) -> list[tuple[int, str]]:
    """What is kept of an interrupted unit: numbers of images, and names."""
    start = f"units/{unit:06d}.part-"
    names = [name for name in place.sizes("units") if name.startswith(start)]
    return [(int(name.removeprefix(start)), name) for name in names]


def images_done(place: Place, units: Units) -> int:
    """Images that are safely there: of whole units, and of parts of others."""
    whole = markers(place)
    begun: dict[int, int] = {}
    for name in place.sizes("units"):
        unit, _, images = name.removeprefix("units/").partition(".part-")
        if images and int(unit) not in whole:
            begun[int(unit)] = max(begun.get(int(unit), 0), int(images))
    return sum(len(units[unit]) for unit in whole) + sum(begun.values())


def keep_sound(place: Place, units: Units, verify: bool) -> bool:
    """Remove the markers of units whose files are missing or have another size, or with `verify`
    another content. Returns whether there was none."""
    sizes, bad = place.sizes(), []
    for unit in sorted(markers(place)):
        try:
            if unit >= len(units):
                raise _damaged(place, f"there is no unit {unit}")
            for name, about in read_marker(place, unit)["files"].items():
                if sizes.get(name) != about["bytes"] or (
                    verify and hashlib.sha256(place.read(name)).hexdigest() != about["sha256"]
                ):
                    raise _damaged(place, name)
        except (StoreError, FileNotFoundError):
            bad.append(unit)
    place.remove(map(marker_name, bad))
    return not bad


def folded(place: Place, names: Iterable[str]) -> dict[str, Any]:
    """The states of all units, by the name of the sum; without those that are not there."""
    found = {}
    for name in names:
        with suppress(FileNotFoundError, StoreError):
            found[name] = unpack(place.read(sum_name(name)))
    return found


# -- reading ---------------------------------------------------------------------------------------


class StoredArray:
    """An array of a run, one row per image, of which `array[rows]` is read: a slice, integers, a
    mask, or `...` for all.

    Raises StoreError where files are damaged or missing, whatever happened to them since the run
    was opened."""

    def __init__(self, group: zarr.Group, name: str, place: Place) -> None:
        """Raises StoreError if there is no such array."""
        self._name, self._place = name, place
        with self._reading():
            self._array = array_of(group, name)
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        with self._reading(rows):
            return np.asarray(self._array[...] if rows is ... else self._array.oindex[rows])

    def files(self, rows: Any = ...) -> list[str]:
        """The names of the files that hold the numbers of the `rows`."""
        metadata: Any = self._array.metadata
        rest = (0,) * (len(self.shape) - 1)
        size = (self._array.shards or self._array.chunks)[0]
        shards = np.unique(np.arange(self.shape[0])[rows] // size)
        return [f"{self._name}/{metadata.encode_chunk_key((int(i), *rest))}" for i in shards]

    def _damaged_file(self, rows: Any) -> str:
        """The first of the files that is not as it was written, else the name of the array."""
        for name in self.files(rows):
            with suppress(StoreError, KeyError, OSError):
                marker = read_marker(self._place, int(name.split("/c/")[1].split("/")[0]))
                content = hashlib.sha256(self._place.read(name)).hexdigest()
                if content != marker["files"][name]["sha256"]:
                    return f"{name}, of unit {marker['unit']}"
        return f"'{self._name}'"

    @contextmanager
    def _reading(self, rows: Any = ...) -> Iterator[None]:
        from mixer_probe.capture.chunks import MissingChunkError

        try:
            yield
        except (MemoryError, IndexError, StoreError):
            raise
        except MissingChunkError as error:
            raise _damaged(self._place, f"{error} is missing") from error
        except OSError as error:
            raise StoreError(
                f"cannot read '{self._name}' of the run at {self._place}: {reason(error)}"
            ) from error
        except Exception as error:
            # zarr and its codecs raise errors of many kinds.
            what = f"{self._damaged_file(rows)}: {error}" if hasattr(self, "_array") else error
            raise _damaged(self._place, str(what)) from error


def _damaged(place: Place, what: str) -> StoreError:
    return StoreError(f"the run at {place} is damaged ({printable(what)}); {_REPAIR}")


def open_run(path: str | Path | Place) -> Representations:
    """A stored run as `extract` returned it; arrays are read when they are asked for.

    `path` is a folder, or a URL that fsspec opens. Raises StoreError for a path that holds no run,
    an unfinished or a damaged one, or one of another version; so does reading an array that was
    damaged or lost."""
    import zarr

    from mixer_probe.capture.chunks import Strict

    place = path if isinstance(path, Place) else Place(path)
    try:
        root = read_root(place)
        note = None if is_complete(root) else read_note(place)
        done = images_done(place, Units(note["n"], note["unit"])) if note else 0
    except OSError as error:
        raise StoreError(f"cannot read the run at {place}: {reason(error)}") from error
    if note:
        raise StoreError(
            f"the run at {place} is unfinished ({done} of {note['n']} images); run the same "
            "extract again to finish it"
        )
    if root is None:
        raise StoreError(f"no run at {place}; give the folder that extract wrote with out=")
    attrs: Any = root.get("attributes")
    if what := format_mismatch(attrs, FORMAT):
        raise StoreError(
            f"{place} is no run of this version of mixer_probe ({what}); extract it again"
        )
    try:
        record: RunRecord = from_dict(attrs["run"])
    except (StoreError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(place, f"its record: {error}") from error
    try:
        names = list(arrays_of(record))
        consolidated = root["consolidated_metadata"]["metadata"]
        columns = [name for name in _COLUMNS if name in consolidated]
        group = zarr.open_group(Strict(place.zarr(read_only=True)), mode="r", use_consolidated=True)
        content = {name: _plain(StoredArray(group, name, place)[...]) for name in columns}
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read the run at {place}: {reason(error)}") from error
    except Exception as error:
        raise _damaged(place, f"zarr.json: {type(error).__name__} {error}") from error
    if attrs.get("digest") != digest_of(root, content):
        raise _damaged(
            place, "zarr.json, or the names and labels of its images, are not as they were written"
        )
    arrays = {name: StoredArray(group, name, place) for name in names}
    there = place.sizes()
    lost = [file for array in arrays.values() for file in array.files() if file not in there]
    if lost:
        raise _damaged(place, f"{len(lost)} files are missing, first {lost[0]}")
    prefixes = {
        name.removeprefix(PREFIX): array
        for name, array in arrays.items()
        if name.startswith(PREFIX)
    }
    labels = np.array(content["label"], dtype=np.int64) if "label" in content else None
    classes = attrs["class_names"]
    return Representations(
        record,
        {name: array for name, array in arrays.items() if not name.startswith(PREFIX)},
        prefixes,
        content["image_id"],
        labels,
        tuple(classes) if classes else None,
        attrs["non_finite"],
        content["image_key"],
    )


# -- what describes a run --------------------------------------------------------------------------

_COLUMNS = ("image_id", "image_key", "label")


def columns_of(
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


def digest_of(root: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Checksum of all that a run holds but the numbers of its layers, whose chunks have their
    own."""
    attributes = {key: value for key, value in root["attributes"].items() if key != "digest"}
    return checksum([{**root, "attributes": attributes}, columns])


def is_complete(root: Mapping[str, Any] | None) -> bool:
    """Whether this is the root of a finished run."""
    attributes = (root or {}).get("attributes")
    return isinstance(attributes, dict) and attributes.get("complete") is True


def read_file(place: Place, name: str) -> bytes | None:
    """The content of a file, None where there is none."""
    try:
        return place.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_json(place: Place, name: str) -> dict[str, Any] | None:
    """None where there is no such file. Raises StoreError for what is no JSON object."""
    content = read_file(place, name)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(place, f"{name} is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(place, f"{name} holds a {type(found).__name__}")
    return found


def read_root(place: Place) -> dict[str, Any] | None:
    """The metadata of the group; None where there is none."""
    return _read_json(place, "zarr.json")


def read_note(place: Place) -> dict[str, Any] | None:
    """What the run at the place is; None where nothing says so. Raises StoreError if it is
    damaged."""
    note = _read_json(place, NOTE)
    if note is not None and note.pop("checksum", None) != checksum(note):
        raise _damaged(place, f"{NOTE} is not as it was written")
    return note


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array of this name."""
    array: Any = group[name]
    return array  # type: ignore[no-any-return]


def stored_shape(layer: Layer, reduce: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape of one image's numbers and the names of their dimensions.

    Sizes are part of the names, since a dimension has one size in a store and layers differ."""
    if reduce != "none" or layer.positions == 0:
        return (layer.channels,), (_channels(layer),)
    label = "x".join(map(str, layer.grid)) if layer.grid else str(layer.positions)
    return (layer.positions, layer.channels), (f"position_{label}", _channels(layer))


def arrays_of(record: RunRecord) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
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


def bytes_per_image(record: RunRecord) -> int:
    """What a run holds of one image."""
    values = sum(int(np.prod(shape)) for shape, _ in arrays_of(record).values())
    return values * np.dtype(record.dtype).itemsize


def chunk_rows(record: RunRecord, units: Units) -> int:
    """Images a chunk: a power of two that keeps the largest array's chunk within 16 MiB and divides
    a unit."""
    largest = max(int(np.prod(shape)) for shape, _ in arrays_of(record).values())
    most = min(_CHUNK_BYTES // (largest * np.dtype(record.dtype).itemsize), _CHUNK_ROWS)
    rows = 1 << max(0, most.bit_length() - 1)
    return max(1, min(rows, units.size, units.n))
