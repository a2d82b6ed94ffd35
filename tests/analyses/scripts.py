"""How tests run a script of `analyses/`."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "analyses"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Namespace:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    found: Namespace = script._options()
    return found


def run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> str:
    """What the script prints. In this process: another would take longer to import torch than most
    scripts to run."""
    script = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    script.main()
    return capsys.readouterr().out


def pictures(out: Path) -> set[str]:
    """Names of the pictures that are there as SVG and as PNG."""
    both = [{p.stem for p in out.glob(f"*.{kind}")} for kind in ("svg", "png")]
    assert both[0] == both[1]
    return both[0]
