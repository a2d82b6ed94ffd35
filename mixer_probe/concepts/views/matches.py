"""The section on matched concepts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.concepts.figures.matches import match_curves, pair_label
from mixer_probe.concepts.matches import ConceptMatches
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.stats.claims import LEVEL


def matches_section(results: Sequence[ConceptMatches]) -> list[Section]:
    """Which concepts are the same in two networks, or by two methods."""
    rows = [
        (pair_label(r), len(r.correlation), r.mean.value, r.mean.null, r.p, r.shared, r.n)
        for r in results
    ]
    columns = ["pair", "concepts", "mean", "shuffled", "p", "above_shuffled", "images"]
    table = pd.DataFrame(rows, columns=columns)
    picture = Picture(
        partial(match_curves, results),
        "Correlation of the activity of matched concepts over positions.",
        "Dotted: the same for images of the second side in a random order, matched anew, averaged "
        "over draws. Positions that are alike in all images correlate there too.",
        "Correlations of matched concepts",
    )
    formats = {"mean": "{:.3f}", "shuffled": "{:.3f}", "p": "{:.3f}"}
    return [
        Section(
            "matched-concepts",
            "Are concepts the same in two networks, and by two methods?",
            tuple(map(matches_sentence, results)),
            (picture, Table("Matched concepts.", table, formats)),
        )
    ]


def matches_sentence(r: ConceptMatches) -> str:
    """The mean correlation against its null, and how many pairs are above it."""
    found = "more than" if r.p <= LEVEL else "not significantly more than"
    return (
        f"{pair_label(r)}: {len(r.correlation)} matched concepts correlate with "
        f"{r.mean.value:.2f} on average, {found} for shuffled images ({r.mean.null:.2f}, p = "
        f"{r.p:.2g}); {r.shared} of the pairs correlate more than any of shuffled images (95 % "
        f"level; {r.n:,} images)."
    )
