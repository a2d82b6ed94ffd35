"""timm's data sets as `Images`: `torch/` and `hfds/` by index, `wds/`, `hfids/` and `tfds/` as
streams."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixer_probe.core.errors import ImagesError, ImagesWarning, closest
from mixer_probe.core.fingerprint import bytes_key, file_keys, picture_key
from mixer_probe.images.decode import HeldReader, reason, remembered, sized, to_rgb
from mixer_probe.images.labelled import Images, numbered

PREFIXES = ("torch", "hfds", "hfids", "wds", "tfds")
_STREAMS = ("hfids", "wds", "tfds")
_NEEDS_ROOT = ("torch", "wds")
# The module that must be importable, and what pip calls it.
_PACKAGES = {
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets"),
}
_TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_FOLDERS = ("image_folder", "folder")
_TORCH_NAMES = (*_TWO_SPLITS, "inaturalist", "inat", "places365", "imagenet", *_FOLDERS)
# Images as they are in the file, for `to_rgb`; the number of samples only plans training, but hfids
# asks for it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "wds": {"input_img_mode": ""},
    "hfids": {"input_img_mode": "", "num_samples": 1},
}
_TORCH_SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")


def load_timm(
    name: str,
    root: str | None,
    split: str | None,
    limit: int | None,
    on_error: str,
    options: dict[str, Any],
) -> Images:
    """A data set by timm's name, through `timm.data.create_dataset`; `options` go there.

    Sets with an index (torch, hfds) are read when asked for; labels come from the set's list of
    targets where it has one, else every image is read once. Streams (wds, hfids, tfds) are read
    here, in order and on one core, up to `limit` images, and held in memory as 8-bit RGB (3 x H x W
    bytes an image).

    Raises ImagesError for an unknown name or split, a missing package, data that cannot be opened,
    and labels that are not one class per image."""
    from timm.data.dataset_factory import create_dataset

    prefix, known_as = name.lower().partition("/")[0], name.lower().split("/", 2)[-1]
    if split is None:
        split = "validation"
        if prefix == "torch" and known_as.endswith((*_FOLDERS, *_TWO_SPLITS)):
            split = "" if known_as.endswith(_FOLDERS) else "test"
    module, package = _PACKAGES.get(prefix, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise ImagesError(f"'{name}' needs the package {package}: pip install {package}")
    if prefix in _NEEDS_ROOT and root is None:
        raise ImagesError(f"'{name}' needs root=, the folder that holds the data")
    if prefix == "torch" and known_as not in _TORCH_NAMES:
        raise ImagesError(
            f"timm has no data set 'torch/{known_as}'; {closest(known_as, _TORCH_NAMES)}"
        )
    # timm takes any word that is not "train" for the test set, a misspelt one too.
    if prefix == "torch" and known_as in _TWO_SPLITS and split not in _TORCH_SPLITS:
        raise ImagesError(
            f"'torch/{known_as}' has no split '{split}'; {closest(split, _TORCH_SPLITS)}"
        )
    try:
        dataset = create_dataset(
            name,
            root=root,
            split=split,
            is_training=False,
            **{**_OPTIONS.get(prefix, {}), **options},
        )
    # The readers of five libraries raise what they like, timm's assertions among it.
    except Exception as error:
        raise ImagesError(
            f"cannot open '{name}' (split '{split}', root {root}): {reason(error)}"
        ) from error
    if prefix in _STREAMS:
        return _stream(dataset, name, split, limit, on_error)
    return _indexed(dataset, name, split, root)


@dataclass(frozen=True)
class TorchReader:
    """A data set of torchvision."""

    dataset: Any
    known: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        image: Image.Image = self.dataset[position][0]
        return image

    def where(self, position: int) -> str:
        """See `Reader`."""
        return str(self.dataset.samples[position][0]) if hasattr(self.dataset, "samples") else ""

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`."""
        if hasattr(self.dataset, "samples"):
            return file_keys([self.where(position) for position in positions], verify)
        return remembered(
            self.known, positions, verify, lambda position: picture_key(self.open(position))
        )


@dataclass(frozen=True)
class IndexReader:
    """A timm reader with an index.

    timm's own data set puts the next image in the place of an unreadable one; the reader beneath
    does not."""

    reader: Any
    known: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        with self.reader[position][0] as stream:
            image = sized(Image.open(stream))
            image.load()
            return image

    def where(self, position: int) -> str:
        """See `Reader`."""
        return ""

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`."""

        def key(position: int) -> str:
            with self.reader[position][0] as stream:
                return bytes_key(stream.read())

        return remembered(self.known, positions, verify, key)


def _indexed(dataset: Any, name: str, split: str, root: str | None) -> Images:
    if hasattr(dataset, "loader"):
        # torchvision's loader turns transparency black and ignores EXIF; ours sees the file as it
        # is.
        dataset.loader = Image.open
    reader = IndexReader(dataset.reader) if hasattr(dataset, "reader") else TorchReader(dataset)
    if name.lower().endswith(_FOLDERS) and split and root and Path(dataset.root) == Path(root):
        raise ImagesError(f"{root} has no folder for the split '{split}'")
    source = getattr(dataset, "reader", dataset)
    if np.ndim(getattr(dataset, "targets", 0)) == 1:
        targets = list(np.asarray(dataset.targets).tolist())
    elif hasattr(source, "iter_targets"):
        targets = list(source.iter_targets())
    else:
        targets = [source[i][1] for i in range(len(dataset))]
    labels, class_names = _labels(targets, _class_names(dataset), name)
    ids = numbered(f"{split}/", len(dataset))
    if hasattr(dataset, "samples") and hasattr(dataset, "root"):
        ids = tuple(Path(path).relative_to(dataset.root).as_posix() for path, _ in dataset.samples)
    return Images(name, split, ids, labels, class_names, reader, np.arange(len(dataset)))


def _class_names(dataset: Any) -> list[str]:
    if hasattr(dataset, "classes"):
        return [name if isinstance(name, str) else ", ".join(name) for name in dataset.classes]
    reader = getattr(dataset, "reader", None)
    index = getattr(reader, "class_to_idx", None)
    if index:
        return [str(name) for name in sorted(index, key=index.__getitem__)]
    # Class names that a stream of Hugging Face knows only once it has been read.
    features = getattr(getattr(reader, "ds", None), "features", None) or {}
    return list(getattr(features.get(getattr(reader, "target_key", "")), "names", ()))


def _labels(
    targets: list[Any], names: list[str], name: str
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...] | None]:
    missing = [target is None or (np.ndim(target) == 0 and target == -1) for target in targets]
    if all(missing):
        return None, None
    if any(missing):
        raise ImagesError(f"{sum(missing)} of the {len(targets)} images of '{name}' have no label")
    values = np.asarray(
        targets, dtype=object if any(np.ndim(target) for target in targets) else None
    )
    if values.dtype.kind not in "iubU":
        raise ImagesError(
            f"the labels of '{name}' are not one class per image; choose them with target_key="
        )
    if values.dtype.kind == "U":
        found, values = np.unique(values, return_inverse=True)
        names = [str(label) for label in found]
    return values.astype(np.int64), tuple(names) if len(names) > values.max() else None


def _stream(dataset: Any, name: str, split: str, limit: int | None, on_error: str) -> Images:
    with _swallowed_errors() as errors:
        samples = list(islice(_samples(dataset.reader, name, errors, on_error), limit))
    if not samples:
        why = f"; the first error: {errors[0]}" if errors else ""
        raise ImagesError(f"'{name}' gave no images (split '{split}'){why}")
    keys, pixels, targets = (list(column) for column in zip(*samples, strict=True))
    labels, class_names = _labels(targets, _class_names(dataset), name)
    ids = tuple(keys) if all(keys) else numbered(f"{split}/", len(keys))
    images = Images(name, split, ids, labels, class_names, HeldReader(pixels), np.arange(len(ids)))
    counts = np.zeros(1) if labels is None else np.unique(labels, return_counts=True)[1]
    if limit == len(images) and counts.max() - counts.min() > 1:
        warnings.warn(
            f"the first {len(images)} images of the stream '{images.name}' were taken, and classes "
            f"are uneven there ({counts.min()} to {counts.max()} images each, {len(counts)} "
            "classes); limit=None reads them all",
            ImagesWarning,
            stacklevel=6,
        )
    return replace(images, skipped=tuple((f"an image of '{name}'", error) for error in errors))


def _samples(
    reader: Any, name: str, errors: list[str], on_error: str
) -> Iterator[tuple[str, Image.Image, Any]]:
    """(key or "", RGB image, target) in the order of the stream."""
    # Every process of a distributed run gets all images; timm would divide them by rank.
    for attribute, value in {
        "dist_rank": 0,
        "dist_num_replicas": 1,
        "global_num_workers": 1,
    }.items():
        if hasattr(reader, attribute):
            setattr(reader, attribute, value)
    # Of a web data set, the key of each sample read so far; other streams name no samples.
    keys: list[str] = []
    if type(reader).__name__ == "ReaderWds":

        def note(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            for sample in samples:
                keys.append(str(sample["__key__"]))
                yield sample

        reader._lazy_init()
        reader.ds.append(note)
    stream = iter(reader)
    while True:
        try:
            sample = next(stream, None)
            rgb = to_rgb(sample[0]) if sample else None
        except Exception as error:
            raise ImagesError(f"cannot read on in '{name}': {reason(error)}") from error
        if errors and on_error == "raise":
            raise ImagesError(
                f"cannot read an image of '{name}': {errors[0]}; repair it, or leave such images "
                "out with on_error='skip'"
            )
        if sample is None or rgb is None:
            return
        target = sample[1]
        yield (
            keys[-1] if keys else "",
            rgb,
            target.item() if hasattr(target, "item") and np.ndim(target) == 0 else target,
        )


@contextmanager
def _swallowed_errors() -> Iterator[list[str]]:
    """The errors that timm's reader of web data sets only logs before it goes on with the next
    image."""
    errors: list[str] = []

    def note(record: logging.LogRecord) -> None:
        found = re.search(r"error \((.*)\)\. Ignoring", record.getMessage())
        errors.append(found[1] if found else record.getMessage())

    handler = logging.Handler(logging.WARNING)
    handler.emit = note  # type: ignore[method-assign]
    handler.addFilter(lambda record: "webdataset error" in record.getMessage())
    logger = logging.getLogger("timm.data.readers.reader_wds")
    logger.addHandler(handler)
    try:
        yield errors
    finally:
        logger.removeHandler(handler)
