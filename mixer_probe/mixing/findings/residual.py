"""Sentences on the residual stream: norm ratios, branches that are zero, and contributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.words import first_and_more, join, name_of, untrained_baseline
from mixer_probe.mixing.findings.attention import at
from mixer_probe.mixing.findings.changes import changed, not_zero
from mixer_probe.mixing.residual import ResidualStream


def residual_sentences(result: ResidualStream, results: Sequence[ResidualStream]) -> list[str]:
    """Ratios of the first and the last block, zero branches, what training changed, and the sum
    that makes the logit, or why it is none."""
    name, two = name_of(result.model), bool(result.present[:, 1].any())
    kinds = ["spatial branch", "channel branch"] if two else ["branch"]
    said = []
    for b, kind in enumerate(kinds):
        known = np.flatnonzero(np.isfinite(result.ratio.value[:, b]))
        if len(known):
            first, last = known[0], known[-1]
            said.append(
                f"{name}: the norm of the skip connection is {at(result.ratio, (first, b), 2)} "
                f"times that of the {kind} in {result.blocks[first].name}, and "
                f"{at(result.ratio, (last, b), 2)} times in {result.blocks[last].name}."
            )
        zero = [layer.name for layer, z in zip(result.blocks, result.zero[:, b], strict=True) if z]
        if zero:
            said.append(f"{name}: the {kind} is exactly zero in {first_and_more(zero, 3)}.")
    baseline = untrained_baseline(result, results)
    if baseline:
        count = int(changed(result.ratio, baseline.ratio).sum())
        said.append(
            f"Training changed the norm ratio significantly in {count} of "
            f"{int(result.present.sum())} branches (Bonferroni)."
        )
    said.append(contribution_sentence(result))
    return said


def contribution_sentence(result: ResidualStream) -> str:
    """The parts of the logit, and how many branches contribute; or why it has none."""
    name = name_of(result.model)
    if result.reason:
        return f"{name}: logits are no sum over branches, for {result.reason}."
    of = "true class" if result.target == "label" else "predicted class"
    if not np.any(result.part.value[np.isfinite(result.part.value)]):
        return f"{name}: the logit of the {of} minus the mean logit is exactly zero, in all parts."
    parts = [
        f"{part} {at(result.part, k, 2)}"
        for k, part in enumerate(result.parts[:-1])
        if np.isfinite(result.part.value[k])
    ]
    count = int(not_zero(result.contribution).sum())
    return (
        f"{name}: the logit of the {of} minus the mean logit, {at(result.part, -1, 2)}, is the sum "
        f"of {join(parts)}; {count} of {int(result.present.sum())} branches contribute "
        f"significantly (Bonferroni; n = {result.n} images)."
    )
