"""What capturing costs: extraction of all blocks against the plain forward pass and against two
peers.

Contenders take turns within a round, so that whatever else the machine does hits all of them; what
counts is the median over rounds of the ratio to the plain forward pass of the same round. Peak
memory is that of a fresh process each.

    python tests/benchmarks/bench_capture.py [--images 64] [--rounds 9] [--device cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from mixer_probe.capture import extract
from mixer_probe.models import Model, load_model

MODELS = ("mixer_s16_224", "vit_small_patch16_224", "resnet50")
TARGET = 1.10
Contender = Callable[[Model, torch.Tensor], Any]


def plain(model: Model, images: torch.Tensor) -> Any:
    """The network's own forward pass."""
    with torch.inference_mode():
        return model.module(images)


def ours(model: Model, images: torch.Tensor) -> Any:
    """`extract` of all blocks, into NumPy arrays."""
    return extract(model, images, "blocks", batch_size=len(images))


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
    for i in range(arguments.rounds):
        order = [*CONTENDERS][i % len(CONTENDERS) :] + [*CONTENDERS][: i % len(CONTENDERS)]
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
        "target": TARGET,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "CONTENDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print_peak(*arguments.peak, arguments)
        return
    content = {**report(arguments), "models": {}}
    print(", ".join(f"{k} {v}" for k, v in content.items() if k != "models"))
    for name in arguments.models:
        content["models"][name] = measure(name, arguments)
        print(table(name, content["models"][name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    late = [
        name for name, found in content["models"].items() if found["mixer_probe"]["ratio"] > TARGET
    ]
    if late:
        print(f"above the target of {TARGET:.2f}: {', '.join(late)}")


if __name__ == "__main__":
    main()
