"""Whether maps share shapes: the sum of their squared inner products against random phases, in
closed form.

T = sum over pairs c < d of <k_c, k_d>^2 is large where kernels lie in few directions: with G their
Gram matrix, tr(G)^2 / tr(G^2) is the effective number of shared kernels, and random phases change
no norm, hence not tr(G). Under random phases (`spectrum.amplitudes`) an inner product is a constant
plus a sum of independent terms p_f cos(phase) and +-s_f, and phase differences of different pairs
are independent but for triangles. Mean, variance and third central moment of T follow exactly,
without any draw, and a Pearson III law with these moments gives the p-value, as is usual for
permutation tests of RV coefficients (Josse, Pages and Husson 2008).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import gamma, norm

from mixer_probe.weights.spectrum import amplitudes


def shared_shapes(maps: np.ndarray) -> tuple[float, float]:
    """(T over its mean under random phases, one-sided p-value) of maps [channel, h, w]; 1 and 1
    where phases cannot change T, NaN for a single map or maps of zeros.

    The first number is 1 where maps share no more shapes than their spectra give, and larger the
    more they do."""
    mean, alone, waves = amplitudes(maps)
    scale = math.sqrt(
        float((mean**2).sum() + (alone**2).sum() + (waves**2).sum()) / max(len(mean), 1)
    )
    if len(mean) < 2 or not scale > 0:
        return math.nan, math.nan
    mean, alone, waves = (part / scale for part in (mean, alone, waves))
    flat = np.asarray(maps, dtype=np.float64).reshape(len(maps), -1) / scale
    pairs = np.triu_indices(len(flat), 1)
    own = float(((flat @ flat.T)[pairs] ** 2).sum())
    constant, moments = (mean @ mean.T)[pairs], _inner_moments(alone, waves)
    v, fourth, sixth = (m[pairs] for m in moments)
    expected = float((constant**2 + v).sum())
    variance = float((4 * constant**2 * v + fourth - v**2).sum())
    if not variance > 1e-18 * max(expected, 1e-300) ** 2:
        return 1.0, 1.0
    third = float((sixth - 3 * v * fourth + 2 * v**3 + 12 * constant**2 * (fourth - v**2)).sum())
    third += 6 * _triangles(mean[:, 0], alone, waves)
    z, skew = (own - expected) / math.sqrt(variance), third / variance**1.5
    if skew < 1e-4:
        return own / expected, float(norm.sf(z))
    shape = 4 / skew**2
    return own / expected, float(gamma.sf(shape + 2 * z / skew, shape))


def _inner_moments(
    alone: np.ndarray, waves: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Second, fourth and sixth moments [channel, channel] of what is random in inner products, from
    their cumulants.

    Of cos(phase) the cumulants of order 2, 4, 6 are 1/2, -3/8, 5/4, and of a random sign 1, -2,
    16."""
    k2, k4, k6 = (
        a * (alone**n @ (alone**n).T) + w * (waves**n @ (waves**n).T)
        for n, a, w in ((2, 1, 0.5), (4, -2, -3 / 8), (6, 16, 5 / 4))
    )
    return k2, k4 + 3 * k2**2, k6 + 15 * k2 * k4 + 15 * k2**3


def _triangles(mean: np.ndarray, alone: np.ndarray, waves: np.ndarray) -> float:
    """Sum over triples of channels of the mean product of the three deviations of squared inner
    products.

    With Q_f the product of the three squared amplitudes of a term: two different terms that run
    round the triangle give 4 Q_f Q_g (signs), 2 Q_f Q_g (a sign and a wave), Q_f Q_g / 2 (waves)
    for each pair, a wave with itself Q_f^2 / 32, and with the constant c of the products 8 c Q_f
    (sign) and 2 c Q_f (wave)."""
    energy = np.concatenate([alone, waves], axis=1) ** 2
    weight = np.concatenate([np.full(alone.shape[1], 2.0), np.full(waves.shape[1], 0.5**0.5)])
    # Sums over triples of channels of Q_f Q_g [term, term], and of c Q_f [term].
    products = _third_symmetric(*((energy**n).T @ energy**n for n in (1, 2, 3)))
    same = products.diagonal()
    cross = float(weight @ products @ weight - (weight**2 * same).sum()) / 2
    itself = float(same[alone.shape[1] :].sum()) / 32
    with_mean = [
        _third_symmetric(x.sum(), (x**2).sum(), (x**3).sum())
        for x in (mean**2 * column for column in energy.T)
    ]
    constant = np.concatenate([np.full(alone.shape[1], 8.0), np.full(waves.shape[1], 2.0)])
    return cross + itself + float(constant @ np.array(with_mean))


def _third_symmetric(p1: Any, p2: Any, p3: Any) -> Any:
    """The third elementary symmetric polynomial from power sums: the sum of the products of all
    triples."""
    return (p1**3 - 3 * p1 * p2 + 2 * p3) / 6
