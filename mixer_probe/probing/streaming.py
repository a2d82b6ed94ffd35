"""Ridge probes of every layer over a data set of any size: one pass over train, one over test,
without storing activations.

The pass over train adds up moments of every layer and keeps the features of a stratified sample of
the images. Each of these is left out, exactly, of the fit to all images, which chooses the penalty.
The pass over test counts what each penalty of each layer classifies right. Memory is O(p^2) per
layer, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, first_prefix_token, mean_over_positions, stream
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.fingerprint import check_apart
from mixer_probe.core.memory import ROWS
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.core.validate import checked
from mixer_probe.linear.moments import RidgeMoments
from mixer_probe.linear.ridge import checked_penalties, default_l2
from mixer_probe.linear.ridge_probe import LEFT_OUT
from mixer_probe.linear.stratification import stratified
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.probing.layer_probes import (
    LayerPaths,
    PathScore,
    ProbeResult,
    assemble,
    path_values,
)
from mixer_probe.probing.methods import Values
from mixer_probe.probing.runs import source_labels, warn_non_finite


@checked(MeasureError)
def stream_probe(
    model: Model,
    train: ImageSource,
    test: ImageSource,
    layers: str | Sequence[str] = "blocks",
    l2: Values = None,
    *,
    reduce: Literal["mean", "prefix"] = "mean",
    untrained: Model | None = None,
    left_out: int = LEFT_OUT,
    batch_size: int = 64,
    autocast: str | None = None,
) -> ProbeResult:
    """What `linear_probe` gives for representations of `train` and `test`, without storing these:
    ridge probes of every layer.

    `layers` and `reduce` are those of `extract`. The penalty of each layer is chosen from the path
    `l2` (by default 15 that grow with the number of images) by leave-one-out accuracy on `left_out`
    training images, a stratified sample whose features are kept. `untrained` is an untrained
    baseline to run on the same images. Layers with NaN or infinite features give NaN and a
    NonFiniteWarning.

    Raises LayerError (unknown layer, reduce="prefix" for a layer without prefix tokens),
    ImagesError if labels are missing, there is one class, a class is only in the test images or an
    image is in both; MeasureError for penalties that are not positive, a trained baseline, and
    another `reduce`."""
    check_apart(train, test)
    y_train, y_test = labels = source_labels(train, test)
    if untrained is not None and untrained.weights.trained:
        raise MeasureError(
            f"untrained= must be an untrained network, but {untrained.name} is trained"
        )
    chosen = path_values("ridge", l2, None)
    penalties = checked_penalties(default_l2(len(y_train)) if chosen is None else chosen)
    selected = model.select(layers)
    without = [layer.name for layer in selected if reduce == "prefix" and not layer.prefix_tokens]
    if without:
        raise LayerError(
            f"'{without[0]}' of {model.name} has no prefix token to take; use reduce='mean'"
        )
    options: dict[str, Any] = {"reduce": reduce, "batch_size": batch_size, "autocast": autocast}
    sample = stratified(y_train, left_out)
    fits = {layer.name: _LayerFit() for layer in selected}
    for start, name, X in _features(model, train, selected, "train", **options):
        stop = start + len(X)
        sampled = sample[np.searchsorted(sample, start) : np.searchsorted(sample, stop)] - start
        fits[name].train(X, y_train[start:stop], sampled)
    for fit in fits.values():
        fit.solve(penalties, y_train[sample], len(test))
    for start, name, X in _features(model, test, selected, "test", **options):
        fits[name].test(X, y_test[start : start + len(X)])
    paths = [
        fit.score.result()
        if not warn_non_finite(name, fit.bad, stacklevel=4) and fit.score
        else None
        for name, fit in fits.items()
    ]
    found = LayerPaths(penalties, [fit.width for fit in fits.values()], paths)
    baseline = None
    if untrained is not None:
        baseline = stream_probe(
            untrained, train, test, list(fits), penalties, left_out=left_out, **options
        )
    first, second = (
        _Streamed(model.record, part.record, selected, part.class_names, reduce)
        for part in (train, test)
    )
    return assemble(first, second, labels, found, method="ridge", untrained=baseline)


@dataclass(frozen=True)
class _Streamed:
    """A `Run` that holds no features."""

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    class_names: tuple[str, ...] | None
    reduce: str


@dataclass
class _LayerFit:
    """The probes of one layer: moments and the features of the sample in training, counts and
    predictions in testing.

    A layer with features that are not finite (`bad` of them) has no probes."""

    moments: RidgeMoments = field(default_factory=RidgeMoments)
    sample: list[Tensor] = field(default_factory=list)
    score: PathScore | None = None
    bad: int = 0
    width: int = 0

    def train(self, X: Tensor, y: np.ndarray, sampled: np.ndarray) -> None:
        """Add features [n, p] of classes `y` [n], of which those at `sampled` are kept."""
        self.bad += X.numel() - int(torch.isfinite(X).sum())
        if not self.bad:
            self.moments.update(X, y)
            self.sample.append(X[torch.from_numpy(sampled).to(X.device)])

    def solve(self, l2: np.ndarray, y_sample: np.ndarray, n_test: int) -> None:
        """Fit the probes, which can leave out the sample, and free moments and features."""
        if not self.bad:
            path = self.moments.fit(l2, standardize=True)
            self.score = PathScore(path.leaving_out(torch.cat(self.sample), y_sample), n_test)
        self.moments, self.sample = RidgeMoments(), []

    def test(self, X: Tensor, y: np.ndarray) -> None:
        """Predict features [n, p] of classes `y` [n]."""
        self.width = X.shape[1]
        if self.score is None:
            return
        self.bad += X.numel() - int(torch.isfinite(X).sum())
        if not self.bad:
            self.score.add(X, y)


def _features(
    model: Model,
    images: ImageSource,
    layers: Sequence[Layer],
    part: str,
    reduce: str,
    batch_size: int,
    autocast: str | None,
) -> Iterator[tuple[int, str, Tensor]]:
    """(index of the first image, layer, features) of consecutive images, some batches together."""
    reducer = mean_over_positions if reduce == "mean" else first_prefix_token
    start, count = 0, 0
    waiting: list[dict[str, Tensor]] = []
    title = f"{model.name}: probes, {part} images"
    for piece in stream(
        model, images, layers, reducer, batch_size=batch_size, autocast=autocast, title=title
    ):
        waiting.append(piece.found)
        count += piece.n
        # X'X of few images is bound by memory.
        if count >= ROWS or piece.start + piece.n == len(images):
            for layer in layers:
                yield start, layer.name, torch.cat([found[layer.name] for found in waiting])
            start, count, waiting = start + count, 0, []
