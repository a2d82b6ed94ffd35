"""Frequencies against closed forms; golden figures by NumPy float64 are named where they are
used."""

import numpy as np
import pytest

from mixer_probe.weights import colour_centroid, power_centroid, radial_frequency, randomise_phases


def wave(rows: int, columns: int, ky: int, kx: int, phase: float = 0.0) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return np.cos(2 * np.pi * (ky * y / rows + kx * x / columns) + phase)


@pytest.mark.parametrize("ky, kx", [(1, 0), (0, 3), (1, 2), (5, 4), (7, 7)])
def test_a_plane_wave_has_its_own_frequency(ky: int, kx: int) -> None:
    expected = np.hypot(min(ky, 14 - ky), min(kx, 14 - kx)) / 14
    assert power_centroid(wave(14, 14, ky, kx, 0.3)) == pytest.approx(expected, abs=1e-12)


def test_the_planted_unit_of_the_golden_figures() -> None:
    # sqrt(1 + 4) / 14 cycles per token.
    assert power_centroid(wave(14, 14, 1, 2)) == pytest.approx(0.15971914124998499, abs=1e-12)


def test_a_constant_does_not_count_and_two_waves_weigh_by_power() -> None:
    mixed = 5.0 + 2 * wave(16, 16, 2, 0) + wave(16, 16, 0, 6)
    assert power_centroid(mixed) == pytest.approx((4 * 2 + 1 * 6) / 5 / 16, abs=1e-12)


@pytest.mark.parametrize("size, expected", [(14, 0.3859823922887612), (7, 0.38682232381551057)])
def test_white_noise_has_the_mean_frequency_of_the_grid(size: int, expected: float) -> None:
    drawn = power_centroid(np.random.default_rng(0).standard_normal((4000, size, size)))
    assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / np.sqrt(4000))
    assert radial_frequency(size, size).sum() / (size * size - 1) == pytest.approx(
        expected, abs=2e-4
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e8 / 3])
def test_a_constant_map_has_no_frequency(value: float) -> None:
    assert np.isnan(power_centroid(np.full((14, 14), value)))


def test_power_is_added_over_colours() -> None:
    # Opposite colours would cancel if amplitudes were added.
    grating = wave(8, 8, 2, 0)
    assert colour_centroid(np.stack([grating, -grating, 0 * grating])[None]) == pytest.approx(
        [2 / 8]
    )


def test_surrogates_keep_amplitudes_and_mean_and_are_real() -> None:
    rng = np.random.default_rng(1)
    for size in (7, 14):
        maps = rng.standard_normal((5, size, size)) + 1.0
        drawn = randomise_phases(maps, rng)
        np.testing.assert_allclose(
            np.abs(np.fft.fft2(drawn)), np.abs(np.fft.fft2(maps)), atol=1e-10
        )
        np.testing.assert_allclose(drawn.mean((1, 2)), maps.mean((1, 2)), atol=1e-12)
        assert np.abs(drawn - maps).max() > 0.1
