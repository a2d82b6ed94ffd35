"""Fourier properties of small spatial maps: mixing units, filters, kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked


@checked(MeasureError)
def radial_frequency(height: int, width: int) -> np.ndarray:
    """|f| of every bin of a 2-D DFT [height, width], in cycles per sample."""
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius: np.ndarray = np.hypot(rows, columns)
    return radius


def power_centroid(maps: np.ndarray) -> np.ndarray:
    """Mean |f| of each mean-removed map, weighted by power: sum |f| P / sum P.

    `maps` is [..., height, width]; with [unit, 3, h, w] take the sum of the power over colours
    first (`colour_centroid`). Returns [...] in cycles per sample (token or pixel), NaN for constant
    maps."""
    return centroid_of(power_spectrum(maps))


def colour_centroid(filters: np.ndarray) -> np.ndarray:
    """`power_centroid` of filters [unit, channel, h, w] with the power added over channels. Returns
    [unit]."""
    return centroid_of(power_spectrum(filters).sum(1))


def power_spectrum(maps: np.ndarray) -> np.ndarray:
    """|F|^2 of the 2-D DFT of each mean-removed map [..., height, width]; exactly 0 for constant
    maps."""
    power: np.ndarray = np.abs(np.fft.fft2(_centred(maps))) ** 2
    return power


def _centred(maps: np.ndarray) -> np.ndarray:
    values = np.asarray(maps, dtype=np.float64)
    centred = values - values.mean((-2, -1), keepdims=True)
    # Rounding leaves a constant map with some 1e-17 of "power", whose centroid would look like
    # noise.
    scale = np.abs(values).max((-2, -1), keepdims=True)
    removed: np.ndarray = np.where(
        np.abs(centred).max((-2, -1), keepdims=True) <= 1e-12 * scale, 0.0, centred
    )
    return removed


def centroid_of(power: np.ndarray) -> np.ndarray:
    """`power_centroid` from the power [..., height, width] itself. Returns [...], NaN where there
    is none."""
    frequency = radial_frequency(*power.shape[-2:])
    total = power.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        centroid: np.ndarray = np.where(
            total > 0, (power * frequency).sum((-2, -1)) / total, np.nan
        )
    return centroid


@dataclass(frozen=True)
class SpectralPeak:
    """The strongest plane wave of each map, A cos(2 pi (ky y / h + kx x / w) + phase). Fields are
    [...], NaN for constant maps.

    `rows` and `columns` are ky and kx in cycles over the map, of the two signs of a real wave the
    one with kx > 0, or ky >= 0 where kx is 0 or w/2. `frequency` is |f| in cycles per sample,
    `phase` is in degrees, above -180 and up to 180, and `fraction` is the wave's fraction of the
    power of the mean-removed map: 1 for a sinusoid."""

    rows: np.ndarray
    columns: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray
    fraction: np.ndarray


def spectral_peak(maps: np.ndarray) -> SpectralPeak:
    """The bin of largest power of maps [..., h, w], the lowest in reading order among equals."""
    spectrum = np.fft.rfft2(_centred(maps))
    height, width = np.shape(maps)[-2:]
    weights = _multiplicity(height, width)
    power = (np.abs(spectrum) ** 2 * weights).reshape(*spectrum.shape[:-2], -1)
    total = power.sum(-1)
    found = power.argmax(-1)
    row, column = np.unravel_index(found, weights.shape)
    strongest = np.take_along_axis(spectrum.reshape(power.shape), found[..., None], -1)[..., 0]
    rows = np.where(row > height // 2, row - height, row).astype(np.float64)
    blank = ~(total > 0)  # NaN too
    fraction = np.take_along_axis(power, found[..., None], -1)[..., 0] / np.where(blank, 1.0, total)
    angles = np.degrees(np.angle(strongest))
    # -180 and 180 are one phase, and rounding must not choose between them.
    phase = np.where(np.isclose(angles, -180.0, rtol=0, atol=1e-9), 180.0, angles)
    fields = (rows, column, np.hypot(rows / height, column / width), phase, fraction)
    return SpectralPeak(*(np.where(blank, np.nan, field) for field in fields))


def _multiplicity(height: int, width: int) -> np.ndarray:
    """How often each bin of `rfft2` stands in the full transform, 0 for the mean and for the second
    of two that are there."""
    weights = np.full((height, width // 2 + 1), 2.0)
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        weights[height // 2 + 1 :, column] = 0
        weights[0, column] = 1
        if height % 2 == 0:
            weights[height // 2, column] = 1
    weights[0, 0] = 0
    return weights


def orientation(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(orientation in degrees, coherence) of maps [..., h, w]: half the angle, and the length, of
    the power-weighted mean of exp(2 i phi) over the 2-D DFT of the mean-removed map, phi being the
    direction of the wave vector.

    Orientation is counter-clockwise from the rows as one sees the picture, from 0 (waves along the
    rows: upright stripes) up to 180; 90 is lying stripes. Coherence is 1 minus the circular
    variance (Ringach et al. 2002, with power in place of responses): 1 for one plane wave, 0 where
    no orientation stands out, and then orientation is NaN. Both are NaN for constant maps. A wave
    at the Nyquist frequency of one axis has two directions that no sample can tell apart; both
    count half."""
    return orientation_of(power_spectrum(maps))


def orientation_of(power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`orientation` from the power [..., h, w] itself."""
    rows, columns = np.meshgrid(*(np.fft.fftfreq(n) for n in power.shape[-2:]), indexing="ij")
    # Rows count upwards.
    waves = np.exp(2j * np.arctan2(-rows, columns))
    # The other alias of a wave at the Nyquist frequency mirrors its direction, which turns exp(2 i
    # phi) into its conjugate.
    nyquist = (np.abs(rows) == 0.5) | (np.abs(columns) == 0.5)
    doubled = np.where(nyquist, waves.real, waves)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (power * doubled).sum((-2, -1)) / power.sum((-2, -1))
    coherence = np.abs(mean)
    angle = np.mod(np.degrees(np.angle(mean)) / 2, 180.0)
    # 180 is 0, and a rounding error below it as well.
    angle = np.where(np.isclose(angle, 180.0, rtol=0, atol=1e-9), 0.0, angle)
    return np.where(coherence > 1e-9, angle, np.nan), coherence


def randomise_phases(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Surrogates [unit, h, w] with each map's own amplitude spectrum and mean, and the phases of
    white noise."""
    spectrum = np.fft.fft2(np.asarray(maps, dtype=np.float64))
    noise = np.fft.fft2(rng.standard_normal(maps.shape))
    surrogate = np.abs(spectrum) * noise / np.abs(noise)
    surrogate[..., 0, 0] = spectrum[..., 0, 0]
    drawn: np.ndarray = np.fft.ifft2(surrogate).real
    return drawn


def amplitudes(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean [unit, 1], alone [unit, a], waves [unit, w]) of maps [unit, h, w]: what their
    random-phase surrogates keep.

    In the orthonormal real Fourier basis a surrogate is `mean`, `alone` with random signs (the
    Nyquist waves), and `waves` times the cosine and sine of random phases; its inner products are
    those of the maps."""
    spectrum = np.fft.rfft2(np.asarray(maps, dtype=np.float64), norm="ortho")
    weights = _multiplicity(*np.shape(maps)[-2:])
    amplitude = np.abs(spectrum) * np.sqrt(weights)
    return spectrum[:, :1, 0].real, amplitude[:, weights == 1], amplitude[:, weights == 2]


# So many phases are as good as all, and cost no cosines.
_PHASES = np.exp(2j * np.pi * np.arange(2**16) / 2**16).astype(np.complex64)


def random_phase_coordinates(
    maps: np.ndarray, draws: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Surrogates as those of `randomise_phases`, as float32 coordinates [unit, h * w] in the
    orthonormal real Fourier basis (see `amplitudes`).

    Inner products are those of the maps themselves; a draw costs no transform, and takes the place
    of the one before."""
    mean, alone, waves = (part.astype(np.float32) for part in amplitudes(maps))
    first, second = mean.shape[1] + alone.shape[1], mean.shape[1] + alone.shape[1] + waves.shape[1]
    drawn = np.empty((len(mean), second + waves.shape[1]), np.float32)
    drawn[:, :1] = mean
    for _ in range(draws):
        drawn[:, 1:first] = np.where(rng.random(alone.shape, np.float32) < 0.5, -alone, alone)
        phases = _PHASES.take(rng.integers(0, 2**16, waves.shape, np.uint16))
        np.multiply(waves, phases.real, out=drawn[:, first:second])
        np.multiply(waves, phases.imag, out=drawn[:, second:])
        yield drawn
