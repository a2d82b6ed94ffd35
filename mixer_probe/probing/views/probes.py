"""The report on probes: accuracy by layer, few-shot accuracy, confusion and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import join, name_of, percent, untrained_warning
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.probing import Calibration, ConfusionMatrix, FewShotResult, ProbeResult
from mixer_probe.probing.figures import (
    class_accuracy,
    confusion_heatmaps,
    few_shot_curves,
    probe_curves,
    probe_paths,
    reliability_diagrams,
)
from mixer_probe.probing.figures.probes import layer_names, one_layer
from mixer_probe.probing.findings import (
    accuracy_text,
    calibration_sentence,
    confusion_sentence,
    few_shot_sentence,
    probe_sentence,
)
from mixer_probe.probing.views import folded_table

# Panels per picture; more go to the next one.
_MOST_PANELS = 6
_PROBES = {
    "ridge": "a ridge probe",
    "logistic": "a multinomial logistic probe",
    "knn": "a k-NN probe",
    "centroid": "the nearest class mean",
}
_POOLED = {"mean": "mean-pooled activations", "prefix": "prefix tokens"}


def probe_section(results: Sequence[ProbeResult]) -> list[Section]:
    """Probe accuracy by layer, one section per kind of probe."""
    methods = dict.fromkeys(r.method for r in results)
    sections = []
    for method in methods:
        chosen = [r for r in results if r.method == method]
        own, raw, frame = networks(chosen), pixels(chosen), table_of(chosen)
        pictures = [_accuracy_picture(chosen)] if own else []
        for chunk in chunks(own, _MOST_PANELS):
            if not (name := chunk[0].path_name):
                continue
            where = "." if one_layer(chunk) else ", for the first, a middle and the last layer."
            pictures.append(
                Picture(
                    partial(probe_paths, chunk),
                    f"Accuracy against {name}{where}",
                    "Solid lines: test images; dashed lines: held-out training images. The circle "
                    f"marks the {name} selected on the latter; ties go to the simplest probe. A "
                    "circle at either end suggests a wider range.",
                    f"Accuracy of {_PROBES[method]} against {name}",
                    name=f"probe-path-{method}-{name_of(chunk[0].model)}",
                )
            )
        hyperparameter = "".join(f"{name}:.3g " for name in ("l2", "k") if name in frame)
        table = folded_table(
            "All probes. low and high: bounds of the 95 % interval.",
            frame,
            f"model trained layer depth:.2f p {hyperparameter}accuracy:.3f low:.3f high:.3f "
            "balanced_accuracy:.3f chance:.3f",
        )
        sentences = [probe_sentence(r) for r in own]
        sentences += [
            f"Raw pixels: {accuracy_text(r, 0)}; chance: {percent(r.chance)} (n = {r.n_test})."
            for r in raw
        ]
        title = "Probe accuracy by layer" + (f": {_PROBES[method]}" if len(methods) > 1 else "")
        anchor = "probes" if method == "ridge" or len(methods) == 1 else f"probes-{method}"
        warning = untrained_warning(r.model for r in own)
        sections.append(Section(anchor, title, tuple(sentences), (*pictures, table), warning))
    return sections


def _accuracy_picture(results: Sequence[ProbeResult]) -> Picture:
    first, alone = networks(results)[0], one_layer(results)
    probe, pooled = _PROBES[first.method], _POOLED.get(first.reduce, "activations")
    bands, baselines, raw = (
        ("Bars", "Open markers", "Black")
        if alone
        else ("Bands", "Dotted lines with open markers", "The dashed line")
    )
    reading = (
        f"{bands} are 95 % Wilson intervals over the test images; the grey line is chance, the "
        "frequency of the largest class."
    )
    if any(r.untrained for r in results):
        reading += (
            f" {baselines} are the untrained baseline: the same architecture with re-initialised "
            "weights."
        )
    if pixels(results):
        reading += f" {raw} is the same probe on raw pixels."
    if first.path_name:
        reading += (
            f" The {first.path_name} is selected by accuracy on held-out training images, never on "
            "the test images."
        )
    return Picture(
        partial(probe_curves, results),
        f"Accuracy of {probe} on {pooled} after {layer_names(results) if alone else 'each layer'}: "
        f"trained on {first.n_train} images, tested on {first.n_test} others ({first.classes} "
        "classes).",
        reading,
        "Probe accuracy per network" if alone else "Probe accuracy against relative depth",
        name=f"probe-accuracy-{first.method}",
    )


def few_shot_section(results: Sequence[FewShotResult]) -> list[Section]:
    """Accuracy with few training images per class."""
    own = networks(results)
    first, alone = (own or results)[0], one_layer(results)
    where = (
        f"After {layer_names(results)}."
        if alone
        else (
            "Left: after the last layer. Right: by depth, for the largest number of images per "
            "class."
        )
    )
    reading = (
        f"Lines are means over {first.seeds} draws of the training images; bands are 95 % "
        "intervals over both draws and test images; the grey line is chance."
    )
    if any(r.untrained for r in results):
        reading += " Dotted lines with open markers are untrained baselines."
    if pixels(results):
        reading += " The dashed line is raw pixels."
    picture = Picture(
        partial(few_shot_curves, results),
        f"Accuracy of probes trained on {join(map(str, first.shots))} images per class, tested on "
        f"{first.n_test} images ({first.classes} classes): {first.estimator}. {where}",
        reading,
        "Few-shot accuracy against images per class"
        + ("" if alone else ", and against relative depth"),
        name="probe-few-shot",
    )
    table = folded_table(
        "All few-shot probes. low and high: bounds of the 95 % interval.",
        table_of(results),
        "model trained layer depth:.2f shots seeds accuracy:.3f low:.3f high:.3f chance:.3f",
    )
    content: tuple[Picture | Table, ...] = (picture, table) if own else (table,)
    sentences, warning = (
        tuple(map(few_shot_sentence, results)),
        untrained_warning(r.model for r in own),
    )
    return [Section("few-shot", "Few-shot accuracy", sentences, content, warning)]


def confusion_section(results: Sequence[ConfusionMatrix]) -> list[Section]:
    """Confusion between classes after the last layer."""
    pictures = []
    for chunk in chunks(results, 4):
        names = join(name_of(r.model) for r in chunk)
        pictures.append(
            Picture(
                partial(confusion_heatmaps, chunk),
                f"Predictions of {_PROBES.get(chunk[0].method, 'the probe')} after the last layer "
                "of each network, as percentages of the test images of the true class.",
                "Correct predictions lie on the diagonal. A bright cell off the diagonal is a "
                "class (row) often predicted as another (column).",
                f"Confusion matrices of {names}",
                name=f"probe-confusion-{name_of(chunk[0].model)}",
            )
        )
    by_classes: dict[tuple[str, ...], list[ConfusionMatrix]] = {}
    for result in results:
        by_classes.setdefault(result.class_names, []).append(result)
    for same in by_classes.values():
        names = join(name_of(r.model) for r in same)
        pictures.append(
            Picture(
                partial(class_accuracy, same),
                "Test accuracy per class after the last layer of each network.",
                "Bars are 95 % Wilson intervals over the test images of the class; classes with "
                "the highest accuracy are on top.",
                f"Accuracy per class of {names}",
                name=f"probe-classes-{name_of(same[0].model)}",
            )
        )
    table = Table(
        "All layers and classes. low and high: bounds of the 95 % interval of the accuracy.",
        pd.concat([r.per_class() for r in results], ignore_index=True),
        dict.fromkeys(("accuracy", "low", "high", "precision"), "{:.3f}") | {"depth": "{:.2f}"},
        folded=True,
    )
    sentences, warning = (
        tuple(map(confusion_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [
        Section("confusion", "Confusion between classes", sentences, (*pictures, table), warning)
    ]


def calibration_section(results: Sequence[Calibration]) -> list[Section]:
    """Whether the confidence of a probe matches its accuracy."""
    first = results[0]
    pictures = [
        Picture(
            partial(reliability_diagrams, chunk),
            "Accuracy against confidence of the predictions after the last layer; "
            f"{chunk[0].source}; n = {chunk[0].n_test}.",
            "A calibrated probe lies on the diagonal, an overconfident one below it. Error bars "
            "are 95 % Wilson intervals; columns are the percentage of images in each bin. ECE "
            "exceeds 0 even for calibrated predictions, since bins hold few images: the second "
            f"number is its mean over {first.resamples} simulations of calibrated predictions.",
            f"Reliability diagrams of {join(name_of(r.model) for r in chunk)}",
            name=f"probe-calibration-{name_of(chunk[0].model)}",
        )
        for chunk in chunks(results, _MOST_PANELS)
    ]
    table = folded_table(
        "All layers. ece_null: expected ECE of perfectly calibrated predictions with the same n.",
        table_of(results),
        "model trained layer depth:.2f ece:.3f ece_null:.3f ece_null_high:.3f brier:.3f nll:.3f "
        "mean_confidence:.3f mean_accuracy:.3f temperature:.3g n_test",
    )
    sentences, warning = (
        tuple(map(calibration_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [Section("calibration", "Probe calibration", sentences, (*pictures, table), warning)]
