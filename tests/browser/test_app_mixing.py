"""Mixing in a browser: the cell under the pointer is shown in all networks at once, a click holds
it, and nothing is measured anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_app import WAIT, address, settle, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

MODELS = ["zoo:mixer-s0", "zoo:resnet-s0"]


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 2000})
    yield context.new_page()
    context.close()


def told(page: Page) -> dict[str, str]:
    """The tooltip as names and texts."""
    rows = page.locator("#vg-tooltip-element tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    return {name.strip(" :"): value.strip() for name, value in cells}


def test_a_cell_is_shown_in_all_networks_and_held_by_a_click(page: Page, app: str) -> None:
    visit(page, address(app, "Mixing", MODELS, mix_images="4"), "Mixing")
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.wait_for(timeout=WAIT)
    box = chart.bounding_box()
    assert box is not None

    def at(right: float, down: float) -> dict[str, str]:
        page.mouse.move(box["x"] + right, box["y"] + down, steps=5)
        page.wait_for_timeout(400)
        return told(page)

    # Small maps have 75 px, after the axis and below the title, and lie above one at size.
    first = at(100, 80)
    assert (first["row of the output cell"], first["column of the output cell"]) == ("1", "1")
    before = chart.screenshot()
    third = at(100 + 75, 80 + 150)
    assert (third["row of the output cell"], third["column of the output cell"]) == ("3", "2")
    assert chart.screenshot() != before
    page.mouse.click(box["x"] + 175, box["y"] + 230)
    other = at(100, 80)
    assert other["column of the output cell"] == "1"
    source = at(120, 400)
    assert set(source) == {"from (px right)", "from (px down)", "P", "standard error of P"}
    assert page.get_by_test_id("stProgress").count() == 0


def test_nothing_is_wider_than_a_narrow_page(chromium: Browser, app: str) -> None:
    context = chromium.new_context(viewport={"width": 768, "height": 900})
    opened = context.new_page()
    link = address(app, "Mixing", [*MODELS, "test_vit?untrained"], mix_images="4")
    for part in ("jacobian", "attention", "components"):
        visit(opened, f"{link}&mix-part={part}", "Mixing")
        settle(opened, "Mixing")
        main = "document.querySelector('[data-testid=stMain]')"
        assert opened.evaluate(f"{main}.scrollWidth <= {main}.clientWidth"), part
    context.close()
