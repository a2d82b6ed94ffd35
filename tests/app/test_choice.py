"""The choice of networks: the URL says it, the session remembers it, three boxes change it."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from tests.app.conftest import Open

VIT, CNN, CONVNEXT = "test_vit?untrained", "test_resnet?untrained", "test_convnext?untrained"


def named(page: AppTest) -> list[str]:
    """The networks in the URL; one alone is no list there."""
    found = page.query_params["model"]
    return found if isinstance(found, list) else [found]


def test_the_url_fills_the_boxes(open_page: Open) -> None:
    page = open_page("pages/Stem.py", [VIT, CNN])
    assert [page.selectbox(key=f"network {slot}").value for slot in range(3)] == [
        "test_vit",
        "test_resnet",
        None,
    ]
    assert [page.toggle(key=f"untrained {slot}").value for slot in range(3)] == [True, True, False]


def test_the_boxes_change_the_url(open_page: Open) -> None:
    page = open_page("pages/Stem.py", [VIT])
    page.selectbox(key="network 1").set_value("test_resnet").run()
    assert named(page) == [VIT, "test_resnet"]
    page.toggle(key="untrained 1").set_value(True).run()
    assert named(page) == [VIT, CNN]
    page.selectbox(key="network 0").set_value(None).run()
    assert named(page) == [CNN]
    assert page.selectbox(key="network 0").value == "test_resnet"
    assert not page.exception


def test_the_choice_goes_from_page_to_page(open_page: Open) -> None:
    page = open_page("Home.py", [VIT, CNN])
    # The menu leads to a bare address.
    del page.query_params["model"]
    page.switch_page("pages/Stem.py").run()
    assert "test_vit and test_resnet have untrained weights" in page.warning[0].value.replace(
        "\\", ""
    )
    assert named(page) == [VIT, CNN]


def test_at_most_three_and_each_once(open_page: Open) -> None:
    page = open_page(
        "pages/Stem.py", [VIT, VIT, " ", "?untrained", CNN, CONVNEXT, "test_vit2?untrained"]
    )
    assert named(page) == [VIT, CNN, CONVNEXT]
    assert (
        page.warning[0]
        .value.replace("\\", "")
        .startswith("test_vit, test_resnet and test_convnext have")
    )


def test_an_endless_name_is_cut(open_page: Open) -> None:
    page = open_page("pages/Stem.py", ["x" * 10_000])
    assert not page.exception
    assert len(page.error[0].value) < 1000
