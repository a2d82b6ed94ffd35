"""The report on cost: what networks cost, Table 1 of the Mixer paper, growth with resolution, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

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
    "Multiply-accumulates are those of matrix products and convolutions, including those in attention; peak activations are "
    "the bytes of tensors alive at once in a forward pass without gradients, including the batch and excluding weights."
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
        f"Computational cost of every network. {_COUNTED} low and high bound the 95 % interval of images per second over "
        f"passes{where}.",
        frame[columns].assign(peak_MiB_an_image=[r.bytes_per_image / _MIB for r in results]),
        dict.fromkeys(large, "{:,}")
        | dict.fromkeys(("images_per_second", "low", "high"), "{:.4g}")
        | {"peak_MiB_an_image": "{:.2f}"},
    )
    picture = Picture(
        partial(mac_bars, results),
        "Multiply-accumulates per image by part of the network.",
        "Spatial mixing: attention including its projections, 3×3 convolutions including all their channels, and the token "
        "MLPs of a "
        "Mixer.",
        "Stacked bars of multiply-accumulates by part of each network",
        name="cost-macs",
    )
    return [Section("cost", "Computational cost", tuple(map(_cost_sentence, results)), (picture, table))]


def _cost_sentence(r: ModelCost) -> str:
    macs = r.macs
    text = (
        f"{name_of(r.model)}: {r.model.parameters:,} parameters and {_large(macs.total)} multiply-accumulates per image "
        f"({_parts(macs)}); "
        f"{r.bytes_per_image / _MIB:.2f} MiB of peak activations per image (batch of {r.batch_size}, {r.dtype})"
    )
    if not len(r.seconds):
        return f"{text}; time was not measured."
    low, high = r.throughput_interval
    return (
        f"{text}; {r.throughput:.4g} images per second [{low:.4g}, {high:.4g}] on {r.device} (median of n = {len(r.seconds)} "
        "passes "
        f"of {r.batch_size} images after warm-up)."
    )


def _parts(macs: MacParts) -> str:
    """The parts of the blocks that there are; what mixes positions may mix channels as well, as a 3×3 convolution does."""
    parts = (
        (macs.spatial, "modules that mix positions"),
        (macs.channel, "modules that mix channels only"),
        (macs.rest, "shortcuts and other modules"),
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
        "Model scales of Tolstikhin et al. 2021, Table 1, without classifier. P: patch side, C: width, S: tokens, D_S and "
        "D_C: hidden "
        "units of the token- and channel-mixing MLPs. Parameters: in millions as printed there, counted on timm's networks, "
        "and by "
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
        f"Of the {n} scales from {result.scales[0].name} to {result.scales[-1].name}, {printed} match the parameter counts in "
        "Table 1 "
        f"to the nearest million; counted parameters equal the formula in {exact} and counted multiply-accumulates equal "
        f"S C (3 P² + 2 L (D_S + D_C)) in {macs} of {n}. {result.scales[-2].name} has {result.parameters[-2]:,} parameters and "
        f"{_large(result.macs[-2])} multiply-accumulates."
    )


def growth_section(results: Sequence[CostGrowth]) -> list[Section]:
    """How cost grows with resolution."""
    picture = Picture(
        partial(cost_growth_curves, results),
        "Cost of each architecture relative to its cost at the smallest image size. Token-mixing weights and position "
        "embeddings are "
        "re-created for every resolution, with the same number of hidden units D_S.",
        "Solid guide: linear growth in the number of tokens; dashed guide: quadratic growth. Bars in the middle panel: 95 % "
        "intervals "
        "of the median time. Fused attention does not materialise its attention maps, so memory stays linear where computation "
        "does not.",
        "Growth of multiply-accumulates, time and memory with the number of tokens",
        name="cost-growth",
    )
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    shares = dict.fromkeys(("exponent_from_last", "quadratic_share"), "{:.3f}")
    counts = dict.fromkeys(("macs_without_head", "spatial_macs", "channel_macs", "peak_activation_bytes"), "{:,.0f}")
    table = Table("Every resolution.", frame, shares | counts | {"seconds_per_image": "{:.4g}"}, folded=True)
    return [Section("growth", "Cost scaling with resolution", tuple(map(growth_sentence, results)), (picture, table))]


def growth_sentence(r: CostGrowth) -> str:
    """Counted and measured exponents of one network, and what is quadratic in it."""
    last = r.exponents[-1]
    text = (
        f"{name_of(r.model)}: from {r.tokens[0]:,} to {r.tokens[-1]:,} tokens counted multiply-accumulates grow by a factor of "
        f"{r.counted[-1] / r.counted[0]:.1f}, with an exponent of {r.exponent:.3f} overall and {last:.3f} between the last "
        f"two sizes{_shape(r)}"
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
        return ", without a quadratic term"
    return (
        f"; the quadratic term is {percent(share[0])} of the total at the first and {percent(share[-1])} at the last resolution"
    )


def accuracy_cost_section(results: Sequence[AccuracyCost]) -> list[Section]:
    """Accuracy against cost, and who is on the frontier."""
    pictures = [_frontier_picture(r) for r in results]
    tables = [
        Table(
            "Every network, accuracy measure and cost.",
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
        partial(accuracy_cost_frontier, result),
        f"Accuracy of probes on the input features of each classifier, against four costs; {images_text(result.images)}, "
        f"{result.device}.",
        "Upper left is better. Grey line: Pareto frontier; no network to its left is as accurate. Bars: 95 % intervals. Hollow "
        "markers: dominated beyond both intervals by a network of equal or lower cost.",
        "Accuracy against parameters, multiply-accumulates, memory and time",
        name="accuracy-cost",
    )


def accuracy_cost_sentences(r: AccuracyCost) -> list[str]:
    """For every measure the largest accuracy, and for every cost who is on the frontier and who is clearly off it."""
    return [_measure_sentence(r, a) for a in range(len(r.measures))]


def _measure_sentence(r: AccuracyCost, a: int) -> str:
    if not np.isfinite(r.accuracy[a]).any():
        return f"{_titled(r.measures[a])}: undefined for every network."
    best = int(np.nanargmax(r.accuracy[a]))
    value = f"{percent(r.accuracy[a, best])} [{percent(r.low[a, best])}, {percent(r.high[a, best])}]"
    alike: dict[str, list[str]] = {}
    for k, row in enumerate(r.cost):
        if np.isfinite(row).any():
            alike.setdefault(_standing(r, a, k), []).append(r.costs[k])
    name = name_of(r.models[best])
    numbers = [Number("", *row) for row in np.stack([r.accuracy[a], r.low[a], r.high[a]], 1).tolist()]
    most = f"{name} is the most accurate, {value}" if leader(numbers) is not None else f"accuracies are at most {value} ({name})"
    return (
        f"{_titled(r.measures[a])} (n = {r.n_test}, chance {percent(r.chance)}): {most}. "
        f"{' '.join(f'By {_per_image(costs)}, {text}.' for text, costs in alike.items())}"
    )


def _per_image(costs: Sequence[str]) -> str:
    """The names of costs, as sentences say them."""
    return join(cost.replace(" an image", " per image") for cost in costs)


def _titled(measure: str) -> str:
    """The name of a measure at the start of a sentence."""
    return (measure[:1].upper() + measure[1:]).replace(" a class", " per class")


def _standing(r: AccuracyCost, a: int, k: int) -> str:
    """Which networks are on the frontier and which are clearly off it, by one cost."""
    on = [name_of(m) for m, member in zip(r.models, r.frontier[a, k], strict=True) if member]
    off = [name_of(m) for m, member in zip(r.models, r.beaten[a, k], strict=True) if member]
    beaten = f"{join(off)} {'are' if len(off) > 1 else 'is'}" if off else "none is"
    return f"{join(on)} {'are' if len(on) > 1 else 'is'} on the Pareto frontier, and {beaten} dominated beyond both intervals"
