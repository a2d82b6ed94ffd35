"""Memory and time: against sums by hand, exact binomial levels, and networks that take a known
time."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.cost import (
    LiveBytes,
    device_name,
    model_cost,
    peak_activation_bytes,
    time_forward,
    time_together,
)
from tests.networks import CASES


def chain(in_place: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 100), nn.ReLU(inplace=in_place), nn.Linear(100, 3))


@pytest.mark.parametrize(
    "in_place, expected", [(False, 160 + 2000 + 2000), (True, 160 + 2000 + 60)]
)
def test_peak_of_a_chain(in_place: bool, expected: int) -> None:
    """Five rows of 8, 100 and 3 floats: the input stays, and each activation until the next is
    there."""
    network = chain(in_place)
    with torch.no_grad(), LiveBytes(without=network) as counter:
        network(torch.zeros(5, 8))
    assert counter.peak == expected
    assert counter.live == 0


def test_views_count_once_and_what_is_gone_does_not() -> None:
    with LiveBytes() as counter:
        a = torch.zeros(10, 100)
        b = a.t()[:5]
        assert counter.live == 4000
        c = a + 1
        del a
        assert counter.live == 8000
        del b
        assert counter.live == 4000
        del c
    assert (counter.live, counter.peak) == (0, 8000)


@pytest.mark.parametrize("name", ["mixer", "vit", "resnet-bottleneck"])
def test_memory_grows_with_the_batch_and_the_type(name: str) -> None:
    model = CASES[name].model()
    one, four = peak_activation_bytes(model, 1), peak_activation_bytes(model, 4)
    # All but some index tensors and statistics belongs to an image.
    assert four == pytest.approx(4 * one, rel=0.01)
    # The batch, and the widest activation, are alive in any case.
    assert one > 4 * 3 * CASES[name].size ** 2
    assert peak_activation_bytes(CASES[name].model(torch.float64), 4) == pytest.approx(
        2 * four, rel=0.02
    )


def test_time_is_of_warm_passes_alone() -> None:
    model, calls = CASES["mixer"].model(), []

    def slow(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append(arguments[0].shape)
        time.sleep(0.5 if len(calls) <= 3 else 0.004)

    model.module.train()
    model.module.register_forward_pre_hook(slow)
    seconds = time_forward(model, batch_size=2, runs=6)
    assert calls == [(2, 3, 32, 32)] * 9
    assert seconds.shape == (6,)
    # The three slow ones are not among them.
    assert 0.004 <= np.median(seconds) < 0.5
    assert model.module.training


def test_networks_take_turns() -> None:
    models, order = [CASES[name].model() for name in ("mixer", "vit")], []
    for name, model in zip("ab", models):
        model.module.register_forward_pre_hook(
            lambda _module, _arguments, name=name: order.append(name)
        )
    assert time_together(models, batch_size=1, runs=2).shape == (2, 2)
    assert "".join(order) == "ab" * 5


def test_the_cost_of_a_network() -> None:
    model = CASES["mixer"].model()
    cost = model_cost(model, batch_size=4, runs=7)
    again = from_dict(to_dict(cost))
    assert again.to_frame().equals(cost.to_frame())
    assert cost.throughput == pytest.approx(4 / np.median(cost.seconds))
    low, high = cost.throughput_interval
    assert low <= cost.throughput <= high
    assert cost.device == device_name(torch.device("cpu"))
    assert "thread" in cost.device
    assert (cost.model.parameters, cost.macs.total, cost.head_parameters) == (
        model.parameters,
        model.macs,
        125,
    )
    counted = model_cost(model, batch_size=4, runs=0)
    assert np.isnan(counted.throughput)
    assert np.isnan(counted.to_frame()["low"]).all()
    assert counted.peak_bytes == cost.peak_bytes


def test_impossible_batches() -> None:
    with pytest.raises(MeasureError, match="runs is a whole number, 1 or more, not 0"):
        time_forward(CASES["mixer"].model(), 2, 0)
    with pytest.raises(MeasureError, match="batch_size is a whole number"):
        time_forward(CASES["mixer"].model(), 0, 2)
