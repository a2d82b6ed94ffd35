"""How often sentences claim something of null data: random labels, shuffled images, iid and
untrained weights.

Every row is a sentence with a generator of null data, of which at most 6 % of 200 runs or more may
claim anything, and with a planted effect, which must be claimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mixer_probe.channels import channel_partners, class_selectivity
from mixer_probe.channels.findings import (
    best_channel_finding,
    matching_finding,
    most_selective_finding,
    selectivity_finding,
)
from mixer_probe.channels.views.selectivity import selectivity_sentence
from mixer_probe.core.finding import Number
from mixer_probe.core.result import ModelRecord
from mixer_probe.invariance.findings import accuracy_sentence
from mixer_probe.similarity import Interval, SimilarityMatrix, compare
from mixer_probe.similarity.findings import Profile, depth_finding, difference_sentence
from mixer_probe.similarity.matches import best_matches
from mixer_probe.similarity.matrix import plain_layers
from mixer_probe.similarity.views import agreement, order_of
from mixer_probe.stats.claims import beyond_baseline, extremes_differ
from mixer_probe.weights import SpatialKernels
from mixer_probe.weights.channel_kernels import taps_kernels
from mixer_probe.weights.findings import low_frequency_finding, mixing_distance_finding
from mixer_probe.weights.kernels import matrix_kernel, most_structured
from mixer_probe.weights.operators import tracy_widom_edge
from mixer_probe.weights.tying import layer_tying
from mixer_probe.weights.units import measure_units
from mixer_probe.weights.views.kernels import structure_sentence
from mixer_probe.weights.views.spectra import rank_text
from mixer_probe.weights.views.tying import sharing_text
from mixer_probe.weights.views.units import orientation_sentence
from tests.probing.conftest import FakeRepresentations

MODEL = ModelRecord("net", "mixer", True, "", "a" * 64, 10)
Claims = Callable[[np.random.Generator, bool], bool]


def reps_of(
    rng: np.random.Generator, n: int = 24, layers: int = 3, channels: int = 5, effect: float = 0.0
) -> Any:
    """Noise; all channels are higher by `effect` for the first of three classes."""
    labels = rng.permutation(np.arange(n) % 3)
    shift = effect * (labels == 0)[:, None]
    found = FakeRepresentations(
        {f"l{i}": rng.standard_normal((n, channels)) + shift for i in range(layers)}, labels, "test"
    )
    found.class_names = ("a", "b", "c")
    return found


def selectivity(rng: np.random.Generator, planted: bool) -> bool:
    """Random labels."""
    found = class_selectivity(
        reps_of(rng, effect=4.0 * planted), permutations=999, seed=int(rng.integers(1 << 30))
    )
    depth, most = selectivity_finding(found, None), most_selective_finding(found)
    sentence = selectivity_sentence(found, None)
    best = [best_channel_finding(found, name) for name in ("", "a")]
    claimed = [
        finding.verdict == "found" for finding in (depth, most, *best) if finding is not None
    ]
    return any(claimed) or "none of" not in sentence


def partners(rng: np.random.Generator, planted: bool) -> bool:
    """Images of two networks that have nothing in common."""
    a, b = reps_of(rng), reps_of(rng)
    b = a if planted else b
    seed = int(rng.integers(1 << 30))
    found = [
        channel_partners(a, b, f"l{i}", f"l{i}", k=1, permutations=999, seed=seed) for i in range(3)
    ]
    return (
        matching_finding([frozenset(("x", "y"))], {frozenset(("x", "y")): found}).verdict == "found"
    )


def closest_layers(rng: np.random.Generator, planted: bool) -> bool:
    a, b = reps_of(rng, layers=2), reps_of(rng, layers=2)
    matrix = compare(
        a, a if planted else b, permutations=999, resamples=0, seed=int(rng.integers(1 << 30))
    )
    return "agree most" in agreement(matrix)


def order_of_layers(rng: np.random.Generator, planted: bool) -> bool:
    """Best matches in random order."""
    layers = 7 if planted else int(rng.integers(2, 7))
    matrix = SimpleNamespace(
        closeness=(values := rng.random((layers, layers)) + 2 * planted * np.eye(layers)),
        values=values,
        null=None,
        interval=None,
        definition=SimpleNamespace(direction=1),
        label="CKA",
        layers_a=(names := [SimpleNamespace(name=str(i)) for i in range(layers)]),
        layers_b=names,
        model_a=None,
        model_b=None,
        n=9,
        measure="cka",
    )
    return "increase" in order_of(best_matches(matrix))  # type: ignore[arg-type]


def best_matches_alike(rng: np.random.Generator, planted: bool) -> bool:
    """Pairs of layers that are all equally similar, with normal errors of the size of the
    intervals."""
    layers, sd = plain_layers({str(i): 4 for i in range(6)}), 0.03
    values = 0.5 + sd * rng.standard_normal((6, 6)) - 0.3 * planted * (np.arange(6) == 4)[:, None]
    interval = Interval(values - 1.96 * sd, values + 1.96 * sd, 100)
    given = (
        values,
        layers,
        layers,
        MODEL,
        replace(MODEL, name="other"),
        None,
        "cka",
        "unbiased",
        "linear",
        99,
    )
    matrix = SimilarityMatrix(
        *given, (4,) * 6, (4,) * 6, None, "gram", "mean", 0, interval=interval
    )
    return "differ most" in difference_sentence(matrix, best_matches(matrix))


def depths_alike(rng: np.random.Generator, planted: bool) -> bool:
    """CKA that is the same at every depth, with normal errors of the size of the intervals."""
    depth, sd = np.linspace(0, 1, 8), 0.03
    value = 0.5 + sd * rng.standard_normal(8) - planted * 0.3 * (depth == depth[4])
    profile = Profile(
        MODEL,
        MODEL,
        ("",) * 8,
        depth,
        value,
        value - 1.96 * sd,
        value + 1.96 * sd,
        value,
        np.zeros(8),
        0.1,
        99,
        999,
    )
    return depth_finding(profile, ()).verdict == "found"


def extremes(rng: np.random.Generator, planted: bool) -> bool:
    values = rng.standard_normal(6) + 9 * planted * np.arange(6)
    return extremes_differ([Number("", v, v - 1.96, v + 1.96) for v in values])


def outliers(rng: np.random.Generator, planted: bool) -> bool:
    """iid matrices."""
    entries = []
    for _ in range(6):
        values = np.linalg.svd(rng.standard_normal((12, 20)) + planted, compute_uv=False)
        limit = tracy_widom_edge(12, 20, float(np.linalg.norm(values)))
        entries.append(
            SimpleNamespace(
                main=True,
                kind="channel",
                spectral_norm=values[0],
                outliers=int((values > limit).sum()),
            )
        )
    table = pd.DataFrame(
        {
            "stable_rank_fraction": [0.5],
            "null_stable_rank_fraction": [0.5],
            "outlier_energy": [0.1],
            "block": ["blocks.0"],
        }
    )
    return "of the energy lies in" in rank_text(SimpleNamespace(entries=entries), table, "channel")  # type: ignore[arg-type]


NEAR = np.abs(np.subtract.outer(np.arange(9) // 3, np.arange(9) // 3)) + np.abs(
    np.subtract.outer(np.arange(9) % 3, np.arange(9) % 3)
)


def kernels_of(
    rng: np.random.Generator, draws: int, near: Sequence[float] = (0.0,) * 4
) -> SpatialKernels:
    """Products of iid matrices on a 3x3 grid, as an untrained Mixer has, and `near` times a kernel
    that falls with distance."""
    products = [
        rng.standard_normal((9, 6)) @ rng.standard_normal((6, 9)) + k * np.exp(-2.0 * NEAR)
        for k in near
    ]
    found = tuple(
        matrix_kernel(k, f"b{i}", f"b{i}.t", i / 4, "", (3, 3), (1.0, 1.0))
        for i, k in enumerate(products)
    )
    return SpatialKernels(
        MODEL, found, *most_structured(found, draws, int(rng.integers(1 << 30))), draws
    )


def structure(rng: np.random.Generator, planted: bool) -> bool:
    return "Translation structure is strongest" in structure_sentence(
        kernels_of(rng, 999, (0, 0, 40.0 * planted, 0)), None
    )


def reach(rng: np.random.Generator, planted: bool) -> bool:
    twin = replace(kernels_of(rng, 0), model=replace(MODEL, name="net?untrained", trained=False))
    return (
        mixing_distance_finding(kernels_of(rng, 0, (200.0 * planted,) * 4), twin).verdict == "found"
    )


def tying(rng: np.random.Generator, planted: bool) -> bool:
    """Random kernels, beside others."""
    kernels = rng.standard_normal((2, 4, 32 if planted else 8, 3, 3))
    if planted:
        # The channels of the trained network have one kernel.
        kernels[0] = kernels[0][:, :1] + 0.01 * kernels[0]
    made = [
        SimpleNamespace(
            layers=[layer_tying(taps_kernels(one, "b", "b.c", 1.0), draws=0) for one in network]
        )
        for network in kernels
    ]
    return "beyond their spectra and beyond" in sharing_text(
        *made
    ) or "fewer than expected from" in sharing_text(made[0], None)  # type: ignore[arg-type]


def orientation(rng: np.random.Generator, planted: bool) -> bool:
    maps = rng.standard_normal((4, 16, 4, 4))
    if planted:
        maps[2] = np.cos(np.pi * np.arange(4) + rng.uniform(0, np.pi, (16, 1, 1))) + 0.01 * maps[2]
    sets = [measure_units(one, (8, 8), 1, 4, i) for i, one in enumerate(maps)]
    own = pd.DataFrame(
        {
            "block": list("abcd"),
            "mean_coherence": [s.statistics.coherence for s in sets],
            "shuffled_mean_coherence": [float(np.mean(s.shuffled.coherence)) for s in sets],
        }
    )
    return "clearest" in orientation_sentence(SimpleNamespace(read=sets), own, None)  # type: ignore[arg-type]


def low_frequencies(rng: np.random.Generator, planted: bool) -> bool:
    """Units of two untrained networks."""
    two = []
    for k in range(2):
        values = rng.normal(0.4, 0.05, (3, 40)) - 0.2 * planted * (k == 0)
        two.append(
            SimpleNamespace(
                model=MODEL, blocks=("a", "b", "c"), frequency=lambda i, values=values: values[i]
            )
        )
    finding = low_frequency_finding(*two)
    return finding.verdict == "found"


def most_low_frequencies(rng: np.random.Generator, planted: bool) -> bool:
    values = rng.normal(0.4, 0.05, (2, 3, 40))
    values[0] -= planted * np.array([0.1, 0.3, 0.1])[:, None]
    two = [
        SimpleNamespace(model=MODEL, blocks=("a", "b", "c"), frequency=lambda i, v=v: v[i])
        for v in values
    ]
    return "most in" in low_frequency_finding(*two).sentence


def largest_drop(rng: np.random.Generator, planted: bool) -> bool:
    """Eight distortions that take nothing, with normal errors of the size of the intervals."""
    value = rng.standard_normal(8) + 20 * planted * (np.arange(8) == 3)
    drop = SimpleNamespace(value=value, low=value - 1.96, high=value + 1.96)
    kept = SimpleNamespace(value=value, low=value, high=value)
    labels = [SimpleNamespace(label=str(i)) for i in range(8)]
    accuracy = SimpleNamespace(value=[0.9], low=[0.8], high=[0.95])
    about = {
        "model": MODEL,
        "n": 100,
        "chance": 0.1,
        "reads_class": True,
        "kinds": (),
        "accuracy": accuracy,
    }
    return "The largest drop is" in accuracy_sentence(
        SimpleNamespace(drop=drop, kept=kept, distortions=labels, **about)
    )  # type: ignore[arg-type]


def beyond_the_baseline(rng: np.random.Generator, planted: bool) -> bool:
    return bool(
        beyond_baseline(*(rng.standard_normal((2, 8)) + np.array([[20.0 * planted], [0.0]]))).any()
    )


SENTENCES: dict[str, tuple[Claims, int]] = {
    f.__name__: (f, runs)
    for f, runs in (
        (selectivity, 200),
        (partners, 200),
        (closest_layers, 200),
        (order_of_layers, 400),
        (best_matches_alike, 400),
        (depths_alike, 400),
        (extremes, 400),
        (outliers, 400),
        (structure, 200),
        (reach, 200),
        (tying, 200),
        (orientation, 200),
        (low_frequencies, 400),
        (most_low_frequencies, 400),
        (largest_drop, 400),
        (beyond_the_baseline, 400),
    )
}


@pytest.mark.parametrize("name", SENTENCES)
def test_at_most_6_percent_of_null_data_give_a_claim(name: str) -> None:
    claims, runs = SENTENCES[name]
    found = sum(claims(np.random.default_rng([7, i]), False) for i in range(runs))
    print(f"{name}: {found} of {runs} runs claim something")
    assert found <= 0.06 * runs


@pytest.mark.parametrize("name", SENTENCES)
def test_a_planted_effect_is_claimed(name: str) -> None:
    """So that silence alone does not pass."""
    claims, _ = SENTENCES[name]
    assert sum(claims(np.random.default_rng([8, i]), True) for i in range(10)) >= 8


def test_depths_that_were_not_tested_are_not_called_alike() -> None:
    depth, value = np.linspace(0.1, 1, 8), np.linspace(0.9, 0.2, 8)
    bounds = value - 0.02, value + 0.02
    for permutations, verdict, text in (
        (100, "context", "require 999 permutations"),
        (999, "found", "most similar at"),
    ):
        profile = Profile(
            MODEL,
            MODEL,
            ("",) * 8,
            depth,
            value,
            *bounds,
            value,
            np.zeros(8),
            0.1,
            99,
            permutations,
        )
        found = depth_finding(profile, ())
        assert found.verdict == verdict
        assert text in found.sentence
        assert "no significant difference" not in found.sentence
