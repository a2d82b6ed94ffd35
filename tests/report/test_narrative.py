"""The sentences of a narrative, of results that were planted: each says what was put in, and no
more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.attribution import Agreement, PerturbationCurves
from mixer_probe.channels import channel_partners, class_selectivity
from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import UndefinedKernelWarning, UndefinedUnitsWarning
from mixer_probe.core.finding import Finding
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result, from_dict, to_dict
from mixer_probe.core.skipped import Skipped
from mixer_probe.probing import linear_probe
from mixer_probe.probing.depths import halfway, halfway_depths
from mixer_probe.report import Narrative, make_sections, narrate
from mixer_probe.report.narrative import QUESTIONS
from mixer_probe.similarity import SimilarityMatrix, compare
from mixer_probe.stats import auroc_interval
from mixer_probe.weights import TokenMixing, spatial_kernels, token_mixing
from tests.probes import accuracy
from tests.probing.conftest import FakeRepresentations
from tests.tiny import SPEC

N = 240
LABELS = np.arange(N) % 3


def record(name: str, family: str = "mixer") -> ModelRecord:
    return ModelRecord(name, family, not name.endswith("?untrained"), "", name, 1)


def reps_of(
    features: dict[str, np.ndarray], name: str, family: str = "mixer", split: str = "test"
) -> FakeRepresentations:
    reps = FakeRepresentations(features, LABELS, split)
    reps.model = record(name, family)
    return reps


def noise(seed: int, layers: int = 3, p: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"l{i}": rng.standard_normal((N, p)) for i in range(layers)}


def told(results: Sequence[Result], question: str) -> tuple[Finding, ...]:
    return narrate(results).of(question)


# -- similarity ------------------------------------------------------------------------------------


def similar(a: dict[str, np.ndarray], b: dict[str, np.ndarray], mark: str = "") -> SimilarityMatrix:
    return compare(
        reps_of(a, f"one{mark}", "mixer"),
        reps_of(b, f"two{mark}", "vit"),
        permutations=999,
        resamples=100,
    )


def parting() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two networks that are equal up to a rotation in their first layer, share half in the second
    and nothing in the third."""
    a, b = noise(1), noise(2)
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0]
    b["l0"] = a["l0"] @ rotation
    b["l1"] = np.concatenate([a["l1"][:, :3], b["l1"][:, 3:]], axis=1)
    return a, b


def test_two_networks_part_where_it_was_planted() -> None:
    finding = told([similar(*parting())], "similarity")[0]
    most, least = finding.numbers
    assert finding.verdict == "found"
    assert (most.value, most.where) == (pytest.approx(1), "depth 0.00")
    assert least.where == "depth 1.00"
    assert abs(least.value) < 0.05
    assert (
        "one and two (n = 240): most similar at depth 0.00 (l0 and l0; CKA 1.00 [1.00, 1.00]"
        in finding.sentence
    )
    assert "where it is not above its null" in finding.sentence
    # The second layers share 3 of 6 equal directions: CKA 1/2, clearly below 1.
    assert (
        "below that maximum, with non-overlapping intervals, from depth 0.50 on" in finding.sentence
    )


def test_two_identical_networks_do_not_part() -> None:
    a = noise(1)
    finding = told([similar(a, a)], "similarity")[0]
    assert finding.verdict == "none"
    assert (
        finding.sentence
        == "one and two (n = 240): representations are equal at every depth (CKA 1.000)."
    )


def test_unrelated_networks_are_not_above_their_null() -> None:
    finding = told([similar(noise(1), noise(2))], "similarity")[0]
    assert finding.verdict == "none"
    assert "CKA is not above its null at any depth" in finding.sentence


def test_alike_at_every_depth_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    a = noise(1)
    b = {name: x + rng.standard_normal(x.shape) for name, x in a.items()}
    finding = told([similar(a, b)], "similarity")[0]
    assert finding.verdict == "none"
    assert "no significant difference between depths" in finding.sentence


def test_trained_pairs_are_compared_with_their_twins() -> None:
    a, b = parting()
    twins = similar(a, a, "?untrained")
    findings = told([similar(a, b), twins], "similarity")
    # Equal twins, and trained networks that are equal in the first layer alone.
    assert (
        "significantly less similar than these baselines at 2 and more similar at 0 of 3 depths"
        in findings[1].sentence
    )
    # Other draws of untrained weights would have other values, which one draw does not show.
    assert findings[1].verdict == "context"
    same = told([similar(a, b), similar(a, b, "?untrained")], "similarity")[1]
    assert same.verdict == "none"
    assert "no significant difference from the trained networks at any of 3 depths" in same.sentence
    alone = told([similar(a, b)], "similarity")[1]
    assert alone.sentence == (
        "Untrained baselines of one and two: not available, the results contain no CKA between "
        "their untrained baselines."
    )


def test_distances_and_matrices_without_a_null_are_no_evidence() -> None:
    a, b = parting()
    bare = compare(reps_of(a, "one"), reps_of(b, "two", "vit"), permutations=0, resamples=0)
    other = compare(
        reps_of(a, "one"), reps_of(b, "two", "vit"), "procrustes", permutations=20, resamples=20
    )
    (finding,) = told([bare, other], "similarity")
    assert finding.verdict == "missing"
    assert (
        "requires unbiased linear CKA between two networks with null and interval"
        in finding.sentence
    )


# -- probes ----------------------------------------------------------------------------------------


def readable(strengths: Sequence[float], name: str = "net", mark: str = "") -> Any:
    """A probe of layers whose class means are so far from each other."""
    runs = []
    for seed, split in ((0, "train"), (1, "test")):
        rng = np.random.default_rng([seed, 10 + len(strengths)])
        centres = np.eye(6)[LABELS]
        layers = {
            f"l{i}": s * centres + rng.standard_normal((N, 6)) for i, s in enumerate(strengths)
        }
        runs.append(reps_of(layers, f"{name}{mark}", split=split))
    return linear_probe(*runs)


def test_a_network_that_cannot_read_the_class_is_not_above_chance() -> None:
    (finding,) = told([readable([0, 0, 0])], "probes")
    assert finding.verdict == "none"
    assert finding.sentence.endswith("not significantly above chance.")
    assert "(chance 33.3 %, n = 240)" in finding.sentence


def test_the_class_becomes_readable_where_it_was_planted() -> None:
    probe = readable([0, 0, 9, 9])
    (finding,) = told([probe], "probes")
    assert finding.verdict == "found"
    assert (
        "half of the gain over chance is reached at depth 0.67 [0.67, 0.67] (l2); the interval of "
        "the last layer is first reached at depth 0.67 (l2)" in finding.sentence
    )
    assert halfway(probe) == 2
    assert halfway_depths(probe) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_gains_over_the_twin_and_pixels_are_counted_on_the_same_images() -> None:
    # 30 of 40 right, of the twin's best layer 14, of the pixels 14.
    (finding,) = told(
        [accuracy("net"), accuracy("raw pixels", family="pixels", layers=1)], "probes"
    )
    gains = {n.kind: n for n in finding.numbers if n.kind.startswith("over")}
    assert gains["over the best layer of the untrained baseline"].value == pytest.approx(16 / 40)
    assert "40.0 points" in finding.sentence
    assert "over raw pixels" in finding.sentence


def test_equal_networks_become_readable_at_the_same_depth() -> None:
    probes = [readable([0, 9, 9]), readable([0, 9, 9], "other")]
    last = told(probes, "probes")[-1]
    assert last.verdict == "none"
    assert "depth 0.50: net and other; no significant difference in depth" in last.sentence
    late = told([probes[0], readable([0, 0, 9], "late")], "probes")[-1]
    assert late.verdict == "found"
    assert (
        "depth 0.50: net; depth 1.00: late; the earliest and the latest differ significantly"
        in late.sentence
    )


# -- weights ---------------------------------------------------------------------------------------


def mixer(rows: np.ndarray | None, name: str) -> mp.Model:
    """A Mixer of two blocks on an 8×8 grid, with the rows of fc1 as given, and columns of fc2
    alike; random without."""
    torch.manual_seed(5)
    network = MlpMixer(img_size=32, patch_size=4, embed_dim=8, num_blocks=2, mlp_ratio=(4.0, 1.0))
    for block in network.blocks:
        shape = block.mlp_tokens.fc1.weight.shape
        value = torch.randn(shape) if rows is None else torch.from_numpy(rows[: shape[0]]).float()
        block.mlp_tokens.fc1.weight.data = value
        block.mlp_tokens.fc2.weight.data = value.T.clone()
    return replace(mp.load_model(network, **SPEC), name=name)


def units(rows: np.ndarray | None, name: str) -> TokenMixing:
    return replace(token_mixing(mixer(rows, name)), model=record(name))


def waves(count: int = 32) -> np.ndarray:
    """Units of one or two cycles across the grid, each beside its opposite."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8] / 8
    half = [
        np.cos(2 * np.pi * (rng.permutation([1, 0]) @ [y.ravel(), x.ravel()]) + rng.uniform(0, 6))
        for _ in range(count // 2)
    ]
    return np.concatenate([half, [-row for row in half]]) + 0.002 * rng.standard_normal((count, 64))


def test_smooth_units_in_pairs_are_told_from_random_weights() -> None:
    low, pairs = told([units(waves(), "net"), units(None, "net?untrained")], "weights")[:2]
    assert low.verdict == "found"
    assert "100.0 %" in low.sentence
    assert "above that baseline" in low.sentence
    assert pairs.numbers[0].value > 0.9
    assert pairs.numbers[0].null == 0.05
    assert pairs.verdict == "found"


def test_random_units_are_neither_low_nor_paired() -> None:
    torch.manual_seed(0)
    low, pairs = told(
        [units(None, "net"), replace(units(None, "x"), model=record("net?untrained"))], "weights"
    )[:2]
    # The same weights as the twin's: 5 % are below its own 5 % quantile.
    assert low.numbers[0].value == pytest.approx(0.05, abs=1 / 32)
    assert (low.verdict, pairs.verdict) == ("none", "none")
    assert "not distinguishable from that baseline" in low.sentence
    assert "not above chance" in pairs.sentence


def test_a_network_that_ignores_position_is_told() -> None:
    model = mixer(np.repeat(np.random.default_rng(0).standard_normal((64, 1)), 64, axis=1), "flat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedUnitsWarning)
        warnings.simplefilter("ignore", UndefinedKernelWarning)
        results = [
            replace(r, model=record("flat")) for r in (token_mixing(model), spatial_kernels(model))
        ]
    texts = [f.sentence for f in told(results, "weights")]
    assert texts[0].startswith("flat: all 64 token-mixing units weight all positions equally")
    assert texts[1].endswith("its spatial mixing ignores position.")
    other = mixer(waves(), "net")
    said = [
        f.sentence for f in told([replace(spatial_kernels(other), model=record("net"))], "weights")
    ]
    assert not any("ignores" in text for text in said)


# -- channels --------------------------------------------------------------------------------------


def selective(name: str, effect: float = 2.0, split: str = "test") -> Any:
    rng = np.random.default_rng(7)
    X = rng.standard_normal((N, 30))
    X[:, 4] += effect * (LABELS == 1)
    return reps_of({"first": rng.standard_normal((N, 30)), "last": X}, name, split=split)


def test_the_most_selective_channel_is_the_planted_one() -> None:
    reps = selective("net")
    depth, best = told([class_selectivity(reps)], "channels")[:2]
    expected = roc_auc_score(LABELS == 1, reps["last"][:, 4])
    assert best.verdict == "found"
    assert best.numbers[0].value == pytest.approx(expected)
    assert "channel is 4 of last, which separates 'dog'" in best.sentence
    # One in 1,000 permutations at least, of both layers at once.
    assert "(p ≤ 0.001, corrected" in best.sentence
    assert [n.value for n in depth.numbers[:2]] == [0, pytest.approx(1 / 30)]
    every = [
        [roc_auc_score(np.int64(k) == LABELS, reps["last"][:, c]) for k in range(3)]
        for c in range(30)
    ]
    # The clearest class of a channel has the largest |z|, which among classes of one size is that
    # of the AUROC farthest from 1/2.
    assert depth.numbers[3].value == pytest.approx(
        np.median([max(abs(a - 0.5) for a in row) + 0.5 for row in every])
    )
    assert "no significant difference over channels" in depth.sentence


def test_channels_of_random_labels_are_not_selective() -> None:
    best = told([class_selectivity(selective("net", 0.0), permutations=99)], "channels")[1]
    assert best.verdict == "none"
    assert (
        "no channel is significantly selective after correction for all channels and layers"
        in best.sentence
    )


def test_the_interval_of_an_auroc_covers_at_its_level() -> None:
    """Of exponential scores the standard error is exact; where one mean is thrice the other the
    AUROC is 3 / (3 + 1)."""
    rng = np.random.default_rng(0)
    positive, negative = rng.exponential(3, (3000, 51, 1)), rng.exponential(1, (3000, 1, 58))
    drawn = (positive > negative).mean((1, 2))
    bounds = np.array([auroc_interval(value, 51, 58) for value in drawn[:1000]])
    assert 0.93 < ((bounds[:, 0] < 0.75) & (bounds[:, 1] > 0.75)).mean() < 0.97
    low, high = auroc_interval(0.75, 51, 58)
    assert (high - low) / 2 / 1.96 == pytest.approx(drawn.std(), rel=0.06)


def test_the_interval_of_an_extreme_auroc_is_none_of_no_width() -> None:
    low, high = auroc_interval(1.0, 6, 54)
    assert 0.5 < low < 0.99
    assert high == 1
    # Positive and negative images trade places.
    assert auroc_interval(0.0, 54, 6) == (0, pytest.approx(1 - low))


def test_partners_are_counted_and_their_absence_is_told() -> None:
    a, b = noise(1, 1, 10), noise(2, 1, 10)
    unrelated = [
        channel_partners(reps_of(a, "one"), reps_of(b, "two", "vit"), "l0", "l0", permutations=20)
    ]
    nothing = told(unrelated, "channels")[-1]
    assert nothing.verdict == "none"
    assert "no channel has a significant best match in the other network" in nothing.sentence
    b["l0"][:, 7] = -a["l0"][:, 3]
    planted = [channel_partners(reps_of(a, "one"), reps_of(b, "two", "vit"), "l0", "l0")]
    names = {"model_a": record("one?untrained"), "model_b": record("two?untrained", "vit")}
    found = told([*planted, *(replace(p, **names) for p in unrelated)], "channels")[-1]
    assert found.numbers[0].value == pytest.approx(0.1)
    assert "channel 3 of l0 (one) and 7 of l0 (two), |r| = 1.00 (p = 0.001" in found.sentence
    assert "Untrained baselines: 0.0 %" in found.sentence
    every = np.abs(np.corrcoef(a["l0"].T, b["l0"].T)[:10, 10:]).max(1)
    assert next(n.value for n in found.numbers if n.kind == "median |r|") == pytest.approx(
        np.median(every)
    )


# -- attributions ----------------------------------------------------------------------------------


def agreeing(values: Sequence[float], n: int = 12, method: str = "saliency") -> Agreement:
    """Networks one, two and three, of which (1, 2), (1, 3) and (2, 3) agree so much; other images'
    maps agree by 0.1."""
    rng = np.random.default_rng(0)
    table = np.ones((3, 3, n))
    for (i, j), value in zip(((0, 1), (0, 2), (1, 2)), values, strict=True):
        table[i, j] = table[j, i] = value + 0.05 * rng.standard_normal(n)
    models = record("one"), record("two", "vit"), record("three", "cnn")
    images, ids = ImagesRecord("x", "test", n, 3, "0"), tuple(map(str, range(n)))
    nulls = np.zeros((3, 3)), np.full((3, 3), 0.1), np.full((3, 3), 0.001)
    return Agreement(models, (method,) * 3, images, ids, (4, 4), False, table, *nulls, 200)


def test_the_networks_that_agree_most_are_the_planted_ones() -> None:
    finding = told([agreeing([0.1, 0.6, 0.1])], "attributions")[0]
    assert finding.verdict == "found"
    assert finding.numbers[0].value == pytest.approx(0.5, abs=0.05)
    assert "most one and three" in finding.sentence
    assert "ahead of all other pairs" in finding.sentence
    tie = told([agreeing([0.6, 0.6, 0.1])], "attributions")[0]
    assert "not distinguishable from that pair: " in tie.sentence
    none = told([agreeing([0.0, -0.1, 0.0])], "attributions")[0]
    assert none.verdict == "none"
    assert none.sentence.startswith(
        "No pair of networks agrees more than expected from other images' maps"
    )


def test_pairs_are_ranked_by_the_methods_that_all_have() -> None:
    """One and three agree most by saliency; two and three have a method of their own, by which they
    agree entirely."""
    own = select(agreeing([0.0, 0.0, 1.0], method="attention_rollout"), "attribution", [1, 2])
    finding = told([agreeing([0.1, 0.6, 0.1]), own], "attributions")[0]
    assert "most one and three" in finding.sentence
    assert {n.kind for n in finding.numbers} == {"agreement above the null, 1 method"}


def curves(better: float, n: int = 12) -> PerturbationCurves:
    """Straight lines from 1 to 0: areas of 0.5, and of 0.5 - `better` for the deletion of the one
    method."""
    line = np.linspace(1, 0, 5)
    random = np.tile(line, (2, n, 1))
    # The trapezoids of a constant are its height.
    own = random[:1] - better + 1e-3 * np.linspace(-1, 1, n)[:, None]
    images, ids = ImagesRecord("x", "test", n, 3, "0"), tuple(map(str, range(n)))
    steps, head = (
        np.linspace(0, 1, 5),
        (record("net"), images, ("saliency",), ids, np.zeros(n, int), (4, 4)),
    )
    return PerturbationCurves(*head, steps, own, random[:1], random, random, "mean", "blur", 2)


def test_deletion_is_told_from_random_orders_only_where_it_is_better() -> None:
    good = told([curves(0.2)], "attributions")[1]
    assert good.numbers[0].value == pytest.approx(0.2)
    assert "in deletion for 1 of 1 methods (largest gain " in good.sentence
    assert "in insertion for 0 of 1 methods" in good.sentence
    assert told([curves(0.0)], "attributions")[1].verdict == "none"


# -- all of it -------------------------------------------------------------------------------------


def test_missing_pieces_are_left_out_with_their_reason() -> None:
    skipped = [
        Skipped("linear probe of net", "class 'hen' has one image"),
        Skipped("class selectivity of net", "no labels"),
    ]
    found = narrate(skipped)
    assert {f.verdict for f in found.findings} == {"missing"}
    assert {f.question for f in found.findings} == set(QUESTIONS)
    texts = " ".join(f.sentence for f in found.findings)
    assert "Probe accuracy by depth: not available, class 'hen' has one image" in texts
    assert "Class-selective channels: not available, no labels" in texts
    assert "Untrained baselines: not available, the results contain no untrained baseline" in texts
    assert len(found.to_frame()) == len(found.findings)
    assert not found.curves


def test_the_control_tells_what_twins_show() -> None:
    a, b = parting()
    results = [
        similar(a, b),
        similar(a, b, "?untrained"),
        accuracy("net"),
        accuracy("raw pixels", family="pixels", layers=1),
    ]
    for name, effect in (("net", 2.0), ("net?untrained", 0.0)):
        results.append(class_selectivity(selective(name, effect), permutations=99))
    similarity, probe, channels = told(results, "control")
    assert "of the null of the best pair" in similarity.sentence
    assert similarity.verdict == "found"
    # 14 of 40 are not told from a quarter.
    assert "35.0 %" in probe.sentence
    assert probe.sentence.endswith("which is not above chance.")
    assert probe.verdict == "none"
    assert channels.verdict == "none"
    assert "not above the null without training" in channels.sentence


def test_a_narrative_survives_its_file_and_heads_the_report() -> None:
    a, b = parting()
    results = [similar(a, b), accuracy("net")]
    narrative = narrate(results)
    again = from_dict(to_dict(narrative))
    assert isinstance(again, Narrative)
    assert [f.sentence for f in again.findings] == [f.sentence for f in narrative.findings]
    sections = make_sections([*results, again])
    assert [s.anchor for s in sections[: len(QUESTIONS)]] == [f"finding-{key}" for key in QUESTIONS]
    assert sections[0].see == ("similarity",)
    known = {s.anchor for s in sections}
    assert {"similarity", "probes"} <= known
    frame = narrative.to_frame()
    assert set(frame["sentence"]) == {f.sentence for f in narrative.findings}
