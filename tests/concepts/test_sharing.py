"""Dictionaries of planted atoms, and what networks share in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mixer_probe.concepts import dictionary as module
from mixer_probe.concepts.dictionary import (
    Dictionary,
    DictionaryRecipe,
    fit_dictionary,
    orders,
    positions_of,
)
from mixer_probe.concepts.grid_activations import GridActivations, common_grid
from mixer_probe.concepts.sharing import ConceptSharing, code_sums, concept_sharing, entropy
from mixer_probe.core.errors import LayerError, MeasureError, StoreError
from mixer_probe.models.layer import Layer
from tests.concepts.planted import SETS, Planted, activations, planted

RECIPE = DictionaryRecipe(40, active=3, epochs=30, batch_size=256, learning_rate=1e-2)
SMALL = DictionaryRecipe(12, active=2, epochs=3, batch_size=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def truth() -> Planted:
    return planted(500)


@pytest.fixture(scope="module")
def learned(truth: Planted) -> Dictionary:
    return fit_dictionary(truth.parts, RECIPE)


@pytest.fixture(scope="module")
def shared(truth: Planted) -> ConceptSharing:
    return concept_sharing(truth.parts, planted(200, draw=1).parts, RECIPE, seeds=1)


def pairs(energies: np.ndarray) -> np.ndarray:
    """Sharing [network, network] from energies [network, atom], atom by atom."""
    found = np.ones((len(energies), len(energies)))
    for i, a in enumerate(energies):
        for j, b in enumerate(energies):
            total = weight = 0.0
            for x, y in zip(a, b, strict=True):
                p = np.array([x, y]) / (x + y) if x + y else np.zeros(2)
                total += (x + y) * -sum(v * np.log2(v) for v in p if v > 0)
                weight += x + y
            found[i, j] = total / weight
    return found


# -- planted atoms ---------------------------------------------------------------------------------


def test_planted_atoms_and_their_sharedness_are_recovered(
    truth: Planted, learned: Dictionary
) -> None:
    cosines = truth.directions @ learned.decoder.numpy().T
    atoms, matched = linear_sum_assignment(-cosines)
    assert cosines[atoms, matched].min() > 0.95
    sums = code_sums(learned, truth.parts, orders(truth.parts, 0, False))
    energies = (sums["squares"].sum(0) * sums["norms"])[:, matched] / sums["positions"].sum()
    np.testing.assert_allclose(entropy(energies, 0), truth.sharedness, atol=0.05)
    # Which network a specific atom is of.
    for atom, networks in enumerate(SETS):
        if len(networks) == 1:
            assert energies[networks[0], atom] > 0.98 * energies[:, atom].sum()
    np.testing.assert_allclose(energies, truth.energies, atol=0.015)


def test_sharing_of_planted_networks(truth: Planted, shared: ConceptSharing) -> None:
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(shared.sharing[off, 0], pairs(truth.energies)[off], atol=0.05)
    own = np.array([[i] == list(which) for which in SETS for i in range(3)]).reshape(-1, 3).T
    expected = (truth.energies * own).sum(1) / truth.energies.sum(1)
    np.testing.assert_allclose(shared.own[:, 0], expected, atol=0.03)
    # What a network does not have cannot be read from its code.
    both = np.array([[[i in s and j in s for s in SETS] for j in range(3)] for i in range(3)])
    expected = (truth.energies[None] * both).sum(-1) / truth.energies.sum(-1)
    np.testing.assert_allclose(shared.r2[..., 0], expected, atol=0.05)
    # 15 atoms of two networks are in both, 27 in either.
    np.testing.assert_allclose(shared.cofiring[off, 0], 15 / 27, atol=0.05)
    for quantity in (shared.r2, shared.sharing, shared.cofiring):
        value, low, high = np.moveaxis(quantity[off], -1, 0)
        assert (low < value).all()
        assert (value < high).all()


def test_shuffled_images_share_nothing(truth: Planted) -> None:
    null = concept_sharing(
        truth.parts, planted(100, draw=1).parts, RECIPE, condition="shuffled images", seeds=1
    )
    off = ~np.eye(3, dtype=bool)
    assert null.r2[off, 0].max() < 0.01
    assert null.sharing[off, 0].max() < 0.01
    assert null.cofiring[off, 0].max() < 0.01
    assert null.own[:, 0].min() > 0.99


def test_two_equal_networks_share_everything() -> None:
    part = planted(120).parts[0]
    twin = replace(part, model=replace(part.model, name="twin", fingerprint="twin"))
    r = concept_sharing([part, twin], [part, twin], replace(SMALL, epochs=6), seeds=2)
    assert r.sharing[0, 1, 0] > 0.98
    assert r.cofiring[0, 1, 0] > 0.9
    assert r.r2[0, 1, 0] == pytest.approx(r.r2[0, 0, 0], abs=0.02)
    assert not r.own[:, 0].any()
    assert r.sharedness.shape == (2, 12)


# -- formulas --------------------------------------------------------------------------------------


def test_a_code_keeps_the_largest_entries() -> None:
    torch.manual_seed(0)
    d = Dictionary([3, 2], 6, 2)
    for parameter in d.parameters():
        parameter.data.normal_()
    x = torch.randn(5, 2)
    values, atoms = d.encode(1, x)
    whole = torch.relu((x - d.origin[3:]) @ d.encoder[:, 3:].T + d.bias[1])
    for row in range(5):
        best = whole[row].argsort(descending=True)[:2]
        assert set(atoms[row].tolist()) == set(best.tolist())
    code = d.code(1, x)
    assert ((code > 0).sum(1) <= 2).all()
    for decoded, part in zip(d.decode(values, atoms), ((0, 3), (3, 5)), strict=True):
        expected = code @ d.decoder[:, slice(*part)] + d.origin[slice(*part)]
        torch.testing.assert_close(decoded, expected)


def test_activations_are_normalised_and_restored() -> None:
    truth = planted(40)
    d = fit_dictionary(truth.parts, SMALL)
    for i, part in enumerate(truth.parts):
        x = part.rows(np.arange(40))
        y = d.normalised(i, x)
        torch.testing.assert_close(y.mean(0), torch.zeros(y.shape[1]), atol=1e-5, rtol=0)
        assert float(y.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)
        torch.testing.assert_close(d.restored(i, y), x, atol=1e-5, rtol=1e-5)


def test_sums_over_groups_are_those_of_all_positions() -> None:
    truth = planted(50)
    d = fit_dictionary(truth.parts, SMALL)
    order = orders(truth.parts, 0, False)
    sums = code_sums(d, truth.parts, order)
    x = positions_of(d, truth.parts, order)
    codes = [d.code(i, part) for i, part in enumerate(x)]
    decoded = d.decode(*d.encode(0, x[0]))[2]
    assert sums["errors"][:, 0, 2].sum() == pytest.approx(
        float((decoded - x[2]).square().sum()), rel=1e-4
    )
    assert sums["variance"][:, 1].sum() == pytest.approx(float(x[1].square().sum()), rel=1e-4)
    np.testing.assert_allclose(sums["squares"].sum(0)[1], codes[1].square().sum(0), rtol=1e-4)
    smaller = float(torch.minimum(codes[0], codes[2]).sum())
    assert sums["smaller"][:, 0, 2].sum() == pytest.approx(smaller, rel=1e-4)
    assert sums["positions"].sum() == len(x[0])


def test_entropy_by_hand() -> None:
    energies = np.array([[1.0, 1.0, 0.0, 3.0], [1.0, 0.0, 0.0, 1.0]])
    found = entropy(energies, 0)
    np.testing.assert_allclose(found[:2], [1, 0])
    assert np.isnan(found[2])
    assert found[3] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


def test_more_atoms_than_channels_are_renewed() -> None:
    """Atoms without use start anew, with the moments of the optimizer at zero, and no other."""
    truth = planted(40)
    recipe = DictionaryRecipe(atoms=300, active=2, epochs=4, batch_size=64)
    fit = module._Fit(truth.parts, recipe, orders(truth.parts, 0, False), torch.device("cpu"))
    fit.epoch(0)
    d, state = fit.dictionary, fit.optimizer.state
    before = {id(p): state[p]["exp_avg"].clone() for p in d.parameters()}
    used = torch.ones_like(d.bias)
    used[:, 250:] = 0
    d.decoder.data.copy_(torch.nn.functional.normalize(torch.randn(300, 112), dim=1))
    encoder = d.encoder.detach().clone()
    fit._renew(used, 0)
    assert not state[d.bias]["exp_avg"][:, 250:].any()
    for parameter in (d.encoder, d.decoder):
        assert not state[parameter]["exp_avg"][250:].any()
        assert torch.equal(state[parameter]["exp_avg"][:250], before[id(parameter)][:250])
    assert torch.equal(state[d.origin]["exp_avg"], before[id(d.origin)])
    assert torch.equal(d.encoder[:250], encoder[:250])
    assert not torch.equal(d.encoder[250:], encoder[250:])


def test_shuffled_orders_pair_no_image_with_itself() -> None:
    parts = planted(30).parts
    found = orders(parts, 3, True)
    assert all(sorted(order) == list(range(30)) for order in found)
    for i, a in enumerate(found):
        for b in found[:i]:
            assert (a != b).all()


def test_intervals_hold_for_other_images(learned: Dictionary) -> None:
    """Explained variance in 40 other sets of images of the same kind, of one dictionary."""
    from mixer_probe.concepts.sharing import _estimate, _r2

    wide = planted(1500, draw=9)
    r2 = _value(learned, wide.parts)
    inside = []
    for draw in range(40):
        sums = code_sums(
            learned, parts := planted(60, draw=20 + draw).parts, orders(parts, 0, False)
        )
        _, low, high = _estimate({k: v[None] for k, v in sums.items()}, _r2)[0, 1]
        inside.append(low <= r2 <= high)
    assert 33 <= sum(inside) <= 40


def _value(learned: Dictionary, parts: list[GridActivations]) -> float:
    sums = code_sums(learned, parts, orders(parts, 0, False))
    return float(1 - sums["errors"][:, 0, 1].sum() / sums["variance"][:, 1].sum())


# -- states ----------------------------------------------------------------------------------------


def test_a_stopped_training_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = planted(40).parts
    whole = fit_dictionary(parts, SMALL)
    file = tmp_path / "state.pt"
    epoch = module._Fit.epoch

    def stops(self: module._Fit, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        epoch(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(module._Fit, "epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            fit_dictionary(parts, SMALL, state=file)
    again = fit_dictionary(parts, SMALL, state=file)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(StoreError, match="of another dictionary"):
        fit_dictionary(parts, replace(SMALL, seed=1), state=file)
    other = replace(parts[0].images, fingerprint="other")
    with pytest.raises(StoreError, match="of another dictionary"):
        fit_dictionary([replace(part, images=other) for part in parts], SMALL, state=file)
    file.write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be read"):
        fit_dictionary(parts, SMALL, state=file)


# -- what is refused -------------------------------------------------------------------------------


def test_bad_input_is_refused_in_a_sentence() -> None:
    parts = planted(20).parts
    other = activations(parts[1].values, "other", keys="photo")
    with pytest.raises(MeasureError, match="different images"):
        fit_dictionary([parts[0], other], SMALL)
    with pytest.raises(MeasureError, match="400 atoms are more than the 320 positions"):
        fit_dictionary(parts, replace(SMALL, atoms=400))
    constant = replace(parts[1], values=np.full_like(parts[1].values, 2.5))
    with pytest.raises(MeasureError, match=r"layer 'blocks\.0' of net1 is constant"):
        fit_dictionary([parts[0], constant], SMALL)
    spoiled = replace(parts[1], values=parts[1].values * np.float32(np.nan))
    with pytest.raises(MeasureError, match="NaN or infinite"):
        fit_dictionary([parts[0], spoiled], SMALL)
    coarse = replace(parts[1], grid=(2, 2), values=parts[1].values[:, :4])
    with pytest.raises(MeasureError, match="another grid"):
        fit_dictionary([parts[0], coarse], SMALL)
    with pytest.raises(MeasureError, match=r"diverged .* take a lower learning rate"):
        fit_dictionary(parts, replace(SMALL, learning_rate=1e25))
    with pytest.raises(MeasureError, match="at least two networks"):
        concept_sharing(parts[:1], parts[:1], SMALL)
    with pytest.raises(MeasureError, match=r"is of net0 at 'blocks\.0', not of net1"):
        concept_sharing(parts[:2], parts[1::-1], SMALL)
    with pytest.raises(MeasureError, match="1 networks to test for 2"):
        concept_sharing(parts[:2], parts[:1], SMALL)
    few = planted(10).parts
    with pytest.raises(MeasureError, match="at least 20 images"):
        concept_sharing(parts, few, SMALL)
    for wrong in ({"atoms": 2, "active": 3}, {"learning_rate": 0.0}, {"atoms": 1.5}):
        with pytest.raises(MeasureError):
            replace(SMALL, **wrong)  # type: ignore[arg-type]


def layer(*grid: int) -> Layer:
    cells = tuple(grid) if grid else None
    return Layer("b", "block", 1.0, cells, 4, 0, 4)  # type: ignore[arg-type]


def test_the_common_grid() -> None:
    assert common_grid([layer(16, 16), layer(8, 8)]) == (8, 8)
    assert common_grid([layer(14, 14), layer(7, 21)]) == (7, 7)
    assert common_grid([layer(12, 12), layer(8, 8)]) == (4, 4)
    assert common_grid([layer(1, 1)]) == (1, 1)
    with pytest.raises(MeasureError, match="grids of 7×7 and 16×16"):
        common_grid([layer(7, 7), layer(16, 16)])
    with pytest.raises(LayerError, match="form no grid"):
        common_grid([layer(16, 16), layer()])
