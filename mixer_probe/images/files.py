"""Single image files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from mixer_probe.core.errors import ImagesError
from mixer_probe.images.decode import FileReader
from mixer_probe.images.labelled import Images


def load_files(paths: Sequence[str | os.PathLike[str]], name: str = "files") -> Images:
    """Image files in the given order, without labels; ids are the paths as given, each once.

    Raises ImagesError for no path, and with the path of the first file that is missing, a folder, or no image.
    Warns (ImagesWarning) as `load_images` of images of more than 8 bits."""
    texts = tuple(dict.fromkeys(os.fspath(path) for path in paths))
    if not texts:
        raise ImagesError("give at least one image file")
    folders = [text for text in texts if os.path.isdir(text)]
    if folders:
        raise ImagesError(f"{folders[0]} is a folder, not an image file; load_images takes folders (--data on the command line)")
    return Images(
        name=name,
        split="",
        ids=texts,
        labels=None,
        class_names=None,
        reader=FileReader(texts),
        positions=np.arange(len(texts)),
    ).check_files()
