"""Lesions: accuracy of a network without one of its branches or blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from mixer_probe.capture import (
    ImageSource,
    Intervention,
    ablate,
    as_source,
    fixed,
    intervene,
    reference_means,
)
from mixer_probe.capture.resumed import finished_before, recorded_blocks
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import Call, hooked, returned
from mixer_probe.core.memory import LARGE, at_once
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import evaluating
from mixer_probe.core.validate import checked
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.models.trace import blank_images
from mixer_probe.stats import difference_interval, mcnemar, paired_counts, wilson_interval

KINDS = ("spatial", "channel", "block")
SKIPPED = "skipped"


@dataclass(frozen=True)
class Lesions(Result):
    """Predicted classes [1 + layer, image] of a network, row 0 of the intact one, then with one
    layer ablated at a time, and the `labels` [image] as outputs of the network.

    `ablations` [layer] says how: "mean" (over images, per position and channel), "zero",
    "resample", or "skipped" for a block whose input takes the place of its output. Where not
    `labelled`, the labels are the predictions of the intact network, and accuracy is agreement with
    it. A network that predicts one class for all images, or whose accuracy is not above chance, has
    nothing to lose: there are no layers then."""

    title: ClassVar[str] = "Lesion accuracy"
    frame = Frame(
        "layer",
        """model=model.name model.trained layer=layers.name layers.kind layers.depth
        ablation=ablations accuracy accuracy_low,accuracy_high=interval
        drop drop_low,drop_high=drop_interval p_mcnemar=p_value intact chance labelled n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    ablations: Annotated[tuple[str, ...], "layer"]
    labelled: bool
    labels: Annotated[np.ndarray, "image"]
    predicted: Annotated[np.ndarray, "layer + 1", "image"]

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is right [1 + layer, image]."""
        found: np.ndarray = self.predicted == self.labels
        return found

    @property
    def intact(self) -> float:
        """Accuracy of the intact network; 1 where its own predictions are the labels."""
        return float(self.right[0].mean())

    @property
    def intact_interval(self) -> tuple[float, float]:
        """Wilson's interval of it."""
        low, high = wilson_interval(int(self.right[0].sum()), self.n)
        return float(low), float(high)

    @property
    def chance(self) -> float:
        """Accuracy of always predicting the most frequent class."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / self.n)

    @property
    def constant(self) -> bool:
        """Whether the intact network predicts one class for all images."""
        return len(np.unique(self.predicted[0])) == 1

    @property
    def able(self) -> bool:
        """Whether the intact network has anything to lose: predictions that vary, and an accuracy
        above chance (lower end of the interval)."""
        return not self.constant and (not self.labelled or self.intact_interval[0] > self.chance)

    @property
    def accuracy(self) -> Annotated[np.ndarray, "layer"]:
        """Fraction of right predictions with each layer ablated."""
        return np.asarray(self.right[1:].mean(axis=1))

    @property
    def interval(self) -> Annotated[np.ndarray, "layer", "2"]:
        """Wilson's interval of `accuracy`."""
        hits = self.right[1:].sum(axis=1)
        return np.stack(wilson_interval(hits, np.full(len(hits), self.n)), axis=-1)

    @property
    def drop(self) -> Annotated[np.ndarray, "layer"]:
        """Accuracy of the intact network minus `accuracy`."""
        return np.asarray(self.intact - self.accuracy)

    @cached_property
    def drop_interval(self) -> Annotated[np.ndarray, "layer", "2"]:
        """Tango's interval of `drop`, a difference of paired fractions."""
        return np.stack(difference_interval(self._counts), axis=-1)

    @property
    def p_value(self) -> Annotated[np.ndarray, "layer"]:
        """McNemar's exact p-value of each drop, two-sided."""
        return mcnemar(self._counts)

    @property
    def _counts(self) -> np.ndarray:
        return paired_counts(self.right[:1], self.right[1:])

    def to_frame(self) -> pd.DataFrame:
        """One row per lesion, below that of the intact network."""
        lesions = self.frame.of(self)
        intact = pd.DataFrame(
            {
                "model": self.model.name,
                "trained": self.model.trained,
                "layer": "none",
                "kind": "",
                "ablation": "none",
                "accuracy": self.intact,
                "accuracy_low": self.intact_interval[0],
                "accuracy_high": self.intact_interval[1],
                "intact": self.intact,
                "chance": self.chance,
                "labelled": self.labelled,
                "n": self.n,
            },
            index=[0],
        ).reindex(columns=lesions.columns)
        return pd.concat([intact, lesions], ignore_index=True) if len(lesions) else intact

    def of_kind(self, kind: str) -> list[int]:
        """Indices of the layers of a kind: "spatial", "channel" or "block"."""
        return [i for i, layer in enumerate(self.layers) if layer.kind == kind]

    def lost_by_image(self, kind: str) -> np.ndarray:
        """What each image adds to the mean drop over the layers of a kind [image]."""
        right = self.right.astype(np.float64)
        return np.asarray(right[0] - right[1:][self.of_kind(kind)].mean(axis=0))


@checked(MeasureError)
def lesions(
    model: Model,
    images: ImageSource | torch.Tensor,
    ablation: Literal["mean", "zero", "resample"] = "mean",
    *,
    reference: ImageSource | torch.Tensor | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Lesions:
    """Accuracy of the network with each spatial and channel layer ablated and each block skipped,
    one at a time.

    Layers are those of `model.layers`. A branch is replaced by its mean over the `reference` images
    (by default the images themselves), by zeros, or by its activations for another of them. Of a
    block the input takes the place of the output where shapes allow (Veit et al. 2016), else it is
    ablated as a branch. What comes before a lesion is computed once for all.

    Images without labels, or with classes that are none of the outputs, are compared with the
    predictions of the intact network. Raises MeasureError for a network without a classifier."""
    source = as_source(images)
    labels = labels_of(model, source)
    with task(f"{model.name}: intact", len(source)) as advance:
        predicted, _ = predictions_under(model, source, labels, [], batch_size, advance)
    layers = [layer for layer in model.layers if layer.kind in KINDS]
    intact = _result(model, source, labels, [], [], predicted)
    if not intact.able:
        return intact
    skippable = _skippable(model)
    branches = [layer for layer in layers if layer.name not in skippable]
    others = as_source(source if reference is None else reference)
    means = reference_means(model, branches, others, batch_size) if ablation == "mean" else {}
    changes: list[tuple[Layer, Intervention]] = []
    for layer in layers:
        if layer.name in skippable:
            change = ablate("skip")
        elif ablation == "mean":
            change = fixed(means[layer.name])
        else:
            change = ablate(ablation, seed=seed)
        changes.append((layer, change))
    given = others if ablation == "resample" else None
    with task(f"{model.name}: lesions", len(source) * len(layers)) as advance:
        predicted, _ = predictions_under(model, source, labels, changes, batch_size, advance, given)
    how = [SKIPPED if layer.name in skippable else ablation for layer in layers]
    return _result(model, source, labels, layers, how, predicted)


def _result(
    model: Model,
    images: ImageSource,
    labels: np.ndarray | None,
    layers: Sequence[Layer],
    ablations: Sequence[str],
    predicted: np.ndarray,
) -> Lesions:
    return Lesions(
        model=model.record,
        images=images.record,
        layers=tuple(layers),
        ablations=tuple(ablations),
        labelled=labels is not None,
        labels=predicted[0] if labels is None else labels,
        predicted=predicted,
    )


def labels_of(model: Model, images: ImageSource) -> np.ndarray | None:
    """The labels [image] as outputs of the network; None without labels, and for classes that are
    none of its outputs."""
    try:
        return labels_as_outputs(model, images, "accuracy under lesions")
    except (ImagesError, MeasureError):
        return None


def _skippable(model: Model) -> set[str]:
    """The blocks that return what they are given in shape."""
    found = set()
    names = {(run.block.path, run.call): run.name for run in model.structure.runs}

    def see(call: Call) -> None:
        given = call.args[0] if call.args else None
        if isinstance(given, torch.Tensor) and given.shape == call.output.shape:
            found.add(names[call.path, call.number])

    network = model.module
    paths = [path for path, _ in names]
    with evaluating(network), torch.no_grad(), hooked(network, paths, see) as passes:
        passes.run(blank_images(network, model.input.size, 1))
    return found


def predictions_under(
    model: Model,
    images: ImageSource,
    labels: np.ndarray | None,
    changes: Sequence[tuple[Layer, Intervention]],
    batch_size: int,
    advance: Any,
    reference: ImageSource | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and logit margins [1 + change, image], those of the intact network first.

    The margin is the logit of the label (without labels of the class that the intact network
    predicts) minus the largest other one. Raises MeasureError for a network without a
    classifier."""
    predicted = np.empty((1 + len(changes), len(images)), dtype=np.int64)
    margin = np.empty(predicted.shape)
    start = 0
    size = min(batch_size, at_once(_bytes_of_blocks(model), LARGE))
    with evaluating(model.module), torch.no_grad():
        for batch in images.batches(transform_of(model), size):
            if tuple(batch.shape[1:]) != model.input.size:
                raise ImagesError(
                    f"the images are {tuple(batch.shape[1:])} and {model.name} takes "
                    f"{model.input.size}"
                )
            x = batch.to(model.device, model.dtype)
            rows = slice(start, start + len(x))
            with recorded_blocks(model) as outputs:
                logits = _logits(model, x)
            predicted[0, rows] = logits.argmax(1).cpu().numpy()
            target = torch.from_numpy(predicted[0, rows] if labels is None else labels[rows])
            target = target.to(model.device)
            margin[0, rows] = _margins(logits, target)
            if not changes:
                advance(len(x))
            for k, (layer, change) in enumerate(changes, 1):
                before = finished_before(model, layer, outputs)
                with (
                    returned(model.module, before),
                    intervene(model, {layer.name: change}, images=reference),
                ):
                    logits = _logits(model, x)
                predicted[k, rows] = logits.argmax(1).cpu().numpy()
                margin[k, rows] = _margins(logits, target)
                advance(len(x))
            start += len(x)
    return predicted, margin


def _bytes_of_blocks(model: Model) -> int:
    """Bytes of the outputs of all blocks for one image."""
    blocks = [layer for layer in model.layers if layer.kind == "block"]
    return sum(4 * (b.positions + b.prefix_tokens) * b.channels for b in blocks)


def _logits(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Logits [image, class] in float64."""
    logits = model.module(x)
    if (
        not isinstance(logits, torch.Tensor)
        or logits.ndim != 2
        or getattr(model.module, "num_classes", None) == 0
    ):
        raise MeasureError(
            f"{model.name} has no classifier, so it has no accuracy to lose: load it with its head"
        )
    return logits.double()


def _margins(logits: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """The target's logit minus the largest other one [image]."""
    own = logits.gather(1, target[:, None])
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    found: np.ndarray = (own[:, 0] - others).cpu().numpy()
    return found
