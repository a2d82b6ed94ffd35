"""What the page Token mixing shows: the units of Mixers, an order for them, and the images that drive a unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from torch import Tensor

import mixer_probe as mp
from mixer_probe.capture import input_pictures, stream
from mixer_probe.channels import Extremes, RunningTop, extremes
from mixer_probe.images import Images
from mixer_probe.images.classes import class_name
from mixer_probe.models import Layer, Model
from mixer_probe.visualization import Objective
from mixer_probe.weights import TokenMixing
from mixer_probe_app.analyses import BATCH, key_of, key_of_images
from mixer_probe_app.seen import saw
from mixer_probe_app.store import made, model

PAGE = "Token mixing"
SORTS = {"pairs": "Opposite-phase pairs", "frequency": "Frequency", "localisation": "Localisation", "norm": "Norm"}
# Images shown of a unit, and the longest side of their pictures in px.
STRONGEST = 10
_PIXELS = 128

# By form: the layer in a block that holds what its units give, and the one that holds what they read.
_GIVES = {
    "Mixer": "mlp_tokens.act",
    "gMixer": "mlp_tokens.drop1",
    "ResMLP": "linear_tokens",
    "gMLP": "mlp_channels.gate.proj",
}
_READS = {"Mixer": "norm1", "gMixer": "norm1", "ResMLP": "norm1", "gMLP": "mlp_channels.gate.norm"}
WHAT_IT_GIVES = {
    "Mixer": "after the activation function (GELU)",
    "gMixer": "after its gate, as the second layer reads it",
    "ResMLP": "before the layer scale",
    "gMLP": "before it multiplies the other half of the channels",
}


def token_mixing(choice: str) -> TokenMixing:
    """Token-mixing units of a Mixer. Raises ModelError for other families."""
    network = model(choice)
    key = key_of(network)
    found = made("token mixing", key, f"Token-mixing units of {choice}", lambda: mp.token_mixing(network))
    saw(PAGE, f"token-mixing units of {choice}", "token mixing", key, f"mp.token_mixing(models[{choice!r}])", [choice])
    return found


def twin_token_mixing(choice: str) -> TokenMixing | None:
    """The same of the untrained twin of a trained network."""
    network = model(choice)
    if not network.weights.trained:
        return None
    key = ("twin", *key_of(network))
    label = f"token-mixing units of {choice}, untrained baseline"
    found = made(
        "token mixing", key, f"Token-mixing units of {choice}, untrained baseline", lambda: mp.token_mixing(network.untrained())
    )
    saw(PAGE, label, "token mixing", key, f"mp.token_mixing(models[{choice!r}].untrained())", [choice])
    return found


def ordered(found: TokenMixing, block: int, by: str) -> np.ndarray:
    """The units of a block in one of the orders of `SORTS`: low frequency, small spread and large norm come first."""
    units = found.measures(block)
    if by == "pairs":
        return found.order(block)
    keys = {"frequency": units.frequency, "localisation": units.spread, "norm": -units.norm}
    return np.argsort(keys[by], kind="stable")


def smoothest(found: TokenMixing, block: int) -> int:
    """The unit of lowest frequency, with which a visit begins."""
    return int(ordered(found, block, "frequency")[0])


def are_tokens(found: TokenMixing) -> bool:
    """Whether unit i is the output token i, and no hidden unit."""
    return found.form in ("ResMLP", "gMLP")


# -- the images that drive a unit ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strongest:
    """The images that drive each unit of a block the most: [unit, rank] each, the strongest first.

    `values` is what they were ranked by and `channel` where the unit gives most; `index` counts the images. `n` images were
    looked at."""

    values: np.ndarray
    index: np.ndarray
    channel: np.ndarray
    n: int


@dataclass(frozen=True)
class Firing:
    """One unit over its strongest images [rank]: `pictures` (what the network saw, uint8 RGB), `given` [rank, channel] (what the
    unit gives in every channel) and `read` [rank, h, w] (what it read in the channel where it gives most)."""

    given: np.ndarray
    read: np.ndarray
    pictures: np.ndarray


def gives(found: TokenMixing, block: int) -> str:
    """The layer that holds what the units of a block give; "" for a form that is not known."""
    return f"{found.blocks[block]}.{_GIVES[found.form]}" if found.form in _GIVES else ""


def strongest(choice: str, found: TokenMixing, block: int, images: Images, by: str) -> Strongest:
    """Which of the images drive each unit of a block the most, by "rms" or "peak" over channels."""
    network, layer = model(choice), gives(found, block)
    key = (key_of(network), key_of_images(images), layer, by, STRONGEST)
    title = f"Units of {found.blocks[block]} of {choice} over {len(images)} images"
    return Strongest(*made("strongest images", key, title, lambda: _strongest(network, images, layer, by)))


def _strongest(network: Model, images: Images, name: str, by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    layer = network.layer(name)
    objective = Objective(layer, "hidden unit", np.arange(layer.positions), by)
    top = RunningTop(STRONGEST)
    pieces = stream(network, images, [layer], partial(_by_unit, objective=objective), batch_size=BATCH, title=network.name)
    for piece in pieces:
        top.update(piece.found[layer.name], piece.start)
    return *top.compute(), top.images


def _by_unit(layer: Layer, positions: Tensor, prefix: Tensor | None, *, objective: Objective) -> Extremes:
    """Reducer [image, unit]. Inside token mixing the units stand on the axis of positions, so a unit's peak is in a channel."""
    peak = extremes(layer, positions.transpose(1, 2), prefix)
    return Extremes(objective.of_all(layer, positions, prefix), peak.position)


def firing(choice: str, found: TokenMixing, block: int, unit: int, images: Images, top: Strongest) -> Firing:
    """One unit over the images that `top` names."""
    network, layer = model(choice), gives(found, block)
    source = f"{found.blocks[block]}.{_READS[found.form]}"
    index, channel = top.index[unit], top.channel[unit]
    key = (key_of(network), key_of_images(images), layer, unit, tuple(index.tolist()), tuple(channel.tolist()))
    title = f"Unit {unit} over its strongest images"
    return Firing(*made("firing", key, title, lambda: _firing(network, images, layer, source, unit, index, channel, found.grid)))


def _firing(
    network: Model,
    images: Images,
    layer: str,
    source: str,
    unit: int,
    index: np.ndarray,
    channel: np.ndarray,
    grid: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    runs = mp.extract(network, images.subset(index), [source, layer], reduce="none", batch_size=BATCH)
    rank = np.arange(len(index))
    read = runs[source][rank, :, channel].reshape(-1, *grid)
    return runs[layer][:, unit], read, _smaller(input_pictures(network, images, index))


def _smaller(pictures: np.ndarray) -> np.ndarray:
    """Pictures [n, h, w, 3] of at most `_PIXELS` px, since many units are kept."""
    scale = _PIXELS / max(pictures.shape[1:3])
    if scale >= 1:
        return pictures
    size = (max(1, round(scale * pictures.shape[2])), max(1, round(scale * pictures.shape[1])))
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures])


def classes_of(images: Images, index: np.ndarray) -> list[str]:
    """What the images at `index` show; "" without labels."""
    if images.labels is None:
        return [""] * len(index)
    return [class_name(int(images.labels[i]), images.class_names) for i in index]
