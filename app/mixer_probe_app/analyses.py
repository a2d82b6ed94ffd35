"""The calls to mixer_probe that the pages make, each kept by weights, images and settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.images import Images
from mixer_probe.models import Model, ModelCard, describe
from mixer_probe.probing import ProbeResult
from mixer_probe.report import make_sections
from mixer_probe.results import Result
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.weights import StemFilters, TokenMixing
from mixer_probe_app.store import made, model

LAYERS = "blocks"
PERMUTATIONS = 100
# Small batches: progress moves, and a click does not wait long for the one under way.
_BATCH = 32


def card(choice: str) -> ModelCard:
    """What there is to know about a network before looking inside."""
    network = model(choice)
    return made("cards", _key(network), f"Looking at {choice}", lambda: describe(network))


def token_mixing(choice: str) -> TokenMixing:
    """Token-mixing units of a Mixer."""
    network = model(choice)
    return made("token mixing", _key(network), f"Token-mixing units of {choice}", lambda: mp.token_mixing(network))


def twin_token_mixing(choice: str) -> TokenMixing | None:
    """The same of the untrained twin of a trained network."""
    network = model(choice)
    if not network.weights.trained:
        return None
    title = f"Token-mixing units of {choice}, untrained"
    return made("token mixing", ("twin", *_key(network)), title, lambda: mp.token_mixing(network.untrained()))


def stem(choice: str) -> StemFilters:
    """Filters of the first layer."""
    network = model(choice)
    return made("stem", _key(network), f"Stem filters of {choice}", lambda: mp.stem_filters(network))


def shared_images(split: str, limit: int) -> Images:
    """`limit` of the bundled images, the same for every network."""
    return mp.load_images("demo", split=split, limit=limit)


def similarity(first: str, second: str, limit: int) -> SimilarityMatrix:
    """CKA of every block of one network with every block of another, with its null."""
    a, b = _representations(first, "test", limit), _representations(second, "test", limit)
    key = (_key(model(first)), _key(model(second)), a.images.sha256, LAYERS, PERMUTATIONS)
    title = f"Similarity of {first} and {second}"
    return made("similarity", key, title, lambda: mp.compare(a, b, permutations=PERMUTATIONS))


def probe(choice: str, limit: int) -> ProbeResult:
    """Linear probes of every block, beside those of the untrained twin."""
    train, test = _representations(choice, "train", limit), _representations(choice, "test", limit)
    network = model(choice)
    key = (_key(network), train.images.sha256, test.images.sha256, LAYERS)
    return made("probes", key, f"Linear probes of {choice}", lambda: _probe(network, train, test, limit))


def _probe(network: Model, train: Representations, test: Representations, limit: int) -> ProbeResult:
    if not network.weights.trained:
        return mp.linear_probe(train, test)
    twin = network.untrained()
    runs = [mp.extract(twin, shared_images(split, limit), LAYERS, batch_size=_BATCH) for split in ("train", "test")]
    return mp.linear_probe(train, test, untrained=(runs[0], runs[1]))


def _representations(choice: str, split: str, limit: int) -> Representations:
    network, images = model(choice), shared_images(split, limit)
    key = (_key(network), images.record.sha256, LAYERS)
    title = f"{choice}: representations of {len(images)} images"
    return made("representations", key, title, lambda: mp.extract(network, images, LAYERS, batch_size=_BATCH))


def findings(results: Sequence[Result], key: Hashable) -> tuple[str, ...]:
    """What the report says about these results, in sentences."""
    return made("findings", key, "Reading the numbers", lambda: tuple(t for s in make_sections(results) for t in s.paragraphs))


def _key(network: Model) -> tuple[str, str]:
    return network.name, network.sha256
