"""The analyses of single channels, and how their results are shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mixer_probe.capture import Inputs, Representations, extract
from mixer_probe.channels import (
    ChannelPage,
    ChannelPartners,
    ChannelsNeeded,
    ChannelStatistics,
    ClassSelectivity,
    DissectedChannel,
    Dissection,
    channel_pages,
    channel_partners,
    channel_statistics,
    channels_needed,
    class_selectivity,
    dissect,
    dissected_channel,
    with_partners,
)
from mixer_probe.channels.views.dissection import dissected_section, dissection_section
from mixer_probe.channels.views.pages import pages_section, partners_section
from mixer_probe.channels.views.selectivity import needed_section, selectivity_section
from mixer_probe.channels.views.statistics import channel_section
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import ImagesError, MeasureError, UndefinedChannelsWarning
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.images import Images
from mixer_probe.models import Layer
from mixer_probe.models.layer import spread
from mixer_probe.stats.claims import DRAWS
from mixer_probe.visualization import FeatureVisualization, visualize

# Curves of more layers lie on each other, and every point is a few probes.
NEEDED_LAYERS, NEEDED_DRAWS = 4, 3
CLEAREST = "the most class-selective channel of each layer (largest |z| of its AUROC)"
TAILED = "the channel with the heaviest tails of each layer (largest excess kurtosis)"
ASKED = "selected by number"
R = TypeVar("R", ChannelStatistics, ClassSelectivity)


@contextmanager
def _told_elsewhere() -> Iterator[None]:
    """Constant channels are counted in the sentences; one warning each would come for every pair of layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedChannelsWarning)
        yield


def statistics(i: Inputs, layers: str | Sequence[str] | None = None) -> ChannelStatistics:
    """Statistics of a sample of the images where the settings say so: every position counts, so that they settle early."""
    s = i.settings
    images = i.images.sample(len(i.images) if s.statistics_images is None else min(s.statistics_images, len(i.images)), s.seed)
    return channel_statistics(i.model, images, layers or s.layers, batch_size=s.batch_size, autocast=s.autocast)


def selectivity(run: Representations, s: StudySettings) -> ClassSelectivity:
    """For which classes every channel is selective, with `DRAWS` permutations: the largest of thousands is looked for."""
    with _told_elsewhere():
        return class_selectivity(run, permutations=s.permutations and max(s.permutations, DRAWS), seed=s.seed)


def needed(i: Inputs) -> list[Result]:
    """How many channels of a few layers, evenly through the depth, a ridge probe needs."""
    fit, rest = i.parts
    names = [fit.layers[k].name for k in spread(fit.layers, NEEDED_LAYERS)]
    with _told_elsewhere():
        return [channels_needed(fit.only(names), rest.only(names), draws=NEEDED_DRAWS, seed=i.settings.seed)]


def partners(networks: Sequence[Inputs]) -> list[ChannelPartners]:
    """For every layer of each network the best matches of its channels in the layer of each other one of the most similar
    relative depth."""
    return [match for a, b in permutations([i.test for i in networks], 2) for match in _matches(a, b, networks[0].settings)]


def _matches(a: Representations, b: Representations, s: StudySettings) -> list[ChannelPartners]:
    options: dict[str, Any] = {"k": 1, "permutations": s.permutations and max(s.permutations, DRAWS), "seed": s.seed}
    pairs = [(layer.name, counterpart(layer, b.layers).name) for layer in a.layers]
    with _told_elsewhere():
        return [channel_partners(a, b, *pair, **options) for pair in pairs]


def counterpart(layer: Layer, others: Sequence[Layer]) -> Layer:
    """Which of the others is nearest in relative depth; of equals the earlier one."""
    return min(others, key=lambda other: abs(other.depth - layer.depth))


def chosen_channels(
    names: Sequence[str], statistics: ChannelStatistics, selectivity: ClassSelectivity | None, count: int
) -> tuple[dict[str, list[int]], str]:
    """`count` channels of every layer, and by which rule.

    With `selectivity` those that tell a class most clearly; after the first one, channels of other classes come first. Without
    labels those with the heaviest tails."""
    if selectivity is None:
        tails = {name: statistics.kurtosis[statistics.index(name)] for name in names}
        return {name: _largest(values)[:count] for name, values in tails.items()}, TAILED
    rule = CLEAREST if count == 1 else f"{CLEAREST}, then the most selective for other classes"
    return {name: _clearest(selectivity, name)[:count] for name in names}, rule


def _largest(values: np.ndarray) -> list[int]:
    return [int(i) for i in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]


def _clearest(selectivity: ClassSelectivity, name: str) -> list[int]:
    """Channels by strength, the first of every class before the second of any, and undefined ones last."""
    i = selectivity.index(name)
    order = _largest(selectivity.strength[i])
    classes = pd.Series(selectivity.preferred[i][order])
    turn = np.where(classes < 0, len(order), classes.groupby(classes).cumcount())
    return [order[k] for k in np.argsort(turn, kind="stable")]


def pages(i: Inputs) -> list[Result]:
    """Pages of the channels that are asked for by layer (`shared["channels"]`), in a network that has the layers, else of some of
    every layer. Statistics and selectivity found before are shown there."""
    asked: Mapping[str, Sequence[int]] = i.shared.get("channels", {})
    known = i.model.structure.names()
    names = [name for name in asked if name in known] if asked else i.test.names()
    if not names:
        return []
    run, s = _run_of(names, i), i.settings
    measured = _holding(i.results(ChannelStatistics), names) or statistics(i, names)
    selective = _holding(i.results(ClassSelectivity), names) or _selectivity_or_none(run, s)
    if asked:
        chosen, rule = {name: list(asked[name]) for name in names}, ASKED
    else:
        chosen, rule = chosen_channels(names, measured, selective, s.channel_pages)
    options: dict[str, Any] = {"k": s.page_images, "by": "mean", "batch_size": s.batch_size}
    found = channel_pages(i.model, i.images, chosen, statistics=measured, selectivity=selective, reps=run, **options)
    return [replace(page, rule=rule) for page in found]


def _holding(found: Sequence[R], names: Sequence[str]) -> R | None:
    """The first result that has all of these layers."""
    return next((r for r in found if set(names) <= {layer.name for layer in r.layers}), None)


def _run_of(names: Sequence[str], i: Inputs) -> Representations:
    """The run on the test images, of other layers than those of the study where these are asked for."""
    if set(names) <= set(i.test.names()):
        return i.test.only(names)
    return extract(i.model, i.images, list(names), batch_size=i.settings.batch_size, autocast=i.settings.autocast)


def _selectivity_or_none(run: Representations, s: StudySettings) -> ClassSelectivity | None:
    """None for images whose labels, or lack of them, allow no selectivity."""
    try:
        return selectivity(run, s)
    except (ImagesError, MeasureError):
        return None


def pages_with_partners(networks: Sequence[Inputs]) -> list[Result]:
    """The pages of all networks, with the best-matching channels in the others; nothing of a single network."""
    others = [i for i in networks if i.extracted]
    if len(others) < 2:
        return []
    found = [r for i in others for r in i.results(ChannelPartners)] or partners(others)
    return [with_partners(page, found) for i in networks for page in i.results(ChannelPage)]


def dissections(i: Inputs) -> Iterator[Result]:
    """Which concepts the channels mark, and pictures of the one that stands out most; concepts are those of
    `shared["concepts"]`."""
    s = i.settings
    options: dict[str, Any] = {"permutations": s.permutations, "batch_size": s.batch_size, "autocast": s.autocast, "seed": s.seed}
    for concepts in i.shared.get("concepts", ()):
        found = dissect(i.model, i.images, concepts, s.layers, **options)
        yield found
        best = _best(found) if i.trained is None else None
        if best is not None:
            yield dissected_channel(i.model, i.images, concepts, found, *best, batch_size=s.batch_size)


def _best(found: Dissection) -> tuple[str, int] | None:
    """Layer and channel of the largest strength; none where no layer with a grid has one."""
    peaks = [np.nan_to_num(strength, nan=-np.inf) for strength in found.strength]
    i = int(np.argmax([peak.max() for peak in peaks]))
    layer = found.layers[i]
    return (layer.name, int(peaks[i].argmax())) if layer.grid is not None and np.isfinite(peaks[i].max()) else None


def visualizations(i: Inputs) -> list[Result]:
    """Images optimised to excite the channels that have a page, one result a layer."""
    channels: dict[str, list[int]] = {}
    for page in i.results(ChannelPage):
        channels.setdefault(page.layer.name, []).append(page.channel)
    size = i.settings.batch_size
    return [visualize(i.model, layer, units, images=i.images, batch_size=size) for layer, units in channels.items()]


PAGES = Analysis(
    "pages",
    "channel pages",
    "Which images activate a channel most and least?",
    (ChannelPage,),
    pages,
    complete=pages_with_partners,
)
ROOM = Room(
    "channels",
    "analysis of channels",
    MeasureError,
    (
        Analysis(
            "statistics",
            "channel statistics",
            "How are the activations of each channel distributed?",
            (ChannelStatistics,),
            lambda i: [statistics(i)],
            needs="images",
        ),
        Analysis(
            "selectivity",
            "class selectivity",
            "Which channels are selective for a class?",
            (ClassSelectivity,),
            lambda i: [selectivity(i.test, i.settings)],
            labelled=True,
            baseline=True,
        ),
        Analysis(
            "needed",
            "channels needed",
            "How accurate is a probe on few channels?",
            (ChannelsNeeded,),
            needed,
            labelled=True,
        ),
        Analysis(
            "partners",
            "best-matching channels",
            "Which channels of two networks respond to the same images?",
            (ChannelPartners,),
            partners,
            needs="all networks",
            baseline=True,
        ),
        PAGES,
        Analysis(
            "dissection",
            "dissection",
            "Which annotated concepts does a channel detect?",
            (Dissection, DissectedChannel),
            dissections,
            needs="images",
            asks="annotated images: use mixer-probe channels with --masks FOLDER or --attributes FILE.csv",
            baseline=True,
            default=False,
        ),
        Analysis(
            "visualization",
            "visualization",
            "Which images excite a channel most, if they are optimised to?",
            (FeatureVisualization,),
            visualizations,
            needs="images",
            after=PAGES,
            default=False,
        ),
    ),
    (
        View(ChannelStatistics, channel_section),
        View(ClassSelectivity, selectivity_section),
        View(ChannelsNeeded, needed_section),
        View(ChannelPartners, partners_section),
        View(ChannelPage, pages_section),
        View(Dissection, dissection_section),
        View(DissectedChannel, dissected_section),
    ),
)


def check_labels(images: Images, what: Sequence[str]) -> None:
    """Raises ImagesError if analyses that need classes are asked for of images without labels."""
    for name in what:
        if ROOM[name].labelled and images.labels is None:
            raise ImagesError(
                f"--what {name} needs labels, and '{images.name}' has none: sort the images into one folder a class, or do "
                "without it"
            )
