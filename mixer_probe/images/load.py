"""`load_images`: bundled samples, folders and timm's data sets."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mixer_probe.core.errors import ImagesError, ImagesWarning, closest
from mixer_probe.core.validate import checked, shown
from mixer_probe.images.bundled import load_demo, load_photos
from mixer_probe.images.decode import WIDEST, FileReader
from mixer_probe.images.folder import load_folder
from mixer_probe.images.labelled import Images
from mixer_probe.images.streams import ShardReader, StreamReader
from mixer_probe.images.timm_sets import PREFIXES, load_timm

_BUNDLED = {"demo": load_demo, "photos": load_photos}


@checked(ImagesError)
def load_images(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    **options: Any,
) -> Images:
    """Labelled images in a fixed order.

    `source` is one of
    - "demo": CIFAR-10 test images, 32 px, split="train" or "test" (default), 100 per class in each,
      disjoint;
    - "photos": 120 photographs, 299 px, labels are ImageNet-1k indices;
    - a folder, sorted by path: one folder per class, or images without labels; split= names a
      folder inside it (write "./demo" for a folder called demo);
    - a data set of timm: "torch/cifar10", "hfds/OWNER/NAME", "wds/NAME" (also "hfids/...",
      "tfds/...") with its root= and split= (default "validation"; "test" where torchvision has no
      other); further `options` go to `timm.data.create_dataset`, such as download=True, input_key=
      or target_key=.

    `limit` takes that many images, every class as often as it can be, drawn by `seed`. From a
    stream (wds, hfids, tfds) it takes the first ones, since evenness would mean decoding all of it,
    and warns where the classes come out uneven. A stream is gone through once here, for the names,
    labels and headers of its images, and again when they are asked for: from local tar files each
    by its place, from elsewhere in order. One image is in memory at a time.

    `on_error="raise"` opens the header of every chosen file of a folder (about 0.1 ms each) and
    names the first that is no image; one that breaks off later raises when it is read. "skip"
    decodes all images first, on all cores, leaves out those that fail, lists them under `.skipped`
    and warns with their number.

    Grey images of more than 8 bits are scaled to 8, all of a folder alike: values are taken to run
    to 65535, or to 255 where none is larger and no format says otherwise (TIFF). Which it was
    stands under `.note`, and a warning (ImagesWarning) says it.

    Raises ImagesError, one sentence each, for an unknown source (with the closest names), a folder
    that is missing or without images, an unreadable image (with its path), a package that is not
    installed and a limit below 1."""
    images = _open(
        source, split, None if root is None else os.fspath(root), limit, on_error, options
    )
    if on_error == "skip":
        if isinstance(images.reader, FileReader):
            # The range of values does not decide whether an image can be read.
            images = replace(images, reader=replace(images.reader, top=WIDEST))
        # A stream was decoded when it was gone through.
        stream = isinstance(images.reader, (ShardReader, StreamReader))
        readable = images if stream else images.skip_unreadable()
        if readable.skipped:
            path, why = readable.skipped[0]
            warnings.warn(
                f"{len(readable.skipped)} unreadable images of '{images.name}' were left out, "
                f"{len(readable)} are kept; the first: {path}: {why}",
                ImagesWarning,
                stacklevel=3,
            )
        images = readable
    if images.labels is not None and images.n_classes == 1:
        only = images.class_names[images.labels[0]] if images.class_names else str(images.labels[0])
        warnings.warn(
            f"all {len(images)} images of {images.name} are of one class, '{only}': probes and "
            "selectivity need two",
            ImagesWarning,
            stacklevel=3,
        )
    images = images.sample(limit, seed)
    return images.check_files() if isinstance(images.reader, FileReader) else images


def _open(
    source: str | os.PathLike[str],
    split: str | None,
    root: str | None,
    limit: int | None,
    on_error: str,
    options: dict[str, Any],
) -> Images:
    name = os.fspath(source)
    if not name.strip() or "\0" in name:
        raise ImagesError(
            f"images are a folder, 'demo', 'photos' or a name of timm, not {shown(name)}; give . "
            "for this folder"
        )
    prefix, slash, rest = name.partition("/")
    if slash and rest and prefix.lower() in PREFIXES:
        return load_timm(name, root, split, limit, on_error, options)
    patterns = [f"{prefix}/..." for prefix in PREFIXES]
    if root is not None or options:
        extra = ", ".join([*(["root"] if root is not None else []), *options])
        raise ImagesError(
            f"{extra}: only for timm's data sets ({', '.join(patterns)}), and '{name}' is none"
        )
    if name in _BUNDLED:
        return _BUNDLED[name](split)
    if os.path.isdir(name):
        return load_folder(Path(name), split)
    if os.path.exists(name):
        raise ImagesError(f"{name} is a file; give the folder it lies in")
    nearby: list[Path] = []
    with suppress(OSError):
        nearby = sorted(
            child
            for child in Path(name).parent.iterdir()
            if child.is_dir() and not child.name.startswith(".")
        )
    known = [*_BUNDLED, *patterns, *map(str, nearby)]
    raise ImagesError(
        f"'{name}' is no folder and no known data set; {closest(name, known)} "
        f"(give a folder, 'demo', 'photos' or a name of timm: {', '.join(patterns)})"
    )
