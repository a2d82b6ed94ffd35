"""The calls to mixer_probe that the pages make, each kept by weights, images and settings, and remembered as seen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.errors import ImagesError
from mixer_probe.images import Images
from mixer_probe.models import Model, ModelCard, describe
from mixer_probe.report import make_sections
from mixer_probe.results import Result
from mixer_probe_app import data, disk
from mixer_probe_app.choice import RUN
from mixer_probe_app.offers import resolve
from mixer_probe_app.seen import saw
from mixer_probe_app.store import made, model

LAYERS = "blocks"
# Small batches: progress moves, and a stop does not wait long for the one under way.
BATCH = 32


def key_of(network: Model) -> tuple[str, str]:
    """What tells a network from all others."""
    return network.name, network.fingerprint


def card(choice: str) -> ModelCard:
    """What there is to know about a network before looking inside."""
    network = model(choice)
    key = key_of(network)
    saw("Home", f"card of {choice}", "cards", key, f"mp.models.describe(models[{choice!r}])", [choice])
    return made("cards", key, f"Looking at {choice}", lambda: describe(network))


def representations(choice: str, images: Images, layers: str | Sequence[str] = LAYERS, reduce: str = "mean") -> Representations:
    """What a network makes of images, from the disk where it was made before, going on where it was stopped. A stored run is
    taken as it is, and has to be of these very images.

    Raises ImagesError for a run of other images."""
    if choice.startswith(RUN):
        return stored_run(choice, images)
    network = model(choice)
    chosen = layers if isinstance(layers, str) else list(layers)
    key = (key_of(network), images.record.fingerprint, str(chosen), reduce)
    title = f"{choice}: representations of {len(images)} images"
    return made("representations", key, title, lambda: _extract(network, images, chosen, reduce, key), keep=False)


def _extract(network: Model, images: Images, layers: str | list[str], reduce: str, key: Hashable) -> Representations:
    return disk.store(
        key,
        lambda place: mp.extract(network, images, layers, reduce=reduce, batch_size=BATCH, out=place),  # type: ignore[arg-type]
    )


def stored_run(choice: str, images: Images | None = None) -> Representations:
    """The run behind a choice "run:LABEL"; with `images` it has to hold these. Raises StoreError, ImagesError."""
    run = mp.open_run(resolve(choice.removeprefix(RUN), "run"))
    if images is None or run.ids == images.ids:
        return run
    places = {name: i for i, name in enumerate(run.ids)}
    if not all(name in places for name in images.ids):
        raise ImagesError(
            f"the stored run '{choice.removeprefix(RUN)}' is of {run.images.n} images of {run.images.name}, and not of those "
            "that are chosen at the side"
        )
    return run.take([places[name] for name in images.ids])


def findings(results: Sequence[Result], key: Hashable) -> tuple[str, ...]:
    """What the report says about these results, in sentences."""
    return made("findings", key, "Reading the numbers", lambda: tuple(t for s in make_sections(results) for t in s.paragraphs))


__all__ = ["BATCH", "LAYERS", "card", "data", "findings", "key_of", "representations", "stored_run"]
