"""Analyses of channels that a report makes only when asked: concepts that channels mark, and images made to excite them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.channels import ChannelPage, Dissection, dissect, dissected_channel
from mixer_probe.images import Images
from mixer_probe.images.concepts import Concepts
from mixer_probe.models import Model
from mixer_probe.report.settings import StudySettings
from mixer_probe.results import Result
from mixer_probe.visualization import visualize


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
