"""One forward pass that several analyses read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture import Piece, Reading, extract, mean_over_positions, open_run, stream
from mixer_probe.channels import ChannelMoments, ChannelStatistics, RunningTop, extremes
from mixer_probe.core.result import same
from mixer_probe.core.settings import StudySettings
from mixer_probe.study import run_analyses
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
        (["statistics", "selectivity"], 12, [12, 16, 4]),
        (["statistics"], None, [16, 4]),
    ],
)
def test_a_study_reads_statistics_of_all_images_while_it_extracts(
    model: mp.Model, passes: list[int], names: list[str], most: int | None, expected: list[int]
) -> None:
    images = mp.load_images("demo", limit=20)
    settings = StudySettings(batch_size=16, baselines=False, permutations=0, statistics_images=most)
    results = run_analyses([model], {"channels": names}, images, settings=settings)
    assert passes == expected
    (found,) = (r for r in results if isinstance(r, ChannelStatistics))
    alone = mp.channel_statistics(model, images.sample(most or 20), batch_size=16)
    # The hook of the test, and with it the count, is part of the network.
    assert same(replace(found, model=alone.model), alone)
