"""Which analyses of channels there are, and what they say of networks one by one and two by two: for the report and the command
line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mixer_probe.capture import Representations, extract
from mixer_probe.channels import (
    ChannelPage,
    ChannelPartners,
    ChannelStatistics,
    ClassSelectivity,
    channel_pages,
    channel_partners,
    channel_statistics,
    channels_needed,
    class_selectivity,
    with_partners,
)
from mixer_probe.errors import ImagesError, MeasureError, MixerProbeError, UndefinedChannelsWarning, closest
from mixer_probe.figures.probes import spread
from mixer_probe.images import Images
from mixer_probe.images.concepts import Concepts
from mixer_probe.models import Layer, Model
from mixer_probe.report.channel_extras import dissections, visualizations
from mixer_probe.report.finding import DRAWS
from mixer_probe.report.seen import Seen
from mixer_probe.report.settings import StudySettings
from mixer_probe.report.skipped import Skipped
from mixer_probe.results import Result

WHAT = ("statistics", "selectivity", "needed", "partners", "pages")
# What a report makes only when asked, since it needs annotations, or minutes.
EXTRAS = ("dissection", "visualization")
LABELLED = ("selectivity", "needed")
TITLES = {
    "statistics": "channel statistics",
    "selectivity": "class selectivity",
    "needed": "channels needed",
    "partners": "partners of channels",
    "pages": "channel pages",
    "dissection": "dissection",
    "visualization": "visualization",
}
# Curves of more layers lie on each other, and every point is a few probes.
NEEDED_LAYERS, NEEDED_DRAWS = 4, 3
CLEAREST = "the channel that tells a class most clearly of all channels of its layer (largest |z| of its AUROC)"
TAILED = "the channel with the heaviest tails of all channels of its layer (largest excess kurtosis)"
ASKED = "asked for by its number"

Runs = tuple[Representations, Representations]
R = TypeVar("R", bound=Result)


def check_channels(what: Iterable[str]) -> tuple[str, ...]:
    """The names as they are, each once. Raises MeasureError for one that is no analysis of channels."""
    for name in what:
        if name not in (*WHAT, *EXTRAS):
            raise MeasureError(f"there is no analysis of channels '{name}'; {closest(name, (*WHAT, *EXTRAS))}")
    return tuple(dict.fromkeys(what))


@dataclass
class ChannelStudy:
    """Runs step by step into `results`; a step that fails becomes a `Skipped` result with its reason.

    `asked` are channels by layer that get a page, in the networks that have the layer; without any, `settings.channel_pages`
    channels of every layer do. `concepts` are sought in the channels if a dissection is wanted."""

    settings: StudySettings
    results: list[Result]
    asked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    concepts: Sequence[Concepts] = ()
    runs: list[Representations] = field(default_factory=list)
    twins: list[Representations] = field(default_factory=list)

    def wants(self, *names: str) -> bool:
        """Whether any of the analyses is wanted."""
        return any(name in self.settings.channels for name in names)

    def look_at(self, model: Model, images: Images, seen: Seen | None, parts: Callable[[Seen], Runs]) -> None:
        """Everything but what needs two networks; `parts` gives runs to fit probes on and to test them on.

        Without `seen` only statistics and pages can be had."""
        labelled = images.labels is not None
        if not labelled and self.wants(*LABELLED):
            self._skip(TITLES["selectivity"], f"selectivity needs labels, and '{images.name}' has none")
        statistics = self._statistics(model, images) if self.wants("statistics") else None
        selectivity = self._selectivity(seen) if seen and labelled and self.wants("selectivity") else None
        if seen and labelled and self.wants("needed"):
            self._try("needed", model.name, lambda: needed_of(*parts(seen), self.settings))
        if self.wants("pages"):
            self._pages(model, images, seen, statistics, selectivity)
        self._extras(model, images)
        self.remember(seen)

    def _extras(self, model: Model, images: Images) -> None:
        s = self.settings
        if self.wants("dissection"):
            twin = model.untrained() if s.baselines and model.weights.trained else None
            for concepts in self.concepts:
                self._several("dissection", model, lambda c=concepts: dissections(model, twin, images, c, s))  # type: ignore[misc]
        if self.wants("visualization"):
            pages = [r for r in self.results if isinstance(r, ChannelPage) and r.model == model.record]
            self._several("visualization", model, lambda: visualizations(model, images, pages, s))

    def _several(self, name: str, model: Model, work: Callable[[], list[Result]]) -> None:
        try:
            self.results += work()
        except MixerProbeError as error:
            self._skip(f"{TITLES[name]} of {model.name}", error)

    def remember(self, seen: Seen | None) -> None:
        """Keep the runs in which partners of other networks' channels are sought."""
        if seen and self.wants("partners", "pages"):
            self.runs.append(seen.test)
            self.twins += [] if seen.twin_test is None else [seen.twin_test]

    def _statistics(self, model: Model, images: Images) -> ChannelStatistics | None:
        return self._try("statistics", model.name, lambda: statistics_of(model, images, self.settings.layers, self.settings))

    def _selectivity(self, seen: Seen) -> ClassSelectivity | None:
        runs = (seen.test, seen.twin_test)
        found = [
            self._try("selectivity", r.model.name, lambda r=r: selectivity_of(r, self.settings))  # type: ignore[misc]
            for r in runs
            if r is not None
        ]
        return found[0]

    def _pages(
        self,
        model: Model,
        images: Images,
        seen: Seen | None,
        statistics: ChannelStatistics | None,
        selectivity: ClassSelectivity | None,
    ) -> None:
        try:
            names = (
                asked_layers(self.asked, model) if self.asked else [layer.name for layer in model.select(self.settings.layers)]
            )
            if not names:
                return
            if statistics is None or not _holds(statistics.layers, names):
                statistics = statistics_of(model, images, names, self.settings)
            run = _run_of(names, model, images, seen, self.settings)
            if selectivity is None or not _holds(selectivity.layers, names):
                selectivity = _selectivity_or_none(run, self.settings)
            self.results += self._made(model, images, run, statistics, selectivity)
        except MixerProbeError as error:
            self._skip(f"{TITLES['pages']} of {model.name}", error)

    def _made(
        self,
        model: Model,
        images: Images,
        run: Representations,
        statistics: ChannelStatistics,
        selectivity: ClassSelectivity | None,
    ) -> list[ChannelPage]:
        s, names = self.settings, run.names()
        if self.asked:
            chosen, rule = {name: list(self.asked[name]) for name in names}, ASKED
        else:
            chosen, rule = chosen_channels(names, statistics, selectivity, s.channel_pages)
        pages = channel_pages(
            model,
            images,
            chosen,
            k=s.page_images,
            by="mean",
            statistics=statistics,
            selectivity=selectivity,
            reps=run,
            batch_size=s.batch_size,
        )
        return [replace(page, rule=rule) for page in pages]

    def finish(self) -> None:
        """What needs two networks: partners of channels, also on the pages."""
        if len(self.runs) < 2:
            return
        found = self._partners(self.runs)
        if self.wants("partners"):
            self.results += found
            self.results += self._partners(self.twins)
        for i, result in enumerate(self.results):
            if isinstance(result, ChannelPage):
                self.results[i] = with_partners(result, found)

    def _partners(self, runs: Sequence[Representations]) -> list[ChannelPartners]:
        try:
            return [p for a, b in permutations(runs, 2) for p in partners_of(a, b, self.settings)]
        except MixerProbeError as error:
            self._skip(TITLES["partners"], error)
            return []

    def _try(self, name: str, model: str, work: Callable[[], R]) -> R | None:
        try:
            found = work()
        except MixerProbeError as error:
            self._skip(f"{TITLES[name]} of {model}", error)
            return None
        self.results.append(found)
        return found

    def _skip(self, step: str, reason: str | MixerProbeError) -> None:
        skipped = Skipped(step, reason) if isinstance(reason, str) else Skipped.because(step, reason)
        if not any(r == skipped for r in self.results if isinstance(r, Skipped)):
            self.results.append(skipped)


def _holds(layers: Sequence[Layer], names: Sequence[str]) -> bool:
    return set(names) <= {layer.name for layer in layers}


def _run_of(names: Sequence[str], model: Model, images: Images, seen: Seen | None, s: StudySettings) -> Representations:
    """The run on the test images, of other layers than those of the study where these are asked for."""
    if seen is not None and _holds(seen.test.layers, names):
        return seen.test.only(names)
    return extract(model, images, list(names), batch_size=s.batch_size, autocast=s.autocast)


def asked_layers(asked: Mapping[str, Sequence[int]], model: Model) -> list[str]:
    """Those of the layers that the network has, in the order given."""
    known = model.structure.names()
    return [name for name in asked if name in known]


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


def _selectivity_or_none(reps: Representations, s: StudySettings) -> ClassSelectivity | None:
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
    rule = CLEAREST if count == 1 else f"{CLEAREST}, then the clearest of other classes"
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


def check_labels(images: Images, what: Sequence[str]) -> None:
    """Raises ImagesError if analyses that need classes are asked for of images without labels."""
    for name in LABELLED:
        if name in what and images.labels is None:
            raise ImagesError(
                f"--what {name} needs labels, and '{images.name}' has none: sort the images into one folder a class, or do "
                "without it"
            )
