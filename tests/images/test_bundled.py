import csv
import importlib.util
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_probe.core.errors import ImagesError
from mixer_probe.images import load_images, photo_credit
from mixer_probe.images.bundled import CIFAR10_CLASSES, DATA

DEMO, PHOTOS = DATA / "demo", DATA / "photos"


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def demo_script():
    path = Path(__file__).parents[2] / "analyses" / "make_demo_images.py"
    spec = importlib.util.spec_from_file_location("make_demo_images", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("split", ["train", "test"])
def test_demo_has_a_hundred_images_of_each_cifar10_class(split):
    images = load_images("demo", split=split)
    assert len(images) == 1000
    assert Counter(images.labels.tolist()) == dict.fromkeys(range(10), 100)
    assert images.class_names == CIFAR10_CLASSES
    assert [name.split("/")[0] for name in images.ids] == [
        CIFAR10_CLASSES[label] for label in images.labels
    ]
    assert {image.size for image in images} == {(32, 32)}
    assert "Krizhevsky" in images.credit


def test_demo_splits_share_neither_ids_nor_pixels():
    train, test = load_images("demo", split="train"), load_images("demo", split="test")
    assert len(set(train.ids) | set(test.ids)) == 2000
    assert len({image.tobytes() for images in (train, test) for image in images}) == 2000


def test_demo_default_split_is_test():
    assert load_images("demo").split == "test"
    assert load_images("demo").record == load_images("demo", split="test").record


def test_any_ten_demo_images_in_a_row_hold_each_class_once():
    labels = load_images("demo").labels
    assert all(len(set(labels[i : i + 10])) == 10 for i in range(991))


def test_demo_tiles_are_those_of_the_mosaic():
    images = load_images("demo", split="train")
    mosaic = Image.open(DEMO / "train.webp").convert("RGB")
    for i in (0, 1, 9, 10, 537, 999):
        left, top = 32 * (i % 10), 32 * (i // 10)
        assert images[i].tobytes() == mosaic.crop((left, top, left + 32, top + 32)).tobytes()


def test_the_demo_mosaics_are_lossless_and_small():
    for split in ("train", "test"):
        # A lossless WebP holds a VP8L chunk where a lossy one holds VP8.
        assert (DEMO / f"{split}.webp").read_bytes()[12:16] == b"VP8L"
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 4.5e6


def test_demo_pickles_without_pixels():
    images = load_images("demo")
    images[0]
    again = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 100_000
    assert again.record == images.record
    assert again[17].tobytes() == images[17].tobytes()


def test_the_script_makes_mosaics_that_give_back_the_source_pixels(tmp_path):
    script, rng = demo_script(), np.random.default_rng(5)
    source = {}
    for name in CIFAR10_CLASSES:
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(205):
            array = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "test" / name / f"x_{i:03d}.png")
            source[f"{name}/x_{i:03d}"] = array
    splits = script.draw(tmp_path)
    assert {split: len(files) for split, files in splits.items()} == {"train": 1000, "test": 1000}
    assert not set(splits["train"]) & set(splits["test"])
    script.write(splits["test"], tmp_path / "out", "test")
    rows = list(csv.DictReader((tmp_path / "out" / "test.csv").open()))
    mosaic = np.asarray(Image.open(tmp_path / "out" / "test.webp").convert("RGB"))
    for i, row in enumerate(rows):
        y, x = 32 * (i // 10), 32 * (i % 10)
        assert np.array_equal(mosaic[y : y + 32, x : x + 32], source[row["id"]])
        assert CIFAR10_CLASSES[int(row["label"])] == row["id"].split("/")[0]


def test_the_script_says_which_folder_lacks_images(tmp_path):
    with pytest.raises(ImagesError, match=r"airplane holds 0 images; 200 are needed"):
        demo_script().draw(tmp_path)


def test_unknown_demo_split():
    with pytest.raises(ImagesError, match="'demo' has no split 'tset'; closest: test"):
        load_images("demo", split="tset")


def test_photos_are_120_of_120_imagenet_classes():
    images = load_images("photos")
    assert len(images) == images.n_classes == 120
    assert {image.size for image in images} == {(299, 299)}
    assert len(images.class_names) == 1000
    assert "CC BY 2.0" in images.credit
    with Image.open(PHOTOS / f"{images.ids[0]}.jpg") as photo:
        assert images[0].tobytes() == photo.convert("RGB").tobytes()


def test_photos_have_the_imagenet_names_of_their_indices():
    images = load_images("photos")
    names = dict(
        zip(images.ids, (images.class_names[label] for label in images.labels), strict=True)
    )
    # The pictures were looked at: a goldfish, a hummingbird, a black swan.
    assert names["4de063bd5b838f11"] == "goldfish"
    assert names["823f8eae0df2d5c1"] == "hummingbird"
    assert names["a033832d9ff8913b"] == "black swan"


def test_names_shared_by_two_imagenet_classes_stay_apart_where_wordnet_tells_them_apart():
    names = load_images("photos").class_names
    # The bird and the machine; timm has the plain word for both.
    assert [name for name, n in Counter(names).items() if n > 1] == []


def test_every_photo_is_listed_with_author_licence_and_page_and_no_other_is_there():
    rows = list(csv.DictReader((PHOTOS / "photos.csv").open(encoding="utf-8")))
    assert {row["file"] for row in rows} == {path.name for path in PHOTOS.glob("*.jpg")}
    assert {row["licence"] for row in rows} == {"https://creativecommons.org/licenses/by/2.0/"}
    assert all(row["author"] and "flickr.com" in row["page"] for row in rows)
    assert not [row["author"] for row in rows if "&amp;" in row["author"] or "\\" in row["author"]]


def test_photo_credit_names_author_licence_page_and_change():
    line = photo_credit("4de063bd5b838f11")
    page = "https://www.flickr.com/photos/tamakisono/30863954931/"
    for part in ("Tamaki Sono", "CC BY 2.0", page, "scaled"):
        assert part in line
    with pytest.raises(ImagesError, match="no photograph '4de063'"):
        photo_credit("4de063")


def test_photos_have_no_splits():
    with pytest.raises(ImagesError, match="'photos' has no splits"):
        load_images("photos", split="train")
