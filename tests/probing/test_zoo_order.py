"""What probes say of the bundled networks: trained above untrained above chance at depth, and
controls that agree."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy import stats

import mixer_probe as mp
from mixer_probe.probing import control_task, linear_probe, online_code

NETWORKS = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")


@lru_cache
def runs(name: str, trained: bool) -> tuple[mp.Representations, mp.Representations]:
    """All blocks of a bundled network or of its untrained baseline on a part of the bundled images,
    to fit and to test on."""
    model = mp.load_model(name, device="cpu")
    parts = (mp.load_images("demo", split=split, limit=300) for split in ("train", "test"))
    train, test = (
        mp.extract(model if trained else model.untrained(), images, "blocks") for images in parts
    )
    return train, test


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_above_untrained_above_chance_at_depth(name):
    trained, untrained = (
        linear_probe(*runs(name, t)).to_frame().query("depth > 0.6") for t in (True, False)
    )
    assert (trained["low"].to_numpy() > untrained["high"].to_numpy()).all()
    assert (untrained["low"] > 1 / 10).all()


def test_description_length_and_errors_avoided_order_layers_alike():
    """Both ask whether a grouping that means something is easier than another; plain selectivity
    shrinks where all are easy."""
    avoided, compression, is_trained = [], [], []
    for name in NETWORKS:
        for trained in (True, False):
            train, test = runs(name, trained)
            ends = [train.names()[i] for i in (0, len(train) // 2, -1)]
            avoided.append(
                control_task(train.only(ends), test.only(ends), controls=5).relative_selectivity
            )
            compression.append(online_code(train.only(ends), orders=1).compression)
            is_trained.append(np.full(3, trained))
    order = stats.spearmanr(np.concatenate(avoided), np.concatenate(compression)).statistic
    assert order > 0.6
    for measure in (avoided, compression):
        last = np.array(measure)[:, -1].reshape(3, 2)
        assert (last[:, 0] > last[:, 1]).all()
