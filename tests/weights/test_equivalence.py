"""A Mixer beside itself as a CNN: numbers against counts by hand, and a copy that was spoilt on
purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError, ModelError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.weights import convolution_equivalence, equivalence
from mixer_probe.weights.figures import mixer_as_cnn
from mixer_probe.weights.views.equivalence import equivalence_sentences
from tests.networks import CASES, as_model, noise

MIXERS = ("mixer", "gmixer", "resmlp", "gmlp")
# Parameters of token mixing in both blocks (S = 16), times the channels that would each have them:
# 24, of gMLP 72.
UNTIED = {
    "mixer": 2 * (16 * 12 + 12 + 12 * 16 + 16) * 23,
    "gmixer": 2 * (16 * 24 + 24 + 12 * 16 + 16) * 23,
    "resmlp": 2 * (16 * 16 + 16) * 23,
    "gmlp": 2 * (16 * 16 + 16) * 71,
}


@pytest.mark.parametrize("name", MIXERS)
def test_the_same_logits_and_parameters_from_convolutions_alone(name: str) -> None:
    model = CASES[name].model()
    found = convolution_equivalence(model, noise(5), batch_size=2)
    assert [(c.form, c.dtype, c.n) for c in found.checks] == [
        (form, dtype, 5) for dtype in ("float64", "float32") for form in ("tied", "grouped")
    ]
    exact, single = found.checks[:2], found.checks[2:]
    assert max(c.difference for c in exact) < 1e-13
    assert max(c.difference for c in single) < 1e-5
    assert [c.rounding for c in exact] == [0, 0]
    assert all(c.rounding > 0 for c in single)
    assert all(c.same == 5 for c in found.checks)
    assert found.largest_output == pytest.approx(
        float(CASES[name].model(torch.float64).module(noise(5).double()).detach().abs().max())
    )
    assert (found.parameters, found.linear_layers) == (model.parameters, 0)
    assert found.untied_parameters - found.parameters == UNTIED[name]
    assert sum(c.parameters for c in found.convolutions) < found.parameters
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())


def test_the_convolutions_of_a_mixer() -> None:
    found = convolution_equivalence(
        CASES["mixer"].model(), noise(1), forms=("tied",), dtypes=("float64",)
    )
    assert [(c.kind, c.count, c.kernel, c.parameters) for c in found.convolutions] == [
        ("patch embedding", 1, (8, 8), 24 * 3 * 64 + 24),
        ("full-field, tied over channels", 2, (4, 4), 2 * (16 * 12 + 12)),
        ("hidden units to positions", 2, (1, 1), 2 * (12 * 16 + 16)),
        ("channels to channels", 4, (1, 1), 2 * (24 * 96 + 96 + 96 * 24 + 24)),
        ("classifier", 1, (1, 1), 24 * 5 + 5),
    ]


@pytest.mark.parametrize("name", MIXERS)
def test_the_kernel_at_work(name: str) -> None:
    """The sum over the map is what the convolution gives, and what the network's own linear layer
    gives."""
    model = CASES[name].model()
    found = convolution_equivalence(model, noise(2), forms=("tied",), dtypes=("float64",)).example
    sums = (found.maps * found.kernel).sum((1, 2)) + found.bias
    np.testing.assert_allclose(found.convolved, sums, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.linear, sums, rtol=1e-12, atol=1e-12)
    weight = (
        model.module.get_submodule(f"{found.block}.{found.layer}").weight.detach().double().numpy()
    )
    np.testing.assert_array_equal(found.kernel, weight[found.unit].reshape(4, 4))
    assert found.convolved[0] >= found.convolved[1] >= found.convolved[2]
    assert len(set(found.channels)) == 3


def test_a_network_that_is_not_the_same_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = equivalence.as_convolution

    def spoilt(model: Any, form: Any) -> Any:
        converted: Any = convert(model, form)
        with torch.no_grad():
            converted.head.bias[2] += 50
        return converted

    monkeypatch.setattr(equivalence, "as_convolution", spoilt)
    found = convolution_equivalence(
        CASES["mixer"].model(), noise(4), forms=("tied",), dtypes=("float64",)
    )
    assert found.checks[0].difference == pytest.approx(50)
    assert found.checks[0].same < 4
    assert "differ by at most 5.0e+01 (n = 4 images)" in equivalence_sentences(found)[1]


def test_a_classifier_of_zeros_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a fresh timm Mixer is zero and so are all its logits: features are compared, and
    a spoilt copy is told."""
    network: Any = CASES["mixer"].network()
    torch.nn.init.zeros_(network.head.weight)
    found = convolution_equivalence(as_model(network), noise(3), dtypes=("float64",))
    assert found.output == "features"
    assert found.largest_output > 0.1
    assert 0 < max(c.difference for c in found.checks) < 1e-13
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert "features (its classifier is all zero)" in equivalence_sentences(found)[1]
    convert = equivalence.as_convolution

    def spoilt(model: Any, form: Any) -> Any:
        converted: Any = convert(model, form)
        with torch.no_grad():
            converted.blocks[1].spatial.mlp_tokens.mixing.fc1.weight.add_(0.5)
        return converted

    monkeypatch.setattr(equivalence, "as_convolution", spoilt)
    assert (
        convolution_equivalence(as_model(network), noise(3), forms=("tied",)).checks[0].difference
        > 1e-3
    )


def test_sentences_have_their_numbers() -> None:
    model = CASES["mixer"].model()
    found = convolution_equivalence(model, noise(3))
    said = "\n".join(equivalence_sentences(found))
    assert "has 10 convolutions and 0 linear layers" in said
    assert f"{model.parameters:,} parameters, as many as the Mixer" in said
    assert said.count("n = 3 images") == 4
    assert said.count("rounding to float32") == 2
    assert isinstance(mixer_as_cnn(found), Figure)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ModelError, match="computed from the image"):
        convolution_equivalence(CASES["vit"].model(), noise(1))
    with pytest.raises(MeasureError, match="one form and one type or more"):
        convolution_equivalence(CASES["mixer"].model(), noise(1), forms=())
