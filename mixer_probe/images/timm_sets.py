"""timm's data sets as `Images`: `torch/` and `hfds/` by index, `wds/`, `hfids/` and `tfds/` as
streams."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixer_probe.core.errors import ImagesError, ImagesWarning, closest
from mixer_probe.core.fingerprint import bytes_key, file_keys, picture_key
from mixer_probe.images.decode import Reader, range_note, reason, remembered, sized
from mixer_probe.images.labelled import Images, numbered
from mixer_probe.images.streams import (
    Content,
    Part,
    Problem,
    ShardReader,
    StreamReader,
    first_pass,
    indexable,
    members,
)

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
# A PNG file of one pixel.
_DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000"
    "0002000148afa4710000000049454e44ae426082"
)
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
    targets where it has one, else every image is read once. Streams (wds, hfids, tfds) are gone
    through here up to `limit` images, for their names, labels and headers: images in local tar
    files that are not compressed are then read by their place, all others from the stream, which is
    opened again.

    Raises ImagesError for an unknown name or split, a missing package, data that cannot be opened,
    and labels that are not one class per image."""
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
    options = {**_OPTIONS.get(prefix, {}), **options}
    if prefix in _STREAMS:
        return _stream(_Opened(name, root, split, on_error, tuple(options.items())), limit)
    return _indexed(_create(name, root, split, options), name, split, root)


def _create(name: str, root: str | None, split: str, options: dict[str, Any]) -> Any:
    """timm's data set. Raises ImagesError where it cannot be opened."""
    from timm.data.dataset_factory import create_dataset

    try:
        return create_dataset(name, root=root, split=split, is_training=False, **options)
    # The readers of five libraries raise what they like, timm's assertions among it.
    except Exception as error:
        raise ImagesError(
            f"cannot open '{name}' (split '{split}', root {root}): {reason(error)}"
        ) from error


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
            return file_keys(self.files(positions), verify)
        return remembered(
            self.known, positions, verify, lambda position: picture_key(self.open(position))
        )

    def files(self, positions: Sequence[int]) -> Sequence[str]:
        """See `Reader`."""
        named = hasattr(self.dataset, "samples")
        return [self.where(position) for position in positions] if named else ()

    def part(self, positions: Sequence[int]) -> None:
        """See `Reader`."""


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

    def files(self, positions: Sequence[int]) -> Sequence[str]:
        """See `Reader`."""
        return ()

    def part(self, positions: Sequence[int]) -> None:
        """See `Reader`."""


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


@dataclass(frozen=True)
class _Opened:
    """Gives the images of a stream of timm, encoded where its reader can leave them so; opens it
    each time."""

    name: str
    root: str | None
    split: str
    on_error: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self) -> Iterator[bytes | Image.Image]:
        dataset = _create(self.name, self.root, self.split, dict(self.options))
        problem = _refused(self.name, self.on_error, [])
        for _, content, _ in _samples(dataset.reader, self.name, {}, problem):
            assert not isinstance(content, Part)
            yield content


def _stream(opened: _Opened, limit: int | None) -> Images:
    dataset = _create(opened.name, opened.root, opened.split, dict(opened.options))
    skipped: list[tuple[str, str]] = []
    states: dict[str, int] = {}
    problem = _refused(opened.name, opened.on_error, skipped)
    samples = _samples(dataset.reader, opened.name, states, problem)
    found = first_pass(samples, limit, opened.on_error == "skip", problem)
    n = len(found.names)
    if not n:
        why = f"; the first error: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ImagesError(f"'{opened.name}' gave no images (split '{opened.split}'){why}")
    labels, class_names = _labels(found.targets, _class_names(dataset), opened.name)
    top = max(found.tops, default=None)
    reader: Reader
    if found.shards:
        places = np.array(found.places, dtype=np.int64).reshape(-1, 3)
        shards = tuple(found.shards)
        reader = ShardReader(shards, tuple(states[shard] for shard in shards), places, top)
        positions = np.arange(n)
    else:
        known = [""] * (found.positions[-1] + 1)
        for position, key in zip(found.positions, found.keys, strict=True):
            known[position] = key
        reader = StreamReader(opened, tuple(known), top)
        positions = np.array(found.positions, dtype=np.int64)
    ids = tuple(found.names) if all(found.names) else numbered(f"{opened.split}/", n)
    note = ""
    if top is not None:
        note = range_note(f"{len(found.tops)} of {n} images of '{opened.name}' are", top)
        warnings.warn(note, ImagesWarning, stacklevel=6)
    counts = np.zeros(1) if labels is None else np.unique(labels, return_counts=True)[1]
    if limit == n and counts.max() - counts.min() > 1:
        warnings.warn(
            f"the first {n} images of the stream '{opened.name}' were taken, and classes "
            f"are uneven there ({counts.min()} to {counts.max()} images each, {len(counts)} "
            "classes); limit=None reads them all",
            ImagesWarning,
            stacklevel=6,
        )
    return Images(
        opened.name,
        opened.split,
        ids,
        labels,
        class_names,
        reader,
        positions,
        skipped=tuple(skipped),
        note=note,
    )


def _samples(
    reader: Any, name: str, states: dict[str, int], problem: Problem
) -> Iterator[tuple[str, Content, Any]]:
    """(name or "", content, target) in the order of the stream. `states` gets those of local
    shards."""
    # Every process of a distributed run gets all images; timm would divide them by rank.
    for attribute, value in {
        "dist_rank": 0,
        "dist_num_replicas": 1,
        "global_num_workers": 1,
    }.items():
        if hasattr(reader, attribute):
            setattr(reader, attribute, value)
    web = type(reader).__name__ == "ReaderWds"
    if web:
        # What the reader makes of targets, on top of samples that are not decoded.
        reader.ds = _web_samples(reader, states, problem)
    elif type(reader).__name__ == "ReaderHfids":
        from datasets import Image as Column

        reader._lazy_init()
        column = (reader.ds.features or {}).get(reader.input_key)
        if isinstance(column, Column) and column.mode is None:
            reader.ds = reader.ds.cast_column(reader.input_key, Column(decode=False))
    stream = iter(reader)
    while True:
        try:
            sample = next(stream, None)
            if sample is None:
                return
            key, image = sample[0] if web else ("", sample[0])
            if image is None:
                problem("an image", ValueError("it is missing"))
                continue
            content = _encoded(image) if isinstance(image, dict) else image
        except ImagesError:
            raise
        except Exception as error:
            raise ImagesError(f"cannot read on in '{name}': {reason(error)}") from error
        target = sample[1]
        scalar = hasattr(target, "item") and np.ndim(target) == 0
        yield key, content, target.item() if scalar else target


def _encoded(cell: dict[str, Any]) -> bytes:
    """The bytes of an image as a column of Hugging Face has it. Raises what reading raises."""
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    from datasets.utils.file_utils import xopen

    with xopen(cell["path"], "rb") as stream:
        return bytes(stream.read())


def _web_samples(reader: Any, states: dict[str, int], problem: Problem) -> Iterator[dict[str, Any]]:
    """Samples of a web data set as timm's pipeline gives them, the image as (key, content)."""
    from timm.data.readers import reader_wds
    from webdataset.filters import getfirst
    from webdataset.tariterators import group_by_keys, tarfile_samples

    read_target: Any = reader_wds._decode

    def noted(error: Exception) -> bool:
        if not isinstance(error, OSError):
            error.args = error.args[:1]  # webdataset adds what it was at
        problem("a sample", error)
        return True

    urls = [os.path.join(reader.root, file) for file in reader.split_info.filenames]
    paths = [url.removeprefix("file:").removeprefix("//") for url in urls]
    if any(":" in os.path.splitdrive(path)[1] for path in paths) or not all(map(indexable, paths)):
        samples = tarfile_samples(({"url": url} for url in urls), handler=noted)
    else:
        samples = group_by_keys(members(paths, states, problem), handler=noted)
    for sample in samples:
        called = f"image '{sample['__key__']}'"
        try:
            content = getfirst(sample, reader.input_key)
            if "cls" not in sample and not (reader.target_key or reader.split_info.alt_label):
                raise ValueError(f"it has no label: there is no file {sample['__key__']}.cls")
            # timm's own reading of the target, for an image that costs nothing to decode.
            decoded = read_target(
                {**sample, "png": _DOT},
                image_key="png",
                image_mode="",
                target_key=getattr(reader, "target_keys", None) or reader.target_key,
                alt_label=reader.split_info.alt_label,
            )
        except Exception as error:
            if isinstance(error, reader_wds.WdsTargetKeyError):
                raise
            problem(called, error)
            continue
        if decoded is not None:
            yield {"image": (str(sample["__key__"]), content), "target": decoded["target"]}


def _refused(name: str, on_error: str, skipped: list[tuple[str, str]]) -> Problem:
    """Raises ImagesError for what cannot be read of the set `name`, or with on_error="skip" notes
    it."""

    def problem(what: str, error: Exception) -> None:
        if on_error == "raise":
            raise ImagesError(
                f"cannot read {what} of '{name}': {reason(error)}; repair it, or leave such images "
                "out with on_error='skip'"
            ) from error
        skipped.append((f"{what} of '{name}'", reason(error)))

    return problem
