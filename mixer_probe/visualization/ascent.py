"""Gradient ascent on the parameters of images, many units and seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Generator, Tensor

from mixer_probe.core.progress import Advance
from mixer_probe.models.model import Model
from mixer_probe.visualization.network import Read, reading
from mixer_probe.visualization.objectives import Objective
from mixer_probe.visualization.robustness import Robustness, join, sample_views

# Adam takes steps of one length whatever a gradient is; those of coefficients whose gradient is below this share of an image's
# root mean square are shorter, so that rounding does not move the many frequencies that a unit does not care for.
_SMALL = 0.1


class Parametrisation(Protocol):
    """Images as a function of free numbers."""

    size: tuple[int, int]

    def start(self, generators: list[Generator]) -> Tensor:
        """Parameters of one image a generator, [image, ...]."""

    def images(self, parameters: Tensor) -> Tensor:
        """RGB images [image, 3, h, w] in 0..1."""


@dataclass(frozen=True)
class Ascent:
    """How the method of that name makes images: so many steps of Adam with learning rate `rate` under `robustness`, from each of
    the `seeds`."""

    name: str
    parametrisation: Parametrisation
    robustness: Robustness
    steps: int
    rate: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Ascended:
    """What came of it, [unit, seed, ...]: final `images` [3, h, w] in 0..1 on the CPU, the objective at every step in `trace`,
    `importance` [h, w], the absolute gradient of the objective by pixels, summed over the steps, and `response`, the largest sum
    of absolute gradients by pixels relative to the size of the activations, which is 0 for a unit that no pixel moves."""

    images: Tensor
    trace: Tensor
    importance: Tensor
    response: Tensor


def ascend(model: Model, objective: Objective, ascent: Ascent, batch_size: int, advance: Advance) -> Ascended:
    """Images of every unit from every seed, at most `batch_size` views of them in one pass.

    What is drawn depends on the seed alone, and images do not touch one another: another choice of units changes nothing."""
    count, seeds = len(objective.units), len(ascent.seeds)
    unit = torch.arange(count).repeat_interleave(seeds)
    seed = torch.arange(seeds).repeat(count)
    chunk = max(1, batch_size // ascent.robustness.views)
    parts = []
    with reading(model, objective.layer) as read:
        for part in torch.split(torch.arange(count * seeds), chunk):
            run = _Run(objective, ascent, unit[part].to(model.device), seed[part], read)
            parts.append(run.run(partial(advance, len(part))))
    joined = [torch.cat(found).reshape(count, seeds, *found[0].shape[1:]) for found in zip(*parts, strict=True)]
    return Ascended(*joined)


class _Run:
    """The ascent of some images together."""

    def __init__(self, objective: Objective, ascent: Ascent, unit: Tensor, seed: Tensor, read: Read) -> None:
        self._objective = objective
        self._ascent = ascent
        self._unit = unit
        self._seed = seed
        self._read = read
        self._generators = [torch.Generator().manual_seed(s) for s in ascent.seeds]

    def run(self, advance: Callable[[], None]) -> Sequence[Tensor]:
        """Images, trace, importance and response [image, ...] on the CPU."""
        ascent = self._ascent
        parameters = ascent.parametrisation.start(self._generators)[self._seed].requires_grad_()
        optimiser = torch.optim.Adam([parameters], lr=ascent.rate, eps=_SMALL, maximize=True)
        trace, importance = [], torch.zeros((), device=parameters.device)
        response = torch.zeros(len(self._seed), device=parameters.device)
        for step in range(ascent.steps):
            images = ascent.parametrisation.images(parameters)
            value, size = self._value(images, step)
            gradient, by_pixel = _gradients(value, parameters, images)
            parameters.grad = _unit(gradient)
            optimiser.step()
            strength = by_pixel.abs().sum(1)
            _stir(parameters, strength)
            importance = importance + strength
            # Nothing divided by nothing is a unit that no pixel moves.
            response = response.maximum(torch.nan_to_num(strength.sum((1, 2)) / size))
            trace.append(value.detach())
            advance()
        with torch.no_grad():
            final = ascent.parametrisation.images(parameters)
        return [t.detach().cpu() for t in (final, torch.stack(trace, 1).double(), importance, response)]

    def _value(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The objective of every image, the mean over its views, and the root mean square of the activations it is made of."""
        robustness, n = self._ascent.robustness, len(images)
        seen = self._views(images, step)
        positions, _ = self._read(seen)
        maps = self._objective.maps(positions, self._unit.repeat(robustness.views)).to(images.dtype)
        size = maps.detach().square().reshape(robustness.views, n, -1).mean((0, 2)).sqrt()
        return self._objective.number(maps).reshape(robustness.views, n).mean(0), size

    def _views(self, images: Tensor, step: int) -> Tensor:
        """The views of this step [view * image, 3, h, w], the same for all images of one seed."""
        robustness, size = self._ascent.robustness, self._ascent.parametrisation.size
        drawn = [robustness.draw(generator, size) for generator in self._generators]
        # Drawn seed by seed, taken view by view.
        index = self._seed * robustness.views + torch.arange(robustness.views)[:, None]
        seen = sample_views(images.repeat(robustness.views, 1, 1, 1), join(drawn).take(index.flatten()))
        if not robustness.noise:
            return seen
        left = 1 - step / self._ascent.steps
        return seen + robustness.noise * left * self._noise(seen)

    def _noise(self, seen: Tensor) -> Tensor:
        shape = (self._ascent.robustness.views, *seen.shape[1:])
        drawn = torch.stack([torch.randn(shape, generator=g) for g in self._generators], 1)
        return drawn[:, self._seed].reshape(seen.shape).to(seen)


def _unit(gradient: Tensor) -> Tensor:
    """Gradients with a root mean square of 1 an image; one of zeros stays."""
    size = gradient.flatten(1).square().mean(1).sqrt()
    return gradient / torch.where(size > 0, size, 1.0).reshape(-1, *(1,) * (gradient.ndim - 1))


# Forty such steps make a faint start as contrasted as a photograph.
_STIR = 1.1


def _stir(parameters: Tensor, strength: Tensor) -> None:
    """Let images that no pixel of which moves its unit grow in contrast (or turn in phase): a ReLU that is shut for grey may open
    for something else."""
    shut = (strength == 0).all(-1).all(-1)
    with torch.no_grad():
        parameters[shut] *= _STIR


def _gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The gradients of the sum; zeros for a value that does not depend on any image."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(value.sum(), inputs))
