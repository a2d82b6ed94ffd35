"""The store of a run, in a folder or anywhere that fsspec reaches: a zarr group with one labelled
array a layer. Half a run is never taken for a whole one.

A run is written unit by unit (`Units`), each of which has shards of its own. Once these are safe, a
marker `units/NUMBER.json` says so, with their sizes and hashes; a unit without one is done again.
Of a unit that is interrupted what there is of it is kept beside it. The root's `complete`, written
last of all, makes the run a finished one.

Chunks carry a CRC-32C, the root a digest over the metadata of all arrays and over the names and
labels of the images: what was damaged since is refused when it is read, and `verify` repairs it.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixer_probe.capture.representations import PREFIX, Representations, RunRecord, count_non_finite
from mixer_probe.capture.unit_sums import UnitSums
from mixer_probe.capture.units import Units
from mixer_probe.core.accumulator import pack, unpack
from mixer_probe.core.errors import MixerProbeError, StoreError
from mixer_probe.core.files import checksum, is_leftover, only_writer, printable, reason, remedy
from mixer_probe.core.fingerprint import keys_by_name, keys_of
from mixer_probe.core.places import Place
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.models.layer import Layer
from mixer_probe.parallel import Lease, agree, gather, ranks

if TYPE_CHECKING:
    import zarr

    from mixer_probe.capture.stream import ImageSource, Piece

FORMAT = "mixer-probe run 3"
_CHUNK_BYTES = 16 * 2**20
_CHUNK_ROWS = 1024
_NOTE = "units/run.json"
_WRITER = "units/writer.lease"
_REPAIR = (
    "run the same extract again with verify=True (--verify), which writes what is damaged anew"
)
# Attributes that a run has only when it is finished.
_LAST = ("complete", "non_finite", "digest")
# Seconds between two looks at what other processes have done.
_WAIT = 0.5

Arrays = Mapping[str, np.ndarray]
# From the size of batches and the images of each to what there is of them.
Passes = Callable[[int, Iterable[range]], Generator[tuple["Piece", Arrays]]]


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def writing(out: str | Path | Place) -> Iterator[None]:
    """Hold the place against other writers. Raises StoreError if another process or thread writes a
    run there."""
    place = out if isinstance(out, Place) else Place(out)
    if place.path is not None:
        with only_writer(place.path, place.path.parent / f".{place.path.name}.lock"):
            yield
        return
    lease = Lease(place, _WRITER)
    try:
        holder = lease.holder()
        taken = holder is None and lease.take()
    except OSError as error:
        raise StoreError(f"cannot write {place}: {reason(error)}") from error
    if not taken:
        raise StoreError(
            f"{place} is being written by {holder or 'another process'}; wait for it or give "
            "another --out"
        )
    try:
        yield
    finally:
        lease.release()


def stored(
    out: str | Path,
    record: RunRecord,
    source: ImageSource,
    passes: Passes,
    batch_size: int,
    sums: UnitSums,
    verify: bool = False,
) -> Representations:
    """The run at `out`: the finished one, or written there by `passes` over the batches that these
    are given, continued where an unfinished one is there. Processes of torchrun divide the units.
    With `verify` all that is there is read, and what is damaged is written anew.

    Raises StoreError if something else is there, or another process or thread writes there."""
    place = Place(out)
    about = source.ids, source.labels, source.class_names, keys_of(source)
    writer = RunWriter(place, record, *about, sums=sums)
    with ExitStack() as held:

        def prepare() -> bool:
            with writer._disk():
                if not verify and writer.finished():
                    return True
                held.enter_context(writing(place))
                # Another process may just have written it.
                return writer.prepare(verify)

        if not agree(prepare):
            failure: MixerProbeError | None = None
            try:
                with writer:
                    while writer.missing():
                        with closing(passes(batch_size, writer.batches(batch_size))) as found:
                            for piece, arrays in found:
                                writer.write(piece.start, arrays)
                        if writer.missing():
                            time.sleep(_WAIT)
            except MixerProbeError as error:
                failure = error
            # What failed for one process may have been done by another.
            failures = [error for error in gather(failure) if error is not None]
            if failures and writer.missing():
                raise failure or failures[0]
            agree(writer.finish)
    sums.load(_folded(place, sums.names))
    return open_run(out)


class _Unit:
    """A unit that is being written: the rows of its arrays so far."""

    def __init__(self, index: int, rows: range) -> None:
        self.index, self.rows, self.filled = index, rows, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.lease: Lease | None = None

    def put(self, arrays: Arrays) -> None:
        for name, values in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((len(self.rows), *values.shape[1:]), values.dtype)
            self.arrays[name][self.filled : self.filled + len(values)] = values
        self.filled += len(next(iter(arrays.values())))


class RunWriter:
    """Writes a run unit by unit; a context manager that on an error keeps what there is of a unit.

    Used inside `writing`. Entering it prepares the place, and leaving it finishes the run, unless
    `prepare` has been called before: then `finish` is, once all processes are done."""

    def __init__(
        self,
        out: str | Path | Place,
        record: RunRecord,
        ids: tuple[str, ...],
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        keys: tuple[str, ...] | None = None,
        sums: UnitSums | None = None,
    ) -> None:
        self._place = out if isinstance(out, Place) else Place(out)
        self._record, self._sums = record, sums
        self._columns = _columns(ids, keys or keys_by_name(record.images.fingerprint, ids), labels)
        self._class_names = list(map(printable, class_names)) if class_names else None
        self.units = Units.of(len(ids), bytes_per_image(record))
        self._now: dict[int, _Unit] = {}
        self._group: zarr.Group | None = None
        self._alone = True

    # -- the place

    def finished(self) -> bool:
        """Whether this very run is there, finished. Raises StoreError for something else."""
        root, damaged = None, False
        try:
            root = _read_root(self._place)
        except StoreError:
            damaged = True
        if _complete(root):
            try:
                found = open_run(self._place)
            except StoreError as error:
                raise StoreError(
                    f"{self._place} already exists: {error}, or choose another place"
                ) from error
            if found.record.identity() != self._record.identity():
                raise StoreError(
                    f"{self._place} already holds another run ({found!r}); choose another place or "
                    "delete it"
                )
            return True
        note = _read_note(self._place)
        if note is None:
            path = self._place.path
            taken = path is not None and path.exists() and not path.is_dir()
            if damaged or taken or not all(map(_is_left, self._place.sizes())):
                raise StoreError(
                    f"{self._place} already exists and is no run that could be gone on with; "
                    "delete it or choose another place"
                )
        elif note != self._note():
            raise StoreError(
                f"{self._place} holds another unfinished run; finish it, delete it or choose "
                "another place"
            )
        return False

    def prepare(self, verify: bool = False) -> bool:
        """Make the place ready to be written to, or go on with what is there; whether the run is
        finished. With `verify` markers of damaged units are removed.

        Raises StoreError if something else is there or the place cannot be written to."""
        self._alone = False
        try:
            finished = self.finished()
        except StoreError:
            # A damaged run can be repaired, if it is this one.
            if not (verify and self._is_ours()):
                raise
            finished = False
        if finished and not verify:
            return True
        with self._disk():
            # First of all: whatever happens from here on, the place is known to be this run.
            note = self._note()
            content = json.dumps({**note, "checksum": checksum(note)}).encode()
            if _read(self._place, _NOTE) != content:
                self._place.write(_NOTE, content)
            sound = _keep_sound(self._place, self.units, verify)
            if finished and sound:
                return True
            # Written again where they differ, which mends what is damaged.
            files = self._metadata()
            there = {name: _read(self._place, name) for name in files}
            changed = {name: new for name, new in files.items() if there[name] != new}
            if changed:
                self._place.write_all(changed)
        return False

    def _is_ours(self) -> bool:
        """Whether what is there is this run, by its note or by its record."""
        with suppress(StoreError):
            if _read_note(self._place) == self._note():
                return True
        try:
            record: RunRecord = from_dict((_read_root(self._place) or {})["attributes"]["run"])
            return record.identity() == self._record.identity()
        except (StoreError, KeyError, ValueError, TypeError, AttributeError):
            return False

    def _note(self) -> dict[str, Any]:
        """What the run is."""
        return {
            "format": FORMAT,
            "identity": self._record.identity(),
            "columns": checksum(self._columns),
            "n": self.units.n,
            "unit": self.units.size,
        }

    def _metadata(self) -> dict[str, bytes]:
        """All files of the group but the shards of the layers, by name."""
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        memory: dict[str, Any] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(memory))
        about = {"format": FORMAT, "run": to_dict(self._record), "coordinates": "image_id"}
        group.attrs.update({**about, "class_names": self._class_names, "complete": False})
        # Higher levels take longer and gain nothing on floating-point numbers.
        codecs = [ZstdCodec(level=1), Crc32cCodec()]
        n = self.units.n
        # Every chunk is a file, whatever it holds, so that a lost one is noticed.
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in self._columns.items():
                column = group.create_array(
                    name,
                    shape=(n,),
                    dtype="int64" if name == "label" else "str",
                    chunks=(max(1, min(n, 2**16)),),
                    compressors=codecs,
                    dimension_names=("image",),
                )
                column[:] = np.array(values, dtype=np.int64 if name == "label" else object)
        rows = chunk_rows(self._record, self.units)
        shard = min(self.units.size, -(-n // rows) * rows)
        for name, (shape, dimensions) in _arrays_of(self._record).items():
            group.create_array(
                name,
                shape=(n, *shape),
                dtype=self._record.dtype,
                chunks=(rows, *shape),
                shards=(shard, *shape),
                compressors=codecs,
                dimension_names=("image", *dimensions),
                fill_value=np.nan,
            )
        with warnings.catch_warnings():
            # zarr warns that format 3 has no final word on consolidated metadata; xarray warns
            # where it is missing.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(zarr.storage.MemoryStore(memory))
        return {name: value.to_bytes() for name, value in memory.items()}

    # -- units

    def missing(self) -> list[int]:
        """The units that are not written yet."""
        with self._disk():
            there = _markers(self._place)
        return [unit for unit in range(len(self.units)) if unit not in there]

    def batches(self, batch_size: int) -> Iterator[range]:
        """Batches of the units that are missing and that no other process is at, each unit from
        where it was left. Those of several processes begin at different ones."""
        here = ranks()
        missing = self.missing()
        begin = len(missing) * here.rank // here.world
        for index in (*missing[begin:], *missing[:begin]):
            unit = self._take(index, here.world > 1)
            if unit is not None:
                self._resume(unit, batch_size)
                rows = unit.rows
                yield from self.units.batches(index, batch_size, rows.start + unit.filled)
                if unit.filled == len(rows) and index in self._now:
                    self._store(unit)

    def _take(self, index: int, divided: bool) -> _Unit | None:
        unit = _Unit(index, self.units[index])
        if divided:
            with self._disk():
                lease = Lease(self._place, f"units/{index:06d}.lease")
                if not lease.take():
                    return None
                if _read(self._place, _marker(index)) is not None:
                    lease.release()
                    return None
                unit.lease = lease
        self._now[index] = unit
        return unit

    def _resume(self, unit: _Unit, batch_size: int) -> None:
        """Go on from what an interrupted process kept of a unit, at the beginning of a batch, so
        that batches and with them the last bits are those of an uninterrupted run."""
        found = max(_parts(self._place, unit.index), default=None)
        states: Any = None
        if found is not None:
            with suppress(StoreError, OSError, ValueError):
                kept = unpack(self._place.read(found[1]))
                arrays, states = kept["arrays"], kept["states"]
                whole = (
                    len(unit.rows)
                    if found[0] == len(unit.rows)
                    else (found[0] // batch_size * batch_size)
                )
                if whole != found[0] and states["sums"]:
                    whole = 0
                if whole and (self._sums is None or self._sums.begin(unit.index, states)):
                    unit.put({name: values[:whole] for name, values in arrays.items()})
                    return
        if self._sums is not None:
            self._sums.begin(unit.index, None)

    def write(self, start: int, arrays: Arrays) -> None:
        """Take the arrays of the images from `start` on. A unit reaches the disk when it is whole.

        Raises StoreError on a full disk."""
        n = len(next(iter(arrays.values())))
        while n:
            index = self.units.of_image(start)
            unit = self._now.setdefault(index, _Unit(index, self.units[index]))
            taken = min(n, unit.rows.stop - start)
            unit.put({name: values[:taken] for name, values in arrays.items()})
            if unit.filled == len(unit.rows):
                self._store(unit)
            arrays = {name: values[taken:] for name, values in arrays.items()}
            start, n = start + taken, n - taken

    def _store(self, unit: _Unit) -> None:
        """Write the shards of a whole unit, and its marker."""
        import zarr

        states = None if self._sums is None else self._sums.end(unit.index, len(unit.rows))
        counts: dict[str, int] = {}
        with self._disk(), zarr.config.set({"array.write_empty_chunks": True}):
            group = self._open()
            self._noted.written.clear()
            for name, values in unit.arrays.items():
                _array(group, name)[unit.rows.start : unit.rows.stop] = values
            count_non_finite(unit.arrays, counts)
            if states and states["sums"]:
                self._place.write(_state(unit.index), pack(states["sums"]))
            self._place.sync(self._noted.written)
            marker = {"unit": unit.index, "non_finite": counts, "files": dict(self._noted.written)}
            text = json.dumps({**marker, "checksum": checksum(marker)}, sort_keys=True)
            self._place.write(_marker(unit.index), text.encode())
            self._place.remove(name for _, name in _parts(self._place, unit.index))
            if unit.lease is not None:
                unit.lease.release()
        del self._now[unit.index]

    def _open(self) -> zarr.Group:
        import zarr

        from mixer_probe.capture.chunks import Noting

        if self._group is None:
            self._noted = Noting(self._place.zarr())
            self._group = zarr.open_group(self._noted, mode="r+", use_consolidated=False)
        return self._group

    def __enter__(self) -> RunWriter:
        if self._alone:
            self.prepare()
            self._alone = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for unit in list(self._now.values()):
            # Whatever stopped the run is what the caller has to hear about.
            with suppress(StoreError, OSError):
                self._keep(unit)
            if unit.lease is not None:
                unit.lease.release()
        self._now.clear()
        if kind is None and self._alone:
            self.finish()

    def _keep(self, unit: _Unit) -> None:
        """Keep what there is of a unit."""
        if not unit.filled:
            return
        nothing: dict[str, Any] = {"images": unit.filled, "sums": {}}
        states = nothing if self._sums is None else self._sums.end(unit.index, unit.filled)
        if states is not None:
            arrays = {name: values[: unit.filled] for name, values in unit.arrays.items()}
            name = f"units/{unit.index:06d}.part-{unit.filled}"
            self._place.write(name, pack({"arrays": arrays, "states": states}))

    def finish(self) -> None:
        """Make it a finished run. Raises StoreError where a unit is missing."""
        with self._disk():
            there = _markers(self._place)
            missing = [unit for unit in range(len(self.units)) if unit not in there]
            if missing:
                raise StoreError(
                    f"unit {missing[0]} of the run at {self._place} is missing, and "
                    f"{len(missing) - 1} more; run the same extract again to finish it"
                )
            non_finite: dict[str, int] = {}
            for unit in sorted(there):
                for layer, count in _read_marker(self._place, unit)["non_finite"].items():
                    non_finite[layer] = non_finite.get(layer, 0) + count
            self._fold()
            root = json.loads(self._place.read("zarr.json"))
            root["attributes"] |= {"complete": True, "non_finite": non_finite}
            root["attributes"]["digest"] = _digest(root, self._columns)
            self._place.write("zarr.json", json.dumps(root).encode())
            self._place.remove(filter(_is_left, self._place.sizes()))

    def _fold(self) -> None:
        """One state of all units for every sum that has been added up over all of them."""
        if self._sums is None or not self._sums.names:
            return
        indices = range(len(self.units))
        for name in self._sums.names:
            try:
                states = (unpack(self._place.read(_state(unit)))[name] for unit in indices)
                whole = self._sums.fold(name, states)
            except (FileNotFoundError, KeyError):
                # Some units were written by a run that did not add it up.
                continue
            self._place.write(_sum(name), pack(whole))

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What the operating system refuses, as a sentence with a way out."""
        try:
            yield
        except OSError as error:
            safe = "what is there"
            with suppress(OSError):
                safe = f"{_images_done(self._place, self.units)} of {self.units.n} images"
            raise StoreError(
                f"could not write to {self._place} ({reason(error)}); {safe} are safe: "
                f"{remedy(error)} and run the same again to go on"
            ) from error


# -- units on the disk -----------------------------------------------------------------------------


def _is_left(name: str) -> bool:
    """Whether a file is of no use in a finished run: a state, a lease, a part of a unit, or a
    temporary file of a process that was killed."""
    left = name.endswith((".state", ".lease", ".partial")) or ".part-" in name
    return left or is_leftover(Path(name))


def _marker(unit: int) -> str:
    return f"units/{unit:06d}.json"


def _state(unit: int) -> str:
    return f"units/{unit:06d}.state"


def _sum(name: str) -> str:
    return f"units/{hashlib.sha256(name.encode()).hexdigest()[:16]}.sum"


def _markers(place: Place) -> set[int]:
    """The units with a marker."""
    names = (name.removeprefix("units/").removesuffix(".json") for name in place.sizes("units"))
    return {int(name) for name in names if name.isdecimal()}


def _read_marker(place: Place, unit: int) -> dict[str, Any]:
    """Raises StoreError for one that is missing or damaged."""
    try:
        marker: dict[str, Any] = json.loads(place.read(_marker(unit)))
        if marker.pop("checksum") == checksum(marker):
            return marker
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        pass
    raise _damaged(place, f"{_marker(unit)} is not as it was written")


def _parts(place: Place, unit: int) -> list[tuple[int, str]]:
    """What is kept of an interrupted unit: numbers of images, and names."""
    start = f"units/{unit:06d}.part-"
    names = [name for name in place.sizes("units") if name.startswith(start)]
    return [(int(name.removeprefix(start)), name) for name in names]


def _images_done(place: Place, units: Units) -> int:
    """Images that are safely there: of whole units, and of parts of others."""
    whole = _markers(place)
    begun: dict[int, int] = {}
    for name in place.sizes("units"):
        unit, _, images = name.removeprefix("units/").partition(".part-")
        if images and int(unit) not in whole:
            begun[int(unit)] = max(begun.get(int(unit), 0), int(images))
    return sum(len(units[unit]) for unit in whole) + sum(begun.values())


def _keep_sound(place: Place, units: Units, verify: bool) -> bool:
    """Remove the markers of units whose files are missing or have another size, or with `verify`
    another content. Returns whether there was none."""
    sizes, bad = place.sizes(), []
    for unit in sorted(_markers(place)):
        try:
            if unit >= len(units):
                raise _damaged(place, f"there is no unit {unit}")
            for name, about in _read_marker(place, unit)["files"].items():
                if sizes.get(name) != about["bytes"] or (
                    verify and hashlib.sha256(place.read(name)).hexdigest() != about["sha256"]
                ):
                    raise _damaged(place, name)
        except (StoreError, FileNotFoundError):
            bad.append(unit)
    place.remove(map(_marker, bad))
    return not bad


def _folded(place: Place, names: Iterable[str]) -> dict[str, Any]:
    """The states of all units, by the name of the sum; without those that are not there."""
    found = {}
    for name in names:
        with suppress(FileNotFoundError, StoreError):
            found[name] = unpack(place.read(_sum(name)))
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
            self._array = _array(group, name)
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
                marker = _read_marker(self._place, int(name.split("/c/")[1].split("/")[0]))
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
        root = _read_root(place)
        note = None if _complete(root) else _read_note(place)
        done = _images_done(place, Units(note["n"], note["unit"])) if note else 0
    except OSError as error:
        raise StoreError(f"cannot read the run at {place}: {reason(error)}") from error
    if note:
        raise StoreError(
            f"the run at {place} is unfinished ({done} of {note['n']} images); run the same "
            "extract again to finish it"
        )
    if root is None:
        raise StoreError(f"no run at {place}; give the folder that extract wrote with out=")
    attrs = root.get("attributes")
    if not isinstance(attrs, dict) or attrs.get("format") != FORMAT:
        found = attrs.get("format") if isinstance(attrs, dict) else None
        told = f", found '{found}'" if isinstance(found, str) else ""
        raise StoreError(
            f"{place} is no run of this version of mixer_probe (expected format '{FORMAT}'{told}); "
            "extract it again"
        )
    try:
        record: RunRecord = from_dict(attrs["run"])
    except (StoreError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(place, f"its record: {error}") from error
    try:
        names = list(_arrays_of(record))
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
    if attrs.get("digest") != _digest(root, content):
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


def _digest(root: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Checksum of all that a run holds but the numbers of its layers, whose chunks have their
    own."""
    attributes = {key: value for key, value in root["attributes"].items() if key != "digest"}
    return checksum([{**root, "attributes": attributes}, columns])


def _complete(root: Mapping[str, Any] | None) -> bool:
    attributes = (root or {}).get("attributes")
    return isinstance(attributes, dict) and attributes.get("complete") is True


def _read(place: Place, name: str) -> bytes | None:
    try:
        return place.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_json(place: Place, name: str) -> dict[str, Any] | None:
    """None where there is no such file. Raises StoreError for what is no JSON object."""
    content = _read(place, name)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(place, f"{name} is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(place, f"{name} holds a {type(found).__name__}")
    return found


def _read_root(place: Place) -> dict[str, Any] | None:
    """The metadata of the group; None where there is none."""
    return _read_json(place, "zarr.json")


def _read_note(place: Place) -> dict[str, Any] | None:
    """What the run at the place is; None where nothing says so. Raises StoreError if it is
    damaged."""
    note = _read_json(place, _NOTE)
    if note is not None and note.pop("checksum", None) != checksum(note):
        raise _damaged(place, f"{_NOTE} is not as it was written")
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


def bytes_per_image(record: RunRecord) -> int:
    """What a run holds of one image."""
    values = sum(int(np.prod(shape)) for shape, _ in _arrays_of(record).values())
    return values * np.dtype(record.dtype).itemsize


def chunk_rows(record: RunRecord, units: Units) -> int:
    """Images a chunk: a power of two that keeps the largest array's chunk within 16 MiB and divides
    a unit."""
    largest = max(int(np.prod(shape)) for shape, _ in _arrays_of(record).values())
    most = min(_CHUNK_BYTES // (largest * np.dtype(record.dtype).itemsize), _CHUNK_ROWS)
    rows = 1 << max(0, most.bit_length() - 1)
    return max(1, min(rows, units.size, units.n))
