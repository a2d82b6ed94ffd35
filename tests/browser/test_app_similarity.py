"""Similarity and Probes in a browser: a click on a cell opens its two layers, a click on a row its
class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.test_app import WAIT, address, settle, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

MODELS = ["zoo:mixer-s0", "zoo:resnet-s0"]


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    yield context.new_page()
    context.close()


def link(app: str, name: str, more: str = "") -> str:
    return f"{address(app, name, MODELS)}&n=100{more}"


def first_chart(page: Page) -> Locator:
    """The first chart of the page, in view."""
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.wait_for(timeout=WAIT)
    chart.scroll_into_view_if_needed()
    return chart


def click_at(page: Page, chart: Locator, right: float, down: float) -> None:
    box = chart.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])


def said(page: Page, name: str) -> str:
    return parse_qs(urlsplit(page.url).query).get(name, [""])[0]


def test_a_click_on_a_cell_opens_its_two_layers(page: Page, app: str) -> None:
    visit(page, link(app, "Similarity"), "Similarity")
    click_at(page, first_chart(page), 0.3, 0.1)
    page.wait_for_url(lambda url: "sim-a=" in url and "sim-b=" in url, timeout=WAIT)
    settle(page, "Similarity")
    layers = said(page, "sim-a"), said(page, "sim-b")
    assert layers[0].startswith("blocks.")
    assert layers[1].startswith("layer")
    for layer, network in zip(layers, ("mixer-s0", "resnet-s0")):
        assert page.get_by_text(f"{layer} of {network}").count() >= 1
    # Another cell, and the same view by its link.
    click_at(page, first_chart(page), 0.6, 0.4)
    page.wait_for_url(
        lambda url: (
            f"sim-a={layers[0]}&" not in f"{url}&" or f"sim-b={layers[1]}&" not in f"{url}&"
        ),
        timeout=WAIT,
    )
    settle(page, "Similarity")
    second = said(page, "sim-a"), said(page, "sim-b")
    assert second != layers
    visit(page, page.url, "Similarity")
    assert (said(page, "sim-a"), said(page, "sim-b")) == second
    assert page.get_by_text(f"{second[0]} of mixer-s0").count() >= 1


def test_pointing_at_a_cell_tells_interval_and_null(page: Page, app: str) -> None:
    visit(page, link(app, "Similarity"), "Similarity")
    area = first_chart(page).bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 0.4 * area["width"], area["y"] + 0.3 * area["height"])
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for()
    told = tooltip.inner_text()
    for what in (
        "layer (rows)",
        "CKA",
        "95 % interval",
        "null, mean",
        "null, 95 %",
        "n images",
        "estimator",
    ):
        assert what in told


def test_chart_and_numbers_are_saved(page: Page, app: str, tmp_path: Path) -> None:
    visit(page, link(app, "Similarity"), "Similarity")
    for kind, start in (("SVG", b"<svg"), ("CSV", b"layer_a,depth_a"), ("PNG", b"\x89PNG")):
        with page.expect_download() as saved:
            page.get_by_role("button", name=kind, exact=True).first.click()
        saved.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(start)


def test_a_click_on_a_row_opens_its_class(page: Page, app: str) -> None:
    visit(page, link(app, "Probes", "&probes-view=Classes&probes-twin=no"), "Probes")
    click_at(page, first_chart(page), 0.4, 0.3)
    page.wait_for_url(lambda url: "probes-class=" in url, timeout=WAIT)
    settle(page, "Probes")
    name = said(page, "probes-class")
    page.get_by_role("heading", name=f"Accuracy on class {name} by depth").wait_for(timeout=WAIT)
