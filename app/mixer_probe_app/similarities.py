"""The calls of the page Similarity: layers against layers, and two layers image by image."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.images import Images
from mixer_probe.similarity import (
    MEASURES,
    SimilarityMatrix,
    compare_within_classes,
    nearest_images,
    sample_dissimilarities,
)
from mixer_probe.similarity.alignment import CKA_NAMES
from mixer_probe_app import data
from mixer_probe_app.calls import representations, run_of
from mixer_probe_app.choice import CHECKPOINT, RUN, UNTRAINED, catalogue, shown
from mixer_probe_app.history import Given, result_of
from mixer_probe_app.store import cached

PAGE = "Similarity"
LABELS = {name: measure.label for name, measure in MEASURES.items()}
ESTIMATORS = ("unbiased", "biased")
# Measures that solve a problem per pair of layers and permutation: few permutations keep them to
# seconds, none the slowest.
_FEW = {"permutations": 19, "resamples": 20}
_SLOW = (
    "cca",
    "svcca",
    "pwcca",
    "procrustes",
    "angular_procrustes",
    "predictivity",
    "predictivity_reverse",
)
_PERMUTATIONS = {**dict.fromkeys(_SLOW, _FEW), "soft_matching": {"permutations": 0, "resamples": 0}}
# As many neighbours as mutual k-NN counts.
NEIGHBOURS = 10


@dataclass(frozen=True)
class Side:
    """The layers of one network, or of a stored run, on the images chosen; `given` is the same as
    an argument."""

    choice: str
    reps: Representations
    given: Given

    def features(self, layer: str) -> np.ndarray:
        """Features [image, feature] of a layer; positions, where a stored run has them, become
        features."""
        values = self.reps[layer]
        return np.asarray(values.reshape(len(values), -1), dtype=np.float64)


def side(choice: str, images: Images) -> Side:
    """A network or a stored run on `images`. Raises what loading raises, and ImagesError for a run
    of other images."""
    reps = representations(choice, images)
    return Side(choice, reps, run_of(choice, images))


def family(choice: str) -> str:
    """The family of a choice by its name alone, "" where that does not say it: no network is loaded
    for it."""
    if choice.startswith(RUN):
        return ""
    name = (
        choice.rpartition("@")[2]
        if choice.startswith(CHECKPOINT)
        else choice.removesuffix(UNTRAINED)
    )
    return next(
        (entry.family for entry in catalogue() if entry.name in (name, name.partition(".")[0])), ""
    )


def other_network(first: str, names: Sequence[str]) -> str:
    """What to compare `first` with: a CNN, or else another family, or else any other of `names`;
    itself if it is alone."""
    families = {name: family(name) for name in names}
    others = [name for name in names if families[name] != families[first]]
    cnns = [name for name in others if families[name] == "cnn"]
    return next(iter([*cnns, *others, *(name for name in names if name != first), first]))


def options(measure: str, estimator: str) -> dict[str, Any]:
    """What `compare` takes besides the measure."""
    return (
        {"estimator": estimator} if measure in CKA_NAMES else dict(_PERMUTATIONS.get(measure, {}))
    )


def matrix(a: Side, b: Side, measure: str, estimator: str) -> SimilarityMatrix:
    """Every layer of `a` against every layer of `b`."""
    name = LABELS[measure] + (f" ({estimator})" if measure in CKA_NAMES else "")
    label = f"{name} of {shown(a.choice)} and {shown(b.choice)}, n = {len(a.reps.ids)}"
    given = options(measure, estimator)
    found: SimilarityMatrix = result_of(
        PAGE, label, "similarity", "compare", a.given, b.given, measure, **given
    )
    return found


# -- two layers, image by image --------------------------------------------------------------------


@dataclass(frozen=True)
class LayerPair:
    """A layer of each of two networks on the same images."""

    a: Side
    b: Side
    layers: tuple[str, str]

    def _of(self, kind: str, title: str, compute: Any, *key: Hashable, on_disk: bool = True) -> Any:
        return cached(
            kind,
            (self.a.given.key, self.b.given.key, self.layers, *key),
            title,
            compute,
            on_disk=on_disk,
        )

    @property
    def reps(self) -> tuple[Representations, Representations]:
        """Both sides with their layer alone."""
        return self.a.reps.only([self.layers[0]]), self.b.reps.only([self.layers[1]])

    @property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features [image, feature] of both layers."""
        return self.a.features(self.layers[0]), self.b.features(self.layers[1])

    def shared(self) -> tuple[SimilarityMatrix, SimilarityMatrix]:
        """Mutual k-NN and RSA, each with null and interval."""
        compare = lambda: mp.compare(*self.reps, ("mutual_knn", "rsa"))  # noqa: E731
        found: tuple[SimilarityMatrix, SimilarityMatrix] = self._of(
            "layer pairs", "Two layers", compare
        )
        return found

    def by_class(self, measure: str, estimator: str) -> tuple[SimilarityMatrix, ...]:
        """The measure within the images of each class that has enough of them; `images.split` of
        each names the class."""
        given = options(measure, estimator)
        compare = lambda: compare_within_classes(*self.reps, measure, **given)  # noqa: E731
        key = (measure, tuple(sorted(given.items())))
        found: tuple[SimilarityMatrix, ...] = self._of(
            "class similarity", "Similarity within classes", compare, *key
        )
        return found

    def neighbours(self) -> list[np.ndarray]:
        """The nearest images [n, k] of every image in both layers, nearest first: those that mutual
        k-NN counts."""
        search = lambda: [nearest_images(X, k=NEIGHBOURS) for X in self.features]  # noqa: E731
        found: list[np.ndarray] = self._of("neighbours", "Nearest images", search, on_disk=False)
        return found

    def distances(self, images: Images) -> pd.DataFrame:
        """A sample of pairs of images, by name, with their dissimilarity in both layers, as RSA
        takes it."""
        sample = lambda: sample_dissimilarities(*self.features)  # noqa: E731
        found: pd.DataFrame = self._of(
            "distances", "Pairwise distances between images", sample, on_disk=False
        )
        classes = pd.Series([data.class_of(images, i) for i in range(len(images))])
        names = pd.Series(images.ids) + np.where(classes == "", "", " (" + classes + ")")
        first, second = (found[side].map(classes) for side in "ij")
        kinds = np.where((first != "") & (first == second), "same class", "different")
        columns = {
            "image 1": found["i"].map(names),
            "image 2": found["j"].map(names),
            "classes": kinds,
        }
        return pd.DataFrame(columns).join(found[["distance_a", "distance_b"]])
