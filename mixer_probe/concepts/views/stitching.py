"""The section on model stitching."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.concepts.figures.stitching import stitching_curves, stitching_maps
from mixer_probe.concepts.findings.stitching import opposite, stitching_sentences
from mixer_probe.concepts.stitching import Stitching
from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, name_of, untrained_warning

_FRACTIONS = (
    *("donor_depth", "receiver_depth", "accuracy", "low", "high", "recovered", "recovered_low"),
    *("recovered_high", "own_accuracy", "own_low", "own_high", "chance", "r2"),
)
_FITTED = {
    "ridge": "by ridge regression on the receiver's own activations",
    "task": "on the task, through the frozen rest of the receiver",
}


def stitching_section(results: Sequence[Stitching]) -> list[Section]:
    """Which layers of each network can serve which layers of another."""
    pictures = [
        picture
        for k, directions in enumerate(_pairs(results), 1)
        for fit in _FITTED
        if any(fit in r.fits for r in directions)
        for picture in _pictures(directions, fit, k)
    ]
    table = Table(
        "Every fit, condition and pair of layers. recovered: (accuracy − chance) / (own accuracy − "
        "chance), with its interval over test images by the delta method. r2: variance of the "
        "receiver's activations that the ridge map explains on held-out training images. "
        "source_layer: the layer that was used, another one for the other training seed.",
        table_of(results),
        dict.fromkeys(_FRACTIONS, "{:.3f}") | {"l2": "{:.3g}"},
        folded=True,
    )
    models = [m for r in results for m in (r.donor, r.receiver)]
    return [
        Section(
            "stitching",
            "Model stitching",
            tuple(stitching_sentences(results)),
            (*pictures, table),
            untrained_warning(models),
        )
    ]


def _pairs(results: Sequence[Stitching]) -> list[list[Stitching]]:
    """The results, those of the two directions of a pair together."""
    groups: list[list[Stitching]] = []
    for r in results:
        if not any(r is one for group in groups for one in group):
            back = opposite(r, results)
            groups.append([r] if back is None or back is r else [r, back])
    return groups


def _pictures(directions: Sequence[Stitching], fit: str, number: int) -> list[Picture]:
    """Curves and maps of one pair of networks; the `number` tells several results of it apart."""
    r = directions[0]
    pair = f"{name_of(r.donor)} and {name_of(r.receiver)}"
    what = (
        f"Accuracy recovered when a layer of the receiver is replaced by a linear map of the "
        f"donor's, fitted {_FITTED[fit]}, on {r.images_train.n} images; "
        f"{images_text(r.images_test)}."
    )
    reading = (
        "1 (100 %): as accurate as the receiver itself; 0: chance. Shuffled pairing: in fitting "
        "the donor is given other images. Untrained donor: the same architecture before training. "
        "Class-matched noise: vectors that tell a linear probe as much of the class as the "
        "donor's, and nothing else. Another training seed of the receiver is the ceiling."
    )
    name = f"stitching-{number}-{fit}-{r.donor.name}-{r.receiver.name}"
    return [
        Picture(
            partial(stitching_curves, directions, fit),
            what,
            f"Donor's layer: that of nearest relative depth. {reading} Bands: 95 % intervals over "
            "test images.",
            f"Accuracy recovered by stitching {pair} against depth",
            name=name,
        ),
        Picture(
            partial(stitching_maps, directions, fit),
            "The same for all pairs of layers.",
            f"Rows: layers of the donor; columns: layers of the receiver. {reading}",
            f"Accuracy recovered by stitching {pair} for all pairs of layers",
            name=f"{name}-maps",
        ),
    ]
