"""`run_study`: all analyses of the report for a list of models on the same images. Models are in memory one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixer_probe.attribution import Attribution
from mixer_probe.capture import Representations, extract
from mixer_probe.channels import ChannelPage
from mixer_probe.core.analysis import Analysis
from mixer_probe.core.errors import MeasureError, MixerProbeError, ModelError, StoreError
from mixer_probe.core.fingerprint import apart
from mixer_probe.core.progress import task
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.skipped import Skipped, has_no_room
from mixer_probe.core.text import slug
from mixer_probe.images import Images
from mixer_probe.images.classes import class_name, quoted, require_labels
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.models import Model, describe
from mixer_probe.probing import Target, raw_pixels
from mixer_probe.probing.analyses import PER_RUN, ROOM, Readings, runs_of, study_targets
from mixer_probe.similarity import compare
from mixer_probe.study.attributions import AttributionStudy, report_study
from mixer_probe.study.channels import ChannelStudy
from mixer_probe.study.probes import place_results, probe_results
from mixer_probe.study.seen import Seen
from mixer_probe.study.steps import Steps, file_digests
from mixer_probe.study.weights import weight_results

# The mean Jacobians of the channels settle with few images, since every position counts.
KERNEL_IMAGES = 64
# CKA has all its draws in a few matrix products; other measures start anew with each. Twenty are the fewest with an interval.
OTHER_DRAWS = 20
_CKA = ("cka", "cka_rbf")

Loader = Callable[[], Model]


@dataclass
class Study:
    """Runs step by step and keeps what is finished: a step that fails becomes a `Skipped` result with its reason.

    With `steps` what is finished is also kept on disk, and taken from there by another study of the same."""

    images: Images
    train: Images | None = None
    settings: StudySettings = field(default_factory=StudySettings)
    store: Path | None = None
    results: list[Result] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    targets: tuple[tuple[Target, ...], tuple[Target, ...]] | None = None
    channels: ChannelStudy = field(init=False)
    attributions: AttributionStudy | None = None
    steps: Steps | None = None

    def __post_init__(self) -> None:
        self.channels = ChannelStudy(self.settings, self.results)

    def look_at(self, model: Model) -> None:
        """Everything that needs the model itself: card, weights, representations, channels, attributions."""
        twin = self.twin_of(model)
        card = len(self.results)
        self.results.append(describe(model))
        both, sample = [model] if twin is None else [model, twin], self._sample(KERNEL_IMAGES)
        of_weights = {"models": both, "images": sample}
        self.results += self._step(f"weights of {model.name}", of_weights, lambda: weight_results(both, images=sample))
        seen = self.represent(model, twin)
        if seen is not None:
            own = own_accuracy(model, self.images, seen.whole, self.settings.batch_size)
            self.results[card] = replace(self.results[card], own=own)  # type: ignore[call-arg]
        self.read_places(model, twin)
        self._channels_of(model, seen)
        if self.settings.attributions:
            self._attribute(model)

    def _step(self, name: str, what: dict[str, Any], work: Callable[[], Iterable[Result]]) -> list[Result]:
        """Results of `work`, or those kept of an earlier study; `what` decides them."""
        return list(work()) if self.steps is None else self.steps.get(name, what, work)

    def _of_study(self, **what: Any) -> dict[str, Any]:
        """What decides a step that takes the study's images and settings."""
        s = self.settings
        tables = file_digests([s.groups, *(spec.rpartition(":")[0] for spec in s.targets)])
        return {"images": self.images, "train": self.train, "study": s, "tables": tables, **what}

    def _attribute(self, model: Model) -> None:
        study = self.attributions = self.attributions or report_study(model, self.images, self.settings, self.results)

        def work() -> list[Result]:
            own = replace(study, results=[], made=[])
            own.look_at(model)
            return [*own.results, *own.made]

        what = {"model": model, "images": study.images, "settings": study.settings}
        for result in self._step(f"attributions of {model.name}", what, work):
            if isinstance(result, Attribution):
                study.made.append(result)
            else:
                self._add(result)

    def _add(self, result: Result) -> None:
        """A result; what is left out of several networks for one reason is told once."""
        if not (isinstance(result, Skipped) and result in [r for r in self.results if isinstance(r, Skipped)]):
            self.results.append(result)

    def twin_of(self, model: Model) -> Model | None:
        """The untrained twin of a trained model, where baselines are wanted."""
        return model.untrained() if self.settings.baselines and model.weights.trained else None

    def read(self, model: Model) -> None:
        """What its probes need of a model, and no other analysis."""
        twin = self.twin_of(model)
        self.read_places(model, twin)
        if self._per_run():
            self.represent(model, twin)

    def read_channels(self, model: Model) -> None:
        """What single channels do, and no other analysis."""
        wanted = self.channels.wants("selectivity", "needed", "partners", "pages")
        self._channels_of(model, self.represent(model, self.twin_of(model)) if wanted else None)

    def _channels_of(self, model: Model, seen: Seen | None) -> None:
        def work() -> list[Result]:
            own = replace(self.channels, results=[], runs=[], twins=[])
            own.look_at(model, self.images, seen, lambda seen: self._parts(seen.test, seen.train))
            return own.results

        what = self._of_study(model=model, seen=_runs([seen]), asked=self.channels.asked)
        for result in self._step(f"channels of {model.name}", what, work):
            self._add(result)
        self.channels.remember(seen)

    def finish(self) -> None:
        """What is made of the channels and of the attributions of all networks."""
        self._finish_channels()
        if self.attributions is not None:
            study, results = self.attributions, list[Result]()

            def work() -> list[Result]:
                replace(study, results=results).finish()
                return results

            made = [(a.model, a.method, a.maps, a.targets, a.logit) for a in study.made]
            what = {"made": made, "images": study.images, "settings": study.settings}
            self.results += self._step("attributions of all networks", what, work)

    def _finish_channels(self) -> None:
        places = [i for i, result in enumerate(self.results) if isinstance(result, ChannelPage)]
        pages = [self.results[i] for i in places]

        def work() -> list[Result]:
            own = replace(self.channels, results=list(pages))
            own.finish()
            return own.results

        what = self._of_study(seen=_runs(self.seen), pages=pages)
        found = self._step("partners of channels", what, work)
        # The pages come first, now with their partners.
        for i, page in zip(places, found):
            self.results[i] = page
        self.results += found[len(places) :]

    def read_places(self, model: Model, twin: Model | None) -> None:
        """Probes that need the model itself: of positions, and of the place of a token."""
        self.results += self._step(
            f"probes of places in {model.name}",
            self._of_study(models=[model, twin]),
            lambda: place_results(model, twin, self._image_parts, self.images, self.settings),
        )

    def represent(self, model: Model, twin: Model | None) -> Seen | None:
        """Keep the representations that similarity, probes and channels need; None if they cannot be had."""
        try:
            whole = self._extract(model, self.images, "test", with_head=True)
            seen = Seen(whole.only([layer.name for layer in model.select(self.settings.layers)]), whole=whole)
            if self.train is not None:
                seen.train = self._extract(model, self.train, "train")
            if twin is not None and (self._will_probe() or self.channels.wants("selectivity", "partners")):
                seen.twin_test = self._extract(twin, self.images, "test")
                seen.twin_train = self._extract(twin, self.train, "train") if self.train is not None else None
        except MixerProbeError as error:
            step = f"representations of {model.name}"
            if has_no_room(error):
                # No later step could be kept either.
                raise StoreError(f"the step '{step}' stopped: {error}") from error
            self.results.append(Skipped.because(step, error))
            return None
        self.seen.append(seen)
        return seen

    def _will_probe(self) -> bool:
        labelled = self.train is not None or self.images.labels is not None
        return any(labelled or not analysis.labelled for analysis in self._per_run())

    def _per_run(self) -> list[Analysis]:
        """The probes that are asked for and read runs."""
        return [ROOM[name] for name in self.settings.probes if ROOM[name] in PER_RUN]

    def _extract(self, model: Model, images: Images, part: str, with_head: bool = False) -> Representations:
        """The layers of the study; `with_head` the last head too, whose logits say how often the network is right."""
        s = self.settings
        heads = [layer.name for layer in model.layers if layer.kind == "head"][-1:] if with_head else []
        layers = [*([s.layers] if isinstance(s.layers, str) else s.layers), *heads]
        of = f"{model.fingerprint[:8]}-{images.fingerprint[:8]}"
        out = None if self.store is None else self.store / f"{slug(model.name)}-{of}-{part}.zarr"
        return extract(model, images, layers, batch_size=s.batch_size, autocast=s.autocast, out=out)

    def _sample(self, most: int) -> Images:
        return self.images.sample(min(most, len(self.images)), self.settings.seed)

    def compare(self) -> None:
        """Similarity of every two models by every measure, and of each with itself by CKA."""
        pairs = list(itertools.combinations_with_replacement(self.seen, 2))
        todo = [(m, a, b) for m in self.settings.measures for a, b in pairs if a is not b or m in _CKA]
        with task("similarity", len(todo)) as advance:
            for measure, a, b in todo:
                self.results += self._similarity(measure, a.test, b.test)
                advance(1)

    def _similarity(self, measure: str, a: Representations, b: Representations) -> list[Result]:
        s = self.settings
        draws = [n if measure in _CKA else min(n, OTHER_DRAWS) for n in (s.permutations, s.resamples)]
        step = f"similarity ({measure}) of {a.model.name} and {b.model.name}"

        def work() -> list[Result]:
            try:
                return [compare(a, b, measure, permutations=draws[0], resamples=draws[1], seed=s.seed)]
            except MixerProbeError as error:
                return [Skipped.because(step, error)]

        return self._step(step, {"a": a, "b": b, "measure": measure, "draws": draws, "seed": s.seed}, work)

    def probe(self) -> None:
        """The probes asked for, of what every model and the raw pixels represent."""
        names = [analysis.name for analysis in self._per_run()]
        if not names or not self.seen:
            return
        try:
            self._check_labels(names)
        except MixerProbeError as error:
            self.results.append(Skipped.because("linear probes", error))
            names = [name for name in names if not ROOM[name].labelled]
        try:
            found = [self._readings(seen, names) for seen in (*self.seen, *self._pixels())] if names else []
        except MixerProbeError as error:
            self.results.append(Skipped.because("probes", error))
            return
        what = self._of_study(seen=_runs(self.seen), names=names)
        for name in names:
            step = f"probes, {ROOM[name].title}"
            self.results += self._step(step, what, lambda name=name: probe_results(found, self.settings, [name]))  # type: ignore[misc]

    def _check_labels(self, names: Sequence[str]) -> None:
        if self.train is None and any(ROOM[name].labelled for name in names):
            halves(self.seen[0].test, self.settings.seed)

    def _pixels(self) -> list[Seen]:
        """Raw pixels as if a network had made them: a baseline of trained networks."""
        if not self.settings.baselines or not any(seen.test.model.trained for seen in self.seen):
            return []
        return [Seen(raw_pixels(self.images), None if self.train is None else raw_pixels(self.train))]

    def _readings(self, seen: Seen, names: Sequence[str]) -> Readings:
        """What probes read, with the classes of the training images where a probe needs classes."""
        labelled = any(ROOM[name].labelled for name in names)
        fit, hold = self._parts(seen.test, seen.train)
        twin = None if seen.twin_test is None else self._parts(seen.twin_test, seen.twin_train)
        return Readings(
            runs_of(fit, hold, labelled),
            fit,
            self.find_targets,
            twin=None if twin is None else runs_of(*twin, labelled),
            twin_fit=None if twin is None else twin[0],
        )

    def find_targets(self) -> tuple[tuple[Target, ...], tuple[Target, ...]]:
        """Targets of the images to fit and to test on, measured once for all networks."""
        if self.targets is None:
            self.targets = study_targets((self.train or self.images, self.images), self.settings.targets)
        return self.targets

    def _parts(self, test: Representations, train: Representations | None) -> tuple[Representations, Representations]:
        if train is not None:
            return train, test
        fit, hold = halves(test, self.settings.seed) if test.labels is not None else any_halves(len(test.ids), self.settings.seed)
        return test.take(apart(test.keys, fit, hold), "fitting half"), test.take(hold, "test half")

    def _image_parts(self) -> tuple[Images, Images]:
        """Images to fit and to test probes of positions on."""
        if self.train is not None:
            return self.train, self.images
        i = self.images
        fit, hold = label_halves(i.labels, i.name, i.class_names, self.settings.seed)
        return replace(i.subset(apart(i.keys, fit, hold)), split="fitting half"), replace(i.subset(hold), split="test half")


def run_study(
    models: Iterable[Model | Loader],
    images: Images,
    train: Images | None = None,
    settings: StudySettings | None = None,
    store: Path | None = None,
    steps: Steps | None = None,
) -> list[Result]:
    """All results of the report: cards, weights, channels, attributions, similarity and probes.

    Models may be given as functions that load them, so that only one is in memory at a time. Probes are fitted on `train`
    and tested on `images`; without `train` on a stratified half of `images`. With `store` the representations are kept
    there, with `steps` the results of every finished step, and an interrupted study goes on with them. Raises ModelError if no
    model can be loaded, and StoreError that names the step if there is no room to keep what it made."""
    study = Study(images, train, settings or StudySettings(), store, steps=steps)
    loaded = 0
    failures: list[ModelError] = []
    for model in models:
        try:
            study.look_at(model if isinstance(model, Model) else model())
            loaded += 1
        except ModelError as error:
            failures.append(error)
            study.results.append(Skipped.because("loading a model", error))
    if not loaded and failures:
        raise failures[0]
    study.finish()
    study.compare()
    study.probe()
    return study.results


def halves(reps: Representations, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves with every class in both, drawn with `seed`. Raises as `label_halves`."""
    return label_halves(reps.labels, reps.images.name, reps.class_names, seed)


def label_halves(
    labels: np.ndarray | None, name: str, class_names: Sequence[str] | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of the images called `name`, with every class in both, drawn with `seed`.

    Raises ImagesError without labels, and MeasureError naming a class that has one image only."""
    labels = require_labels(labels, f"the images ({name})", "a probe")
    rng = np.random.default_rng(seed)
    fit: list[int] = []
    hold: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            what = quoted(class_name(int(label), class_names))
            raise MeasureError(f"class {what} of {name} has one image; a probe needs one to fit on and one to test on")
        fit += members[: len(members) // 2].tolist()
        hold += members[len(members) // 2 :].tolist()
    return np.sort(fit), np.sort(hold)


def any_halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of n images, drawn with `seed`."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _runs(seen: Iterable[Seen | None]) -> list[Representations | None]:
    """The runs of networks that have any."""
    return [run for s in seen if s is not None for run in (s.test, s.train, s.twin_test, s.twin_train)]
