"""The first table of a report says how often each network is right on the images, and warns where
that is too seldom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture import Inputs
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.images import Images, from_arrays
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.models import ModelCard, describe
from mixer_probe.models.card import OwnAccuracy
from mixer_probe.models.views import models_section
from mixer_probe.stats import wilson_interval
from mixer_probe.study import StudySettings

RESNET = "zoo:resnet-s0"
WRONG = {"mean": (0.0, 0.0, 0.0), "std": (0.05, 0.05, 0.05)}


@pytest.fixture(scope="module")
def images() -> Images:
    return mp.load_images("demo", limit=50)


@pytest.fixture(scope="module")
def cards(images: Images) -> list[ModelCard]:
    """A network as it is, with a wrong mean and deviation, untrained, and of classes that the
    images do not have."""
    networks = [
        mp.load_model(RESNET, device="cpu"),
        mp.load_model(RESNET, device="cpu", name="wrong", **WRONG),
        mp.load_model(f"{RESNET}?untrained", device="cpu"),
        mp.load_model(
            RESNET, device="cpu", name="strange", class_names=[f"class {i}" for i in range(10)]
        ),
    ]
    return [replace(describe(model), own=own_accuracy(model, images)) for model in networks]


def test_the_accuracy_is_that_of_the_logits(cards: list[ModelCard], images: Images) -> None:
    model = mp.load_model(RESNET, device="cpu")
    with torch.no_grad():
        said = model.module(next(iter(images.batches(transform_of(model), 50)))).argmax(1).numpy()
    right, own = int((said == images.labels).sum()), cards[0].own
    assert own is not None
    assert (own.right, own.n, own.chance) == (right, 50, 0.1)
    assert (own.low, own.high) == wilson_interval(right, 50)
    assert own.stated == mp.zoo.card(RESNET.removeprefix("zoo:")).test_accuracy
    # A study takes the logits from the pass that it makes anyway, beside the layers that it was
    # asked for.
    inputs = Inputs(model, images, settings=StudySettings(layers="stem", analyses={"probing": ()}))
    assert inputs.test.names() == ["act1"]
    assert own_accuracy(model, images, inputs.whole) == own
    # A head that does not give the logits is not taken for them.
    model.module.register_forward_hook(lambda _module, _given, logits: -logits)
    turned = own_accuracy(model, images, inputs.whole)
    assert turned == own_accuracy(model, images)
    assert turned.right < own.right


def test_a_wrong_mean_and_deviation_warn(cards: list[ModelCard]) -> None:
    (section,) = models_section(cards)
    frame = section.content[0].frame  # type: ignore[union-attr]
    plain, _, untrained, strange = frame["accuracy"]
    assert plain.endswith("n = 50; chance 10.0 %; card 93.1 %")
    assert strange == "classes not matched"
    (told,) = [text for text in section.warnings if "check its input" in text]
    assert told.startswith("wrong classifies ")
    assert "below the 93.1 % that its model card states" in told or "not above chance" in told
    assert cards[1].own.high < cards[0].own.low  # type: ignore[union-attr]
    assert "card" not in untrained
    assert any(
        "none of the classes of" in text and "strange" in text for text in section.paragraphs
    )
    assert from_dict(to_dict(cards[0])) == cards[0]


@pytest.mark.parametrize(
    ("right", "stated", "said"),
    [
        (10, 0.9, "not above chance (10.0 %)"),
        (14, np.nan, "not above chance (10.0 %)"),
        (39, 0.92, "below the 92.0 % that its model card states for a set"),
        (88, 0.92, ""),
        (39, np.nan, ""),
    ],
)
def test_what_is_doubted(cards: list[ModelCard], right: int, stated: float, said: str) -> None:
    own = OwnAccuracy(right, 100, *wilson_interval(right, 100), 0.1, stated, "a set")
    (section,) = models_section([replace(cards[0], own=own)])
    assert [text for text in section.warnings if said and said in text] == list(section.warnings)
    assert bool(section.warnings) == bool(said)


def test_images_without_labels_say_so() -> None:
    model = mp.load_model(RESNET, device="cpu")
    own = own_accuracy(model, from_arrays(np.zeros((2, 32, 32, 3), np.uint8)))
    assert (own.n, own.why) == (0, "no labels")
    (section,) = models_section([replace(describe(model), own=own)])
    assert section.content[0].frame["accuracy"].tolist() == ["no labels"]  # type: ignore[union-attr]
    assert not section.warnings
