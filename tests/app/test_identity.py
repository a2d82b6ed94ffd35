"""The app knows images by their content and by their names, and networks by what they are now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mixer_probe_app.calls import key_of, key_of_images

from mixer_probe.images import from_arrays
from tests.networks import CASES


def test_keys_of_images_tell_content_and_names() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = from_arrays(pixels)
    others = [
        from_arrays(255 - pixels),
        images.subset([1, 0, 2]),
        replace(images, name="another folder"),
        replace(images, ids=("x", "y", "z")),
        replace(images, labels=np.arange(3)),
    ]
    assert len({key_of_images(i) for i in (images, *others)}) == 6
    assert key_of_images(images) == key_of_images(from_arrays(pixels.copy()))


def test_keys_of_networks_tell_weights_and_names() -> None:
    first, same, other = CASES["mixer"].model(), CASES["mixer"].model(), CASES["gmixer"].model()
    assert key_of(first) == key_of(first) == key_of(same) != key_of(other)
    assert key_of(replace(first, name="another")) != key_of(first)
