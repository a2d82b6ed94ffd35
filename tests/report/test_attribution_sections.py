"""What the report says about attributions: sentences from the numbers, in planted cases whose
answer is known."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe import attribution as at
from mixer_probe.attribution.analyses import ROOM
from mixer_probe.attribution.settings import QUICK, AttributionSettings, find_target
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.result import (
    ImagesRecord,
    ModelRecord,
    Result,
    from_dict,
    load_results,
    save_results,
    to_dict,
)
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.skipped import Skipped
from mixer_probe.images import from_arrays
from mixer_probe.models.layer import Layer
from mixer_probe.report import make_sections
from mixer_probe.study import Study
from tests.attribution.planted import SIZE, planted_models
from tests.tiny import SPEC, tiny_models

N = 12
IDS = tuple(f"i{k}" for k in range(N))
IMAGES = ImagesRecord("demo", "test", N, 3, "s", limit=N, seed=0)
JITTER = 0.01 * np.linspace(-2.5, 2.5, N)
# The same for several rows, in other orders.
ROWS = np.stack([np.roll(JITTER, 3 * k) for k in range(4)])


def record(name: str = "zoo:net") -> ModelRecord:
    return ModelRecord(name, "mixer", True, "w", name, 1)


def only(results: list[Any]) -> Section:
    (section,) = make_sections(results)
    return section


def curves(*heights: float, noise: float = 1e-3) -> at.PerturbationCurves:
    """Triangles whose middle is at `heights`, of deletion; of insertion at one minus them; the last
    is the random order's."""
    jitter = noise * np.random.default_rng(0).normal(size=(len(heights), N))
    middle = np.array(heights)[:, None] + jitter
    fall = np.stack([np.ones_like(middle), middle, np.zeros_like(middle)], -1)
    methods = ("saliency", "occlusion", "gradcam")[: len(heights) - 1]
    return at.PerturbationCurves(
        model=record(),
        images=IMAGES,
        methods=methods,
        ids=IDS,
        targets=np.zeros(N, dtype=int),
        grid=(2, 2),
        fractions=np.array([0, 0.5, 1.0]),
        deletion=fall[:-1],
        insertion=1 - fall[:-1],
        random_deletion=fall[-1:],
        random_insertion=1 - fall[-1:],
        deletion_baseline="the mean colour",
        insertion_baseline="the image blurred",
        random_orders=1,
    )


def test_the_best_method_is_named_with_its_lead() -> None:
    section = only([curves(0.0, 0.5, 0.8)])
    deletion, insertion = section.paragraphs
    # Areas of triangles: (1 + 2 m) / 4 with m in the middle.
    assert deletion == (
        "net, deletion: saliency performs best (area 0.25 [0.25, 0.25], random orders 0.65 [0.65, "
        "0.65]; n = 12), gain over random orders 0.40 [0.40, 0.40]; lead over the next, occlusion: "
        "0.25 [0.25, 0.25]."
    )
    assert "net, insertion: saliency performs best (area 0.75" in insertion
    assert [type(item) for item in section.content] == [Picture, Table]


def test_methods_within_each_others_intervals_are_not_told_apart() -> None:
    text = only([curves(0.2, 0.2, 0.8, noise=0.1)]).paragraphs[0]
    assert "; not distinguishable from it: " in text
    assert "performs best" not in text


def test_a_method_no_better_than_random_is_said() -> None:
    text = only([curves(0.5, 0.5, noise=0.2)]).paragraphs[0]
    assert "; no method is significantly better than random orders" in text
    assert "outperforms random" not in text


def check(last: float, null: float) -> at.RandomisationCheck:
    redrawn = (
        last
        + np.stack([JITTER, np.roll(JITTER, 4), np.roll(JITTER, 8)])
        + 0.01 * np.array([[-1], [0], [1]])
    )
    stages = np.stack([np.ones((3, N)), redrawn], 1)
    return at.RandomisationCheck(
        model=record(),
        images=IMAGES,
        method="saliency",
        stages=("trained", "head"),
        ids=IDS,
        grid=(2, 2),
        spearman=stages,
        signed_spearman=stages,
        ssim=stages,
        null_spearman=np.full(N, null) - JITTER,
    )


def test_a_method_that_notices_lost_weights_and_one_that_does_not() -> None:
    good, bad = (only([check(*values)]).paragraphs[0] for values in ((0.02, 0.3), (0.8, 0.3)))
    assert good.endswith(
        "is below 0.10 (equivalence test at 5 %), so the method passes the sanity check."
    )
    assert "(3 draws), the rank correlation with the maps of the trained network is 0.02 [" in good
    assert "]; between maps of different images it is 0.30 [0.28, 0.32] (n = 12)" in good
    assert bad.endswith("so the maps do not depend only on what the network learned.")
    assert ": the excess is 0.50 [" in bad
    alone = replace(check(0.8, 0.3), null_spearman=np.full(N, np.nan))
    assert "no other images for comparison" in only([alone]).paragraphs[0]


def told(infidelity: list[float], uniform: float, sensitivity: list[float]) -> at.Faithfulness:
    return at.Faithfulness(
        model=record(),
        images=IMAGES,
        methods=("saliency", "occlusion", "gradcam"),
        ids=IDS,
        grid=(2, 2),
        baseline="the mean colour",
        infidelity=np.array(infidelity)[:, None] + ROWS[:3],
        uniform_infidelity=np.full(N, uniform) - JITTER,
        sensitivity=np.array(sensitivity)[:, None] + ROWS[:3],
        samples=10,
        removed=0.3,
        radius=0.02,
    )


def test_infidelity_stands_beside_the_uniform_map() -> None:
    section = only([told([0.5, 0.2, 0.7], 0.4, [0.1, np.nan, 0.3])])
    assert (
        "occlusion predicts the effect of random removals best, infidelity 0.20 [0.19, 0.21], "
        "better than a uniform map" in section.paragraphs[0]
    )
    assert (
        "the sensitivity of saliency (0.10 [0.09, 0.11]) is lower than that of Grad-CAM (0.30 "
        "[0.29, 0.31])" in section.paragraphs[1]
    )
    wide = next(item for item in section.content if isinstance(item, Table))
    assert wide.frame["sensitivity"].tolist() == [
        "0.10 [0.09, 0.11]",
        "–",
        "0.30 [0.29, 0.31]",
        "–",
    ]
    assert (
        "worse than a uniform map"
        in only([told([0.5, 0.5, 0.7], 0.1, [0.1, 0.1, 0.1])]).paragraphs[0]
    )
    nothing = told([np.nan] * 3, 0.1, [np.nan] * 3)
    assert only([nothing]).paragraphs == ()


def likeness(
    values: list[list[float]], null: float, models: tuple[str, ...], methods: tuple[str, ...]
) -> at.Agreement:
    mean = np.array(values)
    return at.Agreement(
        models=tuple(record(name) for name in models),
        methods=methods,
        images=IMAGES,
        ids=IDS,
        grid=(2, 2),
        magnitudes=False,
        values=mean[:, :, None]
        + ROWS[np.add.outer(*[np.arange(len(mean))] * 2) % 4] * (1 - np.eye(len(mean)))[:, :, None],
        null=np.full(mean.shape, null),
        null95=np.full(mean.shape, null + 0.05),
        p_value=np.where(mean > null + 0.05, 0.001, 0.6),
        permutations=20,
    )


def test_agreement_of_networks_stands_against_other_images() -> None:
    values = [[1, 0.6, 0.22], [0.6, 1, 0.22], [0.22, 0.22, 1]]
    found = likeness(values, 0.2, ("zoo:a", "zoo:b", "zoo:c"), ("saliency",) * 3)
    section = only([found])
    assert section.paragraphs == (
        "Saliency: a and b 0.60 [0.59, 0.61] (other images 0.20, 95th percentile 0.25); a and c "
        "0.22 [0.21, 0.23], not distinguishable from other images (other images 0.20, 95th "
        "percentile 0.25); b and c 0.22 [0.21, 0.23], not distinguishable from other images (other "
        "images 0.20, 95th percentile 0.25); n = 12.",
    )
    axes = next(item for item in section.content if isinstance(item, Picture)).figure.axes[0]
    assert [
        round(float(line.get_xdata()[0]), 2)
        for line in axes.lines
        if line.get_marker() in "os^" and len(line.get_xdata()) == 1
    ]


def test_agreement_of_methods_counts_pairs_above_other_images() -> None:
    found = likeness(
        [[1, 0.6, 0.1], [0.6, 1, 0.1], [0.1, 0.1, 1]],
        0.2,
        ("zoo:a",) * 3,
        ("saliency", "occlusion", "gradcam"),
    )
    assert only([found]).paragraphs == (
        "a: saliency and occlusion agree most, 0.60 [0.59, 0.61]; the lowest is 0.10 [0.09, 0.11] "
        "(saliency and Grad-CAM) (n = 12). 1 of 3 pairs of methods agree more than expected from "
        "other images' maps.",
    )


def flow() -> at.Conductance:
    """Ten units of which one carries half, and ten that share evenly."""
    uneven = np.tile(np.array([-9.0, *[1.0] * 9]), (N, 1)) + JITTER[:, None] * np.arange(
        -4.5, 5
    ) * [0, *[1] * 9]
    layers = tuple(
        Layer(f"blocks.{i}.mlp_tokens.act", "other", (i + 1) / 2, None, 10, 0, 4, order=i)
        for i in range(2)
    )
    return at.Conductance(
        model=record(),
        images=IMAGES,
        layers=layers,
        baseline="the mean colour",
        ids=IDS,
        targets=np.zeros(N, dtype=int),
        logit_difference=np.ones(N),
        values=(uneven, np.ones((N, 10))),
        steps=np.full(N, 32),
        gap=np.full((2, N), 0.01),
        change=np.full((2, N), 0.02),
        unit_maps=(np.ones((6, 2, 2)), np.ones((6, 2, 2))),
    )


def test_conductance_says_how_few_units_carry_half() -> None:
    section = only([flow()])
    assert section.paragraphs == (
        "net: half of a layer's conductance is concentrated in 1 to 5 of 10 units (n = 12); 1 of 2 "
        "layers have a unit with significantly higher conductance than every other (intervals over "
        "images), such as unit 0 of blocks.0.mlp_tokens.act with 50.0 % [49.9 %, 50.1 %]. With 32 "
        "nodes per image, the sum over a cut through the layer deviates from the logit difference "
        "by 1.0 % (median) and at most 1.0 %; using every other node changes the sum by up to 2.0 "
        "%.",
    )
    picture = next(item for item in section.content if isinstance(item, Picture))
    titles = [axes.get_title() for axes in picture.figure.axes]
    assert "0: 50.0 %, -9.00" in titles
    assert flow().fractions(0)[0] == pytest.approx(0.5, abs=1e-4)
    silent = replace(flow(), values=(np.zeros((N, 10)), np.zeros((N, 10))))
    assert only([silent]).paragraphs == ("net: the conductance of these units is zero.",)


# -- the study -------------------------------------------------------------------------------------


def bright(n: int = N) -> mp.Images:
    """Bright images with noise, of three classes."""
    pixels = (
        np.random.default_rng(0)
        .normal(220, 25, size=(n, SIZE, SIZE, 3))
        .clip(0, 255)
        .astype(np.uint8)
    )
    return from_arrays(pixels, labels=np.arange(n) % 3, class_names=("a", "b", "c"), name="bright")


@pytest.fixture(scope="module")
def models() -> dict[str, mp.Model]:
    found = planted_models()
    for name, model in found.items():
        model.name = f"planted-{name}"
    return found


@pytest.fixture(scope="module")
def study(models: dict[str, mp.Model]) -> Study:
    budget = replace(
        QUICK, grid=(4, 4), methods=("saliency", "integrated_gradients", "occlusion", "gradcam")
    )
    return attributed(
        list(models.values()), bright(), AttributionSettings(budget=budget, target="predicted")
    )


def attributed(
    models: list[mp.Model], images: mp.Images, settings: AttributionSettings, strict: bool = False
) -> Study:
    """All analyses of attributions, finished."""
    study = Study(
        images, names={"attribution": ROOM.names}, strict=strict, shared={"attribution": settings}
    )
    for model in models:
        study.add(model)
    study.finish()
    return study


@pytest.fixture(scope="module")
def planted(study: Study) -> list[Result]:
    return study.results


def test_the_planted_quadrant_is_told_from_random_in_every_family(
    models: dict[str, mp.Model], study: Study
) -> None:
    # A blurred bright image is still bright: what is put back has to come from nothing.
    options = {"grid": (4, 4), "insertion_baseline": "mean", "random_orders": 6, "steps": 16}
    maps = [a for i in study.networks for a in i.results(at.Attribution) if a.method != "gradcam"]
    made = {
        name: [a for a in maps if a.model.fingerprint == m.fingerprint]
        for name, m in models.items()
    }
    section = only(
        [at.perturbation_curves(m, bright(), made[name], **options) for name, m in models.items()]
    )  # type: ignore[arg-type]
    assert len(section.paragraphs) == 6
    for text in section.paragraphs:
        assert "gain over random orders" in text, text
        best = re.split(" performs best| outperforms random orders", text)[0].rpartition(": ")[2]
        assert best in ("integrated gradients", "occlusion"), text


def test_every_result_of_the_planted_networks_is_drawn_and_stored(
    planted: list[Result], tmp_path: Any
) -> None:
    kinds = [type(r).__name__ for r in planted]
    assert "Skipped" not in kinds
    # Three networks, two methods randomised, one Mixer; four methods that all three have.
    counted = {name: kinds.count(name) for name in kinds}
    assert counted == {
        "PerturbationCurves": 3,
        "Faithfulness": 3,
        "RandomisationCheck": 6,
        "Agreement": 3 + 4,
        "Conductance": 1,
        "AttributionPanel": 1,
    }
    again = load_results(save_results(planted, tmp_path / "results.json"))
    old, new = make_sections(planted), make_sections(again)
    assert [s.paragraphs for s in old] == [s.paragraphs for s in new]
    assert not [text for s in new for text in s.paragraphs if "nan" in text]
    names = [p.file_name for s in new for p in s.content if isinstance(p, Picture)]
    assert len(set(names)) == len(names) == 6
    assert all(p.data for s in new for p in s.content if isinstance(p, Picture))


def test_many_networks_are_counted_and_drawn_as_a_matrix() -> None:
    """Of four networks the first two agree perfectly, the last two least; other images' maps agree
    by 0.3."""
    table = np.full((4, 4, N), 0.2)
    table[0, 1] = table[1, 0] = 1.0
    table[2, 3] = table[3, 2] = -0.1
    table += 1e-3 * JITTER
    models, null = tuple(record(f"zoo:net-{k}") for k in range(4)), np.full((4, 4), 0.3)
    models = tuple(replace(m, fingerprint=str(k)) for k, m in enumerate(models))
    p_value = np.where(np.eye(4, k=1) + np.eye(4, k=-1) * (np.arange(4) < 2), 0.001, 0.6)
    p_value[1, 2] = p_value[2, 3] = 0.6
    found = at.Agreement(
        models, ("saliency",) * 4, IMAGES, IDS, (4, 4), True, table, null, null, p_value, 20
    )
    section = only([found])
    assert section.paragraphs == (
        "Saliency: 1 of 6 pairs of networks agree more than expected from other images' maps; from "
        "net-2 and net-3 -0.10 [-0.10, -0.10], not distinguishable from other images (other images "
        "0.30, 95th percentile 0.30) to net-0 and net-1 1.00 [1.00, 1.00] (other images 0.30, 95th "
        "percentile 0.30); n = 12.",
    )
    picture = next(item for item in section.content if isinstance(item, Picture))
    assert picture.file_name == "agreement-networks"
    assert picture.figure.axes[0].get_title(loc="left") == "saliency"


def test_maps_of_one_cell_are_constant_and_said_to_be() -> None:
    images, model = bright(5), planted_models()["cnn"]
    one_cell = mp.attribute(model, images, "gradcam")
    assert one_cell.native is not None
    assert one_cell.native.shape == (5, 1, 1)
    assert (one_cell.maps == one_cell.native).all()
    found = at.randomisation_check(model, images, one_cell)
    assert only([found]).paragraphs == (
        f"{model.name}, Grad-CAM: every map is constant, so rank correlations are undefined.",
    )


def test_maps_of_a_panel_are_those_of_the_attributions() -> None:
    images, model = bright(5), planted_models()["mixer"]
    maps = [
        mp.attribute(model, images, name, target=[0, 2, 2, 0, 2])
        for name in ("integrated_gradients", "saliency")
    ]
    panel = at.attribution_panel(maps, images, indices=[1, 4])
    again = from_dict(to_dict(panel))
    for c, a in enumerate(maps):
        for row, i in enumerate((1, 4)):
            limit = np.quantile(np.abs(a.maps[i]), 0.99)
            np.testing.assert_allclose(
                again.scaled_map(c, row), np.clip(a.maps[i] / limit, -1, 1), atol=0.5 / 127 + 1e-6
            )
    np.testing.assert_array_equal(again.pictures[1], np.asarray(images[4]))
    np.testing.assert_array_equal(panel.targets, [[2, 2], [2, 2]])
    assert panel.take([1]).ids == (images.ids[4],)
    assert np.isnan(panel.largest_gap[1])
    assert panel.largest_gap[0] == pytest.approx(maps[0].relative_delta.max())
    text = only([panel]).paragraphs
    assert text[0] == (
        "Images: 5 images of bright, 3 classes; 2 of them are shown. Target: class 2 for all "
        "images."
    )


def test_empty_and_incomplete_maps_are_said() -> None:
    images, model = bright(3), planted_models()["cnn"]
    found = mp.attribute(model, images, target=0)
    missing = replace(
        found,
        maps=found.maps * np.array([1, 0, 0.5])[:, None, None],
        convergence_delta=found.logit_difference * 0.5,
    )
    said = " ".join(only([at.attribution_panel([missing], images)]).paragraphs)
    assert "1 of 3 integrated gradients maps are zero everywhere" in said
    assert "50.0 %" in said
    assert "not all maps are within 1.0 %" in said


def test_targets_by_word_index_and_name() -> None:
    model, images = planted_models()["mixer"], bright(4)
    model.class_names = ("a", "b", "c")
    assert find_target("auto", model, images) == find_target("true", model, images) == "labels"
    assert find_target("predicted", model, images) is None
    assert find_target("2", model, images) == 2
    assert find_target("C", model, images) == 2
    with pytest.raises(MeasureError, match="no class 'd'; "):
        find_target("d", model, images)
    other = replace(images, class_names=("a", "d"), labels=images.labels % 2)  # type: ignore[operator]
    assert find_target("auto", model, other) is None
    with pytest.raises(
        MeasureError, match=r"no true class can be explained, for .* does not have among its 3: 'd'"
    ):
        find_target("true", model, other)
    bare = replace(images, labels=None, class_names=None)
    with pytest.raises(ImagesError, match="have no labels"):
        find_target("true", model, bare)
    model.class_names = None
    with pytest.raises(MeasureError, match=r"have no names here.*0 to 2"):
        find_target("a", model, bare)
    assert ROOM.check(ROOM.names) == ROOM.names
    with pytest.raises(MeasureError, match="closest: curves"):
        ROOM.check(["curve"])


def test_a_zero_head_is_left_out_of_a_report_with_its_reason() -> None:
    """timm's untrained Mixer: no map, no conductance, and one sentence."""
    model = tiny_models()[0]
    (left,) = attributed(
        [model], mp.load_images("demo", limit=2), AttributionSettings(budget=QUICK)
    ).results
    assert isinstance(left, Skipped)
    assert left.step == "attributions of tiny-mixer"
    assert "its head is zero" in left.reason
    with pytest.raises(MeasureError, match="its head is zero"):
        at.layer_conductance(model, mp.load_images("demo", limit=2))


def test_an_image_alone_has_numbers_without_intervals() -> None:
    images, model = bright(1), planted_models()["mixer"]
    budget = replace(QUICK, grid=(4, 4), methods=("saliency", "occlusion"), randomised=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sections = make_sections(
            attributed([model], images, AttributionSettings(budget=budget), strict=True).results
        )
        assert all(item.data for s in sections for item in s.content if isinstance(item, Picture))
    texts = [text for s in sections for text in s.paragraphs]
    assert texts
    assert not any("nan" in text for text in texts)


def test_one_network_alone_and_attributions_without_images() -> None:
    model = mp.load_model(
        MlpMixer(img_size=32, patch_size=8, embed_dim=8, num_blocks=1, num_classes=3), **SPEC
    )
    model.module.head.weight.data.normal_()
    found = mp.attribute(model, mp.load_images("demo", limit=2), "saliency", target=0)
    section = only([found])
    assert section.anchor == "attribution-sums"
    assert "saliency, |gradient| of the logit" in section.paragraphs[0]
