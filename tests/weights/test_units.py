"""Measures of units against closed forms: planted waves, blobs, pairs and matrices; the golden
figures of iid rows."""

from itertools import permutations

import numpy as np
import pytest

from mixer_probe.core.errors import LayerError
from mixer_probe.weights import (
    effective_rank,
    localisation,
    orientation,
    paired_order,
    participation_ratio,
    partners,
    randomise_phases,
    spectral_peak,
)
from mixer_probe.weights.spectrum import random_phase_coordinates
from mixer_probe.weights.units import (
    STATISTICS,
    block_statistics,
    cosines,
    matching_null,
    measure_units,
    partner_surrogates,
    shuffled_statistics,
    singular_values,
    uniform_spread,
)

PATCH = (16.0, 16.0)


def wave(
    grid: tuple[int, int], ky: int, kx: int, degrees: float = 0.0, size: float = 1.0
) -> np.ndarray:
    y, x = np.mgrid[: grid[0], : grid[1]]
    return size * np.cos(2 * np.pi * (ky * y / grid[0] + kx * x / grid[1]) + np.radians(degrees))


# -- frequency, orientation and phase --------------------------------------------------------------


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (7, 7), (14, 10), (9, 12)])
def test_every_wave_of_every_bin_comes_back(grid: tuple[int, int]) -> None:
    h, w = grid
    planted = [
        (ky, kx, phase)
        for kx in range((w + 1) // 2)  # below the Nyquist frequency, where a wave has one name
        for ky in range(-((h - 1) // 2), (h + 1) // 2)
        if kx > 0 or ky > 0
        for phase in (-170.0, -45.0, 0.0, 90.0, 180.0)
    ]
    maps = np.stack([3.0 + wave(grid, ky, kx, phase, 0.7) for ky, kx, phase in planted])
    ky, kx, phase = np.array(planted).T
    found = spectral_peak(maps)
    np.testing.assert_array_equal(found.rows, ky)
    np.testing.assert_array_equal(found.columns, kx)
    np.testing.assert_allclose(found.phase, phase, atol=1e-8)
    np.testing.assert_allclose(found.fraction, 1.0, atol=1e-12)
    np.testing.assert_allclose(found.frequency, np.hypot(ky / h, kx / w), atol=1e-12)
    angle, coherence = orientation(maps)
    expected = np.degrees(np.arctan2(-ky / h, kx / w)) % 180
    np.testing.assert_allclose(angle, expected, atol=1e-8)
    np.testing.assert_allclose(coherence, 1.0, atol=1e-12)


def test_orientation_as_one_sees_it() -> None:
    # Upright stripes, lying stripes, stripes like "/" (the wave runs to the lower right), stripes
    # like "\".
    angle, _ = orientation(
        np.stack([wave((14, 14), *k) for k in ((0, 3), (3, 0), (2, 2), (-2, 2))])
    )
    np.testing.assert_allclose(angle, [0, 90, 135, 45], atol=1e-9)
    slash = wave((14, 14), 2, 2)
    assert slash[5, 5] == pytest.approx(slash[4, 6])  # one up, one to the right


def test_the_nyquist_frequency_has_one_sign_and_two_directions() -> None:
    found = spectral_peak(
        np.stack(
            [
                wave((8, 8), 4, 0),
                -wave((8, 8), 4, 0),
                wave((8, 8), 4, 1, 30),
                wave((8, 8), -3, 4, 30),
            ]
        )
    )
    np.testing.assert_array_equal(found.rows[:3], [4, 4, 4])
    np.testing.assert_array_equal(found.columns, [0, 0, 1, 4])
    np.testing.assert_allclose(found.phase[:3], [0, 180, 30], atol=1e-9)
    # cos(-a + pi x + 30 deg) is cos(a + pi x - 30 deg) at whole x.
    assert found.rows[3] == 3
    assert found.phase[3] == pytest.approx(-30)
    # (1/2, 1/8) and (-1/2, 1/8) are the same samples: the mean of exp(2 i phi) over both is cos(2
    # phi).
    angle, coherence = orientation(wave((8, 8), 4, 1, 30))
    assert angle == pytest.approx(90)
    assert coherence == pytest.approx(abs(np.cos(2 * np.arctan2(1 / 2, 1 / 8))))


def test_what_has_no_orientation_is_nan_and_says_so() -> None:
    delta = np.zeros((8, 8))
    delta[2, 5] = 1
    for name in ("delta", "checkerboard", "plaid"):
        y, x = np.mgrid[:8, :8]
        maps = {
            "delta": delta,
            "checkerboard": (-1.0) ** (y + x),
            "plaid": wave((8, 8), 2, 0) + wave((8, 8), 0, 2),
        }
        angle, coherence = orientation(maps[name])
        assert np.isnan(angle), name
        assert coherence < 1e-9, name


def test_two_waves_weigh_by_power() -> None:
    angle, coherence = orientation(2 * wave((16, 16), 0, 3) + wave((16, 16), 5, 0))
    # (4 exp(0) + 1 exp(i pi)) / 5.
    assert angle == pytest.approx(0, abs=1e-9)
    assert coherence == pytest.approx(3 / 5)
    peak = spectral_peak(2 * wave((16, 16), 0, 3) + wave((16, 16), 5, 0))
    assert (peak.rows, peak.columns) == (0, 3)
    assert peak.fraction == pytest.approx(4 / 5)


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (9, 12)])
def test_the_peak_is_the_largest_bin_of_a_full_transform(grid: tuple[int, int]) -> None:
    maps = np.random.default_rng(3).standard_normal((200, *grid)) + 2
    found = spectral_peak(maps)
    full = np.fft.fft2(maps)
    full[:, 0, 0] = 0
    h, w = grid
    at = full[np.arange(200), found.rows.astype(int) % h, found.columns.astype(int)]
    power = np.abs(full) ** 2
    alone = np.isin(2 * found.rows % h, 0) & np.isin(2 * found.columns % w, 0)
    both = np.where(alone, 1, 2) * np.abs(at) ** 2
    np.testing.assert_allclose(found.fraction, both / power.sum((1, 2)))
    np.testing.assert_allclose(found.phase, np.degrees(np.angle(at)), atol=1e-9)
    # No other wave has more, counting both bins of those that have two.
    twin = np.roll(power[:, ::-1, ::-1], (1, 1), (1, 2))
    own = np.ones(grid) * 2
    own[np.ix_(*[[0, n // 2] if n % 2 == 0 else [0] for n in grid])] = 1
    assert (both >= ((power + twin) / 2 * own).max((1, 2)) * (1 - 1e-12)).all()


def test_white_noise_is_hardly_coherent() -> None:
    # k = (15^2 - 1) / 2 waves of independent, exponential power around directions that cancel: a
    # complex normal number of variance 1 / k, whose mean length is sqrt(pi / (4 k)).
    _, coherence = orientation(np.random.default_rng(0).standard_normal((4000, 15, 15)))
    assert coherence.mean() == pytest.approx(np.sqrt(np.pi / (4 * 112)), rel=0.02)


# -- localisation ----------------------------------------------------------------------------------


def test_a_unit_of_one_token_is_where_it_is() -> None:
    maps = np.zeros((1, 14, 10))
    maps[0, 3, 7] = -2
    centre, spread = localisation(maps, (16.0, 8.0))
    np.testing.assert_allclose(centre, [[3.5 * 16, 7.5 * 8]])
    assert spread == pytest.approx(0, abs=1e-9)


def test_two_tokens_spread_by_half_their_distance() -> None:
    maps = np.zeros((2, 14, 14))
    maps[0, 3, 2], maps[0, 3, 8] = 1, -1
    maps[1, 3, 2], maps[1, 7, 2] = 1, 3  # a tenth and nine tenths of the energy
    centre, spread = localisation(maps, PATCH)
    np.testing.assert_allclose(spread, [3 * 16, np.sqrt(0.1 * 0.9) * 4 * 16])
    np.testing.assert_allclose(
        centre, [[3.5 * 16, 5.5 * 16], [(0.1 * 3 + 0.9 * 7 + 0.5) * 16, 2.5 * 16]]
    )


@pytest.mark.parametrize("grid, patch", [((14, 14), PATCH), ((14, 10), (16.0, 8.0))])
def test_a_constant_unit_spreads_over_the_grid(
    grid: tuple[int, int], patch: tuple[float, float]
) -> None:
    centre, spread = localisation(np.full((1, *grid), -0.3), patch)
    y, x = np.mgrid[: grid[0], : grid[1]]
    expected = np.sqrt((((y - y.mean()) * patch[0]) ** 2 + ((x - x.mean()) * patch[1]) ** 2).mean())
    assert spread == pytest.approx(expected)
    assert uniform_spread(grid, patch) == pytest.approx(expected)
    np.testing.assert_allclose(centre, [[grid[0] * patch[0] / 2, grid[1] * patch[1] / 2]])


def test_a_gaussian_has_its_own_width() -> None:
    y, x = np.mgrid[:41, :41]
    # its square has a standard deviation of 3 tokens
    blob = np.exp(-((y - 18.0) ** 2 + (x - 21.0) ** 2) / (4 * 3.0**2))
    centre, spread = localisation(blob[None], (4.0, 4.0))
    np.testing.assert_allclose(centre, [[18.5 * 4, 21.5 * 4]], rtol=1e-6)
    assert spread == pytest.approx(np.sqrt(2) * 3 * 4, rel=1e-6)


# -- ranks -----------------------------------------------------------------------------------------


def test_ranks_of_matrices_that_have_one() -> None:
    rng = np.random.default_rng(0)
    q, p = (np.linalg.qr(rng.standard_normal((n, 7)))[0] for n in (40, 25))
    for r in (1, 3, 7):
        s = singular_values(5 * q[:, :r] @ p[:, :r].T)
        assert effective_rank(s) == pytest.approx(r, abs=1e-9)
        assert participation_ratio(s) == pytest.approx(r, abs=1e-9)
    s = singular_values(q[:, :2] @ np.diag([3.0, 1.0]) @ p[:, :2].T)
    assert effective_rank(s) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    assert participation_ratio(s) == pytest.approx(100 / 82)


@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_singular_values_are_those_of_a_decomposition(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape) * np.logspace(0, -3, shape[1])
    found = singular_values(matrix)
    np.testing.assert_allclose(found, np.linalg.svd(matrix, compute_uv=False), rtol=1e-8)
    p = found / found.sum()
    assert effective_rank(found) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_a_matrix_of_zeros_has_no_rank() -> None:
    found = singular_values(np.zeros((4, 6)))
    assert np.isnan(effective_rank(found))
    assert np.isnan(participation_ratio(found))


def test_participation_ratio_of_the_golden_figures() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        participation_ratio(singular_values(rng.standard_normal((384, 196)))) for _ in range(20)
    ]
    assert np.mean(drawn) == pytest.approx(384 * 196 / (384 + 196 + 1), rel=2e-3)


# -- partners and their null -----------------------------------------------------------------------


def planted_pairs() -> np.ndarray:
    """A wave, its quadrature, its opposite; another wave and twice its opposite."""
    first, second = ((14, 14), 1, 2), ((14, 14), 3, 0)
    return np.stack(
        [
            wave(*first),
            wave(*first, 90),
            wave(*first, 180),
            wave(*second, 20),
            -2 * wave(*second, 20),
        ]
    )


def test_opposite_pairs_have_cosine_minus_one_and_quadrature_zero() -> None:
    found, cosine = partners(planted_pairs())
    assert found[[0, 2, 3, 4]].tolist() == [2, 0, 4, 3]
    np.testing.assert_allclose(cosine[[0, 2, 3, 4]], -1.0, atol=1e-12)
    table = cosines(planted_pairs())
    assert table[0, 1] == pytest.approx(0, abs=1e-12)
    assert table[2, 1] == pytest.approx(0, abs=1e-12)


def test_a_partner_needs_two_units() -> None:
    with pytest.raises(LayerError, match="two units"):
        partners(np.ones((1, 4, 4)))


def test_iid_rows_give_the_golden_figures() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([partners(rng.standard_normal((384, 14, 14)))[1] for _ in range(10)])
    assert drawn.mean() == pytest.approx(-0.2104, abs=0.001)
    assert drawn.min(1).mean() == pytest.approx(-0.308, abs=0.012)
    found = block_statistics(rng.standard_normal((384, 14, 14)), PATCH)[0]
    assert found.frequency == pytest.approx(0.38598, abs=0.002)
    assert found.spread == pytest.approx(uniform_spread((14, 14), PATCH), rel=0.01)


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (9, 12), (4, 4)])
def test_surrogates_in_fourier_coordinates_are_those_of_random_phases(
    grid: tuple[int, int],
) -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((6, *grid)) + 0.5
    drawn = np.stack([x.astype(np.float64) for x in random_phase_coordinates(maps, 2000, rng)])
    assert drawn.shape == (2000, 6, grid[0] * grid[1])
    # The basis is orthonormal and amplitudes stay, so every draw has the norms and the sums of the
    # maps.
    np.testing.assert_allclose(
        (drawn**2).sum(-1), np.broadcast_to((maps**2).sum((1, 2)), (2000, 6)), rtol=1e-5
    )
    sums = maps.sum((1, 2)) / np.sqrt(maps[0].size)
    np.testing.assert_allclose(drawn[:, :, 0], np.broadcast_to(sums, (2000, 6)), rtol=1e-5)
    # Mean and variance of the cosines of two surrogates, by transforms.
    by_transform = np.stack([randomise_phases(maps, rng).reshape(6, -1) for _ in range(2000)])
    inner, expected = (
        np.einsum("dus,dvs->duv", x, x)[:, *np.triu_indices(6, 1)] for x in (drawn, by_transform)
    )
    error = 5 * np.sqrt(2) * expected.std(0) / np.sqrt(2000)
    assert (np.abs(inner.mean(0) - expected.mean(0)) < error).all()
    np.testing.assert_allclose(inner.std(0), expected.std(0), rtol=0.12)


def test_the_partner_null_is_that_of_transformed_surrogates() -> None:
    rng = np.random.default_rng(0)
    smooth = low_passed(rng.standard_normal((128, 14, 14)))
    slow = np.stack([partners(randomise_phases(smooth, rng))[1] for _ in range(30)])
    fast = partner_surrogates(smooth, 30, 1)
    assert fast.shape == (30, 128)
    assert fast.mean() == pytest.approx(slow.mean(), abs=0.005)
    assert np.quantile(fast, 0.05) == pytest.approx(np.quantile(slow, 0.05), abs=0.01)
    units = measure_units(smooth, PATCH, 30, 1, 1)
    assert (units.null_mean, units.null_q05) == (fast.mean(), np.quantile(fast, 0.05))


def low_passed(noise: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fft2(noise)
    spectrum[:, 3:-2], spectrum[:, :, 3:-2] = 0, 0
    return np.fft.ifft2(spectrum).real


@pytest.mark.parametrize("smooth", [False, True])
def test_by_chance_five_percent_of_units_are_paired(smooth: bool) -> None:
    # Of Gaussian maps the phases are random, so p is uniform on 1/20 ... 1 whatever the spectrum.
    rng = np.random.default_rng(2)
    p = []
    for seed in range(12):
        noise = rng.standard_normal((96, 8, 8))
        p.append(
            measure_units(low_passed(noise) if smooth else noise, PATCH, 19, 1, seed).partner_p
        )
    fraction = (np.concatenate(p) <= 0.05 + 1e-9).mean()
    assert fraction == pytest.approx(0.05, abs=0.025)
    assert np.concatenate(p).mean() == pytest.approx(10.5 / 20, abs=0.03)


def test_smooth_units_need_their_own_null() -> None:
    # Half the units are smooth and find opposites by chance. The others are rough, and with one
    # quantile for all none of them could be called paired although two are opposites.
    rng = np.random.default_rng(0)
    smooth, rough = low_passed(rng.standard_normal((64, 14, 14))), rng.standard_normal((64, 14, 14))
    rough[1] = rng.standard_normal((14, 14)) - 0.45 * rough[0]
    found = measure_units(np.concatenate([smooth, rough]), PATCH, 19, 1, 0)
    paired = found.partner_p <= 0.05 + 1e-9
    assert found.null_q05 < found.partner_cosine[64] < -0.3
    assert paired[64:66].all()
    assert paired[:64].mean() < 0.2


# -- a whole block ---------------------------------------------------------------------------------


def test_shuffling_keeps_every_unit_and_loses_the_plane() -> None:
    rng = np.random.default_rng(0)
    maps = (
        np.stack([wave((14, 14), 0, 1 + k % 3, 37 * k) for k in range(48)])
        * rng.uniform(0.5, 2, 48)[:, None, None]
    )
    maps *= np.exp(-((np.mgrid[:14, :14] - 6.0) ** 2).sum(0) / 20)
    own, null = block_statistics(maps, PATCH)[0], shuffled_statistics(maps, PATCH, 5, 0)[0]
    for name in STATISTICS:
        assert getattr(null, name).shape == (5,)
    assert own.frequency < 0.25 < null.frequency.min()
    assert null.frequency.mean() == pytest.approx(0.386, abs=0.01)
    assert own.spread < 0.7 * null.spread.min()
    assert own.effective_rank < 0.5 * null.effective_rank.min()
    assert own.participation_ratio < 0.5 * null.participation_ratio.min()
    assert own.coherence > 2 * null.coherence.max()
    assert own.partner_cosine < null.partner_cosine.min()


def test_everything_of_a_unit_set_is_what_the_single_measures_say() -> None:
    maps = np.concatenate([planted_pairs(), np.random.default_rng(0).standard_normal((20, 14, 14))])
    found = measure_units(maps, PATCH, 19, 2, 0)
    np.testing.assert_array_equal(found.maps, maps)
    np.testing.assert_allclose(found.norm, np.linalg.norm(maps.reshape(25, -1), axis=1))
    np.testing.assert_allclose(found.orientation, orientation(maps)[0])
    np.testing.assert_allclose(found.peak_row[:5], [1, 1, 1, 3, 3])
    np.testing.assert_allclose(found.phase[:5], [0, 90, 180, 20, -160], atol=1e-9)
    np.testing.assert_allclose(found.centre, localisation(maps, PATCH)[0])
    assert found.statistics.partner_cosine == pytest.approx(partners(maps)[1].mean())
    assert found.partner_p[[0, 2, 3, 4]].max() == 1 / 20


def test_constant_units_are_nan_where_nothing_is_defined() -> None:
    maps = np.random.default_rng(0).standard_normal((6, 8, 8))
    maps[1], maps[2] = 0, 0.1
    found = measure_units(maps, PATCH, 19, 2, 0)
    for name in (
        "frequency",
        "orientation",
        "coherence",
        "peak_row",
        "peak_column",
        "peak_frequency",
        "phase",
        "peak_fraction",
    ):
        assert np.flatnonzero(np.isnan(getattr(found, name))).tolist() == [1, 2], name
    # A constant that is not zero lies somewhere; zeros lie nowhere.
    assert np.flatnonzero(np.isnan(found.spread)).tolist() == [1]
    assert np.isfinite(found.partner_cosine).all()
    assert all(np.isfinite(getattr(found.statistics, name)) for name in STATISTICS)


def test_order_puts_low_frequency_first_and_partners_side_by_side() -> None:
    order = paired_order(planted_pairs(), np.array([0.28, 0.28, 0.28, 0.375, 0.375]))
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert order.tolist()[:2] == [0, 2]
    assert {3, 4} in ({*order.tolist()[2:4]}, {*order.tolist()[3:5]})


def test_the_null_of_matched_maps_is_that_of_all_permutations() -> None:
    table = np.random.default_rng(0).standard_normal((6, 6))
    means = [table[np.arange(6), list(p)].mean() for p in permutations(range(6))]
    mean, sd = matching_null(table)
    assert mean == pytest.approx(np.mean(means))
    assert sd == pytest.approx(np.std(means))


def test_weights_that_are_not_finite_are_nan_and_stop_nothing() -> None:
    maps = np.random.default_rng(0).standard_normal((6, 8, 8))
    maps[4, 1, 1] = np.nan
    found = measure_units(maps, PATCH, 19, 2, 0)
    for values in (found.frequency, found.orientation, found.peak_frequency, found.spread):
        assert np.flatnonzero(np.isnan(values)).tolist() == [4]
    assert np.isnan(found.statistics.effective_rank)
    assert np.isfinite(found.statistics.frequency)
    assert np.isfinite(found.partner_cosine[:4]).all()
