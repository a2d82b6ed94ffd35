"""`AttributionSettings`: methods, target class, and the budget of attributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mixer_probe.attribution.methods import find_method
from mixer_probe.attribution.network import Target
from mixer_probe.core.errors import ImagesError, MeasureError, closest
from mixer_probe.core.validate import checked
from mixer_probe.images import Images
from mixer_probe.images.classes import spelled
from mixer_probe.models import Model
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.stats import FEWEST

# One of each kind: a gradient, complete sums, noisy gradients, occlusion, and maps of a late layer.
DEFAULT_METHODS = (
    "saliency",
    "integrated_gradients",
    "smoothgrad",
    "occlusion",
    "gradcam",
    "gradient_attention",
)
GRADIENTS = ("saliency", "input_x_gradient", "gradcam", "gradient_attention")
CHEAP = (*GRADIENTS, "attention_rollout")


@dataclass(frozen=True)
class Budget:
    """How much computation attributions get.

    `methods` where none are named, the `options` of each, the `grid` of patches that are removed
    and compared (None for the network's own), `steps` and `orders` of deletion and insertion,
    `removals` of infidelity, `noises` of sensitivity and the methods that have it
    (`sensitivity_of`, None for all), the methods whose weights are `randomised`, in how many
    `draws` and steps of a `cascade` (None for one per block), `windows` of occlusion along a side
    (None for the grid's), and the options of `conductance`.

    What takes more than one gradient per image uses `few` of the images, None for all. `skipped`
    analyses are not computed."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    steps: int = 32
    orders: int = 8
    removals: int = 64
    noises: int = 8
    sensitivity_of: tuple[str, ...] | None = None
    randomised: tuple[str, ...] | None = None
    draws: int = 5
    cascade: int | None = None
    windows: int | None = None
    few: int | None = None
    conductance: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


THOROUGH = Budget()
# For reports of small networks: one grid for all, so that their numbers can be compared.
QUICK = Budget(
    methods=("saliency", "integrated_gradients", "occlusion", "gradcam", "gradient_attention"),
    options={
        "integrated_gradients": {"n_steps": 6, "max_steps": 96, "tolerance": 0.05, "change": 0.1}
    },
    grid=(8, 8),
    steps=4,
    orders=2,
    removals=16,
    noises=2,
    sensitivity_of=("saliency", "gradcam"),
    randomised=("saliency", "gradcam"),
    cascade=3,
    windows=4,
    few=FEWEST,
    conductance={"n_steps": 24, "max_steps": 24, "tolerance": 0.05},
)
# For reports of networks of more than `_HEAVY` multiply-accumulates on a CPU, where a forward pass
# is a good part of a second.
FAST = replace(
    QUICK,
    methods=GRADIENTS,
    randomised=("saliency",),
    cascade=2,
    skipped=("faithfulness", "conductance"),
)
_HEAVY = 1e9
# Images of a report's attributions by methods that take one gradient per image.
_IMAGES = 50


@checked(MeasureError)
@dataclass(frozen=True)
class AttributionSettings:
    """What decides attributions besides networks and images.

    `methods` are names, or None for those of the budget that a network allows. `target` is "true",
    "predicted", "auto" (true where the images' classes are those of the network, else predicted),
    an index, or a class's name. `layer` is Grad-CAM's. `shown` images are drawn, and attributions
    are of at most `images`, None for all."""

    methods: tuple[str, ...] | None = None
    target: str = "auto"
    layer: str | None = None
    baseline: str = "grey"
    batch_size: int = 16
    seed: int = 0
    shown: int = 4
    budget: Budget = THOROUGH
    images: int | None = None


def report_settings(model: Model, seed: int) -> AttributionSettings:
    """The settings of a report whose first network is `model`: its cost decides the budget and the
    number of images."""
    if model.macs > _HEAVY and not torch.cuda.is_available():
        return AttributionSettings(seed=seed, budget=FAST, images=FEWEST)
    return AttributionSettings(seed=seed, budget=QUICK, images=_IMAGES)


def check_methods(names: Iterable[str]) -> tuple[str, ...]:
    """The names as they are, each once. Raises MeasureError for one that is no method."""
    return tuple(dict.fromkeys(find_method(name).name for name in names))


def find_target(text: str, model: Model, images: Images) -> Target:
    """What `attribute` takes for "true", "predicted", "auto", an index or a class's name.

    Raises MeasureError for an unknown name, and for "true" where the images' classes are not those
    of the network."""
    if text == "predicted" or (text == "auto" and images.class_names is None):
        return None
    if text in ("true", "auto"):
        try:
            labels_as_outputs(model, images)
        except (ImagesError, MeasureError) as error:
            if text == "auto":
                return None
            message = (
                f"no true class can be explained, for {error}; take the predicted one, an index or "
                "a name"
            )
            raise type(error)(message) from error
        return "labels"
    if text.removeprefix("-").isdecimal():
        return int(text)
    outputs = outputs_of(model)
    if not outputs.names:
        raise MeasureError(
            f"the outputs of {model.name} have no names here, so '{text}' is none of them; give "
            f"true, predicted or an index (0 to {outputs.count - 1}), or its class_names to "
            "load_model"
        )
    found = outputs.find(text)
    if found is None:
        raise MeasureError(
            f"{model.name} has no class '{text}'; {closest(spelled(text), outputs.known)} (or "
            "true, predicted, an index)"
        )
    return found
