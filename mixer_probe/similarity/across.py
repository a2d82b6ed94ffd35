"""`compare_models`: all layers of two networks in one pass over the images, nothing stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from mixer_probe.capture import ImageSource, Piece, as_source, mean_over_positions, part_of, stream
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import MOST, room
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity.alignment import Method
from mixer_probe.similarity.comparison import Grid, as_grid
from mixer_probe.similarity.hsic import Estimator
from mixer_probe.similarity.inference import SAMPLE
from mixer_probe.similarity.inputs import features_of, to_grid
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.minibatch import MinibatchCKA, gram_of_batch
from mixer_probe.similarity.streaming import StreamingCKA

Found = dict[str, torch.Tensor]
Positions = Literal["mean", "flatten"]


@checked(MeasureError)
def compare_models(
    model_a: Model,
    model_b: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] = "blocks",
    *,
    estimator: Estimator = "unbiased",
    positions: Positions = "mean",
    grid: Grid | None = None,
    method: Method = "auto",
    permutations: int = 100,
    resamples: int = 100,
    batch_size: int = 64,
    autocast: str | None = None,
    seed: int = 0,
) -> SimilarityMatrix:
    """Linear CKA of every layer of one model with every layer of another, in one pass over the
    images.

    Each model gets its own transform of the same images. `positions` "mean" averages them, and the
    values are exact for any number of images: from Gram matrices for up to 2,048 of them, which
    stay in memory, and from moments in O(d^2) memory for more (`method` "moments" takes them from
    the start). "flatten" compares position by position, on the cells of a common `grid` if one is
    given (7 or (7, 7)), with the minibatch estimator of Nguyen et al. 2021 (`method` "minibatch"):
    the images are shuffled by `seed`, and only one Gram matrix per batch and layer is needed.

    Null and interval are those of `compare`; for minibatches the null pairs images within batches
    and the interval draws batches. Raises what `extract` and `StreamingCKA` raise, and MeasureError
    for choices that do not go together."""
    cells = as_grid(grid)
    source = as_source(images)
    selected = model_a.select(layers), model_b.select(layers)
    reduce = "none" if positions == "flatten" else "mean"
    widths = tuple(
        {layer.name: features_of(layer, reduce, cells) for layer in side} for side in selected
    )
    used = _method(method, positions, cells, estimator, widths, len(source))
    accumulator: StreamingCKA | MinibatchCKA
    if used == "moments":
        accumulator, reducer = StreamingCKA(seed=seed, hold=method == "auto"), mean_over_positions
    else:
        accumulator, reducer = MinibatchCKA(permutations, seed), partial(_gram, positions, cells)
        # Images sorted by class would fill a batch with one class.
        source = part_of(source, np.random.default_rng(seed).permutation(len(source)))
    passes = [
        _whole_batches(
            stream(model, source, layers, reducer, batch_size=batch_size, autocast=autocast),
            batch_size,
        )
        for model, layers in zip((model_a, model_b), selected, strict=True)
    ]
    for a, b in zip(*passes, strict=True):
        if isinstance(accumulator, StreamingCKA):
            accumulator.update(_joined(a), _joined(b))
        else:
            accumulator.update_grams(_uncut(a), _uncut(b), *widths)
    if isinstance(accumulator, StreamingCKA):
        matrix = accumulator.compute(estimator, permutations, resamples)
    else:
        matrix = accumulator.compute(resamples)
    return replace(
        matrix,
        layers_a=selected[0],
        layers_b=selected[1],
        model_a=model_a.record,
        model_b=model_b.record,
        images=as_source(images).record,
        reduce=positions,
        grid=cells,
    )


def _method(
    method: Method,
    positions: Positions,
    grid: tuple[int, int] | None,
    estimator: Estimator,
    widths: Sequence[dict[str, int]],
    n: int,
) -> Method:
    """ "moments" or "minibatch". Raises MeasureError for what streaming cannot do."""
    if grid and positions == "mean":
        raise MeasureError("grid is for positions='flatten': averaged positions have no grid")
    if method == "gram":
        raise MeasureError(
            "Gram matrices need all images at once: extract both models and use compare"
        )
    few = n <= SAMPLE and method == "auto"
    # Moments of all pairs of layers are held at once; where they do not fit, the batches' own Gram
    # matrices are summed instead.
    fits = few or 8 * sum(widths[0].values()) * sum(widths[1].values()) <= room(MOST)
    if method == "moments" and positions == "flatten":
        raise MeasureError(
            "flattened positions are too wide for moments: use method='minibatch' or "
            "positions='mean'"
        )
    used: Method = (
        "minibatch" if method == "minibatch" or positions == "flatten" or not fits else "moments"
    )
    if used == "minibatch" and estimator == "biased":
        raise MeasureError(
            "the minibatch estimator is unbiased only: biased HSIC summed over batches does not "
            "estimate that of all images"
        )
    return used


def _gram(
    positions: Positions,
    grid: tuple[int, int] | None,
    layer: Layer,
    values: torch.Tensor,
    prefix: torch.Tensor | None,
) -> torch.Tensor:
    """The Gram matrix of a batch, all that is needed of a layer after the forward pass."""
    if positions == "mean":
        features = mean_over_positions(layer, values, prefix)
    else:
        if grid is not None and layer.positions:
            values = to_grid(values.float() if values.dtype.itemsize < 4 else values, layer, grid)
        features = values.flatten(1)
    # Apple's GPUs have no float64.
    return gram_of_batch(
        (features.cpu() if features.device.type == "mps" else features).to(torch.float64)
    )


def _whole_batches(pieces: Iterator[Piece], batch_size: int) -> Iterator[list[Piece]]:
    """Whole batches again, where memory had them cut: the two models must see the same images at a
    time."""
    waiting: list[Piece] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(p.n for p in waiting) == batch_size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _joined(pieces: Sequence[Piece]) -> Found:
    return {name: torch.cat([p.found[name] for p in pieces]) for name in pieces[0].found}


def _uncut(pieces: Sequence[Piece]) -> Found:
    """The one piece of a batch. Raises MeasureError if memory had it cut: Gram matrices of parts
    make none of the whole."""
    if len(pieces) > 1:
        raise MeasureError(
            f"the device has too little memory for batches of {sum(p.n for p in pieces)} images: "
            f"the minibatch estimator depends on the batch size, so set batch_size={pieces[0].n}"
        )
    return dict(pieces[0].found)
