"""The report's section on effective spatial kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.core.finding import twin_name
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import name_of, percent, studied, untrained_warning
from mixer_probe.stats.claims import DRAWS, LEVEL, beyond_baseline
from mixer_probe.weights import SpatialKernels
from mixer_probe.weights.figures.kernels import average_kernels, kernel_depth, kernel_maps


def kernels_section(results: Sequence[SpatialKernels]) -> list[Section]:
    """From where positions read, by the weights alone."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    maps = [_maps_picture(r) for r in shown if r.kernels[0].matrix is not None]
    content: list[Picture | Table] = [_depth_picture(results), _average_picture(shown), *maps, _table(results)]
    sentences = tuple(kernel_sentence(r, results) for r in shown)
    warning = untrained_warning(r.model for r in results)
    return [Section("kernels", "Effective spatial kernels", sentences, tuple(content), warning)]


_DEFINITION = (
    "The effective kernel K gives the weight with which position i reads position j: W2 W1 for a Mixer's token MLP (its linear "
    "part), the token-mixing matrix of ResMLP and gMLP, attention computed from position embeddings alone for a ViT (averaged "
    "over heads, as if the input of every block still held the embedding), and the kernels themselves for convolutions. "
)


def _depth_picture(results: Sequence[SpatialKernels]) -> Picture:
    return Picture(
        kernel_depth(results),
        "Effective spatial kernels by depth: mean mixing distance, weighted by K²; translation fraction, the fraction of energy "
        "that depends on the offset alone, after subtracting the mean of K; fraction of K² on the position itself.",
        _DEFINITION
        + "A matrix that depends on the offset between two positions alone (block Toeplitz with Toeplitz blocks, BTTB) is what a "
        "convolution with zero padding can implement: its translation fraction is 1, while that of iid entries depends on the "
        "dimensions alone. Dashed lines show uniform mixing over all positions, or iid entries; dotted lines with open markers "
        "are untrained baselines.",
        "Line plots of mixing distance, translation structure and self weight of spatial kernels against relative depth",
        name="kernels-depth",
    )


def _average_picture(results: Sequence[SpatialKernels]) -> Picture:
    return Picture(
        average_kernels(results),
        "Average kernel around a position at increasing depth, all on one pixel scale: root mean square over the pairs of "
        "positions at each offset (or over the kernels of a convolution).",
        "The lines cross at the reading position; the circle marks the mean mixing distance. Large offsets have few pairs and "
        "are noisy. Kernels too small to see are enlarged in the corner.",
        "Grid of average kernels in offset space by network and depth",
        name="kernels-average",
        vector=False,
    )


def _maps_picture(result: SpatialKernels) -> Picture:
    name = name_of(result.model)
    kernel = result.kernels[0]
    return Picture(
        kernel_maps(result),
        f"Spatial mixing weights of {name}: {kernel.form}. Each small map belongs to the position at which it is drawn and "
        f"shows where that position reads on the {kernel.grid[0]}×{kernel.grid[1]} grid; first, middle and last block.",
        "Red is positive weight, blue negative; attention runs from dark (zero) to yellow. Maps that shift with their position "
        "indicate a convolution; identical maps mean that all positions read the same places.",
        f"Grids of mixing weight maps for the positions of {name}",
        name=f"kernels-{name}",
        vector=False,
    )


def _table(results: Sequence[SpatialKernels]) -> Table:
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    frame = frame.drop(columns=["block", "step_px"])
    digits = dict.fromkeys(("depth", "distance_over_uniform"), "{:.2f}")
    digits |= dict.fromkeys(("translation_fraction", "translation_iid"), "{:.3f}")
    digits |= dict.fromkeys(("distance_px", "self_mass", "norm"), "{:.3g}")
    caption = (
        "Effective kernels by layer. translation fraction: the fraction of the energy of K, less its mean, that depends on the "
        "offset alone, and its expectation for iid entries."
    )
    return Table(caption, frame, digits, folded=True)


def kernel_sentence(result: SpatialKernels, results: Sequence[SpatialKernels]) -> str:
    """How far a network reads and how much of that is a convolution, in numbers."""
    first, last = result.kernels[0], result.kernels[-1]
    text = (
        f"{name_of(result.model)}: the mean mixing distance is {first.distance_px:.1f} px in {first.block} and "
        f"{last.distance_px:.1f} px in {last.block} (uniform mixing: {first.uniform_px:.1f} px{_twin_text(result, results)})"
    )
    if first.matrix is None:
        return f"{text}. Its kernels are convolutions."
    twin = _twin_of(result, results)
    return f"{text}. {_structure_text(result, twin)}"


def _structure_text(result: SpatialKernels, twin: SpatialKernels | None) -> str:
    """The largest translation fraction, where it is beyond the largest of shuffled positions and of the untrained baseline."""
    if result.most_structured < 0:
        return "Every position reads all positions uniformly."
    best = result.kernels[result.most_structured]
    if np.isnan(result.p_value) or result.draws < DRAWS:
        return f"Translation structure is not tested: the null requires {DRAWS} draws."
    if result.p_value > LEVEL:
        return (
            "In no layer does the kernel have significantly more translation structure than kernels with shuffled "
            f"positions (corrected for {len(result)} layers, p = {result.p_value:.2g})."
        )
    fractions = np.array([k.translation_fraction for k in result.kernels])
    beside = ""
    if twin is not None:
        own = np.array([k.translation_fraction for k in twin.kernels])
        if not beyond_baseline(fractions, own)[result.most_structured]:
            return "Its kernels have no more translation structure than those of its untrained baseline."
        beside = f"; untrained baseline: at most {percent(float(np.nanmax(own)))}"
    return (
        f"Translation structure is strongest in {best.block}, where {percent(best.translation_fraction)} of the energy of the "
        f"kernel depends on the offset alone (iid weights: {percent(best.translation_iid)}{beside}; p = {result.p_value:.2g} of "
        f"the largest of {len(result)} layers, {result.draws} draws)."
    )


def _twin_of(result: SpatialKernels, results: Sequence[SpatialKernels]) -> SpatialKernels | None:
    return next((r for r in results if r.model.name == twin_name(result.model)), None)


def _twin_text(result: SpatialKernels, results: Sequence[SpatialKernels]) -> str:
    twin = _twin_of(result, results)
    return f"; untrained baseline in {twin.kernels[0].block}: {twin.kernels[0].distance_px:.1f} px" if twin else ""
