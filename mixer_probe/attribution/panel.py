"""A panel: maps of several networks and methods for a few images, with the images that a figure of
them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image

from mixer_probe.attribution.attributions import Attribution
from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.images import Images
from mixer_probe.images.classes import class_name
from mixer_probe.models.layer import Layer

# A few extreme pixels would leave the rest of a map invisible.
QUANTILE = 0.99
# Pictures of a panel are stored no larger.
_MOST_PIXELS = 640
_LEVELS = 127
_PER_IMAGE = (
    "targets",
    "predicted",
    "labels",
    "logit",
    "logit_difference",
    "convergence_delta",
    "steps",
)


@dataclass(frozen=True)
class AttributionPanel(Result):
    """Maps of every (network, method) pair, the columns, for the same images.

    `pictures` are the original images, uint8 RGB [h, w, 3], reduced where a side has more than 640
    px; `sizes` [image, 2] are their own (width, height). `scaled` has one int8 array [image, H, W]
    per column: 127 is the 99th percentile of the map's magnitudes, `scale` [column, image], at
    which maps are clipped. `targets`, `predicted`, `logit`, `logit_difference`,
    `convergence_delta`, `steps` and `labels` are [column, image], as `Attribution` has them, and so
    are `target_names` and `predicted_names`; `true_names` [image] are the class names of the
    images, empty where they have none. Over all images of the attributions, `n_images`, not only
    those shown, count `empty` [column] maps that are zero everywhere, and `largest_gap` [column] is
    the largest |convergence delta| ÷ |logit difference|, NaN for methods without completeness, and
    `largest_change` [column] the largest fraction of its magnitudes by which more steps may change
    a map, NaN without integration."""

    title: ClassVar[str] = "Attribution maps"
    frame = Frame(
        "map image",
        """model=models.name method=methods layer=layers.name baseline=baselines image=ids
        target=target_names predicted=predicted_names logit logit_difference convergence_delta
        relative_delta steps""",
    )

    models: Annotated[tuple[ModelRecord, ...], "map"]
    methods: Annotated[tuple[str, ...], "map"]
    texts: Annotated[tuple[str, ...], "map"]
    signed: Annotated[tuple[bool, ...], "map"]
    layers: Annotated[tuple[Layer | None, ...], "map"]
    baselines: Annotated[tuple[str, ...], "map"]
    crop_pct: Annotated[tuple[float, ...], "map"]
    crop_mode: Annotated[tuple[str, ...], "map"]
    images: ImagesRecord
    n_images: int
    ids: Annotated[tuple[str, ...], "image"]
    labels: Annotated[np.ndarray, "map", "image"]
    true_names: Annotated[tuple[str, ...], "image?"]
    target_names: Annotated[tuple[tuple[str, ...], ...], "map", "image"]
    predicted_names: Annotated[tuple[tuple[str, ...], ...], "map", "image"]
    sizes: Annotated[np.ndarray, "image", 2]
    pictures: Annotated[tuple[np.ndarray, ...], "image", "height", "width", 3]
    scaled: Annotated[tuple[np.ndarray, ...], "map", "image", "row", "column"]
    scale: Annotated[np.ndarray, "map", "image"]
    targets: Annotated[np.ndarray, "map", "image"]
    predicted: Annotated[np.ndarray, "map", "image"]
    logit: Annotated[np.ndarray, "map", "image"]
    logit_difference: Annotated[np.ndarray, "map", "image"]
    convergence_delta: Annotated[np.ndarray, "map", "image"]
    steps: Annotated[np.ndarray, "map", "image"]
    empty: Annotated[np.ndarray, "map"]
    largest_gap: Annotated[np.ndarray, "map"]
    largest_change: Annotated[np.ndarray, "map"]

    @property
    def relative_delta(self) -> Annotated[np.ndarray, "map", "image"]:
        """|convergence delta| ÷ |logit difference| [column, image]; NaN for methods without
        completeness."""
        with np.errstate(divide="ignore", invalid="ignore"):
            delta: np.ndarray = np.abs(self.convergence_delta) / np.abs(self.logit_difference)
        return delta

    def scaled_map(self, column: int, image: int) -> np.ndarray:
        """A map [H, W] from -1 to 1, in units of the 99th percentile of its magnitudes."""
        values: np.ndarray = self.scaled[column][image] / _LEVELS
        return values

    def take(self, rows: Sequence[int]) -> AttributionPanel:
        """The panel of some of its images, in that order."""
        return select(self, "image", rows)


def attribution_panel(
    attributions: Sequence[Attribution],
    images: Images,
    *,
    indices: Sequence[int] | None = None,
) -> AttributionPanel:
    """A panel of attributions of `images` by one or several networks and methods, for the first
    four or those at `indices`.

    Raises MeasureError for no attribution, attributions of other images, and indices that do not
    exist."""
    rows = list(indices if indices is not None else range(min(4, len(images))))
    if not attributions:
        raise MeasureError("give at least one attribution to draw")
    if not isinstance(images, Images):
        raise ImagesError(f"images must come from load_images, not from a {type(images).__name__}")
    if any(a.images.pictures != images.record.pictures for a in attributions):
        raise MeasureError("the attributions were computed on other images than those given")
    if any(not 0 <= i < len(images) for i in rows):
        raise MeasureError(f"indices are 0 to {len(images) - 1}, not {rows}")
    opened = [images[i] for i in rows]
    pictures = []
    for picture in opened:
        scale = min(_MOST_PIXELS / max(picture.size), 1)
        width, height = (max(1, round(n * scale)) for n in picture.size)
        pictures.append(
            np.asarray(
                picture if scale == 1 else picture.resize((width, height), Image.Resampling.LANCZOS)
            )
        )
    limits = np.stack([[limit_of(a.maps[i]) for i in rows] for a in attributions])
    clipped = [
        np.clip(a.maps[rows] / limit[:, None, None], -1, 1)
        for a, limit in zip(attributions, limits, strict=True)
    ]
    classes = (
        ()
        if images.labels is None or images.class_names is None
        else [images.labels[i] for i in rows]
    )
    return AttributionPanel(
        models=tuple(a.model for a in attributions),
        methods=tuple(a.method for a in attributions),
        texts=tuple(a.text for a in attributions),
        signed=tuple(a.signed for a in attributions),
        layers=tuple(a.layer for a in attributions),
        baselines=tuple(a.baseline for a in attributions),
        crop_pct=tuple(a.crop_pct for a in attributions),
        crop_mode=tuple(a.crop_mode for a in attributions),
        images=images.record,
        n_images=len(images),
        ids=tuple(images.ids[i] for i in rows),
        true_names=tuple(class_name(int(k), images.class_names) for k in classes),
        target_names=tuple(_named(a.targets, a.target_names, rows) for a in attributions),
        predicted_names=tuple(_named(a.predicted, a.predicted_names, rows) for a in attributions),
        sizes=np.array([picture.size for picture in opened]),
        pictures=tuple(pictures),
        scaled=tuple(np.rint(_LEVELS * one).astype(np.int8) for one in clipped),
        scale=limits,
        empty=np.array([int(a.empty.sum()) for a in attributions]),
        largest_gap=np.array([a.relative_delta.max() for a in attributions]),
        largest_change=np.array([a.change.max() for a in attributions]),
        **{name: np.stack([getattr(a, name)[rows] for a in attributions]) for name in _PER_IMAGE},
    )


def _named(outputs: np.ndarray, names: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
    """Class names of the outputs of these images; numbers where they have no names."""
    return tuple(names[i] if names else f"class {outputs[i]}" for i in rows)


def limit_of(values: np.ndarray) -> float:
    """The magnitude at full colour: the 99th percentile, or the largest where that is zero; 1 for
    an empty map."""
    size = np.abs(values)
    return float(np.quantile(size, QUANTILE) or size.max() or 1.0)
