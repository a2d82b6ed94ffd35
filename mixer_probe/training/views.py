"""Sections on training runs: one per quantity, of all families."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.text import slug
from mixer_probe.training.figures import (
    run_curves,
    run_depths,
    run_maps,
    similarity_curves,
    unit_history,
)
from mixer_probe.training.findings import over_steps, quantity_sentences, similarity_sentences
from mixer_probe.training.quantities import (
    RunQuantity,
    RunSimilarity,
    StudyAnswer,
    UnitHistory,
)

_LINES = "Thin lines: seeds. Thick lines: their mean."


def answer_sections(results: Sequence[StudyAnswer]) -> list[Section]:
    """The question of a study as title, and its answer."""
    return [Section("answer", r.question, r.sentences) for r in results]


def quantity_sections(results: Sequence[RunQuantity]) -> list[Section]:
    """A section per quantity, in the order in which they come."""
    names = dict.fromkeys(r.quantity for r in results)
    return [_section([r for r in results if r.quantity == name]) for name in names]


def _section(results: Sequence[RunQuantity]) -> Section:
    name = results[0].quantity
    curve, layers = len(results[0].steps) > 1, len(results[0].layers) > 1
    draw = run_maps if curve and layers else run_curves if curve else run_depths
    picture = Picture(
        partial(draw, results),
        f"{name[0].upper()}{name[1:]} of training runs, {results[0].n} each.",
        "Colours are means over seeds." if draw is run_maps else _LINES,
        f"{name} by arm of the study",
        name=f"runs-{slug(name.lower())}",
    )
    return Section(
        f"runs-{slug(name.lower())}",
        f"{name[0].upper()}{name[1:]}",
        tuple(quantity_sentences(results)),
        (picture, summary(results), protocol(results)),
    )


def summary(results: Sequence[RunQuantity]) -> Table:
    """Per family and arm the mean over seeds, with its interval, and the difference from the first
    arm."""
    rows = []
    for r in results:
        for arm in r.arms:
            steps = over_steps(r)
            mean, difference = r.mean(arm, steps), r.difference(arm, steps=steps)
            own = arm == r.arms[0]
            rows.append(
                {
                    "family": r.family,
                    "arm": arm,
                    "seeds": len(r.seeds),
                    "value": mean.value,
                    "low": mean.low,
                    "high": mean.high,
                    "difference": float("nan") if own else difference.value,
                    "difference_low": float("nan") if own else difference.low,
                    "difference_high": float("nan") if own else difference.high,
                }
            )
    columns = ("value", "low", "high", "difference", "difference_low", "difference_high")
    return Table(
        "After the last step, averaged over layers; of training curves over their points. "
        "Student's 95 % intervals over seeds, Welch's for the difference from the first arm of the "
        "family; each is for one comparison.",
        pd.DataFrame(rows),
        dict.fromkeys(columns, "{:.4g}"),
    )


def protocol(results: Sequence[RunQuantity | RunSimilarity]) -> Table:
    """How the runs were trained, and where."""
    rows = {r.family: (r.protocol, r.machine) for r in results}
    frame = pd.DataFrame([{"family": k, "protocol": p, "machine": m} for k, (p, m) in rows.items()])
    return Table("How the networks were trained.", frame, folded=True)


def similarity_sections(results: Sequence[RunSimilarity]) -> list[Section]:
    """A section per measure: similarity within and between arms."""
    names = dict.fromkeys(r.measure for r in results)
    sections = []
    for name in names:
        own = [r for r in results if r.measure == name]
        picture = Picture(
            partial(similarity_curves, own),
            f"{name} of the same layer in pairs of runs, {own[0].n}.",
            "Thick lines: mean over pairs. Thin lines: single pairs.",
            f"{name} within and between arms",
            name=f"runs-{slug(name.lower())}",
        )
        table = Table(f"{name} of every pair of runs.", table_of(own), {"value": "{:.3f}"}, True)
        sentences = tuple(s for r in own for s in similarity_sentences(r))
        sections.append(
            Section(
                f"runs-{slug(name.lower())}",
                f"{name} between training runs",
                sentences,
                (picture, table, protocol(own)),
            )
        )
    return sections


def history_sections(results: Sequence[UnitHistory]) -> list[Section]:
    """The units of one block at every checkpoint."""
    pictures = tuple(
        Picture(
            partial(unit_history, r),
            f"Token-mixing units of {r.block} of {r.network}, by training step: those of the "
            "largest norm at the end.",
            "Every map is divided by its largest absolute weight: red is positive, blue negative.",
            f"Token-mixing units of {r.network} during training",
            name=f"unit-history-{r.network}",
        )
        for r in results
    )
    return [Section("unit-history", UnitHistory.title, content=pictures)]
