"""Tokens and layers are known or refused: prefix tokens, blocks that run several times, modules
that hand on what they get."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import PatchEmbed
from timm.models.mlp_mixer import MixerBlock
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F

import mixer_probe as mp
from mixer_probe.attribution import layer_conductance
from mixer_probe.core.errors import LayerError, MeasureError, ModelError
from mixer_probe.models.structure import Structure, find_adapter
from mixer_probe.models.trace import trace
from tests.networks import CASES, as_model, noise, randomised, shapes_only

# -- prefix tokens ---------------------------------------------------------------------------------

SIZE, PATCH, WIDTH = 32, 8, 16


class Patches(nn.Module):
    """An embedding of one linear layer, without a convolution that says what the grid is."""

    def __init__(self, classes: int = 0, stride: int = PATCH, pad: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * PATCH**2, WIDTH)
        self.class_token = nn.Parameter(torch.zeros(1, classes, WIDTH)) if classes else None
        self.stride, self.pad = stride, pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.inner(
            F.unfold(x, PATCH, stride=self.stride, padding=self.pad).transpose(1, 2)
        )
        return (
            tokens
            if self.class_token is None
            else torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1)
        )


class Pooled(nn.Module):
    """A convolutional stem whose map is pooled before it becomes tokens: by a module, or by a
    function that no hook sees."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 4, 4)
        self.pool = nn.MaxPool2d(2) if by_module else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        return (
            (F.max_pool2d(maps, 2) if self.pool is None else self.pool(maps))
            .flatten(2)
            .transpose(1, 2)
        )


class Squeezed(nn.Module):
    """Patches whose strength a squeeze-and-excite layer sets: the last map before the blocks has
    one position."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.gate = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.proj(x)
        return (
            (maps * self.gate(maps.mean((2, 3), keepdim=True)).sigmoid()).flatten(2).transpose(1, 2)
        )


class Custom(nn.Module):
    """A ViT of one's own: any embedding, prefix tokens before its patches, `depth` calls of
    `blocks`."""

    def __init__(
        self,
        embedding: nn.Module,
        classes: int,
        blocks: list[nn.Module] | None = None,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        self.patch_embed = embedding
        self.prefix = nn.Parameter(torch.zeros(1, classes, WIDTH)) if classes else None
        self.blocks = nn.ModuleList(blocks or [Block(WIDTH, 2) for _ in range(2)])
        self.repeats = repeats
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        return x if self.prefix is None else torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        for _ in range(self.repeats):
            for block in self.blocks:
                x = block(x)
        return self.head(self.norm(x)[:, 0])


def naflex(**options: Any) -> nn.Module:
    config = NaFlexVitCfg(patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2, **options)
    return NaFlexVit(config, num_classes=4, img_size=SIZE)


def stating(network: nn.Module, prefix: int) -> nn.Module:
    network.num_prefix_tokens = prefix  # type: ignore[assignment]
    return network


COUNTED = {
    "naflexvit with a class token": (partial(naflex, class_token=True, global_pool="token"), 1),
    "naflexvit with registers": (
        partial(naflex, class_token=False, reg_tokens=3, global_pool="avg"),
        3,
    ),
    "naflexvit without": (partial(naflex, class_token=False, global_pool="avg"), 0),
    "linear embedding, class token outside": (lambda: Custom(Patches(), 1), 1),
    "linear embedding, class token inside": (lambda: Custom(Patches(1), 0), 1),
    "linear embedding, no class token": (lambda: Custom(Patches(), 0), 0),
    "overlapping patches, stated": (lambda: stating(Custom(Patches(stride=4), 1), 1), 1),
    "a map pooled by a module": (lambda: Custom(Pooled(True), 2), 2),
    "a map pooled by a function, stated": (lambda: stating(Custom(Pooled(False), 2), 2), 2),
    "a gate after the map, stated": (lambda: stating(Custom(Squeezed(), 1), 1), 1),
}


@pytest.mark.parametrize("name", COUNTED)
def test_prefix_tokens_are_counted(name: str) -> None:
    """The mean is over the patches alone, computed again from what the block returns."""
    build, prefix = COUNTED[name]
    network = randomised(build()).eval()
    model, x = as_model(network, SIZE), noise(3, SIZE)
    caught: list[torch.Tensor] = []
    handle = network.blocks[0].register_forward_hook(lambda _m, _a, output: caught.append(output))
    with torch.no_grad():
        network(x)
    handle.remove()
    block = model.select("blocks")[0]
    assert (block.prefix_tokens, block.positions) == (prefix, caught[0].shape[1] - prefix)
    np.testing.assert_allclose(
        mp.extract(model, x, "blocks")["blocks.0"], caught[0][:, prefix:].mean(1), atol=1e-6
    )
    if prefix:
        np.testing.assert_allclose(
            mp.extract(model, x, "blocks", reduce="prefix")["blocks.0"], caught[0][:, 0], atol=1e-6
        )
    assert block.grid in (None, (4, 4))


REFUSED = {
    "overlapping patches": (lambda: Custom(Patches(stride=4), 1), "49|50"),
    "overlapping patches with a class token inside": (
        lambda: Custom(Patches(1, stride=4), 0),
        "50",
    ),
    "a map pooled by a function": (lambda: Custom(Pooled(False), 1), "17"),
    "a gate after the map": (lambda: Custom(Squeezed(), 1), "17"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_prefix_tokens_that_cannot_be_counted_are_refused(name: str) -> None:
    build, tokens = REFUSED[name]
    sentence = (
        rf"Custom: which of the ({tokens}) tokens .* is neither stated nor countable; set "
        r"num_prefix_tokens"
    )
    with pytest.raises(ModelError, match=sentence):
        as_model(build(), SIZE).layers  # noqa: B018 - traced on first use


@pytest.mark.parametrize("stated", [0, 2, 5])
@pytest.mark.parametrize("embedding", [partial(PatchEmbed, SIZE, PATCH, 3, WIDTH), Patches])
def test_a_statement_that_the_embedding_denies(embedding: Any, stated: int) -> None:
    with pytest.raises(
        ModelError,
        match=f"states num_prefix_tokens={stated}, and 1 of the 17 tokens .* which makes 16; set",
    ):
        as_model(stating(Custom(embedding(), 1), stated), SIZE).layers  # noqa: B018 - traced on first use


def test_tokens_that_a_subclass_adds_in_silence_are_refused() -> None:
    class More(VisionTransformer):
        def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
            tokens = super()._pos_embed(x)
            return torch.cat([tokens[:, :1], torch.zeros_like(tokens[:, :4]), tokens[:, 1:]], 1)

    network = More(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=1, num_heads=2)
    with pytest.raises(ModelError, match="More states num_prefix_tokens=1, and 5 of the 21 tokens"):
        as_model(network, SIZE).layers  # noqa: B018 - traced on first use


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", 2),
        ("deit3_small_patch16_224", 1),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("vit_base_patch16_gap_224", 0),
        ("vit_base_patch16_siglip_224", 0),
        ("vit_tiny_r_s16_p8_224", 1),
        ("beit_base_patch16_224", 1),
        ("eva02_tiny_patch14_224", 1),
        ("vit_medium_patch16_rope_reg1_gap_256", 1),
        ("naflexvit_base_patch16_map", 1),
        ("naflexvit_base_patch16_gap", 4),
        ("naflexvit_base_patch16_siglip", 0),
        ("swin_tiny_patch4_window7_224", 0),
        ("mixer_s16_224", 0),
    ],
)
def test_prefix_tokens_of_timms_families(name: str, prefix: int) -> None:
    if not timm.is_model(name):
        pytest.skip("this timm does not have it")
    network = shapes_only(timm.create_model, name)
    size = network.pretrained_cfg["input_size"]
    found = Structure(network, trace(network, size), find_adapter(network, name), size)
    assert getattr(network, "num_prefix_tokens", 0) == prefix
    assert {layer.prefix_tokens for layer in found.layers if layer.kind == "block"} == {prefix}


@pytest.mark.parametrize(
    "name",
    [
        "cait_xxs24_224",
        "xcit_nano_12_p16_224",
        "volo_d1_224",
        "hiera_tiny_224",
        "samvit_base_patch16",
        "pit_ti_224",
    ],
)
def test_families_whose_tokens_are_not_known_are_refused(name: str) -> None:
    network = shapes_only(timm.create_model, name)
    size = network.pretrained_cfg["input_size"]
    with pytest.raises(ModelError, match="known famil"):
        Structure(network, trace(network, size), find_adapter(network, name), size)


@pytest.mark.parametrize("method", ["gradcam", "attention_rollout", "saliency"])
def test_maps_of_tokens_need_a_grid(method: str) -> None:
    """NaFlexViT states the size of its patches; a linear embedding that does not leaves their
    arrangement open."""
    stated, open_ = (
        as_model(randomised(build()), SIZE)
        for build in (partial(naflex, class_token=True), lambda: Custom(Patches(), 1))
    )
    assert (stated.structure.token_grid, open_.structure.token_grid) == ((4, 4), None)
    assert mp.attribute(stated, noise(1, SIZE), method, target=1).grid == (4, 4)
    with pytest.raises(MeasureError, match=r"form no known grid|has no single attention matrix"):
        mp.attribute(open_, noise(1, SIZE), method, target=1)


# -- blocks that run several times -----------------------------------------------------------------


class SharedCNN(nn.Module):
    """A recurrent residual network: one block, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.block, self.fc = (
            nn.Conv2d(3, WIDTH, 3, 2, 1),
            BasicBlock(WIDTH, WIDTH),
            nn.Linear(WIDTH, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for _ in range(3):
            x = self.block(x)
        return self.fc(x.mean((2, 3)))


def convolution() -> nn.Module:
    return PatchEmbed(SIZE, PATCH, 3, WIDTH)


def with_one_attention() -> nn.Module:
    """Blocks with MLPs of their own that share one attention."""
    blocks = [Block(WIDTH, 2) for _ in range(3)]
    for block in blocks[1:]:
        block.attn = blocks[0].attn
    return Custom(convolution(), 1, blocks)


SHARED: dict[str, tuple[Any, list[str], list[str]]] = {
    "one vit block": (
        lambda: Custom(convolution(), 1, [Block(WIDTH, 2)], 3),
        ["blocks.0#0", "blocks.0#1", "blocks.0#2"],
        ["blocks.0.attn#0", "blocks.0.attn#1", "blocks.0.attn#2"],
    ),
    "two mixer blocks in turn": (
        lambda: Custom(convolution(), 0, [MixerBlock(WIDTH, 16), MixerBlock(WIDTH, 16)], 2),
        ["blocks.0#0", "blocks.1#0", "blocks.0#1", "blocks.1#1"],
        [
            "blocks.0.mlp_tokens#0",
            "blocks.1.mlp_tokens#0",
            "blocks.0.mlp_tokens#1",
            "blocks.1.mlp_tokens#1",
        ],
    ),
    "one residual block": (
        SharedCNN,
        ["block#0", "block#1", "block#2"],
        [f"block.conv{k}#{i}" for i in range(3) for k in (1, 2)],
    ),
    "one attention in three blocks": (
        with_one_attention,
        ["blocks.0", "blocks.1", "blocks.2"],
        ["blocks.0.attn#0", "blocks.0.attn#1", "blocks.0.attn#2"],
    ),
}
shared = pytest.mark.parametrize("name", SHARED)


def shared_model(name: str) -> mp.Model:
    return as_model(randomised(SHARED[name][0]()), SIZE)


@shared
def test_every_call_of_a_block_is_a_layer(name: str) -> None:
    _, blocks, spatial = SHARED[name]
    model = shared_model(name)
    found = model.select("blocks")
    assert [layer.name for layer in found] == blocks
    assert [layer.depth for layer in found] == [(i + 1) / len(blocks) for i in range(len(blocks))]
    assert [layer.name for layer in model.select("spatial")] == spatial
    depths = [layer.depth for layer in model.layers]
    assert depths == sorted(depths)
    assert all(0 < layer.depth < 1 for layer in model.select("spatial"))
    assert model.structure.names() == [
        n for n in model.structure.names() if model.layer(n).name == n
    ]


@shared
def test_the_numbers_of_every_call_are_its_own(name: str) -> None:
    model, x = shared_model(name), noise(3, SIZE)
    found = mp.extract(model, x, "blocks")
    network = model.module
    with torch.no_grad():
        state = network.conv1(x) if isinstance(network, SharedCNN) else network.tokens(x)
        for layer in model.select("blocks"):
            state = network.get_submodule(layer.module)(state)
            by_hand = (
                state.flatten(2).mean(2)
                if state.ndim == 4
                else state[:, layer.prefix_tokens :].mean(1)
            )
            np.testing.assert_allclose(found[layer.name], by_hand, atol=1e-5)


@shared
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "gradcam", "occlusion"])
def test_attributions_of_networks_with_shared_blocks(name: str, method: str) -> None:
    model, x = shared_model(name), noise(2, SIZE)
    found = mp.attribute(model, x, method, target=1)
    assert found.maps.shape == (2, SIZE, SIZE)
    assert np.abs(found.maps).max() > 0
    if method == "integrated_gradients":
        assert np.abs(found.relative_delta).max() < 0.05


@pytest.mark.parametrize("name", ["one vit block", "one attention in three blocks"])
def test_rollout_takes_the_attention_of_every_call(name: str) -> None:
    """(A_3 + I)/2 (A_2 + I)/2 (A_1 + I)/2 with attention computed again from queries and keys."""
    model, x = shared_model(name), noise(2, SIZE)
    network = model.module
    product = torch.eye(17).expand(2, 17, 17)
    with torch.no_grad():
        state = network.tokens(x)
        for layer in model.select("blocks"):
            block = network.get_submodule(layer.module)
            q, k, _ = (
                block.attn.qkv(block.norm1(state))
                .reshape(2, 17, 3, 2, WIDTH // 2)
                .permute(2, 0, 3, 1, 4)
            )
            maps = (q @ k.transpose(-1, -2) / (WIDTH // 2) ** 0.5).softmax(-1).mean(1)
            product = (maps + torch.eye(17)) / 2 @ product
            state = block(state)
    found = mp.attribute(model, x, "attention_rollout", target=1)
    np.testing.assert_allclose(found.native, product[:, 0, 1:].reshape(2, 4, 4), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "analysis"),
    [
        ("two mixer blocks in turn", mp.token_mixing),
        ("one residual block", mp.spatial_kernels),
        ("one vit block", mp.weight_spectra),
    ],
)
def test_weights_of_shared_blocks_have_no_single_depth(name: str, analysis: Any) -> None:
    with pytest.raises(
        LayerError, match=r"runs [23] times a forward pass, so its weights have no single depth"
    ):
        analysis(shared_model(name))


def test_conductance_of_shared_blocks_is_refused() -> None:
    with pytest.raises(
        LayerError,
        match=(
            r"needs modules that run once per pass, and 'blocks\.0\.mlp_tokens\.act' runs several "
            r"times"
        ),
    ):
        layer_conductance(shared_model("two mixer blocks in turn"), noise(1, SIZE), target=1)


# -- modules that hand on what they get ------------------------------------------------------------


class ResNet20(nn.Module):
    """akamaster's ResNet-20 for CIFAR-10, made of timm's blocks in a body with timm's names: no
    pooling in the stem."""

    def __init__(self, **replaced: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = (
            nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.Identity()
        for i, (before, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            smaller = (
                nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width))
                if i > 1
                else None
            )
            first = BasicBlock(before, width, stride=min(i, 2), downsample=smaller)
            self.add_module(
                f"layer{i}",
                nn.Sequential(first, BasicBlock(width, width), BasicBlock(width, width)),
            )
        self.fc = nn.Linear(64, 10)
        for name, module in replaced.items():
            setattr(self, name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("replaced", "stem"),
    [
        ({}, "act1"),
        ({"maxpool": nn.Sequential()}, "act1"),
        ({"act1": nn.Identity()}, "bn1"),
        ({"act1": nn.Identity(), "bn1": nn.Identity()}, "conv1"),
        ({"maxpool": nn.MaxPool2d(2)}, "maxpool"),
    ],
)
def test_the_stem_is_no_identity(replaced: dict[str, nn.Module], stem: str) -> None:
    network = randomised(ResNet20(**replaced))
    model, x = as_model(network, SIZE), noise(2, SIZE)
    assert (model.layers[0].kind, model.layers[0].name) == ("stem", stem)
    assert len(model.select("blocks")) == 9
    with torch.no_grad():
        maps = network.maxpool(network.act1(network.bn1(network.conv1(x))))
    np.testing.assert_allclose(mp.extract(model, x, "stem")[stem], maps.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("nothing", [nn.Identity, nn.Sequential])
def test_norms_and_heads_are_no_identities_either(nothing: Any) -> None:
    network = CASES["vit"].network()
    network.norm, network.head = nothing(), nothing()
    assert {layer.kind for layer in as_model(network).layers} == {
        "stem",
        "spatial",
        "channel",
        "block",
    }
