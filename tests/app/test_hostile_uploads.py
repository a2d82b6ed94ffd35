"""Uploads of any bytes: a picture, or a sentence."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mixer_probe.core.errors import ImagesError
from mixer_probe.core.text import visible
from tests.hostile import BOUNDED, DAMAGE, image_bytes, image_files, tell


def outcome(call: Any, *given: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(*given)
        except ImagesError as error:
            said = str(error)
            assert said == visible(said), said
            assert len(said.splitlines()) == 1, said
            assert 0 < len(said) < 500, said
            return "refused"
    return "read"


def test_an_upload_of_any_bytes_is_a_picture_or_a_sentence() -> None:
    from mixer_probe_app.pictures import LONGEST, read_upload

    tried = Counter[tuple[str, str]]()

    def read(name: str, content: bytes) -> None:
        picture, _ = read_upload(name, content)
        assert picture.mode == "RGB"
        assert max(picture.size) <= LONGEST

    @BOUNDED
    @given(image_files(), st.text(max_size=8))
    def check(made: tuple[str, str, bytes], name: str) -> None:
        kind, ending, content = made
        tried[kind, outcome(read, name + ending, content)] += 1

    check()
    tell("uploads of one picture", tried)
    assert {found for _, found in tried} == {"read", "refused"}
    assert not any(found == "read" for kind, found in tried if kind == "empty")


@st.composite
def archives(draw: Any) -> tuple[str, bytes]:
    """A zip of pictures under any names, damaged as a whole."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of names that it has twice
        for _ in range(draw(st.integers(0, 3))):
            name = draw(
                st.text(st.characters(codec="utf-8"), max_size=8)
                | st.sampled_from(["../../up", "/root", "a/b", "a\nb", ""])
            )
            archive.writestr(f"{name}.png", image_bytes("PNG"))
    damage = draw(st.sampled_from(sorted(DAMAGE)))
    return damage, DAMAGE[damage](draw, stream.getvalue())


def test_a_zip_of_any_bytes_is_kept_inside_its_folder_or_refused() -> None:
    from mixer_probe_app import data
    from mixer_probe_app.local_files import uploads

    tried = Counter[tuple[str, str]]()

    def keep(content: bytes) -> None:
        label = data.save_upload([("some.zip", content)])
        folder = uploads() / label.rpartition("/")[2]
        assert any(path.is_file() for path in folder.rglob("*"))

    @BOUNDED
    @given(archives())
    def check(made: tuple[str, bytes]) -> None:
        tried[made[0], outcome(keep, made[1])] += 1

    before = {
        path for path in uploads().parent.rglob("*") if uploads() not in (path, *path.parents)
    }
    check()
    tell("uploads of a zip", tried)
    assert {found for _, found in tried} == {"read", "refused"}
    # Nothing is written beside the folder of uploads.
    after = {path for path in uploads().parent.rglob("*") if uploads() not in (path, *path.parents)}
    assert after == before
