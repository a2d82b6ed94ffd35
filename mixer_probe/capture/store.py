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

import json
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixer_probe.capture.representations import Representations, RunRecord, count_non_finite
from mixer_probe.capture.run_files import (
    FORMAT,
    NOTE,
    array_of,
    arrays_of,
    bytes_per_image,
    chunk_rows,
    columns_of,
    digest_of,
    folded,
    images_done,
    is_complete,
    is_left,
    is_metadata,
    keep_sound,
    marker_name,
    markers,
    open_run,
    parts_of,
    read_file,
    read_marker,
    read_note,
    read_root,
    state_name,
    sum_name,
)
from mixer_probe.capture.unit_sums import UnitSums
from mixer_probe.capture.units import Units
from mixer_probe.core.accumulator import pack, unpack
from mixer_probe.core.errors import MixerProbeError, StoreError
from mixer_probe.core.files import checksum, only_writer, printable, reason, remedy
from mixer_probe.core.fingerprint import keys_by_name, keys_of
from mixer_probe.core.places import Place
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.parallel import Lease, agree, gather, ranks

if TYPE_CHECKING:
    import zarr

    from mixer_probe.capture.stream import ImageSource, Piece

_WRITER = "units/writer.lease"
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
    With `verify` all that is there is read, and damaged parts are rewritten.

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
    sums.load(folded(place, sums.names))
    return open_run(out)


class _Unit:
    """A unit that is being written: the rows of its arrays so far."""

    def __init__(self, index: int, rows: range) -> None:
        self.index, self.rows, self.filled = index, rows, 0
        self.arrays: dict[str, np.ndarray] = {}
        # Of the sums, once it is whole.
        self.states: dict[str, Any] | None = None
        self.lease: Lease | None = None

    def put(self, arrays: Arrays) -> None:
        for name, values in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((len(self.rows), *values.shape[1:]), values.dtype)
            self.arrays[name][self.filled : self.filled + len(values)] = values
        self.filled += len(next(iter(arrays.values())))


class RunWriter:
    """Writes a run unit by unit; a context manager that on an error keeps what there is of a unit.

    Used inside `writing`: after `prepare`, and before `finish`, once all processes are done. A
    whole unit is written beside the passes of the next one."""

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
        self._columns = columns_of(
            ids, keys or keys_by_name(record.images.fingerprint, ids), labels
        )
        self._class_names = list(map(printable, class_names)) if class_names else None
        self.units = Units.of(len(ids), bytes_per_image(record))
        self._now: dict[int, _Unit] = {}
        self._group: zarr.Group | None = None
        self._thread = ThreadPoolExecutor(1, "unit")
        self._pending: tuple[_Unit, Future[None]] | None = None

    # -- the place

    def finished(self) -> bool:
        """Whether this very run is there, finished. Raises StoreError for something else."""
        root, damaged = None, False
        try:
            root = read_root(self._place)
        except StoreError:
            damaged = True
        if is_complete(root):
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
        note = read_note(self._place)
        if note is None:
            path = self._place.path
            taken = path is not None and path.exists() and not path.is_dir()
            if damaged or taken or not all(map(is_left, self._place.sizes())):
                raise StoreError(
                    f"{self._place} already exists and is not a resumable extraction; delete "
                    "it or choose another place"
                )
        elif note != self._note() and not self._is_empty():
            raise StoreError(
                f"{self._place} holds another unfinished run; finish it, delete it or choose "
                "another place"
            )
        return False

    def prepare(self, verify: bool = False) -> bool:
        """Make the place ready to be written to, or go on with what is there; whether the run is
        finished. With `verify` markers of damaged units are removed.

        Raises StoreError if something else is there or the place cannot be written to."""
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
            note = self._note()
            with suppress(StoreError):  # A damaged one is replaced.
                if read_note(self._place) not in (None, note):
                    # Of another run, without an image.
                    self._place.remove(filter(is_metadata, self._place.sizes()))
            # First of all: whatever happens from here on, the place is known to be this run.
            content = json.dumps({**note, "checksum": checksum(note)}).encode()
            if read_file(self._place, NOTE) != content:
                self._place.write(NOTE, content)
            sound = keep_sound(self._place, self.units, verify)
            if finished and sound:
                return True
            # Written again where they differ, which mends what is damaged.
            files = self._metadata()
            there = {name: read_file(self._place, name) for name in files}
            changed = {name: new for name, new in files.items() if there[name] != new}
            if changed:
                self._place.write_all(changed)
        return False

    def _is_ours(self) -> bool:
        """Whether what is there is this run, by its note or by its record."""
        with suppress(StoreError):
            if read_note(self._place) == self._note():
                return True
        try:
            record: RunRecord = from_dict((read_root(self._place) or {})["attributes"]["run"])
            return record.identity() == self._record.identity()
        except (StoreError, KeyError, ValueError, TypeError, AttributeError):
            return False

    def _is_empty(self) -> bool:
        """Whether no image of an unfinished run is there."""
        with self._disk():
            there = self._place.sizes("units")
        return not markers(self._place) and not any(".part-" in name for name in there)

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
        for name, (shape, dimensions) in arrays_of(self._record).items():
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
        """The units that are not written yet, once one that is being written is done. Raises
        StoreError if that failed."""
        self._settle()
        with self._disk():
            there = markers(self._place)
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
                if read_file(self._place, marker_name(index)) is not None:
                    lease.release()
                    return None
                unit.lease = lease
        self._now[index] = unit
        return unit

    def _resume(self, unit: _Unit, batch_size: int) -> None:
        """Go on from what an interrupted process kept of a unit, at the beginning of a batch, so
        that batches and with them the last bits are those of an uninterrupted run."""
        with self._disk():
            found = max(parts_of(self._place, unit.index), default=None)
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
        """Have a whole unit written, when the one before is."""
        self._settle()
        unit.states = None if self._sums is None else self._sums.end(unit.index, len(unit.rows))
        del self._now[unit.index]
        self._pending = unit, self._thread.submit(self._put, unit)

    def _settle(self) -> None:
        """Wait for the unit that is being written. Raises StoreError if it could not be."""
        if self._pending is None:
            return
        unit, written = self._pending
        try:
            written.result()
        except StoreError:
            self._now[unit.index] = unit
            raise
        finally:
            if written.done():
                self._pending = None

    def _put(self, unit: _Unit) -> None:
        """Write the shards of a whole unit, and its marker."""
        import zarr

        counts: dict[str, int] = {}
        with self._disk(), zarr.config.set({"array.write_empty_chunks": True}):
            group = self._open()
            self._noted.written.clear()
            for name, values in unit.arrays.items():
                array_of(group, name)[unit.rows.start : unit.rows.stop] = values
            count_non_finite(unit.arrays, counts)
            if unit.states and unit.states["sums"]:
                self._place.write(state_name(unit.index), pack(unit.states["sums"]))
            self._place.sync(self._noted.written)
            marker = {"unit": unit.index, "non_finite": counts, "files": dict(self._noted.written)}
            text = json.dumps({**marker, "checksum": checksum(marker)}, sort_keys=True)
            self._place.write(marker_name(unit.index), text.encode())
            self._place.remove(name for _, name in parts_of(self._place, unit.index))
            if unit.lease is not None:
                unit.lease.release()

    def _open(self) -> zarr.Group:
        import zarr

        from mixer_probe.capture.chunks import Noting

        if self._group is None:
            self._noted = Noting(self._place.zarr())
            self._group = zarr.open_group(self._noted, mode="r+", use_consolidated=False)
        return self._group

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with nullcontext() if kind is None else suppress(StoreError):
                self._settle()
        finally:
            self._thread.shutdown()
            for unit in list(self._now.values()):
                # Whatever stopped the run is what the caller has to hear about.
                with suppress(StoreError, OSError):
                    self._keep(unit)
                if unit.lease is not None:
                    unit.lease.release()
            self._now.clear()

    def _keep(self, unit: _Unit) -> None:
        """Keep what there is of a unit."""
        if not unit.filled:
            return
        nothing: dict[str, Any] = {"images": unit.filled, "sums": {}}
        states = unit.states
        if states is None:
            states = nothing if self._sums is None else self._sums.end(unit.index, unit.filled)
        if states is not None:
            arrays = {name: values[: unit.filled] for name, values in unit.arrays.items()}
            name = f"units/{unit.index:06d}.part-{unit.filled}"
            self._place.write(name, pack({"arrays": arrays, "states": states}))

    def finish(self) -> None:
        """Make it a finished run. Raises StoreError where a unit is missing."""
        with self._disk():
            there = markers(self._place)
            missing = [unit for unit in range(len(self.units)) if unit not in there]
            if missing:
                raise StoreError(
                    f"unit {missing[0]} of the run at {self._place} is missing, and "
                    f"{len(missing) - 1} more; run the same extract again to finish it"
                )
            non_finite: dict[str, int] = {}
            for unit in sorted(there):
                for layer, count in read_marker(self._place, unit)["non_finite"].items():
                    non_finite[layer] = non_finite.get(layer, 0) + count
            self._fold()
            root = json.loads(self._place.read("zarr.json"))
            root["attributes"] |= {"complete": True, "non_finite": non_finite}
            root["attributes"]["digest"] = digest_of(root, self._columns)
            self._place.write("zarr.json", json.dumps(root).encode())
            self._place.remove(filter(is_left, self._place.sizes()))

    def _fold(self) -> None:
        """One state of all units for every sum that has been added up over all of them."""
        if self._sums is None or not self._sums.names:
            return
        indices = range(len(self.units))
        for name in self._sums.names:
            try:
                states = (unpack(self._place.read(state_name(unit)))[name] for unit in indices)
                whole = self._sums.fold(name, states)
            except (FileNotFoundError, KeyError):
                # Some units were written by a run that did not add it up.
                continue
            self._place.write(sum_name(name), pack(whole))

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What the operating system refuses, as a sentence with a way out."""
        try:
            yield
        except OSError as error:
            safe = "what is there"
            with suppress(OSError):
                safe = f"{images_done(self._place, self.units)} of {self.units.n} images"
            raise StoreError(
                f"could not write to {self._place} ({reason(error)}); {safe} are safe: "
                f"{remedy(error)} and run the same again to go on"
            ) from error
