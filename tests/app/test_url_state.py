"""Settings live in the URL: it decides, a change is written into it, the default leaves it bare,
nonsense gives way."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.conftest import APP

BODY = f"""
import sys
sys.path.append({str(APP)!r})
import streamlit as st
from mixer_probe_app import url_state
block = url_state.choose(st.select_slider, "Block", "block", [1, 2, 3], 2)
kind = url_state.choose(st.selectbox, "Kind", "kind", ["a", "b"])
part = url_state.choose(st.segmented_control, "Part", "part", ["x", "y"])
every = url_state.toggle(st, "All", "all")
unit = url_state.number(st, "Unit", "unit", 0, 10, 3)
st.write(f"{{block}} {{kind}} {{part}} {{every}} {{unit}}")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "page.py"
    file.write_text(BODY)
    return file


def opened(script: Path, **parameters: str) -> AppTest:
    page = AppTest.from_file(str(script), default_timeout=60)
    for name, value in parameters.items():
        page.query_params[name] = value
    page.run()
    assert not page.exception
    return page


def said(page: AppTest) -> str:
    return str(page.markdown[0].value)


def url(page: AppTest) -> dict[str, str]:
    return {
        name: value[0] if isinstance(value, list) else value
        for name, value in page.query_params.items()
    }


def test_the_defaults_leave_the_url_bare(script: Path) -> None:
    page = opened(script)
    assert said(page) == "2 a x False 3"
    assert url(page) == {}


def test_a_link_reopens_all_of_it(script: Path) -> None:
    link = {"block": "3", "kind": "b", "part": "y", "all": "yes", "unit": "7"}
    page = opened(script, **link)
    assert said(page) == "3 b y True 7"
    assert url(page) == link


@pytest.mark.parametrize(
    "name, text",
    [("block", "9"), ("block", "<b>"), ("kind", ""), ("unit", "11"), ("unit", "-1"), ("unit", "x")],
)
def test_what_is_no_option_gives_way(script: Path, name: str, text: str) -> None:
    page = opened(script, **{name: text})
    assert said(page) == "2 a x False 3"
    assert url(page) == {}


def test_a_change_is_written_and_the_default_taken_out(script: Path) -> None:
    page = opened(script)
    page.select_slider(key="widget block").set_value(1).run()
    page.toggle(key="widget all").set_value(True).run()
    page.number_input(key="widget unit").set_value(10).run()
    assert said(page) == "1 a x True 10"
    assert url(page) == {"block": "1", "all": "yes", "unit": "10"}
    page.select_slider(key="widget block").set_value(2).run()
    page.toggle(key="widget all").set_value(False).run()
    assert url(page) == {"unit": "10"}


def test_a_bare_url_finds_what_the_session_remembers(script: Path) -> None:
    page = opened(script, block="3", all="yes")
    for name in list(page.query_params):
        del page.query_params[name]
    page.run()
    assert said(page) == "3 a x True 3"
    assert url(page) == {"block": "3", "all": "yes"}
