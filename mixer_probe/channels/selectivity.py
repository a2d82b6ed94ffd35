"""Class selectivity of channels: AUROC and d' by channel and class, with p-values from label
permutations.

Both are defined for activations of any sign, as GELU gives. Morcos et al. (2018) divide the
difference of two class means by their sum, which has no meaning below zero ((1, -.1, -.1) gives
1.22): that index is given only where no activation is negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mixer_probe.channels.image_means import HELD, ImageMeans
from mixer_probe.channels.layerwise import Layerwise, finite_median, warn_undefined
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import at_once, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name, quoted, require_labels
from mixer_probe.linear.stratification import stratified
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import (
    auroc_interval,
    check_permutations,
    max_null,
    permutation_p,
    upper_quantile,
)

# Channels are called selective at this level, over all channels and classes of a layer.
LEVEL = 0.05
# Rounding must not make equal strengths differ.
ROUNDING = 1e-12
# Sums of ranks of more classes than this are added up class by class: a product with their
# indicators would cost more.
_MOST_CLASSES = 32
# Images of the null of a larger set, at least so many per class on average.
_NULL_IMAGES, _NULL_OF_CLASS = 4095, 64


@dataclass(frozen=True)
class ClassSelectivity(Layerwise, Result):
    """How well single channels separate each class from all others.

    Arrays are tuples over layers, NaN for channels that are constant.

    `auroc` [channel, class] is the probability that an image of the class has the larger activation
    than one of another class, ties counting half. `dprime` [channel, class] is (mean of the class -
    mean of the rest) / sqrt((their variances) / 2), sample variances. `strength` [channel] is the
    largest |z| over classes, z = (AUROC - 1/2) / its standard deviation under permuted labels, ties
    included; `preferred` [channel] is the index into `classes` of the class that has it, -1 where
    undefined. `p_value` [channel] is corrected for the classes and for all channels of the layer:
    the fraction of `permutations` of the labels in which the largest strength of the layer reaches
    the channel's (the maximum statistic of Westfall and Young 1993; +1 in both, Phipson and Smyth
    2010). `threshold` [layer] is the strength that this largest exceeds in 5 % of the permutations,
    `peaks` [layer, permutation] is that largest, and `null_auroc` [layer] the mean over
    permutations of the median channel's best AUROC. `morcos_index` holds [channel], empty for
    layers with negative activations. Activations are means over positions (or the class token); `n`
    images."""

    title: ClassVar[str] = "Class selectivity"

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    n: int
    classes: Annotated[np.ndarray, "class"]
    class_names: Annotated[tuple[str, ...], "class"]
    counts: Annotated[np.ndarray, "class"]
    permutations: int
    seed: int
    auroc: Annotated[tuple[np.ndarray, ...], "layer", "channel", "class"]
    dprime: Annotated[tuple[np.ndarray, ...], "layer", "channel", "class"]
    strength: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    preferred: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    p_value: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    threshold: Annotated[np.ndarray, "layer"]
    peaks: Annotated[np.ndarray, "layer", "permutation"]
    null_auroc: Annotated[np.ndarray, "layer"]
    morcos_index: Annotated[tuple[np.ndarray, ...], "layer", "channel?"]

    def overall_p(self, strength: float) -> float:
        """p-value of a strength that is the largest of all layers: as `p_value`, against the
        largest of all layers in every permutation. NaN without permutations."""
        if not self.permutations:
            return float("nan")
        return float(permutation_p(strength * (1 - ROUNDING), max_null(self.peaks.T, 1)))

    def relation(self, i: int, auroc: float) -> str:
        """What a channel of layer `i` does with a class of this AUROC, as a verb.

        The sign of a channel has a meaning where activations are never negative and in heads.
        Elsewhere, as in the residual stream, the layers that read a channel may turn its sign
        round, and low activations are no suppression."""
        if not (len(self.morcos_index[i]) or self.layers[i].kind == "head"):
            return "separates"
        return "responds to" if auroc > 0.5 else "is suppressed by"

    @property
    def selective(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] are above the corrected null at 5 %."""
        with np.errstate(invalid="ignore"):
            return tuple(p <= LEVEL for p in self.p_value)

    def null_band(self, i: int) -> np.ndarray:
        """The distance from 1/2 below which the largest AUROC of layer `i` stays in 95 % of label
        permutations, [channel, class]: `threshold`, which is in standard deviations of the AUROC,
        in units of the AUROC.

        The deviation is that of the preferred class, |AUROC - 1/2| / strength; over m of n images
        it goes as 1 / sqrt(m (n - m))."""
        rows, best = np.arange(len(self.preferred[i])), self.preferred[i]
        root = np.sqrt(self.counts * (self.n - self.counts))
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = np.abs(self.auroc[i][rows, best] - 0.5) / self.strength[i]
        return np.asarray(
            self.threshold[i] * deviation[:, None] * root[best][:, None] / root[None, :]
        )

    def class_frame(self, layer: str, channel: int) -> pd.DataFrame:
        """One row per class: the AUROC of a channel with its 95 % interval and the range that no
        channel of the layer leaves in 95 % of label permutations, d' and the images of the class.
        Raises LayerError."""
        i = self.index(layer)
        auroc, band, counts = (
            self.auroc[i][channel],
            self.null_band(i)[channel],
            self.counts.astype(int),
        )
        bounds = [
            auroc_interval(float(a), int(m), int(self.n - m))
            if np.isfinite(a)
            else (np.nan, np.nan)
            for a, m in zip(auroc, counts, strict=True)
        ]
        return pd.DataFrame(
            {
                "class": self.class_names,
                "auroc": auroc,
                "low": [low for low, _high in bounds],
                "high": [high for _low, high in bounds],
                "null_low": (0.5 - band).clip(0),
                "null_high": (0.5 + band).clip(max=1),
                "dprime": self.dprime[i][channel],
                "images": counts,
            }
        )

    def best_channels(self, class_name: str = "") -> pd.DataFrame:
        """The `summary` of every layer with its most selective `channel` and the AUROC of that,
        `best`: for the class where one is given, else for any. An AUROC below 1/2 counts as above.
        -1 and NaN in layers of undefined channels."""
        k = [self.class_names.index(class_name)] if class_name else slice(None)
        away = [np.nan_to_num(np.abs(auroc[:, k] - 0.5).max(1), nan=-1.0) for auroc in self.auroc]
        known = np.array([distance.max() >= 0 for distance in away])
        best = np.where(known, [0.5 + float(distance.max()) for distance in away], np.nan)
        return self.summary().assign(
            best=best, channel=np.where(known, [int(distance.argmax()) for distance in away], -1)
        )

    def morcos(self, layer: str) -> np.ndarray:
        """Morcos' index [channel] of a layer; see `channels.morcos_index`.

        Raises MeasureError for a layer with negative activations."""
        found = self.morcos_index[self.index(layer)]
        if not len(found):
            raise MeasureError(_negative(layer))
        return found

    def layer_frame(self, i: int) -> pd.DataFrame:
        """One row per channel of layer `i`, with its preferred class."""
        layer, best = self.layers[i], self.preferred[i]
        rows = np.arange(layer.channels)
        named = best >= 0
        return pd.DataFrame(
            {
                **self.layer_columns(i),
                "channel": rows,
                "class": np.where(named, np.array(self.class_names)[best], ""),
                "auroc": np.where(named, self.auroc[i][rows, best], np.nan),
                "dprime": np.where(named, self.dprime[i][rows, best], np.nan),
                "strength": self.strength[i],
                "p_value": self.p_value[i],
                "selective": self.selective[i],
                "morcos": self.morcos_index[i] if len(self.morcos_index[i]) else np.nan,
                "n_images": self.n,
            }
        )

    def summary(self) -> pd.DataFrame:
        """One row per layer: channels, the fraction of selective ones, quartiles of the best AUROC
        and the median |d'|."""
        rows = []
        for i, layer in enumerate(self.layers):
            frame = self.layer_frame(i)
            auroc = (0.5 + (frame["auroc"] - 0.5).abs()).dropna().to_numpy()
            low, middle, high, largest = (
                np.quantile(auroc, [0.25, 0.5, 0.75, 1]) if len(auroc) else [np.nan] * 4
            )
            rows.append(
                {
                    **self.layer_columns(i),
                    "channels": layer.channels,
                    "selective": int(self.selective[i].sum()),
                    "fraction_selective": float(self.selective[i].mean())
                    if self.permutations
                    else np.nan,
                    "auroc_q25": low,
                    "auroc_median": middle,
                    "auroc_q75": high,
                    "auroc_max": largest,
                    "null_auroc": self.null_auroc[i],
                    "dprime_median": finite_median(frame["dprime"].abs().to_numpy()),
                    "n_images": self.n,
                }
            )
        return pd.DataFrame(rows)


class _Groups:
    """Images by class: order, first places and sizes of the classes, for sums by class without a
    loop."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.order = labels, np.argsort(labels, kind="stable")
        self.classes, self.starts, self.counts = np.unique(
            labels[self.order], return_index=True, return_counts=True
        )
        self.n = len(labels)

    @property
    def exact(self) -> type[np.floating[Any]]:
        """A type in which sums of ranks are exact: ranks are halves, and float32 counts up to 2^24
        of them."""
        return np.float32 if self.n * (self.n + 1) < 2**24 else np.float64

    def sums(self, X: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """Sums by class [class, channel] of X [n, channel]; those of permuted labels for another
        `order` of the images."""
        return np.asarray(
            np.add.reduceat(X[self.order if order is None else order], self.starts, axis=0)
        )

    def auroc(self, ranks: np.ndarray) -> np.ndarray:
        """AUROC [channel, class] from ranks [n, channel]: (R - m (m + 1) / 2) / (m (n - m)) for the
        sum R of the ranks of the m images of a class (Mann and Whitney 1947)."""
        m = self.counts[:, None]
        return np.asarray(((self.sums(ranks) - m * (m + 1) / 2) / (m * (self.n - m))).T)

    def auroc_sd(self, ranks: np.ndarray) -> np.ndarray:
        """Standard deviation [channel, class] of the AUROC over label permutations.

        The sum of m of n ranks drawn without replacement has variance S^2 m (n - m) / n, S^2 the
        sample variance of the ranks, with ties or without; the AUROC is that sum over m (n - m),
        shifted."""
        n, m = self.n, self.counts[None, :]
        return np.asarray(
            np.sqrt(ranks.var(0, ddof=1, dtype=np.float64)[:, None] * m * (n - m) / n)
            / (m * (n - m))
        )

    def null(
        self, ranks: np.ndarray, sd: np.ndarray, orders: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """The largest |AUROC - 1/2| / `sd` [channel, class] of all channels and classes under each
        permutation `orders` of the images, and the mean over them of the median channel's best
        AUROC; NaN without channels."""
        if not ranks.shape[1]:
            return np.full(len(orders), np.nan), float("nan")
        classes, m = len(self.classes), self.counts[:, None]
        middle, pairs, inverse = m * (self.n + 1) / 2, (m * (self.n - m)).astype(float), 1 / sd.T
        values = ranks.astype(self.exact, copy=False)
        by_class = classes > _MOST_CLASSES
        # Indicators, and three times as much for the sums.
        bytes_each = 4 * values.itemsize * classes * self.n
        place = np.repeat(np.arange(classes), self.counts)
        peaks, medians = np.empty(len(orders)), np.empty(len(orders))
        for chosen in slices(len(orders), 1 if by_class else at_once(bytes_each)):
            part = orders[chosen]
            if by_class:
                sums = self.sums(ranks, part[0])[None]
            else:
                member = np.zeros((len(part), classes, self.n), values.dtype)
                member[np.arange(len(part))[:, None], place, part] = 1
                sums = (
                    (member.reshape(-1, self.n) @ values)
                    .reshape(len(part), classes, -1)
                    .astype(np.float64)
                )
            # The same as `auroc`, [permutation, class, channel]: |AUROC - 1/2| is how far the sum
            # of ranks is from its mean.
            away = np.abs(sums - middle) / pairs
            z = away * inverse
            best = z.argmax(1)[:, None]
            peaks[chosen] = np.take_along_axis(z, best, 1).max((1, 2))
            medians[chosen] = 0.5 + np.median(np.take_along_axis(away, best, 1)[:, 0], axis=1)
        return peaks, float(medians.mean()) if len(orders) else float("nan")

    def of_channels(self, X: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Of activations X [n, channel]: AUROC, its standard deviation, d', Morcos' index and the
        smallest value, NaN where a channel is constant, by name; and the ranks of the others."""
        finite = np.isfinite(X).all(0)
        defined = finite & (np.where(finite, X, 0).max(0) > np.where(finite, X, 0).min(0))
        kept = X[:, defined]
        ranks = rankdata(kept, axis=0)
        found = {
            "auroc": self.auroc(ranks),
            "sd": self.auroc_sd(ranks),
            "dprime": dprime_of(kept, self.labels),
            "morcos_index": _morcos(kept, self),
            "smallest": kept.min(0),
        }
        return {name: _scatter_nan(values, defined) for name, values in found.items()}, ranks

    def selectivity(
        self, means: ImageMeans, orders: np.ndarray, sample: np.ndarray | None
    ) -> dict[str, Any]:
        """The fields of `ClassSelectivity` for one layer, with the null of the images `sample`,
        None for all, under the permutations `orders` of these."""
        parts, ranks = [], []
        for X in means.by_channels():
            found, own = self.of_channels(X)
            parts.append(found)
            ranks += [own] if sample is None else []
        auroc, sd, dprime, morcos, smallest = (
            np.concatenate([part[name] for part in parts]) for name in parts[0]
        )
        defined = np.isfinite(smallest)
        z = np.abs(auroc[defined] - 0.5) / sd[defined]
        strength, preferred = z.max(1), np.full(len(defined), -1)
        preferred[defined] = z.argmax(1)
        if sample is None:
            peaks, null_auroc = self.null(np.concatenate(ranks, 1), sd[defined], orders)
        else:
            of_sample, X = _Groups(self.labels[sample]), means[sample]
            X = X[:, defined & (X.max(0) > X.min(0))]
            own = np.empty(X.shape, of_sample.exact)
            for part in slices(X.shape[1], at_once(8 * len(X), HELD)):
                own[:, part] = rankdata(X[:, part], axis=0)
            own_sd = of_sample.auroc_sd(own)
            peaks, middle = of_sample.null(own, own_sd, orders)
            # The deviation of an AUROC depends on the number of images.
            shrunk = float(np.median(sd[defined]) / np.median(own_sd)) if own.size else np.nan
            null_auroc = 0.5 + (middle - 0.5) * shrunk
        tested = len(orders) > 0 and bool(defined.any())
        p_value = (
            permutation_p(strength * (1 - ROUNDING), peaks[:, None])
            if tested
            else np.full(len(strength), np.nan)
        )
        positive = defined.any() and np.nanmin(smallest) >= 0
        return {
            "auroc": auroc,
            "dprime": dprime,
            "strength": _scatter_nan(strength, defined),
            "preferred": preferred,
            "p_value": _scatter_nan(p_value, defined),
            "threshold": float(upper_quantile(peaks)) if tested else np.nan,
            "peaks": peaks,
            "null_auroc": null_auroc,
            "morcos_index": morcos if positive else np.empty(0),
        }


def auroc_of(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC [channel, class] of activations [n, channel] for each class against all others, ties
    counting half."""
    return _Groups(labels).auroc(rankdata(X, axis=0))


def dprime_of(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """d' [channel, class] of activations [n, channel]: difference of means over the root of the
    mean of both sample variances.

    NaN where both are constant, and for a class, or a rest, of one image."""
    groups = _Groups(labels)
    m = groups.counts[:, None].astype(np.float64)
    rest = groups.n - m
    # About the mean, so that the squares lose no digits.
    centred = X - X.mean(0)
    sums = groups.sums(centred)
    means, rest_means = sums / m, (sums.sum(0) - sums) / rest
    own = centred - means[np.searchsorted(groups.classes, labels)]
    within = groups.sums(own * own)
    between = m * means**2
    # Deviations of the rest: within its classes, and of their means from its own.
    rest_within = within.sum(0) - within + between.sum(0) - between - rest * rest_means**2
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (within / (m - 1) + rest_within.clip(0) / (rest - 1)) / 2
        d = np.where(variance > 0, (means - rest_means) / np.sqrt(variance), np.nan)
    return np.asarray(d.T)


def morcos_index(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(m1 - m2) / (m1 + m2) [channel] of activations [n, channel]: m1 the largest class mean, m2
    the mean of the others.

    Morcos et al. 2018, "On the importance of single directions for generalization". NaN for
    channels that are all zero. Raises MeasureError if an activation is negative."""
    if X.min() < 0:
        raise MeasureError(_negative(None))
    return _morcos(X, _Groups(labels))


def _morcos(X: np.ndarray, groups: _Groups) -> np.ndarray:
    means = groups.sums(X) / groups.counts[:, None]
    largest = means.max(0)
    others = (means.sum(0) - largest) / (len(means) - 1)
    total = largest + others
    return np.asarray(
        np.where(total > 0, (largest - others) / np.where(total > 0, total, 1), np.nan)
    )


def _negative(layer: str | None) -> str:
    where = "these activations" if layer is None else f"the activations of layer '{layer}'"
    return (
        f"Morcos' index needs activations of at least 0, and {where} are negative in part: take "
        "auroc or dprime"
    )


def check_groups(labels: np.ndarray, names: Sequence[str] | None) -> None:
    """Raise MeasureError for labels of one class, and for fewer than two classes of two images or
    more."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        only = quoted(class_name(int(labels[0]), names))
        raise MeasureError(
            f"selectivity needs at least two classes, and all images are of class {only}"
        )
    if (counts > 1).sum() < 2:
        raise MeasureError(
            f"selectivity needs two classes with two images each, and {int((counts == 1).sum())} "
            f"of {len(classes)} classes have one image: an AUROC over one image is 0 or 1; take "
            "more images of each class"
        )


@checked(MeasureError)
def class_selectivity(
    reps: RepresentationsLike, *, permutations: int = 999, seed: int = 0
) -> ClassSelectivity:
    """How well every channel of every layer of `reps` separates each class from the others.

    Positions are averaged where `reps` has them. The label `permutations` are the same for all
    layers; 0 leaves out the p-values. Of more than 4,095 images (64 per class, if that is more) the
    null is that of a stratified sample of so many: z has the deviation 1 for any number of
    images. Raises ImagesError without labels, MeasureError for one
    class, for one image in (nearly) each, or too few permutations. Warns with
    UndefinedChannelsWarning about channels that are constant or not finite, which are NaN."""
    check_permutations(permutations)
    labels = require_labels(
        reps.labels, f"the images ({reps.images.name})", "selectivity", len(reps.ids)
    )
    check_groups(labels, reps.class_names)
    groups = _Groups(labels)
    size = max(_NULL_IMAGES, _NULL_OF_CLASS * len(groups.classes))
    sample = stratified(labels, size, seed) if groups.n > size else None
    rng, n = np.random.default_rng(seed), groups.n if sample is None else size
    orders = np.empty((permutations, n), np.int32)
    for order in orders:
        order[:] = rng.permutation(n)
    parts = [
        groups.selectivity(ImageMeans(reps, layer.name), orders, sample) for layer in reps.layers
    ]
    undefined = [int(np.isnan(part["strength"]).sum()) for part in parts]
    warn_undefined(reps.model, reps.layers, undefined, "have no selectivity")
    return ClassSelectivity.of_layers(
        parts,
        model=reps.model,
        images=reps.images,
        layers=tuple(reps.layers),
        n=groups.n,
        classes=groups.classes,
        class_names=tuple(class_name(int(c), reps.class_names) for c in groups.classes),
        counts=groups.counts,
        permutations=permutations,
        seed=seed,
    )


def _scatter_nan(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Values of the channels that are defined, NaN for the others."""
    full = np.full((len(defined), *values.shape[1:]), np.nan)
    full[defined] = values
    return full
