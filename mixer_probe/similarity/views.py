"""What similarity says: of layers of two networks, of many networks, of positions and of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, join, name_of, percent, short_name, untrained_warning
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.similarity.figures import (
    layer_identification_bars,
    match_figure,
    model_summary,
    similarity_heatmaps,
    similarity_map,
    similarity_measures,
)
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.matches import LayerMatches, best_matches
from mixer_probe.similarity.summary import ModelSimilarity, model_similarity
from mixer_probe.stats.claims import DRAWS

# More pairs than this make a figure of lines that nobody can follow; the table has them all.
_MOST_LINES = 10
# A figure each; the table has the others.
_MOST_PAIRS = 6
# Fewer networks are seen at a glance in the map of all layers.
_FEWEST_FOR_SUMMARY = 5


def similarity_section(matrices: Sequence[SimilarityMatrix]) -> list[Section]:
    """Where representations agree: by CKA, and then whether other measures say the same."""
    labels = [m.label for m in matrices]
    main = next((m.label for m in matrices if m.measure == "cka"), labels[0])
    shown = [m for m in matrices if m.label == main]
    sections = [_agreement_section(shown)]
    if len(set(labels)) > 1:
        sections.append(_measures_section([m for m in matrices if not _same(m)]))
    return sections


def _agreement_section(matrices: Sequence[SimilarityMatrix]) -> Section:
    across = [m for m in matrices if not _same(m)]
    content: list[Picture | Table] = [_map_picture(matrices)]
    if across:
        content += _match_pictures([best_matches(m) for m in across])
        content += [_best_table(across), *_summary_content(across)]
    warning = untrained_warning(_models_of(matrices))
    sentences = tuple(agreement(m) for m in across)
    return Section("similarity", "Representational similarity between layers", sentences, tuple(content), warning)


def _map_picture(matrices: Sequence[SimilarityMatrix]) -> Picture:
    first = matrices[0]
    where = images_text(first.images) if first.images else f"{first.n} images"
    alone = len(matrices) == 1
    path = " The line joins the best match of each row: white markers are above the 95 % null of the best match, hollow ones not."
    return Picture(
        partial(similarity_heatmaps, matrices, paths=not _same(first)) if alone else partial(similarity_map, matrices),
        f"{first.label}, {first.reduce} over positions{_grid_text(first)}, between all pairs of layers, on {where}; n = "
        f"{first.n}, {_method_text(first)}.",
        "Bright cells are pairs of layers that represent the same images similarly, regardless of axes and scale. "
        f"{_null_text(matrices)}Crossed cells are undefined. Values are raw; colours are clipped."
        + (_CKA_CAUTION if first.measure == "cka" else "")
        + (path if alone and not _same(first) else ""),
        f"Heatmaps of {first.definition.label} between layers of the networks",
    )


def _null_text(matrices: Sequence[SimilarityMatrix]) -> str:
    """What grey means, and nothing where nothing is grey."""
    draws = sorted({m.null.permutations for m in matrices if m.null})
    if not draws:
        return ""
    return (
        f"Grey cells are not closer than 95 % of their own null ({' or '.join(map(str, draws))} random pairings of the images: "
        "shifts of a shuffled order); 5 % of the cells are closer by chance. "
    )


_CKA_CAUTION = (
    " CKA follows the directions of largest variance, so a few outlying images or one dominant component can raise or lower it."
)


def _grid_text(matrix: SimilarityMatrix) -> str:
    return f" (averaged over the cells of a {matrix.grid[0]}×{matrix.grid[1]} grid)" if matrix.grid else ""


def _method_text(matrix: SimilarityMatrix) -> str:
    ways = {"gram": "from Gram matrices", "moments": "from moments", "minibatch": "summed over minibatches"}
    return ways.get(matrix.method, f"method {matrix.method}")


def _match_pictures(matches: Sequence[LayerMatches]) -> list[Picture]:
    if len(matches) > _MOST_LINES:
        return []
    return [
        Picture(
            partial(match_figure, matches),
            "Depth of the best-matching layer of the second network for each layer of the first.",
            "A line along the diagonal means that the networks go through the same stages in the same order; τ is Kendall's "
            "rank correlation between the two orders. Open markers are matches that are not above chance (in more than 5 % of "
            "random pairings of the images the best match over all layers is as close), or that have no null.",
            "Depth of the best-matching layer against depth of the layer",
        )
    ]


def _best_table(matrices: Sequence[SimilarityMatrix]) -> Table:
    label = matrices[0].label
    return Table(
        "Best pair of layers for each pair of networks. The interval is that of a single cell and ignores the selection of the "
        "best pair. null of best accounts for it: in 95 % of the random pairings no cell of the matrix is closer.",
        pd.DataFrame([_best_row(m, label) for m in matrices]),
        {label: "{:.3f}", _NULL: "{:.3f}", "last layers": "{:.3f}"},
    )


_NULL = "null of best"


def _best_row(matrix: SimilarityMatrix, label: str) -> dict[str, Any]:
    row, column = best_pair(matrix) or (0, 0)
    return {
        "networks": _names(matrix),
        "best layers": _best_layers(matrix),
        label: float(matrix.values[row, column]),
        "95 % interval": _interval_text(matrix, row, column) or "–",
        _NULL: matrix.null.maximum95 if matrix.null else float("nan"),
        "above null": _above_text(matrix),
        "best match": order_of(best_matches(matrix)),
        "last layers": float(matrix.values[-1, -1]),
        "n": matrix.n,
        "p": f"{matrix.p_a[row]} × {matrix.p_b[column]}",
    }


def _names(matrix: SimilarityMatrix) -> str:
    return f"{name_of(matrix.model_a)} × {name_of(matrix.model_b)}"


def _models_of(matrices: Sequence[SimilarityMatrix]) -> list[ModelRecord]:
    return [m for matrix in matrices for m in (matrix.model_a, matrix.model_b) if m]


def _same(matrix: SimilarityMatrix) -> bool:
    return bool(matrix.model_a and matrix.model_b and matrix.model_a.name == matrix.model_b.name)


def best_pair(matrix: SimilarityMatrix) -> tuple[int, int] | None:
    """Indices of the closest two layers, None where the measure is not defined for any."""
    if np.isnan(matrix.values).all():
        return None
    row, column = np.unravel_index(np.nanargmax(matrix.closeness), matrix.values.shape)
    return int(row), int(column)


def _best_layers(matrix: SimilarityMatrix) -> str:
    best = best_pair(matrix)
    return f"{matrix.layers_a[best[0]].name} × {matrix.layers_b[best[1]].name}" if best else "not defined"


def _interval_text(matrix: SimilarityMatrix, row: int, column: int) -> str:
    if matrix.interval is None or np.isnan(matrix.interval.low[row, column]):
        return ""
    return f"[{matrix.interval.low[row, column]:.2f}, {matrix.interval.high[row, column]:.2f}]"


def _above_text(matrix: SimilarityMatrix) -> str:
    if matrix.above_null is None:
        return "–"
    return f"{int(matrix.above_null.sum())} of {int((~np.isnan(matrix.values)).sum())}"


def order_of(matches: LayerMatches) -> str:
    """Whether the best match climbs with depth, in words."""
    found = matches.partner[matches.partner >= 0]
    if len(found) < 2:
        return "too few layers to tell"
    if np.isnan(matches.tau):
        return f"is {matches.layers_b[found[0]].name} for all layers"
    if matches.climbs:
        steadily = "increases" if matches.monotone else "tends to increase"
        return f"{steadily} with depth (Kendall's tau {matches.tau:.2f}, p = {matches.tau_p:.2g})"
    return f"has no significant order by depth (Kendall's tau {matches.tau:.2f}, p = {matches.tau_p:.2g})"


def agreement(matrix: SimilarityMatrix) -> str:
    """Where two networks agree, in sentences: the best pair, its interval, what chance gives, and how many pairs clear it."""
    names = f"{name_of(matrix.model_a)} and {name_of(matrix.model_b)}"
    best = best_pair(matrix)
    if best is None:
        return f"{names}: {matrix.label} is not defined for any pair of layers."
    value, null = float(matrix.values[best]), matrix.null
    order = f"The best match {order_of(best_matches(matrix))}."
    if null is not None and matrix.definition.direction * value <= matrix.definition.direction * null.maximum95:
        return (
            f"{names}: no pair of layers is above chance; {_range_text(matrix)}{_chance_text(matrix)} (the best pair is "
            f"compared with the best pair under each permutation; {_above_text(matrix)} pairs are above their own null, 5 % "
            "expected by chance)."
        )
    if null is None or null.permutations < DRAWS:
        return f"{names}: {_untested_text(matrix)}. {order}"
    interval = _interval_text(matrix, *best)
    text = f"{names} agree most at {_best_layers(matrix)}: {matrix.label} {value:.2f}{interval and ' ' + interval}"
    return f"{text}{_chance_text(matrix)}. {_above_text(matrix)} pairs of layers are above chance. {order}"


def _range_text(matrix: SimilarityMatrix) -> str:
    low, high = _short(float(np.nanmin(matrix.values))), _short(float(np.nanmax(matrix.values)))
    return f"{matrix.label} between pairs of layers is {low} to {high}"


def _untested_text(matrix: SimilarityMatrix) -> str:
    """The range of values where no null says which pair of layers agrees most."""
    text = f"{_range_text(matrix)} (n = {matrix.n}, "
    if matrix.null is None:
        return f"{text}no null)"
    few = f"{matrix.null.permutations} permutations; naming the closest pair requires {DRAWS}"
    return f"{text}{few}); {_above_text(matrix)} pairs are above their own null, 5 % expected by chance"


def _chance_text(matrix: SimilarityMatrix) -> str:
    assert matrix.null is not None
    side = "95th" if matrix.definition.larger_is_closer else "5th"
    return (
        f", {side} percentile of the permutation null of the best pair: {_short(matrix.null.maximum95)} (n = {matrix.n}, "
        f"{matrix.null.permutations} permutations)"
    )


def _short(value: float) -> str:
    """Two digits, or three where two would say nothing."""
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.3f}"


def _summary_content(matrices: Sequence[SimilarityMatrix]) -> list[Picture | Table]:
    """One number a pair of networks, where there are many."""
    if len({model.name for model in _models_of(matrices)}) < _FEWEST_FOR_SUMMARY:
        return []
    try:
        summary = model_similarity(matrices)
    except MeasureError:
        # Pairs given twice, or on different images: there is no one number, and the table above has them all.
        return []
    return _summary_items(summary)


def _summary_items(summary: ModelSimilarity) -> list[Picture | Table]:
    scale = "0 is the mean over shuffled images and 1 is equality" if summary.calibrated else "values are raw"
    picture = Picture(
        partial(model_summary, summary),
        f"Similarity between networks: {summary.label} of each layer with its best match in the other network, averaged over "
        f"the layers of both; n = {summary.n}.",
        f"{scale[0].upper()}{scale[1:]}. A best match is the largest of many values, so unrelated networks score slightly above "
        "0. The dendrogram uses average linkage on 1 - value; clustering returns a tree for any data, so judge it by the merge "
        "heights.",
        "Heatmap and tree of the similarity of networks",
    )
    return [picture, Table("Similarity between networks.", summary.to_frame(), {"value": "{:.3f}"}, folded=True)]


def model_similarity_section(results: Sequence[ModelSimilarity]) -> list[Section]:
    """One number a pair of networks."""
    content = tuple(item for result in results for item in _summary_items(result))
    sentences = tuple(_summary_sentence(r) for r in results)
    warning = untrained_warning(model for r in results for model in r.models)
    return [Section("networks", "Similarity between networks", sentences, content, warning)]


def _summary_sentence(result: ModelSimilarity) -> str:
    frame = result.to_frame().dropna().sort_values("value")
    if frame.empty:
        return f"{result.label} is not defined for any two of the networks."
    least, most = (
        f"{row.value:.2f} ({short_name(row.model_a)} and {short_name(row.model_b)})" for row in (frame.iloc[0], frame.iloc[-1])
    )
    if len(frame) == 1:
        return f"The mean {result.label} of the best matches is {most}; n = {result.n}."
    return f"The mean {result.label} of the best matches ranges from {least} to {most}; n = {result.n}."


def _measures_section(matrices: Sequence[SimilarityMatrix]) -> Section:
    pairs = _by_pair(matrices)
    drawn = [found for found in pairs.values() if len(found) > 1][:_MOST_PAIRS]
    pictures = [_measures_picture(found) for found in drawn]
    columns = {"value": "{:.3f}", _NULL: "{:.3f}"}
    best = Table(
        "Best pair of layers by each measure. For distances, smaller is closer."
        + ("" if len(drawn) == len(pairs) else f" {len(drawn)} of the {len(pairs)} pairs of networks are drawn above."),
        pd.DataFrame([_measure_row(m) for found in pairs.values() for m in found]),
        columns,
    )
    sentences = tuple(disagreement(found) for found in pairs.values() if len(found) > 1)
    warning = untrained_warning(_models_of(matrices))
    title = "Similarity under other measures"
    return Section("measures", title, sentences, (*pictures, best, _definitions(matrices)), warning)


def _by_pair(matrices: Sequence[SimilarityMatrix]) -> dict[str, list[SimilarityMatrix]]:
    pairs: dict[str, list[SimilarityMatrix]] = {}
    for matrix in matrices:
        pairs.setdefault(_names(matrix), []).append(matrix)
    return pairs


def _measures_picture(matrices: Sequence[SimilarityMatrix]) -> Picture:
    first = matrices[0]
    return Picture(
        partial(similarity_measures, matrices),
        f"{_names(first)} under {len(matrices)} measures; n = {first.n}.",
        "Each panel has its own scale, the range that the measure declares (from 0 where it has no lower bound). Bright means "
        f"similar in all of them; patterns can be compared across measures, levels cannot. {_null_text(matrices)}Crossed cells "
        "are undefined.",
        f"Heatmaps of {_names(first)} under several measures",
    )


def _measure_row(matrix: SimilarityMatrix) -> dict[str, Any]:
    row, column = best_pair(matrix) or (0, 0)
    return {
        "networks": _names(matrix),
        "measure": matrix.label,
        "best layers": _best_layers(matrix),
        "value": float(matrix.values[row, column]),
        "95 % interval": _interval_text(matrix, row, column) or "–",
        _NULL: matrix.null.maximum95 if matrix.null else float("nan"),
        "above null": _above_text(matrix),
        "best match": order_of(best_matches(matrix)),
        "n": matrix.n,
    }


def disagreement(matrices: Sequence[SimilarityMatrix]) -> str:
    """Where measures of the same two networks differ: how many know a closest pair of layers, the best match of each layer, the
    pattern. Which pair that is stands in the table, beside the null of the best of each measure."""
    tested = [m for m in matrices if m.null is not None and m.null.permutations >= DRAWS and not np.isnan(m.values).all()]
    beyond = sum(float(np.nanmax(m.closeness)) > m.definition.direction * m.null.maximum95 for m in tested if m.null)
    partners = np.array([best_matches(m).partner for m in matrices])
    shared, layers = int((partners == partners[0]).all(axis=0).sum()), partners.shape[1]
    closest = (
        f"{beyond} of {len(tested)} measures have a pair of layers beyond the null of the best pair (5 % expected by chance). "
    )
    same = f"All {len(matrices)} agree on the best match of {shared} of {layers} layers"
    return f"{_names(matrices[0])}: {closest if tested else ''}{same}{_least_alike(matrices)}."


def _least_alike(matrices: Sequence[SimilarityMatrix]) -> str:
    """How alike the matrices of two measures rank the pairs of layers."""
    ranks = [pd.Series(m.closeness.ravel()).rank() for m in matrices]
    # Pearson on ranks is Spearman's correlation; constant or undefined matrices give NaN.
    rhos = {(i, j): ranks[i].corr(ranks[j]) for i, j in combinations(range(len(ranks)), 2) if min(r.std() for r in ranks) > 0}
    known = {pair: rho for pair, rho in rhos.items() if not np.isnan(rho)}
    if not known:
        return ""
    low, high = f"{min(known.values()):.2f}", f"{max(known.values()):.2f}"
    return f"; their rank correlations over the pairs of layers (Spearman) are {low}{'' if low == high else f' to {high}'}"


def _definitions(matrices: Sequence[SimilarityMatrix]) -> Table:
    measures = {m.definition.name: m.definition for m in matrices}.values()
    frame = pd.DataFrame(
        {
            "measure": [m.label for m in measures],
            "what it is": [m.about for m in measures],
            "unchanged under": [", ".join(m.invariances) for m in measures],
            "range": [f"{m.lowest:.3g} to {m.highest:.3g}" for m in measures],
            "equal": [f"{m.best:.3g}" for m in measures],
            "source": [m.source for m in measures],
        }
    )
    return Table("Definition, invariances and source of each measure.", frame, folded=True)


def matches_section(results: Sequence[LayerMatches]) -> list[Section]:
    """Which layer of another network is closest."""
    tables = [
        Table(
            f"Best matches of {_match_names(r)} by {r.matrix_label}. null95 is the 95 % null of the best match over all layers.",
            r.to_frame(),
            {"depth_a": "{:.2f}", "depth_b": "{:.2f}", **dict.fromkeys(("value", "low", "high", "null95"), "{:.3f}")},
            folded=True,
        )
        for r in results
    ]
    warning = untrained_warning(m for r in results for m in (r.model_a, r.model_b) if m)
    content: tuple[Picture | Table, ...] = (*_match_pictures(results), *tables)
    return [
        Section("matches", "Best-matching layers between networks", tuple(_match_sentence(r) for r in results), content, warning)
    ]


def _match_names(result: LayerMatches) -> str:
    return f"{name_of(result.model_a)} in {name_of(result.model_b)}"


def _match_sentence(result: LayerMatches) -> str:
    known = "" if np.isnan(result.null95).all() else f"; {int(result.above.sum())} of {len(result.above)} are above chance"
    return f"{_match_names(result)}: by {result.matrix_label} the best match {order_of(result)}{known}; n = {result.n}."


def identification_section(results: Sequence[LayerIdentification]) -> list[Section]:
    """Which measures find a layer again in another seed."""
    picture = Picture(
        partial(layer_identification_bars, results),
        "Fraction of layers of two networks with different seeds whose closest layer is the corresponding one, after Kornblith "
        f"et al. 2019; n = {join(dict.fromkeys(str(r.n) for r in results))} images.",
        "A measure that fails to identify corresponding layers of two seeds of one architecture captures something other than "
        "what both have learned. The dotted line is chance (a random layer). There is no interval: neighbouring layers are not "
        "independent, and two networks are one draw of a pair of seeds.",
        "Fraction of layers identified by each measure",
    )
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("a_to_b", "b_to_a", "both", "chance"), "{:.3f}")
    sentences = tuple(_identification_sentence(r) for r in results)
    warning = untrained_warning(model for r in results for model in r.models)
    title = "Layer identification across seeds"
    return [Section("identification", title, sentences, (picture, Table("All measures.", frame, formats, folded=True)), warning)]


def _identification_sentence(result: LayerIdentification) -> str:
    both = result.to_frame()["both"].to_numpy(float)
    names = " and ".join(name_of(model) for model in result.models)
    if np.isnan(both).all():
        return f"{names}: all measures are undefined."
    best, worst = int(np.nanargmax(both)), int(np.nanargmin(both))
    ends = (worst, best) if best != worst else (best,)
    found = [f"{percent(both[i])} with {result.labels[i]}" for i in ends]
    chance = f"chance is {percent(result.chance)} ({len(result.layers)} layers, n = {result.n})"
    return f"{names}: layer identification accuracy is {' to '.join(found)}; {chance}."
