"""Several passes decode each image once, and see the same bits as if each decoded them itself."""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, RandomCrop, Resize, ToTensor

import mixer_probe as mp
from mixer_probe.capture import pixel_batches
from mixer_probe.cli import main as command_line
from mixer_probe.core.errors import ImagesError
from mixer_probe.core.fingerprint import bytes_key
from mixer_probe.core.result import same
from mixer_probe.core.settings import StudySettings
from mixer_probe.images import Images, distort, from_arrays, model_transform
from mixer_probe.images import pixel_cache as module
from mixer_probe.images.distortions import LowPass
from mixer_probe.images.pixel_cache import PixelCache
from mixer_probe.images.streams import StreamReader
from mixer_probe.images.transforms import split_transform
from mixer_probe.study import run_analyses
from tests.networks import CASES, as_model

N = 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = model_transform((3, 24, 24), MEAN, STD)
OTHER = model_transform((3, 24, 24), (0.5,) * 3, (0.25, 0.5, 0.1))
SIZE = 3 * 24 * 24


def write(folder: Path, i: int, seed: int = 0) -> None:
    pixels = np.random.default_rng([seed, i]).integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)
    file = folder / "ab"[i % 2] / f"{i:02d}.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(N):
        write(tmp_path, i)
    return tmp_path


@pytest.fixture
def images(folder: Path) -> Images:
    return mp.load_images(folder)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the image of each file has been decoded."""
    found: Counter[str] = Counter()
    before = Images._decode

    def counting(images: Images, i: int) -> Image.Image:
        found[Path(images._where(i)).name] += 1
        return before(images, i)

    monkeypatch.setattr(Images, "_decode", counting)
    return found


def passed(images: Any, transform: Any, size: Any = 5, workers: int = 0) -> torch.Tensor:
    return torch.cat(list(images.batches(transform, size, workers=workers)))


@pytest.mark.parametrize("mode", ["center", "border", "squash"])
@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("shape", [(3, 24, 24), (3, 20, 33), (1, 24, 24)])
def test_the_bits_are_those_of_decoding(
    images: Images, decoded: Counter[str], shape: tuple[int, int, int], crop: float, mode: str
) -> None:
    cached = images.cached(PixelCache())
    for mean, std in ((MEAN, STD), ((0.0,) * 3, (1.0,) * 3), ((0.1, 0.5, 0.9), (0.3, 7.0, 0.01))):
        of = slice(0, shape[0])
        transform = model_transform(shape, mean[of], std[of], "bicubic", crop, mode)
        for chosen in (transform, split_transform(transform)[0]):
            expected = torch.stack([chosen(image) for image in images])
            decoded.clear()
            for _ in range(2):
                found = passed(cached, chosen)
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)
        assert not decoded.total() or mode == "border"


def test_networks_and_their_baselines_decode_each_image_once(
    images: Images, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [
        CASES["mixer"].model(),
        as_model(CASES["vit"].network(), mean=MEAN, std=STD),
    ]
    names = {
        "similarity": ["similarity"],
        "probing": ["accuracy"],
        "channels": ["statistics", "selectivity"],
        "attribution": ["curves"],
    }
    settings = StudySettings(batch_size=5, permutations=0, resamples=0)
    found = run_analyses(networks, names, images, settings=settings, strict=False)
    assert decoded == dict.fromkeys((Path(name).name for name in images.ids), 1)
    monkeypatch.setattr(PixelCache, "places", lambda *_: None)
    expected = run_analyses(networks, names, images, settings=settings, strict=False)
    assert min(decoded.values()) > 4
    assert len(found) == len(expected) > 8
    assert all(map(same, found, expected))


def test_a_comparison_decodes_each_image_once(
    folder: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--layers blocks --permutations 0 --resamples 0 --json --data"
    given = ["mixer-probe", "compare", "zoo:mixer-s0", "zoo:vit-s0", *options.split(), str(folder)]
    monkeypatch.setattr(sys, "argv", given)
    with suppress(SystemExit):
        command_line()
    assert set(decoded.values()) == {1}
    assert len(decoded) == N


def test_any_order_any_subset_and_the_views_of_images(
    images: Images, decoded: Counter[str]
) -> None:
    cached = images.cached(PixelCache())
    some = cached.subset([3, 1, 8])
    assert torch.equal(passed(some, PLAIN), passed(images.subset([3, 1, 8]), PLAIN))
    batches = [[7, 3, 4], [1], [0, 8, 2, 11]]
    expected = passed(images, OTHER, batches)
    decoded.clear()
    assert torch.equal(passed(cached, OTHER, batches), expected)
    assert decoded == Counter(Path(images.ids[i]).name for i in (7, 4, 0, 2, 11))
    decoded.clear()
    # One that is twice in a batch.
    assert torch.equal(passed(cached, OTHER, [[5, 5], [5, 5]])[3], passed(images, OTHER)[5])
    decoded.clear()
    assert torch.equal(passed(cached.sample(9, 4), PLAIN), passed(images.sample(9, 4), PLAIN))
    for view in (cached, cached.subset(range(N))):
        _ = passed(view, PLAIN)
    decoded.clear()
    low = LowPass(0.5)
    found = passed(distort(cached, low), PLAIN)
    model = CASES["mixer"].model()
    again = torch.cat(list(pixel_batches(model, cached)))
    assert max(decoded.values()) == 1  # of another size
    assert torch.equal(found, passed(distort(images, low), PLAIN))
    assert torch.equal(again, torch.cat(list(pixel_batches(model, images))))


def test_a_file_that_changes_is_decoded_again(
    folder: Path, images: Images, decoded: Counter[str]
) -> None:
    cached = images.cached(PixelCache())
    before = passed(cached, PLAIN)
    write(folder, 4, seed=1)
    decoded.clear()
    after = passed(cached, OTHER)
    assert [*decoded.elements()] == ["04.png"]
    assert torch.equal(after, passed(images, OTHER))
    row = list(images.ids).index("a/04.png")
    assert not torch.equal(passed(cached, PLAIN)[row], before[row])
    (folder / "a" / "04.png").unlink()
    with pytest.raises(ImagesError, match=r"04\.png: the file is gone"):
        passed(cached, PLAIN)


@pytest.mark.parametrize(("most", "kept"), [(7 * SIZE + 5, 7), (SIZE - 1, 0)])
def test_no_more_bytes_than_given(
    images: Images, decoded: Counter[str], most: int, kept: int
) -> None:
    cache = PixelCache(most)
    cached = images.cached(cache)
    expected = passed(images, PLAIN)
    for _ in range(2):
        decoded.clear()
        assert torch.equal(passed(cached, PLAIN), expected)
    assert decoded.total() == N - kept
    assert bytes_of(cache) == kept * SIZE


def bytes_of(cache: PixelCache) -> int:
    return sum(os.stat(table.file).st_size for table in cache._tables.values())


def test_half_of_the_free_disk_is_left(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, disk = PixelCache(), 10 * SIZE

    class Usage:
        @property
        def free(self) -> int:
            return disk - bytes_of(cache)

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage())
    assert len(passed(images.cached(cache), PLAIN, 1)) == N
    assert bytes_of(cache) == 5 * SIZE


class Full(io.FileIO):
    """A file on a disk with room for two images."""

    def write(self, content: Any) -> int:
        if self.tell() >= 2 * SIZE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


class Short(Full):
    """Its last write before the disk is full is not a whole one."""

    def write(self, content: Any) -> int:
        return super().write(memoryview(content).cast("B")[: 2 * SIZE + 9 - self.tell()])


@pytest.mark.parametrize("disk", [Full, Short])
def test_a_full_disk_ends_the_caching_and_nothing_else(
    images: Images, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch, disk: type[Full]
) -> None:
    cache = PixelCache()
    cached = images.cached(cache)
    monkeypatch.setattr(
        module, "open", lambda file, mode, buffering: disk(file, mode), raising=False
    )
    expected = passed(images, PLAIN)
    for _ in range(2):
        decoded.clear()
        assert torch.equal(passed(cached, PLAIN, 2), expected)
        assert bytes_of(cache) == 0
    assert decoded.total() == N


@pytest.mark.parametrize("left", [0, 3 * SIZE + 5])
def test_pixels_that_are_lost_are_decoded_again(images: Images, left: int) -> None:
    cache = PixelCache()
    cached = images.cached(cache)
    expected = passed(cached, PLAIN)
    (table,) = cache._tables.values()
    os.truncate(table.file, left)
    assert torch.equal(passed(cached, PLAIN), expected)
    assert bytes_of(cache) == 0


def test_another_file_in_its_place_is_left_alone(images: Images, tmp_path: Path) -> None:
    cache = PixelCache()
    _ = passed(images.cached(cache), PLAIN, [[0]])
    (table,) = cache._tables.values()
    other = tmp_path / "other"
    other.write_bytes(bytes(N * SIZE))
    table.file = str(other)
    assert torch.equal(passed(images.cached(cache), PLAIN), passed(images, PLAIN))
    assert other.read_bytes() == bytes(N * SIZE)


def test_no_room_for_temporary_files(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: Any) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", refused)
    assert len(passed(images.cached(PixelCache()), PLAIN)) == N


def test_a_file_with_a_name_where_there_is_no_path_to_its_number(
    images: Images, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, expected = PixelCache(), passed(images, PLAIN)
    monkeypatch.setattr(module.os.path, "exists", lambda _: False)
    for _ in range(2):
        decoded.clear()
        assert torch.equal(passed(images.cached(cache), PLAIN), expected)
    assert not decoded
    (table,) = cache._tables.values()
    assert Path(table.file).is_file()
    cache.end()
    file = table.file
    del cache, table
    gc.collect()
    assert not Path(file).exists()


def test_files_go_with_the_cache_and_stay_out_of_pickles(images: Images) -> None:
    cache = PixelCache(10**6)
    cached = images.cached(cache)
    _ = passed(cached, PLAIN)
    (file,) = (table.file for table in cache._tables.values())
    assert Path(file).stat().st_nlink == 0  # nothing is left of it when the process is killed
    assert pickle.loads(pickle.dumps(cached)).cache is None
    again = pickle.loads(pickle.dumps(cache))
    assert (again._tables, again._most) == ({}, 10**6)
    before = os.stat(file).st_ino
    del cache, cached
    gc.collect()
    assert not Path(file).exists() or os.stat(file).st_ino != before


@pytest.mark.parametrize(
    "transform",
    [
        ToTensor(),
        lambda image: torch.rand(3, 4, 4),
        Compose([Resize(24), RandomCrop(24), ToTensor()]),
        Compose([CenterCrop(24), lambda image: image, ToTensor()]),
        Compose([CenterCrop(24), ToTensor(), lambda x: x + 1]),
        Compose([ToTensor(), CenterCrop(24)]),
        Compose([]),
    ],
)
def test_other_transforms_are_left_alone(transform: Any) -> None:
    assert module.pixel_steps(transform) is None


def test_images_in_memory_are_left_alone() -> None:
    cache = PixelCache()
    images = from_arrays(np.zeros((3, 9, 9, 3), np.uint8)).cached(cache)
    assert len(passed(images, PLAIN)) == 3
    assert not cache._tables


def test_a_stream_is_read_once() -> None:
    starts = []

    def source() -> Iterator[bytes]:
        starts.append(0)
        yield from contents

    contents = []
    for i in range(6):
        stream = io.BytesIO()
        Image.new("RGB", (30, 40), (i, 7, 200)).save(stream, "PNG")
        contents.append(stream.getvalue())
    images = Images(
        name="stream",
        split="",
        ids=tuple("abcdef"),
        labels=None,
        class_names=None,
        reader=StreamReader(source, tuple(map(bytes_key, contents))),
        positions=np.arange(6),
        cache=PixelCache(),
    )
    first, second = passed(images, PLAIN, 4), passed(images, OTHER, 2)
    assert starts == [0]
    assert (
        first[5, :, 0, 0].tolist()
        == PLAIN(Image.new("RGB", (24, 24), (5, 7, 200)))[:, 0, 0].tolist()
    )
    assert torch.equal(second[5:], next(images.batches(OTHER, [[5]])))


def test_processes_that_decode(images: Images, decoded: Counter[str]) -> None:
    cached = images.cached(PixelCache())
    batches = [[0, 1, 2], [7, 3], [2, 9, 0, 10]]
    expected = passed(images, PLAIN, batches)
    decoded.clear()
    assert torch.equal(passed(cached, PLAIN, batches, workers=2), expected)
    for workers in (0, 2):
        assert torch.equal(passed(cached, PLAIN, batches, workers=workers), expected)
    assert decoded.total() == 0


def test_a_process_that_is_forked_off_leaves_the_files_alone(images: Images) -> None:
    cache = PixelCache()
    cached = images.cached(cache)
    expected = passed(cached, PLAIN, [[0, 1]])
    if not (child := os.fork()):
        code = 1
        try:
            _ = passed(cached, OTHER, [[2, 3]])
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes_of(cache) == 2 * SIZE
    assert torch.equal(passed(cached, PLAIN, [[0, 1]]), expected)


def test_threads(images: Images) -> None:
    from concurrent.futures import ThreadPoolExecutor

    cached, expected = images.cached(PixelCache()), passed(images, PLAIN)
    orders = [np.random.default_rng(i).permutation(N) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda order: passed(cached, PLAIN, [*order.reshape(4, 3)]), orders)
    for order, one in zip(orders, found, strict=True):
        assert torch.equal(one, expected[order])
