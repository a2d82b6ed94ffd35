"""Results as data: every kind that a report can hold loads back and is told, tabled and drawn the
same, without the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.concepts import DictionaryRecipe, concept_sharing
from mixer_probe.concepts.matches import concept_matches
from mixer_probe.core.errors import MixerProbeWarning, StoreError
from mixer_probe.core.result import Result, load_results, open_results, save_results, to_dict
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.skipped import Skipped
from mixer_probe.cost import accuracy_cost, cost_growth, mixer_scales, model_cost
from mixer_probe.images import LowPass, PatchShuffle, concepts_from_arrays
from mixer_probe.invariance import (
    compare_architectures,
    distortion_accuracy,
    distortion_examples,
    error_consistency,
    representation_shift,
)
from mixer_probe.mixing import class_lens, lesions, unit_importance
from mixer_probe.report import compare_reports, export_report, narrate
from mixer_probe.report.views import all_views
from mixer_probe.similarity.grounding import grounded_tests, group_tests, layer_order_test
from mixer_probe.similarity.identification import layer_identification
from mixer_probe.similarity.matches import best_matches
from mixer_probe.similarity.summary import model_similarity
from mixer_probe.study import StudySettings, run_analyses, run_study
from mixer_probe.weights import convolution_equivalence, paper_figures
from tests import probes
from tests.concepts import linear_networks
from tests.concepts.planted import planted
from tests.concepts.samples import stitchings
from tests.networks import CASES
from tests.training import samples

DISTORTIONS = (PatchShuffle(2), LowPass(4.0))
SETTINGS = StudySettings(
    permutations=20,
    resamples=20,
    analyses={"probing": ()},
    measures=("cka",),
    channel_pages=1,
    statistics_images=None,
)
SMALL_STUDY = replace(
    SETTINGS,
    analyses={
        "probing": ("accuracy", "fewshot"),
        "channels": ("statistics", "partners"),
        "attribution": ("agreement",),
    },
)


@cache
def images() -> mp.Images:
    # Two images per class in either half.
    return mp.load_images("demo", limit=40)


@cache
def models() -> tuple[mp.Model, ...]:
    return tuple(replace(CASES[name].model(), name=name) for name in ("mixer", "vit"))


@cache
def study() -> tuple[Result, ...]:
    """Cards, weights, similarity, channels and attributions."""
    return tuple(run_study(models(), images(), None, SETTINGS))


def of_study(kind: type[Any]) -> Callable[[], list[Any]]:
    # The network and its twin, or two networks.
    return lambda: [r for r in study() if isinstance(r, kind)][:2]


def similar() -> list[Any]:
    return [r for r in study() if type(r).__name__ == "SimilarityMatrix"]


def placed_run(model: mp.Model) -> Any:
    return mp.extract(model, images(), "blocks", reduce="none")


@cache
def concepts() -> Any:
    """Bright places and the left half of every image."""
    bright = np.stack([np.asarray(image.resize((32, 32))).mean(-1) > 150 for image in images()])
    left = np.broadcast_to(np.arange(32) < 16, bright.shape)
    return concepts_from_arrays(np.stack([bright, left], axis=1), ("bright", "left"), images().ids)


@cache
def dissection() -> Any:
    return mp.dissect(models()[0], images(), concepts(), "blocks", permutations=19, quantile=0.9)


@cache
def distorted() -> tuple[Any, ...]:
    """Of two networks that read brightness: the classes are dark and bright."""
    from tests.invariance.planted import bag_of_pixels, colours

    some = colours(20)
    first = distortion_accuracy(bag_of_pixels(some), some, DISTORTIONS)
    labels = first.labels
    second = replace(
        first,
        model=replace(first.model, name="other", family="vit", fingerprint="f" * 64),
        predicted=np.where(
            np.arange(len(labels)) % 5 == 0, (first.predicted + 1) % 4, first.predicted
        ),
    )
    return first, second


def attributions() -> list[Any]:
    return [
        mp.attribute(models()[0], images().subset(np.arange(3)), method)
        for method in ("saliency", "integrated_gradients")
    ]


def probed(name: str, **options: Any) -> list[Any]:
    return [getattr(probes, name)("net", **options)]


def mixed(name: str, kind: str) -> list[Any]:
    """What one analysis of mixing that no study makes by default gives of two networks, or of a
    network and its baseline."""
    found = run_analyses(models(), {"mixing": [name]}, images(), None, SETTINGS, strict=False)
    return [r for r in found if type(r).__name__ == kind][:2]


def read_early() -> list[Any]:
    """A network and, as its untrained baseline, another of other weights."""
    from tests.mixing.test_lens import network, pictures

    sides = [class_lens(network(case), pictures(30, 1), pictures(24)) for case in ("vit", "mixer")]
    first, other = sides
    name = f"{first.model.name}?untrained"
    baseline = replace(first.model, name=name, trained=False)
    trained = replace(first, model=replace(first.model, trained=True))
    return [trained, replace(other, model=baseline)]


def shared() -> list[Any]:
    """Three networks, and two controls of theirs."""
    fit, test = planted(20).parts, planted(20, draw=1).parts
    recipe = DictionaryRecipe(atoms=8, active=2, epochs=2, batch_size=64)
    twin = replace(test[0], model=replace(test[0].model, name="twin"))
    return [
        concept_sharing(fit, test, recipe),
        concept_sharing(fit, test, recipe, condition="shuffled images"),
        concept_sharing([fit[0]] * 2, [test[0], twin], recipe, condition="two seeds"),
    ]


def matched() -> list[Any]:
    """Two networks, and two kinds of concepts of one."""
    a, b = planted(20).parts[:2]
    rng = np.random.default_rng(0)
    codes = [rng.random((20, 16, k)) for k in (5, 4)]
    codes.append(codes[0] + 0.3 * rng.random((20, 16, 5)))
    return [
        concept_matches(a, b, (codes[0], codes[1]), draws=19),
        concept_matches(a, a, (codes[0], codes[2]), ("NMF", "dictionary"), draws=19),
    ]


def grounded() -> list[Any]:
    """A measure that knows the groups of networks and the order of layers, one that knows neither,
    and one that is not defined; by a test that can be passed and one that cannot."""
    groups, seeds = np.repeat(["a", "b", "c"], 3), np.tile([0, 1, 2], 3)
    noise = np.random.default_rng(0).normal(size=(9, 9))
    same = np.equal.outer(groups, groups) + 0.01 * noise
    layers = -np.abs(np.subtract.outer(np.arange(5.0), np.arange(5)))
    sides = [same + same.T, noise + noise.T, np.full((9, 9), np.nan)]
    orders = [layers, (noise + noise.T)[:5, :5], np.full((5, 5), np.nan)]
    outcomes = [
        *group_tests("shortcuts", np.array(sides)[:, None], groups, seeds),
        layer_order_test(np.array([[order] * 2 for order in orders])),
        replace(
            layer_order_test(np.array([[order[:4, :4]] * 2 for order in orders])),
            test="order of four layers",
        ),
    ]
    return [grounded_tests(["cka", "svcca", "pwcca"], outcomes, "500 test images")]


@cache
def cost() -> Any:
    return model_cost(models()[0], batch_size=2, runs=3)


def set_against_accuracy() -> list[Any]:
    name = {"model": cost().model}
    return [
        accuracy_cost(
            [cost()],
            [replace(probes.accuracy("net"), **name)],
            [replace(probes.few_shot("net"), **name)],
        )
    ]


# A kind of result without a line here fails: whoever adds one says how to make a small one.
def ablated() -> list[Any]:
    """A network, its units, and a network of one class as its untrained baseline."""
    from tests.mixing.test_lesions import answered, constant, network

    model, other = network("mixer"), constant(network("mixer"))
    images = answered(model, 24)
    found, units = lesions(model, images), unit_importance(model, images, "blocks.1", most=4)
    trained = replace(found.model, trained=True)
    baseline = replace(found.model, name=f"{trained.name}?untrained", trained=False)
    return [
        replace(found, model=trained),
        replace(units, model=trained),
        replace(lesions(other, images), model=baseline),
    ]


MADE: dict[str, Callable[[], Sequence[Any]]] = {
    "PaperFigures": lambda: [paper_figures(models()[0], surrogates=3, shuffles=2)],
    "ConvolutionEquivalence": lambda: [convolution_equivalence(models()[0], images())],
    "AttentionDistance": lambda: mixed("attention", "AttentionDistance"),
    "TokenComponents": lambda: mixed("pca", "TokenComponents"),
    "FrequencyProfile": lambda: mixed("fourier", "FrequencyProfile"),
    "ResidualStream": lambda: mixed("residual", "ResidualStream"),
    "ClassLens": read_early,
    "ConceptAtoms": lambda: [linear_networks.atoms()],
    "Lesions": lambda: ablated()[::2],
    "UnitImportance": lambda: ablated()[1:2],
    "StudyAnswer": samples.answers,
    "RunQuantity": samples.quantities,
    "RunSimilarity": samples.similarities,
    "UnitHistory": samples.histories,
    "Stitching": stitchings,
    "MixerScales": lambda: [mixer_scales()],
    "ModelCost": lambda: [cost()],
    "AccuracyCost": set_against_accuracy,
    "CostGrowth": lambda: [cost_growth(models()[0], (32, 64), timed=1, runs=3)],
    "ModelSimilarity": lambda: [model_similarity([m for m in similar() if m.model_a != m.model_b])],
    "LayerMatches": lambda: [best_matches(m) for m in similar()],
    "GroundedTests": grounded,
    "ConceptSharing": shared,
    "ConceptMatches": matched,
    "LayerIdentification": lambda: [
        layer_identification(*[mp.extract(models()[0], images())] * 2, "cka")
    ],
    "ProbeResult": lambda: probed("accuracy"),
    "FewShotResult": lambda: probed("few_shot"),
    "ControlTask": lambda: probed("controlled"),
    "OnlineCode": lambda: probed("coded"),
    "ControlCode": lambda: probed("control_coded"),
    "RandomLabels": lambda: probed("randomised"),
    "ConfusionMatrix": lambda: probed("confused"),
    "Calibration": lambda: probed("calibrated"),
    "PositionProbe": lambda: probed("placed", undefined=True),
    "AttentiveResult": lambda: probed("attentive"),
    "PatchPosition": lambda: probed("patch_placed"),
    "TargetProbe": lambda: probed("targeted", undefined=True),
    "Dissection": lambda: [dissection()],
    "DissectedChannel": lambda: [
        mp.channels.dissected_channel(
            models()[0], images(), concepts(), dissection(), "blocks.0", 1, k=3
        )
    ],
    "FeatureVisualization": lambda: [
        mp.visualize(models()[0], "blocks.1", [0, 1], images=images(), steps=2)
    ],
    "DistortionExamples": lambda: [distortion_examples(models()[0], images(), DISTORTIONS, 2)],
    "DistortionAccuracy": distorted,
    "ArchitectureComparison": lambda: [compare_architectures(distorted())],
    "ErrorConsistency": lambda: [error_consistency(distorted())],
    "RepresentationShift": lambda: [
        representation_shift(models()[0], images(), DISTORTIONS, permutations=20, resamples=20)
    ],
    "Attribution": attributions,
    "ReportDiff": lambda: [
        compare_reports(
            probed("accuracy"), [replace(r, accuracy=r.accuracy * 0.9) for r in probed("accuracy")]
        )
    ],
    "Narrative": lambda: [narrate(study())],
    "Skipped": lambda: [Skipped("linear probes", "class 'hen' has one image")],
}


def made(kind: type[Any]) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixerProbeWarning)
        return list(MADE.get(kind.__name__, of_study(kind))())


def drawn(section: Section) -> list[Any]:
    """All of a section as plain data, pictures as the bytes of their files."""
    told: list[Any] = [section.anchor, section.title, section.paragraphs, section.warnings]
    for item in section.content:
        if isinstance(item, Table):
            told.append((item.caption, item.header, item.rows, item.folded))
        else:
            assert isinstance(item, Picture)
            told.append(
                (item.shows, item.reading, item.alt, item.file_name, item.folded, item.data)
            )
    return told


@pytest.mark.parametrize("kind", all_views(), ids=lambda kind: kind.__name__)
def test_saved_results_are_told_tabled_and_drawn_the_same(kind: type[Any], tmp_path: Path) -> None:
    results = made(kind)
    assert results, f"say in MADE how to make a small {kind.__name__}"
    again = load_results(save_results(results, tmp_path / "results.json"))
    assert json.dumps(to_dict(again)) == json.dumps(to_dict(results))
    for old, new in zip(results, again, strict=True):
        assert [f.name for f in fields(new)] == [f.name for f in fields(old)]
        pd.testing.assert_frame_equal(new.to_frame(), old.to_frame())
    before, after = all_views()[kind].sections(results), all_views()[kind].sections(list(again))
    assert len(before) == len(after) > 0
    for old_section, new_section in zip(before, after, strict=True):
        assert drawn(new_section) == drawn(old_section)


def test_every_kind_of_result_has_a_section_or_is_part_of_another() -> None:
    """What a report would silently leave out."""
    from mixer_probe.core import result as module

    shown = set(all_views())
    kinds = {
        kind
        for kind in module._KINDS.values()
        if issubclass(kind, Result) and kind.__module__.startswith("mixer_probe.")
    }
    assert {kind.__name__ for kind in kinds - shown} == {
        "AttentionMaps",
        "StemComponents",
        "TopImages",
    }


@pytest.fixture(scope="module")
def small() -> list[Result]:
    return run_study(models(), images(), None, SMALL_STUDY)


def test_the_same_seed_gives_the_same_numbers(small: list[Result], tmp_path: Path) -> None:
    """A second run is the same file, byte for byte; a results file has no date."""
    again = run_study(
        tuple(replace(CASES[m.name].model(), name=m.name) for m in models()),
        images(),
        None,
        SMALL_STUDY,
    )
    files = [
        save_results(results, tmp_path / name, {"seed": 0})
        for results, name in ((small, "a.json"), (again, "b.json"))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    other = run_study(models(), images(), None, replace(SMALL_STUDY, seed=1))
    assert (
        save_results(other, tmp_path / "c.json", {"seed": 0}).read_bytes() != files[0].read_bytes()
    )


def test_a_delivered_report_is_rendered_again_byte_for_byte_in_another_process(
    small: list[Result], tmp_path: Path
) -> None:
    """By the command line, from the folder, with no model and no image."""
    first, second = tmp_path / "first", tmp_path / "second"
    chosen = [r for r in small if type(r).__name__ in ("ModelCard", "ProbeResult")]
    export_report(
        chosen, first, "Two networks", {"command": "mixer-probe report", "study": {"seed": 0}}
    )
    script = "from mixer_probe import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "render", str(first), "--out", str(second)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(second / "report.html")
    names = sorted(file.name for file in first.iterdir())
    assert sorted(file.name for file in second.iterdir()) == names
    # The list of the files has their checksums, and so that of the page.
    for name in names[1:]:
        # One line of a page says what rendered it, and how many threads it had.
        old, new = (
            re.sub(rb"<p>mixer_probe .*</p>", b"", (folder / name).read_bytes())
            for folder in (first, second)
        )
        assert old == new, name


def test_title_and_settings_are_saved(tmp_path: Path) -> None:
    file = save_results([Skipped("a", "b")], tmp_path / "results.json", {"command": "x"}, "A title")
    saved = open_results(tmp_path)
    assert (saved.results, saved.settings, saved.title) == (
        (Skipped("a", "b"),),
        {"command": "x"},
        "A title",
    )
    assert load_results(tmp_path) == (Skipped("a", "b"),)
    # The same in another layout is the same; anything else is refused.
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content, indent=3, sort_keys=True))
    assert open_results(file) == saved
    for changed in ({"title": "Another"}, {"settings": {}}, {"checksum": None}, {"more": 1}):
        file.write_text(json.dumps({**content, **changed}))
        with pytest.raises(StoreError, match="checksum"):
            open_results(file)
