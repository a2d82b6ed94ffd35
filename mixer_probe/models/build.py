"""Networks by timm's names, in any size, and from folders as timm's `save_for_hf` writes them.

Arguments win over those that timm fixes for a name. Folders are read here and not by timm, so that
any version of timm will do and weights that do not fit get a sentence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import timm
from timm.models import (
    PretrainedCfg,
    load_model_config_from_hf,
    model_entrypoint,
    split_model_name_tag,
)
from torch import nn

from mixer_probe.core.errors import CheckpointError, ModelError, closest
from mixer_probe.models.checkpoint import read_checkpoint
from mixer_probe.models.weights import load_into

HUB = "hf-hub:"
# Files of weights in order of preference; safetensors first, since nothing in it can be code.
_WEIGHT_FILES = (
    "model.safetensors",
    "*.safetensors",
    "pytorch_model.bin",
    "model.pth",
    "*.pth",
    "*.bin",
    "*.npz",
)


def build(
    name: str, pretrained: bool = False, pretrained_cfg: Any = None, **arguments: Any
) -> nn.Module:
    """`timm.create_model`, which also takes what timm's function of that name sets itself (of its
    Mixers patch_size, num_blocks and embed_dim), so that one name stands for networks of every
    size.

    Raises what timm raises: TypeError for arguments that the class does not have."""
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **arguments
        )
    except TypeError as error:
        if "multiple values for keyword" not in str(error):
            raise
        if name.startswith(HUB):
            pretrained_cfg, arch, stated = load_model_config_from_hf(name.removeprefix(HUB))
            arguments = {**(stated or {}), **arguments}
        else:
            arch, tag = split_model_name_tag(name)
            pretrained_cfg = pretrained_cfg or tag or None
        network = _with(model_entrypoint(arch), arguments)(
            pretrained=pretrained, pretrained_cfg=pretrained_cfg
        )
    return network


def _with(entry: Callable[..., nn.Module], arguments: dict[str, Any]) -> Callable[..., nn.Module]:
    """timm's function for one name (`dict(patch_size=16, ..., **kwargs)`, then `_create_mixer(name,
    **that)`), in which the arguments come after its own."""

    def after(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda *given, **fixed: create(*given, **{**fixed, **arguments})

    assert isinstance(entry, FunctionType)
    makers = {
        key: after(found)
        for key, found in entry.__globals__.items()
        if key.startswith("_create_") and callable(found)
    }
    changed = FunctionType(
        entry.__code__, {**entry.__globals__, **makers}, entry.__name__, entry.__defaults__
    )
    changed.__kwdefaults__ = entry.__kwdefaults__
    return changed


def build_from_folder(folder: Path, pretrained: bool, **arguments: Any) -> tuple[nn.Module, str]:
    """The network of config.json, with the folder's weights if `pretrained`, and a note on these.
    `arguments` win over those of the config (`model_args`), and both over timm's own.

    Raises ModelError for a config that is missing, no JSON or of an unknown architecture,
    CheckpointError for weights that are missing or do not fit."""
    config = read_config(folder)
    # timm's description of weights. Old files have it at the top; the number of classes there is
    # that of the weights.
    described = {**config.get("pretrained_cfg", config)}
    if "num_classes" in config:
        described["num_classes"] = config["num_classes"]
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    description = {key: value for key, value in described.items() if key in known}
    built_with = {**config.get("model_args", {}), **arguments}
    network = build(config["architecture"], pretrained_cfg=description, **built_with)
    if not pretrained:
        return network, ""
    weights = next(
        (file for pattern in _WEIGHT_FILES for file in sorted(folder.glob(pattern))), None
    )
    if weights is None:
        raise CheckpointError(f"no weights in {folder}; put them there as model.safetensors")
    return network, load_into(network, read_checkpoint(weights), str(weights))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the folder. Raises ModelError if there is none, or none that names a timm
    architecture."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"no config.json in {folder}; local-dir: takes a folder as timm's save_for_hf writes it"
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        name = str(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} does not name an 'architecture' of timm, as timm's save_for_hf writes it"
        ) from error
    if not timm.is_model(name):
        raise ModelError(
            f"no model '{name}' in timm {timm.__version__}; {closest(name, timm.list_models())}"
        )
    return config
