"""`Images`: a sequence of labelled images that knows what its images are called and where they came
from."""

from __future__ import annotations

import math
import multiprocessing
import operator
import pickle
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import tee
from multiprocessing.context import BaseContext
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mixer_probe.core.errors import ImagesError, ImagesWarning
from mixer_probe.core.files import printable
from mixer_probe.core.fingerprint import images_fingerprint, known_keys, pictures_fingerprint
from mixer_probe.core.memory import slices
from mixer_probe.core.result import ImagesRecord
from mixer_probe.core.threads import available_cores, chosen_decoders, in_threads
from mixer_probe.core.validate import check_count, checked
from mixer_probe.images.classes import require_labels
from mixer_probe.images.decode import (
    FileReader,
    HeldReader,
    Reader,
    is_deep,
    largest_value,
    range_note,
    reason,
    to_rgb,
)
from mixer_probe.images.pixel_cache import PixelCache, PixelSteps, Places, pixel_steps
from mixer_probe.images.transforms import Transform

# Starting worker processes costs about as much as preparing this many images does.
_FEW_IMAGES = 512
_MOST_WORKERS = 8
# Looking at the files of so many images takes as long as computing something of their keys does.
_MANY_FILES = 100_000
_LONGEST = 600.0


@dataclass(frozen=True, eq=False)
class Images(Sequence[Image.Image]):
    """Labelled images in a fixed order, decoded one at a time when asked for.

    `ids` name the images in every result; `labels` [n] are int64 class indices or None;
    `class_names` are indexed by label, so there may be more of them than classes present; `skipped`
    holds (path, reason) of images left out as unreadable; `limit` and `seed` say how these were
    chosen from the source; `note` is what a reader must know of how they were read; with a `cache`
    several passes decode each image once. Pickles, without pixels where they come from files."""

    name: str
    split: str
    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    reader: Reader
    positions: npt.NDArray[np.int64]
    credit: str = ""
    skipped: tuple[tuple[str, str], ...] = field(default=())
    limit: int | None = None
    seed: int = 0
    note: str = ""
    cache: PixelCache | None = field(default=None, repr=False)
    _seen: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        # Names are what results, tables and figures say; files are opened by their paths, which the
        # reader has.
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "ids", tuple(map(printable, self.ids)))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))
        n_labels = len(self.ids) if self.labels is None else len(self.labels)
        if not len(self.positions) == len(self.ids) == n_labels:
            raise ImagesError(
                f"'{self.name}' needs one id and one label per image, got {len(self.ids)} ids and "
                f"{n_labels} labels for {len(self.positions)} images"
            )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_seen": {}, "cache": None}

    def __repr__(self) -> str:
        split = f", split={self.split!r}" if self.split else ""
        return f"Images({self.name!r}{split}, n={len(self)}, classes={self.n_classes})"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        """The image as 8-bit RGB.

        Raises IndexError, and ImagesError with the path of an image that cannot be decoded."""
        i = range(len(self))[operator.index(index)]
        try:
            return self._decode(i)
        except Exception as error:
            raise ImagesError(self._unreadable(i, error)) from error

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[i] for i in range(len(self)))

    @property
    def n_classes(self) -> int:
        """How many classes have an image here; 0 without labels."""
        return 0 if self.labels is None else len(np.unique(self.labels))

    @property
    def keys(self) -> tuple[str, ...]:
        """Hash of the content of each image: of the bytes of its file, or of its pixels where it is
        held in memory.

        A file is read again when its size or its times have changed; those of more than 100,000
        are looked at again only after ten times as long as that took, at most ten minutes. Raises
        ImagesError with the path of one that cannot be read."""
        if time.monotonic() >= self._seen.get("until", -math.inf):
            start = time.monotonic()
            keys = self._keys()
            # The same object, so that what was computed of equal ones can be told to be current.
            self._seen["keys"] = self._seen["keys"] if self._seen.get("keys") == keys else keys
            if len(self) > _MANY_FILES:
                now = time.monotonic()
                self._seen["until"] = now + min(_LONGEST, 10 * (now - start))
        found: tuple[str, ...] = self._seen["keys"]
        return found

    def verify(self) -> tuple[str, ...]:
        """The `keys`, with every image read again whatever its file's size and times say. Raises as
        they do."""
        self._seen.pop("until", None)
        return self._keys(verify=True)

    def _keys(self, verify: bool = False) -> tuple[str, ...]:
        try:
            return tuple(self.reader.keys(self.positions.tolist(), verify))
        except Exception:
            # Which one it was, in the order of the images.
            for i, position in enumerate(self.positions.tolist()):
                try:
                    self.reader.keys([position], verify)
                except Exception as error:
                    raise ImagesError(self._unreadable(i, error)) from error
            raise

    @property
    def fingerprint(self) -> str:
        """Hash over `keys` in order, labels, class names and split: equal for the same pictures in
        another folder, called otherwise. Raises as `keys`."""
        return self._fingerprints[0]

    @property
    def _fingerprints(self) -> tuple[str, str]:
        """Of the images, and of the pictures alone; computed again when what they are over
        changes."""
        keys = self.keys
        about = (
            keys,
            None if self.labels is None else self.labels.tobytes(),
            self.class_names,
            self.split,
        )
        if self._seen.get("about") != about:
            self._seen["fingerprints"] = (
                images_fingerprint(keys, self.labels, self.class_names, self.split),
                pictures_fingerprint(keys),
            )
            self._seen["about"] = about
        found: tuple[str, str] = self._seen["fingerprints"]
        return found

    def known_keys(self) -> dict[str, tuple[int, str]]:
        """What is known in this process of the files of these images, so that another one that is
        given it (`fingerprint.learn_keys`) need not read them."""
        return known_keys(self.reader.files(self.positions.tolist()))

    @property
    def record(self) -> ImagesRecord:
        """What a result says about the images it was measured on. Raises as `keys`."""
        fingerprint, pictures = self._fingerprints
        return ImagesRecord(
            name=self.name,
            split=self.split,
            n=len(self),
            classes=self.n_classes,
            fingerprint=fingerprint,
            pictures=pictures,
            limit=self.limit,
            seed=self.seed,
            skipped=len(self.skipped),
            credit=self.credit,
            note=self.note,
        )

    def require_labels(self, purpose: str) -> npt.NDArray[np.int64]:
        """The labels [n]. Raises ImagesError, naming `purpose`, where there are none."""
        return require_labels(self.labels, f"the images ({self.name})", purpose)

    def subset(
        self, indices: Iterable[int] | npt.NDArray[np.integer] | npt.NDArray[np.bool_]
    ) -> Images:
        """The images at `indices` (integers, or a mask of length n) in that order. Raises
        IndexError."""
        chosen = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        rows = np.arange(len(self))[chosen if chosen.size else chosen.astype(np.int64)]
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            labels=None if self.labels is None else self.labels[rows],
            positions=self.positions[rows],
        )

    def cached(self, cache: PixelCache) -> Images:
        """The same images, whose pixels are in `cache` once they are decoded."""
        found = replace(self, cache=cache)
        found._seen.update(self._seen)
        return found

    @checked(ImagesError)
    def sample(self, limit: int | None, seed: int = 0) -> Images:
        """At most `limit` images in the order they have here, every class as often as it can be.

        Any two classes that still have images left differ by at most one; without labels the draw
        is uniform. One seed gives nested samples: those of a smaller limit are among those of a
        larger one. Raises ImagesError for a limit below 1."""
        chosen = replace(self, limit=limit, seed=seed)
        rows = self.sampled(limit, seed)
        return chosen if len(rows) == len(self) else chosen.subset(rows)

    def sampled(self, limit: int | None, seed: int = 0) -> np.ndarray:
        """The indices here [image], ascending, of the images of `sample`."""
        if limit is None or limit >= len(self):
            return np.arange(len(self))
        order = np.random.default_rng(seed).permutation(len(self))
        if self.labels is not None:
            # First one image of every class, then a second one, and so on: any beginning of this
            # order is even.
            drawn = pd.Series(self.labels[order])
            turn = drawn.groupby(drawn).cumcount().to_numpy()
            order = order[np.argsort(turn, kind="stable")]
        return np.sort(order[:limit])

    def batches(
        self,
        transform: Transform,
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[torch.Tensor]:
        """The images as float tensors [B, 3, H, W]: consecutive batches of the size `batches`, of
        which the last may be smaller, or the images at the indices of each batch that it gives, in
        that order. Such an iterable is consumed as images are made, two batches per worker ahead.

        `workers` are processes that decode; the numbers do not depend on them. "auto" takes what
        `use_decoders` said, else none for few images or without CUDA, where the network itself
        keeps the cores busy, and otherwise one per core up to 8. A script needs no
        `if __name__ == "__main__"` for them, unless the transform is defined in it. The random
        state of torch is left alone.

        Raises ImagesError with the path of an image that cannot be decoded, for workers that the
        system ended, and as `index_batches`."""
        alone = self.reader.part([]) is not None
        cache = self.cache
        steps = None if cache is None else pixel_steps(transform)
        dataset = _Batches(None if alone else self, transform, steps)
        under_way: deque[tuple[Sequence[int], Places | None]] = deque()

        def items() -> Iterator[_Item]:
            for index in index_batches(batches, len(self)):
                places = None
                if cache is not None and steps is not None:
                    places = cache.places(self.reader, steps, self.positions[np.asarray(index)])
                under_way.append((index, places))
                if places is not None:
                    index = [i for i, there in zip(index, places.there, strict=True) if not there]
                yield self._sent(index) if alone and len(index) else index, places

        n_workers = self._n_workers(workers, dataset)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=items(),
            num_workers=n_workers,
            multiprocessing_context=_context() if n_workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
        with _without_main(dataset) if n_workers else nullcontext():
            prepared = iter(loader)
        try:
            for batch in prepared:
                index, places = under_way.popleft()
                if batch is None and cache is not None:
                    cache.end()
                    batch = _Batches(self, transform, None)[index, None]
                if isinstance(batch, ImagesError):
                    raise batch
                if cache is not None and steps is not None and places is not None:
                    cache.add(self.reader, steps, places)
                yield batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise ImagesError(
                f"a process that decodes images of '{self.name}' ended unexpectedly: use fewer "
                f"than {n_workers}, or none (workers=0, --decoders 0)"
            ) from error
        finally:
            del prepared  # whose processes end with it

    def _n_workers(self, workers: int | Literal["auto"], dataset: _Batches) -> int:
        if workers != "auto":
            check_count("workers", workers, ImagesError, least=0)
        # A daemonic process, such as those of networks in parallel, may have no children.
        if workers == 0 or multiprocessing.current_process().daemon:
            return 0
        chosen = chosen_decoders() if workers == "auto" else workers
        if chosen is None and (len(self) < _FEW_IMAGES or not torch.cuda.is_available()):
            return 0
        try:
            if dataset.needs_main() and workers == "auto":
                return 0
        except ImagesError:
            if workers == "auto":
                return 0
            raise
        return min(_MOST_WORKERS, available_cores()) if chosen is None else chosen

    def _sent(self, index: Sequence[int]) -> Images:
        """The images at `index`, as little as is sent to a process that decodes them."""
        positions = self.positions[np.asarray(index)]
        try:
            reader = self.reader.part(positions.tolist())
        except Exception:
            for i in sorted(index):
                self[i]  # Raises ImagesError for the image that cannot be read.
            raise
        assert reader is not None
        return Images(
            name=self.name,
            split=self.split,
            ids=tuple(self.ids[i] for i in index),
            labels=None,
            class_names=None,
            reader=reader,
            positions=np.arange(len(index)),
        )

    def skip_unreadable(self) -> Images:
        """The images that decode, and the others under `skipped`. Decodes every image once, on all
        cores.

        Raises ImagesError if none is left."""

        def why_not(i: int) -> str:
            try:
                self._decode(i)
            except Exception as error:
                return reason(error)
            return ""

        reasons = in_threads(why_not, range(len(self)))
        bad = tuple((self._where(i), why) for i, why in enumerate(reasons) if why)
        if len(bad) == len(self):
            path, why = bad[0]
            raise ImagesError(
                f"none of the {len(self)} images of '{self.name}' can be read; {path}: {why}"
            )
        good = self.subset([i for i, why in enumerate(reasons) if not why])
        return replace(good, skipped=self.skipped + bad)

    def check_files(self) -> Images:
        """These files, each opened without decoding it, with one range of values for all grey
        images of more than 8 bits.

        Raises ImagesError with the path of the first that is no image. Warns (ImagesWarning) of the
        range, see `note`."""
        reader = self.reader
        assert isinstance(reader, FileReader)
        reader = replace(reader, top=None)
        found = replace(self, reader=reader)

        def mode_of(i: int) -> str:
            try:
                with reader.open(int(self.positions[i])) as image:
                    return image.mode
            except Exception as error:
                raise ImagesError(self._unreadable(i, error)) from error

        modes = in_threads(mode_of, range(len(self)))
        deep = [i for i, mode in enumerate(modes) if is_deep(mode)]
        if not deep:
            return found
        top = largest_value(reader.open(int(position)) for position in self.positions[deep])
        note = range_note(f"{len(deep)} of {len(self)} images of '{self.name}' are", top)
        warnings.warn(note, ImagesWarning, stacklevel=3)
        return replace(found, reader=replace(reader, top=top), note=note)

    def _decode(self, i: int) -> Image.Image:
        with self.reader.open(int(self.positions[i])) as image:
            return to_rgb(image)

    def _where(self, i: int) -> str:
        return (
            self.reader.where(int(self.positions[i])) or f"image '{self.ids[i]}' of '{self.name}'"
        )

    def _unreadable(self, i: int, error: Exception) -> str:
        return (
            f"cannot read {self._where(i)}: {reason(error)}; replace or remove it, or leave such "
            "images out with on_error='skip'"
        )


def from_arrays(
    pixels: npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]],
    labels: Sequence[int] | npt.NDArray[np.integer] | None = None,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Images:
    """Images from uint8 arrays [n, H, W, 3] (or a list of [H, W, 3] of several sizes) held in
    memory.

    Raises ImagesError if the pixels are not uint8 RGB or the numbers of ids, labels and images
    differ."""
    if not len(pixels) or any(
        p.dtype != np.uint8 or p.ndim != 3 or p.shape[2] != 3 for p in pixels
    ):
        raise ImagesError("pixels must be at least one uint8 array [H, W, 3]")
    return Images(
        name=name,
        split="",
        ids=numbered("", len(pixels)) if ids is None else tuple(ids),
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
        class_names=None if class_names is None else tuple(class_names),
        reader=HeldReader([Image.fromarray(p) for p in pixels]),
        positions=np.arange(len(pixels)),
    )


def numbered(prefix: str, n: int) -> tuple[str, ...]:
    """n ids that sort in order: prefix, then the number padded with zeros."""
    return tuple(f"{prefix}{i:0{len(str(n - 1))}d}" for i in range(n))


def index_batches(batches: int | Iterable[Sequence[int]], n: int) -> Iterator[Sequence[int]]:
    """The indices of each batch of `n` images: consecutive ones for a size, else what `batches`
    gives, as it is asked for.

    Raises ImagesError for a size below 1, an empty batch and an index that is not one of 0 to
    n - 1."""
    if not isinstance(batches, Iterable):
        size = check_count("the size of batches", batches, ImagesError)
        yield from (range(part.start, part.stop) for part in slices(n, size))
        return
    for batch in batches:
        if not len(batch):
            raise ImagesError("a batch has no images: give the index of one or more")
        if min(batch) < 0 or max(batch) >= n:
            wrong = next(i for i in batch if not 0 <= i < n)
            raise ImagesError(f"a batch has index {wrong}, and there are {n} images: 0 to {n - 1}")
        yield batch


def indexed_batches(
    images: Any, transform: Any, batches: int | Iterable[Sequence[int]], **options: Any
) -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
    """Each batch of `images.batches(transform, batches, **options)` with the indices of its
    images."""
    given, indices = tee(index_batches(batches, len(images)))
    return zip(images.batches(transform, given, **options), indices, strict=False)


# Images, sent or by their indices, and where those of the batch are cached.
_Item: TypeAlias = tuple["Images | Sequence[int]", Places | None]


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[torch.Tensor | ImagesError | None]):
    """Batches of transformed images: those sent, or those of `images` by their indices; None where
    the cache fails. An error is handed over as a value: raised in a worker, it would reach the
    caller with the worker's traceback for a message."""

    images: Images | None
    transform: Transform
    steps: PixelSteps | None

    def __getitem__(self, item: _Item) -> torch.Tensor | ImagesError | None:
        batch, places = item
        images = batch if self.images is None else (self.images[i] for i in batch)  # type: ignore[index]
        try:
            if places is not None and self.steps is not None:
                return places.fill(self.steps, iter(images))  # type: ignore[arg-type]
            return torch.stack([self.transform(image) for image in images])  # type: ignore[arg-type]
        except ImagesError as error:
            return error

    def needs_main(self) -> bool:
        """Whether another process that gets it has to import the script or notebook of this one.
        Raises ImagesError if it cannot be sent."""
        try:
            return b"__main__" in pickle.dumps(self)
        except Exception as error:
            raise ImagesError(
                f"the transform cannot be sent to processes that decode ({reason(error)}): use "
                "workers=0"
            ) from error


def _context() -> BaseContext:
    """How processes that decode are started. Never by a fork of this one, whose threads and CUDA
    would not live on in them: by a server that has imported this module, or anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torchvision.transforms"])
    return context


# Held while processes start: one thread restores what it found.
_main_hidden = threading.RLock()


@contextmanager
def _without_main(dataset: _Batches) -> Iterator[None]:
    """Inside, processes start without running the script or notebook of this one again, unless what
    they get is defined there."""
    main: dict[str, Any] = vars(sys.modules["__main__"])
    names = () if dataset.needs_main() else ("__file__", "__spec__")
    with _main_hidden:
        hidden = {name: main[name] for name in names if name in main}
        main |= dict.fromkeys(hidden)
        try:
            yield
        finally:
            main |= hidden
