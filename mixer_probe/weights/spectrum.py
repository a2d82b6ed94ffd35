"""Fourier properties of small spatial maps: mixing units, filters, kernels."""

from __future__ import annotations

import numpy as np


def radial_frequency(height: int, width: int) -> np.ndarray:
    """|f| of every bin of a 2-D DFT [height, width], in cycles per sample."""
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius: np.ndarray = np.hypot(rows, columns)
    return radius


def power_centroid(maps: np.ndarray) -> np.ndarray:
    """Mean |f| of each mean-removed map, weighted by power: sum |f| P / sum P.

    `maps` is [..., height, width]; with [unit, 3, h, w] take the sum of the power over colours first (`colour_centroid`).
    Returns [...] in cycles per sample (token or pixel), NaN for constant maps."""
    return _centroid(_power(maps))


def colour_centroid(filters: np.ndarray) -> np.ndarray:
    """`power_centroid` of filters [unit, channel, h, w] with the power added over channels. Returns [unit]."""
    return _centroid(_power(filters).sum(1))


def _power(maps: np.ndarray) -> np.ndarray:
    values = np.asarray(maps, dtype=np.float64)
    centred = values - values.mean((-2, -1), keepdims=True)
    # Rounding leaves a constant map with some 1e-17 of "power", whose centroid would look like noise.
    scale = np.abs(values).max((-2, -1), keepdims=True)
    centred = np.where(np.abs(centred).max((-2, -1), keepdims=True) <= 1e-12 * scale, 0.0, centred)
    power: np.ndarray = np.abs(np.fft.fft2(centred)) ** 2
    return power


def _centroid(power: np.ndarray) -> np.ndarray:
    frequency = radial_frequency(*power.shape[-2:])
    total = power.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        centroid: np.ndarray = np.where(total > 0, (power * frequency).sum((-2, -1)) / total, np.nan)
    return centroid


def randomise_phases(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Surrogates [unit, h, w] with each map's own amplitude spectrum and mean, and the phases of white noise."""
    spectrum = np.fft.fft2(np.asarray(maps, dtype=np.float64))
    noise = np.fft.fft2(rng.standard_normal(maps.shape))
    surrogate = np.abs(spectrum) * noise / np.abs(noise)
    surrogate[..., 0, 0] = spectrum[..., 0, 0]
    drawn: np.ndarray = np.fft.ifft2(surrogate).real
    return drawn
