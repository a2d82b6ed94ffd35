"""Networks that are linear behind their patch embedding, dictionaries that are given by hand, and
images whose classes are told by colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixer_probe.concepts.atoms import ConceptAtoms, concept_atoms
from mixer_probe.concepts.dictionary import Dictionary
from mixer_probe.concepts.grid_activations import GridActivations
from mixer_probe.images import Images, from_arrays
from mixer_probe.models import Model
from tests.networks import as_model

WIDTH, SIDE, SIZE = 6, 4, 16
CLASSES, LAYER = ("red", "green", "blue"), "blocks.0"


def linear_network(seed: int) -> Model:
    """A Mixer of one block without norms, whose branches return nothing: logits are a linear
    function of the mean of what the block returns, 4×4 positions of 6 channels."""
    torch.manual_seed(seed)
    network: Any = MlpMixer(
        num_classes=len(CLASSES),
        img_size=SIZE,
        patch_size=SIZE // SIDE,
        num_blocks=1,
        embed_dim=WIDTH,
        norm_layer=nn.Identity,
    )
    block = network.blocks[0]
    with torch.no_grad():
        network.stem.proj.weight.normal_(0, 0.2)
        network.head.weight.normal_()
        for branch in (block.mlp_tokens, block.mlp_channels):
            branch.fc2.weight.zero_()
            branch.fc2.bias.zero_()
    return as_model(network, SIZE, name=f"linear{seed}", class_names=CLASSES)


def by_hand(networks: int, atoms: int, seed: int = 0) -> Dictionary:
    """A dictionary of networks like these with random encoders and decoders, all of whose atoms
    may be active."""
    generator = torch.Generator().manual_seed(seed)
    d = Dictionary([WIDTH] * networks, atoms, atoms)
    for parameter in (d.encoder, d.decoder, d.origin, d.bias):
        parameter.data.normal_(0, 0.5, generator=generator)
    d.scales.copy_(torch.arange(networks) + 1.5)
    return d.eval().requires_grad_(False)


def coloured(n: int, seed: int = 0) -> Images:
    """Noise with more of one colour, which is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    pixels = rng.integers(0, 180, (n, SIZE, SIZE, 3), dtype=np.uint8)
    pixels += (75 * (np.arange(3) == labels[:, None]))[:, None, None].astype(np.uint8)
    return from_arrays(pixels, labels, class_names=CLASSES, name="coloured")


def parts_of(models: list[Model], images: Images, side: int = SIDE) -> list[GridActivations]:
    return [GridActivations.of(model, images, LAYER, (side, side)) for model in models]


def planted_dictionary(models: list[Model]) -> Dictionary:
    """Atom 0 is in both networks, 1 and 2 are in one each, 3 in the first and is read by no class;
    all are active where a channel is large."""
    d = by_hand(2, 4)
    for zero in (d.encoder, d.decoder, d.origin, d.bias):
        zero.data.zero_()
    for network, atoms in enumerate(([0, 1, 3], [0, 2])):
        own = slice(network * WIDTH, (network + 1) * WIDTH)
        head = models[network].module.head.weight.detach()
        free = torch.linalg.svd(head).Vh[3]
        for k in atoms:
            d.encoder.data[k, own][k] = 1.0
            d.decoder.data[k, own] = free if k == 3 else head[k % 3] / head[k % 3].norm()
    return d


def atoms() -> ConceptAtoms:
    """Those of `planted_dictionary` in two networks."""
    models, images = [linear_network(0), linear_network(1)], coloured(60)
    return concept_atoms(
        planted_dictionary(models),
        models,
        parts_of(models, images),
        images,
        k=3,
        causal_images=45,
        draws=20,
        permutations=99,
    )
