"""A Mixer written as convolutions has the logits of timm's Mixer, which is the independent
implementation here."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath, GluMlp, Mlp
from timm.models.mlp_mixer import Affine, MixerBlock, MlpMixer, ResBlock
from torch import nn
from torch.nn.utils import parametrize

import mixer_probe as mp
from mixer_probe.core.errors import ModelError
from mixer_probe.images.transforms import transform_for
from mixer_probe.weights import ConvolutionalMixer, as_convolution
from tests.networks import CASES, as_model, noise, randomised

FORMS = ("tied", "grouped")
KINDS = ("mixer", "gmixer", "resmlp", "gmlp")
POINTWISE = (nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity, nn.Dropout, DropPath)


def difference(model: mp.Model, converted: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        expected = model.module(images)
        assert float(expected.std()) > 0.05
        found = converted(images)
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def tiny(**arguments: Any) -> mp.Model:
    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "num_blocks": 2,
        "embed_dim": 12,
        "num_classes": 5,
    } | arguments
    network = randomised(MlpMixer(**sizes)).double()
    height, width = network.stem.img_size
    return as_model(network, input_size=(3, height, width), dtype=torch.float64)


def real(name: str, **arguments: Any) -> nn.Module:
    return randomised(timm.create_model(name, num_classes=7, **arguments)).eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_the_originals(kind: str, form: Any) -> None:
    case = CASES[kind]
    model = case.model(torch.float64)
    converted = as_convolution(model, form)
    assert difference(model, converted, case.images(3, torch.float64)) < 1e-13
    assert sum(p.numel() for p in converted.parameters()) == model.parameters
    single = case.model()
    assert difference(single, as_convolution(single, form), case.images(3)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_made_of_convolutions_norms_and_pointwise_functions(kind: str, form: Any) -> None:
    converted = as_convolution(CASES[kind].model(), form)
    leaves = [m for m in converted.modules() if not list(m.children())]
    allowed = (nn.Conv2d, nn.LayerNorm, Affine, *POINTWISE)
    ours = {"ChannelScale", "Repeated"}
    assert not [m for m in leaves if not isinstance(m, allowed) and type(m).__name__ not in ours]
    assert not any(isinstance(m, nn.Linear) for m in converted.modules())
    sizes = {m.kernel_size for m in converted.modules() if isinstance(m, nn.Conv2d)}
    assert sizes == {(8, 8), (4, 4), (1, 1)}  # patches, the whole grid, and single positions


def test_a_kernel_is_a_row_over_the_grid_and_groups_repeat_it() -> None:
    model = tiny(img_size=(24, 40))  # a grid of 3x5
    rows: Any = model.module.blocks[1].mlp_tokens.fc1
    tied: Any = as_convolution(model).blocks[1].spatial.mlp_tokens.mixing.fc1
    grouped: Any = as_convolution(model, "grouped").blocks[1].spatial.mlp_tokens.mixing.fc1
    assert tied.weight.shape == (6, 1, 3, 5)
    assert torch.equal(tied.weight.flatten(1), rows.weight)
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (12, 12, 72)
    assert isinstance(grouped, nn.Conv2d)
    assert torch.equal(grouped.weight, tied.weight.repeat(12, 1, 1, 1))
    assert torch.equal(grouped.bias, rows.bias.repeat(12))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"img_size": (24, 40)},
        {"img_size": (24, 40), "block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4},
        {"global_pool": ""},
        {"num_classes": 0},
        {"stem_norm": True},
        {"drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5},
        {"act_layer": nn.SiLU},
        {"mlp_layer": partial(GluMlp, gate_last=False), "mlp_ratio": (1.0, 4.0)},
        {"mlp_layer": partial(Mlp, norm_layer=nn.LayerNorm)},
        {"mlp_layer": partial(Mlp, bias=False)},
    ],
    ids=lambda a: "-".join(map(str, a)),
)
def test_variants_of_the_architecture(arguments: dict[str, Any], form: Any) -> None:
    model = tiny(**arguments)
    images = torch.randn(
        2, *model.input.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    assert difference(model, as_convolution(model, form), images) < 1e-13


def test_the_norm_keeps_its_epsilon() -> None:
    model = tiny(norm_layer=partial(nn.LayerNorm, eps=0.5))
    assert difference(model, as_convolution(model), noise(2, 32, torch.float64)) < 1e-13


def test_gradients_of_the_tied_kernels_are_the_originals() -> None:
    model = CASES["mixer"].model(torch.float64)
    images = noise(2, 32, torch.float64)
    found = []
    for form in FORMS:
        converted: Any = as_convolution(model, form)
        converted(images).square().sum().backward()
        found += [
            next(
                p.grad
                for n, p in converted.named_parameters()
                if "blocks.0.spatial.mlp_tokens.mixing.fc1" in n
            )
        ]
    model.module(images).square().sum().backward()
    network: Any = model.module
    # The bias is registered first in one form and the kernel in the other; shapes tell them apart.
    for gradient in found:
        expected = network.blocks[0].mlp_tokens.fc1
        expected = expected.weight.grad if gradient.ndim > 1 else expected.bias.grad
        torch.testing.assert_close(
            gradient.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_copies_in_the_same_type_and_mode(form: Any) -> None:
    model = CASES["resmlp"].model(torch.float64)
    images = noise(2, 32, torch.float64)
    converted = as_convolution(model, form)
    before = converted(images)
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(1.0)
    assert torch.equal(converted(images), before)
    assert {p.dtype for p in converted.parameters()} == {torch.float64}
    assert not converted.training
    model.module.train()
    assert as_convolution(model, form).training
    twin = copy.deepcopy(converted)
    twin.load_state_dict(converted.state_dict())
    assert torch.equal(twin(images), before)


def test_channels_can_be_untied() -> None:
    model = CASES["resmlp"].model()
    converted: Any = as_convolution(model, "grouped")
    layer = converted.blocks[0].spatial.linear_tokens.mixing
    parametrize.remove_parametrizations(layer, "weight")
    assert layer.weight.shape == (24 * 16, 1, 4, 4)
    assert sum(p.numel() for p in converted.parameters()) == model.parameters + 23 * 16 * 16
    assert difference(model, converted, noise(2)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_zoos_mixer_on_the_demo_images(form: Any, dtype: torch.dtype, tolerance: float) -> None:
    model = mp.load_model("zoo:mixer-s0", device="cpu", dtype=dtype)
    spec = model.input
    transform = transform_for(spec)
    batch = next(mp.load_images("demo", limit=4).batches(transform, 4)).to(dtype)
    assert difference(model, as_convolution(model, form), batch) < tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_mixer_b16(dtype: torch.dtype, tolerance: float) -> None:
    model = as_model(real("mixer_b16_224"), 224, dtype=dtype)
    converted = as_convolution(model)
    assert difference(model, converted, noise(2, 224, dtype)) < tolerance
    assert sum(p.numel() for p in converted.parameters()) == model.parameters
    assert not any(isinstance(m, nn.Linear) for m in converted.modules())


def test_two_blocks_of_mixer_b16_in_groups() -> None:
    """Grouped convolutions of this size are slow on a CPU, so that all twelve blocks would take a
    minute."""
    network: Any = real("mixer_b16_224")
    network.blocks = network.blocks[:2]
    model = as_model(network.double(), 224, dtype=torch.float64)
    assert difference(model, as_convolution(model, "grouped"), noise(1, 224, torch.float64)) < 1e-10


def test_resmlp_12() -> None:
    model = as_model(real("resmlp_12_224"), 224, dtype=torch.float64)
    assert difference(model, as_convolution(model), noise(1, 224, torch.float64)) < 1e-10


class Doubled(MixerBlock):
    """Computes something else than the block that it is derived from."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_what_is_no_mixer_is_refused_with_a_reason() -> None:
    with pytest.raises(
        ModelError, match=r"attention .* computed from the image.*Mixer, gMixer, ResMLP and gMLP"
    ):
        as_convolution(CASES["vit"].model())
    with pytest.raises(ModelError, match="convolutional network already"):
        as_convolution(CASES["resnet18"].model())
    with pytest.raises(ModelError, match="unknown form 'untied'; known: tied, grouped"):
        as_convolution(CASES["mixer"].model(), "untied")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="Doubled, not timm's MixerBlock"):
        as_convolution(tiny(block_layer=Doubled))
    with pytest.raises(ModelError, match=r"UntiedMlp, not timm's Mlp; as_convolution takes"):
        as_convolution(CASES["untied-mixer"].model())
    with pytest.raises(ModelError, match="Sequential, not timm's MlpMixer"):
        as_convolution(as_model(nn.Sequential(CASES["mixer"].build())))


def test_images_of_another_size_are_refused() -> None:
    """A kernel over the whole grid would slide over a larger one and return as many numbers as
    asked for."""
    converted = as_convolution(CASES["mixer"].model())
    assert isinstance(converted, ConvolutionalMixer)
    assert converted.grid == (4, 4)
    with pytest.raises(ModelError, match=r"\(3, 32, 32\), not \(3, 64, 64\)"):
        converted(noise(1, 64))
