"""Integrated gradients (Sundararajan et al. 2017) on segments of the path from baseline to image,
halved where not exact.

A map whose sum is exact need not be exact: on a network of ReLUs the gradient jumps from pixel to
pixel while the sum settles. So every path is halved at least once, which gives the change of every
segment; a segment of half the length has at most half the error, as the rule converges at least as
1 / nodes. Segments are halved until the sum is right and the remaining change is small against the
map.

A segment from a to b is captum's IntegratedGradients from the image at a to the image at b, by
Gauss-Legendre nodes; the segments of a path add up to its integral. What every segment must sum to
is known, since the logit at its two ends is: its gap shows where the gradient jumps or bends.
Segments with the largest gaps or changes are halved, so that nodes concentrate there: at kinks of
ReLU networks, for which no smooth rule converges faster than 1 / nodes, and beside a blank
baseline, where layer norms of nearly constant tokens multiply small differences by 1 / sqrt(eps),
one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from mixer_probe.attribution.network import logits_of, target_logits
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Quadrature:
    """`nodes` per segment, at most `most` nodes per path, the allowed gap as a fraction of the
    logit difference, and the allowed change as a fraction of the sum of the map's magnitudes."""

    nodes: int
    most: int
    tolerance: float
    change: float


@dataclass(frozen=True, eq=False)
class _Segment:
    """The path from `start` to `stop` (0 the baseline, 1 the image): its map [H, W], what the sum
    of the map misses of the change of the logit, and by how much more nodes may still change the
    map (sum of magnitudes)."""

    start: float
    stop: float
    map: Tensor
    gap: float
    change: float = float("nan")

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2

    def halves(self, maps: Sequence[Tensor] | Tensor, gaps: Sequence[float]) -> list[_Segment]:
        """Both halves, from their maps and gaps. Each may still change by half of what halving
        changed, in proportion to its magnitudes."""
        maps = list(maps)
        moved = float((self.map - maps[0] - maps[1]).abs().sum()) / 2
        sizes = [float(one.abs().sum()) for one in maps]
        ends = ((self.start, self.middle), (self.middle, self.stop))
        return [
            _Segment(*span, one, gap, moved * (size / sum(sizes) if sum(sizes) else 0.5))
            for span, one, gap, size in zip(ends, maps, gaps, sizes, strict=True)
        ]


def relative_gap(gap: Tensor, difference: Tensor) -> Tensor:
    """|gap| as a fraction of the logit difference; a difference below float32's own rounding counts
    as 1e-6."""
    return gap.abs() / difference.abs().clamp_min(1e-6)


def integrate(
    model: Model, x: Tensor, baseline: Tensor, targets: Tensor, rule: Quadrature, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B, H, W] of the paths from `baseline` to `x` [B, 3, H, W], the number of nodes of each
    path [B], and the fraction of its magnitudes by which more nodes may still change each map [B];
    NaN where `rule` left no room to halve."""
    maps, _, differences = _integrals(model, baseline, x, targets, rule.nodes, chunk)
    steps = torch.full((len(x),), rule.nodes, device=x.device)
    changes = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    if 2 * rule.nodes > rule.most:
        return maps, steps, changes
    middle = torch.lerp(baseline, x, 0.5)
    halves = [
        _integrals(model, *ends, targets, rule.nodes, chunk)[:2]
        for ends in ((baseline, middle), (middle, x))
    ]
    for i in range(len(x)):
        whole = _Segment(0.0, 1.0, maps[i], 0.0)
        segments = whole.halves([m[i] for m, _ in halves], [float(gaps[i]) for _, gaps in halves])
        allowed = rule.tolerance * max(abs(float(differences[i])), 1e-6)
        while True:
            n, total = len(segments), torch.stack([s.map for s in segments]).sum(0)
            size = max(float(total.abs().sum()), 1e-30)
            gap, change = sum(s.gap for s in segments), sum(s.change for s in segments)
            done = abs(gap) <= allowed and change <= rule.change * size
            if done or rule.nodes * (n + 1) > rule.most:
                break
            # The segments with more than their part of the allowed errors, at most the worst half
            # of them, as room allows.
            errors = {
                s: max(abs(s.gap) / allowed, s.change / (rule.change * size)) for s in segments
            }
            ranked = sorted(segments, key=lambda s: -errors[s])
            count = min(rule.most // rule.nodes - n, max(1, n // 2))
            worst = [s for s in ranked[:count] if errors[s] > 1 / n] or ranked[:1]
            ends = torch.tensor(
                [[(s.start, s.middle), (s.middle, s.stop)] for s in worst],
                dtype=x.dtype,
                device=x.device,
            )
            starts, stops = (
                torch.lerp(baseline[i : i + 1], x[i : i + 1], a.view(-1, 1, 1, 1))
                for a in ends.unbind(-1)
            )
            new, gaps, _ = _integrals(
                model, starts, stops, targets[i].expand(2 * len(worst)), rule.nodes, chunk
            )
            parts = [
                s.halves(new[2 * k : 2 * k + 2], gaps[2 * k : 2 * k + 2].tolist())
                for k, s in enumerate(worst)
            ]
            segments = [*(s for s in segments if s not in worst), *chain.from_iterable(parts)]
        maps[i], steps[i], changes[i] = total, rule.nodes * n, change / size
    return maps, steps, changes


def _integrals(
    model: Model, start: Tensor, stop: Tensor, targets: Tensor, nodes: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [P, H, W] of straight segments between images [P, 3, H, W], their gaps [P] and the
    differences of the logit [P]."""
    method = IntegratedGradients(lambda images: logits_of(model, images))
    parts = zip(*(torch.split(t, chunk) for t in (start, stop, targets)), strict=True)
    found = [
        method.attribute(
            b,
            baselines=a.contiguous(),
            target=t,
            n_steps=nodes,
            internal_batch_size=max(chunk, len(b)),
        )
        for a, b, t in parts
    ]
    maps = torch.cat([part.detach().sum(1) for part in found])
    difference = target_logits(model, stop, targets, chunk) - target_logits(
        model, start, targets, chunk
    )
    return maps, maps.double().sum((1, 2)) - difference, difference
