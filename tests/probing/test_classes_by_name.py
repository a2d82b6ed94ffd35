"""Labels meet by the name of their class, in everything that is fitted on one labelled set and
tested on another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixer_probe.channels import channels_needed, class_selectivity
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.images import from_arrays
from mixer_probe.probing import (
    Target,
    attentive_probe,
    control_task,
    few_shot_probe,
    linear_probe,
    position_probe,
    random_label_probe,
    stream_probe,
    target_probe,
    transfer_probe,
)
from tests.tiny import tiny_models

NAMES = ("automobile", "bird", "cat", "frog", "ship")
# Of these the test folder has images; sorted, as folders are, they are its classes 0, 1 and 2.
SOME = ("automobile", "frog", "ship")


class Runs:
    """Noisy one-hot features of five classes to fit on, and images of three of them to test on,
    labelled in two ways."""

    def __init__(self, make_reps: Callable, positions: bool = False) -> None:
        random = np.random.default_rng(0)
        self.make_reps, self.positions = make_reps, positions
        self.train = self._run(np.repeat(np.arange(5), 12), "train", NAMES, random)
        kept = np.repeat([0, 3, 4], 15)
        random = np.random.default_rng(1)
        self.restricted = self._run(kept, "test", NAMES, random)
        self.folder = self._run(kept, "test", NAMES, np.random.default_rng(1))
        self.folder.labels = np.searchsorted([0, 3, 4], kept)
        self.folder.class_names = SOME

    def _run(self, y: np.ndarray, split: str, names: tuple[str, ...], random: np.random.Generator):
        shape = (len(y), 4, 5) if self.positions else (len(y), 5)
        X = np.eye(5)[y].reshape(len(y), 1, 5).repeat(4, 1) if self.positions else np.eye(5)[y]
        run = self.make_reps({"layer": X + 0.4 * random.normal(size=shape)}, y, split)
        run.class_names = names
        run.reduce = "none" if self.positions else "mean"
        return run


def of_targets(train, test):
    sides = [
        Target("class", "classification", r.ids, r.labels.astype(float), r.class_names)
        for r in (train, test)
    ]
    return target_probe(train, test, *sides).score


GROUPS = dict(zip(NAMES, "xyxyx", strict=True))
PROBES = {
    **{
        m: lambda a, b, m=m: linear_probe(a, b, method=m).accuracy
        for m in ("ridge", "knn", "centroid", "logistic")
    },
    "few shots": lambda a, b: few_shot_probe(a, b, (1, 5)).accuracy,
    "few shots, logistic": lambda a, b: few_shot_probe(a, b, (1, 5), 1, "logistic").accuracy,
    "transfer": lambda a, b: transfer_probe(a, b).accuracy,
    "targets": of_targets,
    "controls": lambda a, b: control_task(a, b, GROUPS, controls=2).control_accuracy,
    "channels": lambda a, b: channels_needed(a, b, draws=1).selective[0],
}
BY_PLACE = {
    "positions": lambda a, b: position_probe(a, b).accuracy[0],
    "attention": lambda a, b: attentive_probe(a, b, epochs=3).accuracy,
}


@pytest.mark.parametrize("name", [*PROBES, *BY_PLACE])
def test_a_folder_with_three_of_five_classes_is_scored_among_the_five(make_reps, name):
    runs, probe = Runs(make_reps, name in BY_PLACE), {**PROBES, **BY_PLACE}[name]
    expected = probe(runs.train, runs.restricted)
    np.testing.assert_array_equal(probe(runs.train, runs.folder), expected)
    # By index, classes 1 and 2 of the folder would be birds and cats.
    runs.folder.class_names = NAMES
    assert not np.array_equal(probe(runs.train, runs.folder), expected)


@pytest.mark.parametrize("name", [*PROBES, *BY_PLACE, "random labels"])
def test_a_class_that_train_does_not_have_is_refused_with_both_lists(make_reps, name):
    runs = Runs(make_reps, name in BY_PLACE)
    runs.folder.class_names = ("automobile", "frog", "sledge")
    probe = {**PROBES, **BY_PLACE, "random labels": random_label_probe}[name]
    message = (
        "do not have: 'sledge' .*'automobile', 'frog', 'sledge'; the latter 'automobile', 'bird', "
        "'cat', 'frog', 'ship'"
    )
    with pytest.raises(ImagesError, match=message):
        probe(runs.train, runs.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: setattr(b, "class_names", None), "test images .* have no names to match"),
        (lambda a, b: setattr(a, "class_names", None), "train images .* have no names to match"),
        (
            lambda a, b: setattr(a, "class_names", ("cat", "bird", "cat", "frog", "ship")),
            "two classes .* are called 'cat'",
        ),
        (lambda a, b: setattr(b, "labels", None), "have no labels: a probe needs them"),
    ],
)
def test_what_cannot_be_matched_is_refused(make_reps, change, message):
    runs = Runs(make_reps)
    change(runs.train, runs.folder)
    with pytest.raises(ImagesError, match=message):
        linear_probe(runs.train, runs.folder)


def test_without_names_in_either_set_an_index_is_the_class(make_reps):
    runs = Runs(make_reps)
    expected = linear_probe(runs.train, runs.restricted).accuracy
    runs.train.class_names = runs.restricted.class_names = None
    np.testing.assert_array_equal(linear_probe(runs.train, runs.restricted).accuracy, expected)
    runs.restricted.labels = runs.restricted.labels + 1
    with pytest.raises(ImagesError, match=r"have 1 class .* do not have: '5'"):
        linear_probe(runs.train, runs.restricted)


def test_a_streamed_probe_matches_names():
    random = np.random.default_rng(0)
    network = tiny_models()[0]
    size = network.input.size[1:]

    def images(label, names, name):
        pixels = random.integers(0, 256, size=(len(label), *size, 3), dtype=np.uint8)
        return from_arrays(pixels, label, [f"{name}{i}" for i in range(len(label))], names, name)

    train = images(np.arange(20) % 5, NAMES, "train")
    y = np.repeat([0, 3, 4], 4)
    pixels = random.integers(0, 256, size=(12, *size, 3), dtype=np.uint8)
    ids = [f"test{i}" for i in range(12)]
    restricted, folder = (
        from_arrays(pixels, labels, ids, names, "test")
        for labels, names in ((y, NAMES), (np.searchsorted([0, 3, 4], y), SOME))
    )
    found = [stream_probe(network, train, test, ["head"]) for test in (restricted, folder)]
    np.testing.assert_array_equal(found[0].predicted, found[1].predicted)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)
    with pytest.raises(ImagesError, match="do not have: 'sledge'"):
        stream_probe(network, train, images(np.array([0, 1]), ("cat", "sledge"), "other"), ["head"])


@pytest.mark.parametrize("name", [*PROBES, *BY_PLACE])
def test_runs_of_unequal_widths_are_refused(make_reps, name):
    """A layer with other numbers of channels in train and test, which are one network's by their
    record."""
    runs = Runs(make_reps, name in BY_PLACE)
    wider = make_reps(
        {"layer": np.concatenate([runs.folder["layer"]] * 2, axis=-1)}, runs.folder.labels, "test"
    )
    wider.class_names, wider.reduce = SOME, runs.folder.reduce
    with pytest.raises(MeasureError, match="layer 'layer' has 5 channels in train and 10 in test"):
        {**PROBES, **BY_PLACE}[name](runs.train, wider)


@pytest.mark.parametrize("preset", ["ridge", "logistic", "knn", "centroid", "big_vision"])
def test_one_shot_takes_the_simplest_probe(make_reps, preset):
    runs = Runs(make_reps)
    found = few_shot_probe(runs.train, runs.folder, preset=preset, shots=(1, 5, 10), seeds=2)
    assert found.accuracy.shape == (1, 3, 2)
    if preset in ("ridge", "logistic"):
        # The largest penalty of the path, since no image can be left out.
        assert (found.chosen[0, 0] == linear_path(preset, 5)[-1]).all()
    # More images, more accuracy.
    assert found.mean[0, 2] > found.mean[0, 0]


def linear_path(preset: str, n: int) -> np.ndarray:
    from mixer_probe.probing import default_l2, default_logistic_l2

    return {"ridge": default_l2, "logistic": default_logistic_l2}[preset](n)


@pytest.mark.parametrize("names", [("'tis", "o'", "'q'"), ("a'b", "''", "c")])
def test_apostrophes_belong_to_a_class(make_reps, names):
    y = np.arange(12) % 3
    runs = [
        make_reps({"layer": np.random.default_rng(k).normal(size=(12, 4))}, y, split)
        for k, split in enumerate("ab")
    ]
    for run in runs:
        run.class_names = names
    assert linear_probe(*runs).class_names == names
    assert class_selectivity(runs[0], permutations=20).class_names == names
