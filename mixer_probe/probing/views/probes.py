"""The report on probes: where the class can be read, from how many images, which classes, and how sure the probe may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from mixer_probe.core.finding import NAN, Number, share
from mixer_probe.core.result import Result
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import join, name_of, percent, untrained_warning
from mixer_probe.probing import Calibration, ConfusionMatrix, FewShotResult, ProbeResult, paired_interval, wilson_interval
from mixer_probe.probing.figures import (
    class_accuracy,
    confusion_heatmaps,
    few_shot_curves,
    probe_curves,
    probe_paths,
    reliability_diagrams,
)
from mixer_probe.probing.figures.probes import layer_names, networks, one_layer, pixels
from mixer_probe.stats import difference_interval, paired_counts
from mixer_probe.stats.claims import leader

T = TypeVar("T")

# Panels or rows of one picture; what is beyond goes to the next one.
_MOST_PANELS = 6
_PROBES = {
    "ridge": "a ridge probe",
    "logistic": "a multinomial logistic probe",
    "knn": "a k-NN probe",
    "centroid": "the nearest class mean",
}


def interval(value: float, low: float, high: float) -> str:
    """ "61.0 % [58.0 %, 63.9 %]"."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def points(value: float, low: float, high: float) -> str:
    """A difference of two shares: "12.3 points [9.8, 14.7]"."""
    return f"{100 * value:.1f} points [{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float, low: float, high: float, digits: int = 2) -> str:
    """ "3.22 [2.89, 3.64]"."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def highest(values: np.ndarray) -> int | None:
    """Index of the largest of `values` [L], None where all are NaN."""
    return None if np.isnan(values).all() else int(np.nanargmax(values))


def last_defined(values: np.ndarray) -> int | None:
    """Index of the last of `values` [L] that is a number."""
    found = np.flatnonzero(~np.isnan(values))
    return int(found[-1]) if len(found) else None


def table_of(results: Sequence[Result]) -> pd.DataFrame:
    """The tables of all results, one below the other."""
    return pd.concat([r.to_frame() for r in results], ignore_index=True)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Parts of at most `size`, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def pooling(reduce: str) -> str:
    """How positions were reduced, in words."""
    return {"mean": "mean-pooled activations", "prefix": "prefix tokens"}.get(reduce, "activations")


# -- accuracy ----------------------------------------------------------------------------------------------------------


def probe_section(results: Sequence[ProbeResult]) -> list[Section]:
    """Where the class can be read off, by each kind of probe."""
    methods = dict.fromkeys(r.method for r in results)
    return [_accuracy_section([r for r in results if r.method == method], method, len(methods) > 1) for method in methods]


def _accuracy_section(results: Sequence[ProbeResult], method: str, several: bool) -> Section:
    content: list[Picture | Table] = []
    own, raw = networks(results), pixels(results)
    if own:
        content.append(_curves_picture(results, method))
        content += [_paths_picture(chunk, method) for chunk in chunks(own, _MOST_PANELS) if chunk[0].path_name]
    content.append(_probe_table(results))
    sentences = [_probe_sentence(r) for r in own]
    sentences += [f"Raw pixels give {_accuracy(r, 0)}, and chance {percent(r.chance)} (n = {r.n_test})." for r in raw]
    title = "Where the class can be read" + (f": {_PROBES[method]}" if several else "")
    anchor = "probes" if method == "ridge" or not several else f"probes-{method}"
    return Section(anchor, title, tuple(sentences), tuple(content), untrained_warning(r.model for r in own))


def _curves_picture(results: Sequence[ProbeResult], method: str) -> Picture:
    first = networks(results)[0]
    alone = one_layer(results)
    bands, twins, raw = (
        ("Bars", "Open markers", "Black") if alone else ("Bands", "Dotted lines with open markers", "The dashed line")
    )
    lines = [f"{bands} are 95 % Wilson intervals over the test images; the grey line is chance, the share of the largest class."]
    if any(r.untrained for r in results):
        lines.append(f"{twins} are the same network with random weights: what architecture alone gives.")
    if pixels(results):
        lines.append(f"{raw} is the same probe on raw pixels: what needs no network.")
    if first.path_name:
        lines.append(f"The {first.path_name} is chosen by accuracy on left-out fitting images, never on the test images.")
    return Picture(
        probe_curves(results),
        f"Accuracy of {_PROBES[method]} on {pooling(first.reduce)} after {layer_names(results) if alone else 'every layer'}: "
        f"fitted on {first.n_train} images, tested on {first.n_test} others ({first.classes} classes).",
        " ".join(lines),
        "Probe accuracy of each network" if alone else "Probe accuracy against relative depth",
        name=f"probe-accuracy-{method}",
    )


def _paths_picture(results: Sequence[ProbeResult], method: str) -> Picture:
    name = results[0].path_name
    return Picture(
        probe_paths(results),
        f"Accuracy along the path of {name}" + ("." if one_layer(results) else ", for the first, a middle and the last layer."),
        f"Solid lines are test images, dashed ones fitting images that were left out; the ring is the {name} that the latter "
        "chose, of equals the simplest probe. A ring at an end of its path would ask for a longer path.",
        f"Accuracy of {_PROBES[method]} against {name}",
        name=f"probe-path-{method}-{name_of(results[0].model)}",
    )


def _probe_table(results: Sequence[ProbeResult]) -> Table:
    frame = table_of(results)
    path = [name for name in ("l2", "k") if name in frame]
    columns = ["model", "trained", "layer", "depth", "p", *path, "accuracy", "low", "high", "balanced_accuracy", "chance"]
    formats = dict.fromkeys(("accuracy", "low", "high", "balanced_accuracy", "chance"), "{:.3f}")
    formats |= {"depth": "{:.2f}"} | dict.fromkeys(path, "{:.3g}")
    return Table("Every probe. low and high bound the 95 % interval.", frame[columns], formats, folded=True)


def _probe_sentence(result: ProbeResult) -> str:
    name, best, last = name_of(result.model), highest(result.accuracy), len(result.layers) - 1
    if best is None:
        return f"{name}: no layer can be probed, all have NaN or infinite features."
    close = _close(result, best)
    head = "best " if last and not close else ""
    text = f"{name}: {head}after {result.layers[best].name} with {_accuracy(result, best)}, n = {result.n_test}"
    if close:
        text += f" (not distinguishable from {close} other layer{'s' if close > 1 else ''})"
    if last != best:
        text += f"; after {result.layers[last].name} {_accuracy(result, last)}"
    return f"{text}.{_twin_text(result, best)}"


def _close(result: ProbeResult, best: int) -> int:
    """How many layers the best one is not ahead of, by intervals of the difference over the same images."""
    others = [i for i in np.flatnonzero(np.isfinite(result.accuracy)) if i != best]
    counts = paired_counts(result.right[best], result.right[others])
    return int((difference_interval(counts)[0] <= 0).sum())


def _twin_text(result: ProbeResult, best: int) -> str:
    twin = result.untrained
    top = None if twin is None else highest(twin.accuracy)
    if twin is None or top is None:
        return ""
    gain = paired_interval(result.right[best], twin.right[top])
    verdict = "training adds" if gain[1] > 0 else "training costs" if gain[2] < 0 else "no difference beyond the interval,"
    size = points(*gain) if gain[2] >= 0 else points(-gain[0], -gain[2], -gain[1])
    return f" Untrained, no layer exceeds {_accuracy(twin, top)}: best against best, {verdict} {size}."


def _accuracy(result: ProbeResult, i: int) -> str:
    if np.isnan(result.accuracy[i]):
        return "not defined"
    return interval(result.accuracy[i], result.low[i], result.high[i])


# -- few images --------------------------------------------------------------------------------------------------------


def few_shot_section(results: Sequence[FewShotResult]) -> list[Section]:
    """Accuracy on few images a class."""
    own = networks(results)
    first = (own or results)[0]
    alone = one_layer(results)
    where = (
        f"After {layer_names(results)}." if alone else "Left after the last layer, right by depth for the most images a class."
    )
    lines = [
        f"Lines are means over {first.seeds} draws of the images to fit on; bands are 95 % intervals for other draws and other "
        "test images together; the grey line is chance.",
        *(
            ["Dotted lines with open markers are the same network with random weights."]
            if any(r.untrained for r in results)
            else []
        ),
        *(["The dashed line is raw pixels."] if pixels(results) else []),
    ]
    picture = Picture(
        few_shot_curves(results),
        f"Accuracy of probes on {join(map(str, first.shots))} images a class, tested on {first.n_test} images ({first.classes} "
        f"classes): {first.estimator}. {where}",
        " ".join(lines),
        "Few-shot accuracy against images a class" + ("" if alone else ", and against relative depth"),
        name="probe-few-shot",
    )
    frame = table_of(results)
    columns = ["model", "trained", "layer", "depth", "shots", "seeds", "accuracy", "low", "high", "chance"]
    formats = dict.fromkeys(("accuracy", "low", "high", "chance"), "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("Every few-shot probe. low and high bound the 95 % interval.", frame[columns], formats, folded=True)
    content: tuple[Picture | Table, ...] = (picture, table) if own else (table,)
    sentences = tuple(_few_shot_sentence(r) for r in results)
    return [Section("few-shot", "With a few images of every class", sentences, content, untrained_warning(r.model for r in own))]


def _few_shot_sentence(result: FewShotResult) -> str:
    last = last_defined(result.mean[:, -1])
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    said = [_shots(result, last, s) for s in dict.fromkeys((0, len(result.shots) - 1))]
    where = "" if result.model.family == "pixels" else f"after {result.layers[last].name} "
    text = f"{name_of(result.model)}: {where}{join(said)}"
    if result.untrained is not None:
        text += f"; untrained {_shots(result.untrained, last, -1)}"
    draws = f"{result.seeds} draws" if result.seeds > 1 else "one draw"
    return f"{text} ({result.preset}, {draws}, n = {result.n_test}, chance {percent(result.chance)})."


def _shots(result: FewShotResult, layer: int, s: int) -> str:
    shots = result.shots[s]
    accuracy = interval(result.mean[layer, s], result.low[layer, s], result.high[layer, s])
    return f"{accuracy} with {shots} image{'s' if shots > 1 else ''} a class"


# -- answers -----------------------------------------------------------------------------------------------------------


def confusion_section(results: Sequence[ConfusionMatrix]) -> list[Section]:
    """Which classes are taken for which, after the last layer."""
    pictures = [_confusion_picture(chunk) for chunk in chunks(results, 4)]
    by_classes: dict[tuple[str, ...], list[ConfusionMatrix]] = {}
    for result in results:
        by_classes.setdefault(result.class_names, []).append(result)
    pictures += [_class_picture(same) for same in by_classes.values()]
    frame = pd.concat([r.per_class() for r in results], ignore_index=True)
    formats = dict.fromkeys(("accuracy", "low", "high", "precision"), "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("Every layer and class. low and high bound the 95 % interval of the accuracy.", frame, formats, folded=True)
    sentences = tuple(_confusion_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("confusion", "Which classes are taken for which", sentences, (*pictures, table), warning)]


def _confusion_picture(results: Sequence[ConfusionMatrix]) -> Picture:
    return Picture(
        confusion_heatmaps(results),
        f"Answers of {_PROBES.get(results[0].method, 'the probe')} after the last layer of each network, as shares of the test "
        "images of the true class.",
        "The diagonal is right. A bright cell off it is a class (row) that is often taken for another (column).",
        f"Confusion matrices of {join(name_of(r.model) for r in results)}",
        name=f"probe-confusion-{name_of(results[0].model)}",
    )


def _class_picture(results: Sequence[ConfusionMatrix]) -> Picture:
    return Picture(
        class_accuracy(results),
        "Share of the test images of each class that are right after the last layer of each network.",
        "Bars are 95 % Wilson intervals over the test images of the class; easy classes are on top.",
        f"Accuracy by class of {join(name_of(r.model) for r in results)}",
        name=f"probe-classes-{name_of(results[0].model)}",
    )


def _confusion_sentence(result: ConfusionMatrix) -> str:
    counts, names = result.counts[-1].astype(float), result.class_names
    name = f"{name_of(result.model)}, after {result.layers[-1].name}"
    images = counts.sum(axis=1)
    if not images.any():
        return f"{name}: no answers, its features are NaN or infinite."
    shares = np.divide(counts, images[:, None], out=np.zeros_like(counts), where=images[:, None] > 0)
    right = np.where(images > 0, np.diagonal(shares), np.nan)
    np.fill_diagonal(shares, -1)
    i, j = np.unravel_index(shares.argmax(), shares.shape)
    classes = [_share(right[k] * images[k], images[k]) for k in range(len(names))]
    easy, hard = int(np.nanargmax(right)), int(np.nanargmin(right))
    easiest = f"easiest is '{names[easy]}' with {{}}" if leader(classes) is not None else f"at most {{}} ('{names[easy]}')"
    hardest = f"hardest '{names[hard]}' with {{}}" if leader(classes, True) is not None else f"at least {{}} ('{names[hard]}')"
    ends = [text.format(share(classes[k])) for text, k in ((easiest, easy), (hardest, hard))]
    return f"{name}: by class {join(ends)}; {_confused(counts, images, names, int(i), int(j))}."


def _share(hits: float, n: float) -> Number:
    return Number("", hits / n, *wilson_interval(hits, n), n=int(n)) if n else Number("", NAN)


def _confused(counts: np.ndarray, images: np.ndarray, names: Sequence[str], i: int, j: int) -> str:
    """The largest share of a class that is taken for one other, and that it is the largest where it differs from all others."""
    pairs = [_share(counts[a, b], images[a]) for a, b in np.argwhere(~np.eye(len(names), dtype=bool))]
    of = f"{int(counts[i, j])} of {int(images[i])} images"
    if leader(pairs) is not None:
        return f"most often '{names[i]}' is taken for '{names[j]}' in {of}"
    return f"at most {of} of a class are taken for one other ('{names[i]}' for '{names[j]}')"


def calibration_section(results: Sequence[Calibration]) -> list[Section]:
    """Whether a probe is as often right as it says."""
    pictures = [_reliability_picture(chunk) for chunk in chunks(results, _MOST_PANELS)]
    frame = table_of(results)
    columns = [c for c in frame.columns if c not in ("kind", "source")]
    numbers = ("ece", "ece_null", "ece_null_high", "brier", "nll", "mean_confidence", "mean_accuracy")
    formats = dict.fromkeys(numbers, "{:.3f}") | {"depth": "{:.2f}", "temperature": "{:.3g}"}
    table = Table("Every layer. ece_null is that of calibrated answers as few as these.", frame[columns], formats, folded=True)
    sentences = tuple(_calibration_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("calibration", "How sure a probe may be", sentences, (*pictures, table), warning)]


def _reliability_picture(results: Sequence[Calibration]) -> Picture:
    first = results[0]
    return Picture(
        reliability_diagrams(results),
        f"How often answers are right against how sure the probe is, after the last layer; {first.source}; n = {first.n_test}.",
        "On the diagonal a probe is as often right as it says, below it claims too much. Bars are 95 % Wilson intervals, the "
        "columns the share of the images in each bin. ECE is above 0 for calibrated answers too, since bins hold few images: the "
        f"second number is its mean over {first.resamples} draws of such answers.",
        f"Reliability diagrams of {join(name_of(r.model) for r in results)}",
        name=f"probe-calibration-{name_of(first.model)}",
    )


def _calibration_sentence(result: Calibration) -> str:
    ece, high, null = (float(part[-1]) for part in (result.ece, result.ece_null_high, result.ece_null))
    name = f"{name_of(result.model)}, after {result.layers[-1].name}"
    if np.isnan(ece):
        return f"{name}: not defined, its features are NaN or infinite."
    verdict = "beyond what calibrated answers give" if ece > high else "not told from calibrated"
    return (
        f"{name}: says {percent(result.mean_confidence[-1])} and is right in {percent(result.mean_accuracy[-1])}; ECE "
        f"{100 * ece:.1f} points, {verdict} (mean {100 * null:.1f}, 95 % below {100 * high:.1f}; n = {result.n_test})."
    )
