"""One image in every network: predictions, sizes of activations, nearest images, and how far a distortion moves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.special import softmax

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.images import DistortedImages, Distortion, Images, distort
from mixer_probe.models import Layer, Model
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.plotting.style import COLOURS
from mixer_probe.probing import knn_path
from mixer_probe_app.calls import key_of, key_of_images, representations
from mixer_probe_app.charts import colours, tips
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.pictures import Picture
from mixer_probe_app.store import cached, model

TOP = 5
BEFORE, AFTER = "plain", "distorted"
ZERO_HEAD = "All logits are equal: the head is zero, as in timm's untrained Mixers."
_LABELS = {"true class": "#009E73", "other class": "#8A8A8A", "unknown": COLOURS[0]}
# In px; a network with a larger input takes a tenth of a second per image or more.
_SMALL_INPUT, _FEW = 64, 32


@dataclass(frozen=True)
class Look:
    """One image in one network: means over positions of every block (`vectors`), the 2-norms over channels of the activations at
    every position (`norms`, on the grid of the layer where it has one), and the logits, None without a classifier."""

    layers: tuple[Layer, ...]
    vectors: tuple[np.ndarray, ...]
    norms: tuple[np.ndarray, ...]
    logits: np.ndarray | None

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits [class]."""
        found: np.ndarray = softmax(np.asarray(self.logits, dtype=np.float64))
        return found

    @property
    def prediction(self) -> int:
        """The class of the largest logit."""
        return int(np.argmax(self.probabilities))

    @property
    def has_zero_head(self) -> bool:
        """Whether all logits are equal, as those of timm's untrained Mixers, whose head is zero."""
        return self.logits is not None and bool(np.ptp(self.logits) == 0)


def look(name: str, picture: Picture, distortion: Distortion | None = None) -> Look:
    """The image, as it is or distorted, in the network `name`."""
    network = model(name)
    key = (key_of(network), picture.key, repr(distortion))
    source = picture.image if distortion is None else distort(picture.image, distortion)
    return cached("image", key, f"{shown(name)}: one image", lambda: look_at(network, source), on_disk=False)


def look_at(network: Model, source: Images | DistortedImages) -> Look:
    """The first image of `source` in a network. A distilled network has two heads, and predicts their mean."""
    blocks = [layer for layer in network.layers if layer.kind == "block"]
    classes = getattr(network.module, "num_classes", None)
    heads = [layer.name for layer in network.layers if layer.kind == "head" and layer.channels == classes]
    heads += ["head_dist"] if heads and hasattr(network.module, "head_dist") else []
    found = mp.extract(network, source, [*(b.name for b in blocks), *heads], reduce="none", batch_size=1)
    positions = [np.asarray(found[b.name][0], dtype=np.float64) for b in blocks]
    norms = [np.linalg.norm(values, axis=-1) for values in positions]
    return Look(
        tuple(blocks),
        tuple(values.reshape(-1, values.shape[-1]).mean(axis=0) for values in positions),
        tuple(norm.reshape(b.grid or (1, -1)) for norm, b in zip(norms, blocks, strict=True)),
        np.mean([found[head][0] for head in heads], axis=0) if heads else None,
    )


def size_frame(name: str, seen: Look) -> pd.DataFrame:
    """The norm of the activations of every block, mean and maximum over positions, one per row."""
    rows = [
        (shown(name), layer.name, layer.depth, float(norm.mean()), float(norm.max()), norm.size, layer.channels)
        for layer, norm in zip(seen.layers, seen.norms, strict=True)
    ]
    return pd.DataFrame(rows, columns=["network", "layer", "depth", "norm", "largest", "positions", "channels"])


# -- classes -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """The names of the outputs of a network (by index, empty if nobody knows), and the outputs that are the classes of the images
    [image], None where they are not among them."""

    names: tuple[str, ...]
    labels: np.ndarray | None

    @property
    def true(self) -> int | None:
        """The output that is the class of the first image."""
        return None if self.labels is None else int(self.labels[0])

    def name(self, index: int) -> str:
        """The name of a class."""
        return self.names[index] if index < len(self.names) else f"class {index}"


def classes_of(network: Model, images: Images) -> Classes:
    """The classes of a network, beside those of the images."""

    def match() -> Classes:
        names: tuple[str, ...] = ()
        try:
            names = outputs_of(network).names
            return Classes(names, labels_as_outputs(network, images))
        except (ImagesError, MeasureError):
            return Classes(names, None)

    theirs = () if images.labels is None else (images.class_names, images.labels.tobytes())
    key = (key_of(network), network.class_names, theirs)
    return cached("classes", key, "Matching classes", match, on_disk=False, warn=False)


def top(name: str, seen: Look, classes: Classes, state: str = BEFORE, count: int = TOP) -> pd.DataFrame:
    """The `count` classes of highest probability, and the true one where it is known, one per row."""
    assert seen.logits is not None
    values, true = seen.probabilities, classes.true
    order = np.argsort(-values, kind="stable").tolist()
    chosen = order[:count] + ([true] if true is not None and true not in order[:count] else [])
    label = lambda i: "unknown" if true is None else "true class" if i == true else "other class"  # noqa: E731
    return pd.DataFrame(
        {
            "network": shown(name),
            "image": state,
            "class": [classes.name(i) for i in chosen],
            "index": chosen,
            "probability": values[chosen],
            "logit": np.asarray(seen.logits, dtype=float)[chosen],
            "rank": [order.index(i) + 1 for i in chosen],
            "true": [label(i) for i in chosen],
        }
    )


def bars(frame: pd.DataFrame) -> alt.Chart:
    """Probabilities of classes as bars; of plain and distorted images side by side, else the true class in its colour.

    Without a legend, which a narrow column would cut; the caption says what the colours are."""
    order = list(dict.fromkeys(frame.sort_values("probability", ascending=False)["class"]))
    fields = {
        "network:N": "network",
        "image:N": "image",
        "class:N": "class",
        "probability:Q .2%": "probability",
        "logit:Q .2f": "logit",
        "rank:Q": "rank among all classes",
        "true:N": "label",
    }
    axis = alt.Axis(format=".0%", tickCount=3)
    encoding: dict[str, Any] = {
        "x": alt.X("probability:Q", title="probability (%)", scale=alt.Scale(domain=[0, 1]), axis=axis),
        "y": alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=110, titlePadding=6, labelOverlap=False)),
        "color": alt.Color("true:N", scale=colours(_LABELS), legend=None),
        "tooltip": tips(fields),
    }
    if frame["image"].nunique() > 1:
        encoding["yOffset"] = alt.YOffset("image:N", sort=[BEFORE, AFTER])
        encoding["color"] = alt.Color("image:N", scale=colours({BEFORE: COLOURS[5], AFTER: COLOURS[1]}), legend=None)
    chart: alt.Chart = alt.Chart(frame).mark_bar(cornerRadiusEnd=2).encode(**encoding)
    return chart.properties(height=70 + 30 * len(order), padding={"right": 14})


# -- neighbours and moves ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """The images nearest to one, for every layer: `places` and `cosines` [layer, k], nearest first."""

    layers: tuple[Layer, ...]
    places: tuple[np.ndarray, ...]
    cosines: tuple[np.ndarray, ...]

    def at(self, depth: float) -> int:
        """The layer nearest to a relative depth."""
        return int(np.argmin([abs(layer.depth - depth) for layer in self.layers]))


def neighbours(name: str, picture: Picture, images: Images, count: int) -> Neighbours:
    """The `count` of `images` nearest to the image at every block, itself left out: by cosine of the means over positions, less
    their mean over the images. A stored run has them for its own images.

    Raises MeasureError for an upload in a stored run, and for fewer than three images."""
    found, place = representations(name, images), picture.place
    own: dict[str, np.ndarray] = {}
    if place is None:
        if name.startswith(RUN):
            raise MeasureError(
                f"{shown(name)} contains representations only and cannot process an uploaded image; choose an image of the set"
            )
        seen = look(name, picture)
        own = {layer.name: vector for layer, vector in zip(seen.layers, seen.vectors, strict=True)}

    def search() -> Neighbours:
        places, cosines = [], []
        for layer in found:
            features = found[layer]
            near, values = nearest(features, own[layer] if place is None else features[place], min(len(features), count + 1))
            others = near != (-1 if place is None else place)
            places.append(near[others][:count])
            cosines.append(values[others][:count])
        return Neighbours(found.layers, tuple(places), tuple(cosines))

    key = ("near", found.model.name, found.model.fingerprint, key_of_images(images), picture.key, count)
    return cached("image", key, f"{shown(name)}: neighbours", search, on_disk=False)


def nearest(features: np.ndarray, vector: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of `features` [n, p] nearest to `vector` by cosine of the centred features, and the cosines.

    The search of the k-NN probe needs classes and does not use them."""
    if len(features) < 3:
        raise MeasureError(f"nearest neighbours need three images or more, and there are {len(features)}")
    if not (np.isfinite(features).all() and np.isfinite(vector).all()):
        raise MeasureError("some activations are NaN or infinite, so distances are undefined")
    path = knn_path(features, np.arange(len(features)) % 2, [1], centre=True)
    places, cosines = path.neighbours(vector[None], count)
    return places[0], cosines[0]


def moves(name: str, picture: Picture, images: Images, distortion: Distortion) -> pd.DataFrame:
    """How far the distortion moves the image at every block: `move_frame` beside the chosen images; fewer of them for a network
    with a large input, so that a person who moves a slider need not wait for minutes. Raises as `neighbours`."""
    network = model(name)
    before, after = look(name, picture), look(name, picture, distortion)
    among = images if max(network.input.size[1:]) <= _SMALL_INPUT else images.sample(_FEW)
    found, own = representations(name, among), picture.image.keys[0]
    place = among.keys.index(own) if picture.place is not None and own in among.keys else None
    key = ("moves", key_of(network), key_of_images(among), picture.key, repr(distortion))
    make = lambda: move_frame(name, found, place, before, after)  # noqa: E731
    return cached("image", key, f"{shown(name)}: layer changes", make, on_disk=False)


def move_frame(name: str, found: Representations, place: int | None, before: Look, after: Look) -> pd.DataFrame:
    """One row per block: the cosine between the plain and the distorted representation of an image, each less the mean over plain
    images (as `representation_shift` has it), and the rank of the plain one among the neighbours of the distorted one.

    `place` is that of the image in the run `found`, None where it is not there."""
    rows = []
    for layer, plain, moved in zip(after.layers, before.vectors, after.vectors, strict=True):
        features = found[layer.name] if place is not None else np.concatenate([found[layer.name], plain[None]])
        places, cosines = nearest(features, moved, len(features))
        rank = int(np.flatnonzero(places == (place if place is not None else len(features) - 1))[0])
        rows.append((shown(name), layer.name, layer.depth, float(cosines[rank]), rank + 1, len(features)))
    return pd.DataFrame(rows, columns=["network", "layer", "depth", "cosine", "rank", "n"])


def same_class(found: Neighbours, at: int, label: int | None, labels: Sequence[int] | np.ndarray | None) -> int:
    """How many of the neighbours at a layer have the class of the image."""
    return 0 if labels is None else int((np.asarray(labels)[found.places[at]] == label).sum())
