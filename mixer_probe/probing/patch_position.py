"""Decoding of patch positions: row, column and cell of the grid of a token from its activation
alone.

A Mixer has no position embedding, yet its token-mixing weights belong to positions; a ViT has
position embeddings; a CNN can use zero padding at the border. The probe is fitted to the tokens of
some images and tested on those of others, at every layer. The first layer (a linear map of the
patch, before any embedding or mixing) is the baseline: what the content of a patch says about its
position, as sky is above.

Nothing of size [image, position, channel] is stored. With x_is the activation of image i at
position s, two moments are enough: the sums by position M_s = sum_i x_is [S, C] and the scatter
sum_is x_is x_is' [C, C]. The row and column are decoded by ridge regression; the cell by linear
discriminant analysis with the ridge on the covariance within positions, because one-hot regression
masks the classes that lie between others (Hastie, Tibshirani and Friedman 2009, section 4.2), as
cells of a grid do.

The moments of ten groups of the training images are kept too, [10, C, C] for each layer: the probes
are fitted again without each group, and the change is the variance over training images
(delete-group jackknife).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

from mixer_probe.capture import ImageSource, Piece, Reading, Reducer, as_source, part_of, stream
from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError, UndefinedProbeWarning
from mixer_probe.core.fingerprint import check_apart
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.ridge import checked_penalties
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.probing.runs import LAYER
from mixer_probe.similarity.inputs import to_grid
from mixer_probe.stats import mean_interval, training_interval

T = TypeVar("T")
# By layer, float32 or float64 [image, position, channel].
Tokens = dict[str, Tensor]
# Relative to the mean eigenvalue of what they are added to, so that one path fits layers of any
# scale and width.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST_ROWS = 16
# A spread of a channel below this fraction of its mean is rounding of float32 activations.
_ROUNDING = 1e-6
# Groups of training images that are left out of the fit in turn, for intervals.
GROUPS = 10
# The covariance within positions may vanish where activations depend on the position alone.
_LEAST = 1e-9


@dataclass(frozen=True)
class PatchPosition(Result):
    """Accuracy of the position of a token decoded from its activation, for each layer [L].

    `row_r2` and `column_r2` are R^2 over the tokens of the test images, `r2` is that of both
    together. `accuracy` is the fraction of tokens whose cell is right, by chance `chance` = 1 /
    cells; `distance_px` is the mean distance in pixels of the model's input from the centre of the
    predicted cell to that of the true one, by chance `chance_distance_px` (two random cells). `low`
    and `high` ([L] each, before the name of the number) are 95 % intervals for other training
    images and other test images at the chosen ridges, NaN for fewer than 10 training images.
    `cells` is a tuple over layers of accuracy by true cell [rows, columns]. `ridge_regression` and
    `ridge_cells` are the relative ridges chosen on `n_validation` of the training images, after
    which all `n_train` were fitted. Layers with NaN or infinite activations, and constant ones,
    give NaN."""

    title: ClassVar[str] = "Patch position"
    frame = Frame(
        "layer",
        f"""{LAYER} rows,columns=grids r2 low_r2 high_r2 row_r2 column_r2 accuracy low_accuracy
        high_accuracy chance distance_px low_distance_px high_distance_px chance_distance_px
        n_train n_test""",
        below="untrained",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    grids: Annotated[tuple[tuple[int, int], ...], "layer", 2]
    r2: Annotated[np.ndarray, "layer"]
    low_r2: Annotated[np.ndarray, "layer"]
    high_r2: Annotated[np.ndarray, "layer"]
    row_r2: Annotated[np.ndarray, "layer"]
    column_r2: Annotated[np.ndarray, "layer"]
    accuracy: Annotated[np.ndarray, "layer"]
    low_accuracy: Annotated[np.ndarray, "layer"]
    high_accuracy: Annotated[np.ndarray, "layer"]
    chance: Annotated[np.ndarray, "layer"]
    distance_px: Annotated[np.ndarray, "layer"]
    low_distance_px: Annotated[np.ndarray, "layer"]
    high_distance_px: Annotated[np.ndarray, "layer"]
    chance_distance_px: Annotated[np.ndarray, "layer"]
    cells: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]
    ridge_regression: Annotated[np.ndarray, "layer"]
    ridge_cells: Annotated[np.ndarray, "layer"]
    n_train: int
    n_validation: int
    n_test: int
    estimator: str = (
        "ridge regression for row and column, regularised linear discriminant for the cell"
    )
    untrained: PatchPosition | None = None


def decodable_layers(model: Model) -> list[str]:
    """The stem and the blocks whose grid has several positions to decode. Raises MeasureError if
    there are none."""
    names = [
        layer.name
        for layer in model.select(("stem", "blocks"))
        if layer.grid and layer.grid[0] * layer.grid[1] > 1
    ]
    if not names:
        raise MeasureError(
            f"no layer of {model.name} has several positions, so no position can be decoded"
        )
    return names


@checked(MeasureError)
def patch_position_probe(
    model: Model,
    images: ImageSource | Tensor,
    images_test: ImageSource | Tensor | None = None,
    layers: str | Sequence[str] = ("stem", "blocks"),
    *,
    grid: tuple[int, int] | None = None,
    ridges: Sequence[float] = RIDGES,
    batch_size: int = 64,
    untrained: bool = False,
    read: PatchTokens | None = None,
) -> PatchPosition:
    """Decode positions of the tokens of `images_test`, else of every third of `images`, after a fit
    to those of `images`.

    Labels are not needed.

    `grid` (rows, columns) averages the tokens of every layer over the cells of one grid, to compare
    layers of several resolutions; left out, each layer has its own, averaged to at most 16 x 16.
    `ridges` are relative to the mean eigenvalue of the covariance; every fifth image to fit on is
    held out to choose among them and added to the fit afterwards, so that each image passes through
    the network once, or not at all with what was `read` of `images` in another pass. With
    `untrained` the same is done for the untrained baseline.

    Raises LayerError for layers whose positions form no grid (hidden units, heads), ImagesError for
    fewer than 5 images or an image in both sets, and MeasureError for a grid of one cell or too
    fine for a layer, and for ridges that are not positive."""
    train, test = as_source(images), None if images_test is None else as_source(images_test)
    if test is None:
        third = _every(3, len(train))
        train, test = part_of(train, ~third), part_of(train, third)
    else:
        check_apart(train, test)
    if len(train) < 5:
        raise ImagesError(
            f"{len(train)} images are too few to fit a probe of positions on and choose its ridge: "
            "give 5 or more"
        )
    selected, path = model.select(layers), np.unique(checked_penalties(ridges, "ridges"))
    validation = _every(5, len(train))
    run = _Run(model, selected, grid, batch_size)
    sides: list[ImageSource | Tokens]
    if read is None:
        sides = [part_of(train, ~validation), part_of(train, validation), test]
    else:
        third = _every(3, read.n)
        fit = np.flatnonzero(~third)
        sides = [*map(read.compute, (fit[~validation], fit[validation], np.flatnonzero(third)))]
    moments = run.moments(sides[0])
    probes = {name: [sums.total.compute(path)] for name, sums in moments.items()}
    chosen = {
        name: found[0].best() for name, found in run.answers(sides[1], probes, also=moments).items()
    }
    final = {
        name: found.compute(*(path[[k]] for k in chosen[name])) for name, found in moments.items()
    }
    # They are by far the largest arrays, and the untrained network has its own.
    moments.clear()
    answers = run.answers(sides[2], final)
    undefined = [name for name, found in answers.items() if np.isnan(found[0].errors).any()]
    if undefined:
        message = (
            f"no place can be read at layer '{undefined[0]}' of {model.name}: activations are not "
            "finite or do not vary"
        )
        warnings.warn(
            f"{message} ({len(undefined)} such layers)", UndefinedProbeWarning, stacklevel=3
        )
    numbers = []
    for layer in selected:
        found, *left_out = answers[layer.name]
        numbers.append(found.numbers(run.places[layer.name], left_out))
    columns: dict[str, Any] = {
        name: np.array([row[name] for row in numbers]) for name in numbers[0]
    }
    baseline = None
    if untrained and model.weights.trained:
        options: dict[str, Any] = {"grid": grid, "ridges": ridges, "batch_size": batch_size}
        baseline = patch_position_probe(model.untrained(), train, test, layers, **options)
    return PatchPosition(
        model=model.record,
        images_train=train.record,
        images_test=test.record,
        layers=selected,
        grids=tuple(run.grids.values()),
        cells=tuple(
            answers[layer.name][0].cell_accuracy().reshape(run.grids[layer.name])
            for layer in selected
        ),
        ridge_regression=np.array([path[chosen[layer.name][0]] for layer in selected]),
        ridge_cells=np.array([path[chosen[layer.name][1]] for layer in selected]),
        n_train=len(train),
        n_validation=int(validation.sum()),
        n_test=len(test),
        untrained=baseline,
        **columns,
    )


def _every(k: int, n: int) -> np.ndarray:
    """Which of n images are the last of k in a row."""
    return np.asarray(np.arange(n) % k == k - 1)


def centres(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Row and column in pixels of the centre of every cell [S, 2] of a grid over an image of `size`
    (height, width)."""
    rows, columns = (
        (np.arange(count) + 0.5) * pixels / count for count, pixels in zip(grid, size, strict=True)
    )
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(eq=False)
class PositionMoments(Accumulator):
    """Sums by position and scatter of a layer's tokens, float64, whose cells lie at `places`.

    Sums are of deviations from a shift, the mean of the first batch, so that a large common mean
    costs no digits."""

    places: Annotated[np.ndarray, "position", "coordinate"]
    shift: Annotated[Tensor | None, "channel"] = state_field(None)
    n: int = state_field(0)
    _sums: Annotated[Tensor | None, "position", "channel"] = state_field(None)
    _outer: Annotated[Tensor | None, "channel", "channel"] = state_field(None)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(sums by position [S, C], scatter [C, C]) of tokens `x` [image, S, C] about the shift,
        which the first batch sets."""
        if self.shift is None:
            self.shift = x.mean((0, 1))
        moved = x - self.shift
        flat = moved.flatten(0, 1)
        return moved.sum(0), flat.T @ flat

    def update(self, found: tuple[Tensor, Tensor], images: int) -> None:
        """Add what `of` returned for so many images."""
        sums, outer = found
        self._sums = sums if self._sums is None else self._sums + sums
        self._outer = outer if self._outer is None else self._outer + outer
        self.n += images

    def merge(self, other: PositionMoments) -> None:
        """Add the images of `other`, wherever its shift is. Raises MeasureError for other
        places."""
        if not np.array_equal(self.places, other.places):
            raise MeasureError("moments of tokens at other places do not merge")
        if other._sums is None:
            return
        assert other.shift is not None
        assert other._outer is not None
        self.shift = other.shift if self.shift is None else self.shift
        shift, sums, outer = (
            part.to(self.shift.device) for part in (other.shift, other._sums, other._outer)
        )
        # (x - a) = (x - b) + (b - a), expanded.
        step, total = shift - self.shift, sums.sum(0)
        sums = sums + other.n * step
        outer = outer + torch.outer(step, sums.sum(0)) + torch.outer(total, step)
        self.update((sums, outer), other.n)

    def without(self, part: PositionMoments) -> PositionMoments:
        """Moments of the images that are not in `part`, whose sums are about the same shift."""
        rest = PositionMoments(self.places)
        rest.shift, rest.n = self.shift, self.n - part.n
        if self._sums is not None and part._sums is not None:
            assert self._outer is not None
            assert part._outer is not None
            rest._sums, rest._outer = self._sums - part._sums, self._outer - part._outer
        return rest

    def compute(self, path: np.ndarray, cells_path: np.ndarray | None = None) -> PositionProbes:
        """Probes for every relative ridge of `path` [m], those of cells for `cells_path` if given,
        from all images so far; all NaN for activations that are not finite or do not vary."""
        cells_path = path if cells_path is None else cells_path
        assert self.shift is not None
        assert self._sums is not None
        assert self._outer is not None
        cells = len(self._sums)
        means = self._sums / self.n
        centre = means.mean(0)
        total = self._outer / (self.n * cells) - torch.outer(centre, centre)
        variance = total.diagonal().clamp(min=0)
        # A channel whose spread is rounding of its mean says nothing.
        constant = variance <= (_ROUNDING * (self.shift + centre)) ** 2
        scale = torch.where(constant, torch.inf, variance.sqrt())
        if not torch.isfinite(total).all() or bool(constant.all()):
            return PositionProbes.nothing(len(path), len(cells_path), self.shift, cells)
        away = (means - centre) / scale
        total = total / scale / scale[:, None]
        within = total - away.T @ away / cells
        places = torch.from_numpy(self.places).to(total)
        middle = places.mean(0)
        towards = away.T @ (places - middle) / cells
        regression = _solved(total, towards, path)
        directions = _solved(
            within, away.T, cells_path, least=float(total.diagonal().mean()) * _LEAST
        )
        # log p(z | s) up to what all positions share: m'Az - m'Am / 2.
        offsets = -0.5 * torch.einsum("sc,mcs->ms", away, directions)
        return PositionProbes(self.shift + centre, scale, regression, middle, directions, offsets)


@dataclass(eq=False)
class GroupedMoments(Accumulator):
    """Moments of all images in `total`, and of groups of them about the same shift: image k is in
    group k mod `GROUPS`."""

    places: np.ndarray
    total: PositionMoments = state_field(None)
    groups: list[PositionMoments] = state_field(list)

    def __post_init__(self) -> None:
        self.total, *self.groups = (PositionMoments(self.places) for _ in range(1 + GROUPS))

    def of(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What `PositionMoments.of` returns for tokens `x` [image, S, C], and for every `GROUPS`-th
        image of `x` from each of the first on."""
        return [
            self.total.of(x),
            *(self.total.of(x[k::GROUPS]) for k in range(min(GROUPS, len(x)))),
        ]

    def update(self, found: Sequence[tuple[Tensor, Tensor]], images: int) -> None:
        """Add what `of` returned for so many images, which come after those so far."""
        for k, part in enumerate(found[1:]):
            group = self.groups[(self.total.n + k) % GROUPS]
            group.shift = self.total.shift
            group.update(part, len(range(k, images, GROUPS)))
        self.total.update(found[0], images)

    def merge(self, other: GroupedMoments) -> None:
        """Add the images of `other`, which come after those so far. Raises MeasureError for other
        places."""
        before = self.total.n
        self.total.merge(other.total)
        for k, part in enumerate(other.groups):
            group = self.groups[(before + k) % GROUPS]
            group.shift = self.total.shift
            group.merge(part)

    def compute(self, path: np.ndarray, cells_path: np.ndarray) -> list[PositionProbes]:
        """Probes fitted to all images, then those fitted without each group; without the latter if
        a group has no image."""
        left_out = (
            [self.total.without(group) for group in self.groups] if self.total.n >= GROUPS else []
        )
        return [moments.compute(path, cells_path) for moments in (self.total, *left_out)]


def _solved(gram: Tensor, right: Tensor, path: np.ndarray, least: float = 0.0) -> Tensor:
    """(G + ridge * mean eigenvalue * I)^-1 R for every ridge [m, C, k], of several ridges from one
    eigendecomposition."""
    ridges = torch.from_numpy(path).to(gram) * max(float(gram.diagonal().mean()), least)
    if len(path) == 1:
        alone: Tensor = torch.linalg.solve(gram + ridges * torch.eye(len(gram)).to(gram), right)[
            None
        ]
        return alone
    values, vectors = torch.linalg.eigh(gram)
    inverse = 1 / (values.clamp(min=0) + ridges[:, None])
    solved: Tensor = vectors @ (inverse[:, :, None] * (vectors.T @ right))
    return solved


@dataclass(frozen=True)
class PositionProbes:
    """Probes of positions for m ridges: `regression` [m, C, 2] predicts row and column about their
    `middle` [2], `directions` [m', C, S]
    and `offsets` [m', S] score the cells, all of tokens about `mean` [C] divided by `scale` [C]."""

    mean: Tensor
    scale: Tensor
    regression: Tensor
    middle: Tensor
    directions: Tensor
    offsets: Tensor

    @classmethod
    def nothing(cls, ridges: int, cell_ridges: int, like: Tensor, cells: int) -> PositionProbes:
        """Probes of an undefined layer: all predictions are NaN."""
        nan = torch.full_like(like, torch.nan)
        regression, directions = (
            nan[None, :, None].expand(m, -1, k) for m, k in ((ridges, 2), (cell_ridges, cells))
        )
        return cls(
            nan, nan, regression, nan.new_zeros(2), directions, nan.new_zeros(cell_ridges, cells)
        )

    def answers(self, x: Tensor, places: Tensor) -> _Found:
        """Errors of the probes on tokens `x` [B, S, C] whose cells lie at `places` [S, 2]."""
        z = (x - self.mean) / self.scale
        errors = [((z @ w + self.middle - places) ** 2).sum(1) for w in self.regression]
        cells = [
            (z @ w).add_(b).argmax(-1) for w, b in zip(self.directions, self.offsets, strict=True)
        ]
        true = torch.arange(x.shape[1], device=x.device)
        # argmax of NaN is some cell, so features that are not finite must be marked.
        bad = torch.where(torch.isfinite(z).all((1, 2)), 0.0, torch.nan).to(z)
        right = [(cell == true).to(z) + bad[:, None] for cell in cells]
        distances = [(places[cell] - places).norm(dim=-1).mean(1) + bad for cell in cells]
        return _Found(
            torch.stack(errors),
            torch.stack([r.mean(1) for r in right]),
            torch.stack(distances),
            torch.stack([r.sum(0) for r in right]),
        )


class _Found(NamedTuple):
    """Of B images, for m ridges: squared errors of row and column [m, B, 2], fractions of cells
    that are right [m, B], mean distances [m, B], and how many images have each cell right [m,
    S]."""

    errors: Tensor
    right: Tensor
    distances: Tensor
    by_cell: Tensor


@dataclass(frozen=True)
class _Answers:
    """The same for all images, in NumPy."""

    errors: np.ndarray
    right: np.ndarray
    distances: np.ndarray
    by_cell: np.ndarray

    @classmethod
    def of(cls, found: Sequence[_Found]) -> _Answers:
        errors, right, distances = (
            np.concatenate([f[k].cpu().numpy() for f in found], axis=1) for k in range(3)
        )
        return cls(
            errors, right, distances, np.sum([f.by_cell.cpu().numpy() for f in found], axis=0)
        )

    def best(self) -> tuple[int, int]:
        """Indices of the ridge with the least squared error, and of the one with most cells right;
        of equals the largest."""
        return last_best(-self.errors.sum(axis=(1, 2))).item(), last_best(
            self.right.sum(axis=1)
        ).item()

    def cell_accuracy(self) -> np.ndarray:
        """Fraction of images with each cell right [S], for the only ridge."""
        return np.asarray(self.by_cell[0] / self.right.shape[1])

    def numbers(self, places: np.ndarray, left_out: Sequence[_Answers]) -> dict[str, float]:
        """The numbers of a layer with cells at `places` [S, 2], with intervals from probes fitted
        without a group of images."""
        spread = ((places - places.mean(axis=0)) ** 2).sum(axis=0)
        apart = pdist(places)
        by_image: dict[str, Callable[[_Answers], np.ndarray]] = {
            "r2": lambda answers: 1 - answers.errors[0].sum(axis=1) / spread.sum(),
            "accuracy": lambda answers: answers.right[0],
            "distance_px": lambda answers: answers.distances[0],
        }
        limits = {"r2": (-np.inf, 1), "accuracy": (0, 1), "distance_px": (0, apart.max())}
        numbers: dict[str, float] = {}
        for name, values in by_image.items():
            value, low, high = mean_interval(
                values(self), limits=None if name == "r2" else limits[name]
            )
            if left_out:
                low, high = training_interval(
                    value, low, high, np.stack([values(one) for one in left_out])
                )
                low, high = np.clip((low, high), *limits[name])
            else:
                low = high = np.full_like(value, np.nan)
            numbers |= {name: float(value), f"low_{name}": float(low), f"high_{name}": float(high)}
        numbers["r2"] = 1 - self.errors[0].sum(axis=1).mean() / spread.sum()
        for axis, name in enumerate(("row_r2", "column_r2")):
            numbers[name] = (
                1 - self.errors[0, :, axis].mean() / spread[axis] if spread[axis] > 0 else np.nan
            )
        return numbers | {
            "chance": 1 / len(places),
            "chance_distance_px": apart.sum() * 2 / len(places) ** 2,
        }


@dataclass(eq=False)
class PatchTokens(Accumulator):
    """Tokens of images at some layers of a network, averaged to their grids, read in a pass that is
    made for something else."""

    n: int = state_field(0)
    _tokens: dict[str, Tensor] = state_field(dict)

    def reading(self, model: Model, layers: str | Sequence[str]) -> Reading:
        """What adds the images of a pass. Raises as `patch_position_probe`."""
        run = _Run(model, model.select(layers), None, 1)
        dtype = torch.float64 if model.dtype is torch.float64 else torch.float32
        return Reading(
            run.layers,
            run.reducer(lambda _, x: x.to("cpu", dtype)),
            lambda piece: self.update(piece.found),
        )

    def update(self, found: Mapping[str, Tensor]) -> None:
        """Add tokens [image, position, channel] by layer."""
        self._tokens = {
            name: torch.cat([self._tokens[name], x]) if self._tokens else x
            for name, x in found.items()
        }
        self.n = len(next(iter(self._tokens.values()), ()))

    def merge(self, other: PatchTokens) -> None:
        """Add the images of `other`, which stays as it is."""
        if other.n:
            self.update(other._tokens)

    def compute(self, images: np.ndarray) -> Tokens:
        """The tokens of some of the images, by layer."""
        return {name: x[torch.from_numpy(images)] for name, x in self._tokens.items()}

    @staticmethod
    def bytes_each(model: Model, layers: str | Sequence[str]) -> int:
        """What is held of an image."""
        run = _Run(model, model.select(layers), None, 1)
        cells = sum(len(run.places[layer.name]) * layer.channels for layer in run.layers)
        return cells * (8 if model.dtype is torch.float64 else 4)


class _Run:
    """Streams a network's tokens at some layers, averaged to their grids, into moments and into
    answers."""

    def __init__(
        self, model: Model, layers: tuple[Layer, ...], grid: tuple[int, int] | None, batch_size: int
    ) -> None:
        """Raises LayerError and MeasureError for grids, as `patch_position_probe`."""
        self.model, self.layers, self._batch_size = model, layers, batch_size
        self.grids: dict[str, tuple[int, int]] = {}
        for layer in layers:
            if layer.grid is None:
                raise LayerError(
                    f"the positions of layer '{layer.name}' form no grid, so no place can be read: "
                    "leave it out"
                )
            found = grid or (min(layer.grid[0], MOST_ROWS), min(layer.grid[1], MOST_ROWS))
            if found[0] * found[1] < 2:
                raise MeasureError(
                    f"layer '{layer.name}' has one position, so there is no place to read: leave "
                    "it out"
                )
            if layer.grid[0] < found[0] or layer.grid[1] < found[1]:
                raise MeasureError(
                    f"layer '{layer.name}' has {layer.grid[0]}x{layer.grid[1]} positions, "
                    f"too few for a grid of {found[0]}x{found[1]}"
                )
            self.grids[layer.name] = found
        self.places = {
            name: centres(found, model.input.size[1:]) for name, found in self.grids.items()
        }

    def moments(self, images: ImageSource | Tokens) -> dict[str, GroupedMoments]:
        """Moments of every layer over all images."""
        moments = {name: GroupedMoments(places) for name, places in self.places.items()}
        for piece in self._stream(
            images, lambda name, x: moments[name].of(x), "moments of positions"
        ):
            for name, found in piece.found.items():
                moments[name].update(found, piece.n)
        return moments

    def answers(
        self,
        images: ImageSource | Tokens,
        probes: dict[str, list[PositionProbes]],
        also: dict[str, GroupedMoments] | None = None,
    ) -> dict[str, list[_Answers]]:
        """Errors of each of a layer's probes on all images, whose moments are added to those of
        `also`."""
        places = {name: torch.from_numpy(found) for name, found in self.places.items()}

        def both(name: str, x: Tensor) -> tuple[list[_Found], list[tuple[Tensor, Tensor]] | None]:
            answers = [probe.answers(x, places[name].to(x)) for probe in probes[name]]
            return answers, also[name].of(x) if also else None

        found: dict[str, list[list[_Found]]] = {name: [] for name in probes}
        for piece in self._stream(images, both, "positions"):
            for name, (answers, moments) in piece.found.items():
                found[name].append(answers)
                if also:
                    also[name].update(moments, piece.n)
        return {
            name: [_Answers.of(parts) for parts in zip(*answers, strict=True)]
            for name, answers in found.items()
        }

    def reducer(self, do: Callable[[str, Tensor], T]) -> Reducer[T]:
        """What `do` makes of the name of a layer and its tokens, float64."""

        def reduced(layer: Layer, positions: Tensor, _prefix: Tensor | None) -> T:
            if positions.device.type == "mps":
                # That device has no float64.
                positions = positions.cpu()
            tokens = positions.to(torch.float64)
            return do(layer.name, to_grid(tokens, layer, self.grids[layer.name]))

        return reduced

    def _stream(
        self, images: ImageSource | Tokens, do: Callable[[str, Tensor], Any], what: str
    ) -> Iterator[Piece]:
        if isinstance(images, dict):
            device = "cpu" if self.model.device.type == "mps" else self.model.device
            n, size = len(next(iter(images.values()))), self._batch_size
            for part in slices(n, size):
                found = {
                    name: do(name, x[part].to(device, torch.float64)) for name, x in images.items()
                }
                yield Piece(part.start, part.stop - part.start, found)
            return
        yield from stream(
            self.model,
            images,
            self.layers,
            self.reducer(do),
            batch_size=self._batch_size,
            title=f"{self.model.name}: {what}",
        )
