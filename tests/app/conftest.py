"""Opening pages of the app without a browser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

APP = Path(__file__).parents[2] / "app"
# Parts of the app are tested by themselves too; Streamlit finds them beside its script.
sys.path.append(str(APP))

Open = Callable[..., AppTest]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is kept in the cache of the person who runs the tests, nor taken from there."""
    from mixer_probe_app import local_files

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(local_files.CACHE, str(folder))
        # Arguments of pytest are no folders of the app.
        patch.setattr(sys, "argv", sys.argv[:1])
        local_files.cache_folder.cache_clear()
        yield folder
        local_files.cache_folder.cache_clear()


@pytest.fixture(autouse=True)
def own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit puts the page in the place of `__main__`, which later tests that start processes
    would import."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def open_page() -> Open:
    """Run a page (`script` below app/) with the networks and the other parameters that its URL
    names ("_" is "-" there)."""

    def run(script: str, models: Sequence[str] = (), **parameters: str) -> AppTest:
        page = AppTest.from_file(str(APP / script), default_timeout=180)
        if models:
            page.query_params["model"] = list(models)
        for name, value in parameters.items():
            page.query_params[name.replace("_", "-")] = value
        return page.run()

    return run


def parameter(page: AppTest, name: str) -> str | None:
    """What the URL says of `name`: text where the page wrote it, a list where the test or an older
    Streamlit did."""
    found = page.query_params.get(name)
    return found[0] if isinstance(found, list) else found


def texts(page: AppTest) -> str:
    """Everything that is written on a page, without the backslashes that keep it plain."""
    kinds = (
        page.title,
        page.header,
        page.subheader,
        page.markdown,
        page.caption,
        page.info,
        page.warning,
        page.error,
        page.success,
    )
    return "\n".join(element.value for kind in kinds for element in kind).replace("\\", "")
