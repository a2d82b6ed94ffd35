"""Results of the page Probes: probes of every layer and their controls, each computed only when it
is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mixer_probe.core.errors import MeasureError
from mixer_probe.images import Images
from mixer_probe.models.layer import spread
from mixer_probe.probing import (
    ConfusionMatrix,
    ControlTask,
    OnlineCode,
    PatchPosition,
    PositionProbe,
    ProbeResult,
    RandomLabels,
    code_sample,
)
from mixer_probe.probing.analyses import PLACE_IMAGES, PLACE_RIDGES, POSITION_LAYERS
from mixer_probe.probing.mdl import SAMPLE_OPTIONS
from mixer_probe.probing.patch_position import decodable_layers
from mixer_probe.probing.runs import split_in_half
from mixer_probe_app import data
from mixer_probe_app.calls import BATCH, LAYERS, Layers, network, run_of, shown_images, stored_run
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.history import Given, result_of
from mixer_probe_app.store import model

PAGE = "Probes"
METHODS = {"ridge": "ridge", "logistic": "logistic", "centroid": "nearest class mean"}
# A probe at every position of a fine grid takes minutes, and its layers do not fit into memory.
MOST_POSITIONS = 256


@dataclass(frozen=True)
class Subject:
    """One network to probe: its representations of the images to fit and to test on (`sides`), and
    those of its untrained `baseline`, where it has one."""

    choice: str
    sides: tuple[Given, Given]
    baseline: tuple[Given, Given] | None = None

    def probe(self, title: str, kind: str, function: str, *given: Any, **options: Any) -> Any:
        """A result of this network, recorded for the page."""
        return result_of(
            PAGE, f"{title} of {shown(self.choice)}", kind, f"probing.{function}", *given, **options
        )

    @property
    def untrained(self) -> dict[str, Any]:
        """The baseline as an option."""
        return {} if self.baseline is None else {"untrained": self.baseline}


def subject(choice: str, train: Images, test: Images, with_baseline: bool) -> Subject:
    """A network, or a stored run, on these images: a run that holds both sides, or else the two
    halves of its own images.

    Raises what loading raises."""
    if not choice.startswith(RUN):
        untrained = with_baseline and model(choice).weights.trained
        return Subject(
            choice,
            _sides(choice, train, test),
            _sides(choice, train, test, untrained=True) if untrained else None,
        )
    run, name = stored_run(choice), f"models[{choice!r}]"
    if {*train.keys, *test.keys} <= set(run.keys):
        code = f"{name}.take([{name}.keys.index(key) for key in {{}}.keys])"
        pair = [
            (stored_run(choice, images), code.format(side))
            for side, images in (("train", train), ("test", test))
        ]
    else:
        halves = zip(split_in_half(run), ("fit", "test"))
        pair = [(run.take(rows, side), f"{name}.take({rows.tolist()})") for rows, side in halves]
    identity = repr(run.record.identity())
    first, second = (
        Given(
            lambda part=part: part,
            (identity, part.images.fingerprint),
            code,
            (choice,),
            data.sides_setup(),
        )  # type: ignore[misc]
        for part, code in pair
    )
    return Subject(choice, (first, second))


def _sides(
    choice: str,
    train: Images,
    test: Images,
    layers: Layers = LAYERS,
    untrained: bool = False,
    **options: Any,
) -> tuple[Given, Given]:
    """Representations of a network of the images to fit and to test on."""
    first, second = (
        replace(
            run_of(choice, images, layers, untrained, name=name, **options),
            setup=data.sides_setup(),
        )
        for name, images in (("train", train), ("test", test))
    )
    return first, second


# -- results ---------------------------------------------------------------------------------------


def accuracy(one: Subject, method: str) -> ProbeResult:
    """A probe of every layer."""
    title = f"{'k-NN' if method == 'knn' else METHODS[method].capitalize()} probes"
    found: ProbeResult = one.probe(
        title, "probes", "linear_probe", *one.sides, method=method, **one.untrained
    )
    return found


def control(one: Subject) -> ControlTask:
    """Accuracy on groups of the classes, and on random groupings of them."""
    found: ControlTask = one.probe(
        "Control tasks", "control tasks", "control_task", *one.sides, seed=0, **one.untrained
    )
    return found


def random_labels(one: Subject) -> RandomLabels:
    """Probes of permuted labels."""
    found: RandomLabels = one.probe(
        "Random labels", "random labels", "random_label_probe", *one.sides, seed=0
    )
    return found


def description_length(one: Subject) -> tuple[OnlineCode, ...]:
    """The online code of the labels at a few layers, and that of the untrained baseline."""
    found = []
    for name, sides in (
        ("Description length", one.sides),
        ("Description length of the untrained baseline", one.baseline),
    ):
        if sides is not None:
            train, code = sides[0], f"mp.probing.code_sample({sides[0].code})"
            sample = replace(train, key=("sample", train.key), code=code, then=code_sample)
            found.append(
                one.probe(
                    name, "description length", "online_code", sample, seed=0, **SAMPLE_OPTIONS
                )
            )
    return tuple(found)


def confusion(one: Subject, probe: ProbeResult, method: str) -> ConfusionMatrix:
    """Confusion between classes."""
    first, second = one.sides
    code = f"mp.linear_probe({first.code}, {second.code}, method={method!r})"
    given = Given(
        lambda: probe, (first.key, second.key, method), code, (one.choice,), data.sides_setup()
    )
    found: ConfusionMatrix = one.probe("Confusion", "confusion", "confusion_matrix", given)
    return found


# -- positions -------------------------------------------------------------------------------------


def class_by_position(choice: str, train: Images, test: Images) -> PositionProbe:
    """A probe at every position of at most `POSITION_LAYERS` blocks, spread over the depth, whose
    grid is coarse enough.

    Raises MeasureError where there is none, and ModelError for a stored run, which has no network
    to ask again."""
    blocks = [
        (layer, layer.grid) for layer in model(choice).select(LAYERS) if layer.grid is not None
    ]
    able = [layer for layer, (rows, columns) in blocks if 1 < rows * columns <= MOST_POSITIONS]
    if not able:
        raise MeasureError(
            f"no block of {model(choice).name} has from 2 to {MOST_POSITIONS} positions in a grid"
        )
    names = [able[i].name for i in spread(able, POSITION_LAYERS)]
    sides = _sides(choice, train, test, names, reduce="none")
    label = f"Probes by position of {shown(choice)}"
    found: PositionProbe = result_of(PAGE, label, "positions", "probing.position_probe", *sides)
    return found


def patch_position(choice: str, images: Images, with_baseline: bool) -> PatchPosition:
    """Decoding of the position of a patch; needs no classes."""
    part = images.sample(min(PLACE_IMAGES, len(images)))
    given = replace(shown_images(part), code=f"images.sample(min({PLACE_IMAGES}, len(images)))")
    options: dict[str, Any] = {
        "layers": decodable_layers(model(choice)),
        "ridges": PLACE_RIDGES,
        "untrained": with_baseline,
    }
    found: PatchPosition = result_of(
        PAGE,
        f"Patch position of {shown(choice)}",
        "patch position",
        "probing.patch_position_probe",
        network(choice),
        given,
        batch_size=BATCH,
        **options,
    )
    return found
