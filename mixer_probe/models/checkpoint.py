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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from mixer_probe.core.errors import CheckpointError

# Settings and measures that training scripts keep beside the weights: plain data, whose classes run
# nothing when they are made.
_DATA: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(
        type(np.dtype(kind))
        for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
    ),
    *(
        (np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar")
        for core in ("core", "_core")
    ),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
    (pathlib.PurePosixPath, "pathlib.PurePosixPath"),
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
]
# torch's list of such classes is one for the whole process.
_allowing = threading.Lock()


def read_checkpoint(path: str | Path) -> Mapping[Any, Any]:
    """What a safetensors file, a torch file that holds nothing but data, or an npz file of arrays
    holds: tensors (arrays, for npz) by name, and whatever mappings a training script put around
    them.

    Raises CheckpointError if the file is missing, truncated, or holds pickled code (nothing of
    which is run)."""
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(
            f"no checkpoint at {file}; give the path of a .safetensors, .pth or .npz file"
        )
    content: Any
    form = ""
    try:
        form = _form(file)
        if form == "safetensors":
            content = safetensors.torch.load_file(file)
        elif form == "npz":
            with np.load(file, allow_pickle=False) as arrays:
                content = dict(arrays.items())
        else:
            # torch warns about pickles of other protocols, which the error below says better.
            with (
                _allowing,
                torch.serialization.safe_globals(_DATA),
                warnings.catch_warnings(action="ignore"),
            ):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError) and form != "torch":
            raise CheckpointError(f"cannot read checkpoint {file}: {error}") from error
        if form in ("", "safetensors") and not isinstance(error, SafetensorError):
            raise
        raise CheckpointError(f"checkpoint {file} {_reason(error, form, file)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint {file} holds no named tensors; save the network's state_dict()"
        )
    return content


def _form(file: Path) -> str:
    """ "safetensors", "npz" or "torch", by what the file holds where its name does not say."""
    if file.suffix in (".safetensors", ".npz"):
        return file.suffix[1:]
    with (
        suppress(OSError, zipfile.BadZipFile, ValueError, NotImplementedError),
        zipfile.ZipFile(file) as archive,
    ):
        if any(name.endswith(".npy") for name in archive.namelist()[:1]):
            return "npz"
    with file.open("rb") as stream:
        # Eight bytes of header length, then JSON: tells a renamed file from a torch archive.
        return "safetensors" if stream.read(10)[8:].startswith(b"{") else "torch"


def _reason(error: Exception, form: str, file: Path) -> str:
    """What is wrong with a file that its reader refused, and what to do."""
    refused, what = form == "npz" and "allow_pickle" in str(error), ""
    if isinstance(error, pickle.UnpicklingError) and form == "torch":
        with file.open("rb") as stream:
            bare = stream.read(1) == b"\x80"
        # torch refused a class or function, or the file is a bare pickle, of which torch reads no
        # other part.
        refused = bare or re.search(r"\bglobal\b", str(error), re.IGNORECASE) is not None
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
    if refused:
        return (
            f"holds pickled code{what}, which is refused and was not run; save its state_dict() "
            "with safetensors instead"
        )
    if form == "torch" and "TorchScript" in str(error):
        return (
            "is a TorchScript archive, whose code is not run; save the network's state_dict() "
            "instead"
        )
    details = f" ({error})" if form == "safetensors" else ""
    return f"is truncated or no {form} file{details}; copy or download it again"
