"""Orthogonal Procrustes distance and its angle, after Williams et al. 2021, "Generalized Shape
Metrics on Neural Representations", and Ding et al. 2021, "Grounding Representation Similarity with
Statistical Testing"."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mixer_probe.similarity.inputs import Features, centred
from mixer_probe.similarity.intervals import Scale
from mixer_probe.similarity.measure import Measure, each_pair

# A squared distance from 2 - 2 |X'Y|_* has an error of about 1e-15, which the root would raise to
# 3e-8 near 0.
_CLOSE = 1e-4


@dataclass(frozen=True)
class Shape:
    """Centred features `x` [n, r] of Frobenius norm 1, in any orthonormal axes."""

    x: Tensor

    def take(self, order: Tensor) -> Self:
        """The same for the images in another `order` [n]."""
        return replace(self, x=self.x[order])


def procrustes(X: Features, Y: Features) -> float:
    """min |X Q - Y|_F over orthogonal Q, of `X` [n, p] and `Y` [n, q] centred and scaled to
    Frobenius norm 1.

    It is sqrt(2 - 2 |X'Y|_*), with the nuclear norm, and lies between 0 for equal shapes and
    sqrt(2) for orthogonal ones; the narrower side is filled up with zero columns. Ding et al. 2021
    report its square. A metric on shapes, unchanged by translation, isotropic scaling and
    orthogonal maps of either side.

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN
    or infinite values."""
    return PROCRUSTES(X, Y)


def angular_procrustes(X: Features, Y: Features) -> float:
    """arccos |X'Y|_* in radians, for `X` [n, p] and `Y` [n, q] as in `procrustes`, of whose
    distance it is the arc.

    Between 0 and pi / 2; the Riemannian shape distance of Williams et al. 2021. NaN and errors as
    `procrustes`."""
    return ANGULAR_PROCRUSTES(X, Y)


def compact(X: Tensor) -> Tensor:
    """The centred `X` [n, p] in axes of its own, [n, min(n, p)]: no inner product of two images
    changes."""
    x = centred(X)
    if x.shape[1] <= len(x):
        return x
    triangle: Tensor = torch.linalg.qr(x.T, mode="r").R
    return triangle.T.contiguous()


def shape(X: Tensor) -> Shape:
    """`X` [n, p] centred and scaled to Frobenius norm 1."""
    x = compact(X)
    return Shape(x / x.norm())


def _distance(x: Shape, y: Shape) -> float:
    cross = x.x.T @ y.x
    squared = 2 - 2 * float(torch.linalg.svdvals(cross).sum())
    if squared > _CLOSE:
        return math.sqrt(squared)
    # |x Q - y|_F at the best rotation Q, in the axes where it is the identity: exact for close
    # shapes.
    left, _, right = torch.linalg.svd(cross)
    shared = min(cross.shape)
    u, v = x.x @ left, y.x @ right.T
    # Beyond the shared axes the narrower side is zero.
    parts = (u[:, :shared] - v[:, :shared], u[:, shared:], v[:, shared:])
    return math.hypot(*(float(part.norm()) for part in parts))


# Fisher's z of the nuclear norm |X'Y|_*, from the angle a of which that is the cosine, without its
# loss of digits near 0.
_OF_ANGLE = Scale(lambda a: -np.log(np.tan(a / 2)), lambda z: 2 * np.arctan(np.exp(-z)))
_OF_DISTANCE = Scale(
    lambda d: _OF_ANGLE.of(2 * np.arcsin(d / 2)), lambda z: 2 * np.sin(_OF_ANGLE.back(z) / 2)
)

PROCRUSTES = Measure(
    name="procrustes",
    label="Procrustes distance",
    about=(
        "Distance that the best rotation leaves between the centred representations, scaled to "
        "norm 1."
    ),
    source="Ding et al. 2021; Williams et al. 2021",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=shape,
    table=partial(each_pair, _distance),
    best=0.0,
    highest=math.sqrt(2),
    scale=_OF_DISTANCE,
)

ANGULAR_PROCRUSTES = Measure(
    name="angular_procrustes",
    label="angular Procrustes (rad)",
    about="Angle that the best rotation leaves between the centred representations.",
    source="Williams et al. 2021",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=shape,
    # The chord d of the unit sphere has the arc 2 arcsin(d / 2), which keeps the digits that arccos
    # loses near 0.
    table=lambda a, b: 2 * torch.asin(each_pair(_distance, a, b) / 2),
    best=0.0,
    highest=math.pi / 2,
    scale=_OF_ANGLE,
)
