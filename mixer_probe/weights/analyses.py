"""The analyses of weights, and how their results are shown. `run` takes a model and images, which only `tying` looks at."""

from __future__ import annotations

from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import ModelError
from mixer_probe.weights import (
    Anatomy,
    ConvolutionEquivalence,
    KernelTying,
    PaperFigures,
    PositionEmbeddings,
    SpatialKernels,
    StemFilters,
    TokenMixing,
    WeightSpectra,
    anatomy,
    kernel_tying,
    position_embeddings,
    spatial_kernels,
    stem_filters,
    token_mixing,
    weight_spectra,
)
from mixer_probe.weights.views.anatomy import anatomy_section
from mixer_probe.weights.views.equivalence import equivalence_section
from mixer_probe.weights.views.kernels import kernels_section
from mixer_probe.weights.views.paper import paper_section
from mixer_probe.weights.views.spectra import spectra_section
from mixer_probe.weights.views.stem import position_section, stem_section
from mixer_probe.weights.views.tying import tying_section
from mixer_probe.weights.views.units import token_mixing_section

ROOM = Room(
    "weights",
    "analysis of weights",
    ModelError,
    (
        Analysis(
            "anatomy",
            "anatomy",
            "Which modules mix positions and which channels, and with how many parameters and operations?",
            (Anatomy,),
            lambda model, _: anatomy(model),
            needs="weights",
            baseline=False,
        ),
        Analysis(
            "units",
            "token-mixing units",
            "Which spatial patterns do the hidden units of token mixing read and write?",
            (TokenMixing,),
            lambda model, _: token_mixing(model),
            needs="weights",
            families=("mixer",),
        ),
        Analysis(
            "kernels",
            "spatial kernels",
            "From how far does each position read, and does the pattern move with the position?",
            (SpatialKernels,),
            lambda model, _: spatial_kernels(model),
            needs="weights",
        ),
        Analysis(
            "tying",
            "kernel tying",
            "How many spatial kernels do the channels of a layer share?",
            (KernelTying,),
            kernel_tying,
            needs="images",
        ),
        Analysis(
            "stem",
            "stem filters",
            "Which patterns do the first filters detect?",
            (StemFilters,),
            lambda model, _: stem_filters(model),
            needs="weights",
            baseline=False,
        ),
        Analysis(
            "positions",
            "position embeddings",
            "Are embeddings of neighbouring positions similar?",
            (PositionEmbeddings,),
            lambda model, _: position_embeddings(model),
            needs="weights",
            families=("vit",),
            baseline=False,
        ),
        Analysis(
            "spectra",
            "spectra",
            "How many directions dominate the matrices that mix positions and channels?",
            (WeightSpectra,),
            lambda model, _: weight_spectra(model),
            needs="weights",
        ),
    ),
    (
        View(Anatomy, anatomy_section),
        View(TokenMixing, token_mixing_section),
        View(SpatialKernels, kernels_section),
        View(KernelTying, tying_section),
        View(StemFilters, stem_section),
        View(PositionEmbeddings, position_section),
        View(WeightSpectra, spectra_section),
        View(PaperFigures, paper_section),
        View(ConvolutionEquivalence, equivalence_section),
    ),
)
