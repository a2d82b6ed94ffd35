"""The frontier against brute force, and the features of a probe against the classifier that reads
them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from mixer_probe.cost import accuracy_cost, feature_layer, model_cost, on_frontier
from mixer_probe.cost.findings import accuracy_cost_sentences
from mixer_probe.probing import few_shot_probe
from tests.networks import CASES
from tests.tiny import tiny_models


def by_brute_force(cost: np.ndarray, accuracy: np.ndarray) -> list[bool]:
    def beats(j: int, i: int) -> bool:
        no_worse = cost[j] <= cost[i] and accuracy[j] >= accuracy[i]
        return bool(no_worse and (cost[j] < cost[i] or accuracy[j] > accuracy[i]))

    return [not any(beats(j, i) for j in range(len(cost))) for i in range(len(cost))]


def test_the_frontier_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        # Small integers, so that there are ties.
        cost, accuracy = rng.integers(0, 6, (2, 8)).astype(float)
        assert on_frontier(cost, accuracy).tolist() == by_brute_force(cost, accuracy)


def test_twins_share_the_frontier_and_unknown_costs_are_off_it() -> None:
    assert on_frontier(np.array([1.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.4])).tolist() == [
        True,
        True,
        False,
    ]
    assert on_frontier(np.array([1.0, np.nan]), np.array([0.5, 0.9])).tolist() == [True, False]


@pytest.mark.parametrize(
    "name",
    [
        "mixer",
        "gmlp",
        "vit",
        "vit-gap",
        "dinov2-registers",
        "swin",
        "resnet18",
        "resnetv2",
        "convnext",
    ],
)
def test_the_classifier_reads_the_features(name: str) -> None:
    """The last linear layer (or 1x1 convolution) of the head, applied to the features, gives the
    logits."""
    model = CASES[name].model()
    images = CASES[name].images(3)
    features = torch.from_numpy(
        mp.extract(model, images, layers=feature_layer(model).name)[feature_layer(model).name]
    )
    last = [
        m
        for m in model.module.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.shape[0] == 5
    ][-1]
    logits = features @ last.weight.detach().reshape(5, -1).T + last.bias.detach()
    torch.testing.assert_close(logits, model.module(images).detach(), rtol=1e-4, atol=1e-4)


def test_a_network_without_a_head_gives_its_pooled_output() -> None:
    model = CASES["vit-gap"].model()
    model.module.reset_classifier(0)
    model = mp.load_model(
        model.module, input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu"
    )
    name = feature_layer(model).name
    features = mp.extract(model, CASES["vit-gap"].images(2), layers=name)[name]
    torch.testing.assert_close(
        torch.from_numpy(features), model.module(CASES["vit-gap"].images(2)).detach()
    )


def test_accuracy_beside_cost() -> None:
    train, test = (mp.load_images("demo", split=split, limit=60) for split in ("train", "test"))
    costs, probes, few = [], [], []
    for model in tiny_models():
        runs = [
            mp.extract(model, images, layers=feature_layer(model).name) for images in (train, test)
        ]
        costs.append(model_cost(model, batch_size=4, runs=3))
        probes.append(mp.linear_probe(*runs))
        few.append(few_shot_probe(*runs, [1, 5]))
    found = accuracy_cost(costs, probes, few)
    assert found.measures == ("few-shot probe, 5 images per class", "linear probe, 60 images")
    np.testing.assert_array_equal(
        found.cost[:2], [[c.model.parameters for c in costs], [c.macs.total for c in costs]]
    )
    np.testing.assert_array_equal(
        found.accuracy, [[f.mean[-1, 1] for f in few], [p.accuracy[-1] for p in probes]]
    )
    assert len(found.to_frame()) == 2 * 4 * 3
    cheapest = int(np.argmin(found.cost[0]))
    assert found.frontier[:, 0, cheapest].all()
    assert "n = 60" in accuracy_cost_sentences(found)[1]
    assert accuracy_cost(costs[:2], probes[1:]).models == (costs[1].model,)
    with pytest.raises(MeasureError, match="no network has both a cost and a probe"):
        accuracy_cost(costs[:1], probes[1:])


def test_a_probe_belongs_to_the_network_whose_cost_it_stands_beside() -> None:
    train, test = (mp.load_images("demo", split=split, limit=40) for split in ("train", "test"))
    model = tiny_models()[0]
    layer = feature_layer(model).name
    runs = [mp.extract(model, images, layers=layer) for images in (train, test)]
    cost, full, few = (
        model_cost(model, batch_size=1, runs=3),
        mp.linear_probe(*runs),
        few_shot_probe(*runs, [1]),
    )
    assert accuracy_cost([cost], [full], [few]).n_test == 40
    with pytest.raises(MeasureError, match="has two probes of one kind"):
        accuracy_cost([cost], [full, full])
    with pytest.raises(MeasureError, match="2 different test images"):
        accuracy_cost([cost], [full], [few_shot_probe(*runs[::-1], [1])])
    next(model.module.parameters()).data.mul_(2)
    changed = [mp.extract(model, images, layers=layer) for images in (train, test)]
    with pytest.raises(MeasureError, match="belong to different networks"):
        accuracy_cost([cost], [mp.linear_probe(*changed)])
