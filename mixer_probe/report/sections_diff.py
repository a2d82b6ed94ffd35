"""The report's section on the differences between two reports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.report.diff import Change, ReportDiff
from mixer_probe.report.differences import differences

RULE = (
    "A number counts as changed if the 95 % interval of its difference, recovered from the two "
    "intervals (Zou and Donner 2008), excludes zero. This holds for 5 % of independent numbers "
    "without a true change, and for fewer if both reports use the same images. p: test of no "
    "difference; q: p adjusted for the false discovery rate. Numbers within a report are "
    "correlated, so counts vary more than under independence."
)
_LISTED = 6
_LEVEL = 0.05
_ROWS = 40
# Columns of a table, and the value and bounds that each shows.
_SIDES = {
    "report A": ("a", "a_low", "a_high"),
    "report B": ("b", "b_low", "b_high"),
    "B - A": ("difference", "low", "high"),
}


def diff_section(results: Sequence[ReportDiff]) -> list[Section]:
    """Changes between every two reports."""
    sections = []
    for i, result in enumerate(results, start=1):
        content: list[Picture | Table] = []
        if len(result.values):
            picture = Picture(
                partial(differences, result.to_frame()),
                "Left: the numbers with the largest changes, with 95 % intervals. Right: Q-Q plot "
                "of all numbers that differ, in standard errors, against the normal distribution.",
                "Left: filled circles changed beyond their intervals, grey squares did not. Right: "
                "points on the line are expected by chance; a bend above it at the right end "
                "indicates true changes; points consistently below it indicate that the reports "
                "share images, so that they vary less. Points above the dotted line count as "
                "changed.",
                "Intervals of the largest differences, and quantiles of all differences against a "
                "normal distribution",
                name="differences",
            )
            frame = result.to_frame()
            texts = {
                title: [_interval(*row) for row in frame[list(names)].itertuples(index=False)]
                for title, names in _SIDES.items()
            }
            shown = pd.concat(
                [
                    frame[["result", "row", "number"]],
                    pd.DataFrame(texts),
                    frame[["moved", "p", "q"]],
                ],
                axis=1,
            )
            table = Table(
                f"All {len(frame)} numbers with an interval that differ, in decreasing order of "
                "change.",
                shown,
                {"p": "{:.2g}", "q": "{:.2g}"},
                folded=len(frame) > _ROWS,
            )
            content += [picture, table]
        if result.changes:
            changes, caption = (
                result.changes_frame(),
                "Differing numbers and text values without an interval, by column.",
            )
            content.append(Table(caption, changes, folded=len(changes) > _ROWS))
        anchor = "differences" if len(results) == 1 else f"differences-{i}"
        sentences = (*findings(result), RULE)
        sections.append(
            Section(
                anchor,
                "Differences between reports",
                sentences,
                tuple(content),
                tuple(result.notes),
            )
        )
    return sections


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def findings(result: ReportDiff) -> tuple[str, ...]:
    """The differences, in sentences."""
    if result.same:
        return (
            f"{result.name_a} and {result.name_b} are identical: {result.matched} results, "
            f"{result.compared} numbers with an interval and {result.plain} numbers and text "
            "values without.",
        )
    sides = ((result.name_a, "A", result.only_a), (result.name_b, "B", result.only_b))
    if result.matched:
        names = [name if name == letter else f"{name} ({letter})" for name, letter, _ in sides]
        missing = "".join(
            f" Only in {letter}: {_listed(only)}." for _, letter, only in sides if only
        )
        sentences = [
            f"{result.matched} {'result is' if result.matched == 1 else 'results are'} in both "
            f"{' and '.join(names)}.{missing}"
        ]
    else:
        sentences = [
            f"{result.name_a} and {result.name_b} have no result in common: only in A: "
            f"{_listed(result.only_a)}; only in B: {_listed(result.only_b)}. Match networks with "
            "different names with --same A=B."
        ]
    sentences += [*(f"{note}." for note in result.notes), *_with_intervals(result)]
    if not result.plain:
        sentences.append("There are no values without an interval to compare.")
    elif not result.changes:
        sentences.append(
            f"All {result.plain} numbers and text values without an interval are identical."
        )
    else:
        kinds = list(dict.fromkeys(c.result for c in result.changes))
        sentences.append(
            f"Of {result.plain} numbers and text values without an interval, "
            f"{sum(c.differing for c in result.changes)} differ, in {len(result.changes)} columns: "
            f"{_listed(kinds)}. Their variation by chance is unknown."
        )
    return tuple(sentences)


def listing(result: ReportDiff, most: int) -> list[str]:
    """Lines of text: the sentences, at most so many numbers of each kind, and the rule by which
    numbers count as changed."""
    frame = result.to_frame()
    lists = {
        "Changed beyond their intervals:": [
            number_text(row) for _, row in frame[frame["moved"]].iterrows()
        ],
        "Differ, without an interval:": [change_text(change) for change in result.changes],
    }
    lines = [*findings(result)]
    for title, texts in lists.items():
        if texts and most:
            left = len(texts) - most
            lines += [title, *(f"  {text}" for text in texts[:most])]
            lines += [f"  and {left} more: see --most, --out"] if left > 0 else []
    return [*lines, *([RULE] if len(frame) else [])]


def _with_intervals(result: ReportDiff) -> list[str]:
    """How many numbers changed, and the largest change where it remains after correction."""
    if not result.compared:
        return ["No number has an interval in both reports."]
    differing, moved = len(result.values), int(result.moved.sum())
    if not differing:
        return [f"All {result.compared} numbers with an interval are identical."]
    surviving = int((result.q_value < _LEVEL).sum())
    counts = (
        f"Of {result.compared} numbers with an interval, {result.compared - differing} are "
        f"identical, {differing - moved} differ within their intervals, and {moved} changed beyond "
        f"them; of {differing} numbers that differ, about {result.expected:.1f} would by chance. "
        f"{surviving} of those that changed {'remains' if surviving == 1 else 'remain'} "
        "significant at a false discovery rate of 5 % (Benjamini and Hochberg)."
    )
    first = result.to_frame().iloc[0]
    largest = (
        [f"Largest change: {number_text(first)}, q = {first['q']:.2g}."]
        if first["moved"] and first["q"] < _LEVEL
        else []
    )
    return [counts, *largest]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return "; ".join(names[:_LISTED]) + more if names else "none"


def number_text(row: pd.Series) -> str:
    """ "accuracy of Linear probes of mixer-s0 (blocks.3): 0.8 [0.7, 0.9] -> 0.5 [0.4, 0.6], p =
    0.01" of a row of the table."""
    where = f" ({row['row']})" if row["row"] else ""
    before, after = (_interval(*row[[side, f"{side}_low", f"{side}_high"]]) for side in ("a", "b"))
    return f"{row['number']} of {row['result']}{where}: {before} -> {after}, p = {row['p']:.2g}"


def change_text(change: Change) -> str:
    """ "norm of Stem filters of mixer-s0: 64 of 64 differ, most (unit 3) 1.2 -> 1.3" of one
    column."""
    before, after = (
        f"{v:.4g}" if isinstance(v, float) else v for v in (change.before, change.after)
    )
    where = f", most ({change.row})" if change.row else ":"
    return (
        f"{change.column} of {change.result}: {change.differing} of {change.rows} differ{where} "
        f"{before} -> {after}"
    )
