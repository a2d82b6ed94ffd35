"""The report's section on a Mixer as a CNN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, name_of, untrained_warning
from mixer_probe.weights.equivalence import ConvolutionEquivalence
from mixer_probe.weights.figures.equivalence import mixer_as_cnn


def equivalence_section(results: Sequence[ConvolutionEquivalence]) -> list[Section]:
    """The differences between outputs of Mixers and their convolutional forms, and the convolutions
    of these."""
    pictures = [
        Picture(
            partial(mixer_as_cnn, r),
            f"{name_of(r.model)} as a CNN: token mixing is a depthwise convolution with a single "
            "kernel, as large as the map and shared by all channels; channel mixing is a 1×1 "
            f"convolution. Measured on {images_text(r.images)}.",
            "Each row is one channel of one image (red positive, blue negative). It is multiplied "
            "by the kernel, framed because it is the same in all rows, and summed. A kernel as "
            "large as the map fits in one place only, so the sum is what the linear layer "
            "computes. The channels shown have the largest, the middle and the smallest result. "
            "Bottom left: differences of the order of rounding error mean that both networks "
            "compute the same function. Bottom right: with a separate kernel per channel, as in "
            "depthwise CNNs, the network would be far larger.",
            "Full-image kernel shared across channels, differences between outputs, and parameter "
            f"counts of {name_of(r.model)}",
            name=f"mixer-as-cnn-{name_of(r.model)}",
        )
        for r in results
    ]
    counts = pd.DataFrame(
        [
            {
                "model": name_of(r.model),
                "convolutions": c.kind,
                "count": c.count,
                "kernel": "×".join(map(str, c.kernel)),
                "parameters": c.parameters,
            }
            for r in results
            for c in r.convolutions
        ]
    )
    tables = (
        Table("Convolutions of each network.", counts, {"parameters": "{:,}"}),
        Table(
            "Largest difference between outputs by form and data type. own rounding: difference "
            "between the network's own outputs and those in float64.",
            table_of(results),
            {
                "largest_difference": "{:.2e}",
                "own_rounding": "{:.2e}",
                "parameters": "{:,}",
                "parameters_as_cnn": "{:,}",
            }
            | {"largest_output": "{:.2f}"},
            folded=True,
        ),
    )
    sentences = tuple(text for r in results for text in equivalence_sentences(r))
    warning = untrained_warning(r.model for r in results)
    return [Section("mixer-as-cnn", "Mixer as a CNN", sentences, (*pictures, *tables), warning)]


def equivalence_sentences(r: ConvolutionEquivalence) -> list[str]:
    """The convolutions of one network as a CNN, and how far its outputs are from those of the
    Mixer."""
    total = sum(c.count for c in r.convolutions)
    kinds = "; ".join(f"{c.kind}, {c.count} of {c.kernel[0]}×{c.kernel[1]}" for c in r.convolutions)
    same = (
        "as many as" if r.parameters == r.model.parameters else f"not the {r.model.parameters:,} of"
    )
    sentences = [
        f"{name_of(r.model)} as a CNN has {total} convolutions and {r.linear_layers} linear layers "
        f"({kinds}). It has {r.parameters:,} parameters, {same} the Mixer; with separate "
        f"token-mixing kernels per channel it would have {r.untied_parameters:,}, "
        f"{r.untied_parameters / r.parameters:.0f} times as many."
    ]
    for c in r.checks:
        why = "" if r.output == "logits" else " (its classifier is all zero)"
        rounding = (
            f"; rounding to {c.dtype} changes the Mixer's own {r.output} by up to {c.rounding:.1e}"
            if c.rounding > 0
            else ""
        )
        classes = (
            f"; {c.same} of {c.n} images get the same prediction" if r.output == "logits" else ""
        )
        sentences.append(
            f"{name_of(r.model)}, {c.form}, {c.dtype}: {r.output}{why} with magnitudes up to "
            f"{r.largest_output:.2f} differ by at most {c.difference:.1e} (n = {c.n} "
            f"images){rounding}{classes}."
        )
    return sentences
