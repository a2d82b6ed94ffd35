"""Accuracy against cost, by the measures of the Mixer paper, and the Pareto frontier of
networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import numpy as np
from torch import nn

from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.cost.model_cost import ModelCost
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.probing import FewShotResult, ProbeResult
from mixer_probe.stats.differences import LEVEL, difference_p

P = TypeVar("P", ProbeResult, FewShotResult)

COSTS = ("parameters", "MACs per image", "peak activation bytes per image", "seconds per image")


@dataclass(frozen=True)
class AccuracyCost(Result):
    """Accuracies [A, M] by `measures` [A], with 95 % intervals `low` to `high`, and costs [K, M] of
    M networks.

    Costs are in the order of `costs`: parameters, and multiply-accumulates, peak bytes of
    activations and median seconds per image; NaN where not measured."""

    title: ClassVar[str] = "Accuracy and cost"
    frame = Frame(
        "measure cost model",
        """model=models.name measure=measures accuracy low high n_test cost=costs value=cost
        on_frontier=frontier dominated""",
    )

    models: Annotated[tuple[ModelRecord, ...], "model"]
    images: ImagesRecord
    measures: Annotated[tuple[str, ...], "measure"]
    accuracy: Annotated[np.ndarray, "measure", "model"]
    low: Annotated[np.ndarray, "measure", "model"]
    high: Annotated[np.ndarray, "measure", "model"]
    costs: Annotated[tuple[str, ...], "cost"]
    cost: Annotated[np.ndarray, "cost", "model"]
    n_test: int
    chance: float
    device: str

    @property
    def frontier(self) -> Annotated[np.ndarray, "measure", "cost", "model"]:
        """Whether no other network is as accurate for less, or more accurate for as little [A, K,
        M]."""
        return np.array(
            [[on_frontier(cost, accuracy) for cost in self.cost] for accuracy in self.accuracy]
        )

    @property
    def dominated(self) -> Annotated[np.ndarray, "measure", "cost", "model"]:
        """Whether a network of equal or lower cost is significantly more accurate [A, K, M].

        Significant: the intervals are disjoint, and p <= 0.05 after Bonferroni correction for all
        pairs of networks."""
        found = []
        for value, low, high in zip(self.accuracy, self.low, self.high, strict=True):
            p = difference_p(value, low, high, value[:, None], low[:, None], high[:, None])
            n = np.isfinite(value).sum()
            better = (low[:, None] > high) & (p * n * (n - 1) / 2 <= 1 - LEVEL)
            found.append([((cost[:, None] <= cost) & better).any(0) for cost in self.cost])
        return np.array(found)


def on_frontier(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """The Pareto frontier [M] of low cost and high accuracy; networks without either number are not
    on it.

    Network i is off it if some j has cost_j <= cost_i and accuracy_j >= accuracy_i, one of them
    strictly."""
    cheaper, better = cost[:, None] <= cost, accuracy[:, None] >= accuracy
    strictly = (cost[:, None] < cost) | (accuracy[:, None] > accuracy)
    known = np.isfinite(cost) & np.isfinite(accuracy)
    return np.asarray(known & ~(cheaper & better & strictly).any(0))


def accuracy_cost(
    costs: Sequence[ModelCost],
    probes: Sequence[ProbeResult],
    few_shots: Sequence[FewShotResult] = (),
    shots: int = 5,
) -> AccuracyCost:
    """Accuracy of class probes on the last probed layer of each network, few-shot and on all
    training images, against cost.

    `shots` is the number of images per class, 5 in the paper; where a few-shot result lacks it, the
    largest one. Networks without a probe are left out. Raises MeasureError where no network has
    both, for two probes of one network, for a probe of a network that has changed since its cost
    was measured, and for images or devices that differ."""
    probed, few = _by_network(costs, probes), _by_network(costs, few_shots)
    chosen = [
        c
        for c in costs
        if c.model.fingerprint in probed and (not few or c.model.fingerprint in few)
    ]
    if not chosen:
        raise MeasureError("no network has both a cost and a probe, so there is nothing to compare")
    full = [probed[c.model.fingerprint] for c in chosen]
    found = [few[c.model.fingerprint] for c in chosen] if few else []
    _check_same({p.images_train.fingerprint for p in full}, "training images")
    _check_same({f.images_train.fingerprint for f in found}, "training images")
    _check_same(
        {p.images_test.fingerprint for p in full} | {f.images_test.fingerprint for f in found},
        "test images",
    )
    _check_same({c.device for c in chosen}, "devices")
    rows = [np.array([[p.accuracy[-1], p.low[-1], p.high[-1]] for p in full])]
    names = [f"linear probe, {full[0].n_train} images"]
    if found:
        taken = shots if all(shots in f.shots for f in found) else min(f.shots[-1] for f in found)
        columns = [f.shots.index(taken) for f in found]
        rows.insert(
            0,
            np.array(
                [
                    (f.mean[-1, k], f.low[-1, k], f.high[-1, k])
                    for f, k in zip(found, columns, strict=True)
                ]
            ),
        )
        names.insert(0, f"few-shot probe, {taken} images per class")
    stacked = np.stack(rows)
    return AccuracyCost(
        models=tuple(c.model for c in chosen),
        images=full[0].images_test,
        measures=tuple(names),
        accuracy=stacked[..., 0],
        low=stacked[..., 1],
        high=stacked[..., 2],
        costs=COSTS,
        cost=np.array(
            [
                [c.model.parameters, c.macs.total, c.bytes_per_image, 1 / c.throughput]
                for c in chosen
            ]
        ).T,
        n_test=full[0].n_test,
        chance=full[0].chance,
        device=chosen[0].device,
    )


def _by_network(costs: Sequence[ModelCost], probes: Sequence[P]) -> dict[str, P]:
    """The probes by the fingerprints of their networks. Raises MeasureError for two probes of one
    network, and for a probe of another network of the same name as one of the `costs`."""
    measured = defaultdict[str, set[str]](set)
    for cost in costs:
        measured[cost.model.name].add(cost.model.fingerprint)
    found: dict[str, P] = {}
    for probe in probes:
        network = probe.model
        if network.fingerprint in found:
            raise MeasureError(f"{network.name} has two probes of one kind; give one")
        if network.name in measured and network.fingerprint not in measured[network.name]:
            raise MeasureError(
                f"the cost and the probe of {network.name} belong to different networks: weights, "
                "settings or preprocessing differ; measure both on the same network"
            )
        found[network.fingerprint] = probe
    return found


def _check_same(found: set[str], what: str) -> None:
    if len(found) > 1:
        raise MeasureError(
            f"the networks were measured on {len(found)} different {what}, which cannot be compared"
        )


def feature_layer(model: Model) -> Layer:
    """The layer whose output [image, channel] the classifier reads: the features of a linear probe,
    as in the paper.

    The last pooled layer before the last linear layer (or 1x1 convolution) of the head; the last
    pooled layer of a network without a head. Raises LayerError for a network that pools nowhere."""
    pooled = [
        layer for layer in map(model.layer, model.structure.names()) if layer.axes == Axes.BC.name
    ]
    heads = tuple(f"{layer.module}." for layer in model.layers if layer.kind == "head")
    classifiers = [
        layer.order
        for layer in pooled
        if f"{layer.module}.".startswith(heads)
        and isinstance(model.module.get_submodule(layer.module), (nn.Linear, nn.Conv2d))
    ]
    before = [layer for layer in pooled if not classifiers or layer.order < classifiers[-1]]
    if not before:
        raise LayerError(
            f"no layer of {model.name} gives one vector per image before its classifier"
        )
    return max(before, key=lambda layer: layer.order)
