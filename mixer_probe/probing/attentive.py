"""An attentive probe: one learned query looks at all positions, and a linear head reads the class from what it sees.

The attention over the S positions of an image is softmax_s(q'z_s / sqrt(p) + b_s) with features z standardised by channel, a
query q [p] and, unless switched off, a bias b_s of each position; the head is linear in sum_s a_s z_s. This is attention pooling
with one head (attentive probing, Chen et al. 2022, "Context Autoencoder"), its key and value maps absorbed into query and head.
The query starts at zero, so that training starts from the linear probe of the mean over positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional as F

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import plain_modes
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import check_two
from mixer_probe.models.layer import Layer
from mixer_probe.probing.positionwise import chance, checked_runs, layers_with_positions, map_shape, warn_if_not_finite
from mixer_probe.probing.tables import layer_columns
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import wilson_interval

# Images that are looked at together after training.
_BLOCK = 1024


class AttentiveProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Attention pooling by one learned query and a linear head, for features [n, S, p]; get_params and score as in scikit-learn.

    Trained by AdamW on the cross-entropy, with a learning rate that falls from `lr` along a half cosine, the same for the same
    `seed` on one device. `position_bias` lets the query prefer places, not only what is there; without it the probe does not
    know where a position is, unless its features say so.

    After `fit`: `classes_` [K], `query_` [p], `bias_` [S], `coef_` [K, p], `intercept_` [K], `mean_` and `scale_` [p] (infinite
    for constant channels), `loss_` the mean cross-entropy of the last epoch."""

    @checked(MeasureError)
    def __init__(
        self,
        *,
        position_bias: bool = True,
        epochs: int = 40,
        batch_size: int = 128,
        lr: float = 0.01,
        weight_decay: float = 0.01,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.position_bias = position_bias
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.device = device

    def fit(self, X: Any, y: Any) -> AttentiveProbe:
        """Fit to features `X` [n, S, p] and classes `y` [n].

        Raises MeasureError for another shape, NaN or infinite features, and one class."""
        values, y = self._features(X), np.asarray(y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        check_two(self.classes_)
        if len(values) != len(y):
            raise MeasureError(f"there are {len(values)} images and {len(y)} labels: each image needs one")
        self._scale(values)
        self._train(values, torch.from_numpy(labels))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, [n, K]."""
        return np.concatenate([self._look(block)[0] for block in self._fitted_blocks(X)])

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class, [n]."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def attention(self, X: Any) -> np.ndarray:
        """The share of each position, [n, S]; every row sums to 1."""
        return np.concatenate([self._look(block)[1] for block in self._fitted_blocks(X)])

    def _features(self, X: Any) -> np.ndarray:
        values = np.asarray(X.detach().cpu() if isinstance(X, Tensor) else X)
        if values.ndim != 3 or 0 in values.shape:
            raise MeasureError(
                f"X has shape {values.shape}, but [image, position, channel] is needed: extract with reduce='none'"
            )
        if not np.isfinite(values).all():
            raise MeasureError(f"{int((~np.isfinite(values)).sum())} of the features are NaN or infinite")
        return values

    def _scale(self, values: np.ndarray) -> None:
        self.mean_ = values.mean(axis=(0, 1), dtype=np.float64)
        deviation = np.sqrt(np.square(values - self.mean_).mean(axis=(0, 1)))
        constant = deviation <= 10 * float(np.finfo(np.float32).eps) * np.abs(self.mean_)
        self.scale_ = np.where(constant, np.inf, deviation)

    def _scaled(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(((values - self.mean_) / self.scale_).astype(np.float32)).to(self.device)

    @plain_modes()
    @torch.enable_grad()
    def _train(self, values: np.ndarray, labels: Tensor) -> None:
        _, positions, p = values.shape
        shapes = ((p,), (positions,), (p, len(self.classes_)), (len(self.classes_),))
        parameters = [torch.zeros(shape, device=self.device, requires_grad=True) for shape in shapes]
        learned = [part for part in parameters if self.position_bias or part is not parameters[1]]
        batches = max(1, -(-len(values) // self.batch_size))
        optimiser = torch.optim.AdamW(learned, lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs * batches)
        # Its own generator: random numbers of the person's program are left alone.
        random = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order, total = torch.randperm(len(values), generator=random), 0.0
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                logits, _ = _look(self._scaled(values[rows.numpy()]), *parameters)
                loss = F.cross_entropy(logits, labels[rows].to(logits.device))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
        self.loss_ = total / len(values)
        self.query_, self.bias_, head, self.intercept_ = (part.detach().cpu().numpy() for part in parameters)
        self.coef_ = head.T

    def _fitted_blocks(self, X: Any) -> list[np.ndarray]:
        check_is_fitted(self)
        values = self._features(X)
        if values.shape[1:] != (len(self.bias_), len(self.query_)):
            raise MeasureError(
                f"X has {values.shape[1]} positions of {values.shape[2]} channels, but the probe was fitted on "
                f"{len(self.bias_)} of {len(self.query_)}"
            )
        return [values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK)]

    @plain_modes()
    def _look(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parameters = (torch.from_numpy(part).to(self.device) for part in (self.query_, self.bias_, self.coef_.T, self.intercept_))
        logits, attention = _look(self._scaled(block), *parameters)
        return logits.double().softmax(1).cpu().numpy(), attention.cpu().numpy()


def _look(Z: Tensor, query: Tensor, bias: Tensor, head: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [b, K] and attention [b, S] for standardised features [b, S, p]."""
    attention = (Z @ query / len(query) ** 0.5 + bias).softmax(dim=1)
    pooled = (attention[:, None] @ Z)[:, 0]
    return pooled @ head + intercept, attention


@dataclass(frozen=True)
class AttentiveResult(Result):
    """What an attentive probe of every layer reads, and where it looks.

    `accuracy`, `low` and `high` (Wilson's interval at 95 % over test images) are [L]; `attention[i]` [h, w] is the mean over test
    images of the attention of layer i, 1 in sum; positions that form no grid are one row. `chance` is the share of the most
    frequent class of the test images. NaN marks layers with NaN or infinite features."""

    title: ClassVar[str] = "Attentive probes"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    attention: tuple[np.ndarray, ...]
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: tuple[int, ...]
    position_bias: bool
    epochs: int
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One layer a row; `focus` is the largest share of attention of a position times the number of positions, 1 if even."""
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers),
                "accuracy": self.accuracy,
                "low": self.low,
                "high": self.high,
                "focus": [float(part.max() * part.size) for part in self.attention],
                "chance": self.chance,
                "n_train": self.n_train,
                "n_test": self.n_test,
                "classes": self.classes,
                "p": self.p,
            }
        )


def attentive_probe(reps_train: RepresentationsLike, reps_test: RepresentationsLike, **settings: Any) -> AttentiveResult:
    """Fit an `AttentiveProbe` with `settings` on every layer of `reps_train` that has positions, and test it on `reps_test`.

    Both are extracted with reduce="none"; prefix tokens take no part. Raises as `position_probe`."""
    labels = checked_runs(reps_train, reps_test)
    layers = layers_with_positions(reps_train)
    probe = AttentiveProbe(**settings)
    found = [_layer(layer, (reps_train, reps_test), labels, probe) for layer in layers]
    right, attention = zip(*found, strict=True)
    bounds = [wilson_interval(hits, len(labels[1])) if hits == hits else (np.nan, np.nan) for hits in right]
    return AttentiveResult(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=layers,
        accuracy=np.array(right) / len(labels[1]),
        low=np.array([low for low, _ in bounds]),
        high=np.array([high for _, high in bounds]),
        attention=attention,
        chance=chance(labels[1]),
        n_train=len(labels[0]),
        n_test=len(labels[1]),
        classes=len(np.unique(labels[0])),
        p=tuple(layer.channels for layer in layers),
        position_bias=probe.position_bias,
        epochs=probe.epochs,
        seed=probe.seed,
    )


def _layer(
    layer: Layer,
    runs: tuple[RepresentationsLike, RepresentationsLike],
    labels: tuple[np.ndarray, np.ndarray],
    probe: AttentiveProbe,
) -> tuple[float, np.ndarray]:
    """How many test images are right, and the mean attention [h, w]."""
    train, test = (np.asarray(run[layer.name]) for run in runs)
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        warn_if_not_finite(layer.name, train, test)
        return np.nan, np.full(map_shape(layer), np.nan)
    probe.fit(train, labels[0])
    attention = probe.attention(test).mean(axis=0, dtype=np.float64)
    return float((probe.predict(test) == labels[1]).sum()), attention.reshape(map_shape(layer))
