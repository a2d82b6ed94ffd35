"""Results are equal when their numbers are, and no class of another module is taken for one of
ours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from mixer_probe.capture import RunRecord
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import (
    ImagesRecord,
    ModelRecord,
    Result,
    from_dict,
    load_results,
    save_results,
    to_dict,
)
from mixer_probe.similarity import SimilarityMatrix

MODEL = ModelRecord("mixer", "mixer", True, "file", "a" * 64, 1)
IMAGES = ImagesRecord("demo", "test", 3, 2, "b" * 64)


@dataclass(frozen=True)
class Measured(Result):
    """Fields of every kind."""

    values: np.ndarray
    number: float = 0.0
    names: np.ndarray = field(default_factory=lambda: np.array(["x", "y"]))
    settings: Any = None
    parts: tuple[Any, ...] = ()


def made(**changes: Any) -> Measured:
    values = {
        "values": np.array([1.0, np.nan, 3.0]),
        "number": float("nan"),
        "settings": {"a": [1, np.ones(2)]},
        "parts": (MODEL,),
    }
    return Measured(**{**values, **changes})


def test_equal_results_are_equal_and_hash_alike() -> None:
    assert made() == made()
    assert hash(made()) == hash(made())
    assert {made(), made()} == {made()}
    assert from_dict(to_dict(made())) == made()
    assert hash(from_dict(to_dict(made()))) == hash(made())
    assert made(number=1) == made(number=1.0)
    assert hash(made(number=1)) == hash(made(number=1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.array([1.0, np.nan, 4.0])},
        {"values": np.array([1.0, 2.0, 3.0])},
        {"values": np.array([1.0, np.nan])},
        {"values": None},
        {"number": 0.0},
        {"names": np.array(["x", "z"])},
        {"settings": {"a": [1, np.zeros(2)]}},
        {"parts": (replace(MODEL, name="other"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_numbers_are_other_results(change: dict[str, Any]) -> None:
    assert made(**change) != made()
    assert made() != "made"


def test_records_compare_by_value_too() -> None:
    def record(n: int) -> RunRecord:
        return RunRecord(MODEL, IMAGES, (), "mean", "", "", "float32", {"torch": str(n)})

    assert record(1) == record(1) != record(2)
    assert hash(record(1)) == hash(record(1))
    assert replace(IMAGES, credit="x") != IMAGES


def test_a_class_of_the_same_name_does_not_replace_ours(tmp_path: Any) -> None:
    kept = to_dict(Measured(np.zeros(1)))
    mine = dataclass(frozen=True)(
        type(
            "SimilarityMatrix",
            (Result,),
            {"__annotations__": {"values": Any}, "__module__": "mine"},
        )
    )
    data = {"$type": "SimilarityMatrix", "values": 1}
    with pytest.raises(StoreError, match="of a SimilarityMatrix is a int"):
        from_dict(data)
    found = load_results(save_results([mine(3), Measured(np.zeros(1))], tmp_path / "r.json"))
    assert type(found[0]) is mine
    assert found[0].values == 3
    assert type(found[1]) is Measured
    assert kept["$type"] == f"{__name__}.Measured"
    assert SimilarityMatrix.__module__.startswith("mixer_probe.")
