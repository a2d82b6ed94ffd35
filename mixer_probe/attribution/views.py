"""The report on attributions: maps, faithfulness, the model-randomisation sanity check, agreement, and conductance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from mixer_probe.attribution import (
    Agreement,
    Attribution,
    AttributionPanel,
    Conductance,
    Faithfulness,
    PerturbationCurves,
    RandomisationCheck,
)
from mixer_probe.attribution.curves import GAMES
from mixer_probe.attribution.figures import (
    agreement_matrices,
    attribution_maps,
    conductance_units,
    network_agreement,
    perturbation_figure,
    randomisation_figure,
)
from mixer_probe.attribution.figures.overlays import method_label
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.section import Picture, Section, Table, chunks
from mixer_probe.core.words import images_text, join, name_of, percent, untrained_warning
from mixer_probe.stats import FEWEST, mean_interval, permutation_p

# Rows of maps in one picture, and networks side by side in one.
_MOST_ROWS, _MOST_PANELS = 12, 3
# With more, the pairs of networks are too many for marks and sentences of their own.
_MOST_NETWORKS = 3
_COMPLETE = 0.01
# Level of every claim, over the family that it is picked from.
_LEVEL = 0.05
_DRAWS = 999
# The excess rank correlation below which a map counts as changed by randomised weights, and the rank correlation from which maps
# of different images count as alike.
_SMALL, _ALIKE = 0.1, 0.5


# -- maps --------------------------------------------------------------------------------------------------------------


def panel_section(results: Sequence[AttributionPanel]) -> list[Section]:
    """Attribution maps of one or more networks."""
    pictures = [picture for number, panel in enumerate(results) for picture in _panel_pictures(panel, number)]
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("logit", "logit_difference", "convergence_delta"), "{:.3g}") | {"relative_delta": "{:.2%}"}
    caption = (
        "Every map shown: target and predicted class, logit, logit difference to the baseline, and convergence delta of the map."
    )
    sentences = tuple(text for panel in results for text in (_choice_sentence(panel), *_panel_sentences(panel)))
    warning = untrained_warning(model for r in results for model in r.models)
    table = Table(caption, frame, formats, folded=True)
    return [Section("attributions", "Attribution maps", sentences, (*pictures, table), warning)]


def _panel_pictures(panel: AttributionPanel, number: int) -> Iterator[Picture]:
    networks = list(dict.fromkeys(panel.models))
    per = max(1, _MOST_ROWS // len(networks))
    for part, rows in enumerate(chunks(range(len(panel.ids)), per)):
        shown = panel.take(rows)
        yield Picture(
            partial(attribution_maps, shown),
            f"Attribution maps of {join(name_of(m) for m in networks)} for {_images(len(rows))} of {panel.images.name}, "
            "overlaid on "
            "each image at its original resolution.",
            _panel_reading(panel),
            f"Maps of {len(set(panel.methods))} attribution methods over {_images(len(rows))} for {len(networks)} networks",
            vector=False,
            name=f"attributions-{number}-{part}" if number or part else "attributions",
        )


def _panel_reading(panel: AttributionPanel) -> str:
    signs = {
        signed: [method_label(m) for m, s in zip(panel.methods, panel.signed, strict=True) if s is signed]
        for signed in (True, False)
    }
    said = []
    if signs[True]:
        said.append(
            f"Signed methods ({join(dict.fromkeys(signs[True]))}): red is evidence for the target class, blue against it."
        )
    if signs[False]:
        said.append(f"Unsigned methods ({join(dict.fromkeys(signs[False]))}): yellow marks the highest attribution.")
    said.append(
        "Each map has its own colour scale; magnitudes are not comparable between maps. Blank panels mark methods that are not "
        "available for a network. Labels give the true or target class below each image and each network's prediction beside "
        "its maps."
    )
    return " ".join(said)


def _images(n: int) -> str:
    return "one image" if n == 1 else f"{n} images"


def _choice_sentence(panel: AttributionPanel) -> str:
    record = panel.images
    how = "balanced over classes" if record.classes else "evenly spaced"
    drawn = f", sampled with seed {record.seed}, {how}" if record.limit is not None else ""
    shown = f"; {len(panel.ids)} of them are shown" if len(panel.ids) < panel.chosen_from else ""
    return f"Images: {images_text(record)}{drawn}{shown}. {_explained(panel)}"


def _explained(panel: AttributionPanel) -> str:
    if (panel.labels >= 0).all() and np.array_equal(panel.targets, panel.labels):
        return "Target: the true class."
    if np.array_equal(panel.targets, panel.predicted):
        return "Target: the class that each network predicts."
    one = {name for names in panel.target_names for name in names}
    return f"Target: {one.pop()} for all images." if len(one) == 1 else "Target: a class given per image."


def _panel_sentences(panel: AttributionPanel) -> Iterator[str]:
    columns = list(zip(panel.models, panel.methods, panel.widest_gap, panel.widest_change, panel.empty, strict=True))
    used = list(dict.fromkeys(text for text in panel.baselines if text != "none"))
    if used:
        yield f"Baseline input: {join(used)}{', the same for all networks' if len(used) == 1 else ''}."
    sums = [(model, method, gap) for model, method, gap, *_ in columns if np.isfinite(gap)]
    if sums:
        yield _sum_sentence(sums, panel.chosen_from)
    moves = [(model, method, change) for model, method, _, change, _ in columns if np.isfinite(change)]
    if moves:
        said = ", ".join(f"{percent(change)} ({name_of(model)}, {method_label(method)})" for model, method, change in moves)
        yield (
            "A small convergence delta does not guarantee an exact map, least of all for ReLU networks: more steps may "
            f"change the maps by at most {said}."
        )
    for model, method, _, _, empty in columns:
        if empty:
            yield (
                f"{name_of(model)}: {empty} of {panel.chosen_from} {method_label(method)} maps are zero everywhere and "
                "therefore rank "
                "no patch above another."
            )


def _sum_sentence(sums: Sequence[tuple[ModelRecord, str, float]], n: int) -> str:
    said = ", ".join(f"{percent(gap)} ({name_of(model)}, {method_label(method)})" for model, method, gap in sums)
    verdict = "all maps are" if max(gap for *_, gap in sums) <= _COMPLETE else "not all maps are"
    return (
        f"Completeness: attributions should sum to the logit difference between image and baseline. Over {_images(n)} the "
        f"relative deviations are at most {said}; {verdict} within {percent(_COMPLETE)}."
    )


def attribution_section(results: Sequence[Attribution]) -> list[Section]:
    """Attributions without their images: logits and sums."""
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("logit", "logit_difference", "sum", "convergence_delta"), "{:.3g}") | {"relative_delta": "{:.2%}"}
    sentences = tuple(
        f"{name_of(r.model)}: {method_label(r.method)}, {r.text}; {_images(len(r.ids))}, baseline {r.baseline}." for r in results
    )
    table = Table("Target class, logits and sum of every map.", frame, formats, folded=True)
    return [
        Section(
            "attribution-sums", "Completeness of attributions", sentences, (table,), untrained_warning(r.model for r in results)
        )
    ]


# -- deletion and insertion --------------------------------------------------------------------------------------------


def curves_section(results: Sequence[PerturbationCurves]) -> list[Section]:
    """Deletion and insertion curves."""
    first = results[0]
    pictures = [
        Picture(
            partial(perturbation_figure, chunk),
            f"Deletion and insertion curves. Deletion replaces patches by {first.deletion_baseline}, in decreasing order of "
            f"attribution; insertion starts from {first.insertion_baseline} and restores them in the same order. Mean over "
            f"{_images(len(first.ids))}; bands: 95 % intervals over images.",
            "For a faithful map, the probability falls quickly under deletion and rises quickly under insertion. Dashed grey: "
            "random orders of the same patches, the control for the harm that removing any patch does. Compare each curve with "
            "this control.",
            f"Deletion and insertion curves of {join(name_of(r.model) for r in chunk)}",
            name=f"attribution-curves-{number}" if number else "attribution-curves",
        )
        for number, chunk in enumerate(chunks(results, _MOST_PANELS))
    ]
    columns = ("area", "low", "high", "gain", "gain_low", "gain_high")
    caption = (
        "Area under each curve (deletion: lower is better; insertion: higher is better), and gain over random orders on the "
        "same images."
    )
    table = Table(
        caption, pd.concat([r.to_frame() for r in results], ignore_index=True), dict.fromkeys(columns, "{:.3f}"), folded=True
    )
    sentences = tuple(_game_sentence(r, game) for r in results for game in GAMES)
    warning = untrained_warning(r.model for r in results)
    return [Section("attribution-curves", "Deletion and insertion curves", sentences, (*pictures, table), warning)]


def _few(n: int) -> str:
    """What is said in place of a claim that would rest on too few images."""
    return "" if n >= FEWEST else f"; {_images(n)} are too few for a claim, which requires {FEWEST}"


def _game_sentence(result: PerturbationCurves, game: str) -> str:
    gain = (result.random_area(game) - result.area(game)) * (1 if game == "deletion" else -1)
    order = np.argsort(-gain.mean(1), kind="stable")
    best, n = order[0], len(result.ids)
    mean, low, high = mean_interval(gain[best])
    area = ", ".join(
        f"{word} {_number(values)}"
        for word, values in (("area", result.area(game)[best]), ("random orders", result.random_area(game)))
    )
    head, method = f"{name_of(result.model)}, {game}", method_label(result.methods[best])
    # The best was picked among all: its interval against random orders is that of a family.
    if _few(n) or not mean_interval(gain[best], level=1 - _LEVEL / len(gain))[1] > 0:
        told = _few(n) or "; no method is significantly better than random orders (corrected for all methods)"
        return f"{head}: {method} has the largest gain, {_interval(mean, low, high)} ({area}; n = {n}){told}."
    ahead, lead = _lead(result, gain, order)
    verb = "performs best" if ahead else "outperforms random orders"
    return f"{head}: {method} {verb} ({area}; n = {n}), gain over random orders {_interval(mean, low, high)}{lead}."


def _lead(result: PerturbationCurves, gain: np.ndarray, order: np.ndarray) -> tuple[bool, str]:
    """Whether the best is ahead of all others, and which are not distinguishable from it, by intervals over the same images."""
    close = [method_label(result.methods[i]) for i in order[1:] if not mean_interval(gain[order[0]] - gain[i])[1] > 0]
    if len(order) < 2 or close:
        return False, f"; not distinguishable from it: {join(close)}" if close else ""
    lead = mean_interval(gain[order[0]] - gain[order[1]])
    return True, f"; lead over the next, {method_label(result.methods[order[1]])}: {_interval(*lead)}"


def _number(values: np.ndarray) -> str:
    return _interval(*mean_interval(values))


def _interval(mean: float | np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> str:
    """ "0.21 [0.15, 0.28]", or the number alone where there is no interval."""
    value = f"{float(mean):.2f}"
    return f"{value} [{float(low):.2f}, {float(high):.2f}]" if np.isfinite(low) and np.isfinite(high) else value


# -- infidelity and sensitivity ----------------------------------------------------------------------------------------


def faithfulness_section(results: Sequence[Faithfulness]) -> list[Section]:
    """Infidelity and sensitivity of attribution maps."""
    first = results[0]
    noise = f"within ±{first.radius:g} of the normalised input"
    caption = (
        f"Infidelity: unexplained fraction of the squared drop in the logit over {first.samples} random removals of "
        f"{percent(first.removed)} of the patches (0 is perfect). Sensitivity: largest relative change of the map under noise "
        f"{noise}. Means over {_images(len(first.ids))} with 95 % intervals."
    )
    tables = [
        Table(caption, _wide(results)),
        Table(
            "The same values in long format.",
            pd.concat([r.to_frame() for r in results], ignore_index=True),
            dict.fromkeys(("mean", "low", "high"), "{:.3f}"),
            folded=True,
        ),
    ]
    sentences = tuple(text for r in results for text in _faithfulness_sentences(r))
    warning = untrained_warning(r.model for r in results)
    return [Section("faithfulness", "Infidelity and sensitivity", sentences, tuple(tables), warning)]


def _wide(results: Sequence[Faithfulness]) -> pd.DataFrame:
    """A row a network and method, with both measures and their intervals as text."""
    return pd.DataFrame(
        [
            {
                "model": r.model.name,
                "method": name,
                "infidelity": _number(infidelity),
                "sensitivity": _number(sensitivity) if np.isfinite(sensitivity).any() else "–",
            }
            for r in results
            for name, infidelity, sensitivity in (
                *zip(r.methods, r.infidelity, r.sensitivity, strict=True),
                ("uniform map", r.uniform_infidelity, np.full(len(r.ids), np.nan)),
            )
        ]
    )


def _faithfulness_sentences(result: Faithfulness) -> Iterator[str]:
    known = [i for i in range(len(result.methods)) if np.isfinite(result.infidelity[i]).any()]
    if known:
        yield _infidelity_sentence(result, known)
    steady = [i for i in range(len(result.methods)) if np.isfinite(result.sensitivity[i]).any()]
    if len(steady) > 1:
        yield _sensitivity_sentence(result, steady)


def _infidelity_sentence(result: Faithfulness, known: Sequence[int]) -> str:
    order = sorted(known, key=lambda i: float(np.nanmean(result.infidelity[i])))
    best, n = order[0], len(result.ids)
    against = mean_interval(result.uniform_infidelity - result.infidelity[best], level=1 - _LEVEL / len(known))
    verdict = "better than" if against[1] > 0 else "worse than" if against[2] < 0 else "not distinguishable from"
    ahead = len(order) > 1 and all(mean_interval(result.infidelity[i] - result.infidelity[best])[1] > 0 for i in order[1:])
    name = method_label(result.methods[best])
    head = (
        f"{name} predicts the effect of random removals best, infidelity"
        if ahead and not _few(n)
        else f"{name} has the lowest infidelity,"
    )
    beside = f"a uniform map ({_number(result.uniform_infidelity)}; n = {n})"
    verdict = f"compared with {beside}{_few(n)}" if _few(n) else f"{verdict} {beside}"
    return f"{name_of(result.model)}: {head} {_number(result.infidelity[best])}, {verdict}."


def _sensitivity_sentence(result: Faithfulness, steady: Sequence[int]) -> str:
    means = {i: float(np.nanmean(result.sensitivity[i])) for i in steady}
    low, high = min(steady, key=means.__getitem__), max(steady, key=means.__getitem__)
    n = len(result.ids)
    one, other = (f"{method_label(result.methods[i])} ({_number(result.sensitivity[i])})" for i in (low, high))
    if _few(n) or not _apart(result.sensitivity[steady], result.seed) <= _LEVEL:
        return f"{name_of(result.model)}: sensitivities are not distinguishable between methods, from {one} to {other}{_few(n)}."
    return f"{name_of(result.model)}: the sensitivity of {one} is lower than that of {other}."


def _apart(values: np.ndarray, seed: int) -> float:
    """p-value of the range of geometric means over images of `values` [method, image], under methods that change places image by
    image."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    logs = logs[:, np.isfinite(logs).all(0)]
    order = np.random.default_rng(seed).random((_DRAWS, *logs.shape)).argsort(1)
    drawn = np.take_along_axis(logs[None], order, 1)
    return float(permutation_p(np.ptp(logs.mean(-1)), np.ptp(drawn.mean(-1), axis=1))) if logs.size else np.nan


# -- randomisation -----------------------------------------------------------------------------------------------------


def randomisation_section(results: Sequence[RandomisationCheck]) -> list[Section]:
    """The model-randomisation sanity check."""
    models = list(dict.fromkeys(r.model for r in results))
    pictures = [
        Picture(
            partial(randomisation_figure, [r for r in results if r.model in chunk]),
            "Rank correlation between maps of the trained network and maps after cascading randomisation of its weights, from "
            "the "
            f"head to the stem. Mean over {_images(len(results[0].ids))} and {results[0].draws} random re-initialisations; "
            "bands: "
            "95 % intervals over both.",
            "The maps of a method that depends on the learned weights fall to the dotted line, the rank correlation between "
            "maps of "
            "different images. Maps that stay above it reflect the image rather than what the network has learned.",
            f"Curves of the model-randomisation sanity check of {join(name_of(m) for m in chunk)}",
            name=f"randomisation-{number}" if number else "randomisation",
        )
        for number, chunk in enumerate(chunks(models, _MOST_PANELS))
    ]
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = {name: "{:.2f}" for name in frame.columns if name.startswith(("spearman", "signed", "ssim", "null"))}
    table = Table(
        "Similarity to the original maps after each stage: rank correlation of patch sums (of magnitudes, and signed) and "
        "structural similarity (SSIM).",
        frame,
        formats,
        folded=True,
    )
    sentences = tuple(_randomisation_sentence(r) for r in results)
    return [
        Section("randomisation", "Model-randomisation sanity check", sentences, (*pictures, table), untrained_warning(models))
    ]


def _randomisation_sentence(result: RandomisationCheck) -> str:
    last, n = result.spearman[:, -1], len(result.ids)
    name = f"{name_of(result.model)}, {method_label(result.method)}"
    if not np.isfinite(result.likeness(last)[0]):
        which = (
            "every map is constant"
            if not np.isfinite(last).any()
            else "some re-initialisations make the map of every image constant"
        )
        return f"{name}: {which}, so rank correlations are undefined."
    head = (
        f"{name}: with all weights re-initialised ({result.draws} draws), the rank correlation with the maps of the trained "
        f"network is {_interval(*result.likeness(last))}"
    )
    if not np.isfinite(result.null_spearman).any():
        return f"{head} (n = {n}; no other images for comparison)."
    return (
        f"{head}; between maps of different images it is {_interval(*result.between_images())} (n = "
        f"{n}){randomisation_verdict(result)}."
    )


def randomisation_verdict(result: RandomisationCheck) -> str:
    """The verdict of the check: a method is sensitive to the weights if its excess rank correlation over maps of different images
    is shown to be small (two one-sided tests at 5 %, of which the upper decides); it is not if the excess is above zero.

    Nothing is said for too few images or one draw, and where maps of different images are alike: then they do not depend on the
    image, and are as like to those of any weights."""
    mean, low, high = result.remains()
    remains = _interval(mean, low, high)
    if _few(len(result.ids)):
        return _few(len(result.ids))
    if result.draws < 2:
        return "; one re-initialisation is too few for a claim"
    if np.nanmean(result.null_spearman) > _ALIKE:
        return "; no verdict, because maps of different images are similar"
    if result.remains(0.9)[2] < _SMALL:
        shown = f"the excess, {remains}, is below {_SMALL:.2f} (equivalence test at 5 %)"
        return f": {shown}, so the method passes the sanity check"
    if low > 0:
        return f": the excess is {remains}, so the maps do not depend only on what the network learned"
    return f"; inconclusive: the excess, {remains}, is shown neither to be below {_SMALL:.2f} nor above 0"


# -- agreement ---------------------------------------------------------------------------------------------------------


def agreement_section(results: Sequence[Agreement]) -> list[Section]:
    """Agreement between attribution methods, and between networks."""
    within, across, mixed = ([r for r in results if _kind(r) == kind] for kind in ("methods", "networks", "both"))
    pictures = [
        *(_matrices(chunk, n) for n, chunk in enumerate(chunks(within, _MOST_PANELS))),
        *_networks(across),
        *(_matrices([r], n + len(within)) for n, r in enumerate(mixed)),
    ]
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("spearman", "low", "high", "null", "null95"), "{:.2f}")
    caption = (
        "Every pair: mean rank correlation with 95 % interval; null and null95: mean and 95th percentile over pairings with "
        "other images' maps."
    )
    sentences = (*(_methods_sentence(r) for r in within), *(_networks_sentence(r) for r in across))
    warning = untrained_warning(model for r in results for model in r.models)
    return [
        Section(
            "agreement",
            "Agreement between attribution methods and networks",
            sentences,
            (*pictures, Table(caption, frame, formats, folded=True)),
            warning,
        )
    ]


def _kind(result: Agreement) -> str:
    """What the attributions of a result differ in."""
    if len({m.fingerprint for m in result.models}) == 1:
        return "methods"
    return "networks" if len(set(result.methods)) == 1 else "both"


def _matrices(results: Sequence[Agreement], number: int) -> Picture:
    return Picture(
        partial(agreement_matrices, results),
        f"Agreement between attribution methods on {join(dict.fromkeys(name_of(m) for r in results for m in r.models))}, mean "
        "over "
        f"{_images(len(results[0].ids))}.",
        "1: identical ranking of patches. Grey numbers do not exceed the 95th percentile of random pairings of images, which "
        "accounts for what all maps share, such as a centre bias. Agreement does not imply correctness.",
        f"Agreement matrices of {sum(len(r.methods) for r in results)} attributions",
        name=f"agreement-methods-{number}" if number else "agreement-methods",
    )


def _networks(results: Sequence[Agreement]) -> list[Picture]:
    if any(len(r.models) > _MOST_NETWORKS for r in results):
        return [_network_matrices(chunk, n) for n, chunk in enumerate(chunks(results, _MOST_PANELS))]
    return [_network_marks(results)] if results else []


def _network_matrices(results: Sequence[Agreement], number: int) -> Picture:
    methods, n = join(method_label(r.methods[0]) for r in results), len(results[0].ids)
    return Picture(
        partial(agreement_matrices, results),
        f"Agreement between networks by {methods}, mean over {_images(n)}.",
        "1: identical ranking of patches. Grey numbers do not exceed the 95th percentile of pairings with other images' maps; "
        "only "
        "bold numbers are evidence that two networks use the same regions. Intervals are in the table.",
        f"Agreement matrices of {len(results[0].models)} networks by {len(results)} attribution methods",
        name=f"agreement-networks-{number}" if number else "agreement-networks",
    )


def _network_marks(results: Sequence[Agreement]) -> Picture:
    return Picture(
        partial(network_agreement, results),
        f"Agreement between networks on the same {_images(len(results[0].ids))}, per method, with 95 % intervals over images.",
        "Grey bars: 95th percentile of pairings with other images' maps. Only a mark to the right of its bar is evidence that "
        "two "
        "networks use the same regions.",
        f"Agreement between {len(results[0].models)} networks by {len(results)} attribution methods",
        name="agreement-networks",
    )


def _methods_sentence(result: Agreement) -> str:
    known, name, n = _known_pairs(result), name_of(result.models[0]), len(result.ids)
    if not known:
        return f"{name}: no two methods can be compared."
    best, worst = _most_and_least(result)
    highest, lowest = (_number(result.values[p]) for p in (best, worst))
    said = f"rank correlations between methods range from {lowest} ({_pair(result, worst)}) to {highest} ({_pair(result, best)})"
    if len(known) == 1:
        said = f"{_pair(result, best)} have a rank correlation of {highest}"
    elif not _few(n) and all(mean_interval(result.values[best] - result.values[p])[1] > 0 for p in known if p != best):
        said = f"{_pair(result, best)} agree most, {highest}; the lowest is {lowest} ({_pair(result, worst)})"
    return f"{name}: {said} (n = {n}). {_count_above(result, 'methods')}."


def _known_pairs(result: Agreement) -> list[tuple[int, int]]:
    """The pairs of attributions that can be compared."""
    return [p for p in combinations(range(len(result.methods)), 2) if np.isfinite(result.mean[p])]


def _most_and_least(result: Agreement) -> tuple[tuple[int, int], tuple[int, int]]:
    known = _known_pairs(result)
    return max(known, key=lambda p: result.mean[p]), min(known, key=lambda p: result.mean[p])


def _count_above(result: Agreement, what: str) -> str:
    known = _known_pairs(result)
    above = sum(_above(result, p) for p in known)
    return f"{above} of {len(known)} pairs of {what} agree more than expected from other images' maps{_few(len(result.ids))}"


def _pair(result: Agreement, pair: tuple[int, int]) -> str:
    return " and ".join(method_label(result.methods[i]) for i in pair)


def _above(result: Agreement, pair: tuple[int, int]) -> bool:
    """Whether the mean is above zero and above what random orders of the images give, among all pairs."""
    return bool(result.mean[pair] > 0 and result.p_value[pair] <= _LEVEL and not _few(len(result.ids)))


def _networks_sentence(result: Agreement) -> str:
    known, name = _known_pairs(result), method_label(result.methods[0])
    if len(result.models) <= _MOST_NETWORKS:
        said = "; ".join(_network_pair(result, p) for p in combinations(range(len(result.models)), 2))
    elif known:
        most, least = (_network_pair(result, p) for p in _most_and_least(result))
        said = f"{_count_above(result, 'networks')}; from {least} to {most}"
    else:
        said = "no two networks can be compared"
    return f"{name[:1].upper()}{name[1:]}: {said}; n = {len(result.ids)}."


def _network_pair(result: Agreement, pair: tuple[int, int]) -> str:
    names = " and ".join(name_of(result.models[i]) for i in pair)
    if not np.isfinite(result.mean[pair]):
        return f"{names} cannot be compared, because the maps of one are constant"
    verdict = "" if _above(result, pair) else ", not distinguishable from other images"
    null = (
        f"{result.null[pair]:.2f}, 95th percentile {result.null95[pair]:.2f}"
        if np.isfinite(result.null[pair])
        else "not available"
    )
    return f"{names} {_number(result.values[pair])}{verdict} (other images {null})"


# -- conductance -------------------------------------------------------------------------------------------------------


def conductance_section(results: Sequence[Conductance]) -> list[Section]:
    """Conductance of token-mixing units."""
    pictures = [
        Picture(
            partial(conductance_units, r),
            f"Conductance of the token-mixing hidden units of {name_of(r.model)}, from {r.baseline} to the image, {_nodes(r)}; "
            f"mean over {_images(len(r.ids))}.",
            "Left: fraction of conductance per unit, in decreasing order; dashed: uniform distribution. Right: input weights "
            "on the patch "
            "grid of the units with the highest conductance; titles give unit, fraction of conductance, and mean conductance in "
            "logits (positive: for the class).",
            "Fractions of conductance, and weight maps of the token-mixing units with the highest conductance, of "
            f"{name_of(r.model)}",
            name=f"conductance-{name_of(r.model)}",
        )
        for r in results
        if r.unit_maps
    ]
    frame = pd.concat([_busiest(r) for r in results], ignore_index=True)
    formats = {
        "depth": "{:.2f}",
        "mean": "{:+.3f}",
        "mean_magnitude": "{:.3f}",
        "share": "{:.1%}",
        "share_positive": "{:.0%}",
    } | dict.fromkeys(("gap", "change"), "{:.2%}")
    table = Table("The six units with the highest conductance per layer.", frame, formats, folded=True)
    sentences = tuple(_conductance_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("conductance", "Conductance of token-mixing units", sentences, (*pictures, table), warning)]


def _busiest(result: Conductance) -> pd.DataFrame:
    rows = result.to_frame().sort_values(["depth", "layer", "share"], ascending=[True, True, False], kind="stable")
    return rows.groupby("layer", sort=False).head(6).drop(columns="n_images")


def _nodes(result: Conductance) -> str:
    fewest, most = int(result.steps.min()), int(result.steps.max())
    return f"{fewest} nodes" if fewest == most else f"{fewest} to {most} nodes"


def _conductance_sentence(result: Conductance) -> str:
    halves = [_half(result.share(i)) for i in range(len(result.layers))]
    known = [i for i, half in enumerate(halves) if half]
    n, name = len(result.ids), name_of(result.model)
    if not known:
        return f"{name}: the conductance of these units is zero."
    few, many = min(halves[i] for i in known), max(halves[i] for i in known)
    units = sorted({len(result.share(i)) for i in known})
    said = (
        f"half of a layer's conductance is concentrated in {few}{f' to {many}' if many > few else ''} of "
        f"{join(map(str, units))} units"
    )
    alone = [] if _few(n) else [i for i in known if _leads(result, i, len(known))]
    busiest = (
        f"{len(alone)} of {len(known)} layers have a unit with significantly higher conductance than every other (intervals "
        "over images)"
    )
    if alone:
        unit = int(result.busiest(alone[-1], 1)[0])
        share = result.share_by_image(alone[-1])[:, unit]
        busiest += f", such as unit {unit} of {result.layers[alone[-1]].name} with {_percent(share)}"
    return (
        f"{name}: {said} (n = {n}); {_few(n).removeprefix('; ') or busiest}. With {_nodes(result)} per image, the sum over a cut "
        f"through the layer deviates from the logit difference by {percent(float(np.median(result.gap)))} (median) and at most "
        f"{percent(float(result.gap.max()))}; using every other node changes the sum by up to "
        f"{percent(float(result.change.max()))}."
    )


def _leads(result: Conductance, i: int, family: int) -> bool:
    """Whether one unit of a layer has more conductance than every other, by intervals over images for a family of layers."""
    share = result.share_by_image(i)
    if len(share) < 2 or share.shape[1] < 2:
        return False
    best = int(result.busiest(i, 1)[0])
    others = np.delete(share, best, axis=1)
    return bool((mean_interval(share[:, [best]] - others, 0, 1 - _LEVEL / family)[1] > 0).all())


def _percent(values: np.ndarray) -> str:
    mean, low, high = (100 * float(v) for v in mean_interval(values))
    return f"{mean:.1f} % [{low:.1f} %, {high:.1f} %]"


def _half(share: np.ndarray) -> int:
    """How many units hold half of the conductance; 0 where fractions are not known."""
    if not np.isfinite(share).all():
        return 0
    return int(np.searchsorted(np.cumsum(np.sort(share)[::-1]), 0.5 - 1e-12) + 1)
