"""Every public function of models, images, labels or results, given others than before: the right number, or a named error.

`ALONE` are functions of a model and images: after the change they give what they give for objects that never were anything else.
`TOGETHER` are functions of two things that must belong together: each change either leaves the number what it is, or is refused.
`NEITHER` says why the rest is not walked. A public function without a row fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture.stream import transform_of
from mixer_probe.errors import MixerProbeError
from mixer_probe.images import Images, from_arrays
from mixer_probe.models import Model
from mixer_probe.results import same, to_dict
from tests.networks import CASES

N = 18
CLASSES = ("cat", "dog", "frog")
NO_DRAWS: dict[str, Any] = {"permutations": 0, "resamples": 0}


@dataclass(frozen=True)
class World:
    """A network, images to fit on, and others to test on."""

    model: Model
    images: Images
    test: Images


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)


def images_of(seed: int, classes: tuple[str, ...] = CLASSES) -> Images:
    labels = np.arange(N) % len(classes)
    return from_arrays(pictures(seed), labels, class_names=classes, name="pictures")


def world(case: str = "mixer") -> World:
    return World(CASES[case].model(), images_of(0), images_of(1))


def equal_names(w: World) -> World:
    return replace(w, images=images_of(2))


def permuted(w: World) -> World:
    return replace(w, images=w.images.subset(np.roll(np.arange(N), 1)))


def changed_weights(w: World) -> World:
    """In place, past every counter of changes."""
    for parameter in w.model.module.parameters():
        parameter.data.mul_(1.25)
    return w


def other_preprocessing(w: World) -> World:
    w.model.input = replace(w.model.input, mean=(0.2, 0.3, 0.4))
    return w


CHANGES = (equal_names, permuted, changed_weights, other_preprocessing)

Call = Callable[[World], Any]


def _convolved(w: World) -> np.ndarray:
    (inputs,) = w.images.batches(transform_of(w.model), N)
    with torch.no_grad():
        return mp.as_convolution(w.model)(inputs).numpy()


def _numbers(reps: mp.Representations) -> dict[str, np.ndarray]:
    return {name: reps[name] for name in reps}


ALONE: dict[str, Call] = {
    "anatomy": lambda w: mp.anatomy(w.model),
    "as_convolution": _convolved,
    "attribute": lambda w: mp.attribute(w.model, w.images, "gradcam"),
    "channel_statistics": lambda w: mp.channel_statistics(w.model, w.images),
    "compare_models": lambda w: mp.compare_models(w.model, w.model, w.images, **NO_DRAWS),
    "extract": lambda w: _numbers(mp.extract(w.model, w.images, "all")),
    "spatial_kernels": lambda w: mp.spatial_kernels(w.model, draws=19),
    "stem_filters": lambda w: mp.stem_filters(w.model),
    "top_images": lambda w: mp.top_images(w.model, w.images, "blocks.0", [0, 1], k=3),
    "visualize": lambda w: mp.visualize(w.model, "blocks.0", [0], images=w.images, seeds=(0,), steps=1, k=2),
    "weight_spectra": lambda w: mp.weight_spectra(w.model, null_size=50),
}


def _probe(before: World, after: World) -> Any:
    return mp.linear_probe(mp.extract(before.model, before.images), mp.extract(after.model, before.test), l2=1.0)


def _curves(before: World, after: World) -> Any:
    maps = mp.attribute(before.model, before.images, "gradcam")
    return mp.attribution.perturbation_curves(after.model, after.images, [maps], steps=2, random_orders=1)


def _means(before: World, after: World) -> Any:
    reps = mp.extract(before.model, before.images)
    return mp.channels.top_means(after.model, after.images, reps, {"blocks.0": [0]}, k=2)


def _two(measure: Callable[[Any, Any], Any]) -> Callable[[World, World], Any]:
    return lambda before, after: measure(mp.extract(before.model, before.images), mp.extract(after.model, after.images))


def _panel(before: World, after: World) -> Any:
    return mp.attribution.attribution_panel([mp.attribute(before.model, before.images, "gradcam")], after.images)


def _agreement(before: World, after: World) -> Any:
    return mp.attribution.agreement([mp.attribute(w.model, w.images, "gradcam") for w in (before, after)], permutations=19)


# The function, and which changes belong to its question: a comparison of networks is of networks that differ.
TOGETHER: dict[str, tuple[Callable[[World, World], Any], tuple[Callable[[World], World], ...]]] = {
    "compare": (_two(lambda a, b: mp.compare(a, b, **NO_DRAWS)), (changed_weights, other_preprocessing)),
    "channel_partners": (
        _two(lambda a, b: mp.channel_partners(a, b, "blocks.0", "blocks.1", permutations=19)),
        (changed_weights, other_preprocessing),
    ),
    # Other training images are no change here: those to test on are others in any case.
    "linear_probe": (_probe, (equal_names, permuted)),
    "attribution.perturbation_curves": (_curves, ()),
    "attribution.attribution_panel": (_panel, (changed_weights, other_preprocessing)),
    "attribution.agreement": (_agreement, (changed_weights, other_preprocessing)),
    "channels.top_means": (_means, ()),
}

NEITHER = {
    "Images": "a record of images",
    "Layer": "a record of a place",
    "Model": "a record of a network",
    "Representations": "a record of numbers; see tests/core/test_fingerprint.py",
    "__version__": "a text",
    "cka": "takes matrices, which know no images",
    "class_selectivity": "one run, which holds its own labels",
    "dissect": "masks meet images by name, as their files do; see tests/channels/test_dissection.py",
    "kernel_tying": "as spatial_kernels, with more draws",
    "list_models": "takes a text",
    "load_concepts": "annotations meet images by name, as their files do; see tests/images/test_concepts.py",
    "load_images": "makes images",
    "load_model": "makes models",
    "load_results": "reads what was saved; see tests/test_errors_and_results.py",
    "open_run": "reads what was saved; see tests/capture/test_store.py",
    "position_embeddings": "as stem_filters, of networks that have them",
    "save_results": "writes what it is given",
    "token_mixing": "as spatial_kernels, with surrogates",
    "write_report": "draws what it is given",
}


def plain(value: Any) -> Any:
    return to_dict(value) if not isinstance(value, (dict, np.ndarray)) else value


def quietly(call: Callable[..., Any], *given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*given)


def test_every_public_function_has_a_row() -> None:
    modules = {name for name in mp.__all__ if type(getattr(mp, name)).__name__ == "module"}
    rows = [name for table in (ALONE, TOGETHER, NEITHER) for name in table if "." not in name]
    assert sorted(rows) == sorted(set(mp.__all__) - modules)


@pytest.mark.parametrize("name", ALONE)
def test_after_a_change_a_function_gives_what_it_gives_for_new_objects(name: str) -> None:
    call = ALONE[name]
    used = world()
    before = plain(quietly(call, used))
    for change in CHANGES:
        used = change(used)
        new = world()
        for done in CHANGES[: CHANGES.index(change) + 1]:
            new = done(new)
        after = plain(quietly(call, used))
        assert same(after, plain(quietly(call, new))), change.__name__
    assert not same(after, before)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_does_not_belong_together_is_refused(name: str) -> None:
    call, allowed = TOGETHER[name]
    assert quietly(call, world(), world()) is not None
    for change in CHANGES:
        if change in allowed:
            assert quietly(call, world(), change(world())) is not None
        else:
            with pytest.raises(MixerProbeError):
                quietly(call, world(), change(world()))


def fitted(test: Images) -> Any:
    w = world()
    return mp.linear_probe(mp.extract(w.model, w.images), mp.extract(w.model, test), l2=1.0)


def test_labels_of_another_set_mean_what_their_names_say() -> None:
    """A class that is missing, and one more, among the images to test on."""
    test = images_of(1)
    right = fitted(test)
    renamed = replace(test, labels=np.array([2, 1, 0])[test.labels], class_names=CLASSES[::-1])  # type: ignore[index]
    np.testing.assert_array_equal(fitted(renamed).accuracy, right.accuracy)
    without = test.subset(test.labels != 0)
    fewer = replace(without, labels=without.labels - 1, class_names=CLASSES[1:])  # type: ignore[operator]
    np.testing.assert_array_equal(fitted(fewer).accuracy, fitted(without).accuracy)
    with pytest.raises(MixerProbeError, match="bird"):
        fitted(images_of(1, (*CLASSES, "bird")))
