"""The report on control tasks, description lengths and random labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import interval, join, name_of, percent, points, studied, untrained_warning
from mixer_probe.plotting.curves import networks
from mixer_probe.probing import ControlCode, ControlTask, OnlineCode, RandomLabels
from mixer_probe.probing.figures import code_curves, control_code_curves, control_curves, random_label_curves
from mixer_probe.probing.views.probes import highest, last_defined
from mixer_probe.stats import permutation_p
from mixer_probe.stats.claims import LEVEL, leader


def control_section(results: Sequence[ControlTask]) -> list[Section]:
    """Probe accuracy on semantic groups of classes against random groupings (control tasks)."""
    own = networks(results)
    frame = table_of(results)
    columns = ["model", "trained", "layer", "depth", "accuracy", "low", "high", "control_accuracy", "selectivity"]
    columns += ["selectivity_low", "selectivity_high", "relative_selectivity", "chance"]
    formats = dict.fromkeys(columns[4:], "{:.3f}") | {"depth": "{:.2f}"}
    caption = "All layers. selectivity: accuracy minus control accuracy; relative: as a fraction of the errors on control tasks."
    table = Table(caption, frame[columns], formats, folded=True)
    content: tuple[Picture | Table, ...] = (_control_picture(results), table) if own else (table,)
    sentences = tuple(_control_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in own)
    return [Section("controls", "Control tasks", sentences, content, warning)]


def _control_picture(results: Sequence[ControlTask]) -> Picture:
    first = networks(results)[0]
    groups, count = join(f"'{name}'" for name in first.groups), len(first.controls)
    return Picture(
        partial(control_curves, results),
        f"Ridge probes of the groups {groups}, and of {count} random groupings of the same classes into groups of the same sizes "
        f"(control tasks, Hewitt and Liang 2019); trained on {first.n_train} images, tested on {first.n_test}.",
        "Left: accuracy on the semantic groups (solid) and mean over the random groupings (dashed; band from lowest to highest); "
        "the grey line is the frequency of the largest group. Middle: selectivity, the difference of the two, with its "
        f"95 % interval over test images{'' if first.exhaustive else ' and groupings'}. A probe that separates all classes can "
        "learn any grouping of them, so selectivity above 0 is the advantage of the semantic grouping. It shrinks where accuracy "
        "on all groupings is near 100 %. Right: selectivity as a percentage of the errors on random groupings, which does not "
        "shrink. Dotted lines are untrained baselines; the dashed line in the middle and right panels is raw pixels.",
        "Accuracy on semantic and random groups, and selectivity, against relative depth",
        name="probe-controls",
    )


def _control_sentence(result: ControlTask) -> str:
    last = last_defined(result.accuracy)
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    control = percent(float(result.control_accuracy[last].mean()))
    text = (
        f"{name_of(result.model)}: {_given(result, last, 'after', ',')}accuracy on the semantic groups is "
        f"{interval(result.accuracy[last], result.low[last], result.high[last])}, on random groupings {control}: selectivity "
        f"{_selectivity(result, last)}"
    )
    twin = result.untrained
    if twin is not None and (best := highest(twin.relative_selectivity)) is not None:
        share = interval(twin.relative_selectivity[best], twin.relative_low[best], twin.relative_high[best])
        text += f"; untrained baseline: at most {share} of them"
    return f"{text} ({len(result.controls)} groupings, n = {result.n_test})."


def _selectivity(result: ControlTask, i: int) -> str:
    text = points(result.selectivity[i], result.selectivity_low[i], result.selectivity_high[i])
    share = result.relative_selectivity[i]
    if np.isnan(share):
        return text
    return f"{text}, or {interval(share, result.relative_low[i], result.relative_high[i])} of the errors on random groupings"


def _given(result: ControlTask | OnlineCode, i: int, word: str, end: str = "") -> str:
    """ "after blocks.7, ", and nothing for raw pixels."""
    return "" if result.model.family == "pixels" else f"{word} {result.layers[i].name}{end} "


def code_section(results: Sequence[OnlineCode]) -> list[Section]:
    """Online description length of the labels given a representation."""
    own = networks(results)
    frame = table_of(results)
    columns = ["model", "trained", "layer", "depth", "bits", "compression", "low", "high", "last_block", "orders", "n"]
    formats = dict.fromkeys(("compression", "low", "high", "last_block"), "{:.3f}") | {"depth": "{:.2f}", "bits": "{:.0f}"}
    caption = "All layers. last_block: bits per label in the last block, given all blocks before it."
    table = Table(caption, frame[columns], formats, folded=True)
    content: tuple[Picture | Table, ...] = (_code_picture(results), table) if own else (table,)
    shown = [*studied(r.model for r in own), *(r.model for r in results if r not in own)]
    sentences = tuple(_code_sentence(r, results) for r in results if r.model in shown)
    warning = untrained_warning(r.model for r in own)
    return [Section("description-length", "Description length (MDL)", sentences, content, warning)]


def _code_picture(results: Sequence[OnlineCode]) -> Picture:
    first = networks(results)[0]
    what = f"groups ({join(first.groups)})" if first.groups else "labels"
    return Picture(
        partial(code_curves, results),
        f"Compression of the {what} of {first.n} images: length of the uniform code, n log2 K = {first.uniform:.0f} bits, "
        "divided by the length of the online code given the representation (Voita and Titov 2020).",
        "Labels are encoded block by block, each under the probabilities of a logistic probe trained on all blocks before, so a "
        "representation from which the probe needs many labels has a long code. The grey line at 1 means no compression; below 1 "
        f"the code is longer than uniform. Bands are 95 % intervals (Student's t) over {first.bits.shape[1]} orders of the "
        "images; dotted lines are untrained baselines, the dashed line is raw pixels.",
        "Compression of the labels against relative depth",
        name="probe-description-length",
    )


def _code_sentence(result: OnlineCode, results: Sequence[OnlineCode]) -> str:
    last, top = last_defined(result.compression), highest(result.compression)
    if last is None or top is None:
        return f"{name_of(result.model)}: the description length is undefined for all layers."
    bits = float(result.bits[last].mean())
    text = (
        f"{name_of(result.model)}: {_given(result, last, 'given', ',')}the labels of {result.n} images take {bits:.0f} bits "
        f"instead of {result.uniform:.0f}: compression {_times(result, last)}"
    )
    if top != last:
        codes = [Number("", float(result.compression[i]), float(result.low[i]), float(result.high[i])) for i in range(last + 1)]
        most = "largest" if leader(codes) is not None else "at most"
        text += f", {most} {_times(result, top)} given {result.layers[top].name}"
    twin = next((r for r in results if r.model.name == f"{result.model.name}?untrained"), None)
    if twin is not None and (best := highest(twin.compression)) is not None:
        text += f"; untrained baseline: at most {_times(twin, best)}"
    return f"{text} ({result.bits.shape[1]} orders)."


def _times(result: OnlineCode, i: int) -> str:
    value = float(result.compression[i])
    if np.isnan(result.low[i]):
        return f"{value:.2f}×"
    return f"{value:.2f}× [{result.low[i]:.2f}, {result.high[i]:.2f}]"


def control_code_section(results: Sequence[ControlCode]) -> list[Section]:
    """Description length of random groupings against that of the semantic groups."""
    first = results[0]
    picture = Picture(
        partial(control_code_curves, results),
        f"Online description length of the groups {join(first.groups)} for {first.n} images, and of {len(first.controls)} random "
        "groupings of the same classes into groups of the same sizes.",
        "Left: compression relative to the uniform code, for the semantic groups (solid) and random groupings (dashed). "
        "Right: additional bits per image for a random grouping, the counterpart of selectivity in code length.",
        "Compression of semantic and random groups, and their difference in bits, against relative depth",
        name="probe-control-codes",
    )
    columns = ["model", "trained", "layer", "depth", "compression", "control_compression", "gap_per_image", "ratio", "n"]
    formats = dict.fromkeys(columns[4:8], "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("All layers. gap_per_image is in bits.", table_of(results)[columns], formats, folded=True)
    sentences = tuple(_gap_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("control-codes", "MDL of control tasks", sentences, (picture, table), warning)]


def _gap_sentence(result: ControlCode) -> str:
    last = last_defined(result.gap)
    if last is None:
        return f"{name_of(result.model)}: the description length is undefined for all layers."
    own, controls = result.bits[last].mean() / result.n, result.control_bits[last].mean(axis=1) / result.n
    each = controls - own
    # The groups are one more grouping of the classes: as short as the shortest of S by chance in 1 of 1 + S.
    p = float(permutation_p(own, controls, -1))
    verdict = "significantly fewer than random groupings" if p <= LEVEL else "not distinguishable from random groupings"
    return (
        f"{name_of(result.model)}: given {result.layers[last].name}, the semantic groups take {own:.3f} bits per image, "
        f"{verdict} (p = {p:.2g}); random groupings take {result.gap[last]:.3f} bits more on average ({each.min():.3f} to "
        f"{each.max():.3f} over {len(each)} groupings, n = {result.n})."
    )


def random_label_section(results: Sequence[RandomLabels]) -> list[Section]:
    """Probes of permuted labels."""
    first = results[0]
    picture = Picture(
        partial(random_label_curves, results),
        f"Accuracy of ridge probes on permuted labels ({first.accuracy.shape[1]} permutations), trained on {first.n_train} "
        f"images and tested on {first.n_test}.",
        "Solid lines: observed accuracy with 95 % Wilson intervals. Dashed lines: expected accuracy of the same predictions "
        "under permuted labels. Accuracy above that indicates leakage of test images or an error of evaluation; one layer in "
        "twenty lies outside by chance.",
        "Accuracy on random labels against relative depth",
        name="probe-random-labels",
    )
    columns = ["model", "layer", "depth", "accuracy", "low", "high", "expected", "at_chance", "memorised", "draws"]
    formats = dict.fromkeys(("accuracy", "low", "high", "expected", "memorised"), "{:.3f}") | {"depth": "{:.2f}"}
    caption = "All layers. memorised: training accuracy on random labels at the smallest penalty."
    table = Table(caption, table_of(results)[columns], formats, folded=True)
    sentences = tuple(_random_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("random-labels", "Random labels", sentences, (picture, table), warning)]


def _random_sentence(result: RandomLabels) -> str:
    defined = ~np.isnan(result.expected)
    if not defined.any():
        return f"{name_of(result.model)}: no layer can be probed."
    return (
        f"{name_of(result.model)}: accuracy on random labels is at chance after {int(result.at_chance[defined].sum())} of "
        f"{int(defined.sum())} layers, {percent(float(result.accuracy[defined].mean()))} on average "
        f"(expected: {percent(float(result.expected[defined].mean()))}; {result.accuracy.shape[1]} permutations, "
        f"n = {result.n_test})."
    )
