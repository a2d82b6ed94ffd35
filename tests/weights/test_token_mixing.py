"""Token-mixing units of networks: the right weights in all four forms, planted units, nulls,
tables, refusals."""

import numpy as np
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, MeasureError, ModelError, UndefinedUnitsWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.weights import TokenMixing
from mixer_probe.weights.findings import unit_sentences
from mixer_probe.weights.token_units import ORDERS

SPEC = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}


def small_mixer(patch: int = 4, **arguments: object) -> MlpMixer:
    torch.manual_seed(0)
    return MlpMixer(
        img_size=32, patch_size=patch, embed_dim=24, num_blocks=2, num_classes=5, **arguments
    )


# -- which weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, form, path, rows",
    [
        ("mixer_s32_224", "Mixer", "mlp_tokens.fc1", slice(None)),
        ("gmixer_12_224", "gMixer", "mlp_tokens.fc1", slice(192)),
        ("resmlp_12_224", "ResMLP", "linear_tokens", slice(None)),
        ("gmlp_ti16_224", "gMLP", "mlp_channels.gate.proj", slice(None)),
    ],
)
def test_units_are_rows_of_the_first_token_mixing_layer(
    name: str, form: str, path: str, rows: slice
) -> None:
    model = mp.load_model(name, pretrained=False, device="cpu")
    found = mp.token_mixing(model, surrogates=1, shuffles=1)
    weight = model.module.get_submodule(f"blocks.3.{path}").weight.detach().numpy()
    side = int(weight.shape[1] ** 0.5)
    assert (found.form, found.layer) == (form, path)
    assert found.grid == (side, side)
    assert found.patch == (224 / side, 224 / side)
    assert len(found.blocks) == len(model.module.blocks)
    scale = 1e-4 if form == "ResMLP" else 1  # timm's fresh layer scale
    np.testing.assert_allclose(
        found.units(3), scale * weight[rows].reshape(-1, side, side), rtol=1e-6
    )
    np.testing.assert_array_equal(found.units("blocks.3"), found.units(3))
    assert found.sides == {"Mixer": ("read", "write"), "gMixer": ("read", "gate", "write")}.get(
        form, ("read",)
    )


def test_the_other_sides_of_a_unit() -> None:
    network = timm.create_model("gmixer_12_224", num_classes=0)
    mlp = network.blocks[5].mlp_tokens
    with torch.no_grad():
        mlp.fc2.weight.copy_(-2 * mlp.fc1.weight[:192].T)
    found = mp.token_mixing(mp.load_model(network, device="cpu"), surrogates=1, shuffles=1)
    np.testing.assert_array_equal(
        found.units(5, "gate"), mlp.fc1.weight.detach().numpy()[192:].reshape(-1, 14, 14)
    )
    np.testing.assert_array_equal(
        found.units(5, "write"), mlp.fc2.weight.detach().numpy().T.reshape(-1, 14, 14)
    )
    np.testing.assert_allclose(found.cosine_with_read(5, "write"), -1, atol=1e-6)
    assert np.abs(found.cosine_with_read(4, "write")).max() < 0.5


def test_rows_follow_the_image_plane() -> None:
    # A unit that reads one patch only must answer to that patch of the picture and to no other.
    network = small_mixer()
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight.zero_()
        network.blocks[0].mlp_tokens.fc1.weight[0, 2 * 8 + 5] = 1.0
    # All other units are blank, and that is said.
    with pytest.warns(
        UndefinedUnitsWarning, match=r"11 units of constant weight.*: 11 of blocks\.0 \(read\)$"
    ):
        found = mp.token_mixing(mp.load_model(network, **SPEC), surrogates=1)
    assert found.grid == (8, 8)
    assert np.argwhere(found.units(0)[0]).tolist() == [[2, 5]]
    assert found.measures(0).centre[0].tolist() == [10.0, 22.0]
    image = torch.zeros(1, 3, 32, 32)
    image[..., 8:12, 20:24] = 1.0
    blank = network.stem(torch.zeros_like(image))
    changed = (network.stem(image) - blank).abs().sum(-1)[0].reshape(8, 8)
    assert changed.nonzero().tolist() == [[2, 5]]


def test_an_oblong_picture_keeps_rows_and_columns() -> None:
    network = MlpMixer(img_size=(16, 32), patch_size=4, embed_dim=24, num_blocks=1)
    found = mp.token_mixing(
        mp.load_model(network, **{**SPEC, "input_size": (3, 16, 32)}), surrogates=1
    )
    assert found.units(0).shape == found.units(0, "write").shape == (12, 4, 8)
    assert found.patch == (4, 4)


@pytest.mark.parametrize(
    "name", ["mixer_s32_224", "gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"]
)
def test_an_oblong_grid_of_every_form(name: str) -> None:
    network = timm.create_model(name, img_size=(224, 160), num_classes=0)
    found = mp.token_mixing(
        mp.load_model(network, **{**SPEC, "input_size": (3, 224, 160)}), surrogates=1, shuffles=1
    )
    grid = (7, 5) if name == "mixer_s32_224" else (14, 10)
    assert found.grid == grid
    assert found.units(0).shape[1:] == grid
    assert found.patch == (224 / grid[0], 160 / grid[1])
    assert np.isfinite(found.to_frame().select_dtypes("number")).all().all()
    # White noise spreads over the whole picture.
    assert found.summary()["mean_spread_px"].mean() == pytest.approx(found.uniform_spread, rel=0.02)


def test_the_network_is_left_alone() -> None:
    network = timm.create_model("mixer_s32_224")
    model = mp.load_model(network, device="cpu")
    before = model.fingerprint
    mp.token_mixing(model, surrogates=1, shuffles=1).units(0)[:] = 0
    assert mp.load_model(network, device="cpu").fingerprint == before


# -- what is measured ------------------------------------------------------------------------------


def wave(kx: int, ky: int, degrees: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(8.0).double(), torch.arange(8.0).double(), indexing="ij")
    return torch.cos(2 * torch.pi * (ky * y + kx * x) / 8 + np.radians(degrees)).flatten()


def test_planted_units_come_back() -> None:
    waves = [(1, 2, 0), (1, 2, 90), (1, 2, 180), (3, -1, 25), (3, -1, -155), (2, 0, 60)]
    network = small_mixer().double()
    with torch.no_grad():
        network.blocks[1].mlp_tokens.fc1.weight[:6] = torch.stack([wave(*one) for one in waves])
    table = (
        mp.token_mixing(mp.load_model(network, **SPEC))
        .to_frame()
        .query("block == 'blocks.1'")
        .iloc[:6]
    )
    kx, ky, phase = np.array(waves, dtype=float).T
    np.testing.assert_array_equal(table["peak_row"], ky)
    np.testing.assert_array_equal(table["peak_column"], kx)
    np.testing.assert_allclose(table["phase_degrees"], phase, atol=1e-9)
    np.testing.assert_allclose(
        table["frequency_cycles_per_token"], np.hypot(kx, ky) / 8, rtol=1e-12
    )
    np.testing.assert_allclose(
        table["orientation_degrees"], np.degrees(np.arctan2(-ky, kx)) % 180, atol=1e-9
    )
    np.testing.assert_allclose(table["coherence"], 1, atol=1e-12)
    assert table["partner"].iloc[[0, 2, 3, 4]].tolist() == [2, 0, 4, 3]
    np.testing.assert_allclose(table["partner_cosine"].iloc[[0, 2, 3, 4]], -1, atol=1e-12)
    # Few of 999 surrogates come as near to opposite phases.
    assert (table["partner_p"].iloc[[0, 2, 3, 4]] <= 0.005).all()


def test_a_network_with_planted_pairs_is_found_paired_and_its_shuffle_is_not() -> None:
    network = small_mixer(mlp_ratio=(2.0, 2.0))
    half = torch.randn(24, 64)
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight.copy_(torch.cat([half, -half]))
    found = mp.token_mixing(mp.load_model(network, **SPEC))
    assert found.fraction_paired(0) == 1.0
    assert found.fraction_paired(1) < 0.2
    assert found.partner(0)[:24].tolist() == list(range(24, 48))
    np.testing.assert_allclose(found.measures(0).partner_cosine, -1)
    # Pairs stand side by side.
    assert {abs(a - b) for a, b in found.order(0).reshape(-1, 2)} == {24}


def test_too_few_surrogates_pair_nothing_and_say_so() -> None:
    network = small_mixer(mlp_ratio=(2.0, 2.0))
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight[24:] = -network.blocks[0].mlp_tokens.fc1.weight[:24]
    model = mp.load_model(network, **SPEC)
    few = mp.token_mixing(model, surrogates=18, shuffles=1)
    assert np.isnan(few.fraction_paired(0))
    assert np.isnan(few.chance)
    for surrogates, chance in ((19, 0.05), (20, 1 / 21), (39, 0.05), (50, 2 / 51)):
        found = mp.token_mixing(model, surrogates=surrogates, shuffles=1)
        assert found.fraction_paired(0) == 1.0
        assert found.chance == pytest.approx(chance)


def test_a_dead_unit_is_last_and_breaks_nothing() -> None:
    network = small_mixer()
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight[3] = 0
    with pytest.warns(UndefinedUnitsWarning, match=r"has 1 unit of constant weight"):
        found = mp.token_mixing(mp.load_model(network, **SPEC), surrogates=2)
    assert np.flatnonzero(np.isnan(found.frequency(0))).tolist() == [3]
    assert np.isfinite(found.measures(0).partner_cosine).all()
    assert sorted(found.order(0).tolist()) == list(range(12))
    assert np.isfinite(found.summary()["mean_frequency"]).all()


def test_orders_are_those_of_the_measures() -> None:
    found = mp.token_mixing(mp.load_model(small_mixer(), **SPEC), surrogates=1, shuffles=1)
    one = found.measures(1)
    assert np.all(np.diff(one.frequency[found.order(1, by="frequency")]) >= 0)
    assert np.all(np.diff(one.spread[found.order(1, by="localisation")]) >= 0)
    assert np.all(np.diff(one.norm[found.order(1, by="norm")]) <= 0)
    for by in ORDERS:
        assert sorted(found.order(1, by=by)) == list(range(len(one.maps)))
        assert sorted(found.order("blocks.1", "write", by)) == list(range(len(one.maps)))
    with pytest.raises(MeasureError, match="no order 'beauty'"):
        found.order(1, by="beauty")


def test_sentences_on_a_unit_have_its_numbers_and_those_of_the_nulls() -> None:
    network = timm.create_model("gmixer_12_224", num_classes=0)
    found = mp.token_mixing(mp.load_model(network, device="cpu"), surrogates=2, shuffles=1)
    one, unit = found.measures(2), 7
    rank = int((one.frequency < one.frequency[unit]).sum()) + 1
    frequency, local, opposite, write, gate = unit_sentences(found, 2, unit)
    assert (
        f"rank {rank} of 192 from the lowest; the mean is {one.frequency.mean():.3f} for the block"
        in frequency
    )
    assert f"Localisation: {one.spread[unit]:.1f} px" in local
    assert f"Norm: {np.linalg.norm(one.maps[unit]):.3f}." in local
    partner = int(one.partner[unit])
    assert (
        f"Opposite-phase unit: {partner}, with cosine {one.partner_cosine[unit]:.3f}, not beyond "
        "chance" in opposite
    )
    back = int(one.partner[partner])
    assert (
        "the relation is mutual" if back == unit else f"of unit {partner} is unit {back}"
    ) in opposite
    assert f"{found.cosine_with_read(2, 'write')[unit]:+.3f}" in write
    assert f"{found.cosine_with_read(2, 'gate')[unit]:+.3f}" in gate


def test_a_real_size_network_has_the_null_figures_of_iid_rows() -> None:
    found = mp.token_mixing(
        mp.load_model("mixer_b16_224", pretrained=False, device="cpu"), surrogates=19, shuffles=1
    )
    table = found.summary()
    assert table["units"].tolist() == [384] * 12
    assert table["mean_partner_cosine"].mean() == pytest.approx(-0.2104, abs=0.001)
    assert np.mean([found.measures(i).partner_cosine.min() for i in range(12)]) == pytest.approx(
        -0.308, abs=0.012
    )
    assert table["mean_frequency"].mean() == pytest.approx(0.38598, abs=0.001)
    # timm draws from a uniform distribution, whose fourth moment is 1.8 and not 3: the ratio is a
    # little higher than the 129.54 of Gaussian rows, by n p / (n + p + 1 + (1.8 - 3)).
    assert table["participation_ratio"].mean() == pytest.approx(
        384 * 196 / (384 + 196 + 1 - 1.2), rel=0.003
    )
    assert table["fraction_paired"].mean() == pytest.approx(0.05, abs=0.015)
    np.testing.assert_allclose(table["effective_rank"], table["shuffled_effective_rank"], rtol=0.01)


# -- the result ------------------------------------------------------------------------------------


def test_other_families_and_blocks_are_refused_with_a_sentence() -> None:
    with pytest.raises(
        ModelError,
        match="is a cnn and has no token-mixing weights: it mixes positions by 3×3 convolutions",
    ):
        mp.token_mixing(mp.load_model("resnet18", pretrained=False, device="cpu"))
    found = mp.token_mixing(mp.load_model(small_mixer(), **SPEC), surrogates=1)
    with pytest.raises(LayerError, match="blocks 0 to 1, not 2"):
        found.units(2)
    with pytest.raises(LayerError, match=r"closest: blocks\.1"):
        found.units("block.1")
    with pytest.raises(
        LayerError, match=r"is a Mixer and has no side 'gate'; its sides: read, write"
    ):
        found.units(0, "gate")
    with pytest.raises(MeasureError, match="surrogates is a whole number, 1 or more, not 0"):
        mp.token_mixing(mp.load_model(small_mixer(), **SPEC), surrogates=0)


def test_the_result_survives_storage_and_becomes_tables() -> None:
    found = mp.token_mixing(mp.load_model(small_mixer(), **SPEC), surrogates=2)
    again: TokenMixing = from_dict(to_dict(found))
    np.testing.assert_array_equal(again.units(1), found.units(1))
    assert again.model == found.model
    for side in found.sides:
        assert again.to_frame(side).equals(found.to_frame(side))
        assert again.summary(side).equals(found.summary(side))
    assert len(found.to_frame()) == len(found.to_frame("write")) == 24
    assert found.summary()["units"].tolist() == [12, 12]
    assert "cosine_with_read" in found.to_frame("write")


def test_the_summary_has_means_and_nulls() -> None:
    found = mp.token_mixing(mp.load_model(small_mixer(), **SPEC), shuffles=3)
    row, units = found.summary("write").iloc[1], found.measures(1, "write")
    assert row["mean_frequency"] == pytest.approx(units.frequency.mean())
    assert row["mean_spread_px"] == pytest.approx(units.spread.mean())
    assert row["mean_coherence"] == pytest.approx(units.coherence.mean())
    assert row["mean_partner_cosine"] == pytest.approx(units.partner_cosine.mean())
    assert row["shuffled_mean_spread_px"] == pytest.approx(units.shuffled.spread.mean())
    assert row["shuffled_effective_rank"] == pytest.approx(units.shuffled.effective_rank.mean())
    s = np.linalg.svd(units.maps.reshape(12, 64).astype(float), compute_uv=False)
    assert row["participation_ratio"] == pytest.approx((s**2).sum() ** 2 / (s**4).sum())


def test_the_seed_decides_the_nulls_and_threads_do_not() -> None:
    model = mp.load_model(small_mixer(), **SPEC)
    first, again, other = (mp.token_mixing(model, seed=seed).summary() for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first["null_mean"].equals(other["null_mean"])
    assert first["mean_frequency"].equals(other["mean_frequency"])
