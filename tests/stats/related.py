"""Representations with a known similarity, and how often its intervals hold that: cases for
`test_coverage`.

Gram matrices of many draws are centred at once;
`test_the_interval_of_compare_is_that_of_the_simulation` holds this to be what `compare` does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mixer_probe.similarity.intervals import Interval, batch_interval, cka_interval
from mixer_probe.similarity.minibatch import without_each
from mixer_probe.stats import upper_quantile

Random = np.random.Generator
Law = Callable[[Random, tuple[int, ...]], np.ndarray]
Case = Callable[[Random], tuple[tuple[np.ndarray, np.ndarray], float]]
_DRAWS = 1500
# Variances of independent dimensions: one alone, few, many of uneven size as in networks, many of
# equal size.
SPECTRA = {
    "one": np.ones(1),
    "three": np.ones(3),
    "1/k": 1 / np.arange(1, 21),
    "24 equal": np.ones(24),
}


def normal(random: Random, size: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=size)


def skewed(random: Random, size: tuple[int, ...]) -> np.ndarray:
    """Mean 0 and variance 1, with the tail of what a ReLU leaves."""
    return random.exponential(size=size) - 1


def linear_map(spectrum: str, strength: float | None) -> tuple[np.ndarray, float]:
    """What one side makes of the other [p, p], and the deviation of the noise that it adds; None
    for nearly the same."""
    p = len(SPECTRA[spectrum])
    if strength is None:
        return np.eye(p), 0.2
    return strength * np.random.default_rng(1).normal(size=(p, p)) / p**0.5 if p > 1 else np.full(
        (1, 1), strength
    ), 1.0


def true_cka(spectrum: str, strength: float | None) -> float:
    """|Sxy|^2 / (|Sxx| |Syy|) of the population."""
    M, noise = linear_map(spectrum, strength)
    Sxx = np.diag(SPECTRA[spectrum])
    Sxy, Syy = Sxx @ M, M.T @ Sxx @ M + noise**2 * Sxx
    return float((Sxy**2).sum() / np.sqrt((Sxx**2).sum() * (Syy**2).sum()))


def draw(
    random: Random, draws: int, n: int, spectrum: str, strength: float | None, law: Law = normal
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides [draw, n, p]."""
    deviation = SPECTRA[spectrum] ** 0.5
    M, noise = linear_map(spectrum, strength)
    x = law(random, (draws, n, len(deviation))) * deviation
    return x, x @ M + noise * law(random, x.shape) * deviation


def centred_grams(X: np.ndarray) -> np.ndarray:
    """U-centred linear Gram matrices [draw, n, n]."""
    return u_centred(X @ X.swapaxes(1, 2))


def u_centred(K: np.ndarray) -> np.ndarray:
    n = K.shape[1]
    K = K * (1 - np.eye(n))
    rows = K.sum(2) / (n - 2)
    K = K - rows[:, None] - rows[:, :, None] + rows.sum(1)[:, None, None] / (n - 1)
    return np.asarray(K * (1 - np.eye(n)))


def unit_grams(X: np.ndarray) -> np.ndarray:
    """The same with norm 1."""
    return unit(centred_grams(X))


def unit(K: np.ndarray) -> np.ndarray:
    return np.asarray(K / np.sqrt(np.square(K).sum((1, 2), keepdims=True)))


def variances(K: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Jackknife variance [draw] of CKA, from unit Gram matrices [draw, n, n]."""
    n = K.shape[1]
    cross, one, other = (_without(A, B) for A, B in ((K, L), (K, K), (L, L)))
    return np.asarray((n - 1) * (cross / np.sqrt(one * other)).var(1))


def _without(K: np.ndarray, L: np.ndarray) -> np.ndarray:
    rows, n = (K * L).sum(2), K.shape[1]
    return np.asarray(rows.sum(1, keepdims=True) - 2 * (n - 2) / (n - 3) * rows)


def leading(K: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Product [draw] of the largest eigenvalues."""
    return np.asarray(np.linalg.eigvalsh(K)[:, -1] * np.linalg.eigvalsh(L)[:, -1])


def shuffled(random: Random, K: np.ndarray, L: np.ndarray, permutations: int = 39) -> np.ndarray:
    """95 % quantile [draw] over random pairings."""
    orders = [random.permutation(K.shape[1]) for _ in range(permutations)]
    return upper_quantile(
        np.stack([np.einsum("dij,dij->d", K, L[:, order][:, :, order]) for order in orders])
    )


def intervals(random: Random, x: np.ndarray, y: np.ndarray, null: bool = True) -> Interval:
    """CKA intervals of all draws."""
    K, L = unit_grams(x), unit_grams(y)
    n = x.shape[1]
    limit = shuffled(random, K, L) if null else None
    return cka_interval(
        (K * L).sum((1, 2)), variances(K, L), leading(K, L), limit, "unbiased", n, n
    )


def compared(
    n: int, spectrum: str, strength: float | None, law: Law = normal, draws: int = _DRAWS
) -> Case:
    """CKA of all images."""

    def case(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        found = intervals(
            random, *draw(random, draws, n, spectrum, strength, law), null=strength is not None
        )
        return (found.low, found.high), true_cka(spectrum, strength)

    return case


def sampled(n: int, m: int, spectrum: str, strength: float, draws: int = 1200) -> Case:
    """CKA of `n` images, of which `m` are kept for the interval."""

    def case(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        x, y = draw(random, draws, n, spectrum, strength)
        K, L = unit_grams(x[:, :m]), unit_grams(y[:, :m])
        values = np.concatenate(
            [
                np.einsum("dij,dij->d", *map(unit_grams, part))
                for part in zip(_chunks(x), _chunks(y), strict=True)
            ]
        )
        found = cka_interval(values, variances(K, L), leading(K, L), None, "unbiased", m, n)
        return (found.low, found.high), true_cka(spectrum, strength)

    return case


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    return np.array_split(x, max(1, x.shape[0] // 50))


def in_batches(batches: int, size: int, spectrum: str, strength: float) -> Case:
    """CKA by sums over minibatches."""

    def case(random: Random) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        K, L = (centred_grams(X) for X in draw(random, _DRAWS * batches, size, spectrum, strength))
        sums = [
            np.einsum("dij,dij->d", A, B).reshape(_DRAWS, batches, 1)
            for A, B in ((K, L), (K, K), (L, L))
        ]
        cross, own_a, own_b = (torch.from_numpy(part) for part in sums)
        values = (cross.sum(1) / (own_a.sum(1) * own_b.sum(1)).sqrt())[:, 0].numpy()
        parts = [
            without_each(c[:, None], a, b)[:, 0, 0]
            for c, a, b in zip(cross, own_a, own_b, strict=True)
        ]
        found = batch_interval(values, np.stack(parts, axis=1))
        return (found.low, found.high), true_cka(spectrum, strength)

    return case


CASES: dict[str, Case] = {
    "CKA, n = 50: 24 equal dimensions, related": compared(50, "24 equal", 1.0, draws=1000),
    "CKA, n = 20: three dimensions, related": compared(20, "three", 1.0),
    "CKA, n = 20: 1/k, skewed, related": compared(20, "1/k", 1.0, skewed),
    "CKA, n = 20: 1/k, nearly the same": compared(20, "1/k", None),
    "CKA, n = 20: one dimension, related": compared(20, "one", 1.0),
    **{
        f"CKA, n = 20: {spectrum}, independent": compared(20, spectrum, 0.0) for spectrum in SPECTRA
    },
    "CKA by moments, 100 of n = 200 kept": sampled(200, 100, "three", 1.0),
    "CKA in 12 batches of 16: related": in_batches(12, 16, "three", 1.0),
    "CKA in 12 batches of 16: independent": in_batches(12, 16, "three", 0.0),
    **{
        f"CKA, n = {n}: three dimensions, weakly related": compared(n, "three", 0.3, draws=1000)
        for n in (20, 50)
    },
}
