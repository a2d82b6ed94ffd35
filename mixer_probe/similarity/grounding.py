"""Grounded tests of similarity measures, after ReSi (Klabunde et al. 2024, arXiv 2408.00531): what
a measure should say of networks that differ by design, of layers by their depth, and of networks
whose outputs agree more or less.

Every test has a number that is larger the better a measure does, and a null in which all measures
meet the same draws, so that p-values are corrected for the number of measures (max-T)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from math import factorial
from typing import Annotated, ClassVar

import numpy as np
from sklearn.metrics import average_precision_score

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import Result
from mixer_probe.similarity.registry import MEASURES
from mixer_probe.stats import max_p, permutation_p, rank_correlation
from mixer_probe.stats.claims import DRAWS, LEVEL


@dataclass(frozen=True)
class Outcome:
    """What a test says of every measure: the `values` [measure] of its `statistic`, what it is by
    `chance`, and `draws` [draw, measure] of its null. `n` counts networks."""

    test: str
    statistic: str
    values: np.ndarray
    draws: np.ndarray
    chance: float
    n: int


@dataclass(frozen=True)
class GroundedTests(Result):
    """How every measure does in every test: `values` [measure, test] of the test's statistic, which
    is `chances` [test] by chance and larger the better.

    `nulls` are the means of the permutation null, `p` the p-values, and `p_corrected` those for all
    measures at once (max-T; Westfall and Young 1993). `draws` [test] counts the permutations next
    to the networks as they are: no p-value is below 1 / (1 + draws). `n` [test] counts networks,
    and `images` says on which images their representations are."""

    title: ClassVar[str] = "Grounded tests of similarity measures"
    frame: ClassVar[Frame] = Frame(
        "measure test",
        "measure=measures test=tests statistic=statistics value=values chance=chances null=nulls p "
        "p_corrected passed n",
    )

    measures: Annotated[tuple[str, ...], "measure"]
    labels: Annotated[tuple[str, ...], "measure"]
    tests: Annotated[tuple[str, ...], "test"]
    statistics: Annotated[tuple[str, ...], "test"]
    chances: Annotated[np.ndarray, "test"]
    values: Annotated[np.ndarray, "measure", "test"]
    nulls: Annotated[np.ndarray, "measure", "test"]
    p: Annotated[np.ndarray, "measure", "test"]
    p_corrected: Annotated[np.ndarray, "measure", "test"]
    draws: Annotated[np.ndarray, "test"]
    n: Annotated[np.ndarray, "test"]
    images: str

    @property
    def passed(self) -> Annotated[np.ndarray, "measure", "test"]:
        """Whether the corrected p-value is at most 0.05 [measure, test]."""
        passed: np.ndarray = self.p_corrected <= LEVEL
        return passed

    @property
    def smallest_p(self) -> Annotated[np.ndarray, "test"]:
        """The smallest p-value that the permutations of each test allow [test]."""
        return np.asarray(1 / (1 + self.draws))


def grounded_tests(
    measures: Sequence[str], outcomes: Sequence[Outcome], images: str
) -> GroundedTests:
    """The outcomes of all tests for the same `measures`, with p-values. Values that are NaN have
    none, and do not correct those of others."""
    # Numbers that are equal but for rounding are equal.
    rounded = [(outcome.values.round(12), outcome.draws.round(12)) for outcome in outcomes]
    return GroundedTests(
        measures=tuple(measures),
        labels=tuple(MEASURES[name].label for name in measures),
        tests=tuple(outcome.test for outcome in outcomes),
        statistics=tuple(outcome.statistic for outcome in outcomes),
        chances=np.array([outcome.chance for outcome in outcomes]),
        values=np.stack([outcome.values for outcome in outcomes], axis=1),
        nulls=np.stack([outcome.draws.mean(0) for outcome in outcomes], axis=1),
        p=np.stack([permutation_p(*both) for both in rounded], axis=1),
        p_corrected=np.stack([max_p(*both) for both in rounded], axis=1),
        draws=np.array([len(outcome.draws) for outcome in outcomes]),
        n=np.array([outcome.n for outcome in outcomes]),
        images=images,
    )


# -- groups of networks ----------------------------------------------------------------------------


def group_tests(
    test: str, values: np.ndarray, groups: np.ndarray, seeds: np.ndarray
) -> list[Outcome]:
    """Are networks of one group more similar than networks of two? By AUPRC and conformity rate
    (`group_scores`) of similarities `values` [measure, layer, network, network], averaged over
    layers.

    Each of the `seeds` [network] has one network of each of the `groups` [network]. Two networks of
    one seed begin with the same weights, and are not compared. The null exchanges groups within
    seeds (`exchanges`). Raises MeasureError for other designs."""
    compared = seeds[:, None] != seeds[None]
    orders = exchanges(groups, seeds)
    found = np.array(
        [
            [
                np.mean([group_scores(layer, own, compared) for layer in layers], axis=0)
                for layers in values
            ]
            for own in (groups, *orders)
        ]
    )
    # Pairs of networks of one group, and of these and others.
    own = len(set(seeds)) * (len(set(seeds)) - 1) // 2
    chance = random_precision(own, own + 2 * own * (len(set(groups)) - 1))
    return [
        Outcome(test, name, found[0, :, k], found[1:, :, k], by_chance, len(groups))
        for k, (name, by_chance) in enumerate((("AUPRC", chance), ("conformity rate", 0.5)))
    ]


def group_scores(similarity: np.ndarray, groups: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """AUPRC and conformity rate [2] of similarities [network, network], averaged over groups.

    Of a group, pairs of its networks are told from pairs of one of its networks and another by
    their similarity: AUPRC is the average precision, the conformity rate the fraction of all
    choices of a pair of either kind in which the first is more similar (ties count half). Only
    pairs that are `compared` [network, network] count. NaN where a similarity is."""
    first, second = np.nonzero(np.triu(compared, 1))
    x, same = similarity[first, second], groups[first] == groups[second]
    if not np.isfinite(x).all():
        return np.full(2, np.nan)
    scores = []
    for group in np.unique(groups):
        own = (groups[first] == group) | (groups[second] == group)
        within, across = x[own & same], x[own & ~same]
        conforming = (1 + np.sign(within[:, None] - across).mean()) / 2
        scores.append((average_precision_score(same[own], x[own]), conforming))
    mean: np.ndarray = np.mean(scores, axis=0)
    return mean


def random_precision(positives: int, total: int) -> float:
    """The average precision of `positives` of `total` items in a random order, in the mean over all
    orders (Bestgen 2015): more than the fraction of positives, most of all where items are few."""
    harmonic = float((1 / np.arange(1, total + 1)).sum())
    return (harmonic + (positives - 1) * (total - harmonic) / max(total - 1, 1)) / total


def exchanges(
    groups: np.ndarray, seeds: np.ndarray, most: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """The `groups` [draw, network] with the networks of each of the `seeds` exchanged among the
    groups.

    All that divide the networks in another way, G!^(S - 1) - 1 for G groups and S seeds, so that
    p-values are exact; where these are more than `most`, as many random ones. Raises MeasureError
    unless each seed has one network of each group."""
    names, blocks = np.unique(groups), np.unique(seeds)
    cells = [np.flatnonzero((seeds == s) & (groups == g)) for s in blocks for g in names]
    if any(len(cell) != 1 for cell in cells) or len(blocks) < 2:
        raise MeasureError(
            "groups are exchanged within seeds: give two or more seeds, and one network of each "
            "group for each of them"
        )
    places = np.array(cells).reshape(len(blocks), len(names))
    # Names of groups do not matter, so that those of the first seed stay.
    count = factorial(len(names)) ** (len(blocks) - 1) - 1
    if count <= most:
        orders = islice(product(permutations(range(len(names))), repeat=len(blocks) - 1), 1, None)
        drawn = np.array(list(orders)).reshape(count, len(blocks) - 1, len(names))
    else:
        each = np.tile(np.arange(len(names)), (most, len(blocks) - 1, 1))
        drawn = np.random.default_rng(seed).permuted(each, axis=-1)
    found = np.tile(groups, (len(drawn), 1))
    for k, order in enumerate(np.moveaxis(drawn, 1, 0), start=1):
        found[:, places[k]] = names[order]
    return found


# -- layers and outputs ----------------------------------------------------------------------------


def layer_order_test(values: np.ndarray, most: int = DRAWS, seed: int = 0) -> Outcome:
    """Are layers the more similar the nearer in depth? By the `order_correlation` of similarities
    `values` [measure, network, layer, layer], averaged over networks.

    The null puts the layers in another order, the same in all networks, which share their
    architecture: all L! / 2 - 1 orders that are not the reverse of another one, or `most` random
    ones of more. Raises MeasureError for fewer than three layers."""
    layers = values.shape[-1]
    if layers < 3:
        raise MeasureError(f"{layers} layers have no order by similarity: give three or more")
    if factorial(layers) // 2 - 1 <= most:
        orders = [o for o in permutations(range(layers)) if o[0] < o[-1]][1:]
    else:
        random = np.random.default_rng(seed)
        orders = [tuple(random.permutation(layers)) for _ in range(most)]
    found = np.array(
        [
            order_correlation(values[..., order, :][..., order]).mean(1)
            for order in map(list, ((*range(layers),), *orders))
        ]
    )
    return Outcome("layer order", "rank correlation", found[0], found[1:], 0.0, values.shape[1])


def order_correlation(similarity: np.ndarray) -> np.ndarray:
    """Rank correlation [...] of similarities [..., layer, layer] with nearness in depth: for each
    layer, with the layers before and with those after it, the mean of all that have two or more (as
    in ReSi). Layers that are all equally similar have 0."""
    layers, found = similarity.shape[-1], []
    for i in range(layers):
        for others in (range(i - 1, -1, -1), range(i + 1, layers)):
            if len(others) > 1:
                x = similarity[..., i, list(others)]
                rho = rank_correlation(x, np.broadcast_to(-np.arange(len(others)), x.shape))
                found.append(np.where(np.isnan(rho) & np.isfinite(x).all(-1), 0.0, rho))
    mean: np.ndarray = np.mean(found, axis=0)
    return mean


def output_test(
    values: np.ndarray, agreement: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Outcome:
    """Are networks the more similar the more their outputs agree? By the rank correlation of
    similarities `values` [measure, network, network] with `agreement` [network, network] over pairs
    of networks. The null permutes the networks of one side (Mantel 1967)."""
    n = len(agreement)
    first, second = np.triu_indices(n, 1)
    x, random = values[:, first, second], np.random.default_rng(seed)
    found = np.array(
        [
            rank_correlation(x, np.broadcast_to(agreement[order[first], order[second]], x.shape))
            for order in (np.arange(n), *(random.permutation(n) for _ in range(draws)))
        ]
    )
    return Outcome("output agreement", "rank correlation", found[0], found[1:], 0.0, n)
