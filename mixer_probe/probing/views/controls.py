"""The report on control tasks, description lengths and random labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import join, studied, untrained_warning
from mixer_probe.plotting.curves import networks
from mixer_probe.probing import ControlCode, ControlTask, OnlineCode, RandomLabels
from mixer_probe.probing.figures import (
    code_curves,
    control_code_curves,
    control_curves,
    random_label_curves,
)
from mixer_probe.probing.findings import (
    code_sentence,
    control_code_sentence,
    control_sentence,
    random_label_sentence,
)
from mixer_probe.probing.views import folded_table


def control_section(results: Sequence[ControlTask]) -> list[Section]:
    """Probe accuracy on semantic groups of classes against random groupings (control tasks)."""
    own = networks(results)
    first = (own or results)[0]
    groups, count = join(f"'{name}'" for name in first.groups), len(first.controls)
    picture = Picture(
        partial(control_curves, results),
        f"Ridge probes of the groups {groups}, and of {count} random groupings of the same classes "
        "into groups of the same sizes (control tasks, Hewitt and Liang 2019); trained on "
        f"{first.n_train} images, tested on {first.n_test}.",
        "Left: accuracy on the semantic groups (solid) and mean over the random groupings (dashed; "
        "band from lowest to highest); the grey line is the frequency of the largest group. "
        "Middle: selectivity, the difference of the two, with its 95 % interval over test "
        f"images{'' if first.exhaustive else ' and groupings'}. A probe that separates all classes "
        "can learn any grouping of them, so selectivity above 0 is the advantage of the semantic "
        "grouping. It shrinks where accuracy on all groupings is near 100 %. Right: selectivity as "
        "a percentage of the errors on random groupings, which does not shrink. Dotted lines are "
        "untrained baselines; the dashed line in the middle and right panels is raw pixels.",
        "Accuracy on semantic and random groups, and selectivity, against relative depth",
        name="probe-controls",
    )
    table = folded_table(
        "All layers. selectivity: accuracy minus control accuracy; relative: as a fraction of the "
        "errors on control tasks.",
        table_of(results),
        "model trained layer depth:.2f accuracy:.3f low:.3f high:.3f control_accuracy:.3f "
        "selectivity:.3f selectivity_low:.3f selectivity_high:.3f relative_selectivity:.3f "
        "chance:.3f",
    )
    content: tuple[Picture | Table, ...] = (picture, table) if own else (table,)
    sentences, warning = (
        tuple(map(control_sentence, results)),
        untrained_warning(r.model for r in own),
    )
    return [Section("controls", "Control tasks", sentences, content, warning)]


def code_section(results: Sequence[OnlineCode]) -> list[Section]:
    """Online description length of the labels given a representation."""
    own = networks(results)
    first = (own or results)[0]
    what = f"groups ({join(first.groups)})" if first.groups else "labels"
    picture = Picture(
        partial(code_curves, results),
        f"Compression of the {what} of {first.n} images: length of the uniform code, n log2 K = "
        f"{first.uniform:.0f} bits, divided by the length of the online code given the "
        "representation (Voita and Titov 2020).",
        "Labels are encoded block by block, each under the probabilities of a logistic probe "
        "trained on all blocks before, so a representation from which the probe needs many labels "
        "has a long code. The grey line at 1 means no compression; below 1 the code is longer than "
        f"uniform. Bands are 95 % intervals (Student's t) over {first.bits.shape[1]} orders of the "
        "images; dotted lines are untrained baselines, the dashed line is raw pixels.",
        "Compression of the labels against relative depth",
        name="probe-description-length",
    )
    table = folded_table(
        "All layers. last_block: bits per label in the last block, given all blocks before it.",
        table_of(results),
        "model trained layer depth:.2f bits:.0f compression:.3f low:.3f high:.3f last_block:.3f "
        "orders n",
    )
    content: tuple[Picture | Table, ...] = (picture, table) if own else (table,)
    shown = [*studied(r.model for r in own), *(r.model for r in results if r not in own)]
    sentences = tuple(code_sentence(r, results) for r in results if r.model in shown)
    warning = untrained_warning(r.model for r in own)
    return [Section("description-length", "Description length (MDL)", sentences, content, warning)]


def control_code_section(results: Sequence[ControlCode]) -> list[Section]:
    """Description length of random groupings against that of the semantic groups."""
    first = results[0]
    picture = Picture(
        partial(control_code_curves, results),
        f"Online description length of the groups {join(first.groups)} for {first.n} images, and "
        f"of {len(first.controls)} random groupings of the same classes into groups of the same "
        "sizes.",
        "Left: compression relative to the uniform code, for the semantic groups (solid) and "
        "random groupings (dashed). Right: additional bits per image for a random grouping, the "
        "counterpart of selectivity in code length.",
        "Compression of semantic and random groups, and their difference in bits, against relative "
        "depth",
        name="probe-control-codes",
    )
    table = folded_table(
        "All layers. gap_per_image is in bits.",
        table_of(results),
        "model trained layer depth:.2f compression:.3f control_compression:.3f gap_per_image:.3f "
        "ratio:.3f n",
    )
    sentences, warning = (
        tuple(map(control_code_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [Section("control-codes", "MDL of control tasks", sentences, (picture, table), warning)]


def random_label_section(results: Sequence[RandomLabels]) -> list[Section]:
    """Probes of permuted labels."""
    first = results[0]
    picture = Picture(
        partial(random_label_curves, results),
        f"Accuracy of ridge probes on permuted labels ({first.accuracy.shape[1]} permutations), "
        f"trained on {first.n_train} images and tested on {first.n_test}.",
        "Solid lines: observed accuracy with 95 % Wilson intervals. Dashed lines: expected "
        "accuracy of the same predictions under permuted labels. Accuracy above that indicates "
        "leakage of test images or an error of evaluation; one layer in twenty lies outside by "
        "chance.",
        "Accuracy on random labels against relative depth",
        name="probe-random-labels",
    )
    table = folded_table(
        "All layers. memorised: training accuracy on random labels at the smallest penalty.",
        table_of(results),
        "model layer depth:.2f accuracy:.3f low:.3f high:.3f expected:.3f at_chance memorised:.3f "
        "draws",
    )
    sentences, warning = (
        tuple(map(random_label_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [Section("random-labels", "Random labels", sentences, (picture, table), warning)]
