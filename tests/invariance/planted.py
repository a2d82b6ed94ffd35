"""Networks and images of which it is known what a distortion takes from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixer_probe as mp
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.result import ModelRecord
from mixer_probe.images import Distortion, Images, from_arrays
from mixer_probe.invariance import DistortionAccuracy
from tests.networks import randomised

NAMES = ("top left", "top right", "bottom left", "bottom right")
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [180, 180, 40]])


def quadrants(each: int = 30, size: int = 16) -> Images:
    """Images whose class is the bright quadrant; noise everywhere else is the same."""
    labels = np.tile(np.arange(4), each)
    pixels = np.random.default_rng(0).integers(20, 60, (len(labels), size, size, 3))
    half = size // 2
    for image, label in zip(pixels, labels):
        row, column = divmod(int(label), 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 150
    return from_arrays(pixels.astype(np.uint8), labels, class_names=NAMES, name="quadrants")


def colours(each: int = 30, size: int = 8) -> Images:
    """Images whose class is their mean colour, under noise."""
    labels = np.tile(np.arange(4), each)
    noise = np.random.default_rng(1).integers(-30, 31, (len(labels), size, size, 3))
    pixels = (COLOURS[labels][:, None, None] + noise).clip(0, 255)
    return from_arrays(
        pixels.astype(np.uint8),
        labels,
        class_names=("red", "green", "blue", "yellow"),
        name="colours",
    )


def taught(network: Any, images: Images, size: int, name: str) -> mp.Model:
    """A random network whose linear head was fitted to these very images by least squares, in
    float64."""
    network = randomised(network).double().eval()
    model = mp.load_model(
        network,
        input_size=(3, size, size),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        device="cpu",
        name=name,
    )
    model.class_names = images.class_names
    batch = next(images.batches(transform_of(model), len(images))).double()
    with torch.no_grad():
        features = network.forward_head(network.forward_features(batch), pre_logits=True)
        ones = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
        weights = torch.linalg.lstsq(
            ones, nn.functional.one_hot(torch.from_numpy(images.labels)).double()
        ).solution
        network.head.weight.copy_(weights[:-1].T)
        network.head.bias.copy_(weights[-1])
    return model


def position_reader(images: Images) -> mp.Model:
    """A Mixer that tells which quadrant is bright."""
    network = MlpMixer(img_size=16, patch_size=4, embed_dim=48, num_blocks=2, num_classes=4)
    return taught(network, images, 16, "position-reader")


def bag_of_pixels(images: Images) -> mp.Model:
    """A ViT of one-pixel patches without position embedding: its logits depend on the set of pixels
    alone."""
    network = VisionTransformer(
        img_size=8,
        patch_size=1,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=4,
        pos_embed="none",
        class_token=False,
        global_pool="avg",
    )
    return taught(network, images, 8, "bag-of-pixels")


def answers(
    predicted: np.ndarray,
    labels: np.ndarray,
    distortions: tuple[Distortion, ...] = (),
    name: str = "made",
    family: str = "mixer",
) -> DistortionAccuracy:
    """A result with these predictions [1 + distortion, image]."""
    record = ModelRecord(name, family, True, "made", name, 1)
    images = from_arrays(np.zeros((len(labels), 4, 4, 3), np.uint8), labels).record
    return DistortionAccuracy(record, images, distortions, predicted, labels, int(labels.max()) + 1)


def answers_right(
    right: np.ndarray, distortions: tuple[Distortion, ...] = (), **named: str
) -> DistortionAccuracy:
    """A result of ten classes that is right where `right` [1 + distortion, image] says so, and off
    by one elsewhere."""
    labels = np.arange(right.shape[1]) % 10
    return answers(np.where(right, labels, (labels + 1) % 10), labels, distortions, **named)
