"""A folder of images, with one folder a class or without."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mixer_probe.errors import ImagesError, closest
from mixer_probe.images.decode import EXTENSIONS, FileReader
from mixer_probe.images.labelled import Images

_SPLITS = {"train", "training", "val", "valid", "validation", "eval", "evaluation", "test"}


def load_folder(folder: Path, split: str | None = None) -> Images:
    """The images under `folder`, or its folder `split`, sorted by path; ids are paths inside the folder.

    The first folder on the way to an image is its class; images lying directly in the folder have no labels.
    Hidden files and files without an image extension are ignored, links are followed.

    Raises ImagesError if there is no image, if images lie beside class folders, or if the folder holds splits
    and none was named."""
    top = folder if split is None else _split_folder(folder, split)
    files = sorted(_image_files(top))
    if not files:
        raise ImagesError(_no_images(top))
    labels, class_names = _classes(top, files)
    return Images(
        name=str(folder),
        split=split or "",
        ids=tuple("/".join(parts) for parts in files),
        labels=labels,
        class_names=class_names,
        reader=FileReader(tuple(str(top.joinpath(*parts)) for parts in files)),
        positions=np.arange(len(files)),
    )


def _image_files(top: Path) -> Iterator[tuple[str, ...]]:
    """Paths below `top` in parts, which sort as a person sorts folders: "a/z" before "a-b/c"."""
    return (parts for parts in _visible_files(top) if Path(parts[-1]).suffix.lower() in EXTENSIONS)


def _visible_files(top: Path) -> Iterator[tuple[str, ...]]:
    for folder, children, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        shown = (child for child in children if not child.startswith("."))
        children[:] = [child for child in shown if not _loops(real, os.path.join(folder, child))]
        inside = Path(folder).relative_to(top).parts
        yield from ((*inside, name) for name in names if not name.startswith("."))


def _loops(real: str, child: str) -> bool:
    """Whether `child` is a link back to the folder `real` it lies in, or to one above."""
    return os.path.islink(child) and (real + os.sep).startswith(os.path.realpath(child) + os.sep)


def _classes(top: Path, files: Sequence[tuple[str, ...]]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    loose = [parts for parts in files if len(parts) == 1]
    names = tuple(sorted({parts[0] for parts in files if len(parts) > 1}))
    if not names:
        return None, None
    if loose:
        raise ImagesError(
            f"{top} holds images beside class folders ({len(loose)}, first '{loose[0][0]}'): "
            "put every image into a class folder, or none"
        )
    if {name.lower() for name in names} <= _SPLITS:
        raise ImagesError(f"{top} holds the splits {', '.join(names)}: choose one with split=")
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[parts[0]] for parts in files], dtype=np.int64), names


def _split_folder(folder: Path, split: str) -> Path:
    if (folder / split).is_dir():
        return folder / split
    children = [child.name for child in sorted(folder.iterdir()) if child.is_dir()]
    known = closest(split, children) if children else "it has no folders; leave out split="
    raise ImagesError(f"{folder} has no folder '{split}' to take as the split; {known}")


def _no_images(top: Path) -> str:
    others = Counter(Path(parts[-1]).suffix.lower() or "no extension" for parts in _visible_files(top))
    found = ", ".join(f"{n} with {suffix}" for suffix, n in others.most_common(3))
    return (
        f"{top} holds no images ({f'other files: {found}' if found else 'it is empty'}); "
        "give a folder with files such as .jpg, .png or .webp, directly or in one folder a class"
    )
