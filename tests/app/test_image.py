"""The page Image: its numbers are those of mixer_probe, uploads are taken or refused in words,
links reopen views."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from mixer_probe_app import history, pictures, shuffled
from PIL import Image
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from mixer_probe.core.errors import ImagesError
from mixer_probe.images import Images, PatchShuffle, distort
from mixer_probe.models import Model
from tests.app.conftest import Open, parameter, texts

PAGE = "pages/Image.py"
MIXER, VIT, CNN = "zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0"
UNTRAINED = "test_vit?untrained"


@pytest.fixture(scope="module")
def images() -> Images:
    """What the page looks at with n = 100."""
    return mp.load_images("demo", split="test", limit=100)


@pytest.fixture(scope="module")
def networks() -> dict[str, Model]:
    return {name: mp.load_model(name) for name in (MIXER, CNN)}


def charts(page: AppTest) -> list[Any]:
    """By the names that earlier and later versions of Streamlit have for them."""
    return [*page.get("vega_lite_chart"), *page.get("arrow_vega_lite_chart")]


def tables(page: AppTest) -> list[pd.DataFrame]:
    """What the altair charts of a page draw, in order."""
    found = []
    for element in charts(page):
        spec = json.loads(element.proto.spec)
        parts = [element.proto.data.data, *(d.data.data for d in element.proto.datasets)]
        frames = [pa.ipc.open_stream(part).read_pandas() for part in parts if part]
        found += frames or [pd.DataFrame(rows) for rows in spec["datasets"].values()]
    return found


def with_column(page: AppTest, column: str) -> list[pd.DataFrame]:
    return [table for table in tables(page) if column in table]


def logits(network: Model, images: Any) -> np.ndarray:
    """By the network itself, without the capture of mixer_probe."""
    from mixer_probe.capture.stream import transform_of

    network.module.eval()
    with torch.no_grad():
        parts = [network.module(x) for x in images.batches(transform_of(network), 50)]
    return torch.cat(parts).double().numpy()


# -- predictions -----------------------------------------------------------------------------------


def test_predictions_are_those_of_the_network(
    open_page: Open, images: Images, networks: dict[str, Model]
) -> None:
    page = open_page(PAGE, [MIXER, CNN], n="100", img="3")
    assert not page.exception
    assert not page.error
    shown = with_column(page, "probability")
    assert len(shown) == 2
    for table, network in zip(shown, networks.values(), strict=True):
        expected = torch.from_numpy(logits(network, images.subset([2]))[0]).softmax(0).numpy()
        order = np.argsort(-expected)
        names = [images.class_names[i] for i in order[: len(table)]]  # type: ignore[index]
        assert list(table["class"])[:5] == names[:5]
        np.testing.assert_allclose(table["probability"][:5], expected[order][:5], rtol=1e-4)
        assert f"Prediction: **{names[0]}** ({100 * expected.max():.1f} %)" in texts(page)
        true = images.class_names[images.labels[2]]  # type: ignore[index]
        assert set(table[table["true"] == "true class"]["class"]) == {true}


def test_a_network_of_other_classes_says_so(open_page: Open) -> None:
    page = open_page(PAGE, [UNTRAINED, MIXER], n="100", images="photos")
    assert not page.exception
    assert not page.error
    written = texts(page)
    assert "is not among its classes" in written
    assert "not among the classes of that network" in written
    # timm's class names, not those of CIFAR-10, for 1,000 outputs.
    assert set(with_column(page, "probability")[0]["class"]) <= set(
        mp.load_images("photos").class_names or ()
    )


def test_a_head_of_zeros_is_said(open_page: Open) -> None:
    page = open_page(PAGE, ["mixer_s32_224?untrained"], n="100")
    assert "the head is zero" in texts(page)
    np.testing.assert_allclose(with_column(page, "probability")[0]["probability"], 1e-3)


@pytest.mark.parametrize(
    ("said", "number"), [("5", 5), ("99999", 100), ("0", 1), ("-3", 1), ("x", 1), ("²", 1), ("", 1)]
)
def test_the_link_says_which_image(open_page: Open, said: str, number: int) -> None:
    page = open_page(PAGE, [CNN], n="100", img=said)
    assert not page.exception
    assert not page.error
    assert page.number_input(key="widget img").value == number
    assert (parameter(page, "img") or "1") == str(number)


def test_the_boxes_choose_the_image(open_page: Open, images: Images) -> None:
    page = open_page(PAGE, [CNN], n="100")
    page.number_input(key="widget img").set_value(42).run()
    assert parameter(page, "img") == "42"
    assert page.number_input(key="widget img-page").value == 3
    page.selectbox(key="widget img-class").set_value("frog").run()
    strip = with_column(page, "picture")[0]
    frogs = np.flatnonzero(images.labels == images.class_names.index("frog"))  # type: ignore[union-attr]
    assert list(strip["place"]) == list(frogs[:20])
    assert parameter(page, "img-class") == "frog"


# -- attributions ----------------------------------------------------------------------------------


def test_attributions_explain_the_class_asked_for(
    open_page: Open, images: Images, networks: dict[str, Model]
) -> None:
    page = open_page(
        PAGE, [MIXER, CNN], n="100", img_part="attributions", img_target="6", img_method="saliency"
    )
    assert not page.exception
    assert not page.error
    for network in networks.values():
        assert f"Target: frog, logit {logits(network, images.subset([0]))[0, 6]:.2f}" in texts(page)
    # The image chosen, once more beside the maps, a map a network, and the bar of colours.
    assert len(page.get("image")) == 5


def test_a_method_of_one_family_says_what_the_others_have(open_page: Open) -> None:
    page = open_page(
        PAGE, [MIXER, VIT], n="100", img_part="attributions", img_method="attention_rollout"
    )
    assert not page.exception
    assert not page.error
    assert "attention rollout is not available for this network; available: saliency" in texts(page)


def test_all_quick_methods_are_one_figure(open_page: Open) -> None:
    page = open_page(
        PAGE, [MIXER, VIT], n="100", img_part="attributions", img_view="all quick methods"
    )
    assert not page.exception
    assert not page.error
    assert {b.proto.label for b in page.get("download_button")} == {"SVG", "PNG", "CSV"}


# -- layers ----------------------------------------------------------------------------------------


def test_neighbours_and_sizes_are_those_of_the_definition(
    open_page: Open, images: Images, networks: dict[str, Model]
) -> None:
    page = open_page(PAGE, [MIXER], n="100", img="7", img_part="layers", img_depth="50")
    assert not page.exception
    assert not page.error
    layer = "blocks.3"
    features = mp.extract(networks[MIXER], images, [layer])[layer].astype(np.float64)
    centred = features - features.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = centred @ centred[6]
    order = [i for i in np.argsort(-cosines) if i != 6][:10]
    near = with_column(page, "cosine")[0]
    assert list(near["place"]) == order
    np.testing.assert_allclose(near["cosine"].astype(float), cosines[order], atol=1e-3)
    positions = mp.extract(networks[MIXER], images.subset([6]), [layer], reduce="none")[layer][0]
    norm = with_column(page, "norm")[0].set_index("layer").loc[layer, "norm"]
    assert norm == pytest.approx(
        np.linalg.norm(positions.astype(np.float64), axis=1).mean(), rel=1e-5
    )


def test_a_stored_run_has_neighbours_only(
    open_page: Open,
    images: Images,
    networks: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mp.extract(networks[CNN], images, out=tmp_path / "run.zarr")
    monkeypatch.setenv("MIXER_PROBE_APP_PATHS", str(tmp_path))
    page = open_page(PAGE, [f"run:{tmp_path.name}/run.zarr"], n="100", img_part="layers")
    assert not page.exception
    assert not page.error
    assert "activation norms are not available" in texts(page)
    assert len(with_column(page, "cosine")[0]) == 10
    page = open_page(PAGE, [f"run:{tmp_path.name}/run.zarr"], n="100")
    assert len(page.error) == 1
    assert "this page needs the network itself" in page.error[0].value.replace("\\", "")


# -- shuffle ---------------------------------------------------------------------------------------


def test_a_shuffled_image_before_and_after(
    open_page: Open, images: Images, networks: dict[str, Model]
) -> None:
    link = {"img_part": "shuffle", "img_patches": "8", "img_seed": "3", "img": "2", "n": "100"}
    page = open_page(PAGE, [MIXER, CNN], **link)
    assert not page.exception
    assert not page.error
    shuffle = PatchShuffle(8, seed=3)
    names = images.class_names or ()
    for network in networks.values():
        before, after = (
            logits(network, x)[0]
            for x in (images.subset([1]), distort(images, shuffle).subset([1]))
        )
        fractions = [torch.from_numpy(x).softmax(0).numpy() for x in (before, after)]
        said = [f"**{names[int(x.argmax())]}** ({100 * x.max():.0f} %)" for x in fractions]
        assert f"plain: {said[0]} → distorted: {said[1]}" in texts(page)
    moved = with_column(page, "rank")[-1]
    plain = mp.extract(networks[MIXER], images, ["blocks.7"])["blocks.7"].astype(np.float64)
    there = mp.extract(networks[MIXER], distort(images, shuffle), ["blocks.7"])["blocks.7"].astype(
        np.float64
    )
    a, b = plain[1] - plain.mean(0), there[1] - plain.mean(0)
    row = moved[(moved["network"] == "mixer-s0") & (moved["layer"] == "blocks.7")].iloc[0]
    assert row["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)
    assert row["n"] == 100


def test_the_images_where_the_cnn_is_wrong_and_the_mixer_right(
    open_page: Open, images: Images, networks: dict[str, Model]
) -> None:
    page = open_page(PAGE, [MIXER, CNN], n="100", img_part="shuffle", img_find="yes")
    assert not page.exception
    assert not page.error
    shuffle = PatchShuffle(4)
    right = {
        name: mp.invariance.predictions(net, images, (shuffle,))[0] == images.labels
        for name, net in networks.items()
    }
    expected = np.flatnonzero(right[MIXER].all(0) & right[CNN][0] & ~right[CNN][1])
    assert len(expected)
    assert list(with_column(page, "said_0")[0]["place"]) == list(expected)
    assert (
        f"{len(expected)} of 100 images** when distorted: mixer-s0 right, resnet-s0 wrong"
        in texts(page)
    )
    page.selectbox(key="widget img-wrong").set_value(MIXER).run()
    page.selectbox(key="widget img-right").set_value(CNN).run()
    other = np.flatnonzero(right[CNN].all(0) & right[MIXER][0] & ~right[MIXER][1])
    assert list(with_column(page, "said_0")[0]["place"]) == list(other)
    assert parameter(page, "img-wrong") == MIXER


@pytest.mark.parametrize("kind", shuffled.KINDS)
def test_every_distortion_is_offered(open_page: Open, kind: str) -> None:
    page = open_page(PAGE, [CNN, UNTRAINED], n="100", img_part="shuffle", img_kind=kind)
    assert not page.exception
    assert not page.error
    assert (parameter(page, "img-kind") or "patches") == kind
    assert charts(page)


def test_without_labels_answers_are_compared(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_PROBE_APP_PATHS", str(picture_folder(tmp_path / "pile", 12)))
    for part in ("predictions", "attributions", "layers", "shuffle"):
        page = open_page(PAGE, [MIXER, CNN], images="folder:pile", img_part=part, img_find="yes")
        assert not page.exception
        assert not page.error, page.error[0].value
    written = texts(page)
    assert "gives the same prediction for" in written
    assert [
        box.label for box in page.selectbox if box.key in ("widget img-right", "widget img-wrong")
    ] == [
        "Keeps its prediction:",
        "Changes its prediction:",
    ]


def test_one_class_and_two_images(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_folder(tmp_path / "set" / "only", 2)
    monkeypatch.setenv("MIXER_PROBE_APP_PATHS", str(tmp_path / "set"))
    page = open_page(PAGE, [CNN], images="folder:set", img_part="layers")
    assert not page.exception
    assert "nearest neighbours need three images or more" in texts(page)


def picture_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i, picture in enumerate(mp.load_images("demo", limit=count)):
        picture.save(folder / f"{i}.png")
    return folder


def test_what_was_seen_can_be_made_again(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: dict[str, Model]
) -> None:
    page = open_page(
        PAGE, [MIXER], n="100", img="4", img_part="attributions", img_method="saliency"
    )
    page.query_params["img-part"] = "shuffle"
    page.session_state["setting img-part"] = "shuffle"
    page.query_params["img-find"] = "yes"
    page.run()
    assert not page.error
    found = list(page.session_state["history"].values())
    assert {item.kind for item in found} == {"attribution", "distortion accuracy"}
    monkeypatch.chdir(tmp_path)
    exec(compile(history.script(found), "script", "exec"), {})
    again = mp.load_results(tmp_path / "results.json")
    kinds = {type(result).__name__ for result in again}
    assert {"Attribution", "DistortionAccuracy"} <= kinds
    expected = mp.invariance.predictions(
        networks[MIXER], mp.load_images("demo", limit=100), (PatchShuffle(4),)
    )[0]
    made = next(result for result in again if type(result).__name__ == "DistortionAccuracy")
    np.testing.assert_array_equal(made.predicted, expected)


def test_no_network_says_what_to_do(open_page: Open) -> None:
    page = open_page(PAGE, [VIT])
    page.selectbox(key="network 0").set_value(None).run()
    assert not page.exception
    assert "No network is chosen" in texts(page)


def test_a_failing_network_leaves_the_others(open_page: Open) -> None:
    for part in ("predictions", "attributions", "layers", "shuffle"):
        page = open_page(PAGE, ["no_such_network", CNN], n="100", img_part=part)
        assert not page.exception
        assert page.error
        assert all(
            "no model 'no_such_network'" in error.value.replace("\\", "") for error in page.error
        )
        assert "resnet-s0" in texts(page) or "resnet-s0" in set(
            with_column(page, "network")[0]["network"]
        )


# -- uploads ---------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **more)
    return stream.getvalue()


def noise(width: int = 40, height: int = 30, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def frames() -> bytes:
    first, second = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    return encoded(first, "GIF", save_all=True, append_images=[second])


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "the file is empty"),
    "text": (lambda: b"no image at all", "not an image in any format"),
    "a page": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        "not an image in any format",
    ),
    "PostScript": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not an image in any format",
    ),
    "truncated": (lambda: encoded(Image.fromarray(noise(200, 200)))[:4000], "cannot be read"),
    "50 megapixels": (
        lambda: encoded(Image.new("L", (10000, 5000))),
        "10000×5000 px, more than 40 million",
    ),
    "a bomb": (lambda: encoded(Image.new("1", (40000, 40000))), "million pixels"),
    "a line": (lambda: encoded(Image.new("RGB", (4000, 2))), "Crop it"),
    "a ribbon": (lambda: encoded(Image.new("RGB", (4000, 20))), "Crop it"),
    "floats": (
        lambda: encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"),
        "no stated range",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_upload_is_refused_in_words(kind: str) -> None:
    content, why = REFUSED[kind]
    with pytest.raises(ImagesError, match=why) as caught:
        pictures.read_upload("<b>name</b>", content())
    assert len(str(caught.value)) < 300


def test_a_good_upload_is_taken_as_it_is() -> None:
    values = noise()
    picture, said = pictures.read_upload("a.png", encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(picture), values)
    assert said == []


CHANGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "CMYK": (lambda: encoded(Image.new("CMYK", (30, 30), (0, 255, 255, 0)), "JPEG"), "CMYK"),
    "16 bit": (
        lambda: encoded(Image.fromarray(np.full((20, 20), 0x8000, np.uint16))),
        "more than 8 bits per channel, and the values are taken to run from 0",
    ),
    "RGBA": (lambda: encoded(Image.new("RGBA", (30, 30), (0, 0, 0, 0))), "Transparent"),
    "animated": (frames, "2 frames"),
    "large": (
        lambda: encoded(Image.new("RGB", (3000, 1500))),
        "reduced from 3000×1500 to 1024×512 px",
    ),
}
COLOURS = {
    "CMYK": (255, 0, 0),
    "16 bit": (128, 128, 128),
    "RGBA": (255, 255, 255),
    "animated": (255, 0, 0),
    "large": (0, 0, 0),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_was_done_to_an_upload_is_said(kind: str) -> None:
    content, what = CHANGED[kind]
    picture, said = pictures.read_upload("x", content())
    assert picture.mode == "RGB"
    assert max(picture.size) <= pictures.LONGEST
    assert what in " ".join(said)
    assert np.abs(np.asarray(picture).astype(int)[5, 5] - COLOURS[kind]).max() <= 2


def test_a_kept_upload_is_encoded_anew() -> None:
    extra = b"<script>alert(1)</script>"
    content = encoded(Image.fromarray(noise())) + extra
    name = pictures.save(pictures.read_upload("x.png", content)[0])
    file = pictures.folder() / name
    assert extra not in file.read_bytes()
    np.testing.assert_array_equal(np.asarray(pictures.uploaded(name).pixels), noise())


@pytest.mark.parametrize(
    "name", ["0123456789abcdef.png", "../secret.png", "..%2f..%2fetc/passwd", "", "a\0b.png"]
)
def test_a_link_to_no_upload_shows_the_first_image(open_page: Open, name: str) -> None:
    page = open_page(PAGE, [CNN], n="100", img=f"upload:{name}")
    assert not page.exception
    assert len(page.error) == 1
    assert "upload it again" in page.error[0].value.replace("\\", "")
    assert page.number_input(key="widget img").value == 1


def test_an_upload_goes_through_the_page(open_page: Open, networks: dict[str, Model]) -> None:
    page = open_page(PAGE, [CNN], n="100")
    values = noise()
    page.file_uploader[0].upload("a.png", encoded(Image.fromarray(values)), "image/png").run()
    assert not page.exception
    assert not page.error
    said = parameter(page, "img") or ""
    assert said.startswith("upload:")
    one = mp.images.from_arrays([values], ids=["x"])
    best = int(logits(networks[CNN], one)[0].argmax())
    assert f"Prediction: **{mp.zoo.card('resnet-s0').class_names[best]}**" in texts(page)
    for part in ("predictions", "attributions", "layers", "shuffle"):
        again = open_page(PAGE, [MIXER, CNN], n="100", img=said, img_part=part)
        assert not again.exception
        assert not again.error
        assert parameter(again, "img") == said


def test_a_bad_upload_leaves_the_image_before_it(open_page: Open) -> None:
    page = open_page(PAGE, [CNN], n="100", img="9")
    page.file_uploader[0].upload("<b>x</b>.png", b"nothing", "image/png").run()
    assert not page.exception
    assert len(page.error) == 1
    assert "'<b>x</b>.png' cannot be read" in page.error[0].value.replace("\\", "")
    assert parameter(page, "img") == "9"
    assert with_column(page, "probability")
