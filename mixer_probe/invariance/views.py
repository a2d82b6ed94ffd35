"""The report on distortions: examples, accuracy, robustness by architecture, error consistency, representation shift."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import FAMILIES, images_text, interval, join, name_of, number, percent, points, untrained_warning
from mixer_probe.invariance import (
    ArchitectureComparison,
    DistortionAccuracy,
    DistortionExamples,
    ErrorConsistency,
    RepresentationShift,
)
from mixer_probe.invariance.figures import (
    architecture_dots,
    distortion_curves,
    distortion_pictures,
    error_consistency_heatmaps,
    error_consistency_pairs,
    representation_shift_curves,
    telling_rows,
)
from mixer_probe.stats.claims import LEVEL, extremes_differ
from mixer_probe.stats.differences import difference_p

# Pictures of photographs are large: one is enough there.
_MOST_PIXELS = 64
_MOST_DISTORTIONS = 9
_SHARES = ("accuracy", "drop", "kept", "agreement", "agreement_by_chance", "chance")


def examples_section(results: Sequence[DistortionExamples]) -> list[Section]:
    """What the distorted images look like."""
    first = results[0]
    shown = range(len(first.ids) if first.pixels.shape[2] <= _MOST_PIXELS else 1)
    pictures = [_example_picture(first, image) for image in shown]
    table = Table("The distortions.", first.to_frame(), {"strength": "{:g}"}, folded=True)
    said = (
        "Distortions act on the input pixels, after resizing and before normalisation. Shuffles and cyclic shifts change no "
        "pixel "
        "value and are exactly invertible. Each image has its own random order unless the distortion is marked as shared.",
    )
    return [Section("distortion-examples", "Example distortions", said, (*pictures, table))]


def _example_picture(result: DistortionExamples, image: int) -> Picture:
    height, width = result.pixels.shape[2:4]
    return Picture(
        partial(distortion_pictures, result, image),
        f"Image {result.ids[image]} of {result.images.name} at {height}×{width} px, undistorted and under every distortion.",
        "Rows: kinds of distortion, from mild to severe. Values outside the displayable range, which filters can produce, are "
        "clipped in this figure but not in the network input.",
        f"Image {result.ids[image]} under distortions",
        vector=False,
        name=f"distorted-image-{image}",
        folded=image > 0,
    )


# -- accuracy ----------------------------------------------------------------------------------------------------------


def distortion_section(results: Sequence[DistortionAccuracy]) -> list[Section]:
    """Accuracy of each network under distortions."""
    content: list[Picture | Table] = []
    able = [r for r in results if r.distortions]
    if able:
        content += [_accuracy_picture(able), _agreement_picture(able)]
    formats = {name + end: "{:.3f}" for name in _SHARES for end in ("", "_low", "_high")}
    columns = ["model", "distortion", "accuracy", "accuracy_low", "accuracy_high", "drop", "drop_low", "drop_high", "kept"]
    columns += ["kept_low", "kept_high", "agreement", "agreement_by_chance", "p_mcnemar", "chance", "n"]
    caption = (
        "Every network and distortion: accuracy (Wilson interval), drop relative to the undistorted images (Tango's interval for "
        "paired proportions; McNemar's exact p), retained fraction of the accuracy above chance (delta method), and agreement "
        "with the prediction on the undistorted image."
    )
    content.append(Table(caption, table_of(results)[columns], formats | {"p_mcnemar": "{:.1e}"}, folded=True))
    sentences = tuple(_accuracy_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("distortions", "Accuracy under distortions", sentences, tuple(content), warning)]


def _accuracy_picture(results: Sequence[DistortionAccuracy]) -> Picture:
    first = results[0]
    return Picture(
        partial(distortion_curves, results),
        f"Accuracy of frozen networks on {images_text(first.images)}, undistorted (“none”) and distorted.",
        "Panels: kinds of distortion, more severe to the right. Bands: 95 % Wilson intervals over images. Grey line: chance, the "
        "fraction of images in the most frequent class. A flat line indicates invariance. Shuffling measures reliance on the "
        "arrangement of patches (across patches) or on the texture inside them (within patches).",
        "Accuracy against the strength of each distortion",
        name="distortion-accuracy",
    )


def _agreement_picture(results: Sequence[DistortionAccuracy]) -> Picture:
    return Picture(
        partial(distortion_curves, results, "agreement"),
        "Fraction of images with the same predicted class as for the undistorted image, whether correct or not.",
        "Agreement requires no labels, and also falls when errors move to other images at equal accuracy. Bands: 95 % Wilson "
        "intervals. Grey line: agreement expected of independent predictions with the same class frequencies, averaged over "
        "networks.",
        "Agreement with the prediction for the undistorted image, against the strength of each distortion",
        name="distortion-agreement",
        folded=True,
    )


def _accuracy_sentence(result: DistortionAccuracy) -> str:
    plain = interval(result.accuracy.value[0], result.accuracy.low[0], result.accuracy.high[0])
    head = (
        f"{name_of(result.model)} has an accuracy of {plain} on undistorted images (n = {result.n}, chance "
        f"{percent(result.chance)})"
    )
    if not result.reads_class:
        return f"{head}, which is not above chance, so no drop can be measured."
    parts = [text for text in (_unmoved(result), _worst(result), _at_chance(result)) if text]
    return ". ".join([head, *parts]) + "."


def _unmoved(result: DistortionAccuracy) -> str:
    """Kinds under which the drop is not significant at any strength."""
    same = [kind for kind in result.kinds if all(result.drop.low[i] <= 0 <= result.drop.high[i] for i in result.of_kind(kind))]
    if not same:
        return ""
    rows = [i for kind in same for i in result.of_kind(kind)]
    largest = max(rows, key=lambda i: result.drop.high[i])
    drop = points(*(part[largest] for part in (result.drop.value, result.drop.low, result.drop.high)))
    what = "any distortion" if len(same) == len(result.kinds) else join(same)
    return f"The drop under {what} is not significantly different from zero (at most {drop})"


def _worst(result: DistortionAccuracy) -> str:
    if not result.distortions:
        return ""
    worst = int(result.drop.value.argmax())
    # The largest of so many drops (Bonferroni).
    p = difference_p(0.0, 0.0, 0.0, *(part[worst] for part in (result.drop.value, result.drop.low, result.drop.high)))
    if not result.drop.low[worst] > 0 or float(p) * len(result.distortions) > LEVEL:
        return ""
    drop = points(result.drop.value[worst], result.drop.low[worst], result.drop.high[worst])
    kept = interval(result.kept.value[worst], result.kept.low[worst], result.kept.high[worst])
    return f"The largest drop is {drop}, under {result.distortions[worst].label}; {kept} of the accuracy above chance is retained"


def _at_chance(result: DistortionAccuracy) -> str:
    """The mildest distortion of each kind that leaves an accuracy that is not significantly above chance."""
    found = []
    for kind in result.kinds:
        gone = [i for i in result.of_kind(kind) if result.accuracy.low[i + 1] <= result.chance]
        if gone:
            found.append(result.distortions[gone[0]].label)
    return f"Accuracy is not distinguishable from chance at and beyond {join(found)}" if found else ""


# -- architectures -----------------------------------------------------------------------------------------------------


def architecture_section(results: Sequence[ArchitectureComparison]) -> list[Section]:
    """Robustness by architecture."""
    first = results[0]
    picture = Picture(
        partial(architecture_dots, first),
        "Retained fraction of the accuracy above chance, (distorted − chance) / (undistorted − chance), per family, averaged "
        "over the "
        f"strengths of a kind and over its networks ({join(map(name_of_network, first.networks))}), n = {first.n} images.",
        "100 % (dotted): no loss; 0: chance. Bars: 95 % intervals over images, for all networks jointly; they do not cover "
        "variation "
        "between training seeds, which the small open markers (single networks) indicate. Networks of a family may share a "
        "training recipe, so effects of its data augmentation are attributed to the family.",
        "Retained accuracy of each family under each kind of distortion",
        name="architectures-distortions",
    )
    names = ("kept", "low", "high", "lowest_network", "highest_network", "behind_best", "behind_low", "behind_high")
    caption = (
        "Every kind and family; the last columns give the gap to the family with the highest retained accuracy, with its "
        "interval over images."
    )
    table = Table(caption, first.to_frame(), dict.fromkeys(names, "{:.3f}"), folded=True)
    sentences = tuple(_kind_sentence(first, k) for k in range(len(first.kinds)))
    return [Section("architectures-distortions", "Robustness by architecture", sentences, (picture, table))]


def name_of_network(name: str) -> str:
    """A network's name as sentences call it."""
    return name.removeprefix("zoo:")


def _kind_sentence(result: ArchitectureComparison, k: int) -> str:
    order = sorted(range(len(result.groups)), key=lambda g: -result.kept[g, k])
    kept = [f"{_group(result, g)} {interval(result.kept[g, k], result.low[g, k], result.high[g, k])}" for g in order]
    head = (
        f"{result.kinds[k][0].upper()}{result.kinds[k][1:]} ({result.strengths[k]}), retained fraction of the accuracy above "
        "chance:"
    )
    said = f"{head} {join(kept)} (n = {result.n} images)"
    if len(order) < 2:
        return said + "."
    best, worst = order[0], order[-1]
    bounds = [float(part[best, worst, k]) for part in (result.gap, result.gap_low, result.gap_high)]
    gap, pairs = points(*bounds), math.comb(len(order), 2)
    # The largest gap of so many pairs of families (Bonferroni).
    if not bounds[1] > 0 or float(difference_p(0.0, 0.0, 0.0, *bounds)) * pairs > LEVEL:
        few = f" as the largest of {pairs} gaps" if bounds[1] > 0 else ""
        return f"{said}; the gap between the highest and the lowest, {gap}, is not significant{few}."
    seeds = result.by_network
    apart = seeds[result.networks_of(result.groups[best]), k].min() > seeds[result.networks_of(result.groups[worst]), k].max()
    several = min(len(result.networks_of(result.groups[g])) for g in (best, worst)) > 1
    every = " in every pair of networks" if apart and several else ""
    but = ", although individual networks overlap" if several and not apart else ""
    return f"{said}; {_group(result, worst)} retains less than {_group(result, best)}{every}, by {gap}{but}."


def _group(result: ArchitectureComparison, g: int) -> str:
    return FAMILIES.get(result.groups[g], result.groups[g])


# -- error consistency -------------------------------------------------------------------------------------------------


def consistency_section(results: Sequence[ErrorConsistency]) -> list[Section]:
    """Error consistency between networks."""
    first = results[0]
    pictures = []
    if np.isfinite(first.kappa[0][~np.eye(len(first.models), dtype=bool)]).any():
        pictures = [_pairs_picture(first), _maps_picture(first)]
    names = ("accuracy_a", "accuracy_b", "kappa", "low", "high", "null_low", "null_high", "least", "most", "share_of_most")
    caption = (
        "Every pair of networks, on undistorted images and under every distortion; share_of_most: kappa divided by its "
        "largest possible value."
    )
    table = Table(caption, first.to_frame(), dict.fromkeys((*names, "observed", "expected"), "{:.3f}"), folded=True)
    sentences = tuple(text for text in _consistency_sentences(first) if text)
    warning = untrained_warning(first.models)
    return [Section("error-consistency", "Error consistency between networks", sentences, (*pictures, table), warning)]


def _pairs_picture(result: ErrorConsistency) -> Picture:
    return Picture(
        partial(error_consistency_pairs, result),
        f"Error consistency (Geirhos et al. 2020) of every pair of networks on {images_text(result.images)}, undistorted.",
        "Kappa is 1 if two networks are correct on exactly the same images, and 0 if their errors are independent. Bars: 95 % "
        "intervals over images. Grey bands: 95 % range for independent errors at these accuracies. Orange ticks: largest kappa "
        "that the two accuracies allow.",
        "Error consistency of pairs of networks with its largest possible value",
        name="error-consistency-pairs",
    )


def _maps_picture(result: ErrorConsistency) -> Picture:
    rows = telling_rows(result)
    more = ", and for each kind the most severe distortion under which every network is above chance" if len(rows) > 1 else ""
    return Picture(
        partial(error_consistency_heatmaps, result),
        f"Error consistency of every pair of networks, on undistorted images{more}.",
        "Small numbers: largest kappa that the accuracies allow. Blocks along the diagonal are groups of networks with "
        "consistent "
        "errors.",
        "Heat maps of error consistency on undistorted and distorted images",
        name="error-consistency-maps",
    )


def _consistency_sentences(result: ErrorConsistency) -> list[str]:
    i, j = np.triu_indices(len(result.models), 1)
    values = result.kappa[0, i, j]
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return ["Error consistency is undefined for every pair: each network is correct on all images, or on none."]
    best, worst = known[values[known].argmax()], known[values[known].argmin()]
    intervals = [Number("", values[k], result.low[0, i[k], j[k]], result.high[0, i[k], j[k]]) for k in known]
    if len(known) > 1 and not extremes_differ(intervals):
        said = [
            f"On undistorted images, the kappas of {len(known)} pairs are {_range(values[known])}, with no significant "
            "difference "
            f"between pairs (n = {result.n})."
        ]
        return [*said, _kinship(result, i[known], j[known])]
    most = "have the most consistent errors" if len(known) > 1 else ""
    said = [f"On undistorted images, {_pair_text(result, 0, i[best], j[best], most)}."]
    if best != worst:
        said.append(f"The least consistent errors are those of {_pair_text(result, 0, i[worst], j[worst], '')}.")
    return [*said, _kinship(result, i[known], j[known])]


def _pair_text(result: ErrorConsistency, row: int, a: int, b: int, verb: str) -> str:
    value = number(result.kappa[row, a, b], result.low[row, a, b], result.high[row, a, b])
    null = f"{result.null_low[row, a, b]:.2f} to {result.null_high[row, a, b]:.2f}"
    names = f"{name_of(result.models[a])} and {name_of(result.models[b])}"
    verb = f" {verb}" if verb else ""
    return f"{names}{verb}: kappa {value}, maximum {result.most[row, a, b]:.2f} (n = {result.n}; independent errors: {null})"


def _kinship(result: ErrorConsistency, i: np.ndarray, j: np.ndarray) -> str:
    """Kappas of pairs within a family against those between families, on undistorted images."""
    kin = np.array([result.models[a].family == result.models[b].family for a, b in zip(i, j)])
    values = result.kappa[0, i, j]
    if kin.all() or not kin.any():
        return ""
    inside, across = _range(values[kin]), _range(values[~kin])
    groups = _groupings([m.family for m in (result.models[k] for k in sorted({*i.tolist(), *j.tolist()}))])
    verdict = "the family alone does not determine error consistency"
    if values[kin].min() > values[~kin].max():
        # Of all ways to group the networks at most one has this order, so that its p-value is one over their number.
        verdict = (
            f"every pair within a family is more consistent than any pair between families (p = {1 / groups:.2g})"
            if 1 / groups <= LEVEL
            else f"this order occurs by chance in one of {groups} groupings of the networks, too few groupings for a claim"
        )
    return (
        f"Pairs within a family have kappas of {inside}, pairs between families {across}: {verdict} (undistorted images, n = "
        f"{result.n})."
    )


def _groupings(families: Sequence[str]) -> int:
    """In how many ways so many networks fall into groups of these sizes."""
    sizes = list(Counter(families).values())
    same = math.prod(math.factorial(count) for count in Counter(sizes).values())
    return math.factorial(len(families)) // math.prod(map(math.factorial, sizes)) // same


def _range(values: Iterable[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


# -- representations ---------------------------------------------------------------------------------------------------


def shift_section(results: Sequence[RepresentationShift]) -> list[Section]:
    """Representation shift under distortions."""
    distortions = list(dict.fromkeys(d for r in results for d in r.distortions))
    pictures = []
    for part in chunks(distortions, _MOST_DISTORTIONS):
        shown = [r for r in results if set(part) & set(r.distortions)]
        pictures += [_shift_picture(shown, "cka"), _shift_picture(shown, "cosine")]
    names = ("cka", "cka_low", "cka_high", "cka_null", "cosine", "cosine_low", "cosine_high", "cosine_null")
    table = Table(
        "Every network, distortion and layer.", table_of(results), {**dict.fromkeys(names, "{:.3f}"), "depth": "{:.2f}"}, True
    )
    sentences = tuple(_shift_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    title = "Representation shift under distortions"
    return [Section("representation-shift", title, sentences, (*pictures, table), warning)]


def _shift_picture(results: Sequence[RepresentationShift], measure: str) -> Picture:
    first = results[0]
    about = {
        "cka": "Unbiased linear CKA between representations of undistorted and distorted images, per layer",
        "cosine": "Cosine similarity between representations of an image and of its distorted copy, per layer, mean over images",
    }[measure]
    reading = {
        "cka": "1: the similarity structure of the images is unchanged. Bands: 95 % intervals over images. Grey lines: "
        "95th percentile of random pairings of undistorted and distorted images.",
        "cosine": "1: the representation of every image is unchanged up to its distance from the mean. Grey lines: mean "
        "cosine with other distorted images; values above 0 indicate that the distortion shifts all images in the same "
        "direction.",
    }[measure]
    return Picture(
        partial(representation_shift_curves, results, "cka" if measure == "cka" else "cosine"),
        f"{about} (means over positions), n = {first.n} images.",
        reading,
        f"{measure} between undistorted and distorted representations against depth",
        name=f"representation-shift-{measure}",
        folded=measure == "cosine",
    )


def _shift_sentence(result: RepresentationShift) -> str:
    return (
        f"{name_of(result.model)}: {'; '.join(_shift_text(result, d) for d in range(len(result.distortions)))} (n = {result.n})."
    )


def _shift_text(result: RepresentationShift, d: int) -> str:
    label, cka = result.distortions[d].label, result.cka[d]
    known = np.flatnonzero(np.isfinite(cka))
    if not len(known):
        return f"{label}: CKA is undefined"
    last, low = known[-1], known[cka[known].argmin()]
    said = f"{label}: CKA {number(cka[last], result.cka_low[d, last], result.cka_high[d, last])} after {result.layers[last].name}"
    ends = [float(part[d, i]) for i in (low, last) for part in (result.cka, result.cka_low, result.cka_high)]
    # The lowest of so many layers, under each of the distortions (Bonferroni).
    if low != last and float(difference_p(*ends)) * (len(known) - 1) * len(result.distortions) <= LEVEL:
        said += f", lower after {result.layers[low].name} ({number(cka[low], result.cka_low[d, low], result.cka_high[d, low])})"
    return said
