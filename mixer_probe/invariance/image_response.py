"""One image in a network: its activations and logits, the images nearest to it, and how far a
distortion moves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics.pairwise import cosine_similarity

from mixer_probe.capture import Representations, extract
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.invariance.predictions import Source
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

# Fewer images have no direction in which one is nearer than others.
_FEWEST = 3


@dataclass(frozen=True)
class ImageResponse:
    """One image in one network: means over positions of every block (`vectors`), the 2-norms over
    channels of the activations at every position (`norms`, on the grid of the layer where it has
    one), and the logits, None without a classifier."""

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

    def norm_frame(self) -> pd.DataFrame:
        """One row per block: the mean and the largest norm over positions, and the numbers of
        positions and channels."""
        rows = [
            (
                layer.name,
                layer.depth,
                float(norm.mean()),
                float(norm.max()),
                norm.size,
                layer.channels,
            )
            for layer, norm in zip(self.layers, self.norms, strict=True)
        ]
        return pd.DataFrame(
            rows, columns=["layer", "depth", "norm", "largest", "positions", "channels"]
        )

    def class_frame(self, count: int | None = None, also: int | None = None) -> pd.DataFrame:
        """One row per class: index, probability, logit and rank, of the `count` classes of highest
        probability and of `also`."""
        values = self.probabilities
        order = np.argsort(-values, kind="stable").tolist()
        chosen = order[:count] + ([also] if also is not None and also not in order[:count] else [])
        return pd.DataFrame(
            {
                "index": chosen,
                "probability": values[chosen],
                "logit": np.asarray(self.logits, dtype=float)[chosen],
                "rank": [order.index(i) + 1 for i in chosen],
            }
        )


@dataclass(frozen=True)
class NearestImages:
    """The images nearest to one, for every layer: `places` and `cosines` [layer][k], nearest
    first."""

    layers: tuple[Layer, ...]
    places: tuple[np.ndarray, ...]
    cosines: tuple[np.ndarray, ...]

    def at(self, depth: float) -> int:
        """Index of the layer nearest to a relative depth."""
        return int(np.argmin([abs(layer.depth - depth) for layer in self.layers]))

    def class_frame(self, label: int, labels: np.ndarray) -> pd.DataFrame:
        """One row per layer: how many of the `k` nearest images have the class `label`, and the
        `fraction` of them."""
        same = [int((labels[places] == label).sum()) for places in self.places]
        frame = pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "depth": [layer.depth for layer in self.layers],
            }
        )
        frame = frame.assign(same=same, k=[len(places) for places in self.places])
        return frame.assign(fraction=frame["same"] / frame["k"])


@checked(MeasureError)
def image_response(model: Model, images: Source) -> ImageResponse:
    """The first of the `images` in a network. A distilled network has two heads, and predicts their
    mean."""
    blocks = [layer for layer in model.layers if layer.kind == "block"]
    classes = getattr(model.module, "num_classes", None)
    heads = [
        layer.name for layer in model.layers if layer.kind == "head" and layer.channels == classes
    ]
    heads += ["head_dist"] if heads and hasattr(model.module, "head_dist") else []
    found = extract(
        model, images.subset([0]), [*(b.name for b in blocks), *heads], reduce="none", batch_size=1
    )
    positions = [np.asarray(found[b.name][0], dtype=np.float64) for b in blocks]
    norms = [np.linalg.norm(values, axis=-1) for values in positions]
    return ImageResponse(
        tuple(blocks),
        tuple(values.reshape(-1, values.shape[-1]).mean(axis=0) for values in positions),
        tuple(norm.reshape(b.grid or (1, -1)) for norm, b in zip(norms, blocks, strict=True)),
        np.mean([found[head][0] for head in heads], axis=0) if heads else None,
    )


def nearest_to(
    features: np.ndarray, vector: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of `features` [n, p] nearest to `vector` by cosine of the centred features,
    and the cosines.

    Raises MeasureError for fewer than three rows, and for NaN and infinite values."""
    if len(features) < _FEWEST:
        raise MeasureError(
            f"nearest neighbours need three images or more, and there are {len(features)}"
        )
    if not (np.isfinite(features).all() and np.isfinite(vector).all()):
        raise MeasureError("some activations are NaN or infinite, so distances are undefined")
    centre = features.mean(axis=0, dtype=np.float64)
    cosines = cosine_similarity(features - centre, (vector - centre)[None])[:, 0]
    places = np.argsort(-cosines, kind="stable")[:count]
    return places, cosines[places]


def neighbours_by_layer(
    reps: Representations, image: int | ImageResponse, count: int
) -> NearestImages:
    """The `count` images of a run nearest to one image at every layer, itself left out: by cosine
    of the means over positions, less their mean over the run. The image is one of the run by its
    index, or another by its response.

    Raises MeasureError as `nearest_to`."""
    own, vectors, places, cosines = -1, {}, [], []
    if isinstance(image, ImageResponse):
        vectors = {
            layer.name: vector for layer, vector in zip(image.layers, image.vectors, strict=True)
        }
    else:
        own = image
    for layer in reps.layers:
        features = reps[layer.name]
        vector = vectors[layer.name] if vectors else features[own]
        near, values = nearest_to(features, vector, min(len(features), count + 1))
        others = near != own
        places.append(near[others][:count])
        cosines.append(values[others][:count])
    return NearestImages(reps.layers, tuple(places), tuple(cosines))


def image_shift(
    reps: Representations, image: int | None, before: ImageResponse, after: ImageResponse
) -> pd.DataFrame:
    """One row per block: the cosine between the undistorted and the distorted representation of an
    image, each less the mean over undistorted images (as `representation_shift` has it), and the
    rank of the undistorted one among the neighbours of the distorted one.

    `image` is its index in the run `reps`, None where it is not there. Raises MeasureError as
    `nearest_to`."""
    rows = []
    for layer, plain, moved in zip(after.layers, before.vectors, after.vectors, strict=True):
        features = (
            reps[layer.name]
            if image is not None
            else np.concatenate([reps[layer.name], plain[None]])
        )
        places, cosines = nearest_to(features, moved, len(features))
        rank = int(np.flatnonzero(places == (image if image is not None else len(features) - 1))[0])
        rows.append((layer.name, layer.depth, float(cosines[rank]), rank + 1, len(features)))
    return pd.DataFrame(rows, columns=["layer", "depth", "cosine", "rank", "n"])
