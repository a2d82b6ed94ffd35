import struct

import numpy as np
import pytest
from PIL import Image

from mixer_probe.errors import ImagesError
from mixer_probe.images import load_images
from mixer_probe.images.decode import to_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def through_file(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return np.asarray(load_images(tmp_path)[0])


def test_rgb_is_unchanged(tmp_path):
    assert np.array_equal(through_file(tmp_path, Image.fromarray(RGB), "a.png"), RGB)


def test_grey_has_three_equal_channels(tmp_path):
    got = through_file(tmp_path, Image.fromarray(RGB[..., 0]), "a.png")
    assert np.array_equal(got, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path, name):
    deep = RGB[..., 0].astype(np.uint16) * 257
    got = through_file(tmp_path, Image.fromarray(deep), name)
    assert np.array_equal(got, np.repeat(RGB[..., :1], 3, axis=2))


def test_sixteen_bit_pgm(tmp_path):
    deep = RGB[..., 0].astype(">u2") * 257
    (tmp_path / "a.pgm").write_bytes(b"P5 7 5 65535\n" + deep.tobytes())
    assert np.array_equal(np.asarray(load_images(tmp_path)[0])[..., 0], RGB[..., 0])


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
    with pytest.raises(ImagesError, match=r"big\.png: it claims more than 0 million pixels.*make it smaller"):
        load_images(tmp_path)


def test_a_header_that_claims_too_many_pixels(tmp_path):
    # A bitmap header for 20,000 x 20,000 pixels with no pixels behind it.
    header = struct.pack("<2s6IHH", b"BM", 54, 0, 54, 40, 20_000, 20_000, 1, 24)
    (tmp_path / "bomb.bmp").write_bytes(header + bytes(24))
    with pytest.raises(ImagesError, match=r"bomb\.bmp: it claims more than 179 million pixels"):
        load_images(tmp_path)
