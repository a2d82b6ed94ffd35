"""Images for training: the pixels of the files, decoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import ImagesError, StoreError
from mixer_probe.images.labelled import Images, from_arrays
from mixer_probe.training import examples, training_images
from mixer_probe.zoo.cards import CLASS_NAMES
from tests.training import small

PIXELS = np.random.default_rng(0).integers(256, size=(6, 8, 12, 3), dtype=np.uint8)


@pytest.fixture
def made() -> Images:
    return from_arrays(PIXELS, [0, 1, 0, 1, 1, 0], class_names=("a", "b"), name="made")


def test_pixels_labels_and_classes_are_those_of_the_images(made: Images) -> None:
    found = training_images(made, (8, 12))
    assert found.pixels.dtype == torch.uint8
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), PIXELS)
    assert found.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert (found.class_names, found.fingerprint) == (("a", "b"), made.fingerprint)
    assert found.description == f"made: 6 images, fingerprint {made.fingerprint[:16]}"


def test_images_of_another_size_are_resized(made: Images) -> None:
    grey = from_arrays(np.full((2, 20, 20, 3), 90, np.uint8), [0, 1], class_names=("a", "b"))
    assert torch.equal(
        training_images(grey, (8, 8)).pixels, torch.full((2, 3, 8, 8), 90, dtype=torch.uint8)
    )
    assert training_images(made, (4, 6)).pixels.shape == (6, 3, 4, 6)


def test_images_are_decoded_once(
    made: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training_images(made, (8, 12), tmp_path)
    monkeypatch.setattr(examples, "_decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(training_images(made, (8, 12), tmp_path).pixels, first.pixels)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(StoreError, match=r"8x12\.npy cannot be read .*; remove the file") as error:
        training_images(made, (8, 12), tmp_path)
    assert "\n" not in str(error.value)


def test_images_without_labels_or_class_names_are_refused() -> None:
    with pytest.raises(ImagesError, match="label"):
        training_images(from_arrays(PIXELS), (8, 12))
    with pytest.raises(ImagesError, match="class names"):
        training_images(from_arrays(PIXELS, [0] * 6), (8, 12))


def test_a_subset_is_known_by_its_images() -> None:
    whole = small.images(9)
    one, other = whole.subset(torch.tensor([2, 0])), whole.subset(torch.tensor([0, 2]))
    assert torch.equal(one.pixels, whole.pixels[[2, 0]])
    assert one.labels.tolist() == [2, 0]
    assert len({part.fingerprint for part in (whole, one, other)}) == 3
    assert one.fingerprint == whole.subset(torch.tensor([2, 0])).fingerprint
    assert replace(one, note="x").description == one.description


def test_cifar10_can_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in place of the network: what is asked for."""
    pixels = np.random.default_rng(0).integers(256, size=(10, 32, 32, 3), dtype=np.uint8)
    asked: list[object] = []

    def fetch(source: str, **how: object) -> Images:
        asked.append((source, how))
        return from_arrays(pixels, range(10), class_names=CLASS_NAMES)

    monkeypatch.setattr(examples, "load_images", fetch)
    found = examples.cifar10("torch/cifar10", "train", tmp_path)
    wanted = {"split": "train", "root": tmp_path / "cifar10", "download": True}
    assert asked == [("torch/cifar10", wanted)]
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), pixels)
    assert found.name == "CIFAR-10/train"
    # Decoded once.
    monkeypatch.setattr(examples, "_decode", lambda *_: pytest.fail("decoded again"))
    assert len(examples.cifar10("torch/cifar10", "train", tmp_path)) == 10
