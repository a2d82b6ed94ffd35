"""From options to models, images and settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_probe.core.errors import MeasureError, ModelError
from mixer_probe.core.files import printable, reason

if TYPE_CHECKING:
    from mixer_probe.core.result import Result
    from mixer_probe.images import Images
    from mixer_probe.models import Model
    from mixer_probe.study import StudySettings


def chosen_layers(text: str) -> str | list[str]:
    """The value of `--layers` as `extract` takes it."""
    return text.split(",") if "," in text else text


def study_settings(layers: str, **choices: Any) -> StudySettings:
    """Settings of a study from the value of `--layers` and the other options by name."""
    from mixer_probe.study import StudySettings

    chosen = chosen_layers(layers)
    return StudySettings(chosen if isinstance(chosen, str) else tuple(chosen), **choices)


def find_images(data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int) -> Images:
    """The images that the options name. Raises ImagesError."""
    from mixer_probe.images import load_images

    return load_images(data, split=split, limit=limit, seed=seed, root=root, on_error=on_error)  # type: ignore[arg-type]


def train_and_test(
    data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int
) -> tuple[Images, Images | None]:
    """Images to look at, and images to fit probes on where the data set has its own (the bundled sample does)."""
    images = find_images(data, split, root, limit, on_error, seed)
    if data == "demo" and images.split == "test":
        return images, find_images(data, "train", root, limit, on_error, seed)
    return images, None


def model_loaders(
    names: Sequence[str],
    pretrained: bool,
    checkpoint: Sequence[str] | None,
    device: str,
    model_args: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[partial[Model]]:
    """One `load_model` a network; an unknown name is told at once. Raises ModelError."""
    from mixer_probe.models import check_name, load_model

    arguments: dict[str, dict[str, Any]] = {name: {"pretrained": pretrained, "device": device} for name in names}
    for name, file in _by_name("--checkpoint", checkpoint, names).items():
        arguments[name]["checkpoint"] = file
    for name, text in _by_name("--model-args", model_args, names).items():
        arguments[name] |= _model_arguments(text)
    for name, text in _by_name("--class-names", class_names, names).items():
        arguments[name]["class_names"] = _class_names(text)
    for name in names:
        check_name(name)
    return [partial(load_model, name, **arguments[name]) for name in names]


def check_layers(loaders: Sequence[partial[Model]], layers: str | None) -> None:
    """Raise LayerError for layers that one of the networks lacks, before any work. No weights are read."""
    if layers in (None, "blocks", "all"):
        return
    for model in _without_weights(loaders):
        model.select(chosen_layers(str(layers)))


def check_layer(loaders: Sequence[partial[Model]], name: str | None) -> None:
    """Raise LayerError for the name of a layer that one of the networks lacks, before any work. No weights are read."""
    for model in _without_weights(loaders if name is not None else ()):
        model.layer(str(name))


def _without_weights(loaders: Sequence[partial[Model]]) -> Iterator[Model]:
    """The networks that can be built, untrained."""
    for load in loaders:
        with suppress(ModelError):  # told when it is loaded
            yield partial(load, pretrained=False, checkpoint=None)()


def _by_name(option: str, values: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Values of an option that is given as MODEL=VALUE, or as VALUE for the only model there is."""
    found: dict[str, str] = {}
    for text in values or ():
        name = next((n for n in sorted(names, key=len, reverse=True) if text.startswith(f"{n}=")), None)
        if name is None and len(set(names)) > 1:
            raise ModelError(
                f"{option} {text} is for one of {len(names)} models; give {option} MODEL={text} for {' or '.join(names)}"
            )
        if (name or names[0]) in found:
            raise ModelError(f"{option} is given twice for {name or names[0]}; give it once a model")
        found[name or names[0]] = text.removeprefix(f"{name}=")
    return found


# What the command line says in options of its own.
_OWN = ("model", "pretrained", "checkpoint", "device")


def _class_names(text: str) -> tuple[str, ...]:
    """Names of the outputs: the lines of a file, or the parts of a text with commas. Raises ModelError."""
    if "," in text and not os.path.isfile(text):
        names = text.split(",")
    else:
        try:
            names = Path(text).read_text(encoding="utf-8").strip("\n").split("\n")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"--class-names is a text file with one name a line, or names with commas, one for each output in order; "
                f"{printable(text)} is neither ({reason(error) if isinstance(error, OSError) else 'it is no UTF-8 text'})"
            ) from error
    found = tuple(name.strip() for name in names)
    if "" in found:
        raise ModelError(f"--class-names: name {found.index('') + 1} of {len(found)} is empty; give one for each output in order")
    return found


def _model_arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(name in found for name in _OWN):
        raise ModelError(
            f"""--model-args takes arguments of timm as a JSON object, such as '{{"patch_size": 8}}', without those that are """
            f"options of their own ({', '.join(_OWN)}), not {text}"
        )
    return found


def check_any(results: Sequence[Result]) -> None:
    """Raise MeasureError, with the first reason, where nothing but skipped analyses is left."""
    from mixer_probe.core.skipped import Skipped

    skipped = [r.reason for r in results if isinstance(r, Skipped)]
    if skipped and len(skipped) == len(results):
        raise MeasureError(skipped[0])
