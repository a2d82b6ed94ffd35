"""Sentences on attributions: maps, faithfulness, the model-randomisation sanity check, agreement
and conductance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from mixer_probe.attribution import (
    Agreement,
    AttributionPanel,
    Conductance,
    Faithfulness,
    PerturbationCurves,
    RandomisationCheck,
)
from mixer_probe.attribution.agreements import excesses
from mixer_probe.attribution.curves import MODES
from mixer_probe.attribution.methods import method_label
from mixer_probe.attribution.randomisation import NEGLIGIBLE
from mixer_probe.core.finding import Finding, Number, filter_type, missing, shown
from mixer_probe.core.result import Result
from mixer_probe.core.words import images_text, join, name_of, percent
from mixer_probe.stats import FEWEST, mean_interval

QUESTION = "attributions"
# With more, the pairs of networks are too many for marks and sentences of their own.
MOST_NETWORKS = 3
# Relative deviation from the logit difference up to which a map counts as complete.
_COMPLETE = 0.01
# Level of every claim, over the family that it is picked from.
_LEVEL = 0.05


def count_of_images(n: int) -> str:
    """ "one image", "12 images"."""
    return "one image" if n == 1 else f"{n} images"


def few_images(n: int) -> str:
    """The reason why so many images bear no claim; empty where they are enough."""
    return (
        ""
        if n >= FEWEST
        else f"; {count_of_images(n)} are too few for a claim, which requires {FEWEST}"
    )


def interval_text(
    mean: float | np.ndarray, low: float | np.ndarray, high: float | np.ndarray
) -> str:
    """ "0.21 [0.15, 0.28]", or the number alone where there is no interval."""
    value = f"{float(mean):.2f}"
    return (
        f"{value} [{float(low):.2f}, {float(high):.2f}]"
        if np.isfinite(low) and np.isfinite(high)
        else value
    )


def mean_text(values: np.ndarray) -> str:
    """The mean over images with its interval."""
    return interval_text(*mean_interval(values))


def nodes_text(result: Conductance) -> str:
    """The number of nodes per image, or its range."""
    fewest, most = int(result.steps.min()), int(result.steps.max())
    return f"{fewest} nodes" if fewest == most else f"{fewest} to {most} nodes"


# -- sentences of sections -------------------------------------------------------------------------


def panel_sentences(panel: AttributionPanel) -> Iterator[str]:
    """Images, target classes and baselines of a panel, and how far its maps are complete, converged
    and not empty."""
    record, n = panel.images, panel.n_images
    how = "balanced over classes" if record.classes else "evenly spaced"
    drawn = f", sampled with seed {record.seed}, {how}" if record.limit is not None else ""
    subset = f"; {len(panel.ids)} of them are shown" if len(panel.ids) < n else ""
    names = {name for names in panel.target_names for name in names}
    if (panel.labels >= 0).all() and np.array_equal(panel.targets, panel.labels):
        target = "the true class"
    elif np.array_equal(panel.targets, panel.predicted):
        target = "the class that each network predicts"
    else:
        target = f"{names.pop()} for all images" if len(names) == 1 else "a class given per image"
    yield f"Images: {images_text(record)}{drawn}{subset}. Target: {target}."
    used = list(dict.fromkeys(text for text in panel.baselines if text != "none"))
    if used:
        yield (
            "Baseline input: "
            f"{join(used)}{', the same for all networks' if len(used) == 1 else ''}."
        )
    columns = list(zip(panel.models, panel.methods, strict=True))
    gaps, changes = (
        ", ".join(
            f"{percent(value)} ({name_of(model)}, {method_label(method)})"
            for (model, method), value in zip(columns, values, strict=True)
            if np.isfinite(value)
        )
        for values in (panel.largest_gap, panel.largest_change)
    )
    if gaps:
        verdict = (
            "all maps are" if np.nanmax(panel.largest_gap) <= _COMPLETE else "not all maps are"
        )
        yield (
            "Completeness: attributions should sum to the logit difference between image and "
            f"baseline. Over {count_of_images(n)} the relative deviations are at most {gaps}; "
            f"{verdict} within {percent(_COMPLETE)}."
        )
    if changes:
        yield (
            "A small convergence delta does not guarantee an exact map, least of all for ReLU "
            f"networks: more steps may change the maps by at most {changes}."
        )
    for (model, method), empty in zip(columns, panel.empty, strict=True):
        if empty:
            yield (
                f"{name_of(model)}: {empty} of {n} {method_label(method)} maps are zero everywhere "
                "and therefore rank no patch above another."
            )


def curves_sentence(result: PerturbationCurves, mode: str) -> str:
    """The method with the largest gain over random orders in "deletion" or "insertion", and whether
    the gain is significant."""
    gain, n = result.gain(mode), len(result.ids)
    order = np.argsort(-gain.mean(1), kind="stable")
    best, labels = order[0], [method_label(method) for method in result.methods]
    area = (
        f"area {mean_text(result.area(mode)[best])}, random orders "
        f"{mean_text(result.random_area(mode))}; n = {n}"
    )
    head, amount = f"{name_of(result.model)}, {mode}: {labels[best]}", mean_text(gain[best])
    # The best was picked among all: its interval against random orders is that of a family.
    if few_images(n) or not mean_interval(gain[best], level=1 - _LEVEL / len(gain))[1] > 0:
        reason = (
            few_images(n)
            or "; no method is significantly better than random orders (corrected for all methods)"
        )
        return f"{head} has the largest gain, {amount} ({area}){reason}."
    close = [labels[i] for i in order[1:] if not mean_interval(gain[best] - gain[i])[1] > 0]
    verb, lead = (
        "outperforms random orders",
        f"; not distinguishable from it: {join(close)}" if close else "",
    )
    if len(order) > 1 and not close:
        verb = "performs best"
        lead = f"; lead over the next, {labels[order[1]]}: {mean_text(gain[best] - gain[order[1]])}"
    return f"{head} {verb} ({area}), gain over random orders {amount}{lead}."


def faithfulness_sentences(result: Faithfulness) -> Iterator[str]:
    """The method with the lowest infidelity beside the uniform map, and the range of
    sensitivities."""
    n, name, labels = (
        len(result.ids),
        name_of(result.model),
        [method_label(method) for method in result.methods],
    )
    means = {i: np.nanmean(v) for i, v in enumerate(result.infidelity) if np.isfinite(v).any()}
    if means:
        order = sorted(means, key=means.__getitem__)
        best = result.infidelity[order[0]]
        difference = mean_interval(result.uniform_infidelity - best, level=1 - _LEVEL / len(order))
        verdict = (
            "better than"
            if difference[1] > 0
            else "worse than"
            if difference[2] < 0
            else "not distinguishable from"
        )
        ahead = len(order) > 1 and all(
            mean_interval(result.infidelity[i] - best)[1] > 0 for i in order[1:]
        )
        claim = (
            "predicts the effect of random removals best, infidelity"
            if ahead and not few_images(n)
            else "has the lowest infidelity,"
        )
        uniform = f"a uniform map ({mean_text(result.uniform_infidelity)}; n = {n})"
        ending = (
            f"compared with {uniform}{few_images(n)}" if few_images(n) else f"{verdict} {uniform}"
        )
        yield f"{name}: {labels[order[0]]} {claim} {mean_text(best)}, {ending}."
    means = {i: np.nanmean(v) for i, v in enumerate(result.sensitivity) if np.isfinite(v).any()}
    if len(means) > 1:
        ends = (pick(means, key=means.__getitem__) for pick in (min, max))
        one, other = (f"{labels[i]} ({mean_text(result.sensitivity[i])})" for i in ends)
        if few_images(n) or not result.sensitivity_p() <= _LEVEL:
            yield (
                f"{name}: sensitivities are not distinguishable between methods, from {one} to "
                f"{other}{few_images(n)}."
            )
        else:
            yield f"{name}: the sensitivity of {one} is lower than that of {other}."


def randomisation_sentence(result: RandomisationCheck) -> str:
    """Similarity to the trained network's maps once all weights are re-initialised, and the verdict
    of the sanity check."""
    last, n = result.spearman[:, -1], len(result.ids)
    name = f"{name_of(result.model)}, {method_label(result.method)}"
    if not np.isfinite(result.mean_similarity(last)[0]):
        which = (
            "some re-initialisations make the map of every image constant"
            if np.isfinite(last).any()
            else "every map is constant"
        )
        return f"{name}: {which}, so rank correlations are undefined."
    head = (
        f"{name}: with all weights re-initialised ({result.draws} draws), the rank correlation "
        f"with the maps of the trained network is {interval_text(*result.mean_similarity(last))}"
    )
    if not np.isfinite(result.null_spearman).any():
        return f"{head} (n = {n}; no other images for comparison)."
    excess = interval_text(*result.excess())
    ending = {
        "few images": few_images(n),
        "one draw": "; one re-initialisation is too few for a claim",
        "similar images": "; no verdict, because maps of different images are similar",
        "sensitive": (
            f": the excess, {excess}, is below {NEGLIGIBLE:.2f} (equivalence test at 5 %), so the "
            "method passes the sanity check"
        ),
        "insensitive": (
            f": the excess is {excess}, so the maps do not depend only on what the network learned"
        ),
        "inconclusive": (
            f"; inconclusive: the excess, {excess}, is shown neither to be below {NEGLIGIBLE:.2f} "
            "nor above 0"
        ),
    }[result.verdict]
    return (
        f"{head}; between maps of different images it is {interval_text(*result.between_images())} "
        f"(n = {n}){ending}."
    )


def methods_sentence(result: Agreement) -> str:
    """The range of agreement between methods, and how many pairs exceed that of other images'
    maps."""
    pairs, n = result.pairs, len(result.ids)
    if not pairs:
        return f"{name_of(result.models[0])}: no two methods can be compared."
    text = {p: " and ".join(method_label(result.methods[i]) for i in p) for p in pairs}
    best, worst = (pick(pairs, key=lambda p: result.mean[p]) for pick in (max, min))
    highest, lowest = (mean_text(result.values[p]) for p in (best, worst))
    said = (
        f"rank correlations between methods range from {lowest} ({text[worst]}) to {highest} "
        f"({text[best]})"
    )
    if len(pairs) == 1:
        said = f"{text[best]} have a rank correlation of {highest}"
    elif not few_images(n) and all(
        mean_interval(result.values[best] - result.values[p])[1] > 0 for p in pairs if p != best
    ):
        said = f"{text[best]} agree most, {highest}; the lowest is {lowest} ({text[worst]})"
    return (
        f"{name_of(result.models[0])}: {said} (n = {n}). {_count_significant(result, 'methods')}."
    )


def networks_sentence(result: Agreement) -> str:
    """Agreement of every two networks by one method; of many networks the extremes and the number
    of significant pairs."""
    pairs, name = result.pairs, method_label(result.methods[0])
    if len(result.models) <= MOST_NETWORKS:
        said = "; ".join(_pair_text(result, p) for p in combinations(range(len(result.models)), 2))
    elif pairs:
        most, least = (
            _pair_text(result, pick(pairs, key=lambda p: result.mean[p])) for pick in (max, min)
        )
        said = f"{_count_significant(result, 'networks')}; from {least} to {most}"
    else:
        said = "no two networks can be compared"
    return f"{name[:1].upper()}{name[1:]}: {said}; n = {len(result.ids)}."


def _count_significant(result: Agreement, what: str) -> str:
    above = sum(result.significant(p) for p in result.pairs)
    text = (
        f"{above} of {len(result.pairs)} pairs of {what} agree more than expected from other "
        "images' maps"
    )
    return text + few_images(len(result.ids))


def _pair_text(result: Agreement, pair: tuple[int, int]) -> str:
    names = " and ".join(name_of(result.models[i]) for i in pair)
    if not np.isfinite(result.mean[pair]):
        return f"{names} cannot be compared, because the maps of one are constant"
    verdict = "" if result.significant(pair) else ", not distinguishable from other images"
    null, percentile = result.null[pair], result.null95[pair]
    others = (
        f"{null:.2f}, 95th percentile {percentile:.2f}" if np.isfinite(null) else "not available"
    )
    return f"{names} {mean_text(result.values[pair])}{verdict} (other images {others})"


def conductance_sentence(result: Conductance) -> str:
    """How few units carry half of a layer's conductance, in how many layers one unit leads, and the
    errors of the integral."""
    halves = {i: half for i in range(len(result.layers)) if (half := result.units_for_half(i))}
    n, name = len(result.ids), name_of(result.model)
    if not halves:
        return f"{name}: the conductance of these units is zero."
    fewest, most = min(halves.values()), max(halves.values())
    units = join(map(str, sorted({result.values[i].shape[1] for i in halves})))
    leading = few_images(n).removeprefix("; ")
    if not leading:
        layers = [i for i in halves if result.has_leading_unit(i, 1 - _LEVEL / len(halves))]
        leading = (
            f"{len(layers)} of {len(halves)} layers have a unit with significantly higher "
            "conductance than every other (intervals over images)"
        )
        if layers:
            unit = int(result.top_units(layers[-1], 1)[0])
            mean, low, high = (
                100 * v for v in mean_interval(result.fractions_by_image(layers[-1])[:, unit])
            )
            leading += (
                f", such as unit {unit} of {result.layers[layers[-1]].name} with {mean:.1f} % "
                f"[{low:.1f} %, {high:.1f} %]"
            )
    return (
        f"{name}: half of a layer's conductance is concentrated in "
        f"{fewest}{f' to {most}' if most > fewest else ''} of {units} units (n = {n}); {leading}. "
        f"With {nodes_text(result)} per image, the sum over a cut through the layer deviates from "
        f"the logit difference by {percent(float(np.median(result.gap)))} (median) and at most "
        f"{percent(float(result.gap.max()))}; using every other node changes the sum by up to "
        f"{percent(float(result.change.max()))}."
    )


# -- findings of a study ---------------------------------------------------------------------------


def attribution_findings(results: Sequence[Result]) -> list[Finding]:
    """Which networks' maps agree most, and how many methods outperform random orders in deletion
    and insertion per network."""
    across = [r for r in filter_type(results, Agreement) if r.compared == "networks"]
    what, needs = "Agreement of attributions", "no attributions of two networks"
    found = [
        _agreement_finding(across)
        if across
        else missing(QUESTION, what, needs, results, "attributions")
    ]
    curves = filter_type(results, PerturbationCurves)
    for r in curves:
        name, n, texts, numbers, verdict = name_of(r.model), len(r.ids), [], list[Number](), "none"
        for mode in MODES:
            defined = {
                method: gain
                for method, gain in zip(r.methods, r.gain(mode), strict=True)
                if np.isfinite(gain).any()
            }
            if not defined:
                continue
            gain, methods = np.stack(list(defined.values())), list(defined)
            mean, low, high = mean_interval(gain)
            # One-sided, over all methods and both modes.
            above = (mean_interval(gain, level=1 - _LEVEL / len(gain))[1] > 0) & (n >= FEWEST)
            k = int(mean.argmax())
            best = Number(
                f"{mode} gain", float(mean[k]), float(low[k]), float(high[k]), 0.0, n, methods[k]
            )
            largest = (
                f"{method_label(best.where)}, "
                f"{shown(best)}{'' if above.any() else ', not distinguishable from random'}"
            )
            texts.append(
                f"in {mode} for {above.sum()} of {len(gain)} methods (largest gain {largest})"
            )
            numbers.append(best)
            verdict = "found" if above.any() else verdict
        text = (
            f"{name} (n = {n}): attributions outperform random orders of patches (intervals over "
            f"images) {' and '.join(texts)}."
        )
        if not numbers:
            text, verdict = (
                f"Deletion and insertion of {name}: not available, no curve is defined",
                "missing",
            )
        found.append(Finding(QUESTION, name, text, verdict, tuple(numbers)))
    if not curves:
        found.append(
            missing(
                QUESTION,
                "Deletion and insertion",
                "no deletion or insertion curves",
                results,
                "attributions",
            )
        )
    return found


def _agreement_finding(across: Sequence[Agreement]) -> Finding:
    """Which pairs of networks agree more than the 95th percentile of pairings with other images,
    and which most."""
    values, numbers = {}, {}
    for (a, b), (excess, methods) in excesses(across).items():
        mean, low, high = (float(x) for x in mean_interval(excess))
        n, pair = int(np.isfinite(excess).sum()), f"{name_of(a)} and {name_of(b)}"
        if n > 1:
            kind = f"agreement above the null, {methods} method{'s' if methods > 1 else ''}"
            values[a, b], numbers[a, b] = excess, Number(kind, mean, low, high, 0.0, n, pair)
    if not numbers:
        text = (
            "Agreement of attributions: not available, no pair of networks has maps of two images"
        )
        return Finding(QUESTION, "", text, "missing")
    order = sorted(numbers, key=lambda pair: -numbers[pair].value)
    # Of several pairs some would be above by chance: their intervals are those of a family. Few
    # images bear no claim.
    level = 1 - 2 * _LEVEL / len(order)
    above = [
        pair
        for pair in order
        if numbers[pair].n >= FEWEST and mean_interval(values[pair], level=level)[1] > 0
    ]
    best = numbers[order[0]]
    close = [p for p in order[1:] if not mean_interval(values[order[0]] - values[p])[1] > 0]
    most = "most " if len(order) > 1 and not close else ""
    text = (
        f"{len(above)} of {len(order)} pairs of networks agree more than expected from other "
        f"images' maps (95th percentile of pairings); {most}{best.where}: excess rank correlation "
        f"{shown(best)} (n = {best.n} images)"
    )
    if not above:
        text = (
            "No pair of networks agrees more than expected from other images' maps (largest excess "
            f"rank correlation: {shown(best)}, {best.where}; n = {best.n} images)"
        )
    if above and len(order) > 1:
        pairs = [f"{name_of(a)} with {name_of(b)}" for a, b in close]
        text += (
            f"; not distinguishable from that pair: {join(pairs)}"
            if close
            else "; ahead of all other pairs"
        )
    return Finding(
        QUESTION, "all", f"{text}.", "found" if above else "none", tuple(numbers[p] for p in order)
    )
