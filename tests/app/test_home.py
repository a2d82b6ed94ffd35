"""Home: cards, the ways to a network, images, and links that reopen all of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mixer_probe_app import local_files
from PIL import Image
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from tests.app.conftest import Open, parameter

VIT, CNN = "test_vit?untrained", "test_resnet?untrained"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the app may open: a good and three bad checkpoints, a run, pictures, one of
    which is broken."""
    model = mp.load_model("test_vit", pretrained=False, seed=3)
    weights = {name: value.contiguous() for name, value in model.module.state_dict().items()}
    save_file(weights, tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:1000])
    torch.save(model.module, tmp_path / "code.pth")
    mp.extract(model, mp.load_images("demo", split="test", limit=20), out=tmp_path / "run.zarr")
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "red" / "broken.png").write_bytes(b"no picture")
    monkeypatch.setenv(local_files.PATHS, str(tmp_path))
    local_files.local_files.clear()
    yield tmp_path
    local_files.local_files.clear()


def written(page: AppTest) -> str:
    kinds = (page.markdown, page.caption, page.info, page.warning, page.error)
    return "\n".join(element.value for kind in kinds for element in kind).replace("\\", "")


def models(page: AppTest) -> list[str]:
    found = page.query_params["model"]
    return found if isinstance(found, list) else [found]


def click(page: AppTest, label: str) -> AppTest:
    return next(button for button in page.button if button.label == label).click().run()


def test_search_by_family_and_tag_and_add(open_page: Open) -> None:
    page = open_page("Home.py", [VIT])
    page.text_input(key="search text").set_value("mixer_b16").run()
    found = page.selectbox(key="search result").options
    expected = [entry.name for entry in mp.list_models("mixer_b16")]
    assert sorted(found) == sorted(expected)
    assert "goog_in21k_ft_in1k" in page.selectbox(key="search weights").options
    page.selectbox(key="search result").set_value("mixer_b16_224").run()
    page.selectbox(key="search weights").set_value("goog_in21k_ft_in1k").run()
    assert "the paper's Mixer trained on ImageNet-1k from scratch" in written(page)
    page.text_input(key="search text").set_value("test_resnet").run()
    assert "test_resnet" in page.selectbox(key="search result").options
    page.selectbox(key="search result").set_value("test_resnet").run()
    page.selectbox(key="search weights").set_value("untrained baseline").run()
    click(page, "Add to selection")
    assert models(page) == [VIT, CNN]
    assert not page.exception


def test_a_search_that_finds_nothing_says_so(open_page: Open) -> None:
    page = open_page("Home.py", [VIT])
    page.text_input(key="search text").set_value("no such thing").run()
    assert "No timm model matches" in written(page)


def test_a_checkpoint_is_opened_with_its_architecture(open_page: Open, folder: Path) -> None:
    page = open_page("Home.py", [CNN])
    page.selectbox(key="checkpoint file").set_value(f"{folder.name}/good.safetensors").run()
    page.selectbox(key="checkpoint architecture").set_value("test_vit").run()
    click(page, "Open")
    assert models(page) == [CNN, f"checkpoint:{folder.name}/good.safetensors@test_vit"]
    assert not page.error
    assert "test_vit from good.safetensors" in written(page)
    assert "Weights: file good.safetensors" in written(page)


@pytest.mark.parametrize(
    "name, architecture, said",
    [
        ("good.safetensors", "test_resnet", "good.safetensors"),
        ("cut.safetensors", "test_vit", "cut.safetensors"),
        ("code.pth", "test_vit", "code.pth"),
        ("gone.safetensors", "test_vit", "there is no checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_a_message_and_the_others_are_shown(
    open_page: Open, folder: Path, name: str, architecture: str, said: str
) -> None:
    page = open_page("Home.py", [f"checkpoint:{folder.name}/{name}@{architecture}", VIT])
    assert not page.exception
    assert len(page.error) == 1
    assert said in page.error[0].value.replace("\\", "")
    assert "**test\\_vit**" in [element.value for element in page.markdown]


def test_no_checkpoint_from_elsewhere(open_page: Open, folder: Path) -> None:
    page = open_page("Home.py", [f"checkpoint:{folder.name}/../secret.pth@test_vit"])
    assert "there is no checkpoint" in page.error[0].value


def test_a_stored_run_has_a_card(open_page: Open, folder: Path) -> None:
    page = open_page("Home.py", [VIT])
    page.selectbox(key="run label").set_value(f"{folder.name}/run.zarr").run()
    click(page, "Add")
    assert models(page) == [VIT, f"run:{folder.name}/run.zarr"]
    assert "Images: 20 of demo" in written(page)
    assert not page.error


def test_a_page_that_needs_the_network_says_so_of_a_run(open_page: Open, folder: Path) -> None:
    page = open_page("pages/Stem.py", [f"run:{folder.name}/run.zarr"])
    assert not page.exception
    assert "is a stored run" in written(page)


def test_a_folder_of_images_travels_in_the_url(open_page: Open, folder: Path) -> None:
    page = open_page("Home.py", [VIT], images=f"folder:{folder.name}/pictures")
    assert not page.exception
    assert not page.error
    assert page.selectbox(key="widget images").value == f"folder:{folder.name}/pictures"
    assert "6 images of 2 classes." in written(page)
    assert "1 files could not be read" in written(page)
    page.selectbox(key="widget images").set_value("demo").run()
    assert "images" not in page.query_params
    assert "200 images of 10 classes." in written(page)


def test_images_that_are_not_there_are_a_message(open_page: Open) -> None:
    for source in (
        "folder:nowhere",
        "folder:../..",
        "/etc",
        "torch/cifar10",
        "torch/cifar10@nowhere",
        "<b>",
    ):
        page = open_page("Home.py", [VIT], images=source)
        assert not page.exception
        assert len(page.error) == 1
        assert "**test\\_vit**" in [element.value for element in page.markdown]


def test_the_number_of_images(open_page: Open) -> None:
    page = open_page("Home.py", [VIT], n="500")
    assert "500 images of 10 classes." in written(page)
    page.select_slider(key="widget n").set_value(100).run()
    assert parameter(page, "n") == "100"
    assert "100 images of 10 classes." in written(page)


def test_pictures_are_uploaded(open_page: Open) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (50, 40), (10, 200, 30)).save(stream, format="PNG")
    page = open_page("Home.py", [VIT])
    if not hasattr(page, "file_uploader"):
        pytest.skip("this Streamlit's AppTest has no file uploader")
    uploader = next(found for found in page.file_uploader if found.label.startswith("Images"))
    uploader.upload("green.png", stream.getvalue(), "image/png").run()
    click(page, "Use these images")
    assert "1 images, without labels." in written(page)
    assert not page.error
