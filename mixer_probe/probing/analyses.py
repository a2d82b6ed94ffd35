"""The analyses of what activations encode, and how their results are shown."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.capture import Inputs, Reading, Representations, extract
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import ImagesError, MeasureError, closest
from mixer_probe.core.memory import RESIDENT
from mixer_probe.core.result import Result
from mixer_probe.images import Images
from mixer_probe.models.layer import spread
from mixer_probe.probing import (
    AttentiveResult,
    Calibration,
    ConfusionMatrix,
    ControlCode,
    ControlTask,
    FewShotResult,
    OnlineCode,
    PatchPosition,
    PositionProbe,
    ProbeResult,
    RandomLabels,
    Target,
    TargetProbe,
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
from mixer_probe.probing.mdl import SAMPLE_IMAGES, SAMPLE_OPTIONS, code_sample
from mixer_probe.probing.methods import PROBABILISTIC
from mixer_probe.probing.patch_position import PatchTokens, decodable_layers
from mixer_probe.probing.runs import Runs, train_labels
from mixer_probe.probing.targets import PROPERTIES
from mixer_probe.probing.transfer import MatchedRepresentations
from mixer_probe.probing.views.controls import (
    code_section,
    control_code_section,
    control_section,
    random_label_section,
)
from mixer_probe.probing.views.positions import (
    attentive_section,
    patch_position_section,
    position_probe_section,
    target_section,
)
from mixer_probe.probing.views.probes import (
    calibration_section,
    confusion_section,
    few_shot_section,
    probe_section,
)

# With fewer images per class a code mostly reflects how rare the classes are.
_IMAGES_PER_CLASS = 5
# Images that a study samples, and penalties, so that the probes of patch positions take seconds per
# network.
PLACE_IMAGES = 120
PLACE_RIDGES = (1e-5, 1e-3, 1e-1)
_TOKENS = "tokens of patches"
# Layers with maps of positions: more are hard to compare, and each is stored with all its
# positions.
POSITION_LAYERS = 4


def runs(i: Inputs, labelled: bool = True) -> Runs:
    """The runs to fit and to test on, as probes take them."""
    return i.keep(f"runs of probes {labelled}", lambda: runs_of(*i.parts, labelled))


def _untrained(i: Inputs, labelled: bool = True) -> Runs | None:
    return None if i.baseline is None else runs(i.baseline, labelled)


def _probe(i: Inputs) -> ProbeResult:
    """The probe of every layer, computed once."""
    if found := i.results(ProbeResult):
        return found[0]
    method = i.settings.probe_method
    calibrated = "calibration" in i.settings.analyses.get("probing", ())
    options: dict[str, Any] = {"probabilities": calibrated and method in PROBABILISTIC}
    return i.keep(
        "linear probe",
        lambda: linear_probe(*runs(i), method=method, untrained=_untrained(i), **options),
    )


def read_groups(path: str | None) -> dict[str, str] | None:
    """Group of every class, from a table; None for none. Raises ImagesError for one that cannot be
    read or lacks the columns."""
    if path is None:
        return None
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise ImagesError(f"cannot read the groups {path}: {str(error).splitlines()[0]}") from error
    if not {"class", "group"} <= set(table.columns):
        raise ImagesError(
            f"{path} needs the columns class and group, it has {', '.join(map(str, table.columns))}"
        )
    return dict(zip(table["class"], table["group"], strict=True))


def _coded(i: Inputs, code: Callable[..., Result], **options: Any) -> Result:
    """The `code` of the training images; of some images and layers, where a study samples.

    Raises MeasureError where the sample has too few images per class."""
    reps, s = i.parts[0], i.settings
    y = train_labels(reps)
    if not s.sampled_probes:
        return code(reps, seed=s.seed, **options)
    size, classes = min(len(y), SAMPLE_IMAGES), len(np.unique(y))
    if size < _IMAGES_PER_CLASS * classes:
        raise MeasureError(
            f"{size} images of {classes} classes are too few for a description length; use at "
            f"least {_IMAGES_PER_CLASS} per class"
        )
    return code(code_sample(reps, seed=s.seed), seed=s.seed, **SAMPLE_OPTIONS, **options)


def _targets(i: Inputs) -> list[Result]:
    pair = runs(i, labelled=False)
    found = i.share(
        "targets", lambda: study_targets((i.train or i.images, i.images), i.settings.targets)
    )
    # As many images are the same images, in the same order, though ids of a transfer begin with the
    # name of their set.
    sides = [
        [replace(t, ids=run.ids) if len(run.ids) == len(t.ids) else t for t in side]
        for run, side in zip(pair, found)
    ]
    return [target_probe(*pair, *sides, untrained=_untrained(i, labelled=False))]


def study_targets(
    pair: Sequence[Images], specs: Sequence[str]
) -> tuple[tuple[Target, ...], tuple[Target, ...]]:
    """Targets of both sets of images by name, all properties of images without any.

    Raises MeasureError for a name that is neither a property nor FILE.csv:COLUMN, and ImagesError
    for tables that don't fit."""
    sides = []
    for images in pair:
        targets = list(image_targets(images)) if not specs else []
        for spec in specs:
            path, colon, column = spec.rpartition(":")
            targets += (
                [targets_from_csv(path, images, column)] if colon else image_targets(images, [spec])
            )
        sides.append(tuple(targets))
    return sides[0], sides[1]


def check_target(spec: str) -> str:
    """The name as it is. Raises MeasureError unless it is a property of images or
    FILE.csv:COLUMN."""
    path, colon, column = spec.rpartition(":")
    if colon and path and column:
        return spec
    if spec not in PROPERTIES:
        raise MeasureError(
            f"a target is FILE.csv:COLUMN or a property of images, not '{spec}'; "
            f"{closest(spec, PROPERTIES)}"
        )
    return spec


def runs_of(train: Representations, test: Representations, labelled: bool = True) -> Runs:
    """The pair as probes take it: classes of another data set matched by name, where classes are
    needed.

    Raises ImagesError for classes that only the test images have, and for missing labels or
    names."""
    if train.images.name == test.images.name and train.class_names == test.class_names:
        return train, test
    if labelled:
        return matched(train, test)
    # Ids that begin with the data set's name, and no classes: two folders may have files of the
    # same names.
    first, second = (
        MatchedRepresentations(reps, np.zeros(len(reps.ids), dtype=np.int64), None)
        for reps in (train, test)
    )
    return first, second


def _patch_positions(i: Inputs) -> list[Result]:
    """Decoding of patch positions after every layer; of a sample of the images where the settings
    say so."""
    s, images, layers = i.settings, i.sample(_place_images(i)), decodable_layers(i.model)
    options: dict[str, Any] = {"layers": layers, "batch_size": s.batch_size}
    if s.sampled_probes:
        options["ridges"] = PLACE_RIDGES

    def probe(of: Inputs) -> PatchPosition:
        read = of.passed(_TOKENS, PatchTokens, len(images))
        if read is None and of.extracted and (again := _read_tokens(of)):
            of.pass_again(*again)
            read = of.passed(_TOKENS, PatchTokens, len(images))
        return patch_position_probe(of.model, images, read=read, **options)

    found = probe(i)
    return [found if i.baseline is None else replace(found, untrained=probe(i.baseline))]


def _place_images(i: Inputs) -> int | None:
    return PLACE_IMAGES if i.settings.sampled_probes else None


def _read_tokens(i: Inputs) -> list[Reading]:
    """What `_patch_positions` is computed from, where there is room."""
    rows = i.rows(_place_images(i))
    with suppress(MeasureError):
        layers = decodable_layers(i.model)
        if len(rows) * PatchTokens.bytes_each(i.model, layers) <= RESIDENT // 2:
            reading = i.keep(_TOKENS, PatchTokens).reading(i.model, layers)
            return [replace(reading, rows=rows)]
    return []


def _by_position(i: Inputs) -> Runs:
    """Runs with all positions of a few layers; on disk during the study, since they are large."""

    def extracted() -> Runs:
        model, s = i.model, i.settings
        layers = [layer for layer in model.select(s.layers) if layer.positions]
        if not layers:
            raise MeasureError(f"none of the selected layers of {model.name} has positions")
        names = [layers[k].name for k in spread(layers, POSITION_LAYERS)]
        images, folder = i.image_parts, Path(i.open(tempfile.TemporaryDirectory()))
        options: dict[str, Any] = {
            "reduce": "none",
            "batch_size": s.batch_size,
            "autocast": s.autocast,
        }
        train, test = (
            extract(model, part, names, out=folder / f"{k}.zarr", **options)
            for k, part in enumerate(images)
        )
        return runs_of(train, test)

    return i.keep("runs by position", extracted)


ROOM = Room(
    "probing",
    "probe analysis",
    MeasureError,
    (
        Analysis(
            "accuracy",
            "linear probe",
            "How accurately does a linear probe predict the class after each layer?",
            (ProbeResult,),
            lambda i: [_probe(i)],
            labelled=True,
            pixels=True,
        ),
        Analysis(
            "fewshot",
            "few-shot probe",
            "How accurate is a probe trained on few images per class?",
            (FewShotResult,),
            lambda i: [
                few_shot_probe(
                    *runs(i), i.settings.shots, preset=i.settings.few_shot, untrained=_untrained(i)
                )
            ],
            labelled=True,
            pixels=True,
        ),
        Analysis(
            "confusion",
            "confusion",
            "Which classes does a probe confuse?",
            (ConfusionMatrix,),
            lambda i: [confusion_matrix(_probe(i))],
            labelled=True,
            default=False,
        ),
        Analysis(
            "calibration",
            "calibration",
            "Are the predicted probabilities of a probe calibrated?",
            (Calibration,),
            lambda i: [calibration(_probe(i), runs(i), seed=i.settings.seed)],
            labelled=True,
            default=False,
        ),
        Analysis(
            "control",
            "control tasks",
            "Is a probe accurate because of the activations, or because it can fit any labels?",
            (ControlTask,),
            lambda i: [
                control_task(
                    *runs(i),
                    read_groups(i.settings.groups),
                    seed=i.settings.seed,
                    untrained=_untrained(i),
                )
            ],
            labelled=True,
            pixels=True,
        ),
        Analysis(
            "mdl",
            "description length",
            "How far do the activations compress the labels?",
            (OnlineCode,),
            lambda i: [_coded(i, online_code)],
            labelled=True,
            pixels=True,
            baseline=True,
        ),
        Analysis(
            "control-mdl",
            "description length of control tasks",
            "How far do the activations compress random groupings of the classes?",
            (ControlCode,),
            lambda i: [_coded(i, control_code, groups=read_groups(i.settings.groups), controls=3)],
            labelled=True,
            default=False,
            baseline=True,
        ),
        Analysis(
            "random-labels",
            "random labels",
            "Is the accuracy on random labels at chance?",
            (RandomLabels,),
            lambda i: [random_label_probe(*runs(i), seed=i.settings.seed)],
            labelled=True,
            default=False,
        ),
        Analysis(
            "targets",
            "probe of targets",
            "Which properties of an image are linearly encoded?",
            (TargetProbe,),
            _targets,
            default=False,
            pixels=True,
        ),
        Analysis(
            "positions",
            "probe per position",
            "At which positions can a probe predict the class?",
            (PositionProbe,),
            lambda i: [position_probe(*_by_position(i))],
            labelled=True,
            default=False,
            baseline=True,
            needs="images",
        ),
        Analysis(
            "attentive",
            "attentive probe",
            "Which positions does an attentive probe attend to?",
            (AttentiveResult,),
            lambda i: [attentive_probe(*_by_position(i), seed=i.settings.seed)],
            labelled=True,
            default=False,
            baseline=True,
            needs="images",
        ),
        Analysis(
            "patch-position",
            "patch position",
            "How accurately is the position of a patch decoded from its activation?",
            (PatchPosition,),
            _patch_positions,
            needs="images",
            reads=_read_tokens,
        ),
    ),
    (
        View(ProbeResult, probe_section),
        View(FewShotResult, few_shot_section),
        View(ControlTask, control_section),
        View(OnlineCode, code_section),
        View(ControlCode, control_code_section),
        View(RandomLabels, random_label_section),
        View(ConfusionMatrix, confusion_section),
        View(Calibration, calibration_section),
        View(PositionProbe, position_probe_section),
        View(AttentiveResult, attentive_section),
        View(PatchPosition, patch_position_section),
        View(TargetProbe, target_section),
    ),
)
