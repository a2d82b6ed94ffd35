"""Null and interval of a CKA matrix, from all images or, where they are many, from a random sample
of them."""

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
    leading_fractions,
    shifted_inner_products,
)
from mixer_probe.similarity.intervals import (
    FEWEST_IMAGES,
    OF_RBF,
    Interval,
    check_resamples,
    cka_interval,
    no_interval,
)
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

# The traces over all images, found when they are needed.
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
    find_traces: FindTraces | None,
) -> tuple[np.ndarray, Null | None, Interval | None]:
    """CKA [La, Lb] over `n` images with null and interval, from the centred features `a` and `b` of
    all or some of them.

    `values` may be None where a and b are all images. From fewer than n images the null is drawn as
    it is for them and then moved to the mean and standard deviation that it has for n images, both
    known exactly (`permutation_moments`), and the variance of the interval is scaled
    (`cka_interval`). There is an interval of linear CKA from 20 images on, unless `resamples` is 0:
    all images are left out in turn. `find_traces` gives the traces over all n images, asked for by
    the biased estimator of fewer than n."""
    check_permutations(permutations)
    check_resamples(resamples)
    m = len(a[0])
    grams = Grams(a, settings), Grams(b, settings)
    units, size = (grams[0].unit, grams[1].unit), (len(a), len(b))
    null = None
    if permutations:
        # The first is the true pairing.
        pairings = draw_pairings(m, permutations, seed)
        drawn = torch.cat([shifted_inner_products(*units, size, part) for part in pairings])
        values = drawn[0].numpy() if values is None else values
        null = _null(drawn[1:], *grams, m, n, find_traces)
    elif values is None:
        values = inner_products(*units, size, m).numpy()
    if not resamples or m < FEWEST_IMAGES:
        return values, null, None
    if settings.kernel == "rbf":
        return values, null, no_interval(values.shape, OF_RBF)
    leading = torch.outer(*(leading_fractions(side) for side in grams)).numpy()
    variance = jackknife_variances(*grams, m).numpy()
    limit = None if null is None else null.quantile95
    return values, null, cka_interval(values, variance, leading, limit, settings.estimator, m, n)


def _null(
    drawn: torch.Tensor, a: Grams, b: Grams, m: int, n: int, find_traces: FindTraces | None
) -> Null | None:
    """The null of CKA over n images, from `drawn` [permutations, La, Lb] over m of them."""
    if m == n:
        return null_of(drawn.numpy())
    estimator = a.settings.estimator
    biased = estimator == "biased"
    of_sample = (a.traces(), b.traces()) if biased else (_none(a), _none(b))
    of_all = find_traces() if biased and find_traces else of_sample
    moments = (
        permutation_moments(m, estimator, *of_sample),
        permutation_moments(n, estimator, *of_all),
    )
    method = f"random pairings of {m} of {n} images, moved to the exact mean and spread"
    return null_of(rescaled(drawn, *moments).numpy(), method=method)


def _none(layers: Grams) -> Traces:
    nothing = torch.zeros(len(layers), dtype=torch.float64)
    return Traces(nothing, nothing, nothing)
