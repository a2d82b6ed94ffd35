"""A person's own network: other sizes, other norms, wrapped, or put together from timm's blocks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from timm.layers import GroupNorm, PatchEmbed, RmsNorm
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import nn

from mixer_probe.capture import extract
from mixer_probe.core.errors import ModelError
from mixer_probe.models.macs import count_macs
from tests.networks import CASES, as_model, noise, randomised


class TokenBatchNorm(nn.Module):
    """Batch norm of tokens [image, position, channel]."""

    def __init__(self, channels: int, **_: object) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Tokens(nn.Module):
    """Embedding, blocks and a pooled head, without any of timm's own networks around them."""

    def __init__(self, block: nn.Module, embedding: str, register: int = 0) -> None:
        super().__init__()
        setattr(self, embedding, PatchEmbed(24, 4, 3, 16))
        self.embedding = embedding
        self.register = nn.Parameter(torch.zeros(1, register, 16)) if register else None
        self.blocks = nn.Sequential(*(block() for _ in range(3)))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = getattr(self, self.embedding)(x)
        if self.register is not None:
            x = torch.cat([self.register.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.norm(self.blocks(x)).mean(1))


def test_a_vit_of_other_sizes() -> None:
    network = VisionTransformer(
        img_size=(48, 24), patch_size=6, embed_dim=30, depth=5, num_heads=3, num_classes=2
    )
    model = as_model(network, input_size=(3, 48, 24))
    assert (model.family, len(model.select("blocks"))) == ("vit", 5)
    block = model.select("blocks")[0]
    assert (block.grid, block.channels, block.prefix_tokens) == ((8, 4), 30, 1)


def test_a_mixer_of_other_sizes() -> None:
    model = as_model(
        MlpMixer(img_size=20, patch_size=4, embed_dim=10, num_blocks=7, num_classes=2), 20
    )
    block = model.select("blocks")[-1]
    assert (model.family, block.name, block.depth, block.grid, block.channels) == (
        "mixer",
        "blocks.6",
        1.0,
        (5, 5),
        10,
    )


def test_a_resnet_of_other_sizes() -> None:
    model = as_model(
        ResNet(
            Bottleneck,
            [2, 1, 3, 1],
            channels=(4, 8, 12, 16),
            stem_width=8,
            in_chans=1,
            num_classes=2,
        )
    )
    model = as_model(model.module, input_size=(1, 40, 40), mean=(0.5,), std=(0.2,))
    blocks = model.select("blocks")
    assert (model.family, len(blocks)) == ("cnn", 7)
    assert [b.grid for b in blocks] == [(10, 10)] * 2 + [(5, 5)] + [(3, 3)] * 3 + [(2, 2)]


@pytest.mark.parametrize(
    "norm", [RmsNorm, TokenBatchNorm, partial(nn.LayerNorm, eps=1e-3), nn.Identity]
)
def test_other_norms(norm: type[nn.Module]) -> None:
    networks: list[nn.Module] = [
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, norm_layer=norm
        ),
        MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, norm_layer=norm),
    ]
    for network in networks:
        model = as_model(randomised(network))
        found = extract(model, noise(2), "all", reduce="none")
        assert [layer.kind for layer in model.layers].count("norm") == (
            0 if norm is nn.Identity else 1
        )
        assert all(np.isfinite(found[name]).all() for name in found)


def test_group_norm_in_a_resnet() -> None:
    network = ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        channels=(8, 8, 16, 16),
        norm_layer=partial(GroupNorm, num_groups=4),
    )
    model = as_model(network, 64)
    assert model.layer("layer1.0.bn1").grid == (16, 16)


def test_post_norm_blocks() -> None:
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, block_fn=ResPostBlock
    )
    model = as_model(network)
    assert [layer.name for layer in model.select("spatial")] == ["blocks.0.attn", "blocks.1.attn"]
    assert model.layer("blocks.1.norm2").prefix_tokens == 1


@pytest.mark.parametrize("embedding", ["patch_embed", "stem"])
@pytest.mark.parametrize(
    ("block", "family"),
    [(partial(Block, 16, 2), "vit"), (partial(MixerBlock, 16, 36), "mixer")],
)
def test_a_class_of_ones_own(block: type[nn.Module], family: str, embedding: str) -> None:
    model = as_model(Tokens(block, embedding), 24)
    assert model.family == family
    kinds = [layer.kind for layer in model.layers]
    assert kinds == ["stem", *["spatial", "channel", "block"] * 3, "norm", "head"]
    assert model.layers[0].name == embedding
    assert {layer.grid for layer in model.layers[:-1]} == {(6, 6)}


def test_tokens_of_ones_own_before_the_patches() -> None:
    model = as_model(Tokens(partial(Block, 16, 2), "patch_embed", register=3), 24)
    block = model.select("blocks")[0]
    assert (block.grid, block.positions, block.prefix_tokens) == ((6, 6), 36, 3)


def test_an_embedding_of_another_name_still_gives_the_grid() -> None:
    model = as_model(Tokens(partial(Block, 16, 2), "eyes"), 24)
    assert [layer.kind for layer in model.layers].count("stem") == 0
    assert model.select("blocks")[0].grid == (6, 6)
    assert model.layer("eyes").grid == (6, 6)


def test_patches_embedded_by_a_linear_layer() -> None:
    """No convolution says what the grid is, but the stem says how many tokens are patches."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(48, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(nn.functional.unfold(x, 4, stride=4).transpose(1, 2))

    network = Tokens(partial(Block, 16, 2), "patch_embed", register=3)
    network.patch_embed = Linear()
    model = as_model(network, 24)
    block = model.select("blocks")[-1]
    assert (block.grid, block.positions, block.prefix_tokens) == (None, 36, 3)
    assert model.layers[0].positions == 36
    assert extract(model, noise(2, 24), "blocks", reduce="prefix")["blocks.0"].shape == (2, 16)


@pytest.mark.parametrize(
    "name",
    ["vit", "mixer", "swin", "resnet-bottleneck", "convnext", "vit-attention-pooling", "hybrid"],
)
def test_a_network_inside_another(name: str) -> None:
    """The same layers under one more name: a backbone with a head of one's own."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = CASES[name].network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.backbone(x)

    case = CASES[name]
    inner, outer = case.model(), as_model(Wrapped(), case.size)
    assert outer.structure.names() == [
        *(f"backbone.{n}" for n in inner.structure.names()),
        "backbone",
    ]
    for a, b in zip(inner.layers, outer.layers, strict=True):
        assert b.name == f"backbone.{a.name}"
        assert (a.kind, a.grid, a.channels, a.prefix_tokens, a.depth) == (
            b.kind,
            b.grid,
            b.channels,
            b.prefix_tokens,
            b.depth,
        )
    for path in inner.structure.names():
        assert inner.layer(path).axes == outer.layer(f"backbone.{path}").axes


def test_a_new_head_on_a_backbone() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = VisionTransformer(
                img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0
            )
            self.head = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(x))

    layers = as_model(Classifier()).layers
    assert layers[0].name == "backbone.patch_embed"
    assert (layers[-1].name, layers[-1].kind, layers[-1].channels) == ("head", "head", 3)


def test_as_many_hidden_units_as_patches_are_still_no_grid() -> None:
    """Sixteen hidden units a token MLP, sixteen patches."""
    model = as_model(
        MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1, mlp_ratio=(1.0, 2.0))
    )
    for inner in ("fc1", "act", "drop1", "norm"):
        layer = model.layer(f"blocks.0.mlp_tokens.{inner}")
        assert (layer.grid, layer.positions, layer.channels) == (None, 16, 16)
    for inner in ("blocks.0.mlp_tokens", "blocks.0.mlp_tokens.fc2", "blocks.0.mlp_tokens.drop2"):
        assert model.layer(inner).grid == (4, 4)


def test_as_many_channels_as_patches_are_kept_apart() -> None:
    """A square [image, 16, 16] tensor: only the class says which axis is which."""
    network = randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1)).double()
    model = as_model(network, dtype="float64")
    found = extract(
        model,
        noise(2, dtype=torch.float64),
        ["blocks.0.norm1", "blocks.0.mlp_tokens"],
        reduce="none",
    )
    tokens = torch.from_numpy(found["blocks.0.norm1"])
    with torch.no_grad():
        mixed = network.blocks[0].mlp_tokens(tokens.transpose(1, 2)).transpose(1, 2)
    np.testing.assert_allclose(found["blocks.0.mlp_tokens"], mixed, atol=1e-12)


class Both(nn.Module):
    """Convolutional blocks, then attention."""

    def __init__(self) -> None:
        super().__init__()
        self.early = BasicBlock(3, 3)
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.late = Block(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(self.embed(self.early(x)).flatten(2).transpose(1, 2))


def test_blocks_of_two_families() -> None:
    with pytest.raises(
        ModelError,
        match=r"'Both' \(Both\) mixes blocks of vit and cnn; known are networks of one family",
    ):
        as_model(Both())


def test_a_network_whose_blocks_do_not_run() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(8, 2)])
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean((2, 3)))

    with pytest.raises(ModelError, match="no block of the network runs"):
        as_model(Idle()).layers  # noqa: B018 - traced on first use


def test_shared_blocks_are_named_call_by_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = PatchEmbed(32, 8, 3, 16)
            self.blocks = nn.ModuleList([Block(16, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch_embed(x)
            for _ in range(3):
                x = self.blocks[0](x)
            return x

    names = as_model(Shared()).structure.names()
    assert [n for n in names if n.startswith("blocks.0#")] == [
        "blocks.0#0",
        "blocks.0#1",
        "blocks.0#2",
    ]


def test_macs_of_a_network_that_expands_a_parameter() -> None:
    """Attention pooling repeats its learned query for every image; the parameters ask for gradients
    as before."""
    model = CASES["vit-attention-pooling"].model()
    pool, rows, c = model.module.attn_pool, model.layers[0].positions, model.module.embed_dim
    before = model.macs
    model.module.attn_pool = nn.Identity()
    without = (
        count_macs(model.module, model.input.size) - (rows - 1) * model.module.head.weight.numel()
    )
    mlp = 2 * c * pool.mlp.fc1.out_features
    assert before - without == 2 * c * c + 2 * rows * c * c + 2 * rows * c + mlp
    assert all(p.requires_grad for p in model.module.parameters())
