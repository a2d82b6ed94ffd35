"""The study of concepts that networks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixer_probe.concepts import ConceptSharing
from mixer_probe.core.result import load_results
from tests.analyses.scripts import run


def test_smoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = run("shared_concepts", monkeypatch, capsys, "--smoke", "--out", tmp_path)
    results = [r for r in load_results(tmp_path) if isinstance(r, ConceptSharing)]
    seeds = ["two seeds"] * 3
    assert [r.condition for r in results] == ["networks", "shuffled images", "untrained", *seeds]
    assert results[0].layers == ("blocks.7", "blocks.7", "layer4.0")
    assert results[0].grid == (4, 4)
    assert "mixer-s0 and vit-s0 share" in said
