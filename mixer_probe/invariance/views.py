"""The report on distortions: examples, accuracy, robustness by architecture, error consistency,
representation shift."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import images_text, join, untrained_warning
from mixer_probe.invariance import (
    ArchitectureComparison,
    DistortionAccuracy,
    DistortionExamples,
    ErrorConsistency,
    RepresentationShift,
)
from mixer_probe.invariance.figures import (
    architecture_dots,
    distortion_curves,
    distortion_pictures,
    error_consistency_heatmaps,
    error_consistency_pairs,
    representation_shift_curves,
    telling_rows,
)
from mixer_probe.invariance.findings import (
    accuracy_sentence,
    consistency_sentences,
    kind_sentence,
    shift_sentence,
)

# Pictures of photographs are large: one is enough there.
_MOST_PIXELS = 64
_MOST_DISTORTIONS = 9
_FRACTIONS = ("accuracy", "drop", "kept", "agreement", "agreement_by_chance", "chance")


def examples_section(results: Sequence[DistortionExamples]) -> list[Section]:
    """What the distorted images look like."""
    first = results[0]
    height, width = first.pixels.shape[2:4]
    pictures = [
        Picture(
            partial(distortion_pictures, first, image),
            f"Image {first.ids[image]} of {first.images.name} at {height}×{width} px, undistorted "
            "and under every distortion.",
            "Rows: kinds of distortion, from mild to severe. Values outside the displayable range, "
            "which filters can produce, are clipped in this figure but not in the network input.",
            f"Image {first.ids[image]} under distortions",
            vector=False,
            name=f"distorted-image-{image}",
            folded=image > 0,
        )
        for image in range(len(first.ids) if height <= _MOST_PIXELS else 1)
    ]
    table = Table("The distortions.", first.to_frame(), {"strength": "{:g}"}, folded=True)
    text = (
        "Distortions act on the input pixels, after resizing and before normalisation. Shuffles "
        "and cyclic shifts change no pixel value and are exactly invertible. Each image has its "
        "own random order unless the distortion is marked as shared."
    )
    return [Section("distortion-examples", "Example distortions", (text,), (*pictures, table))]


def distortion_section(results: Sequence[DistortionAccuracy]) -> list[Section]:
    """Accuracy of each network under distortions."""
    content: list[Picture | Table] = []
    distorted = [r for r in results if r.distortions]
    if distorted:
        content += [
            Picture(
                partial(distortion_curves, distorted),
                f"Accuracy of frozen networks on {images_text(distorted[0].images)}, undistorted "
                "(“none”) and distorted.",
                "Panels: kinds of distortion, more severe to the right. Bands: 95 % Wilson "
                "intervals over images. Grey line: chance, the fraction of images in the most "
                "frequent class. A flat line indicates invariance. Shuffling measures reliance on "
                "the arrangement of patches (across patches) or on the texture inside them (within "
                "patches).",
                "Accuracy against the strength of each distortion",
                name="distortion-accuracy",
            ),
            Picture(
                partial(distortion_curves, distorted, "agreement"),
                "Fraction of images with the same predicted class as for the undistorted image, "
                "whether correct or not.",
                "Agreement requires no labels, and also falls when errors move to other images at "
                "equal accuracy. Bands: 95 % Wilson intervals. Grey line: agreement expected of "
                "independent predictions with the same class frequencies, averaged over networks.",
                "Agreement with the prediction for the undistorted image, against the strength of "
                "each distortion",
                name="distortion-agreement",
                folded=True,
            ),
        ]
    formats = {name + end: "{:.3f}" for name in _FRACTIONS for end in ("", "_low", "_high")}
    columns = [
        "model",
        "distortion",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "drop",
        "drop_low",
        "drop_high",
        "kept",
    ]
    columns += [
        "kept_low",
        "kept_high",
        "agreement",
        "agreement_by_chance",
        "p_mcnemar",
        "chance",
        "n",
    ]
    caption = (
        "Every network and distortion: accuracy (Wilson interval), drop relative to the "
        "undistorted images (Tango's interval for paired proportions; McNemar's exact p), retained "
        "fraction of the accuracy above chance (delta method), and agreement with the prediction "
        "on the undistorted image."
    )
    content.append(
        Table(caption, table_of(results)[columns], formats | {"p_mcnemar": "{:.1e}"}, folded=True)
    )
    sentences = tuple(map(accuracy_sentence, results))
    warning = untrained_warning(r.model for r in results)
    return [
        Section("distortions", "Accuracy under distortions", sentences, tuple(content), warning)
    ]


def architecture_section(results: Sequence[ArchitectureComparison]) -> list[Section]:
    """Robustness by architecture."""
    first = results[0]
    networks = join(name.removeprefix("zoo:") for name in first.networks)
    picture = Picture(
        partial(architecture_dots, first),
        "Retained fraction of the accuracy above chance, (distorted − chance) / (undistorted − "
        "chance), per family, averaged over the strengths of a kind and over its networks "
        f"({networks}), n = {first.n} images.",
        "100 % (dotted): no loss; 0: chance. Bars: 95 % intervals over images, for all networks "
        "jointly; they do not cover variation between training seeds, which the small open markers "
        "(single networks) indicate. Networks of a family may share a training recipe, so effects "
        "of its data augmentation are attributed to the family.",
        "Retained accuracy of each family under each kind of distortion",
        name="architectures-distortions",
    )
    names = (
        "kept",
        "low",
        "high",
        "lowest_network",
        "highest_network",
        "behind_best",
        "behind_low",
        "behind_high",
    )
    caption = (
        "Every kind and family; the last columns give the gap to the family with the highest "
        "retained accuracy, with its interval over images."
    )
    table = Table(caption, first.to_frame(), dict.fromkeys(names, "{:.3f}"), folded=True)
    sentences = tuple(kind_sentence(first, k) for k in range(len(first.kinds)))
    return [
        Section(
            "architectures-distortions", "Robustness by architecture", sentences, (picture, table)
        )
    ]


def consistency_section(results: Sequence[ErrorConsistency]) -> list[Section]:
    """Error consistency between networks."""
    first = results[0]
    content: list[Picture | Table] = []
    if np.isfinite(first.kappa[0][~np.eye(len(first.models), dtype=bool)]).any():
        more = (
            ", and for each kind the most severe distortion under which every network is above "
            "chance"
        )
        content += [
            Picture(
                partial(error_consistency_pairs, first),
                "Error consistency (Geirhos et al. 2020) of every pair of networks on "
                f"{images_text(first.images)}, undistorted.",
                "Kappa is 1 if two networks are correct on exactly the same images, and 0 if their "
                "errors are independent. Bars: 95 % intervals over images. Grey bands: 95 % range "
                "for independent errors at these accuracies. Orange ticks: largest kappa that the "
                "two accuracies allow.",
                "Error consistency of pairs of networks with its largest possible value",
                name="error-consistency-pairs",
            ),
            Picture(
                partial(error_consistency_heatmaps, first),
                "Error consistency of every pair of networks, on undistorted images"
                f"{more if len(telling_rows(first)) > 1 else ''}.",
                "Small numbers: largest kappa that the accuracies allow. Blocks along the diagonal "
                "are groups of networks with consistent errors.",
                "Heat maps of error consistency on undistorted and distorted images",
                name="error-consistency-maps",
            ),
        ]
    names = (
        "accuracy_a",
        "accuracy_b",
        "kappa",
        "low",
        "high",
        "null_low",
        "null_high",
        "least",
        "most",
        "fraction_of_most",
    )
    caption = (
        "Every pair of networks, on undistorted images and under every distortion; "
        "fraction_of_most: kappa divided by its largest possible value."
    )
    content.append(
        Table(
            caption,
            first.to_frame(),
            dict.fromkeys((*names, "observed", "expected"), "{:.3f}"),
            folded=True,
        )
    )
    sentences, warning = tuple(consistency_sentences(first)), untrained_warning(first.models)
    return [
        Section(
            "error-consistency",
            "Error consistency between networks",
            sentences,
            tuple(content),
            warning,
        )
    ]


_SHIFTS: dict[Literal["cka", "cosine"], tuple[str, str]] = {
    "cka": (
        "Unbiased linear CKA between representations of undistorted and distorted images, per "
        "layer",
        "1: the similarity structure of the images is unchanged. Bands: 95 % intervals over "
        "images. Grey lines: 95th percentile of random pairings of undistorted and distorted "
        "images.",
    ),
    "cosine": (
        "Cosine similarity between representations of an image and of its distorted copy, per "
        "layer, mean over images",
        "1: the representation of every image is unchanged up to its distance from the mean. Grey "
        "lines: mean cosine with other distorted images; values above 0 indicate that the "
        "distortion shifts all images in the same direction.",
    ),
}


def shift_section(results: Sequence[RepresentationShift]) -> list[Section]:
    """Representation shift under distortions."""
    pictures = []
    for part in chunks(
        list(dict.fromkeys(d for r in results for d in r.distortions)), _MOST_DISTORTIONS
    ):
        shown = [r for r in results if set(part) & set(r.distortions)]
        pictures += [
            Picture(
                partial(representation_shift_curves, shown, measure),
                f"{about} (means over positions), n = {shown[0].n} images.",
                reading,
                f"{measure} between undistorted and distorted representations against depth",
                name=f"representation-shift-{measure}",
                folded=measure == "cosine",
            )
            for measure, (about, reading) in _SHIFTS.items()
        ]
    formats = {
        f"{measure}{end}": "{:.3f}" for measure in _SHIFTS for end in ("", "_low", "_high", "_null")
    }
    table = Table(
        "Every network, distortion and layer.",
        table_of(results),
        {**formats, "depth": "{:.2f}"},
        folded=True,
    )
    sentences = tuple(map(shift_sentence, results))
    warning = untrained_warning(r.model for r in results)
    title = "Representation shift under distortions"
    return [Section("representation-shift", title, sentences, (*pictures, table), warning)]
