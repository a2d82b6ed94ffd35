"""`compare_models`: one streaming pass equals extracting, storing and comparing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from tests.tiny import tiny_models


@pytest.mark.parametrize("batch_size", [7, 64])
def test_streaming_equals_extract_and_compare(batch_size: int) -> None:
    mixer, vit, resnet = tiny_models()
    images = mp.load_images("demo", limit=40)
    for other in (vit, resnet):
        streamed = mp.compare_models(mixer, other, images, batch_size=batch_size)
        stored = mp.compare(mp.extract(mixer, images), mp.extract(other, images), permutations=0)
        np.testing.assert_allclose(streamed.values, stored.values, atol=1e-6)
        assert streamed.layers_b == other.select("blocks")
        assert (streamed.n, streamed.model_b.name, streamed.images) == (
            40,
            other.name,
            images.record,
        )


def test_memory_cuts_of_one_model_do_not_shift_the_images_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixer, vit, _ = tiny_models()
    images = mp.load_images("demo", limit=30)
    whole = mp.compare_models(mixer, vit, images, batch_size=16)
    forward = vit.module.forward

    def scarce(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 5:
            raise torch.OutOfMemoryError("simulated")
        return forward(batch)

    monkeypatch.setattr(vit.module, "forward", scarce)
    with pytest.warns(match="out of memory"):
        cut = mp.compare_models(mixer, vit, images, batch_size=16)
    np.testing.assert_allclose(cut.values, whole.values, atol=1e-6)


def test_too_few_images_are_refused() -> None:
    mixer, vit, _ = tiny_models()
    with pytest.raises(MeasureError, match="too few"):
        mp.compare_models(mixer, vit, mp.load_images("demo", limit=3))
