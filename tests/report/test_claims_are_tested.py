"""Every superlative that the report's code can print belongs to a row of null data, or to a reason why it is no claim.

Read from the source: string literals of functions in `findings_*` and `sections_*`, without docstrings and without what stands in
captions (`Picture`, `Table`) and sections. A function has a row if a module of rows imports it, or if one that has a row calls
it in the same module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mixer_probe.report

REPORT = Path(mixer_probe.report.__file__).parent
ROWS = sorted(Path(__file__).parent.glob("test_false_positives*.py"))
SUPERLATIVE = re.compile(
    r"\b(most|best|clearest|strongest|largest|closest|least|highest|lowest|easiest|hardest)\b(?! of\b)", re.I
)
# "at most" and "at least" bound numbers that are printed; names of quantities and of rules are no verdicts.
BOUNDS = re.compile(r"\bat (most|least)\b", re.I)
CAPTIONS = {"Picture", "Table", "Section", "Number"}

# Function -> why what it says is no claim.
CAPTION, RANK, BOUND = "caption of a picture or table", "names a quantity or a rule of choice", "counts beside what chance gives"
REASONS = {
    "findings_control._partners": BOUND,
    "findings_control._similarity": BOUND,
    "sections_attribution._panel_reading": CAPTION,
    "sections_attribution.faithfulness_section": CAPTION,
    "sections_channel_pages._by": RANK,
    "sections_channel_pages._partner_table": CAPTION,
    "sections_channel_pages._shown": RANK,
    "sections_channels._massive_text": "an activation that was measured, and how many go beyond a fixed ratio",
    "sections_diff._numbers": CAPTION,
    "sections_diff.change_text": "the largest of differences that are said to have no null",
    "sections_dissection._channel_sentence": "names the null",
    "sections_dissection._concept_table": CAPTION,
    "sections_invariance._maps_picture": CAPTION,
    "sections_invariance.architecture_section": CAPTION,
    "sections_invariance.consistency_section": CAPTION,
    "sections_probe_controls.random_label_section": CAPTION,
    "sections_probe_places.attentive_section": CAPTION,
    "sections_probes._curves_picture": CAPTION,
    "sections_probes.few_shot_section": CAPTION,
    "sections_selectivity._needed_sentence": RANK,
    "sections_selectivity._selectivity_table": CAPTION,
    "sections_similarity._best_row": CAPTION,
    "sections_similarity._localisation_sentence": "a percentage of positions by a rule, beside what even weights give",
    "sections_similarity._map_picture": CAPTION,
    "sections_similarity._match_sentence": RANK,
    "sections_similarity._measure_row": CAPTION,
    "sections_similarity._summary_sentence": RANK,
    "sections_similarity.disagreement": BOUND,
    "sections_units._depth_pictures": CAPTION,
    "sections_units._units_picture": CAPTION,
    "sections_visualization._method_text": "describes optimised images beside the real ones",
}


def functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def literals(node: ast.AST) -> Iterator[str]:
    """String literals below a node that can become part of a sentence."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in CAPTIONS:
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        yield from literals(child)


def superlatives(node: ast.AST) -> list[str]:
    found = (BOUNDS.sub("", text) for text in literals(node))
    return [text for text in found if " " in text.strip() and SUPERLATIVE.search(text)]


def with_rows() -> set[str]:
    """`module.function` of what the modules of rows import from the report."""
    return {
        f"{node.module.removeprefix('mixer_probe.report.')}.{name.name}"
        for path in ROWS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mixer_probe.report.")
        for name in node.names
    }


def called_by(module: str, found: dict[str, ast.FunctionDef], covered: set[str]) -> set[str]:
    """Functions of a module that have a row, and those that they call."""
    reached = {name for name in found if f"{module}.{name}" in covered}
    while True:
        names = {n.id for name in reached for n in ast.walk(found[name]) if isinstance(n, ast.Name)}
        more = (names & set(found)) - reached
        if not more:
            return reached
        reached |= more


@pytest.mark.parametrize("path", sorted([*REPORT.glob("findings_*.py"), *REPORT.glob("sections_*.py")]), ids=lambda p: p.stem)
def test_superlatives_have_a_row_or_a_reason(path: Path) -> None:
    found = functions(ast.parse(path.read_text(encoding="utf-8")))
    covered = called_by(path.stem, found, with_rows())
    claims = {name: said for name, node in found.items() if (said := superlatives(node)) and name not in covered}
    unknown = {name: said for name, said in claims.items() if f"{path.stem}.{name}" not in REASONS}
    assert not unknown, (
        f"superlatives without a row of null data in {[p.name for p in ROWS]}: {unknown}; add a row, or a reason to REASONS"
    )


def test_reasons_are_of_functions_that_are_there() -> None:
    known = {
        f"{path.stem}.{name}"
        for path in REPORT.glob("*.py")
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))).items()
        if superlatives(node)
    }
    assert set(REASONS) <= known, set(REASONS) - known
