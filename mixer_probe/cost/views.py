"""The report on cost: what networks cost, Table 1 of the Mixer paper, growth with resolution, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, join, name_of, percent
from mixer_probe.cost import AccuracyCost, CostGrowth, MacParts, MixerScales, ModelCost
from mixer_probe.cost.figures import accuracy_cost_frontier, cost_growth_curves, mac_bars
from mixer_probe.stats.claims import leader

_MIB = 2**20
_COUNTED = (
    "Multiply-accumulates are those of matrix products and convolutions, products of attention included; peak activations are "
    "the bytes of tensors alive at once in a forward pass without gradients, the batch included and weights not."
)


def cost_section(results: Sequence[ModelCost]) -> list[Section]:
    """Parameters, multiply-accumulates, memory and throughput of every network."""
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    columns = [
        "model",
        "input",
        "parameters",
        "macs",
        "spatial_macs",
        "channel_macs",
        "images_per_second",
        "low",
        "high",
    ]
    large = ("parameters", "macs", "spatial_macs", "channel_macs")
    # One device is said once; of several every row has its own.
    devices = list(dict.fromkeys(r.device for r in results))
    columns += ["device"] if len(devices) > 1 else []
    where = f" on {devices[0]}" if len(devices) == 1 else ""
    table = Table(
        f"What every network costs. {_COUNTED} low and high bound the 95 % interval of images per second over passes{where}.",
        frame[columns].assign(peak_MiB_an_image=[r.bytes_per_image / _MIB for r in results]),
        dict.fromkeys(large, "{:,}")
        | dict.fromkeys(("images_per_second", "low", "high"), "{:.4g}")
        | {"peak_MiB_an_image": "{:.2f}"},
    )
    picture = Picture(
        mac_bars(results),
        "Multiply-accumulates of one image by the part of the network that they are spent in.",
        "Attention counts as spatial mixing with its projections, and so does a 3×3 convolution with all its channels; a Mixer's "
        "spatial mixing is its token MLPs.",
        "Stacked bars of multiply-accumulates by part of each network",
        name="cost-macs",
    )
    return [Section("cost", "What the networks cost", tuple(map(_cost_sentence, results)), (picture, table))]


def _cost_sentence(r: ModelCost) -> str:
    macs = r.macs
    text = (
        f"{name_of(r.model)}: {r.model.parameters:,} parameters and {_large(macs.total)} multiply-accumulates an image "
        f"({_parts(macs)}); "
        f"{r.bytes_per_image / _MIB:.2f} MiB of activations an image at the peak (batch of {r.batch_size}, {r.dtype})"
    )
    if not len(r.seconds):
        return f"{text}; time was not measured."
    low, high = r.throughput_interval
    return (
        f"{text}; {r.throughput:.4g} images a second [{low:.4g}, {high:.4g}] on {r.device} (median of n = {len(r.seconds)} warm "
        f"passes of {r.batch_size} images)."
    )


def _parts(macs: MacParts) -> str:
    """The parts of the blocks that there are; what mixes positions may mix channels as well, as a 3×3 convolution does."""
    parts = (
        (macs.spatial, "modules that mix positions"),
        (macs.channel, "modules that mix channels alone"),
        (macs.rest, "shortcuts and the like"),
    )
    said = [f"{percent(count / macs.total)} in {what}" for count, what in parts if count]
    return join(said) if said else "none of them in blocks"


def _large(value: float) -> str:
    return f"{value / 1e9:.3f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def scales_section(results: Sequence[MixerScales]) -> list[Section]:
    """Table 1 of the Mixer paper, counted."""
    result = results[-1]
    frame = result.to_frame().drop(columns="timm_name")
    counts = ("parameters", "parameters_by_formula", "macs", "macs_by_formula")
    table = Table(
        "The scales of Tolstikhin et al. 2021, Table 1, without classifier: P patch side, C width, S tokens, D_S and D_C hidden "
        "units of the token- and channel-mixing MLPs. Parameters in millions as printed there; counted on timm's networks; by "
        "formula.",
        frame,
        dict.fromkeys(counts, "{:,}"),
    )
    return [Section("table1", "Table 1 of the Mixer paper", (scales_sentence(result),), (table,))]


def scales_sentence(result: MixerScales) -> str:
    """How many of the scales have the parameters that the paper prints, and the multiply-accumulates of the formula."""
    n = len(result.scales)
    pairs = list(zip(result.scales, result.parameters, result.macs, strict=True))
    printed = sum(round(counted / 1e6) == scale.printed_millions for scale, counted, _ in pairs)
    exact = sum(counted == scale.parameters for scale, counted, _ in pairs)
    macs = sum(counted == scale.macs for scale, _, counted in pairs)
    return (
        f"Of the {n} scales from {result.scales[0].name} to {result.scales[-1].name}, {printed} have the parameters that Table 1 "
        f"prints, to the million; counted parameters equal the formula in {exact} and counted multiply-accumulates equal "
        f"S C (3 P² + 2 L (D_S + D_C)) in {macs} of {n}. {result.scales[-2].name} has {result.parameters[-2]:,} parameters and "
        f"{_large(result.macs[-2])} multiply-accumulates."
    )


def growth_section(results: Sequence[CostGrowth]) -> list[Section]:
    """How cost grows with resolution."""
    picture = Picture(
        cost_growth_curves(results),
        "Cost of the same architectures for larger images, divided by that for the smallest. Token-mixing weights and position "
        "embeddings are made anew for every resolution, with as many hidden units D_S.",
        "A line along the solid guide grows linearly with the tokens, one along the dashed guide quadratically. Bars of "
        "the middle panel are 95 % intervals of the median time. Fused attention never makes its maps, so that memory stays "
        "linear where computation does not.",
        "Growth of multiply-accumulates, time and memory with the number of tokens",
        name="cost-growth",
    )
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    shares = dict.fromkeys(("exponent_from_last", "quadratic_share"), "{:.3f}")
    counts = dict.fromkeys(("macs_without_head", "spatial_macs", "channel_macs", "peak_activation_bytes"), "{:,.0f}")
    table = Table("Every resolution.", frame, shares | counts | {"seconds_per_image": "{:.4g}"}, folded=True)
    return [Section("growth", "How cost grows with resolution", tuple(map(growth_sentence, results)), (picture, table))]


def growth_sentence(r: CostGrowth) -> str:
    """Counted and measured exponents of one network, and what is quadratic in it."""
    last = r.exponents[-1]
    text = (
        f"{name_of(r.model)}: from {r.tokens[0]:,} to {r.tokens[-1]:,} tokens counted multiply-accumulates grow by a factor of "
        f"{r.counted[-1] / r.counted[0]:.1f}, with an exponent of {r.exponent:.3f} overall and {last:.3f} at the end{_shape(r)}"
    )
    exponent, low, high = r.measured_exponent
    if np.isnan(exponent):
        return f"{text}; time was not measured."
    timed = len(r.seconds)
    return (
        f"{text}; measured time up to {r.tokens[timed - 1]:,} tokens has an exponent of {exponent:.2f} [{low:.2f}, {high:.2f}] "
        f"(n = {r.seconds.shape[1]} passes at each of {timed} sizes, {r.device})."
    )


def _shape(r: CostGrowth) -> str:
    share = r.quadratic_share
    if np.isnan(share).any():
        return ""
    if share[-1] < 1e-6:
        return ", and nothing in them is quadratic"
    return f", and {percent(share[0])} of them are quadratic at the first and {percent(share[-1])} at the last resolution"


def accuracy_cost_section(results: Sequence[AccuracyCost]) -> list[Section]:
    """Accuracy against cost, and who is on the frontier."""
    pictures = [_frontier_picture(r) for r in results]
    tables = [
        Table(
            "Every network, measure and cost.",
            r.to_frame(),
            dict.fromkeys(("accuracy", "low", "high"), "{:.3f}") | {"value": "{:.4g}"},
            folded=True,
        )
        for r in results
    ]
    sentences = tuple(text for r in results for text in accuracy_cost_sentences(r))
    return [Section("accuracy-cost", "Accuracy against cost", sentences, (*pictures, *tables))]


def _frontier_picture(result: AccuracyCost) -> Picture:
    return Picture(
        accuracy_cost_frontier(result),
        f"Accuracy of probes on the features that each classifier reads, against four costs; {images_text(result.images)}, "
        f"{result.device}.",
        "A network above and to the left of another is better and cheaper. The grey line is the frontier: nothing on its left is "
        "as accurate. Bars are 95 % intervals; a hollow point is beaten beyond both intervals by a network that costs no more.",
        "Accuracy against parameters, multiply-accumulates, memory and time",
        name="accuracy-cost",
    )


def accuracy_cost_sentences(r: AccuracyCost) -> list[str]:
    """For every measure the largest accuracy, and for every cost who is on the frontier and who is clearly off it."""
    return [_measure_sentence(r, a) for a in range(len(r.measures))]


def _measure_sentence(r: AccuracyCost, a: int) -> str:
    if not np.isfinite(r.accuracy[a]).any():
        return f"{r.measures[a]}: not defined for any network."
    best = int(np.nanargmax(r.accuracy[a]))
    value = f"{percent(r.accuracy[a, best])} [{percent(r.low[a, best])}, {percent(r.high[a, best])}]"
    alike: dict[str, list[str]] = {}
    for k, row in enumerate(r.cost):
        if np.isfinite(row).any():
            alike.setdefault(_standing(r, a, k), []).append(r.costs[k])
    name = name_of(r.models[best])
    numbers = [Number("", *row) for row in np.stack([r.accuracy[a], r.low[a], r.high[a]], 1).tolist()]
    most = f"most accurate is {name} with {value}" if leader(numbers) is not None else f"accuracies are at most {value} ({name})"
    return (
        f"{r.measures[a][:1].upper() + r.measures[a][1:]} (n = {r.n_test}, chance {percent(r.chance)}): {most}. "
        f"{' '.join(f'By {join(costs)}, {text}.' for text, costs in alike.items())}"
    )


def _standing(r: AccuracyCost, a: int, k: int) -> str:
    """Who is on the frontier and who is clearly off it, by one cost."""
    on = [name_of(m) for m, member in zip(r.models, r.frontier[a, k], strict=True) if member]
    off = [name_of(m) for m, member in zip(r.models, r.beaten[a, k], strict=True) if member]
    beaten = f"{join(off)} {'are' if len(off) > 1 else 'is'}" if off else "none is"
    return f"{join(on)} {'are' if len(on) > 1 else 'is'} on the frontier, and {beaten} beaten beyond both intervals"
