"""Masks and attributes: matched by name, through the geometry of their images, and what is wrong
with them named."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer_probe.core.errors import ImagesError, ImagesWarning
from mixer_probe.images import (
    Concepts,
    Images,
    class_concepts,
    concepts_from_arrays,
    concepts_from_attributes,
    from_arrays,
    load_concepts,
    load_images,
    model_transform,
)
from mixer_probe.images.concepts import image_size, mask_geometry


def some_images(
    n: int = 4, height: int = 6, width: int = 8, ids: tuple[str, ...] | None = None
) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return from_arrays(
        pixels, ids=ids or tuple(f"class/{chr(97 + i)}.jpg" for i in range(n)), name="some"
    )


def save(path: Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(palette)
    picture.save(path)


def table(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def planes_of(concepts: Concepts, place: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return concepts.planes(concepts.mask(place, size))


def a_mask(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint8)


# -- folders ---------------------------------------------------------------------------------------


def test_one_folder_a_concept(tmp_path: Path) -> None:
    images = some_images()
    for i, name in enumerate("abcd"):
        # By the name of the image alone, and by its whole path; 255 and 1 are both "there".
        save(tmp_path / "sky" / f"{name}.png", 255 * a_mask(i))
        save(tmp_path / "tree" / "class" / f"{name}.png", a_mask(10 + i))
    found = load_concepts(tmp_path, images)
    assert found.names == ("sky", "tree")
    assert found.ids == images.ids
    assert found.kind == "masks"
    assert found.known.all()
    for i in range(4):
        np.testing.assert_array_equal(
            planes_of(found, i), np.stack([a_mask(i), a_mask(10 + i)]) == 1
        )
    assert repr(found).endswith("masks of 2 concepts in 4 images)")


def test_missing_masks_are_unknown_and_counted_or_absent(tmp_path: Path) -> None:
    images = some_images()
    for name in "abc":
        save(tmp_path / "sky" / f"{name}.png", a_mask())
    save(tmp_path / "tree" / "a.png", a_mask(1))
    save(tmp_path / "tree" / "other.png", a_mask(1))
    with (
        pytest.warns(
            ImagesWarning,
            match=r"1 of 4 images have none \(the first: 'class/d.jpg'\) and 1 belong to no image",
        ),
        pytest.warns(ImagesWarning, match="'tree' of .* has no mask for 2 of 3 images"),
    ):
        found = load_concepts(tmp_path, images)
    assert found.known.tolist() == [[True, True], [True, False], [True, False]]
    assert (found.left_out, found.unmatched) == (1, 1)
    with pytest.warns(ImagesWarning, match="belong to no image"):
        absent = load_concepts(tmp_path, images, missing="absent")
    assert absent.known.all()
    assert absent.ids == images.ids
    assert not planes_of(absent, 3).any()
    assert planes_of(absent, 1).sum((1, 2)).tolist() == [a_mask().sum(), 0]


def test_pictures_of_indices_and_a_legend_in_the_folder(tmp_path: Path) -> None:
    images = some_images(2)
    values = np.random.default_rng(3).choice([0, 2, 5, 255], (2, 6, 8)).astype(np.uint8)
    for name, mask in zip("ab", values, strict=True):
        save(tmp_path / f"{name}.png", mask, palette=list(range(256)) * 3)
    table(tmp_path / "legend.csv", [["index", "concept"], [2, "sky"], [5, "tree"], [255, ""]])
    found = load_concepts(tmp_path, images)
    assert found.names == ("sky", "tree")
    for i in range(2):
        np.testing.assert_array_equal(
            planes_of(found, i), np.stack([values[i] == 2, values[i] == 5])
        )


@pytest.mark.parametrize("palette", [False, True])
def test_pictures_of_colours(tmp_path: Path, palette: bool) -> None:
    images = some_images(1)
    index = np.random.default_rng(4).integers(0, 3, (6, 8)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [10, 200, 255], [1, 2, 3]], dtype=np.uint8)
    if palette:
        save(tmp_path / "a.png", index, palette=colours.ravel().tolist() + [9] * 759)
    else:
        save(tmp_path / "a.png", colours[index])
    found = load_concepts(tmp_path, images, {"sky": "#0ac8ff", "tree": (1, 2, 3)})
    np.testing.assert_array_equal(planes_of(found, 0), np.stack([index == 1, index == 2]))


def test_two_marks_may_mean_one_concept(tmp_path: Path) -> None:
    images = some_images(1)
    save(tmp_path / "a.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 3)
    table(tmp_path / "marks.csv", [["concept", "index"], ["thing", 1], ["thing", 2]])
    found = load_concepts(tmp_path, images, tmp_path / "marks.csv")
    assert planes_of(found, 0)[0].sum() == 32


def test_sixteen_bits_hold_many_indices(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((6, 8), 1234, dtype=np.uint16))
    assert planes_of(load_concepts(tmp_path, some_images(1), {"x": 1234}), 0).all()


@pytest.mark.parametrize(
    ("files", "legend", "sentence"),
    [
        (
            {"a.png": np.full((6, 8), 7, np.uint8)},
            {"sky": 1},
            "48 pixels of index 7, which the legend does not name",
        ),
        (
            {"a.png": np.full((6, 8, 3), 7, np.uint8)},
            {"sky": "#ffffff"},
            "48 pixels of colour #070707",
        ),
        (
            {"a.png": np.full((6, 8, 3), 7, np.uint8)},
            {"sky": 1},
            "is a picture of colours and the legend names indices",
        ),
        ({"a.png": np.full((6, 8), 7, np.uint8)}, {"sky": "#ffffff"}, "is a picture of indices"),
        ({"sky/a.png": np.arange(48, dtype=np.uint8).reshape(6, 8)}, None, "is no binary mask"),
        (
            {"sky/a.png": np.zeros((3, 4), np.uint8)},
            None,
            r"is 4 x 3 and image 'class/a.jpg' is 8 x 6.*stretch=True",
        ),
        (
            {"sky/a.png": np.zeros((8, 6), np.uint8)},
            None,
            "is 6 x 8 and .* its proportions differ as well",
        ),
    ],
)
def test_pixels_that_are_wrong_are_named(
    tmp_path: Path, files: dict, legend: dict | None, sentence: str
) -> None:
    for name, values in files.items():
        save(tmp_path / name, values)
    found = load_concepts(tmp_path, some_images(1), legend)
    with pytest.raises(ImagesError, match=sentence):
        found.mask(0, (6, 8))


@pytest.mark.parametrize(
    ("files", "legend", "sentence"),
    [
        ([], None, "has no folder per concept and no legend"),
        (
            ["sky/x.png", "sky/y.png"],
            None,
            "none of the 2 masks of .* is named after an image of 'some'.*'sky/x.png'",
        ),
        (
            ["sky/a.png", "sky/a.bmp"],
            None,
            "two masks for image 'class/a.jpg': 'a.bmp' and 'a.png'",
        ),
        (["sky/a.jpg"], None, "may have lost exact values: save masks as PNG"),
        (["a.png"], {"sky": 1, "tree": 1}, "gives one mark, 1, to 'sky' and 'tree'"),
        (["a.png"], {"sky": 1, "tree": "#ffffff"}, "indices and colours: take one"),
        (["a.png"], {"sky": "#nonsense"}, "'#nonsense' is no colour"),
        (["a.png"], {"": 3}, "names no concept"),
    ],
)
def test_folders_that_are_wrong_are_named(
    tmp_path: Path, files: list[str], legend: dict | None, sentence: str
) -> None:
    for name in files:
        save(tmp_path / name, a_mask())
    with pytest.raises(ImagesError, match=sentence):
        load_concepts(tmp_path, some_images(), legend)


def test_names_that_fit_two_images_are_named(tmp_path: Path) -> None:
    images = some_images(2, ids=("cat/1.png", "dog/1.png"))
    save(tmp_path / "sky" / "1.png", a_mask())
    with pytest.raises(ImagesError, match=r"'1.png' fits 2 images \('cat/1.png', 'dog/1.png'\)"):
        load_concepts(tmp_path, images)
    (tmp_path / "sky" / "1.png").unlink()
    save(tmp_path / "sky" / "dog" / "1.png", a_mask())
    with pytest.warns(ImagesWarning, match="1 of 2 images have none"):
        assert load_concepts(tmp_path, images).ids == ("dog/1.png",)


def test_masks_of_the_same_proportions_can_be_stretched(tmp_path: Path) -> None:
    save(tmp_path / "sky" / "a.png", a_mask(5, 3, 4))
    found = load_concepts(tmp_path, some_images(1), stretch=True)
    np.testing.assert_array_equal(
        planes_of(found, 0)[0], np.kron(a_mask(5, 3, 4), np.ones((2, 2))) == 1
    )


def test_ids_with_dots_stay_whole(tmp_path: Path) -> None:
    images = some_images(2, ids=("v1.5_a", "v1.6_a"))
    for name in images.ids:
        save(tmp_path / "sky" / f"{name}.png", a_mask())
    assert load_concepts(tmp_path, images).ids == images.ids


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_of_attributes(tmp_path: Path) -> None:
    rows = [
        ["id", "sky", "tree"],
        ["class/a.jpg", 1, 0],
        ["b", "", 1],
        ["class/c", "", ""],
        ["d.jpg", "0", "true"],
    ]
    with pytest.warns(ImagesWarning, match=r"1 of 4 images have none \(the first: 'class/c.jpg'\)"):
        found = load_concepts(table(tmp_path / "x.csv", rows), some_images())
    assert found.kind == "attributes"
    assert found.ids == ("class/a.jpg", "class/b.jpg", "class/d.jpg")
    assert found.known.tolist() == [[True, True], [False, True], [True, True]]
    assert found.attributes.tolist() == [[True, False], [False, True], [False, True]]
    with pytest.raises(ImagesError, match="attributes of whole images and no masks"):
        found.mask(0, (6, 8))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "is empty"),
        ([["id"], ["a"]], "is no table of attributes"),
        (
            [["id", "sky"], ["a", "-1"]],
            "'-1' for 'sky' in the row of 'a': write 1, 0 or leave it empty",
        ),
        ([["id", "sky"], ["a", 1], ["a", 0]], "names image 'a' twice"),
        ([["id", "sky", "sky"], ["a", 1, 0]], "names concept 'sky' twice"),
        (
            [["id", "sky"], ["a", 1], ["class/a.jpg", 0]],
            "two rows for image 'class/a.jpg': 'a' and 'class/a.jpg'",
        ),
        (
            [["id", "sky"], ["x", 1], ["y", 1]],
            "none of the 2 rows of .* is named after an image of 'some'",
        ),
        ([["id", "sky"], ["a", 1, 0]], "has 3 cells and the header 2"),
        ([["id", "sky"], ["a", ""]], "all cells are empty"),
    ],
)
@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.ImagesWarning")
def test_tables_that_are_wrong_are_named(tmp_path: Path, rows: list, sentence: str) -> None:
    with pytest.raises(ImagesError, match=sentence):
        load_concepts(table(tmp_path / "x.csv", rows), some_images())


def test_rows_without_an_image_are_counted(tmp_path: Path) -> None:
    rows = [["id", "sky"], *([name, 1] for name in ("a", "b", "c", "d", "x", "y"))]
    with pytest.warns(ImagesWarning, match=r"2 belong to no image of 'some' \(the first: 'x'\)"):
        assert load_concepts(table(tmp_path / "x.csv", rows), some_images()).unmatched == 2


def test_other_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="no folder of masks and no CSV file"):
        load_concepts(tmp_path / "nothing", some_images())
    with pytest.raises(ImagesError, match="unknown missing 'zero'; known: unknown, absent"):
        load_concepts(tmp_path, some_images(), missing="zero")
    with pytest.raises(ImagesError, match="'some' names image 'x' twice"):
        load_concepts(tmp_path, some_images(2, ids=("x", "x")))


# -- in memory -------------------------------------------------------------------------------------


def test_arrays_and_attributes_in_memory() -> None:
    masks = np.stack([np.stack([a_mask(i), a_mask(i + 9)]) for i in range(3)])
    found = concepts_from_arrays(masks, ("x", "y"))
    assert found.ids == ("0", "1", "2")
    np.testing.assert_array_equal(planes_of(found, 1), masks[1] == 1)
    attributes = concepts_from_attributes(np.array([[1, np.nan], [0, 1]]), ("x", "y"), ("a", "b"))
    assert attributes.known.tolist() == [[True, False], [True, True]]
    demo = load_images("demo", limit=20)
    classes = class_concepts(demo)
    assert classes.names == demo.class_names
    np.testing.assert_array_equal(classes.attributes.argmax(1), demo.labels)
    assert (classes.attributes.sum(1) == 1).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: concepts_from_arrays(np.zeros((2, 3, 4)), ("x",)), r"mask 0 has shape \(3, 4\)"),
        (lambda: concepts_from_arrays(np.full((2, 1, 3, 4), 2), ("x",)), "give booleans"),
        (
            lambda: concepts_from_arrays(np.zeros((2, 1, 3, 4)), ("x",), ("a",)),
            "2 images are annotated, and there are 1 ids",
        ),
        (
            lambda: concepts_from_arrays(np.zeros((2, 2, 3, 4)), ("x", "x")),
            "names concept 'x' twice",
        ),
        (lambda: concepts_from_attributes(np.array([[2.0]]), ("x",)), "0, 1 or NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_named(make, sentence: str) -> None:
    with pytest.raises(ImagesError, match=sentence):
        make()


# -- geometry --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.sampled_from([0.7, 0.875, 1.0]), st.integers(0, 99)
)
def test_masks_go_where_the_pixels_of_their_image_go(
    height: int, width: int, crop_pct: float, seed: int
) -> None:
    # The image is its mask in grey: resized by nearest neighbour by the image's own transform they
    # are the same.
    mask = np.random.default_rng(seed).integers(0, 200, (height, width))
    image = Image.fromarray(mask.astype(np.uint8)).convert("RGB")
    for mode in ("center", "squash", "border"):
        seen = model_transform((3, 32, 32), (0.0,) * 3, (1.0,) * 3, "nearest", crop_pct, mode)(
            image
        )
        np.testing.assert_array_equal(
            mask_geometry((3, 32, 32), crop_pct, mode)(mask), (255 * seen[0]).round().numpy()
        )


def test_a_block_stays_under_its_block_when_the_image_is_resized_smoothly() -> None:
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[12:36, 30:66] = 255
    image = Image.fromarray(pixels)
    seen = model_transform((3, 32, 32), (0.0,) * 3, (1.0,) * 3, "bicubic", 0.9)(image).mean(0)
    mask = mask_geometry((3, 32, 32), 0.9)(pixels[..., 0] > 0)
    assert torch.equal(torch.tensor(mask) == 1, seen > 0.5)


def test_the_size_of_an_image_is_that_after_its_exif_turn(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    images = load_images(tmp_path)
    assert image_size(images, 0) == (30, 20)
    assert images[0].size == (20, 30)
