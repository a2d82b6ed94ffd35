"""Which probes there are, and what they read from each network: for the report and the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.capture import Representations, extract
from mixer_probe.errors import ImagesError, MeasureError, MixerProbeError, closest
from mixer_probe.figures.probes import spread
from mixer_probe.images import Images
from mixer_probe.images.classes import require_labels
from mixer_probe.models import Model
from mixer_probe.probing import (
    ProbeResult,
    Target,
    attentive_probe,
    calibration,
    confusion_matrix,
    control_code,
    control_task,
    few_shot_probe,
    image_targets,
    linear_probe,
    matched,
    online_code,
    patch_position_probe,
    position_probe,
    random_label_probe,
    target_probe,
    targets_from_csv,
)
from mixer_probe.probing.labels import stratified
from mixer_probe.probing.methods import PROBABILISTIC
from mixer_probe.probing.runs import Runs, train_labels
from mixer_probe.probing.targets import PROPERTIES
from mixer_probe.probing.transfer import MatchedRepresentations
from mixer_probe.progress import task
from mixer_probe.report.settings import StudySettings
from mixer_probe.report.skipped import Skipped
from mixer_probe.results import Result

SHOTS = (1, 5, 10, 25)
# The sample that a study takes of its images, so that the probes of a report take seconds a network.
CODE_IMAGES, CODE_LAYERS = 400, 4
# Of a sample: fewer blocks and penalties, which move compressions by much less than their interval is wide.
_CODE: dict[str, Any] = {"fractions": (0.0625, 0.125, 0.25, 0.5, 1.0), "l2": (0.1, 1.0, 10.0)}
# With fewer images a class a code mostly counts how rarely each class was seen.
_IMAGES_A_CLASS = 5
PLACE_IMAGES = 120
_PLACE_RIDGES = (1e-5, 1e-3, 1e-1)
# Maps of more layers are hard to take in, and every layer is kept with all its positions.
POSITION_LAYERS = 4

Pair = tuple[Images, Images]


@dataclass
class Readings:
    """What one network, or raw pixels, have for probes to read: runs to fit on and to test on, those of the untrained twin,
    and the runs to fit on as they were extracted; `pair` are the images, for targets."""

    runs: Runs
    fit: Representations
    targets: Callable[[], tuple[tuple[Target, ...], tuple[Target, ...]]]
    twin: Runs | None = None
    twin_fit: Representations | None = None
    _probe: ProbeResult | None = field(default=None, repr=False)

    def probe(self, s: StudySettings) -> ProbeResult:
        """The probe of every layer, made once."""
        if self._probe is None:
            kept = "calibration" in s.probes and s.probe_method in PROBABILISTIC
            train, test = self.runs
            self._probe = linear_probe(train, test, method=s.probe_method, untrained=self.twin, probabilities=kept)
        return self._probe


def _few_shot(r: Readings, s: StudySettings) -> list[Result]:
    shots = s.shots if s.shots is not None else _possible_shots(r.runs[0].labels, r.fit.images.name)
    train, test = r.runs
    return [few_shot_probe(train, test, shots, preset=s.few_shot, untrained=r.twin)]


def _possible_shots(labels: np.ndarray | None, name: str) -> tuple[int, ...]:
    y = require_labels(labels, f"the images ({name})", "a probe")
    least = int(np.unique(y, return_counts=True)[1].min())
    return tuple(count for count in SHOTS if count <= least)


def _control(r: Readings, s: StudySettings) -> list[Result]:
    train, test = r.runs
    return [control_task(train, test, read_groups(s.groups), seed=s.seed, untrained=r.twin)]


def read_groups(path: str | None) -> dict[str, str] | None:
    """Group of every class, from a table; None for none. Raises ImagesError for one that cannot be read or lacks the columns."""
    if path is None:
        return None
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise ImagesError(f"cannot read the groups {path}: {str(error).splitlines()[0]}") from error
    if not {"class", "group"} <= set(table.columns):
        raise ImagesError(f"{path} needs the columns class and group, it has {', '.join(map(str, table.columns))}")
    return dict(zip(table["class"], table["group"], strict=True))


def _codes(r: Readings, s: StudySettings) -> list[Result]:
    options = _CODE if s.sampled_probes else {}
    return [online_code(_sample(reps, s), seed=s.seed, **options) for reps in (r.fit, r.twin_fit) if reps is not None]


def _control_codes(r: Readings, s: StudySettings) -> list[Result]:
    options = _CODE if s.sampled_probes else {}
    found = [reps for reps in (r.fit, r.twin_fit) if reps is not None]
    return [control_code(_sample(reps, s), read_groups(s.groups), controls=3, seed=s.seed, **options) for reps in found]


def _sample(reps: Representations, s: StudySettings) -> Representations:
    """Some images and layers, where a study samples. Raises MeasureError where the sample has too few images a class."""
    y = train_labels(reps)
    if not s.sampled_probes:
        return reps
    size, classes = min(len(y), CODE_IMAGES), len(np.unique(y))
    if size < _IMAGES_A_CLASS * classes:
        raise MeasureError(f"{size} images of {classes} classes are too few for a description length: {_IMAGES_A_CLASS} a class")
    layers = [reps.layers[i].name for i in spread(reps.layers, CODE_LAYERS)]
    return reps.only(layers).take(stratified(y, size, s.seed))


def _calibration(r: Readings, s: StudySettings) -> list[Result]:
    return [calibration(r.probe(s), r.runs, seed=s.seed)]


def _targets(r: Readings, s: StudySettings) -> list[Result]:
    (train, test), (fit, hold) = r.runs, r.targets()
    found = ([_aligned(t, run.ids) for t in targets] for run, targets in ((train, fit), (test, hold)))
    return [target_probe(train, test, *found, untrained=r.twin)]


def _aligned(target: Target, ids: tuple[str, ...]) -> Target:
    """As many images are the same images, in the same order, though ids of a transfer begin with the name of their set."""
    return replace(target, ids=ids) if len(ids) == len(target.ids) else target


def study_targets(pair: Sequence[Images], specs: Sequence[str]) -> tuple[tuple[Target, ...], tuple[Target, ...]]:
    """Targets of both sets of images by name, all properties of images without any.

    Raises MeasureError for a name that is neither a property nor FILE.csv:COLUMN, and ImagesError for tables that don't fit."""
    train, test = (tuple(t for spec in specs or (None,) for t in _target(images, spec)) for images in pair)
    return train, test


def _target(images: Images, spec: str | None) -> tuple[Target, ...]:
    path, colon, column = (spec or "").rpartition(":")
    if spec is not None and colon:
        return (targets_from_csv(path, images, column),)
    return image_targets(images, None if spec is None else [spec])


def check_target(spec: str) -> str:
    """The name as it is. Raises MeasureError unless it is a property of images or FILE.csv:COLUMN."""
    path, colon, column = spec.rpartition(":")
    if colon and path and column:
        return spec
    if spec not in PROPERTIES:
        raise MeasureError(f"a target is FILE.csv:COLUMN or a property of images, not '{spec}'; {closest(spec, PROPERTIES)}")
    return spec


@dataclass(frozen=True)
class ProbeAnalysis:
    """One analysis of what a network represents; only `labelled` ones need classes, and `pixels` are a baseline of some."""

    title: str
    read: Callable[[Readings, StudySettings], list[Result]]
    labelled: bool = True
    pixels: bool = True


OF_RUNS = {
    "accuracy": ProbeAnalysis("linear probe", lambda r, s: [r.probe(s)]),
    "fewshot": ProbeAnalysis("few-shot probe", _few_shot),
    "confusion": ProbeAnalysis("confusion", lambda r, s: [confusion_matrix(r.probe(s))], pixels=False),
    "calibration": ProbeAnalysis("calibration", _calibration, pixels=False),
    "control": ProbeAnalysis("control tasks", _control),
    "mdl": ProbeAnalysis("description length", _codes),
    "control-mdl": ProbeAnalysis("description length of control tasks", _control_codes, pixels=False),
    "random-labels": ProbeAnalysis("random labels", lambda r, s: [random_label_probe(*r.runs, seed=s.seed)], pixels=False),
    "targets": ProbeAnalysis("probe of targets", _targets, labelled=False),
}
OF_PLACES = ("positions", "attentive", "patch-position")
WHAT = (*OF_RUNS, *OF_PLACES)


def check_probes(what: Iterable[str]) -> tuple[str, ...]:
    """The names as they are, each once. Raises MeasureError for one that is no probe."""
    for name in what:
        if name not in WHAT:
            raise MeasureError(f"there is no probe analysis '{name}'; {closest(name, WHAT)}")
    return tuple(dict.fromkeys(what))


def probe_results(found: Sequence[Readings], s: StudySettings, names: Sequence[str]) -> list[Result]:
    """The analyses `names` of all networks; what fails is `Skipped`, once for the same reason."""
    results: list[Result] = []
    with task("probes", len(names) * len(found)) as advance:
        for name in names:
            reasons: set[str] = set()
            for readings in found:
                results += _attempt(OF_RUNS[name], readings, s, reasons)
                advance(1)
    return results


def _attempt(analysis: ProbeAnalysis, readings: Readings, s: StudySettings, reasons: set[str]) -> list[Result]:
    model = readings.fit.model
    if model.family == "pixels" and not analysis.pixels:
        return []
    try:
        return analysis.read(readings, s)
    except MixerProbeError as error:
        if str(error) in reasons:
            return []
        reasons.add(str(error))
        return [Skipped.because(f"{analysis.title} of {model.name}", error)]


def runs_of(train: Representations, test: Representations, labelled: bool = True) -> Runs:
    """The pair as probes take it: classes of another data set matched by name, where classes are needed.

    Raises ImagesError for classes that only the test images have, and for missing labels or names."""
    if train.images.name == test.images.name and train.class_names == test.class_names:
        return train, test
    return matched(train, test) if labelled else (_named(train), _named(test))


def _named(reps: Representations) -> MatchedRepresentations:
    """Ids that begin with the data set's name, and no classes: two folders may have files of the same names."""
    return MatchedRepresentations(reps, np.zeros(len(reps.ids), dtype=np.int64), None)


def place_results(model: Model, twin: Model | None, pair: Callable[[], Pair], images: Images, s: StudySettings) -> list[Result]:
    """The probes of places that `s` asks for: of the network on `images` (patch position), and of positions, fitted and tested
    on `pair`, for the untrained `twin` too."""
    results: list[Result] = []
    if "patch-position" in s.probes:
        results += _places(f"patch position of {model.name}", lambda: [_patch_position(model, images, s)])
    if {"positions", "attentive"} & set(s.probes):
        for one in (model, twin):
            if one is not None:
                results += _places(f"probes by position of {one.name}", lambda one=one: _by_position(one, pair(), s))  # type: ignore[misc]
    return results


def _places(step: str, work: Callable[[], list[Result]]) -> list[Result]:
    try:
        return work()
    except MixerProbeError as error:
        return [Skipped.because(step, error)]


def _patch_position(model: Model, images: Images, s: StudySettings) -> Result:
    layers = [layer.name for layer in model.select(("stem", "blocks")) if layer.grid and layer.grid[0] * layer.grid[1] > 1]
    if not layers:
        raise MeasureError(f"no layer of {model.name} has several positions, so there is no place to read")
    options: dict[str, Any] = {"batch_size": s.batch_size, "untrained": s.baselines}
    if s.sampled_probes:
        images = images.sample(min(PLACE_IMAGES, len(images)), s.seed)
        options["ridges"] = _PLACE_RIDGES
    return patch_position_probe(model, images, layers=layers, **options)


def _by_position(model: Model, pair: Pair, s: StudySettings) -> list[Result]:
    """Probes of each position of a few layers; these are on disk meanwhile, since all positions of all images are large."""
    layers = [layer for layer in model.select(s.layers) if layer.positions]
    if not layers:
        raise MeasureError(f"no layer of {model.name} that was asked for has positions")
    names = [layers[i].name for i in spread(layers, POSITION_LAYERS)]
    with tempfile.TemporaryDirectory() as folder:
        train, test = (
            extract(
                model, images, names, reduce="none", batch_size=s.batch_size, autocast=s.autocast, out=Path(folder) / f"{k}.zarr"
            )
            for k, images in enumerate(pair)
        )
        runs = runs_of(train, test)
        found: list[Result] = [position_probe(*runs)] if "positions" in s.probes else []
        return [*found, attentive_probe(*runs, seed=s.seed)] if "attentive" in s.probes else found
