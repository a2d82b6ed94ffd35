"""Three tiny networks and one small study of them, shared by the tests of figures and reports."""

from __future__ import annotations

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

import mixer_probe as mp
from mixer_probe.core.result import Result
from mixer_probe.study import StudySettings, run_study

SPEC = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}


def tiny_models() -> list[mp.Model]:
    torch.manual_seed(0)
    return [
        mp.load_model(
            MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2),
            name="tiny-mixer",
            **SPEC,
        ),
        mp.load_model(
            VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2),
            name="tiny-vit",
            **SPEC,
        ),
        mp.load_model(
            ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), stem_width=8),
            name="tiny-resnet",
            **SPEC,
        ),
    ]


@pytest.fixture(scope="session")
def study() -> list[Result]:
    images, train = (
        mp.load_images("demo", limit=60),
        mp.load_images("demo", split="train", limit=60),
    )
    return run_study(tiny_models(), images, train, StudySettings(permutations=20))


def one_of_each(results: list[Result]) -> list[Result]:
    """The first result of every kind: every section of a report with few pictures, where drawing
    them all shows nothing more."""
    return list({type(r): r for r in reversed(results)}.values())[::-1]
