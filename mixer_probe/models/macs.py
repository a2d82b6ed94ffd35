"""Multiply-accumulates of a network, counted by running torch's FlopCounterMode over one blank
image."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mixer_probe.core.hooks import Call, all_paths, hooked
from mixer_probe.core.switches import evaluating, frozen
from mixer_probe.models.trace import blank_images


def count_macs(network: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image in matrix products and convolutions, attention products
    included."""
    return count_by_module(network, input_size).macs[""]


def count_macs_by_module(network: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-accumulates of one image by module path, what is inside it included; those of the
    whole network under ""."""
    return count_by_module(network, input_size).macs


def count_by_module(network: nn.Module, input_size: tuple[int, int, int]) -> MacCounter:
    """One forward pass of one blank image, counted before and after every call of a module."""
    counted = MacCounter()
    watching = hooked(network, ["", *all_paths(network)], counted.end, counted.start)
    with evaluating(network), frozen(network), torch.no_grad(), counted.flops, watching as passes:
        passes.run(blank_images(network, input_size, n=1))
    return counted


class MacCounter:
    """Multiply-accumulates by module path, in the order in which modules finish their first call:
    `macs` of all that a module calls, `own` of its own code alone. Both add up the calls of a
    module."""

    def __init__(self) -> None:
        # torch counts the fused attention of GPUs and leaves out that of CPUs. To forbid it instead
        # would hold for all threads.
        cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self.flops = FlopCounterMode(
            display=False,
            custom_mapping={cpu_attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)},  # type: ignore[no-untyped-call]
        )
        self.flops.mod_tracker = _Everything()  # type: ignore[assignment]
        self.macs: dict[str, int] = {}
        self.own: dict[str, int] = {}
        # Of each module that is running: what the counter showed at its start, and what its parts
        # have used since.
        self._running: list[tuple[int, int]] = []

    def start(self, _call: Call) -> None:
        """Before a call of any module."""
        self._running.append((self.flops.get_total_flops() // 2, 0))

    def end(self, call: Call) -> None:
        """After a call of any module."""
        begun, parts = self._running.pop()
        used = self.flops.get_total_flops() // 2 - begun
        self.macs[call.path] = self.macs.get(call.path, 0) + used
        self.own[call.path] = self.own.get(call.path, 0) + used - parts
        if self._running:
            before, siblings = self._running[-1]
            self._running[-1] = (before, siblings + used)


class _Everything:
    """In place of torch's tracker of modules, whose hooks see the modules of all threads and
    stumble over them."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
