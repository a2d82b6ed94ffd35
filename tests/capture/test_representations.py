"""Parts of a run: some layers, some images, read from disk when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.capture import representations
from mixer_probe.core.errors import LayerError
from mixer_probe.core.rows import Rows
from tests.tiny import tiny_models


@pytest.fixture
def stored(tmp_path: Path) -> mp.Representations:
    mixer, *_ = tiny_models()
    return mp.extract(
        mixer, mp.load_images("demo", limit=12), "all", reduce="none", out=tmp_path / "run.zarr"
    )


def test_some_layers_by_the_words_that_choose_those_of_a_model(stored: mp.Representations) -> None:
    blocks = stored.only("blocks")
    assert [layer.kind for layer in blocks.layers] == ["block"] * len(blocks)
    first = blocks.names()[0]
    np.testing.assert_array_equal(blocks[first], stored[first])
    assert stored.only([first, "head"]).names() == [
        first,
        next(x.name for x in stored.layers if x.kind == "head"),
    ]
    assert stored.only("all").names() == stored.names()
    with pytest.raises(LayerError, match=f"no layer 'blocks.99' in this run .*{first}"):
        stored.only("blocks.99")
    with pytest.raises(LayerError, match="no layer"):
        blocks["stem"]


@pytest.mark.parametrize("rows", [slice(3, 7), np.array([0, 5, 11])])
def test_some_images_of_a_layer(stored: mp.Representations, rows: slice | np.ndarray) -> None:
    for name in stored:
        np.testing.assert_array_equal(stored.rows(name, rows), stored[name][rows])
    memory = stored.take(range(12))
    np.testing.assert_array_equal(memory.rows("stem", rows), stored["stem"][rows])
    with pytest.raises(LayerError):
        stored.rows("blocks.99", rows)


def test_taken_images_of_a_large_stored_run_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vit, _ = tiny_models()
    images, order, again = mp.load_images("demo", limit=12), [7, 0, 0, 11], [3, 1, 2]
    stored = mp.extract(vit, images, reduce="none", out=tmp_path / "run.zarr")
    memory = stored.take(order).take(again)
    monkeypatch.setattr(representations, "IN_MEMORY", 0)
    lazy, rows = stored.take(order).take(again), np.array(order)[again]
    assert (lazy.images, lazy.ids) == (memory.images, memory.ids)
    for name in stored:
        assert isinstance(lazy.array(name), Rows)
        np.testing.assert_array_equal(lazy[name], stored[name][rows])
        np.testing.assert_array_equal(lazy.rows(name, slice(1, 3)), stored[name][rows][1:3])
        np.testing.assert_array_equal(lazy.prefix(name), stored.prefix(name)[rows])


def test_taken_images_have_the_non_finite_numbers_that_are_theirs(
    stored: mp.Representations, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = stored.names()[0]
    numbers = np.array(stored[name])
    numbers[[2, 5, 5], 0, [0, 1, 2]] = np.nan
    record, parts = stored.only(name).record, {name: Rows(numbers)}
    run = mp.Representations(record, parts, {}, stored.ids, None, None, {name: 3})
    for budget in (0, 10**9):
        monkeypatch.setattr(representations, "IN_MEMORY", budget)
        assert run.take([5, 2, 5]).non_finite == {name: 5}
        assert run.take([0, 1]).non_finite == {}
