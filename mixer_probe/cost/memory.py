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
    """Context manager: bytes of the tensors made inside that are alive, `live` now and `peak` at the most.

    Every storage counts once, whatever views of it there are, from the operation that makes it until the last reference to it
    is gone; those that `without` has (parameters, buffers) do not count. What a kernel takes for itself is not seen."""

    def __init__(self, without: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        known = [] if without is None else [*without.parameters(), *without.buffers()]
        self._without = [tensor.untyped_storage() for tensor in known]
        self._seen: dict[int, Any] = {id(storage): storage for storage in self._without}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def forget(_reference: Any) -> None:
            del self._seen[key]
            self.live -= size

        # torch keeps the Python object of a storage as long as the storage itself.
        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


@checked(MeasureError)
def peak_activation_bytes(model: Model, batch_size: int = 1) -> int:
    """The most bytes of activations alive at once while a batch goes forward without gradients, the batch itself included.

    Counted on the device and in the type of the model by `LiveBytes`: what fused kernels never make (the maps of fused
    attention) does not count."""
    device, dtype = model.device, model.dtype
    counter = LiveBytes(without=model.module)
    with evaluating(model.module), frozen(model.module), torch.no_grad(), counter:
        model.module(torch.zeros(batch_size, *model.input.size, device=device, dtype=dtype))
    return counter.peak
