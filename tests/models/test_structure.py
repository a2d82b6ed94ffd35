"""Layers of every timm class that is read: which there are, in which order, and what their axes
hold."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixer_probe.core.errors import LayerError
from mixer_probe.models import Model
from tests.networks import CASES, CNNS, MIXERS, Case, as_model

every_class = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cache
def model_of(case: Case) -> Model:
    """One model a class for all the tests that only look at it."""
    return case.model()


def finished_calls(case: Case, model: Model) -> list[tuple[str, object]]:
    """(path, output) of every module call in the order in which they finish, by hooks of the test's
    own."""
    calls: list[tuple[str, object]] = []

    def note(path: str) -> object:
        return lambda _m, _a, output: calls.append((path, output))

    handles = [m.register_forward_hook(note(p)) for p, m in model.module.named_modules() if p]
    with torch.no_grad():
        model.module(case.images(2))
    for handle in handles:
        handle.remove()
    return calls


@every_class
def test_the_family_is_recognised(case: Case) -> None:
    assert model_of(case).family == case.family


@every_class
def test_layers_come_in_the_order_in_which_they_finish(case: Case) -> None:
    model = model_of(case)
    finished = [path for path, _ in finished_calls(case, model)]
    at = [finished.index(layer.name) for layer in model.layers]
    assert at == sorted(at)
    assert len(set(at)) == len(at)


@every_class
def test_stem_comes_first_and_norm_and_head_last(case: Case) -> None:
    layers = model_of(case).layers
    assert (layers[0].name, layers[0].kind, layers[0].grid) == (case.stem, "stem", case.grid)
    assert (layers[-1].name, layers[-1].kind, layers[-1].channels) == (case.head, "head", 5)
    assert [layer.name for layer in layers if layer.kind == "norm"] == (
        [case.norm] if case.norm else []
    )
    assert [layer.kind for layer in layers].count("stem") == 1
    assert [layer.kind for layer in layers].count("head") == 1


@every_class
def test_every_block_is_listed(case: Case) -> None:
    assert len(model_of(case).select("blocks")) == case.blocks


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.parts], ids=lambda c: c.name)
def test_every_block_has_its_parts(case: Case) -> None:
    """The mixing parts of the class, then the block itself, block after block."""
    assert case.parts is not None
    model = model_of(case)
    inner = [layer for layer in model.layers if layer.kind in ("spatial", "channel", "block")]
    size = len(case.parts)
    for i in range(case.blocks):
        group = inner[i * size : (i + 1) * size]
        block = group[-1].name
        found = [(layer.name.removeprefix(block).removeprefix("."), layer.kind) for layer in group]
        assert found == list(case.parts)


def _kernels(module: nn.Module) -> set[int]:
    convolutions = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    return {max(m.kernel_size) for m in convolutions}


@pytest.mark.parametrize("case", CNNS, ids=lambda c: c.name)
def test_spatial_parts_of_a_cnn_see_neighbours_and_channel_parts_do_not(case: Case) -> None:
    model = model_of(case)
    for layer in model.layers:
        part = model.module.get_submodule(layer.name)
        if layer.kind == "channel":
            assert _kernels(part) <= {1}
        if layer.kind == "spatial":
            assert _kernels(part) - {1} or "Attention" in type(part).__name__


@pytest.mark.parametrize("case", CNNS, ids=lambda c: c.name)
def test_a_cnn_block_that_sees_neighbours_has_a_spatial_part(case: Case) -> None:
    model = model_of(case)
    spatial = [layer.name for layer in model.select("spatial")]
    for block in model.select("blocks"):
        module = model.module.get_submodule(block.name)
        sees = _kernels(module) - {1} or "Attention" in type(module).__name__
        assert bool(sees) == any(name.startswith(block.name + ".") for name in spatial)


@every_class
def test_depth_runs_from_0_to_1_and_counts_blocks(case: Case) -> None:
    model = model_of(case)
    depths = [layer.depth for layer in model.layers]
    assert depths[0] == 0
    assert depths[-1] == 1
    assert depths == sorted(depths)
    blocks = [layer.depth for layer in model.select("blocks")]
    assert blocks == pytest.approx([(i + 1) / case.blocks for i in range(case.blocks)])
    parts = [layer.depth for layer in model.layers if layer.kind in ("spatial", "channel", "block")]
    assert all(b > a for a, b in itertools.pairwise(parts))


@every_class
def test_sizes_are_those_of_the_tensors(case: Case) -> None:
    """Channels, positions and prefix tokens together hold every number of an output, and the grid
    holds the positions."""
    model = model_of(case)
    numbers = {
        path: out[0].numel()
        for path, out in finished_calls(case, model)
        if isinstance(out, torch.Tensor)
    }
    for layer in model.layers:
        rows = layer.positions + layer.prefix_tokens if layer.positions else 1
        assert rows * layer.channels == numbers[layer.name]
        if layer.positions:
            assert layer.grid is not None
            assert layer.grid[0] * layer.grid[1] == layer.positions
        else:
            assert layer.grid is None


@every_class
def test_prefix_tokens_are_those_of_the_class(case: Case) -> None:
    model = model_of(case)
    for layer in model.select("blocks"):
        assert layer.prefix_tokens == case.prefix
    assert model.layers[0].prefix_tokens == 0
    assert model.layers[-1].prefix_tokens == 0


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.prefix], ids=lambda c: c.name)
def test_prefix_tokens_agree_with_timm(case: Case) -> None:
    model = model_of(case)
    assert model.module.num_prefix_tokens == case.prefix
    assert model.select("blocks")[0].prefix_tokens == case.prefix


@every_class
def test_every_module_that_runs_is_readable_or_says_why_not(case: Case) -> None:
    """`names` and the refusals together are exactly the calls that a plain forward pass makes."""
    model = model_of(case)
    calls = finished_calls(case, model)
    names = {name.partition("#")[0] for name in model.structure.names()}
    for path, output in calls:
        refused = not isinstance(output, torch.Tensor) or bool(re.search(case.unreadable, path))
        assert (path in names) != refused, path
        if refused:
            with pytest.raises(LayerError, match="cannot be read: it "):
                model.layer(path)


@pytest.mark.parametrize("case", MIXERS, ids=lambda c: c.name)
def test_no_mixer_has_prefix_tokens(case: Case) -> None:
    model = model_of(case)
    assert all(model.layer(name).prefix_tokens == 0 for name in model.structure.names())


def test_hidden_units_of_token_mixing_are_no_grid() -> None:
    model = CASES["mixer"].model()
    hidden = model.layer("blocks.0.mlp_tokens.fc1")
    assert (hidden.grid, hidden.positions, hidden.channels) == (None, 12, 24)
    after = model.layer("blocks.0.mlp_tokens.fc2")
    assert (after.grid, after.positions, after.channels) == ((4, 4), 16, 24)


def test_swin_grids_shrink_from_stage_to_stage() -> None:
    grids = [layer.grid for layer in CASES["swin"].model().select("blocks")]
    assert grids == [(16, 16)] * 2 + [(8, 8)] * 2 + [(4, 4)] * 2


def test_swin_windows_are_refused_with_a_way_out() -> None:
    with pytest.raises(LayerError, match=r"stacks its windows.*drop_path1"):
        CASES["swin"].model().layer("layers.2.blocks.0.attn")


def test_attention_maps_are_refused_with_a_way_out() -> None:
    network = CASES["vit"].network()
    network.blocks[0].attn.fused_attn = False
    with pytest.raises(LayerError, match=r"attention maps.*take the attention module"):
        as_model(network).layer("blocks.0.attn.attn_drop")


def test_a_rectangular_image_has_a_rectangular_grid() -> None:
    model = as_model(
        MlpMixer(img_size=(32, 16), patch_size=8, embed_dim=8, num_blocks=1), input_size=(3, 32, 16)
    )
    assert [layer.grid for layer in model.layers] == [(4, 2)] * 5 + [None]


def test_tracing_leaves_the_network_as_it_was() -> None:
    case = CASES["resnet-bottleneck"]
    model = case.model()
    for i, module in enumerate(model.module.modules()):
        module.training = i % 3 == 0
    flags = [m.training for m in model.module.modules()]
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.structure  # noqa: B018 - traced on first use
    assert [m.training for m in model.module.modules()] == flags
    assert not any(m._forward_hooks for m in model.module.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.module.state_dict().items())
    assert all(p.grad is None for p in model.module.parameters())
