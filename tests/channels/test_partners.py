"""Best-matching channels against NumPy and planted pairs."""

import numpy as np
import pytest
import torch

from mixer_probe.channels import ChannelPartners, channel_partners
from mixer_probe.channels.partners import BINS
from mixer_probe.core.errors import LayerError, MeasureError, UndefinedChannelsWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.nulls import draw_pairings
from mixer_probe.stats import upper_quantile
from tests.probing.conftest import FakeRepresentations


def reps_of(values: np.ndarray, grid: tuple[int, int] | None = (2, 2)) -> FakeRepresentations:
    """One layer "x", [image, channel] or [image, position, channel]."""
    reps = FakeRepresentations({"x": values}, None, "test")
    positions = values.shape[1] if values.ndim == 3 else 4
    reps.layers = (Layer("x", "block", 0.5, grid, values.shape[-1], 0, positions),)
    reps.reduce = "none" if values.ndim == 3 else "mean"
    return reps


def pair(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A of 30 and B of 40 channels of noise, of which B's 7 is A's 3 turned round and B's 8 goes
    with A's 5."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((n, 30)), rng.standard_normal((n, 40))
    B[:, 7] = -2 * A[:, 3] + 5
    B[:, 8] = A[:, 5] + 0.5 * B[:, 8]
    return A, B


def test_partners_equal_numpy() -> None:
    A, B = pair()
    found = channel_partners(reps_of(A), reps_of(B), "x", "x", k=3, permutations=0)
    r = np.corrcoef(A.T, B.T)[:30, 30:]
    order = np.argsort(-np.abs(r), axis=1)[:, :3]
    np.testing.assert_array_equal(found.partner, order)
    np.testing.assert_allclose(found.correlation, np.take_along_axis(r, order, 1), atol=1e-12)
    np.testing.assert_array_equal(found.best_of_b, np.abs(r).argmax(0))
    assert np.isnan(found.p_value).all()
    assert np.isnan(found.fraction_above)


def test_planted_pairs_are_found_and_nothing_else_is_above_the_corrected_null() -> None:
    A, B = pair()
    found = channel_partners(reps_of(A), reps_of(B), "x", "x")
    assert found.partner[[3, 5], 0].tolist() == [7, 8]
    assert found.correlation[3, 0] == pytest.approx(-1)
    assert np.flatnonzero(found.p_corrected <= 0.05).tolist() == [3, 5]
    assert found.fraction_corrected == pytest.approx(2 / 30)
    assert found.mutual[[3, 5]].all()
    assert found.p_value[3] == pytest.approx(1 / 1000)
    assert (found.threshold < 0.4).all()


@pytest.mark.parametrize("cells, permutations", [(1, 19), (1, 70), (3, 40)])
def test_the_null_is_that_of_shifted_images(cells: int, permutations: int) -> None:
    rng = np.random.default_rng(1)
    X, Y = (rng.standard_normal((30, cells, k)) for k in (5, 4))
    a, b = reps_of(X, (1, cells)), reps_of(Y, (1, cells))
    found = channel_partners(a, b, "x", "x", over="positions", permutations=permutations, seed=2)
    partners = torch.cat([p.partners() for p in draw_pairings(30, permutations, 2)])[1:].numpy()
    r = [np.corrcoef(X.reshape(-1, 5).T, Y[order].reshape(-1, 4).T)[:5, 5:] for order in partners]
    null = np.abs(r).max(2)
    np.testing.assert_allclose(found.null_max, null.max(1), atol=1e-6)
    np.testing.assert_allclose(found.threshold, upper_quantile(null), atol=1e-6)
    np.testing.assert_array_equal(
        found.p_value, (1 + (null >= found.strength * (1 - 1e-5)).sum(0)) / (1 + permutations)
    )
    np.testing.assert_allclose(
        np.cumsum(found.null_counts), [(null <= edge).sum() for edge in BINS[1:]], atol=1
    )
    assert found.null_counts.sum() == null.size


def test_one_channel_in_twenty_is_above_its_own_null_by_chance() -> None:
    rng = np.random.default_rng(4)
    A, B = rng.standard_normal((100, 600)), rng.standard_normal((100, 30))
    found = channel_partners(reps_of(A), reps_of(B), "x", "x", permutations=199)
    # Binomial(600, 0.05), loosened for the partners they share.
    assert 0.02 < found.fraction_above < 0.08


def test_over_positions_each_cell_of_each_image_counts() -> None:
    rng = np.random.default_rng(5)
    A, B = rng.standard_normal((60, 4, 6)), rng.standard_normal((60, 4, 5))
    # A place in the image: gone from the means over positions.
    where = rng.standard_normal((60, 4))
    where -= where.mean(1, keepdims=True)
    A[..., 2] = where + 10 * rng.standard_normal((60, 1))
    B[..., 1] = where
    found = channel_partners(reps_of(A), reps_of(B), "x", "x", over="positions", k=1)
    r = np.corrcoef(A.reshape(-1, 6).T, B.reshape(-1, 5).T)[:6, 6:]
    np.testing.assert_allclose(np.abs(found.correlation[:, 0]), np.abs(r).max(1), atol=1e-12)
    assert found.grid == (2, 2)
    assert found.n == 60
    images = channel_partners(reps_of(A), reps_of(B), "x", "x", k=1)
    means = np.corrcoef(A.mean(1).T, B[..., [0, 2, 3, 4]].mean(1).T)[:6, 6:]
    np.testing.assert_allclose(
        images.strength, np.maximum(np.abs(means).max(1), images.strength), atol=1e-12
    )


def test_grids_are_brought_to_the_coarser_one() -> None:
    rng = np.random.default_rng(6)
    fine = rng.standard_normal((50, 4, 4, 3))
    coarse = fine.reshape(50, 2, 2, 2, 2, 3).mean((2, 4))
    found = channel_partners(
        reps_of(fine.reshape(50, 16, 3), (4, 4)),
        reps_of(coarse.reshape(50, 4, 3)),
        "x",
        "x",
        over="positions",
        permutations=19,
    )
    assert found.grid == (2, 2)
    np.testing.assert_allclose(found.correlation[:, 0], 1, atol=1e-12)
    assert found.partner[:, 0].tolist() == [0, 1, 2]


def test_a_bias_to_places_that_all_images_share_is_in_the_null() -> None:
    rng = np.random.default_rng(7)
    place = 3 * np.array([1.0, -1.0, 2.0, -2.0])[None, :, None]
    A, B = rng.standard_normal((80, 4, 5)) + place, rng.standard_normal((80, 4, 5)) + place
    found = channel_partners(reps_of(A), reps_of(B), "x", "x", over="positions")
    assert (found.strength > 0.8).all()
    assert found.fraction_corrected == 0


def test_constant_channels_have_no_partner_and_are_named() -> None:
    A, B = pair()
    A[:, 2] = 1.5
    B[:, 0] = 0
    with pytest.warns(UndefinedChannelsWarning, match="1 channels of 'x'"):
        found = channel_partners(reps_of(A), reps_of(B), "x", "x", permutations=19)
    assert found.partner[2, 0] == -1
    assert np.isnan(found.correlation[2]).all()
    assert np.isnan(found.p_value[2])
    assert not (found.partner == 0).any()
    assert not found.mutual[2]
    assert found.fraction_above > 0
    assert found.best_of_b[0] == -1


def test_what_has_no_partners_is_named() -> None:
    A, B = pair()
    a, b = reps_of(A), reps_of(B)
    with pytest.raises(LayerError, match="no layer 'y' in this run"):
        channel_partners(a, b, "x", "y")
    with pytest.raises(MeasureError, match="unknown over 'tokens'; known: images, positions"):
        channel_partners(a, b, "x", "x", over="tokens")
    with pytest.raises(MeasureError, match="no positions here: extract with reduce='none'"):
        channel_partners(a, b, "x", "x", over="positions")
    with pytest.raises(MeasureError, match="form no grid"):
        channel_partners(reps_of(A, None), b, "x", "x", over="positions")
    with pytest.raises(MeasureError, match="different images"):
        channel_partners(a, reps_of(B[:50]), "x", "x")
    with pytest.raises(MeasureError, match="k is a whole number, 1 or more, not 0"):
        channel_partners(a, b, "x", "x", k=0)
    with pytest.raises(MeasureError, match="2 images are too few"):
        channel_partners(reps_of(A[:2]), reps_of(B[:2]), "x", "x")


def test_tables_and_storage() -> None:
    A, B = pair()
    found = channel_partners(reps_of(A), reps_of(B), "x", "x", permutations=19)
    assert len(found.to_frame()) == 30
    again = from_dict(to_dict(found))
    assert isinstance(again, ChannelPartners)
    assert again.to_frame().equals(found.to_frame())
