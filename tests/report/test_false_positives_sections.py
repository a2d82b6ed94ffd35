"""What sentences on probes, cost, units, distortions, dissection and differences of reports claim
of data without an effect.

Every row makes one sentence from numbers in which nothing is to be found, or, with `planted`, one
thing; it says whether the sentence claims anything. At most 6 % of the null runs may, and most of
the planted ones must."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mixer_probe.channels import ChannelPage, Exhibit
from mixer_probe.channels.views.dissection import detection_sentence
from mixer_probe.channels.views.pages import pages_section
from mixer_probe.concepts import ConceptMatches, ConceptSharing, Stitching, match_concepts
from mixer_probe.concepts.findings.sharing import sharing_sentences
from mixer_probe.concepts.findings.stitching import asymmetry_sentence, control_sentence
from mixer_probe.concepts.views.matches import matches_sentence
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.core.section import Picture, Section
from mixer_probe.cost.findings import accuracy_cost_sentences
from mixer_probe.cost.frontier import COSTS, AccuracyCost
from mixer_probe.images.distortions import LowPass, PatchShuffle, Shift
from mixer_probe.invariance import compare_architectures, error_consistency
from mixer_probe.invariance.findings import consistency_sentences, kind_sentence, shift_sentence
from mixer_probe.mixing import Lesions
from mixer_probe.mixing.findings.lens import above_chance, lens_sentences
from mixer_probe.mixing.findings.lesions import lesion_sentences
from mixer_probe.mixing.findings.spatial_mixing import (
    architecture_sentence,
    training_sentence,
)
from mixer_probe.mixing.lens import READERS, ClassLens
from mixer_probe.mixing.quantities import QUANTITIES, SpatialMixing
from mixer_probe.probing import ConfusionMatrix, ProbeResult, calibration
from mixer_probe.probing.findings import (
    calibration_sentence,
    code_sentence,
    confusion_sentence,
    control_code_sentence,
    probe_findings,
    probe_sentence,
)
from mixer_probe.report.diff import ReportDiff
from mixer_probe.report.findings_control import _baseline_probe
from mixer_probe.report.sections_diff import findings as difference_sentences
from mixer_probe.similarity.findings import Profile, depth_finding, last_layer_findings
from mixer_probe.stats import wilson_interval
from mixer_probe.weights.findings import pairs_finding
from mixer_probe.weights.units import matching_null, measure_units, unit_rows
from mixer_probe.weights.views.paper import depth_sentence
from mixer_probe.weights.views.units import write_sentences
from tests.concepts.samples import answers, stitchings
from tests.invariance.planted import answers_right
from tests.probes import CLASSES, coded, confused, control_coded, layers_of, record
from tests.probes import accuracy as probe_of_numbers

Random = np.random.Generator
MODEL = ModelRecord("net", "mixer", True, "", "a" * 64, 10)
LAYERS, N = 6, 200
WILSON = 1.96


# -- probes ----------------------------------------------------------------------------------------


def probe(
    rng: Random, fractions: Any, labels: np.ndarray | None = None, name: str = "net"
) -> ProbeResult:
    """A probe whose layers are right on so many images; what makes an image easy is the same for
    all layers, by half."""
    fractions = np.asarray(fractions, dtype=float)
    labels = np.arange(N) % 4 if labels is None else labels
    own, common = (
        rng.random((len(fractions), N)),
        np.random.default_rng(int(rng.integers(1 << 30))).random(N),
    )
    right = np.where(rng.random((len(fractions), N)) < 0.5, own, common) < fractions[:, None]
    return answered(
        np.where(right, labels, (labels + 1 + rng.integers(0, 3, right.shape)) % 4), labels, name
    )


def answered(predicted: np.ndarray, labels: np.ndarray, name: str = "net") -> ProbeResult:
    """A probe with these answers [layer, image]."""
    right = (predicted == labels).sum(1)
    low, high = wilson_interval(right, np.full(len(right), N))
    chance = np.bincount(labels).max() / N
    made = probe_of_numbers(name, layers=len(predicted), trained="untrained" not in name)
    numbers = {
        "accuracy": right / N,
        "low": low,
        "high": high,
        "predicted": predicted,
        "labels": labels,
        "chance": chance,
    }
    return replace(made, n_test=N, untrained=None, **numbers)


def guesses(rng: Random, name: str = "net") -> ProbeResult:
    """Answers to labels that say nothing."""
    return answered(rng.integers(0, 4, (LAYERS, N)), rng.integers(0, 4, N), name)


def best_layer(rng: Random, planted: bool) -> bool:
    return "highest accuracy" in probe_sentence(
        probe(rng, [0.5, 0.5, 0.5, 0.8 if planted else 0.5, 0.5, 0.5])
    )


def training_adds(rng: Random, planted: bool) -> bool:
    twin = probe(rng, [0.5] * LAYERS, name="net?untrained")
    text = probe_sentence(replace(probe(rng, [0.7 if planted else 0.5] * LAYERS), untrained=twin))
    return "training adds" in text or "training costs" in text


def readable(rng: Random, planted: bool) -> bool:
    """Random labels."""
    made = probe(rng, [0.5] * LAYERS) if planted else guesses(rng)
    return probe_findings([made])[0][0].verdict == "found"


def over_the_twin(rng: Random, planted: bool) -> bool:
    """The last layer against the best one of as many of the twin."""
    twin = probe(rng, [0.5] * LAYERS, name="net?untrained")
    text = probe_findings(
        [replace(probe(rng, [0.8 if planted else 0.5] * LAYERS), untrained=twin)]
    )[0][0].sentence
    return "untrained baseline" in text and "no significant difference" not in text


def halfway_order(rng: Random, planted: bool) -> bool:
    """Four networks that become readable at the same depth."""
    rise = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    early = [0.8] * LAYERS if planted else rise
    found, _ = probe_findings(
        [probe(rng, early if k == 0 else rise, name=f"net{k}") for k in range(3)]
    )
    return any(f.networks == "all" and f.verdict == "found" for f in found)


def twin_reads(rng: Random, planted: bool) -> bool:
    """The best of the layers of a twin, with random labels."""
    return (
        _baseline_probe(probe(rng, [0.5] * LAYERS) if planted else guesses(rng), None).verdict
        == "found"
    )


def twin_and_pixels(rng: Random, planted: bool) -> bool:
    raw = probe(rng, [0.45])
    text = _baseline_probe(probe(rng, [0.7 if planted else 0.45] * LAYERS), raw).sentence
    return "more than raw" in text or "less than raw" in text


def confusion(rng: Random, right: Any, taken: Any = (1, 1, 1)) -> ConfusionMatrix:
    counts = np.zeros((1, 4, 4), dtype=int)
    for k in range(4):
        wrong = np.asarray(taken if k == 0 else (1, 1, 1)) * (1 - right[k])
        p = np.insert(wrong / sum(taken if k == 0 else (1, 1, 1)), k, right[k])
        counts[0, k] = rng.multinomial(50, p)
    return replace(confused("net"), layers=layers_of(1), counts=counts)


def classes(rng: Random, planted: bool) -> bool:
    text = confusion_sentence(confusion(rng, (0.97 if planted else 0.6, 0.6, 0.6, 0.6)))
    return "highest for" in text or "lowest for" in text


def confusions(rng: Random, planted: bool) -> bool:
    return "most frequent" in confusion_sentence(
        confusion(rng, (0.4, 0.7, 0.7, 0.7), (8, 1, 1) if planted else (1, 1, 1))
    )


def calibrated(rng: Random, planted: bool) -> bool:
    """Answers that are right as often as they say, or half as often."""
    p = rng.dirichlet((1, 1, 1, 1), N)
    honest = np.array([rng.choice(4, p=row) for row in p])
    labels = np.where(rng.random(N) < 0.5, honest, rng.integers(0, 4, N)) if planted else honest
    made = replace(answered(p.argmax(1)[None], labels), probabilities=p[None])
    return "significantly miscalibrated" in calibration_sentence(
        calibration(made, seed=int(rng.integers(1 << 30)))
    )


def shortest_code(rng: Random, planted: bool) -> bool:
    """Three random orders of the images."""
    bits = (
        40
        + rng.standard_normal((LAYERS, 3))
        - (20 * (np.arange(LAYERS) == 2)[:, None] if planted else 0)
    )
    mean, half = bits.mean(1), 4.3 * bits.std(1, ddof=1) / 3**0.5
    code = replace(
        coded("net", layers=LAYERS),
        bits=bits,
        compression=80 / mean,
        low=80 / (mean + half),
        high=80 / (mean - half),
    )
    return ", largest " in code_sentence(code, [code])


def shorter_groups(rng: Random, planted: bool) -> bool:
    """Groups that are one random grouping of the classes more."""
    bits = 40 + rng.standard_normal((1, 31)) - (10 * (np.arange(31) == 0) if planted else 0)
    code = control_coded("net", layers=1)
    controls = np.repeat(code.controls[:1], 30, axis=0)
    code = replace(code, bits=bits[:, :1], controls=controls, control_bits=bits[:, 1:, None])
    return ", significantly fewer than random groupings" in control_code_sentence(code)


# -- cost ------------------------------------------------------------------------------------------


def costs(rng: Random, planted: bool, networks: int = 8) -> str:
    value, half = 0.6 + 0.03 * rng.standard_normal((1, networks)), WILSON * 0.03
    value[0, 3] += 0.3 if planted else 0
    cost = rng.lognormal(0, 1, (4, networks))
    cost[:, 3] = 0.01 if planted else cost[:, 3]
    models = tuple(record(f"net{k}") for k in range(networks))
    images = ImagesRecord("demo", "test", N, 4, "0" * 64)
    found = AccuracyCost(
        models,
        images,
        ("linear probe",),
        value,
        value - half,
        value + half,
        COSTS,
        cost,
        N,
        0.25,
        "a CPU",
    )
    return accuracy_cost_sentences(found)[0]


def most_accurate(rng: Random, planted: bool) -> bool:
    return "is the most accurate" in costs(rng, planted)


def beaten(rng: Random, planted: bool) -> bool:
    text = costs(rng, planted)
    return text.count("none is dominated") != text.count("By ")


# -- weights ---------------------------------------------------------------------------------------


def units_with(paired: list[np.ndarray]) -> Any:
    """Units of blocks, of which so many have an opposite beyond random phases."""
    return SimpleNamespace(
        model=MODEL,
        blocks=tuple(map(str, range(len(paired)))),
        chance=0.05,
        surrogates=999,
        paired=lambda i: paired[i],
    )


def opposite_pairs(rng: Random, planted: bool) -> bool:
    """Units of iid weights, or half of them the opposites of the others."""
    maps = rng.standard_normal((8, 3, 3))
    maps[4:] = -maps[:4] if planted else maps[4:]
    units = measure_units(maps, (8, 8), 999, 1, int(rng.integers(1 << 30)))
    return pairs_finding(units_with([units.partner_p <= 0.05 + 1e-9]), None).verdict == "found"


def opposite_pairs_beside_the_baseline(rng: Random, planted: bool) -> bool:
    """As many pairs in both: smooth weights have more than random phases give."""
    own, twin = (
        [np.repeat(rng.random(32) < fraction, 2) for _ in range(4)]
        for fraction in (0.6 if planted else 0.3, 0.3)
    )
    return pairs_finding(units_with(own), units_with(twin)).verdict == "found"


def written(rng: Random, planted: bool) -> bool:
    """Units that write to other places than they read."""
    rows = []
    for i in range(12):
        read, write = (unit_rows(rng.standard_normal((16, 16))) for _ in range(2))
        table = read @ (read + 0.5 * write if planted else write).T
        mean, sd = matching_null(table)
        rows.append((f"blocks.{i}", table.diagonal().mean(), mean, sd))
    columns = ["block", "cosine_with_read", "null_cosine_with_read", "null_cosine_with_read_sd"]
    frame = pd.DataFrame(rows, columns=columns)
    found = SimpleNamespace(
        sides=("read", "write"), model=MODEL, form="Mixer", summary=lambda _side: frame
    )
    return "in no block" not in write_sentences(found)[0]  # type: ignore[arg-type]


def paper(rng: Random, planted: bool) -> str:
    """Blocks whose units have no arrangement in the plane."""
    i, _ = np.indices((4, 4))
    wave = np.cos(np.pi / 2 * i) * planted * 3
    maps = [
        rng.standard_normal((12, 4, 4)) + (wave + 8 * (b == 0) * planted * np.cos(np.pi / 2 * i))
        for b in range(4)
    ]
    sets = [measure_units(m, (8, 8), 1, 5, int(rng.integers(1 << 30))) for m in maps]
    frame = pd.DataFrame(
        {
            "block": [f"blocks.{b}" for b in range(4)],
            "mean_frequency": [s.statistics.frequency for s in sets],
            "shuffled_mean_frequency": [float(np.mean(s.shuffled.frequency)) for s in sets],
        }
    )
    units = SimpleNamespace(read=sets, shuffles=5, summary=lambda: frame)
    return depth_sentence(SimpleNamespace(model=MODEL, units=units))  # type: ignore[arg-type]


def smoother(rng: Random, planted: bool) -> bool:
    text = paper(rng, planted)
    return "no more than expected by chance" not in text or "lowest in" in text


# -- distortions -----------------------------------------------------------------------------------


def networks(rng: Random, fractions: np.ndarray, n: int = 100) -> list[Any]:
    """Six networks of three families, each right on a share [network, plain or distorted] of the
    images."""
    kinds = (PatchShuffle(4),)
    families = ("mixer", "mixer", "vit", "vit", "resnet", "resnet")
    easy = rng.random(n)
    return [
        answers_right(
            np.where(rng.random((2, n)) < 0.5, rng.random((2, n)), easy) < s[:, None],
            kinds,
            name=f"n{k}",
            family=f,
        )
        for k, (f, s) in enumerate(zip(families, fractions, strict=True))
    ]


def architectures(rng: Random, planted: bool) -> bool:
    fractions = np.tile([0.9, 0.5], (6, 1))
    fractions[:2, 1] = 0.15 if planted else 0.5
    return "retains less than" in kind_sentence(compare_architectures(networks(rng, fractions)), 0)


def fails_together(rng: Random, planted: bool) -> bool:
    """Networks whose errors are of the same images by the same half."""
    made = networks(rng, np.tile([0.7, 0.5], (6, 1)))
    if planted:
        made[1] = replace(made[0], model=replace(made[0].model, name="copy"))
    text = " ".join(consistency_sentences(error_consistency(made)))
    return "have the most consistent errors" in text or "least consistent errors" in text


def kinship(rng: Random, planted: bool) -> bool:
    """Eight networks of two families, each with a liking for images of its own, or of its
    family."""
    n, families = 150, ("mixer",) * 4 + ("vit",) * 4
    common, own = rng.random((2, n)), rng.random((8, n))
    liking = rng.random(8)[:, None]
    easy = np.where(rng.random((8, n)) < liking, rng.random(n), own)
    if planted:
        easy = np.where(rng.random((8, n)) < 0.8, np.repeat(common, 4, 0), own)
    made = [
        answers_right((easy[k] < 0.6)[None], (), name=f"n{k}", family=f)
        for k, f in enumerate(families)
    ]
    return "every pair within a family is more" in " ".join(
        consistency_sentences(error_consistency(made))
    )


def shifted(rng: Random, planted: bool) -> bool:
    """Eight layers under three distortions that move them all as far."""
    cka = 0.6 + 0.05 * rng.standard_normal((3, 8))
    cka[0, 2] -= 0.5 if planted else 0
    found = SimpleNamespace(
        model=MODEL,
        n=N,
        layers=layers_of(8),
        distortions=(PatchShuffle(4), Shift(2, 2), LowPass(4.0)),
        cka=cka,
    )
    found.cka_low, found.cka_high = cka - WILSON * 0.05, cka + WILSON * 0.05
    return ", lower after" in shift_sentence(found)  # type: ignore[arg-type]


# -- channels --------------------------------------------------------------------------------------


def dissected(rng: Random, planted: bool) -> str:
    """p-values of the largest of each layer that are what permutations of the masks give."""
    layers, permutations = 6, 999
    p_value = []
    for i in range(layers):
        peak = rng.integers(1, permutations + 2) / (permutations + 1)
        p = np.maximum(rng.random(20), peak)
        p[0] = peak
        p[: 15 if planted and i == 2 else 0] = 1 / (permutations + 1)
        p_value.append(p)
    hits = [p <= 0.05 for p in p_value]
    return detection_sentence(
        SimpleNamespace(  # type: ignore[arg-type]
            model=MODEL,
            left_out=0,
            n=N,
            layers=tuple(SimpleNamespace(name=f"blocks.{i}", channels=20) for i in range(layers)),
            permutations=permutations,
            p_value=tuple(p_value),
            detectors=tuple(hits),
            concepts=("sky", "grass"),
            summary=lambda: pd.DataFrame({"detectors": [h.sum() for h in hits]}),
            concept_frame=lambda: pd.DataFrame(
                {"concept": ["sky", "grass"], "detectors": [sum(h.sum() for h in hits), 0]}
            ),
        ),
        None,
    )


def detectors(rng: Random, planted: bool) -> bool:
    return "no channel of" not in dissected(rng, planted)


def most_detectors(rng: Random, planted: bool) -> bool:
    return "most after" in dissected(rng, planted)


def pages(rng: Random, planted: bool, count: int = 6) -> Section:
    """The most selective channel of each of six layers, whose corrected p-values are uniform."""
    p = np.full(count, 0.001) if planted else rng.random(count)
    none = np.empty(0)
    end = Exhibit(none, none, none, none, none)
    images = ImagesRecord("demo", "test", N, 4, "0" * 64)
    selective: dict[str, Any] = {
        "class_names": CLASSES,
        "auroc": np.array([0.7, 0.4, 0.5, 0.5]),
        "relation": "responds to",
    }
    (section,) = pages_section(
        [
            ChannelPage(
                MODEL, images, layer, 0, N, "mean", end, end, selectivity_p=float(p[i]), **selective
            )
            for i, layer in enumerate(layers_of(count))
        ]
    )
    return section


def channels_of_pages(rng: Random, planted: bool) -> bool:
    return ". 0 of" not in pages(rng, planted).paragraphs[0]


def channel_of_a_page(rng: Random, planted: bool) -> bool:
    (page,) = pages(rng, planted, 1).content
    return isinstance(page, Picture) and "responds to" in page.shows


# -- early reading ---------------------------------------------------------------------------------


def lens_of(rng: Random, fractions: Any) -> ClassLens:
    """Five readers that are right on so many images [reader], alike after every layer."""
    labels = np.arange(N) % 4
    right = rng.random((5, LAYERS, N)) < np.asarray(fractions)[:, None, None]
    wrong = (labels + 1 + rng.integers(0, 3, right.shape)) % 4
    predicted, none = np.where(right, labels, wrong), ("",) * LAYERS
    images, answers = ImagesRecord("pets", "test", N, 4, "0"), predicted[0, -1]
    return ClassLens(
        model=MODEL,
        images_train=images,
        images_test=images,
        n_jacobian=9,
        readers=READERS,
        layers=layers_of(LAYERS),
        classes=CLASSES,
        predicted=predicted,
        labels=labels,
        final=answers,
        cosine=np.full(LAYERS, 0.5),
        no_logit_lens=none,
        no_jacobian=none,
    )


def lens_reads_more(rng: Random, planted: bool) -> bool:
    found = lens_of(rng, [0.5, 0.7 if planted else 0.5, 0.5, 0.5, 0.5])
    return (
        "more images" in lens_sentences(found, None)[1] or "fewer" in lens_sentences(found, None)[1]
    )


def lesion_of_one(rng: Random, planted: bool) -> bool:
    """Spatial layers whose ablation costs as much, or one of them more."""
    labels = np.arange(N) % 4
    fractions = [0.9, 0.6, 0.6, 0.2 if planted else 0.6, 0.6, 0.6, 0.6]
    right = rng.random((LAYERS + 1, N)) < np.array(fractions)[:, None]
    found = Lesions(
        model=MODEL,
        images=ImagesRecord("pets", "test", N, 4, "0"),
        layers=tuple(replace(layer, kind="spatial") for layer in layers_of(LAYERS)),
        ablations=("mean",) * LAYERS,
        labelled=True,
        labels=labels,
        predicted=np.where(right, labels, (labels + 1) % 4),
    )
    return any("largest drop" in text for text in lesion_sentences(found, [found]))


def stitched(rng: Random, planted: bool) -> list[Stitching]:
    """Two networks that recover the same in both directions and under all controls, or, planted,
    more from the first to the second with the donor."""
    made = []
    for k, r in enumerate(stitchings()):
        fractions = np.full((1, *r.predicted.shape[1:-1]), 0.6)
        fractions[:, 0] += 0.2 if planted and k == 0 else 0
        made.append(replace(r, predicted=answers(fractions, r.labels, rng), fits=("ridge",)))
    return made


def stitching_beats_controls(rng: Random, planted: bool) -> bool:
    text = control_sentence(stitched(rng, planted)[0], "ridge")
    return re.search("(higher|lower) at [1-9]", text) is not None


def stitching_is_asymmetric(rng: Random, planted: bool) -> bool:
    text = asymmetry_sentence(*stitched(rng, planted), "ridge")
    return " more than " in text or " less than " in text


def shared(rng: Random, planted: bool) -> list[ConceptSharing]:
    """Three networks, the same untrained, all pairs of which share the same; planted: the first two
    share more when trained."""
    records = tuple(ModelRecord(name, "mixer", True, "", name, 1) for name in "abc")
    images = ImagesRecord("made", "", 50, 5, "made")
    found = []
    for condition, more in (("networks", 0.3 if planted else 0.0), ("untrained", 0.0)):
        value = 0.4 + 0.03 * rng.normal(size=(3, 3))
        value[0, 1] += more
        bounds = np.stack([value, value - 1.96 * 0.03, value + 1.96 * 0.03], -1)
        found.append(
            ConceptSharing(
                records,
                tuple("xyz"),
                np.full(3, 0.5),
                (4, 4),
                condition,
                images,
                images,
                8,
                2,
                (0, 1),
                r2=bounds,
                cofiring=bounds,
                sharing=bounds,
                own=bounds[0],
                energies=np.ones((2, 3, 8)),
                stability=0.9,
            )
        )
    return found


def shares_most(rng: Random, planted: bool) -> bool:
    return any(" share most." in text for text in sharing_sentences(shared(rng, planted)))


def shares_more_than_untrained(rng: Random, planted: bool) -> bool:
    first = sharing_sentences(shared(rng, planted))[0]
    return re.search(": (more|less) than untrained", first) is not None


def concepts_match(rng: Random, planted: bool) -> bool:
    a, b = rng.random((2, 20, 4, 3))
    correlation, pairs, null = match_concepts(a, a + b if planted else b, draws=19)
    record, images = ModelRecord("a", "mixer", True, "", "a", 1), ImagesRecord("m", "", 20, 0, "m")
    r = ConceptMatches(record, record, "x", "y", "NMF", "NMF", images, correlation, pairs, null)
    return "not significantly" not in matches_sentence(r)


def lens_above_chance(rng: Random, planted: bool) -> bool:
    found = lens_of(rng, [0.25, 0.4 if planted else 0.25, 0.25, 0.25, 0.25])
    return bool(above_chance(found)[1].any())


def mixing_of(rng: Random, means: Any, name: str = "vit") -> SpatialMixing:
    """Means over blocks of every quantity, measured with equal errors."""
    value = np.asarray(means) + 0.03 * rng.standard_normal((1, len(QUANTITIES)))
    half, none = WILSON * 0.03, np.zeros((1, LAYERS, len(QUANTITIES)))
    return SpatialMixing(
        model=replace(MODEL, name=name),
        images=ImagesRecord("pets", "test", N, 4, "0"),
        views=("branch",),
        forms=("VJP",),
        layers=layers_of(LAYERS),
        quantities=QUANTITIES,
        **dict.fromkeys(("value", "se", "low", "high"), none),
        zero=none[..., 0] > 0,
        uniform_px=none[..., 0],
        overall=value,
        overall_se=0 * value + 0.03,
        overall_low=value - half,
        overall_high=value + half,
        matrix=np.zeros((1, LAYERS, 1, 4)),
        matrix_se=np.zeros((1, LAYERS, 1, 4)),
        grids=np.ones((LAYERS, 2)),
        positions=np.ones(LAYERS),
        cells=(1, 1),
        size=(8, 8),
        radius_px=2.0,
        n=N,
        groups=8,
        probes=1,
        seed=0,
    )


def mixing_that_training_changed(rng: Random, planted: bool) -> bool:
    own, other = mixing_of(rng, 0.7 if planted else 0.5), mixing_of(rng, 0.5)
    return "training changed" in training_sentence(own, other)


def mixing_of_architectures(rng: Random, planted: bool) -> bool:
    found = [mixing_of(rng, 0.7 if planted and not k else 0.5, f"net{k}") for k in range(3)]
    return " farther than " in architecture_sentence(found)


def test_architectures_are_compared_at_once_where_all_their_networks_differ() -> None:
    rng = np.random.default_rng(0)
    means = {"mixer": 0.9, "vit": 0.3, "cnn": 0.3}
    found = [
        replace(r, model=replace(r.model, family=family))
        for family, mean in means.items()
        for seed in (0, 1)
        for r in [mixing_of(rng, mean, f"{family}{seed}")]
    ]
    said = architecture_sentence(found)
    farther = "mixer0 and mixer1 farther than {0}0 and {0}1 (by 0."
    assert all(farther.format(family) in said for family in ("vit", "cnn"))
    assert said.count(" farther than ") == 2
    assert "7 of 15 pairs" in said
    # Of one pair that does not differ, the others are told one by one.
    alone = replace(found[2], overall=found[0].overall, overall_low=found[0].overall_low)
    alone = replace(alone, overall_high=found[0].overall_high)
    said = architecture_sentence([found[0], found[1], alone, found[3]])
    assert "mixer0 farther than vit1 (by 0." in said
    assert "vit0 and vit1" not in said


# -- similarity and reports ------------------------------------------------------------------------


def profile(rng: Random, values: Any, name: str = "vit") -> Profile:
    values = np.asarray(values) + 0.03 * rng.standard_normal(len(values))
    half, depth = WILSON * 0.03, np.linspace(0, 1, len(values))
    other = replace(MODEL, name=name, family=name)
    nothing = np.zeros(len(values))
    return Profile(
        MODEL,
        other,
        ("",) * len(values),
        depth,
        values,
        values - half,
        values + half,
        values,
        nothing,
        0.1,
        N,
        999,
    )


def last_layers(rng: Random, planted: bool) -> bool:
    found = [profile(rng, [0.5, 0.9 if planted and k == 0 else 0.5], f"net{k}") for k in range(5)]
    return last_layer_findings(found)[0].verdict == "found"


def replicas(rng: Random, planted: bool) -> bool:
    first, other = (profile(rng, [value, *[0.5] * 5]) for value in (0.9, 0.9 if planted else 0.5))
    return "architectures: most similar" in depth_finding(first, [other]).sentence


def moved(rng: Random, planted: bool) -> bool:
    """Sixty numbers measured twice."""
    a, b = 0.05 * rng.standard_normal((2, 60))
    b[0] += 0.5 if planted else 0
    half = WILSON * 0.05
    values = np.stack([a, a - half, a + half, b, b - half, b + half], 1)
    names = tuple(map(str, range(60)))
    found = ReportDiff("A", "B", 1, (), (), (), names, names, ("score",) * 60, values, 60, 0, ())
    text = " ".join(difference_sentences(found))
    return "Largest change" in text or " 0 of those that changed remain" not in text.replace(
        ". 0 of", ".  0 of"
    )


ROWS: dict[Callable[[Random, bool], bool], int] = {
    mixing_that_training_changed: 400,
    mixing_of_architectures: 400,
    best_layer: 200,
    training_adds: 200,
    readable: 200,
    over_the_twin: 200,
    halfway_order: 200,
    twin_reads: 200,
    twin_and_pixels: 200,
    classes: 400,
    confusions: 400,
    calibrated: 400,
    shortest_code: 400,
    shorter_groups: 400,
    most_accurate: 400,
    beaten: 400,
    opposite_pairs: 200,
    opposite_pairs_beside_the_baseline: 400,
    written: 400,
    smoother: 200,
    architectures: 200,
    fails_together: 200,
    kinship: 200,
    shifted: 400,
    detectors: 400,
    most_detectors: 400,
    channels_of_pages: 400,
    channel_of_a_page: 400,
    lens_reads_more: 200,
    lens_above_chance: 400,
    shares_most: 400,
    shares_more_than_untrained: 400,
    concepts_match: 400,
    stitching_beats_controls: 200,
    stitching_is_asymmetric: 400,
    lesion_of_one: 200,
    last_layers: 400,
    replicas: 400,
    moved: 400,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_at_most_6_percent_of_null_data_give_a_claim(row: Callable[[Random, bool], bool]) -> None:
    runs = ROWS[row]
    found = sum(row(np.random.default_rng([11, i]), False) for i in range(runs))
    print(f"{row.__name__}: {found} of {runs} runs claim something")
    assert found <= 0.06 * runs


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_a_planted_effect_is_claimed(row: Callable[[Random, bool], bool]) -> None:
    """So that silence alone does not pass."""
    found = sum(row(np.random.default_rng([12, i]), True) for i in range(10))
    print(f"{row.__name__}: {found} of 10 runs claim what was planted")
    assert found >= 8
