"""Early reading: the class as read from the residual stream after every block by the network's own
last layers (logit lens), by the mean derivative of its logits (Jacobian lens), and by probes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from scipy.stats import binom

from mixer_probe.capture.analysis_inputs import halves
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.fingerprint import apart, check_apart
from mixer_probe.core.frame import Frame
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images import Images
from mixer_probe.images.classes import require_labels
from mixer_probe.mixing.lens_readers import (
    JacobianLens,
    activations,
    in_memory,
    jacobian_lenses,
    logit_lens,
    pooled,
    probe_predictions,
    unlike_last,
)
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.stats import difference_interval, mcnemar, paired_counts, wilson_interval

LOGIT, JACOBIAN, AVERAGED, POSITIONWISE, POOLED = READERS = (
    "logit lens",
    "Jacobian lens",
    "Jacobian lens, mean over positions",
    "position-wise probe",
    "pooled probe",
)
_LOGIT, _JACOBIAN, _AVERAGED, _POSITIONWISE, _POOLED = range(5)
# A backward pass per class and image: more take long, and their Jacobians much memory.
_MOST_CLASSES = 100
SAME = "every class is read alike, because no logit depends on these activations (a zero head)"


@dataclass(frozen=True)
class ClassLens(Result):
    """The class of every test image as read from the stem's output and after every block, by five
    readers: `predicted` [reader, layer, image], indices into `classes`, as are the `labels` [image]
    and the network's own answers `final` [image].

    Everything else follows from them. -1 marks what is not defined: `no_logit_lens` [layer] says
    why the network's last layers do not read a layer, and `no_jacobian` [layer] why the Jacobian
    lens does not ("" where they do). All readers, the network too, choose among `classes`, those
    of the images. `cosine` [layer] is that between J and its mean over positions, NaN where J is
    exactly zero, and `same_everywhere` [layer] is 1 / sqrt(positions), its value for a J that is
    unrelated from one position to the next."""

    title: ClassVar[str] = "Early reading"
    frame = Frame(
        "reader layer",
        """model=model.name model.trained reader=readers layer=layers.name layers.depth accuracy low
        high p_chance agreement agreement_low agreement_high behind behind_low behind_high
        behind_p cosine chance n""",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    n_jacobian: int
    readers: Annotated[tuple[str, ...], "reader"]
    layers: Annotated[tuple[Layer, ...], "layer"]
    classes: Annotated[tuple[str, ...], "class"]
    predicted: Annotated[np.ndarray, "reader", "layer", "image"]
    labels: Annotated[np.ndarray, "image"]
    final: Annotated[np.ndarray, "image"]
    cosine: Annotated[np.ndarray, "layer"]
    no_logit_lens: Annotated[tuple[str, ...], "layer"]
    no_jacobian: Annotated[tuple[str, ...], "layer"]

    @property
    def n(self) -> int:
        """Number of test images."""
        return len(self.labels)

    @property
    def chance(self) -> float:
        """Accuracy of always reading the most frequent class of the test images."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / self.n)

    @property
    def right(self) -> np.ndarray:
        """Whether each image is read right: [reader, layer, image]."""
        found: np.ndarray = self.predicted == self.labels
        return found

    @property
    def defined(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Whether a reader is defined after a layer."""
        return np.asarray((self.predicted >= 0).all(-1))

    @property
    def accuracy(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Fraction of test images that are read right, NaN where a reader is not defined."""
        return self._fraction(self.right, self.defined)[0]

    @property
    def low(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Lower end of Wilson's 95 % interval of the accuracy."""
        return self._fraction(self.right, self.defined)[1]

    @property
    def high(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Upper end of Wilson's 95 % interval of the accuracy."""
        return self._fraction(self.right, self.defined)[2]

    @property
    def p_chance(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """One-sided binomial p-value of an accuracy of `chance` or less."""
        p = binom.sf(self.right.sum(-1) - 1, self.n, self.chance)
        return np.where(self.defined, p, np.nan)

    @property
    def own_accuracy(self) -> tuple[float, float, float]:
        """Accuracy of the network itself, among `classes`, with Wilson's interval; NaN where its
        answers are not defined."""
        known = np.array(bool((self.final >= 0).all()))
        value, low, high = self._fraction(self.final == self.labels, known)
        return float(value), float(low), float(high)

    @property
    def agreement(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Fraction of test images that are read as the network answers in the end."""
        return self._fraction(self._agree, self._answered)[0]

    @property
    def agreement_low(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Lower end of Wilson's 95 % interval of the agreement."""
        return self._fraction(self._agree, self._answered)[1]

    @property
    def agreement_high(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Upper end of Wilson's 95 % interval of the agreement."""
        return self._fraction(self._agree, self._answered)[2]

    @property
    def behind(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Accuracy of the Jacobian lens minus that of each reader, over the same images."""
        return self._behind[0]

    @property
    def behind_low(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Lower end of Tango's 95 % interval of `behind`."""
        return self._behind[1]

    @property
    def behind_high(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """Upper end of Tango's 95 % interval of `behind`."""
        return self._behind[2]

    @property
    def behind_p(self) -> Annotated[np.ndarray, "reader", "layer"]:
        """McNemar's exact two-sided p-value of `behind`."""
        return self._behind[3]

    @property
    def same_everywhere(self) -> Annotated[np.ndarray, "layer"]:
        """The cosine of a J whose positions are unrelated, 1 / sqrt(positions)."""
        return np.array([max(layer.positions, 1) ** -0.5 for layer in self.layers])

    @cached_property
    def _behind(self) -> tuple[np.ndarray, ...]:
        jacobian = _JACOBIAN
        counts = paired_counts(self.right[jacobian][None], self.right)
        value = (counts[..., 1] - counts[..., 2]) / self.n
        known = self.defined & self.defined[jacobian]
        known[jacobian] = False
        found = (value, *difference_interval(counts), mcnemar(counts))
        return tuple(np.where(known, part, np.nan) for part in found)

    @property
    def _agree(self) -> np.ndarray:
        return np.asarray(self.predicted == self.final)

    @property
    def _answered(self) -> np.ndarray:
        return np.asarray(self.defined & bool((self.final >= 0).all()))

    def _fraction(self, true: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, ...]:
        """Fractions of images and the ends of their intervals, NaN where they are not known."""
        count = np.asarray(true.sum(-1))
        low, high = wilson_interval(count, np.full_like(count, self.n))
        return tuple(np.where(known, part, np.nan) for part in (count / self.n, low, high))


@checked(MeasureError)
def class_lens(
    model: Model,
    images: Images,
    train: Images | None = None,
    *,
    jacobian_images: int | None = 50,
    batch_size: int = 32,
    seed: int = 0,
) -> ClassLens:
    """The class of each of `images` read from the stem's output and after every block, by the logit
    lens, the Jacobian lens, and two probes.

    - Logit lens (nostalgebraist 2020): the output of the last block is replaced by that of the
      layer, and the rest of the network reads it. Defined where both have the same channels, grid,
      prefix tokens and axes.
    - Jacobian lens: logits J (h - mean h) + mean logits of activations h, with J the mean
      derivative of the logits with respect to h over at most `jacobian_images` of `train`, and the
      means over the same images. With one J per position, and with the mean over positions (prefix
      tokens keep their own). Logits have the mean over classes 0.
    - Probes: ridge on standardised features, the penalty by leave-one-out accuracy on `train`
      (`RidgeProbe`): of all positions and prefix tokens, and of the mean over positions with the
      prefix tokens.

    Every reader chooses among the classes of the images, found among the outputs by name
    (`labels_as_outputs`). `train` are images to fit on, by default a half of `images`, with every
    class in both halves, and the other half is tested on. Memory is that of the graph of a few
    images, of the Jacobians, and of the activations of some layers.

    Raises ImagesError for images without labels, for images that are in both sets, and for a class
    of the test images without one to fit on; MeasureError for a network without a classifier, for
    classes that are not among its outputs, one class, more than 100, a class of one image where
    there is no `train`, and activations that are NaN or infinite."""
    if train is None:
        labels = require_labels(images.labels, f"the images ({images.name})", "reading classes")
        fit, rest = halves(labels, images.name, images.class_names, seed)
        train = replace(images.subset(apart(images.keys, fit, rest)), split="fitting half")
        images = replace(images.subset(rest), split="test half")
    check_apart(train, images)
    y_train, y_test = (
        labels_as_outputs(model, part, "reading classes") for part in (train, images)
    )
    outputs = np.unique(y_train)
    names = outputs_of(model)
    alone = sorted(set(y_test.tolist()) - set(outputs.tolist()))
    if alone:
        raise ImagesError(
            f"no image to fit on shows '{names.name(alone[0])}', which is among the test images; "
            "give train images of every class"
        )
    if not 1 < len(outputs) <= _MOST_CLASSES:
        raise MeasureError(
            f"the images have {len(outputs)} classes, and 2 to {_MOST_CLASSES} can be read; take "
            "images of some of the classes"
        )
    layers = tuple(layer for layer in model.layers if layer.kind in ("stem", "block"))
    predicted = np.full((len(READERS), len(layers), len(images)), -1, dtype=np.int16)
    final = np.full(len(images), -1, dtype=np.int16)
    groups = list(in_memory(layers, len(train) + len(images), max(4, model.dtype.itemsize)))
    of_test: dict[str, torch.Tensor] = {}
    sample = train.sample(jacobian_images, seed)
    lenses = jacobian_lenses(model, sample, layers, outputs.tolist())
    no_jacobian = ["" if lenses[a.name].jacobian.any() else SAME for a in layers]
    no_logits = [no_jacobian[-1] or unlike_last(layer, layers[-1]) for layer in layers]
    if not no_logits[-1]:
        rows = [i for i, reason in enumerate(no_logits) if not reason]
        readable = [layers[i] for i in rows]
        logits, of_test = logit_lens(model, images, readable, groups[0], batch_size)
        logits = logits[:, :, outputs]
        if not np.isfinite(logits).all():
            raise MeasureError(
                f"logits of {model.name} are NaN or infinite for some of the images; no class can "
                "be read"
            )
        predicted[_LOGIT, rows] = logits.argmax(-1)
        final[:] = predicted[_LOGIT, -1]
    y = np.searchsorted(outputs, y_train)
    with task(f"{model.name}: probes", len(layers)) as advance:
        for group in groups:
            of_train = activations(model, train, group, batch_size)
            of_test = of_test or activations(model, images, group, batch_size)
            for layer in group:
                fit_on, test_on = of_train.pop(layer.name), of_test.pop(layer.name)
                i, lens, prefix = layers.index(layer), lenses[layer.name], layer.prefix_tokens
                if not no_jacobian[i]:
                    predicted[_JACOBIAN, i] = _read(lens, test_on, batch_size)
                    predicted[_AVERAGED, i] = _read(lens.averaged, test_on, batch_size)
                predicted[_POSITIONWISE, i] = probe_predictions(fit_on, y, test_on, layer.name)
                predicted[_POOLED, i] = probe_predictions(
                    pooled(fit_on, prefix), y, pooled(test_on, prefix), layer.name
                )
                advance(1)
    return ClassLens(
        model=model.record,
        images_train=train.record,
        images_test=images.record,
        n_jacobian=len(sample),
        readers=READERS,
        layers=layers,
        classes=tuple(names.name(int(k)) for k in outputs),
        predicted=predicted,
        labels=np.searchsorted(outputs, y_test).astype(np.int16),
        final=final,
        cosine=np.array([lenses[a.name].cosine for a in layers]),
        no_logit_lens=tuple(no_logits),
        no_jacobian=tuple(no_jacobian),
    )


def _read(lens: JacobianLens, h: torch.Tensor, batch_size: int) -> np.ndarray:
    """Classes [image] read from activations."""
    parts = (lens.read(part).argmax(1).numpy() for part in torch.split(h, batch_size))
    return np.concatenate(list(parts))
