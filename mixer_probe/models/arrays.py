"""Arrays of npz files, as Google publishes weights, as tensors by the names of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixer_probe.core.errors import CheckpointError
from mixer_probe.core.switches import copied
from mixer_probe.core.text import quoted
from mixer_probe.core.words import first_and_more

# Names of the arrays of the Mixers that Google published (google-research/vision_transformer,
# models_mixer.py).
_MIXER_NAMES = (
    (r"^.*?(?=stem/|MixerBlock_|pre_head_layer_norm/|head/)", ""),
    (r"MixerBlock_(\d+)", r"blocks/\1"),
    (r"LayerNorm_([01])", lambda m: f"norm{int(m[1]) + 1}"),
    (r"token_mixing/Dense_([01])", lambda m: f"mlp_tokens/fc{int(m[1]) + 1}"),
    (r"channel_mixing/Dense_([01])", lambda m: f"mlp_channels/fc{int(m[1]) + 1}"),
    (r"^stem", "stem/proj"),
    (r"^pre_head_layer_norm", "norm"),
    (r"(kernel|scale)$", "weight"),
    (r"/", "."),
)


def tensors_of(
    network: nn.Module, arrays: Mapping[str, np.ndarray], source: str
) -> dict[str, torch.Tensor]:
    """Tensors by the network's names from arrays by those of Google's Mixers, or through timm's own
    conversion of ViTs and BiT.

    Raises CheckpointError for arrays of another layout and for a network that has no such
    conversion."""
    own = network.state_dict()
    numbers = {key: a for key, a in arrays.items() if a.dtype.kind in "fiub"}
    if any(key in own for key in arrays):
        return {key: _tensor(key, a, source) for key, a in numbers.items()}
    if isinstance(network, MlpMixer) and "stem/kernel" in arrays:
        names = list(numbers)
        for pattern, replacement in _MIXER_NAMES:
            names = [re.sub(pattern, replacement, name) for name in names]
        # flax keeps the outputs of a layer on its last axis, torch on its first.
        turned = {
            k: np.ascontiguousarray(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T)
            for k, a in numbers.items()
        }
        return {
            name: _tensor(key, a, source)
            for name, (key, a) in zip(names, turned.items(), strict=True)
        }
    filled = copied(network)
    convert: Callable[[str], None] | None = getattr(filled, "load_pretrained", None)
    if convert is None:
        listed = first_and_more(map(quoted, arrays), 3)
        raise CheckpointError(
            f"checkpoint {source} holds arrays ({listed}), and for {type(network).__name__} there "
            "is no conversion of those; give a .safetensors or .pth file"
        )
    _check_depth(network, arrays, source)
    with torch.no_grad():
        for value in filled.state_dict().values():
            if value.is_floating_point():
                value.fill_(torch.nan)
    try:
        convert(source)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(network).__name__}: timm's conversion of its "
            f"arrays ended with {reason}"
        ) from error
    found = filled.state_dict()
    unset = [
        key
        for key, value in found.items()
        if value.is_floating_point() and bool(value.isnan().all())
    ]
    if unset:
        missing = first_and_more((f"{key!r} is missing" for key in unset), 3)
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(network).__name__}: {missing}"
        )
    return found


def _tensor(key: str, a: np.ndarray, source: str) -> torch.Tensor:
    """The array as a tensor, in this machine's order of bytes. Raises CheckpointError for a type
    that torch does not have."""
    try:
        return torch.from_numpy(a.astype(a.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise CheckpointError(
            f"{quoted(key)} in checkpoint {source} is {a.dtype}, which torch does not have"
        ) from error


def _check_depth(network: nn.Module, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """timm's conversion goes through the blocks of the network, and would leave out others of the
    file without a word."""
    blocks = {m[0] for key in arrays if (m := re.search(r"encoderblock_\d+|block\d+/unit\d+", key))}
    stacked = next(
        (
            len(np.atleast_1d(a))
            for key, a in arrays.items()
            if key.endswith("encoderblock/LayerNorm_0/scale")
        ),
        0,
    )
    encoder = {block for block in blocks if block.startswith("encoder")}
    there = stacked or len(encoder or blocks)
    parts: Any = getattr(network, "blocks", None) or [
        b for s in getattr(network, "stages", ()) for b in s.blocks
    ]
    if there and there != len(parts):
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(network).__name__}: it has {there} blocks and "
            f"the network {len(parts)}"
        )
