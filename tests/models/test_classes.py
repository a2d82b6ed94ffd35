"""Which output of a network a label means: by the names of the zoo, of ImageNet, or those given;
else refused with both lists."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import mixer_probe as mp
from mixer_probe.attribution import layer_conductance
from mixer_probe.core.errors import ImagesError, ImagesWarning, MeasureError
from mixer_probe.images import Images, from_arrays
from mixer_probe.images.classes import imagenet_names
from mixer_probe.images.distortions import LowPass
from mixer_probe.invariance import distortion_accuracy
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from tests.tiny import tiny_models

CIFAR = ("automobile", "frog", "ship")
# Where the network has them, as CIFAR-10 is ordered.
WHERE = [1, 6, 8]


def pictures(names: tuple[str, ...] | None, size: int = 32) -> Images:
    """One image a class, as a folder of these names has them."""
    n = 3 if names is None else len(names)
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return from_arrays(pixels, np.arange(n), class_names=names, name="folder")


@pytest.fixture(scope="module")
def zoo() -> mp.Model:
    return mp.load_model("zoo:mixer?untrained", device="cpu")


@pytest.fixture(scope="module")
def imagenet() -> mp.Model:
    return tiny_models()[0]


PAIRED: dict[str, Callable[[mp.Model, Images], np.ndarray]] = {
    "labels as outputs": labels_as_outputs,
    "attribution": lambda m, i: mp.attribute(m, i, "saliency", target="labels").targets,
    "true classes of maps": lambda m, i: mp.attribute(m, i, "saliency", target=0).labels,
    "conductance": lambda m, i: layer_conductance(m, i, target="labels", n_steps=2).targets,
    "accuracy": lambda m, i: distortion_accuracy(m, i, (LowPass(8.0),)).labels,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRED)
def test_a_folder_of_three_classes_means_these_three_outputs(zoo: mp.Model, name: str) -> None:
    assert PAIRED[name](zoo, pictures(CIFAR)).tolist() == WHERE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in PAIRED if name != "true classes of maps"])
def test_classes_that_are_no_outputs_are_refused_with_both_lists(zoo: mp.Model, name: str) -> None:
    with pytest.raises(
        MeasureError,
        match=r"1 class .* among its 10: 'sledge' .*'frog', 'sledge'; the latter 'airplane', 'auto",
    ):
        PAIRED[name](zoo, pictures(("frog", "sledge")))
    with pytest.raises(ImagesError, match="have no labels"):
        PAIRED[name](zoo, from_arrays(np.zeros((2, 32, 32, 3), np.uint8)))


def test_a_map_whose_images_are_of_unknown_classes_has_no_true_class(zoo: mp.Model) -> None:
    found = mp.attribute(zoo, pictures(("frog", "sledge")), "saliency", target=6)
    assert found.labels.tolist() == [-1, -1]
    assert found.target_names == ("frog", "frog")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("n01440764", "n01443537"), [0, 1]),
        (("Goldfish", "TENCH"), [1, 0]),
        (("great_white_shark", "tench, Tinca tinca"), [2, 0]),
        # A synonym that only one class has, and a word that is first in one class and second in
        # another.
        (("Tinca tinca", "partridge"), [0, 86]),
        (("crane (n02012849)", "crane (n03126707)"), [134, 517]),
    ],
)
def test_classes_of_imagenet_by_name_and_wordnet_id(
    imagenet: mp.Model, names: tuple[str, ...], expected: list[int]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels_as_outputs(imagenet, pictures(names)).tolist() == expected


def test_every_class_of_imagenet_has_a_name_of_its_own(imagenet: mp.Model) -> None:
    outputs, photos = outputs_of(imagenet), mp.load_images("photos")
    assert [outputs.find(name) for name in outputs.names] == list(range(1000))
    assert outputs.find("crane") is outputs.find("cardigan") is None
    assert photos.class_names == outputs.names == imagenet_names()
    assert labels_as_outputs(imagenet, photos).tolist() == photos.labels.tolist()  # type: ignore[union-attr]


def test_numbers_are_outputs_where_all_folders_are_numbers(
    imagenet: mp.Model, zoo: mp.Model
) -> None:
    folders = tuple(sorted(map(str, (1, 2, 10, 999))))
    with pytest.warns(
        ImagesWarning,
        match=r"called by numbers, which are taken for the numbers of tiny-mixer's 1000 outputs",
    ):
        assert labels_as_outputs(imagenet, pictures(folders)).tolist() == [1, 10, 2, 999]
    with pytest.warns(ImagesWarning, match="have no names, .* 10 outputs, so that 0 is 'airplane'"):
        assert labels_as_outputs(zoo, pictures(None)).tolist() == [0, 1, 2]
    for names in (("1", "10"), ("1", "frog"), ("-1", "2"), ("1.5", "2")):
        with pytest.raises(MeasureError, match="among"):
            labels_as_outputs(zoo, pictures(names))


def test_a_network_of_ones_own_is_told_what_its_outputs_are() -> None:
    network = mp.load_model("zoo:resnet?untrained", device="cpu").module
    given = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}
    images, names = pictures(CIFAR), [f"class {i}" for i in range(7)] + list(CIFAR)
    with pytest.raises(
        MeasureError,
        match=r"10 outputs of ResNet .* is not known.*'automobile', 'frog', 'ship'.*class_names=",
    ):
        labels_as_outputs(mp.load_model(network, **given), images)
    named = mp.load_model(network, class_names=names, **given)
    assert labels_as_outputs(named, images).tolist() == [7, 8, 9]
    assert labels_as_outputs(named.untrained(), images).tolist() == [7, 8, 9]
    with pytest.raises(MeasureError, match="has 10 outputs and 2 class_names"):
        labels_as_outputs(mp.load_model(network, class_names=names[:2], **given), images)
    network.pretrained_cfg = {"label_names": names[::-1]}
    assert labels_as_outputs(mp.load_model(network, **given), images).tolist() == [2, 1, 0]
    network.reset_classifier(0)
    with pytest.raises(MeasureError, match="has no classifier"):
        labels_as_outputs(mp.load_model(network, **given), images)


def test_folders_on_disk(zoo: mp.Model, tmp_path) -> None:
    for name in CIFAR:
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "a.png")
    found = mp.attribute(zoo, mp.load_images(tmp_path), "saliency", target="labels")
    assert found.targets.tolist() == WHERE
    assert found.target_names == CIFAR
    logits = zoo.module(torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, 10)
