"""Every page runs by itself and from Home, says what to do, and never shows a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mixer_probe_app import local_files
from PIL import Image

import mixer_probe as mp
from tests.app.conftest import APP, Open, texts

MIXER, VIT, CNN = "mixer_s32_224?untrained", "test_vit?untrained", "test_resnet?untrained"
MODELS = {
    "Token_mixing": [MIXER, VIT],
    "Stem": [MIXER, CNN],
    "Mixing": [VIT, CNN],
    "Similarity": [VIT, CNN],
    "Probes": [VIT, CNN],
    "Channels": [VIT, CNN],
    "Image": [VIT, CNN],
    "Analyses": [MIXER, CNN],
    "Report": [VIT],
}
TITLES = {"Token_mixing": "Token mixing", "Stem": "Stem and kernels"}


def test_all_pages_are_tested() -> None:
    assert {file.stem for file in (APP / "pages").glob("*.py")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_page_runs_by_itself_and_from_home(open_page: Open, name: str) -> None:
    alone = open_page(f"pages/{name}.py", MODELS[name], n="100")
    within = open_page("Home.py", MODELS[name], n="100").switch_page(f"pages/{name}.py").run()
    for page in (alone, within):
        assert not page.exception
        assert not page.error
        assert [title.value for title in page.title] == [TITLES.get(name, name)]


def test_home_shows_a_card_of_every_network(open_page: Open) -> None:
    page = open_page("Home.py", [MIXER, VIT, CNN])
    assert not page.exception
    written = texts(page)
    for name in (MIXER, VIT, CNN):
        model = mp.load_model(name.removesuffix("?untrained"), pretrained=False)
        assert f"Parameters: {model.parameters:,}" in written
        assert f"{model.macs / 1e9:.3f} G per image" in written
    assert "Position grid: 7×7" in written
    assert "40×40 → 20×20 → 10×10 → 5×5" in written
    assert written.count("untrained") == 3


def test_home_opens_on_the_bundled_networks(open_page: Open) -> None:
    page = open_page("Home.py")
    assert not page.exception
    assert page.query_params["model"] == ["zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0"]
    assert not page.error
    assert texts(page).count("Test accuracy:") == 3


@pytest.mark.parametrize(
    "script", ["Home.py", *(f"pages/{name}.py" for name in MODELS if name != "Report")]
)
def test_a_bad_name_is_a_message_and_the_others_are_shown(open_page: Open, script: str) -> None:
    models = ["no_such_network", MIXER if "Token" in script else VIT]
    page = open_page(script, models, n="100")
    assert not page.exception
    assert page.error
    message = page.error[0].value.replace("\\", "")
    assert "no model 'no_such_network'" in message
    assert "Choose another network" in message
    assert "bug in mixer_probe" not in texts(page)


@pytest.mark.parametrize(
    "name",
    ["local-dir:/etc", "hf-hub:owner/repo", "zoo:nothing", "../../etc/passwd", "<b>x</b>", "run:x"],
)
def test_names_that_the_app_does_not_open(open_page: Open, name: str) -> None:
    page = open_page("Home.py", [name])
    assert not page.exception
    assert len(page.error) == 1
    assert "bug in mixer_probe" not in page.error[0].value


@pytest.mark.parametrize("name", [name for name in MODELS if name != "Report"])
def test_nothing_chosen_says_what_to_do(open_page: Open, name: str) -> None:
    page = open_page(f"pages/{name}.py", [VIT], n="100")
    page.selectbox(key="network 0").set_value(None).run()
    assert not page.exception
    assert any("No network is chosen" in info.value for info in page.info)


def test_random_weights_are_said_on_every_page(open_page: Open) -> None:
    page = open_page("pages/Stem.py", [VIT, CNN])
    assert "test_vit and test_resnet have untrained weights" in page.warning[0].value.replace(
        "\\", ""
    )


@pytest.fixture
def unlabelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of eight pictures without classes, as a source."""
    for i in range(8):
        Image.effect_noise((48, 48), 40 + 10 * i).convert("RGB").save(tmp_path / f"{i}.png")
    monkeypatch.setenv(local_files.PATHS, str(tmp_path))
    local_files.local_files.clear()
    yield f"folder:{tmp_path.name}"
    local_files.local_files.clear()


@pytest.mark.parametrize("name", MODELS)
def test_pictures_without_classes_are_no_trouble(
    open_page: Open, unlabelled: str, name: str
) -> None:
    page = open_page(f"pages/{name}.py", [VIT, CNN], images=unlabelled)
    assert not page.exception
    assert "bug in mixer_probe" not in texts(page)


@pytest.mark.parametrize("name", MODELS)
def test_images_that_are_not_there_are_a_message(open_page: Open, name: str) -> None:
    page = open_page(f"pages/{name}.py", [MIXER], images="folder:gone")
    assert not page.exception
    assert "bug in mixer_probe" not in texts(page)
    assert name in (
        "Analyses",
        "Report",
        "Stem",
        "Token_mixing",
    ) or "there is no image folder 'gone'" in texts(page)
