"""The token-mixing matrices do in algebra what timm's modules do in a forward pass, in all four
forms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, expit
from timm.layers.mlp import GatedMlp, GluMlp, SwiGLU
from timm.models.mlp_mixer import MlpMixer, ResBlock, SpatialGatingBlock
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import ModelError
from mixer_probe.weights import TokenMatrices, token_matrices
from tests.networks import CASES, as_model, randomised

FORMS = {
    "Mixer": {},
    "gMixer": {"mlp_layer": GluMlp, "act_layer": nn.SiLU},
    "ResMLP": {"block_layer": ResBlock, "mlp_ratio": 2},
    "gMLP": {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 2},
}


def network_of(form: str) -> MlpMixer:
    sizes = {
        "img_size": (16, 24),
        "patch_size": 4,
        "embed_dim": 24,
        "num_blocks": 2,
        "num_classes": 5,
    }
    arguments = FORMS[form] if form != "gMixer" else {**FORMS[form], "mlp_ratio": (1.0, 4.0)}
    return randomised(MlpMixer(**sizes, **arguments)).double().eval()


def of(network: nn.Module) -> tuple[TokenMatrices, ...]:
    return token_matrices(as_model(network, input_size=(3, 16, 24)))


def tokens(seed: int = 0) -> np.ndarray:
    """Tokens [S, C] that no symmetry hides anything of."""
    return np.random.default_rng(seed).standard_normal((24, 24))


def through(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def bias(module: nn.Module, name: str) -> np.ndarray:
    return module.get_parameter(f"{name}.bias").detach().numpy()[:, None]


@pytest.mark.parametrize("form", FORMS)
def test_form_place_and_shape(form: str) -> None:
    found = of(network_of(form))
    assert [m.block for m in found] == ["blocks.0", "blocks.1"]
    assert [m.depth for m in found] == [0.5, 1.0]
    assert {m.form for m in found} == {form}
    units = {"Mixer": 12, "gMixer": 12, "ResMLP": 24, "gMLP": 24}[form]
    for m in found:
        assert m.read.shape == (units, 24)
        assert m.read.dtype == np.float64
        assert (m.gate is not None) == (form == "gMixer")
        assert (m.write is not None) == (form in ("Mixer", "gMixer"))
        assert m.write is None or m.write.shape == (units, 24)


def test_mixer_reads_acts_and_writes() -> None:
    network = network_of("Mixer")
    m, mlp, x = of(network)[1], network.blocks[1].mlp_tokens, tokens()
    expected = through(mlp, x.T).T
    np.testing.assert_allclose(
        m.write.T @ gelu(m.read @ x + bias(mlp, "fc1")) + bias(mlp, "fc2"), expected, atol=1e-12
    )


@pytest.mark.parametrize("gate_last", [True, False])
def test_gmixer_gates_with_the_activated_half(gate_last: bool) -> None:
    network = network_of("gMixer")
    mlp, x = network.blocks[1].mlp_tokens, tokens()
    mlp.gate_last = gate_last
    m = of(network)[1]
    read_bias, gate_bias = np.split(bias(mlp, "fc1"), 2)[:: 1 if gate_last else -1]
    gate = m.gate @ x + gate_bias
    hidden = (m.read @ x + read_bias) * gate * expit(gate)
    np.testing.assert_allclose(
        m.write.T @ hidden + bias(mlp, "fc2"), through(mlp, x.T).T, atol=1e-12
    )


def test_resmlp_has_the_mean_energy_of_its_channels() -> None:
    network = network_of("ResMLP")
    block = network.blocks[1]
    with torch.no_grad():
        block.ls1[3] *= -4
    m = of(network)[1]
    scale, weight = block.ls1.detach().numpy(), block.linear_tokens.weight.detach().numpy()
    each = np.stack([one * weight for one in scale])
    np.testing.assert_allclose((m.read**2), (each**2).mean(0), rtol=1e-12)
    np.testing.assert_array_equal(np.sign(m.read), np.sign(weight))
    # What the block adds by token mixing, channel by channel.
    x, norm = tokens(), block.norm1
    branch = np.stack([each[c] @ through(norm, x)[:, c] for c in range(24)], 1) + scale * bias(
        block, "linear_tokens"
    )
    block.ls2.data.zero_()
    np.testing.assert_allclose(through(block, x[None])[0] - x, branch, atol=1e-12)


def test_gmlp_multiplies_one_half_by_what_it_reads_of_the_other() -> None:
    network = network_of("gMLP")
    m, gate = of(network)[1], network.blocks[1].mlp_channels.gate
    x = np.random.default_rng(1).standard_normal((24, 48))
    expected = through(gate, x[None])[0]
    read = m.read @ through(gate.norm, x[:, 24:]) + bias(gate, "proj")
    np.testing.assert_allclose(x[:, :24] * read, expected, atol=1e-12)


def test_matrices_are_copies() -> None:
    network = network_of("Mixer")
    before = network.blocks[0].mlp_tokens.fc1.weight.detach().clone()
    of(network)[0].read[:] = 0
    assert torch.equal(network.blocks[0].mlp_tokens.fc1.weight, before)


def test_half_precision_weights_are_read() -> None:
    network = network_of("Mixer")
    expected = network.blocks[0].mlp_tokens.fc1.weight.detach().bfloat16().double().numpy()
    np.testing.assert_array_equal(of(network.bfloat16())[0].read, expected)


@pytest.mark.parametrize(
    "name, instead",
    [
        ("vit_tiny_patch16_224", r"is a vit .* by attention \(blocks\.0\.attn and 11 more\)"),
        ("swin_tiny_patch4_window7_224", r"is a vit .* by attention \("),
        ("resnet18", r"is a cnn .* by 3×3 convolutions \(layer1\.0\.conv1 and 15 more\)"),
        (
            "convnext_atto",
            r"is a cnn .* by 7×7 depthwise convolutions \(stages\.0\.blocks\.0\.conv_dw and 11 "
            r"more\)",
        ),
        ("efficientnet_b0", r"3×3 depthwise convolutions \(.*\) and 5×5 depthwise convolutions \("),
    ],
)
def test_a_network_without_token_mixing_is_told_what_it_has(name: str, instead: str) -> None:
    with pytest.raises(ModelError, match=instead):
        token_matrices(mp.load_model(name, pretrained=False, device="cpu"))


def test_a_token_mlp_of_another_kind_is_named() -> None:
    network = MlpMixer(img_size=32, patch_size=8, embed_dim=24, num_blocks=1, mlp_layer=SwiGLU)
    with pytest.raises(ModelError, match=r"'blocks\.0\.mlp_tokens' is a SwiGLU"):
        token_matrices(as_model(network))


@pytest.mark.parametrize("measure", [token_matrices, mp.token_mixing, mp.spatial_kernels])
def test_untied_token_mlps_are_refused_with_what_takes_them(measure: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"each of 4 groups of channels.*kernel_tying, weight_sp"):
        measure(CASES["grouped-mixer"].model())
