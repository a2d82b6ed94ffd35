"""What `test_identity_walk` walks: worlds of a network and images, what can change in them, and a
row per public function."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import mixer_probe as mp
from mixer_probe.attribution.figures import attribution_overlays
from mixer_probe.capture import input_pictures
from mixer_probe.capture.stream import transform_of
from mixer_probe.concepts import (
    DictionaryRecipe,
    GridActivations,
    concept_atoms,
    fit_dictionary,
)
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.result import Result, load_results, save_results
from mixer_probe.images import (
    DistortedImages,
    Images,
    LowPass,
    class_concepts,
    from_arrays,
    paper_shuffle,
)
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.models import Model
from mixer_probe.probing.targets import AlteredImages
from tests.networks import CASES, as_model

N, SIZE = 18, 32
CLASSES = ("cat", "dog", "frog")
# What the five outputs of every small network are called.
OUTPUTS = (*CLASSES, "bird", "ship")
FEW: dict[str, Any] = {"permutations": 19}
NO_DRAWS: dict[str, Any] = {"permutations": 0, "resamples": 0}
GROUPS = {"cat": "beast", "dog": "beast", "frog": "other"}
BLUR = (LowPass(2.0),)


# -- worlds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A network, images to fit on, and others to test on, from `folders` or from arrays."""

    model: Model
    images: Images
    test: Images
    folders: bool

    @property
    def reps(self) -> mp.Representations:
        return _first_reps()[0] if self is first() else mp.extract(self.model, self.images)

    @property
    def runs(self) -> tuple[mp.Representations, mp.Representations]:
        return _first_reps() if self is first() else (self.reps, mp.extract(self.model, self.test))


def pictures(seed: int) -> np.ndarray:
    """Noise with a colour by class of three, so that classes can be told."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 200, (N, SIZE, SIZE, 3), dtype=np.uint8)
    return noise + 55 * (np.arange(3) == np.arange(N)[:, None] % 3)[:, None, None].astype(np.uint8)


@cache
def _top() -> Path:
    return Path(tempfile.mkdtemp(prefix="walk-"))


@cache
def folder(seed: int, classes: tuple[str, ...]) -> Path:
    """PNG files that are called the same whatever they show."""
    top = _top() / f"{seed}-{len(classes)}" / "pictures"
    for i, picture in enumerate(pictures(seed)):
        file = top / classes[i % len(classes)] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return top


def images_of(seed: int, folders: bool, classes: tuple[str, ...] = CLASSES) -> Images:
    if folders:
        return mp.load_images(folder(seed, classes))
    return from_arrays(
        pictures(seed), np.arange(N) % len(classes), class_names=classes, name="pictures"
    )


@cache
def _network(case: str) -> nn.Module:
    return CASES[case].network()


def world(case: str = "mixer", folders: bool = False) -> World:
    model = as_model(copy.deepcopy(_network(case)), SIZE, class_names=OUTPUTS)
    return World(model, images_of(0, folders), images_of(1, folders), folders)


@cache
def first() -> World:
    """What others are held against, of which nothing changes."""
    return world()


@cache
def _first_reps() -> tuple[mp.Representations, mp.Representations]:
    w = first()
    return mp.extract(w.model, w.images), mp.extract(w.model, w.test)


@cache
def other_network(case: str) -> Model:
    return as_model(_network(case), SIZE)


# -- changes ---------------------------------------------------------------------------------------

Change = Callable[[World], World]


def equal_names(w: World) -> World:
    return replace(w, images=images_of(2, w.folders))


def permuted(w: World) -> World:
    return replace(w, images=w.images.subset(np.roll(np.arange(len(w.images)), 1)))


def missing_class(w: World) -> World:
    """No image of the first class, and no name of it: every label counts from another name."""
    return replace(w, images=without_first(w.images))


def extra_class(w: World) -> World:
    return replace(w, images=images_of(3, w.folders, (*CLASSES, "bird")))


def changed_weights(w: World) -> World:
    """In place, past every counter of changes, and of the head in other proportions than of the
    rest."""
    for i, parameter in enumerate(w.model.module.parameters()):
        parameter.data.mul_(1.25 + 0.01 * i)
    return w


def other_preprocessing(w: World) -> World:
    w.model.input = replace(w.model.input, mean=(0.2, 0.3, 0.4))
    return w


OF_IMAGES: tuple[Change, ...] = (equal_names, permuted, missing_class, extra_class)
OF_MODELS: tuple[Change, ...] = (changed_weights, other_preprocessing)
CHANGES = (*OF_IMAGES, *OF_MODELS)


def without_first(images: Images) -> Images:
    assert images.labels is not None
    assert images.class_names is not None
    some = images.subset(images.labels != 0)
    return replace(some, labels=some.labels - 1, class_names=images.class_names[1:])  # type: ignore[operator]


# -- what a call gave ------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Numbers and names of what a function gave, for `mixer_probe.core.result.same`."""
    if isinstance(value, Model):
        return value.fingerprint
    if isinstance(value, (Images, DistortedImages, AlteredImages)):
        return [value.keys, value.ids, value.labels, value.class_names]
    if isinstance(value, mp.Representations):
        return [
            {name: value[name] for name in value},
            value.keys,
            value.labels,
            value.class_names,
            plain(value.record),
        ]
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            type(value).__name__,
            {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)},
        ]
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def quietly(call: Callable[..., Any], *given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain(call(*given))


# -- functions of one network and its images -------------------------------------------------------

Alone = Callable[[World], Any]
Together = Callable[[World, World], Any]


def _convolved(w: World) -> np.ndarray:
    (inputs,) = w.images.batches(transform_of(w.model), N)
    with torch.no_grad():
        return mp.as_convolution(w.model)(inputs).numpy()


def _stitched(w: World) -> Any:
    return mp.concepts.stitch(
        w.model, w.model, w.test, w.images, layers="blocks.0", controls=("shuffled",)
    )


def _outputs(model: Model, w: World) -> np.ndarray:
    (inputs,) = w.images.batches(transform_of(w.model), N)
    with torch.no_grad():
        return model.module(inputs).numpy()


def _streamed(w: World) -> Any:
    streaming, batches = mp.similarity.StreamingCKA(), mp.similarity.MinibatchCKA(permutations=19)
    reps = w.reps
    for rows in (slice(0, 8), slice(8, None)):
        part = {name: reps.rows(name, rows) for name in reps}
        streaming.update(part, part)
        batches.update(part, part)
    return streaming.compute(**NO_DRAWS), batches.compute()


def _saved(w: World) -> Any:
    path = _top() / "saved.json"
    save_results([mp.channel_statistics(w.model, w.images)], path)
    return load_results(path)


def _written(w: World) -> Any:
    found, out = [mp.models.describe(w.model)], _top() / "report"
    mp.report.export_report(found, out, "walked")
    return mp.write_report(found, out / "page.html").read_text(), load_results(out)


def _costs(w: World) -> Any:
    of_one, of_all = (
        mp.cost.model_cost(w.model, batch_size=1, runs=3),
        mp.cost.model_costs([w.model], batch_size=1, runs=3),
    )
    return [(cost.model, cost.macs, cost.bytes_per_image) for cost in (of_one, *of_all)]


def _labelled(w: World) -> tuple[np.ndarray, np.ndarray]:
    labels = w.images.labels
    assert labels is not None
    return w.reps["blocks.0"], labels


def _paths(w: World) -> Any:
    X, y = _labelled(w)
    p = mp.probing
    made = (
        p.ridge_path(X, y, [1.0]),
        p.logistic_path(X, y, [1.0]),
        *p.logistic_paths([X], y, [1.0]),
        p.knn_path(X, y),
        p.centroid_path(X, y),
    )
    return [path.scores(X) for path in made], p.big_vision_probe(X, y)


def _pixels(w: World) -> Any:
    return mp.linear_probe(*mp.probing.pixel_baseline(w.images, w.test, 4), l2=[1.0])


def _shifted(w: World) -> Any:
    one = mp.invariance.image_response(w.model, w.images)
    return mp.invariance.image_shift(w.reps, None, one, one).to_dict("list")


def _inside(w: World, what: Any, images: Any = None) -> Any:
    """Representations of the network with its first block changed."""
    with mp.intervene(w.model, {"blocks.0": what}, images=images):
        return mp.extract(w.model, w.test)


def _atoms(w: World) -> Any:
    """Atoms of a dictionary of one network; some images twice, for a dictionary needs more."""
    images = w.images.subset(np.arange(24) % len(w.images))
    part = GridActivations.of(w.model, images, "blocks.0", (2, 2))
    found = fit_dictionary([part], DictionaryRecipe(atoms=8, active=2, epochs=2))
    few: dict[str, Any] = {"most": 3, "k": 1, "causal_images": 9, "draws": 1, **FEW}
    return concept_atoms(found, [w.model], [part], images, **few)


def _shared(w: World) -> Any:
    """What two networks share that are one; some images twice, for a dictionary needs more."""
    images = w.images.subset(np.arange(24) % len(w.images))
    recipe = DictionaryRecipe(atoms=8, active=2, epochs=1)
    few: dict[str, Any] = {"grid": (2, 2), "factors": 2, "profiled": 0, "controls": (), "seeds": 1}
    return mp.concepts.shared_concepts(
        [w.model, w.model], images, images, ["blocks.0", "blocks.0"], recipe, **few
    )


ALONE: dict[str, Alone] = {
    "anatomy": lambda w: mp.anatomy(w.model),
    "as_convolution": _convolved,
    "attention_distance": lambda w: mp.attention_distance(w.model, w.images),
    "attribute": lambda w: mp.attribute(w.model, w.images, "gradcam", target="labels"),
    "channel_statistics": lambda w: mp.channel_statistics(w.model, w.images),
    "cka": lambda w: mp.cka(w.reps["blocks.0"], w.reps["blocks.1"]),
    "class_selectivity": lambda w: mp.class_selectivity(w.reps, **FEW),
    "compare_models": lambda w: mp.compare_models(w.model, w.model, w.images, **NO_DRAWS),
    "dissect": lambda w: mp.dissect(w.model, w.images, class_concepts(w.images), **FEW),
    "effective_receptive_field": lambda w: mp.effective_receptive_field(w.model, w.images),
    "extract": lambda w: mp.extract(w.model, w.images, "all"),
    "intervene": lambda w: _inside(w, mp.ablate("mean"), w.images),
    "kernel_tying": lambda w: mp.kernel_tying(w.model, w.images, draws=1, components=2),
    "load_results": _saved,
    "patch": lambda w: _inside(w, mp.patch(mp.extract(w.model, w.images, reduce="none"))),
    "position_embeddings": lambda w: mp.position_embeddings(w.model),
    "spatial_mixing": lambda w: mp.spatial_mixing(w.model, w.images.subset(range(4))),
    "spatial_kernels": lambda w: mp.spatial_kernels(w.model, draws=19),
    "stem_filters": lambda w: mp.stem_filters(w.model),
    "token_mixing": lambda w: mp.token_mixing(w.model, surrogates=19, shuffles=1),
    "top_images": lambda w: mp.top_images(w.model, w.images, "blocks.0", [0, 1], k=3),
    "visualize": lambda w: mp.visualize(
        w.model, "blocks.0", [0], images=w.images, seeds=(0,), steps=1, k=2
    ),
    "weight_spectra": lambda w: mp.weight_spectra(w.model, null_size=50),
    "write_report": _written,
    "attribution.allowed_methods": lambda w: mp.attribution.allowed_methods(w.model),
    "attribution.layer_conductance": lambda w: mp.attribution.layer_conductance(
        w.model, w.images, "blocks.0", n_steps=2, max_steps=2
    ),
    "attribution.patch_grid": lambda w: mp.attribution.patch_grid(w.model),
    "channels.activation_maps": lambda w: mp.channels.activation_maps(
        w.model, w.images, [1, 2], "blocks.0", 3
    ),
    "channels.auroc_of": lambda w: mp.channels.auroc_of(*_labelled(w)),
    "channels.dprime_of": lambda w: mp.channels.dprime_of(*_labelled(w)),
    "capture.input_pictures": lambda w: input_pictures(w.model, w.images, [1, 2]),
    "channels.morcos_index": lambda w: mp.channels.morcos_index(
        np.abs(_labelled(w)[0]), _labelled(w)[1]
    ),
    "channels.top_unit_images": lambda w: mp.channels.top_unit_images(
        w.model, w.images, "blocks.0.mlp_tokens.act", 3
    ),
    "channels.unit_activations": lambda w: mp.channels.unit_activations(
        w.model,
        w.images,
        ("blocks.0.norm1", "blocks.0.mlp_tokens.act"),
        1,
        np.arange(2),
        np.arange(2),
    ),
    "channels.unit_layers": lambda w: mp.channels.unit_layers(
        mp.token_mixing(w.model, surrogates=1, shuffles=1), 0
    ),
    "channels.top_and_lowest": lambda w: mp.channels.top_and_lowest(
        w.model, w.images, {"blocks.0": 0}, k=2
    ),
    "concepts.stitch": _stitched,
    "cost.at_resolution": lambda w: _outputs(mp.cost.at_resolution(w.model, SIZE), w),
    "cost.cost_growth": lambda w: mp.cost.cost_growth(w.model, [32, 64], timed=0).macs,
    "cost.count_parts": lambda w: mp.cost.count_parts(w.model),
    "cost.feature_layer": lambda w: mp.cost.feature_layer(w.model),
    "cost.head_parameters": lambda w: mp.cost.head_parameters(w.model),
    "cost.model_cost": _costs,
    "cost.peak_activation_bytes": lambda w: mp.cost.peak_activation_bytes(w.model),
    "concepts.concept_atoms": _atoms,
    "concepts.shared_concepts": _shared,
    "images.class_concepts": lambda w: [
        class_concepts(w.images).attributes,
        class_concepts(w.images).names,
    ],
    "images.distort": lambda w: [
        mp.images.distort(w.images, LowPass(2.0)),
        [np.asarray(i) for i in w.images],
    ],
    "invariance.absorb_distortion": lambda w: _outputs(
        mp.invariance.absorb_distortion(w.model, paper_shuffle(4)), w
    ),
    "invariance.distortion_accuracy": lambda w: mp.invariance.distortion_accuracy(
        w.model, w.images, BLUR
    ),
    "invariance.distortion_examples": lambda w: mp.invariance.distortion_examples(
        w.model, w.images, BLUR, 2
    ),
    "invariance.image_response": lambda w: vars(mp.invariance.image_response(w.model, w.images)),
    "invariance.image_shift": _shifted,
    "invariance.neighbours_by_layer": lambda w: vars(
        mp.invariance.neighbours_by_layer(w.reps, 1, 3)
    ),
    "invariance.own_grid": lambda w: mp.invariance.own_grid(w.model),
    "invariance.permute_patches": lambda w: _outputs(
        mp.invariance.permute_patches(w.model, np.roll(np.arange(16), 1)), w
    ),
    "invariance.predictions": lambda w: [
        mp.invariance.predictions(w.model, w.images, BLUR),
        _outputs(w.model, w),
    ],
    "invariance.representation_shift": lambda w: mp.invariance.representation_shift(
        w.model, w.images, BLUR, **NO_DRAWS
    ),
    "invariance.standard_distortions": lambda w: mp.invariance.standard_distortions(w.model),
    "mixing.attention_maps": lambda w: mp.mixing.attention_maps(w.model, w.images, "blocks.1"),
    "mixing.branch_ends": lambda w: mp.mixing.branch_ends(w.model),
    "mixing.frequency_profile": lambda w: mp.mixing.frequency_profile(w.model, w.images),
    "mixing.residual_stream": lambda w: mp.mixing.residual_stream(w.model, w.images),
    "mixing.theoretical_field": lambda w: mp.mixing.theoretical_field(w.model),
    "mixing.class_lens": lambda w: mp.mixing.class_lens(
        w.model, w.images, w.test, jacobian_images=3
    ),
    "mixing.token_components": lambda w: mp.mixing.token_components(w.model, w.images),
    "mixing.lesions": lambda w: mp.mixing.lesions(w.model, w.images),
    "mixing.unit_importance": lambda w: mp.mixing.unit_importance(
        w.model, w.images, "blocks.1", most=3, permutations=19
    ),
    "models.describe": lambda w: mp.models.describe(w.model),
    "probing.confusion_matrix": lambda w: mp.probing.confusion_matrix(
        mp.linear_probe(*w.runs, l2=[1.0])
    ),
    "probing.image_targets": lambda w: mp.probing.image_targets(w.images),
    "probing.ridge_path": _paths,
    "probing.patch_position_probe": lambda w: mp.probing.patch_position_probe(
        w.model, w.images, w.test, "blocks.0"
    ),
    "probing.pixel_baseline": lambda w: mp.probing.pixel_baseline(w.images, w.test, 4),
    "probing.planted_images": lambda w: mp.probing.planted_images(w.images),
    "probing.raw_pixels": lambda w: mp.probing.raw_pixels(w.images, 4),
    "probing.shifted_images": lambda w: mp.probing.shifted_images(w.images),
    "report.make_sections": lambda w: [
        repr(s) for s in mp.report.make_sections([mp.models.describe(w.model)])
    ],
    "report.narrate": lambda w: mp.report.narrate([mp.linear_probe(*w.runs, l2=[1.0]), _pixels(w)]),
    "study.run_analyses": lambda w: mp.study.run_analyses(
        [w.model], {"weights": ["stem", "tying"]}, w.images
    ),
    "similarity.best_matches": lambda w: mp.similarity.best_matches(
        mp.compare(w.reps, w.reps, **NO_DRAWS)
    ),
    "similarity.StreamingCKA": _streamed,
    "weights.convolution_equivalence": lambda w: mp.weights.convolution_equivalence(
        w.model, w.images
    ),
    "weights.dependence": lambda w: mp.weights.dependence(
        w.model, lambda path, found: "." not in path
    ),
    "weights.paper_figures": lambda w: mp.weights.paper_figures(w.model, surrogates=3, shuffles=1),
    "weights.stem_components": lambda w: mp.weights.stem_components(mp.stem_filters(w.model)),
    "weights.token_matrices": lambda w: mp.weights.token_matrices(w.model),
}
# Rows of another network than the Mixer.
CASE = {
    "attention_distance": "vit",
    "mixing.attention_maps": "vit",
    "position_embeddings": "vit",
}
# What depends on a network's architecture alone: the same after every change.
ARCHITECTURE = {
    "attribution.allowed_methods",
    "attribution.patch_grid",
    "channels.unit_layers",
    "cost.cost_growth",
    "cost.count_parts",
    "cost.feature_layer",
    "cost.head_parameters",
    "cost.peak_activation_bytes",
    "invariance.own_grid",
    "mixing.branch_ends",
    "mixing.theoretical_field",
    "weights.dependence",
}
# Walked in the row of another.
ALSO = {
    "probing.logistic_path": "probing.ridge_path",
    "probing.logistic_paths": "probing.ridge_path",
    "probing.knn_path": "probing.ridge_path",
    "probing.centroid_path": "probing.ridge_path",
    "probing.big_vision_probe": "probing.ridge_path",
    "similarity.MinibatchCKA": "similarity.StreamingCKA",
    "save_results": "load_results",
    "cost.model_costs": "cost.model_cost",
    "report.export_report": "write_report",
}
# Slow ones, given all changes at once, as functions are that take no network, which cannot know one
# again.
AT_ONCE = {
    "anatomy",
    "attribution.layer_conductance",
    "cost.cost_growth",
    "kernel_tying",
    "report.narrate",
    "weights.convolution_equivalence",
    "write_report",
}


# -- functions of two things that belong together --------------------------------------------------


@cache
def _first_maps() -> Any:
    return mp.attribute(first().model, first().images, "gradcam")


def _gradcam(w: World) -> Any:
    return _first_maps() if w is first() else mp.attribute(w.model, w.images, "gradcam")


def _curves(before: World, after: World) -> Any:
    return mp.attribution.perturbation_curves(
        after.model, after.images, [_gradcam(before)], steps=2, random_orders=1
    )


def _faithful(before: World, after: World) -> Any:
    few = {"samples": 4, "sensitivity_samples": 1}
    return mp.attribution.faithfulness(after.model, after.images, [_gradcam(before)], **few)


def _means(before: World, after: World) -> Any:
    return mp.channels.top_means(after.model, after.images, before.reps, {"blocks.0": [0]}, k=2)


def _two(measure: Callable[[Any, Any], Any]) -> Together:
    return lambda before, after: measure(before.reps, after.reps)


def _probed(measure: Callable[..., Any]) -> Together:
    """Fitted on the one, tested on the images to test on of the other, whose images to fit on are
    the change."""
    return lambda before, after: measure(before.reps, mp.extract(after.model, _tested(after)))


def _tested(w: World) -> Images:
    """What the change did to the images to fit on, done to those to test on."""
    labels, first = w.images.labels, images_of(1, w.folders)
    if w.images.class_names == CLASSES[1:]:
        return without_first(first)
    if w.images.class_names != CLASSES:
        return replace(first, labels=labels, class_names=w.images.class_names)
    if labels is not None and labels[0]:
        return first.subset(np.roll(np.arange(N), 1))
    return first if w.images.keys == images_of(0, w.folders).keys else images_of(4, w.folders)


def _page(before: World, after: World) -> Any:
    given: dict[str, Any] = {"statistics": mp.channel_statistics(before.model, before.images)}
    return mp.channels.channel_pages(after.model, after.images, {"blocks.0": 0}, k=2, **given)


def _page_of_classes(before: World, after: World) -> Any:
    given: dict[str, Any] = {"selectivity": mp.class_selectivity(before.reps, **FEW)}
    return mp.channels.channel_pages(after.model, after.images, {"blocks.0": 0}, k=2, **given)


def _with_partners(before: World, after: World) -> Any:
    (page,) = mp.channels.channel_pages(before.model, before.images, {"blocks.0": 0}, k=2)
    found = mp.channel_partners(after.reps, after.reps, "blocks.0", "blocks.1", **FEW)
    return mp.channels.with_partners(page, [found]).partners


def _dissected(before: World, after: World) -> Any:
    found = mp.dissect(
        before.model, before.images, class_concepts(before.images), "blocks.0", **FEW
    )
    concepts = class_concepts(after.images)
    return mp.channels.dissected_channel(
        after.model, after.images, concepts, found, "blocks.0", 0, "dog", k=2
    )


@cache
def _first_cost() -> Any:
    return mp.cost.model_cost(first().model, batch_size=1, runs=3)


def _cost(before: World, after: World) -> Any:
    assert before is first()
    return mp.cost.accuracy_cost([_first_cost()], [mp.linear_probe(*after.runs, l2=[1.0])]).accuracy


def _few_shot_cost(before: World, after: World) -> Any:
    """A full and a few-shot probe of one network, which both are tested on the images to fit on."""
    full = mp.linear_probe(*before.runs[::-1], l2=[1.0])
    return mp.cost.accuracy_cost(
        [_first_cost()], [full], [mp.probing.few_shot_probe(*after.runs[::-1], [1])]
    ).accuracy


def _answers(before: World, after: World) -> Any:
    """Accuracies of both networks on images of which each has named every other, so that both can
    be above chance."""

    def of(w: World) -> Any:
        a, b = (mp.invariance.predictions(side.model, w.images)[0][0] for side in (before, after))
        labels = np.where(np.arange(len(a)) % 2 == 0, a, b)
        return mp.invariance.distortion_accuracy(
            w.model, replace(w.images, labels=labels, class_names=OUTPUTS), BLUR
        )

    return [of(before), of(after)]


def _calibrated(before: World, after: World) -> Any:
    return mp.probing.calibration(mp.linear_probe(*before.runs, l2=[1.0]), after.runs, resamples=2)


def _targets(before: World, after: World) -> Any:
    targets = [mp.probing.image_targets(i, ["brightness"]) for i in (before.images, before.test)]
    return mp.probing.target_probe(*after.runs, *targets, l2=[1.0])


def _three_networks(before: World, after: World) -> Any:
    """A Mixer against a ViT on the images of the one world, and against a gMLP on those of the
    other."""
    pairs = [
        (w.reps, mp.extract(other_network(case), w.images))
        for w, case in ((before, "vit"), (after, "gmlp"))
    ]
    return mp.similarity.model_similarity([mp.compare(a, b, **NO_DRAWS) for a, b in pairs])


def _stored(before: World, after: World) -> Any:
    out = Path(tempfile.mkdtemp(dir=_top())) / "run.zarr"
    mp.extract(before.model, before.images, out=out)
    mp.extract(after.model, after.images, out=out)
    return mp.open_run(out)


def _untrained(measure: Callable[..., Any]) -> Together:
    """A probe with a twin of the right kind on the images of the other world; it must know that
    they are others."""

    def call(before: World, after: World) -> Any:
        twin = world().model
        twin.weights = replace(twin.weights, trained=False)
        runs = tuple(mp.extract(twin, images) for images in (after.images, after.test))
        return measure(*before.runs, untrained=runs)

    return call


def _own(before: World, after: World) -> Any:
    """All right by its own answers, whatever representations are given."""
    answers = mp.invariance.predictions(after.model, after.images)[0][0]
    images = replace(after.images, labels=answers, class_names=OUTPUTS)
    assert own_accuracy(
        after.model, images, mp.extract(before.model, before.images, "head")
    ).right == len(images)
    return images


NEW_MODEL: tuple[Change, ...] = OF_MODELS
ANY: tuple[Change, ...] = CHANGES
_P = mp.probing
# What the images to test on may be: other classes are refused unless they are fewer.
TESTED: tuple[Change, ...] = (equal_names, permuted, missing_class)

# The function, and which changes belong to its question: a comparison of networks is of networks
# that differ.
TOGETHER: dict[str, tuple[Together, tuple[Change, ...]]] = {
    "channel_partners": (
        _two(lambda a, b: mp.channel_partners(a, b, "blocks.0", "blocks.1", **FEW)),
        NEW_MODEL,
    ),
    "compare": (_two(lambda a, b: mp.compare(a, b, **NO_DRAWS)), NEW_MODEL),
    "linear_probe": (_probed(partial(mp.linear_probe, l2=[1.0])), TESTED),
    "open_run": (_stored, ()),
    "attribution.agreement": (
        lambda before, after: mp.attribution.agreement([_gradcam(before), _gradcam(after)], **FEW),
        NEW_MODEL,
    ),
    "attribution.attribution_panel": (
        lambda before, after: mp.attribution.attribution_panel([_gradcam(before)], after.images),
        NEW_MODEL,
    ),
    "attribution.faithfulness": (_faithful, ()),
    "attribution.perturbation_curves": (_curves, ()),
    "attribution.randomisation_check": (
        lambda before, after: mp.attribution.randomisation_check(
            after.model, after.images, _gradcam(before), draws=1, steps=1
        ),
        (),
    ),
    # Statistics and classes of a network may be those of other images: the page says of which its
    # own are.
    "channels.channel_pages": (_page, OF_IMAGES),
    "channels.channel_pages of classes": (_page_of_classes, OF_IMAGES),
    "channels.channels_needed": (
        _probed(partial(mp.channels.channels_needed, counts=[2], draws=1)),
        TESTED,
    ),
    "channels.dissected_channel": (_dissected, ()),
    "channels.top_means": (_means, ()),
    "concepts.asymmetry": (
        lambda before, after: mp.concepts.asymmetry(_stitched(before), _stitched(after)),
        (),
    ),
    # Of other networks there is no partner.
    "channels.with_partners": (_with_partners, ANY),
    "cost.accuracy_cost": (_cost, (equal_names, permuted, extra_class)),
    "cost.accuracy_cost of few shots": (_few_shot_cost, ()),
    "attribution.figures.attribution_overlays": (
        lambda before, after: len(
            attribution_overlays([_gradcam(before)], after.images, indices=[0]).axes
        ),
        NEW_MODEL,
    ),
    "invariance.compare_architectures": (
        # Of networks that disagree each is right on half of the images, which is not above chance.
        lambda before, after: mp.invariance.compare_architectures(_answers(before, after)),
        (),
    ),
    "invariance.error_consistency": (
        lambda before, after: mp.invariance.error_consistency(_answers(before, after)),
        NEW_MODEL,
    ),
    "invariance.own_accuracy": (_own, ANY),
    "probing.attentive_probe": (
        lambda before, after: _P.attentive_probe(
            mp.extract(before.model, before.images, "blocks.0", reduce="none"),
            mp.extract(after.model, _tested(after), "blocks.0", reduce="none"),
            epochs=2,
        ),
        TESTED,
    ),
    "probing.calibration": (_calibrated, ()),
    "probing.control_task": (
        _probed(partial(_P.control_task, groups=GROUPS, controls=1, l2=np.ones(1))),
        TESTED,
    ),
    "probing.few_shot_probe": (_probed(partial(_P.few_shot_probe, shots=[1], seeds=1)), TESTED),
    "linear_probe untrained": (_untrained(partial(mp.linear_probe, l2=[1.0])), OF_MODELS),
    "probing.few_shot_probe untrained": (
        _untrained(partial(_P.few_shot_probe, shots=[1], seeds=1)),
        OF_MODELS,
    ),
    "probing.matched": (
        _probed(lambda a, b: [(run.labels, keys_of(run), run.model) for run in _P.matched(a, b)]),
        (*TESTED, *OF_MODELS),
    ),
    "probing.position_probe": (
        lambda before, after: _P.position_probe(
            mp.extract(before.model, before.images, "blocks.0", reduce="none"),
            mp.extract(after.model, _tested(after), "blocks.0", reduce="none"),
            l2=[1.0],
        ),
        TESTED,
    ),
    "probing.random_label_probe": (
        _probed(partial(_P.random_label_probe, draws=1, l2=np.ones(1))),
        TESTED,
    ),
    "probing.target_probe": (
        _targets,
        (permuted, missing_class, changed_weights, other_preprocessing),
    ),
    "probing.transfer_probe": (_probed(partial(_P.transfer_probe, l2=[1.0])), TESTED),
    "report.compare_reports": (
        lambda before, after: mp.report.compare_reports(
            *([mp.channel_statistics(w.model, w.images)] for w in (before, after))
        ),
        ANY,
    ),
    "similarity.compare_within_classes": (
        _two(lambda a, b: mp.similarity.compare_within_classes(a, b, fewest=4, **NO_DRAWS)),
        NEW_MODEL,
    ),
    "similarity.layer_identification": (
        _two(lambda a, b: mp.similarity.layer_identification(a, b, "cka")),
        NEW_MODEL,
    ),
    "similarity.model_similarity": (_three_networks, NEW_MODEL),
}


# Where the network, or what was done to it, does not enter the numbers: the caller gives maps, or a
# twin.
INDIFFERENT = {
    "attribution.attribution_panel",
    "attribution.figures.attribution_overlays",
    "linear_probe untrained",
    "probing.few_shot_probe untrained",
}


# -- probes and classifiers, whose classes are found by name ---------------------------------------

Probe = Callable[[World, Images], np.ndarray]


def _on_runs(measure: Callable[..., Any], **options: Any) -> Probe:
    return lambda w, test: measure(
        mp.extract(w.model, w.images, **options), mp.extract(w.model, test, **options)
    )


PLACES: dict[str, Any] = {"layers": "blocks.0", "reduce": "none"}
# The share of right answers, of images to test on whose classes mean what their names say.
BY_NAME: dict[str, Probe] = {
    "linear_probe": _on_runs(lambda a, b: mp.linear_probe(a, b, l2=[1.0]).accuracy),
    "linear_probe by logistic": _on_runs(
        lambda a, b: mp.linear_probe(a, b, method="logistic", values=[1.0]).accuracy
    ),
    "linear_probe by knn": _on_runs(lambda a, b: mp.linear_probe(a, b, method="knn").accuracy),
    "linear_probe by centroid": _on_runs(
        lambda a, b: mp.linear_probe(a, b, method="centroid").accuracy
    ),
    "few_shot_probe": _on_runs(lambda a, b: _P.few_shot_probe(a, b, [2], 2).mean),
    "transfer_probe": _on_runs(lambda a, b: _P.transfer_probe(a, b, l2=[1.0]).accuracy),
    "control_task": _on_runs(
        lambda a, b: _P.control_task(a, b, GROUPS, controls=2, l2=np.ones(1)).accuracy
    ),
    "channels_needed": _on_runs(
        lambda a, b: np.array(mp.channels.channels_needed(a, b, counts=[2], draws=1).selective)
    ),
    "attentive_probe": _on_runs(lambda a, b: _P.attentive_probe(a, b, epochs=3).accuracy, **PLACES),
    "position_probe": _on_runs(lambda a, b: _P.position_probe(a, b, l2=[1.0]).accuracy, **PLACES),
    "stream_probe": lambda w, test: _P.stream_probe(w.model, w.images, test, l2=[1.0]).accuracy,
}

# Functions of training labels alone.
TRAINED: dict[str, Alone] = {
    "probing.online_code": lambda w: _P.online_code(
        w.reps, fractions=(0.5, 1.0), l2=[1.0], orders=1
    ),
    "probing.code_sample": lambda w: _P.code_sample(w.reps, 9, 2),
    "probing.control_code": lambda w: _P.control_code(
        w.reps, fractions=(0.5, 1.0), l2=[1.0], groups=GROUPS, controls=1
    ),
    "probing.stream_probe": lambda w: _P.stream_probe(w.model, w.images, w.test, l2=[1.0]),
}
ALONE |= TRAINED

# Walked by a test of their own in test_identity_walk.
OWN_TEST = {
    "load_concepts": "test_annotations_follow_their_images",
    "probing.targets_from_csv": "test_annotations_follow_their_images",
}

_ARRAYS = "takes arrays of answers, which know no images"
NEITHER = {
    "concepts.layer_at": "names a layer, the same in any network of this architecture",
    "images.from_arrays": "makes images",
    "cost.time_forward": "seconds of this machine, which are others each time",
    "cost.time_together": "seconds of this machine, which are others each time",
    "attribution.figures.overlay_image": "a picture and its map, which the caller has of one image",
    "probing.balanced_interval": _ARRAYS,
    "probing.stratified": _ARRAYS,
    "probing.binned": "cuts the values of one target, and keeps its images",
    "study.run_study": (
        "calls what is walked here; for what it keeps on disk see tests/report/test_resume.py"
    ),
    "study.fill_steps": (
        "as study.run_study; what it leaves is counted in tests/report/test_resume.py"
    ),
    "report.publish": "draws what it is given, as write_report does",
}
# Figures of results alone: each result is drawn under the name of its own network and images.
DRAWN = ".figures."


# -- which public functions there are --------------------------------------------------------------

_WORDS = {
    "Model",
    "Images",
    "DistortedImages",
    "ImageSource",
    "Representations",
    "RepresentationsLike",
    "Concepts",
    "Target",
    "Result",
    "SavedResults",
}
_LABELS = {"labels", "y", "y_train", "y_test", "predicted"}


def results_known() -> set[str]:
    def below(cls: type[Any]) -> Iterator[str]:
        for child in cls.__subclasses__():
            yield child.__name__
            yield from below(child)

    return set(below(Result))


def _spelled(annotation: Any, names: dict[str, Any], depth: int = 0) -> set[str]:
    """The identifiers of an annotation, those behind aliases of the function's module too."""
    found = set(
        re.findall(r"[A-Za-z_]\w*", annotation if isinstance(annotation, str) else repr(annotation))
    )
    if depth < 3:
        for word in found & names.keys():
            if not isinstance(names[word], type):
                found |= _spelled(names[word], names, depth + 1)
    return found


def marks(function: Callable[..., Any]) -> set[str]:
    """What a function takes of models, images, labels and results, by type; labels by the names of
    parameters."""
    inner: Any = inspect.unwrap(function)
    known = _WORDS | results_known()
    found = set[str]()
    for name, parameter in inspect.signature(inner).parameters.items():
        found |= _spelled(parameter.annotation, inner.__globals__) & known
        found |= {name} & _LABELS
    return found


def public_functions() -> dict[str, Callable[..., Any]]:
    """By name, "room.name" for those that are not in `mixer_probe` itself."""
    found: dict[str, Callable[..., Any]] = {}
    rooms = {name: getattr(mp, name) for name in mp.__all__ if inspect.ismodule(getattr(mp, name))}
    for name in mp.__all__:
        if inspect.isfunction(getattr(mp, name)):
            found[name] = getattr(mp, name)
    for room, module in rooms.items():
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and function not in found.values():
                found[f"{room}.{name}"] = function
        if importlib.util.find_spec(f"mixer_probe.{room}.figures"):
            figures = importlib.import_module(f"mixer_probe.{room}.figures")
            public = getattr(
                figures, "__all__", [name for name in vars(figures) if not name.startswith("_")]
            )
            drawn = {name: getattr(figures, name) for name in public}
            found |= {
                f"{room}.figures.{name}": function
                for name, function in drawn.items()
                if inspect.isfunction(function) and function.__module__.startswith(figures.__name__)
            }
    return found


def to_walk() -> set[str]:
    """Public functions of models, images, labels or results; not the figures of results alone."""
    found = {name: marks(function) for name, function in public_functions().items()}
    drawn = {name for name, of in found.items() if DRAWN in name and of <= results_known()}
    return {name for name, of in found.items() if of} - drawn
