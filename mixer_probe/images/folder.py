"""Image files: a folder of them, with one folder per class or without, or single ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mixer_probe.core.errors import ImagesError, closest
from mixer_probe.core.validate import check_text, shown
from mixer_probe.images.decode import EXTENSIONS, FileReader
from mixer_probe.images.labelled import Images

_Place = tuple[tuple[str, ...], str]
_SPLITS = {"train", "training", "val", "valid", "validation", "eval", "evaluation", "test"}


def load_folder(folder: Path, split: str | None = None) -> Images:
    """The images under `folder`, or its folder `split`, sorted by path; ids are paths inside the
    folder.

    The first folder on the way to an image is its class; images lying directly in the folder have
    no labels. Hidden files and files without an image extension are ignored. Links are followed,
    and every folder and file is taken once, where it lies or else where the first link to it is:
    folders that link to each other add nothing.

    Raises ImagesError if there is no image, if images lie beside class folders, if the folder holds
    splits and none was named, and for a split that is not the name of a folder inside it."""
    top = folder
    if split is not None:
        check_text("split", split, ImagesError)
        if Path(split).name != split or split == "..":
            raise ImagesError(
                f"split is the name of a folder inside {folder}, not a way to another place: "
                f"{shown(split)}"
            )
        top = folder / split
        if not top.is_dir():
            children = [child.name for child in sorted(folder.iterdir()) if child.is_dir()]
            known = closest(split, children) if children else "it has no folders; leave out split="
            raise ImagesError(f"{folder} has no folder '{split}' to take as the split; {known}")
    files = sorted(image_files(top))
    if not files:
        others = Counter(
            Path(parts[-1]).suffix.lower() or "no extension" for parts in _visible_files(top)
        )
        found = ", ".join(f"{n} with {suffix}" for suffix, n in others.most_common(3))
        raise ImagesError(
            f"{top} holds no images ({f'other files: {found}' if found else 'it is empty'}); give "
            "a folder with files such as .jpg, .png or .webp, directly or in one folder per class"
        )
    loose = [parts for parts in files if len(parts) == 1]
    classes = tuple(sorted({parts[0] for parts in files if len(parts) > 1}))
    if classes and loose:
        raise ImagesError(
            f"{top} holds images beside class folders ({len(loose)}, first '{loose[0][0]}'): "
            "put every image into a class folder, or none"
        )
    if classes and {name.lower() for name in classes} <= _SPLITS:
        raise ImagesError(f"{top} holds the splits {', '.join(classes)}: choose one with split=")
    label = {name: i for i, name in enumerate(classes)}
    return Images(
        name=str(folder),
        split=split or "",
        ids=tuple("/".join(parts) for parts in files),
        labels=np.array([label[parts[0]] for parts in files], dtype=np.int64) if classes else None,
        class_names=classes or None,
        reader=FileReader(tuple(str(top.joinpath(*parts)) for parts in files)),
        positions=np.arange(len(files)),
    )


def image_files(top: Path) -> Iterator[tuple[str, ...]]:
    """Paths below `top` in parts, which sort as a person sorts folders: "a/z" before "a-b/c"."""
    return (parts for parts in _visible_files(top) if Path(parts[-1]).suffix.lower() in EXTENSIONS)


def _visible_files(top: Path) -> Iterator[tuple[str, ...]]:
    """Every file once, by its parts below `top`: those that lie there, then those that are linked
    there from elsewhere."""
    home = os.path.realpath(top)
    seen, files = {home}, set[str]()
    level: list[_Place] = [((), home)]
    folder_links, file_links = list[_Place](), list[_Place]()
    while level or folder_links:
        if not level:
            # All folders that lie here are known by now.
            level, folder_links = [place for place in folder_links if place[1] not in seen], []
            level = list({real: (parts, real) for parts, real in reversed(level)}.values())[::-1]
            seen.update(real for _, real in level)
        below: list[_Place] = []
        for parts, real in level:
            entries: list[os.DirEntry[str]] = []
            with suppress(OSError), os.scandir(real) as found:
                entries = sorted(
                    (entry for entry in found if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                )
            for entry in entries:
                path = (*parts, entry.name)
                target = (
                    os.path.realpath(entry.path)
                    if entry.is_symlink()
                    else os.path.join(real, entry.name)
                )
                # What is no link is known from the listing, without a look at each file.
                if not (os.path.isdir(target) if entry.is_symlink() else entry.is_dir()):
                    if entry.is_symlink():
                        file_links.append((path, target))
                    elif entry.is_file():
                        files.add(target)
                        yield path
                elif not entry.is_symlink():
                    if target not in seen:
                        seen.add(target)
                        below.append((path, target))
                elif not (real + os.sep).startswith(target.rstrip(os.sep) + os.sep):
                    # A link to a folder above the one it lies in leads to all of it again.
                    folder_links.append((path, target))
        level = below
    for path, target in file_links:
        # Of what is neither file nor folder, a pipe for instance, reading would never end.
        if target not in files and (os.path.isfile(target) or not os.path.exists(target)):
            files.add(target)
            yield path


def load_files(paths: Sequence[str | os.PathLike[str]], name: str = "files") -> Images:
    """Image files in the given order, without labels; ids are the paths as given, each once.

    Raises ImagesError for no path, and with the path of the first file that is missing, a folder,
    or no image. Warns (ImagesWarning) as `load_images` of images of more than 8 bits."""
    texts = tuple(dict.fromkeys(os.fspath(path) for path in paths))
    if not texts:
        raise ImagesError("give at least one image file")
    folders = [text for text in texts if os.path.isdir(text)]
    if folders:
        raise ImagesError(
            f"{folders[0]} is a folder, not an image file; load_images takes folders (--data on "
            "the command line)"
        )
    return Images(
        name=name,
        split="",
        ids=texts,
        labels=None,
        class_names=None,
        reader=FileReader(texts),
        positions=np.arange(len(texts)),
    ).check_files()
