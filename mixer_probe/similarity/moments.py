"""Moments of features that add up over batches and processes, and from which linear HSIC of all
pairs of layers follows.

With a linear kernel both HSIC estimators depend on the features only through X'Y, sum x, sum |x|^2,
sum x
|y|^2 and sum |x|^2 |y|^2 (expand HSIC_1 of Song et al. 2012, eq. 4, with K = XX', L = YY'). Their
size does not depend on the number of images. They are taken about an origin near the mean, because
moments about 0 lose every digit once the mean is far above the spread; moments about different
origins are moved to one, by expanding the products, before they are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mixer_probe.similarity.hsic import Estimator, hsic_from_moments, self_hsic_of_moments
from mixer_probe.similarity.inputs import CONSTANT
from mixer_probe.similarity.nulls import Traces


@dataclass
class Side:
    """First moments of several layers laid side by side: D features in L blocks, about the origin
    `shift`."""

    widths: list[int]
    shift: Annotated[Tensor, "D"]
    sums: Annotated[Tensor, "D"]  # sum of x
    powers: Annotated[Tensor, "L"]  # sum of |x|^2

    @classmethod
    def start(cls, widths: list[int], shift: Tensor) -> Side:
        """No images yet."""
        return cls(widths, shift, torch.zeros_like(shift), shift.new_zeros(len(widths)))

    def to(self, device: torch.device) -> Side:
        """The same on another device."""
        return Side(
            self.widths, self.shift.to(device), self.sums.to(device), self.powers.to(device)
        )

    def layers(self) -> list[Side]:
        """One side per layer."""
        parts = zip(
            *(torch.split(v, self.widths) for v in (self.shift, self.sums)),
            torch.split(self.powers, 1),
            strict=True,
        )
        return [Side([width], *part) for width, part in zip(self.widths, parts, strict=True)]

    def blocks(self, values: Tensor) -> Tensor:
        """Sums over each layer's block of the first axis: [D, ...] to [L, ...]."""
        # No product with an indicator matrix: 0 * NaN would carry one layer's NaN into all others.
        return torch.stack([part.sum(0) for part in torch.split(values, self.widths)])

    def squared_norms(self, x: Tensor) -> Tensor:
        """|x|^2 of each image in each layer: [n, D] to [n, L]."""
        return torch.stack(
            [part.square().sum(1) for part in torch.split(x, self.widths, dim=1)], dim=1
        )

    def moved_powers(self, step: Tensor, n: int) -> Tensor:
        """`powers` about the origin `shift + step`."""
        return self.powers - 2 * self.blocks(step * self.sums) + n * self.blocks(step * step)


Steps = tuple[Tensor, Tensor]


@dataclass
class Cross:
    """Mixed moments of two sides, or of one layer with itself."""

    outer: Annotated[Tensor, "DA", "DB"]  # sum of x y'
    left: Annotated[Tensor, "DA", "LB"]  # sum of x |y|^2
    right: Annotated[Tensor, "DB", "LA"]  # sum of y |x|^2
    weights: Annotated[Tensor, "LA", "LB"]  # sum of |x|^2 |y|^2

    @classmethod
    def start(cls, a: Side, b: Side) -> Cross:
        """No images yet."""
        da, db, la, lb = len(a.shift), len(b.shift), len(a.widths), len(b.widths)
        return cls(
            *(a.shift.new_zeros(shape) for shape in ((da, db), (da, lb), (db, la), (la, lb)))
        )

    def to(self, device: torch.device) -> Cross:
        """The same on another device."""
        return Cross(*(v.to(device) for v in (self.outer, self.left, self.right, self.weights)))

    def transposed(self) -> Cross:
        """The same with the sides exchanged."""
        return Cross(self.outer.T, self.right, self.left, self.weights.T)

    def add(self, x: Tensor, y: Tensor, kx: Tensor, ky: Tensor) -> None:
        """Add a batch: features `x` [n, DA] and `y` [n, DB], squared norms `kx` [n, La] and `ky`
        [n, Lb]."""
        self.outer.addmm_(x.T, y)
        self.left.addmm_(x.T, ky)
        self.right.addmm_(y.T, kx)
        self.weights.addmm_(kx.T, ky)

    def add_moved(self, other: Cross, a: Side, b: Side, steps: Steps, n: int) -> None:
        """Add `other`, of sides `a` and `b` and `n` images, after moving its origins by `steps`."""
        self.weights += other.moved_weights(a, b, steps, n)
        self.left += other.moved_left(a, b, steps, n)
        self.right += other.transposed().moved_left(b, a, (steps[1], steps[0]), n)
        self.outer += other.outer
        # Rank-one corrections in place: a moved copy of `outer` would double the memory.
        self.outer.addr_(steps[0], n * steps[1] - b.sums)
        self.outer.addr_(a.sums, steps[1], alpha=-1)

    def projected(self, b: Side, step: Tensor) -> Tensor:
        """sum of x (y' step) over each layer's block of `step` [DB]: [DA, Lb]."""
        parts = zip(
            torch.split(self.outer, b.widths, dim=1), torch.split(step, b.widths), strict=True
        )
        return torch.stack([block @ part for block, part in parts], dim=1)

    def moved_left(self, a: Side, b: Side, steps: Steps, n: int) -> Tensor:
        """`left` about the moved origins: sum of (x - s)(|y|^2 - 2 y't + |t|^2), expanded."""
        s, t = steps
        moved = self.left - 2 * self.projected(b, t) + torch.outer(a.sums, b.blocks(t * t))
        return moved - torch.outer(s, b.moved_powers(t, n))

    def moved_weights(self, a: Side, b: Side, steps: Steps, n: int) -> Tensor:
        """`weights` about the moved origins: sum of (|x|^2 - 2 x's + |s|^2)(|y|^2 - 2 y't +
        |t|^2)."""
        s, t = steps
        moved = (
            self.weights
            - 2 * a.blocks(s[:, None] * self.left)
            - 2 * b.blocks(t[:, None] * self.right).T
        )
        moved += 4 * a.blocks(s[:, None] * self.projected(b, t))
        moved += torch.outer(a.powers - 2 * a.blocks(s * a.sums), b.blocks(t * t))
        return moved + torch.outer(a.blocks(s * s), b.moved_powers(t, n))

    def centred_product(self, a: Side, b: Side, n: int) -> Tensor:
        """|X'Y|_F^2 of the centred features for every pair of layers [La, Lb]."""
        rows = []
        for block, sums in zip(
            torch.split(self.outer, a.widths), torch.split(a.sums, a.widths), strict=True
        ):
            centred = torch.addr(block, sums, b.sums, alpha=-1 / n)
            rows.append(b.blocks(centred.square().sum(0)))
        return torch.stack(rows)


@dataclass
class Moments:
    """All moments that CKA of every layer of one network with every layer of another needs."""

    n: int
    a: Side
    b: Side
    cross: Cross
    own_a: list[Cross]
    own_b: list[Cross]

    @classmethod
    def start(cls, a: Side, b: Side) -> Moments:
        """No images yet."""
        own_a, own_b = ([Cross.start(one, one) for one in side.layers()] for side in (a, b))
        return cls(0, a, b, Cross.start(a, b), own_a, own_b)

    @classmethod
    def about_mean(
        cls, widths_a: Mapping[Any, int], widths_b: Mapping[Any, int], x: Tensor, y: Tensor
    ) -> Moments:
        """No images yet, about the mean of features `x` [n, DA] and `y` [n, DB] of layers of these
        `widths`."""
        return cls.start(
            Side.start(list(widths_a.values()), x.mean(0)),
            Side.start(list(widths_b.values()), y.mean(0)),
        )

    def empty(self) -> Moments:
        """No images, of the same layers about the same origins."""
        return Moments.start(*(Side.start(side.widths, side.shift) for side in (self.a, self.b)))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of features [n, DA] and [n, DB], which are moved to the origin in place."""
        x -= self.a.shift
        y -= self.b.shift
        kx, ky = self.a.squared_norms(x), self.b.squared_norms(y)
        self.cross.add(x, y, kx, ky)
        for side, own, batch, norms in ((self.a, self.own_a, x, kx), (self.b, self.own_b, y, ky)):
            parts = zip(
                own,
                torch.split(batch, side.widths, dim=1),
                torch.split(norms, 1, dim=1),
                strict=True,
            )
            for cross, part, column in parts:
                cross.add(part, part, column, column)
            side.sums += batch.sum(0)
            side.powers += norms.sum(0)
        self.n += len(x)

    def merge(self, other: Moments) -> None:
        """Add `other`, of the same layers, wherever its origins are; it is not changed."""
        device = self.a.shift.device
        a, b = other.a.to(device), other.b.to(device)
        steps = self.a.shift - a.shift, self.b.shift - b.shift
        self.cross.add_moved(other.cross.to(device), a, b, steps, other.n)
        for mine, side, step in ((self.a, a, steps[0]), (self.b, b, steps[1])):
            mine.powers += side.moved_powers(step, other.n)
            mine.sums += side.sums - other.n * step
        _merge_own(self.own_a, other.own_a, a, steps[0], other.n)
        _merge_own(self.own_b, other.own_b, b, steps[1], other.n)
        self.n += other.n

    def hsic(self, estimator: Estimator) -> tuple[Tensor, Tensor, Tensor]:
        """HSIC of all pairs of layers [La, Lb] and of each layer with itself, [La] and [Lb] (NaN
        for a constant one)."""
        a, b, n = self.a, self.b, self.n
        steps = a.sums / n, b.sums / n
        x, y = a.moved_powers(steps[0], n), b.moved_powers(steps[1], n)
        weights = self.cross.moved_weights(a, b, steps, n)
        pairs = hsic_from_moments(
            self.cross.centred_product(a, b, n), weights, x[:, None], y, n, estimator
        )
        own: list[Tensor] = []
        for side, crosses in ((a, self.own_a), (b, self.own_b)):
            found = []
            for cross, one in zip(crosses, side.layers(), strict=True):
                power, product, own_weights = _own_centred(cross, one, n)
                value = self_hsic_of_moments(product, own_weights, power, n, estimator)[0]
                # A spread that small is the rounding of a constant.
                magnitude = power + n * (one.shift + one.sums / n).square().sum()
                found.append(torch.where(power > CONSTANT**2 * magnitude, value, torch.nan))
            own.append(torch.cat(found))
        return pairs, own[0], own[1]

    def traces(self) -> tuple[Traces, Traces]:
        """What the exact moments of the permutation null need of the centred Gram matrices of both
        sides."""
        found = []
        for side, crosses in ((self.a, self.own_a), (self.b, self.own_b)):
            parts = [
                _own_centred(cross, one, self.n)
                for cross, one in zip(crosses, side.layers(), strict=True)
            ]
            fields = (
                torch.cat([part.flatten() for part in field]).cpu()
                for field in zip(*parts, strict=True)
            )
            found.append(Traces(*fields))
        return found[0], found[1]


def _merge_own(own: list[Cross], others: list[Cross], side: Side, step: Tensor, n: int) -> None:
    parts = zip(own, others, side.layers(), torch.split(step, side.widths), strict=True)
    for cross, more, one, s in parts:
        cross.add_moved(more.to(s.device), one, one, (s, s), n)


def _own_centred(cross: Cross, one: Side, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """sum |x|^2, |X'X|_F^2 and sum |x|^4 of a layer's centred features: trace, power and diagonal
    of its Gram matrix."""
    step = one.sums / n
    weights = cross.moved_weights(one, one, (step, step), n)
    return one.moved_powers(step, n), cross.centred_product(one, one, n), weights
