"""The findings of a study at the head of its report: one section per question, with links to the
evidence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.plotting.depth import depth_curves
from mixer_probe.report.narrative import QUESTIONS, Narrative


def narrative_sections(results: Sequence[Narrative]) -> list[Section]:
    """One section per question that has a finding, and one with the picture and the numbers."""
    sections = []
    for r in results:
        for i, (key, (title, evidence)) in enumerate(QUESTIONS.items(), 1):
            sentences = tuple(f.sentence for f in r.of(key))
            if sentences:
                sections.append(Section(f"finding-{key}", f"{i}. {title}", sentences, see=evidence))
    for r in results:
        if not r.curves:
            continue
        frame = r.to_frame()
        frame = frame[frame["kind"] != ""].drop(columns=["sentence"])
        formats = dict.fromkeys(("value", "low", "high", "null"), "{:.3g}")
        table = Table("Numbers underlying the findings.", frame, formats, folded=True)
        picture = Picture(
            partial(depth_curves, r.curves),
            "Depth curves by architecture: similarity of the first pair of networks for each pair "
            "of architectures, linear probe accuracy, class selectivity (AUROC) of the median "
            "channel, and mean mixing distance computed from the weights.",
            "Solid lines: trained networks; dotted lines with open markers: untrained baselines; "
            "dashed grey lines: null; bands: 95 % intervals. Networks of one architecture share a "
            "colour and differ in markers.",
            "Line plots of similarity, probe accuracy, channel selectivity and mean mixing "
            "distance against relative depth",
            name="learned-features",
        )
        sections.append(Section("finding-curves", "Depth curves", (), (picture, table)))
    return sections
