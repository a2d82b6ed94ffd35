"""What the report claims of untrained networks that are passed off as trained ones, beside an
untrained baseline.

Two hundred small networks are drawn by their own initialisation. A network and its baseline differ
by the draw alone, so that at most 6 % of the sentences that set one beside the other may claim
anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.channels import channel_partners, class_selectivity
from mixer_probe.channels.findings import matching_finding, selectivity_finding
from mixer_probe.images import from_arrays
from mixer_probe.similarity.findings import baseline_finding, profile_of
from mixer_probe.weights import spatial_kernels, token_mixing
from mixer_probe.weights.findings import low_frequency_finding, mixing_distance_finding
from mixer_probe.weights.views.units import orientation_sentence

RUNS = 200
# Which later networks are the baseline of one, so that the draws of few networks decide less.
APART = (1, 2, 3)
LAST = "blocks.1"


def untrained(seed: int) -> mp.Model:
    torch.manual_seed(seed)
    network = MlpMixer(img_size=8, patch_size=2, embed_dim=16, num_blocks=2, num_classes=3)
    return mp.load_model(
        network,
        name=f"net{seed}",
        input_size=(3, 8, 8),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        device="cpu",
    )


def shades() -> mp.Images:
    """Images of three classes that differ a little in their brightness."""
    labels = np.arange(30) % 3
    pixels = (
        np.random.default_rng(0).normal(128, 50, (30, 8, 8, 3)) + 8 * labels[:, None, None, None]
    )
    return from_arrays(
        pixels.clip(0, 255).astype(np.uint8), labels, class_names=("a", "b", "c"), name="shades"
    )


class Drawn:
    """What is measured on one network."""

    def __init__(self, seed: int, images: mp.Images) -> None:
        model = untrained(seed)
        self.units = token_mixing(model, surrogates=1, shuffles=1, seed=seed)
        self.kernels = spatial_kernels(model, draws=1, seed=seed)
        self.reps = mp.extract(model, images)
        self.selectivity = class_selectivity(self.reps, permutations=99, seed=seed)


def of_one(own: Drawn, baseline: Drawn) -> Iterator[tuple[str, bool]]:
    """What is said of a network beside its baseline, and whether that is a claim."""
    low = low_frequency_finding(own.units, baseline.units)
    yield "low-frequency units", low.verdict == "found"
    yield "block of most low-frequency units", "most in" in low.sentence
    yield (
        "orientation",
        "clearest" in orientation_sentence(own.units, own.units.summary(), baseline.units),
    )
    yield "reach", mixing_distance_finding(own.kernels, baseline.kernels).verdict == "found"
    yield (
        "selective channels",
        "than trained" in selectivity_finding(own.selectivity, baseline.selectivity).sentence,
    )


class Pair:
    """What is measured on two networks."""

    def __init__(self, a: Drawn, b: Drawn) -> None:
        self.profile = profile_of(mp.compare(a.reps, b.reps, permutations=19, resamples=20))
        self.partners = channel_partners(a.reps, b.reps, LAST, LAST, k=1, permutations=99)


def of_two(own: Pair, baseline: Pair) -> Iterator[tuple[str, bool]]:
    """What is said of two networks beside their baselines."""
    assert own.profile
    assert baseline.profile
    yield "CKA", baseline_finding(own.profile, baseline.profile).verdict == "found"
    names = frozenset(("net", "other"))
    matched = {
        names: [own.partners],
        frozenset(f"{n}?untrained" for n in names): [baseline.partners],
    }
    yield "partners of channels", "than trained" in matching_finding([names], matched).sentence


@pytest.mark.filterwarnings("ignore")
def test_untrained_networks_are_not_told_from_untrained_baselines() -> None:
    images = shades()
    drawn = [Drawn(seed, images) for seed in range(RUNS + max(APART))]
    pairs = [Pair(a, b) for a, b in pairwise(drawn[: RUNS + 3])]
    said = [x for k in range(RUNS) for d in APART for x in of_one(drawn[k], drawn[k + d])]
    said += [x for k in range(RUNS) for x in of_two(pairs[k], pairs[k + 2])]
    runs, claims = (
        Counter(name for name, _ in said),
        Counter(name for name, claimed in said if claimed),
    )
    print(
        ", ".join(f"{name}: {claims[name]} of {n} runs claim something" for name, n in runs.items())
    )
    assert all(claims[name] <= 0.06 * n for name, n in runs.items()), claims
