"""Ridge probes of every layer of a network over a data set of any size: one pass over train, one over test, nothing stored.

The pass over train adds up moments of every layer and keeps the features of a stratified sample of the images. Each of these
is left out, exactly, of the fit to all images: that chooses the penalty. The pass over test counts what each penalty of each
layer classifies right. Memory is O(p^2) a layer, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, Reducer, first_prefix_token, mean_over_positions, stream
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.fingerprint import check_apart
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.moments import RidgeMoments
from mixer_probe.linear.ridge import checked_penalties, default_l2
from mixer_probe.linear.ridge_path import RidgePath
from mixer_probe.linear.ridge_probe import LEFT_OUT
from mixer_probe.linear.stratification import stratified
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.probing.layer_probes import Found, LayerPath, ProbeResult, assemble, path_values, warn_non_finite
from mixer_probe.probing.methods import Values
from mixer_probe.probing.runs import source_labels

# Images whose features are put together before they are added to moments: X'X of few images is bound by memory.
_TOGETHER = 1024


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
    """What `linear_probe` gives for representations of `train` and `test`, without holding these: ridge probes of every layer.

    `layers` and `reduce` are those of `extract`. The penalty of each layer is chosen from the path `l2` (by default 15 that grow
    with the number of images) by leave-one-out accuracy on `left_out` training images, a stratified sample whose features are
    kept. `untrained` is an untrained twin to run on the same images. Layers with NaN or infinite features give NaN and a
    NonFiniteWarning.

    Raises LayerError (unknown layer, reduce="prefix" for a layer without prefix tokens), ImagesError if labels are missing, there
    is one class, a class is only in the test images or an image is in both; MeasureError for penalties that are not positive, a
    trained twin, and another `reduce`."""
    check_apart(train, test)
    labels = source_labels(train, test)
    if untrained is not None and untrained.weights.trained:
        raise MeasureError(f"untrained= must be an untrained network, but {untrained.name} is trained")
    chosen = path_values("ridge", l2, None)
    penalties = checked_penalties(default_l2(len(labels[0])) if chosen is None else chosen)
    selected = model.select(layers)
    reducer = _reducer(model, selected, reduce)
    passes = _Passes(model, selected, reducer, batch_size, autocast)
    found = passes.over(train, test, labels, penalties, stratified(labels[0], left_out))
    twin = None
    if untrained is not None:
        names = [layer.name for layer in selected]
        twin = stream_probe(
            untrained,
            train,
            test,
            names,
            penalties,
            reduce=reduce,
            left_out=left_out,
            batch_size=batch_size,
            autocast=autocast,
        )
    first, second = (_Streamed(model.record, part.record, selected, part.class_names, reduce) for part in (train, test))
    return assemble(first, second, labels, found, method="ridge", untrained=twin)


def _reducer(model: Model, layers: Sequence[Layer], reduce: str) -> Reducer[Tensor]:
    without = [layer.name for layer in layers if reduce == "prefix" and not layer.prefix_tokens]
    if without:
        raise LayerError(f"'{without[0]}' of {model.name} has no prefix token to take; use reduce='mean'")
    return mean_over_positions if reduce == "mean" else first_prefix_token


@dataclass(frozen=True)
class _Streamed:
    """A `Run` that holds no numbers."""

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    class_names: tuple[str, ...] | None
    reduce: str


@dataclass
class _Train:
    """One layer in training: its moments, and the features of the sample."""

    moments: RidgeMoments = field(default_factory=RidgeMoments)
    bad: int = 0
    sample: list[Tensor] = field(default_factory=list)

    def add(self, X: Tensor, y: np.ndarray, sampled: np.ndarray) -> None:
        """Features [n, p] of classes `y` [n], of which those at `sampled` are kept."""
        self.bad += _bad(X)
        if not self.bad:
            self.moments.update(X, y)
            self.sample.append(X[torch.from_numpy(sampled).to(X.device)])

    def path(self, l2: np.ndarray, y_sample: np.ndarray) -> RidgePath:
        """The probes, which can leave out the sample; its features are given up."""
        sample, self.sample = torch.cat(self.sample), []
        return self.moments.fit(l2, standardize=True).leaving_out(sample, y_sample)


@dataclass
class _Test:
    """One layer in testing: what each penalty has right, and what the chosen one predicts."""

    path: RidgePath
    left_out: np.ndarray
    bad: int = 0
    right: np.ndarray | float = 0.0
    predicted: list[np.ndarray] = field(default_factory=list)

    def add(self, X: Tensor, y: np.ndarray) -> None:
        """Features [n, p] of classes `y` [n]."""
        self.bad += _bad(X)
        if not self.bad:
            predicted = self.path.predict(X)
            self.right = self.right + (predicted == y).sum(axis=1)
            self.predicted.append(predicted[last_best(self.left_out)])

    def found(self, n: int) -> LayerPath:
        """What there is to say after `n` images."""
        value = float(self.path.l2[last_best(self.left_out)])
        return LayerPath(value, self.left_out, np.asarray(self.right) / n, np.concatenate(self.predicted))


@dataclass(frozen=True)
class _Passes:
    """A network whose layers are probed, and how it is run."""

    model: Model
    layers: tuple[Layer, ...]
    reducer: Reducer[Tensor]
    batch_size: int
    autocast: str | None

    def over(
        self, train: ImageSource, test: ImageSource, labels: tuple[np.ndarray, np.ndarray], l2: np.ndarray, sample: np.ndarray
    ) -> Found:
        """Both passes; `sample` are sorted indices of training images to keep."""
        fits = {layer.name: _Train() for layer in self.layers}
        for start, features in self._features(train, "train"):
            stop = start + len(next(iter(features.values())))
            inside = sample[np.searchsorted(sample, start) : np.searchsorted(sample, stop)] - start
            for name, X in features.items():
                fits[name].add(X, labels[0][start:stop], inside)
        tests = {name: self._fitted(fit, l2, labels[0][sample]) for name, fit in fits.items()}
        widths = dict.fromkeys(fits, 0)
        for start, features in self._features(test, "test"):
            for name, X in features.items():
                widths[name], part = X.shape[1], tests[name]
                if part is not None:
                    part.add(X, labels[1][start : start + len(X)])
        layers = [self._result(name, fits[name], tests[name], len(test)) for name in fits]
        return Found(l2, list(widths.values()), layers)

    @staticmethod
    def _fitted(fit: _Train, l2: np.ndarray, y_sample: np.ndarray) -> _Test | None:
        if fit.bad:
            return None
        path = fit.path(l2, y_sample)
        fit.moments = RidgeMoments()
        return _Test(path, path.left_out_accuracy())

    @staticmethod
    def _result(name: str, fit: _Train, test: _Test | None, n: int) -> LayerPath | None:
        bad = fit.bad + (test.bad if test is not None else 0)
        return None if warn_non_finite(name, bad) or test is None else test.found(n)

    def _features(self, images: ImageSource, part: str) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The first index and the features of consecutive images by layer, some batches together."""
        title = f"{self.model.name}: probes, {part} images"
        start, held = 0, 0
        waiting: list[dict[str, Tensor]] = []
        for piece in stream(
            self.model, images, self.layers, self.reducer, batch_size=self.batch_size, autocast=self.autocast, title=title
        ):
            waiting.append(piece.found)
            held += piece.n
            if held >= _TOGETHER or piece.start + piece.n == len(images):
                yield start, {layer.name: torch.cat([found[layer.name] for found in waiting]) for layer in self.layers}
                start, held, waiting = start + held, 0, []


def _bad(X: Tensor) -> int:
    return X.numel() - int(torch.isfinite(X).sum())
