"""`Representations`: activations of a model on images by layer, in memory or in a store on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mixer_probe.core.errors import ImagesError, LayerError, closest
from mixer_probe.core.files import printable
from mixer_probe.core.fingerprint import images_fingerprint, keys_by_name, pictures_fingerprint
from mixer_probe.core.memory import ROWS, WORKING, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, storable
from mixer_probe.core.rows import Rows
from mixer_probe.models.layer import Layer
from mixer_probe.models.structure import matching

# Bytes of a run that is held in memory; several are at once.
IN_MEMORY = WORKING // 4
# Names of prefix tokens beside those of their layers, where both are kept.
PREFIX = "prefix/"
Reduce = Literal["mean", "prefix", "none"]


@storable
@dataclass(frozen=True)
class RunRecord:
    """Everything that determines the numbers of a run, with the versions of the software."""

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    reduce: str
    transform: str
    autocast: str
    dtype: str
    versions: dict[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """The part that two runs must share to hold the same numbers."""
        names = [layer.name for layer in self.layers]
        settings = (self.reduce, self.transform, self.autocast, self.dtype)
        return {
            "model": self.model.fingerprint,
            "images": self.images.fingerprint,
            "layers": names,
            "settings": list(settings),
        }


class Representations:
    """A mapping from layer name to numbers, with images and model attached.

    `reps[name]` is a NumPy array: [image, channel] for reduce="mean" and "prefix" and for pooled
    layers, [image, position, channel] for reduce="none". `reps.prefix(name)` has the prefix tokens
    [image, token, channel] of reduce="none". `ids` name the images, `keys` are hashes of their
    content."""

    def __init__(
        self,
        record: RunRecord,
        arrays: Mapping[str, Any],
        prefixes: Mapping[str, Any],
        ids: Sequence[str],
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        non_finite: Mapping[str, int],
        keys: Sequence[str] | None = None,
    ) -> None:
        self.record = record
        self._arrays = arrays
        self._prefixes = prefixes
        self.ids = tuple(map(printable, ids))
        self.keys = (
            keys_by_name(record.images.fingerprint, self.ids) if keys is None else tuple(keys)
        )
        self.labels = labels
        self.class_names = None if class_names is None else tuple(map(printable, class_names))
        self.non_finite = dict(non_finite)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in execution order."""
        return self.record.layers

    @property
    def model(self) -> ModelRecord:
        """Which model."""
        return self.record.model

    @property
    def images(self) -> ImagesRecord:
        """Which images."""
        return self.record.images

    @property
    def reduce(self) -> str:
        """ "mean", "prefix" or "none"."""
        return self.record.reduce

    def __getitem__(self, name: str) -> np.ndarray:
        """The numbers of one layer, which cannot be written to: copy them to change them. Raises
        LayerError that lists close names."""
        if name not in self._arrays:
            raise LayerError(
                f"no layer '{name}' in this run of {self.model.name}; {closest(name, self.names())}"
            )
        return _read_only(self._arrays[name][...])

    def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """The numbers of one layer for some images; from a store only their chunks are read. Raises
        as `reps[name]`."""
        return _read_only(self.array(name)[rows])

    def array(self, name: str) -> np.ndarray | Rows:
        """The numbers of one layer: those in memory, and of a store what reads the rows that it is
        asked for. Raises as `reps[name]`."""
        array = self._arrays.get(name)
        return self[name] if array is None or isinstance(array, np.ndarray) else Rows(array)

    def prefix(self, name: str) -> np.ndarray:
        """Prefix tokens [image, token, channel] of one layer. Raises LayerError for layers that
        have none."""
        if name not in self._prefixes:
            raise LayerError(
                f"'{name}' has no prefix tokens in this run; those with: "
                f"{', '.join(self._prefixes) or 'none'}"
            )
        return _read_only(self._prefixes[name][...])

    def take(self, indices: Sequence[int] | np.ndarray, split: str = "") -> Representations:
        """The same layers for some of the images: at `indices` (integers, or a mask with one value
        per image), in that order; `split` names the part in results. Their images are then those of
        `Images.subset`. They are in memory, but those of a stored run of more than `IN_MEMORY`
        bytes stay there.

        Raises ImagesError for indices out of range, and for anything but integers or a mask."""
        given, n = np.asarray(indices), len(self.ids)
        if given.dtype == bool:
            if given.shape != (n,):
                raise ImagesError(
                    f"a mask of {n} images has {n} values, not the shape {given.shape}"
                )
            given = np.flatnonzero(given)
        elif given.size == 0:
            given = np.zeros(0, dtype=np.int64)
        elif given.ndim != 1 or given.dtype.kind not in "iu":
            raise ImagesError(
                f"images are taken by whole numbers or by a mask, not by {given.dtype} of shape "
                f"{given.shape}"
            )
        outside = given[(given < -n) | (given >= n)]
        if len(outside):
            raise ImagesError(
                f"there is no image {outside[0]}: the run holds {n}, from 0 to {n - 1}"
            )
        chosen = given.astype(np.int64) % max(n, 1)
        ids, keys = [self.ids[i] for i in chosen], [self.keys[i] for i in chosen]
        labels = None if self.labels is None else self.labels[chosen]
        split = split or self.images.split
        images = replace(
            self.images,
            split=split,
            n=len(ids),
            classes=0 if labels is None else len(np.unique(labels)),
            fingerprint=images_fingerprint(keys, labels, self.class_names, split),
            pictures=pictures_fingerprint(keys),
        )
        record = replace(self.record, images=images)
        every = [*self._arrays.values(), *self._prefixes.values()]
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in every)
        fits = size <= IN_MEMORY or any(isinstance(array, np.ndarray) for array in every)
        arrays, prefixes = (
            {k: (Rows(x, chosen)[...] if fits else Rows(x, chosen)) for k, x in part.items()}
            for part in (self._arrays, self._prefixes)
        )
        counts: dict[str, int] = {}
        for rows in slices(len(ids), ROWS):
            taken = {**arrays, **{PREFIX + name: array for name, array in prefixes.items()}}
            some = {
                name: array[rows]
                for name, array in taken.items()
                if fits or name.removeprefix(PREFIX) in self.non_finite
            }
            count_non_finite(some, counts)
        return Representations(
            record, arrays, prefixes, ids, labels, self.class_names, counts, keys
        )

    def named(
        self, model: ModelRecord, images: ImagesRecord, ids: Sequence[str]
    ) -> Representations:
        """The same numbers under the names of an equal network and of equal images elsewhere."""
        record = replace(self.record, model=model, images=images)
        return Representations(
            record,
            self._arrays,
            self._prefixes,
            ids,
            self.labels,
            self.class_names,
            self.non_finite,
            self.keys,
        )

    def only(self, layers: str | Sequence[str]) -> Representations:
        """The run with some of its layers, chosen by names, globs, kinds or words as those of a
        model are; nothing is read.

        Raises LayerError for an item that matches nothing."""
        chosen: set[str] = set()
        for item in [layers] if isinstance(layers, str) else layers:
            found = matching(item, self.layers)
            if not found:
                raise LayerError(
                    f"no layer '{item}' in this run of {self.model.name}; "
                    f"{closest(item, self.names())}"
                )
            chosen |= {layer.name for layer in found}
        record = replace(
            self.record, layers=tuple(layer for layer in self.layers if layer.name in chosen)
        )
        arrays, prefixes, counts = (
            {name: part[name] for name in part if name in chosen}
            for part in (self._arrays, self._prefixes, self.non_finite)
        )
        return Representations(
            record, arrays, prefixes, self.ids, self.labels, self.class_names, counts, self.keys
        )

    def names(self) -> list[str]:
        """Layer names in execution order."""
        return [layer.name for layer in self.layers]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __repr__(self) -> str:
        return (
            f"Representations({self.model.name}, {len(self.ids)} images of {self.images.name}, "
            f"{len(self)} layers)"
        )


def _read_only(array: Any) -> np.ndarray:
    """A read-only view of an array."""
    found: np.ndarray = np.asarray(array).view()
    found.flags.writeable = False
    return found


def count_non_finite(arrays: Mapping[str, np.ndarray], counts: dict[str, int]) -> None:
    """Add the number of NaN and infinite values to `counts` by layer, prefix tokens included;
    finite ones get no entry."""
    for name, array in arrays.items():
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            layer = name.removeprefix(PREFIX)
            counts[layer] = counts.get(layer, 0) + bad
