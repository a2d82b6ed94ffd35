"""`TrainingImages`: labelled images decoded once and kept as 8-bit pixels, for many epochs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.core.errors import ImagesError, StoreError
from mixer_probe.core.threads import in_threads
from mixer_probe.images import load_images
from mixer_probe.images.labelled import Images
from mixer_probe.images.pixel_cache import pixel_steps
from mixer_probe.zoo.cards import CLASS_NAMES

DOWNLOAD = "torch/cifar10"
# Pixels up to this size are held on the accelerator.
ON_DEVICE = 8 * 2**30


@dataclass(frozen=True)
class TrainingImages:
    """Pixels, uint8 [n, 3, h, w], and labels, int64 [n], with the names of the classes by label;
    `fingerprint` is that of the images."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    fingerprint: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def description(self) -> str:
        """Name, number of images and fingerprint."""
        return f"{self.name}: {len(self):,} images, fingerprint {self.fingerprint[:16]}"

    def subset(self, indices: Tensor) -> TrainingImages:
        """The images at `indices`, int64 [m], with a fingerprint of their own."""
        chosen = self.fingerprint.encode() + indices.cpu().numpy().tobytes()
        return replace(
            self,
            pixels=self.pixels[indices],
            labels=self.labels[indices],
            fingerprint=hashlib.sha256(chosen).hexdigest(),
        )

    def to(self, device: torch.device) -> TrainingImages:
        """On the device, where there is room for them; labels always."""
        fits = self.pixels.numel() <= ON_DEVICE
        pixels = self.pixels.to(device) if fits else self.pixels
        return replace(self, pixels=pixels, labels=self.labels.to(device))

    def spread(self, n: int) -> Tensor:
        """The indices of at most `n` images, the same number of every class where it can be."""
        labels = pd.Series(self.labels.cpu().numpy())
        turn = labels.groupby(labels).cumcount().to_numpy()
        return torch.from_numpy(np.sort(np.argsort(turn, kind="stable")[:n]))


def training_images(
    images: Images, size: tuple[int, int], cache: Path | None = None
) -> TrainingImages:
    """Images resized and cropped to `size` (height, width) as timm does for evaluation, decoded on
    all cores.

    With the folder `cache` the pixels are kept there, in a file named by the images' fingerprint,
    and mapped into memory. Raises ImagesError for images without labels or that cannot be read, and
    StoreError for a file in `cache` that cannot."""
    labels = images.require_labels("training")
    if images.class_names is None:
        raise ImagesError(f"the images ({images.name}) need class names for training")
    fingerprint = images.fingerprint
    file = None if cache is None else cache / f"{fingerprint[:16]}-{size[0]}x{size[1]}.npy"
    if file is not None and file.exists():
        try:
            pixels: npt.NDArray[np.uint8] = np.load(file, mmap_mode="c")
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(
                f"the decoded images in {file} cannot be read ({error}); remove the file to decode "
                "them again"
            ) from error
    else:
        pixels = _decode(images, size)
        if file is not None:
            partial = file.with_suffix(f".{os.getpid()}.npy")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(partial, pixels)
            partial.replace(file)
    return TrainingImages(
        torch.from_numpy(pixels),
        torch.from_numpy(labels.copy()),
        images.class_names,
        f"{images.name}/{images.split}" if images.split else images.name,
        fingerprint,
    )


def _decode(images: Images, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    from timm.data.transforms_factory import create_transform

    steps = pixel_steps(create_transform((3, *size), crop_pct=1.0))
    assert steps is not None
    return np.stack(in_threads(lambda i: steps.pixels(images[i]).numpy(), range(len(images))))


def cifar10(data: str | None, split: str, out: Path, limit: int = 200) -> TrainingImages:
    """A split ("train", "test") of CIFAR-10, of 32 px: below `data`/train and `data`/test in class
    folders, downloaded to `out` for `DOWNLOAD`, or `limit` of the bundled images for None. Decoded
    images are kept in `out`/decoded. Raises ImagesError, with the way to get CIFAR-10, for a folder
    that is missing or has other classes."""
    if data is None:
        return training_images(load_images("demo", split=split, limit=limit), (32, 32))
    if data == DOWNLOAD:
        images = load_images(DOWNLOAD, split=split, root=out / "cifar10", download=True)
    elif not Path(data, split).is_dir():
        raise ImagesError(
            f"no folder {Path(data, split)}: --data is a folder with train/<class>/ and "
            "test/<class>/ of the images of https://www.cs.toronto.edu/~kriz/cifar.html, or "
            f"{DOWNLOAD}, which downloads them"
        )
    else:
        images = load_images(data, split=split)
    if images.class_names != CLASS_NAMES:
        raise ImagesError(
            f"the classes of {images.name} are {', '.join(images.class_names or ['unknown'])}, not "
            f"those of CIFAR-10: {', '.join(CLASS_NAMES)}"
        )
    # The same name wherever the folder is: it is part of the settings of a run.
    found = training_images(images, (32, 32), out / "decoded")
    return replace(found, name=f"CIFAR-10/{split}")
