"""Report: what was seen can be taken home, and its script makes the same numbers; results files
open."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixer_probe_app import history, local_files, reports
from mixer_probe_app.history import Entry
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from mixer_probe.core.result import Result, from_dict, save_results, to_dict
from mixer_probe.core.section import Picture
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import make_sections
from tests.app.conftest import Open
from tests.sealed import sealed
from tests.tiny import one_of_each

MIXER, VIT, CNN = "mixer_s32_224?untrained", "test_vit?untrained", "test_resnet?untrained"


def test_the_page_says_where_results_come_from(open_page: Open) -> None:
    told = [info.value for info in open_page("pages/Report.py").info]
    assert any("No results in this session yet" in text for text in told)
    assert any("mixer-probe demo --out DIR" in text for text in told)


def test_what_was_seen_can_be_ticked_and_taken_home(open_page: Open) -> None:
    page = open_page("Home.py", [VIT, CNN])
    page.switch_page("pages/Report.py").run()
    assert not page.exception
    assert not page.error
    assert [box.label.replace("\\", "") for box in page.checkbox] == [
        f"card of {VIT}",
        f"card of {CNN}",
    ]
    assert not page.header
    next(button for button in page.button if button.label == "Create report").click().run()
    assert [header.value for header in page.header] == ["Networks"]
    # It is kept: another visit shows it at once.
    assert [header.value for header in page.run().header] == ["Networks"]
    script = page.code[0].value
    assert f"mp.models.describe(models[{VIT!r}])" in script
    page.checkbox[0].uncheck().run()
    assert f"describe(models[{VIT!r}])" not in page.code[0].value
    page.checkbox[1].uncheck().run()
    assert "Select at least one result." in [info.value for info in page.info]


def test_the_script_makes_the_same_numbers(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page("Home.py", [VIT, CNN])
    page.switch_page("pages/Report.py").run()
    monkeypatch.chdir(tmp_path)
    exec(compile(page.code[0].value, "make_report.py", "exec"), {})
    found = mp.load_results(tmp_path / "results.json")
    assert [card.model.name for card in found] == ["test_vit", "test_resnet"]
    assert "test_vit" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_script_never_acts_on_a_name() -> None:
    evil = "x']; import os; os.abort()  # \n"
    code = f"mp.token_mixing(models[{evil!r}])"
    item = Entry(
        "Page",
        f"unit of {evil}",
        "kind",
        "key",
        code,
        ((evil, f"mp.load_model({evil!r})"),),
        "images = None",
    )
    compiled = compile(history.script([item]), "script", "exec")
    loaded: list[str] = []

    class Fake:
        @staticmethod
        def load_model(name: str) -> str:
            loaded.append(name)
            return name

        @staticmethod
        def token_mixing(model: str) -> str:
            return model

    with pytest.raises(ImportError):
        exec(
            compiled,
            {"__builtins__": {"isinstance": isinstance, "list": list, "tuple": tuple}, "mp": Fake},
        )
    tree = history.script([item])
    assert "\nimport os" not in tree


def test_everything_is_in_the_written_report(study: list[Result]) -> None:
    study = one_of_each(study)
    written = reports.render(study, {"command": "app"}, "key")
    assert written.html.startswith("<!doctype html>")
    assert len(json.loads(written.json)["results"]) == len(study)
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(written.tables)).namelist()
    assert len(names) == len(study)
    assert names[0].startswith("01-")


def upload(page: AppTest, content: bytes) -> AppTest:
    if not hasattr(page, "file_uploader"):
        pytest.skip("this Streamlit's AppTest has no file uploader")
    return page.file_uploader[0].upload("results.json", content, "application/json").run()


def test_results_are_read_and_given_back_as_html(
    open_page: Open, study: list[Result], tmp_path: Path
) -> None:
    study = one_of_each(study)
    content = save_results(
        study, tmp_path / "results.json", {"command": "mixer-probe demo"}
    ).read_bytes()
    page = upload(open_page("pages/Report.py"), content)
    assert not page.exception
    assert not page.error
    headers = [header.value for header in page.header]
    assert headers[0] == "Networks"
    assert "Token\\-mixing units" in headers
    content_of = [item for section in make_sections(study) for item in section.content]
    images = [image for image in page.get("image") if image.captions[0]]
    assert len(images) == sum(isinstance(item, Picture) for item in content_of)
    assert all("How to read it" in caption for image in images for caption in image.captions)


def test_a_report_below_the_folders_is_opened(
    open_page: Open, study: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_results(study[:1], tmp_path / "results.json")
    monkeypatch.setenv(local_files.PATHS, str(tmp_path))
    local_files.local_files.clear()
    page = open_page("pages/Report.py")
    page.selectbox(key="results file").set_value(f"{tmp_path.name}/results.json").run()
    local_files.local_files.clear()
    assert not page.error
    assert page.header[0].value == "Networks"


DAMAGED = {
    "empty": b"",
    "no JSON": b"{",
    "binary": bytes(range(256)),
    "a list": b"[]",
    "no results": b'{"format": "mixer-probe results 2"}',
    "empty results": sealed([]).encode(),
    "another format": sealed([], format="mixer-probe results 99").encode(),
    "the version before": sealed([], format="mixer-probe results 1").encode(),
    "edited": sealed([to_dict(Skipped("a", "b"))]).replace('"a"', '"c"').encode(),
    "unknown kind": sealed([{"$type": "Nothing"}]).encode(),
    "missing fields": sealed([{"$type": "ProbeResult"}]).encode(),
    "wrong fields": sealed([{"$type": "Skipped", "step": 1, "reason": None}]).encode(),
    "no result": sealed([3]).encode(),
    "deep": b"[" * 100_000,
    "an array that is none": sealed([{"$type": "array", "npy_base64": "gASVDA=="}]).encode(),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_upload_is_a_message(open_page: Open, kind: str) -> None:
    page = upload(open_page("pages/Report.py"), DAMAGED[kind])
    assert not page.exception
    assert len(page.error) == 1
    assert "Choose a results" in page.error[0].value
    assert "/tmp" not in page.error[0].value
    assert len(page.error[0].value) < 600


def test_an_array_that_is_a_pickle_is_refused() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    data: dict[str, Any] = {
        "$type": "array",
        "npy_base64": base64.b64encode(stream.getvalue()).decode(),
    }
    with pytest.raises(Exception, match="Python objects"):
        from_dict(data)
