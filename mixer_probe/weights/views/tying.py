"""The report's section on kernel tying."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.core.finding import twin_name
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, name_of, studied, untrained_warning
from mixer_probe.stats.claims import LEVEL, beyond_baseline
from mixer_probe.weights import KernelTying
from mixer_probe.weights.figures.tying import kernel_dictionary, kernel_energy, kernel_tying_depth


def tying_section(results: Sequence[KernelTying]) -> list[Section]:
    """How many spatial kernels the channels of a layer share."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    pictures = [picture for r in shown if not _by_construction(r) for picture in (_energy_picture(r), _dictionary_picture(r))]
    sentences = tuple(tying_sentence(r, results) for r in shown)
    warning = untrained_warning(r.model for r in results)
    content: list[Picture | Table] = [_depth_picture(results), *pictures, _table(results)]
    return [Section("tying", "Kernel sharing across channels", sentences, tuple(content), warning)]


def _by_construction(result: KernelTying) -> bool:
    return all(entry.source == "construction" for entry in result.layers)


def _depth_picture(results: Sequence[KernelTying]) -> Picture:
    measured = next((r.images for r in results if r.images), None)
    where = f" Kernels of Mixer and ViT are mean Jacobians over {images_text(measured)}." if measured else ""
    return Picture(
        kernel_tying_depth(results),
        f"Number of shared kernels that explain 90 % of the energy of all channels' kernels, by depth.{where}",
        "A Mixer ties its token-mixing kernels across channels; untying them gave no gain in the MLP-Mixer paper (A.1), which "
        "does not say why. Where few kernels explain almost all energy, untied channels would have little to gain. Left: the "
        "count (principal components without centring). Middle: the count relative to the maximum for untied channels. Right: "
        "the count divided by that of kernels with the same spectra and random phases (band: 5 to 95 % of draws), both in "
        "offset space; only values below 1 mean that channels share shape rather than smoothness. Channels of a Mixer differ in "
        "how active each hidden unit is, channels of a ViT in how they weight the heads (at most one kernel per head). A low "
        "count therefore follows in part from the architecture; the untrained baseline (dotted) shows how much.",
        "Line plots of the number of shared kernels against relative depth",
        name="tying-depth",
    )


def _energy_picture(result: KernelTying) -> Picture:
    return Picture(
        kernel_energy(result),
        f"{name_of(result.model)}: energy explained by the leading shared kernels in the first, middle and last layer.",
        "The further the curve is above the grey band, the more shape the channels share beyond their spectra. Dotted lines "
        "mark 50, 90 and 99 %. For effective kernels, the dashed curve is the part in offset space, for which the band is drawn.",
        f"Cumulative energy of shared kernels of {name_of(result.model)} with its null",
        name=f"tying-energy-{name_of(result.model)}",
    )


def _dictionary_picture(result: KernelTying) -> Picture:
    return Picture(
        kernel_dictionary(result),
        f"Shared kernels of the channels of {name_of(result.model)}, strongest first, with the fraction of energy that each "
        "explains.",
        "Each channel's kernel is a weighted sum of these. Zero is white, and signs are arbitrary. Effective kernels are drawn "
        "by the offset at which they read, with zero in the middle and the full grid on either side.",
        f"Grid of shared kernels of {name_of(result.model)}",
        name=f"tying-kernels-{name_of(result.model)}",
        vector=False,
    )


def _table(results: Sequence[KernelTying]) -> Table:
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    columns = ["model", "layer", "depth", "channels", "kernel", "possible", "count_50", "count_90", "count_99", "effective_rank"]
    columns += ["first_share", "unit_count_90", "offset_count_90", "null_count_90", "null_count_90_low", "null_count_90_high"]
    formats = {"depth": "{:.2f}", "effective_rank": "{:.1f}", "first_share": "{:.3f}", "null_count_90": "{:.1f}"}
    counts = [c for c in columns if "count" in c and c not in formats]
    caption = (
        "Shared kernels by layer: number that explain 50, 90 and 99 % of the energy; with all channels scaled to norm 1 (unit), "
        "in offset space, and for the null in offset space (mean and 5 to 95 % of draws)."
    )
    return Table(caption, frame[columns], formats | dict.fromkeys(counts, "{:.0f}"), folded=True)


def tying_sentence(result: KernelTying, results: Sequence[KernelTying]) -> str:
    """The answer for one network: counts for 90 and 99 %, the null, the untrained baseline."""
    name = name_of(result.model)
    twin = next((r for r in results if r.model.name == twin_name(result.model)), None)
    if _by_construction(result):
        return f"{name}: one kernel for all channels by construction, up to a scale factor per channel."
    where = f", measured on {result.n} images" if result.n else ""
    return (
        f"{name}: 90 % of the energy of a layer's kernels is explained by {_range(result.counts(0.9))} and 99 % by "
        f"{_range(result.counts(0.99))}, of at most {_untied(result)} without sharing{where}; with all channels scaled to norm "
        f"1, 90 % is explained by {_range(result.counts(0.9, normalise=True))}.{_null_text(result, twin)}{_twin_text(twin)}"
    )


def _range(counts: np.ndarray, noun: str = "shared kernel") -> str:
    known = counts[np.isfinite(counts)]
    if not len(known):
        return f"no {noun}s"
    low, high = (f"{value:.0f}" for value in (known.min(), known.max()))
    return f"{low} {noun}{'' if low == '1' else 's'}" if low == high else f"{low} to {high} {noun}s"


def _untied(result: KernelTying) -> str:
    most = [min(entry.channels, entry.shape[0] * entry.shape[1]) for entry in result.layers]
    low, high = min(most), max(most)
    return str(low) if low == high else f"{low} to {high}"


def _null_text(result: KernelTying, twin: KernelTying | None) -> str:
    """In how many layers channels share shapes beyond their spectra, and of these beyond the untrained baseline."""
    p = np.array([entry.p_value for entry in result.layers])
    known = np.isfinite(p)
    if not known.any():
        return ""
    tests = int(known.sum())
    beyond = known & (p * tests <= LEVEL)
    counts = np.array([entry.raw.offset_count(0.9) for entry in result.layers])
    nulls = np.round([entry.raw.null_count(0.9)[0] for entry in result.layers])
    drawn = (
        f", and kernels with the same spectra and random phases require {_range(nulls, 'kernel')}"
        if np.isfinite(nulls).any()
        else ""
    )
    head = f" In offset space, 90 % requires {_range(counts, 'kernel')}{drawn}"
    if not beyond.any():
        return f"{head}: in no layer do channels share shape beyond their spectra (corrected for {tests} layers)."
    if twin is None:
        # Without the baseline nothing says how much of it the architecture gives.
        end = f"in {int(beyond.sum())} of {tests} layers fewer than expected from their spectra (corrected for {tests} layers)"
        return f"{head}: {end}; without an untrained baseline, the contribution of the architecture is unknown."
    own, other = (np.log([entry.sharing for entry in r.layers]) for r in (result, twin))
    learned = beyond & beyond_baseline(own, other)
    if not learned.any():
        return f"{head}; channels share no more shape than in the untrained baseline."
    return (
        f"{head}: in {int(learned.sum())} of {tests} layers channels share shape beyond their spectra and beyond the untrained "
        f"baseline (corrected for {tests} layers)."
    )


def _twin_text(twin: KernelTying | None) -> str:
    return (
        f" Its untrained baseline requires {_range(twin.counts(0.9))} for 90 % and {_range(twin.counts(0.99))} for 99 %."
        if twin
        else ""
    )
