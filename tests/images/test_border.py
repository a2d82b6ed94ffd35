"""The border of folders: every image once, nothing outside, nothing endless, nothing too large to
decode."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import pytest

from mixer_probe.core.errors import ImagesError
from mixer_probe.images import load_images
from mixer_probe.images.folder import load_files
from tests.images.test_load import save


@pytest.mark.parametrize("links", ["each other", "a third", "themselves", "files", "all of it"])
def test_every_folder_and_file_is_taken_once(tmp_path: Path, links: str) -> None:
    """Class folders that link to each other turned two images into 82, or never ended."""
    top = tmp_path / "top"
    save(top / "a" / "1.png")
    save(top / "b" / "2.png")
    if links == "each other":
        os.symlink(top / "b", top / "a" / "to-b")
        os.symlink(top / "a", top / "b" / "to-a")
    elif links == "a third":
        save(tmp_path / "c" / "3.png")
        for name in "ab":
            os.symlink(tmp_path / "c", top / name / "c")
        os.symlink(top, tmp_path / "c" / "back")
    elif links == "themselves":
        os.symlink("loop", top / "a" / "loop")
        os.symlink(top / "a", top / "a" / "again")
        os.mkfifo(top / "b" / "pipe.png")
    elif links == "files":
        os.symlink(top / "b" / "2.png", top / "a" / "0.png")
        os.symlink(top / "a" / "1.png", top / "a" / "9.png")
    else:
        os.symlink(tmp_path, top / "a" / "up")
        os.symlink("/", top / "b" / "root")
    images = load_images(top)
    assert images.ids == (
        ("a/1.png", "a/c/3.png", "b/2.png") if links == "a third" else ("a/1.png", "b/2.png")
    )
    assert images.class_names == ("a", "b")


@pytest.mark.parametrize(
    "split", ["..", ".", "", "/", "../other", "a/b", "/tmp", "x" * 300, "a\0b", "a\nb"]
)
def test_a_split_is_the_name_of_a_folder_inside(tmp_path: Path, split: str) -> None:
    save(tmp_path / "set" / "a" / "b" / "1.png")
    save(tmp_path / "other" / "1.png")
    with pytest.raises(ImagesError, match="split"):
        load_images(tmp_path / "set", split=split)


@pytest.mark.parametrize("source", ["", " ", "\n", "a\0b", "x" * 300, "x/" * 3000])
def test_a_source_that_is_no_name(source: str) -> None:
    with pytest.raises(ImagesError):
        load_images(source)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    """177 million pixels are 2.3 GB as RGBA; the header says so in 100 bytes."""
    for name, size in (("large", (13_300, 13_308)), ("strip", (1, 40_000_001))):
        header = struct.pack(">IIBBBBB", *size, 8, 6, 0, 0, 0)
        chunk = (
            struct.pack(">I", 13)
            + b"IHDR"
            + header
            + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        )
        (tmp_path / f"{name}.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"
        )
        with (
            pytest.warns() if name == "large" else nullcontext(),
            pytest.raises(ImagesError, match="more than 40 million"),
        ):
            load_files([tmp_path / f"{name}.png"])[0]
