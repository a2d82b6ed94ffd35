"""Lesions and the importance of units against edits by hand, scipy and scikit-learn."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import roc_auc_score

import mixer_probe as mp
from mixer_probe.capture import Inputs
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError
from mixer_probe.core.hooks import hooked, returned
from mixer_probe.images import Images, from_arrays
from mixer_probe.mixing import Lesions, MixingSettings, UnitImportance, lesions, unit_importance
from mixer_probe.mixing.analyses import LESIONS
from mixer_probe.mixing.figures.lesions import importance_scatter, lesion_curves
from mixer_probe.mixing.findings.lesions import importance_sentences, lesion_sentences
from mixer_probe.models import Model
from mixer_probe.stats import rank_correlation, rank_interval, rank_null
from tests.networks import CASES, as_model, noise

NAMES = ("cat", "dog", "frog", "bird", "ship")
VITS = ("vit", "deit-distilled", "beit", "eva", "swin", "parallel-things", "parallel-scaling")
CNNS = ("resnet-bottleneck", "convnext", "convmixer")
FAMILIES = ("mixer", "gmixer", "resmlp", "gmlp", *VITS, *CNNS)


def pictures(n: int, size: int = 32, seed: int = 0) -> Images:
    """Noise with a colour, without labels."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 120, (n, 1, 1, 3))
    pixels = rng.integers(0, 130, (n, size, size, 3)) + colours
    return from_arrays(pixels.astype(np.uint8), None, name="pictures")


def logits(model: Model, images: Images) -> torch.Tensor:
    (batch,) = images.batches(transform_of(model), len(images))
    with torch.no_grad():
        found: torch.Tensor = model.module(batch.to(model.dtype))
    return found


def network(case: str, dtype: torch.dtype = torch.float32) -> Model:
    model = as_model(CASES[case].network(), CASES[case].size, dtype=dtype, class_names=NAMES)
    return centred(model)


def centred(model: Model) -> Model:
    """The same network with another bias in its head, so that it finds each class in some image."""
    heads = [m for m in model.module.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        mean = logits(model, pictures(24, model.input.size[1])).mean(0)
        [m for m in heads if m.out_features == len(NAMES)][-1].bias -= mean
    return model


def answered(model: Model, n: int) -> Images:
    """Images whose classes the network finds, all but a few."""
    plain = pictures(n, model.input.size[1])
    labels = logits(model, plain).argmax(1).numpy()
    labels[:2] = (labels[:2] + 1) % 5
    return replace(plain, labels=labels, class_names=NAMES)


def constant(model: Model) -> Model:
    """The same network with a head that always gives the first class."""
    head: Any = model.module.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0]))
    return model


@pytest.mark.parametrize(
    "case",
    FAMILIES,
)
def test_each_lesion_is_the_whole_network_with_one_layer_changed(case: str) -> None:
    """What was computed once for all lesions is what each pass would have computed."""
    model = network(case, torch.float64)
    images = pictures(7, CASES[case].size)
    found = lesions(model, images, batch_size=4)
    assert not found.labelled
    np.testing.assert_array_equal(found.labels, logits(model, images).argmax(1))
    layers = [layer for layer in model.layers if layer.kind in ("spatial", "channel", "block")]
    assert list(found.layers) == layers
    for layer, how, predicted in zip(layers, found.ablations, found.predicted[1:], strict=True):
        what = mp.ablate("skip" if how == "skipped" else "mean")
        with mp.intervene(model, {layer.name: what}, images=images):
            expected = logits(model, images).argmax(1).numpy()
        np.testing.assert_array_equal(predicted, expected, err_msg=layer.name)
        assert (how == "skipped") <= (layer.kind == "block")
    assert "skipped" in found.ablations


def test_a_module_that_returns_what_it_is_given_runs_nothing_inside() -> None:
    model, images = network("mixer"), noise(2)
    seen: list[str] = []
    value = torch.zeros(2, 16, 24)
    with (
        returned(model.module, {"blocks.0": value}),
        hooked(model.module, ["blocks.0", "blocks.0.mlp_tokens"], lambda c: seen.append(c.path)),
        torch.no_grad(),
    ):
        first = model.module(images)
        elsewhere: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: elsewhere.append(model.module(images).detach()))
        thread.start()
        thread.join()
    assert seen == ["blocks.0"]
    with torch.no_grad():
        assert torch.equal(elsewhere[0], model.module(images))
        assert not torch.equal(first, elsewhere[0])
    assert "forward" not in vars(model.module.get_submodule("blocks.0"))


@pytest.fixture(scope="module")
def found() -> Lesions:
    model = network("mixer")
    return lesions(model, answered(model, 40))


def test_all_numbers_follow_from_the_answers(found: Lesions) -> None:
    assert found.labelled
    assert found.able
    assert found.intact == pytest.approx(38 / 40)
    right = found.predicted == found.labels
    for i in range(len(found.layers)):
        wilson = binomtest(int(right[i + 1].sum()), 40).proportion_ci(method="wilson")
        assert found.accuracy[i] == pytest.approx(right[i + 1].mean())
        np.testing.assert_allclose(found.interval[i], [wilson.low, wilson.high], atol=1e-12)
        lost, won = int((right[0] & ~right[i + 1]).sum()), int((~right[0] & right[i + 1]).sum())
        expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert found.p_value[i] == pytest.approx(expected)
        assert found.drop_interval[i, 0] <= found.drop[i] <= found.drop_interval[i, 1]
    by_image = found.lost_by_image("block")
    assert by_image.mean() == pytest.approx(found.drop[found.of_kind("block")].mean())
    assert found.chance == np.bincount(found.labels).max() / 40
    frame = found.to_frame()
    assert len(frame) == 7
    assert frame.layer[0] == "none"
    assert frame.accuracy[0] == found.intact
    assert set(frame.ablation) == {"none", "mean", "skipped"}


def test_other_ablations() -> None:
    model = network("vit", torch.float64)
    images = answered(model, 9)
    zero = lesions(model, images, "zero")
    for layer, predicted in zip(zero.layers, zero.predicted[1:], strict=True):
        if layer.kind != "block":
            with mp.intervene(model, {layer.name: mp.ablate("zero")}):
                np.testing.assert_array_equal(predicted, logits(model, images).argmax(1))
    others = pictures(5, seed=3)
    assert set(lesions(model, images, "resample", reference=others).ablations) == {
        "resample",
        "skipped",
    }
    moved = lesions(model, images, reference=pictures(5, seed=4))
    assert moved.layers == zero.layers
    with pytest.raises(MeasureError, match="unknown ablation"):
        lesions(model, images, "half")  # type: ignore[arg-type]


def test_weights_that_are_shared_over_depth() -> None:
    model = network("mixer", torch.float64)
    model.module.blocks[1] = model.module.blocks[0]  # type: ignore[index, operator]
    model = centred(as_model(model.module, dtype=torch.float64, class_names=NAMES))
    images = pictures(6)
    result = lesions(model, images)
    assert len(result.layers) == 6
    for layer, how, predicted in zip(
        result.layers, result.ablations, result.predicted[1:], strict=True
    ):
        what = mp.ablate("skip" if how == "skipped" else "mean")
        with mp.intervene(model, {layer.name: what}, images=images):
            np.testing.assert_array_equal(predicted, logits(model, images).argmax(1))


def test_what_has_nothing_to_lose_is_not_ablated() -> None:
    model = network("mixer")
    images = answered(model, 20)
    at_chance = lesions(model, replace(images, labels=np.arange(20) % 5))
    assert at_chance.layers == ()
    assert "not above chance" in lesion_sentences(at_chance, [at_chance])[0]
    one = lesions(constant(network("mixer")), pictures(20))
    assert one.layers == ()
    assert one.constant
    assert "one class for all 20 images" in lesion_sentences(one, [one])[0]
    assert one.to_frame().layer.tolist() == ["none"]
    with pytest.raises(MeasureError, match="no lesion to draw"):
        lesion_curves([one, at_chance])
    headless = as_model(CASES["mixer"].network(), 32)
    headless.module.reset_classifier(0)  # type: ignore[operator]
    with pytest.raises(MeasureError, match="no classifier"):
        lesions(headless, images)
    with pytest.raises(ImagesError, match="takes"):
        lesions(model, torch.zeros(3, 3, 16, 16))


def test_sentences_and_figures(found: Lesions) -> None:
    said = lesion_sentences(found, [found])
    assert "n = 40" in said[0]
    assert "of 2 drops significant" in said[0]
    assert "paired by image" in said[1]
    unlabelled = lesions(network("resnet-bottleneck"), pictures(12, 64))
    assert "agreement with the intact network" in lesion_sentences(unlabelled, [unlabelled])[0]
    figure = lesion_curves([found, unlabelled])
    assert len(figure.axes) == 3
    assert len(lesion_curves([unlabelled]).axes) == 3


# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "layer", "of"),
    [
        ("mixer", "blocks.1.mlp_channels", "channel"),
        ("gmixer", "blocks.0.mlp_tokens.drop1", "hidden unit"),
        ("deit-distilled", "blocks.0", "channel"),
        ("convnext", "stages.2.blocks.0.mlp", "channel"),
    ],
)
def test_units_against_an_edit_by_hand(case: str, layer: str, of: str) -> None:
    model = network(case, torch.float64)
    images = answered(model, 18)
    units = [1, 4, 7]
    result = unit_importance(model, images, layer, units=units, permutations=19, batch_size=5)
    assert result.of == of
    hidden = of == "hidden unit"
    labels = np.asarray(images.labels)

    def margin(given: torch.Tensor) -> np.ndarray:
        own = given.numpy()[np.arange(18), labels]
        rest = given.numpy().copy()
        rest[np.arange(18), labels] = -np.inf
        return np.asarray(own - rest.max(1))

    intact, module = margin(logits(model, images)), model.module.get_submodule(layer)
    for k, unit in enumerate(units):

        def by_mean(_m: Any, _i: Any, out: torch.Tensor, unit: int = unit) -> torch.Tensor:
            out = out.clone()
            out[..., unit] = out[..., unit].mean(0, keepdim=True)
            return out

        hook = module.register_forward_hook(by_mean)
        given = logits(model, images)
        hook.remove()
        assert result.margin_drop[k] == pytest.approx((intact - margin(given)).mean(), abs=1e-9)
        np.testing.assert_array_equal(result.right[k + 1], given.argmax(1).numpy() == labels)
    reps = mp.extract(model, images, layer, reduce="none")[layer]
    values = reps.mean(2)[:, units] if hidden else reps.mean(1)[:, units]
    for k in range(len(units)):
        areas = {c: roc_auc_score(labels == c, values[:, k]) for c in np.unique(labels).tolist()}
        best = max(areas.values(), key=lambda a: abs(a - 0.5))
        assert result.auroc[k] == pytest.approx(0.5 + abs(best - 0.5))
        assert abs(areas[NAMES.index(result.class_names[k])] - 0.5) == pytest.approx(
            abs(best - 0.5)
        )
    rho = spearmanr(result.margin_drop, result.auroc).statistic
    assert result.by_margin.value == pytest.approx(rho)
    assert len(result.to_frame()) == 3


def test_the_default_layer_and_units() -> None:
    model = network("mixer")
    images = answered(model, 12)
    found = unit_importance(model, images, most=5, ablated_images=6, permutations=0)
    assert found.layer.name == "blocks.1.mlp_channels"
    assert found.units.tolist() == [0, 6, 12, 17, 23]
    assert (found.n, found.selectivity_images) == (6, 12)
    assert np.isnan(found.by_margin.p_value)
    assert np.isfinite(found.by_margin.low)
    block = unit_importance(network("resnet18"), pictures(3, 64), most=1, permutations=0)
    assert block.layer.kind == "block"
    assert np.isnan(block.auroc).all()
    assert not block.labelled
    assert "needs labels" in importance_sentences(block)[1]
    with pytest.raises(MeasureError, match="no selectivity to draw"):
        importance_scatter([block])
    assert importance_scatter([found]).axes
    assert "5 channels" in importance_sentences(found)[0]


def test_a_unit_that_does_nothing_costs_nothing() -> None:
    model = network("mixer")
    images = answered(model, 12)
    fc2: Any = model.module.get_submodule("blocks.1.mlp_channels.fc2")
    with torch.no_grad():
        fc2.weight[3] = 0
    result = unit_importance(model, images, units=[2, 3, 4], permutations=19)
    assert result.margin_drop[1] == pytest.approx(0, abs=1e-6)
    assert np.isnan(result.auroc[1])
    assert result.class_names[1] == ""


def test_what_is_no_unit_is_refused() -> None:
    model = network("mixer")
    images = pictures(4)
    for units in ([24], [-1], [0.5], []):
        with pytest.raises(MeasureError, match="has 24 units"):
            unit_importance(model, images, units=units)  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="no layer"):
        unit_importance(model, images, "blocks.7")
    with pytest.raises(MeasureError, match="permutations"):
        unit_importance(model, images, permutations=5)


def test_rank_correlations() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 30))
    expected = spearmanr(x, y)
    assert float(rank_correlation(x, y)) == pytest.approx(expected.statistic)
    null = rank_null(x, y, 2000, seed=1)
    assert (null >= abs(expected.statistic)).mean() == pytest.approx(expected.pvalue, abs=0.05)
    assert np.isnan(rank_correlation(x, np.ones(30)))
    low, high = rank_interval(1.0, 30)
    assert 0.9 < low < high == 1.0
    assert np.isnan(rank_interval(0.5, 3)).all()


def test_the_analysis_gives_both_and_of_a_constant_network_the_first_alone() -> None:
    model = network("mixer")
    images = answered(model, 24)
    shared = {"mixing": MixingSettings(lesion_images=20, units=3, unit_images=5)}
    kinds = [type(r) for r in LESIONS.run(Inputs(model, images, shared=dict(shared)))]
    assert kinds == [Lesions, UnitImportance]
    other = constant(network("mixer"))
    assert [type(r) for r in LESIONS.run(Inputs(other, images, shared=dict(shared)))] == [Lesions]
