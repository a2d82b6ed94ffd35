"""Small networks of 32 px and five classes, one name each."""

from __future__ import annotations

import torch
from timm.models.resnet import Bottleneck, ResNet

import mixer_probe as mp
from tests.networks import CASES, as_model, noise, randomised, settled


def small(name: str, dtype: torch.dtype = torch.float64) -> mp.Model:
    if name != "resnet":
        return CASES[name].model(dtype)
    network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, channels=(8, 8, 8, 8), stem_width=8)
    return as_model(settled(randomised(network), noise(8)).eval(), dtype=dtype)
