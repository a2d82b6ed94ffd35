"""Token-mixing units of Mixers: orders of the units of a block, sentences on one unit, and the images that activate it most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

import mixer_probe as mp
from mixer_probe.capture import input_pictures, stream
from mixer_probe.channels import Extremes, RunningTop, extremes
from mixer_probe.images import Images
from mixer_probe.models import Layer, Model
from mixer_probe.visualization import Objective
from mixer_probe.weights import TokenMixing
from mixer_probe_app.calls import BATCH, key_of, key_of_images
from mixer_probe_app.store import cached, model

SORTS = {"pairs": "Opposite-phase pairs", "frequency": "Frequency", "localisation": "Localisation", "norm": "Norm"}
# Images shown of a unit, and the longest side of their pictures in px.
TOP = 10
_PIXELS = 128

# By form: the layer in a block that holds the outputs of its units, and the one that holds their inputs.
OUTPUTS = {
    "Mixer": "mlp_tokens.act",
    "gMixer": "mlp_tokens.drop1",
    "ResMLP": "linear_tokens",
    "gMLP": "mlp_channels.gate.proj",
}
INPUTS = {"Mixer": "norm1", "gMixer": "norm1", "ResMLP": "norm1", "gMLP": "mlp_channels.gate.norm"}
ABOUT_OUTPUTS = {
    "Mixer": "after the activation function (GELU)",
    "gMixer": "after its gate, as the second layer reads it",
    "ResMLP": "before the layer scale",
    "gMLP": "before it multiplies the other half of the channels",
}


def ordered(found: TokenMixing, block: int, by: str) -> np.ndarray:
    """The units of a block in one of the orders of `SORTS`: low frequency, small spread and large norm come first."""
    if by == "pairs":
        return found.order(block)
    units = found.measures(block)
    keys = {"frequency": units.frequency, "localisation": units.spread, "norm": -units.norm}
    return np.argsort(keys[by], kind="stable")


def are_tokens(found: TokenMixing) -> bool:
    """Whether unit i is the output token i, and no hidden unit."""
    return found.form in ("ResMLP", "gMLP")


def sentences(found: TokenMixing, block: int, unit: int) -> list[str]:
    """The numbers of a unit beside those of their nulls."""
    one = found.measures(block)
    rank = int(np.flatnonzero(ordered(found, block, "frequency") == unit)[0]) + 1
    shuffled, partner = one.shuffled, int(one.partner[unit])
    back = int(one.partner[partner])
    beyond = "beyond chance" if found.paired(block)[unit] else "not beyond chance"
    mutual = "the relation is mutual" if back == unit else f"the opposite-phase unit of unit {partner} is unit {back}"
    texts = [
        f"Frequency: rank {rank} of {len(one.maps)} from the lowest; the mean is {one.statistics.frequency:.3f} for the block "
        f"and {np.mean(shuffled.frequency):.3f} cycles/token for units with shuffled weights. Orientation coherence is "
        f"{one.coherence[unit]:.2f} (1: one orientation; shuffled: {np.mean(shuffled.coherence):.2f}).",
        f"Localisation: {one.spread[unit]:.1f} px around row {one.centre[unit, 0]:.1f} px, column {one.centre[unit, 1]:.1f} px; "
        f"shuffled weights: {np.mean(shuffled.spread):.1f} px; uniform weights: {found.uniform_spread:.1f} px. Norm: "
        f"{one.norm[unit]:.3f}.",
        f"Opposite-phase unit: {partner}, with cosine {one.partner_cosine[unit]:.3f}, {beyond} (p = {one.partner_p[unit]:.2f} "
        f"against {found.surrogates} copies of the units with random phases; the null has mean {one.null_mean:.3f} and 5th "
        f"percentile {one.null_q05:.3f}); {mutual}.",
    ]
    if "write" in found.sides:
        cosine = found.cosine_with_read(block, "write")[unit]
        texts.append(
            f"Write weights: their cosine with the read weights is {cosine:+.3f} (1: the unit adds to the patches that it "
            "reads, -1: it subtracts from them)."
        )
    if "gate" in found.sides:
        cosine = found.cosine_with_read(block, "gate")[unit]
        texts.append(f"Gate weights: their cosine with the read weights is {cosine:+.3f}.")
    return texts


# -- the images that activate a unit -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TopImages:
    """The images that activate each unit of a block most: `values` by which they rank, their `index`, and the `channel` of the
    largest output, each [unit, rank], largest first; out of `n` images."""

    values: np.ndarray
    index: np.ndarray
    channel: np.ndarray
    n: int


@dataclass(frozen=True)
class UnitActivations:
    """One unit over its top images: its `outputs` [rank, channel], its `inputs` [rank, h, w] in the channel of the largest
    output, and the `pictures` as the network receives them (uint8 RGB)."""

    outputs: np.ndarray
    inputs: np.ndarray
    pictures: np.ndarray


def output_layer(found: TokenMixing, block: int) -> str:
    """The layer that holds the outputs of the units of a block; "" for a form that is not known."""
    return f"{found.blocks[block]}.{OUTPUTS[found.form]}" if found.form in OUTPUTS else ""


def top_images(choice: str, found: TokenMixing, block: int, images: Images, by: str) -> TopImages:
    """The images that activate each unit of a block most, by "rms" or "peak" over channels."""
    network, layer = model(choice), output_layer(found, block)
    key = (key_of(network), key_of_images(images), layer, by, TOP)
    title = f"Units of {found.blocks[block]} of {choice} over {len(images)} images"
    return TopImages(*cached("top images", key, title, lambda: rank_images(network, images, layer, by)))


def rank_images(network: Model, images: Images, name: str, by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The fields of `TopImages` for the units of the layer `name`."""
    layer = network.layer(name)
    reduce = unit_reducer(Objective(layer, "hidden unit", np.arange(layer.positions), by))
    top = RunningTop(TOP)
    for piece in stream(network, images, [layer], reduce, batch_size=BATCH, title=network.name):
        top.update(piece.found[layer.name], piece.start)
    return *top.compute(), top.images


def unit_reducer(objective: Objective) -> Callable[[Layer, Tensor, Tensor | None], Extremes]:
    """A reducer [image, unit] for `capture.stream`. Inside token mixing the units stand on the axis of positions, so the peak of
    a unit is in a channel."""

    def reduce(layer: Layer, positions: Tensor, prefix: Tensor | None) -> Extremes:
        peak = extremes(layer, positions.transpose(1, 2), prefix)
        return Extremes(objective.of_all(layer, positions, prefix), peak.position)

    return reduce


def activations(choice: str, found: TokenMixing, block: int, unit: int, images: Images, top: TopImages) -> UnitActivations:
    """One unit over its top images."""
    network, layer = model(choice), output_layer(found, block)
    source = f"{found.blocks[block]}.{INPUTS[found.form]}"
    index, channel = top.index[unit], top.channel[unit]
    key = (key_of(network), key_of_images(images), layer, unit, tuple(index.tolist()), tuple(channel.tolist()))
    compute = lambda: unit_activations(network, images, (source, layer), unit, index, channel, found.grid)  # noqa: E731
    return UnitActivations(*cached("unit activations", key, f"Unit {unit} over its top images", compute))


def unit_activations(
    network: Model,
    images: Images,
    layers: tuple[str, str],
    unit: int,
    index: np.ndarray,
    channel: np.ndarray,
    grid: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `UnitActivations` of a unit, from the layers of its inputs and outputs. Pictures are reduced, since those of
    many units are cached."""
    source, layer = layers
    runs = mp.extract(network, images.subset(index), [*layers], reduce="none", batch_size=BATCH)
    inputs = runs[source][np.arange(len(index)), :, channel].reshape(-1, *grid)
    pictures = input_pictures(network, images, index)
    scale = _PIXELS / max(pictures.shape[1:3])
    if scale < 1:
        size = (max(1, round(scale * pictures.shape[2])), max(1, round(scale * pictures.shape[1])))
        pictures = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures])
    return runs[layer][:, unit], inputs, pictures
