"""`model_cost`: what a network costs - parameters, multiply-accumulates, memory of activations, and
time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.cost.counting import MacParts, count_parts, head_parameters
from mixer_probe.cost.memory import peak_activation_bytes
from mixer_probe.cost.timing import RUNS, device_name, time_together
from mixer_probe.models.model import Model
from mixer_probe.stats import median_interval


@dataclass(frozen=True)
class ModelCost(Result):
    """The cost of one network on `device` in the type `dtype`, for batches of `batch_size` images
    of `input_size`.

    `head_parameters` are those of the classifier, part of `model.parameters`. `macs` are of one
    image. `peak_bytes` are the activations alive at once in a forward pass of one batch, the batch
    included (`peak_activation_bytes`). `seconds` [run] are the times of forward passes of one
    batch, measured warm (`time_together`); none where time was not measured."""

    title: ClassVar[str] = "Cost"
    frame = Frame(
        "",
        """model=model.name model.family input=size_text parameters=model.parameters
        head_parameters macs=macs.total stem_macs=macs.stem spatial_macs=macs.spatial
        channel_macs=macs.channel rest_macs=macs.rest head_macs=macs.head batch_size
        peak_activation_bytes=peak_bytes images_per_second=throughput
        low,high=throughput_interval runs=run dtype device""",
    )

    model: ModelRecord
    input_size: tuple[int, int, int]
    head_parameters: int
    macs: MacParts
    device: str
    dtype: str
    batch_size: int
    peak_bytes: int
    seconds: Annotated[np.ndarray, "run"]

    @property
    def bytes_per_image(self) -> float:
        """Peak bytes of activations divided by the images of the batch."""
        return self.peak_bytes / self.batch_size

    @property
    def throughput(self) -> float:
        """Images per second: batch size over the median time; NaN where time was not measured."""
        return (
            self.batch_size / float(np.median(self.seconds)) if len(self.seconds) else float("nan")
        )

    @property
    def throughput_interval(self) -> tuple[float, float]:
        """95 % interval (low, high) of the throughput over passes; NaN where time was not
        measured."""
        if not len(self.seconds):
            return float("nan"), float("nan")
        fast, slow = median_interval(self.seconds)
        return self.batch_size / slow, self.batch_size / fast

    @property
    def size_text(self) -> str:
        """The size of an image as text, "3×224×224"."""
        return "×".join(map(str, self.input_size))


@checked(MeasureError)
def model_cost(model: Model, *, batch_size: int = 32, runs: int = RUNS) -> ModelCost:
    """The cost of one network on its device. `runs` = 0 counts only.

    Raises MeasureError for a batch of no images and one that does not fit into memory."""
    return model_costs([model], batch_size=batch_size, runs=runs)[0]


@checked(MeasureError)
def model_costs(
    models: Sequence[Model], *, batch_size: int = 32, runs: int = RUNS
) -> list[ModelCost]:
    """`model_cost` of several networks, all in memory, timed in turns so that their times are
    comparable."""
    seconds = time_together(models, batch_size, runs) if runs else np.empty((len(models), 0))
    return [
        ModelCost(
            model=model.record,
            input_size=model.input.size,
            head_parameters=head_parameters(model),
            macs=count_parts(model),
            device=device_name(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            batch_size=batch_size,
            peak_bytes=peak_activation_bytes(model, batch_size),
            seconds=row,
        )
        for model, row in zip(models, seconds, strict=True)
    ]
