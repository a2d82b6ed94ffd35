"""Concepts: sparse dictionaries of what networks represent, what several of them share, and whether
the features of one serve another."""

from mixer_probe.concepts.atoms import ConceptAtoms, concept_atoms
from mixer_probe.concepts.concept_study import shared_concepts
from mixer_probe.concepts.dictionary import Dictionary, DictionaryRecipe, fit_dictionary
from mixer_probe.concepts.grid_activations import GridActivations, common_grid, layer_at
from mixer_probe.concepts.matches import ConceptMatches, match_concepts, nmf_activity
from mixer_probe.concepts.sharing import ConceptSharing, concept_sharing
from mixer_probe.concepts.stitching import Stitching, asymmetry, stitch

__all__ = [
    "ConceptAtoms",
    "ConceptMatches",
    "ConceptSharing",
    "Dictionary",
    "DictionaryRecipe",
    "GridActivations",
    "Stitching",
    "asymmetry",
    "common_grid",
    "concept_atoms",
    "concept_sharing",
    "fit_dictionary",
    "layer_at",
    "match_concepts",
    "nmf_activity",
    "shared_concepts",
    "stitch",
]
