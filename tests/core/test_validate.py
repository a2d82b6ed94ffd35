"""One validator: every public function refuses a wrong seed, count, number or choice before any
work, in one sentence."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator

import mixer_probe
from mixer_probe.core import result as results
from mixer_probe.core.errors import ImagesError, MeasureError, MixerProbeError, ModelError
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.validate import LARGEST_SEED, check_fraction, check_seed, check_text, checked
from mixer_probe.images import Images, load_images
from mixer_probe.images.distortions import Distortion, LowPass, PatchShuffle
from mixer_probe.models import load_model
from mixer_probe.probing import LogisticPath, LogisticProbe
from mixer_probe.similarity import cka
from mixer_probe.zoo.cards import Card

X, Y = np.eye(6), np.arange(6) % 2
WELL = {"int": 1, "float": 0.5, "int | None": None}
# Made by functions alone, as results are.
NOT_FOR_PEOPLE = (Images, LogisticPath, Card)
WRONG_COUNTS = [-1, 1.5, "3", "", math.nan, math.inf, True, [1], object()]


COUNTS = (
    "batch_size",
    "limit",
    "permutations",
    "resamples",
    "runs",
    "steps",
    "draws",
    "controls",
    "surrogates",
    "folds",
    "bins",
)


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function, constructor and method in the `__all__` of a package, but for the classes of
    results."""
    modules = [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(mixer_probe.__path__, "mixer_probe.")
        if m.ispkg
    ]
    public = [
        getattr(m, name)
        for m in (mixer_probe, *modules)
        if ".cli" not in m.__name__
        for name in getattr(m, "__all__", ())
    ]
    for value in {id(value): value for value in public}.values():
        if inspect.isfunction(value):
            yield f"{value.__module__}.{value.__qualname__}", value
        elif (
            inspect.isclass(value)
            and not getattr(value, "_is_protocol", False)
            and value not in NOT_FOR_PEOPLE
        ):
            # scikit-learn's estimators take anything, and look at it when they are fitted.
            is_result = value.__name__ in results._KINDS and not issubclass(value, Distortion)
            made_by_people = not is_result and not issubclass(value, BaseEstimator)
            for name, method in vars(value).items():
                if inspect.isfunction(method) and (
                    made_by_people if name == "__init__" else not name.startswith("_")
                ):
                    yield f"{value.__module__}.{method.__qualname__}", method


def call(function: Callable[..., Any], **given: Any) -> None:
    """With a stand-in for everything required: what is wrong is seen before any of it is looked
    at."""
    required = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.name not in given
    ]
    required = [p for p in required if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    function(**{p.name: WELL.get(str(p.annotation), object()) for p in required}, **given)


def refusal(function: Callable[..., Any], name: str, value: Any) -> str:
    try:
        call(function, **{name: value})
    except MixerProbeError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_every_public_function_refuses_what_is_no_count(capsys: pytest.CaptureFixture[str]) -> None:
    tried, taken = 0, []
    for where, function in public_functions():
        for name in ("seed", *COUNTS):
            parameter = inspect.signature(function).parameters.get(name)
            if parameter is None or str(parameter.annotation) not in ("int", "int | None"):
                continue
            for value in [*WRONG_COUNTS, *([LARGEST_SEED + 1, 10**30] if name == "seed" else [])]:
                tried += 1
                if not (said := refusal(function, name, value)).startswith(
                    f"{name} is a whole number"
                ):
                    taken.append(f"{where}({name}={value!r}): {said[:100]}")
    with capsys.disabled():
        print(f" {tried} wrong whole numbers,", end="")
    assert not taken, "\n".join(taken)
    assert tried > 1000


@pytest.mark.parametrize(
    "call, error, said",
    [
        (
            lambda: load_images("demo", seed=-1),
            ImagesError,
            "seed is a whole number from 0 to 4294967295, not -1",
        ),
        (
            lambda: load_images("demo", seed="7"),
            ImagesError,
            "seed is a whole number from 0 to 4294967295, not '7'",
        ),
        (
            lambda: load_images("demo", limit="ten"),
            ImagesError,
            "limit is a whole number, 1 or more, not 'ten'",
        ),
        (
            lambda: load_images("demo", limit=math.nan),
            ImagesError,
            "limit is a whole number, 1 or more, not nan",
        ),
        (
            lambda: load_images("demo", on_error="skpi"),
            ImagesError,
            "unknown on_error 'skpi'; known: raise, skip",
        ),
        (
            lambda: load_model("zoo:mixer-s0", seed=0.5),
            ModelError,
            "seed is a whole number from 0 to 4294967295, not 0.5",
        ),
        (
            lambda: cka(np.eye(5), np.eye(5), kernel="rbv"),
            MeasureError,
            "unknown kernel 'rbv'; known: linear, rbf",
        ),
        (
            lambda: cka(np.eye(5), np.eye(5), bandwidth="wide"),
            MeasureError,
            "bandwidth is a finite number, not 'wide'",
        ),
        (lambda: LowPass(math.nan), ImagesError, "cutoff is a finite number, not nan"),
        (
            lambda: PatchShuffle(2, seed=-3),
            ImagesError,
            "seed is a whole number from 0 to 4294967295, not -3",
        ),
        (
            lambda: PatchShuffle("2"),
            ImagesError,
            "grid is a whole number or (rows, columns), each 1 or more, not '2'",
        ),
        (
            lambda: LogisticProbe(seed=-1, l2=1.0).fit(X, Y),
            MeasureError,
            "seed is a whole number from 0 to 4294967295, not -1",
        ),
        (
            lambda: LogisticProbe(l2=1.0, max_iter=0).fit(X, Y),
            MeasureError,
            "max_iter is a whole number, 1 or more, not 0",
        ),
        (
            lambda: StudySettings(batch_size=0),
            MeasureError,
            "batch_size is a whole number, 1 or more, not 0",
        ),
    ],
)
def test_messages(call: Callable[[], Any], error: type[MixerProbeError], said: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == said


def test_what_is_right_passes_and_numpys_whole_numbers_become_ints() -> None:
    @checked(MeasureError)
    def given(
        seed: int = 0, k: int | None = None, fraction: float = 0.5, *, other: object = None
    ) -> tuple[object, ...]:
        return seed, k, fraction, other

    assert given(np.int64(3), np.uint8(2), 1, other="x") == (3, 2, 1, "x")
    assert all(type(value) is int for value in given(np.int64(3), np.uint8(2))[:2])
    assert given() == (0, None, 0.5, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        given(sed=1)  # type: ignore[call-arg]


def test_seeds_are_what_numpy_and_torch_take() -> None:
    for seed in (0, 1, LARGEST_SEED):
        assert check_seed(seed, MeasureError) == seed
        (
            np.random.RandomState(seed),
            np.random.default_rng(seed),
            torch.Generator().manual_seed(seed),
        )
    with pytest.raises(ValueError, match="between 0 and 2"):
        np.random.RandomState(LARGEST_SEED + 1)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.1, math.nan, "half", None])
def test_fractions_and_their_ends(value: Any) -> None:
    with pytest.raises(ImagesError, match="fraction is a"):
        check_fraction("fraction", value, ImagesError)
    if value in (0, 1):
        assert (
            check_fraction("fraction", value, ImagesError, zero=value == 0, one=value == 1) == value
        )


@pytest.mark.parametrize("value", ["", "  ", "x" * 256, "a\nb", "a\x1b[31m", "a\0b", None, 3])
def test_texts(value: Any) -> None:
    with pytest.raises(ModelError, match=r"^name is"):
        check_text("name", value, ModelError)
    assert check_text("name", "x" * 255, ModelError) == "x" * 255
    assert check_text("name", "Größe = 3", ModelError) == "Größe = 3"
