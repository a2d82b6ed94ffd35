"""What statistics and top images of all channels take: memory beside the network, and images a
second, in fresh processes.

Every block of a network of random weights is looked at, at 224 px, over many images in one pass
each: `channel_statistics` with quantiles and covariances, and `top_and_lowest` of all channels.
Neither may need more memory for more images. Images are the bundled photographs again and again,
each time moved and mirrored anew, so that no two are the same.

    python tests/benchmarks/bench_channels.py [--images 10000] [--model resnet50] [--batch 32] \\
        [--what statistics] [--json FILE]

Memory is the peak of the process (VmHWM) less what it held when the network had seen its first
images.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from mixer_probe.capture import stream
from mixer_probe.channels import channel_statistics, top_and_lowest
from mixer_probe.images import Images, load_images
from mixer_probe.models import Model, load_model

# GiB beside the network, for 10,000 images of 224 px through resnet50.
TARGET = 1.5
K = 9


@dataclass(frozen=True)
class Moved:
    """Reader of photographs, each as often as wanted, every time moved by a few pixels and maybe
    mirrored."""

    photos: Images

    def open(self, position: int) -> Image.Image:
        """Photograph `position` modulo their number, as its turn has it."""
        turn, i = divmod(position, len(self.photos))
        random = np.random.default_rng([turn, i])
        pixels = np.roll(np.asarray(self.photos[i]), tuple(random.integers(-40, 41, 2)), (0, 1))
        return Image.fromarray(pixels[:, ::-1] if random.integers(2) else pixels)

    def where(self, position: int) -> str:
        """A name for errors."""
        return f"photograph {position % len(self.photos)}"


def many(n: int) -> Images:
    """n images without labels."""
    photos = load_images("photos")
    ids = tuple(f"{i:06d}" for i in range(n))
    return replace(
        photos,
        name="moved photos",
        ids=ids,
        labels=None,
        class_names=None,
        reader=Moved(photos),
        positions=np.arange(n),
    )


def prepared(name: str) -> Model:
    """The network with random weights of which none shuts a branch, and normalisation that fits the
    images."""
    torch.manual_seed(0)
    model = load_model(name, pretrained=False, device="cpu")
    norms = [m for m in model.module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.ones_(norm.weight)
        norm.momentum = 1.0
    with torch.no_grad():
        model.module.train()(next(many(16).batches(_transform(model), 16)))
    model.module.eval()
    return model


def _transform(model: Model) -> Callable[[Any], torch.Tensor]:
    from mixer_probe.capture.stream import transform_of

    return transform_of(model)


def statistics(model: Model, images: Images, batch: int) -> Any:
    """Statistics of all blocks."""
    return channel_statistics(model, images, "blocks", batch_size=batch)


def top(model: Model, images: Images, batch: int) -> Any:
    """Top and lowest images of all channels of all blocks."""
    return top_and_lowest(
        model, images, {layer.name: None for layer in model.select("blocks")}, K, batch_size=batch
    )


def plain(model: Model, images: Images, batch: int) -> Any:
    """The forward pass alone, with the images it needs."""
    last = model.select("blocks")[-1:]
    for _ in stream(model, images, last, lambda *_: None, batch_size=batch):
        pass


CONTENDERS: dict[str, Callable[[Model, Images, int], Any]] = {
    "plain forward": plain,
    "statistics": statistics,
    "top images": top,
}


def measure(label: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of one contender, in this process."""
    model = prepared(arguments.model)
    for _ in range(2):
        plain(model, many(4), 2)
    before = _memory()
    began = time.perf_counter()
    CONTENDERS[label](model, many(arguments.images), arguments.batch)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "images_a_second": arguments.images / seconds,
        "peak_mib": _status("VmHWM") - before,
    }


def _memory() -> float:
    """Memory in use in MiB; the peak counts from here on."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float:
    """A size that Linux keeps of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**10


def fresh(label: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One contender in a process of its own."""
    options = [
        f"--{name}={getattr(arguments, name)}" for name in ("images", "model", "batch", "threads")
    ]
    done = subprocess.run(
        [sys.executable, __file__, *options, "--inside", label],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """The figures as text."""
    yield f"{'':<16} {'seconds':>8} {'images/s':>9} {'peak MiB beside the network':>28}"
    for label, values in found.items():
        yield (
            f"{label:<16} {values['seconds']:>8.1f} {values['images_a_second']:>9.2f} "
            f"{values['peak_mib']:>28.0f}"
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--what", nargs="+", choices=CONTENDERS, default=["statistics", "top images"]
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.inside:
        print(json.dumps(measure(arguments.inside, arguments)))
        return
    head = {
        "model": arguments.model,
        "images": arguments.images,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "target_gib": TARGET,
    }
    print(", ".join(f"{k} {v}" for k, v in head.items()), flush=True)
    found = {label: fresh(label, arguments) for label in arguments.what}
    print("\n".join(lines(found)))
    if arguments.json:
        arguments.json.write_text(json.dumps({**head, "found": found}, indent=2) + "\n")
    if max(values["peak_mib"] for values in found.values()) > TARGET * 2**10:
        print(f"above the target of {TARGET} GiB")


if __name__ == "__main__":
    main()
