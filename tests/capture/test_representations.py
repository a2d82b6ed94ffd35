"""Parts of a run: some layers, some images, read from disk when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import LayerError
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
