"""What every result shares: saved numbers come back bit for bit, files are whole or absent, errors
say what to do."""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mixer_probe.core import errors
from mixer_probe.core import result as results
from mixer_probe.core.errors import (
    LayerError,
    MixerProbeError,
    MixerProbeWarning,
    StoreError,
    closest,
)
from mixer_probe.core.progress import listen, task
from mixer_probe.core.result import (
    ImagesRecord,
    ModelRecord,
    Result,
    from_dict,
    load_results,
    save_results,
    to_dict,
)
from mixer_probe.models import describe
from mixer_probe.models.layer import Layer
from tests.networks import CASES
from tests.sealed import sealed

MODEL = ModelRecord("mixer", "mixer", True, "file w.safetensors", "a" * 64, 123, "a note")
IMAGES = ImagesRecord(
    "demo", "test", 10, 2, "b" * 64, limit=10, seed=3, skipped=1, credit="CC BY 2.0"
)


@dataclass(frozen=True)
class Everything(Result):
    model: ModelRecord
    images: tuple[ImagesRecord, ...]
    layers: tuple[Layer, ...]
    values: Any
    number: float = 0.5
    named: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"number": [self.number]})


def made(values: Any, **changes: Any) -> Everything:
    layers = (
        Layer("blocks.0", "block", 0.5, (4, 4), 8, 0, 16, "BNC", 3),
        Layer("head", "head", 1.0, None, 5, 0, 0, "BC", 9),
    )
    return Everything(MODEL, (IMAGES, IMAGES), layers, values, **changes)


def through_json(value: Any) -> Any:
    return from_dict(json.loads(json.dumps(to_dict(value), allow_nan=False)))


# -- values ----------------------------------------------------------------------------------------

ARRAYS = {
    "float32": np.array([0.1, -1e-30, 3e38, 1 / 3], dtype=np.float32),
    "float64": np.array([0.1, 5e-324, 1.7976931348623157e308, -0.0]),
    "float16": np.array([0.1, 65504], dtype=np.float16),
    "nan and infinity": np.array([math.nan, math.inf, -math.inf, 1.0], dtype=np.float32),
    "large": np.random.default_rng(0).normal(size=(100, 50)),
    "large with nan": np.where(np.arange(5000) % 7, 1.5, math.nan).astype(np.float32),
    "integers": np.array([[-(2**63), 2**63 - 1], [0, 7]]),
    "unsigned": np.array([2**64 - 1], dtype=np.uint64),
    "bytes": np.arange(5000, dtype=np.uint8).reshape(2, 50, 50),
    "booleans": np.array([[True, False], [False, True]]),
    "many booleans": np.arange(5000) % 3 == 0,
    "strings": np.array(["кот", "", "a\nb", '"quoted"']),
    "byte strings": np.array([b"ab", b"c"]),
    "complex": np.array([1 + 2j, 3 - 4j]),
    "dates": np.array(["2026-01-01", "2027-02-03"], dtype="datetime64[D]"),
    "empty": np.empty((0, 3), dtype=np.float32),
    "empty integers": np.empty((2, 0), dtype=np.int16),
    "empty strings": np.array([], dtype="U3"),
    "no axes": np.array(3.5),
    "fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20.0)[::3],
    "big endian": np.array([1.5, 2.5], dtype=">f4"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(name: str) -> None:
    array = ARRAYS[name]
    back = through_json(array)
    assert isinstance(back, np.ndarray)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_small_arrays_can_be_read_in_the_file() -> None:
    assert to_dict(np.array([1.5, 2.0]))["values"] == [1.5, 2.0]


def test_arrays_of_python_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        to_dict(np.array([{"a": 1}, None], dtype=object))


@pytest.mark.parametrize(
    "value", [1, 0, -(2**70), 0.1, True, False, None, "", "naïve 猫 \ud83d", 1e-320]
)
def test_plain_values_come_back(value: Any) -> None:
    back = through_json(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_come_back(value: float) -> None:
    back = through_json(value)
    assert isinstance(back, float)
    assert repr(back) == repr(value)
    assert repr(through_json(np.float32(value))) == repr(value)


def test_numpy_scalars_become_plain_numbers() -> None:
    back = through_json((np.float64(0.1), np.int32(3), np.bool_(True), np.str_("a")))
    assert back == (0.1, 3, True, "a")
    assert [type(v) for v in back] == [float, int, bool, str]


def test_tuples_lists_and_dictionaries_nest() -> None:
    value = {"a": [1, (2, {"b": np.array([1.0, math.nan])})], "$type": "not a type"}
    back = through_json(value)
    assert back["a"][1][0] == 2
    np.testing.assert_array_equal(back["a"][1][1]["b"], [1.0, math.nan])
    assert back["$type"] == "not a type"
    assert through_json([[1], []]) == ((1,), ())


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(TypeError, match="cannot store a PosixPath in a result"):
        to_dict(made(Path("x")))


def test_records_and_layers_come_back_equal() -> None:
    back = through_json(made(None, named={"x": (1, math.inf)}))
    assert back == made(None, named={"x": (1, math.inf)})
    assert isinstance(back.layers[0], Layer)
    assert back.layers[0].grid == (4, 4)
    assert back.images[1] == IMAGES


# -- files -----------------------------------------------------------------------------------------


def test_results_are_saved_and_loaded(tmp_path: Path) -> None:
    file = save_results(
        [made(ARRAYS["large with nan"]), made(1.5)], tmp_path / "deep" / "r.json", {"seed": 3}
    )
    first, second = load_results(file)
    np.testing.assert_array_equal(first.values, ARRAYS["large with nan"])
    assert second == made(1.5)
    content = json.loads(file.read_text())
    assert content["settings"] == {"seed": 3}
    assert "NaN" not in file.read_text()


def test_results_load_in_a_process_that_has_imported_nothing_else(tmp_path: Path) -> None:
    """A saved similarity matrix or model card is read by a script that only opens the file."""
    card = describe(CASES["mixer"].model())
    file = save_results([card], tmp_path / "r.json")
    script = (
        "from mixer_probe.core.result import load_results; "
        f"print(load_results({str(file)!r})[0].model.fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == card.model.fingerprint, done.stderr


def one(**fields: Any) -> str:
    """A file with one result, of which some fields are replaced."""
    return sealed([{**to_dict(made(1.5)), **fields}])


def array(**fields: Any) -> str:
    return one(
        values={"$type": "array", "dtype": "float64", "shape": [2], "values": [1.0, 2.0]} | fields
    )


def npy(shape: str, size: int, dtype: str = "<f8") -> str:
    """An npy file whose header declares `shape` and which holds `size` bytes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = (
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * size
    )
    return one(
        values={
            "$type": "array",
            "dtype": dtype,
            "shape": [1],
            "npy_base64": base64.b64encode(content).decode(),
        }
    )


NO_RESULTS = {
    "missing": (None, "cannot read results from .*: No such file"),
    "half": ("{", "is not a results file: it is not valid JSON"),
    "odd bytes": ("\ufeff\x00", "is not a results file"),
    "a list": ("[]", "expected format 'mixer-probe results 2'"),
    "another format": ('{"format": "other"}', "expected format .*, found 'other'"),
    "the version before": (
        '{"format": "mixer-probe results 1", "results": []}',
        "not a results file of this version.*results 1",
    ),
    "no checksum": (
        '{"format": "mixer-probe results 2", "results": []}',
        "has no checksum; copy it again, or recreate it",
    ),
    "edited": (
        one().replace("0.5", "0.6"),
        "has been damaged or edited: its checksum does not match; copy it again",
    ),
    "no list": (sealed(3), "contains data that is not a result .*TypeError"),
    "no settings": (sealed([], settings=3), "contains data that is not a result .*TypeError"),
    "unknown": (sealed([{"$type": "Fancy"}]), "'Fancy' is not a result type of this version.*: "),
    "unknown kind of name": (sealed([{"$type": ["Fancy"]}]), "contains data that is not a result"),
    "no fields": (sealed([{"$type": f"{__name__}.Everything"}]), "Everything of another version"),
    "no result": (sealed([3]), "a int is not a result"),
    "a record": (sealed([to_dict(MODEL)]), "a ModelRecord is not a result"),
    "deep": ("[" * 100_000 + "]" * 100_000, "nested deeper than any result"),
    "deep in a field": (
        one().replace("1.5", "[" * 100_000 + "]" * 100_000),
        "nested deeper than any result",
    ),
    "text for a number": (one(number="0.5"), "'number' of a Everything is a str, not float"),
    "number for a record": (one(model=3), "'model' of a Everything is a int, not ModelRecord"),
    "record of others": (
        one(model={**to_dict(MODEL), "parameters": "many"}),
        "'parameters' of a ModelRecord is a str, not int",
    ),
    "number in a tuple": (one(images=[to_dict(IMAGES), 3]), "'images' of a Everything is a tuple"),
    "list for names": (one(named=[1]), "'named' of a Everything is a tuple, not dict"),
    "items that are none": (
        one(named={"$type": "dict", "items": [1]}),
        "contains data that is not a result",
    ),
    "true for a count": (
        one(model={**to_dict(MODEL), "parameters": True}),
        "'parameters' of a ModelRecord is a bool",
    ),
    "no float": (one(number={"$type": "float", "value": []}), "contains data that is not a result"),
    "no npy": (
        one(values={"$type": "array", "npy_base64": "AAAA"}),
        "contains data that is not a result",
    ),
    "no base64": (
        one(values={"$type": "array", "npy_base64": "?"}),
        "contains data that is not a result",
    ),
    "72 TiB": (
        npy("(9895604649984,)", 8),
        r"declares the shape \(9895604649984,\) of 'float64' and has 8 bytes",
    ),
    "a negative size": (npy("(-1,)", 8), "contains data that is not a result"),
    "pickled": (npy("(1,)", 8, "|O"), "Python objects"),
    "shape of 72 TiB": (array(shape=[9895604649984]), "declares the shape .* and has 2 values"),
    "shape of others": (array(shape=[2, 2]), "declares the shape .* and has 2 values"),
    "negative shape": (array(shape=[-2, -1]), "declares the shape"),
    "fractional shape": (array(shape=[2.0]), "declares the shape"),
    "texts of 72 TiB": (
        array(dtype="<U9895604649984", values=["a", "b"]),
        "contains data that is not a result",
    ),
    "texts of 1 GiB": (
        array(dtype="<U268435456", values=["a", "b"]),
        "declares 1073741824 bytes for each",
    ),
    "texts for numbers": (array(values=["1.0", "2.0"]), "values that do not match this type"),
    "lists for numbers": (array(values=[[1.0], [2.0]]), "values that do not match this type"),
    "too large": (array(dtype="int64", values=[2**70, 1]), "OverflowError"),
    "objects": (array(dtype="object"), "values that do not match this type"),
    "no dtype": (array(dtype="nonsense"), "contains data that is not a result"),
}


@pytest.mark.parametrize("name", NO_RESULTS)
def test_files_that_are_no_results(tmp_path: Path, name: str) -> None:
    content, sentence = NO_RESULTS[name]
    file = tmp_path / "r.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StoreError, match=sentence):
        load_results(file)


def test_a_folder_is_no_results(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read results"):
        load_results(tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="not valid JSON"):
        load_results(tmp_path / "r.json")


def test_fields_that_this_version_does_not_know_are_passed_over() -> None:
    assert from_dict({**to_dict(MODEL), "mood": "good"}) == MODEL


@pytest.mark.parametrize("what", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, what: str
) -> None:
    file = tmp_path / "r.json"
    file.write_text("the old one")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, what, fail)
    with pytest.raises((StoreError, KeyboardInterrupt)) as caught:
        save_results([made(1)], file)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {file}: No space left on device"
    assert file.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


# -- errors ----------------------------------------------------------------------------------------


def test_every_error_is_one_that_the_command_line_prints() -> None:
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and k.__module__ == errors.__name__
    ]
    assert len(kinds) > 8
    assert all(issubclass(kind, (MixerProbeError, MixerProbeWarning)) for kind in kinds)


def test_a_layer_error_prints_its_sentence_and_not_its_repr() -> None:
    """KeyError prints the repr of its argument."""
    assert str(LayerError("no layer 'a'; closest: b")) == "no layer 'a'; closest: b"
    assert str(LayerError()) == ""
    assert isinstance(LayerError("x"), KeyError)


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("mixer_b16", ["mixer_b16_224", "resnet18"], "closest: mixer_b16_224"),
        (
            "blocks.0",
            ["x", "blocks.0.mlp_tokens.fc1.and.much.more.of.a.name"],
            "closest: blocks.0.mlp_tokens.fc1.and.much.more.of.a.name",
        ),
        ("zzz", ["a", "b"], "known: a, b"),
        ("zzz", [*"abcdefg"], "known: a, b, c, d, e, ..."),
        ("zzz", [], "known: "),
    ],
)
def test_closest_names(name: str, known: list[str], sentence: str) -> None:
    assert closest(name, known) == sentence
    assert closest(name, iter(known)) == sentence


# -- progress --------------------------------------------------------------------------------------


def test_progress_is_told_to_a_listener_and_survives_errors() -> None:
    told: list[tuple[str, int, int]] = []
    listen(lambda *step: told.append(step))
    try:
        with task("outer", 2) as outer, task("inner", 5) as inner:
            inner(2)
            inner(3)
            outer(1)
        with pytest.raises(KeyError), task("broken", 1):
            raise KeyError
    finally:
        listen(None)
    assert told == [("inner", 2, 5), ("inner", 5, 5), ("outer", 1, 2)]
    with task("after", 1) as advance:
        advance(1)
    assert len(told) == 3


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with task("work", 3) as advance:
        advance(3)
    out, err = capsys.readouterr()
    assert out == err == ""


def test_progress_can_be_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_PROBE_PROGRESS", "1")
    with task("counting sheep", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == ""


def test_storable_records_are_known_by_name() -> None:
    assert results._KINDS["ModelRecord"] is ModelRecord
    assert results._KINDS["Layer"] is Layer
