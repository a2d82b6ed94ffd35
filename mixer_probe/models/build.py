"""Networks by timm's names, in any size: arguments win over those that timm fixes for a name."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import timm
from timm.models import load_model_config_from_hf, model_entrypoint, split_model_name_tag
from torch import nn

HUB = "hf-hub:"


def build(name: str, pretrained: bool = False, pretrained_cfg: Any = None, **arguments: Any) -> nn.Module:
    """`timm.create_model`, which also takes what timm's function of that name sets itself (of its Mixers patch_size, num_blocks
    and embed_dim), so that one name stands for networks of every size.

    Raises what timm raises: TypeError for arguments that the class does not have."""
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **arguments)
    except TypeError as error:
        if "multiple values for keyword" not in str(error):
            raise
        if name.startswith(HUB):
            pretrained_cfg, arch, stated = load_model_config_from_hf(name.removeprefix(HUB))
            arguments = {**(stated or {}), **arguments}
        else:
            arch, tag = split_model_name_tag(name)
            pretrained_cfg = pretrained_cfg or tag or None
        network = _with(model_entrypoint(arch), arguments)(pretrained=pretrained, pretrained_cfg=pretrained_cfg)
    return network


def _with(entry: Callable[..., nn.Module], arguments: dict[str, Any]) -> Callable[..., nn.Module]:
    """timm's function for one name (`dict(patch_size=16, ..., **kwargs)`, then `_create_mixer(name, **that)`), in which the
    arguments come after its own."""

    def after(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda *given, **fixed: create(*given, **{**fixed, **arguments})

    assert isinstance(entry, FunctionType)
    makers = {key: after(found) for key, found in entry.__globals__.items() if key.startswith("_create_") and callable(found)}
    changed = FunctionType(entry.__code__, {**entry.__globals__, **makers}, entry.__name__, entry.__defaults__)
    changed.__kwdefaults__ = entry.__kwdefaults__
    return changed
