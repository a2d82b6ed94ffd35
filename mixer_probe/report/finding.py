"""`Finding`: one sentence that a study's numbers bear out, with those numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from mixer_probe.figures.invariance import FAMILIES
from mixer_probe.figures.style import base_name
from mixer_probe.report.skipped import Skipped
from mixer_probe.report.texts import studied
from mixer_probe.results import ModelRecord, Result, storable
from mixer_probe.stats import prediction_limit
from mixer_probe.stats.differences import difference_p

Verdict = Literal["found", "none", "missing", "context"]
NAN = float("nan")
# A superlative ("clearest", "most") is printed where the null of the maximum has so many draws, or a closed form, and p <= LEVEL.
DRAWS, LEVEL = 999, 0.05
R = TypeVar("R", bound=Result)


@storable
@dataclass(frozen=True)
class Number:
    """What a sentence rests on: `value` with its 95 % interval and its null, NaN where there are none; `n` observations.

    `where` is the layer, pair of layers or channel that has it."""

    kind: str
    value: float
    low: float = NAN
    high: float = NAN
    null: float = NAN
    n: int = 0
    where: str = ""


@storable
@dataclass(frozen=True)
class Finding:
    """A `sentence` that answers `question` (a key of `narrative.QUESTIONS`) for `networks`.

    `verdict` is "found" where the numbers are beyond intervals and null, "none" where they are not, "missing" where the results
    do not hold what it takes, and "context" for numbers that no test belongs to."""

    question: str
    networks: str
    sentence: str
    verdict: str
    numbers: tuple[Number, ...] = ()


def beyond_baseline(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Which `values` [layer] are larger than one more layer of the untrained baseline [layer] would be in 95 % of cases, over all
    layers (prediction limit by Student's t, Bonferroni): none where the baseline has a single layer."""
    limit = prediction_limit(baseline[np.isfinite(baseline)], LEVEL / max(len(values), 1))
    beyond: np.ndarray = np.isfinite(values) & (values > limit)
    return beyond


def extremes_differ(numbers: Sequence[Number]) -> bool:
    """Whether the largest and the smallest of some numbers with intervals differ: by the p-value of their difference times the
    number of pairs that could have been the extremes (Bonferroni)."""
    known = [n for n in numbers if np.isfinite([n.value, n.low, n.high]).all()]
    if len(known) < 2:
        return False
    top, bottom = max(known, key=lambda n: n.value), min(known, key=lambda n: n.value)
    p = float(difference_p(bottom.value, bottom.low, bottom.high, top.value, top.low, top.high))
    return p * len(known) * (len(known) - 1) / 2 <= LEVEL


def leader(numbers: Sequence[Number], lowest: bool = False) -> int | None:
    """Index of the number that is larger than every other one (smaller where `lowest`), each by the p-value of their difference;
    None where no number is.

    Of equal numbers one is ahead of the runner-up in at most 5 % of cases, however many there are: no correction is due."""
    values = np.array([n.value for n in numbers], dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return None
    best = int(known[(values[known] * (-1 if lowest else 1)).argmax()])
    others = known[known != best]
    low, high = (np.array([getattr(n, side) for n in numbers], dtype=np.float64) for side in ("low", "high"))
    p = difference_p(values[others], low[others], high[others], values[best], low[best], high[best])
    return best if bool((p <= LEVEL).all()) else None


def missing(question: str, what: str, needs: str, results: Sequence[Result], step: str = "") -> Finding:
    """A finding that cannot be had, with the reason: that of a step of the study that was left out and whose name begins with
    `step`, or else what it `needs`."""
    reasons = [r.reason for r in results if isinstance(r, Skipped) and step and r.step.startswith(step)]
    return Finding(question, "", f"{what}: left out, {reasons[0] if reasons else needs}", "missing")


def own_models(models: Sequence[ModelRecord]) -> set[str]:
    """Names of the networks that are there for their own sake: no twins, no raw pixels."""
    return {m.name for m in studied(models) if m.family != "pixels"}


def twin_name(model: ModelRecord) -> str:
    """The name that the untrained twin of a network has."""
    return model.name + "?untrained"


def is_twin(model: ModelRecord, own: set[str]) -> bool:
    """Whether a network is the untrained twin of one of `own`."""
    return model.name not in own and base_name(model.name) in own


def of_kind(results: Sequence[Result], kind: type[R]) -> list[R]:
    """The results of one kind."""
    return [r for r in results if isinstance(r, kind)]


def family(model: ModelRecord) -> str:
    """ "Mixer", "ViT", "CNN"."""
    return FAMILIES.get(model.family, model.family)


def families(a: ModelRecord, b: ModelRecord) -> str:
    """ "Mixer × ViT", in one order for both directions."""
    known = list(FAMILIES)
    order = sorted((a, b), key=lambda m: known.index(m.family) if m.family in known else len(known))
    return " × ".join(family(m) for m in order)


def labelled(finding: Finding, prefix: str) -> Finding:
    """The finding with words before its sentence."""
    return replace(finding, sentence=f"{prefix}{finding.sentence}")


def shown(n: Number, digits: int = 2) -> str:
    """ "0.61 [0.55, 0.66]", or the value alone where there is no interval."""
    bounds = "" if np.isnan(n.low) else f" [{n.low:.{digits}f}, {n.high:.{digits}f}]"
    return f"{n.value:.{digits}f}{bounds}"


def share(n: Number) -> str:
    """ "61.0 % [58.0 %, 63.9 %]"."""
    bounds = "" if np.isnan(n.low) else f" [{100 * n.low:.1f} %, {100 * n.high:.1f} %]"
    return f"{100 * n.value:.1f} %{bounds}"


def points(n: Number) -> str:
    """ "12.3 points [9.8, 14.7]"."""
    return f"{100 * n.value:.1f} points [{100 * n.low:.1f}, {100 * n.high:.1f}]"


def span(values: Sequence[float], digits: int = 2) -> str:
    """ "0.41 to 0.52", or one number where they are the same."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
