"""Sections on cost: of every network, Table 1 of the Mixer paper, growth with resolution, and
accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text
from mixer_probe.cost import AccuracyCost, CostGrowth, MixerScales, ModelCost
from mixer_probe.cost.figures import accuracy_cost_frontier, cost_growth_curves, mac_bars
from mixer_probe.cost.findings import (
    accuracy_cost_sentences,
    cost_sentence,
    growth_sentence,
    scales_sentence,
)


def cost_section(results: Sequence[ModelCost]) -> list[Section]:
    """Parameters, multiply-accumulates, memory and throughput of every network."""
    counts = ["parameters", "macs", "spatial_macs", "channel_macs"]
    rates = ["images_per_second", "low", "high"]
    # One device is named in the caption, several in a column.
    devices = list(dict.fromkeys(r.device for r in results))
    where, device = (f" on {devices[0]}", []) if len(devices) == 1 else ("", ["device"])
    table = Table(
        "Computational cost of every network. Multiply-accumulates are those of matrix products "
        "and convolutions, including those in attention; peak activations are the bytes of tensors "
        "alive at once in a forward pass without gradients, including the batch and excluding "
        f"weights. low and high bound the 95 % interval of images per second over passes{where}.",
        table_of(results)[["model", "input", *counts, *rates, *device]].assign(
            peak_MiB_an_image=[r.bytes_per_image / 2**20 for r in results]
        ),
        dict.fromkeys(counts, "{:,}")
        | dict.fromkeys(rates, "{:.4g}")
        | {"peak_MiB_an_image": "{:.2f}"},
    )
    picture = Picture(
        partial(mac_bars, results),
        "Multiply-accumulates per image by part of the network.",
        "Spatial mixing: attention including its projections, 3×3 convolutions including all their "
        "channels, and the token MLPs of a Mixer.",
        "Stacked bars of multiply-accumulates by part of each network",
        name="cost-macs",
    )
    return [
        Section("cost", "Computational cost", tuple(map(cost_sentence, results)), (picture, table))
    ]


def scales_section(results: Sequence[MixerScales]) -> list[Section]:
    """Table 1 of the Mixer paper, counted."""
    result = results[-1]
    table = Table(
        "Model scales of Tolstikhin et al. 2021, Table 1, without classifier. P: patch side, C: "
        "width, S: tokens, D_S and D_C: hidden units of the token- and channel-mixing MLPs. "
        "Parameters: in millions as printed there, counted on timm's networks, and by formula.",
        result.to_frame().drop(columns="timm_name"),
        dict.fromkeys(("parameters", "parameters_by_formula", "macs", "macs_by_formula"), "{:,}"),
    )
    return [Section("table1", "Table 1 of the Mixer paper", (scales_sentence(result),), (table,))]


def growth_section(results: Sequence[CostGrowth]) -> list[Section]:
    """How cost grows with resolution."""
    picture = Picture(
        partial(cost_growth_curves, results),
        "Cost of each architecture relative to its cost at the smallest image size. Token-mixing "
        "weights and position embeddings are re-created for every resolution, with the same number "
        "of hidden units D_S.",
        "Solid guide: linear growth in the number of tokens; dashed guide: quadratic growth. Bars "
        "in the middle panel: 95 % intervals of the median time. Fused attention does not "
        "materialise its attention maps, so memory stays linear where computation does not.",
        "Growth of multiply-accumulates, time and memory with the number of tokens",
        name="cost-growth",
    )
    fractions = dict.fromkeys(("exponent_from_last", "quadratic_fraction"), "{:.3f}")
    counts = dict.fromkeys(
        ("macs_without_head", "spatial_macs", "channel_macs", "peak_activation_bytes"), "{:,.0f}"
    )
    formats = fractions | counts | {"seconds_per_image": "{:.4g}"}
    table = Table("Every resolution.", table_of(results), formats, folded=True)
    return [
        Section(
            "growth",
            "Cost scaling with resolution",
            tuple(map(growth_sentence, results)),
            (picture, table),
        )
    ]


def accuracy_cost_section(results: Sequence[AccuracyCost]) -> list[Section]:
    """Accuracy against cost with the Pareto frontier."""
    pictures = [
        Picture(
            partial(accuracy_cost_frontier, r),
            "Accuracy of probes on the input features of each classifier, against four costs; "
            f"{images_text(r.images)}, {r.device}.",
            "Upper left is better. Grey line: Pareto frontier; no network to its left is as "
            "accurate. Bars: 95 % intervals. Hollow markers: dominated beyond both intervals by a "
            "network of equal or lower cost.",
            "Accuracy against parameters, multiply-accumulates, memory and time",
            name="accuracy-cost",
        )
        for r in results
    ]
    formats = dict.fromkeys(("accuracy", "low", "high"), "{:.3f}") | {"value": "{:.4g}"}
    tables = [
        Table("Every network, accuracy measure and cost.", r.to_frame(), formats, folded=True)
        for r in results
    ]
    sentences = tuple(text for r in results for text in accuracy_cost_sentences(r))
    return [Section("accuracy-cost", "Accuracy against cost", sentences, (*pictures, *tables))]
