"""What the app opens by path: below its folders and nowhere else. And what is uploaded."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_probe_app import data, local_files, store
from mixer_probe_app.local_files import labels, resolve
from PIL import Image

from mixer_probe.core.errors import ImagesError, ModelError, StoreError

TRIED: Counter[str] = Counter()


def picture(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(stream, format=kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Pictures of two classes, a checkpoint, a run, a report, and a secret beside the folder."""
    home = tmp_path / "mine"
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        file = home / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture())
    (home / "weights.safetensors").write_bytes(b"x")
    (home / "run.zarr").mkdir()
    (home / "run.zarr" / "zarr.json").write_text("{}")
    (home / "report").mkdir()
    (home / "report" / "results.json").write_text("{}")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    os.symlink(tmp_path / "secret.safetensors", home / "link.safetensors")
    monkeypatch.setenv(local_files.PATHS, str(home))
    local_files.local_files.clear()
    yield home
    local_files.local_files.clear()


def test_everything_there_is_offered(folder: Path) -> None:
    assert labels("images")[:1] == ["mine/photos"]
    assert labels("run") == ["mine/run.zarr"]
    assert labels("results") == ["mine/report/results.json"]
    assert "mine/weights.safetensors" in labels("checkpoint")
    assert resolve("mine/photos", "images") == folder / "photos"


@pytest.mark.parametrize(
    "label",
    [
        "mine/../secret.safetensors",
        "mine/link.safetensors",
        "/etc/passwd",
        "other/x",
        "mine/nothing",
        "",
        "mine/a\0b",
        "~/x",
    ],
)
def test_nothing_else_is_opened(folder: Path, label: str) -> None:
    with pytest.raises(StoreError, match="there is no checkpoint"):
        resolve(label, "checkpoint")


def test_without_folders_it_says_how_to_give_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local_files.PATHS, raising=False)
    local_files.local_files.clear()
    with pytest.raises(StoreError, match="mixer-probe app FOLDER"):
        resolve("photos", "results")


def test_two_folders_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parent in "ab":
        (tmp_path / parent / "data").mkdir(parents=True)
    monkeypatch.setenv(
        local_files.PATHS, os.pathsep.join(str(tmp_path / parent / "data") for parent in "ab")
    )
    assert {"data", "data-2"} < set(local_files.roots())


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def test_an_upload_becomes_a_folder_with_classes() -> None:
    upload = zipped(**{"cats__1.png": picture(), "dogs__2.png": picture("JPEG"), "note.txt": b"x"})
    kept = data.save_upload([("some.zip", upload)])
    place = resolve(kept.removeprefix("folder:"), "images")
    assert sorted(str(file.relative_to(place)) for file in place.rglob("*.png")) == [
        "cats/1.png",
        "dogs/2.png",
    ]
    assert (
        data.save_upload(
            [
                (
                    "some.zip",
                    zipped(
                        **{
                            "cats__1.png": picture(),
                            "dogs__2.png": picture("JPEG"),
                            "note.txt": b"x",
                        }
                    ),
                )
            ]
        )
        == kept
    )


def test_a_zip_cannot_write_elsewhere() -> None:
    kept = data.save_upload(
        [("evil.zip", zipped(**{"..__..__..__evil.png": picture(), "__etc__x.png": picture()}))]
    )
    place = resolve(kept.removeprefix("folder:"), "images")
    assert sorted(str(file.relative_to(place)) for file in place.rglob("*.png")) == [
        "etc/x.png",
        "evil.png",
    ]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.zip", b"PK no zip", "no zip that can be read"),
        ("a.zip", b"", "no zip"),
        ("note.txt", b"x", "no picture in the upload"),
    ],
)
def test_a_bad_upload_is_a_sentence(name: str, content: bytes, said: str) -> None:
    with pytest.raises(ImagesError, match=said):
        data.save_upload([(name, content)])


def test_a_zip_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_BYTES", 10)
    with pytest.raises(ImagesError, match="start the app with their folder"):
        data.save_upload([("a.zip", zipped(**{"a__1.png": picture()}))])


def test_a_checkpoint_is_kept_by_its_content() -> None:
    label = local_files.keep_upload("any name.pth", b"content", ".pth")
    assert resolve(label, "checkpoint").read_bytes() == b"content"
    assert label in labels("checkpoint")
    assert local_files.keep_upload("other.pth", b"content", ".pth") == label


def test_equal_names_are_kept_apart() -> None:
    """In a zip: train/cat/1.png and val/cat/1.png; and of two uploads of one name."""
    pictures = [picture("PNG"), picture("BMP"), picture("GIF"), picture("TIFF")]
    upload = zipped(
        **{f"{split}__cat__1.png": p for split, p in zip(("train", "val", "test"), pictures)}
    )
    for files in (
        [("some.zip", upload)],
        [("cat/1.png", p) for p in pictures[:3]],
        [("a.zip", upload[:]), ("cat/1.png", pictures[3])],
    ):
        place = resolve(data.save_upload(files).removeprefix("folder:"), "images")
        kept = sorted(place.rglob("*.png"))
        assert len(kept) == (4 if len(files) == 2 else 3)
        assert {file.read_bytes() for file in kept} == set(pictures[: len(kept)])
        assert {file.parent.name for file in kept} == {"cat"}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 255),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
)
def test_damaged_zips_are_a_sentence(at: int, value: int, compression: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name in ("cat/1.png", "dog/2.png"):
            archive.writestr(name, picture())
    content = bytearray(stream.getvalue())
    content[at % len(content)] = value
    TRIED["zips"] += 1
    with suppress(ImagesError, StoreError):
        data.save_upload([("a.zip", bytes(content))])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=400), st.text(max_size=300))
def test_names_of_uploads_stay_below_their_folder(folder: str, name: str) -> None:
    TRIED["names"] += 1
    with suppress(ImagesError):
        place = resolve(
            data.save_upload([(f"{folder}/{name}.png", picture())]).removeprefix("folder:"),
            "images",
        )
        (kept,) = (file for file in place.rglob("*") if file.is_file())
        assert kept.resolve().is_relative_to(local_files.uploads().resolve())


@pytest.mark.parametrize(
    "name",
    ["//x.png", "\\\\x.png", "\\/x.png", "///etc/x.png", "/../x.png", "..\\..\\x.png", "a//x.png"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_no_name_leads_out_of_the_folder_of_uploads(name: str, zipped: bool) -> None:
    """Of a path that begins with two slashes, pathlib has both as its first part: to it, the root
    is no such part."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, picture())
    source = data.save_upload([("a.zip", stream.getvalue()) if zipped else (name, picture())])
    place = resolve(source.removeprefix("folder:"), "images")
    (kept,) = (file for file in place.rglob("*") if file.is_file())
    assert kept.name == "x.png"
    assert kept.resolve().is_relative_to(local_files.uploads().resolve())


def test_what_was_tried_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" {TRIED['zips']} damaged zips, {TRIED['names']} names of uploads,", end="")


@pytest.mark.parametrize(
    "text",
    [
        "hfds//etc",
        "hfds/../x",
        "hfds/a/b/c",
        "wds/../../x",
        "torch//tmp",
        "hfds/owner",
        "nothing",
        "folder/x",
        "hfds/a\\b/c",
    ],
)
def test_data_sets_are_named_and_no_paths(folder: Path, text: str) -> None:
    with pytest.raises((ImagesError, StoreError), match="names no images"):
        data.open_source(f"{text}@mine", "", None)


@pytest.mark.parametrize(
    "name",
    ["local-dir:/etc", "hf-hub:a/b", "HF-HUB:a/b", "../x", "/etc/x", "zoo:vit-s0", "nowhere"],
)
def test_a_checkpoint_is_of_a_network_of_timm(folder: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"of a network of timm|no model"):
        store.load(f"checkpoint:mine/weights.safetensors@{name}", "cpu")
    with pytest.raises(ModelError):
        store.load(name if ":" in name and not name.startswith("zoo:") else "local-dir:x", "cpu")


def test_links_out_of_the_folders_are_neither_listed_nor_read(folder: Path, tmp_path: Path) -> None:
    for name in ("photos/cats/out.png", "elsewhere"):
        target = tmp_path / "outside" / Path(name).name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(picture()) if target.suffix else target.mkdir()
        os.symlink(target, folder / name)
    (tmp_path / "outside" / "elsewhere" / "1.png").write_bytes(picture())
    local_files.local_files.clear()
    assert "mine/link.safetensors" not in labels("checkpoint")
    assert "mine/elsewhere" not in labels("images")
    assert all(resolve(label, "images") for label in labels("images"))
    with pytest.raises(ImagesError, match="a link out of the folders of this app"):
        data.open_source("folder:mine/photos", "", resolve("mine/photos", "images"))
