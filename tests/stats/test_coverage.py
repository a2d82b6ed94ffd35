"""Which share of intervals holds the truth, at the smallest number of images that reports use: 93
to 97 % of every type.

Where it has to be more, with the reason, it is 93 % or more. Populations are like what is measured:
rank correlations near 1, areas and probabilities in [0, 1], differences of them, errors that are
never negative, right answers, representations with a known similarity. The table is printed with
`pytest -s`."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from mixer_probe.attribution.randomisation import other_images, pseudo_values
from mixer_probe.invariance.consistency import kappa, kappa_influence
from mixer_probe.invariance.shift import mean_cosine
from mixer_probe.probing.controls import selectivity_intervals
from mixer_probe.probing.depths import halfway_layers
from mixer_probe.probing.scores import (
    balanced_interval,
    combined_interval,
    images_interval,
    seeds_interval,
)
from mixer_probe.probing.target_probe import r_squared_interval
from mixer_probe.stats import (
    FEWEST,
    auroc_interval,
    crossed_interval,
    delta_interval,
    difference_interval,
    mean_interval,
    median_interval,
    paired_counts,
    rank_correlation,
    rank_interval,
    wilson_interval,
)
from mixer_probe.stats.differences import difference_interval as independent_difference
from tests.stats import measured, probed, related

Bounds = tuple[np.ndarray, np.ndarray]
Random = np.random.Generator
POPULATIONS: dict[str, tuple[Callable[[Random, tuple[int, int]], np.ndarray], float]] = {
    "normal": (lambda r, s: r.normal(size=s), 0.0),
    "areas, uniform": (lambda r, s: r.random(s), 0.5),
    "areas, most small": (lambda r, s: r.beta(2, 5, s), 2 / 7),
    "probabilities, many near 0": (lambda r, s: r.beta(0.5, 2, s), 0.2),
    "correlations near 1": (lambda r, s: r.beta(8, 1, s), 8 / 9),
    "correlations, long tail down": (lambda r, s: 1 - 0.1 * r.exponential(size=s), 0.9),
    "gains, skewed": (lambda r, s: r.beta(1, 4, s) - r.beta(3, 3, s), 0.2 - 0.5),
    "errors, log-normal": (lambda r, s: r.lognormal(0, 0.5, s), float(np.exp(0.125))),
}


def pairs(
    random: Random, size: tuple[int, ...], p: float, q: float, rho: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two networks that find the same images hard."""
    common = random.normal(size=size) * rho**0.5
    a, b = (
        common + random.normal(size=size) * (1 - rho) ** 0.5 < norm.ppf(fraction)
        for fraction in (p, q)
    )
    return a, b


def both(p: float, q: float, rho: float = 0.6) -> float:
    """The share of images on which both of `pairs` are right."""
    return float(multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([norm.ppf(p), norm.ppf(q)]))


def means(name: str, n: int) -> Callable[[Random], tuple[Bounds, float]]:
    draw, truth = POPULATIONS[name]

    def case(random: Random) -> tuple[Bounds, float]:
        _, low, high = mean_interval(draw(random, (10_000, n)))
        return (low, high), truth

    return case


def fractions(n: int) -> Callable[[Random], tuple[Bounds, np.ndarray]]:
    def case(random: Random) -> tuple[Bounds, np.ndarray]:
        truth = random.uniform(0.05, 0.95, 10_000)
        return wilson_interval(random.binomial(n, truth), n), truth

    return case


def differences(n: int, p: float, q: float) -> Callable[[Random], tuple[Bounds, float]]:
    return lambda random: (
        difference_interval(paired_counts(*pairs(random, (4000, n), p, q))),
        p - q,
    )


def ranked(n: int, rho: float) -> Callable[[Random], tuple[Bounds, float]]:
    def case(random: Random) -> tuple[Bounds, float]:
        x, y = random.normal(size=(2, 10_000, n))
        found = rank_correlation(x, rho * x + (1 - rho**2) ** 0.5 * y)
        return rank_interval(found, n), float(6 / np.pi * np.arcsin(rho / 2))

    return case


def kappas(n: int, p: float, q: float) -> Callable[[Random], tuple[Bounds, float]]:
    def case(random: Random) -> tuple[Bounds, float]:
        a, b = pairs(random, (700, n), p, q)
        expected = p * q + (1 - p) * (1 - q)
        found = []
        for x, y in zip(a, b, strict=True):
            means = x.mean(), y.mean()
            by_chance = means[0] * means[1] + (1 - means[0]) * (1 - means[1])
            value = kappa((x == y).mean(), by_chance)
            found.append(
                delta_interval(value, kappa_influence(np.stack([x, y]).astype(float))[0, 1])
            )
        return tuple(np.array(found).T), float(kappa(1 + 2 * both(p, q) - p - q, expected))

    return case


def kept(
    n: int, p: float, q: float, chance: float = 0.1
) -> Callable[[Random], tuple[Bounds, float]]:
    def case(random: Random) -> tuple[Bounds, float]:
        a, b = (side.astype(float) for side in pairs(random, (4000, n), p, q))
        margin = a.mean(1, keepdims=True) - chance
        value = (b.mean(1, keepdims=True) - chance) / margin
        influence = (b - b.mean(1, keepdims=True) - value * (a - a.mean(1, keepdims=True))) / margin
        return delta_interval(value[:, 0], influence), (q - chance) / (p - chance)

    return case


def kept_by_groups(n: int, chance: float = 0.1) -> Callable[[Random], tuple[Bounds, float]]:
    """How much more one family of two networks keeps than another."""
    plain, distorted, sign = (0.9, 0.85, 0.9, 0.8), (0.7, 0.6, 0.5, 0.5), (1, 1, -1, -1)

    def case(random: Random) -> tuple[Bounds, float]:
        hard = random.normal(size=(4000, 1, n)) * 0.6**0.5
        right = (
            hard + random.normal(size=(4000, 8, n)) * 0.4**0.5
            < norm.ppf(plain + distorted)[:, None]
        )
        a, b = right[:, :4].astype(float), right[:, 4:].astype(float)
        margin = a.mean(2, keepdims=True) - chance
        value = (b.mean(2, keepdims=True) - chance) / margin
        influence = (b - b.mean(2, keepdims=True) - value * (a - a.mean(2, keepdims=True))) / margin
        weights = np.array(sign) / 2
        truth = weights @ ((np.array(distorted) - chance) / (np.array(plain) - chance))
        return delta_interval(
            value[..., 0] @ weights, np.einsum("dmn,m->dn", influence, weights)
        ), float(truth)

    return case


def r_squared(n: int, truth: float) -> Callable[[Random], tuple[Bounds, float]]:
    def case(random: Random) -> tuple[Bounds, float]:
        signal = random.normal(size=(1000, n, 1))
        y = signal + random.normal(size=signal.shape) * (1 / truth - 1) ** 0.5
        return tuple(
            np.array([r_squared_interval(a, b) for a, b in zip(y, signal, strict=True)]).T
        ), truth

    return case


def selectivity(n: int, relative: bool) -> Callable[[Random], tuple[Bounds, float]]:
    """Of a grouping read at 90 % and ten others, some easier than others, read at 75 % on
    average."""

    def case(random: Random) -> tuple[Bounds, float]:
        level = norm.ppf(0.75) * (1 + 0.3**2) ** 0.5 + 0.3 * random.normal(size=(700, 1, 10))
        hard = random.normal(size=(700, n, 1)) * 0.6**0.5
        noise = random.normal(size=(700, n, 11)) * 0.4**0.5
        right = np.concatenate(
            [hard + noise[..., :1] < norm.ppf(0.9), hard + noise[..., 1:] < level], -1
        )
        bounds = [selectivity_intervals(one, exhaustive=False)[relative] for one in right]
        return tuple(np.array(bounds).T), 0.6 if relative else 0.15

    return case


def balanced(counts: tuple[int, ...]) -> Callable[[Random], tuple[Bounds, float]]:
    def case(random: Random) -> tuple[Bounds, float]:
        y, truth = np.repeat(np.arange(len(counts)), counts), np.linspace(0.4, 0.95, len(counts))
        return balanced_interval(
            np.where(random.random((4000, len(y))) < truth[y], y, -1), y
        ), float(truth.mean())

    return case


def over_seeds(
    kind: Callable[[np.ndarray], Bounds], seeds: int, n: int, spread: float
) -> Callable[[Random], tuple[Bounds, float]]:
    def case(random: Random) -> tuple[Bounds, float]:
        level = 0.9 + spread * random.normal(size=(2000, seeds, 1))
        hard = 0.7 * random.normal(size=(2000, 1, n))
        right = level + hard + random.normal(size=(2000, seeds, n)) > 0
        return kind(right), float(norm.cdf(0.9 / np.sqrt(1 + 0.7**2 + spread**2)))

    return case


def given_seeds(random: Random) -> tuple[Bounds, np.ndarray]:
    """The accuracy of these very classifiers, which is another in every set."""
    level = 0.9 + 0.3 * random.normal(size=(2000, 3, 1))
    right = (
        level + 0.7 * random.normal(size=(2000, 1, 200)) + random.normal(size=(2000, 3, 200)) > 0
    )
    return images_interval(right), norm.cdf(level / np.sqrt(1 + 0.7**2)).mean((1, 2))


def medians(n: int) -> Callable[[Random], tuple[Bounds, float]]:
    return lambda random: (
        tuple(np.array([median_interval(x) for x in random.lognormal(size=(4000, n))]).T),
        1.0,
    )


def crossed(random: Random) -> tuple[Bounds, float]:
    """Gains of draws and images that both vary."""
    x = (
        random.normal(size=(4000, 10, 1)) * 0.5
        + random.normal(size=(4000, 1, 50))
        + random.normal(size=(4000, 10, 50))
    )
    return crossed_interval(x)[1:], 0.0


def between_images(random: Random) -> tuple[Bounds, float]:
    """Rank correlation of the maps of different images, some of which have more of what all
    have."""
    common = np.linspace(-1, 1, 49)
    found, bounds = [], []
    for _ in range(5000):
        maps = random.gamma(3, 1, size=(FEWEST, 1)) * common + random.normal(size=(FEWEST, 49))
        found.append(other_images(maps, maps))
        bounds.append(mean_interval(pseudo_values(found[-1]))[1:])
    return tuple(np.array(bounds).T), float(np.mean(found))


def aurocs(
    positives: int, negatives: int, ratio: float
) -> Callable[[Random], tuple[Bounds, float]]:
    """Of exponential scores of which the positive ones have so many times the mean."""

    def case(random: Random) -> tuple[Bounds, float]:
        positive, negative = (
            ratio * random.exponential(size=(700, positives, 1)),
            random.exponential(size=(700, 1, negatives)),
        )
        bounds = [
            auroc_interval(v, positives, negatives) for v in (positive > negative).mean((1, 2))
        ]
        return tuple(np.array(bounds).T), ratio / (ratio + 1)

    return case


def cosines(random: Random) -> tuple[Bounds, float]:
    """Of features and the same with noise, about a mean that is known so well that it is none of
    the spread."""
    plain = random.normal(size=(700, FEWEST, 40))
    found = np.array([mean_cosine(x, x + 0.7 * random.normal(size=x.shape)) for x in plain])
    return (found[:, 1], found[:, 2]), float(found[:, 0].mean())


def between_reports(n: int, p: float, q: float) -> Callable[[Random], tuple[Bounds, float]]:
    """Shares of two independent sets of images, from the interval of each."""

    def case(random: Random) -> tuple[Bounds, float]:
        hits = [random.binomial(n, fraction, 10_000) for fraction in (p, q)]
        a, b = ((x / n, *wilson_interval(x, n)) for x in hits)
        return tuple(independent_difference(*a, *b).T), q - p

    return case


def halfway(
    n: int, *accuracy: float, chance: float = 0.1
) -> Callable[[Random], tuple[Bounds, int]]:
    """The first layer whose accuracy is above the middle between chance and the last layer's."""

    def case(random: Random) -> tuple[Bounds, int]:
        hard = random.normal(size=(1500, 1, n)) * 0.6**0.5
        right = (
            hard + random.normal(size=(1500, len(accuracy), n)) * 0.4**0.5
            < norm.ppf(accuracy)[:, None]
        )
        return halfway_layers(right, chance), int(
            np.argmax(np.array(accuracy) > (chance + accuracy[-1]) / 2)
        )

    return case


CASES = {
    **{f"mean, n = {n}: {name}": means(name, n) for name in POPULATIONS for n in (FEWEST, 50)},
    **{f"share (Wilson), n = {n}": fractions(n) for n in (FEWEST, 50)},
    **{
        f"paired shares (Tango), n = 100: {p}, {q}": differences(100, p, q)
        for p, q in ((0.9, 0.8), (0.7, 0.7), (0.95, 0.9))
    },
    **{
        f"kappa, n = 200: {p}, {q}": kappas(200, p, q)
        for p, q in ((0.7, 0.6), (0.9, 0.9), (0.95, 0.9))
    },
    **{
        f"kept, n = 200: {p}, {q}": kept(200, p, q)
        for p, q in ((0.9, 0.6), (0.9, 0.85), (0.5, 0.2))
    },
    "kept, two families of two, n = 200": kept_by_groups(200),
    **{f"rank correlation, n = {n}: {rho}": ranked(n, rho) for n in (32, 64) for rho in (0.0, 0.5)},
    **{f"R2, n = 100: {truth}": r_squared(100, truth) for truth in (0.3, 0.75, 0.95)},
    "selectivity, n = 200": selectivity(200, False),
    "relative selectivity, n = 200": selectivity(200, True),
    "balanced accuracy, 10 classes of 20": balanced((20,) * 10),
    "balanced accuracy, 60, 20, 10": balanced((60, 20, 10)),
    "draws and images (few-shot), 3 draws, n = 200": over_seeds(combined_interval, 3, 200, 0.3),
    "draws alone (few-shot), 3 draws": over_seeds(
        lambda r: seeds_interval(r.mean(-1)), 3, 2000, 0.3
    ),
    "images alone (few-shot), 3 draws, n = 200": given_seeds,
    "crossed effects, 10 draws, n = 50": crossed,
    **{f"median of times, n = {n}": medians(n) for n in (7, 15)},
    **{
        f"difference of reports, n = {n}: {p}, {q}": between_reports(n, p, q)
        for n, p, q in ((50, 0.3, 0.5), (50, 0.9, 0.95), (20, 0.5, 0.5))
    },
    f"mean cosine, n = {FEWEST}": cosines,
    f"maps of different images, n = {FEWEST}": between_images,
    **{
        f"AUROC, {m} and {n} images: {r / (r + 1):.2f}": aurocs(m, n, r)
        for m, n, r in ((20, 180, 3.0), (50, 50, 1.5), (10, 90, 9.0))
    },
    **related.CASES,
    **measured.CASES,
    **probed.CASES,
}
# A depth is one of a few layers, so that a confidence set that holds it often enough holds it more
# often.
DISCRETE = {
    f"depth halfway, n = {n}: {', '.join(map(str, accuracy))}": halfway(n, *accuracy)
    for n in (50, 200)
    for accuracy in (
        (0.1, 0.1, 0.6, 0.7),
        (0.2, 0.3, 0.42, 0.46, 0.8),
        (0.44, 0.44, 0.44, 0.44, 0.44, 0.46, 0.8),
        (0.1, 0.1, 0.3),
    )
}
AT_LEAST = {**DISCRETE, **measured.WIDE}


@pytest.fixture(scope="module")
def table() -> tuple[dict[str, float], dict[str, int]]:
    found, draws = {}, {}
    for name, case in {**CASES, **AT_LEAST}.items():
        # The draws of a case do not depend on the cases before it.
        (low, high), truth = case(np.random.default_rng(crc32(name.encode())))
        # What has no interval does not cover.
        held = (low <= truth) & (truth <= high)
        found[name], draws[name] = float(held.mean()), len(held)
    print("\n" + "\n".join(f"{100 * fraction:5.1f} %  {name}" for name, fraction in found.items()))
    return found, draws


@pytest.mark.parametrize("name", CASES)
def test_the_interval_covers(table: tuple[dict[str, float], dict[str, int]], name: str) -> None:
    """Up to 97 % but for two standard errors of so many draws; no less than 93 %."""
    fraction, draws = (column[name] for column in table)
    assert 0.93 <= fraction <= 0.97 + 2 * (0.97 * 0.03 / draws) ** 0.5


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_interval_covers_at_least_so_often(
    table: tuple[dict[str, float], dict[str, int]], name: str
) -> None:
    assert table[0][name] >= 0.93
