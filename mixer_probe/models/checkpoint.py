"""What files of weights hold, read as data and never as code."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from mixer_probe.core.errors import CheckpointError

# Settings and measures that training scripts keep beside the weights: plain data, whose classes run nothing when they are made.
_DATA: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
    (pathlib.PurePosixPath, "pathlib.PurePosixPath"),
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
]
# torch's list of such classes is one for the whole process.
_allowing = threading.Lock()


def read_checkpoint(path: str | Path) -> Mapping[Any, Any]:
    """What a safetensors file, a torch file that holds nothing but data, or an npz file of arrays holds: tensors (arrays, for
    npz) by name, and whatever mappings a training script put around them.

    Raises CheckpointError if the file is missing, truncated, or holds pickled code (nothing of which is run)."""
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}; give the path of a .safetensors, .pth or .npz file")
    try:
        content = _reader(file)(file)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {file}: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {file} holds no named tensors; save the network's state_dict()")
    return content


def _reader(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return _read_safetensors
    if file.suffix == ".npz" or _holds_arrays(file):
        return _read_npz
    with file.open("rb") as stream:
        # Eight bytes of header length, then JSON: tells a renamed file from a torch archive.
        return _read_safetensors if stream.read(10)[8:].startswith(b"{") else _read_torch


def _holds_arrays(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".npy") for name in archive.namelist()[:1])
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _read_safetensors(file: Path) -> Any:
    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {file} is truncated or no safetensors file ({error}); copy or download it again"
        ) from error


def _read_npz(file: Path) -> Any:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except OSError:
        raise
    except Exception as error:
        if "allow_pickle" in str(error):
            raise _code(file, "") from error
        raise CheckpointError(f"checkpoint {file} is truncated or no npz file; copy or download it again") from error


def _read_torch(file: Path) -> Any:
    try:
        # torch warns about pickles of other protocols, which the error below says better.
        with _allowing, torch.serialization.safe_globals(_DATA), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and _refused_code(error, file):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise _code(file, f" ({found[1]})" if found else "") from error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"checkpoint {file} is a TorchScript archive, whose code is not run; save the network's state_dict() instead"
            ) from error
        raise CheckpointError(f"checkpoint {file} is truncated or no torch file; copy or download it again") from error


def _code(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {file} holds pickled code{what}, which is refused and was not run; "
        "save its state_dict() with safetensors instead"
    )


def _refused_code(error: pickle.UnpicklingError, file: Path) -> bool:
    """Whether torch refused a class or function, or the file is a bare pickle, of which torch reads no other part."""
    with file.open("rb") as stream:
        bare = stream.read(1) == b"\x80"
    return bare or re.search(r"\bglobal\b", str(error), re.IGNORECASE) is not None
