"""Minimum description length of labels given representations: the online (prequential) code.

A sender and a receiver both have the images' representations. The sender transmits the labels block by block, each under the
probabilities of a probe fitted to the blocks before it; the first block of t1 labels costs t1 log2 K bits. The total,
L = t1 log2 K + sum over blocks of -log2 p(labels of the block), counts how good the final probe is and how few labels it took to
get there (Blier and Ollivier 2018; Voita and Titov 2020, section 2.2.2). Compression is n log2 K / L.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy import special

from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning, UnconvergedWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.linear.logistic import logistic_path
from mixer_probe.linear.scaling import ColumnScaling, block_of
from mixer_probe.models.layer import Layer
from mixer_probe.probing.controls import grouping_of, random_groupings
from mixer_probe.probing.runs import train_labels
from mixer_probe.probing.tables import layer_columns
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix
from mixer_probe.stats import mean_interval

# Shares of the images at which Voita and Titov refit the probe.
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
# Penalties a training image, so that one value means the same for small and large blocks.
L2_PER_IMAGE = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

# Part of the weights that is shared out evenly among the penalties after every block.
_SHARE = 0.1

# Log-probabilities [m, new, K] of new images by classifiers fitted to features and labels, for m penalties:
# (X [t, p], labels [t], l2 [m], X of the new images) -> array.
LogProbabilities = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class OnlineCode(Result):
    """Bits that the labels of `n` images cost given each layer, [L, O] over orders of the images.

    `compression` [L] is `uniform`, n log2 K, over the mean of `bits`: 1 says that the representation tells nothing. `low` and
    `high` are its 95 % interval over the random orders of these images. `block_bits` [L, O, B] splits `bits`: the
    labels up to `ends[0]` by the uniform code, and those up to each later one by probes of all before it. `l2` [L, O, B - 1] is
    the penalty an image with the largest weight in that block. NaN marks layers with NaN or infinite features."""

    title: ClassVar[str] = "Description length"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    bits: np.ndarray
    compression: np.ndarray
    low: np.ndarray
    high: np.ndarray
    uniform: float
    block_bits: np.ndarray
    ends: tuple[int, ...]
    l2: np.ndarray
    n: int
    classes: int
    groups: tuple[str, ...]
    seed: int
    reduce: str
    estimator: str = "multinomial logistic regression, l2 weighted by the code of the blocks before"

    def to_frame(self) -> pd.DataFrame:
        """One layer a row. `last_block` is the price of one label (bits) when half of all or more are known."""
        last = self.ends[-1] - (self.ends[-2] if len(self.ends) > 1 else 0)
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers),
                "bits": self.bits.mean(axis=1),
                "compression": self.compression,
                "low": self.low,
                "high": self.high,
                "uniform_bits": self.uniform,
                "last_block": self.block_bits[:, :, -1].mean(axis=1) / last,
                "orders": self.bits.shape[1],
                "n": self.n,
                "classes": self.classes,
            }
        )


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
    """The online code of the labels given every layer, or of the `groups` (class name -> group) of the labels.

    `fractions` are the ends of the blocks as shares of the images, the last 1; those that round to no image are left out.
    `orders` random orders of the images are coded, drawn by `seed`. `l2` are penalties, an image: a block has the mixture of
    their probabilities, weighted by how well they coded the blocks before, of which a tenth is shared out evenly so that the
    code can move on to another penalty (fixed share; Herbster and Warmuth 1998). Nothing of a block chooses its own probe.
    Features are standardised over all images, which both sides have; labels of none are used for that. A class that no image
    has shown yet has probability 1 / (t + K) after t images; the others share the rest as the probe says.
    `probabilities` replaces the logistic regression.

    Raises ImagesError for missing labels and one class, and what `control_task` raises for groups; MeasureError for fractions
    that do not ascend to 1, penalties that are not positive, and orders < 1."""
    y, names = _answers(reps_train, groups)
    ends = block_ends(fractions, len(y))
    penalties = _penalties(l2)
    found = _code_layers(reps_train, y[:, None], ends, penalties, orders, seed, probabilities or logistic_probabilities)
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
    """Bits that the semantic groups of the images cost given each layer, [L, O], and random groupings of their classes,
    [L, S, O], over orders of the images; all under the uniform code cost `uniform`.

    `gap` [L] is the mean difference in bits an image and `ratio` [L] the quotient: selectivity in the currency of code length."""

    title: ClassVar[str] = "Description length of control tasks"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    groups: tuple[str, ...]
    semantic: np.ndarray
    controls: np.ndarray
    bits: np.ndarray
    control_bits: np.ndarray
    uniform: float
    n: int
    seed: int
    reduce: str
    estimator: str = "multinomial logistic regression, l2 weighted by the code of the blocks before"

    @property
    def gap(self) -> np.ndarray:
        """Bits an image [L] that a random grouping costs more than the semantic one."""
        gap: np.ndarray = (self.control_bits.mean(axis=(1, 2)) - self.bits.mean(axis=1)) / self.n
        return gap

    @property
    def ratio(self) -> np.ndarray:
        """How many times as long [L] the code of a random grouping is."""
        ratio: np.ndarray = self.control_bits.mean(axis=(1, 2)) / self.bits.mean(axis=1)
        return ratio

    @property
    def compression(self) -> np.ndarray:
        """Of the semantic grouping, [L]."""
        compression: np.ndarray = self.uniform / self.bits.mean(axis=1)
        return compression

    def to_frame(self) -> pd.DataFrame:
        """One layer a row."""
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers),
                "bits": self.bits.mean(axis=1),
                "control_bits": self.control_bits.mean(axis=(1, 2)),
                "gap_per_image": self.gap,
                "ratio": self.ratio,
                "compression": self.compression,
                "control_compression": self.uniform / self.control_bits.mean(axis=(1, 2)),
                "uniform_bits": self.uniform,
                "controls": self.control_bits.shape[1],
                "orders": self.bits.shape[1],
                "n": self.n,
            }
        )


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
    """The online code of the semantic groups and of random groupings, the same as `control_task` draws by the same `seed`.

    The other arguments are those of `online_code`, and so are the errors, with those of `control_task` for groups."""
    y = train_labels(reps_train)
    names, semantic = grouping_of(reps_train, np.unique(y), groups)
    drawn, _ = random_groupings(semantic, controls, seed)
    answers = np.vstack([semantic, drawn])[:, y].T
    ends, penalties = block_ends(fractions, len(y)), _penalties(l2)
    found = _code_layers(reps_train, answers, ends, penalties, orders, seed, probabilities or logistic_probabilities)
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


def _answers(reps: RepresentationsLike, groups: Mapping[str, str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """What is coded for each image [n], from 0 on, and the names of the groups if it is those."""
    y = train_labels(reps)
    classes = np.unique(y)
    if len(classes) < 2:
        raise ImagesError("all images are of one class, whose labels cost nothing: take two classes or more")
    if groups is None:
        return np.searchsorted(classes, y), ()
    names, grouping = grouping_of(reps, classes, groups)
    return grouping[y], names


def _penalties(l2: Sequence[float]) -> np.ndarray:
    penalties = np.unique(np.asarray(l2, dtype=np.float64))
    if len(penalties) == 0 or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise MeasureError(f"l2 must be a list of positive numbers, got {l2}")
    return penalties


def block_ends(fractions: Sequence[float], n: int) -> np.ndarray:
    """Where the blocks end, in images [B]. Raises MeasureError unless `fractions` ascend from above 0 to 1."""
    shares = np.asarray(fractions, dtype=np.float64)
    if len(shares) == 0 or shares[0] <= 0 or shares[-1] != 1 or (np.diff(shares) <= 0).any():
        raise MeasureError(f"fractions must ascend from above 0 to 1, got {tuple(fractions)}")
    ends = np.unique(np.round(shares * n).astype(int))
    return ends[ends > 0]


def _code_layers(
    reps: RepresentationsLike,
    answers: np.ndarray,
    ends: np.ndarray,
    penalties: np.ndarray,
    orders: int,
    seed: int,
    probabilities: LogProbabilities,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every layer the bits [O, t, B] of each task, and the penalties chosen [O, t, B - 1]."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(len(answers)) for _ in range(orders)]
    found = []
    for layer in reps.layers:
        X = _standardised(reps, layer.name)
        pieces = [
            [_code(None if X is None else X[order], task[order], ends, penalties, probabilities) for task in answers.T]
            for order in drawn
        ]
        found.append((np.array([[p[0] for p in row] for row in pieces]), np.array([[p[1] for p in row] for row in pieces])))
    return found


def _standardised(reps: RepresentationsLike, name: str) -> np.ndarray | None:
    X = layer_matrix(reps, name)
    bad = int((~np.isfinite(X)).sum())
    if not bad:
        # Two images would give deviations near zero, and new images far from both.
        return ColumnScaling.of_columns(X).apply(block_of(X, slice(None))).numpy()
    warnings.warn(f"no code given layer '{name}': {bad} of its features are NaN or infinite", NonFiniteWarning, stacklevel=5)
    return None


def _code(
    X: np.ndarray | None, y: np.ndarray, ends: np.ndarray, penalties: np.ndarray, probabilities: LogProbabilities
) -> tuple[np.ndarray, np.ndarray]:
    """Bits [B] of the labels `y` [n] of each block in this order, and the weightiest penalty of each block but the first."""
    if X is None:
        return np.full(len(ends), np.nan), np.full(len(ends) - 1, np.nan)
    classes, m = int(y.max()) + 1, len(penalties)
    bits, heaviest, weights = [ends[0] * math.log2(classes)], [], np.full(m, -math.log(m))
    for start, end in pairwise(ends):
        log = _with_unseen(X[:start], y[:start], X[start:end], classes, penalties * start, probabilities)
        joint = weights + log[:, np.arange(end - start), y[start:end]].sum(axis=1)
        price = -special.logsumexp(joint)
        bits.append(price / math.log(2))
        # Of equals the largest, the simplest probe.
        heaviest.append(penalties[np.flatnonzero(weights == weights.max())[-1]])
        weights = np.logaddexp(math.log(1 - _SHARE) + joint + price, math.log(_SHARE / m))
    return np.array(bits), np.array(heaviest)


def _with_unseen(
    X: np.ndarray, y: np.ndarray, X_new: np.ndarray, classes: int, l2: np.ndarray, probabilities: LogProbabilities
) -> np.ndarray:
    """Log-probabilities [m, new, K] of all classes, those included that `y` [t] does not have."""
    seen, labels = np.unique(y, return_inverse=True)
    t = len(y)
    log = np.full((len(l2), len(X_new), classes), -math.log(t + classes))
    # One class seen needs no fit: it has all that the unseen leave.
    known = probabilities(X, labels, l2, X_new) if len(seen) > 1 else np.zeros((len(l2), len(X_new), 1))
    log[:, :, seen] = known + math.log((t + len(seen)) / (t + classes))
    return log


def logistic_probabilities(X: np.ndarray, y: np.ndarray, l2: np.ndarray, X_new: np.ndarray) -> np.ndarray:
    """Log-probabilities [m, new, K] by multinomial logistic regression on features as they are, for ascending `l2` [m].

    The fit minimises the sum of -log p over the images plus l2 / 2 |W|^2; the intercepts are free."""
    with warnings.catch_warnings():
        # Any probabilities make a code, those of a fit that stopped a little early too.
        warnings.simplefilter("ignore", UnconvergedWarning)
        return logistic_path(X, y, l2, standardize=False, tol=1e-4, max_iter=200).scores(X_new)
