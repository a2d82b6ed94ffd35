"""What a network computes, as a hash: its numbers, the classes of its modules, and all that these
are set to."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn

from mixer_probe.core.fingerprint import THREADS, digest

# What every module has of its own accord, whose content is read elsewhere or is no part of what it
# computes in eval mode.
_OWN = frozenset(vars(nn.Module())) | {"_is_full_backward_hook"}
# Switches between ways to the same numbers, and notes on where the weights are from.
_NO_PART = frozenset(
    {
        "fused_attn",
        "inplace",
        "grad_checkpointing",
        "pretrained_cfg",
        "default_cfg",
        "_compiled_call_impl",
    }
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, np.generic)
# Hooks and forward passes that come and go with one of our own passes.
_PASSING = ("mixer_probe.", "captum.")
# Classes of these change with their versions only, which results state.
_LIBRARIES = frozenset(
    {
        "torch",
        "timm",
        "torchvision",
        "transformers",
        "numpy",
        "builtins",
        "functools",
        "math",
        "mixer_probe",
    }
)


def network_fingerprint(network: nn.Module) -> str:
    """sha256 over `configuration` and names, types, shapes and numbers of all parameters and
    buffers.

    Computed at every call. A counter of changes would be quicker to ask, but torch's does not see a
    change by way of `.data` or of a NumPy view. Device and training mode play no part."""
    tensors = sorted(_tensors(network).items())
    with ThreadPoolExecutor(THREADS) as pool:
        numbers = pool.map(lambda item: digest(item[0], tensor_digest(item[1])), tensors)
        return digest(configuration(network), hooks(network), *numbers)


def layout(network: nn.Module) -> str:
    """sha256 over what shapes a network's tensors: `configuration` without the attributes of
    modules of classes of no library, which may count or note what they see. What these change is
    noticed when a layer returns another shape than it did."""
    return _configuration(network, everything=False)


def configuration(network: nn.Module) -> str:
    """sha256 over all of a network but its numbers and hooks: module paths and classes, the plain
    attributes of every module with functions by their code, and the names, types and shapes of
    parameters and buffers."""
    return _configuration(network, everything=True)


def _configuration(network: nn.Module, everything: bool) -> str:
    reader = _Reader(network)
    for path, module in network.named_modules(remove_duplicate=False):
        reader.module(path, module, everything)
    for name, tensor in sorted(_tensors(network).items()):
        reader.say(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
    return reader.hash.hexdigest()


def hooks(network: nn.Module) -> str:
    """sha256 over the forward hooks of all modules, which may change what they return; those of our
    own passes left out, unless they have an identity (see `core.hooks.hooked`)."""
    reader = _Reader(network)
    for path, module in network.named_modules():
        for kind in _HOOKS:
            for hook in vars(module)[kind].values():
                if not _passes(hook):
                    reader.say(f"{path} {kind}")
                    reader.value(hook)
                elif stated := getattr(hook, "identity", lambda: "")():
                    reader.say(f"{path} {stated}")
    return reader.hash.hexdigest()


def _passes(function: Any) -> bool:
    """Whether a hook or a forward pass is there for one of our own passes."""
    return str(getattr(function, "__module__", "")).startswith(_PASSING)


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, those included that are not saved; shared ones under each of
    their names."""
    return {
        **dict(network.named_buffers(remove_duplicate=False)),
        **dict(network.named_parameters(remove_duplicate=False)),
    }


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 over type, shape and numbers."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.device.type == "meta":
        return found.hexdigest()
    plain = tensor.detach()
    if plain.is_quantized:
        scales: list[Any]
        if plain.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scales = [plain.q_scale(), plain.q_zero_point()]
        else:
            scales = [
                plain.q_per_channel_scales().tolist(),
                plain.q_per_channel_zero_points().tolist(),
                plain.q_per_channel_axis(),
            ]
        found.update(repr((plain.qscheme(), scales)).encode())
        plain = plain.int_repr()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    flat = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


class _Reader:
    """sha256 over modules and values, each object once."""

    def __init__(self, network: nn.Module) -> None:
        self.hash = hashlib.sha256()
        self._paths = {id(module): path for path, module in network.named_modules()}
        self._seen: dict[int, Any] = {}

    def say(self, text: str) -> None:
        self.hash.update(f"{len(text)} {text}\n".encode("utf-8", "surrogatepass"))

    def module(self, path: str, module: nn.Module, everything: bool) -> None:
        self.say(f"module {path}")
        if (first := self._paths.get(id(module), path)) != path:
            self.say(f"is {first}")
            return
        self._class(type(module))
        if not everything and type(module).__module__.partition(".")[0] not in _LIBRARIES:
            return
        for name, value in sorted(vars(module).items()):
            if (
                name not in _OWN
                and name not in _NO_PART
                and (name != "forward" or (everything and not _passes(value)))
                and "cache" not in name
            ):
                self.say(f"attribute {name}")
                self.value(value)

    def _class(self, cls: type) -> None:
        self.say(f"class {cls.__module__}.{cls.__qualname__}")
        if cls.__module__.partition(".")[0] in _LIBRARIES or id(cls) in self._seen:
            return
        self._seen[id(cls)] = cls
        for base in cls.__bases__:
            self._class(base)
        for name, value in sorted(vars(cls).items()):
            plain = isinstance(value, _PLAIN) and not name.startswith("__")
            if plain or isinstance(
                value, (types.FunctionType, staticmethod, classmethod, property)
            ):
                self.say(name)
                self.value(getattr(value, "__func__", getattr(value, "fget", value)))

    def value(self, value: Any) -> None:
        """Numbers and text as they are, containers item by item, functions by their code and what
        they hold."""
        if isinstance(value, _PLAIN):
            self.say(f"{type(value).__name__} {value!r}")
        elif isinstance(value, torch.device):
            self.say("device")
        elif isinstance(value, types.ModuleType):
            # What a package holds is not what a network holds, though a function may keep a
            # package.
            self.say(f"package {value.__name__}")
        elif isinstance(value, torch.Tensor):
            self.say(f"tensor {tensor_digest(value)}")
        elif isinstance(value, nn.Module) and id(value) in self._paths:
            self.say(f"module {self._paths[id(value)]}")
        elif isinstance(value, type):
            self._class(value)
        elif id(value) in self._seen:
            self.say("seen")
        else:
            # Kept, so that no other object gets its id meanwhile.
            self._seen[id(value)] = value
            self._composed(value)

    def _composed(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self.say(f"inner {network_fingerprint(value)}")
        elif isinstance(value, np.ndarray):
            self.say(
                f"array {value.dtype} {value.shape} "
                f"{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
            )
        elif isinstance(value, Mapping):
            self._items("mapping", (part for item in value.items() for part in item))
        elif isinstance(value, (list, tuple)):
            self._items(f"sequence {len(value)}", value)
        elif isinstance(value, (set, frozenset)):
            self._items(f"set {len(value)}", sorted(value, key=repr))
        elif isinstance(value, functools.partial):
            self._items("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._items("method", (value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self.say(f"function {value.__module__}.{value.__qualname__}")
            if str(value.__module__).partition(".")[0] not in _LIBRARIES:
                self._code(value.__code__)
            self.value(value.__defaults__)
            self.value(value.__kwdefaults__)
            for cell in value.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:  # a variable that has no value yet
                    content = None
                self.value(content)
        else:
            cls = type(value)
            self.say(
                f"object {cls.__module__}.{cls.__qualname__} {getattr(value, '__qualname__', '')}"
            )
            # What torch keeps in objects of its own is made while it runs: compiled code, streams,
            # handles.
            if cls.__module__.partition(".")[0] != "torch":
                for name, part in sorted(getattr(value, "__dict__", {}).items()):
                    if "cache" not in name:
                        self.say(name)
                        self.value(part)

    def _items(self, kind: str, items: Iterable[Any]) -> None:
        self.say(kind)
        for item in items:
            self.value(item)

    def _code(self, code: types.CodeType) -> None:
        self.say(repr((code.co_code, code.co_names, code.co_varnames)))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.say(
                    repr(
                        sorted(constant, key=repr) if isinstance(constant, frozenset) else constant
                    )
                )
