"""The commands of README.md are commands, and its example of spatial mixing runs as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from mixer_probe import cli
from mixer_probe.concepts import ConceptSharing

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mixer-probe .*$", README, re.M)


def test_mixing_is_among_the_commands() -> None:
    assert len(COMMANDS) > 10
    assert any(line.startswith("mixer-probe mixing ") for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_that_they_are_given(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command: Any = get_command(cli.app)
    found = command.commands[name]
    context = found.make_context(name, arguments)
    assert context.params


def test_spatial_mixing_runs_as_written() -> None:
    part = README.split("\n## Who reads from where")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", part, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["mixing"].n == 12
    assert names["value"].shape == names["low"].shape == names["high"].shape == (8,)
    mixing, ablated = names["mixing"], names["ablated"]
    assert ablated.model.name != mixing.model.name
    before = mixing.curve("cumulative", "self_mass")[0]
    after = ablated.curve("cumulative", "self_mass")[0]
    # Nothing changes before the token mixing that is ablated; behind it more comes from the
    # position itself.
    assert after[:3] == pytest.approx(before[:3], rel=1e-4)
    assert after[3] > before[3]


def test_the_example_of_interventions_runs_as_written() -> None:
    text = (Path(__file__).parents[1] / "docs" / "mixing.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["reps"].model.name.startswith("zoo:vit-s0 + ablate mean of head 0")
    assert names["reps"]["blocks.5"].shape == (20, 128)


def test_the_examples_of_concepts_run_as_written() -> None:
    text = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8")
    sharing, stitched = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(sharing, names)
    conditions = ["networks", "shuffled images", "untrained", "two seeds", "two seeds"]
    shared = [r for r in names["results"] if isinstance(r, ConceptSharing)]
    assert [r.condition for r in shared] == conditions
    assert names["table"]["sharing"].between(0, 1.000001).all()
    exec(stitched, names)
    assert names["table"]["condition"].tolist() == ["donor", "shuffled", "seed"]
    assert names["low"][0, 0] < names["difference"][0, 0] < names["high"][0, 0]


def test_the_example_of_training_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["run"].checkpoints == (0, 1, 2, 3, 5, 8)
    assert names["units"].units(0).shape == (32, 8, 8)
