"""Spatial frequencies against numpy's FFT, closed forms, and streams read by the test's own
hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import LayerError
from mixer_probe.mixing.branches import branch_ends
from mixer_probe.mixing.frequency import (
    as_maps,
    diagonal_frequencies,
    frequency_profile,
    log_amplitude,
)
from tests.mixing.test_branches import added, calls_of
from tests.networks import CASES


def by_fft(x: np.ndarray) -> np.ndarray:
    """Relative log amplitude of [image, channel, row, column] on the half-diagonal, per image."""
    logs = np.log(np.abs(np.fft.fft2(x)) + 1e-6).mean(1)
    rows, columns = x.shape[2:]
    m = min(rows, columns) // 2
    steps = [(round(k * (rows // 2) / m), round(k * (columns // 2) / m)) for k in range(m + 1)]
    found = np.stack([logs[:, a, b] for a, b in steps], axis=-1)
    return found - found[:, :1]


def test_constant_map_and_single_point() -> None:
    constant = log_amplitude(torch.ones(14, 14, dtype=torch.float64))
    np.testing.assert_allclose((constant - constant[0])[1:], -19.093625, atol=1e-6)
    narrow = log_amplitude(torch.full((14, 14), 0.1))
    np.testing.assert_allclose(narrow[1:], np.log(1e-6), atol=1e-3)
    point = torch.zeros(14, 14, dtype=torch.float64)
    point[3, 5] = 1
    found = log_amplitude(point)
    np.testing.assert_allclose(found - found[0], 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(14, 14), (7, 7), (8, 4), (1, 1)])
def test_against_fft2(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *shape))
    logs = log_amplitude(torch.from_numpy(x)).numpy()
    if shape == (1, 1):
        assert logs.shape == (2, 3, 1)
        return
    found = logs.mean(1)
    np.testing.assert_allclose(found - found[:, :1], by_fft(x), atol=1e-9)
    _, frequencies = diagonal_frequencies(shape)
    assert frequencies[0] == 0
    assert frequencies[-1] == pytest.approx(1 - (min(shape) % 2) / min(shape))


@pytest.mark.parametrize(
    "name",
    [
        "mixer",
        "gmixer",
        "resmlp",
        "gmlp",
        "vit",
        "deit-distilled",
        "beit",
        "eva",
        "swin",
        "swinv2",
        "res-post",
        "parallel-scaling",
        "parallel-things",
        "resnet18",
        "resnet-bottleneck",
        "resnetv2",
        "convnext",
        "convmixer",
        "efficientnet",
    ],
)
def test_every_place_of_the_stream(name: str) -> None:
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(3, torch.float64)
    r = frequency_profile(model, images, batch_size=2)
    calls, ends = calls_of(model, images), branch_ends(model)
    expected: dict[tuple[str, str], np.ndarray] = {}
    for e in ends:
        layer = model.layer(e.block)

        def maps(x: Any, layer: Any = layer) -> np.ndarray:
            return as_maps(x, layer).numpy()

        given, out = calls[layer.module, layer.call]
        expected[e.block, "input"] = maps(given)
        if e.spatial is not None and e.channel is not None:
            out_spatial = calls[e.spatial.module, e.spatial.call][1]
            expected[e.block, "spatial"] = maps(given + out_spatial)
            expected[e.block, "channel"] = maps(out)
        elif e.spatial is not None and e.total != layer.module:
            expected[e.block, "spatial"] = maps(added(e, calls))
            expected[e.block, "channel"] = maps(out)
        else:
            expected[e.block, "block"] = maps(out)
    two = {e.block for e in ends if (e.block, "spatial") in expected}
    assert [p for p, k in zip(r.places, r.kinds, strict=True) if k == "spatial"] == [
        e.block for e in ends if e.block in two
    ]
    assert set(zip(r.places, r.kinds, strict=True)) <= set(expected)
    assert len(r.places) - r.kinds.count("input") == len(ends) + len(two)
    # A block of another stage is given another tensor than the last one returned.
    stages = {"swin": 3, "swinv2": 3, "convnext": 4}
    assert r.kinds.count("input") == stages.get(name, 1)
    before: np.ndarray | None = None
    for k, place in enumerate(zip(r.places, r.kinds, strict=True)):
        x = expected[place]
        assert tuple(r.grids[k]) == x.shape[2:]
        logs = by_fft(x) if min(x.shape[2:]) > 1 else np.zeros((3, 1))
        np.testing.assert_allclose(r.profiles[k], logs.mean(0), atol=1e-7)
        np.testing.assert_allclose(r.amplitude.value[k], logs[:, -1].mean(), atol=1e-7)
        variance = x.reshape(*x.shape[:2], -1).var(-1).mean(1)
        np.testing.assert_allclose(r.variance.value[k], variance.mean(), rtol=1e-9)
        if place[1] != "input" and before is not None and before.shape[2:] == x.shape[2:]:
            old = by_fft(before) if min(x.shape[2:]) > 1 else np.zeros((3, 1))
            change = (logs - old)[:, -1]
            np.testing.assert_allclose(r.amplitude_change.value[k], change.mean(), atol=1e-7)
            change = np.log(variance) - np.log(
                before.reshape(*before.shape[:2], -1).var(-1).mean(1)
            )
            np.testing.assert_allclose(r.variance_change.value[k], change.mean(), atol=1e-9)
        else:
            assert np.isnan(r.amplitude_change.value[k])
            assert np.isnan(r.variance_change.value[k])
        before = x
    for i, part in enumerate(r.parts):
        rows = [k for k, kind in enumerate(r.kinds) if kind == part]
        change = np.nanmean(r.variance_change.value[rows])
        np.testing.assert_allclose(r.mean_variance_change.value[i], change, atol=1e-9)
    assert len(r.to_frame()) == len(r.places)


def test_smoothing_takes_away_high_frequencies() -> None:
    """Attention of zero queries averages all patches: what it adds is constant."""
    from tests.mixing.test_attention import zero_queries

    case = CASES["vit-gap"]
    model = zero_queries(case.model(torch.float64))
    r = frequency_profile(model, case.images(6, torch.float64))
    spatial = [k for k, kind in enumerate(r.kinds) if kind == "spatial"]
    np.testing.assert_allclose(r.variance_change.value[spatial], 0, atol=1e-12)


def test_one_channel_that_is_constant_has_no_change() -> None:
    case = CASES["mixer"]
    network = case.network()
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    from tests.networks import as_model

    r = frequency_profile(as_model(network), case.images(3))
    assert (r.variance.value == 0).all()
    assert np.isnan(r.variance_change.value).all()
    assert np.isnan(r.mean_variance_change.value).all()
    np.testing.assert_allclose(r.amplitude.value, 0, atol=1e-9)


def test_tokens_without_a_grid() -> None:
    from dataclasses import replace

    layer = replace(CASES["mixer"].model().layer("blocks.0"), grid=None)
    with pytest.raises(LayerError, match="are no grid"):
        as_maps(torch.zeros(1, 16, 24), layer)
