"""What a network is here: load it, know its family, its layers in execution order, and what their axes mean."""

from mixer_probe.models.catalogue import CatalogueEntry, list_models
from mixer_probe.models.layer import Axes, Family, Kind, Layer
from mixer_probe.models.load import load_model
from mixer_probe.models.model import InputSpec, Model, Weights

__all__ = [
    "Axes",
    "CatalogueEntry",
    "Family",
    "InputSpec",
    "Kind",
    "Layer",
    "Model",
    "Weights",
    "list_models",
    "load_model",
]
