"""Effective and theoretical receptive fields against closed forms, Jacobians by brute force, and
networks whose field can be read off a gradient."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models._efficientnet_blocks import ConvBnAct
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.mixing import theoretical_field
from mixer_probe.mixing.figures import receptive_field_curves, receptive_field_maps
from mixer_probe.mixing.findings.receptive_field import receptive_sentence, training_sentence
from mixer_probe.mixing.receptive_field import _estimates, _scalars, _signs
from tests.networks import CASES, as_model, noise, positions, randomised


class Averages(nn.Module):
    """`depth` 3x3 convolutions of equal weights, with one channel, and nothing else."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ConvBnAct(1 if i else 3, 1, 3, act_layer=nn.Identity, norm_layer=nn.BatchNorm2d)
                for i in range(depth)
            )
        )
        for block in self.blocks:
            block.conv.weight.data.fill_(1 / 9)
        self.classifier = nn.Linear(1, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.blocks(x).mean((2, 3)))


@pytest.mark.parametrize("depth", [1, 3])
def test_uniform_convolutions_have_their_support_and_sigma(depth: int) -> None:
    model = as_model(Averages(depth), 32, dtype=torch.float64)
    r = mp.effective_receptive_field(model, noise(3, dtype=torch.float64))
    for k in range(depth):
        taps = np.ones(1)
        for _ in range(k + 1):
            taps = np.convolve(taps, np.ones(3) / 3)
        energy = np.outer(taps, taps) ** 2 / (taps**2).sum() ** 2
        assert r.support[k] * 32 * 32 == pytest.approx((2 * (k + 1) + 1) ** 2)
        assert r.theoretical[k] == 2 * (k + 1) + 1
        np.testing.assert_allclose(r.sigma[k], math.sqrt(2 * (k + 1) / 3), rtol=1e-9)
        np.testing.assert_allclose(r.centre[k], 16.5, rtol=1e-9)
        reach = slice(15 - k, 18 + k)
        np.testing.assert_allclose(r.maps[k, reach, reach], energy, rtol=1e-6)
    # One tap of nine: half of the energy in four and a half pixels.
    assert r.area[0, 0] * 32 * 32 == pytest.approx(4.5)
    assert r.side[0, 0] == pytest.approx(math.sqrt(4.5))
    # The gradient does not depend on the image: no spread, no interval.
    assert np.isnan(r.area_low[0, 0]) or r.area_high[0, 0] - r.area_low[0, 0] < 1e-9


def jacobian(model: Any, x: torch.Tensor, name: str, layout: str, place: int) -> np.ndarray:
    """[image, channel, colour, H, W] of one position, channel by channel, by a hook of its own."""
    x = x.clone().requires_grad_()
    found: list[torch.Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(
        lambda _m, _i, out: found.append(out.clone())
    )
    model.module(x)
    handle.remove()
    unit = positions(found[0], layout)[:, place]
    rows = [
        torch.autograd.grad(unit[:, c].sum(), x, retain_graph=True)[0] for c in range(unit.shape[1])
    ]
    return torch.stack(rows, 1).numpy()


@pytest.mark.parametrize(
    ("case", "layer", "place", "prefix"),
    [
        ("mixer", "blocks.0", (1, 2), 0),
        ("gmlp", "blocks.1", (1, 2), 0),
        ("deit-distilled", "blocks.1", (3, 0), 2),
        ("swin", "layers.1.blocks.0", (2, 3), 0),
        ("resnet-bottleneck", "layer2.0", (1, 2), 0),
        ("convnext", "stages.1.blocks.0", (3, 5), 0),
    ],
)
def test_the_energy_is_that_of_random_sums_of_the_jacobian(
    case: str, layer: str, place: tuple[int, int], prefix: int
) -> None:
    c = CASES[case]
    model, x = c.model(torch.float64), c.images(2, torch.float64)
    at = model.layer(layer)
    assert at.grid is not None
    index = place[0] * at.grid[1] + place[1]
    J = jacobian(model, x, layer, c.layout(layer), prefix + index)
    signs = _signs(at, range(2), 2, 0)
    energy = (np.einsum("pnc,nckhw->pnkhw", signs, J) ** 2).sum(2).mean((0, 1))
    for given in (place, index):
        r = mp.effective_receptive_field(model, x, layer, given, probes=2)
        assert r.energy[0] == pytest.approx(energy.sum(), rel=1e-9)
        np.testing.assert_allclose(r.maps[0], energy / energy.sum(), rtol=1e-5, atol=1e-12)
        assert tuple(r.position[0]) == place
    # Random signs estimate the sum over channels without bias.
    many = mp.effective_receptive_field(model, x, layer, place, probes=64)
    exact = (J**2).sum((1, 2)).mean(0)
    assert many.energy[0] == pytest.approx(exact.sum(), rel=0.15)
    assert np.corrcoef(many.maps[0].ravel(), exact.ravel())[0, 1] > 0.93


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_family_within_its_theoretical_field(case: str) -> None:
    model = CASES[case].model()
    own = [layer.name for layer in model.layers if layer.kind == "block" and layer.grid]
    chosen = [own[0], own[len(own) // 2]]
    r = mp.effective_receptive_field(model, CASES[case].images(2), chosen)
    assert (r.energy > 0).all()
    assert ((r.area > 0) & (r.area <= 1)).all()
    whole = math.prod(r.size)
    for side, support in zip(r.theoretical, r.support, strict=True):
        if math.isfinite(side):
            assert support * whole <= side**2 + 1e-6
        if math.isinf(side) and model.family != "cnn":
            assert support == 1
    assert (r.theoretical > 0)[np.isfinite(r.theoretical)].all()
    # What one block reads, all that follow read.
    assert not np.isinf(r.theoretical[0]) or np.isinf(r.theoretical[1])


def test_batches_and_other_layers_change_nothing() -> None:
    model, x = CASES["vit"].model(torch.float64), noise(5, dtype=torch.float64)
    together = mp.effective_receptive_field(model, x)
    alone = mp.effective_receptive_field(model, x, "blocks.1", batch_size=2)
    np.testing.assert_allclose(alone.maps[0], together.maps[1], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(alone.area[0], together.area[1], rtol=1e-9)
    assert together.groups == 5


def test_the_network_is_left_as_it_was() -> None:
    model = CASES["resnet18"].model()
    model.module.layer1.train()
    before = {name: p.clone() for name, p in model.module.state_dict().items()}
    with torch.no_grad():
        mp.effective_receptive_field(model, noise(1, 64), "layer1.0")
    assert model.module.layer1.training
    assert not model.module.layer2.training
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
    assert not any(m._forward_hooks for m in model.module.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.module.state_dict().items())


def test_errors_name_what_is_wrong() -> None:
    model, x = CASES["mixer"].model(), noise(1)
    erf = mp.effective_receptive_field
    for position in ((4, 0), (0, 4), 16, -1, (-1, 0)):
        with pytest.raises(MeasureError, match=r"outside the 4×4 positions of 'blocks\.0'"):
            erf(model, x, position=position)
    for odd in ("centre", (1, 2, 3), 0.5, (0.5, 1)):
        with pytest.raises(MeasureError, match="position is"):
            erf(model, x, position=odd)  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="'head' has none: this layer is pooled"):
        erf(model, x, "head")
    with pytest.raises(MeasureError, match="form no known grid"):
        erf(model, x, "blocks.0.mlp_tokens.fc1")
    with pytest.raises(MeasureError, match="probes is a whole number, 1 or more"):
        erf(model, x, probes=0)
    with pytest.raises(LayerError):
        erf(model, x, "blocks.9")
    with torch.no_grad():
        model.module.stem.proj.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(MeasureError, match="not finite"):
        erf(model, x)


def test_a_gradient_of_zero_is_said_to_be_zero() -> None:
    model = CASES["mixer"].model()
    with torch.no_grad():
        model.module.stem.proj.weight.zero_()
    r = mp.effective_receptive_field(model, noise(3))
    assert (r.energy == 0).all()
    assert (r.maps == 0).all()
    assert (r.support == 0).all()
    assert np.isnan(r.area).all()
    assert np.isnan(r.sigma).all()
    said = receptive_sentence(r)
    assert said == "The gradient of blocks.0 and blocks.1 of MlpMixer by the input is exactly zero."
    receptive_field_maps([r])
    receptive_field_curves([r])


def test_large_maps_are_averaged_over_cells() -> None:
    model = as_model(Averages(2), 112, dtype=torch.float64)
    r = mp.effective_receptive_field(model, noise(1, 112, torch.float64))
    assert r.maps.shape == (2, 56, 56)
    np.testing.assert_allclose(r.maps.sum((1, 2)) * 4, 1, rtol=1e-6)
    assert r.support[1] * 112**2 == pytest.approx(25)
    assert np.isnan(r.area_low).all()


def test_intervals_hold_the_truth_and_the_bias_is_gone() -> None:
    """Maps of 12 images with one probe: a heavy-tailed field, energies with the noise of random
    signs, and images of different strength."""
    y, x = np.mgrid[:14, :14]
    truth = 1 / (1 + ((y - 7) ** 2 + (x - 7) ** 2) / 4) ** 1.5 + 2e-3
    exact, rng, held, values, plain = _scalars(truth), np.random.default_rng(0), [], [], []
    for _ in range(150):
        strength = rng.lognormal(0, 0.5, (16, 1, 1))
        groups = strength * truth * rng.chisquare(1.5, (16, 14, 14)) / 1.5
        value, _, low, high = _estimates(groups)
        held.append((low <= exact) & (exact <= high))
        values.append(value)
        plain.append(_scalars(groups.sum(0)))
    assert (np.mean(held, axis=0) > 0.87).all()
    bias = [np.abs(np.mean(of, axis=0) - exact)[[0, 1, 2, 7]] for of in (values, plain)]
    assert (bias[0] < 0.35 * bias[1]).all()


def test_training_is_said_to_narrow_or_widen_only_with_intervals() -> None:
    model = CASES["mixer"].model()
    r = mp.effective_receptive_field(model, noise(6))
    half = {"area_low": r.area * 0.95, "area_high": r.area * 1.05}
    known = replace(r, **half)
    smaller = {name: getattr(known, name) / 4 for name in ("area", "area_low", "area_high")}
    said = training_sentence(replace(known, **smaller), known)
    assert "training narrows the field after blocks.0 (-" in said
    assert "training widens" in training_sentence(known, replace(known, **smaller))
    assert "not significantly different" in training_sentence(known, known)
    one = mp.effective_receptive_field(model, noise(1))
    assert "nan" not in receptive_sentence(one)
    assert "not significantly different" in training_sentence(one, one)


# -- the theoretical field -------------------------------------------------------------------------


def test_resnet50_has_the_fields_of_the_literature() -> None:
    model = mp.load_model("resnet50", pretrained=False, input_size=(3, 64, 64))
    last = {"maxpool": 11, "layer1.2": 35, "layer2.3": 91, "layer3.5": 267, "layer4.2": 427}
    assert theoretical_field(model, list(last)) == last


def side_by_gradient(network: nn.Module, layer: str, size: int) -> int:
    """Side of the support of the gradient of a central position, of a copy with positive weights
    and without what could hide a path: activations, norms over channels, maxima."""
    network = copy.deepcopy(network).double()
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    keep = (nn.Conv2d, nn.Linear, nn.AvgPool2d)
    for path, module in list(network.named_modules()):
        parent, name = network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        if isinstance(module, nn.MaxPool2d):
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            setattr(parent, name, pool)
        elif isinstance(module, norms) or not (list(module.children()) or isinstance(module, keep)):
            setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(p.abs() + 0.1)
            p /= p[0].numel()
    found: list[torch.Tensor] = []

    class EnoughError(Exception):
        pass

    def stop(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> None:
        found.append(out)
        raise EnoughError

    network.get_submodule(layer).register_forward_hook(stop)
    x = torch.zeros(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    with contextlib.suppress(EnoughError):
        network(x)
    out = found[0]
    (slope,) = torch.autograd.grad(out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum(), x)
    reached = (slope != 0).any(1)[0]
    assert not reached[0].any()
    assert not reached[-1].any()
    return int(reached.any(1).sum())


@pytest.mark.parametrize(
    ("case", "layers", "size"),
    [
        ("resnet-bottleneck", ("maxpool", "layer1.0", "layer2.1", "layer4.0"), 320),
        ("resnetv2", ("stem", "stages.1.blocks.0", "stages.3.blocks.0"), 320),
        ("resnetv2-basic", ("stages.1.blocks.0", "stages.2.blocks.0"), 320),
        ("regnet-v", ("stem", "s2.b1", "s4.b1"), 320),
        ("mobilenetv2", ("bn1", "blocks.1.0", "blocks.3.2"), 320),
        ("convnext", ("stem", "stages.0.blocks.0", "stages.2.blocks.1"), 448),
        ("convmixer", ("stem", "blocks.0", "blocks.1"), 128),
    ],
)
def test_the_walk_agrees_with_the_support_of_a_gradient(
    case: str, layers: tuple[str, ...], size: int
) -> None:
    model = CASES[case].model()
    found = theoretical_field(model, layers)
    for layer in layers:
        assert found[layer] == side_by_gradient(model.module, layer, size), layer


def test_resnet18_agrees_with_the_support_of_a_gradient() -> None:
    network = timm.create_model("resnet18", num_classes=5)
    found = theoretical_field(as_model(network, 64))
    assert found["layer3.1"] == side_by_gradient(network, "layer3.1", 288) == 211


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("mixer", {"stem": 8, "blocks.0.norm1": 8, "blocks.0": math.inf}),
        ("gmlp", {"stem": 8, "blocks.0.norm": 8, "blocks.1": math.inf}),
        ("vit", {"patch_embed": 8, "blocks.0.norm1": 8, "blocks.0": math.inf}),
        (
            "swin",
            {
                "patch_embed": 2,
                "layers.0.blocks.0": math.nan,
                "layers.0.blocks.1": math.nan,
                "layers.2.blocks.0": math.inf,
            },
        ),
        # Squeeze-and-excitation, and a norm over all positions.
        ("regnet-y", {"stem": 3, "s1.b1": math.inf}),
        ("convnextv2", {"stem": 4, "stages.0.blocks.0.conv_dw": 28, "stages.0.blocks.0": math.inf}),
    ],
)
def test_what_reads_all_positions_makes_the_field_the_whole_image(
    case: str, expected: dict[str, float]
) -> None:
    found = theoretical_field(CASES[case].model(), list(expected))
    np.testing.assert_array_equal([found[name] for name in expected], list(expected.values()))


def test_kernels_side_by_side_count_once() -> None:
    network = randomised(timm.create_model("tf_mixnet_s", num_classes=5))
    for module in network.modules():
        if hasattr(module, "se"):
            module.se = nn.Identity()
    found = theoretical_field(
        as_model(network, 64), ["bn1", "blocks.0", "blocks.1.0", "blocks.2.0"]
    )
    assert found["blocks.2.0"] == side_by_gradient(network, "blocks.2.0", 192)
