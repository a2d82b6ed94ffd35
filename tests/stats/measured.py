"""Measures of similarity other than unbiased CKA on representations with a known relation, and how
often their intervals hold the mean of the measure over draws: cases for `test_coverage`.

Many draws are measured at once;
`test_the_interval_of_a_measure_by_compare_is_that_of_the_simulation` holds this to be what
`compare` does."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from mixer_probe.similarity import MEASURES
from mixer_probe.similarity.intervals import (
    FEWEST_IMAGES,
    FEWEST_IN_GROUPS,
    Interval,
    cka_interval,
    draw_groups,
    group_interval,
)
from mixer_probe.stats import upper_quantile
from tests.stats import related
from tests.stats.related import Case, Law, Random, draw, normal, skewed


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(1, keepdims=True)


def units(x: np.ndarray) -> np.ndarray:
    x = centred(x)
    return np.asarray(x / np.sqrt(np.square(x).sum(1, keepdims=True)))


def mean_cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(
        np.linalg.svd(basis(x)[0].swapaxes(1, 2) @ basis(y)[0], compute_uv=False).mean(1)
    )


def basis(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.linalg.qr(centred(x)))


def svcca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (u, a), (v, b) = (leading(side) for side in (x, y))
    return np.asarray(
        np.linalg.svd(u.swapaxes(1, 2) @ v, compute_uv=False).sum(1) / np.minimum(a, b)
    )


def leading(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The components of 99 % of the variance, with zeros in place of the others, and their
    number."""
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    rest = np.square(s)[:, ::-1].cumsum(1)[:, ::-1]
    kept = rest > 0.01 * rest[:, :1]
    return u * kept[:, None], kept.sum(1)


def pwcca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, loadings = basis(x)
    left, s, _ = np.linalg.svd(u.swapaxes(1, 2) @ basis(y)[0], full_matrices=False)
    weights = np.abs(left.swapaxes(1, 2) @ loadings).sum(2)
    return np.asarray((weights * s).sum(1) / weights.sum(1))


def procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (
        side / np.sqrt(np.square(side).sum((1, 2), keepdims=True))
        for side in (centred(x), centred(y))
    )
    return np.asarray(np.sqrt(2 - 2 * np.linalg.svd(x.swapaxes(1, 2) @ y, compute_uv=False).sum(1)))


def angle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(2 * np.arcsin(procrustes(x, y) / 2))


def squared_distances(x: np.ndarray) -> np.ndarray:
    products = x @ x.swapaxes(1, 2)
    norms = np.einsum("dii->di", products)
    return np.maximum(norms[:, :, None] + norms[:, None] - 2 * products, 0)


def rsa_euclidean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((ranks(x) * ranks(y)).sum(1))


def ranks(x: np.ndarray) -> np.ndarray:
    """Centred ranks of the distances of all pairs [draw, pair], of norm 1; there are no ties."""
    pairs = np.triu_indices(x.shape[1], 1)
    order = squared_distances(x)[:, pairs[0], pairs[1]].argsort(1)
    found = np.empty(order.shape)
    np.put_along_axis(found, order, np.arange(order.shape[1]) - (order.shape[1] - 1) / 2, 1)
    return found / np.sqrt(np.square(found).sum(1, keepdims=True))


def distance_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sides = []
    for side in (x, y):
        d = centred(centred(np.sqrt(squared_distances(side))).swapaxes(1, 2))
        sides.append(d / np.sqrt(np.square(d).sum((1, 2), keepdims=True)))
    return np.sqrt(np.maximum(np.einsum("dij,dij->d", *sides), 0))


def soft_matching(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of few dimensions, by all permutations of them."""
    correlations = units(x).swapaxes(1, 2) @ units(y)
    p = correlations.shape[1]
    return np.max(
        [correlations[:, range(p), order].mean(1) for order in itertools.permutations(range(p))],
        axis=0,
    )


VALUES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cca": mean_cca,
    "svcca": svcca,
    "pwcca": pwcca,
    "procrustes": procrustes,
    "angular_procrustes": angle,
    "rsa_euclidean": rsa_euclidean,
    "distance_correlation": distance_correlation,
    "soft_matching": soft_matching,
}


def intervals(
    random: Random, name: str, x: np.ndarray, y: np.ndarray, permutations: int = 20
) -> tuple[np.ndarray, Interval]:
    """Values and intervals of all draws, over 20 groups of the images."""
    n, values, measure = x.shape[1], VALUES[name], MEASURES[name]
    found = values(x, y)
    null = np.array([values(x, y[:, random.permutation(n)]) for _ in range(permutations)]).reshape(
        permutations, len(x)
    )
    limit = (
        upper_quantile(null, direction=measure.direction)
        if permutations
        else np.full_like(found, np.nan)
    )
    left = [rows.numpy() for rows in draw_groups(n, 20, 0, 4)]
    without = np.stack([values(x[:, rows], y[:, rows]) for rows in left])
    limits = measure.lowest, measure.highest
    interval = group_interval(found, without, null, limit, measure.direction, limits, measure.scale)
    assert interval is not None
    return found, interval


def measured(
    name: str, spectrum: str, strength: float | None, law: Law = normal, draws: int = 800
) -> Case:
    """An interval is to hold the mean over the draws. Of nearly the same all are beyond their null,
    which is not drawn."""

    def case(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        sides = draw(random, draws, FEWEST_IN_GROUPS, spectrum, strength, law)
        values, found = intervals(random, name, *sides, permutations=0 if strength is None else 20)
        return (found.low, found.high), float(values.mean())

    return case


def biased_cka_intervals(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Interval]:
    """Values and intervals of biased CKA of all draws."""
    n = x.shape[1]
    K, L = (related.unit(side @ side.swapaxes(1, 2)) for side in (centred(x), centred(y)))
    cross, one, other = (without_each(A, B) for A, B in ((K, L), (K, K), (L, L)))
    values, nothing = (K * L).sum((1, 2)), np.full(len(x), np.nan)
    variance = (n - 1) * (cross / np.sqrt(one * other)).var(1)
    return values, cka_interval(values, variance, nothing, nothing, "biased", n, n)


def without_each(K: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Inner products [draw, n] of biased Gram matrices when one image each is left out."""
    rows, n = (K * L).sum(2), K.shape[1]
    diagonals = np.einsum("dii->di", K) * np.einsum("dii->di", L)
    return np.asarray(
        rows.sum(1, keepdims=True) - 2 * n / (n - 1) * rows + (n / (n - 1)) ** 2 * diagonals
    )


def biased_cka(spectrum: str, strength: float | None, law: Law = normal) -> Case:
    def case(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        values, found = biased_cka_intervals(
            *draw(random, 1500, FEWEST_IMAGES, spectrum, strength, law)
        )
        return (found.low, found.high), float(values.mean())

    return case


_SLOW = ("rsa_euclidean", "distance_correlation")
CASES: dict[str, Case] = {
    **{
        f"{MEASURES[name].label}, n = {FEWEST_IN_GROUPS}: nearly the "
        f"same{', skewed' if law is skewed else ''}": measured(
            name, "three", None, law, draws=600 if name in _SLOW else 1500
        )
        for name in VALUES
        for law in (normal, skewed)
    },
    **{
        f"{MEASURES[name].label}, n = {FEWEST_IN_GROUPS}: related": measured(
            name, "three", 1.0, draws=500
        )
        for name in VALUES
    },
    **{
        f"{MEASURES[name].label}, n = {FEWEST_IN_GROUPS}: independent": measured(
            name, "three", 0.0, draws=300
        )
        for name in VALUES
    },
    f"CKA (biased), n = {FEWEST_IMAGES}: related": biased_cka("three", 1.0),
    f"CKA (biased), n = {FEWEST_IMAGES}: 1/k, nearly the same, skewed": biased_cka(
        "1/k", None, skewed
    ),
    f"CKA (biased), n = {FEWEST_IMAGES}: nearly the same": biased_cka("three", None),
    f"CKA (biased), n = {FEWEST_IMAGES}: independent": biased_cka("three", 0.0),
}
# Intervals known to be wider: of canonical correlations with half as many dimensions as images, and
# where the relation is so weak that the null allows most values.
WIDE: dict[str, Case] = {
    **{
        f"{MEASURES[name].label}, n = {FEWEST_IN_GROUPS}: weakly related": measured(
            name, "three", 0.3, draws=300
        )
        for name in VALUES
    },
    f"mean CCA, n = {FEWEST_IN_GROUPS}: 24 equal dimensions, related": measured(
        "cca", "24 equal", 1.0, draws=100
    ),
}
