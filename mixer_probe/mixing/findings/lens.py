"""Sentences on early reading: from which depth each reader is above chance, how readers differ, and
what averaging over positions loses."""

from __future__ import annotations

import numpy as np

from mixer_probe.core.words import interval, join, name_of, percent, points
from mixer_probe.mixing.lens import AVERAGED, LOGIT, POOLED, POSITIONWISE, ClassLens
from mixer_probe.stats import difference_interval, paired_counts
from mixer_probe.stats.claims import LEVEL


def above_chance(r: ClassLens) -> np.ndarray:
    """Whether each reader is above chance after each layer [reader, layer]: one-sided binomial
    tests, Bonferroni over the layers where the reader is defined."""
    return np.asarray(r.p_chance * r.defined.sum(1, keepdims=True) <= LEVEL)


def depth_sentences(r: ClassLens) -> list[str]:
    """The accuracy of the network, and from which layer on each reader is above chance after every
    layer."""
    first = (
        f"{name_of(r.model)}: classes read from the residual stream of n = {r.n} test images "
        f"(chance {percent(r.chance)})"
    )
    if not (r.final >= 0).all():
        return [f"{first}. For the lenses {r.no_logit_lens[-1]}."]
    above, found, none = above_chance(r), [], []
    for k, reader in enumerate(r.readers):
        known = np.flatnonzero(r.defined[k])
        # The layers at the end that are all above chance.
        run = known[np.flip(np.cumprod(np.flip(above[k, known]))).astype(bool)]
        if len(run):
            i = run[0]
            value = interval(r.accuracy[k, i], r.low[k, i], r.high[k, i])
            found.append(f"{reader} from {r.layers[i].name} on ({value} there)")
        else:
            none.append(reader)
    text = f"{first}: the network answers {interval(*r.own_accuracy)} right"
    tests = "one-sided binomial tests, Bonferroni over layers"
    if found:
        text += f". Accuracy is above chance ({tests}) for the {join(found)}"
    if none:
        text += f". Accuracy is not above chance after the last layer for the {join(none)}"
    return [text + "."]


def comparison_sentence(r: ClassLens, reader: str) -> str:
    """After which layers the Jacobian lens reads more, and fewer, images than another reader, with
    the difference of the layer where it is significant and farthest from zero."""
    k = r.readers.index(reader)
    known = np.flatnonzero(np.isfinite(r.behind[k]))
    what = "its mean over positions" if reader == AVERAGED else f"the {reader}"
    if not len(known):
        return f"The Jacobian lens cannot be compared with {what}: {_reason(r, reader)}."
    value, p = r.behind[k, known], r.behind_p[k, known] * len(known)
    layers = f"Bonferroni over {len(known)} layers" if len(known) > 1 else "one layer"
    tests, parts = f"McNemar's test, {layers}", []
    for word, sign in (("more", 1), ("fewer", -1)):
        chosen = known[(p <= LEVEL) & (sign * value > 0)]
        if len(chosen):
            i = chosen[np.abs(r.behind[k, chosen]).argmax()]
            ends = sorted((sign * r.behind_low[k, i], sign * r.behind_high[k, i]))
            by = points(sign * r.behind[k, i], *ends)
            at = "" if len(chosen) == 1 else f" after {r.layers[i].name}"
            parts.append(f"{word} images than {what} after {_runs(r, chosen)}, by {by}{at}")
    if parts:
        return f"The Jacobian lens reads {', and '.join(parts)} ({tests})."
    i = known[np.abs(value).argmax()]
    by = points(r.behind[k, i], r.behind_low[k, i], r.behind_high[k, i])
    return (
        f"Between the Jacobian lens and {what} no difference is significant ({tests}; {by} after "
        f"{r.layers[i].name})."
    )


def _runs(r: ClassLens, chosen: np.ndarray) -> str:
    """Names of layers, of neighbours the first and last: "blocks.0 to blocks.3 and blocks.5"."""
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
    ends = [[r.layers[i].name for i in dict.fromkeys((run[0], run[-1]))] for run in runs]
    return join(" to ".join(names) for names in ends)


def _reason(r: ClassLens, reader: str) -> str:
    """Why a reader, or the Jacobian lens, is defined nowhere."""
    reasons = r.no_logit_lens if reader == LOGIT and not all(r.no_jacobian) else r.no_jacobian
    return next(reason for reason in reasons if reason)


def position_sentence(r: ClassLens) -> str:
    """How similar the Jacobian is from one position to the next, after the first and the last
    layer."""
    known = np.flatnonzero(np.isfinite(r.cosine))
    if not len(known):
        return "The Jacobian is exactly zero at all positions of every layer."
    said = [
        f"{r.cosine[i]:.2f} after {r.layers[i].name} (unrelated positions: "
        f"{r.same_everywhere[i]:.2f})"
        for i in dict.fromkeys((known[0], known[-1]))
    ]
    return f"The cosine between the Jacobian and its mean over positions is {join(said)}."


def baseline_sentence(r: ClassLens, baseline: ClassLens) -> str:
    """After how many layers each reader of the untrained baseline is above chance, and what
    training changes for the probes after the first and the last block."""
    above = above_chance(baseline)
    counts = [
        f"{reader} {above[k].sum()} of {baseline.defined[k].sum()}"
        for k, reader in enumerate(baseline.readers)
        if baseline.defined[k].any()
    ]
    text = (
        f"Untrained baseline, number of layers after which accuracy is above chance: {join(counts)}"
    )
    if baseline.images_test.fingerprint != r.images_test.fingerprint:
        return text + "."
    blocks = [i for i, layer in enumerate(r.layers) if layer.kind == "block"]
    changes = []
    for reader in (POSITIONWISE, POOLED):
        k = r.readers.index(reader)
        said = []
        for i in dict.fromkeys((blocks[0], blocks[-1])):
            pair = paired_counts(r.right[k, i], baseline.right[k, i])
            low, high = difference_interval(pair)
            change = points((pair[1] - pair[2]) / r.n, float(low), float(high))
            said.append(f"{change} after {r.layers[i].name}")
        changes.append(f"{join(said)} for the {reader}")
    return f"{text}. Accuracy, trained minus untrained: {join(changes)}."


def lens_sentences(r: ClassLens, baseline: ClassLens | None) -> list[str]:
    """All sentences on one network."""
    said = depth_sentences(r)
    if not all(r.no_jacobian):
        said += [comparison_sentence(r, other) for other in (LOGIT, POOLED, POSITIONWISE, AVERAGED)]
        said.append(position_sentence(r))
    return said + ([baseline_sentence(r, baseline)] if baseline is not None else [])
