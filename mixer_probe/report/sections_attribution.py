"""The report on attributions: maps, how faithful they are, whether they notice lost weights, and who agrees with whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from mixer_probe.figures import (
    agreement_matrices,
    attribution_maps,
    conductance_units,
    network_agreement,
    perturbation_figure,
    randomisation_figure,
)
from mixer_probe.figures.attribution_overlays import method_label
from mixer_probe.report.section import Picture, Section, Table
from mixer_probe.report.sections_probes import chunks
from mixer_probe.report.texts import images_text, join, name_of, percent, untrained_warning
from mixer_probe.results import ModelRecord
from mixer_probe.stats import mean_interval

# Rows of maps in one picture, and networks side by side in one.
_MOST_ROWS, _MOST_PANELS = 12, 3
# With more, the pairs of networks are too many for marks and sentences of their own.
_MOST_NETWORKS = 3
_COMPLETE = 0.01

Lead = tuple[np.ndarray, np.ndarray, np.ndarray]


# -- maps --------------------------------------------------------------------------------------------------------------


def panel_section(results: Sequence[AttributionPanel]) -> list[Section]:
    """Which pixels speak for the class."""
    pictures = [picture for number, panel in enumerate(results) for picture in _panel_pictures(panel, number)]
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("logit", "logit_difference", "convergence_delta"), "{:.3g}") | {"relative_delta": "{:.2%}"}
    caption = (
        "Every map shown: class explained and class predicted, logit, its difference to the baseline, and what the map misses."
    )
    sentences = tuple(text for panel in results for text in (_choice_sentence(panel), *_panel_sentences(panel)))
    warning = untrained_warning(model for r in results for model in r.models)
    table = Table(caption, frame, formats, folded=True)
    return [Section("attributions", "Which pixels speak for the class", sentences, (*pictures, table), warning)]


def _panel_pictures(panel: AttributionPanel, number: int) -> Iterator[Picture]:
    networks = list(dict.fromkeys(panel.models))
    per = max(1, _MOST_ROWS // len(networks))
    for part, rows in enumerate(chunks(range(len(panel.ids)), per)):
        shown = panel.take(rows)
        yield Picture(
            attribution_maps(shown),
            f"Attributions of {join(name_of(m) for m in networks)} for {_images(len(rows))} of {panel.images.name}, on the "
            f"image at "
            "its own resolution.",
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
        said.append(f"Red speaks for the class and blue against it ({join(dict.fromkeys(signs[True]))}).")
    if signs[False]:
        said.append(f"Yellow counts most, without a sign ({join(dict.fromkeys(signs[False]))}).")
    said.append(
        "Every map has its own scale, so that strengths cannot be compared between maps. A blank place is a method that the "
        "network does not allow. Under the image stands the class explained, beside the maps what each network says it is."
    )
    return " ".join(said)


def _images(n: int) -> str:
    return "one image" if n == 1 else f"{n} images"


def _choice_sentence(panel: AttributionPanel) -> str:
    record = panel.images
    how = "every class as often as it can be" if record.classes else "evenly"
    drawn = f", drawn with seed {record.seed}, {how}" if record.limit is not None else ""
    shown = f"; {len(panel.ids)} of them are shown" if len(panel.ids) < panel.chosen_from else ""
    return f"Images: {images_text(record)}{drawn}{shown}. {_explained(panel)}"


def _explained(panel: AttributionPanel) -> str:
    if (panel.labels >= 0).all() and np.array_equal(panel.targets, panel.labels):
        return "The true class is explained."
    if np.array_equal(panel.targets, panel.predicted):
        return "The class that each network predicts is explained."
    one = {name for names in panel.target_names for name in names}
    return f"The class explained is {one.pop()} for all." if len(one) == 1 else "The classes were given image by image."


def _panel_sentences(panel: AttributionPanel) -> Iterator[str]:
    columns = list(zip(panel.models, panel.methods, panel.widest_gap, panel.empty, strict=True))
    sums = [(model, method, gap) for model, method, gap, _ in columns if np.isfinite(gap)]
    if sums:
        yield _sum_sentence(sums, panel.chosen_from)
    for model, method, _, empty in columns:
        if empty:
            yield (
                f"{name_of(model)}: {method_label(method)} is zero everywhere in {empty} of {panel.chosen_from} maps, which rank "
                "no patch above another."
            )


def _sum_sentence(sums: Sequence[tuple[ModelRecord, str, float]], n: int) -> str:
    said = ", ".join(f"{percent(gap)} ({name_of(model)}, {method_label(method)})" for model, method, gap in sums)
    verdict = "all hold" if max(gap for *_, gap in sums) <= _COMPLETE else "not all hold"
    return (
        f"Methods that promise it must sum to the difference of the logits of image and baseline: over {_images(n)} they "
        f"miss it by at "
        f"most {said}, so that {verdict} within {percent(_COMPLETE)}."
    )


def attribution_section(results: Sequence[Attribution]) -> list[Section]:
    """Attributions without their images: logits and sums."""
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("logit", "logit_difference", "sum", "convergence_delta"), "{:.3g}") | {"relative_delta": "{:.2%}"}
    sentences = tuple(
        f"{name_of(r.model)}: {method_label(r.method)}, {r.text}; {_images(len(r.ids))}, baseline {r.baseline}." for r in results
    )
    table = Table("Class, logits and the sum of every map.", frame, formats, folded=True)
    return [Section("attribution-sums", "Attributions", sentences, (table,), untrained_warning(r.model for r in results))]


# -- deletion and insertion --------------------------------------------------------------------------------------------


def curves_section(results: Sequence[PerturbationCurves]) -> list[Section]:
    """Which maps know what the network needs."""
    first = results[0]
    pictures = [
        Picture(
            perturbation_figure(chunk),
            f"Deletion replaces patches by {first.deletion_baseline}, the most important first; insertion starts from "
            f"{first.insertion_baseline} and puts them back. Mean over {_images(len(first.ids))}, bands are 95 % intervals "
            f"over images.",
            "A map that knows what the network needs falls fast in deletion and rises fast in insertion. Dashed grey: "
            "random orders of "
            "the same patches, since removing anything harms. Only the distance to them counts.",
            f"Curves of deletion and insertion of {join(name_of(r.model) for r in chunk)}",
            name=f"attribution-curves-{number}" if number else "attribution-curves",
        )
        for number, chunk in enumerate(chunks(results, _MOST_PANELS))
    ]
    columns = ("area", "low", "high", "gain", "gain_low", "gain_high")
    caption = (
        "Area under each curve (deletion: low is good; insertion: high is good), and gain over random orders of the same images."
    )
    table = Table(
        caption, pd.concat([r.to_frame() for r in results], ignore_index=True), dict.fromkeys(columns, "{:.3f}"), folded=True
    )
    sentences = tuple(_game_sentence(r, game) for r in results for game in GAMES)
    warning = untrained_warning(r.model for r in results)
    return [Section("attribution-curves", "Deletion and insertion", sentences, (*pictures, table), warning)]


def _game_sentence(result: PerturbationCurves, game: str) -> str:
    gain = (result.random_area(game) - result.area(game)) * (1 if game == "deletion" else -1)
    order = np.argsort(-gain.mean(1), kind="stable")
    best = order[0]
    mean, low, high = mean_interval(gain[best])
    area = ", ".join(
        f"{word} {_number(values, result.seed)}"
        for word, values in (("area", result.area(game)[best]), ("random orders", result.random_area(game)))
    )
    head = f"{name_of(result.model)}, {game}: {method_label(result.methods[best])} does best ({area}; n = {len(result.ids)})"
    if not low > 0:
        return f"{head}, and is not told from random orders (gain {_interval(mean, low, high)})."
    return f"{head}, better than random by {_interval(mean, low, high)}{_lead(result, gain, order)}."


def _lead(result: PerturbationCurves, gain: np.ndarray, order: np.ndarray) -> str:
    """Who is not told from the best, by intervals over the same images."""
    if len(order) < 2:
        return ""
    close: list[tuple[str, Lead]] = []
    behind: list[tuple[str, Lead]] = []
    for other in order[1:]:
        lead = mean_interval(gain[order[0]] - gain[other])
        (behind if lead[1] > 0 else close).append((method_label(result.methods[other]), lead))
    if close:
        return f"; not told from it: {join(name for name, _ in close)}"
    name, lead = behind[0]
    return f"; ahead of the next, {name}, by {_interval(*lead)}"


def _number(values: np.ndarray, seed: int) -> str:
    return _interval(*mean_interval(values))


def _interval(mean: float | np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> str:
    """ "0.21 [0.15, 0.28]", or the number alone where there is no interval."""
    value = f"{float(mean):.2f}"
    return f"{value} [{float(low):.2f}, {float(high):.2f}]" if np.isfinite(low) and np.isfinite(high) else value


# -- infidelity and sensitivity ----------------------------------------------------------------------------------------


def faithfulness_section(results: Sequence[Faithfulness]) -> list[Section]:
    """How much of what removals cost a map tells, and how steady it is."""
    first = results[0]
    noise = f"within ±{first.radius:g} of the normalised input"
    caption = (
        f"Infidelity: unexplained share of the squared fall of the logit over {first.samples} random removals of "
        f"{percent(first.removed)} of the patches, 0 is perfect; sensitivity: largest relative change of the map under "
        f"noise {noise}. "
        f"Means over {_images(len(first.ids))} with 95 % intervals."
    )
    tables = [
        Table(caption, _wide(results)),
        Table(
            "The same as numbers, one a row.",
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
                "infidelity": _number(infidelity, r.seed),
                "sensitivity": _number(sensitivity, r.seed) if np.isfinite(sensitivity).any() else "–",
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
        best = min(known, key=lambda i: float(np.nanmean(result.infidelity[i])))
        against = mean_interval(result.uniform_infidelity - result.infidelity[best])
        verdict = "better than" if against[1] > 0 else "worse than" if against[2] < 0 else "not told from"
        yield (
            f"{name_of(result.model)}: of random removals {method_label(result.methods[best])} tells most, infidelity "
            f"{_number(result.infidelity[best], result.seed)}, {verdict} a map that is the same everywhere "
            f"({_number(result.uniform_infidelity, result.seed)}; n = {len(result.ids)})."
        )
    steady = [i for i in range(len(result.methods)) if np.isfinite(result.sensitivity[i]).any()]
    if len(steady) > 1:
        means = {i: float(np.nanmean(result.sensitivity[i])) for i in steady}
        low, high = min(steady, key=means.__getitem__), max(steady, key=means.__getitem__)
        yield (
            f"{name_of(result.model)}: noise moves {method_label(result.methods[low])} least "
            f"({_number(result.sensitivity[low], result.seed)}) and {method_label(result.methods[high])} most "
            f"({_number(result.sensitivity[high], result.seed)})."
        )


# -- randomisation -----------------------------------------------------------------------------------------------------


def randomisation_section(results: Sequence[RandomisationCheck]) -> list[Section]:
    """Whether maps notice that the network has forgotten everything."""
    models = list(dict.fromkeys(r.model for r in results))
    pictures = [
        Picture(
            randomisation_figure([r for r in results if r.model in chunk]),
            f"Rank correlation of maps with those of the trained network while its weights are drawn anew from the head to "
            f"the stem; "
            f"mean over {_images(len(results[0].ids))}, bands are 95 % intervals.",
            "A method that reads the weights falls to the dotted line, the likeness of maps of different images; one that stays "
            "above it shows what is in the image, whatever the network knows.",
            f"Curves of the randomisation check of {join(name_of(m) for m in chunk)}",
            name=f"randomisation-{number}" if number else "randomisation",
        )
        for number, chunk in enumerate(chunks(models, _MOST_PANELS))
    ]
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = {name: "{:.2f}" for name in frame.columns if name.startswith(("spearman", "signed", "ssim", "null"))}
    table = Table(
        "Likeness after each stage: ranks of patch sums (of magnitudes, and with sign) and structural similarity.",
        frame,
        formats,
        folded=True,
    )
    sentences = tuple(_randomisation_sentence(r) for r in results)
    return [Section("randomisation", "Do maps notice lost weights?", sentences, (*pictures, table), untrained_warning(models))]


def _randomisation_sentence(result: RandomisationCheck) -> str:
    last, null = result.spearman[-1], result.null_spearman
    if not np.isfinite(last).any():
        return f"{name_of(result.model)}, {method_label(result.method)}: every map is one constant, so that none can be ranked."
    more = mean_interval(last - null)
    head = (
        f"{name_of(result.model)}, {method_label(result.method)}: with all weights drawn anew maps correlate "
        f"{_number(last, result.seed)} with those of the trained network"
    )
    if not np.isfinite(more[0]):
        return f"{head} (n = {len(result.ids)}; no other images to compare with)."
    verdict = (
        f"{_interval(*more)} remains beyond that, which is not what the network learned"
        if more[1] > 0
        else "it notices that the weights are gone"
    )
    return f"{head}, maps of different images {_number(null, result.seed)} (n = {len(result.ids)}): {verdict}."


# -- agreement ---------------------------------------------------------------------------------------------------------


def agreement_section(results: Sequence[Agreement]) -> list[Section]:
    """Who points at the same patches."""
    within, across, mixed = ([r for r in results if _kind(r) == kind] for kind in ("methods", "networks", "both"))
    pictures = [
        *(_matrices(chunk, n) for n, chunk in enumerate(chunks(within, _MOST_PANELS))),
        *_networks(across),
        *(_matrices([r], n + len(within)) for n, r in enumerate(mixed)),
    ]
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("spearman", "low", "high", "null", "null95"), "{:.2f}")
    caption = "Every pair: mean rank correlation with 95 % interval; null and null95 where every image meets another image's map."
    sentences = (*(_methods_sentence(r) for r in within), *(_networks_sentence(r) for r in across))
    warning = untrained_warning(model for r in results for model in r.models)
    return [
        Section(
            "agreement",
            "Who points at the same patches?",
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
        agreement_matrices(results),
        f"Agreement of attribution methods on {join(dict.fromkeys(name_of(m) for r in results for m in r.models))}, mean over "
        f"{_images(len(results[0].ids))}.",
        "1: the same order of patches. Grey numbers are no higher than 95 % of random pairings of images: what maps share "
        "because "
        "both look at the middle. Methods may agree and be wrong together.",
        f"Matrices of agreement of {sum(len(r.methods) for r in results)} attributions",
        name=f"agreement-methods-{number}" if number else "agreement-methods",
    )


def _networks(results: Sequence[Agreement]) -> list[Picture]:
    if any(len(r.models) > _MOST_NETWORKS for r in results):
        return [_network_matrices(chunk, n) for n, chunk in enumerate(chunks(results, _MOST_PANELS))]
    return [_network_marks(results)] if results else []


def _network_matrices(results: Sequence[Agreement], number: int) -> Picture:
    methods, n = join(method_label(r.methods[0]) for r in results), len(results[0].ids)
    return Picture(
        agreement_matrices(results),
        f"Agreement of networks by {methods}, mean over {_images(n)}.",
        "1: the same order of patches. Grey numbers are no higher than 95 % of pairings with another image's map; only a bold "
        "number says that two networks look at the same things. Intervals are in the table.",
        f"Matrices of agreement of {len(results[0].models)} networks by {len(results)} attribution methods",
        name=f"agreement-networks-{number}" if number else "agreement-networks",
    )


def _network_marks(results: Sequence[Agreement]) -> Picture:
    return Picture(
        network_agreement(results),
        f"Agreement of networks on the same {_images(len(results[0].ids))}, method by method, with 95 % intervals over images.",
        "Grey bars are what 95 % of pairings with another image's map stay within; only a mark to the right of its bar says "
        "that two networks look at the same things.",
        f"Agreement of {len(results[0].models)} networks by {len(results)} attribution methods",
        name="agreement-networks",
    )


def _methods_sentence(result: Agreement) -> str:
    known, name = _known_pairs(result), name_of(result.models[0])
    if not known:
        return f"{name}: no two methods can be compared."
    best, worst = _most_and_least(result)
    most = f"{_pair(result, best)} agree most, {_number(result.values[best], result.seed)}"
    least = f"; {_pair(result, worst)} least, {_number(result.values[worst], result.seed)}" if len(known) > 1 else ""
    return f"{name}: {most}{least} (n = {len(result.ids)}). {_count_above(result, 'methods')}."


def _known_pairs(result: Agreement) -> list[tuple[int, int]]:
    """The pairs of attributions that can be compared."""
    return [p for p in combinations(range(len(result.methods)), 2) if np.isfinite(result.mean[p])]


def _most_and_least(result: Agreement) -> tuple[tuple[int, int], tuple[int, int]]:
    known = _known_pairs(result)
    return max(known, key=lambda p: result.mean[p]), min(known, key=lambda p: result.mean[p])


def _count_above(result: Agreement, what: str) -> str:
    known = _known_pairs(result)
    above = sum(_above(result, p) for p in known)
    return f"{above} of {len(known)} pairs of {what} agree more than with other images' maps"


def _pair(result: Agreement, pair: tuple[int, int]) -> str:
    return " and ".join(method_label(result.methods[i]) for i in pair)


def _above(result: Agreement, pair: tuple[int, int]) -> bool:
    """Whether the mean is above zero and above what 95 % of random pairings stay within."""
    return bool(result.mean[pair] > max(np.nan_to_num(result.null95[pair]), 0))


def _networks_sentence(result: Agreement) -> str:
    known, name = _known_pairs(result), method_label(result.methods[0])
    if len(result.models) <= _MOST_NETWORKS:
        said = "; ".join(_network_pair(result, p) for p in combinations(range(len(result.models)), 2))
    elif known:
        most, least = (_network_pair(result, p) for p in _most_and_least(result))
        said = f"{_count_above(result, 'networks')}; most {most}, least {least}"
    else:
        said = "no two networks can be compared"
    return f"{name[:1].upper()}{name[1:]}: {said}; n = {len(result.ids)}."


def _network_pair(result: Agreement, pair: tuple[int, int]) -> str:
    names = " and ".join(name_of(result.models[i]) for i in pair)
    if not np.isfinite(result.mean[pair]):
        return f"{names} cannot be compared, since the maps of one are constants"
    verdict = "" if _above(result, pair) else ", not told from other images'"
    null = f"{result.null[pair]:.2f}, 95 %: {result.null95[pair]:.2f}" if np.isfinite(result.null[pair]) else "not known"
    return f"{names} {_number(result.values[pair], result.seed)}{verdict} (other images {null})"


# -- conductance -------------------------------------------------------------------------------------------------------


def conductance_section(results: Sequence[Conductance]) -> list[Section]:
    """Through which token-mixing units the logit flows."""
    pictures = [
        Picture(
            conductance_units(r),
            f"Conductance of the token-mixing hidden units of {name_of(r.model)}, from {r.baseline} to the image, "
            f"{r.n_steps} steps, "
            f"mean over {_images(len(r.ids))}.",
            "Left: how unevenly units share the work; dashed is an even share. Right: the units through which most flows, "
            "as they "
            "read the patch grid; above each its number, share, and mean conductance in logits (positive: for the class).",
            f"Shares of conductance and maps of the busiest token-mixing units of {name_of(r.model)}",
            name=f"conductance-{name_of(r.model)}",
        )
        for r in results
        if r.unit_maps
    ]
    frame = pd.concat([_busiest(r) for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", "mean": "{:+.3f}", "mean_magnitude": "{:.3f}", "share": "{:.1%}", "share_positive": "{:.0%}"}
    table = Table("The six busiest units of every layer.", frame, formats, folded=True)
    sentences = tuple(_conductance_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("conductance", "Which token-mixing units carry the class", sentences, (*pictures, table), warning)]


def _busiest(result: Conductance) -> pd.DataFrame:
    rows = result.to_frame().sort_values(["depth", "layer", "share"], ascending=[True, True, False], kind="stable")
    return rows.groupby("layer", sort=False).head(6).drop(columns="n_images")


def _conductance_sentence(result: Conductance) -> str:
    halves = [_half(result.share(i)) for i in range(len(result.layers))]
    known = [i for i, half in enumerate(halves) if half]
    if not known:
        return f"{name_of(result.model)}: nothing flows through these units."
    few, many = min(known, key=lambda i: halves[i]), max(known, key=lambda i: halves[i])
    unit = int(result.busiest(few, 1)[0])
    return (
        f"{name_of(result.model)}: half of a layer's conductance flows through {halves[few]} of {len(result.share(few))} "
        f"units in "
        f"{result.layers[few].name} and through {halves[many]} in {result.layers[many].name}; the busiest unit of the "
        f"former, {unit}, "
        f"carries {percent(float(result.share(few)[unit]))} (n = {len(result.ids)})."
    )


def _half(share: np.ndarray) -> int:
    """How many units carry half; 0 where shares are not known."""
    if not np.isfinite(share).all():
        return 0
    return int(np.searchsorted(np.cumsum(np.sort(share)[::-1]), 0.5 - 1e-12) + 1)
