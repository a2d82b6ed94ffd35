"""What images a network takes: as timm states it, for the size and channels that the network was
built for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.data.config import resolve_data_config
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from torch import nn

from mixer_probe.core.errors import ModelError
from mixer_probe.core.inputs import InputSpec, check_size, for_channels


def timm_input(network: nn.Module) -> InputSpec:
    """Input of a timm network: all that timm resolves from its pretrained_cfg, so that the
    transform is timm's own.

    Height, width and channels are those it was built for, where it says so (`img_size=` and
    `in_chans=` change the network, not its config); mean and std of RGB are then changed as timm
    changes RGB weights, see `for_channels`."""
    config: dict[str, Any] = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    embeddings = (m for m in network.modules() if isinstance(m, (PatchEmbed, HybridEmbed)))
    if (
        (embedding := next(embeddings, None)) is not None
        and embedding.img_size
        and embedding.img_size[0]
    ):
        height, width = map(int, embedding.img_size)
    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
    names = [first] if isinstance(first, str) else list(first or [])
    modules = dict(network.named_modules())
    convolutions = (m for name in names if isinstance(m := modules.get(name), nn.Conv2d))
    if (convolution := next(convolutions, None)) is not None:
        channels = convolution.in_channels
    return InputSpec(
        size=(channels, height, width),
        mean=for_channels(config["mean"], channels),
        std=for_channels(config["std"], channels),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


def stated_input(network: nn.Module, given: dict[str, Any]) -> InputSpec:
    """Input of a custom module: timm's if it carries timm's config, else what was given, which must
    then be all of it.

    Raises ModelError where it is not."""
    if getattr(network, "pretrained_cfg", None):
        return timm_input(network)
    if any(given[key] is None for key in ("size", "mean", "std")):
        raise ModelError(
            f"{type(network).__name__} does not say what images it takes; "
            "give input_size=(3, height, width), mean=(r, g, b) and std=(r, g, b)"
        )
    return InputSpec(**{key: value for key, value in given.items() if value is not None})


def with_given(spec: InputSpec, given: dict[str, Any]) -> InputSpec:
    """`spec` with what was given in place of what is known.

    Where only the number of channels is another, mean and std follow as `for_channels` says."""
    chosen = {key: value for key, value in given.items() if value is not None}
    channels = check_size(chosen.get("size", spec.size))[0]
    return replace(
        spec,
        **{"mean": for_channels(spec.mean, channels), "std": for_channels(spec.std, channels)}
        | chosen,
    )
