"""Bytes of files that somebody else made: good files of every format, and what can be wrong with
them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from PIL import Image

State = dict[str, torch.Tensor]
HUGE = 2**31 - 1
# The same files each time, and as many.
FILES = 150
BOUNDED = settings(
    max_examples=FILES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def tell(what: str, tried: Counter[tuple[str, str]]) -> None:
    """What was tried and what came of it, for who runs the test with -s."""
    print(f"\n{what}: {sum(tried.values())} files")
    for (kind, found), count in sorted(tried.items()):
        print(f"  {kind:12} {found:16} {count}")


# -- any bytes -------------------------------------------------------------------------------------


def truncated(draw: Any, content: bytes) -> bytes:
    return content[: draw(st.integers(0, max(0, len(content) - 1)))]


def flipped(draw: Any, content: bytes) -> bytes:
    changed = bytearray(content)
    for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), min_size=1, max_size=8)):
        if changed:
            changed[place] ^= draw(st.integers(1, 255))
    return bytes(changed)


def spliced(draw: Any, content: bytes) -> bytes:
    at = draw(st.integers(0, len(content)))
    return content[:at] + draw(st.binary(max_size=40)) + content[at:]


def whole(draw: Any, content: bytes) -> bytes:
    return content


DAMAGE: dict[str, Callable[[Any, bytes], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "spliced": spliced,
    "whole": whole,
}

# -- images ----------------------------------------------------------------------------------------

IMAGE_FORMATS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
}


def image_bytes(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def oversized(draw: Any, kind: str) -> bytes:
    """A header that declares far more pixels than there are bytes."""
    content = bytearray(image_bytes(kind))
    width, height = draw(
        st.sampled_from([(60_000, 60_000), (HUGE, HUGE), (1, 50_000_000), (HUGE, 1)])
    )
    short = (min(width, 0xFFFF), min(height, 0xFFFF))
    if kind == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", *short)
        frame = content.index(b",", 13)
        content[frame + 5 : frame + 9] = struct.pack("<HH", *short)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "JPEG":
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = struct.pack(">HH", short[1], short[0])
    elif kind == "TIFF":
        start = struct.unpack_from("<I", content, 4)[0]
        for entry in range(struct.unpack_from("<H", content, start)[0]):
            place = start + 2 + 12 * entry
            tag = struct.unpack_from("<H", content, place)[0]
            if tag in (256, 257):
                struct.pack_into(
                    "<HHII", content, place, tag, 4, 1, width if tag == 256 else height
                )
    else:
        content[26:30] = struct.pack("<HH", 0x3FFF, 0x3FFF)
    return bytes(content)


@st.composite
def image_files(draw: Any) -> tuple[str, str, bytes]:
    """What was done, the file's ending, and its bytes."""
    kind = draw(st.sampled_from(sorted(IMAGE_FORMATS)))
    damage = draw(st.sampled_from([*DAMAGE, "oversized", "renamed", "empty"]))
    mode = draw(
        st.sampled_from(
            ["RGB", "L", "1"] if kind == "WEBP" or kind == "JPEG" else ["RGB", "L", "1", "P"]
        )
    )
    ending = IMAGE_FORMATS[kind]
    if damage == "renamed":
        ending = draw(st.sampled_from([e for e in IMAGE_FORMATS.values() if e != ending]))
    if damage == "empty":
        return damage, ending, b""
    if damage == "oversized":
        return damage, ending, oversized(draw, kind)
    content = image_bytes(kind, "RGB" if mode == "1" and kind in ("WEBP", "JPEG") else mode)
    return damage, ending, DAMAGE.get(damage, whole)(draw, content)


# -- checkpoints -----------------------------------------------------------------------------------


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: str, how: str) -> None:
        self.canary, self.how = canary, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "eval":
            return eval, (f"__import__('os').mkdir({self.canary!r})",)
        return (
            (os.system, (f"mkdir {self.canary}",))
            if self.how == "system"
            else (os.mkdir, (self.canary,))
        )


def torch_bytes(content: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npz_of_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """An archive whose one array declares a shape that it does not hold."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(
            "a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
        )
    return stream.getvalue()


def safetensors_bytes(header: Any, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entangled(draw: Any, state: State) -> Any:
    """Mappings in mappings: deep, in a circle, and beside keys that are no texts."""
    kind = draw(st.sampled_from(["deep", "circle", "many circles", "keys", "lists"]))
    if kind == "deep":
        content: Any = state
        for _ in range(draw(st.integers(1, 300))):
            content = {draw(st.sampled_from(["model", "state_dict", "x"])): content}
        return content
    if kind in ("circle", "many circles"):
        circle: dict[Any, Any] = {"a": torch.zeros(2)}
        circle |= dict.fromkeys(map(str, range(300 if kind == "many circles" else 1)), circle)
        return circle
    if kind == "lists":
        return {"model": [state, [state]], "x": (1, None)}
    odd = draw(st.sampled_from([0, None, (1, "a"), 2.5, b"bytes", True]))
    return {odd: torch.zeros(2), "model": {odd: state, **state}}


def odd_values(draw: Any, state: State) -> State:
    """The right names with values that are no finite numbers of their own."""
    name = draw(st.sampled_from(sorted(state)))
    value = state[name]
    odd = {
        "nan": lambda: value * float("nan"),
        "infinite": lambda: value + float("inf"),
        "one number for all": lambda: (
            torch.zeros(1, dtype=value.dtype).expand(value.numel()).reshape(value.shape)
        ),
        "overlapping": lambda: torch.zeros(value.numel() + 1).as_strided(
            value.shape, [1] * value.ndim
        ),
        "endless": lambda: torch.zeros(1).expand(2**40),
        "meta": lambda: torch.empty(value.shape, device="meta"),
        "sparse": lambda: value.to_sparse(),
        "complex": lambda: value.to(torch.complex64),
        "integers": lambda: value.to(torch.int64),
        "scalar": lambda: torch.zeros(()),
        "nothing": lambda: torch.zeros(0),
    }
    return {**state, name: odd[draw(st.sampled_from(sorted(odd)))]()}


def odd_names(draw: Any, state: State) -> State:
    text = draw(
        st.text(max_size=20) | st.sampled_from(["a\nb", "a\x1b[31mb", "\0", "." * 500, "x" * 5000])
    )
    return {**{f"{text}{name}": value for name, value in state.items()}, text: torch.zeros(2)}


ODD_ARRAYS: dict[str, Callable[[], np.ndarray]] = {
    "objects": lambda: np.array([{}, None], dtype=object),
    "texts": lambda: np.array(["a"]),
    "records": lambda: np.zeros(2, dtype=[("a", "f4")]),
    "dates": lambda: np.zeros(2, dtype="M8[s]"),
    "big-endian": lambda: np.zeros(2, dtype=">f4"),
    "long": lambda: np.zeros(2, dtype=np.longdouble),
    "unsigned": lambda: np.zeros(2, dtype=np.uint16),
    "scalar": lambda: np.zeros(()),
    "nothing": lambda: np.zeros((0, 3)),
}
HEADERS: list[Any] = [
    {"a": {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 64]}},
    {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, HUGE]}},
    {"a": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]}},
    {"a": {"dtype": "F8_E5M2", "shape": [64], "data_offsets": [0, 64]}},
    {"a": {"dtype": "C64", "shape": [8], "data_offsets": [0, 64]}},
    {"a": {"dtype": "X", "shape": [16], "data_offsets": [0, 64]}},
    {"a\nb": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}},
    {
        "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        "b": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]},
    },
    {"a": {"dtype": "BOOL", "shape": [], "data_offsets": [0, 1]}},
    {"__metadata__": {"a": 1}},
    [],
    None,
    b"{" * 3000,
    b'{"a": \xff}',
]


@st.composite
def checkpoints(draw: Any, state: State, canary: str) -> tuple[str, str, bytes]:
    """What it is, the file's ending, and its bytes."""
    kind = draw(
        st.sampled_from(
            [
                "code",
                "bare code",
                "entangled",
                "odd values",
                "odd names",
                "damaged",
                "headers",
                "objects",
                "shapes",
                "bytes",
            ]
        )
    )
    ending = (
        draw(st.sampled_from([".pth", ".safetensors", ".npz", ".bin", ""]))
        if kind in ("damaged", "bytes")
        else ".pth"
    )
    legacy = draw(st.booleans())
    if kind in ("code", "bare code"):
        trap = {**state, "extra": Code(canary, draw(st.sampled_from(["eval", "system", "mkdir"])))}
        return (
            kind,
            ending,
            torch_bytes(trap, legacy) if kind == "code" else pickle.dumps(trap["extra"]),
        )
    if kind in ("entangled", "odd values", "odd names"):
        made = {"entangled": entangled, "odd values": odd_values, "odd names": odd_names}[kind](
            draw, state
        )
        return kind, ending, torch_bytes(made, legacy)
    if kind == "headers":
        length = draw(st.none() | st.sampled_from([0, 1, 2**40, 2**64 - 1]))
        return (
            kind,
            ".safetensors",
            safetensors_bytes(draw(st.sampled_from(HEADERS)), length=length),
        )
    if kind == "objects":
        name = draw(st.sampled_from(sorted(ODD_ARRAYS)))
        key = draw(st.sampled_from(["a", "stem/kernel", *sorted(state)[:1]]))
        return kind, ".npz", npz_bytes({key: ODD_ARRAYS[name]()})
    if kind == "shapes":
        shape = draw(st.sampled_from([(2**40,), (HUGE, HUGE), (-1,), (2**62, 4), (16,)]))
        return (
            kind,
            ".npz",
            npz_of_header(shape, draw(st.sampled_from(["<f4", "|O", "<U1000000", "V9"]))),
        )
    if kind == "bytes":
        return (
            kind,
            ending,
            draw(
                st.binary(max_size=60)
                | st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x93NUMPY"])
            ),
        )
    good = [torch_bytes(state), torch_bytes(state, legacy=True), safetensors.torch.save(state)]
    good.append(npz_bytes({name: value.numpy() for name, value in state.items()}))
    return (
        kind,
        ending,
        DAMAGE[draw(st.sampled_from(sorted(DAMAGE)))](draw, draw(st.sampled_from(good))),
    )
