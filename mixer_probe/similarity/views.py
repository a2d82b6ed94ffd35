"""Sections of a report on similarity: layers of two networks, many networks, best matches, and
layers found in another seed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import (
    images_text,
    join,
    name_of,
    percent,
    short_name,
    untrained_warning,
)
from mixer_probe.similarity.figures import (
    layer_identification_bars,
    match_figure,
    model_summary,
    similarity_heatmaps,
    similarity_map,
    similarity_measures,
)
from mixer_probe.similarity.findings import grounded_sentences
from mixer_probe.similarity.grounding import GroundedTests
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.matches import LayerMatches, best_matches
from mixer_probe.similarity.matrix import SimilarityMatrix, rank_correlations
from mixer_probe.similarity.summary import ModelSimilarity, model_similarity
from mixer_probe.stats.claims import DRAWS

# More pairs than this make a figure of lines that nobody can follow; the table has them all.
_MOST_LINES = 10
# A figure each; the table has the others.
_MOST_PAIRS = 6
# The map of all layers shows fewer networks well enough.
_FEWEST_FOR_SUMMARY = 5
_NULL = "null of best"
_METHODS = {
    "gram": "from Gram matrices",
    "moments": "from moments",
    "minibatch": "summed over minibatches",
}
_CKA_CAUTION = (
    " CKA follows the directions of largest variance, so a few outlying images or one dominant "
    "component can raise or lower it."
)


def similarity_section(matrices: Sequence[SimilarityMatrix]) -> list[Section]:
    """Where representations agree: by CKA, and then whether other measures say the same."""
    labels = [m.label for m in matrices]
    main = next((m.label for m in matrices if m.measure == "cka"), labels[0])
    shown = [m for m in matrices if m.label == main]
    across = [m for m in shown if not _same(m)]
    first, alone = shown[0], len(shown) == 1
    where = images_text(first.images) if first.images else f"{first.n} images"
    grid = (
        f" (averaged over the cells of a {first.grid[0]}×{first.grid[1]} grid)"
        if first.grid
        else ""
    )
    picture = Picture(
        partial(similarity_heatmaps, shown, paths=bool(across))
        if alone
        else partial(similarity_map, shown),
        f"{first.label}, {first.reduce} over positions{grid}, between all pairs of layers, on "
        f"{where}; {_counted([first])}, {_METHODS.get(first.method, f'method {first.method}')}.",
        (
            "Bright cells are pairs of layers that represent the same images similarly, regardless "
            f"of axes and scale. {_null_text(shown)}Crossed cells are undefined. Values are raw; "
            "colours are clipped."
        )
        + (_CKA_CAUTION if first.measure == "cka" else "")
        + (
            " The line joins the best match of each row: white markers are above the 95 % null of "
            "the best match, hollow ones not."
            if alone and across
            else ""
        ),
        f"Heatmaps of {first.definition.label} between layers of the networks",
        name="similarity",
    )
    content: list[Picture | Table] = [picture]
    if across:
        content += _match_pictures([best_matches(m) for m in across])
        table = Table(
            "Best pair of layers for each pair of networks. The interval is that of a single cell "
            "and ignores the selection of the best pair. null of best accounts for it: in 95 % of "
            "the random pairings no cell of the matrix is closer.",
            _best_pairs(across).drop(columns="measure").rename(columns={"value": main}),
            {main: "{:.3f}", _NULL: "{:.3f}", "last layers": "{:.3f}"},
        )
        content.append(table)
    if len({model.name for model in _models_of(across)}) >= _FEWEST_FOR_SUMMARY:
        # Pairs given twice, or on different images, have no one number; the table above has them
        # all.
        with suppress(MeasureError):
            content += _summary_items(model_similarity(across))
    title, sentences = (
        "Representational similarity between layers",
        tuple(agreement(m) for m in across),
    )
    sections = [
        Section(
            "similarity", title, sentences, tuple(content), untrained_warning(_models_of(shown))
        )
    ]
    if len(set(labels)) > 1:
        sections.append(_measures_section([m for m in matrices if not _same(m)]))
    return sections


def _counted(matrices: Sequence[SimilarityMatrix]) -> str:
    """On how many images the values are, and which are on a sample of them."""
    whole = max(m.images.n if m.images else m.n for m in matrices)
    sampled = [m for m in matrices if m.n < whole]
    if not sampled:
        return f"n = {whole}"
    of = "" if len(sampled) == len(matrices) else f" for {join([m.label for m in sampled])}"
    text = f"n = {sampled[0].n}{of}, a random sample of the {whole} images"
    return f"n = {whole}; {text}" if of else text


def _null_text(matrices: Sequence[SimilarityMatrix]) -> str:
    """What grey means, and nothing where nothing is grey."""
    draws = sorted({m.null.permutations for m in matrices if m.null})
    if not draws:
        return ""
    return (
        f"Grey cells are not closer than 95 % of their own null ({' or '.join(map(str, draws))} "
        "random pairings of the images: shifts of a shuffled order); 5 % of the cells are closer "
        "by chance. "
    )


def _match_pictures(matches: Sequence[LayerMatches]) -> list[Picture]:
    if len(matches) > _MOST_LINES:
        return []
    return [
        Picture(
            partial(match_figure, matches),
            "Depth of the best-matching layer of the second network for each layer of the first.",
            "A line along the diagonal means that the networks go through the same stages in the "
            "same order; τ is Kendall's rank correlation between the two orders. Open markers are "
            "matches that are not above chance (in more than 5 % of random pairings of the images "
            "the best match over all layers is as close), or that have no null.",
            "Depth of the best-matching layer against depth of the layer",
        )
    ]


def _best_pairs(matrices: Sequence[SimilarityMatrix]) -> pd.DataFrame:
    """The closest pair of layers of each matrix, one per row."""
    rows = []
    for m in matrices:
        row, column = m.best_pair or (0, 0)
        rows.append(
            {
                "networks": _names(m),
                "measure": m.label,
                "best layers": _best_layers(m),
                "value": float(m.values[row, column]),
                "95 % interval": _interval_text(m, row, column) or "–",
                _NULL: m.null.maximum95 if m.null else float("nan"),
                "above null": _above_text(m),
                "best match": order_of(best_matches(m)),
                "last layers": float(m.values[-1, -1]),
                "n": m.n,
                "p": f"{m.p_a[row]} × {m.p_b[column]}",
            }
        )
    return pd.DataFrame(rows)


def _names(matrix: SimilarityMatrix) -> str:
    return f"{name_of(matrix.model_a)} × {name_of(matrix.model_b)}"


def _models_of(matrices: Sequence[SimilarityMatrix]) -> list[ModelRecord]:
    return [m for matrix in matrices for m in (matrix.model_a, matrix.model_b) if m]


def _same(matrix: SimilarityMatrix) -> bool:
    return bool(matrix.model_a and matrix.model_b and matrix.model_a.name == matrix.model_b.name)


def _best_layers(matrix: SimilarityMatrix) -> str:
    best = matrix.best_pair
    return (
        f"{matrix.layers_a[best[0]].name} × {matrix.layers_b[best[1]].name}"
        if best
        else "not defined"
    )


def _interval_text(matrix: SimilarityMatrix, row: int, column: int) -> str:
    if matrix.interval is None or np.isnan(matrix.interval.low[row, column]):
        return ""
    return f"[{matrix.interval.low[row, column]:.2f}, {matrix.interval.high[row, column]:.2f}]"


def _above_text(matrix: SimilarityMatrix) -> str:
    if matrix.above_null is None:
        return "–"
    return f"{int(matrix.above_null.sum())} of {int((~np.isnan(matrix.values)).sum())}"


def order_of(matches: LayerMatches) -> str:
    """Whether the best match increases with depth, in words."""
    found = matches.best_match[matches.best_match >= 0]
    if len(found) < 2:
        return "too few layers to tell"
    if np.isnan(matches.tau):
        return f"is {matches.layers_b[found[0]].name} for all layers"
    if matches.climbs:
        steadily = "increases" if matches.monotone else "tends to increase"
        return f"{steadily} with depth (Kendall's tau {matches.tau:.2f}, p = {matches.tau_p:.2g})"
    return (
        f"has no significant order by depth (Kendall's tau {matches.tau:.2f}, p = "
        f"{matches.tau_p:.2g})"
    )


def agreement(matrix: SimilarityMatrix) -> str:
    """Where two networks agree: the best pair of layers, its interval and null, and how many pairs
    are above their null."""
    names, null, best = (
        f"{name_of(matrix.model_a)} and {name_of(matrix.model_b)}",
        matrix.null,
        matrix.best_pair,
    )
    if best is None:
        return f"{names}: {matrix.label} is not defined for any pair of layers."
    low, high = (_short(float(end(matrix.values))) for end in (np.nanmin, np.nanmax))
    span = f"{matrix.label} between pairs of layers is {low} to {high}"
    order = f"The best match {order_of(best_matches(matrix))}."
    if null is None:
        return f"{names}: {span} (n = {matrix.n}, no null). {order}"
    above, own_null = _above_text(matrix), "pairs are above their own null, 5 % expected by chance"
    chance = (
        f", {'95th' if matrix.definition.larger_is_closer else '5th'} percentile of the "
        f"permutation null of the best pair: {_short(null.maximum95)} (n = {matrix.n}, "
        f"{null.permutations} permutations)"
    )
    if not matrix.best_above_null:
        return (
            f"{names}: no pair of layers is above chance; {span}{chance} (the best pair is "
            f"compared with the best pair under each permutation; {above} {own_null})."
        )
    if null.permutations < DRAWS:
        few = f"{null.permutations} permutations; naming the closest pair requires {DRAWS}"
        return f"{names}: {span} (n = {matrix.n}, {few}); {above} {own_null}. {order}"
    value = " ".join(
        [f"{matrix.label} {matrix.values[best]:.2f}", _interval_text(matrix, *best)]
    ).strip()
    text = f"{names} agree most at {_best_layers(matrix)}: {value}{chance}"
    return f"{text}. {above} pairs of layers are above chance. {order}"


def _short(value: float) -> str:
    """Two digits, or three where two would say nothing."""
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.3f}"


def _summary_items(summary: ModelSimilarity) -> list[Picture | Table]:
    scale = (
        "0 is the mean over shuffled images and 1 is equality"
        if summary.calibrated
        else "values are raw"
    )
    picture = Picture(
        partial(model_summary, summary),
        f"Similarity between networks: {summary.label} of each layer with its best match in the "
        f"other network, averaged over the layers of both; n = {summary.n}.",
        f"{scale[0].upper()}{scale[1:]}. A best match is the largest of many values, so unrelated "
        "networks score slightly above 0. The dendrogram uses average linkage on 1 - value; "
        "clustering returns a tree for any data, so judge it by the merge heights.",
        "Heatmap and tree of the similarity of networks",
    )
    return [
        picture,
        Table("Similarity between networks.", summary.to_frame(), {"value": "{:.3f}"}, folded=True),
    ]


def model_similarity_section(results: Sequence[ModelSimilarity]) -> list[Section]:
    """The similarity of every pair of networks."""
    sentences = []
    for result in results:
        frame, end = result.to_frame().dropna().sort_values("value"), f"; n = {result.n}."
        rows = zip(frame["value"], frame["model_a"], frame["model_b"])
        ends = [f"{value:.2f} ({short_name(a)} and {short_name(b)})" for value, a, b in rows]
        if not ends:
            sentences.append(f"{result.label} is not defined for any two of the networks.")
        elif len(ends) == 1:
            sentences.append(f"The mean {result.label} of the best matches is {ends[0]}{end}")
        else:
            sentences.append(
                f"The mean {result.label} of the best matches ranges from {ends[0]} to "
                f"{ends[-1]}{end}"
            )
    content = tuple(item for result in results for item in _summary_items(result))
    warning = untrained_warning(model for r in results for model in r.models)
    return [Section("networks", "Similarity between networks", tuple(sentences), content, warning)]


def _measures_section(matrices: Sequence[SimilarityMatrix]) -> Section:
    pairs: dict[str, list[SimilarityMatrix]] = {}
    for matrix in matrices:
        pairs.setdefault(_names(matrix), []).append(matrix)
    several = {names: found for names, found in pairs.items() if len(found) > 1}
    pictures = [
        Picture(
            partial(similarity_measures, found),
            f"{names} under {len(found)} measures; {_counted(found)}.",
            "Each panel has its own scale, the range that the measure declares (from 0 where it "
            "has no lower bound). Bright means similar in all of them; patterns can be compared "
            f"across measures, levels cannot. {_null_text(found)}Crossed cells are undefined.",
            f"Heatmaps of {names} under several measures",
        )
        for names, found in list(several.items())[:_MOST_PAIRS]
    ]
    drawn = (
        ""
        if len(pictures) == len(pairs)
        else f" {len(pictures)} of the {len(pairs)} pairs of networks are drawn above."
    )
    best = Table(
        f"Best pair of layers by each measure. For distances, smaller is closer.{drawn}",
        _best_pairs([m for found in pairs.values() for m in found]).drop(
            columns=["last layers", "p"]
        ),
        {"value": "{:.3f}", _NULL: "{:.3f}"},
    )
    measures = {m.definition.name: m.definition for m in matrices}.values()
    definitions = pd.DataFrame(
        {
            "measure": [m.label for m in measures],
            "what it is": [m.about for m in measures],
            "unchanged under": [", ".join(m.invariances) for m in measures],
            "range": [f"{m.lowest:.3g} to {m.highest:.3g}" for m in measures],
            "equal": [f"{m.best:.3g}" for m in measures],
            "source": [m.source for m in measures],
        }
    )
    sentences = tuple(disagreement(found) for found in several.values())
    last = Table("Definition, invariances and source of each measure.", definitions, folded=True)
    warning = untrained_warning(_models_of(matrices))
    return Section(
        "measures", "Similarity under other measures", sentences, (*pictures, best, last), warning
    )


def disagreement(matrices: Sequence[SimilarityMatrix]) -> str:
    """Where measures of the same two networks differ: how many have a closest pair of layers, the
    best match of each layer, and the rank correlations over the pairs. Which pair is closest stands
    in the table, beside the null of the best of each measure."""
    tested = [m for m in matrices if m.null and m.null.permutations >= DRAWS and m.best_pair]
    best = np.array([best_matches(m).best_match for m in matrices])
    shared, layers = int((best == best[0]).all(axis=0).sum()), best.shape[1]
    above = sum(bool(m.best_above_null) for m in tested)
    if len(tested) == 1:
        closest = f"{tested[0].label} has {'a' if above else 'no'}"
    else:
        closest = f"{above} of {len(tested)} measures have a"
    closest += " pair of layers beyond the null of the best pair (5 % expected by chance). "
    same = f"All {len(matrices)} measures agree on the best match of {shared} of {layers} layers"
    correlations = ""
    if rhos := rank_correlations(matrices):
        low, high = f"{min(rhos):.2f}", f"{max(rhos):.2f}"
        ends = low if low == high else f"{low} to {high}"
        correlations = f"; their rank correlations over the pairs of layers (Spearman) are {ends}"
    return f"{_names(matrices[0])}: {closest if tested else ''}{same}{correlations}."


def matches_section(results: Sequence[LayerMatches]) -> list[Section]:
    """Which layer of another network is closest to each layer."""
    sentences, tables = [], []
    for r in results:
        names = f"{name_of(r.model_a)} in {name_of(r.model_b)}"
        known = (
            ""
            if np.isnan(r.null95).all()
            else f"; {int(r.above.sum())} of {len(r.above)} are above chance"
        )
        sentences.append(
            f"{names}: by {r.matrix_label} the best match {order_of(r)}{known}; n = {r.n}."
        )
        table = Table(
            f"Best matches of {names} by {r.matrix_label}. null95 is the 95 % null of the best "
            "match over all layers.",
            r.to_frame(),
            {
                "depth_a": "{:.2f}",
                "depth_b": "{:.2f}",
                **dict.fromkeys(("value", "null95"), "{:.3f}"),
            },
            folded=True,
        )
        tables.append(table)
    warning = untrained_warning(m for r in results for m in (r.model_a, r.model_b) if m)
    content: tuple[Picture | Table, ...] = (*_match_pictures(results), *tables)
    return [
        Section(
            "matches", "Best-matching layers between networks", tuple(sentences), content, warning
        )
    ]


def identification_section(results: Sequence[LayerIdentification]) -> list[Section]:
    """Which measures find a layer again in another seed."""
    picture = Picture(
        partial(layer_identification_bars, results),
        "Fraction of layers of two networks with different seeds whose closest layer is the "
        "corresponding one, after Kornblith et al. 2019; n = "
        f"{join(dict.fromkeys(str(r.n) for r in results))} images.",
        "A measure that fails to identify corresponding layers of two seeds of one architecture "
        "captures something other than what both have learned. The dotted line is chance (a random "
        "layer). There is no interval: neighbouring layers are not independent, and two networks "
        "are one draw of a pair of seeds.",
        "Fraction of layers identified by each measure",
    )
    frames = [r.to_frame() for r in results]
    formats = dict.fromkeys(("a_to_b", "b_to_a", "both", "chance"), "{:.3f}")
    table = Table("All measures.", pd.concat(frames, ignore_index=True), formats, folded=True)
    sentences = []
    for result, frame in zip(results, frames):
        names, both = (
            " and ".join(name_of(model) for model in result.models),
            frame["both"].to_numpy(float),
        )
        if np.isnan(both).all():
            sentences.append(f"{names}: all measures are undefined.")
            continue
        ends = dict.fromkeys((int(np.nanargmin(both)), int(np.nanargmax(both))))
        found = " to ".join(f"{percent(both[i])} with {result.labels[i]}" for i in ends)
        chance = f"chance is {percent(result.chance)} ({len(result.layers)} layers, n = {result.n})"
        sentences.append(f"{names}: layer identification accuracy is {found}; {chance}.")
    warning = untrained_warning(model for r in results for model in r.models)
    title = "Layer identification across seeds"
    return [Section("identification", title, tuple(sentences), (picture, table), warning)]


def grounded_section(results: Sequence[GroundedTests]) -> list[Section]:
    """Which measures pass which grounded tests."""
    sentences = tuple(sentence for r in results for sentence in grounded_sentences(r))
    tables = [Table(_grounded_caption(r), grounded_table(r)) for r in results]
    numbers = ("value", "chance", "null", "p", "p_corrected")
    table = Table("All numbers.", table_of(results), dict.fromkeys(numbers, "{:.4f}"), folded=True)
    return [Section("grounded-tests", GroundedTests.title, sentences, (*tables, table))]


def _grounded_caption(r: GroundedTests) -> str:
    return (
        "After ReSi (Klabunde et al. 2024): ● passed, p ≤ 0.05 against the permutation null after "
        "max-T correction over measures; ○ not passed; – undefined. 1 is perfect in every "
        f"test. Representations of {r.images}; no interval: the networks of a test are one set."
    )


def grounded_table(r: GroundedTests) -> pd.DataFrame:
    """Measures by tests: a mark for passed or not, and the value; the last rows are what it is by
    chance and the smallest p-value that the permutations allow."""
    columns = {
        f"{test}, {statistic}": [
            *(_marked(*cell) for cell in zip(r.values[:, t], r.passed[:, t], strict=True)),
            f"{r.chances[t]:.2f}",
            f"{r.smallest_p[t]:.2g}",
        ]
        for t, (test, statistic) in enumerate(zip(r.tests, r.statistics, strict=True))
    }
    return pd.DataFrame({"measure": [*r.labels, "by chance", "smallest p"], **columns})


def _marked(value: float, passed: bool) -> str:
    return "–" if np.isnan(value) else f"{'●' if passed else '○'} {value:.2f}"
