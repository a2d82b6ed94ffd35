"""Sentences on cost: of one network, Table 1 of the Mixer paper, growth with resolution, and
accuracy against cost."""

from __future__ import annotations

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.words import join, name_of, percent
from mixer_probe.cost import AccuracyCost, CostGrowth, MixerScales, ModelCost
from mixer_probe.stats.claims import leader


def cost_sentence(r: ModelCost) -> str:
    """Parameters, multiply-accumulates with their parts, activation memory and throughput of one
    network."""
    macs = r.macs
    # What mixes positions may mix channels as well, as a 3×3 convolution does.
    parts = (
        (macs.spatial, "modules that mix positions"),
        (macs.channel, "modules that mix channels only"),
        (macs.rest, "shortcuts and other modules"),
    )
    in_blocks = [f"{percent(count / macs.total)} in {what}" for count, what in parts if count]
    text = (
        f"{name_of(r.model)}: {r.model.parameters:,} parameters and {_large(macs.total)} "
        "multiply-accumulates per image "
        f"({join(in_blocks) if in_blocks else 'none of them in blocks'}); "
        f"{r.bytes_per_image / 2**20:.2f} MiB of peak activations per image (batch of "
        f"{r.batch_size}, {r.dtype})"
    )
    if not len(r.seconds):
        return f"{text}; time was not measured."
    low, high = r.throughput_interval
    return (
        f"{text}; {r.throughput:.4g} images per second [{low:.4g}, {high:.4g}] on {r.device} "
        f"(median of n = {len(r.seconds)} passes of {r.batch_size} images after warm-up)."
    )


def scales_sentence(result: MixerScales) -> str:
    """How many scales have the parameters that the paper prints, and the multiply-accumulates of
    the formula."""
    n = len(result.scales)
    counts = list(zip(result.scales, result.parameters, result.macs, strict=True))
    printed = sum(
        round(parameters / 1e6) == scale.printed_millions for scale, parameters, _ in counts
    )
    exact = sum(parameters == scale.parameters for scale, parameters, _ in counts)
    exact_macs = sum(macs == scale.macs for scale, _, macs in counts)
    return (
        f"Of the {n} scales from {result.scales[0].name} to {result.scales[-1].name}, {printed} "
        "match the parameter counts in Table 1 to the nearest million; counted parameters equal "
        f"the formula in {exact} and counted multiply-accumulates equal S C (3 P² + 2 L (D_S + "
        f"D_C)) in {exact_macs} of {n}. {result.scales[-2].name} has {result.parameters[-2]:,} "
        f"parameters and {_large(result.macs[-2])} multiply-accumulates."
    )


def growth_sentence(r: CostGrowth) -> str:
    """Counted and measured exponents of one network, and its quadratic fraction."""
    fraction = r.quadratic_fraction
    if np.isnan(fraction).any():
        quadratic = ""
    elif fraction[-1] < 1e-6:
        quadratic = ", without a quadratic term"
    else:
        quadratic = (
            f"; the quadratic term is {percent(fraction[0])} of the total at the first and "
            f"{percent(fraction[-1])} at the last resolution"
        )
    text = (
        f"{name_of(r.model)}: from {r.tokens[0]:,} to {r.tokens[-1]:,} tokens counted "
        f"multiply-accumulates grow by a factor of {r.counted[-1] / r.counted[0]:.1f}, with an "
        f"exponent of {r.exponent:.3f} overall and {r.exponents[-1]:.3f} between the last two "
        f"sizes{quadratic}"
    )
    exponent, low, high = r.measured_exponent
    if np.isnan(exponent):
        return f"{text}; time was not measured."
    timed = len(r.seconds)
    return (
        f"{text}; measured time up to {r.tokens[timed - 1]:,} tokens has an exponent of "
        f"{exponent:.2f} [{low:.2f}, {high:.2f}] (n = {r.seconds.shape[1]} passes at each of "
        f"{timed} sizes, {r.device})."
    )


def accuracy_cost_sentences(r: AccuracyCost) -> list[str]:
    """Per measure the highest accuracy, and per cost the networks on the Pareto frontier and those
    clearly dominated."""
    names = [name_of(model) for model in r.models]
    sentences = []
    for measure, rows, frontier, dominated in zip(
        r.measures, np.stack([r.accuracy, r.low, r.high], 2), r.frontier, r.dominated, strict=True
    ):
        title = measure[:1].upper() + measure[1:]
        if not np.isfinite(rows[:, 0]).any():
            sentences.append(f"{title}: undefined for every network.")
            continue
        best = int(np.nanargmax(rows[:, 0]))
        value = f"{percent(rows[best, 0])} [{percent(rows[best, 1])}, {percent(rows[best, 2])}]"
        leads = leader([Number("", *row) for row in rows.tolist()]) is not None
        most = (
            f"{names[best]} is the most accurate, {value}"
            if leads
            else f"accuracies are at most {value} ({names[best]})"
        )
        # Costs with the same frontier share a sentence.
        costs_of: dict[str, list[str]] = {}
        for cost, values, is_on, is_off in zip(r.costs, r.cost, frontier, dominated, strict=True):
            if np.isfinite(values).any():
                on, off = (
                    [name for name, chosen in zip(names, mask, strict=True) if chosen]
                    for mask in (is_on, is_off)
                )
                text = (
                    f"{join(on)} {'are' if len(on) > 1 else 'is'} on the Pareto frontier, and "
                    f"{join(off) if off else 'none'} {'are' if len(off) > 1 else 'is'} dominated "
                    "beyond both intervals"
                )
                costs_of.setdefault(text, []).append(cost)
        comparisons = " ".join(f"By {join(costs)}, {text}." for text, costs in costs_of.items())
        sentences.append(
            f"{title} (n = {r.n_test}, chance {percent(r.chance)}): {most}. {comparisons}"
        )
    return sentences


def _large(value: float) -> str:
    """ "12.601 G" or "239.7 M"."""
    return f"{value / 1e9:.3f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"
