"""Norm ratios and contributions to the logits against sums by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mixer_probe.core.errors import LayerError
from mixer_probe.images import from_arrays
from mixer_probe.mixing.branches import branch_ends
from mixer_probe.mixing.residual import residual_stream
from tests.mixing.test_branches import calls_of
from tests.networks import CASES, as_model, positions

ADDITIVE = (
    "mixer",
    "gmixer",
    "resmlp",
    "gmlp",
    "vit",
    "vit-gap",
    "deit-distilled",
    "dinov2-registers",
    "beit",
    "eva",
    "eva-post-norm",
    "hybrid",
    "res-post",
    "parallel-scaling",
    "vit-differential",
)
RATIOS_ONLY = (
    "swin",
    "swinv2",
    "resnet18",
    "resnet-bottleneck",
    "resnetv2",
    "convnext",
    "convmixer",
    "mobilenetv2",
    "vit-attention-pooling",
)


def tokens(x: torch.Tensor, case: Any, name: str) -> torch.Tensor:
    return positions(x, case.layout(name))


@pytest.mark.parametrize("name", [*ADDITIVE, *RATIOS_ONLY])
def test_ratios_of_norms(name: str) -> None:
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(4, torch.float64)
    r = residual_stream(model, images, batch_size=3)
    calls, P = calls_of(model, images), case.prefix
    for k, e in enumerate(branch_ends(model)):
        if e.spatial is None:
            assert not r.present[k].any()
            assert np.isnan(r.ratio.value[k]).all()
            continue
        block = model.layer(e.block)
        z = calls[block.module, block.call][0]
        if e.skip is not None:
            z = calls[e.skip.module, e.skip.call][1]
        z = tokens(z, case, e.block)
        for b, branch in enumerate((e.spatial, e.channel)):
            assert r.present[k, b] == (branch is not None)
            if branch is None:
                assert np.isnan(r.ratio.value[k, b])
                continue
            f = tokens(calls[branch.module, branch.call][1], case, branch.module)
            ratio = z.norm(dim=-1) / f.norm(dim=-1)
            # Where a ReLU lets nothing through, a branch adds exactly nothing.
            ratio[ratio.isinf()] = torch.nan
            of_image = ratio[:, P:].nanmean(1)
            np.testing.assert_allclose(r.ratio.value[k, b], of_image.mean(), rtol=1e-10)
            np.testing.assert_allclose(r.ratio.se[k, b], of_image.std() / 2, rtol=1e-8)
            if P:
                found = r.prefix_ratio.value[k, b]
                np.testing.assert_allclose(found, ratio[:, :P].mean(), rtol=1e-10)
            else:
                assert np.isnan(r.prefix_ratio.value[k, b])
            if block.positions <= 196 and block.grid is not None and max(block.grid) <= 14:
                expected = ratio[:, P:].nanmean(0).reshape(block.grid)
                np.testing.assert_allclose(r.maps[k][b], expected, rtol=1e-5)
            z = z + f
    assert not r.zero.any()
    assert len(r.to_frame()) == r.present.sum()
    assert (r.reason == "") == (name in ADDITIVE), r.reason
    if name not in ADDITIVE:
        assert np.isnan(r.contribution.value).all()
        assert np.isnan(r.part.value).all()


@pytest.mark.parametrize("name", ADDITIVE)
def test_contributions_add_up_to_the_logit(name: str) -> None:
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(5, torch.float64)
    with torch.no_grad():
        logits = model.module(images)
    r = residual_stream(model, images, batch_size=2)
    score = (logits.max(1).values - logits.mean(1)).mean()
    stem, spatial, channel, biases, total = r.part.value
    np.testing.assert_allclose(total, score, atol=1e-10)
    np.testing.assert_allclose(stem + spatial + np.nan_to_num(channel) + biases, score, atol=1e-10)
    np.testing.assert_allclose(np.nansum(r.contribution.value[:, 0]), spatial, atol=1e-10)
    assert r.target == "prediction"
    with torch.no_grad():
        assert torch.equal(model.module(images), logits)
    assert all(p.requires_grad for p in model.module.parameters())


def test_every_contribution_by_hand() -> None:
    """LayerNorm with its own mean and scale, mean over tokens, head: written out for a Mixer."""
    case = CASES["mixer"]
    model, images = case.model(torch.float64), case.images(5, torch.float64)
    network: Any = model.module.requires_grad_(False)
    r = residual_stream(model, images)
    calls = calls_of(model, images)
    final = calls["norm", 0][0]
    scale = 1 / (final.var(-1, correction=0, keepdim=True) + network.norm.eps).sqrt()
    target = model.module(images).argmax(1)

    def score(term: torch.Tensor) -> float:
        normed = (term - term.mean(-1, keepdim=True)) * scale * network.norm.weight
        logits = normed.mean(1) @ network.head.weight.T
        return float((logits.gather(1, target[:, None])[:, 0] - logits.mean(1)).mean())

    for k in range(2):
        for b, call in enumerate((0, 1)):
            term = calls[f"blocks.{k}.drop_path", call][1]
            assert abs(r.contribution.value[k, b] - score(term)) < 1e-12
    assert abs(r.part.value[0] - score(calls["blocks.0", 0][0])) < 1e-12
    constant = network.norm.bias @ network.head.weight.T + network.head.bias
    biases = float((constant[target] - constant.mean()).mean())
    assert abs(r.part.value[3] - biases) < 1e-12


def test_the_class_is_that_of_the_label() -> None:
    case = CASES["vit"]
    names = ("cat", "dog", "frog", "bird", "ship")
    model = as_model(case.network(), class_names=names)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    images = from_arrays(pixels, labels, class_names=("ship", "cat"), name="pictures")
    r = residual_stream(model, images)
    assert r.target == "label"
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        logits = model.module(inputs)
    own = torch.tensor([4, 0] * 5)
    score = (logits.gather(1, own[:, None])[:, 0] - logits.mean(1)).double().mean()
    assert abs(r.part.value[4] - float(score)) < 1e-4
    other = from_arrays(pixels, labels, class_names=("tree", "cat"), name="pictures")
    assert residual_stream(model, other).target == "prediction"


def test_branches_and_a_head_that_are_exactly_zero() -> None:
    network = copy.deepcopy(CASES["resmlp"].network())
    blocks: Any = network.blocks
    nn.init.zeros_(blocks[0].ls1)
    nn.init.zeros_(network.head.weight)  # type: ignore[union-attr, arg-type]
    r = residual_stream(as_model(network), CASES["resmlp"].images(3))
    assert r.zero.tolist() == [[True, False], [False, False]]
    assert np.isnan(r.ratio.value[0, 0])
    assert np.isnan(r.maps[0][0]).all()
    assert np.isfinite(r.ratio.value[0, 1])
    assert (r.contribution.value == 0).all()
    assert r.reason == ""


def test_networks_without_a_branch() -> None:
    with pytest.raises(LayerError, match=r"no block of .* has a residual branch"):
        residual_stream(CASES["parallel-things"].model(), CASES["parallel-things"].images(2))


def test_why_logits_are_no_sum() -> None:
    found = residual_stream(CASES["swin"].model(), CASES["swin"].images(2))
    assert "only add branches to one stream" in found.reason
    case = CASES["vit-attention-pooling"]
    assert "is not linear" in residual_stream(case.model(), case.images(2)).reason
