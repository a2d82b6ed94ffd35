"""Streams of images: the same numbers as of the same files in a folder, with nothing held in
memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mixer_probe as mp
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, ImagesWarning
from mixer_probe.core.fingerprint import bytes_key
from mixer_probe.images import Images
from mixer_probe.images.streams import ShardReader, StreamReader
from tests.networks import CASES

N = 24
# Images of a parquet file, which its reader reads as a whole.
PER_FILE = 20


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def two_shards(folder: Path, files: list[tuple[bytes, int]]) -> Path:
    """The images (content, label) in tar files pics-0 and pics-1."""
    folder.mkdir(parents=True, exist_ok=True)
    half = len(files) // 2
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(shard * half, len(files) if shard else half):
            members |= {f"k{i:03d}.png": files[i][0], f"k{i:03d}.cls": str(files[i][1]).encode()}
        write_tar(folder / f"pics-{shard}.tar", members)
    return folder


def parquet(folder: Path, files: list[tuple[bytes, int]], classes: tuple[str, ...]) -> Path:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    )
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(files), PER_FILE):
        part = files[start : start + PER_FILE]
        cells = [{"bytes": content, "path": None} for content, _ in part]
        columns = {"image": cells, "label": [label for _, label in part]}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(folder / f"validation-{start:04d}.parquet"))
    return folder


@pytest.fixture(scope="module")
def demo() -> Images:
    return mp.load_images("demo", limit=N)


@pytest.fixture(scope="module")
def files(demo: Images) -> list[tuple[bytes, int]]:
    assert demo.labels is not None
    return [(png(image), int(label)) for image, label in zip(demo, demo.labels, strict=True)]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, demo: Images, files: list[tuple[bytes, int]]
) -> Path:
    top = tmp_path_factory.mktemp("streams")
    for i, (content, label) in enumerate(files):
        file = top / "folder" / f"{label}" / f"k{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    two_shards(top / "shards", files)
    (top / "zipped").mkdir()
    for i in range(2):
        tar = (top / "shards" / f"pics-{i}.tar").read_bytes()
        (top / "zipped" / f"pics-{i}.tar.gz").write_bytes(gzip.compress(tar))
    parquet(top / "hf", files, demo.class_names or ())
    return top


def opened(place: Path, kind: str, **options: Any) -> Images:
    if kind == "hf":
        root = str(place / "cache")
        return mp.load_images(f"hfids/{place / 'hf'}", root=root, **options)
    root, split = {
        "shards": (place / "shards", "pics-{0..1}.tar"),
        "zipped": (place / "zipped", "pics-{0..1}.tar.gz"),
        "pipe": (f"pipe:cat {place / 'shards'}", "pics-{0..1}.tar"),
    }[kind]
    return mp.load_images("wds/pics", root=root, split=split, **options)


KINDS = {"shards": ShardReader, "zipped": StreamReader, "pipe": StreamReader, "hf": StreamReader}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("kind", KINDS)
def test_representations_are_those_of_the_same_files_in_a_folder(
    place: Path, kind: str, files: list[tuple[bytes, int]]
) -> None:
    folder, stream = mp.load_images(place / "folder"), opened(place, kind)
    order = np.argsort([Path(name).name for name in folder.ids])
    folder = folder.subset(order)
    assert isinstance(stream.reader, KINDS[kind])
    assert stream.keys == folder.keys == stream.verify()
    assert stream.labels is not None
    assert stream.labels.tolist() == [label for _, label in files]
    model = CASES["mixer"].model()
    expected, found = (mp.extract(model, i, batch_size=5) for i in (folder, stream))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    # In any order, and from another process.
    again = pickle.loads(pickle.dumps(stream)).subset([20, 3, 3, 21, 0])
    for image, i in zip(again, [20, 3, 3, 21, 0], strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(folder[i]))
    assert again.keys == folder.subset([20, 3, 3, 21, 0]).keys
    # The encoded images are sent to processes that decode.
    indices = [[20, 3, 3], [0]]
    for batch, i in zip(
        stream.batches(transform_of(model), indices, workers=1), indices, strict=True
    ):
        assert torch.equal(batch, next(folder.batches(transform_of(model), [i])))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_held(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 images less than ten are in memory after they were gone through, and few while they
    are read."""
    noise = np.random.default_rng(0)
    content = [
        (png(Image.fromarray(noise.integers(0, 256, (100, 100, 3), dtype=np.uint8))), i % 2)
        for i in range(40)
    ] * 10
    if kind == "hf":
        parquet(tmp_path / "hf", content, ("a", "b"))
    else:
        two_shards(tmp_path / "shards", content)
        (tmp_path / "zipped").mkdir()
        for i in range(2):
            tar = (tmp_path / "shards" / f"pics-{i}.tar").read_bytes()
            (tmp_path / "zipped" / f"pics-{i}.tar.gz").write_bytes(gzip.compress(tar, 0))
    size = len(content[0][0])
    opened(tmp_path, kind, limit=2)  # what is imported
    tracemalloc.start()
    images = opened(tmp_path, kind)
    held = tracemalloc.get_traced_memory()[0]
    assert [image.size for image in images] == [(100, 100)] * 400
    assert images[0].size == (100, 100)
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == 400
    assert held < 10 * size
    assert now < (12 + (PER_FILE if kind == "hf" else 0)) * size


def test_a_stream_is_read_once_in_order_and_again_to_go_back() -> None:
    starts = []

    def source() -> Iterator[bytes]:
        starts.append(0)
        for i in range(6):
            starts[-1] = i
            yield contents[i]

    contents = [png(Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(6)]
    reader = StreamReader(source, tuple(map(bytes_key, contents)))
    assert [reader.open(i).getpixel((0, 0))[0] for i in (1, 1, 2, 4)] == [1, 1, 2, 4]  # type: ignore[index]
    assert starts == [4]
    assert reader.open(0).getpixel((0, 0)) == (0, 0, 0)
    assert starts == [4, 0]
    part = reader.part([5, 1, 3, 1])
    assert [part.open(i).getpixel((0, 0))[0] for i in range(4)] == [5, 1, 3, 1]  # type: ignore[index]
    assert starts == [4, 5]


class Decoded:
    """A reader of timm that gives decoded images, as that of TensorFlow does."""

    class_to_idx = {"cat": 0, "dog": 1}  # noqa: RUF012
    dist_rank = 5

    def __iter__(self) -> Iterator[tuple[Image.Image | None, np.int64]]:
        assert self.dist_rank == 0
        for i in range(6):
            image = Image.new("RGB", (4, 4), (i, 0, 0))
            yield None if i == 3 else image, np.int64(i % 2)


def test_a_stream_of_decoded_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixer_probe.images import timm_sets

    monkeypatch.setattr(timm_sets.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(timm_sets, "_create", lambda *_: SimpleNamespace(reader=Decoded()))
    with pytest.raises(ImagesError, match="cannot read an image of 'tfds/x': it is missing"):
        mp.load_images("tfds/x")
    with pytest.warns(ImagesWarning, match="1 unreadable"):
        images = mp.load_images("tfds/x", on_error="skip")
    assert images.class_names == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 0, 0, 1]
    assert [image.getpixel((0, 0)) for image in images] == [(i, 0, 0) for i in (0, 1, 2, 4, 5)]
    assert images.keys == images.verify()
    assert len(set(images.keys)) == 5
    assert pickle.loads(pickle.dumps(images))[3].getpixel((0, 0)) == (4, 0, 0)


def test_a_split_of_timm_has_its_labels_classes_and_order(tmp_path: Path) -> None:
    """Samples, labels and class names are those that timm's own reader gives."""
    from timm.data.dataset_factory import create_dataset

    contents = [png(Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(5)]
    members = {"__meta__": b"x"}
    for i, content in enumerate(contents):
        label = json.dumps({"label": [2, 0, -1, 2, 0][i]}).encode()
        members |= {f"a/{i}.PNG": content, f"a/{i}.seg.txt": b"..", f"a/{i}.json": label}
    write_tar(tmp_path / "s.tar", members)
    (tmp_path / "classes.txt").write_text("bird\ncat\ndog\n")
    info = {"name": "v", "num_samples": 5, "filenames": ["s.tar"], "shard_lengths": [5]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"v": info}}))
    options: dict[str, Any] = {"target_key": "label", "class_map": {0: 1, 1: 0, 2: 2}}
    theirs = create_dataset("wds/x", root=str(tmp_path), split="v", **options)
    ours = mp.load_images("wds/x", root=tmp_path, split="v", **options)
    assert ours.ids == ("a/0", "a/1", "a/3", "a/4")  # timm leaves out negative labels
    assert ours.labels is not None
    found = [(image.getpixel((0, 0)), target) for image, target in theirs]
    assert found == [
        (image.getpixel((0, 0)), label)
        for image, label in zip(ours, ours.labels.tolist(), strict=True)
    ]


def broken_tar(folder: Path) -> None:
    tar = (folder / "pics-0.tar").read_bytes()
    (folder / "pics-0.tar").write_bytes(tar[: len(tar) // 2 - 700])


def cut_tar(folder: Path) -> None:
    with tarfile.open(folder / "pics-0.tar") as tar:
        offset = tar.getmembers()[4].offset
    os.truncate(folder / "pics-0.tar", offset)


def garbled_tar(folder: Path) -> None:
    with tarfile.open(folder / "pics-0.tar") as tar:
        offset = tar.getmembers()[4].offset
    with open(folder / "pics-0.tar", "r+b") as stream:
        stream.seek(offset)
        stream.write(b"x" * 512)


def no_tar(folder: Path) -> None:
    (folder / "pics-0.tar").write_bytes(b"no tar file" * 99)


def unlabelled(folder: Path) -> None:
    with tarfile.open(folder / "pics-0.tar", "a") as tar:
        entry = tarfile.TarInfo("odd.png")
        tar.addfile(entry, io.BytesIO(b""))


def twice(folder: Path) -> None:
    with tarfile.open(folder / "pics-0.tar", "a") as tar:
        for name in ("odd.png", "odd.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))


def unreadable(folder: Path) -> None:
    with tarfile.open(folder / "pics-0.tar", "a") as tar:
        for name, content in (("odd.png", b"..."), ("odd.cls", b"1")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("damage", "message", "left"),
    [
        (broken_tar, "cannot read the shard .*pics-0.tar of 'wds/pics': unexpected end of data", 9),
        (cut_tar, "the shard .*pics-0.tar of .*: it breaks off at byte .*the mark of its end", 8),
        (garbled_tar, "cannot read the shard .*pics-0.tar of .*: no tar header at byte", 8),
        (no_tar, "cannot read the shard .*pics-0.tar of 'wds/pics': .*header", 6),
        (unlabelled, "image 'odd' of 'wds/pics': it has no label: there is no file odd.cls", 12),
        (twice, "cannot read a sample of 'wds/pics': odd.png: duplicate file name", 12),
        (unreadable, "image 'odd' of 'wds/pics': it is not an image in any format", 12),
    ],
)
def test_damaged_shards_are_said_in_one_sentence(
    tmp_path: Path,
    files: list[tuple[bytes, int]],
    damage: Callable[[Path], None],
    message: str,
    left: int,
) -> None:
    two_shards(tmp_path / "shards", files[:12])
    damage(tmp_path / "shards")
    with pytest.raises(ImagesError, match=message) as caught:
        opened(tmp_path, "shards")
    assert "\n" not in str(caught.value)
    with pytest.warns(ImagesWarning, match="unreadable images of 'wds/pics' were left out"):
        images = opened(tmp_path, "shards", on_error="skip")
    assert len(images) == left
    assert len(images.skipped) >= 1
    assert [image.size for image in images] == [(32, 32)] * left


def test_a_shard_that_changes_is_refused(tmp_path: Path, files: list[tuple[bytes, int]]) -> None:
    two_shards(tmp_path / "shards", files[:6])
    images = opened(tmp_path, "shards")
    keys = images.keys
    two_shards(tmp_path / "shards", files[6:12])
    changed = r"pics-0\.tar has changed since it was indexed; load the images again"
    with pytest.raises(ImagesError, match=changed):
        images.keys  # noqa: B018
    with pytest.raises(ImagesError, match=changed):
        images[0]
    assert not set(opened(tmp_path, "shards").keys) & set(keys)
    shutil.rmtree(tmp_path / "shards")
    with pytest.raises(
        ImagesError, match=r"cannot read the image at byte 512 of .*the file is gone"
    ):
        images[0]


@pytest.mark.parametrize("kind", ["pipe", "hf"])
def test_a_stream_that_changes_is_refused(
    tmp_path: Path, files: list[tuple[bytes, int]], kind: str
) -> None:
    def write(some: list[tuple[bytes, int]]) -> None:
        if kind == "hf":
            parquet(tmp_path / "hf", some, tuple("abcdefghij"))
        else:
            two_shards(tmp_path / "shards", some)

    write(files[:6])
    images = opened(tmp_path, kind)
    write(files[:2])
    assert np.array_equal(np.asarray(images[1]), np.asarray(Image.open(io.BytesIO(files[1][0]))))
    with pytest.raises(ImagesError, match=r"image .*5.*: the stream has ended before image 5"):
        images[5]
    write(files[6:12])
    with pytest.raises(ImagesError, match="the stream gives another image than when it was first"):
        images[0]
    with pytest.raises(ImagesError, match="the stream gives another image than when it was first"):
        images.verify()


@pytest.mark.parametrize("kind", ["pipe", "hf"])
def test_unreadable_images_of_a_stream_are_left_out(
    tmp_path: Path, files: list[tuple[bytes, int]], kind: str
) -> None:
    some = [*files[:2], (b"no image", 1), (files[5][0][:-60], 0), *files[2:4]]
    if kind == "hf":
        parquet(tmp_path / "hf", some, tuple("abcdefghij"))
    else:
        two_shards(tmp_path / "shards", some)
    with pytest.raises(ImagesError, match=r"cannot read image '.*2' of .*it is not an image"):
        opened(tmp_path, kind)
    assert len(opened(tmp_path, kind, limit=2)) == 2
    with pytest.warns(ImagesWarning, match="2 unreadable images"):
        images = opened(tmp_path, kind, on_error="skip", limit=3)
    assert len(images) == 3
    expected = [Image.open(io.BytesIO(content)) for content, _ in (*files[:2], files[2])]
    for image, original in zip(images, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(original))


def test_deep_grey_images_are_scaled_as_in_a_folder(tmp_path: Path) -> None:
    values = [np.full((8, 8), value, np.uint16) for value in (40, 90)]
    streams = [io.BytesIO() for _ in values]
    for value, stream in zip(values, streams, strict=True):
        Image.fromarray(value).save(stream, "tiff")
    members: dict[str, bytes] = {}
    for i, stream in enumerate(streams):
        members |= {f"{i}.tif": stream.getvalue(), f"{i}.cls": str(i).encode()}
        (tmp_path / "folder" / str(i)).mkdir(parents=True)
        (tmp_path / "folder" / str(i) / f"{i}.tif").write_bytes(stream.getvalue())
    write_tar(tmp_path / "s.tar", members)
    with pytest.warns(ImagesWarning, match="run from 0 .* to 255"):
        folder = mp.load_images(tmp_path / "folder")
    with pytest.warns(ImagesWarning, match="2 of 2 images of 'wds/x' .* to 255") as caught:
        shards = mp.load_images("wds/x", root=tmp_path, split="s.tar", input_key="tif")
    assert {w.filename for w in caught} == {__file__}
    assert shards.note
    assert shards.keys == folder.keys
    assert [i.getpixel((0, 0)) for i in shards] == [(40,) * 3, (90,) * 3]
