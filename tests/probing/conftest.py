from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models.layer import Layer


class FakeRepresentations:
    """Labelled representations made by hand."""

    def __init__(
        self,
        features: Mapping[str, np.ndarray],
        labels: np.ndarray | None,
        split: str,
        *,
        trained: bool = True,
    ) -> None:
        self.features = dict(features)
        n = len(next(iter(features.values())))
        last = max(1, len(features) - 1)
        self.layers = tuple(
            Layer(name, "block", i / last, (2, 2), values.shape[-1], 0, 4, order=i)
            for i, (name, values) in enumerate(features.items())
        )
        self.labels = labels
        self.ids = tuple(f"{split}-{i}" for i in range(n))
        self.class_names: tuple[str, ...] | None = ("cat", "dog", "frog")
        self.model = ModelRecord("mixer", "mixer", trained, "made by hand", "0" * 64, 1)
        self.images = ImagesRecord("noise", split, n, 3, "1" * 64)
        self.reduce = "mean"

    def __getitem__(self, name: str) -> np.ndarray:
        return self.features[name]


MakeReps = Callable[..., FakeRepresentations]


@pytest.fixture
def make_reps() -> MakeReps:
    return FakeRepresentations
