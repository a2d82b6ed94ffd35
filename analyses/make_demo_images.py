"""Make the bundled "demo" images again: 2,000 CIFAR-10 test images, drawn by a seed, packed without
loss.

    python analyses/make_demo_images.py --data DIR

DIR holds test/<class>/*.webp (or .png), the test images under their public file names. Each split
becomes one lossless WebP of 10 x 100 tiles, a column a class, and a table of ids and labels in the
same order.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mixer_probe.core.errors import ImagesError
from mixer_probe.images.bundled import CIFAR10_CLASSES, DATA, DEMO_SPLITS

SEED = 0
PER_CLASS = 100


def draw(data: Path, seed: int = SEED) -> dict[str, list[Path]]:
    """The files of each split; classes take turns, and no file is in two splits."""
    rng = np.random.default_rng(seed)
    columns = [_drawn(data / "test" / name, rng) for name in CIFAR10_CLASSES]
    turns = list(zip(*columns, strict=True))
    return {
        split: [path for turn in turns[k * PER_CLASS : (k + 1) * PER_CLASS] for path in turn]
        for k, split in enumerate(DEMO_SPLITS)
    }


def _drawn(folder: Path, rng: np.random.Generator) -> list[Path]:
    files = sorted(path for path in folder.glob("*.*") if path.suffix in (".webp", ".png"))
    wanted = PER_CLASS * len(DEMO_SPLITS)
    if len(files) < wanted:
        raise ImagesError(f"{folder} holds {len(files)} images; {wanted} are needed")
    return [files[i] for i in rng.permutation(len(files))[:wanted]]


def mosaic(files: Sequence[Path]) -> np.ndarray:
    """[100 x 32, 10 x 32, 3] uint8, the files along its rows."""
    tiles = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    width = len(CIFAR10_CLASSES)
    _, height, side, channels = tiles.shape
    grid = tiles.reshape(-1, width, height, side, channels).swapaxes(1, 2)
    return grid.reshape(-1, width * side, channels)


def write(files: Sequence[Path], out: Path, split: str) -> None:
    """Write OUT/split.webp and OUT/split.csv, and check that the pixels came through."""
    out.mkdir(parents=True, exist_ok=True)
    pixels = mosaic(files)
    Image.fromarray(pixels).save(out / f"{split}.webp", lossless=True, quality=100, method=6)
    if not np.array_equal(np.asarray(Image.open(out / f"{split}.webp").convert("RGB")), pixels):
        raise ImagesError(f"{out / split}.webp was not stored without loss")
    with (out / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("id", "label"))
        table.writerows(
            (f"{f.parent.name}/{f.stem}", CIFAR10_CLASSES.index(f.parent.name)) for f in files
        )


def main() -> None:
    """Read the arguments and write both splits."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="holds test/<class>/*.webp"
    )
    parser.add_argument(
        "--out", type=Path, default=DATA / "demo", metavar="DIR", help="where to write"
    )
    arguments = parser.parse_args()
    for split, files in draw(arguments.data).items():
        write(files, arguments.out, split)
        print(f"{split}: {len(files)} images in {arguments.out / split}.webp")


if __name__ == "__main__":
    main()
