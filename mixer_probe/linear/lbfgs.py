"""Limited-memory BFGS for many independent smooth problems at once, each with its own line search
and convergence.

Every problem has an initial inverse Hessian H of its own, which is rescaled by its last step and
gradient change (Nocedal and Wright 2006, algorithms 7.4 and 7.5) and applied once an iteration, to
the gradient. Steps are accepted by Armijo's condition, or, where the decrease drowns in rounding,
by the approximate Wolfe condition of Hager and Zhang (2005). Problems that are done take no part in
later evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# (x [A, D], which [A]) -> values [A] and gradients [A, D], float64, of the problems `which`.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Gradients [A, D] of the problems `which` [A] -> H times them.
Inverse = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]

_ARMIJO = 1e-4
_BACKTRACKS = 25


@dataclass(frozen=True)
class Minimum:
    """Where each of B problems ended: `x` [B, D], `value`, `gradient_norm`, `iterations` and
    `converged` [B]."""

    x: Tensor
    value: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor


def largest(gradient: Tensor) -> Tensor:
    """The largest entry [A] of each gradient [A, D]."""
    return gradient.abs().amax(dim=1)


def minimise(
    objective: Objective,
    start: Tensor,
    inverse: Inverse,
    *,
    tol: float,
    max_iter: int,
    norm: Norm = largest,
    memory: int = 10,
    noise: float = 1e-12,
    patience: int | None = None,
) -> Minimum:
    """Minimise B problems of D variables from `start` [B, D] until the `norm` of the gradient is at
    most `tol`.

    `inverse` applies the initial inverse Hessians, symmetric and positive definite; `noise` is the
    relative error of the objective's values. A problem that cannot be improved, whose gradient was
    not smaller than ever for `patience` iterations, or that has had `max_iter`, ends
    unconverged."""
    run = _Run(
        objective, start, inverse, norm, memory, noise, max_iter if patience is None else patience
    )
    for _ in range(max_iter):
        if not run.keep(norm(run.gradient) > tol):
            break
        run.step()
    done = run.done
    return replace(done, converged=done.gradient_norm <= tol)


class _Run:
    """The problems that are not done (`which`), and the results of all."""

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        inverse: Inverse,
        norm: Norm,
        memory: int,
        noise: float,
        patience: int,
    ) -> None:
        self.objective, self.norm, self.memory, self.noise, self.patience = (
            objective,
            norm,
            memory,
            noise,
            patience,
        )
        self.which = torch.arange(len(start), device=start.device)
        self.x, self.inverse = start.clone(), inverse
        self.value, self.gradient = objective(self.x, self.which)
        self.newton = inverse(self.gradient, self.which)
        self.scale = torch.ones_like(self.value)
        self.best, self.waited = norm(self.gradient), torch.zeros_like(self.which)
        # Oldest first: step s, gradient change y, H y, and 1 / s'y, which is 0 for a pair that a
        # problem has not.
        self.pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.done = Minimum(
            self.x.clone(),
            self.value.clone(),
            norm(self.gradient),
            torch.zeros_like(self.which),
            self.value.isnan(),
        )

    def keep(self, active: Tensor) -> bool:
        """Go on with the `active` [A] problems, and return whether there are any."""
        if not active.all():
            self.which, self.x, self.value = self.which[active], self.x[active], self.value[active]
            self.gradient, self.newton, self.scale = (
                self.gradient[active],
                self.newton[active],
                self.scale[active],
            )
            self.best, self.waited = self.best[active], self.waited[active]
            self.pairs = [
                (s[active], y[active], hy[active], r[active]) for s, y, hy, r in self.pairs
            ]
        return bool(len(self.which))

    def step(self) -> None:
        """One iteration; problems without a step that improves them are done."""
        direction = self._two_loop_direction()
        slope = _dot(direction, self.gradient)
        # Rounding can turn a direction uphill; minus H times the gradient never points there.
        uphill = slope >= 0
        if uphill.any():
            direction = torch.where(uphill[:, None], -self.newton, direction)
            slope = _dot(direction, self.gradient)
        x, value, gradient, found = self._line_search(direction, slope)
        newton = self.inverse(gradient, self.which)
        s, y, hy = x - self.x, gradient - self.gradient, newton - self.newton
        product, curvature = _dot(s, y), _dot(y, hy)
        # Where rounding leaves no positive curvature, the pair would spoil the inverse Hessian.
        valid = found & (curvature > 0) & (product > 1e-12 * (_dot(s, s) * _dot(y, y)).sqrt())
        inverse = torch.where(valid, 1 / torch.where(valid, product, 1.0), 0.0)
        self.pairs = [*self.pairs, (s, y, hy, inverse)][-self.memory :]
        self.scale = torch.where(valid, product / torch.where(valid, curvature, 1.0), self.scale)
        self.x, self.value, self.gradient, self.newton = x, value, gradient, newton
        norms, rows = self.norm(gradient), self.which[found]
        self.done.x[rows], self.done.value[rows], self.done.gradient_norm[rows] = (
            x[found],
            value[found],
            norms[found],
        )
        self.done.iterations[rows] += 1
        self.waited = torch.where(norms < self.best, 0, self.waited + 1)
        self.best = torch.minimum(self.best, norms)
        self.keep(found & (self.waited < self.patience))

    def _two_loop_direction(self) -> Tensor:
        """Minus the inverse Hessian times the gradient, [A, D], by the two-loop recursion."""
        # H q is carried along with q.
        q, hq, weights = self.gradient.clone(), self.newton.clone(), []
        for s, y, hy, r in reversed(self.pairs):
            weight = r * _dot(s, q)
            weights.append(weight)
            q -= weight[:, None] * y
            hq -= weight[:, None] * hy
        hq *= self.scale[:, None]
        for (s, y, _, r), weight in zip(self.pairs, reversed(weights), strict=True):
            hq += (weight - r * _dot(y, hq))[:, None] * s
        return -hq

    def _line_search(
        self, direction: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, values, gradients, and for which problems [A] they are an improvement; the others
        stay where they are."""
        x, value, gradient = self.x.clone(), self.value.clone(), self.gradient.clone()
        found = torch.zeros_like(slope, dtype=torch.bool)
        length, open_ = torch.ones_like(slope), torch.arange(len(slope), device=slope.device)
        for _ in range(_BACKTRACKS):
            before, start, size = self.value[open_], slope[open_], length[open_]
            trial = self.x[open_] + size[:, None] * direction[open_]
            at, towards = self.objective(trial, self.which[open_])
            armijo = at <= before + _ARMIJO * size * start
            flat = at <= before + self.noise * before.abs()
            flat &= _dot(towards, direction[open_]) <= (2 * _ARMIJO - 1) * start
            good = (armijo | flat) & at.isfinite()
            taken = open_[good]
            x[taken], value[taken], gradient[taken], found[taken] = (
                trial[good],
                at[good],
                towards[good],
                True,
            )
            # The minimum of the parabola through value and slope at 0 and the value at `size`,
            # within [0.1, 0.5] of it.
            fraction = -start * size / (2 * (at - before - start * size))
            length[open_] = size * torch.nan_to_num(fraction, nan=0.1).clamp(0.1, 0.5)
            open_ = open_[~good]
            if not len(open_):
                break
        return x, value, gradient, found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products [A] of the rows of two [A, D]."""
    found: Tensor = torch.linalg.vecdot(a, b)
    return found
