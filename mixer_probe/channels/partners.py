"""Units across networks: for every channel of one, the channel of another that answers to the same images, against chance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from scipy import fft
from torch import Tensor

from mixer_probe.channels.selectivity import LEVEL, image_means
from mixer_probe.core.errors import LayerError, MeasureError, UndefinedChannelsWarning, closest
from mixer_probe.core.fingerprint import check_same_images
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.inputs import RepresentationsLike, to_grid
from mixer_probe.similarity.nulls import draw_pairings
from mixer_probe.stats import check_permutations, upper_quantile

Over = Literal["images", "positions"]
# A spread below this share of the magnitude is rounding of float32.
_ROUNDING = 1e-6
# Correlations of shuffled images are taken in float32.
_NULL_ROUNDING = 1e-5
_CHUNK = 8_000_000


@dataclass(frozen=True)
class ChannelPartners(Result):
    """For every channel of layer A its best-correlated channels of layer B, over the same images (Li et al. 2016).

    `partner` [channel of A, k] are channels of B by the size of Pearson's correlation, `correlation` [channel of A, k] that with
    its sign: the sign of a channel means nothing where a linear map follows. -1 and NaN for constant channels. `best_of_b`
    [channel of B] is the channel of A that each channel of B correlates with most. `null` [permutation, channel of A] is the
    largest |r| of each channel over all of B when the images of B are shuffled, positions and all (in the random circular orders
    of `similarity.nulls.Pairings`); `p_value` [channel of A]
    compares with that maximum of the same channel, `p_corrected` with the maximum over all channels of A too. `over` is "images"
    (means over positions) or "positions": every cell of the common `grid` of every image is an observation. `n` counts images."""

    title: ClassVar[str] = "Partners of channels"

    model_a: ModelRecord
    model_b: ModelRecord
    images: ImagesRecord
    layer_a: Layer
    layer_b: Layer
    n: int
    over: str
    grid: tuple[int, int] | None
    permutations: int
    seed: int
    partner: np.ndarray
    correlation: np.ndarray
    best_of_b: np.ndarray
    null: np.ndarray

    @property
    def strength(self) -> np.ndarray:
        """|r| with the best partner, [channel of A]."""
        return np.asarray(np.abs(self.correlation[:, 0]))

    @property
    def p_value(self) -> np.ndarray:
        """Share of permutations in which the channel's best |r| is as large, [channel of A]; +1 in both."""
        return self._p(self.null)

    @property
    def p_corrected(self) -> np.ndarray:
        """As `p_value` against the best |r| of any channel of A, [channel of A]."""
        return self._p(_peak(self.null, 1)[:, None])

    def _p(self, null: np.ndarray) -> np.ndarray:
        if not self.permutations:
            return np.full(len(self.strength), np.nan)
        with np.errstate(invalid="ignore"):
            reached = (null >= self.strength * (1 - _NULL_ROUNDING)).sum(0)
        return np.where(np.isnan(self.strength), np.nan, (1 + reached) / (1 + self.permutations))

    @property
    def threshold(self) -> np.ndarray:
        """The |r| that a channel's best partner exceeds by chance in 5 % of cases, [channel of A]."""
        return np.asarray(upper_quantile(self.null)) if self.permutations else np.full(len(self.strength), np.nan)

    @property
    def share_above(self) -> float:
        """Share of the channels of A that vary whose best partner is above the null at 5 %: 0.05 by chance."""
        return _share(self.p_value)

    @property
    def share_corrected(self) -> float:
        """As `share_above` with the null of the best pair: by chance, none in 95 % of cases."""
        return _share(self.p_corrected)

    @property
    def mutual(self) -> np.ndarray:
        """Which channels of A [channel of A] are the best partner of their own best partner."""
        best = self.partner[:, 0]
        return np.asarray((best >= 0) & (self.best_of_b[best] == np.arange(len(best))))

    def to_frame(self) -> pd.DataFrame:
        """One row a channel of A, with its best partner."""
        return pd.DataFrame(
            {
                "model_a": self.model_a.name,
                "layer_a": self.layer_a.name,
                "channel": np.arange(len(self.strength)),
                "model_b": self.model_b.name,
                "layer_b": self.layer_b.name,
                "partner": self.partner[:, 0],
                "correlation": self.correlation[:, 0],
                "mutual": self.mutual,
                "threshold": self.threshold,
                "p_value": self.p_value,
                "p_corrected": self.p_corrected,
                "over": self.over,
                "n_images": self.n,
            }
        )


def _share(p: np.ndarray) -> float:
    known = p[np.isfinite(p)]
    return float((known <= LEVEL).mean()) if len(known) else float("nan")


@checked(MeasureError)
def channel_partners(
    reps_a: RepresentationsLike,
    reps_b: RepresentationsLike,
    layer_a: str,
    layer_b: str,
    *,
    over: Over = "images",
    grid: tuple[int, int] | None = None,
    k: int = 5,
    permutations: int = 999,
    seed: int = 0,
) -> ChannelPartners:
    """The `k` channels of B that correlate most with each channel of A, in absolute value, and how much of it is chance.

    `over="positions"` needs runs with reduce="none" and takes every cell of a common `grid`, by default the coarser of both, as
    an observation. Raises LayerError for an unknown layer, MeasureError for runs of different images, fewer than three of them,
    positions that form no grid, or too few permutations. Warns with UndefinedChannelsWarning about constant channels."""
    check_permutations(permutations)
    _check_images(reps_a, reps_b)
    a, b = _layer(reps_a, layer_a), _layer(reps_b, layer_b)
    shared = _common_grid(a, b, grid) if over == "positions" else None
    x, y = _observations(reps_a, a, shared), _observations(reps_b, b, shared)
    X, Y = _standardised(x), _standardised(y)
    _warn_constant((reps_a, a, X), (reps_b, b, Y))
    r = (X.flatten(0, 1).T @ Y.flatten(0, 1)).clamp_(-1, 1)
    partner, correlation = _best(r, min(k, r.shape[1]))
    return ChannelPartners(
        model_a=reps_a.model,
        model_b=reps_b.model,
        images=reps_a.images,
        layer_a=a,
        layer_b=b,
        n=len(X),
        over=over,
        grid=shared,
        permutations=permutations,
        seed=seed,
        partner=partner,
        correlation=correlation,
        best_of_b=_best(r.T, 1)[0][:, 0],
        null=_null(X, Y, permutations, seed),
    )


def _check_images(a: RepresentationsLike, b: RepresentationsLike) -> None:
    check_same_images(a, b)
    if len(a.ids) < 3:
        raise MeasureError(f"{len(a.ids)} images are too few for a correlation: take 3 or more")


def _layer(reps: RepresentationsLike, name: str) -> Layer:
    layers = {layer.name: layer for layer in reps.layers}
    if name not in layers:
        raise LayerError(f"no layer '{name}' in this run of {reps.model.name}; {closest(name, layers)}")
    return layers[name]


def _common_grid(a: Layer, b: Layer, grid: tuple[int, int] | None) -> tuple[int, int]:
    for layer in (a, b):
        if layer.grid is None:
            raise MeasureError(f"the positions of layer '{layer.name}' form no grid of rows and columns: take over='images'")
    assert a.grid is not None
    assert b.grid is not None
    return grid or (min(a.grid[0], b.grid[0]), min(a.grid[1], b.grid[1]))


def _observations(reps: RepresentationsLike, layer: Layer, grid: tuple[int, int] | None) -> Tensor:
    """Activations [image, cell, channel] in float64; one cell for `grid` None."""
    if grid is None:
        return torch.from_numpy(np.array(image_means(reps, layer.name)))[:, None]
    values = np.array(reps[layer.name], dtype=np.float64)
    if values.ndim != 3:
        raise MeasureError(f"layer '{layer.name}' of {reps.model.name} has no positions here: extract with reduce='none'")
    return to_grid(torch.from_numpy(values), layer, grid)


def _standardised(x: Tensor) -> Tensor:
    """Deviations from each channel's mean over images and cells, of length 1; all NaN for channels that are constant."""
    centred = x - x.mean((0, 1))
    length = torch.linalg.vector_norm(centred, dim=(0, 1))
    varies = length > _ROUNDING * torch.linalg.vector_norm(x, dim=(0, 1))
    return centred / torch.where(varies, length, torch.nan)


def _best(r: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` columns of the largest |r| in every row and their r; -1 and NaN where undefined."""
    size = r.abs().nan_to_num(nan=-1.0)
    order = size.argsort(dim=1, descending=True, stable=True)[:, :k]
    defined = size.gather(1, order) >= 0
    return torch.where(defined, order, -1).numpy(), torch.where(defined, r.gather(1, order), torch.nan).numpy()


def _null(X: Tensor, Y: Tensor, permutations: int, seed: int) -> np.ndarray:
    """The largest |r| of every channel of A [permutation, channel] with the images of B shifted along random circular orders.

    Correlations of all shifts of one order are a circular cross-correlation over the images, by FFT, added over cells."""
    known = Y[:, :, torch.isfinite(Y[0, 0])].float().numpy()
    x = X.float().numpy()
    found = np.full((permutations, X.shape[2]), np.nan)
    if not (known.shape[2] and permutations):
        return found
    first = 0
    # The first pairing of all is the true one.
    for skip, pairing in zip((1, *[0] * permutations), draw_pairings(len(x), permutations, seed)):
        shifts = pairing.shifts.numpy()[skip:]
        a, b = (fft.rfft(side[pairing.order.numpy()], axis=0) for side in (x, known))
        step = max(1, _CHUNK // (len(x) * b.shape[2]))
        for c in range(0, a.shape[2], step):
            products = np.conj(a[:, :, c : c + step]).transpose(0, 2, 1) @ b
            r = fft.irfft(products, len(x), axis=0)
            found[first : first + len(shifts), c : c + step] = np.abs(r).max(2)[shifts]
        first += len(shifts)
    return found


def _peak(values: np.ndarray, axis: int) -> np.ndarray:
    """The maximum over an axis of what is not NaN; NaN if nothing is."""
    peak = np.where(np.isnan(values), -np.inf, values).max(axis)
    return np.asarray(np.where(np.isneginf(peak), np.nan, peak))


def _warn_constant(*sides: tuple[RepresentationsLike, Layer, Tensor]) -> None:
    for reps, layer, standardised in sides:
        bad = int((~torch.isfinite(standardised[0, 0])).sum())
        if bad:
            warnings.warn(
                f"{bad} channels of '{layer.name}' of {reps.model.name} are constant or not finite and have no best match (NaN)",
                UndefinedChannelsWarning,
                stacklevel=4,
            )
