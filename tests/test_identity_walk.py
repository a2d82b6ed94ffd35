"""Every public function of models, images, labels or results, given others than before: the right
number, or a named error.

`ALONE` are functions of a model and images: after a change they give what they give for objects
that never were anything else. `TOGETHER` are functions of two things that must belong together:
each change either belongs to the question, and then changes the number, or is refused. `NEITHER`
says why the rest is not walked. A public function without a row fails.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import ImagesError, MeasureError, MixerProbeError
from mixer_probe.core.result import same
from mixer_probe.images import Images, class_concepts
from mixer_probe.probing.figures import probe_curves
from tests import walk
from tests.walk import (
    ALONE,
    ALSO,
    ARCHITECTURE,
    AT_ONCE,
    BY_NAME,
    CASE,
    CHANGES,
    CLASSES,
    INDIFFERENT,
    NEITHER,
    OF_IMAGES,
    OF_MODELS,
    OWN_TEST,
    TOGETHER,
    first,
    images_of,
    quietly,
    without_first,
    world,
)


def test_every_public_function_of_models_images_labels_or_results_has_a_row() -> None:
    rows = {
        name.partition(" ")[0]
        for table in (ALONE, ALSO, TOGETHER, OWN_TEST, NEITHER)
        for name in table
    }
    wanted = walk.to_walk()
    assert sorted(wanted - rows) == []
    # Classes, and a function that no room exports.
    public = {
        *walk.public_functions(),
        "capture.input_pictures",
        "similarity.StreamingCKA",
        "similarity.MinibatchCKA",
        "invariance.own_accuracy",
    }
    assert sorted(rows - public) == []
    assert all(test in globals() for test in OWN_TEST.values())
    assert len(wanted) > 90


def test_what_a_function_takes_is_read_from_its_signature() -> None:
    assert walk.marks(mp.probing.linear_probe) == {"RepresentationsLike"}
    assert walk.marks(mp.invariance.predictions) == {"Model", "Images", "DistortedImages"}
    assert walk.marks(probe_curves) == {"ProbeResult"}
    assert walk.marks(mp.probing.knn_path) == {"y"}
    assert walk.marks(mp.visualization.amplitude) == set()


def outcome(call: Any, *given: Any) -> Any:
    """What a call gave, or the error that it named."""
    try:
        return quietly(call, *given)
    except MixerProbeError as error:
        return [type(error).__name__, str(error)]


def changes_of(name: str) -> tuple[walk.Change, ...]:
    """Those of what a function takes."""
    functions = walk.public_functions()
    if (
        name not in functions
        or name in {"cka", "load_results", "save_results", "write_report"}
        or name not in walk.to_walk()
    ):
        return CHANGES
    takes = walk.marks(functions[name])
    if takes <= {"Model"}:
        return OF_MODELS
    return (
        CHANGES
        if takes & {"Model", "RepresentationsLike"} or takes - {"Images", "ImageSource"}
        else OF_IMAGES
    )


@pytest.mark.parametrize("name", ALONE)
def test_after_a_change_a_function_gives_what_it_gives_for_new_objects(name: str) -> None:
    changes = changes_of(name)
    call, case, folders = ALONE[name], CASE.get(name, "mixer"), True
    at_once = name in AT_ONCE or "Model" not in walk.marks(
        walk.public_functions().get(name, mp.cka)
    )
    used = world(case, folders)
    before = quietly(call, used)
    for i, change in enumerate(changes):
        used = change(used)
        if at_once and i + 1 < len(changes):
            continue
        new = world(case, folders)
        for done in changes[: i + 1]:
            new = done(new)
        after = outcome(call, used)
        assert same(after, outcome(call, new)), change.__name__
    assert same(after, before) == (name in ARCHITECTURE)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_does_not_belong_together_is_refused(name: str) -> None:
    call, allowed = TOGETHER[name]
    before = quietly(call, first(), world())
    for change in CHANGES:
        found = outcome(call, first(), change(world()))
        refused = isinstance(found, list) and len(found) == 2 and str(found[0]).endswith("Error")
        assert refused != (change in allowed), (
            f"{change.__name__}: {found if refused else 'not refused'}"
        )
        if not refused and change is not walk.permuted:
            assert same(found, before) == (name in INDIFFERENT), change.__name__


# -- labels of other classes -----------------------------------------------------------------------


def reversed_names(images: Images) -> Images:
    """The same classes under other indices."""
    assert images.labels is not None
    assert images.class_names is not None
    return replace(
        images,
        labels=len(images.class_names) - 1 - images.labels,
        class_names=images.class_names[::-1],
    )


@pytest.mark.parametrize("name", BY_NAME)
def test_labels_of_another_set_mean_what_their_names_say(name: str) -> None:
    """Other indices, another order, a class that is missing or one more, among the images to test
    on, or to fit on."""
    probe, w, test = BY_NAME[name], first(), images_of(1, folders=False)
    right = quietly(probe, w, test)
    np.testing.assert_array_equal(quietly(probe, w, reversed_names(test)), right)
    np.testing.assert_allclose(
        quietly(probe, w, walk.permuted(replace(w, images=test)).images), right, atol=1e-12
    )
    without = test.subset(test.labels != 0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        quietly(probe, w, without_first(test)), quietly(probe, w, without)
    )
    with pytest.raises(ImagesError, match="bird"):
        quietly(probe, w, images_of(3, False, (*CLASSES, "bird")))
    with pytest.raises(ImagesError, match="cat"):
        quietly(probe, replace(w, images=without_first(w.images)), test)


@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.UndefinedInvarianceWarning")
@pytest.mark.parametrize("extra", [False, True], ids=["missing", "extra"])
def test_a_network_is_right_by_the_names_of_its_outputs(extra: bool) -> None:
    """Predictions and maps against those of labels that are the outputs' own indices."""
    w = world()
    images = images_of(3, True, (*CLASSES, "bird")) if extra else images_of(0, True)
    outputs = mp.invariance.predictions(w.model, images)[0][0]
    called = without_first(images) if not extra else reversed_names(images)
    assert called.labels is not None
    assert called.class_names is not None
    own = np.array([walk.OUTPUTS.index(called.class_names[k]) for k in called.labels])
    predicted = outputs if extra else outputs[images.labels != 0]
    found = mp.invariance.distortion_accuracy(w.model, called, walk.BLUR)
    np.testing.assert_array_equal(found.right[0], predicted == own)
    maps = mp.attribute(w.model, called, "gradcam", target="labels")
    np.testing.assert_array_equal(maps.targets, own)
    np.testing.assert_array_equal(
        maps.maps, mp.attribute(w.model, called, "gradcam", target=own.tolist()).maps
    )
    unknown = replace(called, class_names=("mouse", *called.class_names[1:]))
    for call in (
        mp.invariance.distortion_accuracy,
        lambda m, i: mp.attribute(m, i, "gradcam", target="labels"),
    ):
        with pytest.raises(MeasureError, match="mouse"):
            call(w.model, unknown)


def test_an_order_of_images_changes_no_number() -> None:
    """Rows and labels that are turned together."""
    w = first()
    reps, turned = (mp.extract(w.model, part) for part in (w.images, walk.permuted(w).images))
    a, b = (mp.class_selectivity(r, permutations=19) for r in (reps, turned))
    for name in ("auroc", "dprime"):
        for x, y in zip(getattr(a, name), getattr(b, name), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    x, y = (mp.compare(r, r, **walk.NO_DRAWS).values for r in (reps, turned))
    np.testing.assert_allclose(x, y, atol=1e-10)
    means = [
        mp.channel_statistics(w.model, part).mean[0] for part in (w.images, walk.permuted(w).images)
    ]
    np.testing.assert_allclose(*means, atol=1e-6)
    fits = [
        mp.linear_probe(r, mp.extract(w.model, w.test), l2=[1.0]).accuracy for r in (reps, turned)
    ]
    np.testing.assert_array_equal(*fits)


@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.ImagesWarning")
def test_annotations_follow_their_images(tmp_path: Path) -> None:
    """Rows of a table meet images by name: in any order, for fewer images, and none for a name that
    it lacks."""
    images = images_of(0, folders=True)
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "striped"])
        rows.writerows([name, i % 2] for i, name in reversed(list(enumerate(images.ids))))
    values = np.arange(len(images)) % 2
    assert images.labels is not None
    for order in (
        np.arange(len(images)),
        np.roll(np.arange(len(images)), 1),
        np.flatnonzero(images.labels),
    ):
        part = images.subset(order)
        assert (
            mp.probing.targets_from_csv(table, part, "striped", "regression").values.tolist()
            == values[order].tolist()
        )
        concepts = mp.load_concepts(table, part)
        assert concepts.attributes is not None
        found = dict(zip(concepts.ids, concepts.attributes[:, 0], strict=True))
        assert [found[name] for name in part.ids] == values[order].tolist()
    strangers = replace(images, ids=tuple(f"x{name[:-4]}y.png" for name in images.ids))
    for call in (
        lambda: mp.probing.targets_from_csv(table, strangers, "striped"),
        lambda: mp.load_concepts(table, strangers),
    ):
        with pytest.raises(ImagesError):
            call()


def test_pages_of_one_channel_are_of_what_was_dissected() -> None:
    """Equal names of other pictures, and concepts by other names, are no picture of a
    dissection."""
    w = world()
    found = mp.dissect(w.model, w.images, class_concepts(w.images), "blocks.0", permutations=19)
    renamed = replace(class_concepts(w.images), names=("a", "b", "c"))
    with pytest.raises(MeasureError, match="not those of"):
        mp.channels.dissected_channel(w.model, w.images, renamed, found, "blocks.0", 0, "dog", k=2)
