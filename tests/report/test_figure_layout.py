"""No text of a report's figures lies on another or leaves the canvas, and no panel is empty,
however many networks it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from timm.models.mlp_mixer import MlpMixer, ResBlock
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import UndefinedSimilarityWarning
from mixer_probe.core.result import Result, load_results
from mixer_probe.core.section import Picture
from mixer_probe.mixing import MixingSettings, UnitImportance
from mixer_probe.mixing.analyses import ROOM as MIXING
from mixer_probe.report import make_sections
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.similarity.identification import layer_identification
from mixer_probe.similarity.matches import best_matches
from mixer_probe.similarity.summary import model_similarity
from mixer_probe.study import Study, StudySettings, run_analyses, run_study
from mixer_probe.weights.figures import token_mixing_units
from tests.helpers.golden import GOLDEN
from tests.networks import randomised
from tests.tiny import SPEC

# Boxes of neighbouring texts may touch: a font's box is a pixel higher than its letters.
_SLACK = 1.0


def crowd() -> dict[str, nn.Module]:
    """Seven networks with the long names of timm, of up to 16 blocks and of stems with few, small
    and many filters."""
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2}
    return {
        "mixer_b16_224.goog_in21k_ft_in1k": MlpMixer(
            img_size=32, patch_size=4, embed_dim=16, num_blocks=12
        ),
        "resmlp_12_224.fb_distilled_in1k": MlpMixer(
            img_size=32, patch_size=8, embed_dim=8, num_blocks=3, mlp_ratio=4, block_layer=ResBlock
        ),
        "vit_base_patch16_224.augreg2_in21k_ft_in1k": VisionTransformer(**vit, depth=12),
        "deit3_small_patch16_224.fb_in22k_ft_in1k": VisionTransformer(**vit, depth=6),
        "resnet50.a1_in1k": ResNet(Bottleneck, [3, 4, 6, 3], channels=(4, 4, 8, 8), stem_width=8),
        "resnet26d.bt_in1k": ResNet(
            Bottleneck, [2, 2, 2, 2], channels=(4, 4, 8, 8), stem_width=16, stem_type="deep"
        ),
        "local-dir:a/folder/with/an/almost/endless_name": MlpMixer(
            img_size=32, patch_size=16, embed_dim=192, num_blocks=1
        ),
    }


@pytest.fixture(scope="module")
def crowded() -> list[Result]:
    models = [mp.load_model(network, name=name, **SPEC) for name, network in crowd().items()]
    images, train = (
        mp.load_images("demo", limit=40),
        mp.load_images("demo", split="train", limit=40),
    )
    # Description lengths and pages of channels take most of the time, and their figures have this
    # check with their own tests.
    channels = ("statistics", "selectivity", "needed", "partners")
    probes = ("accuracy", "fewshot", "control", "patch-position")
    settings = StudySettings(permutations=20, analyses={"probing": probes, "channels": channels})
    study = Study(images, train, settings, shared={"mixing": MixingSettings(images=4)})
    for model in models:
        study.add(model, card=True)
    return study.finish()


def little() -> mp.Model:
    network = MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1)
    return mp.load_model(network, name="tiny", **SPEC).untrained()


@pytest.fixture(scope="module")
def alone() -> list[Result]:
    """One network with random weights, unlabelled images."""
    return run_study(
        [little()], mp.load_images("demo", limit=20), None, StudySettings(permutations=0)
    )


def mixing_by_name(models: Sequence[mp.Model], images: mp.Images) -> list[Result]:
    """What no study makes unless asked."""
    names = [analysis.name for analysis in MIXING.analyses if not analysis.default]
    settings = MixingSettings(reading_images=20, lesion_images=20)
    return run_analyses(models, {"mixing": names}, images, mixing=settings, strict=False)


@pytest.fixture(scope="module")
def mixing_crowded() -> list[Result]:
    """Of seven networks that know the classes of the images, and units of each."""
    images = mp.load_images("demo", limit=40)
    models = []
    for name, network in crowd().items():
        network.reset_classifier(len(images.class_names))  # type: ignore[operator]
        options = {"class_names": images.class_names, "name": name, **SPEC}
        models.append(mp.load_model(randomised(network), **options))
    (units,) = load_results(GOLDEN / "UnitImportance.json")
    assert isinstance(units, UnitImportance)
    named = [replace(units, model=replace(units.model, name=model.name)) for model in models]
    return [*mixing_by_name(models, images), *named]


@pytest.fixture(scope="module")
def mixing_alone() -> list[Result]:
    """One network with random weights, unlabelled images."""
    return mixing_by_name([little()], replace(mp.load_images("demo", limit=20), labels=None))


@pytest.fixture(scope="module")
def compared(crowded: list[Result]) -> list[Result]:
    """What else can be said about similarity, of networks with long names, and all measures of
    layers of every kind."""
    cka = [r for r in crowded if isinstance(r, SimilarityMatrix) and r.measure == "cka"]
    across = [m for m in cka if m.model_a != m.model_b]
    images = mp.load_images("demo", limit=30)
    name, network = next(iter(crowd().items()))
    model = mp.load_model(network, name=name, **SPEC)
    runs = [
        mp.extract(one, images, ["stem", "spatial", "norm", "head"])
        for one in (model, model.untrained())
    ]
    # A fresh head is all zeros.
    with pytest.warns(UndefinedSimilarityWarning):
        matrices = mp.compare(*runs, "all", permutations=20, resamples=0)
    with pytest.warns(UndefinedSimilarityWarning):
        identified = [layer_identification(*runs), layer_identification(*runs[::-1])]
    return [*matrices, *map(best_matches, across[:10]), model_similarity(cka), *identified]


@dataclass(frozen=True)
class Drawn:
    """A figure with its texts and their boxes in pixels."""

    name: str
    figure: Figure
    texts: list[tuple[str, Bbox]]


WHAT = ("study", "crowded", "alone", "compared", "mixing_crowded", "mixing_alone")


@pytest.fixture(scope="module", params=WHAT)
def drawn(request: pytest.FixtureRequest) -> list[Drawn]:
    results = request.getfixturevalue(request.param)
    return [
        Drawn(f"{section.anchor} {number}: {item.alt}", item.figure, texts_of(item.figure))
        for section in make_sections(results)
        for number, item in enumerate(section.content)
        if isinstance(item, Picture)
    ]


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """All visible texts, as they were drawn: ticks outside the limits of an axis have labels that
    are never drawn."""
    found: dict[int, tuple[str, Bbox]] = {}
    draw = Text.draw

    def recorded(self: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        draw(self, renderer, *args, **kwargs)
        if self.get_visible() and self.get_text().strip():
            found[id(self)] = (self.get_text(), Text.get_window_extent(self, renderer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        FigureCanvasAgg(figure).draw()
    return list(found.values())


def overlapping(texts: Sequence[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap."""
    low = np.array([box.min for _, box in texts]).reshape(-1, 2)
    high = np.array([box.max for _, box in texts]).reshape(-1, 2)
    common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    return [
        (texts[i][0], texts[j][0])
        for i, j in np.argwhere(np.triu((common > _SLACK).all(axis=2), 1))
    ]


def outside(box: Bbox, canvas: Bbox) -> bool:
    return (
        box.x0 < canvas.x0 - _SLACK
        or box.y0 < canvas.y0 - _SLACK
        or box.x1 > canvas.x1 + _SLACK
        or box.y1 > canvas.y1 + _SLACK
    )


def test_no_text_lies_on_another(drawn: list[Drawn]) -> None:
    found = [f"{one.name}: {a!r} on {b!r}" for one in drawn for a, b in overlapping(one.texts)]
    assert not found, "\n".join(found)


def test_no_text_leaves_the_canvas(drawn: list[Drawn]) -> None:
    found = []
    for one in drawn:
        assert one.texts, one.name
        out = [(text, box) for text, box in one.texts if outside(box, one.figure.bbox)]
        found += [
            f"{one.name}: {text!r} at {box.extents.round(1)} of {one.figure.bbox.size}"
            for text, box in out
        ]
    assert not found, "\n".join(found)


def test_no_panel_is_empty(drawn: list[Drawn]) -> None:
    for one in drawn:
        panels = [axes for axes in one.figure.axes if axes.get_label() != "<colorbar>"]
        assert panels, one.name
        assert all(axes.has_data() for axes in panels), one.name


def test_a_name_is_no_formula() -> None:
    network = MlpMixer(img_size=32, patch_size=8, embed_dim=8, num_blocks=1)
    units = mp.token_mixing(mp.load_model(network, name=r"local-dir:$\frac$", **SPEC))
    # matplotlib draws an escaped dollar sign as it is.
    assert any(r"\$\frac\$" in text for text, _box in texts_of(token_mixing_units(units)))


def test_the_check_sees_what_is_wrong() -> None:
    figure = Figure(figsize=(2, 1))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.52, "two")
    figure.text(0.9, 0.1, "outside")
    figure.text(0.5, 0.5, "hidden", visible=False)
    assert overlapping(texts_of(figure)) == [("one", "two")]
    texts = dict(texts_of(figure))
    assert set(texts) == {"one", "two", "outside"}
    assert outside(texts["outside"], figure.bbox)
    assert not outside(texts["one"], figure.bbox)
