"""Every superlative and every comparative that a report can print has a row of null data, or a
reason why it is no claim.

Read from the source: string literals of functions in the findings and views of all rooms and of
reports, without docstrings and without what stands in captions (`Picture`, `Table`) and sections. A
function has a row if a module of rows imports it, or if one that has a row calls it in the same
module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mixer_probe

PACKAGE = Path(mixer_probe.__file__).parent
PATTERNS = (
    "*/findings.py",
    "*/findings/*.py",
    "*/views.py",
    "*/views/*.py",
    "report/findings_*.py",
    "report/sections_*.py",
)
FILES = sorted(path for pattern in PATTERNS for path in PACKAGE.glob(pattern))
ROWS = sorted(Path(__file__).parent.glob("test_false_positives*.py"))
SUPERLATIVE = re.compile(
    r"\b(most|best|clearest|strongest|largest|closest|least|highest|lowest|easiest|hardest)\b(?! "
    r"of\b)",
    re.I,
)
COMPARATIVE = re.compile(
    r"\b(higher|lower|larger|smaller|greater|closer|farther|earlier|later|stronger|weaker|better|worse|differs?|exceeds?|increases?|decreases?|rises?|falls?|outperforms?|(more|less|fewer)\b[^.]*\bthan)\b",
    re.I,
)
# "at most" and "at least" bound numbers that are printed; names of quantities and of rules are no
# verdicts.
BOUNDS = re.compile(r"\bat (most|least)\b", re.I)
CAPTIONS = {"Picture", "Table", "Section", "Number"}

COUNTED = "counts corrected p-values and intervals, which test_atoms simulates"
# Function -> why what it says is no claim.
CAPTION, RANK, BOUND = (
    "caption of a picture or table",
    "names a quantity or a rule of choice",
    "counts beside what chance gives",
)
REASONS = {
    "report.findings_control._partners": BOUND,
    "report.findings_control._similarity": BOUND,
    "attribution.views.conductance_section": CAPTION,
    "attribution.views.curves_section": CAPTION,
    "attribution.views.faithfulness_section": CAPTION,
    "attribution.views.panel_section": CAPTION,
    "channels.views.pages.partners_section": CAPTION,
    "channels.views.statistics.channel_section": (
        "an activation that was measured, and how many go beyond a fixed ratio"
    ),
    "report.sections_diff.listing": "headings of lists of numbers",
    "report.sections_diff.change_text": "the largest of differences that are said to have no null",
    "channels.views.dissection.dissected_section": "names the null",
    "concepts.findings.atoms.atom_sentences": COUNTED,
    "concepts.findings.atoms._used_sentences": COUNTED,
    "invariance.views.architecture_section": CAPTION,
    "invariance.views.consistency_section": CAPTION,
    "mixing.findings.frequency.frequency_sentences": RANK,
    "probing.views.positions.attentive_section": CAPTION,
    "probing.views.positions.position_probe_section": CAPTION,
    "probing.views.probes._accuracy_picture": CAPTION,
    "probing.views.probes.few_shot_section": CAPTION,
    "channels.views.selectivity.needed_section": RANK,
    "similarity.views._best_pairs": CAPTION,
    "similarity.views._null_text": CAPTION,
    "similarity.views.matches_section": RANK,
    "similarity.views.model_similarity_section": RANK,
    "similarity.views.disagreement": BOUND,
    "weights.views.units._depth_pictures": CAPTION,
    "weights.views.equivalence.equivalence_sentences": "the rounding of two forms of one network",
    "similarity.findings.correspondence_sentence": (
        "names best matches, and how many are above their null"
    ),
    "weights.findings.unit_sentences": "the rank of one unit, and its p-value",
    "visualization.views.visualization_section": "describes optimised images beside the real ones",
}


def functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def literals(node: ast.AST) -> Iterator[str]:
    """String literals below a node that can become part of a sentence."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if (
            isinstance(child, ast.Call)
            and isinstance(child.func, ast.Name)
            and child.func.id in CAPTIONS
        ):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        yield from literals(child)


def claims_of(node: ast.AST) -> list[str]:
    found = (BOUNDS.sub("", text) for text in literals(node))
    return [
        text
        for text in found
        if " " in text.strip() and (SUPERLATIVE.search(text) or COMPARATIVE.search(text))
    ]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def with_rows() -> set[str]:
    """`module.function` of what the modules of rows import."""
    return {
        f"{node.module.removeprefix('mixer_probe.')}.{name.name}"
        for path in ROWS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.startswith("mixer_probe.")
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


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_claims_have_a_row_or_a_reason(path: Path) -> None:
    found, module = functions(ast.parse(path.read_text(encoding="utf-8"))), module_of(path)
    covered = called_by(module, found, with_rows())
    claims = {
        name: said
        for name, node in found.items()
        if (said := claims_of(node)) and name not in covered
    }
    unknown = {name: said for name, said in claims.items() if f"{module}.{name}" not in REASONS}
    assert not unknown, (
        f"claims without a row of null data in {[p.name for p in ROWS]}: {unknown}; add a row, or "
        "a reason to REASONS"
    )


def test_reasons_are_of_functions_that_are_there() -> None:
    known = {
        f"{module_of(path)}.{name}"
        for path in FILES
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))).items()
        if claims_of(node)
    }
    assert len(FILES) > 25
    assert set(REASONS) <= known, set(REASONS) - known
