"""The analyses of weights, and how their results are shown."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from mixer_probe.capture import Inputs, Reading
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import ModelError
from mixer_probe.core.result import Result
from mixer_probe.images import Images
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
from mixer_probe.weights.channel_kernels import KernelSums, needs_images
from mixer_probe.weights.views.anatomy import anatomy_section
from mixer_probe.weights.views.equivalence import equivalence_section
from mixer_probe.weights.views.kernels import kernels_section
from mixer_probe.weights.views.paper import paper_section
from mixer_probe.weights.views.spectra import spectra_section
from mixer_probe.weights.views.stem import position_section, stem_section
from mixer_probe.weights.views.tying import tying_section
from mixer_probe.weights.views.units import token_mixing_section

# The mean Jacobians of the channels settle with few images, since every position counts.
KERNEL_IMAGES = 64
_SUMS = "sums of kernels"


def _sample(i: Inputs) -> Images | None:
    """The images that kernels of Mixers and ViTs are measured on; a command may ask for another
    number of them, or all (None)."""
    return i.sample(i.shared.get("kernel_images", KERNEL_IMAGES)) if i.has_images else None


def tying(i: Inputs) -> list[Result]:
    """How many kernels the channels of a layer share; without images only those of networks whose
    weights tell."""
    images = _sample(i)
    sums = None if images is None else i.passed(_SUMS, KernelSums, len(images))
    return [kernel_tying(i.model, images, sums=sums)]


def _read_tying(i: Inputs) -> list[Reading]:
    """What `tying` is computed from, where weights do not tell."""
    with suppress(ModelError):
        if needs_images(i.model):
            reading = i.keep(_SUMS, KernelSums).reading(i.model)
            return [replace(reading, rows=i.rows(i.shared.get("kernel_images", KERNEL_IMAGES)))]
    return []


ROOM = Room(
    "weights",
    "analysis of weights",
    ModelError,
    (
        Analysis(
            "anatomy",
            "anatomy",
            "Which modules mix positions and which channels, and with how many parameters and "
            "operations?",
            (Anatomy,),
            lambda i: [anatomy(i.model)],
            needs="weights",
        ),
        Analysis(
            "units",
            "token-mixing units",
            "Which spatial patterns do the hidden units of token mixing read and write?",
            (TokenMixing,),
            lambda i: [token_mixing(i.model)],
            needs="weights",
            families=("mixer",),
            baseline=True,
        ),
        Analysis(
            "kernels",
            "spatial kernels",
            "From how far does each position read, and does the pattern move with the position?",
            (SpatialKernels,),
            lambda i: [spatial_kernels(i.model)],
            needs="weights",
            baseline=True,
        ),
        Analysis(
            "tying",
            "kernel tying",
            "How many spatial kernels do the channels of a layer share?",
            (KernelTying,),
            tying,
            needs="images",
            baseline=True,
            reads=_read_tying,
            decided_by=lambda i: {"images": _sample(i)},
        ),
        Analysis(
            "stem",
            "stem filters",
            "Which patterns do the first filters detect?",
            (StemFilters,),
            lambda i: [stem_filters(i.model)],
            needs="weights",
        ),
        Analysis(
            "positions",
            "position embeddings",
            "Are embeddings of neighbouring positions similar?",
            (PositionEmbeddings,),
            lambda i: [position_embeddings(i.model)],
            needs="weights",
            families=("vit",),
        ),
        Analysis(
            "spectra",
            "spectra",
            "How many directions dominate the matrices that mix positions and channels?",
            (WeightSpectra,),
            lambda i: [weight_spectra(i.model)],
            needs="weights",
            baseline=True,
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
