"""mixer_probe: what did an MLP-Mixer learn, and how does that differ from a ViT and a CNN?

The public names, nothing else. They are imported on first use, so that `import mixer_probe` is
quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixer_probe import (
        attribution,
        channels,
        concepts,
        cost,
        images,
        invariance,
        mixing,
        models,
        probing,
        report,
        similarity,
        study,
        visualization,
        weights,
        zoo,
    )
    from mixer_probe.attribution import attribute
    from mixer_probe.capture import (
        Representations,
        ablate,
        extract,
        intervene,
        noise,
        open_run,
        patch,
        scale,
    )
    from mixer_probe.channels import (
        channel_partners,
        channel_statistics,
        class_selectivity,
        dissect,
        top_images,
    )
    from mixer_probe.core.result import load_results, save_results
    from mixer_probe.images import Images, load_concepts, load_images
    from mixer_probe.mixing import attention_distance, effective_receptive_field, spatial_mixing
    from mixer_probe.models import Layer, Model, list_models, load_model
    from mixer_probe.probing import linear_probe
    from mixer_probe.report import write_report
    from mixer_probe.similarity import cka, compare, compare_models
    from mixer_probe.visualization import visualize
    from mixer_probe.weights import (
        anatomy,
        as_convolution,
        kernel_tying,
        position_embeddings,
        spatial_kernels,
        stem_filters,
        token_mixing,
        weight_spectra,
    )

__version__ = "0.1.0"

_HOMES = {
    "mixer_probe": (
        "attribution",
        "channels",
        "concepts",
        "cost",
        "images",
        "invariance",
        "mixing",
        "models",
        "probing",
        "report",
        "similarity",
        "study",
        "visualization",
        "weights",
        "zoo",
    ),
    "mixer_probe.attribution": ("attribute",),
    "mixer_probe.capture": (
        "Representations",
        "ablate",
        "extract",
        "intervene",
        "noise",
        "open_run",
        "patch",
        "scale",
    ),
    "mixer_probe.channels": (
        "channel_partners",
        "channel_statistics",
        "class_selectivity",
        "dissect",
        "top_images",
    ),
    "mixer_probe.images": ("Images", "load_concepts", "load_images"),
    "mixer_probe.mixing": ("attention_distance", "effective_receptive_field", "spatial_mixing"),
    "mixer_probe.models": ("Layer", "Model", "list_models", "load_model"),
    "mixer_probe.probing": ("linear_probe",),
    "mixer_probe.report": ("write_report",),
    "mixer_probe.core.result": ("load_results", "save_results"),
    "mixer_probe.similarity": ("cka", "compare", "compare_models"),
    "mixer_probe.visualization": ("visualize",),
    "mixer_probe.weights": (
        "anatomy",
        "as_convolution",
        "kernel_tying",
        "position_embeddings",
        "spatial_kernels",
        "stem_filters",
        "study",
        "token_mixing",
        "weight_spectra",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Images",
    "Layer",
    "Model",
    "Representations",
    "__version__",
    "ablate",
    "anatomy",
    "as_convolution",
    "attention_distance",
    "attribute",
    "attribution",
    "channel_partners",
    "channel_statistics",
    "channels",
    "cka",
    "class_selectivity",
    "compare",
    "compare_models",
    "concepts",
    "cost",
    "dissect",
    "effective_receptive_field",
    "extract",
    "images",
    "intervene",
    "invariance",
    "kernel_tying",
    "linear_probe",
    "list_models",
    "load_concepts",
    "load_images",
    "load_model",
    "load_results",
    "mixing",
    "models",
    "noise",
    "open_run",
    "patch",
    "position_embeddings",
    "probing",
    "report",
    "save_results",
    "scale",
    "similarity",
    "spatial_kernels",
    "spatial_mixing",
    "stem_filters",
    "study",
    "token_mixing",
    "top_images",
    "visualization",
    "visualize",
    "weight_spectra",
    "weights",
    "write_report",
    "zoo",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mixer_probe' has no attribute '{name}'")
    value = (
        importlib.import_module(f"mixer_probe.{name}")
        if home == "mixer_probe"
        else getattr(importlib.import_module(home), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
