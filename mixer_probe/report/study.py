"""`run_study`: all analyses of the report for a list of models on the same images. Models are in memory one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mixer_probe.capture import Representations, extract
from mixer_probe.channels import channel_statistics
from mixer_probe.errors import ImagesError, MeasureError, MixerProbeError, ModelError
from mixer_probe.images import Images
from mixer_probe.models import Model, describe
from mixer_probe.probing import linear_probe
from mixer_probe.progress import task
from mixer_probe.report.skipped import Skipped
from mixer_probe.report.weight_study import weight_results
from mixer_probe.results import Result
from mixer_probe.similarity import compare

# Channel statistics settle with few images, since every position counts.
CHANNEL_IMAGES = 200
# So do the mean Jacobians of the channels, for the same reason.
KERNEL_IMAGES = 64
# CKA has all its draws in a few matrix products; other measures start anew with each. Twenty are the fewest with an interval.
OTHER_DRAWS = 20
_CKA = ("cka", "cka_rbf")

Loader = Callable[[], Model]


@dataclass(frozen=True)
class StudySettings:
    """What decides a study's numbers besides models and images.

    `baselines` adds the untrained twin of every trained model. Networks are compared by all `measures`, each network with
    itself by CKA only; there are three because measures disagree about which networks are alike (Klabunde et al. 2024, ReSi).
    `permutations` and `resamples` are those of CKA; other measures cost more and take at most 20."""

    layers: str | tuple[str, ...] = "blocks"
    batch_size: int = 64
    permutations: int = 100
    seed: int = 0
    baselines: bool = True
    autocast: str | None = None
    measures: tuple[str, ...] = ("cka", "procrustes", "mutual_knn")
    resamples: int = 100


@dataclass
class _Seen:
    """What is kept of a model after it has left memory."""

    test: Representations
    train: Representations | None = None
    twin_test: Representations | None = None
    twin_train: Representations | None = None


@dataclass
class Study:
    """Runs step by step and keeps what is finished: a step that fails becomes a `Skipped` result with its reason."""

    images: Images
    train: Images | None = None
    settings: StudySettings = field(default_factory=StudySettings)
    store: Path | None = None
    results: list[Result] = field(default_factory=list)
    seen: list[_Seen] = field(default_factory=list)

    def look_at(self, model: Model) -> None:
        """Everything that needs the model itself: card, weights, representations, channel statistics."""
        twin = self.twin_of(model)
        self.results.append(describe(model))
        self.results += weight_results([model] if twin is None else [model, twin], images=self._sample(KERNEL_IMAGES))
        self.represent(model, twin)
        self._attempt(f"channel statistics of {model.name}", lambda: self._channels(model))

    def twin_of(self, model: Model) -> Model | None:
        """The untrained twin of a trained model, where baselines are wanted."""
        return model.untrained() if self.settings.baselines and model.weights.trained else None

    def represent(self, model: Model, twin: Model | None) -> None:
        """Keep the representations that similarity and probes need."""
        try:
            seen = _Seen(self._extract(model, self.images, "test"))
            if self.train is not None:
                seen.train = self._extract(model, self.train, "train")
            if twin is not None and self._can_probe():
                seen.twin_test = self._extract(twin, self.images, "test")
                seen.twin_train = self._extract(twin, self.train, "train") if self.train is not None else None
        except MixerProbeError as error:
            self.results.append(Skipped(f"representations of {model.name}", str(error)))
            return
        self.seen.append(seen)

    def _can_probe(self) -> bool:
        return self.train is not None or self.images.labels is not None

    def _extract(self, model: Model, images: Images, part: str) -> Representations:
        s = self.settings
        out = None if self.store is None else self.store / f"{_slug(model.name)}-{model.sha256[:8]}-{part}.zarr"
        return extract(model, images, s.layers, batch_size=s.batch_size, autocast=s.autocast, out=out)

    def _channels(self, model: Model) -> Result:
        s = self.settings
        return channel_statistics(model, self._sample(CHANNEL_IMAGES), s.layers, batch_size=s.batch_size, autocast=s.autocast)

    def _sample(self, most: int) -> Images:
        return self.images.sample(min(most, len(self.images)), self.settings.seed)

    def compare(self) -> None:
        """Similarity of every two models by every measure, and of each with itself by CKA."""
        pairs = list(itertools.combinations_with_replacement(self.seen, 2))
        todo = [(m, a, b) for m in self.settings.measures for a, b in pairs if a is not b or m in _CKA]
        with task("similarity", len(todo)) as advance:
            for measure, a, b in todo:
                self._attempt(
                    f"similarity ({measure}) of {a.test.model.name} and {b.test.model.name}",
                    lambda measure=measure, a=a, b=b: self._compare(measure, a.test, b.test),  # type: ignore[misc]
                )
                advance(1)

    def _compare(self, measure: str, a: Representations, b: Representations) -> Result:
        s = self.settings
        draws = [n if measure in _CKA else min(n, OTHER_DRAWS) for n in (s.permutations, s.resamples)]
        return compare(a, b, measure, permutations=draws[0], resamples=draws[1], seed=s.seed)

    def probe(self) -> None:
        """Linear probes of every model."""
        if self.train is None and self.seen:
            try:
                halves(self.seen[0].test, self.settings.seed)
            except MixerProbeError as error:
                self.results.append(Skipped("linear probes", str(error)))
                return
        with task("linear probes", len(self.seen)) as advance:
            for seen in self.seen:
                self._attempt(f"linear probe of {seen.test.model.name}", lambda seen=seen: self._probe(seen))  # type: ignore[misc]
                advance(1)

    def _probe(self, seen: _Seen) -> Result:
        train, test = self._parts(seen.test, seen.train)
        untrained = None if seen.twin_test is None else self._parts(seen.twin_test, seen.twin_train)
        return linear_probe(train, test, untrained=untrained)

    def _parts(self, test: Representations, train: Representations | None) -> tuple[Representations, Representations]:
        if train is not None:
            return train, test
        fit, hold = halves(test, self.settings.seed)
        return test.take(fit, "fitting half"), test.take(hold, "test half")

    def _attempt(self, step: str, work: Callable[[], Result]) -> None:
        try:
            self.results.append(work())
        except MixerProbeError as error:
            self.results.append(Skipped(step, str(error)))


def run_study(
    models: Iterable[Model | Loader],
    images: Images,
    train: Images | None = None,
    settings: StudySettings | None = None,
    store: Path | None = None,
) -> list[Result]:
    """All results of the report: cards, token mixing, stem filters, channel statistics, similarity and probes.

    Models may be given as functions that load them, so that only one is in memory at a time. Probes are fitted on `train`
    and tested on `images`; without `train` on a stratified half of `images`. With `store` the representations are kept
    there, and an interrupted study goes on with them. Raises ModelError if no model can be loaded."""
    study = Study(images, train, settings or StudySettings(), store)
    loaded = 0
    failures: list[ModelError] = []
    for model in models:
        try:
            study.look_at(model if isinstance(model, Model) else model())
            loaded += 1
        except ModelError as error:
            failures.append(error)
            study.results.append(Skipped("loading a model", str(error)))
    if not loaded and failures:
        raise failures[0]
    study.compare()
    study.probe()
    return study.results


def halves(reps: Representations, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves with every class in both, drawn with `seed`.

    Raises ImagesError without labels, and MeasureError naming a class that has one image only."""
    if reps.labels is None:
        raise ImagesError(f"probes need labels and {reps.images.name} has none; sort the images into one folder a class")
    rng = np.random.default_rng(seed)
    fit: list[int] = []
    hold: list[int] = []
    for label in np.unique(reps.labels):
        members = rng.permutation(np.flatnonzero(reps.labels == label))
        if len(members) < 2:
            name = _class(reps, int(label))
            raise MeasureError(
                f"class {name} of {reps.images.name} has one image; a probe needs one to fit on and one to test on"
            )
        fit += members[: len(members) // 2].tolist()
        hold += members[len(members) // 2 :].tolist()
    return np.sort(fit), np.sort(hold)


def _class(reps: Representations, label: int) -> str:
    names: Sequence[str] = reps.class_names or ()
    return f"'{names[label]}'" if label < len(names) else str(label)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
