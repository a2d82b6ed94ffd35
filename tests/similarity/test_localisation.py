"""`localisation_cka` on networks whose positions are known: their own patch, or the mean of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.similarity.localisation import LocalisationCKA, cut_patches, localisation_cka
from mixer_probe.similarity.nulls import draw_pairings
from tests.tiny import SPEC, tiny_models


def planted() -> mp.Model:
    """A stem that copies the 8×8 patches, and a block that puts their mean everywhere."""
    network = MlpMixer(img_size=32, patch_size=8, embed_dim=192, num_blocks=1)
    with torch.no_grad():
        network.stem.proj.weight.copy_(torch.eye(192).view(192, 3, 8, 8))
        network.stem.proj.bias.zero_()
    network.blocks[0].forward = lambda x: x.mean(1, keepdim=True).expand_as(x)
    return mp.load_model(network, name="planted", **SPEC)


def pixels(n: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def found() -> LocalisationCKA:
    return localisation_cka(planted(), pixels(), ["stem", "blocks"], grid=4, permutations=99)


def test_copied_patches_are_found_and_a_global_mean_is_nowhere(found: LocalisationCKA) -> None:
    assert [layer.kind for layer in found.layers] == ["stem", "block"]
    assert found.values.shape == (2, 16, 16)
    assert found.patches is not None
    np.testing.assert_allclose(found.values[0], found.patches, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(found.values[0]), 1, atol=1e-6)
    # All positions are equal, so that the same patch is closest to all of them, and it is one's own once.
    np.testing.assert_allclose(found.values[1], found.values[1, :1].repeat(16, axis=0), atol=1e-9)
    np.testing.assert_allclose(found.self_share, [1, 1 / 16])
    frame = found.to_frame()
    assert frame["own"][0] == pytest.approx(1)
    assert abs(frame["others"][0]) < 0.02
    assert frame["own"][1] == pytest.approx(frame["others"][1])
    assert frame["n"].tolist() == [60, 60]


def test_values_are_unbiased_cka_of_positions_with_patches() -> None:
    mixer, *_ = tiny_models()
    images = pixels(30)
    found = localisation_cka(mixer, images, "blocks", grid=2, permutations=0)
    patches = [images[:, :, y : y + 16, x : x + 16].flatten(1) for y in (0, 16) for x in (0, 16)]
    reps = mp.extract(mixer, images, reduce="none")["blocks.1"].reshape(30, 2, 2, 2, 2, -1).mean(axis=(2, 4)).reshape(30, 4, -1)
    expected = [[mp.cka(reps[:, s], patch) for patch in patches] for s in range(4)]
    np.testing.assert_allclose(found.values[1], expected, atol=1e-6)
    assert np.isnan(found.null95).all()
    assert np.isnan(found.distance).all()
    assert (found.grid, found.input_size) == ((2, 2), (32, 32))


def test_independent_patches_are_within_their_null(found: LocalisationCKA) -> None:
    """240 cells of independent patches, each pair twice: 5 % beyond the null would be 12; none beyond that of the maximum."""
    others = ~np.eye(16, dtype=bool)
    above = (found.values[0] > found.null95[0])[others]
    assert above.mean() < 0.15
    assert found.maximum95 is not None
    assert (found.maximum95 > found.null95.max(axis=(1, 2))).all()
    assert (np.diagonal(found.values[0]) > found.maximum95[0]).all()
    # The null of unbiased CKA has standard deviation sqrt(2 / (n (n - 3))), and a normal's 95 % quantile is at 1.64 of them.
    assert found.null95[0].mean() == pytest.approx(1.64 * (2 / (60 * 57)) ** 0.5, rel=0.2)


def test_the_null_is_that_of_compare() -> None:
    """The same pairings of images as in `compare` of a patch with a position."""
    images = pixels(30)
    found = localisation_cka(planted(), images, "stem", grid=1, permutations=20, seed=5)
    order = torch.cat([p.partners() for p in draw_pairings(30, 20, 5)])[1:]
    whole = images.flatten(1)
    # On a grid of 1 the stem is the mean patch.
    position = cut_patches(images, (4, 4))
    mean = torch.stack(position).mean(0)
    drawn = sorted(mp.cka(mean, whole[row]) for row in order)
    # With 20 permutations the 95 % quantile is the largest.
    assert found.null95[0, 0, 0] == pytest.approx(drawn[-1], abs=1e-6)


def test_distances_in_pixels_by_hand(found: LocalisationCKA) -> None:
    """Two cells side by side in an image of 32×64: their centres are 32 px apart."""
    values = np.array([np.eye(2), np.full((2, 2), 0.5), [[0.7, 0.4], [0.1, 0.1]], np.zeros((2, 2))])
    layers = found.layers[:1] * 4
    made = replace(found, layers=layers, grid=(1, 2), values=values, null95=np.full((4, 2, 2), 0.1), input_size=(32, 64))
    # Above the null by 0.6 at 0 px and 0.3 at 32 px in the third; not at all in the last.
    np.testing.assert_allclose(made.distance, [0, 16, 32 / 3, np.nan])
    np.testing.assert_allclose(made.self_share, [1, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(made.to_frame()["share_above_null"], [0.5, 1, 0.5, 0])
    assert made.distance_of_patches == 16


def test_patches_are_the_cells_of_adaptive_pooling() -> None:
    images = pixels(2)
    cells = cut_patches(images, (7, 5))
    means = torch.stack([cell.view(2, 3, -1).mean(2) for cell in cells], dim=2)
    expected = torch.nn.functional.adaptive_avg_pool2d(images, (7, 5)).flatten(2)
    torch.testing.assert_close(means, expected)


def test_constant_pixels_are_undefined() -> None:
    images = pixels(30)
    images[:, :, :8, :8] = 1
    found = localisation_cka(planted(), images, "stem", grid=4, permutations=20)
    assert np.isnan(found.values[0, 0]).all()
    assert np.isnan(found.values[0, :, 0]).all()
    assert np.isfinite(found.values[0, 1:, 1:]).all()
    np.testing.assert_array_equal(found.self_share, [1])
    assert np.isfinite(found.distance).all()


def test_batches_and_memory_cuts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, *_ = tiny_models()
    images = mp.load_images("demo", limit=30)
    whole = localisation_cka(mixer, images, grid=4, permutations=20, batch_size=30)
    forward = mixer.module.forward

    def scarce(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 5:
            raise torch.OutOfMemoryError("simulated")
        return forward(batch)

    monkeypatch.setattr(mixer.module, "forward", scarce)
    with pytest.warns(match="out of memory"):
        cut = localisation_cka(mixer, images, grid=4, permutations=20, batch_size=16)
    np.testing.assert_allclose(cut.values, whole.values, atol=1e-6)
    np.testing.assert_allclose(cut.null95, whole.null95, atol=1e-6)
    assert whole.images == images.record


def test_more_images_than_the_limit_are_sampled() -> None:
    mixer, *_ = tiny_models()
    images = mp.load_images("demo")
    found = localisation_cka(mixer, images, grid=2, limit=20, permutations=0, seed=3)
    assert (found.n, found.images) == (20, images.sample(20, 3).record)
    assert localisation_cka(mixer, pixels(30), grid=2, limit=20, permutations=0).n == 20


def test_layers_without_the_grid_are_refused() -> None:
    mixer, _, resnet = tiny_models()
    with pytest.raises(MeasureError, match=r"take grid=\(1, 1\), which all these layers have"):
        localisation_cka(resnet, pixels(10), "blocks", grid=4)
    with pytest.raises(MeasureError, match=r"take grid=\(4, 4\)"):
        localisation_cka(mixer, pixels(10))
    with pytest.raises(MeasureError, match="which head does not have: leave it out"):
        localisation_cka(mixer, pixels(10), ["blocks", "head"], grid=4)
    with pytest.raises(MeasureError, match="3 images are too few"):
        localisation_cka(mixer, pixels(3), grid=4)
    with pytest.raises(MeasureError, match="10 permutations give no 95 % quantile"):
        localisation_cka(mixer, pixels(10), grid=4, permutations=10)


def test_it_is_stored(found: LocalisationCKA) -> None:
    assert to_dict(from_dict(to_dict(found))) == to_dict(found)
