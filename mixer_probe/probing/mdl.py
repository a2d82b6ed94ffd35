"""Minimum description length of labels given representations: the online (prequential) code.

A sender and a receiver both have the images' representations. The sender transmits the labels block
by block, each under the probabilities of a probe fitted to the blocks before it; the first block of
t1 labels takes t1 log2 K bits. The total, L = t1 log2 K + sum over blocks of -log2 p(labels of the
block), counts how good the final probe is and how few labels it took to get there (Blier and
Ollivier 2018; Voita and Titov 2020, section 2.2.2). Compression is n log2 K / L.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
from scipy import special

from mixer_probe.capture import Representations
from mixer_probe.core.errors import ImagesError, MeasureError, UnconvergedWarning
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.logistic import logistic_path
from mixer_probe.linear.ridge import checked_penalties
from mixer_probe.linear.scaling import ColumnScaling, block_of
from mixer_probe.linear.stratification import stratified
from mixer_probe.models.layer import Layer, spread
from mixer_probe.probing.controls import grouping_of, random_groupings
from mixer_probe.probing.runs import LAYER, non_finite, train_labels, warn_non_finite
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix
from mixer_probe.stats import mean_interval

# Fractions of the images at which Voita and Titov refit the probe.
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
# Penalties per training image, so that one value means the same for small and large blocks.
L2_PER_IMAGE = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

# What a study codes, so that a network takes seconds: `code_sample`, and fewer blocks and
# penalties, which change compressions by much less than the width of their interval.
SAMPLE_IMAGES, SAMPLE_LAYERS = 400, 4
SAMPLE_OPTIONS: dict[str, Any] = {
    "fractions": (0.0625, 0.125, 0.25, 0.5, 1.0),
    "l2": (0.1, 1.0, 10.0),
}
# Fraction of the weights that is redistributed evenly among the penalties after every block (fixed
# share).
_FIXED_SHARE = 0.1

# Log-probabilities [m, new, K] of new images by classifiers fitted to features and labels, for m
# penalties: (X [t, p], labels [t], l2 [m], X of the new images) -> array.
LogProbabilities = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class OnlineCode(Result):
    """Description length in bits of the labels of `n` images given each layer, [L, O] over orders
    of the images.

    `compression` [L] is `uniform`, n log2 K, over the mean of `bits`: 1 for an uninformative
    representation. `low` and `high` are its 95 % interval over the random orders of these images.
    `block_bits` [L, O, B] splits `bits`: the labels up to `ends[0]` by the uniform code, and those
    up to each later one by probes of all before it. `l2` [L, O, B - 1] is the penalty per image
    with the largest weight in that block. NaN marks layers with NaN or infinite features."""

    title: ClassVar[str] = "Description length"
    frame = Frame(
        "layer",
        f"""{LAYER} bits=bits.mean compression low high uniform_bits=uniform last_block orders=order
        n classes""",
    )

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    bits: Annotated[np.ndarray, "layer", "order"]
    compression: Annotated[np.ndarray, "layer"]
    low: Annotated[np.ndarray, "layer"]
    high: Annotated[np.ndarray, "layer"]
    uniform: float
    block_bits: Annotated[np.ndarray, "layer", "order", "block"]
    ends: Annotated[tuple[int, ...], "block"]
    l2: Annotated[np.ndarray, "layer", "order", "block - 1"]
    n: int
    classes: int
    groups: tuple[str, ...]
    seed: int
    reduce: str
    estimator: str = "multinomial logistic regression, l2 weighted by the code of the blocks before"

    @property
    def last_block(self) -> Annotated[np.ndarray, "layer"]:
        """The cost of one label (bits) in the last block, given all blocks before [L]."""
        last = self.ends[-1] - (self.ends[-2] if len(self.ends) > 1 else 0)
        return np.asarray(self.block_bits[:, :, -1].mean(axis=1) / last)


@checked(MeasureError)
def code_sample(
    reps: Representations, n: int = SAMPLE_IMAGES, layers: int = SAMPLE_LAYERS, seed: int = 0
) -> Representations:
    """At most `n` images, in proportion to their classes, and at most `layers` layers, evenly
    spread: a code fits a probe again for every block of images. Raises ImagesError without
    labels."""
    y = train_labels(reps)
    names = [reps.layers[i].name for i in spread(reps.layers, layers)]
    return reps.only(names).take(stratified(y, min(len(y), n), seed))


@checked(MeasureError)
def online_code(
    reps_train: RepresentationsLike,
    *,
    groups: Mapping[str, str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    l2: Sequence[float] = L2_PER_IMAGE,
    orders: int = 3,
    seed: int = 0,
    probabilities: LogProbabilities | None = None,
) -> OnlineCode:
    """The online code of the labels given every layer, or of the `groups` (class name -> group) of
    the labels.

    `fractions` are the ends of the blocks as fractions of the images, the last 1; those that round
    to no image are left out. `orders` random orders of the images are coded, drawn by `seed`. `l2`
    are penalties per image: a block has the mixture of their probabilities, weighted by how well
    they coded the blocks before, of which a tenth is redistributed evenly so that the code can
    switch to another penalty (fixed share; Herbster and Warmuth 1998). A block does not choose its
    own probe. Features are standardised over all images, which both sides have, without labels. A
    class without images so far has probability 1 / (t + K) after t images; the probe distributes
    the rest over the others. `probabilities` replaces the logistic regression.

    Raises ImagesError for missing labels and one class, and what `control_task` raises for groups;
    MeasureError for fractions that do not ascend to 1, penalties that are not positive, and orders
    < 1."""
    labels = train_labels(reps_train)
    known = np.unique(labels)
    if len(known) < 2:
        raise ImagesError(
            "all images are of one class, whose labels cost nothing: take two classes or more"
        )
    if groups is None:
        names: tuple[str, ...] = ()
        y = np.searchsorted(known, labels)
    else:
        names, grouping = grouping_of(reps_train, known, groups)
        y = grouping[labels]
    ends = block_ends(fractions, len(y))
    found = _code_layers(reps_train, y[:, None], ends, l2, orders, seed, probabilities)
    blocks = np.stack([bits[:, 0] for bits, _ in found])
    bits, uniform = blocks.sum(axis=2), len(y) * math.log2(y.max() + 1)
    _, low, high = mean_interval(bits)
    # A code has a positive length, however far two orders may lie apart.
    low = np.maximum(low, 0)
    return OnlineCode(
        model=reps_train.model,
        images=reps_train.images,
        layers=reps_train.layers,
        bits=bits,
        compression=uniform / bits.mean(axis=1),
        low=uniform / high,
        high=np.divide(uniform, low, out=np.full_like(low, np.inf), where=low > 0),
        uniform=uniform,
        block_bits=blocks,
        ends=tuple(int(end) for end in ends),
        l2=np.stack([chosen[:, 0] for _, chosen in found]),
        n=len(y),
        classes=int(y.max()) + 1,
        groups=names,
        seed=seed,
        reduce=reps_train.reduce,
    )


@dataclass(frozen=True)
class ControlCode(Result):
    """Description length in bits of the semantic groups of the images given each layer, [L, O], and
    of random groupings of their classes, [L, S, O], over orders of the images; `uniform` is that of
    the uniform code.

    `gap` [L] is the mean difference in bits per image and `ratio` [L] the quotient: selectivity in
    code length."""

    title: ClassVar[str] = "Description length of control tasks"
    frame = Frame(
        "layer",
        f"""{LAYER} bits=bits.mean control_bits=control_bits.mean gap_per_image=gap ratio
        compression control_compression uniform_bits=uniform controls=control orders=order n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    groups: Annotated[tuple[str, ...], "group"]
    semantic: Annotated[np.ndarray, "class"]
    controls: Annotated[np.ndarray, "control", "class"]
    bits: Annotated[np.ndarray, "layer", "order"]
    control_bits: Annotated[np.ndarray, "layer", "control", "order"]
    uniform: float
    n: int
    seed: int
    reduce: str
    estimator: str = "multinomial logistic regression, l2 weighted by the code of the blocks before"

    @property
    def gap(self) -> Annotated[np.ndarray, "layer"]:
        """Additional bits per image [L] of a random grouping over the semantic one."""
        return np.asarray((self.control_bits.mean(axis=(1, 2)) - self.bits.mean(axis=1)) / self.n)

    @property
    def ratio(self) -> Annotated[np.ndarray, "layer"]:
        """Length of the code of a random grouping over that of the semantic one, [L]."""
        return np.asarray(self.control_bits.mean(axis=(1, 2)) / self.bits.mean(axis=1))

    @property
    def compression(self) -> Annotated[np.ndarray, "layer"]:
        """Compression of the semantic grouping, [L]."""
        return np.asarray(self.uniform / self.bits.mean(axis=1))

    @property
    def control_compression(self) -> Annotated[np.ndarray, "layer"]:
        """Compression of random groupings by their mean length, [L]."""
        return np.asarray(self.uniform / self.control_bits.mean(axis=(1, 2)))


@checked(MeasureError)
def control_code(
    reps_train: RepresentationsLike,
    groups: Mapping[str, str] | None = None,
    *,
    controls: int = 10,
    fractions: Sequence[float] = FRACTIONS,
    l2: Sequence[float] = L2_PER_IMAGE,
    orders: int = 1,
    seed: int = 0,
    probabilities: LogProbabilities | None = None,
) -> ControlCode:
    """The online code of the semantic groups and of random groupings, the same as `control_task`
    draws by the same `seed`.

    The other arguments are those of `online_code`, and so are the errors, with those of
    `control_task` for groups."""
    y = train_labels(reps_train)
    names, semantic = grouping_of(reps_train, np.unique(y), groups)
    drawn, _ = random_groupings(semantic, controls, seed)
    tasks, ends = np.vstack([semantic, drawn])[:, y].T, block_ends(fractions, len(y))
    found = _code_layers(reps_train, tasks, ends, l2, orders, seed, probabilities)
    bits = np.stack([blocks.sum(axis=2) for blocks, _ in found])
    return ControlCode(
        model=reps_train.model,
        images=reps_train.images,
        layers=reps_train.layers,
        groups=names,
        semantic=semantic,
        controls=drawn,
        bits=bits[:, :, 0],
        control_bits=bits[:, :, 1:].swapaxes(1, 2),
        uniform=len(y) * math.log2(len(names)),
        n=len(y),
        seed=seed,
        reduce=reps_train.reduce,
    )


def block_ends(fractions: Sequence[float], n: int) -> np.ndarray:
    """Where the blocks end, in images [B]. Raises MeasureError unless `fractions` ascend from above
    0 to 1."""
    shares = np.asarray(fractions, dtype=np.float64)
    if len(shares) == 0 or shares[0] <= 0 or shares[-1] != 1 or (np.diff(shares) <= 0).any():
        raise MeasureError(f"fractions must ascend from above 0 to 1, got {tuple(fractions)}")
    ends = np.unique(np.round(shares * n).astype(int))
    return ends[ends > 0]


def _code_layers(
    reps: RepresentationsLike,
    tasks: np.ndarray,
    ends: np.ndarray,
    l2: Sequence[float],
    orders: int,
    seed: int,
    probabilities: LogProbabilities | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every layer the bits [O, t, B] of the labels of each of `tasks` [n, t], and the penalties
    chosen [O, t, B - 1]."""
    penalties, random = np.unique(checked_penalties(l2)), np.random.default_rng(seed)
    permutations = [random.permutation(len(tasks)) for _ in range(orders)]
    found = []
    for layer in reps.layers:
        X = layer_matrix(reps, layer.name)
        if warn_non_finite(layer.name, non_finite(reps, layer.name), "no code given"):
            shape = (orders, tasks.shape[1], len(ends))
            found.append((np.full(shape, np.nan), np.full((*shape[:2], len(ends) - 1), np.nan)))
            continue
        # Over all images: two would give deviations near zero, and new images far from both.
        Z = ColumnScaling.of_columns(X).apply(block_of(X, slice(None))).numpy()
        code = [
            [_code(Z[order], task[order], ends, penalties, probabilities) for task in tasks.T]
            for order in permutations
        ]
        found.append(
            (
                np.array([[c[0] for c in row] for row in code]),
                np.array([[c[1] for c in row] for row in code]),
            )
        )
    return found


def _code(
    X: np.ndarray,
    y: np.ndarray,
    ends: np.ndarray,
    penalties: np.ndarray,
    probabilities: LogProbabilities | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Bits [B] of the labels `y` [n] of each block, and the penalty of largest weight of each block
    but the first."""
    classes, m = int(y.max()) + 1, len(penalties)
    bits, heaviest, weights = [ends[0] * math.log2(classes)], [], np.full(m, -math.log(m))
    for t, end in pairwise(ends):
        known, labels = np.unique(y[:t], return_inverse=True)
        # A class without images so far has probability 1 / (t + K); a single known one has all of
        # the rest without a fit.
        log = np.full((m, end - t, classes), -math.log(t + classes))
        fitted = (
            (probabilities or logistic_probabilities)(X[:t], labels, penalties * t, X[t:end])
            if len(known) > 1
            else 0.0
        )
        log[:, :, known] = fitted + math.log((t + len(known)) / (t + classes))
        joint = weights + log[:, np.arange(end - t), y[t:end]].sum(axis=1)
        cost = -special.logsumexp(joint)
        bits.append(cost / math.log(2))
        # Of equals the largest, the simplest probe.
        heaviest.append(penalties[last_best(weights)])
        weights = np.logaddexp(
            math.log(1 - _FIXED_SHARE) + joint + cost, math.log(_FIXED_SHARE / m)
        )
    return np.array(bits), np.array(heaviest)


def logistic_probabilities(
    X: np.ndarray, y: np.ndarray, l2: np.ndarray, X_new: np.ndarray
) -> np.ndarray:
    """Log-probabilities [m, new, K] by multinomial logistic regression on features as they are, for
    ascending `l2` [m].

    The fit minimises the sum of -log p over the images plus l2 / 2 |W|^2; the intercepts are
    free."""
    with warnings.catch_warnings():
        # Any probabilities define a code, those of a fit that stopped early too.
        warnings.simplefilter("ignore", UnconvergedWarning)
        return logistic_path(X, y, l2, standardize=False, tol=1e-4, max_iter=200).scores(X_new)
