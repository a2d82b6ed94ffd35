"""What a network expects of its images, checked when it is stated."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixer_probe.core.errors import ModelError, closest

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "border", "squash")


@dataclass(frozen=True)
class InputSpec:
    """What a network expects: size (channels, height, width), normalisation, and how images are
    resized to it.

    `mean` and `std` are one number per channel, of pixels in 0..1. `crop_pct` and `crop_mode` are
    timm's: the image is resized to size / crop_pct and the centre cut out, by its shorter side
    ("center"), its longer side with a border of the mean colour ("border"), or both sides without
    keeping proportions ("squash").

    Raises ModelError for a size that is not three positive whole numbers, for anything but one
    finite mean and one positive standard deviation per channel, and for a crop_pct, interpolation
    or crop mode that timm does not know."""

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        size = check_size(self.size)
        crop = _number(self.crop_pct)
        if not 0 < crop < math.inf:
            raise ModelError(f"crop_pct must be above 0 and finite, got {self.crop_pct!r}")
        for what, word, known in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("crop mode", self.crop_mode, CROP_MODES),
        ):
            if word not in known:
                raise ModelError(f"unknown {what} '{word}'; {closest(str(word), known)}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "crop_pct", crop)
        object.__setattr__(self, "mean", _per_channel("mean", self.mean, size[0]))
        object.__setattr__(self, "std", _per_channel("std", self.std, size[0]))
        if min(self.std) <= 0:
            raise ModelError(f"std must be above 0 in every channel, got {self.std}")

    @property
    def mean_colour(self) -> tuple[float, float, float]:
        """`mean` as a colour. Raises ModelError for a network whose images are not RGB."""
        if self.size[0] != 3:
            raise ModelError(
                f"distortions need RGB input, and the network takes {self.size[0]} channels; use "
                "an RGB network"
            )
        red, green, blue = self.mean
        return red, green, blue


def check_size(value: Any) -> tuple[int, int, int]:
    """(channels, height, width). Raises ModelError for anything but three whole numbers above 0."""
    try:
        numbers = [] if isinstance(value, str) else [operator.index(v) for v in value]
    except TypeError:
        numbers = []
    if len(numbers) != 3 or min(numbers) < 1:
        raise ModelError(
            "input_size is (channels, height, width), three whole numbers above 0, not "
            f"{_shown(value)}"
        )
    return numbers[0], numbers[1], numbers[2]


def _per_channel(name: str, value: Any, channels: int) -> tuple[float, ...]:
    try:
        numbers = tuple(_number(v) for v in value) if not isinstance(value, str) else ()
    except TypeError:
        numbers = ()
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        example = ", ".join(["0.5"] * channels) + ("," if channels == 1 else "")
        raise ModelError(
            f"{name} is one finite number per channel, such as ({example}), not {_shown(value)}"
        )
    return numbers


def _number(value: Any) -> float:
    """`value` as a float, NaN for what is no number."""
    try:
        return math.nan if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _shown(value: Any) -> str:
    return (
        str(tuple(value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else repr(value)
    )


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """RGB means or standard deviations for a network of another number of channels, as timm changes
    RGB weights for it.

    timm adds up the weights for 1 channel, which sees grey: here the average. For other numbers it
    repeats them in order."""
    if len(values) == channels or not len(values):
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))
