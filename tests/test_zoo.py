"""The bundled networks: names, cards, building and loading."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixer_probe as mp
from mixer_probe import load_images, zoo
from mixer_probe.core.errors import CheckpointError, ModelError
from mixer_probe.zoo import cards
from mixer_probe.zoo.architectures import ARCHITECTURES, UntiedMlp, construct
from mixer_probe.zoo.cards import CHECKPOINTS, card_from_json
from mixer_probe.zoo.networks import read_checkpoint
from tests.networks import as_model

CLASSES = {"mixer": MlpMixer, "vit": VisionTransformer, "resnet": ResNet}
NAMES = ("mixer-s0", "mixer-s1", "vit-s0", "vit-s1", "resnet-s0", "resnet-s1")


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_names() -> None:
    assert zoo.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_card_describes_the_network(name: str) -> None:
    card, model = zoo.card(name), zoo.build(name)
    assert card.name == name
    assert name.endswith(f"-s{card.seed}")
    assert card.architecture == ARCHITECTURES[name.split("-")[0]]
    assert card.architecture["class"] == f"{type(model).__module__}.{type(model).__name__}"
    assert card.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert float(parameters(model).double().norm()) == pytest.approx(card.initial_norm, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "floor"), list(zip(NAMES, (0.80, 0.80, 0.75, 0.75, 0.90, 0.90), strict=True))
)
def test_card_describes_the_training(name: str, floor: float) -> None:
    card = zoo.card(name)
    assert card.test_accuracy >= floor
    assert card.test_images == 5000
    assert card.data_note == "trained on WebP-90 CIFAR-10"
    assert 0 < card.epochs <= card.recipe["epochs"]
    assert name in card.command
    assert card.machine.startswith("one NVIDIA")


def test_card_is_frozen_and_survives_json() -> None:
    card = zoo.card("mixer-s0")
    assert card_from_json(card.to_json()) == card
    assert (card.input_size, len(card.class_names)) == ((3, 32, 32), 10)
    with pytest.raises(FrozenInstanceError):
        card.seed = 3  # type: ignore[misc]


def test_a_name_without_seed_is_seed_0() -> None:
    assert zoo.card("vit") == zoo.card("vit-s0")


@pytest.mark.parametrize("use", [zoo.card, zoo.build, zoo.load])
def test_unknown_names_are_answered_with_close_ones(use: object) -> None:
    with pytest.raises(ModelError, match="mixer-s0"):
        use("mixer-s9")  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_load_is_strict_float32_and_what_the_file_holds(name: str) -> None:
    model, stored = zoo.load(name), load_file(CHECKPOINTS / f"{name}.safetensors")
    assert type(model) is CLASSES[name.split("-")[0]]
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.state_dict().keys() == stored.keys()
    assert all(
        torch.equal(value, stored[key].to(value.dtype)) for key, value in model.state_dict().items()
    )
    assert all(value.isfinite().all() for value in stored.values())


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_the_cards(name: str) -> None:
    content = (CHECKPOINTS / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == zoo.card(name).sha256


def test_all_checkpoints_together_are_under_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINTS.iterdir()) < 12.0e6


@pytest.mark.parametrize("family", CLASSES)
def test_two_seeds_differ_before_and_after_training(family: str) -> None:
    first, second = f"{family}-s0", f"{family}-s1"
    assert not torch.equal(parameters(zoo.build(first)), parameters(zoo.build(second)))
    assert not torch.equal(parameters(zoo.load(first)), parameters(zoo.load(second)))


@pytest.mark.parametrize("family", CLASSES)
def test_untrained_twin_is_reproducible_and_leaves_the_rng_alone(family: str) -> None:
    before = torch.random.get_rng_state()
    first = zoo.load(family, untrained=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    second = zoo.build(family)
    assert torch.equal(parameters(first), parameters(second))
    assert not torch.equal(parameters(first), parameters(zoo.load(family)))
    assert not first.training
    assert second.training


@pytest.mark.parametrize("name", NAMES)
def test_untrained_logits_differ_between_images_and_classes(name: str) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = zoo.load(name, untrained=True)(images)
    assert logits.shape == (4, 10)
    assert logits.std(dim=0).min() > 0
    assert logits.std(dim=1).min() > 0


def test_mixer_and_vit_share_all_but_the_mixing() -> None:
    mixer, vit = zoo.build("mixer"), zoo.build("vit")
    assert mixer.stem.num_patches == vit.patch_embed.num_patches == 256
    assert len(mixer.blocks) == len(vit.blocks) == 8
    for ours, theirs in (
        (mixer.blocks[0].mlp_channels, vit.blocks[0].mlp),
        (mixer.norm, vit.norm),
        (mixer.head, vit.head),
    ):
        assert [value.shape for value in ours.parameters()] == [
            value.shape for value in theirs.parameters()
        ]
    tokens, attention = mixer.blocks[0].mlp_tokens, vit.blocks[0].attn
    assert tokens.fc1.weight.numel() + tokens.fc2.weight.numel() == 2 * 256 * 128
    assert attention.qkv.weight.numel() + attention.proj.weight.numel() == 4 * 128 * 128


def test_resnet_stem_keeps_the_resolution() -> None:
    model = zoo.build("resnet").eval()
    maps = model.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    assert [tuple(value.shape[1:]) for value in maps] == [
        (64, 32, 32),
        (32, 32, 32),
        (64, 16, 16),
        (96, 8, 8),
        (112, 4, 4),
    ]
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]


def test_damaged_or_missing_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "mixer-s0.safetensors"
    damaged.write_bytes((CHECKPOINTS / damaged.name).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(damaged, zoo.card("mixer-s0").sha256)
    monkeypatch.setattr(cards, "CHECKPOINTS", tmp_path)
    with pytest.raises(CheckpointError, match=r"mixer-s0\.json"):
        zoo.card("mixer-s0")


@pytest.mark.parametrize("name", ["mixer-s0", "vit-s0", "resnet-s0"])
def test_accuracy_on_the_demo_images(name: str) -> None:
    images = load_images("demo", split="test", limit=200)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    card = zoo.card(name)
    mean, std = torch.tensor([card.mean, card.std]).view(2, 1, 3, 1, 1)
    with torch.inference_mode():
        predicted = zoo.load(name)((pixels / 255 - mean) / std).argmax(dim=1)
    assert float((predicted == torch.from_numpy(images.labels)).float().mean()) > 0.7


# -- a token MLP for every group of channels -------------------------------------------------------


def test_each_group_of_channels_has_a_token_mlp_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mlp = UntiedMlp(groups=3, channels=12, tokens=5, hidden=7).double()
    for value in mlp.parameters():
        value.data = draw(*value.shape)
    x = draw(2, 12, 5)
    found = mlp(x)
    for image in range(2):
        for channel in range(12):
            g = channel // 4
            hidden = mlp.fc1_weight[g] @ x[image, channel] + mlp.fc1_bias[g]
            # GELU is x times the normal distribution function.
            hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
            mixed = mlp.fc2_weight[g] @ hidden + mlp.fc2_bias[g]
            torch.testing.assert_close(found[image, channel], mixed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_with_the_same_weights_are_timms_token_mlp(groups: int) -> None:
    small = {"img_size": 16, "patch_size": 4, "num_blocks": 2, "embed_dim": 8}
    tied = construct("mixer", 0, small).double().blocks[0].mlp_tokens
    untied = UntiedMlp(groups, 8, 16, tied.fc1.out_features).double()
    for own, theirs in zip(untied.parameters(), tied.parameters(), strict=True):
        own.data.copy_(theirs.data)
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(untied(x), tied(x), rtol=1e-12, atol=1e-12)


def test_a_mixer_with_groups_begins_as_its_kin() -> None:
    """Every group has the distribution of a tied token MLP, and no two the same weights."""
    small = {"img_size": 16, "patch_size": 2, "num_blocks": 1, "embed_dim": 64}
    tied, untied = construct("mixer", 0, small), construct("mixer", 0, small | {"token_groups": 4})
    mlp, own = tied.blocks[0].mlp_tokens, untied.blocks[0].mlp_tokens
    assert isinstance(own, UntiedMlp)
    assert own.fc1_weight.shape == (4, *mlp.fc1.weight.shape)
    assert not torch.equal(own.fc1_weight[0], own.fc1_weight[1])
    for matrix in own.fc1_weight.detach():
        assert float(matrix.std()) == pytest.approx(float(mlp.fc1.weight.detach().std()), rel=0.1)
    assert not own.fc1_bias.any()
    assert not own.fc2_bias.any()
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (own, mlp))
    assert ours == 4 * theirs


@pytest.mark.parametrize("groups", [2, 24])
def test_an_untied_mixer_is_read_as_a_mixer(groups: int) -> None:
    arguments = {"patch_size": 8, "num_blocks": 2, "embed_dim": 24, "token_groups": groups}
    model = as_model(construct("mixer", 0, arguments))
    tied = as_model(construct("mixer", 0, {**arguments, "token_groups": 1}))
    assert model.family == "mixer"
    assert [(layer.name, layer.kind, layer.axes) for layer in model.layers] == [
        (layer.name, layer.kind, layer.axes) for layer in tied.layers
    ]
    assert model.macs == tied.macs
    # Two groups look like the two images of the dry pass.
    assert not any(".mlp_tokens." in name for name in model.structure.names())
    assert {mp.anatomy(model).mixes(f"blocks.{i}.mlp_tokens") for i in (0, 1)} == {"across"}


def test_the_untrained_baseline_of_an_untied_mixer_has_the_scale_of_a_mixers() -> None:
    arguments = {"patch_size": 4, "num_blocks": 1, "embed_dim": 24, "token_groups": 24}
    mlp = as_model(construct("mixer", 0, arguments)).untrained().module.blocks[0].mlp_tokens
    # Uniform with variance 2 / (tokens + hidden units), as Glorot and Bengio (2010) have it.
    for weight in (mlp.fc1_weight, mlp.fc2_weight):
        assert weight.std().item() == pytest.approx((2 / (64 + 24)) ** 0.5, rel=0.02)
    assert not mlp.fc1_bias.any()
    assert not mlp.fc2_bias.any()


# Architectures without checkpoints


NEW = {
    "resmlp": (MlpMixer, 1_063_050),
    "gmlp": (MlpMixer, 1_054_090),
    "gmixer": (MlpMixer, 1_071_242),
    "convmixer": (ConvMixer, 190_602),
}


def shallow(family: str) -> nn.Module:
    return construct(family, 0, {"depth" if family == "convmixer" else "num_blocks": 2})


@pytest.mark.parametrize("family", NEW)
def test_sizes_are_those_of_the_mixer(family: str) -> None:
    model, mixer = construct(family, 0), construct("mixer", 0)
    assert type(model) is NEW[family][0]
    assert ARCHITECTURES[family]["class"] == f"{type(model).__module__}.{type(model).__name__}"
    # Plain data, as a card stores it.
    assert json.loads(json.dumps(ARCHITECTURES[family])) == ARCHITECTURES[family]
    assert len(parameters(model)) == NEW[family][1]
    assert len(model.blocks) == len(mixer.blocks) == 8
    stem = model.stem[0] if family == "convmixer" else model.stem.proj
    assert stem.stride == mixer.stem.proj.stride == (2, 2)
    width = model.num_features if family == "convmixer" else model.embed_dim
    assert width == mixer.embed_dim == 128
    if family != "convmixer":
        assert len(parameters(model)) == pytest.approx(len(parameters(mixer)), rel=0.01)


@pytest.mark.parametrize("family", NEW)
def test_all_initial_values_follow_from_the_seed(family: str) -> None:
    torch.manual_seed(0)
    first = construct(family, 0)
    torch.manual_seed(1)
    again, other = construct(family, 0), construct(family, 1)
    assert torch.equal(parameters(first), parameters(again))
    assert not torch.equal(parameters(first), parameters(other))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = first.eval()(images)
    assert logits.shape == (4, 10)
    assert 1e-3 < logits.std(dim=0).mean() < 1
    assert 1e-3 < logits.std(dim=1).mean() < 10


def test_initial_values_of_resmlp() -> None:
    model = construct("resmlp", 0)
    for block in model.blocks:
        assert (block.ls1 == 0.1).all()
        assert (block.ls2 == 0.1).all()
    for norm in (model.norm, *(b.norm1 for b in model.blocks), *(b.norm2 for b in model.blocks)):
        assert (norm.alpha == 1).all()
        assert not norm.beta.any()
    weight = model.blocks[3].linear_tokens.weight
    # Glorot and Bengio's uniform weights of a square matrix have variance 1 / size.
    assert weight.std().item() == pytest.approx(1 / 16, rel=0.01)


def test_initial_values_of_gmlp() -> None:
    for block in construct("gmlp", 0).blocks:
        gate = block.mlp_channels.gate
        assert (gate.proj.bias == 1).all()
        assert gate.proj.weight.std().item() == pytest.approx(1e-3, rel=0.02)
        assert (gate.norm.weight == 1).all()
        # 128 -> 336 channels, uniform with variance 2 / (in + out).
        std = block.mlp_channels.fc1.weight.std().item()
        assert std == pytest.approx((2 / (128 + 336)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_gradients_of_images_with_an_empty_patch_are_of_ordinary_size(family: str) -> None:
    """Shifts leave pixels of zero at the border. Norms of a token that is zero in every block would
    multiply gradients by 1000 each."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def norm(x: torch.Tensor) -> float:
        model = construct(family, 0)
        model(x).square().mean().backward()
        return float(nn.utils.get_total_norm([p.grad for p in model.parameters()]))

    whole = norm(images)
    images[..., :4] = 0
    assert norm(images) < 100 * whole


def test_initial_values_of_convmixer() -> None:
    model = construct("convmixer", 0)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
    depthwise, pointwise = model.blocks[2][0].fn[0], model.blocks[2][1]
    assert depthwise.weight.std().item() == pytest.approx(1 / 7, rel=0.02)
    assert pointwise.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert model.stem[0].weight.std().item() == pytest.approx(12**-0.5, rel=0.05)
    assert not depthwise.bias.any()
    assert not pointwise.bias.any()


@pytest.mark.parametrize(
    ("family", "spatial", "form"),
    [
        ("resmlp", "linear_tokens", "ResMLP"),
        ("gmlp", "mlp_channels.gate", "gMLP"),
        ("gmixer", "mlp_tokens", "gMixer"),
        ("convmixer", "0.fn.0", None),
    ],
)
def test_new_architectures_are_read(family: str, spatial: str, form: str | None) -> None:
    model = as_model(shallow(family))
    assert model.family == ("cnn" if family == "convmixer" else "mixer")
    kinds = [layer.name for layer in model.layers if layer.kind == "spatial"]
    assert kinds == [f"blocks.{i}.{spatial}" for i in (0, 1)]
    assert all(layer.grid == (16, 16) for layer in model.select("blocks"))
    if form:
        assert mp.token_mixing(model, surrogates=1, shuffles=1).form == form
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = mp.spatial_mixing(model, images, views=("branch",), probes=1)
    assert np.isfinite(found.value[0, :, found.index("distance_px")]).all()
