"""`run_study`: all analyses of the report for a list of models on the same images. Models are in memory one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mixer_probe.capture import Representations, extract
from mixer_probe.channels import channel_statistics
from mixer_probe.errors import ImagesError, MeasureError, MixerProbeError, ModelError
from mixer_probe.images import Images
from mixer_probe.models import Model, describe
from mixer_probe.probing import Target, raw_pixels
from mixer_probe.probing.labels import class_name
from mixer_probe.progress import task
from mixer_probe.report.probe_study import OF_RUNS, Readings, place_results, probe_results, runs_of, study_targets
from mixer_probe.report.settings import StudySettings
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
    targets: tuple[tuple[Target, ...], tuple[Target, ...]] | None = None

    def look_at(self, model: Model) -> None:
        """Everything that needs the model itself: card, weights, representations, channel statistics."""
        twin = self.twin_of(model)
        self.results.append(describe(model))
        self.results += weight_results([model] if twin is None else [model, twin], images=self._sample(KERNEL_IMAGES))
        self.represent(model, twin)
        self.read_places(model, twin)
        self._attempt(f"channel statistics of {model.name}", lambda: self._channels(model))

    def twin_of(self, model: Model) -> Model | None:
        """The untrained twin of a trained model, where baselines are wanted."""
        return model.untrained() if self.settings.baselines and model.weights.trained else None

    def read(self, model: Model) -> None:
        """What its probes need of a model, and no other analysis."""
        twin = self.twin_of(model)
        self.read_places(model, twin)
        if any(name in OF_RUNS for name in self.settings.probes):
            self.represent(model, twin)

    def read_places(self, model: Model, twin: Model | None) -> None:
        """Probes that need the model itself: of positions, and of the place of a token."""
        self.results += place_results(model, twin, self._image_parts, self.images, self.settings)

    def represent(self, model: Model, twin: Model | None) -> None:
        """Keep the representations that similarity and probes need."""
        try:
            seen = _Seen(self._extract(model, self.images, "test"))
            if self.train is not None:
                seen.train = self._extract(model, self.train, "train")
            if twin is not None and self._will_probe():
                seen.twin_test = self._extract(twin, self.images, "test")
                seen.twin_train = self._extract(twin, self.train, "train") if self.train is not None else None
        except MixerProbeError as error:
            self.results.append(Skipped(f"representations of {model.name}", str(error)))
            return
        self.seen.append(seen)

    def _will_probe(self) -> bool:
        labelled = self.train is not None or self.images.labels is not None
        return any(name in OF_RUNS and (labelled or not OF_RUNS[name].labelled) for name in self.settings.probes)

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
        """The probes asked for, of what every model and the raw pixels represent."""
        names = [name for name in self.settings.probes if name in OF_RUNS]
        if not names or not self.seen:
            return
        try:
            self._check_labels(names)
        except MixerProbeError as error:
            self.results.append(Skipped("linear probes", str(error)))
            names = [name for name in names if not OF_RUNS[name].labelled]
        try:
            found = [self._readings(seen, names) for seen in (*self.seen, *self._pixels())] if names else []
        except MixerProbeError as error:
            self.results.append(Skipped("probes", str(error)))
            return
        self.results += probe_results(found, self.settings, names)

    def _check_labels(self, names: Sequence[str]) -> None:
        if self.train is None and any(OF_RUNS[name].labelled for name in names):
            halves(self.seen[0].test, self.settings.seed)

    def _pixels(self) -> list[_Seen]:
        """Raw pixels as if a network had made them: a baseline of trained networks."""
        if not self.settings.baselines or not any(seen.test.model.trained for seen in self.seen):
            return []
        return [_Seen(raw_pixels(self.images), None if self.train is None else raw_pixels(self.train))]

    def _readings(self, seen: _Seen, names: Sequence[str]) -> Readings:
        """What probes read, with the classes of the training images where a probe needs classes."""
        labelled = any(OF_RUNS[name].labelled for name in names)
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
        return test.take(fit, "fitting half"), test.take(hold, "test half")

    def _image_parts(self) -> tuple[Images, Images]:
        """Images to fit and to test probes of positions on."""
        if self.train is not None:
            return self.train, self.images
        i = self.images
        fit, hold = label_halves(i.labels, i.name, i.class_names, self.settings.seed)
        return replace(i.subset(fit), split="fitting half"), replace(i.subset(hold), split="test half")

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
    """All results of the report: cards, weights, channel statistics, similarity and probes.

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
    """Indices of two halves with every class in both, drawn with `seed`. Raises as `label_halves`."""
    return label_halves(reps.labels, reps.images.name, reps.class_names, seed)


def label_halves(
    labels: np.ndarray | None, name: str, class_names: Sequence[str] | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of the images called `name`, with every class in both, drawn with `seed`.

    Raises ImagesError without labels, and MeasureError naming a class that has one image only."""
    if labels is None:
        raise ImagesError(f"probes need labels and {name} has none; sort the images into one folder a class")
    rng = np.random.default_rng(seed)
    fit: list[int] = []
    hold: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            what = class_name(int(label), class_names)
            raise MeasureError(f"class {what} of {name} has one image; a probe needs one to fit on and one to test on")
        fit += members[: len(members) // 2].tolist()
        hold += members[len(members) // 2 :].tolist()
    return np.sort(fit), np.sort(hold)


def any_halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of n images, drawn with `seed`."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
