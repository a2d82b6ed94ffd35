"""The section on early reading."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, primary, untrained_baseline, untrained_warning
from mixer_probe.mixing.figures.lens import lens_curves
from mixer_probe.mixing.findings.lens import lens_sentences
from mixer_probe.mixing.lens import ClassLens

_FRACTIONS = ("accuracy", "low", "high", "agreement", "agreement_low", "agreement_high")
_DIFFERENCES = ("behind", "behind_low", "behind_high")


def lens_section(results: Sequence[ClassLens]) -> list[Section]:
    """What can be read from the residual stream of every network, and by whom."""
    shown, first = primary(results), results[0]
    pictures = [
        Picture(
            partial(lens_curves, results),
            "Accuracy of five readers of the residual stream, after the stem and after every "
            f"block; {images_text(first.images_test)}. Probes are fitted on "
            f"{first.images_train.n} other images, and Jacobians are means over "
            f"{first.n_jacobian} of these.",
            "Logit lens: the rest of the network after its last block reads the output of an "
            "earlier one. Jacobian lens: J (h − mean h) + mean logits, with J the mean derivative "
            "of the logits with respect to the activations h. Probes: ridge regression. All "
            "readers choose among the classes of the images. Bands: 95 % Wilson intervals. Grey "
            "line: chance.",
            "Accuracy of logit lens, Jacobian lens and probes against depth",
            name="lens-accuracy",
        ),
        Picture(
            partial(lens_curves, results, "agreement"),
            "Fraction of test images that are read as the network answers in the end, right or "
            "wrong.",
            "100 % after the last block for the logit lens, which is the network itself there. An "
            "untrained network may answer the same class for most images, so that much agreement "
            "is chance. Bands: 95 % Wilson intervals.",
            "Agreement of readers with the final answer against depth",
            name="lens-agreement",
            folded=True,
        ),
    ]
    table = Table(
        "Every network, reader and layer. p_chance: one-sided binomial test against chance. "
        "behind: accuracy of the Jacobian lens minus that of the reader, with Tango's interval and "
        "McNemar's p. cosine: between the Jacobian and its mean over positions. Empty where a "
        "reader is not defined.",
        table_of(results),
        dict.fromkeys((*_FRACTIONS, *_DIFFERENCES, "cosine", "chance"), "{:.3f}")
        | {"depth": "{:.2f}", "p_chance": "{:.1e}", "behind_p": "{:.1e}"},
        folded=True,
    )
    sentences = tuple(
        text for r in shown for text in lens_sentences(r, untrained_baseline(r, results))
    )
    title = "Early reading: logit lens and Jacobian lens"
    warning = untrained_warning(r.model for r in results)
    return [Section("lens", title, sentences, (*pictures, table), warning)]
