"""Studies that go on: finished steps are kept and found again by what decides them, and never
half."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.torch import save_file

import mixer_probe as mp
from mixer_probe import catalog
from mixer_probe.core.analysis import Analysis
from mixer_probe.core.errors import ImagesError, MeasureError, ModelError, StoreError
from mixer_probe.core.result import Result, load_results, to_dict
from mixer_probe.core.skipped import Skipped, has_no_room, was_refused
from mixer_probe.study import ResultCache, StudySettings, fill_steps, run_study
from mixer_probe.study.result_cache import identity
from tests.networks import CASES
from tests.sealed import sealed
from tests.tiny import SPEC, tiny_models

FULL = OSError(errno.ENOSPC, "No space left on device")
SETTINGS = StudySettings(
    permutations=5,
    resamples=20,
    measures=("cka", "procrustes"),
    analyses={
        "probing": ("accuracy", "fewshot", "patch-position"),
        "attribution": ("overlays", "agreement"),
    },
)


def model(name: str) -> mp.Model:
    """A network with a head that is not zero, under its own name."""
    return replace(CASES[name].model(), name=name)


def models() -> list[mp.Model]:
    """Two networks."""
    return [model("mixer"), model("vit")]


def images() -> mp.Images:
    return mp.load_images("demo", limit=20)


def steps_in(folder: Path) -> list[str]:
    return sorted(
        json.loads(file.read_text())["settings"]["step"] for file in folder.glob("*.json")
    )


class Counted:
    """How often each analysis of a study is computed; `fail` fails one of them."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        fail: Callable[[str, int], BaseException | None] = lambda *_: None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.fail = fail
        rooms = [
            replace(r, analyses=tuple(self._counting(a, f"{r.name}.{a.name}") for a in r.analyses))
            for r in catalog.ROOMS
        ]
        monkeypatch.setattr(catalog, "ROOMS", rooms)

    def _counting(self, analysis: Analysis, name: str) -> Analysis:
        def counted(given: Any) -> Any:
            self.calls[name] += 1
            error = self.fail(name, self.calls[name])
            if error is not None:
                raise error
            return analysis.run(given)

        after = analysis.after and self._counting(analysis.after, analysis.after.name)
        return replace(analysis, run=counted, after=after)


# Of two networks; twice as often where their untrained baselines have it too.
ALL = {
    "weights.anatomy": 2,
    "weights.units": 2,  # of the Mixer
    "weights.kernels": 4,
    "weights.tying": 4,
    "weights.stem": 2,
    "weights.positions": 1,  # of the ViT
    "weights.spectra": 4,
    "mixing.jacobian": 4,
    "mixing.erf": 4,
    "similarity.similarity": 6,  # three pairs, of a network with itself too, by two measures
    "probing.accuracy": 3,  # and raw pixels
    "probing.fewshot": 3,
    "probing.patch-position": 2,
    "channels.statistics": 2,
    "channels.selectivity": 4,
    "channels.needed": 2,
    "channels.partners": 2,
    "channels.pages": 2,
    "attributions": 2,
    "attribution.overlays": 1,
    "attribution.agreement": 1,
}
# The steps of the first network, and the weights, mixing and probes of the second.
BEFORE_CHANNELS_OF_VIT = 16 + 11


@pytest.fixture(scope="module")
def in_one_go() -> list[Result]:
    return run_study(models(), images(), None, SETTINGS)


def run(folder: Path) -> list[Result]:
    return run_study(
        models(),
        images(),
        None,
        SETTINGS,
        store=folder / "runs",
        steps=ResultCache(folder / "parts"),
    )


def test_a_study_killed_at_the_second_network_computes_only_the_rest(
    in_one_go: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = Counted(
            patch,
            lambda name, n: (
                KeyboardInterrupt() if (name, n) == ("channels.statistics", 2) else None
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(steps_in(tmp_path / "parts")) == BEFORE_CHANNELS_OF_VIT
    with monkeypatch.context() as patch:
        rest = Counted(patch)
        second = run(tmp_path)
    assert first.calls + rest.calls == Counter(ALL) + Counter(["channels.statistics"])
    assert json.dumps(to_dict(second)) == json.dumps(to_dict(in_one_go))


def unavailable() -> NoReturn:
    raise ModelError("there is no such network")


def killed() -> NoReturn:
    os._exit(9)


def test_processes_leave_only_what_several_networks_are_compared_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_go: list[Result]
) -> None:
    store, steps = tmp_path / "runs", ResultCache(tmp_path / "parts")
    # A network that cannot be loaded, and a process that is killed, are left to the study.
    loaders = [partial(model, "mixer"), unavailable, killed, partial(model, "vit")]
    fill_steps(loaders, images(), None, SETTINGS, store, steps, workers=2)
    counted = Counted(monkeypatch)
    again = run_study(models(), images(), None, SETTINGS, store, steps)
    assert again == in_one_go
    pixels = {"probing.accuracy": 1, "probing.fewshot": 1}
    several = {
        "similarity.similarity": 6,
        "channels.partners": 2,
        "attribution.overlays": 1,
        "attribution.agreement": 1,
    }
    assert counted.calls == pixels | several


def test_a_finished_study_computes_nothing_again(
    in_one_go: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        first = run(tmp_path)
    assert counted.calls == ALL
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        second = run(tmp_path)
    # Of a network with itself by another measure than CKA there is nothing to keep.
    assert counted.calls == {"similarity.similarity": 2}
    assert (
        json.dumps(to_dict(first)) == json.dumps(to_dict(second)) == json.dumps(to_dict(in_one_go))
    )


# -- steps -----------------------------------------------------------------------------------------


class Work:
    """Computes `Skipped` results that tell its runs apart."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs, self.error = 0, error

    def __call__(self) -> list[Result]:
        self.runs += 1
        return (
            [Skipped("a", f"run {self.runs}")]
            if self.error is None
            else [Skipped.because("a", self.error)]
        )


def test_a_step_is_found_again_by_all_that_decides_it(tmp_path: Path) -> None:
    steps, work = ResultCache(tmp_path), Work()
    model, other, some = tiny_models()[0], tiny_models()[1], images()
    settings = {"model": model, "images": some, "study": StudySettings(), "draws": 3}
    assert (
        steps.get("a step", settings, work)
        == steps.get("a step", dict(settings), work)
        == [Skipped("a", "run 1")]
    )
    changed = [
        {"model": other},
        {"model": replace(model, name="the same by another name")},
        {"images": some.subset(np.arange(10))},
        {"images": replace(some, labels=some.labels[::-1].copy())},
        {"study": StudySettings(seed=1)},
        {"draws": 4},
    ]
    for n, change in enumerate(changed, start=2):
        assert steps.get("a step", {**settings, **change}, work) == [Skipped("a", f"run {n}")]
    assert steps.get("another step", settings, work) == [Skipped("a", "run 8")]
    assert len(steps) == 8


def test_other_pixels_or_weights_of_the_same_names_are_another_step(tmp_path: Path) -> None:
    from mixer_probe.images.labelled import from_arrays

    white = from_arrays(np.full((3, 8, 8, 3), 255, np.uint8), ids=["a", "b", "c"])
    black = from_arrays(np.zeros((3, 8, 8, 3), np.uint8), ids=["a", "b", "c"])
    assert white.record.fingerprint != black.record.fingerprint
    assert identity(white) != identity(black)
    first, second = (replace(CASES["mixer"].model(), name="same") for _ in range(2))
    assert identity(first) == identity(second)
    second = replace(
        mp.load_model(
            CASES["mixer"].network(seed=1), input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        name="same",
    )
    assert identity(first) != identity(second)


def test_other_code_is_another_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, work = ResultCache(tmp_path), Work()
    steps.get("a", {}, work)
    monkeypatch.setattr("mixer_probe.study.result_cache._code", lambda: {"source": "another"})
    assert steps.get("a", {}, work) == [Skipped("a", "run 2")]


def test_what_is_kept_can_be_opened_by_anyone(tmp_path: Path, in_one_go: list[Result]) -> None:
    steps = ResultCache(tmp_path / "deep" / "parts")
    assert len(steps) == 0
    given = steps.get("all of it: a/b", {}, lambda: in_one_go)
    (file,) = (tmp_path / "deep" / "parts").iterdir()
    assert file.name.startswith("all-of-it--a-b-")
    assert (
        json.dumps(to_dict(load_results(file)))
        == json.dumps(to_dict(given))
        == json.dumps(to_dict(in_one_go))
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"format": "another"}', sealed([{"$type": "Gone"}]), sealed([]).replace("2", "1")],
)
def test_a_damaged_file_is_computed_again(tmp_path: Path, content: str) -> None:
    steps, work = ResultCache(tmp_path), Work()
    steps.get("a", {}, work)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert steps.get("a", {}, work) == steps.get("a", {}, work) == [Skipped("a", "run 2")]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again", "full"),
    [
        (MeasureError("a ResNet has none"), False, False),
        (ImagesError("no labels"), False, False),
        (ModelError("unknown"), False, False),
        (StoreError("in the way"), True, False),
        (
            caused(ImagesError("cannot read a.png"), FileNotFoundError(errno.ENOENT, "gone")),
            True,
            False,
        ),
        (caused(StoreError("cannot write"), FULL), True, True),
        (
            caused(
                MeasureError("x"),
                caused(StoreError("cannot write"), OSError(errno.EDQUOT, "quota")),
            ),
            True,
            True,
        ),
    ],
)
def test_what_the_machine_refused_is_tried_again_and_what_the_measure_refused_is_not(
    tmp_path: Path, error: Exception, again: bool, full: bool
) -> None:
    steps, work = ResultCache(tmp_path), Work(error)
    for _ in range(2):
        (skipped,) = steps.get("a", {}, work)
    assert (was_refused(error), has_no_room(error)) == (again, full)
    assert isinstance(skipped, Skipped)
    assert skipped.again is again
    assert work.runs == (2 if again else 1)


def test_an_error_says_in_which_step_it_was(tmp_path: Path) -> None:
    def broken() -> list[Result]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError) as caught:
        ResultCache(tmp_path).get("weights of a", {}, broken)
    assert caught.value.__notes__ == [
        "This was the step 'weights of a'; the same start goes on from those finished, which are "
        f"in {tmp_path}."
    ]
    assert not list(tmp_path.iterdir())


# -- a full disk -----------------------------------------------------------------------------------


def test_a_full_disk_names_the_step_and_keeps_those_before(
    in_one_go: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def fill(source: str, target: Path) -> None:
        if "class-selectivity-of-vit" in str(target):
            raise FULL
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill)
        with pytest.raises(StoreError) as caught:
            run(tmp_path)
    parts = tmp_path / "parts"
    told, finished = str(caught.value), BEFORE_CHANNELS_OF_VIT + 1
    assert told.startswith(
        "the step 'class selectivity of vit' cannot be kept (cannot write "
        f"{parts}/class-selectivity-of-vit-"
    )
    assert told.endswith(
        ": No space left on device): free disk space and start the same again, which goes on from "
        f"the {finished} finished before, in {parts}"
    )
    assert len(steps_in(parts)) == len(list(parts.iterdir())) == finished
    assert json.dumps(to_dict(run(tmp_path))) == json.dumps(to_dict(in_one_go))


def test_a_write_that_the_system_cuts_off_leaves_nothing(tmp_path: Path) -> None:
    """A real refusal in the middle of a file: the largest size that this process may write is set
    to 10 kB for a moment."""
    steps = ResultCache(tmp_path)
    steps.get("small", {}, Work())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(
            StoreError,
            match=(
                r"the step 'large' cannot be kept .*File too large.* goes on from the 1 finished "
                r"before"
            ),
        ):
            steps.get("large", {}, lambda: [Skipped("a", "x" * 100_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_in(tmp_path) == ["small"]
    assert len(list(tmp_path.iterdir())) == 1


def test_representations_that_do_not_fit_on_the_disk_stop_the_study_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError(
            "could not write to runs (No space left on device); 8 of 20 images are safe"
        ) from FULL

    monkeypatch.setattr("mixer_probe.capture.analysis_inputs.extract", full)
    with pytest.raises(StoreError) as caught:
        run(tmp_path)
    assert str(caught.value).startswith(
        "the step 'representations of mixer' stopped: could not write to runs (No space left"
    )
    # Analyses of weights, and those of mixing, which have passes of their own.
    before = (
        "anatomy",
        "effective receptive field",
        "kernel tying",
        "spatial kernels",
        "spatial mixing",
        "spectra",
        "stem filters",
        "token-mixing units",
    )
    assert steps_in(tmp_path / "parts") == [f"{name} of mixer" for name in before]


# -- a list of models ------------------------------------------------------------------------------


def test_a_missing_checkpoint_in_the_middle_keeps_the_others_and_is_tried_again(
    in_one_go: list[Result], tmp_path: Path
) -> None:
    missing = tmp_path / "mixer.safetensors"
    first, last = models()

    def middle() -> mp.Model:
        return mp.load_model(
            CASES["mixer"].network(seed=2), checkpoint=missing, name="middle", **SPEC
        )

    results = run_study(
        [first, middle, last], images(), None, SETTINGS, steps=ResultCache(tmp_path / "parts")
    )
    (skipped,) = (r for r in results if isinstance(r, Skipped) and r.step == "loading a model")
    assert str(missing) in skipped.reason
    rest = [r for r in results if r is not skipped]
    assert json.dumps(to_dict(rest)) == json.dumps(to_dict(in_one_go))
    # The checkpoint has come: only what it brings is computed.
    save_file(CASES["mixer"].network(seed=1).state_dict(), missing)
    kept = set(steps_in(tmp_path / "parts"))
    again = run_study(
        [first, middle, last], images(), None, SETTINGS, steps=ResultCache(tmp_path / "parts")
    )
    assert not [r for r in again if isinstance(r, Skipped) and r.step == "loading a model"]
    assert {
        step for step in set(steps_in(tmp_path / "parts")) - kept if "middle" not in step
    } == set()


def test_networks_that_need_other_images_are_left_out_and_the_rest_is_done(tmp_path: Path) -> None:
    """One network that takes images of two channels, and one of another size, in one list."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    pairs = VisionTransformer(
        img_size=32, patch_size=8, in_chans=2, embed_dim=16, depth=2, num_heads=2, num_classes=10
    )
    large = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=10
    )
    listed = [
        tiny_models()[0],
        mp.load_model(pairs, name="pairs", input_size=(2, 32, 32), mean=(0.5,) * 2, std=(0.5,) * 2),
        mp.load_model(large, name="large", input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3),
    ]
    settings = StudySettings(
        permutations=0,
        resamples=0,
        measures=("cka",),
        analyses={"probing": ("accuracy",), "channels": (), "attribution": ()},
    )
    results = run_study(listed, images(), None, settings, steps=ResultCache(tmp_path))
    left_out = [r.step for r in results if isinstance(r, Skipped)]
    assert any("pairs" in step for step in left_out)
    assert not any("large" in step or "tiny-mixer" in step for step in left_out)
    assert {
        (r.model_a.name, r.model_b.name) for r in results if type(r).__name__ == "SimilarityMatrix"
    } == {
        ("tiny-mixer", "tiny-mixer"),
        ("tiny-mixer", "large"),
        ("large", "large"),
    }
