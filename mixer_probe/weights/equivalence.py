"""Numerical equivalence of a Mixer and its convolutional form: the difference of their outputs, and
the convolutions it consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import Call, hooked
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result, storable
from mixer_probe.core.switches import copied, evaluating
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.weights.convolution import (
    ConvolutionalMixer,
    Form,
    FullFieldMixing,
    as_convolution,
)
from mixer_probe.weights.spectrum import power_centroid
from mixer_probe.weights.token_matrices import token_matrices

_SHOWN_CHANNELS = 3
DTYPES = ("float64", "float32")


@storable
@dataclass(frozen=True)
class EquivalenceCheck:
    """The outputs of a network and of its convolutional form, both computed in `dtype`.

    `difference` is the largest |difference| of two logits, `rounding` the largest difference of the
    network's own logits in this type from those in float64 (0 for float64 itself), `same` the
    number of images with the same first class."""

    form: str
    dtype: str
    difference: float
    rounding: float
    same: int
    n: int


@storable
@dataclass(frozen=True)
class ConvolutionCount:
    """`count` convolutions of one kind, with `kernel` (rows, columns), and the parameters that they
    hold together."""

    kind: str
    count: int
    kernel: tuple[int, int]
    parameters: int


@storable
@dataclass(frozen=True)
class FullFieldExample:
    """One kernel of the first full-field convolution applied to one image: `maps` [k, h, w] of the
    channels `channels`.

    `kernel` [h, w] is the same for all channels, `unit` its row in the linear layer, `bias` its
    bias. `convolved` [k] is what the convolution gives, `linear` [k] what the linear layer of the
    original gives for the same channels."""

    block: str
    layer: str
    unit: int
    channels: Annotated[tuple[int, ...], "channel"]
    maps: Annotated[np.ndarray, "channel", "row", "column"]
    kernel: Annotated[np.ndarray, "row", "column"]
    bias: float
    convolved: Annotated[np.ndarray, "channel"]
    linear: Annotated[np.ndarray, "channel"]


@dataclass(frozen=True)
class ConvolutionEquivalence(Result):
    """A Mixer and its convolutional form on the same images: `checks` of outputs, and the
    `convolutions` it consists of.

    `output` is "logits", or "features" where the classifier is all zero, as in an untrained timm
    Mixer, whose logits are equal whatever comes before them.

    `parameters` are those of the convolutional form, `linear_layers` the `nn.Linear` left in it,
    `untied_parameters` what it would have if every channel had token-mixing weights of its own,
    `largest_output` the largest |output| of the original."""

    title: ClassVar[str] = "A Mixer as a CNN"
    frame = Frame(
        "check",
        """model=model.name model.parameters parameters_as_cnn=parameters checks.form checks.dtype
        largest_difference=checks.difference own_rounding=checks.rounding output largest_output
        same_class=checks.same checks.n convolutions=convolutions.count.sum linear_layers""",
    )

    model: ModelRecord
    images: ImagesRecord
    grid: tuple[int, int]
    channels: int
    parameters: int
    untied_parameters: int
    linear_layers: int
    output: str
    largest_output: float
    convolutions: Annotated[tuple[ConvolutionCount, ...], "convolution"]
    checks: Annotated[tuple[EquivalenceCheck, ...], "check"]
    example: FullFieldExample


@checked(MeasureError)
def convolution_equivalence(
    model: Model,
    images: ImageSource | Tensor,
    *,
    forms: Sequence[Form] = ("tied", "grouped"),
    dtypes: Sequence[str] = DTYPES,
    batch_size: int = 16,
) -> ConvolutionEquivalence:
    """Write a Mixer, gMixer, ResMLP or gMLP as a CNN and compare the logits of both on `images`,
    for each form and type.

    The first form is the one that is counted. Raises ModelError as `as_convolution` does, and
    MeasureError for no form, no type, or images that give none."""
    if not forms or not dtypes:
        raise MeasureError(
            "the logits of a Mixer and its convolutional form are compared in one form and one "
            "type or more"
        )
    source = as_source(images)
    batches = list(source.batches(transform_of(model), batch_size))
    exact = _in_type(model, "float64")
    converted = as_convolution(exact, forms[0])
    example = _full_field_example(exact, converted, batches[0][:1])
    untied = sum(
        _parameters(m) * (m.channels - 1)
        for m in converted.modules()
        if isinstance(m, FullFieldMixing)
    )
    head = getattr(model.module, "head", None)
    # A head of zeros gives every image the same logits.
    output = "features" if isinstance(head, nn.Linear) and not bool(head.weight.any()) else "logits"
    exact = _in_type(model, "float64", output)
    reference = _outputs(exact, exact.module, batches)
    checks = []
    for dtype in dtypes:
        cast = _in_type(model, dtype, output)
        own = _outputs(cast, cast.module, batches)
        rounding = float((own - reference).abs().max())
        for form in forms:
            other = _outputs(cast, as_convolution(cast, form), batches)
            same = int((other.flatten(1).argmax(1) == own.flatten(1).argmax(1)).sum())
            checks.append(
                EquivalenceCheck(
                    form, dtype, float((other - own).abs().max()), rounding, same, len(own)
                )
            )
    return ConvolutionEquivalence(
        model=model.record,
        images=source.record,
        grid=converted.grid,
        channels=next(layer.channels for layer in model.select("blocks")),
        parameters=_parameters(converted),
        untied_parameters=_parameters(converted) + untied,
        linear_layers=sum(isinstance(m, nn.Linear) for m in converted.modules()),
        output=output,
        largest_output=float(reference.abs().max()),
        convolutions=count_convolutions(converted),
        checks=tuple(checks),
        example=example,
    )


def _in_type(model: Model, dtype: str, output: str = "logits") -> Model:
    """A copy in another type, without its classifier for "features"; on the CPU where the device
    has no float64."""
    place = "cpu" if model.device.type == "mps" else model.device
    network: Any = copied(model.module)
    if output == "features":
        network.head = nn.Identity()
    network.to(device=place, dtype=getattr(torch, dtype))
    return Model(model.name, network, model.adapter, model.input, model.weights)


def _outputs(model: Model, network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Outputs of all images in float64 on the CPU, whatever the type that they are computed in."""
    with evaluating(network), torch.no_grad():
        return torch.cat(
            [network(batch.to(model.device, model.dtype)).double().cpu() for batch in batches]
        )


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def count_convolutions(network: ConvolutionalMixer) -> tuple[ConvolutionCount, ...]:
    """The convolutions of a converted Mixer by what they do, in execution order."""
    inside = tuple(
        f"{path}." for path, m in network.named_modules() if isinstance(m, FullFieldMixing)
    )
    kinds: dict[str, list[nn.Conv2d]] = {}
    for path, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if path.startswith(inside):
            kind = (
                "hidden units to positions"
                if path.endswith("fc2")
                else "full-field, tied over channels"
            )
        elif path.startswith("stem."):
            kind = "patch embedding"
        else:
            kind = "classifier" if path == "head" else "channels to channels"
        kinds.setdefault(kind, []).append(module)
    return tuple(
        ConvolutionCount(
            kind,
            len(found),
            (found[0].kernel_size[0], found[0].kernel_size[1]),
            sum(map(_parameters, found)),
        )
        for kind, found in kinds.items()
    )


def _full_field_example(
    model: Model, converted: ConvolutionalMixer, image: Tensor
) -> FullFieldExample:
    """The kernel of lowest frequency of the first full-field convolution, applied to one image."""
    mixing = next(m for m in converted.modules() if isinstance(m, FullFieldMixing))
    first = next(m for m in mixing.modules() if isinstance(m, nn.Conv2d))
    tokens = token_matrices(model)[0]
    linear = model.module.get_submodule(f"{tokens.block}.{tokens.layer}")
    batch = image.to(model.device, model.dtype)
    recorded = _calls(converted, [mixing, first], batch)
    maps = recorded[mixing][0][0]
    responses = recorded[first][1].reshape(len(maps), -1)
    own = _calls(model.module, [linear], batch)[linear][1][0]
    kernels = first.weight.detach()[: responses.shape[1], 0]
    unit = int(np.nan_to_num(power_centroid(kernels.cpu().numpy()), nan=np.inf).argmin())
    order = responses[:, unit].argsort(descending=True)
    shown = [
        int(order[k])
        for k in np.linspace(0, len(order) - 1, min(_SHOWN_CHANNELS, len(order)))
        .round()
        .astype(int)
    ]
    bias = 0.0 if first.bias is None else float(first.bias.detach()[unit])
    numbers = (maps[shown], kernels[unit], responses[shown, unit], own[shown, unit])
    arrays = [value.detach().cpu().numpy().astype(np.float64) for value in numbers]
    return FullFieldExample(
        tokens.block, tokens.layer, unit, tuple(shown), arrays[0], arrays[1], bias, *arrays[2:]
    )


def _calls(
    network: nn.Module, modules: Sequence[nn.Module], batch: Tensor
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """(input, output) of the modules in one forward pass."""
    recorded: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    paths = (path for path, module in network.named_modules() if module in modules)

    def record(call: Call) -> None:
        recorded[call.module] = call.args[0].clone(), call.output.clone()

    with evaluating(network), torch.no_grad(), hooked(network, paths, record) as passes:
        passes.run(batch)
    return recorded
