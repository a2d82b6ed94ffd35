"""Small pieces of text that several sections use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from mixer_probe.core.result import ImagesRecord, ModelRecord


class OfModel(Protocol):
    """A result of one network."""

    @property
    def model(self) -> ModelRecord:
        """Which network."""


M = TypeVar("M", bound=OfModel)
FAMILIES = {"mixer": "Mixer", "vit": "ViT", "cnn": "CNN"}


def base_name(name: str) -> str:
    """The name of the network of which an untrained baseline is a copy."""
    return name.removesuffix("?untrained")


def short_name(name: str) -> str:
    """A model name that fits into a figure or a sentence."""
    short = name.removeprefix("zoo:").removeprefix("hf-hub:").removeprefix("local-dir:")
    return short if len(short) <= 34 else short[:16] + "…" + short[-16:]


def untrained_warning(models: Iterable[ModelRecord]) -> tuple[str, ...]:
    """One sentence that names the untrained models that are no baseline of a trained one."""
    names = [model.name for model in studied(models) if not model.trained]
    if not names:
        return ()
    verb, them = ("are", "them") if len(names) > 1 else ("is", "it")
    return (
        f"{join(names)} {verb} untrained: the weights are random, so no result shown here for "
        f"{them} was learned.",
    )


def studied(models: Iterable[ModelRecord]) -> list[ModelRecord]:
    """The models under study: all but untrained baselines of trained networks among them."""
    unique = {m.name: m for m in models}
    return [
        m
        for name, m in unique.items()
        if m.trained or name == base_name(name) or base_name(name) not in unique
    ]


def primary(results: Sequence[M]) -> list[M]:
    """The results of the networks under study, as `studied` gives them."""
    own = studied(r.model for r in results)
    return [r for r in results if r.model in own]


def untrained_baseline(result: M, results: Sequence[M]) -> M | None:
    """The result of the untrained baseline of a network, None where there is none."""
    return next((r for r in results if r.model.name == f"{result.model.name}?untrained"), None)


def images_text(images: ImagesRecord) -> str:
    """ "1000 images of demo/test (10 classes)"."""
    split = f"/{images.split}" if images.split else ""
    classes = f", {images.classes} classes" if images.classes else ", no labels"
    skipped = f", {images.skipped} unreadable images skipped" if images.skipped else ""
    return f"{images.n} images of {images.name}{split}{classes}{skipped}"


def name_of(model: ModelRecord | None) -> str:
    """The short name of a model, and that it is untrained where the name does not say so."""
    if model is None:
        return "?"
    known = model.trained or "untrained" in model.name or model.family == "pixels"
    return short_name(model.name) + ("" if known else " (untrained)")


def join(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def first_and_more(names: Iterable[str], most: int = 1) -> str:
    """The first `most` names and how many more there are: "a, b and 3 more"."""
    items = list(names)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def percent(fraction: float) -> str:
    """A fraction as a percentage with one digit."""
    return f"{100 * fraction:.1f} %"


def interval(value: float, low: float, high: float) -> str:
    """ "61.0 % [58.0 %, 63.9 %]"."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def points(value: float, low: float, high: float) -> str:
    """A difference of two fractions: "12.3 points [9.8, 14.7]"."""
    return f"{100 * value:.1f} points [{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float, low: float, high: float, digits: int = 2) -> str:
    """ "3.22 [2.89, 3.64]"."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
