"""Null and interval of a CKA matrix, from all images or, where they are many, from a random sample of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mixer_probe.similarity.allpairs import (
    Grams,
    Layers,
    Settings,
    inner_products,
    jackknife_variances,
    leading_shares,
    shifted_inner_products,
)
from mixer_probe.similarity.intervals import FEWEST_IMAGES, OF_RBF, Interval, check_resamples, cka_interval, no_interval
from mixer_probe.similarity.nulls import (
    Null,
    Traces,
    draw_pairings,
    null_of,
    permutation_moments,
    rescaled,
)
from mixer_probe.stats import check_permutations

# Null and interval are drawn from at most this many images: their Gram matrices take 32 MiB each.
SAMPLE = 2048

FindTraces = Callable[[], tuple[Traces, Traces]]


def infer(
    values: np.ndarray | None,
    a: Layers,
    b: Layers,
    n: int,
    settings: Settings,
    permutations: int,
    resamples: int,
    seed: int,
    find_traces: FindTraces,
) -> tuple[np.ndarray, Null | None, Interval | None]:
    """CKA [La, Lb] over `n` images with null and interval, from the centred features `a` and `b` of all or some of them.

    `values` may be None where a and b are all images. From fewer than n images the null is drawn as it is for them and then
    moved to the mean and standard deviation that it has for n images, both known exactly (`permutation_moments`), and the
    variance of the interval is scaled (`cka_interval`). There is an interval of linear CKA from 20 images on, unless `resamples`
    is 0: all images are left out in turn. `find_traces` gives the traces over all n images, asked for by the biased estimator."""
    check_permutations(permutations)
    check_resamples(resamples)
    m = len(a[0])
    grams = Grams(a, settings), Grams(b, settings)
    drawn = _draw(*grams, m, permutations if permutations or values is None else None, seed)
    if values is None:
        values = drawn[0].numpy()
    null = _null(drawn[1:], *grams, m, n, find_traces) if permutations else None
    if not resamples or m < FEWEST_IMAGES:
        return values, null, None
    if settings.kernel == "rbf":
        return values, null, no_interval(values.shape, OF_RBF)
    leading = torch.outer(*(leading_shares(side) for side in grams)).numpy()
    variance = jackknife_variances(*grams, m).numpy()
    limit = None if null is None else null.quantile95
    return values, null, cka_interval(values, variance, leading, limit, settings.estimator, m, n)


def _draw(a: Grams, b: Grams, m: int, permutations: int | None, seed: int) -> torch.Tensor:
    """CKA of the true pairing and then of `permutations` random ones, [1 + permutations, La, Lb]."""
    size = len(a), len(b)
    if permutations is None:
        return torch.empty(0, *size)
    if permutations == 0:
        return inner_products(a.unit, b.unit, size, m)[None]
    pairings = draw_pairings(m, permutations, seed)
    return torch.cat([shifted_inner_products(a.unit, b.unit, size, part) for part in pairings])


def _null(drawn: torch.Tensor, a: Grams, b: Grams, m: int, n: int, find_traces: FindTraces) -> Null | None:
    if m == n:
        return null_of(drawn.numpy())
    estimator = a.settings.estimator
    biased = estimator == "biased"
    of_sample = (a.traces(), b.traces()) if biased else (_none(a), _none(b))
    of_all = find_traces() if biased else of_sample
    moments = permutation_moments(m, estimator, *of_sample), permutation_moments(n, estimator, *of_all)
    method = f"random pairings of {m} of {n} images, moved to the exact mean and spread"
    return null_of(rescaled(drawn, *moments).numpy(), method=method)


def _none(layers: Grams) -> Traces:
    nothing = torch.zeros(len(layers), dtype=torch.float64)
    return Traces(nothing, nothing, nothing)
