"""Results of the page Similarity: layers against layers, two layers image by image, and where two networks differ most."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.finding import Number
from mixer_probe.core.words import name_of
from mixer_probe.images import Images
from mixer_probe.similarity import MEASURES, LayerMatches, SimilarityMatrix, best_matches, find_measure
from mixer_probe.similarity.findings import similarity_findings
from mixer_probe.similarity.matches import at_columns
from mixer_probe.similarity.neighbours import clamp_outliers
from mixer_probe.stats.claims import extremes_differ
from mixer_probe_app import data
from mixer_probe_app.calls import LAYERS, key_of, key_of_images, representations
from mixer_probe_app.choice import CHECKPOINT, RUN, UNTRAINED, catalogue, shown
from mixer_probe_app.history import computed
from mixer_probe_app.store import cached, model

PAGE = "Similarity"
LABELS = {name: measure.label for name, measure in MEASURES.items()}
# Those with a choice of estimators.
CKA = ("cka", "cka_rbf")
ESTIMATORS = ("unbiased", "biased")
# Measures that solve a problem per pair of layers and permutation: few permutations keep them to seconds, none the slowest.
_FEW = {"permutations": 19, "resamples": 20}
_SLOW = ("cca", "svcca", "pwcca", "procrustes", "angular_procrustes", "predictivity", "predictivity_reverse")
_PERMUTATIONS = {**dict.fromkeys(_SLOW, _FEW), "soft_matching": {"permutations": 0, "resamples": 0}}
# As many neighbours as mutual k-NN counts, and the quantile at which it clamps outliers.
NEIGHBOURS, _CLAMP = 10, 0.95
MOST_PAIRS = 2000
MOST_CLASSES = 40


@dataclass(frozen=True)
class Side:
    """The layers of one network on the images chosen: `key` tells them from all others, and `code` computes `reps` again."""

    choice: str
    reps: Representations
    key: Hashable
    code: str

    def features(self, layer: str) -> np.ndarray:
        """Features [image, feature] of a layer; positions, where a stored run has them, become features."""
        values = self.reps[layer]
        return np.asarray(values.reshape(len(values), -1), dtype=np.float64)


def side(choice: str, images: Images) -> Side:
    """A network or a stored run on `images`. Raises what loading raises, and ImagesError for a run of other images."""
    reps = representations(choice, images)
    if choice.startswith(RUN):
        run = f"models[{choice!r}]"
        key = ("run", repr(sorted(reps.record.identity().items())), len(reps.ids))
        return Side(choice, reps, key, f"{run}.take([{run}.keys.index(key) for key in images.keys])")
    key = (key_of(model(choice)), key_of_images(images), LAYERS, "mean")
    return Side(choice, reps, key, f"mp.extract(models[{choice!r}], images, {LAYERS!r})")


def family(choice: str) -> str:
    """The family of a choice by its name alone, "" where that does not say it: no network is loaded for it."""
    if choice.startswith(RUN):
        return ""
    name = choice.rpartition("@")[2] if choice.startswith(CHECKPOINT) else choice.removesuffix(UNTRAINED)
    return next((entry.family for entry in catalogue() if entry.name in (name, name.partition(".")[0])), "")


def other_network(first: str, names: Sequence[str]) -> str:
    """What to compare `first` with: a CNN, or else another family, or else any other of `names`; itself if it is alone."""
    families = {name: family(name) for name in names}
    others = [name for name in names if families[name] != families[first]]
    cnns = [name for name in others if families[name] == "cnn"]
    return next(iter([*cnns, *others, *(name for name in names if name != first), first]))


# -- results ---------------------------------------------------------------------------------------------------------------


def _options(measure: str, estimator: str) -> dict[str, Any]:
    """What `compare` takes besides the measure."""
    return {"estimator": estimator} if measure in CKA else dict(_PERMUTATIONS.get(measure, {}))


def matrix(a: Side, b: Side, measure: str, estimator: str) -> SimilarityMatrix:
    """Every layer of `a` against every layer of `b`."""
    options = _options(measure, estimator)
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    name = LABELS[measure] + (f" ({estimator})" if measure in CKA else "")
    return computed(
        PAGE,
        f"{name} of {shown(a.choice)} and {shown(b.choice)}, n = {len(a.reps.ids)}",
        "similarity",
        (a.key, b.key, measure, tuple(sorted(options.items()))),
        lambda: mp.compare(a.reps, b.reps, measure, **options),
        f"mp.compare({a.code}, {b.code}, {measure!r}{given})",
        [a.choice, b.choice],
        data.setup(),
    )


def pair(a: Side, b: Side, layers: tuple[str, str]) -> tuple[SimilarityMatrix, ...]:
    """Mutual k-NN and RSA of two layers, each with null and interval."""
    left, right = (one.reps.only([layer]) for one, layer in zip((a, b), layers))
    key = (a.key, b.key, layers)
    return cached("layer pairs", key, "Two layers", lambda: mp.compare(left, right, ("mutual_knn", "rsa")))


def by_class(a: Side, b: Side, layers: tuple[str, str], measure: str, estimator: str) -> tuple[SimilarityMatrix, ...]:
    """The measure within the images of each class that has enough of them; `images.split` of each names the class."""
    options = _options(measure, estimator)
    key = (a.key, b.key, layers, measure, tuple(sorted(options.items())))
    left, right = (one.reps.only([layer]) for one, layer in zip((a, b), layers))
    parts = enough_images(left, fewest_images(measure))

    def compare() -> tuple[SimilarityMatrix, ...]:
        return tuple(mp.compare(left.take(i, name), right.take(i, name), measure, **options) for name, i in parts.items())

    return cached("class similarity", key, "Similarity within classes", compare)


def fewest_images(measure: str) -> int:
    """Images that a class needs to be compared alone: twice as many as the measure needs at all."""
    return 2 * find_measure(measure).minimum_images


def enough_images(reps: Representations, fewest: int) -> dict[str, np.ndarray]:
    """The images of each class with at least `fewest`, by the name of the class; the `MOST_CLASSES` with most images."""
    if reps.labels is None:
        return {}
    known, counts = np.unique(reps.labels, return_counts=True)
    taken = sorted(k for k in np.argsort(-counts, kind="stable")[:MOST_CLASSES] if counts[k] >= fewest)
    names = reps.class_names
    return {names[known[k]] if names else str(known[k]): np.flatnonzero(reps.labels == known[k]) for k in taken}


# -- two layers, image by image --------------------------------------------------------------------------------------------


def neighbours(a: Side, b: Side, layers: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest images [n, k] of every image in both layers, nearest first: those that mutual k-NN counts."""
    X, Y = (one.features(layer) for one, layer in zip((a, b), layers))
    key = (a.key, b.key, layers)
    return cached("neighbours", key, "Nearest images", lambda: (nearest(X), nearest(Y)), on_disk=False)


def nearest(X: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The `k` nearest other rows of each row of `X` [n, p] by cosine, nearest first, as `similarity.mutual_knn` takes them."""
    clamped = clamp_outliers(torch.from_numpy(X), _CLAMP).numpy()
    found: np.ndarray = NearestNeighbors(n_neighbors=k, metric="cosine").fit(clamped).kneighbors(return_distance=False)
    return found


def distances(a: Side, b: Side, layers: tuple[str, str], images: Images) -> pd.DataFrame:
    """A sample of pairs of images with their dissimilarity 1 - r in both layers, as RSA takes it."""
    X, Y = (one.features(layer) for one, layer in zip((a, b), layers))
    classes = [data.class_of(images, i) for i in range(len(images))]
    make = lambda: distance_frame(X, Y, images.ids, classes)  # noqa: E731
    return cached("distances", (a.key, b.key, layers), "Pairwise distances between images", make, on_disk=False)


def distance_frame(X: np.ndarray, Y: np.ndarray, ids: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """At most `MOST_PAIRS` pairs of rows of `X` [n, p] and `Y` [n, q], drawn with a fixed seed, one per row."""
    first, second = np.triu_indices(len(X), 1)
    chosen = np.sort(np.random.default_rng(0).permutation(len(first))[:MOST_PAIRS])
    i, j = first[chosen], second[chosen]
    names = [f"{name} ({label})" if label else name for name, label in zip(ids, classes)]
    return pd.DataFrame(
        {
            "image 1": [names[k] for k in i],
            "image 2": [names[k] for k in j],
            "classes": np.where([bool(classes[p]) and classes[p] == classes[q] for p, q in zip(i, j)], "same class", "different"),
            "distance_a": pdist(X, "correlation")[chosen],
            "distance_b": pdist(Y, "correlation")[chosen],
        }
    )


# -- sentences -------------------------------------------------------------------------------------------------------------


def difference(found: SimilarityMatrix, matches: LayerMatches) -> str:
    """The depth where two networks differ most: the layer whose best match is the least alike, where depths differ at all."""
    closeness = find_measure(matches.measure).direction * matches.value
    if np.isnan(closeness).all():
        return ""
    i = int(np.nanargmin(closeness))
    layer, partner = matches.layers_a[i], matches.layers_b[matches.best_match[i]]
    a, b = name_of(matches.model_a), name_of(matches.model_b)
    interval = found.interval
    lows, highs = (at_columns(side, matches.best_match) for side in ((interval.low, interval.high) if interval else (None, None)))
    values = [Number("", *row) for row in np.stack([matches.value, lows, highs], 1).tolist()]
    if not extremes_differ(values):
        low, high = np.nanmin(matches.value), np.nanmax(matches.value)
        return (
            f"{a} and {b}: best matches of the layers of {a} have {matches.matrix_label} {low:.2f} to {high:.2f} (n = "
            f"{matches.n}), with no significant difference between depths."
        )
    chance = "" if np.isnan(matches.null95[i]) else f", 95 % null of a best match {matches.null95[i]:.2f}"
    bounds = "" if np.isnan(lows[i]) else f" [{lows[i]:.2f}, {highs[i]:.2f}]"
    verdict = "" if matches.above[i] or not chance else ": not distinguishable from chance"
    return (
        f"{a} and {b} differ most at depth {layer.depth:.2f} of {a} ({layer.name}): even its best match in {b}, "
        f"{partner.name} at depth {partner.depth:.2f}, has {matches.matrix_label} {matches.value[i]:.2f}{bounds} "
        f"(n = {matches.n}{chance}){verdict}."
    )


def correspondence(matches: LayerMatches) -> str:
    """Which layers correspond, first to last."""
    known = [i for i, partner in enumerate(matches.best_match) if partner >= 0]
    if not known:
        return ""
    shown_at = [known[k] for k in np.unique(np.linspace(0, len(known) - 1, 4).round().astype(int))]
    pairs = ", ".join(f"{matches.layers_a[i].name} with {matches.layers_b[matches.best_match[i]].name}" for i in shown_at)
    null = "" if np.isnan(matches.null95).all() else f"; {int(matches.above.sum())} of {len(known)} are above chance"
    tau = "" if np.isnan(matches.tau) else f" Kendall's tau between the two orders is {matches.tau:.2f}."
    names = f"{name_of(matches.model_b)} for {name_of(matches.model_a)}"
    return f"Best-matching layers of {names}, from first to last: {pairs}{null}.{tau}"


def sentences(found: SimilarityMatrix) -> list[str]:
    """Where two networks differ most, which layers correspond, and what the report says of equal depths."""
    if same_network(found):
        return []
    matches = best_matches(found)
    equal = [f"At equal relative depth: {f.sentence}" for f in similarity_findings([found])[0] if f.verdict in ("found", "none")]
    return [text for text in (difference(found, matches), correspondence(matches), *equal) if text]


def same_network(found: SimilarityMatrix) -> bool:
    """Whether a network is compared with itself, where every layer is its own best match."""
    return found.model_a is not None and found.model_a == found.model_b


def least_similar(found: SimilarityMatrix) -> tuple[str, str]:
    """The two layers to begin with: that which differs most, and its best match; the last ones of a network with itself."""
    matches = best_matches(found)
    closeness = find_measure(found.measure).direction * matches.value
    if np.isnan(closeness).all() or same_network(found):
        return found.layers_a[-1].name, found.layers_b[-1].name
    i = int(np.nanargmin(closeness))
    return found.layers_a[i].name, found.layers_b[matches.best_match[i]].name


def cell_text(found: SimilarityMatrix, i: int = 0, j: int = 0) -> str:
    """ "0.31 [0.26, 0.35], null 0.06 on average and 0.07 at 95 %, n = 200"."""
    if np.isnan(found.values[i, j]):
        return f"not defined (n = {found.n})"
    interval, null, bounds, chance = found.interval, found.null, "", ""
    if interval is not None and not np.isnan(interval.low[i, j]):
        bounds = f" [{interval.low[i, j]:.2f}, {interval.high[i, j]:.2f}]"
    if null is not None:
        chance = f", null {null.mean[i, j]:.2f} on average and {null.quantile95[i, j]:.2f} at 95 %".replace("-0.00", "0.00")
    return f"{found.values[i, j]:.2f}{bounds}{chance}, n = {found.n}"
