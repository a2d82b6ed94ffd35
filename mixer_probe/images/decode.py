"""From a file or a decoder's output to plain 8-bit RGB, and from a decoder's exception to words."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from mixer_probe.core.errors import ImagesWarning
from mixer_probe.core.fingerprint import altered_key, bytes_key, file_keys, picture_key

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2"}
_NETPBM = {".ppm", ".pgm", ".pbm", ".pnm"}
# Of an image with more pixels nothing is decoded: each takes 3 to 13 bytes while it is read.
MOST_PIXELS = 40_000_000
EXTENSIONS = frozenset(
    _JPEG | _NETPBM | {".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".tga"}
)
_EMPTY = "the file is empty (0 bytes)"
# What Pillow raises of a damaged file, wherever the damage is.
_UNREAD = (OSError, SyntaxError, ValueError, struct.error)


class Reader(Protocol):
    """Where the pixels of a set of images come from; pickles, for the workers of a DataLoader."""

    def open(self, position: int) -> Image.Image:
        """The image at `position` in any mode, perhaps not decoded yet; raises what the decoder
        raises."""
        ...

    def where(self, position: int) -> str:
        """What to call this image in an error: a path if it has one, else ""."""
        ...

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """Hash of the content of the images at `positions`, `verify` whatever is known of it;
        raises what reading raises."""
        ...

    def files(self, positions: Sequence[int]) -> Sequence[str]:
        """What `file_keys` calls the images at `positions`; nothing where keys are of other
        things."""
        ...

    def part(self, positions: Sequence[int]) -> Reader | None:
        """These images alone, by their place in `positions`, as little as a process needs to read
        them; None where that is the whole reader."""
        ...


@dataclass(frozen=True)
class FileReader:
    """Image files. `top` is the largest value of those with more than 8 bits, see `largest_value`;
    None: by each image alone."""

    paths: tuple[str, ...]
    top: int | None = None

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        path = self.paths[position]
        if os.path.getsize(path) == 0:
            raise OSError(_EMPTY)
        return open_image(path, self.top)

    def where(self, position: int) -> str:
        """See `Reader`."""
        return self.paths[position]

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`."""
        return ranged_keys(file_keys(self.files(positions), verify), self.top)

    def files(self, positions: Sequence[int]) -> list[str]:
        """See `Reader`."""
        return [self.paths[position] for position in positions]

    def part(self, positions: Sequence[int]) -> FileReader:
        """See `Reader`."""
        return replace(self, paths=tuple(self.files(positions)))


@dataclass(frozen=True)
class HeldReader:
    """Images held in memory, decoded or as the bytes of files, which nothing else changes; `top` as
    in `FileReader`."""

    images: Sequence[Image.Image | bytes]
    top: int | None = None
    known: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        image = self.images[position]
        return open_image(image, self.top) if isinstance(image, bytes) else image

    def where(self, position: int) -> str:
        """See `Reader`."""
        return ""

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`."""
        return ranged_keys(
            remembered(self.known, positions, verify, lambda i: content_key(self.images[i])),
            self.top,
        )

    def files(self, positions: Sequence[int]) -> Sequence[str]:
        """See `Reader`."""
        return ()

    def part(self, positions: Sequence[int]) -> HeldReader:
        """See `Reader`."""
        return HeldReader([self.images[i] for i in positions], self.top)


def content_key(content: bytes | Image.Image) -> str:
    """The key of an encoded or a decoded image."""
    return bytes_key(content) if isinstance(content, bytes) else picture_key(content)


def open_image(file: str | bytes, top: int | None = None) -> Image.Image:
    """The image in a file, by its path or its bytes, perhaps not decoded yet; grey of more than 8
    bits as `FileReader` scales it to `top`. Raises what the decoder raises."""
    if not file:
        raise OSError(_EMPTY)
    source = file if isinstance(file, str) else io.BytesIO(file)
    image: Image.Image
    try:
        image = Image.open(source)
    except _UNREAD as error:
        image = _without_metadata(source, error)
    sized(image)
    return image if top is None or not is_deep(image.mode) else _eight_bits(upright(image), top)


def ranged_keys(keys: Sequence[str], top: int | None) -> Sequence[str]:
    """Keys of files that a reader scales to `top`: the same file gives other pixels where its set
    was found to end at another value."""
    if top in (None, WIDEST):
        return keys
    return [altered_key(key, f"values to {top}") for key in keys]


def remembered(
    known: dict[int, str], positions: Sequence[int], verify: bool, key: Callable[[int], str]
) -> Sequence[str]:
    """The key of each position from `known`, computed and added where it is missing, or in any case
    with `verify`."""
    for position in positions:
        if verify or position not in known:
            known[position] = key(position)
    return [known[position] for position in positions]


def sized(image: Image.Image) -> Image.Image:
    """The image, whose header says that it is not too large to be decoded. Raises ValueError."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        most = MOST_PIXELS // 10**6
        raise ValueError(
            f"it has {width}×{height} px, more than {most} million, the most that is decoded; make "
            "it smaller"
        )
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as a new 8-bit RGB image, turned as its EXIF orientation says.

    Transparency is laid over white, CMYK and palettes are converted, grey of more than 8 bits is
    scaled to 8 as `largest_value` says of this image alone, with a warning (ImagesWarning). Of an
    animation the first frame is taken; colour profiles are ignored, as torchvision does, and so is
    all other metadata, which may be damaged.

    Raises ValueError for floats and for 32-bit integers beyond 16 bits, whose range no file
    states."""
    source = getattr(image, "filename", "") or getattr(image, "fp", "")
    try:
        image.load()
    except _UNREAD as error:
        image = _without_metadata(source, error)
    image = upright(image)
    if is_deep(image.mode):
        top = largest_value([image])
        warnings.warn(range_note("an image is", top), ImagesWarning, stacklevel=2)
        image = _eight_bits(image, top)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def conversions(image: Image.Image) -> list[str]:
    """What `to_rgb` changes in an image that is open and not decoded yet, other than its range, in
    sentences."""
    found = []
    if getattr(image, "n_frames", 1) > 1:
        found.append(f"It has {image.n_frames} frames; the first one is used.")  # type: ignore[attr-defined]
    if image.mode == "CMYK":
        found.append(
            "It was in CMYK and is converted to RGB without its colour profile; colours may differ "
            "slightly."
        )
    if not is_deep(image.mode) and any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        found.append("It had 16 bits per channel; the upper 8 are used.")
    if image.has_transparency_data:
        found.append("Transparent regions are composited over white.")
    return found


# -- more than 8 bits ------------------------------------------------------------------------------

WIDEST = 0xFFFF
# These formats state that white is the largest value of their bits; Pillow scales them to 16 bits.
_STATED = {"PNG", "PPM", "JPEG2000"}


def is_deep(mode: str) -> bool:
    """Whether the grey values of this mode have more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def largest_value(images: Iterable[Image.Image]) -> int:
    """The value that stands for white in grey images of more than 8 bits that belong together: 255
    if none has a larger value and no format says otherwise, else 65535. What cannot be read, or is
    refused by `to_rgb`, is passed over."""
    for image in images:
        with image, suppress(*_UNREAD):
            if image.format in _STATED or 0xFF < np.asarray(image).max() <= WIDEST:
                return WIDEST
    return 0xFF


def range_note(which: str, top: int) -> str:
    """The sentence that says what was assumed."""
    return (
        f"{which} of more than 8 bits per channel, and the values are taken to run from 0 (black) "
        f"to {top} (white)"
    )


def _eight_bits(image: Image.Image, top: int) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > WIDEST:
        raise ValueError(
            "its 32-bit values have no stated range; save it with 8 or 16 bits a channel"
        )
    if values.max() > top:
        raise ValueError(
            f"it has the value {values.max()}, and the images of its set were found to end at "
            f"{top}; load the set again"
        )
    return Image.fromarray((values >> 8 if top == WIDEST else values).astype(np.uint8))


# -- metadata --------------------------------------------------------------------------------------

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# What of a PNG's optional chunks shows: transparency, further frames, and the orientation.
_PNG_KEPT = {b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"}


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that can be read. Nothing else of the
    metadata is looked at."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if value in _TURNS else 1
    except Exception:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF orientation says; itself where that says nothing."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    return turned


def _without_metadata(source: str | IO[bytes], error: Exception) -> Image.Image:
    """The image of a PNG or JPEG file that could not be read, from a copy without metadata. Raises
    `error` if that fails too."""
    try:
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as stream:
            stream.seek(0)
            start = stream.read(len(_PNG))
            if start != _PNG and not start.startswith(_JPEG_START):
                raise error
            content = start + stream.read()
        image = Image.open(io.BytesIO(_bare_png(content) if start == _PNG else _bare_jpeg(content)))
        if image.width * image.height <= MOST_PIXELS:  # others are refused by who asked
            image.load()
    except Exception:
        raise error from None
    return image


def _bare_png(content: bytes) -> bytes:
    """The chunks that make the picture; of the others those that show, where they are whole."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + 12 + length]
        whole = zlib.crc32(chunk[4 : 8 + length]) == int.from_bytes(chunk[8 + length :], "big")
        if kind[:1].isupper() or (kind in _PNG_KEPT and whole):
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes:
    """Without comments and application segments, but for EXIF and for the colour transform that
    Adobe's states."""
    kept, place = [_JPEG_START], 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker, length = struct.unpack_from(">xBH", content, place)
        if marker == 0xDA:
            break
        segment = content[place : place + 2 + length]
        optional = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not optional or marker == 0xE1 or (marker == 0xEE and length >= 14):
            kept.append(segment)
        place += 2 + length
    return b"".join(kept) + content[place:]


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words without a final stop."""
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in any format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return (
            f"it claims more than {pixels:.0f} million pixels, too many to decode safely; make it "
            "smaller"
        )
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
