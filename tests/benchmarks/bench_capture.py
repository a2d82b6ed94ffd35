"""What capturing costs: extraction of all blocks against the plain forward pass and against two
peers.

Contenders take turns within a round in random order, so that whatever else the machine does hits
all of them; what counts is the median over rounds of the ratio to the plain forward pass of the
same round. Each begins with freed memory given back to the system, as in a fresh process: otherwise
it would have the heap of the one before. Peak memory is that of a fresh process each.

    python tests/benchmarks/bench_capture.py [--images 64] [--rounds 7] [--device cpu] [--json FILE]
    python tests/benchmarks/bench_capture.py --scaling    # against images, layers, processes, ...
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import timm
import torch

from mixer_probe.capture import extract
from mixer_probe.capture.heap import kept_heap
from mixer_probe.core.threads import available_cores
from mixer_probe.models import Model, load_model
from mixer_probe.parallel import agree, ranks

MODELS = ("mixer_s16_224", "vit_small_patch16_224", "resnet50")
# Of the plain forward pass: time with the results in memory and on the disk, and memory.
TARGETS = {"mixer_probe": 1.05, "mixer_probe to disk": 1.15}
MEMORY_TARGET = 1.3
Contender = Callable[[Model, torch.Tensor], Any]


def plain(model: Model, images: torch.Tensor) -> Any:
    """The network's own forward pass."""
    with torch.inference_mode():
        return model.module(images)


def ours(model: Model, images: torch.Tensor) -> Any:
    """`extract` of all blocks, into NumPy arrays."""
    return extract(model, images, "blocks", batch_size=len(images))


def to_disk(model: Model, images: torch.Tensor) -> Any:
    """`extract` of all blocks into a store, safe on the disk at the end."""
    return extract(model, images, "blocks", batch_size=len(images), out=new_place())


_places = tempfile.TemporaryDirectory(prefix="mixer-probe-bench")


def new_place() -> Path:
    """A path for a store, in a folder that is removed at the end."""
    return Path(tempfile.mkdtemp(dir=_places.name)) / "run.zarr"


def early(model: Model, images: torch.Tensor) -> Any:
    """`extract` of the first quarter of the blocks."""
    names = [layer.name for layer in model.select("blocks")]
    return extract(model, images, names[: max(1, len(names) // 4)], batch_size=len(images))


def timm_intermediates(model: Model, images: torch.Tensor) -> Any:
    """timm's `forward_intermediates`, averaged over positions by hand. For a ResNet these are
    stages, not blocks."""
    with torch.inference_mode():
        _, found = model.module.forward_intermediates(images)
        return [x.mean((2, 3)).cpu().numpy() for x in found]


def captum_activation(model: Model, images: torch.Tensor) -> Any:
    """captum's `LayerActivation` of all blocks in one call, averaged over positions by hand."""
    from captum.attr import LayerActivation

    layers = model.select("blocks")
    modules = [model.module.get_submodule(layer.name) for layer in layers]
    with torch.inference_mode():
        found = LayerActivation(model.module, modules).attribute(images)
        return [x.mean((2, 3) if x.ndim == 4 else 1).cpu().numpy() for x in found]


CONTENDERS: dict[str, Contender] = {
    "plain forward": plain,
    "mixer_probe": ours,
    "mixer_probe to disk": to_disk,
    "mixer_probe, first quarter": early,
    "timm forward_intermediates": timm_intermediates,
    "captum LayerActivation": captum_activation,
}


def prepare(name: str, images: int, device: str) -> tuple[Model, torch.Tensor]:
    """An untrained network and noise, both on the device."""
    model = load_model(name, pretrained=False, device=device)
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(images, *model.input.size, generator=generator).to(device)


def seconds(contender: Contender, model: Model, images: torch.Tensor) -> float:
    """Wall-clock time of one run, until the device is done."""
    gc.collect()
    with kept_heap:  # which gives freed memory back when it is left
        pass
    began = time.perf_counter()
    contender(model, images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(name: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Per contender the median ratio to the plain forward pass, the median time and the peak
    memory."""
    model, images = prepare(name, arguments.images, arguments.device)
    for contender in CONTENDERS.values():
        contender(model, images)
    rounds: list[dict[str, float]] = []
    random = Random(0)
    for _ in range(arguments.rounds):
        order = random.sample([*CONTENDERS], len(CONTENDERS))
        rounds.append({label: seconds(CONTENDERS[label], model, images) for label in order})
    return {
        label: {
            "ratio": statistics.median(r[label] / r["plain forward"] for r in rounds),
            "ratios": [round(r[label] / r["plain forward"], 4) for r in rounds],
            "seconds": statistics.median(r[label] for r in rounds),
            "peak_mib": peak_of(name, label, arguments),
        }
        for label in CONTENDERS
    }


def peak_of(name: str, label: str, arguments: argparse.Namespace) -> float:
    """Peak memory of one contender in a process of its own, in MiB above network and images."""
    options = [
        "--images",
        str(arguments.images),
        "--device",
        arguments.device,
        "--threads",
        str(torch.get_num_threads()),
    ]
    command = [sys.executable, __file__, *options, "--peak", name, label]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def print_peak(name: str, label: str, arguments: argparse.Namespace) -> None:
    """Run one contender and print its peak."""
    model, images = prepare(name, arguments.images, arguments.device)
    model.structure  # noqa: B018 - traced outside what is measured
    plain(model, images[:2])
    before = _memory(images)
    CONTENDERS[label](model, images)
    print(_peak(images) - before)


def _memory(images: torch.Tensor) -> float:
    """Memory in use in MiB; the peak counts from here on."""
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(images: torch.Tensor) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if images.is_cuda else _status("VmHWM")


def _status(key: str) -> float:
    """A size that Linux keeps of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**10


def scaling(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Cost of extraction in seconds per 1,000 images, against one setting at a time, and its ratio
    to the plain forward pass: medians over rounds, each of which has all settings in random order.
    A small network at 32 px, so that what is not the forward pass shows."""
    model, images = small_case(4096, arguments.device)
    blocks = [layer.name for layer in model.select("blocks")]
    settings: dict[str, tuple[int, dict[str, Any]]] = {
        "images: 256": (256, {}),
        "images: 1024 (one unit)": (1024, {}),
        "images: 4096": (4096, {}),
        "images: 4096, to disk": (4096, {"out": True}),
        "layers: 1, the last": (512, {"layers": blocks[-1:]}),
        "layers: 8 blocks": (512, {"layers": blocks}),
        "layers: all": (512, {"layers": "all"}),
        "channels: 128 (block)": (512, {"layers": ["blocks.7"]}),
        "channels: 512 (hidden)": (512, {"layers": ["blocks.7.mlp_channels.fc1"]}),
        "positions: mean": (512, {"reduce": "mean"}),
        "positions: all 256": (512, {"reduce": "none"}),
        "positions: all 256, to disk": (512, {"reduce": "none", "out": True}),
    }

    def plain_passes(_model: Model, images: torch.Tensor) -> None:
        for part in images.split(64):
            plain(model, part)

    def per_1000(n: int, contender: Contender) -> float:
        return seconds(contender, model, images[:n]) / n * 1000

    def extraction(layers: Any = "blocks", out: bool = False, **options: Any) -> Contender:
        return lambda model, images: extract(
            model, images, layers, batch_size=64, out=new_place() if out else None, **options
        )

    contenders = {label: (n, extraction(**options)) for label, (n, options) in settings.items()}
    contenders["plain forward"] = 512, plain_passes
    random, rounds = Random(0), []
    for i in range(arguments.rounds + 1):
        order = random.sample([*contenders], len(contenders))
        found = {label: per_1000(*contenders[label]) for label in order}
        # The first is a warm-up.
        rounds += [found] if i else []
    return {
        label: {
            "seconds_per_1000": statistics.median(r[label] for r in rounds),
            "ratio": statistics.median(r[label] / r["plain forward"] for r in rounds),
        }
        for label in contenders
    }


def by_ranks(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of extraction to disk by 1, 2, 4, ... processes of one thread each, as many as there
    are cores: medians over rounds, from when all have started."""
    rounds: dict[int, list[float]] = {2**k: [] for k in range(available_cores().bit_length())}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            for world, found in rounds.items():
                command = ["-m", "torch.distributed.run", "--standalone"]
                command += ["--nproc-per-node", str(world), __file__, "--device", arguments.device]
                done = subprocess.run(
                    [sys.executable, *command, "--as-rank", f"{folder}/{i}-{world}"],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                found.append(float(done.stdout.split()[-1]))
    return {str(world): statistics.median(found) for world, found in rounds.items()}


def as_rank(out: str, device: str) -> None:
    """One of the processes of `by_ranks`; the first prints how long it took."""
    model, images = small_case(4096, device)
    plain(model, images[:64])
    agree(lambda: None)
    began = time.perf_counter()
    extract(model, images, "blocks", batch_size=64, out=out)
    if ranks().rank == 0:
        print(time.perf_counter() - began)


def small_case(n: int, device: str) -> tuple[Model, torch.Tensor]:
    """A network of 8 blocks at 32 px, and noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    return load_model("zoo:mixer-s0", device=device), images.to(device)


def table(name: str, found: dict[str, dict[str, Any]]) -> str:
    """The figures of one network as text."""
    lines = [f"{name:<28} {'ratio':>6} {'seconds':>8} {'peak MiB':>9}"]
    for label, values in found.items():
        lines.append(
            f"  {label:<26} {values['ratio']:>6.3f} {values['seconds']:>8.3f} "
            f"{values['peak_mib']:>9.0f}"
        )
    return "\n".join(lines)


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that belongs to the figures."""
    device = (
        torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "images": arguments.images,
        "rounds": arguments.rounds,
        "targets": TARGETS,
        "memory_target": MEMORY_TARGET,
    }


def write(content: dict[str, Any], file: Path | None) -> None:
    """All figures so far as JSON, where a file is asked for."""
    if file:
        file.write_text(json.dumps(content, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--as-rank", metavar="OUT", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "CONTENDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print_peak(*arguments.peak, arguments)
        return
    if arguments.as_rank:
        as_rank(arguments.as_rank, arguments.device)
        return
    content: dict[str, Any] = {**report(arguments), "models": {}}
    print(", ".join(f"{k} {v}" for k, v in content.items() if k != "models"))
    if arguments.scaling:
        content["scaling"] = scaling(arguments)
        for label, found in content["scaling"].items():
            print(f"{label:<30} {found['ratio']:>6.3f} {found['seconds_per_1000']:>8.3f} s/1000")
        write(content, arguments.json)
        content["ranks"] = by_ranks(arguments)
        print("processes:", ", ".join(f"{n}: {s:.2f} s" for n, s in content["ranks"].items()))
    for name in () if arguments.scaling else arguments.models:
        content["models"][name] = measure(name, arguments)
        print(table(name, content["models"][name]), flush=True)
        write(content, arguments.json)
    write(content, arguments.json)
    for name, found in content["models"].items():
        for label, target in TARGETS.items():
            memory = found[label]["peak_mib"] / found["plain forward"]["peak_mib"]
            if found[label]["ratio"] > target or memory > MEMORY_TARGET:
                print(f"above the target: {name}, {label} ({memory:.2f} of the memory)")


if __name__ == "__main__":
    main()
