"""Small pieces of text that several sections use."""

from __future__ import annotations

from collections.abc import Iterable

from mixer_probe.figures.style import short_name
from mixer_probe.results import ImagesRecord, ModelRecord


def untrained_warning(models: Iterable[ModelRecord]) -> tuple[str, ...]:
    """One sentence that names the untrained models that are not there as the baseline of a trained one."""
    unique = list({m.name: m for m in models}.values())
    names = [m.name for m in unique if not m.trained and not m.name.endswith("?untrained")]
    if not names:
        return ()
    verb = "are" if len(names) > 1 else "is"
    return (f"{join(names)} {verb} untrained: the weights are random, so nothing shown here about them was learned.",)


def images_text(images: ImagesRecord) -> str:
    """ "1000 images of demo/test (10 classes)"."""
    split = f"/{images.split}" if images.split else ""
    classes = f", {images.classes} classes" if images.classes else ", no labels"
    skipped = f", {images.skipped} unreadable ones left out" if images.skipped else ""
    return f"{images.n} images of {images.name}{split}{classes}{skipped}"


def name_of(model: ModelRecord | None) -> str:
    """The short name of a model, and that it is untrained where the name does not say so."""
    if model is None:
        return "?"
    return short_name(model.name) + ("" if model.trained or "untrained" in model.name else " (untrained)")


def join(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def percent(share: float) -> str:
    """A share as a percentage with one digit."""
    return f"{100 * share:.1f} %"
