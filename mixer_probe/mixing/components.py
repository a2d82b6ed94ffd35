"""Principal components of the positions of a layer, as colours over the images.

As Oquab et al. (2023, DINOv2, TMLR 2024, fig. 1): one basis for all positions of all given images,
so that equal colours are equal features in every image of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from mixer_probe.capture import ImageSource, as_source, input_pictures, part_of, stream
from mixer_probe.core.errors import LayerError, MeasureError, closest
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import LARGE, RESIDENT, at_once
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import check_count, checked
from mixer_probe.mixing.grid import with_grid
from mixer_probe.mixing.jackknife import FRACTION, group_of, jackknife
from mixer_probe.models.layer import Layer, spread
from mixer_probe.models.model import Model

# Red, green and blue.
_COLOURS = 3
# Layers where none are asked for.
_LAYERS = 5
# Scores below and above these quantiles of the shown images have the ends of the colour scale.
_QUANTILES = (0.02, 0.98)
# Larger input pictures are reduced to this side.
_PIXELS = 160
# Draws of the null, and groups of images for the jackknife.
_DRAWS, _GROUPS = 3, 12
# Larger covariances have their leading eigenvalues by iteration, but for the basis.
_DENSE = 200


@dataclass(frozen=True)
class TokenComponents(Result):
    """The first three principal components of all positions of each layer, over all given images.

    Of the channels minus their means over positions and images (divided by their standard
    deviations where `standardized`); prefix tokens are left out. `scores` [layer, image, row,
    column, component] are of the `shown` images. The sign of a component makes its loading of
    largest magnitude positive.

    `explained` [layer, component] is the fraction of the variance over the given images in each
    component, and `expected` what it is where channels are independent of each other and have the
    same variances: the mean of draws of the correlation matrix of as many independent positions,
    which is its distribution under permutations of the positions within each channel for large
    numbers of them. `together` [layer] is the fraction in all three of other images of the kind,
    with [`together_low`, `together_high`], its 95 % interval over images: by a jackknife over
    `groups` groups of images, which corrects that components fit the images that they are taken
    from. NaN for a layer that is constant."""

    title: ClassVar[str] = "Principal components of positions"
    frame = Frame(
        "layer",
        """model=model.name model.trained layer=layers.name layers.depth
        explained_1,explained_2,explained_3=explained expected_1,expected_2,expected_3=expected
        together together_low together_high n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    shown: Annotated[tuple[str, ...], "shown"]
    pictures: Annotated[np.ndarray, "shown", "height", "width", "3"]
    scores: Annotated[tuple[np.ndarray, ...], "layer", "shown", "row", "column", "rank"]
    scale_from: Annotated[np.ndarray, "layer", "rank"]
    scale_to: Annotated[np.ndarray, "layer", "rank"]
    explained: Annotated[np.ndarray, "layer", "rank"]
    expected: Annotated[np.ndarray, "layer", "rank"]
    together: Annotated[np.ndarray, "layer"]
    together_low: Annotated[np.ndarray, "layer"]
    together_high: Annotated[np.ndarray, "layer"]
    standardized: bool
    n: int
    groups: int
    seed: int

    def colours(self, layer: str) -> np.ndarray:
        """Colours [image, row, column, 3] in 0..1 of a layer: each component from its 2 % to its
        98 % quantile over all shown images; 0.5 where it does not vary.

        Raises LayerError for a layer that is not among these."""
        names = [one.name for one in self.layers]
        if layer not in names:
            raise LayerError(f"there are no components of '{layer}'; {closest(layer, names)}")
        k = names.index(layer)
        low, width = self.scale_from[k], self.scale_to[k] - self.scale_from[k]
        scaled = (self.scores[k] - low) / np.where(width > 0, width, 1)
        colours: np.ndarray = np.where(width > 0, scaled.clip(0, 1), 0.5)
        return colours


@checked(MeasureError)
def token_components(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    shown: int = 8,
    standardize: bool = False,
    batch_size: int = 32,
    seed: int = 0,
) -> TokenComponents:
    """The first three principal components of all positions of each layer, fitted on all `images`,
    with their scores for the first `shown` of these.

    By default of five blocks spread over depth. Covariances are summed over images in float64, and
    a second pass over those shown has the scores. Raises MeasureError for a layer
    without a grid or with fewer than three channels, and as `Model.select` does."""
    check_count("shown", shown, MeasureError)
    if layers is None:
        blocks = [x for x in model.select("blocks") if x.grid] or list(model.select("blocks"))
        layers = [blocks[k].name for k in spread(blocks, _LAYERS)]
    placed = with_grid(model.select(layers), "a map of components")
    chosen = [layer for layer, _ in placed]
    thin = next((layer for layer in chosen if layer.channels < _COLOURS), None)
    if thin is not None:
        raise MeasureError(
            f"'{thin.name}' has {thin.channels} channels, and three components need at least "
            f"{_COLOURS}; give another layer"
        )
    source = as_source(images)
    n, shown = len(source), min(shown, len(source))
    squares = 8 * sum(layer.channels**2 for layer in chosen)
    groups = min(n, _GROUPS, at_once(squares, RESIDENT // 2, least=2))
    size = 8 * sum(layer.positions * layer.channels for layer in chosen)
    options: dict[str, Any] = {"batch_size": min(batch_size, at_once(size, LARGE))}
    moments = {layer.name: _Moments(layer, groups) for layer in chosen}
    for piece in stream(model, source, chosen, _positions, **options):
        for name, x in piece.found.items():
            for i, image in enumerate(x, piece.start):
                moments[name].add(image, group_of(i, n, groups))
    bases, rows = {}, []
    for layer in chosen:
        rng = np.random.default_rng((seed, layer.order))
        bases[layer.name], numbers = moments.pop(layer.name).result(standardize, rng)
        rows.append(numbers)
    scores = {layer.name: np.zeros((shown, *grid, _COLOURS)) for layer, grid in placed}
    few = source if shown == n else part_of(source, range(shown))
    for piece in stream(model, few, chosen, _positions, **options):
        for name, x in piece.found.items():
            found = bases[name].scores(x)
            of = scores[name][piece.start : piece.start + len(x)]
            of[:] = found.reshape(of.shape)
    ends = np.stack([np.quantile(s, _QUANTILES, axis=(0, 1, 2)) for s in scores.values()], axis=1)
    explained, expected, together = (np.stack(part) for part in zip(*rows, strict=True))
    return TokenComponents(
        model=model.record,
        images=source.record,
        layers=tuple(chosen),
        shown=source.ids[:shown],
        pictures=input_pictures(model, source, range(shown), _PIXELS),
        scores=tuple(one.astype(np.float32) for one in scores.values()),
        scale_from=ends[0],
        scale_to=ends[1],
        explained=explained,
        expected=expected,
        together=together[:, 0],
        together_low=together[:, 1],
        together_high=together[:, 2],
        standardized=standardize,
        n=n,
        groups=groups,
        seed=seed,
    )


def _positions(
    _layer: Layer, positions: torch.Tensor, _prefix: torch.Tensor | None
) -> torch.Tensor:
    """A copy of all positions, float64 [image, position, channel]."""
    return positions.to(torch.float64, copy=True)


@dataclass(frozen=True)
class _Basis:
    """Means and scales of the channels, and loadings [channel, component]."""

    mean: torch.Tensor
    scale: torch.Tensor
    loadings: torch.Tensor

    def scores(self, x: torch.Tensor) -> np.ndarray:
        """[image, position, component]."""
        return ((x - self.mean) / self.scale @ self.loadings).cpu().numpy()


class _Moments:
    """Sums over the positions of one layer, about the mean of the first image, by groups of
    images."""

    def __init__(self, layer: Layer, groups: int) -> None:
        self._name, self._counts = layer.name, np.zeros(groups)
        self._shift: torch.Tensor | None = None

    def add(self, x: torch.Tensor, group: int) -> None:
        """The positions [position, channel] of one image."""
        if self._shift is None:
            self._shift = x.mean(0)
            self._sums = x.new_zeros(len(self._counts), x.shape[1])
            self._outer = x.new_zeros(len(self._counts), x.shape[1], x.shape[1])
        x = x - self._shift
        self._sums[group] += x.sum(0)
        self._outer[group].addmm_(x.T, x)
        self._counts[group] += len(x)

    def result(
        self, standardize: bool, rng: np.random.Generator
    ) -> tuple[_Basis, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The basis; the fractions of the components and of those of independent channels; value
        and bounds of all together. Raises MeasureError for activations that are not finite."""
        assert self._shift is not None
        count, total, outer = self._counts.sum(), self._sums.sum(0), self._outer.sum(0)
        if not torch.isfinite(outer).all():
            raise MeasureError(
                f"activations of '{self._name}' are not finite, or so large that their squares are "
                "not; components need finite ones"
            )
        C, scale = _covariance(total, outer, count, standardize)
        values, vectors = _leading(C)
        variances = np.diag(C).clip(0)
        # What rounding leaves of a variance of zero has no direction.
        known = values > 1e-12 * variances.sum()
        loadings = np.where(known, vectors * np.sign(_largest(vectors)), 0)
        basis = _Basis(
            self._shift + total / count, scale, torch.from_numpy(loadings).to(total.device)
        )
        if not known[0]:
            unknown = np.full(_COLOURS, np.nan)
            return basis, (unknown, unknown, unknown)
        fractions = np.where(known, values, 0) / variances.sum()
        expected = independent(variances, int(count), rng) / variances.sum()
        without = []
        for g, of in enumerate(self._counts) if len(self._counts) > 1 else ():
            rest, _ = _covariance(
                total - self._sums[g], outer - self._outer[g], count - of, standardize
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                without.append(_leading(rest, vectors)[0].sum() / np.trace(rest))
        value, _, low, high = jackknife(
            fractions.sum(keepdims=True), np.reshape(without, (-1, 1)), [FRACTION]
        )
        return basis, (fractions, expected, np.concatenate([value, low, high]))


def _covariance(
    total: torch.Tensor, outer: torch.Tensor, count: float, standardize: bool
) -> tuple[np.ndarray, torch.Tensor]:
    """Covariance of the channels from sums, and their scales."""
    mean = total / count
    C = outer / count - torch.outer(mean, mean)
    scale = torch.ones_like(mean)
    if standardize:
        spread = C.diagonal().clamp(min=0).sqrt()
        scale = torch.where(spread > 0, spread, 1.0)
        C = C / torch.outer(scale, scale)
    return C.cpu().numpy(), scale


def _largest(vectors: np.ndarray) -> np.ndarray:
    """The entry of largest magnitude of each column."""
    found: np.ndarray = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
    return found


def _leading(
    C: np.ndarray, near: np.ndarray | None = None, tol: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """The three largest eigenvalues of a symmetric matrix and their vectors; of a large one by
    Lanczos iterations from the sum of `near` vectors, where given, to a relative error of `tol`."""
    if near is None or len(C) < _DENSE:
        values, vectors = eigh(C, subset_by_index=[len(C) - _COLOURS, len(C) - 1])
    else:
        values, vectors = eigsh(C, _COLOURS, v0=near.sum(1), tol=tol)
    order = np.argsort(values)[::-1]
    return values[order].clip(0), vectors[:, order]


def independent(variances: np.ndarray, positions: int, rng: np.random.Generator) -> np.ndarray:
    """Mean of the three largest eigenvalues of the covariance of independent channels with these
    variances, exactly so in the sample, over `positions` independent positions.

    The correlation matrix is that of normal draws: a Wishart matrix by its Cholesky factor
    (Bartlett 1933), or from the draws themselves where there are fewer of them than channels."""
    count, found = len(variances), []
    # Of many channels one draw is as good as the mean of several of few.
    for _ in range(_DRAWS if count < _DENSE else 1):
        if positions - 1 > count:
            factor = np.tril(rng.standard_normal((count, count)), -1)
            degrees = positions - 1 - np.arange(count)
            np.fill_diagonal(factor, np.sqrt(rng.chisquare(degrees)))
        else:
            factor = rng.standard_normal((count, positions))
            factor -= factor.mean(1, keepdims=True)
        norms = np.linalg.norm(factor, axis=1, keepdims=True)
        factor *= np.sqrt(variances)[:, None] / np.where(norms > 0, norms, 1)
        C = factor @ factor.T
        found.append(
            eigh(C, eigvals_only=True, subset_by_index=[count - _COLOURS, count - 1])[::-1]
        )
    mean: np.ndarray = np.mean(found, axis=0)
    return mean
