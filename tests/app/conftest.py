"""Opening pages of the app without a browser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.tiny import study

APP = Path(__file__).parents[2] / "app"
# Parts of the app are tested by themselves too; Streamlit finds them beside its script.
sys.path.append(str(APP))

Open = Callable[..., AppTest]

__all__ = ["study"]


@pytest.fixture(autouse=True)
def own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit puts the page in the place of `__main__`, which later tests that start processes would import."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def open_page() -> Open:
    """Run a page (`script` below app/) with the networks that its URL names."""

    def run(script: str, models: Sequence[str] = ()) -> AppTest:
        page = AppTest.from_file(str(APP / script), default_timeout=180)
        if models:
            page.query_params["model"] = list(models)
        return page.run()

    return run
