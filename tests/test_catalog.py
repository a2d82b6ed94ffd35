"""The catalogue: every analysis and every type of result is declared once, and what is declared is
found everywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

import mixer_probe
from mixer_probe import catalog, cli
from mixer_probe.attribution import METHODS
from mixer_probe.capture import Inputs
from mixer_probe.core.analysis import FAMILIES, Analysis, Room, View
from mixer_probe.core.errors import MeasureError, MixerProbeError, ModelError
from mixer_probe.core.result import ModelRecord, Result, load_results, save_results
from mixer_probe.core.section import Section, Table
from mixer_probe.core.settings import StudySettings
from mixer_probe.probing.methods import FITTERS
from mixer_probe.report import compare_reports, make_sections
from mixer_probe.report.views import all_views
from mixer_probe.study import Study, run_analyses
from mixer_probe.weights.analyses import ROOM as WEIGHTS
from tests.app.conftest import Open, open_page, own_cache, own_main
from tests.networks import CASES

__all__ = ["open_page", "own_cache", "own_main"]
# The commands with analyses of one room.
COMMANDS = {
    "weights": "weights",
    "probe": "probing",
    "channels": "channels",
    "attribute": "attribution",
}


def test_names_are_unique_and_results_have_a_view() -> None:
    views = all_views()
    for room in catalog.ROOMS:
        assert len(set(room.names)) == len(room.names)
        for analysis in room.analyses:
            assert set(analysis.families) <= set(FAMILIES)
            assert analysis.question.endswith("?")
            assert analysis.results
            assert all(kind in views for kind in analysis.results), analysis.name
    assert len(views) == len(list(catalog.views())) + 4


@pytest.mark.parametrize(
    "room", [room for room in catalog.ROOMS if room.analyses], ids=lambda room: room.name
)
def test_an_unknown_name_is_refused_with_close_ones(room: Room) -> None:
    for name in room.names:
        with pytest.raises(
            room.error, match=f"there is no {room.noun} '{name}x'; closest: .*{name}"
        ):
            room.check([name, f"{name}x"])
    assert room.check(room.names * 2) == room.names


def test_a_study_makes_the_default_analyses_of_rooms_without_a_choice() -> None:
    settings = StudySettings(analyses={"probing": ["accuracy"], "channels": []})
    made = Study(settings=settings).settings.analyses
    defaults = {room.name: room.defaults for room in catalog.ROOMS}
    assert made == {**defaults, "probing": ("accuracy",), "channels": ()}
    with pytest.raises(MeasureError, match="there is no room 'probes'; closest: probing"):
        Study(settings=StudySettings(analyses={"probes": ["accuracy"]}))


@dataclass(frozen=True)
class LargestWeight(Result):
    title: ClassVar[str] = "Largest weight"

    model: ModelRecord
    value: float

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"model": [self.model.name], "value": [self.value]})


def largest_weight(inputs: Inputs) -> Iterator[LargestWeight]:
    yield LargestWeight(
        inputs.record, max(float(p.detach().abs().max()) for p in inputs.model.module.parameters())
    )


def largest_section(results: Sequence[LargestWeight]) -> list[Section]:
    return [
        Section(
            "largest",
            "The largest weight",
            content=(Table("", pd.concat([r.to_frame() for r in results])),),
        )
    ]


@pytest.fixture
def with_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue with one more analysis."""
    question = "How large is the largest weight?"
    new = Analysis(
        "largest",
        "largest weight",
        question,
        (LargestWeight,),
        largest_weight,
        "weights",
        baseline=True,
    )
    room = replace(
        WEIGHTS,
        analyses=(*WEIGHTS.analyses, new),
        views=(*WEIGHTS.views, View(LargestWeight, largest_section)),
    )
    monkeypatch.setattr(catalog, "ROOMS", [room if r is WEIGHTS else r for r in catalog.ROOMS])


@pytest.mark.usefixtures("with_largest")
def test_a_new_analysis_is_found_by_the_app(open_page: Open) -> None:
    page = open_page("pages/Analyses.py", ["zoo:mixer-s0"], analysis="largest")
    assert "Largest weight" in page.radio[0].options
    assert "largest" in page.radio[0].value
    next(button for button in page.button if button.label == "Run").click().run()
    assert not page.exception
    assert not page.error
    assert "The largest weight" in [header.value for header in page.header]
    assert list(page.table[0].value["model"]) == [r"zoo\:mixer\-s0", r"zoo\:mixer\-s0?untrained"]


@pytest.mark.usefixtures("with_largest")
def test_a_new_analysis_is_found_by_studies_reports_and_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = CASES["mixer"].model()
    results = run_analyses([model], {"weights": ["largest"]})
    largest = max(np.abs(p.detach().numpy()).max() for p in model.module.parameters())
    assert [type(r) for r in results] == [LargestWeight] * 2
    assert results[0].value == pytest.approx(largest)  # type: ignore[attr-defined]
    assert "largest" in [section.anchor for section in make_sections(results)]
    saved = load_results(save_results(results[:1], tmp_path / "a.json"))
    assert saved == (results[0],)
    other = [replace(results[0], value=1.0)]  # type: ignore[call-arg]
    assert [change.column for change in compare_reports(saved, other).changes] == ["value"]
    assert ("weights", "largest") in [
        (room.name, analysis.name) for room, analysis in catalog.analyses()
    ]
    assert any(row[1] == "largest" for row in catalog.listed())
    with pytest.raises(ModelError, match="closest: largest"):
        run_analyses([model], {"weights": ["largst"]})
    out = tmp_path / "w"
    for arguments in (
        ["analyses"],
        ["weights", "zoo:mixer-s0", "--what", "largest", "--out", str(out)],
    ):
        monkeypatch.setattr(sys, "argv", ["mixer-probe", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert "argest" in capsys.readouterr().out
    assert "The largest weight" in (out / "report.html").read_text()
    assert (out / "largest-weight.csv").exists()


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        *((c, "what", catalog.room(r).names) for c, r in COMMANDS.items()),
        ("attribute", "method", tuple(METHODS)),
        ("probe", "method", tuple(FITTERS)),
    ],
)
def test_help_lists_what_can_be_chosen(command: str, option: str, names: tuple[str, ...]) -> None:
    (listed,) = (p.help for p in get_command(cli.app).commands[command].params if p.name == option)  # type: ignore[attr-defined]
    assert [name for name in re.findall(r"[\w-]+", listed) if name in names] == list(names)


def test_errors_of_rooms_are_the_project_s_own() -> None:
    assert all(issubclass(room.error, MixerProbeError) for room in catalog.ROOMS)


def test_no_exported_name_is_hidden_by_a_module() -> None:
    """A module that is imported late takes the place of a function of its name in the package."""
    names = [
        m.name
        for m in pkgutil.walk_packages(mixer_probe.__path__, "mixer_probe.")
        if not m.name.endswith("__main__")
    ]
    packages = [
        package
        for package in map(importlib.import_module, names)
        if package.__name__ != "mixer_probe"
    ]
    hidden = [
        (p.__name__, n)
        for p in packages
        for n in getattr(p, "__all__", ())
        if inspect.ismodule(getattr(p, n))
    ]
    assert not hidden
