"""Results to sections: what each kind of result says, computed from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelStatistics
from mixer_probe.figures import (
    channel_depth,
    probe_curves,
    similarity_heatmaps,
    similarity_map,
    stem_pictures,
    token_mixing_depth,
    token_mixing_units,
)
from mixer_probe.models import ModelCard
from mixer_probe.probing import ProbeResult
from mixer_probe.report.section import Picture, Renderer, Section, Table
from mixer_probe.report.skipped import Skipped
from mixer_probe.report.texts import images_text, name_of, percent, studied, untrained_warning
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.weights import StemFilters, TokenMixing


def models_section(cards: Sequence[ModelCard]) -> list[Section]:
    """Which networks, with which weights."""
    frame = pd.DataFrame(
        {
            "model": [c.model.name for c in cards],
            "family": [c.model.family for c in cards],
            "class": [c.architecture for c in cards],
            "parameters": [f"{c.model.parameters:,}" for c in cards],
            "GMACs": [c.macs / 1e9 for c in cards],
            "input": ["×".join(map(str, c.input_size)) for c in cards],
            "weights": [c.model.weights for c in cards],
            "sha256": [c.model.sha256[:12] for c in cards],
        }
    )
    notes = tuple(f"{c.model.name}: {c.model.note}" for c in cards if c.model.note and c.model.trained)
    tables = [Table("The networks. GMACs are multiply-accumulates of one image, in billions.", frame, {"GMACs": "{:.4g}"})]
    tables += [Table(f"Layers of {c.model.name} in execution order.", c.to_frame(), folded=True) for c in cards]
    return [Section("models", "The networks", notes, tuple(tables), untrained_warning(c.model for c in cards))]


def token_mixing_section(results: Sequence[TokenMixing]) -> list[Section]:
    """What the token-mixing units read."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    pictures = [_units_picture(r, block) for r in shown for block in _blocks_to_show(r)]
    depth = Picture(
        token_mixing_depth(results),
        "How the units change with depth: mean frequency (power centroid of the mean-removed map), mean cosine similarity of a "
        "unit with its most opposite unit, and the share of units whose opposite is beyond the null.",
        "Dotted lines with open markers are untrained twins. The null draws the phases of every unit at random and keeps its "
        f"amplitude spectrum ({results[0].surrogates} surrogates a block): smooth units look alike by chance, and only a cosine "
        "below the null means that two units were learned as opposites. By chance 5 % of units are called paired.",
        "Line plots of unit frequency, partner cosine and share of paired units against relative depth",
    )
    sentences = tuple(_token_mixing_sentence(r, results) for r in shown)
    warning = untrained_warning(r.model for r in results)
    return [Section("token-mixing", "What token-mixing units read", sentences, (*pictures, depth), warning)]


def _blocks_to_show(result: TokenMixing) -> list[int]:
    # The paper's Fig. 5 shows the first three blocks; random weights look the same in all of them.
    return list(range(min(3, len(result.blocks)))) if result.model.trained else [0]


def _units_picture(result: TokenMixing, block: int) -> Picture:
    name = name_of(result.model)
    return Picture(
        token_mixing_units(result, block),
        f"The token-mixing units of {result.blocks[block]} of {name}: rows of {result.form}, drawn over the "
        f"{result.grid[0]}×{result.grid[1]} grid of patches, as in Fig. 5 of the MLP-Mixer paper.",
        "Red reads a patch with positive weight, blue with negative weight, white not at all; every unit has its own scale. "
        "Units stand in pairs, each followed by the free unit most opposite to it, from low to high frequency.",
        f"Grid of token-mixing weight maps of {result.blocks[block]} of {name}",
        vector=False,
    )


def _token_mixing_sentence(result: TokenMixing, results: Sequence[TokenMixing]) -> str:
    first, last = 0, len(result.blocks) - 1
    twin = next((r for r in results if r.model.name == result.model.name + "?untrained"), None)
    beside = f" (its untrained twin: {np.nanmean(twin.frequency(0)):.3f})" if twin else ""
    return (
        f"{name_of(result.model)}: {len(result.units(0))} units a block. Mean frequency is "
        f"{np.nanmean(result.frequency(first)):.3f} cycles/token in {result.blocks[first]}{beside} and "
        f"{np.nanmean(result.frequency(last)):.3f} in {result.blocks[last]}. In {result.blocks[first]} "
        f"{percent(result.share_paired(first))} of the units have an opposite beyond the null (by chance 5 %), in "
        f"{result.blocks[last]} {percent(result.share_paired(last))}."
    )


def stem_section(results: Sequence[StemFilters]) -> list[Section]:
    """What the first layer of each network reads."""
    pictures = [
        Picture(
            stem_pictures(r),
            f"The first layer of {name_of(r.model)}, '{r.layer}': {len(r)} filters of {r.shape[2]}×{r.shape[3]} pixels as colour "
            "pictures (Fig. 7 of the MLP-Mixer paper for a Mixer).",
            "Mid-grey is weight zero, brighter is positive and darker negative in each colour; every filter has its own scale. "
            "Filters go from low to high frequency (power centroid, cycles/pixel).",
            f"Grid of stem filters of {name_of(r.model)}",
            vector=False,
        )
        for r in results
    ]
    sentences = tuple(
        f"{name_of(r.model)}: mean frequency {np.nanmean(r.frequency):.3f} cycles/pixel over {len(r)} filters, "
        f"stride {r.stride[0]} px."
        for r in results
    )
    return [
        Section("stem", "What the first layer reads", sentences, tuple(pictures), untrained_warning(r.model for r in results))
    ]


def similarity_section(matrices: Sequence[SimilarityMatrix]) -> list[Section]:
    """Where representations agree."""
    first = matrices[0]
    permutations = first.null.permutations if first.null else 0
    picture = Picture(
        similarity_map(matrices) if len(matrices) > 1 else similarity_heatmaps(matrices),
        f"Linear CKA ({first.estimator} estimator, {first.reduce} over positions) of every block with every block, on "
        f"{images_text(first.images) if first.images else f'{first.n} images'}; n = {first.n}.",
        "Bright cells are layers that place the same images alike, whatever their axes and scale. Grey cells are not above the "
        f"95 % quantile of their own null ({permutations} random pairings of the images: shifts of a shuffled order); white "
        "cells are not defined. Values are raw; only the colours are clipped to 0..1. CKA follows the directions of largest "
        "variance, so a few outlying images or one dominant component can raise or lower it.",
        "Heatmaps of centred kernel alignment between layers of the networks",
    )
    across = [m for m in matrices if not _same(m)]
    table = Table(
        "The best pair of layers of each two networks. The null of the maximum takes the largest cell under each random pairing.",
        pd.DataFrame([_best_row(m) for m in across]),
        {"CKA": "{:.3f}", "null of the maximum, 95 %": "{:.3f}", "last blocks": "{:.3f}"},
    )
    sentences = tuple(_similarity_sentence(m) for m in across)
    warning = untrained_warning(m for matrix in matrices for m in (matrix.model_a, matrix.model_b) if m)
    content = (picture, table) if across else (picture,)
    return [Section("similarity", "Where representations agree", sentences, content, warning)]


def _same(matrix: SimilarityMatrix) -> bool:
    return bool(matrix.model_a and matrix.model_b and matrix.model_a.name == matrix.model_b.name)


def _best(matrix: SimilarityMatrix) -> tuple[int, int] | None:
    if np.isnan(matrix.values).all():
        return None
    row, column = np.unravel_index(np.nanargmax(matrix.values), matrix.values.shape)
    return int(row), int(column)


def _best_row(matrix: SimilarityMatrix) -> dict[str, Any]:
    best = _best(matrix)
    row, column = best or (0, 0)
    return {
        "networks": f"{name_of(matrix.model_a)} × {name_of(matrix.model_b)}",
        "best layers": f"{matrix.layers_a[row].name} × {matrix.layers_b[column].name}" if best else "not defined",
        "CKA": float(matrix.values[row, column]),
        "null of the maximum, 95 %": matrix.null.maximum95 if matrix.null else float("nan"),
        "last blocks": float(matrix.values[-1, -1]),
        "n": matrix.n,
        "p": f"{matrix.p_a[row]} × {matrix.p_b[column]}",
    }


def _similarity_sentence(matrix: SimilarityMatrix) -> str:
    names = f"{name_of(matrix.model_a)} and {name_of(matrix.model_b)}"
    best = _best(matrix)
    if best is None:
        return f"{names}: CKA is not defined for any pair of layers."
    row, column = best
    depth_a, depth_b = matrix.layers_a[row].depth, matrix.layers_b[column].depth
    limit = f" (95 % of the largest values by chance stay below {matrix.null.maximum95:.3f})" if matrix.null else ""
    return (
        f"{names} agree most at depth {depth_a:.2f} of the first and {depth_b:.2f} of the second: CKA "
        f"{matrix.values[row, column]:.3f}{limit}. At their last blocks it is {matrix.values[-1, -1]:.3f}."
    )


def probe_section(results: Sequence[ProbeResult]) -> list[Section]:
    """Where the class can be read off linearly."""
    frames = pd.concat([r.to_frame() for r in results], ignore_index=True)
    n_train, n_test = int(frames["n_train"].iloc[0]), int(frames["n_test"].iloc[0])
    picture = Picture(
        probe_curves(results),
        f"Accuracy of a ridge probe on mean-pooled activations after every block: fitted on {n_train} images, tested on "
        f"{n_test} others ({int(frames['classes'].iloc[0])} classes).",
        "Bands are 95 % Wilson intervals over the test images. Dotted lines with open markers are the same network with random "
        "weights: what architecture alone gives. The grey line is chance. The penalty is chosen by leave-one-out accuracy on the "
        "fitting images, never on the test images.",
        "Probe accuracy against relative depth",
    )
    sentences = tuple(_probe_sentence(r) for r in results)
    columns = ["model", "trained", "layer", "depth", "p", "l2", "accuracy", "low", "high", "balanced_accuracy", "chance"]
    formats = dict.fromkeys(("accuracy", "low", "high", "balanced_accuracy", "chance"), "{:.3f}") | {
        "depth": "{:.2f}",
        "l2": "{:.3g}",
    }
    table = Table("Every probe. low and high bound the 95 % interval.", frames[columns], formats, folded=True)
    warning = untrained_warning(r.model for r in results)
    return [Section("probes", "Where the class can be read", sentences, (picture, table), warning)]


def _probe_sentence(result: ProbeResult) -> str:
    best, last = int(np.nanargmax(result.accuracy)), len(result.layers) - 1
    text = (
        f"{name_of(result.model)}: best after {result.layers[best].name} with {_accuracy(result, best)}, n = {result.n_test}; "
        f"after {result.layers[last].name} {_accuracy(result, last)}."
    )
    if result.untrained is not None:
        top = int(np.nanargmax(result.untrained.accuracy))
        text += f" Untrained, no layer exceeds {_accuracy(result.untrained, top)}."
    return text


def _accuracy(result: ProbeResult, i: int) -> str:
    return f"{percent(result.accuracy[i])} [{percent(result.low[i])}, {percent(result.high[i])}]"


def channel_section(results: Sequence[ChannelStatistics]) -> list[Section]:
    """What single channels do."""
    first = results[0]
    picture = Picture(
        channel_depth(results),
        f"Channels after every block over {images_text(first.images)} and all positions (prefix tokens apart).",
        "Left: the line is the median channel's standard deviation, the band reaches to the largest channel: a wide band means a "
        "few channels carry most of the variance. Middle: share of values at or below zero, 100 % for a layer that a ReLU shut. "
        "Right: channels that never change.",
        "Line plots of channel spread, share of non-positive values and dead channels against relative depth",
    )
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", **dict.fromkeys(("median_std", "largest_std", "share_zero", "share_nonpositive"), "{:.3g}")}
    table = Table("Channels by layer. Shares are of all values, averaged over channels.", frame, formats, folded=True)
    sentences = tuple(_channel_sentence(r) for r in results)
    return [
        Section("channels", "What single channels do", sentences, (picture, table), untrained_warning(r.model for r in results))
    ]


def _channel_sentence(result: ChannelStatistics) -> str:
    dead = sum(int(d.sum()) for d in result.dead)
    total = sum(layer.channels for layer in result.layers)
    last = result.share_zero[-1].mean()
    return (
        f"{name_of(result.model)}: {dead} of {total} channels never change over {result.n} images; "
        f"after the last block {percent(float(last))} of all values are exactly zero."
    )


def skipped_section(results: Sequence[Skipped]) -> list[Section]:
    """What was asked for and could not be done."""
    sentences = tuple(f"{r.step}: {r.reason}" for r in results)
    return [Section("skipped", "What was left out", sentences)]


RENDERERS: dict[type[Any], Renderer] = {
    ModelCard: models_section,
    TokenMixing: token_mixing_section,
    StemFilters: stem_section,
    SimilarityMatrix: similarity_section,
    ProbeResult: probe_section,
    ChannelStatistics: channel_section,
    Skipped: skipped_section,
}
