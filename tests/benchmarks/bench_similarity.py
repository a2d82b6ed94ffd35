"""What CKA costs and how exact it is: of two networks, of two stored runs and of features in
memory, against three peers.

Contenders take turns within a round, so that whatever else the machine does hits all of them; what
counts is the median over rounds of the ratio to the first one of the same round. Peak memory is
that of a fresh process each, above what the contender was given. `store` runs every contender in a
fresh process and once only, unless told otherwise.

    python tests/benchmarks/bench_similarity.py [--part models store features accuracy] \\
        [--images 64] [--json FILE]

The peers are optional: pip install pytorch-cka cka-pytorch torch-cka. All three flatten positions
and channels into one feature, work in the float type of the network, and divide the sums over
batches of the unbiased HSIC, which for several batches estimates another number than the CKA of all
images at once. None takes stored features, so `store` has no peer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mixer_probe import Layer, Model, Representations, compare, compare_models, load_model, open_run
from mixer_probe.capture import RunRecord
from mixer_probe.capture.store import RunWriter
from mixer_probe.core.result import ImagesRecord, ModelRecord

MODELS = ("mixer_s16_224", "vit_small_patch16_224")
VALUES_ONLY: dict[str, Any] = {"permutations": 0, "resamples": 0}
OFF = 0.01
_CHUNK = 1024

Values = np.ndarray | None


# -- peers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Networks:
    """What the peers take: two networks, the layers to hook in each, and batches of (image, 0)."""

    a: nn.Module
    b: nn.Module
    layers_a: list[str]
    layers_b: list[str]
    loader: DataLoader[Any]


def pytorch_cka(given: Networks) -> Values:
    """pytorch-cka: unbiased HSIC of uncentred Gram matrices, summed over batches, CKA clamped to
    [0, 1].

    Its hooks keep a view of the output, which a later in-place operation changes."""
    from cka import compute_cka

    layers = {"layers": given.layers_a, "model2_layers": given.layers_b}
    return compute_cka(given.a, given.b, given.loader, **layers, device="cpu", progress=False)[
        0
    ].numpy()


def pytorch_cka_of_features(given: FeatureWork) -> Values:
    """pytorch-cka from features, without networks: the same in one batch."""
    from cka import cka_from_features

    return cka_from_features(*given.tensors).numpy()


def cka_pytorch(given: Networks) -> Values:
    """cka-pytorch: unbiased HSIC of uncentred Gram matrices, summed over batches, 1e-4 added under
    the root, not clamped.

    It takes the Gram matrix inside the hook. By default it goes over the images ten times; once is
    enough without shuffling."""
    from cka_pytorch import CKACalculator

    layers = {"model1_layers": given.layers_a, "model2_layers": given.layers_b}
    calculator = CKACalculator(
        given.a, given.b, **layers, device=torch.device("cpu"), verbose=False
    )
    values = calculator.calculate_cka_matrix(given.loader, num_epochs=1)
    names = calculator.hook_manager1.module_names, calculator.hook_manager2.module_names
    calculator.reset()
    return in_order(values, names, given)


def torch_cka(given: Networks) -> Values:
    """torch_cka: unbiased HSIC of uncentred Gram matrices, averaged over batches, not clamped;
    fails for NaN.

    It records gradients, computes the second network's Gram matrices anew for each layer of the
    first, and never removes its hooks. They keep the output itself, which a later in-place
    operation changes."""
    from torch_cka import CKA

    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calculator = CKA(
            given.a,
            given.b,
            model1_layers=given.layers_a,
            model2_layers=given.layers_b,
            device="cpu",
        )
        try:
            calculator.compare(given.loader)
        finally:
            unhook(given)
    found = calculator.export()
    return in_order(found["CKA"], (found["model1_layers"], found["model2_layers"]), given)


def torch_cka_without_gradients(given: Networks) -> Values:
    """torch_cka as a careful user calls it."""
    with torch.no_grad():
        return torch_cka(given)


def in_order(values: Tensor, names: tuple[list[str], list[str]], given: Networks) -> np.ndarray:
    """`values` with rows and columns as asked for, by the `names` that the peer gives them."""
    rows = [names[0].index(name) for name in given.layers_a]
    columns = [names[1].index(name) for name in given.layers_b]
    return values.detach().numpy()[np.ix_(rows, columns)]


def unhook(given: Networks) -> None:
    """Remove all hooks from the layers."""
    for network, names in ((given.a, given.layers_a), (given.b, given.layers_b)):
        for name in names:
            network.get_submodule(name)._forward_hooks.clear()


# -- what is compared ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelWork:
    """Two networks and images."""

    a: Model
    b: Model
    images: Tensor
    layers: str | Sequence[str]
    batch_size: int

    @cached_property
    def networks(self) -> Networks:
        """The same as the peers take it."""
        names_a, names_b = (
            [layer.name for layer in model.select(self.layers)] for model in (self.a, self.b)
        )
        loader = DataLoader(
            TensorDataset(self.images, torch.zeros(len(self.images))), self.batch_size
        )
        return Networks(self.a.module, self.b.module, names_a, names_b, loader)

    def first(self, images: int) -> ModelWork:
        """The same for the first images."""
        return ModelWork(self.a, self.b, self.images[:images], self.layers, self.batch_size)


@dataclass(frozen=True)
class Synthetic:
    """Layers that see common factors, each mostly its own part of them, under noise: their CKA is
    known."""

    side: int
    layers: int
    channels: int
    mean: float = 0.0
    factors: int = 32

    @property
    def names(self) -> list[str]:
        """Of the layers."""
        return [f"blocks.{i}" for i in range(self.layers)]

    @cached_property
    def weights(self) -> list[Tensor]:
        """What each layer makes of the factors [factors, channels]."""
        drawn = torch.Generator().manual_seed(self.side + 1)
        centres = torch.linspace(0, self.factors, self.layers)
        fractions = [
            torch.exp(-(torch.arange(self.factors) - c).abs() / 8)[:, None] for c in centres
        ]
        return [
            fraction * torch.randn(self.factors, self.channels, generator=drawn)
            for fraction in fractions
        ]

    def batch(self, start: int, n: int) -> dict[str, np.ndarray]:
        """Features of the images `start` to `start + n`."""
        common = torch.randn(n, self.factors, generator=torch.Generator().manual_seed(start))
        own = torch.Generator().manual_seed((self.side + 1) * 1_000_003 + start)
        found = (
            torch.randn(n, self.channels, generator=own).add_(common @ W) for W in self.weights
        )
        return {
            name: X.add_(self.mean * X.std()).numpy()
            for name, X in zip(self.names, found, strict=True)
        }

    def record(self, images: int) -> RunRecord:
        """What a run of these layers would say about itself."""
        model = ModelRecord(f"synthetic-{self.side}", "vit", False, "", str(self.side), 0)
        place = ImagesRecord("synthetic", "", images, 0, "")
        last = max(1, self.layers - 1)
        layers = (
            Layer(name, "block", i / last, None, self.channels, 0, 0, order=i)
            for i, name in enumerate(self.names)
        )
        return RunRecord(model, place, tuple(layers), "mean", "", "", "float32")

    def in_memory(self, images: int) -> Representations:
        """All at once."""
        return Representations(
            self.record(images), self.batch(0, images), {}, ids(images), None, None, {}
        )

    def write(self, out: Path, images: int) -> None:
        """As a stored run, chunk by chunk."""
        with RunWriter(out, self.record(images), ids(images), None, None) as writer:
            writer.prepare()
            for start in range(0, images, _CHUNK):
                writer.write(start, self.batch(start, min(_CHUNK, images - start)))
        writer.finish()


def ids(images: int) -> tuple[str, ...]:
    """One name an image."""
    return tuple(map(str, range(images)))


def exact(a: Synthetic, b: Synthetic) -> np.ndarray:
    """CKA of all pairs of layers for infinitely many images: |Cov(x, y)|^2 / (|Cov(x)|
    |Cov(y)|)."""
    grams = [
        torch.stack([(W.double() @ W.double().T).flatten() for W in side.weights])
        for side in (a, b)
    ]
    traces = [torch.tensor([W.double().square().sum() for W in side.weights]) for side in (a, b)]
    own = [
        (g.square().sum(1) + 2 * t + a.channels).sqrt() for g, t in zip(grams, traces, strict=True)
    ]
    return (grams[0] @ grams[1].T / torch.outer(*own)).numpy()


class Stored(nn.Module):
    """Features as a network, for peers that take nothing else: each layer returns its features,
    whatever comes in."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Constant(X) for X in features)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            block(x)
        return x


class _Constant(nn.Module):
    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features


@dataclass(frozen=True)
class FeatureWork:
    """Features of the same images in the layers of two networks."""

    a: Representations
    b: Representations

    @cached_property
    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """The features of both."""
        a, b = ([torch.from_numpy(reps[name]) for name in reps] for reps in (self.a, self.b))
        return a, b

    @cached_property
    def networks(self) -> Networks:
        """The same as the peers take it, in one batch."""
        n = len(self.a.ids)
        loader = DataLoader(TensorDataset(torch.zeros(n, 1), torch.zeros(n)), n)
        a, b = map(Stored, self.tensors)
        return Networks(a, b, self.a.names(), self.b.names(), loader)


@dataclass(frozen=True)
class StoreWork:
    """Two stored runs."""

    a: Path
    b: Path


# -- ours and the bases ----------------------------------------------------------------------------


def plain(work: ModelWork) -> Values:
    """Both networks' own forward passes."""
    with torch.inference_mode():
        for batch in torch.split(work.images, work.batch_size):
            work.a.module(batch)
            work.b.module(batch)
    return None


def ours_of_models(work: ModelWork, **options: Any) -> Values:
    """`compare_models`: float64, unbiased; positions averaged and all images at once, or flattened
    and by batches like the peers.

    Flattened, class tokens are left out, and the batches are shuffled."""
    return compare_models(
        work.a, work.b, work.images, work.layers, batch_size=work.batch_size, **options
    ).values


def ours_of_features(work: FeatureWork, **options: Any) -> Values:
    """`compare` of representations in memory: float64, unbiased."""
    return compare(work.a, work.b, **options).values


def ours_of_stores(work: StoreWork, **options: Any) -> Values:
    """`compare` of stored runs: float64, unbiased."""
    return compare(open_run(work.a), open_run(work.b), **options).values


def reading(work: StoreWork) -> Values:
    """Every layer of both stores, read once and let go."""
    for path in (work.a, work.b):
        run = open_run(path)
        for name in run:
            run[name]
    return None


def grams_in_float64(work: FeatureWork) -> Values:
    """By hand: one U-centred Gram matrix a layer in float64, then one product for all pairs."""
    return unbiased_cka(*work.tensors)


def unbiased_cka(a: Sequence[Tensor], b: Sequence[Tensor]) -> np.ndarray:
    """CKA of all pairs of [n, p] features, in float64."""
    return (torch.stack(list(map(_direction, a))) @ torch.stack(list(map(_direction, b))).T).numpy()


def _direction(features: Tensor) -> Tensor:
    """The U-centred Gram matrix as one unit vector."""
    X, n = features.double(), len(features)
    X = X - X.mean(0)
    K = (X @ X.T).fill_diagonal_(0)
    sums = K.sum(0) / (n - 2)
    K = (K - sums - sums[:, None] + K.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0).flatten()
    return K.div_(K.norm())


# -- parts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """Something to be measured, and the package that it needs."""

    run: Callable[[Any], Values]
    package: str = ""

    def missing(self) -> str:
        """Why it cannot run, nothing if it can; its package is imported then."""
        try:
            importlib.import_module(self.package or "mixer_probe")
        except ImportError as error:
            return f"not installed ({error})"
        return ""


def with_options(function: Callable[..., Values], **options: Any) -> Contender:
    """One of ours with options."""
    return Contender(lambda work: function(work, **options))


def of_networks(peer: Callable[[Networks], Values], package: str) -> Contender:
    """A peer that takes networks."""
    return Contender(lambda work: peer(work.networks), package)


PEERS = {
    "pytorch-cka": of_networks(pytorch_cka, "cka"),
    "cka-pytorch": of_networks(cka_pytorch, "cka_pytorch"),
    "torch_cka": of_networks(torch_cka, "torch_cka"),
    "torch_cka, no gradients": of_networks(torch_cka_without_gradients, "torch_cka"),
}
PARTS: dict[str, dict[str, Contender]] = {
    "models": {
        "two plain forwards": Contender(plain),
        "mixer_probe, values only": with_options(ours_of_models, **VALUES_ONLY),
        "mixer_probe, null, interval": with_options(ours_of_models),
        "mixer_probe, flattened": with_options(ours_of_models, positions="flatten", **VALUES_ONLY),
        **PEERS,
    },
    "store": {
        "reading both stores": Contender(reading),
        "mixer_probe, values only": with_options(ours_of_stores, **VALUES_ONLY),
        "mixer_probe, null, interval": with_options(ours_of_stores),
    },
    "features": {
        "Gram matrices in float64": Contender(grams_in_float64),
        "mixer_probe, values only": with_options(ours_of_features, **VALUES_ONLY),
        "mixer_probe, null, interval": with_options(ours_of_features),
        "pytorch-cka": Contender(pytorch_cka_of_features, "cka"),
        "cka-pytorch": PEERS["cka-pytorch"],
        "torch_cka": PEERS["torch_cka"],
    },
}


def two_models(arguments: argparse.Namespace) -> ModelWork:
    """Two untrained networks and noise."""
    a, b = (load_model(name, pretrained=False, device="cpu") for name in MODELS)
    for model in (a, b):
        model.select("blocks")  # traced outside what is measured
    images = torch.randn(
        arguments.images, *a.input.size, generator=torch.Generator().manual_seed(0)
    )
    return ModelWork(a, b, images, "blocks", arguments.batch_size)


def two_stores(arguments: argparse.Namespace) -> StoreWork:
    """The stores that were written before."""
    return StoreWork(arguments.stores / "a", arguments.stores / "b")


def features(arguments: argparse.Namespace) -> FeatureWork:
    """Features in memory."""
    return synthetic_features(
        arguments.feature_images, arguments.layers, arguments.feature_channels
    )


def synthetic_features(images: int, layers: int, channels: int, mean: float = 0.0) -> FeatureWork:
    """Two synthetic networks in memory."""
    a, b = (Synthetic(side, layers, channels, mean).in_memory(images) for side in (0, 1))
    return FeatureWork(a, b)


PREPARE: dict[str, Callable[[argparse.Namespace], Any]] = {
    "models": two_models,
    "store": two_stores,
    "features": features,
}


def store_sides(arguments: argparse.Namespace) -> tuple[Synthetic, Synthetic]:
    """What is stored."""
    a, b = (Synthetic(side, arguments.layers, arguments.store_channels) for side in (0, 1))
    return a, b


def truth(part: str, work: Any, arguments: argparse.Namespace) -> Values:
    """What the values of a part should be, where that is one thing."""
    if part == "features":
        return grams_in_float64(work)
    return exact(*store_sides(arguments)) if part == "store" else None


# -- measuring -------------------------------------------------------------------------------------


def measure(part: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Per contender the median ratio to the first, the median time, the peak memory and the
    deviation from the truth."""
    contenders = PARTS[part]
    missing = {label: contender.missing() for label, contender in contenders.items()}
    able = [label for label in contenders if not missing[label]]
    run = fresh_rounds if part == "store" else rounds_here
    rounds, deviations = run(part, able, arguments)
    found: dict[str, dict[str, Any]] = {
        label: {"missing": reason} for label, reason in missing.items() if reason
    }
    for label in able:
        ratios = [r[label]["seconds"] / r[able[0]]["seconds"] for r in rounds]
        peaks = [r[label]["peak_mib"] for r in rounds if "peak_mib" in r[label]]
        found[label] = {
            "ratio": statistics.median(ratios),
            "ratios": [round(ratio, 4) for ratio in ratios],
            "seconds": statistics.median(r[label]["seconds"] for r in rounds),
            "peak_mib": max(peaks) if peaks else fresh(part, label, arguments)["peak_mib"],
            "deviation": deviations[label],
        }
    return {label: found[label] for label in contenders}


Rounds = list[dict[str, dict[str, Any]]]


def rounds_here(
    part: str, able: Sequence[str], arguments: argparse.Namespace
) -> tuple[Rounds, dict[str, float | None]]:
    """Times of all rounds in this process, after one run of each for the deviation."""
    work = PREPARE[part](arguments)
    true = truth(part, work, arguments)
    deviations = {label: deviation(PARTS[part][label].run(work), true) for label in able}
    turns = (rotated(able, i) for i in range(arguments.rounds))
    return [
        {label: {"seconds": seconds(PARTS[part][label], work)} for label in order}
        for order in turns
    ], deviations


def fresh_rounds(
    part: str, able: Sequence[str], arguments: argparse.Namespace
) -> tuple[Rounds, dict[str, float | None]]:
    """As `rounds_here`, everything in fresh processes."""
    turns = (rotated(able, i) for i in range(arguments.store_rounds))
    rounds = [{label: fresh(part, label, arguments) for label in order} for order in turns]
    return rounds, {label: rounds[0][label]["deviation"] for label in able}


def rotated(labels: Sequence[str], by: int) -> list[str]:
    """The labels, another one first."""
    return [*labels[by % len(labels) :], *labels[: by % len(labels)]]


def seconds(contender: Contender, work: Any) -> float:
    """Wall-clock time of one run."""
    began = time.perf_counter()
    contender.run(work)
    return time.perf_counter() - began


def deviation(values: Values, true: Values) -> float | None:
    """The largest one, None where there is nothing to compare."""
    return None if values is None or true is None else float(np.abs(values - true).max())


def fresh(part: str, label: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, peak memory in MiB and deviation of one contender in a process of its own."""
    kept = (
        "images",
        "batch_size",
        "layers",
        "store_channels",
        "feature_images",
        "feature_channels",
        "threads",
        "stores",
    )
    options = [
        text
        for name in kept
        for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))
    ]
    command = [sys.executable, __file__, *options, "--alone", part, label]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone(part: str, label: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one contender in this process; imports and the first use of every library come
    before."""
    contender = PARTS[part][label]
    contender.missing()
    work = PREPARE[part](arguments)
    ours_of_features(synthetic_features(16, 2, 8), **VALUES_ONLY)
    if part == "models":
        plain(work.first(2))
    if part == "store":
        open_run(work.a)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status("VmRSS"), time.perf_counter()
    values = contender.run(work)
    took, peak = time.perf_counter() - began, _status("VmHWM") - before
    return {
        "seconds": took,
        "peak_mib": peak,
        "deviation": deviation(values, truth(part, work, arguments)),
    }


def _status(key: str) -> float:
    """A size that Linux keeps of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**10


# -- accuracy --------------------------------------------------------------------------------------


def accuracy(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Per case and contender how far the values are from float64, one batch each, so that all
    estimate the same.

    In the float64 network there is no rounding: what is off there is what the hooks saw, clamping
    or 1e-4 under a root."""
    single, double = resnet(arguments, "float32"), resnet(arguments, "float64")
    far = synthetic_features(arguments.feature_images, 4, 2_000, mean=10)
    peers = {label: PEERS[label] for label in ("pytorch-cka", "cka-pytorch", "torch_cka")}
    networks = {
        "mixer_probe": with_options(ours_of_models, positions="flatten", **VALUES_ONLY),
        **peers,
    }
    matrices = {"mixer_probe": with_options(ours_of_features, **VALUES_ONLY), **peers}
    return {
        "all modules of a ResNet-18": errors(networks, single, true_of_network(single)),
        "the same in float64": errors(networks, double, true_of_network(double)),
        "mean ten times the deviation": errors(matrices, far, grams_in_float64(far)),
    }


def errors(
    contenders: Mapping[str, Contender], work: Any, true: Values
) -> dict[str, dict[str, Any]]:
    """Largest deviation and share of cells that are off, by contender."""
    return {label: error_of(contender, work, true) for label, contender in contenders.items()}


def error_of(contender: Contender, work: Any, true: Values) -> dict[str, Any]:
    """How far one contender is from the truth; a refusal is a finding."""
    if reason := contender.missing():
        return {"missing": reason}
    try:
        values = contender.run(work)
    except (AssertionError, RuntimeError) as error:
        return {"missing": f"fails ({error})"}
    assert values is not None
    assert true is not None
    apart = np.abs(values - true)
    return {
        "deviation": float(apart.max()),
        "off": float((~(apart <= OFF)).mean()),
        "highest": float(values.max()),
    }


def resnet(arguments: argparse.Namespace, dtype: str) -> ModelWork:
    """An untrained ResNet-18 against a copy of itself in all modules without children, images of 64
    pixels.

    Its last BN of each block is not zero, as timm would have it: then whole layers are."""
    options: dict[str, Any] = {
        "pretrained": False,
        "input_size": (3, 64, 64),
        "zero_init_last": False,
    }
    a = load_model("resnet18", device="cpu", dtype=dtype, **options)
    images = torch.randn(
        arguments.images, 3, 64, 64, generator=torch.Generator().manual_seed(0)
    ).to(a.dtype)
    names = [name for name, module in a.module.named_modules() if not list(module.children())]
    return ModelWork(a, copy.deepcopy(a), images, names, len(images))


def true_of_network(work: ModelWork) -> Values:
    """Unbiased CKA in float64 of flattened copies, taken before a later operation can change
    them."""
    outputs: dict[str, Tensor] = {}
    with cloning(work.a.module, work.networks.layers_a, outputs), torch.inference_mode():
        work.a.module(work.images)
    found = [outputs[name].flatten(1) for name in work.networks.layers_a]
    return unbiased_cka(found, found)


@contextlib.contextmanager
def cloning(network: nn.Module, names: Sequence[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Hooks that put copies of what the modules return into `outputs`."""

    def keeper(name: str) -> Callable[..., None]:
        return lambda module, given, output: outputs.update({name: output.clone()})

    handles = [network.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- command line ----------------------------------------------------------------------------------


def table(part: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of one part as text."""
    lines = [f"{part:<30} {'ratio':>7} {'seconds':>8} {'peak MiB':>9} {'deviation':>10}"]
    for label, values in found.items():
        if "missing" in values:
            lines.append(f"  {label:<28} {values['missing']}")
            continue
        last = "" if values["deviation"] is None else f"{values['deviation']:.2g}"
        figures = (
            f"{values['ratio']:>7.3f} {values['seconds']:>8.3f} {values['peak_mib']:>9.0f} "
            f"{last:>10}"
        )
        lines.append(f"  {label:<28} {figures}")
    return "\n".join(lines)


def accuracy_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The deviations as text."""
    lines = []
    for case, contenders in found.items():
        lines.append(f"{case:<30} {'deviation':>10} {f'off by > {OFF}':>14} {'highest':>8}")
        for label, values in contenders.items():
            figures = (
                values.get("missing")
                or f"{values['deviation']:>10.2g} {values['off']:>14.1%} {values['highest']:>8.3f}"
            )
            lines.append(f"  {label:<28} {figures}")
    return "\n".join(lines)


def verdict(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Where a peer is faster than our values alone, and by how much."""
    lines = []
    for part, found in parts.items():
        ratios = {label: values["ratio"] for label, values in found.items() if "ratio" in values}
        peers = {label: ratio for label, ratio in ratios.items() if PARTS[part][label].package}
        ours = ratios.get("mixer_probe, values only", 0)
        faster = [
            f"{label} ({ratio:.3f} against {ours:.3f})"
            for label, ratio in peers.items()
            if ratio < ours
        ]
        lines += [f"faster than mixer_probe in {part}: {', '.join(faster)}"] if faster else []
    return "\n".join(lines)


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that belongs to the figures."""
    return {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "images": f"{arguments.images} in batches of {arguments.batch_size}",
        "store": f"{arguments.store_images} x {arguments.layers} x {arguments.store_channels}",
        "features": (
            f"{arguments.feature_images} x {arguments.layers} x {arguments.feature_channels}"
        ),
        "rounds": f"{arguments.rounds} ({arguments.store_rounds} of the store)",
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = (*PARTS, "accuracy")
    parser.add_argument("--part", nargs="+", choices=every, default=every)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--layers", type=int, default=12, help="of the features in stores and in memory"
    )
    parser.add_argument("--store-images", type=int, default=50_000)
    parser.add_argument("--store-channels", type=int, default=768)
    parser.add_argument("--feature-images", type=int, default=512)
    parser.add_argument("--feature-channels", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--store-rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="room for two stores, 3.6 GB by default",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stores", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs=2, metavar=("PART", "CONTENDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


@contextlib.contextmanager
def written_stores(arguments: argparse.Namespace) -> Iterator[None]:
    """The two stores, as long as they are needed."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        arguments.stores = Path(folder)
        if "store" in arguments.part:
            for side, name in zip(store_sides(arguments), ("a", "b"), strict=True):
                side.write(arguments.stores / name, arguments.store_images)
            os.sync()
        yield


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        part, label = arguments.alone
        print(json.dumps(alone(part, label, arguments)))
        return
    content: dict[str, Any] = {**report(arguments), "parts": {}}
    print(", ".join(f"{k} {v}" for k, v in content.items() if k != "parts"), flush=True)
    with written_stores(arguments):
        for part in arguments.part:
            if part == "accuracy":
                content["parts"][part] = accuracy(arguments)
                print(accuracy_table(content["parts"][part]), flush=True)
            else:
                content["parts"][part] = measure(part, arguments)
                print(table(part, content["parts"][part]), flush=True)
    print(verdict(content["parts"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
