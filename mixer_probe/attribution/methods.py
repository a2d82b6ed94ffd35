"""The registry of attribution methods: what each computes, of what sign, with which options, and for which networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from captum.attr import DeepLift, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn

from mixer_probe.attribution.baselines import Baseline
from mixer_probe.attribution.gradcam import gradcam, gradcam_layer
from mixer_probe.attribution.network import logits_of, patch_grid
from mixer_probe.attribution.path import Quadrature, integrate
from mixer_probe.attribution.rollout import ReadOut, attention_places, attention_rollout, gradient_attention
from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.core.switches import copied
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Explained:
    """Maps [B, H, W] at input resolution, the maps on the method's own grid [B, rows, columns], integration steps [B], and the
    share of its magnitudes that more steps may move a map by [B]."""

    maps: Tensor
    native: Tensor | None = None
    steps: Tensor | None = None
    change: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """All that a method needs beside images and targets. `chunk` is the most images of one forward pass."""

    model: Model
    baseline: Baseline
    chunk: int
    options: Mapping[str, Any]
    layer: Layer | None = None
    read: ReadOut | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K]."""
        return logits_of(self.model, x)


Explain = Callable[[Run, Tensor, Tensor], Explained]


@dataclass(frozen=True)
class Method:
    """One method. `signed` says whether negative values mean evidence against the class; `complete` that the map sums to the
    difference of the logits of image and baseline; `baseline` whether there is one. `refuse` raises for networks that it does
    not fit."""

    name: str
    text: str
    source: str
    explain: Explain
    signed: bool
    complete: bool = False
    baseline: bool = False
    layer: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    refuse: Callable[[Model], object] = lambda _model: None


def _gradient(run: Run, x: Tensor, targets: Tensor) -> Tensor:
    found: Tensor = Saliency(run.forward).attribute(x.detach().clone().requires_grad_(), target=targets, abs=False)
    return found.detach()


def _saliency(run: Run, x: Tensor, targets: Tensor) -> Explained:
    return Explained(_gradient(run, x, targets).abs().sum(1))


def _input_x_gradient(run: Run, x: Tensor, targets: Tensor) -> Explained:
    return Explained(((x - run.baseline.of(x)) * _gradient(run, x, targets)).sum(1))


def _smoothgrad(run: Run, x: Tensor, targets: Tensor) -> Explained:
    # The range of pixel values is 1/std after normalisation.
    scale = run.options["noise"] * sum(1 / s for s in run.model.input.std) / len(run.model.input.std)
    found: Tensor = NoiseTunnel(Saliency(run.forward)).attribute(
        x.detach().clone().requires_grad_(),
        nt_type="smoothgrad",
        nt_samples=run.options["samples"],
        nt_samples_batch_size=max(1, run.chunk // len(x)),
        stdevs=scale,
        target=targets,
        abs=False,
    )
    return Explained(found.detach().abs().sum(1))


def _integrated_gradients(run: Run, x: Tensor, targets: Tensor) -> Explained:
    rule = Quadrature(
        int(run.options["n_steps"]), int(run.options["max_steps"]), float(run.options["tolerance"]), float(run.options["change"])
    )
    maps, steps, change = integrate(run.model, x, run.baseline.of(x), targets, rule, run.chunk)
    return Explained(maps, steps=steps, change=change)


def _deeplift(run: Run, x: Tensor, targets: Tensor) -> Explained:
    # A copy: captum leaves attributes on modules, and its hooks do not go with in-place activations.
    network = copied(run.model.module)
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    found: Tensor = DeepLift(network).attribute(
        x.detach().clone().requires_grad_(), baselines=run.baseline.of(x).contiguous(), target=targets
    )
    return Explained(found.detach().sum(1))


_RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)
_LINEAR = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity, nn.Dropout, nn.Flatten)
_LINEAR_NAMES = {"FastAdaptiveAvgPool", "DropPath", "DropBlock2d"}


def _refuse_deeplift(model: Model) -> None:
    modules = [(path, m) for path, m in model.module.named_modules() if not any(True for _ in m.children())]
    strange = {type(m).__name__ for _, m in modules if not isinstance(m, (*_RESCALED, *_LINEAR)) and not _is_linear(m)}
    instead = "'integrated_gradients' sums to the same logit difference and works for every network"
    if strange:
        names = ", ".join(sorted(strange))
        raise MeasureError(f"DeepLIFT has no rule for {names} in {model.name}; {instead}")
    runs_twice = {name.partition("#")[0] for name in model.structure.names() if "#" in name}
    reused = [path for path, m in modules if path in runs_twice and isinstance(m, _RESCALED)]
    if reused:
        raise MeasureError(
            f"DeepLIFT needs activations that run once, and '{reused[0]}' of {model.name} runs several times; {instead}"
        )


def _is_linear(module: nn.Module) -> bool:
    return type(module).__name__ in _LINEAR_NAMES


def _occlusion(run: Run, x: Tensor, targets: Tensor) -> Explained:
    window, stride = _window(run)
    channels = x.shape[1]
    found: Tensor = Occlusion(run.forward).attribute(
        x,
        sliding_window_shapes=(channels, *window),
        strides=(channels, *stride),
        baselines=run.baseline.of(x).contiguous(),
        target=targets,
        perturbations_per_eval=max(1, 8 * run.chunk // len(x)),
    )
    # All colours are covered at once, so that each carries the whole difference.
    return Explained(found.detach().mean(1))


def _window(run: Run) -> tuple[tuple[int, int], tuple[int, int]]:
    """(window, stride) in pixels: by default one patch of the network's grid, moved by itself."""
    size, grid = run.model.input.size[1:], patch_grid(run.model)
    given = run.options["window"]
    window = (-(-size[0] // grid[0]), -(-size[1] // grid[1])) if given is None else (int(given), int(given))
    stride = window if run.options["stride"] is None else (int(run.options["stride"]),) * 2
    if not all(1 <= s <= w <= n for s, w, n in zip(stride, window, size, strict=True)):
        raise MeasureError(f"a window of {window} px moved by {stride} leaves gaps or does not fit {size[0]}×{size[1]} px")
    return window, stride


def _upsampled(native: Tensor, x: Tensor) -> Explained:
    size = x.shape[2:]
    if native.shape[1:] == (1, 1):
        # Interpolation would round a single number differently from pixel to pixel, and ranks would be made of that.
        return Explained(native.expand(-1, *size), native)
    return Explained(F.interpolate(native[:, None], size=size, mode="bilinear", align_corners=False)[:, 0], native)


def _gradcam(run: Run, x: Tensor, targets: Tensor) -> Explained:
    assert run.layer is not None
    return _upsampled(gradcam(run.model, run.layer, x, targets, run.options["relu"]), x)


def _rollout(run: Run, x: Tensor, _targets: Tensor) -> Explained:
    assert run.read is not None
    return _upsampled(attention_rollout(run.model, run.read, x), x)


def _gradient_attention(run: Run, x: Tensor, targets: Tensor) -> Explained:
    assert run.read is not None
    return _upsampled(gradient_attention(run.model, run.read, x, targets), x)


_ALL = (
    Method("saliency", "|gradient| of the logit, summed over colours", "Simonyan et al. 2014", _saliency, signed=False),
    Method(
        "input_x_gradient",
        "(image - baseline) x gradient, summed over colours",
        "Shrikumar et al. 2016",
        _input_x_gradient,
        signed=True,
        baseline=True,
    ),
    Method(
        "integrated_gradients",
        "gradient averaged along the path from the baseline (Gauss-Legendre) x (image - baseline), summed over colours",
        "Sundararajan et al. 2017",
        _integrated_gradients,
        signed=True,
        complete=True,
        baseline=True,
        options={"n_steps": 16, "max_steps": 4096, "tolerance": 0.01, "change": 0.02},
    ),
    Method(
        "smoothgrad",
        "|mean gradient| of noisy copies, summed over colours",
        "Smilkov et al. 2017",
        _smoothgrad,
        signed=False,
        options={"samples": 25, "noise": 0.15},
    ),
    Method(
        "deeplift",
        "DeepLIFT, rescale rule, summed over colours",
        "Shrikumar et al. 2017",
        _deeplift,
        signed=True,
        complete=True,
        baseline=True,
        options={"tolerance": 0.01},
        refuse=_refuse_deeplift,
    ),
    Method(
        "occlusion",
        "drop in the logit when a window over all colours is replaced by the baseline",
        "Zeiler and Fergus 2014",
        _occlusion,
        signed=True,
        baseline=True,
        options={"window": None, "stride": None},
    ),
    Method(
        "gradcam",
        "Grad-CAM on the layer's grid, bilinear to the input",
        "Selvaraju et al. 2017",
        _gradcam,
        signed=False,
        layer=True,
        options={"relu": True},
    ),
    Method(
        "attention_rollout",
        "product of the blocks' (mean attention + identity) / 2, bilinear to the input; the same for every class",
        "Abnar and Zuidema 2020",
        _rollout,
        signed=False,
        refuse=attention_places,
    ),
    Method(
        "gradient_attention",
        "attention weighted by its positive gradient through all blocks, bilinear to the input",
        "Chefer et al. 2021",
        _gradient_attention,
        signed=False,
        refuse=attention_places,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def find_method(name: str) -> Method:
    """Raises MeasureError with close names for an unknown one."""
    if name == "layer_conductance":
        raise MeasureError(
            "layer conductance scores hidden units and gives no map; use mixer_probe.attribution.layer_conductance"
        )
    if name not in METHODS:
        raise MeasureError(f"no attribution method '{name}'; {closest(name, METHODS)}")
    return METHODS[name]


def allowed_methods(model: Model) -> tuple[str, ...]:
    """The methods that this network allows."""
    return tuple(name for name, method in METHODS.items() if _allows(method, model))


def _allows(method: Method, model: Model) -> bool:
    try:
        method.refuse(model)
    except MeasureError:
        return False
    return True


def make_run(method: Method, model: Model, layer: str | None, baseline: Baseline, chunk: int, options: Mapping[str, Any]) -> Run:
    """A method made ready for one network. Raises MeasureError for networks, layers and options that do not fit."""
    unknown = [name for name in options if name not in method.options]
    if unknown:
        known = closest(unknown[0], method.options) if method.options else "it has none"
        raise MeasureError(f"{method.name} has no option '{unknown[0]}'; {known}")
    if layer is not None and not method.layer:
        raise MeasureError(f"{method.name} attributes to pixels and takes no layer; 'gradcam' does")
    method.refuse(model)
    place = gradcam_layer(model, layer) if method.layer else None
    read = ReadOut(model) if method.refuse is attention_places else None
    run = Run(model, baseline, chunk, {**method.options, **options}, place, read)
    _check_options(method, run)
    return run


def _check_options(method: Method, run: Run) -> None:
    counts = [name for name in ("n_steps", "max_steps", "samples") if name in run.options and int(run.options[name]) < 1]
    if counts:
        raise MeasureError(f"{counts[0]} of {method.name} must be 1 or more, not {run.options[counts[0]]}")
    if any(run.options.get(name, 1) <= 0 for name in ("noise", "tolerance", "change")):
        raise MeasureError(f"noise, tolerance and change of {method.name} must be above 0")
    if method.name == "occlusion":
        _window(run)
