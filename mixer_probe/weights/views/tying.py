"""The report's section on kernel tying."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mixer_probe.core.finding import span
from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import (
    images_text,
    name_of,
    primary,
    untrained_baseline,
    untrained_warning,
)
from mixer_probe.weights import KernelTying
from mixer_probe.weights.figures.tying import kernel_dictionary, kernel_energy, kernel_tying_depth
from mixer_probe.weights.tying import shared_shape_layers


def tying_section(results: Sequence[KernelTying]) -> list[Section]:
    """How many spatial kernels the channels of a layer share."""
    shown = primary(results)
    measured = next((r.images for r in results if r.images), None)
    where = (
        f" Kernels of Mixer and ViT are mean Jacobians over {images_text(measured)}."
        if measured
        else ""
    )
    depth = Picture(
        partial(kernel_tying_depth, results),
        "Number of shared kernels that explain 90 % of the energy of all channels' kernels, by "
        f"depth.{where}",
        "A Mixer ties its token-mixing kernels across channels; untying them gave no gain in the "
        "MLP-Mixer paper (A.1), which does not say why. Where few kernels explain almost all "
        "energy, untied channels would have little to gain. Left: the count (principal components "
        "without centring). Middle: the count relative to the maximum for untied channels. Right: "
        "the count divided by that of kernels with the same spectra and random phases (band: 5 to "
        "95 % of draws), both in offset space; only values below 1 mean that channels share shape "
        "rather than smoothness. Channels of a Mixer differ in how active each hidden unit is, "
        "channels of a ViT in how they weight the heads (at most one kernel per head). A low count "
        "therefore follows in part from the architecture; the untrained baseline (dotted) shows "
        "how much.",
        "Line plots of the number of shared kernels against relative depth",
        name="tying-depth",
    )
    pictures = []
    for r in (r for r in shown if not _by_construction(r)):
        name = name_of(r.model)
        energy = Picture(
            partial(kernel_energy, r),
            f"{name}: energy explained by the leading shared kernels in the first, middle and last "
            "layer.",
            "The further the curve is above the grey band, the more shape the channels share "
            "beyond their spectra. Dotted lines mark 50, 90 and 99 %. For effective kernels, the "
            "dashed curve is the part in offset space, for which the band is drawn.",
            f"Cumulative energy of shared kernels of {name} with its null",
            name=f"tying-energy-{name}",
        )
        dictionary = Picture(
            partial(kernel_dictionary, r),
            f"Shared kernels of the channels of {name}, strongest first, with the fraction of "
            "energy that each explains.",
            "Each channel's kernel is a weighted sum of these. Zero is white, and signs are "
            "arbitrary. Effective kernels are drawn by the offset at which they read, with zero in "
            "the middle and the full grid on either side.",
            f"Grid of shared kernels of {name}",
            name=f"tying-kernels-{name}",
            vector=False,
        )
        pictures += [energy, dictionary]
    columns = [
        "model",
        "layer",
        "depth",
        "channels",
        "kernel",
        "possible",
        "count_50",
        "count_90",
        "count_99",
        "effective_rank",
    ]
    columns += [
        "first_fraction",
        "unit_count_90",
        "offset_count_90",
        "null_count_90",
        "null_count_90_low",
        "null_count_90_high",
    ]
    formats = {
        "depth": "{:.2f}",
        "effective_rank": "{:.1f}",
        "first_fraction": "{:.3f}",
        "null_count_90": "{:.1f}",
    }
    counts = [c for c in columns if "count" in c and c not in formats]
    table = Table(
        "Shared kernels by layer: number that explain 50, 90 and 99 % of the energy; with all "
        "channels scaled to norm 1 (unit), in offset space, and for the null in offset space (mean "
        "and 5 to 95 % of draws).",
        table_of(results)[columns],
        formats | dict.fromkeys(counts, "{:.0f}"),
        folded=True,
    )
    sentences = tuple(tying_sentence(r, results) for r in shown)
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "tying", "Kernel sharing across channels", sentences, (depth, *pictures, table), warning
        )
    ]


def _by_construction(result: KernelTying) -> bool:
    return all(entry.source == "construction" for entry in result.layers)


def tying_sentence(result: KernelTying, results: Sequence[KernelTying]) -> str:
    """How many kernels explain 90 and 99 % of the energy, beside the null and the untrained
    baseline."""
    name, baseline = name_of(result.model), untrained_baseline(result, results)
    if _by_construction(result):
        return (
            f"{name}: one kernel for all channels by construction, up to a scale factor per "
            "channel."
        )
    untied = [min(entry.channels, entry.shape[0] * entry.shape[1]) for entry in result.layers]
    where = f", measured on {result.n} images" if result.n else ""
    beside = ""
    if baseline:
        counts, more = baseline.counts(0.9), baseline.counts(0.99)
        beside = (
            f" Its untrained baseline requires {_range(counts)} for 90 % and {_range(more)} for 99 "
            "%."
        )
    return (
        f"{name}: 90 % of the energy of a layer's kernels is explained by "
        f"{_range(result.counts(0.9))} and 99 % by {_range(result.counts(0.99))}, of at most "
        f"{span(untied, 0)} without sharing{where}; with all channels scaled to norm 1, 90 % is "
        "explained by "
        f"{_range(result.counts(0.9, normalise=True))}.{sharing_text(result, baseline)}{beside}"
    )


def _range(counts: np.ndarray, noun: str = "shared kernel") -> str:
    """ "3 to 5 shared kernels"."""
    known = counts[np.isfinite(counts)]
    if not len(known):
        return f"no {noun}s"
    text = span(known.tolist(), 0)
    return f"{text} {noun}{'' if text == '1' else 's'}"


def sharing_text(result: KernelTying, baseline: KernelTying | None) -> str:
    """In how many layers channels share shapes beyond their spectra, and of these beyond the
    untrained baseline."""
    layers = shared_shape_layers(result, baseline)
    if not layers.tests:
        return ""
    counts = np.array([entry.raw.offset_count(0.9) for entry in result.layers])
    nulls = np.round([entry.raw.null_count(0.9)[0] for entry in result.layers])
    drawn = (
        f", and kernels with the same spectra and random phases require {_range(nulls, 'kernel')}"
    )
    head = (
        " In offset space, 90 % requires "
        f"{_range(counts, 'kernel')}{drawn if np.isfinite(nulls).any() else ''}"
    )
    corrected = f"(corrected for {layers.tests} layers)"
    if not layers.beyond:
        return f"{head}: in no layer do channels share shape beyond their spectra {corrected}."
    if layers.learned is None:
        return (
            f"{head}: in {layers.beyond} of {layers.tests} layers fewer than expected from their "
            f"spectra {corrected}; without an untrained baseline, the contribution of the "
            "architecture is unknown."
        )
    if not layers.learned:
        return f"{head}; channels share no more shape than in the untrained baseline."
    return (
        f"{head}: in {layers.learned} of {layers.tests} layers channels share shape beyond their "
        f"spectra and beyond the untrained baseline {corrected}."
    )
