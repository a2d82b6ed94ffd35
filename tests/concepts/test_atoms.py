"""What atoms respond to, against formulas and planted ones, and what their removal does, against
the closed form of a linear network."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mixer_probe.capture import extract
from mixer_probe.capture.stream import transform_of
from mixer_probe.concepts.atoms import (
    ALL,
    SOME,
    ConceptAtoms,
    _changes,
    choose_atoms,
    class_selectivity,
    concept_atoms,
    mean_frequency,
    position_dependence,
    random_directions,
)
from mixer_probe.concepts.dictionary import Dictionary
from mixer_probe.concepts.findings.atoms import atom_sentences
from mixer_probe.concepts.grid_activations import GridActivations
from mixer_probe.concepts.views.atoms import atom_sections
from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.result import load_results, save_results
from mixer_probe.core.section import Picture
from mixer_probe.core.words import points
from mixer_probe.images import from_arrays
from mixer_probe.models import Model
from mixer_probe.stats import mean_interval
from tests.concepts.linear_networks import (
    CLASSES,
    LAYER,
    SIDE,
    SIZE,
    atoms,
    by_hand,
    coloured,
    linear_network,
    parts_of,
    planted_dictionary,
)
from tests.concepts.planted import activations
from tests.networks import CASES, as_model

# -- which atoms -----------------------------------------------------------------------------------


def test_shared_and_specific_atoms_take_turns() -> None:
    energies = np.array(
        [
            # Owners: both, first, second, both, neither, none (dead), first, second.
            [1.0, 4.0, 0.0, 3.0, 8.0, 0.0, 2.0, 0.05],
            [1.0, 0.1, 1.0, 2.0, 2.0, 0.0, 0.0, 0.95],
        ]
    )
    index, owner = choose_atoms(energies, 3)
    assert index.tolist() == [3, 1, 2]
    assert owner.tolist() == [ALL, 0, 1]
    index, owner = choose_atoms(energies, 8)
    assert index.tolist() == [3, 0, 1, 6, 2, 7, 4]
    assert owner.tolist() == [ALL, ALL, 0, 0, 1, 1, SOME]
    alone, owner = choose_atoms(energies[:1], 2)
    assert alone.tolist() == [4, 1]
    assert owner.tolist() == [0, 0]


# -- what they respond to --------------------------------------------------------------------------


def test_variance_by_position_of_an_atom_at_one_cell() -> None:
    """w_i at one of four cells: n w̄² 3/4 between cells, of a total of Σ w_i² - n w̄² / 4."""
    rng = np.random.default_rng(0)
    w = rng.uniform(1, 2, 30)
    maps = np.zeros((1, 3, 30, 2, 2), dtype=np.float32)
    maps[0, 0, :, 0, 1] = w
    anywhere = rng.integers(4, size=30)
    maps[0, 1].reshape(30, 4)[np.arange(30), anywhere] = w
    found = position_dependence(maps, np.array([[True, True, True]]), 199, 1)
    total = np.square(w).sum() - 30 * w.mean() ** 2 / 4
    assert found["position_r2"][0, 0] == pytest.approx(30 * w.mean() ** 2 * 0.75 / total, rel=1e-5)
    # Of every image 3/4 of the squares are within it.
    assert found["position_null"][0, :2] == pytest.approx(
        0.75 * np.square(w).sum() / 30 / total, rel=1e-5
    )
    assert found["position_p"][0, 0] == 1 / 200
    assert found["position_p"][0, 1] > 0.05
    # An atom that is never active.
    assert all(np.isnan(found[f"position_{name}"][0, 2]) for name in ("r2", "null", "p"))
    np.testing.assert_allclose(found["mean_map"][0, 0], [[0, w.mean()], [0, 0]], rtol=1e-6)


def test_the_null_of_position_is_the_mean_over_all_shifts() -> None:
    maps = np.random.default_rng(1).exponential(size=(3, 2, 3))
    values = []
    for shifts in product(range(6), repeat=3):
        moved = np.stack(
            [np.roll(m, divmod(s, 3), (0, 1)) for m, s in zip(maps, shifts, strict=True)]
        )
        means = moved.mean(0)
        values.append(
            3 * np.square(means - maps.mean()).sum() / np.square(maps - maps.mean()).sum()
        )
    found = position_dependence(maps[None, None], np.array([[True]]), 2000, 0)
    assert found["position_null"].item() == pytest.approx(np.mean(values))
    own = np.mean(np.array(values) >= found["position_r2"].item() - 1e-12)
    assert found["position_p"].item() == pytest.approx(own, abs=0.04)


def test_an_atom_of_one_class_is_selective_for_it() -> None:
    rng = np.random.default_rng(2)
    target = rng.permutation(np.repeat(np.arange(4), [10, 20, 15, 15]))
    x = rng.exponential(size=(1, 8, 60))
    x[0, 0] *= 0.1
    x[0, 0, target == 2] += 5
    x[0, 1, rng.random(60) < 0.5] = 0
    x[0, 7] = 0
    found = class_selectivity(x, target, np.ones((1, 8), dtype=bool), 199, 0)
    assert found["best_class"][0, 0] == 2
    assert found["auroc"][0, 0] == 1
    assert found["class_p"][0, 0] == 1 / 200
    assert found["class_p"][0, 1:7].min() > 0.05
    assert found["best_class"][0, 7] == -1
    assert np.isnan([found["auroc"][0, 7], found["class_p"][0, 7]]).all()
    for k in range(7):
        means = [x[0, k, target == c].mean() for c in range(4)]
        np.testing.assert_allclose(found["class_means"][0, k], means)
        best = int(np.argmax(means))
        assert found["auroc"][0, k] == pytest.approx(roc_auc_score(target == best, x[0, k]))


def test_a_corrected_p_value_is_below_its_level_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    target, hits = np.arange(40) % 4, 0
    present = np.arange(12).reshape(2, 6) != 5
    for seed in range(60):
        x = rng.exponential(size=(2, 6, 40)) * (rng.random((2, 6, 40)) < 0.3)
        hits += np.nanmin(class_selectivity(x, target, present, 39, seed)["class_p"]) <= 0.05
    assert hits <= 8


def test_the_frequency_of_waves() -> None:
    """Waves of 1 and of 3 cycles per image, with 4 times and once the power: (4 + 3) / 5."""
    place = 2 * np.pi * np.arange(8) / 8
    maps = np.zeros((1, 3, 20, 8, 8))
    maps[0, 0] = 1 + np.cos(2 * place)
    maps[0, 1] = 5 + 2 * np.cos(place)[:, None] + np.cos(3 * place)
    found, white = mean_frequency(maps)
    assert found[0, 0, 0] == pytest.approx(2)
    assert found[0, 1, 0] == pytest.approx(7 / 5)
    assert np.isnan(found[0, 2]).all()
    steps = [min(i, 8 - i) for i in range(8)]
    assert white == pytest.approx(np.sum([np.hypot(i, j) for i in steps for j in steps]) / 63)
    noise, _ = mean_frequency(np.random.default_rng(4).normal(size=(1, 1, 400, 8, 8)))
    value, low, high = noise[0, 0]
    assert low < white < high
    assert high - low < 0.1
    assert low < value < high


def test_the_interval_of_a_frequency_holds_for_other_images() -> None:
    """Smooth and rough maps of very different power."""
    rng, inside = np.random.default_rng(6), []

    def drawn(n: int) -> np.ndarray:
        noise = rng.normal(size=(1, 1, n, 6, 6)) * rng.uniform(0.5, 1.5, size=(1, 1, n, 1, 1))
        smooth = rng.random((1, 1, n, 1, 1)) < 0.5
        return np.where(smooth, noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2), noise)

    truth = mean_frequency(drawn(20000))[0][0, 0, 0]
    for _ in range(200):
        _, low, high = mean_frequency(drawn(50))[0][0, 0]
        inside.append(low <= truth <= high)
    assert 0.9 <= np.mean(inside) <= 0.985
    # Of one image that has nearly all of the power nothing is known of others.
    rare = drawn(50)
    rare[:, :, 1:] *= 0.01
    value, low, high = mean_frequency(rare)[0][0, 0]
    assert np.isfinite(value)
    assert np.isnan([low, high]).all()


# -- what networks do without them -----------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return linear_network(0)


@pytest.mark.parametrize("side", [4, 2, 1])
def test_removal_in_a_linear_network_is_the_closed_form(model: Model, side: int) -> None:
    """The logit falls by head · (mean code over cells) · scale · decoder, whichever grid."""
    images, d = coloured(30), by_hand(2, 5)
    (part,) = parts_of([model], images, side)
    head = model.module.head.weight.detach()
    index = np.array([3, 0])
    scale = d.scales[1]
    # Orthogonal to the row of the head of every class.
    free = torch.linalg.svd(head).Vh[3]
    directions = torch.stack([torch.stack([scale * d.decoders[1][k], free]) for k in index])
    change, right = _changes(d, 1, model, part, index, images, directions.double(), 8)
    code = d.code(1, d.normalised(1, part.rows(np.arange(30)))).reshape(30, side**2, 5).mean(1)
    assert images.labels is not None
    for i, k in enumerate(index):
        expected = -code[:, k] * (head @ (scale * d.decoders[1][k]))[images.labels]
        np.testing.assert_allclose(change[i, 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(change[:, 1], 0, atol=1e-5)
    # Predictions, from activations that are changed by hand.
    pooled = torch.from_numpy(part.values).mean(1)
    bias = model.module.head.bias.detach()
    for i, k in enumerate(index):
        logits = (pooled - code[:, [k]] * scale * d.decoders[1][k]) @ head.T + bias
        np.testing.assert_array_equal(right[i], logits.argmax(1).numpy() == images.labels)
    intact = (pooled @ head.T + bias).argmax(1).numpy() == images.labels
    np.testing.assert_array_equal(right[-1], intact)


def test_removal_in_a_transformer_is_that_at_its_positions_alone() -> None:
    """Against a hook of its own: the class token stays as it is."""
    case = CASES["vit"]
    names = tuple(f"class {i}" for i in range(5))
    model = as_model(case.network(), case.size, class_names=names)
    layer, rng = model.layer(LAYER), np.random.default_rng(8)
    pixels = rng.integers(0, 256, (10, case.size, case.size, 3), dtype=np.uint8)
    images = from_arrays(pixels, np.arange(10) % 5, class_names=names)
    assert layer.prefix_tokens
    assert layer.grid == (4, 4)
    d = Dictionary([layer.channels], 4, 2)
    for parameter in d.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    d.requires_grad_(False)
    part = GridActivations.of(model, images, LAYER, (2, 2))
    (x,) = images.batches(transform_of(model), 10)
    change, right = _changes(
        d, 0, model, part, np.array([1]), images, d.decoder[[1]][:, None].double(), 4
    )
    codes = d.code(0, part.rows(np.arange(10))).reshape(10, 2, 2, 4)[..., 1]
    at_positions = codes.repeat_interleave(2, 1).repeat_interleave(2, 2).reshape(10, 16, 1)

    def hook(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, layer.prefix_tokens :] -= at_positions * d.decoder[1]
        return changed

    with torch.no_grad():
        before = model.module(x)
        handle = model.module.get_submodule(LAYER).register_forward_hook(hook)
        after = model.module(x)
        handle.remove()
    rows, labels = np.arange(10), np.arange(10) % 5
    expected = (after - before)[rows, labels]
    assert float(expected.abs().max()) > 0.01
    np.testing.assert_allclose(change[0, 0], expected, atol=1e-4)
    np.testing.assert_array_equal(right[0], after.argmax(1).numpy() == labels)


def test_random_directions_have_the_covariance_of_the_layer() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 4, 3)) * [3.0, 1.0, 0.0] + 7
    part = activations(x)
    found = random_directions(part, 4000, 0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    np.testing.assert_array_equal(found, random_directions(part, 4000, 0))
    assert not np.array_equal(found, random_directions(part, 4000, 1))
    assert np.abs(found[:, 2]).max() < 1e-6
    # Normals of deviations 3 and 1: the angle is a Cauchy variable, |tan| < 1/3 in half of them.
    assert np.mean(np.abs(found[:, 1] / found[:, 0]) < 1 / 3) == pytest.approx(0.5, abs=0.03)
    assert np.abs(found.mean(0)).max() < 0.05


# -- all together ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> ConceptAtoms:
    return atoms()


def test_owners_and_activities_are_those_planted(found: ConceptAtoms) -> None:
    assert found.index[found.of(ALL)].tolist() == [0]
    assert sorted(found.index[found.of(0)].tolist()) == [1, 3]
    assert found.index[found.of(1)].tolist() == [2]
    assert found.sharedness[found.of(0)].max() == 0
    assert (found.energies[1, found.of(0)] == 0).all()
    models, images = [linear_network(0), linear_network(1)], coloured(60)
    d = planted_dictionary(models)
    run = extract(models[1], images, LAYER, reduce="none")[LAYER]
    activity = np.maximum((run - d.means[6:].numpy()) / float(d.scales[1]), 0)[..., 2]
    k = int(found.of(1)[0])
    best = np.argsort(-activity.max(1))[:3]
    np.testing.assert_array_equal(found.top_image[1, k], best)
    np.testing.assert_array_equal(found.top_cell[1, k], activity[best].argmax(1))
    np.testing.assert_allclose(found.top_value[1, k], activity[best].max(1), rtol=1e-5)
    assert found.energies[1, k] == pytest.approx(float(np.square(activity).mean()), rel=1e-5)


def test_crops_are_of_the_input_around_the_cell(found: ConceptAtoms) -> None:
    pixels = np.stack([np.asarray(image) for image in coloured(60)])
    side = SIZE // SIDE
    for rank in range(3):
        k = int(found.of(1)[0])
        row, column = divmod(int(found.top_cell[1, k, rank]), SIDE)
        top, left, bottom, right = np.rint(found.boxes[1, k, rank] * SIZE / 2).astype(int)
        crop = found.crops[1, k, rank][top:bottom, left:right]
        image = pixels[found.top_image[1, k, rank]]
        expected = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        np.testing.assert_array_equal(crop, expected)
        assert found.crops.shape[3:] == (SIZE // 2, SIZE // 2, 3)


def test_used_atoms_are_told_from_unused_ones(found: ConceptAtoms) -> None:
    shared, used, unused = (int(np.flatnonzero(found.index == k)[0]) for k in (0, 1, 3))
    for k in (shared, used):
        assert found.effect[0, k, 0] > 3 * found.effect[0, unused, 0]
    assert found.effect[0, unused, 0] == pytest.approx(0, abs=1e-5)
    assert found.excess[0, unused, 0] < 0
    assert found.used[0].tolist() == [k in (0, 1) for k in found.index]
    assert (found.control[0, [shared, used, unused]] > 0).all()
    # The second network never has the atoms of the first.
    assert np.isnan(found.effect[1, used]).all()
    assert found.present[:, used].tolist() == [True, False]
    assert found.logit[0, unused, 0] == pytest.approx(0, abs=1e-5)


def test_the_same_seed_gives_the_same_controls(found: ConceptAtoms) -> None:
    models, images = [linear_network(0), linear_network(1)], coloured(60)
    given = planted_dictionary(models), models, parts_of(models, images), images
    few = {"k": 1, "causal_images": 30, "draws": 2, "permutations": 0}
    first, again = (concept_atoms(*given, **few) for _ in range(2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first.control, again.control)
    other = concept_atoms(*given, **few, seed=1)  # type: ignore[arg-type]
    assert not np.array_equal(first.control, other.control)
    assert np.isnan(first.class_p).all()
    without = concept_atoms(*given, **{**few, "causal_images": 0})  # type: ignore[arg-type]
    assert without.n_causal == 0
    assert np.isnan(without.excess).all()
    assert atom_sections([without])


def test_it_is_saved_tabled_and_told(found: ConceptAtoms, tmp_path: Path) -> None:
    (again,) = load_results(save_results([found], tmp_path / "atoms.json"))
    assert again == found
    frame = found.to_frame()
    assert len(frame) == 8
    assert set(frame["shared_by"]) == {"all", "linear0", "linear1"}
    assert set(frame["most_active_class"]) <= {*CLASSES, ""}
    (section,) = atom_sections([found])
    assert section.paragraphs == atom_sentences(found)
    for item in section.content:
        if isinstance(item, Picture):
            assert item.encoded


def test_sentences_count_what_the_intervals_say(found: ConceptAtoms) -> None:
    said = " ".join(atom_sentences(found))
    assert "linear0" in said
    forced = replace(found, excess=np.where(np.isnan(found.excess), np.nan, [1.0, 0.9, 1.1]))
    text = " ".join(atom_sentences(forced))
    assert "2 of 2 of those of linear0 alone and 1 of 1 of those of linear1 alone" in text
    none = replace(found, excess=np.where(np.isnan(found.excess), np.nan, [0.1, -0.1, 0.3]))
    text = " ".join(atom_sentences(none))
    assert "0 of 2 of those of linear0 alone" in text
    assert "0 of 1 in linear0 and 0 of 1 in linear1 (Bonferroni over 5 effects" in text


def test_networks_differ_in_the_same_atoms_where_the_interval_says_so(found: ConceptAtoms) -> None:
    rng = np.random.default_rng(7)
    many = select(found, "atom", [int(found.of(ALL)[0])] * 20)
    noise = 0.02 * rng.normal(size=(2, 20))
    frequency = many.frequency + rng.normal(size=(2, 20, 1))
    more = np.array([[0.0], [0.3]])
    moved = replace(many, position_r2=many.position_null + more + noise, frequency=frequency)
    said = [text for text in atom_sentences(moved) if "The same atoms" in text or "Maps" in text]
    value, low, high = mean_interval(noise[1] - noise[0] + 0.3)
    assert said == [
        "The same atoms depend on position more in linear1 than in linear0: the variance that "
        f"position explains beyond the null is {points(value, low, high)} larger over the 20 atoms "
        "that both have."
    ]


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    models, images = [linear_network(0), linear_network(1)], coloured(60)
    d, parts = planted_dictionary(models), parts_of(models, images)
    with pytest.raises(ImagesError, match="have no labels: class selectivity needs them"):
        concept_atoms(d, models, parts, replace(images, labels=None))
    with pytest.raises(MeasureError, match="different images"):
        concept_atoms(d, models, parts, coloured(60, seed=1))
    with pytest.raises(MeasureError, match=r"network 1 is linear1, .* of linear0 with other"):
        concept_atoms(d, models[::-1], parts, images)
    with pytest.raises(MeasureError, match="1 networks were given for activations of 2"):
        concept_atoms(d, models[:1], parts, images)
    assert images.labels is not None
    one = replace(images, labels=images.labels * 0)
    with pytest.raises(MeasureError, match="two classes or more, not of one"):
        concept_atoms(d, models, parts, one)
    with pytest.raises(MeasureError, match=r"networks with .* channels"):
        concept_atoms(by_hand(1, 4), models, parts, images)
