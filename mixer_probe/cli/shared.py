"""From options to models, images and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_probe.errors import ImagesError, MeasureError, StoreError

if TYPE_CHECKING:
    from mixer_probe.images import Images
    from mixer_probe.models import Model
    from mixer_probe.report import StudySettings
    from mixer_probe.results import Result


def chosen_layers(text: str) -> str | list[str]:
    """The value of `--layers` as `extract` takes it."""
    return text.split(",") if "," in text else text


def study_settings(layers: str, **choices: Any) -> StudySettings:
    """Settings of a study from the value of `--layers` and the other options by name."""
    from mixer_probe.report import StudySettings

    chosen = chosen_layers(layers)
    return StudySettings(chosen if isinstance(chosen, str) else tuple(chosen), **choices)


def find_images(data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int) -> Images:
    """The images that the options name. Raises ImagesError."""
    from mixer_probe.images import load_images

    if on_error not in ("raise", "skip"):
        raise ImagesError(f"--on-error is raise or skip, not '{on_error}'")
    return load_images(data, split=split, limit=limit, seed=seed, root=root, on_error=on_error)  # type: ignore[arg-type]


def train_and_test(
    data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int
) -> tuple[Images, Images | None]:
    """Images to look at, and images to fit probes on where the data set has its own (the bundled sample does)."""
    images = find_images(data, split, root, limit, on_error, seed)
    if data == "demo" and images.split == "test":
        return images, find_images(data, "train", root, limit, on_error, seed)
    return images, None


def model_loaders(names: Sequence[str], pretrained: bool, checkpoint: Path | None, device: str) -> list[Callable[[], Model]]:
    """One function a network that loads it; an unknown name is told at once. Raises ModelError, StoreError."""
    from mixer_probe.models import check_name, load_model

    if checkpoint is not None and len(names) > 1:
        raise StoreError(f"--checkpoint is for one model, and {len(names)} are given")
    for name in names:
        check_name(name)
    return [partial(load_model, name, pretrained=pretrained, checkpoint=checkpoint, device=device) for name in names]


def without_gaps(results: Sequence[Result], anything: bool) -> list[Result]:
    """The results; what was asked for by name and left out is an error, unless `anything` that works is wanted."""
    from mixer_probe.report.skipped import Skipped

    skipped = [r for r in results if isinstance(r, Skipped)]
    if skipped and not (anything and len(skipped) < len(results)):
        raise MeasureError(skipped[0].reason)
    return list(results)
