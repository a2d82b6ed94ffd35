"""The page Channels in a browser: a click on a point opens its channel, and pictures are saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from PIL import Image

from tests.browser.test_app import WAIT, settle, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

MODELS = ["zoo:mixer-s0", "zoo:vit-s0"]
TITLE = "Channels"


@pytest.fixture
def page(chromium: Browser, app: str) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def address(app: str, **parameters: str) -> str:
    return f"{app}/Channels?{urlencode({'model': MODELS, 'n': '100', **parameters}, doseq=True)}"


def said(page: Page, name: str) -> str:
    return parse_qs(urlsplit(page.url).query).get(name, [""])[0]


def test_a_class_finds_its_channel(page: Page, app: str) -> None:
    visit(page, address(app), TITLE)
    page.get_by_role("combobox", name="Most selective for class").click()
    page.get_by_role("option", name="frog", exact=True).click()
    page.get_by_text("is the most selective for frog").first.wait_for(timeout=WAIT)
    settle(page, TITLE)
    assert said(page, "ch-class") == "frog"
    assert page.get_by_test_id("stAlertContentError").count() == 0


def test_a_click_on_a_point_opens_its_channel(page: Page, app: str) -> None:
    visit(page, address(app), TITLE)
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.scroll_into_view_if_needed()
    chart.locator("canvas, svg").first.wait_for(timeout=10_000)
    # Points are small: the tooltip says where there is one, and which.
    tooltip = page.locator("#vg-tooltip-element.visible")
    for step in range(400):
        box = chart.bounding_box()
        assert box is not None
        x, y = (
            box["x"] + box["width"] * (0.1 + 0.02 * (step % 40)),
            box["y"] + box["height"] * (0.35 + 0.05 * (step // 40)),
        )
        page.mouse.move(x, y)
        # A tooltip comes a frame or two later: without waiting, it may be the one of a place that
        # was left again.
        page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        if tooltip.count():
            break
    else:
        pytest.fail("no point of the chart shows a tooltip")
    told = dict(row.inner_text().split("\t")[:2] for row in tooltip.locator("tr").all())
    told = {name.strip().rstrip(":"): value.strip() for name, value in told.items()}
    page.mouse.click(x, y)
    page.wait_for_url(lambda url: "ch-channel=" in url, timeout=WAIT)
    settle(page, TITLE)
    assert said(page, "ch-channel") == told["channel"]
    assert (
        page.get_by_role("heading", name=f"Channel {told['channel']} of {told['layer']}").count()
        == 1
    )


def test_the_partner_opens_and_pictures_are_saved(page: Page, app: str, tmp_path: Path) -> None:
    visit(
        page,
        address(
            app, **{"ch-layer": "blocks.3", "ch-channel": "17", "ch-partner-layer": "blocks.1"}
        ),
        TITLE,
    )
    for name, kind in (("SVG", "svg"), ("PNG", "png")):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name).first.click()
        saved.value.save_as(tmp_path / f"gallery.{kind}")
    assert Image.open(tmp_path / "gallery.png").width > 500
    assert (tmp_path / "gallery.svg").read_text(encoding="utf-8").count("<image") == 12
    page.get_by_role("button", name="Open its page").click()
    page.wait_for_url(lambda url: "ch-network=zoo" in url, timeout=WAIT)
    settle(page, TITLE)
    assert [said(page, f"ch-{name}") for name in ("network", "layer", "partner-layer")] == [
        "zoo:vit-s0",
        "blocks.1",
        "blocks.3",
    ]
    assert page.get_by_test_id("stAlertContentError").count() == 0
