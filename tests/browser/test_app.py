"""The app in a browser: every page opens, a change arrives, a link reopens the view, nothing is
asked of the internet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from safetensors.torch import save_file

import mixer_probe as mp
from mixer_probe import catalog
from mixer_probe.core.result import save_results
from mixer_probe.study import run_analyses
from tests.browser.conftest import ROOT, Serve
from tests.tiny import tiny_models

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

APP = ROOT / "app"
MIXER, VIT, CNN = "mixer_s32_224?untrained", "test_vit?untrained", "test_resnet?untrained"
PAGES = {
    "": [MIXER, VIT, CNN],
    "Token_mixing": [MIXER, VIT],
    "Stem": [MIXER, CNN],
    "Mixing": [VIT, CNN],
    "Similarity": [VIT, CNN],
    "Probes": [VIT],
    "Channels": [VIT],
    "Image": [VIT, CNN],
    "Analyses": [MIXER, CNN],
    "Report": [VIT],
}
TITLES = {"": "Networks and images", "Stem": "Stem and kernels"}
WAIT = 120_000


@pytest.fixture
def page(chromium: Browser, app: str) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith((app, "data:", "blob:"))] == []


def address(app: str, name: str, models: list[str], **parameters: str) -> str:
    """The link to a page with these networks, 100 images, and further parameters ("_" is "-"
    there)."""
    more = {key.replace("_", "-"): value for key, value in parameters.items()}
    return f"{app}/{name}?{urlencode({'model': models, 'n': '100'} | more, doseq=True)}"


# A script may begin again after a moment, and charts take their places after it, so its end counts
# when it lasts.
_AT_REST = """() => {
  const height = document.querySelector('[data-testid=stMain]')?.scrollHeight;
  if (height !== window.restingHeight) window.restingSince = undefined;
  window.restingHeight = height;
  const idle = document.querySelector('.stApp')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector(
      '[data-stale=true], [data-testid=stSpinner], [data-testid=stProgress]');
  window.restingSince = idle ? window.restingSince ?? performance.now() : undefined;
  return idle && performance.now() - window.restingSince > 700;
}"""


def visit(page: Page, url: str, title: str) -> None:
    page.goto(url)
    settle(page, title)


def settle(page: Page, title: str) -> None:
    """Wait until the page of this title is there and its script has come to its end."""
    page.get_by_test_id("stMain").get_by_role("heading", name=title, exact=True).wait_for(
        timeout=WAIT
    )
    page.evaluate("window.restingSince = undefined")
    page.wait_for_function(_AT_REST, timeout=WAIT)
    assert page.get_by_test_id("stException").count() == 0


def models_of(page: Page) -> list[str]:
    return parse_qs(urlsplit(page.url).query).get("model", [])


def menu(page: Page, name: str) -> Locator:
    return page.get_by_test_id("stSidebarNavLink").filter(has_text=name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens(chromium: Browser, app: str, name: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    opened = context.new_page()
    visit(opened, address(app, name, PAGES[name]), TITLES.get(name, name.replace("_", " ")))
    assert opened.get_by_test_id("stAlertContentError").count() == 0
    assert models_of(opened) == PAGES[name]
    main = "document.querySelector('[data-testid=stMain]')"
    assert opened.evaluate(f"{main}.scrollWidth <= {main}.clientWidth")
    broken = opened.evaluate(
        "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    assert broken == []
    context.close()


def test_a_page_runs_by_itself_and_stays_at_home(chromium: Browser, serve: Serve) -> None:
    alone = serve(APP / "pages" / "Stem.py")
    opened = chromium.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    visit(opened, address(alone, "", [CNN]), "Stem and kernels")
    assert opened.get_by_test_id("stImage").count() == 1
    opened.close()
    assert [url for url in asked if not url.startswith((alone, "data:", "blob:"))] == []


def test_a_link_opens_its_page_on_a_server_just_started(chromium: Browser, serve: Serve) -> None:
    opened = chromium.new_page()
    visit(opened, address(serve(APP / "Home.py"), "Stem", [CNN]), "Stem and kernels")
    assert models_of(opened) == [CNN]
    menu(opened, "Report").click()
    settle(opened, "Report")
    opened.wait_for_url(lambda url: "model=" in url)
    assert models_of(opened) == [CNN]
    opened.close()


def test_the_choice_goes_through_the_menu(page: Page, app: str) -> None:
    visit(page, address(app, "", [MIXER, CNN]), "Networks and images")
    for name in ("Stem and kernels", "Token mixing", "Report", "Home"):
        menu(page, name).click()
        settle(page, TITLES[""] if name == "Home" else name)
        page.wait_for_url(lambda url: "model=" in url)
        assert models_of(page) == [MIXER, CNN]


def test_choosing_another_network_changes_page_and_address(page: Page, app: str) -> None:
    visit(page, address(app, "Stem", [CNN]), "Stem and kernels")
    page.get_by_role("combobox", name="Network 2").fill("test_vit")
    page.get_by_role("option", name="test_vit", exact=True).click()
    page.get_by_text("Untrained baseline", exact=True).nth(1).click()
    page.get_by_test_id("stMain").get_by_role("heading", name="test_vit (untrained)").wait_for(
        timeout=WAIT
    )
    settle(page, "Stem and kernels")
    assert models_of(page) == [CNN, VIT]
    assert page.get_by_test_id("stImage").count() == 2


def test_a_report_of_what_was_seen_opens_without_the_app(
    page: Page, chromium: Browser, app: str, tmp_path: Path
) -> None:
    visit(page, address(app, "", [VIT, CNN]), TITLES[""])
    menu(page, "Stem and kernels").click()
    settle(page, TITLES["Stem"])
    menu(page, "Report").click()
    settle(page, "Report")
    assert page.get_by_role("checkbox", name="card of").count() == 2
    page.get_by_role("button", name="Create report").click()
    page.get_by_role("heading", name="Networks", exact=True).wait_for(timeout=WAIT)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Report (HTML)").click()
    saved.value.save_as(tmp_path / "report.html")
    # A page of its own, since that of the app is watched for files that it asks for.
    report = chromium.new_page()
    report.goto((tmp_path / "report.html").as_uri())
    report.get_by_role("heading", name="Networks", exact=True).wait_for(timeout=WAIT)
    assert report.get_by_text("test_resnet").count()
    report.close()


def test_results_open_and_the_report_is_saved(page: Page, app: str, tmp_path: Path) -> None:
    found = run_analyses(
        tiny_models()[:1], {"weights": catalog.room("weights").names}, strict=False
    )
    results = save_results(found, tmp_path / "results.json")
    visit(page, address(app, "Report", [VIT]), "Report")
    page.get_by_role("tab", name="Results file").click()
    page.locator("input[type=file]").set_input_files(results)
    page.get_by_role("heading", name="Token-mixing units", exact=True).wait_for(timeout=WAIT)
    settle(page, "Report")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Report (HTML)").last.click()
    saved.value.save_as(tmp_path / "report.html")
    assert "How to read it:" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", ["", "no json", '{"format": "mixer-probe results 2"}'], ids=["empty", "text", "bare"]
)
def test_a_damaged_file_is_a_message(page: Page, app: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    visit(page, address(app, "Report", [VIT]), "Report")
    page.get_by_role("tab", name="Results file").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "results.json")
    page.get_by_test_id("stAlertContentError").wait_for(timeout=WAIT)
    settle(page, "Report")


def test_a_bad_name_is_a_message_that_shows_it_as_text(page: Page, app: str) -> None:
    visit(
        page,
        address(app, "", ["<img src=x onerror=alert(1)>:red[a]$b$", VIT]),
        "Networks and images",
    )
    message = page.get_by_test_id("stAlertContentError").first.inner_text()
    assert "<img src=x onerror=alert(1)>:red[a]$b$" in message
    assert page.get_by_text("Parameters: 371,240").count() == 1


def test_two_people_at_once(chromium: Browser, app: str) -> None:
    choices = ([MIXER], [CNN])
    contexts = [chromium.new_context() for _ in choices]
    pages = [context.new_page() for context in contexts]
    for opened, models in zip(pages, choices):
        opened.goto(address(app, "Stem", models))
    for opened, models in zip(pages, choices):
        settle(opened, "Stem and kernels")
        opened.get_by_role(
            "heading", name=f"{models[0].removesuffix('?untrained')} (untrained)"
        ).wait_for(timeout=WAIT)
        assert models_of(opened) == models
    for context in contexts:
        context.close()


def test_a_calculation_is_stopped_and_goes_on(page: Page, app: str) -> None:
    page.goto(address(app, "Probes", [MIXER]))
    page.get_by_test_id("stProgress").wait_for(timeout=WAIT)
    main = page.get_by_test_id("stMain")
    main.get_by_role("button", name="Stop").click()
    main.get_by_role("button", name="Resume").first.wait_for(timeout=WAIT)
    settle(page, "Probes")
    # The network that was stopped in the middle, and the place of calculations, can be used again.
    visit(page, address(app, "Stem", [MIXER, "test_vit2?untrained"]), TITLES["Stem"])
    assert page.get_by_test_id("stAlertContentError").count() == 0


def test_a_file_of_my_own_folder_is_opened(chromium: Browser, serve: Serve, tmp_path: Path) -> None:
    model = mp.load_model("test_vit", pretrained=False, seed=3, device="cpu")
    weights = {name: value.contiguous() for name, value in model.module.state_dict().items()}
    save_file(weights, tmp_path / "mine.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(
        (tmp_path / "mine.safetensors").read_bytes()[:500]
    )
    opened = chromium.new_page()
    app = serve(APP / "served.py", tmp_path)
    names = [
        f"checkpoint:{tmp_path.name}/{file}.safetensors@test_vit" for file in ("mine", "broken")
    ]
    visit(opened, address(app, "", names), TITLES[""])
    assert opened.get_by_text("Weights: file mine.safetensors").count() == 1
    assert "broken.safetensors" in opened.get_by_test_id("stAlertContentError").inner_text()
    opened.close()


BAD = {
    "note.txt": b"no picture",
    "cut.png": b"\x89PNG\r\n\x1a\n",
    "empty.jpg": b"",
    "page.html": b"<script>alert(1)</script>",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_a_message_and_the_page_goes_on(
    page: Page, app: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    visit(page, address(app, "", [VIT]), TITLES[""])
    page.get_by_text("Other images: upload files").click()
    page.locator("input[type=file]").last.set_input_files(tmp_path / name)
    page.get_by_role("button", name="Use these images").click()
    page.get_by_test_id("stAlertContentError").first.wait_for(timeout=WAIT)
    settle(page, TITLES[""])
    assert page.get_by_text("Parameters: 371,240").count() == 1


def test_what_the_app_draws_is_what_the_package_gives(page: Page, app: str) -> None:
    visit(page, address(app, "Token_mixing", [MIXER]), "Token mixing")
    units = mp.token_mixing(mp.load_model("mixer_s32_224", pretrained=False, device="cpu"))
    expected = f"Mean frequency in cycles/token is {units.frequency(0).mean():.3f} in blocks.0"
    assert expected in page.get_by_test_id("stMain").inner_text()
