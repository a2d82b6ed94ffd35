"""The calls to mixer_probe that the pages make, each kept by weights, images and settings, and remembered as seen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.errors import ImagesError
from mixer_probe.core.fingerprint import digest
from mixer_probe.core.result import Result
from mixer_probe.images import DistortedImages, Images
from mixer_probe.models import Model, ModelCard, describe
from mixer_probe.report import make_sections
from mixer_probe_app import data, disk
from mixer_probe_app.choice import RUN
from mixer_probe_app.offers import resolve
from mixer_probe_app.seen import saw
from mixer_probe_app.store import made, model

LAYERS = "blocks"
# Small batches: progress moves, and a stop does not wait long for the one under way.
BATCH = 32

_KEYS: WeakKeyDictionary[Model, tuple[str, str]] = WeakKeyDictionary()


def key_of(network: Model) -> tuple[str, str]:
    """What tells a network from all others. Made once for each, for the app changes none."""
    if network not in _KEYS:
        _KEYS[network] = network.name, network.fingerprint
    return _KEYS[network]


def key_of_images(images: Images | DistortedImages) -> tuple[str, str, str]:
    """What tells images from all others: their content, and the names by which results call them."""
    record = images.record
    return record.name, record.fingerprint, digest(*images.ids)


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
    key = (key_of(network), key_of_images(images), str(chosen), reduce)
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
    if images is None or run.keys == images.keys:
        return run
    places = {key: i for i, key in enumerate(run.keys)}
    if not all(key in places for key in images.keys):
        raise ImagesError(
            f"the stored run '{choice.removeprefix(RUN)}' is of {run.images.n} images of {run.images.name}, and not of those "
            "that are chosen at the side"
        )
    return run.take([places[key] for key in images.keys])


def findings(results: Sequence[Result], key: Hashable) -> tuple[str, ...]:
    """What the report says about these results, in sentences."""
    return made("findings", key, "Reading the numbers", lambda: tuple(t for s in make_sections(results) for t in s.paragraphs))


__all__ = ["BATCH", "LAYERS", "card", "data", "findings", "key_of", "key_of_images", "representations", "stored_run"]
