"""Single images of every kind of source: distorted, altered and finished ones are taken wherever
plain ones are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture import TensorImages, extract, input_pictures, part_of
from mixer_probe.core.errors import ImagesError
from mixer_probe.images import from_arrays
from mixer_probe.images.distortions import LowPass, PatchShuffle, distort
from mixer_probe.models import Model
from mixer_probe.similarity.streaming import random_keys
from tests.networks import CASES, noise

N = 20


@pytest.fixture(scope="module")
def model() -> Model:
    return CASES["mixer"].model()


def plain() -> mp.Images:
    pixels = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    return from_arrays(pixels, np.arange(N) % 2, class_names=("cat", "dog"))


SOURCES: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "distorted": lambda: distort(plain(), PatchShuffle(2)),
    "altered": lambda: mp.probing.shifted_images(plain()),
    "altered distorted": lambda: mp.probing.shifted_images(distort(plain(), LowPass(0.1))),
    "tensor": lambda: TensorImages(noise(N)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_part_is_what_it_is_in_the_whole(model: Model, kind: str) -> None:
    source, rows = SOURCES[kind](), [7, 3, 11]
    whole, part = extract(model, source), extract(model, part_of(source, rows))
    assert part.keys == tuple(whole.keys[i] for i in rows)
    assert part.ids == tuple(whole.ids[i] for i in rows)
    np.testing.assert_allclose(part["blocks.1"], whole["blocks.1"][rows], rtol=0, atol=1e-6)
    mask = np.arange(N) % 2 == 0
    assert part_of(source, mask).ids == tuple(np.array(source.ids)[mask])


MEASURES: dict[str, Callable[[Model, Any], Any]] = {
    "pictures": lambda m, images: input_pictures(m, images, [3, 1]),
    "activation maps": lambda m, images: mp.channels.activation_maps(
        m, images, [3, 1], "blocks.0", 0
    ),
    "minibatches": lambda m, images: mp.compare_models(
        m, m, images, positions="flatten", permutations=0, resamples=0, batch_size=10
    ),
    "patch position": lambda m, images: mp.probing.patch_position_probe(
        m, images, layers="blocks.0"
    ),
    "visualize": lambda m, images: mp.visualize(
        m, "blocks.0", [0], images=images, seeds=(0,), steps=1, k=2
    ),
}


@pytest.mark.parametrize("kind", ["distorted", "altered", "tensor"])
@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_single_images_take_every_source(model: Model, name: str, kind: str) -> None:
    assert MEASURES[name](model, SOURCES[kind]()) is not None


class Whole:
    """A source that gives no single images, and counts how often it is read."""

    def __init__(self) -> None:
        self._images = plain()
        self.ids, self.labels, self.class_names = (
            self._images.ids,
            self._images.labels,
            self._images.class_names,
        )
        self.record, self.keys = self._images.record, self._images.keys
        self.read = 0

    def __len__(self) -> int:
        return N

    def batches(self, *given: Any, **options: Any) -> Any:
        self.read += 1
        return self._images.batches(*given, **options)


@pytest.mark.parametrize("name", MEASURES)
def test_what_gives_no_single_images_is_refused_before_the_work(model: Model, name: str) -> None:
    source = Whole()
    with pytest.raises(ImagesError, match="single images are needed, and a Whole has no subset"):
        MEASURES[name](model, source)
    assert source.read == 0


def test_images_with_one_first_layer_are_drawn_one_by_one() -> None:
    """Images keep their draw however batches are cut, and equal beginnings draw no equal
    numbers."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    x[:, :3] = 0
    x[6:] = x[:6]
    draws = random_keys(x, y, 0)
    assert len(set(draws)) == 12
    assert ((draws >= 0) & (draws < 1)).all()
    np.testing.assert_array_equal(
        np.concatenate([random_keys(x[:5], y[:5], 0), random_keys(x[5:], y[5:], 0)]), draws
    )
    assert not set(random_keys(x, y, 1)) & set(draws)


def test_long_seeds_draw_other_numbers() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    seeds = [10**20, 10**20 + 1]
    assert random_keys(x, x, seeds[0])[0] != random_keys(x, x, seeds[1])[0]
