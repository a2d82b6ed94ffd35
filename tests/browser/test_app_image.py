"""The page Image in a browser: thumbnails that are clicked, uploads good and bad, a link to an
upload, a shuffled image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.browser.test_app import WAIT, address, settle, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

MIXER, CNN = "zoo:mixer-s0", "zoo:resnet-s0"
MORE = "&n=100&img-part="


@pytest.fixture
def page(chromium: Browser, app: str) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith((app, "data:", "blob:"))] == []


def parameter(page: Page, name: str) -> str | None:
    return parse_qs(urlsplit(page.url).query).get(name, [None])[0]


def click_thumbnail(page: Page, chart: int, column: int) -> None:
    """In the first row of ten of a gallery."""
    box = page.get_by_test_id("stVegaLiteChart").nth(chart).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + (column + 0.5) * box["width"] / 10, box["y"] + 32)


def test_a_click_on_a_thumbnail_opens_it(page: Page, app: str) -> None:
    visit(page, address(app, "Image", [CNN]) + MORE + "predictions", "Image")
    for column in (3, 0, 3):
        page.get_by_test_id("stVegaLiteChart").first.scroll_into_view_if_needed()
        click_thumbnail(page, 0, column)
        page.get_by_text(f"Image {column + 1}: ").first.wait_for(timeout=WAIT)
        settle(page, "Image")
        assert parameter(page, "img") == (str(column + 1) if column else None)


def test_finding_a_shuffled_image_that_the_cnn_gets_wrong(page: Page, app: str) -> None:
    visit(page, address(app, "Image", [MIXER, CNN]) + MORE + "predictions", "Image")
    page.get_by_role("radio", name="Shuffle").or_(
        page.get_by_role("button", name="Shuffle")
    ).first.click()
    settle(page, "Image")
    page.get_by_text("Find them").click()
    page.get_by_text("mixer-s0 right, resnet-s0 wrong").first.wait_for(timeout=WAIT)
    settle(page, "Image")
    found = page.get_by_test_id("stVegaLiteChart").nth(3)
    found.scroll_into_view_if_needed()
    click_thumbnail(page, 3, 0)
    page.wait_for_function("new URLSearchParams(location.search).has('img')", timeout=WAIT)
    settle(page, "Image")
    main = page.get_by_test_id("stMain")
    assert main.get_by_text("still correct").count() == 1
    assert main.get_by_text("now incorrect").count() == 1
    assert (parameter(page, "img-part"), parameter(page, "img-find")) == ("shuffle", "yes")
    assert page.evaluate(
        "(() => { const m = document.querySelector('[data-testid=stMain]'); return m.scrollWidth "
        "<= m.clientWidth })()"
    )


def upload(page: Page, file: Path) -> None:
    page.get_by_text("Upload an image").click()
    page.locator("input[type=file]").set_input_files(file)


def test_an_upload_and_its_link(page: Page, app: str, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    visit(page, address(app, "Image", [CNN]) + MORE + "attributions", "Image")
    upload(page, tmp_path / "a.png")
    page.get_by_text("Uploaded image ").first.wait_for(timeout=WAIT)
    settle(page, "Image")
    assert (parameter(page, "img") or "").startswith("upload:")
    link = page.url
    page.goto("about:blank")
    visit(page, link, "Image")
    assert page.get_by_text("70×50 px").count() == 1
    assert page.get_by_test_id("stAlertContentError").count() == 0
    page.get_by_role("button", name="Back to the image set").click()
    page.get_by_text("Image 1: ").first.wait_for(timeout=WAIT)
    assert parameter(page, "img") is None


BAD = {
    "no.png": "not an image",
    "empty.jpg": "the file is empty",
    "broken.png": "cannot be read",
    "huge.png": "million pixels",
}


def bad(folder: Path, name: str) -> Path:
    file = folder / name
    if name == "huge.png":
        Image.new("1", (10_000, 5_000)).save(file)
    elif name == "broken.png":
        Image.fromarray(
            np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        ).save(file)
        file.write_bytes(file.read_bytes()[:3000])
    else:
        file.write_bytes(b"" if name == "empty.jpg" else b"no image")
    return file


def test_bad_uploads_are_messages_and_a_good_one_helps(
    page: Page, app: str, tmp_path: Path
) -> None:
    visit(page, address(app, "Image", [CNN]) + MORE + "predictions", "Image")
    page.get_by_text("Upload an image").click()
    for name, why in BAD.items():
        page.locator("input[type=file]").set_input_files(bad(tmp_path, name))
        message = page.get_by_test_id("stAlertContentError").filter(has_text=name)
        message.wait_for(timeout=WAIT)
        settle(page, "Image")
        assert why in message.inner_text()
        assert page.get_by_text("Image 1: ").count() == 1
        assert page.get_by_text("Prediction: bird").count() == 1
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    page.locator("input[type=file]").set_input_files(tmp_path / "print.jpg")
    page.get_by_text("It was in CMYK").first.wait_for(timeout=WAIT)
    settle(page, "Image")
    assert page.get_by_test_id("stAlertContentError").count() == 0


def test_the_numbers_of_a_chart_are_saved(page: Page, app: str, tmp_path: Path) -> None:
    visit(page, address(app, "Image", [MIXER, CNN]) + MORE + "layers", "Image")
    for label, begins in (
        ("CSV", b"network,layer,depth,norm"),
        ("SVG", b"<svg"),
        ("PNG", b"\x89PNG"),
    ):
        with page.expect_download(timeout=WAIT) as saved:
            page.get_by_test_id("stDownloadButton").filter(has_text=label).first.click()
        saved.value.save_as(tmp_path / label)
        assert (tmp_path / label).read_bytes().startswith(begins)
