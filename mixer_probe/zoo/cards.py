"""The card of a bundled network: what it is, how it was trained, its accuracy, and how to train it
again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mixer_probe.core.errors import CheckpointError, ModelError, closest

CHECKPOINTS = Path(__file__).parent / "checkpoints"
FAMILIES = ("mixer", "vit", "resnet")
SEEDS = (0, 1)
NAMES = tuple(f"{family}-s{seed}" for family in FAMILIES for seed in SEEDS)

INPUT_SIZE = (3, 32, 32)
# The channel statistics of the CIFAR-10 training images, in [0, 1].
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class Card:
    """What is known of one bundled network.

    `architecture` holds timm's class, its keyword arguments and the modules replaced after
    construction. `initial_norm` is the L2 norm of all initial parameters, which `build(name)` has
    to give again. `test_accuracy` is a fraction of `test_images`, measured in float32 on the
    weights as they are stored (rounded to float16), from the average of the weights over the last
    steps of the training and not from any step chosen by its accuracy. `seconds` is the time of the
    training (0: not recorded).
    """

    name: str
    architecture: Mapping[str, Any]
    parameters: int
    data: str
    data_note: str
    recipe: Mapping[str, Any]
    seed: int
    epochs: int
    initial_norm: float
    test_accuracy: float
    test_images: int
    test_note: str
    sha256: str
    machine: str
    torch_version: str
    timm_version: str
    command: str
    seconds: float = 0.0
    input_size: tuple[int, int, int] = INPUT_SIZE
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    class_names: tuple[str, ...] = CLASS_NAMES

    def to_json(self) -> str:
        """The card as indented JSON text, as stored beside its checkpoint."""
        return json.dumps(asdict(self), indent=2) + "\n"


def resolve(name: str) -> str:
    """The full name of a bundled network: "mixer" is "mixer-s0". Raises `ModelError` for an unknown
    name."""
    full = f"{name}-s0" if name in FAMILIES else name
    if full not in NAMES:
        raise ModelError(f"unknown zoo network '{name}' ({closest(name, NAMES)})")
    return full


def checkpoint_path(name: str) -> Path:
    """Where the weights of the bundled network `name` are, as safetensors."""
    return CHECKPOINTS / f"{resolve(name)}.safetensors"


def card(name: str) -> Card:
    """The card of a bundled network. Raises `ModelError`, or `CheckpointError` where its file is
    missing."""
    path = checkpoint_path(name).with_suffix(".json")
    try:
        return card_from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the card of zoo network '{name}' cannot be read from {path}: {error}"
        ) from error


def card_from_json(text: str) -> Card:
    """The inverse of `Card.to_json`; JSON's lists become the tuples that `Card` declares."""
    values: dict[str, Any] = dict(json.loads(text))
    declared = {field.name for field in fields(Card) if str(field.type).startswith("tuple")}
    values.update({key: tuple(values[key]) for key in declared})
    return Card(**values)
