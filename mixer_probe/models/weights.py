"""Weights from files: read as data, never as code, and matched to a network with a sentence when they do not fit."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
import warnings
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
        # torch warns about pickles of other protocols, which the error below says better.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and _refused_code(error, file):
            raise CheckpointError(
                f"checkpoint {file} holds pickled code, which is refused and was not run; "
                "save its state_dict() with safetensors instead"
            ) from error
        raise CheckpointError(f"checkpoint {file} is truncated or no torch file; copy or download it again") from error


def _refused_code(error: pickle.UnpicklingError, file: Path) -> bool:
    """Whether torch refused a class or function, or the file is a bare pickle, of which torch reads no other part."""
    with file.open("rb") as stream:
        bare = stream.read(1) == b"\x80"
    return bare or re.search(r"\bglobal\b", str(error), re.IGNORECASE) is not None


def _tensors(content: Any, file: Path) -> StateDict:
    """The tensors of a checkpoint, out of the wrappers that training scripts put around them."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"checkpoint {file} holds no named tensors; save the network's state_dict()")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), ""):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
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
    network.load_state_dict({**_batch_counts(network), **weights})


def _batch_counts(network: nn.Module) -> StateDict:
    return {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}


def _mismatches(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    own = network.state_dict()
    shapes = [
        f"'{k}' has shape {tuple(weights[k].shape)}, the network needs {tuple(v.shape)}"
        for k, v in own.items()
        if k in weights and weights[k].shape != v.shape
    ]
    # Old checkpoints do not count batches, and the count plays no part in a forward pass.
    missing = [f"'{k}' is missing" for k in own if k not in weights and not k.endswith("num_batches_tracked")]
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
