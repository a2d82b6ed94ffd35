"""Conductance against its completeness and against a fine sum of the integral."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixer_probe import attribution as at
from mixer_probe.core.errors import IncompleteAttributionWarning, MeasureError
from mixer_probe.core.result import from_dict, to_dict
from tests.attribution.small import small
from tests.networks import noise


@pytest.mark.parametrize(
    ("name", "layer"),
    [("mixer", "stem"), ("mixer", "blocks.0"), ("vit", "blocks.0"), ("resnet", "bn1")],
)
def test_units_of_a_cut_add_up_to_the_logit_difference(name: str, layer: str) -> None:
    # A short way, on which the sum over steps is close to the integral.
    model, x = small(name), 0.2 * noise(3, dtype=torch.float64)
    found = at.layer_conductance(model, x, layer, target=[1, 0, 2], n_steps=128, batch_size=64)
    with torch.no_grad():
        gap = (model.module(x) - model.module(torch.zeros_like(x)))[
            torch.arange(3), [1, 0, 2]
        ].numpy()
    np.testing.assert_allclose(found.logit_difference, gap, rtol=1e-9)
    np.testing.assert_allclose(found.values[0].sum(1), gap, rtol=0.02, atol=0.01)
    # The gap is that of the cut that holds the layer: of a block its own, of a layer outside the
    # blocks that of the pixels.
    if layer == "blocks.0":
        np.testing.assert_allclose(
            found.gap[0], np.abs(found.values[0].sum(1) - gap) / np.abs(gap), atol=1e-9
        )


def test_token_mixing_units_equal_a_fine_sum() -> None:
    model, x = small("mixer"), noise(1, dtype=torch.float64)
    found = at.layer_conductance(model, x, target=2, n_steps=128, batch_size=512)
    assert [layer.name for layer in found.layers] == [
        "blocks.0.mlp_tokens.act",
        "blocks.1.mlp_tokens.act",
    ]
    steps = 3000
    path = torch.linspace(0, 1, steps + 1, dtype=torch.float64).view(-1, 1, 1, 1) * x
    kept: list[torch.Tensor] = []
    handle = model.module.blocks[1].mlp_tokens.act.register_forward_hook(
        lambda _m, _i, out: kept.append(out)
    )
    logits = model.module(path.requires_grad_())
    handle.remove()
    grad = torch.autograd.grad(logits[:, 2].sum(), kept[0])[0]
    middle = (grad[1:] + grad[:-1]) / 2
    # [step, channel, hidden unit] to hidden units.
    expected = (middle * kept[0].detach().diff(dim=0)).sum((0, 1)).numpy()
    assert found.values[1].shape == (1, len(expected))
    np.testing.assert_allclose(found.values[1][0], expected, atol=0.005 * np.abs(expected).max())
    assert len(found.to_frame()) == sum(v.shape[1] for v in found.values)
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())


def test_networks_without_token_mixing_units_are_told() -> None:
    with pytest.raises(MeasureError, match="no token-mixing MLP with hidden units that all"):
        at.layer_conductance(small("vit"), noise(1, dtype=torch.float64))


def test_nodes_are_doubled_until_the_sum_and_the_units_settle() -> None:
    model, x = small("mixer"), noise(3, dtype=torch.float64)
    fine = at.layer_conductance(model, x, target=2, n_steps=512)
    found = at.layer_conductance(model, x, target=2, n_steps=4, tolerance=0.02)
    assert (found.gap <= 0.02).all()
    assert (found.change <= 0.02).all()
    assert (found.steps > 4).all()
    for a, b in zip(found.values, fine.values, strict=True):
        # The change is of the plain sum, and bounds what Simpson's weights still miss.
        assert (np.abs(a - b).sum(1) <= 0.02 * np.abs(b).sum(1)).all()
    frame = found.to_frame()
    assert {"gap", "change"} <= set(frame.columns)
    with pytest.warns(IncompleteAttributionWarning, match="has not converged, by more than 0%"):
        few = at.layer_conductance(model, x, target=2, n_steps=4, max_steps=4, tolerance=1e-3)
    assert (few.steps == 4).all()
    assert np.maximum(few.gap, few.change).max() > 1e-3
    with pytest.raises(
        MeasureError, match=r"2 <= n_steps <= max_steps and tolerance > 0, not 1, 512, 0\.02"
    ):
        at.layer_conductance(model, x, n_steps=1)
