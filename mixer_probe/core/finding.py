"""`Finding`: one sentence that is supported by a study's numbers, with those numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.skipped import Skipped
from mixer_probe.core.words import FAMILIES, base_name, studied

Verdict = Literal["found", "none", "missing", "context"]
NAN = float("nan")
R = TypeVar("R", bound=Result)


@storable
@dataclass(frozen=True)
class Number:
    """What a sentence rests on: `value` with its 95 % interval and its null, NaN where there are
    none; `n` observations.

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

    `verdict` is "found" where the numbers are beyond intervals and null, "none" where they are not,
    "missing" where the results do not hold what it takes, and "context" for numbers that no test
    belongs to."""

    question: str
    networks: str
    sentence: str
    verdict: str
    numbers: tuple[Number, ...] = ()


def missing(
    question: str, what: str, needs: str, results: Sequence[Result], step: str = ""
) -> Finding:
    """A finding that is not available, with the reason: that of a skipped step of the study whose
    name begins with `step`, or else what it `needs`."""
    reasons = [
        r.reason for r in results if isinstance(r, Skipped) and step and r.step.startswith(step)
    ]
    reason = reasons[0] if reasons else needs
    return Finding(question, "", f"{what}: not available, {reason.removesuffix('.')}.", "missing")


def primary_models(models: Sequence[ModelRecord]) -> set[str]:
    """Names of the networks under study: no untrained baselines, no raw pixels."""
    return {m.name for m in studied(models) if m.family != "pixels"}


def baseline_name(model: ModelRecord) -> str:
    """The name of the untrained baseline of a network."""
    return model.name + "?untrained"


def is_baseline(model: ModelRecord, own: set[str]) -> bool:
    """Whether a network is the untrained baseline of one of `own`."""
    return model.name not in own and base_name(model.name) in own


def filter_type(results: Sequence[Result], kind: type[R]) -> list[R]:
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


def as_percent(n: Number) -> str:
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
