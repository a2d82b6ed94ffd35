"""Every page runs by itself and from Home, says what to do, and keeps to what mixer_probe gives."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from mixer_probe.report import make_sections
from mixer_probe.report.section import Picture
from mixer_probe.results import Result, from_dict, save_results
from tests.app.conftest import APP, Open

MIXER, VIT, CNN = "mixer_s32_224?untrained", "test_vit?untrained", "test_resnet?untrained"
MODELS = {"Token_mixing": [MIXER, VIT], "Stem": [MIXER, CNN], "Similarity": [VIT, CNN], "Probes": [VIT, CNN], "Report": [VIT]}


def texts(page: AppTest) -> str:
    """Everything that is written on a page, without the backslashes that keep it plain."""
    kinds = (page.title, page.header, page.markdown, page.caption, page.info, page.warning, page.error)
    return "\n".join(element.value for kind in kinds for element in kind).replace("\\", "")


def test_all_pages_are_tested() -> None:
    assert {file.stem for file in (APP / "pages").glob("*.py")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_page_runs_by_itself(open_page: Open, name: str) -> None:
    page = open_page(f"pages/{name}.py", MODELS[name])
    assert not page.exception
    assert not page.error
    assert [title.value for title in page.title] == [name.replace("_", " ")]


@pytest.mark.parametrize("name", MODELS)
def test_a_page_runs_from_home(open_page: Open, name: str) -> None:
    page = open_page("Home.py", MODELS[name]).switch_page(f"pages/{name}.py").run()
    assert not page.exception
    assert not page.error
    assert [title.value for title in page.title] == [name.replace("_", " ")]


def test_home_shows_a_card_of_every_network(open_page: Open) -> None:
    page = open_page("Home.py", [MIXER, VIT, CNN])
    assert not page.exception
    written = texts(page)
    for name in (MIXER, VIT, CNN):
        model = mp.load_model(name.removesuffix("?untrained"), pretrained=False)
        assert f"Parameters: {model.parameters:,}" in written
        assert f"{model.macs / 1e9:.3f} G an image" in written
    assert "Grid of positions: 7×7" in written
    assert "40×40 → 20×20 → 10×10 → 5×5" in written
    assert written.count("random weights, nothing learned") == 3


def test_home_opens_on_the_bundled_networks(open_page: Open) -> None:
    page = open_page("Home.py")
    assert not page.exception
    assert page.query_params["model"] == ["zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0"]
    if not page.error:
        assert texts(page).count("Test accuracy:") == 3


@pytest.mark.parametrize("script", ["Home.py", "pages/Stem.py", "pages/Token_mixing.py", "pages/Probes.py"])
def test_a_bad_name_is_a_message_and_the_others_are_shown(open_page: Open, script: str) -> None:
    models = ["no_such_network", MIXER if "Token" in script else VIT]
    page = open_page(script, models)
    assert not page.exception
    assert len(page.error) == 1
    message = page.error[0].value.replace("\\", "")
    assert "no model 'no_such_network'" in message
    assert "Choose another network" in message
    assert models[1].removesuffix("?untrained") in texts(page)


@pytest.mark.parametrize("name", ["local-dir:/etc", "hf-hub:owner/repo", "zoo:nothing", "../../etc/passwd", "<b>x</b>"])
def test_names_that_the_app_does_not_open(open_page: Open, name: str) -> None:
    page = open_page("Home.py", [name])
    assert not page.exception
    assert len(page.error) == 1
    assert "Choose another network" in page.error[0].value


def test_random_weights_are_said_on_every_page(open_page: Open) -> None:
    page = open_page("pages/Stem.py", [VIT, CNN])
    assert "test_vit and test_resnet have random weights" in page.warning[0].value.replace("\\", "")


def test_other_families_are_told_what_to_choose(open_page: Open) -> None:
    page = open_page("pages/Token_mixing.py", [VIT])
    assert not page.exception
    assert "test_vit (random weights) has no token-mixing weights" in texts(page)
    assert "choose a Mixer, gMixer, ResMLP or gMLP" in texts(page)


def test_the_block_slider_and_the_switch_change_the_picture(open_page: Open) -> None:
    page = open_page("pages/Token_mixing.py", [MIXER])
    assert (page.slider[0].min, page.slider[0].max) == (1, 8)
    pictures = [_pictures(page)]
    pictures.append(_pictures(page.slider[0].set_value(8).run()))
    shared = next(toggle for toggle in page.toggle if toggle.label == "One scale for all")
    pictures.append(_pictures(shared.set_value(True).run()))
    assert not page.exception
    assert len({first for first, _depth in pictures}) == 3
    assert len({depth for _first, depth in pictures}) == 1


def _pictures(page: AppTest) -> tuple[str, ...]:
    return tuple(image.proto.imgs[0].url for image in page.get("image"))


def test_similarity_is_what_compare_gives(open_page: Open) -> None:
    page = open_page("pages/Similarity.py", [VIT, CNN])
    images = mp.load_images("demo", split="test", limit=200)
    runs = [mp.extract(mp.load_model(n.removesuffix("?untrained"), pretrained=False), images) for n in (VIT, CNN)]
    expected = mp.compare(*runs).to_frame()
    shown = page.dataframe[0].value
    pd.testing.assert_frame_equal(shown.reset_index(drop=True), expected, check_dtype=False, rtol=1e-4, atol=1e-6)
    assert "n = 200 images" in texts(page)


def test_nothing_chosen_says_what_to_do(open_page: Open) -> None:
    page = open_page("pages/Similarity.py", [VIT])
    page.selectbox(key="network 0").set_value(None).run()
    assert not page.exception
    assert "No network is chosen" in page.info[0].value


def test_the_report_page_says_where_results_come_from(open_page: Open) -> None:
    assert "mixer-probe demo --out DIR" in open_page("pages/Report.py").info[0].value


def upload(page: AppTest, content: bytes) -> AppTest:
    if not hasattr(page, "file_uploader"):
        pytest.skip("this Streamlit's AppTest has no file uploader")
    return page.file_uploader[0].upload("results.json", content, "application/json").run()


def test_results_are_read_and_given_back_as_html(open_page: Open, study: list[Result], tmp_path: Path) -> None:
    content = save_results(study, tmp_path / "results.json", {"command": "mixer-probe demo"}).read_bytes()
    page = upload(open_page("pages/Report.py"), content)
    assert not page.exception
    assert not page.error
    headers = [header.value for header in page.header]
    assert headers[0] == "The networks"
    assert "What token\\-mixing units read" in headers
    content_of = [item for section in make_sections(study) for item in section.content]
    assert len(_pictures(page)) == sum(isinstance(item, Picture) for item in content_of)
    captions = [caption for image in page.get("image") for caption in image.captions]
    assert all("How to read it" in caption for caption in captions)


DAMAGED = {
    "empty": b"",
    "no JSON": b"{",
    "binary": bytes(range(256)),
    "a list": b"[]",
    "no results": b'{"format": "mixer-probe results 1"}',
    "empty results": b'{"format": "mixer-probe results 1", "results": []}',
    "another format": b'{"format": "mixer-probe results 99", "results": []}',
    "unknown kind": b'{"format": "mixer-probe results 1", "results": [{"$type": "Nothing"}]}',
    "missing fields": b'{"format": "mixer-probe results 1", "results": [{"$type": "ProbeResult"}]}',
    "wrong fields": b'{"format": "mixer-probe results 1", "results": [{"$type": "Skipped", "step": 1, "reason": null}, 3]}',
    "an array that is none": b'{"format": "mixer-probe results 1", "results": [{"$type": "array", "npy_base64": "gASVDA=="}]}',
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_upload_is_a_message(open_page: Open, kind: str) -> None:
    page = upload(open_page("pages/Report.py"), DAMAGED[kind])
    assert not page.exception
    assert len(page.error) == 1
    assert "Choose the results.json" in page.error[0].value
    assert "/tmp" not in page.error[0].value
    assert len(page.error[0].value) < 600


def test_an_array_that_is_a_pickle_is_refused() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(Exception, match=r"allow_pickle|Object arrays"):
        from_dict({"$type": "array", "npy_base64": base64.b64encode(stream.getvalue()).decode()})
