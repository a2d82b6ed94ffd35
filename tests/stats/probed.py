"""How often the intervals of probes hold what these very probes would reach on the population:
cases for `test_coverage`."""

from __future__ import annotations

from functools import cache

import numpy as np

from mixer_probe.linear.ridge_probe import ridge_path
from mixer_probe.probing import online_code, paired_interval, random_label_probe
from mixer_probe.probing.scores import balanced_interval
from mixer_probe.stats import mean_interval, wilson_interval
from tests.similarity.conftest import FakeRepresentations
from tests.stats.related import Case, Random

_CLASSES, _WIDTH, _POPULATION = 5, 8, 20_000


@cache
def populations(probes: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels [image] and predicted classes [2, image] of a population by ridge probes on 200 images
    each: of features, and of the same features in noise, as those of an untrained network."""
    random, found = np.random.default_rng(0), []
    for _ in range(probes):
        means = 0.8 * random.normal(size=(_CLASSES, _WIDTH))
        y = random.integers(0, _CLASSES, 200 + _POPULATION)
        x = means[y] + random.normal(size=(len(y), _WIDTH))
        sides = (x, x + 1.5 * random.normal(size=x.shape))
        paths = [(ridge_path(side[:200], y[:200], [1.0]), side[200:]) for side in sides]
        found.append((y[200:], np.stack([path.predict(new)[0] for path, new in paths])))
    return found


def tested(n: int, kind: str) -> Case:
    """Of `n` test images, 15 times for each probe."""

    def case(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        bounds, truth = [], []
        for y, predicted in populations():
            right = predicted == y
            for _ in range(15):
                rows = random.choice(len(y), n, replace=False)
                mine, other = right[:, rows]
                if kind == "accuracy":
                    bounds.append(wilson_interval(int(mine.sum()), n))
                    truth.append(right[0].mean())
                elif kind == "balanced":
                    bounds.append(tuple(map(float, balanced_interval(predicted[0, rows], y[rows]))))
                    truth.append(np.mean([right[0, y == k].mean() for k in range(_CLASSES)]))
                else:
                    bounds.append(paired_interval(mine, other)[1:])
                    truth.append(right[0].mean() - right[1].mean())
        low, high = np.array(bounds).T
        return (low, high), np.array(truth)

    return case


def labelled(random: Random, n: int, start: int) -> FakeRepresentations:
    y = np.arange(n) % 4
    reps = FakeRepresentations({"x": np.eye(4, 6)[y] + random.normal(size=(n, 6))})
    reps.labels, reps.class_names = y, ("a", "b", "c", "d")
    reps.ids = tuple(f"{start + i}" for i in range(n))
    return reps


def code_lengths(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """The length over all orders of the images, from three of them."""
    bits = online_code(
        labelled(random, 60, 0), fractions=(0.25, 0.5, 1.0), l2=(0.1, 1.0), orders=40
    ).bits[0]
    _, low, high = mean_interval(random.choice(bits, (3000, 3)))
    return (low, high), float(bits.mean())


def shuffled_labels(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """What shuffled test labels give."""
    train, test = labelled(random, 60, 0), labelled(random, 60, 60)
    found = [random_label_probe(train, test, seed=seed, l2=np.array([1.0])) for seed in range(400)]
    low, high, expected = (
        np.array([getattr(r, name)[0] for r in found]) for name in ("low", "high", "expected")
    )
    return (low, high), expected


CASES: dict[str, Case] = {
    "accuracy of ridge probes, n = 50": tested(50, "accuracy"),
    "balanced accuracy of ridge probes, n = 100": tested(100, "balanced"),
    "ridge probes minus untrained ones, n = 50": tested(50, "difference"),
    "length of the online code, 3 orders": code_lengths,
    "random labels, 5 draws": shuffled_labels,
}
