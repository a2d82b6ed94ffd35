"""Which timm models can be loaded here: names, families and pretrained tags, without building
any."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from dataclasses import dataclass

import timm
from timm.models import list_pretrained, split_model_name_tag

from mixer_probe import zoo
from mixer_probe.core.errors import ModelError, closest
from mixer_probe.models.layer import Family
from mixer_probe.models.load import google_note

# The files of timm whose networks are made of the blocks that the adapters know.
_FAMILIES: dict[str, Family] = {
    "mlp_mixer": "mixer",
    "vision_transformer": "vit",
    "vision_transformer_hybrid": "vit",
    "deit": "vit",
    "beit": "vit",
    "eva": "vit",
    "swin_transformer": "vit",
    "swin_transformer_v2": "vit",
    "resnet": "cnn",
    "resnetv2": "cnn",
    "regnet": "cnn",
    "efficientnet": "cnn",
    "mobilenetv3": "cnn",
    "convnext": "cnn",
    "convmixer": "cnn",
}
_ZOO_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("mixer", "resmlp", "gmlp", "gmixer"), "mixer"),
    "vit": "vit",
    **dict.fromkeys(("resnet", "convmixer"), "cnn"),
}


@dataclass(frozen=True)
class CatalogueEntry:
    """One loadable architecture; `notes` maps a tag to what its weights really are where the name
    misleads."""

    name: str
    family: Family
    tags: tuple[str, ...]
    notes: tuple[tuple[str, str], ...] = ()


def list_models(pattern: str = "*") -> tuple[CatalogueEntry, ...]:
    """The zoo and timm's architectures of the three families whose name matches `pattern` (shell
    wildcards; without any, a part of the name). Raises ModelError with close names if there is
    none."""
    wild = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    entries = [
        CatalogueEntry(name, _ZOO_FAMILIES[network.partition("-")[0]], ("bundled", "untrained"))
        for network in zoo.names()
        if fnmatch.fnmatchcase(name := f"zoo:{network}", wild)
    ]
    tags = defaultdict[str, list[str]](list)
    for full in list_pretrained():
        arch, tag = split_model_name_tag(full)
        tags[arch].append(tag)
    for module, family in _FAMILIES.items():
        for name in timm.list_models(wild, module=module):
            notes = tuple(
                (tag, note) for tag in tags[name] if (note := google_note(f"{name}.{tag}"))
            )
            entries.append(CatalogueEntry(name, family, tuple(tags[name]), notes))
    if not entries:
        names = [name for module in _FAMILIES for name in timm.list_models(module=module)]
        raise ModelError(
            f"no model of a known family matches '{pattern}'; {closest(pattern.strip('*'), names)}"
        )
    return tuple(entries)
