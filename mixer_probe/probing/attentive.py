"""An attentive probe: one learned query attends to all positions, and a linear head predicts the
class from the pooled features.

The attention over the S positions of an image is softmax_s(q'z_s / sqrt(p) + b_s) with features z
standardised by channel, a query q [p] and, unless switched off, a bias b_s of each position; the
head is linear in sum_s a_s z_s. This is attention pooling with one head (attentive probing, Chen et
al. 2022, "Context Autoencoder"), its key and value maps absorbed into query and head. The query
starts at zero, so that training starts from the linear probe of the mean over positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional as F

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import plain_modes
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import check_two
from mixer_probe.models.layer import Layer
from mixer_probe.probing.positionwise import (
    checked_runs,
    layers_with_positions,
    map_shape,
    warn_positions,
)
from mixer_probe.probing.runs import LAYER, majority_rate
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import wilson_interval

# Images per forward pass after training.
_BLOCK = 1024


class AttentiveProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Attention pooling by one learned query and a linear head, for features [n, S, p]; get_params
    and score as in scikit-learn.

    Trained by AdamW on the cross-entropy, with a learning rate that falls from `lr` along a half
    cosine, the same for the same `seed` on one device. `position_bias` lets the query prefer
    positions, not only features; without it the probe knows where a position is only from its
    features.

    After `fit`: `classes_` [K], `query_` [p], `bias_` [S], `coef_` [K, p], `intercept_` [K],
    `mean_` and `scale_` [p] (infinite for constant channels), `loss_` the mean cross-entropy of the
    last epoch."""

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

    @plain_modes()
    @torch.enable_grad()
    def fit(self, X: Any, y: Any) -> AttentiveProbe:
        """Fit to features `X` [n, S, p] and classes `y` [n].

        Raises MeasureError for another shape, NaN or infinite features, and one class."""
        values, y = self._features(X), np.asarray(y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        check_two(self.classes_)
        if len(values) != len(y):
            raise MeasureError(
                f"there are {len(values)} images and {len(y)} labels: each image needs one"
            )
        self.mean_ = values.mean(axis=(0, 1), dtype=np.float64)
        deviation = np.sqrt(np.square(values - self.mean_).mean(axis=(0, 1)))
        constant = deviation <= 10 * float(np.finfo(np.float32).eps) * np.abs(self.mean_)
        self.scale_ = np.where(constant, np.inf, deviation)
        target = torch.from_numpy(labels)
        _, positions, p = values.shape
        shapes = ((p,), (positions,), (p, len(self.classes_)), (len(self.classes_),))
        parameters = [
            torch.zeros(shape, device=self.device, requires_grad=True) for shape in shapes
        ]
        learned = [part for part in parameters if self.position_bias or part is not parameters[1]]
        batches = max(1, -(-len(values) // self.batch_size))
        optimiser = torch.optim.AdamW(learned, lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs * batches)
        # A generator of its own leaves the global random state alone.
        random = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order, total = torch.randperm(len(values), generator=random), 0.0
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                logits, _ = _attention_pooling(self._scaled(values[rows.numpy()]), *parameters)
                loss = F.cross_entropy(logits, target[rows].to(logits.device))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
        self.loss_ = total / len(values)
        self.query_, self.bias_, head, self.intercept_ = (
            part.detach().cpu().numpy() for part in parameters
        )
        self.coef_ = head.T
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, [n, K]."""
        return np.concatenate([self._attend(block)[0] for block in self._fitted_blocks(X)])

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class, [n]."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def attention(self, X: Any) -> np.ndarray:
        """Attention weights of the positions, [n, S]; every row sums to 1."""
        return np.concatenate([self._attend(block)[1] for block in self._fitted_blocks(X)])

    def _features(self, X: Any) -> np.ndarray:
        values = np.asarray(X.detach().cpu() if isinstance(X, Tensor) else X)
        if values.ndim != 3 or 0 in values.shape:
            raise MeasureError(
                f"X has shape {values.shape}, but [image, position, channel] is needed: extract "
                "with reduce='none'"
            )
        if not np.isfinite(values).all():
            raise MeasureError(
                f"{int((~np.isfinite(values)).sum())} of the features are NaN or infinite"
            )
        return values

    def _scaled(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(((values - self.mean_) / self.scale_).astype(np.float32)).to(
            self.device
        )

    def _fitted_blocks(self, X: Any) -> list[np.ndarray]:
        check_is_fitted(self)
        values = self._features(X)
        if values.shape[1:] != (len(self.bias_), len(self.query_)):
            raise MeasureError(
                f"X has {values.shape[1]} positions of {values.shape[2]} channels, but the probe "
                f"was fitted on {len(self.bias_)} of {len(self.query_)}"
            )
        return [values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK)]

    @plain_modes()
    def _attend(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parameters = (
            torch.from_numpy(part).to(self.device)
            for part in (self.query_, self.bias_, self.coef_.T, self.intercept_)
        )
        logits, attention = _attention_pooling(self._scaled(block), *parameters)
        return logits.double().softmax(1).cpu().numpy(), attention.cpu().numpy()


def _attention_pooling(
    Z: Tensor, query: Tensor, bias: Tensor, head: Tensor, intercept: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits [b, K] and attention [b, S] for standardised features [b, S, p]."""
    attention = (Z @ query / len(query) ** 0.5 + bias).softmax(dim=1)
    pooled = (attention[:, None] @ Z)[:, 0]
    return pooled @ head + intercept, attention


@dataclass(frozen=True)
class AttentiveResult(Result):
    """Accuracy and attention of an attentive probe of every layer.

    `accuracy`, `low` and `high` (Wilson's interval at 95 % over test images) are [L];
    `attention[i]` [h, w] is the mean over test images of the attention of layer i, 1 in sum;
    positions without a grid are one row. `chance` is the frequency of the most frequent class of
    the test images. NaN marks layers with NaN or infinite features."""

    title: ClassVar[str] = "Attentive probes"
    frame = Frame("layer", f"{LAYER} accuracy low high focus chance n_train n_test classes p")

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    accuracy: Annotated[np.ndarray, "layer"]
    low: Annotated[np.ndarray, "layer"]
    high: Annotated[np.ndarray, "layer"]
    attention: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: Annotated[tuple[int, ...], "layer"]
    position_bias: bool
    epochs: int
    seed: int

    @property
    def focus(self) -> Annotated[np.ndarray, "layer"]:
        """The largest attention weight times the number of positions [L], 1 if uniform."""
        return np.array([part.max() * part.size for part in self.attention], dtype=np.float64)


def attentive_probe(
    reps_train: RepresentationsLike, reps_test: RepresentationsLike, **settings: Any
) -> AttentiveResult:
    """Fit an `AttentiveProbe` with `settings` on every layer of `reps_train` that has positions,
    and test it on `reps_test`.

    Both are extracted with reduce="none"; prefix tokens are not used. Raises as
    `position_probe`."""
    y_train, y_test = checked_runs(reps_train, reps_test)
    layers, probe = layers_with_positions(reps_train), AttentiveProbe(**settings)
    accuracy, attention = (
        np.full((3, len(layers)), np.nan),
        [np.full(map_shape(layer), np.nan) for layer in layers],
    )
    for i, layer in enumerate(layers):
        train, test = (np.asarray(run[layer.name]) for run in (reps_train, reps_test))
        if warn_positions(layer.name, train, test):
            continue
        probe.fit(train, y_train)
        right = float((probe.predict(test) == y_test).sum())
        accuracy[:, i] = right / len(y_test), *wilson_interval(right, len(y_test))
        attention[i] = (
            probe.attention(test).mean(axis=0, dtype=np.float64).reshape(map_shape(layer))
        )
    return AttentiveResult(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=layers,
        accuracy=accuracy[0],
        low=accuracy[1],
        high=accuracy[2],
        attention=tuple(attention),
        chance=majority_rate(y_test),
        n_train=len(y_train),
        n_test=len(y_test),
        classes=len(np.unique(y_train)),
        p=tuple(layer.channels for layer in layers),
        position_bias=probe.position_bias,
        epochs=probe.epochs,
        seed=probe.seed,
    )
