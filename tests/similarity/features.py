"""Features that several tests share."""

from __future__ import annotations

import numpy as np

from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.similarity.matrix import plain_layers


def notebook_features() -> tuple[np.ndarray, np.ndarray]:
    """Those of the demo notebook of Kornblith et al. 2019."""
    random = np.random.RandomState(1337)
    X = random.randn(100, 10)
    return X, random.randn(100, 10) + X


def features(seed: int, n: int = 40, p: int = 7, q: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Dependent features of uneven spread."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, p)) * random.uniform(0.2, 3, size=p)
    Y = X @ random.normal(size=(p, q)) + random.normal(size=(n, q))
    return X, np.tanh(Y)


def shifted_features(
    seed: int, n: int = 40, p: int = 7, q: int = 11
) -> tuple[np.ndarray, np.ndarray]:
    """As `features`, about a mean of their own, and less closely related."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, p)) * random.uniform(0.2, 3, size=p) + random.normal(size=p)
    return X, np.tanh(X @ random.normal(size=(p, q)) / p + random.normal(size=(n, q)))


def undefined_matrix() -> SimilarityMatrix:
    """CKA of two layers with one, of three images, which is not defined."""
    a, b = plain_layers({"a": 2, "b": 2}), plain_layers({"c": 2})
    return SimilarityMatrix(
        np.full((2, 1), np.nan),
        a,
        b,
        None,
        None,
        None,
        "cka",
        "unbiased",
        "linear",
        3,
        (2, 2),
        (2,),
        None,
        "gram",
        "mean",
        0,
    )
