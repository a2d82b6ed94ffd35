"""Every place outside `mixer_probe.stats` that takes a quantile, and why it is not an interval that
nobody has simulated."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mixer_probe

ROOT = Path(mixer_probe.__file__).parent
NAMES = {"quantile", "nanquantile", "percentile", "nanpercentile", "ppf", "isf", "ndtri"}
SIMULATED = "an interval with rows of its own in test_coverage"
NULL = "a quantile of a null, not an interval"
SHOWN = "describes or draws values, says nothing of other images"
REASONS = {
    "attribution/agreements.py agreement": NULL,
    "attribution/panel.py limit_of": SHOWN,
    "channels/selectivity.py ClassSelectivity.summary": SHOWN,
    "channels/figures/partners.py _quartiles": SHOWN,
    "channels/figures/selectivity.py selectivity_distributions": SHOWN,
    "mixing/components.py token_components": SHOWN,
    "report/differences.py differences": NULL,
    "weights/figures/tying.py kernel_energy": NULL,
    "invariance/consistency.py error_consistency": NULL,
    "probing/scores.py balanced_interval": SIMULATED,
    "probing/scores.py combined_interval": SIMULATED,
    "probing/scores.py images_interval": SIMULATED,
    "probing/targets.py binned": "the edges of bins",
    "weights/kernels.py shorter_and_longer": NULL,
    "weights/token_units.py low_frequency_units": NULL,
    "probing/positionwise.py PositionProbe.quantiles": SHOWN,
    "weights/token_units.py related_blocks": NULL,
    "similarity/intervals.py batch_interval": SIMULATED,
    "similarity/intervals.py cka_interval": SIMULATED,
    "similarity/intervals.py group_interval": SIMULATED,
    "visualization/feature_visualization.py _pictures": SHOWN,
    "weights/operators.py tracy_widom_edge": NULL,
    "weights/tying.py KernelSpectrum.null_count": NULL,
    "weights/units.py measure_units": NULL,
}


def calls(node: ast.AST, where: str) -> Iterator[str]:
    """The functions, by file and name, that call one of `NAMES`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            function = child.func
            name = (
                function.attr
                if isinstance(function, ast.Attribute)
                else getattr(function, "id", "")
            )
            if name in NAMES:
                yield where
        separator = "." if " " in where else " "
        inside = (
            f"{where}{separator}{child.name}"
            if isinstance(child, ast.FunctionDef | ast.ClassDef)
            else where
        )
        yield from calls(child, inside)


def test_every_quantile_outside_of_stats_has_a_reason() -> None:
    files = [
        path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != "stats"
    ]
    found = {
        place
        for path in files
        for place in calls(ast.parse(path.read_text()), path.relative_to(ROOT).as_posix())
    }
    assert found == set(REASONS)


def test_no_quantile_of_the_normal_distribution_is_written_out() -> None:
    numbers = [
        (path.relative_to(ROOT).as_posix(), node.value)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, float)
        and round(node.value, 2) in (1.96, 1.64, 1.65, 2.58)
    ]
    assert numbers == []
