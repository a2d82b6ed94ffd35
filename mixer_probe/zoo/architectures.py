"""The zoo's architectures, built from timm's own classes for 32x32 images, and their initial
weights.

Mixer and ViT share patch size (2), width (128), depth (8), channel-mixing MLP (128 -> 256 -> 128),
final norm, mean pool, linear head and initialisation; the token-mixing MLP (2 * 256 * 128 weights)
has the size of the attention (4 * 128^2 weights). What differs between them is how positions are
mixed. They have 1,062,026 (Mixer) and 1,095,818 (ViT) parameters, the ResNet has 808,010.

Four more mix positions in other ways, with the Mixer's patch size, depth and width. ResMLP
(1,063,050 parameters), gMLP (1,054,090) and gMixer (1,071,242) have, within 1 %, its number of
parameters: ResMLP its channel MLP, gMLP and gMixer hidden layers of the widths that give it. The
ConvMixer has 7x7 depthwise kernels, no hidden layers, and 190,602 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from timm.layers.mlp import GatedMlp, GluMlp
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn

# What the networks of timm's class MlpMixer share.
_MLP_MIXER: Mapping[str, Any] = {
    "num_classes": 10,
    "img_size": 32,
    "patch_size": 2,
    "num_blocks": 8,
    "embed_dim": 128,
}
# timm's class, its keyword arguments, and what is replaced afterwards.
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "mixer": {
        "class": "timm.models.mlp_mixer.MlpMixer",
        "arguments": {
            **_MLP_MIXER,
            "mlp_ratio": [1.0, 2.0],
        },
        "replaced": {},
    },
    "vit": {
        "class": "timm.models.vision_transformer.VisionTransformer",
        "arguments": {
            "num_classes": 10,
            "img_size": 32,
            "patch_size": 2,
            "depth": 8,
            "embed_dim": 128,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
        },
        "replaced": {},
    },
    "resnet": {
        "class": "timm.models.resnet.ResNet",
        "arguments": {
            "block": "BasicBlock",
            "num_classes": 10,
            "layers": [3, 3, 2, 1],
            "channels": [32, 64, 96, 112],
            "zero_init_last": False,
        },
        "replaced": {
            "conv1": "Conv2d(3, 64, 3, stride=1, padding=1, bias=False)",
            "maxpool": "Identity()",
        },
    },
    "resmlp": {
        "class": "timm.models.mlp_mixer.MlpMixer",
        "arguments": {
            **_MLP_MIXER,
            "mlp_ratio": 2.0,
            "block_layer": "ResBlock",
            "norm_layer": "Affine",
        },
        "replaced": {},
    },
    "gmlp": {
        "class": "timm.models.mlp_mixer.MlpMixer",
        "arguments": {
            **_MLP_MIXER,
            # 336 hidden units, of which one half gates the other.
            "mlp_ratio": 2.625,
            "block_layer": "SpatialGatingBlock",
            "mlp_layer": "GatedMlp",
        },
        "replaced": {},
    },
    "gmixer": {
        "class": "timm.models.mlp_mixer.MlpMixer",
        "arguments": {
            **_MLP_MIXER,
            # 176 and 336 hidden units, of which one half gates the other.
            "mlp_ratio": [1.375, 2.625],
            "mlp_layer": "GluMlp",
            "act_layer": "SiLU",
        },
        "replaced": {},
    },
    "convmixer": {
        "class": "timm.models.convmixer.ConvMixer",
        "arguments": {
            "num_classes": 10,
            "patch_size": 2,
            "depth": 8,
            "dim": 128,
            "kernel_size": 7,
        },
        "replaced": {},
    },
}
# What a name in the arguments of an `MlpMixer` stands for.
_CLASSES: Mapping[str, type[nn.Module]] = {
    "ResBlock": ResBlock,
    "Affine": Affine,
    "SpatialGatingBlock": SpatialGatingBlock,
    "GatedMlp": GatedMlp,
    "GluMlp": GluMlp,
    "SiLU": nn.SiLU,
}


def construct(family: str, seed: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The untrained network of a family, float32 on the CPU; the caller's RNG stays as it was.
    `arguments` replace those of `ARCHITECTURES`. Raises TypeError for an argument that the network
    does not have."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        given = {**ARCHITECTURES[family]["arguments"], **(arguments or {})}
        model = _CONSTRUCTORS[family](**given).float()
        initialise(model, torch.Generator().manual_seed(seed))
    return model


class UntiedMlp(nn.Module):
    """A token MLP per group of channels: of images [b, channel, token], each group of channels has
    weights of its own (Tolstikhin et al. 2021, appendix A.1). One group is the token MLP of a
    Mixer, as many groups as channels unties it altogether.

    Of channel c in group g, W2_g act(W1_g x_c + b1_g) + b2_g with the weights `fc1_weight` [group,
    hidden, token], `fc1_bias` [group, hidden], `fc2_weight` [group, token, hidden] and `fc2_bias`
    [group, token]. Channels of a group are neighbours. Raises ValueError for channels that cannot
    be divided into so many groups."""

    # No module: its input has groups before images, so that hooks could not read it.
    act = staticmethod(nn.functional.gelu)

    def __init__(self, groups: int, channels: int, tokens: int, hidden: int) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be divided into {groups} groups")
        self.groups = groups
        self.fc1_weight = nn.Parameter(torch.empty(groups, hidden, tokens))
        self.fc1_bias = nn.Parameter(torch.empty(groups, hidden))
        self.fc2_weight = nn.Parameter(torch.empty(groups, tokens, hidden))
        self.fc2_bias = nn.Parameter(torch.empty(groups, tokens))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights by Glorot and Bengio's rule for each group, as timm's Mixer has them, and biases
        of zero."""
        for matrix in (*self.fc1_weight, *self.fc2_weight):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.fc1_bias)
        nn.init.zeros_(self.fc2_bias)

    def pre_activation(self, x: Tensor) -> Tensor:
        """What the activation gets: [b, channel, token] to [b, channel, hidden]."""
        x = x.reshape(len(x), self.groups, -1, x.shape[-1])
        hidden = torch.einsum("bgct,ght->bgch", x, self.fc1_weight) + self.fc1_bias[:, None]
        return hidden.flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channel, token] to the same shape."""
        b, channels, tokens = x.shape
        # Groups first, so that each multiplies one matrix.
        x = x.reshape(b, self.groups, -1, tokens).transpose(0, 1).reshape(self.groups, -1, tokens)
        hidden = self.act(torch.baddbmm(self.fc1_bias[:, None], x, self.fc1_weight.mT))
        mixed = torch.baddbmm(self.fc2_bias[:, None], hidden, self.fc2_weight.mT)
        mixed = mixed.reshape(self.groups, b, -1, tokens).transpose(0, 1)
        return mixed.reshape(b, channels, tokens)


def _mixer(token_groups: int = 1, **arguments: Any) -> nn.Module:
    """A Mixer; with `token_groups` above 1, with a token MLP for every group of channels."""
    model = MlpMixer(**arguments)
    if token_groups > 1:
        for block in cast(Any, model).blocks:
            fc1 = block.mlp_tokens.fc1
            block.mlp_tokens = UntiedMlp(
                token_groups, model.embed_dim, fc1.in_features, fc1.out_features
            )
    return cast(nn.Module, model)


def _mlp_mixer(**arguments: Any) -> nn.Module:
    """ResMLP, gMLP or gMixer, by the names of the classes that they are built from."""
    given: dict[str, Any] = {
        k: _CLASSES.get(v, v) if isinstance(v, str) else v for k, v in arguments.items()
    }
    return cast(nn.Module, MlpMixer(**given))


def _resnet(**arguments: Any) -> nn.Module:
    """A ResNet whose stem keeps the 32x32 resolution, as is usual for CIFAR (He et al. 2016,
    section 4.2)."""
    # Any: timm's annotations narrow the stem to what its own constructor puts there.
    model: Any = ResNet(**{**arguments, "block": BasicBlock})
    model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    for info in model.feature_info:
        info["reduction"] = max(1, info["reduction"] // 4)
    return cast(nn.Module, model)


_CONSTRUCTORS: Mapping[str, Callable[..., nn.Module]] = {
    "mixer": _mixer,
    "vit": VisionTransformer,
    "resnet": _resnet,
    "resmlp": _mlp_mixer,
    "gmlp": _mlp_mixer,
    "gmixer": _mlp_mixer,
    "convmixer": ConvMixer,
}


@torch.no_grad()
def initialise(model: nn.Module, generator: Generator) -> None:
    """Re-initialise every weight with numbers of `generator`, in the order of `named_parameters`.

    timm's own initialisation draws in another order in every version; the untrained baseline has to
    be the same for all. The layer scales of ResMLP start at 0.1, as its authors (Touvron et al.
    2021) have it for 12 blocks; timm's 1e-4 would leave an untrained network without mixing. The
    spatial gates of gMLP start near one (Liu et al. 2021): biases of one, and weights of standard
    deviation 0.001, again larger than timm's 1e-6. The stem of gMLP has random biases: an untrained
    block gives zero for a token of zero, such as a padded patch, and every norm would multiply the
    gradient of such a token by 1000.
    """
    gated = any(isinstance(module, SpatialGatingBlock) for module in model.modules())
    for name, parameter in model.named_parameters():
        if name.endswith((".ls1", ".ls2")):
            nn.init.constant_(parameter, 0.1)
        elif name.endswith((".alpha", ".beta")):
            # ResMLP's affine maps start as the identity.
            nn.init.constant_(parameter, float(name.endswith("alpha")))
        elif name.endswith("gate.proj.bias"):
            nn.init.constant_(parameter, 1.0)
        elif name.endswith("gate.proj.weight"):
            nn.init.normal_(parameter, std=1e-3, generator=generator)
        elif gated and name == "stem.proj.bias":
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif parameter.ndim == 1 or name.endswith("bias"):
            # Norm scales are the only one-dimensional weights; norm shifts and linear biases start
            # at zero.
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif name in ("head.weight", "fc.weight", "pos_embed"):
            # Not zero, as timm's Mixer head would be: the untrained baseline needs logits.
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif name in ("stem.proj.weight", "patch_embed.proj.weight", "stem.0.weight") or (
            parameter.ndim == 4 and parameter.shape[1] == 1
        ):
            # LeCun normal, as in the Mixer's and the ViT's JAX code. Also depthwise kernels: the
            # rule below would count outputs that do not read their channel.
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        elif parameter.ndim == 4:
            nn.init.kaiming_normal_(
                parameter, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif parameter.ndim == 3:
            # One matrix per group of channels.
            for matrix in parameter:
                nn.init.xavier_uniform_(matrix, generator=generator)
        else:
            nn.init.xavier_uniform_(parameter, generator=generator)
