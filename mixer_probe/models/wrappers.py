"""The network inside of what training code puts around it: compiled, parallel and averaged modules,
modules that only train."""

from __future__ import annotations

import copy
import inspect

import torch
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mixer_probe.core.errors import ModelError
from mixer_probe.core.switches import share_lock
from mixer_probe.models.structure import has_blocks

# They keep the network as `module`, and their forward pass is the network's.
_AROUND = (nn.DataParallel, DistributedDataParallel, AveragedModel, ModelEmaV2, ModelEmaV3)
_COMPILED = "_orig_mod"
_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic.quantized",
)


def unwrap(network: nn.Module) -> tuple[nn.Module, str]:
    """The network without wrappers that leave its output as it is, and a sentence that names them
    ("" without any).

    Compiled modules (`torch.compile`, whole or block by block) are replaced by what they were made
    from, DataParallel, DistributedDataParallel, AveragedModel and timm's ModelEma by their
    `module`, and a module without a forward pass of its own (as Lightning's often are) by the one
    network that it holds. Parameters are shared, not copied. A wrapper with a forward pass of its
    own is a network like any other. Raises ModelError for a module without a forward pass that
    holds several networks."""
    taken: list[str] = []
    while (inner := _inner(network)) is not None:
        taken.append(type(network).__name__)
        network = inner
    scripted = next(
        (
            path
            for path, module in network.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
        ),
        None,
    )
    if scripted is not None:
        what = f"'{scripted}' of {type(network).__name__}" if scripted else type(network).__name__
        raise ModelError(
            f"{what} is compiled by TorchScript, which leaves no classes of layers; give what it "
            "was made from"
        )
    plain = _without_compiled(network, {})
    if plain is not network:
        share_lock(network, plain)
        taken.append("its torch.compile'd parts")
    return plain, f"Taken out of {', '.join(taken)}." if taken else ""


def _inner(network: nn.Module) -> nn.Module | None:
    """What the outermost wrapper holds, None for what is no wrapper."""
    if _COMPILED in network._modules:
        return network._modules[_COMPILED]
    if isinstance(network, _AROUND):
        return network.module
    # A class that leaves out the forward pass only trains; Lightning's base class has one that only
    # says so.
    forward = inspect.getattr_static(type(network), "forward")
    home = str(getattr(forward, "__module__", ""))
    if forward is not nn.Module.forward and not home.startswith(
        ("lightning.", "pytorch_lightning.")
    ):
        return None
    held = {
        name: child for name, child in network.named_children() if has_blocks(_innermost(child))
    }
    if len(held) > 1:
        raise ModelError(
            f"{type(network).__name__} has no forward pass of its own and holds {len(held)} "
            f"networks ({', '.join(held)}); give one of them, such as network.{next(iter(held))}"
        )
    return next(iter(held.values()), None)


def _innermost(network: nn.Module) -> nn.Module:
    inner = _inner(network)
    return network if inner is None else _innermost(inner)


def _without_compiled(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """The module with every compiled part replaced by its original; modules that hold some are
    shallow copies, which share all parameters, buffers and other parts."""
    if id(module) not in done:
        original = module._modules.get(_COMPILED)
        done[id(module)] = module if original is None else _without_compiled(original, done)
        if original is None:
            parts = {
                name: part if part is None else _without_compiled(part, done)
                for name, part in module._modules.items()
            }
            if any(parts[name] is not part for name, part in module._modules.items()):
                done[id(module)] = copy.copy(module)
                done[id(module)].__dict__["_modules"] = parts
    return done[id(module)]


def check_parameters(network: nn.Module, on_meta: bool = False) -> None:
    """Raise ModelError for a network whose parameters cannot be read as numbers or take no
    gradients: a quantised one, one with integers for weights, one without values unless it is to
    stay so (`on_meta`), and one that was made in inference mode."""
    name = type(network).__name__
    for path, module in network.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise ModelError(
                f"'{path}' of {name} is a quantised {type(module).__name__}; give the network as "
                "before quantising"
            )
    tensors: list[tuple[str, torch.Tensor]] = list(network.named_parameters())
    for path, tensor in tensors:
        if tensor.is_meta and not on_meta:
            raise ModelError(
                f"'{path}' of {name} is on torch's meta device and has no values; make the network "
                "on the CPU"
            )
        if (
            not tensor.is_floating_point()
            or tensor.is_quantized
            or tensor.layout is not torch.strided
        ):
            kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
            raise ModelError(
                f"'{path}' of {name} is {kind}; give a network whose parameters are dense "
                "floating-point tensors"
            )
    for path, tensor in (*tensors, *network.named_buffers()):
        if tensor.is_inference():
            raise ModelError(
                f"'{path}' of {name} was made in torch.inference_mode and takes no gradients; make "
                "the network outside, or give copy.deepcopy(network) made outside"
            )
