"""Position embeddings: planted similarities, grids and prefix tokens, and what networks without
them have instead."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import mixer_probe as mp
from mixer_probe.core.errors import DegenerateWeightsWarning, ModelError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.weights import PositionEmbeddings, position_embeddings
from tests.networks import CASES, as_model


def vit(
    table: np.ndarray | None = None, size: tuple[int, int] = (16, 24), **arguments: object
) -> mp.Model:
    """A ViT of 8 px patches whose position embeddings are `table` [tokens, channels]."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=size, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=5, **arguments
    )
    if table is not None:
        with torch.no_grad():
            network.pos_embed.copy_(torch.from_numpy(table)[None])
    return as_model(network, input_size=(3, *size))


def waves(height: int, width: int) -> np.ndarray:
    """Embeddings [h, w, 24] of norm one whose cosine is (cos(2 pi dy / 8) + cos(2 pi dx / 8)) /
    2."""
    y, x = (2 * np.pi * a / 8 for a in np.indices((height, width)))
    table = np.zeros((height, width, 24))
    table[..., :4] = np.stack([np.cos(y), np.sin(y), np.cos(x), np.sin(x)], -1) / np.sqrt(2)
    return table


def test_planted_waves_have_their_cosines_on_an_oblong_grid() -> None:
    table = np.concatenate([np.ones((1, 24)), 3 * waves(2, 3).reshape(6, 24)])
    found = position_embeddings(vit(table))
    assert (found.grid, found.patch, found.prefix_tokens, found.channels) == ((2, 3), (8, 8), 1, 24)
    assert (found.parameter, found.learned) == ("pos_embed", True)
    y, x = np.indices((2, 3))
    dy, dx = y[:, :, None, None] - y, x[:, :, None, None] - x
    expected = (np.cos(2 * np.pi * dy / 8) + np.cos(2 * np.pi * dx / 8)) / 2
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    np.testing.assert_allclose(found.norms, 3, rtol=1e-6)
    assert found.prefix_norms == pytest.approx([24**0.5])
    # Cosine of the ones with a wave: the sum of its four entries over sqrt(24).
    np.testing.assert_allclose(found.prefix_similarity[0], waves(2, 3).sum(-1) / 24**0.5, atol=1e-6)


def test_similarity_against_distance_is_that_of_all_pairs() -> None:
    model = vit(size=(32, 32))
    found = position_embeddings(model)
    table = found.by_distance()
    rows = model.module.pos_embed.detach()[0, 1:].double()
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).numpy()
    places = [(y, x) for y in range(4) for x in range(4)]
    pairs = [
        (np.hypot(a[0] - b[0], a[1] - b[1]), cosine[i, j])
        for i, a in enumerate(places)
        for j, b in enumerate(places)
        if i < j
    ]
    one = [c for d, c in pairs if round(d) == 1]
    assert table["pairs"].iloc[1] == len(one) == 2 * 12 + 2 * 9
    assert table["cosine"].iloc[1] == pytest.approx(np.mean(one))
    assert table["sd"].iloc[1] == pytest.approx(np.std(one, ddof=1))
    assert table["distance_px"].iloc[1] == pytest.approx(8 * (24 + 18 * 2**0.5) / 42)
    assert table["pairs"].sum() == 16 * 15 / 2
    assert (table["distance_px"].iloc[0], table["cosine"].iloc[0]) == (0, 1)


@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (1, 5)])
def test_neighbours_share_an_edge(grid: tuple[int, int]) -> None:
    found = position_embeddings(vit(size=(8 * grid[0], 8 * grid[1])))
    height, width = grid
    steps = [found.similarity[y, x, y, x + 1] for y in range(height) for x in range(width - 1)]
    steps += [found.similarity[y, x, y + 1, x] for y in range(height - 1) for x in range(width)]
    assert found.alike()["neighbours"] == pytest.approx(np.mean(steps), abs=1e-12)


def test_rows_and_columns_that_add_explain_everything() -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.standard_normal((4, 1, 24)), rng.standard_normal((1, 4, 24))
    found = position_embeddings(
        vit(np.concatenate([np.zeros((1, 24)), (rows + columns).reshape(16, 24)]), (32, 32))
    )
    energies = [4 * ((part - part.mean((0, 1))) ** 2).sum() for part in (rows, columns)]
    assert found.row_fraction == pytest.approx(energies[0] / sum(energies), abs=1e-6)
    assert found.column_fraction == pytest.approx(energies[1] / sum(energies), abs=1e-6)
    assert found.interaction_fraction == pytest.approx(0, abs=1e-10)
    same = position_embeddings(
        vit(
            np.concatenate([np.zeros((1, 24)), np.broadcast_to(rows, (4, 4, 24)).reshape(16, 24)]),
            (32, 32),
        )
    )
    assert same.row_fraction == pytest.approx(1)
    assert same.alike()["same row"] == pytest.approx(1)
    assert same.alike()["same column"] == pytest.approx(same.alike()["elsewhere"])


def test_iid_embeddings_have_the_shares_of_their_degrees_of_freedom() -> None:
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, device="cpu")
    found = mp.position_embeddings(model)
    fractions = (found.row_fraction, found.column_fraction, found.interaction_fraction)
    assert found.null_fractions == pytest.approx((13 / 195, 13 / 195, 169 / 195))
    np.testing.assert_allclose(fractions, found.null_fractions, atol=0.01)
    assert sum(fractions) == pytest.approx(1)
    # 192 channels: cosines of standard deviation 1 / sqrt(192).
    off = found.similarity.reshape(196, 196)[~np.eye(196, dtype=bool)]
    assert off.std() == pytest.approx(192**-0.5, rel=0.05)
    assert (found.grid, found.patch) == ((14, 14), (16, 16))


def test_a_shared_offset_hides_the_grid_until_it_is_removed() -> None:
    plain = np.concatenate([np.zeros((1, 24)), waves(8, 8).reshape(64, 24)])
    moved = plain + 10 * np.eye(24)[-1]
    found, centred = (position_embeddings(vit(moved, (64, 64)), centred=c) for c in (False, True))
    assert found.similarity.min() > 0.9
    # Over whole periods the waves have mean zero, so the offset is all that is removed.
    np.testing.assert_allclose(
        centred.similarity, position_embeddings(vit(plain, (64, 64))).similarity, atol=1e-5
    )
    assert centred.similarity.min() == pytest.approx(-1, abs=1e-5)
    assert centred.norms == pytest.approx(found.norms)


@pytest.mark.parametrize(
    "name, prefix, parameter",
    [
        ("vit", 1, "pos_embed"),
        ("vit-gap", 0, "pos_embed"),
        ("deit-distilled", 2, "pos_embed"),
        ("dinov2-registers", 0, "pos_embed"),
    ],
)
def test_prefix_tokens_are_kept_apart(name: str, prefix: int, parameter: str) -> None:
    model = CASES[name].model()
    found = position_embeddings(model)
    assert (found.prefix_tokens, found.parameter, found.grid) == (prefix, "pos_embed", (4, 4))
    table = model.module.pos_embed.detach()[0].double()
    np.testing.assert_allclose(found.norms.ravel(), table[prefix:].norm(dim=1), rtol=1e-12)


def test_hybrids_and_attention_pooling() -> None:
    assert position_embeddings(CASES["hybrid"].model()).grid == (2, 2)
    assert position_embeddings(CASES["vit-attention-pooling"].model()).parameter == "pos_embed"


def test_a_network_for_any_size_shows_its_own_table() -> None:
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, dynamic_img_size=True
    )
    found = position_embeddings(as_model(network, 64))
    assert (found.grid, found.patch) == ((4, 4), (16, 16))


@pytest.mark.parametrize(
    "name, instead",
    [
        ("mixer", "token-mixing weights differ from position to position"),
        ("gmlp", "token-mixing weights differ from position to position"),
        ("resnet18", "zero padding"),
        ("convnext", "zero padding"),
        ("swin", "relative position biases"),
        ("swinv2", "relative position biases"),
        ("beit", "relative position biases"),
    ],
)
def test_networks_without_one_say_what_they_have_instead(name: str, instead: str) -> None:
    with pytest.raises(ModelError, match=f"has no absolute position embedding: .*{instead}"):
        position_embeddings(CASES[name].model())


def test_rotary_embeddings_and_none_at_all() -> None:
    rotary = timm.models.eva.Eva(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=1,
        num_heads=2,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
    )
    with pytest.raises(ModelError, match="rotary position embeddings"):
        position_embeddings(as_model(rotary))
    with pytest.raises(ModelError, match="treats its patches as a set"):
        position_embeddings(vit(pos_embed="none"))


def test_an_embedding_of_zeros_is_nan_in_its_own_cells_only() -> None:
    table = np.concatenate([np.ones((1, 24)), waves(2, 3).reshape(6, 24)])
    table[3] = 0
    with pytest.warns(DegenerateWeightsWarning, match="zero or not finite"):
        found = position_embeddings(vit(table))
    undefined = np.isnan(found.similarity.reshape(6, 6))
    expected = np.zeros((6, 6), dtype=bool)
    expected[2], expected[:, 2] = True, True
    np.testing.assert_array_equal(undefined, expected)
    assert found.by_distance()["pairs"].sum() == 10
    assert np.isfinite(list(found.alike().values())).all()


def test_the_result_survives_storage_and_becomes_a_table() -> None:
    found = position_embeddings(CASES["vit"].model())
    again: PositionEmbeddings = from_dict(to_dict(found))
    np.testing.assert_array_equal(again.similarity, found.similarity)
    frame = again.to_frame()
    assert len(frame) == 16 * 15 / 2
    row = frame[
        (frame["row"] == 0)
        & (frame["column"] == 1)
        & (frame["other_row"] == 2)
        & (frame["other_column"] == 3)
    ].iloc[0]
    assert row["cosine"] == found.similarity[0, 1, 2, 3]
    assert row["distance_px"] == pytest.approx(8 * 8**0.5)


def test_the_zoo_learned_its_grid_and_its_twin_did_not() -> None:
    model = mp.load_model("zoo:vit-s0", device="cpu")
    trained, fresh = position_embeddings(model), position_embeddings(model.untrained())
    assert trained.by_distance()["cosine"].iloc[1] > 0.5
    assert abs(fresh.by_distance()["cosine"].iloc[1]) < 0.05
    assert trained.row_fraction + trained.column_fraction > 4 * (
        fresh.row_fraction + fresh.column_fraction
    )
