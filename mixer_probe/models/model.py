"""`Model`: a network and all that is known about it - family, layers, input, and where its weights
are from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from mixer_probe.core.errors import ModelError
from mixer_probe.core.fingerprint import digest
from mixer_probe.core.inputs import InputSpec
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.switches import lock_of, plain_modes
from mixer_probe.models.adapter import Adapter
from mixer_probe.models.fingerprint import configuration, layout, network_fingerprint
from mixer_probe.models.layer import Family, Layer
from mixer_probe.models.macs import count_macs
from mixer_probe.models.structure import Structure, find_adapter
from mixer_probe.models.trace import trace

T = TypeVar("T")


@dataclass(frozen=True)
class Weights:
    """Where the weights are from. `note` is what a reader must know about them."""

    source: str
    trained: bool
    note: str = ""


@dataclass(eq=False)
class Model:
    """A network of a known family. `module` is the network itself, unchanged.

    `untrained` makes the same architecture with re-initialised weights (the baseline of every
    analysis). `class_names` are those of its outputs, where they were given or are the zoo's;
    `models.classes.outputs_of` also knows those of ImageNet. The blocks of a `compiled` one are
    compiled where images stream through it."""

    name: str
    module: nn.Module
    adapter: Adapter
    input: InputSpec
    weights: Weights
    make_untrained: Callable[[], Model] | None = field(default=None, repr=False)
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    compiled: bool = field(default=False, repr=False)
    _known: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)
    _suffix: str = field(default="", init=False, repr=False)

    @property
    def family(self) -> Family:
        """ "mixer", "vit" or "cnn"."""
        return self.adapter.family

    @property
    def structure(self) -> Structure:
        """The traced network, from one dry forward pass of two blank images, again only when
        modules or input have changed.

        Raises ModelError for a network that does not take images of its input size."""

        def traced() -> Structure:
            try:
                calls = trace(self.module, self.input.size)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise ModelError(
                    f"{self.name} does not run on images of {self.input.size} ({reason}); give the "
                    "input_size that it takes"
                ) from error
            return Structure(self.module, calls, self.adapter, self.input.size)

        return self._of_this_network("structure", layout(self.module), traced)

    def _of_this_network(self, name: str, settings: str, make: Callable[[], T]) -> T:
        """The result of `make`, cached as long as modules and input are the same objects with the
        same settings."""
        modules = list(self.module.modules())
        state = (self.input, [id(module) for module in modules], settings)
        known = self._known.get(name)
        if known is None or known[0] != state:
            # With the modules, so that no other object gets their ids.
            known = self._known[name] = (state, (make(), modules))
        found: T = known[1][0]
        return found

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Stem, every block with its spatial- and channel-mixing parts, final norm and head, in
        execution order."""
        return self.structure.layers

    def layer(self, name: str) -> Layer:
        """The layer at any module path. Raises LayerError that lists close names."""
        return self.structure.find(name)

    def select(self, layers: str | Sequence[str]) -> tuple[Layer, ...]:
        """Layers by name, glob, kind or word; see `Structure.select`."""
        return self.structure.select(layers)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the floating-point parameters."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image in matrix products and convolutions, attention products
        included."""
        return self._of_this_network(
            "macs", configuration(self.module), lambda: count_macs(self.module, self.input.size)
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what the network makes of an image: parameters and buffers, the
        classes and settings of its modules, and its input. Computed at every call, from the network
        as it is now."""
        return digest(network_fingerprint(self.module), repr(self.input))

    @property
    def options(self) -> tuple[str, ...]:
        """How passes over images are computed, where it changes the last bits only: "channels_last"
        for convolutions whose weights lie so in memory, and "compiled"."""
        last = any(
            module.weight.is_contiguous(memory_format=torch.channels_last)
            and not module.weight.is_contiguous()
            for module in self.module.modules()
            if isinstance(module, nn.Conv2d)
        )
        return ("channels_last",) * last + ("compiled",) * self.compiled

    @property
    def record(self) -> ModelRecord:
        """What travels with every number measured on this model."""
        w = self.weights
        return ModelRecord(
            self.name + self._suffix,
            self.family,
            w.trained,
            w.source,
            self.fingerprint,
            self.parameters,
            w.note,
        )

    @contextmanager
    def renamed(self, suffix: str) -> Iterator[None]:
        """Inside, results call the network by its name with this suffix: its layers are changed."""
        before, self._suffix = self._suffix, self._suffix + suffix
        try:
            yield
        finally:
            self._suffix = before

    @plain_modes()
    def untrained(self) -> Model:
        """The same architecture with re-initialised weights, for the same images, on the same
        device, in the same type.

        A model that is untrained is its own baseline."""
        if self.make_untrained is None or not self.weights.trained:
            return self
        baseline = self.make_untrained()
        baseline.name = f"{self.name}?untrained"
        baseline.input = self.input
        baseline.class_names = self.class_names
        baseline.module.to(device=self.device, dtype=self.dtype)
        baseline.compiled = self.compiled
        if "channels_last" in self.options:
            to_channels_last(baseline.module)
        return baseline

    @plain_modes()
    def to(self, device: str | torch.device) -> Model:
        """Move the network; returns itself."""
        with lock_of(self.module):
            self.module.to(device)
        return self


def to_channels_last(network: nn.Module) -> None:
    """Put the weights of convolutions into channels_last order, in which these then compute."""
    with lock_of(network):
        convert_conv2d_weight_memory_format(network, torch.channels_last)


def make_model(
    name: str,
    network: nn.Module,
    spec: InputSpec,
    weights: Weights,
    make_untrained: Callable[[], Model] | None = None,
) -> Model:
    """Recognise the family and put everything together. Raises ModelError for a network of an
    unknown family."""
    adapter = find_adapter(network, name)
    network.eval()
    return Model(name, network, adapter, spec, weights, make_untrained)
