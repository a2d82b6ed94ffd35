"""Model stitching: whether the first part of one network can serve the last part of another, with a
linear map of channels between them (Lenc and Vedaldi 2015; Bansal, Nakkiran and Barak 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np

from mixer_probe.concepts.donors import Donor, NetworkDonor, class_noise
from mixer_probe.concepts.stitched_passes import (
    HELD_OUT,
    Receiver,
    batched,
    fit_ridge,
    fit_task,
    predictions,
)
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.fingerprint import check_apart
from mixer_probe.core.frame import Frame
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import check_choice, check_count, checked
from mixer_probe.images import Images
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.models.layer import Layer, spread
from mixer_probe.models.model import Model
from mixer_probe.stats import delta_interval, wilson_interval

Fit = Literal["ridge", "task", "both"]
DONOR, SHUFFLED, UNTRAINED, SEED, NOISE = CONDITIONS = (
    "donor",
    "shuffled",
    "untrained",
    "seed",
    "class noise",
)
CONTROLS = CONDITIONS[1:]
# What figures and sentences call them.
LABELS = {
    DONOR: "donor",
    SHUFFLED: "shuffled pairing",
    UNTRAINED: "untrained donor",
    SEED: "another training seed",
    NOISE: "class-matched noise",
}
# Fewer images to fit on leave one or none to choose the penalty by.
_FEWEST = 10


@dataclass(frozen=True)
class Stitching(Result):
    """Predicted classes of a receiver whose layer is replaced by a map of a donor's: `predicted`
    [fit, condition, donor layer, receiver layer, image], indices into `classes`, as are the
    `labels` [image] and the receiver's own answers `own` [image].

    Everything else follows from them. Of the `conditions` "donor" is the network itself and the
    others are controls (see `stitch`); `source_layers` [condition, donor layer] are the names of
    the layers that were used, which are others for the control "seed". `r2` [condition, donor
    layer, receiver layer] is the fraction of the variance of the receiver's activations that the
    ridge map explains on training images that were held out to choose its penalty `l2`. The
    receiver chooses among `classes`, those of the images."""

    title: ClassVar[str] = "Model stitching"
    frame = Frame(
        "fit condition donor_layer receiver_layer",
        """donor=donor.name receiver=receiver.name fit=fits condition=conditions
        donor_layer=donor_layers.name receiver_layer=receiver_layers.name
        donor_depth=donor_layers.depth receiver_depth=receiver_layers.depth
        source_layer=source_layers accuracy low high recovered recovered_low recovered_high
        own_accuracy own_low own_high chance r2 l2 n""",
    )

    donor: ModelRecord
    receiver: ModelRecord
    seed_model: ModelRecord | None
    images_train: ImagesRecord
    images_test: ImagesRecord
    fits: Annotated[tuple[str, ...], "fit"]
    conditions: Annotated[tuple[str, ...], "condition"]
    donor_layers: Annotated[tuple[Layer, ...], "donor_layer"]
    receiver_layers: Annotated[tuple[Layer, ...], "receiver_layer"]
    source_layers: Annotated[np.ndarray, "condition", "donor_layer"]
    classes: Annotated[tuple[str, ...], "class"]
    predicted: Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer", "image"]
    labels: Annotated[np.ndarray, "image"]
    own: Annotated[np.ndarray, "image"]
    r2: Annotated[np.ndarray, "condition", "donor_layer", "receiver_layer"]
    l2: Annotated[np.ndarray, "condition", "donor_layer", "receiver_layer"]
    epochs: int
    seed: int

    @property
    def n(self) -> int:
        """Number of test images."""
        return len(self.labels)

    @property
    def chance(self) -> float:
        """Accuracy of always predicting the most frequent class of the test images."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / self.n)

    @property
    def right(
        self,
    ) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer", "image"]:
        """Whether each image is classified correctly."""
        return np.asarray(self.predicted == self.labels)

    @property
    def accuracy(
        self,
    ) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer"]:
        """Accuracy of the stitched networks."""
        return np.asarray(self.right.mean(-1))

    @property
    def low(self) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer"]:
        """Lower end of Wilson's 95 % interval of the accuracy."""
        return np.asarray(wilson_interval(self.right.sum(-1), self.n)[0])

    @property
    def high(self) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer"]:
        """Upper end of Wilson's 95 % interval of the accuracy."""
        return np.asarray(wilson_interval(self.right.sum(-1), self.n)[1])

    @property
    def own_accuracy(self) -> float:
        """Accuracy of the receiver itself."""
        return float((self.own == self.labels).mean())

    @property
    def own_low(self) -> float:
        """Lower end of Wilson's 95 % interval of the receiver's own accuracy."""
        return float(wilson_interval(int((self.own == self.labels).sum()), self.n)[0])

    @property
    def own_high(self) -> float:
        """Upper end of Wilson's 95 % interval of the receiver's own accuracy."""
        return float(wilson_interval(int((self.own == self.labels).sum()), self.n)[1])

    @property
    def reads_class(self) -> bool:
        """Whether the receiver's own accuracy is significantly above chance (lower end of the
        interval): else nothing can be recovered, and `recovered` is NaN."""
        return self.own_low > self.chance

    @property
    def recovered(
        self,
    ) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer"]:
        """Accuracy recovered, (stitched - chance) / (own - chance): 1 if the receiver is as
        accurate as by itself, 0 at chance."""
        return self._recovered[0]

    @property
    def recovered_low(
        self,
    ) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer"]:
        """Lower end of the 95 % interval of the accuracy recovered, over test images (delta
        method)."""
        return self._recovered[1]

    @property
    def recovered_high(
        self,
    ) -> Annotated[np.ndarray, "fit", "condition", "donor_layer", "receiver_layer"]:
        """Upper end of the 95 % interval of the accuracy recovered."""
        return self._recovered[2]

    @cached_property
    def _recovered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = self.predicted.shape[:-1]
        found = np.full((3, *shape), np.nan)
        if self.reads_class:
            # A fit and a condition at a time: influences are as many numbers as predictions.
            for at in np.ndindex(shape[:2]):
                value, influence = self.by_image(*at)
                reach = 1 / (self.own_accuracy - self.chance)
                limits = value - reach, value + reach
                found[:, *at] = value, *delta_interval(value, influence, limits=limits)
        return found[0], found[1], found[2]

    def by_image(self, fit: int, condition: int) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy recovered [donor layer, receiver layer], and the influence of each image on it
        [donor layer, receiver layer, image]."""
        right, own = self.right[fit, condition].astype(np.float64), self.own == self.labels
        margin, accuracy = self.own_accuracy - self.chance, right.mean(-1)
        value = (accuracy - self.chance) / margin
        away = (right - accuracy[..., None]) - value[..., None] * (own - self.own_accuracy)
        return value, away / margin

    @property
    def matched(self) -> np.ndarray:
        """For each receiver layer the index of the donor layer at the nearest relative depth."""
        return nearest(self.receiver_layers, self.donor_layers)


def nearest(layers: Sequence[Layer], among: Sequence[Layer]) -> np.ndarray:
    """For each layer the index of that `among` others whose relative depth is nearest, the earlier
    of two."""
    depths = np.array([layer.depth for layer in among])
    return np.array([int(np.abs(depths - layer.depth).argmin()) for layer in layers])


def asymmetry(a: Stitching, b: Stitching, fit: str = "ridge") -> np.ndarray:
    """The accuracy recovered from A to B minus that from B to A at the same pair of layers, and the
    ends of its 95 % interval over test images (delta method): [3, layer of A, layer of B].

    NaN where one of the networks is not above chance by itself. Raises MeasureError unless `b` has
    the donor and the receiver of `a` exchanged, with the same layers, test images and fit."""
    if (
        (a.donor, a.receiver, a.donor_layers, a.receiver_layers, a.images_test.fingerprint)
        != (b.receiver, b.donor, b.receiver_layers, b.donor_layers, b.images_test.fingerprint)
    ) or not {fit} <= set(a.fits) & set(b.fits):
        raise MeasureError(
            f"the two directions of one pair of networks are needed, fitted by '{fit}' with the "
            f"same layers and test images, not {a.donor.name} to {a.receiver.name} and "
            f"{b.donor.name} to {b.receiver.name}: call stitch twice with the networks exchanged"
        )
    if not (a.reads_class and b.reads_class):
        return np.full((3, len(a.donor_layers), len(a.receiver_layers)), np.nan)
    there, influence_there = a.by_image(a.fits.index(fit), 0)
    back, influence_back = b.by_image(b.fits.index(fit), 0)
    value = there - back.T
    reach = sum(1 / (r.own_accuracy - r.chance) for r in (a, b))
    bounds = delta_interval(
        value,
        influence_there - influence_back.transpose(1, 0, 2),
        limits=(value - reach, value + reach),
    )
    return np.stack([value, *bounds])


@checked(MeasureError)
def stitch(
    donor: Model,
    receiver: Model,
    train: Images,
    test: Images,
    *,
    layers: str | Sequence[str] = "blocks",
    receiver_layers: str | Sequence[str] | None = None,
    depths: int | None = None,
    fit: Fit = "ridge",
    controls: Sequence[str] | None = None,
    seed_model: Model | None = None,
    epochs: int = 3,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> Stitching:
    """Accuracy on `test` of the `receiver` when the output of one of its layers is replaced by a
    linear map of what a layer of the `donor` returns for the same images, for all pairs of layers.

    Activations x of the donor at its positions are brought to the receiver's grid (averaged over
    cells where the donor's is finer, interpolated bilinearly where it is coarser), and x W + b with
    one W and b for all positions takes the place of the receiver's. Its prefix tokens, if any, are
    then the means of its own over `train`: a donor says nothing through them. Prefix tokens of the
    donor are left out. W and b are fitted on `train`:

    - "ridge": ridge regression on the receiver's own activations for the same images and positions,
      on standardised inputs, from float64 moments. The penalty is that with the least squared error
      on a fifth of the images, and the map is then fitted to all.
    - "task": the cross-entropy of the stitched network for the true classes, minimised by Adam in
      `epochs` passes over `train` in batches of `batch_size`, from the ridge map. The step
      `learning_rate` is for standardised inputs and outputs. The receiver stays as it is. On few
      images it overfits, and test accuracy can fall below that of the ridge map.

    "both" gives both. `controls` are further donors, by default all that there are:

    - "shuffled": in fitting the images of the donor are permuted against those of the receiver (and
      against the classes), so that the map knows the receiver's activations but nothing of how the
      donor encodes an image.
    - "untrained": the untrained baseline of the donor; not for a donor that is untrained.
    - "seed": `seed_model`, the receiver from another training seed, as the ceiling; each of its
      layers is the nearest in relative depth to a donor's.
    - "class noise": at all positions the mean of the image's class plus noise, both drawn from a
      normal distribution in the donor's width, so noisy that a linear probe is as accurate on it as
      on the donor's activations averaged over positions (Smith, Mannering and Marcu 2025 stitch
      such noise). What it recovers is class information alone.

    `layers` are those of both networks, `receiver_layers` others of the receiver, and of each at
    most `depths`, evenly spread: stems and blocks, behind which nothing of the receiver's own image
    is left. The receiver chooses among the classes of the images. Memory is that of moments, of a
    batch, and of one vector per image for the noise.

    Raises ImagesError for images without labels, images that are in both sets, and a class of the
    test images without one to fit on; MeasureError for a receiver without a classifier or the
    classes of the images, a single class, fewer than 10 training images, layers that are neither
    stem nor block or have no grid, constant or non-finite activations, unknown controls, "seed"
    without `seed_model`, and moments that do not fit into memory."""
    check_apart(train, test)
    if learning_rate <= 0:
        raise MeasureError(f"learning_rate is a number above 0, not {learning_rate}")
    if depths is not None:
        check_count("depths", depths, MeasureError)
    y_train, y_test = (labels_as_outputs(receiver, part, "stitching") for part in (train, test))
    if len(train) < _FEWEST:
        raise MeasureError(
            f"{len(train)} training images are too few to fit a map and hold some out: give "
            f"{_FEWEST} or more"
        )
    outputs, names = np.unique(y_train), outputs_of(receiver)
    alone = sorted(set(y_test.tolist()) - set(outputs.tolist()))
    if alone:
        raise ImagesError(
            f"no image to fit on shows '{names.name(alone[0])}', which is among the test images; "
            "give train images of every class"
        )
    if len(outputs) < 2:
        raise MeasureError(
            f"all images are of class '{names.name(int(outputs[0]))}', so that every network is "
            "right: take images of two classes or more"
        )
    of_donor = _layers(donor, layers, depths)
    of_receiver = _layers(receiver, layers if receiver_layers is None else receiver_layers, depths)
    y_train, y_test = (np.searchsorted(outputs, y) for y in (y_train, y_test))
    order = np.random.default_rng(seed).permutation(len(train))
    donors: dict[str, Donor] = {DONOR: NetworkDonor(donor, of_donor)}
    for control in _controls(controls, donor, seed_model):
        if control == SHUFFLED:
            # Each has the activations of the next in a random circle, so that none keeps its own.
            following = np.empty_like(order)
            following[order] = np.roll(order, -1)
            donors[control] = NetworkDonor(donor, of_donor, following)
        elif control == UNTRAINED:
            donors[control] = NetworkDonor(donor.untrained(), of_donor)
        elif control == SEED:
            assert seed_model is not None
            among = _layers(seed_model, layers if receiver_layers is None else receiver_layers)
            donors[control] = NetworkDonor(
                seed_model, tuple(among[i] for i in nearest(of_donor, among))
            )
        else:
            both = (train, test), (y_train, y_test)
            donors[control] = class_noise(donor, of_donor, *both, batch_size, seed)
    fits = ("ridge", "task") if fit == "both" else (fit,)
    bench = Receiver(receiver, of_receiver, train, batch_size)
    held = np.zeros(len(train), dtype=bool)
    held[order[: len(train) // HELD_OUT]] = True
    train_rows, test_rows = (batched(np.arange(len(p)), batch_size) for p in (train, test))
    of_map, predicted = [], []
    own = np.empty(len(test), dtype=np.int16)
    with task(f"{donor.name} to {receiver.name}: stitching", len(donors)) as advance:
        for given in donors.values():
            ridge = fit_ridge(bench, given, train, train_rows, held)
            of_map.append([[(one.r2, one.l2) for one in row] for row in ridge])
            fitted = {"ridge": ridge}
            if "task" in fits:
                fitted["task"], _ = fit_task(
                    bench,
                    given,
                    train,
                    y_train,
                    outputs,
                    ridge,
                    epochs=epochs,
                    learning_rate=learning_rate,
                    batch_size=batch_size,
                    seed=seed,
                )
            found, own = predictions(
                bench, given, test, test_rows, outputs, [fitted[name] for name in fits]
            )
            predicted.append(found)
            advance(1)
    r2, l2 = np.moveaxis(np.array(of_map), -1, 0)
    return Stitching(
        donor=donor.record,
        receiver=receiver.record,
        seed_model=None if seed_model is None else seed_model.record,
        images_train=train.record,
        images_test=test.record,
        fits=fits,
        conditions=tuple(donors),
        donor_layers=of_donor,
        receiver_layers=of_receiver,
        source_layers=np.array([[layer.name for layer in d.layers] for d in donors.values()]),
        classes=tuple(names.name(int(k)) for k in outputs),
        predicted=np.stack(predicted, 1),
        labels=y_test.astype(np.int16),
        own=own,
        r2=r2,
        l2=l2,
        epochs=epochs if "task" in fits else 0,
        seed=seed,
    )


def _controls(chosen: Sequence[str] | None, donor: Model, seed_model: Model | None) -> list[str]:
    """The controls to make, in the order of `CONTROLS`. Raises MeasureError for unknown ones and
    for those that cannot be made."""
    possible = [
        name
        for name in CONTROLS
        if (name != UNTRAINED or donor.weights.trained) and (name != SEED or seed_model is not None)
    ]
    if chosen is None:
        return possible
    asked = [chosen] if isinstance(chosen, str) else chosen
    wanted = {check_choice("control", name, CONTROLS, MeasureError) for name in asked}
    for name in CONTROLS:
        if name in wanted and name not in possible:
            raise MeasureError(
                f"the control '{name}' needs "
                + (
                    "seed_model=, the receiver from another training seed"
                    if name == SEED
                    else f"a trained donor, and {donor.name} is untrained"
                )
            )
    return [name for name in CONTROLS if name in wanted]


def _layers(
    model: Model, chosen: str | Sequence[str], depths: int | None = None
) -> tuple[Layer, ...]:
    """The layers to stitch at. Raises MeasureError for layers that cannot be."""
    selected = model.select(chosen)
    for layer in selected:
        if layer.kind not in ("stem", "block"):
            raise MeasureError(
                f"'{layer.name}' of {model.name} is neither its stem nor a block, so that the rest "
                "of the network reads more than this layer: give layers='blocks', or some of them"
            )
        if layer.grid is None:
            raise MeasureError(
                f"the positions of layer '{layer.name}' of {model.name} form no grid of rows and "
                "columns, so they fit no other network's: give layers that have one"
            )
    return selected if depths is None else tuple(selected[i] for i in spread(selected, depths))
