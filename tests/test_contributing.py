"""The examples of CONTRIBUTING.md run as written, and the layout that docs/architecture.md shows is
that of the package."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import mixer_probe as mp
from mixer_probe import catalog
from mixer_probe.models import structure
from mixer_probe.report import make_sections
from tests.app.conftest import Open, open_page, own_cache, own_main
from tests.networks import CASES

__all__ = ["open_page", "own_cache", "own_main"]

ROOT = Path(__file__).parents[1]


def examples() -> dict[str, dict[str, Any]]:
    """The names that each example defines, by the title of its part."""
    found: dict[str, dict[str, Any]] = {}
    for part in (ROOT / "CONTRIBUTING.md").read_text().split("\n## ")[1:]:
        code = re.search(r"```python\n(.*?)```", part, re.S)
        assert code is not None, part
        module = types.ModuleType(f"contributing_{len(found)}")
        sys.modules[module.__name__] = module
        exec(code[1], vars(module))
        found[part.splitlines()[0]] = vars(module)
    return found


def test_examples_run_and_are_what_the_program_takes(monkeypatch: Any, open_page: Open) -> None:
    found = examples()
    assert list(found) == ["A similarity measure", "An analysis", "A family of networks"]
    model = CASES["mixer"].model()
    analysis, view = found["An analysis"]["ANALYSIS"], found["An analysis"]["VIEW"]
    room = catalog.room("weights")
    changed = type(room)(
        room.name, room.noun, room.error, (*room.analyses, analysis), (*room.views, view)
    )
    monkeypatch.setattr(catalog, "ROOMS", [changed])
    results = mp.study.run_analyses([model], {"weights": ["largest"]})
    assert [s.title for s in make_sections(results)] == ["The largest weight"]
    page = open_page("pages/Analyses.py", ["zoo:vit-s0"], analysis="largest")
    next(button for button in page.button if button.label == "Run").click().run()
    assert [header.value for header in page.header] == ["The largest weight"]
    family = found["A family of networks"]
    monkeypatch.setattr(structure, "ADAPTERS", (*structure.ADAPTERS, family["ADAPTER"]))
    own = network(family["PoolBlock"])
    loaded = mp.load_model(
        own, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu", name="pool"
    )
    assert [layer.name for layer in loaded.select("blocks")] == ["blocks.0", "blocks.1"]


def network(block: Any) -> Any:
    from torch import nn

    class PoolFormer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 4, 4, 4), nn.Sequential(block(4), block(4))
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.blocks(self.stem(x))).mean((2, 3)))

    return PoolFormer()


def test_the_layout_told_is_the_layout() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"app"}
    package = ROOT / "mixer_probe"
    there = {p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()} | {
        "catalog"
    }
    assert told == there
