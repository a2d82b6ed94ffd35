"""Branch ends against the blocks' own outputs: the skip connection and what the branches add."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from mixer_probe.mixing.branches import Branches, branch_ends
from mixer_probe.models import Model
from tests.networks import CASES, as_model, noise, randomised

# gMLP's branch, a convolutional block's and that of parallel attention and MLP mix both at once.
ONE_BRANCH = ("gmlp", "parallel-")


def calls_of(model: Model, images: torch.Tensor) -> dict[tuple[str, int], tuple[Any, torch.Tensor]]:
    """Input and output of every call of every module, by hooks of the test's own."""
    found: dict[tuple[str, int], tuple[Any, torch.Tensor]] = {}
    number: Counter[str] = Counter()
    handles = []
    for path, module in model.module.named_modules():

        def see(_m: Any, args: Any, out: Any, path: str = path) -> None:
            given = args[0].detach().clone() if isinstance(args[0], torch.Tensor) else None
            found[path, number[path]] = given, out.detach().clone()
            number[path] += 1

        handles.append(module.register_forward_hook(see))
    with torch.no_grad():
        model.module(images)
    for handle in handles:
        handle.remove()
    return found


def added(ends: Branches, calls: Any) -> torch.Tensor:
    block = ends.block.partition("#")
    key = block[0], int(block[2] or 0)
    total = calls[key][0] if ends.skip is None else calls[ends.skip.module, ends.skip.call][1]
    for branch in (ends.spatial, ends.channel):
        if branch is not None:
            out = calls[branch.module, branch.call][1]
            total = total + out.reshape(total.shape)
    return total


@pytest.mark.parametrize("name", CASES)
def test_skip_and_branches_add_up_to_the_output(name: str) -> None:
    model = CASES[name].model(torch.float64)
    calls = calls_of(model, CASES[name].images(2, torch.float64))
    ends = branch_ends(model)
    assert [e.block for e in ends] == [r.name for r in model.structure.runs]
    for e in ends:
        if e.spatial is None:
            assert e.channel is None
            continue
        output = calls[e.total, 0][1]
        total = added(e, calls)
        if e.activation:
            total = model.module.get_submodule(e.activation)(total.clone())
        torch.testing.assert_close(total, output, rtol=0, atol=1e-12 * float(output.abs().max()))
        two = CASES[name].family != "cnn" and not name.startswith(ONE_BRANCH)
        assert (e.channel is not None) is two


@pytest.mark.parametrize("name", ["resmlp", "mixer"])
def test_weights_shared_over_depth(name: str) -> None:
    network = CASES[name].build()
    network.blocks = torch.nn.Sequential(network.blocks[0], network.blocks[0])  # type: ignore[operator]
    model = as_model(randomised(network), dtype=torch.float64)
    calls = calls_of(model, noise(2, dtype=torch.float64))
    ends = branch_ends(model)
    assert [(e.spatial and e.spatial.call, e.channel and e.channel.call) for e in ends] == [
        (0, 1),
        (2, 3),
    ]
    for k, e in enumerate(ends):
        output = calls["blocks.0", k][1]
        torch.testing.assert_close(added(e, calls), output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["efficientnet", "efficientnet-b0", "mobilenetv4"])
def test_blocks_without_a_skip_connection_have_no_branch(name: str) -> None:
    model = CASES[name].model()
    skips = [getattr(b.module, "has_skip", False) for b in model.structure.blocks]
    assert [e.spatial is not None for e in branch_ends(model)] == skips


def test_several_attentions_side_by_side_have_no_single_branch() -> None:
    assert [e.spatial for e in branch_ends(CASES["parallel-things"].model())] == [None, None]
