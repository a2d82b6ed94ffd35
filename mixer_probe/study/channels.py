"""Runs the analyses of the room `channels` over networks, one by one and two by two: for the report and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TypeVar

from mixer_probe.capture import Representations, extract
from mixer_probe.channels import ChannelPage, ChannelPartners, ChannelStatistics, ClassSelectivity, channel_pages, with_partners
from mixer_probe.channels.analyses import (
    ASKED,
    ROOM,
    chosen_channels,
    dissections,
    needed_of,
    partners_of,
    selectivity_of,
    selectivity_or_none,
    statistics_of,
    visualizations,
)
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.skipped import Skipped
from mixer_probe.images import Images
from mixer_probe.images.concepts import Concepts
from mixer_probe.models import Layer, Model
from mixer_probe.study.seen import Seen

Runs = tuple[Representations, Representations]
R = TypeVar("R", bound=Result)


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
        if not labelled and self.wants("selectivity", "needed"):
            self._skip(ROOM["selectivity"].title, f"selectivity needs labels, and '{images.name}' has none")
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
            self._skip(f"{ROOM[name].title} of {model.name}", error)

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
                selectivity = selectivity_or_none(run, self.settings)
            self.results += self._made(model, images, run, statistics, selectivity)
        except MixerProbeError as error:
            self._skip(f"{ROOM['pages'].title} of {model.name}", error)

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
            self._skip(ROOM["partners"].title, error)
            return []

    def _try(self, name: str, model: str, work: Callable[[], R]) -> R | None:
        try:
            found = work()
        except MixerProbeError as error:
            self._skip(f"{ROOM[name].title} of {model}", error)
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
