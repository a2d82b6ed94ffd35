import gzip
import hashlib
import importlib.util
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_probe.core.errors import ImagesError, ImagesWarning
from mixer_probe.images import load_images, model_transform
from mixer_probe.images.bundled import CIFAR10_CLASSES

RNG = np.random.default_rng(0)


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def grey(value):
    return Image.new("RGB", (8, 8), (value, value, value))


def values(images):
    return [image.getpixel((0, 0))[0] for image in images]


# --- torchvision ---


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """CIFAR-10 in torchvision's layout with 6 images; returns (root, pixels [n, 3, 32, 32],
    labels)."""
    from torchvision.datasets import CIFAR10

    pixels, labels = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), [3, 3, 0, 9, 0, 9]
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    batch = pickle.dumps({"data": pixels.reshape(6, -1), "labels": labels})
    meta = pickle.dumps({"label_names": list(CIFAR10_CLASSES)})
    (folder / "test_batch").write_bytes(batch)
    (folder / "batches.meta").write_bytes(meta)
    # torchvision checks the sums of the real files.
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(CIFAR10, "train_list", [])
    described = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": hashlib.md5(meta).hexdigest(),
    }
    monkeypatch.setattr(CIFAR10, "meta", described)
    return tmp_path, pixels, labels


def test_torch_cifar10(cifar10):
    root, pixels, labels = cifar10
    images = load_images("torch/cifar10", root=root)
    assert (images.name, images.split, len(images)) == ("torch/cifar10", "test", 6)
    assert images.labels.tolist() == labels
    assert images.class_names[9] == "truck"
    assert images.ids == tuple(f"test/{i}" for i in range(6))
    for image, expected in zip(images, pixels, strict=True):
        assert np.array_equal(np.asarray(image), expected.transpose(1, 2, 0))
    assert load_images("torch/cifar10", root=root, limit=3).n_classes == 3
    again = pickle.loads(pickle.dumps(images))
    assert again.record == images.record


def test_torch_worker_processes(cifar10):
    root, pixels, _ = cifar10
    images = load_images("torch/cifar10", root=root)
    transform = model_transform((3, 32, 32), (0, 0, 0), (1, 1, 1))
    batch = torch.cat(list(images.batches(transform, 4, workers=2)))
    assert np.array_equal((batch * 255).round().to(torch.uint8).numpy(), pixels)


def test_torch_mnist_reads_labels_without_images(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    pixels, labels = (
        RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        np.array([7, 2, 1, 0, 4], np.uint8),
    )
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for suffix, header, data in (
            ("images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, 5, 28, 28), pixels),
            ("labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 5), labels),
        ):
            (raw / f"{split}-{suffix}").write_bytes(header + data.tobytes())
            (raw / f"{split}-{suffix}.gz").write_bytes(gzip.compress(header + data.tobytes()))

    decode = MNIST.__getitem__
    monkeypatch.setattr(
        MNIST, "__getitem__", lambda *_: pytest.fail("decoded an image for its label")
    )
    images = load_images("torch/mnist", root=tmp_path, split="train")
    assert images.labels.tolist() == labels.tolist()
    assert images.split == "train"
    monkeypatch.setattr(MNIST, "__getitem__", decode)
    assert np.array_equal(np.asarray(images[3]), np.repeat(pixels[3][..., None], 3, axis=2))


def test_torch_image_folder_ids_transparency_and_paths(tmp_path):
    for name in ("val/a/1.png", "val/b/2.png", "train/a/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / name)
    images = load_images("torch/image_folder", root=tmp_path, split="val")
    assert images.ids == ("a/1.png", "b/2.png")
    assert images.labels.tolist() == [0, 1]
    assert images.class_names == ("a", "b")
    assert values(images) == [255, 255]
    (tmp_path / "val/b/2.png").write_bytes(b"")
    with pytest.raises(ImagesError, match=r"cannot read .*val.b.2\.png"):
        images[1]
    with pytest.raises(ImagesError, match="has no folder for the split 'vla'"):
        load_images("torch/image_folder", root=tmp_path, split="vla")


def test_torch_sets_without_a_list_of_targets(tmp_path, monkeypatch):
    from timm.data import dataset_factory

    class Bare(torch.utils.data.Dataset):
        def __init__(self, root, train, download):
            self.labels = [1, 0, 1]

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return grey(10 * index), self.labels[index]

    monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, "cifar100", Bare)
    images = load_images("torch/cifar100", root=tmp_path)
    assert images.labels.tolist() == [1, 0, 1]
    assert images.class_names is None
    assert values(images) == [0, 10, 20]

    for labels, message in (
        ([1, None, 0], r"1 of the 3 images .* have no label"),
        ([1, [0, 1], 0], "not one class per image"),
        ([0.5, 0.1, 0.2], "not one class per image"),
    ):
        monkeypatch.setattr(
            Bare, "__getitem__", lambda self, index, labels=labels: (grey(0), labels[index])
        )
        with pytest.raises(ImagesError, match=message):
            load_images("torch/cifar100", root=tmp_path)
    monkeypatch.setattr(
        Bare, "__getitem__", lambda self, index: (grey(0), ["dog", "cat", "dog"][index])
    )
    assert load_images("torch/cifar100", root=tmp_path).class_names == ("cat", "dog")
    assert load_images("torch/cifar100", root=tmp_path).labels.tolist() == [1, 0, 1]
    monkeypatch.setattr(Bare, "__getitem__", lambda self, index: (grey(0), -1))
    assert load_images("torch/cifar100", root=tmp_path).labels is None


def test_torch_errors(tmp_path):
    with pytest.raises(
        ImagesError, match="'torch/cifar10' needs root=, the folder that holds the data"
    ):
        load_images("torch/cifar10")
    with pytest.raises(ImagesError, match=r"cannot open 'torch/cifar10' .*download=True") as caught:
        load_images("torch/cifar10", root=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImagesError, match="no data set 'torch/cifar-10'; closest: cifar10"):
        load_images("torch/cifar-10", root=tmp_path)
    with pytest.raises(ImagesError, match="no split 'tset'; closest: test"):
        load_images("torch/cifar10", root=tmp_path, split="tset")


# --- missing packages ---


@pytest.mark.parametrize(
    "name,package",
    [
        ("hfds/uoft-cs/cifar10", "datasets"),
        ("hfids/uoft-cs/cifar10", "datasets"),
        ("wds/shards", "webdataset"),
        ("tfds/cifar10", "tensorflow-datasets"),
    ],
)
def test_a_missing_package_is_named_for_pip(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(
        ImagesError, match=f"'{name}' needs the package {package}: pip install {package}$"
    ):
        load_images(name)


# --- web data sets ---


def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Two shards of three images; image i has the value 10 i and the label i // 4."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"pics-{shard}.tar", "w") as tar:
            for i in range(3 * shard, 3 * shard + 3):
                add(tar, f"k{i:03d}.png", encoded(grey(10 * i)))
                add(tar, f"k{i:03d}.cls", str(i // 4).encode())
    return tmp_path


BOTH = "pics-{0..1}.tar"


def test_wds_reads_in_the_order_of_the_shards(shards):
    images = load_images("wds/pics", root=shards, split=BOTH)
    assert images.ids == tuple(f"k{i:03d}" for i in range(6))
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert values(images) == values(images) == [0, 10, 20, 30, 40, 50]
    assert (images.name, images.split) == ("wds/pics", BOTH)
    assert pickle.loads(pickle.dumps(images)).record == images.record


def test_wds_limit_takes_the_first_and_warns_where_classes_are_uneven(shards):
    uneven = r"first 5 images .* uneven there \(1 to 4 images each, 2 classes\)"
    with pytest.warns(ImagesWarning, match=uneven) as w:
        images = load_images("wds/pics", root=shards, split=BOTH, limit=5)
    assert images.ids == tuple(f"k{i:03d}" for i in range(5))
    assert images.record.limit == 5
    assert [warning.filename for warning in w if warning.category is ImagesWarning] == [__file__]
    with pytest.raises(ImagesError, match=r"limit .* not 0"):
        load_images("wds/pics", root=shards, split=BOTH, limit=0)


def test_wds_split_by_its_info_file(shards):
    split = {"name": "val", "num_samples": 3, "filenames": ["pics-1.tar"], "shard_lengths": [3]}
    (shards / "info.json").write_text(json.dumps({"splits": {"val": split}}))
    images = load_images("wds/pics", root=shards, split="val")
    assert values(images) == [30, 40, 50]
    with pytest.raises(ImagesError, match=r"cannot open 'wds/pics' \(split 'tset'.*'val'"):
        load_images("wds/pics", root=shards, split="tset")


def test_wds_every_process_of_a_distributed_run_reads_all(shards, monkeypatch):
    import torch.distributed as dist

    for name, value in {"is_initialized": True, "get_rank": 1, "get_world_size": 2}.items():
        monkeypatch.setattr(dist, name, lambda *_, value=value: value)
    assert len(load_images("wds/pics", root=shards, split=BOTH)) == 6


def test_wds_unreadable_images_are_said_or_counted(shards):
    with tarfile.open(shards / "pics-0.tar", "a") as tar:
        add(tar, "bad.png", b"not an image")
        add(tar, "bad.cls", b"1")
    with pytest.raises(
        ImagesError, match=r"cannot read image 'bad' of 'wds/pics': .*on_error='skip'"
    ):
        load_images("wds/pics", root=shards, split=BOTH)
    with pytest.warns(ImagesWarning, match="1 unreadable images"):
        images = load_images("wds/pics", root=shards, split=BOTH, on_error="skip")
    assert images.ids == tuple(f"k{i:03d}" for i in range(6))
    assert images.record.skipped == 1


def test_wds_shards_that_are_not_there(shards):
    with pytest.raises(ImagesError, match=r"no-0\.tar of 'wds/pics': there is no such file"):
        load_images("wds/pics", root=shards, split="no-{0..1}.tar")
    with pytest.raises(ImagesError, match=r"gave no images .*no-0\.tar"):
        load_images("wds/pics", root=shards, split="no-{0..1}.tar", on_error="skip")


# --- Hugging Face data sets ---


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """A data set folder with four images in one parquet file; the third is no image."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kinds = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    cells = [{"bytes": encoded(grey(10 * i)), "path": None} for i in range(4)]
    cells[2] = {"bytes": b"not an image", "path": None}
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 1, 0]}, features=features)
    (tmp_path / "pets").mkdir()
    table.to_parquet(str(tmp_path / "pets" / "validation-0000.parquet"))
    return tmp_path


def test_hfds_reads_by_index_and_puts_no_other_image_in_the_place_of_a_bad_one(parquet):
    images = load_images(f"hfds/{parquet / 'pets'}", root=parquet / "cache")
    assert images.labels.tolist() == [0, 1, 1, 0]
    assert images.class_names == ("cat", "dog")
    assert images.ids == tuple(f"validation/{i}" for i in range(4))
    assert values([images[0], images[1], images[3]]) == [0, 10, 30]
    with pytest.raises(ImagesError, match="cannot read image 'validation/2' of 'hfds/"):
        images[2]
    with pytest.warns(ImagesWarning, match="1 unreadable"):
        kept = load_images(f"hfds/{parquet / 'pets'}", root=parquet / "cache", on_error="skip")
    assert values(kept) == [0, 10, 30]
    assert pickle.loads(pickle.dumps(kept)).record == kept.record
    with pytest.raises(ImagesError, match=r"cannot open 'hfds/.*split 'tset'"):
        load_images(f"hfds/{parquet / 'pets'}", root=parquet / "cache", split="tset")


def test_hfids_streams_in_order(parquet):
    images = load_images(f"hfids/{parquet / 'pets'}", root=parquet / "cache", limit=2)
    assert values(images) == [0, 10]
    assert images.labels.tolist() == [0, 1]
    assert images.class_names == ("cat", "dog")
    with pytest.raises(ImagesError, match=r"cannot read image '2' of 'hfids/.* no.* image"):
        load_images(f"hfids/{parquet / 'pets'}", root=parquet / "cache")
