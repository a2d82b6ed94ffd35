"""Weights from files: read as data, never as code, and matched to a network with a sentence when they do not fit."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from mixer_probe.errors import CheckpointError

StateDict = dict[str, torch.Tensor]
# Where training scripts keep the weights inside a checkpoint; averaged weights first, as timm does.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> StateDict:
    """The tensors of a safetensors file or of a torch file that holds nothing but data.

    Raises CheckpointError if the file is missing, truncated, or holds pickled code (nothing of which is run)."""
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}; give the path of a .safetensors or .pth file")
    try:
        content = _read_safetensors(file) if _is_safetensors(file) else _read_torch(file)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {file}: {error}") from error
    return _tensors(content, file)


def _is_safetensors(file: Path) -> bool:
    if file.suffix == ".safetensors":
        return True
    with file.open("rb") as stream:
        # Eight bytes of header length, then JSON: tells a renamed file from a torch archive.
        return stream.read(10)[8:].startswith(b"{")


def _read_safetensors(file: Path) -> Any:
    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {file} is truncated or no safetensors file ({error}); copy or download it again"
        ) from error


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "global" in str(error).lower():
            raise CheckpointError(
                f"checkpoint {file} holds pickled code, which is refused and was not run; "
                "save its state_dict() with safetensors instead"
            ) from error
        raise CheckpointError(f"checkpoint {file} is truncated or no torch file; copy or download it again") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {file} is truncated or no torch file; copy or download it again") from error


def _tensors(content: Any, file: Path) -> StateDict:
    """The tensors of a checkpoint, out of the wrappers that training scripts put around them."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"checkpoint {file} holds no named tensors; save the network's state_dict()")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors


def load_into(network: nn.Module, weights: StateDict, source: str) -> None:
    """Load weights strictly; a timm network's own key conversion is tried when the keys do not match.

    Raises CheckpointError with the first three mismatching keys; the network is then unchanged."""
    mismatches = _mismatches(network, weights)
    convert = _timm_conversion(network)
    if mismatches and convert:
        try:
            converted = dict(convert(dict(weights), network))
        except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, AssertionError):
            converted = weights  # The conversion expects another network's keys: report those that were given.
        if not _mismatches(network, converted):
            weights, mismatches = converted, []
    if mismatches:
        more = f" and {len(mismatches) - 3} more" if len(mismatches) > 3 else ""
        raise CheckpointError(f"checkpoint {source} is for another network: {'; '.join(mismatches[:3])}{more}")
    network.load_state_dict(weights)


def _mismatches(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    own = network.state_dict()
    shapes = [
        f"'{k}' has shape {tuple(weights[k].shape)}, the network needs {tuple(v.shape)}"
        for k, v in own.items()
        if k in weights and weights[k].shape != v.shape
    ]
    missing = [f"'{k}' is missing" for k in own if k not in weights]
    unexpected = [f"'{k}' is not in the network" for k in weights if k not in own]
    return shapes + missing + unexpected


def _timm_conversion(network: nn.Module) -> Callable[..., Mapping[str, torch.Tensor]] | None:
    """timm's own conversion of the original authors' checkpoints, where the model's file has one."""
    home = sys.modules.get(type(network).__module__)
    found: Callable[..., Mapping[str, torch.Tensor]] | None = getattr(home, "checkpoint_filter_fn", None)
    return found


def weights_hash(network: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
