"""The report on distortions: what they look like and cost, which architecture loses what, whether networks fail together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import FAMILIES, images_text, join, name_of, percent, untrained_warning
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
from mixer_probe.probing.views.probes import chunks, interval, number, points, table_of
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
        "Distortions act on the pixels of a network's input, after resizing and before normalisation. Shuffles and cyclic shifts "
        "change no value and can be undone bit for bit; each image has its own random order, where all have one it is said.",
    )
    return [Section("distortion-examples", "What the distortions do", said, (*pictures, table))]


def _example_picture(result: DistortionExamples, image: int) -> Picture:
    height, width = result.pixels.shape[2:4]
    return Picture(
        distortion_pictures(result, image),
        f"Image {result.ids[image]} of {result.images.name} at {height}×{width} px, plain and under every distortion.",
        "A row is one kind of distortion, from mild to hard. Values beyond black and white, which filters make, are clipped here "
        "and not for the networks.",
        f"Image {result.ids[image]} under distortions",
        vector=False,
        name=f"distorted-image-{image}",
        folded=image > 0,
    )


# -- accuracy ----------------------------------------------------------------------------------------------------------


def distortion_section(results: Sequence[DistortionAccuracy]) -> list[Section]:
    """What distortions cost each network."""
    content: list[Picture | Table] = []
    able = [r for r in results if r.distortions]
    if able:
        content += [_accuracy_picture(able), _agreement_picture(able)]
    formats = {name + end: "{:.3f}" for name in _SHARES for end in ("", "_low", "_high")}
    columns = ["model", "distortion", "accuracy", "accuracy_low", "accuracy_high", "drop", "drop_low", "drop_high", "kept"]
    columns += ["kept_low", "kept_high", "agreement", "agreement_by_chance", "p_mcnemar", "chance", "n"]
    caption = (
        "Every network and distortion: accuracy (Wilson interval), drop against the plain images (Tango's interval for paired "
        "shares; McNemar's exact p), what is kept of the accuracy above chance (delta method), and agreement with the plain "
        "prediction."
    )
    content.append(Table(caption, table_of(results)[columns], formats | {"p_mcnemar": "{:.1e}"}, folded=True))
    sentences = tuple(_accuracy_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("distortions", "What distortions cost", sentences, tuple(content), warning)]


def _accuracy_picture(results: Sequence[DistortionAccuracy]) -> Picture:
    first = results[0]
    return Picture(
        distortion_curves(results),
        f"Accuracy of frozen networks on {images_text(first.images)}, plain (“none”) and distorted.",
        "Every panel is one kind of distortion, harder to the right. Bands are 95 % Wilson intervals over images, the grey line "
        "is chance, the share of the commonest class. A flat line is an invariance of the network; shuffles show what a network "
        "asks of the arrangement of patches (across) or of the texture inside them (within).",
        "Accuracy against the strength of each distortion",
        name="distortion-accuracy",
    )


def _agreement_picture(results: Sequence[DistortionAccuracy]) -> Picture:
    return Picture(
        distortion_curves(results, "agreement"),
        "Share of images for which the network names the same class as for the plain image, right or wrong.",
        "It needs no labels, and it falls where errors only change places. Bands are 95 % Wilson intervals; the grey line is "
        "what independent predictions that name each class as often would give, averaged over networks.",
        "Agreement with the prediction for the plain image, against the strength of each distortion",
        name="distortion-agreement",
        folded=True,
    )


def _accuracy_sentence(result: DistortionAccuracy) -> str:
    plain = interval(result.accuracy.value[0], result.accuracy.low[0], result.accuracy.high[0])
    head = f"{name_of(result.model)} is right on {plain} of the plain images (n = {result.n}, chance {percent(result.chance)})"
    if not result.reads_class:
        return f"{head}, which is not above chance: there is no accuracy that a distortion could take."
    parts = [text for text in (_unmoved(result), _worst(result), _at_chance(result)) if text]
    return ". ".join([head, *parts]) + "."


def _unmoved(result: DistortionAccuracy) -> str:
    """Kinds under which the network loses nothing that can be told from zero, at any strength."""
    same = [kind for kind in result.kinds if all(result.drop.low[i] <= 0 <= result.drop.high[i] for i in result.of_kind(kind))]
    if not same:
        return ""
    rows = [i for kind in same for i in result.of_kind(kind)]
    largest = max(rows, key=lambda i: result.drop.high[i])
    drop = points(*(part[largest] for part in (result.drop.value, result.drop.low, result.drop.high)))
    what = "anything" if len(same) == len(result.kinds) else join(same)
    return f"Under {what} it loses nothing that could be told from zero (at most {drop})"


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
    return f"It loses most under {result.distortions[worst].label}: {drop}, which leaves {kept} of its margin over chance"


def _at_chance(result: DistortionAccuracy) -> str:
    """The mildest distortion of each kind that leaves nothing that could be told from chance."""
    found = []
    for kind in result.kinds:
        gone = [i for i in result.of_kind(kind) if result.accuracy.low[i + 1] <= result.chance]
        if gone:
            found.append(result.distortions[gone[0]].label)
    return f"Not distinguishable from chance from {join(found)} on" if found else ""


# -- architectures -----------------------------------------------------------------------------------------------------


def architecture_section(results: Sequence[ArchitectureComparison]) -> list[Section]:
    """Which architecture loses what."""
    first = results[0]
    picture = Picture(
        architecture_dots(first),
        "What each family keeps of its accuracy above chance, (distorted − chance) / (plain − chance), averaged over the "
        f"strengths of a kind and over its networks ({join(map(name_of_network, first.networks))}), n = {first.n} images.",
        "100 % (dotted) is no loss, 0 is chance. Bars are 95 % intervals over images, for all networks at "
        "once; they do not speak of other training seeds, of which the small open marks, single networks, give an idea. "
        "Networks of a family may share a training recipe, too: what its augmentation taught them counts for the family here.",
        "Accuracy kept by each family under each kind of distortion",
        name="architectures-distortions",
    )
    names = ("kept", "low", "high", "lowest_network", "highest_network", "behind_best", "behind_low", "behind_high")
    caption = "Every kind and family; the last columns are the gap to the family that keeps most, with its interval over images."
    table = Table(caption, first.to_frame(), dict.fromkeys(names, "{:.3f}"), folded=True)
    sentences = tuple(_kind_sentence(first, k) for k in range(len(first.kinds)))
    return [Section("architectures-distortions", "Which architecture loses what", sentences, (picture, table))]


def name_of_network(name: str) -> str:
    """A network's name as sentences call it."""
    return name.removeprefix("zoo:")


def _kind_sentence(result: ArchitectureComparison, k: int) -> str:
    order = sorted(range(len(result.groups)), key=lambda g: -result.kept[g, k])
    kept = [f"{_group(result, g)} {interval(result.kept[g, k], result.low[g, k], result.high[g, k])}" for g in order]
    head = f"{result.kinds[k][0].upper()}{result.kinds[k][1:]} ({result.strengths[k]}): of the accuracy above chance"
    said = f"{head} {join(kept)} {'stay' if len(order) > 1 else 'stays'} (n = {result.n} images)"
    if len(order) < 2:
        return said + "."
    best, worst = order[0], order[-1]
    bounds = [float(part[best, worst, k]) for part in (result.gap, result.gap_low, result.gap_high)]
    gap, pairs = points(*bounds), math.comb(len(order), 2)
    # The largest gap of so many pairs of families (Bonferroni).
    if not bounds[1] > 0 or float(difference_p(0.0, 0.0, 0.0, *bounds)) * pairs > LEVEL:
        few = f" as the largest of {pairs}" if bounds[1] > 0 else ""
        return f"{said}; the gap between first and last, {gap}, cannot be told from zero{few}."
    seeds = result.by_network
    apart = seeds[result.networks_of(result.groups[best]), k].min() > seeds[result.networks_of(result.groups[worst]), k].max()
    several = min(len(result.networks_of(result.groups[g])) for g in (best, worst)) > 1
    every = " in every network" if apart and several else ""
    but = ", though single networks overlap" if several and not apart else ""
    return f"{said}; {_group(result, worst)} loses more than {_group(result, best)}{every}, by {gap}{but}."


def _group(result: ArchitectureComparison, g: int) -> str:
    return FAMILIES.get(result.groups[g], result.groups[g])


# -- error consistency -------------------------------------------------------------------------------------------------


def consistency_section(results: Sequence[ErrorConsistency]) -> list[Section]:
    """Whether networks fail on the same images."""
    first = results[0]
    pictures = []
    if np.isfinite(first.kappa[0][~np.eye(len(first.models), dtype=bool)]).any():
        pictures = [_pairs_picture(first), _maps_picture(first)]
    names = ("accuracy_a", "accuracy_b", "kappa", "low", "high", "null_low", "null_high", "least", "most", "share_of_most")
    caption = (
        "Every pair of networks, on plain images and under every distortion; share of most is kappa over the largest possible."
    )
    table = Table(caption, first.to_frame(), dict.fromkeys((*names, "observed", "expected"), "{:.3f}"), folded=True)
    sentences = tuple(text for text in _consistency_sentences(first) if text)
    warning = untrained_warning(first.models)
    return [Section("error-consistency", "Whether networks fail on the same images", sentences, (*pictures, table), warning)]


def _pairs_picture(result: ErrorConsistency) -> Picture:
    return Picture(
        error_consistency_pairs(result),
        f"Error consistency (Geirhos et al. 2020) of every pair of networks on {images_text(result.images)}, undistorted.",
        "Kappa is 1 if two networks are right and wrong on the same images, and 0 if their errors are independent. Bars are 95 % "
        "intervals over images. Grey bands hold 95 % of what independent errors of networks with these accuracies "
        "give; orange ticks are the largest kappa that the two accuracies allow.",
        "Error consistency of pairs of networks with its largest possible value",
        name="error-consistency-pairs",
    )


def _maps_picture(result: ErrorConsistency) -> Picture:
    rows = telling_rows(result)
    more = " and of each kind the hardest distortion under which every network is above chance" if len(rows) > 1 else ""
    return Picture(
        error_consistency_heatmaps(result),
        f"Error consistency of every two networks: plain images{more}.",
        "Small numbers are the largest kappa that the accuracies allow. Blocks along the diagonal are networks that fail "
        "together.",
        "Heat maps of error consistency on plain and distorted images",
        name="error-consistency-maps",
    )


def _consistency_sentences(result: ErrorConsistency) -> list[str]:
    i, j = np.triu_indices(len(result.models), 1)
    values = result.kappa[0, i, j]
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return ["No two networks have errors to compare: each is right on all images, or on none."]
    best, worst = known[values[known].argmax()], known[values[known].argmin()]
    intervals = [Number("", values[k], result.low[0, i[k], j[k]], result.high[0, i[k], j[k]]) for k in known]
    if len(known) > 1 and not extremes_differ(intervals):
        said = [
            f"On plain images kappas of {len(known)} pairs are {_range(values[known])}, with no difference beyond the "
            f"intervals (n = {result.n})."
        ]
        return [*said, _kinship(result, i[known], j[known])]
    most = "fail together most" if len(known) > 1 else ""
    said = [f"On plain images {_pair_text(result, 0, i[best], j[best], most)}."]
    if best != worst:
        said.append(f"Least alike are the errors of {_pair_text(result, 0, i[worst], j[worst], '')}.")
    return [*said, _kinship(result, i[known], j[known])]


def _pair_text(result: ErrorConsistency, row: int, a: int, b: int, verb: str) -> str:
    value = number(result.kappa[row, a, b], result.low[row, a, b], result.high[row, a, b])
    null = f"{result.null_low[row, a, b]:.2f} to {result.null_high[row, a, b]:.2f}"
    names = f"{name_of(result.models[a])} and {name_of(result.models[b])}"
    verb = f" {verb}" if verb else ""
    return f"{names}{verb}: kappa {value}, of at most {result.most[row, a, b]:.2f} (n = {result.n}; independent errors: {null})"


def _kinship(result: ErrorConsistency, i: np.ndarray, j: np.ndarray) -> str:
    """Kappas of pairs inside a family against those across, on plain images."""
    kin = np.array([result.models[a].family == result.models[b].family for a, b in zip(i, j)])
    values = result.kappa[0, i, j]
    if kin.all() or not kin.any():
        return ""
    inside, across = _range(values[kin]), _range(values[~kin])
    groups = _groupings([m.family for m in (result.models[k] for k in sorted({*i.tolist(), *j.tolist()}))])
    verdict = "family alone does not decide who fails together"
    if values[kin].min() > values[~kin].max():
        # Of all ways to group the networks at most one has this order, so that its p-value is one over their number.
        verdict = (
            f"every pair of one family fails together more than any pair of two (p = {1 / groups:.2g})"
            if 1 / groups <= LEVEL
            else f"in this order by chance once in {groups} groupings of as many networks, too few for a claim"
        )
    return (
        f"Pairs of one family have kappas of {inside}, pairs of two families {across}: {verdict} (plain images, n = {result.n})."
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
    """How far distortions move what layers represent."""
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
    title = "How far distortions move representations"
    return [Section("representation-shift", title, sentences, (*pictures, table), warning)]


def _shift_picture(results: Sequence[RepresentationShift], measure: str) -> Picture:
    first = results[0]
    about = {
        "cka": "Unbiased linear CKA of what every layer makes of plain and of distorted images",
        "cosine": "Cosine between what every layer makes of an image and of the same image distorted, mean over images",
    }[measure]
    reading = {
        "cka": "1: the images lie to one another as before. Bands are 95 % intervals over images, grey lines the "
        "95 % quantile of random pairings of plain and distorted images.",
        "cosine": "1: every image stays where it was, apart from its distance to the mean. Grey lines are the mean cosine with "
        "other images distorted; above 0 they say that the distortion moves all images the same way.",
    }[measure]
    return Picture(
        representation_shift_curves(results, "cka" if measure == "cka" else "cosine"),
        f"{about} (means over positions), n = {first.n} images.",
        reading,
        f"{measure} between plain and distorted representations against depth",
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
        return f"{label}: CKA is not defined"
    last, low = known[-1], known[cka[known].argmin()]
    said = f"{label}: CKA {number(cka[last], result.cka_low[d, last], result.cka_high[d, last])} after {result.layers[last].name}"
    ends = [float(part[d, i]) for i in (low, last) for part in (result.cka, result.cka_low, result.cka_high)]
    # The lowest of so many layers, under each of the distortions (Bonferroni).
    if low != last and float(difference_p(*ends)) * (len(known) - 1) * len(result.distortions) <= LEVEL:
        said += f", less after {result.layers[low].name} ({number(cka[low], result.cka_low[d, low], result.cka_high[d, low])})"
    return said
