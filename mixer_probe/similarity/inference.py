"""Null and interval of a CKA matrix, from all images or, where they are many, from a random sample of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from mixer_probe.similarity.allpairs import Layers, Settings, cka_by_grams, cka_of_halves, traces
from mixer_probe.similarity.intervals import Interval, check_resamples, draw_halves, interval_of
from mixer_probe.similarity.nulls import (
    Null,
    Traces,
    check_permutations,
    draw_pairings,
    null_of,
    permutation_moments,
    rescaled,
)

# Null and interval are drawn from at most this many images: their Gram matrices take 32 MiB each.
SAMPLE = 2048

FindTraces = Callable[[], tuple[Traces, Traces]]


def infer(
    values: np.ndarray,
    a: Layers,
    b: Layers,
    n: int,
    settings: Settings,
    permutations: int,
    resamples: int,
    seed: int,
    find_traces: FindTraces,
) -> tuple[Null | None, Interval | None]:
    """Null and interval of CKA `values` [La, Lb] over `n` images, from the centred features `a` and `b` of all or some.

    From fewer than n images the null is drawn as it is for them and then moved to the mean and standard deviation that it
    has for n images, both known exactly (`permutation_moments`); the interval shrinks with the root of the share of images
    (Politis and Romano 1994). `find_traces` gives the traces over all n images, asked for by the biased estimator."""
    check_permutations(permutations)
    check_resamples(resamples)
    m = len(a[0])
    null = _null(a, b, m, n, settings, permutations, seed, find_traces) if permutations else None
    halves = draw_halves(m, resamples, seed)
    if not halves.shape[1]:
        return null, None
    drawn = cka_of_halves(a, b, halves, settings).numpy()
    method = "halves of the images" if m == n else f"halves of {m} of {n} images, scaled"
    return null, interval_of(values, drawn, (-1.0, 1.0), scale=math.sqrt(m / n), method=method)


def _null(
    a: Layers,
    b: Layers,
    m: int,
    n: int,
    settings: Settings,
    permutations: int,
    seed: int,
    find_traces: FindTraces,
) -> Null | None:
    pairings = draw_pairings(m, permutations, seed)
    drawn = torch.cat([cka_by_grams(a, b, part, settings) for part in pairings])[1:]
    if m == n:
        return null_of(drawn.numpy())
    estimator = settings.estimator
    biased = estimator == "biased"
    of_sample = (traces(a, settings), traces(b, settings)) if biased else (_none(a), _none(b))
    of_all = find_traces() if biased else of_sample
    moments = permutation_moments(m, estimator, *of_sample), permutation_moments(n, estimator, *of_all)
    method = f"random pairings of {m} of {n} images, moved to the exact mean and spread"
    return null_of(rescaled(drawn, *moments).numpy(), method=method)


def _none(layers: Layers) -> Traces:
    nothing = torch.zeros(len(layers), dtype=torch.float64)
    return Traces(nothing, nothing, nothing)
