"""`compare_models`: all layers of two networks in one pass over the images, nothing stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from mixer_probe.capture import ImageSource, Piece, as_source, mean_over_positions, stream
from mixer_probe.models.model import Model
from mixer_probe.similarity.hsic import Estimator
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.streaming import StreamingCKA

Found = dict[str, torch.Tensor]


def compare_models(
    model_a: Model,
    model_b: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] = "blocks",
    *,
    estimator: Estimator = "unbiased",
    batch_size: int = 64,
    autocast: str | None = None,
) -> SimilarityMatrix:
    """Linear CKA of every layer of one model with every layer of another, exact, in one pass of O(d^2) memory.

    Each model gets its own transform of the same images. Positions are averaged. There is no null, since no image is kept
    to be shuffled: `compare` of two extracted runs has one. Raises what `extract` and `StreamingCKA` raise."""
    source = as_source(images)
    selected_a, selected_b = model_a.select(layers), model_b.select(layers)
    streams = (
        _batches(stream(model, source, selected, mean_over_positions, batch_size=batch_size, autocast=autocast), batch_size)
        for model, selected in ((model_a, selected_a), (model_b, selected_b))
    )
    accumulator = StreamingCKA()
    for a, b in zip(*streams, strict=True):
        accumulator.update(a, b)
    matrix = accumulator.compute(estimator)
    return replace(
        matrix,
        layers_a=selected_a,
        layers_b=selected_b,
        model_a=model_a.record,
        model_b=model_b.record,
        images=source.record,
        reduce="mean",
    )


def _batches(pieces: Iterator[Piece], batch_size: int) -> Iterator[Found]:
    """Whole batches again, where memory had them cut: the two models must see the same images at a time."""
    waiting: list[Piece] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(p.n for p in waiting) == batch_size:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(pieces: Sequence[Piece]) -> Found:
    return {name: torch.cat([p.found[name] for p in pieces]) for name in pieces[0].found}
