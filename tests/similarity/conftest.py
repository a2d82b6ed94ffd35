from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models.layer import Layer


class FakeRepresentations:
    """Representations made by hand."""

    def __init__(
        self, features: Mapping[str, np.ndarray], name: str = "model", reduce: str = "mean"
    ) -> None:
        self.features = dict(features)
        self.n = len(next(iter(features.values())))
        last = max(1, len(features) - 1)
        self.layers = tuple(
            Layer(layer, "block", i / last, (2, 2), values.shape[-1], 0, 4, order=i)
            for i, (layer, values) in enumerate(features.items())
        )
        self.labels: np.ndarray | None = None
        self.ids = tuple(f"image-{i}" for i in range(self.n))
        self.class_names: tuple[str, ...] | None = None
        self.model = ModelRecord(name, "mixer", True, "made by hand", "0" * 64, 1)
        self.images = ImagesRecord("noise", "test", self.n, 1, "1" * 64)
        self.reduce = reduce

    def __getitem__(self, name: str) -> np.ndarray:
        return self.features[name]


MakeReps = Callable[..., FakeRepresentations]


@pytest.fixture
def make_reps() -> MakeReps:
    return FakeRepresentations
