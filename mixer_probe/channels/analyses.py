"""The analyses of single channels, and how their results are shown. What `run` takes differs: see each function."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.capture import Representations
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
from mixer_probe.images.concepts import Concepts
from mixer_probe.models import Layer, Model
from mixer_probe.models.layer import spread
from mixer_probe.stats.claims import DRAWS
from mixer_probe.visualization import FeatureVisualization, visualize

# Curves of more layers lie on each other, and every point is a few probes.
NEEDED_LAYERS, NEEDED_DRAWS = 4, 3
CLEAREST = "the most class-selective channel of each layer (largest |z| of its AUROC)"
TAILED = "the channel with the heaviest tails of each layer (largest excess kurtosis)"
ASKED = "selected by number"


@contextmanager
def _told_elsewhere() -> Iterator[None]:
    """Constant channels are counted in the sentences; one warning each would come for every pair of layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedChannelsWarning)
        yield


def statistics_of(model: Model, images: Images, layers: str | Sequence[str], s: StudySettings) -> ChannelStatistics:
    """Statistics of a sample of the images where the settings say so: every position counts, so that they settle early."""
    most = len(images) if s.statistics_images is None else min(s.statistics_images, len(images))
    return channel_statistics(model, images.sample(most, s.seed), layers, batch_size=s.batch_size, autocast=s.autocast)


def selectivity_of(reps: Representations, s: StudySettings) -> ClassSelectivity:
    """Which classes every channel tells, with `DRAWS` permutations: the clearest channel is the largest of thousands."""
    with _told_elsewhere():
        return class_selectivity(reps, permutations=s.permutations and max(s.permutations, DRAWS), seed=s.seed)


def selectivity_or_none(reps: Representations, s: StudySettings) -> ClassSelectivity | None:
    """None for images whose labels, or lack of them, allow no selectivity."""
    try:
        return selectivity_of(reps, s)
    except (ImagesError, MeasureError):
        return None


def needed_of(fit: Representations, hold: Representations, s: StudySettings) -> Result:
    """How many channels of a few layers, evenly through the depth, a ridge probe needs."""
    names = [fit.layers[i].name for i in spread(fit.layers, NEEDED_LAYERS)]
    with _told_elsewhere():
        return channels_needed(fit.only(names), hold.only(names), draws=NEEDED_DRAWS, seed=s.seed)


def partners_of(a: Representations, b: Representations, s: StudySettings) -> list[ChannelPartners]:
    """For every layer of A the partners of its channels in the layer of B of the most similar relative depth."""
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


def dissections(model: Model, twin: Model | None, images: Images, concepts: Concepts, s: StudySettings) -> list[Result]:
    """Which concepts the channels of the network and of its twin mark, and pictures of the channel that stands out most."""
    found = [_dissected(one, images, concepts, s) for one in (model, twin) if one is not None]
    best = _best(found[0])
    if best is None:
        return [*found]
    return [*found, dissected_channel(model, images, concepts, found[0], *best, batch_size=s.batch_size)]


def _dissected(model: Model, images: Images, concepts: Concepts, s: StudySettings) -> Dissection:
    return dissect(
        model,
        images,
        concepts,
        s.layers,
        permutations=s.permutations,
        batch_size=s.batch_size,
        autocast=s.autocast,
        seed=s.seed,
    )


def _best(found: Dissection) -> tuple[str, int] | None:
    """Layer and channel of the largest strength; none where no layer with a grid has one."""
    peaks = [np.nan_to_num(strength, nan=-np.inf) for strength in found.strength]
    i = int(np.argmax([peak.max() for peak in peaks]))
    layer = found.layers[i]
    return (layer.name, int(peaks[i].argmax())) if layer.grid is not None and np.isfinite(peaks[i].max()) else None


def visualizations(model: Model, images: Images, pages: Sequence[ChannelPage], s: StudySettings) -> list[Result]:
    """Images made to excite the channels that have a page, one result a layer."""
    channels: dict[str, list[int]] = {}
    for page in pages:
        channels.setdefault(page.layer.name, []).append(page.channel)
    return [visualize(model, layer, units, images=images, batch_size=s.batch_size) for layer, units in channels.items()]


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
            statistics_of,
            needs="images",
            baseline=False,
        ),
        Analysis(
            "selectivity",
            "class selectivity",
            "Which channels are selective for a class?",
            (ClassSelectivity,),
            selectivity_of,
            labelled=True,
        ),
        Analysis(
            "needed",
            "channels needed",
            "How accurate is a probe on few channels?",
            (ChannelsNeeded,),
            needed_of,
            labelled=True,
            baseline=False,
        ),
        Analysis(
            "partners",
            "best-matching channels",
            "Which channels of two networks respond to the same images?",
            (ChannelPartners,),
            partners_of,
            needs="all networks",
        ),
        Analysis(
            "pages",
            "channel pages",
            "Which images activate a channel most and least?",
            (ChannelPage,),
            channel_pages,
            baseline=False,
        ),
        Analysis(
            "dissection",
            "dissection",
            "Which annotated concepts does a channel detect?",
            (Dissection, DissectedChannel),
            dissections,
            needs="images",
            default=False,
        ),
        Analysis(
            "visualization",
            "visualization",
            "Which images excite a channel most, if they are optimised to?",
            (FeatureVisualization,),
            visualizations,
            needs="images",
            baseline=False,
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
