"""What is said and drawn of attention, frequencies and the residual stream in the cases that the
golden files do not hold, and that nothing is said of null data."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.section import Picture
from mixer_probe.mixing import attention_distance, frequency_profile, residual_stream
from mixer_probe.mixing.estimates import estimate
from mixer_probe.mixing.figures.attention import attention_distances
from mixer_probe.mixing.figures.frequency import frequency_depth, frequency_profiles
from mixer_probe.mixing.figures.residual import logit_contributions, norm_ratios
from mixer_probe.mixing.findings.attention import attention_sentences, high_norm_sentence
from mixer_probe.mixing.findings.changes import changed, not_zero
from mixer_probe.mixing.findings.residual import contribution_sentence, residual_sentences
from mixer_probe.mixing.views.attention import attention_section
from mixer_probe.mixing.views.frequency import frequency_section
from mixer_probe.mixing.views.panels import by_networks
from mixer_probe.mixing.views.residual import residual_section
from tests.networks import CASES, as_model


def named(result: Any, name: str, trained: bool = True) -> Any:
    return replace(result, model=replace(result.model, name=name, trained=trained))


def test_estimates_over_images() -> None:
    values = np.array([[1.0, 2.0, 4.0, np.nan], [3.0, 3.0, 3.0, 3.0], [1.0, *[np.nan] * 3]])
    found = estimate(values)
    assert found.value.tolist() == [7 / 3, 3, 1]
    assert found.se[0] == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert found.low[0] < found.value[0] < found.high[0]
    assert np.isnan([found.se[1:], found.low[1:], found.high[1:]]).all()


def test_null_data_are_rarely_said_to_change() -> None:
    """Eight blocks of 20 images each, the same in both networks: at most 6 % of 500 pairs."""
    rng = np.random.default_rng(0)
    claimed = {"changed": 0, "not zero": 0, "planted": 0}
    for _ in range(500):
        own, baseline = (estimate(rng.gamma(4, size=(8, 20))) for _ in range(2))
        claimed["changed"] += bool(changed(own, baseline).any())
        claimed["not zero"] += bool(not_zero(estimate(rng.standard_normal((8, 20)))).any())
        moved = estimate(rng.gamma(4, size=(8, 20)) + 6)
        claimed["planted"] += bool(changed(moved, baseline).sum() >= 7 and not_zero(moved).all())
    assert claimed["changed"] <= 30
    assert claimed["not zero"] <= 30
    assert claimed["planted"] >= 490


def test_attention_within_windows_and_tokens_of_large_norm() -> None:
    r = attention_distance(CASES["swin"].model(), CASES["swin"].images(3))
    (said,) = attention_sentences(r, [r])
    assert "uniform attention within its windows has 3.5 to 16.1 px" in said
    assert "no patch token of large norm in 3 images" in high_norm_sentence(r)
    network = copy.deepcopy(CASES["vit"].network())
    vit = attention_distance(as_model(network), CASES["vit"].images(3))
    places = tuple(np.zeros_like(p) for p in vit.tokens.places)
    places[1][0, 2] = 1
    count = replace(vit.tokens.count, value=np.array([0.0, 1.0]))
    tokens = replace(vit.tokens, count=count, places=places, images=np.array([0.0, 1.0]))
    vit = replace(vit, tokens=tokens)
    assert "has 0.00 to 1.00 patch tokens of large norm per image" in high_norm_sentence(vit)
    sections = attention_section([vit, named(r, "swin")])
    pictures = [c for s in sections for c in s.content if isinstance(c, Picture)]
    assert [p.name for p in pictures] == ["attention-distance", f"high-norm-{vit.model.name}"]
    assert all(p.figure for p in pictures)


def test_zero_branches_and_logits_that_are_no_sum() -> None:
    network = copy.deepcopy(CASES["resmlp"].network())
    blocks: Any = network.blocks
    nn.init.zeros_(blocks[0].ls1)
    nn.init.zeros_(network.head.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(network.head.bias)  # type: ignore[union-attr, arg-type]
    r = residual_stream(as_model(network), CASES["resmlp"].images(3))
    said = " ".join(residual_sentences(r, [r]))
    assert "the spatial branch is exactly zero in blocks.0." in said
    assert "inf" not in said
    assert "is exactly zero, in all parts" in contribution_sentence(r)
    resnet = residual_stream(CASES["resnetv2"].model(), CASES["resnetv2"].images(3))
    assert "logits are no sum over branches, for its blocks" in contribution_sentence(resnet)
    assert np.isfinite(resnet.ratio.value[:, 0]).all()
    pictures = [
        c
        for s in residual_section([r, named(resnet, "resnet")])
        for c in s.content
        if isinstance(c, Picture)
    ]
    assert [p.name for p in pictures][:2] == ["norm-ratios", "logit-contributions"]
    assert all(p.figure for p in pictures)


def test_several_networks_with_baselines() -> None:
    r = frequency_profile(CASES["convmixer"].model(), CASES["convmixer"].images(3))
    many = [named(r, f"net{k}{end}", not end) for k in range(5) for end in ("", "?untrained")]
    groups = by_networks(many)
    assert [end for end, _ in groups] == ["", "-2"]
    assert [len(group) for _, group in groups] == [6, 4]
    (section,) = frequency_section(many)
    names = [c.name for c in section.content if isinstance(c, Picture)]
    assert names == ["frequency-depth", "frequency-depth-2", "frequency-profiles"]
    assert all(c.figure for c in section.content if isinstance(c, Picture))
    assert len(section.paragraphs) == 15


@pytest.mark.parametrize(
    "draw",
    [
        attention_distances,
        frequency_depth,
        frequency_profiles,
        norm_ratios,
        logit_contributions,
    ],
)
def test_nothing_to_draw(draw: Any) -> None:
    with pytest.raises(MeasureError):
        draw([])


def test_half_precision() -> None:
    """bfloat16 weights: numbers near those of float32."""
    case = CASES["vit"]
    images = case.images(4)
    for measure, name in (
        (attention_distance, "mean"),
        (frequency_profile, "amplitude"),
        (residual_stream, "ratio"),
    ):
        exact, narrow = (
            getattr(measure(case.model(dtype), images), name).value
            for dtype in (torch.float32, torch.bfloat16)
        )
        np.testing.assert_allclose(narrow, exact, rtol=0.1)
