"""The registry of attribution methods: what each computes, of what sign, with which options, and
for which networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from captum.attr import DeepLift, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn

from mixer_probe.attribution.baselines import Baseline
from mixer_probe.attribution.gradcam import gradcam_layer, gradcam_maps
from mixer_probe.attribution.network import logits_of, patch_grid
from mixer_probe.attribution.path import Quadrature, integrate
from mixer_probe.attribution.rollout import ReadOut, attention_places, relevance, rollout
from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.core.switches import copied, not_in_place
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Explained:
    """Maps [B, H, W] at input resolution, the maps on the method's own grid [B, rows, columns],
    integration steps [B], and the fraction of its magnitudes by which more steps may change a map
    [B]."""

    maps: Tensor
    native: Tensor | None = None
    steps: Tensor | None = None
    change: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """What a method needs besides images and targets. `chunk` is the largest number of images in a
    forward pass."""

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
    """One method. `signed` says whether negative values mean evidence against the class; `complete`
    that the map sums to the difference of the logits of image and baseline; `baseline` whether
    there is one; `layer` whether it takes one. `refuse` raises for networks that it does not fit.
    `label` is how figures and sentences call it, where not by its name."""

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
    label: str = ""


METHODS: dict[str, Method] = {}


def register(
    text: str, source: str, *, signed: bool, **declared: Any
) -> Callable[[Explain], Explain]:
    """Registers a function as the method of its own name."""

    def add(explain: Explain) -> Explain:
        METHODS[explain.__name__] = Method(
            explain.__name__, text, source, explain, signed, **declared
        )
        return explain

    return add


def _gradient(run: Run, x: Tensor, targets: Tensor) -> Tensor:
    found: Tensor = Saliency(run.forward).attribute(
        x.detach().clone().requires_grad_(), target=targets, abs=False
    )
    return found.detach()


@register("|gradient| of the logit, summed over colours", "Simonyan et al. 2014", signed=False)
def saliency(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """sum_c |dF/dx_c|."""
    return Explained(_gradient(run, x, targets).abs().sum(1))


@register(
    "(image - baseline) x gradient, summed over colours",
    "Shrikumar et al. 2016",
    signed=True,
    baseline=True,
    label="input × gradient",
)
def input_x_gradient(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """sum_c (x_c - b_c) dF/dx_c."""
    return Explained(((x - run.baseline.of(x)) * _gradient(run, x, targets)).sum(1))


@register(
    "gradient averaged along the path from the baseline (Gauss-Legendre) x (image - baseline), "
    "summed over colours",
    "Sundararajan et al. 2017",
    signed=True,
    complete=True,
    baseline=True,
    options={"n_steps": 16, "max_steps": 4096, "tolerance": 0.01, "change": 0.02},
)
def integrated_gradients(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """sum_c (x_c - b_c) times the integral of dF/dx_c from baseline to image (`path.integrate`)."""
    o = run.options
    rule = Quadrature(
        int(o["n_steps"]), int(o["max_steps"]), float(o["tolerance"]), float(o["change"])
    )
    maps, steps, change = integrate(run.model, x, run.baseline.of(x), targets, rule, run.chunk)
    return Explained(maps, steps=steps, change=change)


@register(
    "|mean gradient| of noisy copies, summed over colours",
    "Smilkov et al. 2017",
    signed=False,
    options={"samples": 25, "noise": 0.15},
    label="SmoothGrad",
)
def smoothgrad(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """sum_c |mean over noisy copies of dF/dx_c|; the noise is Gaussian, its deviation a fraction of
    the pixel range."""
    # The range of pixel values is 1/std after normalisation.
    scale = (
        run.options["noise"] * sum(1 / s for s in run.model.input.std) / len(run.model.input.std)
    )
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


_RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)
_LINEAR = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Identity,
    nn.Dropout,
    nn.Flatten,
)
_LINEAR_NAMES = {"FastAdaptiveAvgPool", "DropPath", "DropBlock2d"}


def check_deeplift(model: Model) -> None:
    """Raise MeasureError for modules that DeepLIFT has no rule for, and for activations that run
    several times per pass."""
    modules = [
        (path, m) for path, m in model.module.named_modules() if not any(True for _ in m.children())
    ]
    names = {
        type(m).__name__ for _, m in modules if not isinstance(m, (*_RESCALED, *_LINEAR))
    } - _LINEAR_NAMES
    instead = "'integrated_gradients' sums to the same logit difference and works for every network"
    if names:
        raise MeasureError(
            f"DeepLIFT has no rule for {', '.join(sorted(names))} in {model.name}; {instead}"
        )
    runs_twice = {name.partition("#")[0] for name in model.structure.names() if "#" in name}
    reused = [path for path, m in modules if path in runs_twice and isinstance(m, _RESCALED)]
    if reused:
        raise MeasureError(
            f"DeepLIFT needs activations that run once, and '{reused[0]}' of {model.name} runs "
            f"several times; {instead}"
        )


@register(
    "DeepLIFT, rescale rule, summed over colours",
    "Shrikumar et al. 2017",
    signed=True,
    complete=True,
    baseline=True,
    options={"tolerance": 0.01},
    refuse=check_deeplift,
    label="DeepLIFT",
)
def deeplift(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """Contributions of the colours by DeepLIFT's rescale rule, summed."""
    # A copy: captum leaves attributes on modules, and its hooks do not go with in-place
    # activations.
    network = copied(run.model.module)
    with not_in_place(network):
        found: Tensor = DeepLift(network).attribute(
            x.detach().clone().requires_grad_(),
            baselines=run.baseline.of(x).contiguous(),
            target=targets,
        )
    return Explained(found.detach().sum(1))


@register(
    "drop in the logit when a window over all colours is replaced by the baseline",
    "Zeiler and Fergus 2014",
    signed=True,
    baseline=True,
    options={"window": None, "stride": None},
)
def occlusion(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """Mean over the windows that cover a pixel of the drop in the logit."""
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
    """(window, stride) of occlusion in pixels: by default one patch of the network's grid, moved by
    its own size."""
    size, grid = run.model.input.size[1:], patch_grid(run.model)
    given = run.options["window"]
    window = (
        (-(-size[0] // grid[0]), -(-size[1] // grid[1]))
        if given is None
        else (int(given), int(given))
    )
    stride = window if run.options["stride"] is None else (int(run.options["stride"]),) * 2
    if not all(1 <= s <= w <= n for s, w, n in zip(stride, window, size, strict=True)):
        raise MeasureError(
            f"a window of {window} px moved by {stride} leaves gaps or does not fit "
            f"{size[0]}×{size[1]} px"
        )
    return window, stride


def _upsampled(native: Tensor, x: Tensor) -> Explained:
    size = x.shape[2:]
    if native.shape[1:] == (1, 1):
        # Interpolation would round a single number differently from pixel to pixel, and ranks would
        # reflect that.
        return Explained(native.expand(-1, *size), native)
    return Explained(
        F.interpolate(native[:, None], size=size, mode="bilinear", align_corners=False)[:, 0],
        native,
    )


@register(
    "Grad-CAM on the layer's grid, bilinear to the input",
    "Selvaraju et al. 2017",
    signed=False,
    layer=True,
    options={"relu": True},
    label="Grad-CAM",
)
def gradcam(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """`gradcam_maps` of the layer of the run."""
    assert run.layer is not None
    return _upsampled(gradcam_maps(run.model, run.layer, x, targets, run.options["relu"]), x)


@register(
    "product of the blocks' (mean attention + identity) / 2, bilinear to the input; the same for "
    "every class",
    "Abnar and Zuidema 2020",
    signed=False,
    refuse=attention_places,
)
def attention_rollout(run: Run, x: Tensor, _targets: Tensor) -> Explained:
    """`rollout` of the network."""
    assert run.read is not None
    return _upsampled(rollout(run.model, run.read, x), x)


@register(
    "attention weighted by its positive gradient through all blocks, bilinear to the input",
    "Chefer et al. 2021",
    signed=False,
    refuse=attention_places,
    label="gradient × attention",
)
def gradient_attention(run: Run, x: Tensor, targets: Tensor) -> Explained:
    """`relevance` of the tokens for the target."""
    assert run.read is not None
    return _upsampled(relevance(run.model, run.read, x, targets), x)


def method_label(method: str) -> str:
    """How figures and sentences call a method."""
    return (METHODS[method].label if method in METHODS else "") or method.replace("_", " ")


def find_method(name: str) -> Method:
    """Raises MeasureError with close names for an unknown one."""
    if name == "layer_conductance":
        raise MeasureError(
            "layer conductance scores hidden units and gives no map; use "
            "mixer_probe.attribution.layer_conductance"
        )
    if name not in METHODS:
        raise MeasureError(f"no attribution method '{name}'; {closest(name, METHODS)}")
    return METHODS[name]


def allowed_methods(model: Model) -> tuple[str, ...]:
    """The methods that this network allows."""
    allowed = []
    for method in METHODS.values():
        with suppress(MeasureError):
            method.refuse(model)
            allowed.append(method.name)
    return tuple(allowed)


def make_run(
    method: Method,
    model: Model,
    layer: str | None,
    baseline: Baseline,
    chunk: int,
    options: Mapping[str, Any],
) -> Run:
    """The run of a method on one network. Raises MeasureError for networks, layers and options that
    do not fit."""
    unknown = [name for name in options if name not in method.options]
    if unknown:
        known = closest(unknown[0], method.options) if method.options else "it has none"
        raise MeasureError(f"{method.name} has no option '{unknown[0]}'; {known}")
    if layer is not None and not method.layer:
        raise MeasureError(f"{method.name} attributes to pixels and takes no layer; 'gradcam' does")
    method.refuse(model)
    place = gradcam_layer(model, layer) if method.layer else None
    read = ReadOut(model) if method.refuse is attention_places else None
    settings = {**method.options, **options}
    for name in ("n_steps", "max_steps", "samples"):
        if int(settings.get(name, 1)) < 1:
            raise MeasureError(f"{name} of {method.name} must be 1 or more, not {settings[name]}")
    if any(settings.get(name, 1) <= 0 for name in ("noise", "tolerance", "change")):
        raise MeasureError(f"noise, tolerance and change of {method.name} must be above 0")
    run = Run(model, baseline, chunk, settings, place, read)
    if method.name == "occlusion":
        _window(run)
    return run
