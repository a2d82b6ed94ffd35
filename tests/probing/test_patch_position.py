"""The place of a token: planted positions, positions that are not there, and the definitions
written out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from timm.models.vision_transformer import VisionTransformer

from mixer_probe.core.errors import ImagesError, LayerError, MeasureError, UndefinedProbeWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.probing.patch_position import (
    PositionMoments,
    centres,
    part_of,
    patch_position_probe,
)
from tests.networks import as_model, noise, randomised

WHERE = "pos_drop"


def network(positions: torch.Tensor, content: float = 0.0) -> VisionTransformer:
    """A ViT on 4 x 4 tokens of 16 channels whose embedding is known: `content` times noise, plus
    `positions` [16, 16]."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        class_token=False,
        global_pool="avg",
    )
    randomised(vit)
    with torch.no_grad():
        vit.patch_embed.proj.weight *= content
        vit.patch_embed.proj.bias.zero_()
        vit.pos_embed.copy_(positions[None])
    return vit.eval()


def plane() -> torch.Tensor:
    """Row and column in the first two channels."""
    rows = torch.arange(16) // 4
    return torch.stack([rows, torch.arange(16) % 4] + [torch.zeros(16)] * 14, dim=1).float()


def test_centres_of_cells():
    np.testing.assert_array_equal(centres((2, 2), (8, 16)), [[2, 4], [2, 12], [6, 4], [6, 12]])


def test_chance_distance_is_the_golden_one():
    model = as_model(network(torch.eye(16)))
    result = patch_position_probe(model, noise(20), noise(8, seed=2), WHERE)
    places = centres((4, 4), (32, 32))
    by_hand = np.mean([np.hypot(*(a - b)) for a in places for b in places])
    assert result.chance_distance_px[0] == pytest.approx(by_hand)
    # 14 x 14 cells of 16 px: the mean distance of uniform attention.
    from scipy.spatial.distance import pdist

    assert pdist(centres((14, 14), (224, 224))).sum() * 2 / 196**2 == pytest.approx(116.49222709)


@pytest.mark.parametrize("content", [0.0, 0.05])
def test_one_hot_positions_are_read_without_error(content):
    result = patch_position_probe(
        as_model(network(3 * torch.eye(16), content)), noise(60), noise(20, seed=2), WHERE
    )
    assert result.accuracy[0] == 1
    assert result.distance_px[0] == 0
    assert result.r2[0] > 0.99
    assert (result.cells[0] == 1).all()


def test_a_plane_is_read_too_where_one_hot_regression_masks_the_middle():
    # Scores linear in row and column peak at the corners: 4 of 16 cells. The discriminant has all.
    result = patch_position_probe(
        as_model(network(plane(), 0.05)), noise(60), noise(20, seed=2), WHERE
    )
    assert result.accuracy[0] > 0.99
    assert result.r2[0] > 0.98


def test_content_that_knows_no_place_is_at_chance():
    result = patch_position_probe(
        as_model(network(torch.zeros(16, 16), 1.0)), noise(300), noise(150, seed=2), WHERE
    )
    assert result.chance[0] == 1 / 16
    assert result.low_accuracy[0] < 1 / 16 < result.high_accuracy[0]
    assert abs(result.r2[0]) < 0.01
    assert result.low_distance_px[0] < result.chance_distance_px[0] < result.high_distance_px[0]


def explicit(n: int = 12, cells: int = 9, channels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    places = centres((3, 3), (30, 30))
    mixing = random.normal(size=(2, channels))
    return 100 + places @ mixing * 0.05 + random.normal(size=(n, cells, channels)), places


def moments_of(x: np.ndarray, places: np.ndarray, parts: tuple[int, ...]) -> PositionMoments:
    moments = PositionMoments(places)
    for start, end in zip((0, *parts), (*parts, len(x)), strict=True):
        batch = torch.from_numpy(x[start:end])
        moments.update(moments.of(batch), len(batch))
    return moments


def test_moments_give_what_the_tokens_give():
    x, places = explicit()
    new = explicit(n=30)[0][12:]
    path = np.array([1e-3, 0.3])
    probes = moments_of(x, places, (5, 6)).compute(path)
    found = probes.answers(torch.from_numpy(new), torch.from_numpy(places))
    tokens, targets = x.reshape(-1, 5), np.tile(places, (12, 1))
    mean, scale = tokens.mean(0), tokens.std(0)
    Z, W = (tokens - mean) / scale, (new.reshape(-1, 5) - mean) / scale
    labels = np.tile(np.arange(9), 12)
    means = np.stack([Z[labels == s].mean(0) for s in range(9)])
    within = (Z - means[labels]).T @ (Z - means[labels]) / len(Z)
    alone = moments_of(x, places, (5, 6)).compute(path[:1], path[1:])
    np.testing.assert_allclose(alone.regression[0], probes.regression[0], rtol=1e-8)
    np.testing.assert_allclose(alone.directions[0], probes.directions[1], rtol=1e-8)
    for k, ridge in enumerate(path):
        # The mean eigenvalue of a correlation matrix is 1, and Ridge sums over tokens.
        read = Ridge(alpha=ridge * len(Z)).fit(Z, targets).predict(W).reshape(18, 9, 2)
        np.testing.assert_allclose(found.errors[k], ((read - places) ** 2).sum(1), rtol=1e-8)
        inverse = np.linalg.inv(within + ridge * np.trace(within) / 5 * np.eye(5))
        scores = -0.5 * np.einsum("tsc,cd,tsd->ts", W[:, None] - means, inverse, W[:, None] - means)
        cells = scores.argmax(1).reshape(18, 9)
        np.testing.assert_allclose(found.right[k], (cells == np.arange(9)).mean(1))
        np.testing.assert_allclose(found.by_cell[k], (cells == np.arange(9)).sum(0))
        np.testing.assert_allclose(
            found.distances[k], np.linalg.norm(places[cells] - places, axis=-1).mean(1)
        )


def test_moments_do_not_depend_on_the_batches():
    x, places = explicit()
    found = [moments_of(x, places, parts).compute(np.array([0.01])) for parts in ((), (1, 2, 11))]
    np.testing.assert_allclose(found[0].regression, found[1].regression, rtol=1e-9)
    np.testing.assert_allclose(found[0].directions, found[1].directions, rtol=1e-7)


def test_r2_is_that_of_scikit_learn():
    model, train, test = as_model(network(plane(), 1.0)), noise(40), noise(11, seed=2)
    result = patch_position_probe(model, train, test, WHERE, ridges=[0.1])
    places = centres((4, 4), (32, 32))
    with torch.no_grad():
        tokens = [
            model.module.pos_drop(model.module.patch_embed(x) + model.module.pos_embed)
            .double()
            .numpy()
            for x in (train, test)
        ]
    Z, new = (t.reshape(-1, 16) for t in tokens)
    mean, scale = Z.mean(0), Z.std(0)
    read = (
        Ridge(alpha=0.1 * len(Z))
        .fit((Z - mean) / scale, np.tile(places, (40, 1)))
        .predict((new - mean) / scale)
    )
    truth = np.tile(places, (11, 1))
    assert result.row_r2[0] == pytest.approx(r2_score(truth[:, 0], read[:, 0]), abs=1e-6)
    assert result.column_r2[0] == pytest.approx(r2_score(truth[:, 1], read[:, 1]), abs=1e-6)
    assert result.r2[0] == pytest.approx(r2_score(truth, read), abs=1e-6)
    assert result.low_r2[0] < result.r2[0] < result.high_r2[0]


def test_grids_of_several_layers_and_the_twin():
    model = as_model(network(plane(), 1.0))
    result = patch_position_probe(
        model, noise(30), None, (WHERE, "blocks"), grid=(2, 4), batch_size=7
    )
    assert result.grids == ((2, 4), (2, 4))
    assert (result.n_train, result.n_test) == (20, 10)
    np.testing.assert_allclose(result.chance, 1 / 8)
    frame = result.to_frame()
    assert frame[["rows", "columns"]].to_numpy().tolist() == [[2, 4]] * 2
    assert from_dict(to_dict(result)).to_frame().equals(frame)


def test_layers_that_say_nothing_are_nan_without_other_warnings():
    vit = network(torch.zeros(16, 16), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UndefinedProbeWarning, match=r"layer 'pos_drop'.*do not vary"):
            patch_position_probe(as_model(vit), noise(20), noise(5, seed=2), WHERE)
    with pytest.warns(UndefinedProbeWarning):
        result = patch_position_probe(as_model(vit), noise(20), noise(5, seed=2), WHERE)
    assert np.isnan([result.r2[0], result.accuracy[0], result.distance_px[0]]).all()


def test_what_cannot_be_read():
    model = as_model(network(plane(), 1.0))
    with pytest.raises(LayerError, match="'head' form no grid"):
        patch_position_probe(model, noise(20), None, "head")
    with pytest.raises(MeasureError, match="too few for a grid of 8x8"):
        patch_position_probe(model, noise(20), None, WHERE, grid=(8, 8))
    with pytest.raises(MeasureError, match="one position"):
        patch_position_probe(model, noise(20), None, WHERE, grid=(1, 1))
    with pytest.raises(MeasureError, match="positive"):
        patch_position_probe(model, noise(20), None, WHERE, ridges=[0])
    with pytest.raises(ImagesError, match="4 images are too few"):
        patch_position_probe(model, noise(4), noise(4, seed=2), WHERE)


def test_images_may_not_be_in_both_sets():
    import mixer_probe as mp

    images = mp.load_images("demo", limit=20)
    model = as_model(network(plane(), 1.0))
    with pytest.raises(ImagesError, match="10 test images are also in train"):
        patch_position_probe(model, images, images.subset(range(10)), WHERE)
    with pytest.raises(ImagesError, match="5 test images are also in train"):
        patch_position_probe(model, noise(20), noise(5), WHERE)
    assert part_of(images, np.arange(20) % 2 == 0).ids == images.ids[::2]


def test_networks_of_the_zoo_know_where_a_token_is():
    import mixer_probe as mp

    images, test = (mp.load_images("demo", split=split, limit=40) for split in ("train", "test"))
    last = {"zoo:mixer-s0": "blocks.3", "zoo:vit-s0": "blocks.1", "zoo:resnet-s0": "layer3.1"}
    for name, layer in last.items():
        model = mp.load_model(name, device="cpu")
        result = patch_position_probe(model, images, test, ("stem", layer), grid=(4, 4))
        # The stem knows what is in the patch, and a little more than nothing of where it is; a
        # block knows it.
        assert result.accuracy[0] < 0.3
        assert result.low_accuracy[1] > 0.4
        assert result.distance_px[1] < 0.5 * result.chance_distance_px[1]
