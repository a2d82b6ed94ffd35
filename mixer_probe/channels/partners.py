"""Best-matching channels of two networks: for every channel of one, the most correlated channel of
another, against chance."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from mixer_probe.channels.image_means import ImageMeans, array_of
from mixer_probe.channels.selectivity import LEVEL
from mixer_probe.core.errors import MeasureError, UndefinedChannelsWarning, layer_index
from mixer_probe.core.fingerprint import check_same_images
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import ROWS, at_once, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.inputs import RepresentationsLike, to_grid
from mixer_probe.similarity.nulls import draw_pairings
from mixer_probe.stats import check_permutations, max_null, permutation_p, upper_quantile

Over = Literal["images", "positions"]
# A standard deviation below this fraction of the magnitude is rounding of float32.
_ROUNDING = 1e-6
# Images of the null of a larger set.
_NULL_IMAGES = 2048
# Correlations under permutations are computed in float32.
NULL_ROUNDING = 1e-5
# Edges of the histogram of |r| under permutations.
BINS = np.linspace(0, 1, 41)


@dataclass(frozen=True)
class ChannelPartners(Result):
    """For every channel of layer A its best-matching channels of layer B, over the same images (Li
    et al. 2016).

    `partner` [channel of A, k] are channels of B by the size of Pearson's correlation,
    `correlation` [channel of A, k] that with its sign: the sign of a channel means nothing where a
    linear map follows. -1 and NaN for constant channels. `best_of_b` [channel of B] is the channel
    of A that each channel of B correlates with most.

    The null of a channel is the largest |r| over all of B when the images of B are permuted with
    all their positions (in the random circular orders of `similarity.nulls.Pairings`). `p_value`
    [channel of A] is the fraction of permutations in which it is as large as the channel's own best
    |r|, +1 in both; `threshold` [channel of A] is its 95th percentile; `null_counts` [40] are
    counts of the null of all channels between `BINS`, and `null_max` [permutation] is the largest
    of all channels, with which `p_corrected` compares. `over` is "images" (means over positions) or
    "positions": every cell of the common `grid` of every image is an observation. `n` counts
    images."""

    title: ClassVar[str] = "Best-matching channels"
    frame = Frame(
        "channel_a",
        """model_a=model_a.name layer_a=layer_a.name channel=channel_a model_b=model_b.name
        layer_b=layer_b.name partner=partner.first correlation=correlation.first mutual
        threshold p_value p_corrected over n_images=n""",
    )

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
    partner: Annotated[np.ndarray, "channel_a", "rank"]
    correlation: Annotated[np.ndarray, "channel_a", "rank"]
    best_of_b: Annotated[np.ndarray, "channel_b"]
    p_value: Annotated[np.ndarray, "channel_a"]
    threshold: Annotated[np.ndarray, "channel_a"]
    null_counts: Annotated[np.ndarray, "bin"]
    null_max: Annotated[np.ndarray, "permutation"]

    @property
    def strength(self) -> Annotated[np.ndarray, "channel_a"]:
        """|r| with the best match, [channel of A]."""
        return np.asarray(np.abs(self.correlation[:, 0]))

    @property
    def p_corrected(self) -> Annotated[np.ndarray, "channel_a"]:
        """As `p_value` against the best |r| of any channel of A, [channel of A]."""
        return strength_p(self.strength, self.null_max[:, None])

    @property
    def fraction_above(self) -> float:
        """The fraction of varying channels of A whose best match is above the null at 5 %: 0.05 by
        chance."""
        return _fraction_below(self.p_value)

    @property
    def fraction_corrected(self) -> float:
        """As `fraction_above` with the null of the best pair: by chance, none in 95 % of cases."""
        return _fraction_below(self.p_corrected)

    @property
    def mutual(self) -> Annotated[np.ndarray, "channel_a"]:
        """Which channels of A [channel of A] are the best match of their own best match."""
        best = self.partner[:, 0]
        return np.asarray((best >= 0) & (self.best_of_b[best] == np.arange(len(best))))


def strength_p(strength: np.ndarray | float, null: np.ndarray) -> np.ndarray:
    """p-values of best |r| [...] under the same of permutations [m, ...], which has the rounding of
    float32; NaN without any."""
    size = np.asarray(strength) * (1 - NULL_ROUNDING)
    return np.asarray(permutation_p(size, null) if len(null) else np.full(size.shape, np.nan))


def _fraction_below(p: np.ndarray) -> float:
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
    """The `k` channels of B that correlate most with each channel of A, in absolute value, and
    their permutation null.

    Of more than 2,048 images the null is that of a sample of so many, on the scale of all.

    `over="positions"` needs runs with reduce="none" and takes every cell of a common `grid`, by
    default the coarser of both, as an observation. Raises LayerError for an unknown layer,
    MeasureError for runs of different images, fewer than three of them, positions that form no
    grid, or too few permutations. Warns with UndefinedChannelsWarning about constant channels."""
    check_permutations(permutations)
    check_same_images(reps_a, reps_b)
    if len(reps_a.ids) < 3:
        raise MeasureError(
            f"{len(reps_a.ids)} images are too few for a correlation: take 3 or more"
        )
    a, b = _layer(reps_a, layer_a), _layer(reps_b, layer_b)
    shared = None
    if over == "positions":
        for layer in (a, b):
            if layer.grid is None:
                raise MeasureError(
                    f"the positions of layer '{layer.name}' form no grid of rows and columns: take "
                    "over='images'"
                )
        assert a.grid is not None
        assert b.grid is not None
        shared = grid or (min(a.grid[0], b.grid[0]), min(a.grid[1], b.grid[1]))
    X, Y = _Side(reps_a, a, shared), _Side(reps_b, b, shared)
    for reps, layer, side in ((reps_a, a, X), (reps_b, b, Y)):
        bad = int((~torch.isfinite(side.length)).sum())
        if bad:
            warnings.warn(
                f"{bad} channels of '{layer.name}' of {reps.model.name} are constant or not finite "
                "and have no best match (NaN)",
                UndefinedChannelsWarning,
                stacklevel=3,
            )
    n, r = len(reps_a.ids), torch.zeros(len(X.length), len(Y.length), dtype=torch.float64)
    for rows in slices(n, ROWS):
        r += X[rows].flatten(0, 1).T @ Y[rows].flatten(0, 1)
    partner, correlation = _best(r.clamp_(-1, 1), min(k, r.shape[1]))
    null = _null(X.sample(n, seed), Y.sample(n, seed), permutations, seed)
    if n > _NULL_IMAGES:
        # The deviation of r over permutations of n images is 1 / sqrt(n - 1), exactly.
        null *= np.sqrt((_NULL_IMAGES - 1) / (n - 1))
        # Of a channel that varies in no image of the sample it is that of the others.
        null = np.where(null.any(0), null, np.nanmean(null, axis=1, keepdims=True))
    return ChannelPartners(
        model_a=reps_a.model,
        model_b=reps_b.model,
        images=reps_a.images,
        layer_a=a,
        layer_b=b,
        n=n,
        over=over,
        grid=shared,
        permutations=permutations,
        seed=seed,
        partner=partner,
        correlation=correlation,
        best_of_b=_best(r.T, 1)[0][:, 0],
        p_value=strength_p(np.abs(correlation[:, 0]), null),
        threshold=np.asarray(upper_quantile(null))
        if permutations
        else np.full(len(partner), np.nan),
        null_counts=np.histogram(null[np.isfinite(null)], BINS)[0],
        null_max=max_null(null, 1),
    )


def _layer(reps: RepresentationsLike, name: str) -> Layer:
    paths = [(layer.name,) for layer in reps.layers]
    return reps.layers[layer_index(name, paths, f"this run of {reps.model.name}", "layer")]


class _Side:
    """Activations [image, cell, channel] of a layer in float64, one cell for `grid` None:
    `side[rows]` are the deviations of some images from each channel's mean over all images and
    cells, divided by the `length` [channel] of those of all; NaN for channels that are constant."""

    def __init__(
        self, reps: RepresentationsLike, layer: Layer, grid: tuple[int, int] | None
    ) -> None:
        self._layer, self._grid = layer, grid
        self._values: Any = ImageMeans(reps, layer.name)
        if grid is not None:
            self._values = array_of(reps, layer.name)
            if self._values.ndim != 3:
                raise MeasureError(
                    f"layer '{layer.name}' of {reps.model.name} has no positions here: extract "
                    "with reduce='none'"
                )
        self._mean, self.length = self._standard([*slices(len(reps.ids), ROWS)])

    def _read(self, rows: Any) -> Tensor:
        values = torch.from_numpy(np.array(self._values[rows], dtype=np.float64))
        return values[:, None] if self._grid is None else to_grid(values, self._layer, self._grid)

    def _standard(self, parts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Mean and length [channel] over the images of all parts."""
        total, count = torch.zeros(0), 0
        for rows in parts:
            x = self._read(rows).flatten(0, 1)
            total, count = (x.sum(0) if not count else total + x.sum(0)), count + len(x)
        mean = total / count
        norm = torch.linalg.vector_norm
        lengths, sizes = zip(
            *(
                (norm(x - mean, dim=0), norm(x, dim=0))
                for x in (self._read(rows).flatten(0, 1) for rows in parts)
            ),
            strict=True,
        )
        length, size = (norm(torch.stack(found), dim=0) for found in (lengths, sizes))
        return mean, torch.where(length > _ROUNDING * size, length, torch.nan)

    def __getitem__(self, rows: slice) -> Tensor:
        return (self._read(rows) - self._mean) / self.length

    def sample(self, n: int, seed: int) -> Tensor:
        """The same of a sample of the n images as if there were no others; of few all."""
        if n <= _NULL_IMAGES:
            return torch.cat([self[rows] for rows in slices(n, ROWS)])
        drawn = np.random.default_rng(seed).permutation(n)[:_NULL_IMAGES]
        x = self._read(np.sort(drawn))
        x = x - x.mean((0, 1))
        length = torch.linalg.vector_norm(x, dim=(0, 1))
        # Channels that vary in others of the images only have no correlation here.
        return torch.where(torch.isfinite(self.length), x / length.clamp(min=1e-300), torch.nan)


def _best(r: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` columns of the largest |r| in every row and their r; -1 and NaN where undefined."""
    size = r.abs().nan_to_num(nan=-1.0)
    order = size.argsort(dim=1, descending=True, stable=True)[:, :k]
    defined = size.gather(1, order) >= 0
    return torch.where(defined, order, -1).numpy(), torch.where(
        defined, r.gather(1, order), torch.nan
    ).numpy()


def _null(X: Tensor, Y: Tensor, permutations: int, seed: int) -> np.ndarray:
    """The largest |r| of each channel of A [permutation, channel] with the images of B shifted
    along random circular orders.

    Correlations of all shifts of one order are a circular cross-correlation over the images, by
    FFT, added over cells."""
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
        # Products and correlations take 4 bytes each for every image and pair of channels.
        for part in slices(a.shape[2], at_once(8 * len(x) * b.shape[2])):
            products = np.conj(a[:, :, part]).transpose(0, 2, 1) @ b
            r = fft.irfft(products, len(x), axis=0)
            found[first : first + len(shifts), part] = np.abs(r).max(2)[shifts]
        first += len(shifts)
    return found


def by_networks(results: Iterable[ChannelPartners]) -> dict[tuple[str, str], list[ChannelPartners]]:
    """The results by the names of networks A and B, in order of first appearance."""
    pairs: dict[tuple[str, str], list[ChannelPartners]] = {}
    for result in results:
        pairs.setdefault((result.model_a.name, result.model_b.name), []).append(result)
    return pairs
