"""Integrated gradients (Sundararajan et al. 2017) in pieces of the way from baseline to image, halved where they miss.

A piece from a to b is captum's IntegratedGradients from the image at a to the image at b, by Gauss-Legendre nodes; the pieces of
a way add up to its integral. What every piece must sum to is known, since the logit at its two ends is: its gap says where the
gradient jumps or bends. Pieces with the largest gaps are halved, so that nodes gather where it does: at the kinks of ReLU
networks, for which no smooth rule converges faster than 1 / nodes, and beside a blank baseline, where layer norms of tokens of
nothing multiply what little there is by 1 / sqrt(eps), one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from mixer_probe.attribution.network import logits_of, target_logits
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Quadrature:
    """`nodes` a piece, at most `most` nodes a way, and the gap that is allowed as a share of the logit difference."""

    nodes: int
    most: int
    tolerance: float


def relative_gap(gap: Tensor, difference: Tensor) -> Tensor:
    """|gap| as a share of the logit difference; below float32's own rounding it is no gap."""
    return gap.abs() / difference.abs().clamp_min(1e-6)


def integrate(model: Model, x: Tensor, baseline: Tensor, targets: Tensor, rule: Quadrature, chunk: int) -> tuple[Tensor, Tensor]:
    """Maps [B, H, W] of the ways from `baseline` to `x` [B, 3, H, W], and how many nodes each took in the end [B]."""
    maps, gaps, differences = _pieces(model, baseline, x, targets, rule.nodes, chunk)
    steps = torch.full((len(x),), rule.nodes, device=x.device)
    for i in torch.nonzero(relative_gap(gaps, differences) > rule.tolerance).flatten().tolist():
        way = _Way(model, baseline[i], x[i], targets[i], rule, chunk)
        maps[i], steps[i] = way.refined(maps[i], float(gaps[i]), float(differences[i]))
    return maps, steps


def _pieces(model: Model, start: Tensor, stop: Tensor, targets: Tensor, nodes: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of straight pieces between images [P, 3, H, W]: maps [P, H, W], gaps [P] and differences of the logit [P]."""
    method = IntegratedGradients(lambda images: logits_of(model, images))
    parts = zip(*(torch.split(t, chunk) for t in (start, stop, targets)), strict=True)
    found = [
        method.attribute(b, baselines=a.contiguous(), target=t, n_steps=nodes, internal_batch_size=max(chunk, len(b)))
        for a, b, t in parts
    ]
    maps = torch.cat([part.detach().sum(1) for part in found])
    difference = target_logits(model, stop, targets, chunk) - target_logits(model, start, targets, chunk)
    return maps, maps.double().sum((1, 2)) - difference, difference


@dataclass(frozen=True)
class _Way:
    model: Model
    baseline: Tensor
    image: Tensor
    target: Tensor
    rule: Quadrature
    chunk: int

    def refined(self, whole: Tensor, gap: float, difference: float) -> tuple[Tensor, int]:
        """The map and the number of nodes after halving pieces until their gaps together are small enough."""
        allowed = self.rule.tolerance * max(abs(difference), 1e-6)
        spans, maps, gaps = [(0.0, 1.0)], [whole], [gap]
        while abs(sum(gaps)) > allowed and self.rule.nodes * (len(spans) + 1) <= self.rule.most:
            worst = self._worst(gaps, allowed)
            halves = [half for i in worst for half in _halved(*spans[i])]
            found, misses = self._measured(halves)
            kept = [i for i in range(len(spans)) if i not in worst]
            spans = [spans[i] for i in kept] + halves
            maps = [maps[i] for i in kept] + found
            gaps = [gaps[i] for i in kept] + misses
        return torch.stack(maps).sum(0), self.rule.nodes * len(spans)

    def _worst(self, gaps: list[float], allowed: float) -> list[int]:
        """The pieces to halve: those that miss by more than their share, the worst half of all pieces at most, as room allows."""
        room = self.rule.most // self.rule.nodes - len(gaps)
        ranked = sorted(range(len(gaps)), key=lambda i: -abs(gaps[i]))
        count = min(room, max(1, len(gaps) // 2))
        return [i for i in ranked[:count] if abs(gaps[i]) > allowed / len(gaps)] or ranked[:1]

    def _measured(self, spans: list[tuple[float, float]]) -> tuple[list[Tensor], list[float]]:
        starts, stops = (self._at([span[k] for span in spans]) for k in (0, 1))
        targets = self.target.expand(len(spans))
        maps, gaps, _ = _pieces(self.model, starts, stops, targets, self.rule.nodes, self.chunk)
        return list(maps), gaps.tolist()

    def _at(self, shares: list[float]) -> Tensor:
        share = torch.tensor(shares, device=self.image.device, dtype=self.image.dtype).view(-1, 1, 1, 1)
        return torch.lerp(self.baseline[None], self.image[None], share)


def _halved(start: float, stop: float) -> tuple[tuple[float, float], tuple[float, float]]:
    middle = (start + stop) / 2
    return (start, middle), (middle, stop)
