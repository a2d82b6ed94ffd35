"""Principal components of positions against a singular value decomposition of all positions at
once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.mixing import TokenComponents, token_components
from mixer_probe.mixing.components import independent
from mixer_probe.mixing.figures import component_curves, component_maps
from mixer_probe.mixing.findings.components import (
    component_sentence,
    component_training_sentence,
)
from tests.networks import CASES, as_model, module_output, noise, positions


def tokens(case: str, layer: str, images: torch.Tensor) -> np.ndarray:
    """All positions [image, position, channel] of a layer, by a hook of its own."""
    c = CASES[case]
    model = c.model(torch.float64)
    raw = positions(module_output(model, images, layer), c.layout(layer))
    return raw[:, model.layer(layer).prefix_tokens :].numpy()


def by_svd(X: np.ndarray, standardize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores [image, position, 3] with the sign of the largest loading, and fractions of the
    variance."""
    flat = X.reshape(-1, X.shape[-1])
    flat = flat - flat.mean(0)
    if standardize:
        flat = flat / flat.std(0)
    _, singular, loadings = np.linalg.svd(flat, full_matrices=False)
    loadings = loadings[:3]
    signs = [np.sign(one[np.abs(one).argmax()]) for one in loadings]
    scores = flat @ loadings.T * signs
    return scores.reshape(*X.shape[:2], 3), (singular**2 / (singular**2).sum())[:3]


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(
    ("case", "layer"),
    [
        ("mixer", "blocks.1"),
        ("gmlp", "blocks.0"),
        ("deit-distilled", "blocks.1"),
        ("swin", "layers.1.blocks.0"),
        ("resnet-bottleneck", "layer2.0"),
        ("convnext", "stages.1.blocks.0"),
    ],
)
def test_scores_and_fractions_are_those_of_a_singular_value_decomposition(
    case: str, layer: str, standardize: bool
) -> None:
    x = CASES[case].images(6, torch.float64)
    model = CASES[case].model(torch.float64)
    r = token_components(model, x, layer, shown=4, standardize=standardize, batch_size=4)
    scores, fractions = by_svd(tokens(case, layer, x), standardize)
    height, width = model.layer(layer).grid or (0, 0)
    expected = scores[:4].reshape(4, height, width, 3)
    np.testing.assert_allclose(r.scores[0], expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(r.explained[0], fractions, rtol=1e-8)
    assert r.together_low[0] < r.together[0] < r.together_high[0]
    assert r.groups == 6
    assert r.n == 6
    assert r.shown == ("0", "1", "2", "3")


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_family_has_maps(case: str) -> None:
    model = CASES[case].model()
    wide = [x.name for x in model.layers if x.kind == "block" and x.grid and x.channels >= 3][:2]
    r = token_components(model, CASES[case].images(3), wide, shown=2)
    for k, name in enumerate(wide):
        colours = r.colours(name)
        assert colours.shape == (2, *(model.layer(name).grid or ()), 3)
        assert ((colours >= 0) & (colours <= 1)).all()
        assert (np.diff(r.explained[k]) <= 0).all()
        assert 0 < r.together[k] <= 1


def test_by_default_of_five_blocks_spread_over_depth() -> None:
    model = CASES["efficientnet"].model()
    r = token_components(model, noise(2, 64))
    assert [layer.name for layer in r.layers] == [b.path for b in model.structure.blocks]


def test_the_order_and_the_batches_of_images_change_nothing() -> None:
    model, x = CASES["mixer"].model(torch.float64), noise(6, dtype=torch.float64)
    r, order = token_components(model, x), [3, 1, 5, 0, 4, 2]
    other = token_components(model, x[order], batch_size=4)
    np.testing.assert_allclose(other.explained, r.explained, rtol=1e-10)
    for a, b in zip(r.scores, other.scores, strict=True):
        np.testing.assert_allclose(b, a[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.colours("blocks.0"), r.colours("blocks.0")[order], atol=1e-4)


class Patches(nn.Module):
    """A Mixer whose blocks add nothing: a stem that tells the mean colours of patches."""

    def __new__(cls) -> nn.Module:  # type: ignore[misc]
        network = CASES["mixer"].network()
        with torch.no_grad():
            network.stem.proj.weight.zero_()
            network.stem.proj.bias.zero_()
            for colour in range(3):
                network.stem.proj.weight[colour, colour] = 1 / 64
            for block in network.blocks:
                for part in (block.mlp_tokens.fc2, block.mlp_channels.fc2):
                    part.weight.zero_()
                    part.bias.zero_()
        return network


def test_three_regions_have_three_colours() -> None:
    x = torch.zeros(2, 3, 32, 32)
    x[:, 0, :8], x[:, 1, 8:24], x[:, 2, 24:] = 1.0, 2.0, 4.0
    r = token_components(as_model(Patches(), 32), x, "blocks.1")
    colours = r.colours("blocks.1")
    regions = [colours[0, 0, 0], colours[0, 1, 0], colours[0, 3, 0]]
    for i, image in enumerate(colours):
        for row, region in zip((0, 1, 2, 3), (0, 1, 1, 2), strict=True):
            np.testing.assert_allclose(image[row], np.tile(regions[region], (4, 1)), atol=1e-6), i
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(regions[a] - regions[b]).max() > 0.3
    # Three points lie in a plane: the third component has nothing, and its colour is the middle.
    assert r.explained[0, 2] == 0
    assert (colours[..., 2] == 0.5).all()


def test_a_constant_layer_is_said_to_be_constant() -> None:
    r = token_components(as_model(Patches(), 32), torch.ones(3, 3, 32, 32), "blocks.0")
    assert np.isnan(r.explained).all()
    assert np.isnan(r.expected).all()
    assert (r.colours("blocks.0") == 0.5).all()
    assert component_sentence(r) == (
        "MlpMixer: the activations of blocks.0 are the same at all positions of all images."
    )
    component_maps(r)
    component_curves([r])


@pytest.mark.parametrize(("count", "n"), [(12, 400), (40, 25)])
def test_independent_channels_are_those_of_permuted_positions(count: int, n: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.gamma(0.7, size=(n, count)) * np.linspace(0.5, 2, count)
    found = []
    for _ in range(200):
        P = rng.permuted(X, axis=0)
        found.append(np.linalg.eigvalsh(np.cov(P.T, bias=True))[::-1][:3])
    drawn = np.mean([independent(X.var(0), n, rng) for _ in range(60)], axis=0)
    np.testing.assert_allclose(drawn, np.mean(found, axis=0), rtol=0.03)


def test_intervals_of_explained_variance_hold_the_truth() -> None:
    """Images whose positions share a random direction and strength: 24 images a draw."""
    rng = np.random.default_rng(0)
    model, held, truth = CASES["mixer"].model(), [], []

    def fraction(n: int) -> TokenComponents:
        scale = torch.from_numpy(rng.lognormal(0, 0.4, (n, 1, 1, 1)))
        grey = torch.from_numpy(rng.normal(size=(n, 1, 32, 32)))
        colour = 0.5 * torch.from_numpy(rng.normal(size=(n, 3, 32, 32)))
        return token_components(model, (scale * grey + colour).float(), "blocks.0")

    truth = fraction(2000).together[0]
    for _ in range(40):
        r = fraction(24)
        held.append(r.together_low[0] <= truth <= r.together_high[0])
    assert np.mean(held) > 0.85


def test_errors_name_what_is_wrong() -> None:
    model, x = CASES["mixer"].model(), noise(2)
    with pytest.raises(MeasureError, match="'head' has none: this layer is pooled"):
        token_components(model, x, "head")
    with pytest.raises(MeasureError, match="shown is a whole number, 1 or more"):
        token_components(model, x, shown=0)
    with pytest.raises(LayerError, match=r"no components of 'blocks\.0\.mlp_tokens'"):
        token_components(model, x).colours("blocks.0.mlp_tokens")
    x[0, 0, 0, 0] = math.inf
    with pytest.raises(MeasureError, match=r"activations of 'blocks\.0' are not finite"):
        token_components(model, x)


def test_a_change_by_training_is_said_only_beyond_its_interval() -> None:
    r = token_components(CASES["mixer"].model(), noise(6))
    r = replace(r, together_low=r.together - 0.01, together_high=r.together + 0.01)
    half = {n: getattr(r, n) / 2 for n in ("together", "together_low", "together_high")}
    said = component_training_sentence(replace(r, **half), r)
    assert "training changes the fraction of variance in three components by -" in said
    assert "not significantly different" in component_training_sentence(r, r)
    one = token_components(CASES["mixer"].model(), noise(1))
    assert "nan" not in component_sentence(one)


def test_it_is_a_public_name_of_the_room() -> None:
    assert mp.mixing.token_components is token_components
