"""What the page Channels shows: statistics, selectivity, pages of single channels and partners, each kept and seen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.channels import ChannelPage, ChannelPartners, ChannelStatistics, ClassSelectivity, channel_pages
from mixer_probe.images import Images
from mixer_probe.models import Layer, Model
from mixer_probe_app.analyses import BATCH, LAYERS, key_of, key_of_images, representations, stored_run
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.seen import images_setup, saw
from mixer_probe_app.store import find, made, model

PAGE = "Channels"
PERMUTATIONS, PARTNER_PERMUTATIONS = 999, 999
# Images at an end of a page, and pixels of their larger side.
EXHIBITS, PIXELS = 8, 112
_FIRST_KINDS = ("stem", "block", "head")
# A class of one image has an AUROC, but nothing to tell it from an accident.
_LEAST_OF_A_CLASS = 2

Layers = str | tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A channel: of which network (a choice), which layer, which number."""

    network: str
    layer: str
    channel: int


def layers_of(network: Model) -> list[str]:
    """The layers that the page offers: stem, blocks and head in execution order, then the parts of blocks and norms."""
    first = [layer.name for layer in network.layers if layer.kind in _FIRST_KINDS]
    return [*first, *(layer.name for layer in network.layers if layer.name not in first)]


def usual_layer(network: Model) -> str:
    """The last block but one: late enough for classes, before the last one mixes them all."""
    blocks = block_names(network)
    return blocks[-2] if len(blocks) > 1 else blocks[0]


def block_names(network: Model) -> list[str]:
    """The blocks."""
    return [layer.name for layer in network.select(LAYERS)]


def run_of(choice: str, images: Images, layer: str | None = None) -> Representations:
    """Means over positions of all blocks, or of `layer` where it is none."""
    return representations(choice, images, _where(choice, layer))


def _where(choice: str, layer: str | None) -> Layers:
    if layer is None or choice.startswith(RUN) or layer in block_names(model(choice)):
        return LAYERS
    return (layer,)


def needs_labels(images: Images) -> str:
    """What selectivity lacks in these images, as a sentence; "" where they have what it needs."""
    needs = (
        f"Selectivity needs two classes with at least {_LEAST_OF_A_CLASS} images each (about 20 per class are better). "
        "Select the bundled CIFAR-10 sample, or a folder with one subfolder per class. Statistics, top images and best matches "
        "need no classes."
    )
    if images.labels is None:
        return f"These images have no labels. {needs}"
    counts = np.unique(images.labels, return_counts=True)[1]
    if len(counts) < 2:
        return f"All images belong to one class. {needs}"
    few = (counts >= _LEAST_OF_A_CLASS).sum() < 2
    return f"These images have {len(counts)} classes, most with a single image. {needs}" if few else ""


def statistics(choice: str, images: Images, layers: Layers) -> ChannelStatistics:
    """Statistics of every channel of a layer, or of all blocks."""
    network, wanted = model(choice), layers if isinstance(layers, str) else list(layers)
    key = (key_of(network), key_of_images(images), str(layers))
    code = f"mp.channel_statistics(models[{choice!r}], images, {wanted!r})"
    _saw(f"statistics of {_name(choice, layers)}", "channel statistics", key, code, [choice], images)
    return made(
        "channel statistics",
        key,
        f"{choice}: statistics of channels",
        lambda: mp.channel_statistics(network, images, wanted, batch_size=BATCH),
    )


def selectivity(choice: str, images: Images, layer: str | None = None) -> ClassSelectivity:
    """How well every channel of all blocks (or of `layer` where it is none) tells each class."""
    where, run = _where(choice, layer), run_of(choice, images, layer)
    key = (run.model.name, run.model.fingerprint, key_of_images(images), str(where), PERMUTATIONS)
    code = f"mp.class_selectivity({_run_code(choice, where)}, permutations={PERMUTATIONS})"
    _saw(f"selectivity of {_name(choice, where)}", "channel selectivity", key, code, [choice], images)
    return made(
        "channel selectivity",
        key,
        f"{choice}: which classes channels tell",
        lambda: mp.class_selectivity(run, permutations=PERMUTATIONS),
    )


def twin_selectivity(choice: str, images: Images) -> ClassSelectivity | None:
    """The same of all blocks (untrained baseline); None for what has no twin or is one."""
    if choice.startswith(RUN):
        return None
    network = model(choice)
    if not network.weights.trained:
        return None
    key = ("twin", *key_of(network), key_of_images(images), PERMUTATIONS)
    code = f"mp.class_selectivity(mp.extract(models[{choice!r}].untrained(), images), permutations={PERMUTATIONS})"
    _saw(f"selectivity of {shown(choice)} (untrained baseline)", "channel selectivity", key, code, [choice], images)
    title = f"{choice} (untrained baseline): which classes channels tell"
    return made("channel selectivity", key, title, lambda: _of_twin(network, images))


def _of_twin(network: Model, images: Images) -> ClassSelectivity:
    run = mp.extract(network.untrained(), images, LAYERS, batch_size=BATCH)
    return mp.class_selectivity(run, permutations=PERMUTATIONS)


def page_of(place: Place, images: Images, by: str, found: ChannelStatistics, told: ClassSelectivity | None) -> ChannelPage:
    """The page of a channel with its images at both ends, ranked by "mean" or "peak"."""
    network, run = model(place.network), run_of(place.network, images, place.layer)
    key = page_key(place, images, by, found, told)
    label = f"channel {place.channel} of {place.layer} of {shown(place.network)} by {by}"
    _saw(label, "channel pages", key, _page_code(place, by, found, told), [place.network], images)

    def make() -> ChannelPage:
        channels = {place.layer: place.channel}
        own = {"k": EXHIBITS, "by": by, "pixels": PIXELS, "batch_size": BATCH}
        return channel_pages(network, images, channels, **own, statistics=found, selectivity=told, reps=run)[0]  # type: ignore[arg-type]

    return made("channel pages", key, f"{place.network}: page of a channel", make)


def page_key(
    place: Place, images: Images, by: str, found: ChannelStatistics, told: ClassSelectivity | None, extra: Hashable = None
) -> Hashable:
    """What decides a page. The cluster and the largest ratio do not depend on how many layers were measured beside it."""
    return key_of(model(place.network)), key_of_images(images), place.layer, place.channel, by, told is None, found.n, extra


def _page_code(place: Place, by: str, found: ChannelStatistics, told: ClassSelectivity | None) -> str:
    network, where = f"models[{place.network!r}]", _where(place.network, place.layer)
    run = _run_code(place.network, where)
    parts = [f"mp.channels.channel_pages({network}, images, {{{place.layer!r}: {place.channel}}}, k={EXHIBITS}, by={by!r}"]
    parts += [f"pixels={PIXELS}", f"statistics=mp.channel_statistics({network}, images, [{place.layer!r}])", f"reps={run}"]
    parts += [f"selectivity=mp.class_selectivity({run}, permutations={PERMUTATIONS})"] if told is not None else []
    return ", ".join(parts) + ")"


def partners(place: Place, images: Images, other: str, layer: str) -> ChannelPartners:
    """For every channel of the layer of `place` the channels of `layer` of another network that answer to the same images."""
    a, b = run_of(place.network, images, place.layer), run_of(other, images, layer)
    key = _partners_key(place, images, other, layer)
    runs = (_run_code(place.network, _where(place.network, place.layer)), _run_code(other, _where(other, layer)))
    code = f"mp.channel_partners({', '.join(runs)}, {place.layer!r}, {layer!r}, permutations={PARTNER_PERMUTATIONS})"
    label = f"best matches of {place.layer} of {shown(place.network)} in {layer} of {shown(other)}"
    _saw(label, "channel partners", key, code, [place.network, other], images)
    return made(
        "channel partners",
        key,
        f"Partners of {place.layer} in {layer}",
        lambda: mp.channel_partners(a, b, place.layer, layer, permutations=PARTNER_PERMUTATIONS),
    )


def known_partners(place: Place, images: Images, other: str, layer: str) -> ChannelPartners | None:
    """What `partners` gives, where it was measured already."""
    kept = find("channel partners", _partners_key(place, images, other, layer))
    return None if kept is None else kept.value


def _partners_key(place: Place, images: Images, other: str, layer: str) -> Hashable:
    if other.startswith(RUN):
        record = stored_run(other, images).model
        theirs = (record.name, record.fingerprint)
    else:
        theirs = key_of(model(other))
    return key_of(model(place.network)), theirs, key_of_images(images), place.layer, layer, PARTNER_PERMUTATIONS


def blocks_of(choice: str, images: Images) -> tuple[Layer, ...]:
    """The blocks of a network, or the layers of a run."""
    return stored_run(choice, images).layers if choice.startswith(RUN) else model(choice).select(LAYERS)


def like_depth(layers: Sequence[Layer], depth: float) -> str:
    """The layer of the most similar relative depth."""
    return min(layers, key=lambda layer: abs(layer.depth - depth)).name


def _run_code(choice: str, where: Layers) -> str:
    if choice.startswith(RUN):
        return f"models[{choice!r}]"
    return f"mp.extract(models[{choice!r}], images{'' if where == LAYERS else f', {list(where)!r}'})"


def _name(choice: str, layers: Layers) -> str:
    return f"all blocks of {shown(choice)}" if layers == LAYERS else f"{layers[0]} of {shown(choice)}"


def _saw(label: str, kind: str, key: Hashable, code: str, models: Sequence[str], images: Images) -> None:
    saw(PAGE, f"{label}, {len(images)} images", kind, key, code, models, images_setup())
