"""Parameters and multiply-accumulates against published counts: timm's tables and Table 1 of the
Mixer paper.

The expected numbers were counted once from timm 1.0.31 (`parameters`, exact) and by hand from the
formulas below. Networks live on the meta device: counting needs shapes, no weights.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixer_probe.models import Model, describe, load_model
from mixer_probe.models.macs import count_macs
from tests.networks import as_model, shapes_only

# name: (parameters, multiply-accumulates of one 224 px image in units of 10^9)
TIMM = {
    "mixer_s32_224": (19104624, 1.0024),
    "mixer_s16_224": (18528264, 3.777),
    "mixer_b32_224": (60293428, 3.2377),
    "mixer_b16_224": (59880472, 12.6018),
    "mixer_l32_224": (206939264, 11.2533),
    "mixer_l16_224": (208196168, 44.5477),
    "gmixer_24_224": (24721096, 5.2604),
    "resmlp_12_224": (15350872, 3.0097),
    "resmlp_24_224": (30020680, 5.9613),
    "gmlp_s16_224": (19422656, 4.3921),
    "vit_tiny_patch16_224": (5717416, 1.2537),
    "vit_small_patch16_224": (22050664, 4.5989),
    "vit_base_patch16_224": (86567656, 17.5638),
    "vit_base_patch32_224": (88224232, 4.4092),
    "deit_small_patch16_224": (22050664, 4.5989),
    "resnet18": (11689512, 1.8141),
    "resnet50": (25557032, 4.0892),
    "convnext_tiny": (28589128, 4.4555),
    "convmixer_768_32": (21110248, 20.6769),
    "swin_tiny_patch4_window7_224": (28288354, 4.4906),
}
# name: (patch, width C, layers, token-mixing D_S, channel-mixing D_C, parameters without head)
PAPER = {
    "S/32": (32, 512, 8, 256, 2048, 18591624),
    "S/16": (16, 512, 8, 256, 2048, 18015264),
    "B/32": (32, 768, 12, 384, 3072, 59524428),
    "B/16": (16, 768, 12, 384, 3072, 59111472),
    "L/32": (32, 1024, 24, 512, 4096, 205914264),
    "L/16": (16, 1024, 24, 512, 4096, 207171168),
    "H/14": (14, 1280, 32, 640, 5120, 431069952),
}


def on_meta(build: Callable[..., nn.Module], *arguments: object, **named: object) -> Model:
    return as_model(shapes_only(build, *arguments, **named), 224, device="meta")


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks(name: str) -> None:
    parameters, gigamacs = TIMM[name]
    model = on_meta(timm.create_model, name)
    assert model.parameters == parameters
    assert model.macs / 1e9 == pytest.approx(gigamacs, rel=0.01)


def paper_parameters(patch: int, width: int, layers: int, tokens: int, channels: int) -> int:
    """Weights and biases of embedding, token MLPs, channel MLPs and layer norms, Tolstikhin et al.
    (2021), Section 2."""
    positions = (224 // patch) ** 2
    mixing = 2 * positions * tokens + tokens + positions + 2 * width * channels + channels + width
    return 3 * patch**2 * width + width + layers * (mixing + 4 * width) + 2 * width


def paper_macs(patch: int, width: int, layers: int, tokens: int, channels: int) -> int:
    positions = (224 // patch) ** 2
    return positions * width * (3 * patch**2 + layers * 2 * (tokens + channels))


@pytest.mark.parametrize("name", PAPER)
def test_the_mixers_of_the_paper(name: str) -> None:
    """Every scale of Table 1, also H/14, which timm does not have."""
    patch, width, layers, tokens, channels, parameters = PAPER[name]
    ratios = (tokens / width, channels / width)
    sizes = {"patch_size": patch, "embed_dim": width, "num_blocks": layers, "mlp_ratio": ratios}
    model = on_meta(MlpMixer, **sizes, num_classes=0)
    assert paper_parameters(*PAPER[name][:5]) == parameters
    assert model.parameters == parameters
    assert model.macs == pytest.approx(paper_macs(*PAPER[name][:5]), rel=1e-6)
    assert len(model.select("blocks")) == layers
    assert model.layers[0].grid == (224 // patch, 224 // patch)


def test_counts_of_a_loaded_network() -> None:
    model = load_model("mixer_s32_224", pretrained=False, device="cpu")
    assert (model.parameters, round(model.macs / 1e9, 4)) == TIMM["mixer_s32_224"]


def test_attention_counts_even_where_it_is_fused() -> None:
    """Products of queries with keys and of maps with values: 2 N^2 C a block on top of the linear
    layers."""
    model = on_meta(timm.create_model, "vit_tiny_patch16_224", num_classes=0)
    n, c = 197, 192
    linear = 196 * 3 * 16**2 * c + 12 * n * 12 * c * c
    assert model.macs == linear + 12 * 2 * n * n * c


def test_counting_leaves_the_network_as_it_was() -> None:
    network = timm.create_model("test_resnet")
    network.train()
    mean = network.bn1.running_mean.clone()
    count_macs(network, (3, 64, 64))
    assert network.training
    assert torch.equal(network.bn1.running_mean, mean)


def test_the_card_of_a_model() -> None:
    model = load_model("mixer_s32_224", pretrained=False, device="cpu", num_classes=3)
    card = describe(model)
    assert (card.model, card.macs, card.input_size) == (model.record, model.macs, (3, 224, 224))
    frame = card.to_frame()
    assert frame["layer"].tolist() == [layer.name for layer in model.layers]
    assert frame["grid"].iloc[0] == "7×7"
