"""Networks of the three families whose class is decided by the upper left quadrant alone, by
construction.

What the other quadrants show is multiplied by zero before the network, which is drawn at random:
every true attribution is then in that quadrant. Biases and position embeddings of the Mixer and the
ViT are zero, so that a token of nothing is zero as well, and the attention of the ViT goes to
tokens that show something."""

from __future__ import annotations

import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixer_probe as mp
from tests.networks import as_model, randomised, settled

SIZE = 16
HALF = SIZE // 2


class Quadrant(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        mask = torch.zeros(1, 1, SIZE, SIZE)
        mask[..., :HALF, :HALF] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x * self.mask)


def pictures(n: int = 6, seed: int = 3) -> torch.Tensor:
    """Bright images with noise [n, 3, 16, 16], in float64."""
    return (
        1
        + 0.5
        * torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double()
    )


def planted_models() -> dict[str, mp.Model]:
    shape = {"img_size": SIZE, "patch_size": 4, "num_classes": 3, "embed_dim": 24}
    networks = {
        "mixer": MlpMixer(**shape, num_blocks=2),
        "vit": VisionTransformer(**shape, depth=2, num_heads=2),
        "cnn": ResNet(
            BasicBlock, [1, 1, 1, 1], num_classes=3, channels=(8, 8, 16, 16), stem_width=8
        ),
    }
    # In float64, where what a pixel without effect gets is not rounding.
    return {
        name: as_model(_silent(Quadrant(randomised(network)).double()), SIZE)
        for name, network in networks.items()
    }


def _silent(network: Quadrant) -> nn.Module:
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(("bias", "pos_embed", "cls_token")):
                p.zero_()
            if name in ("network.head.weight", "network.fc.weight"):
                p.mul_(4)
            if name == "network.conv1.weight":
                # A kernel of 3 px in one of 7, which would look far beyond the quadrant.
                p[:, :, [0, 1, 5, 6], :] = p[:, :, :, [0, 1, 5, 6]] = 0
            if ".bn" in name and name.endswith("bias"):
                # Nearly all of the ReLUs are open: what a few patches do is then about the sum of
                # what each does.
                p.fill_(3)
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                # The norm of an empty token has no gradient that says anything unless eps is as
                # large as a token.
                module.eps = 1.0
            if hasattr(module, "qkv"):
                _look_at_what_is_there(network, module)
    return settled(network.eval(), pictures(8))


def _look_at_what_is_there(network: Quadrant, attention: nn.Module) -> None:
    """Queries are one constant, keys that constant times the likeness to a bright patch."""
    width = attention.qkv.in_features
    bright = network.network.patch_embed(torch.ones(1, 3, SIZE, SIZE).double())[0, 0]
    bright = (bright - bright.mean()) / (bright - bright.mean()).norm()
    attention.qkv.weight[: 2 * width] = 0
    attention.qkv.bias[:width] = 1.0
    attention.qkv.weight[width : 2 * width] = bright * 0.3
