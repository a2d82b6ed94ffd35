"""The mean loss of multinomial logistic regression of several feature matrices and penalties at
once, and its gradient.

For features Z [n, p] standardised by the training images, weights W [p, C] and intercepts b [C],
    f(W, b) = mean_i(-log softmax(Z_i W + b)[y_i]) + l2 / (2 n) |W|^2,
with C = K columns for K > 2 classes; two classes have one column, the logit of the second class, as
in scikit-learn. So n f is scikit-learn's objective on Z for C = 1 / l2, divided by its C. At W = 0
the Hessian is near c Z'Z / n + l2 / n for every class, c the mean of p (1 - p): its inverse starts
L-BFGS, whose first step is then the ridge solution. For p > n the weights are sought in the span of
the images, in coordinates where Z'Z is diagonal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixer_probe.core.memory import at_once, of_device, slices
from mixer_probe.linear.scaling import ColumnScaling, block_of, blocks


@dataclass(frozen=True)
class Design:
    """Features of one layer in the solver's form, with q variables per column of weights.

    For p <= n these are the standardised features: `narrow` [n, p] in float32, in float64 computed
    again from `raw`, and `scatter` is Z'Z / n [p, p]. For p > n they are the coordinates of the
    images in the eigenvectors `turn` [p, q] of Z'Z, in float32 and float64 (`wide`), and `scatter`
    is the eigenvalues over n [q]."""

    raw: Any
    scaling: ColumnScaling
    narrow: Tensor
    scatter: Tensor
    wide: Tensor | None = None
    turn: Tensor | None = None

    @classmethod
    def of(cls, X: Any, standardize: bool, device: torch.device) -> Design:
        """The design of finite features `X` [n, p]."""
        n, p = X.shape
        scaling = ColumnScaling.of_columns(X, standardize, device)
        if p <= n:
            narrow = torch.empty(n, p, dtype=torch.float32, device=device)
            for rows in blocks(n, p):
                narrow[rows] = scaling.apply(block_of(X, rows, device)).float()
            # Only the first direction comes from the scatter: float32 is enough.
            with exact_float32():
                return cls(X, scaling, narrow, (narrow.T @ narrow).double() / n)
        Z = scaling.apply(block_of(X, slice(None), device))
        values, vectors = torch.linalg.eigh(Z @ Z.T)
        keep = values > n * np.finfo(float).eps * values[-1].clamp(min=0)
        root, vectors = values[keep].sqrt(), vectors[:, keep]
        wide = vectors * root
        return cls(X, scaling, wide.float(), values[keep] / n, wide, (Z.T @ vectors) / root)

    @property
    def n(self) -> int:
        """Images."""
        return len(self.narrow)

    @property
    def variables(self) -> int:
        """q."""
        return self.narrow.shape[1]

    def rows(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some images [b, q]."""
        if dtype == torch.float32:
            return self.narrow[rows]
        if self.wide is not None:
            return self.wide[rows]
        return self.scaling.apply(block_of(self.raw, rows, self.narrow.device))

    def weights(self, W: Tensor) -> Tensor:
        """Weights [p, columns] of the standardised features, of `W` [q, columns]."""
        return W if self.turn is None else self.turn @ W

    def inverses(self, spread: float, l2: Tensor) -> Tensor:
        """(spread * scatter + l2)^-1 for penalties over n [m]: float32 matrices [m, q, q], or their
        diagonals [m, q, 1]."""
        if self.turn is not None:
            return (1 / (spread * self.scatter + l2[:, None])).float()[:, :, None]
        eye = torch.eye(self.variables, dtype=torch.float64, device=l2.device)
        found = []
        for penalty in l2:
            matrix = spread * self.scatter + penalty * eye
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if failed:
                # Never far from singular: rounding made an eigenvalue negative, which is lifted.
                factor = torch.linalg.cholesky(matrix + matrix.diagonal().mean() * 1e-5 * eye)
            found.append(torch.cholesky_inverse(factor))
        return torch.stack(found).float()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products with float32's precision, whatever is set for networks (no TF32, no
    bfloat16).

    The setting is global: it is restored when the last of several overlapping blocks ends."""
    _enter(+1)
    try:
        yield
    finally:
        _enter(-1)


_lock = threading.Lock()
_inside = 0
_before = "highest"


def _enter(step: int) -> None:
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.get_float32_matmul_precision()
        _inside += step
        torch.set_float32_matmul_precision("highest" if _inside else _before)


@dataclass(frozen=True)
class Loss:
    """The objective of the module for L designs of q variables and m penalties: problem i has
    design i // m and penalty i % m.

    A row of variables is [q + 1, C] flattened, the last row the intercepts. `labels` [n], `l2` [m]
    divided by n. Products are in `dtype`, sums of losses and all that the solver sees in
    float64."""

    designs: tuple[Design, ...]
    labels: Tensor
    columns: int
    l2: Tensor
    dtype: torch.dtype

    def __call__(self, x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Values [A] and gradients [A, (q + 1) C] of the problems `which` [A] at `x`."""
        value, gradient = torch.empty(len(x), dtype=x.dtype, device=x.device), torch.empty_like(x)
        owner = which // len(self.l2)
        for i in sorted(set(owner.tolist())):
            # All columns of the problems of one design are multiplied at once.
            design, own = self.designs[i], owner == i
            l2 = self.l2[which[own] % len(self.l2)]
            parts = x[own].view(len(l2), design.variables + 1, self.columns)
            W = parts[:, :-1]
            # [q, A C], problem by problem.
            flat = W.transpose(0, 1).flatten(1).to(self.dtype)
            loss, by_weights, by_bias = self._sums(design, flat, parts[:, -1].to(self.dtype))
            by_weights = (
                by_weights.view(design.variables, len(l2), self.columns).transpose(0, 1).double()
                / design.n
            )
            found = torch.cat(
                [by_weights + l2[:, None, None] * W, by_bias[:, None] / design.n], dim=1
            )
            value[own], gradient[own] = (
                loss / design.n + l2 / 2 * W.square().sum((1, 2)),
                found.flatten(1),
            )
        return value, gradient

    def _sums(self, design: Design, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over images of the loss [A], and of its gradients by the weights [q, A C] and by the
        intercepts [A, C]."""
        loss = torch.zeros(len(bias), dtype=torch.float64, device=bias.device)
        by_weights = torch.zeros_like(weights)
        by_bias = torch.zeros_like(bias, dtype=torch.float64)
        # A block of logits stays in the cache between the two products.
        size = at_once(8 * bias.numel(), of_device(bias.device), least=256)
        with exact_float32():
            for rows in slices(design.n, size):
                Z = design.rows(rows, self.dtype)
                logits = torch.addmm(bias.flatten(), Z, weights).view(len(Z), *bias.shape)
                losses, errors = losses_and_errors(logits, self.labels[rows])
                loss += losses.sum(0, dtype=torch.float64)
                by_bias += errors.sum(0, dtype=torch.float64)
                by_weights.addmm_(Z.T, errors.flatten(1))
        return loss, by_weights, by_bias


def losses_and_errors(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """-log p[y], [b, A], and its gradient by the logits [b, A, C], which are destroyed."""
    if logits.shape[-1] == 1:
        target = labels.to(logits.dtype)[:, None]
        z = logits[..., 0]
        # softplus of torch is cut off at 20, which float64 would notice.
        return torch.logaddexp(z, torch.zeros_like(z)) - target * z, (torch.sigmoid(z) - target)[
            ..., None
        ]
    own = labels[:, None, None].expand(-1, logits.shape[1], 1)
    logs = F.log_softmax(logits, dim=-1)
    losses = -logs.gather(2, own)[..., 0]
    errors = logs.exp_()
    return losses, errors.scatter_add_(2, own, torch.full_like(own, -1, dtype=errors.dtype))


@dataclass(frozen=True)
class StartingHessian:
    """The inverse Hessians at the start of `Loss` problems: `inverses` [L m, q, q] or [L m, q, 1],
    and 1 / `spread` [C] of the intercepts."""

    inverses: Tensor
    spread: Tensor

    @classmethod
    def of(cls, designs: tuple[Design, ...], spread: Tensor, l2: Tensor) -> StartingHessian:
        """For p (1 - p) of the classes `spread` [C] and penalties over n `l2` [m]."""
        return cls(
            torch.cat([design.inverses(float(spread.mean()), l2) for design in designs]), spread
        )

    def __call__(self, gradient: Tensor, which: Tensor) -> Tensor:
        """The steps [A, (q + 1) C] for gradients of the problems `which` [A]."""
        parts = gradient.view(len(gradient), -1, len(self.spread))
        inverse, slopes = self.inverses[which], parts[:, :-1].float()
        with exact_float32():
            steps = inverse * slopes if inverse.shape[-1] == 1 else inverse @ slopes
        return torch.cat([steps.double(), parts[:, -1:] / self.spread], dim=1).flatten(1)


def starting_point(labels: Tensor, classes: int, variables: int) -> tuple[Tensor, Tensor]:
    """Variables [(q + 1) C] without weights, whose intercepts give the class frequencies p, and p
    (1 - p) [C]."""
    frequencies = torch.bincount(labels, minlength=classes).double() / len(labels)
    if classes == 2:
        bias = (frequencies[1] / frequencies[0]).log()[None]
        spread = (frequencies[0] * frequencies[1])[None]
    else:
        bias = frequencies.log() - frequencies.log().mean()
        spread = frequencies * (1 - frequencies)
    x = torch.zeros(variables + 1, len(bias), dtype=torch.float64, device=labels.device)
    x[-1] = bias
    return x.flatten(), spread
