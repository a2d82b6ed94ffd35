"""What the report's sentences claim of data without any effect: at most 6 % of the sentences may
claim something.

A row of `CASES` is a sentence, where its null data come from, and the words with which it claims.
Results are built from random numbers, so that hundreds of reports take a second; the counts are
printed with `pytest -s`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mixer_probe import attribution as at
from mixer_probe.attribution.findings import (
    attribution_findings,
    conductance_sentence,
    curves_sentence,
    faithfulness_sentences,
    methods_sentence,
    networks_sentence,
    randomisation_sentence,
)
from mixer_probe.core.dimensions import select
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models.layer import Layer
from mixer_probe.stats import FEWEST

Random = np.random.Generator
N = FEWEST
RUNS = 200
MOST = 0.06
IDS = tuple(f"i{k}" for k in range(N))
IMAGES = ImagesRecord("demo", "test", N, 3, "s", limit=N, seed=0)


@dataclass(frozen=True)
class Case:
    """`say` makes the sentences of one report on null data; a sentence that `claims` is a false
    positive."""

    say: Callable[[Random], str]
    claims: str


def record(name: str) -> ModelRecord:
    return ModelRecord(f"zoo:{name}", "mixer", True, "w", name, 1)


def curves(random: Random) -> at.PerturbationCurves:
    """Four methods whose maps are random orders like the others; some images are easier to break
    than others."""
    shape = (6, N, 5)
    hard = random.beta(2, 5, size=(1, N, 1))
    fall, rise = (np.clip(hard + 0.2 * (random.beta(1, 4, shape) - 0.2), 0, 1) for _ in range(2))
    methods = ("saliency", "occlusion", "gradcam", "integrated_gradients")
    texts = ("grey", "the image blurred")
    head = (record("net"), IMAGES, methods, IDS, np.zeros(N, int), (4, 4), np.linspace(0, 1, 5))
    return at.PerturbationCurves(*head, fall[:4], rise[:4], fall[4:], rise[4:], *texts, 2)


def faithfulness(random: Random) -> at.Faithfulness:
    """Maps that tell as much of removals as the uniform one, and move alike under noise."""
    told = random.beta(4, 2, size=(1, N)) * random.lognormal(0, 0.2, size=(4, N))
    moved = random.lognormal(0, 0.4, size=(3, N)) * random.lognormal(0, 0.4, size=(1, N))
    methods = ("saliency", "occlusion", "gradcam")
    return at.Faithfulness(
        record("net"), IMAGES, methods, IDS, (4, 4), "grey", told[:3], told[3], moved, 24, 0.3, 0.02
    )


def check(excess: float, draws: int = 5) -> Callable[[Random], at.RandomisationCheck]:
    """Maps of random weights that are more like the trained network's than other images' are, by
    `excess`."""

    def make(random: Random) -> at.RandomisationCheck:
        # A map that is like those of other images raises the means of all of them.
        alike = 0.1 * random.normal(size=N)
        null = 0.1 + alike + (alike.sum() - alike) / (N - 1)
        shared = 0.03 * random.normal(size=(draws, 1)) + 0.1 * random.normal(size=(1, N))
        last = 0.1 + alike + excess + shared + 0.15 * random.normal(size=(draws, N))
        stages = np.stack([np.ones((draws, N)), last], 1)
        return at.RandomisationCheck(
            record("net"),
            IMAGES,
            "saliency",
            ("trained", "all"),
            IDS,
            (8, 8),
            stages,
            stages,
            stages,
            null,
        )

    return make


def maps(random: Random, methods: tuple[str, ...], models: tuple[str, ...]) -> at.Agreement:
    """Maps that all look at the middle, and otherwise at nothing that the image has."""
    middle = np.exp(-np.hypot(*np.meshgrid(*[np.linspace(-2, 2, 8)] * 2)))
    nothing = np.zeros(N)
    made = [
        at.Attribution(
            model=record(model),
            images=IMAGES,
            method=method,
            text="",
            signed=False,
            layer=None,
            baseline="grey",
            baseline_name="grey",
            settings={},
            ids=IDS,
            target_names=(),
            predicted_names=(),
            grid=(8, 8),
            crop_pct=1.0,
            crop_mode="center",
            maps=middle + random.random((N, 8, 8)),
            **dict.fromkeys(
                (
                    "targets",
                    "predicted",
                    "labels",
                    "logit",
                    "logit_difference",
                    "convergence_delta",
                ),
                nothing,
            ),
            **dict.fromkeys(("steps", "change"), nothing),
        )
        for method, model in zip(methods, models, strict=True)
    ]
    return at.agreement(made, permutations=99, seed=int(random.integers(2**31)))


def methods_agree(random: Random) -> at.Agreement:
    return maps(random, ("saliency", "occlusion", "gradcam"), ("a",) * 3)


def networks_agree(random: Random) -> at.Agreement:
    found = maps(random, ("saliency",) * 3, ("a", "b", "c"))
    return replace(found, models=tuple(replace(m, fingerprint=m.name) for m in found.models))


def conductance(random: Random) -> at.Conductance:
    """Forty units of six layers that all carry the same."""
    layers = tuple(
        Layer(f"blocks.{i}.mlp_tokens.act", "other", (i + 1) / 6, None, 40, 0, 4, order=i)
        for i in range(6)
    )
    values = tuple(
        random.normal(size=(N, 40)) * random.lognormal(0, 0.5, size=(N, 40)) for _ in layers
    )
    errors = np.zeros((6, N))
    head = (record("net"), IMAGES, layers, "grey", IDS, np.zeros(N, int), np.ones(N), values)
    return at.Conductance(*head, np.full(N, 32), errors, errors)


def finding(
    make: Callable[[Random], at.Agreement | at.PerturbationCurves], first: str
) -> Callable[[Random], str]:
    def say(random: Random) -> str:
        return " ".join(
            f.verdict
            for f in attribution_findings([make(random)])
            if f.sentence.startswith(first) or first == ""
        )

    return say


CASES = {
    "deletion: the best method": Case(
        lambda r: curves_sentence(curves(r), "deletion"), "performs best|outperforms random"
    ),
    "insertion: the best method": Case(
        lambda r: curves_sentence(curves(r), "insertion"), "performs best|outperforms random"
    ),
    "infidelity: predicts best": Case(
        lambda r: next(faithfulness_sentences(faithfulness(r))), "removals best"
    ),
    "infidelity: against the uniform map": Case(
        lambda r: next(faithfulness_sentences(faithfulness(r))), "better than|worse than"
    ),
    "sensitivity: lower than": Case(
        lambda r: list(faithfulness_sentences(faithfulness(r)))[1], "lower than"
    ),
    "randomisation: it notices (what remains is 0.1)": Case(
        lambda r: randomisation_sentence(check(0.1)(r)), "passes the sanity"
    ),
    "randomisation: remains (what remains is 0)": Case(
        lambda r: randomisation_sentence(check(0.0)(r)), "do not depend only on"
    ),
    "methods: agree most": Case(lambda r: methods_sentence(methods_agree(r)), "agree most"),
    "methods: agree at all": Case(
        lambda r: methods_sentence(methods_agree(r)), r"\b[1-9]\d* of \d+ pairs"
    ),
    "networks: agree at all": Case(
        lambda r: networks_sentence(networks_agree(r)), r"^(?!.*(not distinguishable.*){3})"
    ),
    "conductance: a unit carries most": Case(
        lambda r: conductance_sentence(conductance(r)), r"\b[1-9]\d* of \d+ layers have"
    ),
    "finding: networks agree": Case(finding(networks_agree, ""), "found"),
    "finding: maps beat random orders": Case(finding(curves, "net"), "found"),
}


@pytest.mark.parametrize("name", CASES)
def test_sentences_claim_little_of_nothing(name: str) -> None:
    case = CASES[name]
    random = np.random.default_rng(list(name.encode()))
    texts = [case.say(random) for _ in range(RUNS)]
    claimed = [text for text in texts if re.search(case.claims, text)]
    print(f"\n{len(claimed):4d} of {RUNS} claim: {name}")
    assert len(claimed) <= MOST * RUNS, claimed[0]


def test_a_claim_that_is_due_is_made() -> None:
    """The same sentences with effects, so that silence alone does not pass."""
    random = np.random.default_rng(0)
    found = curves(random)
    better = replace(found, deletion=np.concatenate([0.3 * found.deletion[:1], found.deletion[1:]]))
    assert "saliency performs best" in curves_sentence(better, "deletion")
    assert "the method passes the sanity check" in randomisation_sentence(check(-0.15)(random))
    assert "do not depend only on what the network learned" in randomisation_sentence(
        check(0.4)(random)
    )
    assert "inconclusive" in randomisation_sentence(check(0.09)(random))
    alike = replace(check(0.0)(random), null_spearman=np.full(N, 0.93))
    assert "no verdict, because maps of different images are similar" in randomisation_sentence(
        alike
    )
    assert "one re-initialisation is too few" in randomisation_sentence(check(0.4, draws=1)(random))
    noisy = faithfulness(random)
    assert (
        "lower than that of Grad-CAM"
        in list(
            faithfulness_sentences(replace(noisy, sensitivity=noisy.sensitivity * [[1], [2], [4]]))
        )[1]
    )
    busy = conductance(random)
    values = tuple(np.concatenate([v[:, :1] + 40, v[:, 1:]], 1) for v in busy.values)
    assert (
        "6 of 6 layers have a unit with significantly higher conductance"
        in conductance_sentence(replace(busy, values=values))
    )


@pytest.mark.parametrize("make", [curves, faithfulness, check(0.4), methods_agree, conductance])
def test_too_few_images_bear_no_claim(make: Callable[[Random], object]) -> None:
    """Everything that is said of n images says so where n is too small."""
    found = make(np.random.default_rng(0))
    few = select(found, "image", range(6))
    sentences = {
        at.PerturbationCurves: lambda r: [curves_sentence(r, "deletion")],
        at.Faithfulness: lambda r: list(faithfulness_sentences(r)),
        at.RandomisationCheck: lambda r: [randomisation_sentence(r)],
        at.Agreement: lambda r: [methods_sentence(r)],
        at.Conductance: lambda r: [conductance_sentence(r)],
    }[type(found)]
    for text in sentences(few):
        assert "6 images are too few for a claim, which requires 12" in text
