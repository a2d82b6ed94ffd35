import os
import warnings

import numpy as np
import pytest
from PIL import Image

from mixer_probe.core.errors import ImagesError, ImagesWarning
from mixer_probe.images import load_images


def save(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def pets(tmp_path):
    """cats: 3 images, dogs: 2."""
    for i, name in enumerate(
        ["cats/b.png", "cats/a.JPG", "cats/deep/c.webp", "dogs/z.png", "dogs/a.bmp"]
    ):
        save(tmp_path / "pets" / name, 40 * i)
    return tmp_path / "pets"


def test_class_folders_are_labels_and_order_is_that_of_paths(pets):
    images = load_images(pets)
    assert images.ids == (
        "cats/a.JPG",
        "cats/b.png",
        "cats/deep/c.webp",
        "dogs/a.bmp",
        "dogs/z.png",
    )
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.class_names == ("cats", "dogs")
    assert [image.getpixel((0, 0))[0] for image in images.subset([1, 2, 3, 4])] == [0, 80, 160, 120]
    assert load_images(str(pets)).record == images.record


def test_a_folder_sorts_before_its_longer_namesake(tmp_path):
    for name in ("a-b/x.png", "a/x.png"):
        save(tmp_path / name)
    assert load_images(tmp_path).class_names == ("a", "a-b")
    assert load_images(tmp_path).ids == ("a/x.png", "a-b/x.png")


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ("2.png", "10.png", "1.png"):
        save(tmp_path / name)
    images = load_images(tmp_path)
    assert images.ids == ("1.png", "10.png", "2.png")
    assert images.labels is images.class_names is None
    assert images.record.classes == 0


def test_hidden_and_other_files_are_ignored(pets):
    for name in (".hidden.png", ".cache/x.png", "cats/._a.png", "cats/notes.txt", "cats/Thumbs.db"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).write_bytes(b"x")
    (pets / "empty").mkdir()
    assert len(load_images(pets)) == 5
    assert load_images(pets).class_names == ("cats", "dogs")


def test_links_are_followed_but_not_in_circles(pets, tmp_path):
    (tmp_path / "linked").mkdir()
    os.symlink(pets / "cats", tmp_path / "linked" / "felines")
    os.symlink(pets / "dogs", tmp_path / "linked" / "hounds")
    os.symlink(pets, pets / "cats" / "back")
    images = load_images(tmp_path / "linked")
    assert images.class_names == ("felines", "hounds")
    assert images.ids[:3] == ("felines/a.JPG", "felines/b.png", "felines/deep/c.webp")
    assert images.ids[3:] == ("hounds/a.bmp", "hounds/z.png")
    assert len(load_images(pets)) == 5


def test_split_is_a_folder(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/2.png"):
        save(tmp_path / name)
    assert load_images(tmp_path, split="val").ids == ("a/1.png", "b/2.png")
    assert load_images(tmp_path, split="val").split == "val"
    with pytest.raises(ImagesError, match="holds the splits train, val: choose one with split="):
        load_images(tmp_path)
    with pytest.raises(ImagesError, match=r"no folder 'vla'.*closest: val"):
        load_images(tmp_path, split="vla")


def test_limit_is_even_over_classes(pets):
    assert load_images(pets, limit=4).labels.tolist() == [0, 0, 1, 1]
    assert load_images(pets, limit=4, seed=2).record.limit == 4


def test_images_beside_class_folders(pets):
    save(pets / "stray.png")
    with pytest.raises(ImagesError, match=r"images beside class folders \(1, first 'stray.png'\)"):
        load_images(pets)


def test_one_class_is_said_with_the_path(tmp_path):
    save(tmp_path / "cats" / "a.png")
    with pytest.warns(
        ImagesWarning, match=r"all 1 images of .* are of one class, 'cats'"
    ) as caught:
        assert load_images(tmp_path).n_classes == 1
    assert str(tmp_path) in str(caught[0].message)
    assert caught[0].filename == __file__


def test_limit_one_is_no_warning(pets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_images(pets, limit=1)) == 1


def test_folder_without_images(tmp_path):
    with pytest.raises(ImagesError, match=r"holds no images \(it is empty\); give a folder"):
        load_images(tmp_path)
    (tmp_path / "a.heic").touch()
    (tmp_path / "b.HEIC").touch()
    with pytest.raises(
        ImagesError, match=r"holds no images \(other files: 2 with .heic\)"
    ) as caught:
        load_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def truncate(path):
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


BAD = {
    "empty.png": (lambda path: path.write_bytes(b""), r"the file is empty \(0 bytes\)"),
    "text.jpg": (lambda path: path.write_text("not an image"), "not an image in any format"),
    "cut.png": (truncate, "truncated|broken"),
    "cut.jpg": (truncate, "truncated"),
    "cut.webp": (truncate, "."),
}


@pytest.mark.parametrize("name", ["empty.png", "text.jpg"])
def test_what_is_no_image_is_named_on_loading(pets, name):
    make, why = BAD[name]
    make(pets / "dogs" / name)
    with pytest.raises(
        ImagesError, match=rf"cannot read .*dogs.{name}: .*{why}.*on_error='skip'"
    ) as caught:
        load_images(pets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp"])
def test_what_breaks_off_is_named_at_the_latest_on_reading(pets, name):
    make, why = BAD[name]
    make(pets / "dogs" / name)
    with pytest.raises(ImagesError, match=rf"cannot read .*dogs.{name}: .*{why}"):
        list(load_images(pets))


def test_a_file_that_vanishes_after_listing(pets):
    images = load_images(pets)
    (pets / "cats" / "b.png").unlink()
    with pytest.raises(ImagesError, match=r"cats.b.png: the file is gone"):
        images[1]


def test_skip_leaves_out_all_that_fail_and_counts_them(pets):
    for name, (make, _) in BAD.items():
        make(pets / "dogs" / name)
    with pytest.warns(ImagesWarning, match=r"5 unreadable images of .* were left out, 5 are kept"):
        images = load_images(pets, on_error="skip")
    assert images.ids == (
        "cats/a.JPG",
        "cats/b.png",
        "cats/deep/c.webp",
        "dogs/a.bmp",
        "dogs/z.png",
    )
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert [path for path, _ in images.skipped] == [
        str(pets / "dogs" / name) for name in sorted(BAD)
    ]
    assert dict(images.skipped)[str(pets / "dogs" / "empty.png")] == "the file is empty (0 bytes)"
    assert images.record.skipped == 5
    assert images.sample(2).skipped == images.skipped
    assert len(list(images)) == 5


def test_skip_samples_from_the_readable_ones(pets):
    for i in range(20):
        (pets / "dogs" / f"bad{i}.png").write_bytes(b"")
    with pytest.warns(ImagesWarning, match="20 unreadable"):
        images = load_images(pets, on_error="skip", limit=4)
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_skip_says_nothing_when_all_is_well(pets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_images(pets, on_error="skip").skipped == ()


def test_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(ImagesError, match=r"none of the 1 images of .* can be read; .*a\.png"):
        load_images(tmp_path, on_error="skip")


def test_unknown_names_list_the_closest(tmp_path):
    with pytest.raises(
        ImagesError, match="'demmo' is no folder and no known data set; closest: demo"
    ):
        load_images("demmo")
    with pytest.raises(ImagesError, match=r"closest: .*torch/\.\.\."):
        load_images("torhc/cifar10")
    (tmp_path / "holiday-pictures").mkdir()
    with pytest.raises(ImagesError, match=r"closest: .*holiday-pictures"):
        load_images(tmp_path / "holiday-picture")
    with pytest.raises(ImagesError, match="no folder and no known data set"):
        load_images("/no/such/place/at/all")


def test_a_file_is_no_folder(pets):
    with pytest.raises(ImagesError, match="is a file; give the folder it lies in"):
        load_images(pets / "cats" / "b.png")


def test_arguments_that_belong_elsewhere(pets):
    with pytest.raises(ImagesError, match="root, download: only for timm's data sets"):
        load_images(pets, root="x", download=True)
    with pytest.raises(ImagesError, match="unknown on_error 'ignore'; known: raise, skip"):
        load_images(pets, on_error="ignore")


def test_names_that_are_not_utf8_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = load_images(tmp_path)
    # Printable in every table and file, and the file behind it opens.
    assert found.ids == (r"caf\xe9.png",)
    assert found[0].size == load_images(tmp_path)[0].size
    assert len(found.record.fingerprint) == 64
