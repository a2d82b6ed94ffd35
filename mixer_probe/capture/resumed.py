"""Passes that begin behind the blocks that an earlier pass of the same images has finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixer_probe.core.hooks import Call, hooked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@contextmanager
def recorded_blocks(model: Model) -> Iterator[dict[str, torch.Tensor]]:
    """Outputs of blocks by path, from the pass inside; none of blocks that run several times."""
    outputs: dict[str, torch.Tensor] = {}
    runs = [run.block.path for run in model.structure.runs]
    paths = runs if len(set(runs)) == len(runs) else []

    def see(call: Call) -> None:
        outputs[call.path] = call.output.clone()

    with hooked(model.module, paths, see):
        yield outputs


def finished_before(
    model: Model, layer: Layer, outputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The outputs of the blocks that have finished when the layer begins to run, which `returned`
    puts in their place."""
    own = layer.module + "."
    return {
        run.block.path: outputs[run.block.path]
        for run in model.structure.runs
        if run.block.path in outputs
        and run.order < layer.order
        and not own.startswith(run.block.path + ".")
    }
