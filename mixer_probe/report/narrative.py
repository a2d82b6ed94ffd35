"""`narrate`: the findings of a study of several networks, in sentences computed from its
results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from mixer_probe.attribution.findings import attribution_findings
from mixer_probe.channels.findings import channel_findings
from mixer_probe.core.finding import Finding, Number
from mixer_probe.core.result import Result
from mixer_probe.plotting.depth import DepthCurve
from mixer_probe.probing.findings import probe_findings
from mixer_probe.report.findings_control import control_findings
from mixer_probe.similarity.findings import similarity_findings
from mixer_probe.weights.findings import weight_findings

# The questions, in the order of the narrative, and the sections of the report that hold the
# evidence.
QUESTIONS = {
    "similarity": ("Representational similarity by depth", ("similarity",)),
    "probes": ("Linear probe accuracy by layer", ("probes",)),
    "weights": ("Token-mixing units and mixing distances", ("token-mixing", "kernels")),
    "channels": (
        "Class-selective channels and matches between networks",
        ("selectivity", "partners"),
    ),
    "attributions": (
        "Agreement and faithfulness of attributions",
        ("agreement", "attribution-curves"),
    ),
    "control": ("Untrained baselines", ("probes", "similarity", "selectivity", "partners")),
}
_COLUMNS = "group model kind where value low high null n verdict sentence"


@dataclass(frozen=True)
class Narrative(Result):
    """What a study of several networks found: `findings`, of which each has its sentence, its
    verdict and its numbers, and the `curves` of its quantities with depth. Sentences are computed
    from the numbers alone."""

    title: ClassVar[str] = "Findings"

    findings: tuple[Finding, ...]
    curves: tuple[DepthCurve, ...]

    def of(self, question: str) -> tuple[Finding, ...]:
        """The findings on one question, a key of `QUESTIONS`."""
        return tuple(f for f in self.findings if f.question == question)

    def to_frame(self) -> pd.DataFrame:
        """One number per row, with interval, null, n and the sentence that rests on it; findings
        without numbers have one row."""
        rows = [
            {"group": f.question, "model": f.networks, **vars(f), **vars(n)}
            for f in self.findings
            for n in f.numbers or (Number("", float("nan")),)
        ]
        return pd.DataFrame(rows, columns=_COLUMNS.split())


def narrate(results: Sequence[Result]) -> Narrative:
    """The findings of `results`, those of `run_study` or of single analyses, in the order of
    `QUESTIONS`.

    Every finding guards itself: it says that there is no difference beyond the intervals where
    there is none, and that a number is not above its null where it is not; what the results do not
    hold is left out with the reason. CKA of untrained baselines is looked for among the results,
    beside that of the trained networks: run `compare` on both."""
    similarity, probes, weights, channels = (
        find(results)
        for find in (similarity_findings, probe_findings, weight_findings, channel_findings)
    )
    all_findings = [f for findings, _ in (similarity, probes, weights, channels) for f in findings]
    all_findings += [*attribution_findings(results), *control_findings(results)]
    curves = [c for _, found in (similarity, probes, channels, weights) for c in found]
    return Narrative(tuple(all_findings), tuple(curves))
