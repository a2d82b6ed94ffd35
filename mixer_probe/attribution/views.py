"""The report on attributions: maps, faithfulness, the model-randomisation sanity check, agreement,
and conductance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mixer_probe.attribution import (
    Agreement,
    Attribution,
    AttributionPanel,
    Conductance,
    Faithfulness,
    PerturbationCurves,
    RandomisationCheck,
)
from mixer_probe.attribution.curves import MODES
from mixer_probe.attribution.figures import (
    agreement_matrices,
    attribution_maps,
    conductance_units,
    network_agreement,
    perturbation_figure,
    randomisation_figure,
)
from mixer_probe.attribution.findings import (
    MOST_NETWORKS,
    conductance_sentence,
    count_of_images,
    curves_sentence,
    faithfulness_sentences,
    mean_text,
    methods_sentence,
    networks_sentence,
    nodes_text,
    panel_sentences,
    randomisation_sentence,
)
from mixer_probe.attribution.methods import method_label
from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import join, name_of, percent, untrained_warning

# Rows of maps in one picture, and networks side by side in one.
_MOST_ROWS, _MOST_PANELS = 12, 3
_LOGITS = dict.fromkeys(("logit", "logit_difference", "sum", "convergence_delta"), "{:.3g}") | {
    "relative_delta": "{:.2%}"
}


def _section(
    anchor: str,
    title: str,
    results: Sequence[Any],
    sentences: Iterable[str],
    content: Sequence[Picture | Table],
    caption: str,
    formats: Mapping[str, str],
) -> list[Section]:
    """A section that ends with the folded table of its results and warns of untrained networks."""
    table = Table(caption, table_of(results), dict(formats), folded=True)
    warning = untrained_warning(
        m for r in results for m in (r.models if hasattr(r, "models") else (r.model,))
    )
    return [Section(anchor, title, tuple(sentences), (*content, table), warning)]


def _numbered(name: str, number: int) -> str:
    """The name of a picture among several."""
    return f"{name}-{number}" if number else name


# -- maps ------------------------------------------------------------------------------------------


def panel_section(results: Sequence[AttributionPanel]) -> list[Section]:
    """Attribution maps of one or more networks."""
    pictures = []
    for number, panel in enumerate(results):
        networks = list(dict.fromkeys(panel.models))
        of = join(name_of(m) for m in networks)
        reading = []
        for signed, text in (
            (True, "Signed methods ({}): red is evidence for the target class, blue against it."),
            (False, "Unsigned methods ({}): yellow marks the highest attribution."),
        ):
            methods = [
                method_label(m)
                for m, s in zip(panel.methods, panel.signed, strict=True)
                if s is signed
            ]
            reading += [text.format(join(dict.fromkeys(methods)))] if methods else []
        reading.append(
            "Each map has its own colour scale; magnitudes are not comparable between maps. Blank "
            "panels mark methods that are not available for a network. Labels give the true or "
            "target class below each image and each network's prediction beside its maps."
        )
        for part, rows in enumerate(
            chunks(range(len(panel.ids)), max(1, _MOST_ROWS // len(networks)))
        ):
            images = count_of_images(len(rows))
            pictures.append(
                Picture(
                    partial(attribution_maps, panel.take(rows)),
                    f"Attribution maps of {of} for {images} of {panel.images.name}, overlaid on "
                    "each image at its original resolution.",
                    " ".join(reading),
                    f"Maps of {len(set(panel.methods))} attribution methods over {images} for "
                    f"{len(networks)} networks",
                    vector=False,
                    name=f"attributions-{number}-{part}" if number or part else "attributions",
                )
            )
    return _section(
        "attributions",
        "Attribution maps",
        results,
        (text for panel in results for text in panel_sentences(panel)),
        pictures,
        "Every map shown: target and predicted class, logit, logit difference to the baseline, and "
        "convergence delta of the map.",
        _LOGITS,
    )


def attribution_section(results: Sequence[Attribution]) -> list[Section]:
    """Attributions without their images: logits and sums."""
    sentences = (
        f"{name_of(r.model)}: {method_label(r.method)}, {r.text}; {count_of_images(len(r.ids))}, "
        f"baseline {r.baseline}."
        for r in results
    )
    caption = "Target class, logits and sum of every map."
    return _section(
        "attribution-sums", "Completeness of attributions", results, sentences, (), caption, _LOGITS
    )


# -- faithfulness ----------------------------------------------------------------------------------


def curves_section(results: Sequence[PerturbationCurves]) -> list[Section]:
    """Deletion and insertion curves."""
    first = results[0]
    pictures = [
        Picture(
            partial(perturbation_figure, chunk),
            "Deletion and insertion curves. Deletion replaces patches by "
            f"{first.deletion_baseline}, in decreasing order of attribution; insertion starts from "
            f"{first.insertion_baseline} and restores them in the same order. Mean over "
            f"{count_of_images(len(first.ids))}; bands: 95 % intervals over images.",
            "For a faithful map, the probability falls quickly under deletion and rises quickly "
            "under insertion. Dashed grey: random orders of the same patches, the control for the "
            "harm that removing any patch does. Compare each curve with this control.",
            f"Deletion and insertion curves of {join(name_of(r.model) for r in chunk)}",
            name=_numbered("attribution-curves", number),
        )
        for number, chunk in enumerate(chunks(results, _MOST_PANELS))
    ]
    return _section(
        "attribution-curves",
        "Deletion and insertion curves",
        results,
        (curves_sentence(r, mode) for r in results for mode in MODES),
        pictures,
        "Area under each curve (deletion: lower is better; insertion: higher is better), and gain "
        "over random orders on the same images.",
        dict.fromkeys(("area", "low", "high", "gain", "gain_low", "gain_high"), "{:.3f}"),
    )


def faithfulness_section(results: Sequence[Faithfulness]) -> list[Section]:
    """Infidelity and sensitivity of attribution maps."""
    first = results[0]
    caption = (
        f"Infidelity: unexplained fraction of the squared drop in the logit over {first.samples} "
        f"random removals of {percent(first.removed)} of the patches (0 is perfect). Sensitivity: "
        f"largest relative change of the map under noise within ±{first.radius:g} of the "
        f"normalised input. Means over {count_of_images(len(first.ids))} with 95 % intervals."
    )
    rows = []
    for r in results:
        uniform = ("uniform map", r.uniform_infidelity, np.full(len(r.ids), np.nan))
        for name, infidelity, sensitivity in (
            *zip(r.methods, r.infidelity, r.sensitivity, strict=True),
            uniform,
        ):
            known = np.isfinite(sensitivity).any()
            texts = {
                "infidelity": mean_text(infidelity),
                "sensitivity": mean_text(sensitivity) if known else "–",
            }
            rows.append({"model": r.model.name, "method": name, **texts})
    return _section(
        "faithfulness",
        "Infidelity and sensitivity",
        results,
        (text for r in results for text in faithfulness_sentences(r)),
        (Table(caption, pd.DataFrame(rows)),),
        "The same values in long format.",
        dict.fromkeys(("mean", "low", "high"), "{:.3f}"),
    )


def randomisation_section(results: Sequence[RandomisationCheck]) -> list[Section]:
    """The model-randomisation sanity check."""
    pictures = [
        Picture(
            partial(randomisation_figure, [r for r in results if r.model in chunk]),
            "Rank correlation between maps of the trained network and maps after cascading "
            "randomisation of its weights, from the head to the stem. Mean over "
            f"{count_of_images(len(results[0].ids))} and {results[0].draws} random "
            "re-initialisations; bands: 95 % intervals over both.",
            "The maps of a method that depends on the learned weights fall to the dotted line, the "
            "rank correlation between maps of different images. Maps that stay above it reflect "
            "the image rather than what the network has learned.",
            f"Curves of the model-randomisation sanity check of {join(name_of(m) for m in chunk)}",
            name=_numbered("randomisation", number),
        )
        for number, chunk in enumerate(
            chunks(list(dict.fromkeys(r.model for r in results)), _MOST_PANELS)
        )
    ]
    estimates = ("spearman", "signed_spearman", "ssim", "null_spearman")
    return _section(
        "randomisation",
        "Model-randomisation sanity check",
        results,
        map(randomisation_sentence, results),
        pictures,
        "Similarity to the original maps after each stage: rank correlation of patch sums (of "
        "magnitudes, and signed) and structural similarity (SSIM).",
        {f"{name}{side}": "{:.2f}" for name in estimates for side in ("", "_low", "_high")},
    )


# -- agreement -------------------------------------------------------------------------------------


def agreement_section(results: Sequence[Agreement]) -> list[Section]:
    """Agreement between attribution methods, and between networks."""
    within, across, mixed = (
        [r for r in results if r.compared == what] for what in ("methods", "networks", "both")
    )
    of_methods = [*chunks(within, _MOST_PANELS), *([r] for r in mixed)]
    pictures = [
        Picture(
            partial(agreement_matrices, chunk),
            "Agreement between attribution methods on "
            f"{join(dict.fromkeys(name_of(m) for r in chunk for m in r.models))}, mean over "
            f"{count_of_images(len(chunk[0].ids))}.",
            "1: identical ranking of patches. Grey numbers do not exceed the 95th percentile of "
            "random pairings of images, which accounts for what all maps share, such as a centre "
            "bias. Agreement does not imply correctness.",
            f"Agreement matrices of {sum(len(r.methods) for r in chunk)} attributions",
            name=_numbered("agreement-methods", number),
        )
        for number, chunk in enumerate(of_methods)
    ]
    many = any(len(r.models) > MOST_NETWORKS for r in across)
    for number, chunk in enumerate(chunks(across, _MOST_PANELS if many else len(across) or 1)):
        images, networks = count_of_images(len(chunk[0].ids)), len(chunk[0].models)
        name, methods = (
            _numbered("agreement-networks", number),
            join(method_label(r.methods[0]) for r in chunk),
        )
        matrices = Picture(
            partial(agreement_matrices, chunk),
            f"Agreement between networks by {methods}, mean over {images}.",
            "1: identical ranking of patches. Grey numbers do not exceed the 95th percentile of "
            "pairings with other images' maps; only bold numbers are evidence that two networks "
            "use the same regions. Intervals are in the table.",
            f"Agreement matrices of {networks} networks by {len(chunk)} attribution methods",
            name=name,
        )
        marks = Picture(
            partial(network_agreement, chunk),
            f"Agreement between networks on the same {images}, per method, with 95 % intervals "
            "over images.",
            "Grey bars: 95th percentile of pairings with other images' maps. Only a mark to the "
            "right of its bar is evidence that two networks use the same regions.",
            f"Agreement between {networks} networks by {len(chunk)} attribution methods",
            name=name,
        )
        pictures.append(matrices if many else marks)
    return _section(
        "agreement",
        "Agreement between attribution methods and networks",
        results,
        (*map(methods_sentence, within), *map(networks_sentence, across)),
        pictures,
        "Every pair: mean rank correlation with 95 % interval; null and null95: mean and 95th "
        "percentile over pairings with other images' maps.",
        dict.fromkeys(("spearman", "low", "high", "null", "null95"), "{:.2f}"),
    )


# -- conductance -----------------------------------------------------------------------------------


def conductance_section(results: Sequence[Conductance]) -> list[Section]:
    """Conductance of token-mixing units."""
    pictures = [
        Picture(
            partial(conductance_units, r),
            f"Conductance of the token-mixing hidden units of {name_of(r.model)}, from "
            f"{r.baseline} to the image, {nodes_text(r)}; mean over {count_of_images(len(r.ids))}.",
            "Left: fraction of conductance per unit, in decreasing order; dashed: uniform "
            "distribution. Right: input weights on the patch grid of the units with the highest "
            "conductance; titles give unit, fraction of conductance, and mean conductance in "
            "logits (positive: for the class).",
            "Fractions of conductance, and weight maps of the token-mixing units with the highest "
            f"conductance, of {name_of(r.model)}",
            name=f"conductance-{name_of(r.model)}",
        )
        for r in results
        if r.unit_maps
    ]
    frames = []
    for r in results:
        rows = r.to_frame().sort_values(
            ["depth", "layer", "fraction"], ascending=[True, True, False], kind="stable"
        )
        frames.append(rows.groupby("layer", sort=False).head(6).drop(columns="n_images"))
    formats = {
        "depth": "{:.2f}",
        "mean": "{:+.3f}",
        "mean_magnitude": "{:.3f}",
        "fraction": "{:.1%}",
        "fraction_positive": "{:.0%}",
    }
    formats |= dict.fromkeys(("gap", "change"), "{:.2%}")
    caption = "The six units with the highest conductance per layer."
    table = Table(caption, pd.concat(frames, ignore_index=True), formats, folded=True)
    sentences = tuple(map(conductance_sentence, results))
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "conductance",
            "Conductance of token-mixing units",
            sentences,
            (*pictures, table),
            warning,
        )
    ]
