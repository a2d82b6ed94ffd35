"""Images of hidden units of token mixing against plain hooks, and a unit's outputs against its
weights and inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.channels import UnitActivations, top_unit_images, unit_activations, unit_layers
from mixer_probe.channels.unit_images import UNIT_LAYERS
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.weights import token_mixing
from tests.networks import CASES, module_output, noise

FORMS = {"mixer": "Mixer", "gmixer": "gMixer", "resmlp": "ResMLP", "gmlp": "gMLP"}


def caught(model: mp.Model, images: torch.Tensor, name: str) -> np.ndarray:
    """[image, channel, unit] of a layer inside of token mixing, or transposed where its tokens come
    first."""
    return module_output(model, images, name).double().numpy()


@pytest.mark.parametrize("name", FORMS)
def test_images_rank_by_the_outputs_of_a_unit(name: str) -> None:
    model, images = CASES[name].model(), noise(9, CASES[name].size)
    _inputs, outputs = unit_layers(token_mixing(model, surrogates=1, shuffles=1), 1)
    given = caught(model, images, outputs)
    assert outputs == f"blocks.1.{UNIT_LAYERS[FORMS[name]].outputs}"
    rms, peak = np.sqrt((given**2).mean(1)), given.max(1)
    for over, values in (("rms", rms), ("peak", peak)):
        found = top_unit_images(model, images, outputs, 3, over=over, batch_size=4)
        order = np.argsort(-values, axis=0, kind="stable")[:3].T
        assert found.n == 9
        np.testing.assert_array_equal(found.index, order)
        np.testing.assert_allclose(
            found.values, np.take_along_axis(values, order.T, 0).T, rtol=1e-5
        )
        units = np.arange(values.shape[1])[:, None]
        np.testing.assert_array_equal(found.channel, given.argmax(1)[order, units])
    assert from_dict(to_dict(found)) == found


@pytest.mark.parametrize("name", ["mixer", "resmlp"])
def test_an_output_is_the_unit_applied_to_its_inputs(name: str) -> None:
    """act(<weights, inputs> + bias), from the parameters alone: the inputs shown are those that the
    unit reads."""
    model, images = CASES[name].model(), noise(5, CASES[name].size)
    layers = unit_layers(token_mixing(model, surrogates=1, shuffles=1), "blocks.1")
    top = top_unit_images(model, images, layers[1], over="peak")
    unit = 2
    one = unit_activations(
        model, images, layers, unit, top.index[unit], top.channel[unit], pixels=8
    )
    block = model.module.get_submodule("blocks.1")
    linear = block.mlp_tokens.fc1 if name == "mixer" else block.linear_tokens
    before = (
        torch.from_numpy(one.inputs.reshape(5, -1)) @ linear.weight[unit].detach()
        + linear.bias[unit].detach()
    )
    expected = torch.nn.functional.gelu(before) if name == "mixer" else before
    np.testing.assert_allclose(
        one.outputs[np.arange(5), top.channel[unit]], expected, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        one.outputs[np.arange(5), top.channel[unit]], top.values[unit], rtol=1e-5
    )
    assert one.inputs.shape == (5, *(model.structure.token_grid or ()))
    assert one.pictures.shape == (5, 8, 8, 3)
    assert from_dict(to_dict(one)) == one


def test_the_channels_of_largest_output_in_any_image() -> None:
    outputs = np.array([[1.0, -5.0, 0.0, 2.0], [0.0, 0.0, 3.0, 2.0]])
    one = UnitActivations(outputs, np.zeros((2, 1, 1)), np.zeros((2, 1, 1, 3), dtype=np.uint8))
    assert one.strongest_channels(2).tolist() == [1, 2]
    assert one.strongest_channels().tolist() == [0, 1, 2, 3]


def test_what_is_not_there_is_refused() -> None:
    from dataclasses import replace

    model = CASES["mixer"].model()
    units = token_mixing(model, surrogates=1, shuffles=1)
    with pytest.raises(MeasureError, match="unit outputs of a Mixer and gMixer is not known"):
        unit_layers(replace(units, form="Mixer and gMixer"), 0)
    with pytest.raises(LayerError):
        top_unit_images(model, noise(2, CASES["mixer"].size), "blocks.9.mlp_tokens.act")
