"""Which output of a network a class of images is, by name: what the outputs are called, and labels
as outputs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from mixer_probe.core.errors import ImagesWarning, MeasureError
from mixer_probe.core.result import ImagesRecord
from mixer_probe.core.switches import evaluating
from mixer_probe.images.classes import Labelled, imagenet_names, listed, require_labels, spelled
from mixer_probe.models.model import Model


class LabelledImages(Protocol):
    """Images that may have labels."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices [n], None without labels."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by class index."""

    @property
    def record(self) -> ImagesRecord:
        """What a result says about the images."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Outputs:
    """The `count` outputs of a network, their `names` by index (empty where they are not known),
    and the output of every name by which one is known, spelled by `spelled`."""

    count: int
    names: tuple[str, ...]
    known: dict[str, int]

    def name(self, output: int) -> str:
        """What an output is called."""
        return self.names[output] if self.names else f"class {output}"

    def find(self, name: str) -> int | None:
        """The output called `name`, None where none is, or several are."""
        return self.known.get(spelled(name))


def outputs_of(model: Model) -> Outputs:
    """The outputs of a network, counted by a forward pass of one blank image.

    Their names are `model.class_names`; else the `label_names` of its pretrained_cfg, where these
    are as many; else those of the ImageNet of so many classes (1,000, 11,821, 21,841, ... as timm
    tells them apart). An output of ImageNet is also known by its WordNet id, by all its words
    together, and by each of them that is no other class's.

    Raises MeasureError for a network without a classifier."""
    network = model.module
    blank = torch.zeros(1, *model.input.size, device=model.device, dtype=model.dtype)
    with evaluating(network), torch.no_grad():
        logits = network(blank)
    if (
        not isinstance(logits, torch.Tensor)
        or logits.ndim != 2
        or getattr(network, "num_classes", None) == 0
    ):
        raise MeasureError(
            f"{model.name} has no classifier, so none of its outputs is a class: load it with its "
            "head"
        )
    count = int(logits.shape[1])
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    stated = config.get("label_names") if hasattr(config, "get") else None
    given = model.class_names or (
        tuple(map(str, stated)) if stated and len(stated) == count else None
    )
    if given is not None:
        if len(given) != count:
            raise MeasureError(
                f"{model.name} has {count} outputs and {len(given)} class_names: give one for each "
                "output"
            )
        if not (subset := infer_imagenet_subset({"num_classes": count})) or not set(given) <= set(
            _wordnet(subset)
        ):
            return Outputs(count, given, _unique(given))
    return imagenet_outputs(count) or Outputs(count, (), {})


@cache
def _wordnet(subset: str) -> tuple[str, ...]:
    return tuple(ImageNetInfo(subset).label_names())  # type: ignore[no-untyped-call]


@cache
def imagenet_outputs(count: int) -> Outputs | None:
    """The outputs of a network for the ImageNet of so many classes, None where there is none."""
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    words = [str(text) for text in ImageNetInfo(subset).label_descriptions()]
    names, parts = (
        imagenet_names(subset),
        [[part.strip() for part in text.split(",")] for text in words],
    )
    pairs = [(part, i) for i, of in enumerate(parts) for part in set(of)]
    # What several classes are called first is none of them, though one has no other word.
    doubtful = {
        name for name, times in Counter(spelled(part[0]) for part in parts).items() if times > 1
    }
    known: dict[str, int] = {}
    # What a class is called comes before what else it may be called.
    for found in (
        _unique(names),
        _unique(_wordnet(subset)),
        _unique(words),
        _unique([part[0] for part in parts]),
        _pairs(pairs),
    ):
        known = {name: i for name, i in found.items() if name not in doubtful} | known
    return Outputs(count, names, known)


def _unique(names: Sequence[str]) -> dict[str, int]:
    return _pairs([(name, i) for i, name in enumerate(names)])


def _pairs(pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The output of each name that is one output's alone."""
    counts = Counter(spelled(name) for name, _ in pairs)
    return {spelled(name): i for name, i in pairs if counts[spelled(name)] == 1}


def labels_as_outputs(
    model: Model, images: LabelledImages, purpose: str = "the true class"
) -> np.ndarray:
    """The output [n] of the network that each image's label means, by the name of its class.

    Where all class names are numbers, such as folders "0" to "999", or there are none, the number
    is taken for the output's, with an ImagesWarning that says so.

    Raises ImagesError, which names the `purpose`, for images without labels; MeasureError for a
    network without a classifier or names, and for classes that are none of its outputs, with the
    classes of both."""
    called = f"the images ({images.record.name})"
    own = Labelled(
        require_labels(images.labels, called, purpose, len(images)), images.class_names, called
    )
    outputs = outputs_of(model)
    if own.names is not None and own.names == outputs.names:
        return own.labels
    present = own.present.tolist()
    found: list[int | None] = [
        None if own.names is None else outputs.find(own.name(k)) for k in present
    ]
    numbered = own.names is None or all(name.isascii() and name.isdecimal() for name in own.names)
    if (
        None in found
        and numbered
        and present[0] >= 0
        and max(numbers := [int(own.name(k)) for k in present]) < outputs.count
    ):
        what = "have no names" if own.names is None else "are called by numbers"
        first = f", so that {numbers[0]} is '{outputs.name(numbers[0])}'" if outputs.names else ""
        warnings.warn(
            f"the classes of {called} {what}, which are taken for the numbers of {model.name}'s "
            f"{outputs.count} outputs{first}",
            ImagesWarning,
            stacklevel=3,
        )
        found = list(numbers)
    missing = [own.name(k) for k, output in zip(present, found, strict=True) if output is None]
    if missing:
        classes, theirs = listed([own.name(k) for k in present]), listed(outputs.names)
        many = "1 class" if len(missing) == 1 else f"{len(missing)} classes"
        if not outputs.names:
            raise MeasureError(
                f"what the {outputs.count} outputs of {model.name} are called is not known, so "
                f"that the classes of {called} ({classes}) cannot be found among them: give "
                "class_names= to load_model, one for each output in order"
            )
        if len(missing) == len(present):
            raise MeasureError(
                f"none of the classes of {called} ({classes}) is among the {outputs.count} of "
                f"{model.name} ({theirs})"
            )
        raise MeasureError(
            f"{called} have {many} that {model.name} does not have among its {outputs.count}: "
            f"{listed(missing)} (the former have {classes}; the latter {theirs})"
        )
    return np.array(found, dtype=np.int64)[np.searchsorted(present, own.labels)]
