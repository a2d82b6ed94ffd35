"""Results of the page Probes: probes of every layer and their controls, each computed only when it is shown."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import mixer_probe as mp
from mixer_probe.capture import Representations
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
    online_code,
)
from mixer_probe.probing.analyses import PLACE_IMAGES, PLACE_RIDGES, POSITION_LAYERS
from mixer_probe.probing.mdl import SAMPLE_OPTIONS
from mixer_probe.probing.patch_position import layers_with_positions
from mixer_probe.probing.runs import split_in_half
from mixer_probe_app import data
from mixer_probe_app.calls import BATCH, LAYERS, key_of, key_of_images, representations, stored_run
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.history import computed
from mixer_probe_app.store import lookup, model

T = TypeVar("T")
Runs = tuple[Representations, Representations]

PAGE = "Probes"
METHODS = {"ridge": "ridge", "logistic": "logistic", "centroid": "nearest class mean"}
# A probe at every position of a fine grid takes minutes, and its layers do not fit into memory.
MOST_POSITIONS = 256


@dataclass(frozen=True)
class Subject:
    """One network to probe. `runs` gives its representations of the images to fit and to test on, and `baseline` those of its
    untrained baseline, where it has one; neither is computed before it is asked for. `code` and `baseline_code` compute them
    again."""

    choice: str
    key: Hashable
    runs: Callable[[], Runs]
    code: str
    baseline: Callable[[], Runs] | None = None
    baseline_code: str = ""


def subject(choice: str, train: Images, test: Images, with_baseline: bool) -> Subject:
    """A network, or a stored run, on these images: a run that holds both sides, or else the two halves of its own images.

    Raises what loading raises."""
    name = f"models[{choice!r}]"
    if not choice.startswith(RUN):
        network = model(choice)
        key = (key_of(network), key_of_images(train), key_of_images(test), LAYERS)
        code, untrained = (
            ", ".join(f"mp.extract({name}{version}, {side}, {LAYERS!r})" for side in ("train", "test"))
            for version in ("", ".untrained()")
        )
        runs = lambda: (representations(choice, train), representations(choice, test))  # noqa: E731
        if not with_baseline or not network.weights.trained:
            return Subject(choice, key, runs, code)
        baseline = lambda: tuple(representations(choice, side, untrained=True) for side in (train, test))  # noqa: E731
        return Subject(choice, (key, "baseline"), runs, code, baseline, untrained)  # type: ignore[arg-type]
    run = stored_run(choice)
    identity = repr(run.record.identity())
    if {*train.keys, *test.keys} <= set(run.keys):
        sides = ", ".join(f"{name}.take([{name}.keys.index(key) for key in {side}.keys])" for side in ("train", "test"))
        pair = stored_run(choice, train), stored_run(choice, test)
        return Subject(choice, ("run", identity, pair[0].images.fingerprint), lambda: pair, sides)
    fit, hold = split_in_half(run)
    code = f"{name}.take({fit.tolist()}), {name}.take({hold.tolist()})"
    return Subject(choice, ("run", identity, len(fit)), lambda: (run.take(fit, "fit"), run.take(hold, "test")), code)


# -- results ---------------------------------------------------------------------------------------------------------------


def _result(
    kind: str, one: Subject, title: str, compute: Callable[[Runs, Runs | None], T], code: str | Callable[[T], str], *key: Any
) -> T:
    """The result cached, or a new one; representations are only fetched for a new one."""
    found = (one.key, *key)
    runs: tuple[Any, Any] = (None, None)
    if lookup(kind, found) is None:
        runs = one.runs(), (one.baseline() if one.baseline else None)
    label = f"{title} of {shown(one.choice)}"
    return computed(PAGE, label, kind, found, lambda: compute(*runs), code, [one.choice], data.sides_setup())


def accuracy(one: Subject, method: str) -> ProbeResult:
    """A probe of every layer."""
    title = f"{'k-NN' if method == 'knn' else METHODS[method].capitalize()} probes"
    compute = lambda r, baseline: mp.linear_probe(*r, method=method, untrained=baseline)  # noqa: E731
    return _result("probes", one, title, compute, f"mp.linear_probe({one.code}, method={method!r}{_untrained(one)})", method)


def _untrained(one: Subject) -> str:
    """The baseline as an argument in a script."""
    return f", untrained=({one.baseline_code})" if one.baseline_code else ""


def control(one: Subject) -> ControlTask:
    """Accuracy on groups of the classes, and on random groupings of them."""
    task = mp.probing.control_task
    code = f"mp.probing.control_task({one.code}, seed=0{_untrained(one)})"
    return _result("control tasks", one, "Control tasks", lambda r, baseline: task(*r, seed=0, untrained=baseline), code)


def random_labels(one: Subject) -> RandomLabels:
    """Probes of permuted labels."""
    code = f"mp.probing.random_label_probe({one.code}, seed=0)"
    return _result("random labels", one, "Random labels", lambda r, _: mp.probing.random_label_probe(*r, seed=0), code)


def description_length(one: Subject) -> tuple[OnlineCode, ...]:
    """The online code of the labels at a few layers, and that of the untrained baseline."""

    def compute(runs: Runs, baseline: Runs | None) -> tuple[OnlineCode, ...]:
        sides = (side[0] for side in (runs, baseline) if side is not None)
        return tuple(online_code(code_sample(reps), seed=0, **SAMPLE_OPTIONS) for reps in sides)

    sides = ", ".join(f"({side})[0]" for side in filter(None, (one.code, one.baseline_code)))
    call = f"mp.probing.online_code(mp.probing.code_sample(reps), seed=0, **{SAMPLE_OPTIONS!r})"
    code = f"[{call} for reps in [{sides}]]"
    return _result("description length", one, "Description length", compute, code)


def confusion(one: Subject, probe: ProbeResult, method: str) -> ConfusionMatrix:
    """Confusion between classes."""
    code = f"mp.probing.confusion_matrix(mp.linear_probe({one.code}, method={method!r}))"
    compute = lambda: mp.probing.confusion_matrix(probe)  # noqa: E731
    label = f"Confusion of {shown(one.choice)}"
    return computed(PAGE, label, "confusion", (one.key, method), compute, code, [one.choice], data.sides_setup())


# -- positions -------------------------------------------------------------------------------------------------------------


def class_by_position(choice: str, train: Images, test: Images) -> PositionProbe:
    """A probe at every position of at most `POSITION_LAYERS` blocks, spread over the depth, whose grid is coarse enough.

    Raises MeasureError where there is none, and ModelError for a stored run, which has no network to ask again."""
    network = model(choice)
    blocks = [(layer, layer.grid) for layer in network.select(LAYERS) if layer.grid is not None]
    able = [layer for layer, (rows, columns) in blocks if 1 < rows * columns <= MOST_POSITIONS]
    if not able:
        raise MeasureError(f"no block of {network.name} has from 2 to {MOST_POSITIONS} positions in a grid")
    names = [able[i].name for i in spread(able, POSITION_LAYERS)]
    key = (key_of(network), key_of_images(train), key_of_images(test), tuple(names))
    runs: list[Representations] = []
    if lookup("positions", key) is None:
        runs = [representations(choice, images, names, "none") for images in (train, test)]
    sides = ", ".join(f"mp.extract(models[{choice!r}], {side}, {names!r}, reduce='none')" for side in ("train", "test"))
    return computed(
        PAGE,
        f"Probes by position of {shown(choice)}",
        "positions",
        key,
        lambda: mp.probing.position_probe(*runs),
        f"mp.probing.position_probe({sides})",
        [choice],
        data.sides_setup(),
    )


def patch_position(choice: str, images: Images, with_baseline: bool) -> PatchPosition:
    """Decoding of the position of a patch; needs no classes."""
    network, part = model(choice), images.sample(min(PLACE_IMAGES, len(images)))
    options: dict[str, Any] = {"layers": layers_with_positions(network), "ridges": PLACE_RIDGES, "untrained": with_baseline}
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return computed(
        PAGE,
        f"Patch position of {shown(choice)}",
        "patch position",
        (key_of(network), key_of_images(part), with_baseline),
        lambda: mp.probing.patch_position_probe(network, part, batch_size=BATCH, **options),
        f"mp.probing.patch_position_probe(models[{choice!r}], images.sample(min({PLACE_IMAGES}, len(images))){given})",
        [choice],
        data.setup(),
    )
