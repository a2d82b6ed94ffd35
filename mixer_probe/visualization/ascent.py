"""Gradient ascent on the parameters of images, many units and seeds at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from mixer_probe.core.progress import Advance
from mixer_probe.models.model import Model
from mixer_probe.visualization.network import Read, reading
from mixer_probe.visualization.objectives import Objective
from mixer_probe.visualization.transforms import Transforms

# Adam takes steps of one length whatever a gradient is; those of coefficients whose gradient is
# below this fraction of an image's root mean square are shorter, so that rounding does not move the
# many frequencies that a unit ignores.
_SMALL = 0.1
# Forty such steps make a faint start as contrasted as a photograph.
_PERTURBATION = 1.1


class Parametrisation(Protocol):
    """Images as a function of free parameters."""

    size: tuple[int, int]

    def start(self, generators: list[Generator]) -> Tensor:
        """Parameters of one image per generator, [image, ...]."""

    def images(self, parameters: Tensor) -> Tensor:
        """RGB images [image, 3, h, w] in 0..1."""


@dataclass(frozen=True)
class Ascent:
    """Settings of the method `name`: `steps` of Adam with learning rate `rate` under random
    `transforms`, from each of the `seeds`."""

    name: str
    parametrisation: Parametrisation
    transforms: Transforms
    steps: int
    rate: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class OptimizationResult:
    """Outcome of the ascent, [unit, seed, ...]: final `images` [3, h, w] in 0..1 on the CPU, the
    objective at every step in `trace`, `importance` [h, w], the absolute gradient of the objective
    by pixels, summed over the steps, and `response`, the largest sum of absolute gradients by
    pixels relative to the size of the activations, which is 0 for a unit that no pixel affects."""

    images: Tensor
    trace: Tensor
    importance: Tensor
    response: Tensor


def ascend(
    model: Model, objective: Objective, ascent: Ascent, batch_size: int, advance: Advance
) -> OptimizationResult:
    """Images of every unit from every seed, at most `batch_size` views of them in one pass.

    Random numbers depend on the seed alone, and images do not affect one another: another choice of
    units changes nothing."""
    count, seeds = len(objective.units), len(ascent.seeds)
    unit = torch.arange(count).repeat_interleave(seeds)
    seed = torch.arange(seeds).repeat(count)
    chunk = max(1, batch_size // ascent.transforms.views)
    with reading(model, objective.layer) as read:
        parts = [
            _optimize(objective, ascent, part.to(model.device), own, read, advance)
            for part, own in zip(torch.split(unit, chunk), torch.split(seed, chunk), strict=True)
        ]
    joined = [
        torch.cat(found).reshape(count, seeds, *found[0].shape[1:])
        for found in zip(*parts, strict=True)
    ]
    return OptimizationResult(*joined)


def _optimize(
    objective: Objective, ascent: Ascent, unit: Tensor, seed: Tensor, read: Read, advance: Advance
) -> tuple[Tensor, ...]:
    """Images, trace, importance and response [image, ...] of one image per `unit` and `seed`, on
    the CPU."""
    transforms, n = ascent.transforms, len(seed)
    generators = [torch.Generator().manual_seed(s) for s in ascent.seeds]
    parameters = ascent.parametrisation.start(generators)[seed].requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=ascent.rate, eps=_SMALL, maximize=True)
    trace, importance = [], torch.zeros((), device=parameters.device)
    response = torch.zeros(n, device=parameters.device)
    for step in range(ascent.steps):
        images = ascent.parametrisation.images(parameters)
        positions, _ = read(transforms.apply(images, seed, generators, 1 - step / ascent.steps))
        maps = objective.maps(positions, unit.repeat(transforms.views)).to(images.dtype)
        size = maps.detach().square().reshape(transforms.views, n, -1).mean((0, 2)).sqrt()
        # The mean over the views of each image.
        value = objective.number(maps).reshape(transforms.views, n).mean(0)
        inputs = (parameters, images)
        # A value that depends on no image has no gradient.
        gradients = (
            torch.autograd.grad(value.sum(), inputs)
            if value.requires_grad
            else map(torch.zeros_like, inputs)
        )
        gradient, by_pixel = gradients
        # Gradients have a root mean square of 1 per image; one of zeros stays.
        norm = gradient.flatten(1).square().mean(1).sqrt()
        parameters.grad = gradient / torch.where(norm > 0, norm, 1.0).reshape(
            -1, *(1,) * (gradient.ndim - 1)
        )
        optimiser.step()
        strength = by_pixel.abs().sum(1)
        # An image without any effect on its unit grows in contrast (or turns in phase): a ReLU that
        # is inactive for grey may become active.
        with torch.no_grad():
            parameters[(strength == 0).all(-1).all(-1)] *= _PERTURBATION
        importance = importance + strength
        # 0 / 0 is a unit that no pixel affects.
        response = response.maximum(torch.nan_to_num(strength.sum((1, 2)) / size))
        trace.append(value.detach())
        advance(n)
    with torch.no_grad():
        final = ascent.parametrisation.images(parameters)
    return tuple(
        t.detach().cpu() for t in (final, torch.stack(trace, 1).double(), importance, response)
    )
