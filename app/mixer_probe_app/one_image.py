"""One image in every network: the calls that the parts of the page Image share, and predictions as
bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.images import Distortion, Images, distort
from mixer_probe.invariance import (
    ImageResponse,
    NearestImages,
    image_response,
    image_shift,
    neighbours_by_layer,
)
from mixer_probe.models import Model
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.plotting.style import COLOURS
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


def look(name: str, picture: Picture, distortion: Distortion | None = None) -> ImageResponse:
    """The image, as it is or distorted, in the network `name`."""
    network = model(name)
    key = (key_of(network), picture.key, repr(distortion))
    source = picture.image if distortion is None else distort(picture.image, distortion)
    return cached(
        "image",
        key,
        f"{shown(name)}: one image",
        lambda: image_response(network, source),
        on_disk=False,
    )


# -- classes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """The names of the outputs of a network (by index, empty if nobody knows), and the outputs that
    are the classes of the images [image], None where they are not among them."""

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


def top(
    name: str, seen: ImageResponse, classes: Classes, state: str = BEFORE, count: int | None = TOP
) -> pd.DataFrame:
    """The `count` classes of highest probability (all for None), and the true one where it is
    known, by name."""
    frame, true = seen.class_frame(count, classes.true), classes.true
    label = lambda i: "unknown" if true is None else "true class" if i == true else "other class"  # noqa: E731
    names = frame["index"].map(classes.name)
    frame = frame.assign(
        network=shown(name), image=state, true=frame["index"].map(label), **{"class": names}
    )
    return frame[["network", "image", "class", "index", "probability", "logit", "rank", "true"]]


def bars(frame: pd.DataFrame) -> alt.Chart:
    """Probabilities of classes as bars; of plain and distorted images side by side, else the true
    class in its colour.

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
        "x": alt.X(
            "probability:Q", title="probability (%)", scale=alt.Scale(domain=[0, 1]), axis=axis
        ),
        "y": alt.Y(
            "class:N",
            sort=order,
            title="class",
            axis=alt.Axis(labelLimit=110, titlePadding=6, labelOverlap=False),
        ),
        "color": alt.Color("true:N", scale=colours(_LABELS), legend=None),
        "tooltip": tips(fields),
    }
    if frame["image"].nunique() > 1:
        encoding["yOffset"] = alt.YOffset("image:N", sort=[BEFORE, AFTER])
        encoding["color"] = alt.Color(
            "image:N", scale=colours({BEFORE: COLOURS[5], AFTER: COLOURS[1]}), legend=None
        )
    chart: alt.Chart = alt.Chart(frame).mark_bar(cornerRadiusEnd=2).encode(**encoding)
    return chart.properties(height=70 + 30 * len(order), padding={"right": 14})


# -- neighbours and moves --------------------------------------------------------------------------


def neighbours(name: str, picture: Picture, images: Images, count: int) -> NearestImages:
    """The `count` of `images` nearest to the image at every block. A stored run has them for its
    own images.

    Raises MeasureError for an upload in a stored run, and for fewer than three images."""
    found, image = representations(name, images), picture.place
    if image is None and name.startswith(RUN):
        raise MeasureError(
            f"{shown(name)} contains representations only and cannot process an uploaded image; "
            "choose an image of the set"
        )
    own = look(name, picture) if image is None else image
    key = (
        "near",
        found.model.name,
        found.model.fingerprint,
        key_of_images(images),
        picture.key,
        count,
    )
    search = lambda: neighbours_by_layer(found, own, count)  # noqa: E731
    return cached("image", key, f"{shown(name)}: neighbours", search, on_disk=False)


def moves(name: str, picture: Picture, images: Images, distortion: Distortion) -> pd.DataFrame:
    """How far the distortion moves the image at every block, beside the chosen images; fewer of
    them for a network with a large input, so that a person who moves a slider need not wait for
    minutes. Raises as `neighbours`."""
    network = model(name)
    before, after = look(name, picture), look(name, picture, distortion)
    among = images if max(network.input.size[1:]) <= _SMALL_INPUT else images.sample(_FEW)
    found, own = representations(name, among), picture.image.keys[0]
    place = among.keys.index(own) if picture.place is not None and own in among.keys else None
    key = ("moves", key_of(network), key_of_images(among), picture.key, repr(distortion))
    shift = lambda: image_shift(found, place, before, after)  # noqa: E731
    return cached("image", key, f"{shown(name)}: layer changes", shift, on_disk=False).assign(
        network=shown(name)
    )
