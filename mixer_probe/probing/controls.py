"""Controls of a probe: random groupings of classes, and random labels.

A probe that reads the group of an image (animal or vehicle) may know the groups, or know the classes and add them up. Hewitt
and Liang (2019) tell the two apart by a control task whose answers are random but the same for every token of a type; here
the types are the fine classes, and a control groups them at random into groups of the same sizes. Whoever reads the classes
reads a control as well; selectivity, the accuracy on the semantic grouping minus that on the controls, is how much easier the
representation makes the grouping that means something.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import ImagesError, MeasureError, closest
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.bundled import CIFAR10_CLASSES
from mixer_probe.linear.many_targets import RidgeFits, classify
from mixer_probe.linear.ridge import default_l2
from mixer_probe.models.layer import Layer
from mixer_probe.probing.runs import Runs, check_runs, check_twin, finite_pair, run_labels
from mixer_probe.probing.tables import layer_columns
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import crossed_interval, wilson_interval

_VEHICLES = ("airplane", "automobile", "ship", "truck")
CIFAR10_GROUPS = {name: "vehicle" if name in _VEHICLES else "animal" for name in CIFAR10_CLASSES}
_BUNDLED = (CIFAR10_GROUPS,)
Bounds = tuple[float, float]


@dataclass(frozen=True)
class ControlTask(Result):
    """Accuracy of a ridge probe on the semantic grouping of the classes [L] and on random groupings of them [L, S].

    `semantic` [K] and `controls` [S, K] give the group of every class, -1 for a class without training images; `groups` names
    the semantic ones. `low` and `high` bound the accuracy by Wilson's interval over test images. `selectivity` is the accuracy
    minus the mean over controls; its bounds are a 95 % interval over test images and controls as crossed random effects
    (over images alone where `exhaustive`: these are all the groupings there are). `relative_selectivity` is the
    share of the controls' errors that the semantic grouping does not make, (accuracy - control) / (1 - control): the difference
    shrinks where all groupings are nearly right, this does not; NaN where the controls make no error. `chance` [1 + S] is the
    share of the largest group of the test images, for the semantic grouping and the controls. Each grouping has its own `l2`,
    [L, 1 + S], by leave-one-out accuracy on the training images."""

    title: ClassVar[str] = "Control tasks"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    semantic: np.ndarray
    controls: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    balanced_accuracy: np.ndarray
    control_accuracy: np.ndarray
    control_balanced_accuracy: np.ndarray
    selectivity: np.ndarray
    selectivity_low: np.ndarray
    selectivity_high: np.ndarray
    relative_selectivity: np.ndarray
    relative_low: np.ndarray
    relative_high: np.ndarray
    chance: np.ndarray
    l2: np.ndarray
    n_train: int
    n_test: int
    seed: int
    exhaustive: bool
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out accuracy"
    untrained: ControlTask | None = None

    def to_frame(self) -> pd.DataFrame:
        """One layer a row, of the network and then of its untrained twin."""
        frame = pd.DataFrame(
            {
                **layer_columns(self.model, self.layers),
                "accuracy": self.accuracy,
                "low": self.low,
                "high": self.high,
                "balanced_accuracy": self.balanced_accuracy,
                "control_accuracy": self.control_accuracy.mean(axis=1),
                "control_lowest": self.control_accuracy.min(axis=1),
                "control_highest": self.control_accuracy.max(axis=1),
                "selectivity": self.selectivity,
                "selectivity_low": self.selectivity_low,
                "selectivity_high": self.selectivity_high,
                "relative_selectivity": self.relative_selectivity,
                "relative_low": self.relative_low,
                "relative_high": self.relative_high,
                "chance": self.chance[0],
                "control_chance": self.chance[1:].mean(),
                "groups": len(self.groups),
                "controls": len(self.controls),
                "n_train": self.n_train,
                "n_test": self.n_test,
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.to_frame()], ignore_index=True)


@checked(MeasureError)
def control_task(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    groups: Mapping[str, str] | None = None,
    *,
    controls: int = 10,
    seed: int = 0,
    l2: np.ndarray | None = None,
    untrained: Runs | None = None,
) -> ControlTask:
    """Probe the groups of the classes, and `controls` random groupings of the classes into groups of the same sizes.

    `groups` names the group of every class; left out, CIFAR-10 has animals and vehicles. The controls are drawn by `seed`
    without repetition and without the semantic grouping; where there are no more than `controls`, all of them are taken.
    `untrained` is (train, test) of the untrained twin. Layers with NaN or infinite features give NaN and a NonFiniteWarning.

    Raises ImagesError for missing labels or class names, a class that `groups` lacks or that no image has been given, and
    what `linear_probe` raises; MeasureError where no random grouping could differ from the semantic one."""
    check_runs(reps_train, reps_test)
    y_train, y_test = run_labels(reps_train, reps_test)
    twin = None
    if untrained is not None:
        check_twin((reps_train, reps_test), untrained)
        options: dict[str, Any] = {"controls": controls, "seed": seed, "l2": l2}
        twin = control_task(untrained[0], untrained[1], groups, **options)
    names, semantic = grouping_of(reps_train, np.unique(y_train), groups)
    drawn, exhaustive = random_groupings(semantic, controls, seed)
    tasks = np.vstack([semantic, drawn])
    path = default_l2(len(y_train)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
    labels = tasks[:, y_train].T, tasks[:, y_test].T
    scores = [_score(reps_train, reps_test, layer.name, labels, len(names), path, exhaustive) for layer in reps_train.layers]
    columns: dict[str, Any] = {key: np.stack([score[key] for score in scores]) for key in scores[0]}
    return ControlTask(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        class_names=tuple(reps_train.class_names or ()),
        groups=names,
        semantic=semantic,
        controls=drawn,
        chance=np.array([np.bincount(column).max() / len(y_test) for column in labels[1].T]),
        n_train=len(y_train),
        n_test=len(y_test),
        seed=seed,
        exhaustive=exhaustive,
        reduce=reps_train.reduce,
        untrained=twin,
        **columns,
    )


def _score(
    train: RepresentationsLike,
    test: RepresentationsLike,
    name: str,
    labels: tuple[np.ndarray, np.ndarray],
    groups: int,
    l2: np.ndarray,
    exhaustive: bool,
) -> dict[str, np.ndarray]:
    pair = finite_pair(train, test, name)
    if pair is None:
        return _nothing(labels[0].shape[1])
    fits = RidgeFits.of(pair[0], None, l2)
    found = classify(fits, labels[0], fits.project(pair[1]), groups)
    right = found.predicted == labels[1]
    accuracy, balanced = right.mean(axis=0), balanced_accuracies(right, labels[1])
    low, high = wilson_interval(int(right[:, 0].sum()), len(right))
    selectivity, relative = _selectivity_intervals(right, exhaustive)
    return {
        "accuracy": accuracy[0],
        "low": np.float64(low),
        "high": np.float64(high),
        "balanced_accuracy": balanced[0],
        "control_accuracy": accuracy[1:],
        "control_balanced_accuracy": balanced[1:],
        "selectivity": accuracy[0] - accuracy[1:].mean(),
        "selectivity_low": np.float64(selectivity[0]),
        "selectivity_high": np.float64(selectivity[1]),
        "relative_selectivity": _relative(accuracy[0], accuracy[1:].mean()),
        "relative_low": np.float64(relative[0]),
        "relative_high": np.float64(relative[1]),
        "l2": found.l2,
    }


def _nothing(tasks: int) -> dict[str, np.ndarray]:
    """The scores of a layer that cannot be probed."""
    one = (
        *("accuracy", "low", "high", "balanced_accuracy", "selectivity", "selectivity_low", "selectivity_high"),
        *("relative_selectivity", "relative_low", "relative_high"),
    )
    many = {"control_accuracy": tasks - 1, "control_balanced_accuracy": tasks - 1, "l2": tasks}
    scores = {name: np.array(np.nan) for name in one}
    return scores | {name: np.full(size, np.nan) for name, size in many.items()}


def _selectivity_intervals(right: np.ndarray, exhaustive: bool) -> tuple[Bounds, Bounds]:
    """95 % intervals of the selectivity and the relative selectivity of `right` [n, 1 + S], images kept in pairs, over other test
    images and other controls; over images alone where the controls are `exhaustive`."""
    errors = 1 - right.T.astype(np.float64)
    semantic, controls = errors[:1], errors[1:].mean(axis=0, keepdims=True) if exhaustive else errors[1:]
    lost = controls.mean()
    _, low, high = crossed_interval(controls - semantic, limits=(-1, 1))
    if lost < 1e-9:
        return (float(low), float(high)), (np.nan, np.nan)
    # 1 - semantic / controls, by the influence of every image and control on it.
    ratio = semantic.mean() / lost
    _, down, up = crossed_interval((ratio * controls - semantic) / lost, limits=(-1 / lost, 1 / lost))
    return (float(low), float(high)), (float(1 - ratio + down), float(np.minimum(1 - ratio + up, 1)))


def _relative(accuracy: Any, control: Any) -> np.ndarray:
    """Share of the controls' errors that are not made; NaN where there is none but rounding."""
    errors = 1 - np.asarray(control)
    found: np.ndarray = np.divide(accuracy - control, errors, out=np.full(errors.shape, np.nan), where=errors > 1e-9)
    return found


def balanced_accuracies(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over the classes of each column of `labels` [n, t] of the share of `right` [n, t] in it, [t]."""
    classes = [np.unique(column) for column in labels.T]
    return np.array([np.mean([right[labels[:, t] == k, t].mean() for k in present]) for t, present in enumerate(classes)])


def grouping_of(
    reps: RepresentationsLike, present: np.ndarray, groups: Mapping[str, str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """(names of the groups, group of every class [K]) for the classes `present`, -1 for the others.

    Raises ImagesError and MeasureError as `control_task`."""
    names = reps.class_names
    if names is None:
        raise ImagesError(f"the classes of {reps.images.name} have no names, so no grouping of them can be given")
    wanted = _known_groups(names) if groups is None else dict(groups)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ImagesError(f"groups= names the class '{unknown[0]}', which no image has; {closest(unknown[0], names)}")
    missing = [names[k] for k in present if names[k] not in wanted]
    if missing:
        raise ImagesError(f"groups= gives no group for {len(missing)} classes, the first is '{missing[0]}'")
    found = tuple(dict.fromkeys(wanted[names[k]] for k in present))
    if not 1 < len(found) < len(present):
        raise MeasureError(
            f"{len(present)} classes in {len(found)} groups leave nothing to shuffle: take two or more, some of several classes"
        )
    grouping = np.full(len(names), -1)
    grouping[present] = [found.index(wanted[names[k]]) for k in present]
    return found, grouping


def _known_groups(names: tuple[str, ...]) -> dict[str, str]:
    for known in _BUNDLED:
        if set(names) <= set(known):
            return {name: known[name] for name in names}
    raise ImagesError(
        f"no grouping of the classes {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} is known: "
        f"give one, groups={{'{names[0]}': 'animal', ...}}"
    )


def random_groupings(semantic: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, bool]:
    """Up to `count` different groupings [S, K] of the classes into groups of the sizes that `semantic` [K] has, without
    `semantic` itself, and whether these are all there are.

    Groupings are the same if they part the classes alike, whatever the groups are called; -1 stays. Raises MeasureError if
    there is no other grouping, or `count` is below 1."""
    members = np.flatnonzero(semantic >= 0)
    possible = count_groupings(semantic[members]) - 1
    if possible < 1:
        raise MeasureError("no random grouping can differ from the semantic one: it needs groups of several classes")
    random = np.random.default_rng(seed)
    seen = {_parts(semantic[members])}
    drawn: list[np.ndarray] = []
    while len(drawn) < min(count, possible):
        shuffled = random.permutation(semantic[members])
        if _parts(shuffled) not in seen:
            seen.add(_parts(shuffled))
            drawn.append(shuffled)
    controls = np.full((len(drawn), len(semantic)), -1)
    controls[:, members] = drawn
    return controls, len(drawn) == possible


def count_groupings(grouping: np.ndarray) -> int:
    """How many ways there are to part the classes into unnamed groups of the sizes of `grouping` [K], this one included."""
    sizes = np.bincount(grouping)
    named = math.factorial(len(grouping)) // math.prod(math.factorial(size) for size in sizes)
    return named // math.prod(math.factorial(times) for times in Counter(sizes.tolist()).values())


def _parts(grouping: np.ndarray) -> tuple[int, ...]:
    """The grouping with its groups numbered by their first class."""
    order: dict[int, int] = {}
    return tuple(order.setdefault(int(group), len(order)) for group in grouping)


@dataclass(frozen=True)
class RandomLabels(Result):
    """Accuracy of a ridge probe on labels that say nothing about the images, [L, S] over draws, and what it must be.

    Both sets keep their labels but shuffled. `expected` [L] is what shuffled test labels give for these predictions on average:
    the sum over classes of the share predicted times the share there. `low` and `high` are Wilson's interval of the pooled
    accuracy over `n_test` times S answers; a sound pipeline has `expected` inside at 95 % of its layers. `memorised` [L, S]
    is the accuracy on the training images themselves at the least penalty, which a probe of enough features drives to 1."""

    title: ClassVar[str] = "Random labels"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    expected: np.ndarray
    memorised: np.ndarray
    n_train: int
    n_test: int
    classes: int
    seed: int
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out accuracy"

    @property
    def at_chance(self) -> np.ndarray:
        """Whether each layer [L] has its expected accuracy inside the interval."""
        inside: np.ndarray = (self.low <= self.expected) & (self.expected <= self.high)
        return inside

    def to_frame(self) -> pd.DataFrame:
        """One layer a row."""
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers),
                "accuracy": self.accuracy.mean(axis=1),
                "low": self.low,
                "high": self.high,
                "expected": self.expected,
                "at_chance": self.at_chance,
                "memorised": self.memorised.mean(axis=1),
                "draws": self.accuracy.shape[1],
                "n_train": self.n_train,
                "n_test": self.n_test,
                "classes": self.classes,
            }
        )


@checked(MeasureError)
def random_label_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    *,
    draws: int = 5,
    seed: int = 0,
    l2: np.ndarray | None = None,
) -> RandomLabels:
    """Probe shuffled labels, `draws` times: a probe that finds them on new images has seen these, or counts wrongly.

    Layers with NaN or infinite features give NaN and a NonFiniteWarning. Raises what `linear_probe` raises, and MeasureError
    for draws < 1."""
    check_runs(reps_train, reps_test)
    y_train, y_test = run_labels(reps_train, reps_test)
    path = default_l2(len(y_train)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
    classes = np.unique(y_train)
    labels = [_shuffled(np.searchsorted(classes, y), draws, [seed, k]) for k, y in enumerate((y_train, y_test))]
    scores = []
    for layer in reps_train.layers:
        pair = finite_pair(reps_train, reps_test, layer.name)
        scores.append(None if pair is None else _random_score(*pair, labels[0], labels[1], len(classes), path))
    nothing = {"accuracy": np.full(draws, np.nan), "expected": np.array(np.nan), "memorised": np.full(draws, np.nan)}
    columns: dict[str, Any] = {key: np.stack([(score or nothing)[key] for score in scores]) for key in nothing}
    bounds = [_pooled(accuracy, len(y_test)) for accuracy in columns["accuracy"]]
    return RandomLabels(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        low=np.array([low for low, _ in bounds]),
        high=np.array([high for _, high in bounds]),
        n_train=len(y_train),
        n_test=len(y_test),
        classes=len(classes),
        seed=seed,
        reduce=reps_train.reduce,
        **columns,
    )


def _random_score(
    X: np.ndarray, X_new: np.ndarray, train: np.ndarray, test: np.ndarray, classes: int, l2: np.ndarray
) -> dict[str, np.ndarray]:
    fits = RidgeFits.of(X, train, l2)
    new = fits.project(X_new)
    found = classify(fits, train, new, classes)
    least = classify(replace(fits, l2=l2[:1]), train, new, classes)
    said = np.stack([np.bincount(column, minlength=classes) for column in found.predicted.T])
    truth = np.bincount(test[:, 0], minlength=classes)
    expected = (said * truth).sum(axis=1) / len(test) ** 2
    return {
        "accuracy": (found.predicted == test).mean(axis=0),
        "expected": np.array(expected.mean()),
        "memorised": least.fitted_accuracy,
    }


def _shuffled(labels: np.ndarray, draws: int, seed: list[int]) -> np.ndarray:
    """`labels` [n] in `draws` random orders, [n, draws]."""
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(labels) for _ in range(draws)], axis=1)


def _pooled(accuracy: np.ndarray, n: int) -> tuple[float, float]:
    """Wilson's interval over all draws together; NaN where the accuracy is."""
    if np.isnan(accuracy).any():
        return np.nan, np.nan
    return wilson_interval(round(accuracy.sum() * n), len(accuracy) * n)
