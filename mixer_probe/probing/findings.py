"""Findings on probes: sentences on each result with their numbers, and when networks encode the
class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import (
    NAN,
    Finding,
    Number,
    as_percent,
    family,
    filter_type,
    missing,
    primary_models,
)
from mixer_probe.core.finding import points as points_of
from mixer_probe.core.result import Result
from mixer_probe.core.words import (
    interval,
    join,
    name_of,
    number,
    percent,
    points,
    untrained_baseline,
)
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.plotting.depth import DepthCurve
from mixer_probe.probing import (
    AttentiveResult,
    Calibration,
    ConfusionMatrix,
    ControlCode,
    ControlTask,
    FewShotResult,
    OnlineCode,
    PatchPosition,
    PositionProbe,
    ProbeResult,
    RandomLabels,
    TargetProbe,
    paired_interval,
    wilson_interval,
)
from mixer_probe.probing.depths import halfway, halfway_depths, last_layer
from mixer_probe.stats import difference_interval, paired_counts, permutation_p
from mixer_probe.stats.claims import LEVEL, extremes_differ, leader
from mixer_probe.stats.differences import difference_p

QUESTION = "probes"
PANEL = "accuracy of a linear probe"


# -- several networks ------------------------------------------------------------------------------


def probe_findings(results: Sequence[Result]) -> tuple[list[Finding], list[DepthCurve]]:
    """One finding per network and one on all of them, and the depth curves."""
    probes = filter_type(results, ProbeResult)
    method = next(
        (r.method for r in probes if r.method == "ridge"), probes[0].method if probes else ""
    )
    probes = [r for r in probes if r.method == method]
    own = primary_models([r.model for r in probes])
    chosen = [r for r in networks(probes) if r.model.name in own and np.isfinite(r.accuracy).any()]
    if not chosen:
        reason = "the results contain no probe of a network"
        return [missing(QUESTION, "Probe accuracy by depth", reason, results, "linear probe")], []
    raw = next(iter(pixels(probes)), None)
    findings = [_network_finding(r, raw) for r in chosen]
    known = [(r, h) for r in chosen if _above_chance(r) and (h := halfway(r)) is not None]
    if len(known) > 1:
        numbers = [_halfway_number(r, h, f"depth halfway, {name_of(r.model)}") for r, h in known]
        by_depth: dict[str, list[str]] = {}
        for (r, _), n in sorted(zip(known, numbers), key=lambda x: x[1].value):
            by_depth.setdefault(f"{n.value:.2f}", []).append(name_of(r.model))
        differ = extremes_differ(numbers)
        text = "; ".join(f"depth {depth}: {join(names)}" for depth, names in by_depth.items())
        end = (
            "the earliest and the latest differ significantly"
            if differ
            else "no significant difference in depth"
        )
        sentence = f"Depth of half of the final gain over chance: {text}; {end}."
        findings.append(
            Finding(QUESTION, "all", sentence, "found" if differ else "none", tuple(numbers))
        )
    curves = []
    for r in chosen:
        for x in [r, *([r.untrained] if r.untrained else [])]:
            depth, chance = (
                np.array([layer.depth for layer in x.layers]),
                np.full(len(x.layers), x.chance),
            )
            curves.append(
                DepthCurve(
                    PANEL,
                    family(x.model),
                    x.model.name,
                    x is r,
                    depth,
                    x.accuracy,
                    x.low,
                    x.high,
                    chance,
                )
            )
    return findings, curves


def _above_chance(r: ProbeResult) -> bool:
    """Whether the interval of the last layer is above chance."""
    return bool(r.low[last_layer(r)] > r.chance)


def accuracy_number(r: ProbeResult, i: int, kind: str) -> Number:
    """Accuracy of a layer with interval and chance."""
    return Number(
        kind,
        float(r.accuracy[i]),
        float(r.low[i]),
        float(r.high[i]),
        r.chance,
        r.n_test,
        r.layers[i].name,
    )


def _halfway_number(r: ProbeResult, i: int, kind: str) -> Number:
    return Number(kind, r.layers[i].depth, *halfway_depths(r), n=r.n_test, where=r.layers[i].name)


def _network_finding(r: ProbeResult, raw: ProbeResult | None) -> Finding:
    """Accuracy after the last layer, the depth at which it is reached, and the gains over untrained
    baseline and raw pixels."""
    final = last_layer(r)
    last, name = accuracy_number(r, final, "after the last layer"), name_of(r.model)
    text = f"{name}: accuracy of a {r.method} probe after the last layer {as_percent(last)}"
    text += f" (chance {100 * r.chance:.1f} %, n = {r.n_test})"
    if not _above_chance(r):
        return Finding(QUESTION, name, f"{text}, not significantly above chance.", "none", (last,))
    numbers, half, reached = [last], halfway(r), np.flatnonzero(r.accuracy >= r.low[final])
    if half is not None:
        n = _halfway_number(r, half, "depth halfway")
        text += (
            f"; half of the gain over chance is reached at depth {n.value:.2f} [{n.low:.2f}, "
            f"{n.high:.2f}] ({n.where})"
        )
        numbers.append(n)
    if len(reached):
        first = r.layers[reached[0]]
        text += (
            f"; the interval of the last layer is first reached at depth {first.depth:.2f} "
            f"({first.name})"
        )
        numbers.append(accuracy_number(r, int(reached[0]), "first within the interval of the last"))
    text += "."
    for other, kind in (
        (r.untrained, "over the best layer of the untrained baseline"),
        (raw, "over raw pixels"),
    ):
        if (
            other is None
            or not np.array_equal(other.labels, r.labels)
            or not np.isfinite(other.accuracy).any()
        ):
            continue
        best, layers = int(np.nanargmax(other.accuracy)), len(other.layers)
        gain = paired_interval(r.right[final], other.right[best])
        n = Number(kind, *gain, n=r.n_test, where=other.layers[best].name)
        verdict = "" if n.low > 0 else ": no significant difference"
        if n.high < 0:
            # The other's best layer was picked on these images (Bonferroni).
            lower = float(difference_p(0.0, 0.0, 0.0, n.value, n.low, n.high)) * layers <= LEVEL
            corrected = (
                f": no significant difference after correction for the best of {layers} layers"
            )
            verdict = ": significantly lower" if lower else corrected
        text += f" Gain {n.kind}: {points_of(n)}{verdict}."
        numbers.append(n)
    return Finding(QUESTION, name, text, "found", tuple(numbers))


# -- sentences on one result -----------------------------------------------------------------------


def _highest(values: np.ndarray) -> int | None:
    """Index of the largest of `values` [L], None where all are NaN."""
    return None if np.isnan(values).all() else int(np.nanargmax(values))


def _last(values: np.ndarray) -> int | None:
    """Index of the last of `values` [L] that is a number."""
    found = np.flatnonzero(~np.isnan(values))
    return int(found[-1]) if len(found) else None


def _after(result: ControlTask | OnlineCode | FewShotResult, i: int, text: str) -> str:
    """`text` with the name of layer i, and nothing for raw pixels."""
    return "" if result.model.family == "pixels" else text.format(result.layers[i].name)


def accuracy_text(result: ProbeResult, i: int) -> str:
    """Accuracy of a layer with its interval."""
    value = result.accuracy[i]
    return "undefined" if np.isnan(value) else interval(value, result.low[i], result.high[i])


def probe_sentence(result: ProbeResult) -> str:
    """The layer of highest accuracy, layers not distinguishable from it, the last layer, and the
    untrained baseline."""
    name, best, last = name_of(result.model), _highest(result.accuracy), len(result.layers) - 1
    if best is None:
        return (
            f"{name}: no layer can be probed: the features of all layers contain NaN or infinite "
            "values."
        )
    # By intervals of paired differences over the same images.
    others = [i for i in np.flatnonzero(np.isfinite(result.accuracy)) if i != best]
    close = int(
        (difference_interval(paired_counts(result.right[best], result.right[others]))[0] <= 0).sum()
    )
    head = "highest accuracy" if last and not close else "accuracy"
    text = (
        f"{name}: {head} {accuracy_text(result, best)} after {result.layers[best].name}, n = "
        f"{result.n_test}"
    )
    if close:
        text += f" (not distinguishable from {close} other layer{'s' if close > 1 else ''})"
    if last != best:
        text += f"; {accuracy_text(result, last)} after {result.layers[last].name}"
    text += "."
    baseline = result.untrained
    top = None if baseline is None else _highest(baseline.accuracy)
    if baseline is None or top is None:
        return text
    gain = paired_interval(result.right[best], baseline.right[top])
    verdict = (
        "training adds"
        if gain[1] > 0
        else "training costs"
        if gain[2] < 0
        else "no significant difference:"
    )
    size = points(*gain) if gain[2] >= 0 else points(-gain[0], -gain[2], -gain[1])
    return (
        f"{text} Untrained baseline: at most {accuracy_text(baseline, top)}; comparing the best "
        f"layers, {verdict} {size}."
    )


def few_shot_sentence(result: FewShotResult) -> str:
    """Accuracy of the last layer with the fewest and the most images per class."""
    last = _last(result.mean[:, -1])
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."

    def shots(r: FewShotResult, s: int) -> str:
        count, accuracy = r.shots[s], interval(r.mean[last, s], r.low[last, s], r.high[last, s])
        return f"{accuracy} with {count} image{'s' if count > 1 else ''} per class"

    ends = join(shots(result, s) for s in dict.fromkeys((0, len(result.shots) - 1)))
    text = f"{name_of(result.model)}: {_after(result, last, 'after {}, ')}{ends}"
    if result.untrained is not None:
        text += f"; untrained baseline: {shots(result.untrained, -1)}"
    draws = f"{result.seeds} draws" if result.seeds > 1 else "one draw"
    return (
        f"{text} ({result.preset}, {draws}, n = {result.n_test}, chance {percent(result.chance)})."
    )


def confusion_sentence(result: ConfusionMatrix) -> str:
    """Classes of the highest and lowest accuracy, and the most frequent confusion, after the last
    layer.

    Superlatives only where one class or pair differs from all others."""
    counts, names = result.counts[-1].astype(float), result.class_names
    name, images = f"{name_of(result.model)}, after {result.layers[-1].name}", counts.sum(axis=1)
    if not images.any():
        return f"{name}: no predictions, the features contain NaN or infinite values."

    def fraction(hits: float, n: float) -> Number:
        return Number("", hits / n, *wilson_interval(hits, n), n=int(n)) if n else Number("", NAN)

    classes = [fraction(counts[k, k], images[k]) for k in range(len(names))]
    right = np.array([n.value for n in classes])
    easy, hard = int(np.nanargmax(right)), int(np.nanargmin(right))
    easiest = (
        f"highest for '{names[easy]}' with {{}}"
        if leader(classes) is not None
        else f"at most {{}} ('{names[easy]}')"
    )
    hardest = (
        f"lowest for '{names[hard]}' with {{}}"
        if leader(classes, True) is not None
        else f"at least {{}} ('{names[hard]}')"
    )
    ends = join(
        text.format(as_percent(classes[k])) for text, k in ((easiest, easy), (hardest, hard))
    )
    wrong = np.argwhere(~np.eye(len(names), dtype=bool))
    pairs = [fraction(counts[a, b], images[a]) for a, b in wrong]
    i, j = wrong[int(np.nanargmax([n.value for n in pairs]))]
    of = f"{int(counts[i, j])} of {int(images[i])} images"
    if leader(pairs) is not None:
        confused = f"the most frequent confusion is '{names[i]}' predicted as '{names[j]}' ({of})"
    else:
        confused = (
            f"at most {of} of a class are predicted as one other class ('{names[i]}' as "
            f"'{names[j]}')"
        )
    return f"{name}: accuracy per class is {ends}; {confused}."


def calibration_sentence(result: Calibration) -> str:
    """Confidence, accuracy and calibration error of the last layer, against calibrated
    predictions."""
    ece, high, null = (
        float(part[-1]) for part in (result.ece, result.ece_null_high, result.ece_null)
    )
    name = f"{name_of(result.model)}, after {result.layers[-1].name}"
    if np.isnan(ece):
        return f"{name}: undefined, the features contain NaN or infinite values."
    verdict = "significantly miscalibrated" if ece > high else "not distinguishable from calibrated"
    return (
        f"{name}: mean confidence {percent(result.mean_confidence[-1])}, accuracy "
        f"{percent(result.mean_accuracy[-1])}; ECE {100 * ece:.1f} points, {verdict} (calibrated "
        f"predictions: mean {100 * null:.1f}, 95th percentile {100 * high:.1f}; n = "
        f"{result.n_test})."
    )


def control_sentence(result: ControlTask) -> str:
    """Accuracy on the semantic groups and on random groupings after the last layer, and
    selectivity."""
    last = _last(result.accuracy)
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    low, high = result.selectivity_low[last], result.selectivity_high[last]
    selectivity = points(result.selectivity[last], low, high)
    text = (
        f"{name_of(result.model)}: {_after(result, last, 'after {}, ')}accuracy on the semantic "
        f"groups is {interval(result.accuracy[last], result.low[last], result.high[last])}, on "
        f"random groupings {percent(float(result.control_accuracy[last].mean()))}: selectivity "
        f"{selectivity}"
    )

    def relative(r: ControlTask, i: int) -> str:
        return interval(r.relative_selectivity[i], r.relative_low[i], r.relative_high[i])

    if not np.isnan(result.relative_selectivity[last]):
        text += f", or {relative(result, last)} of the errors on random groupings"
    baseline = result.untrained
    if baseline is not None and (best := _highest(baseline.relative_selectivity)) is not None:
        text += f"; untrained baseline: at most {relative(baseline, best)} of them"
    return f"{text} ({len(result.controls)} groupings, n = {result.n_test})."


def code_sentence(result: OnlineCode, results: Sequence[OnlineCode]) -> str:
    """Description length of the labels given the last layer, the largest compression, and the
    untrained baseline."""
    last, top = _last(result.compression), _highest(result.compression)
    if last is None or top is None:
        return f"{name_of(result.model)}: the description length is undefined for all layers."

    def times(r: OnlineCode, i: int) -> str:
        bounds = "" if np.isnan(r.low[i]) else f" [{r.low[i]:.2f}, {r.high[i]:.2f}]"
        return f"{r.compression[i]:.2f}×{bounds}"

    text = (
        f"{name_of(result.model)}: {_after(result, last, 'given {}, ')}the labels of {result.n} "
        f"images take {result.bits[last].mean():.0f} bits instead of {result.uniform:.0f}: "
        f"compression {times(result, last)}"
    )
    if top != last:
        codes = [
            Number("", float(result.compression[i]), float(result.low[i]), float(result.high[i]))
            for i in range(last + 1)
        ]
        most = "largest" if leader(codes) is not None else "at most"
        text += f", {most} {times(result, top)} given {result.layers[top].name}"
    baseline = untrained_baseline(result, results)
    if baseline is not None and (best := _highest(baseline.compression)) is not None:
        text += f"; untrained baseline: at most {times(baseline, best)}"
    return f"{text} ({result.bits.shape[1]} orders)."


def control_code_sentence(result: ControlCode) -> str:
    """Bits per image of the semantic groups given the last layer, against random groupings."""
    last = _last(result.gap)
    if last is None:
        return f"{name_of(result.model)}: the description length is undefined for all layers."
    own, controls = (
        result.bits[last].mean() / result.n,
        result.control_bits[last].mean(axis=1) / result.n,
    )
    each = controls - own
    # The groups are one more grouping of the classes: as short as the shortest of S by chance in 1
    # of 1 + S.
    p = float(permutation_p(own, controls, -1))
    verdict = (
        "significantly fewer than random groupings"
        if p <= LEVEL
        else "not distinguishable from random groupings"
    )
    return (
        f"{name_of(result.model)}: given {result.layers[last].name}, the semantic groups take "
        f"{own:.3f} bits per image, {verdict} (p = {p:.2g}); random groupings take "
        f"{result.gap[last]:.3f} bits more on average ({each.min():.3f} to {each.max():.3f} over "
        f"{len(each)} groupings, n = {result.n})."
    )


def random_label_sentence(result: RandomLabels) -> str:
    """Number of layers whose accuracy on random labels is at chance."""
    defined = ~np.isnan(result.expected)
    if not defined.any():
        return f"{name_of(result.model)}: no layer can be probed."
    return (
        f"{name_of(result.model)}: accuracy on random labels is at chance after "
        f"{int(result.at_chance[defined].sum())} of {int(defined.sum())} layers, "
        f"{percent(float(result.accuracy[defined].mean()))} on average (expected: "
        f"{percent(float(result.expected[defined].mean()))}; {result.accuracy.shape[1]} "
        f"permutations, n = {result.n_test})."
    )


def position_sentence(result: PositionProbe) -> str:
    """Accuracy at the lowest, median and highest position and of the mean over positions, after the
    first and last layer."""
    parts = []
    for i in dict.fromkeys((0, len(result.layers) - 1)):
        low, middle, high = (percent(quantile[i]) for quantile in result.quantiles((0, 0.5, 1)))
        mean = interval(result.pooled[i], result.pooled_low[i], result.pooled_high[i])
        parts.append(
            f"after {result.layers[i].name}, {middle} at the median position (range {low} to "
            f"{high}) and {mean} from the mean over positions"
        )
    return (
        f"{name_of(result.model)}: {'; '.join(parts)} (n = {result.n_test}, chance "
        f"{percent(result.chance)})."
    )


def attentive_sentence(result: AttentiveResult) -> str:
    """Accuracy of the attentive probe after the last layer, and its largest attention weight."""
    last = _last(result.accuracy)
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    part = result.attention[last]
    return (
        f"{name_of(result.model)}: after {result.layers[last].name}, the accuracy of the attentive "
        f"probe is {interval(result.accuracy[last], result.low[last], result.high[last])}; its "
        f"attention is at most {part.max() * part.size:.1f} times uniform attention at any "
        f"position (n = {result.n_test}, chance {percent(result.chance)})."
    )


def patch_position_sentence(result: PatchPosition) -> str:
    """Mean error of the decoded position after the first, the best and the last layer, and of the
    untrained baseline."""
    best = _highest(-result.distance_px)
    if best is None:
        return f"{name_of(result.model)}: the position cannot be decoded at any layer."

    def errors(r: PatchPosition, layers: Sequence[int]) -> str:
        found = []
        for i in dict.fromkeys(layers):
            error = f"{number(r.distance_px[i], r.low_distance_px[i], r.high_distance_px[i], 1)} px"
            found.append(
                f"{'undefined' if np.isnan(r.distance_px[i]) else error} after {r.layers[i].name}"
            )
        return join(found)

    text = (
        f"{name_of(result.model)}: mean error of the decoded position: "
        f"{errors(result, (0, best, len(result.layers) - 1))}"
    )
    text += f"; chance: {result.chance_distance_px[best]:.1f} px"
    baseline = result.untrained
    if baseline is not None and (nearest := _highest(-baseline.distance_px)) is not None:
        text += f"; untrained baseline: {errors(baseline, (nearest, len(baseline.layers) - 1))}"
    return f"{text} (n = {result.n_test})."


def target_sentence(result: TargetProbe) -> str:
    """Score of every target after the first and the last layer, and of the untrained baseline."""
    parts = []
    for t, name in enumerate(result.targets):
        metric, last = (
            "accuracy" if result.metrics[t] == "accuracy" else "R²",
            _last(result.score[:, t]),
        )
        if last is None:
            parts.append(f"{name} undefined")
            continue
        ends = [
            number(result.score[i, t], result.low[i, t], result.high[i, t])
            for i in dict.fromkeys((0, last))
        ]
        baseline = (
            ""
            if result.untrained is None
            else f", untrained baseline {result.untrained.score[last, t]:.2f}"
        )
        chance = f", chance {result.chance[t]:.2f}" if metric == "accuracy" else ""
        parts.append(f"{metric} of {name} {' → '.join(ends)}{baseline}{chance}")
    return f"{name_of(result.model)}: {'; '.join(parts)} (n = {int(result.n_test.max())})."
