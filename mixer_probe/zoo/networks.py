"""Build and load the bundled networks."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from mixer_probe.core.errors import CheckpointError
from mixer_probe.zoo.architectures import construct
from mixer_probe.zoo.cards import NAMES, card, checkpoint_path, resolve


def names() -> tuple[str, ...]:
    """The bundled networks; the s of "mixer-s1" is the seed of its initial weights and of its
    training."""
    return NAMES


def build(name: str) -> nn.Module:
    """The untrained baseline of a bundled network: the very weights that its training began with.

    They are float32, in train mode, on the CPU, and drawn without touching the caller's random
    numbers. Raises `ModelError` for an unknown name.
    """
    family, seed = resolve(name).split("-s")
    return construct(family, int(seed))


def load(name: str, untrained: bool = False) -> nn.Module:
    """A bundled network in eval mode, float32, on the CPU; with `untrained`, as before its
    training.

    Raises `ModelError` for an unknown name and `CheckpointError` for a file that is missing or not
    the card's.
    """
    model = build(name)
    if not untrained:
        load_weights(model, read_checkpoint(checkpoint_path(name), card(name).sha256))
    return model.eval()


def read_checkpoint(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose bytes have the given SHA-256 (None: any);
    `CheckpointError` otherwise."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise CheckpointError(
            f"the checkpoint {path} is not the file that its card describes (SHA-256 differs)"
        )
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"the checkpoint {path} is no safetensors file: {error}") from error


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy stored float16 weights into a float32 network, strictly: every name there, none left
    over."""
    model.load_state_dict(weights, strict=True)
