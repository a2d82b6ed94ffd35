"""Token-mixing units: the right rows of the right matrices in all four forms, frequencies, partners and their null."""

import numpy as np
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.errors import LayerError, ModelError
from mixer_probe.results import from_dict, to_dict
from mixer_probe.weights import TokenMixing, paired_order, partner_null, partners

SPEC = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}


def small_mixer(patch: int = 4, **arguments: object) -> MlpMixer:
    torch.manual_seed(0)
    return MlpMixer(img_size=32, patch_size=patch, embed_dim=24, num_blocks=2, num_classes=5, **arguments)


@pytest.mark.parametrize(
    "name, path, form",
    [
        ("mixer_s32_224", "mlp_tokens.fc1", "mlp_tokens.fc1"),
        ("gmixer_12_224", "mlp_tokens.fc1", "mlp_tokens.fc1 (gated)"),
        ("resmlp_12_224", "linear_tokens", "linear_tokens"),
        ("gmlp_ti16_224", "mlp_channels.gate.proj", "mlp_channels.gate.proj"),
    ],
)
def test_units_are_rows_of_the_first_token_mixing_layer(name: str, path: str, form: str) -> None:
    model = mp.load_model(name, pretrained=False, device="cpu")
    found = mp.token_mixing(model, surrogates=1)
    weight = model.module.get_submodule(f"blocks.3.{path}").weight.detach().numpy()
    side = int(weight.shape[1] ** 0.5)
    assert found.form == form
    assert found.grid == (side, side)
    assert len(found.blocks) == len(model.module.blocks)
    np.testing.assert_array_equal(found.units(3), weight.reshape(-1, side, side))
    np.testing.assert_array_equal(found.units("blocks.3"), found.units(3))


def test_rows_follow_the_image_plane() -> None:
    # A unit that reads one patch only must answer to that patch of the picture and to no other.
    network = small_mixer()
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight.zero_()
        network.blocks[0].mlp_tokens.fc1.weight[0, 2 * 8 + 5] = 1.0
    found = mp.token_mixing(mp.load_model(network, **SPEC), surrogates=1)
    assert found.grid == (8, 8)
    assert np.argwhere(found.units(0)[0]).tolist() == [[2, 5]]
    image = torch.zeros(1, 3, 32, 32)
    image[..., 8:12, 20:24] = 1.0
    blank = network.stem(torch.zeros_like(image))
    changed = (network.stem(image) - blank).abs().sum(-1)[0].reshape(8, 8)
    assert changed.nonzero().tolist() == [[2, 5]]


def test_an_oblong_picture_keeps_rows_and_columns() -> None:
    network = MlpMixer(img_size=(16, 32), patch_size=4, embed_dim=24, num_blocks=1)
    model = mp.load_model(network, **{**SPEC, "input_size": (3, 16, 32)})
    assert mp.token_mixing(model, surrogates=1).units(0).shape == (12, 4, 8)


def planted() -> np.ndarray:
    y, x = np.mgrid[:8, :8]
    angles = [2 * np.pi * (y + 2 * x) / 8, 2 * np.pi * 3 * y / 8]
    return np.stack([np.cos(angles[0]), np.sin(angles[0]), -np.cos(angles[0]), np.sin(angles[1]), -2 * np.sin(angles[1])])


def test_partners_are_opposite_phases() -> None:
    found, cosine = partners(planted())
    assert found.tolist()[0] == 2
    assert found.tolist()[2:] == [0, 4, 3]
    np.testing.assert_allclose(cosine[[0, 2, 3, 4]], -1.0, atol=1e-12)
    # Quadrature is no opposition.
    assert cosine[1] == pytest.approx(0.0, abs=1e-12)


def test_the_iid_null_of_the_golden_figures() -> None:
    # 384 units of 14x14 white noise: mean of the most negative cosine -0.2104, extreme about -0.31.
    cosine = partners(np.random.default_rng(0).standard_normal((384, 14, 14)))[1]
    assert cosine.mean() == pytest.approx(-0.2104, abs=0.004)
    assert -0.36 < cosine.min() < -0.27


def test_the_null_of_noise_is_noise_and_of_smooth_maps_is_lower() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((128, 14, 14))
    assert partner_null(noise, 5, 0)[0] == pytest.approx(partners(noise)[1].mean(), abs=0.01)
    spectrum = np.fft.fft2(noise)
    spectrum[:, 3:-2], spectrum[:, :, 3:-2] = 0, 0
    smooth = np.fft.ifft2(spectrum).real
    mean, low = partner_null(smooth, 5, 0)
    assert low < mean < -0.4
    # Low-passed noise has no learned pairs: its share beyond the 5 % quantile is about 5 %.
    assert (partners(smooth)[1] < low).mean() < 0.15


def test_a_network_with_planted_pairs_is_found_paired_and_its_shuffle_is_not() -> None:
    network = small_mixer(mlp_ratio=(2.0, 2.0))
    half = torch.randn(24, 64)
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight.copy_(torch.cat([half, -half]))
    found = mp.token_mixing(mp.load_model(network, **SPEC))
    assert found.share_paired(0) == 1.0
    assert found.share_paired(1) < 0.2
    assert found.partner(0)[:24].tolist() == list(range(24, 48))


def test_order_puts_low_frequency_first_and_partners_side_by_side() -> None:
    maps = planted()
    order = paired_order(maps, np.array([0.28, 0.28, 0.28, 0.375, 0.375]))
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert order.tolist()[:2] == [0, 2]
    assert {3, 4} in ({*order.tolist()[2:4]}, {*order.tolist()[3:5]})


def test_a_dead_unit_is_last_and_breaks_nothing() -> None:
    network = small_mixer()
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight[3] = 0
    found = mp.token_mixing(mp.load_model(network, **SPEC), surrogates=2)
    assert np.isnan(found.frequency(0)[3])
    assert np.isfinite(found.partner_cosine(0)).all()
    assert sorted(found.order(0).tolist()) == list(range(12))


def test_other_families_and_blocks_are_refused_with_a_sentence() -> None:
    with pytest.raises(ModelError, match="is a cnn and has no token-mixing weights"):
        mp.token_mixing(mp.load_model("resnet18", pretrained=False, device="cpu"))
    found = mp.token_mixing(mp.load_model(small_mixer(), **SPEC), surrogates=1)
    with pytest.raises(LayerError, match="blocks 0 to 1, not 2"):
        found.units(2)
    with pytest.raises(LayerError, match=r"closest: blocks\.1"):
        found.units("block.1")


def test_the_result_survives_storage_and_becomes_tables() -> None:
    found = mp.token_mixing(mp.load_model(small_mixer(), **SPEC), surrogates=2)
    again: TokenMixing = from_dict(to_dict(found))
    np.testing.assert_array_equal(again.units(1), found.units(1))
    assert again.model == found.model
    assert len(found.to_frame()) == 24
    assert found.summary()["units"].tolist() == [12, 12]


def test_the_network_is_left_alone() -> None:
    network = timm.create_model("mixer_s32_224")
    model = mp.load_model(network, device="cpu")
    before = model.sha256
    mp.token_mixing(model, surrogates=1).units(0)[:] = 0
    assert mp.load_model(network, device="cpu").sha256 == before
