"""`MinibatchCKA`: CKA from batches alone, for features too wide for moments and images too many for
Gram matrices.

Nguyen, Raghu and Kornblith 2021 ("Do Wide and Deep Networks Learn the Same Things?", eq. 5): HSIC_1
does not depend in expectation on the number of images, so those of the batches are summed, and the
ratio is taken of the sums. A mean of the batches' ratios would be something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import SmallTensors, at_once, slices
from mixer_probe.core.validate import checked
from mixer_probe.similarity.alignment import ratio
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, centre_gram, divisor
from mixer_probe.similarity.inputs import Features, as_matrix, batch_size, is_constant
from mixer_probe.similarity.intervals import Interval, batch_interval, check_resamples
from mixer_probe.similarity.matrix import SimilarityMatrix, plain_matrix
from mixer_probe.similarity.nulls import Null, null_of
from mixer_probe.stats import check_permutations

_FEWEST_BATCHES = 12


@dataclass(frozen=True)
class _Batch:
    """HSIC of a batch, times its number of images: of all pairs of layers, and of each with
    itself."""

    n: int
    cross: Annotated[Tensor, "layer_a", "layer_b"]
    own_a: Annotated[Tensor, "layer_a"]
    own_b: Annotated[Tensor, "layer_b"]


@checked(MeasureError)
@dataclass(eq=False)
class MinibatchCKA(Accumulator):
    """Accumulates unbiased linear CKA of all pairs of layers from batches that have no image in
    common.

    >>> c = MinibatchCKA()
    >>> c.update({"blocks.0": X}, {"layer1.0": Y})   # once a batch, features [n, p] of any width
    >>> matrix = c.compute()

    Every batch has the weight of its images. The batches must be random images: those sorted by
    class would compare images of one class only. The null pairs the images within each batch at
    random, the interval leaves out each batch in turn. A batch of fewer than 4 images is left out,
    and counted in `left_out`."""

    permutations: int = 100
    seed: int = 0
    left_out: int = state_field(0)
    _widths: tuple[dict[str, int], dict[str, int]] = state_field(lambda: ({}, {}))
    _found: list[_Batch] = state_field(list)
    _null: Annotated[Tensor | None, "permutation", "layer_a", "layer_b"] = state_field(None)

    def __post_init__(self) -> None:
        check_permutations(self.permutations)
        self._together = SmallTensors(torch.float64, 2**16)

    @property
    def n(self) -> int:
        """Images so far."""
        return sum(batch.n for batch in self._found)

    def update(self, a: Mapping[str, Features], b: Mapping[str, Features]) -> None:
        """Add a batch: features [n, p] by layer name, of both networks and for the same images.

        Raises MeasureError if the layers hold different numbers of images, or differ from those of
        the first batch."""
        sides = [
            {name: gram_of_batch(as_matrix(X, f"layer '{name}'")) for name, X in side.items()}
            for side in (a, b)
        ]
        widths = [{name: int(np.shape(X)[1]) for name, X in side.items()} for side in (a, b)]
        self.update_grams(sides[0], sides[1], widths[0], widths[1])

    def update_grams(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        widths_a: dict[str, int],
        widths_b: dict[str, int],
    ) -> None:
        """As `update`, from what `gram_of_batch` made of the features; `widths` are the features of
        each layer."""
        n = batch_size(a, b)
        if not any(self._widths):
            self._widths = dict(widths_a), dict(widths_b)
        if (widths_a, widths_b) != self._widths:
            raise MeasureError("the layers of all batches must be the same, with the same features")
        if n < MINIMUM_IMAGES:
            self.left_out += n
            return
        left, right = (
            torch.stack([side[name] for name in widths]).flatten(1)
            for side, widths in zip((a, b), self._widths)
        )
        own = [n * side.square().sum(1).cpu() / divisor(n, "unbiased") for side in (left, right)]
        cross = n * (left @ right.T).cpu() / divisor(n, "unbiased")
        if self.permutations:
            # HSIC of the batch [permutations, La, Lb] under random pairings of its images.
            generator = np.random.default_rng([self.seed, len(self._found)])
            orders = torch.from_numpy(generator.random((self.permutations, n)).argsort(axis=1)).to(
                left.device
            )
            if self._null is None:
                self._null = torch.zeros(
                    self.permutations, len(left), len(right), dtype=torch.float64
                )
            grams = right.reshape(len(right), n, n)
            for part in slices(self.permutations, at_once(right.nbytes)):
                drawn = orders[part]
                shuffled = grams[:, drawn[:, :, None], drawn[:, None, :]].flatten(2)
                null = torch.einsum("ak,bsk->sab", left, shuffled).cpu()
                self._null[part] += n * null / divisor(n, "unbiased")
        self._found.append(_Batch(n, *map(self._together, (cross, *own))))

    def merge(self, other: MinibatchCKA) -> None:
        """Add the batches of `other`; it stays as it is.

        Raises MeasureError if the layers or the number of permutations differ."""
        if not any(other._widths):
            return
        if not any(self._widths):
            self._widths = other._widths
        if self._widths != other._widths or self.permutations != other.permutations:
            raise MeasureError("the two accumulators hold different layers or permutations")
        self._found += other._found
        self.left_out += other.left_out
        if other._null is not None:
            self._null = other._null.clone() if self._null is None else self._null + other._null

    @checked(MeasureError)
    def compute(self, resamples: int = 100) -> SimilarityMatrix:
        """CKA of every pair of layers over all batches so far; more may follow.

        The interval is there from 12 batches on. Raises MeasureError without any batch of 4 images
        or more."""
        check_resamples(resamples)
        if not self._found:
            raise MeasureError(
                f"no batch of {MINIMUM_IMAGES} images or more: similarity needs at least "
                f"{MINIMUM_IMAGES}"
            )
        cross, own_a, own_b = (
            torch.stack([getattr(batch, name) for batch in self._found])
            for name in ("cross", "own_a", "own_b")
        )
        values = ratio(cross.sum(0), own_a.sum(0), own_b.sum(0)).numpy()
        interval: Interval | None = None
        if len(self._found) >= _FEWEST_BATCHES and resamples:
            interval = batch_interval(values, without_each(cross, own_a, own_b).numpy())
        null: Null | None = None
        if self._null is not None:
            drawn = ratio(self._null, own_a.sum(0), own_b.sum(0)).numpy()
            null = null_of(drawn, method="random pairings within each batch")
        return plain_matrix(
            values, self._widths, "unbiased", self.n, null, interval, "minibatch", self.seed
        )


def gram_of_batch(X: Tensor) -> Tensor:
    """U-centred Gram matrix [n, n] in float64 of a batch's features [n, p]; NaN where they are
    constant or not finite."""
    X = X.to(torch.float64)
    if len(X) < MINIMUM_IMAGES:
        return X.new_zeros(len(X), len(X))
    if not torch.isfinite(X).all():
        return X.new_full((len(X), len(X)), torch.nan)
    if is_constant(X):
        # No pair of these images differs, which other batches may make up for.
        return X.new_zeros(len(X), len(X))
    X = X - X.mean(0)
    return centre_gram(X @ X.T, "unbiased")


def without_each(cross: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """CKA [b, La, Lb] without one batch each, from the HSIC of all batches."""
    left, right = ((side.sum(0) - side).sqrt() for side in (own_a, own_b))
    return (cross.sum(0) - cross) / (left[:, :, None] * right[:, None, :])


def batches_of(n: int, size: int, seed: int) -> Sequence[np.ndarray]:
    """Random disjoint batches of `n` images, sorted within; the last may be smaller."""
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(order[start : start + size]) for start in range(0, n, size)]
