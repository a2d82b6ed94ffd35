"""`local-dir:`: a network from a folder with config.json and a weights file, as timm's `save_for_hf` writes it.

Read here and not by timm, so that any timm will do and weights that do not fit get a sentence.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import nn

from mixer_probe.core.errors import CheckpointError, ModelError, closest
from mixer_probe.models.build import build
from mixer_probe.models.checkpoint import read_checkpoint
from mixer_probe.models.weights import load_into

# In order of preference; safetensors first, since nothing in it can be code.
_WEIGHTS = ("model.safetensors", "*.safetensors", "pytorch_model.bin", "model.pth", "*.pth", "*.bin", "*.npz")


def build_from_folder(folder: Path, pretrained: bool, **arguments: Any) -> tuple[nn.Module, str]:
    """The network of config.json, with the folder's weights if `pretrained`, and a note on these. `arguments` win over those of
    the config (`model_args`), and both over timm's own.

    Raises ModelError for a config that is missing, no JSON or of an unknown architecture, CheckpointError for weights
    that are missing or do not fit."""
    config = read_config(folder)
    built_with = {**config.get("model_args", {}), **arguments}
    network = build(config["architecture"], pretrained_cfg=_about(config), **built_with)
    weights = _weights_file(folder) if pretrained else None
    return network, "" if weights is None else load_into(network, read_checkpoint(weights), str(weights))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the folder. Raises ModelError if there is none, or none that names a timm architecture."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"no config.json in {folder}; local-dir: takes a folder as timm's save_for_hf writes it")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        name = str(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} does not name an 'architecture' of timm, as timm's save_for_hf writes it") from error
    if not timm.is_model(name):
        raise ModelError(f"no model '{name}' in timm {timm.__version__}; {closest(name, timm.list_models())}")
    return config


def _about(config: dict[str, Any]) -> dict[str, Any]:
    """timm's description of weights. Old files have it at the top; the number of classes there is that of the weights."""
    described = {**config.get("pretrained_cfg", config)}
    if "num_classes" in config:
        described["num_classes"] = config["num_classes"]
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    return {key: value for key, value in described.items() if key in known}


def _weights_file(folder: Path) -> Path:
    found = next((file for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))), None)
    if found is None:
        raise CheckpointError(f"no weights in {folder}; put them there as model.safetensors")
    return found
