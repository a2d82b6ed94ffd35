"""`Study`: runs the analyses of the catalogue over networks on the same images. Networks are in
memory one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from mixer_probe import catalog
from mixer_probe.capture import Inputs
from mixer_probe.capture.analysis_inputs import temporary_folder
from mixer_probe.core.analysis import Analysis, Room
from mixer_probe.core.errors import (
    EmptyAttributionWarning,
    ImagesError,
    IncompleteAttributionWarning,
    MixerProbeError,
    ModelError,
    StoreError,
)
from mixer_probe.core.progress import task
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.skipped import Skipped, has_no_room
from mixer_probe.core.threads import use_part
from mixer_probe.images import Images
from mixer_probe.images.classes import require_labels
from mixer_probe.images.pixel_cache import PixelCache
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.models import Model, describe
from mixer_probe.parallel import alone, gather, ranks
from mixer_probe.probing.baselines import pixels_of
from mixer_probe.study.result_cache import ResultCache, file_digests, identity

Loader = Callable[[], Model]


@dataclass
class Study:
    """Analyses of networks on the same images, one after the other, into `results`.

    `names` are those of the analyses to make, by room; by default those of the settings. What fails
    is left out with its reason, once per room; a `strict` study raises instead, and does not leave
    out what the family of a network is not meant for. With `steps` what is finished is kept on
    disk, and taken from there by another study of the same. `shared` is that of `Inputs`. Images
    are decoded once for all networks with the same resize and crop (`PixelCache`)."""

    images: Images | None = None
    train: Images | None = None
    settings: StudySettings = field(default_factory=StudySettings)
    store: Path | None = None
    steps: ResultCache | None = None
    names: Mapping[str, Sequence[str]] | None = None
    strict: bool = False
    shared: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    networks: list[Inputs] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = self.names
        if names is None:
            names = {room.name: room.defaults for room in catalog.ROOMS} | dict(
                self.settings.analyses
            )
        chosen = {name: catalog.room(name).check(found) for name, found in names.items()}
        self.settings = replace(self.settings, analyses=chosen)
        cache = PixelCache()
        self.images, self.train = (
            i.cached(cache) if isinstance(i, Images) and i.cache is None else i
            for i in (self.images, self.train)
        )
        self._asked = [
            (room, a) for room, a in catalog.analyses() if a.name in chosen.get(room.name, ())
        ]
        self._reasons: set[tuple[str, str]] = set()
        self._identities: dict[ModelRecord, Any] = {}

    @property
    def needs_activations(self) -> bool:
        """Whether representations of all images are extracted."""
        return any(a.needs not in ("weights", "images") for _, a in self._asked)

    def inputs(self, model: Model) -> Inputs:
        """What the analyses are given of a network."""
        network = Inputs(model, self.images, self.train, self.settings, self.shared, self.store)
        if self.needs_activations:
            network.reads = [a.reads for _, a in self._asked if a.reads is not None]
        network.stays = any(a.in_memory for _, a in self._asked)
        return network

    def add(self, model: Model, card: bool = False) -> Inputs:
        """All analyses that look at this network alone; with `card` its card comes first."""
        network = self.inputs(model)
        place = len(self.results)
        with closing(network), task(f"analyses of {model.name}", len(self._asked)) as advance:
            if self.steps is not None:
                self._identify(network)
            if card:
                self.results.append(describe(model))
            for room, analysis in self._asked:
                if analysis.of_one:
                    self._run(room, analysis, f"{analysis.title} of {model.name}", [network])
                else:
                    self._prepare(room, analysis, network)
                advance(1)
            if card and self._extracted(network):
                own = own_accuracy(model, network.images, network.whole, self.settings.batch_size)
                self.results[place] = replace(self.results[place], own=own)  # type: ignore[call-arg]
        self.networks.append(network)
        return network

    @contextmanager
    def after_passes(self, models: Sequence[Model | Loader], card: bool = False) -> Iterator[bool]:
        """Inside, the representations that the study needs are in its store, by default a temporary
        folder, where torchrun started several processes: all of them extract, and where steps are
        kept each has analysed some of the networks. The value is whether this process goes on with
        the study: the first one, `alone`. A single process extracts when it has to.

        What cannot be done is left to the study, which says why."""
        here = ranks()
        if here.world > 1:
            if self.store is None:
                self.store = self.shared.get("runs") or temporary_folder(self.shared)
            for model in models if self.needs_activations else ():
                # All meet the same errors, so that none waits for another.
                with suppress(MixerProbeError), closing(self.inputs(loaded(model))) as network:
                    network.extract_all()
            if self.steps is not None:
                for model in models[here.rank :: here.world]:
                    with alone(), suppress(MixerProbeError):
                        replace(self, results=[], networks=[]).add(loaded(model), card)
                gather(None)
            # The others are done.
            use_part(1)
        with alone() if here.world > 1 else nullcontext():
            yield here.first

    def finish(self) -> list[Result]:
        """All that looks at raw pixels, and at several networks together. Returns all results."""
        parts = list(self._of_several())
        with task("analyses of all networks", len(parts)) as advance:
            for room, analysis, step, group in parts:
                self._run(room, analysis, step, group)
                advance(1)
        for room, analysis in self._asked:
            # Results of one analysis given again with what the other networks add.
            places = [k for k, r in enumerate(self.results) if isinstance(r, analysis.results)]
            if analysis.complete is None or not places:
                continue
            step = f"{analysis.title} of all networks"
            try:
                found = self._step(
                    step, analysis, self.networks, partial(analysis.complete, self.networks)
                )
            except MixerProbeError as error:
                self._add(room.name, self._failure(step, error))
                continue
            for k, result in zip(places, found):
                self.results[k] = result
        return self.results

    def _of_several(self) -> Iterator[tuple[Room, Analysis, str, Sequence[Inputs]]]:
        """Analyses of raw pixels (a baseline of trained networks, as if a network had made them),
        and of several networks."""
        extracted = [i for i in self.networks if i.extracted]
        pixels: list[Inputs] = []
        wanted = any(a.pixels for _, a in self._asked) and self.settings.baselines
        if wanted and any(i.record.trained for i in extracted):
            first = extracted[0]
            train = None if self.train is None else pixels_of(self.train, first)
            pixels.append(Inputs.of_runs(pixels_of(first.images, first), train, first))
        for room, analysis in self._asked:
            if analysis.pixels:
                yield from (
                    (room, analysis, f"{analysis.title} of {i.record.name}", [i]) for i in pixels
                )
            if analysis.pixels or analysis.of_one:
                continue
            networks = [i for i in self.networks if analysis.after or i.extracted]
            # Once per value of the setting `each`.
            for value in getattr(self.settings, analysis.each) if analysis.each else (None,):
                given = (
                    networks
                    if value is None
                    else [i.with_settings(**{analysis.each: (value,)}) for i in networks]
                )
                title = analysis.title if value is None else f"{analysis.title} ({value})"
                if analysis.needs == "pairs":
                    for a, b in combinations_with_replacement(given, 2):
                        yield (
                            room,
                            analysis,
                            f"{title} of {a.record.name} and {b.record.name}",
                            (a, b),
                        )
                elif given:
                    yield room, analysis, f"{title} of all networks", given

    def _prepare(self, room: Room, analysis: Analysis, network: Inputs) -> None:
        """What an analysis of several networks takes of one, while that is in memory."""
        after = analysis.after
        if after is not None:
            if any(network.results(kind) for kind in after.results):
                return
            step = f"{after.title} of {network.record.name}"
            network.keep(step, lambda: self._run(room, after, step, [network], reported=False))
        elif self._extracted(network) and analysis.baseline and network.baseline is not None:
            self._extracted(network.baseline)

    def _run(
        self,
        room: Room,
        analysis: Analysis,
        step: str,
        group: Sequence[Inputs],
        reported: bool = True,
    ) -> None:
        """One analysis of a network, or of several together, as one step."""
        if not self._can(room, analysis, group):
            return
        baselines = [i.baseline for i in group if analysis.baseline and i.baseline is not None]
        given: list[Any] = (
            [*group, *baselines]
            if analysis.of_one
            else [group, *([baselines] if baselines else [])]
        )

        def work() -> list[Result]:
            found: list[Result] = []
            try:
                with warnings.catch_warnings():
                    # A report gives the content of these warnings in its sentences.
                    for category in (
                        ()
                        if self.strict
                        else (EmptyAttributionWarning, IncompleteAttributionWarning)
                    ):
                        warnings.simplefilter("ignore", category)
                    for one in given:
                        # Results before an error are kept: what fails for a network fails for its
                        # baseline too.
                        found.extend(analysis.run(one))
            except MixerProbeError as error:
                found.append(self._failure(step, error))
            return found

        found = self._step(step, analysis, group, work)
        for i in (*group, *baselines):
            i.found += found
        for result in found:
            if reported or isinstance(result, Skipped):
                self._add(room.name, result)

    def _can(self, room: Room, analysis: Analysis, group: Sequence[Inputs]) -> bool:
        """Whether there is what the analysis needs; what is missing is reported, but for families
        and raw pixels."""
        if (
            analysis.of_one
            and not self.strict
            and group[0].record.family not in (*analysis.families, "pixels")
        ):
            return False
        if analysis.labelled:
            try:
                images = group[0].images
                require_labels(images.labels, f"the images ({images.name})", "the analysis")
            except ImagesError as error:
                self._add(room.name, self._failure(analysis.title, error))
                return False
        if analysis.after is not None:
            if analysis.of_one:
                self._prepare(room, analysis, group[0])
            kinds = analysis.after.results
            return any(i.results(kind) for i in group for kind in kinds)
        return analysis.needs != "activations" or all(map(self._extracted, group))

    def _extracted(self, network: Inputs) -> bool:
        """Whether the representations of the test images are there; if they are unavailable, the
        reason is reported."""
        try:
            _ = network.test
        except MixerProbeError as error:
            self._add("", self._failure(f"representations of {network.record.name}", error))
            return False
        return True

    def _failure(self, step: str, error: MixerProbeError) -> Skipped:
        """Why a step is left out; where the study cannot go on without it, the error is raised."""
        if self.strict:
            raise error
        if has_no_room(error):
            # No later step could be kept either.
            raise StoreError(f"the step '{step}' stopped: {error}") from error
        return Skipped.because(step, error)

    def _add(self, room: str, result: Result) -> None:
        if isinstance(result, Skipped):
            if (room, result.reason) in self._reasons:
                return
            self._reasons.add((room, result.reason))
        self.results.append(result)

    def _identify(self, network: Inputs) -> None:
        """Note what a network is, with its baseline, which both may have left memory when a step
        asks."""
        if network.record not in self._identities:
            both = (
                [network.record]
                if network.record.family == "pixels"
                else [x.model for x in (network, network.baseline) if x is not None]
            )
            self._identities[network.record] = identity(both)

    def _step(
        self,
        step: str,
        analysis: Analysis,
        group: Sequence[Inputs],
        work: Callable[[], Iterable[Result]],
    ) -> list[Result]:
        """Results of `work`, or those kept of an earlier study."""
        if self.steps is None:
            return list(work())
        network, s = group[0], group[0].settings
        for i in group:
            self._identify(i)
        # What decides the numbers besides networks and their baselines.
        if analysis.decided_by is not None:
            found = analysis.decided_by(network)
            if found is None:
                return list(work())
            decided = dict(found)
        elif analysis.needs == "weights":
            decided = {}
        else:
            tables = file_digests([s.groups, *(spec.rpartition(":")[0] for spec in s.targets)])
            images = identity([self.images, self.train])
            decided = {"images": images, "study": s, "tables": tables}
        return self.steps.get(
            step, {"networks": [self._identities[i.record] for i in group], **decided}, work
        )


def run_study(
    models: Iterable[Model | Loader],
    images: Images,
    train: Images | None = None,
    settings: StudySettings | None = None,
    store: Path | None = None,
    steps: ResultCache | None = None,
) -> list[Result]:
    """All results of the report: cards, weights, similarity, probes, channels and attributions.

    Models may be given as functions that load them, so that only one is in memory at a time. Probes
    are fitted on `train` and tested on `images`; without `train` on a stratified half of `images`.
    With `store` the representations are kept there, with `steps` the results of every finished
    step, and an interrupted study goes on with them. Processes that torchrun started divide the
    passes over the images; the results are those of the first, and the others have none. Raises
    ModelError if no model can be loaded, and StoreError that names the step if there is no room to
    keep what it made."""
    study = Study(images, train, settings or StudySettings(), store, steps)
    networks, failures = list(models), list[ModelError]()
    with study.after_passes(networks, card=True) as first:
        if not first:
            return []
        for model in networks:
            try:
                study.add(loaded(model), card=True)
            except ModelError as error:
                failures.append(error)
                study.results.append(Skipped.because("loading a model", error))
        if failures and not study.networks:
            raise failures[0]
        return study.finish()


def run_analyses(
    models: Iterable[Model | Loader],
    names: Mapping[str, Sequence[str]],
    images: Images | None = None,
    train: Images | None = None,
    settings: StudySettings | None = None,
    steps: ResultCache | None = None,
    strict: bool = True,
    **shared: Any,
) -> list[Result]:
    """Results of the analyses that `names` lists by room, of all networks: `{"weights": ["units",
    "kernels"]}`.

    Other arguments as for `run_study`. Raises the error of an analysis that a network cannot have;
    without `strict` it is a `Skipped` result."""
    study = Study(
        images,
        train,
        settings or StudySettings(),
        steps=steps,
        names=names,
        strict=strict,
        shared=shared,
    )
    networks = list(models)
    with study.after_passes(networks) as first:
        if not first:
            return []
        for model in networks:
            study.add(loaded(model))
        return study.finish()


def loaded(model: Model | Loader) -> Model:
    """The network, loaded if it is not yet."""
    return model if isinstance(model, Model) else model()
