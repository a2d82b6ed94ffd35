"""What the page Probes shows: probes of every layer and their controls, each made only when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.fingerprint import apart
from mixer_probe.images import Images
from mixer_probe.linear.stratification import stratified
from mixer_probe.models import Layer
from mixer_probe.models.layer import spread
from mixer_probe.probing import ConfusionMatrix, ControlTask, OnlineCode, PatchPosition, PositionProbe, ProbeResult, RandomLabels
from mixer_probe.probing.runs import source_labels, train_labels
from mixer_probe_app import disk, seen
from mixer_probe_app.analyses import BATCH, LAYERS, key_of, key_of_images, representations, stored_run
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.store import find, made, model

T = TypeVar("T")
Runs = tuple[Representations, Representations]

PAGE = "Probes"
METHODS = {"ridge": "ridge", "logistic": "logistic", "centroid": "nearest class mean"}
# Description lengths fit a classifier again for every block: few layers, and images enough to tell them apart.
CODE_IMAGES, CODE_LAYERS = 400, 4
_CODE: dict[str, Any] = {"fractions": (0.0625, 0.125, 0.25, 0.5, 1.0), "l2": (0.1, 1.0, 10.0)}
# A probe at every position of a fine grid takes minutes, and its layers do not fit into memory.
MOST_POSITIONS, MOST_MAPS = 256, 4
PLACE_IMAGES = 120
_PLACE_RIDGES = (1e-5, 1e-3, 1e-1)


@dataclass(frozen=True)
class Subject:
    """One network to probe. `runs` gives its representations of the images to fit and to test on, and `twin` those of its
    untrained twin, where it has one; neither is made before it is asked for. `code` and `code_twin` make both again."""

    choice: str
    key: Hashable
    runs: Callable[[], Runs]
    twin: Callable[[], Runs] | None
    code: str
    code_twin: str = ""


def check(train: Images, test: Images) -> None:
    """Raise the library's ImagesError for images that no probe can be fitted to, before anything is calculated."""
    source_labels(train, test)


def subject(choice: str, train: Images, test: Images, with_twin: bool) -> Subject:
    """A network, or a stored run, on these images. Raises what loading raises."""
    if choice.startswith(RUN):
        return _of_run(choice, train, test)
    network = model(choice)
    both = (train, test)
    key = (key_of(network), key_of_images(train), key_of_images(test), LAYERS)
    name = f"models[{choice!r}]"
    code = ", ".join(f"mp.extract({name}, {side}, {LAYERS!r})" for side in ("train", "test"))
    if not with_twin or not network.weights.trained:
        return Subject(choice, key, lambda: _runs(choice, both), None, code)
    twin = ", ".join(f"mp.extract({name}.untrained(), {side}, {LAYERS!r})" for side in ("train", "test"))
    return Subject(choice, (key, "twin"), lambda: _runs(choice, both), lambda: _twins(choice, both), code, f"untrained=({twin})")


def _runs(choice: str, both: tuple[Images, Images]) -> Runs:
    return representations(choice, both[0]), representations(choice, both[1])


def _twins(choice: str, both: tuple[Images, Images]) -> Runs:
    return _twin(choice, both[0]), _twin(choice, both[1])


def _twin(choice: str, images: Images) -> Representations:
    network = model(choice)
    key = (key_of(network), "untrained twin", key_of_images(images), LAYERS, "mean")

    def extract() -> Representations:
        return disk.store(key, lambda place: mp.extract(network.untrained(), images, LAYERS, batch_size=BATCH, out=place))

    title = f"{choice}, untrained: representations of {len(images)} images"
    return made("representations", key, title, extract, keep=False)


def _of_run(choice: str, train: Images, test: Images) -> Subject:
    """A run that holds both sides, or else the two halves of its own images."""
    run = stored_run(choice)
    name = f"models[{choice!r}]"
    if {*train.keys, *test.keys} <= set(run.keys):
        sides = ", ".join(f"{name}.take([{name}.keys.index(key) for key in {side}.keys])" for side in ("train", "test"))
        pair = stored_run(choice, train), stored_run(choice, test)
        return Subject(choice, ("run", repr(run.record.identity()), pair[0].images.fingerprint), lambda: pair, None, sides)
    fit, hold = halves(run)
    code = f"{name}.take({fit.tolist()}), {name}.take({hold.tolist()})"
    return Subject(
        choice, ("run", repr(run.record.identity()), len(fit)), lambda: (run.take(fit, "fit"), run.take(hold, "test")), None, code
    )


def halves(run: Representations) -> tuple[np.ndarray, np.ndarray]:
    """The images of a run in two halves, every class in both where it has two images. Raises ImagesError without labels."""
    y = train_labels(run)
    hold = stratified(y, len(y) // 2)
    return apart(run.keys, np.setdiff1d(np.arange(len(y)), hold), hold), hold


# -- results ---------------------------------------------------------------------------------------------------------------


Code = str | Callable[[Any], str]


def _result(kind: str, one: Subject, key: Hashable, title: str, make: Callable[[Runs, Runs | None], T], code: Code) -> T:
    """The result kept, or a new one; representations are only fetched for a new one."""
    key = (one.key, key)
    label = f"{title} of {shown(one.choice)}"
    runs: tuple[Runs, Runs | None] | None = None
    if find(kind, key) is None:
        runs = one.runs(), (one.twin() if one.twin else None)
    found = made(kind, key, label, lambda: make(*runs))  # type: ignore[misc]
    said = code if isinstance(code, str) else code(found)
    seen.saw(PAGE, label, kind, key, said, [one.choice], seen.sides_setup())
    return found


def _options(one: Subject, *said: str) -> str:
    return "".join(f", {text}" for text in (*said, one.code_twin) if text)


def accuracy(one: Subject, method: str) -> ProbeResult:
    """A probe of every layer."""
    code = f"mp.linear_probe({one.code}{_options(one, f'method={method!r}')})"
    title = f"{'k-NN' if method == 'knn' else METHODS[method].capitalize()} probes"
    return _result("probes", one, method, title, lambda r, twin: mp.linear_probe(*r, method=method, untrained=twin), code)


def control(one: Subject) -> ControlTask:
    """The groups of the classes, and random groupings of them."""
    code = f"mp.probing.control_task({one.code}{_options(one, 'seed=0')})"
    work = mp.probing.control_task
    return _result("control tasks", one, "", "Control tasks", lambda r, twin: work(*r, seed=0, untrained=twin), code)


def random_labels(one: Subject) -> RandomLabels:
    """Probes of shuffled labels."""
    code = f"mp.probing.random_label_probe({one.code}, seed=0)"
    return _result("random labels", one, "", "Random labels", lambda r, _: mp.probing.random_label_probe(*r, seed=0), code)


def description_length(one: Subject) -> tuple[OnlineCode, ...]:
    """The online code of the labels at a few layers, and that of the untrained twin."""

    def code(found: tuple[OnlineCode, ...]) -> str:
        names = [layer.name for layer in found[0].layers]
        part = f"reps.only({names!r}).take(mp.probing.stratified(reps.labels, {found[0].n}))"
        sides = f"[({one.code})[0]{_twin_code(one)}]"
        return f"[mp.probing.online_code({part}, seed=0, **{_CODE!r}) for reps in {sides}]"

    return _result("description length", one, "", "Description length", _codes, code)


def _twin_code(one: Subject) -> str:
    return f", ({one.code_twin.removeprefix('untrained=')})[0]" if one.code_twin else ""


def _codes(runs: Runs, twin: Runs | None) -> tuple[OnlineCode, ...]:
    sides = [runs[0], *([twin[0]] if twin else [])]
    return tuple(mp.probing.online_code(_sample(reps), seed=0, **_CODE) for reps in sides)


def _sample(reps: Representations) -> Representations:
    y = train_labels(reps)
    names = [reps.layers[i].name for i in spread(reps.layers, CODE_LAYERS)]
    return reps.only(names).take(stratified(y, min(len(y), CODE_IMAGES)))


def confusion(one: Subject, probe: ProbeResult, method: str) -> ConfusionMatrix:
    """Confusion between classes."""
    key = (one.key, method)
    label = f"Confusion of {shown(one.choice)}"
    code = f"mp.probing.confusion_matrix(mp.linear_probe({one.code}, method={method!r}))"
    found = made("confusion", key, label, lambda: mp.probing.confusion_matrix(probe))
    seen.saw(PAGE, label, "confusion", key, code, [one.choice], seen.sides_setup())
    return found


# -- places ----------------------------------------------------------------------------------------------------------------


def layers_for_maps(choice: str) -> list[str]:
    """At most `MOST_MAPS` blocks, spread over the depth, whose grid is coarse enough. Raises MeasureError where there is none."""
    network = model(choice)
    able = [layer for layer in network.select(LAYERS) if _has_places(layer)]
    if not able:
        raise MeasureError(f"no block of {network.name} has from 2 to {MOST_POSITIONS} positions in a grid")
    return [able[i].name for i in spread(able, MOST_MAPS)]


def _has_places(layer: Layer) -> bool:
    return layer.grid is not None and 1 < layer.grid[0] * layer.grid[1] <= MOST_POSITIONS


def class_by_place(choice: str, train: Images, test: Images) -> PositionProbe:
    """A probe at every position of a few blocks. Raises ModelError for a stored run, which has no network to ask again."""
    network, names = model(choice), layers_for_maps(choice)
    key = (key_of(network), key_of_images(train), key_of_images(test), tuple(names))
    title = f"Probes by position of {shown(choice)}"
    runs: list[Representations] = []
    if find("positions", key) is None:
        runs = [representations(choice, images, names, "none") for images in (train, test)]
    found = made("positions", key, title, lambda: mp.probing.position_probe(*runs))
    sides = ", ".join(f"mp.extract(models[{choice!r}], {side}, {names!r}, reduce='none')" for side in ("train", "test"))
    seen.saw(PAGE, title, "positions", key, f"mp.probing.position_probe({sides})", [choice], seen.sides_setup())
    return found


def place_of_patch(choice: str, images: Images, with_twin: bool) -> PatchPosition:
    """Decoding of the position of a patch; needs no classes."""
    network, part = model(choice), images.sample(min(PLACE_IMAGES, len(images)))
    names = [layer.name for layer in network.select(("stem", LAYERS)) if layer.grid and layer.grid[0] * layer.grid[1] > 1]
    if not names:
        raise MeasureError(f"no layer of {network.name} has several positions, so no position can be decoded")
    options: dict[str, Any] = {"layers": names, "ridges": _PLACE_RIDGES, "untrained": with_twin}
    key = (key_of(network), key_of_images(part), with_twin)
    title = f"Patch position of {shown(choice)}"
    probe = mp.probing.patch_position_probe
    found = made("patch position", key, title, lambda: probe(network, part, batch_size=BATCH, **options))
    said = "".join(f", {name}={value!r}" for name, value in options.items())
    code = f"mp.probing.patch_position_probe(models[{choice!r}], images.sample(min({PLACE_IMAGES}, len(images))){said})"
    seen.saw(PAGE, title, "patch position", key, code, [choice], seen.images_setup())
    return found


# -- tables ----------------------------------------------------------------------------------------------------------------


def frame_of(results: Sequence[Any]) -> pd.DataFrame:
    """The tables of all results, one below the other."""
    return pd.concat([r.to_frame() for r in results], ignore_index=True)


def grouping_frame(results: Sequence[ControlTask]) -> pd.DataFrame:
    """Semantic groups and random groupings as rows of their own: accuracy, and its interval or the range over groupings."""
    frame = frame_of(results)
    frame = frame[frame["trained"] | ~frame["model"].str.endswith("?untrained")]
    rename = {"control_accuracy": "accuracy", "control_lowest": "low", "control_highest": "high"}
    random = frame.drop(columns=["accuracy", "low", "high"]).rename(columns=rename)
    return pd.concat([frame.assign(groups="semantic"), random.assign(groups="random")], ignore_index=True)


def random_frame(results: Sequence[RandomLabels]) -> pd.DataFrame:
    """Observed and expected accuracy, as separate rows."""
    frame = frame_of(results)
    expected = frame.assign(accuracy=frame["expected"], low=frame["expected"], high=frame["expected"])
    return pd.concat([frame.assign(labels="found"), expected.assign(labels="expected")], ignore_index=True)


def path_frame(results: Sequence[ProbeResult], layer: int) -> pd.DataFrame:
    """Accuracy along the path of one layer of each network, by its place in the order of layers; with Wilson's interval."""
    frames = []
    for result in results:
        name = result.layers[min(layer, len(result.layers) - 1)].name
        frame = result.path_frame()
        frames.append(frame[frame["layer"] == name].assign(n_test=result.n_test))
    frame = pd.concat(frames, ignore_index=True)
    low, high = mp.probing.wilson_interval(np.round(frame["test_accuracy"] * frame["n_test"]), frame["n_test"].to_numpy())
    return frame.assign(low=low, high=high)


def layer_rows(frame: pd.DataFrame, layer: str) -> pd.DataFrame:
    """The rows of one layer."""
    return frame[frame["layer"] == layer].reset_index(drop=True)


def hardest(found: ConfusionMatrix, layer: int, most: int) -> list[str]:
    """The classes with most errors at a layer, in their own order."""
    counts = found.counts[layer]
    errors = counts.sum(axis=1) + counts.sum(axis=0) - 2 * np.diagonal(counts)
    return [found.class_names[k] for k in np.sort(np.argsort(-errors, kind="stable")[:most])]


def wrong(probe: ProbeResult, layer: int, name: str) -> list[tuple[int, str]]:
    """The test images of a class that a layer gets wrong: (index, answer)."""
    names = dict(zip(probe.class_labels.tolist(), probe.class_names))
    chosen = [i for i, y in enumerate(probe.labels.tolist()) if names.get(y) == name and not probe.right[layer, i]]
    return [(i, names.get(int(probe.predicted[layer, i]), "no prediction")) for i in chosen]
