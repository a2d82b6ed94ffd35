"""How much memory a forward pass needs for its activations."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.switches import evaluating, frozen
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager: bytes of the tensors allocated inside that are alive, `live` now and `peak`
    at most.

    Every storage counts once, whatever its number of views, from the operation that allocates it
    until the last reference to it is gone; parameters and buffers of `without` do not count. Memory
    that a kernel uses internally is not counted."""

    def __init__(self, without: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        known = [] if without is None else [*without.parameters(), *without.buffers()]
        self._without = [tensor.untyped_storage() for tensor in known]
        self._counted: dict[int, Any] = {id(storage): storage for storage in self._without}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key in self._counted:
                continue

            def forget(_reference: Any, key: int = key, size: int = size) -> None:
                del self._counted[key]
                self.live -= size

            # torch keeps the Python object of a storage as long as the storage itself.
            self._counted[key] = weakref.ref(storage, forget)
            self.live += size
            self.peak = max(self.peak, self.live)
        return result


@checked(MeasureError)
def peak_activation_bytes(model: Model, batch_size: int = 1) -> int:
    """Peak bytes of activations alive at once in a forward pass of one batch without gradients, the
    batch included.

    Counted on the device and in the type of the model by `LiveBytes`: what fused kernels do not
    materialise (the maps of fused attention) does not count."""
    device, dtype = model.device, model.dtype
    counter = LiveBytes(without=model.module)
    with evaluating(model.module), frozen(model.module), torch.no_grad(), counter:
        model.module(torch.zeros(batch_size, *model.input.size, device=device, dtype=dtype))
    return counter.peak
