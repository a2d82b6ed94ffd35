"""Concepts: sparse dictionaries of what networks represent, and what several of them share."""

from mixer_probe.concepts.atoms import ConceptAtoms, concept_atoms
from mixer_probe.concepts.dictionary import Dictionary, DictionaryRecipe, fit_dictionary
from mixer_probe.concepts.grid_activations import GridActivations, common_grid, layer_at
from mixer_probe.concepts.sharing import ConceptSharing, concept_sharing

__all__ = [
    "ConceptAtoms",
    "ConceptSharing",
    "Dictionary",
    "DictionaryRecipe",
    "GridActivations",
    "common_grid",
    "concept_atoms",
    "concept_sharing",
    "fit_dictionary",
    "layer_at",
]
