"""Token mixing and stem in a browser: a click on a small map or a point opens the page of that
unit; pictures are saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import mixer_probe as mp
from tests.browser.test_app import WAIT, address, settle, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Page

pytestmark = pytest.mark.browser

MIXER, CNN = "zoo:mixer-s0", "test_resnet?untrained"
TITLE = "Token mixing"


@pytest.fixture(scope="module")
def units() -> mp.weights.TokenMixing:
    return mp.token_mixing(mp.load_model(MIXER, device="cpu"))


@pytest.fixture
def page(chromium: Browser, app: str) -> Iterator[Page]:
    # High enough for everything to be in sight: a click needs no scrolling.
    context = chromium.new_context(viewport={"width": 1280, "height": 6000})
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith((app, "data:", "blob:"))] == []


def open_units(page: Page, app: str, more: str = "") -> None:
    visit(page, f"{address(app, 'Token_mixing', [MIXER])}&n=100{more}", TITLE)


def box_of(page: Page, chart: int) -> FloatRect:
    found = page.get_by_test_id("stVegaLiteChart").nth(chart)
    found.wait_for(timeout=WAIT)
    box = found.bounding_box()
    assert box is not None
    return box


def told(page: Page) -> dict[str, str]:
    """The tooltip as names and numbers."""
    rows = page.locator("#vg-tooltip-element tr").all_inner_texts()
    return dict(re.split(r":?\t|:\n", row, maxsplit=1) for row in rows)


def chosen(page: Page) -> str:
    page.wait_for_url(lambda url: "tm-unit=" in url, timeout=WAIT)
    settle(page, TITLE)
    return parse_qs(urlsplit(page.url).query)["tm-unit"][0]


def test_a_click_on_a_small_map_opens_the_page_of_that_unit(
    page: Page, app: str, units: mp.weights.TokenMixing
) -> None:
    open_units(page, app, "&tm-sort=frequency")
    box = box_of(page, 0)
    x, y = box["x"] + 6.5 / 16 * box["width"], box["y"] + 0.06 * box["height"]
    page.mouse.move(x, y)
    page.locator("#vg-tooltip-element").wait_for()
    unit = int(np.argsort(units.frequency(0), kind="stable")[6])
    assert told(page)["unit"].strip() == str(unit)
    assert told(page)["frequency (cycles/token)"].strip() == f"{units.frequency(0)[unit]:.3f}"
    page.mouse.click(x, y)
    assert chosen(page) == str(unit)
    page.get_by_role("heading", name=f"Unit {unit} of blocks.0 of mixer-s0").wait_for(timeout=WAIT)
    # The unit is followed to its opposite, and the other way by a click on the same small map.
    page.get_by_role("button", name="Go to opposite-phase unit").click()
    partner = int(units.partner(0)[unit])
    page.get_by_role("heading", name=f"Unit {partner} of blocks.0 of mixer-s0").wait_for(
        timeout=WAIT
    )
    settle(page, TITLE)
    page.mouse.click(x, y)
    page.get_by_role("heading", name=f"Unit {unit} of blocks.0 of mixer-s0").wait_for(timeout=WAIT)


def test_a_click_on_a_point_opens_the_page_of_that_unit(page: Page, app: str) -> None:
    open_units(page, app, "&tm-block=4")
    unit = point_at_a_unit(page, box_of(page, 1))
    page.mouse.down()
    page.mouse.up()
    assert chosen(page) == unit
    page.get_by_role("heading", name=f"Unit {unit} of blocks.3 of mixer-s0").wait_for(timeout=WAIT)


def point_at_a_unit(page: Page, box: FloatRect) -> str:
    """Move over the middle of the scatter until a unit tells its numbers."""
    for across in np.linspace(0.35, 0.6, 60):
        for down in (0.3, 0.35, 0.4):
            page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
            if (
                page.locator("#vg-tooltip-element.visible").count()
                and told(page).get("unit", "-1").strip() != "-1"
            ):
                return told(page)["unit"].strip()
    pytest.fail("no point was found in the middle of the chart")


def test_a_link_opens_a_unit_and_its_pictures_are_saved(
    page: Page, app: str, tmp_path: Path
) -> None:
    open_units(page, app, "&tm-block=2&tm-unit=17&tm-by=peak&tm-measure=pairing")
    page.get_by_role("heading", name="Unit 17 of blocks.1 of mixer-s0").wait_for(timeout=WAIT)
    assert page.get_by_test_id("stAlertContentError").count() == 0
    # Small maps, points, the unit's maps, its channels, all by depth; a chart comes a moment after
    # its place.
    page.get_by_test_id("stVegaLiteChart").nth(6).wait_for(timeout=WAIT)
    assert page.get_by_test_id("stVegaLiteChart").count() == 7
    for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("CSV", b"row,column,weight,map")):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).nth(2).click()
        download.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(start)


def test_nothing_is_wider_than_a_narrow_page(chromium: Browser, app: str) -> None:
    context = chromium.new_context(viewport={"width": 768, "height": 900})
    opened = context.new_page()
    open_units(opened, app)
    main = "document.querySelector('[data-testid=stMain]')"
    assert opened.evaluate(f"{main}.scrollWidth <= {main}.clientWidth")
    context.close()


def test_a_part_of_the_stem_page_is_chosen_and_linked(page: Page, app: str) -> None:
    visit(page, address(app, "Stem", [CNN]), "Stem and kernels")
    page.get_by_role("button", name="Anatomy", exact=True).or_(
        page.get_by_role("radio", name="Anatomy", exact=True)
    ).click()
    page.wait_for_url(lambda url: "stem-part=anatomy" in url, timeout=WAIT)
    settle(page, "Stem and kernels")
    assert page.get_by_test_id("stImage").count() == 1
    page.goto(f"{address(app, 'Stem', [CNN])}&stem-part=kernels")
    settle(page, "Stem and kernels")
    assert page.get_by_test_id("stVegaLiteChart").count() == 1
    assert page.get_by_test_id("stAlertContentError").count() == 0
