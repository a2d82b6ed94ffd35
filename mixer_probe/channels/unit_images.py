"""The images that activate the hidden units of token mixing most, with what a unit reads and
returns there.

A hidden unit reads every channel of the network with the same map over the tokens. It has one
output per channel, and no position in the image: where the layers of `channels.top` have positions,
that of its outputs has units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from torch import Tensor

from mixer_probe.capture import ImageSource, extract, input_pictures, part_of, stream
from mixer_probe.channels.top import Extremes, RunningTop, extremes
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import storable
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.visualization import Objective
from mixer_probe.weights import TokenMixing

Over = Literal["rms", "peak"]


@dataclass(frozen=True)
class UnitLayers:
    """The layers in a block with the inputs and the outputs of its token-mixing units, and where
    the outputs are taken."""

    inputs: str
    outputs: str
    about: str


# By form of token mixing, as `TokenMixing.form` calls it.
UNIT_LAYERS = {
    "Mixer": UnitLayers("norm1", "mlp_tokens.act", "after the activation function (GELU)"),
    "gMixer": UnitLayers(
        "norm1", "mlp_tokens.drop1", "after its gate, as the second layer reads it"
    ),
    "ResMLP": UnitLayers("norm1", "linear_tokens", "before the layer scale"),
    "gMLP": UnitLayers(
        "mlp_channels.gate.norm",
        "mlp_channels.gate.proj",
        "before it multiplies the other half of the channels",
    ),
}


@storable
@dataclass(frozen=True)
class UnitImages:
    """The images that activate each unit most: `values` by which they rank, their `index` among the
    `n` images, and the `channel` of the largest output, each [unit, rank], the largest value
    first."""

    values: Annotated[np.ndarray, "unit", "rank"]
    index: Annotated[np.ndarray, "unit", "rank"]
    channel: Annotated[np.ndarray, "unit", "rank"]
    n: int


@storable
@dataclass(frozen=True)
class UnitActivations:
    """One unit on some images: its `outputs` [image, channel]; its `inputs` [image, rows, columns]
    over the grid of tokens in one channel per image; the `pictures` as the network receives them,
    uint8 RGB [image, height, width, 3]."""

    outputs: Annotated[np.ndarray, "image", "channel"]
    inputs: Annotated[np.ndarray, "image", "row", "column"]
    pictures: Annotated[np.ndarray, "image", "height", "width", 3]

    def strongest_channels(self, most: int = 32) -> np.ndarray:
        """The `most` channels with the largest |output| on any of the images, in ascending
        order."""
        return np.sort(np.argsort(-np.abs(self.outputs).max(0), kind="stable")[:most])


def unit_layers(units: TokenMixing, block: int | str) -> tuple[str, str]:
    """The names of the layers with the inputs and the outputs of the units of a block.

    Raises MeasureError for a form of token mixing that is not known, and LayerError for a block
    that is not there."""
    if units.form not in UNIT_LAYERS:
        raise MeasureError(f"the layer that holds the unit outputs of a {units.form} is not known")
    path, layers = units.blocks[units.index(block)], UNIT_LAYERS[units.form]
    return f"{path}.{layers.inputs}", f"{path}.{layers.outputs}"


@checked(MeasureError)
def top_unit_images(
    model: Model,
    images: ImageSource | Tensor,
    layer: str,
    k: int = 10,
    *,
    over: Over = "rms",
    batch_size: int = 32,
) -> UnitImages:
    """The `k` images that activate each unit of `layer` most, by the root mean square ("rms") or
    the largest ("peak") of its outputs over channels.

    `layer` is that of `unit_layers`. Fewer than `k` images give as many as there are. Raises
    LayerError for an unknown layer."""
    source = model.layer(layer)
    objective = Objective(source, "hidden unit", np.arange(source.positions), over)

    def reduce(layer: Layer, positions: Tensor, prefix: Tensor | None) -> Extremes:
        """[image, unit]: units stand on the axis of positions, so that the peak of a unit is in a
        channel."""
        peak = extremes(layer, positions.transpose(1, 2), prefix)
        return Extremes(objective.of_all(layer, positions, prefix), peak.position)

    top = RunningTop(k)
    for piece in stream(model, images, [source], reduce, batch_size=batch_size, title=model.name):
        top.update(piece.found[source.name], piece.start)
    return UnitImages(*top.compute(), top.n)


@checked(MeasureError)
def unit_activations(
    model: Model,
    images: ImageSource | Tensor,
    layers: tuple[str, str],
    unit: int,
    index: np.ndarray,
    channel: np.ndarray,
    *,
    pixels: int = 128,
    batch_size: int = 32,
) -> UnitActivations:
    """One unit on the images at `index` [image]: its outputs in all channels, its inputs in one
    `channel` [image] of each, and pictures of at most `pixels` on the longer side.

    `layers` are those of the inputs and outputs, as `unit_layers` gives them. Raises LayerError for
    an unknown layer."""
    runs = extract(model, part_of(images, index), [*layers], reduce="none", batch_size=batch_size)
    inputs = runs[layers[0]][np.arange(len(index)), :, channel]
    maps = inputs.reshape(len(index), *(model.structure.token_grid or (1, -1)))
    return UnitActivations(
        runs[layers[1]][:, unit], maps, input_pictures(model, images, index, pixels)
    )
