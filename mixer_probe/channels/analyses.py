"""The analyses of single channels, and how their results are shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mixer_probe.capture import Inputs, Reading, Representations, extract
from mixer_probe.channels import (
    ChannelMoments,
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
from mixer_probe.channels.page import Shown
from mixer_probe.channels.top import TopMaps, maps_of
from mixer_probe.channels.views.dissection import dissected_section, dissection_section
from mixer_probe.channels.views.pages import pages_section, partners_section
from mixer_probe.channels.views.selectivity import needed_section, selectivity_section
from mixer_probe.channels.views.statistics import channel_section
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import (
    ImagesError,
    MeasureError,
    UndefinedChannelsWarning,
)
from mixer_probe.core.memory import RESIDENT
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.threads import parallel_map
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
_MOMENTS, _MAPS = "channel moments", "maps of channels"
R = TypeVar("R", ChannelStatistics, ClassSelectivity)


@contextmanager
def _undefined_allowed() -> Iterator[None]:
    """Inside, constant channels give no warning: the sentences count them, and every pair of layers
    would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedChannelsWarning)
        yield


def statistics(i: Inputs, layers: str | Sequence[str] | None = None) -> ChannelStatistics:
    """Statistics over a sample of the images where the settings limit it: every position counts, so
    that few images suffice. They are read where representations are extracted."""
    s = i.settings
    images = i.sample(s.statistics_images or len(i.images))
    if layers is None and (moments := i.passed(_MOMENTS, ChannelMoments, len(images))):
        return moments.compute(i.record, images.record, i.model.select(s.layers))
    return channel_statistics(
        i.model, images, layers or s.layers, batch_size=s.batch_size, autocast=s.autocast
    )


def _read_statistics(i: Inputs) -> list[Reading]:
    """What `statistics` are computed from."""
    if i.trained is not None:
        return []
    reading = i.keep(_MOMENTS, ChannelMoments).reading(i.model, i.model.select(i.settings.layers))
    return [replace(reading, rows=i.rows(i.settings.statistics_images))]


def selectivity(run: Representations, s: StudySettings) -> ClassSelectivity:
    """Class selectivity of every channel, with `DRAWS` permutations or more: the largest of
    thousands of channels is tested."""
    with _undefined_allowed():
        return class_selectivity(
            run, permutations=s.permutations and max(s.permutations, DRAWS), seed=s.seed
        )


def needed(i: Inputs) -> list[Result]:
    """Accuracy of a ridge probe against the number of channels in a few layers, evenly through the
    depth."""
    fit, rest = i.parts
    names = [fit.layers[k].name for k in spread(fit.layers, NEEDED_LAYERS)]
    with _undefined_allowed():
        return [
            channels_needed(
                fit.only(names), rest.only(names), draws=NEEDED_DRAWS, seed=i.settings.seed
            )
        ]


def partners(networks: Sequence[Inputs]) -> list[ChannelPartners]:
    """Best matches of the channels of every layer of each network in the layer of each other
    network at the most similar relative depth."""
    s = networks[0].settings
    options: dict[str, Any] = {
        "k": 1,
        "permutations": s.permutations and max(s.permutations, DRAWS),
        "seed": s.seed,
    }
    sides = permutations([i.test for i in networks], 2)
    pairs = [
        (a, b, layer.name, counterpart(layer, b.layers).name)
        for a, b in sides
        for layer in a.layers
    ]
    with _undefined_allowed():
        return parallel_map(lambda pair: channel_partners(*pair, **options), pairs)


def counterpart(layer: Layer, others: Sequence[Layer]) -> Layer:
    """The layer of the others at the most similar relative depth; of equals the earlier one."""
    return min(others, key=lambda other: abs(other.depth - layer.depth))


def chosen_channels(
    names: Sequence[str],
    statistics: ChannelStatistics,
    selectivity: ClassSelectivity | None,
    count: int,
) -> tuple[dict[str, list[int]], str]:
    """`count` channels of every layer, and the rule that selects them.

    With `selectivity` the most selective ones, the first of every class before the second of any
    and undefined ones last. Without labels those with the heaviest tails."""
    if selectivity is None:
        tails = {name: statistics.kurtosis[statistics.index(name)] for name in names}
        return {name: _largest(values)[:count] for name, values in tails.items()}, TAILED
    rule = CLEAREST if count == 1 else f"{CLEAREST}, then the most selective for other classes"
    chosen = {}
    for name in names:
        i = selectivity.index(name)
        order = _largest(selectivity.strength[i])
        classes = pd.Series(selectivity.preferred[i][order])
        turn = np.where(classes < 0, len(order), classes.groupby(classes).cumcount())
        chosen[name] = [order[k] for k in np.argsort(turn, kind="stable")[:count]]
    return chosen, rule


def _largest(values: np.ndarray) -> list[int]:
    """Indices of the values in descending order, NaN last."""
    return [int(i) for i in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]


def pages(i: Inputs) -> list[Result]:
    """Pages of the channels in `shared["channels"]` by layer, where the network has the layers; by
    default some of every layer.

    They show statistics and selectivity of earlier results."""
    asked: Mapping[str, Sequence[int]] = i.shared.get("channels", {})
    known = i.model.structure.names()
    names = [name for name in asked if name in known] if asked else i.test.names()
    if not names:
        return []
    s = i.settings
    if set(names) <= set(i.test.names()):
        run = i.test.only(names)
    else:
        run = extract(i.model, i.images, names, batch_size=s.batch_size, autocast=s.autocast)
    measured = _holding(i.results(ChannelStatistics), names) or statistics(i, names)
    selective = _holding(i.results(ClassSelectivity), names)
    if selective is None:
        # Labels may be missing, or allow no selectivity.
        with suppress(ImagesError, MeasureError):
            selective = selectivity(run, s)
    if asked:
        chosen, rule = {name: list(asked[name]) for name in names}, ASKED
    else:
        chosen, rule = chosen_channels(names, measured, selective, s.channel_pages)
    options: dict[str, Any] = {"k": s.page_images, "by": "mean", "batch_size": s.batch_size}
    top = i.passed(_MAPS, TopMaps, len(i.images))

    def maps(shown: Sequence[Shown]) -> list[np.ndarray]:
        read = [
            None if top is None else top.compute(end.layer, channel, end.lowest, index)
            for end, channel, index in shown
        ]
        known = [one for one in read if one is not None]
        named = [(end.layer.name, channel, index) for end, channel, index in shown]
        if len(known) == len(shown):
            return known
        # To the last bit those that a pass of all images would have read.
        batches = i.batches if _read_maps(i) else None
        return maps_of(i.model, i.images, named, s.batch_size, s.autocast, batches)

    found = channel_pages(
        i.model,
        i.images,
        chosen,
        statistics=measured,
        selectivity=selective,
        reps=run,
        maps=maps,
        **options,
    )
    return [replace(page, rule=rule) for page in found]


def _read_maps(i: Inputs) -> list[Reading]:
    """The maps that `pages` show, where there is room for those of all channels."""
    layers, k = i.model.select(i.settings.layers), i.settings.page_images
    unread = i.trained is not None or i.shared.get("channels")
    if unread or TopMaps.bytes_of(layers, k) > RESIDENT // 2:
        return []
    return [i.keep(_MAPS, lambda: TopMaps(k)).reading(layers)]


def _holding(found: Sequence[R], names: Sequence[str]) -> R | None:
    """The first result with all of these layers."""
    return next((r for r in found if all(name in r for name in names)), None)


def pages_with_partners(networks: Sequence[Inputs]) -> list[Result]:
    """The pages of all networks with the best-matching channels in the others; none for a single
    network."""
    others = [i for i in networks if i.extracted]
    if len(others) < 2:
        return []
    found = [r for i in others for r in i.results(ChannelPartners)] or partners(others)
    return [with_partners(page, found) for i in networks for page in i.results(ChannelPage)]


def dissections(i: Inputs) -> Iterator[Result]:
    """Dissection with each of `shared["concepts"]`, and pictures of the strongest channel if its
    layer has a grid."""
    s = i.settings
    options: dict[str, Any] = {
        "permutations": s.permutations,
        "batch_size": s.batch_size,
        "autocast": s.autocast,
        "seed": s.seed,
    }
    for concepts in i.shared.get("concepts", ()):
        found = dissect(i.model, i.images, concepts, s.layers, **options)
        yield found
        strengths = [np.nan_to_num(strength, nan=-np.inf) for strength in found.strength]
        k = int(np.argmax([strength.max() for strength in strengths]))
        layer, channel = found.layers[k], int(strengths[k].argmax())
        if i.trained is None and layer.grid is not None and np.isfinite(strengths[k][channel]):
            yield dissected_channel(
                i.model, i.images, concepts, found, layer.name, channel, batch_size=s.batch_size
            )


def visualizations(i: Inputs) -> list[Result]:
    """Feature visualizations of the channels that have a page, one result per layer."""
    channels: dict[str, list[int]] = {}
    for page in i.results(ChannelPage):
        channels.setdefault(page.layer.name, []).append(page.channel)
    size = i.settings.batch_size
    return [
        visualize(i.model, layer, units, images=i.images, batch_size=size)
        for layer, units in channels.items()
    ]


def pages_decided_by(i: Inputs) -> Mapping[str, Any]:
    """What decides pages besides the networks."""
    return {"images": i.images, "study": i.settings, "channels": i.shared.get("channels", {})}


def dissections_decided_by(i: Inputs) -> Mapping[str, Any] | None:
    """What decides dissections besides the networks, where the content of the annotations is known
    (`shared["annotations"]`)."""
    known = i.shared.get("annotations")
    return known and {"images": i.images, "study": i.settings, "annotations": known}


PAGES = Analysis(
    "pages",
    "channel pages",
    "Which images activate a channel most and least?",
    (ChannelPage,),
    pages,
    complete=pages_with_partners,
    reads=_read_maps,
    decided_by=pages_decided_by,
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
            reads=_read_statistics,
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
            asks=(
                "annotated images: use mixer-probe channels with --masks FOLDER or --attributes "
                "FILE.csv"
            ),
            baseline=True,
            default=False,
            decided_by=dissections_decided_by,
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
            decided_by=pages_decided_by,
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
                f"--what {name} needs labels, and '{images.name}' has none: sort the images into "
                "one folder per class, or do without it"
            )
