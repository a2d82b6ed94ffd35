"""`mixer-probe diff` and `render`, and `report` that goes on: what they print, write, and end
with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe import catalog
from mixer_probe.capture import Inputs
from mixer_probe.cli.options import PassOptions
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import Result, load_results, save_results, to_dict
from mixer_probe.study import StudySettings
from tests import probes
from tests.test_cli import Run, run

__all__ = ["run"]

FIRST = replace(probes.accuracy("net"), untrained=None)


@pytest.fixture
def reports(tmp_path: Path) -> tuple[str, str]:
    """Two reports, one as a folder and one as a file: the accuracy of the last layer fell to
    nothing in B."""
    fallen = {
        name: getattr(FIRST, name) * np.array([1, 1, 0.01]) for name in ("accuracy", "low", "high")
    }
    a = save_results([FIRST], tmp_path / "a" / "results.json", title="Before").parent
    b = save_results([replace(FIRST, **fallen)], tmp_path / "b.json")
    return str(a), str(b)


@pytest.mark.parametrize("command", ["diff", "render"])
def test_help_shows_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: mixer-probe {command}" in out


def test_diff_says_what_moved_and_how_many_would_by_chance(
    run: Run, reports: tuple[str, str]
) -> None:
    code, out, _ = run("diff", *reports)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"1 result is in both {reports[0]} (A) and {reports[1]} (B)."
    assert lines[1].startswith(
        "Of 6 numbers with an interval, 5 are identical, 0 differ within their intervals, and 1 "
        "changed beyond"
    )
    assert "of 1 numbers that differ, about 0.1 would by chance" in lines[1]
    last = FIRST.layers[-1].name
    value, low, high = (getattr(FIRST, name)[-1] for name in ("accuracy", "low", "high"))
    before, after = (f"{value * k:.4g} [{low * k:.4g}, {high * k:.4g}]" for k in (1, 0.01))
    assert any(
        line.startswith(
            f"  accuracy of Linear probes of net, ridge ({last}): {before} -> {after}, p = "
        )
        for line in lines
    ), out
    assert "numbers and text values without an interval are identical" in out


def test_diff_of_the_same_is_one_sentence(run: Run, reports: tuple[str, str]) -> None:
    code, out, _ = run("diff", reports[0], reports[0] + "/results.json", "--exit-code")
    assert code == 0
    assert out.startswith(
        f"{reports[0]} and {reports[0]}/results.json are identical: 1 results, 6 numbers with an "
        "interval"
    )
    assert len(out.splitlines()) == 1


def test_diff_for_a_machine_and_by_its_exit_code(run: Run, reports: tuple[str, str]) -> None:
    code, out, _ = run("diff", *reports, "--json", "--exit-code")
    content = json.loads(out)
    assert code == 1
    assert (content["with_interval"], content["differ"], content["moved"], content["same"]) == (
        6,
        1,
        1,
        False,
    )
    (number,) = content["numbers"]
    assert (number["row"], number["moved"]) == (FIRST.layers[-1].name, True)
    assert number["a"] == pytest.approx(FIRST.accuracy[-1])
    assert run("diff", *reports, "--json", "--exit-code", "--rtol", "1000")[0] == 0


def test_diff_writes_a_report_and_tables(
    run: Run, reports: tuple[str, str], tmp_path: Path
) -> None:
    code, out, _ = run("diff", *reports, "--out", str(tmp_path / "out"))
    assert code == 0
    assert out.rstrip().endswith(str(tmp_path / "out" / "report.html"))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        ".mixer-probe-files.json",
        "differences-of-reports.csv",
        "differences-without-intervals.csv",
        "differences.png",
        "differences.svg",
        "report.html",
        "results.json",
    }
    (found,) = load_results(tmp_path / "out")
    assert found.moved.tolist() == [True]


def test_networks_of_other_names_are_matched(
    run: Run, reports: tuple[str, str], tmp_path: Path
) -> None:
    other = save_results(
        [replace(FIRST, model=replace(FIRST.model, name="new"))], tmp_path / "c.json"
    )
    code, out, _ = run("diff", reports[0], str(other), "--exit-code")
    assert code == 1
    assert (
        "have no result in common: only in A: Linear probes of net, ridge; only in B: Linear "
        "probes of new, ridge." in out
    )
    code, out, _ = run("diff", reports[0], str(other), "--same", "net=new", "--exit-code")
    assert code == 0
    assert "are identical" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{a}", "nowhere"], "cannot read results from nowhere: No such file or directory"),
        (["{a}", "{tmp}"], "there is no results.json in this folder; give that of a report"),
        (["{a}", "{tmp}/no.json"], "is not a results file: it is not valid JSON"),
        (
            ["{tmp}/old.json", "{a}"],
            "(expected format 'mixer-probe results 2', found 'mixer-probe results 0')",
        ),
        (
            ["{a}", "{a}", "--same", "net"],
            "--same is A=B, the name of a network in A and in B, not 'net'",
        ),
        (["{a}", "{a}", "--same", "x=y"], "there is no network 'x' in A; it has net"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    run: Run, reports: tuple[str, str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "old.json").write_text('{"format": "mixer-probe results 0"}')
    code, out, err = run("diff", *(text.format(a=reports[0], tmp=tmp_path) for text in arguments))
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_render_makes_the_report_of_saved_results(
    run: Run, reports: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "again"
    code, printed, _ = run("render", reports[0], "--out", str(out))
    assert (code, printed.strip()) == (0, str(out / "report.html"))
    assert "<h1>Before</h1>" in (out / "report.html").read_text()
    assert (out / "results.json").read_bytes() == (Path(reports[0]) / "results.json").read_bytes()
    assert (out / "linear-probes.csv").is_file()
    run("render", *reports, "--title", "Both", "--out", str(out))
    assert "<h1>Both</h1>" in (out / "report.html").read_text()
    assert len(load_results(out)) == 2
    code, _, err = run("render", str(tmp_path / "none"), "--out", str(out))
    assert code == 2
    assert "cannot read results from" in err


def test_a_report_goes_on_after_a_full_disk(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is named, those before are kept, and the same command computes the rest."""
    few = StudySettings(
        "blocks.0",
        permutations=0,
        resamples=0,
        measures=("cka",),
        analyses={"probing": (), "channels": (), "attribution": ()},
    )
    monkeypatch.setattr(PassOptions, "settings", lambda *_, **__: few)
    # Drawing is what takes long, and other tests look at it.
    monkeypatch.setattr("mixer_probe.report.write_report", lambda _, path, **__: path)
    arguments = [
        "report",
        "zoo:mixer-s0",
        "--limit",
        "10",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    calls: list[str] = []

    def counted(inputs: Inputs) -> list[Result]:
        calls.append(inputs.record.name)
        return [mp.weights.anatomy(inputs.model)]

    analysis = replace(catalog.room("weights")["anatomy"], run=counted)
    monkeypatch.setattr(
        catalog,
        "ROOMS",
        [replace(r, analyses=(analysis,)) if r.name == "weights" else r for r in catalog.ROOMS],
    )

    def full(*_: object, **__: object) -> None:
        raise StoreError("cannot write: No space left on device") from OSError(
            28, "No space left on device"
        )

    with monkeypatch.context() as patch:
        patch.setattr("mixer_probe.capture.analysis_inputs.extract", full)
        code, _, err = run(*arguments)
    assert code == 2
    assert (
        "the step 'representations of zoo:mixer-s0' stopped: cannot write: No space left on device"
        in err
    )
    assert not (tmp_path / "results.json").exists()
    code, out, err = run(*arguments)
    assert code == 0, err
    assert out.strip() == str(tmp_path / "report.html")
    assert calls == ["zoo:mixer-s0"]
    first = (tmp_path / "results.json").read_bytes()
    assert run(*arguments)[0] == 0
    assert calls == ["zoo:mixer-s0"]
    assert (tmp_path / "results.json").read_bytes() == first
    assert json.dumps(to_dict(load_results(tmp_path)))
