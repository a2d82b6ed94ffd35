"""The report's section on effective spatial kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import name_of, percent, primary, untrained_baseline, untrained_warning
from mixer_probe.stats.claims import DRAWS, LEVEL, beyond_baseline
from mixer_probe.weights import SpatialKernels
from mixer_probe.weights.figures.kernels import average_kernels, kernel_depth, kernel_maps

_DEFINITION = (
    "The effective kernel K gives the weight with which position i reads position j: W2 W1 for a "
    "Mixer's token MLP (its linear part), the token-mixing matrix of ResMLP and gMLP, attention "
    "computed from position embeddings alone for a ViT (averaged over heads, as if the input of "
    "every block still held the embedding), and the kernels themselves for convolutions. "
)


def kernels_section(results: Sequence[SpatialKernels]) -> list[Section]:
    """Mean mixing distance and translation structure of spatial kernels, from the weights alone."""
    shown = primary(results)
    depth = Picture(
        partial(kernel_depth, results),
        "Effective spatial kernels by depth: mean mixing distance, weighted by K²; translation "
        "fraction, the fraction of energy that depends on the offset alone, after subtracting the "
        "mean of K; fraction of K² on the position itself.",
        _DEFINITION
        + (
            "A matrix that depends on the offset between two positions alone (block Toeplitz with "
            "Toeplitz blocks, BTTB) is what a convolution with zero padding can implement: its "
            "translation fraction is 1, while that of iid entries depends on the dimensions alone. "
            "Dashed lines show uniform mixing over all positions, or iid entries; dotted lines "
            "with open markers are untrained baselines."
        ),
        "Line plots of mixing distance, translation structure and self weight of spatial kernels "
        "against relative depth",
        name="kernels-depth",
    )
    average = Picture(
        partial(average_kernels, shown),
        "Average kernel around a position at increasing depth, all on one pixel scale: root mean "
        "square over the pairs of positions at each offset (or over the kernels of a convolution).",
        "The lines cross at the reading position; the circle marks the mean mixing distance. Large "
        "offsets have few pairs and are noisy. Kernels too small to see are enlarged in the "
        "corner.",
        "Grid of average kernels in offset space by network and depth",
        name="kernels-average",
        vector=False,
    )
    maps = []
    for r in (r for r in shown if r.kernels[0].matrix is not None):
        name, kernel = name_of(r.model), r.kernels[0]
        maps.append(
            Picture(
                partial(kernel_maps, r),
                f"Spatial mixing weights of {name}: {kernel.form}. Each small map belongs to the "
                "position at which it is drawn and shows where that position reads on the "
                f"{kernel.grid[0]}×{kernel.grid[1]} grid; first, middle and last block.",
                "Red is positive weight, blue negative; attention runs from dark (zero) to yellow. "
                "Maps that shift with their position indicate a convolution; identical maps mean "
                "that all positions read the same places.",
                f"Grids of mixing weight maps for the positions of {name}",
                name=f"kernels-{name}",
                vector=False,
            )
        )
    digits = dict.fromkeys(("depth", "distance_over_uniform"), "{:.2f}")
    digits |= dict.fromkeys(("translation_fraction", "translation_iid"), "{:.3f}")
    digits |= dict.fromkeys(("distance_px", "self_mass", "norm"), "{:.3g}")
    table = Table(
        "Effective kernels by layer. translation fraction: the fraction of the energy of K, less "
        "its mean, that depends on the offset alone, and its expectation for iid entries.",
        table_of(results).drop(columns=["block", "step_px"]),
        digits,
        folded=True,
    )
    sentences = tuple(kernel_sentence(r, results) for r in shown)
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "kernels",
            "Effective spatial kernels",
            sentences,
            (depth, average, *maps, table),
            warning,
        )
    ]


def kernel_sentence(result: SpatialKernels, results: Sequence[SpatialKernels]) -> str:
    """The mean mixing distance of a network in its first and last layer, and its translation
    structure."""
    first, last = result.kernels[0], result.kernels[-1]
    baseline = untrained_baseline(result, results)
    beside = ""
    if baseline is not None:
        untrained = baseline.kernels[0]
        beside = f"; untrained baseline in {untrained.block}: {untrained.distance_px:.1f} px"
    text = (
        f"{name_of(result.model)}: the mean mixing distance is {first.distance_px:.1f} px in "
        f"{first.block} and {last.distance_px:.1f} px in {last.block} (uniform mixing: "
        f"{first.uniform_px:.1f} px{beside})"
    )
    if first.matrix is None:
        return f"{text}. Its kernels are convolutions."
    return f"{text}. {structure_sentence(result, baseline)}"


def structure_sentence(result: SpatialKernels, baseline: SpatialKernels | None) -> str:
    """The largest translation fraction, where it is beyond the largest of shuffled positions and of
    the untrained baseline."""
    if result.most_structured < 0:
        return "Every position reads all positions uniformly."
    best = result.kernels[result.most_structured]
    if np.isnan(result.p_value) or result.draws < DRAWS:
        return f"Translation structure is not tested: the null requires {DRAWS} draws."
    if result.p_value > LEVEL:
        return (
            "In no layer does the kernel have significantly more translation structure than "
            f"kernels with shuffled positions (corrected for {len(result)} layers, p = "
            f"{result.p_value:.2g})."
        )
    fractions = np.array([k.translation_fraction for k in result.kernels])
    beside = ""
    if baseline is not None:
        untrained = np.array([k.translation_fraction for k in baseline.kernels])
        if not beyond_baseline(fractions, untrained)[result.most_structured]:
            return (
                "Its kernels have no more translation structure than those of its untrained "
                "baseline."
            )
        beside = f"; untrained baseline: at most {percent(float(np.nanmax(untrained)))}"
    return (
        f"Translation structure is strongest in {best.block}, where "
        f"{percent(best.translation_fraction)} of the energy of the kernel depends on the offset "
        f"alone (iid weights: {percent(best.translation_iid)}{beside}; p = {result.p_value:.2g} of "
        f"the largest of {len(result)} layers, {result.draws} draws)."
    )
