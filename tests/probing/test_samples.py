"""Which images and layers are sampled for a code, and the halves of a run: every class, and no
picture on both sides."""

from __future__ import annotations

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.images import from_arrays
from mixer_probe.probing import code_sample
from mixer_probe.probing.patch_position import decodable_layers
from mixer_probe.probing.runs import split_in_half
from tests.networks import CASES

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [20, 10, 9, 1]))


def run_of(labels: np.ndarray | None, twice: int = 0) -> Representations:
    """All layers of a small network on noise; the first `twice` pictures are there once more at the
    end."""
    pixels = np.random.default_rng(1).integers(0, 256, (len(LABELS), 32, 32, 3), dtype=np.uint8)
    pixels[len(pixels) - twice :] = pixels[:twice]
    return mp.extract(CASES["mixer"].model(), from_arrays(pixels, labels), "all")


def test_a_sample_for_a_code_has_few_layers_and_images_of_all_classes() -> None:
    run = run_of(LABELS)
    found = code_sample(run, 20, 3)
    last = len(run.layers) - 1
    assert [layer.name for layer in found.layers] == [
        run.layers[i].name for i in (0, round(last / 2), last)
    ]
    assert found.labels is not None
    # In proportion to 20, 10, 9 and 1 of 40.
    assert np.abs(np.bincount(found.labels, minlength=4) - [10, 5, 4.5, 0.5]).max() <= 0.5
    rows = [run.ids.index(name) for name in found.ids]
    np.testing.assert_array_equal(found[found.layers[1].name], run[found.layers[1].name][rows])
    assert code_sample(run).ids == run.ids
    with pytest.raises(ImagesError, match="no labels"):
        code_sample(run_of(None))


def test_halves_have_every_class_and_no_picture_twice() -> None:
    fit, test = split_in_half(run_of(LABELS))
    assert sorted([*fit, *test]) == list(range(40))
    assert len(fit) == len(test) == 20
    for half in (fit, test):
        assert {0, 1, 2} <= set(LABELS[half])
    run = run_of(LABELS, twice=5)
    fit, test = split_in_half(run)
    assert not {run.keys[i] for i in fit} & {run.keys[i] for i in test}
    with pytest.raises(ImagesError, match="no labels"):
        split_in_half(run_of(None))


def test_layers_of_which_a_position_can_be_decoded() -> None:
    names = decodable_layers(CASES["mixer"].model())
    assert names == ["stem", "blocks.0", "blocks.1"]
    # At 32 px the last stage of a ResNet is a single cell.
    model = mp.load_model("test_resnet", pretrained=False, input_size=(3, 32, 32), device="cpu")
    grids = {layer.name: layer.grid for layer in model.select(("stem", "blocks"))}
    assert decodable_layers(model) == [name for name, grid in grids.items() if grid != (1, 1)]
    assert len(decodable_layers(model)) < len(grids)


def test_a_network_without_positions_is_refused() -> None:
    class Single:
        name = "single"

        def select(self, _kinds: object) -> list[mp.Layer]:
            return [mp.Layer("blocks.0", "block", 1.0, (1, 1), 4, 0, 1)]

    with pytest.raises(MeasureError, match="no layer of single has several positions"):
        decodable_layers(Single())  # type: ignore[arg-type]
