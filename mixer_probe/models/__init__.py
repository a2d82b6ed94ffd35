"""What a network is here: load it, know its family, its layers in execution order, and what their
axes mean."""

from mixer_probe.core.inputs import InputSpec
from mixer_probe.models.card import ModelCard, describe
from mixer_probe.models.catalogue import CatalogueEntry, list_models
from mixer_probe.models.layer import Axes, Family, Kind, Layer
from mixer_probe.models.load import check_name, load_model
from mixer_probe.models.model import Model, Weights

__all__ = [
    "Axes",
    "CatalogueEntry",
    "Family",
    "InputSpec",
    "Kind",
    "Layer",
    "Model",
    "ModelCard",
    "Weights",
    "check_name",
    "describe",
    "list_models",
    "load_model",
]
