"""What the page Similarity shows: layers against layers, two layers side by side, and where networks differ most."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
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
from mixer_probe.similarity.neighbours import clamp_outliers
from mixer_probe.stats.claims import extremes_differ
from mixer_probe_app import held, seen
from mixer_probe_app.analyses import LAYERS, key_of, key_of_images, representations
from mixer_probe_app.choice import CHECKPOINT, RUN, UNTRAINED, catalogue, shown
from mixer_probe_app.store import made, model

PAGE = "Similarity"
LABELS = {name: measure.label for name, measure in MEASURES.items()}
# Those that have an estimator to choose.
OF_CKA = ("cka", "cka_rbf")
ESTIMATORS = ("unbiased", "biased")
# Measures that solve a problem for each pair of layers and draw: fewer draws keep them to seconds, and no draws the slowest.
_FEW = {"permutations": 19, "resamples": 20}
_SLOW = ("cca", "svcca", "pwcca", "procrustes", "angular_procrustes", "predictivity", "predictivity_reverse")
_DRAWS = {**dict.fromkeys(_SLOW, _FEW), "soft_matching": {"permutations": 0, "resamples": 0}}
# As many as mutual k-NN counts, and the quantile that it cuts outliers to.
NEIGHBOURS, _CLAMP = 10, 0.95
MOST_PAIRS = 2000
MOST_CLASSES = 40


@dataclass(frozen=True)
class Side:
    """One network's layers on the images looked at: `code` makes `reps` again, and `key` tells them from all others."""

    choice: str
    reps: Representations
    key: Hashable
    code: str

    @property
    def names(self) -> list[str]:
        """Layers in execution order."""
        return self.reps.names()

    def features(self, layer: str) -> np.ndarray:
        """Features [image, feature] of a layer; positions, where a stored run has them, become features."""
        values = self.reps[layer]
        return np.asarray(values.reshape(len(values), -1), dtype=np.float64)


def side(choice: str, images: Images) -> Side:
    """A network or a stored run on `images`. Raises what loading raises, and ImagesError for a run of other images."""
    reps = representations(choice, images)
    if choice.startswith(RUN):
        run = f"models[{choice!r}]"
        return Side(choice, reps, _key_of_run(reps), f"{run}.take([{run}.keys.index(key) for key in images.keys])")
    key = (key_of(model(choice)), key_of_images(images), LAYERS, "mean")
    return Side(choice, reps, key, f"mp.extract(models[{choice!r}], images, {LAYERS!r})")


def _key_of_run(reps: Representations) -> Hashable:
    return ("run", repr(sorted(reps.record.identity().items())), len(reps.ids))


# -- which networks --------------------------------------------------------------------------------------------------------


def family(choice: str) -> str:
    """The family of a choice by its name alone, "" where that does not say it: no network is loaded for it."""
    if choice.startswith(RUN):
        return ""
    name = choice.rpartition("@")[2] if choice.startswith(CHECKPOINT) else choice.removesuffix(UNTRAINED)
    return next((entry.family for entry in catalogue() if entry.name in (name, name.partition(".")[0])), "")


def partner_of(first: str, names: Sequence[str]) -> str:
    """What to compare `first` with: a CNN, or else another family, or else any other of `names`; itself if it is alone."""
    families = {name: family(name) for name in names}
    others = [name for name in names if families[name] != families[first]]
    cnns = [name for name in others if families[name] == "cnn"]
    return next(iter([*cnns, *others, *(name for name in names if name != first), first]))


# -- results ---------------------------------------------------------------------------------------------------------------


def _options(measure: str, estimator: str) -> dict[str, Any]:
    """What `compare` is told besides the measure."""
    return {"estimator": estimator} if measure in OF_CKA else dict(_DRAWS.get(measure, {}))


def matrix(a: Side, b: Side, measure: str, estimator: str) -> SimilarityMatrix:
    """Every layer of `a` against every layer of `b`."""
    options = _options(measure, estimator)
    key = (a.key, b.key, measure, tuple(sorted(options.items())))
    said = "".join(f", {name}={value!r}" for name, value in options.items())
    title = f"{LABELS[measure]} of {shown(a.choice)} and {shown(b.choice)}"
    code = f"mp.compare({a.code}, {b.code}, {measure!r}{said})"
    found = made("similarity", key, title, lambda: mp.compare(a.reps, b.reps, measure, **options))
    label = f"{found.label} of {shown(a.choice)} and {shown(b.choice)}, n = {found.n}"
    seen.saw(PAGE, label, "similarity", key, code, [a.choice, b.choice], seen.images_setup())
    return found


def pair(a: Side, b: Side, layers: tuple[str, str]) -> tuple[SimilarityMatrix, ...]:
    """Mutual k-NN and RSA of two layers, each with null and interval."""
    key = (a.key, b.key, layers)
    left, right = (one.reps.only([layer]) for one, layer in zip((a, b), layers))
    return made("layer pairs", key, "Two layers", lambda: mp.compare(left, right, ("mutual_knn", "rsa")))


def by_class(a: Side, b: Side, layers: tuple[str, str], measure: str, estimator: str) -> tuple[SimilarityMatrix, ...]:
    """The measure within the images of each class that has enough of them; `images.split` of each names the class."""
    options = _options(measure, estimator)
    key = (a.key, b.key, layers, measure, tuple(sorted(options.items())))
    left, right = (one.reps.only([layer]) for one, layer in zip((a, b), layers))
    parts = enough_images(left, fewest_images(measure))

    def compare() -> tuple[SimilarityMatrix, ...]:
        return tuple(mp.compare(left.take(i, name), right.take(i, name), measure, **options) for name, i in parts.items())

    return made("class similarity", key, "Similarity within classes", compare)


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


def class_frame(found: Sequence[SimilarityMatrix]) -> pd.DataFrame:
    """One class a row."""
    frame = pd.concat([m.to_frame() for m in found], ignore_index=True)
    frame.insert(0, "class", [m.images.split if m.images else "" for m in found])
    return frame


# -- two layers, image by image --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """The nearest images [n, k] of every image in two layers, the nearest first, and how many of them are in both [n]."""

    a: np.ndarray
    b: np.ndarray

    @property
    def shared(self) -> np.ndarray:
        """How many of the k are neighbours in both layers [n]."""
        return np.array([len(np.intersect1d(x, y)) for x, y in zip(self.a, self.b)])


def neighbours(a: Side, b: Side, layers: tuple[str, str]) -> Neighbours:
    """The neighbours that mutual k-NN counts: cosine, outliers clamped."""
    X, Y = (one.features(layer) for one, layer in zip((a, b), layers))
    key = (a.key, b.key, layers)
    return made("neighbours", key, "Nearest images", lambda: Neighbours(nearest(X), nearest(Y)), keep=False)


def nearest(X: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The `k` nearest other rows of each row of `X` [n, p], the nearest first, as `similarity.mutual_knn` takes them."""
    clamped = clamp_outliers(torch.from_numpy(X), _CLAMP).numpy()
    found: np.ndarray = NearestNeighbors(n_neighbors=k, metric="cosine").fit(clamped).kneighbors(return_distance=False)
    return found


def distances(a: Side, b: Side, layers: tuple[str, str], images: Images) -> pd.DataFrame:
    """A sample of pairs of images with their dissimilarity 1 - r in both layers, as RSA takes it."""
    X, Y = (one.features(layer) for one, layer in zip((a, b), layers))
    labels = [class_of(images, i) for i in range(len(images))]
    key = (a.key, b.key, layers)
    return made(
        "distances", key, "Pairwise distances between images", lambda: distance_frame(X, Y, images.ids, labels), keep=False
    )


def distance_frame(X: np.ndarray, Y: np.ndarray, ids: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """At most `MOST_PAIRS` pairs of rows of `X` [n, p] and `Y` [n, q], drawn with a fixed seed, one a row."""
    first, second = np.triu_indices(len(X), 1)
    chosen = np.sort(np.random.default_rng(0).permutation(len(first))[:MOST_PAIRS])
    i, j = first[chosen], second[chosen]
    return pd.DataFrame(
        {
            "image 1": [f"{ids[k]} {classes[k]}".strip() for k in i],
            "image 2": [f"{ids[k]} {classes[k]}".strip() for k in j],
            "classes": np.where([bool(classes[p]) and classes[p] == classes[q] for p, q in zip(i, j)], "same class", "different"),
            "distance_a": pdist(X, "correlation")[chosen],
            "distance_b": pdist(Y, "correlation")[chosen],
        }
    )


def class_of(images: Images, i: int) -> str:
    """The class of an image in brackets, "" without labels."""
    if images.labels is None:
        return ""
    label = int(images.labels[i])
    return f"({images.class_names[label] if images.class_names else label})"


# -- sentences -------------------------------------------------------------------------------------------------------------


def difference(matches: LayerMatches) -> str:
    """The depth where two networks differ most: the layer whose best match is the least alike, where depths differ at all."""
    closeness = find_measure(matches.measure).direction * matches.value
    if np.isnan(closeness).all():
        return ""
    i = int(np.nanargmin(closeness))
    layer, partner = matches.layers_a[i], matches.layers_b[matches.best_match[i]]
    a, b = name_of(matches.model_a), name_of(matches.model_b)
    values = [Number("", *row) for row in np.stack([matches.value, matches.low, matches.high], 1).tolist()]
    if not extremes_differ(values):
        low, high = np.nanmin(matches.value), np.nanmax(matches.value)
        return (
            f"{a} and {b}: best matches of the layers of {a} have {matches.matrix_label} {low:.2f} to {high:.2f} (n = "
            f"{matches.n}), with no significant difference between depths."
        )
    chance = "" if np.isnan(matches.null95[i]) else f", 95 % null of a best match {matches.null95[i]:.2f}"
    verdict = "" if matches.above[i] or not chance else ": not distinguishable from chance"
    return (
        f"{a} and {b} differ most at depth {layer.depth:.2f} of {a} ({layer.name}): even its best match in {b}, "
        f"{partner.name} at depth {partner.depth:.2f}, has {matches.matrix_label} {_bounded(matches, i)} "
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


def _bounded(matches: LayerMatches, i: int) -> str:
    bounds = "" if np.isnan(matches.low[i]) else f" [{matches.low[i]:.2f}, {matches.high[i]:.2f}]"
    return f"{matches.value[i]:.2f}{bounds}"


def sentences(found: SimilarityMatrix) -> list[str]:
    """Where two networks differ most, which layers correspond, and what the report says of equal depths."""
    if same_network(found):
        return []
    matches = best_matches(found)
    equal = [f"At equal relative depth: {f.sentence}" for f in similarity_findings([found])[0] if f.verdict in ("found", "none")]
    return [text for text in (difference(matches), correspondence(matches), *equal) if text]


def same_network(found: SimilarityMatrix) -> bool:
    """Whether a network is compared with itself, where every layer is its own best match."""
    return found.model_a is not None and found.model_a == found.model_b


# -- the cell that is looked at --------------------------------------------------------------------------------------------

CHART, PICK = "sim-heatmap", "cell"
LAYER_A, LAYER_B = "sim-a", "sim-b"


def take_clicked() -> None:
    """Look at the two layers of the cell that was clicked; a click beside all cells changes nothing."""
    state = st.session_state.get(CHART) or {}
    with contextlib.suppress(KeyError, IndexError, TypeError):
        cell = state["selection"][PICK][0]
        held.hold(LAYER_A, str(cell["layer_a"]))
        held.hold(LAYER_B, str(cell["layer_b"]))


def least_alike(found: SimilarityMatrix) -> tuple[str, str]:
    """The two layers to begin with: that which differs most, and its best match; the last ones of a network with itself."""
    matches = best_matches(found)
    closeness = find_measure(found.measure).direction * matches.value
    if np.isnan(closeness).all() or same_network(found):
        return found.layers_a[-1].name, found.layers_b[-1].name
    i = int(np.nanargmin(closeness))
    return found.layers_a[i].name, found.layers_b[matches.best_match[i]].name
