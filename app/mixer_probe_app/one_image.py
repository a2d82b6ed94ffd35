"""What networks make of one image: what they predict, how large its activations are, what is near it, how far it moves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

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
from mixer_probe_app.analyses import key_of, key_of_images, representations
from mixer_probe_app.choice import shown
from mixer_probe_app.pictures import Picture
from mixer_probe_app.store import made, model

TOP = 5
TRUE_COLOUR, OTHER_COLOUR = "#009E73", "#8A8A8A"
BEFORE, AFTER = "plain", "distorted"
# In px; a network with a larger input takes a tenth of a second an image or more.
_SMALL_INPUT, _FEW = 64, 32


@dataclass(frozen=True)
class Look:
    """One image in one network: means over positions of every block (`vectors`), the size of the activations at every position
    (`norms`, 2-norms over channels, on the layer's grid where it has one), and the logits, None without a classifier."""

    layers: tuple[Layer, ...]
    vectors: tuple[np.ndarray, ...]
    norms: tuple[np.ndarray, ...]
    logits: np.ndarray | None

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits [class]."""
        found: np.ndarray = softmax(np.asarray(self.logits, dtype=np.float64))
        return found


def look(name: str, picture: Picture, distortion: Distortion | None = None) -> Look:
    """What the network `name` makes of the image, as it is or distorted."""
    network = model(name)
    key = (key_of(network), picture.key, repr(distortion))
    source = picture.image if distortion is None else distort(picture.image, distortion)
    return made("image", key, f"{shown(name)}: one image", lambda: _look(network, source), keep=False)


def _look(network: Model, source: Images | DistortedImages) -> Look:
    blocks = [layer for layer in network.layers if layer.kind == "block"]
    heads = _heads(network)
    found = mp.extract(network, source, [*(b.name for b in blocks), *heads], reduce="none", batch_size=1)
    positions = [np.asarray(found[b.name][0], dtype=np.float64) for b in blocks]
    norms = [np.linalg.norm(values, axis=-1) for values in positions]
    return Look(
        tuple(blocks),
        tuple(values.reshape(-1, values.shape[-1]).mean(axis=0) for values in positions),
        tuple(norm.reshape(b.grid or (1, -1)) for norm, b in zip(norms, blocks, strict=True)),
        np.mean([found[head][0] for head in heads], axis=0) if heads else None,
    )


def _heads(network: Model) -> list[str]:
    """The layers whose outputs are the logits; a distilled network has two, and says their mean."""
    classes = getattr(network.module, "num_classes", None)
    heads = [layer.name for layer in network.layers if layer.kind == "head" and layer.channels == classes]
    if heads and hasattr(network.module, "head_dist"):
        heads.append("head_dist")
    return heads


# -- classes -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """What the outputs of a network are called (by index, empty if nobody knows), and which of them the labels of the images mean
    [image], None where they are not among them."""

    names: tuple[str, ...]
    labels: np.ndarray | None

    @property
    def true(self) -> int | None:
        """The output that is the class of the first image."""
        return None if self.labels is None else int(self.labels[0])

    def name(self, index: int) -> str:
        """What a class is called."""
        return self.names[index] if index < len(self.names) else f"class {index}"


def classes_of(network: Model, images: Images | None) -> Classes:
    """The classes of a network, beside those of the images."""
    labels = None if images is None else images.labels
    theirs = () if images is None or labels is None else (images.class_names, labels.tobytes())
    key = (key_of(network), network.class_names, theirs)
    return made("classes", key, "Matching classes", lambda: _classes(network, images), keep=False, tell=False)


def _classes(network: Model, images: Images | None) -> Classes:
    names: tuple[str, ...] = ()
    try:
        names = outputs_of(network).names
        return Classes(names, None if images is None else labels_as_outputs(network, images))
    except (ImagesError, MeasureError):
        return Classes(names, None)


def top(name: str, seen: Look, classes: Classes, state: str = BEFORE, count: int = TOP) -> pd.DataFrame:
    """The `count` classes of highest probability, and the true one where it is known, a row each."""
    values = seen.probabilities
    order = np.argsort(-values, kind="stable")
    chosen = [int(i) for i in order[:count]]
    true = classes.true
    if true is not None and true not in chosen:
        chosen.append(true)
    return pd.DataFrame([_row(name, seen, classes, i, true, state, int(np.flatnonzero(order == i)[0]) + 1) for i in chosen])


def _row(name: str, seen: Look, classes: Classes, i: int, true: int | None, state: str, rank: int) -> dict[str, object]:
    assert seen.logits is not None
    return {
        "network": shown(name),
        "image": state,
        "class": classes.name(i),
        "index": i,
        "probability": float(seen.probabilities[i]),
        "logit": float(seen.logits[i]),
        "rank": rank,
        "true": "unknown" if true is None else ("true class" if i == true else "other class"),
    }


def says_nothing(seen: Look) -> bool:
    """Whether all logits are equal, as those of timm's untrained Mixers, whose head is zero."""
    return seen.logits is not None and bool(np.ptp(seen.logits) == 0)


# -- neighbours and moves ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """The images nearest to one, for every layer: `places` and `cosines` [layer, k], the nearest first."""

    layers: tuple[Layer, ...]
    places: tuple[np.ndarray, ...]
    cosines: tuple[np.ndarray, ...]


def neighbours(name: str, picture: Picture, images: Images, count: int) -> Neighbours:
    """The `count` of `images` nearest to the image at every block, itself left out: by cosine of the means over positions, less
    their mean over the images. A stored run has them for its own images.

    Raises MeasureError for an upload in a stored run, and for fewer than three images."""
    found = representations(name, images)
    own = None if picture.place is not None else _vectors(name, picture)
    key = (found.model.name, found.model.fingerprint, key_of_images(images), picture.key, count)
    return made("image", ("near", key), f"{shown(name)}: neighbours", lambda: _near(found, picture.place, own, count), keep=False)


def _vectors(name: str, picture: Picture) -> dict[str, np.ndarray]:
    if name.startswith("run:"):
        raise MeasureError(
            f"{shown(name)} contains representations only and cannot process an uploaded image; choose an image of the set"
        )
    seen = look(name, picture)
    return {layer.name: vector for layer, vector in zip(seen.layers, seen.vectors, strict=True)}


def _near(found: Representations, place: int | None, own: dict[str, np.ndarray] | None, count: int) -> Neighbours:
    pairs = [_nearest(found[name], found[name][place] if own is None else own[name], place, count) for name in found]
    return Neighbours(found.layers, tuple(p for p, _ in pairs), tuple(c for _, c in pairs))


def _nearest(features: np.ndarray, vector: np.ndarray, place: int | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    places, cosines = _sorted(features, vector, min(len(features), count + 1))
    others = places != (-1 if place is None else place)
    return places[others][:count], cosines[others][:count]


def _sorted(features: np.ndarray, vector: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `features` nearest to `vector`, and their cosines. The search of the k-NN probe needs classes and does not
    use them."""
    if len(features) < 3:
        raise MeasureError(f"nearest neighbours need three images or more, and there are {len(features)}")
    if not (np.isfinite(features).all() and np.isfinite(vector).all()):
        raise MeasureError("some activations are NaN or infinite, so distances are undefined")
    path = knn_path(features, np.arange(len(features)) % 2, [1], centre=True)
    places, cosines = path.neighbours(vector[None], count)
    return places[0], cosines[0]


def moves(name: str, picture: Picture, images: Images, distortion: Distortion) -> pd.DataFrame:
    """How far the distortion moves the image at every block, a row each: the cosine between its plain and its distorted
    representation, each less the mean over the plain `images` (as `representation_shift` has it), and which neighbour of the
    distorted image its plain one is. Raises as `neighbours`."""
    before, after = look(name, picture), look(name, picture, distortion)
    among = reference(model(name), images)
    found = representations(name, among)
    own = picture.image.keys[0]
    place = among.keys.index(own) if picture.place is not None and own in among.keys else None
    key = (key_of(model(name)), key_of_images(among), picture.key, repr(distortion))
    make = lambda: _moves(name, found, place, before, after)  # noqa: E731
    return made("image", ("moves", key), f"{shown(name)}: layer changes", make, keep=False)


def reference(network: Model, images: Images) -> Images:
    """The images whose mean stands for what all images have in common: fewer for a large network, so that a person who moves a
    slider need not wait for minutes."""
    return images if max(network.input.size[1:]) <= _SMALL_INPUT else images.sample(_FEW)


def _moves(name: str, found: Representations, place: int | None, before: Look, after: Look) -> pd.DataFrame:
    rows = []
    for layer, plain, moved in zip(after.layers, before.vectors, after.vectors, strict=True):
        features = found[layer.name] if place is not None else np.concatenate([found[layer.name], plain[None]])
        own = place if place is not None else len(features) - 1
        places, cosines = _sorted(features, moved, len(features))
        rank = int(np.flatnonzero(places == own)[0])
        rows.append((shown(name), layer.name, layer.depth, float(cosines[rank]), rank + 1, len(features)))
    return pd.DataFrame(rows, columns=["network", "layer", "depth", "cosine", "rank", "n"])


def sizes(name: str, seen: Look) -> pd.DataFrame:
    """The mean size of the activations at the positions of every block, a row each."""
    rows = [
        (shown(name), layer.name, layer.depth, float(norm.mean()), float(norm.max()), norm.size, layer.channels)
        for layer, norm in zip(seen.layers, seen.norms, strict=True)
    ]
    return pd.DataFrame(rows, columns=["network", "layer", "depth", "norm", "largest", "positions", "channels"])


def at_depth(layers: Sequence[Layer], depth: float) -> int:
    """The block nearest to a relative depth."""
    return int(np.argmin([abs(layer.depth - depth) for layer in layers]))


# -- charts ------------------------------------------------------------------------------------------------------------------


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a chosen network, the same in all charts of the page, by what it is called."""
    return {shown(name): COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def bars(frame: pd.DataFrame) -> alt.Chart:
    """Probabilities of classes as bars; of plain and distorted images side by side, else the true class in its colour."""
    order = list(dict.fromkeys(frame.sort_values("probability", ascending=False)["class"]))
    states = list(dict.fromkeys(frame["image"]))
    encoding = {
        "x": alt.X(
            "probability:Q", title="probability (%)", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", tickCount=3)
        ),
        "y": alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=110, titlePadding=6, labelOverlap=False)),
        "tooltip": _class_tooltip(),
    }
    if len(states) > 1:
        encoding["yOffset"] = alt.YOffset("image:N", sort=[BEFORE, AFTER])
        encoding["color"] = _colour("image", {BEFORE: COLOURS[5], AFTER: COLOURS[1]})
    else:
        known = {"true class": TRUE_COLOUR, "other class": OTHER_COLOUR, "unknown": COLOURS[0]}
        encoding["color"] = _colour("true", known)
    chart: alt.Chart = alt.Chart(frame).mark_bar(cornerRadiusEnd=2).encode(**encoding)
    return chart.properties(height=70 + 30 * len(order), padding={"right": 14})


def _colour(field: str, scale: dict[str, str]) -> alt.Color:
    """Without a legend, which a narrow column would cut; the caption says what the colours are."""
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=[*scale], range=[*scale.values()]), legend=None)


def _class_tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("network:N"),
        alt.Tooltip("image:N"),
        alt.Tooltip("class:N"),
        alt.Tooltip("probability:Q", format=".2%"),
        alt.Tooltip("logit:Q", format=".2f"),
        alt.Tooltip("rank:Q", title="rank among all classes"),
        alt.Tooltip("true:N", title="label"),
    ]


def curves(
    frame: pd.DataFrame,
    field: str,
    title: str,
    scale: dict[str, str],
    tips: dict[str, str],
    *,
    log: bool = False,
    band: tuple[str, str] | None = None,
) -> alt.LayerChart:
    """A line a network over relative depth, a point a block; `tips` are more columns for the tooltip, by what they are called,
    `band` the columns of an interval."""
    low = min(0.0, float(frame[field].min())) if len(frame) else 0.0
    across = (
        alt.Scale(type="log", nice=False, padding=12) if log else alt.Scale(domain=[round(low - 0.05, 1) if low < 0 else 0, 1])
    )
    base = alt.Chart(frame).encode(
        x=alt.X("depth:Q", title="relative depth", scale=alt.Scale(domain=[0, 1], nice=False), axis=alt.Axis(tickCount=5)),
        color=alt.Color(
            "network:N",
            scale=alt.Scale(domain=[*scale], range=[*scale.values()]),
            legend=alt.Legend(title="network", orient="top", symbolType="circle", symbolOpacity=1, labelLimit=240),
        ),
    )
    ticks = _decades(frame[field]) if log else None
    y = alt.Y(f"{field}:Q", title=title, scale=across, axis=alt.Axis(values=ticks) if ticks else alt.Axis(tickCount=6))
    parts = [
        base.mark_line().encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, tooltip=_tips(field, tips)),
    ]
    if band is not None:
        parts.insert(
            0, base.mark_area(opacity=0.18).encode(y=alt.Y(f"{band[0]}:Q", title=title, scale=across), y2=f"{band[1]}:Q")
        )
    return alt.layer(*parts).properties(height=340)


def _decades(values: pd.Series) -> list[float]:
    """1, 3, 10, 30 and so on around the values, which is as many lines as a reader wants."""
    positive = values[values > 0]
    if positive.empty:
        return []
    powers = range(int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max()))) + 1)
    return [float(step * 10.0**power) for power in powers for step in (1, 3)]


def _tips(field: str, tips: dict[str, str]) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("network:N"),
        alt.Tooltip("layer:N"),
        alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
        alt.Tooltip(f"{field}:Q", format=".3f"),
        *(alt.Tooltip(f"{column}:Q", title=title, format=".4~g") for column, title in tips.items()),
    ]


def key_of_all(names: Sequence[str]) -> tuple[Hashable, ...]:
    """What tells these networks from all others."""
    return tuple(key_of(model(name)) for name in names)
