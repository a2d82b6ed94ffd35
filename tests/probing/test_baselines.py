"""Raw pixels as a representation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mixer_probe as mp
import mixer_probe.capture.units as units
from mixer_probe.capture import open_run
from mixer_probe.core.errors import ImagesError
from mixer_probe.images.labelled import from_arrays
from mixer_probe.probing.baselines import pixel_baseline, raw_pixels


def pictures(n: int = 6, height: int = 4, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_pixels_of_ones_own_size_are_the_pixels():
    reps = raw_pixels(from_arrays(pictures(), labels=[0, 1] * 3), size=None)
    np.testing.assert_allclose(reps["pixels"], pictures().reshape(6, -1) / 255, atol=1e-7)
    assert (reps.model.name, reps.model.family, reps.model.trained, reps.model.parameters) == (
        "raw pixels",
        "pixels",
        False,
        0,
    )
    assert reps.layers[0].depth == 0
    assert reps.labels is not None


def test_a_square_is_cut_from_the_centre():
    wide = np.zeros((1, 4, 8, 3), dtype=np.uint8)
    wide[:, :, 2:6] = 255
    np.testing.assert_allclose(raw_pixels(from_arrays(wide), size=4)["pixels"], 1)


def test_tensors_are_averaged_down():
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    reps = raw_pixels(images, size=2)
    expected = images.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)).permute(0, 2, 3, 1).reshape(2, -1)
    np.testing.assert_allclose(reps["pixels"], expected)
    np.testing.assert_allclose(
        raw_pixels(images, size=None)["pixels"], images.permute(0, 2, 3, 1).reshape(2, -1)
    )


def test_sizes_that_cannot_be():
    several = from_arrays([pictures(1)[0], pictures(1, 5, 4)[0]])
    with pytest.raises(ImagesError, match=r"several sizes \(4x4, 5x4, \.\.\.\)"):
        raw_pixels(several, size=None)
    with pytest.raises(ImagesError, match="1 or more"):
        raw_pixels(several, size=0)
    with pytest.raises(ImagesError, match="no pixels for 9x9"):
        raw_pixels(torch.zeros(1, 3, 4, 4), size=9)


def test_pixels_of_the_demo_are_probed_as_a_network_is():
    train, test = (mp.load_images("demo", split=split, limit=300) for split in ("train", "test"))
    result = mp.linear_probe(*pixel_baseline(train, test, size=8))
    assert result.p == (192,)
    # Linear classifiers of CIFAR-10 pixels are known to be between chance and 0.4.
    assert 0.1 < result.low[0] < result.accuracy[0] < 0.45
    assert result.to_frame().model[0] == "raw pixels"


def test_pixels_go_to_a_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = from_arrays(pictures(), labels=[0, 1] * 3)
    kept = raw_pixels(images, 4)
    monkeypatch.setattr(units, "LEAST", 4)
    stored = raw_pixels(images, 4, tmp_path / "pixels")
    np.testing.assert_array_equal(stored["pixels"], kept["pixels"])
    assert (stored.record, stored.ids, stored.keys) == (kept.record, kept.ids, kept.keys)
    np.testing.assert_array_equal(open_run(tmp_path / "pixels")["pixels"], kept["pixels"])
