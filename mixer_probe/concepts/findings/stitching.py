"""Sentences on model stitching: what is recovered at equal depths, how much of it the controls
recover, and how the two directions differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.concepts.stitching import LABELS, Stitching, asymmetry
from mixer_probe.core.words import interval, join, name_of, percent, points
from mixer_probe.stats import mcnemar, paired_counts
from mixer_probe.stats.claims import LEVEL

_MAPS = {"ridge": "ridge map", "task": "map trained on the task"}


def middle(r: Stitching) -> tuple[int, int]:
    """The pair of layers that sentences are about, chosen by depth alone: the receiver's layer
    whose relative depth is nearest to a half, and the donor's that is nearest to it."""
    j = int(np.abs(np.array([layer.depth for layer in r.receiver_layers]) - 0.5).argmin())
    return int(r.matched[j]), j


def recovered_sentence(r: Stitching, fit: str) -> str:
    """The accuracy recovered half-way, with the donor and under every control."""
    first = (
        f"{name_of(r.donor)} to {name_of(r.receiver)} ({_MAPS[fit]}, n = {r.n} test images): "
        f"{name_of(r.receiver)} itself is right on "
        f"{interval(r.own_accuracy, r.own_low, r.own_high)} (chance {percent(r.chance)})"
    )
    if not r.reads_class:
        return f"{first}, which is not above chance, so that nothing can be recovered."
    i, j = middle(r)
    said = [
        interval(*(values[r.fits.index(fit), k, i, j] for values in _numbers(r)))
        for k in range(len(r.conditions))
    ]
    text = (
        f"{first}. Stitched after {r.receiver_layers[j].name} from the donor's "
        f"{r.donor_layers[i].name}, it keeps {said[0]} of its accuracy above chance"
    )
    controls = [
        f"{LABELS[name]} {value}" for name, value in zip(r.conditions[1:], said[1:], strict=True)
    ]
    return f"{text}; {join(controls)}." if controls else f"{text}."


def _numbers(r: Stitching) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return r.recovered, r.recovered_low, r.recovered_high


def control_sentence(r: Stitching, fit: str) -> str:
    """At how many receiver layers accuracy with the donor differs from that under each control;
    empty without controls."""
    columns, said = np.arange(len(r.receiver_layers)), []
    tests = len(columns) * (len(r.conditions) - 1)
    donor, *others = r.right[r.fits.index(fit)][:, r.matched, columns]
    for name, right in zip(r.conditions[1:], others, strict=True):
        counts = paired_counts(donor, right)
        significant, more = mcnemar(counts) * tests <= LEVEL, counts[..., 1] - counts[..., 2]
        higher, lower = (int((significant & (sign * more > 0)).sum()) for sign in (1, -1))
        said.append(f"{LABELS[name]}: higher at {higher}, lower at {lower}")
    if not said:
        return ""
    layers = f"{len(columns)} receiver layers" if len(columns) > 1 else "one receiver layer"
    return (
        f"Accuracy with the donor's layer of nearest depth against each control, at {layers} "
        f"({_MAPS[fit]}; McNemar's tests, Bonferroni over all {tests}): {'; '.join(said)}."
    )


def asymmetry_sentence(a: Stitching, b: Stitching, fit: str) -> str:
    """How much more is recovered in one direction than in the other, half-way in the first."""
    i, j = middle(a)
    value, low, high = asymmetry(a, b, fit)[:, i, j]
    donor, receiver = name_of(a.donor), name_of(a.receiver)
    at = f"{a.donor_layers[i].name} of {donor} and {a.receiver_layers[j].name} of {receiver}"
    if np.isnan(value):
        return (
            f"The two directions between {donor} and {receiver} cannot be compared: one of the "
            "networks is not above chance by itself."
        )
    by = points(value, low, high)
    if low <= 0 <= high:
        return (
            f"Between {at} the two directions recover amounts that are not distinguishable "
            f"({_MAPS[fit]}; {donor} to {receiver} minus {receiver} to {donor}: {by})."
        )
    return (
        f"Between {at}, {donor} to {receiver} recovers {by} {'more' if value > 0 else 'less'} than "
        f"{receiver} to {donor} ({_MAPS[fit]})."
    )


def opposite(r: Stitching, results: Sequence[Stitching]) -> Stitching | None:
    """The result of the same networks, layers and test images in the other direction."""
    return next(
        (
            b
            for b in results
            if (b.donor, b.receiver, b.donor_layers, b.receiver_layers, b.fits)
            == (r.receiver, r.donor, r.receiver_layers, r.donor_layers, r.fits)
            and b.images_test.fingerprint == r.images_test.fingerprint
        ),
        None,
    )


def stitching_sentences(results: Sequence[Stitching]) -> list[str]:
    """All sentences on several results; those on the two directions of a pair once."""
    said, compared = [], list[Stitching]()
    for r in results:
        for fit in r.fits:
            said += [recovered_sentence(r, fit), control_sentence(r, fit)]
        back = opposite(r, results)
        if back is not None and back is not r and not any(back is c for c in compared):
            said += [asymmetry_sentence(r, back, fit) for fit in r.fits]
        compared.append(r)
    return [text for text in said if text]
