"""The report, opened from disk in a browser without a network, at the width of a screen and of a
telephone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mixer_probe as mp
from mixer_probe.report import write_report
from mixer_probe.study import StudySettings, run_study
from tests.tiny import tiny_models

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

# Wide enough to show that nothing of the layout depends on short names.
UNTRAINED = "test_vit"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixer, a ResNet, and a ViT with random weights, on 60 images."""
    mixer, _vit, resnet = tiny_models()
    images, train = (
        mp.load_images("demo", limit=60),
        mp.load_images("demo", split="train", limit=60),
    )
    models = [mixer, resnet, mp.load_model(UNTRAINED, pretrained=False, device="cpu")]
    results = run_study(models, images, train, StudySettings(permutations=20))
    again = {
        "command": "mixer-probe report " + "a-rather-long-argument " * 20,
        "script": "x = 1  # " + "long " * 80,
        "seed": 0,
    }
    return write_report(
        results,
        tmp_path_factory.mktemp("report") / "report.html",
        title="What did they learn?",
        settings=again,
    )


class Opened:
    """A page with what the browser complained about and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console",
            lambda m: (
                self.complaints.append(f"{m.type}: {m.text}")
                if m.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="module", params=[1280, 390], ids=["screen", "telephone"])
def opened(request: pytest.FixtureRequest, chromium: Browser, report: Path) -> Iterator[Opened]:
    context = chromium.new_context(viewport={"width": request.param, "height": 900}, offline=True)
    found = Opened(context.new_page())
    found.page.goto(report.as_uri())
    found.page.wait_for_load_state("load")
    yield found
    context.close()


def test_no_complaint_and_nothing_from_elsewhere(opened: Opened) -> None:
    opened.page.mouse.wheel(0, 20_000)
    assert opened.complaints == []
    # Pictures inside the file are no requests to anywhere.
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1


def test_the_page_is_as_wide_as_the_window(opened: Opened) -> None:
    for details in opened.page.query_selector_all("details"):
        details.evaluate("element => element.open = true")
    width, window = opened.page.evaluate(
        "[document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= window
    cut = opened.page.evaluate(
        """[...document.querySelectorAll('main *')]
           .filter(element => !element.closest('.scroll, pre'))
           .filter(element => element.getBoundingClientRect().right > window.innerWidth + 1)
           .map(element => element.outerHTML.slice(0, 80))"""
    )
    assert cut == []


def test_every_picture_is_loaded_and_described(opened: Opened) -> None:
    pictures = opened.page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt])"
    )
    assert len(pictures) >= 8
    for complete, width, height, alt in pictures:
        assert complete
        assert min(width, height) > 0
        assert len(alt) > 15


def test_every_figure_has_a_caption_that_is_seen(opened: Opened) -> None:
    figures = opened.page.query_selector_all("figure")
    assert len(figures) == len(opened.page.query_selector_all("img"))
    for figure in figures:
        caption = figure.query_selector("figcaption")
        assert caption is not None
        assert caption.is_visible()
        assert "How to read it:" in caption.inner_text()


def test_links_lead_to_their_sections(opened: Opened) -> None:
    links = opened.page.query_selector_all("nav a")
    assert len(links) >= 6
    for link in links:
        target = opened.page.query_selector(
            f"section[id='{(link.get_attribute('href') or '')[1:]}'] h2"
        )
        assert target is not None
        assert target.inner_text() == link.inner_text()


def test_a_section_opens_below_the_menu(opened: Opened) -> None:
    opened.page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    for link in opened.page.query_selector_all("nav a")[:-1]:
        link.click()
        heading = (
            f"document.querySelector('{link.get_attribute('href')} h2').getBoundingClientRect().top"
        )
        top, menu = opened.page.evaluate(
            f"[{heading}, document.querySelector('nav').getBoundingClientRect().bottom]"
        )
        assert menu <= top < 900, link.inner_text()


def test_random_weights_are_said_where_they_are_shown(opened: Opened) -> None:
    banner = opened.page.query_selector("header .banner")
    assert banner is not None
    assert banner.is_visible()
    assert UNTRAINED in banner.inner_text()
    pictured = [
        section
        for section in opened.page.query_selector_all("section")
        if section.query_selector("figure")
    ]
    sections = [section for section in pictured if UNTRAINED in section.inner_text()]
    assert len(sections) >= 4
    for section in sections:
        warning = section.query_selector(".warning")
        assert warning is not None, section.inner_text()[:60]
        assert warning.is_visible()
        assert UNTRAINED in warning.inner_text()


def test_an_untrained_twin_alone_is_said_too(chromium: Browser, tmp_path: Path) -> None:
    results = run_study(
        [tiny_models()[0].untrained()],
        mp.load_images("demo", limit=20),
        None,
        StudySettings(permutations=0),
    )
    page = chromium.new_page(offline=True)
    page.goto(write_report(results, tmp_path / "report.html").as_uri())
    warnings = page.locator(".banner, .warning").all_inner_texts()
    page.close()
    assert any("untrained" in text for text in warnings)
