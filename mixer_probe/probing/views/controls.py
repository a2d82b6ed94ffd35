"""The report on the controls of probes: random groupings of the classes, description lengths, random labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import join, name_of, percent, studied, untrained_warning
from mixer_probe.probing import ControlCode, ControlTask, OnlineCode, RandomLabels
from mixer_probe.probing.figures import code_curves, control_code_curves, control_curves, random_label_curves
from mixer_probe.probing.figures.probes import networks
from mixer_probe.probing.views.probes import highest, interval, last_defined, number, points, table_of
from mixer_probe.stats import permutation_p
from mixer_probe.stats.claims import LEVEL, leader


def control_section(results: Sequence[ControlTask]) -> list[Section]:
    """Whether a probe knows the groups of the classes, or learns any grouping."""
    own = networks(results)
    frame = table_of(results)
    columns = ["model", "trained", "layer", "depth", "accuracy", "low", "high", "control_accuracy", "selectivity"]
    columns += ["selectivity_low", "selectivity_high", "relative_selectivity", "chance"]
    formats = dict.fromkeys(columns[4:], "{:.3f}") | {"depth": "{:.2f}"}
    caption = "Every layer. selectivity is accuracy minus control accuracy; relative, as a share of the errors on the controls."
    table = Table(caption, frame[columns], formats, folded=True)
    content: tuple[Picture | Table, ...] = (_control_picture(results), table) if own else (table,)
    sentences = tuple(_control_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in own)
    return [Section("controls", "Does a probe know, or learn?", sentences, content, warning)]


def _control_picture(results: Sequence[ControlTask]) -> Picture:
    first = networks(results)[0]
    groups, count = join(f"'{name}'" for name in first.groups), len(first.controls)
    return Picture(
        control_curves(results),
        f"Ridge probes of the groups {groups}, and of {count} random groupings of the same classes into groups of the same sizes "
        f"(control tasks, Hewitt and Liang 2019); fitted on {first.n_train} images, tested on {first.n_test}.",
        "Left: solid lines are the groups that mean something, dashed ones the mean of the random groupings (from the lowest to "
        "the highest); the grey line is the share of the largest group. Middle: selectivity, the difference of the two, with its "
        f"95 % interval over test images{'' if first.exhaustive else ' and groupings'}. A probe that merely tells the "
        "classes apart reads any grouping of them, so what is above 0 is how much easier the network makes the one that "
        "means something. Selectivity shrinks where all groupings are nearly right; at the right it is a share of the errors on "
        "random groupings, which does not. Dotted lines are untrained networks, the dashed line is raw pixels.",
        "Accuracy on semantic and random groups, and selectivity, against relative depth",
        name="probe-controls",
    )


def _control_sentence(result: ControlTask) -> str:
    last = last_defined(result.accuracy)
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    control = percent(float(result.control_accuracy[last].mean()))
    text = (
        f"{name_of(result.model)}: {_given(result, last, 'after')}the groups are read with "
        f"{interval(result.accuracy[last], result.low[last], result.high[last])}, random groupings with {control}: selectivity "
        f"{_selectivity(result, last)}"
    )
    twin = result.untrained
    if twin is not None and (best := highest(twin.relative_selectivity)) is not None:
        share = interval(twin.relative_selectivity[best], twin.relative_low[best], twin.relative_high[best])
        text += f"; untrained at most {share} of them"
    return f"{text} ({len(result.controls)} groupings, n = {result.n_test})."


def _selectivity(result: ControlTask, i: int) -> str:
    text = points(result.selectivity[i], result.selectivity_low[i], result.selectivity_high[i])
    share = result.relative_selectivity[i]
    if np.isnan(share):
        return text
    return f"{text}, avoiding {interval(share, result.relative_low[i], result.relative_high[i])} of the errors on random groups"


def _given(result: ControlTask | OnlineCode, i: int, word: str) -> str:
    """ "after blocks.7 ", and nothing for raw pixels."""
    return "" if result.model.family == "pixels" else f"{word} {result.layers[i].name} "


def code_section(results: Sequence[OnlineCode]) -> list[Section]:
    """How short the labels become for someone who has the representation."""
    own = networks(results)
    frame = table_of(results)
    columns = ["model", "trained", "layer", "depth", "bits", "compression", "low", "high", "last_block", "orders", "n"]
    formats = dict.fromkeys(("compression", "low", "high", "last_block"), "{:.3f}") | {"depth": "{:.2f}", "bits": "{:.0f}"}
    caption = "Every layer. last_block is the price of a label, in bits, when the blocks before the last are known."
    table = Table(caption, frame[columns], formats, folded=True)
    content: tuple[Picture | Table, ...] = (_code_picture(results), table) if own else (table,)
    shown = [*studied(r.model for r in own), *(r.model for r in results if r not in own)]
    sentences = tuple(_code_sentence(r, results) for r in results if r.model in shown)
    warning = untrained_warning(r.model for r in own)
    return [Section("description-length", "How much shorter the labels become", sentences, content, warning)]


def _code_picture(results: Sequence[OnlineCode]) -> Picture:
    first = networks(results)[0]
    what = f"groups ({join(first.groups)})" if first.groups else "labels"
    return Picture(
        code_curves(results),
        f"Online description length of the {what} of {first.n} images: n log2 K = {first.uniform:.0f} bits for a receiver who "
        "knows nothing, over the bits that are left for one who has the representation (Voita and Titov 2020).",
        "Labels are sent block by block, each block under the probabilities of a logistic probe of all blocks before, so a "
        "representation that needs many labels pays for them. 1 (grey) tells nothing, below 1 misleads. Bands are 95 % intervals "
        f"(Student's t) over {first.bits.shape[1]} orders of the images; dotted lines are untrained networks, the dashed one raw "
        "pixels.",
        "Compression of the labels against relative depth",
        name="probe-description-length",
    )


def _code_sentence(result: OnlineCode, results: Sequence[OnlineCode]) -> str:
    last, top = last_defined(result.compression), highest(result.compression)
    if last is None or top is None:
        return f"{name_of(result.model)}: no layer has a code."
    bits = float(result.bits[last].mean())
    text = (
        f"{name_of(result.model)}: {_given(result, last, 'given')}the labels of {result.n} images take {bits:.0f} bits in "
        f"place of {result.uniform:.0f}, compressed {_times(result, last)}"
    )
    if top != last:
        codes = [Number("", float(result.compression[i]), float(result.low[i]), float(result.high[i])) for i in range(last + 1)]
        most = "most" if leader(codes) is not None else "at most"
        text += f", {most} given {result.layers[top].name}: {_times(result, top)}"
    twin = next((r for r in results if r.model.name == f"{result.model.name}?untrained"), None)
    if twin is not None and (best := highest(twin.compression)) is not None:
        text += f"; untrained at most {_times(twin, best)}"
    return f"{text} ({result.bits.shape[1]} orders)."


def _times(result: OnlineCode, i: int) -> str:
    value = float(result.compression[i])
    if np.isnan(result.low[i]):
        return f"{value:.2f} times"
    return f"{number(value, result.low[i], result.high[i])} times"


def control_code_section(results: Sequence[ControlCode]) -> list[Section]:
    """The price of a random grouping in bits."""
    first = results[0]
    picture = Picture(
        control_code_curves(results),
        f"Online description length of the groups {join(first.groups)} of {first.n} images, and of {len(first.controls)} random "
        "groupings of the same classes into groups of the same sizes.",
        "Left: how many times shorter than the uniform code, solid for the groups that mean something, dashed for random ones. "
        "Right: how many bits an image a random grouping costs more, which is selectivity in the currency of code length.",
        "Compression of semantic and random groups, and their difference in bits, against relative depth",
        name="probe-control-codes",
    )
    columns = ["model", "trained", "layer", "depth", "compression", "control_compression", "gap_per_image", "ratio", "n"]
    formats = dict.fromkeys(columns[4:8], "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("Every layer. gap_per_image is in bits.", table_of(results)[columns], formats, folded=True)
    sentences = tuple(_gap_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("control-codes", "The price of a random grouping", sentences, (picture, table), warning)]


def _gap_sentence(result: ControlCode) -> str:
    last = last_defined(result.gap)
    if last is None:
        return f"{name_of(result.model)}: no layer has a code."
    own, controls = result.bits[last].mean() / result.n, result.control_bits[last].mean(axis=1) / result.n
    each = controls - own
    # The groups are one more grouping of the classes: as short as the shortest of S by chance in 1 of 1 + S.
    p = float(permutation_p(own, controls, -1))
    verdict = "fewer than random ones" if p <= LEVEL else "no fewer than random ones beyond chance"
    return (
        f"{name_of(result.model)}: given {result.layers[last].name} the groups take {own:.3f} bits an image, {verdict} "
        f"(p = {p:.2g}); a random grouping minus the groups is {result.gap[last]:.3f} bits on average ({each.min():.3f} to "
        f"{each.max():.3f} over {len(each)} groupings, n = {result.n})."
    )


def random_label_section(results: Sequence[RandomLabels]) -> list[Section]:
    """Probes of labels that say nothing."""
    first = results[0]
    picture = Picture(
        random_label_curves(results),
        f"Accuracy of ridge probes on shuffled labels ({first.accuracy.shape[1]} draws), fitted on {first.n_train} images and "
        f"tested on {first.n_test}.",
        "Solid lines with their 95 % Wilson intervals are what was found, dashed lines what these answers give on shuffled "
        "labels on average. A probe above that has seen the test images, or counts wrongly; one layer in twenty is outside by "
        "chance.",
        "Accuracy on random labels against relative depth",
        name="probe-random-labels",
    )
    columns = ["model", "layer", "depth", "accuracy", "low", "high", "expected", "at_chance", "memorised", "draws"]
    formats = dict.fromkeys(("accuracy", "low", "high", "expected", "memorised"), "{:.3f}") | {"depth": "{:.2f}"}
    caption = "Every layer. memorised is the accuracy on the fitting images at the least penalty."
    table = Table(caption, table_of(results)[columns], formats, folded=True)
    sentences = tuple(_random_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("random-labels", "Random labels", sentences, (picture, table), warning)]


def _random_sentence(result: RandomLabels) -> str:
    defined = ~np.isnan(result.expected)
    if not defined.any():
        return f"{name_of(result.model)}: no layer can be probed."
    return (
        f"{name_of(result.model)}: random labels are at chance after {int(result.at_chance[defined].sum())} of "
        f"{int(defined.sum())} layers, {percent(float(result.accuracy[defined].mean()))} on average where "
        f"{percent(float(result.expected[defined].mean()))} is expected ({result.accuracy.shape[1]} draws, n = {result.n_test})."
    )
