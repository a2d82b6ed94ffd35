"""`Recipe`: all settings of a training run but its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from mixer_probe.core.errors import ModelError, closest
from mixer_probe.core.switches import seeded
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import Distortion
from mixer_probe.models.build import build
from mixer_probe.training.augmentation import Augmentation
from mixer_probe.zoo.architectures import ARCHITECTURES, construct

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("bfloat16", "float32")


@checked(ModelError)
@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The learning rate warms up linearly, then falls to zero along a
    half cosine.

    network: one of the bundled architectures (`zoo.architectures`) or the name of a timm network;
    arguments: keyword arguments that replace those of the architecture; seed: that of the initial
    weights, the order of images and the augmentations. frozen: parts of parameter names, such as
    "mlp_tokens", that keep their initial values. distortion: done to every image after the
    augmentations, in training and in tests (what is random for each image, by its place among the
    images). warmup: fraction of all steps in which the learning
    rate rises; unmixed: fraction of the epochs, at the end, without mixup and CutMix; ema_decay:
    that of the average of weights and BatchNorm statistics, which is tested and stored (0: the
    weights themselves); checkpoints: how many checkpoints, at steps with equal ratios, next to the
    untrained and the final network; curve_images: test images of the training curve (the final
    accuracy is of all); significant_bits: those of stored
    weights, at most the 11 of float16; files with fewer compress better."""

    network: str = "mixer"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    frozen: tuple[str, ...] = ()
    distortion: Distortion | None = None
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    epochs: int = 130
    batch_size: int = 512
    warmup: float = 0.05
    unmixed: float = 0.1
    label_smoothing: float = 0.1
    gradient_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "bfloat16"
    checkpoints: int = 0
    curve_images: int = 1000
    significant_bits: int = 11
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))
        object.__setattr__(self, "frozen", tuple(self.frozen))
        choices = {"optimizer": OPTIMIZERS, "precision": PRECISIONS}
        for name, known in choices.items():
            given = getattr(self, name)
            if given not in known:
                raise ModelError(f"unknown {name} '{given}' ({closest(given, known)})")
        if not 1 <= self.significant_bits <= 11:
            raise ModelError(f"significant_bits is from 1 to 11, not {self.significant_bits}")
        for name in ("warmup", "unmixed", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"{name} is a fraction from 0 to 1, not {getattr(self, name)}")
        try:
            json.dumps(dict(self.arguments))
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"arguments are plain data that JSON can hold, not {dict(self.arguments)!r}"
            ) from error

    def build(self, num_classes: int) -> nn.Module:
        """The network before its training: float32, in train mode, on the CPU, the same for the
        same recipe. Raises ModelError for an unknown network or argument, and for `frozen` names
        that no parameter has."""
        if not self.is_bundled and not timm.is_model(self.network):
            known = [*ARCHITECTURES, *timm.list_models()]
            raise ModelError(f"unknown network '{self.network}' ({closest(self.network, known)})")
        arguments = {"num_classes": num_classes, **self.arguments}
        try:
            if self.is_bundled:
                model = construct(self.network, self.seed, arguments)
            else:
                with seeded(self.seed), torch.device("cpu"):
                    model = build(self.network, **arguments).float()
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise ModelError(
                f"{self.network} cannot be built with {given}: {first_line(error)}"
            ) from error
        names = [name for name, _ in model.named_parameters()]
        for part in self.frozen:
            if not any(part in name for name in names):
                raise ModelError(f"no parameter of {self.network} has '{part}' in its name")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in self.frozen))
        return model

    @property
    def is_bundled(self) -> bool:
        """Whether the network is one of the bundled architectures."""
        return self.network in ARCHITECTURES

    def architecture(self, model: nn.Module, num_classes: int) -> dict[str, Any]:
        """What a card says of a network that `build` gave: its class, all arguments that are not
        timm's own, and what of timm's class was replaced."""
        stated = ARCHITECTURES.get(self.network, {"network": self.network, "arguments": {}})
        arguments = {**stated["arguments"], "num_classes": num_classes, **self.arguments}
        name = f"{type(model).__module__}.{type(model).__name__}"
        return {**stated, "class": name, "arguments": arguments}

    def settings(self) -> dict[str, Any]:
        """Every setting as plain data that JSON can hold; a distortion by its `repr`."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["arguments"] = dict(self.arguments)
        found["augmentation"] = asdict(self.augmentation)
        found["distortion"] = None if self.distortion is None else repr(self.distortion)
        # As read back from a file: tuples become lists.
        settings: dict[str, Any] = json.loads(json.dumps(found))
        return settings


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> str:
    """The first setting that differs, with both values, as text; "" if none does."""
    for name in dict.fromkeys([*now, *before]):
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            if deeper := first_difference(was, is_, f"{path}{name}."):
                return deeper
        elif was != is_:
            return f"{path}{name} was {was!r} and is {is_!r}"
    return ""


def first_line(error: Exception) -> str:
    """The first line of an error of torch or timm, which may go on for many."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def checkpoint_steps(steps: int, n: int) -> tuple[int, ...]:
    """The steps after which a checkpoint is stored: 0, at most `n` at equal ratios from 1 on, and
    the last one; for n = 0 none."""
    if n == 0:
        return ()
    spaced = np.geomspace(1, steps, n).round().astype(int)
    return tuple(sorted({0, steps, *spaced.tolist()}))
