"""From a file or a decoder's output to plain 8-bit RGB, and from a decoder's exception to words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mixer_probe.core.fingerprint import file_keys, picture_key

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2"}
_NETPBM = {".ppm", ".pgm", ".pbm", ".pnm"}
EXTENSIONS = frozenset(_JPEG | _NETPBM | {".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".tga"})


class Reader(Protocol):
    """Where the pixels of a set of images come from; pickles, for the workers of a DataLoader."""

    def open(self, position: int) -> Image.Image:
        """The image at `position` in any mode, perhaps not decoded yet; raises what the decoder raises."""
        ...

    def where(self, position: int) -> str:
        """What to call this image in an error: a path if it has one, else ""."""
        ...

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """Hash of the content of the images at `positions`, `verify` whatever is known of it; raises what reading raises."""
        ...


@dataclass(frozen=True)
class FileReader:
    """Image files."""

    paths: tuple[str, ...]

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        path = self.paths[position]
        if os.path.getsize(path) == 0:
            raise OSError("the file is empty (0 bytes)")
        return Image.open(path)

    def where(self, position: int) -> str:
        """See `Reader`."""
        return self.paths[position]

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`."""
        return file_keys([self.paths[position] for position in positions], verify)


@dataclass(frozen=True)
class HeldReader:
    """Images held in memory, which nothing else changes."""

    images: Sequence[Image.Image]
    known: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        return self.images[position]

    def where(self, position: int) -> str:
        """See `Reader`."""
        return ""

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`."""
        for position in positions:
            if verify or position not in self.known:
                self.known[position] = picture_key(self.images[position])
        return [self.known[position] for position in positions]


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as a new 8-bit RGB image, turned as its EXIF orientation says.

    Transparency is laid over white, CMYK and palettes are converted, 16-bit grey keeps its high byte (as
    Pillow does for 16-bit colour). Of an animation the first frame is taken; colour profiles are ignored, as
    torchvision does.

    Raises ValueError for 32-bit modes, whose range no file states."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _high_byte(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its 32-bit values have no stated range; save it with 8 or 16 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words without a final stop."""
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in any format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"it claims more than {pixels:.0f} million pixels, too many to decode safely; make it smaller"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
