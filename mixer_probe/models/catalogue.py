"""Which timm models can be loaded here: names, families and pretrained tags, without building any."""

from __future__ import annotations

import fnmatch
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


@dataclass(frozen=True)
class CatalogueEntry:
    """One loadable architecture; `notes` maps a tag to what its weights really are where the name misleads."""

    name: str
    family: Family
    tags: tuple[str, ...]
    notes: tuple[tuple[str, str], ...] = ()


def list_models(pattern: str = "*") -> tuple[CatalogueEntry, ...]:
    """The zoo and timm's architectures of the three families whose name matches `pattern` (shell wildcards; without any,
    a part of the name). Raises ModelError with close names if there is none."""
    wild = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    entries = [*_zoo_entries(wild), *_timm_entries(wild)]
    if not entries:
        names = [name for module in _FAMILIES for name in timm.list_models(module=module)]
        raise ModelError(f"no model of a known family matches '{pattern}'; {closest(pattern.strip('*'), names)}")
    return tuple(entries)


def _zoo_entries(pattern: str) -> list[CatalogueEntry]:
    names = [f"zoo:{name}" for name in zoo.names()]
    return [CatalogueEntry(n, _zoo_family(n), ("bundled", "untrained")) for n in names if fnmatch.fnmatchcase(n, pattern)]


def _zoo_family(name: str) -> Family:
    kind = name.removeprefix("zoo:").partition("-")[0]
    families: dict[str, Family] = {"mixer": "mixer", "vit": "vit", "resnet": "cnn"}
    return families[kind]


def _timm_entries(pattern: str) -> list[CatalogueEntry]:
    tags: dict[str, list[str]] = {}
    for full in list_pretrained():
        arch, tag = split_model_name_tag(full)
        tags.setdefault(arch, []).append(tag)
    return [
        _timm_entry(name, family, tags.get(name, []))
        for module, family in _FAMILIES.items()
        for name in timm.list_models(pattern, module=module)
    ]


def _timm_entry(name: str, family: Family, tags: list[str]) -> CatalogueEntry:
    notes = tuple((tag, note) for tag in tags if (note := google_note(f"{name}.{tag}")))
    return CatalogueEntry(name, family, tuple(tags), notes)
