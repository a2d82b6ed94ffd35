"""Control tasks of a probe: random groupings of classes, and random labels.

A probe that predicts the group of an image (animal or vehicle) may use the groups, or classify the
classes and map each to its group. Hewitt and Liang (2019) separate the two by a control task whose
labels are random but the same for every token of a type; here the types are the fine classes, and a
control groups them at random into groups of the same sizes. A probe that separates the classes
solves a control too; selectivity, the accuracy on the semantic grouping minus that on the controls,
is how much easier the representation makes the semantic grouping.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from mixer_probe.core.errors import ImagesError, MeasureError, closest
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.bundled import CIFAR10_CLASSES
from mixer_probe.linear.many_targets import classify
from mixer_probe.linear.ridge import default_l2
from mixer_probe.models.layer import Layer
from mixer_probe.probing.runs import (
    LAYER,
    Runs,
    check_runs,
    check_untrained,
    finite_pair,
    run_labels,
)
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import crossed_interval, wilson_interval

_VEHICLES = ("airplane", "automobile", "ship", "truck")
CIFAR10_GROUPS = {name: "vehicle" if name in _VEHICLES else "animal" for name in CIFAR10_CLASSES}
_BUNDLED = (CIFAR10_GROUPS,)
Bounds = tuple[float, float]


@dataclass(frozen=True)
class ControlTask(Result):
    """Accuracy of a ridge probe on the semantic grouping of the classes [L] and on random groupings
    of them [L, S].

    `semantic` [K] and `controls` [S, K] give the group of every class, -1 for a class without
    training images; `groups` names the semantic ones. `low` and `high` are Wilson's interval of the
    accuracy over test images. `selectivity` is the accuracy minus the mean over controls; its
    bounds are a 95 % interval over test images and controls as crossed random effects (over images
    alone where `exhaustive`: these are all the groupings there are). `relative_selectivity` is the
    fraction of the controls' errors that the semantic grouping does not make, (accuracy - control)
    / (1 - control): unlike the difference it does not shrink where all groupings are nearly right;
    NaN where the controls make no error. `chance` [1 + S] is the frequency of the largest group of
    the test images, for the semantic grouping and the controls. Each grouping has its own `l2`, [L,
    1 + S], by leave-one-out accuracy on the training images."""

    title: ClassVar[str] = "Control tasks"
    frame = Frame(
        "layer",
        f"""{LAYER} accuracy low high balanced_accuracy control_accuracy=control_accuracy.mean
        control_lowest=control_accuracy.min control_highest=control_accuracy.max selectivity
        selectivity_low selectivity_high relative_selectivity relative_low relative_high
        chance=chance.first control_chance groups=group controls=control n_train n_test""",
        below="untrained",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    class_names: Annotated[tuple[str, ...], "class?"]
    groups: Annotated[tuple[str, ...], "group"]
    semantic: Annotated[np.ndarray, "class"]
    controls: Annotated[np.ndarray, "control", "class"]
    accuracy: Annotated[np.ndarray, "layer"]
    low: Annotated[np.ndarray, "layer"]
    high: Annotated[np.ndarray, "layer"]
    balanced_accuracy: Annotated[np.ndarray, "layer"]
    control_accuracy: Annotated[np.ndarray, "layer", "control"]
    control_balanced_accuracy: Annotated[np.ndarray, "layer", "control"]
    selectivity: Annotated[np.ndarray, "layer"]
    selectivity_low: Annotated[np.ndarray, "layer"]
    selectivity_high: Annotated[np.ndarray, "layer"]
    relative_selectivity: Annotated[np.ndarray, "layer"]
    relative_low: Annotated[np.ndarray, "layer"]
    relative_high: Annotated[np.ndarray, "layer"]
    chance: Annotated[np.ndarray, "control + 1"]
    l2: Annotated[np.ndarray, "layer", "control + 1"]
    n_train: int
    n_test: int
    seed: int
    exhaustive: bool
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out accuracy"
    untrained: ControlTask | None = None

    @property
    def control_chance(self) -> float:
        """The mean of `chance` over the controls."""
        return float(self.chance[1:].mean())


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
    """Probe the groups of the classes, and `controls` random groupings of the classes into groups
    of the same sizes.

    `groups` names the group of every class; left out, CIFAR-10 has animals and vehicles. The
    controls are drawn by `seed` without repetition and without the semantic grouping; where there
    are no more than `controls`, all of them are taken. `untrained` is (train, test) of the
    untrained baseline. Layers with NaN or infinite features give NaN and a NonFiniteWarning.

    Raises ImagesError for missing labels or class names, a class that `groups` lacks or that has no
    image, and what `linear_probe` raises; MeasureError where no random grouping could differ from
    the semantic one."""
    check_runs(reps_train, reps_test)
    y_train, y_test = run_labels(reps_train, reps_test)
    check_untrained((reps_train, reps_test), untrained)
    options: dict[str, Any] = {"controls": controls, "seed": seed, "l2": l2}
    baseline = None if untrained is None else control_task(*untrained, groups, **options)
    names, semantic = grouping_of(reps_train, np.unique(y_train), groups)
    drawn, exhaustive = random_groupings(semantic, controls, seed)
    tasks = np.vstack([semantic, drawn])
    path = default_l2(len(y_train)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
    train, test = tasks[:, y_train].T, tasks[:, y_test].T
    predicted, chosen = (
        np.full((len(reps_train.layers), *test.shape), -1),
        np.full((len(reps_train.layers), len(tasks)), np.nan),
    )
    for i, layer in enumerate(reps_train.layers):
        pair = finite_pair(reps_train, reps_test, layer.name)
        if pair is not None:
            found = classify(pair[0], train, pair[1], len(names), path)
            predicted[i], chosen[i] = found.predicted, found.l2
    scores = [_task_scores(layer == test, test, exhaustive) for layer in predicted]
    undefined = np.isnan(chosen[:, 0])
    columns: dict[str, Any] = {key: np.stack([score[key] for score in scores]) for key in scores[0]}
    for values in columns.values():
        values[undefined] = np.nan
    return ControlTask(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        class_names=tuple(reps_train.class_names or ()),
        groups=names,
        semantic=semantic,
        controls=drawn,
        chance=np.array([np.bincount(column).max() / len(y_test) for column in test.T]),
        l2=chosen,
        n_train=len(y_train),
        n_test=len(y_test),
        seed=seed,
        exhaustive=exhaustive,
        reduce=reps_train.reduce,
        untrained=baseline,
        **columns,
    )


def _task_scores(right: np.ndarray, labels: np.ndarray, exhaustive: bool) -> dict[str, np.ndarray]:
    """The scores of `ControlTask` for one layer, from `right` [n, 1 + S] for `labels` [n, 1 +
    S]."""
    accuracy, balanced = right.mean(axis=0), balanced_accuracies(right, labels)
    low, high = wilson_interval(int(right[:, 0].sum()), len(right))
    selectivity, relative = selectivity_intervals(right, exhaustive)
    semantic, control = accuracy[0], accuracy[1:].mean()
    numbers = {
        "accuracy": semantic,
        "low": low,
        "high": high,
        "balanced_accuracy": balanced[0],
        "control_accuracy": accuracy[1:],
        "control_balanced_accuracy": balanced[1:],
        "selectivity": semantic - control,
        "selectivity_low": selectivity[0],
        "selectivity_high": selectivity[1],
        # Undefined where the controls make no error but rounding.
        "relative_selectivity": (semantic - control) / (1 - control)
        if 1 - control > 1e-9
        else np.nan,
        "relative_low": relative[0],
        "relative_high": relative[1],
    }
    return {name: np.asarray(value, dtype=np.float64) for name, value in numbers.items()}


def selectivity_intervals(right: np.ndarray, exhaustive: bool) -> tuple[Bounds, Bounds]:
    """95 % intervals of the selectivity and the relative selectivity of `right` [n, 1 + S], paired
    by image, over other test images and other controls; over images alone where the controls are
    `exhaustive`."""
    errors = 1 - right.T.astype(np.float64)
    semantic, controls = (
        errors[:1],
        errors[1:].mean(axis=0, keepdims=True) if exhaustive else errors[1:],
    )
    control_error = controls.mean()
    _, low, high = crossed_interval(controls - semantic, limits=(-1, 1))
    if control_error < 1e-9:
        return (float(low), float(high)), (np.nan, np.nan)
    # 1 - semantic / controls, by the influence of every image and control on it.
    ratio = semantic.mean() / control_error
    influence = (ratio * controls - semantic) / control_error
    _, down, up = crossed_interval(influence, limits=(-1 / control_error, 1 / control_error))
    return (float(low), float(high)), (
        float(1 - ratio + down),
        float(np.minimum(1 - ratio + up, 1)),
    )


def balanced_accuracies(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over the classes of each column of `labels` [n, t] of the fraction of `right` [n, t] in
    it, [t]."""
    classes = [np.unique(column) for column in labels.T]
    return np.array(
        [
            np.mean([right[labels[:, t] == k, t].mean() for k in present])
            for t, present in enumerate(classes)
        ]
    )


def grouping_of(
    reps: RepresentationsLike, present: np.ndarray, groups: Mapping[str, str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """(names of the groups, group of every class [K]) for the classes `present`, -1 for the others.

    Raises ImagesError and MeasureError as `control_task`."""
    names = reps.class_names
    if names is None:
        raise ImagesError(
            f"the classes of {reps.images.name} have no names, so no grouping of them can be given"
        )
    if groups is None:
        known = next((bundled for bundled in _BUNDLED if set(names) <= set(bundled)), None)
        if known is None:
            raise ImagesError(
                "no grouping of the classes "
                f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} is known: give one, "
                f"groups={{'{names[0]}': 'animal', ...}}"
            )
        wanted = {name: known[name] for name in names}
    else:
        wanted = dict(groups)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ImagesError(
            f"groups= names the class '{unknown[0]}', which no image has; "
            f"{closest(unknown[0], names)}"
        )
    missing = [names[k] for k in present if names[k] not in wanted]
    if missing:
        raise ImagesError(
            f"groups= gives no group for {len(missing)} classes, the first is '{missing[0]}'"
        )
    found = tuple(dict.fromkeys(wanted[names[k]] for k in present))
    if not 1 < len(found) < len(present):
        raise MeasureError(
            f"{len(present)} classes in {len(found)} groups leave nothing to shuffle: take two or "
            "more, some of several classes"
        )
    grouping = np.full(len(names), -1)
    grouping[present] = [found.index(wanted[names[k]]) for k in present]
    return found, grouping


def random_groupings(semantic: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, bool]:
    """Up to `count` different groupings [S, K] of the classes into groups of the sizes that
    `semantic` [K] has, without `semantic` itself, and whether these are all there are.

    Groupings are the same if they partition the classes alike, whatever the names of the groups; -1
    stays. Raises MeasureError if there is no other grouping, or `count` is below 1."""
    members = np.flatnonzero(semantic >= 0)
    possible = count_groupings(semantic[members]) - 1
    if possible < 1:
        raise MeasureError(
            "no random grouping can differ from the semantic one: it needs groups of several "
            "classes"
        )
    random = np.random.default_rng(seed)
    known = {_partition(semantic[members])}
    drawn: list[np.ndarray] = []
    while len(drawn) < min(count, possible):
        shuffled = random.permutation(semantic[members])
        if _partition(shuffled) not in known:
            known.add(_partition(shuffled))
            drawn.append(shuffled)
    controls = np.full((len(drawn), len(semantic)), -1)
    controls[:, members] = drawn
    return controls, len(drawn) == possible


def count_groupings(grouping: np.ndarray) -> int:
    """Number of partitions of the classes into unnamed groups of the sizes of `grouping` [K], this
    one included."""
    sizes = np.bincount(grouping)
    named = math.factorial(len(grouping)) // math.prod(math.factorial(size) for size in sizes)
    return named // math.prod(math.factorial(times) for times in Counter(sizes.tolist()).values())


def _partition(grouping: np.ndarray) -> tuple[int, ...]:
    """The grouping with its groups numbered by their first class."""
    order: dict[int, int] = {}
    return tuple(order.setdefault(int(group), len(order)) for group in grouping)


@dataclass(frozen=True)
class RandomLabels(Result):
    """Accuracy of a ridge probe on permuted labels, [L, S] over permutations, and its expected
    value.

    Both sets keep their labels but permuted. `expected` [L] is the mean accuracy of these
    predictions over permutations of the test labels: the sum over classes of the fraction predicted
    times the fraction there. `low` and `high` are Wilson's interval of the pooled accuracy over
    `n_test` times S predictions; a sound pipeline has `expected` inside at 95 % of its layers.
    `memorised` [L, S] is the accuracy at the smallest penalty on training images, of which 5,000
    are taken where there are more; a probe of enough features drives it to 1."""

    title: ClassVar[str] = "Random labels"
    frame = Frame(
        "layer",
        f"""{LAYER} accuracy=accuracy.mean low high expected at_chance memorised=memorised.mean
        draws=draw n_train n_test classes""",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    accuracy: Annotated[np.ndarray, "layer", "draw"]
    low: Annotated[np.ndarray, "layer"]
    high: Annotated[np.ndarray, "layer"]
    expected: Annotated[np.ndarray, "layer"]
    memorised: Annotated[np.ndarray, "layer", "draw"]
    n_train: int
    n_test: int
    classes: int
    seed: int
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out accuracy"

    @property
    def at_chance(self) -> Annotated[np.ndarray, "layer"]:
        """Whether the interval of each layer [L] contains its expected accuracy."""
        return np.asarray((self.low <= self.expected) & (self.expected <= self.high))


@checked(MeasureError)
def random_label_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    *,
    draws: int = 5,
    seed: int = 0,
    l2: np.ndarray | None = None,
) -> RandomLabels:
    """Accuracy on permuted labels, `draws` times: above its expected value, test images leak or the
    evaluation is wrong.

    Layers with NaN or infinite features give NaN and a NonFiniteWarning. Raises what `linear_probe`
    raises, and MeasureError for draws < 1."""
    check_runs(reps_train, reps_test)
    y_train, y_test = run_labels(reps_train, reps_test)
    path = default_l2(len(y_train)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
    classes = np.unique(y_train)
    permuted = []
    for k, y in enumerate((y_train, y_test)):
        random, labels = np.random.default_rng([seed, k]), np.searchsorted(classes, y)
        permuted.append(np.stack([random.permutation(labels) for _ in range(draws)], axis=1))
    train, test = permuted
    truth, n, count = (
        np.bincount(test[:, 0], minlength=len(classes)),
        len(y_test),
        len(reps_train.layers),
    )
    accuracy, memorised = np.full((2, count, draws), np.nan)
    expected, low, high = np.full((3, count), np.nan)
    for i, layer in enumerate(reps_train.layers):
        pair = finite_pair(reps_train, reps_test, layer.name)
        if pair is None:
            continue
        found = classify(pair[0], train, pair[1], len(classes), path)
        predicted, memorised[i] = found.predicted, found.memorised
        accuracy[i] = (predicted == test).mean(axis=0)
        counts = np.stack([np.bincount(column, minlength=len(classes)) for column in predicted.T])
        expected[i] = ((counts * truth).sum(axis=1) / n**2).mean()
        low[i], high[i] = wilson_interval(round(accuracy[i].sum() * n), draws * n)
    return RandomLabels(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        accuracy=accuracy,
        low=low,
        high=high,
        expected=expected,
        memorised=memorised,
        n_train=len(y_train),
        n_test=n,
        classes=len(classes),
        seed=seed,
        reduce=reps_train.reduce,
    )
