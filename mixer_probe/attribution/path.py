"""Integrated gradients (Sundararajan et al. 2017) in pieces of the way from baseline to image, halved where they miss.

A map whose sum is exact need not be exact: on a network of ReLUs the gradient jumps from pixel to pixel while the sum settles.
So every way is halved once at least, and what that moves is known of every piece; a piece of half the length errs half as much
at most, as the rule converges at least as 1 / nodes. Pieces are halved until the sum is right and what the pieces may still
move is small against the map.

A piece from a to b is captum's IntegratedGradients from the image at a to the image at b, by Gauss-Legendre nodes; the pieces of
a way add up to its integral. What every piece must sum to is known, since the logit at its two ends is: its gap says where the
gradient jumps or bends. Pieces with the largest gaps or moves are halved, so that nodes gather where it does: at the kinks of
ReLU networks, for which no smooth rule converges faster than 1 / nodes, and beside a blank baseline, where layer norms of tokens
of nothing multiply what little there is by 1 / sqrt(eps), one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from mixer_probe.attribution.network import logits_of, target_logits
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Quadrature:
    """`nodes` a piece, at most `most` nodes a way, the gap that is allowed as a share of the logit difference, and the change
    that is allowed as a share of the map's magnitudes."""

    nodes: int
    most: int
    tolerance: float
    change: float


def relative_gap(gap: Tensor, difference: Tensor) -> Tensor:
    """|gap| as a share of the logit difference; below float32's own rounding it is no gap."""
    return gap.abs() / difference.abs().clamp_min(1e-6)


def integrate(
    model: Model, x: Tensor, baseline: Tensor, targets: Tensor, rule: Quadrature, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B, H, W] of the ways from `baseline` to `x` [B, 3, H, W], how many nodes each took in the end [B], and by which share
    of its magnitudes each may still move [B]; NaN where `rule` left no room to halve."""
    maps, _, differences = _pieces(model, baseline, x, targets, rule.nodes, chunk)
    steps = torch.full((len(x),), rule.nodes, device=x.device)
    moves = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    if 2 * rule.nodes > rule.most:
        return maps, steps, moves
    middle = torch.lerp(baseline, x, 0.5)
    halves = [_pieces(model, *ends, targets, rule.nodes, chunk)[:2] for ends in ((baseline, middle), (middle, x))]
    for i in range(len(x)):
        way = _Way(model, baseline[i], x[i], targets[i], rule, chunk)
        (one, gap_one), (other, gap_other) = ((m[i], float(g[i])) for m, g in halves)
        maps[i], steps[i], moves[i] = way.refined(maps[i], [one, other], [gap_one, gap_other], float(differences[i]))
    return maps, steps, moves


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

    def refined(self, whole: Tensor, maps: list[Tensor], gaps: list[float], difference: float) -> tuple[Tensor, int, float]:
        """The map, the number of nodes and the change after halving pieces until their gaps and moves together are small, from
        the `whole` way and its halves."""
        allowed = self.rule.tolerance * max(abs(difference), 1e-6)
        spans = [(0.0, 0.5), (0.5, 1.0)]
        moves = _moves(whole, maps)
        while True:
            total = torch.stack(maps).sum(0)
            size = max(float(total.abs().sum()), 1e-30)
            done = abs(sum(gaps)) <= allowed and sum(moves) <= self.rule.change * size
            if done or self.rule.nodes * (len(spans) + 1) > self.rule.most:
                return total, self.rule.nodes * len(spans), sum(moves) / size
            worst = self._worst(gaps, moves, allowed, self.rule.change * size)
            halves = [half for i in worst for half in _halved(*spans[i])]
            found, misses = self._measured(halves)
            moved = [m for k, i in enumerate(worst) for m in _moves(maps[i], found[2 * k : 2 * k + 2])]
            kept = [i for i in range(len(spans)) if i not in worst]
            spans = [spans[i] for i in kept] + halves
            maps = [maps[i] for i in kept] + found
            gaps = [gaps[i] for i in kept] + misses
            moves = [moves[i] for i in kept] + moved

    def _worst(self, gaps: list[float], moves: list[float], gap: float, move: float) -> list[int]:
        """The pieces to halve: those that err by more than their share of what is allowed, the worst half of all pieces at most,
        as room allows."""
        room = self.rule.most // self.rule.nodes - len(gaps)
        errors = [max(abs(g) / gap, m / move) for g, m in zip(gaps, moves, strict=True)]
        ranked = sorted(range(len(gaps)), key=lambda i: -errors[i])
        count = min(room, max(1, len(gaps) // 2))
        return [i for i in ranked[:count] if errors[i] > 1 / len(gaps)] or ranked[:1]

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


def _moves(whole: Tensor, halves: list[Tensor]) -> list[float]:
    """What each of two halves may still move, half of what halving moved: in proportion to their magnitudes."""
    moved = float((whole - halves[0] - halves[1]).abs().sum()) / 2
    sizes = [float(half.abs().sum()) for half in halves]
    return [moved * (size / sum(sizes) if sum(sizes) else 0.5) for size in sizes]
