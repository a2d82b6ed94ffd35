"""The report on probes: accuracy by layer, few-shot accuracy, confusion and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.finding import NAN, Number, share
from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import interval, join, name_of, percent, points, untrained_warning
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.probing import Calibration, ConfusionMatrix, FewShotResult, ProbeResult, paired_interval, wilson_interval
from mixer_probe.probing.figures import (
    class_accuracy,
    confusion_heatmaps,
    few_shot_curves,
    probe_curves,
    probe_paths,
    reliability_diagrams,
)
from mixer_probe.probing.figures.probes import layer_names, one_layer
from mixer_probe.stats import difference_interval, paired_counts
from mixer_probe.stats.claims import leader

# Panels or rows of one picture; what is beyond goes to the next one.
_MOST_PANELS = 6
_PROBES = {
    "ridge": "a ridge probe",
    "logistic": "a multinomial logistic probe",
    "knn": "a k-NN probe",
    "centroid": "the nearest class mean",
}


def highest(values: np.ndarray) -> int | None:
    """Index of the largest of `values` [L], None where all are NaN."""
    return None if np.isnan(values).all() else int(np.nanargmax(values))


def last_defined(values: np.ndarray) -> int | None:
    """Index of the last of `values` [L] that is a number."""
    found = np.flatnonzero(~np.isnan(values))
    return int(found[-1]) if len(found) else None


def pooling(reduce: str) -> str:
    """How positions were reduced, in words."""
    return {"mean": "mean-pooled activations", "prefix": "prefix tokens"}.get(reduce, "activations")


# -- accuracy ----------------------------------------------------------------------------------------------------------


def probe_section(results: Sequence[ProbeResult]) -> list[Section]:
    """Probe accuracy by layer, one section per kind of probe."""
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
    sentences += [f"Raw pixels: {_accuracy(r, 0)}; chance: {percent(r.chance)} (n = {r.n_test})." for r in raw]
    title = "Probe accuracy by layer" + (f": {_PROBES[method]}" if several else "")
    anchor = "probes" if method == "ridge" or not several else f"probes-{method}"
    return Section(anchor, title, tuple(sentences), tuple(content), untrained_warning(r.model for r in own))


def _curves_picture(results: Sequence[ProbeResult], method: str) -> Picture:
    first = networks(results)[0]
    alone = one_layer(results)
    bands, twins, raw = (
        ("Bars", "Open markers", "Black") if alone else ("Bands", "Dotted lines with open markers", "The dashed line")
    )
    lines = [
        f"{bands} are 95 % Wilson intervals over the test images; the grey line is chance, the frequency of the largest class."
    ]
    if any(r.untrained for r in results):
        lines.append(f"{twins} are the untrained baseline: the same architecture with re-initialised weights.")
    if pixels(results):
        lines.append(f"{raw} is the same probe on raw pixels.")
    if first.path_name:
        lines.append(f"The {first.path_name} is selected by accuracy on held-out training images, never on the test images.")
    return Picture(
        partial(probe_curves, results),
        f"Accuracy of {_PROBES[method]} on {pooling(first.reduce)} after {layer_names(results) if alone else 'each layer'}: "
        f"trained on {first.n_train} images, tested on {first.n_test} others ({first.classes} classes).",
        " ".join(lines),
        "Probe accuracy per network" if alone else "Probe accuracy against relative depth",
        name=f"probe-accuracy-{method}",
    )


def _paths_picture(results: Sequence[ProbeResult], method: str) -> Picture:
    name = results[0].path_name
    return Picture(
        partial(probe_paths, results),
        f"Accuracy against {name}" + ("." if one_layer(results) else ", for the first, a middle and the last layer."),
        f"Solid lines: test images; dashed lines: held-out training images. The circle marks the {name} selected on the latter; "
        "ties go to the simplest probe. A circle at either end suggests a wider range.",
        f"Accuracy of {_PROBES[method]} against {name}",
        name=f"probe-path-{method}-{name_of(results[0].model)}",
    )


def _probe_table(results: Sequence[ProbeResult]) -> Table:
    frame = table_of(results)
    path = [name for name in ("l2", "k") if name in frame]
    columns = ["model", "trained", "layer", "depth", "p", *path, "accuracy", "low", "high", "balanced_accuracy", "chance"]
    formats = dict.fromkeys(("accuracy", "low", "high", "balanced_accuracy", "chance"), "{:.3f}")
    formats |= {"depth": "{:.2f}"} | dict.fromkeys(path, "{:.3g}")
    return Table("All probes. low and high: bounds of the 95 % interval.", frame[columns], formats, folded=True)


def _probe_sentence(result: ProbeResult) -> str:
    name, best, last = name_of(result.model), highest(result.accuracy), len(result.layers) - 1
    if best is None:
        return f"{name}: no layer can be probed: the features of all layers contain NaN or infinite values."
    close = _close(result, best)
    head = "highest accuracy" if last and not close else "accuracy"
    text = f"{name}: {head} {_accuracy(result, best)} after {result.layers[best].name}, n = {result.n_test}"
    if close:
        text += f" (not distinguishable from {close} other layer{'s' if close > 1 else ''})"
    if last != best:
        text += f"; {_accuracy(result, last)} after {result.layers[last].name}"
    return f"{text}.{_twin_text(result, best)}"


def _close(result: ProbeResult, best: int) -> int:
    """Number of layers not distinguishable from the best, by intervals of paired differences over the same images."""
    others = [i for i in np.flatnonzero(np.isfinite(result.accuracy)) if i != best]
    counts = paired_counts(result.right[best], result.right[others])
    return int((difference_interval(counts)[0] <= 0).sum())


def _twin_text(result: ProbeResult, best: int) -> str:
    twin = result.untrained
    top = None if twin is None else highest(twin.accuracy)
    if twin is None or top is None:
        return ""
    gain = paired_interval(result.right[best], twin.right[top])
    verdict = "training adds" if gain[1] > 0 else "training costs" if gain[2] < 0 else "no significant difference:"
    size = points(*gain) if gain[2] >= 0 else points(-gain[0], -gain[2], -gain[1])
    return f" Untrained baseline: at most {_accuracy(twin, top)}; comparing the best layers, {verdict} {size}."


def _accuracy(result: ProbeResult, i: int) -> str:
    if np.isnan(result.accuracy[i]):
        return "undefined"
    return interval(result.accuracy[i], result.low[i], result.high[i])


# -- few images --------------------------------------------------------------------------------------------------------


def few_shot_section(results: Sequence[FewShotResult]) -> list[Section]:
    """Accuracy with few training images per class."""
    own = networks(results)
    first = (own or results)[0]
    alone = one_layer(results)
    where = (
        f"After {layer_names(results)}."
        if alone
        else "Left: after the last layer. Right: by depth, for the largest number of images per class."
    )
    lines = [
        f"Lines are means over {first.seeds} draws of the training images; bands are 95 % intervals over both draws and test "
        "images; the grey line is chance.",
        *(["Dotted lines with open markers are untrained baselines."] if any(r.untrained for r in results) else []),
        *(["The dashed line is raw pixels."] if pixels(results) else []),
    ]
    picture = Picture(
        partial(few_shot_curves, results),
        f"Accuracy of probes trained on {join(map(str, first.shots))} images per class, tested on {first.n_test} images "
        f"({first.classes} classes): {first.estimator}. {where}",
        " ".join(lines),
        "Few-shot accuracy against images per class" + ("" if alone else ", and against relative depth"),
        name="probe-few-shot",
    )
    frame = table_of(results)
    columns = ["model", "trained", "layer", "depth", "shots", "seeds", "accuracy", "low", "high", "chance"]
    formats = dict.fromkeys(("accuracy", "low", "high", "chance"), "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("All few-shot probes. low and high: bounds of the 95 % interval.", frame[columns], formats, folded=True)
    content: tuple[Picture | Table, ...] = (picture, table) if own else (table,)
    sentences = tuple(_few_shot_sentence(r) for r in results)
    return [Section("few-shot", "Few-shot accuracy", sentences, content, untrained_warning(r.model for r in own))]


def _few_shot_sentence(result: FewShotResult) -> str:
    last = last_defined(result.mean[:, -1])
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    said = [_shots(result, last, s) for s in dict.fromkeys((0, len(result.shots) - 1))]
    where = "" if result.model.family == "pixels" else f"after {result.layers[last].name}, "
    text = f"{name_of(result.model)}: {where}{join(said)}"
    if result.untrained is not None:
        text += f"; untrained baseline: {_shots(result.untrained, last, -1)}"
    draws = f"{result.seeds} draws" if result.seeds > 1 else "one draw"
    return f"{text} ({result.preset}, {draws}, n = {result.n_test}, chance {percent(result.chance)})."


def _shots(result: FewShotResult, layer: int, s: int) -> str:
    shots = result.shots[s]
    accuracy = interval(result.mean[layer, s], result.low[layer, s], result.high[layer, s])
    return f"{accuracy} with {shots} image{'s' if shots > 1 else ''} per class"


# -- answers -----------------------------------------------------------------------------------------------------------


def confusion_section(results: Sequence[ConfusionMatrix]) -> list[Section]:
    """Confusion between classes after the last layer."""
    pictures = [_confusion_picture(chunk) for chunk in chunks(results, 4)]
    by_classes: dict[tuple[str, ...], list[ConfusionMatrix]] = {}
    for result in results:
        by_classes.setdefault(result.class_names, []).append(result)
    pictures += [_class_picture(same) for same in by_classes.values()]
    frame = pd.concat([r.per_class() for r in results], ignore_index=True)
    formats = dict.fromkeys(("accuracy", "low", "high", "precision"), "{:.3f}") | {"depth": "{:.2f}"}
    table = Table(
        "All layers and classes. low and high: bounds of the 95 % interval of the accuracy.", frame, formats, folded=True
    )
    sentences = tuple(_confusion_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("confusion", "Confusion between classes", sentences, (*pictures, table), warning)]


def _confusion_picture(results: Sequence[ConfusionMatrix]) -> Picture:
    return Picture(
        partial(confusion_heatmaps, results),
        f"Predictions of {_PROBES.get(results[0].method, 'the probe')} after the last layer of each network, as percentages of "
        "the test images of the true class.",
        "Correct predictions lie on the diagonal. A bright cell off the diagonal is a class (row) often predicted as another "
        "(column).",
        f"Confusion matrices of {join(name_of(r.model) for r in results)}",
        name=f"probe-confusion-{name_of(results[0].model)}",
    )


def _class_picture(results: Sequence[ConfusionMatrix]) -> Picture:
    return Picture(
        partial(class_accuracy, results),
        "Test accuracy per class after the last layer of each network.",
        "Bars are 95 % Wilson intervals over the test images of the class; classes with the highest accuracy are on top.",
        f"Accuracy per class of {join(name_of(r.model) for r in results)}",
        name=f"probe-classes-{name_of(results[0].model)}",
    )


def _confusion_sentence(result: ConfusionMatrix) -> str:
    counts, names = result.counts[-1].astype(float), result.class_names
    name = f"{name_of(result.model)}, after {result.layers[-1].name}"
    images = counts.sum(axis=1)
    if not images.any():
        return f"{name}: no predictions, the features contain NaN or infinite values."
    shares = np.divide(counts, images[:, None], out=np.zeros_like(counts), where=images[:, None] > 0)
    right = np.where(images > 0, np.diagonal(shares), np.nan)
    np.fill_diagonal(shares, -1)
    i, j = np.unravel_index(shares.argmax(), shares.shape)
    classes = [_share(right[k] * images[k], images[k]) for k in range(len(names))]
    easy, hard = int(np.nanargmax(right)), int(np.nanargmin(right))
    easiest = f"highest for '{names[easy]}' with {{}}" if leader(classes) is not None else f"at most {{}} ('{names[easy]}')"
    hardest = f"lowest for '{names[hard]}' with {{}}" if leader(classes, True) is not None else f"at least {{}} ('{names[hard]}')"
    ends = [text.format(share(classes[k])) for text, k in ((easiest, easy), (hardest, hard))]
    return f"{name}: accuracy per class is {join(ends)}; {_confused(counts, images, names, int(i), int(j))}."


def _share(hits: float, n: float) -> Number:
    return Number("", hits / n, *wilson_interval(hits, n), n=int(n)) if n else Number("", NAN)


def _confused(counts: np.ndarray, images: np.ndarray, names: Sequence[str], i: int, j: int) -> str:
    """The largest fraction of a class predicted as one other, called the largest only where it differs from all others."""
    pairs = [_share(counts[a, b], images[a]) for a, b in np.argwhere(~np.eye(len(names), dtype=bool))]
    of = f"{int(counts[i, j])} of {int(images[i])} images"
    if leader(pairs) is not None:
        return f"the most frequent confusion is '{names[i]}' predicted as '{names[j]}' ({of})"
    return f"at most {of} of a class are predicted as one other class ('{names[i]}' as '{names[j]}')"


def calibration_section(results: Sequence[Calibration]) -> list[Section]:
    """Whether the confidence of a probe matches its accuracy."""
    pictures = [_reliability_picture(chunk) for chunk in chunks(results, _MOST_PANELS)]
    frame = table_of(results)
    columns = [c for c in frame.columns if c not in ("kind", "source")]
    numbers = ("ece", "ece_null", "ece_null_high", "brier", "nll", "mean_confidence", "mean_accuracy")
    formats = dict.fromkeys(numbers, "{:.3f}") | {"depth": "{:.2f}", "temperature": "{:.3g}"}
    table = Table(
        "All layers. ece_null: expected ECE of perfectly calibrated predictions with the same n.",
        frame[columns],
        formats,
        folded=True,
    )
    sentences = tuple(_calibration_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("calibration", "Probe calibration", sentences, (*pictures, table), warning)]


def _reliability_picture(results: Sequence[Calibration]) -> Picture:
    first = results[0]
    return Picture(
        partial(reliability_diagrams, results),
        f"Accuracy against confidence of the predictions after the last layer; {first.source}; n = {first.n_test}.",
        "A calibrated probe lies on the diagonal, an overconfident one below it. Error bars are 95 % Wilson intervals; columns "
        "are the percentage of images in each bin. ECE exceeds 0 even for calibrated predictions, since bins hold few images: "
        f"the second number is its mean over {first.resamples} simulations of calibrated predictions.",
        f"Reliability diagrams of {join(name_of(r.model) for r in results)}",
        name=f"probe-calibration-{name_of(first.model)}",
    )


def _calibration_sentence(result: Calibration) -> str:
    ece, high, null = (float(part[-1]) for part in (result.ece, result.ece_null_high, result.ece_null))
    name = f"{name_of(result.model)}, after {result.layers[-1].name}"
    if np.isnan(ece):
        return f"{name}: undefined, the features contain NaN or infinite values."
    verdict = "significantly miscalibrated" if ece > high else "not distinguishable from calibrated"
    return (
        f"{name}: mean confidence {percent(result.mean_confidence[-1])}, accuracy {percent(result.mean_accuracy[-1])}; ECE "
        f"{100 * ece:.1f} points, {verdict} (calibrated predictions: mean {100 * null:.1f}, 95th percentile {100 * high:.1f}; "
        f"n = {result.n_test})."
    )
