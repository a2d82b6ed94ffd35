import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mixer_probe.core.errors import ImagesError, ImagesWarning
from mixer_probe.images import load_images
from mixer_probe.images.concepts import image_size
from mixer_probe.images.decode import conversions, to_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def through_file(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return np.asarray(load_images(tmp_path)[0])


def test_rgb_is_unchanged(tmp_path):
    assert np.array_equal(through_file(tmp_path, Image.fromarray(RGB), "a.png"), RGB)


def test_grey_has_three_equal_channels(tmp_path):
    got = through_file(tmp_path, Image.fromarray(RGB[..., 0]), "a.png")
    assert np.array_equal(got, np.repeat(RGB[..., :1], 3, axis=2))


GREY = RGB[..., 0].astype(np.int64)
# The file, its values, its format's own statement of the range, and what is seen at 8 bits.
DEEP = {
    "png, 16 bits": ("a.png", (GREY * 257).astype(np.uint16), 65535, GREY),
    "png, dark": ("a.png", GREY.astype(np.uint16), 65535, 0 * GREY),
    "tiff, 16 bits": ("a.tif", (GREY * 257).astype(np.uint16), 65535, GREY),
    "tiff, 12 of 16 bits": ("a.tif", (GREY * 16).astype(np.uint16), 65535, GREY // 16),
    "tiff, 8 of 16 bits": ("a.tif", GREY.astype(np.uint16), 255, GREY),
    "tiff, 8 of 32 bits": ("a.tif", GREY.astype(np.int32), 255, GREY),
    "tiff, 16 of 32 bits": ("a.tif", (GREY * 257).astype(np.int32), 65535, GREY),
    "pgm, 16 bits": ("a.pgm", (GREY * 257).astype(">u2"), 65535, GREY),
    "pgm, dark": ("a.pgm", GREY.astype(">u2"), 65535, 0 * GREY),
}


def save_deep(path, values):
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 7 5 65535\n" + values.tobytes())
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize("case", DEEP)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_deep_grey_says_its_range(tmp_path, case, on_error):
    name, values, top, seen = DEEP[case]
    save_deep(tmp_path / name, values)
    Image.fromarray(RGB).save(tmp_path / "plain.png")
    with pytest.warns(ImagesWarning) as caught:
        images = load_images(tmp_path, on_error=on_error)
    assert np.array_equal(np.asarray(images[0]), np.repeat(seen[..., None], 3, axis=2))
    assert np.array_equal(np.asarray(images[1]), RGB)
    note = (
        rf"1 of 2 images of '{tmp_path}' are of more than 8 bits .* from 0 \(black\) to {top} "
        r"\(white\)"
    )
    assert re.fullmatch(note, images.note)
    assert [str(w.message) for w in caught] == [images.note]
    assert images.record.note == images.note


def test_deep_images_of_one_set_have_one_range(tmp_path):
    """A dark image of a set is not brightened to look like its neighbours."""
    for name, scale in (("a.tif", 1), ("b.tif", 257)):
        Image.fromarray((GREY * scale).astype(np.uint16)).save(tmp_path / name)
    with pytest.warns(ImagesWarning, match="2 of 2 images .* to 65535"):
        images = load_images(tmp_path)
    assert [np.asarray(image)[..., 0].max() for image in images] == [0, GREY.max()]
    assert [np.asarray(image)[..., 0].max() for image in images.subset([0])] == [0]


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32) / 255,
        GREY.astype(np.float32),
        (GREY * 2000).astype(np.int32),
        (GREY - 10).astype(np.int32),
    ],
)
def test_values_without_a_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.warns(ImagesWarning):
        images = load_images(tmp_path)
    with pytest.raises(
        ImagesError,
        match=r"a\.tif: its 32-bit values have no stated range; save it with 8 or 16 bits",
    ):
        images[0]


@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.ImagesWarning")
def test_float_images_have_no_stated_range():
    with pytest.raises(ValueError, match="no stated range"):
        to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))
    with pytest.raises(ValueError, match="no stated range"):
        to_rgb(Image.fromarray(np.full((2, 2), 70_000, np.int32)))


def test_transparency_is_laid_over_white(tmp_path):
    alpha = np.zeros((5, 7), np.uint8)
    alpha[0], alpha[1] = 255, 51
    got = through_file(tmp_path, Image.fromarray(np.dstack([RGB, alpha])), "a.png")
    assert np.array_equal(got[0], RGB[0])
    # An alpha of 51 / 255 is one fifth of the colour and four fifths of white.
    assert np.abs(got[1] - (0.2 * RGB[1] + 0.8 * 255)).max() <= 1
    assert (got[2:] == 255).all()


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    got = through_file(tmp_path, image, "a.png", transparency=0)
    assert got[0, 1].tolist() == [40, 50, 60]
    assert got[0, 0].tolist() == [255, 255, 255]


def test_palette_and_bilevel(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert through_file(tmp_path, image, "a.gif").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.asarray(to_rgb(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]


def test_cmyk_jpeg(tmp_path):
    got = through_file(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=95)
    # No cyan, full magenta and yellow: red.
    assert np.abs(got.astype(int) - [255, 0, 0]).max() <= 3


def png(*chunks, broken=False):
    """A PNG file with more chunks after its header; a broken one has a wrong checksum."""
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "PNG")
    added = [
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d) ^ broken)
        for t, d in chunks
    ]
    return whole.getvalue()[:33] + b"".join(added) + whole.getvalue()[33:]


def jpeg(*segments):
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "JPEG", quality=95)
    added = [bytes([0xFF, marker]) + struct.pack(">H", len(d) + 2) + d for marker, d in segments]
    return whole.getvalue()[:2] + b"".join(added) + whole.getvalue()[2:]


def exif(*entries):
    """EXIF of entries (tag, type, count, value as 4 bytes)."""
    packed = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + packed + b"\0\0\0\0"


TURN = (0x0112, 3, 1, b"\0\x06\0\0")
JUNK = {
    "png, much compressed text": png((b"zTXt", b"k\0\0" + zlib.compress(b"a" * (2 << 20)))),
    "png, large colour profile": png((b"iCCP", b"n\0\0" + zlib.compress(b"a" * (2 << 20)))),
    "png, colour profile of no method": png((b"iCCP", b"n\0\5junk")),
    "png, EXIF that is none": png((b"eXIf", b"junk")),
    "png, EXIF cut off": png((b"eXIf", exif(TURN)[:14])),
    "png, short resolution": png((b"pHYs", b"\0")),
    "png, short gamma": png((b"gAMA", b"\0")),
    "png, text with a wrong checksum": png((b"tEXt", b"k\0v"), broken=True),
    "jpeg, EXIF that is none": jpeg((0xE1, b"Exif\0\0junk")),
    "jpeg, EXIF cut off": jpeg((0xE1, b"Exif\0\0" + exif(TURN)[:14])),
    "jpeg, short colour profile": jpeg((0xE2, b"ICC_PROFILE\0")),
    "jpeg, several pictures that are none": jpeg((0xE2, b"MPF\0junk")),
    "jpeg, short Adobe segment": jpeg((0xEE, b"Adobe")),
    "jpeg, short JFIF segment": jpeg((0xE0, b"JFIF")),
    "jpeg, orientation as text": jpeg((0xE1, b"Exif\0\0" + exif((0x0112, 2, 2, b"6\0\0\0")))),
    "jpeg, no such orientation": jpeg((0xE1, b"Exif\0\0" + exif((0x0112, 3, 1, b"\0\x63\0\0")))),
}
TURNED = {
    "png, much text beside it": png(
        (b"eXIf", exif(TURN)), (b"zTXt", b"k\0\0" + zlib.compress(b"a" * (2 << 20)))
    ),
    "jpeg, a tag of no type beside it": jpeg(
        (0xE1, b"Exif\0\0" + exif(TURN, (0x011A, 99, 1, b"abcd")))
    ),
    "jpeg, a tag outside the file beside it": jpeg(
        (0xE1, b"Exif\0\0" + exif(TURN, (0x010F, 2, 1 << 30, b"\x7f\0\0\0")))
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", [*JUNK, *TURNED])
def test_metadata_never_decides_whether_pixels_load(tmp_path, case):
    content = JUNK.get(case) or TURNED[case]
    wanted = np.asarray(Image.open(io.BytesIO(png() if case.startswith("png") else jpeg())))
    (tmp_path / "a.png").write_bytes(content)
    got = load_images(tmp_path)
    assert np.array_equal(np.asarray(got[0]), wanted if case in JUNK else np.rot90(wanted, -1))
    assert image_size(got, 0) == np.asarray(got[0]).shape[:2]


def test_damaged_pixels_are_still_refused(tmp_path):
    content = bytearray(png((b"zTXt", b"k\0\0" + zlib.compress(b"a" * (2 << 20)))))
    content[-30] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImagesError, match=r"cannot read .*a\.png: "):
        load_images(tmp_path)[0]


@pytest.mark.parametrize(
    "orientation,turned",
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)),
        (7, RGB[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(RGB)),
    ],
)
def test_exif_orientation(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(through_file(tmp_path, Image.fromarray(RGB), "a.png", exif=exif), turned)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (3, 3), value) for value in (7, 200)]
    got = through_file(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (got == 7).all()


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (5, 5)).save(tmp_path / "big.png")
    with pytest.raises(
        ImagesError, match=r"big\.png: it claims more than 0 million pixels.*make it smaller"
    ):
        load_images(tmp_path)


def test_a_header_that_claims_too_many_pixels(tmp_path):
    # A bitmap header for 20,000 x 20,000 pixels with no pixels behind it.
    header = struct.pack("<2s6IHH", b"BM", 54, 0, 54, 40, 20_000, 20_000, 1, 24)
    (tmp_path / "bomb.bmp").write_bytes(header + bytes(24))
    with pytest.raises(ImagesError, match=r"bomb\.bmp: it claims more than 179 million pixels"):
        load_images(tmp_path)


def test_what_a_conversion_changes_is_said(tmp_path):
    frames = [Image.new("RGB", (8, 8), (90 * k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (8, 8)).save(tmp_path / "b.jpg")
    Image.new("RGBA", (8, 8)).save(tmp_path / "c.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "d.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "e.png")
    said = []
    for name in ("a.gif", "b.jpg", "c.png", "d.png", "e.png"):
        with Image.open(tmp_path / name) as image:
            said.append(conversions(image))
    words = ["3 frames", "CMYK", "composited over white"]
    assert [len(found) for found in said] == [1, 1, 1, 0, 0]
    assert all(word in found[0] for word, found in zip(words, said, strict=False))
