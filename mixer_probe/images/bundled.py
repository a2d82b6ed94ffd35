"""The images that ship with the package: a CIFAR-10 sample and photographs of ImageNet classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixer_probe.core.errors import ImagesError, closest
from mixer_probe.core.fingerprint import picture_key
from mixer_probe.images.classes import imagenet_names
from mixer_probe.images.decode import FileReader, remembered
from mixer_probe.images.labelled import Images

DATA = Path(__file__).parent / "data"
DEMO_SPLITS = ("train", "test")
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_CREDIT = (
    "CIFAR-10 test images: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "2009"
)
CC_BY = "https://creativecommons.org/licenses/by/2.0/"
PHOTOS_CREDIT = (
    f"Photographs by their authors on Flickr, CC BY 2.0 ({CC_BY}), cropped and scaled to 299 "
    "pixels for the NIPS 2017 adversarial-attacks development set; author and page of each in "
    "mixer_probe/images/data/photos/photos.csv"
)
_TILE = 32


def load_demo(split: str | None) -> Images:
    """1,000 CIFAR-10 test images, 100 per class; `split` "test" (default) to test on, "train" to
    fit probes on.

    The classes take turns, so that any run of ten images holds each once.
    Raises ImagesError for another split."""
    split = split or "test"
    if split not in DEMO_SPLITS:
        raise ImagesError(f"'demo' has no split '{split}'; {closest(split, DEMO_SPLITS)}")
    rows = _rows(DATA / "demo" / f"{split}.csv")
    return Images(
        name="demo",
        split=split,
        ids=tuple(row["id"] for row in rows),
        labels=np.array([int(row["label"]) for row in rows], dtype=np.int64),
        class_names=CIFAR10_CLASSES,
        reader=MosaicReader(str(DATA / "demo" / f"{split}.webp")),
        positions=np.arange(len(rows)),
        credit=CIFAR10_CREDIT,
    )


def load_photos(split: str | None) -> Images:
    """120 photographs of 299 x 299 px, one each of 120 ImageNet classes; labels are ImageNet-1k
    indices.

    Raises ImagesError for any split: there is none."""
    if split is not None:
        raise ImagesError(f"'photos' has no splits; leave out split='{split}'")
    rows = _rows(DATA / "photos" / "photos.csv")
    return Images(
        name="photos",
        split="",
        ids=tuple(Path(row["file"]).stem for row in rows),
        labels=np.array([int(row["imagenet_index"]) for row in rows], dtype=np.int64),
        class_names=imagenet_names(),
        reader=FileReader(tuple(str(DATA / "photos" / row["file"]) for row in rows)),
        positions=np.arange(len(rows)),
        credit=PHOTOS_CREDIT,
    )


def photo_credit(image_id: str) -> str:
    """The credit line to show with one photograph of "photos". Raises ImagesError for an unknown
    id."""
    rows = {Path(row["file"]).stem: row for row in _rows(DATA / "photos" / "photos.csv")}
    if image_id not in rows:
        raise ImagesError(f"no photograph '{image_id}' is bundled; {closest(image_id, rows)}")
    row = rows[image_id]
    return (
        f"Photo: {row['author']}, CC BY 2.0 ({row['licence']}), {row['page']}, cropped and scaled"
    )


@dataclass(frozen=True)
class MosaicReader:
    """Tiles of 32 x 32 px in one image file, numbered along its rows."""

    path: str
    known: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        return Image.fromarray(_tiles(self.path)[position])

    def where(self, position: int) -> str:
        """See `Reader`."""
        return f"{self.path} (tile {position})"

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`: of the pixels of each tile."""
        return remembered(
            self.known, positions, verify, lambda position: picture_key(self.open(position))
        )

    def files(self, positions: Sequence[int]) -> Sequence[str]:
        """See `Reader`."""
        return ()

    def part(self, positions: Sequence[int]) -> None:
        """See `Reader`."""


# Outside the reader, so that pickling one sends its path and no pixels.
@cache
def _tiles(path: str) -> npt.NDArray[np.uint8]:
    with Image.open(path) as mosaic:
        pixels = np.asarray(mosaic.convert("RGB"))
    height, width, _ = pixels.shape
    grid = pixels.reshape(height // _TILE, _TILE, width // _TILE, _TILE, 3)
    return np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(-1, _TILE, _TILE, 3)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
