"""One forward pass that several analyses read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe import catalog
from mixer_probe.capture import Piece, Reading, extract, mean_over_positions, open_run, stream
from mixer_probe.capture.stream import transform_of
from mixer_probe.channels import (
    ChannelMoments,
    ChannelStatistics,
    RunningTop,
    extremes,
)
from mixer_probe.core.result import same
from mixer_probe.core.settings import StudySettings
from mixer_probe.study import run_analyses, run_study
from mixer_probe.weights.channel_kernels import KernelSums
from tests.networks import CASES, noise


@pytest.fixture
def model() -> mp.Model:
    return CASES["mixer"].model()


@pytest.fixture
def passes(model: mp.Model) -> Iterator[list[int]]:
    """How many images each forward pass has, once the layers are known."""
    _ = model.layers
    found: list[int] = []
    handle = model.module.register_forward_pre_hook(lambda _, given: found.append(len(given[0])))
    yield found
    handle.remove()


def test_several_analyses_read_one_pass(model: mp.Model, passes: list[int]) -> None:
    images, layers = noise(10), model.select("blocks")
    moments, top = ChannelMoments(), RunningTop(3)
    tops = Reading(layers[:1], extremes, lambda p: top.update(p.found["blocks.0"], p.start))
    stem = model.select("stem")
    means = [
        piece.found
        for piece in stream(
            model,
            images,
            stem,
            mean_over_positions,
            batch_size=4,
            also=[moments.reading(model, layers), tops],
        )
    ]
    assert passes == [4, 4, 2]
    assert [list(found) for found in means] == [["stem"]] * 3
    np.testing.assert_array_equal(
        torch.cat([found["stem"] for found in means]),
        extract(model, images, ["stem"], batch_size=4)["stem"],
    )
    alone = mp.channel_statistics(model, images, "blocks", batch_size=4)
    assert same(moments.compute(alone.model, alone.images, layers), alone)
    expected = mp.top_images(model, images, "blocks.0", k=3, batch_size=4)
    for found, of in zip(top.compute(), ("values", "index", "position"), strict=True):
        np.testing.assert_array_equal(found, getattr(expected, of))


def test_what_extraction_adds_up_is_kept_with_the_run(model: mp.Model, tmp_path: Path) -> None:
    images, layers = noise(10), model.select("blocks")

    def stop(piece: Piece) -> None:
        if piece.start:
            raise InterruptedError

    options: dict[str, Any] = {"batch_size": 4, "out": tmp_path / "run.zarr"}
    first, rest, last = ChannelMoments(), ChannelMoments(), ChannelMoments()
    stopping = Reading(layers, lambda *_: None, stop)
    with pytest.raises(InterruptedError):
        extract(model, images, also=[first.reading(model, layers), stopping], **options)
    run = extract(model, images, also=[rest.reading(model, layers)], **options)
    extract(model, images, also=[last.reading(model, layers)], **options)
    assert (first.n, rest.n, last.n) == (0, 10, 10)
    alone = mp.channel_statistics(model, images, "blocks", batch_size=4)
    for moments in (rest, last):
        assert same(moments.compute(alone.model, alone.images, layers), alone)
    assert same(run["blocks.1"], open_run(tmp_path / "run.zarr")["blocks.1"])


@pytest.mark.parametrize(
    ("names", "most", "expected"),
    [
        (["statistics", "selectivity"], None, [16, 4]),
        (["statistics", "selectivity"], 20, [16, 4]),
        (["statistics", "selectivity"], 12, [16, 4]),
        (["statistics"], None, [16, 4]),
    ],
)
def test_a_study_reads_statistics_while_it_extracts(
    model: mp.Model, passes: list[int], names: list[str], most: int | None, expected: list[int]
) -> None:
    images = mp.load_images("demo", limit=20)
    settings = StudySettings(batch_size=16, baselines=False, permutations=0, statistics_images=most)
    results = run_analyses([model], {"channels": names}, images, settings=settings)
    assert passes == expected
    (found,) = (r for r in results if isinstance(r, ChannelStatistics))
    alone = mp.channel_statistics(model, images.sample(most or 20), batch_size=16)
    # The hook of the test, and with it the count, is part of the network.
    found = replace(found, model=alone.model)
    if most == 12:
        # In other batches.
        pd.testing.assert_frame_equal(found.to_frame(), alone.to_frame(), rtol=1e-4)
    else:
        assert same(found, alone)


def test_a_reading_of_some_images_sees_these_alone(model: mp.Model) -> None:
    images, layers, rows = noise(10), model.select("blocks"), np.array([1, 2, 8])
    found: list[Piece] = []
    reading = Reading(layers, mean_over_positions, found.append, rows)
    for _ in stream(model, images, layers[:1], mean_over_positions, batch_size=3, also=[reading]):
        pass
    assert [(piece.start, piece.n) for piece in found] == [(0, 2), (2, 1)]
    expected = extract(model, images, "blocks", batch_size=3)
    for name in expected:
        np.testing.assert_array_equal(
            torch.cat([piece.found[name] for piece in found]), expected[name][rows]
        )


def test_maps_that_a_fused_kernel_hides_are_read_beside_its_outputs() -> None:
    case = CASES["deit-distilled"]
    model, images = case.model(torch.float64), case.images(4, torch.float64)
    attention = model.module.blocks[1].attn
    assert attention.fused_attn
    with mp.intervene(model, {"blocks.1.attn.qkv": mp.capture.scale(0.5)}):
        sums = KernelSums()
        (given, maps) = stream_once(model, images, sums)
    qkv = 0.5 * attention.qkv(given)
    q, k, _ = qkv.reshape(4, given.shape[1], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-1, -2) * attention.scale).softmax(-1)[..., 2:, 2:].sum(0)
    np.testing.assert_allclose(maps, expected.detach(), atol=1e-12)


def stream_once(
    model: mp.Model, images: torch.Tensor, sums: KernelSums
) -> tuple[torch.Tensor, np.ndarray]:
    """What goes into the second block's attention, and the sum of its maps over all images."""
    inputs = [model.layer("blocks.1.norm1")]
    found = [
        piece.found["blocks.1.norm1"]
        for piece in stream(
            model,
            images,
            inputs,
            lambda _, positions, prefix: torch.cat([prefix, positions], 1),
            also=[sums.reading(model)],
        )
    ]
    return torch.cat(found), sums.compute()[1] * len(images)


class Passed:
    """Counts the images that pass through every network, by the content of the input."""

    def __init__(self) -> None:
        self.plain: dict[str, Counter[bytes]] = {}

    def watch(self, model: mp.Model) -> None:
        _ = model.layers
        counts = self.plain.setdefault(model.name, Counter())

        def see(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            # A copy of the network has its hooks.
            if module is model.module and not torch.is_grad_enabled():
                counts.update(image.numpy().tobytes() for image in given[0])

        model.module.register_forward_pre_hook(see)


def test_a_report_makes_one_pass_per_network_and_image_set(monkeypatch: Any) -> None:
    passed = Passed()
    untrained = mp.Model.untrained

    def watched(model: mp.Model) -> mp.Model:
        baseline = untrained(model)
        passed.watch(baseline)
        return baseline

    monkeypatch.setattr(mp.Model, "untrained", watched)
    models = [CASES[name].model() for name in ("mixer", "vit", "resnet18")]
    for model in models:
        passed.watch(model)
    images = mp.load_images("demo", limit=30)
    train = mp.load_images("demo", split="train", limit=40)
    settings = StudySettings(
        batch_size=16,
        permutations=0,
        resamples=0,
        measures=("cka",),
        statistics_images=13,
        # Attributions, Jacobians and receptive fields are gradients.
        analyses={
            "attribution": (),
            "mixing": (),
            "weights": ("tying",),
            "probing": ("accuracy", "fewshot", "patch-position"),
        },
    )
    run_study(models, images, train, settings)
    for model in models:
        transform = transform_of(model)
        for name in (model.name, f"{model.name}?untrained"):
            counts = passed.plain[name]
            for source in (images, train):
                (batch,) = source.batches(transform, len(source))
                assert {counts.pop(image.numpy().tobytes()) for image in batch} == {1}
            # Blank images and noise tell what a network returns.
            assert sum(counts.values()) < 8


def test_pages_and_positions_are_the_same_where_the_pass_was_made_before(tmp_path: Path) -> None:
    """As another process makes it, or an earlier start: to the last bit."""
    model, images = CASES["mixer"].model(), mp.load_images("demo", limit=40)
    settings = StudySettings(
        batch_size=16,
        permutations=0,
        baselines=False,
        analyses={room.name: () for room in catalog.ROOMS}
        | {"probing": ("patch-position",), "channels": ("pages",)},
    )
    first, second = (run_study([model], images, None, settings, tmp_path) for _ in range(2))
    kinds = [type(result).__name__ for result in first]
    assert kinds[:3] == ["ModelCard", "PatchPosition", "ChannelPage"]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
